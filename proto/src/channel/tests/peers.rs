//! Agent to agent.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;
use crate::FaultClass;
use crate::channel::*;

#[tokio::test]
async fn two_agents_exchange_bytes_and_know_each_other() {
    let ca = Ca::new();
    let (mut port, address, theirs) = peer_port(&ca, "web2").await;
    let ours = Connections::new(Limits::default());
    let me = ca.identity(&agent("web1"));
    let connect = peer_connect_to(&address, &me, "web2", &ours);
    let (stream, accepted) = soon(async { tokio::join!(connect, port.accept()) }).await;
    let (mut stream, mut accepted) = (stream.unwrap(), accepted.unwrap());
    assert_eq!(accepted.server, server("web1"));
    assert_eq!(stream.connection().caller.server(), Some(&server("web2")));
    assert_eq!(stream.connection().address, address);
    assert_eq!((ours.count(&server("web2")), theirs.count(&server("web1"))), (1, 1));

    let sent = vec![7; 1_000_000];
    let echo = async {
        let mut got = vec![0; sent.len()];
        accepted.stream.read_exact(&mut got).await.unwrap();
        accepted.stream.write_all(&got).await.unwrap();
        accepted.stream.shutdown().await.unwrap();
    };
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let mut back = Vec::new();
    let read = reader.read_to_end(&mut back);
    let (read, written, ()) =
        soon(async { tokio::join!(read, writer.write_all(&sent), echo) }).await;
    written.unwrap();
    assert_eq!(read.unwrap(), sent.len());
    assert_eq!(back, sent);

    drop((stream, accepted));
    assert_eq!((ours.count(&server("web2")), theirs.count(&server("web1"))), (0, 0));
}

#[tokio::test]
async fn another_agent_than_expected_is_refused() {
    let ca = Ca::new();
    let (_port, address, _) = peer_port(&ca, "web3").await;
    let me = ca.identity(&agent("web1"));
    let ours = Connections::new(Limits::default());
    let fault = peer_connect_to(&address, &me, "web2", &ours).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Permanent);
    says(&fault, "another party than the agent of web2");
}

#[tokio::test]
async fn peers_must_show_an_agent_s_certificate() {
    let ca = Ca::new();
    let other = Ca::new();
    let (_port, address, connections) = peer_port(&ca, "web2").await;
    for (certificate, why) in [
        (None, "we showed no certificate"),
        (Some(other.issue(&agent("web1"), Profile::default())), "another authority"),
        (Some(ca.issue(&Party::Controller, Profile::default())), "refused our certificate"),
    ] {
        let configure = |verifier| raw_config(verifier, certificate.as_ref(), ALPN_PEER);
        let mut tls =
            foreign_client(&address.to_string(), &agent("web2"), configure, &ca).await.unwrap();
        let error = soon(tls.read_u8()).await.expect_err("it got in");
        says(&refusal::fault("the peer", &error), why);
    }
    assert_eq!(connections.count(&server("web1")), 0);
}

#[tokio::test]
async fn other_protocols_are_refused_at_the_peer_port() {
    let ca = Ca::new();
    let (_port, address, _) = peer_port(&ca, "web2").await;
    let certificate = ca.issue(&agent("web1"), Profile::default());
    for offered in [vec![], vec![b"h2".to_vec()]] {
        let configure = |verifier| {
            let mut config = raw_config(verifier, Some(&certificate), ALPN_PEER);
            config.alpn_protocols = offered.clone();
            config
        };
        match foreign_client(&address.to_string(), &agent("web2"), configure, &ca).await {
            Err(error) => says(&refusal::fault("the peer", &error), "another protocol"),
            Ok(mut tls) => assert!(soon(tls.read_u8()).await.is_err(), "{offered:?} got in"),
        }
    }
}

#[tokio::test]
async fn the_controller_s_port_is_no_peer_port() {
    let ca = Ca::new();
    let controller = Controller::start_as(ca.identity(&agent("web2")), Limits::default()).await;
    let me = ca.identity(&agent("web1"));
    let ours = Connections::new(Limits::default());
    let fault = peer_connect(&controller.address, &me, &server("web2"), &ours).await.unwrap_err();
    says(&fault, "another protocol");
}

pub(super) async fn peer_connect_to(
    address: &std::net::SocketAddr,
    me: &std::sync::Arc<Identity>,
    name: &str,
    connections: &std::sync::Arc<Connections>,
) -> Result<SecureStream, crate::Fault> {
    soon(peer_connect(&address.to_string(), me, &server(name), connections)).await
}
