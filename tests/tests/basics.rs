//! The main job: push, deploy, reach, scale, roll, restart, stop, remove.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::wait::expect;
use e2e::{Platform, load, platform};
use serde_json::{Value, json};

crate::support::in_both_modes! {
    a_pushed_image_is_deployed_and_answers_in_turn,
    scaling_under_load,
    rolling_deploy_under_load,
    restart_under_load,
    stop_start_rollback,
    routes_follow_the_configuration,
    the_command_line,
}

async fn a_pushed_image_is_deployed_and_answers_in_turn(p: &Platform) -> Result<()> {
    p.fleet.push_copy("1", "turn", "1").await?;
    let out = p
        .cli_ok(&[
            "deploy",
            "turn:1",
            "--instances",
            "3",
            "--memory",
            "64M",
            "--env",
            "GREETING=hi",
        ])
        .await?;
    expect(!out.trim().is_empty(), || "deploy says nothing".into())?;
    p.answers("turn", "1", 3).await?;

    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..60 {
        let answer = p.visit("turn", "/").await.map_err(anyhow::Error::msg)?;
        *counts.entry(answer.instance).or_default() += 1;
        let body: Value = serde_json::from_str(&answer.body)?;
        expect(body["app"] == "turn" && body["version"] == "1", || answer.body.clone())?;
    }
    expect(counts.len() == 3 && counts.values().all(|n| *n >= 15), || {
        format!("not in turn: {counts:?}")
    })?;

    // One on each host, with the limits that were asked for.
    let instances = p.api.instances("turn").await?;
    let hosts: std::collections::BTreeSet<_> = instances.iter().filter_map(|i| i["host"].as_str()).collect();
    expect(hosts.len() == 3, || format!("not spread over the hosts: {hosts:?}"))?;
    for (host, container) in p.containers("turn").await? {
        let seen = e2e::docker::inspect(&p.fleet.host(&host).socket(), &container.id).await?;
        let limits = &seen["HostConfig"];
        let wanted = 64 << 20;
        expect(limits["Memory"] == wanted && limits["MemorySwap"] == wanted, || {
            format!("memory: {limits}")
        })?;
        expect(limits["CpuShares"] == 1024 && limits["PidsLimit"] == 512, || {
            format!("limits: {limits}")
        })?;
        expect(limits["SecurityOpt"].to_string().contains("no-new-privileges"), || {
            format!("security: {limits}")
        })?;
        let published = &limits["PortBindings"]["8080/tcp"][0]["HostIp"];
        expect(*published == p.fleet.host(&host).address.as_str(), || {
            format!("published on {published}")
        })?;
        let env = seen["Config"]["Env"].to_string();
        for variable in [
            "CAAS_APP=turn",
            "CAAS_VERSION=1",
            "CAAS_INSTANCE=",
            "CAAS_REGION=test",
            "PORT=8080",
            "GREETING=hi",
        ] {
            expect(env.contains(variable), || format!("{variable} is not in {env}"))?;
        }
        expect(seen["Name"] == format!("/caas-turn-{}", container.instance), || {
            seen["Name"].to_string()
        })?;
    }
    // An app nobody has deployed, and one version by its own name.
    let answer = p.visit("nobody", "/").await.map_err(anyhow::Error::msg)?;
    expect(answer.status == 404, || format!("{answer:?}"))?;
    let one = load::get(&p.http, p.gateways[0], &p.domain("1--turn"), "/")
        .await
        .map_err(anyhow::Error::msg)?;
    expect(one.status == 200 && one.version == "1", || format!("{one:?}"))
}

async fn scaling_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("scaling", "1", 2, json!({"memory_mb": 32})).await?;
    let load = p.load("scaling", 100);
    load.flows(50).await?;
    for instances in [6, 1, 3] {
        p.api
            .done("POST", "/apps/scaling/scale", Some(&json!({"instances": instances})))
            .await?;
        p.answers("scaling", "1", instances).await?;
        load.flows(50).await?;
    }
    let report = load.end().await;
    eprintln!("scaling 2-6-1-3: {}", report.line());
    report.flawless("scaling up and down")
}

async fn rolling_deploy_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("rolling", "1", 4, json!({"memory_mb": 32})).await?;
    let load = p.load("rolling", 300);
    load.flows(150).await?;
    let began = Instant::now();
    p.api.deployed("rolling", "2", &p.hello("2"), 4, json!({})).await?;
    let took = began.elapsed();
    p.answers("rolling", "2", 4).await?;
    load.flows(150).await?;
    let report = load.end().await;
    eprintln!("rolling deploy of 4: {took:.1?}; {}", report.line());
    report.flawless("rolling deploy")?;
    let versions: std::collections::BTreeSet<_> = report
        .samples
        .iter()
        .filter_map(|s| Some(s.result.as_ref().ok()?.1.clone()))
        .collect();
    expect(versions.len() == 2, || format!("versions that answered: {versions:?}"))?;
    expect(took < Duration::from_secs(20), || {
        format!("the rolling deploy took {took:?}")
    })
}

async fn restart_under_load(p: &Platform) -> Result<()> {
    p.deploy_hello("again", "1", 2, json!({"memory_mb": 32})).await?;
    let before = ids(p, "again").await?;
    let load = p.load("again", 100);
    load.flows(50).await?;
    p.api.done("POST", "/apps/again/restart", None).await?;
    load.flows(50).await?;
    p.settled().await?;
    load.end().await.flawless("restart of all instances")?;
    let after = ids(p, "again").await?;
    expect(after.len() == 2 && before.iter().all(|id| !after.contains(id)), || {
        format!("{before:?} {after:?}")
    })?;
    // One instance only: a fresh one takes its place.
    let one = after.first().context("an instance")?;
    p.api.done("POST", &format!("/instances/{one}/restart"), None).await?;
    p.settled().await?;
    let last = ids(p, "again").await?;
    let kept = last.iter().filter(|id| after.contains(id)).count();
    expect(last.len() == 2 && kept == 1 && !last.contains(one), || {
        format!("{after:?} {last:?}")
    })
}

async fn ids(p: &Platform, app: &str) -> Result<Vec<String>> {
    let instances = p.api.instances(app).await?;
    Ok(instances
        .iter()
        .filter_map(|i| Some(i["id"].as_str()?.to_owned()))
        .collect())
}

async fn stop_start_rollback(p: &Platform) -> Result<()> {
    p.deploy_hello("life", "1", 2, json!({"memory_mb": 32})).await?;
    p.deploy_hello("life", "2", 2, json!({})).await?;
    p.api.done("POST", "/apps/life/rollback", None).await?;
    p.answers("life", "1", 2).await?;
    p.api
        .done("POST", "/apps/life/rollback", Some(&json!({"release": 2})))
        .await?;
    p.answers("life", "2", 2).await?;
    p.api.done("POST", "/apps/life/stop", None).await?;
    expect(p.containers("life").await?.is_empty(), || {
        "containers of a stopped app".into()
    })?;
    let answer = p.visit("life", "/").await.map_err(anyhow::Error::msg)?;
    expect(answer.status == 503, || format!("a stopped app answers {answer:?}"))?;
    expect(answer.headers.contains_key("retry-after"), || {
        format!("no Retry-After: {answer:?}")
    })?;
    p.settled().await?;
    p.api.done("POST", "/apps/life/start", None).await?;
    p.answers("life", "2", 2).await?;
    p.remove("life").await?;
    let gone = async || match p.visit("life", "/").await?.status {
        404 => Ok(()),
        other => Err(format!("{other}")),
    };
    e2e::wait::until("404 of a removed app", Duration::from_secs(5), gone).await?;
    Ok(())
}

async fn routes_follow_the_configuration(p: &Platform) -> Result<()> {
    p.deploy_hello("shop", "1", 1, json!({"memory_mb": 32})).await?;
    let app = p.api.call("GET", "/apps/shop", None).await?;
    let config = json!({"domains": ["shop.example.com"], "limits": {"deny": ["127.0.0.0/8"]}});
    p.api
        .call_with("PUT", "/apps/shop/config", Some(&config), &[("if-match", &app.etag)])
        .await?
        .ok()?;
    let status = async |domain: &str, wanted: u16| {
        let seen = async || {
            let answer = load::get(&p.http, p.gateways[0], domain, "/").await?;
            if answer.status == wanted {
                Ok(())
            } else {
                Err(format!("{answer:?}"))
            }
        };
        e2e::wait::until(&format!("{wanted} of {domain}"), Duration::from_secs(5), seen).await
    };
    status("shop.example.com", 403).await?;
    p.api
        .call(
            "PUT",
            "/apps/shop/config",
            Some(&json!({"domains": ["shop.example.com"]})),
        )
        .await?
        .ok()?;
    status("shop.example.com", 200).await?;
    p.api.call("PUT", "/apps/shop/config", Some(&json!({}))).await?.ok()?;
    status("shop.example.com", 404).await?;
    Ok(())
}

async fn the_command_line(p: &Platform) -> Result<()> {
    let image = p.hello("1");
    p.cli_ok(&[
        "deploy",
        "verbs:1",
        "--image",
        &image,
        "--instances",
        "2",
        "--memory",
        "32M",
    ])
    .await?;
    let table = p.cli_ok(&["ps", "verbs"]).await?;
    expect(table.matches("verbs").count() >= 2 && table.contains("running"), || {
        table.clone()
    })?;
    let instances: Value = serde_json::from_str(&p.cli_ok(&["ps", "verbs", "-o", "json"]).await?)?;
    expect(platform::list(&instances).len() == 2, || instances.to_string())?;
    for (args, wanted) in [
        (&["apps"][..], "verbs"),
        (&["info", "verbs"], "verbs"),
        (&["why", "verbs"], "h"),
        (&["host", "ls"], "h3"),
        (&["op", "ls"], "deploy"),
        (&["events", "--app", "verbs"], "verbs"),
        (&["logs", "verbs", "--tail", "20"], "listening on port"),
        (&["scale", "verbs", "3"], "3"),
        (&["deploy", "verbs:2", "--image", &p.hello("2")], "verbs"),
        (&["rollback", "verbs"], "verbs"),
        (&["restart", "verbs"], "verbs"),
        (&["stop", "verbs"], "verbs"),
        (&["start", "verbs"], "verbs"),
        (&["doctor"], ""),
    ] {
        let out = p.cli_ok(args).await?;
        expect(out.contains(wanted), || {
            format!("caas {args:?} does not show {wanted:?}:\n{out}")
        })?;
    }
    p.answers("verbs", "1", 3).await?;
    let (code, _, error) = p.cli(&["deploy", "verbs:404"]).await?;
    expect(code == 1 || code == 2, || format!("exit code {code}: {error}"))?;
    expect(error.contains("404"), || error.clone())?;
    let (code, ..) = p.cli(&["info", "nobody"]).await?;
    expect(code == 1, || format!("exit code {code} for an unknown app"))?;
    p.cli_ok(&["rm", "verbs"]).await?;
    Ok(())
}
