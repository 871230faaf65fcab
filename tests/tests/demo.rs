//! `make demo` and `make demo-down` for real, in namespaces of their own: see `tests/demo/check.sh`.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use e2e::{Fleet, process, roles};

#[test]
fn the_demo_runs_twice_and_leaves_nothing_behind() {
    crate::support::on_fleet("make demo", demo);
}

async fn demo(fleet: Arc<Fleet>) -> Result<()> {
    let dir = fleet.keeper.dir.join("demo");
    std::fs::create_dir_all(&dir)?;
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/check.sh");
    // Below the keeper, so that it ends with the run whatever happens.
    let mut command = tokio::process::Command::new("nsenter");
    command.args(["-t", &fleet.keeper.init.to_string(), "-m", "-p", "--"]);
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
    command.arg(check).arg(&dir).env("CAAS_BIN", roles::binary()?);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let said = process::output_within(Duration::from_secs(170), command).await?;
    eprint!("{said}");
    Ok(())
}
