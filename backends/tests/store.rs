//! The store's contract on SQLite and on MySQL (MariaDB), and what happens when the database goes away.

#[path = "store_support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use model::config::Protocol;
use model::store::{IntentOutcome, Store, StoreError};
use model::{EventKind, NewEvent, Timestamp};
use support::{MariaDb, fresh_database, handle, skipped};

/// The server to test on: the one named by the environment, or one of the test's own.
async fn server() -> Option<(Option<MariaDb>, String)> {
    if let Ok(base) = std::env::var("CAAS_TEST_MYSQL_URL") {
        return Some((None, base.trim_end_matches('/').to_owned()));
    }
    let Some(server) = MariaDb::start().await else {
        skipped("mariadbd is not installed");
        return None;
    };
    let base = server.base();
    Some((Some(server), base))
}

#[tokio::test(flavor = "multi_thread")]
async fn store_contract_on_sqlite() {
    let directory = tempfile::tempdir().expect("a directory");
    let count = AtomicU32::new(0);
    model::contract::store::run_all(async || {
        let file = format!("{}.db", count.fetch_add(1, Ordering::Relaxed));
        let url = format!("sqlite://{}", directory.path().join(file).display());
        caas_backends::store::migrate(&url).await.expect("migrated");
        (handle(&url).await, handle(&url).await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn store_contract_on_mysql() {
    let Some((_server, base)) = server().await else {
        return;
    };
    model::contract::store::run_all(async || {
        let url = fresh_database(&base).await;
        (handle(&url).await, handle(&url).await)
    })
    .await;
}

async fn migrates(url: &str) {
    let before = handle(url).await.check().await;
    assert!(matches!(before, Err(StoreError::Schema(_))), "not migrated: {before:?}");
    let several = (0..4).map(|_| caas_backends::store::migrate(url));
    for outcome in futures::future::join_all(several).await {
        outcome.expect("migrated, by whichever came first");
    }
    caas_backends::store::migrate(url)
        .await
        .expect("once more changes nothing");
    handle(url).await.check().await.expect("it fits");
}

#[tokio::test(flavor = "multi_thread")]
async fn store_migrates_sqlite_by_several_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    migrates(&format!("sqlite://{}", directory.path().join("caas.db").display())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn store_migrates_mysql_by_several_at_once_and_after_a_cut() {
    let Some((_server, base)) = server().await else {
        return;
    };
    let url = fresh_database(&base).await;
    let mut connection = <sqlx::MySqlConnection as sqlx::Connection>::connect(&url)
        .await
        .expect("connected");
    // As left by a run that was cut off half-way.
    for sql in [
        "SET FOREIGN_KEY_CHECKS = 0",
        "DROP TABLE hosts",
        "DROP TABLE events",
        "UPDATE _sqlx_migrations SET success = FALSE",
    ] {
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("done");
    }
    migrates(&url).await;
    let store = handle(&url).await;
    assert_eq!(store.host_list().await.expect("an answer"), []);
    assert_eq!(store.event_newest().await.expect("an answer"), 0);
}

/// Takes the schema at `url` back to before the domains had a table, and forward again.
async fn domains_are_taken_over(url: &str, mut run: impl AsyncFnMut(&'static str)) {
    let store = handle(url).await;
    let mut first = model::contract::store::deploy("first");
    first.app.config.domains = vec!["a.example.com".into(), "b.example.com".into()];
    let committed = store.intent_commit(&first, Timestamp::now()).await;
    assert!(matches!(committed, Ok(IntentOutcome::Committed(..))), "{committed:?}");
    for sql in [
        "DROP TABLE domains",
        "DROP TABLE resting_ports",
        "DELETE FROM _sqlx_migrations WHERE version = 2",
    ] {
        run(sql).await;
    }
    caas_backends::store::migrate(url).await.expect("migrated");
    let mut second = model::contract::store::deploy("second");
    second.app.config.domains = vec!["b.example.com".into()];
    let refused = store.intent_commit(&second, Timestamp::now()).await;
    assert!(
        matches!(&refused, Ok(IntentOutcome::DomainTaken { owner, .. }) if owner.as_str() == "first"),
        "{refused:?}"
    );
}

/// Takes the schema at `url` back to before releases had a protocol, and forward again.
async fn releases_speak_what_their_app_does(url: &str, mut run: impl AsyncFnMut(&'static str)) {
    let store = handle(url).await;
    let mut rpc = model::contract::store::deploy("rpc");
    rpc.app.config.protocol = Protocol::H2c;
    let mut plain = model::contract::store::deploy("plain");
    for intent in [&mut rpc, &mut plain] {
        intent.release.as_mut().expect("there").protocol = None;
        let committed = store.intent_commit(intent, Timestamp::now()).await;
        assert!(matches!(committed, Ok(IntentOutcome::Committed(..))), "{committed:?}");
    }
    for sql in [
        // As very old ones have it.
        "UPDATE apps SET config = '{}' WHERE id = 'plain'",
        "ALTER TABLE releases DROP COLUMN protocol",
        "DELETE FROM _sqlx_migrations WHERE version = 9",
    ] {
        run(sql).await;
    }
    caas_backends::store::migrate(url).await.expect("migrated");
    let store = handle(url).await;
    for (intent, protocol) in [(rpc, Protocol::H2c), (plain, Protocol::Http)] {
        let release = store.release_fetch(&intent.app.id, 1).await.expect("an answer");
        assert_eq!(release.expect("there").protocol, Some(protocol));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_takes_over_what_is_older() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite://{}", directory.path().join("caas.db").display());
    caas_backends::store::migrate(&url).await.expect("migrated");
    let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect(&url)
        .await
        .expect("connected");
    let mut run = async |sql| {
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("done");
    };
    domains_are_taken_over(&url, &mut run).await;
    releases_speak_what_their_app_does(&url, &mut run).await;

    let Some((_server, base)) = server().await else {
        return;
    };
    let url = fresh_database(&base).await;
    let mut connection = <sqlx::MySqlConnection as sqlx::Connection>::connect(&url)
        .await
        .expect("connected");
    let mut run = async |sql| {
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("done");
    };
    domains_are_taken_over(&url, &mut run).await;
    releases_speak_what_their_app_does(&url, &mut run).await;
}

#[tokio::test]
async fn store_of_nobody_is_unavailable_soon() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a port")
        .port();
    let start = Instant::now();
    let refused = handle(&format!("mysql://u@127.0.0.1:{port}/caas"))
        .await
        .host_list()
        .await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());

    // It accepts connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let start = Instant::now();
    let store = handle(&format!("mysql://u@127.0.0.1:{port}/caas")).await;
    let event = event("x");
    let (read, written) = tokio::join!(store.host_list(), store.event_record(&event, Timestamp::now()));
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    assert!(matches!(written, Err(StoreError::Unavailable(_))), "{written:?}");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());

    for bad in ["", "caas.db", "postgres://h/db", "mysql://h", "sqlite://"] {
        assert!(caas_backends::store::open(bad).await.is_err(), "{bad:?}");
    }
    let missing = handle("sqlite:///nowhere/at/all/caas.db").await.check().await;
    assert!(matches!(missing, Err(StoreError::Schema(_))), "{missing:?}");
}

fn event(message: &str) -> NewEvent {
    NewEvent::new(EventKind::Admin, "writer", message)
}

/// A writer of numbered events, each tried until it is acknowledged or its outcome is unknown.
async fn write(store: Arc<dyn Store>, name: usize, stop: Arc<AtomicBool>) -> (Vec<String>, Vec<String>) {
    let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let message = format!("{name}/{n}");
        match store.event_record(&event(&message), Timestamp::now()).await {
            Ok(()) => acknowledged.push(message),
            Err(StoreError::Unavailable(_)) => unknown.push(message),
            Err(other) => panic!("{other}"),
        }
    }
    (acknowledged, unknown)
}

#[tokio::test(flavor = "multi_thread")]
async fn store_loses_and_doubles_nothing_when_mysql_is_killed() {
    let Some(mut server) = MariaDb::start().await else {
        return skipped("mariadbd is not installed");
    };
    let url = fresh_database(&server.base()).await;
    let store = handle(&url).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..6)
        .map(|n| tokio::spawn(write(Arc::clone(&store), n, Arc::clone(&stop))))
        .collect();
    let grows = async |by: u64| {
        let from = store.event_newest().await.expect("an answer");
        let start = Instant::now();
        while store.event_newest().await.expect("an answer") < from + by {
            assert!(start.elapsed() < Duration::from_secs(20), "nobody writes any more");
            tokio::task::yield_now().await;
        }
    };
    for _ in 0..3 {
        grows(100).await;
        server.kill().await;
        server.restart().await;
    }
    grows(100).await;
    stop.store(true, Ordering::Relaxed);
    let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
    for writer in writers {
        let (a, u) = writer.await.expect("no panic");
        acknowledged.extend(a);
        unknown.extend(u);
    }
    // A number that was taken and rolled back holds readers up for a moment.
    let newest = store.event_newest().await.expect("an answer");
    let (mut there, mut after) = (Vec::new(), 0);
    let start = Instant::now();
    while after < newest {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "stuck after event {after} of {newest}"
        );
        let page = store.event_list(after, None, 1_000).await.expect("an answer");
        after = page.last().map_or(after, |e| e.seq);
        there.extend(page.into_iter().map(|e| e.event.message));
    }
    let total = there.len();
    there.sort();
    there.dedup();
    assert_eq!(there.len(), total, "an event twice");
    for message in &acknowledged {
        assert!(
            there.binary_search(message).is_ok(),
            "{message} was acknowledged and is lost"
        );
    }
    let extra = there.iter().filter(|m| !acknowledged.contains(m)).count();
    assert!(extra <= unknown.len(), "{extra} that nobody wrote");
    println!(
        "{} acknowledged, {} unknown, {total} there",
        acknowledged.len(),
        unknown.len()
    );
}
