//! The oldest release that Ferry serves: our packages install on Debian 11 and our programs run there.

use anyhow::{Result, ensure};

use crate::build::Build;
use crate::fleet::{self, Fleet};
use crate::lab::Lab;
use crate::spec::HostSpec;

/// Installs, runs and enrols.
pub fn run() -> Result<()> {
    let hosts = [HostSpec::controller(), HostSpec::old()];
    let (build, lab) = Build::beside(|| Lab::fresh(&hosts))?;
    let old = lab.host("old")?;
    let fleet = Fleet::of(&lab)?;
    fleet.install_controller(build.deb("ferry-controller")?)?;
    fleet::install_agent(old, build.deb("ferry-agent")?)?;
    let release = old.sh("cat /etc/debian_version; getconf GNU_LIBC_VERSION")?;
    ensure!(release.starts_with("11."), "this is no Debian 11: {release}");
    let said = old.sh(
        "ferry-agent --version; /usr/libexec/ferry/ferry-redirector --version; ferry-agent check",
    )?;
    ensure!(said.contains("ferry-agent "), "{said}");
    fleet.enrol(old, "client")?;
    fleet.await_connected(&["old"])?;
    old.sh("systemctl is-active ferry-agent ferry-redirector")?;
    Ok(())
}
