//! Mounts, as the kernel lists them: what is there is asked, not remembered.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use crate::progress::say;
use crate::{interrupt, wait};

const LOOP_LIMIT: Duration = Duration::from_secs(15);

/// One line of /proc/self/mountinfo.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// The file system's own options.
    pub options: String,
}

/// All mounts, in the order in which they were made.
pub fn all() -> Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading the list of mounts")?;
    Ok(text.lines().filter_map(parse).collect())
}

/// Whether something is mounted exactly here.
pub fn is_mounted(point: &Path) -> Result<bool> {
    Ok(all()?.iter().any(|mount| mount.point == point))
}

/// Whether some overlay has this tree as its lower layer.
pub fn uses(tree: &Path) -> Result<bool> {
    let lower = format!("lowerdir={}", tree.display());
    Ok(all()?.iter().any(|mount| mount.options.split(',').any(|option| option == lower)))
}

/// Makes a directory a mount of its own that shares its fate: what is mounted below it is
/// unmounted in every mount namespace at once. Without this, a namespace that somebody made in
/// the meantime would hold a copy of our mounts, and our loop devices with them.
pub fn share(dir: &Path) -> Result<()> {
    if !is_mounted(dir)? {
        mount_bind(dir, dir).with_context(|| format!("binding {}", dir.display()))?;
    }
    mount_change(dir, MountPropagationFlags::SHARED)
        .with_context(|| format!("sharing {}", dir.display()))
}

/// Unmounts everything below a directory, the innermost first, and waits for its loop devices.
///
/// Somebody's shell may stand there. It is not ours to end: the mount is taken out of the tree all
/// the same, who holds it is named, and the kernel frees the rest when they let go.
pub fn unmount_below(dir: &Path) -> Result<()> {
    let points: Vec<PathBuf> =
        all()?.into_iter().map(|mount| mount.point).filter(|p| p.starts_with(dir)).collect();
    let mut holders = Vec::new();
    for point in points.iter().rev() {
        let mut result = unmount(point, UnmountFlags::NOFOLLOW);
        if result == Err(Errno::BUSY) {
            holders.extend(processes_in(point));
            result = unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        result.with_context(|| format!("unmounting {}", point.display()))?;
    }
    // A mount namespace that is just dying may hold a file system for a moment.
    let limit = if holders.is_empty() { LOOP_LIMIT } else { Duration::ZERO };
    let released = || Ok(loops_below(dir)?.is_empty().then_some(()));
    if wait::until("the loop devices to be released", limit, released).is_err() {
        interrupt::check()?;
        holders.extend(processes_seeing(dir));
        let holders = holders.join(", ");
        say(format!("a file system of {} stays until it is let go by {holders}", dir.display()));
    }
    Ok(())
}

/// The processes that stand below a directory, or have a file open there.
fn processes_in(dir: &Path) -> Vec<String> {
    let inside = |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(dir));
    processes(|process| {
        let mut files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        ["cwd", "root", "exe"].iter().any(|link| inside(&process.join(link)))
            || files.any(|file| inside(&file.path()))
    })
}

/// The processes in whose mount namespace something is still mounted below a directory.
fn processes_seeing(dir: &Path) -> Vec<String> {
    let below = format!(" {}", dir.display());
    processes(|process| {
        fs::read_to_string(process.join("mountinfo")).is_ok_and(|mounts| mounts.contains(&below))
    })
}

fn processes(chosen: impl Fn(&Path) -> bool) -> Vec<String> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |path: &Path| path.join("comm").is_file();
    all.map(|entry| entry.path())
        .filter(|path| is_process(path) && chosen(path))
        .map(|path| {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            format!("{} ({})", path.file_name().unwrap_or_default().display(), name.trim())
        })
        .take(10)
        .collect()
}

/// Loop devices whose backing file is below a directory.
pub fn loops_below(dir: &Path) -> Result<Vec<String>> {
    let mut loops = Vec::new();
    for entry in fs::read_dir("/sys/block").context("listing block devices")? {
        let entry = entry?;
        let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        if Path::new(file.trim_end_matches('\n')).starts_with(dir) {
            loops.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(loops)
}

fn parse(line: &str) -> Option<Mount> {
    let (mount, source) = line.split_once(" - ")?;
    let mut source = source.split(' ');
    Some(Mount {
        point: PathBuf::from(unescape(mount.split(' ').nth(4)?)),
        kind: source.next()?.to_owned(),
        options: unescape(source.nth(1)?),
    })
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - overlay overlay \
                    rw,lowerdir=/a,upperdir=/b";
        let mount = parse(line).unwrap();
        assert_eq!(mount.point, Path::new("/mnt 2"));
        assert_eq!(mount.kind, "overlay");
        assert_eq!(mount.options, "rw,lowerdir=/a,upperdir=/b");
    }
}
