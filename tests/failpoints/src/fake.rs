//! A lab for tests of points: it answers as it is told to, and notes what it hears.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::enabled::look_in;

/// Listens for what the thread that made it does, and what that thread awaits, until it is dropped.
#[derive(Debug)]
pub struct FakeLab {
    socket: PathBuf,
    heard: Arc<Mutex<Vec<String>>>,
    listening: Option<JoinHandle<()>>,
}

impl FakeLab {
    /// Listens in `directory`, and answers each point with what `answer` makes of it.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub fn listen(
        directory: &Path,
        mut answer: impl FnMut(&str) -> String + Send + 'static,
    ) -> std::io::Result<Self> {
        let socket = directory.join("lab.sock");
        let listener = UnixListener::bind(&socket)?;
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let note = heard.clone();
        let listening = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut line = String::new();
                let read = BufReader::new(&stream).read_line(&mut line);
                // The program's name differs from test to test.
                let Some((_, point)) = line.trim_end().split_once(' ') else { return };
                note.lock().unwrap_or_else(PoisonError::into_inner).push(point.to_owned());
                // Whoever has gone does not wait for an answer.
                let _ =
                    read.and_then(|_| stream.write_all(format!("{}\n", answer(point)).as_bytes()));
            }
        });
        look_in(Some(directory));
        Ok(Self { socket, heard, listening: Some(listening) })
    }

    /// The points that were come to so far, in their order.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for FakeLab {
    fn drop(&mut self) {
        look_in(None);
        // A line without a point ends it.
        let told = UnixStream::connect(&self.socket).and_then(|mut lab| lab.write_all(b"\n"));
        if let (Ok(()), Some(listening)) = (told, self.listening.take()) {
            // It only listens: there is nothing to pass on of a panic in it.
            let _ = listening.join();
        }
    }
}
