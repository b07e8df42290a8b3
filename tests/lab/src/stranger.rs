//! Somebody who holds an agent's key and speaks to another agent with it, past Ferry: for scenarios that
//! steal one. Knows how peers' messages are framed, as an attacker would.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use ferry_proto::channel::{Connections, Identity, Limits, peer_connect};
use ferry_proto::ids::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// No answer to a request is longer.
const LONGEST: u32 = 1 << 20;

/// Whose key, and to whom.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The directory with the key
    #[arg(long)]
    pub identity: PathBuf,
    /// The server that is called
    #[arg(long)]
    pub server: ServerName,
    /// Its address, with the port
    #[arg(long)]
    pub address: String,
    /// How many answers are read: what is admitted ends with one more, or with a stream
    #[arg(long, default_value_t = 1)]
    pub answers: u32,
}

/// Sends what is on standard input as a request, and prints the last answer, or the refusal. Runs in a
/// process of its own.
pub fn run(options: &Options) -> Result<()> {
    let mut request = Vec::new();
    std::io::stdin().read_to_end(&mut request).context("reading the request")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(ask(options, &request))?;
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}

async fn ask(options: &Options, request: &[u8]) -> Result<Vec<u8>> {
    let identity = Identity::load(&options.identity)?;
    let connections = Connections::new(Limits::default());
    let mut stream =
        peer_connect(&options.address, &identity, &options.server, &connections).await?;
    stream.write_u32(u32::try_from(request.len())?).await?;
    stream.write_all(request).await?;
    // There is no more to come: an operation with a stream gets an empty one.
    stream.shutdown().await?;
    let mut answer = Vec::new();
    for _ in 0..options.answers {
        let length = stream.read_u32().await.context("no answer")?;
        ensure!(length <= LONGEST, "an answer of {length} bytes");
        answer.resize(length as usize, 0);
        stream.read_exact(&mut answer).await.context("half an answer")?;
        if !answer.starts_with(br#"{"Ok""#) {
            break;
        }
    }
    Ok(answer)
}
