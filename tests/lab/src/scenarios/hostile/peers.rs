//! Stolen keys: agents' own certificates, used past Ferry at the moment when the target is open for a peer. What
//! no grant names is refused; what one names is admitted, or the others would show nothing.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_lc_rs::signature::Ed25519KeyPair;
use ferry_proto::channel::unix_now;
use ferry_proto::grant::{Grant, SignedGrant};
use ferry_proto::view::JobView;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::progress::say;
use crate::run;

/// Where agents listen for each other.
const PORT: u16 = 7401;
const LIMIT: Duration = Duration::from_secs(30);
/// Another job's number.
const OTHER_JOB: &str = "00000000-0000-4000-8000-000000000000";

/// A move under way, and the controller's own key for grants.
pub(super) struct Keys<'a> {
    fleet: &'a Fleet<'a>,
    grant: Value,
    key: Ed25519KeyPair,
}

/// Whose key is used, and at whose door.
type Way = [&'static str; 2];
const PUSH: Way = ["client", "transit"];
const PULL: Way = ["transit", "client"];
const STRANGER: Way = ["old", "transit"];
const STRANGER_PULL: Way = ["old", "client"];

impl<'a> Keys<'a> {
    /// For the job that is under way from epoch `epoch`.
    pub(super) fn of(fleet: &'a Fleet<'a>, job: &JobView, epoch: u64) -> Result<Keys<'a>> {
        let path = fleet.controller().rootfs().join("var/lib/ferry-controller/ca/grant.key");
        let pem = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).context("the grant key is no PEM")?;
        let key = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der())
            .ok()
            .context("the grant key is no key")?;
        let grant = json!({
            "id": OTHER_JOB, "job": job.job, "account": job.account, "direction": job.direction,
            "source": job.source, "target": job.target, "epoch": epoch,
            "not_before": unix_now() - 60, "expires": unix_now() + 600,
            "controller_generation": u32::MAX,
        });
        Ok(Keys { fleet, grant, key })
    }

    /// The move's grant but for `change`, signed as the controller would.
    fn grant(&self, change: &Value) -> Result<SignedGrant> {
        let mut grant = self.grant.clone();
        for (key, value) in change.as_object().into_iter().flatten() {
            grant[key] = value.clone();
        }
        let grant: Grant = serde_json::from_value(grant).context("no such grant")?;
        Ok(grant.sign(&self.key)?)
    }

    /// Tries everything while the copy on transit is being received.
    pub(super) fn try_all(&self) -> Result<()> {
        self.wrong_grants()?;
        self.good_grant_for_more()?;
        // Else everything may have been refused for another reason.
        let compare = json!({"do": "compare_files", "partial": false, "streams": 1});
        let answer = self.ask(PUSH, &self.grant(&json!({}))?, &compare, 1)?;
        ensure!(answer.get("Ok").is_some(), "what the grant names is refused too: {answer}");
        Ok(())
    }

    /// Grants that are not for this, by those whom they name.
    fn wrong_grants(&self) -> Result<()> {
        let files = json!({"do": "files", "allow_emptied": false, "calm": false, "streams": 1});
        let record = json!({"do": "record"});
        let mut forged = self.grant(&json!({}))?;
        forged.signature.reverse();
        let answer = self.say(PUSH, &json!({"by": "nobody"}), 1)?;
        refused("a request that there is not", &answer, "cannot be read")?;
        let answer = self.ask(PUSH, &forged, &files, 1)?;
        refused("a grant that nobody signed", &answer, "not signed by")?;
        let expired = json!({"expires": unix_now() - 1});
        let none = json!({});
        for (what, way, change, operation, word) in [
            (
                "a grant of another job",
                PUSH,
                json!({"job": OTHER_JOB}),
                &files,
                "the grant is for job",
            ),
            ("a grant of another epoch", PUSH, json!({"epoch": 7}), &files, "at epoch 7"),
            (
                "a neighbour's account",
                PUSH,
                json!({"account": "neighbour"}),
                &files,
                "is in no move",
            ),
            ("an expired grant", PUSH, expired.clone(), &files, "expired"),
            (
                "an old controller's",
                PUSH,
                json!({"controller_generation": 0}),
                &files,
                "generation 0",
            ),
            ("reading the copy", PUSH, none.clone(), &record, "goes the other way"),
            ("reading under an expired grant", PULL, expired, &record, "expired"),
            ("a stranger's push", STRANGER, none.clone(), &files, "not for transit and old"),
            ("a stranger's pull", STRANGER_PULL, none, &record, "not for client and old"),
        ] {
            let answer = self.ask(way, &self.grant(&change)?, operation, 1)?;
            refused(what, &answer, word)?;
        }
        Ok(())
    }

    /// The very grant of the move, for what is not the account's.
    fn good_grant_for_more(&self) -> Result<()> {
        let grant = self.grant(&json!({}))?;
        for engine in ["mariadb", "postgresql"] {
            for operation in ["load", "manifest"] {
                let what = format!("{operation} of a neighbour's {engine} database");
                let operation = json!({"do": operation, "engine": engine, "database": "neighbour"});
                refused(&what, &self.ask(PUSH, &grant, &operation, 2)?, "database neighbour")?;
            }
        }
        let commit = json!({"do": "open", "commit": {
            "job": OTHER_JOB, "account": self.grant["account"], "source": "client", "target": "transit",
            "epoch": 1, "fenced_at_unix": 1, "committed_at_unix_ms": 1,
        }});
        refused(
            "a commit of another job",
            &self.ask(PUSH, &grant, &commit, 1)?,
            "the grant is for job",
        )
    }

    /// The last of so many answers, or the refusal.
    fn ask(&self, way: Way, grant: &SignedGrant, operation: &Value, answers: u32) -> Result<Value> {
        let request = json!({"by": "grant", "grant": grant, "operation": operation});
        self.say(way, &request, answers)
    }

    fn say(&self, way: Way, request: &Value, answers: u32) -> Result<Value> {
        let mut command = self.command(way, answers)?;
        let said = run::capture(&mut command, request.to_string().as_bytes(), LIMIT)?.ok();
        let said = said.with_context(|| format!("{way:?}: {request}"))?;
        serde_json::from_str(&said).with_context(|| format!("{request}: {said}"))
    }

    /// Ourselves, on the lab's network, with that server's key.
    fn command(&self, [thief, at]: Way, answers: u32) -> Result<Command> {
        let lab = self.fleet.lab();
        let address = lab.host(at)?.spec().address;
        let mut command = lab.netns_command(&format!("/proc/{}/exe", std::process::id()));
        command.args(["stranger", "--server", at, "--address", &format!("{address}:{PORT}")]);
        command.args(["--answers", &answers.to_string(), "--identity"]);
        command.arg(lab.host(thief)?.rootfs().join("var/lib/ferry/identity"));
        Ok(command)
    }
}

fn refused(what: &str, answer: &Value, word: &str) -> Result<()> {
    let message = answer["Err"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains(word), "{what} is not refused by {word:?}: {answer}");
    say(format!("refused as it should be: {what}"));
    Ok(())
}
