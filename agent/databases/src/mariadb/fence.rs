//! The fence: logins refused by the server itself, events off, and nobody connected any more.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use super::MariadbConfig;
use super::inspect::{running_events, user_condition};
use super::processes::{self, POLL, ROLLBACK_LIMIT};
use super::record::EventName;
use super::session::{Session, text_list, user};
use super::{events, users};
use crate::model::{Spec, free_bytes};

const WHAT: &str = "the account's connections to MariaDB cannot be seen";
/// A connection that has said nothing for so long is not in the middle of something.
const QUIET_MS: u64 = 250;
/// InnoDB renews its list of transactions only if nobody has read it for a tenth of a second.
const LIST_AGE: Duration = Duration::from_millis(130);
/// How long a fence waits until the server takes its changes: a backup that has locked all tables may take hours,
/// and visitors are held meanwhile.
const TAKES: Duration = Duration::from_secs(10);
/// How long it waits for that to end what it does not take.
const GIVES_UP: Duration = Duration::from_secs(2);
/// With less room on its disk, in bytes, a server is not asked to close anything.
const ROOM: u64 = 16 << 20;
/// `ER_CANNOT_USER`: of ALTER USER, that there is no such user.
const NO_SUCH_USER: u16 = 1396;
/// `ER_PASSWORD_NO_MATCH`: of SHOW CREATE USER, the same.
const NOT_IN_MEMORY: u16 = 1133;

/// The state before a fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MariadbFence {
    users: Vec<UserLock>,
    running_events: BTreeSet<EventName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct UserLock {
    name: String,
    host: String,
    locked: bool,
}

impl MariadbFence {
    /// Whether a user was locked before the fence; none: the fence does not know the user.
    pub(super) fn locked(&self, name: &str, host: &str) -> Option<bool> {
        self.users.iter().find(|u| u.name == name && u.host == host).map(|u| u.locked)
    }

    /// The events that ran before the fence.
    pub(super) fn running_events(&self) -> BTreeSet<EventName> {
        self.running_events.clone()
    }
}

pub(super) async fn plan(session: &mut Session, spec: &Spec) -> Result<MariadbFence, Fault> {
    let logins = users::read(session, &user_condition(spec, "User", "Host")).await?;
    let users = logins
        .into_iter()
        .map(|l| UserLock { locked: l.locked(), name: l.name, host: l.host })
        .collect();
    Ok(MariadbFence { users, running_events: running_events(session, spec).await? })
}

/// What the statements of an account's fence end with.
fn mark(spec: &Spec) -> String {
    format!(" /* ferry: fence of {} */", spec.account)
}

/// Closes, in a session of its own. A fence that the server does not take in time is given up: a session that
/// waits for a lock is ended, in another one.
pub(super) async fn fence(
    config: &MariadbConfig,
    spec: &Spec,
    grace: Duration,
) -> Result<(), Fault> {
    let mut session = Session::open(config).await?;
    has_room(&mut session, spec).await?;
    match tokio::time::timeout(TAKES, close(&mut session, spec)).await {
        Ok(closed) => closed?,
        Err(_) => {
            let given_up = async { give_up(&mut Session::open(config).await?, spec).await };
            // On a full disk not even that is heard: whoever opens again sees to it first.
            let _ = tokio::time::timeout(GIVES_UP, given_up).await;
            return Err(Fault::precondition(format!(
                "MariaDB takes no change, so that account {} cannot be closed there",
                spec.account
            ))
            .remedy(
                "a backup may have locked its tables, or its disk be full: see SHOW FULL PROCESSLIST and the server's log; then move the account again",
            ));
        }
    }
    drain(&mut session, spec, grace).await
}

/// On a full disk MariaDB waits with a change half done, and what then is ended damages its tables: see
/// [`processes::end`].
async fn has_room(session: &mut Session, spec: &Spec) -> Result<(), Fault> {
    let place = session.value(WHAT, "SELECT @@datadir").await?;
    // One whose files are elsewhere, as in a container, must show for itself whether it takes changes.
    if free_bytes(place.clone()).await.is_none_or(|free| free >= ROOM) {
        return Ok(());
    }
    let account = &spec.account;
    let full = format!("MariaDB's disk is full, so that account {account} cannot be closed there");
    Err(Fault::precondition(full)
        .remedy(format!("make room in {place}, then move the account again")))
}

async fn close(session: &mut Session, spec: &Spec) -> Result<(), Fault> {
    let logins = users::read(session, &user_condition(spec, "User", "Host")).await?;
    if !logins.is_empty() {
        let all: Vec<String> = logins.iter().map(|l| user(&l.name, &l.host)).collect();
        let sql = format!("ALTER USER {} ACCOUNT LOCK{}", all.join(", "), mark(spec));
        session
            .run(&format!("the MariaDB users of {} cannot be locked", spec.account), &sql)
            .await?;
    }
    for event in running_events(session, spec).await? {
        events::switch(session, &event, false, &mark(spec)).await?;
    }
    Ok(())
}

/// Ends what earlier fences of the account still wait for a lock with. That their client has gone the server
/// notices once a second: a statement that it can carry out meanwhile would shut the account out after it was let
/// in again, and nobody would know. What the server carries out already comes to its end before it lets the
/// account in; that may be when its disk has room again.
async fn give_up(session: &mut Session, spec: &Spec) -> Result<(), Fault> {
    let mark = mark(spec);
    let all = processes::all(session).await?;
    let waiting = all.iter().filter(|c| c.asked.ends_with(&mark) && c.waits_for_a_lock());
    processes::end(session, &waiting.map(|c| c.id).collect()).await
}

pub(super) async fn unfence(
    session: &mut Session,
    spec: &Spec,
    fence: &MariadbFence,
) -> Result<(), Fault> {
    give_up(session, spec).await?;
    let mut first_fault = None;
    for before in fence.users.iter().filter(|u| !u.locked) {
        if let Err(fault) = unlock(session, spec, before).await {
            // The others are let in all the same.
            first_fault.get_or_insert(fault);
        }
    }
    for event in &fence.running_events {
        if let Err(fault) = events::switch(session, event, true, "").await {
            first_fault.get_or_insert(fault);
        }
    }
    first_fault.map_or(Ok(()), Err)
}

/// Lets a user in again, if it is still there. That IF EXISTS would find out from a table that may be damaged,
/// and say that all is well.
async fn unlock(session: &mut Session, spec: &Spec, before: &UserLock) -> Result<(), Fault> {
    let user = user(&before.name, &before.host);
    let what = format!("MariaDB user {user} of {} cannot be let in again", spec.account);
    let sql = format!("ALTER USER {user} ACCOUNT UNLOCK");
    if session.run_unless(&what, &sql, NO_SUCH_USER).await? {
        return Ok(());
    }
    // From memory, where logins are decided.
    let known = format!("SHOW CREATE USER {user}");
    if !session.run_unless(&what, &known, NOT_IN_MEMORY).await? {
        return Ok(());
    }
    Err(Fault::permanent(format!("{what}: MariaDB does not find it in its own table"))
        .remedy("restart MariaDB, and see its log: a full disk may have damaged mysql.global_priv"))
}

pub(super) async fn is_fenced(session: &mut Session, spec: &Spec) -> Result<bool, Fault> {
    let logins = users::read(session, &user_condition(spec, "User", "Host")).await?;
    Ok(logins.iter().all(users::Login::locked)
        && running_events(session, spec).await?.is_empty()
        // One that logs in now will find the lock, whoever it is; the fence has waited for the others.
        && connections(session, spec).await?.iter().all(|c| c.nameless))
}

/// A connection of the account, or one that has not yet said whose it is.
struct Connection {
    id: u64,
    /// Nothing was asked for a while.
    silent: bool,
    nameless: bool,
}

async fn connections(session: &mut Session, spec: &Spec) -> Result<Vec<Connection>, Fault> {
    let names = text_list(spec.users.iter().map(|u| u.name.as_str()));
    let sql = format!(
        "SELECT ID, USER, COMMAND, ROUND(TIME_MS) FROM information_schema.PROCESSLIST \
         WHERE USER IN {names} OR USER = 'unauthenticated user'"
    );
    let rows = session.rows(WHAT, &sql).await?;
    Ok(rows
        .iter()
        .map(|r| Connection {
            id: r.number(0),
            nameless: r.text(1) == "unauthenticated user",
            silent: r.text(2) == "Sleep" && r.number(3) >= QUIET_MS,
        })
        .collect())
}

/// The connections that are in a transaction, read not too often.
struct Transactions {
    read: Option<Instant>,
    open: BTreeSet<u64>,
}

impl Transactions {
    async fn now(&mut self, session: &mut Session) -> Result<&BTreeSet<u64>, Fault> {
        if self.read.is_none_or(|at| at.elapsed() >= LIST_AGE) {
            let sql = "SELECT trx_mysql_thread_id FROM information_schema.INNODB_TRX";
            self.open = session.rows(WHAT, sql).await?.iter().map(|r| r.number(0)).collect();
            self.read = Some(Instant::now());
        }
        Ok(&self.open)
    }
}

/// Waits until the account's connections have come to an end by themselves or are quiet, at most
/// for `grace`; ends them; returns when the last is gone, and with it the last transaction.
async fn drain(session: &mut Session, spec: &Spec, grace: Duration) -> Result<(), Fault> {
    let start = Instant::now();
    // Someone in the middle of logging in may have passed the check of the lock already. Whoever
    // comes later has not.
    let pending: BTreeSet<u64> =
        connections(session, spec).await?.iter().filter(|c| c.nameless).map(|c| c.id).collect();
    let mut transactions = Transactions { read: None, open: BTreeSet::new() };
    loop {
        let mut left = connections(session, spec).await?;
        left.retain(|c| !c.nameless || pending.contains(&c.id));
        if left.is_empty() {
            return Ok(());
        }
        let open = transactions.now(session).await?;
        let quiet = left.iter().all(|c| c.silent && !open.contains(&c.id));
        if quiet || start.elapsed() >= grace {
            let ids = left.iter().map(|c| c.id).collect();
            // Again from the top: what was a nameless connection may now be the account's.
            processes::end(session, &ids).await?;
        }
        if start.elapsed() > grace + ROLLBACK_LIMIT {
            return Err(Fault::transient(format!(
                "{} connections of account {} to MariaDB do not end",
                left.len(),
                spec.account
            ))
            .remedy("look at SHOW FULL PROCESSLIST: a large transaction may be rolling back"));
        }
        tokio::time::sleep(POLL).await;
    }
}
