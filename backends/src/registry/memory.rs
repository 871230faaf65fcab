//! The registry in memory: for all roles in one process, and for tests.
//!
//! A write never waits for a follower: each follower has a bounded channel and a task that fills it from a short
//! log of changes; one that falls behind the log hears a fresh snapshot instead. There is always one leader.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::SinkExt as _;
use futures::channel::mpsc::{self, Receiver, Sender};
use model::registry::{
    Acknowledgement, LoadKey, RegistryChange, RegistryError, RegistryEvent, RegistryReader, RegistryRevision,
    RegistrySnapshot, RegistryWriter,
};
use tokio::sync::watch;

/// Most changes kept for followers; who lags by more hears a snapshot.
const LOG_LIMIT: usize = 1_024;
/// Events that wait in a follower's channel.
const CHANNEL: usize = 16;
/// How often a quiet follower is looked at for whether it still listens.
const LISTENING_CHECK: Duration = Duration::from_millis(100);

/// The registry of one process.
#[derive(Debug)]
pub struct MemoryRegistry {
    state: Arc<Mutex<State>>,
    revision: watch::Sender<i64>,
}

#[derive(Debug, Default)]
struct State {
    content: RegistrySnapshot,
    /// The newest changes, each with its revision.
    log: VecDeque<(i64, RegistryChange)>,
    acknowledgements: BTreeMap<String, Acknowledgement>,
    followers: usize,
    /// Nothing was written yet, and followers are not to take that for everything.
    unwritten: bool,
}

impl State {
    fn write(&mut self, change: &RegistryChange) {
        self.content.revision.0 += 1;
        self.content.fold(change.clone());
        if self.log.len() == LOG_LIMIT {
            self.log.pop_front();
        }
        self.log.push_back((self.content.revision.0, change.clone()));
    }

    /// What a follower that has seen everything up to `seen` must hear; `None`: nothing.
    fn since(&self, seen: Option<i64>) -> Option<RegistryEvent> {
        if self.unwritten {
            return None;
        }
        let now = self.content.revision;
        match seen {
            Some(seen) if seen == now.0 => None,
            Some(seen) if self.log.front().is_some_and(|(first, _)| *first <= seen + 1) => {
                let changes = self.log.iter().filter(|(r, _)| *r > seen).map(|(_, c)| c.clone());
                Some(RegistryEvent::Changes {
                    changes: changes.collect(),
                    revision: now,
                    heard: Instant::now(),
                })
            }
            _ => Some(RegistryEvent::Snapshot(self.content.clone())),
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryRegistry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with(false)
    }

    /// A registry whose followers hear nothing before its writer has first applied something, be it nothing: until then its
    /// emptiness says only that this process has just begun.
    #[must_use]
    pub fn unwritten() -> Arc<Self> {
        Self::with(true)
    }

    fn with(unwritten: bool) -> Arc<Self> {
        let state = State {
            unwritten,
            ..State::default()
        };
        Arc::new(Self {
            state: Arc::new(Mutex::new(state)),
            revision: watch::Sender::new(0),
        })
    }
}

/// Counts a follower for as long as it listens; when the last one has gone, so has its acknowledgement.
struct Follower(Arc<Mutex<State>>);

impl Follower {
    fn new(state: &Arc<Mutex<State>>) -> Self {
        lock(state).followers += 1;
        Self(Arc::clone(state))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.followers -= 1;
        if state.followers == 0 {
            state.acknowledgements.clear();
        }
    }
}

async fn feed(follower: Follower, mut revision: watch::Receiver<i64>, mut to: Sender<RegistryEvent>) {
    let mut seen = None;
    loop {
        revision.borrow_and_update();
        let event = lock(&follower.0).since(seen);
        if let Some(event) = event {
            seen = Some(match &event {
                RegistryEvent::Snapshot(snapshot) => snapshot.revision.0,
                RegistryEvent::Changes { revision, .. } => revision.0,
                RegistryEvent::Disconnected(_) => return,
            });
            if to.send(event).await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            changed = revision.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LISTENING_CHECK) => if to.is_closed() { return },
        }
    }
}

#[async_trait]
impl RegistryReader for MemoryRegistry {
    fn follow(&self) -> Receiver<RegistryEvent> {
        let (to, receiver) = mpsc::channel(CHANNEL);
        tokio::spawn(feed(Follower::new(&self.state), self.revision.subscribe(), to));
        receiver
    }

    async fn acknowledge(&self, gateway: &str, ack: &Acknowledgement) -> Result<(), RegistryError> {
        super::zookeeper::check_gateway_id(gateway)?;
        let mut state = lock(&self.state);
        state.acknowledgements.insert(gateway.to_owned(), ack.clone());
        Ok(())
    }
}

#[async_trait]
impl RegistryWriter for MemoryRegistry {
    async fn lead(&self, _timeout: Duration) -> Result<bool, RegistryError> {
        Ok(true)
    }

    async fn published(&self) -> Result<RegistrySnapshot, RegistryError> {
        let state = lock(&self.state);
        Ok(RegistrySnapshot {
            revision: state.content.revision,
            endpoints: state.content.endpoints.clone(),
            configs: state.content.configs.clone(),
            ..RegistrySnapshot::default()
        })
    }

    async fn loads(&self) -> Result<BTreeMap<LoadKey, model::Load>, RegistryError> {
        Ok(lock(&self.state).content.loads.clone())
    }

    async fn certificates(&self) -> Result<BTreeMap<model::CertificateName, model::SealedCertificate>, RegistryError> {
        Ok(lock(&self.state).content.certificates.clone())
    }

    async fn apply(&self, changes: &[RegistryChange]) -> Result<RegistryRevision, RegistryError> {
        let mut state = lock(&self.state);
        for change in changes {
            state.write(change);
        }
        state.unwritten = false;
        let revision = state.content.revision;
        self.revision.send_replace(revision.0);
        Ok(revision)
    }

    async fn acknowledgements(&self) -> Result<BTreeMap<String, Acknowledgement>, RegistryError> {
        Ok(lock(&self.state).acknowledgements.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use model::contract::registry::{endpoint, key};

    #[tokio::test]
    async fn registry_memory_is_silent_until_it_is_written() {
        let registry = MemoryRegistry::unwritten();
        let mut events = registry.follow();
        let early = tokio::time::timeout(LISTENING_CHECK * 2, events.next()).await;
        assert!(early.is_err(), "{early:?}");
        registry.apply(&[]).await.expect("memory");
        match events.next().await.expect("the registry lives") {
            RegistryEvent::Snapshot(snapshot) => assert_eq!(snapshot.endpoints.len(), 0),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn registry_memory_lagging_reader_hears_a_snapshot_not_a_backlog() {
        let registry = MemoryRegistry::new();
        let mut events = registry.follow();
        for i in 0..5_000_u16 {
            let change = RegistryChange::Put(key("hello", "1", &format!("c{i}")), endpoint(1_024 + i));
            registry.apply(&[change]).await.expect("memory");
            if i % 50 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let mut heard = 0;
        let mut snapshots = 0;
        loop {
            heard += 1;
            match events.next().await.expect("the registry lives") {
                RegistryEvent::Snapshot(snapshot) => {
                    snapshots += 1;
                    if snapshot.endpoints.len() == 5_000 {
                        break;
                    }
                }
                RegistryEvent::Changes { changes, revision, .. } => {
                    assert!(changes.len() <= LOG_LIMIT);
                    if revision.0 == 5_000 {
                        break;
                    }
                }
                RegistryEvent::Disconnected(why) => panic!("{why}"),
            }
        }
        assert!(heard <= CHANNEL + 4, "{heard} events");
        assert!(snapshots >= 2, "{snapshots} snapshots");
    }
}
