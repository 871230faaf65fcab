use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::AppConfig;
use model::config::{Balance, Limits, Sticky};
use proptest::prelude::*;

use super::*;
use crate::config::Config;
use crate::eject::tests::key;
use crate::table::{AppShared, Settings};

/// App `hello` with an endpoint of each of these versions, at the ports from 2,000 on; they came at `since`.
fn app_since(config: AppConfig, endpoints: &[(&str, u64)]) -> App {
    app_in("", config, endpoints, &[])
}

/// The same at a gateway in `region`, with each endpoint's own region.
fn app_in(region: &str, config: AppConfig, endpoints: &[(&str, u64)], regions: &[&str]) -> App {
    let endpoints: Box<[Arc<Endpoint>]> = endpoints
        .iter()
        .enumerate()
        .map(|(i, (version, since))| {
            let address = format!("127.0.0.1:{}", 2_000 + i).parse().expect("address");
            Arc::new(Endpoint::new(
                key("hello", version, &format!("c{i}")),
                address,
                *since,
                Arc::default(),
            ))
        })
        .collect();
    for (endpoint, region) in endpoints.iter().zip(regions) {
        let load = format!(
            r#"{{"host":"h","region":"{region}","cpu_milli":1,"memory_bytes":1,"memory_limit_bytes":2,"at":3}}"#
        );
        endpoint.set_load(Some(Arc::new(serde_json::from_str(&load).expect("a load"))));
    }
    App::new(
        Arc::new(AppShared::new("hello".parse().expect("id"), 1)),
        Arc::new(Settings::new(config, &Config::default())),
        false,
        endpoints,
        region,
    )
}

pub(crate) fn app(config: AppConfig, versions: &[&str]) -> App {
    let endpoints: Vec<_> = versions.iter().map(|v| (*v, 0)).collect();
    app_since(config, &endpoints)
}

fn balanced(balance: Balance) -> AppConfig {
    AppConfig {
        balance,
        ..AppConfig::default()
    }
}

fn weighted(weights: &[(&str, u32)]) -> AppConfig {
    AppConfig {
        weights: weights.iter().map(|(v, w)| (v.parse().expect("version"), *w)).collect(),
        ..AppConfig::default()
    }
}

/// A client of an app at one instant.
struct At<'a> {
    app: &'a App,
    clock: Clock,
    now: Instant,
}

impl<'a> At<'a> {
    fn new(app: &'a App) -> Self {
        Self {
            app,
            clock: Clock::new(),
            now: Instant::now(),
        }
    }

    fn pick(&self, ask: &Ask, tried: &Tried) -> Result<Entered, Unpicked> {
        self.app.pick(ask, tried, self.clock, self.now, |_| {})
    }

    /// The index of the endpoint that a request gets which is over at once.
    fn one(&self, ask: &Ask) -> Option<usize> {
        let entered = self.pick(ask, &Tried::default()).ok()?;
        Some(usize::from(entered.endpoint().address.port()) - 2_000)
    }

    /// How many of `n` requests each endpoint gets.
    fn counts(&self, n: usize, ask: impl Fn(usize) -> Ask) -> Vec<usize> {
        let mut counts = vec![0; self.app.endpoints.len()];
        for i in 0..n {
            counts[self.one(&ask(i)).expect("an endpoint")] += 1;
        }
        counts
    }
}

fn anyone(_: usize) -> Ask {
    Ask::default()
}

fn of(version: &str) -> Ask {
    Ask {
        version: Some(version.into()),
        ..Ask::default()
    }
}

fn keyed(i: usize) -> Ask {
    Ask {
        key: Some(hash(&i.to_be_bytes())),
        ..Ask::default()
    }
}

#[test]
fn each_endpoint_in_turn() {
    let app = app(AppConfig::default(), &["1", "1", "1"]);
    assert!(app.plan.is_none(), "turns need no plan");
    assert_eq!(At::new(&app).counts(300, anyone), [100, 100, 100]);
    let capped = self::app(
        AppConfig {
            limits: Limits {
                max_in_flight_per_endpoint: 5,
                ..Limits::default()
            },
            ..AppConfig::default()
        },
        &["1", "1", "1"],
    );
    assert_eq!(At::new(&capped).counts(300, anyone), [100, 100, 100]);
}

#[test]
fn who_stands_beside_one_that_is_left_out_gets_no_more_than_others() {
    let app = app(AppConfig::default(), &["1"; 4]);
    let at = At::new(&app);
    app.endpoints[1].failed(at.clock, at.now);
    assert_eq!(at.counts(300, anyone), [100, 0, 100, 100]);
}

#[test]
fn a_version_gets_only_its_endpoints() {
    for config in [
        AppConfig::default(),
        weighted(&[("1", 100)]),
        balanced(Balance::LeastRequest),
    ] {
        let app = app(config, &["1", "RC2", "1"]);
        let at = At::new(&app);
        assert_eq!(at.counts(5, |_| of("rc2")), [0, 5, 0]);
        assert_eq!(at.one(&of("3")), None);
    }
}

#[test]
fn failed_ones_are_left_out_until_all_are() {
    for config in [
        AppConfig::default(),
        balanced(Balance::PeakEwma),
        balanced(Balance::ConsistentHash),
    ] {
        let app = app(config, &["1", "1"]);
        let at = At::new(&app);
        app.endpoints[0].failed(at.clock, at.now);
        assert_eq!(at.counts(4, keyed), [0, 4]);
        app.endpoints[1].failed(at.clock, at.now);
        let mut tried = Tried::default();
        let first = at.pick(&keyed(1), &tried).expect("fails open");
        tried.add(first.endpoint().id, false);
        let second = at.pick(&keyed(1), &tried).expect("the other");
        assert_ne!(first.endpoint().id, second.endpoint().id);
        tried.add(second.endpoint().id, false);
        assert_eq!(at.pick(&keyed(1), &tried).err(), Some(Unpicked::None), "never twice");
    }
}

#[test]
fn ejected_by_an_operator_comes_last() {
    let app = app(AppConfig::default(), &["1", "1"]);
    let at = At::new(&app);
    app.endpoints[0].eject(at.clock, at.now, Duration::from_secs(300));
    app.endpoints[1].failed(at.clock, at.now);
    assert_eq!(at.counts(10, anyone), [0, 10]);
}

#[test]
fn a_stale_connection_allows_one_more_try() {
    for config in [AppConfig::default(), balanced(Balance::LeastRequest)] {
        let app = app(config, &["1"]);
        let at = At::new(&app);
        let mut tried = Tried::default();
        let id = app.endpoints[0].id;
        tried.add(id, true);
        assert!(at.pick(&Ask::default(), &tried).is_ok());
        tried.add(id, false);
        assert!(at.pick(&Ask::default(), &tried).is_err());
    }
}

#[test]
fn versions_get_their_shares_exactly() {
    let app = app(weighted(&[("1", 99), ("2", 1), ("3", 0)]), &["1", "1", "1", "2", "3"]);
    let counts = At::new(&app).counts(100_000, anyone);
    assert!(counts[3].abs_diff(1_000) <= 10, "{counts:?}");
    assert_eq!(counts[4], 0);
    let each = counts[0];
    assert!(counts[..3].iter().all(|c| c.abs_diff(each) <= 1), "{counts:?}");
}

#[test]
fn a_share_without_endpoints_goes_to_the_others() {
    let gone = app(weighted(&[("1", 50), ("2", 50)]), &["1", "1"]);
    assert_eq!(At::new(&gone).counts(10, anyone), [5, 5]);
    let none = app(weighted(&[("9", 100)]), &["1", "1"]);
    assert_eq!(At::new(&none).counts(10, anyone), [5, 5], "no named version is there");
    let broken = app(weighted(&[("1", 50), ("2", 50)]), &["1", "2", "3"]);
    let at = At::new(&broken);
    broken.endpoints[1].failed(at.clock, at.now);
    assert_eq!(at.counts(100, anyone), [100, 0, 0]);
}

#[test]
fn another_try_stays_with_the_version() {
    let app = app(weighted(&[("1", 50), ("2", 50)]), &["1", "1", "1", "2"]);
    let at = At::new(&app);
    for _ in 0..50 {
        let mut tried = Tried::default();
        tried.add(app.endpoints[0].id, false);
        let next = at.pick(&Ask::default(), &tried).expect("another");
        assert_eq!(next.endpoint().key.version.as_str(), "1");
    }
}

#[test]
fn the_less_busy_of_two() {
    for balance in [Balance::LeastRequest, Balance::PeakEwma] {
        let app = app(balanced(balance), &["1"; 4]);
        let at = At::new(&app);
        let _busy: Vec<_> = (0..5).map(|_| app.endpoints[0].enter()).collect();
        let counts = at.counts(4_000, anyone);
        assert_eq!(counts[0], 0, "it loses against each other one: {counts:?}");
        assert!(counts[1..].iter().all(|c| (1_100..1_600).contains(c)), "{counts:?}");
    }
}

#[test]
fn the_slower_of_two_gets_little_and_is_tried_again() {
    let app = app(balanced(Balance::PeakEwma), &["1"; 4]);
    let mut at = At::new(&app);
    let mut counts = [0u32; 4];
    let start = at.now;
    for i in 0..20_000u64 {
        at.now = start + Duration::from_millis(i);
        let i = at.one(&Ask::default()).expect("an endpoint");
        counts[i] += 1;
        let us = if i == 0 { 201_000 } else { 1_000 };
        app.endpoints[i].latency().observe(us, at.clock.millis(at.now));
    }
    assert!(counts[0] < 20_000 / 4 / 3, "{counts:?}");
    at.now = start + Duration::from_secs(300);
    assert!(at.counts(100, anyone)[0] > 0, "it may have become better");
}

#[test]
fn keys_stay_and_few_move() {
    let n = 10;
    let app = app(balanced(Balance::ConsistentHash), &["1"; 10]);
    let at = At::new(&app);
    let before: Vec<_> = (0..20_000).map(|i| at.one(&keyed(i)).expect("an endpoint")).collect();
    let mut counts = vec![0; n];
    before.iter().for_each(|i| counts[*i] += 1);
    assert!(counts.iter().all(|c| (1_800..2_200).contains(c)), "{counts:?}");
    let again: Vec<_> = (0..20_000).map(|i| at.one(&keyed(i)).expect("an endpoint")).collect();
    assert_eq!(before, again);
    // One fails: only its keys move, to all the others.
    app.endpoints[3].failed(at.clock, at.now);
    for (i, place) in before.iter().enumerate() {
        let now = at.one(&keyed(i)).expect("an endpoint");
        assert!(now == *place || *place == 3, "key {i} moved from {place} to {now}");
        assert_ne!(now, 3);
    }
    // One more comes: it takes its share and nothing else moves.
    let more = self::app(balanced(Balance::ConsistentHash), &["1"; 11]);
    let at = At::new(&more);
    let moved = before.iter().enumerate().filter(|(i, place)| {
        let now = at.one(&keyed(*i)).expect("an endpoint");
        assert!(now == **place || now == 10);
        now != **place
    });
    let moved = moved.count();
    assert!(
        (1_600..2_100).contains(&moved),
        "{moved} of 20,000 moved, a share is 1,818"
    );
}

#[test]
fn no_endpoint_has_more_than_its_bound() {
    let app = app(balanced(Balance::ConsistentHash), &["1"; 4]);
    let at = At::new(&app);
    // Everybody asks for the same.
    let _held: Vec<_> = (0..100)
        .map(|_| at.pick(&keyed(7), &Tried::default()).expect("an endpoint"))
        .collect();
    let most = app.endpoints.iter().map(|e| e.in_flight()).max().expect("endpoints");
    assert!((25..=32).contains(&most), "{most} of 100 at one of four");
}

#[test]
fn a_key_keeps_its_version() {
    let config = AppConfig {
        balance: Balance::ConsistentHash,
        ..weighted(&[("1", 80), ("2", 20)])
    };
    let app = app(config, &["1", "1", "2"]);
    let at = At::new(&app);
    let first = at.counts(5_000, keyed);
    assert_eq!(first, at.counts(5_000, keyed));
    assert!((850..1_150).contains(&first[2]), "{first:?}");
}

fn sticky(sticky: Sticky, config: AppConfig) -> AppConfig {
    AppConfig { sticky, ..config }
}

/// What a client keeps after an answer of endpoint `i`.
fn kept(app: &App, i: usize) -> Ask {
    let plan = app.plan.as_ref().expect("a plan");
    Ask {
        kept: plan.cookie(&Ask::default(), &app.endpoints, app.endpoints[i].id),
        ..Ask::default()
    }
}

#[test]
fn a_client_stays_at_its_endpoint_while_it_is_there() {
    let app = app(sticky(Sticky::Endpoint, balanced(Balance::RoundRobin)), &["1"; 3]);
    let at = At::new(&app);
    let ask = kept(&app, 1);
    assert!(ask.kept.is_some());
    let plan = app.plan.as_ref().expect("a plan");
    assert_eq!(
        plan.cookie(&ask, &app.endpoints, app.endpoints[1].id),
        None,
        "it has it already"
    );
    assert!(
        plan.cookie(&ask, &app.endpoints, app.endpoints[2].id).is_some(),
        "it has moved"
    );
    assert_eq!(at.counts(10, |_| kept(&app, 1)), [0, 10, 0]);
    let mut tried = Tried::default();
    tried.add(app.endpoints[1].id, false);
    assert!(
        at.pick(&ask, &tried)
            .is_ok_and(|e| e.endpoint().id != app.endpoints[1].id)
    );
    app.endpoints[1].failed(at.clock, at.now);
    assert_eq!(at.counts(10, |_| kept(&app, 1)), [5, 0, 5], "left out: it yields");
    app.endpoints[1].worked();
    app.endpoints[1].withdraw();
    assert_eq!(at.counts(10, |_| kept(&app, 1))[1], 0);
    let strange = Ask {
        kept: Some(Kept {
            version: 1,
            endpoint: Some(2),
        }),
        ..Ask::default()
    };
    assert!(at.one(&strange).is_some());
}

#[test]
fn a_client_stays_with_its_version_while_it_has_a_share() {
    let config = sticky(Sticky::Version, weighted(&[("1", 99), ("2", 1)]));
    let canary = app(config, &["1", "2", "1"]);
    let at = At::new(&canary);
    assert_eq!(at.counts(50, |_| kept(&canary, 1)), [0, 50, 0]);
    assert_eq!(at.counts(50, |_| kept(&canary, 0))[1], 0);
    let plan = canary.plan.as_ref().expect("a plan");
    assert_eq!(plan.cookie(&of("2"), &canary.endpoints, canary.endpoints[1].id), None);
    // The canary is aborted: its clients go back.
    let back = app(
        sticky(Sticky::Version, weighted(&[("1", 100), ("2", 0)])),
        &["1", "2", "1"],
    );
    assert_eq!(At::new(&back).counts(50, |_| kept(&canary, 1)), [25, 0, 25]);
    let endpoint = app(sticky(Sticky::Endpoint, weighted(&[("1", 100)])), &["1", "2"]);
    assert_eq!(
        At::new(&endpoint).counts(5, |_| kept(&endpoint, 1)),
        [5, 0],
        "so do those of its endpoints"
    );
}

#[test]
fn full_endpoints_are_passed_over_and_then_it_is_said() {
    for balance in [
        Balance::RoundRobin,
        Balance::LeastRequest,
        Balance::PeakEwma,
        Balance::ConsistentHash,
    ] {
        let config = AppConfig {
            limits: Limits {
                max_in_flight_per_endpoint: 2,
                ..Limits::default()
            },
            sticky: Sticky::Endpoint,
            ..balanced(balance)
        };
        let app = app(config, &["1"; 3]);
        let at = At::new(&app);
        let mut held: Vec<_> = (0..6)
            .map(|_| at.pick(&kept(&app, 1), &Tried::default()).expect("room"))
            .collect();
        assert!(app.endpoints.iter().all(|e| e.in_flight() == 2), "{balance:?}");
        assert_eq!(
            at.pick(&keyed(1), &Tried::default()).err(),
            Some(Unpicked::Full),
            "{balance:?}"
        );
        held.pop();
        assert!(at.pick(&keyed(1), &Tried::default()).is_ok());
    }
}

#[test]
fn a_new_endpoint_grows_into_its_share() {
    let modes = [Balance::RoundRobin, Balance::LeastRequest, Balance::ConsistentHash];
    for (balance, joined) in modes.into_iter().zip([500, 10, 500]) {
        let config = AppConfig {
            slow_start_s: 100,
            ..balanced(balance)
        };
        let app = app_since(config.clone(), &[("1", 0), ("1", 0), ("1", joined * 1_000)]);
        let mut at = At::new(&app);
        let start = at.now;
        let mut share_after = |s: u64| {
            at.now = start + Duration::from_secs(joined + s);
            at.counts(30_000, keyed)[2] as f64 / 10_000.0
        };
        let shares = [share_after(1), share_after(50), share_after(100), share_after(1_000)];
        // A share that is passed over goes to all: 0.1 of a third's turns are 0.1/2.1 of all.
        assert!((0.09..0.17).contains(&shares[0]), "{balance:?} {shares:?}");
        assert!((0.45..0.72).contains(&shares[1]), "{balance:?} {shares:?}");
        let whole = |share: f64| (0.93..1.07).contains(&share);
        assert!(whole(shares[2]) && whole(shares[3]), "{balance:?} {shares:?}");
        // All are new: none is slower than the others.
        let fresh = app_since(config, &[("1", joined * 1_000), ("1", joined * 1_000 + 100)]);
        let mut at = At::new(&fresh);
        at.now = start + Duration::from_secs(joined + 1);
        let counts = at.counts(2_000, keyed);
        assert!((850..1_150).contains(&counts[0]), "{balance:?} {counts:?}");
    }
}

#[test]
fn what_gives_no_answers_is_left_out_up_to_half() {
    let app = app(AppConfig::default(), &["1"; 5]);
    let at = At::new(&app);
    for endpoint in &app.endpoints {
        for _ in 0..10 {
            endpoint.gave_no_answer(at.clock, at.now, || app.may_eject(at.clock, at.now));
        }
    }
    let out = app
        .endpoints
        .iter()
        .filter(|e| e.state(at.clock, at.now) != State::Ready);
    assert_eq!(out.count(), 2);
}

fn any_config() -> impl Strategy<Value = AppConfig> {
    let balance = prop_oneof![
        Just(Balance::RoundRobin),
        Just(Balance::LeastRequest),
        Just(Balance::PeakEwma),
        Just(Balance::ConsistentHash)
    ];
    let sticky = prop_oneof![Just(Sticky::None), Just(Sticky::Version), Just(Sticky::Endpoint)];
    let weights = proptest::option::of((0u32..=100, 1u32..=100));
    (balance, sticky, weights, 0u32..4, 0u32..20).prop_map(|(balance, sticky, weights, most, slow_start_s)| AppConfig {
        balance,
        sticky,
        weights: weights.map_or_else(BTreeMap::new, |(a, b)| weighted(&[("1", a), ("2", b)]).weights),
        slow_start_s,
        limits: Limits {
            max_in_flight_per_endpoint: most,
            ..Limits::default()
        },
        ..AppConfig::default()
    })
}

proptest! {
    /// Whatever the configuration and the endpoints' states: who can take the request is found, and never one that may not.
    #[test]
    fn the_choice_is_sound(
        config in any_config(),
        // version, came at, under way, state (0 ready, 1 left out, 2 ejected by an operator, 3 withdrawn, 4 unreachable), tried
        endpoints in proptest::collection::vec((1u32..=3, 0u64..30_000, 0u32..5, 0u32..5, any::<bool>()), 0..8),
        fresh in any::<bool>(),
        named in proptest::option::of(1u32..=3),
        key in any::<u64>(),
        cookie in 0usize..10,
    ) {
        let versions: Vec<String> = endpoints.iter().map(|e| e.0.to_string()).collect();
        let with_since: Vec<_> = versions.iter().zip(&endpoints).map(|(v, e)| (v.as_str(), e.1)).collect();
        let most = config.limits.max_in_flight_per_endpoint;
        let weights = config.weights.clone();
        let app = app_since(config, &with_since);
        let mut at = At::new(&app);
        let mut tried = Tried::default();
        let mut held = Vec::new();
        for (endpoint, state) in app.endpoints.iter().zip(&endpoints) {
            held.extend((0..state.2).filter_map(|_| endpoint.enter()));
            match state.3 {
                1 => { endpoint.failed(at.clock, at.now + Duration::from_secs(20)); }
                2 => endpoint.eject(at.clock, at.now, Duration::from_secs(100)),
                3 => endpoint.withdraw(),
                4 => { endpoint.failed(at.clock, at.now + Duration::from_secs(20)); endpoint.connect_failed(); endpoint.reach.confirm(u64::MAX); }
                _ => {}
            }
            if state.4 && !fresh {
                tried.add(endpoint.id, false);
            }
        }
        at.now += Duration::from_secs(20);
        let kept = app.plan.as_ref().and_then(|p| p.cookie(&Ask::default(), &app.endpoints, app.endpoints.get(cookie)?.id));
        let ask = Ask { version: named.map(|v| v.to_string().into()), key: Some(key), kept, secure: false };
        let has_share = |v: &str| weights.iter().any(|(w, n)| w.as_str() == v && *n > 0);
        let shares = app.endpoints.iter().any(|e| has_share(e.key.version.as_str()));
        let wanted = |i: usize| match named {
            Some(version) => endpoints[i].0 == version,
            None => weights.is_empty() || !shares || has_share(&versions[i]),
        };
        let free = |i: usize| most == 0 || endpoints[i].2 < most;
        let able = |i: usize| wanted(i) && (fresh || !endpoints[i].4) && endpoints[i].3 != 3;
        let passed = |i: usize| endpoints[i].3 == 4 && tried.is_empty();
        let ready = (0..endpoints.len()).any(|i| able(i) && free(i) && endpoints[i].3 == 0);
        let open = (0..endpoints.len()).any(|i| able(i) && free(i) && !passed(i));
        let unreachable = (0..endpoints.len()).any(|i| able(i) && passed(i));
        match at.pick(&ask, &tried) {
            Ok(entered) => {
                let i = usize::from(entered.endpoint().address.port()) - 2_000;
                prop_assert!(able(i) && free(i) && !passed(i), "endpoint {i}");
                prop_assert!(!ready || endpoints[i].3 == 0, "one that is left out in place of one that is ready");
            }
            Err(Unpicked::Full) => prop_assert!(!ready && most > 0),
            Err(Unpicked::Unreachable) => prop_assert!(!ready && !open && unreachable),
            Err(Unpicked::None) => prop_assert!(!ready && !unreachable && (!open || most > 0)),
        }
        for (endpoint, state) in app.endpoints.iter().zip(&endpoints) {
            prop_assert_eq!(endpoint.in_flight(), if state.3 == 3 { state.2 } else { endpoint.in_flight() });
        }
    }
}

#[test]
fn the_own_region_comes_first_while_it_can() {
    let config = AppConfig {
        prefer_region: true,
        ..AppConfig::default()
    };
    let endpoints = [("1", 0), ("1", 0), ("1", 0)];
    let ports = |app: &App| -> BTreeSet<u16> {
        let (clock, now) = (Clock::new(), Instant::now());
        (0..30)
            .filter_map(|_| app.pick(&Ask::default(), &Tried::default(), clock, now, |_| {}).ok())
            .map(|entered| entered.endpoint().address.port())
            .collect()
    };
    let app = app_in("eu", config.clone(), &endpoints, &["us", "eu", "eu"]);
    assert_eq!(ports(&app), BTreeSet::from([2_001, 2_002]));
    let (clock, now) = (Clock::new(), Instant::now());
    for near in &app.endpoints[1..] {
        near.failed(clock, now);
    }
    let far = app.pick(&Ask::default(), &Tried::default(), clock, now, |_| {});
    assert_eq!(
        far.map(|e| e.endpoint().address.port()),
        Ok(2_000),
        "the others when it can't"
    );
    for (region, regions) in [
        ("", ["us", "eu", "eu"]),
        ("asia", ["us", "eu", "eu"]),
        ("eu", ["eu", "eu", "eu"]),
    ] {
        let app = app_in(region, config.clone(), &endpoints, &regions);
        assert_eq!(ports(&app).len(), 3, "{region:?}: all alike");
    }
}
