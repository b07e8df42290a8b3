//! Agents and controller are upgraded by apt at the worst moments, under visitors: while an account is copied
//! ahead (and was paused before), while visitors of one that has moved are passed on, and inside a fence. Nobody is
//! refused and nothing is lost; the jobs and the change journals go on by themselves.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ferry_proto::view::{JobPhase, JobView, StepPhase};

use super::abort::is_fenced;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::journey;
use crate::progress::say;
use crate::stage::Stage;
use crate::{answered, build, checker, sample, wait};

/// How long a move may take to the moment that is meant, and to its end.
const LIMIT: Duration = Duration::from_secs(180);
/// Makes the way to the transit server slow: about 100 s for what is copied ahead, of which nobody waits
/// for more than an upgrade takes.
const SLOW: &str = "
nft add table inet slow
nft add chain inet slow out '{ type filter hook output priority 0; }'
nft add rule inet slow out ip daddr TRANSIT limit rate over 4 mbytes/second burst 1 mbytes drop
";
/// The servers with an agent.
const SERVERS: [&str; 2] = ["client", "transit"];

/// Upgrades three times on the way there and back.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account_alone()?;
    let [client, transit] = [stage.host("client")?, stage.host("transit")?];
    let later: Vec<Later> = ["later0a", "later0b", "later0c"]
        .iter()
        .map(|v| Later::of(stage, v))
        .collect::<Result<_>>()?;
    let redirectors = SERVERS.map(|name| redirector(&fleet, name));
    // So much, on so slow a way, that it is not copied when the upgrade comes, however fast this machine is.
    client
        .sh("runuser -u demo -- sh -c 'head -c 400000000 /dev/urandom > /home/demo/data/large'")?;
    client.sh(&SLOW.replace("TRANSIT", &transit.spec().address.to_string()))?;
    let mut visitors = journey::few_come(&fleet, "upgrade")?;

    fleet.ferry(&["move", sample::ACCOUNT, "--to", "transit", "--yes", "--detach"])?.ok()?;
    await_job(&fleet, "the precopy to run", is_copied_ahead)?;
    pauses(&fleet)?;
    visitors.await_answers(100)?;
    fleet.ferry(&["resume", sample::ACCOUNT, "--detach"])?.ok()?;
    await_job(&fleet, "the precopy to go on", is_copied_ahead)?;
    later[0].install(&fleet, "while an account is copied ahead")?;
    still_copied_ahead(&fleet.last_job(sample::ACCOUNT)?)?;
    client.sh("nft delete table inet slow")?;
    let there = ended(&fleet)?;
    ensure!(there.phase == JobPhase::Done, "the move is {}: {}", there.phase, there.advice);
    visitors.await_server("transit")?;

    later[1].install(&fleet, "while visitors are passed on")?;
    visitors.await_answers(100)?;

    let upgraded = inside_the_fence(&fleet, client, &later[2]);
    client.sh("systemctl kill -s CONT mariadb")?;
    upgraded.with_context(|| fleet.journals())?;
    let back = ended(&fleet)?;
    ensure!(back.phase == JobPhase::Done, "the rollback is {}: {}", back.phase, back.advice);
    visitors.await_server("client")?;
    visitors.await_answers(100)?;

    let log = visitors.stop()?;
    let owners = ["client", "transit", "client"];
    let verdict = checker::check(&log, &journey::settled(&fleet, client, &log)?, &owners);
    say(format!("in the end: {verdict}"));
    verdict.expect_clean()?;
    answered::expect(&log, &[&there, &back]).with_context(|| fleet.journals())?;
    ensure!(
        SERVERS.map(|name| redirector(&fleet, name).ok()) == redirectors.map(Result::ok),
        "an upgrade restarted the redirector, through which visitors are passed on"
    );
    client.sh("rm /home/demo/data/large")?;
    restart_is_due(client)?;
    restart_is_due(transit)
}

/// The packages of one later version.
struct Later {
    version: &'static str,
    agent: PathBuf,
    controller: PathBuf,
}

impl Later {
    fn of(stage: &Stage, version: &'static str) -> Result<Later> {
        let [agent, controller] = stage.debs()?;
        let altered = |deb| build::altered(deb, version, |_| Ok(()));
        Ok(Later { version, agent: altered(agent)?, controller: altered(controller)? })
    }

    /// Upgrades everything at once.
    fn install(&self, fleet: &Fleet<'_>, when: &str) -> Result<()> {
        say(format!("upgrading to +{} {when}", self.version));
        let began = Instant::now();
        let hosts = SERVERS.map(|name| fleet.lab().host(name));
        thread::scope(|scope| {
            let mut jobs =
                vec![scope.spawn(|| {
                    self.upgrade(fleet.controller(), "ferry-controller", &self.controller)
                })];
            for host in hosts {
                let host = host?;
                jobs.push(scope.spawn(move || self.upgrade(host, "ferry-agent", &self.agent)));
            }
            for job in jobs {
                job.join().map_err(|_| anyhow!("an upgrading thread panicked"))??;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        fleet.await_connected(&SERVERS)?;
        say(format!("all upgraded and connected after {:.1} s", began.elapsed().as_secs_f64()));
        Ok(())
    }

    fn upgrade(&self, host: &Host, name: &str, deb: &std::path::Path) -> Result<()> {
        let pid = format!("systemctl show -p MainPID --value {name}");
        let before = host.sh(&pid)?;
        host.install_debs(&[deb.to_owned()])?;
        let version = host.sh(&format!("dpkg-query -W -f '${{Version}}' {name}"))?;
        ensure!(version.ends_with(self.version), "{name} was not upgraded: {version}");
        ensure!(host.sh(&pid)? != before, "{name} was not restarted on {}", host.name());
        Ok(())
    }
}

/// Goes back, and upgrades as soon as the account is fenced: the fence stands before and after.
///
/// The target's database answers while the way back is prepared, and then not until it is told to go on: so
/// the fence stands that long.
fn inside_the_fence(fleet: &Fleet<'_>, client: &Host, later: &Later) -> Result<()> {
    fleet.ferry(&["rollback", sample::ACCOUNT, "--yes", "--detach", "--deadline", "2m"])?.ok()?;
    await_job(fleet, "the target to be prepared", |job| is_at(job, "provision", StepPhase::Done))?;
    client.sh("systemctl kill -s STOP mariadb")?;
    await_job(fleet, "the account to be fenced", is_fenced)?;
    later.install(fleet, "inside a fence")?;
    let transit = fleet.lab().host("transit")?;
    let goes_on = "journalctl -b -u ferry-agent | grep -c 'the change journals go on: demo' || :";
    ensure!(transit.sh(goes_on)?.trim() == "1", "the change journal began anew in the upgrade");
    let job = fleet.last_job(sample::ACCOUNT)?;
    ensure!(is_fenced(&job), "the fence did not outlast the upgrade: {}", job.advice);
    Ok(())
}

/// The move stops for now, with what it has copied.
fn pauses(fleet: &Fleet<'_>) -> Result<()> {
    let said = fleet.ferry(&["pause", sample::ACCOUNT])?;
    let job = fleet.last_job(sample::ACCOUNT)?;
    ensure!(
        job.phase == JobPhase::Paused,
        "the move is {} after ferry pause: {}{}",
        job.phase,
        said.text(),
        said.error_text()
    );
    Ok(())
}

fn is_copied_ahead(job: &JobView) -> bool {
    is_at(job, "precopy", StepPhase::Running)
}

/// The precopy may have failed with the other end's restart, and wait to be tried again; it has not ended.
fn still_copied_ahead(job: &JobView) -> Result<()> {
    let begun: Vec<_> = job.steps.iter().filter(|s| s.phase != StepPhase::Waiting).collect();
    ensure!(
        !job.phase.has_ended()
            && begun.last().is_some_and(|s| s.name == "precopy" && s.phase != StepPhase::Done),
        "the upgrade did not come while the account was copied ahead: the job is {}, {}; {begun:?}",
        job.phase,
        job.advice
    );
    Ok(())
}

fn is_at(job: &JobView, step: &str, phase: StepPhase) -> bool {
    job.steps.iter().any(|s| s.name == step && s.phase == phase)
}

fn await_job(fleet: &Fleet<'_>, what: &str, is: impl Fn(&JobView) -> bool) -> Result<()> {
    wait::until(what, LIMIT, || {
        let job = fleet.last_job(sample::ACCOUNT)?;
        ensure!(!job.phase.has_ended(), "the job ended before {what}: {}", job.advice);
        Ok(is(&job).then_some(()))
    })
}

fn ended(fleet: &Fleet<'_>) -> Result<JobView> {
    wait::until("the job to end", LIMIT, || {
        let job = fleet.last_job(sample::ACCOUNT)?;
        Ok(job.phase.has_ended().then_some(job))
    })
}

fn redirector(fleet: &Fleet<'_>, server: &str) -> Result<String> {
    fleet.lab().host(server)?.sh("systemctl show -p MainPID --value ferry-redirector")
}

/// The upgrade has left the old redirector at work: the agent says so, and that a restart is safe now.
fn restart_is_due(host: &Host) -> Result<()> {
    let ask = ["ferry-agent", "redirector"];
    let said = host.exec(&ask)?;
    ensure!(
        said.status.code() == Some(10)
            && said.text().contains("systemctl restart ferry-redirector"),
        "what the agent on {} says of its redirector: {}{}",
        host.name(),
        said.text(),
        said.error_text()
    );
    host.sh("systemctl restart ferry-redirector")?;
    ensure!(host.exec(&ask)?.status.success(), "a restart is still due on {}", host.name());
    Ok(())
}
