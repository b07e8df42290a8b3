//! The client's end of a connection to the controller, once the controller has spoken.
//!
//! In TLS 1.3 a client is done with the handshake before the server has looked at its
//! certificate, and whatever comes later is buried in HTTP/2. So the client waits for the
//! server's first bytes, which HTTP/2 lets it send at once (its settings), and hands them on.
//! They come only if the server has admitted us; a refusal comes instead of them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A frame header is 9 bytes; the settings follow in the same record.
const FIRST: usize = 64;

pub(crate) struct Admitted {
    tls: TlsStream<TcpStream>,
    first: [u8; FIRST],
    /// What of `first` has not been handed on.
    rest: std::ops::Range<usize>,
}

impl Admitted {
    /// Waits for the server's first bytes; the caller sets the deadline.
    pub(crate) async fn wait(mut tls: TlsStream<TcpStream>) -> io::Result<Self> {
        let mut first = [0; FIRST];
        match tls.read(&mut first).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            len => Ok(Self { tls, first, rest: 0..len }),
        }
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            return Pin::new(&mut self.tls).poll_read(cx, buf);
        }
        let len = self.rest.len().min(buf.remaining());
        let from = self.rest.start;
        buf.put_slice(&self.first[from..from + len]);
        self.rest.start += len;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
