//! Copies of trees from one host to another: Ferry's, rsync's and tar's, one after the other in the same run,
//! each first copy to a file system that was made anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::pair::{Pair, Sample};
use super::rows::Row;
use super::trees::{self, Scale};
use super::who::Who;
use super::{Measured, circumstances};
use crate::fleet::Fleet;
use crate::journey;
use crate::progress::Task;

/// How often everything is done.
const ROUNDS: u64 = 3;
/// File systems of trees: so many MiB, used as they are filled.
const IMAGE_MIB: u32 = 24 * 1024;

/// What is done with a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    First,
    Unchanged,
    Changed,
    /// As before, where the agent has watched the directory since the last copy.
    Journaled,
    /// A large directory has another name; the agent has watched.
    Renamed,
}

impl Work {
    const ALL: [Work; 5] =
        [Work::First, Work::Unchanged, Work::Changed, Work::Journaled, Work::Renamed];

    /// Whether an agent that watches does it.
    fn is_journaled(self) -> bool {
        matches!(self, Work::Journaled | Work::Renamed)
    }

    /// What peers that do not watch do for the same.
    fn of_peers(self) -> Work {
        if self == Work::Journaled { Work::Changed } else { self }
    }
}

/// A tree, with what it is for.
struct Tree {
    name: &'static str,
    make: fn(&Path, Scale) -> Result<()>,
    change: fn(&Path, Scale, u64) -> Result<()>,
    changed: &'static str,
    /// A directory that is renamed.
    renamed: Option<&'static str>,
    /// The ratios of time to rsync over ssh that are wanted.
    goals: [Option<f64>; 5],
}

const TREES: [Tree; 3] = [
    Tree {
        name: "mail",
        make: trees::mail,
        change: trees::change_mail,
        changed: "0.1 % changed",
        renamed: Some("domain0"),
        goals: [Some(0.45), Some(0.4), None, Some(0.05), Some(0.02)],
    },
    Tree {
        name: "web",
        make: trees::web,
        change: trees::change_web,
        changed: "0.1 % changed",
        renamed: None,
        goals: [Some(0.5), Some(0.4), None, Some(0.05), None],
    },
    Tree {
        name: "big",
        make: trees::big,
        change: trees::change_big,
        changed: "1 % of blocks changed",
        renamed: None,
        goals: [Some(0.4), None, Some(0.7), None, None],
    },
];

type Samples = BTreeMap<(Work, Who), Vec<Sample>>;

/// See the module.
pub fn measure(quick: bool) -> Result<Measured> {
    let scale = if quick { Scale::QUICK } else { Scale::FULL };
    let rounds = if quick { 1 } else { ROUNDS };
    let (lab, build) = journey::fresh()?;
    Fleet::install(&lab, &build)?;
    let pair = Pair::prepare(&lab, IMAGE_MIB)?;
    let mut rows = Vec::new();
    for tree in &TREES {
        let samples = tree.measure(&pair, scale, rounds)?;
        rows.extend(told(tree, &samples));
    }
    let commands: Vec<String> = Who::ALL.iter().map(|who| who.command("TREE")).collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    Ok((rows, circumstances(&lab, &commands, quick)?.journaled()))
}

/// The rows of one tree.
fn told(tree: &Tree, samples: &Samples) -> Vec<Row> {
    let mut rows = Vec::new();
    for (work, goal) in Work::ALL.into_iter().zip(tree.goals) {
        let Some(ferry) = samples.get(&(work, Who::Ferry)) else { continue };
        let name = match work {
            Work::First => format!("{}: first copy", tree.name),
            Work::Unchanged => format!("{}: unchanged, no journal", tree.name),
            Work::Changed => format!("{}: {}, no journal", tree.name, tree.changed),
            Work::Journaled => format!("{}: {}", tree.name, tree.changed),
            Work::Renamed => format!("{}: large directory renamed", tree.name),
        };
        type Figure = fn(&Sample) -> f64;
        let metrics: [(&str, &str, Figure, Option<f64>); 5] = [
            ("wall", "s", |s| s.wall, goal),
            ("on the disk", "s", |s| s.durable, None),
            ("processors", "s", |s| s.processor, (work == Work::First).then_some(0.6)),
            ("wire", "MB", |s| s.wire / 1e6, None),
            ("memory", "MB", |s| s.most_memory() / 1e6, None),
        ];
        for (metric, unit, figure, goal) in metrics {
            let of = |samples: &[Sample]| samples.iter().map(figure).collect::<Vec<_>>();
            let row = Row::of(name.clone(), metric, unit, &of(ferry));
            for who in Who::ALL.into_iter().skip(1) {
                let Some(theirs) = samples.get(&(work.of_peers(), who)) else { continue };
                let goal = goal.filter(|_| who == Who::RsyncSsh);
                rows.push(row.clone().beside(who.name(), &of(theirs), goal));
            }
        }
    }
    rows
}

impl Tree {
    fn measure(&self, pair: &Pair<'_>, scale: Scale, rounds: u64) -> Result<Samples> {
        let task = Task::start(format!("making the tree {}", self.name));
        let root = pair.tree(self.name);
        (self.make)(&root, scale)?;
        // Who copies first is not to wait until this is on the disk.
        rustix::fs::sync();
        task.done();
        let mut samples = Samples::new();
        for round in 0..rounds {
            for turn in 0..Who::ALL.len() {
                // Each begins a round once.
                let who = Who::ALL[(turn + round as usize) % Who::ALL.len()];
                self.round(pair, who, &mut samples, |change| {
                    (self.change)(&root, scale, round * 100 + turn as u64 * 10 + change)
                })?;
            }
        }
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
        Ok(samples)
    }

    /// One peer's copy to a file system made anew, and what follows it.
    fn round(
        &self,
        pair: &Pair<'_>,
        who: Who,
        samples: &mut Samples,
        change: impl Fn(u64) -> Result<()>,
    ) -> Result<()> {
        pair.fresh_target(&[self.name])?;
        let copy = who.command(self.name);
        let is_ferry = who == Who::Ferry;
        let mut take = |work: Work| -> Result<()> {
            let what = format!("{} {work:?} by {}", self.name, who.name());
            let sample = if is_ferry && work.is_journaled() {
                pair.again(&what, self.name)?
            } else {
                pair.sample(&what, &copy)?.0
            };
            samples.entry((work, who)).or_default().push(sample);
            Ok(())
        };
        take(Work::First)?;
        if who == Who::TarSsh {
            return Ok(());
        }
        take(Work::Unchanged)?;
        change(0)?;
        take(Work::Changed)?;
        if !is_ferry {
            return self.renamed(pair, || take(Work::Renamed));
        }
        pair.expect_equal(self.name)?;
        pair.follow(self.name)?;
        change(1)?;
        take(Work::Journaled)?;
        pair.expect_equal(self.name)?;
        self.renamed(pair, || {
            take(Work::Renamed)?;
            pair.expect_equal(self.name)
        })?;
        pair.unfollow(self.name)
    }

    /// Gives a large directory of the tree another name meanwhile, if it has one.
    fn renamed(&self, pair: &Pair<'_>, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some(name) = self.renamed else { return Ok(()) };
        let root = pair.tree(self.name);
        let (old, new) = (root.join(name), root.join("renamed"));
        fs::rename(&old, &new).with_context(|| format!("renaming {}", old.display()))?;
        work()?;
        fs::rename(&new, &old).with_context(|| format!("renaming {}", new.display()))
    }
}
