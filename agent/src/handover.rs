//! What an agent that stops in order leaves to the one that is started next, so that it need not look at everything
//! anew: what its change journals have noted, in a file, and what the kernel goes on telling meanwhile, in
//! descriptors that the service manager keeps. Each names the other, the file is gone before it is believed, and
//! an agent that is killed leaves neither. It must not know what the journals say.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, blocking};
use crate::clock::{self, Era, boot_id};
use crate::fd_store;
use crate::journals::KeptWatch;
use crate::small_file::{self, Lasting};

/// Of the file. It changes with what any of it means.
const FORMAT: u32 = 2;
/// What is longer is not read: 32 MiB of changes, as text.
const MAX_BYTES: u64 = 50 << 20;
/// How long an agent that stops or starts waits for it: a disk may hang.
const WITHIN: Duration = Duration::from_secs(2);

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Left {
    format: u32,
    boot_id: String,
    clock: Option<KeptClock>,
    watches: Vec<KeptWatch>,
}

/// What is told when the wall clock is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KeptClock {
    /// What the descriptor is called.
    timer: String,
    era: Era,
}

/// The agent stops, and all that it did has stopped: leaves what the next one needs.
pub async fn leave(agent: &Arc<Agent>) {
    let agent = Arc::clone(agent);
    if fd_store::is_there() {
        within(async { blocking(move || leave_at(&agent, fd_store::keep)).await }).await;
    }
}

/// The agent starts, and does nothing yet that is noted: takes what the one before has left. `kept`: what the service
/// manager has passed on.
pub async fn take(agent: &Arc<Agent>, kept: Result<HashMap<String, OwnedFd>, Fault>) {
    let agent = Arc::clone(agent);
    let kept = kept.inspect_err(|fault| tracing::warn!("{fault}")).unwrap_or_default();
    let take = move || take_at(&agent, kept);
    within(async { blocking(take).await }).await;
}

async fn within(done: impl Future<Output = Result<(), Fault>>) {
    match tokio::time::timeout(WITHIN, done).await {
        Ok(Ok(())) => {}
        Ok(Err(fault)) => tracing::warn!("the change journals begin anew: {fault}"),
        Err(_) => {
            tracing::warn!("the change journals begin anew: it takes too long to hand them over")
        }
    }
}

fn leave_at(
    agent: &Agent,
    keep: impl Fn(&str, BorrowedFd<'_>) -> std::io::Result<()>,
) -> Result<(), Fault> {
    let (watches, mut descriptors) = agent.journals.hand_over();
    let clock = clock::hand_over().map(|(era, timer)| {
        let name = format!("clock-{:016x}", rand::random::<u64>());
        descriptors.push((name.clone(), timer));
        KeptClock { timer: name, era }
    });
    let left = Left { format: FORMAT, boot_id: boot_id()?, clock, watches };
    let path = path(agent);
    small_file::replace("handover.left", &path, &encoded(&left)?, Lasting::InTime)
        .map_err(|e| Fault::io(format!("cannot write {}", path.display()), &e))?;
    for (name, fd) in descriptors {
        keep(&name, fd.as_fd())
            .map_err(|e| Fault::io("the service manager does not keep a queue", &e))?;
    }
    Ok(())
}

fn take_at(agent: &Agent, mut kept: HashMap<String, OwnedFd>) -> Result<(), Fault> {
    let path = path(agent);
    let bytes = read(&path);
    // Whatever it says: nobody believes it twice.
    small_file::remove("handover.taken", &path)
        .map_err(|e| Fault::io(format!("cannot remove {}", path.display()), &e))?;
    let Some(bytes) = bytes? else { return Ok(()) };
    let left = decoded(&bytes)?;
    if left.boot_id != boot_id()? {
        return Err(Fault::precondition("this server was started since"));
    }
    if let Some(clock) = left.clock
        && let Some(timer) = kept.remove(&clock.timer)
    {
        clock::take_over(clock.era, timer);
    }
    agent.journals.take_over(left.watches, &mut kept);
    Ok(())
}

fn path(agent: &Agent) -> PathBuf {
    agent.config.state_directory.join("handover").join("journals")
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Fault> {
    let cannot = |e: std::io::Error| Fault::io(format!("cannot read {}", path.display()), &e);
    match std::fs::metadata(path) {
        Ok(found) if found.len() > MAX_BYTES => {
            Err(Fault::permanent(format!("{} is too long", path.display())))
        }
        Ok(_) => std::fs::read(path).map(Some).map_err(cannot),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(cannot(e)),
    }
}

/// A digest, and what it is of.
fn encoded(left: &Left) -> Result<Vec<u8>, Fault> {
    let json = serde_json::to_vec(left)
        .map_err(|e| Fault::bug("what an agent leaves has no JSON").caused_by(&e))?;
    let digest = blake3::hash(&json).to_hex();
    Ok([digest.as_bytes(), b"\n", &json].concat())
}

fn decoded(bytes: &[u8]) -> Result<Left, Fault> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let damaged = || Fault::permanent("what the agent before has left is damaged");
    let line = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
    let (digest, json) = (&bytes[..line], &bytes[line + 1..]);
    if blake3::hash(json).to_hex().as_bytes() != digest {
        return Err(damaged());
    }
    let unknown = |e| Fault::permanent("what the agent before has left is not known").caused_by(&e);
    let Format { format } = serde_json::from_slice(json).map_err(unknown)?;
    if format != FORMAT {
        return Err(Fault::precondition("the agent before was of another version"));
    }
    serde_json::from_slice(json).map_err(unknown)
}

/// Restarts an agent in a test, as far as its journals know.
#[cfg(test)]
pub fn restart(agent: &Agent) {
    take_at(agent, tests::left(agent)).unwrap();
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::process::Command;

    use ferry_failpoints::FakeLab;
    use ferry_files::journal::{Changes, Plan, Whose};
    use ferry_proto::command::Move;

    use super::*;
    use crate::testing::authority::Authority;
    use crate::testing::{a_move, agent};

    /// An agent with the journal of a tree that a pass has left as it was.
    struct Journaled {
        agent: Arc<Agent>,
        of: Move,
        root: PathBuf,
        dir: tempfile::TempDir,
    }

    impl Journaled {
        fn new() -> Self {
            let (authority, dir) = (Authority::new(), tempfile::tempdir_in("/dev/shm").unwrap());
            let (agent, root) = (agent(&authority, dir.path()), dir.path().join("home"));
            std::fs::create_dir(&root).unwrap();
            let this = Self { agent, of: a_move(), root, dir };
            assert!(this.plan().is_none(), "there was no pass yet");
            this.passed();
            this
        }

        fn journal(&self) -> Arc<crate::journals::Journal> {
            let Move { account, job, .. } = &self.of;
            self.agent.journals.of(account, &self.root, *job, Whose::Everybodys).unwrap()
        }

        fn plan(&self) -> Option<Plan> {
            self.journal().pass(&BTreeSet::new()).unwrap()
        }

        fn passed(&self) {
            self.journal().passed(Changes::default());
        }

        fn does(&self, script: &str) {
            let ran = Command::new("sh").args(["-euc", script]).current_dir(&self.root).status();
            assert!(ran.unwrap().success(), "{script}");
        }
    }

    /// Leaves all in order. Answers what the service manager keeps.
    pub fn left(agent: &Agent) -> HashMap<String, OwnedFd> {
        let kept = RefCell::new(HashMap::new());
        let keep = |name: &str, fd: BorrowedFd<'_>| {
            kept.borrow_mut().insert(name.to_owned(), fd.try_clone_to_owned()?);
            Ok(())
        };
        leave_at(agent, keep).unwrap();
        kept.into_inner()
    }

    fn goes_to(plan: &Plan, paths: [&str; 3]) -> [bool; 3] {
        paths.map(|path| plan.goes_to(Path::new(path)))
    }

    #[test]
    fn what_changes_before_while_and_after_it_is_restarted_is_known() {
        let all = Journaled::new();
        all.does("echo 1 > before");
        let era = clock::era();
        let kept = left(&all.agent);
        assert_ne!(clock::era(), era, "another process");
        all.does("echo 2 > meanwhile");
        take_at(&all.agent, kept).unwrap();
        assert_eq!(clock::era(), era);
        all.does("echo 3 > afterwards");
        let plan = all.plan().expect("what has changed");
        assert_eq!(goes_to(&plan, ["before", "meanwhile", "afterwards"]), [true; 3]);
        assert!(!plan.goes_to(Path::new("other")));
        // A pass that was cut off is none.
        restart(&all.agent);
        assert!(all.plan().is_none());
    }

    #[test]
    fn mounts_that_have_other_numbers_are_the_same() {
        let all = Journaled::new();
        let kept = left(&all.agent);
        all.does("echo 1 > meanwhile");
        // As systemd does it for a service with protected directories, each time that it starts one.
        let plan = std::thread::scope(|scope| {
            let started = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
                take_at(&all.agent, kept).unwrap();
                all.does("echo 2 > afterwards");
                all.plan()
            });
            started.join().unwrap()
        });
        let plan = plan.expect("what has changed");
        assert_eq!(goes_to(&plan, ["meanwhile", "afterwards", "other"]), [true, true, false]);
    }

    #[test]
    fn what_was_compared_stays_so() {
        let all = Journaled::new();
        all.journal().compares();
        all.does("echo 1 > before");
        assert!(all.plan().is_some());
        all.passed();
        restart(&all.agent);
        all.does("echo 2 > afterwards");
        let plan = all.journal().comparison(&BTreeSet::new()).unwrap().expect("a plan");
        assert_eq!(goes_to(&plan, ["before", "afterwards", "other"]), [true, true, false]);
    }

    /// After this everything is looked at, and nothing is left to be believed.
    fn begins_anew(what: &str, happens: impl FnOnce(&Journaled)) {
        let all = Journaled::new();
        happens(&all);
        assert!(all.plan().is_none(), "{what}");
        assert!(!path(&all.agent).exists(), "{what}");
    }

    #[test]
    fn what_may_have_been_missed_is_not_believed() {
        begins_anew("the queue was not kept", |all| {
            let mut kept = left(&all.agent);
            kept.retain(|name, _| !name.starts_with("journal"));
            take_at(&all.agent, kept).unwrap();
        });
        begins_anew("it was killed", |all| drop(all.agent.journals.hand_over()));
        begins_anew("another directory is there", |all| {
            let kept = left(&all.agent);
            all.does("mv ../home ../old; mkdir ../home");
            take_at(&all.agent, kept).unwrap();
        });
        begins_anew("the file is damaged", |all| {
            let (kept, path) = (left(&all.agent), path(&all.agent));
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() = b' ';
            std::fs::write(&path, bytes).unwrap();
            take_at(&all.agent, kept).unwrap_err();
        });
        begins_anew("it was believed before", |all| {
            let kept = left(&all.agent);
            let again = kept.iter().map(|(name, fd)| (name.clone(), fd.try_clone().unwrap()));
            let again = again.collect();
            take_at(&all.agent, kept).unwrap();
            drop(all.agent.journals.hand_over());
            take_at(&all.agent, again).unwrap();
        });
    }

    #[test]
    fn a_file_of_another_boot_or_format_is_not_believed() {
        let all = Journaled::new();
        let left =
            Left { format: FORMAT, boot_id: String::new(), clock: None, watches: Vec::new() };
        assert_eq!(decoded(&encoded(&left).unwrap()).unwrap(), left);
        for left in [left.clone(), Left { format: FORMAT + 1, boot_id: boot_id().unwrap(), ..left }]
        {
            let path = path(&all.agent);
            small_file::replace("x", &path, &encoded(&left).unwrap(), Lasting::InTime).unwrap();
            take_at(&all.agent, HashMap::new()).unwrap_err();
            assert!(!path.exists());
        }
        for damaged in [b"".as_slice(), b"\n", b"x\n{}"] {
            decoded(damaged).unwrap_err();
        }
    }

    #[test]
    fn it_is_left_and_taken_between_points() {
        let all = Journaled::new();
        let lab = FakeLab::listen(all.dir.path(), |_| "go".to_owned()).unwrap();
        restart(&all.agent);
        let points = ["left.before", "left.after", "taken.before", "taken.after"];
        assert_eq!(lab.heard(), points.map(|point| format!("handover.{point}")));
    }
}
