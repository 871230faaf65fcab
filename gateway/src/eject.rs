//! Endpoints: where instances answer, how much is under way to each, and which are left out for a while because they
//! failed. An endpoint lives as long as its container answers at its address; it never speaks for another container.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use model::Load;
use model::config::Protocol;
use model::registry::EntryKey;

use crate::balance::{Latency, PENALTY_US};
use crate::departure::Departure;
use crate::metrics::VersionStats;
use crate::reach::Reach;

/// First time that an endpoint is left out after a failed connect; it doubles with each further failure. Short, since a
/// connect of the gateway's own, beside the requests, decides about its return.
const FIRST: Duration = Duration::from_secs(1);
/// Longest time that an endpoint is left out after a failed connect.
const LONGEST: Duration = Duration::from_secs(30);
/// Requests in a row without an answer that can be used until an endpoint is left out although it accepts connections
/// (Envoy's `consecutive_gateway_failure`).
const IN_A_ROW: u32 = 5;
/// Time per such ejection in a row, and the longest. Spread by [`JITTER`], so that gateways do not return together.
const EJECTION: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// Largest part by which an ejection is longer or shorter.
const JITTER: f64 = 0.2;

/// How long an endpoint is left out after its `failures`th failed connect in a row.
pub(crate) fn penalty(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST.saturating_mul(1 << doublings).min(LONGEST)
}

/// How long the `n`th ejection in a row lasts; `chance` from 0 to 1.
fn ejection(n: u32, chance: f64) -> Duration {
    let time = EJECTION.0.saturating_mul(n.max(1)).min(EJECTION.1);
    time.mul_f64(1.0 - JITTER + 2.0 * JITTER * chance)
}

/// One endpoint of an app.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Unique within the process and never reused: the key of its upstream connections.
    pub(crate) id: u64,
    /// Which instance it is.
    pub(crate) key: EntryKey,
    /// Where it answers.
    pub(crate) address: SocketAddr,
    /// Requests and tunnels under way.
    in_flight: AtomicU32,
    /// It is spoken to in HTTP/2 without TLS: its release says so.
    h2c: AtomicBool,
    /// Set before the table without it is published; never taken back.
    withdrawn: AtomicBool,
    /// It is held although the registry has it no more.
    doubted: AtomicBool,
    /// Failures in a row.
    failures: AtomicU32,
    /// Milliseconds since [`Clock::start`] until which it is left out; 0: it is not.
    until: AtomicU64,
    /// A connect tries it after its time was over.
    probing: AtomicBool,
    /// One of the three above, or of the next three, is not as it was at the start; read by every answer.
    troubled: AtomicBool,
    /// Requests in a row that it accepted and gave no answer to.
    unanswered: AtomicU32,
    /// Ejections in a row for that.
    ejections: AtomicU32,
    /// Milliseconds until which an operator has ejected it; 0: nobody has.
    ejected: AtomicU64,
    /// When it came, in milliseconds; 0: with the first word of the registry.
    since: u64,
    /// Whether connects get through.
    pub(crate) reach: Reach,
    /// When its tunnels have to end.
    pub(crate) departure: Departure,
    /// Its version's counters.
    pub(crate) stats: Arc<VersionStats>,
    latency: Latency,
    last_error: Mutex<Option<LastError>>,
    /// Where its host is and what it uses, as far as the registry says.
    load: ArcSwapOption<Load>,
}

/// The last failure of an endpoint, for operators.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastError {
    /// A reason of the gateway's answers.
    pub(crate) what: &'static str,
    /// Milliseconds as [`Clock::millis`] counts.
    pub(crate) at_ms: u64,
}

/// Time as the endpoints count it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Milliseconds since the start, at least 1.
    pub(crate) fn millis(self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// Nanoseconds since the start; enough for 584 years.
    #[inline]
    pub(crate) fn nanos(self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.start);
        since.as_secs().wrapping_mul(1_000_000_000) + u64::from(since.subsec_nanos())
    }
}

/// What an endpoint's past says about using it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// Its time is over: a connect of the gateway's own may try it.
    Probe,
    LeftOut,
}

impl Endpoint {
    /// `since`: when it came, in milliseconds as [`Clock::millis`] counts; 0 for what was there from the start.
    pub(crate) fn new(key: EntryKey, address: SocketAddr, since: u64, stats: Arc<VersionStats>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            key,
            address,
            in_flight: AtomicU32::new(0),
            h2c: AtomicBool::new(false),
            withdrawn: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            until: AtomicU64::new(0),
            probing: AtomicBool::new(false),
            troubled: AtomicBool::new(false),
            unanswered: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            ejected: AtomicU64::new(0),
            since,
            reach: Reach::default(),
            departure: Departure::default(),
            stats,
            latency: Latency::default(),
            last_error: Mutex::new(None),
            load: ArcSwapOption::empty(),
        }
    }

    /// What it is spoken to in from now on.
    pub(crate) fn set_protocol(&self, protocol: Protocol) {
        self.h2c.store(protocol == Protocol::H2c, Ordering::Relaxed);
    }

    /// Whether requests are made in HTTP/2 without TLS; else in HTTP/1.1.
    #[inline]
    pub(crate) fn h2c(&self) -> bool {
        self.h2c.load(Ordering::Relaxed)
    }

    /// Where its host is and what it uses; `None`: not known (yet).
    pub(crate) fn load(&self) -> Option<Arc<Load>> {
        self.load.load_full()
    }

    /// Takes in what the registry says of its load; `true` when its region is another one now, so that whatever was
    /// decided by regions must be decided anew.
    pub(crate) fn set_load(&self, load: Option<Arc<Load>>) -> bool {
        let region = |load: &Option<Arc<Load>>| load.as_ref().map(|l| l.region.clone());
        let next = region(&load);
        region(&self.load.swap(load)) != next
    }

    /// Counts a request to this endpoint, unless it has been withdrawn.
    ///
    /// The order is what acknowledgements rest on: a request first counts itself, then looks whether the endpoint is
    /// withdrawn; the follower first marks it withdrawn, then reads the count. Both sides use one total order (`SeqCst`), so either the
    /// request sees the mark and goes elsewhere, or the follower sees the request and reports it as draining, even when
    /// the request holds a table from before the withdrawal.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Entered> {
        self.enter_below(u32::MAX)
    }

    /// [`Endpoint::enter`], unless `most` requests are under way already.
    pub(crate) fn enter_below(self: &Arc<Self>, most: u32) -> Option<Entered> {
        let before = self.in_flight.fetch_add(1, Ordering::SeqCst);
        let entered = Entered(Arc::clone(self));
        (!self.withdrawn.load(Ordering::SeqCst) && before < most).then_some(entered)
    }

    /// Marks the endpoint as withdrawn: no request enters from now on.
    pub(crate) fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Relaxed)
    }

    /// Whether it is held although the registry has it no more.
    pub(crate) fn doubt(&self, doubted: bool) {
        self.doubted.store(doubted, Ordering::Relaxed);
    }

    pub(crate) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed)
    }

    /// When it came, in milliseconds; 0: with the first word of the registry.
    pub(crate) fn since_ms(&self) -> u64 {
        self.since
    }

    pub(crate) fn latency(&self) -> &Latency {
        &self.latency
    }

    pub(crate) fn last_error(&self) -> Option<LastError> {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down a failure, and what it means for the latency.
    pub(crate) fn note(&self, what: &'static str, clock: Clock, now: Instant) {
        let at_ms = clock.millis(now);
        self.latency.observe(PENALTY_US, at_ms);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(LastError { what, at_ms });
    }

    /// Requests and tunnels under way.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Whether it may be used at `now` (as [`Clock::millis`] counts).
    pub(crate) fn state(&self, clock: Clock, now: Instant) -> State {
        match self.until.load(Ordering::Relaxed) {
            0 => State::Ready,
            until if until <= clock.millis(now) => State::Probe,
            _ => State::LeftOut,
        }
    }

    /// Takes the right to try an endpoint whose time is over; others go on leaving it out for `patience`.
    pub(crate) fn claim_probe(&self, clock: Clock, now: Instant, patience: Duration) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        let later = clock.millis(now + patience);
        let claimed = until != 0
            && !self.reach.is_tried()
            && until <= clock.millis(now)
            && self
                .until
                .compare_exchange(until, later, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if claimed {
            self.probing.store(true, Ordering::Relaxed);
            // An operator's time is over too, unless he has spoken again meanwhile.
            let _ = self
                .ejected
                .compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        claimed
    }

    /// A connect failed, or the connection died before the first byte of an answer. Client aborts never come here.
    pub(crate) fn failed(&self, clock: Clock, now: Instant) -> Duration {
        // Requests that fail together are one failure: while it is left out, nothing grows. What an operator has said holds.
        let probed = self.probing.swap(false, Ordering::Relaxed) && !self.ejected_by_operator();
        if !probed && self.state(clock, now) == State::LeftOut {
            let until = self.until.load(Ordering::Relaxed);
            return Duration::from_millis(until.saturating_sub(clock.millis(now)));
        }
        let time = penalty(self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1));
        self.until.store(clock.millis(now + time), Ordering::Relaxed);
        self.troubled.store(true, Ordering::Relaxed);
        time
    }

    /// A connect of a request's own failed: it may be that none gets through.
    pub(crate) fn connect_failed(&self) {
        self.reach.suspect();
        self.troubled.store(true, Ordering::Relaxed);
    }

    /// It took a request and gave no answer that can be used: none in time, a broken one, or the connection's end. After five
    /// in a row it is left out, if `may` (asked only then) allows it; the time of that is returned. Client aborts never come here.
    pub(crate) fn gave_no_answer(&self, clock: Clock, now: Instant, may: impl FnOnce() -> bool) -> Option<Duration> {
        let in_a_row = self.unanswered.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.troubled.store(true, Ordering::Relaxed);
        if in_a_row < IN_A_ROW || self.state(clock, now) != State::Ready || !may() {
            return None;
        }
        self.unanswered.store(0, Ordering::Relaxed);
        let n = self.ejections.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let time = ejection(n, rand::random());
        self.until.store(clock.millis(now + time), Ordering::Relaxed);
        Some(time)
    }

    /// A probe has connected: requests may come again. Only an answer makes its failures forgotten, since an accepted
    /// connection proves little.
    pub(crate) fn connected(&self) {
        self.probing.store(false, Ordering::Relaxed);
        self.reach.reached();
        self.return_to_turn();
    }

    /// An answer of it began, or it took a connection: it can be reached. Whether the answer is good shows at its end.
    #[inline]
    pub(crate) fn reached(&self) {
        if self.troubled() {
            self.reach.reached();
            self.failures.store(0, Ordering::Relaxed);
            self.return_to_turn();
        }
    }

    /// It answered, to the end.
    #[inline]
    pub(crate) fn worked(&self) {
        if self.troubled() {
            self.troubled.store(false, Ordering::Relaxed);
            self.reach.reached();
            self.unanswered.store(0, Ordering::Relaxed);
            self.ejections.store(0, Ordering::Relaxed);
            self.failures.store(0, Ordering::Relaxed);
            self.return_to_turn();
        }
    }

    /// Something of it failed since it last [`worked`](Self::worked).
    #[inline]
    pub(crate) fn troubled(&self) -> bool {
        self.troubled.load(Ordering::Relaxed)
    }

    /// It is left out no longer; but what an operator has said holds.
    fn return_to_turn(&self) {
        self.until
            .store(self.ejected.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// An operator takes it out for that time, whatever it answers.
    pub(crate) fn eject(&self, clock: Clock, now: Instant, time: Duration) {
        let until = clock.millis(now + time);
        self.ejected.store(until, Ordering::Relaxed);
        self.until.store(until, Ordering::Relaxed);
    }

    /// An operator puts it back, whatever it was left out for.
    pub(crate) fn uneject(&self) {
        self.ejected.store(0, Ordering::Relaxed);
        self.troubled.store(true, Ordering::Relaxed);
        self.worked();
    }

    pub(crate) fn ejected_by_operator(&self) -> bool {
        self.ejected.load(Ordering::Relaxed) != 0
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Milliseconds for which it is still left out.
    pub(crate) fn left_out_ms(&self, clock: Clock, now: Instant) -> u64 {
        self.until.load(Ordering::Relaxed).saturating_sub(clock.millis(now))
    }
}

/// One request or tunnel on an endpoint; it counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Entered(Arc<Endpoint>);

impl Entered {
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn key(app: &str, version: &str, container: &str) -> EntryKey {
        EntryKey {
            app: app.parse().expect("app"),
            version: version.parse().expect("version"),
            container: container.parse().expect("container"),
        }
    }

    pub(crate) fn endpoint() -> Arc<Endpoint> {
        Arc::new(Endpoint::new(
            key("a", "1", "c"),
            "127.0.0.1:9".parse().expect("address"),
            0,
            Arc::default(),
        ))
    }

    #[test]
    fn the_penalty_doubles_up_to_half_a_minute() {
        let seconds: Vec<u64> = (1..=7).map(|n| penalty(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(penalty(u32::MAX), LONGEST);
    }

    #[test]
    fn a_failure_leaves_it_out_until_a_probe_connects() {
        let clock = Clock::new();
        let e = endpoint();
        let now = Instant::now();
        assert_eq!(e.state(clock, now), State::Ready);
        assert_eq!(e.failed(clock, now), Duration::from_secs(1));
        assert_eq!(e.state(clock, now + Duration::from_millis(900)), State::LeftOut);
        e.failed(clock, now + Duration::from_millis(10));
        assert_eq!(e.failures(), 1, "requests that fail together are one failure");
        let later = now + Duration::from_millis(1_100);
        assert_eq!(e.state(clock, later), State::Probe);
        assert!(e.claim_probe(clock, later, Duration::from_secs(1)));
        assert!(!e.claim_probe(clock, later, Duration::from_secs(1)));
        assert_eq!(e.failed(clock, later), Duration::from_secs(2), "a failed probe doubles");
        let later = later + Duration::from_millis(2_100);
        assert!(e.claim_probe(clock, later, Duration::from_secs(1)));
        e.connected();
        assert_eq!(e.state(clock, later), State::Ready);
        assert_eq!(e.failures(), 2, "a connect is no answer");
        e.worked();
        assert_eq!(e.failures(), 0);
    }

    #[test]
    fn ejections_grow_and_are_spread() {
        for (n, seconds) in [(1, 10.0), (2, 20.0), (30, 300.0), (31, 300.0), (u32::MAX, 300.0)] {
            let middle = ejection(n, 0.5).as_secs_f64();
            assert!((middle - seconds).abs() < 0.001, "{n}: {middle}");
            assert!((ejection(n, 0.0).as_secs_f64() - seconds * 0.8).abs() < 0.001);
            assert!((ejection(n, 1.0).as_secs_f64() - seconds * 1.2).abs() < 0.001);
        }
    }

    #[test]
    fn five_requests_in_a_row_without_an_answer() {
        let (clock, now, e) = (Clock::new(), Instant::now(), endpoint());
        for _ in 0..4 {
            assert_eq!(e.gave_no_answer(clock, now, || true), None);
        }
        e.worked();
        for _ in 0..4 {
            assert_eq!(
                e.gave_no_answer(clock, now, || true),
                None,
                "an answer between: not in a row"
            );
        }
        assert_eq!(e.gave_no_answer(clock, now, || false), None, "too many are out already");
        let time = e.gave_no_answer(clock, now, || true).expect("the sixth");
        assert!((8.0..=12.0).contains(&time.as_secs_f64()), "{time:?}");
        assert_eq!(e.state(clock, now + Duration::from_secs(7)), State::LeftOut);
        let later = now + Duration::from_secs(13);
        assert!(e.claim_probe(clock, later, Duration::from_secs(1)));
        e.connected();
        for _ in 0..4 {
            assert_eq!(e.gave_no_answer(clock, later, || true), None);
        }
        let longer = e.gave_no_answer(clock, later, || true).expect("again five");
        assert!((16.0..=24.0).contains(&longer.as_secs_f64()), "{longer:?}");
    }

    #[test]
    fn what_an_operator_says_holds_until_its_time_or_his_word() {
        let (clock, now, e) = (Clock::new(), Instant::now(), endpoint());
        e.eject(clock, now, Duration::from_secs(300));
        e.failed(clock, now);
        e.worked();
        assert_eq!(e.state(clock, now), State::LeftOut, "an answer does not bring it back");
        e.uneject();
        assert_eq!(e.state(clock, now), State::Ready);
        e.eject(clock, now, Duration::from_secs(300));
        let later = now + Duration::from_secs(301);
        assert!(e.claim_probe(clock, later, Duration::from_secs(1)));
        e.connected();
        e.worked();
        assert_eq!(e.state(clock, later), State::Ready);
    }

    #[test]
    fn a_probe_under_way_does_not_undo_what_an_operator_says_meanwhile() {
        for probe_connects in [true, false] {
            let (clock, now, e) = (Clock::new(), Instant::now(), endpoint());
            e.failed(clock, now);
            let later = now + Duration::from_millis(1_100);
            assert!(e.claim_probe(clock, later, Duration::from_secs(1)));
            e.eject(clock, later, Duration::from_secs(300));
            match probe_connects {
                true => e.connected(),
                false => drop(e.failed(clock, later)),
            }
            assert_eq!(e.state(clock, later + Duration::from_secs(299)), State::LeftOut);
            assert!(e.ejected_by_operator());
        }
    }

    #[test]
    fn answers_that_only_begin_are_no_answers() {
        let (clock, now, e) = (Clock::new(), Instant::now(), endpoint());
        for _ in 0..4 {
            e.reached();
            assert_eq!(e.gave_no_answer(clock, now, || true), None);
        }
        e.reached();
        assert!(e.gave_no_answer(clock, now, || true).is_some());
    }

    #[test]
    fn no_more_than_allowed_at_once() {
        let e = endpoint();
        let held = e.enter_below(1).expect("room");
        assert!(e.enter_below(1).is_none());
        assert_eq!(e.in_flight(), 1);
        drop(held);
        assert!(e.enter_below(1).is_some());
    }

    #[test]
    fn only_another_region_counts_as_a_move() {
        let load = |region: &str, cpu| {
            let text = format!(
                r#"{{"host":"h1","region":"{region}","cpu_milli":{cpu},"memory_bytes":1,"memory_limit_bytes":2,"at":3}}"#
            );
            Some(Arc::new(Load::parse(text.as_bytes()).expect("valid")))
        };
        let e = endpoint();
        assert!(e.set_load(load("eu", 1)));
        assert!(!e.set_load(load("eu", 900)));
        assert_eq!(e.load().and_then(|l| l.figures).map(|f| f.cpu_milli), Some(900));
        assert!(e.set_load(None));
        assert!(e.load().is_none());
    }

    #[test]
    fn withdrawal_is_never_missed() {
        let e = endpoint();
        let held = e.enter().expect("in use");
        e.withdraw();
        assert_eq!(e.in_flight(), 1);
        assert!(e.enter().is_none());
        assert_eq!(e.in_flight(), 1, "a refused request leaves no trace");
        drop(held);
        assert_eq!(e.in_flight(), 0);
    }

    #[test]
    fn withdrawal_against_requests_of_other_threads() {
        for _ in 0..300 {
            let e = endpoint();
            let entering: Vec<_> = (0..3)
                .map(|_| {
                    let e = Arc::clone(&e);
                    std::thread::spawn(move || e.enter())
                })
                .collect();
            e.withdraw();
            let seen = e.in_flight();
            let inside = entering
                .into_iter()
                .filter_map(|t| t.join().expect("no panic"))
                .collect::<Vec<_>>();
            assert!(inside.len() as u32 <= seen, "{} inside, {seen} seen", inside.len());
        }
    }
}
