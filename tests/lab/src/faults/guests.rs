//! The visitors of a case: those who come as ever, and some who come straight to the server that the
//! account does not live on yet, where nobody answers them unless it is served there.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::fault::Role;
use super::ground::Ground;
use super::journeys::Journey;
use crate::checker::{self, Outage};
use crate::host::Host;
use crate::journey::place;
use crate::sample::Sample;
use crate::visitors::{Log, Tour, Visitors, certificate};

/// Requests a second of those who come as ever: half a second is what an outage is known to. They are nearly half
/// of what a case costs: each logs in to both databases.
const RATE: u32 = 2;
/// Of those who come straight to the other server.
const STRAIGHT: u32 = 1;
/// So many answers show that they are answered.
const ANSWERS: usize = 5;

/// Those who come as ever, and those who come straight to the other server, in names of their logs.
const USUAL: &str = "usual";
const ELSEWHERE: &str = "straight";

/// What those write who come back after [`Guests::rest`].
const AGAIN: &str = "again";

/// What visitors of an account log to, in [`place`]: labs side by side have their own.
fn log_name(ground: &Ground, account: &Sample, to: &str) -> String {
    format!("{}-faults-{}-{to}", ground.lab().name(), account.name)
}

/// The logs that visitors of these accounts have left.
pub fn logs(ground: &Ground, journey: Journey) -> Result<Vec<PathBuf>> {
    let names = |account| [USUAL, ELSEWHERE].map(|to| log_name(ground, account, to));
    let names = journey.accounts().iter().flat_map(names);
    let both = names.flat_map(|name| [format!("{name}-{AGAIN}"), name]);
    let place = place()?;
    Ok(both.map(|name| place.join(format!("{name}.jsonl"))).filter(|log| log.exists()).collect())
}

/// The visitors of one account.
#[derive(Debug)]
pub struct Guests {
    /// Whose.
    pub account: &'static Sample,
    /// What its databases consisted of when they came: see [`Sample::objects`].
    pub objects: String,
    usual: Party,
    straight: Party,
}

/// Visitors who use one address.
#[derive(Debug)]
struct Party {
    name: String,
    account: &'static Sample,
    certificate: Vec<u8>,
    address: Ipv4Addr,
    rate: u32,
    here: Option<Visitors>,
    /// What they saw each time that they were there.
    seen: Vec<Log>,
}

impl Guests {
    /// Visitors begin to come to each account of a journey, and are answered.
    pub fn come(ground: &Ground, journey: Journey) -> Result<Vec<Guests>> {
        let [client, transit] = ground.servers()?;
        let source = ground.host(journey.host(Role::Source))?;
        let come = |account: &'static Sample| {
            let party = |to: &str, host: &Host, rate| -> Result<Party> {
                let address =
                    host.spec().service_address.context("a server without a service address")?;
                let name = log_name(ground, account, to);
                let certificate = certificate(client, account)?;
                let (here, seen) = (None, Vec::new());
                Ok(Party { name, account, certificate, address, rate, here, seen })
            };
            let mut guests = Guests {
                account,
                objects: account.objects(source)?,
                usual: party(USUAL, client, RATE)?,
                straight: party(ELSEWHERE, transit, STRAIGHT)?,
            };
            guests.set_out(ground)?;
            guests.are_answered()?;
            Ok(guests)
        };
        journey.accounts().iter().map(come).collect()
    }

    fn set_out(&mut self, ground: &Ground) -> Result<()> {
        self.usual.set_out(ground)?;
        self.straight.set_out(ground)
    }

    /// Waits until the usual ones are answered again.
    pub fn are_answered(&mut self) -> Result<()> {
        self.usual.here()?.await_answers(ANSWERS)
    }

    /// Sends them home for a while: Ferry waits for connections to end before it takes away what they came
    /// through, and visitors who come as ever have one open at any time.
    pub fn rest(&mut self) -> Result<()> {
        self.usual.rest()?;
        self.straight.rest()
    }

    /// They come again, if they rest.
    pub fn come_back(&mut self, ground: &Ground) -> Result<()> {
        if self.usual.here.is_none() { self.set_out(ground) } else { Ok(()) }
    }

    /// Sends them home. Tells what all of them saw, and how long the usual ones were not served at a
    /// time since then.
    pub fn leave(mut self, since_us: i64) -> Result<(Log, Outage)> {
        self.rest()?;
        // Between two logs nobody came: that is no outage.
        let outages =
            self.usual.seen.iter().map(|log| checker::outage(log, since_us, i64::MAX / 2));
        let outage = outages.max_by_key(|outage| outage.gap_ms).unwrap_or_default();
        let logs = [self.usual.seen, self.straight.seen].into_iter().flatten();
        Ok((Log { visits: logs.flat_map(|log| log.visits).collect() }, outage))
    }
}

impl Party {
    fn set_out(&mut self, ground: &Ground) -> Result<()> {
        let place = place()?;
        let again = format!("{}-{AGAIN}", self.name);
        let (name, stale) = match self.seen.len() {
            0 => (&self.name, Some(place.join(format!("{again}.jsonl")))),
            _ => (&again, None),
        };
        if let Some(stale) = stale.filter(|log| log.exists()) {
            fs::remove_file(&stale).with_context(|| format!("removing {}", stale.display()))?;
        }
        let tour = Tour {
            account: self.account,
            certificate: &self.certificate,
            address: self.address,
            rate: self.rate,
        };
        self.here = Some(Visitors::send(ground.lab(), &place, name, tour)?);
        Ok(())
    }

    fn here(&mut self) -> Result<&mut Visitors> {
        self.here.as_mut().context("these visitors rest")
    }

    fn rest(&mut self) -> Result<()> {
        if let Some(here) = self.here.take() {
            self.seen.push(here.stop()?);
        }
        Ok(())
    }
}
