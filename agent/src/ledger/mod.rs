//! The ledger: what this agent has promised, durable in `/var/lib/ferry/ledger`. Every command is in
//! it once; every change of how an account stands is in it before it takes effect.

mod entry;
#[cfg(test)]
pub mod failing;
mod file;
mod point;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::Path;

use ferry_failpoints::{Promise, broken};
use ferry_proto::command::Outcome;
use ferry_proto::ids::{AccountName, CommandId, JobId, ServerName};
use ferry_proto::{Fault, FaultClass};
use serde_json::to_value;

pub use entry::{Account, AfterOpen, Closed, Entry, Made, Refreshed, SourceRecord, Standing};
use file::LogFile;
use point::Point;

/// Outcomes of ended commands that are kept for repeated questions. A controller asks again within
/// the life of a job; this many commands are some hundreds of jobs.
const KEPT_OUTCOMES: usize = 4096;
/// Moves that are remembered as undone. Their grants end within days, of themselves.
const KEPT_UNDONE: usize = 1024;
/// The log is compacted when it is longer than this and mostly history.
const COMPACT_ABOVE: u64 = 32 << 20;

/// What a command has come to.
#[derive(Debug, Clone)]
pub enum CommandState {
    /// Never heard of.
    Unknown,
    /// Taken; begun, perhaps, before the agent died.
    Taken {
        /// BLAKE3 of its intent.
        digest: String,
    },
    /// Ended.
    Ended {
        /// BLAKE3 of its intent.
        digest: String,
        /// With this.
        outcome: Outcome,
    },
}

/// The entries, added up.
#[derive(Debug, Default)]
struct State {
    accounts: BTreeMap<AccountName, Account>,
    commands: HashMap<CommandId, CommandState>,
    ended: VecDeque<CommandId>,
    undone: VecDeque<JobId>,
    generation: u64,
    revoked_serials: Vec<String>,
    revoked_servers: Vec<ServerName>,
}

/// What a ledger says that another process may have open.
#[derive(Debug, Default)]
pub struct Said {
    /// How every account stands.
    pub accounts: BTreeMap<AccountName, Account>,
    /// Moves that were undone here.
    pub undone: Vec<JobId>,
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    log: LogFile,
    state: State,
    /// An account whose commit could neither be recorded nor be read again.
    doubtful: Option<AccountName>,
    /// Accounts of which a rereading found recorded what nobody knew to be. Whoever has read one before
    /// must not write it.
    overtaken: BTreeSet<AccountName>,
}

impl Ledger {
    /// Opens or makes the ledger at `path`.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        Self::open_compacting(path, COMPACT_ABOVE)
    }

    fn open_compacting(path: &Path, above: u64) -> Result<Self, Fault> {
        let (log, documents) = LogFile::open(path)?;
        let mut ledger = Self::of(log, &documents)?;
        let entries = ledger.state.entries()?;
        let lean: u64 = entries.iter().map(|e| e.len() as u64 + 12).sum();
        if ledger.log.len() > above && ledger.log.len() / 4 > lean {
            ledger.log.replace(&entries)?;
        }
        Ok(ledger)
    }

    fn of(log: LogFile, documents: &[Vec<u8>]) -> Result<Self, Fault> {
        let state = State::read(documents)?;
        Ok(Self { log, state, doubtful: None, overtaken: BTreeSet::new() })
    }

    /// The accounts in the ledger at `path`, which another process may have open: changes nothing.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    pub fn accounts_at(path: &Path) -> Result<BTreeMap<AccountName, Account>, Fault> {
        Ok(Self::read_at(path)?.accounts)
    }

    /// What the ledger at `path` says now; otherwise as [`Self::accounts_at`].
    ///
    /// # Errors
    /// As [`Self::accounts_at`].
    pub fn read_at(path: &Path) -> Result<Said, Fault> {
        let State { accounts, undone, .. } = State::read(&file::documents_at(path)?)?;
        Ok(Said { accounts, undone: undone.into() })
    }

    /// Records an entry. It has taken effect only if this succeeds; if it fails, what the disk
    /// holds is read again and counts, so the caller looks at the state before it decides.
    ///
    /// # Errors
    /// Of class Transient, whatever the cause: the entry is not recorded, or not known to be.
    pub fn record(&mut self, entry: Entry) -> Result<(), Fault> {
        self.record_of("", entry)
    }

    /// [`Self::record`], of a command; `kind` is what fault tests know it by.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn record_of(&mut self, kind: &str, entry: Entry) -> Result<(), Fault> {
        self.try_record(kind, entry)
            .map_err(|fault| Fault { class: FaultClass::Transient, ..fault })
    }

    fn try_record(&mut self, kind: &str, entry: Entry) -> Result<(), Fault> {
        let document = to_json(&entry)?;
        if self.log.is_unsure() {
            self.reread()?;
        }
        let account = match &entry {
            Entry::Account { name, .. } => Some(name.clone()),
            _ => None,
        };
        if let Some(name) = account.as_ref().filter(|name| self.overtaken.contains(*name)) {
            return Err(Fault::transient(format!(
                "an earlier change of account {name} was found to be recorded"
            )));
        }
        let before = account.as_ref().and_then(|name| self.state.accounts.get(name));
        match self.log.append(&document, &Point { kind, entry: &entry, before }) {
            Ok(()) => {
                self.state.apply(entry);
                Ok(())
            }
            Err(fault) => {
                // Neither yes nor no: reread before deciding.
                self.doubtful = commit_of(&entry);
                if self.reread()?.last().is_none_or(|last| *last != document) {
                    return Err(fault);
                }
                // Whoever made the entry knows of it.
                if let Some(name) = account {
                    self.overtaken.remove(&name);
                }
                Ok(())
            }
        }
    }

    /// Reads what is there. Whoever is about to write an account knew only the state before: if it is
    /// found to stand otherwise, a failed write was recorded after all, and he must look again. That
    /// holds whoever's write it is for which this reads.
    fn reread(&mut self) -> Result<Vec<Vec<u8>>, Fault> {
        let documents = self.log.reread()?;
        let before = std::mem::replace(&mut self.state, State::read(&documents)?);
        self.overtaken.extend(changed(&before, &self.state));
        self.doubtful = None;
        Ok(documents)
    }

    /// For whoever takes an account's order: he looks how it stands only now, so that he knows whatever
    /// a rereading has found by now.
    pub fn decide_anew(&mut self, name: &AccountName) {
        self.overtaken.remove(name);
    }

    /// Records how an account stands; none: forgotten.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub fn set_account(
        &mut self,
        name: &AccountName,
        account: Option<Account>,
    ) -> Result<(), Fault> {
        self.record(Entry::Account { name: name.clone(), account: account.map(Box::new) })
    }

    /// Bytes of everything recorded: another number when something was.
    pub fn len(&self) -> u64 {
        self.log.len()
    }

    /// How an account stands, if the ledger knows it.
    pub fn account(&self, name: &AccountName) -> Option<&Account> {
        self.state.accounts.get(name)
    }

    /// Whether the disk says that the account has moved away, or may say so after the next start: its
    /// commit failed, and what was written of it could not be read again.
    pub fn may_have_moved(&self, name: &AccountName) -> bool {
        self.doubtful.as_ref() == Some(name) || self.account(name).is_some_and(is_moved)
    }

    /// Ends a doubt whether the account has moved: what can be read now is what counts.
    ///
    /// # Errors
    /// If it cannot be read, or not be made durable: the doubt goes on.
    pub fn end_doubt(&mut self, name: &AccountName) -> Result<(), Fault> {
        if self.doubtful.as_ref() == Some(name) {
            self.reread()?;
        }
        Ok(())
    }

    /// Every account in the ledger.
    pub fn accounts(&self) -> &BTreeMap<AccountName, Account> {
        &self.state.accounts
    }

    /// What became of a command.
    pub fn command(&self, id: CommandId) -> CommandState {
        self.state.commands.get(&id).cloned().unwrap_or(CommandState::Unknown)
    }

    /// Whether a move was undone here.
    pub fn is_undone(&self, job: JobId) -> bool {
        self.state.undone.contains(&job)
    }

    /// The highest controller generation seen.
    pub fn generation(&self) -> u64 {
        self.state.generation
    }

    /// Obeys a controller of this generation from now on, unless a later one has been obeyed. To look and to
    /// record is one step: commands of two controllers may come at once.
    ///
    /// # Errors
    /// If a later one has been obeyed; else as [`Self::record`].
    pub fn obey(&mut self, generation: u64) -> Result<(), Fault> {
        self.require_not_older(generation)?;
        if generation > self.generation() {
            self.record(Entry::Generation { generation })?;
        }
        Ok(())
    }

    /// A fault if a controller of a later generation has been obeyed.
    ///
    /// # Errors
    /// That.
    pub fn require_not_older(&self, generation: u64) -> Result<(), Fault> {
        let obeyed = self.generation();
        if generation >= obeyed || broken(Promise::Epoch) {
            return Ok(());
        }
        // Not of class Fenced: that would say of a commit that it surely was not made.
        Err(Fault::precondition(format!(
            "the controller is of generation {generation}, this agent has obeyed {obeyed}"
        ))
        .remedy("the controller was restored from an old backup: see /usr/share/doc/ferry-controller/what-if/controller-restored.md there"))
    }

    /// Serials and servers whose certificates are no longer accepted.
    pub fn revocations(&self) -> (&[String], &[ServerName]) {
        (&self.state.revoked_serials, &self.state.revoked_servers)
    }
}

fn is_moved(account: &Account) -> bool {
    matches!(account.standing, Standing::Moved { .. })
}

/// Accounts that stand otherwise in one of two states than in the other.
fn changed(one: &State, other: &State) -> Vec<AccountName> {
    let same = |name: &AccountName| {
        let [one, other] = [one, other].map(|state| to_value(state.accounts.get(name)));
        matches!((one, other), (Ok(one), Ok(other)) if one == other)
    };
    let names = one.accounts.keys().chain(other.accounts.keys());
    names.filter(|name| !same(name)).cloned().collect()
}

/// The account that an entry commits.
fn commit_of(entry: &Entry) -> Option<AccountName> {
    match entry {
        Entry::Account { name, account: Some(account) } if is_moved(account) => Some(name.clone()),
        _ => None,
    }
}

fn to_json(entry: &Entry) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(entry).map_err(|e| Fault::bug("a ledger entry has no JSON").caused_by(&e))
}

impl State {
    fn read(documents: &[Vec<u8>]) -> Result<Self, Fault> {
        let mut state = Self::default();
        for document in documents {
            let entry = serde_json::from_slice(document).map_err(|e| {
                Fault::permanent("the ledger holds an entry that this version cannot read")
                    .caused_by(&e)
                    .remedy("install the version of Ferry that wrote it")
            })?;
            state.apply(entry);
        }
        Ok(state)
    }

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Taken { id, digest } => {
                self.commands.insert(id, CommandState::Taken { digest });
            }
            Entry::Ended { id, digest, outcome } => {
                self.commands.insert(id, CommandState::Ended { digest, outcome });
                self.ended.push_back(id);
                if self.ended.len() > KEPT_OUTCOMES
                    && let Some(oldest) = self.ended.pop_front()
                {
                    self.commands.remove(&oldest);
                }
            }
            Entry::Account { name, account: Some(account) } => {
                self.accounts.insert(name, *account);
            }
            Entry::Account { name, account: None } => {
                self.accounts.remove(&name);
            }
            Entry::Undone { job } => {
                self.undone.push_back(job);
                if self.undone.len() > KEPT_UNDONE {
                    self.undone.pop_front();
                }
            }
            Entry::Generation { generation } => self.generation = self.generation.max(generation),
            Entry::Revocations { serials, servers } => {
                self.revoked_serials = serials;
                self.revoked_servers = servers;
            }
        }
    }

    /// The fewest entries that add up to this state.
    fn entries(&self) -> Result<Vec<Vec<u8>>, Fault> {
        let mut entries = vec![
            to_json(&Entry::Generation { generation: self.generation })?,
            to_json(&Entry::Revocations {
                serials: self.revoked_serials.clone(),
                servers: self.revoked_servers.clone(),
            })?,
        ];
        for job in &self.undone {
            entries.push(to_json(&Entry::Undone { job: *job })?);
        }
        for (name, account) in &self.accounts {
            let account = Some(Box::new(account.clone()));
            entries.push(to_json(&Entry::Account { name: name.clone(), account })?);
        }
        for (id, state) in &self.commands {
            if let CommandState::Taken { digest } = state {
                entries.push(to_json(&Entry::Taken { id: *id, digest: digest.clone() })?);
            }
        }
        for id in &self.ended {
            if let Some(CommandState::Ended { digest, outcome }) = self.commands.get(id) {
                let (digest, outcome) = (digest.clone(), outcome.clone());
                entries.push(to_json(&Entry::Ended { id: *id, digest, outcome })?);
            }
        }
        Ok(entries)
    }
}

/// For the fuzz target `ledger`: what a log adds up to adds up to the same after it was compacted.
pub(crate) fn fuzz(bytes: &[u8]) {
    let Some(documents) = file::fuzz(bytes) else { return };
    let Ok(state) = State::read(&documents) else { return };
    let entries = state.entries().expect("what was read can be written");
    let again = State::read(&entries).expect("what was written can be read");
    assert_eq!(again.entries().ok().map(sorted), Some(sorted(entries)));
    assert!(state.ended.len() <= KEPT_OUTCOMES && state.undone.len() <= KEPT_UNDONE);
}

/// Commands under way are kept in no order.
fn sorted(mut entries: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    entries.sort();
    entries
}

#[cfg(test)]
mod tests {
    use super::failing::{EIO, ENOSPC, EROFS, after_power_cut, on_failing};
    use super::*;
    use ferry_failpoints::FakeLab;
    use ferry_proto::command::Receipt;

    fn done() -> Outcome {
        Ok(Receipt::Done { summary: "done".into(), figures: BTreeMap::new() })
    }

    #[test]
    fn commands_and_revocations_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (a, b) = (CommandId::new_now(), CommandId::new_now());
        {
            let mut ledger = Ledger::open(&path).unwrap();
            ledger.record(Entry::Taken { id: a, digest: "d".into() }).unwrap();
            ledger.record(Entry::Taken { id: b, digest: "e".into() }).unwrap();
            ledger.record(Entry::Ended { id: a, digest: "d".into(), outcome: done() }).unwrap();
            ledger.record(Entry::Generation { generation: 3 }).unwrap();
            ledger
                .record(Entry::Revocations { serials: vec!["01".into()], servers: vec![] })
                .unwrap();
        }
        let ledger = Ledger::open(&path).unwrap();
        assert!(
            matches!(ledger.command(a), CommandState::Ended { outcome, .. } if outcome == done())
        );
        assert!(matches!(ledger.command(b), CommandState::Taken { digest } if digest == "e"));
        assert!(matches!(ledger.command(CommandId::new_now()), CommandState::Unknown));
        assert_eq!(ledger.generation(), 3);
        assert_eq!(ledger.revocations().0, ["01".to_owned()]);
    }

    /// Two sessions looked before either had recorded: the later generation stands, whoever records last.
    #[test]
    fn an_agent_never_goes_back_to_an_earlier_generation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let mut ledger = Ledger::open(&path).unwrap();
        ledger.obey(5).unwrap();
        let written = ledger.len();
        ledger.obey(5).unwrap();
        let refused = ledger.obey(3).unwrap_err();
        assert_eq!(refused.class, FaultClass::Precondition, "{refused}");
        assert_eq!(ledger.len(), written, "nothing is recorded of it");
        // As an earlier version may have recorded them.
        ledger.record(Entry::Generation { generation: 4 }).unwrap();
        assert_eq!(ledger.generation(), 5);
        drop(ledger);
        assert_eq!(Ledger::open(&path).unwrap().generation(), 5);
    }

    #[test]
    fn what_is_called_recorded_survives_a_power_cut_whatever_syncs_fail() {
        for fails in 0..32_u32 {
            let (mut ledger, kernel) = on_failing();
            ledger.record(Entry::Generation { generation: 1 }).unwrap();
            kernel.lock().unwrap().syncs =
                (0..5).map(|n| if fails >> n & 1 == 1 { Err(EIO) } else { Ok(()) }).collect();
            let mut recorded = 1;
            for generation in 2..5 {
                match ledger.record(Entry::Generation { generation }) {
                    Ok(()) => recorded = generation,
                    Err(fault) => assert_eq!(fault.class, FaultClass::Transient, "{fault}"),
                }
            }
            let found = after_power_cut(&kernel).generation();
            assert!(found >= recorded, "{fails:b}: {recorded} was recorded, {found} is there");
        }
    }

    #[test]
    fn an_entry_that_is_there_but_not_durable_is_not_taken_into_the_state() {
        let (mut ledger, kernel) = on_failing();
        kernel.lock().unwrap().syncs = [Err(EIO), Err(EIO)].into();
        ledger.record(Entry::Generation { generation: 2 }).unwrap_err();
        assert_eq!(ledger.generation(), 0);
        // Written again with the next entry, and durable now.
        ledger.record(Entry::Revocations { serials: vec![], servers: vec![] }).unwrap();
        assert_eq!(ledger.generation(), 2);
        assert_eq!(after_power_cut(&kernel).generation(), 2);
    }

    #[test]
    fn a_full_disk_or_a_broken_one_is_transient_and_the_next_record_goes_through() {
        for code in [EIO, ENOSPC, EROFS] {
            let (mut ledger, kernel) = on_failing();
            kernel.lock().unwrap().writes = [Err(code)].into();
            let fault = ledger.record(Entry::Generation { generation: 2 }).unwrap_err();
            assert_eq!(fault.class, FaultClass::Transient, "{fault}");
            assert_eq!(ledger.generation(), 0);
            ledger.record(Entry::Generation { generation: 3 }).unwrap();
            assert_eq!(after_power_cut(&kernel).generation(), 3);
        }
    }

    #[test]
    fn who_did_not_know_of_a_commit_does_not_write_over_it() {
        use crate::testing::{a_move, account, moved};
        let (mut ledger, kernel) = on_failing();
        let (of, name) = (a_move(), "shop".parse().unwrap());
        let armed = account("shop", &Standing::Armed { of: of.clone() });
        ledger.set_account(&name, Some(armed.clone())).unwrap();
        kernel.lock().unwrap().syncs = [Err(EIO), Err(EIO)].into();
        ledger.set_account(&name, Some(account("shop", &moved(&of)))).unwrap_err();
        // As far as anybody knows it is armed; decided on that, this would undo the commit.
        assert!(matches!(ledger.account(&name).unwrap().standing, Standing::Armed { .. }));
        ledger.set_account(&name, Some(armed.clone())).unwrap_err();
        assert!(matches!(ledger.account(&name).unwrap().standing, Standing::Moved { .. }));
        let found = after_power_cut(&kernel);
        assert!(matches!(found.account(&name).unwrap().standing, Standing::Moved { .. }));
        // Decided anew, it is recorded.
        ledger.decide_anew(&name);
        ledger.set_account(&name, Some(armed)).unwrap();
    }

    /// A ledger that is mostly history, and knows an account; and how long it is.
    fn long(path: &Path) -> u64 {
        let mut ledger = Ledger::open(path).unwrap();
        let account = crate::testing::account("shop", &Standing::Serving);
        ledger.set_account(&"shop".parse().unwrap(), Some(account)).unwrap();
        for serials in [vec!["0".repeat(1 << 16)], vec![]] {
            ledger.record(Entry::Revocations { serials, servers: vec![] }).unwrap();
        }
        ledger.len()
    }

    /// Opens such a ledger, which is to be compacted, where this point fails: the error, if it is not
    /// given what it holds.
    fn opened_without(point: &'static str) -> Result<(), Fault> {
        let dir = tempfile::tempdir().unwrap();
        let (path, name) = (dir.path().join("ledger"), "shop".parse().unwrap());
        let len = long(&path);
        let lab = FakeLab::listen(dir.path(), move |p| match p == point {
            true => format!("errno {ENOSPC}"),
            false => "go".to_owned(),
        })
        .unwrap();
        let ledger = Ledger::open_compacting(&path, 0);
        assert!(lab.heard().iter().any(|heard| heard == point), "{:?}", lab.heard());
        drop(lab);
        assert!(!dir.path().join("ledger.next").exists());
        let mut ledger = ledger?;
        assert!(ledger.account(&name).is_some() && ledger.len() == len);
        // What is recorded now is in the file that the next start reads, which has the room.
        ledger.record(Entry::Generation { generation: 2 }).unwrap();
        let again = Ledger::open_compacting(&path, 0).unwrap();
        assert!(again.account(&name).is_some() && again.generation() == 2);
        assert!(again.len() < len / 4);
        Ok(())
    }

    #[test]
    fn a_ledger_that_there_is_no_room_to_compact_is_opened_as_it_is() {
        opened_without("ledger.compacted.before").unwrap();
        opened_without("ledger.compacted.after").unwrap();
        opened_without("ledger.replaced.before").unwrap();
    }

    #[test]
    fn a_ledger_whose_place_another_may_have_taken_is_not_written_to() {
        let fault = opened_without("ledger.replaced.after").unwrap_err();
        assert!(fault.message.contains("compact"), "{fault}");
    }

    #[test]
    fn compaction_keeps_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        let id = CommandId::new_now();
        ledger.record(Entry::Ended { id, digest: "d".into(), outcome: done() }).unwrap();
        ledger.record(Entry::Generation { generation: 7 }).unwrap();
        let job = JobId::new_now();
        ledger.record(Entry::Undone { job }).unwrap();
        let entries = ledger.state.entries().unwrap();
        ledger.log.replace(&entries).unwrap();
        drop(ledger);
        let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        assert!(matches!(ledger.command(id), CommandState::Ended { .. }));
        assert_eq!(ledger.generation(), 7);
        assert!(ledger.is_undone(job) && !ledger.is_undone(JobId::new_now()));
    }
}
