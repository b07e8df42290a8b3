//! What those who watch a running job see of it, but for its end. It must not know how it runs.

use ferry_engine::Told;
use ferry_proto::view::Place;
use tokio::sync::{broadcast, mpsc, watch};

use super::Shown;
use crate::advice;
use crate::view::Folded;

/// Keeps a job's view current, but for its end.
pub(super) struct Display<'a> {
    pub(super) sender: &'a watch::Sender<Shown>,
    pub(super) bell: &'a broadcast::Sender<()>,
    /// What the job waits for before it goes on.
    pub(super) lacking: watch::Receiver<Option<Place>>,
}

impl Display<'_> {
    pub(super) async fn follow(&mut self, folded: &mut Folded, mut seen: mpsc::Receiver<Told>) {
        loop {
            tokio::select! {
                told = seen.recv() => match told {
                    Some(told) => self.take(folded, told),
                    None => return,
                },
                // Its sender is the job's turn, which the runner has too.
                Ok(()) = self.lacking.changed() => {}
            }
            self.show(folded);
        }
    }

    fn take(&self, folded: &mut Folded, told: Told) {
        match told {
            Told::Event(entry) => {
                if let Err(fault) = folded.apply(&entry) {
                    tracing::error!("{fault}");
                }
                // Nobody may be listening.
                let _ = self.bell.send(());
            }
            Told::Progress { step, progress } => folded.progress(step, progress),
        }
    }

    pub(super) fn show(&mut self, folded: &Folded) {
        let mut view = folded.view().clone();
        if view.phase.has_ended() {
            return;
        }
        view.waiting_for = self.lacking.borrow_and_update().clone();
        if let Some(place) = &view.waiting_for {
            view.advice = advice::waiting(&view, place);
        }
        tell(self.sender, Ok(view));
    }
}

pub(super) fn tell(sender: &watch::Sender<Shown>, shown: Shown) {
    sender.send_modify(|now| *now = shown);
}
