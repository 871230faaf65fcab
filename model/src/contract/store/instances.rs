//! Instances and their moves.

use std::sync::Arc;

use super::*;
use crate::Figures;
use crate::store::{InstanceFilter, Revision, StoreError};
use crate::{Failure, FailureCode, InstanceState, Listening};

async fn one_placed(store: &dyn Store) -> Instance {
    add_host(store, host("h1", 10_000)).await;
    let (app, _) = committed(store, &deploy("hello")).await;
    placed(store, &app.id, vec![pick("h1", 100)], T).await.remove(0)
}

fn failure(code: FailureCode) -> Failure {
    Failure {
        exit_code: Some(137),
        log_tail: vec!["päng \u{1f4a5}".into(), "it's over".into()],
        probes: vec!["connection refused".into()],
        ..Failure::new(code, "it died")
    }
}

pub(super) async fn a_life_is_kept((store, other): Handles) {
    let placed = one_placed(&*store).await;
    assert_eq!(
        (placed.state, placed.generation),
        (InstanceState::Placed, Generation::FIRST)
    );
    let hash = store.instance_token_hash(&placed.id).await.expect("an answer");
    assert_eq!(hash, Some(format!("hash of {}", placed.id)));
    let mut instance = placed;
    let changes = [
        started(),
        InstanceChange::Healthy { assumed: true },
        InstanceChange::Routed,
        InstanceChange::Heartbeat,
        InstanceChange::Unhealthy(failure(FailureCode::Unhealthy)),
        InstanceChange::Healthy { assumed: false },
        InstanceChange::Drain,
        InstanceChange::Drained,
        InstanceChange::Stopped,
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let now = seconds(n as u64 + 1);
        let expected = instance.apply(&change, now).expect("legal");
        let events = store.event_newest().await.expect("an answer");
        instance = moved(&*store, &instance, change.clone(), now).await;
        assert_eq!(instance, expected);
        let read = other.instance_fetch(&instance.id).await.expect("an answer");
        assert_eq!(read.as_ref(), Some(&instance), "after {change:?}");
        let told = store.event_newest().await.expect("an answer") > events;
        assert_eq!(told, change != InstanceChange::Heartbeat, "an event for {change:?}");
    }
    let host = store
        .host_fetch(&instance.host)
        .await
        .expect("an answer")
        .expect("there");
    assert_eq!(
        (host.reserved_memory_mb, host.reserved_cpu_weight, host.instances),
        (0, 0, 0)
    );
    assert_eq!(
        host.generation,
        Generation::FIRST,
        "reservations are not the operator's changes"
    );
    assert_eq!(
        store.instance_token_hash(&instance.id).await.expect("an answer"),
        None,
        "released"
    );
    let events = store.event_list(0, Some(&instance.app), 100).await.expect("an answer");
    assert!(events.iter().any(|e| e.event.instance.as_ref() == Some(&instance.id)));
}

pub(super) async fn moves_are_compare_and_set((store, other): Handles) {
    let instance = one_placed(&*store).await;
    let next = moved(&*store, &instance, started(), seconds(1)).await;
    let late = other
        .instance_update(&instance, &InstanceChange::Drain, seconds(2))
        .await;
    assert_eq!(late.expect("an answer"), Outcome::Conflict(next.clone()));
    let mut missing = next.clone();
    missing.id = InstanceId::random();
    let outcome = store.instance_update(&missing, &InstanceChange::Drain, T).await;
    assert_eq!(outcome.expect("an answer"), Outcome::NotFound);

    let failed = moved(
        &*store,
        &next,
        InstanceChange::Failed(failure(FailureCode::Exited)),
        seconds(3),
    )
    .await;
    let tries = (0..8).map(|n| {
        let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
        let failed = failed.clone();
        tokio::spawn(async move {
            store
                .instance_update(&failed, &InstanceChange::Stopped, seconds(4))
                .await
        })
    });
    let mut won = 0;
    for outcome in futures::future::join_all(tries).await {
        match outcome.expect("no panic").expect("an answer") {
            Outcome::Updated(row) => {
                assert_eq!((row.state, row.released_at), (InstanceState::Failed, Some(seconds(4))));
                won += 1;
            }
            Outcome::Conflict(_) => {}
            Outcome::NotFound => panic!("it is there"),
        }
    }
    assert_eq!(won, 1);
    let host = store.host_fetch(&failed.host).await.expect("an answer").expect("there");
    assert_eq!((host.reserved_memory_mb, host.instances), (0, 0), "given back once");
}

pub(super) async fn illegal_moves_are_refused((store, _): Handles) {
    let instance = one_placed(&*store).await;
    let outcome = store.instance_update(&instance, &InstanceChange::Drained, T).await;
    assert!(matches!(outcome, Err(StoreError::Invalid(_))), "{outcome:?}");
    assert_eq!(
        store.instance_fetch(&instance.id).await.expect("an answer"),
        Some(instance)
    );
}

pub(super) async fn filters_select((store, _): Handles) {
    add_host(&*store, host("h1", 10_000)).await;
    add_host(&*store, host("h2", 10_000)).await;
    let (a, _) = committed(&*store, &deploy("app-a")).await;
    let (b, _) = committed(&*store, &deploy("app-b")).await;
    let first = placed(&*store, &a.id, vec![pick("h1", 100)], seconds(1))
        .await
        .remove(0);
    let second = placed(&*store, &a.id, vec![pick("h2", 100)], seconds(2))
        .await
        .remove(0);
    let third = placed(&*store, &b.id, vec![pick("h1", 100)], seconds(3))
        .await
        .remove(0);
    moved(&*store, &second, InstanceChange::Stopped, seconds(4)).await;
    let list = async |filter: InstanceFilter| -> Vec<InstanceId> {
        let list = store.instance_list(&filter).await.expect("an answer");
        list.into_iter().map(|i| i.id).collect()
    };
    let ids = |of: &[&Instance]| of.iter().map(|i| i.id.clone()).collect::<Vec<_>>();
    assert_eq!(list(InstanceFilter::held()).await, ids(&[&first, &third]));
    assert_eq!(list(InstanceFilter::held_of(&a.id)).await, ids(&[&first]));
    assert_eq!(
        list(InstanceFilter::held_on(&host_name("h1"))).await,
        ids(&[&first, &third])
    );
    let all = InstanceFilter {
        released_too: true,
        ..InstanceFilter::default()
    };
    assert_eq!(list(all).await, ids(&[&first, &second, &third]), "oldest first");
    let of_both = InstanceFilter {
        app: Some(a.id.clone()),
        host: Some(host_name("h2")),
        released_too: true,
    };
    assert_eq!(list(of_both).await, ids(&[&second]));
}

pub(super) async fn history_is_pruned((store, _): Handles) {
    add_host(&*store, host("h1", 10_000)).await;
    let (app, operation) = committed(&*store, &deploy("hello")).await;
    let mut released = Vec::new();
    for n in 0..5 {
        let instance = placed(&*store, &app.id, vec![pick("h1", 100)], seconds(n))
            .await
            .remove(0);
        released.push(moved(&*store, &instance, InstanceChange::Stopped, seconds(10 + n)).await);
    }
    let held = placed(&*store, &app.id, vec![pick("h1", 100)], seconds(20))
        .await
        .remove(0);
    let mut old = deploy("old");
    old.idempotency = key("old", "request");
    committed(&*store, &old).await;
    let before = store.event_list(0, None, 1_000).await.expect("an answer");
    let gone = store
        .history_prune(2, seconds(11), seconds(30))
        .await
        .expect("an answer");
    assert!(gone > 3, "{gone} rows");
    let all = InstanceFilter {
        app: Some(app.id.clone()),
        host: None,
        released_too: true,
    };
    let left: Vec<_> = store
        .instance_list(&all)
        .await
        .expect("an answer")
        .into_iter()
        .map(|i| i.id)
        .collect();
    assert_eq!(
        left,
        [released[3].id.clone(), released[4].id.clone(), held.id],
        "the newest two, and what is held"
    );
    let after = store.event_list(0, None, 1_000).await.expect("an answer");
    let kept: Vec<_> = before.into_iter().skip_while(|e| e.at < seconds(11)).collect();
    assert_eq!(after, kept, "the oldest went");
    assert!(
        store.operation_fetch(&operation.id).await.expect("an answer").is_some(),
        "it is not over"
    );
    let outcome = store.intent_commit(&old, seconds(30)).await.expect("an answer");
    assert!(matches!(outcome, IntentOutcome::Replayed(_)), "{outcome:?}");
    store
        .history_prune(2, T, seconds(24 * 3_600 + 1))
        .await
        .expect("an answer");
    let outcome = store.intent_commit(&old, seconds(30)).await.expect("an answer");
    assert!(
        matches!(outcome, IntentOutcome::Conflict(_)),
        "the key is forgotten after a day: {outcome:?}"
    );
}

pub(super) async fn failures_are_kept_as_long_as_they_count((store, _): Handles) {
    add_host(&*store, host("h1", 10_000)).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let picks = (0..30).map(|_| pick("h1", 10)).collect();
    for (n, instance) in placed(&*store, &app.id, picks, T).await.into_iter().enumerate() {
        let at = seconds(n as u64);
        // Half of them crashed, the others were given back.
        let last = if n % 2 == 0 {
            let crash = InstanceChange::Failed(failure(FailureCode::Exited));
            moved(&*store, &instance, crash, at).await
        } else {
            instance
        };
        moved(&*store, &last, InstanceChange::Stopped, at).await;
    }
    let all = InstanceFilter {
        released_too: true,
        ..InstanceFilter::held_of(&app.id)
    };
    let left = async |now| {
        while store.history_prune(2, T, now).await.expect("an answer") > 0 {}
        let left = store.instance_list(&all).await.expect("an answer");
        let failed = left.iter().filter(|i| i.state == InstanceState::Failed).count();
        (failed, left.len() - failed)
    };
    assert_eq!(left(seconds(60)).await, (15, 1), "the newest two, and what failed");
    assert_eq!(left(seconds(3_600 + 14)).await, (7, 1), "what failed within the hour");
    assert_eq!(left(seconds(2 * 3_600)).await, (1, 1));
}

pub(super) async fn pruning_goes_on_until_nothing_is_left((store, _): Handles) {
    add_host(&*store, host("h1", 4_000_000)).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    for _ in 0..11 {
        let picks = (0..100).map(|_| pick("h1", 1)).collect();
        placed(&*store, &app.id, picks, T).await;
    }
    let mut gone = 0;
    let mut rounds = 0;
    loop {
        match store
            .history_prune(20, seconds(2), seconds(3))
            .await
            .expect("an answer")
        {
            0 => break,
            n => gone += n,
        }
        rounds += 1;
        assert!(rounds < 10, "{gone} rows gone, and no end");
    }
    assert!(rounds > 1, "each round is bounded");
    assert!(gone > 1_100, "{gone} rows");
    assert_eq!(store.event_list(0, None, 10).await.expect("an answer"), []);
}

pub(super) async fn figures_are_kept_quietly((store, other): Handles) {
    let instance = one_placed(&*store).await;
    assert_eq!(store.figures_list().await.expect("an answer"), []);
    let of = |cpu_milli, at| Figures {
        cpu_milli,
        memory_bytes: 3 << 40,
        memory_limit_bytes: u64::from(u32::MAX) * 1_024,
        at,
    };
    let before = store.revision_wait(Revision::default(), Duration::ZERO).await;
    let stranger = InstanceId::random();
    let many: Vec<(InstanceId, Figures)> = (0..300).map(|_| (InstanceId::random(), of(1, T))).collect();
    for put in [
        vec![(instance.id.clone(), of(7, T)), (stranger.clone(), of(8, T))],
        vec![],
        many.clone(),
        vec![(instance.id.clone(), of(9, seconds(10)))],
    ] {
        store.figures_put(&put).await.expect("kept");
    }
    let read = other.figures_list().await.expect("an answer");
    assert_eq!(read.len(), 302);
    assert!(read.contains(&(instance.id.clone(), of(9, seconds(10)))));
    assert!(read.contains(&many[299]));
    assert_eq!(
        other.instance_fetch(&instance.id).await.expect("an answer"),
        Some(instance.clone()),
        "it is no change of the instance"
    );
    let after = store.revision_wait(Revision::default(), Duration::ZERO).await;
    assert_eq!(after.expect("an answer"), before.expect("an answer"), "nobody is woken");

    // Those of instances that hold nothing go with the history.
    let gone = store.history_prune(10, T, T).await.expect("pruned");
    assert_eq!(gone, 301);
    let read = other.figures_list().await.expect("an answer");
    assert_eq!(read, [(instance.id, of(9, seconds(10)))]);
}

pub(super) async fn when_beats_are_received_is_kept_quietly((store, other): Handles) {
    assert_eq!(other.listening().await.expect("an answer"), None);
    let before = store.revision_wait(Revision::default(), Duration::ZERO).await;
    // Two schedulers, the first notes at once.
    let (a, b) = tokio::join!(store.listening_note(T), other.listening_note(T));
    a.expect("noted");
    b.expect("noted");
    for n in 1..=4 {
        let by = if n % 2 == 0 { &store } else { &other };
        by.listening_note(seconds(n)).await.expect("noted");
    }
    let listening = |since, until| Some(Listening { since, until });
    assert_eq!(store.listening().await.expect("an answer"), listening(T, seconds(4)));
    store.listening_note(seconds(100)).await.expect("noted");
    let after_a_gap = other.listening().await.expect("an answer");
    assert_eq!(after_a_gap, listening(seconds(100), seconds(100)));
    let after = store.revision_wait(Revision::default(), Duration::ZERO).await;
    assert_eq!(after.expect("an answer"), before.expect("an answer"), "nobody is woken");
}
