//! The snapshot file: the last registry copy on disk, for a start without the registry. Written beside and renamed, so
//! that a reader never sees half of one; never read while the registry itself is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use model::registry::{RegistryRevision, RegistrySnapshot, SnapshotFile};
use model::{CertificateName, SealedCertificate};

use crate::shared::Shared;
use crate::table::Table;

/// Least time between two writes.
const PACE: Duration = Duration::from_secs(1);
/// Largest file that is read.
const MOST: u64 = 1 << 30;

/// Keeps the file true.
pub(crate) struct Keeper {
    path: PathBuf,
    dirty: bool,
    next: Instant,
    writing: Option<tokio::task::JoinHandle<Duration>>,
}

impl Keeper {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            dirty: false,
            next: Instant::now(),
            writing: None,
        }
    }

    /// Writes the table when it has `changed` and it is time.
    pub(crate) fn keep(&mut self, shared: &Shared, changed: bool, now: Instant) {
        self.dirty |= changed;
        if let Some(writing) = &mut self.writing {
            match writing.now_or_never() {
                Some(took) => {
                    // A big registry is written more rarely, so that writing takes at most a tenth of the time.
                    self.next = now + PACE.max(took.unwrap_or_default() * 10);
                    self.writing = None;
                }
                None => return,
            }
        }
        if self.dirty && now >= self.next {
            self.dirty = false;
            let (path, table, revision, certificates) = (
                self.path.clone(),
                shared.table.load_full(),
                shared.registry.revision.load(Ordering::Relaxed),
                shared.tls.as_ref().and_then(|tls| tls.heard()),
            );
            self.writing = Some(tokio::task::spawn_blocking(move || {
                let start = Instant::now();
                if let Err(error) = write(&path, &table, certificates.as_deref(), RegistryRevision(revision)) {
                    tracing::warn!(%error, path = %path.display(), "the snapshot file can't be written");
                }
                start.elapsed()
            }));
        }
    }
}

impl Keeper {
    /// Writes what is not written yet: the last act of a gateway that is stopped.
    pub(crate) async fn finish(mut self, shared: &Shared) {
        if let Some(writing) = self.writing.take() {
            let _ = writing.await;
        }
        self.next = Instant::now();
        self.keep(shared, false, self.next);
        if let Some(writing) = self.writing.take() {
            let _ = writing.await;
        }
    }
}

fn write(
    path: &Path,
    table: &Table,
    certificates: Option<&BTreeMap<CertificateName, SealedCertificate>>,
    revision: RegistryRevision,
) -> std::io::Result<()> {
    let mut file = SnapshotFile {
        revision,
        certificates: certificates.cloned().unwrap_or_default(),
        ..SnapshotFile::default()
    };
    for (_, app) in table.iter().filter(|(key, _)| !key.contains('.')) {
        if app.configured {
            file.configs.insert(app.shared.id.clone(), app.settings.config.clone());
        }
        for e in &app.endpoints {
            let versions = file.endpoints.entry(e.key.app.clone()).or_default();
            let containers = versions.entry(e.key.version.clone()).or_default();
            containers.insert(e.key.container.clone(), model::Endpoint(e.address));
            if let Some(load) = e.load() {
                let loads = file.loads.entry(e.key.app.clone()).or_default();
                loads.insert(e.key.container.clone(), model::Load::clone(&load));
            }
        }
    }
    // During an upgrade two processes write the file.
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let out = std::fs::File::create(&beside)?;
    let mut out = std::io::BufWriter::new(out);
    serde_json::to_writer(&mut out, &file)?;
    out.into_inner()
        .map_err(std::io::IntoInnerError::into_error)?
        .sync_all()?;
    std::fs::rename(&beside, path)
}

/// What the file holds, if it can be read.
pub(crate) async fn read(path: Option<&Path>) -> Option<RegistrySnapshot> {
    let path = path?.to_owned();
    let read = move || -> Result<SnapshotFile, String> {
        let size = std::fs::metadata(&path).map_err(|e| e.to_string())?.len();
        if size > MOST {
            return Err(format!("{size} bytes are too many"));
        }
        let file = std::fs::File::open(&path).map_err(|e| e.to_string())?;
        serde_json::from_reader(std::io::BufReader::new(file)).map_err(|e| e.to_string())
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(file)) => Some(file.into()),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the snapshot file can't be read");
            None
        }
        Err(_) => None,
    }
}
