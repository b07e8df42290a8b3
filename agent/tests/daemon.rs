//! The agent's own process: what it answers, that nothing keeps it from its promises, and that it stops
//! when it is told to.

#[path = "../src/testing/authority.rs"]
mod authority;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use authority::Authority;
use ferry_proto::channel::Party;
use rustix::process::{Pid, Signal, kill_process};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

const PATIENCE: Duration = Duration::from_secs(30);

/// A running agent.
struct Agent {
    child: Child,
    dir: tempfile::TempDir,
    metrics: SocketAddr,
    /// Takes connections and never answers: a controller that hangs.
    controller: TcpListener,
}

impl Agent {
    /// Enrolled, its certificate due for renewal, with `ledger`.
    fn start(peer_listen: SocketAddr, metrics: SocketAddr, ledger: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let controller = TcpListener::bind("127.0.0.1:0").unwrap();
        enrol(dir.path(), controller.local_addr().unwrap());
        std::fs::write(dir.path().join("ledger"), ledger).unwrap();
        let config = dir.path().join("agent.toml");
        let text = format!(
            "peer_listen = \"{peer_listen}\"\nmetrics_listen = \"{metrics}\"\n\
             state_directory = {0:?}\naccounts_directory = {0:?}\ninventory_directory = {0:?}\n",
            dir.path()
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ferry-agent"))
            .args(["--config".as_ref(), config.as_os_str(), "run".as_ref()])
            .env_remove("JOURNAL_STREAM")
            .env_remove("NOTIFY_SOCKET")
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        Self { child, dir, metrics, controller }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Waits until `such` gives something.
    fn until<T>(&mut self, what: &str, such: impl Fn(&Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = such(self) {
                return found;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended with {status}: {}", self.log());
            }
            assert!(began.elapsed() < PATIENCE, "no {what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.metrics).ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn terminate(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// How it ended, after SIGTERM.
    fn ended(&mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        (self.child.wait().unwrap(), began.elapsed())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn enrol(dir: &Path, controller: SocketAddr) {
    let authority = Authority::new();
    let identity = dir.join("identity");
    let party = Party::Agent("web1".parse().unwrap());
    authority.credentials(&party, 40, 60).store(&identity).unwrap();
    let enrolled = serde_json::json!({
        "controller": controller.to_string(),
        "grant_key": authority.grant_key(),
        "role": "client",
    });
    ferry_proto::channel::files::write_private(
        &identity.join("enrolled.json"),
        enrolled.to_string().as_bytes(),
    )
    .unwrap();
}

/// A ledger with one account, fenced by a boot before this one.
fn fenced_before_the_reboot() -> Vec<u8> {
    let of = serde_json::json!({
        "job": uuid::Uuid::now_v7(), "account": "shop", "direction": "outbound",
        "source": "web1", "target": "transit1",
        "source_peer": "127.0.0.1:7401", "target_peer": "127.0.0.1:7401", "epoch": 0,
    });
    let document = serde_json::json!({ "entry": "account", "name": "shop", "account": {
        "definition": { "name": "shop", "user": "shop", "home": "/home/shop" },
        "epoch": 0, "uid": 4711, "gid": 4711, "made": null, "closed": null,
        "standing": {
            "is": "fenced", "of": of, "began_unix_ms": 1, "complete_unix": 1, "ending": false,
            "deadline": { "boot_id": "the boot before", "boottime_ms": u64::MAX },
        },
    }})
    .to_string()
    .into_bytes();
    let mut bytes = b"ferryL1\n".to_vec();
    bytes.extend(u32::try_from(document.len()).unwrap().to_le_bytes());
    bytes.extend(&blake3::hash(&document).as_bytes()[..8]);
    bytes.extend(document);
    bytes
}

/// A port that nobody has, now.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn it_answers_monitoring_and_stops_in_time_although_the_controller_hangs() {
    let mut agent = Agent::start(free(), free(), b"");
    agent.until("answer", |a| a.get("/healthz").filter(|t| t.starts_with("HTTP/1.1 200")));
    let ready = agent.get("/readyz").unwrap();
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("not connected"), "{ready}");
    agent.until("gauges", |a| {
        let text = a.get("/metrics")?;
        let all =
            ["ferry_agent_connected 0", "ferry_certificate_expiry_seconds", "ferry_accounts{"];
        all.iter().all(|m| text.contains(m)).then_some(())
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut watched = runtime.block_on(async {
        let address = format!("http://{}", agent.metrics);
        let channel = tonic::transport::Endpoint::new(address).unwrap().connect().await.unwrap();
        let mut health = HealthClient::new(channel);
        let request = HealthCheckRequest { service: String::new() };
        let now = health.check(request.clone()).await.unwrap().into_inner();
        assert_eq!(now.status(), ServingStatus::Serving);
        let mut watched = health.watch(request).await.unwrap().into_inner();
        let first = watched.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        watched
    });
    // The link and the renewal both wait for the controller.
    let _dialled = [agent.controller.accept().unwrap(), agent.controller.accept().unwrap()];
    agent.terminate();
    let (status, took) = agent.ended();
    assert!(status.success(), "{status}: {}", agent.log());
    assert!(took < Duration::from_secs(10), "{took:?}");
    let last = runtime.block_on(async { watched.message().await });
    assert_eq!(last.unwrap().unwrap().status(), ServingStatus::NotServing);
}

#[test]
fn a_fence_ends_although_no_port_can_be_had_and_they_are_taken_when_they_can() {
    let taken =
        [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let [peers, metrics] = [0, 1].map(|n: usize| taken[n].local_addr().unwrap());
    let mut agent = Agent::start(peers, metrics, &fenced_before_the_reboot());
    agent.until("end of the fence", |a| {
        let ledger = std::fs::read(a.dir.path().join("ledger")).unwrap();
        String::from_utf8_lossy(&ledger).contains("\"ending\":true").then_some(())
    });
    agent.until("word of it", |a| {
        let log = a.log();
        ["peers are not answered", "metrics are not served", "again_in_ms"]
            .iter()
            .all(|w| log.contains(w))
            .then_some(())
    });
    drop(taken);
    agent.until("peer port", |_| TcpStream::connect(peers).ok());
    agent.until("metrics", |a| a.get("/healthz"));
    agent.terminate();
    assert!(agent.ended().0.success());
}

#[test]
fn a_configuration_that_the_service_would_refuse_is_refused_by_check() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    for (text, right) in [("log = \"ferry=loud\"\n", false), ("log = \"info\"\n", true)] {
        std::fs::write(&config, text).unwrap();
        let checked = Command::new(env!("CARGO_BIN_EXE_ferry-agent"))
            .args(["--config".as_ref(), config.as_os_str(), "check".as_ref()])
            .output()
            .unwrap();
        assert_eq!(checked.status.success(), right, "{checked:?}");
    }
}
