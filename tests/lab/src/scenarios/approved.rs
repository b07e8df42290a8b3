//! What an account may not have moves where support approved it, as it was seen, and is refused where it is not
//! that any more.

use anyhow::{Result, ensure};

use super::refused;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::progress::say;
use crate::sample;
use crate::stage::Stage;

/// What root left in the home: a program that runs as root, whose name is no text, and a device.
const PLANT: &str = "
cp /usr/bin/true \"$(printf '/home/demo/data/tool\\377')\"
chmod 4755 /home/demo/data/tool*
mknod -m 600 /home/demo/data/zero c 1 5
";
/// The names of both as they are typed.
const APPROVE: [&str; 4] = ["--approve", r"data/tool\xff", "--approve", "data/zero"];
/// Kind, owner, group, mode, device numbers, times, and content.
const LOOK: &str = "cd /home/demo/data; stat -c '%F %u %g %a %t %T %Y' tool* zero; sha256sum tool*";

/// Moves, changes what was approved, and goes back.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account_alone()?;
    let [client, transit] = [stage.host("client")?, stage.host("transit")?];
    client.sh(PLANT)?;
    let there = ["move", sample::ACCOUNT, "--to", "transit", "--yes"];
    let said = fleet.ferry(&there)?;
    refused("what nobody approved", &said, &[r"data/tool\xff", "data/zero", "--approve"])?;
    let said = fleet.ferry(&[&there[..], &APPROVE[..2]].concat())?;
    refused("what was not approved beside what was", &said, &["data/zero", "--approve"])?;
    goes(&fleet, &[&there[..], &APPROVE].concat())?;
    as_it_was(client, transit)?;

    transit.sh("for f in /home/demo/data/tool*; do printf x >> $f; chmod 4755 $f; done")?;
    let back = ["rollback", sample::ACCOUNT, "--yes"];
    let said = fleet.ferry(&back)?;
    refused("what has changed since it was approved", &said, &[r"data/tool\xff", "--approve"])?;
    goes(&fleet, &[&back[..], &APPROVE[..2]].concat())?;
    as_it_was(transit, client)?;
    // What is left at the transit server is erased with the copy: it must not change.
    client.sh("rm /home/demo/data/tool* /home/demo/data/zero").map(drop)
}

fn goes(fleet: &Fleet<'_>, argv: &[&str]) -> Result<()> {
    say(format!("ferry {}", argv.join(" ")));
    let said = fleet.ferry(argv)?;
    ensure!(said.status.success(), "{}{}", said.text(), said.error_text());
    ensure!(said.text().contains("approved by"), "the plan does not say so: {}", said.text());
    Ok(())
}

fn as_it_was(from: &Host, to: &Host) -> Result<()> {
    let [was, is] = [from.sh(LOOK)?, to.sh(LOOK)?];
    ensure!(was == is, "on {}: {was}on {}: {is}", from.name(), to.name());
    Ok(())
}
