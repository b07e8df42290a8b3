//! The hosts on which faults strike, with the packages that come to failpoints and two accounts, and how
//! they are brought to a known state: by Ferry's own commands alone.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ferry_proto::ids::JobId;
use ferry_proto::view::{JobPhase, JobView};

use super::ears::{Answer, Ears};
use super::fault::Role;
use super::guests::Guests;
use super::journeys::{Journey, SECOND};
use super::point::Point;
use super::probe::Ends;
use crate::build::Build;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::lab::Lab;
use crate::progress::Task;
use crate::sample::{self, Sample};
use crate::spec::HostSpec;
use crate::stage::Stage;
use crate::wait;

/// How long a job may take to end once nothing is wrong any more: an undo, a delivery and what they wait
/// for are tried again every some seconds.
pub const ENDS: Duration = Duration::from_secs(120);
/// How long it may take until exactly one end is open wholly, once the job has ended.
const COHERES: Duration = Duration::from_secs(45);
/// How often a person says `ferry resume` before giving up.
const RESUMES: usize = 3;

/// Whether mail is closed is asked by a login. Dovecot delays its refusal by two seconds, and so does PAM, which
/// knows no mailbox and is asked first where the accounts were made: together half of a case.
const PROMPT: [(&str, &str); 2] = [
    ("client", "sed -i 's/^!include auth-system/#&/' /etc/dovecot/conf.d/10-auth.conf"),
    ("transit", "echo 'auth_failure_delay = 0' > /etc/dovecot/conf.d/99-prompt.conf"),
];

/// What each visit leaves, but the lines that cron writes once a minute.
const TIDY: &str = "
mariadb demo_shop -e 'DELETE FROM visits'
runuser -u postgres -- psql -q demo_app -c 'DELETE FROM visits'
: > /home/demo/data/visits.log
grep -rlZ '^This is visit' /home/demo/mail | xargs -0r rm -f
";

/// Whether Ferry's redirection stands or is gone, the last of it too: not between the two.
const STANDS_ASIDE: &str = "
if rules=$(nft list table inet ferry_redirect 2>/dev/null); then
  echo $rules | grep -q 'redirect to'
else
  ! { ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all; } | grep -qw 7480
fi
";

/// The hosts.
#[derive(Debug)]
pub struct Ground {
    stage: Stage,
    /// What hears all programs.
    pub ears: Ears,
}

impl Ground {
    /// New hosts, with these packages and two accounts served by client; the hosts of a lab that is up
    /// if it is to be kept.
    pub fn raise(build: &Build, keep: bool) -> Result<Ground> {
        Ground::stand(if keep { Lab::up(&hosts())? } else { Lab::fresh(&hosts())? }, build, keep)
    }

    /// New hosts in a lab beside others: see [`Lab::fresh_beside`].
    pub fn raise_beside(build: &Build, number: usize) -> Result<Ground> {
        Ground::stand(Lab::fresh_beside(number, &hosts())?, build, false)
    }

    fn stand(mut lab: Lab, build: &Build, keep: bool) -> Result<Ground> {
        if keep {
            lab.keep();
        }
        let stage = Stage { lab, build: build.clone() };
        let fleet = stage.fleet(&["client", "transit"])?;
        let client = stage.host("client")?;
        let mut new = false;
        for account in [sample::DEMO, SECOND] {
            if fleet.standings(account.name)?.is_empty() {
                let task = Task::start(format!("making the account {} on client", account.name));
                account.create(client)?;
                client.sh("systemctl restart ferry-agent")?;
                fleet.await_account(account.name)?;
                task.done();
                new = true;
            }
        }
        fleet.await_connected(&["client", "transit"])?;
        let mut ground = Ground { stage, ears: Ears::default() };
        ground.listen()?;
        if new {
            for (host, prompt) in PROMPT {
                let prompt = format!("{prompt}; systemctl restart dovecot");
                ground.host(host)?.sh(&prompt).context("letting Dovecot refuse at once")?;
            }
            // What a server does but once in its life is no part of a journey.
            ground.bring(Journey::Rollback).context("the first move on new hosts")?;
            ground.bring(Journey::Move).context("the first rollback on new hosts")?;
        }
        Ok(ground)
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.stage.lab
    }

    /// One of the hosts.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.stage.host(name)
    }

    /// The two servers.
    pub fn servers(&self) -> Result<[&Host; 2]> {
        Ok([self.host("client")?, self.host("transit")?])
    }

    /// Ferry on them.
    pub fn fleet(&self) -> Result<Fleet<'_>> {
        Fleet::of(&self.stage.lab)
    }

    /// The same once the controller answers, which a fault may have ended, and has both its agents.
    fn connected(&self) -> Result<Fleet<'_>> {
        let fleet = self.fleet()?;
        wait::until("the controller to answer", ENDS, || {
            Ok(fleet.ferry(&["server", "list"])?.status.success().then_some(()))
        })?;
        fleet.await_connected(&["client", "transit"])?;
        Ok(fleet)
    }

    /// Hears all hosts, also those that have booted anew.
    pub fn listen(&mut self) -> Result<()> {
        for host in self.stage.lab.hosts() {
            self.ears.listen(host)?;
        }
        Ok(())
    }

    /// The last job of an account, if it has one and the controller says so just now.
    pub fn job(&self, account: &Sample) -> Option<JobView> {
        self.fleet().ok()?.last_job(account.name).ok()
    }

    /// The last jobs of a journey's accounts, to tell new ones from.
    pub fn jobs(&self, journey: Journey) -> BTreeMap<&'static str, JobId> {
        let job = |account: &'static Sample| Some((account.name, self.job(account)?.job));
        journey.accounts().iter().filter_map(job).collect()
    }

    /// Goes on a journey without faults, while visitors come as in every case: how often a program comes to
    /// a point depends on them too. Tells the points that the programs came to.
    pub fn record(&mut self, journey: Journey) -> Result<Vec<Point>> {
        self.bring(journey)?;
        self.listen()?;
        let guests = Guests::come(self, journey)?;
        let abort = journey.abort_at();
        self.ears.aim(abort.clone().map(|point| (point, Answer::Wait)).into_iter().collect());
        let before = self.jobs(journey);
        set_out(&self.fleet()?, journey)?;
        if abort.is_some() {
            let held = self.ears.held(ENDS).context("the fence was not reached")?;
            self.ask_for_abort()?;
            held.go();
        }
        for account in journey.accounts() {
            let job = self.ended(account, before.get(account.name), ENDS)?;
            let expected = if abort.is_some() { JobPhase::Undone } else { JobPhase::Done };
            ensure!(job.phase == expected, "{journey}: the job is {}: {}", job.phase, job.advice);
        }
        for guests in guests {
            guests.leave(0)?;
        }
        self.await_step_aside()?;
        let trace = self.ears.trace();
        // What comes before an abort is the move's.
        let begin = trace.iter().position(|point| Some(point) == abort.as_ref());
        Ok(trace.into_iter().skip(begin.map_or(0, |index| index + 1)).collect())
    }

    /// Waits until no server has a redirection that redirects nobody: Ferry takes it away when the last
    /// visitor on his way through it has left.
    fn await_step_aside(&self) -> Result<()> {
        for server in self.servers()? {
            let what = format!("the redirection on {} to be taken away", server.name());
            wait::until(&what, ENDS, || {
                Ok(server.exec(&["sh", "-c", STANDS_ASIDE])?.status.success().then_some(()))
            })?;
        }
        Ok(())
    }

    /// Asks for the sample account's move to be undone. `ferry abort` waits for the end, and the caller
    /// does not: the wish is all that is waited for.
    pub fn ask_for_abort(&self) -> Result<()> {
        let mut asking = self.fleet()?.ferry_command(&["abort", sample::ACCOUNT])?;
        asking.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut asking = asking.spawn().context("asking for an abort")?;
        let asked = wait::until("the abort to be asked for", ENDS, || {
            Ok(self.job(&sample::DEMO).is_some_and(|job| job.abort_requested).then_some(()))
        });
        thread::spawn(move || asking.wait());
        asked
    }

    /// Whether no job of an account is there but the one before: a command that was not heard to the end
    /// may have begun nothing. Asked of a controller that has all its agents again.
    pub fn never_began(&self, account: &Sample, before: Option<&JobId>) -> Result<bool> {
        self.connected()?;
        Ok(self.job(account).map(|job| job.job).as_ref() == before)
    }

    /// Waits until an account's job, a later one than `before`, has ended; a stuck one is resumed as a
    /// person would. Tells how it ended.
    pub fn ended(
        &self,
        account: &Sample,
        before: Option<&JobId>,
        limit: Duration,
    ) -> Result<JobView> {
        let mut last = String::from("the controller says nothing");
        wait::until(&format!("the job of {} to end", account.name), limit, || {
            let Some(job) = self.job(account).filter(|job| Some(&job.job) != before) else {
                return Ok(None);
            };
            last = shown(&job);
            Ok(job.phase.has_ended().then_some(job))
        })
        .with_context(|| last)
    }

    /// Resumes a stuck job until it is not stuck any more, as a person would.
    pub fn resume(&self, account: &Sample) -> Result<JobView> {
        for _ in 0..RESUMES {
            // It ends with an error if the job is stuck again: that is looked at here.
            self.fleet()?.ferry(&["resume", account.name])?;
            let job = self.ended(account, None, ENDS)?;
            if job.phase != JobPhase::Stuck {
                return Ok(job);
            }
        }
        bail!(
            "it is stuck again after each resume: {}",
            self.job(account).map_or_else(String::new, |j| shown(&j))
        )
    }

    /// Waits until exactly one end serves an account wholly; tells which.
    pub fn served(&self, account: &Sample) -> Result<String> {
        let mut last = String::new();
        wait::until(&format!("one end alone to serve {}", account.name), COHERES, || {
            let ends = Ends::look(self.servers()?, account)?;
            last = ends.to_string();
            Ok(ends.server().map(str::to_owned))
        })
        .with_context(|| last)
    }

    /// Takes away what visitors of earlier cases left with the journey's accounts: who looks for what the
    /// next ones leave reads all of it.
    pub fn tidy(&self, journey: Journey) -> Result<()> {
        let host = self.host(journey.host(Role::Source))?;
        for account in journey.accounts() {
            host.sh(&account.named(TIDY)).with_context(|| format!("tidying {}", account.name))?;
        }
        Ok(())
    }

    /// Brings the journey's accounts to where it begins.
    pub fn bring(&self, journey: Journey) -> Result<()> {
        let fleet = self.connected()?;
        for account in journey.accounts() {
            if let Some(job) = self.job(account) {
                let job =
                    if job.phase.has_ended() { job } else { self.ended(account, None, ENDS)? };
                if job.phase == JobPhase::Stuck {
                    self.resume(account)?;
                }
            }
            if self.served(account)? != journey.host(Role::Source) {
                let back = ["rollback", account.name, "--yes"];
                let there = ["move", account.name, "--to", "transit", "--yes"];
                let argv: &[&str] = if journey == Journey::Rollback { &there } else { &back };
                fleet.ferry(argv)?.ok().with_context(|| format!("ferry {}", argv.join(" ")))?;
                let serves = self.served(account)?;
                ensure!(serves == journey.host(Role::Source), "{serves} serves after all");
            }
            // A move is the account's first: an earlier one's copy would be half of it.
            if journey != Journey::Rollback && fleet.standings(account.name)?.len() > 1 {
                let argv = ["finalize", account.name, "--erase", "--yes"];
                fleet.ferry(&argv)?.ok().context("erasing the copy of an earlier case")?;
            }
        }
        Ok(())
    }
}

/// Sets out, with all accounts of the journey at once. Whether the commands were heard to the end may
/// depend on a fault.
pub fn set_out(fleet: &Fleet<'_>, journey: Journey) -> Result<()> {
    thread::scope(|scope| {
        let order = |account: &'static Sample| -> Result<()> {
            fleet.ferry(&journey.argv(account))?.ok().map(drop)
        };
        let orders: Vec<_> =
            journey.accounts().iter().map(|a| scope.spawn(move || order(a))).collect();
        let mut told = orders.into_iter().map(|order| order.join());
        told.try_for_each(|told| told.map_err(|_| anyhow!("a thread panicked"))?)
    })
}

fn hosts() -> Vec<HostSpec> {
    HostSpec::standard().into_iter().map(HostSpec::with_own_disks).collect()
}

/// A job in a few words.
pub fn shown(job: &JobView) -> String {
    let step = job.steps.iter().rfind(|step| step.fault.is_some() || step.undo_fault.is_some());
    let faults = step.map(|step| {
        let fault = step.undo_fault.as_ref().or(step.fault.as_ref());
        format!(
            "; {} on {}: {}",
            step.name,
            step.server,
            fault.map_or_else(String::new, |f| f.to_string())
        )
    });
    format!("job {} is {}: {}{}", job.job, job.phase, job.advice, faults.unwrap_or_default())
}
