//! The registry as last heard. What is withdrawn on purpose goes at once; what merely is not there any more in a new
//! snapshot is held for a while when it is suspiciously much, as the gateway does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use model::registry::{EntryKey, RegistryChange, RegistryEvent, RegistryRevision, RegistrySnapshot};
use model::{ContainerId, Vanished};

/// The copy.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    /// What is served by, held entries included.
    pub(crate) snapshot: RegistrySnapshot,
    /// Vanished without an explicit withdrawal, and until when they are held.
    held: BTreeMap<EntryKey, Instant>,
    /// A snapshot has come.
    pub(crate) heard: bool,
    /// The registry is out of reach.
    pub(crate) stale: bool,
}

impl Copy {
    /// Takes one event; `hold` is how long vanished entries are held.
    pub(crate) fn hear(&mut self, event: RegistryEvent, hold: Duration, now: Instant) {
        match event {
            RegistryEvent::Snapshot(snapshot) => {
                self.resync(snapshot, hold, now);
                self.heard = true;
                self.stale = false;
            }
            RegistryEvent::Changes { changes, revision, .. } => {
                for change in changes {
                    self.change(change);
                }
                self.snapshot.revision = revision;
                self.stale = false;
            }
            RegistryEvent::Disconnected(reason) => {
                if !self.stale {
                    tracing::warn!(%reason, "the registry is out of reach; HAProxy keeps what it has");
                }
                self.stale = true;
            }
        }
    }

    fn change(&mut self, change: RegistryChange) {
        match &change {
            RegistryChange::Put(key, _) | RegistryChange::Remove(key) => {
                self.held.remove(key);
            }
            RegistryChange::Config(..) | RegistryChange::ConfigRemove(_) => {}
            // HAProxy balances by what it sees itself, and certificates' keys are sealed for the gateways.
            RegistryChange::Load(..)
            | RegistryChange::LoadRemove(_)
            | RegistryChange::Certificate(..)
            | RegistryChange::CertificateRemove(_) => return,
        }
        self.snapshot.fold(change);
    }

    fn resync(&mut self, mut next: RegistrySnapshot, hold: Duration, now: Instant) {
        next.loads.clear();
        next.certificates.clear();
        let before = self.snapshot.endpoints.iter().map(|(key, endpoint)| (key, *endpoint));
        let vanished = Vanished::between(before, &next.endpoints);
        if !vanished.held.is_empty() {
            tracing::warn!(
                held = vanished.held.len(),
                "endpoints vanished in a mass without being withdrawn; they are held for a while"
            );
        }
        let mut held = BTreeMap::new();
        for key in vanished.held {
            if let Some(config) = self.snapshot.configs.get(&key.app) {
                next.configs.entry(key.app.clone()).or_insert_with(|| config.clone());
            }
            if let Some(endpoint) = self.snapshot.endpoints.get(&key) {
                next.endpoints.insert(key.clone(), *endpoint);
            }
            let until = self.held.get(&key).copied().unwrap_or(now + hold);
            held.insert(key, until);
        }
        self.held = held;
        self.snapshot = next;
    }

    /// Lets go of what was held long enough; `true` when something went.
    pub(crate) fn tidy(&mut self, now: Instant) -> bool {
        let over: Vec<EntryKey> = self
            .held
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &over {
            self.held.remove(key);
            self.snapshot.endpoints.remove(key);
        }
        !over.is_empty()
    }

    /// Containers that are held: they must not be stopped as if they were drained.
    pub(crate) fn held(&self) -> impl Iterator<Item = &ContainerId> {
        self.held.keys().map(|key| &key.container)
    }

    /// Every container that is served by.
    pub(crate) fn containers(&self) -> BTreeSet<ContainerId> {
        self.snapshot.endpoints.keys().map(|k| k.container.clone()).collect()
    }

    pub(crate) fn revision(&self) -> RegistryRevision {
        self.snapshot.revision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: usize) -> EntryKey {
        EntryKey {
            app: "hello".parse().unwrap(),
            version: "1".parse().unwrap(),
            container: format!("c{n}").parse().unwrap(),
        }
    }

    fn snapshot(revision: i64, ports: &[(usize, u16)]) -> RegistryEvent {
        RegistryEvent::Snapshot(RegistrySnapshot {
            revision: RegistryRevision(revision),
            endpoints: ports
                .iter()
                .map(|(n, port)| (key(*n), model::Endpoint::new([10, 0, 0, 1].into(), *port)))
                .collect(),
            ..RegistrySnapshot::default()
        })
    }

    #[test]
    fn a_mass_that_vanishes_is_held_and_a_withdrawal_is_not() {
        let (hold, now) = (Duration::from_secs(30), Instant::now());
        let mut copy = Copy::default();
        copy.hear(snapshot(1, &[(1, 2001), (2, 2002), (3, 2003)]), hold, now);
        copy.hear(snapshot(2, &[(1, 2001), (2, 2002)]), hold, now);
        assert_eq!(copy.snapshot.endpoints.len(), 2, "one of three is no mass");
        copy.hear(snapshot(3, &[]), hold, now);
        assert_eq!(copy.snapshot.endpoints.len(), 2);
        assert_eq!(copy.held().count(), 2);
        let withdrawn = RegistryEvent::Changes {
            changes: vec![RegistryChange::Remove(key(1))],
            revision: RegistryRevision(4),
            heard: now,
        };
        copy.hear(withdrawn, hold, now);
        assert_eq!((copy.snapshot.endpoints.len(), copy.revision().0), (1, 4));
        // A further snapshot does not hold anew.
        copy.hear(snapshot(5, &[]), hold, now + Duration::from_secs(20));
        assert!(!copy.tidy(now + Duration::from_secs(29)));
        assert!(copy.tidy(now + hold));
        assert!(copy.snapshot.endpoints.is_empty() && copy.held().next().is_none());
    }
}
