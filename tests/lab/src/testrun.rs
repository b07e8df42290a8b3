//! The scenarios. A placeholder: only the lab's test of itself is written.

use anyhow::{Result, bail};

use crate::lab::Lab;
use crate::selfcheck;
use crate::spec::HostSpec;

/// Runs the named scenarios, or the ordinary ones, or all.
pub fn run(scenarios: &[String], _all: bool) -> Result<()> {
    if scenarios != ["lab"] {
        bail!("of the scenarios only `lab` is available yet");
    }
    let mut wanted = HostSpec::standard();
    wanted.push(HostSpec::old());
    selfcheck::run(&Lab::up(&wanted)?)?;
    println!("1 passed, 0 failed");
    Ok(())
}
