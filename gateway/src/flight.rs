//! One request's record, from its head to the last byte of its answer: what it holds (endpoint, upstream connection)
//! and what is written down when it ends. It ends exactly once, however the request ends.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Uri};

use crate::access_log;
use crate::answer::Reason;
use crate::body::{BodyState, Progress};
use crate::eject::Entered;
use crate::exchange::Exchange;
use crate::outcome;
use crate::pool::Sender;
use crate::table::App;
use crate::worker::Worker;

/// What only the access log wants to know.
#[derive(Debug)]
pub(crate) struct LogFields {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) host: Option<HeaderValue>,
    pub(crate) request_id: Option<HeaderValue>,
    pub(crate) traceparent: Option<HeaderValue>,
}

/// One request under way.
pub(crate) struct Flight {
    worker: Rc<Worker>,
    exchange: Rc<Exchange>,
    pub(crate) started: Instant,
    /// Who asks; behind a trusted proxy not the peer.
    pub(crate) ip: IpAddr,
    /// The app, counted as having this request.
    app: Option<Arc<App>>,
    entered: Option<Entered>,
    /// The upstream connection: the stream that answers, or what has answered and is free again.
    sender: Option<Sender>,
    /// The answer came whole: the connection may be used again.
    whole: bool,
    /// The answer, or the tunnel, broke off on the endpoint's side.
    pub(crate) cut: bool,
    /// 0 until there is an answer.
    pub(crate) status: u16,
    pub(crate) reason: Option<Reason>,
    pub(crate) attempts: u32,
    /// From the head of the request until an endpoint was asked; where it is taken.
    pub(crate) in_gateway: Option<Duration>,
    /// For the last endpoint's new connection.
    pub(crate) connect: Cell<Duration>,
    /// The last connect failed for want of something on this machine.
    pub(crate) own_fault: Cell<bool>,
    /// From the request sent to the last endpoint to its answer's head.
    pub(crate) upstream: Duration,
    pub(crate) bytes_out: u64,
    pub(crate) body: Option<Rc<BodyState>>,
    pub(crate) log: Option<Box<LogFields>>,
}

impl Flight {
    pub(crate) fn new(worker: Rc<Worker>, exchange: Rc<Exchange>, started: Instant) -> Box<Self> {
        Box::new(Self {
            ip: exchange.client.ip,
            worker,
            exchange,
            started,
            app: None,
            entered: None,
            sender: None,
            whole: false,
            cut: false,
            status: 0,
            reason: None,
            attempts: 0,
            in_gateway: None,
            connect: Cell::new(Duration::ZERO),
            own_fault: Cell::new(false),
            upstream: Duration::ZERO,
            bytes_out: 0,
            body: None,
            log: None,
        })
    }

    /// Counts the request for its app; `false` when the app has too many under way (it is counted even then, until the end).
    pub(crate) fn belongs_to(&mut self, app: Arc<App>) -> bool {
        // Made here, so that the app shows from its first request on, not only after it.
        app.shared.stats();
        let before = app.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        let fits = before < app.settings.max_in_flight;
        self.app = Some(app);
        fits
    }

    /// Holds the endpoint in place of the one before.
    pub(crate) fn hold(&mut self, entered: Entered) {
        self.entered = Some(entered);
    }

    /// The endpoint that the request is at.
    pub(crate) fn entered(&self) -> Option<&Entered> {
        self.entered.as_ref()
    }

    /// Lets go of the endpoint: nothing of the request is there any more.
    pub(crate) fn leave(&mut self) {
        self.entered = None;
    }

    /// Keeps the upstream connection until the answer's end.
    pub(crate) fn keep(&mut self, sender: Sender) {
        self.sender = Some(sender);
    }

    /// The answer came whole.
    pub(crate) fn upstream_done(&mut self) {
        self.whole = true;
    }

    /// The request's body broke off or grew too large: what becomes of the answer then is not the endpoint's doing.
    fn body_failed(&self) -> bool {
        let progress = self.body.as_ref().map(|body| body.progress.get());
        matches!(progress, Some(Progress::Broken | Progress::TooLarge))
    }

    /// How long a tunnel of this app may be without a byte.
    pub(crate) fn tunnel_idle(&self) -> Duration {
        self.app
            .as_ref()
            .map_or(Duration::from_secs(60), |a| a.settings.tunnel_idle)
    }

    /// How much more of the answer may be read at once.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.exchange.room(self.worker.shared.config.buffer_bytes)
    }

    pub(crate) fn exchange(&self) -> &Rc<Exchange> {
        &self.exchange
    }

    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    fn write_line(&self, fields: &LogFields, duration: Duration) {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let at = self.entered.as_ref().map(Entered::endpoint);
        let line = access_log::Line {
            ts: model::Timestamp::now(),
            protocol: if self.exchange.http2 { "HTTP/2" } else { "HTTP/1.1" },
            method: fields.method.as_str(),
            host: bytes(fields.host.as_ref()),
            path: fields.uri.path_and_query().map_or("", |p| p.as_str()),
            status: self.status,
            app: self.app.as_ref().map_or("", |a| a.shared.id.as_str()),
            version: at.map_or("", |e| e.key.version.as_str()),
            container: at.map_or("", |e| e.key.container.as_str()),
            endpoint: at.map(|e| e.address),
            attempts: self.attempts,
            duration_us: micros(duration),
            gateway_us: self.in_gateway.map_or(0, micros),
            connect_us: micros(self.connect.get()),
            upstream_us: micros(self.upstream),
            bytes_in: self.body.as_ref().map_or(0, |b| b.bytes.get()),
            bytes_out: self.bytes_out,
            client: self.ip,
            request_id: bytes(fields.request_id.as_ref()),
            traceparent: bytes(fields.traceparent.as_ref()),
            reason: match self.reason {
                Some(reason) => reason.as_str(),
                None if self.status == 0 => "client_gone",
                None if self.cut => outcome::CUT,
                None => "",
            },
        };
        self.worker.log(|out| line.write(out));
    }
}

fn bytes(value: Option<&HeaderValue>) -> &[u8] {
    value.map_or(&[], HeaderValue::as_bytes)
}

impl Drop for Flight {
    fn drop(&mut self) {
        let now = Instant::now();
        let duration = now.saturating_duration_since(self.started);
        let worker = &self.worker;
        let stats = worker.stats();
        stats.codes[usize::from(self.status).min(599)].add(1);
        if let Some(reason) = self.reason {
            stats.reasons[reason as usize].add(1);
        }
        let counters = match &self.app {
            Some(app) => app.shared.stats().of(worker.index),
            None => worker.shared.unknown.of(worker.index),
        };
        counters.classes[usize::from(self.status / 100).min(5)].add(1);
        counters.duration.observe(duration);
        if let Some(time) = self.in_gateway {
            counters.gateway.observe(time);
        }
        if let Some(entered) = &self.entered {
            match &self.app {
                Some(app) if self.cut && !self.body_failed() => {
                    outcome::unanswered(worker, app, entered.endpoint(), outcome::CUT)
                }
                _ if self.status != 0 => entered.endpoint().worked(),
                _ => {}
            }
            let version = entered.endpoint().stats.of(worker.index, worker.shared.workers.len());
            version.classes[usize::from(self.status / 100).min(5)].add(1);
            if !self.upstream.is_zero() {
                version.upstream.observe(self.upstream);
            }
        }
        if let Some(fields) = self.log.take() {
            self.write_line(&fields, duration);
        }
        if let (true, Some(sender), Some(entered)) = (self.whole, self.sender.take(), &self.entered) {
            worker.keep(entered.endpoint().id, sender, now);
        }
        if let Some(app) = &self.app {
            app.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
        self.exchange.end();
    }
}
