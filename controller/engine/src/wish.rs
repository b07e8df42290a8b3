//! What people wish of a job while it runs: each wish is shared by the job's runner and whoever may have
//! it. The runner journals it before it takes effect.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::state::Event;

/// The wish that a job be undone.
#[derive(Debug, Clone, Default)]
pub struct Abort {
    token: CancellationToken,
    by: Arc<OnceLock<String>>,
}

impl Abort {
    /// Wishes it; `by` says who, as far as known. The first wish counts.
    pub fn request(&self, by: &str) {
        let _ = self.by.set(by.to_owned());
        self.token.cancel();
    }

    /// Whether somebody wishes it.
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns when somebody wishes it.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// It was wished, and journalled, before.
    pub(crate) fn wish_again(&self) {
        self.token.cancel();
    }

    /// What fires when it is wished.
    pub(crate) fn child_token(&self) -> CancellationToken {
        self.token.child_token()
    }

    pub(crate) fn event(&self) -> Event {
        Event::AbortRequested { by: self.by.get().cloned().unwrap_or_default() }
    }
}

/// The wish that a job stop for now, or go on.
#[derive(Debug, Clone, Default)]
pub struct Pause(Arc<watch::Sender<Option<PauseWish>>>);

/// What is wished; `by` says by whom, as far as known.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PauseWish {
    /// That it stop.
    Begin { by: String },
    /// That it go on.
    End { by: String },
}

impl Pause {
    /// Wishes that the job stop for now. It lapses if the job cannot be paused when the runner hears it. The
    /// last wish counts.
    pub fn request(&self, by: &str) {
        self.0.send_replace(Some(PauseWish::Begin { by: by.to_owned() }));
    }

    /// Wishes that the job go on. It lapses if the job is not paused.
    pub fn end(&self, by: &str) {
        self.0.send_replace(Some(PauseWish::End { by: by.to_owned() }));
    }

    /// Returns when there is a wish that no runner has heard.
    pub async fn wished(&self) {
        // Its sender is ours.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }

    pub(crate) fn take(&self) -> Option<PauseWish> {
        let mut wish = None;
        self.0.send_if_modified(|now| {
            wish = now.take();
            false
        });
        wish
    }
}

/// A person's word for a commit that nobody can be asked about.
#[derive(Debug, Clone, Default)]
pub struct Force {
    token: CancellationToken,
    word: Arc<OnceLock<(String, serde_json::Value)>>,
}

impl Force {
    /// Vouches for the commit: `receipt` stands for the evidence, `by` says who vouches. It counts if the
    /// commit's outcome is still open when the runner hears it. The first word counts.
    pub fn say(&self, by: &str, receipt: serde_json::Value) {
        let _ = self.word.set((by.to_owned(), receipt));
        self.token.cancel();
    }

    pub(crate) async fn said(&self) {
        self.token.cancelled().await;
    }

    pub(crate) fn event(&self, step: usize) -> Option<Event> {
        let (by, receipt) = self.word.get()?.clone();
        Some(Event::CommitForced { step, by, receipt })
    }
}
