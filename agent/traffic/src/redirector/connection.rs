//! One connection from its first byte to its last: read what it is for, ask the gate, let it
//! wait, find the next server, pass bytes. It owns that order and the answers in between.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::body::BodyEnd;
use super::dial::{Arrival, Dialed, Dialer, Unreached, has_left};
use super::gate::{Admission, Ask, Gate, Goal, Refusal};
use super::http::{self, BadRequest};
use super::ingress::{self, Kind, Passage};
use super::pass::{Pass, Turn, Waited};
use super::relay::{Ends, Finish, Shape, linger, relay};
use super::tls::{self, Hello};
use crate::config::Config;

/// How long another server may take for its header.
const HEADER_WITHIN: Duration = Duration::from_secs(5);

/// How long sending a refusal may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long the own web server of an account is looked for: a restart of it takes less.
const LOOK_LOCAL: Duration = Duration::from_secs(5);

/// How long a request that was held keeps its turn if no answer comes.
const TURN: Duration = Duration::from_secs(2);

/// The same for TLS, whose first answer is only the handshake's: always so long.
const TURN_OF_TLS: Duration = Duration::from_millis(500);

/// How often a waiting visitor is looked after.
const LOOK_AFTER: Duration = Duration::from_millis(500);

/// What a refused visitor is told to wait, in seconds.
const RETRY_AFTER: u32 = 5;

/// What every connection needs.
pub struct Context {
    /// Says where to go.
    pub gate: Arc<Gate>,
    /// The limits.
    pub config: Config,
    /// Opens the next connection.
    pub dialer: Dialer,
    /// Cancelled when the process is to end: waiting requests are refused, running ones ended.
    pub ending: CancellationToken,
}

/// The beginning of a connection, understood.
struct Opening {
    host: Option<String>,
    first: Vec<u8>,
    shape: Shape,
    is_head: bool,
}

/// What a request goes on with.
struct Found {
    pass: Pass,
    dialed: Dialed,
    /// The turn of one that was held. All that were held are released at once: without turns they
    /// would overrun a web server that would have served them one after the other.
    turn: Option<Turn>,
}

/// How a connection ends that is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Nobody is there to be told.
    Gone,
    /// With this status; TLS is closed.
    Status(BadRequest),
}

const fn status(status: u16, why: &'static str) -> Answer {
    Answer::Status(BadRequest { status, why })
}

/// Serves a connection that another server's redirector opened.
pub async fn serve_peer(context: &Context, mut stream: TcpStream) -> io::Result<()> {
    let peer = stream.peer_addr()?;
    let listener = stream.local_addr()?;
    match timeout(HEADER_WITHIN, read_passage(&mut stream)).await {
        Ok(Ok(passage)) => {
            let arrival = Arrival {
                visitor: passage.visitor,
                asked: Some(passage.asked),
                listener,
                kind: passage.kind,
                passage: Some(passage),
            };
            serve(context, stream, arrival).await;
        }
        Ok(Err(error)) => tracing::warn!(%peer, %error, "a peer's connection is refused"),
        Err(_) => tracing::warn!(%peer, "a peer's connection is refused: its header is late"),
    }
    Ok(())
}

async fn read_passage(stream: &mut TcpStream) -> io::Result<Passage> {
    let bad = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut header = vec![0; ingress::FIXED];
    stream.read_exact(&mut header).await?;
    let mut fixed = [0; ingress::FIXED];
    fixed.copy_from_slice(&header);
    header.resize(ingress::header_length(&fixed).map_err(bad)?, 0);
    stream.read_exact(&mut header[ingress::FIXED..]).await?;
    Passage::decode(&header).map_err(bad)
}

/// Serves a connection.
pub async fn serve(context: &Context, mut stream: TcpStream, arrival: Arrival) {
    let config = &context.config;
    let mut bytes = Vec::with_capacity(2 * 1024);
    let reading = async {
        match arrival.kind {
            Kind::Http => read_request(&mut stream, &mut bytes, config.max_head as usize).await,
            Kind::Https => read_hello(&mut stream, &mut bytes).await,
        }
    };
    let opening = match timeout(config.head_timeout(), reading).await {
        Ok(Ok(opening)) => opening,
        Ok(Err(answer)) => return refuse(stream, &arrival, answer, false).await,
        // One that sent nothing at all was opened in advance, as browsers do.
        Err(_) if bytes.is_empty() => return,
        Err(_) => {
            let late = status(408, "the request took too long");
            return refuse(stream, &arrival, late, false).await;
        }
    };
    drop(bytes);
    let is_head = opening.is_head;
    match find_server(context, &stream, &arrival, &opening).await {
        Ok(found) => match pass_on(context, &mut stream, found, opening).await {
            End::Linger => linger(stream).await,
            End::Unanswered => {
                let answer = status(502, "the web server of this site gave no answer");
                refuse(stream, &arrival, answer, is_head).await;
            }
            End::Close => {}
        },
        Err(answer) => {
            tracing::debug!(visitor = %arrival.visitor, host = ?opening.host, ?answer, "refused");
            refuse(stream, &arrival, answer, is_head).await;
        }
    }
}

async fn read_request(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
    max: usize,
) -> Result<Opening, Answer> {
    let end = loop {
        let scanned = bytes.len();
        if scanned >= max {
            return Err(status(431, "the request's head is too large"));
        }
        bytes.reserve(1024);
        match (&mut *stream).take((max - scanned) as u64).read_buf(bytes).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err(Answer::Gone),
        }
        if let Some(end) = http::head_end(bytes, scanned) {
            break end;
        }
    };
    let head = http::parse(bytes, end).map_err(Answer::Status)?;
    let rest = &bytes[head.length..];
    let mut first = head.rendered;
    let shape = if head.upgrade {
        Shape::Upgrade(rest.to_vec())
    } else {
        let mut body = BodyEnd::of(head.body);
        let belongs =
            body.advance(rest).map_err(|_| status(400, "the body's chunks are malformed"))?;
        first.extend_from_slice(&rest[..belongs]);
        Shape::Request(body)
    };
    Ok(Opening { host: head.host, first, shape, is_head: head.is_head })
}

async fn read_hello(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<Opening, Answer> {
    let host = loop {
        bytes.reserve(1024);
        match stream.read_buf(bytes).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err(Answer::Gone),
        }
        match tls::read_hello(bytes) {
            Hello::Incomplete if bytes.len() < tls::MAX_HELLO => {}
            Hello::Incomplete => return Err(Answer::Gone),
            Hello::Name(name) => break name,
            // Not ours to judge: the web server has an answer to what is not TLS.
            Hello::NotTls => break None,
        }
    };
    Ok(Opening { host, first: std::mem::take(bytes), shape: Shape::Tunnel, is_head: false })
}

/// Asks the gate until the request has a server, or an answer.
async fn find_server(
    context: &Context,
    stream: &TcpStream,
    arrival: &Arrival,
    opening: &Opening,
) -> Result<Found, Answer> {
    let arrived = Instant::now();
    let mut waited_before = false;
    loop {
        let ask = Ask {
            host: opening.host.as_deref(),
            passage: arrival.passage.as_ref().map(|p| (&p.account, p.epoch)),
            bytes: opening.first.len() as u64,
            again: waited_before,
        };
        match context.gate.admit(ask) {
            Admission::Refused(Refusal::NotHere) => {
                return Err(status(421, "this server does not serve this site"));
            }
            Admission::Refused(Refusal::Behind) => {
                return Err(status(503, "this server does not serve this site yet"));
            }
            Admission::Refused(Refusal::Held) => {
                return Err(status(503, "this site is moving; too many wait for it"));
            }
            Admission::Wait(mut waiting) => {
                waited_before = true;
                let deadline = arrived + waiting.wait;
                let waited = tokio::select! {
                    waited = waiting.until(deadline) => waited,
                    () = leaving(stream) => return Err(Answer::Gone),
                    () = context.ending.cancelled() => Waited::TimedOut,
                };
                match waited {
                    // What a visitor has given up must not be done later.
                    Waited::Released if has_left(stream) => return Err(Answer::Gone),
                    Waited::Released => {}
                    Waited::Removed | Waited::TimedOut => {
                        return Err(status(503, "this site is moving; try again soon"));
                    }
                }
            }
            Admission::Pass(pass) => {
                let since = waited_before.then_some(arrived);
                if let Some((dialed, turn)) = look(context, stream, arrival, &pass, since).await? {
                    let limit = if arrival.kind == Kind::Http { TURN } else { TURN_OF_TLS };
                    let turn = turn.map(|turn| Turn::keep(turn, limit));
                    return Ok(Found { pass, dialed, turn });
                }
            }
        }
    }
}

/// Returns when the visitor has left.
async fn leaving(stream: &TcpStream) {
    while !has_left(stream) {
        tokio::time::sleep(LOOK_AFTER).await;
    }
}

/// Looks for the server of a request that was let through; None if the route changes meanwhile. Those
/// who waited, and came at `held`, go in turn.
async fn look(
    context: &Context,
    stream: &TcpStream,
    arrival: &Arrival,
    pass: &Pass,
    held: Option<Instant>,
) -> Result<Option<(Dialed, Option<OwnedSemaphorePermit>)>, Answer> {
    let now = Instant::now();
    let deadline = match pass.goal {
        Goal::Remote { .. } => held.unwrap_or(now) + pass.look,
        _ => now + pass.look.min(LOOK_LOCAL),
    };
    let mut pause = Duration::from_millis(100);
    let search = async {
        loop {
            let turn = match held {
                // Late is better than never: then it goes without a turn.
                Some(_) => timeout(pass.look, pass.turn()).await.ok().flatten(),
                None => None,
            };
            // What a visitor has given up must not be done later.
            if held.is_some() && has_left(stream) {
                return Err(Answer::Gone);
            }
            match context.dialer.dial(&pass.goal, arrival).await {
                Ok(dialed) => return Ok((dialed, turn)),
                Err(Unreached::Loop) => return Err(status(508, "servers send this in a circle")),
                Err(Unreached::Nowhere(why)) => return Err(status(421, why)),
                Err(Unreached::Failed(error)) => {
                    tracing::debug!(goal = ?pass.goal, %error, "not reached");
                    if Instant::now() + pause >= deadline {
                        return Err(status(502, "the web server of this site cannot be reached"));
                    }
                }
            }
            drop(turn);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    };
    tokio::select! {
        biased;
        () = pass.replaced().cancelled() => Ok(None),
        found = search => found.map(Some).inspect_err(|answer| match answer {
            Answer::Status(_) => pass.refused(),
            Answer::Gone => {}
        }),
        () = leaving(stream), if held.is_some() => Err(Answer::Gone),
    }
}

/// What is left to do with a visitor.
enum End {
    /// Close after it has received everything.
    Linger,
    /// Tell it that there is no answer.
    Unanswered,
    /// Close.
    Close,
}

/// Passes bytes to the end.
async fn pass_on(
    context: &Context,
    stream: &mut TcpStream,
    Found { pass, mut dialed, turn }: Found,
    opening: Opening,
) -> End {
    pass.passed();
    // The first answer within TLS says nothing of the request's.
    let (turn, turn_of_tls) = match opening.shape {
        Shape::Tunnel => (None, turn),
        _ => (turn, None),
    };
    let mut first = std::mem::take(&mut dialed.preface);
    first.extend_from_slice(&opening.first);
    let answered = || {
        drop(turn);
        pass.answered();
    };
    let ends = Ends { idle: context.config.idle_timeout(), winding: pass.winding() };
    let relaying = relay(stream, &mut dialed.stream, &first, opening.shape, ends, answered);
    let finish = tokio::select! {
        finish = relaying => Some(finish),
        () = pass.cut().cancelled() => None,
        () = context.ending.cancelled() => None,
    };
    // The server's side goes first: who waits for the end of this request counts on it.
    drop((dialed, turn_of_tls));
    match finish {
        Some(Finish::Done | Finish::Idle) => End::Linger,
        Some(Finish::Unanswered) => {
            pass.refused();
            End::Unanswered
        }
        Some(Finish::Silent) => {
            tracing::debug!(host = ?opening.host, "silent for too long");
            End::Close
        }
        Some(Finish::Broken(error)) => {
            tracing::debug!(host = ?opening.host, %error, "broken off");
            End::Close
        }
        None => {
            pass.ended();
            tracing::debug!(host = ?opening.host, "ended for a hold");
            End::Close
        }
    }
}

async fn refuse(mut stream: TcpStream, arrival: &Arrival, answer: Answer, is_head: bool) {
    if let Answer::Status(bad) = answer
        && arrival.kind == Kind::Http
    {
        let text = refusal(bad, is_head);
        if let Ok(Ok(())) = timeout(ANSWER_WITHIN, stream.write_all(&text)).await {
            linger(stream).await;
        }
    }
}

fn refusal(bad: BadRequest, is_head: bool) -> Vec<u8> {
    let reason = match bad.status {
        400 => "Bad Request",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "Service Unavailable",
    };
    let retry = match bad.status {
        503 => format!("Retry-After: {RETRY_AFTER}\r\n"),
        405 => "Allow: GET, HEAD, POST\r\n".to_owned(),
        _ => String::new(),
    };
    let mut text = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\n{retry}Connection: close\r\n\r\n",
        bad.status,
        bad.why.len() + 1
    );
    if !is_head {
        text.push_str(bad.why);
        text.push('\n');
    }
    text.into_bytes()
}
