//! Certificates given to the platform, by the command line: served by every gateway, swapped, taken away; no key lies open.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use e2e::wait::{expect, until};
use e2e::{Mode, Platform, process};
use serde_json::json;

crate::support::in_both_modes! {
    certificates_are_served_swapped_and_gone,
}

const HOST: &str = "secure.e2e.test";

/// A self-signed certificate for [`HOST`] and its key.
async fn made(dir: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
    let (cert, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=e2e \
        -addext subjectAltName=DNS:secure.e2e.test -keyout \"$2\" -out \"$1\" 2>/dev/null";
    let args = [
        "-c".as_ref(),
        script.as_ref(),
        "made".as_ref(),
        cert.as_os_str(),
        key.as_os_str(),
    ];
    process::run("bash", args).await?;
    Ok((cert, key))
}

/// Waits until every gateway answers https requests with this certificate, and no other.
async fn served(p: &Platform, cert: &Path) -> Result<()> {
    until(
        "the certificate at every gateway",
        Duration::from_secs(10),
        async || {
            for at in &p.tls {
                let mut curl = tokio::process::Command::new("curl");
                curl.args(["-sS", "--max-time", "5", "--cacert"]).arg(cert);
                curl.args(["--connect-to", &format!("{HOST}:443:{at}")])
                    .arg(format!("https://{HOST}/"));
                process::output(curl).await.map_err(|e| format!("{at}: {e:#}"))?;
            }
            Ok::<(), String>(())
        },
    )
    .await?;
    Ok(())
}

async fn certificates_are_served_swapped_and_gone(p: &Platform) -> Result<()> {
    p.deploy_hello("secure", "1", 1, json!({"memory_mb": 32})).await?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut last = PathBuf::new();
    for name in ["first", "second"] {
        let (cert, key) = made(&p.dir, name).await?;
        let args = [
            "certificate",
            "add",
            "shop",
            "--cert",
            &text(&cert),
            "--key",
            &text(&key),
        ];
        let said = p.cli_ok(&args).await?;
        expect(said.contains("certificate shop serves secure.e2e.test until"), || {
            said.clone()
        })?;
        served(p, &cert).await?;
        // The one before is served by nobody.
        expect(!last.exists() || served_at_once(p, &last).await.is_err(), || {
            "the old one is served".into()
        })?;
        last = cert;
    }
    let list = p.cli_ok(&["certificate", "ls"]).await?;
    expect(
        list.contains("shop") && list.contains(HOST) && list.contains("in 29d"),
        || list.clone(),
    )?;
    let (cert, other) = (text(&last), text(&p.dir.join("first.key")));
    let (code, _, error) = p
        .cli(&["certificate", "add", "shop", "--cert", &cert, "--key", &other])
        .await?;
    expect(code != 0 && error.contains("the key is not the certificate's"), || {
        error.clone()
    })?;
    served(p, &last).await?;

    let mut lies = vec![
        p.db.lines("SELECT chain FROM certificates").await?.concat(),
        p.db.lines("SELECT sealed_key FROM certificates").await?.concat(),
    ];
    if p.mode == Mode::Separate {
        let mut zk = e2e::zk::Zk::connect(p.fleet.zookeeper.ports[0]).await?;
        lies.extend(zk.data("/caas/service/certificate/shop").await?);
        lies.push(std::fs::read_to_string(p.dir.join("gateway-1-snapshot.json"))?);
        expect(
            lies[2].contains("BEGIN CERTIFICATE") && lies[3].contains("\"key\":\"v1."),
            || format!("{lies:?}"),
        )?;
    }
    expect(
        lies[0].contains("BEGIN CERTIFICATE") && lies[1].starts_with("v1."),
        || format!("{lies:?}"),
    )?;
    expect(!lies.iter().any(|text| text.contains("PRIVATE KEY")), || {
        "a key lies open".into()
    })?;
    p.cli_ok(&["certificate", "rm", "shop"]).await?;
    until(
        "nobody serves it",
        Duration::from_secs(10),
        async || match served_at_once(p, &last).await {
            Ok(()) => Err("it is served".to_owned()),
            Err(_) => Ok(()),
        },
    )
    .await?;
    Ok(())
}

/// Whether the first gateway answers with this certificate now.
async fn served_at_once(p: &Platform, cert: &Path) -> Result<()> {
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sS", "--max-time", "5", "--cacert"]).arg(cert);
    curl.args(["--connect-to", &format!("{HOST}:443:{}", p.tls[0])])
        .arg(format!("https://{HOST}/"));
    process::output(curl).await.map(drop)
}
