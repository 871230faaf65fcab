//! Apps, releases and intents.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::store::AppSettle;

pub(super) async fn an_app_comes_changes_and_goes((store, other): Handles) {
    store.check().await.expect("migrated");
    let intent = deploy("hello");
    let (app, operation) = committed(&*store, &intent).await;
    assert_eq!(app.generation, Generation::FIRST);
    assert_eq!(app.operation.as_ref(), Some(&operation.id));
    assert_eq!(app.config, intent.app.config);
    let seen = other.app_fetch(&app.id).await.expect("an answer");
    assert_eq!(seen.as_ref(), Some(&app), "another handle reads what was committed");
    assert_eq!(
        other.release_fetch(&app.id, 1).await.expect("an answer"),
        intent.release
    );
    assert_eq!(other.release_fetch(&app.id, 2).await.expect("an answer"), None);

    let mut second = change(&app, OperationKind::Deploy);
    second.app.release = 2;
    second.app.last_release = 2;
    second.app.placements = 99;
    second.app.restart_before = Some(T);
    second.release = Some(release(&app.id, 2));
    let (app, _) = committed(&*store, &second).await;
    assert_eq!(app.generation, Generation(2));
    assert_eq!(app.placements, 0, "placements are the store's own");
    assert_eq!((app.release, app.restart_before), (2, Some(T)));
    let releases = store.release_list(&app.id, 10).await.expect("an answer");
    assert_eq!(releases.iter().map(|r| r.number).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(store.release_list(&app.id, 1).await.expect("an answer").len(), 1);

    add_host(&*store, host("h1", 1_000)).await;
    let instance = placed(&*store, &app.id, vec![pick("h1", 100)], T).await.remove(0);
    assert!(
        !store.app_delete(&app.id, T).await.expect("an answer"),
        "it is not being removed"
    );
    let app = store.app_fetch(&app.id).await.expect("an answer").expect("there");
    let mut removal = change(&app, OperationKind::Remove);
    removal.app.status = AppStatus::Removing;
    committed(&*store, &removal).await;
    assert!(
        !store.app_delete(&app.id, T).await.expect("an answer"),
        "an instance is left"
    );
    moved(&*store, &instance, InstanceChange::Stopped, T).await;
    assert!(store.app_delete(&app.id, T).await.expect("an answer"));
    assert!(store.app_delete(&app.id, T).await.expect("an answer"), "gone is gone");
    assert_eq!(store.app_fetch(&app.id).await.expect("an answer"), None);
    assert_eq!(store.release_list(&app.id, 10).await.expect("an answer"), []);
    assert_eq!(store.instance_fetch(&instance.id).await.expect("an answer"), None);
    assert!(
        store
            .operation_fetch(&removal.operation.id)
            .await
            .expect("an answer")
            .is_some(),
        "the removal can still be followed"
    );
    committed(&*store, &deploy("hello")).await;
}

pub(super) async fn intents_conflict((store, _): Handles) {
    let missing = change(&deploy("hello").app, OperationKind::Scale);
    assert_eq!(
        store.intent_commit(&missing, T).await.expect("an answer"),
        IntentOutcome::NotFound
    );
    let (app, first) = committed(&*store, &deploy("hello")).await;
    let outcome = store.intent_commit(&deploy("hello"), T).await.expect("an answer");
    assert_eq!(outcome, IntentOutcome::Conflict(app.clone()), "it exists");

    let events = store.event_newest().await.expect("an answer");
    let mut stale = change(&app, OperationKind::Deploy);
    stale.expected = Expected::Generation(app.generation.next());
    stale.release = Some(release(&app.id, 2));
    stale.idempotency = key("stale", "r");
    let outcome = store.intent_commit(&stale, T).await.expect("an answer");
    assert_eq!(outcome, IntentOutcome::Conflict(app.clone()));
    assert_eq!(
        store.release_fetch(&app.id, 2).await.expect("an answer"),
        None,
        "nothing of it was kept"
    );
    assert_eq!(
        store.operation_fetch(&stale.operation.id).await.expect("an answer"),
        None
    );
    assert_eq!(
        store.operation_open().await.expect("an answer"),
        [first],
        "nothing was superseded"
    );
    assert_eq!(store.event_newest().await.expect("an answer"), events);
    stale.expected = Expected::Generation(app.generation);
    committed(&*store, &stale).await;
}

pub(super) async fn of_eight_writers_each_generation_has_one((store, other): Handles) {
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let writers = (0..8).map(|n| {
        let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
        let id = app.id.clone();
        tokio::spawn(async move {
            let mut won = 0;
            for _ in 0..15 {
                let app = store.app_fetch(&id).await.expect("an answer").expect("there");
                let mut intent = change(&app, OperationKind::Scale);
                intent.app.instances = app.instances + 1;
                match store.intent_commit(&intent, T).await.expect("an answer") {
                    IntentOutcome::Committed(..) => won += 1,
                    IntentOutcome::Conflict(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            won
        })
    });
    let won: u32 = futures::future::join_all(writers)
        .await
        .into_iter()
        .map(|w| w.expect("no panic"))
        .sum();
    let last = store.app_fetch(&app.id).await.expect("an answer").expect("there");
    assert!(won >= 15, "{won}: somebody always wins");
    assert_eq!(last.generation.0, u64::from(won) + 1, "one winner per generation");
    assert_eq!(last.instances, app.instances + won, "no update was lost");
    let operations = store.operation_list(Some(&app.id), 1_000).await.expect("an answer");
    assert_eq!(operations.len() as u32, won + 1);
    assert_eq!(store.operation_open().await.expect("an answer").len(), 1);
}

pub(super) async fn a_key_is_used_once((store, other): Handles) {
    let mut intent = deploy("hello");
    intent.idempotency = key("token:k1", "request 1");
    let (app, operation) = committed(&*store, &intent).await;
    let mut again = deploy("hello");
    again.idempotency.clone_from(&intent.idempotency);
    let outcome = other.intent_commit(&again, T).await.expect("an answer");
    assert_eq!(outcome, IntentOutcome::Replayed(operation));
    let mut different = change(&app, OperationKind::Scale);
    different.idempotency = key("token:k1", "request 2");
    let outcome = store.intent_commit(&different, T).await.expect("an answer");
    assert_eq!(outcome, IntentOutcome::KeyReused);
    let day = seconds(24 * 3_600 + 1);
    let outcome = store.intent_commit(&different, day).await.expect("an answer");
    assert!(
        matches!(outcome, IntentOutcome::Committed(..)),
        "after a day it is forgotten: {outcome:?}"
    );

    for round in 0..5 {
        let id = format!("parallel-{round}");
        let tries = (0..6).map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
            let mut intent = deploy(&id);
            intent.idempotency = key(&format!("token:p{round}"), "same");
            tokio::spawn(async move { store.intent_commit(&intent, T).await.expect("an answer") })
        });
        let mut committed = Vec::new();
        let mut replayed = Vec::new();
        for outcome in futures::future::join_all(tries).await {
            match outcome.expect("no panic") {
                IntentOutcome::Committed(_, operation) => committed.push(operation.id),
                IntentOutcome::Replayed(operation) => replayed.push(operation.id),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((committed.len(), replayed.len()), (1, 5));
        assert!(replayed.iter().all(|id| *id == committed[0]));
    }
}

pub(super) async fn a_later_operation_supersedes((store, _): Handles) {
    let (app, first) = committed(&*store, &deploy("hello")).await;
    let (elsewhere, unrelated) = committed(&*store, &deploy("elsewhere")).await;
    let mut blocked = first.clone();
    blocked.state = OperationState::Blocked;
    let outcome = store.operation_update(&blocked, T).await.expect("an answer");
    assert_eq!(outcome.updated().map(|o| o.state), Some(OperationState::Blocked));
    let (_, second) = committed(&*store, &change(&app, OperationKind::Scale)).await;
    let first = store
        .operation_fetch(&first.id)
        .await
        .expect("an answer")
        .expect("there");
    assert_eq!(first.state, OperationState::Superseded);
    assert!(first.message.contains(second.id.as_str()), "{}", first.message);
    assert!(
        matches!(store.operation_update(&blocked, T).await, Ok(Outcome::Conflict(row)) if row == first),
        "the one that still works on it is told"
    );
    let open = store.operation_open().await.expect("an answer");
    assert_eq!(open.len(), 2);
    assert!(
        open.contains(&second) && open.contains(&unrelated),
        "{} is not concerned",
        elsewhere.id
    );
    let told = store.event_list(0, Some(&app.id), 100).await.expect("an answer");
    assert!(told.iter().any(|e| e.event.operation.as_ref() == Some(&first.id)
        && e.event.kind == EventKind::Operation
        && e.event.message.contains("superseded")));
}

pub(super) async fn settling_moves_the_way_back((store, other): Handles) {
    let mut first = deploy("hello");
    first.app.release = 0;
    first.app.turn_to(1, None);
    let (app, operation) = committed(&*store, &first).await;
    assert!(!app.is_settled());
    let routed = AppSettle::Routed { release: 1 };
    let settled = store.app_settle(&app, &routed, T).await.expect("an answer");
    let settled = settled.updated().expect("settled");
    assert_eq!(
        (settled.release, settled.previous_release, settled.is_settled()),
        (1, 0, true)
    );
    assert_eq!(settled.generation, app.generation.next());
    assert_eq!(settled.operation, Some(operation.id), "still the intent's operation");
    assert!(
        matches!(store.app_settle(&app, &routed, T).await, Ok(Outcome::Conflict(row)) if row == settled),
        "it names the generation that it saw"
    );
    let same = store
        .app_settle(&settled, &routed, T)
        .await
        .expect("an answer")
        .updated();
    assert_eq!(same.as_ref(), Some(&settled), "settled already: nothing changes");

    let mut second = change(&settled, OperationKind::Deploy);
    second.app.turn_to(2, None);
    second.app.last_release = 2;
    second.release = Some(release(&app.id, 2));
    let (app, _) = committed(&*store, &second).await;
    assert_eq!(other.app_fetch(&app.id).await.expect("an answer").as_ref(), Some(&app));
    let back = AppSettle::RolledBack { to: 1 };
    let back = store
        .app_settle(&app, &back, T)
        .await
        .expect("an answer")
        .updated()
        .expect("settled");
    assert_eq!((back.release, back.previous_release, back.last_release), (1, 0, 2));
    let mut missing = back;
    missing.id = app_id("missing");
    assert_eq!(
        store.app_settle(&missing, &routed, T).await.expect("an answer"),
        Outcome::NotFound
    );
}

pub(super) async fn a_failed_release_gives_back_what_was_there((store, other): Handles) {
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let turned = |app: &App, change_config: &dyn Fn(&mut AppConfig)| {
        let mut intent = change(app, OperationKind::Deploy);
        let number = app.last_release + 1;
        intent.app.turn_to(number, None);
        intent.app.last_release = number;
        intent.release = Some(release(&app.id, number));
        intent.app.instances = 10;
        change_config(&mut intent.app.config);
        if let Some(back) = &mut intent.app.way_back {
            back.config = Some(app.config.clone());
            back.instances = Some(app.instances);
        }
        intent
    };
    let fail = async |app: &App| {
        let back = AppSettle::RolledBack {
            to: app.previous_release,
        };
        let outcome = store.app_settle(app, &back, T).await.expect("an answer");
        let row = outcome.updated().expect("nobody else changes it");
        assert_eq!(other.app_fetch(&row.id).await.expect("an answer").as_ref(), Some(&row));
        row
    };
    // Its domain, its number, and no port.
    let to_tcp = turned(&app, &|config| {
        config.domains = vec!["new.example.com".into()];
        config.protocol = Protocol::Tcp;
    });
    let (failing, _) = committed(&*store, &to_tcp).await;
    assert_ne!(failing.config.tcp.port, 0);
    let back = fail(&failing).await;
    assert_eq!((back.instances, &back.config), (app.instances, &app.config));
    let mut other_app = deploy("other");
    other_app.app.config.domains = vec!["new.example.com".into()];
    other_app.app.config.protocol = Protocol::Tcp;
    other_app.app.config.tcp.port = failing.config.tcp.port;
    committed(&*store, &other_app).await;
    let mut thief = deploy("thief");
    thief.app.config.domains = vec!["hello.example.com".into()];
    assert!(
        matches!(
            store.intent_commit(&thief, T).await,
            Ok(IntentOutcome::DomainTaken { .. })
        ),
        "its own again"
    );

    // What others have taken meanwhile is theirs.
    let mut named = change(&back, OperationKind::Configure);
    named.app.config.protocol = Protocol::Tcp;
    named.app.config.domains.push("kept.example.com".into());
    let (named, _) = committed(&*store, &named).await;
    let port = named.config.tcp.port;
    let plain = turned(&named, &|config| *config = AppConfig::default());
    let (failing, _) = committed(&*store, &plain).await;
    thief.app.config.protocol = Protocol::Tcp;
    thief.app.config.tcp.port = port;
    committed(&*store, &thief).await;
    let back = fail(&failing).await;
    assert_eq!(back.config.domains, ["kept.example.com"]);
    assert_eq!((back.config.protocol, back.config.tcp.port), (Protocol::Tcp, 0));
    let told = store.event_list(0, Some(&app.id), 100).await.expect("an answer");
    let lost = "hello.example.com belongs to app thief by now";
    assert!(told.iter().any(|e| e.event.message.contains(lost)), "{told:?}");
}

/// What its release speaks comes back with a release, whoever has configured the app since.
pub(super) async fn a_protocol_comes_back_with_its_release((store, other): Handles) {
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let first = store.release_fetch(&app.id, 1).await.expect("an answer");
    assert_eq!(first.expect("there").protocol, Some(Protocol::H2c), "as it was made");
    let mut next = change(&app, OperationKind::Deploy);
    next.app.turn_to(2, Some(Protocol::H2c));
    next.app.last_release = 2;
    next.release = Some(Release {
        protocol: None,
        ..release(&app.id, 2)
    });
    let (failing, _) = committed(&*store, &next).await;
    assert_eq!(failing.config.protocol, Protocol::H2c);
    let second = other.release_fetch(&app.id, 2).await.expect("an answer");
    assert_eq!(second.expect("there").protocol, None, "as older versions make them");
    let mut said = change(&failing, OperationKind::Configure);
    said.app.config.redirect_https = true;
    let (failing, _) = committed(&*store, &said).await;
    let back = AppSettle::RolledBack { to: 1 };
    let outcome = store.app_settle(&failing, &back, T).await.expect("an answer");
    let row = outcome.updated().expect("nobody else changes it");
    assert_eq!(
        (row.config.protocol, row.config.redirect_https),
        (Protocol::Http, true),
        "of the configuration nothing else"
    );
    assert_eq!(other.app_fetch(&row.id).await.expect("an answer"), Some(row));
}

pub(super) async fn claims_are_held_renewed_and_lost((store, other): Handles) {
    let app = app_id("hello");
    let ttl = Duration::from_secs(10);
    let claim =
        async |store: &dyn Store, holder: &str, at| store.app_claim(&app, holder, at, ttl).await.expect("an answer");
    assert!(claim(&*store, "a", T).await);
    assert!(claim(&*store, "a", seconds(5)).await, "renewed");
    assert!(!claim(&*other, "b", seconds(14)).await, "renewed until 15");
    assert!(claim(&*other, "b", seconds(15)).await, "expired");
    assert!(!claim(&*store, "a", seconds(16)).await);
    let both = app_id("both");
    assert!(
        store.history_prune(1, T, seconds(100)).await.expect("an answer") > 0,
        "it has run out"
    );
    assert!(claim(&*store, "a", T).await, "and is forgotten");
    let (a, b) = tokio::join!(store.app_claim(&both, "a", T, ttl), other.app_claim(&both, "b", T, ttl));
    assert_ne!(a.expect("an answer"), b.expect("an answer"), "one of two");
}

pub(super) async fn a_domain_has_one_app((store, other): Handles) {
    let named = |id: &str, domains: &[&str]| {
        let mut intent = deploy(id);
        intent.app.config.domains = domains.iter().map(|d| (*d).to_owned()).collect();
        intent
    };
    let (first, _) = committed(&*store, &named("first", &["a.example.com", "b.example.com"])).await;
    let outcome = other
        .intent_commit(&named("second", &["c.example.com", "b.example.com"]), T)
        .await;
    let taken = |domain: &str| IntentOutcome::DomainTaken {
        domain: domain.into(),
        owner: first.id.clone(),
    };
    assert_eq!(outcome.expect("an answer"), taken("b.example.com"));
    assert_eq!(
        store.app_fetch(&app_id("second")).await.expect("an answer"),
        None,
        "nothing of it was kept"
    );
    let (second, _) = committed(&*store, &named("second", &["c.example.com", "c.example.com"])).await;
    let mut greedy = change(&second, OperationKind::Configure);
    greedy.app.config.domains.push("a.example.com".into());
    assert_eq!(
        store.intent_commit(&greedy, T).await.expect("an answer"),
        taken("a.example.com")
    );

    // Given back by the one, it is free for the other.
    let mut modest = change(&first, OperationKind::Configure);
    modest.app.config.domains = vec!["b.example.com".into()];
    let (first, _) = committed(&*store, &modest).await;
    committed(&*store, &greedy).await;
    let mut removal = change(&first, OperationKind::Remove);
    removal.app.status = AppStatus::Removing;
    committed(&*store, &removal).await;
    assert!(store.app_delete(&first.id, T).await.expect("an answer"));
    committed(&*store, &named("third", &["b.example.com"])).await;

    // A wildcard is a domain like any other; names under it may be other apps'.
    let (wild, _) = committed(&*store, &named("wild", &["*.example.com"])).await;
    let outcome = other.intent_commit(&named("wilder", &["*.example.com"]), T).await;
    let taken = IntentOutcome::DomainTaken {
        domain: "*.example.com".into(),
        owner: wild.id.clone(),
    };
    assert_eq!(outcome.expect("an answer"), taken);
    committed(&*store, &named("tame", &["tame.example.com", "*.tame.example.com"])).await;
    // So is each path of a name.
    let (paths, _) = committed(
        &*store,
        &named("paths", &["tame.example.com/api", "tame.example.com/api/v2"]),
    )
    .await;
    let outcome = other.intent_commit(&named("thief", &["tame.example.com/api"]), T).await;
    let taken = IntentOutcome::DomainTaken {
        domain: "tame.example.com/api".into(),
        owner: paths.id.clone(),
    };
    assert_eq!(outcome.expect("an answer"), taken);

    for round in 0..5 {
        let domains = [format!("x{round}.example.com"), format!("y{round}.example.com")];
        let tries = (0..6).map(|n| {
            let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
            let mut intent = deploy(&format!("racer-{round}-{n}"));
            intent.app.config.domains = domains.to_vec();
            if n % 3 == 0 {
                intent.app.config.domains.reverse();
            }
            tokio::spawn(async move { store.intent_commit(&intent, T).await.expect("an answer") })
        });
        let mut won = Vec::new();
        let mut lost = Vec::new();
        for outcome in futures::future::join_all(tries).await {
            match outcome.expect("no panic") {
                IntentOutcome::Committed(app, _) => won.push(app.id),
                IntentOutcome::DomainTaken { owner, .. } => lost.push(owner),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((won.len(), lost.len()), (1, 5));
        assert!(lost.iter().all(|owner| *owner == won[0]), "told whose it is");
    }
}

pub(super) async fn a_restart_replaces_what_was_there_whatever_the_clocks_say((store, _): Handles) {
    add_host(&*store, host("h1", 1_000)).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    // Placed by a machine whose clock is ahead, restarted and placed anew by one whose clock is behind.
    let old = placed(&*store, &app.id, vec![pick("h1", 10)], seconds(100))
        .await
        .remove(0);
    let app = store.app_fetch(&app.id).await.expect("an answer").expect("there");
    let mut restart = change(&app, OperationKind::Restart);
    restart.app.restart_before = Some(seconds(10));
    let (app, _) = committed(&*store, &restart).await;
    assert!(app.restart_before > Some(old.placed_at), "{:?}", app.restart_before);
    let new = placed(&*store, &app.id, vec![pick("h1", 10)], seconds(11))
        .await
        .remove(0);
    assert!(Some(new.placed_at) >= app.restart_before, "{:?}", new.placed_at);

    let app = store.app_fetch(&app.id).await.expect("an answer").expect("there");
    let (after, _) = committed(&*store, &change(&app, OperationKind::Scale)).await;
    assert_eq!(after.restart_before, app.restart_before, "only a restart moves it");
}

pub(super) async fn a_canary_is_kept_and_settled((store, other): Handles) {
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let canary = Canary {
        release: 2,
        version: "v2".parse().expect("a valid version"),
        beside: "v1".parse().expect("a valid version"),
        instances: 3,
        percent: 5,
    };
    let mut intent = change(&app, OperationKind::Canary);
    intent.app.last_release = 2;
    intent.app.canary = Some(canary.clone());
    intent.app.config.weights = canary.weights();
    intent.release = Some(release(&app.id, 2));
    let (app, _) = committed(&*store, &intent).await;
    let read = other.app_fetch(&app.id).await.expect("an answer").expect("there");
    assert_eq!((read.canary.as_ref(), read.release), (Some(&canary), 1));
    let settle = async |app: &App, change: AppSettle| {
        let outcome = store.app_settle(app, &change, T).await.expect("an answer");
        outcome.updated().expect("nobody else changes it")
    };
    let same = settle(&app, AppSettle::CanaryGone { release: 2 }).await;
    assert_eq!(same, app, "it is not on its way out");
    let same = settle(&app, AppSettle::CanaryFailed { release: 3 }).await;
    assert_eq!(same, app, "another canary's failure");
    let failed = settle(&app, AppSettle::CanaryFailed { release: 2 }).await;
    assert_eq!(failed.canary, Some(canary.leaving()));
    assert_eq!(failed.config.weights, canary.leaving().weights());
    let gone = settle(&failed, AppSettle::CanaryGone { release: 2 }).await;
    assert_eq!((gone.canary.as_ref(), gone.config.weights.len()), (None, 0));
    assert_eq!(gone.config.domains, app.config.domains);
    assert_eq!(gone.generation, app.generation.next().next());
    let read = other.app_fetch(&app.id).await.expect("an answer");
    assert_eq!(read, Some(gone));
}
