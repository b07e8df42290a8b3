//! A move that is aborted while the account is fenced: every visitor is served by the source in the end,
//! and the target has nothing of the account.

use std::time::Duration;

use anyhow::{Result, ensure};
use ferry_proto::view::{JobPhase, JobView, StepPhase};

use crate::fleet::Fleet;
use crate::journey;
use crate::stage::Stage;
use crate::{answered, checker, sample, wait};

/// How long a move may take to its fence, and an abort to its end.
const LIMIT: Duration = Duration::from_secs(120);

/// Moves, aborts, and asks the checker.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.account_alone()?;
    let [client, transit] = [stage.host("client")?, stage.host("transit")?];
    let mut visitors = journey::few_come(&fleet, "abort")?;
    let argv =
        ["move", sample::ACCOUNT, "--to", "transit", "--yes", "--detach", "--deadline", "2m"];
    fleet.ferry(&argv)?.ok()?;
    await_fence(&fleet)?;
    let said = fleet.ferry(&["abort", sample::ACCOUNT])?;
    let job = ended(&fleet)?;
    ensure!(
        job.phase == JobPhase::Undone && !job.committed,
        "the aborted move is {}: {}; {}",
        job.phase,
        job.advice,
        said.error_text()
    );
    visitors.await_answers(100)?;
    let log = visitors.stop()?;
    let verdict = checker::check(&log, &journey::settled(&fleet, client, &log)?, &["client"]);
    verdict.expect_clean()?;
    answered::expect(&log, &[&job])?;
    let left = transit.sh(
        "getent passwd demo || :; ls -d /home/demo /etc/nginx/*/*demo* /etc/php/*/fpm/pool.d/*demo* \
             /etc/ferry/aside/*demo* /etc/ferry/certificates/*demo* 2>/dev/null || :
         grep -rl demo /etc/postfix /etc/dovecot /etc/ferry /var/spool/cron /etc/passwd /etc/group || :
         mariadb -N -e 'SHOW DATABASES LIKE \"demo%\"; SELECT User FROM mysql.user WHERE User LIKE \"demo%\"'
         runuser -u postgres -- psql -Atc \"SELECT datname FROM pg_database WHERE datname LIKE 'demo%'
             UNION SELECT rolname FROM pg_roles WHERE rolname LIKE 'demo%'\"",
    )?;
    ensure!(left.trim().is_empty(), "the target has something of the account: {left}");
    super::doctor::both_clean("after an abort", [client, transit])
}

/// Waits until the account's move has fenced it.
pub fn await_fence(fleet: &Fleet<'_>) -> Result<()> {
    wait::until("the account to be fenced", LIMIT, || {
        let job = fleet.last_job(sample::ACCOUNT)?;
        ensure!(
            !job.phase.has_ended(),
            "the move ended before it could be aborted: {}",
            job.advice
        );
        Ok(is_fenced(&job).then_some(()))
    })
}

/// Between the fence's beginning and the commit's.
pub(super) fn is_fenced(job: &JobView) -> bool {
    let at = |name: &str| job.steps.iter().find(|step| step.name == name);
    let fenced = at("fence").is_some_and(|s| s.phase == StepPhase::Done);
    fenced && at("commit").is_some_and(|s| s.started_unix_ms.is_none())
}

/// Waits until the account's last job has ended.
pub fn ended(fleet: &Fleet<'_>) -> Result<JobView> {
    wait::until("the job to end", LIMIT, || {
        let job = fleet.last_job(sample::ACCOUNT)?;
        Ok(job.phase.has_ended().then_some(job))
    })
}
