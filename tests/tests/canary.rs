//! A canary, by the command line: weighed, promoted and aborted under load.

use std::time::Duration;

use anyhow::Result;
use e2e::Platform;
use e2e::load::{self, Report};
use e2e::wait::{expect, until};
use serde_json::json;

crate::support::with_separate_roles! {
    canary_under_load,
}

/// How many of the requests of a load that began after the canary was there were answered by version 2, per cent.
fn share(report: &Report) -> usize {
    let versions: Vec<&str> = report
        .samples
        .iter()
        .filter_map(|s| Some(s.result.as_ref().ok()?.1.as_str()))
        .collect();
    versions.iter().filter(|v| **v == "2").count() * 100 / versions.len().max(1)
}

/// Every request was answered; how soon is measured by other scenarios.
fn unfailing(report: &Report, what: &str) -> Result<()> {
    let failed = report.failed();
    expect(failed.is_empty(), || {
        let first = failed.iter().take(5).collect::<Vec<_>>();
        format!("{what}: {} of {} failed: {first:?}", failed.len(), report.samples.len())
    })
}

/// Waits until version 2 answers `wanted` % of the requests: gateways follow a change within moments, not at once. None
/// fails meanwhile.
async fn measured(p: &Platform, wanted: usize) -> Result<()> {
    until("the wanted share", Duration::from_secs(20), async || {
        let load = p.load("weighed", 200);
        load.flows(300).await.map_err(|e| format!("{e:#}"))?;
        let report = load.end().await;
        unfailing(&report, "a canary beside an app").map_err(|e| format!("{e:#}"))?;
        let share = share(&report);
        eprintln!("canary of {wanted} %: {share} % of {} requests", report.samples.len());
        if share.abs_diff(wanted) <= 2 {
            Ok(())
        } else {
            Err(format!("{share} % in place of {wanted} %"))
        }
    })
    .await?;
    Ok(())
}

/// Clients keep the version that they were given first, as soon as it is asked for, though a canary is there.
async fn clients_stay(p: &Platform) -> Result<()> {
    p.cli_ok(&["config", "weighed", "--set", "sticky=version"]).await?;
    let (gateway, domain) = (p.gateways[0], p.domain("weighed"));
    let mut versions = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let given = async || {
            let answer = p.visit("weighed", "/").await?;
            let told = answer.headers.get("set-cookie").and_then(|v| v.to_str().ok());
            let cookie = told.and_then(|told| told.split(';').next()).map(str::to_owned);
            cookie
                .map(|cookie| (answer.version, cookie))
                .ok_or("no cookie".to_owned())
        };
        let ((version, cookie), _) = until("a cookie", Duration::from_secs(10), given).await?;
        for _ in 0..10 {
            let again = load::get_with(&p.http, gateway, &domain, "/", ("cookie", &cookie)).await;
            let again = again.map_err(anyhow::Error::msg)?;
            expect(again.version == version, || {
                format!("{cookie} of version {version}: {again:?}")
            })?;
        }
        versions.insert(version);
    }
    expect(versions.len() == 2, || {
        format!("half of the clients each: {versions:?}")
    })?;
    let (code, _, error) = p.cli(&["config", "weighed", "--set", "weights.2=10"]).await?;
    expect(code == 64 && error.contains("`caas canary`"), || error.clone())
}

async fn canary_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("weighed", "1", 2, json!({"memory_mb": 32})).await?;
    let (one, two) = (p.hello("1"), p.hello("2"));
    let begin = ["deploy", "weighed:2", "--image", &two, "--canary", "10"];
    p.cli_ok(&begin).await?;
    measured(p, 10).await?;
    let info = p.cli_ok(&["info", "weighed"]).await?;
    expect(
        info.contains("2 of 2 instances routed") && info.contains("10 % of the requests, 1 of 1 instances routed"),
        || info.clone(),
    )?;
    let (code, _, error) = p.cli(&["deploy", "weighed:1", "--image", &one]).await?;
    expect(code != 0 && error.contains("promote or abort it first"), || {
        error.clone()
    })?;
    p.cli_ok(&["canary", "weighed", "50"]).await?;
    measured(p, 50).await?;
    clients_stay(p).await?;

    let load = p.load("weighed", 200);
    load.flows(50).await?;
    p.cli_ok(&["abort", "weighed"]).await?;
    p.answers("weighed", "1", 2).await?;
    p.cli_ok(&begin).await?;
    p.cli_ok(&["promote", "weighed"]).await?;
    p.answers("weighed", "2", 2).await?;
    load.flows(50).await?;
    unfailing(&load.end().await, "a canary aborted, and one promoted")?;
    let app = p.api.get("/apps/weighed").await?;
    expect(
        app["app"]["canary"].is_null() && app["app"]["config"]["weights"] == json!({}),
        || format!("{app:#}"),
    )?;
    p.cli_ok(&["rollback", "weighed"]).await?;
    p.answers("weighed", "1", 2).await?;
    Ok(())
}
