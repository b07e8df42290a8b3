//! HTTPS through the redirector: by the name in the ClientHello, without a key.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferry_traffic::control::Target;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use support::{LONG, limits, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A TLS server for one name that answers a line with its name, but "wait" not at all, and the
/// visitors that trust it.
struct Site {
    address: SocketAddr,
    connector: TlsConnector,
}

async fn site(name: &'static str) -> Site {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let mut buffer = [0; 64];
                loop {
                    match stream.read(&mut buffer).await? {
                        0 => break,
                        read if &buffer[..read] == b"wait" => {}
                        _ => stream.write_all(name.as_bytes()).await?,
                    }
                }
                stream.shutdown().await
            });
        }
    });
    Site { address, connector: TlsConnector::from(Arc::new(client)) }
}

/// Says something through TLS to `name` and returns the answer.
async fn talk(
    to: SocketAddr,
    connector: TlsConnector,
    name: &'static str,
) -> std::io::Result<String> {
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from(name).unwrap();
    let mut stream = connector.connect(name, stream).await?;
    stream.write_all(b"who?").await?;
    let mut buffer = [0; 64];
    let read = stream.read(&mut buffer).await?;
    Ok(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

#[tokio::test]
async fn tls_goes_by_its_server_name_and_stays_whole() {
    let running = start().await;
    let (a, b) = (site("a.example").await, site("b.example").await);
    running.local("alice", 1, &["a.example"], a.address).await;
    running.local("bob", 1, &["b.example"], b.address).await;
    for (site, name) in [(&a, "a.example"), (&b, "b.example")] {
        let answer = talk(running.https(), site.connector.clone(), name).await.unwrap();
        assert_eq!(answer, name);
    }
    assert!(talk(running.https(), a.connector.clone(), "other.example").await.is_err());
}

#[tokio::test]
async fn tls_is_held_and_released_and_closed_beyond_the_limit() {
    let (source, target) = (start().await, start().await);
    target.allow_loopback_peers().await;
    let (old, new) = (site("a.example").await, site("a.example").await);
    source.local("alice", 1, &["a.example"], old.address).await;
    target.local("alice", 2, &["a.example"], new.address).await;
    let limits = ferry_traffic::control::HoldLimits { requests: 1, ..limits() };
    source.hold("alice", 1, limits).await;
    let asking = tokio::spawn(talk(source.https(), new.connector.clone(), "a.example"));
    source.until("alice", |s| s.traffic.held_now == 1).await;
    assert!(talk(source.https(), new.connector.clone(), "a.example").await.is_err());
    source.release("alice", 2, Target::Remote { peer: target.peer() }).await;
    // Only the new server's certificate is trusted, so only it can have answered.
    assert_eq!(asking.await.unwrap().unwrap(), "a.example");
    assert!(source.status("alice").await.traffic.outage().is_some());
}

/// A kept-alive connection must not make every fence last for its whole grace.
#[tokio::test]
async fn a_tunnel_that_waits_for_nothing_is_ended_at_once() {
    let running = start().await;
    let a = site("a.example").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    let connect = || async {
        let stream = TcpStream::connect(running.https()).await.unwrap();
        let name = ServerName::try_from("a.example").unwrap();
        let mut stream = a.connector.connect(name, stream).await.unwrap();
        stream.write_all(b"who?").await.unwrap();
        stream.read_exact(&mut [0; 9]).await.unwrap();
        stream
    };
    let (mut idle, mut asking) = (connect().await, connect().await);
    asking.write_all(b"wait").await.unwrap();
    let account = "alice".parse().unwrap();
    let long = ferry_traffic::control::HoldLimits { grace_ms: 60_000, ..limits() };
    assert_eq!(running.hold("alice", 1, long).await, 2);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(LONG, idle.read_to_end(&mut rest)).await;
    assert!(ended.expect("ended").is_err(), "without a close_notify");
    // The one whose visitor is still owed an answer has its grace.
    assert_eq!(running.client.drain(&account, Duration::from_millis(1_500)).await.unwrap(), 1);
    assert_eq!(running.status("alice").await.traffic.ended_total, 0);
}

/// A visitor that is far away answers the server's part of the handshake late.
#[tokio::test]
async fn a_handshake_under_way_is_no_tunnel_that_waits_for_nothing() {
    let running = start().await;
    let a = site("a.example").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    let mut stream = TcpStream::connect(running.https()).await.unwrap().into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    let name = ServerName::try_from("a.example").unwrap();
    let mut tls = rustls::ClientConnection::new(a.connector.config().clone(), name).unwrap();
    let mut stream = tokio::task::spawn_blocking(move || {
        tls.write_tls(&mut stream).unwrap();
        while tls.is_handshaking() {
            tls.read_tls(&mut stream).unwrap();
            tls.process_new_packets().unwrap();
        }
        (tls, stream)
    })
    .await
    .unwrap();
    let long = ferry_traffic::control::HoldLimits { grace_ms: 60_000, ..limits() };
    assert_eq!(running.hold("alice", 1, long).await, 1);
    let account = "alice".parse().unwrap();
    assert_eq!(running.client.drain(&account, Duration::from_millis(1_500)).await.unwrap(), 1);
    let answer = tokio::task::spawn_blocking(move || {
        let (tls, stream) = (&mut stream.0, &mut stream.1);
        let mut whole = rustls::Stream::new(tls, stream);
        std::io::Write::write_all(&mut whole, b"who?")?;
        let mut answer = [0; 9];
        std::io::Read::read_exact(&mut whole, &mut answer).map(|()| answer)
    });
    assert_eq!(&answer.await.unwrap().unwrap(), b"a.example");
}

/// When the account comes back, those who are with the peer are the peer's to end.
#[tokio::test]
async fn a_tunnel_to_the_peer_goes_on_when_the_account_comes_back() {
    let (source, target) = (start().await, start().await);
    target.allow_loopback_peers().await;
    let (old, new) = (site("a.example").await, site("a.example").await);
    source.local("alice", 1, &["a.example"], old.address).await;
    target.local("alice", 2, &["a.example"], new.address).await;
    source.hold("alice", 1, limits()).await;
    source.release("alice", 2, Target::Remote { peer: target.peer() }).await;
    let stream = TcpStream::connect(source.https()).await.unwrap();
    let name = ServerName::try_from("a.example").unwrap();
    let mut stream = new.connector.connect(name, stream).await.unwrap();
    stream.write_all(b"who?").await.unwrap();
    stream.read_exact(&mut [0; 9]).await.unwrap();
    source.local("alice", 3, &["a.example"], old.address).await;
    let account = "alice".parse().unwrap();
    assert_eq!(source.client.drain(&account, Duration::from_millis(1_500)).await.unwrap(), 1);
    stream.write_all(b"who?").await.unwrap();
    stream.read_exact(&mut [0; 9]).await.unwrap();
}

#[tokio::test]
async fn a_tunnel_is_ended_after_the_grace() {
    let running = start().await;
    let a = site("a.example").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    let stream = TcpStream::connect(running.https()).await.unwrap();
    let name = ServerName::try_from("a.example").unwrap();
    let mut stream = a.connector.connect(name, stream).await.unwrap();
    assert_eq!(running.hold("alice", 1, limits()).await, 1);
    assert_eq!(running.client.drain(&"alice".parse().unwrap(), LONG).await.unwrap(), 0);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await;
    assert!(ended.expect("ended").is_err(), "without a close_notify");
}
