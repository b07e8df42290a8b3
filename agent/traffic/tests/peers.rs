//! From one server's redirector to another's.

mod support;

use ferry_proto::ids::Epoch;
use ferry_traffic::control::{LocalUpstream, RouteState, Target, Upstream};
use support::origin::Origin;
use support::{Running, body, get, limits, read_all, route, start, status};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// A source that sends alice's visitors, at epoch 2, to a target that knows nothing of it yet.
async fn pair() -> (Running, Running) {
    let (source, target) = (start().await, start().await);
    target.allow_loopback_peers().await;
    let remote = RouteState::Remote { peer: target.peer() };
    let nowhere = "127.0.0.1:1".parse().unwrap();
    source.client.set_route(route("alice", 2, &["a.example"], remote, nowhere)).await.unwrap();
    (source, target)
}

#[tokio::test]
async fn the_site_sees_the_visitor_s_own_address() {
    let (source, target) = pair().await;
    let origin = Origin::start_proxied("new").await;
    let mut at_target = route("alice", 2, &["a.example"], RouteState::Local, origin.address);
    at_target.upstream.proxy_protocol = true;
    target.client.set_route(at_target).await.unwrap();
    let mut visitor = TcpStream::connect(source.http()).await.unwrap();
    let address = visitor.local_addr().unwrap();
    visitor.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    assert_eq!(body(&read_all(&mut visitor).await), "new");
    assert_eq!(origin.seen()[0].visitor, Some(address));
}

#[tokio::test]
async fn a_server_that_does_not_own_the_account_answers_nobody() {
    let (source, target) = pair().await;
    let origin = Origin::start("wrong").await;
    // Unknown.
    assert_eq!(status(&get(source.http(), "a.example", "/").await), 421);
    // Known by an older epoch.
    target.local("alice", 1, &["a.example"], origin.address).await;
    assert_eq!(status(&get(source.http(), "a.example", "/").await), 503);
    // Another account has the domain there.
    target.client.remove_route(&"alice".parse().unwrap(), Epoch(1)).await.unwrap();
    target.local("mallory", 9, &["a.example"], origin.address).await;
    assert_eq!(status(&get(source.http(), "a.example", "/").await), 421);
    // A shared address is none of the visitor's.
    target.client.remove_route(&"mallory".parse().unwrap(), Epoch(9)).await.unwrap();
    let mut shared = route("alice", 2, &["a.example"], RouteState::Local, origin.address);
    shared.upstream = LocalUpstream { http: Upstream::Original, ..shared.upstream };
    target.client.set_route(shared).await.unwrap();
    assert_eq!(status(&get(source.http(), "a.example", "/").await), 421);
    assert!(origin.seen().is_empty());
}

#[tokio::test]
async fn only_peers_may_come() {
    let (source, target) = pair().await;
    let origin = Origin::start("new").await;
    target.local("alice", 2, &["a.example"], origin.address).await;
    target.client.set_peers(["192.0.2.1".parse().unwrap()].into()).await.unwrap();
    assert_eq!(status(&get(source.http(), "a.example", "/").await), 502);
    assert!(origin.seen().is_empty());
    target.allow_loopback_peers().await;
    assert_eq!(body(&get(source.http(), "a.example", "/").await), "new");
}

#[tokio::test]
async fn a_peer_without_a_header_is_refused() {
    let target = start().await;
    target.allow_loopback_peers().await;
    let origin = Origin::start("new").await;
    target.local("alice", 2, &["a.example"], origin.address).await;
    assert_eq!(get(target.peer(), "a.example", "/").await, "");
    // A header that is not from a redirector.
    let mut stream = TcpStream::connect(target.peer()).await.unwrap();
    stream
        .write_all(
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x50\0\x50",
        )
        .await
        .unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    assert_eq!(read_all(&mut stream).await, "");
    assert!(origin.seen().is_empty());
}

#[tokio::test]
async fn the_target_holds_what_reaches_it_too_early() {
    let (source, target) = pair().await;
    let origin = Origin::start("new").await;
    let hold = RouteState::Hold { limits: limits() };
    target.client.set_route(route("alice", 2, &["a.example"], hold, origin.address)).await.unwrap();
    let http = source.http();
    let asking = tokio::spawn(async move { get(http, "a.example", "/").await });
    target.until("alice", |s| s.traffic.held_now == 1).await;
    target.release("alice", 2, Target::Local).await;
    assert_eq!(body(&asking.await.unwrap()), "new");
}

#[tokio::test]
async fn a_circle_of_servers_is_told() {
    let (source, target) = pair().await;
    source.allow_loopback_peers().await;
    let remote = RouteState::Remote { peer: source.peer() };
    let nowhere = "127.0.0.1:1".parse().unwrap();
    target.client.set_route(route("alice", 2, &["a.example"], remote, nowhere)).await.unwrap();
    assert_eq!(status(&get(source.http(), "a.example", "/").await), 508);
}

#[tokio::test]
async fn an_older_epoch_is_refused_by_the_control_socket() {
    let (source, _target) = pair().await;
    let account = "alice".parse().unwrap();
    let older = source.client.hold(&account, Epoch(1), limits()).await.unwrap_err();
    assert_eq!(older.class, ferry_proto::FaultClass::Fenced);
    let same = source.client.release(&account, Epoch(2), Target::Local).await.unwrap_err();
    assert_eq!(same.class, ferry_proto::FaultClass::Fenced);
    let unknown = source.client.hold(&"nobody".parse().unwrap(), Epoch(1), limits()).await;
    assert_eq!(unknown.unwrap_err().class, ferry_proto::FaultClass::Precondition);
}
