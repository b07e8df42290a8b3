//! The lab leaves nothing behind: not when it is taken down, and not when it is interrupted.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::image::{self, Image};
use crate::lab::Lab;
use crate::spec::HostSpec;
use crate::{cgroup, run, state, wait};

/// How long an interrupted run may take to clean up.
const CLEAN_UP: Duration = Duration::from_secs(60);

/// Looks at the machine before and after.
pub fn run() -> Result<()> {
    // Made beforehand: the runs below are given time to boot, not to make Debian trees.
    image::ensure(&[Image::Controller, Image::Debian12, Image::Debian13])?;
    Lab::down()?;
    let before = Traces::look()?;
    drop(Lab::fresh(&[HostSpec::client()])?);
    before.expect_none_since("a lab that went down")?;
    let status = ended_by("-INT")?;
    ensure!(status.code() == Some(130), "the interrupted run ended with {status}");
    before.expect_none_since("an interrupted run")?;
    ended_by("-KILL")?;
    ensure!(state::dir()?.exists(), "a killed run left nothing, so taking it down shows nothing");
    Lab::down()?;
    before.expect_none_since("a killed run that was taken down")
}

/// Begins to bring a lab up as a person would, and ends that with a signal when a host boots.
fn ended_by(signal: &str) -> Result<ExitStatus> {
    let mut child = Command::new("/proc/self/exe")
        .arg("up")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("starting a run to end")?;
    let dir = state::dir()?;
    let began = wait::until("the run to begin", CLEAN_UP, || {
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("the run ended by itself: {status}");
        }
        Ok(dir.join("hosts/transit/root/etc").exists().then_some(()))
    });
    let pid = child.id().to_string();
    run::check(Command::new("kill").args([signal, &pid]))?;
    let status = wait::until("the run to end", CLEAN_UP, || Ok(child.try_wait()?))?;
    began?;
    Ok(status)
}

/// What a lab could leave on a machine.
#[derive(Debug)]
struct Traces(BTreeSet<String>);

impl Traces {
    fn look() -> Result<Traces> {
        let name = state::dir()?.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut seen = BTreeSet::new();
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let point = line.split(' ').nth(4).unwrap_or_default();
            seen.insert(format!("mount {point}"));
        }
        let loops = run::check(Command::new("losetup").args(["-n", "-O", "BACK-FILE", "-a"]))?;
        seen.extend(loops.lines().map(|l| format!("loop device of {l}")));
        let links = run::check(Command::new("ip").args(["-br", "link"]))?;
        let links = links.lines().filter_map(|l| l.split(['@', ' ']).next());
        seen.extend(links.map(|l| format!("link {l}")));
        let tables = run::check(Command::new("nft").args(["list", "tables"]))?;
        seen.extend(tables.lines().map(|l| format!("nft {l}")));
        for entry in fs::read_dir("/proc")?.flatten() {
            let group = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            // One that has ended and that this machine's init has yet to reap is not the lab's.
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            if group.contains(&name) && !status.contains("State:\tZ") {
                seen.insert(format!("process {:?} in {}", entry.file_name(), group.trim()));
            }
        }
        for group in cgroup::below_every_top(&name)? {
            seen.insert(format!("control group {}", group.display()));
        }
        for place in [state::dir()?, "/run/systemd/nspawn/propagate".into(), "/run/netns".into()] {
            for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
                seen.insert(format!("file {}", entry.path().display()));
            }
        }
        Ok(Traces(seen))
    }

    fn expect_none_since(&self, what: &str) -> Result<()> {
        let now = Traces::look()?;
        let left: Vec<&String> = now.0.difference(&self.0).collect();
        ensure!(left.is_empty(), "{what} left: {left:#?}");
        ensure!(!state::dir()?.exists(), "{what} left {}", state::dir()?.display());
        Ok(())
    }
}
