//! One end of a pass, whichever: the streams with their pumps, the thread that does the work, progress, and
//! an orderly end in all cases. It must not know which end it is.

use std::time::Duration;

use ferry_proto::{Fault, FaultClass};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::halt::Halt;
use crate::limits::Limits;
use crate::progress::Counters;
use crate::report::Progress;
use crate::wire::{Channels, Pumps};

/// Most data streams of a pass.
pub const MAX_STREAMS: usize = 16;

/// How often the caller's view of the progress is renewed.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// What a pass is made over: connections between the two ends, the same ones in the same order at both.
#[derive(Debug)]
pub struct Streams<S> {
    /// For listings, answers and reports.
    pub control: S,
    /// For contents: at least one, at most [`MAX_STREAMS`].
    pub data: Vec<S>,
}

/// What a working thread gets.
#[derive(Debug)]
pub struct Work {
    /// The control stream.
    pub control: Channels,
    /// The data streams.
    pub data: Vec<Channels>,
    /// How it is stopped.
    pub halt: Halt,
    /// What it counts.
    pub counters: Counters,
}

/// Runs `work` on a thread, over `streams`.
pub async fn run<S, R>(
    streams: Streams<S>,
    limits: Limits,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
    work: impl FnOnce(Work) -> Result<R, Fault> + Send + 'static,
) -> Result<R, Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    R: Send + 'static,
{
    if !(1..=MAX_STREAMS).contains(&streams.data.len()) {
        return Err(Fault::bug("a pass has no data stream, or too many"));
    }
    let halt = Halt::default();
    let _stop = halt.on_drop();
    let counters = Counters::default();
    let (control, channels) = Pumps::start(streams.control, &limits, &halt, &counters);
    let (mut pumps, data): (Vec<_>, Vec<_>) = streams
        .data
        .into_iter()
        .map(|stream| Pumps::start(stream, &limits, &halt, &counters))
        .unzip();
    pumps.push(control);
    let given = Work { control: channels, data, halt: halt.clone(), counters: counters.clone() };
    let inner = halt.clone();
    let mut working = tokio::task::spawn_blocking(move || {
        // The pumps say the last word, so they must know why before the last sender is dropped.
        let sender = given.control.outgoing.clone();
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
    let mut ending = JoinSet::new();
    pumps.into_iter().for_each(|pump| drop(ending.spawn(pump.finish())));
    ending.join_all().await;
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
