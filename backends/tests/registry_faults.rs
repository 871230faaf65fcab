//! Three ZooKeeper servers that are killed while the registry is written and followed.

#![allow(clippy::unwrap_used)]

mod registry_support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::contract::registry::{self as contract, Mirror, config, endpoint, key};
use model::registry::{
    Acknowledgement, Endpoint, EntryKey, RegistryChange, RegistryReader, RegistryRevision, RegistryWriter,
};
use rand::{RngExt as _, SeedableRng as _};
use registry_support::{ZooKeeper, available};

/// How long members are killed while writes go on, at least; longer where the machine is too busy for [`KILLS`] and
/// [`WRITES`] in that time.
const STORM: Duration = Duration::from_secs(20);
const KILLS: usize = 4;
const WRITES: usize = 200;
/// Nothing that is awaited here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes until it is written, and known to be.
async fn write(writer: &dyn RegistryWriter, changes: &[RegistryChange]) -> RegistryRevision {
    let end = Instant::now() + PATIENCE;
    loop {
        if writer.lead(Duration::from_secs(5)).await.unwrap_or(false)
            && let Ok(revision) = writer.apply(changes).await
        {
            return revision;
        }
        assert!(Instant::now() < end, "no write got through for {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn truth(endpoints: &BTreeMap<EntryKey, Endpoint>, mirror: &Mirror) -> (usize, usize, usize) {
    let got = &mirror.content.endpoints;
    let missing = endpoints.keys().filter(|k| !got.contains_key(*k)).count();
    let ghost = got.keys().filter(|k| !endpoints.contains_key(*k)).count();
    let stale = endpoints
        .iter()
        .filter(|(k, v)| got.get(*k).is_some_and(|g| g != *v))
        .count();
    (missing, ghost, stale)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_zookeeper_loses_nothing_when_servers_are_killed() {
    if !available() {
        return;
    }
    let mut zookeeper = ZooKeeper::start(3).await;
    let reader = zookeeper.reader("/t");
    let writer = zookeeper.writer("/t");
    let mut rng = rand::rngs::SmallRng::seed_from_u64(7);
    let mut wanted = BTreeMap::new();
    let changes: Vec<RegistryChange> = (0..2_000)
        .map(|i| {
            let key = key(&format!("app{i}"), "1", "c0");
            wanted.insert(key.clone(), endpoint(20_000));
            RegistryChange::Put(key, endpoint(20_000))
        })
        .collect();
    let first = write(&writer, &changes).await;
    let mut mirror = Mirror::new(&reader);
    mirror.reach(first).await;
    reader
        .acknowledge("gw", &Acknowledgement::default())
        .await
        .expect("acknowledged");

    let begin = Instant::now();
    let mut next_kill = begin + Duration::from_secs(2);
    let (mut down, mut kills, mut writes) = (None, 0, 0);
    let mut pace = tokio::time::interval(Duration::from_millis(11));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while begin.elapsed() < STORM || kills < KILLS || writes < WRITES {
        let spent = begin.elapsed();
        assert!(spent < STORM + PATIENCE, "{kills} kills, {writes} writes in {spent:?}");
        pace.tick().await;
        let key = key(
            &format!("app{}", rng.random_range(0..2_000)),
            "1",
            &format!("c{}", rng.random_range(0..3)),
        );
        let change = if rng.random_bool(0.3) {
            wanted.remove(&key);
            RegistryChange::Remove(key)
        } else {
            let endpoint = endpoint(rng.random_range(1..60_000));
            wanted.insert(key.clone(), endpoint);
            RegistryChange::Put(key, endpoint)
        };
        let changes = [change];
        tokio::select! {
            _ = write(&writer, &changes) => {}
            () = async { loop { mirror.hear().await } } => {}
        }
        writes += 1;
        if Instant::now() > next_kill {
            // The one killed before comes back first: two of three are always there, or soon.
            if let Some(i) = down.take() {
                zookeeper.start_server(i);
                zookeeper.serves(i).await;
            }
            let victim = kills % 3;
            zookeeper.kill_server(victim);
            down = Some(victim);
            kills += 1;
            next_kill = Instant::now() + Duration::from_secs(3);
        }
    }
    if let Some(i) = down {
        zookeeper.start_server(i);
        zookeeper.serves(i).await;
    }
    let last = write(
        &writer,
        &[RegistryChange::Config(
            "end".parse().expect("valid"),
            config("end.example.com"),
        )],
    )
    .await;
    mirror.reach(last).await;
    println!(
        "{writes} writes, {kills} kills, {} disconnects, {} snapshots, {} endpoints",
        mirror.disconnects,
        mirror.snapshots,
        wanted.len()
    );
    assert!(mirror.disconnects >= 1, "no kill hit the reader's server");
    assert_eq!(truth(&wanted, &mirror), (0, 0, 0), "missing, ghost, stale");
    assert_eq!(writer.published().await.expect("read").endpoints, wanted);
    let end = Instant::now() + PATIENCE;
    while !writer
        .acknowledgements()
        .await
        .is_ok_and(|known| known.contains_key("gw"))
    {
        assert!(Instant::now() < end, "the acknowledgement did not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(reader.resync_differences(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_zookeeper_all_servers_killed_and_back() {
    if !available() {
        return;
    }
    let mut zookeeper = ZooKeeper::start(3).await;
    let (reader, writer) = (zookeeper.reader(""), zookeeper.writer(""));
    let put = |i: u16| RegistryChange::Put(key("hello", "1", &format!("c{i}")), endpoint(20_000 + i));
    let first = write(&writer, &[put(0), put(1)]).await;
    let mut mirror = Mirror::new(&reader);
    mirror.reach(first).await;
    for i in 0..3 {
        zookeeper.kill_server(i);
    }
    mirror.until("the disconnection", |m| m.disconnects == 1).await;
    assert_eq!(mirror.content.endpoints.len(), 2, "what was heard stays");
    for i in 0..3 {
        zookeeper.start_server(i);
    }
    for i in 0..3 {
        zookeeper.serves(i).await;
    }
    mirror.until("a snapshot", |m| m.snapshots == 2).await;
    assert_eq!(mirror.content.endpoints.len(), 2);
    let last = write(&writer, &[RegistryChange::Remove(key("hello", "1", "c0")), put(2)]).await;
    mirror.reach(last).await;
    let expected = [1, 2].map(|i| (key("hello", "1", &format!("c{i}")), endpoint(20_000 + i)));
    assert_eq!(mirror.content.endpoints, BTreeMap::from(expected));
    assert_eq!(mirror.disconnects, 1, "told once");
}

/// Readers that start while instances of a large tree are replaced, and while servers are killed: none ever sees an app without
/// an endpoint, and each ends with exactly what was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_zookeeper_a_large_tree_is_loaded_while_it_changes() {
    const APPS: usize = 2_000;
    const AT_ONCE: usize = 10;
    const READERS: usize = 4;
    if !available() {
        return;
    }
    let mut zookeeper = ZooKeeper::start(3).await;
    let writer = zookeeper.writer("/t");
    let instance = |app: usize, number: usize| key(&format!("app{app}"), "1", &format!("c{number}"));
    let puts: Vec<RegistryChange> = (0..APPS)
        .map(|app| RegistryChange::Put(instance(app, 0), endpoint(20_000)))
        .collect();
    write(&writer, &puts).await;
    let enough = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let replacing = {
        let enough = Arc::clone(&enough);
        tokio::spawn(async move {
            let mut rng = rand::rngs::SmallRng::seed_from_u64(11);
            let mut numbers = vec![0; APPS];
            let mut last = RegistryRevision::default();
            while !enough.load(std::sync::atomic::Ordering::Relaxed) {
                let mut changes = Vec::new();
                let first = rng.random_range(0..=APPS - AT_ONCE);
                for (app, number) in numbers.iter_mut().enumerate().skip(first).take(AT_ONCE) {
                    changes.push(RegistryChange::Remove(instance(app, *number)));
                    *number += 1;
                    changes.push(RegistryChange::Put(instance(app, *number), endpoint(20_000)));
                }
                last = write(&writer, &changes).await;
            }
            let wanted = numbers.iter().enumerate().map(|(app, number)| instance(app, *number));
            (wanted.map(|key| (key, endpoint(20_000))).collect(), last)
        })
    };
    let mut readers = Vec::new();
    let mut down = None;
    for round in 0..READERS {
        let reader = zookeeper.reader("/t");
        let mut mirror = Mirror::new(&reader);
        if round % 2 == 1 {
            zookeeper.kill_server(round % 3);
            down = Some(round % 3);
        }
        mirror.until("a snapshot", |m| m.snapshots > 0).await;
        let apps: std::collections::BTreeSet<_> = mirror.content.endpoints.keys().map(|key| &key.app).collect();
        assert_eq!(apps.len(), APPS, "reader {round}: apps with an endpoint");
        readers.push((reader, mirror));
        if let Some(i) = down.take() {
            zookeeper.start_server(i);
            zookeeper.serves(i).await;
        }
    }
    enough.store(true, std::sync::atomic::Ordering::Relaxed);
    let (wanted, last): (BTreeMap<EntryKey, Endpoint>, RegistryRevision) = replacing.await.expect("no panic");
    for (round, (reader, mirror)) in readers.iter_mut().enumerate() {
        mirror.reach(last).await;
        assert_eq!(
            truth(&wanted, mirror),
            (0, 0, 0),
            "reader {round}: missing, ghost, stale"
        );
        assert_eq!(reader.resync_differences(), 0);
    }
}

/// With three servers reader and writer sit at different ones, and the reader's may lag.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_zookeeper_ensemble_keeps_the_order() {
    if !available() {
        return;
    }
    let zookeeper = ZooKeeper::start(3).await;
    for round in 0..3 {
        let chroot = format!("/r{round}");
        let (reader, writer) = zookeeper.patient(&chroot);
        contract::a_revision_is_complete(Arc::new(reader), Arc::new(writer)).await;
        let chroot = format!("/g{round}");
        let (reader, writer) = zookeeper.patient(&chroot);
        contract::a_replacement_leaves_no_gap(Arc::new(reader), Arc::new(writer)).await;
    }
}
