//! What would become of a request, without sending one. What refuses requests is asked here by the functions that requests
//! themselves go through (`crate::forward`), with all that counts left out.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use serde::Serialize;

use super::view::{self, View};
use crate::answer::{Reason, Refusal};
use crate::balance::Ask;
use crate::balance::explain::{Standing as Stands, standings};
use crate::client::{Client, Shown};
use crate::forward::{self, Asked};
use crate::headers;
use crate::route::{self, Target};
use crate::shared::Shared;
use crate::table::{App, Table};
use crate::tcp::{passage, passthrough};
use crate::tls::Failure;

#[derive(Serialize)]
struct Explanation<'a> {
    host: String,
    path: &'a str,
    /// What in the host decided: `app`, `version`, `domain`, `path`, `wildcard`, or `none`.
    rule: &'static str,
    app: &'a str,
    /// The version that the request must have; else `shares` say.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Box<str>>,
    shares: std::collections::BTreeMap<&'a str, f64>,
    balance: &'a str,
    /// `forward`, `passthrough`, the reason of the gateway's own answer, or why the connection is closed without one.
    outcome: &'static str,
    /// Of the gateway's own answer.
    status: Option<u16>,
    /// Where that answer sends the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
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

/// The request that is asked about.
struct Question<'a> {
    host: &'a str,
    path: &'a str,
    method: Method,
    uri: Uri,
    /// Without Host.
    headers: HeaderMap,
    client: IpAddr,
    https: bool,
    /// Whom the client names in its handshake.
    server_name: &'a str,
}

/// What becomes of it.
enum Fate {
    /// An endpoint is asked.
    Forward,
    /// The connection goes to the app as it is.
    Passthrough,
    /// The connection is closed: the handshake fails, or an app that speaks TLS itself can't have it.
    Closed(&'static str),
    Refused(Refusal),
}

impl<R: Into<Refusal>> From<R> for Fate {
    fn from(refusal: R) -> Self {
        Self::Refused(refusal.into())
    }
}

impl<'a> Question<'a> {
    /// `query` gives its parts: `host`, and optionally `path`, `method`, `client` (an address), `cookie`, `header` (`name:value`, any
    /// number of times), `https` (`1`: it comes by TLS) and `server_name` (that the handshake names, if not the host).
    fn new(query: &'a [(String, String)]) -> Result<Self, String> {
        let all = |name: &'static str| query.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str());
        let said = |name: &'static str| all(name).next();
        let host = said("host").ok_or("say which host: /explain?host=hello.example.com")?;
        let path = said("path").unwrap_or("/");
        let client = match said("client") {
            None => IpAddr::from([127, 0, 0, 1]),
            Some(text) => text
                .parse()
                .map_err(|_| format!("client {text:?} is not an IP address"))?,
        };
        let method = said("method").unwrap_or("GET");
        let mut headers = HeaderMap::new();
        if let Some(cookie) = said("cookie") {
            let value =
                HeaderValue::from_str(cookie).map_err(|_| "the cookie holds what no header may hold".to_owned())?;
            headers.append(header::COOKIE, value);
        }
        for field in all("header") {
            let pair = field.split_once(':').and_then(|(name, value)| {
                let name: HeaderName = name.trim().to_ascii_lowercase().parse().ok()?;
                Some((name, HeaderValue::from_str(value.trim()).ok()?))
            });
            let (name, value) = pair.ok_or_else(|| format!("header {field:?} must be name:value"))?;
            headers.append(name, value);
        }
        let https = match said("https") {
            None | Some("0" | "false") => false,
            Some("1" | "true") => true,
            Some(text) => return Err(format!("https {text:?} must be 1 or 0")),
        };
        let name = host.split(':').next().unwrap_or_default().trim_end_matches('.');
        Ok(Self {
            host,
            path,
            method: method
                .parse()
                .map_err(|_| format!("{method:?} is no method of a request"))?,
            uri: path
                .parse()
                .map_err(|_| format!("path {path:?} is no request's target"))?,
            headers,
            client,
            https,
            server_name: said("server_name").unwrap_or(name),
        })
    }

    /// Who asks; behind a handshake with the certificate that the name finds.
    fn client(&self, shared: &Shared) -> Result<Client, Fate> {
        let (address, port) = (HeaderValue::from_static(""), Rc::new(HeaderValue::from_static("")));
        let trusted = shared.trusted.contains(self.client);
        let client = Client::new(self.client, address, port, self.https, trusted);
        if let (true, Some(tls)) = (self.https, &shared.tls) {
            let name = self.server_name.to_ascii_lowercase();
            let certificates = tls.certificates();
            let found = certificates.find(Some(&name));
            let certificate = found.cloned().ok_or(Fate::Closed(Failure::UnknownName.as_str()))?;
            if !trusted {
                // It is empty: nobody else sets it.
                let _ = client.shown.set(Box::new(Shown { name, certificate }));
            }
        }
        Ok(client)
    }
}

/// What would become of the request that `query` describes, as JSON.
pub(super) fn explain(shared: &Shared, query: &[(String, String)]) -> Result<String, String> {
    let mut question = Question::new(query)?;
    if question.https && shared.tls.is_none() {
        return Err("this gateway has no listener for TLS (gateway.tls_listen)".into());
    }
    let table = shared.table.load();
    let mut explanation = Explanation {
        host: question.host.to_owned(),
        path: question.path,
        rule: "none",
        app: "",
        version: None,
        shares: std::collections::BTreeMap::new(),
        balance: "",
        outcome: "forward",
        status: None,
        location: None,
        endpoints: Vec::new(),
    };
    let fate = match HeaderValue::from_str(question.host) {
        Ok(host) => {
            question.headers.append(header::HOST, host);
            fate(shared, &table, &question, &mut explanation).unwrap_or_else(|fate| fate)
        }
        Err(_) => Reason::BadHost.into(),
    };
    match fate {
        Fate::Forward => {}
        Fate::Passthrough => explanation.outcome = "passthrough",
        Fate::Closed(why) => explanation.outcome = why,
        Fate::Refused(refusal) => {
            explanation.outcome = refusal.reason.as_str();
            explanation.status = Some(refusal.reason.status().as_u16());
            let location = refusal.location.as_ref().and_then(|l| l.to_str().ok());
            explanation.location = location.map(str::to_owned);
        }
    }
    Ok(serde_json::to_string(&explanation).unwrap_or_default())
}

/// The steps of a connection and a request in their order. Rates are not asked: asking would count.
fn fate<'a>(shared: &Shared, table: &'a Table, said: &Question<'_>, told: &mut Explanation<'a>) -> Result<Fate, Fate> {
    let now = Instant::now();
    let own = &shared.config.domain;
    if said.https
        && let Some((app, version)) = passthrough::named(table, own, said.server_name)
    {
        let ask = Ask {
            version,
            ..Ask::default()
        };
        told.rule = rule(table, own, said.server_name, "");
        let stands = describe(shared, app, &ask, now, told);
        told.version = ask.version;
        let under_way = app.shared.in_flight.load(Ordering::Relaxed);
        passage::turned_away(shared, app, said.client, under_way).map_err(|outcome| Fate::Closed(outcome.as_str()))?;
        return match chosen(app, &stands) {
            Err(reason) => Err(Fate::Closed(reason.as_str())),
            Ok(_) => Ok(Fate::Passthrough),
        };
    }
    let client = said.client(shared)?;
    let seen = headers::inspect(&said.headers);
    let (host, _) = forward::addressed(&said.method, &said.uri, &seen)?;
    let ip = forward::asker(shared, &client, &said.headers);
    let mut scratch = route::SCRATCH;
    if let Ok(name) = route::name(host.as_bytes(), &mut scratch) {
        name.clone_into(&mut told.host);
        told.rule = rule(table, own, name, said.uri.path());
    }
    forward::own_word(shared, &host, said.uri.path(), ip)?;
    let mut ask = Ask::default();
    let (app, _) = forward::find(shared, table, &client, &host, &said.uri, &mut ask)?;
    if let Some(plan) = &app.plan {
        plan.read(&mut ask, &said.headers, ip);
    }
    let stands = describe(shared, app, &ask, now, told);
    told.version = ask.version;
    let length = said.headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|l| l.to_str().ok()?.parse().ok()).unwrap_or(0);
    let asked = Asked {
        shared,
        client: &client,
        headers: &said.headers,
        uri: &said.uri,
        host: &host,
        ip,
        body: length,
    };
    let fits = || app.shared.in_flight.load(Ordering::Relaxed) < app.settings.max_in_flight;
    forward::turned_away(app, &asked, fits, |_| Ok(()))?;
    let h2c = chosen(app, &stands)?;
    let has_body = length > 0 || said.headers.contains_key(header::TRANSFER_ENCODING);
    if h2c && seen.facts.wants_upgrade() && !has_body {
        forward::socket(&said.method, &said.headers)?;
    }
    Ok(Fate::Forward)
}

/// What in a name decides which app it is.
fn rule(table: &Table, own: &str, name: &str, path: &str) -> &'static str {
    let target = route::target(name, own);
    if table.find(target, own, path).is_none() {
        return "none";
    }
    match target {
        Target::App(_) => "app",
        Target::Version { .. } => "version",
        Target::Domain(_) if table.is_by_path(name, path) => "path",
        Target::Domain(_) if table.get(name).is_some() => "domain",
        Target::Domain(_) => "wildcard",
    }
}

/// Tells the app and who of it could answer; each endpoint's standing.
fn describe<'a>(shared: &Shared, app: &'a App, ask: &Ask, now: Instant, told: &mut Explanation<'a>) -> Vec<Stands> {
    told.app = app.shared.id.as_str();
    told.balance = balance_name(app);
    told.shares = view::shares(app).into_iter().collect();
    let stands = standings(app, ask, shared.clock, now);
    let endpoints = app.endpoints.iter().zip(&stands);
    told.endpoints = endpoints
        .map(|(endpoint, stands)| Standing {
            endpoint: view::view(shared, app, endpoint, now),
            candidate: stands.may(),
            why: stands.as_str(),
        })
        .collect();
    stands
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

/// What the choice of an endpoint would find: whether each that could have the request is spoken to in HTTP/2, or that there is none.
fn chosen(app: &App, stands: &[Stands]) -> Result<bool, Reason> {
    let among = |may: fn(&Stands) -> bool| {
        let mut endpoints = app.endpoints.iter().zip(stands).filter(|(_, s)| may(s)).peekable();
        endpoints.peek().is_some().then(|| endpoints.all(|(e, _)| e.h2c()))
    };
    let full = || stands.contains(&Stands::Full);
    if let Some(h2c) = among(|s| s.may()) {
        Ok(h2c)
    } else if full() {
        Err(Reason::Overloaded)
    } else if let Some(h2c) = among(|s| matches!(s, Stands::LeftOut | Stands::Ejected)) {
        // Those that are left out are tried when there are no others, unless no connect gets through.
        Ok(h2c)
    } else if stands.contains(&Stands::Unreachable) {
        Err(Reason::Unreachable)
    } else {
        Err(Reason::NoEndpoints)
    }
}
