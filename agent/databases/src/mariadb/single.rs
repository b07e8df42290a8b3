//! A connection on which the server itself takes one statement at a time.
//!
//! Views, routines, triggers and events name the user whose rights they run with, and creating one
//! for another user needs a right (`SET USER`) that must never meet hostile text that could smuggle
//! in a second statement. The usual clients all ask the server to allow several statements in
//! one; this one speaks just enough of the protocol not to ask.

use std::path::Path;
use std::time::Duration;

use ferry_proto::Fault;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::temporary::Temporary;

// Capabilities: long password, long flag, connect with database, protocol 4.1, transactions,
// secure connection, plugin authentication. Not among them: multi statements, multi results,
// local files.
const CAPABILITIES: u32 = 0x1 | 0x4 | 0x8 | 0x200 | 0x2000 | 0x8000 | 0x8_0000;
/// utf8mb4_general_ci.
const CHARSET: u8 = 45;
/// One packet: longer statements are refused.
const MAX_PACKET: usize = 0xff_ffff - 1;
const COM_QUERY: u8 = 3;
/// Creating a trigger waits for a lock on its table at most this long.
const PATIENCE: Duration = Duration::from_secs(300);
/// In the status of an answer: another answer follows.
const MORE_RESULTS: u16 = 8;

/// Why a statement was not carried out.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The server said no: code and text.
    Server(u16, String),
    /// The connection is of no more use.
    Lost(Fault),
}

/// The connection.
pub(super) struct Single {
    stream: UnixStream,
}

impl Single {
    pub(super) async fn open(
        socket: &Path,
        user: &Temporary,
        database: &str,
    ) -> Result<Self, Fault> {
        let opening = Self::handshake(socket, user, database);
        match tokio::time::timeout(Duration::from_secs(20), opening).await {
            Ok(Ok(single)) => Ok(single),
            Ok(Err(Refusal::Lost(fault))) => Err(fault),
            Ok(Err(Refusal::Server(code, said))) => Err(Fault::permanent(format!(
                "the MariaDB server does not let the temporary user {} in: {code} {said}",
                user.name
            ))),
            Err(_) => Err(Fault::transient("the MariaDB server does not answer within 20 s")),
        }
    }

    async fn handshake(socket: &Path, user: &Temporary, database: &str) -> Result<Self, Refusal> {
        let stream = UnixStream::connect(socket).await.map_err(|e| lost(&e))?;
        let mut single = Self { stream };
        let (_, greeting) = single.read_packet().await?;
        if greeting.first() == Some(&0xff) {
            return Err(server_error(&greeting));
        }
        let challenge = challenge(&greeting)
            .ok_or_else(|| Refusal::Lost(Fault::bug("MariaDB's greeting was not understood")))?;
        let mut answer = Vec::new();
        answer.extend_from_slice(&CAPABILITIES.to_le_bytes());
        answer.extend_from_slice(&(MAX_PACKET as u32).to_le_bytes());
        answer.push(CHARSET);
        answer.extend_from_slice(&[0; 23]);
        answer.extend_from_slice(user.name.as_bytes());
        answer.extend_from_slice(&[0, 20]);
        answer.extend_from_slice(&user.answer(&challenge));
        answer.extend_from_slice(database.as_bytes());
        answer.push(0);
        answer.extend_from_slice(b"mysql_native_password\0");
        single.write_packet(1, &answer).await?;
        loop {
            let (sequence, packet) = single.read_packet().await?;
            match packet.first() {
                Some(0) => return Ok(single),
                Some(0xff) => return Err(server_error(&packet)),
                // It asks again, with another challenge.
                Some(0xfe) if sequence < 8 => {
                    let again = packet.strip_prefix(b"\xfemysql_native_password\0").unwrap_or(&[]);
                    let again = again.get(..20).ok_or_else(|| {
                        Refusal::Lost(Fault::bug("MariaDB wants another way to log in"))
                    })?;
                    single.write_packet(sequence + 1, &user.answer(again)).await?;
                }
                _ => return Err(Refusal::Lost(Fault::bug("MariaDB's login was not understood"))),
            }
        }
    }

    /// Carries out one statement that returns no rows.
    pub(super) async fn run(&mut self, statement: &[u8]) -> Result<(), Refusal> {
        if statement.len() >= MAX_PACKET {
            return Err(Refusal::Server(
                1153,
                format!("a statement of {} bytes is too long", statement.len()),
            ));
        }
        let mut packet = vec![COM_QUERY];
        packet.extend_from_slice(statement);
        let running = async {
            self.write_packet(0, &packet).await?;
            let (_, answer) = self.read_packet().await?;
            match answer.first() {
                Some(0) if status_of(&answer) & MORE_RESULTS == 0 => Ok(()),
                Some(0xff) => Err(server_error(&answer)),
                // Rows, a request for a file, a second result: nothing that was asked for.
                _ => Err(Refusal::Lost(Fault::permanent(
                    "MariaDB answered a definition with something else than yes or no",
                ))),
            }
        };
        tokio::time::timeout(PATIENCE, running).await.unwrap_or_else(|_| {
            Err(Refusal::Lost(Fault::transient("MariaDB did not carry out a definition in time")))
        })
    }

    async fn write_packet(&mut self, sequence: u8, body: &[u8]) -> Result<(), Refusal> {
        // Both callers keep the body below MAX_PACKET.
        let mut header = (body.len() as u32).to_le_bytes();
        header[3] = sequence;
        let mut packet = header.to_vec();
        packet.extend_from_slice(body);
        self.stream.write_all(&packet).await.map_err(|e| lost(&e))
    }

    async fn read_packet(&mut self) -> Result<(u8, Vec<u8>), Refusal> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).await.map_err(|e| lost(&e))?;
        let length = u32::from_le_bytes([header[0], header[1], header[2], 0]) as usize;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.map_err(|e| lost(&e))?;
        Ok((header[3], body))
    }
}

/// The 20 bytes of the greeting that the password is to be proved on: after protocol, version and
/// thread stand 8 of them, the rest follow 19 bytes of capabilities and filler.
fn challenge(greeting: &[u8]) -> Option<Vec<u8>> {
    let version = greeting.get(1..)?.iter().position(|b| *b == 0)?;
    let first = version + 2 + 4;
    let second = first + 8 + 1 + 18;
    let mut challenge = greeting.get(first..first + 8)?.to_vec();
    challenge.extend_from_slice(greeting.get(second..second + 12)?);
    Some(challenge)
}

fn lost(error: &std::io::Error) -> Refusal {
    Refusal::Lost(Fault::io("the connection to the MariaDB server was lost", error))
}

fn server_error(packet: &[u8]) -> Refusal {
    let code = match packet {
        [_, low, high, ..] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    };
    let said = packet.get(3..).unwrap_or_default();
    // A marker and five characters of SQL state stand before the text.
    let said = if said.first() == Some(&b'#') { said.get(6..).unwrap_or_default() } else { said };
    Refusal::Server(code, String::from_utf8_lossy(said).chars().take(400).collect())
}

/// The status flags of an OK packet: after two length-encoded numbers.
fn status_of(packet: &[u8]) -> u16 {
    let mut at = 1;
    for _ in 0..2 {
        at += match packet.get(at) {
            Some(0xfc) => 3,
            Some(0xfd) => 4,
            Some(0xfe) => 9,
            _ => 1,
        };
    }
    match packet.get(at..at + 2) {
        Some([low, high]) => u16::from_le_bytes([*low, *high]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood() {
        assert_eq!(status_of(&[0, 0, 0, 2, 0, 0, 0]), 2);
        assert_eq!(status_of(&[0, 0xfc, 1, 1, 0, 10, 0, 0, 0]), 10);
        let Refusal::Server(code, said) = server_error(b"\xff\x15\x04#28000Access denied") else {
            panic!("not the server's");
        };
        assert_eq!((code, said.as_str()), (1045, "Access denied"));
    }
}
