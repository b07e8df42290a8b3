//! Asking the kernel through `nft` and `ip`: what stands, and the changes. It owns the running of
//! the two programs; it must not know what is redirected.

use std::process::Stdio;
use std::time::Duration;

use ferry_failpoints::around_async;
use ferry_proto::Fault;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::TABLE;

/// Marks connections that the redirector opened with a visitor's address.
pub(super) const MARK: u32 = 0x000f_e77e;

/// The routing table that turns their answers back to this server.
const ROUTING_TABLE: &str = "7480";

/// `nft` and `ip` answer within milliseconds; beyond this something is broken.
const PROGRAM_WITHIN: Duration = Duration::from_secs(20);

/// An address family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    /// The option of `ip`.
    option: &'static str,
    /// Every address.
    all: &'static str,
}

impl Family {
    /// The arguments that put the route to this server itself, or take it away.
    fn route<'a>(&self, act: &'a str) -> [&'a str; 9] {
        [self.option, "route", act, "local", self.all, "dev", "lo", "table", ROUTING_TABLE]
    }
}

/// The families in use: IPv6 may be compiled out, or switched off.
pub(super) fn families() -> impl Iterator<Item = Family> {
    let off = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        .map_or(true, |text| text.trim() != "0");
    let v4 = Family { option: "-4", all: "0.0.0.0/0" };
    let v6 = Family { option: "-6", all: "::/0" };
    std::iter::once(v4).chain((!off).then_some(v6))
}

/// One rule of the table, as far as it can be told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandingRule {
    /// Its chain.
    pub chain: String,
    /// Its comment; redirecting rules have one.
    pub comment: String,
}

/// The rules that stand in the table; none if there is no table.
///
/// # Errors
/// `nft` failed or gave something that is not its JSON.
pub async fn list() -> Result<Vec<StandingRule>, Fault> {
    if !table_stands().await? {
        return Ok(Vec::new());
    }
    let text = match run("nft", &["-j", "list", "table", "inet", TABLE], "").await {
        Ok(text) => text,
        // It may have gone between the two.
        Err(_) if !table_stands().await? => return Ok(Vec::new()),
        Err(fault) => return Err(fault),
    };
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(objects(&text)?
        .iter()
        .filter_map(|object| object.get("rule"))
        .map(|rule| StandingRule { chain: word(&rule["chain"]), comment: word(&rule["comment"]) })
        .collect())
}

pub(super) async fn table_stands() -> Result<bool, Fault> {
    let tables = run("nft", &["-j", "list", "tables"], "").await?;
    let ours = |object: &serde_json::Value| {
        object["table"]["family"] == "inet" && object["table"]["name"] == TABLE
    };
    Ok(objects(&tables)?.iter().any(ours))
}

/// Puts the route and the rule in place.
pub(super) async fn add_routing(family: Family) -> Result<(), Fault> {
    change("firewall.route.replace", "ip", &family.route("replace"), "").await?;
    if !has_rule(family).await? {
        let mark = format!("{MARK:#x}");
        let add = [family.option, "rule", "add", "fwmark", &mark, "lookup", ROUTING_TABLE];
        change("firewall.rule.add", "ip", &add, "").await?;
    }
    Ok(())
}

/// Takes the route and the rule away, if they stand.
pub(super) async fn remove_routing(family: Family) -> Result<(), Fault> {
    let mark = format!("{MARK:#x}");
    // A crash between looking and adding may have left two; more cannot be.
    for _ in 0..4 {
        if !has_rule(family).await? {
            break;
        }
        let delete = [family.option, "rule", "del", "fwmark", &mark, "lookup", ROUTING_TABLE];
        change("firewall.rule.del", "ip", &delete, "").await?;
    }
    // Put there first, it is there to be deleted.
    for (name, act) in [("firewall.route.replace", "replace"), ("firewall.route.del", "del")] {
        change(name, "ip", &family.route(act), "").await?;
    }
    Ok(())
}

/// Whether the rule stands.
pub(super) async fn has_rule(family: Family) -> Result<bool, Fault> {
    let rules = run("ip", &[family.option, "rule", "show"], "").await?;
    let mark = format!("fwmark {MARK:#x} ");
    let lookup = format!("lookup {ROUTING_TABLE}");
    Ok(rules.lines().any(|line| line.contains(&mark) && line.trim_end().ends_with(&lookup)))
}

/// What stands of the rule and the route, in the words of `ip`.
pub(super) async fn has_routing(family: Family) -> Result<Vec<String>, Fault> {
    let option = family.option;
    let mut found = Vec::new();
    if has_rule(family).await? {
        found.push(format!("ip {option} rule fwmark {MARK:#x} lookup {ROUTING_TABLE}"));
    }
    let route = match run("ip", &[option, "route", "show", "table", ROUTING_TABLE], "").await {
        Ok(text) => text,
        // A routing table that never had a route is none.
        Err(fault) if fault.causes.iter().any(|c| c.contains("does not exist")) => String::new(),
        Err(fault) => return Err(fault),
    };
    if !route.trim().is_empty() {
        found.push(format!("ip {option} route table {ROUTING_TABLE}"));
    }
    Ok(found)
}

/// Runs a script as one transaction.
pub(super) async fn nft(script: &str) -> Result<(), Fault> {
    change("firewall.nft", "nft", &["-f", "-"], script).await
}

fn objects(text: &str) -> Result<Vec<serde_json::Value>, Fault> {
    let mut value: serde_json::Value = serde_json::from_str(text)
        .map_err(|e| Fault::permanent("nft gave a listing that is not JSON").caused_by(&e))?;
    match value["nftables"].take() {
        serde_json::Value::Array(objects) => Ok(objects),
        _ => Err(Fault::permanent("nft gave a listing without the list \"nftables\"")),
    }
}

/// Runs a program that changes something; fault tests know the change by `name`.
async fn change(name: &str, program: &str, arguments: &[&str], input: &str) -> Result<(), Fault> {
    let failed = |e| Fault::io(format!("`{program}` could not be run"), &e);
    around_async(|| name.to_owned(), failed, run(program, arguments, input)).await.map(drop)
}

/// Runs a program with `input`, and returns what it printed.
async fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, Fault> {
    let what = format!("`{program} {}`", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| {
            Fault::precondition(format!("{what} cannot be started"))
                .caused_by(&e)
                .remedy("install the packages nftables and iproute2")
        })?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PROGRAM_WITHIN, work)
        .await
        .map_err(|_| {
            Fault::transient(format!("{what} did not end within {} s", PROGRAM_WITHIN.as_secs()))
        })?
        .map_err(|e| Fault::io(format!("{what} could not be run"), &e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).chars().take(500).collect();
    let mut fault = Fault::permanent(format!("{what} failed with {}", output.status))
        .remedy("look at the rules with `nft list ruleset`");
    fault.causes.push(said.trim().to_owned());
    Err(fault)
}
