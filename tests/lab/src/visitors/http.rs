//! As much of HTTP as visitors need, and TLS that insists on the site's own certificate.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
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

use super::log::{Kind, Outcome, SILENT};

/// The largest head or body that is read.
const LIMIT: usize = 64 << 10;
/// So many connections are kept of each kind.
const KEPT: usize = 8;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection to the site, and its socket, to look at without reading.
struct Connection {
    stream: BufReader<Box<dyn Stream>>,
    socket: OwnedFd,
}

impl Connection {
    /// Whether a browser would use it again: the server has not closed it, and has said nothing that
    /// nobody asked for.
    fn is_idle(&self) -> bool {
        let mut byte = [0u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        self.stream.buffer().is_empty() && recv(&self.socket, &mut byte, flags) == Err(Errno::AGAIN)
    }
}

/// Why there is no answer.
enum Unanswered {
    /// The connection ended before the first byte of an answer.
    Silent(String),
    /// Something else.
    Other(String),
}

impl Unanswered {
    fn why(self) -> String {
        match self {
            Unanswered::Silent(why) | Unanswered::Other(why) => why,
        }
    }
}

impl From<String> for Unanswered {
    fn from(why: String) -> Self {
        Unanswered::Other(why)
    }
}

/// All visitors' browsers.
pub struct Client {
    address: Ipv4Addr,
    domain: String,
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
    /// Visitors of a site at this address. It must show this certificate, and no other.
    pub fn new(address: Ipv4Addr, domain: &str, certificate: &Path) -> Result<Client> {
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
            domain: domain.to_owned(),
            tls: TlsConnector::from(Arc::new(config)),
            plain: Mutex::default(),
            secure: Mutex::default(),
        })
    }

    /// Where they go.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The site that they ask for.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Writes an id at the site.
    pub async fn write(&self, kind: Kind, id: String) -> Result<Outcome, String> {
        let Some(connection) = self.pooled(kind) else { return self.write_anew(kind, id).await };
        match self.ask(connection, kind, &id).await {
            Err(Unanswered::Silent(why)) => {
                Ok(Outcome::Retried(format!("{why} on a kept connection")))
            }
            other => {
                other.map_err(|unanswered| format!("{} on a kept connection", unanswered.why()))
            }
        }
    }

    /// Writes an id at the site, on a new connection.
    pub async fn write_anew(&self, kind: Kind, id: String) -> Result<Outcome, String> {
        let connection = self.connect(is_secure(kind)).await?;
        self.ask(connection, kind, &id).await.map_err(Unanswered::why)
    }

    fn pool(&self, kind: Kind) -> MutexGuard<'_, Vec<Connection>> {
        let pool = if is_secure(kind) { &self.secure } else { &self.plain };
        pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept connection that can be used again; those that cannot are let go.
    fn pooled(&self, kind: Kind) -> Option<Connection> {
        if !is_kept(kind) {
            return None;
        }
        let mut pool = self.pool(kind);
        std::iter::from_fn(|| pool.pop()).find(Connection::is_idle)
    }

    async fn ask(
        &self,
        mut connection: Connection,
        kind: Kind,
        id: &str,
    ) -> Result<Outcome, Unanswered> {
        let response = exchange(&mut connection.stream, &self.domain, id, is_kept(kind)).await?;
        if is_kept(kind) && !response.close {
            let mut pool = self.pool(kind);
            if pool.len() < KEPT {
                pool.push(connection);
            }
        }
        Ok(acknowledged(&response, id)?)
    }

    async fn connect(&self, secure: bool) -> Result<Connection, String> {
        let port = if secure { 443 } else { 80 };
        let tcp = TcpStream::connect((self.address, port))
            .await
            .map_err(|e| format!("connect: {}", e.kind()))?;
        tcp.set_nodelay(true).map_err(|e| e.to_string())?;
        let socket = tcp.as_fd().try_clone_to_owned().map_err(|e| e.to_string())?;
        let stream: Box<dyn Stream> = if secure {
            let name = ServerName::try_from(self.domain.clone()).map_err(|e| e.to_string())?;
            Box::new(self.tls.connect(name, tcp).await.map_err(|e| format!("tls: {e}"))?)
        } else {
            Box::new(tcp)
        };
        Ok(Connection { stream: BufReader::new(stream), socket })
    }
}

fn acknowledged(response: &Response, id: &str) -> Result<Outcome, String> {
    if response.status != 200 {
        return Err(refusal(response));
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

/// The status, and the end of the page on one line: web servers sign their error pages.
fn refusal(response: &Response) -> String {
    const SHOWN: usize = 160;
    let said: Vec<&str> = response.body.split_whitespace().collect();
    let said = said.join(" ").replace("</center> </body> </html>", "");
    let start = said.char_indices().nth_back(SHOWN - 1).map_or(0, |(at, _)| at);
    format!("status {}: {}", response.status, &said[start..])
}

fn is_kept(kind: Kind) -> bool {
    matches!(kind, Kind::HttpKept | Kind::HttpsKept)
}

fn is_secure(kind: Kind) -> bool {
    matches!(kind, Kind::Https | Kind::HttpsKept)
}

async fn exchange(
    stream: &mut BufReader<Box<dyn Stream>>,
    domain: &str,
    id: &str,
    keep: bool,
) -> Result<Response, Unanswered> {
    let wish = if keep { "keep-alive" } else { "close" };
    let request =
        format!("GET /write?id={id} HTTP/1.1\r\nHost: {domain}\r\nConnection: {wish}\r\n\r\n");
    let cut = |e: std::io::Error| format!("cut: {}", e.kind());
    let unsent = |e: std::io::Error| Unanswered::Silent(format!("not sent: {}", e.kind()));
    stream.write_all(request.as_bytes()).await.map_err(unsent)?;
    stream.flush().await.map_err(unsent)?;
    let head = head(stream).await?;
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
    stream.read_exact(&mut body).await.map_err(cut)?;
    Ok(Response { status, body: String::from_utf8_lossy(&body).into_owned(), close })
}

async fn head(stream: &mut BufReader<Box<dyn Stream>>) -> Result<String, Unanswered> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await;
        head.push(byte.map_err(|e| {
            if head.is_empty() {
                Unanswered::Silent(SILENT.to_owned())
            } else {
                Unanswered::Other(format!("cut: {}", e.kind()))
            }
        })?);
        if head.len() > LIMIT {
            return Err(Unanswered::Other("a head without end".to_owned()));
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener};

    use super::*;

    /// A connection, and the server's end of it.
    async fn pair() -> (Connection, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = tcp.as_fd().try_clone_to_owned().unwrap();
        let stream: Box<dyn Stream> = Box::new(tcp);
        (Connection { stream: BufReader::new(stream), socket }, listener.accept().unwrap().0)
    }

    /// Waits until the socket has something to tell: an end or bytes.
    async fn told(connection: &Connection) {
        while connection.is_idle() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_kept_connection_that_the_server_closed_is_not_used_again() {
        let (connection, server) = pair().await;
        assert!(connection.is_idle());
        server.shutdown(Shutdown::Write).unwrap();
        told(&connection).await;
        let (connection, mut server) = pair().await;
        server.write_all(b"HTTP/1.1 408 ").unwrap();
        told(&connection).await;
    }

    #[test]
    fn a_refusal_tells_who_signed_it() {
        let page =
            "<html>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx/1.22.1";
        for (before, after) in
            [("", ""), (&*"é".repeat(300), "</center>\r\n</body>\r\n</html>\r\n")]
        {
            let body = format!("{before}{page}{after}");
            let said = refusal(&Response { status: 502, body, close: true });
            assert!(said.starts_with("status 502: ") && said.ends_with("nginx/1.22.1"), "{said}");
        }
    }

    #[tokio::test]
    async fn only_an_answer_without_a_byte_is_silent() {
        for (says, silent) in [(&b""[..], true), (b"HTTP/1.1 2", false)] {
            let (mut connection, mut server) = pair().await;
            let answering = std::thread::spawn(move || {
                let mut request = [0; 4096];
                let _ = server.read(&mut request).unwrap();
                server.write_all(says).unwrap();
            });
            let Err(unanswered) = exchange(&mut connection.stream, "a.test", "v-1", true).await
            else {
                panic!("an answer came")
            };
            assert_eq!(matches!(unanswered, Unanswered::Silent(_)), silent);
            answering.join().unwrap();
        }
    }
}
