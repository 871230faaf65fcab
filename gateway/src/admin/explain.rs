//! What would become of a request, without sending one.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;

use super::view::{self, View};
use crate::answer::Reason;
use crate::balance::Ask;
use crate::balance::explain::standings;
use crate::route::{self, Target};
use crate::shared::Shared;
use crate::table::App;

#[derive(Serialize)]
struct Explanation<'a> {
    host: String,
    path: &'a str,
    /// What in the host decided: `app`, `version`, `domain`, `path`, `wildcard`, or `none`.
    rule: &'static str,
    app: &'a str,
    /// The version that the request must have; else `shares` say.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    shares: std::collections::BTreeMap<&'a str, f64>,
    balance: &'a str,
    /// `forward`, or the reason of the gateway's own answer.
    outcome: &'static str,
    status: Option<u16>,
    endpoints: Vec<Standing<'a>>,
}

#[derive(Serialize)]
struct Standing<'a> {
    #[serde(flatten)]
    endpoint: View<'a>,
    /// It may have the request.
    candidate: bool,
    why: &'static str,
}

/// `said` gives the question's parts: `host`, and optionally `path`, `client` (an address), `cookie` and `header` (`name:value`).
pub(super) fn explain<'a>(shared: &Shared, said: &impl Fn(&str) -> Option<&'a str>) -> Result<String, String> {
    let host = said("host").ok_or("say which host: /explain?host=hello.example.com")?;
    let path = said("path").unwrap_or("/");
    let client: IpAddr = match said("client") {
        None => IpAddr::from([127, 0, 0, 1]),
        Some(text) => text
            .parse()
            .map_err(|_| format!("client {text:?} is not an IP address"))?,
    };
    let mut headers = HeaderMap::new();
    if let Some(cookie) = said("cookie") {
        let value = HeaderValue::from_str(cookie).map_err(|_| "the cookie holds what no header may hold".to_owned())?;
        headers.append(header::COOKIE, value);
    }
    if let Some(field) = said("header") {
        let pair = field.split_once(':').and_then(|(name, value)| {
            let name: HeaderName = name.trim().to_ascii_lowercase().parse().ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        });
        let (name, value) = pair.ok_or_else(|| format!("header {field:?} must be name:value"))?;
        headers.append(name, value);
    }
    let table = shared.table.load();
    let now = Instant::now();
    let mut scratch = [0; 254];
    let mut explanation = Explanation {
        host: host.to_owned(),
        path,
        rule: "none",
        app: "",
        version: None,
        shares: std::collections::BTreeMap::new(),
        balance: "",
        outcome: Reason::BadHost.as_str(),
        status: Some(Reason::BadHost.status().as_u16()),
        endpoints: Vec::new(),
    };
    let mut ask = Ask::default();
    let Ok(name) = route::name(host.as_bytes(), &mut scratch) else {
        return Ok(serde_json::to_string(&explanation).unwrap_or_default());
    };
    name.clone_into(&mut explanation.host);
    let own = &shared.config.domain;
    let target = route::target(name, own);
    let below = path.split(['?', '#']).next().unwrap_or_default();
    let found = table.find(target, own, below).map(|(app, _)| app);
    explanation.rule = match target {
        Target::App(_) => "app",
        Target::Version { version, .. } => {
            ask.version = Some(version.into());
            "version"
        }
        Target::Domain(_) if table.is_by_path(name, below) => "path",
        Target::Domain(_) if table.get(name).is_some() => "domain",
        Target::Domain(_) => "wildcard",
    };
    let refused = match found {
        None => {
            explanation.rule = "none";
            Some(Reason::UnknownApp)
        }
        Some(app) => {
            if let Some(plan) = &app.plan {
                plan.read(&mut ask, &headers, client);
            }
            explanation.app = app.shared.id.as_str();
            explanation.balance = balance_name(app);
            explanation.shares = view::shares(app).into_iter().collect();
            let standings = standings(app, &ask, shared.clock, now);
            explanation.endpoints = app
                .endpoints
                .iter()
                .zip(standings)
                .map(|(e, standing)| Standing {
                    endpoint: view::view(shared, app, e, now),
                    candidate: standing.may(),
                    why: standing.as_str(),
                })
                .collect();
            refusal(shared, app, client, &explanation.endpoints)
        }
    };
    explanation.version = ask.version.as_deref();
    explanation.outcome = refused.map_or("forward", Reason::as_str);
    explanation.status = refused.map(|r| r.status().as_u16());
    Ok(serde_json::to_string(&explanation).unwrap_or_default())
}

fn balance_name(app: &App) -> &'static str {
    use model::config::Balance;
    match app.settings.config.balance {
        Balance::RoundRobin => "round_robin",
        Balance::LeastRequest => "least_request",
        Balance::PeakEwma => "peak_ewma",
        Balance::ConsistentHash => "consistent_hash",
    }
}

/// What the gateway would answer by itself. Rates are not asked: asking would count.
fn refusal(shared: &Shared, app: &App, client: IpAddr, endpoints: &[Standing<'_>]) -> Option<Reason> {
    if shared.deny.contains(client) || app.settings.deny.contains(client) {
        return Some(Reason::Denied);
    }
    if app.shared.in_flight.load(Ordering::Relaxed) >= app.settings.max_in_flight {
        return Some(Reason::Overloaded);
    }
    // Those that are left out are tried when there are no others, unless no connect gets through.
    let wanted = || {
        endpoints
            .iter()
            .filter(|s| !matches!(s.why, "other_version" | "no_share"))
    };
    if endpoints.iter().any(|s| s.candidate) {
        None
    } else if endpoints.iter().any(|s| s.why == "full") {
        Some(Reason::Overloaded)
    } else if wanted().count() == 0 {
        Some(Reason::NoEndpoints)
    } else if wanted().all(|s| s.why == "unreachable") {
        Some(Reason::Unreachable)
    } else {
        None
    }
}
