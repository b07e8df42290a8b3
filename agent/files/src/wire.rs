//! The stream's two pumps and what threads hand to them: whole frames in chunks, through bounded
//! channels. It keeps the connection alive, notices when the peer is not, limits the rate, and passes
//! faults across. It must not know what the frames mean.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use ferry_proto::Fault;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::codec::Malformed;
use crate::halt::{Halt, Why, protocol_fault};
use crate::progress::Counters;
use crate::protocol::{FAULT, Frame, HEADER, KEEP_ALIVE, MAX_FRAME};
use crate::report::FromPeer;

/// A chunk is handed over when it is at least so long.
const CHUNK: usize = 128 * 1024;
/// How many chunks wait in each direction.
const QUEUE: usize = 8;
/// A silent end says that it is alive so often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// A peer that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// How long an ending connection may take to say why, and to be closed.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long the peer's own account of its end is waited for once writing to it failed.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What is written at once when the rate is limited.
const LIMITED_PIECE: usize = 16 * 1024;

/// Frames of one thread on their way out.
#[derive(Debug)]
pub struct Outbox {
    sender: mpsc::Sender<Vec<u8>>,
    buffer: Vec<u8>,
    flushes: u64,
    halt: Halt,
}

impl Outbox {
    /// An outbox that feeds the pump behind `sender`.
    pub fn new(sender: mpsc::Sender<Vec<u8>>, halt: Halt) -> Self {
        Self { sender, buffer: Vec::new(), flushes: 0, halt }
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
        let next = Vec::with_capacity(CHUNK + CHUNK / 4);
        let chunk = std::mem::replace(&mut self.buffer, next);
        self.flushes += 1;
        self.sender.blocking_send(chunk).map_err(|_| self.halt.ended())
    }
}

/// The channels between one end's threads and its pumps.
#[derive(Debug)]
pub struct Channels {
    /// Threads put chunks of frames here.
    pub outgoing: mpsc::Sender<Vec<u8>>,
    /// Chunks of whole frames that arrived.
    pub incoming: mpsc::Receiver<Bytes>,
}

/// The pumps of one end. Dropped, they stop.
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
        bandwidth: Option<u64>,
        halt: &Halt,
        counters: &Counters,
    ) -> (Self, Channels)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (read, write) = tokio::io::split(stream);
        let (outgoing, out) = mpsc::channel(QUEUE);
        let (arrived, incoming) = mpsc::channel(QUEUE);
        let writer = Writing { out, halt: halt.clone(), counters: counters.clone(), bandwidth };
        let reader = Reading { arrived, halt: halt.clone(), counters: counters.clone() };
        let pumps = Self {
            writer: tokio::spawn(writer.run(write)),
            reader: tokio::spawn(reader.run(read)),
            halt: halt.clone(),
        };
        (pumps, Channels { outgoing, incoming })
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
    halt: Halt,
    counters: Counters,
    bandwidth: Option<u64>,
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
        let mut limit = Limit::new(self.bandwidth);
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
            self.write(stream, &chunk, &mut limit).await?;
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

    /// A chunk is written whole, so that a fault can follow it; once stopped it gets a moment.
    async fn write(
        &self,
        stream: &mut (impl AsyncWrite + Unpin),
        chunk: &[u8],
        limit: &mut Limit,
    ) -> std::io::Result<()> {
        let writing = async {
            let piece = if limit.rate.is_some() { LIMITED_PIECE } else { chunk.len().max(1) };
            for piece in chunk.chunks(piece) {
                tokio::select! {
                    biased;
                    () = self.halt.stopped() => {}
                    () = limit.pause(piece.len()) => {}
                }
                stream.write_all(piece).await?;
            }
            Ok(())
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
}

/// A rate limit without bursts longer than a second.
struct Limit {
    rate: Option<u64>,
    free_at: Instant,
}

impl Limit {
    fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.map(|r| r.max(1)), free_at: Instant::now() }
    }

    async fn pause(&mut self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        tokio::time::sleep_until(self.free_at).await;
        let earliest = Instant::now().checked_sub(Duration::from_secs(1));
        let start = earliest.map_or(self.free_at, |earliest| self.free_at.max(earliest));
        self.free_at = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
    }
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
        let mut buffer = BytesMut::with_capacity(2 * CHUNK);
        loop {
            if buffer.capacity() - buffer.len() < CHUNK {
                buffer.reserve(CHUNK);
            }
            let read = timeout(SILENCE, stream.read_buf(&mut buffer)).await;
            let length = read.map_err(|_| silent())?.map_err(|error| lost(&error))?;
            if length == 0 {
                // What ends in the middle of a frame or of the pass is judged by whoever waits.
                return Ok(());
            }
            self.counters.wire(length);
            let whole = self.whole_frames(&buffer)?;
            if whole > 0 && self.arrived.send(buffer.split_to(whole).freeze()).await.is_err() {
                return Ok(());
            }
        }
    }

    /// How many bytes of whole frames stand at the front.
    fn whole_frames(&self, buffer: &[u8]) -> Result<usize, Fault> {
        let mut whole = 0;
        while let Some((kind, payload, length)) = split(&buffer[whole..])? {
            if kind == FAULT {
                self.halt.stop_for_peer(from_peer(payload));
                return Err(self.halt.ended());
            }
            whole += length;
        }
        Ok(whole)
    }
}

/// The kind, the payload and the length with its header of one frame.
type Whole<'a> = (u8, &'a [u8], usize);

/// The frame at the front, if all of it is there.
fn split(bytes: &[u8]) -> Result<Option<Whole<'_>>, Fault> {
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

/// Calls `each` with the frames of a chunk.
pub fn for_each_frame(
    mut chunk: Bytes,
    mut each: impl FnMut(Frame<'_>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    while let Some((kind, payload, length)) = split(&chunk)? {
        if kind != KEEP_ALIVE {
            each(Frame::decode(kind, payload).map_err(|what| protocol_fault(&what))?)?;
        }
        chunk.advance(length);
    }
    Ok(())
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
