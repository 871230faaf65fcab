//! Convergence: makes the fleet what the store says. One loop takes a look at everything (store rows and what the
//! engines list), [`plan`] decides per app what has to be done, [`apply`] does it. The loop takes no input: hints
//! (a new revision, an engine's event, the end of a task) only make it run sooner. It may be killed at any line; several
//! schedulers may run it at once, kept apart by claims for economy and by generations for correctness.

mod apply;
mod backoff;
mod canary;
pub(crate) mod config;
mod fleet;
mod hands;
mod operations;
mod plan;
mod pulls;
mod rollout;
#[cfg(test)]
mod tests;
mod work;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use model::engine::Container;
use model::listening;
use model::spec::ProbeKind;
use model::store::{InstanceFilter, Revision, Store, StoreError};
use model::{
    App, AppId, Host, HostName, Instance, InstanceId, InstanceState, Operation, OperationKind, PlatformId, Release,
    Schedulability, Timestamp,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::metrics::Metrics;
use crate::placement::Census;

pub(crate) use backoff::next_try;
pub(crate) use config::ConvergeConfig;
use fleet::lock;
pub(crate) use fleet::{Fleet, Observation};
use hands::Hands;

/// Hints that come closer together than this are answered by one look.
const LOOK_GAP: Duration = Duration::from_millis(5);
/// Pause after a look that failed, and between tries to reach the store at start.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// How long one wait for a new revision lasts.
const REVISION_WAIT: Duration = Duration::from_secs(10);
/// A claim on an app's work, and when it is renewed.
const CLAIM_TTL: Duration = Duration::from_secs(15);
const CLAIM_RENEW: Duration = Duration::from_secs(5);
/// A host whose ports are all leased or resting is passed over for this long.
const NO_PORT_FOR: Duration = Duration::from_secs(10);
/// Between two rounds of forgetting history, and how long one goes on; after one that did not come to an end the next
/// follows soon, so that no amount of churn outruns it.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
const PRUNE_BUDGET: Duration = Duration::from_secs(20);
const PRUNE_PAUSE: Duration = Duration::from_secs(1);
/// Heartbeat tokens of instances that were never launched are kept this long.
const TOKEN_KEPT: Duration = Duration::from_secs(3_600);

/// Heartbeat tokens of instances that were placed by this process and are not launched yet. The store has only hashes.
#[derive(Debug, Default)]
struct Tokens(Mutex<HashMap<InstanceId, (String, Timestamp)>>);

impl Tokens {
    fn put(&self, id: &InstanceId, token: String, now: Timestamp) {
        lock(&self.0).insert(id.clone(), (token, now));
    }

    fn get(&self, id: &InstanceId) -> Option<String> {
        lock(&self.0).get(id).map(|t| t.0.clone())
    }

    fn forget(&self, id: &InstanceId) {
        lock(&self.0).remove(id);
    }

    fn known(&self, now: Timestamp) -> HashSet<InstanceId> {
        let mut tokens = lock(&self.0);
        tokens.retain(|_, (_, at)| now.since(*at) < TOKEN_KEPT);
        tokens.keys().cloned().collect()
    }
}

/// What all tasks of the loop share.
#[derive(Debug)]
struct Context {
    config: Arc<ConvergeConfig>,
    store: Arc<dyn Store>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    platform: PlatformId,
    /// By which name apps are claimed.
    holder: String,
    /// When this process began.
    began: Timestamp,
    apps: Hands<AppId>,
    instances: Hands<InstanceId>,
    /// Apps that were passed over since their last work had not ended.
    missed: Mutex<HashSet<AppId>>,
    apps_at_once: Arc<Semaphore>,
    gates: apply::Gates,
    retries: apply::Retries,
    tokens: Tokens,
    pulls: Mutex<HashMap<InstanceId, pulls::Pull>>,
    /// Releases by app, the app's birth (a new app may bear an old name), and number.
    releases: Mutex<HashMap<(AppId, Timestamp, u32), Arc<Release>>>,
    /// When each app was last claimed successfully.
    claims: Mutex<HashMap<AppId, Timestamp>>,
    no_port: Mutex<HashMap<HostName, Timestamp>>,
    /// When time alone makes a look worthwhile.
    wake_at: Mutex<Option<Timestamp>>,
    stop: CancellationToken,
}

/// One look at everything.
struct Snapshot {
    now: Timestamp,
    hosts: HashMap<HostName, Host>,
    host_list: Vec<Host>,
    observations: HashMap<HostName, Arc<Observation>>,
    /// Picks of all apps of this look are noted here, so that they don't all take the same host.
    census: Mutex<Census>,
    in_hand: HashSet<InstanceId>,
    tokens: HashSet<InstanceId>,
    frozen: bool,
    /// When this process began to look.
    began: Timestamp,
}

/// One app's part of a look.
struct Job {
    app: App,
    instances: Vec<Instance>,
    operation: Option<Operation>,
}

/// Keeps the fleet converging until `shutdown`.
pub(crate) async fn run(
    config: ConvergeConfig,
    store: Arc<dyn Store>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
) {
    let stop = shutdown.child_token();
    // However this function ends, its tasks end with it.
    let _guard = stop.clone().drop_guard();
    let platform = tokio::select! {
        platform = platform(&*store) => platform,
        () = stop.cancelled() => return,
    };
    let holder = if config.scheduler_id.is_empty() {
        InstanceId::random().to_string()
    } else {
        config.scheduler_id.clone()
    };
    info!(%platform, scheduler = %holder, "convergence begins");
    let config = Arc::new(config);
    let context = Arc::new(Context {
        apps_at_once: Arc::new(Semaphore::new(config.apps_at_once.max(1))),
        config: Arc::clone(&config),
        store,
        fleet: Arc::clone(&fleet),
        metrics: Arc::clone(&metrics),
        platform: platform.clone(),
        holder,
        began: Timestamp::now(),
        apps: Hands::default(),
        instances: Hands::default(),
        missed: Mutex::default(),
        gates: apply::Gates::default(),
        retries: apply::Retries::default(),
        tokens: Tokens::default(),
        pulls: Mutex::default(),
        releases: Mutex::default(),
        claims: Mutex::default(),
        no_port: Mutex::default(),
        wake_at: Mutex::default(),
        stop: stop.clone(),
    });
    tokio::spawn(crate::hosts::watch_all(
        Arc::clone(&config),
        Arc::clone(&fleet),
        platform,
        stop.clone(),
    ));
    tokio::spawn(crate::stats::run(Arc::clone(&config), fleet, metrics, stop.clone()));
    tokio::spawn(Arc::clone(&context).follow_revisions());
    tokio::spawn(Arc::clone(&context).listen());
    tokio::spawn(Arc::clone(&context).prune());
    context.converge().await;
}

async fn platform(store: &dyn Store) -> PlatformId {
    loop {
        match store.platform_id().await {
            Ok(platform) => return platform,
            Err(error) => warn!(%error, "waiting for the store"),
        }
        sleep(STORE_RETRY).await;
    }
}

/// Forgets history until nothing more is to be forgotten, for as long as [`PRUNE_BUDGET`]; whether it came to an end.
async fn prune_once(store: &dyn Store, config: &ConvergeConfig) -> Result<bool, StoreError> {
    let end = Instant::now() + PRUNE_BUDGET;
    while Instant::now() < end {
        let now = Timestamp::now();
        let before = now.minus(config.events_keep());
        if store.history_prune(config.history_keep, before, now).await? == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Context {
    async fn converge(self: Arc<Self>) {
        loop {
            *lock(&self.wake_at) = None;
            let looked = tokio::select! {
                looked = self.pass() => looked,
                () = self.stop.cancelled() => return,
            };
            let outcome = if looked.is_ok() { "ok" } else { "error" };
            self.metrics.passes.with_label_values(&["converge", outcome]).inc();
            let pause = match looked {
                Ok(()) => LOOK_GAP,
                Err(error) => {
                    warn!(%error, "the store could not be read; it is tried again");
                    STORE_RETRY
                }
            };
            let next = lock(&self.wake_at).map_or(self.config.full_pass(), |at| {
                at.since(Timestamp::now()).min(self.config.full_pass())
            });
            let next = Instant::now() + next;
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
            tokio::select! {
                () = self.fleet.changed.notified() => {}
                () = sleep_until(next) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Wakes the loop whenever something in the store has changed.
    async fn follow_revisions(self: Arc<Self>) {
        let mut seen = Revision::default();
        loop {
            let waited = tokio::select! {
                waited = self.store.revision_wait(seen, REVISION_WAIT) => waited,
                () = self.stop.cancelled() => return,
            };
            match waited {
                Ok(revision) if revision != seen => {
                    seen = revision;
                    self.fleet.changed.notify_one();
                }
                Ok(_) => {}
                Err(_) => tokio::select! {
                    () = sleep(STORE_RETRY) => {}
                    () = self.stop.cancelled() => return,
                },
            }
        }
    }

    /// Notes all the time that heartbeats are received here, as long as any app reports by itself: only what was silent
    /// meanwhile was silent.
    async fn listen(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = sleep(listening::NOTED_EVERY) => {}
                () = self.stop.cancelled() => return,
            }
            let beats = |r: &Arc<Release>| r.spec.health.kind == ProbeKind::Heartbeat;
            if !lock(&self.releases).values().any(beats) {
                continue;
            }
            if let Err(error) = self.store.listening_note(Timestamp::now()).await {
                warn!(%error, "that heartbeats are received could not be noted: no app's silence counts until it is");
            }
        }
    }

    /// Forgets history beyond what is to be kept.
    async fn prune(self: Arc<Self>) {
        let mut pause = PRUNE_EVERY;
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
            let pruned = tokio::select! {
                pruned = prune_once(&*self.store, &self.config) => pruned,
                () = self.stop.cancelled() => return,
            };
            pause = match pruned {
                Ok(true) => PRUNE_EVERY,
                Ok(false) => PRUNE_PAUSE,
                Err(error) => {
                    warn!(%error, "history could not be pruned");
                    PRUNE_EVERY
                }
            };
        }
    }

    /// Notes that a look is due at `at`.
    fn wake(&self, at: Timestamp) {
        let mut wake_at = lock(&self.wake_at);
        *wake_at = Some(wake_at.map_or(at, |w| w.min(at)));
    }

    /// One look at everything; the work that follows from it is begun, not awaited.
    async fn pass(self: &Arc<Self>) -> Result<(), StoreError> {
        // In this order: what is in hand before the rows (an end during the look is seen by the next one), containers
        // before the rows (a row is always older than its container), operations before apps (an app may be newer
        // than its operation, never the other way round), instances last.
        let mut in_hand = self.instances.before_look();
        let busy_apps = self.apps.before_look();
        let hands_full = !in_hand.is_empty();
        let observations = self.fleet.observations();
        let operations = self.store.operation_open().await?;
        let apps = self.store.app_list().await?;
        let host_list = self.store.host_list().await?;
        let instances = self.store.instance_list(&InstanceFilter::held()).await?;
        let now = Timestamp::now();
        if hands_full {
            self.wake(now.plus(CLAIM_RENEW));
        }
        let (waiting, first) = self.retries.waiting(now);
        in_hand.extend(waiting);
        if let Some(at) = first {
            self.wake(at);
        }
        self.count(&host_list, &instances);

        // Hosts that the operator drains are acknowledged as going.
        let kept = || {
            host_list
                .iter()
                .filter(|h| h.schedulability != Schedulability::Draining)
        };
        let (down, hosts) = (kept().filter(|h| h.down_since.is_some()).count(), kept().count());
        let frozen = down > (hosts / 4).max(1);
        if frozen {
            error!(
                down,
                hosts,
                "so many hosts are down that no instance is given up for lost; drain those that are gone for good"
            );
        }
        let mut census = self.fleet.census(&instances, now);
        for until in self.fleet.full_disks(now).into_values() {
            self.wake(until);
        }
        lock(&self.no_port).retain(|host, until| {
            census.no_port(host);
            self.wake(*until);
            *until > now
        });
        let snapshot = Arc::new(Snapshot {
            now,
            hosts: host_list.iter().map(|h| (h.name.clone(), h.clone())).collect(),
            host_list,
            observations,
            census: Mutex::new(census),
            in_hand,
            tokens: self.tokens.known(now),
            frozen,
            began: self.began,
        });

        self.host_operations(&operations, &snapshot, &instances).await;
        self.orphans(&snapshot, &instances);
        self.forget_unused(&apps, &instances);
        let mut of_app: HashMap<AppId, Vec<Instance>> = HashMap::new();
        let held: HashSet<&InstanceId> = instances.iter().map(|i| &i.id).collect();
        // One in hand may be younger than this look.
        lock(&self.pulls).retain(|id, pull| *pull == pulls::Pull::InHand || held.contains(id));
        for instance in instances {
            of_app.entry(instance.app.clone()).or_default().push(instance);
        }
        let mut of_operation: HashMap<AppId, Operation> = HashMap::new();
        for operation in operations {
            let Some(id) = operation.app.clone() else { continue };
            match apps.iter().find(|a| a.id == id) {
                Some(app) if app.operation.as_ref() == Some(&operation.id) => {
                    of_operation.insert(id, operation);
                }
                Some(_) => {}
                None => {
                    if let Some(next) = operations::judge_gone(&operation, now) {
                        self.write_operation(&next).await;
                    }
                }
            }
        }
        for app in apps {
            let job = Job {
                instances: of_app.remove(&app.id).unwrap_or_default(),
                operation: of_operation.remove(&app.id),
                app,
            };
            if busy_apps.contains(&job.app.id) {
                self.miss(&job.app.id);
            } else if self.worth_a_task(&job, &snapshot) {
                self.begin(job, &snapshot);
            }
        }
        Ok(())
    }

    /// Lets go of what is kept of apps, releases and hosts that are no longer needed.
    fn forget_unused(&self, apps: &[App], instances: &[Instance]) {
        self.gates.forget_idle();
        let mut releases = lock(&self.releases);
        if releases.is_empty() {
            return;
        }
        let births: HashMap<&AppId, Timestamp> = apps.iter().map(|a| (&a.id, a.created_at)).collect();
        let wanted = apps.iter().flat_map(|a| {
            let canary = a.canary.as_ref().map(|c| (&a.id, c.release));
            std::iter::once((&a.id, a.release)).chain(canary)
        });
        let used: HashSet<(&AppId, u32)> = wanted.chain(instances.iter().map(|i| (&i.app, i.release))).collect();
        releases.retain(|(app, born, number), _| births.get(app) == Some(born) && used.contains(&(app, *number)));
    }

    fn count(&self, hosts: &[Host], instances: &[Instance]) {
        for state in InstanceState::ALL {
            let n = instances.iter().filter(|i| i.state == state).count();
            let gauge = self.metrics.instances.with_label_values(&[state.as_str()]);
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        }
        let down = hosts.iter().filter(|h| h.down_since.is_some()).count();
        for (state, n) in [("down", down), ("up", hosts.len() - down)] {
            let gauge = self.metrics.hosts.with_label_values(&[state]);
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        }
    }

    /// Operations that empty a host.
    async fn host_operations(&self, operations: &[Operation], snapshot: &Snapshot, instances: &[Instance]) {
        for operation in operations.iter().filter(|o| o.kind == OperationKind::DrainHost) {
            let Some(name) = &operation.host else { continue };
            let on_host: Vec<&Instance> = instances
                .iter()
                .filter(|i| i.host == *name && i.state != InstanceState::Lost)
                .collect();
            let schedulability = snapshot.hosts.get(name).map(|h| h.schedulability);
            let next = operations::judge_drain_host(operation, schedulability, &on_host, snapshot.now);
            if let Some(next) = next {
                self.write_operation(&next).await;
            }
        }
    }

    /// Containers of this installation that no held instance owns: their rows were released, or are of another host.
    fn orphans(self: &Arc<Self>, snapshot: &Snapshot, instances: &[Instance]) {
        let held: HashMap<&InstanceId, &HostName> = instances.iter().map(|i| (&i.id, &i.host)).collect();
        for (name, observation) in &snapshot.observations {
            let Some(host) = snapshot.hosts.get(name) else { continue };
            let orphans: Vec<&Container> = observation
                .containers
                .values()
                .filter(|c| held.get(&c.instance) != Some(&name) && !snapshot.in_hand.contains(&c.instance))
                .collect();
            for container in orphans {
                let Some(hold) = self.instances.take(&container.instance) else {
                    continue;
                };
                let (context, host, container) = (Arc::clone(self), host.clone(), container.clone());
                self.spawn(hold, async move {
                    context.remove_orphan(&container.instance, &container.id, &host).await;
                });
            }
        }
    }

    /// Runs `work` beside the loop until it ends or the loop does; the loop then looks again.
    fn spawn(self: &Arc<Self>, hold: hands::Hold<InstanceId>, work: impl Future<Output = ()> + Send + 'static) {
        let context = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                () = work => {}
                () = context.stop.cancelled() => {}
            }
            drop(hold);
            context.fleet.changed.notify_one();
        });
    }

    /// A release, read once.
    async fn release(&self, app: &App, number: u32) -> Result<Option<Arc<Release>>, StoreError> {
        if let Some(release) = self.cached_release(app, number) {
            return Ok(Some(release));
        }
        let Some(release) = self.store.release_fetch(&app.id, number).await? else {
            return Ok(None);
        };
        let release = Arc::new(release);
        lock(&self.releases).insert((app.id.clone(), app.created_at, number), Arc::clone(&release));
        Ok(Some(release))
    }

    fn cached_release(&self, app: &App, number: u32) -> Option<Arc<Release>> {
        lock(&self.releases)
            .get(&(app.id.clone(), app.created_at, number))
            .cloned()
    }
}
