//! Counting a tree for inspection: how many files, how many bytes. It reads no contents and must not
//! know whose tree it is.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use ferry_proto::{Fault, FaultClass};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::confine::{MAX_DEPTH, Node, Tree};
use crate::metadata::{Kind, Stat};
use crate::names::Names;
use crate::report::show;
use crate::walk::MAX_LINKS;

/// How many of the biggest files are named.
const BIGGEST: usize = 10;

/// Statistics of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeStats {
    /// Regular files; one with several names counts once.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Everything else: symlinks, FIFOs, sockets, devices.
    pub others: u64,
    /// Bytes of content, holes included.
    pub bytes: u64,
    /// Bytes on disk.
    pub allocated: u64,
    /// The biggest files, biggest first.
    pub biggest: Vec<(String, u64)>,
    /// Directories that could not be read, are too deep, or are mounts, which are not entered.
    pub skipped: u64,
}

/// Counts what a tree holds. It blocks: call it where blocking is allowed.
///
/// # Errors
/// The root cannot be opened, or `cancel` was cancelled.
pub fn scan(root: &Path, cancel: &CancellationToken) -> Result<TreeStats, Fault> {
    let tree = Tree::open_root(root)?;
    let mut stats = TreeStats::default();
    let mut seen = HashSet::new();
    let mut stack = vec![(None::<Arc<Node>>, Box::<[u8]>::default())];
    while let Some((parent, name)) = stack.pop() {
        let node = parent.map_or_else(Node::root, |parent| parent.child(&name));
        let opened = tree.open(&node).and_then(|fd| Ok((Names::read(&fd)?, fd)));
        let Ok((names, fd)) = opened else {
            stats.skipped += 1;
            continue;
        };
        stats.directories += 1;
        for name in names.iter() {
            if cancel.is_cancelled() {
                return Err(Fault::new(
                    FaultClass::Cancelled,
                    "the counting of files was cancelled",
                ));
            }
            let Ok(stat) = Stat::of(&fd, name) else {
                continue;
            };
            stats.allocated += stat.blocks.saturating_mul(512);
            match stat.kind {
                Kind::Directory if stat.is_mount || node.depth() + 1 >= MAX_DEPTH => {
                    stats.skipped += 1;
                }
                Kind::Directory => stack.push((Some(Arc::clone(&node)), name.into())),
                Kind::File => {
                    let several = stat.nlink > 1 && seen.len() < MAX_LINKS;
                    if several && !seen.insert(stat.identity()) {
                        stats.allocated -= stat.blocks.saturating_mul(512);
                        continue;
                    }
                    stats.files += 1;
                    stats.bytes = stats.bytes.saturating_add(stat.size);
                    stats.big(&node, name, stat.size);
                }
                _ => stats.others += 1,
            }
        }
    }
    Ok(stats)
}

impl TreeStats {
    fn big(&mut self, node: &Node, name: &[u8], size: u64) {
        let place = self.biggest.partition_point(|(_, other)| *other >= size);
        if place < BIGGEST {
            self.biggest.truncate(BIGGEST - 1);
            self.biggest.insert(place, (show(&node.path_of(name)), size));
        }
    }
}
