//! At the target: what making the account here would refuse, asked of the same plans that provisioning
//! makes, with the source's own record of it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use ferry_databases::{Availability, Existing};
use ferry_host::{Layout, facts, sites, users};
use ferry_proto::Fault;
use ferry_proto::account::EngineKind;
use ferry_proto::command::{AccountFacts, Receipt, Room, Severity, TargetFacts, TreeNeeds};
use ferry_proto::grant::SignedGrant;

use super::findings::Findings;
use super::{reach, room, server_facts};
use crate::agent::{Agent, ENGINES, blocking, engine};
use crate::ledger::{Account, SourceRecord, Standing};
use crate::peer::Peer;
use crate::work::{mail_spec, provision};

/// At the target, which asks the source for its record under `grant`.
///
/// # Errors
/// If this host does not say what it is.
pub async fn target(
    agent: &Arc<Agent>,
    source: &AccountFacts,
    peer: Option<SocketAddr>,
    grant: Option<&SignedGrant>,
) -> Result<Receipt, Fault> {
    let mut findings = Findings::new(&agent.name);
    let known = agent.account(&source.definition.name);
    let lived_here = known.is_some();
    standing(known.as_ref(), &mut findings);
    if let Some(known) = &known {
        findings.take(provision::check_definition(agent, known, &source.definition));
    }
    let reached = reach::peer(&mut findings, peer).await;
    let record = match (reached, peer) {
        (true, Some(peer)) => findings.take(record(agent, peer, grant).await),
        _ => None,
    };
    let definition = known.map_or_else(|| source.definition.clone(), |known| known.definition);
    let mut ids = (source.uid, source.gid);
    if let Some(record) = &record {
        let (layout, from) = (agent.layout.clone(), record.clone());
        let seen = Findings::new(&agent.name);
        let (seen, planned) = blocking(move || Ok(host(&layout, &from, lived_here, seen))).await?;
        findings.join(seen);
        ids = planned.unwrap_or(ids);
        findings.of_mail(findings_of_mail(agent, record).await?);
    }
    let mail = mail_spec(&definition, ids.0, ids.1)?;
    let seen = findings.take(agent.mail.inspect(&mail).await);
    findings.of_mail(seen.into_iter().flat_map(|seen| seen.findings));
    holding(&definition.home, &source.needs, &mut findings).await?;
    let mut rooms: Vec<Room> =
        findings.take(room::home(&definition.home, lived_here).await).into_iter().collect();
    for kind in ENGINES {
        let spec = ferry_databases::Spec::of(&definition, kind, ids.0, ids.1);
        if !spec.is_empty() {
            rooms.extend(databases(kind, &spec, record.as_ref(), lived_here, &mut findings).await);
        }
    }
    Ok(Receipt::Target(Box::new(TargetFacts {
        uid: ids.0,
        gid: ids.1,
        rooms,
        findings: findings.into_list(),
        server: server_facts(agent).await?,
    })))
}

/// What of the account's files the file system of the home cannot hold.
async fn holding(home: &Path, needs: &TreeNeeds, findings: &mut Findings) -> Result<(), Fault> {
    let (home, needs) = (home.to_owned(), needs.clone());
    let tried = blocking(move || {
        let place = facts::nearest(&home).to_owned();
        let lacks = ferry_files::cannot_hold(&place, &needs);
        Ok((place.display().to_string(), lacks))
    });
    let (place, lacks) = tried.await?;
    match findings.take(lacks) {
        Some(Some(lacks)) => lacks.into_iter().for_each(|lack| {
            findings.add(
                Severity::Blocker,
                format!("the file system of {place}: {lack}"),
                "mount the homes of the target from a file system like the source's, or change those paths",
            );
        }),
        Some(None) => findings.add(
            Severity::Note,
            format!("whether the file system of {place} can hold all that the files have could not be tried"),
            "",
        ),
        None => {}
    }
    Ok(())
}

/// Whether another move has the account here.
fn standing(known: Option<&Account>, findings: &mut Findings) {
    let Some(known) = known else { return };
    if !matches!(known.standing, Standing::Moved { .. } | Standing::Finalized { .. }) {
        findings.add(
            Severity::Blocker,
            format!("account {} is {} here already", known.definition.name, known.kind()),
            "let the job that has it end",
        );
    }
    if known.may_hold_unique() {
        findings.add(
            Severity::Warning,
            format!(
                "account {} was served here while it was opened by force elsewhere: what was written here then is \
                 overwritten",
                known.definition.name
            ),
            format!(
                "save it first: find {} -newerct @{}, and compare the databases",
                known.definition.home.display(),
                known.served_again_unix_ms.unwrap_or_default().div_euclid(1000)
            ),
        );
    }
}

/// What the source says of the account, apart from content. Kept nowhere.
async fn record(
    agent: &Arc<Agent>,
    peer: SocketAddr,
    grant: Option<&SignedGrant>,
) -> Result<SourceRecord, Fault> {
    let signed = grant.ok_or_else(|| {
        Fault::precondition("the controller lets this agent not ask the source")
            .remedy("bring the controller to the agents' version")
    })?;
    let grant = signed.verify_signature(&agent.grant_key)?;
    let record = Peer::new(agent, &grant.source, peer, signed).record().await?;
    if record.definition.name != grant.account {
        return Err(Fault::permanent("the source answered with another account"));
    }
    record.definition.check().map_err(|e| {
        Fault::permanent("the source's definition of the account is not valid").caused_by(&e)
    })?;
    Ok(record)
}

/// Plans the account's user and sites as provisioning does; the ids that it would get.
fn host(
    layout: &Layout,
    record: &SourceRecord,
    lived_here: bool,
    mut findings: Findings,
) -> (Findings, Option<(u32, u32)>) {
    let existing = if lived_here { users::Existing::Keep } else { users::Existing::Refuse };
    let policy = users::Policy::default();
    let user = users::plan_provision(layout, &record.definition, &record.user, existing, &policy);
    let user = findings.take(user);
    let ids = user.as_ref().map(|plan| (plan.ids.uid, plan.ids.gid));
    findings.of_host(user.into_iter().flat_map(|plan| plan.findings));
    if !lived_here {
        // An account that was here before gets its own configuration back.
        let sites = findings.take(sites::plan(layout, &record.definition));
        findings.of_host(sites.into_iter().flat_map(|plan| plan.findings));
    }
    (findings, ids)
}

async fn findings_of_mail(
    agent: &Agent,
    record: &SourceRecord,
) -> Result<Vec<ferry_traffic::mail::Finding>, Fault> {
    if record.definition.mail.is_empty() {
        return Ok(Vec::new());
    }
    agent.mail.check_record(&record.mail).await
}

/// What stands in the way of the databases of one engine; the room for them, if the server runs.
async fn databases(
    kind: EngineKind,
    spec: &ferry_databases::Spec,
    record: Option<&SourceRecord>,
    lived_here: bool,
    findings: &mut Findings,
) -> Option<Room> {
    let server = match engine(kind).available().await {
        Availability::Running(server) => server,
        Availability::Absent => {
            findings.add(
                Severity::Blocker,
                format!("{kind} is not installed here"),
                format!("install {kind} on the target"),
            );
            return None;
        }
        Availability::Down(fault) => {
            findings.block(&fault);
            return None;
        }
    };
    let said = record.and_then(|r| r.databases.iter().find(|(k, _)| *k == kind));
    if let Some((_, said)) = said {
        let existing = if lived_here { Existing::Replace } else { Existing::Refuse };
        let found = findings.take(engine(kind).check_target(spec, said, existing).await);
        findings.of_engine(kind, found.into_iter().flatten());
    }
    findings.take(room::databases(kind, &server.data_dir, spec, lived_here).await)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ferry_proto::command::Finding;

    use super::*;

    fn record(change: impl FnOnce(&mut serde_json::Value)) -> SourceRecord {
        let mut value = serde_json::json!({
            "definition": {"name": "shop", "user": "shop", "home": "/home/shop",
                           "groups": ["adm"]},
            "user": {"name": "shop", "uid": 4321, "group": {"name": "shop", "gid": 4321},
                     "gecos": "", "shell": "/bin/sh", "home": "/home/shop", "password_hash": "!",
                     "aging": {}, "groups": [], "web_group_member": false, "findings": []},
            "cron": {"user": "shop", "content": null, "findings": []},
            "databases": [], "mail": serde_json::to_value(
                ferry_traffic::mail::MailRecord::default()).unwrap(),
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    fn found(record: &SourceRecord, lived_here: bool) -> (Vec<Finding>, Option<(u32, u32)>) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::below(directory.path());
        fs::create_dir_all(layout.path("/etc")).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\nother:x:4321:4321::/home/other:/bin/sh\n";
        fs::write(layout.path("/etc/passwd"), passwd).unwrap();
        fs::write(layout.path("/etc/group"), "root:x:0:\nadm:x:4:\nother:x:4321:\n").unwrap();
        fs::write(layout.path("/etc/shadow"), "").unwrap();
        fs::write(layout.path("/etc/shells"), "/bin/sh\n").unwrap();
        let findings = Findings::new(&"transit".parse().unwrap());
        let (findings, ids) = host(&layout, record, lived_here, findings);
        (findings.into_list(), ids)
    }

    #[test]
    fn ids_that_are_taken_are_mapped_and_told_as_a_note() {
        let (list, ids) = found(&record(|_| ()), false);
        assert!(ids.is_some_and(|(uid, _)| uid != 4321), "{ids:?}");
        assert!(list.iter().all(|f| f.severity == Severity::Note), "{list:?}");
        assert!(list.iter().any(|f| f.message.contains("instead of 4321:4321")), "{list:?}");
    }

    #[test]
    fn a_shell_or_a_group_that_provisioning_refuses_blocks_before_anybody_says_yes() {
        let shell = record(|r| r["user"]["shell"] = "/usr/bin/fish".into());
        let group =
            record(|r| r["user"]["groups"] = serde_json::json!([{"name": "adm", "gid": 4}]));
        for (record, text) in [(shell, "/usr/bin/fish"), (group, "adm")] {
            let (list, _) = found(&record, false);
            let finding = list.iter().find(|f| f.severity == Severity::Blocker);
            assert!(finding.is_some_and(|f| f.message.contains(text)), "{text}: {list:?}");
            assert!(finding.is_some_and(|f| !f.remedy.is_empty()), "{list:?}");
        }
    }

    #[test]
    fn sites_need_a_web_server_unless_the_account_lived_here() {
        let record = record(|r| {
            r["definition"]["sites"] = serde_json::json!([
                {"name": "main", "domains": ["shop.example"], "root": "www"}]);
        });
        let blocked = |lived_here| {
            let (list, _) = found(&record, lived_here);
            list.iter().any(|f| f.severity == Severity::Blocker && f.message.contains("nginx"))
        };
        assert!(blocked(false));
        assert!(!blocked(true));
    }
}
