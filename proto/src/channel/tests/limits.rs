//! Who stalls or comes in numbers holds up nobody else.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

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
    let first = connect_anonymous(&controller.address, &ca.certificate).await.unwrap();
    let second = connect_anonymous(&controller.address, &ca.certificate).await.unwrap();
    check(&first).await.unwrap();
    check(&second).await.unwrap();
    assert!(connect_anonymous(&controller.address, &ca.certificate).await.is_err());
    drop(second);
    // The server sees the end of it a little later.
    soon(async {
        while connect_anonymous(&controller.address, &ca.certificate).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    check(&first).await.unwrap();
}

#[tokio::test]
async fn agents_do_not_compete_with_the_anonymous() {
    let ca = Ca::new();
    let limits = Limits { anonymous: 1, per_agent: 2, ..Limits::default() };
    let controller = Controller::start_as(ca.identity(&Party::Controller), limits).await;
    let held = connect_anonymous(&controller.address, &ca.certificate).await.unwrap();
    check(&held).await.unwrap();
    let refused = async {
        let channel = connect_anonymous(&controller.address, &ca.certificate).await?;
        check(&channel).await
    };
    assert!(soon(refused).await.is_err());
    let identity = ca.identity(&agent("web1"));
    let _one = call(&controller.address, &identity).await.unwrap();
    let _two = call(&controller.address, &identity).await.unwrap();
    assert!(call(&controller.address, &identity).await.is_err(), "a third of the same agent");
    call(&controller.address, &ca.identity(&agent("web2"))).await.unwrap();
}

#[test]
fn addresses_of_one_ipv6_network_are_one() {
    let connections = Connections::new(Limits { per_address: 1, ..Limits::default() });
    let enter = |text: &str| connections.enter(text.parse().unwrap());
    let held = enter("2001:db8::1").unwrap();
    assert!(enter("2001:db8::2").is_err());
    let _other = enter("2001:db8:0:1::1").unwrap();
    let _four = enter("192.0.2.1").unwrap();
    assert!(enter("::ffff:192.0.2.1").is_err());
    assert!(enter("192.0.2.2").is_ok());
    drop(held);
    assert!(enter("2001:db8::2").is_ok());
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
