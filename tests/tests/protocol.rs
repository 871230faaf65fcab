//! An app that goes from HTTP/1.1 to HTTP/2 and back: each instance is spoken to in what its release was deployed with.

use std::time::Duration;

use anyhow::Result;
use e2e::Platform;
use e2e::wait::{expect, until};
use serde_json::json;

crate::support::in_both_modes! {
    protocol_changes_under_load,
}

async fn protocol_changes_under_load(p: &Platform) -> Result<()> {
    // With MODE=h2c the sample app speaks nothing but HTTP/2.
    p.deploy_hello("turns", "1", 2, json!({"memory_mb": 32})).await?;
    let load = p.load("turns", 200);
    load.flows(50).await?;
    let image = p.hello("2");
    p.cli_ok(&[
        "deploy",
        "turns:2",
        "--image",
        &image,
        "--protocol",
        "h2c",
        "--env",
        "MODE=h2c",
    ])
    .await?;
    p.answers("turns", "2", 2).await?;
    let info = p.cli_ok(&["info", "turns"]).await?;
    expect(info.contains("protocol   h2c"), || info.clone())?;

    // One that does not come up leaves what is there as it was.
    let broken = json!({"version": "9", "image": image, "config": {"protocol": "http"},
        "spec": {"env": {"MODE": "exit"}, "update": {"deadline_s": 20}}});
    let operation = p.api.work("POST", "/apps/turns/deploy", Some(&broken)).await?;
    expect(operation["state"] == "failed", || format!("{operation:#}"))?;
    p.answers("turns", "2", 2).await?;
    load.flows(50).await?;

    p.cli_ok(&["rollback", "turns", "1"]).await?;
    p.answers("turns", "1", 2).await?;
    load.flows(50).await?;

    // Two versions at once, of which the second takes over.
    p.cli_ok(&[
        "deploy",
        "turns:3",
        "--image",
        &image,
        "--canary",
        "50",
        "--protocol",
        "h2c",
        "--env",
        "MODE=h2c",
    ])
    .await?;
    until("both versions answer", Duration::from_secs(20), async || {
        let mut seen = [false, false];
        for _ in 0..40 {
            match p.visit("turns", "/").await?.version.as_str() {
                "1" => seen[0] = true,
                "3" => seen[1] = true,
                other => return Err(format!("version {other:?} answered")),
            }
        }
        if seen == [true, true] {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await?;
    p.cli_ok(&["promote", "turns"]).await?;
    p.answers("turns", "3", 2).await?;
    load.flows(50).await?;

    let report = load.end().await;
    eprintln!("an app that goes to HTTP/2 and back: {}", report.line());
    let failed = report.failed();
    expect(failed.is_empty(), || {
        let first = failed.iter().take(5).collect::<Vec<_>>();
        format!("{} of {} failed: {first:?}", failed.len(), report.samples.len())
    })?;
    // Nobody speaks HTTP/1.1 any more, so nothing is said of it.
    let app = p.api.get("/apps/turns").await?;
    expect(app["app"]["config"]["protocol"] == "h2c", || format!("{app:#}"))
}
