//! A stream's two pumps and what threads hand to them: whole frames in chunks, through bounded
//! channels. They keep the connection alive, notice when the peer is not, limit the rate, and pass
//! faults across. They must not know what the frames mean.

use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use ferry_proto::Fault;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::io::poll_read_buf;

use crate::codec::Malformed;
use crate::halt::{Halt, Why, protocol_fault};
use crate::limits::Limits;
use crate::pack::{Pace, Packer, Waiting};
use crate::progress::Counters;
use crate::protocol::{FAULT, Frame, HEADER, KEEP_ALIVE, MAX_FRAME};
use crate::report::FromPeer;
use crate::spare::Spare;

/// A chunk is handed over when it is at least so long.
pub const CHUNK: usize = 128 * 1024;
/// A frame that is so long is handed over by itself: nothing of the next is read with it, which would have to be copied.
const LONG: usize = CHUNK / 2;
/// How many chunks wait in each direction.
pub const QUEUE: usize = 8;
/// A silent end says that it is alive so often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// A peer that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// How long an ending connection may take to say why, and to be closed.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long the peer's own account of its end is waited for once writing to it failed.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Frames of one thread on their way out.
#[derive(Debug)]
pub struct Outbox {
    outgoing: Outgoing,
    buffer: Vec<u8>,
    flushes: u64,
    packer: Option<Packer>,
    halt: Halt,
}

impl Outbox {
    /// An outbox that feeds the pump behind `outgoing`.
    pub fn new(outgoing: Outgoing, halt: Halt) -> Self {
        Self { buffer: outgoing.spare.take(), outgoing, flushes: 0, packer: None, halt }
    }

    /// One that packs what it hands over where that helps a stream of this pace.
    pub fn packing(self, pace: Pace) -> Self {
        Self { packer: Some(Packer::new(pace)), ..self }
    }

    /// How often frames were handed over.
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// Whether all frames were handed over.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Adds a frame. Answers whether the frames so far were handed over.
    pub fn put(&mut self, frame: &Frame<'_>) -> Result<bool, Fault> {
        frame.encode(&mut self.buffer);
        if self.buffer.len() < CHUNK {
            return Ok(false);
        }
        self.flush().map(|()| true)
    }

    /// Hands over what there is. Blocks while the queue is full.
    pub fn flush(&mut self) -> Result<(), Fault> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let Outgoing { chunks, spare } = &self.outgoing;
        let mut chunk = std::mem::replace(&mut self.buffer, spare.take());
        if let Some(packer) = &mut self.packer {
            let must_wait = chunks.capacity() <= QUEUE / 2;
            if let Some(packed) = packer.pack(&chunk, must_wait) {
                spare.give(std::mem::replace(&mut chunk, packed));
            }
        }
        self.flushes += 1;
        chunks.blocking_send(chunk).map_err(|_| self.halt.ended())
    }
}

/// Where threads put chunks of frames, in buffers that come back.
#[derive(Debug, Clone)]
pub struct Outgoing {
    chunks: mpsc::Sender<Vec<u8>>,
    spare: Spare,
}

/// The channels between one end's threads and the pumps of one stream.
#[derive(Debug)]
pub struct Channels {
    /// Threads put chunks of frames here.
    pub outgoing: Outgoing,
    /// Chunks of whole frames that arrived.
    pub incoming: mpsc::Receiver<Bytes>,
    /// What is known of the stream's pace.
    pub pace: Pace,
}

/// The pumps of one stream at one end. Dropped, they stop.
#[derive(Debug)]
pub struct Pumps {
    writer: tokio::task::JoinHandle<bool>,
    reader: tokio::task::JoinHandle<()>,
    halt: Halt,
}

impl Drop for Pumps {
    fn drop(&mut self) {
        self.writer.abort();
        self.reader.abort();
    }
}

impl Pumps {
    /// Starts the pumps of `stream`.
    pub fn start<S>(
        stream: S,
        limits: &Limits,
        halt: &Halt,
        counters: &Counters,
    ) -> (Self, Channels)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (read, write) = tokio::io::split(stream);
        let (chunks, out) = mpsc::channel(QUEUE);
        let (arrived, incoming) = mpsc::channel(QUEUE);
        let outgoing = Outgoing { chunks, spare: Spare::default() };
        let (limits, pace) = (limits.clone(), Pace::default());
        let writer = Writing {
            out,
            spare: outgoing.spare.clone(),
            halt: halt.clone(),
            counters: counters.clone(),
            limits,
            pace: pace.clone(),
            waiting: Waiting::new(),
        };
        let reader = Reading { arrived, halt: halt.clone(), counters: counters.clone() };
        let pumps = Self {
            writer: tokio::spawn(writer.run(write)),
            reader: tokio::spawn(reader.run(read)),
            halt: halt.clone(),
        };
        (pumps, Channels { outgoing, incoming, pace })
    }

    /// Waits until all was written and the peer has closed its side, or for a moment only if the
    /// pass was stopped. All outboxes must be dropped before.
    pub async fn finish(mut self) {
        let limit = if self.halt.is_stopped() { FAREWELL } else { SILENCE };
        // Whether the farewell arrives cannot be known, but a peer that got it closes its side.
        let written = timeout(limit, &mut self.writer).await;
        if matches!(written, Ok(Ok(true))) {
            let _ = timeout(FAREWELL, &mut self.reader).await;
        }
    }
}

struct Writing {
    out: mpsc::Receiver<Vec<u8>>,
    spare: Spare,
    halt: Halt,
    counters: Counters,
    limits: Limits,
    pace: Pace,
    waiting: Waiting,
}

impl Writing {
    /// Answers whether all, the farewell included, was written.
    async fn run(mut self, mut stream: impl AsyncWrite + Unpin) -> bool {
        let outcome = self.pump(&mut stream).await;
        // Threads that wait for room in the queue must not wait for the farewell.
        self.out.close();
        if let Err(error) = outcome {
            // A peer that closed may have said why, which says more than a broken pipe.
            let _ = timeout(LAST_WORDS, self.halt.stopped()).await;
            self.halt.stop(lost(&error));
            return false;
        }
        if let Some(Why::Ours(fault)) = self.halt.why() {
            let mut frame = Vec::new();
            Frame::Fault(&to_json(&fault)).encode(&mut frame);
            let said = timeout(FAREWELL, stream.write_all(&frame)).await;
            if !matches!(said, Ok(Ok(()))) {
                return false;
            }
        }
        matches!(timeout(FAREWELL, stream.shutdown()).await, Ok(Ok(())))
    }

    /// Writes until the threads are done or stopped; never ends inside a frame.
    async fn pump(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        let halt = self.halt.clone();
        loop {
            let next = tokio::select! {
                biased;
                () = halt.stopped() => return Ok(()),
                next = timeout(KEEP_ALIVE_EVERY, self.next(stream)) => next,
            };
            let chunk = match next {
                Err(_silent) => {
                    let mut frame = Vec::new();
                    Frame::KeepAlive.encode(&mut frame);
                    frame
                }
                Ok(Some(chunk)) => chunk?,
                Ok(None) => return stream.flush().await,
            };
            self.counters.wire(chunk.len());
            let (written, waited) = with_waiting(self.write(stream, &chunk)).await;
            let limited = written?;
            self.spare.give(chunk);
            self.tell_pace(waited);
            let waited = waited.saturating_sub(limited);
            self.counters.waited_to_send(waited, self.pace.does_receiver_wait());
        }
    }

    fn tell_pace(&mut self, waited: Duration) {
        if let Some(mostly) = self.waiting.add(waited) {
            self.pace.waits_to_write(mostly);
        }
    }

    /// The next chunk; flushes before it waits for one.
    async fn next(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> Option<std::io::Result<Vec<u8>>> {
        if let Ok(chunk) = self.out.try_recv() {
            return Some(Ok(chunk));
        }
        if let Err(error) = stream.flush().await {
            return Some(Err(error));
        }
        self.out.recv().await.map(Ok)
    }

    /// A chunk is written whole, so that a fault can follow it; once stopped it gets a moment. Answers how long
    /// it waited for the limit.
    async fn write(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        chunk: &[u8],
    ) -> std::io::Result<Duration> {
        let writing = async {
            let (mut rest, mut limited) = (chunk, Duration::ZERO);
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(self.limits.piece().min(rest.len()));
                limited += self.pause(piece.len()).await;
                stream.write_all(piece).await?;
                rest = later;
            }
            Ok(limited)
        };
        let given_up = async {
            self.halt.stopped().await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            done = writing => done,
            () = given_up => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// Waits until so many bytes may be sent, or all is stopped. Answers how long.
    async fn pause(&self, bytes: usize) -> Duration {
        let since = Instant::now();
        tokio::select! {
            biased;
            () = self.halt.stopped() => {}
            () = self.limits.send(bytes) => {}
        }
        let limited = since.elapsed();
        self.counters.limited(limited);
        limited
    }
}

/// What a future gives, and how long it was not ready: what it waited for others, not what it took itself.
async fn with_waiting<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let mut future = std::pin::pin!(future);
    let (mut since, mut waited) = (None::<Instant>, Duration::ZERO);
    let done = std::future::poll_fn(|context| {
        waited += since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let polled = future.as_mut().poll(context);
        since = polled.is_pending().then(Instant::now);
        polled
    });
    let done = done.await;
    (done, waited)
}

struct Reading {
    arrived: mpsc::Sender<Bytes>,
    halt: Halt,
    counters: Counters,
}

impl Reading {
    async fn run(self, mut stream: impl AsyncRead + Unpin) {
        tokio::select! {
            ended = self.pump(&mut stream) => if let Err(fault) = ended {
                self.halt.stop(fault);
            },
            () = self.halt.stopped() => {}
        }
        // Whoever waits for frames must not wait for the farewell.
        drop(self.arrived);
        // The peer may still be writing: what is not read could cost it our last words.
        let mut rest = vec![0; 64 * 1024];
        let drain = async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} };
        let _ = timeout(FAREWELL, drain).await;
    }

    async fn pump(&self, stream: &mut (impl AsyncRead + Unpin)) -> Result<(), Fault> {
        let spare = Spare::default();
        let (mut buffer, mut failed) = (spare.take(), None);
        loop {
            if let Some(error) = failed {
                return Err(lost(&error));
            }
            let read = timeout(SILENCE, read_more(stream, &mut buffer)).await;
            let length;
            (length, failed) = read.map_err(|_| silent())?;
            if length == 0 && failed.is_none() {
                // What ends in the middle of a frame or of the pass is judged by whoever waits.
                return Ok(());
            }
            self.counters.wire(length);
            let (whole, says_something) = match whole_frames(&buffer) {
                Ok(frames) => frames,
                Err(Ended::Ours(fault)) => return Err(fault),
                Err(Ended::Theirs(fault)) => {
                    self.halt.stop_for_peer(fault);
                    return Ok(());
                }
            };
            if whole == 0 {
                continue;
            }
            let mut next = spare.take();
            next.extend_from_slice(&buffer[whole..]);
            buffer.truncate(whole);
            let frames = spare.lend(std::mem::replace(&mut buffer, next));
            if says_something && self.arrived.send(frames).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Waits until something comes, and reads what there is of it, as far as [`wanted`]. Answers how much, and what
/// failed then: that is told once.
async fn read_more(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
) -> (usize, Option<std::io::Error>) {
    let before = buffer.len();
    std::future::poll_fn(|context| {
        loop {
            let more = wanted(buffer);
            buffer.reserve(more);
            let mut room = (&mut *buffer).limit(more);
            let read = poll_read_buf(Pin::new(&mut *stream), context, &mut room);
            let come = buffer.len() - before;
            match read {
                Poll::Ready(Ok(1..)) if wanted(buffer) > 0 => {}
                Poll::Pending if come == 0 => return Poll::Pending,
                Poll::Pending | Poll::Ready(Ok(_)) => return Poll::Ready((come, None)),
                Poll::Ready(Err(error)) => return Poll::Ready((come, Some(error))),
            }
        }
    })
    .await
}

/// How much more is read before what there is is handed over: a chunk, or one long frame. Nothing only when a whole
/// frame is there.
fn wanted(buffer: &[u8]) -> usize {
    let first = buffer.first_chunk::<4>().map_or(0, |length| u32::from_le_bytes(*length) as usize);
    // A length that cannot be is refused when all that it is told of is looked at.
    let first = first.min(MAX_FRAME) + HEADER - 1;
    if first < LONG {
        return CHUNK.saturating_sub(buffer.len());
    }
    // A little at a time: a peer may say that much comes, and send nothing.
    first.saturating_sub(buffer.len()).min(CHUNK)
}

/// How many bytes of whole frames stand at the front, and whether they are more than signs of life. A fault
/// among them is the peer's.
pub fn whole_frames(buffer: &[u8]) -> Result<(usize, bool), Ended> {
    let (mut whole, mut says_something) = (0, false);
    while let Some((kind, payload, length)) = split(&buffer[whole..]).map_err(Ended::Ours)? {
        if kind == FAULT {
            return Err(Ended::Theirs(from_peer(payload)));
        }
        says_something |= kind != KEEP_ALIVE;
        whole += length;
    }
    Ok((whole, says_something))
}

/// Why nothing more is read.
#[derive(Debug)]
pub enum Ended {
    /// What the peer says makes no sense.
    Ours(Fault),
    /// The peer has stopped.
    Theirs(Fault),
}

/// The kind, the payload and the length with its header of one frame.
pub type Whole<'a> = (u8, &'a [u8], usize);

/// The frame at the front, if all of it is there.
pub fn split(bytes: &[u8]) -> Result<Option<Whole<'_>>, Fault> {
    let Some((header, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*header) as usize;
    if length == 0 || length > MAX_FRAME {
        return Err(protocol_fault(&Malformed("a frame of an impossible length")));
    }
    match rest.get(..length).and_then(<[u8]>::split_first) {
        Some((&kind, payload)) => Ok(Some((kind, payload, length + HEADER - 1))),
        None => Ok(None),
    }
}

/// Calls `each` with the kinds and payloads of a chunk's frames.
pub fn for_each_payload(
    mut chunk: Bytes,
    mut each: impl FnMut(u8, &[u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    while let Some((kind, payload, length)) = split(&chunk)? {
        if kind != KEEP_ALIVE {
            each(kind, payload)?;
        }
        chunk.advance(length);
    }
    Ok(())
}

/// Calls `each` with the frames of a chunk.
pub fn for_each_frame(
    chunk: Bytes,
    mut each: impl FnMut(Frame<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    for_each_payload(chunk, |kind, payload| each(decode(kind, payload)?))
}

/// A frame of the peer's.
pub fn decode(kind: u8, payload: &[u8]) -> Result<Frame<'_>, Fault> {
    Frame::decode(kind, payload).map_err(|what| protocol_fault(&what))
}

/// A value as JSON for a frame.
pub fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    // Reports and faults are plain structs with string keys: they always serialise.
    serde_json::to_vec(value).unwrap_or_default()
}

/// A value from a frame's JSON.
pub fn from_json<T: FromPeer>(json: &[u8]) -> Result<T, Fault> {
    let mut value: T = serde_json::from_slice(json).map_err(|error| {
        protocol_fault(&Malformed("a report that cannot be read")).caused_by(&error)
    })?;
    value.clean();
    Ok(value)
}

fn from_peer(json: &[u8]) -> Fault {
    match from_json::<Fault>(json) {
        Ok(fault) => fault.context("the other end stopped the copying of files"),
        Err(fault) => fault,
    }
}

fn lost(error: &std::io::Error) -> Fault {
    Fault::transient("the connection to the other end was lost while files were copied")
        .caused_by(error)
        .remedy("run the pass again; it goes on where it was")
}

fn silent() -> Fault {
    Fault::transient(format!("the other end was silent for {} s", SILENCE.as_secs()))
        .remedy("check the network between the two servers, then run the pass again")
}

/// The fault for a stream that ended before the pass did.
pub fn cut_short() -> Fault {
    Fault::transient("the other end closed the connection before the pass was over")
        .remedy("run the pass again; it goes on where it was")
}

#[cfg(test)]
mod tests;
