//! What gateways are told of an app's versions, since it is the release's and not the app's: what its instances speak, and what
//! they have to finish once they are withdrawn. Pure.

use std::collections::{BTreeMap, HashMap};

use model::config::{MAX_PROTOCOLS, Protocol};
use model::{App, AppId, Instance, Version};

/// Whether a release is the one that its app is at, whether it is the canary's, and its number.
type Rank = (bool, bool, u32);

/// What something is for a version, by the version's highest release.
type Ranked<T> = Vec<(Rank, Version, T)>;

/// What something is for each version of which an app has instances, the highest rank first. `own`: what it is for an instance's
/// release; where two releases of one version differ, the one that the app is at decides, then its canary, then the newest.
fn ranked<'a, T>(
    instances: &[Instance],
    apps: &HashMap<&'a AppId, &'a App>,
    own: impl Fn(&Instance) -> T,
) -> HashMap<&'a AppId, Ranked<T>> {
    let mut newest: HashMap<&AppId, BTreeMap<&Version, (Rank, T)>> = HashMap::new();
    for instance in instances {
        let Some(app) = apps.get(&instance.app).copied() else {
            continue;
        };
        let number = instance.release;
        let is_canary = app.canary.as_ref().is_some_and(|c| c.release == number);
        let rank = (number == app.release, is_canary, number);
        let versions = newest.entry(&app.id).or_default();
        if versions.get(&instance.version).is_none_or(|known| rank > known.0) {
            versions.insert(&instance.version, (rank, own(instance)));
        }
    }
    let sorted = |versions: BTreeMap<&Version, (Rank, T)>| {
        let all = versions.into_iter();
        let mut all: Ranked<T> = all.map(|(version, (rank, own))| (rank, version.clone(), own)).collect();
        all.sort_by_key(|(rank, ..)| std::cmp::Reverse(*rank));
        all
    };
    newest
        .into_iter()
        .map(|(id, versions)| (id, sorted(versions)))
        .collect()
}

/// Versions that speak another HTTP than their app does by now, as long as there are instances of them; only apps that have any.
/// `own`: what an instance's release speaks. Of too many versions the oldest are left out.
pub(crate) fn protocols<'a>(
    instances: &[Instance],
    apps: &'a [App],
    own: impl Fn(&Instance) -> Option<Protocol>,
) -> HashMap<&'a AppId, BTreeMap<Version, Protocol>> {
    let by_id: HashMap<&AppId, &App> = apps.iter().map(|app| (&app.id, app)).collect();
    let differs = |app: &App, own: Option<Protocol>| app.config.protocol.of_instance(own) != app.config.protocol;
    let concerned = instances.iter().filter_map(|i| {
        let app = *by_id.get(&i.app)?;
        differs(app, own(i)).then_some((&app.id, app))
    });
    let concerned = concerned.collect();
    let mut protocols = HashMap::new();
    for (id, versions) in ranked(instances, &concerned, own) {
        let Some(app) = concerned.get(id) else { continue };
        let other = versions.into_iter().filter(|(_, _, own)| differs(app, *own));
        let other = other.filter_map(|(_, version, own)| Some((version, own?)));
        let other: BTreeMap<_, _> = other.take(MAX_PROTOCOLS).collect();
        if !other.is_empty() {
            protocols.insert(id, other);
        }
    }
    protocols
}

/// Seconds that instances have to finish once they are withdrawn: those of the version with the highest rank, and the versions
/// where they are others, of too many the oldest left out. `own`: the seconds of an instance's release.
pub(crate) fn drains<'a>(
    instances: &[Instance],
    apps: &'a [App],
    own: impl Fn(&Instance) -> Option<u32>,
) -> HashMap<&'a AppId, (u32, BTreeMap<Version, u32>)> {
    let by_id = apps.iter().map(|app| (&app.id, app)).collect();
    let mut drains = HashMap::new();
    for (id, versions) in ranked(instances, &by_id, own) {
        let known = versions.into_iter();
        let mut known = known.filter_map(|(_, version, own)| Some((version, own?)));
        if let Some((_, most)) = known.next() {
            let others = known.filter(|(_, own)| *own != most).take(MAX_PROTOCOLS);
            drains.insert(id, (most, others.collect()));
        }
    }
    drains
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::plan::tests::{app, applied, hosts, numbered};
    use crate::plan::{View, plan};
    use model::registry::{RegistryChange, RegistrySnapshot};
    use model::{AppStatus, InstanceState};

    #[test]
    fn versions_that_speak_something_else_are_named_while_there_are_instances_of_them() {
        let (http, h2c) = (Some(Protocol::Http), Some(Protocol::H2c));
        let of = |version: u32, release: u32, state| {
            let mut i = numbered(release as usize, state);
            (i.version, i.release) = (version.to_string().parse().unwrap(), release);
            i
        };
        let mut hello = app("hello", AppStatus::Running);
        (hello.release, hello.config.protocol) = (2, Protocol::H2c);
        let said = |rows: &[Instance], app: &App, speak: &dyn Fn(u32) -> Option<Protocol>| -> Vec<(String, Protocol)> {
            let apps = [app.clone(), crate::plan::tests::app("other", AppStatus::Running)];
            let all = protocols(rows, &apps, |i| speak(i.release));
            assert!(all.keys().all(|id| **id == hello.id));
            let own = all.get(&hello.id).cloned().unwrap_or_default();
            own.into_iter().map(|(v, p)| (v.to_string(), p)).collect()
        };
        let mut rows = vec![
            of(1, 1, InstanceState::Draining),
            of(2, 2, InstanceState::Starting),
            of(3, 3, InstanceState::Running),
        ];
        let speak = |release| [http, h2c, None][release as usize - 1];
        assert_eq!(said(&rows, &hello, &speak), [("1".into(), Protocol::Http)]);
        // What is told is written in front of the endpoints, and again only when it changes.
        let (apps, hosts) = ([hello.clone()], hosts());
        let before = RegistrySnapshot::default();
        let view = |published| View {
            instances: &rows,
            apps: &apps,
            hosts: &hosts,
            protocols: protocols(&rows, &apps, |i| speak(i.release)),
            drains: HashMap::new(),
            published,
        };
        let first = plan(&view(&before), &BTreeSet::new()).changes;
        let RegistryChange::Config(_, config) = &first[0] else {
            panic!("{first:?}");
        };
        assert_eq!(config.protocols.len(), 1);
        assert!(matches!(first[1..], [RegistryChange::Put(..)]), "{first:?}");
        let after = applied(before.clone(), &first);
        assert_eq!(plan(&view(&after), &BTreeSet::new()).changes, []);

        // An app that speaks bytes does so as a whole.
        let mut bytes = hello.clone();
        bytes.config.protocol = Protocol::Tcp;
        assert_eq!(said(&rows, &bytes, &speak), []);
        rows.remove(0);
        assert_eq!(said(&rows, &hello, &speak), []);
        // Of two releases of one version the app's own decides, wherever it stands; else the newest.
        let same = [
            of(1, 1, InstanceState::Running),
            of(1, 2, InstanceState::Running),
            of(1, 3, InstanceState::Running),
        ];
        assert_eq!(
            said(&same, &hello, &|release| if release == 2 { h2c } else { http }),
            []
        );
        hello.release = 9;
        assert_eq!(
            said(&same, &hello, &|release| if release == 3 { h2c } else { http }),
            []
        );
        assert_eq!(
            said(&same, &hello, &|release| if release == 3 { http } else { h2c }),
            [("1".into(), Protocol::Http)]
        );
        // Their number is bounded; the newest stay.
        hello.release = 30;
        let many: Vec<Instance> = (1..=30).map(|n| of(n, n, InstanceState::Running)).collect();
        let named = said(&many, &hello, &|_| http);
        assert_eq!(named.len(), MAX_PROTOCOLS);
        assert!(named.iter().all(|(v, _)| v.parse::<u32>().unwrap() > 10), "{named:?}");
    }

    #[test]
    fn the_time_to_finish_is_the_releases() {
        let of = |version: u32, release: u32, state| {
            let mut i = numbered(release as usize, state);
            (i.version, i.release) = (version.to_string().parse().unwrap(), release);
            i
        };
        let mut hello = app("hello", AppStatus::Running);
        hello.release = 2;
        let apps = [hello, app("other", AppStatus::Running)];
        let rows = [
            of(1, 1, InstanceState::Draining),
            of(2, 2, InstanceState::Starting),
            of(3, 3, InstanceState::Running),
            of(4, 4, InstanceState::Running),
        ];
        let seconds = |release: u32| [Some(5), Some(30), Some(30), None][release as usize - 1];
        let hosts = hosts();
        let before = RegistrySnapshot::default();
        let view = |rows, published| View {
            instances: rows,
            apps: &apps,
            hosts: &hosts,
            protocols: HashMap::new(),
            drains: drains(rows, &apps, |i| seconds(i.release)),
            published,
        };
        let first = plan(&view(&rows, &before), &BTreeSet::new()).changes;
        let after = applied(before.clone(), &first);
        let told = &after.configs[&apps[0].id];
        let time = |version: &str| told.drain_of(&version.parse().unwrap()).unwrap().as_secs();
        assert_eq!([time("1"), time("2"), time("3"), time("9")], [5, 30, 30, 30]);
        assert_eq!(told.drains.len(), 1);
        assert_eq!(after.configs[&apps[1].id].drain_s, None, "nothing runs");
        assert_eq!(plan(&view(&rows, &after), &BTreeSet::new()).changes, []);
        // The next release has the same time: only what differed goes.
        let next = plan(&view(&rows[1..], &after), &BTreeSet::new()).changes;
        let after = applied(after.clone(), &next);
        assert!(after.configs[&apps[0].id].drains.is_empty());
        let same = [of(2, 2, InstanceState::Draining), of(5, 2, InstanceState::Running)];
        let next = plan(&view(&same, &after), &BTreeSet::new()).changes;
        assert!(
            next.iter().all(|c| !matches!(c, RegistryChange::Config(..))),
            "{next:?}"
        );
    }
}
