//! The main job: push, deploy, reach, scale, roll, restart, stop, remove.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::wait::expect;
use e2e::{Platform, load};
use serde_json::{Value, json};

crate::support::in_both_modes! {
    a_pushed_image_is_deployed_and_answers_in_turn,
    scaling_under_load,
    rolling_deploy_under_load,
    restart_under_load,
    stop_start_rollback,
    routes_follow_the_configuration,
    loads_reach_every_gateway,
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
    })?;
    // The only one there is: the fresh one first.
    p.api
        .done("POST", "/apps/again/scale", Some(&json!({"instances": 1})))
        .await?;
    p.settled().await?;
    let alone = ids(p, "again").await?;
    let load = p.load("again", 100);
    load.flows(50).await?;
    p.api
        .done("POST", &format!("/instances/{}/restart", alone[0]), None)
        .await?;
    load.flows(50).await?;
    p.settled().await?;
    load.end().await.flawless("restart of the only instance")?;
    let fresh = ids(p, "again").await?;
    expect(fresh.len() == 1 && fresh != alone, || format!("{alone:?} {fresh:?}"))
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
    // Everything comes from the app's file; no container is replaced when it changes.
    let file = p.dir.join("shop.toml");
    let path = file.to_str().unwrap_or_default().to_owned();
    let text = format!(
        "app = \"shop\"\nversion = \"1\"\nimage = {:?}\nmemory = \"32M\"\ninstances = 2\n\
         [config]\ndomains = [\"shop.example.com\"]\nacme = false\n[config.limits]\ndeny = [\"127.0.0.0/8\"]\n",
        p.hello("1")
    );
    std::fs::write(&file, text)?;
    p.cli_ok(&["deploy", "-f", &path]).await?;
    let before = ids(p, "shop").await?;
    let seen = async |domain: &str, status: u16, reason: &str| {
        let what = format!("{status} {reason} of {domain}");
        let look = async || {
            for gateway in &p.gateways {
                let answer = load::get(&p.http, *gateway, domain, "/").await?;
                let told = answer.headers.get("x-caas-reason").and_then(|v| v.to_str().ok());
                if answer.status != status || told.unwrap_or_default() != reason {
                    return Err(format!("{answer:?}"));
                }
            }
            Ok(())
        };
        e2e::wait::until(&what, Duration::from_secs(5), look).await
    };
    let version = p.domain("1--shop");
    for domain in ["shop.example.com", &p.domain("shop"), &version] {
        seen(domain, 403, "denied").await?;
    }
    let configure = async |config: Value| p.api.call("PUT", "/apps/shop/config", Some(&config)).await?.ok();
    configure(json!({"domains": ["shop.example.com", "*.shop.example.com"], "acme": false})).await?;
    for domain in ["shop.example.com", "any.shop.example.com", &p.domain("shop"), &version] {
        seen(domain, 200, "").await?;
    }
    seen("a.b.shop.example.com", 404, "unknown_app").await?;
    seen(&p.domain("2--shop"), 503, "no_endpoints").await?;

    // A rate: what is above it is told when to come again, and the next second goes on.
    configure(json!({"limits": {"requests_per_second_per_client": 5}})).await?;
    seen("shop.example.com", 404, "unknown_app").await?;
    let limited = async || {
        for _ in 0..20 {
            let answer = p.visit("shop", "/").await?;
            if answer.status == 429 {
                return Ok(answer);
            }
        }
        Err("no request was limited".to_owned())
    };
    let (answer, _) = e2e::wait::until("429 above the rate", Duration::from_secs(5), limited).await?;
    let told = answer
        .headers
        .get("x-caas-reason")
        .is_some_and(|reason| reason == "rate_limited");
    expect(told && answer.headers.contains_key("retry-after"), || {
        format!("{answer:?}")
    })?;
    seen(&p.domain("shop"), 200, "").await?;

    configure(json!({})).await?;
    balancing_follows_the_command_line(p).await?;
    let after = ids(p, "shop").await?;
    expect(before == after, || format!("instances changed: {before:?} {after:?}"))
}

/// Whose requests come to the same instance is said while the app's two instances run, setting by setting; every gateway obeys.
async fn balancing_follows_the_command_line(p: &Platform) -> Result<()> {
    let domain = p.domain("shop");
    // Who answers eight requests of one user, and whether a cookie was given.
    let asked = async |gateway| {
        let (mut answered, mut cookie) = (std::collections::BTreeSet::new(), false);
        for _ in 0..8 {
            let answer = load::get_with(&p.http, gateway, &domain, "/", ("x-user", "ada")).await?;
            if answer.status != 200 {
                return Err(format!("{answer:?}"));
            }
            let told = answer.headers.get("set-cookie").and_then(|v| v.to_str().ok());
            cookie |= told.is_some_and(|told| told.starts_with("caas_sticky="));
            answered.insert(answer.instance);
        }
        Ok((answered.len(), cookie))
    };
    let obeyed = async |wanted: (usize, bool)| {
        let all = async || {
            for gateway in &p.gateways {
                let seen = asked(*gateway).await?;
                if seen != wanted {
                    return Err(format!("{seen:?} of {gateway}"));
                }
            }
            Ok(())
        };
        let what = format!("{wanted:?} (instances, cookie)");
        e2e::wait::until(&what, Duration::from_secs(10), all).await
    };
    obeyed((2, false)).await?;
    let hashed = [
        "config",
        "shop",
        "--set",
        "balance=consistent_hash",
        "--set",
        "hash.header=x-user",
    ];
    let said = p.cli_ok(&hashed).await?;
    expect(
        said.contains("balance = \"consistent_hash\" (was \"round_robin\")"),
        || said.clone(),
    )?;
    obeyed((1, false)).await?;
    // The former setting stays, since only this one is named.
    p.cli_ok(&["config", "shop", "--set", "sticky=endpoint"]).await?;
    obeyed((1, true)).await?;
    let shown = p.cli_ok(&["config", "shop"]).await?;
    for line in [
        "balance = \"consistent_hash\"",
        "sticky = \"endpoint\"",
        "header = \"x-user\"",
    ] {
        expect(shown.contains(line), || shown.clone())?;
    }
    let info = p.cli_ok(&["info", "shop"]).await?;
    expect(info.contains("config     sticky = \"endpoint\""), || info.clone())?;
    p.cli_ok(&[
        "config", "shop", "--unset", "balance", "--unset", "hash", "--unset", "sticky",
    ])
    .await?;
    obeyed((2, false)).await?;
    let (code, _, error) = p.cli(&["config", "shop", "--set", "balanse=round_robin"]).await?;
    expect(code == 64 && error.contains("did you mean `balance`?"), || {
        error.clone()
    })
}

/// What instances use is measured on their hosts, goes through the registry, and is shown by every gateway.
async fn loads_reach_every_gateway(p: &Platform) -> Result<()> {
    p.deploy_hello("loads", "1", 2, json!({"memory_mb": 32})).await?;
    let hosts: Vec<String> = p.containers("loads").await?.into_iter().map(|(host, _)| host).collect();
    for admin in &p.admins {
        let admin = format!("http://{admin}");
        let seen = async || -> Result<(), String> {
            let list = ["gateway", "endpoints", "loads", "--admin", &admin, "-o", "json"];
            let list = p.cli_ok(&list).await.map_err(|e| e.to_string())?;
            let answer: Value = serde_json::from_str(&list).map_err(|e| e.to_string())?;
            let endpoints = answer["apps"][0]["endpoints"].as_array().cloned().unwrap_or_default();
            let known = endpoints.iter().filter(|endpoint| {
                let load = &endpoint["load"];
                let memory = load["memory_bytes"].as_u64().unwrap_or_default();
                load["host"]
                    .as_str()
                    .is_some_and(|host| hosts.iter().any(|h| h == host))
                    && load["region"] == "test"
                    && load["cpu_milli"].is_u64()
                    && (1..=32 << 20).contains(&memory)
                    && load["memory_limit_bytes"] == 32 << 20
            });
            if known.count() == 2 { Ok(()) } else { Err(list) }
        };
        e2e::wait::until_every(Duration::from_millis(500), "the loads", Duration::from_secs(60), seen).await?;
    }
    Ok(())
}
