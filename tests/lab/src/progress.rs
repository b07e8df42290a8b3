//! Progress for people and for CI logs: plain lines with the time since the start.

use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A step that takes longer than this says that it is still at work.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Details are cut to this many characters, so that a line stays a line.
const DETAIL_LIMIT: usize = 100;

static STARTED: OnceLock<Instant> = OnceLock::new();

/// Prints one line, with the time since the first line.
pub fn say(text: impl AsRef<str>) {
    let elapsed = STARTED.get_or_init(Instant::now).elapsed().as_secs_f64();
    // Nobody may be reading any more; a lab that is being taken down must not stop at that.
    let _ = writeln!(io::stdout(), "[{elapsed:6.1}s] {}", text.as_ref());
}

/// A step under way. Says when it starts, every ten seconds, and when it ends.
#[derive(Debug)]
pub struct Task {
    name: String,
    started: Instant,
    detail: Arc<Mutex<String>>,
    /// Dropping it ends the heartbeat.
    heartbeat: Option<Sender<()>>,
}

impl Task {
    /// Announces a step and keeps reporting on it until it is done or dropped.
    pub fn start(name: impl Into<String>) -> Task {
        let name = name.into();
        say(format!("{name} ..."));
        let started = Instant::now();
        let detail = Arc::<Mutex<String>>::default();
        let (heartbeat, ended) = mpsc::channel();
        let (task, shown) = (name.clone(), Arc::clone(&detail));
        thread::spawn(move || {
            while ended.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                let detail = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
                say(format!("{task}: {} s so far {detail}", started.elapsed().as_secs()));
            }
        });
        Task { name, started, detail, heartbeat: Some(heartbeat) }
    }

    /// What the step is doing just now; shown by the next heartbeat.
    pub fn detail(&self, text: &str) {
        let text: String = text.trim().chars().take(DETAIL_LIMIT).collect();
        *self.detail.lock().unwrap_or_else(PoisonError::into_inner) = format!("({text})");
    }

    /// Ends the step and says how long it took.
    pub fn done(mut self) {
        self.heartbeat = None;
        say(format!("{}: done in {:.1} s", self.name, self.started.elapsed().as_secs_f64()));
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.heartbeat.take().is_some() {
            let seconds = self.started.elapsed().as_secs_f64();
            say(format!("{}: given up after {seconds:.1} s", self.name));
        }
    }
}
