//! Which approvals a move has: what somebody wants to approve now, and what was approved before and has not
//! changed. What the source says it saw counts only for what was asked. Pure.

use std::collections::BTreeSet;

use ferry_proto::approval::{Approval, Ids, Sight, check};
use ferry_proto::{Fault, shown};

use crate::planning::Wish;

/// The approvals of a move, from what the source has `seen` of an account of these `ids`.
///
/// # Errors
/// A path that was asked for was not looked at, or they are too many.
pub fn of(
    wish: &Wish,
    inherited: &[Approval],
    seen: &[Sight],
    ids: Ids,
    at_unix_ms: i64,
) -> Result<Vec<Approval>, Fault> {
    let asked: BTreeSet<_> = wish.approve.iter().filter_map(|path| shown::read(path)).collect();
    let path_of = |sight: &Sight| shown::read(&sight.path).unwrap_or_default();
    let is_asked = |sight: &&Sight| asked.contains(&path_of(sight));
    let by = || wish.by.clone();
    let word = |what: &Sight| Approval { what: what.clone(), ids, by: by(), at_unix_ms };
    let mut approvals: Vec<_> = seen.iter().filter(is_asked).map(word).collect();
    if approvals.len() != asked.len() {
        return Err(Fault::permanent("the source has not looked at all that is to be approved")
            .remedy("bring its agent to the controller's version"));
    }
    // Only what is there to the bit as it was: the source's word makes nothing more of it.
    let still =
        |before: &&Approval| seen.contains(&before.what) && !asked.contains(&path_of(&before.what));
    let again = |before: &Approval| Approval { ids, ..before.clone() };
    approvals.extend(inherited.iter().filter(still).map(again));
    check(&approvals).map(|()| approvals)
}

#[cfg(test)]
mod tests {
    use ferry_plan::Policy;
    use ferry_proto::command::Direction;

    use super::*;

    const IDS: Ids = Ids { uid: 1001, gid: 1002 };

    fn sight(path: &str, uid: u32) -> Sight {
        let seen = serde_json::json!({"kind": "directory", "mode": 0o755, "uid": uid, "gid": 0});
        Sight { path: path.to_owned(), seen: serde_json::from_value(seen).unwrap() }
    }

    fn before(what: Sight) -> Approval {
        Approval { what, ids: IDS, by: "another".to_owned(), at_unix_ms: 1 }
    }

    fn wish(approve: &[&str]) -> Wish {
        Wish {
            account: "shop".parse().unwrap(),
            from: None,
            to: None,
            direction: Direction::Outbound,
            approve: approve.iter().map(|path| (*path).to_owned()).collect(),
            by: "an operator".to_owned(),
            policy: Policy::default(),
        }
    }

    #[test]
    fn what_is_asked_for_is_approved_by_who_asks() {
        let seen = [sight("a", 0), sight("b", 0)];
        let found = of(&wish(&["\\x61"]), &[], &seen, IDS, 7).unwrap();
        assert_eq!(found.len(), 1, "b was not asked for: {found:?}");
        assert_eq!((&found[0].what, found[0].by.as_str()), (&seen[0], "an operator"));
        assert_eq!(found[0].at_unix_ms, 7);
        assert!(of(&wish(&["a", "c"]), &[], &seen, IDS, 7).is_err(), "c was not seen");
    }

    #[test]
    fn what_was_approved_before_stays_so_only_as_it_was_seen() {
        let inherited = [before(sight("a", 0)), before(sight("b", 0)), before(sight("c", 0))];
        let seen = [sight("a", 0), sight("b", 7)];
        let found = of(&wish(&[]), &inherited, &seen, IDS, 7).unwrap();
        assert_eq!(found, [before(sight("a", 0))]);
        // The account has other numbers where it is now.
        let ids = Ids { uid: 10_000, ..IDS };
        let found = of(&wish(&[]), &inherited, &seen, ids, 7).unwrap();
        assert_eq!(found, [Approval { ids, ..before(sight("a", 0)) }]);
        // Approved anew, as it is now.
        let found = of(&wish(&["b"]), &inherited, &seen, IDS, 7).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((&found[0].what, found[0].by.as_str()), (&seen[1], "an operator"));
    }
}
