//! A reader's picture of the registry. Pure, but for log lines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use model::registry::{Endpoint, EntryKey, LoadKey, RegistryChange, RegistryRevision, RegistrySnapshot};
use model::{AppConfig, AppId, CertificateName, Load, SealedCertificate};

use super::tree::Leaf;

/// What is known of the registry.
#[derive(Debug, Default)]
pub(super) struct View {
    endpoints: BTreeMap<EntryKey, Endpoint>,
    configs: BTreeMap<AppId, AppConfig>,
    /// Of all endpoints that have one, and of some instances whose endpoint has gone.
    loads: BTreeMap<LoadKey, Load>,
    certificates: BTreeMap<CertificateName, SealedCertificate>,
}

impl View {
    /// Takes in what `leaf` holds now (`None`: it is gone) and says what that changes.
    pub(super) fn set(&mut self, leaf: Leaf, data: Option<&[u8]>, noise: &mut Noise) -> Option<RegistryChange> {
        match leaf {
            Leaf::Endpoint(key) => {
                let endpoint = data.and_then(|data| match read_endpoint(data) {
                    Ok(endpoint) => Some(endpoint),
                    Err(why) => {
                        noise.unreadable(&format!("endpoint {}/{}/{}", key.app, key.version, key.container), &why);
                        None
                    }
                });
                match endpoint {
                    Some(endpoint) => (self.endpoints.insert(key.clone(), endpoint) != Some(endpoint))
                        .then_some(RegistryChange::Put(key, endpoint)),
                    None => self.endpoints.remove(&key).map(|_| RegistryChange::Remove(key)),
                }
            }
            Leaf::Config(app) => {
                let Some(data) = data else {
                    return self.configs.remove(&app).map(|_| RegistryChange::ConfigRemove(app));
                };
                match read_config(data) {
                    Ok(config) if self.configs.get(&app) == Some(&config) => None,
                    Ok(config) => {
                        self.configs.insert(app.clone(), config.clone());
                        Some(RegistryChange::Config(app, config))
                    }
                    Err(why) => {
                        noise.unreadable(&format!("configuration {app}"), &why);
                        None
                    }
                }
            }
            Leaf::Load(key) => {
                let load = data.and_then(|data| match Load::parse(data) {
                    Ok(load) => Some(load),
                    Err(why) => {
                        noise.unreadable(&format!("load {}/{}", key.app, key.container), &why);
                        None
                    }
                });
                match load {
                    Some(load) if self.loads.get(&key) == Some(&load) => None,
                    Some(load) => {
                        self.loads.insert(key.clone(), load.clone());
                        Some(RegistryChange::Load(key, load))
                    }
                    None => self.loads.remove(&key).map(|_| RegistryChange::LoadRemove(key)),
                }
            }
            Leaf::Certificate(name) => {
                let Some(data) = data else {
                    let known = self.certificates.remove(&name);
                    return known.map(|_| RegistryChange::CertificateRemove(name));
                };
                match SealedCertificate::parse(data) {
                    Ok(sealed) if self.certificates.get(&name) == Some(&sealed) => None,
                    Ok(sealed) => {
                        self.certificates.insert(name.clone(), sealed.clone());
                        Some(RegistryChange::Certificate(name, sealed))
                    }
                    Err(why) => {
                        noise.unreadable(&format!("certificate {name}"), &why);
                        None
                    }
                }
            }
        }
    }

    /// A new picture of exactly `entries`; a configuration or certificate that can't be read stays as it was here, and so do
    /// loads of endpoints.
    pub(super) fn rebuilt(&self, entries: Vec<(Leaf, Vec<u8>)>, noise: &mut Noise) -> Self {
        let mut new = Self::default();
        for (leaf, data) in entries {
            match &leaf {
                Leaf::Config(app) => {
                    let known = self.configs.get(app).map(|config| (app.clone(), config.clone()));
                    new.configs.extend(known);
                }
                Leaf::Certificate(name) => {
                    let known = self.certificates.get(name).map(|c| (name.clone(), c.clone()));
                    new.certificates.extend(known);
                }
                _ => {}
            }
            new.set(leaf, Some(&data), noise);
        }
        for key in new.endpoints.keys().map(EntryKey::load_key) {
            if let Some(load) = self.loads.get(&key) {
                new.loads.entry(key).or_insert_with(|| load.clone());
            }
        }
        new
    }

    /// Where the loads of all endpoints stand.
    pub(super) fn load_leaves(&self) -> impl Iterator<Item = Leaf> {
        self.endpoints.keys().map(|key| Leaf::Load(key.load_key()))
    }

    /// In how many entries `other` differs, leaving out `changing`; loads are read behind it, and do not count.
    pub(super) fn differences(&self, other: &Self, changing: &BTreeSet<Leaf>) -> usize {
        let endpoint = |key: &&EntryKey| !changing.contains(&Leaf::Endpoint((*key).clone()));
        let config = |app: &&AppId| !changing.contains(&Leaf::Config((*app).clone()));
        let certificate = |name: &&CertificateName| !changing.contains(&Leaf::Certificate((*name).clone()));
        differing(&self.endpoints, &other.endpoints).filter(endpoint).count()
            + differing(&self.configs, &other.configs).filter(config).count()
            + differing(&self.certificates, &other.certificates)
                .filter(certificate)
                .count()
    }

    /// A copy as of `revision`.
    pub(super) fn snapshot(&self, revision: RegistryRevision) -> RegistrySnapshot {
        RegistrySnapshot {
            revision,
            endpoints: self.endpoints.clone(),
            configs: self.configs.clone(),
            loads: self.loads.clone(),
            certificates: self.certificates.clone(),
        }
    }

    /// Turns it into a snapshot.
    pub(super) fn into_snapshot(self, revision: RegistryRevision) -> RegistrySnapshot {
        RegistrySnapshot {
            revision,
            endpoints: self.endpoints,
            configs: self.configs,
            loads: self.loads,
            certificates: self.certificates,
        }
    }
}

fn differing<'a, K: Ord, V: PartialEq>(
    a: &'a BTreeMap<K, V>,
    b: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> + use<'a, K, V> {
    let changed = a.iter().filter(|(k, v)| b.get(k) != Some(v)).map(|(k, _)| k);
    changed.chain(b.keys().filter(|k| !a.contains_key(k)))
}

/// Puts changes in an order in which no app is ever without the endpoint that replaces another.
pub(super) fn sort(changes: &mut [RegistryChange]) {
    changes.sort_by_key(|change| match change {
        RegistryChange::Config(..) => 0,
        RegistryChange::Put(..) => 1,
        RegistryChange::Remove(_) => 2,
        RegistryChange::ConfigRemove(_) => 3,
        RegistryChange::Load(..) | RegistryChange::LoadRemove(_) => 4,
        RegistryChange::Certificate(..) | RegistryChange::CertificateRemove(_) => 5,
    });
}

fn read_endpoint(data: &[u8]) -> Result<Endpoint, String> {
    let text = std::str::from_utf8(data).map_err(|_| "it is not text".to_owned())?;
    text.parse()
        .map_err(|e: model::registry::InvalidEndpoint| e.to_string())
}

fn read_config(data: &[u8]) -> Result<AppConfig, String> {
    let config: AppConfig = serde_json::from_slice(data).map_err(|e| e.to_string())?;
    match config.check().first() {
        Some(error) => Err(error.to_string()),
        None => Ok(config),
    }
}

/// Log lines about unreadable entries: one each 10 s, with the number of those left out.
#[derive(Debug, Default)]
pub(super) struct Noise {
    last: Option<Instant>,
    left_out: u64,
}

impl Noise {
    const EVERY: Duration = Duration::from_secs(10);

    pub(super) fn unreadable(&mut self, what: &str, why: &str) {
        if self.last.is_some_and(|last| last.elapsed() < Self::EVERY) {
            self.left_out += 1;
            return;
        }
        tracing::warn!(entry = what, %why, others = self.left_out, "an entry of the registry can't be read, it is left out");
        self.last = Some(Instant::now());
        self.left_out = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::contract::registry::{config, endpoint, key, load};

    #[test]
    fn registry_view_tells_what_changes() {
        let (mut view, mut noise) = (View::default(), Noise::default());
        let leaf = Leaf::Endpoint(key("hello", "1", "c1"));
        let put = RegistryChange::Put(key("hello", "1", "c1"), endpoint(80));
        assert_eq!(view.set(leaf.clone(), Some(b"10.0.0.1:80"), &mut noise), Some(put));
        assert_eq!(view.set(leaf.clone(), Some(b"10.0.0.1:80"), &mut noise), None);
        let remove = RegistryChange::Remove(key("hello", "1", "c1"));
        assert_eq!(view.set(leaf.clone(), Some(b"10.0.0.1:80\n"), &mut noise), Some(remove));
        assert_eq!(view.set(leaf.clone(), Some(b"\xff"), &mut noise), None);
        assert_eq!(view.set(leaf, None, &mut noise), None);
    }

    #[test]
    fn registry_view_of_loads() {
        let (mut view, mut noise) = (View::default(), Noise::default());
        let entry = key("hello", "1", "c1");
        let leaf = Leaf::Load(entry.load_key());
        let text = br#"{"host":"h1","region":"eu"}"#;
        let change = RegistryChange::Load(entry.load_key(), load("eu", None));
        assert_eq!(view.set(leaf.clone(), Some(text), &mut noise), Some(change));
        assert_eq!(view.set(leaf.clone(), Some(text), &mut noise), None);
        // A new picture has it until it is read again, but not without an endpoint.
        assert!(view.rebuilt(vec![], &mut noise).loads.is_empty());
        let endpoint = (Leaf::Endpoint(entry.clone()), b"10.0.0.1:80".to_vec());
        let rebuilt = view.rebuilt(vec![endpoint], &mut noise);
        assert_eq!(rebuilt.loads, view.loads);
        assert!(rebuilt.load_leaves().eq([leaf.clone()]));
        let gone = RegistryChange::LoadRemove(entry.load_key());
        assert_eq!(view.set(leaf.clone(), Some(b"{}"), &mut noise), Some(gone));
        assert_eq!(view.set(leaf, None, &mut noise), None);
    }

    #[test]
    fn registry_view_keeps_the_last_good_configuration() {
        let (mut view, mut noise) = (View::default(), Noise::default());
        let app: AppId = "hello".parse().expect("valid");
        let leaf = Leaf::Config(app.clone());
        let good = serde_json::to_vec(&config("a.example.com")).expect("json");
        assert!(view.set(leaf.clone(), Some(&good), &mut noise).is_some());
        for bad in [&b"{"[..], br#"{"domains":["NOT A DOMAIN"]}"#] {
            assert_eq!(view.set(leaf.clone(), Some(bad), &mut noise), None);
            let rebuilt = view.rebuilt(vec![(leaf.clone(), bad.to_vec())], &mut noise);
            assert_eq!(rebuilt.configs.get(&app), Some(&config("a.example.com")));
        }
        assert!(view.rebuilt(vec![], &mut noise).configs.is_empty());
        assert_eq!(
            view.set(leaf, None, &mut noise),
            Some(RegistryChange::ConfigRemove(app))
        );
    }

    #[test]
    fn registry_view_counts_differences_but_not_what_is_changing() {
        let mut noise = Noise::default();
        let entry = |c: &str, data: &[u8]| (Leaf::Endpoint(key("hello", "1", c)), data.to_vec());
        let empty = View::default();
        let a = empty.rebuilt(vec![entry("c1", b"10.0.0.1:1"), entry("c2", b"10.0.0.1:2")], &mut noise);
        let b = empty.rebuilt(vec![entry("c2", b"10.0.0.1:3"), entry("c3", b"10.0.0.1:3")], &mut noise);
        assert_eq!(a.differences(&b, &BTreeSet::new()), 3);
        let changing = BTreeSet::from([Leaf::Endpoint(key("hello", "1", "c3"))]);
        assert_eq!(a.differences(&b, &changing), 2);
        assert_eq!(a.differences(&a, &BTreeSet::new()), 0);
    }
}
