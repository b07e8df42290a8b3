//! Holding an account's requests, releasing them, and what happens at the limits.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ferry_traffic::control::{HoldLimits, RouteState, Target};
use support::origin::Origin;
use support::{Running, body, get, limits, read_all, read_until, route, start, status};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Starts a redirector in front of a server for the account alice.
async fn alice() -> (Running, Origin) {
    let running = start().await;
    let origin = Origin::start("a").await;
    running.local("alice", 1, &["a.example"], origin.address).await;
    (running, origin)
}

#[tokio::test]
async fn two_hundred_held_requests_are_all_answered_by_the_target() {
    let (source, old) = alice().await;
    let target = start().await;
    target.allow_loopback_peers().await;
    let new = Origin::start("new").await;
    let hold = RouteState::Hold { limits: limits() };
    target.client.set_route(route("alice", 2, &["a.example"], hold, new.address)).await.unwrap();

    source.hold("alice", 1, limits()).await;
    let http = source.http();
    let asking: Vec<_> =
        (0..200).map(|_| tokio::spawn(async move { get(http, "a.example", "/").await })).collect();
    source.until("alice", |s| s.traffic.held_now == 200).await;
    let held = Instant::now();
    target.release("alice", 2, Target::Local).await;
    source.release("alice", 2, Target::Remote { peer: target.peer() }).await;
    for one in asking {
        assert_eq!(body(&one.await.unwrap()), "new");
    }
    assert_eq!(body(&get(http, "a.example", "/").await), "new");
    assert!(old.seen().is_empty(), "the source answered nobody");

    let traffic = source.status("alice").await.traffic;
    assert_eq!((traffic.held_total, traffic.held_now, traffic.held_bytes), (200, 0, 0));
    assert_eq!((traffic.passed, traffic.refused_total), (201, 0));
    let outage = traffic.outage().expect("held, then answered");
    assert!(outage < held.elapsed() + Duration::from_secs(10), "{outage:?}");
    let (from, to) = (traffic.first_held_at.unwrap(), traffic.first_answered_at.unwrap());
    assert!(from.unix_ns < to.unix_ns && from.monotonic_ns < to.monotonic_ns);
}

/// A web server with room for few requests at once, as Debian's: beyond it, connections are broken
/// off. Returns its address.
async fn with_room_for(most: usize) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let room = Arc::new(Semaphore::new(most));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
            tokio::spawn(async move {
                read_until(&mut stream, "\r\n\r\n").await;
                // What an answer takes to be made.
                tokio::time::sleep(Duration::from_millis(5)).await;
                drop(place);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await
            });
        }
    });
    address
}

#[tokio::test]
async fn those_that_were_held_do_not_overrun_the_web_server() {
    let running = start().await;
    let small = with_room_for(100).await;
    running.local("alice", 1, &["a.example"], small).await;
    running.hold("alice", 1, limits()).await;
    let http = running.http();
    let asking: Vec<_> =
        (0..600).map(|_| tokio::spawn(async move { get(http, "a.example", "/").await })).collect();
    running.until("alice", |s| s.traffic.held_now == 600).await;
    running.release("alice", 1, Target::Local).await;
    for one in asking {
        assert_eq!(body(&one.await.unwrap()), "ok");
    }
    let traffic = running.status("alice").await.traffic;
    assert_eq!((traffic.passed, traffic.refused_total), (600, 0));
}

#[tokio::test]
async fn one_that_gets_no_answer_keeps_its_turn_only_for_a_while() {
    let (running, origin) = alice().await;
    running.hold("alice", 1, limits()).await;
    let http = running.http();
    let slow: Vec<_> = (0..64)
        .map(|_| tokio::spawn(async move { get(http, "a.example", "/slow").await }))
        .collect();
    running.until("alice", |s| s.traffic.held_now == 64).await;
    let next = tokio::spawn(async move { get(http, "a.example", "/").await });
    running.until("alice", |s| s.traffic.held_now == 65).await;
    running.release("alice", 1, Target::Local).await;
    assert_eq!(body(&next.await.unwrap()), "a");
    origin.go_on(64);
    for one in slow {
        assert_eq!(body(&one.await.unwrap()), "a");
    }
}

/// Also not after a wait for its turn.
#[tokio::test]
async fn a_visitor_that_leaves_before_its_turn_is_not_served_later() {
    let (running, origin) = alice().await;
    running.hold("alice", 1, limits()).await;
    let http = running.http();
    let slow: Vec<_> = (0..64)
        .map(|_| tokio::spawn(async move { get(http, "a.example", "/slow").await }))
        .collect();
    running.until("alice", |s| s.traffic.held_now == 64).await;
    let mut leaving = TcpStream::connect(http).await.unwrap();
    leaving.write_all(b"GET /left HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    running.until("alice", |s| s.traffic.held_now == 65).await;
    let next = tokio::spawn(async move { get(http, "a.example", "/").await });
    running.until("alice", |s| s.traffic.held_now == 66).await;
    running.release("alice", 1, Target::Local).await;
    // Let through, and waiting for a turn.
    running.until("alice", |s| s.traffic.running == 66).await;
    drop(leaving);
    assert_eq!(body(&next.await.unwrap()), "a");
    origin.go_on(64);
    for one in slow {
        assert_eq!(body(&one.await.unwrap()), "a");
    }
    assert!(origin.seen().iter().all(|seen| !seen.head.contains("/left")));
}

#[tokio::test]
async fn beyond_the_number_or_the_time_requests_are_refused() {
    let (running, origin) = alice().await;
    let small = HoldLimits { wait_ms: 1_000, requests: 2, ..limits() };
    running.hold("alice", 1, small).await;
    let http = running.http();
    let asking: Vec<_> =
        (0..2).map(|_| tokio::spawn(async move { get(http, "a.example", "/").await })).collect();
    running.until("alice", |s| s.traffic.held_now == 2).await;
    let refused = get(http, "a.example", "/").await;
    assert_eq!(status(&refused), 503);
    assert!(refused.contains("\r\nRetry-After: "), "{refused}");
    for one in asking {
        assert_eq!(status(&one.await.unwrap()), 503, "after the time");
    }
    let traffic = running.status("alice").await.traffic;
    assert_eq!((traffic.refused_total, traffic.held_total, traffic.held_now), (3, 2, 0));
    assert!(traffic.first_held_at.is_some() && traffic.first_answered_at.is_none());
    assert!(origin.seen().is_empty());
}

#[tokio::test]
async fn beyond_the_bytes_requests_are_refused() {
    let (running, _origin) = alice().await;
    running.hold("alice", 1, HoldLimits { bytes: 100, ..limits() }).await;
    let path = format!("/{}", "x".repeat(200));
    assert_eq!(status(&get(running.http(), "a.example", &path).await), 503);
}

#[tokio::test]
async fn running_requests_finish_within_the_grace_and_long_ones_are_ended() {
    let (running, origin) = alice().await;
    let http = running.http();
    let mut socket = TcpStream::connect(http).await.unwrap();
    let head =
        "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut socket, "101").await;
    let slow = tokio::spawn(async move { get(http, "a.example", "/slow").await });
    running.until("alice", |s| s.traffic.running == 2).await;

    let left = running.hold("alice", 1, HoldLimits { grace_ms: 700, ..limits() }).await;
    assert_eq!(left, 2);
    let account = "alice".parse().unwrap();
    assert_eq!(running.client.drain(&account, Duration::from_millis(50)).await.unwrap(), 2);
    origin.go_on(1);
    assert_eq!(body(&slow.await.unwrap()), "a", "it had its grace");
    let begun = Instant::now();
    assert_eq!(running.client.drain(&account, support::LONG).await.unwrap(), 0);
    assert!(begun.elapsed() < Duration::from_secs(5));
    read_all(&mut socket).await;
    let traffic = running.status("alice").await.traffic;
    assert_eq!((traffic.ended_total, traffic.running), (1, 0));
}

#[tokio::test]
async fn a_hold_given_up_leaves_running_connections_alone() {
    let (running, _origin) = alice().await;
    let mut socket = TcpStream::connect(running.http()).await.unwrap();
    let head =
        "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut socket, "101").await;
    running.hold("alice", 1, HoldLimits { grace_ms: 300, ..limits() }).await;
    running.release("alice", 1, Target::Local).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    socket.write_all(b"still there").await.unwrap();
    read_until(&mut socket, "still there").await;
    // But the next hold ends it.
    running.hold("alice", 1, HoldLimits { grace_ms: 0, ..limits() }).await;
    let account = "alice".parse().unwrap();
    assert_eq!(running.client.drain(&account, support::LONG).await.unwrap(), 0);
    read_all(&mut socket).await;
}

#[tokio::test]
async fn what_a_visitor_has_given_up_is_not_done_later() {
    let (running, origin) = alice().await;
    running.hold("alice", 1, limits()).await;
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc";
    let mut gone = TcpStream::connect(running.http()).await.unwrap();
    gone.write_all(head.as_bytes()).await.unwrap();
    running.until("alice", |s| s.traffic.held_now == 1).await;
    drop(gone);
    running.until("alice", |s| s.traffic.held_now == 0).await;
    // And one that leaves just before the release.
    let mut gone = TcpStream::connect(running.http()).await.unwrap();
    gone.write_all(head.as_bytes()).await.unwrap();
    running.until("alice", |s| s.traffic.held_now == 1).await;
    drop(gone);
    running.release("alice", 1, Target::Local).await;
    assert_eq!(body(&get(running.http(), "a.example", "/").await), "a");
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test]
async fn a_request_that_found_no_server_yet_goes_back_and_waits() {
    let (running, _origin) = alice().await;
    // Nobody answers there.
    let nowhere = "127.0.0.1:1".parse().unwrap();
    running.hold("alice", 2, limits()).await;
    running.release("alice", 2, Target::Remote { peer: nowhere }).await;
    let http = running.http();
    let asking = tokio::spawn(async move { get(http, "a.example", "/").await });
    running.until("alice", |s| s.traffic.running == 1).await;
    assert_eq!(running.hold("alice", 3, limits()).await, 1);
    running.until("alice", |s| s.traffic.held_now == 1 && s.traffic.running == 0).await;
    running.release("alice", 3, Target::Local).await;
    assert_eq!(body(&asking.await.unwrap()), "a");
    assert_eq!(running.status("alice").await.traffic.held_total, 1);
}

#[tokio::test]
async fn forgetting_an_account_refuses_those_that_wait() {
    let (running, origin) = alice().await;
    running.hold("alice", 1, limits()).await;
    let http = running.http();
    let asking = tokio::spawn(async move { get(http, "a.example", "/").await });
    running.until("alice", |s| s.traffic.held_now == 1).await;
    let account = "alice".parse().unwrap();
    running.client.remove_route(&account, ferry_proto::ids::Epoch(1)).await.unwrap();
    running.client.remove_route(&account, ferry_proto::ids::Epoch(0)).await.unwrap();
    assert_eq!(status(&asking.await.unwrap()), 503);
    assert!(origin.seen().is_empty());
    assert!(running.client.status().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_moved_account_s_running_connections_do_not_stay_behind() {
    let (running, _origin) = alice().await;
    let mut socket = TcpStream::connect(running.http()).await.unwrap();
    let head =
        "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut socket, "101").await;
    // Straight to another server, without a hold.
    running.release("alice", 2, Target::Remote { peer: "127.0.0.1:1".parse().unwrap() }).await;
    assert_eq!(read_all(&mut socket).await, "");
}
