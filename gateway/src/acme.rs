//! Proof to authorities that a domain is one's own (RFC 8555 section 8): what a scheduler has sealed into the registry is opened
//! here and answered by http-01 on every listener and by tls-alpn-01 on those for TLS, before anything else is looked at. As
//! long as no certificate is being had, that costs requests one branch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ahash::AHashMap;
use arc_swap::ArcSwap;
use bytes::Bytes;
use certificates::{ACME_TLS, Proof, SealingKeys};
use model::order::about_challenge;
use model::{CertificateName, SealedCertificate};
use rustls::sign::CertifiedKey;

use crate::redirect::CHALLENGES;
use crate::route;
use crate::tls::hello::Hello;

/// A proof, and the sealed text from which it was opened.
#[derive(Clone, Debug)]
struct Opened {
    sealed: Arc<str>,
    proof: Arc<Proof>,
}

/// What is answered now, by domain.
#[derive(Debug, Default)]
pub(crate) struct Challenges {
    any: AtomicBool,
    opened: ArcSwap<AHashMap<Box<str>, Opened>>,
}

impl Challenges {
    /// Whether there is anything to answer.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// The body for an authority that fetches `path` at `host`; both as they came.
    pub(crate) fn body(&self, host: &[u8], path: &str) -> Option<Bytes> {
        let token = path.strip_prefix(CHALLENGES)?;
        let mut scratch = route::SCRATCH;
        let name = route::name(host, &mut scratch).ok()?;
        let opened = self.opened.load();
        let proof = &opened.get(name)?.proof;
        (proof.token == token).then(|| Bytes::from(proof.authorization.clone()))
    }

    /// The certificate for an authority that shakes hands for nothing but it (RFC 8737 section 3).
    pub(crate) fn certificate(&self, hello: &Hello) -> Option<Arc<CertifiedKey>> {
        if !hello.offers(ACME_TLS) {
            return None;
        }
        let name = hello.server_name()?;
        let opened = self.opened.load();
        Some(Arc::clone(&opened.get(name.as_str())?.proof.certificate))
    }

    /// Answers exactly these from now on.
    fn set(&self, keys: Option<&SealingKeys>, sealed: &BTreeMap<CertificateName, Arc<str>>) {
        let before = self.opened.load();
        let mut all = AHashMap::new();
        for (domain, text) in sealed {
            let known = before.get(domain.as_str()).filter(|known| known.sealed == *text);
            let proof = match known {
                Some(known) => Ok(Arc::clone(&known.proof)),
                None => open(keys, domain, text).map(Arc::new),
            };
            match proof {
                Ok(proof) => {
                    let sealed = Arc::clone(text);
                    all.insert(domain.as_str().into(), Opened { sealed, proof });
                }
                Err(reason) => tracing::warn!(%domain, %reason, "the proof of a domain can't be answered"),
            }
        }
        let any = !all.is_empty();
        self.opened.store(Arc::new(all));
        self.any.store(any, Ordering::Release);
    }
}

fn open(keys: Option<&SealingKeys>, domain: &CertificateName, sealed: &str) -> Result<Proof, String> {
    let keys = keys.ok_or("it can't be opened without gateway.certificates_key_file")?;
    let text = keys.open(&about_challenge(domain), sealed)?;
    let text = String::from_utf8(text).map_err(|_| "it is no text".to_owned())?;
    Proof::new(domain.as_str(), &text)
}

/// The registry's challenges as the follower has heard them.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    sealed: BTreeMap<CertificateName, Arc<str>>,
    moved: bool,
}

impl Heard {
    /// Takes the whole registry.
    pub(crate) fn resync(&mut self, certificates: &BTreeMap<CertificateName, SealedCertificate>) {
        let all = certificates.iter();
        let all = all.filter_map(|(name, c)| Some((name.clone(), c.challenge.clone()?)));
        self.sealed = all.collect();
        self.moved = true;
    }

    /// Takes one change; `true` when there is something else to answer now.
    pub(crate) fn change(&mut self, domain: &CertificateName, challenge: Option<&Arc<str>>) -> bool {
        let before = match challenge {
            Some(sealed) => self.sealed.insert(domain.clone(), Arc::clone(sealed)),
            None => self.sealed.remove(domain),
        };
        let moved = before.as_ref() != challenge;
        self.moved |= moved;
        moved
    }

    /// Makes connections obey what was heard.
    pub(crate) fn publish(&mut self, challenges: &Challenges, keys: Option<&SealingKeys>) {
        if std::mem::take(&mut self.moved) {
            challenges.set(keys, &self.sealed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_token_at_the_right_domain_is_answered_and_only_what_can_be_opened() {
        let keys = SealingKeys::parse(&"a".repeat(64)).unwrap();
        let domain: CertificateName = "shop.example.com".parse().unwrap();
        let seal = |about: &str, text: &str| -> Arc<str> { keys.seal(about, text.as_bytes()).unwrap().into() };
        let sealed = seal(&about_challenge(&domain), "tok.thumb");
        let (mut heard, challenges) = (Heard::default(), Challenges::default());
        assert!(heard.change(&domain, Some(&sealed)) && !heard.change(&domain, Some(&sealed)));
        heard.publish(&challenges, None);
        assert!(!challenges.any(), "no key opens it");

        heard.moved = true;
        heard.publish(&challenges, Some(&keys));
        let path = "/.well-known/acme-challenge/tok";
        let body = challenges.body(b"Shop.Example.com:80", path);
        assert_eq!(body.as_deref(), Some(&b"tok.thumb"[..]));
        for (host, path) in [
            ("other.example.com", path),
            ("shop.example.com", "/.well-known/acme-challenge/to"),
            ("shop.example.com", "/.well-known/acme-challenge/tok/"),
            ("shop.example.com", "/tok"),
            ("", path),
        ] {
            assert_eq!(challenges.body(host.as_bytes(), path), None, "{host} {path}");
        }

        // One for another domain, put in this one's place by whoever can write the registry.
        let other = seal(&about_challenge(&"b.test".parse().unwrap()), "tok.thumb");
        let all = BTreeMap::from([(
            domain.clone(),
            SealedCertificate {
                challenge: Some(other),
                ..SealedCertificate::new("", "")
            },
        )]);
        heard.resync(&all);
        heard.publish(&challenges, Some(&keys));
        assert!(!challenges.any());
        heard.resync(&BTreeMap::new());
        assert!(!heard.change(&domain, None));
    }
}
