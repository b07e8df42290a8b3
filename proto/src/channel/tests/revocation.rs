//! Who is revoked is out: at once, and for good.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::peers::peer_connect_to;
use super::support::*;
use crate::FaultClass;
use crate::channel::source::Source;
use crate::channel::*;

fn by_name(name: &str) -> Revocations {
    Revocations { servers: [server(name)].into(), ..Revocations::default() }
}

fn by_serial(identity: &Identity) -> Revocations {
    Revocations { serials: [identity.leaf().serial.clone()].into(), ..Revocations::default() }
}

#[tokio::test]
async fn a_revoked_agent_is_cut_off_and_stays_out() {
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    let (bad, good) = (ca.identity(&agent("web1")), ca.identity(&agent("web2")));
    let bad_channel = call(&controller.address, &bad).await.unwrap();
    let good_channel = call(&controller.address, &good).await.unwrap();
    let mut bad_stream = watch(&bad_channel).await;
    let mut good_stream = watch(&good_channel).await;

    assert_eq!(controller.connections.set_revocations(by_name("web1")), 1);
    assert!(soon(bad_stream.message()).await.is_err(), "the stream that stood is cut");
    // Also for a new connection, which the channel dials by itself.
    let fault = check(&bad_channel).await.unwrap_err();
    says(&fault, "refused us: our certificate is revoked");
    assert_eq!(fault.class, FaultClass::Permanent);
    let fault = call(&controller.address, &bad).await.unwrap_err();
    says(&fault, "our certificate is revoked");
    assert_eq!(controller.connections.count(&server("web1")), 0);

    // Nobody else notices.
    controller.health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    let changed = soon(good_stream.message()).await.unwrap().unwrap();
    assert_eq!(changed.status, tonic_health::ServingStatus::NotServing as i32);

    // Lifted, it may come back.
    controller.connections.set_revocations(Revocations::default());
    call(&controller.address, &bad).await.unwrap();
}

#[tokio::test]
async fn a_serial_is_one_certificate() {
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    let stolen = ca.identity(&agent("web1"));
    let fresh = ca.identity(&agent("web1"));
    let stolen_channel = call(&controller.address, &stolen).await.unwrap();
    let mut stolen_stream = watch(&stolen_channel).await;
    assert_eq!(controller.connections.set_revocations(by_serial(&stolen)), 1);
    assert!(soon(stolen_stream.message()).await.is_err());
    assert!(call(&controller.address, &stolen).await.is_err());
    call(&controller.address, &fresh).await.unwrap();
}

#[tokio::test]
async fn cut_without_revocation_only_ends_connections() {
    let ca = Ca::new();
    let controller = Controller::start(&ca).await;
    let identity = ca.identity(&agent("web1"));
    let channel = call(&controller.address, &identity).await.unwrap();
    let mut stream = watch(&channel).await;
    assert_eq!(controller.connections.cut(&server("web2")), 0);
    assert_eq!(controller.connections.cut(&server("web1")), 1);
    assert!(soon(stream.message()).await.is_err());
    check(&channel).await.unwrap();
}

#[tokio::test]
async fn peers_are_cut_at_either_end_whatever_they_wait_for() {
    let ca = Ca::new();
    let (mut port, address, theirs) = peer_port(&ca, "web2").await;
    let ours = Connections::new(Limits::default());
    let me = ca.identity(&agent("web1"));
    for cut_by_us in [true, false] {
        let connect = peer_connect_to(&address, &me, "web2", &ours);
        let (stream, accepted) = soon(async { tokio::join!(connect, port.accept()) }).await;
        let (stream, accepted) = (stream.unwrap(), accepted.unwrap().stream);
        let (cut, here) = if cut_by_us {
            (ours.set_revocations(by_name("web2")), stream)
        } else {
            (theirs.set_revocations(by_name("web1")), accepted)
        };
        assert_eq!(cut, 1);
        let (mut reader, mut writer) = tokio::io::split(here);
        assert!(soon(reader.read_u8()).await.is_err());
        assert!(soon(writer.write_all(b"more")).await.is_err());
        assert!(soon(writer.shutdown()).await.is_err());
        ours.set_revocations(Revocations::default());
        theirs.set_revocations(Revocations::default());
    }
}

#[tokio::test]
async fn both_halves_of_a_stream_wake_when_it_is_cut() {
    // One task waits to read and another to write, with all buffers full.
    let ca = Ca::new();
    let (mut port, address, _theirs) = peer_port(&ca, "web2").await;
    let ours = Connections::new(Limits::default());
    let me = ca.identity(&agent("web1"));
    let connect = peer_connect_to(&address, &me, "web2", &ours);
    let (stream, _accepted) = soon(async { tokio::join!(connect, port.accept()) }).await;
    let (mut reader, mut writer) = tokio::io::split(stream.unwrap());
    let (progress, mut progressed) = tokio::sync::watch::channel(0usize);
    let reading = tokio::spawn(async move { reader.read_u8().await });
    let writing = tokio::spawn(async move {
        let block = vec![0; 1 << 16];
        loop {
            if let Err(error) = writer.write_all(&block).await {
                return error;
            }
            progress.send_modify(|blocks| *blocks += 1);
        }
    });
    // Until nothing has been written for a while: the buffers are full.
    let quiet = std::time::Duration::from_millis(300);
    while tokio::time::timeout(quiet, progressed.changed()).await.is_ok() {}
    assert_eq!(ours.cut(&server("web2")), 1);
    assert!(soon(reading).await.unwrap().is_err());
    assert_eq!(soon(writing).await.unwrap().kind(), std::io::ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn a_revoked_peer_is_refused_whoever_dials() {
    let ca = Ca::new();
    let (_port, address, theirs) = peer_port(&ca, "web2").await;
    let ours = Connections::new(Limits::default());
    let me = ca.identity(&agent("web1"));
    theirs.set_revocations(by_name("web1"));
    let fault = peer_connect_to(&address, &me, "web2", &ours).await.unwrap_err();
    says(&fault, "the agent of web2");
    says(&fault, "our certificate is revoked");
    theirs.set_revocations(Revocations::default());
    ours.set_revocations(by_name("web2"));
    let fault = peer_connect_to(&address, &me, "web2", &ours).await.unwrap_err();
    says(&fault, "the certificate of the agent of web2");
    says(&fault, "is revoked");
    ours.set_revocations(Revocations::default());
    peer_connect_to(&address, &me, "web2", &ours).await.unwrap();
}

#[tokio::test]
async fn one_revoked_between_handshake_and_registration_does_not_slip_through() {
    let ca = Ca::new();
    let leaf = ca.identity(&agent("web1")).leaf();
    let caller = Caller::from_leaf((*leaf).clone()).unwrap();
    let connections = Connections::new(Limits::default());
    let before = connections.admit(&caller, Source::Loopback).unwrap();
    connections.set_revocations(by_name("web1"));
    assert!(before.cut().is_cancelled());
    assert!(connections.admit(&caller, Source::Loopback).is_err());
    drop(before);
    assert_eq!(connections.count(&server("web1")), 0);
}

#[test]
fn revocations_survive_their_text() {
    let ca = Ca::new();
    let mut revocations = by_serial(&ca.identity(&agent("web1")));
    revocations.servers.insert(server("web2"));
    let text = serde_json::to_string(&revocations).unwrap();
    assert_eq!(serde_json::from_str::<Revocations>(&text).unwrap(), revocations);
}
