//! Containers that misbehave: killed, removed, crashing, hanging, out of memory. What serves goes on serving.

use std::time::Duration;

use anyhow::Result;
use e2e::Platform;
use e2e::wait::{expect, until};
use serde_json::{Value, json};

use crate::support::failed_with;

crate::support::in_both_modes! {
    a_killed_container_is_replaced_under_load,
    a_container_removed_by_hand_is_replaced,
    a_hanging_instance_is_withdrawn_and_replaced,
    an_app_out_of_memory_is_replaced_and_says_so,
    a_version_that_exits_at_once_fails_and_the_old_one_stays,
    a_version_that_never_answers_fails_and_the_old_one_stays,
    a_first_deploy_that_fails_says_why,
    restart_in_place_on_failure,
    an_app_left_alone_on_failure,
}

const SMALL: u32 = 32;

async fn a_killed_container_is_replaced_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("killed", "1", 3, json!({"memory_mb": SMALL})).await?;
    let load = p.load("killed", 200);
    load.flows(200).await?;
    let (host, container) = p.containers("killed").await?.remove(0);
    let at = load.began.elapsed();
    p.fleet.host(&host).kill_container(&container.id).await?;
    let replaced = async || load.so_far().first_new_since(at).ok_or("no new instance answers");
    let (first, _) = until("a replacement", Duration::from_secs(15), replaced).await?;
    load.flows(100).await?;
    let report = load.end().await;
    eprintln!("killed -> replacement answered: {:.0?}; {}", first - at, report.line());
    report.flawless("kill -9 of a container")?;
    expect(first - at < Duration::from_secs(5), || {
        format!("replaced only after {:?}", first - at)
    })?;
    failed_with(p, "killed", "exited").await?;
    Ok(())
}

async fn a_container_removed_by_hand_is_replaced(p: &Platform) -> Result<()> {
    p.deploy_hello("removed", "1", 2, json!({"memory_mb": SMALL})).await?;
    let load = p.load("removed", 50);
    load.flows(30).await?;
    let (host, container) = p.containers("removed").await?.remove(0);
    p.fleet.host(&host).remove_container(&container.id).await?;
    failed_with(p, "removed", "removed").await?;
    p.answers("removed", "1", 2).await?;
    load.end().await.flawless("docker rm -f by hand")
}

async fn a_hanging_instance_is_withdrawn_and_replaced(p: &Platform) -> Result<()> {
    let health = json!({"interval_ms": 500, "timeout_ms": 500, "unhealthy_after": 2});
    // It does not hear SIGTERM either.
    let spec = json!({"memory_mb": SMALL, "health": health, "stop_grace_s": 1});
    p.deploy_hello("hanging", "1", 2, spec).await?;
    let before = p.api.instances("hanging").await?;
    // The request that hangs the instance never comes back.
    let hang = p.visit("hanging", "/hang");
    let (_, failed) = futures::join!(
        tokio::time::timeout(Duration::from_millis(200), hang),
        failed_with(p, "hanging", "unhealthy")
    );
    failed?;
    p.answers("hanging", "1", 2).await?;
    p.settled().await?;
    let after = p.api.instances("hanging").await?;
    let kept = after
        .iter()
        .filter(|a| before.iter().any(|b| b["id"] == a["id"]))
        .count();
    expect(kept == 1, || format!("one of two is replaced: {before:?} {after:?}"))
}

async fn an_app_out_of_memory_is_replaced_and_says_so(p: &Platform) -> Result<()> {
    p.deploy_hello("hungry", "1", 2, json!({"memory_mb": SMALL})).await?;
    let _ = p.visit("hungry", "/eat?mb=200").await;
    let instance = failed_with(p, "hungry", "out_of_memory").await?;
    expect(instance["failure"]["exit_code"] == 137, || instance.to_string())?;
    p.answers("hungry", "1", 2).await?;
    Ok(())
}

/// Deploys version 2 with `spec` over a sound version 1 under load: it must fail with `code`, and 1 must stay.
async fn bad_version(p: &Platform, app: &str, spec: Value, code: &str) -> Result<Value> {
    p.deploy_hello(app, "1", 2, json!({"memory_mb": SMALL})).await?;
    let load = p.load(app, 50);
    load.flows(30).await?;
    let operation = p.api.deploy(app, "2", &p.hello("2"), 3, spec).await?;
    expect(operation["state"] == "failed", || format!("{operation:#}"))?;
    expect(operation["failure"]["code"] == code, || format!("{operation:#}"))?;
    p.answers(app, "1", 2).await?;
    let report = load.end().await;
    report.flawless("a deploy that fails")?;
    let stray = report
        .samples
        .iter()
        .filter(|s| s.result.as_ref().is_ok_and(|(_, version)| version != "1"))
        .count();
    expect(stray == 0, || format!("{stray} requests reached the bad version"))?;
    p.settled().await?;
    let app = p.api.get(&format!("/apps/{app}")).await?;
    expect(app["app"]["release"] == 1, || format!("not back at release 1: {app:#}"))?;
    expect(app["app"]["instances"] == 2, || {
        format!("not as many as before: {app:#}")
    })?;
    Ok(operation)
}

async fn a_version_that_exits_at_once_fails_and_the_old_one_stays(p: &Platform) -> Result<()> {
    let operation = bad_version(
        p,
        "exits",
        json!({"env": {"MODE": "exit"}, "update": {"deadline_s": 20}}),
        "exited",
    )
    .await?;
    let failure = &operation["failure"];
    expect(failure["exit_code"] == 3, || failure.to_string())?;
    expect(
        failure["log_tail"]
            .to_string()
            .contains("MODE=exit: ending with code 3"),
        || failure.to_string(),
    )
}

async fn a_version_that_never_answers_fails_and_the_old_one_stays(p: &Platform) -> Result<()> {
    let health = json!({"grace_s": 2, "timeout_ms": 300});
    // Unanswered probes would hold up its end.
    let spec = json!({"env": {"MODE": "silent"}, "health": health, "stop_grace_s": 1, "update": {"deadline_s": 10}});
    let operation = bad_version(p, "silent", spec, "never_ready").await?;
    let probes = operation["failure"]["probes"].as_array().cloned().unwrap_or_default();
    expect(!probes.is_empty(), || format!("no probe results: {operation:#}"))
}

async fn a_first_deploy_that_fails_says_why(p: &Platform) -> Result<()> {
    let file = p.dir.join("broken.toml");
    let text = format!(
        "app = \"broken\"\nversion = \"1\"\nimage = {:?}\nmemory = \"32M\"\nenv = {{ MODE = \"exit\" }}\n[update]\ndeadline_s = 10\n",
        p.hello("1")
    );
    std::fs::write(&file, text)?;
    let args = ["deploy", "-f", file.to_str().unwrap_or_default()];
    let (code, out, error) = p.cli(&args).await?;
    let said = format!("{out}{error}");
    expect(code == 2, || format!("exit code {code}: {said}"))?;
    expect(said.contains("code 3") || said.contains("exit code: 3"), || {
        format!("the exit code is not shown:\n{said}")
    })?;
    expect(said.contains("MODE=exit: ending with code 3"), || {
        format!("the log's end is not shown:\n{said}")
    })?;
    p.remove("broken").await
}

async fn restart_in_place_on_failure(p: &Platform) -> Result<()> {
    p.deploy_hello("inplace", "1", 2, json!({"memory_mb": SMALL, "on_failure": "restart"}))
        .await?;
    let before = p.api.instances("inplace").await?;
    let (host, container) = p.containers("inplace").await?.remove(0);
    p.fleet.host(&host).kill_container(&container.id).await?;
    until("restart in place", Duration::from_secs(20), async || {
        let now = p.api.instances("inplace").await.map_err(|e| format!("{e:#}"))?;
        let same = now.len() == 2 && now.iter().all(|i| before.iter().any(|b| b["id"] == i["id"]));
        let restarted = now
            .iter()
            .any(|i| i["id"] == container.instance.as_str() && i["restarts"] == 1 && i["state"] == "running");
        if same && restarted {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await?;
    p.answers("inplace", "1", 2).await?;
    Ok(())
}

async fn an_app_left_alone_on_failure(p: &Platform) -> Result<()> {
    p.deploy_hello("alone", "1", 2, json!({"memory_mb": SMALL, "on_failure": "none"}))
        .await?;
    let (host, container) = p.containers("alone").await?.remove(0);
    p.fleet.host(&host).kill_container(&container.id).await?;
    failed_with(p, "alone", "exited").await?;
    p.answers("alone", "1", 1).await?;
    p.remove("alone").await
}
