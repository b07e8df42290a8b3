//! One end's way of stopping: the first fault wins, threads see a flag, tasks wait on a token. It must
//! not know what is being stopped.

use std::sync::{Arc, Mutex, PoisonError};

use ferry_proto::Fault;
use tokio_util::sync::CancellationToken;

use crate::codec::Malformed;

/// Shared by all threads and tasks of one end.
#[derive(Debug, Clone, Default)]
pub struct Halt {
    token: CancellationToken,
    fault: Arc<Mutex<Option<Why>>>,
}

/// Who ended it.
#[derive(Debug, Clone)]
pub enum Why {
    /// This end.
    Ours(Fault),
    /// The other end, which therefore knows.
    Theirs(Fault),
}

impl Halt {
    /// Stops everything. Only the first fault counts.
    pub fn stop(&self, fault: Fault) {
        self.stop_with(Why::Ours(fault));
    }

    /// Stops everything for the other end's fault.
    pub fn stop_for_peer(&self, fault: Fault) {
        self.stop_with(Why::Theirs(fault));
    }

    fn stop_with(&self, why: Why) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.token.cancel();
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until it is stopped.
    pub async fn stopped(&self) {
        self.token.cancelled().await;
    }

    /// The first fault, if there was one.
    pub fn why(&self) -> Option<Why> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes on, or ends the thread that asks.
    ///
    /// # Errors
    /// It was stopped.
    pub fn check(&self) -> Result<(), Fault> {
        if self.is_stopped() { Err(self.ended()) } else { Ok(()) }
    }

    /// The fault that it ended with.
    pub fn ended(&self) -> Fault {
        match self.why() {
            Some(Why::Ours(fault) | Why::Theirs(fault)) => fault,
            None => Fault::transient("the pass was stopped"),
        }
    }

    /// What came of a step that is made before there are threads: its fault stops everything before the streams of
    /// whoever returns it close, or the other end would see only that.
    ///
    /// # Errors
    /// That fault.
    pub fn stopping<T>(&self, done: Result<T, Fault>) -> Result<T, Fault> {
        done.inspect_err(|fault| self.stop(fault.clone()))
    }

    /// Runs one thread's part: its fault stops everything, and so does its panic, which others would wait
    /// for in vain.
    pub fn watch(&self, part: impl FnOnce() -> Result<(), Fault>) {
        let alarm = Alarm(self);
        if let Err(fault) = part() {
            self.stop(fault);
        }
        std::mem::forget(alarm);
    }

    /// Stops everything when dropped: the caller has lost interest.
    pub fn on_drop(&self) -> StopOnDrop {
        StopOnDrop(self.clone())
    }
}

/// See [`Halt::watch`].
struct Alarm<'a>(&'a Halt);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.stop(Fault::bug("a thread that copies files panicked"));
    }
}

/// See [`Halt::on_drop`].
#[derive(Debug)]
pub struct StopOnDrop(Halt);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.token.cancel();
    }
}

/// The fault for a peer that does not keep to the protocol.
pub fn protocol_fault(what: &Malformed) -> Fault {
    Fault::permanent("the other end does not keep to the protocol for files")
        .caused_by(what)
        .remedy(
            "check that both agents run the same version of Ferry; if they do, distrust the peer",
        )
}
