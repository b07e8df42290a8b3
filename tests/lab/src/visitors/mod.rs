//! Visitors: people at the sample site, by HTTP and HTTPS, and senders of mail. They run on the lab's
//! network, outside all hosts, and so does their log: what was acknowledged, by whom, and when.
//!
//! They know an address, as people do, and nothing of moves.

mod child;
mod http;
mod log;
mod smtp;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

pub use child::{Tour, Visitors, certificate};
pub use log::{Kind, Log, Outcome, SILENT, Visit, now_us};

use http::Client;
use log::Writer;

/// How long a visitor waits for an answer.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// More than can wait in that time at any rate that is used.
const MOST_AT_ONCE: usize = 4096;
/// One mail after so many requests.
const REQUESTS_PER_MAIL: u64 = 25;

/// How visitors come.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The address that they use
    #[arg(long)]
    pub address: Ipv4Addr,
    /// The domain that they ask for, and send mail to
    #[arg(long)]
    pub domain: String,
    /// How many requests a second
    #[arg(long, default_value_t = 50)]
    pub rate: u32,
    /// The log that they write
    #[arg(long)]
    pub log: PathBuf,
    /// The certificate that the site must show, in PEM
    #[arg(long)]
    pub certificate: PathBuf,
    /// Ids begin with this, so that no two runs share one
    #[arg(long)]
    pub prefix: String,
}

/// Comes until standard input ends, then waits for the last answers. Runs in a process of its own.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(come(options))
}

async fn come(options: &Options) -> Result<()> {
    let client = Arc::new(Client::new(options.address, &options.domain, &options.certificate)?);
    let log = Arc::new(Writer::create(&options.log)?);
    let room = Arc::new(Semaphore::new(MOST_AT_ONCE));
    let number = AtomicU64::new(0);
    let mut tick = tokio::time::interval(Duration::from_secs(1) / options.rate.max(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut stdin = tokio::io::stdin();
    let mut end = [0u8; 1];
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stdin.read(&mut end) => break,
        }
        let n = number.fetch_add(1, Ordering::Relaxed);
        let place = Arc::clone(&room).acquire_owned().await.context("nobody closes the room")?;
        let (client, log) = (Arc::clone(&client), Arc::clone(&log));
        let id = format!("{}-{n}", options.prefix);
        tokio::spawn(async move {
            visit(&client, n, id, &log).await;
            drop(place);
        });
    }
    // Everybody out: all places are free again.
    let _all = room.acquire_many(u32::try_from(MOST_AT_ONCE)?).await?;
    Ok(())
}

/// Two of three by HTTP, half of all on kept connections, and now and then a mail.
async fn visit(client: &Client, n: u64, id: String, log: &Writer) {
    if n % REQUESTS_PER_MAIL == REQUESTS_PER_MAIL - 1 {
        let mail =
            log::timed(id, Kind::Mail, |id| smtp::send(client.address(), client.domain(), id))
                .await;
        return log.write(&mail);
    }
    let kind = match n % 6 {
        0 | 1 => Kind::Http,
        2 | 3 => Kind::HttpKept,
        4 => Kind::Https,
        _ => Kind::HttpsKept,
    };
    let visit = log::timed(id.clone(), kind, |id| client.write(kind, id)).await;
    log.write(&visit);
    if matches!(visit.outcome, Outcome::Retried(_)) {
        // Another id: the site may have kept the first although it never said so.
        let again = log::timed(format!("{id}r"), kind, |id| client.write_anew(kind, id)).await;
        log.write(&again);
    }
}
