//! Keeps the certificates that serve those of the folder and of the registry, while connections are open.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use certificates::SealingKeys;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Tls;
use super::certificates::Certificates;
use super::folder::{Folder, Look};
use super::registered::{Registered, Sealed};
use crate::Error;
use crate::config::Config;

/// How often the folder is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Certificates that expire within this are warned of.
const SOON_S: i64 = 14 * 86_400;
/// How often they are warned of.
const WARN_EVERY: Duration = Duration::from_secs(86_400);
/// Most warnings at once.
const WARNINGS: usize = 20;

/// Where certificates come from.
#[derive(Debug)]
pub(crate) struct Sources {
    folder: Option<Folder>,
    registered: Registered,
}

impl Sources {
    /// Opens them, and serves what the folder holds.
    ///
    /// # Errors
    /// [`Error::Config`] when the folder can't be read; bad pairs in it are no error.
    pub(crate) fn open(config: &Config, keys: Option<Arc<SealingKeys>>, tls: &Tls) -> Result<Self, Error> {
        let mut sources = Self {
            folder: config.certificates_dir.clone().map(Folder::new),
            registered: Registered::new(keys),
        };
        sources.look(tls, None).map_err(|e| {
            let path = config.certificates_dir.clone().unwrap_or_default();
            Error::Config(format!("gateway.certificates_dir = {path:?} can't be read: {e}"))
        })?;
        Ok(sources)
    }

    /// Looks at both, and serves what they hold. `true`: it is not what served before.
    ///
    /// # Errors
    /// The folder can't be read: what it held before serves on.
    fn look(&mut self, tls: &Tls, heard: Option<&Sealed>) -> io::Result<bool> {
        let of_registry = heard.map(|sealed| self.registered.take(sealed)).unwrap_or_default();
        let of_folder = self.folder.as_mut().map_or_else(|| Ok(Look::default()), Folder::look);
        let (of_folder, failed) = match of_folder {
            Ok(look) => (look, None),
            Err(error) => (Look::default(), Some(error)),
        };
        for (name, why) in of_registry.bad.iter().chain(&of_folder.bad) {
            tls.bad_pairs.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(certificate = %name, reason = %why,
                "certificate can't be used; what served before goes on");
        }
        let changed = of_registry.changed || of_folder.changed;
        if changed {
            let of_folder = self.folder.as_ref().map(Folder::certificates).unwrap_or_default();
            let table = Certificates::new(of_folder.into_iter().chain(self.registered.certificates()).collect());
            tracing::info!(certificates = table.all().len(), "certificates loaded");
            tls.certificates.store(Arc::new(table));
        }
        failed.map_or(Ok(changed), Err)
    }
}

/// Looks every 2 seconds, and at once when `reload` is notified or the registry tells something new; until `stop`.
pub(crate) async fn keep(tls: Arc<Tls>, mut sources: Sources, reload: Arc<Notify>, stop: CancellationToken) {
    let mut warned: Option<Instant> = None;
    let mut readable = true;
    let mut heard = tls.heard.subscribe();
    heard.mark_changed();
    loop {
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            warned = Some(Instant::now());
            warn_of_expiry(&tls.certificates());
        }
        tokio::select! {
            () = stop.cancelled() => return,
            // Its sender lives in `tls`.
            _ = heard.changed() => {}
            () = reload.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let now = heard.borrow_and_update().clone();
        let looking = Arc::clone(&tls);
        let looked = tokio::task::spawn_blocking(move || {
            let result = sources.look(&looking, now.as_ref());
            if now.is_some() {
                looking.taken.cancel();
            }
            (sources, result)
        });
        let Ok((back, result)) = looked.await else {
            tracing::error!("certificates are not looked at any more");
            return;
        };
        sources = back;
        match result {
            Ok(changed) => {
                readable = true;
                if changed {
                    warned = None;
                }
            }
            Err(error) if readable => {
                readable = false;
                tracing::warn!(%error, "the certificates' folder can't be read; those loaded go on");
            }
            Err(_) => {}
        }
    }
}

fn warn_of_expiry(certificates: &Certificates) {
    let soon = certificates.all().iter().take_while(|c| c.seconds_left() < SOON_S);
    for certificate in soon.take(WARNINGS) {
        let left = certificate.seconds_left();
        let name = certificate.label();
        if left < 0 {
            tracing::warn!(certificate = %name, days_ago = -left / 86_400, "certificate has expired");
        } else {
            tracing::warn!(certificate = %name, days_left = left / 86_400, "certificate expires soon");
        }
    }
}
