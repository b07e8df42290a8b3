//! How fast copying is: what is told of a pass while it runs, its rates, the time that is left and what is slow;
//! and whether passes keep up with those who write. It must not know what is copied.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ferry_files::Progress as FileProgress;
use ferry_proto::command::Progress;
use tokio::sync::watch;

/// Rates are those of so long ago until now.
const WINDOW: Duration = Duration::from_secs(5);
/// Of a shorter time nobody can tell.
const SHORTEST: Duration = Duration::from_secs(1);
/// What the target may be slow at in a pass.
pub const WRITING: &str = "writing at the target";
/// And in a comparison.
pub const READING: &str = "reading at the target";

/// What is being done.
#[derive(Debug)]
pub struct Doing {
    /// In words.
    pub what: String,
    /// What the target does: [`WRITING`] or [`READING`].
    pub target: &'static str,
}

/// Passes the file engine's progress on in the words of the controller.
pub async fn tell(
    mut seen: watch::Receiver<FileProgress>,
    out: watch::Sender<Progress>,
    doing: Doing,
) {
    let mut pace = Pace::default();
    while seen.changed().await.is_ok() {
        let now = seen.borrow_and_update().clone();
        pace.saw(Instant::now(), now);
        // Of the final pass somebody else tells.
        out.send_modify(|told| {
            *told = Progress { final_pass: told.final_pass.take(), ..pace.told(&doing) };
        });
    }
}

/// What was seen of a pass in the last while.
#[derive(Debug, Default)]
pub struct Pace {
    seen: VecDeque<(Instant, FileProgress)>,
}

/// The two ends of the last while.
struct Ends<'a> {
    time: Duration,
    first: &'a FileProgress,
    last: &'a FileProgress,
}

impl Pace {
    /// So far it is now.
    pub fn saw(&mut self, now: Instant, progress: FileProgress) {
        self.seen.push_back((now, progress));
        // One from before the window stays: a rate needs two ends.
        while self.seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.seen.pop_front();
        }
    }

    /// All that is known, in the words of the controller.
    pub fn told(&self, doing: &Doing) -> Progress {
        let Some((_, last)) = self.seen.back() else { return Progress::default() };
        let ends = self.ends();
        Progress {
            doing: doing.what.clone(),
            bytes_done: last.bytes_done,
            bytes_total: last.bytes_total,
            items_done: last.files_done,
            items_total: last.files_total,
            bytes_per_second: ends.as_ref().map(Ends::bytes_per_second),
            items_per_second: ends.as_ref().map(Ends::items_per_second),
            seconds_left: ends.as_ref().and_then(Ends::seconds_left),
            slow: ends.and_then(|ends| ends.slow(doing.target)).map(str::to_owned),
            final_pass: None,
        }
    }

    fn ends(&self) -> Option<Ends<'_>> {
        let ((from, first), (to, last)) = (self.seen.front()?, self.seen.back()?);
        let time = to.duration_since(*from);
        (time >= SHORTEST).then_some(Ends { time, first, last })
    }
}

impl Ends<'_> {
    fn bytes_per_second(&self) -> u64 {
        per_second(self.last.bytes_done.saturating_sub(self.first.bytes_done), self.time)
    }

    fn items_per_second(&self) -> u64 {
        per_second(self.last.files_done.saturating_sub(self.first.files_done), self.time)
    }

    /// As long as the bytes and the files that are left take at this rate; none while that is not known.
    fn seconds_left(&self) -> Option<u64> {
        let bytes = self.last.bytes_total?.saturating_sub(self.last.bytes_done);
        let files = self.last.files_total?.saturating_sub(self.last.files_done);
        let for_bytes = seconds_for(bytes, self.bytes_per_second());
        let for_files = seconds_for(files, self.items_per_second());
        match (for_bytes, for_files) {
            (Some(one), Some(other)) => Some(one.max(other)),
            // A large file is under way, and no other was done.
            (Some(seconds), None) if bytes > 0 => Some(seconds),
            _ => None,
        }
    }

    /// What took most of the time, if something did.
    fn slow(&self, target: &'static str) -> Option<&'static str> {
        let (before, now) = (&self.first.spent, &self.last.spent);
        let parts = [
            (now.limit.saturating_sub(before.limit), "the limit that is set"),
            (now.reading.saturating_sub(before.reading), "reading at the source"),
            (now.network.saturating_sub(before.network), "the network"),
            (now.target.saturating_sub(before.target), target),
        ];
        let (time, what) = parts.into_iter().max_by_key(|(time, _)| *time)?;
        // Of all streams together: one of them at least is held up most of the time.
        (time * 2 >= self.time).then_some(what)
    }
}

fn per_second(count: u64, time: Duration) -> u64 {
    // Float to integer casts saturate; a time of nothing gives the most there is.
    (count as f64 / time.as_secs_f64()).round() as u64
}

fn seconds_for(left: u64, rate: u64) -> Option<u64> {
    if left == 0 {
        return Some(0);
    }
    (rate > 0).then(|| left.div_ceil(rate))
}

/// The last of the passes that were to leave little.
#[derive(Debug, Clone, Copy)]
pub struct LastPass {
    /// What it sent.
    pub bytes: u64,
    /// How long after the pass before it began; none if it was the first.
    pub since_before: Option<Duration>,
    /// How long it took.
    pub took: Duration,
}

impl LastPass {
    /// What is to be said if it was to send less than so many bytes and did not. What it sent was written
    /// since the pass before began.
    pub fn outpaced(&self, converged_bytes: u64) -> Option<String> {
        if self.bytes < converged_bytes {
            return None;
        }
        let since_before = self.since_before.filter(|time| !time.is_zero())?;
        let written = per_second(self.bytes, since_before);
        let copied = per_second(self.bytes, self.took);
        let what = if written >= copied {
            "the account is written faster than it can be copied"
        } else {
            "the passes ended before little was left"
        };
        let (written, copied) = (amount(written), amount(copied));
        Some(format!(
            "{what}: {written} a second are written, {copied} a second are copied; the rest is copied \
             inside the fence"
        ))
    }
}

/// Bytes as people say them.
pub fn amount(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..10_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferry_files::Spent;

    fn at(bytes: u64, files: u64) -> FileProgress {
        FileProgress { bytes_done: bytes, files_done: files, ..FileProgress::default() }
    }

    /// What is told after these were seen, each at so many milliseconds.
    fn told(seen: &[(u64, FileProgress)]) -> Progress {
        let (began, mut pace) = (Instant::now(), Pace::default());
        for (millis, progress) in seen {
            pace.saw(began + Duration::from_millis(*millis), progress.clone());
        }
        pace.told(&Doing { what: "pass 1".to_owned(), target: WRITING })
    }

    #[test]
    fn rates_are_those_of_the_last_while() {
        assert_eq!(told(&[]), Progress::default());
        let first = told(&[(0, at(0, 0)), (900, at(900, 1))]);
        assert_eq!((first.doing.as_str(), first.bytes_done, first.items_done), ("pass 1", 900, 1));
        assert_eq!(
            (first.bytes_per_second, first.items_per_second, first.slow),
            (None, None, None)
        );
        let seen = [(0, at(0, 0)), (2_000, at(8_000, 40)), (7_000, at(9_000, 50))];
        let later = told(&seen);
        assert_eq!((later.bytes_per_second, later.items_per_second), (Some(200), Some(2)));
        assert_eq!(later.seconds_left, None, "the totals are not known");
        // It stands still, and says so.
        let seen = [(0, at(5, 5)), (5_000, at(5, 5))];
        assert_eq!(told(&seen).bytes_per_second, Some(0));
    }

    #[test]
    fn the_time_left_is_that_of_bytes_and_files() {
        let left = |bytes: u64, files: u64, bytes_total: u64, files_total: u64| {
            let mut now = at(bytes, files);
            (now.bytes_total, now.files_total) = (Some(bytes_total), Some(files_total));
            told(&[(0, at(0, 0)), (1_000, now)]).seconds_left
        };
        assert_eq!(left(100, 10, 1_100, 20), Some(10));
        assert_eq!(left(100, 10, 150, 110), Some(10));
        assert_eq!(left(100, 0, 1_050, 1), Some(10), "one large file");
        assert_eq!(left(0, 0, 1_050, 1), None, "nothing goes on");
        assert_eq!(left(100, 10, 100, 10), Some(0));
        assert_eq!(left(200, 10, 100, 10), Some(0), "it has grown");
    }

    #[test]
    fn what_is_slow_took_most_of_the_time() {
        let slow = |spent: Spent| {
            let now = FileProgress { spent, ..at(1, 1) };
            told(&[(0, at(0, 0)), (4_000, now)]).slow
        };
        let (some, most) = (Duration::from_millis(1_900), Duration::from_millis(2_000));
        let nothing = Spent::default();
        assert_eq!(slow(nothing), None);
        assert_eq!(slow(Spent { reading: some, network: some, ..nothing }), None);
        let cases = [
            (Spent { reading: most, network: some, ..nothing }, "reading at the source"),
            (Spent { network: most, reading: some, ..nothing }, "the network"),
            (Spent { target: most, reading: some, ..nothing }, WRITING),
            (Spent { limit: most, target: some, ..nothing }, "the limit that is set"),
        ];
        for (spent, expected) in cases {
            assert_eq!(slow(spent).as_deref(), Some(expected));
        }
    }

    #[test]
    fn passes_that_do_not_keep_up_say_so_with_both_rates() {
        let seconds = |n: u64| Duration::from_secs(n);
        let last = LastPass {
            bytes: 120_000_000,
            since_before: Some(seconds(10)),
            took: Duration::from_millis(13_200),
        };
        assert_eq!(
            last.outpaced(4 << 20).unwrap(),
            "the account is written faster than it can be copied: 12 MB a second are written, \
             9.1 MB a second are copied; the rest is copied inside the fence"
        );
        let quick = LastPass { took: seconds(5), ..last };
        let text = quick.outpaced(4 << 20).unwrap();
        assert!(text.contains("before little was left: 12 MB"), "{text}");
        assert!(text.contains("24 MB a second are copied"), "{text}");
        assert_eq!([amount(9_999), amount(10_000)], ["9999 bytes", "10 kB"]);
        // Little was left; or nobody knows since when it was written.
        assert_eq!(last.outpaced(120_000_001), None);
        assert_eq!(LastPass { since_before: None, ..last }.outpaced(1), None);
    }
}
