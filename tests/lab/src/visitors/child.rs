//! The visitors' process, as the lab holds it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use std::os::unix::process::CommandExt;

use super::{Log, PATIENCE};
use crate::host::Host;
use crate::lab::Lab;
use crate::sample::Sample;
use crate::{sample, wait};

/// How long the first answers may take.
const FIRST: Duration = Duration::from_secs(90);

/// Visitors at work. They stop when this is dropped.
#[derive(Debug)]
pub struct Visitors {
    child: Child,
    /// Its end tells them to go.
    until: Option<ChildStdin>,
    log: PathBuf,
}

/// Where visitors go, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Tour<'a> {
    /// The account whose site they visit.
    pub account: &'a Sample,
    /// The certificate that the site must show, in PEM.
    pub certificate: &'a [u8],
    /// The address that they use.
    pub address: Ipv4Addr,
    /// Requests a second.
    pub rate: u32,
}

impl Visitors {
    /// Sends visitors to the sample site on `host`, and waits for their first answers; the log is made
    /// in `place`.
    pub fn start(lab: &Lab, host: &Host, place: &Path, name: &str, rate: u32) -> Result<Visitors> {
        let address = host.spec().service_address.context("the host has no service address")?;
        let certificate = certificate(host, &sample::DEMO)?;
        let tour = Tour { account: &sample::DEMO, certificate: &certificate, address, rate };
        let mut visitors = Visitors::send(lab, place, name, tour)?;
        visitors.await_answers(10)?;
        Ok(visitors)
    }

    /// Sends visitors, whoever answers them; the log is made in `place`.
    pub fn send(lab: &Lab, place: &Path, name: &str, tour: Tour<'_>) -> Result<Visitors> {
        std::fs::create_dir_all(place).with_context(|| format!("making {}", place.display()))?;
        let certificate = place.join(format!("{name}.pem"));
        std::fs::write(&certificate, tour.certificate)
            .with_context(|| format!("writing {}", certificate.display()))?;
        let log = place.join(format!("{name}.jsonl"));
        if log.exists() {
            std::fs::remove_file(&log).with_context(|| format!("removing {}", log.display()))?;
        }
        // Ourselves, even if we have been built anew meanwhile.
        let program = format!("/proc/{}/exe", std::process::id());
        let prefix = format!("{name}-{:x}", super::log::now_us());
        let mut command = lab.netns_command(&program);
        command
            .args(["visitors", "--address", &tour.address.to_string()])
            .args(["--rate", &tour.rate.to_string(), "--domain", &tour.account.domain()])
            .args(["--prefix", &prefix, "--log"])
            .arg(&log)
            .arg("--certificate")
            .arg(&certificate);
        // A group of its own: Ctrl-C is for the lab, which then tells them to go.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().context("starting the visitors")?;
        let until = child.stdin.take();
        Ok(Visitors { child, until, log })
    }

    /// The visits so far.
    pub fn log(&self) -> Result<Log> {
        if self.log.exists() { Log::read(&self.log) } else { Ok(Log::default()) }
    }

    /// Waits for so many more acknowledged requests.
    pub fn await_answers(&mut self, more: usize) -> Result<()> {
        let before = self.log()?.acknowledged().count();
        wait::until(&format!("{more} visitors to be answered"), FIRST, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the visitors have ended: {status}");
            }
            Ok((self.log()?.acknowledged().count() >= before + more).then_some(()))
        })
    }

    /// Waits until a server of this name acknowledges.
    pub fn await_server(&mut self, server: &str) -> Result<()> {
        let from = self.log()?.visits.len();
        wait::until(&format!("an answer of {server}"), FIRST, || {
            let log = self.log()?;
            let seen = log.visits[from..].iter().any(
                |v| matches!(&v.outcome, super::Outcome::Acknowledged { server: s, .. } if s == server),
            );
            Ok(seen.then_some(()))
        })
    }

    /// Sends them home and waits for the last answers.
    pub fn stop(mut self) -> Result<Log> {
        self.until = None;
        let deadline = Instant::now() + PATIENCE + Duration::from_secs(10);
        wait::until("the visitors to go home", deadline - Instant::now(), || {
            Ok(self.child.try_wait()?.map(|_| ()))
        })?;
        self.log()
    }
}

/// The certificate of an account's site, as its owner keeps it on this host.
pub fn certificate(host: &Host, account: &Sample) -> Result<Vec<u8>> {
    host.read_file(&account.named(&format!("{}/ssl/{}.pem", sample::HOME, sample::DOMAIN)))
}

impl Drop for Visitors {
    fn drop(&mut self) {
        self.until = None;
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
