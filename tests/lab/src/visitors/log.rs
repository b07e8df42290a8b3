//! The visitors' log: one line of JSON for each visit that has ended.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::PATIENCE;

/// How a visitor came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// HTTP on a connection of its own.
    Http,
    /// HTTP on a kept connection.
    HttpKept,
    /// HTTPS on a connection of its own.
    Https,
    /// HTTPS on a kept connection.
    HttpsKept,
    /// A mail by SMTP.
    Mail,
}

/// The word on a connection that was closed before one byte of an answer came.
pub const SILENT: &str = "closed without an answer";

/// What became of a visit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was acknowledged, by this server, which says that it kept it at this time.
    Acknowledged {
        /// The host name in the answer; empty for mail.
        server: String,
        /// Unix microseconds by the hosts' common clock; 0 for mail.
        kept_at_us: i64,
    },
    /// It was not; a word on why.
    Failed(String),
    /// The server had closed a kept connection, and not one byte of an answer came: the visitor's browser
    /// asked again on a new one, which is a visit of its own with an id of its own. A word on why.
    Retried(String),
}

/// One visit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// Its id, unique for ever.
    pub id: String,
    /// How it came.
    pub kind: Kind,
    /// When it was begun, Unix microseconds.
    pub began_us: i64,
    /// When it ended, Unix microseconds.
    pub ended_us: i64,
    /// What became of it.
    pub outcome: Outcome,
}

impl Visit {
    /// Whether the visitor was told that it is kept.
    pub fn is_acknowledged(&self) -> bool {
        matches!(self.outcome, Outcome::Acknowledged { .. })
    }

    /// Whether it failed for the visitor.
    pub fn is_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }

    /// Whether it came by the web.
    pub fn is_web(&self) -> bool {
        self.kind != Kind::Mail
    }
}

/// Unix time in microseconds.
pub fn now_us() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

/// Makes a visit of what `act` does, within a visitor's patience.
pub async fn timed<F>(id: String, kind: Kind, act: impl FnOnce(String) -> F) -> Visit
where
    F: Future<Output = Result<Outcome, String>>,
{
    let (began_us, began) = (now_us(), Instant::now());
    let outcome = match tokio::time::timeout(PATIENCE, act(id.clone())).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(why)) => Outcome::Failed(why),
        Err(_) => Outcome::Failed("no answer in time".to_owned()),
    };
    let took = i64::try_from(began.elapsed().as_micros()).unwrap_or(i64::MAX);
    Visit { id, kind, began_us, ended_us: began_us + took, outcome }
}

/// Writes the log; each line is whole before the next.
#[derive(Debug)]
pub struct Writer(Mutex<File>);

impl Writer {
    /// A new log.
    pub fn create(path: &Path) -> Result<Writer> {
        let file =
            File::create_new(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Writer(Mutex::new(file)))
    }

    /// Adds a visit. A log that cannot be written makes the run worthless, so it ends.
    pub fn write(&self, visit: &Visit) {
        let mut line = serde_json::to_vec(visit).unwrap_or_default();
        line.push(b'\n');
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(&line) {
            eprintln!("visitors: the log cannot be written: {error}");
            std::process::exit(1);
        }
    }
}

/// The visits so far.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// In the order in which they ended.
    pub visits: Vec<Visit>,
}

impl Log {
    /// Reads a log that may still be written.
    pub fn read(path: &Path) -> Result<Log> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let visits = whole
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not a visit: {line}")))
            .collect::<Result<Vec<Visit>>>()?;
        Ok(Log { visits })
    }

    /// Those by the web that were acknowledged.
    pub fn acknowledged(&self) -> impl Iterator<Item = &Visit> {
        self.visits.iter().filter(|v| v.is_web() && v.is_acknowledged())
    }
}
