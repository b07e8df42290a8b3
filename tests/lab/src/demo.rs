//! The demonstration. A placeholder: it is not written yet.

use anyhow::{Result, bail};

/// Runs the demonstration.
pub fn run() -> Result<()> {
    bail!("the demonstration is not available yet")
}
