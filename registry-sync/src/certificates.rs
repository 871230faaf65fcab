//! Certificates on their way from the store to the registry, sealed as they are. They are written behind endpoints and loads,
//! a few at a time, and what is wrong with them stops nothing else.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use model::registry::{RegistryChange, RegistryError, RegistryWriter};
use model::store::StoreError;
use model::{CertificateName, SealedCertificate};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Deps;
use crate::metrics::Metrics;

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

/// All certificates by name.
pub(crate) type All = Arc<BTreeMap<CertificateName, SealedCertificate>>;

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
    let list = deps.store.certificate_list().await?;
    let same = |name: &CertificateName, mark: i64| marks.get(name) == Some(&mark);
    if let Some(known) = known
        && known.len() == list.len()
        && list.iter().all(|c| same(&c.name, c.mark))
    {
        return Ok(None);
    }
    let (mut all, mut new_marks) = (BTreeMap::new(), HashMap::new());
    for certificate in list {
        let name = certificate.name;
        let kept = known
            .filter(|_| same(&name, certificate.mark))
            .and_then(|known| known.get(&name));
        let (mark, sealed) = match kept {
            Some(sealed) => (certificate.mark, sealed.clone()),
            None => match deps.store.certificate_sealed(&name).await? {
                Some(read) => read,
                // It went meanwhile.
                None => continue,
            },
        };
        new_marks.insert(name.clone(), mark);
        all.insert(name, sealed);
    }
    *marks = new_marks;
    Ok(Some(Arc::new(all)))
}

/// What the registry holds of certificates, as far as this writer knows.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    written: Option<(BTreeMap<CertificateName, SealedCertificate>, Instant)>,
    /// What was written last, whole.
    done: Option<All>,
    refused: Option<Instant>,
}

impl Certificates {
    /// What is written is unknown from now on.
    pub(crate) fn forget_written(&mut self) {
        self.written = None;
        self.done = None;
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

    async fn write_some(&mut self, registry: &dyn RegistryWriter, wanted: &All) -> Result<usize, RegistryError> {
        let written = match &mut self.written {
            Some((written, _)) => written,
            none => &mut none.insert((registry.certificates().await?, Instant::now())).0,
        };
        let batch = due(written, wanted);
        if !batch.is_empty() {
            registry.apply(&batch).await?;
        }
        let length = batch.len();
        for change in batch {
            match change {
                RegistryChange::Certificate(name, sealed) => written.insert(name, sealed),
                RegistryChange::CertificateRemove(name) => written.remove(&name),
                _ => None,
            };
        }
        Ok(length)
    }
}

/// What is to be written next: new and changed ones first, then what has to go.
fn due(
    written: &BTreeMap<CertificateName, SealedCertificate>,
    wanted: &BTreeMap<CertificateName, SealedCertificate>,
) -> Vec<RegistryChange> {
    let new = wanted
        .iter()
        .filter(|(name, sealed)| written.get(*name) != Some(*sealed))
        .map(|(name, sealed)| RegistryChange::Certificate(name.clone(), sealed.clone()));
    let gone = written
        .keys()
        .filter(|name| !wanted.contains_key(*name))
        .map(|name| RegistryChange::CertificateRemove(name.clone()));
    new.chain(gone).take(AT_ONCE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use backends::registry::MemoryRegistry;

    fn all(list: &[(&str, char)]) -> All {
        let sealed = |mark: char| SealedCertificate {
            chain: mark.to_string().into(),
            key: mark.to_string().into(),
        };
        let each = list.iter().map(|(name, mark)| (name.parse().unwrap(), sealed(*mark)));
        Arc::new(each.collect())
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
        assert_eq!(registry.certificates().await.unwrap(), *wanted);
        let before = registry.published().await.unwrap().revision;
        for wanted in [&wanted, &all(&list)] {
            assert!(!certificates.write(&*registry, Some(wanted), &metrics).await.unwrap());
        }
        assert_eq!(registry.published().await.unwrap().revision, before);

        // Another leader knows nothing of it: what is there is replaced and removed.
        let fewer = all(&[("c0", 'b'), ("c1", 'a')]);
        let mut other = Certificates::default();
        while other.write(&*registry, Some(&fewer), &metrics).await.unwrap() {}
        assert_eq!(registry.certificates().await.unwrap(), *fewer);
        assert_eq!(metrics.certificates.get(), 10 + 1 + 8);
    }
}
