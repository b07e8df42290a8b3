//! How long the final pass behind the fence is going to take: what the passes before it have cost, and how much has
//! changed since the last of them began. It must not know how files are copied.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ferry_files::PassReport;
use ferry_files::journal::Extent;
use ferry_proto::Fault;
use ferry_proto::command::FinalPass;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::agent::blocking;
use crate::work::Job;
use crate::work::pace::amount;

/// How often it is told anew while the account is copied.
const ANEW: Duration = Duration::from_secs(5);

/// A cost of nothing could never be corrected.
const SHORTEST: Duration = Duration::from_millis(1);

/// What costs time in a pass.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// It begins and ends.
    Pass,
    /// It looks at an entry.
    Entry,
    /// It brings a path over.
    Path,
    /// It brings a byte over.
    Byte,
}

const PARTS: [Part; 4] = [Part::Pass, Part::Entry, Part::Path, Part::Byte];

/// What each part costs, in seconds, until passes have shown it: as cautious as the forecast in the plan.
const CAUTIOUS: [f64; 4] = [0.1, 1.0 / 20_000.0, 1.0 / 4_000.0, 1.0 / 60e6];

/// What a pass has to do.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    entries: u64,
    paths: u64,
    bytes: u64,
}

impl Work {
    fn of(report: &PassReport) -> Self {
        let PassReport { files_sent, created, metadata_changed, deleted, moved, .. } = report;
        Self {
            entries: report.entries,
            paths: files_sent + created + metadata_changed + deleted + moved,
            // What was there already was read as well.
            bytes: report.bytes_sent + report.bytes_kept,
        }
    }

    fn amount_of(&self, part: Part) -> f64 {
        match part {
            Part::Pass => 1.0,
            Part::Entry => self.entries as f64,
            Part::Path => self.paths as f64,
            Part::Byte => self.bytes as f64,
        }
    }
}

/// What passes have cost. Each corrects what was thought of that part which it was to spend most time with: of the
/// others it says little.
#[derive(Debug, Clone)]
pub struct Costs {
    seconds: [f64; 4],
    passes: u32,
    last: Work,
    /// Entries of the whole tree.
    whole: u64,
}

impl Default for Costs {
    fn default() -> Self {
        Self { seconds: CAUTIOUS, passes: 0, last: Work::default(), whole: 0 }
    }
}

impl Costs {
    /// A pass has taken so long.
    pub fn passed(&mut self, report: &PassReport, took: Duration) {
        let work = Work::of(report);
        let (expected, most) = self.expected(&work);
        let took = took.max(SHORTEST).as_secs_f64();
        let amount = work.amount_of(most);
        let share = self.seconds[most as usize] * amount;
        // What is left by the others; or, where those were thought to take more than all, a part of what it took.
        let left = took - (expected - share);
        self.seconds[most as usize] = left.max(took * share / expected / 2.0) / amount;
        self.passes += 1;
        self.last = work;
        self.met(work.entries);
    }

    /// So many entries were met.
    pub fn met(&mut self, entries: u64) {
        self.whole = self.whole.max(entries);
    }

    /// What a pass would take now that brings over what has changed; none: everything is looked at. None if nobody can
    /// tell yet.
    pub fn final_pass(&self, changed: Option<Extent>) -> Option<FinalPass> {
        let work = match changed {
            Some(Extent { paths, bytes, .. }) => Work { entries: paths, paths, bytes },
            // As much as the last one found to have changed. The first found all to be new.
            None if self.passes > 1 => Work { entries: self.whole, ..self.last },
            None => return None,
        };
        if self.passes == 0 {
            return None;
        }
        let (seconds, most) = self.expected(&work);
        let why = match changed {
            Some(changed) => what_changed(&changed),
            None => format!(
                "no change journal tells what has changed, so all {} entries are looked at",
                self.whole
            ),
        };
        let words = format!(
            "the final pass will take about {}: {why}; {}",
            duration(seconds),
            self.cost_of(most)
        );
        // Float to integer casts saturate.
        Some(FinalPass { ms: (seconds * 1000.0).round() as u64, words })
    }

    /// How long that takes, in seconds, and with what most of it goes.
    fn expected(&self, work: &Work) -> (f64, Part) {
        let (mut all, mut most) = (0.0, (0.0, Part::Pass));
        for part in PARTS {
            let seconds = self.seconds[part as usize] * work.amount_of(part);
            all += seconds;
            if seconds > most.0 {
                most = (seconds, part);
            }
        }
        (all, most.1)
    }

    fn cost_of(&self, part: Part) -> String {
        let cost = self.seconds[part as usize];
        let rate = two_digits(1.0 / cost);
        match part {
            Part::Pass => format!("any pass takes {}", duration(cost)),
            Part::Entry => format!("{rate} entries a second"),
            Part::Path => format!("at {rate} paths a second"),
            Part::Byte => format!("at {} a second", amount(rate)),
        }
    }
}

/// As exact as a forecast is.
fn two_digits(rate: f64) -> u64 {
    let unit = 10_f64.powf(rate.log10().floor() - 1.0).max(1.0);
    // Float to integer casts saturate.
    ((rate / unit).round() * unit) as u64
}

fn what_changed(changed: &Extent) -> String {
    let Extent { paths, bytes, is_least } = *changed;
    let least = if is_least { "at least " } else { "" };
    let with = if bytes > 0 { format!(" with {}", amount(bytes)) } else { String::new() };
    let what = match paths {
        0 if !is_least => "nothing has".to_owned(),
        1 => format!("{least}1 path{with} has"),
        _ => format!("{least}{paths} paths{with} have"),
    };
    format!("{what} changed since the last pass began, by the change journal")
}

/// Seconds as people say them.
fn duration(seconds: f64) -> String {
    match seconds {
        ..0.0995 => format!("{:.0} ms", seconds * 1000.0),
        ..9.95 => format!("{seconds:.1} s"),
        ..120.0 => format!("{seconds:.0} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    }
}

/// Tells of the final pass of a move while its account is copied.
pub struct Forecast<'a> {
    job: &'a Job,
    costs: Mutex<Costs>,
}

impl<'a> Forecast<'a> {
    /// Of this move.
    pub fn of(job: &'a Job) -> Self {
        Self { job, costs: Mutex::default() }
    }

    /// A pass has taken so long.
    pub async fn passed(&self, report: &PassReport, took: Duration) {
        self.correct(|costs| costs.passed(report, took));
        self.tell().await;
    }

    /// A comparison has met so many entries.
    pub fn met(&self, entries: u64) {
        self.correct(|costs| costs.met(entries));
    }

    /// Tells it anew now and then, for as long as somebody waits.
    pub async fn go_on(&self) -> Infallible {
        let mut tick = interval_at(Instant::now() + ANEW, ANEW);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.tell().await;
        }
    }

    /// Tells it as it is now.
    pub async fn tell(&self) -> Option<FinalPass> {
        // Where the root cannot be looked at the pass will say why.
        let changed = self.changed().await.ok().flatten();
        let told = self.correct(|costs| costs.final_pass(changed));
        self.job.progress.send_modify(|progress| progress.final_pass.clone_from(&told));
        told
    }

    async fn changed(&self) -> Result<Option<Extent>, Fault> {
        let (agent, account, job) =
            (self.job.agent.clone(), self.job.of.account.clone(), self.job.of.job);
        blocking(move || match agent.journals.existing(&account, job) {
            Some(journal) => journal.changed(),
            None => Ok(None),
        })
        .await
    }

    fn correct<T>(&self, work: impl FnOnce(&mut Costs) -> T) -> T {
        // Whoever panicked has at most left a cost that the next pass corrects.
        work(&mut self.costs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(entries: u64, files_sent: u64, bytes_sent: u64) -> PassReport {
        PassReport { entries, files_sent, bytes_sent, ..PassReport::default() }
    }

    fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn changed(paths: u64, bytes: u64) -> Option<Extent> {
        Some(Extent { paths, bytes, is_least: false })
    }

    /// About as many milliseconds as these.
    #[track_caller]
    fn about(told: Option<FinalPass>, ms: u64) -> String {
        let told = told.expect("it can be told");
        assert!(told.ms.abs_diff(ms) <= 1 + ms / 20, "{ms}: {told:?}");
        told.words
    }

    /// A bulk of ten thousand files with 600 MB in a minute, and a pass after it that had little to do.
    fn copied() -> Costs {
        let mut costs = Costs::default();
        costs.passed(&report(10_000, 10_000, 600_000_000), millis(63_000));
        costs.passed(&report(10, 10, 0), millis(206));
        costs
    }

    #[test]
    fn it_cannot_be_told_before_a_pass_has_ended() {
        assert_eq!(Costs::default().final_pass(changed(1, 1)), None);
        assert_eq!(Costs::default().final_pass(None), None);
    }

    #[test]
    fn little_takes_what_any_pass_takes() {
        let costs = copied();
        assert_eq!(
            about(costs.final_pass(changed(0, 0)), 200),
            "the final pass will take about 0.2 s: nothing has changed since the last pass began, by \
             the change journal; any pass takes 0.2 s"
        );
        let one = about(costs.final_pass(changed(1, 2_000)), 200);
        assert!(one.contains(": 1 path with 2000 bytes has changed since"), "{one}");
        let some = about(costs.final_pass(changed(120, 48_000)), 240);
        assert!(some.contains(": 120 paths with 48 kB have changed since"), "{some}");
    }

    #[test]
    fn much_takes_what_it_took_before() {
        let costs = copied();
        // Ten megabytes a second, as in the bulk.
        let bytes = about(costs.final_pass(changed(3, 100_000_000)), 10_200);
        assert!(bytes.ends_with("; at 10 MB a second"), "{bytes}");
        assert!(bytes.contains("about 10 s"), "{bytes}");
        let paths = about(costs.final_pass(changed(40_000, 0)), 12_200);
        assert!(paths.ends_with("; at 4000 paths a second"), "{paths}");
        let mut slower = costs;
        slower.passed(&report(40_000, 40_000, 0), millis(26_200));
        about(slower.final_pass(changed(40_000, 0)), 26_200);
    }

    #[test]
    fn a_few_large_files_say_nothing_of_many_small_ones() {
        let mut costs = Costs::default();
        costs.passed(&report(3, 3, 30_000_000_000), millis(1_000_000));
        about(costs.final_pass(changed(120, 48_000)), 138);
    }

    #[test]
    fn a_look_at_everything_says_nothing_of_what_is_sent() {
        let mut costs = Costs::default();
        // A copy of an earlier move is brought up to date from slow disks.
        costs.passed(&report(1_200_000, 3, 100), millis(600_000));
        costs.passed(&report(4, 4, 100), millis(200));
        about(costs.final_pass(changed(120, 48_000)), 290);
    }

    #[test]
    fn without_a_journal_it_is_the_last_look_and_what_changed() {
        let mut costs = Costs::default();
        costs.passed(&report(200_000, 200_000, 1_000_000_000), millis(90_000));
        assert_eq!(costs.final_pass(None), None, "a bulk is no look");
        costs.passed(&report(200_000, 40, 100_000), millis(4_000));
        assert_eq!(
            about(costs.final_pass(None), 4_000),
            "the final pass will take about 4.0 s: no change journal tells what has changed, so all \
             200000 entries are looked at; 51000 entries a second"
        );
        // A journal that has lost track: as much as a comparison has met.
        let mut lost = copied();
        lost.met(50_000);
        let words = about(lost.final_pass(None), 2_710);
        assert!(words.contains("all 50000 entries"), "{words}");
    }

    #[test]
    fn what_was_counted_no_more_is_at_least_so_much() {
        let many = Some(Extent { paths: 20_001, bytes: 0, is_least: true });
        let words = copied().final_pass(many).expect("told").words;
        assert!(words.contains(": at least 20001 paths have changed"), "{words}");
    }

    #[test]
    fn a_pass_of_no_time_is_no_cost_of_nothing() {
        let mut costs = Costs::default();
        costs.passed(&PassReport::default(), Duration::ZERO);
        assert!(costs.final_pass(changed(0, 0)).is_some_and(|told| told.ms == 1));
        costs.passed(&PassReport::default(), millis(300));
        about(costs.final_pass(changed(0, 0)), 300);
    }

    #[test]
    fn figures_are_as_exact_as_people_need_them() {
        let said = [0.02, 0.3, 9.9, 12.4, 119.0, 600.0].map(duration);
        assert_eq!(said, ["20 ms", "0.3 s", "9.9 s", "12 s", "119 s", "10 min"]);
        assert_eq!([0.2, 7.4, 51_471.0, 9.96e6].map(two_digits), [0, 7, 51_000, 10_000_000]);
    }
}
