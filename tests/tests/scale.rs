//! Many schedulers on one database at once. They run in this process, so that the fake hosts, which live in memory, are the
//! same for all of them; the database is the real one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use backends::engine::EngineOptions;
use backends::registry::MemoryRegistry;
use e2e::Fleet;
use e2e::api::{Api, deploy_body};
use e2e::check::Db;
use e2e::wait::{expect, until};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const SCHEDULERS: usize = 4;
const HOSTS: usize = 20;
const APPS: usize = 40;
const INSTANCES: usize = 2_000;
/// Memory of one instance, MiB.
const MEMORY: usize = 64;

#[test]
fn four_schedulers_place_two_thousand_instances_at_once() {
    crate::support::on_fleet("four schedulers, 2,000 instances", placement);
}

async fn placement(fleet: Arc<Fleet>) -> Result<()> {
    let url = fleet.mariadb.database("scale").await?;
    backends::store::migrate(&url).await?;
    let stop = CancellationToken::new();
    let _stop_all = stop.clone().drop_guard();
    let token_file = fleet.keeper.dir.join("scale.token");
    let mut addresses = Vec::new();
    for number in 0..SCHEDULERS {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        addresses.push(listener.local_addr()?);
        let mut config = scheduler::Config::default();
        config.allow_fake_engines = true;
        config.admin_token_file = Some(token_file.clone());
        config.converge.scheduler_id = format!("scale-{number}");
        let store = backends::store::open(&url).await?;
        let deps = scheduler::Deps {
            store,
            engines: backends::engine::opener(EngineOptions::default()),
        };
        let stop = stop.clone();
        tokio::spawn(async move {
            if let Err(error) = scheduler::run(config, deps, listener, stop).await {
                eprintln!("scheduler {number} ended: {error}");
            }
        });
        if number == 0 {
            // The first one makes the admin token; the others find it.
            let made = async || std::fs::read_to_string(&token_file).map(drop);
            until("the admin token", Duration::from_secs(10), made).await?;
        }
    }
    let admin = TcpListener::bind(("127.0.0.1", 0)).await?;
    let sync = registry_sync::Deps {
        store: backends::store::open(&url).await?,
        registry: MemoryRegistry::new(),
    };
    let stopped = stop.clone();
    tokio::spawn(async move { registry_sync::run(registry_sync::Config::default(), sync, admin, stopped).await });

    let token = std::fs::read_to_string(&token_file)?;
    let api = Api::new(addresses.clone(), token.trim());
    for number in 0..HOSTS {
        // Exactly as much room as is needed: a host that takes one too many would show at once.
        let host = json!({
            "name": format!("f{number}"), "address": "127.0.0.1", "engine": format!("fake://scale-{number}"),
            "memory_mb": INSTANCES / HOSTS * MEMORY, "port_range": [20_000, 20_000 + 2 * INSTANCES / HOSTS],
        });
        api.call("POST", "/hosts", Some(&host)).await?.ok()?;
    }
    until("the fake hosts", Duration::from_secs(20), async || {
        let hosts = api.get("/hosts").await.map_err(|e| format!("{e:#}"))?;
        let up = e2e::platform::list(&hosts)
            .iter()
            .filter(|h| h["down_since"].is_null())
            .count();
        if up == HOSTS { Ok(()) } else { Err(hosts.to_string()) }
    })
    .await?;

    let db = Db::mysql(&url).await?;
    let began = Instant::now();
    let deploys = (0..APPS).map(|number| {
        let mut addresses = addresses.clone();
        addresses.rotate_left(number % SCHEDULERS);
        let api = Api::new(addresses, token.trim());
        async move {
            let spec = json!({"memory_mb": MEMORY, "health": {"kind": "none"}, "update": {"deadline_s": 170}});
            let body = deploy_body("1", "127.0.0.1:5000/scale:1", u32::try_from(INSTANCES / APPS)?, spec);
            let answer = api
                .call("POST", &format!("/apps/scale-{number}/deploy"), Some(&body))
                .await?
                .ok()?;
            let id = answer["operation"]["id"].as_str().context("an operation")?.to_owned();
            api.finished(&id, Duration::from_secs(150)).await
        }
    });
    let watch = async {
        // While they work: nothing overbooked, nothing twice.
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Err(error) = db.consistent().await {
                return error;
            }
        }
    };
    let operations = tokio::select! {
        done = futures::future::try_join_all(deploys) => done?,
        broken = watch => return Err(broken.context("while placing")),
    };
    let took = began.elapsed();
    for operation in &operations {
        expect(operation["state"] == "succeeded", || format!("{operation:#}"))?;
    }
    db.consistent().await?;
    let count = "SELECT concat_ws('|', state, count(*)) FROM instances WHERE released_at IS NULL GROUP BY state";
    let states = db.lines(count).await?;
    expect(states == [format!("running|{INSTANCES}")], || format!("{states:?}"))?;
    let wasted = db
        .lines("SELECT concat_ws('|', id, state) FROM instances WHERE released_at IS NOT NULL")
        .await?;
    expect(wasted.is_empty(), || {
        format!("instances were made twice: {} {:?}", wasted.len(), wasted.first())
    })?;
    eprintln!("{INSTANCES} instances placed and launched by {SCHEDULERS} schedulers in {took:.1?}");

    // One more fits nowhere.
    let body = deploy_body("1", "127.0.0.1:5000/more:1", 1, json!({"memory_mb": MEMORY}));
    let more = api.call("POST", "/apps/more/deploy", Some(&body)).await?;
    expect(more.status == 409 && more.code() == "NO_CAPACITY", || {
        format!("{more:?}")
    })?;

    let removals = (0..APPS).map(|number| {
        let api = api.clone();
        async move { api.call("DELETE", &format!("/apps/scale-{number}"), None).await?.ok() }
    });
    futures::future::try_join_all(removals).await?;
    until("all of them gone", Duration::from_secs(120), async || {
        let left =
            db.lines("SELECT concat_ws('|', state, count(*)) FROM instances WHERE released_at IS NULL GROUP BY state");
        let left = left.await.map_err(|e| format!("{e:#}"))?;
        let apps = db
            .lines("SELECT concat_ws('|', id, status) FROM apps")
            .await
            .map_err(|e| format!("{e:#}"))?;
        if left.is_empty() && apps.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?} {} apps", apps.len()))
        }
    })
    .await?;
    db.consistent().await
}
