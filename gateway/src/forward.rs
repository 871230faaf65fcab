//! One request, from its head to the head of its answer: route, limits, the endpoint, the answer, and further endpoints when
//! one fails. The order of the steps, each with the reason for its place, is that of the lines in [`serve`], [`admit`] and [`attempt`];
//! the numbered ones decide before an endpoint is asked. They are pure where `caas gateway explain` asks them, too.

use std::convert::Infallible;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use model::config::Protocol;

use crate::answer::{self, Reason, Refusal, Shape};
use crate::balance::{Ask, Tried, Unpicked};
use crate::behind::client_behind;
use crate::body::{BodyState, ClientBody, Progress, RequestBody, ResponseBody};
use crate::client::Client;
use crate::eject::Endpoint;
use crate::exchange::{Exchange, Phase};
use crate::flight::{Flight, LogFields};
use crate::headers::{self, Rules, Seen};
use crate::outcome;
use crate::pool::Sender;
use crate::prefix;
use crate::rate::{Asking, Limiter};
use crate::reach;
use crate::redirect;
use crate::retry;
use crate::route::{self, Target};
use crate::shared::Shared;
use crate::table::{App, By, Table};
use crate::trace;
use crate::upgrade::{Side, Tunnel};
use crate::upstream::{self, Call, How, Outcome, Sent};
use crate::websocket;
use crate::worker::{RequestId, Worker};

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
    // The record first: whatever happens from here on, also the client's leaving, is counted once, when it is dropped.
    let mut flight = Flight::new(Rc::clone(&worker), Rc::clone(&exchange), started);
    let mut shape = Shape::default();
    let (mut parts, body) = request.into_parts();
    // All that can be said without waiting, before the first wait: who is refused holds no endpoint and no place in a queue.
    let outcome = match admit(&mut flight, &mut parts, body.into(), &mut shape) {
        Ok(mut admitted) => {
            let outcome = attempt(&mut flight, &mut admitted, &parts).await;
            // No further endpoint will want the body again: what was kept of it for that goes before the answer is sent.
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
        Err(refusal) => {
            // No endpoint, or one that is no part of the answer any more: the request counts there no longer.
            flight.leave();
            flight.reason = Some(refusal.reason);
            if refusal.reason.ends_connection() {
                exchange.linger.set(true);
            }
            refusal.into_answer(shape)
        }
    };
    // Behind all that could wait: from here on the client's time-outs are those of an answer.
    exchange.phase.set(Phase::Answering);
    flight.status = response.status().as_u16();
    // On every answer, an app's or the gateway's own, and as late as can be: the drain may have begun while the app thought.
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
        // The record goes with the body: the request is over when its last byte is, and the endpoint has it until then.
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

    // 1. One pass over the fields: the only one, and all that follows decides by what it saw.
    let seen = headers::inspect(&parts.headers);
    *shape = seen.shape();
    // 2. The id and the log's record: before anything can be refused, so that refusals are found again, too.
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
    // 3. A head that is too large: HTTP/2 reads one to its end, since later ones build on it; HTTP/1.1 has refused it by now.
    if exchange.http2 && (exchange.head_too_large.get() || parts.headers.len() > shared.config.max_head_fields) {
        return Err(Reason::HeadTooLarge.into());
    }
    let (host, absolute) = addressed(&parts.method, &parts.uri, &seen)?;
    flight.ip = asker(shared, &exchange.client, &parts.headers);
    own_word(shared, &host, parts.uri.path(), flight.ip)?;
    let mut ask = Ask::default();
    let app = app_of(&worker, &exchange.client, &host, &parts.uri, &mut ask)?;
    let settings = &app.settings;
    let asked = Asked {
        shared,
        client: &exchange.client,
        headers: &parts.headers,
        uri: &parts.uri,
        host: &host,
        ip: flight.ip,
        body: body.size_hint().lower(),
    };
    let (ip, started) = (flight.ip, flight.started);
    let rate = |limiter: &Limiter| {
        let asking = Asking::new(shared, &app, ip, started);
        limiter.check(&shared.clients, &exchange.client.last.rate, asking)
    };
    turned_away(&app, &asked, || flight.belongs_to(Arc::clone(&app)), rate)?;
    exchange.patience.set((settings.response, settings.idle));
    // 11. What the app balances by: only of requests that go to it, and only where it balances by something.
    if let Some(plan) = &app.plan {
        plan.read(&mut ask, &parts.headers, flight.ip);
        let client = &exchange.client;
        ask.secure = client.https || (client.trusted && headers::forwarded_https(&parts.headers));
    }

    // 12. The head as the endpoint is to see it: once, for all endpoints that are tried, and after the last step that has to see it
    // as it came.
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
    // Behind all that goes by the path: routes, redirects and the log have it as the client wrote it.
    if settings.config.strip_prefix {
        prefix::strip(&worker, &rules.host, parts);
    }
    // 13. The body last: nothing of it is read before it is known that somebody may have it.
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

/// Step 4: who is asked, and whether the target stands for it. Before everything that goes by the host, which must not be read in two ways.
#[inline]
pub(crate) fn addressed(method: &Method, uri: &Uri, seen: &Seen<'_>) -> Result<(HeaderValue, bool), Reason> {
    if *method == Method::CONNECT {
        return Err(Reason::MethodNotAllowed);
    }
    if seen.strange_encoding {
        return Err(Reason::BadFraming);
    }
    match (seen.hosts, seen.host) {
        (1, Some(host)) => Ok(match authority(uri, method)? {
            Some(authority) => (authority, true),
            None => (host.clone(), false),
        }),
        _ => Err(Reason::BadHost),
    }
}

/// Step 5: who asks: before deny lists and rates, which are about the client and not about a trusted proxy in front of it.
#[inline]
pub(crate) fn asker(shared: &Shared, client: &Client, headers: &HeaderMap) -> IpAddr {
    match client.trusted {
        true => client_behind(headers, &shared.trusted).unwrap_or(client.ip),
        false => client.ip,
    }
}

/// Step 6: what the gateway says whatever the app is, and before the look-up, so that neither depends on one: proofs to authorities first,
/// since an app's certificate must not depend on who is denied what; then who is denied everywhere.
#[inline]
pub(crate) fn own_word(shared: &Shared, host: &HeaderValue, path: &str, ip: IpAddr) -> Result<(), Refusal> {
    if shared.challenges.any()
        && let Some(proof) = shared.challenges.body(host.as_bytes(), path)
    {
        return Err(Refusal {
            proof: Some(proof),
            ..Reason::AcmeChallenge.into()
        });
    }
    if shared.deny.contains(ip) {
        return Err(Reason::Denied.into());
    }
    Ok(())
}

/// Step 7: the app that the host names, with the path where apps share it. Clients go on asking for the same one, so the last one is at hand.
fn app_of(worker: &Worker, client: &Client, host: &HeaderValue, uri: &Uri, ask: &mut Ask) -> Result<Arc<App>, Reason> {
    worker.with_table(|table| {
        if let Some(app) = client.last.app(host.as_bytes(), table.made) {
            return Ok(app);
        }
        let (app, by) = find(&worker.shared, table, client, host, uri, ask)?;
        if by == By::Host && ask.version.is_none() {
            client.last.remember(host.as_bytes(), app, table.made);
        }
        Ok(Arc::clone(app))
    })
}

/// The same by the table alone, and whether the client may ask for it on this connection. An unknown app before that: whom the
/// certificate names is no matter where nobody is.
pub(crate) fn find<'t>(
    shared: &Shared,
    table: &'t Table,
    client: &Client,
    host: &HeaderValue,
    uri: &Uri,
    ask: &mut Ask,
) -> Result<(&'t Arc<App>, By<'t>), Reason> {
    let mut scratch = route::SCRATCH;
    let name = route::name(host.as_bytes(), &mut scratch).map_err(|_| Reason::BadHost)?;
    let own = &shared.config.domain;
    let target = route::target(name, own);
    if let Target::Version { version, .. } = target {
        ask.version = Some(version.into());
    }
    let found = table.find(target, own, uri.path());
    let found = found.ok_or_else(|| match shared.is_loaded() {
        true => Reason::UnknownApp,
        false => Reason::NotReady,
    })?;
    if client.shown.get().is_some_and(|shown| !shown.is(name)) {
        return Err(Reason::Misdirected);
    }
    Ok(found)
}

/// What of a request an app may refuse it by.
pub(crate) struct Asked<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) client: &'a Client,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) uri: &'a Uri,
    /// The name that decided.
    pub(crate) host: &'a HeaderValue,
    pub(crate) ip: IpAddr,
    /// Bytes that the body has at least.
    pub(crate) body: u64,
}

/// Steps 8 to 10: what the app's configuration refuses. `fits` counts the request for the app and says whether there is room, `rate` counts it
/// for its client: who only wants to know passes others.
#[inline]
pub(crate) fn turned_away(
    app: &App,
    asked: &Asked<'_>,
    fits: impl FnOnce() -> bool,
    rate: impl FnOnce(&Limiter) -> Result<(), Duration>,
) -> Result<(), Refusal> {
    let (settings, shared) = (&app.settings, asked.shared);
    // 8. What does not speak HTTP is no host here: a request must not become commands of another protocol.
    if settings.config.protocol == Protocol::Tcp {
        return Err(Reason::UnknownApp.into());
    }
    // 9. From here on the request is the app's: what it refuses counts under its name. Who is denied takes no share of a rate, and
    // the cheaper limit goes before the dearer one.
    let fits = fits();
    if settings.deny.contains(asked.ip) {
        return Err(Reason::Denied.into());
    }
    if !fits {
        return Err(Reason::Overloaded.into());
    }
    if let Some(limiter) = &settings.limiter
        && let Err(wait) = rate(limiter)
    {
        return Err(Refusal {
            wait: Some(wait.as_secs() + 1),
            ..Reason::RateLimited.into()
        });
    }
    // 10. Behind the limits: being sent elsewhere, or told why not, is an answer that has its price, too.
    let mut scratch = route::SCRATCH;
    if settings.config.redirect_https
        && !asked.client.https
        && let Ok(name) = route::name(asked.host.as_bytes(), &mut scratch)
        && let Some(location) = redirect::target(shared, asked.client, asked.headers, name, asked.uri)
    {
        return Err(Refusal {
            location: Some(location),
            ..Reason::RedirectHttps.into()
        });
    }
    if asked.body > settings.max_body {
        return Err(Reason::BodyTooLarge.into());
    }
    Ok(())
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
        // The choice before the budget: without a further endpoint nothing is taken from what retries may cost.
        let probe = |endpoint: &Arc<Endpoint>| reach::probe(&worker, app, endpoint);
        let entered = match app.pick(ask, &tried, worker.shared.clock, now, probe) {
            Ok(entered) => entered,
            Err(Unpicked::Full) => return Err(Reason::Overloaded),
            // Withdrawn since the table was read? Then there is a newer one.
            Err(why) => match worker.newer(app) {
                Some(newer) => {
                    *app = newer;
                    continue;
                }
                None if why == Unpicked::Unreachable => {
                    reach::look_after(&worker, app, now);
                    return Err(Reason::Unreachable);
                }
                None => return Err(failure),
            },
        };
        // One try on a new connection after a kept one is free: it says nothing about the app, and happens once.
        if !tried.is_empty() && !std::mem::take(&mut free) && !retry::may_go_on(flight, &worker, app, now) {
            return Err(failure);
        }
        let h2c = entered.endpoint().h2c();
        // Only behind the choice, since each endpoint says how it is spoken to. It goes there as an extended CONNECT; if that is
        // accepted, this proves to the client that its handshake was understood.
        let socket = match rules.upgrade {
            Some(_) if h2c => Some(socket(&parts.method, &parts.headers)?),
            _ => None,
        };
        // Held from before it is dialled until the answer's last byte: that is what counts as under way there.
        flight.attempts += 1;
        flight.hold(entered);
        flight.connect.set(Duration::ZERO);
        if worker.sampled() {
            flight.in_gateway = Some(flight.started.elapsed());
        }
        // From its first byte, for each endpoint anew; none if so much has gone by that it could not be kept.
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
            Sent::Full => {
                failure = Reason::Overloaded;
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
        // Before anything is held against the endpoint: a body that breaks off is its client's doing.
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
        outcome::failed(flight, &worker, app, &mut tried, kept, failure, now);
        free = kept && !only_new;
        only_new |= kept;
    }
}

/// What proves that an upgrade's handshake was understood, for an endpoint that speaks HTTP/2: of all upgrades only WebSocket has a
/// form there, and its handshake ends here.
pub(crate) fn socket(method: &Method, headers: &HeaderMap) -> Result<HeaderValue, Reason> {
    if !websocket::is_switch(headers) {
        return Err(Reason::NoUpgrade);
    }
    websocket::accept(method, headers).ok_or(Reason::BadHandshake)
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
