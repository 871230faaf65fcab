//! A canary beside an app: planned, and carried out by a running loop.

use std::collections::BTreeMap;
use std::time::Duration;

use model::store::InstanceFilter;
use model::{App, Canary, InstanceState, Operation, OperationKind, OperationState, ReleaseSpec, Timestamp, Version};
use proptest::prelude::*;
use tokio::time::sleep;

use super::plans::Sim;
use super::world::{World, app_id};
use crate::converge::fleet::lock;
use crate::converge::plan::is_serving;

fn version(release: u32) -> Version {
    release.to_string().parse().expect("valid")
}

fn canary(release: u32, beside: u32, instances: u32, percent: u32) -> Canary {
    Canary {
        release,
        version: version(release),
        beside: version(beside),
        instances,
        percent,
    }
}

/// Carries out both plans once.
fn act(sim: &mut Sim) -> bool {
    let plans = sim.plans();
    for action in &plans.own.actions {
        sim.act(action);
    }
    if let (Some(decision), Some(canary)) = (&plans.canary, sim.app.canary.clone()) {
        // What the canary's plan places is of its release.
        let own = std::mem::replace(&mut sim.app.release, canary.release);
        for action in &decision.actions {
            sim.act(action);
        }
        sim.app.release = own;
    }
    if let Some(canary) = sim.app.canary.clone().filter(Canary::leaves)
        && !sim.instances.iter().any(|i| i.release == canary.release)
    {
        sim.app.canary = None;
        return true;
    }
    plans.each().any(|d| !d.actions.is_empty())
}

fn settle(sim: &mut Sim) {
    for _ in 0..1_000 {
        sim.tick();
        let before = sim.instances.clone();
        let acted = act(sim);
        for which in 0..sim.instances.len() {
            sim.happen(which, false);
        }
        if !acted && before == sim.instances {
            return;
        }
    }
    panic!("it does not settle: {:?}", sim.instances);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Whatever is asked of the canary and the app, whatever ends meanwhile, and wherever a plan was cut off: at the end
    /// there is exactly what is wanted of both; and a canary on its way in or out takes nothing from what serves beside it.
    #[test]
    fn any_history_with_a_canary_ends_in_what_is_wanted(
        wishes in prop::collection::vec((0_u32..6, 1_u32..5, 0_u32..8), 1..6),
        faults in any::<bool>(),
        moves in prop::collection::vec((any::<bool>(), 0_usize..1_000), 0..150),
    ) {
        let mut sim = Sim::new(3, model::spec::Update::default());
        settle(&mut sim);
        let mut last = 1;
        for (kind, n, desired) in wishes {
            sim.tick();
            let beside = sim.app.canary.clone().filter(|c| !c.leaves());
            let mut steady = false;
            match (kind, beside) {
                (0 | 1, None) => {
                    last += 1;
                    sim.app.canary = Some(canary(last, sim.app.release, n, 10));
                    steady = true;
                }
                (2, Some(canary)) => {
                    sim.app.release = canary.release;
                    sim.app.canary = None;
                }
                (3, Some(canary)) => {
                    sim.app.canary = Some(canary.leaving());
                    steady = true;
                }
                (4, _) => sim.app.instances = desired,
                (5, _) => sim.app.restart_before = Some(sim.now),
                (_, None) if sim.app.canary.is_none() => {
                    last += 1;
                    sim.app.release = last;
                }
                _ => {}
            }
            let of_own = |sim: &Sim| {
                let own = sim.instances.iter().filter(|i| i.release == sim.app.release);
                own.filter(|i| is_serving(i)).count()
            };
            let served = of_own(&sim);
            // What is left of an earlier release counts as serving too, and may go in place of an own one.
            let kept = |i: &model::Instance| sim.app.canary.as_ref().is_some_and(|c| c.release == i.release);
            steady &= sim.instances.iter().all(|i| i.release == sim.app.release || kept(i));
            for (acts, which) in &moves {
                sim.tick();
                if *acts {
                    act(&mut sim);
                } else {
                    sim.happen(*which, faults);
                }
                if steady && !faults {
                    let wanted = sim.app.instances as usize;
                    prop_assert!(of_own(&sim) >= served.min(wanted), "the canary took from {served}");
                }
            }
        }
        // Past every back-off.
        sim.now = sim.now.plus(Duration::from_secs(4_000));
        settle(&mut sim);
        let mut wanted = BTreeMap::from([(sim.app.release, sim.app.instances)]);
        if let Some(canary) = &sim.app.canary {
            prop_assert!(!canary.leaves(), "it has gone long ago");
            wanted.insert(canary.release, canary.instances);
        }
        wanted.retain(|_, n| *n > 0);
        let mut there: BTreeMap<u32, u32> = BTreeMap::new();
        for instance in &sim.instances {
            prop_assert!(is_serving(instance), "{instance:?}");
            *there.entry(instance.release).or_default() += 1;
        }
        prop_assert_eq!(there, wanted);
        sim.app.status = model::AppStatus::Removing;
        settle(&mut sim);
        prop_assert!(sim.instances.is_empty() && sim.containers.is_empty());
        prop_assert_eq!(sim.app.status, model::AppStatus::Stopped, "deleted, when both were gone");
    }
}

fn spec() -> ReleaseSpec {
    ReleaseSpec {
        image: "r/shop:1".into(),
        ..ReleaseSpec::default()
    }
}

/// Gives the shop a canary of a new release, as the API does.
async fn begin(world: &World, instances: u32, percent: u32, spec: ReleaseSpec) -> Operation {
    world
        .intend("shop", OperationKind::Canary, Some(spec), |app: &mut App| {
            let release = app.last_release;
            let canary = canary(release, app.release, instances, percent);
            app.config.weights = canary.weights();
            app.canary = Some(canary);
        })
        .await
}

async fn abort(world: &World) -> Operation {
    world
        .intend("shop", OperationKind::Abort, None, |app: &mut App| {
            let leaving = app.canary.as_ref().map(Canary::leaving);
            app.config.weights = leaving.as_ref().map(Canary::weights).unwrap_or_default();
            app.canary = leaving;
        })
        .await
}

async fn promote(world: &World) -> Operation {
    world
        .intend("shop", OperationKind::Promote, None, |app: &mut App| {
            if let Some(canary) = app.canary.take() {
                app.turn_to(canary.release, None);
            }
            app.config.weights.clear();
        })
        .await
}

/// Waits until so many instances of each release serve, and nothing else is left anywhere.
async fn exactly(world: &World, wanted: &[(u32, usize)]) {
    world
        .until(|| async {
            let held = world.held("shop").await;
            let serving = |release| {
                let own = held.iter().filter(|i| i.release == release);
                own.filter(|i| i.state == InstanceState::Running && i.routed_at.is_some())
                    .count()
            };
            let right = wanted.iter().all(|(release, n)| serving(*release) == *n);
            if !right || held.len() != wanted.iter().map(|(_, n)| n).sum::<usize>() {
                return Err(format!("{wanted:?} wanted: {held:?}"));
            }
            world.tidy().await
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_is_promoted() {
    let world = World::new(2).await;
    let _loop = world.start().await;
    world.end(&world.deploy("shop", 3, spec()).await).await;
    let begun = world.end(&begin(&world, 2, 10, spec()).await).await;
    assert_eq!(begun.state, OperationState::Succeeded, "{begun:?}");
    assert_eq!(begun.message, "2 instances routed");
    exactly(&world, &[(1, 3), (2, 2)]).await;
    world.end(&world.scale("shop", 4).await).await;
    exactly(&world, &[(1, 4), (2, 2)]).await;
    let app = world.app("shop").await.expect("there");
    assert_eq!(
        (app.release, app.previous_release),
        (1, 0),
        "not the canary's to change"
    );

    lock(&world.mood).seen.clear();
    let promoted = world.end(&promote(&world).await).await;
    assert_eq!(promoted.state, OperationState::Succeeded, "{promoted:?}");
    exactly(&world, &[(2, 4)]).await;
    let app = world.app("shop").await.expect("there");
    assert_eq!((app.release, app.previous_release, app.canary), (2, 1, None));
    assert!(
        lock(&world.mood).seen[&app_id("shop")].0 >= 4,
        "enough served all the time"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_canary_goes_and_is_forgotten() {
    let world = World::new(2).await;
    let _loop = world.start().await;
    world.end(&world.deploy("shop", 2, spec()).await).await;
    world.end(&begin(&world, 1, 10, spec()).await).await;
    let aborted = world.end(&abort(&world).await).await;
    assert_eq!(aborted.state, OperationState::Succeeded, "{aborted:?}");
    exactly(&world, &[(1, 2)]).await;
    let app = world.app("shop").await.expect("there");
    assert_eq!(
        (app.canary, app.config.weights.len()),
        (None, 0),
        "no version has a share left"
    );
    // A stopped app's canary comes back with it.
    world.end(&begin(&world, 1, 10, spec()).await).await;
    for (kind, status, wanted) in [
        (OperationKind::Stop, model::AppStatus::Stopped, vec![]),
        (OperationKind::Start, model::AppStatus::Running, vec![(1, 2), (3, 1)]),
        (OperationKind::Remove, model::AppStatus::Removing, vec![]),
    ] {
        world.intend("shop", kind, None, |app| app.status = status).await;
        exactly(&world, &wanted).await;
    }
    world
        .until(|| async { world.app("shop").await.map_or(Ok(()), |app| Err(format!("{app:?}"))) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_that_fails_is_taken_away() {
    let world = World::new(2).await;
    let _loop = world.start().await;
    world.end(&world.deploy("shop", 2, spec()).await).await;
    let mut bad = spec();
    bad.command = vec!["exit".into(), "7".into()];
    let failed = world.end(&begin(&world, 1, 10, bad).await).await;
    assert_eq!(failed.state, OperationState::Failed, "{failed:?}");
    assert!(
        failed.message.ends_with("the canary is taken away"),
        "{}",
        failed.message
    );
    assert_eq!(failed.failure.and_then(|f| f.exit_code), Some(7));
    exactly(&world, &[(1, 2)]).await;
    world
        .until(|| async {
            let app = world.app("shop").await.expect("there");
            let clean = app.canary.is_none() && app.config.weights.is_empty() && app.release == 1;
            if clean { Ok(()) } else { Err(format!("{app:?}")) }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_killed_with_a_canary_goes_on_where_it_was() {
    let world = World::new(2).await;
    let mut running = world.start().await;
    world.end(&world.deploy("shop", 2, spec()).await).await;
    for round in 0..6 {
        begin(&world, 2, 10, spec()).await;
        let mut wait = rand::rng().random_range(0..60);
        for last in [false, true] {
            sleep(Duration::from_millis(wait)).await;
            running.abort();
            running = world.start().await;
            if last {
                break;
            }
            // The canary may have had no time to come up: neither way out needs it.
            let asked = if round % 2 == 0 {
                abort(&world).await
            } else {
                promote(&world).await
            };
            assert!(asked.created_at <= Timestamp::now());
            wait = rand::rng().random_range(0..60);
        }
        let app = world.app("shop").await.expect("there");
        exactly(&world, &[(app.release, 2)]).await;
        world
            .until(|| async {
                let app = world.app("shop").await.expect("there");
                let settled = app.canary.is_none() && app.is_settled();
                let open = world.store.operation_open().await.expect("read");
                if settled && app.config.weights.is_empty() && open.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{app:?} {open:?}"))
                }
            })
            .await;
    }
    let held = world.store.instance_list(&InstanceFilter::held()).await.expect("read");
    assert_eq!(held.len(), 2);
}
