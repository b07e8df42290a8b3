//! The scenarios. A placeholder: they are not written yet.

use anyhow::{Result, bail};

/// Runs the named scenarios, or the ordinary ones, or all.
pub fn run(_scenarios: &[String], _all: bool) -> Result<()> {
    bail!("the scenarios are not available yet")
}
