//! Ferry on the lab's hosts: installed, enrolled, and commanded by its own command line, as an
//! operator would.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferry_proto::view::JobView;
use serde_json::Value;

use crate::build::Build;
use crate::host::Host;
use crate::lab::Lab;
use crate::progress::Task;
use crate::run::Output;
use crate::wait;

/// The port that agents and operators use.
const PORT: u16 = 7400;
/// How long a service may take to be ready.
const READY: Duration = Duration::from_secs(60);
/// How long one command of an operator may take; a move is one.
const COMMAND: Duration = Duration::from_secs(600);

/// What docs/install.md advises for a server: a reload of PHP-FPM ends nobody's request.
const AS_ADVISED: &str = r"
for conf in /etc/php/*/fpm/php-fpm.conf; do
    sed -i 's/^;*process_control_timeout = .*/process_control_timeout = 10s/' $conf
    grep -q '^process_control_timeout = 10s$' $conf
done
systemctl reload 'php*-fpm'";

/// The controller and its agents.
#[derive(Debug, Clone, Copy)]
pub struct Fleet<'a> {
    lab: &'a Lab,
    controller: &'a Host,
}

impl<'a> Fleet<'a> {
    /// Ferry as it is installed on a lab's hosts.
    pub fn of(lab: &'a Lab) -> Result<Fleet<'a>> {
        Ok(Fleet { lab, controller: lab.host("controller")? })
    }

    /// Installs the packages, starts the controller and enrols both servers.
    pub fn install(lab: &'a Lab, build: &Build) -> Result<Fleet<'a>> {
        let fleet = Fleet::of(lab)?;
        let task = Task::start("installing Ferry");
        fleet.install_controller(build.deb("ferry-controller")?)?;
        for (name, role) in [("client", "client"), ("transit", "transit")] {
            task.detail(name);
            let host = lab.host(name)?;
            install_agent(host, build.deb("ferry-agent")?)?;
            fleet.enrol(host, role)?;
        }
        fleet.await_connected(&["client", "transit"])?;
        task.done();
        Ok(fleet)
    }

    /// The host of the controller.
    pub fn controller(&self) -> &'a Host {
        self.controller
    }

    /// The lab that it runs in.
    pub fn lab(&self) -> &'a Lab {
        self.lab
    }

    /// Where agents find the controller.
    pub fn address(&self) -> String {
        format!("{}:{PORT}", self.controller.spec().address)
    }

    /// Installs the controller and waits until it answers.
    pub fn install_controller(&self, deb: &Path) -> Result<()> {
        self.controller.install_debs(&[deb.to_owned()])?;
        self.controller.sh("systemctl start ferry-controller")?;
        wait::until("the controller to answer", READY, || {
            Ok(self.ferry(&["server", "list"])?.status.success().then_some(()))
        })
    }

    /// Registers a server; tells its token.
    pub fn token(&self, name: &str, role: &str, more: &[&str]) -> Result<String> {
        let argv = [&["server", "add", name, "--role", role], more].concat();
        Ok(self.ferry(&argv)?.ok()?.trim().to_owned())
    }

    /// Gives a host's agent its certificate, and starts it.
    pub fn enrol(&self, host: &Host, role: &str) -> Result<()> {
        let token = self.token(host.name(), role, &[])?;
        self.enrol_with(host, &token)?
            .ok()
            .with_context(|| format!("enrolling {}", host.name()))?;
        host.sh("systemctl restart ferry-agent")
            .map(|_| ())
            .or_else(|error| bail!("{error:#}\n{}", journal(host, "ferry-agent", 30)))
    }

    /// Tries to enrol a host with this token.
    pub fn enrol_with(&self, host: &Host, token: &str) -> Result<Output> {
        host.write_file("/root/token", 0o600, token.as_bytes())?;
        let argv = [
            "ferry-agent",
            "enroll",
            "--controller",
            &self.address(),
            "--token-file",
            "/root/token",
        ];
        host.exec(&argv)
    }

    /// Runs the operators' command line, whatever its exit code.
    pub fn ferry(&self, argv: &[&str]) -> Result<Output> {
        let argv = [&["ferry"], argv].concat();
        self.controller.exec_with(&argv, &[], COMMAND)
    }

    /// What the command line says with `--json`, as one document.
    pub fn json(&self, argv: &[&str]) -> Result<Value> {
        let text = self.ferry(&[&["--json"], argv].concat())?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("not one document: {text}"))
    }

    /// The command line as a command of this machine: for one whose output a person watches.
    pub fn ferry_command(&self, argv: &[&str]) -> Result<Command> {
        self.controller.command(&[&["ferry"], argv].concat())
    }

    /// The account's last job.
    pub fn last_job(&self, account: &str) -> Result<JobView> {
        let job = self.json(&["status", account])?;
        serde_json::from_value(job).context("reading the job")
    }

    /// The servers that say that they have the account, with how it stands there.
    pub fn standings(&self, account: &str) -> Result<Vec<(String, String)>> {
        let document = self.json(&["account", "list"])?;
        let rows = document["accounts"].as_array().cloned().unwrap_or_default();
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        Ok(rows
            .iter()
            .filter(|row| row["name"] == account)
            .map(|row| (text(row, "server"), text(row, "standing")))
            .collect())
    }

    /// Waits until the controller knows of an account.
    pub fn await_account(&self, account: &str) -> Result<()> {
        wait::until(&format!("account {account} to be known"), READY, || {
            Ok((!self.standings(account)?.is_empty()).then_some(()))
        })
    }

    /// Whether a server's agent is connected now.
    pub fn is_connected(&self, name: &str) -> Result<bool> {
        let servers = self.json(&["server", "list"])?;
        let rows = servers.as_array().cloned().unwrap_or_default();
        Ok(rows.iter().any(|row| row["name"] == name && row["connected"] == true))
    }

    /// Waits until these agents are connected.
    pub fn await_connected(&self, names: &[&str]) -> Result<()> {
        for name in names {
            wait::until(&format!("the agent of {name} to connect"), READY, || {
                Ok(self.is_connected(name)?.then_some(()))
            })
            .or_else(|error| {
                bail!("{error:#}\n{}", journal(self.lab.host(name)?, "ferry-agent", 30))
            })?;
        }
        Ok(())
    }

    /// What went on, for an error: the last words of controller and agents.
    pub fn journals(&self) -> String {
        let mut text = journal(self.controller, "ferry-controller", 30);
        for host in self.lab.hosts().iter().filter(|h| h.name() != "controller") {
            text += &journal(host, "ferry-agent", 40);
            text += &journal(host, "ferry-redirector", 15);
        }
        text
    }
}

/// Installs the agent; it waits for its enrolment. Its management address is told, so that peers
/// never come by an address that travels. Visitors are held for as long as they wait, and more of them: a machine that
/// does all that hosts of their own do may need that long.
pub fn install_agent(host: &Host, deb: &Path) -> Result<()> {
    host.sh(AS_ADVISED).context("setting up PHP-FPM as docs/install.md advises")?;
    host.install_debs(&[deb.to_owned()])?;
    let address = host.spec().address;
    let peer = format!("peer_address = \"{address}:7401\"");
    let lines = [
        ("#peer_address", peer.as_str()),
        ("wait_seconds = ", "wait_seconds = 55"),
        ("requests = ", "requests = 4000"),
    ];
    let config = String::from_utf8(host.read_file("/etc/ferry/agent.toml")?)?;
    let ours = |line: &str| lines.iter().find(|(begins, _)| line.starts_with(begins));
    let config: Vec<_> = config.lines().map(|l| ours(l).map_or(l, |(_, line)| line)).collect();
    for (_, line) in lines {
        ensure!(config.contains(&line), "agent.toml has no place for {line}");
    }
    let config = format!("{}\n", config.join("\n"));
    host.write_file("/etc/ferry/agent.toml", 0o644, config.as_bytes())
}

/// The end of a unit's log.
pub fn journal(host: &Host, unit: &str, lines: usize) -> String {
    let lines = lines.to_string();
    let argv = ["journalctl", "-u", unit, "--no-pager", "-o", "short-precise", "-n", &lines];
    let said = host.exec(&argv).map(|o| o.text()).unwrap_or_default();
    format!("--- {unit} on {}:\n{said}\n", host.name())
}
