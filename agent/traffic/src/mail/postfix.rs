//! Postfix: the hook that makes it read Ferry's tables, and reloading it until the tables are in effect.
//!
//! The hook is made once per server and adds to the provider's settings without changing what they
//! decide. Mailboxes opened by Ferry are delivered by Postfix's own virtual(8), under a service name
//! and settings of their own: it needs no listener of Dovecot's, delivers with the account's user and
//! group only, and leaves the provider's `virtual_transport` alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::maps::Tables;
use super::procs::{self, Process};
use super::run::Program;
use super::store::{Age, Lock, Wanted};
use super::{MAILBOX_SERVICE, MailConfig, PASS_ON_SERVICE, store};

/// How long a reload may take to reach the processes that decide on deliveries.
const SETTLE: Duration = Duration::from_secs(15);
/// How long a process that Postfix told to end may serve on before it is ended.
const LINGER: Duration = Duration::from_secs(1);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// The processes that decide where a message goes: with an old table they would still deliver.
const DECIDERS: &[&str] = &["qmgr", "oqmgr", "trivial-rewrite", "error"];

/// This server's Postfix. What it has said of itself is remembered: one is made for each operation.
pub(super) struct Postfix<'a> {
    pub config: &'a MailConfig,
    about: OnceCell<Option<About>>,
}

/// What does not change while an operation lasts.
struct About {
    version: String,
    /// The directory that all its processes work in.
    queue: PathBuf,
}

/// What the hook replaced, kept for its exact removal.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    parameters: BTreeMap<String, SavedParameter>,
}

/// One parameter of main.cf.
#[derive(Debug, Serialize, Deserialize)]
struct SavedParameter {
    /// What main.cf said; none: it did not mention the parameter.
    before: Option<String>,
    /// What the hook wrote.
    written: String,
}

/// Where the hook adds to a parameter.
#[derive(Clone, Copy)]
enum Place {
    Front,
    Back,
}

impl<'c> Postfix<'c> {
    pub fn new(config: &'c MailConfig) -> Self {
        Self { config, about: OnceCell::new() }
    }

    fn program<'a>(&'a self, path: &'a Path) -> Program<'a> {
        Program {
            path,
            config: self.config.postfix_config_dir.as_deref(),
            timeout: self.config.command_timeout,
        }
    }

    fn postconf(&self) -> Program<'_> {
        self.program(&self.config.programs.postconf)
    }

    /// None: it is not installed.
    async fn about(&self) -> Result<Option<&About>, Fault> {
        let ask = async || {
            let postconf = self.postconf();
            let said = postconf.try_succeed(&["-hx", "mail_version", "queue_directory"]).await?;
            let Some(said) = said else { return Ok(None) };
            let mut lines = said.lines().map(str::trim);
            match (lines.next(), lines.next()) {
                (Some(version), Some(queue)) => {
                    Ok(Some(About { version: version.to_owned(), queue: queue.into() }))
                }
                _ => Err(Fault::permanent(format!(
                    "{} does not tell Postfix's version and queue directory",
                    postconf.path.display()
                ))
                .remedy("look at what postconf mail_version queue_directory says")),
            }
        };
        self.about.get_or_try_init(ask).await.map(Option::as_ref)
    }

    /// Its version; none if it is not installed.
    pub async fn version(&self) -> Result<Option<&str>, Fault> {
        Ok(self.about().await?.map(|about| about.version.as_str()))
    }

    /// A parameter's value with all others put in.
    pub async fn value(&self, name: &str) -> Result<String, Fault> {
        Ok(self.postconf().succeed(&["-hx", name]).await?.trim().to_owned())
    }

    /// Where its queue is: the directory that all its processes work in.
    pub async fn queue_directory(&self) -> Result<&Path, Fault> {
        let about = self.about().await?.ok_or_else(|| self.postconf().absent())?;
        Ok(&about.queue)
    }

    /// The master process, if it runs.
    pub async fn master(&self) -> Result<Option<Process>, Fault> {
        Self::master_of(self.queue_directory().await?)
    }

    fn master_of(queue: &Path) -> Result<Option<Process>, Fault> {
        let pid = store::read(&queue.join("pid/master.pid"))?;
        let pid = pid.and_then(|text| text.trim().parse().ok());
        Ok(pid.and_then(procs::process).filter(|p| p.name == "master"))
    }

    /// Whether master.cf has a service.
    pub async fn has_service(&self, service: &str) -> Result<bool, Fault> {
        let output = self.postconf().run(&["-M", service]).await?;
        Ok(output.ok() && !output.stdout.trim().is_empty())
    }

    fn table(&self, name: &str) -> PathBuf {
        self.config.state_dir.join(name)
    }

    fn saved_path(&self) -> PathBuf {
        self.table("postconf.saved")
    }

    /// Whether the hook was ever begun.
    pub fn is_hooked(&self) -> bool {
        self.saved_path().exists()
    }

    /// The tables as files. None of them is secret.
    pub fn files(&self, tables: &Tables) -> Vec<Wanted> {
        [
            ("held_recipients", &tables.held_recipients),
            ("held_transport", &tables.held_transport),
            ("transport", &tables.transport),
            ("virtual_domains", &tables.virtual_domains),
            ("virtual_mailboxes", &tables.virtual_mailboxes),
            ("virtual_uids", &tables.virtual_uids),
            ("virtual_gids", &tables.virtual_gids),
        ]
        .map(|(name, text)| Wanted {
            path: self.table(name),
            text: text.clone(),
            mode: 0o644,
            gid: None,
            age: Age::Old,
        })
        .into()
    }

    fn additions(&self) -> Vec<(&'static str, Place, String)> {
        let table = |kind: &str, name: &str| format!("{kind}:{}", self.table(name).display());
        vec![
            (
                "transport_maps",
                Place::Front,
                format!(
                    "{}, {}",
                    table("regexp", "held_transport"),
                    table("texthash", "transport")
                ),
            ),
            (
                "smtpd_recipient_restrictions",
                Place::Front,
                format!("check_recipient_access {}", table("regexp", "held_recipients")),
            ),
            ("virtual_mailbox_domains", Place::Back, table("texthash", "virtual_domains")),
            ("virtual_mailbox_maps", Place::Back, table("texthash", "virtual_mailboxes")),
        ]
    }

    /// The lines of the hook in master.cf, by service.
    fn services(&self) -> [(&'static str, String); 2] {
        let table = |name: &str| format!("texthash:{}", self.table(name).display());
        // The Maildirs' own bounds are the account's quota, so there is no limit per mailbox here.
        let mailbox = format!(
            "{MAILBOX_SERVICE} unix - n n - - virtual -o virtual_mailbox_base=/ \
             -o virtual_mailbox_maps={} -o virtual_uid_maps={} -o virtual_gid_maps={} \
             -o virtual_mailbox_limit=0",
            table("virtual_mailboxes"),
            table("virtual_uids"),
            table("virtual_gids"),
        );
        // This mail was accepted for a mailbox that exists: a server that does not take it, because
        // it is not open yet or no longer, must not make it bounce.
        let pass_on = format!("{PASS_ON_SERVICE} unix - - n - - smtp -o soft_bounce=yes");
        [(MAILBOX_SERVICE, mailbox), (PASS_ON_SERVICE, pass_on)]
    }

    /// The lines of the hook that are not in master.cf.
    async fn missing_services(&self) -> Result<Vec<String>, Fault> {
        let there = self.served().await?;
        let mut wanted = Vec::from(self.services());
        wanted.retain(|(_, line)| !there.contains(&words(line)));
        Ok(wanted.into_iter().map(|(name, line)| format!("{name}/unix={line}")).collect())
    }

    /// What master.cf has under the names of the hook's services.
    async fn served(&self) -> Result<Vec<String>, Fault> {
        let names = self.services().map(|(name, _)| format!("{name}/unix"));
        let mut args = vec!["-M"];
        args.extend(names.iter().map(String::as_str));
        // What it does not have is only a warning to postconf.
        Ok(entries(&self.postconf().succeed(&args).await?))
    }

    /// What main.cf itself says, raw.
    async fn explicit(&self) -> Result<BTreeMap<String, String>, Fault> {
        let text = self.postconf().succeed(&["-n"]).await?;
        Ok(text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect())
    }

    fn saved(&self) -> Result<Saved, Fault> {
        let Some(text) = store::read(&self.saved_path())? else {
            return Ok(Saved::default());
        };
        serde_json::from_str(&text).map_err(|e| {
            Fault::permanent(format!("{} is damaged", self.saved_path().display()))
                .caused_by(&e)
                .remedy("remove Ferry's tables from main.cf by hand, then this file")
        })
    }

    /// Puts the hook into main.cf and master.cf, where it is not there already. The tables must exist.
    /// Whether anything changed, so that Postfix must read it.
    pub async fn install(&self, lock: &Lock) -> Result<bool, Fault> {
        let explicit = self.explicit().await?;
        let mut saved = self.saved()?;
        let mut edits = Vec::new();
        for (name, place, addition) in self.additions() {
            let before = explicit.get(name);
            if before.is_some_and(|b| b.contains(&addition)) {
                continue;
            }
            if name == "virtual_mailbox_maps" && self.accepts_any_recipient().await? {
                continue;
            }
            let default = self.postconf().succeed(&["-dh", name]).await?;
            let now = before.map_or(default.trim(), String::as_str);
            let written = match place {
                _ if now.is_empty() => addition,
                Place::Front => format!("{addition}, {now}"),
                Place::Back => format!("{now}, {addition}"),
            };
            edits.push(format!("{name}={written}"));
            let entry = SavedParameter { before: before.cloned(), written };
            saved.parameters.insert(name.to_owned(), entry);
        }
        let services = self.missing_services().await?;
        if edits.is_empty() && services.is_empty() {
            return Ok(false);
        }
        let text = serde_json::to_string_pretty(&saved)
            .map_err(|e| Fault::bug("Postfix's saved settings cannot be written").caused_by(&e))?;
        let saved = Wanted { path: self.saved_path(), text, mode: 0o600, gid: None, age: Age::Old };
        lock.change(move || saved.write()).await?;
        for entry in services {
            self.postconf().change("postfix.configure", &["-M", &entry]).await?;
        }
        if !edits.is_empty() {
            let mut args = vec!["-e"];
            args.extend(edits.iter().map(String::as_str));
            self.postconf().change("postfix.configure", &args).await?;
        }
        Ok(true)
    }

    /// A provider that names virtual domains but no mailboxes accepts every recipient of them. Naming
    /// ours would make Postfix refuse theirs.
    async fn accepts_any_recipient(&self) -> Result<bool, Fault> {
        let maps = self.value("virtual_mailbox_maps").await?;
        let domains = self.value("virtual_mailbox_domains").await?;
        let own = format!("texthash:{}", self.table("virtual_domains").display());
        let others = without(&domains, &own);
        Ok(maps.is_empty() && !others.is_empty())
    }

    /// Whether main.cf or master.cf names anything of Ferry's, whatever is kept beside it.
    pub async fn is_named(&self) -> Result<bool, Fault> {
        let ours = self.config.state_dir.display().to_string();
        let named = self.explicit().await?.values().any(|value| value.contains(&ours));
        Ok(named || !self.served().await?.is_empty())
    }

    /// Whether the hook is in main.cf and master.cf.
    pub async fn is_installed(&self) -> Result<bool, Fault> {
        let explicit = self.explicit().await?;
        let in_place = self.additions().iter().all(|(name, _, addition)| {
            // This one may have been left out on purpose.
            *name == "virtual_mailbox_maps"
                || explicit.get(*name).is_some_and(|now| now.contains(addition))
        });
        Ok(in_place && self.missing_services().await?.is_empty())
    }

    /// The services of master.cf that take mail from the network by rules of their own.
    pub async fn own_rules(&self) -> Result<Vec<String>, Fault> {
        let text = self.postconf().succeed(&["-P"]).await?;
        let mut services: Vec<String> = text
            .lines()
            .filter_map(|line| line.split_once(" = "))
            .filter_map(|(name, _)| name.trim().strip_suffix("/smtpd_recipient_restrictions"))
            .map(str::to_owned)
            .collect();
        services.dedup();
        Ok(services)
    }

    /// Which of these addresses virtual_alias_maps sends elsewhere, and where to.
    pub async fn aliases(&self, addresses: &[String]) -> Result<Vec<(String, String)>, Fault> {
        let maps = self.value("virtual_alias_maps").await?;
        let postmap = self.program(&self.config.programs.postmap);
        let mut found = Vec::new();
        for map in maps.split([',', ' ']).filter(|m| m.contains(':')) {
            // Answers with a failure when it finds none of them, and when it cannot look.
            let output = postmap.feed(&["-q", "-", map], &addresses.join("\n")).await?;
            for line in output.stdout.lines() {
                if let Some((address, target)) = line.split_once('\t')
                    && address != target.trim()
                {
                    found.push((address.to_owned(), target.trim().to_owned()));
                }
            }
        }
        Ok(found)
    }

    /// Takes the hook out again. What the provider has changed since is kept.
    pub async fn remove(&self) -> Result<(), Fault> {
        let explicit = self.explicit().await?;
        let saved = self.saved()?;
        for (name, _, addition) in self.additions() {
            let (Some(now), Some(kept)) = (explicit.get(name), saved.parameters.get(name)) else {
                continue;
            };
            let back = if *now == kept.written {
                kept.before.clone()
            } else {
                Some(without(now, &addition))
            };
            match back {
                Some(value) => {
                    self.postconf()
                        .change("postfix.configure", &["-e", &format!("{name}={value}")])
                        .await?;
                }
                None => {
                    self.postconf().change("postfix.configure", &["-X", name]).await?;
                }
            }
        }
        for (name, _) in self.services() {
            let entry = format!("{name}/unix");
            if self.has_service(&entry).await? {
                self.postconf().change("postfix.configure", &["-MX", &entry]).await?;
            }
        }
        Ok(())
    }

    /// Forgets the tables, once nothing reads them any more.
    pub async fn remove_tables(&self, lock: &Lock) -> Result<(), Fault> {
        let mut paths: Vec<PathBuf> =
            self.files(&Tables::default()).into_iter().map(|file| file.path).collect();
        paths.push(self.saved_path());
        lock.change(move || paths.iter().try_for_each(|path| store::remove(path))).await
    }

    /// [`Postfix::reload`], where Postfix knows the tables and there is one.
    pub async fn reload_hooked(&self) -> Result<bool, Fault> {
        if !self.is_hooked() || self.version().await?.is_none() {
            return Ok(false);
        }
        self.reload().await
    }

    /// Makes Postfix read its tables again, and waits until no process decides by the old ones.
    /// Whether it runs. If not, it reads the tables when it starts; what a master that was killed has
    /// left behind ends by itself.
    pub async fn reload(&self) -> Result<bool, Fault> {
        let queue = self.queue_directory().await?;
        let before = procs::at_work(queue, DECIDERS);
        let is_running = Self::master_of(queue)?.is_some();
        if is_running {
            self.program(&self.config.programs.postfix)
                .change("service.postfix.reload", &["reload"])
                .await?;
        }
        let start = Instant::now();
        let mut ended = false;
        loop {
            let left: Vec<&Process> = before.iter().filter(|p| procs::runs(p)).collect();
            if left.is_empty() {
                return Ok(is_running);
            }
            if start.elapsed() > SETTLE {
                let names: Vec<_> = left.iter().map(|p| format!("{} {}", p.name, p.pid)).collect();
                return Err(Fault::transient(format!(
                    "Postfix still decides by old tables {} s after its reload: {}",
                    SETTLE.as_secs(),
                    names.join(", ")
                ))
                .remedy("look at Postfix's log on this server"));
            }
            if !ended && start.elapsed() > LINGER {
                // A long SMTP session keeps its old trivial-rewrite. Its clients connect again to the
                // new one, so ending it costs nobody anything.
                for p in left.iter().filter(|p| p.name == "trivial-rewrite") {
                    let pid = nix::unistd::Pid::from_raw(p.pid);
                    // Gone already is what was wanted.
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
                }
                ended = true;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Its words, whatever is between them.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The entries of master.cf, each in one line. A line that begins with a blank goes on with the one before
/// it: master(5).
fn entries(text: &str) -> Vec<String> {
    let mut entries: Vec<String> = Vec::new();
    for line in text.lines() {
        match entries.last_mut() {
            Some(entry) if line.starts_with([' ', '\t']) => {
                entry.push(' ');
                entry.push_str(&words(line));
            }
            _ => entries.push(words(line)),
        }
    }
    entries
}

/// A value of main.cf without one of its parts.
fn without(value: &str, part: &str) -> String {
    let rest = value.replacen(part, "", 1);
    rest.trim_matches(|c: char| c == ',' || c.is_whitespace()).replace(", ,", ",")
}

#[cfg(test)]
mod tests {
    use super::{entries, without};

    #[test]
    fn an_entry_of_master_cf_may_take_several_lines() {
        let text = "smtp  inet n - y\n    -o a=b\n\t-o c=d\nretry unix  - -\n";
        assert_eq!(entries(text), ["smtp inet n - y -o a=b -o c=d", "retry unix - -"]);
        assert!(entries("").is_empty());
    }

    #[test]
    fn a_part_is_taken_out_wherever_it_is() {
        assert_eq!(without("a:/x", "a:/x"), "");
        assert_eq!(without("a:/x, b:/y", "a:/x"), "b:/y");
        assert_eq!(without("b:/y, a:/x", "a:/x"), "b:/y");
        assert_eq!(without("b:/y, a:/x, c:/z", "a:/x"), "b:/y, c:/z");
        assert_eq!(without("b:/y", "a:/x"), "b:/y");
    }
}
