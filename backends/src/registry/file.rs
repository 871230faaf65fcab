//! The registry as a file ([`SnapshotFile`] in JSON), for static set-ups: read again whenever it changes.
//!
//! A file that can't be read never empties the registry: the last good content stays. There is nobody to
//! acknowledge to.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures::SinkExt as _;
use futures::channel::mpsc::{self, Receiver, Sender};
use model::registry::{Acknowledgement, RegistryError, RegistryEvent, RegistryReader, RegistrySnapshot, SnapshotFile};

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(200);
/// Largest file that is read: 100,000 apps of 4 endpoints need about 60 MiB.
const MAX_BYTES: u64 = 512 << 20;
/// Events that wait in a follower's channel: one snapshot makes the one before it worthless.
const CHANNEL: usize = 1;

/// Follows a snapshot file.
#[derive(Debug)]
pub struct FileReader {
    path: PathBuf,
}

impl FileReader {
    /// The file at `path`; it need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

/// What it means that the file can't be read.
fn unread(known: bool) -> &'static str {
    match known {
        true => "the registry file can't be read, its last good content stays",
        false => "the registry file can't be read: nothing is known of any app until it can be",
    }
}

/// By what a changed file is told: inode, size, and time of change in seconds and nanoseconds.
type Stamp = (u64, u64, i64, i64);

async fn stamp(path: &PathBuf) -> std::io::Result<Stamp> {
    let meta = tokio::fs::metadata(path).await?;
    Ok((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}

async fn load(path: &PathBuf, size: u64) -> Result<RegistrySnapshot, String> {
    if size > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    let text = tokio::fs::read(path).await.map_err(|e| e.to_string())?;
    // 60 MiB take most of a second to parse: not on a thread that serves others.
    let parsed = tokio::task::spawn_blocking(move || serde_json::from_slice::<SnapshotFile>(&text)).await;
    match parsed {
        Ok(Ok(file)) => Ok(file.into()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("reading it was interrupted".into()),
    }
}

async fn feed(path: PathBuf, mut to: Sender<RegistryEvent>) {
    let mut last: Option<Result<Stamp, std::io::ErrorKind>> = None;
    let mut told: Option<RegistrySnapshot> = None;
    let mut said_missing = false;
    while !to.is_closed() {
        let now = stamp(&path).await;
        let mark = now.as_ref().map(|s| *s).map_err(std::io::Error::kind);
        if last.as_ref() != Some(&mark) {
            last = Some(mark);
            let loaded = match now {
                Ok((_, size, ..)) => load(&path, size).await,
                Err(error) => Err(error.to_string()),
            };
            let event = match loaded {
                Ok(snapshot) if told.as_ref() == Some(&snapshot) => None,
                Ok(snapshot) => {
                    told = Some(snapshot.clone());
                    Some(RegistryEvent::Snapshot(snapshot))
                }
                Err(why) => {
                    tracing::warn!(path = %path.display(), %why, "{}", unread(told.is_some()));
                    let first = told.is_none() && !std::mem::replace(&mut said_missing, true);
                    first.then(|| RegistryEvent::Disconnected(format!("{} can't be read: {why}", path.display())))
                }
            };
            if let Some(event) = event
                && to.send(event).await.is_err()
            {
                return;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

#[async_trait]
impl RegistryReader for FileReader {
    fn follow(&self) -> Receiver<RegistryEvent> {
        let (to, receiver) = mpsc::channel(CHANNEL);
        tokio::spawn(feed(self.path.clone(), to));
        receiver
    }

    async fn acknowledge(&self, _gateway: &str, _ack: &Acknowledgement) -> Result<(), RegistryError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;
    use model::contract::registry::{endpoint, key, load};

    async fn next(events: &mut Receiver<RegistryEvent>) -> RegistryEvent {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
        event.expect("an event in time").expect("the follower lives")
    }

    fn file(ports: &[u16]) -> String {
        let mut snapshot = RegistrySnapshot::default();
        for port in ports {
            let key = key("hello", "1", &format!("c{port}"));
            snapshot
                .loads
                .insert(key.load_key(), load("eu", Some(u32::from(*port))));
            snapshot.endpoints.insert(key, endpoint(*port));
        }
        serde_json::to_string(&SnapshotFile::from(&snapshot)).expect("json")
    }

    #[tokio::test]
    async fn registry_file_is_followed_and_survives_a_broken_write() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("registry.json");
        let reader = FileReader::new(&path);
        let mut events = reader.follow();
        assert!(matches!(next(&mut events).await, RegistryEvent::Disconnected(_)));
        assert!(unread(false).contains("nothing is known") && unread(true).contains("stays"));

        std::fs::write(&path, file(&[20_000])).expect("written");
        let RegistryEvent::Snapshot(snapshot) = next(&mut events).await else {
            panic!("not a snapshot")
        };
        assert_eq!(snapshot.endpoints.len(), 1);

        std::fs::write(&path, "{ broken").expect("written");
        tokio::time::sleep(POLL * 3).await;
        std::fs::write(&path, file(&[20_000, 20_001])).expect("written");
        // The broken content was passed over in silence: the next event is the next good one.
        let RegistryEvent::Snapshot(snapshot) = next(&mut events).await else {
            panic!("not a snapshot")
        };
        assert_eq!(snapshot.endpoints.len(), 2);
        let second = key("hello", "1", "c20001").load_key();
        assert_eq!(snapshot.loads.get(&second), Some(&load("eu", Some(20_001))));
        reader
            .acknowledge("g", &Acknowledgement::default())
            .await
            .expect("nothing to do");
    }
}
