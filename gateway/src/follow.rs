//! From registry events to route tables. The follower is the only writer of the table; it acknowledges what it has applied,
//! holds endpoints that vanish in a suspicious mass, and keeps the snapshot file. Nothing here is on a request's path.

mod task;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use model::registry::{
    Acknowledgement, EntryKey, LoadKey, RegistryChange, RegistryEvent, RegistryRevision, RegistrySnapshot,
};
use model::{AppConfig, AppId, CertificateName, ContainerId, Load, SealedCertificate, Vanished, Version};

use crate::departure::Departures;
use crate::eject::Endpoint;
use crate::shared::{OF_A_FILE, Shared};
use crate::table::{App, AppShared, Settings};
use crate::{acme, route, tcp};

pub(crate) use task::run;

/// What is known of one app.
struct Entry {
    shared: Arc<AppShared>,
    settings: Arc<Settings>,
    configured: bool,
    /// Its configuration was removed on purpose: without endpoints it is forgotten.
    removed: bool,
    endpoints: BTreeMap<(Version, ContainerId), Arc<Endpoint>>,
    /// Custom domains that it claims.
    domains: Vec<Box<str>>,
}

/// The registry copy from which tables are made.
pub(crate) struct Follower {
    shared: Arc<Shared>,
    /// The settings of all apps without configuration.
    defaults: Arc<Settings>,
    apps: HashMap<AppId, Entry, ahash::RandomState>,
    /// Who claims each custom domain; the first one has it.
    claims: HashMap<Box<str>, Vec<AppId>, ahash::RandomState>,
    ports: tcp::Claims,
    /// Loads as registered, also those of endpoints that are not there (yet).
    loads: HashMap<LoadKey, Arc<Load>, ahash::RandomState>,
    /// Only where TLS is spoken; handed to it with the next publication when they have moved.
    certificates: BTreeMap<CertificateName, SealedCertificate>,
    certificates_moved: bool,
    challenges: acme::Heard,
    /// Apps, and domains, that the next table must take anew.
    touched: HashSet<AppId>,
    touched_domains: HashSet<Box<str>>,
    leaving: Departures,
    /// Vanished without an explicit withdrawal, and until when they are held.
    held: HashMap<EntryKey, Instant>,
    revision: RegistryRevision,
    /// A snapshot of the registry itself has come (a file is none).
    heard: bool,
    /// A snapshot or a snapshot file has come.
    complete: bool,
    changed: bool,
}

impl Follower {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            defaults: Arc::new(Settings::new(AppConfig::default(), &shared.config)),
            shared,
            apps: HashMap::default(),
            claims: HashMap::default(),
            ports: tcp::Claims::default(),
            loads: HashMap::default(),
            certificates: BTreeMap::new(),
            certificates_moved: false,
            challenges: acme::Heard::default(),
            touched: HashSet::new(),
            touched_domains: HashSet::new(),
            leaving: Departures::default(),
            held: HashMap::new(),
            revision: RegistryRevision::default(),
            heard: false,
            complete: false,
            changed: false,
        }
    }

    fn entry(&mut self, app: &AppId) -> &mut Entry {
        let (shared, defaults) = (&self.shared, &self.defaults);
        self.touched.insert(app.clone());
        self.apps.entry(app.clone()).or_insert_with(|| Entry {
            shared: Arc::new(AppShared::new(app.clone(), shared.workers.len())),
            settings: Arc::clone(defaults),
            configured: false,
            removed: false,
            endpoints: BTreeMap::new(),
            domains: Vec::new(),
        })
    }

    fn endpoint(&self, key: &EntryKey) -> Option<&Arc<Endpoint>> {
        let entry = self.apps.get(&key.app)?;
        entry.endpoints.get(&(key.version.clone(), key.container.clone()))
    }

    fn put(&mut self, key: &EntryKey, endpoint: model::Endpoint, again: bool) {
        self.held.remove(key);
        if !self.shared.config.may_dial(endpoint.0) {
            self.shared.registry.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(app = %key.app, container = %key.container, endpoint = %endpoint.0,
                "endpoint outside the allowed addresses or ports is never dialled");
            return self.remove(key);
        }
        let place = (key.version.clone(), key.container.clone());
        if let Some(old) = self.endpoint(key).filter(|old| old.address == endpoint.0) {
            old.doubt(false);
            // Said again on purpose: whoever says so knows that it is well.
            if again {
                old.worked();
            }
            return;
        }
        // What is there at the start is not new, only the gateway is.
        let since = match self.heard {
            true => self.shared.clock.millis(Instant::now()),
            false => 0,
        };
        let load = self.loads.get(&key.load_key()).cloned();
        let entry = self.entry(&key.app);
        let stats = entry.shared.version(&key.version);
        let new = Arc::new(Endpoint::new(key.clone(), endpoint.0, since, stats));
        new.set_protocol(entry.settings.config.protocol_of(&key.version));
        new.set_load(load);
        if let Some(old) = entry.endpoints.insert(place, new) {
            let time = entry.settings.config.drain_of(&key.version);
            self.leaving.push(old, time);
        }
    }

    fn remove(&mut self, key: &EntryKey) {
        self.held.remove(key);
        let place = (key.version.clone(), key.container.clone());
        if self.endpoint(key).is_none() {
            return;
        }
        let entry = self.entry(&key.app);
        let time = entry.settings.config.drain_of(&key.version);
        if let Some(old) = entry.endpoints.remove(&place) {
            self.leaving.push(old, time);
        }
        self.forget(&key.app);
    }

    /// Takes in a load. `true` when requests may go another way now; that figures move makes no new table.
    fn load_moved(&mut self, key: LoadKey, load: Option<Load>) -> bool {
        let load = load.map(Arc::new);
        let endpoints = self.apps.get(&key.app).into_iter().flat_map(|e| e.endpoints.values());
        let mut moved = false;
        for endpoint in endpoints.filter(|e| e.key.container == key.container) {
            moved |= endpoint.set_load(load.clone());
        }
        if moved {
            self.touched.insert(key.app.clone());
        }
        match load {
            Some(load) => self.loads.insert(key, load),
            None => self.loads.remove(&key),
        };
        moved
    }

    /// Takes the loads of a whole registry.
    fn reload(&mut self, loads: BTreeMap<LoadKey, Load>) {
        self.loads = loads.into_iter().map(|(key, load)| (key, Arc::new(load))).collect();
        for (id, entry) in &self.apps {
            for endpoint in entry.endpoints.values() {
                if endpoint.set_load(self.loads.get(&endpoint.key.load_key()).cloned()) {
                    self.touched.insert(id.clone());
                }
            }
        }
    }

    /// Forgets an app that was removed on purpose and has no endpoint left: its host is unknown again. All others stay known
    /// (503, not 404) as long as this process lives.
    fn forget(&mut self, app: &AppId) {
        if self.apps.get(app).is_some_and(|e| e.removed && e.endpoints.is_empty()) {
            self.apps.remove(app);
            self.touched.insert(app.clone());
        }
    }

    /// Takes an app's configuration away; `removed`: somebody meant it.
    fn unconfigure(&mut self, app: &AppId, removed: bool) {
        self.configure(app, None);
        if let Some(entry) = self.apps.get_mut(app) {
            entry.removed = removed;
        }
        self.forget(app);
    }

    fn configure(&mut self, app: &AppId, config: Option<AppConfig>) {
        let known = self.apps.get(app);
        match (&config, known) {
            (Some(config), Some(e)) if e.configured && e.settings.config == *config => return,
            (None, None) => return,
            (None, Some(e)) if !e.configured => return,
            _ => {}
        }
        let configured = config.is_some();
        let config = config.unwrap_or_default();
        let own = &self.shared.config.domain;
        let domains: Vec<Box<str>> = config.domains.iter().filter_map(|d| route::key_of(d, own)).collect();
        let settings = if config == self.defaults.config {
            Arc::clone(&self.defaults)
        } else {
            Arc::new(Settings::new(config, &self.shared.config))
        };
        let entry = self.entry(app);
        let before = std::mem::replace(&mut entry.settings, settings);
        let after = Arc::clone(&entry.settings);
        for endpoint in entry.endpoints.values() {
            endpoint.set_protocol(after.config.protocol_of(&endpoint.key.version));
        }
        entry.configured = configured;
        entry.removed = false;
        let old = std::mem::replace(&mut entry.domains, domains.clone());
        self.ports.change(app, &before.config, &after.config);
        for domain in old.iter().filter(|d| !domains.contains(d)) {
            if let Some(claims) = self.claims.get_mut(domain) {
                claims.retain(|a| a != app);
            }
            self.touched_domains.insert(domain.clone());
        }
        for domain in domains {
            let claims = self.claims.entry(domain.clone()).or_default();
            if !claims.contains(app) {
                claims.push(app.clone());
            }
            self.touched_domains.insert(domain);
        }
    }

    /// Takes the whole registry, holding what vanishes in a mass.
    fn resync(&mut self, snapshot: RegistrySnapshot, guard: bool, now: Instant) {
        let before = self.apps.values().flat_map(|entry| entry.endpoints.values());
        let vanished = Vanished::between(
            before.map(|e| (&e.key, model::Endpoint(e.address))),
            &snapshot.endpoints,
        );
        let (held, gone) = if guard {
            (vanished.held, vanished.gone)
        } else {
            (Vec::new(), [vanished.held, vanished.gone].concat())
        };
        for key in &gone {
            self.remove(key);
        }
        if !held.is_empty() {
            tracing::warn!(
                held = held.len(),
                "endpoints vanished in a mass without being withdrawn; they are held for a while"
            );
        }
        let until = now + Duration::from_secs(self.shared.config.hold_s);
        for key in held {
            if let Some(endpoint) = self.endpoint(&key) {
                endpoint.doubt(true);
            }
            self.held.entry(key).or_insert(until);
        }
        let unconfigured: Vec<AppId> = self
            .apps
            .values()
            .filter(|e| e.configured && !snapshot.configs.contains_key(&e.shared.id))
            .map(|e| e.shared.id.clone())
            .collect();
        // What goes in a mass may have been lost instead.
        let configured = self.apps.values().filter(|e| e.configured).count();
        let removed = guard && unconfigured.len() * 2 <= configured;
        for app in unconfigured {
            self.unconfigure(&app, removed);
        }
        for (app, config) in snapshot.configs {
            self.configure(&app, Some(config));
        }
        for (key, endpoint) in snapshot.endpoints {
            self.put(&key, endpoint, false);
        }
        self.reload(snapshot.loads);
        self.challenges.resync(&snapshot.certificates);
        if self.shared.tls.is_some() {
            self.certificates = snapshot.certificates;
            self.certificates_moved = true;
        }
        self.revision = snapshot.revision;
    }

    /// Takes in a change. `false`: only figures moved, which changes no route and is not worth writing the snapshot file.
    fn apply(&mut self, change: RegistryChange) -> bool {
        match change {
            RegistryChange::Put(key, endpoint) => self.put(&key, endpoint, true),
            RegistryChange::Remove(key) => self.remove(&key),
            RegistryChange::Config(app, config) => self.configure(&app, Some(config)),
            RegistryChange::ConfigRemove(app) => self.unconfigure(&app, true),
            RegistryChange::Load(key, load) => return self.load_moved(key, Some(load)),
            RegistryChange::LoadRemove(key) => return self.load_moved(key, None),
            RegistryChange::Certificate(name, sealed) => {
                let challenged = self.challenges.change(&name, sealed.challenge.as_ref());
                if self.shared.tls.is_none() {
                    return challenged;
                }
                self.certificates.insert(name, sealed);
                self.certificates_moved = true;
            }
            RegistryChange::CertificateRemove(name) => {
                let challenged = self.challenges.change(&name, None);
                if self.shared.tls.is_none() {
                    return challenged;
                }
                self.certificates.remove(&name);
                self.certificates_moved = true;
            }
        }
        true
    }

    /// Takes one event; tables change with [`Follower::publish`].
    pub(crate) fn hear(&mut self, event: RegistryEvent, now: Instant) {
        let status = &self.shared.registry;
        match event {
            RegistryEvent::Snapshot(snapshot) => {
                status.snapshots.fetch_add(1, Ordering::Relaxed);
                if status.stale_since.swap(0, Ordering::Relaxed) != 0 {
                    tracing::info!(revision = snapshot.revision.0, "the registry is back");
                }
                self.resync(snapshot, true, now);
                self.heard = true;
                self.changed = true;
                self.complete = true;
            }
            RegistryEvent::Changes { changes, revision, .. } => {
                status.changes.fetch_add(changes.len() as u64, Ordering::Relaxed);
                self.changed |= changes.is_empty();
                for change in changes {
                    self.changed |= self.apply(change);
                }
                self.revision = revision;
            }
            RegistryEvent::Disconnected(reason) => {
                let now = self.shared.clock.millis(now);
                let was = status
                    .stale_since
                    .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
                if was.is_ok() {
                    let means = match self.complete {
                        true => "serving the last copy",
                        false => "no app is known yet",
                    };
                    tracing::warn!(%reason, "the registry is out of reach; {means}");
                }
            }
        }
    }

    /// Puts a snapshot file in place of a registry that is not there.
    fn load(&mut self, snapshot: RegistrySnapshot, now: Instant) {
        self.resync(snapshot, false, now);
        let now = self.shared.clock.millis(now);
        let stale = &self.shared.registry.stale_since;
        let _ = stale.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        self.changed = true;
        self.complete = true;
    }

    /// Makes requests obey everything heard so far.
    pub(crate) fn publish(&mut self) {
        let mut changes: Vec<(Box<str>, Option<Arc<App>>)> = Vec::new();
        let mut fresh: HashMap<AppId, Arc<App>> = HashMap::new();
        for id in self.touched.drain() {
            let app = self.apps.get(&id).map(|entry| {
                Arc::new(App::new(
                    Arc::clone(&entry.shared),
                    Arc::clone(&entry.settings),
                    entry.configured,
                    entry.endpoints.values().cloned().collect(),
                    &self.shared.config.region,
                ))
            });
            if let (Some(app), Some(entry)) = (&app, self.apps.get(&id)) {
                fresh.insert(id.clone(), Arc::clone(app));
                self.touched_domains.extend(entry.domains.iter().cloned());
            }
            changes.push((id.as_str().into(), app));
        }
        let old = self.shared.table.load();
        for domain in self.touched_domains.drain() {
            let owner = self.claims.get(&domain).and_then(|claims| claims.first());
            let app = owner.and_then(|id| fresh.get(id).or_else(|| old.get(id.as_str())).cloned());
            if owner.is_none() {
                self.claims.remove(&domain);
            }
            changes.push((domain, app));
        }
        if !changes.is_empty() {
            self.shared.table.store(Arc::new(old.with(changes)));
        }
        if std::mem::take(&mut self.certificates_moved)
            && let Some(tls) = &self.shared.tls
        {
            tls.hear(Arc::new(self.certificates.clone()));
        }
        self.challenges
            .publish(&self.shared.challenges, self.shared.keys.as_deref());
        if self.complete {
            self.shared.registry.loaded.cancel();
        }
        // Only now: a request that still sees the old table finds the mark and reads the new one. See `Endpoint::enter` for why
        // none slips through between.
        self.leaving.mark();
        let status = &self.shared.registry;
        let since = match self.heard {
            true => status.stale_since.load(Ordering::Relaxed),
            false => OF_A_FILE,
        };
        status.outdated_since.store(since, Ordering::Release);
        self.shared.registry.revision.store(self.revision.0, Ordering::Relaxed);
        self.shared
            .registry
            .held
            .store(self.held.len() as u64, Ordering::Relaxed);
    }

    /// Lets go of what has drained, and of held endpoints whose time is over or which refuse connections. `true` when there is
    /// something left to look after.
    pub(crate) fn tidy(&mut self, now: Instant) -> bool {
        self.leaving.tidy(now);
        let over: Vec<EntryKey> = self
            .held
            .iter()
            .filter(|(key, until)| **until <= now || self.endpoint(key).is_none_or(|e| e.failures() > 0))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &over {
            self.remove(key);
        }
        if !over.is_empty() {
            self.changed = true;
            self.publish();
        }
        !(self.leaving.is_empty() && self.held.is_empty())
    }

    /// What may be told to the writer; `None` before the registry has spoken.
    pub(crate) fn acknowledgement(&self) -> Option<Acknowledgement> {
        // A held endpoint still gets requests: its container must not be stopped as if it were drained.
        let busy = self.leaving.busy().map(|e| &e.key.container);
        let draining: std::collections::BTreeSet<_> =
            busy.chain(self.held.keys().map(|k| &k.container)).cloned().collect();
        self.heard.then(|| Acknowledgement {
            applied: self.revision,
            draining: draining.into_iter().collect(),
        })
    }
}
