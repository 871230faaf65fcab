//! Measures what SPECIFICATION.md promises, on three real Docker hosts with separate roles on MariaDB and ZooKeeper:
//! deploy → first 200, container killed → replacement routed, rolling deploy of four under load. `make bench` runs it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::api::deploy_body;
use e2e::load::percentile;
use e2e::wait::until;
use e2e::{Fleet, Mode, Platform};
use serde_json::json;

/// Measurements of each kind.
const RUNS: usize = 20;
/// Containers of one app that are killed one after the other: with more, its replacements would rightly wait.
const KILLS: usize = 8;

#[tokio::main]
async fn main() -> Result<()> {
    if let Some(why) = Fleet::missing() {
        anyhow::bail!("nothing can be measured: {why}");
    }
    let modes = match std::env::args().nth(1).as_deref() {
        Some("all-in-one") => vec![Mode::AllInOne],
        Some("separate") => vec![Mode::Separate],
        _ => vec![Mode::AllInOne, Mode::Separate],
    };
    let fleet = Arc::new(Fleet::start().await?);
    for mode in modes {
        let platform = Platform::start(fleet.clone(), mode).await?;
        println!("{mode:?}");
        deploys(&platform).await?;
        kills(&platform).await?;
        rolls(&platform).await?;
        memory(&platform).await;
    }
    Ok(())
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let (p50, p95) = (percentile(&times, 0.5), percentile(&times, 0.95));
    let (least, most) = (percentile(&times, 0.0), percentile(&times, 1.0));
    println!(
        "  {what}: p50 {p50:.2?}, p95 {p95:.2?} ({least:.2?}-{most:.2?}, n={})",
        times.len()
    );
}

/// The image is on all hosts: from the request to the first 200 through a gateway.
async fn deploys(p: &Platform) -> Result<()> {
    p.deploy_hello("warm", "1", 3, json!({"memory_mb": 32})).await?;
    let mut times = Vec::new();
    for run in 0..RUNS {
        let app = format!("first-{run}");
        let began = Instant::now();
        let body = deploy_body("1", &p.hello("1"), 2, json!({"memory_mb": 32}));
        p.api
            .call("POST", &format!("/apps/{app}/deploy"), Some(&body))
            .await?
            .ok()?;
        until("the first 200", Duration::from_secs(20), async || {
            match p.visit(&app, "/").await {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        times.push(began.elapsed());
        p.remove(&app).await?;
    }
    show("deploy -> first 200", times);
    p.remove("warm").await
}

async fn kills(p: &Platform) -> Result<()> {
    p.deploy_hello("killed", "1", 3, json!({"memory_mb": 32})).await?;
    let load = p.load("killed", 200);
    load.flows(200).await?;
    let mut times = Vec::new();
    for _ in 0..KILLS {
        let (host, container) = p.containers("killed").await?.remove(0);
        let at = load.began.elapsed();
        p.fleet.host(&host).kill_container(&container.id).await?;
        let replaced = async || load.so_far().first_new_since(at).ok_or("no replacement answers");
        let (first, _) = until("a replacement", Duration::from_secs(30), replaced).await?;
        times.push(first - at);
        p.settled().await?;
    }
    let report = load.end().await;
    show("container killed -> replacement answers", times);
    println!("    meanwhile at 200 rps: {}", report.line());
    p.remove("killed").await
}

async fn rolls(p: &Platform) -> Result<()> {
    p.deploy_hello("rolling", "1", 4, json!({"memory_mb": 32})).await?;
    let load = p.load("rolling", 300);
    load.flows(300).await?;
    let mut times = Vec::new();
    for run in 0..RUNS / 4 {
        let version = if run % 2 == 0 { "2" } else { "1" };
        let began = Instant::now();
        p.api
            .deployed("rolling", version, &p.hello(version), 4, json!({}))
            .await?;
        times.push(began.elapsed());
        p.settled().await?;
    }
    let report = load.end().await;
    show("rolling deploy of 4", times);
    println!("    meanwhile at 300 rps: {}", report.line());
    p.remove("rolling").await
}

/// Resident memory of each role when nothing happens.
async fn memory(p: &Platform) {
    for role in &p.roles {
        let status = role
            .pid()
            .await
            .and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let rss = status
            .as_deref()
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"));
        println!("  {} uses {} of memory", role.name, rss.unwrap_or("?").trim());
    }
}
