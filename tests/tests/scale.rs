//! Many schedulers on one database at once. They run in this process, so that the fake hosts, which live in memory, are the
//! same for all of them; the database is the real one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use backends::engine::EngineOptions;
use e2e::Fleet;
use e2e::api::{Api, deploy_body};
use e2e::check::Db;
use e2e::wait::{expect, throughout, until, until_every};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const SCHEDULERS: usize = 4;
const HOSTS: usize = 20;
const APPS: usize = 40;
const INSTANCES: usize = 2_000;
/// Memory of one instance, MiB.
const MEMORY: usize = 64;
const STATES: &str = "SELECT concat_ws('|', state, count(*)) FROM instances WHERE released_at IS NULL GROUP BY state";

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
        let mut config = scheduler::Config {
            allow_fake_engines: true,
            admin_token_file: Some(token_file.clone()),
            ..scheduler::Config::default()
        };
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
            let spec = json!({"memory_mb": MEMORY, "health": {"kind": "none"}, "update": {"deadline_s": 600}});
            let body = deploy_body("1", "127.0.0.1:5000/scale:1", u32::try_from(INSTANCES / APPS)?, spec);
            api.call("POST", &format!("/apps/scale-{number}/deploy"), Some(&body))
                .await?
                .ok()
        }
    });
    let work = async {
        futures::future::try_join_all(deploys).await?;
        // Nobody probes here: a launched instance stays `starting`.
        let poll = Duration::from_millis(500);
        until_every(poll, "2,000 launched instances", Duration::from_secs(120), async || {
            let states = db.lines(STATES).await.map_err(|e| format!("{e:#}"))?;
            if states == [format!("starting|{INSTANCES}")] {
                Ok(())
            } else {
                Err(format!("{states:?}"))
            }
        })
        .await
    };
    let watch = async {
        // While they work: nothing overbooked, nothing twice.
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Err(error) = db.consistent().await {
                return error;
            }
        }
    };
    let ((), took) = tokio::select! {
        done = work => done?,
        broken = watch => return Err(broken.context("while placing")),
    };
    let took = took.max(began.elapsed());
    // What is launched stays as it is: nothing is replaced, moved or lost while four schedulers look at it.
    throughout("2,000 launched instances", Duration::from_secs(5), async || {
        let states = db.lines(STATES).await?;
        expect(states == [format!("starting|{INSTANCES}")], || format!("{states:?}"))
    })
    .await?;
    db.consistent().await?;
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
    Ok(())
}
