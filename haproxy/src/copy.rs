//! The registry as last heard. What is withdrawn on purpose goes at once; what merely is not there any more in a new
//! snapshot is held for a while when it is suspiciously much, as the gateway does.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use model::registry::{EntryKey, RegistryChange, RegistryEvent, RegistryRevision, RegistrySnapshot};
use model::{AppId, ContainerId};

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
            RegistryEvent::Changes { changes, revision } => {
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
        match change {
            RegistryChange::Put(key, endpoint) => {
                self.held.remove(&key);
                self.snapshot.endpoints.insert(key, endpoint);
            }
            RegistryChange::Remove(key) => {
                self.held.remove(&key);
                self.snapshot.endpoints.remove(&key);
            }
            RegistryChange::Config(app, config) => {
                self.snapshot.configs.insert(app, config);
            }
            RegistryChange::ConfigRemove(app) => {
                self.snapshot.configs.remove(&app);
            }
            // HAProxy balances by what it sees itself.
            // Certificates are the gateways' own: their keys are sealed for them.
            RegistryChange::Load(..)
            | RegistryChange::LoadRemove(_)
            | RegistryChange::Certificate(..)
            | RegistryChange::CertificateRemove(_) => {}
        }
    }

    fn resync(&mut self, mut next: RegistrySnapshot, hold: Duration, now: Instant) {
        next.loads.clear();
        let mut counts: BTreeMap<&AppId, (usize, usize)> = BTreeMap::new();
        let mut gone = Vec::new();
        for key in self.snapshot.endpoints.keys() {
            let count = counts.entry(&key.app).or_default();
            count.0 += 1;
            if !next.endpoints.contains_key(key) {
                count.1 += 1;
                gone.push(key);
            }
        }
        let mass = gone.len() * 2 > self.snapshot.endpoints.len();
        // An address that now belongs to another container is never held: its answers would be another app's.
        let taken: HashSet<_> = next.endpoints.values().map(|e| e.0).collect();
        let mut kept = Vec::new();
        for key in gone {
            let (all, missing) = counts.get(&key.app).copied().unwrap_or_default();
            if let Some(endpoint) = self.snapshot.endpoints.get(key)
                && (mass || missing * 2 > all)
                && !taken.contains(&endpoint.0)
            {
                let until = self.held.get(key).copied().unwrap_or(now + hold);
                let config = self.snapshot.configs.get(&key.app).cloned();
                kept.push((key.clone(), *endpoint, until, config));
            }
        }
        if !kept.is_empty() {
            tracing::warn!(
                held = kept.len(),
                of = self.snapshot.endpoints.len(),
                "endpoints vanished in a mass without being withdrawn; they are held for a while"
            );
        }
        self.held.clear();
        for (key, endpoint, until, config) in kept {
            if let Some(config) = config {
                next.configs.entry(key.app.clone()).or_insert(config);
            }
            next.endpoints.insert(key.clone(), endpoint);
            self.held.insert(key, until);
        }
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
        };
        copy.hear(withdrawn, hold, now);
        assert_eq!((copy.snapshot.endpoints.len(), copy.revision().0), (1, 4));
        // A further snapshot does not hold anew.
        copy.hear(snapshot(5, &[]), hold, now + Duration::from_secs(20));
        assert!(!copy.tidy(now + Duration::from_secs(29)));
        assert!(copy.tidy(now + hold));
        assert!(copy.snapshot.endpoints.is_empty() && copy.held().next().is_none());
    }

    #[test]
    fn an_address_that_is_anothers_by_now_is_not_held() {
        let (hold, now) = (Duration::from_secs(30), Instant::now());
        let mut copy = Copy::default();
        copy.hear(snapshot(1, &[(1, 2001), (2, 2002)]), hold, now);
        copy.hear(snapshot(2, &[(3, 2001)]), hold, now);
        let left: Vec<_> = copy.containers().into_iter().map(|c| c.to_string()).collect();
        assert_eq!(left, ["c2", "c3"]);
    }
}
