//! What the registry in ZooKeeper costs: loading 30,000 endpoints with their loads, and the way of a change to a gateway,
//! also while all loads are written every 10 s.
//!
//! `cargo bench -p caas-backends --bench registry` prints the figures, for one server and for three.

#[path = "../tests/registry_support/mod.rs"]
mod registry_support;

use std::time::{Duration, Instant};

use caas_backends::registry::zookeeper::ZooKeeperWriter;
use model::contract::registry::{Mirror, endpoint, key, load};
use model::registry::{Acknowledgement, RegistryChange, RegistryReader, RegistryWriter};
use registry_support::{FULL, ZooKeeper, available};

const APPS: u16 = 10_000;
const CONTAINERS: u16 = 3;
const WRITES: u16 = 1_000;
/// As registry-sync writes them.
const LOADS_AT_ONCE: usize = 100;
const GATEWAYS: usize = 4;
const WITHDRAWALS: u16 = 200;

/// Resident memory of this process in MiB.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or_default();
    pages * 4_096 / (1 << 20)
}

/// Processor time that this process has used.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .split(' ')
        .skip(13)
        .take(2)
        .filter_map(|f| f.parse().ok())
        .collect();
    Duration::from_millis(fields.iter().sum::<u64>() * 10)
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |q: f64| {
        // The index is below the length for any q below 1.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        times[(times.len() as f64 * q) as usize]
    };
    println!(
        "  {what}: p50 {:.2?}, p99 {:.2?}, max {:.2?} of {}",
        at(0.5),
        at(0.99),
        times[times.len() - 1],
        times.len()
    );
}

fn container_id(app: u16, container: u16) -> String {
    format!("{app:032x}{container:032x}")
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    if !available() {
        return;
    }
    for servers in [1, 3] {
        println!("{servers} server(s)");
        measure(&ZooKeeper::start_with(servers, FULL).await).await;
    }
}

async fn measure(zookeeper: &ZooKeeper) {
    let writer = zookeeper.writer("");
    assert!(writer.lead(Duration::from_secs(20)).await.expect("a registry"));
    let mut changes = Vec::new();
    for app in 0..APPS {
        for container in 0..CONTAINERS {
            let key = key(&format!("app{app}"), "1", &container_id(app, container));
            changes.push(RegistryChange::Put(key, endpoint(20_000 + container)));
        }
    }
    let begin = Instant::now();
    writer.apply(&changes).await.expect("written");
    println!("  write {} endpoints: {:.2?}", changes.len(), begin.elapsed());
    drop(changes);

    connect_and_load(zookeeper, false).await;
    let begin = Instant::now();
    let all_loads: Vec<RegistryChange> = loads(1);
    for batch in all_loads.chunks(LOADS_AT_ONCE) {
        writer.apply(batch).await.expect("written");
    }
    println!("  write {} loads: {:.2?}", all_loads.len(), begin.elapsed());
    connect_and_load(zookeeper, true).await;
    let begin = Instant::now();
    let held = writer.published().await.expect("read").endpoints.len();
    println!("  the writer reads {held} endpoints: {:.2?}", begin.elapsed());

    time_changes(zookeeper, &writer, None).await;
    time_changes(zookeeper, &writer, Some(Duration::from_secs(10))).await;
    withdrawals(zookeeper, &writer).await;
}

/// A load of each endpoint, another one for each `cpu`.
fn loads(cpu: u32) -> Vec<RegistryChange> {
    let of = |app: u16, container: u16| {
        let key = key(&format!("app{app}"), "1", &container_id(app, container));
        RegistryChange::Load(key.load_key(), load("eu", Some(cpu)))
    };
    let apps = (0..APPS).flat_map(|app| (0..CONTAINERS).map(move |container| (app, container)));
    apps.map(|(app, container)| of(app, container)).collect()
}

async fn connect_and_load(zookeeper: &ZooKeeper, has_loads: bool) {
    let what = if has_loads { "with loads" } else { "without loads" };
    let (mut loads, mut behind) = (Vec::new(), Vec::new());
    let used = processor();
    for i in 0..5 {
        let reader = zookeeper.reader("");
        let before = resident();
        let begin = Instant::now();
        let mut mirror = Mirror::new(&reader);
        mirror.until("the snapshot", |m| m.snapshots == 1).await;
        loads.push(begin.elapsed());
        assert_eq!(mirror.content.endpoints.len(), usize::from(APPS * CONTAINERS));
        if has_loads {
            mirror
                .until("the loads", |m| m.content.loads.len() == m.content.endpoints.len())
                .await;
            behind.push(begin.elapsed());
        }
        if i == 0 {
            println!(
                "  memory of two copies of it: {} MiB",
                resident().saturating_sub(before)
            );
        }
    }
    println!("  processor time per start {what}: {:.2?}", (processor() - used) / 5);
    show(&format!("connect and load 30,000 endpoints {what}"), loads);
    if has_loads {
        show("until their loads are there too", behind);
    }
}

/// Changes of endpoints, each until it is heard; all loads are written anew in each `period` beside them.
async fn time_changes(zookeeper: &ZooKeeper, writer: &ZooKeeperWriter, period: Option<Duration>) {
    let busy = async {
        let Some(period) = period else {
            return std::future::pending().await;
        };
        for cpu in 2.. {
            let all = loads(cpu);
            let count = u32::try_from(all.len().div_ceil(LOADS_AT_ONCE)).expect("few");
            let mut pace = tokio::time::interval(period / count);
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for batch in all.chunks(LOADS_AT_ONCE) {
                pace.tick().await;
                writer.apply(batch).await.expect("written");
            }
        }
    };
    tokio::select! {
        () = busy => {}
        () = endpoint_changes(zookeeper, writer, period.map_or("", |_| ", all loads written every 10 s beside it")) => {}
    }
}

async fn endpoint_changes(zookeeper: &ZooKeeper, writer: &ZooKeeperWriter, beside: &str) {
    let reader = zookeeper.reader("");
    let mut mirror = Mirror::new(&reader);
    mirror.until("the snapshot", |m| m.snapshots == 1).await;
    let (mut calls, mut seen) = (Vec::new(), Vec::new());
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    for i in 0..WRITES {
        pace.tick().await;
        let key = key(&format!("app{}", i * 7), "1", "moving");
        writer
            .apply(&[RegistryChange::Remove(key.clone())])
            .await
            .expect("written");
        mirror
            .until("it to be gone", |m| !m.content.endpoints.contains_key(&key))
            .await;
        let begin = Instant::now();
        let write = async {
            let change = [RegistryChange::Put(key.clone(), endpoint(1_024 + i))];
            writer.apply(&change).await.expect("written");
            begin.elapsed()
        };
        let hear = async {
            mirror
                .until("the change", |m| m.content.endpoints.contains_key(&key))
                .await;
            begin.elapsed()
        };
        let (call, heard) = tokio::join!(write, hear);
        calls.push(call);
        seen.push(heard);
    }
    show(&format!("apply one change{beside}"), calls);
    show(&format!("from the call of apply to the change heard{beside}"), seen);
}

async fn withdrawals(zookeeper: &ZooKeeper, writer: &ZooKeeperWriter) {
    // Withdrawals, acknowledged by several gateways that say at once what they have applied.
    let mut gateways = Vec::new();
    for i in 0..GATEWAYS {
        let reader = zookeeper.reader("");
        gateways.push(tokio::spawn(async move {
            let mut mirror = Mirror::new(&reader);
            loop {
                mirror.hear().await;
                let ack = Acknowledgement {
                    applied: mirror.content.revision,
                    draining: vec![],
                };
                reader.acknowledge(&format!("gw-{i}"), &ack).await.ok();
            }
        }));
    }
    while writer.acknowledgements().await.expect("read").len() < GATEWAYS {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut times = Vec::new();
    for i in 0..WITHDRAWALS {
        let begin = Instant::now();
        let change = [RegistryChange::Remove(key(&format!("app{}", i * 7), "1", "moving"))];
        let revision = writer.apply(&change).await.expect("written");
        while writer
            .acknowledgements()
            .await
            .expect("read")
            .values()
            .any(|ack| ack.applied < revision)
        {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        times.push(begin.elapsed());
    }
    show("withdraw, acknowledged by 4 gateways", times);
    for gateway in gateways {
        gateway.abort();
    }
}
