//! Certificates that the platform gets by itself, from a real authority.

use std::time::Duration;

use anyhow::Result;
use e2e::pebble::Pebble;
use e2e::wait::{expect, until};
use e2e::{Platform, process};

crate::support::in_both_modes! {
    a_custom_domain_gets_its_certificate_by_itself,
}

const HOST: &str = "by-itself.example.com";

async fn a_custom_domain_gets_its_certificate_by_itself(p: &Platform) -> Result<()> {
    let pebble = Pebble::start(p).await?;
    let image = p.hello("1");
    p.cli_ok(&[
        "deploy",
        "by-itself:1",
        "--image",
        &image,
        "--memory",
        "32M",
        "--domain",
        HOST,
    ])
    .await?;
    let root = p.dir.join("pebble").join("root.pem");
    std::fs::write(&root, pebble.root().await?)?;
    let served = async || {
        for at in &p.tls {
            let mut curl = tokio::process::Command::new("curl");
            curl.args(["-sSf", "--max-time", "5", "--cacert"]).arg(&root);
            curl.args(["--connect-to", &format!("{HOST}:443:{at}")])
                .arg(format!("https://{HOST}/"));
            process::output(curl).await.map_err(|e| format!("{at}: {e:#}"))?;
        }
        Ok::<(), String>(())
    };
    let ((), took) = until("https at every gateway", Duration::from_secs(60), served).await?;
    eprintln!("https with a certificate by itself: {took:.1?} after the deploy");
    let list = p.cli_ok(&["certificate", "ls"]).await?;
    let row = list.lines().find(|line| line.contains(HOST)).unwrap_or_default();
    expect(row.contains("acme") && row.contains("Pebble"), || list.clone())?;
    let events = p.cli_ok(&["events"]).await?;
    expect(events.contains(&format!("got the certificate for {HOST}")), || {
        events.clone()
    })?;

    p.remove("by-itself").await?;
    p.cli_ok(&["certificate", "rm", HOST]).await?;
    pebble.end().await
}
