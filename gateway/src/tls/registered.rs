//! Certificates from the registry: the same for all gateways, their keys sealed. One that can't be opened or read leaves the
//! one of its name that served before.

use std::collections::BTreeMap;
use std::sync::Arc;

use certificates::SealingKeys;
use model::certificate::about_key;
use model::{CertificateName, SealedCertificate};

use super::certificates::{Certificate, Source};
use super::folder::Look;

/// All certificates of the registry.
pub(crate) type Sealed = Arc<BTreeMap<CertificateName, SealedCertificate>>;

/// The registry's certificates, as far as they were opened.
#[derive(Debug)]
pub(crate) struct Registered {
    /// Without any, nothing is opened.
    keys: Option<Arc<SealingKeys>>,
    /// What was looked at last.
    seen: Sealed,
    /// By name: the last sound one.
    opened: BTreeMap<CertificateName, Arc<Certificate>>,
}

impl Registered {
    pub(crate) fn new(keys: Option<Arc<SealingKeys>>) -> Self {
        Self {
            keys,
            seen: Sealed::default(),
            opened: BTreeMap::new(),
        }
    }

    /// Every certificate that serves.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = Arc<Certificate>> {
        self.opened.values().cloned()
    }

    /// Takes what the registry holds now; opens only what has changed.
    pub(crate) fn take(&mut self, now: &Sealed) -> Look {
        let mut look = Look::default();
        let before = std::mem::replace(&mut self.seen, Arc::clone(now));
        if Arc::ptr_eq(&before, now) {
            return look;
        }
        let Some(keys) = &self.keys else {
            if before.is_empty() && !now.is_empty() {
                tracing::warn!(
                    certificates = now.len(),
                    "the registry holds certificates, which can't be opened without gateway.certificates_key_file"
                );
            }
            return look;
        };
        let opened = self.opened.len();
        self.opened
            .retain(|name, _| now.get(name).is_some_and(SealedCertificate::has_chain));
        look.changed = self.opened.len() != opened;
        let same = |a: &SealedCertificate, b: &SealedCertificate| a.chain == b.chain && a.key == b.key;
        let new = now.iter().filter(|(name, sealed)| {
            // What is only a challenge is none of ours.
            sealed.has_chain() && !before.get(*name).is_some_and(|before| same(before, sealed))
        });
        for (name, sealed) in new {
            match open(keys, name, sealed) {
                Ok(certificate) => {
                    self.opened.insert(name.clone(), Arc::new(certificate));
                    look.changed = true;
                }
                Err(why) => look.bad.push((format!("registry/{name}"), why)),
            }
        }
        look
    }
}

fn open(keys: &SealingKeys, name: &CertificateName, sealed: &SealedCertificate) -> Result<Certificate, String> {
    let key = keys
        .open(&about_key(name), &sealed.key)
        .map_err(|e| format!("its key can't be opened: {e}"))?;
    Certificate::parse(Source::Registry, name.as_str(), sealed.chain.as_bytes(), &key)
}

#[cfg(test)]
mod tests {
    use super::super::certificates::tests::made;
    use super::*;

    fn keys(digit: &str) -> SealingKeys {
        SealingKeys::parse(&digit.repeat(64)).unwrap()
    }

    fn sealed(keys: &SealingKeys, name: &str, host: &str) -> (CertificateName, SealedCertificate) {
        let (chain, key) = made(&[host]);
        let name: CertificateName = name.parse().unwrap();
        let key = keys.seal(&about_key(&name), key.as_bytes()).unwrap();
        (name, SealedCertificate::new(chain, key))
    }

    fn serving(registered: &Registered) -> Vec<String> {
        registered.certificates().flat_map(|c| c.names.clone()).collect()
    }

    #[test]
    fn they_come_change_and_go_and_a_bad_one_leaves_the_last() {
        let mut registered = Registered::new(Some(Arc::new(keys("a"))));
        let all = |list: &[(CertificateName, SealedCertificate)]| Arc::new(list.iter().cloned().collect());
        let (a, b) = (sealed(&keys("a"), "a", "a.test"), sealed(&keys("a"), "b", "b.test"));
        let both: Sealed = all(&[a.clone(), b.clone()]);
        let look = registered.take(&both);
        assert!(look.changed && look.bad.is_empty());
        assert!(!registered.take(&both).changed && !registered.take(&all(&[a.clone(), b.clone()])).changed);
        assert_eq!(serving(&registered), ["a.test", "b.test"]);

        // Of another key, of another name, and no certificate at all.
        let stranger = sealed(&keys("b"), "a", "a2.test");
        let moved = (a.0.clone(), b.1.clone());
        let broken = SealedCertificate::new("x", Arc::clone(&a.1.key));
        for (bad, says) in [
            (stranger, "sealed with key"),
            (moved, "something else"),
            ((a.0.clone(), broken), "no certificate"),
        ] {
            let look = registered.take(&all(&[bad, b.clone()]));
            assert!(!look.changed && look.bad.len() == 1, "{look:?}");
            assert_eq!(look.bad[0].0, "registry/a");
            assert!(look.bad[0].1.contains(says), "{look:?}");
            assert_eq!(serving(&registered), ["a.test", "b.test"]);
        }
        let new = sealed(&keys("a"), "a", "a3.test");
        assert!(registered.take(&all(&[new, b.clone()])).changed);
        assert_eq!(serving(&registered), ["a3.test", "b.test"]);
        assert!(registered.take(&all(&[b])).changed);
        assert_eq!(serving(&registered), ["b.test"]);

        let mut without = Registered::new(None);
        assert!(!without.take(&both).changed && serving(&without).is_empty());
    }
}
