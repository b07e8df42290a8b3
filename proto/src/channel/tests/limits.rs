//! Who stalls or comes in numbers holds up nobody else.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::support::*;
use crate::channel::*;

#[tokio::test]
async fn a_stalled_handshake_holds_up_nobody_and_ends() {
    let ca = Ca::new();
    let limits = Limits { handshake_timeout: Duration::from_millis(1500), ..Limits::default() };
    let controller = Controller::start_as(ca.identity(&Party::Controller), limits).await;
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(TcpStream::connect(&controller.address).await.unwrap());
    }
    call(&controller.address, &ca.identity(&agent("web1"))).await.unwrap();
    for mut socket in silent {
        // Closed by the server, without a word.
        assert_eq!(soon(socket.read(&mut [0; 16])).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn one_address_has_so_many_places_and_gets_them_back() {
    let ca = Ca::new();
    let limits = Limits { per_address: 2, ..Limits::default() };
    let controller = Controller::start_as(ca.identity(&Party::Controller), limits).await;
    let _first = admitted_from(2, &controller, None, &ca).await.unwrap();
    let second = admitted_from(2, &controller, None, &ca).await.unwrap();
    assert!(admitted_from(2, &controller, None, &ca).await.is_err());
    admitted_from(3, &controller, None, &ca).await.unwrap();
    drop(second);
    given_back(2, &controller, &ca).await;
}

/// Until a stranger finds a place again: the server sees the end of another a little later.
async fn given_back(host: u8, controller: &Controller, ca: &Ca) {
    soon(async {
        while admitted_from(host, controller, None, ca).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn agents_and_the_loopback_do_not_compete_with_strangers() {
    let ca = Ca::new();
    let limits = Limits { anonymous: 1, loopback: 2, per_agent: 2, ..Limits::default() };
    let controller = Controller::start_as(ca.identity(&Party::Controller), limits).await;
    let _held = admitted_from(2, &controller, None, &ca).await.unwrap();
    assert!(admitted_from(3, &controller, None, &ca).await.is_err());
    // The operator on the server itself has places of his own, so many.
    let operator = connect_anonymous(&controller.address, &ca.certificate).await.unwrap();
    check(&operator).await.unwrap();
    let _second = connect_anonymous(&controller.address, &ca.certificate).await.unwrap();
    assert!(connect_anonymous(&controller.address, &ca.certificate).await.is_err());
    // And so has each agent, at the loopback too.
    let identity = ca.identity(&agent("web1"));
    let _one = call(&controller.address, &identity).await.unwrap();
    let _two = call(&controller.address, &identity).await.unwrap();
    assert!(call(&controller.address, &identity).await.is_err(), "a third of the same agent");
    call(&controller.address, &ca.identity(&agent("web2"))).await.unwrap();
}

#[tokio::test]
async fn strangers_who_stall_keep_out_nobody() {
    let ca = Ca::new();
    let limits = Limits {
        handshakes: 4,
        per_address: 2,
        handshake_timeout: Duration::from_secs(600),
        ..Limits::default()
    };
    let controller = Controller::start_as(ca.identity(&Party::Controller), limits).await;
    let mut stalled = Vec::new();
    for host in [2, 3, 2, 3, 2, 3, 4, 5, 6] {
        stalled.push(socket_from(host, &controller).await);
    }
    let certificate = ca.issue(&agent("web1"), Profile::default());
    admitted_from(7, &controller, Some(&certificate), &ca).await.unwrap();
    admitted_from(8, &controller, None, &ca).await.unwrap();
    soon(connect_anonymous(&controller.address, &ca.certificate)).await.unwrap();
    // Who stalls makes room for who comes: the first of them did.
    let ended = |mut socket: TcpStream| async move { socket.read(&mut [0; 16]).await.unwrap() };
    assert_eq!(soon(ended(stalled.remove(0))).await, 0);
}

#[tokio::test]
async fn an_agent_finds_a_place_at_an_address_whose_places_are_taken() {
    // As where an account of its own server holds them.
    let ca = Ca::new();
    let limits =
        Limits { per_address: 2, handshake_timeout: Duration::from_secs(600), ..Limits::default() };
    let controller = Controller::start_as(ca.identity(&Party::Controller), limits).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(admitted_from(2, &controller, None, &ca).await.unwrap());
    }
    let _stalled = [socket_from(2, &controller).await, socket_from(2, &controller).await];
    let certificate = ca.issue(&agent("web1"), Profile::default());
    admitted_from(2, &controller, Some(&certificate), &ca).await.unwrap();
    assert!(admitted_from(2, &controller, None, &ca).await.is_err());
}

/// Long enough that a slow machine gets a call through before.
const AGE: Duration = Duration::from_secs(4);

#[tokio::test]
async fn a_stranger_s_connection_ends_whatever_is_said_on_it() {
    let ca = Ca::new();
    let limits = Limits { anonymous: 3, anonymous_age: AGE, ..Limits::default() };
    let controller = Controller::start_as(ca.identity(&Party::Controller), limits).await;
    let mut says_nothing = admitted_from(2, &controller, None, &ca).await.unwrap();
    let trickles = admitted_from(3, &controller, None, &ca).await.unwrap();
    let never_reads = admitted_from(4, &controller, None, &ca).await.unwrap();
    let (mut reader, writer) = tokio::io::split(trickles);
    let silent = async {
        let _ = says_nothing.read_to_end(&mut Vec::new()).await;
    };
    let reads = async {
        let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
    };
    let trickles = pings(writer, 1, Duration::from_millis(20));
    let never_reads = pings(never_reads, 1000, Duration::ZERO);
    soon(async { tokio::join!(silent, reads, trickles, never_reads) }).await;
    given_back(5, &controller, &ca).await;
}

/// Speaks HTTP/2 well and asks for nothing, until the connection ends.
async fn pings(mut writer: impl AsyncWrite + Unpin, at_once: usize, pause: Duration) {
    let settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let ping = b"\0\0\x08\x06\0\0\0\0\0whatever".repeat(at_once);
    let mut said = writer.write_all(settings).await;
    while said.is_ok() {
        tokio::time::sleep(pause).await;
        said = match writer.write_all(&ping).await {
            Ok(()) => writer.flush().await,
            failed => failed,
        };
    }
}

#[tokio::test]
async fn neither_an_agent_s_connection_nor_one_that_is_kept_ends_with_age() {
    let ca = Ca::new();
    let limits = Limits { anonymous_age: AGE, ..Limits::default() };
    let controller = Controller::start_as(ca.identity(&Party::Controller), limits).await;
    let agent = call(&controller.address, &ca.identity(&agent("web1"))).await.unwrap();
    let mut of_agent = watch(&agent).await;
    let operator = connect_anonymous(&controller.address, &ca.certificate).await.unwrap();
    let mut request = tonic::Request::new(HealthCheckRequest { service: String::new() });
    request.metadata_mut().insert("authorization", "Bearer token".parse().unwrap());
    soon(HealthClient::new(operator.clone()).check(request)).await.unwrap();
    let mut of_operator = watch(&operator).await;
    // A younger one that nobody vouches for tells when the time is over.
    let stranger = connect_anonymous(&controller.address, &ca.certificate).await.unwrap();
    let mut of_stranger = watch(&stranger).await;
    assert!(soon(of_stranger.message()).await.is_err());

    controller.health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    for stream in [&mut of_agent, &mut of_operator] {
        let changed = soon(stream.message()).await.unwrap().unwrap();
        assert_eq!(changed.status, tonic_health::ServingStatus::NotServing as i32);
    }
}

#[tokio::test]
async fn dropping_the_listener_closes_the_port_but_no_connection() {
    let ca = Ca::new();
    let (mut port, address, _theirs) = peer_port(&ca, "web2").await;
    let me = ca.identity(&agent("web1"));
    let ours: Arc<Connections> = Connections::new(Limits::default());
    let mut stream = super::peers::peer_connect_to(&address, &me, "web2", &ours).await.unwrap();
    let accepted = soon(port.accept()).await.unwrap();
    drop(port);
    soon(async { while TcpStream::connect(address).await.is_ok() {} }).await;
    let mut theirs = accepted.stream;
    tokio::io::AsyncWriteExt::write_all(&mut theirs, b"!").await.unwrap();
    tokio::io::AsyncWriteExt::flush(&mut theirs).await.unwrap();
    assert_eq!(soon(stream.read_u8()).await.unwrap(), b'!');
}
