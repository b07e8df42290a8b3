//! The gate that every request passes: it says where the request goes, lets it wait, or refuses
//! it. It owns the route table and the changes of it, and makes them durable before they count.
//!
//! A request is counted in under the same lock under which its route was read, so a hold knows of
//! every request that it has to wait for, and none slips by.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferry_proto::Fault;
use ferry_proto::ids::{AccountName, Epoch};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::live::{Cut, Generation, Live};
use super::pass::{Pass, Waiting};
use super::routes::{Index, Routes, unknown};
use super::store::Store;
use crate::control::{AccountRoute, AccountStatus, LocalUpstream, RouteState};

/// Where an admitted request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// To the address that the visitor asked for: no account of ours.
    Unrouted,
    /// To the own web server.
    Local(LocalUpstream),
    /// To the redirector of the server that serves the account.
    Remote {
        /// Its peer ingress.
        peer: SocketAddr,
        /// The account.
        account: AccountName,
        /// The epoch under which it serves it.
        epoch: Epoch,
    },
}

/// Why a request is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It came from another server for an account that has no route here.
    NotHere,
    /// It came from another server for a later epoch than this one knows.
    Behind,
    /// Beyond the hold limit, in number, bytes or time.
    Held,
}

/// A request that asks where to go.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The host that it is for.
    pub host: Option<&'a str>,
    /// What the other server says, if it came from one.
    pub passage: Option<(&'a AccountName, Epoch)>,
    /// How many bytes of it are kept while it waits.
    pub bytes: u64,
    /// Whether it waited before.
    pub again: bool,
}

/// The answer to an [`Ask`].
pub enum Admission {
    /// Go there.
    Pass(Pass),
    /// Wait.
    Wait(Waiting),
    /// Be refused.
    Refused(Refusal),
}

#[derive(Default)]
struct Inner {
    routes: Routes,
    index: Index,
    live: HashMap<AccountName, Live>,
    /// Connections of hosts without a route, by host: one may get a route while they run.
    strays: HashMap<String, Arc<Generation>>,
}

/// The gate.
pub struct Gate {
    inner: Mutex<Inner>,
    /// One change at a time, from reading the table to making it count.
    changing: tokio::sync::Mutex<()>,
    store: Store,
    /// The accounts with which the table on disk is behind. The others are not held up by them.
    unsaved: Mutex<BTreeSet<AccountName>>,
    /// Told whenever a request ends.
    ended: Notify,
    next_id: AtomicU64,
}

impl Gate {
    /// The gate with the routes of `store`.
    ///
    /// # Errors
    /// The routes cannot be read.
    pub fn open(store: Store) -> Result<Arc<Self>, Fault> {
        store.sweep();
        let routes = store.load()?;
        let mut inner = Inner { index: Index::of(&routes), ..Inner::default() };
        for (account, standing) in &routes.accounts {
            let mut live = Live::default();
            // Nothing runs yet, so nothing is to be cut.
            let _ = live.apply(None, &standing.route);
            inner.live.insert(account.clone(), live);
        }
        inner.routes = routes;
        Ok(Arc::new(Self {
            inner: Mutex::new(inner),
            changing: tokio::sync::Mutex::new(()),
            store,
            unsaved: Mutex::default(),
            ended: Notify::new(),
            next_id: AtomicU64::new(0),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The lock is held over short pieces without panics; a broken one would still be whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once the lock was free.
    pub fn touch(&self) {
        drop(self.lock());
    }

    /// Says where a request goes.
    pub fn admit(self: &Arc<Self>, ask: Ask<'_>) -> Admission {
        let mut inner = self.lock();
        let account = ask.host.and_then(|host| inner.index.account(host)).cloned();
        let Some(account) = account else {
            return match ask.passage {
                Some(_) => Admission::Refused(Refusal::NotHere),
                None => Admission::Pass(self.pass_stray(&mut inner, ask.host)),
            };
        };
        // Inner is one struct behind a guard: borrow its parts separately.
        let Inner { routes, live, .. } = &mut *inner;
        let (Some(standing), Some(live)) =
            (routes.accounts.get(&*account), live.get_mut(&*account))
        else {
            // Index, table and live accounts change together; never pass what does not fit.
            return Admission::Refused(Refusal::NotHere);
        };
        let route = &standing.route;
        match ask.passage {
            Some((named, _)) if *named != *account => {
                live.refused();
                return Admission::Refused(Refusal::NotHere);
            }
            Some((_, epoch)) if epoch > route.epoch => {
                live.refused();
                return Admission::Refused(Refusal::Behind);
            }
            _ => {}
        }
        let goal = match &route.state {
            RouteState::Hold { .. } => {
                return self.wait(live, &account, ask);
            }
            RouteState::Local => Goal::Local(route.upstream.clone()),
            RouteState::Remote { peer } => {
                Goal::Remote { peer: *peer, account: (*account).clone(), epoch: route.epoch }
            }
        };
        let generation = Arc::clone(live.current());
        generation.enter();
        Admission::Pass(Pass {
            gate: Arc::clone(self),
            generation,
            goal,
            stray: None,
            look: live.wait(),
            pace: Some(Arc::clone(live.pace())),
            account: Some(account),
        })
    }

    fn pass_stray(self: &Arc<Self>, inner: &mut Inner, host: Option<&str>) -> Pass {
        let generation = match host {
            Some(host) => Arc::clone(inner.strays.entry(host.to_owned()).or_default()),
            None => Arc::default(),
        };
        generation.enter();
        Pass {
            gate: Arc::clone(self),
            generation,
            goal: Goal::Unrouted,
            stray: host.map(str::to_owned),
            look: Duration::ZERO,
            pace: None,
            account: None,
        }
    }

    fn wait(
        self: &Arc<Self>,
        live: &mut Live,
        account: &Arc<AccountName>,
        ask: Ask<'_>,
    ) -> Admission {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        match live.queue(id, ask.bytes, ask.again) {
            Some(released) => Admission::Wait(Waiting {
                gate: Arc::clone(self),
                account: Arc::clone(account),
                id,
                wait: live.wait(),
                released,
            }),
            None => {
                live.refused();
                Admission::Refused(Refusal::Held)
            }
        }
    }

    /// A request has ended. `stray` is the host of one without a route.
    pub fn end(&self, generation: &Arc<Generation>, stray: Option<&str>) {
        let last = generation.leave();
        if let Some(host) = stray.filter(|_| last) {
            let mut inner = self.lock();
            // It may have been replaced, or entered again before the lock was had.
            let gone = |g: &Arc<Generation>| Arc::ptr_eq(g, generation) && g.running() == 0;
            if inner.strays.get(host).is_some_and(gone) {
                inner.strays.remove(host);
            }
        }
        self.ended.notify_waiters();
    }

    /// Whether a server may use the peer ingress.
    pub fn is_peer(&self, address: IpAddr) -> bool {
        self.lock().routes.peers.contains(&address.to_canonical())
    }

    /// Acts on an account, if it still has a route.
    pub fn with_live(&self, account: &AccountName, act: impl FnOnce(&mut Live)) {
        if let Some(live) = self.lock().live.get_mut(account) {
            act(live);
        }
    }

    fn unsaved(&self) -> MutexGuard<'_, BTreeSet<AccountName>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the routes: durable first, then in effect.
    ///
    /// What ends a hold must succeed without free disk (see [`ends_hold`]). It is then in effect but not
    /// durable; a restart before [`Gate::save_again`] succeeds finds the account held, which is
    /// safe, and the agent sets it again.
    ///
    /// What stands already is judged here too, never before the turn has come: a change that is still
    /// being saved would take effect after the answer to a later request.
    ///
    /// # Errors
    /// The change is not allowed or could not be saved; then nothing has changed.
    pub async fn change(
        self: &Arc<Self>,
        account: Option<&AccountName>,
        edit: impl FnOnce(&mut Routes) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let _one = self.changing.lock().await;
        let mut next = self.lock().routes.clone();
        edit(&mut next)?;
        let saved = account.is_none_or(|account| !self.unsaved().contains(account));
        if saved && next == self.lock().routes {
            return Ok(());
        }
        if let Err(fault) = self.save(&next).await {
            let needs_no_disk = account.is_some_and(|a| ends_hold(&self.lock().routes, &next, a));
            if !needs_no_disk {
                return Err(fault);
            }
            tracing::error!(%fault, "a release is in effect but not saved; trying again");
            self.unsaved().extend(account.cloned());
        }
        let index = Index::of(&next);
        let mut inner = self.lock();
        inner.index = index;
        let before = std::mem::replace(&mut inner.routes, next);
        if let Some(account) = account {
            self.take_effect(&mut inner, account, &before);
        }
        Ok(())
    }

    async fn save(&self, routes: &Routes) -> Result<(), Fault> {
        let (store, copy) = (self.store.clone(), routes.clone());
        tokio::task::spawn_blocking(move || store.save(&copy))
            .await
            .map_err(|e| Fault::bug("saving the routes was broken off").caused_by(&e))??;
        self.unsaved().clear();
        Ok(())
    }

    /// Saves what an earlier change could not.
    pub async fn save_again(&self) {
        if !self.unsaved().is_empty() {
            let _one = self.changing.lock().await;
            let routes = self.lock().routes.clone();
            if let Err(fault) = self.save(&routes).await {
                tracing::error!(%fault, "the routes are still not saved");
            }
        }
    }

    fn take_effect(self: &Arc<Self>, inner: &mut Inner, account: &AccountName, before: &Routes) {
        let before = before.accounts.get(account).map(|standing| &standing.route);
        let Inner { routes, index, live, strays } = inner;
        let Some(after) = routes.accounts.get(account).map(|standing| &standing.route) else {
            if let (Some(live), Some(route)) = (live.remove(account), before) {
                live.forget(&route.state);
            }
            return;
        };
        let live = live.entry(account.clone()).or_default();
        strays.retain(|host, generation| {
            let ours = index.account(host).is_some_and(|found| **found == *account);
            if ours {
                live.adopt(Arc::clone(generation));
            }
            !ours
        });
        tracing::info!(%account, epoch = %after.epoch, state = ?after.state, "route changed");
        if let Cut::After(grace) = live.apply(before, after) {
            let (gate, account) = (Arc::downgrade(self), account.clone());
            tokio::spawn(async move {
                tokio::time::sleep(grace).await;
                if let Some(gate) = gate.upgrade() {
                    gate.with_live(&account, |live| live.cut(Instant::now()));
                }
            });
        }
    }

    /// How many requests run that began before the account's route was last changed.
    ///
    /// # Errors
    /// An unknown account.
    pub fn leftover(&self, account: &AccountName) -> Result<u64, Fault> {
        let mut inner = self.lock();
        inner.live.get_mut(account).map(Live::leftover).ok_or_else(|| unknown(account))
    }

    /// Waits until none of those runs, at most `timeout`; returns how many are left.
    ///
    /// # Errors
    /// An unknown account.
    pub async fn drain(&self, account: &AccountName, timeout: Duration) -> Result<u64, Fault> {
        let deadline = Instant::now() + timeout.min(Duration::from_secs(3_600));
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            let left = self.leftover(account)?;
            if left == 0 || tokio::time::timeout_at(deadline, ended).await.is_err() {
                return Ok(left);
            }
        }
    }

    /// The peers and the accounts.
    pub fn status(&self) -> (BTreeSet<IpAddr>, Vec<AccountStatus>) {
        let inner = self.lock();
        let status = |route: &AccountRoute| AccountStatus {
            account: route.account.clone(),
            epoch: route.epoch,
            state: route.state.clone(),
            domains: u32::try_from(route.domains.len()).unwrap_or(u32::MAX),
            traffic: inner.live.get(&route.account).map(Live::traffic).unwrap_or_default(),
        };
        let accounts = inner.routes.accounts.values().map(|s| status(&s.route)).collect();
        (inner.routes.peers.clone(), accounts)
    }
}

/// Whether connections of the account that are held go on, to the own server or to where it has moved.
fn ends_hold(before: &Routes, after: &Routes, account: &AccountName) -> bool {
    let state = |routes: &Routes| Some(routes.accounts.get(account)?.route.state.clone());
    let was_held = matches!(state(before), Some(RouteState::Hold { .. }));
    match state(after) {
        Some(RouteState::Local) => true,
        Some(RouteState::Remote { .. }) => was_held,
        Some(RouteState::Hold { .. }) | None => false,
    }
}
