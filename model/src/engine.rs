//! The engine: a host's container engine, commanded only by the scheduler.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::store::RegistryCredentials;
use crate::{AppId, ContainerId, InstanceId, PlatformId, Timestamp, Version};

/// Label that carries the [`PlatformId`]: which installation a container belongs to.
pub const LABEL_PLATFORM: &str = "caas.platform";
/// Label that carries the [`AppId`].
pub const LABEL_APP: &str = "caas.app";
/// Label that carries the [`Version`].
pub const LABEL_VERSION: &str = "caas.version";
/// Label that carries the [`InstanceId`].
pub const LABEL_INSTANCE: &str = "caas.instance";

/// Why an engine did not do what was asked. What the caller does about it depends on the variant only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// It can't be reached or did not answer within the call's deadline. The outcome is unknown.
    #[error("the engine at {engine} can't be reached: {message}")]
    Unreachable {
        /// Its URL.
        engine: String,
        /// What happened.
        message: String,
    },
    /// There is no such image or tag in the registry.
    #[error("image {0} does not exist in its registry")]
    ImageNotFound(String),
    /// The registry refused the credentials (or wants some).
    #[error("the registry of image {image} refused the credentials: {message}")]
    RegistryDenied {
        /// The image.
        image: String,
        /// The engine's words.
        message: String,
    },
    /// The registry can't be reached from the engine, or did not answer in time.
    #[error("the registry of image {image} can't be reached: {message}")]
    RegistryUnreachable {
        /// The image.
        image: String,
        /// The engine's words.
        message: String,
    },
    /// Something else has the host port. The container that could not start is already removed.
    #[error("host port {0} is taken by something else")]
    PortTaken(u16),
    /// The engine's disk is full.
    #[error("the engine's disk is full: {0}")]
    DiskFull(String),
    /// There is no such container.
    #[error("there is no container {0}")]
    NoSuchContainer(String),
    /// The engine refused the container: bad command, bad limits. The container is already removed.
    #[error("the engine refused the container: {0}")]
    Refused(String),
    /// Any other answer.
    #[error("the engine failed: {0}")]
    Other(String),
}

/// What an engine says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// The engine's version.
    pub version: String,
    /// The machine's CPUs, thousandths of a core.
    pub cpu_millis: u32,
    /// The machine's memory, MiB.
    pub memory_mb: u32,
    /// Operating system, such as `Debian GNU/Linux 12`.
    pub os: String,
    /// Containers keep running while the engine restarts.
    pub live_restore: bool,
}

/// A container to be launched for an instance.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchSpec {
    /// This installation.
    pub platform: PlatformId,
    /// The app.
    pub app: AppId,
    /// The version.
    pub version: Version,
    /// The instance; the container is named `caas-{app}-{instance}`.
    pub instance: InstanceId,
    /// The image by digest.
    pub image: String,
    /// Arguments in place of the image's command; empty: the image's own.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The address on which the port is published.
    pub host_ip: IpAddr,
    /// The published host port.
    pub host_port: u16,
    /// The port inside the container.
    pub container_port: u16,
    /// Memory limit, MiB (memory + swap alike).
    pub memory_mb: u32,
    /// CPU weight.
    pub cpu_weight: u32,
    /// Most processes and threads.
    pub pids_limit: u32,
}

/// A container of this installation, as the engine shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The engine's id.
    pub id: ContainerId,
    /// Its instance (label).
    pub instance: InstanceId,
    /// Its app (label).
    pub app: AppId,
    /// Whether it runs, and if not, how it ended.
    pub status: ContainerStatus,
}

/// Whether a container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerStatus {
    /// Made but not started.
    Created,
    /// Running (or paused).
    Running {
        /// When it was started; epoch if the engine did not say (lists don't).
        started_at: Timestamp,
    },
    /// Ended.
    Exited {
        /// Its exit code; 137 after SIGKILL.
        exit_code: i64,
        /// The kernel killed it at its memory limit.
        out_of_memory: bool,
    },
}

/// Something happened to a container of this installation: look at it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineEvent {
    /// Its instance.
    pub instance: InstanceId,
    /// The engine's word: `start`, `die`, `oom`, `destroy`, …
    pub action: String,
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    /// CPU time used since its start, nanoseconds (two readings make a share).
    pub cpu_total_ns: u64,
    /// Memory in use without page cache, bytes.
    pub memory_bytes: u64,
    /// Memory limit, bytes.
    pub memory_limit_bytes: u64,
    /// Received over the network, bytes.
    pub network_rx_bytes: u64,
    /// Sent over the network, bytes.
    pub network_tx_bytes: u64,
    /// Read from block devices, bytes.
    pub block_read_bytes: u64,
    /// Written to block devices, bytes.
    pub block_write_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// Which lines of a container's log are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// Only the last `tail` lines of what is there.
    pub tail: u32,
    /// Go on with new lines until the container ends.
    pub follow: bool,
    /// Only lines from this instant on.
    pub since: Option<Timestamp>,
}

/// A line of a container's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When the engine got it.
    pub at: Option<Timestamp>,
    /// It was written to standard error.
    pub stderr: bool,
    /// The line without its end, at most 16 KiB.
    pub text: String,
}

/// One host's container engine. Every call has a deadline; none waits for ever on a silent host.
#[async_trait]
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// Whether it answers (2 s).
    async fn ping(&self) -> Result<(), EngineError>;

    /// What it says of itself (5 s).
    async fn info(&self) -> Result<EngineInfo, EngineError>;

    /// The digest (`sha256:…`) to which `image` (with its tag) resolves in its registry now (15 s).
    async fn image_digest(&self, image: &str, credentials: Option<&RegistryCredentials>)
    -> Result<String, EngineError>;

    /// Whether `image` (by digest) is there, so that it need not be pulled (5 s).
    async fn image_present(&self, image: &str) -> Result<bool, EngineError>;

    /// Makes sure that `image` (by digest) is there, pulling it if not, within `deadline`. `true` when it was pulled.
    async fn image_pull(
        &self,
        image: &str,
        credentials: Option<&RegistryCredentials>,
        deadline: Duration,
    ) -> Result<bool, EngineError>;

    /// Creates and starts the container of an instance. Idempotent by instance: a container of that name that runs is
    /// adopted; one that was made but not started is started; one that has exited is removed and made anew. After an
    /// error other than `Unreachable` nothing is left behind.
    async fn launch(&self, spec: &LaunchSpec) -> Result<ContainerId, EngineError>;

    /// Starts an ended or running container anew in place (restart), giving it `grace` to end.
    async fn restart(&self, container: &ContainerId, grace: Duration) -> Result<(), EngineError>;

    /// SIGTERM, `grace`, SIGKILL; returns when it has ended. No error when it had, or is gone.
    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<(), EngineError>;

    /// Removes it, killing it if it runs. No error when it is gone.
    async fn remove(&self, container: &ContainerId) -> Result<(), EngineError>;

    /// All containers of `platform`, running or not (10 s).
    async fn list(&self, platform: &PlatformId) -> Result<Vec<Container>, EngineError>;

    /// One container with its exit code and whether it ran out of memory (5 s).
    async fn inspect(&self, container: &ContainerId) -> Result<Container, EngineError>;

    /// Events of `platform`'s containers from now on. Ends with an error when the connection does; may also fall silent
    /// for ever when the host vanishes, so that callers ping beside it.
    async fn events(
        &self,
        platform: &PlatformId,
    ) -> Result<BoxStream<'static, Result<EngineEvent, EngineError>>, EngineError>;

    /// What a container uses now (5 s).
    async fn stats(&self, container: &ContainerId) -> Result<ContainerStats, EngineError>;

    /// A container's log, oldest line first.
    async fn logs(
        &self,
        container: &ContainerId,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, EngineError>>, EngineError>;
}

/// Opens the engine at a URL; the binary's wiring provides it, so that roles need not know the backends.
/// Opening does not connect.
pub type EngineOpener = Arc<dyn Fn(&str) -> Result<Arc<dyn Engine>, EngineError> + Send + Sync>;
