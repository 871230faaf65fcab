//! The registries against the contract, and what is ZooKeeper's own.

#![allow(clippy::unwrap_used)]

mod registry_support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caas_backends::registry::zookeeper::{Address, Options, ZooKeeperReader, ZooKeeperWriter};
use caas_backends::registry::{MemoryRegistry, open_reader, open_writer};
use model::contract::registry::{self as contract, Mirror, config, endpoint, key};
use model::registry::{
    Acknowledgement, RegistryChange, RegistryError, RegistryReader, RegistryRevision, RegistryWriter,
};
use registry_support::{Wire, ZooKeeper, available, quick};
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions};

const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());

macro_rules! contract {
    ($($name:ident)*) => {
        mod registry_memory {
            use super::*;
            $(
                #[tokio::test]
                async fn $name() {
                    let registry = MemoryRegistry::new();
                    contract::$name(registry.clone(), registry).await;
                }
            )*
        }

        /// One server, each part of the contract in its own chroot.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn registry_zookeeper_keeps_the_contract() {
            if !available() {
                return;
            }
            let zookeeper = ZooKeeper::start(1).await;
            $(
                let chroot = concat!("/some/", stringify!($name));
                println!("{chroot}");
                let (reader, writer) = (Arc::new(zookeeper.reader(chroot)), Arc::new(zookeeper.writer(chroot)));
                contract::$name(reader, writer).await;
            )*
        }
    };
}

contract! {
    changes_are_seen
    a_follower_starts_with_a_snapshot
    apply_is_idempotent
    loads_are_seen
    certificates_are_seen
    acknowledgements_come_and_go
    a_lagging_reader_hears_the_state
    a_replacement_leaves_no_gap
    a_revision_is_complete
}

async fn raw(zookeeper: &ZooKeeper) -> Client {
    Client::connect(&zookeeper.servers()).await.expect("connected")
}

async fn text(client: &Client, path: &str) -> String {
    let (data, _) = client.get_data(path).await.expect(path);
    String::from_utf8(data).expect("text")
}

/// The paths and data are those that any ZooKeeper client can read and write; what it writes wrongly is left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_zookeeper_format_is_for_everyone() {
    if !available() {
        return;
    }
    let zookeeper = ZooKeeper::start(1).await;
    let (reader, writer) = (zookeeper.reader(""), zookeeper.writer(""));
    let client = raw(&zookeeper).await;
    assert!(writer.lead(Duration::from_secs(10)).await.expect("a registry"));

    let hello = key("hello", "1.0", "c1");
    let puts = [
        RegistryChange::Put(hello.clone(), endpoint(20_000)),
        RegistryChange::Config(hello.app.clone(), config("hello.example.com")),
    ];
    let revision = writer.apply(&puts).await.expect("written");
    assert_eq!(
        text(&client, "/caas/service/address/hello/1.0/c1").await,
        "10.0.0.1:20000"
    );
    let json: serde_json::Value =
        serde_json::from_str(&text(&client, "/caas/service/config/hello").await).expect("JSON");
    assert_eq!(json["domains"][0], "hello.example.com");
    let (_, stat) = client.get_data("/caas/service/revision").await.expect("there");
    assert_eq!(stat.mzxid, revision.0, "the revision is the id of the transaction");

    let mut mirror = Mirror::new(&reader);
    mirror.reach(revision).await;
    let ack = Acknowledgement {
        applied: revision,
        draining: vec![],
    };
    reader.acknowledge("gw-1", &ack).await.expect("acknowledged");
    assert_eq!(
        text(&client, "/caas/gateways/gw-1").await,
        format!(r#"{{"applied":{},"draining":[]}}"#, revision.0)
    );

    // Somebody else's client: one good entry among garbage.
    for (path, data) in [
        ("/caas/service/address/UPPER", ""),
        ("/caas/service/address/UPPER/1", ""),
        ("/caas/service/address/UPPER/1/c1", "10.0.0.1:80"),
        ("/caas/service/address/hello/1.0/bad1", "not an address"),
        ("/caas/service/address/hello/1.0/bad2", "10.0.0.1:0"),
        ("/caas/service/address/hello/1.0/bad3", ""),
        ("/caas/service/address/foreign", ""),
        ("/caas/service/address/foreign/2", ""),
        ("/caas/service/address/foreign/2/c9", "10.0.0.9:9000"),
        ("/caas/service/address/foreign/2/c9/below", "10.0.0.9:9000"),
        ("/caas/service/config/Bad--Name", "{}"),
        ("/caas/service/config/foreign", "{"),
        ("/caas/service/unknown", "x"),
        ("/caas/gateways/left-behind", "{}"),
    ] {
        client.create(path, data.as_bytes(), &PERSISTENT).await.expect(path);
    }
    let broken = b"{\"domains\":[\"NOT A DOMAIN\"]}";
    client
        .set_data("/caas/service/config/hello", broken, None)
        .await
        .expect("set");
    let expected = BTreeMap::from([
        (hello.clone(), endpoint(20_000)),
        (key("foreign", "2", "c9"), "10.0.0.9:9000".parse().expect("valid")),
    ]);
    mirror
        .until("the foreign entry", |m| m.content.endpoints == expected)
        .await;
    assert_eq!(
        mirror.content.configs,
        BTreeMap::from([(hello.app.clone(), config("hello.example.com"))]),
        "the last good configuration stays"
    );
    let mut fresh = Mirror::new(&zookeeper.reader(""));
    fresh.until("a snapshot", |m| m.snapshots == 1).await;
    assert_eq!(fresh.content.endpoints, expected);
    assert!(fresh.content.configs.is_empty(), "it never saw the good one");

    let published = writer.published().await.expect("read");
    assert_eq!(published.endpoints, expected);
    assert_eq!(
        writer
            .acknowledgements()
            .await
            .expect("read")
            .into_keys()
            .collect::<Vec<_>>(),
        ["gw-1"],
        "a node that no session owns is no gateway"
    );

    // Garbage at a place of ours is overwritten, what has children is emptied, empty parents go.
    let revision = writer
        .apply(&[
            RegistryChange::Put(key("hello", "1.0", "bad1"), endpoint(20_001)),
            RegistryChange::Remove(key("foreign", "2", "c9")),
            RegistryChange::Config(hello.app.clone(), config("other.example.com")),
        ])
        .await
        .expect("written");
    mirror.reach(revision).await;
    assert_eq!(
        mirror.content.endpoints,
        BTreeMap::from([
            (hello.clone(), endpoint(20_000)),
            (key("hello", "1.0", "bad1"), endpoint(20_001))
        ])
    );
    assert_eq!(mirror.content.configs[&hello.app], config("other.example.com"));
    let last = writer
        .apply(&["bad1", "bad2", "bad3", "c1"].map(|c| RegistryChange::Remove(key("hello", "1.0", c))))
        .await
        .expect("written");
    mirror.reach(last).await;
    let apps = client.list_children("/caas/service/address").await.expect("listed");
    assert!(!apps.contains(&"hello".to_owned()), "{apps:?}");
}

/// One leader; another takes over when its session ends, and what the first had on its way is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_zookeeper_only_the_leader_writes() {
    if !available() {
        return;
    }
    let zookeeper = ZooKeeper::start(1).await;
    let wire = Wire::to(&zookeeper).await;
    let first = Arc::new(ZooKeeperWriter::new(
        Address::parse(&wire.url("/f")).expect("sound"),
        quick(),
    ));
    let second = zookeeper.writer("/f");
    let put = |port| [RegistryChange::Put(key("hello", "1", "c1"), endpoint(port))];

    assert!(matches!(first.apply(&put(1)).await, Err(RegistryError::NotLeader)));
    assert!(first.lead(Duration::from_secs(10)).await.expect("a registry"));
    assert!(first.lead(Duration::ZERO).await.expect("it does already"));
    first.apply(&put(1_001)).await.expect("written");
    assert!(!second.lead(Duration::from_millis(300)).await.expect("a registry"));
    assert!(matches!(second.apply(&put(2)).await, Err(RegistryError::NotLeader)));

    // The first is cut off with a write on its way; nothing tells it so.
    wire.freeze(true);
    let late = {
        let first = Arc::clone(&first);
        tokio::spawn(async move { first.apply(&put(1_002)).await })
    };
    let cut = Instant::now();
    assert!(second.lead(Duration::from_secs(20)).await.expect("a registry"));
    let took = cut.elapsed();
    println!("takeover after {took:?}");
    assert!(
        took < quick().session_timeout + Duration::from_millis(1_500),
        "{took:?}"
    );
    let revision = second.apply(&put(2_001)).await.expect("written");
    wire.freeze(false);

    assert!(
        late.await.expect("no panic").is_err(),
        "the late write counts as failed"
    );
    assert!(first.apply(&put(1_003)).await.is_err());
    let mut mirror = Mirror::new(&zookeeper.reader("/f"));
    mirror.reach(revision).await;
    assert_eq!(mirror.content.endpoints[&key("hello", "1", "c1")], endpoint(2_001));

    // It goes: the first, queued anew, leads at once.
    let waiting = {
        let first = Arc::clone(&first);
        tokio::spawn(async move {
            let end = Instant::now() + Duration::from_secs(20);
            loop {
                match first.lead(Duration::from_secs(5)).await {
                    Ok(true) => break,
                    _ => assert!(Instant::now() < end, "it never leads again"),
                }
            }
        })
    };
    drop(second);
    waiting.await.expect("it leads");
    let revision = first.apply(&put(1_004)).await.expect("written");
    mirror.reach(revision).await;
    assert_eq!(mirror.content.endpoints[&key("hello", "1", "c1")], endpoint(1_004));
}

/// A leader that does not know that its lock is gone: the write itself says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_zookeeper_a_write_without_the_lock_is_refused() {
    if !available() {
        return;
    }
    let zookeeper = ZooKeeper::start(1).await;
    let (first, second) = (zookeeper.writer(""), zookeeper.writer(""));
    let client = raw(&zookeeper).await;
    assert!(first.lead(Duration::from_secs(10)).await.expect("a registry"));
    let locks = "/caas/locks/registry-sync";
    for name in client.list_children(locks).await.expect("listed") {
        client.delete(&format!("{locks}/{name}"), None).await.expect("deleted");
    }
    assert!(second.lead(Duration::from_secs(10)).await.expect("a registry"));
    let put = [RegistryChange::Put(key("hello", "1", "c1"), endpoint(80))];
    assert!(matches!(first.apply(&put).await, Err(RegistryError::NotLeader)));
    assert!(second.published().await.expect("read").endpoints.is_empty());
    assert!(!first.lead(Duration::from_millis(300)).await.expect("a registry"));
    second.apply(&put).await.expect("written");
}

/// A resync in the middle of writes counts no change that is merely under way as a difference, and loses none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_zookeeper_resync_finds_nothing_when_all_is_well() {
    if !available() {
        return;
    }
    let zookeeper = ZooKeeper::start(1).await;
    let options = Options {
        resync_every: Duration::from_millis(200),
        ..quick()
    };
    let reader = ZooKeeperReader::new(Address::parse(&zookeeper.url("")).expect("sound"), options);
    let writer = zookeeper.writer("");
    assert!(writer.lead(Duration::from_secs(10)).await.expect("a registry"));
    let mut mirror = Mirror::new(&reader);
    let mut last = RegistryRevision::default();
    let mut i = 0_u16;
    while mirror.snapshots < 8 {
        let (new, old) = (format!("c{i}"), format!("c{}", i.wrapping_sub(50)));
        last = writer
            .apply(&[
                RegistryChange::Put(key("hello", "1", &new), endpoint(1_024 + i)),
                RegistryChange::Remove(key("hello", "1", &old)),
            ])
            .await
            .expect("written");
        i += 1;
        mirror.reach(last).await;
    }
    mirror.reach(last).await;
    assert_eq!(
        mirror.content.endpoints,
        writer.published().await.expect("read").endpoints
    );
    assert_eq!(reader.resync_differences(), 0);
    assert!(i > 8);
}

/// A gateway's acknowledgement outlives its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_zookeeper_acknowledgement_comes_back_with_the_session() {
    if !available() {
        return;
    }
    let zookeeper = ZooKeeper::start(1).await;
    let wire = Wire::to(&zookeeper).await;
    let reader = ZooKeeperReader::new(Address::parse(&wire.url("")).expect("sound"), quick());
    let writer = zookeeper.writer("");
    assert!(writer.lead(Duration::from_secs(10)).await.expect("a registry"));
    let ack = Acknowledgement {
        applied: RegistryRevision(3),
        draining: vec!["c7".parse().expect("valid")],
    };
    // Not connected yet: kept, and written before the first snapshot.
    assert!(matches!(
        reader.acknowledge("gw", &ack).await,
        Err(RegistryError::Unavailable(_))
    ));
    let mut mirror = Mirror::new(&reader);
    mirror.until("a snapshot", |m| m.snapshots == 1).await;
    let expected = BTreeMap::from([("gw".to_owned(), ack)]);
    assert_eq!(writer.acknowledgements().await.expect("read"), expected);

    wire.freeze(true);
    mirror.until("the cut", |m| m.disconnects == 1).await;
    wire.freeze(false);
    mirror.until("a snapshot", |m| m.snapshots == 2).await;
    assert_eq!(mirror.disconnects, 1);
    // The old session's end must not take the new node with it.
    let end = Instant::now() + quick().session_timeout * 2;
    while Instant::now() < end {
        assert_eq!(writer.acknowledgements().await.expect("read"), expected);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registry_zookeeper_nobody_there_is_told_not_hidden() {
    let reader = open_reader("zk://127.0.0.1:1").expect("sound");
    let writer = open_writer("zk://127.0.0.1:1").expect("sound");
    let mut mirror = Mirror::new(&*reader);
    mirror.until("a disconnection", |m| m.disconnects == 1).await;
    let told = tokio::time::timeout(Duration::from_secs(1), mirror.hear()).await;
    assert!(told.is_err(), "told again");
    for error in [
        writer
            .lead(Duration::from_secs(1))
            .await
            .map(|_| ())
            .expect_err("nobody"),
        writer.published().await.map(|_| ()).expect_err("nobody"),
        writer.acknowledgements().await.map(|_| ()).expect_err("nobody"),
    ] {
        assert!(matches!(error, RegistryError::Unavailable(_)), "{error}");
    }
}
