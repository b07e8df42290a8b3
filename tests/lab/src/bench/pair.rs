//! Two hosts that may copy to one another, and what a copy from one to the other takes. A tree is at
//! `/srv/source/TREE` of the source, its copy at `/srv/target/TREE` of the target, both on file systems made for
//! that.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::who::{PROGRAMS, Who};
use crate::host::Host;
use crate::lab::Lab;
use crate::progress::{Task, say};
use crate::{interrupt, run};

/// What a change journal has to be told by for its figures to count.
pub const JOURNAL: &str = "fanotify, renames";
/// The longest that one copy may take.
const COPY_LIMIT: Duration = Duration::from_secs(3600);
/// How often the memory of what runs is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// The places of the source's and the target's file systems, and what they are called.
const SOURCE: (&str, &str) = ("bench-source", "srv/source");
const TARGET: (&str, &str) = ("bench-target", "srv/target");

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Seconds.
    pub wall: f64,
    /// Seconds until all of it was on the target's disk: not everybody waits for that.
    pub durable: f64,
    /// Seconds of both hosts' processors.
    pub processor: f64,
    /// Bytes on the source's cable, both ways.
    pub wire: f64,
    /// Bytes that the programs of a copy had at most, on the source and on the target.
    pub memory: [f64; 2],
}

impl Sample {
    /// On the side that had more.
    pub fn most_memory(&self) -> f64 {
        self.memory[0].max(self.memory[1])
    }
}

/// Writes out what a host's file system at `place` has not yet written.
fn sync(host: &Host, place: &str) -> Result<()> {
    let mut sync = Command::new("sync");
    sync.arg("-f").arg(host.rootfs().join(place));
    run::capture(&mut sync, &[], COPY_LIMIT)?.ok().map(drop)
}

/// See the module.
#[derive(Debug)]
pub struct Pair<'a> {
    lab: &'a Lab,
    /// Where trees are made.
    pub source: &'a Host,
    /// Where they are copied to.
    pub target: &'a Host,
    /// The size of both file systems; space is used as they are filled.
    mib: u32,
}

impl<'a> Pair<'a> {
    /// Lets the hosts of a lab with Ferry on it copy to one another.
    pub fn prepare(lab: &'a Lab, mib: u32) -> Result<Self> {
        let task = Task::start("letting the hosts copy to one another");
        let (source, target) = (lab.host("client")?, lab.host("transit")?);
        source.sh("test -f /root/.ssh/id_ed25519 || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")?;
        let key = source.read_file("/root/.ssh/id_ed25519.pub")?;
        target.write_file("/root/.ssh/authorized_keys", 0o600, &key)?;
        target.sh("systemctl start ssh")?;
        let host_key = target.sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub")?;
        source.write_file(
            "/root/.ssh/known_hosts",
            0o600,
            format!("transit {host_key}").as_bytes(),
        )?;
        let module = "[target]\npath = /srv/target\nread only = false\nuid = root\ngid = root\n\
                      use chroot = false\nnumeric ids = true\n";
        target.write_file("/etc/rsyncd.conf", 0o644, module.as_bytes())?;
        target.sh("rsync --daemon")?;
        source.sh("ssh -o BatchMode=yes root@transit true")?;
        let pair = Self { lab, source, target, mib };
        pair.fresh_source()?;
        task.done();
        Ok(pair)
    }

    /// Makes the source's file system anew.
    pub fn fresh_source(&self) -> Result<()> {
        let (name, place) = SOURCE;
        self.source.detach(name, place)?;
        self.source.attach(name, self.mib, place)
    }

    /// Makes the target's file system anew, with empty directories for these trees.
    pub fn fresh_target(&self, trees: &[&str]) -> Result<()> {
        let (name, place) = TARGET;
        self.target.detach(name, place)?;
        self.target.attach(name, self.mib, place)?;
        for tree in trees {
            let copy = format!("/srv/target/{tree}");
            self.target.sh(&format!("mkdir {copy}; ferry-agent files allow client {copy}"))?;
        }
        Ok(())
    }

    /// Where a tree of the source is, seen from outside.
    pub fn tree(&self, tree: &str) -> PathBuf {
        self.source.rootfs().join(SOURCE.1).join(tree)
    }

    /// Writes out what was written before: it is not to be paid for by what comes next.
    pub fn sync(&self) -> Result<()> {
        sync(self.source, SOURCE.1)?;
        sync(self.target, TARGET.1)
    }

    /// Has the agent watch a tree, which is copied before this returns.
    pub fn follow(&self, tree: &str) -> Result<()> {
        let copy = Who::Ferry.command(tree).replacen(" --json ", " --json --again ", 1);
        let pipes = format!("/run/again-{tree}.in /run/again-{tree}.out");
        let script = format!(
            "rm -f {pipes}; mkfifo {pipes}
             systemd-run -q --collect --unit bench-again-{tree} bash -c \
                 'exec 3<>/run/again-{tree}.in 4<>/run/again-{tree}.out; exec {copy} <&3 >&4'
             read -r said < /run/again-{tree}.out
             printf '%s\\n' \"$said\""
        );
        let said = self.source.exec_with(&["bash", "-euc", &script], &[], COPY_LIMIT)?.ok()?;
        expect_journal(&said, false).with_context(|| format!("watching {tree}"))
    }

    /// Has the agent that watches a tree copy once more what has changed; tells what that took.
    pub fn again(&self, what: &str, tree: &str) -> Result<Sample> {
        let command = format!(
            "echo > /run/again-{tree}.in; read -r said < /run/again-{tree}.out; printf '%s\\n' \"$said\""
        );
        let (sample, said) = self.sample(what, &command)?;
        expect_journal(&said, true).with_context(|| what.to_owned())?;
        Ok(sample)
    }

    /// The agent watches a tree no longer.
    pub fn unfollow(&self, tree: &str) -> Result<()> {
        self.source.sh(&format!("systemctl stop bench-again-{tree}")).map(drop)
    }

    /// By rsync's word, which knows nothing of Ferry's.
    pub fn expect_equal(&self, tree: &str) -> Result<()> {
        let command = Who::RsyncSsh.command(tree).replacen(
            "rsync ",
            "rsync -n --itemize-changes --modify-window=-1 ",
            1,
        );
        let said = self.source.exec_with(&["sh", "-euc", &command], &[], COPY_LIMIT)?.ok()?;
        ensure!(said.is_empty(), "Ferry's copy of {tree} is not equal:\n{said}");
        Ok(())
    }

    /// Runs a command on the source, which is called `what`; tells what that took and what it said.
    pub fn sample(&self, what: &str, command: &str) -> Result<(Sample, String)> {
        interrupt::check()?;
        self.sync()?;
        let command = format!("set -o pipefail; {command}");
        let (processor, wire) = (self.processor()?, self.wire()?);
        // Without the watcher's last look, which may be long after.
        let ((done, wall, flushed, durable), memory) = self.watching_memory(|| {
            let began = Instant::now();
            let said = self.source.exec_with(&["bash", "-euc", &command], &[], COPY_LIMIT);
            let wall = began.elapsed().as_secs_f64();
            let flushed = sync(self.target, TARGET.1);
            (said.and_then(run::Output::ok), wall, flushed, began.elapsed().as_secs_f64())
        });
        let said = done.with_context(|| what.to_owned())?;
        let (processor, wire) = (self.processor()? - processor, self.wire()? - wire);
        flushed?;
        let [source, target] = memory.map(|bytes| bytes / 1e6);
        say(format!(
            "{what}: {wall:.2} s, on the disk after {durable:.2} s, {processor:.1} s of processors, {:.1} MB on the wire, \
             {source:.0} and {target:.0} MB of memory; {}",
            wire / 1e6,
            said.lines().next().unwrap_or_default().chars().take(120).collect::<String>()
        ));
        Ok((Sample { wall, durable, processor, wire, memory }, said))
    }

    /// Seconds of processors that both hosts have used so far.
    fn processor(&self) -> Result<f64> {
        Ok(self.source.processor_seconds()? + self.target.processor_seconds()?)
    }

    /// Bytes that have crossed the source's cable so far.
    fn wire(&self) -> Result<f64> {
        let mut command = self.lab.netns_command("ip");
        command.args(["-j", "-s", "link", "show", "dev", &self.source.port()?]);
        let said: Value = serde_json::from_str(&run::check(&mut command)?)?;
        let bytes = |way: &str| said[0]["stats64"][way]["bytes"].as_f64();
        Ok(bytes("rx").context("rx")? + bytes("tx").context("tx")?)
    }

    /// Runs something, and tells what the programs of each side had of memory at most.
    #[allow(clippy::cast_precision_loss)]
    fn watching_memory<T>(&self, work: impl FnOnce() -> T) -> (T, [f64; 2]) {
        let is_over = AtomicBool::new(false);
        let most = [AtomicU64::new(0), AtomicU64::new(0)];
        let done = thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for (host, most) in [self.source, self.target].into_iter().zip(&most) {
                        most.fetch_max(memory_of(host), Ordering::Relaxed);
                    }
                    thread::sleep(LOOK);
                }
            });
            let done = work();
            is_over.store(true, Ordering::Relaxed);
            done
        });
        (done, most.map(|most| most.into_inner() as f64))
    }
}

/// Fails unless a pass had the change journal that figures are told of, and was made by it if it is to be
/// `partial`.
fn expect_journal(said: &str, partial: bool) -> Result<()> {
    let line = said.lines().next().unwrap_or_default();
    let told: Value = serde_json::from_str(line).context("a pass does not say what it did")?;
    let journal = &told["journal"];
    ensure!(
        *journal == JOURNAL,
        "the change journal is told by {journal}, and these figures are of {JOURNAL:?}"
    );
    ensure!(
        !partial || told["partial"] == true,
        "the pass looked at everything: its change journal may have missed something"
    );
    Ok(())
}

/// Resident bytes of the programs of a copy on a host; what they share counts for each.
fn memory_of(host: &Host) -> u64 {
    let of = |pid: u32| -> Option<u64> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let name = fs::read_to_string(process.join("comm")).ok()?;
        PROGRAMS.contains(&name.trim()).then_some(())?;
        let statm = fs::read_to_string(process.join("statm")).ok()?;
        statm.split(' ').nth(1)?.parse::<u64>().ok().map(|pages| pages * 4096)
    };
    host.pids().into_iter().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_another_journal_or_of_none_do_not_count() {
        let partial = r#"{"entries":1,"journal":"fanotify, renames","partial":true}"#;
        expect_journal(partial, true).unwrap();
        expect_journal(partial, false).unwrap();
        let whole = partial.replace("true", "false");
        expect_journal(&whole, false).unwrap();
        assert!(expect_journal(&whole, true).is_err());
        assert!(expect_journal(&partial.replace("renames", "names"), true).is_err());
        assert!(expect_journal(r#"{"journal":null,"partial":false}"#, false).is_err());
        assert!(expect_journal("", false).is_err());
    }
}
