//! Which requests a fence may leave without an answer: those that were being answered as it began, and for
//! longer than its grace. Everybody else is held, and answered.

use anyhow::{Result, ensure};
use ferry_proto::view::{JobView, StepView};

use crate::visitors::{Log, Outcome, SILENT, Visit};

/// The grace of a fence, microseconds: its default (docs/cutover.md).
const GRACE_US: i64 = 1_000_000;
/// What the redirector says in plain HTTP to whom the grace cuts off.
const CUT_OFF: &str = "status 502: the web server of this site gave no answer";

/// Fails if a request of the web was left without an answer, but for those that the grace of a fence of
/// these jobs cut off: how long a busy machine takes for an answer is not the fence's to say.
pub fn expect(log: &Log, jobs: &[&JobView]) -> Result<()> {
    let fences: Vec<(i64, i64)> = jobs.iter().filter_map(|job| fence(&job.steps)).collect();
    let left = log.visits.iter().filter(|visit| is_unanswered(visit, &fences));
    let left: Vec<String> = left.map(|visit| told(visit, &fences)).collect();
    ensure!(left.is_empty(), "visitors failed: {}", left.join("; "));
    Ok(())
}

/// Those of `visits` that a fence of this job may not have left without an answer, and that have none.
pub fn failed<'a>(visits: &'a [Visit], job: &JobView) -> impl Iterator<Item = &'a Visit> {
    let fence: Vec<_> = fence(&job.steps).into_iter().collect();
    visits.iter().filter(move |visit| is_unanswered(visit, &fence))
}

fn is_unanswered(visit: &Visit, fences: &[(i64, i64)]) -> bool {
    visit.is_web() && visit.is_failed() && !fences.iter().any(|fence| is_cut_off(visit, *fence))
}

/// From when to when an account was being fenced, Unix microseconds: until the step after it began, for the
/// end of the fence's own is told anew when it is undone.
fn fence(steps: &[StepView]) -> Option<(i64, i64)> {
    let at = steps.iter().position(|step| step.name == "fence")?;
    let to = steps.get(at + 1)?.started_unix_ms?;
    Some((steps[at].started_unix_ms? * 1000, to * 1000))
}

/// One that came after the fence's beginning is held, so that nothing cuts it off within this step.
fn is_cut_off(visit: &Visit, (from, to): (i64, i64)) -> bool {
    let lasted = visit.ended_us - visit.began_us;
    let is_told = |why: &str| visit.outcome == Outcome::Failed(why.to_owned());
    (is_told(SILENT) || is_told(CUT_OFF))
        && lasted >= GRACE_US
        && visit.ended_us >= from + GRACE_US
        && visit.ended_us <= to
}

fn told(visit: &Visit, fences: &[(i64, i64)]) -> String {
    let ms = |us: i64| us / 1000;
    let since = |(from, to): &(i64, i64)| {
        let began = ms(visit.began_us - from);
        format!(", {began} ms after the beginning of a fence that took {} ms", ms(to - from))
    };
    let (id, kind) = (&visit.id, visit.kind);
    let lasted = ms(visit.ended_us - visit.began_us);
    let since: String = fences.iter().map(since).collect();
    format!("{id} ({kind:?}): {:?} after {lasted} ms{since}", visit.outcome)
}

#[cfg(test)]
mod tests {
    use ferry_proto::view::StepPhase;

    use super::*;
    use crate::visitors::Kind;

    #[test]
    fn only_what_was_answered_for_longer_than_the_grace_may_be_cut_off() {
        let second = 1_000_000;
        let fence = (10 * second, 14 * second);
        let visit = |began: i64, ended: i64, why: &str| Visit {
            id: "v-1".to_owned(),
            kind: Kind::Https,
            began_us: began,
            ended_us: ended,
            outcome: Outcome::Failed(why.to_owned()),
        };
        let cut = |began, ended, why| is_cut_off(&visit(began, ended, why), fence);
        assert!(cut(9 * second, 11 * second, SILENT));
        assert!(cut(9 * second, 11 * second, CUT_OFF));
        assert!(!cut(10 * second + second / 2, 11 * second, CUT_OFF), "within the grace");
        assert!(!cut(9 * second, 11 * second, "status 502: nginx"));
        assert!(!cut(8 * second, 9 * second, SILENT), "before the fence");
        assert!(!cut(10 * second + second / 2, 11 * second, SILENT), "within the grace");
        assert!(!cut(9 * second, 15 * second, SILENT), "after the fence: it was held");
    }
    #[test]
    fn a_fence_ends_where_the_next_step_begins_also_if_it_was_undone() {
        let step = |name: &str, started: Option<i64>, ended: Option<i64>| StepView {
            name: name.to_owned(),
            title: String::new(),
            server: "client".parse().unwrap(),
            phase: StepPhase::Undone,
            attempts: 1,
            started_unix_ms: started,
            ended_unix_ms: ended,
            receipt: None,
            fault: None,
            undo_fault: None,
            progress: None,
        };
        let (before, fenced) = (step("arm", Some(1), Some(5)), step("fence", Some(5), Some(60)));
        let next = |started| step("final_pass", started, None);
        assert_eq!(fence(&[before.clone(), fenced.clone(), next(Some(9))]), Some((5_000, 9_000)));
        assert_eq!(fence(&[before.clone(), fenced, next(None)]), None);
        assert_eq!(fence(&[before]), None);
    }
}
