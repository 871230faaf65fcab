//! Counters. Each worker writes its own, without locked instructions; they are summed when somebody looks. Label sets are
//! bounded: apps come from the registry, everything else is an enumeration. Hosts that clients make up count under `app=""`.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::answer::Reason;
use crate::tls::{self, Certificates};

/// A counter that exactly one thread adds to and any thread reads.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        // A single writer needs no locked addition.
        self.0
            .store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn sub(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the histograms' buckets in microseconds.
pub(crate) const BOUNDS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// A distribution of durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    counts: [Counter; BOUNDS.len() + 1],
    sum_us: Counter,
}

impl Histogram {
    #[inline]
    pub(crate) fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        // Most requests are fast: a linear search ends at once.
        let bucket = BOUNDS.iter().position(|b| us <= *b).unwrap_or(BOUNDS.len());
        self.counts[bucket].add(1);
        self.sum_us.add(us);
    }
}

/// Names of the classes of statuses, by their first digit; 0 is a request whose client left before an answer.
const CLASSES: [&str; 6] = ["aborted", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Counters of one app in one worker.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct AppStripe {
    /// See [`CLASSES`].
    pub(crate) classes: [Counter; 6],
    pub(crate) duration: Histogram,
    /// Before an endpoint was asked; of one request in [`SAMPLED`].
    pub(crate) gateway: Histogram,
    /// New connections only.
    pub(crate) connect: Histogram,
    pub(crate) retries: Counter,
    pub(crate) ejections: Counter,
}

/// The time in the gateway is taken for one request in so many: reading the clock once more costs every request something.
pub(crate) const SAMPLED: u64 = 16;

/// Counters of one version of an app in one worker.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct VersionStripe {
    /// Requests that one of its endpoints has answered, or was at last at.
    pub(crate) classes: [Counter; 6],
    /// From the request sent to the head of its answer.
    pub(crate) upstream: Histogram,
}

/// Counters of one version of an app; its endpoints lead to them. Made at the first request.
#[derive(Debug, Default)]
pub(crate) struct VersionStats(OnceLock<Box<[VersionStripe]>>);

impl VersionStats {
    /// The counters of one of `workers` workers.
    #[inline]
    pub(crate) fn of(&self, worker: usize, workers: usize) -> &VersionStripe {
        &self
            .0
            .get_or_init(|| (0..workers.max(1)).map(|_| VersionStripe::default()).collect())[worker]
    }

    fn sum(&self, counter: impl Fn(&VersionStripe) -> &Counter) -> u64 {
        self.0.get().map_or(0, |all| all.iter().map(|s| counter(s).get()).sum())
    }
}

/// What the page says of one app; ids and versions need no escaping.
pub(crate) struct AppLines<'a> {
    pub(crate) app: &'a str,
    pub(crate) stats: &'a AppStats,
    pub(crate) in_flight: u32,
    pub(crate) versions: Vec<(model::Version, std::sync::Arc<VersionStats>)>,
}

/// Counters of one app.
#[derive(Debug)]
pub(crate) struct AppStats {
    stripes: Box<[AppStripe]>,
}

impl AppStats {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            stripes: (0..workers.max(1)).map(|_| AppStripe::default()).collect(),
        }
    }

    #[inline]
    pub(crate) fn of(&self, worker: usize) -> &AppStripe {
        &self.stripes[worker]
    }

    fn sum(&self, counter: impl Fn(&AppStripe) -> &Counter) -> u64 {
        self.stripes.iter().map(|s| counter(s).get()).sum()
    }

    /// Finished requests.
    pub(crate) fn requests(&self) -> u64 {
        (0..6).map(|i| self.sum(|s| &s.classes[i])).sum()
    }
}

/// Counters of one worker that belong to no app.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct WorkerStats {
    /// Requests by status 100-599; index 0 holds the rest.
    pub(crate) codes: Box<[Counter]>,
    /// Own answers by reason.
    pub(crate) reasons: [Counter; Reason::ALL.len()],
    pub(crate) connections: Counter,
    pub(crate) connections_open: Counter,
    pub(crate) parked: Counter,
    pub(crate) tunnels_open: Counter,
    pub(crate) http2_connections: Counter,
    pub(crate) http2_requests: Counter,
    pub(crate) http2_floods: Counter,
    pub(crate) bad_heads: Counter,
    pub(crate) accept_errors: Counter,
    pub(crate) connects: Counter,
    pub(crate) connect_failures: Counter,
    pub(crate) identity_checks: Counter,
    pub(crate) identity_failures: Counter,
    pub(crate) reused: Counter,
    pub(crate) stale: Counter,
    pub(crate) retries: Counter,
    pub(crate) retries_refused: Counter,
    pub(crate) ejections: Counter,
    pub(crate) pooled: Counter,
    pub(crate) log_dropped: Counter,
    /// Finished TLS handshakes by [`tls::KINDS`].
    pub(crate) tls_handshakes: [Counter; tls::KINDS.len()],
    pub(crate) tls_failures: [Counter; tls::Failure::ALL.len()],
    /// Connections of balancers without a sound PROXY header.
    pub(crate) proxy_headers_bad: Counter,
}

impl Default for WorkerStats {
    fn default() -> Self {
        Self {
            codes: (0..600).map(|_| Counter::default()).collect(),
            reasons: std::array::from_fn(|_| Counter::default()),
            connections: Counter::default(),
            connections_open: Counter::default(),
            parked: Counter::default(),
            tunnels_open: Counter::default(),
            http2_connections: Counter::default(),
            http2_requests: Counter::default(),
            http2_floods: Counter::default(),
            bad_heads: Counter::default(),
            accept_errors: Counter::default(),
            connects: Counter::default(),
            connect_failures: Counter::default(),
            identity_checks: Counter::default(),
            identity_failures: Counter::default(),
            reused: Counter::default(),
            stale: Counter::default(),
            retries: Counter::default(),
            retries_refused: Counter::default(),
            ejections: Counter::default(),
            pooled: Counter::default(),
            log_dropped: Counter::default(),
            tls_handshakes: std::array::from_fn(|_| Counter::default()),
            tls_failures: std::array::from_fn(|_| Counter::default()),
            proxy_headers_bad: Counter::default(),
        }
    }
}

/// Most certificates in the metrics.
const CERTIFICATES: usize = 1_000;

/// Prometheus' text format.
#[derive(Debug, Default)]
pub(crate) struct Page(String);

impl Page {
    pub(crate) fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(
            self.0,
            "# HELP caas_gateway_{name} {help}\n# TYPE caas_gateway_{name} {kind}\n"
        );
    }

    pub(crate) fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "caas_gateway_{name} {value}"),
            _ => writeln!(self.0, "caas_gateway_{name}{{{labels}}} {value}"),
        };
    }

    pub(crate) fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    pub(crate) fn workers(&mut self, workers: &[WorkerStats]) {
        type Get = fn(&WorkerStats) -> &Counter;
        let sums: [(&str, &str, &str, Get); 21] = [
            ("connections_total", "counter", "Client connections accepted", |w| {
                &w.connections
            }),
            ("connections", "gauge", "Client connections open", |w| {
                &w.connections_open
            }),
            (
                "connections_parked",
                "gauge",
                "Idle client connections without buffers",
                |w| &w.parked,
            ),
            ("tunnels", "gauge", "Upgraded connections open", |w| &w.tunnels_open),
            ("http2_connections", "gauge", "HTTP/2 connections open", |w| {
                &w.http2_connections
            }),
            (
                "http2_requests_total",
                "counter",
                "Requests that came over HTTP/2",
                |w| &w.http2_requests,
            ),
            (
                "http2_floods_total",
                "counter",
                "HTTP/2 connections closed for a flood of frames",
                |w| &w.http2_floods,
            ),
            (
                "bad_requests_total",
                "counter",
                "Requests whose head could not be read",
                |w| &w.bad_heads,
            ),
            ("accept_errors_total", "counter", "Failed accepts", |w| &w.accept_errors),
            ("upstream_connects_total", "counter", "Connects to endpoints", |w| {
                &w.connects
            }),
            (
                "upstream_connect_failures_total",
                "counter",
                "Failed connects to endpoints",
                |w| &w.connect_failures,
            ),
            (
                "upstream_identity_checks_total",
                "counter",
                "New connections to endpoints asked whose they are",
                |w| &w.identity_checks,
            ),
            (
                "upstream_identity_failures_total",
                "counter",
                "Those that did not prove to be the app's",
                |w| &w.identity_failures,
            ),
            (
                "upstream_reused_total",
                "counter",
                "Requests on kept upstream connections",
                |w| &w.reused,
            ),
            (
                "upstream_stale_total",
                "counter",
                "Kept upstream connections found dead on use",
                |w| &w.stale,
            ),
            ("upstream_pooled", "gauge", "Unused upstream connections kept", |w| {
                &w.pooled
            }),
            ("retries_total", "counter", "Requests sent to a further endpoint", |w| {
                &w.retries
            }),
            (
                "retries_refused_total",
                "counter",
                "Retries refused by the retry budget",
                |w| &w.retries_refused,
            ),
            ("ejections_total", "counter", "Endpoints left out after failures", |w| {
                &w.ejections
            }),
            (
                "proxy_headers_bad_total",
                "counter",
                "Connections of balancers without a sound PROXY header",
                |w| &w.proxy_headers_bad,
            ),
            ("access_log_dropped_total", "counter", "Access log lines dropped", |w| {
                &w.log_dropped
            }),
        ];
        for (name, kind, help, get) in sums {
            self.one(name, kind, help, workers.iter().map(|w| get(w).get()).sum::<u64>());
        }
        self.head(
            "responses_total",
            "counter",
            "Requests by status (0: the client left before an answer)",
        );
        for code in 0..600 {
            let n: u64 = workers.iter().map(|w| w.codes[code].get()).sum();
            if n > 0 {
                self.line("responses_total", &format!("code=\"{code}\""), n);
            }
        }
        self.head(
            "own_answers_total",
            "counter",
            "Answers made by the gateway itself, by reason",
        );
        for (i, reason) in Reason::ALL.iter().enumerate() {
            let n: u64 = workers.iter().map(|w| w.reasons[i].get()).sum();
            self.line("own_answers_total", &format!("reason=\"{}\"", reason.as_str()), n);
        }
    }

    /// What TLS does; nothing when it is off.
    pub(crate) fn tls(&mut self, workers: &[WorkerStats], certificates: &Certificates, bad_pairs: u64) {
        self.head("tls_handshakes_total", "counter", "TLS handshakes by version");
        for (i, (version, resumed)) in tls::KINDS.iter().enumerate() {
            let n: u64 = workers.iter().map(|w| w.tls_handshakes[i].get()).sum();
            let labels = format!("version=\"{version}\",resumed=\"{resumed}\"");
            self.line("tls_handshakes_total", &labels, n);
        }
        self.head("tls_failures_total", "counter", "Failed TLS handshakes by reason");
        for (i, failure) in tls::Failure::ALL.iter().enumerate() {
            let n: u64 = workers.iter().map(|w| w.tls_failures[i].get()).sum();
            self.line("tls_failures_total", &format!("reason=\"{}\"", failure.as_str()), n);
        }
        let all = certificates.all();
        self.one("certificates", "gauge", "Certificates that serve", all.len());
        let help = "Certificates found new or changed that could not be used";
        self.one("certificates_bad_total", "counter", help, bad_pairs);
        let help = "When certificates expire, in seconds since 1970; those that expire first";
        self.head("certificate_expires_seconds", "gauge", help);
        for certificate in all.iter().take(CERTIFICATES) {
            let name = certificate
                .label()
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let labels = format!("certificate=\"{name}\"");
            self.line("certificate_expires_seconds", &labels, certificate.expires);
        }
    }

    pub(crate) fn apps(&mut self, apps: &[AppLines<'_>]) {
        self.head("requests_total", "counter", "Requests by app and status class");
        for AppLines { app, stats, .. } in apps {
            for (i, class) in CLASSES.iter().enumerate() {
                let n = stats.sum(|s| &s.classes[i]);
                if n > 0 {
                    self.line("requests_total", &format!("app=\"{app}\",class=\"{class}\""), n);
                }
            }
        }
        let help = "Requests by the version whose endpoint had them last, and status class";
        self.head("version_requests_total", "counter", help);
        for (app, version, stats) in versions(apps) {
            for (i, class) in CLASSES.iter().enumerate() {
                let n = stats.sum(|s| &s.classes[i]);
                if n > 0 {
                    let labels = format!("app=\"{app}\",version=\"{version}\",class=\"{class}\"");
                    self.line("version_requests_total", &labels, n);
                }
            }
        }
        self.head("requests_in_flight", "gauge", "Requests and tunnels under way");
        for AppLines { app, in_flight, .. } in apps {
            self.line("requests_in_flight", &format!("app=\"{app}\""), in_flight);
        }
        type Get = fn(&AppStripe) -> &Counter;
        let sums: [(&str, &str, Get); 2] = [
            (
                "app_retries_total",
                "Requests sent to a further endpoint, by app",
                |s| &s.retries,
            ),
            (
                "app_ejections_total",
                "Endpoints left out after failures, by app",
                |s| &s.ejections,
            ),
        ];
        for (name, help, get) in sums {
            self.head(name, "counter", help);
            for AppLines { app, stats, .. } in apps {
                self.line(name, &format!("app=\"{app}\""), stats.sum(get));
            }
        }
        let help = "Seconds from a request's head to the end of its answer";
        self.histograms("request_duration_seconds", help, apps, |s| &s.duration);
        let help = "Seconds from a request's head until an endpoint is asked, of one request in 16";
        self.histograms("time_in_gateway_seconds", help, apps, |s| &s.gateway);
        let help = "Seconds until a new connection to an endpoint is there";
        self.histograms("connect_duration_seconds", help, apps, |s| &s.connect);
        let name = "upstream_duration_seconds";
        self.head(
            name,
            "histogram",
            "Seconds from the request sent to an endpoint to the head of its answer",
        );
        for (app, version, stats) in versions(apps) {
            let labels = format!("app=\"{app}\",version=\"{version}\"");
            let sum = stats.sum(|s| &s.upstream.sum_us);
            self.histogram(name, &labels, |i| stats.sum(|s| &s.upstream.counts[i]), sum);
        }
    }

    /// Endpoints by app, version and state.
    pub(crate) fn endpoints<'a>(&mut self, counts: impl Iterator<Item = ((&'a str, &'a str, &'static str), usize)>) {
        self.head("app_endpoints", "gauge", "Endpoints by app, version and state");
        for ((app, version, state), n) in counts {
            let labels = format!("app=\"{app}\",version=\"{version}\",state=\"{state}\"");
            self.line("app_endpoints", &labels, n);
        }
    }

    fn histograms(&mut self, name: &str, help: &str, apps: &[AppLines<'_>], of: fn(&AppStripe) -> &Histogram) {
        self.head(name, "histogram", help);
        for AppLines { app, stats, .. } in apps {
            let count = |i: usize| stats.sum(|s| &of(s).counts[i]);
            let sum = stats.sum(|s| &of(s).sum_us);
            self.histogram(name, &format!("app=\"{app}\""), count, sum);
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, count: impl Fn(usize) -> u64, sum_us: u64) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (i, bound) in BOUNDS.iter().enumerate() {
            total += count(i);
            let le = *bound as f64 / 1e6;
            self.line(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"{le}\""), total);
        }
        total += count(BOUNDS.len());
        self.line(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"+Inf\""), total);
        self.line(&format!("{name}_sum"), labels, sum_us as f64 / 1e6);
        self.line(&format!("{name}_count"), labels, total);
    }

    /// One histogram without labels.
    pub(crate) fn plain_histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        self.histogram(name, "", |i| histogram.counts[i].get(), histogram.sum_us.get());
    }

    pub(crate) fn text(self) -> String {
        self.0
    }
}

/// Versions of which there was a request, with their apps.
fn versions<'a>(apps: &'a [AppLines<'a>]) -> impl Iterator<Item = (&'a str, &'a model::Version, &'a VersionStats)> {
    let all = apps
        .iter()
        .flat_map(|a| a.versions.iter().map(|(v, s)| (a.app, v, &**s)));
    all.filter(|(_, _, stats)| stats.0.get().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let stats = AppStats::new(2);
        stats.of(0).duration.observe(Duration::from_micros(400));
        stats.of(1).duration.observe(Duration::from_millis(3));
        stats.of(1).duration.observe(Duration::from_secs(60));
        stats.of(1).classes[2].add(3);
        let mut page = Page::default();
        let version = VersionStats::default();
        version.of(1, 2).classes[5].add(2);
        version.of(0, 2).upstream.observe(Duration::from_millis(3));
        page.apps(&[AppLines {
            app: "hello",
            stats: &stats,
            in_flight: 1,
            versions: vec![
                ("1".parse().expect("version"), std::sync::Arc::new(version)),
                ("2".parse().expect("version"), std::sync::Arc::default()),
            ],
        }]);
        let text = page.text();
        for line in [
            "caas_gateway_requests_total{app=\"hello\",class=\"2xx\"} 3",
            "caas_gateway_requests_in_flight{app=\"hello\"} 1",
            "caas_gateway_version_requests_total{app=\"hello\",version=\"1\",class=\"5xx\"} 2",
            "caas_gateway_upstream_duration_seconds_count{app=\"hello\",version=\"1\"} 1",
            "caas_gateway_request_duration_seconds_bucket{app=\"hello\",le=\"0.0005\"} 1",
            "caas_gateway_request_duration_seconds_bucket{app=\"hello\",le=\"0.005\"} 2",
            "caas_gateway_request_duration_seconds_bucket{app=\"hello\",le=\"10\"} 2",
            "caas_gateway_request_duration_seconds_bucket{app=\"hello\",le=\"+Inf\"} 3",
            "caas_gateway_request_duration_seconds_count{app=\"hello\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(!text.contains("version=\"2\""), "nothing went there");
        assert_eq!(stats.requests(), 3);
    }
}
