//! 10,000 probed instances in one process: does it keep up, and what does it cost?
//!
//! `cargo bench -p caas-registry-sync`: 100 hosts (127.0.1.1 …) with 100 ports each, all answered by 100 listeners
//! of this process, so that its CPU time counts both sides. Prints probes per second (wanted: instances / 5 s)
//! and CPU microseconds per probe.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backends::registry::MemoryRegistry;
use model::operation::{OperationKind, OperationState};
use model::registry::RegistryWriter as _;
use model::store::{Expected, HostIntent, InstanceFilter, Intent, IntentOutcome, Pick, PlaceOutcome, Placing, Store};
use model::{
    App, AppConfig, AppId, AppStatus, EventKind, Generation, Host, InstanceChange, InstanceId, NewEvent, Operation,
    OperationId, Release, ReleaseSpec, Schedulability, TenantId, Timestamp,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const HOSTS: u8 = 100;
const PORTS: u16 = 100;
const FIRST_PORT: u16 = 21_000;

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let url = format!("sqlite://{}", dir.path().join("caas.db").display());
    backends::store::migrate(&url).await.expect("migrates");
    let store = backends::store::open(&url).await.expect("opens");
    for port in FIRST_PORT..FIRST_PORT + PORTS {
        let listener = TcpListener::bind(("0.0.0.0", port)).await.expect("a free port");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut head = [0; 512];
                    let _ = stream.read(&mut head).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                });
            }
        });
    }
    let begun = Instant::now();
    fill(&*store).await;
    println!("filled the store in {:.1} s", begun.elapsed().as_secs_f64());

    let registry = MemoryRegistry::new();
    let shutdown = CancellationToken::new();
    let admin = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = admin.local_addr().expect("bound");
    let deps = registry_sync::Deps {
        store: Arc::clone(&store) as _,
        registry: Arc::clone(&registry) as _,
    };
    let begun = Instant::now();
    let role = tokio::spawn(registry_sync::run(
        registry_sync::Config::default(),
        deps,
        admin,
        shutdown.clone(),
    ));
    let all = usize::from(HOSTS) * usize::from(PORTS);
    loop {
        let published = registry.published().await.expect("memory").endpoints.len();
        if published == all {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "{published} of {all} published"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "{all} starting instances running and published in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    loop {
        let rows = store.instance_list(&InstanceFilter::held()).await.expect("reads");
        if rows.iter().all(|i| i.routed_at.is_some()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("all routed in {:.1} s", begun.elapsed().as_secs_f64());

    let (before, cpu, at) = (probes(address).await, cpu_seconds(), Instant::now());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let wall = at.elapsed().as_secs_f64();
    let probed = probes(address).await - before;
    let cpu = cpu_seconds() - cpu;
    println!(
        "{:.0} probes/s (wanted {:.0}), {:.0} us CPU per probe, both sides; {:.0} % of one core",
        probed / wall,
        f64::from(HOSTS) * f64::from(PORTS) / 5.0,
        cpu * 1e6 / probed,
        cpu * 100.0 / wall
    );
    shutdown.cancel();
    let _ = role.await;
}

async fn fill(store: &dyn Store) {
    let now = Timestamp::now();
    for n in 1..=HOSTS {
        let host = Host {
            name: format!("h{n}").parse().expect("valid"),
            address: [127, 0, 1, n].into(),
            engine: format!("fake://h{n}"),
            labels: Default::default(),
            region: String::new(),
            memory_mb: 1_000_000,
            cpu_millis: 2_000,
            port_range: (FIRST_PORT, FIRST_PORT + PORTS - 1),
            schedulability: Schedulability::Schedulable,
            down_since: None,
            reserved_memory_mb: 0,
            reserved_cpu_weight: 0,
            instances: 0,
            used_cpu_millis: 0,
            created_at: now,
            generation: Generation::FIRST,
        };
        store
            .host_commit(
                &HostIntent::join(host, NewEvent::new(EventKind::Host, "bench", "joined")),
                Timestamp::now(),
            )
            .await
            .expect("host");
    }
    let id: AppId = "bench".parse().expect("valid");
    let mut placements = 0;
    let generation = deployed(store, &id, now).await;
    for n in 1..=HOSTS {
        let pick = || Pick {
            instance: InstanceId::random(),
            host: format!("h{n}").parse().expect("valid"),
            release: 1,
            version: "1".parse().expect("valid"),
            memory_mb: 64,
            cpu_weight: 2,
            token_hash: String::new(),
        };
        let placing = Placing {
            app: id.clone(),
            expected_placements: placements,
            expected_generation: generation,
            not_before: None,
            picks: std::iter::repeat_with(pick).take(PORTS.into()).collect(),
        };
        match store.instance_place(&placing, now).await.expect("places") {
            PlaceOutcome::Placed { refused, .. } if refused.is_empty() => {}
            other => panic!("{other:?}"),
        }
        placements = store.app_fetch(&id).await.expect("reads").expect("exists").placements;
    }
    for (n, row) in store
        .instance_list(&InstanceFilter::held())
        .await
        .expect("reads")
        .iter()
        .enumerate()
    {
        let container = format!("c{n}").parse().expect("valid");
        let change = InstanceChange::Started {
            container,
            restart: false,
        };
        store
            .instance_update(row, &change, Timestamp::now())
            .await
            .expect("writes");
    }
}

async fn deployed(store: &dyn Store, id: &AppId, now: Timestamp) -> Generation {
    let operation = Operation {
        id: OperationId::random(),
        kind: OperationKind::Deploy,
        app: Some(id.clone()),
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
    let app = App {
        id: id.clone(),
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
    };
    let spec = ReleaseSpec {
        image: "r:5000/bench:1".into(),
        ..ReleaseSpec::default()
    };
    let release = Release {
        app: id.clone(),
        number: 1,
        version: "1".parse().expect("valid"),
        digest: "sha256:00".into(),
        spec,
        protocol: None,
        created_at: now,
    };
    let event = NewEvent::new(EventKind::App, "bench", "deployed");
    let intent = Intent {
        app,
        expected: Expected::Absent,
        release: Some(release),
        operation,
        event,
        tcp_ports: model::ports::GATEWAY_TCP,
        idempotency: None,
    };
    match store.intent_commit(&intent, now).await.expect("commits") {
        IntentOutcome::Committed(app, _) => app.generation,
        other => panic!("{other:?}"),
    }
}

/// Sum of `caas_registry_sync_probes_total` on the role's own metrics page.
async fn probes(address: std::net::SocketAddr) -> f64 {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("the admin port");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.expect("sends");
    let mut page = String::new();
    stream.read_to_string(&mut page).await.expect("answers");
    let counters = page
        .lines()
        .filter(|l| l.starts_with("caas_registry_sync_probes_total{"));
    counters.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// User and system time of this process (fields 14 and 15 of `/proc/self/stat`, ticks of 10 ms).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    fields[11..13].iter().filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / 100.0
}
