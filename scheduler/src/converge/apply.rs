//! Doing: each function carries out one action for one instance. All are idempotent and may be cut off at any line;
//! what an engine did without the store knowing is seen by the next look and put right.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use model::engine::{ContainerStatus, Engine, EngineError, LaunchSpec, LogQuery};
use model::store::{Outcome, PORT_REST, StoreError};
use model::{
    AppId, ContainerId, Failure, FailureCode, Host, HostName, Instance, InstanceChange, InstanceId, InstanceState,
    Release, Timestamp,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::{info, warn};

use super::Context;
use super::fleet::lock;

/// Lines and bytes of a failed container's log that are kept with the failure.
const LOG_TAIL_LINES: u32 = 50;
const LOG_TAIL_BYTES: usize = 8 * 1024;
/// A log that does not come within this time is done without.
const LOG_DEADLINE: Duration = Duration::from_secs(5);
/// Containers that are stopped at once on one host, and of them those of one app: each may take its whole grace, and an app
/// that takes long must not hold up the others.
const STOPS_PER_HOST: usize = 128;
const STOPS_PER_APP: usize = 8;
/// Next try after an engine did not answer: 0.5 s, doubled up to 30 s.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(30);

/// What a gate stands before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Gate {
    Launch,
    /// Of one image.
    PullOf(String),
    /// From one registry.
    Pull(String),
    Stop,
    StopOf(AppId),
}

/// Permits by which a host is not asked for too much at once.
#[derive(Debug, Default)]
pub(crate) struct Gates(Mutex<HashMap<(HostName, Gate), Arc<Semaphore>>>);

impl Gates {
    pub(super) async fn enter(&self, host: &HostName, gate: Gate, most: usize) -> Option<OwnedSemaphorePermit> {
        let gate = Arc::clone(
            lock(&self.0)
                .entry((host.clone(), gate))
                .or_insert_with(|| Arc::new(Semaphore::new(most.max(1)))),
        );
        gate.acquire_owned().await.ok()
    }

    /// Waits for the app's turn before the host's: who waits for the first does not stand in the way of others.
    async fn stop(&self, host: &HostName, app: &AppId) -> Option<[OwnedSemaphorePermit; 2]> {
        let own = self.enter(host, Gate::StopOf(app.clone()), STOPS_PER_APP).await?;
        Some([own, self.enter(host, Gate::Stop, STOPS_PER_HOST).await?])
    }

    /// Waits for the image's turn, so that it is pulled once, then for the registry's, of which `most` images are pulled at once.
    pub(super) async fn pull(&self, host: &HostName, image: &str, most: usize) -> Option<[OwnedSemaphorePermit; 2]> {
        let registry = image.split('/').next().unwrap_or_default();
        let own = self.enter(host, Gate::PullOf(image.to_owned()), 1).await?;
        Some([own, self.enter(host, Gate::Pull(registry.to_owned()), most).await?])
    }

    /// Forgets the gates that nobody has passed or waits at.
    pub(crate) fn forget_idle(&self) {
        lock(&self.0).retain(|_, gate| Arc::strong_count(gate) > 1);
    }
}

/// Instances whose engine did not answer, with the number of tries and the instant of the next one.
#[derive(Debug, Default)]
pub(crate) struct Retries(Mutex<HashMap<InstanceId, (u32, Timestamp)>>);

impl Retries {
    pub(super) fn later(&self, id: &InstanceId, now: Timestamp) {
        let mut retries = lock(&self.0);
        let entry = retries.entry(id.clone()).or_insert((0, now));
        let delay = RETRY_FIRST.saturating_mul(1 << entry.0.min(8)).min(RETRY_MOST);
        *entry = (entry.0 + 1, now.plus(delay));
    }

    fn done(&self, id: &InstanceId) {
        lock(&self.0).remove(id);
    }

    /// Instances that have to wait at `now`, and until when the first of them has to.
    pub(crate) fn waiting(&self, now: Timestamp) -> (Vec<InstanceId>, Option<Timestamp>) {
        let mut retries = lock(&self.0);
        // Long past: it was done, or its instance is gone.
        retries.retain(|_, (_, at)| now.since(*at) < 10 * RETRY_MOST);
        let waiting = retries.iter().filter(|(_, (_, at))| *at > now);
        let first = waiting.clone().map(|(_, (_, at))| *at).min();
        (waiting.map(|(id, _)| id.clone()).collect(), first)
    }
}

impl Context {
    /// A compare-and-set; `None` when somebody else was faster or the move is not allowed any more (the next look
    /// decides anew).
    async fn change(&self, instance: &Instance, change: &InstanceChange) -> Option<Instance> {
        match self.store.instance_update(instance, change, Timestamp::now()).await {
            Ok(Outcome::Updated(next)) => Some(next),
            Ok(Outcome::Conflict(_) | Outcome::NotFound) | Err(StoreError::Invalid(_)) => None,
            Err(error) => {
                warn!(app = %instance.app, instance = %instance.id, %error, "a change could not be stored; it is tried again");
                self.retries.later(&instance.id, Timestamp::now());
                None
            }
        }
    }

    /// Counts a command to an engine.
    pub(super) fn told<T>(&self, command: &str, result: &Result<T, EngineError>) {
        let outcome = if result.is_ok() { "ok" } else { "error" };
        self.metrics
            .engine_commands
            .with_label_values(&[command, outcome])
            .inc();
    }

    /// An engine did not do what was asked, and nothing is wrong with the instance: again later.
    fn again_later(&self, instance: &Instance, what: &str, error: &EngineError) {
        warn!(app = %instance.app, instance = %instance.id, host = %instance.host, %error, "{what} failed; it is tried again");
        self.retries.later(&instance.id, Timestamp::now());
    }

    /// The container of `instance`: from its row, or as its host's engine lists it.
    fn container(&self, instance: &Instance) -> Option<ContainerId> {
        instance.container.clone().or_else(|| {
            let observation = self.fleet.observation(&instance.host)?;
            observation.containers.get(&instance.id).map(|c| c.id.clone())
        })
    }

    /// Pulls, creates and starts the container of a placed instance.
    pub(crate) async fn launch(&self, instance: &Instance, release: &Release, host: &Host) {
        let engine = match self.fleet.engine(host) {
            Ok(engine) => engine,
            Err(error) => return self.again_later(instance, "opening the engine", &error),
        };
        let Some(_permit) = self.launch_turn(instance, release, host, &*engine).await else {
            return;
        };
        let spec = self.launch_spec(instance, release, host);
        let launched = engine.launch(&spec).await;
        self.told("launch", &launched);
        let container = match launched {
            Ok(container) => container,
            Err(error) => return self.launch_failed(instance, FailureCode::LaunchFailed, &error).await,
        };
        self.started(instance, &*engine, container, false).await;
    }

    fn launch_spec(&self, instance: &Instance, release: &Release, host: &Host) -> LaunchSpec {
        let spec = &release.spec;
        let mut env: BTreeMap<String, String> = spec.env.clone();
        let mut set = |name: &str, value: String| env.insert(name.into(), value);
        set("CAAS_APP", instance.app.to_string());
        set("CAAS_VERSION", instance.version.to_string());
        set("CAAS_INSTANCE", instance.id.to_string());
        set("CAAS_HOST", host.name.to_string());
        set("CAAS_REGION", host.region.clone());
        set("PORT", spec.port.to_string());
        if let Some(token) = self.tokens.get(&instance.id) {
            set("CAAS_INSTANCE_TOKEN", token);
        }
        if let Some(url) = &self.config.api_url {
            set("CAAS_API", url.clone());
        }
        LaunchSpec {
            platform: self.platform.clone(),
            app: instance.app.clone(),
            version: instance.version.clone(),
            instance: instance.id.clone(),
            image: release.pinned_image(),
            command: spec.command.clone(),
            env,
            host_ip: host.address,
            host_port: instance.port,
            container_port: spec.port,
            memory_mb: spec.memory_mb,
            cpu_weight: spec.cpu_weight,
            pids_limit: spec.pids_limit,
        }
    }

    pub(super) async fn launch_failed(&self, instance: &Instance, code: FailureCode, error: &EngineError) {
        let code = match error {
            EngineError::Unreachable { .. } => return self.again_later(instance, "launching", error),
            EngineError::PortTaken(port) => {
                let until = Timestamp::now().plus(PORT_REST);
                if let Err(error) = self.store.port_quarantine(&instance.host, *port, until).await {
                    warn!(host = %instance.host, port, %error, "a taken port could not be noted");
                }
                FailureCode::PortTaken
            }
            EngineError::RegistryUnreachable { .. } => FailureCode::RegistryUnreachable,
            EngineError::DiskFull(_) => {
                // Before the failure is stored: whoever replaces the instance knows it.
                self.fleet.disk_full(&instance.host, Timestamp::now());
                code
            }
            _ => code,
        };
        warn!(app = %instance.app, instance = %instance.id, host = %instance.host, %error, "the instance could not be launched");
        self.change(instance, &InstanceChange::Failed(Failure::new(code, error.to_string())))
            .await;
    }

    /// Notes that the container runs. If the instance has moved on meanwhile, the container must not stay.
    async fn started(&self, instance: &Instance, engine: &dyn Engine, container: ContainerId, restart: bool) {
        let change = InstanceChange::Started {
            container: container.clone(),
            restart,
        };
        let row = match self.store.instance_update(instance, &change, Timestamp::now()).await {
            Ok(Outcome::Updated(_)) => {
                self.retries.done(&instance.id);
                self.tokens.forget(&instance.id);
                // It may have ended before its start was noted: such a list would have been too early.
                self.fleet.look_again(&instance.host);
                return;
            }
            Ok(Outcome::Conflict(row)) => Some(row),
            Ok(Outcome::NotFound) => None,
            // The next look finds the row: still placed, and the launch is repeated; or moved on, and the container goes.
            Err(StoreError::Invalid(_)) => self.store.instance_fetch(&instance.id).await.ok().flatten(),
            Err(error) => {
                warn!(app = %instance.app, instance = %instance.id, %error, "a start could not be stored; it is tried again");
                return self.retries.later(&instance.id, Timestamp::now());
            }
        };
        let stays = row.is_some_and(|row| {
            matches!(
                row.state,
                InstanceState::Placed | InstanceState::Starting | InstanceState::Running | InstanceState::Unhealthy
            )
        });
        if !stays {
            info!(app = %instance.app, instance = %instance.id, "the instance was given up while it was launched; its container goes");
            let removed = engine.remove(&container).await;
            self.told("remove", &removed);
            self.fleet.look_again(&instance.host);
        }
    }

    /// Starts a failed container anew where it is.
    pub(crate) async fn restart(&self, instance: &Instance, release: &Release, host: &Host) {
        let Some(container) = instance.container.clone() else {
            return;
        };
        let Some(_permit) = self
            .gates
            .enter(&host.name, Gate::Launch, self.config.launches_per_host)
            .await
        else {
            return;
        };
        let engine = match self.fleet.engine(host) {
            Ok(engine) => engine,
            Err(error) => return self.again_later(instance, "opening the engine", &error),
        };
        let grace = Duration::from_secs(release.spec.stop_grace_s.into());
        let restarted = engine.restart(&container, grace).await;
        self.told("restart", &restarted);
        match restarted {
            Ok(()) => self.started(instance, &*engine, container, true).await,
            // Nothing is left that could be started: another instance takes its place.
            Err(EngineError::NoSuchContainer(_)) => {
                self.change(instance, &InstanceChange::Stopped).await;
            }
            Err(error) => self.again_later(instance, "restarting", &error),
        }
    }

    /// Stops and removes the container of a drained instance, then gives back what it held.
    pub(crate) async fn stop(&self, instance: &Instance, release: Option<&Release>, host: &Host) {
        if let Some(container) = self.container(instance) {
            let Some(_permits) = self.gates.stop(&host.name, &instance.app).await else {
                return;
            };
            let grace = Duration::from_secs(release.map_or(10, |r| u64::from(r.spec.stop_grace_s)));
            if !self.end(instance, host, &container, Some(grace)).await {
                return;
            }
        }
        if self.change(instance, &InstanceChange::Stopped).await.is_some() {
            self.retries.done(&instance.id);
            self.tokens.forget(&instance.id);
        }
    }

    /// Removes what is left of a failed or lost instance. Its last words are kept with the failure.
    pub(crate) async fn clean(&self, instance: &Instance, release: Option<&Release>, host: &Host) {
        let mut instance = instance.clone();
        if let Some(container) = self.container(&instance) {
            let Some(_permits) = self.gates.stop(&host.name, &instance.app).await else {
                return;
            };
            let mut failure = instance.failure.clone().filter(|f| f.log_tail.is_empty());
            if let Some(failure) = failure.as_mut().filter(|_| instance.state == InstanceState::Failed)
                && let Ok(engine) = self.fleet.engine(host)
            {
                failure.log_tail = log_tail(&*engine, &container).await;
                if !failure.log_tail.is_empty() {
                    let Some(next) = self.change(&instance, &InstanceChange::Failed(failure.clone())).await else {
                        return;
                    };
                    instance = next;
                }
            }
            // What still runs is given its grace.
            let runs = instance
                .failure
                .as_ref()
                .is_some_and(|f| matches!(f.code, FailureCode::Unhealthy | FailureCode::NeverReady));
            let grace = runs.then(|| Duration::from_secs(release.map_or(10, |r| u64::from(r.spec.stop_grace_s))));
            if !self.end(&instance, host, &container, grace).await {
                return;
            }
        }
        if self.change(&instance, &InstanceChange::Stopped).await.is_some() {
            self.retries.done(&instance.id);
            self.tokens.forget(&instance.id);
        }
    }

    /// Ends and removes a container; `false` when the engine did not do it.
    async fn end(&self, instance: &Instance, host: &Host, container: &ContainerId, grace: Option<Duration>) -> bool {
        let engine = match self.fleet.engine(host) {
            Ok(engine) => engine,
            Err(error) => {
                self.again_later(instance, "opening the engine", &error);
                return false;
            }
        };
        if let Some(grace) = grace {
            let stopped = engine.stop(container, grace).await;
            self.told("stop", &stopped);
            if let Err(error @ EngineError::Unreachable { .. }) = stopped {
                self.again_later(instance, "stopping", &error);
                return false;
            }
            // Any other refusal: removing it below kills it.
        }
        let removed = engine.remove(container).await;
        self.told("remove", &removed);
        match removed {
            Ok(()) | Err(EngineError::NoSuchContainer(_)) => true,
            Err(error) => {
                self.again_later(instance, "removing the container", &error);
                false
            }
        }
    }

    /// Asks the engine what became of a container that was not seen running. If it ended, the instance has failed.
    pub(crate) async fn check(&self, instance: &Instance, host: &Host) {
        let Some(container) = instance.container.clone() else {
            return;
        };
        let engine = match self.fleet.engine(host) {
            Ok(engine) => engine,
            Err(error) => return self.again_later(instance, "opening the engine", &error),
        };
        let inspected = engine.inspect(&container).await;
        self.told("inspect", &inspected);
        let failure = match inspected.map(|c| c.status) {
            Ok(ContainerStatus::Running { .. }) => return self.fleet.look_again(&instance.host),
            Ok(ContainerStatus::Created) => {
                Failure::new(FailureCode::LaunchFailed, "the container was made but never started")
            }
            Ok(ContainerStatus::Exited {
                exit_code,
                out_of_memory,
            }) => {
                let (code, message) = if out_of_memory {
                    let limit = instance.memory_mb;
                    (
                        FailureCode::OutOfMemory,
                        format!("killed at its memory limit of {limit} MiB"),
                    )
                } else {
                    (FailureCode::Exited, format!("exited with code {exit_code}"))
                };
                let mut failure = Failure::new(code, message);
                failure.exit_code = Some(exit_code);
                failure.log_tail = log_tail(&*engine, &container).await;
                failure
            }
            Err(EngineError::NoSuchContainer(_)) => {
                Failure::new(FailureCode::Removed, "the container was removed by somebody else")
            }
            Err(error) => return self.again_later(instance, "looking at the container", &error),
        };
        info!(app = %instance.app, instance = %instance.id, host = %instance.host, failure = %failure.message, "the instance failed");
        self.change(instance, &InstanceChange::Failed(failure)).await;
    }

    /// Removes a container that no held instance owns, unless its row says otherwise by now.
    pub(crate) async fn remove_orphan(&self, id: &InstanceId, container: &ContainerId, host: &Host) {
        match self.store.instance_fetch(id).await {
            Ok(Some(row)) if row.released_at.is_none() && row.host == host.name => return,
            Ok(_) => {}
            Err(_) => return,
        }
        let Ok(engine) = self.fleet.engine(host) else { return };
        // What was seen may be out of date: another scheduler has removed it, and the row with it.
        let inspected = engine.inspect(container).await;
        self.told("inspect", &inspected);
        match inspected {
            Ok(_) => {}
            Err(EngineError::NoSuchContainer(_)) => return self.fleet.look_again(&host.name),
            Err(_) => return self.retries.later(id, Timestamp::now()),
        }
        info!(instance = %id, host = %host.name, %container, "removing a container that belongs to no instance");
        let removed = engine.remove(container).await;
        self.told("remove", &removed);
        match removed {
            Ok(()) | Err(EngineError::NoSuchContainer(_)) => self.fleet.look_again(&host.name),
            Err(error) => {
                warn!(instance = %id, host = %host.name, %error, "an orphaned container could not be removed; it is tried again");
                self.retries.later(id, Timestamp::now());
            }
        }
    }

    /// Notes that the host of `instance` is gone.
    pub(crate) async fn lose(&self, instance: &Instance) {
        let failure = Failure::new(FailureCode::HostLost, format!("host {} does not answer", instance.host));
        self.change(instance, &InstanceChange::Lost(failure)).await;
    }

    /// A move that needs no engine; whether it was made.
    pub(crate) async fn simply(&self, instance: &Instance, change: &InstanceChange) -> bool {
        self.change(instance, change).await.is_some()
    }
}

/// The last lines of a container's log, within bounds of lines, bytes and time; nothing when they can't be had.
async fn log_tail(engine: &dyn Engine, container: &ContainerId) -> Vec<String> {
    let query = LogQuery {
        tail: LOG_TAIL_LINES,
        follow: false,
        since: None,
    };
    let read = async {
        let mut lines = Vec::new();
        let Ok(mut log) = engine.logs(container, query).await else {
            return lines;
        };
        while let Some(Ok(line)) = log.next().await {
            lines.push(line.text);
            if lines.len() >= LOG_TAIL_LINES as usize {
                break;
            }
        }
        lines
    };
    let mut lines = timeout(LOG_DEADLINE, read).await.unwrap_or_default();
    // The end of a log says more than its beginning.
    let mut bytes = 0;
    let mut keep = lines.len();
    while keep > 0 && bytes + lines[keep - 1].len() <= LOG_TAIL_BYTES {
        keep -= 1;
        bytes += lines[keep].len();
    }
    lines.drain(..keep);
    lines
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn an_app_that_stops_slowly_holds_up_only_itself() {
        let gates = Gates::default();
        let host: HostName = "h1".parse().expect("valid");
        let [slow, other]: [AppId; 2] = ["slow", "other"].map(|id| id.parse().expect("valid"));
        let mut stopping: Vec<_> = (0..STOPS_PER_APP)
            .map(|_| gates.stop(&host, &slow).now_or_never().expect("its turn"))
            .collect();
        assert!(gates.stop(&host, &slow).now_or_never().is_none(), "no more of one app");
        let others = gates.stop(&host, &other).now_or_never();
        assert!(others.is_some(), "another app's turn comes at once");
        drop(others);
        gates.forget_idle();
        assert!(
            gates.stop(&host, &slow).now_or_never().is_none(),
            "gates in use are not forgotten"
        );
        stopping.pop();
        assert!(gates.stop(&host, &slow).now_or_never().is_some());
        stopping.clear();
        gates.forget_idle();
        assert!(lock(&gates.0).is_empty());
    }
}
