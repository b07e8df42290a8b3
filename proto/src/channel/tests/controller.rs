//! Agents, operators and strangers at the controller's port.

use std::sync::Arc;

use rcgen::SanType;
use rustls::client::danger::ServerCertVerifier;
use rustls::version::TLS12;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::AsyncReadExt;

use super::support::*;
use crate::channel::*;
use crate::{Fault, FaultClass};

#[tokio::test]
async fn both_ends_know_each_other_by_name() {
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    let identity = ca.identity(&agent("web1"));
    call(&controller.address, &identity).await.unwrap();
    let leaf = identity.leaf();
    let expected = Caller::Agent {
        name: server("web1"),
        serial: leaf.serial.clone(),
        fingerprint: leaf.fingerprint,
    };
    assert_eq!(controller.last_caller(), Some(expected));
    assert_eq!(controller.connections.count(&server("web1")), 1);
}

#[tokio::test]
async fn a_caller_without_certificate_is_anonymous() {
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    let channel = connect_anonymous(&controller.address, &ca.certificate).await.unwrap();
    check(&channel).await.unwrap();
    assert_eq!(controller.last_caller(), Some(Caller::Anonymous));
    let mut request = tonic::Request::new(());
    assert!(require_agent(&request).is_err(), "no connection is no agent");
    let connection = Connection {
        caller: Caller::Agent {
            name: server("web1"),
            serial: Serial::from_bytes(&[1]),
            fingerprint: Fingerprint::of(b""),
        },
        address: "192.0.2.1:1".parse().unwrap(),
        cut: tokio_util::sync::CancellationToken::new(),
        kept: tokio_util::sync::CancellationToken::new(),
    };
    request.extensions_mut().insert(connection);
    assert_eq!(require_agent(&request).unwrap(), server("web1"));
}

#[tokio::test]
async fn the_token_s_fingerprint_decides_whom_to_enrol_with() {
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    let channel = pinned_connect(&controller.address, ca.certificate.fingerprint()).await.unwrap();
    check(&channel).await.unwrap();
    assert_eq!(controller.last_caller(), Some(Caller::Anonymous));

    // Another authority whose certificates carry the same names and subject.
    let other = Ca::new();
    let fault =
        pinned_connect(&controller.address, other.certificate.fingerprint()).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Permanent);
    says(&fault, "not from our certificate authority");
}

#[tokio::test]
async fn the_pinned_authority_must_have_signed_what_is_shown() {
    // Somebody in between who sends the right authority's certificate along with a key and a
    // certificate of their own making.
    let ca = Ca::new();
    let other = Ca::new();
    let forged = names(&Party::Controller, ca.certificate.fingerprint());
    let profile = Profile { names: Some(forged), ..Profile::default() };
    let address = impostor(&other.issue(&Party::Controller, profile), &ca).await;
    let fault = pinned_connect(&address, ca.certificate.fingerprint()).await.unwrap_err();
    says(&fault, "not from our certificate authority");
}

#[tokio::test]
async fn a_pinned_agent_is_not_the_controller() {
    let ca = Ca::new();
    let agent_as_server =
        Controller::start_as(ca.identity(&agent("web1")), Limits::default()).await;
    let fault =
        pinned_connect(&agent_as_server.address, ca.certificate.fingerprint()).await.unwrap_err();
    says(&fault, "another party than the controller");
    let identity = ca.identity(&agent("web2"));
    let fault = call(&agent_as_server.address, &identity).await.unwrap_err();
    says(&fault, "another party than the controller");
}

#[tokio::test]
async fn foreign_authorities_are_refused_at_both_ends() {
    let ca = Ca::new();
    let other = Ca::new();
    let controller = Controller::start(&ca).await;
    // The agent does not believe the server.
    let stranger = other.identity(&agent("web1"));
    let fault = call(&controller.address, &stranger).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Permanent);
    says(&fault, "not from our certificate authority");
    // The server does not believe the agent, who believes the server.
    let certificate = other.issue(&agent("web1"), Profile::default());
    let configure = |verifier| raw_config(verifier, Some(&certificate), ALPN_CONTROLLER);
    says(&refused(&controller, configure, &ca).await, "another authority");
    assert_eq!(controller.last_caller(), None);
}

#[tokio::test]
async fn expired_certificates_are_refused_at_both_ends() {
    let ca = Ca::new();
    let now = unix_now();
    let old = || Profile { not_before: now - 100, not_after: now - 10, ..Profile::default() };
    let controller = Controller::start(&ca).await;
    let expired = Identity::new(&ca.credentials_with(&agent("web1"), old())).unwrap();
    assert!(expired.leaf().expired(now));
    let fault = call(&controller.address, &expired).await.unwrap_err();
    says(&fault, "our certificate is not valid at this time");

    let expired = Identity::new(&ca.credentials_with(&Party::Controller, old())).unwrap();
    let controller = Controller::start_as(expired, Limits::default()).await;
    let fault = call(&controller.address, &ca.identity(&agent("web1"))).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Precondition);
    says(&fault, "has expired");
}

#[tokio::test]
async fn not_yet_valid_is_a_matter_of_clocks() {
    let ca = Ca::new();
    let now = unix_now();
    let future = Profile { not_before: now + 500, not_after: now + 1000, ..Profile::default() };
    let early = Identity::new(&ca.credentials_with(&Party::Controller, future)).unwrap();
    let controller = Controller::start_as(early, Limits::default()).await;
    let fault = call(&controller.address, &ca.identity(&agent("web1"))).await.unwrap_err();
    says(&fault, "not valid yet");
    says(&fault, "clocks");
}

#[tokio::test]
async fn the_controller_s_certificate_cannot_call() {
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    let fault = call(&controller.address, &ca.identity(&Party::Controller)).await.unwrap_err();
    says(&fault, "refused our certificate");
    assert_eq!(controller.last_caller(), None);
}

#[test]
fn only_the_names_that_the_authority_writes_are_names() {
    let ca = Ca::new();
    let print = ca.certificate.fingerprint();
    let web1 = agent("web1");
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    let right_dns = web1.dns_name();
    let right_uri = web1.uri(print);
    for wrong in [
        vec![],
        vec![dns(&right_dns)],
        vec![uri(&right_uri), dns(&right_dns)],
        vec![dns(&right_dns), uri(&right_uri), dns("web2.agent.ferry.internal")],
        vec![dns(&right_dns), uri(&agent("web2").uri(print))],
        vec![dns(&right_dns), uri(&web1.uri(&Fingerprint::of(b"another authority")))],
        vec![dns("*.agent.ferry.internal"), uri(&right_uri)],
        vec![dns("controller.ferry.internal"), uri(&right_uri)],
        vec![dns("web1.example"), uri(&right_uri)],
    ] {
        let profile = Profile { names: Some(wrong.clone()), ..Profile::default() };
        let fault = Identity::new(&ca.credentials_with(&web1, profile)).unwrap_err();
        says(&fault, "names are not Ferry's");
    }
    let profile = Profile { is_ca: true, ..Profile::default() };
    assert!(Identity::new(&ca.credentials_with(&web1, profile)).is_err());
}

#[tokio::test]
async fn strange_names_are_refused_in_the_handshake() {
    // Signed by our authority, with a right DNS name and another's URI: it must not get in even
    // if it could be made.
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    let print = ca.certificate.fingerprint();
    let strange =
        vec![names(&agent("web1"), print).remove(0), names(&agent("web2"), print).remove(1)];
    let profile = Profile { names: Some(strange), ..Profile::default() };
    let certificate = ca.issue(&agent("web1"), profile);
    let configure = |verifier| raw_config(verifier, Some(&certificate), ALPN_CONTROLLER);
    says(&refused(&controller, configure, &ca).await, "refused our certificate");
}

/// What a client is told whose certificate is refused. In TLS 1.3 it is done with its part of the
/// handshake before the server has looked.
async fn refused(
    controller: &Controller,
    configure: impl FnOnce(Arc<dyn ServerCertVerifier>) -> ClientConfig,
    ca: &Ca,
) -> Fault {
    let mut tls =
        foreign_client(&controller.address, &Party::Controller, configure, ca).await.unwrap();
    let error = soon(tls.read_u8()).await.expect_err("it got in");
    refusal::fault("the controller", &error)
}

#[tokio::test]
async fn a_server_with_strange_names_is_refused_with_the_reason() {
    let ca = Ca::new();
    let print = ca.certificate.fingerprint();
    let mut strange = names(&Party::Controller, print);
    strange[1] = names(&agent("web1"), print).remove(1);
    let profile = Profile { names: Some(strange), ..Profile::default() };
    let address = impostor(&ca.issue(&Party::Controller, profile), &ca).await;
    let fault = call(&address, &ca.identity(&agent("web1"))).await.unwrap_err();
    says(&fault, "was refused: the certificate's names are not Ferry's");
    let fault = pinned_connect(&address, print).await.unwrap_err();
    says(&fault, "was refused: the certificate's names are not Ferry's");
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    let old = |verifier| {
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth()
    };
    let error =
        foreign_client(&controller.address, &Party::Controller, old, &ca).await.unwrap_err();
    says(&refusal::fault("the controller", &error), "another protocol");

    // The same client with TLS 1.3 gets in: it was the version that was refused.
    let new = |verifier| raw_config(verifier, None, ALPN_CONTROLLER);
    foreign_client(&controller.address, &Party::Controller, new, &ca).await.unwrap();
}

#[tokio::test]
async fn sessions_are_never_resumed() {
    // A client that keeps every ticket it is given gets none.
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    let shared = std::sync::OnceLock::new();
    for _ in 0..2 {
        let configure =
            |verifier| shared.get_or_init(|| raw_config(verifier, None, ALPN_CONTROLLER)).clone();
        let mut tls =
            foreign_client(&controller.address, &Party::Controller, configure, &ca).await.unwrap();
        // The server's first words (HTTP/2 settings) come after any ticket.
        assert!(soon(tls.read_u8()).await.is_ok());
        assert_eq!(tls.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(tls.get_ref().1.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    for offered in [vec![], vec![b"http/1.1".to_vec()]] {
        let configure = |verifier| {
            let mut config = raw_config(verifier, None, ALPN_CONTROLLER);
            config.alpn_protocols = offered.clone();
            config
        };
        match foreign_client(&controller.address, &Party::Controller, configure, &ca).await {
            Err(error) => says(&refusal::fault("the controller", &error), "another protocol"),
            Ok(mut tls) => assert!(soon(tls.read_u8()).await.is_err(), "{offered:?} got in"),
        }
    }
}

#[tokio::test]
async fn nobody_there_is_transient_and_nonsense_is_not() {
    let ca = Ca::new();
    let identity = ca.identity(&agent("web1"));
    let free = Listener::bind("127.0.0.1:0").await.unwrap().address().to_string();
    let fault = call(&free, &identity).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Transient);
    says(&fault, &format!("no connection to the controller at {free}"));
    let fault = call("no port", &identity).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Precondition);
    says(&fault, "HOST:PORT");
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_named() {
    let ca = Ca::new();
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut socket, _) = plain.accept().await.unwrap();
        let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"220 smtp ready\r\n").await;
        let _ = socket.read_u8().await;
    });
    let fault = call(&address, &ca.identity(&agent("web1"))).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Permanent);
    says(&fault, "does not speak TLS 1.3");
}
