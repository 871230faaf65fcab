//! Ports at the gateways.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::PortRange;
use crate::store::PORT_REST;

/// A deploy of a TCP app that wishes for `port`; 0: any of 15000-15003.
fn tcp(id: &str, port: u16) -> Intent {
    let mut intent = deploy(id);
    intent.app.config = AppConfig {
        protocol: Protocol::Tcp,
        ..AppConfig::default()
    };
    intent.app.config.tcp.port = port;
    intent.tcp_ports = PortRange {
        first: 15_000,
        last: 15_003,
    };
    intent
}

async fn stored_port(store: &dyn Store, id: &AppId) -> u16 {
    let app = store.app_fetch(id).await.expect("an answer").expect("the app");
    app.config.tcp.port
}

pub(super) async fn a_tcp_app_has_a_port_of_its_own((store, other): Handles) {
    let (db, _) = committed(&*store, &tcp("db", 0)).await;
    assert_eq!(db.config.tcp.port, 15_000, "the lowest");
    assert_eq!(stored_port(&*other, &db.id).await, 15_000);
    let (cache, _) = committed(&*other, &tcp("cache", 0)).await;
    assert_eq!(cache.config.tcp.port, 15_001);

    // It is kept, whether the next change names it or not, also when the range is another by now.
    let mut again = change(&db, OperationKind::Deploy);
    let (db, _) = committed(&*store, &again).await;
    assert_eq!(db.config.tcp.port, 15_000);
    again = change(&db, OperationKind::Configure);
    again.app.config.tcp.port = 0;
    again.tcp_ports = PortRange { first: 9, last: 9 };
    let (db, _) = committed(&*store, &again).await;
    assert_eq!(db.config.tcp.port, 15_000);
    assert_eq!(stored_port(&*other, &db.id).await, 15_000);

    // Given back when it speaks something else, and when it is deleted; then the port rests.
    let mut http = change(&db, OperationKind::Configure);
    http.app.config = AppConfig::default();
    committed(&*store, &http).await;
    let mut leaving = change(&cache, OperationKind::Remove);
    leaving.app.status = AppStatus::Removing;
    let (cache, _) = committed(&*store, &leaving).await;
    assert_eq!(cache.config.tcp.port, 15_001, "until it is gone");
    assert!(store.app_delete(&cache.id, T).await.expect("an answer"));
    let (third, _) = committed(&*store, &tcp("third", 0)).await;
    let (fourth, _) = committed(&*store, &tcp("fourth", 0)).await;
    assert_eq!((third.config.tcp.port, fourth.config.tcp.port), (15_002, 15_003));
    let none = store.intent_commit(&tcp("fifth", 0), T).await.expect("an answer");
    assert_eq!(none, IntentOutcome::NoPort);
    let nobody = store.app_fetch(&app_id("fifth")).await.expect("an answer");
    assert_eq!(nobody, None, "nothing of a refused change stays");
    let rested = T.plus(PORT_REST);
    match store.intent_commit(&tcp("fifth", 0), rested).await.expect("an answer") {
        IntentOutcome::Committed(app, _) => assert_eq!(app.config.tcp.port, 15_000),
        refused => panic!("rested long enough: {refused:?}"),
    }
}

pub(super) async fn an_app_found_by_its_name_has_only_the_port_that_it_asks_for((store, other): Handles) {
    let named = |id: &str, port| {
        let mut intent = tcp(id, port);
        intent.app.config.tcp.passthrough = true;
        intent
    };
    let (vault, _) = committed(&*store, &named("vault", 0)).await;
    assert_eq!(vault.config.tcp.port, 0);
    assert_eq!(stored_port(&*other, &vault.id).await, 0);
    let (db, _) = committed(&*other, &tcp("db", 0)).await;
    assert_eq!(db.config.tcp.port, 15_000, "nobody has it");
    let (safe, _) = committed(&*store, &named("safe", 15_002)).await;
    assert_eq!(safe.config.tcp.port, 15_002);
    // It keeps it until it says that it wants none; then others may have it once they ask.
    let (safe, _) = committed(&*store, &change(&safe, OperationKind::Deploy)).await;
    assert_eq!(safe.config.tcp.port, 15_002);
    let mut without = change(&safe, OperationKind::Configure);
    without.app.config.tcp.port = 0;
    let (safe, _) = committed(&*other, &without).await;
    assert_eq!(stored_port(&*store, &safe.id).await, 0);
    let (next, _) = committed(&*store, &tcp("next", 15_002)).await;
    assert_eq!(next.config.tcp.port, 15_002);
    // A port is given once it does not go by its name any more.
    let mut plain = change(&vault, OperationKind::Configure);
    plain.app.config.tcp.passthrough = false;
    plain.tcp_ports = PortRange {
        first: 15_000,
        last: 15_003,
    };
    let (vault, _) = committed(&*store, &plain).await;
    assert_eq!(vault.config.tcp.port, 15_001);
}

pub(super) async fn a_wished_port_is_honoured_or_its_holder_named((store, other): Handles) {
    let (db, _) = committed(&*store, &tcp("db", 15_002)).await;
    assert_eq!(db.config.tcp.port, 15_002);
    let taken = other.intent_commit(&tcp("cache", 15_002), T).await.expect("an answer");
    let by = app_id("db");
    assert_eq!(taken, IntentOutcome::PortTaken { port: 15_002, by });
    let (cache, _) = committed(&*other, &tcp("cache", 0)).await;
    assert_eq!(cache.config.tcp.port, 15_000);

    // Another wish moves it; a wish that can't be granted leaves it where it is.
    let mut elsewhere = change(&db, OperationKind::Configure);
    elsewhere.app.config.tcp.port = 15_000;
    let refused = store.intent_commit(&elsewhere, T).await.expect("an answer");
    assert!(
        matches!(refused, IntentOutcome::PortTaken { port: 15_000, .. }),
        "{refused:?}"
    );
    assert_eq!(stored_port(&*store, &db.id).await, 15_002);
    elsewhere.app.config.tcp.port = 15_003;
    let (db, _) = committed(&*store, &elsewhere).await;
    assert_eq!(db.config.tcp.port, 15_003);

    // Who asks by number does not wait for the rest.
    let (third, _) = committed(&*other, &tcp("third", 15_002)).await;
    assert_eq!(third.config.tcp.port, 15_002);
}

pub(super) async fn eight_writers_never_share_a_port((store, other): Handles) {
    let writers = (0..8).map(|n| {
        let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
        tokio::spawn(async move {
            let mut ports = Vec::new();
            for round in 0..4 {
                let mut intent = tcp(&format!("app-{n}-{round}"), 0);
                intent.tcp_ports.last = 15_099;
                let (app, _) = committed(&*store, &intent).await;
                ports.push(app.config.tcp.port);
            }
            ports
        })
    });
    let mut ports = Vec::new();
    for writer in futures::future::join_all(writers).await {
        ports.extend(writer.expect("no panic"));
    }
    let distinct: BTreeSet<u16> = ports.iter().copied().collect();
    assert_eq!(distinct.len(), 32, "{ports:?}");

    // Of eight that wish for the same one, one gets it and the others hear who.
    let wishes = (0..8).map(|n| {
        let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
        tokio::spawn(async move { store.intent_commit(&tcp(&format!("wish-{n}"), 15_500), T).await })
    });
    let (mut winners, mut told) = (Vec::new(), BTreeSet::new());
    for wish in futures::future::join_all(wishes).await {
        match wish.expect("no panic").expect("an answer") {
            IntentOutcome::Committed(app, _) => winners.push(app.id),
            IntentOutcome::PortTaken { by, .. } => {
                told.insert(by);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(told.into_iter().collect::<Vec<_>>(), winners);
}
