//! Many files: what a pass costs when the tree is ten times as large and as much has changed, and the memory that
//! both sides have at most.

use anyhow::Result;

use super::pair::{Pair, Sample};
use super::rows::Row;
use super::trees::{self, Scale};
use super::who::Who;
use super::{Measured, circumstances};
use crate::fleet::Fleet;
use crate::journey;
use crate::progress::Task;

/// How often something is changed in both trees of mail and copied.
const ROUNDS: u64 = 7;
/// A pass over the larger tree may take so many times as long as one over the smaller.
const PASS_GOAL: f64 = 1.3;
/// Megabytes that a side may have with ten million entries.
const MEMORY_GOAL: f64 = 200.0;
/// File systems with room for two million mails: so many MiB, used as they are filled.
const IMAGE_MIB: u32 = 64 * 1024;
/// The same for ten million entries.
const MANY_IMAGE_MIB: u32 = 192 * 1024;

/// Files without content in directories of one tree.
struct Empty {
    name: &'static str,
    work: &'static str,
    directories: u64,
    /// In each directory.
    files: u64,
    memory_goal: Option<f64>,
}

/// Two million mails beside 200,000; and a million files in one directory.
pub fn measure(quick: bool) -> Result<Measured> {
    let (lab, build) = journey::fresh()?;
    Fleet::install(&lab, &build)?;
    let pair = Pair::prepare(&lab, IMAGE_MIB)?;
    let mut rows = mails(&pair, quick)?;
    pair.fresh_source()?;
    let files = if quick { 50_000 } else { 1_000_000 };
    let one =
        Empty { name: "flat", work: "one directory", directories: 1, files, memory_goal: None };
    rows.extend(one.measure(&pair)?);
    let commands = [Who::Ferry.command("TREE")];
    let commands = commands.each_ref().map(String::as_str);
    Ok((rows, circumstances(&lab, &commands, quick)?.journaled()))
}

/// Ten million entries.
pub fn measure_many(quick: bool) -> Result<Measured> {
    let (lab, build) = journey::fresh()?;
    Fleet::install(&lab, &build)?;
    let pair = Pair::prepare(&lab, MANY_IMAGE_MIB)?;
    let many = Empty {
        name: "many",
        work: "ten million",
        directories: if quick { 10 } else { 1_000 },
        files: 10_000,
        memory_goal: Some(MEMORY_GOAL),
    };
    let rows = many.measure(&pair)?;
    let commands = [Who::Ferry.command("TREE")];
    let commands = commands.each_ref().map(String::as_str);
    Ok((rows, circumstances(&lab, &commands, quick)?))
}

/// First copies of both trees of mail, and passes with the journal over as many changes in each.
fn mails(pair: &Pair<'_>, quick: bool) -> Result<Vec<Row>> {
    // Mails of a block at most: it is their number that counts here.
    let of = |mails| Scale { mails, mail_bytes: 4_000, ..Scale::FULL };
    let (few, many, changed, rounds) =
        if quick { (10_000, 100_000, 10, 2) } else { (200_000, 2_000_000, 200, ROUNDS) };
    let both = [("mail", of(few)), ("deep", of(many))];
    pair.fresh_target(&["mail", "deep"])?;
    let mut firsts = Vec::new();
    for (name, scale) in both {
        let task = Task::start(format!("making {} mails", scale.mails));
        trees::mail(&pair.tree(name), scale)?;
        task.done();
        firsts.push(first(pair, name)?);
    }
    for (name, _) in both {
        pair.follow(name)?;
    }
    let mut passes = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for ((name, scale), walls) in both.into_iter().zip(&mut passes) {
            trees::change_mails(&pair.tree(name), scale, changed, round)?;
            let what = format!("{changed} of {} mails changed", scale.mails);
            walls.push(pair.again(&what, name)?.wall);
        }
    }
    for (name, _) in both {
        pair.expect_equal(name)?;
        pair.unfollow(name)?;
    }
    let mut rows = Vec::new();
    for ((_, scale), first) in both.iter().zip(&firsts) {
        rows.extend(told(&format!("{} mails: first copy", scale.mails), &[*first], None));
    }
    let [small, deep] = passes;
    let row = Row::of(format!("deep mail: {changed} changed"), "wall", "s", &deep);
    rows.push(row.beside(&format!("of {few}"), &small, Some(PASS_GOAL)));
    Ok(rows)
}

impl Empty {
    /// A first copy, and a pass in which nothing has changed.
    fn measure(&self, pair: &Pair<'_>) -> Result<Vec<Row>> {
        let count = self.directories * self.files;
        let task = Task::start(format!("making {count} empty files"));
        trees::even(&pair.tree(self.name), self.directories, self.files, 0)?;
        task.done();
        pair.fresh_target(&[self.name])?;
        let first = first(pair, self.name)?;
        let what = format!("{}: unchanged", self.work);
        let unchanged = pair.sample(&what, &Who::Ferry.command(self.name))?.0;
        pair.expect_equal(self.name)?;
        let mut rows = told(&format!("{}: first copy", self.work), &[first], self.memory_goal);
        rows.extend(told(&what, &[unchanged], self.memory_goal));
        Ok(rows)
    }
}

fn first(pair: &Pair<'_>, name: &str) -> Result<Sample> {
    let (sample, _) = pair.sample(&format!("{name}: first copy"), &Who::Ferry.command(name))?;
    Ok(sample)
}

/// The rows of something that both sides had memory for.
fn told(work: &str, samples: &[Sample], memory_goal: Option<f64>) -> Vec<Row> {
    let row = |metric, unit, figure: fn(&Sample) -> f64| {
        Row::of(work.to_owned(), metric, unit, &samples.iter().map(figure).collect::<Vec<_>>())
    };
    let limited = |row: Row| match memory_goal {
        Some(goal) => row.at_most(goal),
        None => row,
    };
    vec![
        row("wall", "s", |s| s.wall),
        limited(row("memory, source", "MB", |s| s.memory[0] / 1e6)),
        limited(row("memory, target", "MB", |s| s.memory[1] / 1e6)),
    ]
}
