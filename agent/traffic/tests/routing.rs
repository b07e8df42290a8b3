//! HTTP through the redirector: by host, one request a connection, nothing ambiguous.

mod support;

use std::time::Duration;

use ferry_traffic::control::RouteState;
use support::origin::Origin;
use support::{ask, body, get, read_all, read_until, route, start, start_with, status};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn requests_go_by_their_host() {
    let running = start().await;
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    running.local("alice", 1, &["a.example", "*.a.example"], a.address).await;
    running.local("bob", 1, &["b.example"], b.address).await;
    for (host, name) in
        [("a.example", "a"), ("A.Example.", "a"), ("www.a.example:80", "a"), ("b.example", "b")]
    {
        assert_eq!(body(&get(running.http(), host, "/").await), name, "{host}");
    }
    let absolute = "GET http://b.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n";
    assert_eq!(body(&ask(running.http(), absolute).await), "b");
    assert_eq!(running.status("alice").await.traffic.passed, 3);
}

#[tokio::test]
async fn a_host_without_a_route_is_not_answered_when_nothing_was_redirected() {
    let running = start().await;
    let a = Origin::start("a").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    assert_eq!(status(&get(running.http(), "other.example", "/").await), 421);
    assert_eq!(status(&ask(running.http(), "GET / HTTP/1.0\r\n\r\n").await), 421);
    assert!(a.seen().is_empty());
}

#[tokio::test]
async fn a_second_request_on_the_same_connection_is_not_passed() {
    let running = start().await;
    let (a, b) = (Origin::start("a").await, Origin::start("b").await);
    running.local("alice", 1, &["a.example"], a.address).await;
    running.local("bob", 1, &["b.example"], b.address).await;
    let two = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n\
               GET / HTTP/1.1\r\nHost: b.example\r\n\r\n";
    let answer = ask(running.http(), two).await;
    assert_eq!(body(&answer), "a", "one answer, then the end: {answer:?}");
    let seen = &a.seen()[0];
    assert!(seen.head.contains("\r\nConnection: close\r\n"), "{seen:?}");
    assert_eq!(seen.after, "", "nothing of the second request reached the server");
    assert!(b.seen().is_empty());
}

#[tokio::test]
async fn not_even_if_the_server_keeps_the_connection() {
    let running = start().await;
    let a = Origin::start("a").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    for path in ["/keep", "/no-ws"] {
        let mut stream = TcpStream::connect(running.http()).await.unwrap();
        let first = format!(
            "GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: {}\r\n\r\n",
            if path == "/keep" { "h2c" } else { "websocket" }
        );
        stream.write_all(first.as_bytes()).await.unwrap();
        read_until(&mut stream, "\r\n\r\na").await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
        assert_eq!(read_all(&mut stream).await, "", "closed, so that the visitor asks again");
        let seen = a.seen();
        assert_eq!(seen.last().unwrap().after, "", "{path}");
    }
}

#[tokio::test]
async fn bodies_pass_whole() {
    let running = start().await;
    let a = Origin::start("a").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    let large = "x".repeat(1_000_000);
    let answer = ask(
        running.http(),
        &format!(
            "POST /echo?1000000 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\n{large}GET / smuggled"
        ),
    )
    .await;
    assert!(answer.ends_with(&format!("\r\n\r\n{large}")), "{} bytes", answer.len());
    assert_eq!(a.seen()[0].after, "");

    let chunks = "5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nT: t\r\n\r\n";
    let answer = ask(
        running.http(),
        &format!(
            "POST /echo?{} HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}GET / smuggled",
            chunks.len()
        ),
    )
    .await;
    assert!(answer.ends_with(&format!("\r\n\r\n{chunks}")), "{answer:?}");
    assert_eq!(a.seen()[1].after, "");
}

#[tokio::test]
async fn a_body_that_waits_to_be_asked_for_passes() {
    let running = start().await;
    let a = Origin::start("a").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    let mut stream = TcpStream::connect(running.http()).await.unwrap();
    let head = "POST /echo?4 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut stream, "100 Continue\r\n\r\n").await;
    stream.write_all(b"body").await.unwrap();
    assert_eq!(body(&read_all(&mut stream).await), "body");
}

#[tokio::test]
async fn an_early_answer_reaches_a_visitor_that_still_sends() {
    let running = start().await;
    let a = Origin::start("a").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    let mut stream = TcpStream::connect(running.http()).await.unwrap();
    let head = "POST /early HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000000\r\n\r\nbegin";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(body(&read_all(&mut stream).await), "a");
}

#[tokio::test]
async fn what_is_ambiguous_never_reaches_a_server() {
    let running = start().await;
    let a = Origin::start("a").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    for (expected, rest) in [
        (400, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        (400, "Host: b.example\r\n\r\n"),
        (400, "Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
        (501, "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: a.example\r\n{rest}");
        assert_eq!(status(&ask(running.http(), &text).await), expected, "{rest:?}");
    }
    assert_eq!(status(&ask(running.http(), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await), 505);
    assert!(a.seen().is_empty());
}

#[tokio::test]
async fn slow_and_large_heads_are_refused() {
    let running = start_with(|config| {
        config.head_timeout_s = 1;
        config.max_head = 4096;
    })
    .await;
    let large = format!("GET / HTTP/1.1\r\nHost: a.example\r\nX: {}\r\n\r\n", "x".repeat(5000));
    assert_eq!(status(&ask(running.http(), &large).await), 431);
    let begun = std::time::Instant::now();
    assert_eq!(status(&ask(running.http(), "GET / HTTP/1.1\r\nHost:").await), 408);
    let mut idle = TcpStream::connect(running.http()).await.unwrap();
    assert_eq!(read_all(&mut idle).await, "", "one opened in advance is just closed");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_websocket_passes_both_ways() {
    let running = start().await;
    let a = Origin::start("a").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    let mut stream = TcpStream::connect(running.http()).await.unwrap();
    let head = "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, Upgrade\r\n\
                Upgrade: websocket\r\n\r\nearly";
    stream.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut stream, "101 Switching Protocols\r\n\r\nearly").await;
    stream.write_all(b"later").await.unwrap();
    read_until(&mut stream, "later").await;
    assert!(a.seen()[0].head.contains("Upgrade: websocket\r\nConnection: Upgrade\r\n"));
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await, "");
}

#[tokio::test]
async fn a_visitor_that_stops_sending_still_gets_its_answer() {
    let running = start().await;
    let a = Origin::start("a").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    let mut stream = TcpStream::connect(running.http()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(body(&read_all(&mut stream).await), "a");
}

#[tokio::test]
async fn a_web_server_that_restarts_is_waited_for_and_one_that_is_gone_is_told() {
    let running = start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    running.local("alice", 1, &["a.example"], address).await;
    let http = running.http();
    let asking = tokio::spawn(async move { get(http, "a.example", "/").await });
    running.until("alice", |s| s.traffic.running == 1).await;
    let back = Origin::listen("back", TcpListener::bind(address).await.unwrap(), false);
    assert_eq!(body(&asking.await.unwrap()), "back");
    assert_eq!(status(&get(http, "a.example", "/silent").await), 502);
    assert_eq!(back.seen().len(), 2);

    let gone = route("bob", 1, &["b.example"], RouteState::Local, "127.0.0.1:1".parse().unwrap());
    running.client.set_route(gone).await.unwrap();
    assert_eq!(status(&get(http, "b.example", "/").await), 502);
    assert_eq!(running.status("bob").await.traffic.refused_total, 1);
}

#[tokio::test]
async fn many_connections_beyond_the_limit_wait_their_turn() {
    let running = start_with(|config| config.max_connections = 16).await;
    let a = Origin::start("a").await;
    running.local("alice", 1, &["a.example"], a.address).await;
    let http = running.http();
    let asking: Vec<_> =
        (0..100).map(|_| tokio::spawn(async move { get(http, "a.example", "/").await })).collect();
    for one in asking {
        assert_eq!(body(&one.await.unwrap()), "a");
    }
}
