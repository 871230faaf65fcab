//! Hosts.

use std::sync::Arc;

use super::*;
use crate::store::KeyUse;

pub(super) async fn hosts_come_change_and_go((store, other): Handles) {
    let mut new = host("h1", 1_000);
    new.reserved_memory_mb = 77;
    new.instances = 7;
    new.generation = Generation(9);
    new.address = "fd00::1".parse().expect("an address");
    let row = add_host(&*store, new).await;
    let mut expected = host("h1", 1_000);
    expected.address = "fd00::1".parse().expect("an address");
    assert_eq!(row, expected, "a new host carries nothing");
    let taken = store.host_commit(&joining(host("h1", 5)), T).await.expect("an answer");
    assert_eq!(taken, HostOutcome::Conflict(row.clone()));
    add_host(&*store, host("a1", 1_000)).await;
    let names: Vec<_> = other
        .host_list()
        .await
        .expect("an answer")
        .into_iter()
        .map(|h| h.name)
        .collect();
    assert_eq!(names, [host_name("a1"), host_name("h1")]);

    let labels = BTreeMap::from([("zone".to_owned(), "b".to_owned())]);
    let mut current = row;
    for change in [
        HostChange::Schedulability(Schedulability::Draining),
        HostChange::Labels(labels),
        HostChange::MemoryMb(2_000),
        HostChange::Down(seconds(3)),
        HostChange::Up,
        HostChange::UsedCpu(1_500),
    ] {
        let expected = current.changed(&change);
        let outcome = store.host_update(&current, &change, None, T).await.expect("an answer");
        current = outcome.updated().expect("changed");
        assert_eq!(current, expected);
        assert_eq!(
            other.host_fetch(&current.name).await.expect("an answer").as_ref(),
            Some(&current)
        );
    }

    let (app, _) = committed(&*store, &deploy("hello")).await;
    let instance = placed(&*store, &app.id, vec![pick("a1", 10)], T).await.remove(0);
    let removal = leaving(&instance.host);
    let outcome = store.host_commit(&removal, T).await.expect("an answer");
    assert!(
        matches!(outcome, HostOutcome::Conflict(host) if host.instances == 1),
        "it carries an instance"
    );
    moved(&*store, &instance, InstanceChange::Stopped, T).await;
    let events = store.event_newest().await.expect("an answer");
    let outcome = store.host_commit(&removal, T).await.expect("an answer");
    assert!(
        matches!(outcome, HostOutcome::Committed(_)),
        "a resting port is no obstacle"
    );
    assert!(store.event_newest().await.expect("an answer") > events);
    assert_eq!(store.host_fetch(&instance.host).await.expect("an answer"), None);
    let outcome = store.host_commit(&removal, T).await.expect("an answer");
    assert_eq!(outcome, HostOutcome::NotFound);
    assert!(
        store.instance_fetch(&instance.id).await.expect("an answer").is_some(),
        "history stays"
    );
    add_host(&*store, host("a1", 500)).await;
}

pub(super) async fn host_changes_are_compare_and_set((store, other): Handles) {
    let first = add_host(&*store, host("h1", 1_000)).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    placed(&*store, &app.id, vec![pick("h1", 10)], T).await;
    let events = store.event_newest().await.expect("an answer");
    let measured = store
        .host_update(&first, &HostChange::UsedCpu(5), None, T)
        .await
        .expect("an answer");
    let measured = measured.updated().expect("a reservation in between is no conflict");
    assert_eq!(
        (measured.reserved_memory_mb, measured.used_cpu_millis),
        (10, 5),
        "and it is kept"
    );
    assert_eq!(
        store.event_newest().await.expect("an answer"),
        events,
        "a measurement is no event"
    );
    let cordon = HostChange::Schedulability(Schedulability::Cordoned);
    let tries = (0..8).map(|n| {
        let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
        let (current, cordon) = (measured.clone(), cordon.clone());
        let event = event(EventKind::Host).about_host(&current.name);
        tokio::spawn(async move {
            store
                .host_update(&current, &cordon, Some(&event), T)
                .await
                .expect("an answer")
        })
    });
    let mut won = 0;
    for outcome in futures::future::join_all(tries).await {
        match outcome.expect("no panic") {
            Outcome::Updated(_) => won += 1,
            Outcome::Conflict(row) => assert_eq!(row.schedulability, Schedulability::Cordoned),
            Outcome::NotFound => panic!("it is there"),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(store.event_newest().await.expect("an answer"), events + 1);
    let mut missing = measured;
    missing.name = host_name("missing");
    let outcome = store.host_update(&missing, &cordon, None, T).await.expect("an answer");
    assert_eq!(outcome, Outcome::NotFound);
}

pub(super) async fn what_is_asked_of_hosts_is_whole((store, other): Handles) {
    let row = add_host(&*store, host("h1", 1_000)).await;
    let mut drain = operation(&app_id("none"), OperationKind::DrainHost);
    drain.app = None;
    drain.host = Some(row.name.clone());
    let mut intent = changing(
        &row,
        vec![
            HostChange::MemoryMb(5),
            HostChange::Schedulability(Schedulability::Draining),
        ],
    );
    intent.operation = Some(drain.clone());
    let committed = store.host_commit(&intent, T).await.expect("an answer");
    let HostOutcome::Committed(after) = committed else {
        panic!("{committed:?}");
    };
    assert_eq!(
        (after.memory_mb, after.schedulability, after.generation),
        (5, Schedulability::Draining, Generation(3))
    );
    let read = other.host_fetch(&row.name).await.expect("an answer");
    assert_eq!(read.as_ref(), Some(&after));
    assert_eq!(other.operation_fetch(&drain.id).await.expect("an answer"), Some(drain));

    // From a row that has changed since nothing is done, and nothing of it is kept.
    let events = store.event_newest().await.expect("an answer");
    let mut stale = changing(&row, vec![HostChange::MemoryMb(6)]);
    let late = operation(&app_id("none"), OperationKind::DrainHost);
    stale.operation = Some(late.clone());
    let outcome = store.host_commit(&stale, T).await.expect("an answer");
    assert_eq!(outcome, HostOutcome::Conflict(after.clone()));
    assert_eq!(store.operation_fetch(&late.id).await.expect("an answer"), None);
    assert_eq!(store.event_newest().await.expect("an answer"), events);
    let outcome = store.host_commit(&changing(&after, Vec::new()), T).await;
    assert_eq!(outcome.expect("an answer"), HostOutcome::Committed(after));
}

pub(super) async fn of_twins_that_join_at_once_one_does((store, other): Handles) {
    for round in 0..5 {
        let tries = (0..8).map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
            // By name, by engine, by ports.
            let mut host = host(&format!("h{round}-{}", if n % 3 == 0 { 0 } else { n }), 1_000);
            host.address = format!("10.0.1.{round}").parse().expect("an address");
            host.engine = format!("tcp://10.0.1.{round}:{}", 2_000 + if n % 3 == 1 { 0 } else { n });
            tokio::spawn(async move { store.host_commit(&joining(host), T).await.expect("an answer") })
        });
        let mut joined = Vec::new();
        let mut met = Vec::new();
        for outcome in futures::future::join_all(tries).await {
            match outcome.expect("no panic") {
                HostOutcome::Committed(host) => joined.push(host),
                HostOutcome::Conflict(host) => met.push(host),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((joined.len(), met.len()), (1, 7));
        assert!(met.iter().all(|host| *host == joined[0]), "told which one is there");
    }
    // Engines in memory have no ports of an address.
    for name in ["f1", "f2"] {
        add_host(&*store, host(name, 1_000)).await;
    }
}

pub(super) async fn keys_are_used_once_on_hosts_too((store, other): Handles) {
    let keyed = |mut intent: HostIntent, name: &str, request: &str| {
        intent.idempotency = key(name, request);
        intent
    };
    let join = keyed(joining(host("h1", 1_000)), "t:k1", "join");
    let used = async |intent: &HostIntent| {
        let key = intent.idempotency.as_ref().expect("keyed");
        other.idempotency_fetch(key, T).await.expect("an answer")
    };
    assert_eq!(used(&join).await, KeyUse::New);
    let tries = (0..6).map(|n| {
        let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
        let join = join.clone();
        tokio::spawn(async move { store.host_commit(&join, T).await.expect("an answer") })
    });
    let (mut joined, mut replayed) = (0, 0);
    for outcome in futures::future::join_all(tries).await {
        match outcome.expect("no panic") {
            HostOutcome::Committed(_) => joined += 1,
            HostOutcome::Replayed(None) => replayed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((joined, replayed), (1, 5));
    assert_eq!(used(&join).await, KeyUse::Same(None));
    let another = keyed(joining(host("h2", 1_000)), "t:k1", "another");
    assert_eq!(used(&another).await, KeyUse::Other);
    let outcome = store.host_commit(&another, T).await.expect("an answer");
    assert_eq!(outcome, HostOutcome::KeyReused);

    let row = store
        .host_fetch(&host_name("h1"))
        .await
        .expect("an answer")
        .expect("there");
    let drain = operation(&app_id("none"), OperationKind::DrainHost);
    let mut intent = changing(&row, vec![HostChange::Schedulability(Schedulability::Draining)]);
    intent.operation = Some(drain.clone());
    let intent = keyed(intent, "t:k2", "drain");
    let outcome = store.host_commit(&intent, T).await.expect("an answer");
    assert!(matches!(outcome, HostOutcome::Committed(_)), "{outcome:?}");
    let outcome = other.host_commit(&intent, T).await.expect("an answer");
    assert_eq!(outcome, HostOutcome::Replayed(Some(drain.clone())));
    assert_eq!(used(&intent).await, KeyUse::Same(Some(drain)));

    // What was refused may be asked for again with the same key.
    let refused = keyed(joining(host("h1", 7)), "t:k3", "twin");
    let outcome = store.host_commit(&refused, T).await.expect("an answer");
    assert!(matches!(outcome, HostOutcome::Conflict(_)), "{outcome:?}");
    assert_eq!(used(&refused).await, KeyUse::New);
    let gone = keyed(leaving(&row.name), "t:k4", "leave");
    let outcome = store.host_commit(&gone, T).await.expect("an answer");
    assert!(matches!(outcome, HostOutcome::Committed(_)), "{outcome:?}");
    let outcome = store.host_commit(&gone, T).await.expect("an answer");
    assert_eq!(
        outcome,
        HostOutcome::Replayed(None),
        "gone already, by this very request"
    );
}
