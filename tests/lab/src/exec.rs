//! Working inside a host: commands, files, packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::host::Host;
use crate::run::{self, Output};

/// How long a command in a host may take unless it is given another limit.
pub const EXEC_LIMIT: Duration = Duration::from_secs(300);

/// Joins the host's own control group, so that the command is the host's and ends with it, and
/// then enters the host. Arguments: the group's door, the command.
const ENTER: &str = r#"door=$1; shift; echo 0 > "$door" && exec "$@""#;

/// The environment of a command in a host: root's, and nothing of ours.
const ENVIRONMENT: [&str; 5] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "USER=root",
    "LANG=C.UTF-8",
    "DEBIAN_FRONTEND=noninteractive",
];

impl Host {
    /// A command that will run as root inside the host: for callers that stream its output or
    /// let it run while they go on. [`Host::exec`] is the simple way.
    pub fn command(&self, argv: &[&str]) -> Result<Command> {
        let (leader, group) = self.init()?;
        let mut command = Command::new("sh");
        command.args(["-c", ENTER, "enter"]).arg(group.door());
        // Also its root and working directory: a namespace's first root need not be its own.
        command.args(["nsenter", "--all", "--root", "--wd", &format!("--target={leader}"), "--"]);
        command.args(["env", "-i"]).args(ENVIRONMENT);
        if let Ok(term) = std::env::var("TERM") {
            command.arg(format!("TERM={term}"));
        }
        command.args(["sh", "-c", r#"cd /root && exec "$@""#, "sh"]).args(argv);
        Ok(command)
    }

    /// Runs a command in the host, whatever its exit code.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        self.exec_with(argv, &[], EXEC_LIMIT)
    }

    /// Runs a command in the host with this standard input and time limit.
    pub fn exec_with(&self, argv: &[&str], input: &[u8], limit: Duration) -> Result<Output> {
        run::capture(&mut self.command(argv)?, input, limit)
            .with_context(|| format!("on {}: {}", self.name(), argv.join(" ")))
    }

    /// Runs a shell script in the host; it ends at its first error, which is then ours.
    /// Returns what it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.exec(&["sh", "-euc", script])?
            .ok()
            .with_context(|| format!("on {}: {}", self.name(), script.trim()))
    }

    /// Writes a file in the host with this mode, with the directories that lead to it.
    pub fn write_file(&self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let script = r#"mkdir -p "$(dirname "$1")"; umask 077; cat > "$1"; chmod "$2" "$1""#;
        let mode = format!("{mode:04o}");
        self.exec_with(&["sh", "-euc", script, "sh", path, &mode], content, EXEC_LIMIT)?
            .ok()
            .with_context(|| format!("writing {path} on {}", self.name()))?;
        Ok(())
    }

    /// Reads a file in the host.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        let output = self.exec(&["cat", "--", path])?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        bail!("reading {path} on {}: {}", self.name(), output.error_text().trim())
    }

    /// Copies a file of this machine into the host.
    pub fn copy_in(&self, local: &Path, path: &str, mode: u32) -> Result<()> {
        let content = fs::read(local).with_context(|| format!("reading {}", local.display()))?;
        self.write_file(path, mode, &content)
    }

    /// Installs or upgrades packages from files of this machine, with apt as an operator would.
    /// What they depend on must be in the image: a host reaches no mirror.
    pub fn install_debs(&self, debs: &[PathBuf]) -> Result<()> {
        const PLACE: &str = "/var/tmp/lab-debs";
        let mut install = vec!["apt-get", "install", "-q", "-y", "--allow-downgrades"];
        install.extend(["-o", "Dpkg::Options::=--force-confold"]);
        let mut paths = Vec::new();
        for deb in debs {
            let name = deb.file_name().context("a package file has no name")?.to_string_lossy();
            let path = format!("{PLACE}/{name}");
            self.copy_in(deb, &path, 0o644)?;
            paths.push(path);
        }
        install.extend(paths.iter().map(String::as_str));
        self.exec(&install)?.ok().with_context(|| format!("installing on {}", self.name()))?;
        self.sh(&format!("rm -rf {PLACE}"))?;
        Ok(())
    }
}
