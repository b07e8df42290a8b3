//! New certificates while connections go on.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::peers::peer_connect_to;
use super::support::*;
use crate::channel::*;

fn serial_of(caller: Option<Caller>) -> Serial {
    match caller {
        Some(Caller::Agent { serial, .. }) => serial,
        other => panic!("{other:?} is no agent"),
    }
}

#[tokio::test]
async fn a_stream_goes_on_and_the_next_handshake_shows_the_new_certificate() {
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    let identity = ca.identity(&agent("web1"));
    let old = identity.leaf().serial.clone();
    let channel = call(&controller.address, &identity).await.unwrap();
    let mut client = HealthClient::new(channel.clone());
    let request = HealthCheckRequest { service: String::new() };
    let mut stream = soon(client.watch(request)).await.unwrap().into_inner();
    soon(stream.message()).await.unwrap().unwrap();

    identity.replace(&ca.credentials(&agent("web1"))).unwrap();
    let new = identity.leaf().serial.clone();
    assert_ne!(old, new);
    // The server's own certificate changes under the same stream, too.
    controller.identity.replace(&ca.credentials(&Party::Controller)).unwrap();

    controller.health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    let changed = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(changed.status, tonic_health::ServingStatus::NotServing as i32);
    check(&channel).await.unwrap();
    assert_eq!(serial_of(controller.last_caller()), old, "the same connection as before");

    call(&controller.address, &identity).await.unwrap();
    assert_eq!(serial_of(controller.last_caller()), new);
}

#[tokio::test]
async fn a_server_s_next_handshake_shows_the_new_certificate() {
    let ca = Ca::new();
    let connections = Connections::new(Limits::default());
    let listening = ca.identity(&agent("web2"));
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let mut port = PeerListener::new(listener, &listening, &connections).unwrap();
    let address = port.address();
    let me = ca.identity(&agent("web1"));
    let ours = Connections::new(Limits::default());
    let mut before = peer_connect_to(&address, &me, "web2", &ours).await.unwrap();
    let mut accepted = soon(port.accept()).await.unwrap().stream;
    let old = serial_of(Some(before.connection().caller.clone()));
    listening.replace(&ca.credentials(&agent("web2"))).unwrap();
    let after = peer_connect_to(&address, &me, "web2", &ours).await.unwrap();
    assert_ne!(serial_of(Some(after.connection().caller.clone())), old);
    before.write_all(b"!").await.unwrap();
    before.flush().await.unwrap();
    assert_eq!(soon(accepted.read_u8()).await.unwrap(), b'!');
}

#[test]
fn only_credentials_of_the_same_party_and_authority_take_over() {
    let ca = Ca::new();
    let identity: Arc<Identity> = ca.identity(&agent("web1"));
    let before = identity.leaf();
    let fault = identity.replace(&ca.credentials(&agent("web2"))).unwrap_err();
    says(&fault, "for the agent of web2, but this is the agent of web1");
    let fault = identity.replace(&Ca::new().credentials(&agent("web1"))).unwrap_err();
    says(&fault, "enrol the server again");
    let (key, _) = ca.issue(&agent("web1"), Profile::default());
    let (_, certificate) = ca.issue(&agent("web1"), Profile::default());
    let fault = identity.replace(&Credentials::new(&key, &certificate, &ca.pem)).unwrap_err();
    says(&fault, "a certificate for another key");
    assert_eq!(identity.leaf(), before);
}
