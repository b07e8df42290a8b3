//! A host's disks: its root, an overlay on an image's tree, and its /home, an ext4 file system
//! of its own in a file. (fanotify on a whole file system needs what overlays lack.)
//!
//! A host with disks of its own writes nothing elsewhere: what the overlay holds, its databases and its
//! /home are three ext4 file systems, in files that are in memory. So each can be filled up, and when the
//! power fails ext4 itself drops what nobody synced.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::spec::{HostSpec, etc_hosts, etc_interfaces};
use crate::{mounts, run, wait};

/// The size of what the overlay of a host with disks of its own holds.
const SYSTEM_MIB: u32 = 3072;
/// The size of such a host's databases' disk.
const DATABASES_MIB: u32 = 2048;
/// What fills a disk up.
const FILLER: &str = "lab-filler";
/// The smallest piece of a disk.
const BLOCK: u64 = 4096;
/// How long the kernel may take to let go of a disk whose users have ended.
const RELEASE_LIMIT: Duration = Duration::from_secs(15);

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
    pub fn mount(&self, tree: &Path, host: &HostSpec) -> Result<()> {
        let home = self.root().join("home");
        let mut layers = self.dir.clone();
        if host.own_disks {
            self.mount_memory()?;
            layers = self.system();
            self.mount_image("system", SYSTEM_MIB, &layers)?;
            self.mount_image("databases", DATABASES_MIB, &self.databases())?;
        }
        self.mount_root(tree, &layers)?;
        if host.own_disks {
            self.bind_databases(tree)?;
        }
        self.mount_image("home", host.home_mib, &home)
    }

    fn mount_root(&self, tree: &Path, layers: &Path) -> Result<()> {
        let [upper, work] = ["upper", "work"].map(|name| layers.join(name));
        let root = self.root();
        [&upper, &work, &root].into_iter().try_for_each(|dir| make_dir(dir))?;
        if mounts::is_mounted(&root)? {
            return Ok(());
        }
        let options = format!(
            "redirect_dir=on,lowerdir={},upperdir={},workdir={}",
            tree.display(),
            upper.display(),
            work.display()
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "-o", &options, "overlay"]).arg(&root);
        run::check(&mut mount).context("mounting the root file system")?;
        Ok(())
    }

    /// Mounts the file system in a file of this name; makes it first if it is not there.
    fn mount_image(&self, name: &str, mib: u32, point: &Path) -> Result<()> {
        if mounts::is_mounted(point)? {
            return Ok(());
        }
        make_dir(point)?;
        let file = self.make_image(name, mib)?;
        run::check(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(point))
            .with_context(|| format!("mounting {name}; this needs loop devices"))?;
        Ok(())
    }

    /// Mounts a file system of this name at a place in the root; makes it first if it is not there.
    pub fn attach(&self, name: &str, mib: u32, place: &str) -> Result<()> {
        self.mount_image(name, mib, &self.root().join(place))
    }

    /// Unmounts and removes a file system of this name, if it is there.
    pub fn detach(&self, name: &str, place: &str) -> Result<()> {
        let point = self.root().join(place);
        if mounts::is_mounted(&point)? {
            mounts::unmount_below(&point)?;
        }
        let file = self.dir.join(format!("{name}.img"));
        match fs::remove_file(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.with_context(|| format!("removing {}", file.display())),
        }
    }

    fn mount_memory(&self) -> Result<()> {
        let memory = self.memory();
        make_dir(&memory)?;
        if !mounts::is_mounted(&memory)? {
            let mut mount = Command::new("mount");
            run::check(
                mount.args(["-t", "tmpfs", "-o", "size=8G,mode=0700", "disks"]).arg(&memory),
            )?;
        }
        Ok(())
    }

    /// Puts the databases where their servers look for them; a new host's are the image's.
    fn bind_databases(&self, tree: &Path) -> Result<()> {
        for name in ["mysql", "postgresql"] {
            let (own, place) = (self.databases().join(name), format!("var/lib/{name}"));
            if !tree.join(&place).is_dir() {
                continue;
            }
            if !own.exists() {
                // Under another name, so that it is whole or not there.
                let new = self.databases().join(format!("{name}.new"));
                let mut copy = Command::new("cp");
                run::check(
                    copy.args(["-a", "--no-target-directory"]).arg(tree.join(&place)).arg(&new),
                )?;
                run::check(Command::new("sync").arg("-f").arg(&new))?;
                fs::rename(&new, &own)?;
            }
            let point = self.root().join(&place);
            if !mounts::is_mounted(&point)? {
                run::check(Command::new("mount").arg("--bind").arg(&own).arg(&point))?;
            }
        }
        Ok(())
    }

    /// Cuts the power of a host's own disks: nothing that is not on them yet ever will be.
    pub fn cut(&self) -> Result<()> {
        let points = [self.system(), self.databases(), self.root().join("home")];
        for point in points {
            let disk =
                File::open(&point).with_context(|| format!("opening {}", point.display()))?;
            shut_down(&disk).with_context(|| format!("cutting {}", point.display()))?;
        }
        Ok(())
    }

    /// Unmounts a host's own disks, which keep what they hold.
    pub fn unmount(&self) -> Result<()> {
        for point in [self.root(), self.databases(), self.system()] {
            mounts::unmount_below(&point)?;
        }
        // Two mounts of one disk would spoil it.
        wait::until("the host's disks to be released", RELEASE_LIMIT, || {
            Ok(mounts::loops_below(&self.memory())?.is_empty().then_some(()))
        })
    }

    /// Fills one of a host's own disks up: `system`, `databases` or `home`.
    pub fn fill(&self, name: &str) -> Result<()> {
        let path = self.point(name).join(FILLER);
        let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        let mut end = 0;
        // What is not free in one piece is taken in smaller ones, down to the last block.
        let mut piece = u64::from(SYSTEM_MIB) << 20;
        while piece >= BLOCK {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), end, piece) {
                Ok(()) => end += piece,
                Err(Errno::NOSPC) => piece /= 2,
                Err(error) => return Err(error).context("filling a disk"),
            }
        }
        Ok(())
    }

    /// Frees what [`Disk::fill`] took.
    pub fn unfill(&self, name: &str) -> Result<()> {
        let path = self.point(name).join(FILLER);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.with_context(|| format!("removing {}", path.display())),
        }
    }

    /// Where one of a host's own disks is mounted.
    fn point(&self, name: &str) -> PathBuf {
        match name {
            "system" => self.system(),
            "databases" => self.databases(),
            _ => self.root().join("home"),
        }
    }

    /// Where the files of a host's own disks are.
    fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// Where what the overlay holds is mounted.
    fn system(&self) -> PathBuf {
        self.dir.join("system")
    }

    /// Where a host's own databases are mounted, all together.
    fn databases(&self) -> PathBuf {
        self.dir.join("databases")
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

    /// The file that holds a file system. Made under another name, so that it is whole or not there.
    fn make_image(&self, name: &str, mib: u32) -> Result<PathBuf> {
        let memory = self.memory();
        let dir = if memory.exists() { &memory } else { &self.dir };
        let file = dir.join(format!("{name}.img"));
        if file.exists() {
            return Ok(file);
        }
        let new = dir.join(format!("{name}.img.new"));
        File::create(&new)
            .and_then(|file| file.set_len(u64::from(mib) << 20))
            .with_context(|| format!("making {}", new.display()))?;
        run::check(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-E", "nodiscard"]).arg(&new))?;
        fs::rename(&new, &file)?;
        Ok(file)
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))
}

/// ext4 lets nothing more through to its device, and does not write its journal out before.
fn shut_down(disk: &File) -> Result<()> {
    /// EXT4_IOC_SHUTDOWN, `_IOR('X', 125, __u32)`.
    const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
    /// EXT4_GOING_FLAGS_NOLOGFLUSH.
    const NO_LOG_FLUSH: u32 = 2;
    // SAFETY: this request reads one u32 from where its argument points, and writes nothing.
    #[allow(unsafe_code)]
    let done = unsafe {
        rustix::ioctl::ioctl(disk, rustix::ioctl::Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH))
    };
    Ok(done?)
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
    fn a_power_cut_keeps_what_was_synced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::at(dir.path().to_owned());
        let home = disk.root().join("home");
        let mount = |name, point: &Path| disk.mount_image(name, 64, point).unwrap();
        disk.mount_memory().unwrap();
        let mount_all = || {
            mount("system", &disk.system());
            mount("databases", &disk.databases());
            mount("home", &home);
        };
        mount_all();
        let synced = home.join("synced");
        fs::write(&synced, "kept").unwrap();
        File::open(&synced).unwrap().sync_all().unwrap();
        fs::write(home.join("unsynced"), "lost").unwrap();
        disk.cut().unwrap();
        assert!(fs::write(home.join("late"), "never").is_err());
        disk.unmount().unwrap();
        mount_all();
        assert_eq!(fs::read_to_string(&synced).unwrap(), "kept");
        assert!(!home.join("unsynced").exists());
        disk.fill("home").unwrap();
        let full = fs::write(home.join("more"), [0; 1 << 16]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        disk.unfill("home").unwrap();
        fs::write(home.join("more"), [0; 1 << 16]).unwrap();
        disk.unmount().unwrap();
        disk.destroy().unwrap();
    }

    #[test]
    fn postfix_gets_the_hosts_name_and_keeps_the_rest() {
        let config = "biff = no\nmyhostname = builder\nrelayhost =\n";
        assert_eq!(
            with_hostname(config, "client.lab.test"),
            "biff = no\nrelayhost =\nmyhostname = client.lab.test\n"
        );
    }
}
