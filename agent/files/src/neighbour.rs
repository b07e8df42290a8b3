//! Being a good neighbour: threads that copy while an account is served leave the host to those who serve it.
//! They run with the lowest priority, for processors and for disks, which decides where nothing else does; and
//! where the processors or the disks are all in use, and others use or wait for them too, the threads pause for
//! most of their time. It must not know what is copied.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::libc::{SYS_ioprio_set, c_int, syscall};

/// Of ioprio_set(2): the priority of a thread, and the class of what disks do when nothing else is asked of them.
const WHO_PROCESS: c_int = 1;
const CALLING_THREAD: c_int = 0;
const IDLE_CLASS: c_int = 3 << 13;
/// How often the host is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// The least that is worked: in a thousand.
const LEAST: u32 = 40;
/// All the time.
const ALL: u32 = 1_000;
/// What is added at a look when nobody is in need.
const STEP: u32 = 150;
/// Processors that are idle for less than this part of the time are all in use.
const IDLE: f64 = 0.08;
/// Others who use less than this part of the processors are not in need of more.
const OTHERS: f64 = 0.25;
/// Others who wait for disks for more than this part of the time are held up.
const STALLED: f64 = 0.10;
/// No pause is longer: whoever ends the pass must not wait for it.
const LONGEST: Duration = Duration::from_millis(200);
/// Work is paid for when it has added up to this.
const SHORTEST: Duration = Duration::from_millis(2);

/// See the module. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Neighbour(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    /// The part of their time that threads work, in a thousand.
    part: AtomicU32,
    /// When the host is looked at next, in milliseconds since `began`.
    next: AtomicU64,
    began: Instant,
    host: Mutex<Host>,
}

impl Neighbour {
    /// One that leaves the host to others if it is `calm`.
    pub fn new(calm: bool) -> Self {
        if calm { Self::good() } else { Self(None) }
    }

    fn good() -> Self {
        let inner = Inner {
            part: AtomicU32::new(ALL),
            next: AtomicU64::new(0),
            began: Instant::now(),
            host: Mutex::new(Host::of_this_process()),
        };
        Self(Some(Arc::new(inner)))
    }

    /// What a thread begins to work with.
    pub fn turn(&self) -> Turn<'_> {
        if self.0.is_some() {
            // Where it may not, it is as others are.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
            disks_last();
        }
        Turn { neighbour: self.0.as_deref(), since: Instant::now() }
    }
}

/// Has the disks do what this thread asks when nobody else asks anything. Where the scheduler of a disk knows no
/// priorities, it is as others are.
fn disks_last() {
    #[allow(unsafe_code)]
    // SAFETY: ioprio_set takes three numbers and neither reads nor writes memory of ours.
    let _ = unsafe { syscall(SYS_ioprio_set, WHO_PROCESS, CALLING_THREAD, IDLE_CLASS) };
}

/// A thread's work.
#[derive(Debug)]
pub struct Turn<'a> {
    neighbour: Option<&'a Inner>,
    since: Instant,
}

impl Turn<'_> {
    /// A piece of work is done: pauses for as long as that asks for.
    pub fn done(&mut self) {
        let Some(neighbour) = self.neighbour else { return };
        let worked = self.since.elapsed();
        if worked < SHORTEST {
            return;
        }
        neighbour.look();
        let pause = pause(worked, neighbour.part.load(Relaxed));
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        self.since = Instant::now();
    }

    /// It has waited for something until now, and not worked.
    pub fn waited(&mut self) {
        self.since = Instant::now();
    }
}

/// How long to pause after that much work.
fn pause(worked: Duration, part: u32) -> Duration {
    (worked * (ALL - part) / part).min(LONGEST)
}

impl Inner {
    /// Looks at the host, if it is time to.
    fn look(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next = self.next.load(Relaxed);
        let after = now + LOOK.as_millis() as u64;
        if now < next || self.next.compare_exchange(next, after, Relaxed, Relaxed).is_err() {
            return;
        }
        let mut host = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = host.look() {
            self.part.store(decided(self.part.load(Relaxed), &seen), Relaxed);
        }
    }
}

/// What the host did since the look before, as parts of the time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    /// All processors together were idle.
    idle: f64,
    /// Others used processors.
    others: f64,
    /// Others waited for disks.
    stalled: f64,
}

/// How much is worked from now on.
fn decided(part: u32, seen: &Seen) -> u32 {
    let are_held_up = seen.stalled > STALLED || (seen.idle < IDLE && seen.others > OTHERS);
    if are_held_up { (part / 2).max(LEAST) } else { (part + STEP).min(ALL) }
}

/// Where the kernel tells it, and what it told.
#[derive(Debug)]
struct Host {
    /// Of our control group: what stalls us is no neighbour of ours.
    own_pressure: Option<PathBuf>,
    before: Option<Told>,
}

#[derive(Debug, Clone, Copy)]
struct Told {
    /// Ticks of all processors, of idle ones, and of this process.
    all: u64,
    idle: u64,
    own: u64,
    /// Microseconds in which somebody waited for disks, and in which we did.
    stalled: u64,
    own_stalled: u64,
    at: Instant,
}

impl Host {
    fn of_this_process() -> Self {
        let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
        let own = own.map(|own| Path::new("/sys/fs/cgroup").join(own.trim_start_matches('/')));
        Self { own_pressure: own.map(|own| own.join("io.pressure")), before: None }
    }

    fn look(&mut self) -> Option<Seen> {
        let told = self.ask()?;
        let before = self.before.replace(told)?;
        let part = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        let all = told.all.saturating_sub(before.all);
        let idle = told.idle.saturating_sub(before.idle);
        let own = told.own.saturating_sub(before.own);
        let time = told.at.duration_since(before.at).as_micros() as u64;
        let own_stalled = told.own_stalled.saturating_sub(before.own_stalled);
        let stalled = told.stalled.saturating_sub(before.stalled).saturating_sub(own_stalled);
        Some(Seen {
            idle: part(idle, all),
            others: part(all.saturating_sub(idle + own), all),
            stalled: part(stalled, time),
        })
    }

    fn ask(&self) -> Option<Told> {
        let (all, idle) = processors(&fs::read_to_string("/proc/stat").ok()?)?;
        let own = own_ticks(&fs::read_to_string("/proc/self/stat").ok()?)?;
        // Where the kernel has no pressure information, disks are not looked at.
        let pressure = |path: &Path| fs::read_to_string(path).ok().as_deref().and_then(some_total);
        let stalled = pressure(Path::new("/proc/pressure/io")).unwrap_or(0);
        let own_stalled = self.own_pressure.as_deref().and_then(pressure).unwrap_or(stalled);
        Some(Told { all, idle, own, stalled, own_stalled, at: Instant::now() })
    }
}

/// Ticks of all processors, and of idle ones: /proc/stat (proc_stat(5)).
fn processors(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    // The times of guests are in those of users already.
    let ticks: Vec<u64> = line.split_whitespace().take(8).filter_map(|t| t.parse().ok()).collect();
    let (idle, waiting) = (ticks.get(3)?, ticks.get(4)?);
    Some((ticks.iter().sum(), idle + waiting))
}

/// Ticks of this process: /proc/self/stat (proc_pid_stat(5)).
fn own_ticks(stat: &str) -> Option<u64> {
    // The name may have spaces and parentheses.
    let after = &stat[stat.rfind(')')? + 1..];
    let mut fields = after.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Microseconds in which some task was stalled: a file of pressure information.
fn some_total(pressure: &str) -> Option<u64> {
    let line = pressure.lines().find(|line| line.starts_with("some "))?;
    line.split_whitespace().find_map(|field| field.strip_prefix("total="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc::{SYS_ioprio_get, c_long};

    #[test]
    fn what_the_kernel_tells_is_read() {
        let stat = "cpu  10 2 8 70 10 0 0 0 5 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(processors(stat), Some((100, 80)));
        let own = "42 (a (strange) name) R 1 42 42 0 -1 4194304 100 0 0 0 17 5 0 0 20 0 9 0";
        assert_eq!(own_ticks(own), Some(22));
        let pressure = "some avg10=1.00 avg60=0.50 avg300=0.10 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(some_total(pressure), Some(1234));
        assert_eq!((processors(""), own_ticks("x"), some_total("")), (None, None, None));
        let mut host = Host::of_this_process();
        assert!(host.look().is_none() && host.look().is_some());
    }

    #[test]
    fn disks_do_last_what_is_calm() {
        #[allow(unsafe_code)]
        // SAFETY: ioprio_get takes two numbers and neither reads nor writes memory of ours.
        let priority = || unsafe { syscall(SYS_ioprio_get, WHO_PROCESS, CALLING_THREAD) };
        // A thread of its own: it stays so.
        let turned = std::thread::spawn(move || {
            let neighbour = Neighbour::new(true);
            let _turn = neighbour.turn();
            priority()
        });
        assert_eq!(turned.join().unwrap(), c_long::from(IDLE_CLASS));
    }

    #[test]
    fn whoever_is_held_up_gets_the_host() {
        let calm = Seen { idle: 0.5, others: 0.4, stalled: 0.0 };
        let alone = Seen { idle: 0.0, others: 0.05, stalled: 0.0 };
        let busy = Seen { idle: 0.01, others: 0.7, stalled: 0.0 };
        let waiting = Seen { idle: 0.9, others: 0.05, stalled: 0.3 };
        for seen in [calm, alone] {
            assert_eq!(decided(ALL, &seen), ALL);
            assert_eq!(decided(LEAST, &seen), LEAST + STEP);
        }
        for seen in [busy, waiting] {
            assert_eq!(decided(ALL, &seen), ALL / 2);
            assert_eq!(decided(LEAST, &seen), LEAST);
        }
    }

    #[test]
    fn pauses_are_in_proportion_to_the_work() {
        let worked = Duration::from_millis(10);
        assert_eq!(pause(worked, ALL), Duration::ZERO);
        assert_eq!(pause(worked, ALL / 2), worked);
        assert_eq!(pause(worked, ALL / 10), worked * 9);
        assert_eq!(pause(Duration::from_secs(9), LEAST), LONGEST);
    }
}
