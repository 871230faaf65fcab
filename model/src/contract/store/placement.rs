//! Placement: reservations and ports.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::*;
use crate::InstanceState;
use crate::store::{InstanceFilter, PORT_REST, PORT_SPARED, RefusedBecause};

pub(super) async fn placed_instances_hold_host_and_port((store, other): Handles) {
    add_host(&*store, host("h1", 1_000)).await;
    add_host(&*store, host("h2", 1_000)).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let picks = vec![pick("h2", 300), pick("h1", 200), pick("h2", 100)];
    let instances = placed(&*store, &app.id, picks.clone(), seconds(5)).await;
    assert_eq!(instances.len(), 3);
    for instance in &instances {
        let pick = picks
            .iter()
            .find(|p| p.instance == instance.id)
            .expect("one of the picks");
        assert_eq!((&instance.host, instance.memory_mb), (&pick.host, pick.memory_mb));
        assert_eq!(
            (instance.state, instance.placed_at),
            (InstanceState::Placed, seconds(5))
        );
        assert!((20_000..=29_999).contains(&instance.port));
        let read = other.instance_fetch(&instance.id).await.expect("an answer");
        assert_eq!(read.as_ref(), Some(instance));
    }
    let hosts = other.host_list().await.expect("an answer");
    let reserved: Vec<_> = hosts
        .iter()
        .map(|h| {
            (
                h.name.as_str(),
                h.reserved_memory_mb,
                h.reserved_cpu_weight,
                h.instances,
            )
        })
        .collect();
    assert_eq!(reserved, [("h1", 200, 100, 1), ("h2", 400, 200, 2)]);
    let after = store.app_fetch(&app.id).await.expect("an answer").expect("there");
    assert_eq!((after.placements, after.generation), (1, app.generation));
    let told = store.event_list(0, Some(&app.id), 100).await.expect("an answer");
    for instance in &instances {
        assert!(told.iter().any(|e| e.event.instance.as_ref() == Some(&instance.id)));
    }
}

pub(super) async fn refusals_have_reasons((store, _): Handles) {
    add_host(&*store, host("small", 250)).await;
    let cordoned = add_host(&*store, host("cordoned", 1_000)).await;
    let down = add_host(&*store, host("down", 1_000)).await;
    let cordon = HostChange::Schedulability(Schedulability::Cordoned);
    store
        .host_update(&cordoned, &cordon, None, T)
        .await
        .expect("an answer")
        .updated()
        .expect("done");
    store
        .host_update(&down, &HostChange::Down(T), None, T)
        .await
        .expect("an answer")
        .updated()
        .expect("done");
    let mut tight = host("tight", 1_000);
    tight.port_range = (20_000, 20_000);
    add_host(&*store, tight).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let picks: Vec<Pick> = [
        ("small", 200),
        ("small", 51),
        ("small", 50),
        ("cordoned", 1),
        ("down", 1),
        ("gone", 1),
    ]
    .into_iter()
    .chain([("tight", 10), ("tight", 10)])
    .map(|(host, memory)| pick(host, memory))
    .collect();
    let outcome = store
        .instance_place(&placing(&app, picks.clone()), T)
        .await
        .expect("an answer");
    let PlaceOutcome::Placed { placed, refused } = outcome else {
        panic!("{outcome:?}");
    };
    let refused: BTreeMap<_, _> = refused.into_iter().collect();
    let answer = |n: usize| {
        let id = &picks[n].instance;
        (placed.iter().any(|i| i.id == *id), refused.get(id).copied())
    };
    assert_eq!(answer(0), (true, None));
    assert_eq!(answer(1), (false, Some(RefusedBecause::HostFull)));
    assert_eq!(answer(2), (true, None), "a smaller one still fits");
    for closed in 3..6 {
        assert_eq!(answer(closed), (false, Some(RefusedBecause::HostClosed)));
    }
    let tight = [answer(6), answer(7)];
    assert!(
        tight.contains(&(false, Some(RefusedBecause::NoPort))) && tight.contains(&(true, None)),
        "{tight:?}"
    );
    let row = store
        .host_fetch(&host_name("tight"))
        .await
        .expect("an answer")
        .expect("there");
    assert_eq!(
        (row.reserved_memory_mb, row.instances),
        (10, 1),
        "nothing is reserved for the refused"
    );

    let app = store.app_fetch(&app.id).await.expect("an answer").expect("there");
    let outcome = store
        .instance_place(&placing(&app, vec![pick("gone", 1)]), T)
        .await
        .expect("an answer");
    assert!(matches!(outcome, PlaceOutcome::Placed { placed, refused } if placed.is_empty() && refused.len() == 1));
    let after = store.app_fetch(&app.id).await.expect("an answer").expect("there");
    assert_eq!(after, app, "nothing placed, nothing changed");
}

pub(super) async fn a_changed_app_is_a_conflict((store, other): Handles) {
    add_host(&*store, host("h1", 1_000)).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    placed(&*store, &app.id, vec![pick("h1", 10)], T).await;
    let conflict = async |app: &App| {
        let outcome = other
            .instance_place(&placing(app, vec![pick("h1", 10)]), T)
            .await
            .expect("an answer");
        assert_eq!(outcome, PlaceOutcome::Conflict);
    };
    conflict(&app).await;
    let app = store.app_fetch(&app.id).await.expect("an answer").expect("there");
    let mut stop = change(&app, OperationKind::Stop);
    stop.app.status = AppStatus::Stopped;
    let (stopped, _) = committed(&*store, &stop).await;
    conflict(&app).await;
    conflict(&stopped).await;
    let held = store.instance_list(&InstanceFilter::held()).await.expect("an answer");
    assert_eq!(held.len(), 1);
    let row = store
        .host_fetch(&host_name("h1"))
        .await
        .expect("an answer")
        .expect("there");
    assert_eq!((row.reserved_memory_mb, row.instances), (10, 1));
}

pub(super) async fn eight_placers_never_overbook((store, other): Handles) {
    const HOSTS: u32 = 3;
    const FIT: u32 = 20;
    for n in 0..HOSTS {
        let mut host = host(&format!("h{n}"), FIT * 100 + 99);
        // Few ports, so that they collide.
        host.port_range = (20_000, 20_000 + u16::try_from(FIT).expect("small") + 4);
        add_host(&*store, host).await;
    }
    let placers = (0..8).map(|n| {
        let store = Arc::clone(if n % 2 == 0 { &store } else { &other });
        tokio::spawn(async move {
            let app = committed(&*store, &deploy(&format!("app-{n}"))).await.0.id;
            let mut count = 0;
            for round in 0..6 {
                // In different orders, so that whoever locks in the order given would deadlock.
                let picks = (0..4)
                    .map(|i| pick(&format!("h{}", (n + round + i) % HOSTS), 100))
                    .collect();
                let row = store.app_fetch(&app).await.expect("an answer").expect("there");
                match store.instance_place(&placing(&row, picks), T).await.expect("an answer") {
                    PlaceOutcome::Placed { placed, .. } => count += placed.len(),
                    PlaceOutcome::Conflict => panic!("nobody else places {app}"),
                }
            }
            count
        })
    });
    let count: usize = futures::future::join_all(placers)
        .await
        .into_iter()
        .map(|p| p.expect("no panic"))
        .sum();
    let instances = store.instance_list(&InstanceFilter::held()).await.expect("an answer");
    assert_eq!(instances.len(), count);
    assert_eq!(
        count,
        (HOSTS * FIT) as usize,
        "wanted more than there is room for: every host is full"
    );
    let ports: HashSet<_> = instances.iter().map(|i| (i.host.clone(), i.port)).collect();
    assert_eq!(ports.len(), count, "no port twice");
    for host in store.host_list().await.expect("an answer") {
        let held = instances.iter().filter(|i| i.host == host.name).count();
        assert_eq!(
            (host.instances as usize, host.reserved_memory_mb),
            (held, held as u32 * 100)
        );
        assert!(host.reserved_memory_mb <= host.memory_mb);
    }
}

pub(super) async fn ports_rest((store, _): Handles) {
    let mut one_port = host("h1", 1_000);
    one_port.port_range = (20_000, 20_000);
    add_host(&*store, one_port).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let instance = placed(&*store, &app.id, vec![pick("h1", 10)], T).await.remove(0);
    moved(&*store, &instance, InstanceChange::Stopped, T).await;
    let try_at = async |now| {
        let app = store.app_fetch(&app.id).await.expect("an answer").expect("there");
        let outcome = store.instance_place(&placing(&app, vec![pick("h1", 10)]), now).await;
        match outcome.expect("an answer") {
            PlaceOutcome::Placed { mut placed, refused } => placed.pop().ok_or_else(|| refused[0].1),
            PlaceOutcome::Conflict => panic!("nobody else places"),
        }
    };
    let rested = T.plus(PORT_REST);
    let early = rested.minus(Duration::from_millis(1));
    assert_eq!(try_at(early).await, Err(RefusedBecause::NoPort), "it rests");
    let again = try_at(rested).await.expect("it has rested");
    assert_eq!(again.port, 20_000);

    // Quarantined while leased: it rests for the longer of both.
    let long = rested.plus(PORT_REST * 3);
    store
        .port_quarantine(&again.host, again.port, long)
        .await
        .expect("done");
    moved(&*store, &again, InstanceChange::Stopped, rested).await;
    assert_eq!(try_at(rested.plus(PORT_REST)).await, Err(RefusedBecause::NoPort));
    let third = try_at(long).await.expect("it has rested");
    moved(&*store, &third, InstanceChange::Stopped, long).await;

    // Quarantined while nobody holds it.
    let mut free = host("h2", 1_000);
    free.port_range = (30_000, 30_000);
    add_host(&*store, free).await;
    store
        .port_quarantine(&host_name("h2"), 30_000, long)
        .await
        .expect("done");
    store
        .port_quarantine(&host_name("nowhere"), 30_000, long)
        .await
        .expect("nothing to do");
    let row = store.app_fetch(&app.id).await.expect("an answer").expect("there");
    let outcome = store
        .instance_place(&placing(&row, vec![pick("h2", 10)]), T)
        .await
        .expect("an answer");
    assert!(matches!(outcome, PlaceOutcome::Placed { refused, .. } if refused[0].1 == RefusedBecause::NoPort));
}

/// Beyond its rest a port is leased again only where there is no other, the one that was released first at first.
pub(super) async fn ports_are_spared((store, _): Handles) {
    let mut three_ports = host("h1", 1_000);
    three_ports.port_range = (20_000, 20_002);
    add_host(&*store, three_ports).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let place = async |now| placed(&*store, &app.id, vec![pick("h1", 10)], now).await.remove(0);
    let (first, second) = (place(T).await, place(T).await);
    moved(&*store, &second, InstanceChange::Stopped, T).await;
    moved(&*store, &first, InstanceChange::Stopped, seconds(1)).await;

    let rested = seconds(1).plus(PORT_REST);
    let third = place(rested).await;
    assert!(![first.port, second.port].contains(&third.port), "one that nobody had");
    let again = place(rested).await;
    assert_eq!(again.port, second.port, "then the one that was released first");
    assert_eq!(place(rested).await.port, first.port);
    moved(&*store, &third, InstanceChange::Stopped, rested).await;
    let later = rested.plus(PORT_REST);
    moved(&*store, &again, InstanceChange::Stopped, later).await;

    // After that time nothing sets them apart.
    let long = later.plus(PORT_REST).plus(PORT_SPARED);
    let ports = HashSet::from([place(long).await.port, place(long).await.port]);
    assert_eq!(ports, HashSet::from([again.port, third.port]));
}

pub(super) async fn a_nearly_full_range_is_used_up((store, _): Handles) {
    let mut host = host("h1", 10_000);
    host.port_range = (20_000, 20_099);
    add_host(&*store, host).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let mut ports = HashSet::new();
    for size in [98, 1, 1] {
        let picks = (0..size).map(|_| pick("h1", 10)).collect();
        ports.extend(placed(&*store, &app.id, picks, T).await.into_iter().map(|i| i.port));
    }
    assert_eq!(ports, (20_000..=20_099).collect());
}

pub(super) async fn ports_rest_though_their_host_goes_and_comes_back((store, _): Handles) {
    let one_port = |name: &str, address: &str| {
        let mut host = host(name, 1_000);
        host.address = address.parse().expect("an address");
        host.port_range = (20_000, 20_000);
        host
    };
    let gone = async |name: &str, now| {
        let outcome = store.host_commit(&leaving(&host_name(name)), now).await;
        assert!(matches!(outcome.expect("an answer"), HostOutcome::Committed(_)));
    };
    add_host(&*store, one_port("h1", "10.0.0.7")).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let try_at = async |name: &str, now| {
        let app = store.app_fetch(&app.id).await.expect("an answer").expect("there");
        let outcome = store.instance_place(&placing(&app, vec![pick(name, 10)]), now).await;
        match outcome.expect("an answer") {
            PlaceOutcome::Placed { mut placed, refused } => placed.pop().ok_or_else(|| refused[0].1),
            PlaceOutcome::Conflict => panic!("nobody else places"),
        }
    };
    let instance = try_at("h1", T).await.expect("it is free");
    moved(&*store, &instance, InstanceChange::Stopped, T).await;
    gone("h1", seconds(1)).await;

    // Under another name at the same address it rests on, elsewhere it is free.
    add_host(&*store, one_port("again", "10.0.0.7")).await;
    add_host(&*store, one_port("other", "10.0.0.8")).await;
    assert_eq!(try_at("again", seconds(2)).await, Err(RefusedBecause::NoPort));
    try_at("other", seconds(2))
        .await
        .expect("another address, another port");
    // Gone and back once more, it has to rest no longer than before.
    gone("again", seconds(3)).await;
    add_host(&*store, one_port("h1", "10.0.0.7")).await;
    let rested = T.plus(PORT_REST);
    let early = rested.minus(Duration::from_millis(1));
    assert_eq!(try_at("h1", early).await, Err(RefusedBecause::NoPort));
    assert_eq!(try_at("h1", rested).await.expect("it has rested").port, 20_000);
}

pub(super) async fn weights_never_outgrow_their_column((store, _): Handles) {
    add_host(&*store, host("h1", 1_000)).await;
    let (app, _) = committed(&*store, &deploy("hello")).await;
    let heavy = |weight: u32| Pick {
        cpu_weight: weight,
        ..pick("h1", 1)
    };
    let picks = vec![heavy(u32::MAX - 5), heavy(6), heavy(5), heavy(1), heavy(0)];
    let outcome = store.instance_place(&placing(&app, picks.clone()), T).await;
    let PlaceOutcome::Placed { placed, refused } = outcome.expect("an answer") else {
        panic!("nobody else places");
    };
    let full: Vec<_> = [1, 3]
        .map(|n: usize| (picks[n].instance.clone(), RefusedBecause::HostFull))
        .into();
    assert_eq!(refused, full);
    assert_eq!(placed.len(), 3);
    let row = store
        .host_fetch(&host_name("h1"))
        .await
        .expect("still readable")
        .expect("there");
    assert_eq!(row.reserved_cpu_weight, u32::MAX);
    let app = store.app_fetch(&app.id).await.expect("an answer").expect("there");
    let outcome = store.instance_place(&placing(&app, vec![heavy(1)]), T).await;
    assert!(matches!(outcome, Ok(PlaceOutcome::Placed { refused, .. }) if refused[0].1 == RefusedBecause::HostFull));
}
