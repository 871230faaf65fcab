//! One request, from its head to the head of its answer: route, limits, the endpoint, the answer, and further endpoints when
//! one fails. The order of the steps is the order of the lines in [`admit`] and [`attempt`].

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HeaderValue;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::answer::{self, Reason};
use crate::body::{ClientBody, Progress, RequestBody, ResponseBody};
use crate::eject::Endpoint;
use crate::exchange::{Exchange, Phase};
use crate::flight::{Flight, LogFields};
use crate::headers::{self, Rules};
use crate::pool::Sender;
use crate::retry::{self, Copy};
use crate::route::{self, Target};
use crate::table::{App, Tried};
use crate::upgrade::Tunnel;
use crate::worker::Worker;

/// An answer of the gateway's own instead of an app's.
struct Refusal {
    reason: Reason,
    /// Seconds until the client may come again, where they are known.
    wait: Option<u64>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, wait: None }
    }
}

/// A request that may go to its app.
struct Admitted {
    app: Arc<App>,
    version: Option<Box<str>>,
    request: Request<RequestBody>,
    /// As it came, when it may be repeated.
    copy: Option<Copy>,
    rules: Rules,
}

/// Answers one request; never fails.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    request: Request<ClientBody>,
) -> Result<Response<ResponseBody>, Infallible> {
    let started = Instant::now();
    exchange.begin();
    let mut flight = Flight::new(Rc::clone(&worker), Rc::clone(&exchange), started);
    let mut html = false;
    let outcome = match admit(&mut flight, request, &mut html) {
        Ok(admitted) => attempt(&mut flight, admitted).await,
        Err(refusal) => Err(refusal),
    };
    let mut response = match outcome {
        Ok(response) => response,
        Err(Refusal { reason, wait }) => {
            // No endpoint, or one that is no part of the answer any more: the request counts there no longer.
            flight.leave();
            flight.reason = Some(reason);
            if reason.ends_connection() {
                exchange.linger.set(true);
            }
            answer::answer(reason, html, wait)
        }
    };
    exchange.phase.set(Phase::Answering);
    flight.status = response.status().as_u16();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let idle = flight.tunnel_idle();
        let upgraded = hyper::upgrade::on(&mut response);
        *exchange.tunnel.borrow_mut() = Some(Tunnel { upgraded, flight, idle });
        *response.body_mut() = ResponseBody::own(Bytes::new());
    } else {
        response.body_mut().carry(flight);
    }
    Ok(response)
}

/// Everything that is decided before an endpoint is asked.
fn admit(flight: &mut Flight, request: Request<ClientBody>, html: &mut bool) -> Result<Admitted, Refusal> {
    let (mut parts, body) = request.into_parts();
    let (worker, exchange) = (Rc::clone(flight.worker()), Rc::clone(flight.exchange()));
    let shared = &worker.shared;
    // What comes after an answer that did not wait for the body is no request.
    exchange.linger.set(!body.is_end_stream());

    let seen = headers::inspect(&parts.headers);
    *html = seen.html;
    let given_id = seen.request_id.filter(|v| headers::sound_id(v));
    let made_id = given_id.is_none().then(|| worker.request_id());
    if shared.log.is_some() {
        flight.log = Some(Box::new(LogFields {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            host: seen.host.cloned(),
            request_id: made_id.clone().or_else(|| given_id.cloned()),
        }));
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

    if exchange.client.trusted
        && let Some(ip) = headers::client_behind(&parts.headers, &shared.trusted)
    {
        flight.ip = ip;
    }
    if shared.deny.contains(flight.ip) {
        return Err(Reason::Denied.into());
    }

    let mut scratch = [0; 254];
    let name = route::name(host.as_bytes(), &mut scratch).map_err(|_| Reason::BadHost)?;
    let (key, version) = match route::target(name, &shared.config.domain) {
        Target::App(app) => (app, None),
        Target::Version { version, app } => (app, Some(version.into())),
        Target::Domain(domain) if domain.contains('.') => (domain, None),
        Target::Domain(_) => return Err(Reason::UnknownApp.into()),
    };
    let app = worker.app(key).ok_or(Reason::UnknownApp)?;
    let settings = Arc::clone(&app.settings);

    let fits = flight.belongs_to(Arc::clone(&app));
    if settings.deny.contains(flight.ip) {
        return Err(Reason::Denied.into());
    }
    if !fits {
        return Err(Reason::Overloaded.into());
    }
    if let Some(limiter) = &settings.limiter
        && let Err(wait) = limiter.check(flight.ip)
    {
        return Err(Refusal {
            reason: Reason::RateLimited,
            wait: Some(wait.as_secs() + 1),
        });
    }
    if body.size_hint().lower() > settings.max_body {
        return Err(Reason::BodyTooLarge.into());
    }
    exchange.patience.set((settings.response, settings.idle));

    let has_body = !body.is_end_stream();
    // A tunnel's bytes begin after the head: with a body before them nobody could tell which are which.
    let upgrade = seen.facts.wants_upgrade() && !has_body && parts.version == Version::HTTP_11;
    let repeatable = retry::may_repeat(&parts.method, seen.idempotency_key, has_body);
    let rules = Rules {
        facts: seen.facts,
        host,
        absolute,
        upgrade,
        id: made_id,
    };
    if absolute {
        parts.uri = parts.uri.into_parts().path_and_query.map(Uri::from).unwrap_or_default();
    }
    let copy = repeatable.then(|| Copy::of(&parts.method, &parts.uri, &parts.headers, worker.spare()));
    rules.apply(&mut parts.headers, &exchange.client);
    let body = if has_body {
        let (body, state) = RequestBody::streaming(body, settings.max_body, exchange);
        flight.body = Some(state);
        body
    } else {
        RequestBody::empty()
    };
    // A request of its own: extensions of the front connection must not reach the upstream one.
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = parts.uri;
    *request.headers_mut() = parts.headers;
    Ok(Admitted {
        app,
        version,
        request,
        copy,
        rules,
    })
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

/// What became of sending a request on one connection.
#[derive(Clone, Copy)]
enum Sent {
    /// There is a head of an answer.
    Answer,
    /// Nothing of it was written: the request is where it was.
    Unsent,
    /// The connection ended before an answer.
    Lost,
    /// What came is no answer.
    Bad,
    /// The timer gave it up.
    Expired,
}

/// Asks one endpoint after the other until one answers, or it would be wrong to go on.
async fn attempt(flight: &mut Box<Flight>, admitted: Admitted) -> Result<Response<ResponseBody>, Refusal> {
    let Admitted {
        mut app,
        version,
        request,
        copy,
        rules,
    } = admitted;
    let (worker, exchange) = (Rc::clone(flight.worker()), Rc::clone(flight.exchange()));
    let mut next = Some(request);
    let mut answer = None;
    let mut tried = Tried::default();
    let mut only_new = false;
    let mut free = false;
    let mut failure = Reason::NoEndpoints;
    let mut now = flight.started;

    let result = loop {
        let probe = |endpoint: &Arc<Endpoint>| probe(&worker, endpoint, app.settings.connect);
        let Some(entered) = app.pick(version.as_deref(), &tried, worker.shared.clock, now, probe) else {
            // Withdrawn since the table was read? Then there is a newer one.
            match worker.app(app.shared.id.as_str()) {
                Some(newer) if !Arc::ptr_eq(&newer, &app) => {
                    app = newer;
                    continue;
                }
                _ => break Err(failure),
            }
        };
        // One try on a new connection after a kept one is free: it says nothing about the app, and happens once.
        if !tried.is_empty() && !std::mem::take(&mut free) && !may_go_on(flight, &worker, &app, now) {
            break Err(failure);
        }
        flight.attempts += 1;
        flight.hold(entered);
        if next.is_none() {
            let Some(copy) = &copy else { break Err(failure) };
            let mut again = copy.request();
            rules.apply(again.headers_mut(), &exchange.client);
            next = Some(again);
        }
        let how = How {
            only_new,
            repeatable: copy.is_some(),
        };
        match once(flight, &worker, &exchange, &app, &mut next, &mut answer, how).await {
            (Sent::Answer, sender) => {
                flight.upstream = now.elapsed();
                break accept(flight, answer.take(), sender, rules.upgrade);
            }
            (Sent::Unsent, sender) => {
                // Nothing was written, so any request may be sent again: to the same endpoint if only a kept connection had died.
                now = Instant::now();
                failure = Reason::ConnectFailed;
                failed(flight, &worker, &mut tried, sender.is_some(), now);
                free = sender.is_some();
                only_new |= free;
            }
            (Sent::Lost, sender) => {
                if let Some(reason) = body_failure(flight) {
                    break Err(reason);
                }
                failure = Reason::UpstreamClosed;
                if copy.is_none() {
                    break Err(failure);
                }
                // An accepted connection proves nothing (Docker's port proxy accepts for dead apps): an end before the first byte of
                // an answer counts as a failed connect, except on a kept connection, which may just have been too old.
                now = Instant::now();
                failed(flight, &worker, &mut tried, sender.is_some(), now);
                free = sender.is_some();
                only_new |= free;
            }
            (Sent::Bad, _) => break Err(body_failure(flight).unwrap_or(Reason::BadAnswer)),
            (Sent::Expired, _) => {
                let reason = if exchange.body_open.get() {
                    Reason::RequestTimeout
                } else {
                    Reason::UpstreamTimeout
                };
                break Err(reason);
            }
        }
    };
    if let Some(copy) = copy {
        worker.give_back(copy.into_spare());
    }
    result.map_err(Refusal::from)
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
fn failed(flight: &mut Flight, worker: &Worker, tried: &mut Tried, kept: bool, now: Instant) {
    if let Some(entered) = flight.entered() {
        let endpoint = entered.endpoint();
        tried.add(endpoint.id, kept);
        if kept {
            worker.stats().stale.add(1);
        } else {
            let before = endpoint.failures();
            let time = endpoint.failed(worker.shared.clock, now);
            if endpoint.failures() != before {
                worker.stats().ejections.add(1);
                tracing::info!(app = %endpoint.key.app, container = %endpoint.key.container, endpoint = %endpoint.address,
                    for_ms = time.as_millis() as u64, "endpoint left out after a failure");
            }
        }
    }
    flight.leave();
}

/// Finds out beside the requests whether an endpoint whose time is over can be connected to again.
fn probe(worker: &Rc<Worker>, endpoint: &Arc<Endpoint>, within: Duration) {
    let (worker, endpoint) = (Rc::clone(worker), Arc::clone(endpoint));
    tokio::task::spawn_local(async move {
        match tokio::time::timeout(within, TcpStream::connect(endpoint.address)).await {
            Ok(Ok(_)) => endpoint.connected(),
            _ => {
                endpoint.failed(worker.shared.clock, Instant::now());
            }
        }
    });
}

/// Why the request's body ended the request, if it did. Never the endpoint's fault.
fn body_failure(flight: &Flight) -> Option<Reason> {
    match flight.body.as_ref()?.progress.get() {
        Progress::TooLarge => Some(Reason::BodyTooLarge),
        Progress::Broken => Some(Reason::BadBody),
        Progress::Open | Progress::Whole => None,
    }
}

/// When so many connects failed while a request waits there, and it may be repeated, another endpoint is asked: a host that
/// has lost power never says that it is gone.
const GONE: u32 = 2;

/// How a request is sent.
#[derive(Clone, Copy)]
struct How {
    /// On a new connection, whatever is kept.
    only_new: bool,
    /// It may be sent again.
    repeatable: bool,
}

/// One try at the endpoint that the flight holds. The sender comes back with an answer, and when it was a kept one.
async fn once(
    flight: &Flight,
    worker: &Rc<Worker>,
    exchange: &Exchange,
    app: &App,
    request: &mut Option<Request<RequestBody>>,
    answer: &mut Option<Response<Incoming>>,
    how: How,
) -> (Sent, Option<Sender>) {
    let Some(entered) = flight.entered() else {
        return (Sent::Unsent, None);
    };
    let endpoint = entered.endpoint();
    let kept = if how.only_new { None } else { worker.kept(endpoint.id) };
    let was_kept = kept.is_some();
    let mut sender = match kept {
        Some(sender) => {
            worker.stats().reused.add(1);
            sender
        }
        None => match connect(worker, endpoint.address, app.settings.connect).await {
            Some(sender) => sender,
            None => return (Sent::Unsent, None),
        },
    };
    let Some(taken) = request.take() else {
        return (Sent::Lost, None);
    };
    let failures = endpoint.failures();
    // Heads are large: they are put where they stay instead of being handed from frame to frame.
    let sent = {
        let mut sending = pin!(sender.try_send_request(taken));
        poll_fn(|cx| match sending.as_mut().poll(cx) {
            Poll::Ready(Ok(response)) => {
                *answer = Some(response);
                Poll::Ready(Sent::Answer)
            }
            Poll::Ready(Err(mut error)) => Poll::Ready(match error.take_message() {
                Some(unsent) => {
                    *request = Some(unsent);
                    Sent::Unsent
                }
                None if error.error().is_parse() => Sent::Bad,
                None => Sent::Lost,
            }),
            Poll::Pending if exchange.expired.get() => Poll::Ready(Sent::Expired),
            // The connection's timer looks here every now and then, as it does for `expired`.
            Poll::Pending if how.repeatable && endpoint.failures() >= failures + GONE => Poll::Ready(Sent::Lost),
            Poll::Pending => Poll::Pending,
        })
        .await
    };
    let sender = match sent {
        Sent::Answer => {
            endpoint.worked();
            Some(sender)
        }
        Sent::Expired => None,
        Sent::Unsent | Sent::Lost | Sent::Bad => was_kept.then_some(sender),
    };
    (sent, sender)
}

/// A new upstream connection, or none within the time.
async fn connect(worker: &Rc<Worker>, address: SocketAddr, within: Duration) -> Option<Sender> {
    worker.stats().connects.add(1);
    let stream = match tokio::time::timeout(within, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(_)) | Err(_) => {
            worker.stats().connect_failures.add(1);
            return None;
        }
    };
    // Fails only on a dead connection, which shows soon enough.
    let _ = stream.set_nodelay(true);
    let (sender, connection) = worker.back.handshake(TokioIo::new(stream)).await.ok()?;
    tokio::task::spawn_local(async move {
        // How it ends is heard by whoever uses it.
        let _ = connection.with_upgrades().await;
    });
    Some(sender)
}

/// Takes an endpoint's answer.
fn accept(
    flight: &mut Flight,
    response: Option<Response<Incoming>>,
    sender: Option<Sender>,
    upgrade: bool,
) -> Result<Response<ResponseBody>, Reason> {
    let response = response.ok_or(Reason::BadAnswer)?;
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if upgraded && !upgrade {
        return Err(Reason::BadUpgrade);
    }
    if let (Some(sender), false) = (sender, upgraded) {
        flight.keep(sender);
    }
    let mut response = response.map(ResponseBody::upstream);
    *response.version_mut() = Version::HTTP_11;
    headers::rewrite_answer(response.headers_mut(), upgraded);
    Ok(response)
}
