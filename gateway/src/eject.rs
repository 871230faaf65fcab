//! Endpoints: where instances answer, how much is under way to each, and which are left out for a while because they
//! failed. An endpoint lives as long as its container answers at its address; it never speaks for another container.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::registry::EntryKey;

/// First time that an endpoint is left out after a failed connect; it doubles with each further failure.
const FIRST: Duration = Duration::from_secs(1);
/// Longest time that an endpoint is left out.
const LONGEST: Duration = Duration::from_secs(30);

/// How long an endpoint is left out after its `failures`th failure in a row.
pub(crate) fn penalty(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST.saturating_mul(1 << doublings).min(LONGEST)
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
    /// Set before the table without it is published; never taken back.
    withdrawn: AtomicBool,
    /// Failures in a row.
    failures: AtomicU32,
    /// Milliseconds since [`Clock::start`] until which it is left out; 0: it is not.
    until: AtomicU64,
    /// A connect tries it after its time was over.
    probing: AtomicBool,
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
    pub(crate) fn new(key: EntryKey, address: SocketAddr) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            key,
            address,
            in_flight: AtomicU32::new(0),
            withdrawn: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            until: AtomicU64::new(0),
            probing: AtomicBool::new(false),
        }
    }

    /// Counts a request to this endpoint, unless it has been withdrawn.
    ///
    /// The order is what acknowledgements rest on: a request first counts itself, then looks whether the endpoint is
    /// withdrawn; the follower first marks it withdrawn, then reads the count. Both sides use one total order (`SeqCst`), so either the
    /// request sees the mark and goes elsewhere, or the follower sees the request and reports it as draining, even when
    /// the request holds a table from before the withdrawal.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Entered> {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let entered = Entered(Arc::clone(self));
        if self.withdrawn.load(Ordering::SeqCst) {
            return None;
        }
        Some(entered)
    }

    /// Marks the endpoint as withdrawn: no request enters from now on.
    pub(crate) fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::SeqCst);
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
            && until <= clock.millis(now)
            && self
                .until
                .compare_exchange(until, later, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if claimed {
            self.probing.store(true, Ordering::Relaxed);
        }
        claimed
    }

    /// A connect failed, or the connection died before the first byte of an answer. Client aborts never come here.
    pub(crate) fn failed(&self, clock: Clock, now: Instant) -> Duration {
        // Requests that fail together are one failure: while it is left out, nothing grows.
        let probed = self.probing.swap(false, Ordering::Relaxed);
        if !probed && self.state(clock, now) == State::LeftOut {
            let until = self.until.load(Ordering::Relaxed);
            return Duration::from_millis(until.saturating_sub(clock.millis(now)));
        }
        let time = penalty(self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1));
        self.until.store(clock.millis(now + time), Ordering::Relaxed);
        time
    }

    /// A probe has connected: requests may come again. Only an answer makes its failures forgotten, since an accepted
    /// connection proves little.
    pub(crate) fn connected(&self) {
        self.probing.store(false, Ordering::Relaxed);
        self.until.store(0, Ordering::Relaxed);
    }

    /// It answered.
    pub(crate) fn worked(&self) {
        if self.until.load(Ordering::Relaxed) != 0 || self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.until.store(0, Ordering::Relaxed);
        }
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

    fn endpoint() -> Arc<Endpoint> {
        Arc::new(Endpoint::new(
            key("a", "1", "c"),
            "127.0.0.1:9".parse().expect("address"),
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
