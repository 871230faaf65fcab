//! The shapes of the API as its document shows them. The model does not know OpenAPI; these mirror its types field by
//! field, and a test compares them with what is really sent. Nothing here is ever made or read.
#![expect(dead_code, reason = "only the schemas derived from these types are used")]

mod config;

use std::collections::BTreeMap;

use utoipa::{IntoParams, ToSchema};

pub(super) use config::AppConfig;

use super::commit::Plan;

/// Query of a change.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ChangeQuery {
    /// Wait so long for the operation's end, such as `30s`; at most 300 s.
    wait: Option<String>,
    /// Only answer what would happen.
    dry_run: Option<bool>,
    /// Accept the change also when no host has room now; it waits for room.
    queue: Option<bool>,
}

/// Headers of a change.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(super) struct ChangeHeaders {
    /// The ETag that must still be the row's.
    #[param(rename = "If-Match", example = "\"7\"")]
    if_match: Option<String>,
    /// 1-128 characters; the same key with the same request is answered with the first one's operation for 24 h.
    #[param(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
}

/// The header of what makes something new.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(super) struct OnceHeader {
    /// 1-128 characters; the same key with the same request does nothing a second time for 24 h.
    #[param(rename = "Idempotency-Key")]
    idempotency_key: Option<String>,
}

/// The operation by which a change can be followed.
#[derive(ToSchema)]
pub(super) struct Accepted {
    operation: Operation,
}

/// The operation, final; or with `dry_run` the plan.
#[derive(ToSchema)]
pub(super) struct AcceptedOrPlan {
    operation: Option<Operation>,
    plan: Option<Plan>,
}

/// What is wanted of an app.
#[derive(ToSchema)]
pub(super) struct App {
    /// Its name.
    #[schema(example = "hello")]
    id: String,
    /// Its owner.
    tenant: String,
    status: AppStatus,
    /// Wanted number of instances.
    instances: u32,
    /// The release that should run.
    release: u32,
    /// The release to which a failed deploy, or a rollback without a number, returns: the last one that was fully routed
    /// before the present one. 0: none.
    previous_release: u32,
    /// The highest release number given out.
    last_release: u32,
    /// Instances older than this are replaced.
    #[schema(format = DateTime)]
    restart_before: Option<String>,
    canary: Option<Canary>,
    config: AppConfig,
    /// The operation that last changed it.
    operation: Option<String>,
    /// Committed placements.
    placements: u64,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
    /// Also its ETag.
    generation: u64,
}

/// A second release beside the one that the app is at.
#[derive(ToSchema)]
pub(super) struct Canary {
    /// Its release.
    release: u32,
    /// Its release's version.
    version: String,
    /// The version of the release beside which it runs.
    beside: String,
    /// Its wanted number of instances; 0 on its way out.
    instances: u32,
    /// Its share of the requests in per cent; 0 on its way out.
    percent: u32,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum AppStatus {
    Running,
    Stopped,
    Removing,
}

/// An app in a list: all fields of the app, and some figures.
#[derive(ToSchema)]
pub(super) struct AppSummary {
    id: String,
    status: AppStatus,
    /// Wanted number of instances.
    instances: u32,
    /// The release that should run.
    release: u32,
    /// The version of its release.
    version: Option<String>,
    /// Instances that serve or are on their way to.
    live: u32,
    /// Instances that gateways send requests to.
    routed: u32,
    /// Where it is reached.
    url: Option<String>,
    generation: u64,
}

/// An app with all that is known of it now.
#[derive(ToSchema)]
pub(super) struct AppInfo {
    app: App,
    release: Option<Release>,
    instances: Vec<Instance>,
    operation: Option<Operation>,
    /// Where it is reached.
    url: Option<String>,
    /// Until when the next instance waits, since so many failed.
    next_try_at: Option<String>,
}

/// A released version; never changes.
#[derive(ToSchema)]
pub(super) struct Release {
    app: String,
    /// 1, 2, 3, and so on within the app.
    number: u32,
    /// The image's tag.
    version: String,
    /// The image's digest, resolved once at deploy.
    digest: String,
    spec: ReleaseSpec,
    /// What its instances speak, and are spoken to in as long as there are any. Absent of releases of older versions of the platform: what
    /// the app speaks.
    protocol: Option<config::Protocol>,
    #[schema(format = DateTime)]
    created_at: String,
}

/// What the containers of a release are made from. Every field may be left out.
#[derive(ToSchema)]
pub(super) struct ReleaseSpec {
    /// Full image reference.
    image: Option<String>,
    /// The port on which the app listens inside its container.
    #[schema(minimum = 1, maximum = 65535, default = 8080)]
    port: Option<u16>,
    /// Memory limit in MiB, also of memory + swap.
    #[schema(minimum = 6, maximum = 1048576, default = 256)]
    memory_mb: Option<u32>,
    /// Docker's relative CPU weight.
    #[schema(minimum = 2, maximum = 262144, default = 1024)]
    cpu_weight: Option<u32>,
    /// Most processes and threads.
    #[schema(minimum = 1, maximum = 100000, default = 512)]
    pids_limit: Option<u32>,
    /// Environment; names beginning with `CAAS_`, and `PORT`, are set by the platform.
    env: Option<BTreeMap<String, String>>,
    /// Arguments in place of the image's command.
    command: Option<Vec<String>>,
    health: Option<HealthCheck>,
    on_failure: Option<OnFailure>,
    placement: Option<Placement>,
    update: Option<Update>,
    /// Seconds between SIGTERM and SIGKILL.
    #[schema(minimum = 0, maximum = 3600, default = 10)]
    stop_grace_s: Option<u32>,
    /// Most seconds that a withdrawn instance may finish its open requests.
    #[schema(minimum = 0, maximum = 3600, default = 30)]
    drain_timeout_s: Option<u32>,
}

/// How an instance proves that it is alive.
#[derive(ToSchema)]
pub(super) struct HealthCheck {
    kind: Option<ProbeKind>,
    /// Path of the HTTP probe.
    #[schema(default = "/_ping")]
    path: Option<String>,
    /// Milliseconds between probes of a running instance.
    #[schema(minimum = 200, maximum = 3600000, default = 5000)]
    interval_ms: Option<u32>,
    /// Milliseconds until a probe without an answer has failed.
    #[schema(minimum = 50, maximum = 60000, default = 2000)]
    timeout_ms: Option<u32>,
    /// Failed probes in a row that make a running instance unhealthy.
    #[schema(minimum = 1, maximum = 100, default = 3)]
    unhealthy_after: Option<u32>,
    /// Good probes in a row that make it healthy again.
    #[schema(minimum = 1, maximum = 100, default = 1)]
    healthy_after: Option<u32>,
    /// Seconds that a new instance has to become healthy.
    #[schema(minimum = 1, maximum = 3600, default = 60)]
    grace_s: Option<u32>,
    /// Seconds without a heartbeat that count as one failed probe.
    #[schema(minimum = 1, maximum = 3600, default = 15)]
    heartbeat_timeout_s: Option<u32>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum ProbeKind {
    Http,
    Tcp,
    Heartbeat,
    None,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum OnFailure {
    Replace,
    Restart,
    None,
}

/// On which hosts instances may be placed.
#[derive(ToSchema)]
pub(super) struct Placement {
    strategy: Option<Strategy>,
    /// Labels a host must have.
    labels: Option<BTreeMap<String, String>>,
    /// Labels a host must not have with that value.
    not_labels: Option<BTreeMap<String, String>>,
    /// Most instances of this app on one host; 0: any number.
    max_per_host: Option<u32>,
    /// Exactly one instance on every fitting host.
    one_per_host: Option<bool>,
    /// Only hosts that run an instance of this app.
    together_with: Option<String>,
    /// Only hosts that run no instance of this app.
    apart_from: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum Strategy {
    MostFreeMemory,
    MostIdleCpu,
}

/// How a new release takes over.
#[derive(ToSchema)]
pub(super) struct Update {
    /// Instances above the wanted number while updating.
    #[schema(minimum = 0, maximum = 1000, default = 1)]
    max_surge: Option<u32>,
    /// Instances that may be missing while updating.
    #[schema(minimum = 0, maximum = 1000, default = 0)]
    max_unavailable: Option<u32>,
    /// Seconds without progress until a deploy is given up and rolled back.
    #[schema(minimum = 5, maximum = 86400, default = 120)]
    deadline_s: Option<u32>,
}

/// One container of an app.
#[derive(ToSchema)]
pub(super) struct Instance {
    id: String,
    app: String,
    release: u32,
    version: String,
    host: String,
    /// The leased host port.
    port: u16,
    /// The engine's id.
    container: Option<String>,
    state: InstanceState,
    /// Since when gateways send it requests.
    #[schema(format = DateTime)]
    routed_at: Option<String>,
    /// It answers but has no health route.
    assumed_healthy: bool,
    failure: Option<Failure>,
    restarts: u32,
    memory_mb: u32,
    cpu_weight: u32,
    #[schema(format = DateTime)]
    placed_at: String,
    #[schema(format = DateTime)]
    started_at: Option<String>,
    #[schema(format = DateTime)]
    heartbeat_at: Option<String>,
    #[schema(format = DateTime)]
    changed_at: String,
    /// When its memory and port were given back.
    #[schema(format = DateTime)]
    released_at: Option<String>,
    generation: u64,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum InstanceState {
    Placed,
    Starting,
    Running,
    Unhealthy,
    Draining,
    Drained,
    Failed,
    Lost,
    Stopped,
}

/// Why an instance failed.
#[derive(ToSchema)]
pub(super) struct Failure {
    code: FailureCode,
    message: String,
    exit_code: Option<i64>,
    /// The last lines that it wrote.
    log_tail: Vec<String>,
    /// Its last probe results.
    probes: Vec<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum FailureCode {
    PullFailed,
    RegistryUnreachable,
    LaunchFailed,
    PortTaken,
    Exited,
    OutOfMemory,
    NeverReady,
    Unhealthy,
    Removed,
    HostLost,
}

/// A Docker host of the fleet.
#[derive(ToSchema)]
pub(super) struct Host {
    name: String,
    address: String,
    engine: String,
    labels: BTreeMap<String, String>,
    region: String,
    memory_mb: u32,
    cpu_millis: u32,
    #[schema(min_items = 2, max_items = 2)]
    port_range: Vec<u16>,
    schedulability: Schedulability,
    /// Since when its engine does not answer.
    #[schema(format = DateTime)]
    down_since: Option<String>,
    reserved_memory_mb: u32,
    reserved_cpu_weight: u32,
    instances: u32,
    used_cpu_millis: u32,
    #[schema(format = DateTime)]
    created_at: String,
    /// Also its ETag.
    generation: u64,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum Schedulability {
    Schedulable,
    Cordoned,
    Draining,
}

/// Long work asked for over the API.
#[derive(ToSchema)]
pub(super) struct Operation {
    id: String,
    kind: OperationKind,
    app: Option<String>,
    host: Option<String>,
    /// The release that it brings.
    release: Option<u32>,
    state: OperationState,
    /// What it waits for, or why it failed.
    message: String,
    failure: Option<Failure>,
    steps: Vec<Step>,
    /// Why no host fits, while it waits for one.
    reasons: Vec<String>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
    generation: u64,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum OperationKind {
    Deploy,
    Scale,
    Restart,
    Stop,
    Start,
    Rollback,
    Remove,
    Configure,
    Canary,
    Promote,
    Abort,
    DrainHost,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum OperationState {
    Running,
    Blocked,
    Succeeded,
    Failed,
    Superseded,
}

/// A step of an operation.
#[derive(ToSchema)]
pub(super) struct Step {
    /// `pull`, `create`, `start`, `probe`, `route`, `drain`, `stop`.
    name: String,
    state: StepState,
    detail: String,
    #[schema(format = DateTime)]
    at: String,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum StepState {
    Pending,
    Running,
    Done,
    Failed,
}

/// Something that happened.
#[derive(ToSchema)]
pub(super) struct Event {
    /// Its number: grows with each event.
    seq: u64,
    #[schema(format = DateTime)]
    at: String,
    kind: EventKind,
    app: Option<String>,
    instance: Option<String>,
    host: Option<String>,
    operation: Option<String>,
    /// Who asked for it: a token's name, or the role that acted.
    actor: String,
    message: String,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum EventKind {
    App,
    Instance,
    Host,
    Operation,
    Admin,
}

/// A line of a log.
#[derive(ToSchema)]
pub(super) struct LogLine {
    #[schema(format = DateTime)]
    at: Option<String>,
    stderr: bool,
    text: String,
}

/// A line of an app's log.
#[derive(ToSchema)]
pub(super) struct AppLogLine {
    instance: String,
    line: LogLine,
    /// Only there when this host could not be asked for the instance's lines; `line` says why.
    unasked: Option<String>,
}

/// What a container uses.
#[derive(ToSchema)]
pub(super) struct ContainerStats {
    /// CPU time used since its start.
    cpu_total_ns: u64,
    memory_bytes: u64,
    memory_limit_bytes: u64,
    network_rx_bytes: u64,
    network_tx_bytes: u64,
    block_read_bytes: u64,
    block_write_bytes: u64,
    pids: u64,
}

/// Why an app is placed as it is.
#[derive(ToSchema)]
pub(super) struct Why {
    explanation: Option<Explanation>,
    operation: Option<Operation>,
    /// Instances that failed last, the latest first.
    failed: Vec<Instance>,
    /// Until when the next instance waits, since so many failed.
    next_try_at: Option<String>,
}

/// Where a further instance could go.
#[derive(ToSchema)]
pub(super) struct Explanation {
    /// How many hosts were looked at.
    hosts: u32,
    /// Those that fit, the best first.
    fitting: Vec<Fit>,
    /// Those that do not, by filter.
    refused: Vec<Refused>,
}

/// A host that fits.
#[derive(ToSchema)]
pub(super) struct Fit {
    host: String,
    /// `total` and what it is made of.
    #[schema(value_type = Object)]
    score: (),
}

/// The hosts that one filter refused.
#[derive(ToSchema)]
pub(super) struct Refused {
    filter: String,
    hosts: Vec<String>,
    /// Why, in a sentence.
    reason: String,
}
