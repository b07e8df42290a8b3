//! Who is connected, which MariaDB calls processes, and how connections are ended.
//!
//! Asked by SHOW PROCESSLIST: information_schema.PROCESSLIST makes a temporary table, for which a full disk has
//! no room.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ferry_proto::Fault;

use super::session::{Session, refused};

const WHAT: &str = "connections to MariaDB cannot be seen";
/// How often it is looked whether they have gone.
pub(super) const POLL: Duration = Duration::from_millis(25);
/// How long a transaction that was ended may take to undo its changes.
pub(super) const ROLLBACK_LIMIT: Duration = Duration::from_secs(60);
/// `ER_NO_SUCH_THREAD`: it has gone by itself.
const GONE: u16 = 1094;
/// What MariaDB says of one that finds the disk full; it looks again once a minute. Ended in that, Aria's log
/// stays closed until the server is restarted: no user can be changed any more, nor let in (seen with 10.11).
const WAITS_FOR_ROOM: &str = "Waiting for someone to free space";

/// A connection.
pub(super) struct Process {
    pub id: u64,
    pub user: String,
    /// What it is about, in the server's words.
    state: String,
    /// What it was asked and has not answered yet; empty: nothing.
    pub asked: String,
}

impl Process {
    /// Whether it waits for a lock that somebody else has: it has changed nothing yet.
    pub(super) fn waits_for_a_lock(&self) -> bool {
        self.state.starts_with("Waiting for ") && self.state.ends_with(" lock")
    }
}

/// All but the session's own.
pub(super) async fn all(session: &mut Session) -> Result<Vec<Process>, Fault> {
    let own: u64 = session.value(WHAT, "SELECT CONNECTION_ID()").await?.parse().unwrap_or(0);
    let rows = session.rows(WHAT, "SHOW FULL PROCESSLIST").await?;
    let all = rows.iter().map(|row| Process {
        id: row.number(0),
        user: row.text(1),
        state: row.text(6),
        asked: row.text(7),
    });
    Ok(all.filter(|c| c.id != own).collect())
}

/// Ends connections and waits until they are gone. One that waits for room on a full disk is not ended, but
/// waited for.
pub(super) async fn end(session: &mut Session, ids: &BTreeSet<u64>) -> Result<(), Fault> {
    if ids.is_empty() {
        return Ok(());
    }
    let start = Instant::now();
    let mut ended = BTreeSet::new();
    loop {
        let mut left = all(session).await?;
        left.retain(|c| ids.contains(&c.id));
        if left.is_empty() {
            return Ok(());
        }
        for one in left.iter().filter(|c| c.state != WAITS_FOR_ROOM) {
            if ended.insert(one.id) {
                kill(session, one.id).await?;
            }
        }
        if start.elapsed() > ROLLBACK_LIMIT {
            return Err(Fault::transient(
                "a connection to MariaDB that was ended does not go away",
            )
            .remedy(
                "look at SHOW FULL PROCESSLIST: a large transaction may be rolling back, or the disk be full",
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn kill(session: &mut Session, id: u64) -> Result<(), Fault> {
    match session.try_run(&format!("KILL CONNECTION {id}")).await {
        Err(mysql_async::Error::Server(e)) if e.code == GONE => Ok(()),
        Err(error) => Err(refused("a connection to MariaDB cannot be ended", &error)),
        Ok(()) => Ok(()),
    }
}
