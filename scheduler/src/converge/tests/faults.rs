//! What goes wrong: containers, ports, images, hosts, and the scheduler itself.

use std::time::Duration;

use backends::engine::FakeImage;
use model::spec::OnFailure;
use model::store::InstanceFilter;
use model::{AppStatus, FailureCode, InstanceState, OperationKind, OperationState, ReleaseSpec, StepState, Timestamp};
use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use super::world::{World, app_id, config};
use crate::converge::fleet::lock;

fn spec() -> ReleaseSpec {
    ReleaseSpec {
        image: "r/shop:1".into(),
        ..ReleaseSpec::default()
    }
}

/// The failures that the app's history tells.
async fn failures(world: &World) -> Vec<model::Failure> {
    let filter = InstanceFilter {
        app: Some(app_id("shop")),
        host: None,
        released_too: true,
    };
    let all = world.store.instance_list(&filter).await.expect("read");
    all.into_iter()
        .filter(|i| i.state == InstanceState::Failed)
        .filter_map(|i| i.failure)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_containers_are_replaced_at_once() {
    let world = World::new(2).await;
    let _loop = world.start().await;
    world.deploy("shop", 3, spec()).await;
    world.exactly("shop", 1, 3).await;
    for kind in ["exit", "oom", "rm"] {
        let victim = world.held("shop").await.swap_remove(0);
        let fake = &world.fakes[usize::from(victim.host.as_str() != "h0")];
        fake.log(&victim.id, true, "last words");
        let begun = Instant::now();
        assert!(match kind {
            "exit" => fake.exit(&victim.id, 3, false),
            "oom" => fake.exit(&victim.id, 137, true),
            _ => fake.remove_by_hand(&victim.id),
        });
        world
            .until(|| async {
                let held = world.held("shop").await;
                let there = held.iter().any(|i| i.id == victim.id);
                if there { Err(format!("{held:?}")) } else { Ok(()) }
            })
            .await;
        world.exactly("shop", 1, 3).await;
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{kind}: {:?}",
            begun.elapsed()
        );
    }
    let failures = failures(&world).await;
    let codes: Vec<FailureCode> = failures.iter().map(|f| f.code).collect();
    assert_eq!(
        codes,
        [FailureCode::Exited, FailureCode::OutOfMemory, FailureCode::Removed]
    );
    assert_eq!(failures[0].exit_code, Some(3));
    assert_eq!(failures[0].log_tail, ["last words"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_passed_over() {
    let world = World::new(1).await;
    for port in 20_000..29_000 {
        world.fakes[0].take_port(port, true);
    }
    // Of 10,000 ports 1,000 are left; each pick that meets a taken one is quarantined and repeated.
    let _loop = world.start().await;
    world.fakes[0].take_port(29_000, false);
    for port in 20_000..28_999 {
        world.fakes[0].take_port(port, port % 2 == 0);
    }
    let operation = world.end(&world.deploy("shop", 3, spec()).await).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    world.exactly("shop", 1, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_a_full_disk_is_passed_over_by_all_apps_for_a_while() {
    let world = World::new(2).await;
    world.fakes[0].set_disk_full(true);
    let _loop = world.start().await;
    let operation = world.end(&world.deploy("shop", 4, spec()).await).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    world.exactly("shop", 1, 4).await;
    let met = failures(&world).await;
    assert!((1..=2).contains(&met.len()), "those of the first look: {met:?}");
    assert!(met.iter().all(|f| f.message.contains("disk is full")), "{met:?}");
    // The next ones do not ask it, though it is the emptier one by far.
    world.deploy("cart", 4, spec()).await;
    world.exactly("cart", 1, 4).await;
    world.scale("shop", 6).await;
    world.exactly("shop", 1, 6).await;
    assert_eq!(failures(&world).await, met);
    assert_eq!(world.fakes[0].launch_counts().0, 0);

    // Where no other host is left, one waits and is told why.
    world.fakes[1].set_disk_full(true);
    let operation = world.scale("shop", 7).await;
    world
        .until(|| async {
            let now = world.store.operation_fetch(&operation.id).await.expect("read");
            let told = now.expect("there");
            let full = told
                .reasons
                .iter()
                .any(|r| r.starts_with("disk: 2 hosts have a full disk"));
            if told.state == OperationState::Blocked && full {
                Ok(())
            } else {
                Err(format!("{told:?}"))
            }
        })
        .await;
    assert_eq!(failures(&world).await.len(), met.len() + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_every_port_is_taken_the_deploy_fails_and_the_tries_thin_out() {
    let world = World::new(1).await;
    for port in 20_000..30_000 {
        world.fakes[0].take_port(port, true);
    }
    let _loop = world.start().await;
    let operation = world.end(&world.deploy("shop", 1, spec()).await).await;
    assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
    assert!(
        operation.message.contains("taken by other programs"),
        "{}",
        operation.message
    );
    assert_eq!(operation.failure.map(|f| f.code), Some(FailureCode::PortTaken));
    let state = |name: &str| operation.steps.iter().find(|s| s.name == name).map(|s| s.state);
    assert_eq!(
        (state("pull"), state("start"), state("probe")),
        (Some(StepState::Done), Some(StepState::Failed), Some(StepState::Pending))
    );
    // Ten at once, then one each time that the pause is over, which none is within this test.
    world
        .until(|| async {
            let held = world.held("shop").await;
            if held.is_empty() {
                Ok(())
            } else {
                Err(format!("{held:?}"))
            }
        })
        .await;
    let tried = failures(&world).await.len();
    assert!((10..=12).contains(&tried), "{tried} tries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_release_that_is_never_ready_fails_at_its_probe() {
    let world = World::new(1).await;
    let _loop = world.start().await;
    let mut bad = spec();
    bad.command = vec!["exit".into(), "7".into()];
    let operation = world.end(&world.deploy("shop", 1, bad).await).await;
    assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
    assert!(operation.message.contains("`caas stop shop`"), "{}", operation.message);
    let steps: Vec<_> = operation.steps.iter().map(|s| (s.name.as_str(), s.state)).collect();
    use StepState::{Done, Failed, Pending};
    assert_eq!(
        steps,
        [
            ("pull", Done),
            ("create", Done),
            ("start", Done),
            ("probe", Failed),
            ("route", Pending)
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_exits_is_taken_back() {
    let world = World::new(2).await;
    let _loop = world.start().await;
    world.end(&world.deploy("shop", 2, spec()).await).await;
    lock(&world.mood).seen.clear();
    let mut bad = spec();
    bad.command = vec!["exit".into(), "7".into()];
    let operation = world.end(&world.deploy("shop", 2, bad).await).await;
    assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
    assert!(
        operation.message.ends_with("the app returned to release 1"),
        "{}",
        operation.message
    );
    let failure = operation.failure.expect("told");
    assert_eq!((failure.code, failure.exit_code), (FailureCode::Exited, Some(7)));
    world.exactly("shop", 1, 2).await;
    let app = world.app("shop").await.expect("there");
    assert_eq!((app.release, app.previous_release, app.is_settled()), (1, 0, true));
    assert!(
        lock(&world.mood).seen[&app_id("shop")].0 >= 2,
        "the old instances served on"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_release_without_image_fails_and_says_why() {
    let world = World::new(2).await;
    for fake in &world.fakes {
        fake.set_image("r/shop@sha256:1", FakeImage::Missing);
    }
    let _loop = world.start().await;
    let operation = world.end(&world.deploy("shop", 1, spec()).await).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert_eq!(operation.failure.expect("told").code, FailureCode::PullFailed);
    let again = world
        .intend("shop", OperationKind::Stop, None, |app| app.status = AppStatus::Stopped)
        .await;
    assert_eq!(world.end(&again).await.state, OperationState::Succeeded);
    world.exactly("shop", 1, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_without_progress_is_taken_back_at_its_deadline() {
    let world = World::new(2).await;
    let _loop = world.start().await;
    world.end(&world.deploy("shop", 2, spec()).await).await;
    lock(&world.mood).sick.insert(2);
    let mut slow = spec();
    slow.update.deadline_s = 1;
    let operation = world.end(&world.deploy("shop", 2, slow).await).await;
    assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
    assert!(
        operation.message.contains("no progress for 1 s"),
        "{}",
        operation.message
    );
    world.exactly("shop", 1, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_may_take_longer_to_be_pulled_than_a_deploy_may_stand_still() {
    let world = World::new(1).await;
    world.fakes[0].set_image("r/shop@sha256:1", FakeImage::InRegistry);
    world.fakes[0].set_pull_latency(Duration::from_secs(3));
    let _loop = world.start().await;
    let mut big = spec();
    big.update.deadline_s = 1;
    let operation = world.end(&world.deploy("shop", 2, big.clone()).await).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    // A registry that does not answer is waited for by turns, and then the deploy fails and says so.
    let world = World::new(1).await;
    world.fakes[0].set_image("r/shop@sha256:1", FakeImage::InRegistry);
    world.fakes[0].set_pull_latency(Duration::from_secs(60));
    let mut config = config();
    config.pull_deadline_s = 2;
    let _loop = world.start_as(config).await;
    let operation = world.end(&world.deploy("shop", 1, big).await).await;
    assert_eq!(operation.state, OperationState::Failed, "{operation:?}");
    assert!(
        operation.message.contains("3 instances failed"),
        "{}",
        operation.message
    );
    assert_eq!(
        operation.failure.map(|f| f.code),
        Some(FailureCode::RegistryUnreachable)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_pull_holds_up_no_other_launch() {
    let world = World::new(1).await;
    world.fakes[0].set_image("r/shop@sha256:1", FakeImage::InRegistry);
    world.fakes[0].set_pull_latency(Duration::from_secs(60));
    let mut config = config();
    config.launches_per_host = 1;
    let _loop = world.start_as(config).await;
    world.deploy("shop", 3, spec()).await;
    world
        .until(|| async {
            let held = world.held("shop").await;
            if held.len() == 3 {
                Ok(())
            } else {
                Err(format!("{held:?}"))
            }
        })
        .await;
    // On the host already; the other one's registry is another.
    let there = ReleaseSpec {
        image: "r/blog:1".into(),
        ..ReleaseSpec::default()
    };
    let operation = world.end(&world.deploy("blog", 2, there).await).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    world.fakes[0].set_image("q/wiki@sha256:1", FakeImage::InRegistry);
    world.fakes[0].set_pull_latency(Duration::ZERO);
    let elsewhere = ReleaseSpec {
        image: "q/wiki:1".into(),
        ..ReleaseSpec::default()
    };
    let operation = world.end(&world.deploy("wiki", 2, elsewhere).await).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert!(
        world
            .held("shop")
            .await
            .iter()
            .all(|i| i.state == InstanceState::Placed)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_keeps_the_place_and_none_leaves_it_failed() {
    let world = World::new(2).await;
    let _loop = world.start().await;
    let mut restart = spec();
    restart.on_failure = OnFailure::Restart;
    world.end(&world.deploy("shop", 2, restart).await).await;
    let victim = world.held("shop").await.swap_remove(0);
    let fake = &world.fakes[usize::from(victim.host.as_str() != "h0")];
    assert!(fake.exit(&victim.id, 1, false));
    world
        .until(|| async {
            let held = world.held("shop").await;
            let back = held
                .iter()
                .any(|i| i.id == victim.id && i.restarts == 1 && i.routed_at.is_some());
            back.then_some(()).ok_or(format!("{held:?}"))
        })
        .await;
    world.exactly("shop", 1, 2).await;

    let mut none = spec();
    none.on_failure = OnFailure::None;
    world.end(&world.deploy("shop", 2, none).await).await;
    world.exactly("shop", 2, 2).await;
    let victim = world.held("shop").await.swap_remove(0);
    let fake = &world.fakes[usize::from(victim.host.as_str() != "h0")];
    assert!(fake.exit(&victim.id, 1, false));
    world
        .until(|| async {
            let held = world.held("shop").await;
            let failed = held
                .iter()
                .any(|i| i.id == victim.id && i.state == InstanceState::Failed);
            (failed && held.len() == 2).then_some(()).ok_or(format!("{held:?}"))
        })
        .await;
    // It is the first to go.
    world.end(&world.scale("shop", 1).await).await;
    world.exactly("shop", 2, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_of_a_lost_host_are_replaced_and_its_leftovers_removed() {
    let world = World::new(4).await;
    let _loop = world.start().await;
    world.end(&world.deploy("shop", 4, spec()).await).await;
    world.exactly("shop", 1, 4).await;
    let gone = &world.fakes[0];
    gone.set_unreachable(true);
    // Registry-sync's part: its probes fail.
    world
        .until(|| async {
            let held = world.held("shop").await;
            for instance in held
                .iter()
                .filter(|i| i.host.as_str() == "h0" && i.state == InstanceState::Running)
            {
                let failure = model::Failure::new(FailureCode::Unhealthy, "no answer");
                let change = model::InstanceChange::Unhealthy(failure);
                let _ = world.store.instance_update(instance, &change, Timestamp::now()).await;
            }
            let elsewhere = held
                .iter()
                .filter(|i| i.host.as_str() != "h0" && i.routed_at.is_some())
                .count();
            (elsewhere == 4 && held.len() == 4)
                .then_some(())
                .ok_or(format!("{held:?}"))
        })
        .await;
    assert_eq!(gone.container_count(), 1, "it can't be reached");
    gone.set_unreachable(false);
    world.exactly("shop", 1, 4).await;
    assert_eq!(gone.container_count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_engine_is_cut_off_keeps_its_healthy_instances() {
    let world = World::new(4).await;
    let _loop = world.start().await;
    world.end(&world.deploy("shop", 4, spec()).await).await;
    let before: Vec<_> = world.held("shop").await.into_iter().map(|i| i.id).collect();
    world.fakes[0].set_unreachable(true);
    world
        .until(|| async {
            let host = world.store.host_list().await.expect("read").swap_remove(0);
            let long_down = host
                .down_since
                .is_some_and(|s| Timestamp::now().since(s) > Duration::from_secs(4));
            long_down.then_some(()).ok_or(format!("{host:?}"))
        })
        .await;
    let after: Vec<_> = world.held("shop").await.into_iter().map(|i| i.id).collect();
    assert_eq!(before, after, "probes still succeed: nothing is replaced");
    world.fakes[0].set_unreachable(false);
    world
        .until(|| async {
            let host = world.store.host_list().await.expect("read").swap_remove(0);
            host.down_since.is_none().then_some(()).ok_or(format!("{host:?}"))
        })
        .await;
    world.exactly("shop", 1, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_leave_nothing_behind() {
    let world = World::new(2).await;
    let _loop = world.start().await;
    world.deploy("shop", 4, spec()).await;
    for fake in &world.fakes {
        fake.lose_answers(3);
    }
    world.exactly("shop", 1, 4).await;
    for fake in &world.fakes {
        fake.lose_answers(2);
    }
    world.scale("shop", 1).await;
    world.exactly("shop", 1, 1).await;
}

/// The scheduler dies at any moment of a deploy, a scale or a removal, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_killed_anywhere_resumes() {
    let world = World::new(3).await;
    for fake in &world.fakes {
        fake.set_launch_latency(Duration::from_millis(10));
    }
    for round in 0..24_u32 {
        match round % 4 {
            0 | 2 => {
                world.deploy("shop", 2 + round % 5, spec()).await;
            }
            1 => {
                world.scale("shop", 1 + round % 6).await;
            }
            _ => {
                world
                    .intend("shop", OperationKind::Restart, None, |app| {
                        app.restart_before = Some(Timestamp::now());
                    })
                    .await;
            }
        }
        let running = world.start().await;
        let life = rand::rng().random_range(0..120);
        sleep(Duration::from_millis(life)).await;
        running.abort();
        let _ = running.await;
    }
    let wanted = world.app("shop").await.expect("there");
    let _loop = world.start().await;
    world.exactly("shop", wanted.release, wanted.instances as usize).await;
    let remove = world
        .intend("shop", OperationKind::Remove, None, |app| {
            app.status = AppStatus::Removing
        })
        .await;
    assert_eq!(world.end(&remove).await.state, OperationState::Succeeded);
    world.until(|| async { world.tidy().await }).await;
}
