//! A small web server that tells what reached it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// A web server. What it does depends on the path:
/// `/` answers with its name; `/slow` waits for [`Origin::go_on`] first; `/echo?N` reads N bytes
/// of body as they are and sends them back; `/ws` agrees to an upgrade and echoes; `/no-ws` does
/// not agree; `/keep` keeps the connection open after the answer; `/silent` closes without an
/// answer; `/early` answers without reading the body.
#[derive(Clone)]
pub struct Origin {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    go: Arc<Semaphore>,
}

/// A request that reached it, with what came before and after the head.
#[derive(Debug, Clone)]
pub struct Seen {
    pub head: String,
    /// The visitor's address by the PROXY protocol.
    pub visitor: Option<SocketAddr>,
    /// From where the connection came.
    pub from: SocketAddr,
    /// Bytes that came although they were not asked for.
    pub after: String,
}

impl Origin {
    pub async fn start(name: &'static str) -> Self {
        Self::listen(name, TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), false)
    }

    /// One that expects the PROXY protocol.
    pub async fn start_proxied(name: &'static str) -> Self {
        Self::listen(name, TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(), true)
    }

    pub fn listen(name: &'static str, listener: TcpListener, proxied: bool) -> Self {
        let this = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            go: Arc::new(Semaphore::new(0)),
        };
        let server = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move {
                    // A connection that breaks off is the test's business.
                    let _ = server.serve(name, stream, from, proxied).await;
                });
            }
        });
        this
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Lets so many slow requests be answered.
    pub fn go_on(&self, requests: usize) {
        self.go.add_permits(requests);
    }

    async fn serve(
        &self,
        name: &str,
        mut stream: TcpStream,
        from: SocketAddr,
        proxied: bool,
    ) -> std::io::Result<()> {
        let visitor = if proxied { Some(read_proxy_header(&mut stream).await?) } else { None };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let index = {
            let mut seen = self.seen.lock().unwrap();
            seen.push(Seen { head, visitor, from, after: String::new() });
            seen.len() - 1
        };
        let (path, query) = path.split_once('?').unwrap_or((&path, ""));
        match path {
            "/slow" => {
                self.go.acquire().await.unwrap().forget();
                answer(&mut stream, name.as_bytes()).await?;
            }
            "/echo" => {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                let mut body = vec![0; query.parse().unwrap()];
                stream.read_exact(&mut body).await?;
                answer(&mut stream, &body).await?;
            }
            "/ws" => {
                stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await?;
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await?;
                return Ok(());
            }
            "/silent" => return Ok(()),
            "/keep" | "/no-ws" => {
                answer(&mut stream, name.as_bytes()).await?;
                loop {
                    let mut more = [0; 1024];
                    let read = stream.read(&mut more).await?;
                    if read == 0 {
                        return Ok(());
                    }
                    let text = String::from_utf8_lossy(&more[..read]).into_owned();
                    self.seen.lock().unwrap()[index].after.push_str(&text);
                }
            }
            _ => answer(&mut stream, name.as_bytes()).await?,
        }
        stream.shutdown().await?;
        // What is not asked for is read too, so that it is seen.
        let mut after = String::new();
        let _ = stream.read_to_string(&mut after).await;
        self.seen.lock().unwrap()[index].after = after;
        Ok(())
    }
}

async fn answer(stream: &mut TcpStream, body: &[u8]) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await
}

/// Reads a PROXY protocol header (version 2, IPv4) by hand: the tests do not trust the code that
/// writes it.
async fn read_proxy_header(stream: &mut TcpStream) -> std::io::Result<SocketAddr> {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).await?;
    assert_eq!(&fixed[..12], b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(&fixed[12..14], &[0x21, 0x11], "version 2, PROXY, TCP over IPv4");
    let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
    stream.read_exact(&mut rest).await?;
    let ip = Ipv4Addr::new(rest[0], rest[1], rest[2], rest[3]);
    Ok(SocketAddr::from((ip, u16::from_be_bytes([rest[8], rest[9]]))))
}
