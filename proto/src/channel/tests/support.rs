//! An authority, a controller with the standard health service, and callers.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::Fault;
use crate::channel::verify::ServerVerifier;
use crate::channel::*;
use crate::ids::ServerName;

pub(super) fn server(name: &str) -> ServerName {
    name.parse().unwrap()
}

pub(super) fn agent(name: &str) -> Party {
    Party::Agent(server(name))
}

/// How a certificate differs from what the authority would write.
pub(super) struct Profile {
    pub(super) names: Option<Vec<SanType>>,
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    pub(super) is_ca: bool,
}

impl Default for Profile {
    fn default() -> Self {
        let now = unix_now();
        Self { names: None, not_before: now - 60, not_after: now + 3600, is_ca: false }
    }
}

/// A certificate authority for one test.
pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
    pub(super) certificate: CaCertificate,
}

impl Ca {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        let certificate = CaCertificate::from_pem(&pem).unwrap();
        Self { issuer: Issuer::new(params, key), pem, certificate }
    }

    pub(super) fn credentials(&self, party: &Party) -> Credentials {
        self.credentials_with(party, Profile::default())
    }

    pub(super) fn credentials_with(&self, party: &Party, profile: Profile) -> Credentials {
        let (key, certificate) = self.issue(party, profile);
        Credentials::new(&key, &certificate, &self.pem)
    }

    /// Key and certificate in PEM.
    pub(super) fn issue(&self, party: &Party, profile: Profile) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let time = |at| time::OffsetDateTime::from_unix_timestamp(at).unwrap();
        params.not_before = time(profile.not_before);
        params.not_after = time(profile.not_after);
        params.subject_alt_names =
            profile.names.unwrap_or_else(|| names(party, self.certificate.fingerprint()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if matches!(party, Party::Agent(_)) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        if profile.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        (key.serialize_pem(), pem)
    }

    pub(super) fn identity(&self, party: &Party) -> Arc<Identity> {
        Identity::new(&self.credentials(party)).unwrap()
    }
}

pub(super) fn names(party: &Party, ca: &Fingerprint) -> Vec<SanType> {
    vec![
        SanType::DnsName(party.dns_name().try_into().unwrap()),
        SanType::URI(party.uri(ca).try_into().unwrap()),
    ]
}

/// A controller with a health service that notes who called.
pub(super) struct Controller {
    pub(super) address: String,
    pub(super) connections: Arc<Connections>,
    pub(super) identity: Arc<Identity>,
    pub(super) callers: Arc<Mutex<Vec<Caller>>>,
    pub(super) health: HealthReporter,
    server: tokio::task::JoinHandle<()>,
}

impl Controller {
    pub(super) async fn start(ca: &Ca) -> Self {
        Self::start_as(ca.identity(&Party::Controller), Limits::default()).await
    }

    pub(super) async fn start_as(identity: Arc<Identity>, limits: Limits) -> Self {
        let connections = Connections::new(limits);
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let incoming = listener.serve(&identity, &connections).unwrap();
        let address = incoming.address().to_string();
        let callers = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&callers);
        let health = HealthReporter::new();
        let service = InterceptedService::new(
            HealthServer::new(HealthService::from_health_reporter(health.clone())),
            move |request: tonic::Request<()>| {
                let connection = connection(&request).unwrap();
                // The operators' service does so when it has accepted the token.
                if request.metadata().contains_key("authorization") {
                    connection.keep();
                }
                seen.lock().unwrap().push(caller(&request));
                Ok(request)
            },
        );
        let server = tokio::spawn(async move {
            let served = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await;
            served.unwrap();
        });
        Self { address, connections, identity, callers, health, server }
    }

    pub(super) fn last_caller(&self) -> Option<Caller> {
        self.callers.lock().unwrap().last().cloned()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Connects as an agent and calls the health service once.
pub(super) async fn call(address: &str, identity: &Arc<Identity>) -> Result<Channel, Fault> {
    let channel = connect(address, identity, &Party::Controller).await?;
    check(&channel).await?;
    Ok(channel)
}

/// Calls the health service once.
pub(super) async fn check(channel: &Channel) -> Result<(), Fault> {
    let mut client = HealthClient::new(channel.clone());
    let request = HealthCheckRequest { service: String::new() };
    match soon(client.check(request)).await {
        Ok(_) => Ok(()),
        Err(status) => Err(status_fault(&status)
            .unwrap_or_else(|| Fault::transient(format!("the call failed: {status:?}")))),
    }
}

/// Asks the health service to go on telling; its first answer has come.
pub(super) async fn watch(
    channel: &Channel,
) -> tonic::Streaming<tonic_health::pb::HealthCheckResponse> {
    let mut client = HealthClient::new(channel.clone());
    let request = HealthCheckRequest { service: String::new() };
    let mut stream = soon(client.watch(request)).await.unwrap().into_inner();
    soon(stream.message()).await.unwrap().unwrap();
    stream
}

/// What must happen within a while, on a slow machine too.
pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("nothing happened in 20 s")
}

/// A TLS client that is not ours: its own configuration, the same checks of the server.
pub(super) async fn foreign_client(
    address: &str,
    party: &Party,
    configure: impl FnOnce(Arc<dyn ServerCertVerifier>) -> ClientConfig,
    ca: &Ca,
) -> std::io::Result<TlsStream<TcpStream>> {
    foreign_tls(TcpStream::connect(address).await?, party, configure, ca).await
}

async fn foreign_tls(
    socket: TcpStream,
    party: &Party,
    configure: impl FnOnce(Arc<dyn ServerCertVerifier>) -> ClientConfig,
    ca: &Ca,
) -> std::io::Result<TlsStream<TcpStream>> {
    let verifier = ServerVerifier::new(&ca.certificate, party.clone(), None).unwrap();
    let config = configure(Arc::new(verifier));
    TlsConnector::from(Arc::new(config)).connect(party.tls_name(), socket).await
}

/// A connection from 127.0.0.`host`, of which only 1 is the loopback to a listener: who comes from
/// another is to it one of the network.
pub(super) async fn socket_from(host: u8, controller: &Controller) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1 << 12).unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
    socket.connect(controller.address.parse().unwrap()).await.unwrap()
}

/// Connects from 127.0.0.`host`, with a certificate or as a stranger, until it is admitted.
pub(super) async fn admitted_from(
    host: u8,
    controller: &Controller,
    certificate: Option<&(String, String)>,
    ca: &Ca,
) -> std::io::Result<TlsStream<TcpStream>> {
    let configure = |verifier| raw_config(verifier, certificate, ALPN_CONTROLLER);
    let socket = socket_from(host, controller).await;
    let mut tls = soon(foreign_tls(socket, &Party::Controller, configure, ca)).await?;
    soon(tls.read_u8()).await?;
    Ok(tls)
}

/// A client's configuration with a certificate that [`Identity`] would not take, or none.
pub(super) fn raw_config(
    verifier: Arc<dyn ServerCertVerifier>,
    certificate: Option<&(String, String)>,
    alpn: &[u8],
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match certificate {
        Some(certificate) => {
            let (chain, key) = der(certificate);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

fn der(
    (key, certificate): &(String, String),
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    (chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
}

/// A server with a certificate of its own making that sends `ca`'s along. Returns its address.
pub(super) async fn impostor(certificate: &(String, String), ca: &Ca) -> String {
    let (mut chain, key) = der(certificate);
    chain.push(ca.certificate.der().clone());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let _ = acceptor.accept(socket).await;
        }
    });
    address
}

/// A peer port of `name`'s agent.
pub(super) async fn peer_port(ca: &Ca, name: &str) -> (PeerListener, SocketAddr, Arc<Connections>) {
    let connections = Connections::new(Limits::default());
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let port = PeerListener::new(listener, &ca.identity(&agent(name)), &connections).unwrap();
    let address = port.address();
    (port, address, connections)
}

/// Whether a fault says `text`, in its sentence or its causes.
#[track_caller]
pub(super) fn says(fault: &Fault, text: &str) {
    assert!(fault.to_string().contains(text), "{text:?} is not in: {fault}");
}
