//! TCP routes: clients that do not speak HTTP, and an app of the platform at a port of the gateway's.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::process::{self, Daemon};
use e2e::roles::Role;
use e2e::wait::until;
use e2e::{Fleet, Mode, Platform, load};
use serde_json::json;

#[test]
fn mysql_and_redis_clients_work_through_a_gateway_with_dead_endpoints() {
    crate::support::on_fleet("MySQL and Redis through a gateway", clients);
}

async fn clients(fleet: Arc<Fleet>) -> Result<()> {
    let dir = fleet.keeper.dir.join("tcp");
    std::fs::create_dir_all(&dir)?;
    let port = || process::free_port("127.0.0.1");
    let (redis_port, gone, db, cache, listen, admin) = (port()?, port()?, port()?, port()?, port()?, port()?);
    let args = format!(
        "redis-server --port {redis_port} --bind 127.0.0.1 --save \"\" --appendonly no --dir {}",
        dir.display()
    );
    let args = args
        .split_ascii_whitespace()
        .map(|word| word.trim_matches('"').to_owned());
    let redis = Daemon::start("redis", fleet.keeper.init, "mp", args, &[], &dir.join("redis.log")).await?;
    let at = |port: u16| format!("127.0.0.1:{port}");
    let file = dir.join("registry.json");
    let registry = json!({
        "endpoints": {
            "db": {"1": {"c1": at(fleet.mariadb.port), "c2": at(gone)}},
            "cache": {"1": {"c3": at(gone), "c4": at(redis_port)}},
        },
        "configs": {
            "db": {"protocol": "tcp", "tcp": {"port": db}},
            "cache": {"protocol": "tcp", "tcp": {"port": cache}},
        },
    });
    std::fs::write(&file, registry.to_string())?;
    let args = format!(
        "gateway --registry file:{} --listen {} --admin {}",
        file.display(),
        at(listen),
        at(admin)
    );
    let gateway = Role::new(
        "tcp-gateway",
        args.split_ascii_whitespace().map(str::to_owned).collect(),
        vec![("CAAS_GATEWAY__TCP_PORTS".into(), "1024-65535".into())],
        (at(admin).parse()?, "/ready"),
        &dir,
        fleet.keeper.init,
    );
    gateway.up().await?;
    let (db, cache) = (db.to_string(), cache.to_string());
    let sql = async |statement: &str| {
        let login = ["--no-defaults", "--protocol=tcp", "-h127.0.0.1", "-ucaas", "-ppw", "-N"];
        let rest = ["-P", &db, "-e", statement];
        process::run("mariadb", login.into_iter().chain(rest)).await
    };
    let redis_cli = async |words: &[&str]| {
        let address = ["-h", "127.0.0.1", "-p", &cache];
        process::run("redis-cli", address.into_iter().chain(words.iter().copied())).await
    };
    until(
        "redis through the gateway",
        Duration::from_secs(20),
        async || match redis_cli(&["ping"]).await {
            Ok(pong) if pong.trim() == "PONG" => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await?;
    for n in 0..10 {
        let answer = sql(&format!("select {n} * 7")).await?;
        ensure!(answer.trim() == (n * 7).to_string(), "{answer}");
        redis_cli(&["set", "n", &n.to_string()]).await?;
        ensure!(redis_cli(&["get", "n"]).await?.trim() == n.to_string(), "what was set");
    }
    let long = sql("select repeat('x', 3000000)").await?;
    ensure!(long.trim().len() == 3_000_000, "{} characters", long.trim().len());
    gateway.stop(Duration::from_secs(20)).await?;
    redis.kill().await
}

#[test]
fn a_tcp_app_is_reached_at_its_port_and_deployed_without_a_failed_connection() {
    crate::support::on_platform(Mode::AllInOne, "tcp app", tcp_app);
}

async fn tcp_app(platform: &'static Platform) -> Result<()> {
    let image = platform.hello("1");
    let out = platform
        .cli_ok(&[
            "deploy",
            "wire:1",
            "--image",
            &image,
            "--protocol",
            "tcp",
            "--instances",
            "2",
        ])
        .await?;
    ensure!(out.contains(&format!("tcp://{}:", platform.domain("wire"))), "{out}");
    let info = platform.api.get("/apps/wire").await?;
    let port = info["app"]["config"]["tcp"]["port"].as_u64().context("a port")?;
    ensure!((15_000..16_000).contains(&port), "port {port}");
    let at = SocketAddr::new(platform.gateways[0].ip(), u16::try_from(port)?);

    // The sample app speaks HTTP, whoever carries its bytes. Each request on a connection of its own.
    let visit = async || {
        let answer = load::get(&load::http(), at, "whatever", "/").await;
        answer.map_err(|e| anyhow::anyhow!("{e}"))
    };
    let mut seen = BTreeSet::new();
    for _ in 0..6 {
        let answer = visit().await?;
        ensure!((answer.status, answer.version.as_str()) == (200, "1"), "{answer:?}");
        seen.insert(answer.instance);
    }
    ensure!(seen.len() == 2, "in turn: {seen:?}");

    let done = Cell::new(false);
    let load = async {
        let mut versions = BTreeSet::new();
        while !done.get() {
            let answer = visit().await?;
            ensure!(answer.status == 200, "{answer:?}");
            versions.insert(answer.version);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(versions)
    };
    let deploy = async {
        let image = platform.hello("2");
        let deployed = platform.api.deployed("wire", "2", &image, 2, json!({})).await;
        done.set(true);
        deployed.map(drop)
    };
    let (versions, ()) = futures::try_join!(load, deploy)?;
    ensure!(versions.contains("1"), "{versions:?}");
    let answer = visit().await?;
    ensure!(answer.version == "2", "{answer:?}");
    let again = platform.api.get("/apps/wire").await?;
    ensure!(again["app"]["config"]["tcp"]["port"] == port, "kept over the deploy");
    Ok(())
}
