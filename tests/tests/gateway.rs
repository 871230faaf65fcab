//! What a gateway does beyond HTTP requests: TLS of an app's own passes through it, and it hands over to a new process under load.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::process::{self, Daemon};
use e2e::roles::{self, Role};
use e2e::wait::until;
use e2e::{Fleet, Mode, Platform, load};
use serde_json::json;

#[test]
fn an_apps_own_tls_passes_through_a_gateway() {
    crate::support::on_fleet("TLS passthrough", passthrough);
}

async fn passthrough(fleet: Arc<Fleet>) -> Result<()> {
    let dir = fleet.keeper.dir.join("passthrough");
    std::fs::create_dir_all(&dir)?;
    let port = || process::free_port("127.0.0.1");
    let (app, gone, listen, tls, admin) = (port()?, port()?, port()?, port()?, port()?);
    let at = |port: u16| format!("127.0.0.1:{port}");
    let (cert, key) = (dir.join("vault.crt"), dir.join("vault.key"));
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=e2e \
        -addext subjectAltName=DNS:vault.localhost -keyout \"$2\" -out \"$1\" 2>/dev/null";
    let args = [
        "-c".as_ref(),
        script.as_ref(),
        "made".as_ref(),
        cert.as_os_str(),
        key.as_os_str(),
    ];
    process::run("bash", args).await?;
    let (cert, key) = (cert.to_string_lossy(), key.to_string_lossy());
    // An app that speaks TLS itself, and answers with what it knows of the session.
    let args = [
        "openssl",
        "s_server",
        "-accept",
        &app.to_string(),
        "-cert",
        &cert,
        "-key",
        &key,
        "-www",
    ]
    .map(str::to_owned);
    let server = Daemon::start("vault", fleet.keeper.init, "mp", args, &[], &dir.join("vault.log")).await?;
    let registry = json!({
        "endpoints": {"vault": {"1": {"c1": at(gone), "c2": at(app)}}},
        "configs": {"vault": {"protocol": "tcp", "tcp": {"passthrough": true}}},
    });
    let file = dir.join("registry.json");
    std::fs::write(&file, registry.to_string())?;
    let args = format!(
        "gateway --registry file:{} --listen {} --tls-listen {} --certificates-dir {} --admin {}",
        file.display(),
        at(listen),
        at(tls),
        dir.display(),
        at(admin)
    );
    let args = args.split_ascii_whitespace().map(str::to_owned).collect();
    let ready = (at(admin).parse()?, "/ready");
    let gateway = Role::new("passthrough-gateway", args, Vec::new(), ready, &dir, fleet.keeper.init);
    gateway.up().await?;
    let ask = async || {
        let to = format!("vault.localhost:443:{}", at(tls));
        let args = [
            "-sS",
            "--max-time",
            "5",
            "--cacert",
            &cert,
            "--connect-to",
            &to,
            "https://vault.localhost/",
        ];
        process::run("curl", args).await
    };
    until("the app by its name", Duration::from_secs(20), ask).await?;
    for _ in 0..10 {
        let page = ask().await?;
        ensure!(
            page.contains("s_server") && page.contains("TLSv1.3"),
            "the app's own session: {page}"
        );
    }
    gateway.stop(Duration::from_secs(20)).await?;
    server.kill().await
}

#[test]
fn a_gateway_hands_over_under_load() {
    crate::support::on_platform(Mode::Separate, "gateway upgrade", upgrade);
}

/// What the pid file says.
fn pid(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Ends whichever process a pid file names, should the scenario fail before it has.
struct Leftover<'a>(&'a Path);

impl Drop for Leftover<'_> {
    fn drop(&mut self) {
        if let Some(pid) = pid(self.0) {
            process::signal(pid, rustix::process::Signal::KILL);
        }
    }
}

async fn upgrade(platform: &'static Platform) -> Result<()> {
    platform
        .deploy_hello("moving", "1", 2, json!({"memory_mb": 32}))
        .await?;
    let port = || process::free_port("127.0.0.1");
    let at = |port: u16| format!("127.0.0.1:{port}");
    let (listen, admin) = (at(port()?), at(port()?));
    let file = platform.dir.join("upgraded.pid");
    let _leftover = Leftover(&file);
    let log = std::fs::File::create(platform.dir.join("upgraded.log"))?;
    // A gateway beside the platform's, which nobody else needs.
    let mut first = tokio::process::Command::new(roles::binary()?)
        .args([
            "gateway",
            "--registry",
            &platform.fleet.zookeeper.url(),
            "--domain",
            "e2e.test",
        ])
        .args([
            "--endpoint-cidr",
            "0.0.0.0/0",
            "--listen",
            &listen,
            "--admin",
            &admin,
            "--pid-file",
        ])
        .arg(&file)
        .env("CAAS_GATEWAY__DRAIN_DELAY_S", "0")
        .env("CAAS_GATEWAY__DRAIN_TIMEOUT_S", "5")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    let gateway = listen.parse()?;
    let domain = platform.domain("moving");
    let ready = async || match load::get(&load::http(), gateway, &domain, "/").await {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    };
    until("the app at the new gateway", Duration::from_secs(20), ready).await?;
    let load = load::Load::start(&[gateway], &domain, 100);
    load.flows(50).await?;
    for _ in 0..2 {
        let before = pid(&file).context("a pid file")?;
        let args = [
            "gateway".as_ref(),
            "upgrade".as_ref(),
            "--pid-file".as_ref(),
            file.as_os_str(),
        ];
        let said = process::run(&roles::binary()?.to_string_lossy(), args).await?;
        let after = pid(&file).context("a pid file")?;
        ensure!(before != after, "another process serves: {said}");
        load.flows(100).await?;
    }
    let report = load.end().await;
    let failed = report.failed();
    ensure!(
        failed.is_empty(),
        "{} of {} failed: {:?}",
        failed.len(),
        report.samples.len(),
        failed.first()
    );
    first.wait().await?;
    let last = pid(&file).context("a pid file")?;
    process::signal(last, rustix::process::Signal::TERM);
    until("the last process ends", Duration::from_secs(20), async || {
        process::stat(last)
            .filter(|(_, state, _)| *state != 'Z')
            .map_or(Ok(()), Err)
    })
    .await?;
    if file.exists() {
        std::fs::remove_file(&file)?;
    }
    platform.remove("moving").await
}
