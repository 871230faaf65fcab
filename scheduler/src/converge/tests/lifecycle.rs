//! What users ask for.

use model::spec::ProbeKind;
use model::store::{HostIntent, HostWish};
use model::{
    AppStatus, EventKind, Generation, HostChange, NewEvent, Operation, OperationId, OperationKind, OperationState,
    ReleaseSpec, Schedulability, StepState, Timestamp,
};

use super::world::{World, app_id};
use crate::converge::fleet::lock;

fn spec() -> ReleaseSpec {
    ReleaseSpec {
        image: "r/shop:1".into(),
        ..ReleaseSpec::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_brings_all_instances_up_and_can_be_followed() {
    let world = World::new(2).await;
    let _loop = world.start().await;
    let operation = world.end(&world.deploy("shop", 4, spec()).await).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(operation.message, "4 instances routed");
    let steps: Vec<&str> = operation.steps.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(steps, ["pull", "create", "start", "probe", "route"]);
    assert!(operation.steps.iter().all(|s| s.state == StepState::Done));
    world.exactly("shop", 1, 4).await;
    let app = world.app("shop").await.expect("there");
    assert!(app.is_settled(), "it can be returned to: {app:?}");
    for fake in &world.fakes {
        let running = fake.running();
        assert_eq!(running.len(), 2, "spread over the hosts");
        let env = &running[0].env;
        assert_eq!(env["CAAS_APP"], "shop");
        assert_eq!(env["CAAS_REGION"], "test");
        assert_eq!(env["PORT"], "8080");
        assert_eq!(env["CAAS_INSTANCE_TOKEN"].len(), 40);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_takes_over_without_a_gap() {
    let world = World::new(2).await;
    let _loop = world.start().await;
    world.end(&world.deploy("shop", 4, spec()).await).await;
    world.exactly("shop", 1, 4).await;
    lock(&world.mood).seen.clear();
    let operation = world.end(&world.deploy("shop", 4, spec()).await).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    world.exactly("shop", 2, 4).await;
    let seen = lock(&world.mood).seen[&app_id("shop")];
    assert!(seen.0 >= 4, "serving fell to {}", seen.0);
    assert!(seen.1 <= 5, "live rose to {}", seen.1);

    let restart = world
        .intend("shop", OperationKind::Restart, None, |app| {
            app.restart_before = Some(Timestamp::now());
        })
        .await;
    let before: Vec<_> = world.held("shop").await.into_iter().map(|i| i.id).collect();
    assert_eq!(world.end(&restart).await.state, OperationState::Succeeded);
    world.exactly("shop", 2, 4).await;
    assert!(world.held("shop").await.iter().all(|i| !before.contains(&i.id)));
    let seen = lock(&world.mood).seen[&app_id("shop")];
    assert!(seen.0 >= 4 && seen.1 <= 5, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scale_stop_start_and_remove() {
    let world = World::new(3).await;
    let _loop = world.start().await;
    world.deploy("shop", 2, spec()).await;
    world.exactly("shop", 1, 2).await;
    world.end(&world.scale("shop", 6).await).await;
    world.exactly("shop", 1, 6).await;
    assert!(world.fakes.iter().all(|f| f.container_count() == 2), "two on each host");
    world.end(&world.scale("shop", 3).await).await;
    world.exactly("shop", 1, 3).await;
    assert!(
        world.fakes.iter().all(|f| f.container_count() == 1),
        "one on each host stays"
    );
    let stop = world
        .intend("shop", OperationKind::Stop, None, |app| app.status = AppStatus::Stopped)
        .await;
    assert_eq!(world.end(&stop).await.state, OperationState::Succeeded);
    world.exactly("shop", 1, 0).await;
    let start = world
        .intend("shop", OperationKind::Start, None, |app| {
            app.status = AppStatus::Running
        })
        .await;
    assert_eq!(world.end(&start).await.state, OperationState::Succeeded);
    world.exactly("shop", 1, 3).await;
    let remove = world
        .intend("shop", OperationKind::Remove, None, |app| {
            app.status = AppStatus::Removing
        })
        .await;
    world
        .until(|| async {
            match world.app("shop").await {
                None => world.tidy().await,
                Some(app) => Err(format!("{app:?}")),
            }
        })
        .await;
    assert_eq!(world.end(&remove).await.state, OperationState::Succeeded);
    // A new app may bear the old name.
    world.end(&world.deploy("shop", 1, spec()).await).await;
    world.exactly("shop", 1, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_host_is_emptied_start_first() {
    let world = World::new(3).await;
    let _loop = world.start().await;
    world.deploy("shop", 3, spec()).await;
    world.exactly("shop", 1, 3).await;
    lock(&world.mood).seen.clear();
    let host = world.store.host_list().await.expect("read").swap_remove(0);
    let event = NewEvent::new(EventKind::Host, "test", "drain").about_host(&host.name);
    let change = HostChange::Schedulability(Schedulability::Draining);
    let now = Timestamp::now();
    let operation = Operation {
        id: OperationId::random(),
        kind: OperationKind::DrainHost,
        app: None,
        host: Some(host.name.clone()),
        release: None,
        state: OperationState::Running,
        message: String::new(),
        failure: None,
        steps: Vec::new(),
        reasons: Vec::new(),
        created_at: now,
        updated_at: now,
        generation: Generation::FIRST,
    };
    let drain = HostIntent {
        wish: HostWish::Change {
            current: host.clone(),
            changes: vec![change],
        },
        operation: Some(operation.clone()),
        event,
        idempotency: None,
    };
    world.store.host_commit(&drain, now).await.expect("written");
    assert_eq!(world.end(&operation).await.state, OperationState::Succeeded);
    world.exactly("shop", 1, 3).await;
    assert!(world.held("shop").await.iter().all(|i| i.host != host.name));
    assert!(lock(&world.mood).seen[&app_id("shop")].0 >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_per_host_follows_the_fleet() {
    let mut world = World::new(2).await;
    let _loop = world.start().await;
    let mut daemon = spec();
    daemon.placement.one_per_host = true;
    world.end(&world.deploy("shop", 1, daemon.clone()).await).await;
    world.exactly("shop", 1, 2).await;
    world.add_host(4_000).await;
    world.exactly("shop", 1, 3).await;
    assert!(world.fakes.iter().all(|f| f.container_count() == 1));
    world.end(&world.deploy("shop", 1, daemon).await).await;
    world.exactly("shop", 2, 3).await;
    assert!(world.fakes.iter().all(|f| f.container_count() == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_it_waits_and_goes_on_by_itself() {
    let mut world = World::new(1).await;
    let _loop = world.start().await;
    let mut big = spec();
    big.memory_mb = 3_000;
    let operation = world.deploy("shop", 2, big).await;
    world
        .until(|| async {
            let now = world
                .store
                .operation_fetch(&operation.id)
                .await
                .expect("read")
                .expect("there");
            let blocked =
                now.state == OperationState::Blocked && now.reasons == ["memory: 1 host has less than 3000 MiB free"];
            blocked.then_some(()).ok_or(format!("{now:?}"))
        })
        .await;
    world.add_host(8_000).await;
    assert_eq!(world.end(&operation).await.state, OperationState::Succeeded);
    world.exactly("shop", 1, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_schedulers_share_the_work() {
    let world = World::new(4).await;
    let mut loops = Vec::new();
    for n in 0..3 {
        let mut config = super::world::config();
        config.scheduler_id = format!("s{n}");
        loops.push(world.start_as(config).await);
    }
    for app in ["shop", "blog", "wiki"] {
        world.deploy(app, 5, spec()).await;
    }
    for app in ["shop", "blog", "wiki"] {
        world.exactly(app, 1, 5).await;
    }
    world.end(&world.scale("shop", 2).await).await;
    world.exactly("shop", 1, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_beats_are_received_is_noted_while_an_app_beats() {
    let world = World::new(1).await;
    let _loop = world.start().await;
    world.end(&world.deploy("shop", 1, spec()).await).await;
    let listening = async || world.store.listening().await.expect("read");
    assert_eq!(listening().await, None, "nobody beats");
    let mut beats = spec();
    beats.health.kind = ProbeKind::Heartbeat;
    world.end(&world.deploy("shop", 1, beats).await).await;
    world
        .until(|| async {
            let noted = listening().await;
            let again = noted.is_some_and(|l| l.until > l.since);
            again.then_some(()).ok_or(format!("{noted:?}"))
        })
        .await;
}
