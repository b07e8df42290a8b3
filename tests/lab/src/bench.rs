//! The measurements. A placeholder: they are not written yet.

use anyhow::{Result, bail};

/// Runs one measurement.
pub fn run(name: &str, _quick: bool) -> Result<()> {
    bail!("the measurement {name:?} is not available yet")
}
