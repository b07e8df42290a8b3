//! Senders of mail, as another mail server would.

use std::net::Ipv4Addr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::log::Outcome;

/// Sends one message, with the id as its Message-ID's left part. A temporary refusal is a failure:
/// a real server would come again, with the same right.
pub async fn send(address: Ipv4Addr, domain: &str, id: String) -> Result<Outcome, String> {
    let stream = TcpStream::connect((address, 25))
        .await
        .map_err(|e| format!("smtp connect: {}", e.kind()))?;
    let mut stream = BufReader::new(stream);
    expect(&mut stream, "greeting", '2').await?;
    let recipient = if id.len().is_multiple_of(2) { "info" } else { "sales" };
    let message = format!(
        "From: customer@outside.example\r\nTo: {recipient}@{domain}\r\nSubject: Visit {id}\r\n\
         Message-ID: <{id}@outside.example>\r\n\r\nThis is visit {id}.\r\n."
    );
    let dialogue = [
        ("EHLO lab.test".to_owned(), "EHLO", '2'),
        ("MAIL FROM:<customer@outside.example>".to_owned(), "MAIL", '2'),
        (format!("RCPT TO:<{recipient}@{domain}>"), "RCPT", '2'),
        ("DATA".to_owned(), "DATA", '3'),
        (message, "message", '2'),
    ];
    for (line, what, good) in dialogue {
        let write = stream.write_all(format!("{line}\r\n").as_bytes()).await;
        write.map_err(|e| format!("smtp {what}: {}", e.kind()))?;
        expect(&mut stream, what, good).await?;
    }
    let _ = stream.write_all(b"QUIT\r\n").await;
    Ok(Outcome::Acknowledged { server: String::new(), kept_at_us: 0 })
}

async fn expect(stream: &mut BufReader<TcpStream>, what: &str, good: char) -> Result<(), String> {
    loop {
        let mut line = String::new();
        let read =
            stream.read_line(&mut line).await.map_err(|e| format!("smtp {what}: {}", e.kind()))?;
        if read == 0 {
            return Err(format!("smtp {what}: closed"));
        }
        if line.as_bytes().get(3) == Some(&b'-') {
            continue;
        }
        if line.starts_with(good) {
            return Ok(());
        }
        return Err(format!("smtp {what}: {}", line.chars().take(3).collect::<String>()));
    }
}
