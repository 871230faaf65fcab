//! The route table: an immutable picture of all apps that requests read without locks. Only the follower makes tables;
//! a change copies one shard, whatever the number of apps.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ahash::RandomState;
use model::{AppConfig, AppId};

use crate::config::Config;
use crate::eject::{Clock, Endpoint, Entered, State};
use crate::limit::{Limiter, Networks, RetryBudget};
use crate::metrics::AppStats;

/// What stays of an app while its configuration and endpoints come and go.
#[derive(Debug)]
pub(crate) struct AppShared {
    pub(crate) id: AppId,
    /// Requests under way.
    pub(crate) in_flight: AtomicU32,
    pub(crate) budget: RetryBudget,
    /// Whose turn it is; shared by all workers so that the turn is the same over all connections.
    turn: AtomicU32,
    /// Counters, made at the first request.
    stats: OnceLock<AppStats>,
    workers: usize,
}

impl AppShared {
    pub(crate) fn new(id: AppId, workers: usize) -> Self {
        Self {
            id,
            in_flight: AtomicU32::new(0),
            budget: RetryBudget::default(),
            turn: AtomicU32::new(rand::random()),
            stats: OnceLock::new(),
            workers,
        }
    }

    pub(crate) fn stats(&self) -> &AppStats {
        self.stats.get_or_init(|| AppStats::new(self.workers))
    }

    /// The counters if there was a request.
    pub(crate) fn stats_if_any(&self) -> Option<&AppStats> {
        self.stats.get()
    }
}

/// What an app's configuration means at this gateway, all defaults filled in.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) config: AppConfig,
    pub(crate) connect: Duration,
    pub(crate) response: Duration,
    pub(crate) idle: Duration,
    /// `None`: the gateway's time for tunnels.
    pub(crate) tunnel_idle: Duration,
    pub(crate) max_body: u64,
    pub(crate) max_in_flight: u32,
    pub(crate) deny: Networks,
    pub(crate) limiter: Option<Box<Limiter>>,
}

impl Settings {
    pub(crate) fn new(config: AppConfig, gateway: &Config) -> Self {
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        let t = &config.timeouts;
        let tunnel_idle = or(t.idle_s.into(), gateway.tunnel_idle_timeout_s);
        Self {
            connect: Duration::from_millis(or(t.connect_ms.into(), gateway.connect_timeout_ms)),
            response: Duration::from_secs(or(t.response_s.into(), gateway.response_timeout_s)),
            idle: Duration::from_secs(or(t.idle_s.into(), gateway.answer_idle_timeout_s)),
            tunnel_idle: Duration::from_secs(tunnel_idle),
            max_body: or(config.limits.max_body_bytes, gateway.max_body_bytes),
            max_in_flight: match config.limits.max_in_flight {
                0 => gateway.max_in_flight_per_app,
                n => n,
            },
            deny: Networks::new(&config.limits.deny),
            limiter: Limiter::new(&config.limits, gateway.clients_tracked).map(Box::new),
            config,
        }
    }
}

/// One app as requests see it.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) shared: Arc<AppShared>,
    pub(crate) settings: Arc<Settings>,
    /// There is a configuration in the registry; else the defaults hold.
    pub(crate) configured: bool,
    pub(crate) endpoints: Box<[Arc<Endpoint>]>,
}

/// Endpoints already tried for a request: never tried again, except after a stale kept connection.
#[derive(Debug, Default)]
pub(crate) struct Tried(Vec<(u64, bool)>);

impl Tried {
    /// `stale`: only a kept connection failed, which says nothing about the endpoint.
    pub(crate) fn add(&mut self, endpoint: u64, stale: bool) {
        match self.0.iter_mut().find(|(id, _)| *id == endpoint) {
            Some(entry) => entry.1 = false,
            None => self.0.push((endpoint, stale)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, endpoint: u64) -> bool {
        self.0.iter().any(|(id, _)| *id == endpoint)
    }

    fn was_stale(&self, endpoint: u64) -> bool {
        self.0.contains(&(endpoint, true))
    }
}

impl App {
    /// The endpoint whose turn it is, counted as in use; `None` when there is none left to try.
    ///
    /// First choice: in turn over those that are not left out. When all are left out they are all tried (failing open:
    /// a gateway that is wrong about health must not make an outage of it). Last: one whose kept connection was stale.
    ///
    /// `probe` is called for an endpoint whose time is over: it stays left out until the probe has connected, so that
    /// no request ever waits for a host that is still gone.
    pub(crate) fn pick(
        &self,
        version: Option<&str>,
        tried: &Tried,
        clock: Clock,
        now: Instant,
        mut probe: impl FnMut(&Arc<Endpoint>),
    ) -> Option<Entered> {
        let n = self.endpoints.len();
        if n == 0 {
            return None;
        }
        let start = self.shared.turn.fetch_add(1, Ordering::Relaxed) as usize % n;
        let in_turn = || {
            let (before, after) = self.endpoints.split_at(start);
            after
                .iter()
                .chain(before)
                .filter(|e| version.is_none_or(|v| e.key.version.as_str().eq_ignore_ascii_case(v)))
        };
        for endpoint in in_turn() {
            if !tried.is_empty() && tried.has(endpoint.id) {
                continue;
            }
            match endpoint.state(clock, now) {
                State::Ready => {
                    if let Some(entered) = endpoint.enter() {
                        return Some(entered);
                    }
                }
                State::Probe if endpoint.claim_probe(clock, now, self.settings.connect) => probe(endpoint),
                State::Probe | State::LeftOut => {}
            }
        }
        in_turn()
            .filter(|e| !tried.has(e.id))
            .chain(in_turn().filter(|e| tried.was_stale(e.id)))
            .find_map(Endpoint::enter)
    }
}

type Shard = HashMap<Box<str>, Arc<App>, RandomState>;

/// Number of shards: at 100,000 apps a change copies some 50 entries.
const SHARDS: usize = 2_048;

/// All apps, by name (`hello`) and by custom domain (`shop.example.com`; names have no dot, domains have one).
#[derive(Clone, Debug)]
pub(crate) struct Table {
    shards: Box<[Arc<Shard>]>,
}

impl Default for Table {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self {
            shards: vec![empty; SHARDS].into(),
        }
    }
}

fn shard_of(key: &str) -> usize {
    // FNV-1a over the end of the name: names of one customer often begin alike.
    let bytes = key.as_bytes();
    let tail = &bytes[bytes.len().saturating_sub(12)..];
    let hash = tail.iter().fold(0xcbf2_9ce4_8422_2325u64 ^ bytes.len() as u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 24) as usize % SHARDS
}

impl Table {
    /// The app under that name or domain.
    #[inline]
    pub(crate) fn get(&self, key: &str) -> Option<&Arc<App>> {
        self.shards[shard_of(key)].get(key)
    }

    /// A table in which each key has its new app, or none.
    pub(crate) fn with(&self, changes: impl IntoIterator<Item = (Box<str>, Option<Arc<App>>)>) -> Self {
        let mut next = self.clone();
        for (key, app) in changes {
            let shard = Arc::make_mut(&mut next.shards[shard_of(&key)]);
            match app {
                Some(app) => shard.insert(key, app),
                None => shard.remove(&key),
            };
        }
        next
    }

    /// Number of names and domains.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.len()).sum()
    }

    /// Every key with its app.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Arc<App>)> {
        self.shards.iter().flat_map(|s| s.iter().map(|(k, a)| (&**k, a)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eject::tests::key;

    fn app(versions: &[&str]) -> App {
        let endpoints = versions
            .iter()
            .enumerate()
            .map(|(i, v)| {
                let address = format!("127.0.0.1:{}", 2_000 + i).parse().expect("address");
                Arc::new(Endpoint::new(key("hello", v, &format!("c{i}")), address))
            })
            .collect();
        App {
            shared: Arc::new(AppShared::new("hello".parse().expect("id"), 1)),
            settings: Arc::new(Settings::new(AppConfig::default(), &Config::default())),
            configured: false,
            endpoints,
        }
    }

    fn port(entered: Option<&Entered>) -> Option<u16> {
        entered.map(|e| e.endpoint().address.port())
    }

    #[test]
    fn each_endpoint_in_turn() {
        let app = app(&["1", "1", "1"]);
        let (clock, now) = (Clock::new(), Instant::now());
        let got: Vec<_> = (0..6)
            .map(|_| port(app.pick(None, &Tried::default(), clock, now, |_| {}).as_ref()))
            .collect();
        assert_eq!(got[..3], got[3..]);
        let mut sorted = got[..3].to_vec();
        sorted.sort();
        assert_eq!(sorted, [Some(2_000), Some(2_001), Some(2_002)]);
    }

    #[test]
    fn a_version_gets_only_its_endpoints() {
        let app = app(&["1", "RC2", "1"]);
        let (clock, now) = (Clock::new(), Instant::now());
        for _ in 0..5 {
            assert_eq!(
                port(app.pick(Some("rc2"), &Tried::default(), clock, now, |_| {}).as_ref()),
                Some(2_001)
            );
        }
        assert!(app.pick(Some("3"), &Tried::default(), clock, now, |_| {}).is_none());
    }

    #[test]
    fn failed_ones_are_left_out_until_all_are() {
        let app = app(&["1", "1"]);
        let (clock, now) = (Clock::new(), Instant::now());
        app.endpoints[0].failed(clock, now);
        for _ in 0..4 {
            assert_eq!(
                port(app.pick(None, &Tried::default(), clock, now, |_| {}).as_ref()),
                Some(2_001)
            );
        }
        app.endpoints[1].failed(clock, now);
        let mut tried = Tried::default();
        let first = app.pick(None, &tried, clock, now, |_| {}).expect("fails open");
        tried.add(first.endpoint().id, false);
        let second = app.pick(None, &tried, clock, now, |_| {}).expect("the other");
        assert_ne!(first.endpoint().id, second.endpoint().id);
        tried.add(second.endpoint().id, false);
        assert!(app.pick(None, &tried, clock, now, |_| {}).is_none(), "never twice");
    }

    #[test]
    fn a_stale_connection_allows_one_more_try() {
        let app = app(&["1"]);
        let (clock, now) = (Clock::new(), Instant::now());
        let mut tried = Tried::default();
        let id = app.endpoints[0].id;
        tried.add(id, true);
        assert!(app.pick(None, &tried, clock, now, |_| {}).is_some());
        tried.add(id, false);
        assert!(app.pick(None, &tried, clock, now, |_| {}).is_none());
    }

    #[test]
    fn a_hundred_thousand_apps() {
        let one = Arc::new(app(&["1"]));
        let keys = (0..100_000).map(|i| format!("app{i}").into_boxed_str());
        let table = Table::default().with(keys.map(|k| (k, Some(Arc::clone(&one)))));
        assert_eq!(table.len(), 100_000);
        assert!(table.get("app99999").is_some() && table.get("app100000").is_none());
        let fullest = table.shards.iter().map(|s| s.len()).max().expect("shards");
        assert!(
            fullest < 400,
            "the names spread over the shards, at most {fullest} in one"
        );
        let next = table.with([("app5".into(), None)]);
        assert!(next.get("app5").is_none() && table.get("app5").is_some());
    }
}
