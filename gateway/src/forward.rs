//! One request, from its head to the head of its answer: route, limits, the endpoint, the answer, and further endpoints when
//! one fails. The order of the steps is the order of the lines in [`admit`] and [`attempt`].

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use model::config::Protocol;

use crate::answer::{self, Reason, Shape};
use crate::balance::{Ask, Tried, Unpicked};
use crate::body::{BodyState, ClientBody, Progress, RequestBody, ResponseBody};
use crate::client::Client;
use crate::eject::Endpoint;
use crate::exchange::{Exchange, Phase};
use crate::flight::{Flight, LogFields};
use crate::headers::{self, Rules};
use crate::outcome;
use crate::pool::Sender;
use crate::prefix;
use crate::rate::Asking;
use crate::reach;
use crate::redirect;
use crate::retry;
use crate::route::{self, Target};
use crate::table::{App, By};
use crate::trace;
use crate::upgrade::{Side, Tunnel};
use crate::upstream::{self, Call, How, Outcome, Sent};
use crate::websocket;
use crate::worker::{RequestId, Worker};

/// An answer of the gateway's own instead of an app's.
struct Refusal {
    reason: Reason,
    /// Seconds until the client may come again, where they are known.
    wait: Option<u64>,
    /// Where the client is to go.
    location: Option<HeaderValue>,
    /// What an authority is answered.
    proof: Option<Bytes>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            wait: None,
            location: None,
            proof: None,
        }
    }
}

/// What is known of a request that may go to its app.
struct Admitted {
    app: Arc<App>,
    ask: Ask,
    /// It may be sent again although an app may have seen it.
    repeatable: bool,
    rules: Rules,
}

/// Answers one request; never fails.
pub(crate) async fn serve<B: Into<ClientBody>>(
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    request: Request<B>,
) -> Result<Response<ResponseBody>, Infallible> {
    let started = Instant::now();
    exchange.begin(request.version());
    let mut flight = Flight::new(Rc::clone(&worker), Rc::clone(&exchange), started);
    let mut shape = Shape::default();
    let (mut parts, body) = request.into_parts();
    let outcome = match admit(&mut flight, &mut parts, body.into(), &mut shape) {
        Ok(mut admitted) => {
            let outcome = attempt(&mut flight, &mut admitted, &parts).await;
            if let Some(body) = &flight.body {
                body.settle();
            }
            worker.give_back(parts.headers);
            outcome.map_err(Refusal::from)
        }
        Err(refusal) => Err(refusal),
    };
    let mut response = match outcome {
        Ok(response) => response,
        Err(Refusal {
            reason,
            wait,
            location,
            proof,
        }) => {
            // No endpoint, or one that is no part of the answer any more: the request counts there no longer.
            flight.leave();
            flight.reason = Some(reason);
            if reason.ends_connection() {
                exchange.linger.set(true);
            }
            let mut response = match proof {
                Some(proof) => answer::proof(proof),
                None => answer::answer(reason, shape, wait),
            };
            if let Some(location) = location {
                response.headers_mut().insert(header::LOCATION, location);
            }
            response
        }
    };
    exchange.phase.set(Phase::Answering);
    flight.status = response.status().as_u16();
    if worker.draining.get() {
        answer::say_goodbye(&exchange, &mut response);
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let idle = flight.tunnel_idle();
        let websocket = websocket::is_switch(response.headers());
        let endpoint = match response.body_mut().take_switched() {
            Some((stream, rest)) => Side::Socket(stream, rest),
            None => Side::Stream(hyper::upgrade::on(&mut response)),
        };
        *exchange.tunnel.borrow_mut() = Some(Tunnel {
            endpoint,
            flight,
            idle,
            websocket,
        });
        *response.body_mut() = ResponseBody::own(Bytes::new());
    } else {
        response.body_mut().carry(flight);
    }
    Ok(response)
}

/// Everything that is decided before an endpoint is asked. `parts` become what it is asked, but for the body.
fn admit(flight: &mut Flight, parts: &mut Parts, body: ClientBody, shape: &mut Shape) -> Result<Admitted, Refusal> {
    let (worker, exchange) = (Rc::clone(flight.worker()), Rc::clone(flight.exchange()));
    let shared = &worker.shared;
    // What comes after an answer that did not wait for the body is no request.
    exchange.linger.set(!body.is_end_stream());

    let seen = headers::inspect(&parts.headers);
    *shape = seen.shape();
    let given_id = seen.request_id.filter(|v| headers::sound_id(v));
    let made_id = given_id.is_none().then(|| worker.request_id());
    let bad_id = given_id.is_none() && seen.request_id.is_some();
    if shared.log.is_some() {
        flight.log = Some(Box::new(LogFields {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            host: seen.host.cloned(),
            request_id: made_id.map(RequestId::value).or_else(|| given_id.cloned()),
            traceparent: None,
        }));
    }
    if exchange.http2 && (exchange.head_too_large.get() || parts.headers.len() > shared.config.max_head_fields) {
        return Err(Reason::HeadTooLarge.into());
    }
    if parts.method == Method::CONNECT {
        return Err(Reason::MethodNotAllowed.into());
    }
    if seen.strange_encoding {
        return Err(Reason::BadFraming.into());
    }
    let (host, absolute) = match (seen.hosts, seen.host) {
        (1, Some(host)) => match authority(&parts.uri, &parts.method)? {
            Some(authority) => (authority, true),
            None => (host.clone(), false),
        },
        _ => return Err(Reason::BadHost.into()),
    };
    // Before all that an app may want: its certificate must not depend on it.
    if shared.challenges.any()
        && let Some(proof) = shared.challenges.body(host.as_bytes(), parts.uri.path())
    {
        return Err(Refusal {
            proof: Some(proof),
            ..Reason::AcmeChallenge.into()
        });
    }

    if exchange.client.trusted
        && let Some(ip) = headers::client_behind(&parts.headers, &shared.trusted)
    {
        flight.ip = ip;
    }
    if shared.deny.contains(flight.ip) {
        return Err(Reason::Denied.into());
    }

    let mut ask = Ask::default();
    let app = app_of(&worker, &exchange.client, &host, &parts.uri, &mut ask)?;
    let settings = Arc::clone(&app.settings);
    // What does not speak HTTP is no host here: a request must not become commands of another protocol.
    if settings.config.protocol == Protocol::Tcp {
        return Err(Reason::UnknownApp.into());
    }

    let fits = flight.belongs_to(Arc::clone(&app));
    if settings.deny.contains(flight.ip) {
        return Err(Reason::Denied.into());
    }
    if !fits {
        return Err(Reason::Overloaded.into());
    }
    let asking = || Asking::new(shared, &app, flight.ip, flight.started);
    if let Some(limiter) = &settings.limiter
        && let Err(wait) = limiter.check(&shared.clients, &exchange.client.last.rate, asking())
    {
        return Err(Refusal {
            wait: Some(wait.as_secs() + 1),
            ..Reason::RateLimited.into()
        });
    }
    let mut scratch = route::SCRATCH;
    if settings.config.redirect_https
        && !exchange.client.https
        && let Ok(name) = route::name(host.as_bytes(), &mut scratch)
        && let Some(location) = redirect::target(shared, &exchange.client, &parts.headers, name, &parts.uri)
    {
        return Err(Refusal {
            location: Some(location),
            ..Reason::RedirectHttps.into()
        });
    }
    if body.size_hint().lower() > settings.max_body {
        return Err(Reason::BodyTooLarge.into());
    }
    exchange.patience.set((settings.response, settings.idle));
    if let Some(plan) = &app.plan {
        plan.read(&mut ask, &parts.headers, flight.ip);
        let client = &exchange.client;
        ask.secure = client.https || (client.trusted && headers::forwarded_https(&parts.headers));
    }

    let has_body = !body.is_end_stream();
    // A tunnel's bytes begin after the head: with a body before them nobody could tell which are which.
    let upgrade = seen.facts.wants_upgrade() && !has_body && parts.version == Version::HTTP_11;
    let repeatable = retry::may_repeat(&parts.method, seen.idempotency_key);
    let rules = Rules {
        facts: seen.facts,
        host,
        absolute,
        upgrade: if upgrade {
            parts.headers.get(header::UPGRADE).cloned()
        } else {
            None
        },
        id: made_id,
        // hyper would leave such a body out.
        chunked: has_body && matches!(parts.method, Method::GET | Method::HEAD) && body.size_hint().exact().is_none(),
        bad_id,
    };
    if absolute {
        parts.uri = std::mem::take(&mut parts.uri)
            .into_parts()
            .path_and_query
            .map(Uri::from)
            .unwrap_or_default();
    }
    if let Some(log) = &mut flight.log {
        log.traceparent = trace::parent(&mut parts.headers, log.request_id.as_ref());
    }
    rules.apply(&mut parts.headers, &exchange.client);
    if settings.config.strip_prefix {
        prefix::strip(&worker, &rules.host, parts);
    }
    if has_body {
        exchange.arrival.patient.set(*shape == Shape::Grpc);
        flight.body = Some(BodyState::new(body, settings.max_body, exchange));
    }
    // The front connection's must not reach the upstream one.
    parts.extensions.clear();
    parts.version = Version::HTTP_11;
    Ok(Admitted {
        app,
        ask,
        repeatable,
        rules,
    })
}

/// The app that the host names, with the path where apps share it. Clients go on asking for the same one, so the last one is at hand.
fn app_of(worker: &Worker, client: &Client, host: &HeaderValue, uri: &Uri, ask: &mut Ask) -> Result<Arc<App>, Reason> {
    worker.with_table(|table| {
        if let Some(app) = client.last.app(host.as_bytes(), table.made) {
            return Ok(app);
        }
        let mut scratch = route::SCRATCH;
        let name = route::name(host.as_bytes(), &mut scratch).map_err(|_| Reason::BadHost)?;
        let own = &worker.shared.config.domain;
        let target = route::target(name, own);
        if let Target::Version { version, .. } = target {
            ask.version = Some(version.into());
        }
        let found = table.find(target, own, uri.path());
        let (app, by) = found.ok_or_else(|| match worker.shared.is_loaded() {
            true => Reason::UnknownApp,
            false => Reason::NotReady,
        })?;
        if client.shown.get().is_some_and(|shown| !shown.is(name)) {
            return Err(Reason::Misdirected);
        }
        if by == By::Host && ask.version.is_none() {
            client.last.remember(host.as_bytes(), app, table.made);
        }
        Ok(Arc::clone(app))
    })
}

/// The request's body from its first byte on; none when it can't be sent any more.
fn body_of(flight: &Flight) -> Option<RequestBody> {
    match &flight.body {
        Some(state) => state.read(),
        None => Some(RequestBody::empty()),
    }
}

/// The authority of an absolute target, which decides over Host (RFC 9112 3.2.2); `None` for a target that is a path. Targets
/// that are neither are refused: this is no forward proxy.
fn authority(uri: &Uri, method: &Method) -> Result<Option<HeaderValue>, Reason> {
    match (uri.scheme_str(), uri.authority()) {
        (None, None) if uri.path().starts_with('/') || (uri.path() == "*" && *method == Method::OPTIONS) => Ok(None),
        (Some("http" | "https"), Some(authority)) if !authority.as_str().contains('@') => {
            HeaderValue::from_str(authority.as_str())
                .map(Some)
                .map_err(|_| Reason::BadHost)
        }
        _ => Err(Reason::BadTarget),
    }
}

/// Asks one endpoint after the other until one answers, or it would be wrong to go on.
async fn attempt(
    flight: &mut Box<Flight>,
    admitted: &mut Admitted,
    parts: &Parts,
) -> Result<Response<ResponseBody>, Reason> {
    let Admitted {
        app,
        ask,
        repeatable,
        rules,
    } = admitted;
    let repeatable = *repeatable;
    let (worker, exchange) = (Rc::clone(flight.worker()), Rc::clone(flight.exchange()));
    let mut answer = None;
    let mut tried = Tried::default();
    let mut only_new = false;
    let mut free = false;
    let mut failure = Reason::NoEndpoints;
    let mut now = flight.started;

    loop {
        let probe = |endpoint: &Arc<Endpoint>| reach::probe(&worker, app, endpoint);
        let entered = match app.pick(ask, &tried, worker.shared.clock, now, probe) {
            Ok(entered) => entered,
            Err(Unpicked::Full) => return Err(Reason::Overloaded),
            // Withdrawn since the table was read? Then there is a newer one.
            Err(why) => match worker.app(app.shared.id.as_str()) {
                Some(newer) if !Arc::ptr_eq(&newer, app) => {
                    *app = newer;
                    continue;
                }
                _ if why == Unpicked::Unreachable => {
                    reach::look_after(&worker, app, now);
                    return Err(Reason::Unreachable);
                }
                _ => return Err(failure),
            },
        };
        // One try on a new connection after a kept one is free: it says nothing about the app, and happens once.
        if !tried.is_empty() && !std::mem::take(&mut free) && !may_go_on(flight, &worker, app, now) {
            return Err(failure);
        }
        let h2c = entered.endpoint().h2c();
        // It goes there as an extended CONNECT; if that is accepted, this proves to the client that its handshake was understood.
        let socket = match rules.upgrade {
            Some(_) if h2c => Some(socket(parts)?),
            _ => None,
        };
        flight.attempts += 1;
        flight.hold(entered);
        flight.connect.set(Duration::ZERO);
        if worker.sampled() {
            flight.in_gateway = Some(flight.started.elapsed());
        }
        let Some(body) = body_of(flight) else {
            return Err(failure);
        };
        let call = Call {
            worker: &worker,
            exchange: &exchange,
            app,
            parts,
            body: Some(body),
            answer: &mut answer,
            how: How {
                only_new,
                repeatable,
                h2c,
                socket: socket.is_some(),
                chunked: rules.chunked,
            },
        };
        let Outcome { sent, kept, sender } = upstream::once(flight, call).await;
        let again = match sent {
            Sent::Answer => {
                flight.upstream = now.elapsed().saturating_sub(flight.connect.get());
                let mut accepted = accept(flight, answer.take(), sender, rules, socket);
                if let Err(reason) = &accepted {
                    outcome::no_answer(flight, &worker, app, *reason);
                }
                if let Some(plan) = &app.plan {
                    outcome::answered(flight, app, plan, ask, &mut accepted);
                }
                return accepted;
            }
            Sent::Unsent | Sent::Refused => {
                failure = Reason::ConnectFailed;
                true
            }
            Sent::Stranger => {
                failure = Reason::NotIdentified;
                true
            }
            Sent::Lost => {
                failure = Reason::UpstreamClosed;
                repeatable
            }
            Sent::Bad => {
                failure = Reason::BadAnswer;
                false
            }
            Sent::NoSockets => return Err(Reason::NoUpgrade),
            Sent::Expired if exchange.body_late.get() => return Err(Reason::RequestTimeout),
            Sent::Expired => {
                failure = Reason::UpstreamTimeout;
                false
            }
        };
        if let Some(reason) = body_failure(flight) {
            return Err(reason);
        }
        if !again {
            // That a kept connection ended says nothing about the endpoint.
            if !(kept && failure == Reason::UpstreamClosed) {
                outcome::no_answer(flight, &worker, app, failure);
            }
            return Err(failure);
        }
        // An accepted connection proves nothing (Docker's port proxy accepts for dead apps): an end before the first byte of
        // an answer counts as a failed connect, except on a kept connection, which may just have been too old. Then the
        // same endpoint may be tried once more, on a new one.
        now = Instant::now();
        failed(flight, &worker, app, &mut tried, kept, failure, now);
        free = kept;
        only_new |= free;
    }
}

/// What proves that an upgrade's handshake was understood, for an endpoint that speaks HTTP/2: of all upgrades only WebSocket has a
/// form there, and its handshake ends here.
fn socket(parts: &Parts) -> Result<HeaderValue, Reason> {
    if !websocket::is_switch(&parts.headers) {
        return Err(Reason::NoUpgrade);
    }
    websocket::accept(&parts.method, &parts.headers).ok_or(Reason::BadHandshake)
}

/// Whether a further endpoint may be tried: there is time left, and the retry budget allows it.
fn may_go_on(flight: &Flight, worker: &Worker, app: &App, now: Instant) -> bool {
    let time = Duration::from_millis(worker.shared.config.retry_time_ms);
    if now.saturating_duration_since(flight.started) >= time {
        return false;
    }
    let stats = app.shared.stats();
    if app.shared.budget.take(stats.requests(), now) {
        worker.stats().retries.add(1);
        stats.of(worker.index).retries.add(1);
        true
    } else {
        worker.stats().retries_refused.add(1);
        false
    }
}

/// Notes a failure at the endpoint that the request is at. `kept`: on a kept connection, which says nothing about the endpoint.
fn failed(
    flight: &mut Flight,
    worker: &Rc<Worker>,
    app: &App,
    tried: &mut Tried,
    kept: bool,
    reason: Reason,
    now: Instant,
) {
    if let Some(entered) = flight.entered() {
        let endpoint = entered.endpoint();
        tried.add(endpoint.id, kept);
        if kept {
            worker.stats().stale.add(1);
        } else if !flight.own_fault.take() {
            left_out(worker, app, endpoint, reason.as_str(), now);
        }
    }
    flight.leave();
}

/// Leaves an endpoint that has failed out of the turn for a while.
pub(crate) fn left_out(worker: &Rc<Worker>, app: &App, endpoint: &Endpoint, reason: &'static str, now: Instant) {
    reach::look_after(worker, app, now);
    let before = endpoint.failures();
    endpoint.note(reason, worker.shared.clock, now);
    let time = endpoint.failed(worker.shared.clock, now);
    if endpoint.failures() != before {
        worker.stats().ejections.add(1);
        app.shared.stats().of(worker.index).ejections.add(1);
        tracing::info!(app = %endpoint.key.app, container = %endpoint.key.container, endpoint = %endpoint.address,
            for_ms = time.as_millis() as u64, reason, "endpoint left out after a failure");
    }
}

/// Why the request's body ended the request, if it did. Never the endpoint's fault.
fn body_failure(flight: &Flight) -> Option<Reason> {
    match flight.body.as_ref()?.progress.get() {
        Progress::TooLarge => Some(Reason::BodyTooLarge),
        Progress::Broken => Some(Reason::BadBody),
        Progress::Open | Progress::Whole => None,
    }
}

/// Takes an endpoint's answer.
fn accept(
    flight: &mut Flight,
    response: Option<Response<ResponseBody>>,
    sender: Option<Sender>,
    rules: &Rules,
    socket: Option<HeaderValue>,
) -> Result<Response<ResponseBody>, Reason> {
    let mut response = response.ok_or(Reason::BadAnswer)?;
    if let Some(accept) = socket {
        match response.status() {
            StatusCode::OK => websocket::switched(&mut response, accept),
            // The library makes a tunnel of no other.
            status if status.is_success() || status.is_informational() => return Err(Reason::BadUpgrade),
            _ => {}
        }
    }
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if upgraded && !headers::switches_as_asked(rules.upgrade.as_ref(), response.headers()) {
        return Err(Reason::BadUpgrade);
    }
    let wanted = headers::upgrade_wanted(response.status(), response.headers());
    *response.version_mut() = Version::HTTP_11;
    if !headers::rewrite_answer(response.headers_mut(), upgraded) {
        return Err(Reason::BadAnswer);
    }
    // HTTP/2 has no fields of the connection (RFC 9113 8.2.2).
    if let Some(protocol) = wanted.filter(|_| !flight.exchange().http2) {
        let fields = response.headers_mut();
        fields.insert(header::UPGRADE, protocol);
        fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if let Some(sender) = sender {
        let whole = matches!(sender, Sender::Http1(_));
        flight.keep(sender);
        if whole {
            flight.upstream_done();
        }
    }
    Ok(response)
}
