//! The whole role over a real SQLite store, the memory registry and real sockets; the test plays the scheduler and
//! the gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use backends::registry::MemoryRegistry;
use model::operation::{OperationKind, OperationState};
use model::registry::{Acknowledgement, RegistryReader as _, RegistryRevision, RegistrySnapshot, RegistryWriter as _};
use model::spec::{OnFailure, ProbeKind};
use model::store::{Expected, HostIntent, Intent, IntentOutcome, Pick, PlaceOutcome, Placing, Store};
use model::{
    App, AppConfig, AppId, AppStatus, ContainerId, EventKind, FailureCode, Figures, Generation, Host, Instance,
    InstanceChange, InstanceId, InstanceState, Load, NewEvent, Operation, OperationId, Release, ReleaseSpec,
    Schedulability, TenantId, Timestamp,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

struct Bed {
    store: Arc<dyn Store>,
    registry: Arc<MemoryRegistry>,
    shutdown: CancellationToken,
    role: Option<tokio::task::JoinHandle<Result<(), registry_sync::Error>>>,
    _dir: tempfile::TempDir,
}

impl Bed {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let url = format!("sqlite://{}", dir.path().join("caas.db").display());
        backends::store::migrate(&url).await.expect("migrates");
        let store = backends::store::open(&url).await.expect("opens");
        let host = Host {
            name: "h1".parse().expect("valid"),
            address: [127, 0, 0, 1].into(),
            engine: "fake://h1".into(),
            labels: Default::default(),
            region: "eu".into(),
            memory_mb: 10_000,
            cpu_millis: 2_000,
            // Above the ports that connections get by themselves: those of other tests could hold one.
            port_range: (61_000, 65_535),
            schedulability: Schedulability::Schedulable,
            down_since: None,
            reserved_memory_mb: 0,
            reserved_cpu_weight: 0,
            instances: 0,
            used_cpu_millis: 0,
            created_at: Timestamp::now(),
            generation: Generation::FIRST,
        };
        store
            .host_commit(
                &HostIntent::join(host, NewEvent::new(EventKind::Host, "test", "joined")),
                Timestamp::now(),
            )
            .await
            .expect("host");
        let mut bed = Self {
            store,
            registry: MemoryRegistry::new(),
            shutdown: CancellationToken::new(),
            role: None,
            _dir: dir,
        };
        bed.start_role().await;
        bed
    }

    async fn start_role(&mut self) {
        self.shutdown = CancellationToken::new();
        let admin = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let deps = registry_sync::Deps {
            store: self.store.clone(),
            registry: self.registry.clone(),
        };
        let role = registry_sync::run(registry_sync::Config::default(), deps, admin, self.shutdown.clone());
        self.role = Some(tokio::spawn(role));
    }

    /// As `kill -9` does: no goodbye.
    async fn kill_role(&mut self) {
        if let Some(role) = self.role.take() {
            role.abort();
            let _ = role.await;
        }
    }

    async fn app(&self, id: &str, spec: ReleaseSpec) -> App {
        let now = Timestamp::now();
        let app: AppId = id.parse().expect("valid");
        let operation = Operation {
            id: OperationId::random(),
            kind: OperationKind::Deploy,
            app: Some(app.clone()),
            host: None,
            release: Some(1),
            state: OperationState::Running,
            message: String::new(),
            failure: None,
            steps: vec![],
            reasons: vec![],
            created_at: now,
            updated_at: now,
            generation: Generation::FIRST,
        };
        let intent = Intent {
            app: App {
                id: app.clone(),
                tenant: TenantId::default_tenant(),
                status: AppStatus::Running,
                instances: 1,
                release: 1,
                previous_release: 0,
                last_release: 1,
                restart_before: None,
                canary: None,
                way_back: None,
                config: AppConfig::default(),
                operation: Some(operation.id.clone()),
                placements: 0,
                created_at: now,
                updated_at: now,
                generation: Generation::FIRST,
            },
            expected: Expected::Absent,
            release: Some(Release {
                app: app.clone(),
                number: 1,
                version: "1".parse().expect("valid"),
                digest: "sha256:00".into(),
                spec,
                protocol: None,
                created_at: now,
            }),
            operation,
            event: NewEvent::new(EventKind::App, "test", "deployed"),
            tcp_ports: model::ports::GATEWAY_TCP,
            idempotency: None,
        };
        match self.store.intent_commit(&intent, now).await.expect("commits") {
            IntentOutcome::Committed(app, _) => app,
            other => panic!("{other:?}"),
        }
    }

    /// Places an instance of `app` and says that its container `container` was started.
    async fn instance(&self, app: &AppId, container: &str) -> Instance {
        let app = self.store.app_fetch(app).await.expect("reads").expect("exists");
        let placing = Placing {
            app: app.id.clone(),
            expected_placements: app.placements,
            expected_generation: app.generation,
            not_before: None,
            picks: vec![Pick {
                instance: InstanceId::random(),
                host: "h1".parse().expect("valid"),
                release: 1,
                version: "1".parse().expect("valid"),
                memory_mb: 64,
                cpu_weight: 1024,
                token_hash: "00".into(),
            }],
        };
        let placed = match self
            .store
            .instance_place(&placing, Timestamp::now())
            .await
            .expect("places")
        {
            PlaceOutcome::Placed { mut placed, refused } if refused.is_empty() => placed.remove(0),
            other => panic!("{other:?}"),
        };
        let change = InstanceChange::Started {
            container: id(container),
            restart: false,
        };
        self.change(&placed, &change).await
    }

    async fn change(&self, instance: &Instance, change: &InstanceChange) -> Instance {
        let outcome = self
            .store
            .instance_update(instance, change, Timestamp::now())
            .await
            .expect("writes");
        outcome.updated().expect("nobody else is writing")
    }

    /// As the API does when the app reports: whoever else moves the row meanwhile, the beat is noted.
    async fn beat(&self, id: &InstanceId) {
        loop {
            let row = self.store.instance_fetch(id).await.expect("reads").expect("exists");
            let outcome = self
                .store
                .instance_update(&row, &InstanceChange::Heartbeat, Timestamp::now())
                .await
                .expect("it may beat in any state in which it has a container");
            if outcome.updated().is_some() {
                return;
            }
        }
    }

    /// As a scheduler does that receives heartbeats, until it is aborted.
    fn listen(&self) -> tokio::task::JoinHandle<()> {
        let store = Arc::clone(&self.store);
        tokio::spawn(async move {
            loop {
                store.listening_note(Timestamp::now()).await.expect("writes");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
    }

    /// Beats several times a second until the row is as wanted.
    async fn beat_until(&self, id: &InstanceId, what: &str, holds: impl Fn(&Instance) -> bool) -> Instance {
        let beating = async {
            loop {
                self.beat(id).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            row = self.wait(id, what, holds) => row,
            () = beating => unreachable!("beats have no end"),
        }
    }

    async fn wait(&self, id: &InstanceId, what: &str, holds: impl Fn(&Instance) -> bool) -> Instance {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let row = self.store.instance_fetch(id).await.expect("reads").expect("exists");
            if holds(&row) {
                return row;
            }
            assert!(Instant::now() < deadline, "waited for {what}, but it is {row:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn wait_loads(&self, what: &str, holds: impl Fn(&[Load]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let loads = self.registry.loads().await.expect("reads");
            let loads: Vec<Load> = loads.into_values().collect();
            if holds(&loads) {
                return;
            }
            assert!(Instant::now() < deadline, "waited for {what}, but it is {loads:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn wait_published(&self, what: &str, holds: impl Fn(&RegistrySnapshot) -> bool) -> RegistrySnapshot {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let snapshot = self.registry.published().await.expect("reads");
            if holds(&snapshot) {
                return snapshot;
            }
            assert!(Instant::now() < deadline, "waited for {what}, but it is {snapshot:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn id(container: &str) -> ContainerId {
    container.parse().expect("valid")
}

fn quick() -> ReleaseSpec {
    let mut spec = ReleaseSpec {
        image: "r:5000/hello:1".into(),
        ..ReleaseSpec::default()
    };
    spec.health.interval_ms = 200;
    spec.health.timeout_ms = 300;
    spec.health.unhealthy_after = 2;
    spec
}

/// An app that answers with a status that the test may change (0: it closes the connection).
async fn upstream(port: u16) -> Arc<AtomicU16> {
    let status = Arc::new(AtomicU16::new(200));
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port)))
        .await
        .expect("the leased port is free");
    let answer = Arc::clone(&status);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let status = answer.load(Ordering::SeqCst);
            if status != 0 {
                let _ = stream
                    .write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").as_bytes())
                    .await;
            }
        }
    });
    status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_published_when_alive_withdrawn_when_not_and_drained_when_told() {
    let bed = Bed::start().await;
    let mut spec = quick();
    spec.on_failure = OnFailure::None;
    let app = bed.app("hello", spec).await;
    let instance = bed.instance(&app.id, "c1").await;
    // Not listening yet: known to gateways as an app, without an endpoint.
    let snapshot = bed
        .wait_published("the configuration", |s| s.configs.contains_key(&app.id))
        .await;
    assert!(snapshot.endpoints.is_empty());

    let status = upstream(instance.port).await;
    let running = bed.wait(&instance.id, "routed", |i| i.routed_at.is_some()).await;
    assert_eq!(
        (running.state, running.assumed_healthy),
        (InstanceState::Running, false)
    );
    let snapshot = bed.wait_published("the endpoint", |s| s.endpoints.len() == 1).await;
    let (key, endpoint) = snapshot.endpoints.first_key_value().expect("one");
    assert_eq!(
        (key.container.as_str(), endpoint.to_string()),
        ("c1", format!("127.0.0.1:{}", instance.port))
    );

    status.store(500, Ordering::SeqCst);
    let unhealthy = bed
        .wait(&instance.id, "unhealthy", |i| i.state == InstanceState::Unhealthy)
        .await;
    assert!(
        unhealthy
            .failure
            .expect("why")
            .probes
            .last()
            .expect("some")
            .contains("answered 500")
    );
    bed.wait_published("its withdrawal", |s| s.endpoints.is_empty()).await;

    status.store(404, Ordering::SeqCst);
    let back = bed.wait(&instance.id, "routed again", |i| i.routed_at.is_some()).await;
    assert!(back.assumed_healthy, "it has no health route");

    let row = bed.wait(&instance.id, "quiet", |_| true).await;
    bed.change(&row, &InstanceChange::Drain).await;
    bed.wait(&instance.id, "drained", |i| i.state == InstanceState::Drained)
        .await;
    assert!(bed.registry.published().await.expect("reads").endpoints.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_comes_and_goes_with_its_endpoint() {
    let mut bed = Bed::start().await;
    let app = bed.app("hello", quick()).await;
    let instance = bed.instance(&app.id, "c1").await;
    let _up = upstream(instance.port).await;
    bed.wait_loads(
        "its region, before anything was measured",
        |loads| matches!(loads, [load] if load.region == "eu" && load.host.as_str() == "h1" && load.figures.is_none()),
    )
    .await;

    let figures = Figures {
        cpu_milli: 120,
        memory_bytes: 1 << 20,
        memory_limit_bytes: 64 << 20,
        at: Timestamp::from_millis(1_700_000_000_000),
    };
    bed.kill_role().await;
    let stored = bed.store.figures_put(&[(instance.id.clone(), figures)]).await;
    stored.expect("kept");
    bed.start_role().await;
    bed.wait_loads(
        "its figures",
        |loads| matches!(loads, [load] if load.figures == Some(figures)),
    )
    .await;

    let row = bed.wait(&instance.id, "quiet", |_| true).await;
    bed.change(&row, &InstanceChange::Drain).await;
    bed.wait_loads("its end", <[Load]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unhealthy_instance_fails_by_policy_and_one_that_never_answers_after_its_grace() {
    let bed = Bed::start().await;
    let mut spec = quick();
    spec.health.grace_s = 1;
    let app = bed.app("hello", spec).await;
    let mute = bed.instance(&app.id, "c0").await;
    let instance = bed.instance(&app.id, "c1").await;
    let status = upstream(instance.port).await;
    bed.wait(&instance.id, "routed", |i| i.routed_at.is_some()).await;
    status.store(0, Ordering::SeqCst);
    let failed = bed
        .wait(&instance.id, "failed", |i| i.state == InstanceState::Failed)
        .await;
    assert_eq!(failed.failure.expect("why").code, FailureCode::Unhealthy);
    let mute = bed
        .wait(&mute.id, "never ready", |i| i.state == InstanceState::Failed)
        .await;
    assert_eq!(mute.failure.expect("why").code, FailureCode::NeverReady);
    bed.wait_published("nothing", |s| s.endpoints.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_reports_by_itself_serves_as_long_as_it_beats() {
    let bed = Bed::start().await;
    let _scheduler = bed.listen();
    let mut spec = quick();
    spec.health.kind = ProbeKind::Heartbeat;
    spec.health.heartbeat_timeout_s = 1;
    spec.on_failure = OnFailure::None;
    let stays = bed.app("stays", spec.clone()).await;
    let instance = bed.instance(&stays.id, "c1").await;
    spec.on_failure = OnFailure::Replace;
    spec.health.grace_s = 1;
    let goes = bed.app("goes", spec).await;
    let mute = bed.instance(&goes.id, "c2").await;
    let mute = bed
        .wait(&mute.id, "never ready", |i| i.state == InstanceState::Failed)
        .await;
    let failure = mute.failure.expect("why");
    assert_eq!(failure.code, FailureCode::NeverReady);
    assert!(
        failure.probes.iter().all(|p| p.ends_with("no heartbeat yet")),
        "{failure:?}"
    );
    let row = bed.wait(&instance.id, "there", |_| true).await;
    assert_eq!(row.state, InstanceState::Starting, "no beat came yet");

    let began = Instant::now();
    bed.beat_until(&instance.id, "routed", |i| i.routed_at.is_some()).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "beats hold up the look at them"
    );
    bed.wait_published("the endpoint", |s| s.endpoints.len() == 1).await;
    // Many times its time-out, during which it beats.
    let began = Instant::now();
    bed.beat_until(&instance.id, "3 s", |i| {
        assert_eq!(i.state, InstanceState::Running, "{i:?}");
        began.elapsed() > Duration::from_secs(3)
    })
    .await;

    let silent = bed
        .wait(&instance.id, "unhealthy", |i| i.state == InstanceState::Unhealthy)
        .await;
    let failure = silent.failure.expect("why");
    assert!(
        failure.probes.last().expect("some").contains("last heartbeat at"),
        "{failure:?}"
    );
    bed.wait_published("its withdrawal", |s| s.endpoints.is_empty()).await;
    bed.beat_until(&instance.id, "routed again", |i| i.routed_at.is_some())
        .await;
    bed.wait_published("the endpoint again", |s| s.endpoints.len() == 1)
        .await;

    let instance = bed.instance(&goes.id, "c3").await;
    bed.beat_until(&instance.id, "routed", |i| i.routed_at.is_some()).await;
    let failed = bed
        .wait(&instance.id, "failed", |i| i.state == InstanceState::Failed)
        .await;
    assert_eq!(failed.failure.expect("why").code, FailureCode::Unhealthy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_no_scheduler_hears_beats_nobody_is_silent() {
    let bed = Bed::start().await;
    let scheduler = bed.listen();
    let mut spec = quick();
    spec.health.kind = ProbeKind::Heartbeat;
    spec.health.heartbeat_timeout_s = 1;
    let app = bed.app("hello", spec).await;
    let instance = bed.instance(&app.id, "c1").await;
    bed.beat_until(&instance.id, "routed", |i| i.routed_at.is_some()).await;
    scheduler.abort();
    let _ = scheduler.await;
    // Several times its time-out, and the failed probes that would take it down.
    let began = Instant::now();
    bed.wait(&instance.id, "5 s", |i| {
        assert_eq!(
            (i.state, i.routed_at.is_some()),
            (InstanceState::Running, true),
            "{i:?}"
        );
        began.elapsed() > Duration::from_secs(5)
    })
    .await;
    // From the return of a scheduler on it has a whole time-out, and no more.
    let began = Instant::now();
    let _scheduler = bed.listen();
    bed.wait(&instance.id, "failed", |i| i.state == InstanceState::Failed)
        .await;
    assert!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_are_waited_for_until_they_have_let_go() {
    let bed = Bed::start().await;
    let app = bed.app("hello", quick()).await;
    let acknowledge = async |applied: i64, draining: &[&str]| {
        let ack = Acknowledgement {
            applied: RegistryRevision(applied),
            draining: draining.iter().map(|c| id(c)).collect(),
        };
        bed.registry.acknowledge("g1", &ack).await.expect("memory");
    };
    acknowledge(0, &[]).await;
    let instance = bed.instance(&app.id, "c1").await;
    let _status = upstream(instance.port).await;
    bed.wait_published("the endpoint", |s| s.endpoints.len() == 1).await;
    let running = bed
        .wait(&instance.id, "running", |i| i.state == InstanceState::Running)
        .await;
    assert!(running.routed_at.is_none(), "the gateway has not acknowledged");
    let revision = bed.registry.published().await.expect("reads").revision.0;
    acknowledge(revision, &[]).await;
    let routed = bed.wait(&instance.id, "routed", |i| i.routed_at.is_some()).await;

    bed.change(&routed, &InstanceChange::Drain).await;
    let withdrawn = bed
        .wait_published("its withdrawal", |s| s.endpoints.is_empty())
        .await
        .revision
        .0;
    // The gateway has applied it, but a request is still open.
    acknowledge(withdrawn, &["c1"]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let row = bed
        .store
        .instance_fetch(&instance.id)
        .await
        .expect("reads")
        .expect("exists");
    assert_eq!(row.state, InstanceState::Draining);
    acknowledge(withdrawn, &[]).await;
    bed.wait(&instance.id, "drained", |i| i.state == InstanceState::Drained)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_time_it_goes_on_where_it_was() {
    let mut bed = Bed::start().await;
    let app = bed.app("hello", quick()).await;
    let mut instances = Vec::new();
    let mut upstreams = Vec::new();
    for n in 0..4 {
        let instance = bed.instance(&app.id, &format!("c{n}")).await;
        upstreams.push(upstream(instance.port).await);
        instances.push(instance);
    }
    for round in 0..10u64 {
        bed.kill_role().await;
        bed.start_role().await;
        tokio::time::sleep(Duration::from_millis(round * 7)).await;
    }
    for instance in &instances {
        bed.wait(&instance.id, "routed", |i| i.routed_at.is_some()).await;
    }
    for instance in &instances[..2] {
        let row = bed.wait(&instance.id, "there", |_| true).await;
        bed.change(&row, &InstanceChange::Drain).await;
    }
    for round in 0..5u64 {
        bed.kill_role().await;
        bed.start_role().await;
        tokio::time::sleep(Duration::from_millis(round * 5)).await;
    }
    for instance in &instances[..2] {
        bed.wait(&instance.id, "drained", |i| i.state == InstanceState::Drained)
            .await;
    }
    let snapshot = bed.wait_published("two endpoints", |s| s.endpoints.len() == 2).await;
    let left: Vec<&str> = snapshot.endpoints.keys().map(|k| k.container.as_str()).collect();
    assert_eq!(left, ["c2", "c3"]);
}
