//! What the tests share: a redirector on ports of its own, a small web server that tells what
//! reached it, and visitors.

#![allow(dead_code)] // Each test file uses its part.

pub mod origin;
pub mod process;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ferry_proto::ids::Epoch;
use ferry_traffic::client::Redirector as Client;
use ferry_traffic::config::Config;
use ferry_traffic::control::{
    AccountRoute, AccountStatus, HoldLimits, LocalUpstream, RouteState, Target, Upstream,
};
use ferry_traffic::redirector::{Redirector, Sockets};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Far more than anything here takes; only a failing test waits so long.
pub const LONG: Duration = Duration::from_secs(20);

/// A redirector in this process.
pub struct Running {
    pub redirector: Redirector,
    pub client: Client,
    pub dir: tempfile::TempDir,
}

/// A configuration on free ports, with its files below `dir`.
pub fn config(dir: &Path) -> Config {
    let free = || vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    Config {
        http: free(),
        https: free(),
        peer: free(),
        control: dir.join("control.sock"),
        state_dir: dir.to_owned(),
        head_timeout_s: 2,
        ..Config::default()
    }
}

pub async fn start() -> Running {
    start_with(|_| {}).await
}

pub async fn start_with(change: impl FnOnce(&mut Config)) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    change(&mut config);
    let sockets = Sockets::bind(&config).unwrap();
    let control = config.control.clone();
    let redirector = Redirector::start(config, sockets).unwrap();
    let client = Client::connect(control).await.unwrap();
    Running { redirector, client, dir }
}

impl Running {
    pub fn http(&self) -> SocketAddr {
        self.redirector.http()[0]
    }

    pub fn https(&self) -> SocketAddr {
        self.redirector.https()[0]
    }

    pub fn peer(&self) -> SocketAddr {
        self.redirector.peer()[0]
    }

    /// Routes an account to an address of this server.
    pub async fn local(&self, account: &str, epoch: u64, domains: &[&str], to: SocketAddr) {
        self.client.set_route(route(account, epoch, domains, RouteState::Local, to)).await.unwrap();
    }

    pub async fn hold(&self, account: &str, epoch: u64, limits: HoldLimits) -> u64 {
        self.client.hold(&account.parse().unwrap(), Epoch(epoch), limits).await.unwrap()
    }

    pub async fn release(&self, account: &str, epoch: u64, to: Target) {
        self.client.release(&account.parse().unwrap(), Epoch(epoch), to).await.unwrap();
    }

    pub async fn allow_loopback_peers(&self) {
        self.client.set_peers([Ipv4Addr::LOCALHOST.into()].into()).await.unwrap();
    }

    pub async fn status(&self, account: &str) -> AccountStatus {
        let all = self.client.status().await.unwrap();
        all.into_iter().find(|s| s.account.as_str() == account).expect("the account is routed")
    }

    /// Waits until the account's status is as wished.
    pub async fn until(&self, account: &str, wished: impl Fn(&AccountStatus) -> bool) {
        let wait = async {
            while !wished(&self.status(account).await) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(LONG, wait).await.is_err() {
            panic!("the status stays {:?}", self.status(account).await);
        }
    }
}

/// A route whose own web server has one address for both HTTP and HTTPS.
pub fn route(
    account: &str,
    epoch: u64,
    domains: &[&str],
    state: RouteState,
    to: SocketAddr,
) -> AccountRoute {
    AccountRoute {
        account: account.parse().unwrap(),
        epoch: Epoch(epoch),
        domains: domains.iter().map(|d| d.parse().unwrap()).collect(),
        state,
        upstream: LocalUpstream {
            http: Upstream::Addr(to),
            https: Upstream::Addr(to),
            proxy_protocol: false,
        },
    }
}

/// Limits with a short grace.
pub fn limits() -> HoldLimits {
    HoldLimits { grace_ms: 200, ..HoldLimits::default() }
}

/// Sends `text` and returns all that comes back until the server closes.
pub async fn ask(to: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    read_all(&mut stream).await
}

/// A plain request.
pub async fn get(to: SocketAddr, host: &str, path: &str) -> String {
    ask(to, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await
}

/// What comes until the server closes; a reset counts as closing.
pub async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(LONG, stream.read_to_end(&mut bytes)).await;
    assert!(read.is_ok(), "not closed after {:?}", String::from_utf8_lossy(&bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until `text` has come.
pub async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&bytes).contains(text) {
            let n = stream.read_buf(&mut bytes).await.unwrap();
            assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&bytes));
        }
    };
    tokio::time::timeout(LONG, read).await.expect("it comes in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The status of an answer.
pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The body of an answer.
pub fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}
