//! Committed placements per second on 100 hosts, in SQLite and in MariaDB: `cargo bench -p caas-backends --bench
//! placement`. Four placers (four schedulers, each with its own handle) work at once, each on its own app, in
//! batches as scale-outs make them and one by one as single deploys do. Hosts carry what was placed before.

#[path = "../tests/store_support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::store::{Expected, HostIntent, Intent, IntentOutcome, Pick, PlaceOutcome, Placing, Store};
use model::{
    App, AppConfig, AppId, AppStatus, EventKind, Generation, Host, InstanceId, NewEvent, Operation, OperationId,
    OperationKind, OperationState, Schedulability, TenantId, Timestamp,
};
use rand::RngExt as _;

const HOSTS: usize = 100;
const PLACERS: usize = 4;
const RUN: Duration = Duration::from_secs(4);

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite://{}", directory.path().join("caas.db").display());
        caas_backends::store::migrate(&url).await.expect("migrated");
        all("sqlite", &url).await;
        match support::MariaDb::start().await {
            Some(server) => all("mariadb", &support::fresh_database(&server.base()).await).await,
            None => support::skipped("mariadbd is not installed"),
        }
    });
}

async fn all(name: &str, url: &str) {
    let store = support::handle(url).await;
    for n in 0..HOSTS {
        let host = host(&format!("h{n}"));
        let event = NewEvent::new(EventKind::Host, "bench", "joined");
        store
            .host_commit(&HostIntent::join(host, event), Timestamp::now())
            .await
            .expect("an answer");
    }
    for batch in [100, 10, 1] {
        let placers: Vec<_> = (0..PLACERS)
            .map(|n| {
                let url = url.to_owned();
                tokio::spawn(async move { placer(&url, &format!("app-{batch}-{n}"), batch).await })
            })
            .collect();
        let mut times = Vec::new();
        for placer in placers {
            times.extend(placer.await.expect("no panic"));
        }
        times.sort();
        let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1_000.0;
        let rate = (times.len() * batch) as f64 / RUN.as_secs_f64();
        println!(
            "{name}: {rate:.0} placements/s in batches of {batch}; a batch takes p50 {:.1} ms, p99 {:.1} ms",
            at(50),
            at(99)
        );
    }
}

async fn placer(url: &str, app: &str, batch: usize) -> Vec<Duration> {
    let store = support::handle(url).await;
    let app = deploy(&*store, app.parse().expect("a valid app id")).await;
    let start = Instant::now();
    let mut times = Vec::new();
    let mut placements = 0;
    while start.elapsed() < RUN {
        let placing = Placing {
            app: app.id.clone(),
            expected_placements: placements,
            expected_generation: app.generation,
            not_before: None,
            picks: (0..batch).map(|_| pick()).collect(),
        };
        let begun = Instant::now();
        match store
            .instance_place(&placing, Timestamp::now())
            .await
            .expect("an answer")
        {
            PlaceOutcome::Placed { placed, refused } => {
                assert_eq!((placed.len(), refused.len()), (batch, 0));
                placements += 1;
            }
            PlaceOutcome::Conflict => panic!("nobody else places {}", app.id),
        }
        times.push(begun.elapsed());
    }
    times
}

fn pick() -> Pick {
    Pick {
        instance: InstanceId::random(),
        host: format!("h{}", rand::rng().random_range(0..HOSTS))
            .parse()
            .expect("a valid name"),
        release: 1,
        version: "1".parse().expect("a valid version"),
        memory_mb: 64,
        cpu_weight: 1024,
        token_hash: "0".repeat(64),
    }
}

fn host(name: &str) -> Host {
    Host {
        name: name.parse().expect("a valid name"),
        address: "10.0.0.1".parse().expect("an address"),
        engine: format!("fake://{name}"),
        labels: BTreeMap::new(),
        region: String::new(),
        memory_mb: 1_000_000_000,
        cpu_millis: 64_000,
        port_range: (1_024, 65_535),
        schedulability: Schedulability::Schedulable,
        down_since: None,
        reserved_memory_mb: 0,
        reserved_cpu_weight: 0,
        instances: 0,
        used_cpu_millis: 0,
        created_at: Timestamp::now(),
        generation: Generation::FIRST,
    }
}

async fn deploy(store: &dyn Store, id: AppId) -> Arc<App> {
    let now = Timestamp::now();
    let intent = Intent {
        app: App {
            id: id.clone(),
            tenant: TenantId::default_tenant(),
            status: AppStatus::Running,
            instances: 1_000,
            release: 1,
            previous_release: 0,
            last_release: 1,
            restart_before: None,
            canary: None,
            way_back: None,
            config: AppConfig::default(),
            operation: None,
            placements: 0,
            created_at: now,
            updated_at: now,
            generation: Generation::FIRST,
        },
        expected: Expected::Absent,
        release: None,
        operation: Operation {
            id: OperationId::random(),
            kind: OperationKind::Deploy,
            app: Some(id.clone()),
            host: None,
            release: Some(1),
            state: OperationState::Running,
            message: String::new(),
            failure: None,
            steps: Vec::new(),
            reasons: Vec::new(),
            created_at: now,
            updated_at: now,
            generation: Generation::FIRST,
        },
        event: NewEvent::new(EventKind::App, "bench", "deploy").about_app(&id),
        tcp_ports: model::ports::GATEWAY_TCP,
        idempotency: None,
    };
    match store.intent_commit(&intent, now).await.expect("an answer") {
        IntentOutcome::Committed(app, _) => Arc::new(app),
        other => panic!("{other:?}"),
    }
}
