//! A job while it runs: a line for each thing that changes, and, on a terminal, one that moves. It
//! knows what a job looks like, not where the news comes from.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ferry_proto::command::Progress;
use ferry_proto::view::{JobPhase, JobView, StepPhase, StepView};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::exit::Failure;
use crate::meter::Meter;
use crate::screen::Screen;
use crate::text::{self, safe};

/// How often a long step is mentioned where nothing moves.
const REMINDER: Duration = Duration::from_secs(10);

/// The moving line is drawn so often, for the sake of its spinner.
const TICK: Duration = Duration::from_millis(120);

/// Shows one job.
pub struct Board {
    screen: Screen,
    bar: Option<ProgressBar>,
    last: Option<JobView>,
    meters: HashMap<String, Meter>,
    reminded: Instant,
}

impl Board {
    /// For this screen: JSON lines, plain lines, or lines and one that moves.
    pub fn new(screen: &Screen) -> Self {
        let live = screen.is_live() && !screen.json();
        Self {
            screen: *screen,
            bar: live.then(moving_line),
            last: None,
            meters: HashMap::new(),
            reminded: Instant::now(),
        }
    }

    /// Shows what has changed.
    pub fn update(&mut self, job: &JobView, now: Instant) -> Result<(), Failure> {
        if self.last.as_ref() == Some(job) {
            return Ok(());
        }
        if self.screen.json() {
            self.screen.json_line(job)?;
        } else {
            for line in changes(self.last.as_ref(), job) {
                self.line(&line);
            }
            self.progress(job, now);
        }
        self.last = Some(job.clone());
        Ok(())
    }

    /// A line that stays.
    pub fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.screen.note(line)),
            None => self.screen.note(line),
        }
    }

    /// Takes the moving line away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn progress(&mut self, job: &JobView, now: Instant) {
        let Some((number, step)) = running(job) else {
            if let Some(bar) = &self.bar {
                let waiting = job.waiting_for.as_ref().map(|place| format!("waiting for {place}"));
                bar.set_message(waiting.unwrap_or_default());
            }
            return;
        };
        let meter = self.meters.entry(step.name.clone()).or_default();
        let report = step.progress.clone().unwrap_or_default();
        meter.report(now, report.bytes_done);
        let so_far = progress_text(&report, meter);
        let place = format!("[{number}/{}]", job.steps.len());
        match &self.bar {
            Some(bar) => {
                let gap = if so_far.is_empty() { "" } else { ": " };
                bar.set_message(format!("{place} {}{gap}{so_far}", safe(&step.title)));
            }
            None if !so_far.is_empty() && now.duration_since(self.reminded) >= REMINDER => {
                self.reminded = now;
                self.screen.note(&format!("{place} {so_far}"));
            }
            None => {}
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.end();
    }
}

fn moving_line() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // The template is a constant; without it indicatif's own would do.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}

/// The step at work, and its place.
fn running(job: &JobView) -> Option<(usize, &StepView)> {
    let at_work = |step: &StepView| matches!(step.phase, StepPhase::Running | StepPhase::Undoing);
    job.steps.iter().enumerate().rfind(|(_, step)| at_work(step)).map(|(i, step)| (i + 1, step))
}

/// How far a step is, in a line; empty if nobody can tell.
pub fn progress_text(progress: &Progress, meter: &Meter) -> String {
    let mut parts = Vec::new();
    match progress.bytes_total {
        Some(total) if total > 0 => parts.push(format!(
            "{} of {} ({} %)",
            text::bytes(progress.bytes_done),
            text::bytes(total),
            u128::from(progress.bytes_done.min(total)) * 100 / u128::from(total)
        )),
        _ if progress.bytes_done > 0 => parts.push(text::bytes(progress.bytes_done)),
        _ => {}
    }
    match progress.items_total {
        Some(total) if total > 0 => {
            parts.push(format!(
                "{} of {} items",
                text::count(progress.items_done),
                text::count(total)
            ));
        }
        _ if progress.items_done > 0 => {
            parts.push(format!("{} items", text::count(progress.items_done)))
        }
        _ => {}
    }
    parts.extend(pace(progress, meter));
    let numbers = parts.join(", ");
    let so_far = match (progress.doing.as_str(), numbers.as_str()) {
        ("", _) => numbers,
        (doing, "") => safe(doing),
        (doing, _) => format!("{}, {numbers}", safe(doing)),
    };
    match &progress.final_pass {
        Some(last) if so_far.is_empty() => safe(&last.words),
        Some(last) => format!("{so_far}; {}", safe(&last.words)),
        None => so_far,
    }
}

/// How fast it is, and how long the rest takes: as the agent says; else as it looks from here.
#[allow(clippy::cast_precision_loss)]
fn pace(progress: &Progress, meter: &Meter) -> Vec<String> {
    let rate = progress.bytes_per_second.map(|n| n as f64).or_else(|| meter.rate());
    let items = progress.items_per_second.filter(|n| *n > 0);
    let left = match progress.bytes_per_second {
        Some(_) => progress.seconds_left.map(|n| n as f64),
        None => progress.bytes_total.and_then(|total| meter.seconds_left(total)),
    };
    [
        rate.map(text::rate),
        items.map(|n| format!("{} items/s", text::count(n))),
        left.map(|seconds| format!("{} left", text::duration(seconds))),
        progress.slow.as_deref().map(|slow| format!("slowest: {}", safe(slow))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What is new in `new`, a line each.
pub fn changes(old: Option<&JobView>, new: &JobView) -> Vec<String> {
    let mut lines = Vec::new();
    if old.map(|job| job.phase) != Some(new.phase) && new.phase == JobPhase::Undoing {
        lines.push(format!("Undoing: account {} stays on {}.", new.account, new.source));
    }
    lines.extend(pause_news(old, new));
    if let Some(place) = &new.waiting_for
        && old.and_then(|job| job.waiting_for.as_ref()) != Some(place)
    {
        lines.push(format!("Waiting for {place}: it goes on by itself."));
    }
    for (i, step) in new.steps.iter().enumerate() {
        let before = old.and_then(|job| job.steps.get(i)).filter(|s| s.name == step.name);
        let was = before.map_or(StepPhase::Waiting, |s| s.phase);
        let tried = before.map_or(0, |s| s.attempts);
        if was == step.phase && tried == step.attempts {
            continue;
        }
        if let Some(news) = step_news(step) {
            lines.push(format!("[{}/{}] {news}", i + 1, new.steps.len()));
        }
    }
    lines
}

/// What is new of a pause.
fn pause_news(old: Option<&JobView>, new: &JobView) -> Option<String> {
    let account = &new.account;
    if new.phase == JobPhase::Paused {
        let is_new = old.map(|job| job.phase) != Some(JobPhase::Paused);
        return is_new.then(|| format!("Paused: `ferry resume {account}` lets it go on."));
    }
    let was_wished = old.is_some_and(|job| job.paused.is_some());
    let paused = new.paused.as_ref().filter(|_| !was_wished)?;
    Some(format!("Pausing: {} wants it so.", safe(&paused.by)))
}

fn step_news(step: &StepView) -> Option<String> {
    let title = safe(&step.title);
    let server = &step.server;
    let message = |fault: &Option<ferry_proto::Fault>| {
        fault.as_ref().map_or_else(String::new, |f| format!(": {}", safe(&f.message)))
    };
    let why = || message(&step.fault);
    Some(match step.phase {
        StepPhase::Waiting => return None,
        // Why it is tried again; the rest is told when it ends.
        StepPhase::Running if step.attempts > 1 => {
            format!("{title} on {server}: trying again ({}){}", step.attempts, why())
        }
        StepPhase::Running => format!("{title} on {server}"),
        StepPhase::Done => {
            let took = took(step).map_or_else(String::new, |t| format!(" in {t}"));
            let summary = summary(step).map_or_else(String::new, |s| format!(": {s}"));
            format!("{title}: done{took}{summary}")
        }
        StepPhase::Failed => format!("{title}: failed on {server}{}", why()),
        StepPhase::Undoing => format!("{title}: undoing on {server}"),
        StepPhase::Undone => format!("{title}: undone"),
        StepPhase::Stuck => {
            format!("{title}: cannot be undone on {server}{}", message(&step.undo_fault))
        }
    })
}

/// How long a step took.
pub fn took(step: &StepView) -> Option<String> {
    let ms = step.ended_unix_ms?.checked_sub(step.started_unix_ms?)?;
    Some(text::duration_ms(ms.max(0)))
}

/// What a step's receipt says, on a line.
pub fn summary(step: &StepView) -> Option<String> {
    let words = step.receipt.as_ref()?.in_words();
    (!words.is_empty()).then(|| safe(&words))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use ferry_proto::Fault;
    use ferry_proto::command::{FinalPass, Receipt};
    use ferry_proto::view::{Paused, Place, PlaceKind};

    /// A job with a step in each of these phases.
    pub fn job(phase: JobPhase, steps: &[(&str, &str, StepPhase)]) -> JobView {
        let steps = steps.iter().enumerate().map(|(i, (name, server, phase))| {
            let i = i64::try_from(i).unwrap();
            let ended =
                !matches!(phase, StepPhase::Waiting | StepPhase::Running | StepPhase::Undoing);
            StepView {
                name: (*name).to_owned(),
                title: format!("The step {name}"),
                server: server.parse().unwrap(),
                phase: *phase,
                attempts: 1,
                started_unix_ms: (*phase != StepPhase::Waiting).then_some(1000 * i),
                ended_unix_ms: ended.then_some(1000 * i + 800),
                receipt: None,
                fault: None,
                undo_fault: None,
                progress: None,
            }
        });
        JobView {
            job: "01900000-0000-7000-8000-000000000000".parse().unwrap(),
            account: "shop".parse().unwrap(),
            direction: ferry_proto::command::Direction::Outbound,
            source: "web1".parse().unwrap(),
            target: "transit1".parse().unwrap(),
            phase,
            committed: phase == JobPhase::Done,
            commit_unknown: false,
            commit_unheard: false,
            forced: None,
            refused: None,
            abort_requested: false,
            paused: None,
            can_pause: false,
            waiting_for: None,
            advice: "transit1 serves shop; ferry finalize shop ends the move".to_owned(),
            started_unix_ms: 1_795_398_180_000,
            ended_unix_ms: phase.has_ended().then_some(1_795_398_200_000),
            steps: steps.collect(),
        }
    }

    #[test]
    fn each_change_is_a_line() {
        use StepPhase as S;
        let mut states = vec![
            job(
                JobPhase::Running,
                &[("provision", "transit1", S::Running), ("precopy", "web1", S::Waiting)],
            ),
            job(
                JobPhase::Running,
                &[("provision", "transit1", S::Done), ("precopy", "web1", S::Running)],
            ),
        ];
        states[1].steps[0].receipt = Some(Receipt::Done {
            summary: "made user shop (1004)".to_owned(),
            figures: std::collections::BTreeMap::new(),
        });
        let mut again = states[1].clone();
        again.steps[1].attempts = 2;
        again.steps[1].fault = Some(Fault::transient("the link to transit1 was lost"));
        states.push(again.clone());
        let mut failed = again;
        failed.steps[1].phase = S::Failed;
        failed.steps[1].fault = Some(Fault::permanent("the disk of transit1 is \x1b[1mfull"));
        states.push(failed.clone());
        let mut undoing = failed;
        undoing.phase = JobPhase::Undoing;
        undoing.steps[1].phase = S::Undone;
        undoing.steps[0].phase = S::Undoing;
        states.push(undoing.clone());
        let mut stuck = undoing;
        stuck.phase = JobPhase::Stuck;
        stuck.steps[0].phase = S::Stuck;
        stuck.steps[0].undo_fault = Some(Fault::permanent("the user shop has processes"));
        states.push(stuck);

        let mut lines = Vec::new();
        let mut last = None;
        for state in &states {
            lines.extend(changes(last, state));
            last = Some(state);
        }
        insta::assert_snapshot!(lines.join("\n"));
        assert!(changes(last, &states[5]).is_empty());
    }

    #[test]
    fn what_it_waits_for_is_said_once_and_again_when_it_is_another_place() {
        let waiting = |server: &str| {
            let mut job = job(JobPhase::Running, &[("provision", "transit1", StepPhase::Waiting)]);
            job.waiting_for =
                Some(Place { server: server.parse().unwrap(), kind: PlaceKind::Target });
            job
        };
        let (first, other) = (waiting("web1"), waiting("transit1"));
        assert_eq!(changes(None, &first), ["Waiting for a place on web1: it goes on by itself."]);
        assert_eq!(changes(Some(&first), &first), [] as [&str; 0]);
        assert_eq!(
            changes(Some(&first), &other),
            ["Waiting for a place on transit1: it goes on by itself."]
        );
        assert_eq!(crate::summary::state(&first), "waiting for a place on web1");
        let json = serde_json::to_value(&other).unwrap();
        assert_eq!(
            json["waiting_for"],
            serde_json::json!({"server": "transit1", "kind": "target"})
        );
    }

    #[test]
    fn a_pause_is_told_when_it_is_wished_and_when_it_has_come() {
        use StepPhase as S;
        let running = job(JobPhase::Running, &[("precopy", "web1", S::Running)]);
        let mut pausing = running.clone();
        pausing.paused = Some(Paused { by: "an operator".to_owned(), since_unix_ms: 0 });
        let mut paused = pausing.clone();
        (paused.phase, paused.steps[0].phase) = (JobPhase::Paused, S::Waiting);
        assert_eq!(changes(Some(&running), &pausing), ["Pausing: an operator wants it so."]);
        let told = ["Paused: `ferry resume shop` lets it go on."];
        assert_eq!(changes(Some(&pausing), &paused), told);
        assert_eq!(changes(None, &paused), told);
        assert_eq!(changes(Some(&paused), &paused), [] as [&str; 0]);
    }

    #[test]
    fn progress_tells_what_is_known() {
        let start = Instant::now();
        let mut meter = Meter::default();
        assert_eq!(progress_text(&Progress::default(), &meter), "");
        let mut progress = Progress { doing: "pass 1".to_owned(), ..Progress::default() };
        assert_eq!(progress_text(&progress, &meter), "pass 1");
        meter.report(start, 0);
        progress.bytes_done = 50 << 20;
        meter.report(start + Duration::from_secs(5), progress.bytes_done);
        progress.bytes_total = Some(150 << 20);
        progress.items_done = 1234;
        assert_eq!(
            progress_text(&progress, &meter),
            "pass 1, 50.0 MiB of 150.0 MiB (33 %), 1,234 items, 10.0 MiB/s, 10 s left"
        );
        // More than was expected: no percentage above 100, no time left.
        progress.bytes_done = 200 << 20;
        meter.report(start + Duration::from_secs(9), progress.bytes_done);
        assert!(progress_text(&progress, &meter).contains("(100 %)"));
        assert!(!progress_text(&progress, &meter).contains("left"));
    }

    #[test]
    fn what_the_agent_says_of_its_pace_comes_first() {
        let start = Instant::now();
        let mut meter = Meter::default();
        meter.report(start, 0);
        meter.report(start + Duration::from_secs(5), 50 << 20);
        let mut progress = Progress {
            doing: "pass 1".to_owned(),
            bytes_done: 50 << 20,
            bytes_total: Some(150 << 20),
            bytes_per_second: Some(20 << 20),
            items_per_second: Some(1_500),
            seconds_left: Some(30),
            slow: Some("the \x1b[1mnetwork".to_owned()),
            ..Progress::default()
        };
        assert_eq!(
            progress_text(&progress, &meter),
            "pass 1, 50.0 MiB of 150.0 MiB (33 %), 20.0 MiB/s, 1,500 items/s, 30 s left, slowest: the \\u{1b}[1mnetwork"
        );
        // What is to come is said last: the line may be cut off.
        let words = "the final pass will take about 0.3 s: 1 path has \x1b[1mchanged".to_owned();
        progress.final_pass = Some(FinalPass { ms: 300, words });
        assert!(progress_text(&progress, &meter).ends_with(
            "slowest: the \\u{1b}[1mnetwork; the final pass will take about 0.3 s: 1 path has \\u{1b}[1mchanged"
        ));
        // It cannot tell how long: then nobody can.
        (progress.seconds_left, progress.slow) = (None, None);
        assert!(!progress_text(&progress, &meter).contains("left"));
    }
}
