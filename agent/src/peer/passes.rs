//! Passes of files that are waiting for their data streams: each stream is a connection of its own, which
//! names the pass that it belongs to. It must not know what a pass does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_files::{MAX_STREAMS, Streams};
use ferry_proto::Fault;
use ferry_proto::channel::SecureStream;
use ferry_proto::ids::ServerName;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Answer;

/// How long all data streams of a pass may take to be there.
const GATHERING: Duration = Duration::from_secs(30);

/// Which pass: a number that only its two ends know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct PassId([u64; 2]);

/// A data stream, with its place among the operations of peers.
type Arrival = (SecureStream, OwnedSemaphorePermit);

struct Waiting {
    /// Only its agent may add to it.
    peer: ServerName,
    arrivals: mpsc::Sender<Arrival>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Passes(Mutex<HashMap<PassId, Waiting>>);

/// A pass that is waiting, until dropped.
pub(super) struct Gathering {
    passes: Arc<Passes>,
    id: PassId,
    arrivals: mpsc::Receiver<Arrival>,
    expected: usize,
}

impl Passes {
    fn waiting(&self) -> MutexGuard<'_, HashMap<PassId, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pass begins that has so many data streams.
    pub(super) fn begin(self: &Arc<Self>, peer: ServerName, streams: usize) -> Answer<Gathering> {
        if !(1..=MAX_STREAMS).contains(&streams) {
            return Err(Fault::permanent(format!(
                "a pass of files has 1 to {MAX_STREAMS} data streams, not {streams}"
            )));
        }
        let (sender, arrivals) = mpsc::channel(streams);
        let id = PassId(rand::random());
        self.waiting().insert(id, Waiting { peer, arrivals: sender });
        Ok(Gathering { passes: Arc::clone(self), id, arrivals, expected: streams })
    }

    /// Whether a pass of this number waits for data streams of this peer.
    pub(super) fn check(&self, id: PassId, peer: &ServerName) -> Answer<()> {
        match self.waiting().get(&id) {
            Some(waiting) if waiting.peer == *peer => Ok(()),
            _ => Err(not_waiting()),
        }
    }

    /// A data stream has come. What is more than expected is closed.
    pub(super) fn add(&self, id: PassId, arrival: Arrival) -> Answer<()> {
        let arrivals = self.waiting().get(&id).map(|waiting| waiting.arrivals.clone());
        let added = arrivals.is_some_and(|arrivals| arrivals.try_send(arrival).is_ok());
        if added { Ok(()) } else { Err(not_waiting()) }
    }
}

fn not_waiting() -> Fault {
    Fault::transient("no pass of files waits for this data stream").remedy("run the pass again")
}

impl Gathering {
    /// Its number.
    pub(super) fn id(&self) -> PassId {
        self.id
    }

    /// Waits for the data streams. Their places are kept as long as what is answered beside them.
    pub(super) async fn all(
        mut self,
        control: SecureStream,
    ) -> Answer<(Streams<SecureStream>, Vec<OwnedSemaphorePermit>)> {
        let gathered = async {
            let (mut data, mut permits) = (Vec::new(), Vec::new());
            while data.len() < self.expected {
                let Some((stream, permit)) = self.arrivals.recv().await else { break };
                data.push(stream);
                permits.push(permit);
            }
            (data, permits)
        };
        let gathered = tokio::time::timeout(GATHERING, gathered).await;
        let (data, permits) = gathered.map_err(|_| {
            Fault::transient("the data streams of a pass of files did not come in time")
                .remedy("check the network between the two servers, then run the pass again")
        })?;
        Ok((Streams { control, data }, permits))
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        self.passes.waiting().remove(&self.id);
    }
}
