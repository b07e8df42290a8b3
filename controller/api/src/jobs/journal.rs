//! A job as it is stored: its plan and its journal, and how it stands by them. It must not know which jobs run.

use std::sync::Arc;

use async_trait::async_trait;
use ferry_engine::{Entry, Event, Journal};
use ferry_fleet::now_ms;
use ferry_plan::Plan;
use ferry_proto::Fault;
use ferry_proto::ids::JobId;
use ferry_store::{JobRow, OVERTAKEN, Store};

use crate::view::Folded;

/// The engine's journal, in the store.
pub(super) struct StoreJournal(pub(super) Arc<dyn Store>);

#[async_trait]
impl Journal for StoreJournal {
    async fn append(&self, job: JobId, event: &Event) -> Result<i64, Fault> {
        let (text, now) = (to_json(event)?, now_ms());
        self.0.append_event(job, &text, now).await.map(|_| now)
    }

    async fn load(&self, job: JobId) -> Result<Vec<Entry>, Fault> {
        load_events(self.0.as_ref(), job).await
    }
}

async fn load_events(store: &dyn Store, job: JobId) -> Result<Vec<Entry>, Fault> {
    const PAGE: u32 = 1000;
    let mut entries = Vec::new();
    let mut after = 0;
    loop {
        let rows = store.events(Some(job), None, after, PAGE).await?;
        let Some(last) = rows.last() else { return Ok(entries) };
        after = last.number;
        for row in rows {
            let event = serde_json::from_str(&row.event).map_err(|e| {
                Fault::bug(format!("event {} is damaged", row.number)).caused_by(&e)
            })?;
            entries.push(Entry { at_ms: row.at_ms, event });
        }
    }
}

/// A job as its journal says that it stands.
pub(crate) async fn fold(store: &dyn Store, row: &JobRow) -> Result<Folded, Fault> {
    let mut folded = Folded::new(read_plan(row)?, row.started_ms.unwrap_or(row.planned_ms))?;
    for entry in load_events(store, row.id).await? {
        folded.apply(&entry)?;
    }
    if row.phase.as_deref() == Some(OVERTAKEN) {
        folded.overtake(row.ended_ms);
    }
    Ok(folded)
}

/// Reads the plan of a job.
///
/// # Errors
/// Of class Bug if it is damaged.
pub fn read_plan(row: &JobRow) -> Result<Plan, Fault> {
    serde_json::from_str(&row.plan)
        .map_err(|e| Fault::bug(format!("the plan of job {} is damaged", row.id)).caused_by(&e))
}

pub(super) fn to_json(event: &Event) -> Result<String, Fault> {
    serde_json::to_string(event).map_err(|e| Fault::bug("an event has no JSON").caused_by(&e))
}
