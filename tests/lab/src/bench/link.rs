//! Copies over a cable that is slower than processors and disks: what compresses, and what does not.

use anyhow::{Context, Result};

use super::pair::{Pair, Sample};
use super::rows::Row;
use super::trees::{self, Scale};
use super::who::Who;
use super::{Measured, circumstances};
use crate::fleet::Fleet;
use crate::progress::Task;
use crate::{interrupt, journey};

/// How often each copies each tree.
const ROUNDS: usize = 3;
/// Both file systems: so many MiB, used as they are filled.
const IMAGE_MIB: u32 = 4 * 1024;
/// Megabits a second that the source may send.
const MEGABITS: u32 = 100;

/// Who copies: the program, whether it is told to compress, and what the table calls that.
type Peer = (Who, bool, &'static str);
const PEERS: [Peer; 3] = [
    (Who::Ferry, false, "ferry"),
    (Who::RsyncSsh, false, "rsync, ssh"),
    (Who::RsyncSsh, true, "rsync -z, ssh"),
];

type Make = fn(&std::path::Path, Scale) -> Result<()>;
/// What compresses, and what does not.
const TREES: [(&str, Make); 2] = [("mail", trees::mail), ("big", trees::big)];

fn command((who, compresses, _): Peer, tree: &str) -> String {
    let command = who.command(tree);
    if compresses { command.replacen("rsync -", "rsync -z", 1) } else { command }
}

/// See the module.
pub fn measure(quick: bool) -> Result<Measured> {
    let (lab, build) = journey::fresh()?;
    Fleet::install(&lab, &build)?;
    let pair = Pair::prepare(&lab, IMAGE_MIB)?;
    let rounds = if quick { 1 } else { ROUNDS };
    let port = "$(ip -o route get $(getent ahostsv4 transit | cut -d' ' -f1 | head -n1) | grep -o 'dev [^ ]*' | cut -d' ' -f2)";
    let slow = format!(
        "tc qdisc replace dev {port} root tbf rate {MEGABITS}mbit burst 256kb latency 50ms"
    );
    pair.source.sh(&slow).context("making the cable slow")?;
    let mut rows = Vec::new();
    for (tree, make) in TREES {
        let task = Task::start(format!("making the tree {tree}"));
        make(&pair.tree(tree), Scale::QUICK)?;
        task.done();
        let mut samples = PEERS.map(|_| Vec::new());
        for round in 0..rounds {
            for turn in 0..PEERS.len() {
                // Each begins a round once.
                let which = (turn + round) % PEERS.len();
                interrupt::check()?;
                pair.fresh_target(&[tree])?;
                let what = format!("{tree} by {}", PEERS[which].2);
                samples[which].push(pair.sample(&what, &command(PEERS[which], tree))?.0);
            }
        }
        rows.extend(told(tree, &samples));
    }
    let commands = PEERS.map(|peer| command(peer, "TREE"));
    let commands: Vec<&str> =
        [slow.as_str()].into_iter().chain(commands.iter().map(String::as_str)).collect();
    Ok((rows, circumstances(&lab, &commands, quick)?))
}

/// The rows of one tree.
fn told(tree: &str, samples: &[Vec<Sample>; PEERS.len()]) -> Vec<Row> {
    type Figure = fn(&Sample) -> f64;
    let metrics: [(&str, &str, Figure); 3] = [
        ("wall", "s", |s| s.wall),
        ("processors", "s", |s| s.processor),
        ("wire", "MB", |s| s.wire / 1e6),
    ];
    let mut rows = Vec::new();
    for (metric, unit, figure) in metrics {
        let of = |samples: &[Sample]| samples.iter().map(figure).collect::<Vec<_>>();
        let row = Row::of(
            format!("{tree}, {MEGABITS} Mbit/s: first copy"),
            metric,
            unit,
            &of(&samples[0]),
        );
        for (peer, theirs) in PEERS.iter().zip(samples).skip(1) {
            rows.push(row.clone().beside(peer.2, &of(theirs), None));
        }
    }
    rows
}
