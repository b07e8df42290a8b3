//! An agent at rest, and each step of a move.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::rows::Row;
use super::{Measured, circumstances};
use crate::fleet::Fleet;
use crate::host::Host;
use crate::interrupt;
use crate::journey::{self, Cron, Journey};
use crate::progress::Task;

/// What an agent needs at rest, and how long each step of a move takes.
pub fn measure(quick: bool) -> Result<Measured> {
    /// The agent at rest: megabytes of resident memory.
    const MEMORY_GOAL: f64 = 25.0;
    /// The agent at rest: percent of a core. The kernel counts hundredths of a second: over a minute,
    /// this much is a handful of its ticks.
    const CPU_GOAL: f64 = 0.1;
    let (lab, build) = journey::fresh()?;
    let fleet = Fleet::install(&lab, &build)?;
    let client = lab.host("client")?;
    let (times, window) =
        if quick { (3, Duration::from_secs(2)) } else { (3, Duration::from_secs(60)) };
    let mut rows = Vec::new();
    let units = ["ferry-agent", "ferry-redirector"];
    for (unit, (memory, cpu)) in units.into_iter().zip(at_rest(client, units, times, window)?) {
        let goals = unit == "ferry-agent";
        let memory = Row::of(format!("{unit} at rest"), "resident memory", "MB", &memory);
        let cpu = Row::of(format!("{unit} at rest"), "processor", "% of a core", &cpu);
        rows.push(if goals { memory.at_most(MEMORY_GOAL) } else { memory });
        rows.push(if goals { cpu.at_most(CPU_GOAL) } else { cpu });
    }
    journey::prepare(&fleet)?;
    let ferry = |argv: &[&str]| fleet.ferry(argv)?.ok().map(|_| ());
    let mut steps: BTreeMap<(usize, String), Vec<f64>> = BTreeMap::new();
    for turn in 1..=3 {
        let name = format!("footprint-{turn}");
        let journey = if quick {
            journey::there_and_back(&fleet, &name, ferry)?
        } else {
            journey::run(&fleet, &name, Cron::InForce, ferry)?
        };
        journey.legs.iter().try_for_each(|leg| leg.verdict.expect_clean())?;
        collect(&journey, &mut steps);
    }
    rows.extend(steps.into_iter().map(|((_, work), s)| Row::of(work, "time", "s", &s)));
    let commands = [
        "cat /proc/PID/status (VmRSS) and /proc/PID/stat (utime + stime), the agent enrolled and idle",
        "ferry move demo --to transit --yes",
        "ferry rollback demo --yes",
    ];
    Ok((rows, circumstances(&lab, &commands, quick)?))
}

/// Of each unit samples of memory in megabytes, and of the processor in percent of a core.
type Samples = (Vec<f64>, Vec<f64>);

/// Looks at units that have nothing to do.
fn at_rest<const N: usize>(
    host: &Host,
    units: [&str; N],
    times: usize,
    window: Duration,
) -> Result<[Samples; N]> {
    let task = Task::start(format!("{} at rest", units.join(" and ")));
    let mut samples = units.map(|_| Samples::default());
    for _ in 0..times {
        let before = units.iter().map(|unit| ticks(host, unit)).collect::<Result<Vec<_>>>()?;
        // The window of the measurement, not a wait for anything.
        thread::sleep(window);
        interrupt::check()?;
        for (n, unit) in units.iter().enumerate() {
            #[allow(clippy::cast_precision_loss)]
            samples[n].1.push((ticks(host, unit)? - before[n]) as f64 / window.as_secs_f64());
            samples[n].0.push(megabytes(host, unit)?);
        }
    }
    task.done();
    Ok(samples)
}

/// The unit's resident memory.
fn megabytes(host: &Host, unit: &str) -> Result<f64> {
    let status =
        host.sh(&format!("cat /proc/$(systemctl show -p MainPID --value {unit})/status"))?;
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = kib.and_then(|l| l.split_whitespace().next()).context("no VmRSS")?;
    Ok(kib.parse::<f64>().context("VmRSS")? * 1024.0 / 1e6)
}

/// Hundredths of a second that the unit's process has used of a processor.
fn ticks(host: &Host, unit: &str) -> Result<u64> {
    let stat = host.sh(&format!("cat /proc/$(systemctl show -p MainPID --value {unit})/stat"))?;
    // After the name, which is in parentheses: utime and stime are the 14th and 15th fields.
    let rest = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok());
    Ok(field(11).context("utime")? + field(12).context("stime")?)
}

#[allow(clippy::cast_precision_loss)]
fn collect(journey: &Journey, steps: &mut BTreeMap<(usize, String), Vec<f64>>) {
    for (way, leg) in journey.legs.iter().enumerate() {
        for (n, step) in leg.job.steps.iter().enumerate() {
            if let (Some(from), Some(to)) = (step.started_unix_ms, step.ended_unix_ms) {
                let work = format!("{} {}", leg.job.direction, step.name);
                let key = (way * 100 + n, work);
                steps.entry(key).or_default().push((to - from) as f64 / 1000.0);
            }
        }
        let work = format!("{} outage, visitors", leg.job.direction);
        let outage = leg.outage.outage_ms as f64 / 1000.0;
        steps.entry((way * 100 + 99, work)).or_default().push(outage);
    }
}
