//! The agent's parts. Each runs until all are told to stop; half an agent is none, so one that ends
//! by itself ends the process, and the service manager starts it again.

use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// How long what is under way may take to stop; with the runtime's end less than TimeoutStopSec=.
const STOP_WITHIN: Duration = Duration::from_secs(7);

/// Running parts.
pub struct Parts {
    stop: CancellationToken,
    running: JoinSet<&'static str>,
}

impl Parts {
    /// None yet. Each shall end when `stop` fires, and not before.
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, running: JoinSet::new() }
    }

    /// Starts a part.
    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn(async move {
            part.await;
            name
        });
    }

    /// Waits until the end of the process is `asked` for, or a part ends.
    ///
    /// # Errors
    /// If it was a part.
    pub async fn ended(&mut self, asked: impl Future<Output = ()>) -> anyhow::Result<()> {
        tokio::select! {
            () = asked => Ok(()),
            Some(part) = self.running.join_next() => Err(too_early(part)),
        }
    }

    /// Stops them, and waits for them and for `last`; but not for what does not stop.
    pub async fn stop(mut self, last: impl Future<Output = ()>) {
        self.stop.cancel();
        let all = async {
            while self.running.join_next().await.is_some() {}
            last.await;
        };
        if tokio::time::timeout(STOP_WITHIN, all).await.is_err() {
            tracing::warn!("something is still under way; it is gone on with at the next start");
        }
    }
}

fn too_early(part: Result<&'static str, JoinError>) -> anyhow::Error {
    match part {
        Ok(name) => anyhow::anyhow!("a part of the agent ended by itself: {name}"),
        Err(error) => anyhow::Error::new(error).context("a part of the agent panicked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    #[tokio::test(start_paused = true)]
    async fn a_part_that_ends_or_panics_ends_the_process() {
        let mut parts = Parts::new(CancellationToken::new());
        parts.spawn("stays", pending());
        parts.spawn("goes", ready(()));
        let error = parts.ended(pending()).await.unwrap_err();
        assert!(error.to_string().contains("ended by itself: goes"), "{error}");
        parts.spawn("panics", async { panic!("as a test") });
        assert!(parts.ended(pending()).await.unwrap_err().to_string().contains("panicked"));
        parts.ended(ready(())).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_stop_is_not_waited_for_and_what_stops_is() {
        let stop = CancellationToken::new();
        let mut parts = Parts::new(stop.clone());
        let (token, (ended, mut was_ended)) = (stop.clone(), tokio::sync::watch::channel(false));
        parts.spawn("stops", async move {
            token.cancelled().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            ended.send_replace(true);
            pending::<()>().await;
        });
        let began = tokio::time::Instant::now();
        parts.stop(pending()).await;
        assert!(*was_ended.borrow_and_update());
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        let prompt = Parts::new(stop);
        let began = tokio::time::Instant::now();
        prompt.stop(ready(())).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
