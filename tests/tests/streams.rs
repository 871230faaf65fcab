//! Connections that last longer than a deploy: a WebSocket keeps its instance until the drain time-out, an answer under way is
//! sent to its end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::wait::expect;
use e2e::ws::{Frame, WebSocket};
use e2e::{Platform, wait};
use http_body_util::BodyExt as _;
use serde_json::json;

crate::support::in_both_modes! {
    open_connections_outlast_a_rolling_deploy,
}

/// The app's `drain_timeout_s`.
const DRAIN: Duration = Duration::from_secs(4);
/// Events of the long answer, 100 ms apart: longer than the whole deploy without any drain.
const EVENTS: usize = 80;

/// Talks until the other side says goodbye; when that was, and with which code. An error: it was reset, or fell silent.
async fn talk(mut socket: WebSocket) -> Result<(Instant, u16)> {
    for number in 0.. {
        let text = format!("message {number}");
        socket.say(&text).await?;
        match socket
            .hear()
            .await
            .with_context(|| format!("after {number} messages"))?
        {
            Frame::Text(echo) => expect(echo == text, || format!("{text:?} came back as {echo:?}"))?,
            Frame::Close(code) => return Ok((Instant::now(), code)),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unreachable!("a range without end")
}

/// Reads a long answer to its end; the instance that sent it.
async fn events(p: &Platform, gateway: SocketAddr, domain: &str) -> Result<String> {
    let request = hyper::Request::get(format!("http://{gateway}/drip?n={EVENTS}&ms=100"))
        .header("host", domain)
        .body(http_body_util::Full::default())?;
    let answer = p.http.request(request).await?;
    let instance = answer.headers().get("x-instance").context("no x-instance")?;
    let instance = instance.to_str()?.to_owned();
    let body = answer.into_body().collect().await.with_context(|| instance.clone())?;
    let wanted: String = (0..EVENTS).map(|n| format!("data: {n}\n\n")).collect();
    expect(body.to_bytes() == wanted, || format!("{instance} sent something else"))?;
    Ok(instance)
}

/// When each of `instances` was first seen on its way out.
async fn drained(p: &Platform, app: &str, instances: &[String]) -> Result<BTreeMap<String, Instant>> {
    let mut seen = BTreeMap::new();
    wait::until("all old instances drain", Duration::from_secs(60), async || {
        let now = p.api.instances(app).await.map_err(|e| format!("{e:#}"))?;
        for id in instances {
            let there = now.iter().find(|i| i["id"] == id.as_str());
            if there.is_none_or(|i| i["state"] != "running") {
                seen.entry(id.clone()).or_insert_with(Instant::now);
            }
        }
        if seen.len() == instances.len() {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await?;
    Ok(seen)
}

async fn open_connections_outlast_a_rolling_deploy(p: &Platform) -> Result<()> {
    let spec = json!({"memory_mb": 32, "drain_timeout_s": DRAIN.as_secs(), "stop_grace_s": 10});
    p.deploy_hello("lasting", "1", 2, spec).await?;
    let domain = p.domain("lasting");
    let mut sockets = Vec::new();
    for _ in 0..2 {
        for gateway in &p.gateways {
            sockets.push(WebSocket::open(*gateway, &domain).await?);
            sockets.push(WebSocket::open(*gateway, &domain).await?);
        }
    }
    let mut old: Vec<String> = sockets.iter().map(|socket| socket.instance.clone()).collect();
    let owners = old.clone();
    old.sort_unstable();
    old.dedup();
    expect(old.len() == 2, || format!("the sockets are at {old:?}"))?;
    let load = p.load("lasting", 50);
    load.flows(25).await?;

    let talks = futures::future::try_join_all(sockets.into_iter().map(talk));
    let answers = p.gateways.iter().map(|gateway| events(p, *gateway, &domain));
    let answers = futures::future::try_join_all(answers);
    let image = p.hello("2");
    let deploy = p.api.deployed("lasting", "2", &image, 2, json!({}));
    let (ends, answered, _, drained) = futures::try_join!(talks, answers, deploy, drained(p, "lasting", &old))?;

    for (owner, (at, code)) in owners.iter().zip(&ends) {
        let kept = at.saturating_duration_since(drained[owner]);
        eprintln!("a WebSocket at {owner} was kept {kept:.1?} after its drain began");
        expect(*code == 1001, || format!("closed with {code}"))?;
        // Seen to drain a moment after it began.
        let least = DRAIN.saturating_sub(Duration::from_millis(700));
        expect(kept >= least && kept <= DRAIN + Duration::from_secs(8), || {
            format!("closed {kept:?} after its drain began, the time-out is {DRAIN:?}")
        })?;
    }
    expect(answered.iter().all(|instance| old.contains(instance)), || {
        format!("long answers came from {answered:?}, not from {old:?}")
    })?;
    p.answers("lasting", "2", 2).await?;
    load.end().await.flawless("a deploy with open connections")
}
