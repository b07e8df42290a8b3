//! An account whose owner is an attacker: it moves and comes back, and nothing outside it is read, changed or
//! run on either server. What it may not have is refused before it moves, with what to do.
//!
//! The single cases are tests beside the code that decides them; this is all of it at once on real hosts.

mod definitions;
mod outside;
mod peers;
mod refusals;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_proto::view::{JobPhase, JobView};

use crate::exec::EXEC_LIMIT;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::progress::say;
use crate::sample::Sample;
use crate::stage::Stage;
use crate::wait;
use outside::Outside;

const HOSTILE: Sample = Sample::small("hostile");

const CLEAR: &str = include_str!("files/clear.sh");
const ROOT: &str = include_str!("files/root.sh");
const OWN: &str = include_str!("files/own.sh");
const RACE: &str = include_str!("files/race.pl");
const MARIADB: &str = include_str!("files/mariadb.sql");
const POSTGRESQL: &str = include_str!("files/postgresql.sql");
const FACTS: &str = include_str!("files/facts.sh");
const STOLEN: &str = include_str!("files/stolen.sh");

/// How long a job may take, and what follows an open: cron's minute.
const LIMIT: Duration = Duration::from_secs(180);

/// What the owner does at the target, where it is served: a way out becomes a directory, a directory a way
/// out, and the hooks are done with.
const TURNED: &str = r#"cd /home/hostile/hostile
rm way && mkdir way && echo mine > way/secret && echo mine > way/planted
rm -r gone && ln -s /home/neighbour gone
printf '#!/bin/sh\n' > ../hooks/before && cp ../hooks/before ../hooks/after"#;

/// Moves the account and takes it back.
pub fn run(stage: &mut Stage) -> Result<()> {
    let fleet = stage.fleet(&["client", "transit", "old"])?;
    let [client, transit] = [stage.host("client")?, stage.host("transit")?];
    let hosts = [client, transit];
    make(&fleet, hosts)?;
    let outside = Outside::look(hosts)?;
    let unchanged = |when: &str| outside.expect_same(&Outside::look(hosts)?, when);

    say("the hostile account is made, its neighbours are looked at");
    definitions::run(&fleet, client)?;
    refusals::run(&fleet, hosts)?;
    unchanged("after moves that were refused")?;

    race(client)?;
    moved(&fleet, hosts)?;
    unchanged("after the move")?;
    page(transit)?;
    say("it has moved, and nothing outside it has changed");

    user(transit, TURNED)?;
    race(transit)?;
    fleet.ferry(&["rollback", HOSTILE.name, "--yes"])?.ok().with_context(|| fleet.journals())?;
    unchanged("after the rollback")?;
    ensure!(!runs(transit, ".")?, "the account still runs on transit, its endless hook perhaps");
    came_back(client)?;
    say("it is back, and nothing outside it has changed");
    leave(&fleet, hosts, &outside)
}

/// The account, its neighbour on both servers, and all that its owner can plant.
fn make(fleet: &Fleet<'_>, hosts: [&Host; 2]) -> Result<()> {
    let client = hosts[0];
    for host in hosts {
        host.sh(CLEAR)?;
        outside::plant(host)?;
    }
    HOSTILE.create(client)?;
    client.sh(ROOT)?;
    user(client, OWN).context("planting what the owner can")?;
    let mariadb = [
        "mariadb",
        "--binary-mode",
        "--comments",
        "--default-character-set=utf8mb4",
        "-uhostile_shop",
        "-psample-shop-password",
        "hostile_shop",
    ];
    client.exec_with(&mariadb, MARIADB.as_bytes(), EXEC_LIMIT)?.ok()?;
    let postgresql = [
        "psql",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "postgresql://hostile_app:sample-app-password@127.0.0.1/hostile_app",
    ];
    client.exec_with(&postgresql, POSTGRESQL.as_bytes(), EXEC_LIMIT)?.ok()?;
    fleet.await_account(HOSTILE.name)
}

/// Runs a script as the account's owner.
fn user(host: &Host, script: &str) -> Result<String> {
    host.exec(&["runuser", "-u", HOSTILE.name, "--", "bash", "-euc", script])?.ok()
}

/// Sets the race going, as the account's user; a fence ends it.
fn race(host: &Host) -> Result<()> {
    host.write_file("/usr/local/lib/hostile-race", 0o755, RACE.as_bytes())?;
    user(host, "setsid -f perl /usr/local/lib/hostile-race </dev/null >/dev/null 2>&1")?;
    wait::until("the race to run", LIMIT, || Ok(runs(host, "hostile-race")?.then_some(())))
}

/// Moves it while it races. Its first hook waits for its owner: meanwhile keys are stolen.
fn moved(fleet: &Fleet<'_>, [client, transit]: [&Host; 2]) -> Result<()> {
    let epoch = epoch(fleet)?;
    fleet.ferry(&["move", HOSTILE.name, "--to", "transit", "--yes", "--detach"])?.ok()?;
    wait::until("the hook before the fence", LIMIT, || {
        let job = fleet.last_job(HOSTILE.name)?;
        ensure!(!job.phase.has_ended(), "{}", outcome(fleet, &job));
        let waits = client.exec(&["test", "-e", "/home/hostile/hostile/waiting"])?;
        Ok(waits.status.success().then_some(()))
    })?;
    ensure!(runs(client, "hostile-race")?, "the race was over before the fence");
    peers::Keys::of(fleet, &fleet.last_job(HOSTILE.name)?, epoch)?.try_all()?;
    client.sh("timeout 20 sh -c 'echo go > /home/hostile/hostile/gate'")?;
    let job = wait::until("the job to end", LIMIT, || {
        let job = fleet.last_job(HOSTILE.name)?;
        Ok(job.phase.has_ended().then_some(job))
    })?;
    ensure!(job.phase == JobPhase::Done, "{}", outcome(fleet, &job));
    ensure!(!runs(client, ".")?, "the account still runs on client");
    hook_was_the_account(client)?;
    nothing_stolen(transit)?;
    let (here, there) = (facts(client)?, facts(transit)?);
    ensure!(here == there, "not the same at both ends: {:#?}", differing(&here, &there));
    // The hook after the open never ends; the rollback's fence will end it.
    wait::until("the hook after the open", LIMIT, || {
        let began = transit.exec(&["test", "-s", "/home/hostile/hostile/endless"])?;
        Ok(began.status.success().then_some(()))
    })
}

fn outcome(fleet: &Fleet<'_>, job: &JobView) -> String {
    format!("the move is {}: {}\n{}", job.phase, job.advice, fleet.journals())
}

/// Whether a process of the account whose command line holds `what` runs there.
fn runs(host: &Host, what: &str) -> Result<bool> {
    Ok(host.exec(&["pgrep", "-u", HOSTILE.name, "-f", what])?.status.success())
}

/// What the hook could do, it has told.
fn hook_was_the_account(client: &Host) -> Result<()> {
    let told = client.sh("cat /home/hostile/hostile/hook")?;
    ensure!(
        told.contains("(hostile)") && !told.contains("(root)") && !told.contains("NOTIFY_SOCKET"),
        "a hook is more than the account: {told}"
    );
    let capabilities: Vec<&str> = told.lines().filter(|line| line.starts_with("Cap")).collect();
    let none = capabilities.iter().all(|line| line.ends_with("\t0000000000000000"));
    ensure!(capabilities.len() == 3 && none, "a hook has capabilities: {told}");
    Ok(())
}

fn epoch(fleet: &Fleet<'_>) -> Result<u64> {
    let known = fleet.json(&["account", "list"])?;
    let mut rows = known["accounts"].as_array().into_iter().flatten();
    let row = rows.find(|row| row["name"] == HOSTILE.name).context("the account is not known")?;
    row["epoch"].as_u64().context("the account has no epoch")
}

fn facts(host: &Host) -> Result<Vec<String>> {
    let said = host.sh(FACTS)?;
    let count = |word: &str| said.lines().filter(|line| line.starts_with(word)).count();
    for word in
        ["file", "crontab", "row", "routine", "trigger", "event", "view", "function", "relation"]
    {
        ensure!(count(word) > 0, "{} shows no {word}: {said}", host.name());
    }
    Ok(said.lines().map(str::to_owned).collect())
}

fn differing(here: &[String], there: &[String]) -> Vec<String> {
    let only = |sign: &'static str, these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|l| !those.contains(l)).map(|l| format!("{sign} {l}")).collect()
    };
    [only("-", here, there), only("+", there, here)].concat()
}

/// Nothing of others is in the home, and no rights.
fn nothing_stolen(host: &Host) -> Result<()> {
    let stolen = host.sh(STOLEN)?;
    ensure!(
        stolen.trim().is_empty(),
        "the home on {} has what is not its own: {stolen}",
        host.name()
    );
    Ok(())
}

/// The account's page at the target is the account, and no more.
fn page(transit: &Host) -> Result<()> {
    let said = transit.sh(
        "curl -fsS -m 20 --resolve hostile.example:80:127.0.0.1 http://hostile.example/probe.php",
    )?;
    ensure!(said.trim() == "own", "the page on transit could do more than its own: {said}");
    Ok(())
}

/// What was turned at the target is turned at the source, and nobody went through it.
fn came_back(client: &Host) -> Result<()> {
    nothing_stolen(client)?;
    client.sh("cd /home/hostile/hostile
         test ! -L way && test -d way && test \"$(cat way/planted)\" = mine
         test \"$(readlink gone)\" = /home/neighbour")?;
    Ok(())
}

/// Erases the copy, and takes away what was made by hand.
fn leave(fleet: &Fleet<'_>, hosts: [&Host; 2], outside: &Outside) -> Result<()> {
    fleet.ferry(&["finalize", HOSTILE.name, "--erase", "--yes"])?.ok()?;
    let left = hosts[1].sh("getent passwd hostile || :; ls -d /home/hostile 2>/dev/null || :
         grep -rl hostile /etc/nginx /etc/php /etc/postfix /etc/dovecot /etc/ferry /etc/passwd /etc/group \
             /etc/shadow /var/spool/cron || :")?;
    ensure!(left.trim().is_empty(), "erasing left on transit: {left}");
    outside.expect_same(&Outside::look(hosts)?, "after the erasure")?;
    for host in hosts {
        host.sh(CLEAR)?;
    }
    Ok(())
}
