//! `make demo`, `make demo-down` and docker-compose.yml for real, in namespaces of their own, beside other scenarios: see
//! `tests/demo/check.sh`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use e2e::keeper::Keeper;
use e2e::{process, roles};

#[test]
fn the_demo_runs_twice_and_leaves_nothing_behind() {
    crate::support::beside_the_fleet("make demo", async || check("demo").await);
}

#[test]
fn the_compose_file_brings_up_everything() {
    let runs = Command::new("docker-compose").arg("version").output().is_ok();
    let missing = "docker-compose is missing (Debian package docker-compose)";
    if crate::support::skip_because((!runs).then(|| missing.into())) {
        return;
    }
    crate::support::beside_the_fleet("docker-compose.yml", async || check("compose").await);
}

async fn check(what: &str) -> Result<()> {
    let keeper = Keeper::start().await?;
    let dir = keeper.dir.join(what);
    std::fs::create_dir_all(&dir)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/check.sh");
    // Below the keeper, so that it ends with the run whatever happens.
    let mut command = tokio::process::Command::new("nsenter");
    command.args(["-t", &keeper.init.to_string(), "-m", "-p", "--"]);
    command.args([
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "bash",
    ]);
    command
        .arg(script)
        .arg(&dir)
        .arg(what)
        .env("CAAS_BIN", roles::binary()?);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let said = process::output_within(Duration::from_secs(170), command).await?;
    eprint!("{said}");
    Ok(())
}
