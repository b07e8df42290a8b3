//! The task of a job that has not ended: it alone owns the job's runner, and takes the job up again when the
//! journal or the store has failed, or while this controller is overtaken. It must not know why a job was begun,
//! or who wishes something of it.

use std::sync::Arc;
use std::time::Duration;

use ferry_engine::Runner;
use ferry_fleet::now_ms;
use ferry_proto::Fault;
use ferry_proto::view::JobPhase;
use ferry_store::JobRow;
use tokio::sync::{mpsc, watch};

use super::display::{Display, tell};
use super::journal::StoreJournal;
use super::{Jobs, Running, Shown, Wishes};
use crate::places::Turn;
use crate::view::Folded;

/// Events waiting for a job's view; the runner waits if it is full.
const TOLD: usize = 64;
/// How long to wait before a job whose journal failed is taken up again: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// A job that may be given its task.
pub(super) struct Ready {
    row: JobRow,
    /// None if its journal could not be read: it is read again.
    turn: Option<Arc<Turn>>,
    shown: Shown,
}

impl Jobs {
    /// A job that has not ended, with what it has begun before.
    pub(super) async fn prepare(&self, row: JobRow) -> Ready {
        let (turn, shown) = match self.fold(&row).await {
            Ok(folded) => {
                let turn = self.turn(&row, &folded);
                (Some(turn), Ok(folded.view().clone()))
            }
            Err(fault) => (None, Err(fault)),
        };
        Ready { row, turn, shown }
    }

    fn turn(&self, row: &JobRow, folded: &Folded) -> Arc<Turn> {
        let ticket = (row.started_ms.unwrap_or(row.planned_ms), row.id);
        let turn = Turn::new(&self.places, &self.fleet, ticket, folded.plan());
        turn.take_up(&folded.spec().steps, folded.state());
        turn
    }

    /// Gives a job its task.
    pub(super) fn spawn(self: &Arc<Self>, job: Ready) {
        let Ready { row, turn, shown } = job;
        let (sender, shown) = watch::channel(shown);
        let (account, wishes) = (row.account.clone(), Wishes::default());
        self.running().insert(row.id, Running { account, wishes: wishes.clone(), shown });
        let jobs = self.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                // Left where its journal says. First: a place that another job left by stopping
                // is not taken.
                () = jobs.stop.cancelled() => {}
                () = jobs.while_not_overtaken(&row, turn, &wishes, &sender) => {}
            }
            jobs.running().remove(&row.id);
            let _ = jobs.bell.send(());
        });
    }

    /// Runs a job to its end, but not while agents have obeyed a later controller: it goes on when those
    /// that said so were cut off.
    async fn while_not_overtaken(
        &self,
        row: &JobRow,
        mut turn: Option<Arc<Turn>>,
        wishes: &Wishes,
        sender: &watch::Sender<Shown>,
    ) {
        loop {
            tokio::select! {
                biased;
                // First: nothing is journalled of commands that may not be sent.
                later = self.fleet.is_overtaken() => {
                    tell(sender, Err(left(row, self.fleet.overtaken_by(&later))));
                    self.fleet.is_not_overtaken().await;
                }
                () = self.drive(row, turn.take(), wishes, sender) => return,
            }
        }
    }

    /// Runs a job to its end. If its journal or the store fails it is taken up again, after a while,
    /// as after a crash: whoever watches is told meanwhile.
    async fn drive(
        &self,
        row: &JobRow,
        mut turn: Option<Arc<Turn>>,
        wishes: &Wishes,
        sender: &watch::Sender<Shown>,
    ) {
        let (mut pause, longest) = PAUSES;
        loop {
            let began = tokio::time::Instant::now();
            let Err(fault) = self.to_the_end(row, &mut turn, wishes, sender).await else { return };
            tracing::error!(job = %row.id, "the job stopped where its journal says: {fault}");
            tell(sender, Err(stopped(row, fault)));
            if began.elapsed() > longest {
                pause = PAUSES.0;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// `turn` keeps what the job takes up while it does not go on.
    async fn to_the_end(
        &self,
        row: &JobRow,
        turn: &mut Option<Arc<Turn>>,
        wishes: &Wishes,
        sender: &watch::Sender<Shown>,
    ) -> Result<(), Fault> {
        let (phase, folded) = loop {
            let (phase, folded) = self.by_itself(row, turn, wishes, sender).await?;
            if phase != JobPhase::Paused {
                break (phase, folded);
            }
            wishes.for_a_paused_job().await;
        };
        self.store.end_job(row.id, &phase.to_string(), now_ms()).await?;
        tracing::info!(job = %row.id, %phase, "job ended");
        // Only now: whoever sees the end may start the account's next job.
        tell(sender, Ok(folded.view().clone()));
        Ok(())
    }

    /// Runs a job until nothing more happens by itself: it has ended, or is paused.
    async fn by_itself(
        &self,
        row: &JobRow,
        turn: &mut Option<Arc<Turn>>,
        wishes: &Wishes,
        sender: &watch::Sender<Shown>,
    ) -> Result<(JobPhase, Folded), Fault> {
        let mut folded = self.fold(row).await?;
        let turn = turn.get_or_insert_with(|| self.turn(row, &folded)).clone();
        let (told, seen) = mpsc::channel(TOLD);
        let journal = Arc::new(StoreJournal(self.store.clone()));
        let (spec, steps) = (folded.spec().clone(), self.steps.clone());
        let runner = Runner::recover(spec, steps, journal, told, wishes.abort.clone()).await?;
        let mut display = Display { sender, bell: &self.bell, lacking: turn.lacking() };
        display.show(&folded);
        let showing = display.follow(&mut folded, seen);
        // The runner's end drops the sender of what is told, and so ends the showing.
        let runner = runner.gated(turn.clone());
        let runner = runner.pausing(wishes.pause.clone()).heeding(wishes.force.clone());
        let (phase, ()) = tokio::join!(runner.run(), showing);
        let phase = phase?;
        if phase == JobPhase::Paused {
            turn.paused();
        }
        Ok((phase, folded))
    }
}

/// What whoever watches is told of a job that an overtaken controller has left.
fn left(row: &JobRow, fault: Fault) -> Fault {
    fault.context(format!("job {} of account {} does not go on", row.id, row.account))
}

/// What whoever watches is told when a job's journal or the store fails.
fn stopped(row: &JobRow, fault: Fault) -> Fault {
    fault
        .context(format!("job {} of account {} does not go on for now", row.id, row.account))
        .remedy(format!(
            "it stands where its journal says, and is taken up again by itself: see the controller's log, and `ferry status {}`",
            row.account
        ))
}
