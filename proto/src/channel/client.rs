//! The dialling side: to the controller over HTTP/2, with or without a certificate of one's own.
//! The address only says where to dial; the name in the certificate says who answered.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::version::TLS13;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};

use super::accept::tune;
use super::admitted::Admitted;
use super::certificate::{CaCertificate, Fingerprint};
use super::credentials::Identity;
use super::names::{CONTROLLER_DNS_NAME, Party};
use super::verify::{PinnedVerifier, ServerVerifier};
use super::{ALPN_CONTROLLER, provider, refusal};
use crate::Fault;

/// How long dialling may take, name lookup and handshake included.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How often an idle connection is asked for a sign of life, and how long that may take.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Connects an agent to `expected` (the controller) at `address` (`HOST:PORT`). When this succeeds
/// the server has admitted us. The channel dials again by itself if the connection is lost, with
/// the identity's then current certificate; why that failed, a call's status tells:
/// [`status_fault`](super::status_fault).
///
/// # Errors
/// Nobody answers there, somebody else does, or it refused us.
pub async fn connect(
    address: &str,
    identity: &Arc<Identity>,
    expected: &Party,
) -> Result<Channel, Fault> {
    let verifier = ServerVerifier::new(identity.ca(), expected.clone(), None)?;
    let config = client_config(Arc::new(verifier), Some(identity), ALPN_CONTROLLER)?;
    channel(Dialler::new(address, expected.clone(), config)).await
}

/// Connects somebody who has no certificate but knows the authority's: an operator's tool.
///
/// # Errors
/// Nobody answers there, or somebody other than the controller does.
pub async fn connect_anonymous(address: &str, ca: &CaCertificate) -> Result<Channel, Fault> {
    let verifier = ServerVerifier::new(ca, Party::Controller, None)?;
    let config = client_config(Arc::new(verifier), None, ALPN_CONTROLLER)?;
    channel(Dialler::new(address, Party::Controller, config)).await
}

/// Connects somebody who knows only the fingerprint of the authority, from an enrolment token.
///
/// # Errors
/// Nobody answers there, or somebody other than the controller under that authority does.
pub async fn pinned_connect(address: &str, ca: &Fingerprint) -> Result<Channel, Fault> {
    let verifier = PinnedVerifier { pin: *ca };
    let config = client_config(Arc::new(verifier), None, ALPN_CONTROLLER)?;
    channel(Dialler::new(address, Party::Controller, config)).await
}

pub(crate) fn client_config(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<&Arc<Identity>>,
    alpn: &[u8],
) -> Result<ClientConfig, Fault> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| Fault::bug("TLS 1.3 is not available").caused_by(&e))?
        // "Dangerous" is rustls's word for any verifier of one's own; ours only adds checks.
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::clone(identity) as Arc<_>),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// Dials one party at one address.
#[derive(Clone)]
pub(crate) struct Dialler {
    address: Arc<str>,
    expected: Party,
    tls: TlsConnector,
}

impl Dialler {
    pub(crate) fn new(address: &str, expected: Party, config: ClientConfig) -> Self {
        Self { address: address.into(), expected, tls: TlsConnector::from(Arc::new(config)) }
    }

    /// Whom it dials, for messages.
    pub(crate) fn other(&self) -> String {
        format!("{} at {}", self.expected, self.address)
    }

    /// Dials, within the time that dialling may take.
    pub(crate) async fn dial(&self) -> Result<(TlsStream<TcpStream>, SocketAddr), Fault> {
        match tokio::time::timeout(DIAL_TIMEOUT, self.dial_unbounded()).await {
            Ok(result) => result,
            Err(_) => Err(self.silent()),
        }
    }

    async fn dial_unbounded(&self) -> Result<(TlsStream<TcpStream>, SocketAddr), Fault> {
        let failed = |error: std::io::Error| refusal::fault(&self.other(), &error);
        let socket = TcpStream::connect(&*self.address).await.map_err(|e| self.unreachable(&e))?;
        let address = socket.peer_addr().map_err(failed)?;
        tune(&socket)?;
        let tls = self.tls.connect(self.expected.tls_name(), socket).await.map_err(failed)?;
        let (_, session) = tls.get_ref();
        // A server that negotiates no protocol is not one of ours, even with the right name.
        if session.alpn_protocol().is_none() {
            return Err(Fault::permanent(format!(
                "{} speaks another protocol than Ferry's",
                self.other()
            ))
            .remedy("check the port"));
        }
        Ok((tls, address))
    }

    fn unreachable(&self, error: &std::io::Error) -> Fault {
        let message = format!("no connection to {}", self.other());
        if error.kind() == std::io::ErrorKind::InvalidInput {
            return Fault::precondition(message)
                .remedy("write the address as HOST:PORT")
                .caused_by(error);
        }
        // A name that cannot be looked up now, a host that is down: all of it may pass.
        Fault::transient(message)
            .remedy("check the address, routes and firewalls on the way, and that it runs")
            .caused_by(error)
    }

    fn silent(&self) -> Fault {
        Fault::transient(format!(
            "{} did not answer within {} s",
            self.other(),
            DIAL_TIMEOUT.as_secs()
        ))
        .remedy("check the address, routes and firewalls on the way")
    }

    /// The other end closed the connection instead of admitting us, without an alert.
    pub(crate) fn not_admitted(&self) -> Fault {
        Fault::transient(format!("{} closed the connection without admitting us", self.other()))
            .remedy("look at its journal for the reason")
    }
}

/// Dials the controller and waits until it has admitted us.
async fn dial_controller(dialler: &Dialler) -> Result<Admitted, Fault> {
    let (tls, _) = dialler.dial().await?;
    match tokio::time::timeout(DIAL_TIMEOUT, Admitted::wait(tls)).await {
        Ok(Ok(admitted)) => Ok(admitted),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(dialler.not_admitted())
        }
        Ok(Err(error)) => Err(refusal::fault(&dialler.other(), &error)),
        Err(_) => Err(dialler.silent()),
    }
}

async fn channel(dialler: Dialler) -> Result<Channel, Fault> {
    // Dialled here first, because tonic would bury the reason in its own error.
    let first = dial_controller(&dialler).await?;
    let first = Arc::new(Mutex::new(Some(first)));
    let other = dialler.other();
    let connector = tower::service_fn(move |_: Uri| {
        let dialler = dialler.clone();
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            match first {
                Some(admitted) => Ok(TokioIo::new(admitted)),
                None => dial_controller(&dialler).await.map(TokioIo::new),
            }
        }
    });
    // The scheme is what tonic sees: TLS is the connector's business.
    Endpoint::from_shared(format!("http://{CONTROLLER_DNS_NAME}"))
        .map_err(|e| Fault::bug("the controller's name is no URI").caused_by(&e))?
        // Each half of dialling has its own deadline; this one is only there for both.
        .connect_timeout(3 * DIAL_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|e| Fault::transient(format!("no HTTP/2 with {other}")).caused_by(&e))
}
