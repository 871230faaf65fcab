//! From the registry to requests: propagation, acknowledged withdrawal, the mass-vanish guard, the snapshot file.

use std::time::{Duration, Instant};

use model::AppConfig;
use model::registry::{RegistryChange, RegistryEvent};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::*;

async fn status(gateway: &Gateway, host: &str) -> u16 {
    gateway.get(host, "/").await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn if_following_fails_the_routes_stay_and_their_age_is_told() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    gateway
        .feed
        .differences
        .store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
    gateway.feed.say(&changes(2, Vec::new()));
    let start = Instant::now();
    while gateway.metric("caas_gateway_registry_stale_seconds").await <= 0.0 {
        assert!(start.elapsed() < LIMIT);
    }
    assert_eq!(status(&gateway, "hello.localhost").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_obeyed_at_once() {
    let (one, two) = (Recorder::start("one").await, Recorder::start("two").await);
    let gateway = Gateway::hello(&[one.at]).await;
    let mut took = Vec::new();
    for round in 0..50i64 {
        let (new, old, want) = if round % 2 == 0 {
            (two.at, "c0", "two")
        } else {
            (one.at, "d0", "one")
        };
        let next = if old == "c0" { "d0" } else { "c0" };
        let start = Instant::now();
        gateway.feed.say(&changes(
            round + 2,
            vec![put("hello", "1", next, new), remove("hello", "1", old)],
        ));
        while gateway.get("hello.localhost", "/").await.body != want {
            assert!(start.elapsed() < LIMIT);
        }
        took.push(start.elapsed());
    }
    took.sort();
    println!(
        "change to obeyed, a request included: p50 {:?}, max {:?}",
        took[25], took[49]
    );
    assert!(took[25] < Duration::from_millis(50), "{took:?}");
    assert!(took[49] < Duration::from_millis(500), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_is_acknowledged_with_what_still_drains() {
    let app = Recorder::start("app").await;
    let (slow, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        // Answers when the test says more.
        let _ = read_request(&mut stream, &mut buffer).await;
    })
    .await;
    let gateway = Gateway::with(
        config(),
        &[("hello", "1", "slow", slow)],
        &[("hello", AppConfig::default())],
    )
    .await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client
        .write_all(b"GET /slow HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
        .await
        .unwrap();
    let deadline = Instant::now() + LIMIT;
    // The app counts it, and its endpoint a moment later.
    let counted = |body: &str| body.matches("\"in_flight\":1").count();
    while counted(&gateway.admin("/routes").await.body) < 2 {
        assert!(Instant::now() < deadline, "the request is under way");
    }
    gateway
        .tell(
            changes(
                5,
                vec![put("hello", "2", "quick", app.at), remove("hello", "1", "slow")],
            ),
            5,
        )
        .await;
    let ack = gateway.feed.last_ack().expect("told");
    assert_eq!(ack.draining, ["slow".parse().unwrap()], "it has an open request");
    for _ in 0..5 {
        assert_eq!(
            gateway.get("hello.localhost", "/").await.body,
            "app",
            "no new request goes there"
        );
    }
    drop(client);
    until("the drained container is told", || {
        gateway
            .feed
            .last_ack()
            .is_some_and(|a| a.applied.0 == 5 && a.draining.is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_are_shown_whenever_they_come() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let load = |container: &str, region: &str, cpu: u32| {
        let text = format!(
            r#"{{"host":"h1","region":"{region}","cpu_milli":{cpu},"memory_bytes":1,"memory_limit_bytes":2,"at":3}}"#
        );
        let load = model::Load::parse(text.as_bytes()).unwrap();
        (
            RegistryChange::Load(key("hello", "1", container).load_key(), load),
            text,
        )
    };
    let shown = async || gateway.admin("/routes?app=hello").await.body;
    assert!(!shown().await.contains("\"load\""), "{}", shown().await);
    // One for an endpoint that is there, one for an endpoint that comes later, one for nobody.
    let (first, first_text) = load("c0", "eu", 120);
    let (later, later_text) = load("c1", "us", 7);
    let (nobody, _) = load("c9", "us", 9);
    gateway.tell(changes(2, vec![first, later, nobody]), 2).await;
    assert!(shown().await.contains(&first_text), "{}", shown().await);
    assert!(!shown().await.contains(&later_text), "{}", shown().await);
    gateway.tell(changes(3, vec![put("hello", "1", "c1", app.at)]), 3).await;
    assert!(shown().await.contains(&later_text), "{}", shown().await);
    let (moved, moved_text) = load("c0", "eu", 990);
    let gone = RegistryChange::LoadRemove(key("hello", "1", "c1").load_key());
    gateway.tell(changes(4, vec![moved, gone]), 4).await;
    let routes = shown().await;
    assert!(
        routes.contains(&moved_text) && !routes.contains(&later_text),
        "{routes}"
    );
    // A whole registry without loads takes them away.
    gateway.tell(snapshot(5, &[("hello", "1", "c0", app.at)], &[]), 5).await;
    assert!(!shown().await.contains("\"load\""), "{}", shown().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_new_after_an_acknowledgement() {
    // Under constant load, once a withdrawal without draining is acknowledged, the withdrawn upstream hears nothing more.
    let (one, two) = (Recorder::start("one").await, Recorder::start("two").await);
    let gateway = std::sync::Arc::new(
        Gateway::with(
            gateway::Config { workers: 2, ..config() },
            &[("hello", "1", "c0", one.at), ("hello", "1", "c1", two.at)],
            &[],
        )
        .await,
    );
    let stop = tokio_util::sync::CancellationToken::new();
    let mut clients = Vec::new();
    for _ in 0..6 {
        let (gateway, stop) = (std::sync::Arc::clone(&gateway), stop.clone());
        clients.push(tokio::spawn(async move {
            let mut client = TcpStream::connect(gateway.http).await.unwrap();
            while !stop.is_cancelled() {
                client
                    .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
                    .await
                    .unwrap();
                let answer = read_until(&mut client, "\r\n\r\n").await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
        }));
    }
    for round in 0..20i64 {
        let revision = 2 + round * 2;
        gateway.feed.say(&changes(revision, vec![remove("hello", "1", "c0")]));
        until("withdrawn and drained", || {
            gateway
                .feed
                .last_ack()
                .is_some_and(|a| a.applied.0 >= revision && a.draining.is_empty())
        })
        .await;
        let heard = one.count();
        for _ in 0..5 {
            assert_eq!(gateway.get("hello.localhost", "/").await.body, "two");
        }
        assert_eq!(one.count(), heard, "round {round}");
        gateway
            .feed
            .say(&changes(revision + 1, vec![put("hello", "1", "c0", one.at)]));
        let before = one.count();
        until("used again", || one.count() > before).await;
    }
    stop.cancel();
    for client in clients {
        client.await.expect("no request failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_registry_is_not_believed_at_once() {
    let (one, two) = (Recorder::start("one").await, Recorder::start("two").await);
    let short = gateway::Config { hold_s: 1, ..config() };
    let entries = [
        ("hello", "1", "c0", one.at),
        ("hello", "1", "c1", two.at),
        ("other", "1", "c2", one.at),
    ];
    let gateway = Gateway::with(short, &entries, &[]).await;
    gateway.feed.say(&RegistryEvent::Disconnected("gone".into()));
    let deadline = Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_registry_stale_seconds").await <= 0.0 {
        assert!(Instant::now() < deadline, "staleness shows");
    }
    assert_eq!(status(&gateway, "hello.localhost").await, 200);
    gateway.tell(snapshot(9, &[], &[]), 9).await;
    assert_eq!(
        gateway.feed.last_ack().expect("told").draining.len(),
        3,
        "what is held is not reported as gone"
    );
    assert_eq!(status(&gateway, "hello.localhost").await, 200, "held");
    assert_eq!(status(&gateway, "other.localhost").await, 200, "held");
    // An explicit withdrawal is obeyed at once.
    gateway.tell(changes(10, vec![remove("other", "1", "c2")]), 10).await;
    assert_eq!(status(&gateway, "other.localhost").await, 503);
    let deadline = Instant::now() + LIMIT;
    while status(&gateway, "hello.localhost").await == 200 {
        assert!(Instant::now() < deadline, "after its time it is believed");
    }
    assert_eq!(status(&gateway, "hello.localhost").await, 503, "still known");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_copy_is_worth_shows() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let metric = async |name: &str| gateway.metric(&format!("caas_gateway_{name}")).await;
    let count = "route_propagation_seconds_count";
    let before = metric(count).await;
    assert_eq!(metric("registry_stale_seconds").await, 0.0);
    assert_eq!(metric("registry_resync_differences_total").await, 0.0);
    gateway.feed.say(&RegistryEvent::Disconnected("gone".into()));
    let deadline = Instant::now() + LIMIT;
    while metric("registry_stale_seconds").await <= 0.0 {
        assert!(Instant::now() < deadline, "staleness shows");
    }
    assert_eq!(metric(count).await, before, "a disconnection is nothing to obey");
    gateway.feed.differences.store(3, std::sync::atomic::Ordering::Relaxed);
    gateway.tell(snapshot(9, &[("hello", "1", "c0", app.at)], &[]), 9).await;
    assert_eq!(metric("registry_stale_seconds").await, 0.0);
    assert_eq!(metric("registry_resync_differences_total").await, 3.0);
    assert_eq!(metric(count).await, before + 1.0);
    // It counts from when the registry said that there was something to read, not from when it had been read.
    let sum = "route_propagation_seconds_sum";
    let (before, slow) = (metric(sum).await, Duration::from_secs(100));
    let late = RegistryEvent::Changes {
        changes: vec![put("hello", "1", "c1", app.at)],
        revision: model::registry::RegistryRevision(10),
        heard: Instant::now().checked_sub(slow).unwrap(),
    };
    gateway.tell(late, 10).await;
    assert!(metric(sum).await - before >= slow.as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
async fn held_endpoints_that_refuse_or_whose_address_is_taken_are_let_go() {
    let (one, two) = (Recorder::start("one").await, Recorder::start("two").await);
    let dead = refusing().await;
    let gateway = Gateway::with(
        config(),
        &[("hello", "1", "c0", dead), ("other", "1", "c1", one.at)],
        &[],
    )
    .await;
    gateway
        .tell(
            snapshot(2, &[("new", "1", "c9", one.at), ("second", "1", "c8", two.at)], &[]),
            2,
        )
        .await;
    assert_eq!(
        status(&gateway, "other.localhost").await,
        503,
        "its address is another app's now"
    );
    assert_eq!(gateway.get("new.localhost", "/").await.body, "one");
    assert_eq!(status(&gateway, "hello.localhost").await, 502, "held, and refusing");
    let deadline = Instant::now() + LIMIT;
    while status(&gateway, "hello.localhost").await != 503 {
        assert!(Instant::now() < deadline, "then let go");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_app_is_unknown_again() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    gateway.tell(changes(2, vec![remove("hello", "1", "c0")]), 2).await;
    assert_eq!(status(&gateway, "hello.localhost").await, 503);
    gateway
        .tell(
            changes(3, vec![RegistryChange::ConfigRemove("hello".parse().unwrap())]),
            3,
        )
        .await;
    assert_eq!(status(&gateway, "hello.localhost").await, 404);
    // The other way round, too.
    let config = RegistryChange::Config("hello".parse().unwrap(), AppConfig::default());
    gateway
        .tell(changes(4, vec![config, put("hello", "1", "c0", app.at)]), 4)
        .await;
    assert_eq!(status(&gateway, "hello.localhost").await, 200);
    gateway
        .tell(
            changes(5, vec![RegistryChange::ConfigRemove("hello".parse().unwrap())]),
            5,
        )
        .await;
    assert_eq!(
        status(&gateway, "hello.localhost").await,
        200,
        "its endpoints still answer"
    );
    gateway.tell(changes(6, vec![remove("hello", "1", "c0")]), 6).await;
    assert_eq!(status(&gateway, "hello.localhost").await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_was_removed_while_the_registry_was_away_is_unknown_again() {
    let app = Recorder::start("app").await;
    let entries = [("hello", "1", "c0", app.at), ("other", "1", "c1", app.at)];
    let configs = [("hello", AppConfig::default()), ("other", AppConfig::default())];
    let gateway = Gateway::with(config(), &entries, &configs).await;
    gateway.tell(changes(2, vec![remove("hello", "1", "c0")]), 2).await;
    assert_eq!(status(&gateway, "hello.localhost").await, 503);
    gateway.tell(snapshot(3, &entries[1..], &configs[1..]), 3).await;
    assert_eq!(status(&gateway, "hello.localhost").await, 404);
    assert_eq!(status(&gateway, "other.localhost").await, 200);
    // What goes all at once may have been lost.
    gateway.tell(snapshot(4, &[], &[]), 4).await;
    assert_ne!(status(&gateway, "other.localhost").await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_changes_while_running() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let with_domain = |domains: &[&str]| AppConfig {
        domains: domains.iter().map(|d| (*d).to_owned()).collect(),
        ..AppConfig::default()
    };
    let config = |app: &str, domains: &[&str]| RegistryChange::Config(app.parse().unwrap(), with_domain(domains));
    gateway
        .tell(changes(2, vec![config("hello", &["a.example", "b.example"])]), 2)
        .await;
    assert_eq!(
        (status(&gateway, "a.example").await, status(&gateway, "b.example").await),
        (200, 200)
    );
    gateway
        .tell(changes(3, vec![config("thief", &["b.example", "c.example"])]), 3)
        .await;
    assert_eq!(
        status(&gateway, "b.example").await,
        200,
        "whoever has a domain keeps it"
    );
    assert_eq!(status(&gateway, "c.example").await, 503);
    gateway.tell(changes(4, vec![config("hello", &["a.example"])]), 4).await;
    assert_eq!(status(&gateway, "b.example").await, 503, "then it goes to the next");
    assert_eq!(status(&gateway, "a.example").await, 200);
    gateway
        .tell(changes(5, vec![config("hello", &[]), config("thief", &[])]), 5)
        .await;
    assert_eq!(
        (status(&gateway, "a.example").await, status(&gateway, "b.example").await),
        (404, 404)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_registry_serves_the_snapshot_file() {
    let dir = tempfile::tempdir().unwrap();
    let with_file = gateway::Config {
        snapshot_file: Some(dir.path().join("registry.json")),
        ..config()
    };
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello_with(with_file.clone(), &[app.at], AppConfig::default()).await;
    let file = dir.path().join("registry.json");
    until("the file is written", || file.exists()).await;
    drop(gateway);

    let gateway = Gateway::silent(with_file).await;
    assert_eq!(gateway.admin("/ready").await.status, 503);
    assert_eq!(gateway.admin("/live").await.status, 200);
    let start = Instant::now();
    gateway.feed.say(&RegistryEvent::Disconnected("not there".into()));
    while gateway.admin("/ready").await.status != 200 {
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    assert_eq!(gateway.get("hello.localhost", "/").await.body, "app");
    assert!(gateway.feed.last_ack().is_none(), "a file is nothing to acknowledge");
    gateway.tell(snapshot(7, &[("hello", "1", "c0", app.at)], &[]), 7).await;
    assert_eq!(gateway.get("hello.localhost", "/").await.body, "app");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_snapshot_file_is_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("registry.json");
    std::fs::write(&file, b"{\"endpoints\":{\"../x\":{}}}").unwrap();
    let gateway = Gateway::silent(gateway::Config {
        snapshot_file: Some(file),
        ..config()
    })
    .await;
    gateway.feed.say(&RegistryEvent::Disconnected("not there".into()));
    gateway.tell(snapshot(1, &[], &[]), 1).await;
    assert_eq!(gateway.admin("/ready").await.status, 200);
    assert_eq!(status(&gateway, "x.localhost").await, 404);
}
