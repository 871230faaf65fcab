//! The platform's own parts fail: ZooKeeper, the database, each role, at any moment. Requests to healthy containers never
//! fail for it, and afterwards there is exactly what was asked for.

use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::api::deploy_body;
use e2e::load::{self, Load};
use e2e::platform::DOMAIN;
use e2e::process;
use e2e::proxy::Proxy;
use e2e::roles::Role;
use e2e::wait::{expect, throughout, until};
use e2e::{Mode, Platform};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

crate::support::in_both_modes! {
    schedulers_killed_at_random_moments_under_load,
    killed_and_started_again_under_requests,
}

crate::support::with_separate_roles! {
    zookeeper_leader_killed_under_load,
    zookeeper_away_under_load,
    gateway_started_without_zookeeper,
    slow_and_cut_line_to_zookeeper,
    database_away_under_load,
    registry_sync_killed_in_the_middle_of_a_deploy,
    gateway_killed_in_the_middle_of_a_deploy,
    gateway_stopped_under_load,
    everything_killed_and_started_again,
}

const SMALL: u32 = 32;

/// Rounds of changes and kills. With separate roles one scheduler goes, and every second time both: 24 kills.
const KILL_ROUNDS: u64 = 16;

async fn schedulers_killed_at_random_moments_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("crash", "1", 3, json!({"memory_mb": SMALL})).await?;
    let schedulers: Vec<_> = p
        .roles
        .iter()
        .filter(|r| r.name.starts_with("scheduler") || r.name == "up")
        .collect();
    // `caas up` is the gateway as well: nothing can be served while it is killed.
    let load = (p.mode == Mode::Separate).then(|| p.load("crash", 50));
    let seed = rand::random();
    eprintln!("schedulers killed at random moments: seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let (mut version, mut instances, mut kills) = ("1", 3, 0);
    for round in 1..=KILL_ROUNDS / if p.mode == Mode::Separate { 1 } else { 2 } {
        let (path, body) = match dice.random_range(0..4) {
            0 => {
                instances = dice.random_range(1..=5);
                ("scale", Some(json!({"instances": instances})))
            }
            1 => ("restart", None),
            _ => {
                version = if version == "1" { "2" } else { "1" };
                let body = deploy_body(version, &p.hello(version), instances, serde_json::Value::Null);
                ("deploy", Some(body))
            }
        };
        let path = format!("/apps/crash/{path}");
        let answer = p.api.call("POST", &path, body.as_ref()).await?.ok()?;
        let id = answer["operation"]["id"].as_str().unwrap_or_default().to_owned();
        // Not a wait for something: the moments of the kills are what is tried.
        let both = round % 2 == 0;
        let chosen = dice.random_range(0..schedulers.len());
        for (number, scheduler) in schedulers.iter().enumerate() {
            if both || number == chosen {
                tokio::time::sleep(Duration::from_millis(dice.random_range(0..900))).await;
                scheduler.kill().await?;
                kills += 1;
            }
        }
        for scheduler in &schedulers {
            scheduler.up().await?;
        }
        let operation = p.api.finished(&id, Duration::from_secs(60)).await?;
        expect(operation["state"] == "succeeded", || {
            format!("round {round}, {path} with {body:?}: {operation:#}")
        })?;
        if round % 4 == 0 {
            p.answers("crash", version, instances as usize).await?;
            p.settled().await?;
        }
    }
    eprintln!("{kills} kills of schedulers");
    if let Some(load) = load {
        load.end().await.flawless("schedulers killed at random moments")?;
    }
    Ok(())
}

async fn zookeeper_leader_killed_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("election", "1", 3, json!({"memory_mb": SMALL})).await?;
    let load = p.load("election", 100);
    load.flows(100).await?;
    p.fleet.zookeeper.kill_leader().await?;
    p.api.deployed("election", "2", &p.hello("2"), 3, json!({})).await?;
    p.answers("election", "2", 3).await?;
    p.fleet.zookeeper.up().await?;
    p.settled().await?;
    load.end().await.flawless("a deploy while ZooKeeper elects a leader")
}

async fn zookeeper_away_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("nozk", "1", 3, json!({"memory_mb": SMALL})).await?;
    let load = p.load("nozk", 100);
    load.flows(100).await?;
    p.fleet.zookeeper.down().await?;
    // Longer than a ZooKeeper session: the last copy serves on.
    throughout("serving without ZooKeeper", Duration::from_secs(8), async || {
        load.so_far().flawless("meanwhile")
    })
    .await?;
    // A container that dies meanwhile is avoided by the gateways on their own.
    let (host, container) = p.containers("nozk").await?.remove(0);
    p.fleet.host(&host).kill_container(&container.id).await?;
    load.flows(200).await?;
    p.fleet.zookeeper.up().await?;
    p.settled().await?;
    p.answers("nozk", "1", 3).await?;
    let report = load.end().await;
    eprintln!("ZooKeeper away: {}", report.line());
    report.flawless("ZooKeeper killed and restarted")
}

async fn gateway_started_without_zookeeper(p: &Platform) -> Result<()> {
    p.deploy_hello("cold", "1", 2, json!({"memory_mb": SMALL})).await?;
    // Its snapshot file must hold the app before everything goes.
    p.settled().await?;
    let gateway = p.role("gateway-1");
    gateway.stop(Duration::from_secs(60)).await?;
    p.fleet.zookeeper.down().await?;
    gateway.launch().await?;
    let served = p.answers_at(p.gateways[0], "cold", 2).await;
    p.fleet.zookeeper.up().await?;
    served?;
    until(
        "the gateway follows ZooKeeper again",
        Duration::from_secs(20),
        async || {
            let metrics = load::get(&p.http, p.admins[0], "localhost", "/metrics").await?;
            let stale = metrics
                .body
                .lines()
                .find(|line| line.starts_with("caas_gateway_registry_stale_seconds"));
            if stale.is_some_and(|line| line.ends_with(" 0")) {
                Ok(())
            } else {
                Err(format!("{stale:?}"))
            }
        },
    )
    .await?;
    p.settled().await
}

async fn slow_and_cut_line_to_zookeeper(p: &Platform) -> Result<()> {
    let proxy = Proxy::start(([127, 0, 0, 1], p.fleet.zookeeper.ports[0]).into()).await?;
    proxy.delay(Duration::from_millis(100));
    let port = || process::free_port("127.0.0.1").map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    let (listen, admin) = (port()?, port()?);
    let args = format!(
        "gateway --registry zk://{} --domain {DOMAIN} --listen {listen} --admin {admin}",
        proxy.address
    );
    let args = args.split(' ').map(str::to_owned).collect();
    let far = Role::new(
        "gateway-far",
        args,
        vec![("CAAS_GATEWAY__DRAIN_DELAY_S".into(), "0".into())],
        (admin, "/ready"),
        &p.dir,
        p.fleet.keeper.init,
    );
    far.up().await?;
    p.deploy_hello("far", "1", 2, json!({"memory_mb": SMALL})).await?;
    p.answers_at(listen, "far", 2).await?;
    let load = Load::start(&[listen], &p.domain("far"), 50);
    load.flows(50).await?;
    // Silently cut: it serves what it knows, and the others are not held up for long by its silence.
    proxy.cut(true);
    p.api
        .done("POST", "/apps/far/scale", Some(&json!({"instances": 4})))
        .await?;
    throughout("serving behind a cut line", Duration::from_secs(3), async || {
        load.so_far().flawless("meanwhile")
    })
    .await?;
    proxy.cut(false);
    p.answers_at(listen, "far", 4).await?;
    load.end()
        .await
        .flawless("a line to ZooKeeper that is slow and then cut")?;
    far.stop(Duration::from_secs(60)).await
}

async fn database_away_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("nodb", "1", 3, json!({"memory_mb": SMALL})).await?;
    let load = p.load("nodb", 100);
    load.flows(100).await?;
    p.fleet.mariadb.down().await?;
    let reply = p
        .api
        .call("POST", "/apps/nodb/scale", Some(&json!({"instances": 2})))
        .await?;
    let told = reply.status == 503 && reply.code() == "STORE_UNAVAILABLE";
    expect(told, || format!("without the database: {reply:?}"))?;
    throughout("serving without the database", Duration::from_secs(8), async || {
        load.so_far().flawless("meanwhile")
    })
    .await?;
    p.fleet.mariadb.up().await?;
    until("the API is back", Duration::from_secs(20), async || {
        p.api.get("/apps").await.map(drop)
    })
    .await?;
    p.api
        .done("POST", "/apps/nodb/scale", Some(&json!({"instances": 4})))
        .await?;
    p.answers("nodb", "1", 4).await?;
    p.settled().await?;
    load.end().await.flawless("MySQL killed and restarted")
}

async fn killed_during_deploys(p: &Platform, app: &str, role: &str) -> Result<()> {
    p.deploy_hello(app, "1", 3, json!({"memory_mb": SMALL})).await?;
    let role = p.role(role);
    let others: Vec<_> = p.gateways[1..].to_vec();
    let load = Load::start(&others, &p.domain(app), 100);
    load.flows(50).await?;
    for (version, after_ms) in [("2", 100), ("1", 700)] {
        let body = deploy_body(version, &p.hello(version), 3, serde_json::Value::Null);
        let answer = p
            .api
            .call("POST", &format!("/apps/{app}/deploy"), Some(&body))
            .await?
            .ok()?;
        let id = answer["operation"]["id"].as_str().unwrap_or_default().to_owned();
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        role.kill().await?;
        load.flows(50).await?;
        role.up().await?;
        let operation = p.api.finished(&id, Duration::from_secs(60)).await?;
        expect(operation["state"] == "succeeded", || format!("{operation:#}"))?;
        p.answers(app, version, 3).await?;
        p.settled().await?;
    }
    load.end()
        .await
        .flawless(&format!("{} killed in the middle of a deploy", role.name))
}

async fn registry_sync_killed_in_the_middle_of_a_deploy(p: &Platform) -> Result<()> {
    killed_during_deploys(p, "nosync", "registry-sync-1").await
}

async fn gateway_killed_in_the_middle_of_a_deploy(p: &Platform) -> Result<()> {
    killed_during_deploys(p, "nogate", "gateway-1").await
}

async fn gateway_stopped_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("draining", "1", 2, json!({"memory_mb": SMALL})).await?;
    // A request under way when SIGTERM comes is answered.
    let slow = async { p.visit("draining", "/slow?ms=1500").await.map_err(anyhow::Error::msg) };
    let stop = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        p.role("gateway-1").stop(Duration::from_secs(60)).await
    };
    let (slow, stopped) = futures::join!(slow, stop);
    p.role("gateway-1").up().await?;
    stopped?;
    let slow = slow?;
    expect(slow.status == 200, || format!("{slow:?}"))
}

async fn everything_killed_and_started_again(p: &Platform) -> Result<()> {
    p.deploy_hello("all", "1", 3, json!({"memory_mb": SMALL})).await?;
    let body = deploy_body("2", &p.hello("2"), 5, serde_json::Value::Null);
    let answer = p.api.call("POST", "/apps/all/deploy", Some(&body)).await?.ok()?;
    let id = answer["operation"]["id"].as_str().unwrap_or_default().to_owned();
    for role in &p.roles {
        role.kill().await?;
    }
    p.fleet.zookeeper.down().await?;
    p.fleet.mariadb.down().await?;
    futures::try_join!(p.fleet.zookeeper.up(), p.fleet.mariadb.up())?;
    futures::future::try_join_all(p.roles.iter().map(Role::up)).await?;
    let operation = p.api.finished(&id, Duration::from_secs(60)).await?;
    expect(operation["state"] == "succeeded", || format!("{operation:#}"))?;
    p.answers("all", "2", 5).await?;
    Ok(())
}

/// The processes are killed and started again, the containers go on: who is answered at all is answered by the app.
async fn killed_and_started_again_under_requests(p: &Platform) -> Result<()> {
    p.deploy_hello("goes-on", "1", 3, json!({"memory_mb": SMALL})).await?;
    for role in &p.roles {
        role.kill().await?;
    }
    for role in &p.roles {
        role.launch().await?;
    }
    let began = Instant::now();
    let mut answered = 0;
    while answered < 200 {
        match p.visit("goes-on", "/").await {
            Ok(answer) => {
                expect(answer.status == 200, || {
                    format!("after {answered} good answers: {answer:?}")
                })?;
                answered += 1;
            }
            // Its gateway is not there yet.
            Err(error) => expect(began.elapsed() < Duration::from_secs(30), || error)?,
        }
    }
    for role in &p.roles {
        role.ready().await?;
    }
    Ok(())
}
