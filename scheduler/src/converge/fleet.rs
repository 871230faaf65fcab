//! The fleet as this process sees it: an engine per host, what each engine last listed, what containers use.
//! All of it can be thrown away at any moment; the store is what counts.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::engine::{Container, ContainerStats, Engine, EngineError, EngineOpener};
use model::store::Store;
use model::{Host, HostName, Instance, InstanceId, Timestamp};
use tokio::sync::Notify;

use crate::placement::{Census, DISK_REST};

/// What a host's engine said when it was last asked for its containers.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    /// When the question was asked: what was changed later may be missing.
    pub begun_at: Timestamp,
    /// The containers of this installation.
    pub containers: HashMap<InstanceId, Container>,
}

/// An opened engine and the URL from which it was opened.
type Opened = (String, Arc<dyn Engine>);

/// Engines, observations and figures of all hosts.
pub(crate) struct Fleet {
    pub(crate) store: Arc<dyn Store>,
    opener: EngineOpener,
    engines: Mutex<HashMap<HostName, Opened>>,
    observations: Mutex<HashMap<HostName, Arc<Observation>>>,
    stats: Mutex<HashMap<InstanceId, ContainerStats>>,
    /// Hosts that are passed over since their disks are full, and until when.
    full: Mutex<HashMap<HostName, Timestamp>>,
    /// Per watched host: asks its monitor to list again.
    look_again: Mutex<HashMap<HostName, Arc<Notify>>>,
    /// Wakes the convergence loop.
    pub(crate) changed: Notify,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").finish_non_exhaustive()
    }
}

/// A panic while one of these short locks was held leaves whole values behind: go on with them.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    /// A fleet that has seen nothing yet.
    pub(crate) fn new(store: Arc<dyn Store>, engines: EngineOpener) -> Arc<Self> {
        Arc::new(Self {
            store,
            opener: engines,
            engines: Mutex::default(),
            observations: Mutex::default(),
            stats: Mutex::default(),
            full: Mutex::default(),
            look_again: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// The engine of `host`, opened at first use and again when its URL has changed.
    pub(crate) fn engine(&self, host: &Host) -> Result<Arc<dyn Engine>, EngineError> {
        if let Some((url, engine)) = lock(&self.engines).get(&host.name)
            && *url == host.engine
        {
            return Ok(Arc::clone(engine));
        }
        let engine = (self.opener)(&host.engine)?;
        lock(&self.engines).insert(host.name.clone(), (host.engine.clone(), Arc::clone(&engine)));
        Ok(engine)
    }

    /// What the container of `instance` used when it was last asked.
    pub(crate) fn stats(&self, instance: &InstanceId) -> Option<ContainerStats> {
        lock(&self.stats).get(instance).copied()
    }

    /// Replaces the figures of all containers.
    pub(crate) fn set_stats(&self, stats: HashMap<InstanceId, ContainerStats>) {
        *lock(&self.stats) = stats;
    }

    /// The engine of `host` said at `now` that its disk is full.
    pub(crate) fn disk_full(&self, host: &HostName, now: Timestamp) {
        lock(&self.full).insert(host.clone(), now.plus(DISK_REST));
    }

    /// Hosts whose disks are full, as far as this process knows, and until when they are passed over.
    pub(crate) fn full_disks(&self, now: Timestamp) -> HashMap<HostName, Timestamp> {
        let mut full = lock(&self.full);
        full.retain(|_, until| *until > now);
        full.clone()
    }

    /// What `held` instances take, and which hosts are passed over now.
    pub(crate) fn census(&self, held: &[Instance], now: Timestamp) -> Census {
        let mut census = Census::of(held);
        for host in self.full_disks(now).keys() {
            census.disk_full(host);
        }
        census
    }

    /// What the engine of `host` last said.
    pub(crate) fn observation(&self, host: &HostName) -> Option<Arc<Observation>> {
        lock(&self.observations).get(host).cloned()
    }

    /// All observations.
    pub(crate) fn observations(&self) -> HashMap<HostName, Arc<Observation>> {
        lock(&self.observations).clone()
    }

    /// Takes over what an engine has said, and wakes the convergence loop.
    pub(crate) fn observe(&self, host: &HostName, observation: Observation) {
        let mut observations = lock(&self.observations);
        let newer = observations
            .get(host)
            .is_none_or(|o| o.begun_at <= observation.begun_at);
        if newer {
            observations.insert(host.clone(), Arc::new(observation));
        }
        drop(observations);
        self.changed.notify_one();
    }

    /// The engine of `host` does not answer: what it said before is no longer known to be so.
    pub(crate) fn unobserve(&self, host: &HostName) {
        lock(&self.observations).remove(host);
    }

    /// Asks the monitor of `host` to list its containers again.
    pub(crate) fn look_again(&self, host: &HostName) {
        if let Some(notify) = lock(&self.look_again).get(host) {
            notify.notify_one();
        }
    }

    /// The bell by which the monitor of `host` is asked to list again.
    pub(crate) fn bell(&self, host: &HostName) -> Arc<Notify> {
        Arc::clone(lock(&self.look_again).entry(host.clone()).or_default())
    }

    /// Forgets every host that is not in `hosts`.
    pub(crate) fn retain(&self, hosts: &HashSet<HostName>) {
        lock(&self.engines).retain(|name, _| hosts.contains(name));
        lock(&self.observations).retain(|name, _| hosts.contains(name));
        lock(&self.look_again).retain(|name, _| hosts.contains(name));
    }
}
