//! At the source: what the account is, and what of it could not be fenced, recorded or copied.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use ferry_files::{Approvals, Bounded, IdMap, Refusal, SourceOptions, Survey};
use ferry_host::{Layout, cron, processes, sites_fence, users};
use ferry_proto::Fault;
use ferry_proto::approval::{Approval, MAX_APPROVALS, Sight};
use ferry_proto::command::{AccountFacts, DatabaseSummary, Receipt, Severity};
use ferry_proto::ids::AccountName;
use tokio_util::sync::CancellationToken;

use super::findings::Findings;
use super::{reach, server_facts};
use crate::agent::{Agent, ENGINES, blocking, engine};
use crate::ledger::Account;
use crate::work::record::here;
use crate::work::{mail_spec, share_web, source_options, spec};

/// Refused paths that are named in a finding: no more can be approved.
const NAMED: usize = MAX_APPROVALS;

/// What of the account shall be let in although an account may not have it.
#[derive(Debug, Default)]
pub struct Asked {
    /// Paths that somebody wants to approve, as they are shown.
    pub approve: Vec<String>,
    /// What was approved when the account came here.
    pub inherited: Vec<Approval>,
}

/// At the source.
///
/// # Errors
/// If the account is unknown here, something that it names is missing, or what is to be approved cannot be.
pub async fn source(
    agent: &Arc<Agent>,
    name: &AccountName,
    peer: Option<SocketAddr>,
    asked: Asked,
) -> Result<Receipt, Fault> {
    let account = here(agent, name).await?;
    let mut findings = Findings::new(&agent.name);
    if let Some(job) = account.job() {
        findings.add(
            Severity::Blocker,
            format!("account {name} is {} by job {job}", account.kind()),
            "let that job end, or abort it",
        );
    }
    reach::peer(&mut findings, peer).await;
    let (survey, approvable) = looked_through(agent, &account, asked, &mut findings).await?;
    let Survey { stats: tree, needs, .. } = survey;
    let databases = databases(&account, &mut findings).await?;
    mail(agent, &account, &mut findings).await?;
    let server = server_facts(agent).await?;
    Ok(Receipt::Source(Box::new(AccountFacts {
        epoch: account.epoch,
        uid: account.uid,
        gid: account.gid,
        files: tree.files + tree.directories + tree.others,
        bytes: tree.bytes,
        needs,
        approvable,
        databases,
        server,
        findings: findings.into_list(),
        definition: account.definition,
    })))
}

/// The host's part of the account, and its home, with what of it can be approved.
async fn looked_through(
    agent: &Agent,
    account: &Account,
    asked: Asked,
    findings: &mut Findings,
) -> Result<(Survey, Vec<Sight>), Fault> {
    let mut seen = Findings::new(&agent.name);
    let (layout, account) = (agent.layout.clone(), account.clone());
    let (seen, tree) = blocking(move || {
        host(&layout, &account, &mut seen)?;
        let tree = home(&layout, &account, &asked, &mut seen)?;
        Ok((seen, tree))
    })
    .await?;
    findings.join(seen);
    Ok(tree)
}

/// What of the host would not move, and what the fence would refuse.
fn host(layout: &Layout, account: &Account, findings: &mut Findings) -> Result<(), Fault> {
    let (definition, user) = (&account.definition, &account.definition.user);
    findings.of_host(users::describe(layout, definition)?.findings);
    let cron = cron::describe(layout, user)?;
    findings.of_host(cron.findings);
    if cron.content.is_some() && !definition.crontab {
        findings.add(
            Severity::Warning,
            format!("user {user} has a crontab, which does not move: the definition has none"),
            "set crontab = true in the definition if it is to move",
        );
    }
    if account.closed.is_some() {
        // What a fence would change is changed: the job that did it is a finding itself.
        return Ok(());
    }
    let fence = findings.take(sites_fence::plan_fence(layout, definition));
    findings.of_host(fence.into_iter().flat_map(|plan| plan.findings));
    findings.take(users::plan_close_logins(layout, user));
    let units = findings.take(processes::unit_findings(layout, user, account.uid));
    findings.of_host(units.into_iter().flatten());
    Ok(())
}

/// What is in the home, and what of it the target would refuse.
fn home(
    layout: &Layout,
    account: &Account,
    asked: &Asked,
    findings: &mut Findings,
) -> Result<(Survey, Vec<Sight>), Fault> {
    let definition = &account.definition;
    let ids = own_ids(layout, account)?;
    let sights = approvable(&definition.home, &ids, asked)?;
    let approved = Arc::new(Approvals::of(&sights)?);
    let options = SourceOptions { approved, ..source_options(layout, account.uid)? };
    let survey = ferry_files::survey(&definition.home, &options, &ids, &CancellationToken::new())?;
    let tree = &survey.stats;
    if let Some(message) = refusal(&survey.refused, &definition.home) {
        findings.add(
            Severity::Blocker,
            message,
            format!(
                "give these paths to {} (chown -h), take the bits or attributes away, unmount or \
                 move away what is mounted there, or remove them; or approve them, each as it is shown: \
                 --approve PATH",
                definition.user
            ),
        );
    } else if tree.skipped > 0 {
        findings.add(
            Severity::Blocker,
            format!(
                "{} directories below {} cannot be read or are too deep",
                tree.skipped,
                definition.home.display()
            ),
            "move what they hold yourself, and remove them",
        );
    }
    Ok((survey, sights))
}

/// What is seen where somebody wants to approve it, and where it was approved before and has not changed.
fn approvable(home: &Path, ids: &IdMap, asked: &Asked) -> Result<Vec<Sight>, Fault> {
    let cancel = CancellationToken::new();
    let mut sights = ferry_files::approve(home, &asked.approve, ids, &cancel)?;
    let before = asked.inherited.iter().map(|approval| &approval.what);
    let anew = |what: &&Sight| !sights.iter().any(|sight| sight.path == what.path);
    let still = ferry_files::as_approved(home, before.filter(anew), ids, &cancel)?;
    sights.extend(still);
    Ok(sights)
}

/// The ids that a target would let through, as they are here.
fn own_ids(layout: &Layout, account: &Account) -> Result<IdMap, Fault> {
    let mut ids = IdMap::of((account.uid, account.uid), (account.gid, account.gid));
    for group in users::describe(layout, &account.definition)?.groups {
        ids.gids.insert(group.gid, group.gid);
        ids.shared_gids.insert(group.gid);
    }
    if let Some(web) = users::web_ids(layout)? {
        share_web(&mut ids, web, web);
    }
    Ok(ids)
}

fn refusal(refused: &Bounded<Refusal>, home: &Path) -> Option<String> {
    if refused.is_empty() {
        return None;
    }
    let named: Vec<String> =
        refused.items.iter().take(NAMED).map(|r| format!("{}: {}", r.path, r.reason)).collect();
    let more = if refused.total > named.len() as u64 { "; ..." } else { "" };
    let paths = if refused.total == 1 { "path" } else { "paths" };
    Some(format!(
        "{} {paths} below {} cannot go to another server: {}{more}",
        refused.total,
        home.display(),
        named.join("; ")
    ))
}

async fn databases(
    account: &Account,
    findings: &mut Findings,
) -> Result<Vec<DatabaseSummary>, Fault> {
    let mut summaries = Vec::new();
    for kind in ENGINES {
        let spec = spec(account, kind);
        if spec.is_empty() {
            continue;
        }
        let facts = engine(kind).inspect(&spec).await?;
        findings.of_engine(kind, facts.findings);
        if account.closed.is_none() {
            findings.take(engine(kind).plan_fence(&spec).await);
        }
        for database in facts.databases {
            summaries.push(DatabaseSummary {
                engine: kind,
                name: database.name.to_string(),
                bytes: database.size_bytes,
                tables: database.tables,
                mode: "dump".to_owned(),
                mode_reason: "this version copies by dump and load".to_owned(),
            });
        }
    }
    Ok(summaries)
}

async fn mail(agent: &Agent, account: &Account, findings: &mut Findings) -> Result<(), Fault> {
    let spec = mail_spec(&account.definition, account.uid, account.gid)?;
    let seen = findings.take(agent.mail.inspect(&spec).await);
    findings.of_mail(seen.into_iter().flat_map(|seen| seen.findings));
    let record = findings.take(agent.mail.record(&spec).await);
    findings.of_mail(record.into_iter().flat_map(|(_, found)| found));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, lchown};

    use ferry_proto::approval::Ids;
    use ferry_proto::command::Finding;

    use super::*;

    const UID: u32 = 4321;

    /// A host with the account shop, whose home holds a page.
    fn account() -> (tempfile::TempDir, Layout, Account) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::below(directory.path());
        for path in ["/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron/atjobs"] {
            fs::create_dir_all(layout.path(path)).unwrap();
        }
        let home = layout.path("/home/shop");
        fs::create_dir_all(&home).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\nwww-data:x:33:33::/:/bin/false\n\
                      shop:x:4321:4321::/home/shop:/bin/sh\n";
        fs::write(layout.path("/etc/passwd"), passwd).unwrap();
        let group = "root:x:0:\nwww-data:x:33:\nshop:x:4321:\nextra:x:4400:shop\n";
        fs::write(layout.path("/etc/group"), group).unwrap();
        fs::write(layout.path("/etc/shadow"), "shop:*:19000:0:99999:7:::\n").unwrap();
        let account = serde_json::from_value(serde_json::json!({
            "definition": {"name": "shop", "user": "shop", "home": home},
            "epoch": 0, "uid": UID, "gid": UID, "standing": {"is": "serving"},
            "made": null, "closed": null,
        }))
        .unwrap();
        lchown(layout.path("/home/shop"), Some(UID), Some(UID)).unwrap();
        put(&layout, "index.html", UID, UID, 0o644);
        (directory, layout, account)
    }

    fn put(layout: &Layout, name: &str, uid: u32, gid: u32, mode: u32) {
        let path = layout.path("/home/shop").join(name);
        fs::write(&path, name).unwrap();
        lchown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn found(layout: &Layout, account: &Account) -> Vec<Finding> {
        found_where(layout, account, Asked::default()).unwrap().0
    }

    fn found_where(
        layout: &Layout,
        account: &Account,
        asked: Asked,
    ) -> Result<(Vec<Finding>, Vec<Sight>), Fault> {
        let mut findings = Findings::new(&"client".parse().unwrap());
        host(layout, account, &mut findings).unwrap();
        let (_, sights) = home(layout, account, &asked, &mut findings)?;
        Ok((findings.into_list(), sights))
    }

    #[test]
    fn an_ordinary_account_with_files_of_the_web_server_has_no_blocker() {
        let (_keep, layout, account) = account();
        put(&layout, "cache", 33, 33, 0o644);
        put(&layout, "upload", UID, 33, 0o664);
        let found = found(&layout, &account);
        assert!(found.iter().all(|f| f.severity != Severity::Blocker), "{found:?}");
        // The group that the definition does not name is told.
        assert!(found.iter().any(|f| f.message.contains("group extra")), "{found:?}");
    }

    #[test]
    fn what_the_target_refuses_is_counted_and_named_before_anybody_says_yes() {
        let (_keep, layout, account) = account();
        for number in 0..=NAMED {
            put(&layout, &format!("root{number}"), 0, 0, 0o644);
        }
        put(&layout, "web-setuid", 33, UID, 0o4755);
        let found = found(&layout, &account);
        let finding = found.iter().find(|f| f.severity == Severity::Blocker).unwrap();
        let count = format!("{} paths below ", NAMED + 2);
        assert!(finding.message.starts_with(&count), "{finding:?}");
        assert_eq!(finding.message.matches(": its owner 0").count(), NAMED, "{finding:?}");
        assert!(finding.message.ends_with("; ..."), "{finding:?}");
        assert!(finding.remedy.contains("chown"), "{finding:?}");
    }

    #[test]
    fn what_is_approved_blocks_no_more_and_what_cannot_be_is_told() {
        let (_keep, layout, account) = account();
        put(&layout, "root-setuid", 0, 0, 0o4755);
        put(&layout, "other", 0, 0, 0o644);
        let approve = |paths: &[&str]| {
            let approve = paths.iter().map(|path| (*path).to_owned()).collect();
            found_where(&layout, &account, Asked { approve, ..Asked::default() })
        };
        let (list, sights) = approve(&["root-setuid"]).unwrap();
        let finding = list.iter().find(|f| f.severity == Severity::Blocker).unwrap();
        assert!(finding.message.starts_with("1 path below "), "{finding:?}");
        assert!(finding.message.contains("other: its owner 0"), "{finding:?}");
        assert!(sights[0].to_string().contains("setuid to user 0"), "{sights:?}");
        let (list, _) = approve(&["root-setuid", "other"]).unwrap();
        assert!(list.iter().all(|f| f.severity != Severity::Blocker), "{list:?}");
        let fault = approve(&["gone", "index.html", "other"]).unwrap_err();
        assert_eq!(fault.causes.len(), 2, "{fault}");
        assert!(fault.to_string().contains("gone: it is not there"), "{fault}");
        assert!(fault.to_string().contains("index.html: it is not refused"), "{fault}");
    }

    #[test]
    fn what_was_approved_before_is_as_long_as_it_has_not_changed() {
        let (_keep, layout, account) = account();
        put(&layout, "tool", 0, 0, 0o4755);
        let approve = Asked { approve: vec!["tool".to_owned()], ..Asked::default() };
        let (_, sights) = found_where(&layout, &account, approve).unwrap();
        let by = "an operator".to_owned();
        let inherited = vec![Approval {
            what: sights[0].clone(),
            ids: Ids { uid: UID, gid: UID },
            by,
            at_unix_ms: 7,
        }];
        let again = || {
            let asked = Asked { inherited: inherited.clone(), ..Asked::default() };
            found_where(&layout, &account, asked).unwrap()
        };
        assert_eq!(again().1, sights);
        fs::write(layout.path("/home/shop/tool"), "another").unwrap();
        put(&layout, "tool", 0, 0, 0o4755);
        assert_eq!(again().1, sights, "it is the same again");
        fs::write(layout.path("/home/shop/tool"), "another").unwrap();
        let (list, sights) = again();
        assert!(sights.is_empty(), "{sights:?}");
        assert!(list.iter().any(|f| f.severity == Severity::Blocker), "{list:?}");
    }

    #[test]
    fn jobs_of_the_system_and_a_crontab_that_does_not_move_are_told() {
        let (_keep, layout, mut account) = account();
        fs::write(layout.path("/etc/cron.d/shop"), "5 4 * * * shop /home/shop/run\n").unwrap();
        fs::write(layout.path("/var/spool/cron/crontabs/shop"), "* * * * * true\n").unwrap();
        fs::write(layout.path("/var/spool/cron/atjobs/a1"), "true").unwrap();
        lchown(layout.path("/var/spool/cron/atjobs/a1"), Some(UID), Some(UID)).unwrap();
        account.definition.crontab = false;
        let list = found(&layout, &account);
        for text in ["cron.d/shop has a job", "1 at jobs", "has a crontab"] {
            let finding = list.iter().find(|f| f.message.contains(text));
            assert_eq!(finding.map(|f| f.severity), Some(Severity::Warning), "{text}: {list:?}");
        }
        account.definition.crontab = true;
        let list = found(&layout, &account);
        assert!(!list.iter().any(|f| f.message.contains("has a crontab")), "{list:?}");
    }

    #[test]
    fn a_site_that_could_not_be_fenced_blocks() {
        let (_keep, layout, mut account) = account();
        account.definition.sites = serde_json::from_value(serde_json::json!([
            {"name": "main", "domains": ["shop.example"], "root": "www",
             "config": ["/etc/apache2/sites-enabled/shop.conf"]},
        ]))
        .unwrap();
        let list = found(&layout, &account);
        let finding = list.iter().find(|f| f.severity == Severity::Blocker);
        assert!(finding.is_some_and(|f| f.message.contains("apache2")), "{list:?}");
    }
}
