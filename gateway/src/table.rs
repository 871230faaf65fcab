//! The route table: an immutable picture of all apps that requests read without locks. Only the follower makes tables;
//! a change copies one shard, whatever the number of apps.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ahash::RandomState;
use model::{AppConfig, AppId, Version};

use crate::balance::Plan;
use crate::config::Config;
use crate::eject::{Clock, Endpoint, State};
use crate::limit::{Networks, RetryBudget};
use crate::metrics::{AppStats, VersionStats};
use crate::rate::Limiter;
use crate::route::{self, Target};
use crate::tcp;

/// What stays of an app while its configuration and endpoints come and go.
#[derive(Debug)]
pub(crate) struct AppShared {
    pub(crate) id: AppId,
    /// No other has had this number.
    pub(crate) number: u64,
    /// Requests under way.
    pub(crate) in_flight: AtomicU32,
    pub(crate) budget: RetryBudget,
    /// When it was last asked for while no connect got through, in milliseconds; see [`crate::reach`].
    pub(crate) wanted: AtomicU64,
    /// Whose turn it is; shared by all workers so that the turn is the same over all connections.
    pub(crate) turn: AtomicU32,
    /// Counters, made at the first request.
    stats: OnceLock<AppStats>,
    /// Counters by version.
    versions: Mutex<BTreeMap<Version, Arc<VersionStats>>>,
    /// Counters of TCP connections, made at the first one.
    tcp: OnceLock<tcp::metrics::Stats>,
    workers: usize,
}

/// Versions without endpoints whose counters are kept per app.
const PAST_VERSIONS: usize = 10;

impl AppShared {
    pub(crate) fn new(id: AppId, workers: usize) -> Self {
        Self {
            id,
            number: next_number(),
            in_flight: AtomicU32::new(0),
            budget: RetryBudget::default(),
            wanted: AtomicU64::new(0),
            turn: AtomicU32::new(rand::random()),
            stats: OnceLock::new(),
            versions: Mutex::default(),
            tcp: OnceLock::new(),
            workers,
        }
    }

    pub(crate) fn stats(&self) -> &AppStats {
        self.stats.get_or_init(|| AppStats::new(self.workers))
    }

    /// The counters of a version. Those of a few past versions are kept, the rest are forgotten.
    pub(crate) fn version(&self, version: &Version) -> Arc<VersionStats> {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = versions.get(version) {
            return Arc::clone(known);
        }
        let mut past = versions.values().filter(|s| Arc::strong_count(s) == 1).count();
        versions.retain(|_, stats| {
            let forget = past >= PAST_VERSIONS && Arc::strong_count(stats) == 1;
            past -= usize::from(forget);
            !forget
        });
        Arc::clone(versions.entry(version.clone()).or_default())
    }

    /// All versions' counters.
    pub(crate) fn versions(&self) -> Vec<(Version, Arc<VersionStats>)> {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.iter().map(|(v, s)| (v.clone(), Arc::clone(s))).collect()
    }

    pub(crate) fn tcp(&self) -> &tcp::metrics::Stats {
        self.tcp.get_or_init(|| tcp::metrics::Stats::new(self.workers))
    }

    /// The counters if there was a TCP connection.
    pub(crate) fn tcp_if_any(&self) -> Option<&tcp::metrics::Stats> {
        self.tcp.get()
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
            limiter: Limiter::new(&config.limits, gateway).map(Box::new),
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
    /// How endpoints are chosen; `None`: each in turn.
    pub(crate) plan: Option<Box<Plan>>,
}

impl App {
    /// The app with these endpoints; `region` is the gateway's own.
    pub(crate) fn new(
        shared: Arc<AppShared>,
        settings: Arc<Settings>,
        configured: bool,
        endpoints: Box<[Arc<Endpoint>]>,
        region: &str,
    ) -> Self {
        Self {
            plan: Plan::new(&settings.config, &endpoints, region),
            shared,
            settings,
            configured,
            endpoints,
        }
    }

    /// Whether one more endpoint may be left out for giving no answers: never more than half of them, since what looks like bad
    /// endpoints may be a bad dependency of them all.
    pub(crate) fn may_eject(&self, clock: Clock, now: Instant) -> bool {
        let out = self.endpoints.iter().filter(|e| e.state(clock, now) != State::Ready);
        (out.count() + 1) * 2 <= self.endpoints.len()
    }
}

/// What of a request named its app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By<'a> {
    /// The host, whatever the path.
    Host,
    /// This path of the host, which is the request's or above it.
    Path(&'a str),
    /// The host; another path may be another app's.
    Rest,
}

type Shard = HashMap<Box<str>, Arc<App>, RandomState>;

/// Number of shards: at 100,000 apps a change copies some 50 entries.
const SHARDS: usize = 2_048;

/// All apps, by name (`hello`) and by custom domain (`shop.example.com`, or `.example.com` for `*.example.com`, or with a path,
/// `shop.example.com/api`; names have no dot, domains have one).
#[derive(Debug)]
pub(crate) struct Table {
    shards: Box<[Arc<Shard>]>,
    /// How many of the domains are wildcards.
    wildcards: usize,
    /// The apps that have paths of a host, the longest path first.
    paths: Arc<HashMap<Box<str>, Arc<[Below]>, RandomState>>,
    /// Which one it is: no other has had this number.
    pub(crate) made: u64,
}

/// What an app has of a host: this path and all below it.
#[derive(Clone, Debug)]
struct Below {
    path: Box<str>,
    app: Arc<App>,
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Default for Table {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self {
            shards: vec![empty; SHARDS].into(),
            wildcards: 0,
            paths: Arc::default(),
            made: next_number(),
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
    /// The app that a host and a path name, at a gateway for the domain `own`, and what did it. What no app has of a host by
    /// path is the app's that has the host, and a host that no app has by itself may fall under a wildcard.
    #[inline]
    pub(crate) fn find(&self, target: Target<'_>, own: &str, path: &str) -> Option<(&Arc<App>, By<'_>)> {
        let name = match target {
            Target::App(app) | Target::Version { app, .. } => return Some((self.get(app)?, By::Host)),
            Target::Domain(name) if name.contains('.') => name,
            Target::Domain(_) => return None,
        };
        let mut by = By::Host;
        if !self.paths.is_empty()
            && let Some(paths) = self.paths.get(name)
        {
            if let Some(below) = paths.iter().find(|below| route::is_below(path, &below.path)) {
                return Some((&below.app, By::Path(&below.path)));
            }
            by = By::Rest;
        }
        let exact = self.get(name);
        let app = match exact {
            None if self.wildcards > 0 => self.get(route::wildcard(name, own)?),
            exact => exact,
        };
        Some((app?, by))
    }

    /// The app under that name or domain.
    #[inline]
    pub(crate) fn get(&self, key: &str) -> Option<&Arc<App>> {
        self.shards[shard_of(key)].get(key)
    }

    /// A table in which each key has its new app, or none.
    pub(crate) fn with(&self, changes: impl IntoIterator<Item = (Box<str>, Option<Arc<App>>)>) -> Self {
        let mut next = Self {
            shards: self.shards.clone(),
            wildcards: self.wildcards,
            paths: Arc::clone(&self.paths),
            made: next_number(),
        };
        for (key, app) in changes {
            if let Some(at) = key.find('/') {
                next.turn(&key[..at], &key[at..], app.as_ref());
            }
            let shard = Arc::make_mut(&mut next.shards[shard_of(&key)]);
            let (wildcard, is) = (key.starts_with('.'), app.is_some());
            let was = match app {
                Some(app) => shard.insert(key, app),
                None => shard.remove(&key),
            };
            if wildcard {
                next.wildcards = next.wildcards + usize::from(is) - usize::from(was.is_some());
            }
        }
        next
    }

    /// Whether an app has this path of the host.
    pub(crate) fn is_by_path(&self, host: &str, path: &str) -> bool {
        let mut paths = self.paths.get(host).into_iter().flat_map(|paths| paths.iter());
        paths.any(|below| route::is_below(path, &below.path))
    }

    /// Gives this path of a host to the app, or to none.
    fn turn(&mut self, host: &str, path: &str, app: Option<&Arc<App>>) {
        let all = Arc::make_mut(&mut self.paths);
        let before = all.remove(host);
        let others = before
            .iter()
            .flat_map(|b| b.iter())
            .filter(|below| *below.path != *path);
        let new = app.map(|app| Below {
            path: path.into(),
            app: Arc::clone(app),
        });
        let mut after: Vec<Below> = others.cloned().chain(new).collect();
        after.sort_by_key(|below| std::cmp::Reverse(below.path.len()));
        if !after.is_empty() {
            all.insert(host.into(), after.into());
        }
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

    #[test]
    fn counters_of_past_versions_are_forgotten_at_last() {
        let shared = AppShared::new("hello".parse().expect("id"), 1);
        let kept = shared.version(&"0".parse().expect("version"));
        for i in 1..100 {
            shared.version(&format!("{i}").parse().expect("version"));
        }
        assert_eq!(shared.versions().len(), PAST_VERSIONS + 1);
        assert!(Arc::ptr_eq(&kept, &shared.version(&"0".parse().expect("version"))));
    }

    #[test]
    fn wildcards_are_looked_up_only_where_there_are_some() {
        let one = Arc::new(crate::balance::tests::app(AppConfig::default(), &["1"]));
        let other = Arc::new(crate::balance::tests::app(AppConfig::default(), &["1"]));
        let found = |table: &Table, name: &str| {
            let found = table.find(route::target(name, "apps.test"), "apps.test", "/");
            found.map(|(app, _)| if Arc::ptr_eq(app, &one) { 1 } else { 2 })
        };
        let wild = |app: &Arc<App>| -> (Box<str>, Option<Arc<App>>) { (".example.com".into(), Some(Arc::clone(app))) };
        let table = Table::default().with([wild(&one), ("shop.example.com".into(), Some(Arc::clone(&other)))]);
        let table = table.with([wild(&one)]);
        assert_eq!(table.wildcards, 1);
        assert_eq!(found(&table, "any.example.com"), Some(1));
        assert_eq!(found(&table, "shop.example.com"), Some(2));
        for none in [
            "example.com",
            "a.b.example.com",
            "any.example.org",
            "any.apps.test",
            "apps.test",
        ] {
            assert_eq!(found(&table, none), None, "{none}");
        }
        let table = table.with([(".example.com".into(), None), (".example.org".into(), None)]);
        assert_eq!((table.wildcards, found(&table, "any.example.com")), (0, None));
    }

    #[test]
    fn the_longest_path_of_a_host_wins() {
        let app = || Arc::new(crate::balance::tests::app(AppConfig::default(), &["1"]));
        let apps = [app(), app(), app(), app()];
        let put = |key: &str, i: usize| -> (Box<str>, Option<Arc<App>>) { (key.into(), Some(Arc::clone(&apps[i]))) };
        let found = |table: &Table, name: &str, path: &str| {
            let (app, by) = table.find(route::target(name, "apps.test"), "apps.test", path)?;
            if let By::Path(prefix) = by {
                assert!(route::is_below(path, prefix));
            }
            Some((apps.iter().position(|a| Arc::ptr_eq(a, app))?, by == By::Host))
        };
        let table = Table::default().with([put("a.b/api", 1), put("a.b/api/v2", 2), put("c.b", 0), put(".b.c", 3)]);
        let table = table.with([put("a.b", 0), put("a.b/api", 1), put("x.b.c/api", 1)]);
        for (name, path, want) in [
            ("a.b", "/api/v2/x", Some((2, false))),
            ("a.b", "/api/v2x", Some((1, false))),
            ("a.b", "/apiv", Some((0, false))),
            ("a.b", "*", Some((0, false))),
            ("c.b", "/api", Some((0, true))),
            ("x.b.c", "/api", Some((1, false))),
            ("x.b.c", "/", Some((3, false))),
            ("y.b.c", "/api", Some((3, true))),
            ("d.b", "/api", None),
        ] {
            assert_eq!(found(&table, name, path), want, "{name}{path}");
        }
        assert_eq!(table.len(), 6, "each is a route");
        let table = table.with([
            ("a.b/api".into(), None),
            ("a.b/api/v2".into(), None),
            ("x.b.c/api".into(), None),
        ]);
        assert_eq!(found(&table, "a.b", "/api/v2"), Some((0, true)));
        assert!(table.paths.is_empty());
    }

    #[test]
    fn a_hundred_thousand_apps() {
        let one = Arc::new(crate::balance::tests::app(AppConfig::default(), &["1"]));
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
