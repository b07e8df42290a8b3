//! The lab's ears: they hear on every host which failpoints its programs come to, and may keep one waiting
//! there until the lab has done what it wants to do at that very moment.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use ferry_failpoints::SOCKET;
use rustix::net::sockopt::socket_peercred;
use rustix::process::Pid;

use super::point::Point;
use crate::host::Host;

/// How long a program may take to say where it is.
const SPEAKS: Duration = Duration::from_secs(10);

/// What is said to a program that comes to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing yet: the lab is told, and answers.
    Wait,
    /// What follows is to fail with this error.
    Errno(i32),
}

/// A program that waits at a failpoint. It goes on when this is dropped.
#[derive(Debug)]
pub struct Held {
    /// Where.
    pub point: Point,
    /// The program's process, by its number out here.
    pub process: Pid,
    stream: UnixStream,
}

impl Held {
    /// Lets it go on.
    pub fn go(mut self) {
        // If it has ended meanwhile nobody is there to hear it.
        let _ = self.stream.write_all(b"go\n");
    }
}

/// Hears all hosts.
#[derive(Debug)]
pub struct Ears {
    heard: Arc<Mutex<Heard>>,
    held: Receiver<Held>,
    /// Where each host's socket is: by its first process, which a reboot replaces.
    places: HashMap<String, PathBuf>,
}

#[derive(Debug)]
struct Heard {
    trace: Vec<Point>,
    counts: HashMap<(String, String, String), u32>,
    aims: Vec<(Point, Answer)>,
    struck: bool,
    held: Sender<Held>,
}

impl Heard {
    /// Notes that a program has come to a point; tells what to answer if that is aimed at.
    fn note(&mut self, host: &str, line: &str) -> Option<(Point, Option<Answer>)> {
        let (program, name) = line.trim_end().split_once(' ')?;
        let key = (host.to_owned(), program.to_owned(), name.to_owned());
        let nth = self.counts.entry(key).or_default();
        *nth += 1;
        let point = Point {
            host: host.to_owned(),
            program: program.to_owned(),
            name: name.to_owned(),
            nth: *nth,
        };
        self.trace.push(point.clone());
        let aimed = self.aims.iter().position(|(aim, _)| *aim == point);
        let answer = aimed.map(|index| self.aims.remove(index).1);
        self.struck |= matches!(answer, Some(Answer::Errno(_)));
        Some((point, answer))
    }
}

impl Default for Ears {
    fn default() -> Self {
        let (sender, held) = channel();
        let heard = Heard {
            trace: Vec::new(),
            counts: HashMap::new(),
            aims: Vec::new(),
            struck: false,
            held: sender,
        };
        Ears { heard: Arc::new(Mutex::new(heard)), held, places: HashMap::new() }
    }
}

impl Ears {
    /// Listens on a host, unless it does: after a boot it is another place.
    pub fn listen(&mut self, host: &Host) -> Result<()> {
        let place = PathBuf::from(format!("/proc/{}/root{SOCKET}", host.leader()?));
        if self.places.get(host.name()) == Some(&place) {
            return Ok(());
        }
        let directory = place.parent().context("the socket is in a directory")?;
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        if place.exists() {
            fs::remove_file(&place).with_context(|| format!("removing {}", place.display()))?;
        }
        let listener = UnixListener::bind(&place)
            .with_context(|| format!("listening on {}", place.display()))?;
        // Programs of any user tell where they are.
        for (path, mode) in [(directory, 0o755), (place.as_path(), 0o666)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        let (heard, name) = (Arc::clone(&self.heard), host.name().to_owned());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (heard, name) = (Arc::clone(&heard), name.clone());
                thread::spawn(move || hear(&heard, &name, stream));
            }
        });
        self.places.insert(host.name().to_owned(), place);
        Ok(())
    }

    /// Forgets what was heard, and from now on answers as told at these points, once each.
    pub fn aim(&self, aims: Vec<(Point, Answer)>) {
        self.let_go();
        let mut heard = lock(&self.heard);
        heard.trace.clear();
        heard.counts.clear();
        heard.struck = false;
        heard.aims = aims;
    }

    /// Programs that wait go on, and none is kept waiting any more.
    pub fn let_go(&self) {
        lock(&self.heard).aims.clear();
        while self.held.try_recv().is_ok() {}
    }

    /// The next program that waits, within this time.
    pub fn held(&self, within: Duration) -> Option<Held> {
        self.held.recv_timeout(within).ok()
    }

    /// Whether an error was answered.
    pub fn has_failed_one(&self) -> bool {
        lock(&self.heard).struck
    }

    /// All points that were heard since the last [`Ears::aim`].
    pub fn trace(&self) -> Vec<Point> {
        lock(&self.heard).trace.clone()
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hears one program at one point.
fn hear(heard: &Mutex<Heard>, host: &str, mut stream: UnixStream) {
    let mut line = String::new();
    let read = stream
        .set_read_timeout(Some(SPEAKS))
        .and_then(|()| BufReader::new(&stream).read_line(&mut line));
    if read.is_err() {
        return;
    }
    let Ok(credentials) = socket_peercred(&stream) else { return };
    let mut heard = lock(heard);
    match heard.note(host, &line) {
        Some((point, Some(Answer::Wait))) => {
            // Nobody waits for it any more where the receiver has gone: dropped, it goes on.
            let _ = heard.held.send(Held { point, process: credentials.pid, stream });
        }
        Some((_, Some(Answer::Errno(code)))) => {
            let _ = stream.write_all(format!("errno {code}\n").as_bytes());
        }
        _ => {
            let _ = stream.write_all(b"go\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn ask(ears: &Ears, line: &str) -> UnixStream {
        let (mut program, lab) = UnixStream::pair().unwrap();
        program.write_all(line.as_bytes()).unwrap();
        hear(&ears.heard, "client", lab);
        program
    }

    fn answer(mut program: UnixStream) -> String {
        let mut answer = String::new();
        program.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn points_are_counted_and_only_the_one_aimed_at_waits() {
        let ears = Ears::default();
        let second: Point = "client:ferry-agent:a.before#2".parse().unwrap();
        ears.aim(vec![(second.clone(), Answer::Wait)]);
        assert_eq!(answer(ask(&ears, "ferry-agent a.before\n")), "go\n");
        let waiting = ask(&ears, "ferry-agent a.before\n");
        let held = ears.held(Duration::ZERO).unwrap();
        assert_eq!(held.point, second);
        assert_eq!(held.process, rustix::process::getpid());
        held.go();
        assert_eq!(answer(waiting), "go\n");
        assert_eq!(answer(ask(&ears, "ferry-agent a.before\n")), "go\n");
        let names: Vec<u32> = ears.trace().iter().map(|p| p.nth).collect();
        assert_eq!(names, [1, 2, 3]);
        ears.aim(Vec::new());
        assert!(ears.trace().is_empty());
    }

    #[test]
    fn an_error_is_answered_at_once_and_once() {
        let ears = Ears::default();
        ears.aim(vec![("client:ferry-agent:a.before#1".parse().unwrap(), Answer::Errno(28))]);
        assert!(!ears.has_failed_one());
        assert_eq!(answer(ask(&ears, "ferry-agent a.before\n")), "errno 28\n");
        assert_eq!(answer(ask(&ears, "ferry-agent a.before\n")), "go\n");
        assert!(ears.has_failed_one());
    }

    #[test]
    fn whoever_waits_goes_on_when_the_lab_aims_anew() {
        let ears = Ears::default();
        ears.aim(vec![("client:ferry-agent:a.before#1".parse().unwrap(), Answer::Wait)]);
        let waiting = ask(&ears, "ferry-agent a.before\n");
        ears.let_go();
        // The end of the connection says so.
        assert_eq!(answer(waiting), "");
        assert_eq!(ears.trace().len(), 1, "what was heard is still known");
    }
}
