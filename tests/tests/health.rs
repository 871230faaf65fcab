//! How an instance proves that it is well: heartbeats by the app itself, a connection, nothing at all, or no route for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::Platform;
use e2e::wait::expect;
use serde_json::{Value, json};

use crate::support::failed_with;

crate::support::in_both_modes! {
    an_app_that_stops_beating_is_replaced,
    a_connection_or_nothing_can_be_proof_enough,
}

/// `CAAS_INSTANCE_TOKEN` of each instance, as its container sees it.
async fn tokens(p: &Platform, app: &str) -> Result<BTreeMap<String, String>> {
    let mut tokens = BTreeMap::new();
    for (host, container) in p.containers(app).await? {
        let seen = e2e::docker::inspect(&p.fleet.host(&host).socket(), &container.id).await?;
        let variables = seen["Config"]["Env"].as_array().into_iter().flatten();
        let token = variables
            .filter_map(Value::as_str)
            .find_map(|variable| variable.strip_prefix("CAAS_INSTANCE_TOKEN="))
            .with_context(|| format!("no token in {}", seen["Config"]["Env"]))?;
        tokens.insert(container.instance, token.to_owned());
    }
    Ok(tokens)
}

async fn an_app_that_stops_beating_is_replaced(p: &Platform) -> Result<()> {
    let health = json!({"kind": "heartbeat", "heartbeat_timeout_s": 3, "interval_ms": 500, "unhealthy_after": 2});
    let spec = json!({"memory_mb": 32, "health": health, "env": {"HEARTBEAT_MS": "300"}});
    p.deploy_hello("beats", "1", 2, spec).await?;
    let instances = p.api.instances("beats").await?;
    expect(instances.iter().all(|i| i["heartbeat_at"].is_string()), || {
        format!("{instances:?}")
    })?;

    // Only the instance's own token counts, and it opens nothing else.
    let tokens = tokens(p, "beats").await?;
    let (first, second) = (&instances[0]["id"], &instances[1]["id"]);
    let (first, second) = (first.as_str().unwrap_or_default(), second.as_str().unwrap_or_default());
    let beat = format!("/instances/{first}/heartbeat");
    for (token, status) in [
        (tokens[first].as_str(), 204),
        (tokens[second].as_str(), 401),
        (p.api.token.as_str(), 401),
        ("nonsense", 401),
    ] {
        let reply = p.api.with_token(token).call("PUT", &beat, None).await?;
        expect(reply.status == status, || {
            format!("wanted {status} for token {token}: {reply:?}")
        })?;
    }
    let own = p.api.with_token(&tokens[first]);
    for (method, path) in [("GET", "/apps"), ("DELETE", "/apps/beats")] {
        let reply = own.call(method, path, None).await?;
        expect(reply.status == 401, || format!("{method} {path}: {reply:?}"))?;
    }

    // It still answers HTTP, but says no more that it is well: that alone takes it out.
    let load = p.load("beats", 50);
    load.flows(50).await?;
    let silent = p.visit("beats", "/stopbeating").await.map_err(anyhow::Error::msg)?;
    let failed = failed_with(p, "beats", "unhealthy").await?;
    expect(failed["id"] == silent.instance.as_str(), || {
        format!("{} fell silent: {failed}", silent.instance)
    })?;
    let probes = failed["failure"]["probes"].to_string();
    expect(probes.contains("last heartbeat"), || failed.to_string())?;
    p.answers("beats", "1", 2).await?;
    p.settled().await?;
    load.end().await.flawless("an app that stops beating")?;
    let left = p.api.instances("beats").await?;
    let kept = left
        .iter()
        .filter(|i| instances.iter().any(|b| b["id"] == i["id"]))
        .count();
    expect(kept == 1, || format!("one of two is replaced: {instances:?} {left:?}"))
}

async fn a_connection_or_nothing_can_be_proof_enough(p: &Platform) -> Result<()> {
    let spec = |kind: &str, mode: &str| json!({"memory_mb": 32, "health": {"kind": kind, "grace_s": 20}, "env": {"MODE": mode, "START_MS": "1500"}});
    let deploy = async |app: &str, kind: &str, mode: &str| {
        let began = Instant::now();
        p.api.deployed(app, "1", &p.hello("1"), 1, spec(kind, mode)).await?;
        let instances = p.api.instances(app).await?;
        let sound =
            instances.len() == 1 && instances[0]["state"] == "running" && instances[0]["assumed_healthy"] == false;
        expect(sound, || format!("{app}: {instances:?}"))?;
        anyhow::Ok(began.elapsed())
    };
    // It accepts and never answers, which is all that `tcp` asks for.
    deploy("accepts", "tcp", "silent").await?;
    // `tcp` waits until somebody listens: the first request already is answered.
    let took = deploy("listens", "tcp", "slowstart").await?;
    expect(took >= Duration::from_millis(1500), || {
        format!("running {took:?} after its deploy, before it listened")
    })?;
    let answer = p.visit("listens", "/").await.map_err(anyhow::Error::msg)?;
    expect(answer.status == 200, || format!("{answer:?}"))?;
    // What would never pass as `http` runs with `none`.
    deploy("unasked", "none", "failping").await?;
    p.answers("unasked", "1", 1).await?;
    // A container that ends is noticed without any probe.
    let (host, container) = p.containers("unasked").await?.remove(0);
    p.fleet.host(&host).kill_container(&container.id).await?;
    failed_with(p, "unasked", "exited").await?;
    p.answers("unasked", "1", 1).await?;

    // 404 at `/_ping` is a life sign; at a path that was asked for it is not.
    let plain = json!({"memory_mb": 32, "env": {"MODE": "noping"}});
    p.deploy_hello("plain", "1", 1, plain).await?;
    let instances = p.api.instances("plain").await?;
    expect(instances[0]["assumed_healthy"] == true, || format!("{instances:?}"))?;
    let asked = json!({"health": {"path": "/ready", "grace_s": 2}, "update": {"deadline_s": 20}});
    let operation = p.api.deploy("plain", "2", &p.hello("2"), 1, asked).await?;
    let told = operation["failure"]["probes"].to_string();
    expect(operation["state"] == "failed" && told.contains("404"), || {
        format!("{operation:#}")
    })
}
