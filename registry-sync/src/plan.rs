//! What to write so that the registry fits the store. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use model::config::Protocol;
use model::registry::{Endpoint, EntryKey, RegistryChange, RegistrySnapshot};
use model::{App, AppConfig, AppId, AppStatus, ContainerId, Host, HostName, Instance, InstanceState, Version};
use tokio::time::Instant;

/// What is known, read in one pass.
#[derive(Debug)]
pub(crate) struct View<'a> {
    /// All instances that hold resources.
    pub(crate) instances: &'a [Instance],
    /// All apps.
    pub(crate) apps: &'a [App],
    /// All hosts.
    pub(crate) hosts: &'a HashMap<HostName, Host>,
    /// As [`versions::protocols`](crate::versions::protocols) says.
    pub(crate) protocols: HashMap<&'a AppId, BTreeMap<Version, Protocol>>,
    /// As [`versions::drains`](crate::versions::drains) says.
    pub(crate) drains: HashMap<&'a AppId, (u32, BTreeMap<Version, u32>)>,
    /// What the registry holds.
    pub(crate) published: &'a RegistrySnapshot,
}

/// What to write.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// In order: within an app puts come before removals, so that a replacement never leaves it empty.
    pub(crate) changes: Vec<RegistryChange>,
    /// Entries whose instance the store does not know.
    pub(crate) ghosts: BTreeSet<EntryKey>,
    /// Unhealthy instances are kept in the registry, since so many fail at once that the fault is likelier on this side.
    pub(crate) braked: bool,
}

/// With fewer instances than this, half of them failing together is no sign of anything.
const BRAKE_FROM: usize = 10;

/// Ghosts removed in one pass without being seen twice: more are likelier a reading fault than ghosts.
const GHOSTS_AT_ONCE: usize = 10;

/// Entries without an instance, and since when that has been so in every pass.
#[derive(Debug, Default)]
pub(crate) struct Ghosts(BTreeMap<EntryKey, Instant>);

impl Ghosts {
    /// Takes in what a pass saw; how many of them are new.
    pub(crate) fn saw(&mut self, ghosts: BTreeSet<EntryKey>, now: Instant) -> usize {
        let before = std::mem::take(&mut self.0);
        let new = ghosts.iter().filter(|key| !before.contains_key(key)).count();
        let since = |key: EntryKey| {
            let since = before.get(&key).copied().unwrap_or(now);
            (key, since)
        };
        self.0 = ghosts.into_iter().map(since).collect();
        new
    }

    /// Those that have been ghosts for so long. One reading of the store may be wrong; what every reading says for a while is not.
    pub(crate) fn lasting(&self, now: Instant, least: Duration) -> BTreeSet<EntryKey> {
        let lasting = |(_, since): &(&EntryKey, &Instant)| now.saturating_duration_since(**since) >= least;
        self.0.iter().filter(lasting).map(|(key, _)| key.clone()).collect()
    }
}

/// Compares `view` and says what to write. `lasting`: those ghosts that may go however many they are.
pub(crate) fn plan(view: &View<'_>, lasting: &BTreeSet<EntryKey>) -> Plan {
    let braked = brake(view.instances);
    let mut known = HashSet::new();
    let mut wanted = BTreeMap::new();
    for instance in view.instances {
        let Some((key, endpoint)) = entry(instance, view.hosts) else {
            continue;
        };
        known.insert(key.container.clone());
        let kept_by_brake =
            braked && instance.state == InstanceState::Unhealthy && view.published.endpoints.contains_key(&key);
        if instance.state == InstanceState::Running || kept_by_brake {
            wanted.insert(key, endpoint);
        }
    }

    let mut per_app: BTreeMap<_, (Vec<RegistryChange>, Vec<RegistryChange>)> = BTreeMap::new();
    for (key, endpoint) in &wanted {
        if view.published.endpoints.get(key) != Some(endpoint) {
            per_app
                .entry(key.app.clone())
                .or_default()
                .0
                .push(RegistryChange::Put(key.clone(), *endpoint));
        }
    }
    let gone: Vec<&EntryKey> = view
        .published
        .endpoints
        .keys()
        .filter(|key| !wanted.contains_key(*key))
        .collect();
    let ghosts: BTreeSet<EntryKey> = gone
        .iter()
        .filter(|key| !known.contains(&key.container))
        .map(|key| (*key).clone())
        .collect();
    let most = GHOSTS_AT_ONCE.max(view.published.endpoints.len() / 5);
    let few = ghosts.len() <= most;
    for key in gone {
        if known.contains(&key.container) || few || lasting.contains(key) {
            per_app
                .entry(key.app.clone())
                .or_default()
                .1
                .push(RegistryChange::Remove(key.clone()));
        }
    }

    let mut changes = Vec::new();
    let configured: BTreeMap<_, _> = view
        .apps
        .iter()
        .filter(|app| app.status != AppStatus::Removing)
        .map(|app| (&app.id, config(app, view)))
        .collect();
    // Configurations first: an app, and what a version speaks, is known to gateways before the first endpoint is.
    for (app, config) in &configured {
        if view.published.configs.get(*app) != Some(&**config) {
            changes.push(RegistryChange::Config((*app).clone(), config.clone().into_owned()));
        }
    }
    for (_, (puts, removals)) in per_app {
        changes.extend(puts);
        changes.extend(removals);
    }
    for app in view
        .published
        .configs
        .keys()
        .filter(|app| !configured.contains_key(app))
    {
        changes.push(RegistryChange::ConfigRemove(app.clone()));
    }
    Plan {
        changes,
        ghosts,
        braked,
    }
}

/// What an app's configuration is to gateways.
fn config<'a>(app: &'a App, view: &View<'_>) -> Cow<'a, AppConfig> {
    let (protocols, drains) = (view.protocols.get(&app.id), view.drains.get(&app.id));
    if protocols.is_none() && drains.is_none() {
        return Cow::Borrowed(&app.config);
    }
    Cow::Owned(AppConfig {
        protocols: protocols.cloned().unwrap_or_default(),
        drain_s: drains.map(|(most, _)| *most),
        drains: drains.map(|(_, others)| others.clone()).unwrap_or_default(),
        ..app.config.clone()
    })
}

/// An instance's place in the registry, once it has a container on a known host.
pub(crate) fn entry(instance: &Instance, hosts: &HashMap<HostName, Host>) -> Option<(EntryKey, Endpoint)> {
    let container: ContainerId = instance.container.clone()?;
    let address = hosts.get(&instance.host)?.address;
    let key = EntryKey {
        app: instance.app.clone(),
        version: instance.version.clone(),
        container,
    };
    Some((key, Endpoint::new(address, instance.port)))
}

/// More than half of at least [`BRAKE_FROM`] instances, on at least two hosts, are unhealthy.
fn brake(instances: &[Instance]) -> bool {
    let probed = |i: &&Instance| matches!(i.state, InstanceState::Running | InstanceState::Unhealthy);
    let all = instances.iter().filter(probed).count();
    let unhealthy: Vec<&Instance> = instances
        .iter()
        .filter(|i| i.state == InstanceState::Unhealthy)
        .collect();
    let hosts: HashSet<&HostName> = unhealthy.iter().map(|i| &i.host).collect();
    all >= BRAKE_FROM && unhealthy.len() * 2 > all && hosts.len() >= 2
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::health::tests::instance;
    use model::{AppConfig, Generation, TenantId, Timestamp};
    use proptest::prelude::*;

    pub(crate) fn app(id: &str, status: AppStatus) -> App {
        App {
            id: id.parse().unwrap(),
            tenant: TenantId::default_tenant(),
            status,
            instances: 1,
            release: 1,
            previous_release: 0,
            last_release: 1,
            restart_before: None,
            canary: None,
            way_back: None,
            config: AppConfig::default(),
            operation: None,
            placements: 0,
            created_at: Timestamp::from_millis(0),
            updated_at: Timestamp::from_millis(0),
            generation: Generation::FIRST,
        }
    }

    /// Hosts h1 to h3, in region `eu`.
    pub(crate) fn hosts() -> HashMap<HostName, Host> {
        let host = |n: u8| Host {
            name: format!("h{n}").parse().unwrap(),
            address: [10, 0, 0, n].into(),
            engine: format!("fake://h{n}"),
            labels: BTreeMap::new(),
            region: "eu".into(),
            memory_mb: 1_000,
            cpu_millis: 2_000,
            port_range: (20_000, 29_999),
            schedulability: model::Schedulability::Schedulable,
            down_since: None,
            reserved_memory_mb: 0,
            reserved_cpu_weight: 0,
            instances: 0,
            used_cpu_millis: 0,
            created_at: Timestamp::from_millis(0),
            generation: Generation::FIRST,
        };
        (1..=3).map(host).map(|host| (host.name.clone(), host)).collect()
    }

    /// Container `c{n}` of `hello`.
    pub(crate) fn numbered(n: usize, state: InstanceState) -> Instance {
        let mut i = instance(state);
        i.container = Some(format!("c{n}").parse().unwrap());
        i.host = format!("h{}", n % 3 + 1).parse().unwrap();
        i.port = 20_000 + u16::try_from(n).unwrap();
        i
    }

    pub(crate) fn applied(mut snapshot: RegistrySnapshot, changes: &[RegistryChange]) -> RegistrySnapshot {
        for change in changes {
            snapshot.fold(change.clone());
        }
        snapshot
    }

    fn plan_of(instances: &[Instance], apps: &[App], published: &RegistrySnapshot) -> Plan {
        plan(
            &View {
                instances,
                apps,
                hosts: &hosts(),
                protocols: HashMap::new(),
                drains: HashMap::new(),
                published,
            },
            &BTreeSet::new(),
        )
    }

    #[test]
    fn running_instances_and_configurations_are_published_and_others_withdrawn() {
        let apps = [app("hello", AppStatus::Running)];
        let rows = [
            numbered(1, InstanceState::Running),
            numbered(2, InstanceState::Starting),
        ];
        let first = plan_of(&rows, &apps, &RegistrySnapshot::default());
        let published = applied(RegistrySnapshot::default(), &first.changes);
        assert_eq!(published.endpoints.len(), 1);
        assert_eq!(
            published.endpoints.values().next().unwrap().to_string(),
            "10.0.0.2:20001"
        );
        assert_eq!(published.configs.len(), 1);
        assert_eq!(plan_of(&rows, &apps, &published).changes, []);

        let rows = [
            numbered(1, InstanceState::Draining),
            numbered(2, InstanceState::Running),
        ];
        let next = plan_of(&rows, &[app("hello", AppStatus::Removing)], &published);
        assert!(matches!(
            next.changes[..],
            [
                RegistryChange::Put(..),
                RegistryChange::Remove(..),
                RegistryChange::ConfigRemove(..)
            ]
        ));
    }

    #[test]
    fn ghosts_last_when_every_pass_sees_them() {
        let (start, minute) = (Instant::now(), Duration::from_secs(60));
        let key = |container: &&str| EntryKey {
            app: "hello".parse().unwrap(),
            version: "1".parse().unwrap(),
            container: container.parse().unwrap(),
        };
        let keys = |names: &[&str]| -> BTreeSet<EntryKey> { names.iter().map(key).collect() };
        let mut ghosts = Ghosts::default();
        assert_eq!(ghosts.saw(keys(&["a", "b"]), start), 2);
        let later = start + Duration::from_secs(59);
        assert!(ghosts.lasting(later, minute).is_empty());
        // One pass saw the instance of `b`; it and what came just now begin anew.
        assert_eq!(ghosts.saw(keys(&["a"]), later), 0);
        assert_eq!(ghosts.saw(keys(&["a", "b", "c"]), later), 2);
        assert_eq!(ghosts.lasting(start + minute, minute), keys(&["a"]));
    }

    #[test]
    fn many_ghosts_go_only_when_seen_twice() {
        let mut published = RegistrySnapshot::default();
        for n in 0..60 {
            let (key, endpoint) = entry(&numbered(n, InstanceState::Running), &hosts()).unwrap();
            published.endpoints.insert(key, endpoint);
        }
        let first = plan_of(&[], &[], &published);
        assert_eq!((first.changes.len(), first.ghosts.len()), (0, 60));
        let view = View {
            instances: &[],
            apps: &[],
            hosts: &hosts(),
            protocols: HashMap::new(),
            drains: HashMap::new(),
            published: &published,
        };
        assert_eq!(plan(&view, &first.ghosts).changes.len(), 60);

        published.endpoints = published.endpoints.into_iter().take(10).collect();
        assert_eq!(plan_of(&[], &[], &published).changes.len(), 10);
    }

    #[test]
    fn when_most_fail_at_once_the_published_stay() {
        let rows: Vec<Instance> = (0..12).map(|n| numbered(n, InstanceState::Running)).collect();
        let published = applied(
            RegistrySnapshot::default(),
            &plan_of(&rows, &[], &RegistrySnapshot::default()).changes,
        );
        let failing = |bad: usize| -> Vec<Instance> {
            let state = |n| {
                if n < bad {
                    InstanceState::Unhealthy
                } else {
                    InstanceState::Running
                }
            };
            (0..12).map(|n| numbered(n, state(n))).collect()
        };
        assert_eq!(plan_of(&failing(6), &[], &published).changes.len(), 6);
        let braked = plan_of(&failing(7), &[], &published);
        assert!(braked.braked && braked.changes.is_empty());
        // What was not published is not published by the brake.
        assert_eq!(plan_of(&failing(12), &[], &RegistrySnapshot::default()).changes, []);
    }

    proptest! {
        #[test]
        fn applying_the_plan_makes_the_registry_fit_and_planning_again_changes_nothing(
            states in prop::collection::vec(0..InstanceState::ALL.len(), 0..30),
            old in prop::collection::vec(0..40usize, 0..10),
        ) {
            let rows: Vec<Instance> =
                states.iter().enumerate().map(|(n, s)| numbered(n, InstanceState::ALL[*s])).collect();
            let mut published = RegistrySnapshot::default();
            for n in old {
                let (key, _) = entry(&numbered(n, InstanceState::Running), &hosts()).unwrap();
                published.endpoints.insert(key, "10.9.9.9:9".parse().unwrap());
            }
            let apps: [App; 0] = [];
            let first = plan_of(&rows, &apps, &published);
            let after = applied(published, &first.changes);
            for row in &rows {
                let (key, endpoint) = entry(row, &hosts()).unwrap();
                match row.state {
                    InstanceState::Running => prop_assert_eq!(after.endpoints.get(&key), Some(&endpoint)),
                    InstanceState::Unhealthy if first.braked => {}
                    _ => prop_assert!(!after.endpoints.contains_key(&key)),
                }
            }
            prop_assert_eq!(plan_of(&rows, &apps, &after).changes, vec![]);
        }
    }
}
