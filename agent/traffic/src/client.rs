//! The agent's side of the control socket. It owns one thing: turning a call into a request and
//! its reply, within a bounded time. It keeps no connection, so a redirector that was restarted in
//! between is not noticed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_failpoints::around_async;
use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, Epoch};
use tokio::io::BufReader;
use tokio::net::UnixStream;

use crate::control::{
    AccountRoute, AccountStatus, HoldLimits, Overview, Reply, Request, Target, read_message,
    write_message,
};

/// How long the redirector may take for an answer, beyond what a request itself waits for.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The redirector of this server.
#[derive(Debug, Clone)]
pub struct Redirector {
    socket: PathBuf,
}

impl Redirector {
    /// The redirector behind the control socket `path`, whether it answers now or not.
    pub fn at(path: impl AsRef<Path>) -> Self {
        Self { socket: path.as_ref().to_owned() }
    }

    /// The redirector behind the control socket `path`, once it has answered.
    ///
    /// # Errors
    /// Nobody answers there.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, Fault> {
        let this = Self { socket: path.as_ref().to_owned() };
        this.overview().await?;
        Ok(this)
    }

    /// Whether there is a redirector on this server, running or not.
    pub fn is_here(&self) -> bool {
        self.socket.exists()
    }

    /// Adds an account or replaces all that is known of it. Durable when it returns. The agent
    /// repeats it for every account of its ledger when it starts.
    ///
    /// # Errors
    /// An older epoch, a domain that another account has, or no room on the disk.
    pub async fn set_route(&self, route: AccountRoute) -> Result<(), Fault> {
        self.done(Request::SetRoute { route }).await
    }

    /// Holds the account's new requests; running ones are ended after `limits.grace_ms`. Returns
    /// how many run now: use [`Redirector::drain`] to wait for their end.
    ///
    /// # Errors
    /// An unknown account, an older epoch, or no room on the disk.
    pub async fn hold(
        &self,
        account: &AccountName,
        epoch: Epoch,
        limits: HoldLimits,
    ) -> Result<u64, Fault> {
        self.running(Request::Hold { account: account.clone(), epoch, limits }, Duration::ZERO)
            .await
    }

    /// Passes held and new requests of the account to `to`. A release to the own server succeeds
    /// even if the disk is full.
    ///
    /// # Errors
    /// An unknown account, an older epoch, another server under the same epoch, or no room on the
    /// disk.
    pub async fn release(
        &self,
        account: &AccountName,
        epoch: Epoch,
        to: Target,
    ) -> Result<(), Fault> {
        self.done(Request::Release { account: account.clone(), epoch, to }).await
    }

    /// Forgets the account; held requests are refused. Forgetting an unknown one succeeds.
    ///
    /// # Errors
    /// An older epoch, or no room on the disk.
    pub async fn remove_route(&self, account: &AccountName, epoch: Epoch) -> Result<(), Fault> {
        self.done(Request::RemoveRoute { account: account.clone(), epoch }).await
    }

    /// Replaces the list of servers that may use the peer ingress.
    ///
    /// # Errors
    /// No room on the disk.
    pub async fn set_peers(&self, peers: BTreeSet<IpAddr>) -> Result<(), Fault> {
        self.done(Request::SetPeers { peers }).await
    }

    /// Waits until no request of the account that began before the hold runs, at most `timeout`.
    /// Returns how many are left; 0 means that the account's connections have ended.
    ///
    /// # Errors
    /// An unknown account.
    pub async fn drain(&self, account: &AccountName, timeout: Duration) -> Result<u64, Fault> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.running(Request::Drain { account: account.clone(), timeout_ms }, timeout).await
    }

    /// Every routed account with its counters and measurements.
    ///
    /// # Errors
    /// The redirector does not answer.
    pub async fn status(&self) -> Result<Vec<AccountStatus>, Fault> {
        Ok(self.overview().await?.accounts)
    }

    /// The redirector as a whole.
    ///
    /// # Errors
    /// The redirector does not answer.
    pub async fn overview(&self) -> Result<Overview, Fault> {
        match self.ask(Request::Status, Duration::ZERO).await? {
            Reply::Status { overview } => Ok(*overview),
            other => Err(unexpected(&other)),
        }
    }

    async fn done(&self, request: Request) -> Result<(), Fault> {
        match self.ask(request, Duration::ZERO).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn running(&self, request: Request, extra: Duration) -> Result<u64, Fault> {
        match self.ask(request, extra).await? {
            Reply::Running { running } => Ok(running),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, request: Request, extra: Duration) -> Result<Reply, Fault> {
        let Some(change) = request.change() else { return self.answer(&request, extra).await };
        let lost = |e| Fault::io("the redirector cannot be reached", &e);
        around_async(|| change.to_owned(), lost, self.answer(&request, extra)).await
    }

    async fn answer(&self, request: &Request, extra: Duration) -> Result<Reply, Fault> {
        let within = ANSWER_WITHIN.saturating_add(extra);
        let reply =
            tokio::time::timeout(within, self.exchange(request)).await.map_err(|_| {
                Fault::transient(format!(
                    "the redirector did not answer within {} s",
                    within.as_secs()
                ))
                .remedy("look at `systemctl status ferry-redirector.service`")
            })??;
        match reply {
            Reply::Fault { fault } => Err(fault),
            other => Ok(other),
        }
    }

    async fn exchange(&self, request: &Request) -> Result<Reply, Fault> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| {
            Fault::transient(format!(
                "the redirector cannot be reached at {}",
                self.socket.display()
            ))
            .caused_by(&e)
            .remedy("start it with `systemctl start ferry-redirector.socket`")
        })?;
        let mut stream = BufReader::new(stream);
        write_message(&mut stream, request).await?;
        read_message(&mut stream).await?.ok_or_else(|| {
            Fault::transient("the redirector ended the control connection without an answer")
                .remedy("repeat it; look at `journalctl -u ferry-redirector.service`")
        })
    }
}

fn unexpected(reply: &Reply) -> Fault {
    Fault::bug(format!("the redirector gave an answer that does not fit the question: {reply:?}"))
}
