//! Measures what SPECIFICATION.md promises, on three real Docker hosts with separate roles on MariaDB and ZooKeeper:
//! deploy → first 200, container killed → replacement routed, rolling deploy of four under load, memory. `make bench` runs it
//! with `--check`: then a promise that is not kept ends it with exit code 1.
//!
//! Usage: `measure [all-in-one|separate] [--check]`.

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

/// A promised number and what was measured: seconds, requests or MiB.
struct Promise {
    what: &'static str,
    most: f64,
    measured: f64,
    unit: &'static str,
}

impl Promise {
    fn kept(&self) -> bool {
        self.measured <= self.most
    }

    fn line(&self) -> String {
        let verdict = if self.kept() { "met" } else { "MISSED" };
        let Self {
            what,
            most,
            measured,
            unit,
        } = self;
        format!("  {verdict:<7} {what:<55} at most {most:>5.1} {unit:<8} measured {measured:.2}")
    }
}

/// What SPECIFICATION.md promises, beside what was measured.
#[derive(Default)]
struct Promises(Vec<Promise>);

impl Promises {
    fn seconds(&mut self, what: &'static str, most: f64, measured: Duration) {
        let measured = measured.as_secs_f64();
        self.0.push(Promise {
            what,
            most,
            measured,
            unit: "s",
        });
    }

    fn none(&mut self, what: &'static str, count: usize) {
        #[allow(clippy::cast_precision_loss, reason = "a count of requests")]
        let measured = count as f64;
        self.0.push(Promise {
            what,
            most: 0.0,
            measured,
            unit: "requests",
        });
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let check = args.iter().any(|arg| arg == "--check");
    if let Some(why) = Fleet::missing() {
        anyhow::bail!("nothing can be measured: {why}");
    }
    let modes = match args.iter().map(String::as_str).find(|arg| *arg != "--check") {
        Some("all-in-one") => vec![Mode::AllInOne],
        Some("separate") => vec![Mode::Separate],
        None => vec![Mode::AllInOne, Mode::Separate],
        Some(other) => anyhow::bail!("{other}: give all-in-one, separate, --check or nothing"),
    };
    let mut missed = 0;
    let fleet = Arc::new(Fleet::start().await?);
    for mode in modes {
        let platform = Platform::start(fleet.clone(), mode).await?;
        println!("{mode:?}");
        let mut promises = Promises::default();
        memory(&platform, &mut promises).await;
        deploys(&platform, &mut promises).await?;
        kills(&platform, &mut promises).await?;
        rolls(&platform, &mut promises).await?;
        for promise in &promises.0 {
            println!("{}", promise.line());
            missed += usize::from(!promise.kept());
        }
    }
    anyhow::ensure!(!check || missed == 0, "{missed} promised numbers were missed");
    Ok(())
}

/// Prints them; sorted, they come back.
fn show(what: &str, mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort_unstable();
    let (p50, p95) = (percentile(&times, 0.5), percentile(&times, 0.95));
    let (least, most) = (percentile(&times, 0.0), percentile(&times, 1.0));
    println!(
        "  {what}: p50 {p50:.2?}, p95 {p95:.2?} ({least:.2?}-{most:.2?}, n={})",
        times.len()
    );
    times
}

/// The image is on all hosts: from the request to the first 200 through a gateway.
async fn deploys(p: &Platform, promises: &mut Promises) -> Result<()> {
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
    let times = show("deploy -> first 200", times);
    promises.seconds("deploy -> first 200, p50", 1.0, percentile(&times, 0.5));
    promises.seconds("deploy -> first 200, p95", 2.0, percentile(&times, 0.95));
    p.remove("warm").await
}

async fn kills(p: &Platform, promises: &mut Promises) -> Result<()> {
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
    let times = show("container killed -> replacement answers", times);
    println!("    meanwhile at 200 rps: {}", report.line());
    promises.seconds("container killed -> replacement answers", 2.0, percentile(&times, 1.0));
    promises.none("failed while containers are killed", report.failed().len());
    promises.none("slower than 0.5 s while containers are killed", report.slow());
    p.remove("killed").await
}

async fn rolls(p: &Platform, promises: &mut Promises) -> Result<()> {
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
    let times = show("rolling deploy of 4", times);
    println!("    meanwhile at 300 rps: {}", report.line());
    promises.seconds("rolling deploy of 4 at 300 requests/s", 8.0, percentile(&times, 1.0));
    promises.none("failed in rolling deploys", report.failed().len());
    p.remove("rolling").await
}

/// Resident memory of each role when nothing has happened yet.
async fn memory(p: &Platform, promises: &mut Promises) {
    for role in &p.roles {
        let status = role
            .pid()
            .await
            .and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
        let rss = status.as_deref().unwrap_or_default().lines().find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<f64>()
                .ok()
        });
        let mib = rss.unwrap_or(f64::INFINITY) / 1024.0;
        println!("  {} uses {mib:.1} MiB of memory", role.name);
        if role.name == "up" {
            promises.0.push(Promise {
                what: "idle caas up",
                most: 40.0,
                measured: mib,
                unit: "MiB",
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_met_up_to_its_number() {
        let mut promises = Promises::default();
        promises.seconds("a", 1.0, Duration::from_secs(1));
        promises.seconds("b", 1.0, Duration::from_millis(1001));
        promises.none("c", 0);
        promises.none("d", 1);
        let kept: Vec<bool> = promises.0.iter().map(Promise::kept).collect();
        assert_eq!(kept, [true, false, true, false]);
        assert!(promises.0[1].line().contains("MISSED"));
    }
}
