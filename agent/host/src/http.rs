//! Asks this host's web server one question: enough of HTTP to read a status and the beginning of
//! the answer. Knows no sites.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, socket, sockopt,
};

/// The longest that one read or write may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of an answer is read.
const CAP: u64 = 16 * 1024;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The beginning of head and body.
    pub(crate) text: String,
}

/// The mark of our connections: the redirector may stand in front of the web server, and what we ask
/// is the web server itself. The firewall lets connections with this mark of root's pass.
pub const PROBE_MARK: u32 = 0x000f_e77d;

/// `GET path` for `host` over TCP.
pub(crate) fn get(address: SocketAddr, host: &str, path: &str) -> io::Result<Answer> {
    let stream = connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    ask(stream, host, path)
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Who may not set it (a test) has no firewall of ours either.
    let _ = setsockopt(&socket, sockopt::Mark, &PROBE_MARK);
    let stream = TcpStream::from(socket);
    // It limits connecting as well.
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    nix::sys::socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(stream)
}

/// `GET path` for `host` over a Unix socket.
pub(crate) fn get_unix(socket: &Path, host: &str, path: &str) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    ask(stream, host, path)
}

fn ask(mut stream: impl Read + Write, host: &str, path: &str) -> io::Result<Answer> {
    // Nothing in `host` and `path` comes from outside the checked types and this crate.
    let question = format!(
        "GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: ferry\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(question.as_bytes())?;
    let mut bytes = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // What has arrived is enough if it has the status.
            Err(_) if !bytes.is_empty() => break,
            Err(e) => return Err(e),
        }
        if bytes.len() as u64 >= CAP || Instant::now() >= deadline {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split_whitespace().nth(1).and_then(|s| s.parse().ok());
    match status {
        Some(status) if text.starts_with("HTTP/") => Ok(Answer { status, text }),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP")),
    }
}
