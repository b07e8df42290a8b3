//! One end of a pass, whichever: the pumps, the thread that does the work, progress, and an orderly
//! end in all cases. It must not know which end it is.

use std::time::Duration;

use ferry_proto::{Fault, FaultClass};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::halt::Halt;
use crate::progress::Counters;
use crate::report::Progress;
use crate::wire::{Channels, Pumps};

/// How often the caller's view of the progress is renewed.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// What a working thread gets.
#[derive(Debug)]
pub struct Work {
    /// The stream.
    pub channels: Channels,
    /// How it is stopped.
    pub halt: Halt,
    /// What it counts.
    pub counters: Counters,
}

/// Runs `work` on a thread, over `stream`.
pub async fn run<S, R>(
    stream: S,
    bandwidth: Option<u64>,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
    work: impl FnOnce(Work) -> Result<R, Fault> + Send + 'static,
) -> Result<R, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    R: Send + 'static,
{
    let halt = Halt::default();
    let _stop = halt.on_drop();
    let counters = Counters::default();
    let (pumps, channels) = Pumps::start(stream, bandwidth, &halt, &counters);
    let given = Work { channels, halt: halt.clone(), counters: counters.clone() };
    let inner = halt.clone();
    let mut working = tokio::task::spawn_blocking(move || {
        // The pumps say the last word, so they must know why before the last sender is dropped.
        let sender = given.channels.outgoing.clone();
        let outcome = work(given);
        if let Err(fault) = &outcome {
            inner.stop(fault.clone());
        }
        drop(sender);
        outcome
    });
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    let joined = loop {
        tokio::select! {
            joined = &mut working => break joined,
            () = cancel.cancelled(), if !halt.is_stopped() => halt.stop(cancelled()),
            _ = tick.tick() => { progress.send_replace(counters.snapshot()); }
        }
    };
    let outcome = joined.unwrap_or_else(|panic| {
        let fault = Fault::bug("the thread that copies files panicked").caused_by(&panic);
        halt.stop(fault.clone());
        Err(fault)
    });
    pumps.finish().await;
    progress.send_replace(counters.snapshot());
    match outcome {
        Ok(done) => Ok(done),
        // The first fault is the cause, whatever the thread met in consequence.
        Err(_) => Err(halt.ended()),
    }
}

fn cancelled() -> Fault {
    Fault::new(FaultClass::Cancelled, "the copying of files was cancelled")
}
