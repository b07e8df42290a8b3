//! The oldest release that Ferry serves: our packages install on Debian 11 and our programs run there.

use anyhow::{Result, ensure};

use crate::stage::Stage;

/// Installs, runs and enrols.
pub fn run(stage: &mut Stage) -> Result<()> {
    let old = stage.agent("old")?;
    let release = old.sh("cat /etc/debian_version; getconf GNU_LIBC_VERSION")?;
    ensure!(release.starts_with("11."), "this is no Debian 11: {release}");
    for program in ["ferry-agent --version", "/usr/libexec/ferry/ferry-redirector --version"] {
        let said = old.sh(program)?;
        ensure!(said.starts_with("ferry-"), "{program}: {said}");
    }
    old.sh("ferry-agent check")?;
    stage.fleet(&["old"])?;
    for unit in ["ferry-agent", "ferry-redirector"] {
        old.sh(&format!("systemctl is-active {unit}"))?;
    }
    Ok(())
}
