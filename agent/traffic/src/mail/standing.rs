//! Where the mail of an account stands on this server, and which act leads from where to where.
//! Pure: no files, no services. The same table is used for a first call, for a repetition and after
//! a crash.

use std::net::IpAddr;

use ferry_proto::Fault;
use serde::{Deserialize, Serialize};

use super::record::MailRecord;
use super::spec::MailSpec;

/// What Ferry has decided for the mail of one account on this server. No standing at all: Ferry
/// does nothing with it, and the provider's own configuration serves it, if anything does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    /// The account's mail.
    pub spec: MailSpec,
    /// Whose configuration serves the mailboxes.
    pub basis: Basis,
    /// What is let through.
    pub gate: Gate,
    /// Whether it is a fence that was seen to stand, and of which nothing was found missing since. Not told
    /// if not so: a text that becomes shorter can be kept on a full disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unbroken: bool,
}

impl Standing {
    /// Whether it is anything but the provider's own configuration serving on its own.
    pub fn needs_tables(&self) -> bool {
        self.gate != Gate::Open || matches!(self.basis, Basis::Ferry(_))
    }
}

/// Whose configuration serves the mailboxes when the gate is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Basis {
    /// The provider's own, which Ferry leaves as it is.
    Provider,
    /// Ferry's, with the passwords brought from the source.
    Ferry(MailRecord),
}

/// What is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Gate {
    /// Prepared: logins are refused, and Postfix does not claim the domain yet, so that mail sent
    /// from this server still finds the server that serves the account.
    Closed,
    /// Served here.
    Open,
    /// Reception is deferred, delivery stopped, logins refused.
    Fenced,
    /// Mail is accepted and passed on to the server that serves the account; logins are refused.
    PassedOn {
        /// That server.
        next_hop: IpAddr,
    },
}

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// Fence it.
    Fence,
    /// Undo a fence.
    Unfence,
    /// Prepare it, closed.
    Provision(MailRecord),
    /// Serve it here.
    Open(MailRecord),
    /// Undo preparing and serving.
    Close,
    /// Pass it on.
    PassOn(IpAddr),
    /// Back to what it was before it was passed on or fenced.
    Release,
}

/// The state of the mail of an account on a server, as it is told to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MailState {
    /// Ferry does nothing with it here.
    Local,
    /// Prepared but closed.
    Provisioned,
    /// Served here: opened by Ferry, with its own configuration or the provider's.
    Open,
    /// Fenced.
    Fenced,
    /// Passed on.
    PassedOn {
        /// The server that it is passed on to.
        next_hop: IpAddr,
    },
}

impl MailState {
    pub(super) fn of(standing: Option<&Standing>) -> Self {
        match standing.map(|s| s.gate) {
            None => Self::Local,
            Some(Gate::Closed) => Self::Provisioned,
            Some(Gate::Open) => Self::Open,
            Some(Gate::Fenced) => Self::Fenced,
            Some(Gate::PassedOn { next_hop }) => Self::PassedOn { next_hop },
        }
    }
}

impl std::fmt::Display for MailState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Provisioned => f.write_str("provisioned"),
            Self::Open => f.write_str("open"),
            Self::Fenced => f.write_str("fenced"),
            Self::PassedOn { next_hop } => write!(f, "passed on to {next_hop}"),
        }
    }
}

/// Where `act` leads from `now`.
///
/// # Errors
/// Precondition, when the act would open what another server serves, or fence what is not served
/// here.
pub(super) fn next(
    now: Option<&Standing>,
    spec: &MailSpec,
    act: &Act,
) -> Result<Option<Standing>, Fault> {
    let basis = now.map_or(Basis::Provider, |s| s.basis.clone());
    let gate = now.map(|s| s.gate);
    let stand =
        |basis, gate| Ok(Some(Standing { spec: spec.clone(), basis, gate, unbroken: false }));
    let ferry = |record: &MailRecord| Basis::Ferry(record.clone());
    let ours = matches!(basis, Basis::Ferry(_));
    match (act, gate) {
        (Act::Fence, None | Some(Gate::Open | Gate::Fenced)) => stand(basis, Gate::Fenced),
        // An open gate in front of the provider's own configuration needs no standing.
        (Act::Unfence | Act::Release, Some(Gate::Fenced))
        | (Act::Release, Some(Gate::Open | Gate::PassedOn { .. })) => {
            if ours {
                stand(basis, Gate::Open)
            } else {
                Ok(None)
            }
        }
        // Undoing a fence that never was, or that the commit has replaced, changes nothing.
        (Act::Unfence, _) | (Act::Release, None | Some(Gate::Closed)) => Ok(now.cloned()),
        (Act::Provision(record), None | Some(Gate::Closed)) => stand(ferry(record), Gate::Closed),
        // The way back: mail keeps being passed on until this server is opened. What the provider's
        // own configuration served here it will serve again, with the passwords that it has; an
        // opening by it is remembered, so that the same opening once more does not become another.
        (Act::Provision(record), Some(gate @ Gate::PassedOn { .. })) => {
            stand(if ours { ferry(record) } else { basis }, gate)
        }
        (Act::Open(record), Some(Gate::Open | Gate::PassedOn { .. })) => {
            stand(if ours { ferry(record) } else { basis }, Gate::Open)
        }
        (Act::Open(record), None | Some(Gate::Closed)) => stand(ferry(record), Gate::Open),
        (Act::Close, Some(Gate::Open)) => Ok(None),
        (Act::Close, _) => Ok(if ours { None } else { now.cloned() }),
        (Act::PassOn(next_hop), None | Some(Gate::Open | Gate::Fenced | Gate::PassedOn { .. })) => {
            stand(basis, Gate::PassedOn { next_hop: *next_hop })
        }
        (Act::Fence, Some(Gate::Closed | Gate::PassedOn { .. }))
        | (Act::Provision(_), Some(Gate::Open | Gate::Fenced))
        | (Act::Open(_), Some(Gate::Fenced))
        | (Act::PassOn(_), Some(Gate::Closed)) => Err(refused(now, spec, act)),
    }
}

fn refused(now: Option<&Standing>, spec: &MailSpec, act: &Act) -> Fault {
    let (wish, remedy) = match act {
        Act::Fence => ("fenced", "fence it on the server that serves the account"),
        Act::Provision(_) => ("prepared closed", "pass it on or release it first"),
        Act::Open(_) => ("opened", "undo the fence first"),
        Act::PassOn(_) => ("passed on", "undo the preparation first"),
        Act::Unfence | Act::Close | Act::Release => ("undone", ""),
    };
    Fault::precondition(format!(
        "the mail of account {} cannot be {wish} here: it is {}",
        spec.account(),
        MailState::of(now)
    ))
    .remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> MailSpec {
        let account = "shop".parse().expect("a literal");
        MailSpec::new(account, "/home/shop".into(), 3001, 3001, Vec::new()).expect("valid")
    }

    const HOP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn acts() -> Vec<Act> {
        let record = MailRecord::default();
        vec![
            Act::Fence,
            Act::Unfence,
            Act::Provision(record.clone()),
            Act::Open(record),
            Act::Close,
            Act::PassOn(HOP),
            Act::Release,
        ]
    }

    fn run(acts: &[Act]) -> Option<Standing> {
        acts.iter().fold(None, |now, act| next(now.as_ref(), &spec(), act).expect("allowed"))
    }

    /// Whatever led there, repeating the last act changes nothing.
    #[test]
    fn every_act_can_be_repeated() {
        let mut seen: Vec<Option<Standing>> = vec![None];
        let mut todo = seen.clone();
        while let Some(now) = todo.pop() {
            for act in acts() {
                let Ok(after) = next(now.as_ref(), &spec(), &act) else {
                    continue;
                };
                assert_eq!(
                    next(after.as_ref(), &spec(), &act).expect("allowed again"),
                    after,
                    "{act:?} from {now:?}"
                );
                if !seen.contains(&after) {
                    seen.push(after.clone());
                    todo.push(after);
                }
            }
        }
        assert!(seen.len() >= 7, "{seen:?}");
    }

    #[test]
    fn a_move_and_its_rollback_end_where_they_began() {
        let record = MailRecord::default();
        let source = run(&[Act::Fence, Act::PassOn(HOP)]);
        assert_eq!(MailState::of(source.as_ref()), MailState::PassedOn { next_hop: HOP });
        let prepared = next(source.as_ref(), &spec(), &Act::Provision(record.clone()));
        let prepared = prepared.expect("allowed");
        assert_eq!(prepared, source, "mail is passed on until the way back is open");
        let opened = next(prepared.as_ref(), &spec(), &Act::Open(record.clone()));
        let opened = opened.expect("allowed");
        assert_eq!(opened.as_ref().map(|s| &s.basis), Some(&Basis::Provider));
        assert_eq!(MailState::of(opened.as_ref()), MailState::Open);
        assert_eq!(next(opened.as_ref(), &spec(), &Act::Release), Ok(None));
        let target = [
            Act::Provision(record.clone()),
            Act::Open(record),
            Act::Fence,
            Act::PassOn(HOP),
            Act::Close,
        ];
        assert_eq!(run(&target), None);
    }

    #[test]
    fn an_undo_never_opens_what_was_passed_on() {
        let passed = run(&[Act::Fence, Act::PassOn(HOP)]);
        assert_eq!(next(passed.as_ref(), &spec(), &Act::Unfence), Ok(passed.clone()));
        assert_eq!(next(passed.as_ref(), &spec(), &Act::Close), Ok(passed));
    }

    #[test]
    fn a_server_that_does_not_serve_cannot_be_fenced() {
        let passed = run(&[Act::PassOn(HOP)]);
        let fault = next(passed.as_ref(), &spec(), &Act::Fence).expect_err("refused");
        assert_eq!(fault.class, ferry_proto::FaultClass::Precondition);
    }
}
