//! A host's disks: its root, an overlay on an image's tree, and its /home, an ext4 file system
//! of its own in a file. (fanotify on a whole file system needs what overlays lack.)

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::spec::{HostSpec, etc_hosts, etc_interfaces};
use crate::{mounts, run};

/// The disks of one host, in one directory.
#[derive(Debug, Clone)]
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// The disks that are, or will be, in `dir`.
    pub fn at(dir: PathBuf) -> Disk {
        Disk { dir }
    }

    /// Where the root file system is mounted, /home included.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Where the host's console output goes.
    pub fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Makes the disks where they are not there yet, and mounts them.
    pub fn mount(&self, tree: &Path, home_mib: u32) -> Result<()> {
        let [upper, work, root] = ["upper", "work", "root"].map(|name| self.dir.join(name));
        for dir in [&upper, &work, &root] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        if !mounts::is_mounted(&root)? {
            let options = format!(
                "redirect_dir=on,lowerdir={},upperdir={},workdir={}",
                tree.display(),
                upper.display(),
                work.display()
            );
            let mut mount = Command::new("mount");
            mount.args(["-t", "overlay", "-o", &options, "overlay"]).arg(&root);
            run::check(&mut mount).context("mounting the root file system")?;
        }
        let home = root.join("home");
        if !mounts::is_mounted(&home)? {
            let file = self.make_home(home_mib)?;
            run::check(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&home))
                .context("mounting /home; this needs loop devices")?;
        }
        Ok(())
    }

    /// Gives a new host what no two hosts may share.
    pub fn write_identity(&self, host: &HostSpec, others: &[HostSpec]) -> Result<()> {
        let machine_id = fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', "");
        let files = [
            ("hostname", format!("{}\n", host.name)),
            ("hosts", etc_hosts(others)),
            ("mailname", format!("{}\n", host.full_name())),
            ("machine-id", machine_id),
            ("network/interfaces", etc_interfaces(host)),
        ];
        let etc = self.root().join("etc");
        for (name, content) in files {
            let path = etc.join(name);
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        }
        let postfix = etc.join("postfix/main.cf");
        if let Ok(config) = fs::read_to_string(&postfix) {
            fs::write(&postfix, with_hostname(&config, &host.full_name()))?;
        }
        run::check(Command::new("chroot").arg(self.root()).args(["ssh-keygen", "-A"]))
            .context("making the host's SSH keys")?;
        Ok(())
    }

    /// Unmounts the disks and removes them.
    pub fn destroy(&self) -> Result<()> {
        mounts::unmount_below(&self.dir)?;
        if self.dir.is_dir() {
            fs::remove_dir_all(&self.dir)
                .with_context(|| format!("removing {}", self.dir.display()))?;
        }
        Ok(())
    }

    /// The file that holds /home. Made under another name, so that it is whole or not there.
    fn make_home(&self, home_mib: u32) -> Result<PathBuf> {
        let file = self.dir.join("home.img");
        if file.exists() {
            return Ok(file);
        }
        let new = self.dir.join("home.img.new");
        File::create(&new)
            .and_then(|file| file.set_len(u64::from(home_mib) << 20))
            .with_context(|| format!("making {}", new.display()))?;
        run::check(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-E", "nodiscard"]).arg(&new))?;
        fs::rename(&new, &file)?;
        Ok(file)
    }
}

/// Postfix's configuration with this machine's name, which was taken when the image was made,
/// replaced by the host's.
fn with_hostname(config: &str, name: &str) -> String {
    let kept = config.lines().filter(|line| !line.starts_with("myhostname"));
    let mut lines: Vec<String> = kept.map(str::to_owned).collect();
    lines.push(format!("myhostname = {name}\n"));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postfix_gets_the_hosts_name_and_keeps_the_rest() {
        let config = "biff = no\nmyhostname = builder\nrelayhost =\n";
        assert_eq!(
            with_hostname(config, "client.lab.test"),
            "biff = no\nrelayhost =\nmyhostname = client.lab.test\n"
        );
    }
}
