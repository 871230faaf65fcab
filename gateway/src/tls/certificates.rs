//! Certificates and the table in which a client's server name finds its own: the exact name first, then the wildcard one
//! label up, then the default. The table is immutable; a change makes a new one.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ahash::AHashMap;
use certificates::Pair;
use model::certificate::DEFAULT;
use rustls::sign::CertifiedKey;

/// Where a certificate comes from. What stands later goes before the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The registry, for all gateways.
    Registry,
    /// This gateway's own folder: whoever put it there wants it here.
    Folder,
}

/// A chain with its key.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// What it is called there.
    pub(crate) name: String,
    pub(crate) source: Source,
    /// DNS names that it is for, in lower case; wildcards as `*.example.com`.
    pub(crate) names: Vec<String>,
    /// When it expires, in seconds since 1970.
    pub(crate) expires: i64,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Reads a chain (the server's own certificate first) and its key, both PEM.
    ///
    /// # Errors
    /// One sentence: what is wrong with which of them.
    pub(crate) fn parse(source: Source, name: &str, chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let pair = Pair::parse(chain, key).map_err(|bad| bad.to_string())?;
        if pair.names.is_empty() && name != DEFAULT {
            return Err("the certificate has no DNS name (subject alternative name)".into());
        }
        Ok(Self {
            name: name.to_owned(),
            source,
            names: pair.names,
            expires: pair.expires,
            key: pair.certified,
        })
    }

    /// Its name in metrics and logs, which no other has.
    pub(crate) fn label(&self) -> String {
        match self.source {
            Source::Folder => self.name.clone(),
            // No file's name holds a slash.
            Source::Registry => format!("registry/{}", self.name),
        }
    }

    /// Whether it is for this host, in lower case.
    pub(crate) fn covers(&self, host: &str) -> bool {
        let parent = host.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            // A wildcard stands for one whole label (RFC 6125 6.4.3).
            Some(wildcard) => parent == Some(wildcard) && !host.starts_with('.'),
            None => name == host,
        })
    }

    /// What the TLS library serves.
    pub(crate) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Seconds until it expires; negative when it has.
    pub(crate) fn seconds_left(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expires
            .saturating_sub(i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
    }
}

/// All certificates, found by server name.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    exact: AHashMap<Box<str>, Arc<Certificate>>,
    /// By what follows `*.`.
    wildcard: AHashMap<Box<str>, Arc<Certificate>>,
    default: Option<Arc<Certificate>>,
    /// The one that expires first before the others.
    all: Vec<Arc<Certificate>>,
}

impl Certificates {
    /// The table of these. Where two have the same name, the folder's serves it, and of two of the same source the one that
    /// expires later.
    pub(crate) fn new(mut all: Vec<Arc<Certificate>>) -> Self {
        all.sort_by(|a, b| (a.source, a.expires, &a.name).cmp(&(b.source, b.expires, &b.name)));
        let mut table = Self::default();
        for certificate in &all {
            for name in &certificate.names {
                let (map, key) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut table.wildcard, parent),
                    None => (&mut table.exact, name.as_str()),
                };
                map.insert(key.into(), Arc::clone(certificate));
            }
            if certificate.name == DEFAULT {
                table.default = Some(Arc::clone(certificate));
            }
        }
        all.sort_by(|a, b| (a.expires, a.source, &a.name).cmp(&(b.expires, b.source, &b.name)));
        table.all = all;
        table
    }

    /// The certificate for a server name, in lower case; `None` as a name: the client says none.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<&Arc<Certificate>> {
        name.and_then(|name| self.own(name)).or(self.default.as_ref())
    }

    fn own(&self, name: &str) -> Option<&Arc<Certificate>> {
        self.exact.get(name).or_else(|| {
            let (label, parent) = name.split_once('.')?;
            // A wildcard stands for one whole label (RFC 6125 6.4.3).
            self.wildcard.get(parent).filter(|_| !label.is_empty())
        })
    }

    /// Whether a certificate names this host, in lower case.
    pub(crate) fn names(&self, host: &str) -> bool {
        self.own(host).is_some()
    }

    /// Every certificate, the one that expires first before the others.
    pub(crate) fn all(&self) -> &[Arc<Certificate>] {
        &self.all
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// PEM of a self-signed certificate and its key.
    pub(crate) fn made(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn certificate(name: &str, names: &[&str]) -> Arc<Certificate> {
        let (chain, key) = made(names);
        Arc::new(Certificate::parse(Source::Folder, name, chain.as_bytes(), key.as_bytes()).expect("sound"))
    }

    #[test]
    fn exact_before_wildcard_before_default() {
        let exact = certificate("exact", &["shop.example.com"]);
        let wild = certificate("wild", &["*.example.com", "Example.ORG"]);
        let default = certificate(DEFAULT, &["localhost"]);
        let with = Certificates::new(vec![Arc::clone(&exact), Arc::clone(&wild), Arc::clone(&default)]);
        let without = Certificates::new(vec![Arc::clone(&exact), Arc::clone(&wild)]);
        let is = |name: Option<&str>, one: &Arc<Certificate>| {
            assert!(with.find(name).is_some_and(|found| Arc::ptr_eq(found, one)), "{name:?}");
        };
        is(Some("shop.example.com"), &exact);
        is(Some("other.example.com"), &wild);
        is(Some("example.org"), &wild);
        for name in [
            None,
            Some("example.com"),
            Some("a.b.example.com"),
            Some(".example.com"),
            Some("nowhere"),
        ] {
            is(name, &default);
            assert!(without.find(name).is_none(), "{name:?}");
            assert!(!name.is_some_and(|n| with.names(n)), "{name:?}");
        }
        assert!(with.names("shop.example.com") && with.names("x.example.com") && with.names("localhost"));
    }

    #[test]
    fn the_one_that_expires_later_serves() {
        let old = certificate("b", &["a.test"]);
        let mut new = Certificate {
            name: "a".into(),
            source: Source::Folder,
            names: old.names.clone(),
            expires: old.expires + 1,
            key: Arc::clone(&certificate("x", &["x"]).key),
        };
        for (expires, newer) in [(old.expires + 1, true), (old.expires - 1, false)] {
            new.expires = expires;
            let new = Arc::new(Certificate {
                name: new.name.clone(),
                source: Source::Folder,
                names: new.names.clone(),
                expires,
                key: Arc::clone(&new.key),
            });
            let table = Certificates::new(vec![Arc::clone(&new), Arc::clone(&old)]);
            let found = table.find(Some("a.test")).expect("found");
            assert_eq!(Arc::ptr_eq(found, &new), newer);
            assert_eq!(table.all()[0].expires, old.expires.min(expires));
        }
    }

    #[test]
    fn the_folder_goes_before_the_registry_and_an_exact_name_before_any_wildcard() {
        let (chain, key) = made(&["a.test", "*.b.test"]);
        let made = |source, name: &str, names: &[&str], later: i64| {
            let mut one = Certificate::parse(source, name, chain.as_bytes(), key.as_bytes()).expect("sound");
            one.names = names.iter().map(|n| (*n).to_owned()).collect();
            one.expires += later;
            one.key = Arc::new(CertifiedKey::clone(&one.key));
            Arc::new(one)
        };
        let folder = made(Source::Folder, "a", &["a.test", "*.b.test"], 0);
        let registry = made(Source::Registry, "a", &["a.test", "x.b.test", "c.test"], 1);
        let defaults = [
            made(Source::Folder, DEFAULT, &[], 0),
            made(Source::Registry, DEFAULT, &[], 9),
        ];
        let mut all = vec![Arc::clone(&folder), Arc::clone(&registry)];
        all.extend(defaults.iter().cloned());
        let table = Certificates::new(all);
        for (name, one) in [
            ("a.test", &folder),
            ("y.b.test", &folder),
            ("x.b.test", &registry),
            ("c.test", &registry),
            ("d.test", &defaults[0]),
        ] {
            let found = table.find(Some(name)).expect("found");
            assert!(Arc::ptr_eq(found, one), "{name}");
        }
        let labels: Vec<String> = table.all().iter().map(|c| c.label()).collect();
        assert_eq!(labels, ["a", "default", "registry/a", "registry/default"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let (chain, key) = made(&["a.test"]);
        let (other_chain, other_key) = made(&["b.test"]);
        let (nameless, nameless_key) = made(&[]);
        let half = &chain[..chain.len() / 2];
        let long = chain.repeat(11);
        for (chain, key, says) in [
            ("", key.as_str(), "no certificate"),
            ("junk", &key, "no certificate"),
            (half, &key, "PEM"),
            (&chain, "", "the key"),
            (&chain, &chain, "the key"),
            (&chain, &other_key, "not the certificate's"),
            (&other_chain, &key, "not the certificate's"),
            (&nameless, &nameless_key, "no DNS name"),
            (&long, &key, "more than 10"),
        ] {
            let error =
                Certificate::parse(Source::Folder, "a", chain.as_bytes(), key.as_bytes()).expect_err("not this one");
            assert!(error.contains(says), "{error}");
        }
        assert!(Certificate::parse(Source::Folder, DEFAULT, nameless.as_bytes(), nameless_key.as_bytes()).is_ok());
        let both = format!("{key}{chain}");
        let one = Certificate::parse(Source::Folder, "a", both.as_bytes(), both.as_bytes()).expect("one file");
        assert!(one.seconds_left() > 86_400);
    }

    #[test]
    fn ten_thousand_names_are_found() {
        let one = certificate("a", &["a.test"]);
        let all = (0..10_000)
            .map(|i| {
                Arc::new(Certificate {
                    name: format!("c{i}"),
                    source: Source::Folder,
                    names: vec![format!("c{i}.apps.example"), format!("*.c{i}.apps.example")],
                    expires: one.expires,
                    key: Arc::clone(&one.key),
                })
            })
            .collect();
        let table = Certificates::new(all);
        for i in 0..10_000 {
            for name in [format!("c{i}.apps.example"), format!("www.c{i}.apps.example")] {
                assert!(table.own(&name).is_some(), "{name}");
            }
            assert!(table.own(&format!("d{i}.apps.example")).is_none());
        }
    }
}
