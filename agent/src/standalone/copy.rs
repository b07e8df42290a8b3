//! The source's side: reads here, and speaks to the other server's agent. It must not know what the target
//! has allowed.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use ferry_files::journal::{Changes, Plan};
use ferry_files::{Bounded, Note, PassReport, Progress, Rates, Refusal, SourceOptions, Streams};
use ferry_proto::Fault;
use ferry_proto::channel::{Connections, Identity, Limits, SecureStream};
use ferry_proto::ids::ServerName;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::journals::Journal;
use crate::peer::{Alone, Caller};
use crate::work::pace::{self, Doing, Pace};

/// Items that a summary for people names.
const NAMED: usize = 10;
/// File systems stamp with a clock that may be a tick behind.
const MARGIN: Duration = Duration::from_secs(1);
/// How often a person is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What is copied or compared, and how.
#[derive(Debug, Args)]
pub struct Ends {
    /// The directory here.
    source: PathBuf,
    /// The other server's name and the directory there, PEER:DIRECTORY.
    target: Target,
    /// Where that server's agent answers, HOST:PORT; without it the server's name and port 7401.
    #[arg(long)]
    address: Option<String>,
    /// Leave this path below the directory alone at both ends; may be repeated.
    #[arg(long, value_name = "PATH")]
    exclude: Vec<PathBuf>,
    /// Send at most so many bytes a second.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    bandwidth: Option<u64>,
    /// Read at most so many bytes a second of contents here.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    io: Option<u64>,
    /// Print what was done, or found, as one JSON document.
    #[arg(long)]
    json: bool,
}

/// How it is copied.
#[derive(Debug, Args)]
pub struct Copying {
    #[command(flatten)]
    ends: Ends,
    /// Keep what only the target has.
    #[arg(long)]
    keep_extra: bool,
    /// Empty the target although the directory here is empty.
    #[arg(long)]
    allow_emptied: bool,
    /// When all is copied, watch the directory, and copy what has changed since for each line on standard input.
    #[arg(long)]
    again: bool,
    /// Leave both hosts to others where they are busy, as the copies of a move do while its account is served.
    #[arg(long)]
    calm: bool,
}

/// What a pass did, and how it knew where to look.
#[derive(Debug, Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    report: &'a PassReport,
    /// What tells of changes between passes; none: nothing does.
    journal: Option<&'static str>,
    /// Whether the pass looked only at what the journal told of.
    partial: bool,
}

/// A directory of another server.
#[derive(Debug, Clone)]
struct Target {
    server: ServerName,
    directory: PathBuf,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (server, directory) = text.split_once(':').ok_or("give PEER:DIRECTORY")?;
        let server = server.parse().map_err(|e| format!("{server:?} names no server: {e}"))?;
        if !directory.starts_with('/') {
            return Err("the directory must be absolute".to_owned());
        }
        Ok(Self { server, directory: directory.into() })
    }
}

impl Copying {
    /// Makes the target equal.
    pub async fn copy(self, config: &Config) -> Result<i32, Fault> {
        if !self.again {
            let report = self.pass(config, None, None, None).await?;
            return self.show(&Told { report: &report, journal: None, partial: false });
        }
        let journal =
            Journal::alone(&self.ends.source).inspect_err(|fault| eprintln!("{fault}")).ok();
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let mut since = None;
        loop {
            journal.iter().for_each(Journal::renew);
            let plan =
                journal.as_ref().map(|journal| journal.pass(&BTreeSet::new())).transpose()?;
            let plan = plan.flatten();
            let partial = plan.is_some();
            let elsewhere = Arc::<Mutex<Changes>>::default();
            let report = self.pass(config, plan, since, Some(Arc::clone(&elsewhere))).await?;
            // What was written while it was read may have the time that was read.
            since = report.started.and_then(|at| at.checked_sub(MARGIN));
            if let Some(journal) = &journal {
                let mut elsewhere = elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
                journal.passed(std::mem::take(&mut *elsewhere));
            }
            let backend = journal.as_ref().map(|journal| journal.backend().name());
            let code = self.show(&Told { report: &report, journal: backend, partial })?;
            let line = lines.next_line().await;
            if line.map_err(|e| Fault::io("standard input cannot be read", &e))?.is_none() {
                return Ok(code);
            }
        }
    }

    /// One pass: of what the plan says, and with the contents of what has changed since. `elsewhere`: where to note what
    /// the next one has to look at.
    async fn pass(
        &self,
        config: &Config,
        plan: Option<Plan>,
        changed_since: Option<SystemTime>,
        elsewhere: Option<Arc<Mutex<Changes>>>,
    ) -> Result<PassReport, Fault> {
        let (delete, allow_emptied, calm) = (!self.keep_extra, self.allow_emptied, self.calm);
        let directory = self.ends.target.directory.clone();
        let streams = self
            .ends
            .streams(config, |streams| Alone::Copy {
                directory,
                delete,
                allow_emptied,
                calm,
                streams,
            })
            .await?;
        let (progress, telling) = self.ends.telling(pace::WRITING);
        let cancel = CancellationToken::new();
        let plan = plan.map(Arc::new);
        let options = SourceOptions { plan, changed_since, elsewhere, calm, ..self.ends.options() };
        let report =
            ferry_files::send_pass(&self.ends.source, streams, options, progress, cancel).await;
        telling.await.map_err(|e| Fault::bug("progress failed").caused_by(&e))?;
        report
    }

    /// Prints what a pass did, and answers the exit code.
    fn show(&self, told: &Told<'_>) -> Result<i32, Fault> {
        let report = told.report;
        if self.ends.json {
            print_json(told)?;
        } else {
            println!(
                "{} files with {} bytes sent, {} entries made, {} mended, {} moved, {} deleted, {} unchanged, in {:.1} s",
                report.files_sent,
                report.bytes_sent,
                report.created,
                report.metadata_changed,
                report.moved,
                report.deleted,
                report.unchanged,
                report.duration.as_secs_f64()
            );
            if report.bytes_shared > 0 {
                println!("{} bytes are shared by files, as at the source", report.bytes_shared);
            }
            tell(&report.refused, &report.notes);
            if report.changed_while_read > 0 {
                eprintln!("{} changed while they were read: copy again", report.changed_while_read);
            }
        }
        Ok(i32::from(!report.refused.is_empty() || report.changed_while_read > 0))
    }
}

impl Ends {
    /// Compares.
    pub async fn verify(self, config: &Config) -> Result<i32, Fault> {
        let directory = self.target.directory.clone();
        let streams = self.streams(config, |streams| Alone::Compare { directory, streams }).await?;
        let (progress, telling) = self.telling(pace::READING);
        let cancel = CancellationToken::new();
        let found =
            ferry_files::verify_source(&self.source, streams, self.options(), progress, cancel)
                .await;
        telling.await.map_err(|e| Fault::bug("progress failed").caused_by(&e))?;
        let found = found?;
        if self.json {
            print_json(&found)?;
        } else {
            for difference in found.differences.items.iter().take(NAMED) {
                println!("{difference}");
            }
            println!(
                "{} entries, {} files with {} bytes compared; {} differences",
                found.entries, found.files, found.bytes, found.differences.total
            );
            tell(&found.refused, &found.notes);
        }
        Ok(i32::from(!found.is_equal() || !found.refused.is_empty()))
    }

    fn options(&self) -> SourceOptions {
        SourceOptions {
            excludes: self.exclude.clone(),
            limits: ferry_files::Limits::new(Rates { bandwidth: self.bandwidth, io: self.io }),
            ..SourceOptions::everyone()
        }
    }

    async fn streams(
        &self,
        config: &Config,
        what: impl FnOnce(usize) -> Alone,
    ) -> Result<Streams<SecureStream>, Fault> {
        let Target { server, .. } = &self.target;
        let port = config.peer_listen.port();
        let address = self.address.clone().unwrap_or_else(|| format!("{server}:{port}"));
        let caller = Caller {
            identity: Identity::load(&config.identity_directory())?,
            connections: Connections::new(Limits::default()),
            server: server.clone(),
            address,
        };
        caller.alone(what).await
    }

    /// Tells a person at a terminal how far it is, until the sender is gone; `target`: what the other end does.
    fn telling(
        &self,
        target: &'static str,
    ) -> (watch::Sender<Progress>, tokio::task::JoinHandle<()>) {
        let (progress, mut seen) = watch::channel(Progress::default());
        let to_a_person = !self.json && std::io::stderr().is_terminal();
        let telling = tokio::spawn(async move {
            let mut tick = tokio::time::interval(TELL_EVERY);
            let (mut pace, doing) = (Pace::default(), Doing { what: String::new(), target });
            while to_a_person && seen.changed().await.is_ok() {
                tick.tick().await;
                let now = seen.borrow_and_update().clone();
                pace.saw(Instant::now(), now.clone());
                let line = line(&now, &pace.told(&doing));
                let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
            }
            if to_a_person {
                let _ = write!(std::io::stderr(), "\r\x1b[K");
            }
        });
        (progress, telling)
    }
}

/// How far it is, how fast, and how long it takes yet.
fn line(now: &Progress, told: &ferry_proto::command::Progress) -> String {
    let total = |total: Option<u64>| total.map_or("?".to_owned(), |n| n.to_string());
    let far = format!(
        "{} entries, {}/{} files, {}/{} bytes",
        now.entries_scanned,
        now.files_done,
        total(now.files_total),
        now.bytes_done,
        total(now.bytes_total)
    );
    let pace = [
        told.bytes_per_second.map(|n| format!("{n} bytes/s")),
        told.items_per_second.map(|n| format!("{n} files/s")),
        told.seconds_left.map(|n| format!("{n} s left")),
        told.slow.as_ref().map(|slow| format!("slowest: {slow}")),
    ];
    pace.into_iter().flatten().fold(far, |line, part| format!("{line}, {part}"))
}

fn print_json(what: &impl serde::Serialize) -> Result<(), Fault> {
    let json = serde_json::to_string(what)
        .map_err(|e| Fault::bug("a report has no JSON").caused_by(&e))?;
    println!("{json}");
    Ok(())
}

fn tell(refused: &Bounded<Refusal>, notes: &Bounded<Note>) {
    for refusal in refused.items.iter().take(NAMED) {
        eprintln!("refused: {}: {}", refusal.path, refusal.reason);
    }
    for note in notes.items.iter().take(NAMED) {
        eprintln!("{}: {}", note.path, note.text);
    }
    let shown = |total: u64| total.saturating_sub(NAMED as u64);
    let more = shown(refused.total) + shown(notes.total);
    if more > 0 {
        eprintln!("and {more} more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_known() {
        let now = Progress { entries_scanned: 5, files_done: 2, ..Progress::default() };
        let mut told = ferry_proto::command::Progress::default();
        assert_eq!(line(&now, &told), "5 entries, 2/? files, 0/? bytes");
        (told.bytes_per_second, told.seconds_left) = (Some(7), Some(9));
        told.slow = Some(pace::WRITING.to_owned());
        assert_eq!(
            line(&now, &told),
            "5 entries, 2/? files, 0/? bytes, 7 bytes/s, 9 s left, slowest: writing at the target"
        );
    }

    #[test]
    fn a_target_is_a_server_and_an_absolute_directory() {
        let target: Target = "web1:/srv/copy:of".parse().unwrap();
        assert_eq!(
            (target.server.as_str(), target.directory.to_str()),
            ("web1", Some("/srv/copy:of"))
        );
        for wrong in ["/srv", "web1", "web1:", "web1:srv", ":/srv", "we b:/srv"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
