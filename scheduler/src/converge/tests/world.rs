//! A store, some fake hosts, and registry-sync's part.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backends::engine::FakeEngine;
use model::store::{Expected, HostIntent, HostOutcome, InstanceFilter, Intent, IntentOutcome, Store};
use model::{
    App, AppConfig, AppId, AppStatus, EventKind, Generation, Host, HostName, Instance, InstanceChange, InstanceState,
    NewEvent, Operation, OperationId, OperationKind, OperationState, Release, ReleaseSpec, Schedulability, TenantId,
    Timestamp,
};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::converge::fleet::lock;
use crate::converge::{ConvergeConfig, Fleet, run};
use crate::metrics::Metrics;

static WORLDS: AtomicUsize = AtomicUsize::new(0);
const DEADLINE: Duration = Duration::from_secs(20);

/// What the driver does not do by itself.
#[derive(Debug, Default)]
pub(super) struct Mood {
    /// Releases whose instances never become healthy.
    pub sick: HashSet<u32>,
    /// Fewest serving and most live instances that were ever seen, per app.
    pub seen: HashMap<AppId, (usize, usize)>,
}

pub(super) struct World {
    pub store: Arc<dyn Store>,
    pub fakes: Vec<Arc<FakeEngine>>,
    pub mood: Arc<Mutex<Mood>>,
    name: String,
    url: String,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(super) fn config() -> ConvergeConfig {
    ConvergeConfig {
        scheduler_id: "test".into(),
        host_down_after_s: 1,
        lost_after_s: 2,
        ..ConvergeConfig::default()
    }
}

pub(super) fn app_id(text: &str) -> AppId {
    text.parse().expect("valid")
}

impl World {
    /// `hosts` hosts of 4,000 MiB each.
    pub(super) async fn new(hosts: usize) -> Self {
        let n = WORLDS.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite://{}", dir.path().join("store.db").display());
        backends::store::migrate(&url).await.expect("migrated");
        let store = backends::store::open(&url).await.expect("opened");
        let stop = CancellationToken::new();
        let mut world = Self {
            store,
            fakes: Vec::new(),
            mood: Arc::default(),
            name: format!("converge-{}-{n}", std::process::id()),
            url,
            stop,
            _dir: dir,
        };
        for _ in 0..hosts {
            world.add_host(4_000).await;
        }
        tokio::spawn(drive(
            Arc::clone(&world.store),
            world.fakes.clone(),
            world.name.clone(),
            Arc::clone(&world.mood),
            world.stop.clone(),
        ));
        world
    }

    pub(super) async fn add_host(&mut self, memory_mb: u32) -> HostName {
        let i = self.fakes.len();
        let engine = format!("{}-{i}", self.name);
        self.fakes.push(FakeEngine::named(&engine));
        let name: HostName = format!("h{i}").parse().expect("valid");
        let host = Host {
            name: name.clone(),
            address: "127.0.0.1".parse().expect("valid"),
            engine: format!("fake://{engine}"),
            labels: BTreeMap::new(),
            region: "test".into(),
            memory_mb,
            cpu_millis: 4000,
            port_range: (20_000, 29_999),
            schedulability: Schedulability::Schedulable,
            down_since: None,
            reserved_memory_mb: 0,
            reserved_cpu_weight: 0,
            instances: 0,
            used_cpu_millis: 0,
            created_at: Timestamp::now(),
            generation: Generation::FIRST,
        };
        let event = NewEvent::new(EventKind::Host, "test", "joined").about_host(&name);
        let join = HostIntent::join(host, event);
        let made = self.store.host_commit(&join, Timestamp::now()).await.expect("written");
        assert!(matches!(made, HostOutcome::Committed(_)));
        name
    }

    /// Starts a scheduler's loop; aborting it is a kill.
    pub(super) async fn start(&self) -> JoinHandle<()> {
        self.start_as(config()).await
    }

    pub(super) async fn start_as(&self, config: ConvergeConfig) -> JoinHandle<()> {
        // A store of its own, as another process has.
        let store = backends::store::open(&self.url).await.expect("opened");
        let opener = backends::engine::opener(backends::engine::EngineOptions::default());
        let fleet = Fleet::new(Arc::clone(&store), opener);
        tokio::spawn(run(
            config,
            store,
            fleet,
            Arc::new(Metrics::new()),
            self.stop.child_token(),
        ))
    }

    pub(super) async fn app(&self, id: &str) -> Option<App> {
        self.store.app_fetch(&app_id(id)).await.expect("read")
    }

    /// Commits what `change` makes of the app; the operation.
    pub(super) async fn intend(
        &self,
        id: &str,
        kind: OperationKind,
        spec: Option<ReleaseSpec>,
        change: impl Fn(&mut App),
    ) -> Operation {
        loop {
            let now = Timestamp::now();
            let stored = self.app(id).await;
            let expected = stored
                .as_ref()
                .map_or(Expected::Absent, |a| Expected::Generation(a.generation));
            let mut app = stored.unwrap_or_else(|| App {
                id: app_id(id),
                tenant: TenantId::default_tenant(),
                status: AppStatus::Running,
                instances: 0,
                release: 0,
                previous_release: 0,
                last_release: 0,
                restart_before: None,
                canary: None,
                way_back: None,
                config: AppConfig::default(),
                operation: None,
                placements: 0,
                created_at: now,
                updated_at: now,
                generation: Generation::FIRST,
            });
            let release = spec.clone().map(|spec| {
                app.last_release += 1;
                if kind != OperationKind::Canary {
                    app.turn_to(app.last_release, None);
                }
                Release {
                    app: app.id.clone(),
                    number: app.last_release,
                    version: app.last_release.to_string().parse().expect("valid"),
                    digest: format!("sha256:{}", app.last_release),
                    spec,
                    protocol: Some(app.config.protocol),
                    created_at: now,
                }
            });
            change(&mut app);
            let operation = Operation {
                id: OperationId::random(),
                kind,
                app: Some(app.id.clone()),
                host: None,
                release: match kind {
                    OperationKind::Deploy | OperationKind::Rollback | OperationKind::Promote => Some(app.release),
                    OperationKind::Canary => app.canary.as_ref().map(|c| c.release),
                    _ => None,
                },
                state: OperationState::Running,
                message: String::new(),
                failure: None,
                steps: Vec::new(),
                reasons: Vec::new(),
                created_at: now,
                updated_at: now,
                generation: Generation::FIRST,
            };
            app.operation = Some(operation.id.clone());
            let intent = Intent {
                event: NewEvent::new(EventKind::App, "test", "changed").about_app(&app.id),
                app,
                expected,
                release,
                operation,
                tcp_ports: model::ports::GATEWAY_TCP,
                idempotency: None,
            };
            match self.store.intent_commit(&intent, now).await.expect("written") {
                IntentOutcome::Committed(_, operation) => return operation,
                IntentOutcome::Conflict(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    pub(super) async fn deploy(&self, id: &str, instances: u32, spec: ReleaseSpec) -> Operation {
        self.intend(id, OperationKind::Deploy, Some(spec), |app| {
            app.instances = instances;
            app.status = AppStatus::Running;
        })
        .await
    }

    pub(super) async fn scale(&self, id: &str, instances: u32) -> Operation {
        self.intend(id, OperationKind::Scale, None, |app| app.instances = instances)
            .await
    }

    pub(super) async fn held(&self, id: &str) -> Vec<Instance> {
        self.store
            .instance_list(&InstanceFilter::held_of(&app_id(id)))
            .await
            .expect("read")
    }

    /// Waits until `f` says so; panics with what it says otherwise.
    pub(super) async fn until<F: Future<Output = Result<(), String>>>(&self, f: impl Fn() -> F) {
        let end = Instant::now() + DEADLINE;
        loop {
            match f().await {
                Ok(()) => return,
                Err(what) if Instant::now() > end => panic!("not within {DEADLINE:?}: {what}"),
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// The operation's end.
    pub(super) async fn end(&self, operation: &Operation) -> Operation {
        let found = Mutex::new(None);
        self.until(|| async {
            let now = self.store.operation_fetch(&operation.id).await.expect("read");
            match now {
                Some(o) if o.state.is_final() => {
                    *lock(&found) = Some(o);
                    Ok(())
                }
                other => Err(format!("{other:?}; {:?}", self.held("shop").await)),
            }
        })
        .await;
        found.into_inner().expect("not poisoned").expect("set above")
    }

    /// Waits until exactly `n` instances of `release` serve, and nothing else is left anywhere: no other row, container,
    /// reservation.
    pub(super) async fn exactly(&self, id: &str, release: u32, n: usize) {
        self.until(|| async {
            let held = self.held(id).await;
            let right = held
                .iter()
                .filter(|i| i.release == release && i.state == InstanceState::Running && i.routed_at.is_some())
                .count();
            if right != n || held.len() != n {
                return Err(format!("{right} right of {}: {held:?}", held.len()));
            }
            self.tidy().await
        })
        .await;
    }

    /// Whether containers and reservations are those of the held instances, no more and no less.
    pub(super) async fn tidy(&self) -> Result<(), String> {
        let all = self.store.instance_list(&InstanceFilter::held()).await.expect("read");
        let rows: HashSet<_> = all.iter().map(|i| i.id.clone()).collect();
        let running: Vec<_> = self.fakes.iter().flat_map(|f| f.running()).collect();
        let containers: HashSet<_> = running.iter().map(|c| c.instance.clone()).collect();
        let made: usize = self.fakes.iter().map(|f| f.container_count()).sum();
        if rows != containers || made != rows.len() {
            return Err(format!("rows {rows:?}, running {containers:?}, containers {made}"));
        }
        for host in self.store.host_list().await.expect("read") {
            let on: Vec<_> = all.iter().filter(|i| i.host == host.name).collect();
            let memory: u32 = on.iter().map(|i| i.memory_mb).sum();
            if host.reserved_memory_mb != memory || host.instances as usize != on.len() {
                return Err(format!("{host:?} carries {on:?}"));
            }
        }
        Ok(())
    }
}

/// Registry-sync's moves, for instances whose container runs.
async fn drive(
    store: Arc<dyn Store>,
    mut fakes: Vec<Arc<FakeEngine>>,
    name: String,
    mood: Arc<Mutex<Mood>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        // Hosts may join later.
        if let Ok(hosts) = store.host_list().await
            && hosts.len() > fakes.len()
        {
            fakes.extend((fakes.len()..hosts.len()).map(|i| FakeEngine::named(&format!("{name}-{i}"))));
        }
        let running: HashSet<_> = fakes.iter().flat_map(|f| f.running()).map(|c| c.instance).collect();
        let Ok(held) = store.instance_list(&InstanceFilter::held()).await else {
            continue;
        };
        {
            let mut mood = lock(&mood);
            let apps: HashSet<AppId> = held.iter().map(|i| i.app.clone()).collect();
            for app in apps {
                let of = |f: &dyn Fn(&Instance) -> bool| held.iter().filter(|i| i.app == app && f(i)).count();
                let serving = of(&|i| i.state == InstanceState::Running && i.routed_at.is_some());
                let live = of(&|i| i.state.is_live());
                let seen = mood.seen.entry(app.clone()).or_insert((usize::MAX, 0));
                *seen = (seen.0.min(serving), seen.1.max(live));
            }
        }
        for instance in &held {
            let sick = lock(&mood).sick.contains(&instance.release);
            let change = match instance.state {
                InstanceState::Starting if running.contains(&instance.id) && !sick => {
                    InstanceChange::Healthy { assumed: false }
                }
                InstanceState::Running if instance.routed_at.is_none() => InstanceChange::Routed,
                InstanceState::Draining => InstanceChange::Drained,
                _ => continue,
            };
            // A conflict is answered by the next round.
            let _ = store.instance_update(instance, &change, Timestamp::now()).await;
        }
        sleep(Duration::from_millis(5)).await;
    }
}
