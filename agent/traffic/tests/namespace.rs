//! The firewall rules, in network namespaces of the test's own: a server with its web server and
//! the redirector as a user of its own, and a visitor.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ferry_proto::ids::Epoch;
use ferry_traffic::client::Redirector as Client;
use ferry_traffic::control::{
    AccountRoute, HoldLimits, LocalUpstream, RouteState, Target, Traffic,
};
use ferry_traffic::firewall::{self, Rules};
use support::origin::Origin;
use support::process::{PROGRAM, Process, connect, write_config};
use support::{body, get, read_until};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// No account of the machine.
const UID: u32 = 64_990;

const SERVER_V4: &str = "10.77.0.1";
const VISITOR_V4: &str = "10.77.0.2";
const SERVER_V6: &str = "fd00:77::1";
const VISITOR_V6: &str = "fd00:77::2";

/// Two namespaces and a cable, gone when dropped.
struct Network {
    server: String,
    visitor: String,
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program} is needed (packages iproute2, nftables): {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

impl Network {
    fn lay(tag: &str) -> Self {
        let id = format!("{tag}{}", std::process::id());
        let this = Self { server: format!("ferry-s-{id}"), visitor: format!("ferry-v-{id}") };
        let (server, visitor) = (this.server.as_str(), this.visitor.as_str());
        for name in [server, visitor] {
            run("ip", &["netns", "add", name]);
            run("ip", &["-n", name, "link", "set", "lo", "up"]);
        }
        run(
            "ip",
            &[
                "-n", server, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns",
                visitor,
            ],
        );
        for (name, v4, v6) in [(server, SERVER_V4, SERVER_V6), (visitor, VISITOR_V4, VISITOR_V6)] {
            run("ip", &["-n", name, "addr", "add", &format!("{v4}/24"), "dev", "eth0"]);
            run("ip", &["-n", name, "addr", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"]);
            run("ip", &["-n", name, "link", "set", "eth0", "up"]);
        }
        this
    }

    /// Runs `work` as on the server.
    fn on_server<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        inside(&self.server, work)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [&self.server, &self.visitor] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Runs `work` in a namespace: on a thread of its own, whose children are there too.
fn inside<T: Send + 'static>(
    namespace: &str,
    work: impl Future<Output = T> + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let handle = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    std::thread::spawn(move || {
        nix::sched::setns(handle, nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("these tests run as root");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    })
}

/// Runs `work` as the visitor, while the caller goes on.
async fn visit<T: Send + 'static>(
    namespace: String,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let (done, waiting) = tokio::sync::oneshot::channel();
    inside(&namespace, async move {
        let _ = done.send(work.await);
    });
    waiting.await.expect("the visitor's thread did not panic")
}

/// The redirector as its own user, with or without its capability.
fn start_redirector(dir: &Path, capability: bool, rest: &str) -> Process {
    // The build's directory may be closed to other users.
    let program = dir.join("ferry-redirector");
    std::fs::copy(PROGRAM, &program).unwrap();
    let config = write_config(dir, rest);
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    chown(dir, Some(UID), Some(UID)).unwrap();
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={UID}"), &format!("--regid={UID}"), "--clear-groups"]);
    if capability {
        command.args(["--inh-caps=-all,+net_raw", "--ambient-caps=+net_raw"]);
    }
    Process::spawn(command.arg("--no-new-privs").arg(program).arg("--config").arg(config))
}

fn alice(epoch: u64, state: RouteState) -> AccountRoute {
    AccountRoute {
        account: "alice".parse().unwrap(),
        epoch: Epoch(epoch),
        domains: ["a.example".parse().unwrap()].into(),
        state,
        upstream: LocalUpstream::default(),
    }
}

async fn traffic(client: &Client) -> Traffic {
    client.status().await.unwrap().remove(0).traffic
}

async fn web(port: u16, name: &'static str) -> Origin {
    Origin::listen(name, TcpListener::bind(format!("[::]:{port}")).await.unwrap(), false)
}

fn at(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}

/// The address from which the web server was last asked.
fn last_from(web: &Origin) -> IpAddr {
    web.seen().last().unwrap().from.ip().to_canonical()
}

#[test]
fn connections_from_outside_and_from_the_server_itself_are_redirected() {
    let network = Network::lay("r");
    let visitor = network.visitor.clone();
    let server = network.on_server(async move {
        let dir = tempfile::tempdir().unwrap();
        let (http, https) = (web(80, "http").await, web(443, "https").await);
        for scope in ["all", "default", "lo", "eth0"] {
            run("sysctl", &["-qw", &format!("net.ipv4.conf.{scope}.rp_filter=1")]);
        }
        run("nft", &["add table inet other; add chain inet other c { type nat hook prerouting priority -100; }"]);
        let other = run("nft", &["list", "table", "inet", "other"]);
        let rules = Rules::usual(UID);
        let _redirector = start_redirector(dir.path(), true, "");
        let client = connect(dir.path()).await;

        // Not armed: nothing passes the redirector.
        firewall::disarm().await.unwrap();
        assert!(!firewall::is_armed(&rules).await.unwrap());
        client.set_route(alice(1, RouteState::Hold { limits: HoldLimits::default() })).await.unwrap();
        let answer = visit(visitor.clone(), get(at(SERVER_V4, 80), "a.example", "/")).await;
        assert_eq!(body(&answer), "http");

        // Armed: all ways to the service ports lead to the hold, and other names pass.
        firewall::arm(&rules).await.unwrap();
        firewall::arm(&rules).await.unwrap();
        assert!(firewall::is_armed(&rules).await.unwrap());
        assert!(!firewall::is_armed(&Rules::usual(UID + 1)).await.unwrap());
        let before = http.seen().len();
        let outside: Vec<_> = [SERVER_V4, SERVER_V6]
            .map(|to| tokio::spawn(visit(visitor.clone(), get(at(to, 80), "a.example", "/"))))
            .into();
        let itself: Vec<_> = [SERVER_V4, SERVER_V6, "127.0.0.1", "::1"]
            .map(|to| tokio::spawn(async move { get(at(to, 80), "a.example", "/").await }))
            .into();
        let held = async {
            while traffic(&client).await.held_now < 6 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(support::LONG, held).await.is_err() {
            panic!("not all are held: {:?}", traffic(&client).await);
        }
        assert_eq!(http.seen().len(), before, "nobody reached the web server");

        // Released to the address that each asked for: the redirector's own connections are not
        // redirected to it again.
        client.release(&"alice".parse().unwrap(), Epoch(1), Target::Local).await.unwrap();
        for answer in outside.into_iter().chain(itself) {
            assert_eq!(body(&answer.await.unwrap()), "http");
        }
        let from: Vec<IpAddr> = http.seen()[before..].iter().map(|s| s.from.ip().to_canonical()).collect();
        for address in [VISITOR_V4, VISITOR_V6, SERVER_V4, SERVER_V6, "127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            assert!(from.contains(&address), "the site saw {address} among {from:?}");
        }

        // Other names and ports pass, with the visitor's address.
        for to in [SERVER_V4, SERVER_V6] {
            let answer = visit(visitor.clone(), get(at(to, 80), "other.example", "/")).await;
            assert_eq!(body(&answer), "http");
        }
        assert_eq!(last_from(&http), VISITOR_V6.parse::<IpAddr>().unwrap());
        let answer = visit(visitor.clone(), get(at(SERVER_V4, 443), "other.example", "/")).await;
        assert_eq!(body(&answer), "https", "not TLS, but for the web server to say so");
        assert_eq!(last_from(&https), VISITOR_V4.parse::<IpAddr>().unwrap());
        assert_eq!(run("nft", &["list", "table", "inet", "other"]), other);

        a_connection_of_before_the_route_is_ended_too(&visitor, &client).await;
        disarm_gently(&visitor, &rules, &http).await;
        assert_eq!(run("nft", &["list", "table", "inet", "other"]), other);
    });
    server.join().unwrap();
}

/// A websocket to bob's site, in a form that goes from one runtime to another.
async fn websocket(visitor: &str) -> std::net::TcpStream {
    visit(visitor.to_owned(), async {
        let mut socket = TcpStream::connect(at(SERVER_V4, 80)).await.unwrap();
        ask_for_websocket(&mut socket).await;
        socket.into_std().unwrap()
    })
    .await
}

async fn ask_for_websocket(socket: &mut TcpStream) {
    let head =
        "GET /ws HTTP/1.1\r\nHost: b.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    read_until(socket, "101").await;
}

/// Bob's site had no route when the connection passed the redirector.
async fn a_connection_of_before_the_route_is_ended_too(visitor: &str, client: &Client) {
    let socket = websocket(visitor).await;
    let bob: ferry_proto::ids::AccountName = "bob".parse().unwrap();
    let domains = ["b.example".parse().unwrap()].into();
    let route = AccountRoute { account: bob.clone(), domains, ..alice(1, RouteState::Local) };
    client.set_route(route).await.unwrap();
    let limits = HoldLimits { grace_ms: 100, ..HoldLimits::default() };
    assert_eq!(client.hold(&bob, Epoch(1), limits).await.unwrap(), 1);
    assert_eq!(client.drain(&bob, support::LONG).await.unwrap(), 0);
    visit(visitor.to_owned(), async move {
        let mut socket = TcpStream::from_std(socket).unwrap();
        assert_eq!(support::read_all(&mut socket).await, "");
    })
    .await;
    client.remove_route(&bob, Epoch(1)).await.unwrap();
}

/// A running connection outlives the end of redirecting; nothing is left in the end.
async fn disarm_gently(visitor: &str, rules: &Rules, web: &Origin) {
    let mut socket = websocket(visitor).await;
    firewall::stand_down(rules).await.unwrap();
    assert!(!firewall::is_armed(rules).await.unwrap());
    socket = visit(visitor.to_owned(), async move {
        let mut socket = TcpStream::from_std(socket).unwrap();
        socket.write_all(b"still there").await.unwrap();
        read_until(&mut socket, "still there").await;
        socket.into_std().unwrap()
    })
    .await;
    drop(socket);
    let answer = visit(visitor.to_owned(), get(at(SERVER_V4, 80), "a.example", "/")).await;
    assert_eq!(body(&answer), "http");
    assert!(!was_redirected(web), "it came straight");

    firewall::arm(rules).await.unwrap();
    firewall::disarm().await.unwrap();
    firewall::disarm().await.unwrap();
    assert!(firewall::list().await.unwrap().is_empty());
    for family in ["-4", "-6"] {
        let left = run("ip", &[family, "rule", "show"]);
        assert!(!left.contains("fwmark"), "{left}");
        assert!(!run("ip", &[family, "route", "show", "table", "all"]).contains("7480"));
    }
}

/// The kernel has not followed the connection so far: no other rules asked it to.
#[test]
fn connections_made_before_arming_go_on_where_they_were() {
    let network = Network::lay("k");
    let visitor = network.visitor.clone();
    let server = network.on_server(async move {
        let _http = web(80, "http").await;
        let rules = Rules::usual(UID);
        let dir = tempfile::tempdir().unwrap();
        let _redirector = start_redirector(dir.path(), true, "");
        connect(dir.path()).await;
        firewall::disarm().await.unwrap();
        let outside = websocket(&visitor).await;
        let mut itself = TcpStream::connect(at("127.0.0.1", 80)).await.unwrap();
        ask_for_websocket(&mut itself).await;

        firewall::arm(&rules).await.unwrap();
        visit(visitor.clone(), async move {
            let mut outside = TcpStream::from_std(outside).unwrap();
            outside.write_all(b"from outside").await.unwrap();
            read_until(&mut outside, "from outside").await;
        })
        .await;
        itself.write_all(b"from the server").await.unwrap();
        read_until(&mut itself, "from the server").await;
        // Those made now come by the redirector.
        let answer = visit(visitor.clone(), get(at(SERVER_V4, 80), "a.example", "/")).await;
        assert_eq!(body(&answer), "http");
        firewall::disarm().await.unwrap();
    });
    server.join().unwrap();
}

/// A connection from a port of the visitor's choice, once the kernel gives it, in a form that goes
/// between runtimes.
async fn from_port(visitor: &str, port: u16) -> std::net::TcpStream {
    let connecting = async move {
        loop {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(at(VISITOR_V4, port)).unwrap();
            match socket.connect(at(SERVER_V4, 80)).await {
                // The connection that had it is not quite over.
                Err(e) if e.kind() == std::io::ErrorKind::AddrNotAvailable => {
                    tokio::task::yield_now().await;
                }
                connected => return connected.unwrap().into_std().unwrap(),
            }
        }
    };
    visit(visitor.to_owned(), async { tokio::time::timeout(support::LONG, connecting).await })
        .await
        .expect("it is answered")
}

/// Asks by that connection, and leaves it to the web server to end it.
async fn ask_by(visitor: &str, connection: std::net::TcpStream) {
    let answer = visit(visitor.to_owned(), async move {
        let mut connection = TcpStream::from_std(connection).unwrap();
        connection.write_all(b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n").await.unwrap();
        support::read_all(&mut connection).await
    })
    .await;
    assert_eq!(body(&answer), "http");
}

/// Whether the redirector brought what the web server was last asked.
fn was_redirected(web: &Origin) -> bool {
    web.seen().last().unwrap().head.contains("Connection: close")
}

/// What the kernel remembers of a connection that ended while the redirector came in front must not
/// lead a later one, from the same port, past it.
#[test]
fn a_port_that_was_used_before_arming_leads_to_the_redirector_after_it() {
    let network = Network::lay("p");
    let visitor = network.visitor.clone();
    let server = network.on_server(async move {
        let http = TcpListener::bind("0.0.0.0:80").await.unwrap();
        let rules = Rules::usual(UID);
        let dir = tempfile::tempdir().unwrap();
        let _redirector = start_redirector(dir.path(), true, "");
        connect(dir.path()).await;
        // The web server ends a connection that is idle, and one that it owes an answer.
        for (port, last) in [(40_000, ""), (40_001, "last words")] {
            firewall::disarm().await.unwrap();
            let before = from_port(&visitor, port).await;
            let (mut at_web, _) = http.accept().await.unwrap();
            firewall::arm(&rules).await.unwrap();
            at_web.write_all(last.as_bytes()).await.unwrap();
            drop(at_web);
            visit(visitor.clone(), async move {
                let mut before = TcpStream::from_std(before).unwrap();
                assert_eq!(support::read_all(&mut before).await, last);
            })
            .await;

            let after = from_port(&visitor, port).await;
            let asking = tokio::spawn({
                let visitor = visitor.clone();
                async move { ask_by(&visitor, after).await }
            });
            let (mut at_web, from) = http.accept().await.unwrap();
            assert_ne!(from.port(), port, "it went past the redirector");
            assert_eq!(from.ip(), VISITOR_V4.parse::<IpAddr>().unwrap());
            read_until(&mut at_web, "\r\n\r\n").await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhttp";
            at_web.write_all(answer).await.unwrap();
            drop(at_web);
            asking.await.unwrap();
        }
        firewall::disarm().await.unwrap();
    });
    server.join().unwrap();
}

/// The redirector goes to the web server with the visitor's address and a port that the visitor may
/// use itself at the same time.
#[test]
fn the_redirectors_own_connections_are_in_no_visitors_way() {
    let network = Network::lay("o");
    let visitor = network.visitor.clone();
    let server = network.on_server(async move {
        let http = web(80, "http").await;
        let rules = Rules::usual(UID);
        let dir = tempfile::tempdir().unwrap();
        let _redirector = start_redirector(dir.path(), true, "");
        connect(dir.path()).await;
        firewall::arm(&rules).await.unwrap();
        let standing = websocket(&visitor).await;
        let from = http.seen().last().unwrap().from;
        assert_eq!(from.ip().to_canonical(), VISITOR_V4.parse::<IpAddr>().unwrap());

        let second = from_port(&visitor, from.port()).await;
        ask_by(&visitor, second).await;
        assert!(was_redirected(&http));
        visit(visitor.clone(), async move {
            let mut standing = TcpStream::from_std(standing).unwrap();
            standing.write_all(b"still there").await.unwrap();
            read_until(&mut standing, "still there").await;
        })
        .await;
        firewall::disarm().await.unwrap();
    });
    server.join().unwrap();
}

#[test]
fn sites_stay_up_without_the_capability_the_policy_route_or_the_table() {
    let network = Network::lay("w");
    let visitor = network.visitor.clone();
    let server = network.on_server(async move {
        let http = web(80, "http").await;
        let rules = Rules::usual(UID);
        let ask = || visit(visitor.clone(), get(at(SERVER_V4, 80), "other.example", "/"));
        {
            let dir = tempfile::tempdir().unwrap();
            let _redirector = start_redirector(dir.path(), true, "");
            connect(dir.path()).await;
            firewall::arm(&rules).await.unwrap();
            assert_eq!(body(&ask().await), "http");
            assert_eq!(last_from(&http), VISITOR_V4.parse::<IpAddr>().unwrap());
            // A network daemon that clears foreign rules, as some do when they start.
            run("ip", &["-4", "rule", "flush"]);
            for table in ["local", "main", "default"] {
                run("ip", &["-4", "rule", "add", "lookup", table]);
            }
            assert!(!firewall::is_armed(&rules).await.unwrap());
            assert_eq!(body(&ask().await), "http");
            assert_eq!(last_from(&http), SERVER_V4.parse::<IpAddr>().unwrap());
            firewall::arm(&rules).await.unwrap();
            assert!(firewall::is_armed(&rules).await.unwrap());
        }
        {
            let dir = tempfile::tempdir().unwrap();
            let _redirector = start_redirector(dir.path(), false, "");
            connect(dir.path()).await;
            assert_eq!(body(&ask().await), "http");
            assert!(was_redirected(&http));
            assert_eq!(last_from(&http), SERVER_V4.parse::<IpAddr>().unwrap());
            // IPv6 switched off is no hindrance.
            run("sysctl", &["-qw", "net.ipv6.conf.lo.disable_ipv6=1"]);
            firewall::disarm().await.unwrap();
            firewall::arm(&rules).await.unwrap();
            assert!(firewall::is_armed(&rules).await.unwrap());
            run("nft", &["flush", "ruleset"]);
            assert!(!firewall::is_armed(&rules).await.unwrap());
            assert_eq!(body(&ask().await), "http");
            // As the agent has them, with a mark for its own looks; and for some addresses alone.
            let addresses = [SERVER_V4, SERVER_V6].map(|a| a.parse().unwrap()).into();
            let marked = Rules { passing_mark: Some(1), ..rules.clone() };
            for rules in [marked, Rules { addresses, ..rules.clone() }] {
                firewall::arm(&rules).await.unwrap();
                assert!(firewall::is_armed(&rules).await.unwrap());
            }
            firewall::disarm().await.unwrap();
        }
    });
    server.join().unwrap();
}

#[test]
fn withdrawing_waits_for_those_on_their_way() {
    let network = Network::lay("g");
    let visitor = network.visitor.clone();
    let server = network.on_server(async move {
        let http = web(80, "http").await;
        let rules = Rules::usual(UID);
        let dir = tempfile::tempdir().unwrap();
        let _redirector = start_redirector(dir.path(), true, "");
        let client = connect(dir.path()).await;
        firewall::withdraw(&rules, &client, support::LONG).await.unwrap();
        firewall::arm(&rules).await.unwrap();
        let slow =
            tokio::spawn(visit(visitor.clone(), get(at(SERVER_V4, 80), "a.example", "/slow")));
        let under_way = async {
            while http.seen().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(support::LONG, under_way).await.unwrap();
        let withdrawing = {
            let (rules, client) = (rules.clone(), client.clone());
            tokio::spawn(async move { firewall::withdraw(&rules, &client, support::LONG).await })
        };
        let stood_down = async {
            while firewall::is_armed(&rules).await.unwrap() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(support::LONG, stood_down).await.unwrap();
        http.go_on(1);
        assert_eq!(body(&slow.await.unwrap()), "http");
        withdrawing.await.unwrap().unwrap();
        assert!(firewall::list().await.unwrap().is_empty());
    });
    server.join().unwrap();
}
