//! An established connection: bytes, who is at the other end, and the means to cut it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::certificate::{Fingerprint, Leaf, Serial};
use super::connections::Registration;
use super::names::Party;
use crate::Fault;
use crate::ids::ServerName;

/// Who is calling, proved by the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The agent of a server.
    Agent {
        /// The server.
        name: ServerName,
        /// The serial number of the certificate that it showed.
        serial: Serial,
        /// The SHA-256 of that certificate.
        fingerprint: Fingerprint,
    },
    /// Somebody without a certificate: about to enrol, or an operator with a token.
    Anonymous,
}

impl Caller {
    /// The server, if an agent is calling.
    pub fn server(&self) -> Option<&ServerName> {
        match self {
            Self::Agent { name, .. } => Some(name),
            Self::Anonymous => None,
        }
    }

    /// Of a verified certificate. The controller calls nobody.
    pub(crate) fn from_leaf(leaf: Leaf) -> Result<Self, Fault> {
        match leaf.party {
            Party::Agent(name) => {
                Ok(Self::Agent { name, serial: leaf.serial, fingerprint: leaf.fingerprint })
            }
            Party::Controller => {
                Err(Fault::permanent("the controller's certificate is not one to call with"))
            }
        }
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent { name, .. } => write!(f, "the agent of {name}"),
            Self::Anonymous => f.write_str("an anonymous caller"),
        }
    }
}

/// What a service finds in the extensions of each request.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Who is calling.
    pub caller: Caller,
    /// From where. An address proves nothing; it is for logs.
    pub address: SocketAddr,
    /// Cancelled when the connection is cut. Work that outlives its call must watch it.
    pub cut: CancellationToken,
    /// Cancelled when the connection's age is limited no longer.
    pub(crate) kept: CancellationToken,
}

impl Connection {
    /// Lets an anonymous connection last as long as it likes: the caller has proved by other means
    /// than a certificate that it is no stranger.
    pub fn keep(&self) {
        self.kept.cancel();
    }
}

/// The connection that a request came over; none if the server is not a
/// [`Listener`](super::Listener)'s.
pub fn connection<T>(request: &tonic::Request<T>) -> Option<&Connection> {
    request.extensions().get::<Connection>()
}

/// Who sent a request. Unknown is anonymous, which may do least.
pub fn caller<T>(request: &tonic::Request<T>) -> Caller {
    connection(request).map_or(Caller::Anonymous, |connection| connection.caller.clone())
}

/// The server whose agent sent a request.
///
/// # Errors
/// `UNAUTHENTICATED`, if no agent did.
// A status is large, but it is what a service has to return.
#[allow(clippy::result_large_err)]
pub fn require_agent<T>(request: &tonic::Request<T>) -> Result<ServerName, tonic::Status> {
    match caller(request) {
        Caller::Agent { name, .. } => Ok(name),
        Caller::Anonymous => Err(tonic::Status::unauthenticated(
            "this call is for enrolled agents: connect with the agent's certificate",
        )),
    }
}

/// A TLS connection that can be cut: after that every read and write is an error.
pub struct SecureStream {
    tls: TlsStream<TcpStream>,
    connection: Connection,
    // One each: the halves of a stream may wait in two tasks, and a future wakes only one.
    cut_reading: Pin<Box<WaitForCancellationFutureOwned>>,
    cut_writing: Pin<Box<WaitForCancellationFutureOwned>>,
    _registration: Registration,
}

impl SecureStream {
    pub(crate) fn new(
        tls: TlsStream<TcpStream>,
        caller: Caller,
        address: SocketAddr,
        registration: Registration,
    ) -> Self {
        let cut = registration.cut().clone();
        Self {
            tls,
            cut_reading: Box::pin(cut.clone().cancelled_owned()),
            cut_writing: Box::pin(cut.clone().cancelled_owned()),
            connection: Connection { caller, address, cut, kept: registration.kept().clone() },
            _registration: registration,
        }
    }

    /// Who is at the other end.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    fn check_reading(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        check(&self.connection, self.cut_reading.as_mut(), cx)
    }

    fn check_writing(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        check(&self.connection, self.cut_writing.as_mut(), cx)
    }
}

fn check(
    connection: &Connection,
    cut: Pin<&mut WaitForCancellationFutureOwned>,
    cx: &mut Context<'_>,
) -> io::Result<()> {
    if connection.cut.is_cancelled() || cut.poll(cx).is_ready() {
        return Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            format!("the connection of {} was cut", connection.caller),
        ));
    }
    Ok(())
}

impl std::fmt::Debug for SecureStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecureStream").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Connected for SecureStream {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for SecureStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_reading(cx)?;
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_writing(cx)?;
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_writing(cx)?;
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_writing(cx)?;
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_writing(cx)?;
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
