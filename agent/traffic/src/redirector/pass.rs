//! What the gate hands out: the right to go on, which counts a request as running, and the right to
//! wait, which counts it as held. Dropping either gives it back.

use std::sync::Arc;
use std::time::Duration;

use ferry_proto::ids::AccountName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::gate::{Gate, Goal};
use super::live::{Generation, Live};

/// A request that was let through, counted as running until this is dropped.
pub struct Pass {
    pub(super) gate: Arc<Gate>,
    pub(super) generation: Arc<Generation>,
    /// Where it goes.
    pub goal: Goal,
    /// Its account; none without a route.
    pub(super) account: Option<Arc<AccountName>>,
    /// Its host, without a route.
    pub(super) stray: Option<String>,
    /// How long it may look for its target.
    pub look: Duration,
    pub(super) pace: Option<Arc<Semaphore>>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.end(&self.generation, self.stray.as_deref());
    }
}

impl Pass {
    /// Waits for its turn to burden its target.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        match &self.pace {
            // The semaphore is never closed.
            Some(pace) => Arc::clone(pace).acquire_owned().await.ok(),
            None => None,
        }
    }

    /// Cancelled when the account's route changes: what has sent nothing goes back and asks again.
    pub fn replaced(&self) -> &tokio_util::sync::CancellationToken {
        &self.generation.replaced
    }

    /// Cancelled when a tunnel that waits for nothing shall end.
    pub fn winding(&self) -> &tokio_util::sync::CancellationToken {
        &self.generation.winding
    }

    /// Cancelled when the request must end.
    pub fn cut(&self) -> &tokio_util::sync::CancellationToken {
        &self.generation.cut
    }

    fn note(&self, act: impl FnOnce(&mut Live)) {
        if let Some(account) = &self.account {
            self.gate.with_live(account, act);
        }
    }

    /// It begins to send.
    pub fn passed(&self) {
        self.note(Live::passed);
    }

    /// The first byte of its answer came.
    pub fn answered(&self) {
        self.note(|live| live.answered(&self.generation));
    }

    /// Its target was not reached.
    pub fn refused(&self) {
        self.note(Live::refused);
    }

    /// It was ended.
    pub fn ended(&self) {
        self.note(Live::ended);
    }
}

/// A turn that goes on beyond finding the target. Dropping it gives it back.
pub struct Turn {
    _kept: oneshot::Sender<()>,
}

impl Turn {
    /// Keeps the turn, at most for `limit`: who waits long for an answer must not hold up the rest.
    pub fn keep(permit: OwnedSemaphorePermit, limit: Duration) -> Self {
        let (kept, given_back) = oneshot::channel();
        tokio::spawn(async move {
            let _permit = permit;
            // Given back or over: the same.
            let _ = tokio::time::timeout(limit, given_back).await;
        });
        Self { _kept: kept }
    }
}

/// How waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Ask again where to go.
    Released,
    /// The account has no route any more.
    Removed,
    /// It took too long.
    TimedOut,
}

/// A request that waits.
pub struct Waiting {
    pub(super) gate: Arc<Gate>,
    pub(super) account: Arc<AccountName>,
    pub(super) id: u64,
    /// How long it may wait in all.
    pub wait: Duration,
    pub(super) released: oneshot::Receiver<()>,
}

impl Waiting {
    /// Waits until `deadline`.
    pub async fn until(&mut self, deadline: Instant) -> Waited {
        match tokio::time::timeout_at(deadline, &mut self.released).await {
            Ok(Ok(())) => Waited::Released,
            Ok(Err(_)) => Waited::Removed,
            Err(_) => {
                self.gate.with_live(&self.account, Live::refused);
                Waited::TimedOut
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gate.with_live(&self.account, |live| live.unqueue(self.id));
    }
}
