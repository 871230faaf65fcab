//! Endpoints that a new snapshot of the registry lacks although nobody withdrew them. When they are suspiciously many, more likely
//! the registry is wrong than that all of them have gone: whoever routes by the registry goes on with them for a while.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::AppId;
use crate::registry::{Endpoint, EntryKey};

/// What becomes of endpoints that a snapshot lacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Vanished {
    /// Suspiciously many: to be held for a while.
    pub held: Vec<EntryKey>,
    /// Gone.
    pub gone: Vec<EntryKey>,
}

impl Vanished {
    /// Compares what was routed `before` with the `next` snapshot. Held is what is one of more than half of all endpoints, or of
    /// more than half of its app's; but never an address that belongs to another container now, whose answers would be
    /// another app's.
    pub fn between<'a>(
        before: impl Iterator<Item = (&'a EntryKey, Endpoint)>,
        next: &BTreeMap<EntryKey, Endpoint>,
    ) -> Self {
        let mut apps: HashMap<&AppId, (usize, usize)> = HashMap::new();
        let (mut all, mut missing) = (0, Vec::new());
        for (key, endpoint) in before {
            let (of_app, missing_of_app) = apps.entry(&key.app).or_default();
            (all, *of_app) = (all + 1, *of_app + 1);
            if !next.contains_key(key) {
                *missing_of_app += 1;
                missing.push((key, endpoint));
            }
        }
        if missing.is_empty() {
            return Self::default();
        }
        let mass = missing.len() * 2 > all;
        let taken: HashSet<&Endpoint> = next.values().collect();
        let suspicious = |app: &AppId| apps.get(app).is_some_and(|(of_app, missing)| missing * 2 > *of_app);
        let mut sorted = Self::default();
        for (key, endpoint) in missing {
            let hold = (mass || suspicious(&key.app)) && !taken.contains(&endpoint);
            let list = if hold { &mut sorted.held } else { &mut sorted.gone };
            list.push(key.clone());
        }
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(list: &[(&str, u16)]) -> BTreeMap<EntryKey, Endpoint> {
        let entry = |(app, port): &(&str, u16)| {
            let key = EntryKey {
                app: app.parse().expect("an app"),
                version: "1".parse().expect("a version"),
                container: format!("c{port}").parse().expect("a container"),
            };
            (key, Endpoint::new([10, 0, 0, 1].into(), *port))
        };
        list.iter().map(entry).collect()
    }

    /// Ports of what is held and of what is gone.
    fn sorted(before: &[(&str, u16)], next: &BTreeMap<EntryKey, Endpoint>) -> [Vec<String>; 2] {
        let before = all(before);
        let Vanished { held, gone } = Vanished::between(before.iter().map(|(k, e)| (k, *e)), next);
        [held, gone].map(|keys| keys.iter().map(|k| k.container.to_string()).collect())
    }

    #[test]
    fn only_a_mass_is_held() {
        let two_apps = [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5), ("b", 6)];
        let none: [Vec<String>; 2] = [vec![], vec![]];
        assert_eq!(sorted(&two_apps, &all(&two_apps)), none);
        let [held, gone] = sorted(&two_apps, &all(&two_apps[1..]));
        assert!(held.is_empty() && gone == ["c1"], "one of three is no mass");
        let [held, gone] = sorted(&two_apps, &all(&[two_apps[2], two_apps[4], two_apps[5], ("b", 3_000)]));
        assert!(held == ["c1", "c2"] && gone == ["c4"], "most of one app");
        let [held, gone] = sorted(&two_apps, &all(&[]));
        assert!(held.len() == 6 && gone.is_empty());
    }

    #[test]
    fn an_address_that_is_anothers_by_now_is_not_held() {
        let mut next = all(&[("b", 9)]);
        for endpoint in next.values_mut() {
            *endpoint = Endpoint::new([10, 0, 0, 1].into(), 1);
        }
        assert_eq!(sorted(&[("a", 1), ("a", 2)], &next), [vec!["c2"], vec!["c1"]]);
    }
}
