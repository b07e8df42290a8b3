//! Servers for these tests: an agent each, on a ledger, a user database and a redirector of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use ferry_host::Layout;
use ferry_proto::account::Definition;
use ferry_proto::channel::{
    self, CaCertificate, Connections, Credentials, Identity, Limits, Listener, Party, PeerListener,
    unix_now,
};
use ferry_proto::command::{Direction, Forced, Move};
use ferry_proto::grant::{Grant, GrantKey, SignedGrant};
use ferry_proto::ids::{AccountName, Epoch, JobId, ServerName};
use ferry_traffic::client::Redirector as Client;
use ferry_traffic::control::RouteState;
use ferry_traffic::mail::{Mail, MailConfig};
use ferry_traffic::redirector::{Redirector, Sockets};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::config::{Config, Hold};
use crate::ledger::{Account, Ledger, Standing};
use crate::peer;
use crate::work::{Job, record};

/// The account's user, of the whole machine no other test's: its processes are looked for and ended.
fn free_uid() -> u32 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    1_000_000_000 + std::process::id() * 64 + TAKEN.fetch_add(1, Ordering::Relaxed)
}

/// The first address at which a server may be reached by its peers.
const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7401);

/// Runs `work` with a network and a user database of its own.
pub fn alone<F: Future<Output = ()>>(work: impl FnOnce(World) -> F + Send + 'static) {
    let ran = std::thread::spawn(move || {
        let dir = tempfile::tempdir().unwrap();
        own_namespaces(dir.path().join("passwd"));
        channel::install_crypto_provider();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work(World::new(dir)));
    })
    .join();
    if let Err(panic) = ran {
        std::panic::resume_unwind(panic);
    }
}

/// All that this thread starts has them too.
fn own_namespaces(passwd: PathBuf) {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests run as root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .unwrap();
    let known = fs::read_to_string("/etc/passwd").unwrap();
    fs::write(&passwd, known + "ferry-redirector:x:64872:64872::/:/usr/sbin/nologin\n").unwrap();
    mount(Some(&passwd), "/etc/passwd", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|s| s.success()), "the package iproute2 is needed");
}

/// An authority, and what it signs grants with.
pub struct World {
    /// The account's user.
    pub uid: u32,
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    ca: String,
    grants: Ed25519KeyPair,
}

/// A server. Its agent may be started again on the same ledger.
pub struct Server {
    pub agent: Arc<Agent>,
    uid: u32,
    pub dir: PathBuf,
    redirector: Redirector,
}

impl World {
    fn new(dir: tempfile::TempDir) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = params.self_signed(&key).unwrap().pem();
        let grants = Ed25519KeyPair::generate().unwrap();
        Self { uid: free_uid(), dir, issuer: Issuer::new(params, key), ca, grants }
    }

    /// The server `name`, with the account's user and home, and nothing in its ledger.
    pub async fn server(&self, name: &str) -> Server {
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        let ledger = Ledger::open(&dir.join("ledger")).unwrap();
        self.server_on(name, ledger)
    }

    /// Where the server `name` keeps everything.
    pub fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same on this ledger.
    pub fn server_on(&self, name: &str, ledger: Ledger) -> Server {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        user_database(&dir, self.uid);
        let config = ferry_traffic::config::Config {
            http: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            https: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            peer: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            control: dir.join("control.sock"),
            state_dir: dir.clone(),
            ..Default::default()
        };
        let sockets = Sockets::bind(&config).unwrap();
        let redirector = Redirector::start(config, sockets).unwrap();
        Server { agent: self.agent(name, &dir, ledger), uid: self.uid, dir, redirector }
    }

    /// `server` after its agent has died and was started again.
    pub fn restarted(&self, server: Server) -> Server {
        let Server { agent, uid, dir, redirector } = server;
        let name = agent.name.to_string();
        drop(agent);
        let ledger = Ledger::open(&dir.join("ledger")).unwrap();
        Server { agent: self.agent(&name, &dir, ledger), uid, dir, redirector }
    }

    fn agent(&self, name: &str, dir: &std::path::Path, ledger: Ledger) -> Arc<Agent> {
        // A target is not patient: what does not open is refused after a third of this.
        let hold = Hold { wait_seconds: 1, ..Hold::default() };
        let config = Config {
            state_directory: dir.to_owned(),
            accounts_directory: dir.join("accounts.d"),
            inventory_directory: dir.join("inventory.d"),
            hold,
            ..Config::default()
        };
        let grant_key = GrantKey::from_bytes(self.grants.public_key().as_ref()).unwrap();
        let connections = Connections::new(Limits::default());
        let client = Client::at(dir.join("control.sock"));
        let identity = self.identity(name);
        let mut agent =
            Agent::new(config, identity, grant_key, connections, ledger, client).unwrap();
        let own = Arc::get_mut(&mut agent).unwrap();
        own.layout = Layout::below(dir);
        own.mail = Mail::new(MailConfig { state_dir: dir.join("mail"), ..MailConfig::default() });
        agent
    }

    fn identity(&self, name: &str) -> Arc<Identity> {
        let party = Party::Agent(name.parse().unwrap());
        let ca = CaCertificate::from_pem(&self.ca).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::minutes(1);
        params.not_after = now + time::Duration::hours(1);
        params.subject_alt_names = vec![
            SanType::DnsName(party.dns_name().try_into().unwrap()),
            SanType::URI(party.uri(ca.fingerprint()).try_into().unwrap()),
        ];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let credentials = Credentials::new(&key.serialize_pem(), &certificate, &self.ca);
        Identity::new(&credentials).unwrap()
    }

    /// Source and target of a move, the source armed, the target ready to receive but not listening.
    pub async fn armed_pair(&self) -> (Server, Server, Listener, Job) {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let of = a_move(listener.address());
        let (source, target) = (self.server("web1").await, self.server("transit1").await);
        source.stands(Standing::Armed { of: of.clone() }).await;
        let said = Box::new(record::of_account(&source.agent, &account()).await.unwrap());
        target.stands(Standing::Receiving { of: of.clone(), source: said, before: None }).await;
        let job = self.job(&source, &of);
        (source, target, listener, job)
    }

    /// A command to a server, of a move whose target is opened by force, as the controller signs it.
    pub fn forcing(&self, server: &Server, of: &Move, forced: Forced) -> Job {
        Job { grant: Some(self.grant(of, Some(forced))), ..self.job(server, of) }
    }

    fn grant(&self, of: &Move, forced: Option<Forced>) -> SignedGrant {
        let grant = Grant {
            id: uuid::Uuid::now_v7(),
            job: of.job,
            account: of.account.clone(),
            direction: of.direction,
            source: of.source.clone(),
            target: of.target.clone(),
            epoch: of.epoch,
            not_before: unix_now(),
            expires: unix_now() + 600,
            controller_generation: 0,
            forced,
            approvals: Vec::new(),
        };
        grant.sign(&self.grants).unwrap()
    }

    /// A command of the move to `server`.
    pub fn job(&self, server: &Server, of: &Move) -> Job {
        Job {
            agent: server.agent.clone(),
            of: of.clone(),
            grant: Some(self.grant(of, None)),
            cancel: CancellationToken::new(),
            progress: watch::Sender::default(),
        }
    }
}

/// A move of the account from `web1` to `transit1`, whose peer port is `target_peer`.
pub fn a_move(target_peer: SocketAddr) -> Move {
    let server = |name: &str| name.parse::<ServerName>().unwrap();
    Move {
        job: JobId::new_now(),
        account: account(),
        direction: Direction::Outbound,
        source: server("web1"),
        target: server("transit1"),
        source_peer: PEER,
        target_peer,
        epoch: Epoch::default(),
    }
}

pub fn account() -> AccountName {
    "shop".parse().unwrap()
}

/// A move to where nobody listens.
pub fn a_move_to_nowhere() -> Move {
    a_move(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)))
}

impl Server {
    pub fn definition(&self) -> Definition {
        let json = serde_json::json!({ "name": "shop", "user": "shop", "home": self.home() });
        serde_json::from_value(json).unwrap()
    }

    pub fn home(&self) -> PathBuf {
        self.dir.join("home/shop")
    }

    pub fn standing(&self) -> Standing {
        self.agent.account(&account()).expect("the ledger knows the account").standing
    }

    /// Answers peers.
    pub fn listen(&self, listener: Listener) {
        let agent = self.agent.clone();
        let peers = PeerListener::new(listener, &agent.identity, &agent.connections).unwrap();
        tokio::spawn(peer::serve(agent, peers, CancellationToken::new()));
    }

    /// Writes down that the account stands so.
    pub async fn stands(&self, standing: Standing) {
        let account = Account {
            definition: self.definition(),
            epoch: Epoch::default(),
            uid: self.uid,
            gid: self.uid,
            standing,
            made: None,
            came_from: None,
            taken_back: None,
            served_again_unix_ms: None,
            forced: None,
            wound_down: None,
            closed: None,
            refreshed: None,
            after_open: None,
        };
        self.agent.set_account(&self::account(), Some(account)).await.unwrap();
    }

    /// Where the redirector takes visitors.
    pub fn http(&self) -> SocketAddr {
        self.redirector.http()[0]
    }

    /// Where visitors of the account go.
    pub async fn route(&self) -> RouteState {
        let all = self.agent.redirector.status().await.unwrap();
        all.into_iter().find(|s| s.account == account()).expect("the account is routed").state
    }
}

fn user_database(dir: &std::path::Path, uid: u32) {
    for path in ["etc", "home/shop", "var/spool/cron/crontabs"] {
        fs::create_dir_all(dir.join(path)).unwrap();
    }
    let put = |file: &str, text: &str| fs::write(dir.join("etc").join(file), text).unwrap();
    put("passwd", &format!("root:x:0:0::/root:/bin/sh\nshop:x:{uid}:{uid}::/home/shop:/bin/sh\n"));
    put("group", &format!("root:x:0:\nshop:x:{uid}:\n"));
    put("shadow", "root:*:19000:0:99999:7:::\nshop:*:19000:0:99999:7:::\n");
    put("gshadow", "root:*::\nshop:!::\n");
    put("shells", "/bin/sh\n");
    fs::write(dir.join("home/shop/index.html"), "hello").unwrap();
    for path in ["home/shop", "home/shop/index.html"] {
        chown(dir.join(path), Some(uid), Some(uid)).unwrap();
    }
}
