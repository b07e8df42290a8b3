//! The control groups that hold every process of the lab.
//!
//! They are what makes an end certain: a group is killed as one, whatever its processes forked
//! in the meantime, and a process id that was given to somebody else is never hit.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::{mounts, wait};

const KILL_LIMIT: Duration = Duration::from_secs(30);

/// A control group and all below it.
#[derive(Debug, Clone)]
pub struct Cgroup {
    /// The group in the unified (v2) hierarchy: the one that counts.
    path: PathBuf,
    /// Its name below the top of a hierarchy.
    name: String,
}

impl Cgroup {
    /// The lab's own group; its hosts' groups are below it.
    pub fn of_lab(lab: &str) -> Result<Cgroup> {
        let top = hierarchies()?
            .into_iter()
            .find_map(|(point, kind)| (kind == "cgroup2").then_some(point))
            .ok_or_else(|| anyhow!("no cgroup2 file system is mounted on this machine"))?;
        Ok(Cgroup { path: top.join(lab), name: lab.to_owned() })
    }

    /// A group below this one.
    pub fn child(&self, name: &str) -> Cgroup {
        Cgroup { path: self.path.join(name), name: format!("{}/{name}", self.name) }
    }

    /// Makes the group.
    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.path)
            .with_context(|| format!("making the control group {}", self.path.display()))
    }

    /// The file that a process writes "0" to in order to join.
    pub fn door(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// The processes of this very group, not of those below it.
    pub fn own_pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.door()).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The processes of this group and of all below it.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = self.own_pids();
        for name in children(&self.path) {
            pids.extend(self.child(&name).pids());
        }
        pids
    }

    /// Seconds of processors that its processes have used since it was made.
    pub fn processor_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(self.path.join("cpu.stat"))
            .with_context(|| format!("reading cpu.stat of {}", self.path.display()))?;
        let micros = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(micros.and_then(|n| n.parse::<f64>().ok()).context("no usage_usec")? / 1e6)
    }

    /// Whether any process is in it.
    pub fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Kills every process in it at once, and waits until they are gone.
    pub fn kill(&self) -> Result<()> {
        if !self.path.is_dir() {
            return Ok(());
        }
        fs::write(self.path.join("cgroup.kill"), "1").with_context(|| {
            format!("killing {}; this needs Linux 5.14 or later", self.path.display())
        })?;
        wait::until("killed processes to be gone", KILL_LIMIT, || {
            Ok((!self.is_populated()).then_some(()))
        })
    }

    /// Removes the empty group from every hierarchy: systemd-nspawn mirrors it into the old
    /// ones where a machine has those.
    pub fn remove(&self) -> Result<()> {
        for (top, _) in hierarchies()? {
            remove_tree(&top.join(&self.name))?;
        }
        Ok(())
    }
}

/// Mount point and type of every control group hierarchy.
fn hierarchies() -> Result<Vec<(PathBuf, String)>> {
    let mounts = mounts::all()?.into_iter().filter(|mount| mount.kind.starts_with("cgroup"));
    Ok(mounts.map(|mount| (mount.point, mount.kind)).collect())
}

/// The groups of this lab's name, with all below them, in every hierarchy: systemd-nspawn's own are at the
/// top as well, under the machines' names, which begin with the lab's.
pub fn below_every_top(lab: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for (top, _) in hierarchies()? {
        let mut open: Vec<PathBuf> = children(&top)
            .into_iter()
            .filter(|name| name.contains(lab))
            .map(|name| top.join(name))
            .collect();
        while let Some(group) = open.pop() {
            open.extend(children(&group).into_iter().map(|name| group.join(name)));
            found.push(group);
        }
    }
    Ok(found)
}

fn children(group: &Path) -> Vec<String> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn remove_tree(group: &Path) -> Result<()> {
    if !group.is_dir() {
        return Ok(());
    }
    for child in children(group) {
        remove_tree(&group.join(child))?;
    }
    // The last process may have left a moment ago.
    wait::until(&format!("the group {} to be removed", group.display()), KILL_LIMIT, || {
        Ok(fs::remove_dir(group).ok())
    })
}
