//! What the registry in ZooKeeper costs: loading 30,000 endpoints, and the way of a change to a gateway.
//!
//! `cargo bench -p caas-backends --bench registry` prints the figures, for one server and for three.

#[path = "../tests/registry_support/mod.rs"]
mod registry_support;

use std::time::{Duration, Instant};

use model::contract::registry::{Mirror, endpoint, key};
use model::registry::{Acknowledgement, RegistryChange, RegistryReader, RegistryWriter};
use registry_support::{ZooKeeper, available};

const APPS: u16 = 10_000;
const CONTAINERS: u16 = 3;
const WRITES: u16 = 1_000;
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

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    if !available() {
        return;
    }
    for servers in [1, 3] {
        println!("{servers} server(s)");
        measure(&ZooKeeper::start(servers).await).await;
    }
}

async fn measure(zookeeper: &ZooKeeper) {
    let writer = zookeeper.writer("");
    assert!(writer.lead(Duration::from_secs(20)).await.expect("a registry"));
    let mut changes = Vec::new();
    for app in 0..APPS {
        for container in 0..CONTAINERS {
            let id = format!("{app:032x}{container:032x}");
            let key = key(&format!("app{app}"), "1", &id);
            changes.push(RegistryChange::Put(key, endpoint(20_000 + container)));
        }
    }
    let begin = Instant::now();
    writer.apply(&changes).await.expect("written");
    println!("  write {} endpoints: {:.2?}", changes.len(), begin.elapsed());
    drop(changes);

    let mut loads = Vec::new();
    let used = processor();
    for i in 0..5 {
        let reader = zookeeper.reader("");
        let before = resident();
        let begin = Instant::now();
        let mut mirror = Mirror::new(&reader);
        mirror.until("the snapshot", |m| m.snapshots == 1).await;
        loads.push(begin.elapsed());
        assert_eq!(mirror.content.endpoints.len(), usize::from(APPS * CONTAINERS));
        if i == 0 {
            println!(
                "  memory of two copies of it: {} MiB",
                resident().saturating_sub(before)
            );
        }
    }
    println!("  processor time per load: {:.2?}", (processor() - used) / 5);
    show("connect and load 30,000 endpoints", loads);

    let reader = zookeeper.reader("");
    let mut mirror = Mirror::new(&reader);
    mirror.until("the snapshot", |m| m.snapshots == 1).await;
    let (mut calls, mut seen) = (Vec::new(), Vec::new());
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    for i in 0..WRITES {
        pace.tick().await;
        let key = key(&format!("app{}", i * 7), "1", "moving");
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
    show("apply one change", calls);
    show("from the call of apply to the change heard", seen);

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
