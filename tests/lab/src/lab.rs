//! The lab as a whole: hosts on a network, made together and removed together.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::cgroup::Cgroup;
use crate::host::Host;
use crate::image::Image;
use crate::network::Network;
use crate::progress::{Task, say};
use crate::spec::HostSpec;
use crate::state::{HostRecord, Lock, State};
use crate::{image, interrupt, mounts, packages, state};

/// Labs that may stand side by side. The first is the one that commands mean.
pub const NUMBERS: RangeInclusive<usize> = FIRST..=8;
const FIRST: usize = 1;
/// Programs of the lab that run outside its hosts are in this control group.
const OUTSIDE: &str = "outside";

/// Hosts on a network. A lab that [`Lab::up`] or [`Lab::fresh`] made goes down when the value
/// is dropped, also by an error, a signal or a panic, unless [`Lab::keep`] was called.
#[derive(Debug)]
pub struct Lab {
    place: Place,
    state: State,
    hosts: Vec<Host>,
    /// None where the lab was only opened to look at it.
    _lock: Option<Lock>,
    keep: bool,
}

/// Where a lab's things are.
#[derive(Debug, Clone)]
struct Place {
    dir: PathBuf,
    name: String,
    cgroup: Cgroup,
    network: Network,
}

impl Place {
    fn find(number: usize) -> Result<Place> {
        let dir = state::numbered(number)?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cgroup = Cgroup::of_lab(&name)?;
        let network = Network::at(dir.join("netns"));
        Ok(Place { dir, name, cgroup, network })
    }

    fn host(&self, spec: &HostSpec) -> Host {
        Host::new(spec.clone(), &self.name, &self.dir, &self.cgroup, &self.network)
    }

    fn hosts(&self, state: &State) -> Vec<Host> {
        state.hosts.iter().map(|record| self.host(&record.spec)).collect()
    }

    /// Makes what the hosts stand on.
    fn prepare(&self) -> Result<()> {
        mounts::share(&self.dir)?;
        self.cgroup.child(OUTSIDE).create()?;
        self.network.create()
    }

    /// Removes the lab, whatever there is of it. The caller holds the lock.
    fn remove(&self) -> Result<()> {
        self.cgroup.kill()?;
        // A damaged record must not keep anything alive: only nspawn's own leftovers need names.
        for host in self.hosts(&State::load(&self.dir).unwrap_or_default()) {
            host.destroy()?;
        }
        mounts::unmount_below(&self.dir)?;
        self.cgroup.remove()?;
        fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))
    }
}

impl Lab {
    /// Brings these hosts up, and with them all they need: packages, images, the network. Hosts
    /// that are up already are left alone; the lab is kept if any was.
    pub fn up(wanted: &[HostSpec]) -> Result<Lab> {
        Lab::up_beside(FIRST, wanted)
    }

    fn up_beside(number: usize, wanted: &[HostSpec]) -> Result<Lab> {
        prepare(wanted)?;
        let place = Place::find(number)?;
        let lock = Lock::take(&place.dir)?;
        let state = State::load(&place.dir)?;
        let keep = !state.hosts.is_empty();
        let hosts = Vec::new();
        // From here on an error drops `lab`, and that takes it down.
        let mut lab = Lab { place, state, hosts, _lock: Some(lock), keep };
        lab.place.prepare()?;
        lab.add_hosts(wanted)?;
        Ok(lab)
    }

    /// Brings these hosts up anew; a lab that was there is taken down first.
    pub fn fresh(wanted: &[HostSpec]) -> Result<Lab> {
        Lab::fresh_beside(FIRST, wanted)
    }

    /// The same as one of several labs side by side, each with a network of its own: this one has that
    /// number, of [`NUMBERS`].
    pub fn fresh_beside(number: usize, wanted: &[HostSpec]) -> Result<Lab> {
        prepare(wanted)?;
        if take_down(number)? {
            say("took down the lab that was there");
        }
        Lab::up_beside(number, wanted)
    }

    /// The lab as it stands, to look at it and to work in it.
    pub fn open() -> Result<Lab> {
        let place = Place::find(FIRST)?;
        let state = State::load(&place.dir)?;
        if state.hosts.is_empty() {
            return Err(anyhow!("there is no lab: `cargo lab up` makes one"));
        }
        let hosts = place.hosts(&state);
        Ok(Lab { place, state, hosts, _lock: None, keep: true })
    }

    /// Removes the lab, all that were beside it, and everything that they made on this machine but
    /// the cache, also after a crash. Tells whether there was anything.
    pub fn down() -> Result<bool> {
        packages::check_machine()?;
        image::remove_half_made()?;
        NUMBERS.map(take_down).try_fold(false, |any, one| Ok(one? || any))
    }

    /// Its name, which no other lab has.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Lets the lab go on when this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Adds hosts to the lab, or starts those that are off; all at once. None of the new ones
    /// stays if one fails.
    pub fn add_hosts(&mut self, wanted: &[HostSpec]) -> Result<()> {
        prepare(wanted)?;
        let (known, new): (Vec<_>, Vec<_>) = wanted.iter().partition(|spec| self.is_made(spec));
        for spec in &new {
            self.place.host(spec).destroy()?;
            let tree = image::tree(spec.image)?;
            self.state.put(HostRecord { spec: (*spec).clone(), tree, ready: false });
        }
        self.state.save(&self.place.dir)?;
        let others: Vec<HostSpec> = self.state.hosts.iter().map(|h| h.spec.clone()).collect();
        let started = in_parallel(&known, |spec| self.restart(spec))
            .and_then(|()| in_parallel(&new, |spec| self.make(spec, &others)));
        if let Err(error) = started {
            interrupt::shielded(|| self.forget(&new))?;
            return Err(error);
        }
        for spec in &new {
            let tree = image::tree(spec.image)?;
            self.state.put(HostRecord { spec: (*spec).clone(), tree, ready: true });
        }
        self.state.save(&self.place.dir)?;
        self.hosts = self.place.hosts(&self.state);
        Ok(())
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.iter().find(|host| host.name() == name).ok_or_else(|| {
            let names: Vec<&str> = self.hosts.iter().map(Host::name).collect();
            anyhow!("the lab has no host {name:?}; it has {}", names.join(", "))
        })
    }

    /// A program of this machine that will run on the lab's network, beside the hosts, where
    /// visitors and checkers are. It ends with the lab at the latest.
    pub fn netns_command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo 0 > "$0" && exec "$@""#]);
        command.arg(self.place.cgroup.child(OUTSIDE).door());
        let inner = self.place.network.command(program);
        command.arg(inner.get_program()).args(inner.get_args());
        command
    }

    /// The file that keeps the lab's network namespace: for `setns`.
    pub fn netns_file(&self) -> &Path {
        self.place.network.file()
    }

    /// The power of a host with disks of its own fails: what no program had synced is lost.
    pub fn lose_power(&self, host: &Host) -> Result<()> {
        host.lose_power()
    }

    /// The power comes back: the host boots from what its disks hold. Failed units are left to the
    /// caller, who may have made them fail.
    pub fn power_on(&self, host: &Host) -> Result<()> {
        let record = self.state.host(host.name()).context("the lab does not know this host")?;
        host.mount(&record.tree)?;
        host.boot().map(drop)
    }

    /// Drops everything between two hosts, in both directions, whatever addresses they use.
    pub fn block(&self, one: &Host, other: &Host) -> Result<()> {
        self.place.network.block(&one.port()?, &other.port()?)
    }

    /// Takes back every [`Lab::block`].
    pub fn unblock_all(&self) -> Result<()> {
        self.place.network.unblock_all()
    }

    fn is_made(&self, spec: &HostSpec) -> bool {
        self.state.host(&spec.name).is_some_and(|h| h.ready && h.spec == *spec && h.tree.is_dir())
    }

    fn make(&self, spec: &HostSpec, others: &[HostSpec]) -> Result<()> {
        let task = Task::start(format!("booting {} ({})", spec.name, spec.image.name()));
        let host = self.place.host(spec);
        host.create(&image::tree(spec.image)?, others)?;
        host.start()?;
        task.done();
        Ok(())
    }

    fn restart(&self, spec: &HostSpec) -> Result<()> {
        let host = self.place.host(spec);
        if host.is_on() {
            // It is left as its user has it, failed units included.
            return host.wait_booted().map(drop);
        }
        say(format!("{} was off", spec.name));
        if let Some(record) = self.state.host(&spec.name) {
            host.mount(&record.tree)?;
        }
        host.start()
    }

    fn forget(&mut self, specs: &[&HostSpec]) -> Result<()> {
        // All of them before any disk: a host that is just starting sees the others' disks.
        for spec in specs {
            self.place.host(spec).kill_power()?;
        }
        for spec in specs {
            self.place.host(spec).destroy()?;
            self.state.remove(&spec.name);
        }
        self.state.save(&self.place.dir)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        say("taking the lab down");
        if let Err(error) = interrupt::shielded(|| self.place.remove()) {
            say(format!("could not take the lab down: {error:#}; run `cargo lab down`"));
        }
    }
}

/// Removes one of the labs. Tells whether it was there.
fn take_down(number: usize) -> Result<bool> {
    let place = Place::find(number)?;
    let Some(_lock) = Lock::take_existing(&place.dir)? else {
        return Ok(false);
    };
    interrupt::shielded(|| place.remove())?;
    Ok(true)
}

/// Makes this machine ready for such hosts.
fn prepare(wanted: &[HostSpec]) -> Result<()> {
    packages::check_machine()?;
    packages::ensure_needed()?;
    let images: BTreeSet<Image> = wanted.iter().map(|spec| spec.image).collect();
    image::ensure(&images.into_iter().collect::<Vec<_>>())
}

/// Does something for every host at once, and waits for all before it tells of a failure.
fn in_parallel(specs: &[&HostSpec], work: impl Fn(&HostSpec) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            specs.iter().map(|spec| (scope.spawn(move || work(spec)), &spec.name)).collect();
        let results: Vec<Result<()>> = threads
            .into_iter()
            .map(|(thread, name)| thread.join().unwrap_or_else(|_| Err(anyhow!("{name}: a panic"))))
            .collect();
        results.into_iter().collect()
    })
}
