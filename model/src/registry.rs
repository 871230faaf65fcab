//! The registry: which instances of which app answer at which address.
//!
//! In ZooKeeper it is the tree `/caas/service/address/{appId}/{version}/{containerId}` = `{hostIP}:{port}`,
//! `/caas/service/load/{appId}/{containerId}` = JSON, `/caas/service/config/{appId}` = JSON and
//! `/caas/service/certificate/{name}` = JSON with a sealed key; no path leaves the backend. registry-sync is the only writer, gateways read.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::channel::mpsc::Receiver;
use serde::{Deserialize, Serialize};

use crate::{AppConfig, AppId, CertificateName, ContainerId, Load, SealedCertificate, Version};

/// Where an instance answers: `{hostIP}:{port}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint(pub SocketAddr);

impl Endpoint {
    /// The endpoint at `ip`:`port`.
    pub fn new(ip: IpAddr, port: u16) -> Self {
        Self(SocketAddr::new(ip, port))
    }
}

/// A text that is not `{hostIP}:{port}`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an endpoint: it must be {{hostIP}}:{{port}} with a port from 1 to 65535")]
pub struct InvalidEndpoint(String);

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self(address)),
            _ => Err(InvalidEndpoint(text.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = InvalidEndpoint;
    fn try_from(text: String) -> Result<Self, InvalidEndpoint> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> String {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position in the order of the registry's changes (ZooKeeper's zxid; the memory registry's counter).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegistryRevision(pub i64);

/// Which instance an entry is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryKey {
    /// The app.
    pub app: AppId,
    /// The version.
    pub version: Version,
    /// The container.
    pub container: ContainerId,
}

/// Whose load an entry is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadKey {
    /// The app.
    pub app: AppId,
    /// The container.
    pub container: ContainerId,
}

impl EntryKey {
    /// Under which the load of the same instance stands.
    pub fn load_key(&self) -> LoadKey {
        LoadKey {
            app: self.app.clone(),
            container: self.container.clone(),
        }
    }
}

/// The whole registry at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistrySnapshot {
    /// Everything up to and including this revision is in it.
    pub revision: RegistryRevision,
    /// All endpoints.
    pub endpoints: BTreeMap<EntryKey, Endpoint>,
    /// All app configurations.
    pub configs: BTreeMap<AppId, AppConfig>,
    /// Loads of endpoints, as far as they are known: others may follow as changes.
    pub loads: BTreeMap<LoadKey, Load>,
    /// All certificates, their keys sealed.
    pub certificates: BTreeMap<CertificateName, SealedCertificate>,
}

impl RegistrySnapshot {
    /// Takes in one change; `revision` stays.
    pub fn fold(&mut self, change: RegistryChange) {
        match change {
            RegistryChange::Put(key, endpoint) => {
                self.endpoints.insert(key, endpoint);
            }
            RegistryChange::Remove(key) => {
                self.endpoints.remove(&key);
            }
            RegistryChange::Config(app, config) => {
                self.configs.insert(app, config);
            }
            RegistryChange::ConfigRemove(app) => {
                self.configs.remove(&app);
            }
            RegistryChange::Load(key, load) => {
                self.loads.insert(key, load);
            }
            RegistryChange::LoadRemove(key) => {
                self.loads.remove(&key);
            }
            RegistryChange::Certificate(name, sealed) => {
                self.certificates.insert(name, sealed);
            }
            RegistryChange::CertificateRemove(name) => {
                self.certificates.remove(&name);
            }
        }
    }
}

/// A change of the registry, as written and as seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryChange {
    /// The instance answers there.
    Put(EntryKey, Endpoint),
    /// The instance is withdrawn; naming one that is not there is no error.
    Remove(EntryKey),
    /// The app's configuration.
    Config(AppId, AppConfig),
    /// The app has no configuration any more.
    ConfigRemove(AppId),
    /// The instance's load. It may come before, with or after its endpoint.
    Load(LoadKey, Load),
    /// Nothing is known of the instance's load any more.
    LoadRemove(LoadKey),
    /// A certificate, in place of the one of the same name.
    Certificate(CertificateName, SealedCertificate),
    /// There is no certificate of this name any more.
    CertificateRemove(CertificateName),
}

/// What a reader hears, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum RegistryEvent {
    /// The whole registry: at the start, after each disconnect, and every 5 minutes as a safety net.
    Snapshot(RegistrySnapshot),
    /// Changes since, up to `revision`.
    Changes {
        /// In order.
        changes: Vec<RegistryChange>,
        /// The revision of the last one.
        revision: RegistryRevision,
        /// When this process first learned, from what notified it, that there was one of them to be read.
        heard: Instant,
    },
    /// The registry can't be reached: what was heard stays as it is, but may be stale. A snapshot follows when
    /// it is back.
    Disconnected(String),
}

/// What a gateway tells about the changes that it has heard (`/caas/gateways/{gatewayId}`, ephemeral).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// Everything up to this revision is applied: no new request goes to what was withdrawn by then.
    pub applied: RegistryRevision,
    /// Withdrawn containers that still have requests or tunnels open through this gateway.
    #[serde(default)]
    pub draining: Vec<ContainerId>,
}

/// Why the registry could not answer.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It can't be reached or did not answer in time; a write may or may not have happened.
    #[error("the registry can't be reached: {0}")]
    Unavailable(String),
    /// This writer is not, or no longer, the leader: nothing was written.
    #[error("another registry-sync is the registry's writer")]
    NotLeader,
    /// It refused: not authorised, or the data is not as expected.
    #[error("the registry refused: {0}")]
    Refused(String),
}

/// The gateways' side.
#[async_trait]
pub trait RegistryReader: Send + Sync + fmt::Debug {
    /// Starts following the registry; the receiver hears [`RegistryEvent`]s until it is dropped. Never
    /// fails: while the registry can't be reached it hears `Disconnected` and then, in the end, a snapshot. Entries that can't be
    /// read (bad id, bad endpoint, bad JSON) are left out and logged; the last good value of a configuration is kept.
    fn follow(&self) -> Receiver<RegistryEvent>;

    /// Entries in which resyncs found what was told wrong so far: always 0, unless there is a fault.
    fn resync_differences(&self) -> u64 {
        0
    }

    /// Tells the writer how far this gateway is. The first call makes the gateway known; it is forgotten when
    /// its session ends. Callers debounce (at most one call each 20 ms).
    async fn acknowledge(&self, gateway: &str, ack: &Acknowledgement) -> Result<(), RegistryError>;
}

/// registry-sync's side. There is one leader at a time: only its writes take effect.
#[async_trait]
pub trait RegistryWriter: Send + Sync + fmt::Debug {
    /// Becomes the leader, waiting at most `timeout` for another to go; `true` when it leads. Cheap when it already does.
    async fn lead(&self, timeout: Duration) -> Result<bool, RegistryError>;

    /// What is written now, without the loads (see [`loads`](Self::loads)) and the certificates (see
    /// [`certificates`](Self::certificates)). Entries that can't be read are left out of it
    /// (and `apply` may overwrite them).
    async fn published(&self) -> Result<RegistrySnapshot, RegistryError>;

    /// All loads that are written now, those without an endpoint too.
    async fn loads(&self) -> Result<BTreeMap<LoadKey, Load>, RegistryError>;

    /// All certificates that are written now. Those that can't be read are left out.
    async fn certificates(&self) -> Result<BTreeMap<CertificateName, SealedCertificate>, RegistryError>;

    /// Writes `changes` in order, in atomic batches (a batch never tears a `Put` from the `Remove` of the
    /// entry it replaces when they stand side by side); idempotent. The revision of the last one.
    async fn apply(&self, changes: &[RegistryChange]) -> Result<RegistryRevision, RegistryError>;

    /// What each live gateway has acknowledged, by gateway id.
    async fn acknowledgements(&self) -> Result<BTreeMap<String, Acknowledgement>, RegistryError>;
}

/// The registry as a file: what a gateway keeps for a start without ZooKeeper, and what `file:PATH` serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotFile {
    /// The revision that it holds.
    #[serde(default)]
    pub revision: RegistryRevision,
    /// Endpoints per app and version: container id → `{hostIP}:{port}`.
    pub endpoints: BTreeMap<AppId, BTreeMap<Version, BTreeMap<ContainerId, Endpoint>>>,
    /// Configuration per app.
    #[serde(default)]
    pub configs: BTreeMap<AppId, AppConfig>,
    /// Load per app and container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loads: BTreeMap<AppId, BTreeMap<ContainerId, Load>>,
    /// Certificates by name, their keys sealed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub certificates: BTreeMap<CertificateName, SealedCertificate>,
}

impl From<&RegistrySnapshot> for SnapshotFile {
    fn from(snapshot: &RegistrySnapshot) -> Self {
        let mut file = Self {
            revision: snapshot.revision,
            configs: snapshot.configs.clone(),
            certificates: snapshot.certificates.clone(),
            ..Self::default()
        };
        for (key, endpoint) in &snapshot.endpoints {
            file.endpoints
                .entry(key.app.clone())
                .or_default()
                .entry(key.version.clone())
                .or_default()
                .insert(key.container.clone(), *endpoint);
        }
        for (key, load) in &snapshot.loads {
            let loads = file.loads.entry(key.app.clone()).or_default();
            loads.insert(key.container.clone(), load.clone());
        }
        file
    }
}

impl From<SnapshotFile> for RegistrySnapshot {
    fn from(file: SnapshotFile) -> Self {
        let mut endpoints = BTreeMap::new();
        for (app, versions) in file.endpoints {
            for (version, containers) in versions {
                for (container, endpoint) in containers {
                    let key = EntryKey {
                        app: app.clone(),
                        version: version.clone(),
                        container,
                    };
                    endpoints.insert(key, endpoint);
                }
            }
        }
        let of_app = |(app, loads): (AppId, BTreeMap<ContainerId, Load>)| {
            loads.into_iter().map(move |(container, load)| {
                let app = app.clone();
                (LoadKey { app, container }, load)
            })
        };
        Self {
            revision: file.revision,
            endpoints,
            configs: file.configs,
            loads: file.loads.into_iter().flat_map(of_app).collect(),
            certificates: file.certificates,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        assert_eq!(
            "10.0.0.1:25701".parse::<Endpoint>().expect("valid").to_string(),
            "10.0.0.1:25701"
        );
        assert!("[::1]:80".parse::<Endpoint>().is_ok());
        for bad in [
            "",
            "10.0.0.1",
            "10.0.0.1:0",
            "host:80",
            "10.0.0.1:99999",
            " 10.0.0.1:80",
            "10.0.0.1:80\n",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_snapshot_file_holds_everything() {
        let key = EntryKey {
            app: "hello".parse().expect("valid"),
            version: "1".parse().expect("valid"),
            container: "c1".parse().expect("valid"),
        };
        let mut snapshot = RegistrySnapshot {
            revision: RegistryRevision(7),
            ..RegistrySnapshot::default()
        };
        snapshot
            .endpoints
            .insert(key.clone(), "10.0.0.1:20000".parse().expect("valid"));
        let load = br#"{"host":"h1","region":"eu"}"#;
        snapshot.loads.insert(key.load_key(), Load::parse(load).expect("valid"));
        snapshot.configs.insert(key.app, AppConfig::default());
        let sealed = SealedCertificate {
            challenge: Some("v1.c".into()),
            ..SealedCertificate::new("c", "v1.k")
        };
        snapshot.certificates.insert("shop".parse().expect("valid"), sealed);
        let text = serde_json::to_string(&SnapshotFile::from(&snapshot)).expect("json");
        let back: SnapshotFile = serde_json::from_str(&text).expect("its own output");
        assert_eq!(RegistrySnapshot::from(back), snapshot);
    }
}
