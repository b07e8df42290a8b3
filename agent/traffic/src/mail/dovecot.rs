//! Dovecot: the snippet that makes it read Ferry's tables, in the syntax of the version installed,
//! the proof that it does, and its sessions.
//!
//! A login is held by a user lookup that fails for the time being, keyed by domain and asked before
//! every other. It covers all ways in, whatever the provider's passwords are kept in: IMAP, POP3,
//! LMTP, master users and `doveadm`. Mail clients are told UNAVAILABLE and try again, where a refused
//! password would make them ask their owner for another.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::ids::DomainName;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::maps::{Dialect, PROBE_DOMAIN, Tables};
use super::procs::{self, Process};
use super::record::PasswdFile;
use super::run::{Output, Program};
use super::spec::MailSpec;
use super::store::{Age, Lock, Wanted};
use super::{MailConfig, store};

/// How long Dovecot may take to see a changed table: it looks at most once a second.
const SYNC: Duration = Duration::from_secs(3);
/// How long Dovecot may take to read its configuration again.
const SETTLE: Duration = Duration::from_secs(10);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(100);
/// `doveadm user`: the lookup failed for the time being (EX_TEMPFAIL).
const EX_TEMPFAIL: i32 = 75;

/// This server's Dovecot. What it has said of itself is remembered: one is made for each operation.
pub(super) struct Dovecot<'a> {
    pub config: &'a MailConfig,
    version: OnceCell<Option<Version>>,
    about: OnceCell<About>,
}

/// What does not change while an operation lasts.
struct About {
    /// The group that its authentication process belongs to.
    group: String,
    /// Where its master process writes its pid.
    base_dir: PathBuf,
}

/// Its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    /// As it tells it.
    pub text: String,
    /// The syntax it wants.
    pub dialect: Dialect,
}

impl<'c> Dovecot<'c> {
    pub fn new(config: &'c MailConfig) -> Self {
        Self { config, version: OnceCell::new(), about: OnceCell::new() }
    }

    fn program<'a>(&'a self, path: &'a Path) -> Program<'a> {
        Program {
            path,
            config: self.config.dovecot_config.as_deref(),
            timeout: self.config.command_timeout,
        }
    }

    fn doveconf(&self) -> Program<'_> {
        self.program(&self.config.programs.doveconf)
    }

    fn doveadm(&self) -> Program<'_> {
        self.program(&self.config.programs.doveadm)
    }

    /// Its version; none if it is not installed.
    pub async fn version(&self) -> Result<Option<&Version>, Fault> {
        let version = self.version.get_or_try_init(async || self.ask_version().await);
        version.await.map(Option::as_ref)
    }

    async fn ask_version(&self) -> Result<Option<Version>, Fault> {
        let program = Program { config: None, ..self.program(&self.config.programs.dovecot) };
        let Some(output) = program.try_run(&["--version"]).await? else {
            return Ok(None);
        };
        let text = output.stdout.split_whitespace().next().unwrap_or_default().to_owned();
        let mut numbers = text.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let dialect = if version >= (2, 4) { Dialect::V2_4 } else { Dialect::V2_3 };
        Ok(output.ok().then_some(Version { text, dialect }))
    }

    /// The syntax of its tables. Without a Dovecot nobody reads them.
    pub async fn dialect(&self) -> Result<Dialect, Fault> {
        Ok(self.version().await?.map_or(Dialect::V2_3, |version| version.dialect))
    }

    /// One setting, or none if this version has it not.
    pub async fn setting(&self, name: &str) -> Result<Option<String>, Fault> {
        let output = self.doveconf().run(&["-h", name]).await?;
        Ok(output.ok().then(|| output.stdout.trim().to_owned()))
    }

    /// One setting if the configuration says it; none if it is the default, which is another one for
    /// each kind of mailbox.
    pub async fn explicit(&self, name: &str) -> Result<Option<String>, Fault> {
        let output = self.doveconf().run(&["-n", "-h", name]).await?;
        let value = output.stdout.trim();
        Ok((output.ok() && !value.is_empty()).then(|| value.to_owned()))
    }

    /// One setting as it is for one protocol.
    pub async fn setting_of(&self, protocol: &str, name: &str) -> Result<Option<String>, Fault> {
        let filter = format!("protocol={protocol}");
        let output = self.doveconf().run(&["-f", &filter, "-h", name]).await?;
        Ok(output.ok().then(|| output.stdout.trim().to_owned()))
    }

    async fn about(&self) -> Result<&About, Fault> {
        let ask = async || {
            let args = ["-h", "default_internal_group", "base_dir"];
            let said = self.doveconf().succeed(&args).await?;
            let mut lines = said.lines().map(str::trim);
            match (lines.next(), lines.next()) {
                (Some(group), Some(base_dir)) => {
                    Ok(About { group: group.to_owned(), base_dir: base_dir.into() })
                }
                _ => Err(Fault::permanent(format!(
                    "{} does not tell Dovecot's group and directory",
                    self.config.programs.doveconf.display()
                ))
                .remedy("look at what doveconf default_internal_group base_dir says")),
            }
        };
        self.about.get_or_try_init(ask).await
    }

    /// The master process, if it runs.
    pub async fn master(&self) -> Result<Option<Process>, Fault> {
        let pid = store::read(&self.about().await?.base_dir.join("master.pid"))?;
        let pid = pid.and_then(|text| text.trim().parse().ok());
        Ok(pid.and_then(procs::process).filter(|p| p.name == "dovecot"))
    }

    fn table(&self, name: &str) -> PathBuf {
        self.config.dovecot_dir.join(name)
    }

    /// Whether the hook was ever begun.
    pub fn is_hooked(&self) -> bool {
        self.config.dovecot_snippet.exists()
    }

    /// The tables as files: readable by Dovecot's own user, and by nobody else. Who is held comes
    /// first.
    fn files(&self, tables: &Tables, gid: Option<u32>) -> [Wanted; 3] {
        [("held", &tables.held_logins), ("users", &tables.users), ("passwords", &tables.passwords)]
            .map(|(name, text)| Wanted {
                path: self.table(name),
                text: text.clone(),
                mode: 0o640,
                gid,
                age: Age::Newer,
            })
    }

    /// Writes the tables, such that no login slips in between: a hold is written before the mailbox
    /// that it holds, and taken back after it.
    pub async fn write(&self, lock: &Lock, tables: &Tables) -> Result<(), Fault> {
        let gid = self.group().await?;
        let dir = self.config.dovecot_dir.clone();
        let mut files = self.files(tables, Some(gid));
        lock.change(move || {
            store::make_directory_for(&dir, Some(gid))?;
            let before = store::read(&files[0].path)?.unwrap_or_default();
            let lifted = before.lines().any(|old| !files[0].text.lines().any(|new| new == old));
            if lifted {
                files.rotate_left(1);
            }
            files.iter().try_for_each(Wanted::write)
        })
        .await
    }

    /// The tables that do not hold what they should.
    pub fn wanted(&self, tables: &Tables) -> Vec<Wanted> {
        self.files(tables, None).into()
    }

    /// The group that Dovecot's authentication process belongs to.
    async fn group(&self) -> Result<u32, Fault> {
        // What is lifted must be lifted although somebody has broken the configuration meanwhile; that
        // it is lifted cannot be proved then, and that is told.
        let name = self.about().await.map_or("dovecot", |about| about.group.as_str());
        match nix::unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(group.gid.as_raw()),
            Ok(None) => Err(Fault::precondition(format!("Dovecot's group {name} does not exist"))
                .remedy("install Dovecot completely, or mend default_internal_group")),
            Err(e) => {
                Err(Fault::transient(format!("the group {name} cannot be looked up")).caused_by(&e))
            }
        }
    }

    fn snippet(&self, dialect: Dialect) -> String {
        let held = self.table("held").display().to_string();
        let users = self.table("users").display().to_string();
        let passwords = self.table("passwords").display().to_string();
        let head = "# Written by Ferry, which also removes it. It must be read before every other\n\
                    # passdb and userdb: accounts being moved are held here.\n";
        match dialect {
            Dialect::V2_3 => format!(
                "{head}\
                 passdb {{\n  driver = passwd-file\n  args = username_format=%Lu {passwords}\n}}\n\
                 userdb {{\n  driver = passwd-file\n  args = username_format=%Ld {held}\n  \
                 result_internalfail = return-fail\n}}\n\
                 userdb {{\n  driver = passwd-file\n  args = username_format=%Lu {users}\n}}\n"
            ),
            Dialect::V2_4 => format!(
                "{head}\
                 passdb ferry-passwords {{\n  driver = passwd-file\n  \
                 auth_username_format = %{{user | lower}}\n  passwd_file_path = {passwords}\n}}\n\
                 userdb ferry-held {{\n  driver = passwd-file\n  \
                 auth_username_format = %{{user | domain | lower}}\n  passwd_file_path = {held}\n  \
                 result_internalfail = return-fail\n}}\n\
                 userdb ferry-users {{\n  driver = passwd-file\n  \
                 auth_username_format = %{{user | lower}}\n  passwd_file_path = {users}\n}}\n"
            ),
        }
    }

    /// Puts the snippet into Dovecot's configuration, unless it is there already, and proves that
    /// Dovecot reads it before everything else. The tables must exist.
    pub async fn install(&self, lock: &Lock, version: &Version) -> Result<(), Fault> {
        let path = &self.config.dovecot_snippet;
        let text = self.snippet(version.dialect);
        let snippet = Wanted { path: path.clone(), text, mode: 0o644, gid: None, age: Age::Newer };
        let fresh = snippet.differs()?;
        if fresh {
            lock.change(move || snippet.write()).await?;
            if let Err(fault) = self.check_order().await {
                // Dovecot as it was is better than a Dovecot that may not start.
                self.remove_files(lock, vec![path.clone()]).await?;
                return Err(fault);
            }
        }
        if fresh && self.master().await?.is_some() {
            self.reload().await?;
        }
        Ok(())
    }

    /// Makes Dovecot read its configuration again, and proves that it then reads the tables.
    async fn reload(&self) -> Result<(), Fault> {
        self.doveadm().change("service.dovecot.reload", &["reload"]).await?;
        self.await_hold(PROBE_DOMAIN, true, SETTLE).await
    }

    /// Takes the snippet out again.
    pub async fn remove(&self, lock: &Lock) -> Result<(), Fault> {
        // Its programs may be gone already: the files are ours all the same.
        let works = self.is_hooked() && self.version().await?.is_some();
        self.remove_files(lock, vec![self.config.dovecot_snippet.clone()]).await?;
        if works && self.master().await?.is_some() {
            self.doveadm().change("service.dovecot.reload", &["reload"]).await?;
            self.await_hold(PROBE_DOMAIN, false, SETTLE).await?;
        }
        let tables = self.files(&Tables::default(), None);
        self.remove_files(lock, tables.into_iter().map(|file| file.path).collect()).await?;
        match std::fs::remove_dir(&self.config.dovecot_dir) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => {
                let dir = self.config.dovecot_dir.display();
                Err(Fault::io(format!("{dir} cannot be removed"), &e))
            }
        }
    }

    async fn remove_files(&self, lock: &Lock, paths: Vec<PathBuf>) -> Result<(), Fault> {
        lock.change(move || paths.iter().try_for_each(|path| store::remove(path))).await
    }

    /// The databases of passwords and users, in Dovecot's order.
    async fn databases(&self) -> Result<Vec<Block>, Fault> {
        let text = self.doveconf().succeed(&["-n"]).await?;
        Ok(blocks(&text).into_iter().filter(|b| b.kind == "passdb" || b.kind == "userdb").collect())
    }

    async fn check_order(&self) -> Result<(), Fault> {
        let databases = self.databases().await.map_err(|f| {
            f.context("Dovecot does not accept the snippet that holds logins during a move")
        })?;
        for (kind, table) in [("passdb", "passwords"), ("userdb", "held")] {
            let table = self.table(table).display().to_string();
            let first = databases.iter().find(|b| b.kind == kind);
            if !first.is_some_and(|b| b.names(&table)) {
                return Err(Fault::precondition(format!(
                    "Dovecot asks another {kind} before Ferry's, so logins could not be held"
                ))
                .remedy(format!(
                    "have dovecot.conf include {} before its first passdb and userdb",
                    self.config.dovecot_snippet.display()
                )));
            }
        }
        Ok(())
    }

    /// The provider's passwd-files with passwords, and whether there are passwords elsewhere.
    pub async fn passwd_files(&self) -> Result<(Vec<PasswdFile>, Vec<String>), Fault> {
        let (mut files, mut others) = (Vec::new(), Vec::new());
        let own = self.table("passwords").display().to_string();
        for block in self.databases().await? {
            if block.kind != "passdb" || block.names(&own) {
                continue;
            }
            let is = |name: &str| block.get(name) == Some("yes");
            if is("deny") || is("master") {
                continue;
            }
            let driver = block.get("driver").unwrap_or(&block.name);
            match block.passwd_file() {
                Some(file) if driver == "passwd-file" => files.push(file),
                _ => others.push(driver.to_owned()),
            }
        }
        Ok((files, others))
    }

    /// What `doveadm user` says; none if there is no passdb. Without one Dovecot's authentication ends as
    /// soon as it starts, so that nobody can log in, and who asks it fails for the time being or waits
    /// without an answer.
    async fn user(&self, args: &[&str]) -> Result<Option<Output>, Fault> {
        // The hook has one.
        if !self.is_hooked() && !self.databases().await?.iter().any(|b| b.kind == "passdb") {
            return Ok(None);
        }
        self.doveadm().run(&[&["user"], args].concat()).await.map(Some)
    }

    /// Whether logins of `domain` are held, as Dovecot itself says. Any local part will do.
    pub async fn holds(&self, domain: &str) -> Result<bool, Fault> {
        let output = self.user(&[&format!("postmaster@{domain}")]).await?;
        Ok(output.is_some_and(|output| output.code == Some(EX_TEMPFAIL)))
    }

    /// Makes sure that Dovecot holds, or does not hold, the logins of `domain`. `persist`: one that
    /// has not read its configuration since the hook was put in, because a crash came between, is
    /// made to.
    pub async fn prove_hold(&self, domain: &str, held: bool, persist: bool) -> Result<(), Fault> {
        match self.await_hold(domain, held, SYNC).await {
            Err(_) if persist => {}
            seen => return seen,
        }
        self.reload().await?;
        self.await_hold(domain, held, SETTLE).await
    }

    async fn await_hold(&self, domain: &str, held: bool, bound: Duration) -> Result<(), Fault> {
        let deadline = Instant::now() + bound;
        // What it remembers of earlier lookups. Not every Dovecot remembers.
        self.doveadm().run(&["auth", "cache", "flush"]).await?;
        loop {
            if self.holds(domain).await? == held {
                return Ok(());
            }
            if Instant::now() > deadline {
                let state = if held { "does not hold" } else { "still holds" };
                return Err(Fault::transient(format!(
                    "Dovecot {state} the logins of {domain} {} s after it was told to",
                    bound.as_secs()
                ))
                .remedy("look at Dovecot's log on this server"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The home that Dovecot itself has for a mailbox; none if it does not know it.
    pub async fn home(&self, address: &str) -> Result<Option<String>, Fault> {
        let output = self.user(&["-f", "home", address]).await?.filter(Output::ok);
        Ok(output.map(|output| output.stdout.trim().to_owned()))
    }

    /// All that Dovecot knows of a user, as `doveadm` prints it; empty if it does not know it.
    pub async fn fields(&self, address: &str) -> Result<String, Fault> {
        let output = self.user(&[address]).await?.filter(Output::ok);
        Ok(output.map(|output| output.stdout).unwrap_or_default())
    }

    /// Ends the sessions of an account's domains, and waits until there are none.
    pub async fn end_sessions(&self, spec: &MailSpec) -> Result<(), Fault> {
        let deadline = Instant::now() + self.config.drain_timeout;
        for domain in spec.domains() {
            while let Some(sessions) = self.sessions(domain).await? {
                if Instant::now() > deadline {
                    return Err(Fault::transient(format!(
                        "mail sessions of {domain} did not end within {} s: {sessions}",
                        self.config.drain_timeout.as_secs()
                    ))
                    .remedy("look at what these processes wait for, then try again"));
                }
                // Its exit code only says whether there was any.
                self.doveadm().run(&["kick", &format!("*@{domain}")]).await?;
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// The sessions of a domain, as a word for a person; none if there are none.
    async fn sessions(&self, domain: &DomainName) -> Result<Option<String>, Fault> {
        let text =
            self.doveadm().succeed(&["-f", "tab", "who", "-1", &format!("*@{domain}")]).await?;
        let sessions: Vec<String> = text
            .lines()
            .skip(1)
            .filter_map(|line| {
                let mut fields = line.split('\t');
                let (user, service, pid) = (fields.next()?, fields.next()?, fields.next()?);
                let of = user.rsplit_once('@').map(|(_, d)| d.to_ascii_lowercase());
                (of.as_deref() == Some(domain.as_str())).then(|| format!("{service} {pid}"))
            })
            .take(10)
            .collect();
        Ok((!sessions.is_empty()).then(|| sessions.join(", ")))
    }
}

/// A block of `doveconf -n` at the top level.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    kind: String,
    name: String,
    settings: Vec<(String, String)>,
}

impl Block {
    fn get(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Whether one of its settings names this file.
    fn names(&self, path: &str) -> bool {
        self.settings.iter().any(|(_, v)| v.split_whitespace().any(|word| word == path))
    }

    fn passwd_file(&self) -> Option<PasswdFile> {
        if let Some(path) = self.get("passwd_file_path") {
            let format = self.get("auth_username_format").unwrap_or("%{user}");
            let scheme = self.get("default_password_scheme");
            return Some(PasswdFile {
                path: path.to_owned(),
                username_format: format.to_owned(),
                default_scheme: scheme.unwrap_or("CRYPT").to_ascii_uppercase(),
            });
        }
        let mut file = PasswdFile {
            path: String::new(),
            username_format: "%u".to_owned(),
            default_scheme: "CRYPT".to_owned(),
        };
        for word in self.get("args")?.split_whitespace() {
            match word.split_once('=') {
                Some(("scheme", scheme)) => file.default_scheme = scheme.to_ascii_uppercase(),
                Some(("username_format", format)) => file.username_format = format.to_owned(),
                _ => file.path = word.to_owned(),
            }
        }
        (!file.path.is_empty()).then_some(file)
    }
}

/// The blocks at the top level of `doveconf -n`, with their own settings.
fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut depth = 0_usize;
    let mut open: Option<Block> = None;
    for line in text.lines().map(str::trim) {
        if let Some(head) = line.strip_suffix('{') {
            if depth == 0 {
                let mut words = head.split_whitespace();
                open = Some(Block {
                    kind: words.next().unwrap_or_default().to_owned(),
                    name: words.next().unwrap_or_default().to_owned(),
                    settings: Vec::new(),
                });
            }
            depth += 1;
        } else if line == "}" {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                found.extend(open.take());
            }
        } else if depth == 1
            && let (Some(block), Some((key, value))) = (open.as_mut(), line.split_once('='))
        {
            block.settings.push((key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_files_are_found_in_both_syntaxes() {
        let old = "protocols = imap\npassdb {\n  args = scheme=ssha512 username_format=%Ln /etc/%d/users\n  \
                   driver = passwd-file\n}\nservice auth {\n  unix_listener x {\n    mode = 0600\n  }\n}\n";
        let new = "passdb passwd-file {\n  passwd_file_path = /etc/users\n  fields {\n    a = b\n  }\n}\n";
        let old = blocks(old);
        assert_eq!(old.len(), 2);
        assert_eq!(
            old[0].passwd_file(),
            Some(PasswdFile {
                path: "/etc/%d/users".to_owned(),
                username_format: "%Ln".to_owned(),
                default_scheme: "SSHA512".to_owned(),
            })
        );
        assert_eq!(old[1].settings, []);
        let new = blocks(new);
        assert_eq!((new[0].kind.as_str(), new[0].name.as_str()), ("passdb", "passwd-file"));
        assert_eq!(new[0].get("a"), None, "it belongs to a block inside");
        let file = new[0].passwd_file().expect("a passwd-file");
        assert_eq!((file.path.as_str(), file.default_scheme.as_str()), ("/etc/users", "CRYPT"));
    }
}
