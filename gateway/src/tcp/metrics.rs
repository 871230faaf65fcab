//! Counters of TCP routes, by app: made at an app's first connection, so that apps that speak HTTP have none.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::{Counter, Page};
use crate::shared::TcpStatus;

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident = $code:literal),+ $(,)?) => {
        /// How a connection ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Outcome { $($(#[$doc])* $name),+ }

        impl Outcome {
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];

            /// Stable name: the metric's label and the access log's reason.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code),+ }
            }
        }
    };
}

outcomes! {
    /// Both sides have closed.
    Closed = "closed",
    /// No byte for the app's idle time-out.
    Idle = "idle_timeout",
    /// The client's side broke, or the client left before there was an endpoint.
    ClientGone = "client_gone",
    /// The endpoint's side broke.
    EndpointGone = "endpoint_gone",
    /// The gateway stopped before the connection ended.
    Stopped = "stopped",
    /// The app has no endpoint, or its configuration has just changed.
    NoEndpoints = "no_endpoints",
    /// No connect gets through to any endpoint, as was known already.
    Unreachable = "unreachable",
    /// No endpoint took the connection.
    ConnectFailed = "connect_failed",
    /// The endpoint closed without a word to what the client had said.
    Unanswered = "no_answer",
    /// The client's network is refused.
    Denied = "denied",
    /// More connections than the app, the client or the gateway may have.
    Overloaded = "overloaded",
    /// More new connections a second than the app or the client may make.
    RateLimited = "rate_limited",
}

/// Counters of one app in one worker.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Stripe {
    pub(super) opened: Counter,
    pub(super) open: Counter,
    pub(super) bytes_in: Counter,
    pub(super) bytes_out: Counter,
    pub(super) ended: [Counter; Outcome::ALL.len()],
}

/// Counters of one app.
#[derive(Debug)]
pub(crate) struct Stats {
    stripes: Box<[Stripe]>,
}

impl Stats {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            stripes: (0..workers.max(1)).map(|_| Stripe::default()).collect(),
        }
    }

    pub(super) fn of(&self, worker: usize) -> &Stripe {
        &self.stripes[worker]
    }

    fn sum(&self, counter: impl Fn(&Stripe) -> &Counter) -> u64 {
        self.stripes.iter().map(|s| counter(s).get()).sum()
    }

    /// Connections so far.
    pub(super) fn connections(&self) -> u64 {
        self.sum(|s| &s.opened)
    }
}

/// Writes the counters of `apps`, by id; ids need no escaping.
pub(crate) fn write(page: &mut Page, status: &TcpStatus, apps: &[(&str, &Stats)]) {
    let ports: [(&str, &str, &str, &AtomicU64); 4] = [
        ("tcp_ports_open", "gauge", "Ports of TCP apps open", &status.open),
        (
            "tcp_ports_failed",
            "gauge",
            "Ports of TCP apps that can't be opened now",
            &status.failed,
        ),
        (
            "tcp_accept_errors_total",
            "counter",
            "Failed accepts at ports of TCP apps",
            &status.accept_errors,
        ),
        (
            "tcp_dropped_total",
            "counter",
            "TCP connections closed because no worker took them in time",
            &status.dropped,
        ),
    ];
    for (name, kind, help, value) in ports {
        page.one(name, kind, help, value.load(Ordering::Relaxed));
    }
    type Get = fn(&Stripe) -> &Counter;
    let all: [(&str, &str, &str, Get); 4] = [
        (
            "tcp_connections_total",
            "counter",
            "TCP connections accepted, by app",
            |s| &s.opened,
        ),
        ("tcp_connections", "gauge", "TCP connections open, by app", |s| &s.open),
        ("tcp_bytes_in_total", "counter", "Bytes from TCP clients, by app", |s| {
            &s.bytes_in
        }),
        ("tcp_bytes_out_total", "counter", "Bytes to TCP clients, by app", |s| {
            &s.bytes_out
        }),
    ];
    for (name, kind, help, get) in all {
        page.head(name, kind, help);
        for (app, stats) in apps {
            page.line(name, &format!("app=\"{app}\""), stats.sum(get));
        }
    }
    page.head("tcp_ended_total", "counter", "TCP connections ended, by app and reason");
    for (app, stats) in apps {
        for (i, outcome) in Outcome::ALL.iter().enumerate() {
            let n = stats.sum(|s| &s.ended[i]);
            if n > 0 {
                let labels = format!("app=\"{app}\",reason=\"{}\"", outcome.as_str());
                page.line("tcp_ended_total", &labels, n);
            }
        }
    }
}
