//! The measurements: each prints a table and writes `target/bench/NAME.json`, a list of rows, every
//! value the median of its samples.

mod busy;
mod deep;
mod files;
mod footprint;
mod link;
mod pair;
mod rows;
mod trees;
mod untar;
mod who;

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::build;
use crate::lab::Lab;
use crate::progress::say;
use rows::Row;

/// What the rows were measured with: written beside them.
#[derive(Debug, Serialize)]
struct Circumstances {
    /// The commands that were measured.
    commands: Vec<String>,
    /// Programs and systems, with their versions.
    versions: BTreeMap<String, String>,
    /// This machine's cores.
    cores: usize,
    quick: bool,
}

impl Circumstances {
    /// What the change journals were told by: every pass that was measured with one has said so.
    fn journaled(mut self) -> Self {
        self.versions.insert("change journal on client".to_owned(), pair::JOURNAL.to_owned());
        self
    }
}

/// Rows and how they came about.
type Measured = (Vec<Row>, Circumstances);

/// Runs one measurement.
pub fn run(name: &str, quick: bool) -> Result<()> {
    let (rows, circumstances) = match name {
        "files" => files::measure(quick)?,
        "deep" => deep::measure(quick)?,
        "many" => deep::measure_many(quick)?,
        "untar" => untar::measure(quick)?,
        "busy" => busy::measure(quick)?,
        "link" => link::measure(quick)?,
        "footprint" => footprint::measure(quick)?,
        _ => bail!(
            "no measurement is called {name:?}; there are: files, deep, many, untar, busy, link, footprint"
        ),
    };
    rows::print(&rows);
    let directory = build::target_dir()?.join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let write = |name: String, content: Vec<u8>| -> Result<()> {
        let path = directory.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        say(format!("written to {}", path.display()));
        Ok(())
    };
    write(format!("{name}.json"), serde_json::to_vec_pretty(&rows)?)?;
    write(format!("{name}.meta.json"), serde_json::to_vec_pretty(&circumstances)?)
}

/// What runs on the hosts.
fn circumstances(lab: &Lab, commands: &[&str], quick: bool) -> Result<Circumstances> {
    let mut versions = BTreeMap::new();
    let mut ask = |host: &str, name: &str, script: &str| -> Result<()> {
        let said = lab.host(host)?.sh(script)?;
        let line = said.lines().next().unwrap_or_default().trim().to_owned();
        versions.insert(format!("{name} on {host}"), line);
        Ok(())
    };
    ask("controller", "ferry", "ferry --version")?;
    for host in ["client", "transit"] {
        ask(host, "ferry-agent", "ferry-agent --version")?;
        ask(host, "Debian", "cat /etc/debian_version")?;
        ask(host, "Linux", "uname -r")?;
        ask(host, "MariaDB", "mariadb --version")?;
        ask(host, "PostgreSQL", "psql --version")?;
        ask(host, "nginx", "nginx -v 2>&1")?;
        ask(host, "rsync", "rsync --version")?;
        ask(host, "OpenSSH", "ssh -V 2>&1")?;
        ask(host, "tar", "tar --version")?;
    }
    Ok(Circumstances {
        commands: commands.iter().map(|c| (*c).to_owned()).collect(),
        versions,
        cores: thread::available_parallelism()?.get(),
        quick,
    })
}
