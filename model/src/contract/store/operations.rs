//! Operations, events, waiting, tokens and credentials.

use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::store::{RegistryCredentials, Revision, Token};
use crate::{Step, StepState};

pub(super) async fn operations_are_followed((store, other): Handles) {
    let mut drain = operation(&app_id("none"), OperationKind::DrainHost);
    drain.app = None;
    drain.host = Some(host_name("h1"));
    let row = add_host(&*store, host("h1", 1_000)).await;
    let mut asked = changing(&row, Vec::new());
    asked.operation = Some(drain.clone());
    let outcome = store.host_commit(&asked, T).await.expect("an answer");
    assert_eq!(outcome, HostOutcome::Committed(row));
    let read = other.operation_fetch(&drain.id).await.expect("an answer");
    assert_eq!(read.as_ref(), Some(&drain));
    assert_eq!(
        store.operation_fetch(&OperationId::random()).await.expect("an answer"),
        None
    );

    let events = async || store.event_newest().await.expect("an answer");
    let before = events().await;
    let mut next = drain.clone();
    next.message = "2 instances to go".into();
    next.reasons = vec!["memory: 3 hosts".into()];
    let row = store
        .operation_update(&next, seconds(1))
        .await
        .expect("an answer")
        .updated()
        .expect("done");
    assert_eq!((row.updated_at, row.generation), (seconds(1), Generation(2)));
    assert_eq!((&row.message, &row.reasons), (&next.message, &next.reasons));
    assert_eq!(events().await, before, "only words changed");
    let conflict = other.operation_update(&next, seconds(2)).await.expect("an answer");
    assert_eq!(conflict, Outcome::Conflict(row.clone()));

    let mut next = row;
    next.steps = vec![Step {
        name: "drain".into(),
        state: StepState::Running,
        detail: "1 of 2".into(),
        at: T,
    }];
    let mut row = store
        .operation_update(&next, seconds(3))
        .await
        .expect("an answer")
        .updated()
        .expect("done");
    assert_eq!(events().await, before + 1, "a step began");
    row.steps[0].detail = "2 of 2".into();
    let mut row = store
        .operation_update(&row, seconds(4))
        .await
        .expect("an answer")
        .updated()
        .expect("done");
    assert_eq!(events().await, before + 1, "only a detail changed");
    row.state = OperationState::Succeeded;
    store
        .operation_update(&row, seconds(5))
        .await
        .expect("an answer")
        .updated()
        .expect("done");
    assert_eq!(events().await, before + 2);
    assert_eq!(store.operation_open().await.expect("an answer"), []);

    let mut later = deploy("hello");
    later.operation.created_at = seconds(9);
    let (_, mut later) = committed(&*store, &later).await;
    let ids = |list: Vec<Operation>| list.into_iter().map(|o| o.id).collect::<Vec<_>>();
    let all = store.operation_list(None, 10).await.expect("an answer");
    assert_eq!(ids(all), [later.id.clone(), drain.id], "newest first");
    assert_eq!(
        ids(store.operation_list(None, 1).await.expect("an answer")),
        [later.id.clone()]
    );
    let of_app = store
        .operation_list(Some(&app_id("hello")), 10)
        .await
        .expect("an answer");
    assert_eq!(ids(of_app), [later.id.clone()]);
    later.id = OperationId::random();
    let outcome = store.operation_update(&later, T).await.expect("an answer");
    assert_eq!(outcome, Outcome::NotFound);
}

pub(super) async fn events_are_in_order_and_paged((store, other): Handles) {
    assert_eq!(store.event_newest().await.expect("an answer"), 0);
    assert_eq!(store.event_list(0, None, 10).await.expect("an answer"), []);
    let long = "ä".repeat(5_000);
    let mut full = NewEvent::new(EventKind::Admin, "someone", &long)
        .about_app(&app_id("hello"))
        .about_host(&host_name("h1"))
        .in_operation(&OperationId::random());
    full.instance = Some(InstanceId::random());
    store.event_record(&full, T).await.expect("recorded");
    let read = other.event_list(0, None, 10).await.expect("an answer").remove(0);
    assert!(
        long.starts_with(&read.event.message) && read.event.message.len() > 100,
        "cut, not refused"
    );
    full.message.clone_from(&read.event.message);
    assert_eq!((read.event, read.at), (full, T));

    // Written by eight at once and read meanwhile, page by page: nothing twice, nothing missed.
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
            tokio::spawn(async move {
                for i in 0..25 {
                    let app = app_id(if i % 5 == 0 { "fifth" } else { "rest" });
                    let event = NewEvent::new(EventKind::Admin, "writer", format!("{n}/{i}")).about_app(&app);
                    store.event_record(&event, T).await.expect("recorded");
                }
            })
        })
        .collect();
    let mut seen = Vec::new();
    let mut after = 1;
    let start = Instant::now();
    while seen.len() < 200 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "only {} of 200 events",
            seen.len()
        );
        let page = store.event_list(after, None, 7).await.expect("an answer");
        assert!(page.len() <= 7);
        assert!(page.is_sorted_by(|a, b| a.seq < b.seq));
        match page.last() {
            Some(last) => after = last.seq,
            None => tokio::task::yield_now().await,
        }
        seen.extend(page.into_iter().map(|e| e.event.message));
    }
    for writer in writers {
        writer.await.expect("no panic");
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 200);
    assert_eq!(store.event_newest().await.expect("an answer"), after);
    let fifth = store
        .event_list(1, Some(&app_id("fifth")), 1_000)
        .await
        .expect("an answer");
    assert_eq!(fifth.len(), 40);
    assert!(fifth.is_sorted_by(|a, b| a.seq < b.seq));
}

pub(super) async fn waiting_ends_with_a_change((store, other): Handles) {
    let wait = async |store: &dyn Store, after, ms| {
        let start = Instant::now();
        let newest = store
            .revision_wait(after, Duration::from_millis(ms))
            .await
            .expect("an answer");
        (newest, start.elapsed())
    };
    let (here, _) = wait(&*store, Revision(0), 0).await;
    let (there, _) = wait(&*other, Revision(0), 0).await;
    let (still, took) = wait(&*store, here, 300).await;
    assert_eq!(still, here, "nothing changed");
    assert!(took >= Duration::from_millis(300), "{took:?}");

    // A change comes while both wait: the one in whose process it was made wakes at once.
    let ((new_here, took_here), (new_there, took_there), ()) =
        tokio::join!(wait(&*store, here, 10_000), wait(&*other, there, 10_000), async {
            add_host(&*store, host("h1", 1_000)).await;
        });
    assert!(new_here > here && new_there > there);
    assert!(took_here < Duration::from_millis(500), "here: {took_here:?}");
    assert!(took_there < Duration::from_secs(1), "there: {took_there:?}");

    // Its own change may be seen once more from outside, never again.
    let (settled, _) = wait(&*store, new_here, 500).await;
    let (still, _) = wait(&*store, settled, 300).await;
    assert_eq!(still, settled, "its own change does not wake it for ever");
    let row = store
        .host_fetch(&host_name("h1"))
        .await
        .expect("an answer")
        .expect("there");
    let measured = store
        .host_update(&row, &HostChange::UsedCpu(5), None, T)
        .await
        .expect("an answer");
    assert!(matches!(measured, Outcome::Updated(_)));
    let (still, _) = wait(&*store, settled, 200).await;
    assert_eq!(still, settled, "a measurement wakes nobody");

    let (app, _) = committed(&*store, &deploy("hello")).await;
    placed(&*store, &app.id, vec![pick("h1", 10)], T).await;
    let (newest, took) = wait(&*store, settled, 10_000).await;
    assert!(newest > settled);
    assert!(
        took < Duration::from_millis(500),
        "changed before the wait began: {took:?}"
    );
}

pub(super) async fn tokens_and_credentials_are_kept((store, other): Handles) {
    assert_eq!(store.token_count().await.expect("an answer"), 0);
    let mut token = Token {
        id: "abcd1234".into(),
        name: "admin".into(),
        secret_hash: "0".repeat(64),
        created_at: T,
    };
    store.token_put(&token).await.expect("put");
    token.secret_hash = "1".repeat(64);
    store.token_put(&token).await.expect("replaced");
    assert_eq!(other.token_count().await.expect("an answer"), 1);
    assert_eq!(other.token_fetch("abcd1234").await.expect("an answer"), Some(token));
    assert_eq!(
        other.token_fetch("ABCD1234").await.expect("an answer"),
        None,
        "letters differ by case"
    );

    let event = event(EventKind::Admin);
    let mut credentials = RegistryCredentials {
        registry: "127.0.0.1:5000".into(),
        username: "ci".into(),
        password: "first".into(),
    };
    store.credentials_put(&credentials, &event, T).await.expect("put");
    credentials.password = "second'; --".into();
    store.credentials_put(&credentials, &event, T).await.expect("replaced");
    assert_eq!(other.credentials_list().await.expect("an answer"), [credentials]);
    assert!(
        store
            .credentials_remove("127.0.0.1:5000", &event, T)
            .await
            .expect("an answer")
    );
    assert!(
        !store
            .credentials_remove("127.0.0.1:5000", &event, T)
            .await
            .expect("an answer")
    );
    assert_eq!(other.credentials_list().await.expect("an answer"), []);
    assert_eq!(store.event_newest().await.expect("an answer"), 3);
}

pub(super) async fn the_platform_id_stays((store, other): Handles) {
    let (a, b) = tokio::join!(store.platform_id(), other.platform_id());
    let a = a.expect("an answer");
    assert_eq!(a, b.expect("an answer"));
    assert_eq!(a, store.platform_id().await.expect("an answer"));
}
