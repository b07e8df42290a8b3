//! The redirector's side of the control socket: who may ask, and what an ask does to the gate.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::ids::AccountName;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::gate::Gate;
use super::routes::Routes;
use crate::control::{Overview, Reply, Request, Stamp, read_message, write_message};

/// How long the agent may take between two messages.
const MESSAGE_WITHIN: Duration = Duration::from_secs(30);

/// The longest that a drain is waited for.
const MAX_DRAIN: Duration = Duration::from_secs(600);

/// What the control socket speaks for.
pub struct Control {
    /// The gate.
    pub gate: Arc<Gate>,
    /// When this process started.
    pub started: Stamp,
    /// Connections open now.
    pub connections: Arc<AtomicU64>,
    /// Those that did not come from other servers.
    pub visitors: Arc<AtomicU64>,
}

impl Control {
    /// Serves one connection of the agent.
    pub async fn serve(&self, stream: UnixStream) {
        if let Err(fault) = self.talk(stream).await {
            tracing::warn!(%fault, "a control connection ended");
        }
    }

    async fn talk(&self, stream: UnixStream) -> Result<(), Fault> {
        let caller = stream
            .peer_cred()
            .map_err(|e| Fault::io("the caller of the control socket is unknown", &e))?
            .uid();
        // The socket's mode lets only root in; this holds even if somebody changed it. The own
        // user gains nothing that it does not have.
        if caller != 0 && caller != nix::unistd::geteuid().as_raw() {
            return Err(Fault::precondition(format!(
                "user {caller} may not control the redirector"
            )));
        }
        let mut stream = BufReader::new(stream);
        loop {
            let request = match timeout(MESSAGE_WITHIN, read_message(&mut stream)).await {
                Ok(Ok(Some(request))) => request,
                Ok(Ok(None)) | Err(_) => return Ok(()),
                Ok(Err(fault)) => {
                    write_message(&mut stream, &Reply::Fault { fault: fault.clone() }).await?;
                    return Err(fault);
                }
            };
            let reply = self.answer(request, stream.get_ref()).await.unwrap_or_else(|fault| {
                tracing::info!(%fault, "a request of the agent is refused");
                Reply::Fault { fault }
            });
            match timeout(MESSAGE_WITHIN, write_message(&mut stream, &reply)).await {
                Ok(written) => written?,
                Err(_) => return Ok(()),
            }
        }
    }

    async fn answer(&self, request: Request, caller: &UnixStream) -> Result<Reply, Fault> {
        let gate = &self.gate;
        match request {
            Request::SetRoute { route } => {
                let account = route.account.clone();
                self.change(caller, Some(&account), |routes| routes.set_route(route)).await?;
            }
            Request::Hold { account, epoch, limits } => {
                let hold = |routes: &mut Routes| routes.hold(&account, epoch, limits);
                self.change(caller, Some(&account), hold).await?;
                return Ok(Reply::Running { running: gate.leftover(&account)? });
            }
            Request::Release { account, epoch, to } => {
                let release = |routes: &mut Routes| routes.release(&account, epoch, to);
                self.change(caller, Some(&account), release).await?;
            }
            Request::RemoveRoute { account, epoch } => {
                self.change(caller, Some(&account), |routes| routes.remove(&account, epoch))
                    .await?;
            }
            Request::SetPeers { peers } => {
                self.change(caller, None, |routes| routes.set_peers(peers)).await?;
            }
            Request::Drain { account, timeout_ms } => {
                let limit = Duration::from_millis(timeout_ms).min(MAX_DRAIN);
                return Ok(Reply::Running { running: gate.drain(&account, limit).await? });
            }
            Request::Status => {
                let (peers, accounts) = gate.status();
                let connections = self.connections.load(Ordering::Relaxed);
                let visitors = self.visitors.load(Ordering::Relaxed);
                let overview =
                    Overview { started: self.started, connections, visitors, peers, accounts };
                return Ok(Reply::Status { overview: Box::new(overview) });
            }
        }
        Ok(Reply::Done)
    }

    /// Changes the routes, if the agent still waits for it when its turn has come. An agent that has given up
    /// asks something else on another connection, which may be read before this one: a hold that took effect
    /// after the account was taken back would hold its visitors with nobody to release them.
    async fn change(
        &self,
        caller: &UnixStream,
        account: Option<&AccountName>,
        edit: impl FnOnce(&mut Routes) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let edit = |routes: &mut Routes| match has_hung_up(caller) {
            true => Err(Fault::transient("whoever asked for a change of routes has given up")),
            false => edit(routes),
        };
        self.gate.change(account, edit).await
    }
}

/// Whether the other end has closed, whatever it sent before that.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    // It does not wait, so that no signal interrupts it. One that cannot be asked is not known to be gone.
    poll(&mut asked, PollTimeout::ZERO).is_ok()
        && asked[0].revents().is_some_and(|seen| seen.intersects(gone))
}

#[cfg(test)]
mod tests {
    use super::super::store::Store;
    use super::*;
    use crate::control::{AccountRoute, HoldLimits, LocalUpstream, RouteState};
    use ferry_proto::ids::Epoch;

    fn route() -> AccountRoute {
        AccountRoute {
            account: "shop".parse().unwrap(),
            epoch: Epoch(1),
            domains: ["shop.example".parse().unwrap()].into(),
            state: RouteState::Local,
            upstream: LocalUpstream::default(),
        }
    }

    fn control(dir: &std::path::Path) -> Control {
        Control {
            gate: Gate::open(Store::in_directory(dir)).unwrap(),
            started: Stamp { unix_ns: 0, monotonic_ns: 0 },
            connections: Arc::default(),
            visitors: Arc::default(),
        }
    }

    fn set() -> Request {
        Request::SetRoute { route: route() }
    }

    fn hold() -> Request {
        Request::Hold { account: route().account, epoch: Epoch(1), limits: HoldLimits::default() }
    }

    /// The agent gave up a hold before it was read, and took the account back on another connection.
    #[tokio::test]
    async fn a_hold_whose_caller_has_gone_takes_no_effect() {
        let dir = tempfile::tempdir().unwrap();
        let control = control(dir.path());
        let (mut agent, unread) = UnixStream::pair().unwrap();
        write_message(&mut agent, &hold()).await.unwrap();
        drop(agent);
        let (_agent, other) = UnixStream::pair().unwrap();
        control.answer(set(), &other).await.unwrap();
        control.serve(unread).await;
        assert_eq!(control.gate.status().1[0].state, RouteState::Local);
        // One that is waited for does.
        control.answer(hold(), &other).await.unwrap();
        assert!(matches!(control.gate.status().1[0].state, RouteState::Hold { .. }));
    }

    /// The agent gives up a hold that takes long to save, and takes the account back.
    #[test]
    fn a_hold_that_is_still_being_saved_does_not_outlive_the_route_set_after_it() {
        // Whoever has the only thread that may block keeps everybody else from saving.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let control = control(dir.path());
            let (_agent, caller) = UnixStream::pair().unwrap();
            control.answer(set(), &caller).await.unwrap();
            let (free, busy) = std::sync::mpsc::channel::<()>();
            let disk = tokio::task::spawn_blocking(move || busy.recv());
            let (held, set) = (control.answer(hold(), &caller), control.answer(set(), &caller));
            let (held, set, ()) = tokio::join!(biased; held, set, async {
                    free.send(()).unwrap();
            });
            held.unwrap();
            set.unwrap();
            disk.await.unwrap().unwrap();
            assert_eq!(control.gate.status().1[0].state, RouteState::Local);
        });
    }
}
