//! Certificates on their way from the store to the registry, sealed as they are. They are written behind endpoints and loads,
//! a few at a time, and what is wrong with them stops nothing else.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use model::registry::{RegistryChange, RegistryError, RegistryRevision, RegistryWriter};
use model::store::StoreError;
use model::{CertificateName, SealedCertificate};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Deps;
use crate::confirm::{Awaited, confirmed};
use crate::metrics::Metrics;
use crate::sync::Trouble;

/// Between two looks at the store.
const EVERY: Duration = Duration::from_secs(2);

/// Between two looks at whether this process leads now.
const STAND_BY: Duration = Duration::from_millis(500);

/// Most certificates in one write: endpoints that change meanwhile wait for no more than these.
const AT_ONCE: usize = 4;

/// What is written is read again after this time, should anybody else have touched it.
const REREAD: Duration = Duration::from_secs(600);

/// Pause after the registry refused a certificate.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// All certificates by name, with what gateways are to answer to authorities meanwhile.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) entries: BTreeMap<CertificateName, SealedCertificate>,
    /// The marks of challenges that not every gateway is known to answer.
    pub(crate) unpresented: BTreeMap<CertificateName, i64>,
}

/// What the registry is to hold.
pub(crate) type All = Arc<Wanted>;

/// Reads certificates while this process leads, until `shutdown`. `None`: they were not read yet.
pub(crate) async fn follow(
    deps: Deps,
    metrics: Arc<Metrics>,
    certificates: watch::Sender<Option<All>>,
    shutdown: CancellationToken,
) {
    let mut pause = Duration::ZERO;
    let mut marks = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
        if metrics.leader.get() == 0 {
            pause = STAND_BY;
            continue;
        }
        pause = EVERY;
        let known = certificates.borrow().clone();
        match read(&deps, known.as_ref(), &mut marks).await {
            Ok(Some(all)) => {
                certificates.send_replace(Some(all));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the certificates can't be read, the last ones stay"),
        }
    }
}

/// All certificates as they are now; only those with another mark are read. `None`: they are as `known`.
async fn read(
    deps: &Deps,
    known: Option<&All>,
    marks: &mut HashMap<CertificateName, i64>,
) -> Result<Option<All>, StoreError> {
    let orders = deps.store.order_list().await?;
    let list = deps.store.certificate_list().await?;
    let same = |name: &CertificateName, mark: i64| marks.get(name) == Some(&mark);
    let (mut wanted, mut new_marks) = (Wanted::default(), HashMap::new());
    for certificate in list {
        let name = certificate.name;
        let kept = known
            .filter(|_| same(&name, certificate.mark))
            .and_then(|known| known.entries.get(&name));
        let (mark, sealed) = match kept {
            Some(kept) => {
                let challenge = None;
                (
                    certificate.mark,
                    SealedCertificate {
                        challenge,
                        ..kept.clone()
                    },
                )
            }
            None => match deps.store.certificate_sealed(&name).await? {
                Some(read) => read,
                // It went meanwhile.
                None => continue,
            },
        };
        new_marks.insert(name.clone(), mark);
        wanted.entries.insert(name, sealed);
    }
    *marks = new_marks;
    for order in orders {
        let Some(challenge) = order.challenge else { continue };
        if order.presented != order.mark {
            wanted.unpresented.insert(order.domain.clone(), order.mark);
        }
        let none = || SealedCertificate::new("", "");
        wanted.entries.entry(order.domain).or_insert_with(none).challenge = Some(challenge);
    }
    let changed = known.is_none_or(|known| **known != wanted);
    Ok(changed.then(|| Arc::new(wanted)))
}

/// What the registry holds of certificates, as far as this writer knows.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    written: Option<(BTreeMap<CertificateName, SealedCertificate>, Instant)>,
    /// What was written last, whole.
    done: Option<All>,
    refused: Option<Instant>,
    /// Challenges that this writer has written, until the store knows that they are presented.
    presenting: BTreeMap<CertificateName, Presenting>,
}

/// A challenge that the gateways are to answer.
#[derive(Debug)]
struct Presenting {
    mark: i64,
    revision: RegistryRevision,
    since: Instant,
    /// The store was told.
    told: bool,
}

impl Certificates {
    /// What is written is unknown from now on.
    pub(crate) fn forget_written(&mut self) {
        self.written = None;
        self.done = None;
        self.presenting.clear();
    }

    /// Whether gateways are waited for.
    pub(crate) fn waits(&self) -> bool {
        self.presenting.values().any(|p| !p.told)
    }

    /// Tells the store which challenges every live gateway answers, or has had `limit` for.
    pub(crate) async fn confirm(&mut self, deps: &Deps, limit: Duration) -> Result<(), Trouble> {
        if !self.waits() {
            return Ok(());
        }
        let acknowledgements = deps.registry.acknowledgements().await?;
        for (domain, presenting) in self.presenting.iter_mut().filter(|(_, p)| !p.told) {
            let (revision, waited) = (presenting.revision, presenting.since.elapsed());
            if confirmed(&Awaited::Routed, revision, waited, &acknowledgements, limit) {
                deps.store.order_presented(domain, presenting.mark).await?;
                presenting.told = true;
            }
        }
        Ok(())
    }

    /// Writes a few of those that are due; `true` when there are more.
    pub(crate) async fn write(
        &mut self,
        registry: &dyn RegistryWriter,
        wanted: Option<&All>,
        metrics: &Metrics,
    ) -> Result<bool, RegistryError> {
        let Some(wanted) = wanted else {
            return Ok(false);
        };
        if self.refused.is_some_and(|at| at.elapsed() < REFUSED_PAUSE) {
            return Ok(false);
        }
        self.refused = None;
        if self
            .written
            .as_ref()
            .is_some_and(|(_, read_at)| read_at.elapsed() >= REREAD)
        {
            self.forget_written();
        }
        if self.done.as_ref().is_some_and(|done| Arc::ptr_eq(done, wanted)) {
            return Ok(false);
        }
        match self.write_some(registry, wanted).await {
            Ok(written) => {
                metrics.certificates.inc_by(written as u64);
                if written < AT_ONCE {
                    self.done = Some(Arc::clone(wanted));
                }
                Ok(written == AT_ONCE)
            }
            Err(RegistryError::Refused(why)) => {
                tracing::warn!(%why, "the registry refused certificates");
                self.refused = Some(Instant::now());
                self.forget_written();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn write_some(&mut self, registry: &dyn RegistryWriter, wanted: &Wanted) -> Result<usize, RegistryError> {
        let written = match &mut self.written {
            Some((written, _)) => written,
            none => &mut none.insert((registry.certificates().await?, Instant::now())).0,
        };
        let presenting = &mut self.presenting;
        presenting.retain(|domain, p| wanted.unpresented.get(domain) == Some(&p.mark));
        let batch = due(written, wanted, |domain| !presenting.contains_key(domain));
        let revision = match batch.is_empty() {
            true => RegistryRevision::default(),
            false => registry.apply(&batch).await?,
        };
        let length = batch.len();
        for change in batch {
            match change {
                RegistryChange::Certificate(name, sealed) => {
                    if let Some(mark) = wanted.unpresented.get(&name) {
                        let new = Presenting {
                            mark: *mark,
                            revision,
                            since: Instant::now(),
                            told: false,
                        };
                        presenting.insert(name.clone(), new);
                    }
                    written.insert(name, sealed)
                }
                RegistryChange::CertificateRemove(name) => written.remove(&name),
                _ => None,
            };
        }
        Ok(length)
    }
}

/// What is to be written next: challenges first, whose authorities wait, then new and changed ones, then what has to go. A
/// challenge of which it is not known when it was written is written again, so that its revision is known.
fn due(
    written: &BTreeMap<CertificateName, SealedCertificate>,
    wanted: &Wanted,
    unknown: impl Fn(&CertificateName) -> bool,
) -> Vec<RegistryChange> {
    let put = |(name, sealed): (&CertificateName, &SealedCertificate)| {
        RegistryChange::Certificate(name.clone(), sealed.clone())
    };
    let awaited = |name: &CertificateName| wanted.unpresented.contains_key(name) && unknown(name);
    let entries = || wanted.entries.iter();
    let challenges = entries().filter(|(name, _)| awaited(name)).map(put);
    let new = entries()
        .filter(|(name, sealed)| !awaited(name) && written.get(*name) != Some(*sealed))
        .map(put);
    let gone = written
        .keys()
        .filter(|name| !wanted.entries.contains_key(*name))
        .map(|name| RegistryChange::CertificateRemove(name.clone()));
    challenges.chain(new).chain(gone).take(AT_ONCE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use backends::registry::MemoryRegistry;

    fn all(list: &[(&str, char)]) -> All {
        Arc::new(Wanted {
            entries: entries(list),
            unpresented: BTreeMap::new(),
        })
    }

    fn entries(list: &[(&str, char)]) -> BTreeMap<CertificateName, SealedCertificate> {
        let sealed = |mark: char| SealedCertificate::new(mark.to_string(), mark.to_string());
        let each = list.iter().map(|(name, mark)| (name.parse().unwrap(), sealed(*mark)));
        each.collect()
    }

    #[tokio::test]
    async fn they_are_written_a_few_at_a_time_and_nothing_twice() {
        let registry = MemoryRegistry::new();
        let metrics = Metrics::new();
        let names: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
        let list: Vec<(&str, char)> = names.iter().map(|n| (n.as_str(), 'a')).collect();
        let wanted = all(&list);
        let mut certificates = Certificates::default();
        assert!(!certificates.write(&*registry, None, &metrics).await.unwrap());
        let mut turns = 1;
        while certificates.write(&*registry, Some(&wanted), &metrics).await.unwrap() {
            turns += 1;
        }
        assert_eq!(turns, 3);
        assert_eq!(registry.certificates().await.unwrap(), wanted.entries);
        let before = registry.published().await.unwrap().revision;
        for wanted in [&wanted, &all(&list)] {
            assert!(!certificates.write(&*registry, Some(wanted), &metrics).await.unwrap());
        }
        assert_eq!(registry.published().await.unwrap().revision, before);

        // Another leader knows nothing of it: what is there is replaced and removed.
        let fewer = all(&[("c0", 'b'), ("c1", 'a')]);
        let mut other = Certificates::default();
        while other.write(&*registry, Some(&fewer), &metrics).await.unwrap() {}
        assert_eq!(registry.certificates().await.unwrap(), fewer.entries);
        assert_eq!(metrics.certificates.get(), 10 + 1 + 8);
    }

    #[tokio::test]
    async fn challenges_go_first_and_are_known_to_be_written_whoever_leads() {
        let registry = MemoryRegistry::new();
        let metrics = Metrics::new();
        let names: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
        let list: Vec<(&str, char)> = names.iter().map(|n| (n.as_str(), 'a')).collect();
        let (domain, mark): (CertificateName, i64) = ("z.example.com".parse().unwrap(), -7);
        let mut wanted = Wanted {
            entries: entries(&list),
            unpresented: BTreeMap::from([(domain.clone(), mark)]),
        };
        let challenge = SealedCertificate {
            challenge: Some("v1.x".into()),
            ..SealedCertificate::new("", "")
        };
        wanted.entries.insert(domain.clone(), challenge.clone());
        let wanted: All = Arc::new(wanted);
        for more in [true, false] {
            // A new leader does not know when what stands there was written.
            let mut certificates = Certificates::default();
            let written = certificates.write(&*registry, Some(&wanted), &metrics).await;
            assert_eq!(written.unwrap(), more);
            let now = registry.published().await.unwrap().revision;
            let presenting = &certificates.presenting[&domain];
            assert_eq!((presenting.mark, presenting.revision), (mark, now));
            assert!(certificates.waits());
            while certificates.write(&*registry, Some(&wanted), &metrics).await.unwrap() {}
            assert_eq!(registry.certificates().await.unwrap()[&domain], challenge);
        }
        // It is over.
        let mut certificates = Certificates::default();
        let without = all(&list);
        while certificates.write(&*registry, Some(&without), &metrics).await.unwrap() {}
        assert!(!certificates.waits() && !registry.certificates().await.unwrap().contains_key(&domain));
    }
}
