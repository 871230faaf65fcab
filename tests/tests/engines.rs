//! Hosts and their engines fail: power cut, engine killed, engine hung, port stolen, host drained.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::Platform;
use e2e::wait::{expect, throughout, until};
use serde_json::json;

crate::support::in_both_modes! {
    a_host_loses_power_under_load,
    an_engine_is_killed_and_restarted,
    an_engine_with_live_restore_restarts_under_load,
    a_hung_engine_blocks_nobody_else,
    a_cut_control_line_moves_nothing,
    a_stolen_port_is_passed_over,
    a_drained_host_is_empty_and_nothing_fails,
}

const SMALL: u32 = 32;

async fn a_host_loses_power_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("power", "1", 3, json!({"memory_mb": SMALL})).await?;
    let lost: Vec<String> = p
        .containers("power")
        .await?
        .into_iter()
        .filter(|(host, _)| host == "h1")
        .map(|(_, container)| container.instance)
        .collect();
    expect(lost.len() == 1, || format!("instances on h1: {lost:?}"))?;
    let load = p.load("power", 100);
    load.flows(100).await?;
    let at = load.began.elapsed();
    p.fleet.host("h1").power_cut().await?;
    let replaced = async || load.so_far().first_new_since(at).ok_or("no replacement answers");
    let (first, _) = until("a replacement of the lost instance", Duration::from_secs(40), replaced).await?;
    load.flows(100).await?;
    let report = load.end().await;
    let waited = report
        .samples
        .iter()
        .filter(|s| s.took > e2e::load::SLOW)
        .map(|s| s.at.saturating_sub(at))
        .max();
    eprintln!(
        "power cut: last slow request sent after {:.1?}, replaced after {:.1?}; {}",
        waited.unwrap_or_default(),
        first - at,
        report.line()
    );
    // Requests wait once for the connect time-out of 1 s, those on connections that were open already until the host is known
    // to be gone; then another instance answers them.
    let failed = report.failed();
    expect(failed.is_empty(), || {
        format!("{} failed: {:?}", failed.len(), &failed[..failed.len().min(5)])
    })?;
    expect(report.slow() <= 80, || format!("{} slow requests", report.slow()))?;
    let waited = waited.unwrap_or_default();
    expect(waited <= Duration::from_secs(5), || {
        format!("its endpoint was in use for {waited:?}")
    })?;
    expect(first - at <= Duration::from_secs(25), || {
        format!("replaced only after {:?}", first - at)
    })?;

    p.fleet.host("h1").power_on().await?;
    p.hosts_up().await?;
    p.settled().await?;
    p.answers("power", "1", 3).await?;
    Ok(())
}

async fn an_engine_is_killed_and_restarted(p: &Platform) -> Result<()> {
    p.deploy_hello("engine", "1", 3, json!({"memory_mb": SMALL})).await?;
    let load = p.load("engine", 50);
    load.flows(50).await?;
    // Containers outlive the engine; its restart then kills them (no live-restore): those are replaced.
    let host = p.fleet.host("h1");
    host.kill_dockerd().await?;
    load.flows(100).await?;
    load.so_far().flawless("an engine that is away")?;
    host.start_dockerd().await?;
    p.hosts_up().await?;
    p.answers("engine", "1", 3).await?;
    p.settled().await?;
    let report = load.end().await;
    eprintln!("engine killed and restarted: {}", report.line());
    report.flawless("an engine that is killed and restarted")
}

async fn an_engine_with_live_restore_restarts_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("restored", "1", 3, json!({"memory_mb": SMALL})).await?;
    let before = ids(p, "restored").await?;
    let load = p.load("restored", 50);
    load.flows(50).await?;
    let host = p.fleet.host("h2");
    host.kill_dockerd().await?;
    load.flows(50).await?;
    host.start_dockerd().await?;
    p.hosts_up().await?;
    p.settled().await?;
    load.flows(50).await?;
    load.end().await.flawless("an engine with live-restore")?;
    let after = ids(p, "restored").await?;
    expect(before == after, || format!("instances changed: {before:?} {after:?}"))
}

async fn ids(p: &Platform, app: &str) -> Result<std::collections::BTreeSet<String>> {
    let instances = p.api.instances(app).await?;
    Ok(instances
        .iter()
        .filter_map(|i| Some(i["id"].as_str()?.to_owned()))
        .collect())
}

async fn a_hung_engine_blocks_nobody_else(p: &Platform) -> Result<()> {
    p.deploy_hello("hung", "1", 3, json!({"memory_mb": SMALL})).await?;
    let load = p.load("hung", 50);
    load.flows(50).await?;
    let host = p.fleet.host("h3");
    host.freeze_dockerd(true).await?;
    // Work on other hosts goes on meanwhile.
    let began = std::time::Instant::now();
    let spec = json!({"memory_mb": SMALL, "placement": {"labels": {"number": "1"}}});
    let elsewhere = p.deploy_hello("elsewhere", "1", 2, spec).await;
    let took = began.elapsed();
    let killed = async {
        let (name, container) = p
            .containers_on("hung", &["h1", "h2"])
            .await?
            .into_iter()
            .next()
            .context("a container on h1 or h2")?;
        p.fleet.host(&name).kill_container(&container.id).await?;
        let at = load.began.elapsed();
        let replaced = async || load.so_far().first_new_since(at).ok_or("no replacement answers");
        until("a replacement beside a hung engine", Duration::from_secs(20), replaced).await
    };
    let killed = killed.await;
    host.freeze_dockerd(false).await?;
    elsewhere?;
    killed?;
    expect(took < Duration::from_secs(10), || {
        format!("a deploy elsewhere took {took:?}")
    })?;
    p.hosts_up().await?;
    p.settled().await?;
    load.end().await.flawless("a hung engine")
}

async fn a_cut_control_line_moves_nothing(p: &Platform) -> Result<()> {
    p.deploy_hello("control", "1", 3, json!({"memory_mb": SMALL})).await?;
    let before = ids(p, "control").await?;
    let load = p.load("control", 50);
    load.flows(50).await?;
    let host = p.fleet.host("h1");
    host.control_line(false).await?;
    // Longer than it takes to call a host lost: its instances still answer, so they stay.
    let away = throughout(
        "instances of a host that serves stay",
        Duration::from_secs(18),
        async || {
            let now = ids(p, "control").await.map_err(|e| format!("{e:#}"))?;
            if now == before {
                Ok(())
            } else {
                Err(format!("{before:?} {now:?}"))
            }
        },
    );
    let away = away.await;
    host.control_line(true).await?;
    away?;
    p.hosts_up().await?;
    p.settled().await?;
    load.end().await.flawless("a cut control line")
}

async fn a_stolen_port_is_passed_over(p: &Platform) -> Result<()> {
    // A stranger sits on every other port of the host: of eight instances about four meet one at first.
    let (first, last) = p.ports();
    let stolen: Vec<u16> = (first..=last).step_by(2).collect();
    let host = p.fleet.host("h1");
    host.steal_ports(&stolen).await?;
    let spec = json!({"memory_mb": SMALL, "placement": {"labels": {"number": "1"}}});
    p.deploy_hello("ports", "1", 8, spec).await?;
    let instances = p.api.instances("ports").await?;
    let used: Vec<u64> = instances.iter().filter_map(|i| i["port"].as_u64()).collect();
    expect(
        used.len() == 8 && used.iter().all(|port| !port.is_multiple_of(2)),
        || format!("{used:?}"),
    )?;
    let all = p.api.get("/instances?app=ports&all=true").await?;
    let met = e2e::platform::list(&all)
        .iter()
        .filter(|i| i["failure"]["code"] == "port_taken")
        .count();
    expect(met > 0, || format!("no instance met a stolen port: {all}"))?;
    p.settled().await?;
    host.steal_ports(&[]).await
}

async fn a_drained_host_is_empty_and_nothing_fails(p: &Platform) -> Result<()> {
    p.deploy_hello("drained", "1", 3, json!({"memory_mb": SMALL})).await?;
    let load = p.load("drained", 100);
    load.flows(100).await?;
    p.api.done("POST", "/hosts/h2/drain", None).await?;
    let left = p
        .fleet
        .host("h2")
        .containers()
        .await?
        .into_iter()
        .filter(|c| c.app == "drained")
        .count();
    expect(left == 0, || format!("{left} containers are left on the drained host"))?;
    load.flows(50).await?;
    load.end().await.flawless("a drained host")?;
    p.answers("drained", "1", 3).await?;
    p.api.call("POST", "/hosts/h2/uncordon", None).await?.ok()?;
    p.hosts_up().await
}
