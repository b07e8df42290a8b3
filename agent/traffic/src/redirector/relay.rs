//! Passing bytes between a visitor and a server. It owns when a connection ends by itself: at the
//! server's end, by silence, or because either side broke off. It must not know accounts.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::body::BodyEnd;

const BUFFER: usize = 16 * 1024;

/// How much a visitor may send beyond its request before it is not read any more.
const MAX_EXTRA: usize = 64 * 1024;

/// A visitor that sends another request on a connection whose answer was told to close it waits
/// in vain if the web server keeps it open. After so much silence it is closed, and the visitor
/// asks again on a new one.
const AFTER_EXTRA: Duration = Duration::from_secs(5);

/// A tunnel in which the server spoke last and so long ago, and has said so much, waits for nothing.
const QUIET: Duration = Duration::from_millis(200);
const ANSWER: u64 = 1024;

/// The same if it has said less: that may have been a handshake's end, and the answer is to come.
const QUIET_AFTER_LITTLE: Duration = Duration::from_secs(1);

/// How long, and for how much, a visitor is read after the answer, so that closing does not destroy
/// what it has not yet received.
const LINGER: Duration = Duration::from_secs(1);
const MAX_LINGER: usize = 256 * 1024;

/// What travels after the first bytes.
#[derive(Debug)]
pub enum Shape {
    /// Bytes without a meaning, both ways.
    Tunnel,
    /// The rest of one request's body, and its answer.
    Request(BodyEnd),
    /// One request that asks for another protocol: a tunnel once the server agrees (101), else
    /// nothing more. Bytes that came too early wait for that.
    Upgrade(Vec<u8>),
}

/// What ends passing beside the two sides.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    /// So much silence.
    pub idle: Duration,
    /// Once this is cancelled, a tunnel that waits for nothing ends.
    pub winding: &'a CancellationToken,
}

/// How passing ended.
#[derive(Debug)]
pub enum Finish {
    /// The server has ended its answer.
    Done,
    /// The server ended without having answered anything.
    Unanswered,
    /// Nothing moved for too long.
    Silent,
    /// It was a tunnel that waited for nothing, and a hold has begun.
    Idle,
    /// Either side broke off.
    Broken(io::Error),
}

/// When something last moved.
struct Pulse {
    started: Instant,
    last_ms: AtomicU64,
    limit_ms: AtomicU64,
    /// How many bytes the server has said since the visitor spoke last.
    said: AtomicU64,
    /// How often the visitor has spoken: what comes without a pause for the server is once.
    turns: AtomicU64,
}

/// A handshake's first turn is the ClientHello. A visitor that is far away takes its time to answer
/// what the server says to that, and waits for everything.
const HANDSHAKE_TURNS: u64 = 1;

impl Pulse {
    fn new(limit: Duration) -> Self {
        Self {
            started: Instant::now(),
            last_ms: AtomicU64::new(0),
            limit_ms: AtomicU64::new(milliseconds(limit)),
            said: AtomicU64::new(0),
            turns: AtomicU64::new(0),
        }
    }

    fn beat(&self) {
        self.last_ms.store(milliseconds(self.started.elapsed()), Ordering::Relaxed);
    }

    fn visitor_spoke(&self) {
        let answers = self.said.swap(0, Ordering::Relaxed) > 0;
        if answers || self.turns.load(Ordering::Relaxed) == 0 {
            self.turns.fetch_add(1, Ordering::Relaxed);
        }
        self.beat();
    }

    fn server_spoke(&self, bytes: usize) {
        self.said.fetch_add(bytes as u64, Ordering::Relaxed);
        self.beat();
    }

    /// Returns when the server spoke last, beyond the handshake, and nothing has moved for a while.
    async fn quiet(&self) {
        loop {
            let wanted = match self.said.load(Ordering::Relaxed) {
                ANSWER.. => QUIET,
                _ => QUIET_AFTER_LITTLE,
            };
            let due = self.last_ms.load(Ordering::Relaxed) + milliseconds(wanted);
            let left = due.saturating_sub(milliseconds(self.started.elapsed()));
            let spoke = self.said.load(Ordering::Relaxed) > 0
                && self.turns.load(Ordering::Relaxed) > HANDSHAKE_TURNS;
            if left == 0 && spoke {
                return;
            }
            tokio::time::sleep(Duration::from_millis(left).max(QUIET / 4)).await;
        }
    }

    fn shorten(&self) {
        self.limit_ms.fetch_min(milliseconds(AFTER_EXTRA), Ordering::Relaxed);
    }

    /// Returns when nothing has moved for the limit.
    async fn silence(&self) {
        loop {
            let due = self.last_ms.load(Ordering::Relaxed) + self.limit_ms.load(Ordering::Relaxed);
            let now = milliseconds(self.started.elapsed());
            if now >= due {
                return;
            }
            // Not longer at once than the limit may be shortened to.
            tokio::time::sleep(Duration::from_millis(due - now).min(AFTER_EXTRA)).await;
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Sends `first` to the server, then passes bytes both ways until the server ends. `answered` is
/// called when the server's first bytes come.
pub async fn relay(
    visitor: &mut TcpStream,
    server: &mut TcpStream,
    first: &[u8],
    shape: Shape,
    ends: Ends<'_>,
    answered: impl FnOnce() + Send,
) -> Finish {
    let pulse = Pulse::new(ends.idle);
    let is_tunnel = matches!(shape, Shape::Tunnel);
    let idle = async {
        ends.winding.cancelled().await;
        pulse.quiet().await;
    };
    let (from_visitor, to_visitor) = visitor.split();
    let (from_server, to_server) = server.split();
    let (switch, switched) = oneshot::channel();
    let switch = matches!(shape, Shape::Upgrade(_)).then_some(switch);
    let up = async {
        match up(from_visitor, to_server, first, shape, switched, &pulse).await {
            Err(Side::Visitor(error)) => error,
            // A server that takes no more may still have an answer to give.
            Ok(()) | Err(Side::Server) => std::future::pending().await,
        }
    };
    let down = down(from_server, to_visitor, switch, answered, &pulse);
    tokio::select! {
        finish = down => finish,
        error = up => Finish::Broken(error),
        () = pulse.silence() => Finish::Silent,
        () = idle, if is_tunnel => Finish::Idle,
    }
}

/// Which side broke off.
enum Side {
    Visitor(io::Error),
    Server,
}

async fn up(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    first: &[u8],
    shape: Shape,
    switched: oneshot::Receiver<bool>,
    pulse: &Pulse,
) -> Result<(), Side> {
    send(&mut to, first, pulse).await?;
    let mut end = match shape {
        Shape::Tunnel => None,
        Shape::Request(end) => Some(end),
        Shape::Upgrade(early) => {
            if switched.await == Ok(true) {
                send(&mut to, &early, pulse).await?;
                None
            } else {
                Some(BodyEnd::of(super::body::Body::Length(0)))
            }
        }
    };
    let mut buffer = vec![0; BUFFER];
    let mut extra = 0;
    loop {
        let read = from.read(&mut buffer).await.map_err(Side::Visitor)?;
        if read == 0 {
            // What the visitor says, the server is told: it may stop working, as without us.
            return to.shutdown().await.map_err(|_| Side::Server);
        }
        let bytes = &buffer[..read];
        let wanted = match &mut end {
            None => read,
            Some(end) => {
                end.advance(bytes).map_err(|_| Side::Visitor(io::ErrorKind::InvalidData.into()))?
            }
        };
        send(&mut to, &bytes[..wanted], pulse).await?;
        if wanted < read {
            pulse.shorten();
            extra += read - wanted;
            if extra > MAX_EXTRA {
                return Ok(());
            }
        }
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], pulse: &Pulse) -> Result<(), Side> {
    for piece in bytes.chunks(BUFFER) {
        to.write_all(piece).await.map_err(|_| Side::Server)?;
        pulse.visitor_spoke();
    }
    Ok(())
}

async fn down(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut switch: Option<oneshot::Sender<bool>>,
    answered: impl FnOnce() + Send,
    pulse: &Pulse,
) -> Finish {
    const AGREED: &[u8] = b"HTTP/1.1 101";
    let mut answered = Some(answered);
    let mut status = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) | Err(_) if answered.is_some() => return Finish::Unanswered,
            Ok(0) => return Finish::Done,
            Ok(read) => read,
            Err(error) => return Finish::Broken(error),
        };
        pulse.server_spoke(read);
        if let Some(answered) = answered.take() {
            answered();
        }
        if switch.is_some() {
            let missing = AGREED.len().saturating_sub(status.len()).min(read);
            status.extend_from_slice(&buffer[..missing]);
            if (status.len() == AGREED.len() || !AGREED.starts_with(&status))
                && let Some(switch) = switch.take()
            {
                // The other direction may have ended; then nobody needs to know.
                let _ = switch.send(status == AGREED);
            }
        }
        if let Err(error) = to.write_all(&buffer[..read]).await {
            return Finish::Broken(error);
        }
        pulse.beat();
    }
}

/// Ends a connection so that the visitor receives all that was sent to it.
pub async fn linger(mut visitor: TcpStream) {
    let read = async {
        visitor.shutdown().await?;
        let mut buffer = vec![0; 4 * 1024];
        let mut total = 0;
        while total < MAX_LINGER {
            match visitor.read(&mut buffer).await? {
                0 => break,
                read => total += read,
            }
        }
        io::Result::Ok(())
    };
    // Whether it goes well or not, the connection is closed.
    let _ = tokio::time::timeout(LINGER, read).await;
}
