//! What the change journal costs those whose changes it notes: an archive is unpacked on the source, in a
//! directory that an agent watches and in one that nobody does.

use std::time::Instant;

use anyhow::Result;

use super::pair::Pair;
use super::rows::Row;
use super::trees;
use super::who::Who;
use super::{Measured, circumstances};
use crate::fleet::Fleet;
use crate::progress::{Task, say};
use crate::{interrupt, journey};

/// How often it is unpacked either way.
const ROUNDS: u64 = 9;
/// It may take so many times as long while it is watched.
const GOAL: f64 = 1.15;
/// The source's file system: so many MiB, used as they are filled.
const IMAGE_MIB: u32 = 8 * 1024;
/// Files of each directory in the archive.
const FILES: u64 = 100;
/// Bytes of each file.
const LENGTH: usize = 2_000;
/// The directory in which it is unpacked: it is empty before and after.
const TREE: &str = "untar";
/// Makes an archive of the directory that was made for it.
const PACK: &str = "cd /srv/source; tar -C small -cf small.tar .; rm -r small; mkdir untar";
/// What is measured. The archive is in memory.
const UNPACK: &str =
    "mkdir /srv/source/untar/tree; tar -C /srv/source/untar/tree -xf /srv/source/small.tar";

/// See the module.
pub fn measure(quick: bool) -> Result<Measured> {
    let (lab, build) = journey::fresh()?;
    Fleet::install(&lab, &build)?;
    let pair = Pair::prepare(&lab, IMAGE_MIB)?;
    let (directories, rounds) = if quick { (100, 2) } else { (1_000, ROUNDS) };
    let task = Task::start("making an archive");
    trees::even(&pair.tree("small"), directories, FILES, LENGTH)?;
    pair.source.sh(PACK)?;
    task.done();
    pair.fresh_target(&[TREE])?;
    let (mut watched, mut alone) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Each begins a round in turn.
        if round % 2 == 0 {
            alone.push(unpack(&pair)?);
        }
        let is_last = round + 1 == rounds;
        watched.push(unpack_watched(&pair, is_last)?);
        if round % 2 == 1 {
            alone.push(unpack(&pair)?);
        }
    }
    let work = format!("untar {} files, watched", directories * FILES);
    let row = Row::of(work, "wall", "s", &watched).beside("not watched", &alone, Some(GOAL));
    let watching = Who::Ferry.command(TREE).replacen(" --json ", " --json --again ", 1);
    Ok((vec![row], circumstances(&lab, &[UNPACK, &watching], quick)?.journaled()))
}

/// Unpacks while an agent watches. The last time it copies what was unpacked as well: it has missed nothing.
fn unpack_watched(pair: &Pair<'_>, is_last: bool) -> Result<f64> {
    pair.follow(TREE)?;
    let wall = timed(pair, "watched")?;
    if is_last {
        pair.again("what was unpacked", TREE)?;
        pair.expect_equal(TREE)?;
    }
    pair.unfollow(TREE)?;
    clear(pair)?;
    Ok(wall)
}

fn unpack(pair: &Pair<'_>) -> Result<f64> {
    let wall = timed(pair, "not watched")?;
    clear(pair)?;
    Ok(wall)
}

/// Seconds that unpacking takes.
fn timed(pair: &Pair<'_>, how: &str) -> Result<f64> {
    interrupt::check()?;
    pair.source.sh("cat /srv/source/small.tar > /dev/null")?;
    pair.sync()?;
    let began = Instant::now();
    pair.source.sh(UNPACK)?;
    let wall = began.elapsed().as_secs_f64();
    say(format!("unpacked, {how}: {wall:.2} s"));
    Ok(wall)
}

/// Takes away what was unpacked.
fn clear(pair: &Pair<'_>) -> Result<()> {
    pair.source.sh("rm -r /srv/source/untar/tree")?;
    pair.sync()
}
