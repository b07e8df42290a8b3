//! The visitors of a case: those who come as ever, and some who come straight to the server that the
//! account does not live on yet, where nobody answers them unless it is served there.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::fault::Role;
use super::ground::Ground;
use super::journeys::Journey;
use crate::checker::{self, Outage};
use crate::journey::place;
use crate::sample::Sample;
use crate::visitors::{Log, Tour, Visitors, certificate};

/// Requests a second of those who come as ever: a third of a second is what an outage is known to. They are half
/// of what a case costs: each logs in to both databases.
const RATE: u32 = 3;
/// Of those who come straight to the other server.
const STRAIGHT: u32 = 1;
/// So many answers show that they are answered.
const ANSWERS: usize = 5;

/// Those who come as ever, and those who come straight to the other server, in names of their logs.
const USUAL: &str = "usual";
const ELSEWHERE: &str = "straight";

/// What visitors of an account log to, in [`place`]: labs side by side have their own.
fn log_name(ground: &Ground, account: &Sample, to: &str) -> String {
    format!("{}-faults-{}-{to}", ground.lab().name(), account.name)
}

/// The logs that visitors of these accounts have left.
pub fn logs(ground: &Ground, journey: Journey) -> Result<Vec<PathBuf>> {
    let names = |account| [USUAL, ELSEWHERE].map(|to| log_name(ground, account, to));
    let place = place()?;
    let logs = journey.accounts().iter().flat_map(names);
    Ok(logs.map(|name| place.join(format!("{name}.jsonl"))).filter(|log| log.exists()).collect())
}

/// The visitors of one account.
#[derive(Debug)]
pub struct Guests {
    /// Whose.
    pub account: &'static Sample,
    /// What its databases consisted of when they came: see [`Sample::objects`].
    pub objects: String,
    usual: Visitors,
    straight: Visitors,
}

impl Guests {
    /// Visitors begin to come to each account of a journey, and are answered.
    pub fn come(ground: &Ground, journey: Journey) -> Result<Vec<Guests>> {
        let [client, transit] = ground.servers()?;
        let address = |host: &crate::host::Host| -> Result<Ipv4Addr> {
            host.spec().service_address.context("a server without a service address")
        };
        let (usual, straight) = (address(client)?, address(transit)?);
        let place = place()?;
        let source = ground.host(journey.host(Role::Source))?;
        journey
            .accounts()
            .iter()
            .map(|account| {
                let shown = certificate(ground.host("client")?, account)?;
                let send = |to: &str, address, rate| {
                    let name = log_name(ground, account, to);
                    let tour = Tour { account, certificate: &shown, address, rate };
                    send(ground, &place, &name, tour)
                };
                let mut guests = Guests {
                    account,
                    objects: account.objects(source)?,
                    usual: send(USUAL, usual, RATE)?,
                    straight: send(ELSEWHERE, straight, STRAIGHT)?,
                };
                guests.are_answered()?;
                Ok(guests)
            })
            .collect()
    }

    /// Waits until the usual ones are answered again.
    pub fn are_answered(&mut self) -> Result<()> {
        self.usual.await_answers(ANSWERS)
    }

    /// Sends them home. Tells what all of them saw, and how long the usual ones were not served at a
    /// time since then.
    pub fn leave(self, since_us: i64) -> Result<(Log, Outage)> {
        let usual = self.usual.stop()?;
        let outage = checker::outage(&usual, since_us, i64::MAX / 2);
        let mut all = usual;
        all.visits.extend(self.straight.stop()?.visits);
        Ok((all, outage))
    }
}

fn send(ground: &Ground, place: &Path, name: &str, tour: Tour<'_>) -> Result<Visitors> {
    Visitors::send(ground.lab(), place, name, tour)
}
