//! The places of those who have not proved who they are yet. A caller always finds one: beyond a
//! limit the oldest handshake ends, since an honest one takes a moment and a stalled one lasts. It
//! must not know what a handshake is.

use std::collections::{HashMap, VecDeque};
use std::future::Future;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::connections::Limits;
use super::source::Source;
use crate::Fault;

/// What a handshake holds: its sender speaks when the place is wanted.
pub(crate) struct Place(oneshot::Receiver<()>);

/// The handshake made room for another.
#[derive(Debug)]
pub(crate) struct Displaced;

impl Place {
    /// Does the work unless the place is taken away before it is done; after that it never is.
    pub(crate) async fn hold<T>(mut self, work: impl Future<Output = T>) -> Result<T, Displaced> {
        let done = tokio::select! {
            done = work => done,
            _ = &mut self.0 => return Err(Displaced),
        };
        self.0.close();
        // Wanted at the very moment: whoever wanted it counts on its end.
        if self.0.try_recv().is_ok() { Err(Displaced) } else { Ok(done) }
    }
}

/// All handshakes of one listener, the loopback's apart from the others. They end with it.
pub(crate) struct Handshakes {
    loopback: Pool,
    network: Pool,
}

impl Handshakes {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            loopback: Pool::new(limits.loopback, limits.loopback),
            network: Pool::new(limits.handshakes, limits.per_address),
        }
    }

    /// Begins one.
    ///
    /// # Errors
    /// All places are held by connections that wait to be taken.
    pub(crate) async fn begin<F>(
        &mut self,
        source: Source,
        handshake: impl FnOnce(Place) -> F,
    ) -> Result<(), Fault>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let pool = match source {
            Source::Loopback => &mut self.loopback,
            Source::Network(_) => &mut self.network,
        };
        pool.make_room(source).await?;
        let (wanted, place) = oneshot::channel();
        pool.unfinished.push_back((source, wanted));
        pool.tasks.spawn(handshake(Place(place)));
        Ok(())
    }

    /// Forgets those that are over.
    pub(crate) async fn tidy(&mut self) {
        tokio::select! {
            Some(_) = self.loopback.tasks.join_next() => {}
            Some(_) = self.network.tasks.join_next() => {}
            else => std::future::pending().await,
        }
    }
}

/// Handshakes that share places.
struct Pool {
    limit: usize,
    per_source: usize,
    tasks: JoinSet<()>,
    /// Those of the tasks that can be ended, oldest first.
    unfinished: VecDeque<(Source, oneshot::Sender<()>)>,
}

impl Pool {
    fn new(limit: usize, per_source: usize) -> Self {
        Self { limit, per_source, tasks: JoinSet::new(), unfinished: VecDeque::new() }
    }

    async fn make_room(&mut self, source: Source) -> Result<(), Fault> {
        while self.tasks.try_join_next().is_some() {}
        self.unfinished.retain(|(_, wanted)| !wanted.is_closed());
        let mut counts = HashMap::<Source, usize>::new();
        for (source, _) in &self.unfinished {
            *counts.entry(*source).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or_default();
        let displaced = if counts.get(&source).is_some_and(|count| *count >= self.per_source) {
            self.end_oldest(|other| *other == source)
        } else if self.tasks.len() >= self.limit {
            self.end_oldest(|other| counts.get(other) == Some(&most))
        } else {
            return Ok(());
        };
        if displaced {
            // At once: it has been told to.
            self.tasks.join_next().await;
        }
        if self.tasks.len() < self.limit {
            Ok(())
        } else {
            Err(Fault::transient("too many connections wait to be taken"))
        }
    }

    /// Ends the oldest handshake of such a source, if there is one that is not done.
    fn end_oldest(&mut self, of: impl Fn(&Source) -> bool) -> bool {
        let mut ended = false;
        self.unfinished = std::mem::take(&mut self.unfinished)
            .into_iter()
            .filter_map(|(source, wanted)| {
                if ended || !of(&source) {
                    return Some((source, wanted));
                }
                ended = wanted.send(()).is_ok();
                None
            })
            .collect();
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::Semaphore;

    use super::*;

    /// Handshakes that stall until they may be done, or are done and wait to be taken.
    struct Stalled {
        handshakes: Handshakes,
        /// Those that made room, in order.
        displaced: Arc<Mutex<Vec<u32>>>,
        done: Arc<Semaphore>,
        begun: u32,
    }

    impl Stalled {
        fn new(handshakes: usize, per_address: usize, loopback: usize) -> Self {
            let limits = Limits { handshakes, per_address, loopback, ..Limits::default() };
            Self {
                handshakes: Handshakes::new(&limits),
                displaced: Arc::default(),
                done: Arc::new(Semaphore::new(0)),
                begun: 0,
            }
        }

        async fn begin(&mut self, from: &str) -> Result<(), Fault> {
            self.begun += 1;
            let (number, displaced) = (self.begun, Arc::clone(&self.displaced));
            let done = Arc::clone(&self.done);
            let source = Source::of(from.parse().unwrap());
            self.handshakes
                .begin(source, |place| async move {
                    match place.hold(async { done.acquire().await.unwrap().forget() }).await {
                        Ok(()) => std::future::pending().await,
                        Err(Displaced) => displaced.lock().unwrap().push(number),
                    }
                })
                .await
        }

        fn displaced(&self) -> Vec<u32> {
            self.displaced.lock().unwrap().clone()
        }
    }

    #[tokio::test]
    async fn the_oldest_of_the_address_that_has_most_makes_room() {
        let mut stalled = Stalled::new(4, 3, 1);
        for from in ["192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.3"] {
            stalled.begin(from).await.unwrap();
        }
        assert_eq!(stalled.displaced(), [0; 0]);
        stalled.begin("192.0.2.4").await.unwrap();
        assert_eq!(stalled.displaced(), [2]);
        // All have one: then it is the oldest.
        stalled.begin("192.0.2.5").await.unwrap();
        assert_eq!(stalled.displaced(), [2, 1]);
        assert_eq!(stalled.handshakes.network.tasks.len(), 4);
    }

    #[tokio::test]
    async fn an_address_makes_room_for_itself() {
        let mut stalled = Stalled::new(9, 2, 1);
        for from in ["192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.2"] {
            stalled.begin(from).await.unwrap();
        }
        assert_eq!(stalled.displaced(), [2]);
        assert_eq!(stalled.handshakes.network.unfinished.len(), 3);
    }

    #[tokio::test]
    async fn the_loopback_and_the_network_take_no_places_of_each_other() {
        let mut stalled = Stalled::new(1, 1, 1);
        stalled.begin("127.0.0.1").await.unwrap();
        stalled.begin("192.0.2.1").await.unwrap();
        assert_eq!(stalled.displaced(), [0; 0]);
        stalled.begin("::1").await.unwrap();
        assert_eq!(stalled.displaced(), [1]);
        stalled.begin("192.0.2.2").await.unwrap();
        assert_eq!(stalled.displaced(), [1, 2]);
    }

    #[tokio::test]
    async fn what_is_done_and_waits_to_be_taken_makes_no_room() {
        let mut stalled = Stalled::new(2, 2, 1);
        stalled.begin("192.0.2.1").await.unwrap();
        stalled.done.add_permits(1);
        while stalled.done.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        stalled.begin("192.0.2.2").await.unwrap();
        stalled.begin("192.0.2.3").await.unwrap();
        assert_eq!(stalled.displaced(), [2]);
        stalled.done.add_permits(1);
        while stalled.done.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(stalled.begin("192.0.2.4").await.is_err());
        assert_eq!(stalled.displaced(), [2]);
    }
}
