//! The command line, verb by verb: what each does and says, its JSON, and the exit code by which scripts know how it went.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::wait::{expect, until};
use e2e::{Platform, load, platform};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

crate::support::all_in_one! {
    everyday_verbs,
}

crate::support::with_separate_roles! {
    exit_codes_tell_how_it_went,
    hosts_and_registries_by_the_command_line,
}

/// `caas ARGS -o json`, parsed.
async fn json_of(p: &Platform, args: &[&str]) -> Result<Value> {
    let args = [args, &["-o", "json"]].concat();
    let out = p.cli_ok(&args).await?;
    serde_json::from_str(&out).with_context(|| format!("caas {args:?} does not write JSON:\n{out}"))
}

/// Runs a verb that must end with `code` and say all of `words`.
async fn ends(p: &Platform, code: i32, args: &[&str], words: &[&str]) -> Result<String> {
    let (seen, out, error) = p.cli(args).await?;
    let said = format!("{out}{error}");
    expect(seen == code && words.iter().all(|word| said.contains(word)), || {
        format!("caas {args:?}: wanted exit code {code} and {words:?}, got {seen} and\n{said}")
    })?;
    Ok(said)
}

async fn everyday_verbs(p: &Platform) -> Result<()> {
    let (one, two) = (p.hello("1"), p.hello("2"));
    ends(
        p,
        0,
        &["deploy", "verbs:1", "--image", &one, "-n", "2", "-m", "32M"],
        &["verbs"],
    )
    .await?;
    let table = p.cli_ok(&["ps", "verbs"]).await?;
    expect(table.matches("running").count() == 2, || table.clone())?;
    for (args, words) in [
        (&["apps"][..], &["verbs"][..]),
        (&["info", "verbs"], &["verbs", "running", &one]),
        (&["config", "verbs"], &["[config]", "balance = \"round_robin\""]),
        (
            &["config", "verbs", "--set", "slow_start_s=1"],
            &["slow_start_s = 1 (was 0)"],
        ),
        (&["why", "verbs"], &["h1", "h2", "h3"]),
        (&["host", "ls"], &["h1", "h2", "h3", "number=3"]),
        (&["op", "ls", "--app", "verbs"], &["deploy", "succeeded"]),
        (&["events", "--app", "verbs"], &["verbs"]),
        (&["logs", "verbs", "--tail", "20"], &["listening on port"]),
        (&["scale", "verbs", "3"], &["3"]),
        (&["deploy", "verbs:2", "--image", &two, "--dry-run"], &["deploy"]),
        (&["deploy", "verbs:2", "--image", &two, "-e", "GREETING=hi"], &["verbs"]),
        (&["rollback", "verbs"], &["verbs"]),
        (&["rollback", "verbs", "2"], &["verbs"]),
        (&["restart", "verbs"], &["verbs"]),
        (&["stop", "verbs"], &["verbs"]),
        (&["start", "verbs"], &["verbs"]),
        (&["version"], &[env!("CARGO_PKG_VERSION")]),
    ] {
        ends(p, 0, args, words).await?;
    }
    p.answers("verbs", "2", 3).await?;
    a_gateway_is_asked(p).await?;
    for args in [
        &["apps"][..],
        &["ps", "verbs"],
        &["ps", "--all", "--host", "h1"],
        &["info", "verbs"],
        &["config", "verbs"],
        &["config", "verbs", "--unset", "slow_start_s"],
        &["why", "verbs"],
        &["host", "ls"],
        &["registry", "ls"],
        &["op", "ls"],
        &["events", "--app", "verbs"],
        &["version"],
        &["deploy", "verbs:2", "--dry-run"],
        &["scale", "verbs", "2"],
    ] {
        let shown = json_of(p, args).await?;
        expect(
            shown.is_object() || shown.as_array().is_some_and(|list| !list.is_empty()),
            || format!("caas {args:?}: {shown}"),
        )?;
    }

    // One instance by its id: its log, and a fresh one in its place.
    p.settled().await?;
    let instances = platform::list(&json_of(p, &["ps", "verbs"]).await?);
    expect(instances.len() == 2, || format!("{instances:?}"))?;
    let instance = instances[0]["id"].as_str().unwrap_or_default().to_owned();
    ends(p, 0, &["logs", &instance], &["listening on port"]).await?;
    ends(p, 0, &["restart", &instance], &[]).await?;
    p.settled().await?;
    let after = json_of(p, &["ps", "verbs"]).await?.to_string();
    expect(!after.contains(&instance), || after.clone())?;

    // What is followed comes as it happens.
    let scale = async { p.cli_ok(&["scale", "verbs", "1"]).await.map(drop) };
    let line = p
        .cli_until(&["events", "-f", "--app", "verbs", "-o", "json"], "scale", scale)
        .await?;
    let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
    expect(event["app"] == "verbs" || event["event"]["app"] == "verbs", || {
        line.clone()
    })?;
    p.settled().await?;
    let exit = async { p.visit("verbs", "/exit?code=5").await.map(drop).or(Ok(())) };
    // It is told on standard error, as the container wrote it; the end of the process ends nothing here.
    p.cli_until(&["logs", "verbs", "-f", "-o", "json"], "asked to end with code 5", exit)
        .await?;
    p.answers("verbs", "2", 1).await?;

    for shell in ["bash", "zsh", "fish"] {
        ends(p, 0, &["completion", shell], &["deploy", "rollback"]).await?;
    }
    ends(p, 0, &["rm", "verbs"], &["verbs"]).await?;
    ends(p, 1, &["info", "verbs"], &["verbs"]).await.map(drop)
}

/// What a gateway knows of an app with three instances, what it would do with a request, and what is changed at it by hand.
async fn a_gateway_is_asked(p: &Platform) -> Result<()> {
    let (host, admin) = (p.domain("verbs"), format!("http://{}", p.admins[0]));
    let asks = |args: &[&str]| -> Vec<String> {
        let args = [&["gateway"], args, &["--admin", &admin]].concat();
        args.iter().map(|arg| (*arg).to_owned()).collect()
    };
    let says = async |code: i32, args: &[&str], words: &[&str]| {
        let args = asks(args);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        ends(p, code, &args, words).await
    };
    says(0, &["routes", "verbs"], &["HOST", &host, "verbs", "3/3"]).await?;
    let told = says(
        0,
        &["explain", &host],
        &["outcome  forward", "rule     app", "app      verbs (round_robin)"],
    )
    .await?;
    expect(told.matches("ready").count() >= 3, || told.clone())?;
    let version = format!("2--{host}");
    says(0, &["explain", &version, "/x?y"], &["rule     version", "version  2"]).await?;
    let nobody = p.domain("nobody");
    says(
        1,
        &["explain", &nobody],
        &[
            "outcome  unknown_app 404",
            "the gateway would answer by itself: unknown_app",
        ],
    )
    .await?;

    // One endpoint out, and back.
    let listed = says(0, &["endpoints", "verbs", "-o", "json"], &[]).await?;
    let listed: Value = serde_json::from_str(&listed)?;
    let container = listed["apps"][0]["endpoints"][0]["container"]
        .as_str()
        .context("a container")?;
    let short = container.get(..12).unwrap_or(container);
    says(0, &["eject", "verbs", short, "--for", "1h"], &[short, "is out for 60m"]).await?;
    let out = says(0, &["endpoints", "verbs"], &[short, "ejected"]).await?;
    let row = out.lines().find(|line| line.contains(short));
    expect(
        row.is_some_and(|row| row.contains("ejected (")) && out.matches("ejected").count() == 1,
        || out.clone(),
    )?;
    says(0, &["explain", &host], &["outcome  forward", "ejected"]).await?;
    says(0, &["routes", "verbs"], &["2/3"]).await?;
    says(0, &["uneject", "verbs", short], &[short, "is back"]).await?;
    says(0, &["routes", "verbs"], &["3/3"]).await?;
    says(1, &["eject", "verbs", "ffffffffffff"], &["ffffffffffff"]).await?;

    // It is not ready while it drains, and serves all the same.
    says(0, &["drain"], &["not ready any more"]).await?;
    let ready = load::get(&p.http, p.admins[0], "gateway", "/ready").await;
    let served = p.visit("verbs", "/").await;
    says(0, &["undrain"], &["ready again"]).await?;
    expect(ready.as_ref().is_ok_and(|answer| answer.status == 503), || {
        format!("{ready:?}")
    })?;
    expect(served.as_ref().is_ok_and(|answer| answer.status == 200), || {
        format!("{served:?}")
    })?;
    let ready = load::get(&p.http, p.admins[0], "gateway", "/ready")
        .await
        .map_err(anyhow::Error::msg)?;
    expect(ready.status == 200, || format!("{ready:?}"))
}

async fn exit_codes_tell_how_it_went(p: &Platform) -> Result<()> {
    let image = p.hello("1");
    let small = &["--image", image.as_str(), "-m", "32M"][..];
    // 2: not placed, or failed, and why.
    ends(p, 2, &["deploy", "codes:404"], &["404"]).await?;
    let nowhere = [&["deploy", "codes:1", "--label", "disk=none"], small].concat();
    ends(p, 2, &nowhere, &["labels: 3 hosts lack disk=none"]).await?;
    let file = p.dir.join("failing.toml");
    let text = format!(
        "app = \"codes\"\nversion = \"1\"\nimage = {image:?}\nmemory = \"32M\"\nenv = {{ MODE = \"failping\" }}\n\
         [health]\ngrace_s = 2\n[update]\ndeadline_s = 15\n"
    );
    std::fs::write(&file, text)?;
    let path = file.to_str().unwrap_or_default();
    let why = [
        "last probes:",
        "GET /_ping answered 500",
        "last log lines:",
        "listening on port",
    ];
    ends(p, 2, &["deploy", "-f", path], &why).await?;
    ends(p, 0, &["rm", "codes"], &[]).await?;

    // 3: it takes longer than one wants to wait, and goes on; then it can be followed.
    let slow = [
        "deploy",
        "codes:1",
        "-e",
        "MODE=slowstart",
        "-e",
        "START_MS=3000",
        "--timeout",
        "500ms",
    ];
    let said = ends(p, 3, &[&slow, small].concat(), &["caas op watch "]).await?;
    let operation = said
        .split("caas op watch ")
        .nth(1)
        .and_then(|rest| rest.split('`').next());
    let operation = operation.context("the operation's id")?.trim().to_owned();
    ends(p, 3, &["op", "watch", &operation, "--timeout", "100ms"], &[&operation]).await?;
    ends(p, 0, &["op", "watch", &operation], &["deploy succeeded"]).await?;
    ends(p, 0, &["op", "show", &operation], &["succeeded"]).await?;
    let shown = json_of(p, &["op", "show", &operation]).await?;
    expect(shown["state"] == "succeeded", || shown.to_string())?;
    p.answers("codes", "1", 1).await?;

    // With nobody waiting the same is followed later.
    let accepted = json_of(p, &["scale", "codes", "2", "--no-wait"]).await?;
    let id = accepted["operation"]["id"].as_str().context("an operation")?;
    ends(p, 0, &["op", "watch", id], &["succeeded"]).await?;

    // 4: not allowed. 1: anything else. 64: not understood.
    let token = p.dir.join("wrong.token");
    std::fs::write(&token, "caas_nobody00_0123456789abcdefghij0123456789abcdefghij")?;
    let token = token.to_str().unwrap_or_default();
    ends(p, 4, &["apps", "--token-file", token], &["CAAS_TOKEN"]).await?;
    ends(p, 1, &["scale", "nobody", "2"], &["nobody"]).await?;
    ends(p, 1, &["apps", "--addr", "http://127.0.0.1:1"], &["can't be reached"]).await?;
    ends(p, 64, &["deploy", "codes:1", "--memory", "lots"], &["lots"]).await?;
    ends(p, 64, &["deploy", "-f", "/nowhere/app.toml"], &["/nowhere/app.toml"]).await?;
    std::fs::write(&file, "app = \"codes\"\nversion = \"1\"\nmemroy = 5\n")?;
    ends(p, 64, &["deploy", "-f", path], &["memroy"]).await?;
    ends(
        p,
        64,
        &["deploy", "codes:1", "-e", "CAAS_APP=x"],
        &["/spec/env/CAAS_APP"],
    )
    .await?;
    ends(p, 64, &["sclae", "codes", "2"], &["scale"]).await?;

    // The doctor: everything is well; a part that does not answer is named, with what to do.
    let (gateway, sync) = (format!("http://{}", p.admins[0]), format!("http://{}", p.sync_admin));
    let parts = ["doctor", "--gateway-admin", &gateway, "--registry-sync-admin", &sync];
    let sound = [
        "✓ API",
        "✓ store",
        "✓ token",
        "✓ host h1",
        "✓ gateway",
        "✓ registry-sync",
    ];
    ends(p, 0, &parts, &sound).await?;
    let parts = [
        "doctor",
        "--gateway-admin",
        "http://127.0.0.1:1",
        "--registry-sync-admin",
        &sync,
    ];
    ends(p, 1, &parts, &["✗ gateway", "→", "1 check failed"]).await?;
    let checks: Value = serde_json::from_str(&p.cli(&[&parts[..], &["-o", "json"]].concat()).await?.1)?;
    let failed = platform::list(&checks).into_iter().find(|check| check["ok"] == false);
    expect(failed.is_some_and(|check| check["check"] == "gateway"), || {
        checks.to_string()
    })
}

async fn hosts_and_registries_by_the_command_line(p: &Platform) -> Result<()> {
    let image = p.hello("1");
    ends(p, 0, &["host", "label", "h2", "disk=ssd"], &["h2"]).await?;
    let deploy = [
        "deploy", "onssd:1", "--image", &image, "-m", "32M", "-n", "2", "--label", "disk=ssd",
    ];
    ends(p, 0, &deploy, &[]).await?;
    let on = async |app: &str, host: &str| {
        let list = platform::list(&json_of(p, &["ps", app, "--host", host]).await?);
        anyhow::Ok(list.len())
    };
    expect(on("onssd", "h2").await? == 2, || "not both on h2".into())?;
    ends(p, 0, &["host", "label", "h2", "disk-"], &["h2"]).await?;
    let hosts = p.cli_ok(&["host", "ls"]).await?;
    expect(!hosts.contains("disk="), || hosts.clone())?;

    // A cordoned host keeps what it has and gets nothing new.
    ends(p, 0, &["host", "cordon", "h1"], &["h1"]).await?;
    ends(p, 0, &["host", "ls"], &["cordoned"]).await?;
    let deployed = p
        .cli(&["deploy", "elsewhere:1", "--image", &image, "-m", "32M", "-n", "3"])
        .await;
    let why = ends(p, 0, &["why", "elsewhere"], &["cordoned"]).await;
    ends(p, 0, &["host", "uncordon", "h1"], &["h1"]).await?;
    let deployed = deployed?;
    expect(deployed.0 == 0, || format!("{deployed:?}"))?;
    why?;
    expect(on("elsewhere", "h1").await? == 0, || "on a cordoned host".into())?;

    // What carries instances is not removed; and it is not empty while they fit nowhere else (a drain that nobody waits for
    // any more ends with the next word about its host).
    ends(p, 1, &["host", "rm", "h2"], &["h2"]).await?;
    let drained = ends(p, 3, &["host", "drain", "h2", "--timeout", "2s"], &["caas op watch"]).await;
    ends(p, 0, &["host", "uncordon", "h2"], &["h2"]).await?;
    drained?;
    p.hosts_up().await?;

    // A registry's password is read from where no other user sees it, and is never shown.
    let mut login = p.command(&[
        "registry",
        "login",
        "images.test:5000",
        "--username",
        "ci",
        "--password-stdin",
    ])?;
    let mut login = login.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    login
        .stdin
        .take()
        .context("its input")?
        .write_all(b"sesame-shut\n")
        .await?;
    let status = tokio::time::timeout(Duration::from_secs(10), login.wait()).await??;
    expect(status.success(), || format!("login: {status}"))?;
    let shown = ends(p, 0, &["registry", "ls"], &["images.test:5000", "ci"]).await?;
    let told = json_of(p, &["registry", "ls"]).await?.to_string();
    expect(!format!("{shown}{told}").contains("sesame-shut"), || told.clone())?;
    ends(p, 0, &["registry", "logout", "images.test:5000"], &[]).await?;
    until("the registry is forgotten", Duration::from_secs(5), async || {
        let shown = p.cli_ok(&["registry", "ls"]).await.map_err(|e| format!("{e:#}"))?;
        if shown.contains("images.test") {
            Err(shown)
        } else {
            Ok(())
        }
    })
    .await?;
    Ok(())
}
