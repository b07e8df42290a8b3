//! What fault tests know a write of the ledger by: what is recorded, without ids and times.

use std::fmt;

use ferry_proto::command::Outcome;

use super::{Account, AfterOpen, Entry, Standing};

/// Names an entry; `kind` is the kind of its command, if it is of one.
pub struct Point<'a> {
    pub kind: &'a str,
    pub entry: &'a Entry,
    /// The account that the entry is of, as it was.
    pub before: Option<&'a Account>,
}

impl fmt::Display for Point<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind;
        match self.entry {
            Entry::Taken { .. } => write!(f, "taken.{kind}"),
            Entry::Ended { outcome, .. } => write!(f, "ended.{kind}.{}", end(outcome)),
            Entry::Account { account: Some(account), .. } => {
                write!(f, "account.{}", standing(account, self.before))
            }
            Entry::Account { account: None, .. } => f.write_str("account.forgotten"),
            Entry::Undone { .. } => f.write_str("undone"),
            Entry::Generation { .. } => f.write_str("generation"),
            Entry::Revocations { .. } => f.write_str("revocations"),
        }
    }
}

fn end(outcome: &Outcome) -> String {
    outcome.as_ref().map_or_else(|fault| fault.class.to_string(), |_| "done".to_owned())
}

/// How an account stands, and how far it has come in that. What follows an opening may not be done when the
/// account sets out again, and is no part of how that ends: it depends on the time between the two.
fn standing(account: &Account, before: Option<&Account>) -> &'static str {
    let follows =
        |before: &Account| matches!(before.standing, Standing::Opening { .. } | Standing::Serving);
    let after_open = account.after_open.as_deref().filter(|_| before.is_some_and(follows));
    match &account.standing {
        Standing::Serving => match after_open {
            Some(AfterOpen { done: true, .. }) => "serving.followed",
            Some(AfterOpen { started: true, .. }) => "serving.started",
            Some(_) => "serving.opened",
            None => "serving",
        },
        Standing::Receiving { .. } => "receiving",
        Standing::Armed { .. } => "armed",
        Standing::Fenced { open: true, .. } => "fenced.open",
        Standing::Fenced { ending: true, .. } => "fenced.ending",
        Standing::Fenced { complete_unix: Some(_), .. } => "fenced.complete",
        Standing::Fenced { .. } => "fenced",
        Standing::Moved { settled: true, .. } => "moved.settled",
        Standing::Moved { released_unix_ms: Some(_), .. } => "moved.released",
        Standing::Moved { .. } => "moved",
        Standing::Opening { accepts: true, .. } => "opening.accepted",
        Standing::Opening { .. } => "opening",
        Standing::Refused { .. } => "refused",
        Standing::Finalized { erasing: true, .. } => "finalized.erasing",
        Standing::Finalized { .. } => "finalized",
    }
}

#[cfg(test)]
mod tests {
    use ferry_failpoints::FakeLab;
    use ferry_proto::ids::CommandId;
    use ferry_proto::{Fault, FaultClass};

    use super::*;
    use crate::ledger::Ledger;
    use crate::ledger::failing::{EIO, ENOSPC};
    use crate::testing::{a_move, account, before_the_reboot, fenced, moved, opening};

    /// A ledger, and a lab that fails the points for which `fails` has a number.
    fn with_lab(fails: &'static [(&'static str, i32)]) -> (tempfile::TempDir, FakeLab, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let lab = FakeLab::listen(dir.path(), |point| {
            let found = fails.iter().find(|(p, _)| *p == point);
            found.map_or_else(|| "go".to_owned(), |(_, code)| format!("errno {code}"))
        })
        .unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        (dir, lab, ledger)
    }

    fn record(ledger: &mut Ledger, standing: &Standing) -> Result<(), Fault> {
        ledger.set_account(&"shop".parse().unwrap(), Some(account("shop", standing)))
    }

    #[test]
    fn each_write_is_between_two_points_that_say_what_is_written() {
        let (_dir, lab, mut ledger) = with_lab(&[]);
        let (of, id) = (a_move(), CommandId::new_now());
        let digest = || "d".to_owned();
        ledger.record_of("fence", Entry::Taken { id, digest: digest() }).unwrap();
        record(&mut ledger, &Standing::Armed { of: of.clone() }).unwrap();
        record(&mut ledger, &fenced(&of, &before_the_reboot())).unwrap();
        let outcome = Err(Fault::fenced("no"));
        ledger.record_of("fence", Entry::Ended { id, digest: digest(), outcome }).unwrap();
        ledger.set_account(&"shop".parse().unwrap(), None).unwrap();
        let points = [
            "reread",
            "taken.fence",
            "account.armed",
            "account.fenced.complete",
            "ended.fence.fenced",
            "account.forgotten",
        ];
        let both = |p| ["before", "after"].map(|when| format!("ledger.{p}.{when}"));
        assert_eq!(lab.heard(), points.map(both).concat());
    }

    #[test]
    fn what_follows_an_opening_is_named_where_it_follows_and_not_where_a_later_move_ends() {
        let (_dir, lab, mut ledger) = with_lab(&[]);
        let of = a_move();
        let after_open: Option<Box<AfterOpen>> = serde_json::from_value(serde_json::json!({
            "due_unix_ms": 0, "fence_minute": 0, "missed_minutes": 0, "done": false,
            "units": { "user": "shop", "uid": 4711, "linger": false, "manager_active": false, "units": [] },
        }))
        .unwrap();
        for standing in [opening(&of), Standing::Serving, Standing::Armed { of }, Standing::Serving]
        {
            let shop = Account { after_open: after_open.clone(), ..account("shop", &standing) };
            ledger.set_account(&"shop".parse().unwrap(), Some(shop)).unwrap();
        }
        let heard: Vec<String> = lab.heard();
        let heard =
            heard.iter().filter_map(|p| p.strip_prefix("ledger.account.")?.strip_suffix(".after"));
        let standings = ["opening.accepted", "serving.opened", "armed", "serving"];
        assert_eq!(heard.collect::<Vec<_>>(), standings);
    }

    #[test]
    fn an_error_before_a_write_is_that_of_a_write_that_wrote_nothing() {
        for fails in [
            &[("ledger.account.moved.released.before", ENOSPC)],
            &[("ledger.account.moved.released.before", EIO)],
        ] {
            let (dir, _lab, mut ledger) = with_lab(fails);
            let of = a_move();
            record(&mut ledger, &Standing::Armed { of: of.clone() }).unwrap();
            let fault = record(&mut ledger, &moved(&of)).unwrap_err();
            assert_eq!(fault.class, FaultClass::Transient, "{fault}");
            assert!(!ledger.may_have_moved(&"shop".parse().unwrap()));
            let found = Ledger::accounts_at(&dir.path().join("ledger")).unwrap();
            assert!(matches!(found.values().next().unwrap().standing, Standing::Armed { .. }));
        }
    }

    #[test]
    fn an_error_after_a_write_is_that_of_a_sync_and_what_is_there_counts() {
        let (_dir, lab, mut ledger) = with_lab(&[("ledger.account.moved.released.after", EIO)]);
        record(&mut ledger, &moved(&a_move())).unwrap();
        assert!(matches!(
            ledger.accounts().values().next().unwrap().standing,
            Standing::Moved { .. }
        ));
        // It was read again before that was said.
        assert_eq!(lab.heard().last().unwrap(), "ledger.reread.after");
    }

    #[test]
    fn a_commit_that_can_neither_be_written_nor_read_again_is_in_doubt() {
        // The opening reads too: that is not to fail.
        let (dir, lab, ledger) = with_lab(&[]);
        drop((lab, ledger));
        std::fs::remove_file(dir.path().join("lab.sock")).unwrap();
        let mut ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        let _lab = FakeLab::listen(dir.path(), |_| format!("errno {EIO}")).unwrap();
        record(&mut ledger, &moved(&a_move())).unwrap_err();
        assert!(ledger.may_have_moved(&"shop".parse().unwrap()));
        assert!(ledger.account(&"shop".parse().unwrap()).is_none());
    }
}
