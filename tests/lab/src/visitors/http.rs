//! As much of HTTP as visitors need, and TLS that insists on the site's own certificate.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
};

use super::log::{Kind, Outcome};
use crate::sample::DOMAIN;

/// The largest head or body that is read.
const LIMIT: usize = 64 << 10;
/// So many connections are kept of each kind.
const KEPT: usize = 8;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

type Connection = BufReader<Box<dyn Stream>>;

/// All visitors' browsers.
pub struct Client {
    address: Ipv4Addr,
    tls: TlsConnector,
    plain: Mutex<Vec<Connection>>,
    secure: Mutex<Vec<Connection>>,
}

/// Trusts one certificate, whatever it says: the site's is signed by itself.
#[derive(Debug)]
struct OnlyThis {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OnlyThis {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *shown == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a response said.
struct Response {
    status: u16,
    body: String,
    close: bool,
}

impl Client {
    /// Visitors of the sample site at this address. It must show this certificate, and no other.
    pub fn new(address: Ipv4Addr, certificate: &Path) -> Result<Client> {
        let certificate = CertificateDer::from_pem_file(certificate)
            .with_context(|| format!("reading {}", certificate.display()))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let only = OnlyThis { certificate, provider: Arc::clone(&provider) };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(only))
            .with_no_client_auth();
        Ok(Client {
            address,
            tls: TlsConnector::from(Arc::new(config)),
            plain: Mutex::default(),
            secure: Mutex::default(),
        })
    }

    /// Where they go.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Writes an id at the site.
    pub async fn write(&self, kind: Kind, id: String) -> Result<Outcome, String> {
        let kept = matches!(kind, Kind::HttpKept | Kind::HttpsKept);
        let secure = matches!(kind, Kind::Https | Kind::HttpsKept);
        let pool = if secure { &self.secure } else { &self.plain };
        let pooled =
            kept.then(|| pool.lock().unwrap_or_else(PoisonError::into_inner).pop()).flatten();
        let reused = pooled.is_some();
        let mut connection = match pooled {
            Some(connection) => connection,
            None => self.connect(secure).await?,
        };
        let response = exchange(&mut connection, &id, kept)
            .await
            .map_err(|e| if reused { format!("{e} on a kept connection") } else { e })?;
        if kept && !response.close {
            let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
            if pool.len() < KEPT {
                pool.push(connection);
            }
        }
        acknowledged(&response, &id)
    }

    async fn connect(&self, secure: bool) -> Result<Connection, String> {
        let port = if secure { 443 } else { 80 };
        let tcp = TcpStream::connect((self.address, port))
            .await
            .map_err(|e| format!("connect: {}", e.kind()))?;
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        if !secure {
            return Ok(BufReader::new(Box::new(tcp)));
        }
        let name = ServerName::try_from(DOMAIN).map_err(|e| e.to_string())?;
        let tls = self.tls.connect(name, tcp).await.map_err(|e| format!("tls: {e}"))?;
        Ok(BufReader::new(Box::new(tls)))
    }
}

fn acknowledged(response: &Response, id: &str) -> Result<Outcome, String> {
    if response.status != 200 {
        return Err(format!("status {}", response.status));
    }
    let words: Vec<&str> = response.body.split_whitespace().collect();
    match words[..] {
        ["ok", answered, server, at] if answered == id => Ok(Outcome::Acknowledged {
            server: server.to_owned(),
            kept_at_us: at.parse().map_err(|_| format!("a strange answer: {}", response.body))?,
        }),
        _ => Err(format!("a strange answer: {}", response.body.trim())),
    }
}

async fn exchange(connection: &mut Connection, id: &str, keep: bool) -> Result<Response, String> {
    let wish = if keep { "keep-alive" } else { "close" };
    let request =
        format!("GET /write?id={id} HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: {wish}\r\n\r\n");
    let cut = |e: std::io::Error| format!("cut: {}", e.kind());
    connection.write_all(request.as_bytes()).await.map_err(cut)?;
    connection.flush().await.map_err(cut)?;
    let head = head(connection).await?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| format!("a strange answer: {head}"))?;
    let (mut length, mut chunked, mut close) = (0usize, false, !keep);
    for line in lines {
        let line = line.to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(|_| "a strange length".to_owned())?;
        }
        chunked |= line.starts_with("transfer-encoding:");
        close |= line.starts_with("connection:") && line.contains("close");
    }
    if chunked || length > LIMIT {
        // Only error pages are; their text does not matter, but the connection is used up.
        return Ok(Response { status, body: String::new(), close: true });
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await.map_err(cut)?;
    Ok(Response { status, body: String::from_utf8_lossy(&body).into_owned(), close })
}

async fn head(connection: &mut Connection) -> Result<String, String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = connection.read_u8().await;
        head.push(byte.map_err(|e| {
            if head.is_empty() {
                "closed without an answer".to_owned()
            } else {
                format!("cut: {}", e.kind())
            }
        })?);
        if head.len() > LIMIT {
            return Err("a head without end".to_owned());
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
