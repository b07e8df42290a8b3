//! The redirector in front of a real nginx: the PROXY protocol and the closing of connections are
//! what nginx takes them for.

mod support;

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use std::time::Duration;

use ferry_traffic::control::{LocalUpstream, RouteState, Upstream};
use support::process::Process;
use support::{ask, body, get, route, start};
use tokio::net::TcpStream;

const NOBODY: u32 = 65_534;

/// An nginx of the test's own, as a user without rights, that expects the PROXY protocol.
struct Nginx {
    address: SocketAddr,
    _process: Process,
    _dir: tempfile::TempDir,
}

async fn nginx() -> Nginx {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().display();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = format!(
        "pid {root}/pid; error_log stderr; events {{}}
         http {{
           access_log off;
           client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;
           uwsgi_temp_path {root}/d; scgi_temp_path {root}/e;
           set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol;
           server {{
             listen {address} proxy_protocol; server_name a.example;
             return 200 '$remote_addr $remote_port $host $connection_requests';
           }}
         }}"
    );
    std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "nginx", "-e", "stderr"])
        .args(["-g", "daemon off; master_process off;", "-p"])
        .arg(dir.path())
        .arg("-c")
        .arg(dir.path().join("nginx.conf"))
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let process = Process::spawn(&mut command);
    let up = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(support::LONG, up).await.expect("nginx starts (package nginx)");
    Nginx { address, _process: process, _dir: dir }
}

#[tokio::test]
async fn nginx_sees_the_visitor_and_closes_after_one_answer() {
    let (source, target) = (start().await, start().await);
    target.allow_loopback_peers().await;
    let nginx = nginx().await;
    let mut local = route("alice", 2, &["a.example"], RouteState::Local, nginx.address);
    local.upstream = LocalUpstream {
        http: Upstream::Addr(nginx.address),
        https: Upstream::Addr(nginx.address),
        proxy_protocol: true,
    };
    target.client.set_route(local).await.unwrap();
    let remote = RouteState::Remote { peer: target.peer() };
    source
        .client
        .set_route(route("alice", 2, &["a.example"], remote, nginx.address))
        .await
        .unwrap();

    let answer = get(source.http(), "a.example", "/").await;
    let words: Vec<_> = body(&answer).split(' ').collect();
    assert_eq!((words[0], words[2], words[3]), ("127.0.0.1", "a.example", "1"), "{answer}");
    assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    let pipelined = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n".repeat(3);
    let answer = ask(source.http(), &pipelined).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
}
