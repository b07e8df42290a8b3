//! The process: its configuration, its start, what survives it, and its end.

mod support;

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ferry_proto::FaultClass;
use ferry_proto::ids::Epoch;
use ferry_traffic::control::{RouteState, Target};
use support::origin::Origin;
use support::process::{PROGRAM, Process, connect, write_config};
use support::{body, get, limits, route, status};

/// Addresses that are free now: a process that is started again needs the same ones.
fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    let listeners: Vec<_> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    std::array::from_fn(|i| listeners[i].local_addr().unwrap())
}

/// Where a process listens.
struct Place {
    dir: tempfile::TempDir,
    http: SocketAddr,
    config: std::path::PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let [http, https, peer] = free_addresses();
    let addresses = format!("http = ['{http}']\nhttps = ['{https}']\npeer = ['{peer}']");
    let config = write_config(dir.path(), &addresses);
    Place { dir, http, config }
}

fn start(config: &Path) -> Process {
    Process::spawn(Command::new(PROGRAM).arg("--config").arg(config))
}

#[test]
fn the_configuration_can_be_checked() {
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let config = write_config(dir.path(), text);
        Command::new(PROGRAM).arg("--check").arg("--config").arg(config).output().unwrap()
    };
    assert!(check("max_connections = 100").status.success());
    let wrong = check("max_connectons = 100");
    assert!(!wrong.status.success());
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(said.contains("redirector.toml") && said.contains("line 3"), "{said}");
}

#[tokio::test]
async fn routes_outlive_a_killed_process_and_need_no_agent() {
    let place = place();
    let origin = Origin::start("a").await;
    let mut first = start(&place.config);
    let client = connect(place.dir.path()).await;
    let alice = "alice".parse().unwrap();
    let local = route("alice", 5, &["a.example"], RouteState::Local, origin.address);
    client.set_route(local).await.unwrap();
    let quick = ferry_traffic::control::HoldLimits { wait_ms: 200, ..limits() };
    client.hold(&alice, Epoch(6), quick).await.unwrap();
    first.child.kill().unwrap();
    first.child.wait().unwrap();

    let _second = start(&place.config);
    let client = connect(place.dir.path()).await;
    assert_eq!(status(&get(place.http, "a.example", "/").await), 503, "still held");
    let older = client.release(&alice, Epoch(5), Target::Local).await.unwrap_err();
    assert_eq!(older.class, FaultClass::Fenced);
    client.release(&alice, Epoch(6), Target::Local).await.unwrap();
    assert_eq!(body(&get(place.http, "a.example", "/").await), "a");
}

#[test]
fn damaged_routes_stop_the_start() {
    let place = place();
    std::fs::write(place.dir.path().join("routes.json"), "{").unwrap();
    let output = Command::new(PROGRAM).arg("--config").arg(&place.config).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("routes.json is damaged"), "{said}");
}

#[tokio::test]
async fn a_route_that_cannot_be_saved_is_refused_but_a_release_is_not() {
    let place = place();
    let origin = Origin::start("a").await;
    // A file system of its own, so that it can be full.
    let full = place.dir.path().join("full");
    std::fs::create_dir(&full).unwrap();
    let mounted = Mounted::tmpfs(&full);
    let [http, https, peer] = free_addresses();
    let config =
        write_config(&full, &format!("http = ['{http}']\nhttps = ['{https}']\npeer = ['{peer}']"));
    let _process = start(&config);
    let client = connect(&full).await;
    let alice = "alice".parse().unwrap();
    let local = route("alice", 1, &["a.example"], RouteState::Local, origin.address);
    client.set_route(local).await.unwrap();
    client.hold(&alice, Epoch(1), limits()).await.unwrap();
    let remote = RouteState::Remote { peer: "192.0.2.1:7481".parse().unwrap() };
    let bob = route("bob", 1, &["b.example"], remote, origin.address);
    client.set_route(bob.clone()).await.unwrap();
    let carol = route("carol", 1, &["c.example"], RouteState::Local, origin.address);
    client.set_route(carol.clone()).await.unwrap();
    client.hold(&carol.account, Epoch(1), limits()).await.unwrap();
    mounted.fill();
    let fault = client.hold(&alice, Epoch(2), limits()).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Precondition, "{fault}");
    client.release(&alice, Epoch(1), Target::Local).await.unwrap();
    assert_eq!(body(&get(http, "a.example", "/").await), "a");
    // Who was held passes on to where the account has moved, too.
    let state = RouteState::Remote { peer: "192.0.2.3:7481".parse().unwrap() };
    let moved = ferry_traffic::control::AccountRoute { state, epoch: Epoch(2), ..carol };
    client.set_route(moved).await.unwrap();
    // What is on the disk as it stands is not held up by what is not.
    client.set_route(bob.clone()).await.unwrap();
    client.set_peers([].into()).await.unwrap();
    let moved = RouteState::Remote { peer: "192.0.2.2:7481".parse().unwrap() };
    client
        .set_route(ferry_traffic::control::AccountRoute { state: moved, ..bob })
        .await
        .unwrap_err();
}

/// A small file system, unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(at: &'a Path) -> Self {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), at, Some("tmpfs"), flags, Some("size=64k"))
            .expect("these tests run as root");
        Self(at)
    }

    fn fill(&self) {
        let written = std::fs::write(self.0.join("filler"), vec![0; 1024 * 1024]);
        assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn asked_to_end_it_lets_running_requests_finish_and_refuses_waiting_ones() {
    let place = place();
    let origin = Origin::start("a").await;
    let mut process = start(&place.config);
    let client = connect(place.dir.path()).await;
    let local = route("alice", 1, &["a.example"], RouteState::Local, origin.address);
    client.set_route(local).await.unwrap();
    let hold = RouteState::Hold { limits: limits() };
    client.set_route(route("bob", 1, &["b.example"], hold, origin.address)).await.unwrap();
    let http = place.http;
    let slow = tokio::spawn(async move { get(http, "a.example", "/slow").await });
    let held = tokio::spawn(async move { get(http, "b.example", "/").await });
    let both = |running: u64, held: u64| {
        let client = client.clone();
        async move {
            loop {
                let accounts = client.status().await.unwrap();
                let sum = |f: fn(&ferry_traffic::control::Traffic) -> u64| -> u64 {
                    accounts.iter().map(|a| f(&a.traffic)).sum()
                };
                if sum(|t| t.running) == running && sum(|t| t.held_now) == held {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    tokio::time::timeout(support::LONG, both(1, 1)).await.unwrap();
    let ending = tokio::task::spawn_blocking(move || process.terminate());
    // It has taken the signal once it accepts no more control connections.
    let refused = async {
        while client.status().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(support::LONG, refused).await.unwrap();
    origin.go_on(1);
    assert_eq!(body(&slow.await.unwrap()), "a");
    assert_eq!(status(&held.await.unwrap()), 503);
    let took = ending.await.unwrap();
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test]
async fn sockets_from_systemd_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let [http, https, peer] = free_addresses();
    let control = dir.path().join("control.sock");
    let config = write_config(dir.path(), "http = ['192.0.2.1:1']");
    let mut command = Command::new("systemd-socket-activate");
    for listen in [http.to_string(), https.to_string(), peer.to_string()] {
        command.arg("-l").arg(listen);
    }
    command
        .arg("-l")
        .arg(&control)
        .arg("--fdname=http:https:peer:control")
        .arg(PROGRAM)
        .arg("--config")
        .arg(config);
    let _process = Process::spawn(&mut command);
    let client = connect(dir.path()).await;
    let origin = Origin::start("a").await;
    let local = route("alice", 1, &["a.example"], RouteState::Local, origin.address);
    client.set_route(local).await.unwrap();
    assert_eq!(body(&get(http, "a.example", "/").await), "a");
}

#[tokio::test]
async fn only_root_and_the_own_user_may_control_it() {
    let place = place();
    let _process = start(&place.config);
    connect(place.dir.path()).await;
    let socket = place.dir.path().join("control.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Even where somebody opened the way.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    std::fs::set_permissions(place.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let ask = |user: &str| {
        let program = "use IO::Socket::UNIX; $SIG{PIPE} = 'IGNORE'; \
             my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $!; print 'connected '; \
             print $s qq({\"ask\":\"status\"}\\n); $s->flush; print <$s> // 'nothing';";
        let output = Command::new("setpriv")
            .args([&format!("--reuid={user}"), "--clear-groups", "perl", "-e", program])
            .arg(&socket)
            .output()
            .unwrap();
        format!("{output:?}")
    };
    let (root, other) = (ask("0"), ask("65534"));
    assert!(root.contains("connected") && root.contains("accounts"), "{root}");
    assert!(other.contains("connected nothing"), "{other}");
}
