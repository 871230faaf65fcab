//! Hosts.

use std::sync::Arc;

use super::*;
use crate::HostChange;

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
    let taken = store
        .host_create(&host("h1", 5), &event(EventKind::Host))
        .await
        .expect("an answer");
    assert_eq!(taken, Outcome::Conflict(row.clone()));
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
    let removal = event(EventKind::Host).about_host(&instance.host);
    let outcome = store.host_remove(&instance.host, &removal, T).await.expect("an answer");
    assert!(
        matches!(outcome, Outcome::Conflict(host) if host.instances == 1),
        "it carries an instance"
    );
    moved(&*store, &instance, InstanceChange::Stopped, T).await;
    let events = store.event_newest().await.expect("an answer");
    let outcome = store.host_remove(&instance.host, &removal, T).await.expect("an answer");
    assert!(matches!(outcome, Outcome::Updated(_)), "a resting port is no obstacle");
    assert!(store.event_newest().await.expect("an answer") > events);
    assert_eq!(store.host_fetch(&instance.host).await.expect("an answer"), None);
    let outcome = store.host_remove(&instance.host, &removal, T).await.expect("an answer");
    assert_eq!(outcome, Outcome::NotFound);
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
