//! Balancing: which endpoint of an app a request or connection goes to.
//!
//! The choice reads the app's immutable picture ([`App`], with a [`Plan`] when its configuration wants more than turns) and
//! each endpoint's own atomics (requests under way, latency, left out or not). It waits for nothing and takes no lock.
//!
//! In this order: the endpoint that the client's cookie names; else the version that has the request (its own word, its
//! cookie, or the shares of [`share`]); within it the endpoints of the gateway's region, then all; one of them by the app's
//! way of balancing. Endpoints that are left out, full or already tried are passed over. When none is left that way: the
//! other versions with a share, and then those that are left out (failing open: a gateway that is wrong about health must not
//! make an outage of it), but for those that let no connect through, as [`crate::reach`] knows.

mod choose;
mod ewma;
pub(crate) mod explain;
mod plan;
mod share;
mod sticky;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

pub(crate) use ewma::{Latency, PENALTY_US};
pub(crate) use plan::Plan;
pub(crate) use sticky::Kept;

use crate::eject::{Clock, Endpoint, Entered, State};
use crate::table::App;

/// What a request or connection says about where it wants to go.
#[derive(Debug, Default)]
pub(crate) struct Ask {
    /// Only endpoints of this version, whatever the weights; in lower case, as hosts are.
    pub(crate) version: Option<Box<str>>,
    /// Hash of what consistent hashing goes by.
    pub(crate) key: Option<u64>,
    /// What the client's cookie names.
    pub(crate) kept: Option<Kept>,
    /// The client speaks TLS: its cookie is for TLS only.
    pub(crate) secure: bool,
}

/// Why there is no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unpicked {
    /// None is there, or all have been tried.
    None,
    /// All that could take it have as much under way as they may.
    Full,
    /// No connect gets through to any that could take it.
    Unreachable,
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

    fn first(&self) -> Option<u64> {
        self.0.first().map(|(id, _)| *id)
    }
}

/// A 64-bit hash that is the same in every process (FNV-1a, finished by [`mix`]): all gateways choose alike.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let fnv = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// Spreads a number over all bits (the finaliser of `SplitMix64`: Steele et al., "Fast Splittable Pseudorandom Number
/// Generators", 2014).
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

impl App {
    /// The endpoint that the request goes to, counted as in use.
    ///
    /// `probe` is called for an endpoint whose time is over: it stays left out until the probe has connected, so that
    /// no request ever waits for a host that is still gone.
    #[inline]
    pub(crate) fn pick(
        &self,
        ask: &Ask,
        tried: &Tried,
        clock: Clock,
        now: Instant,
        probe: impl FnMut(&Arc<Endpoint>),
    ) -> Result<Entered, Unpicked> {
        match &self.plan {
            None => self.in_turn(ask.version.as_deref(), tried, clock, now, probe),
            Some(plan) => choose::choose(self, plan, ask, tried, clock, now, probe),
        }
    }

    /// Without a plan: each in turn.
    fn in_turn(
        &self,
        version: Option<&str>,
        tried: &Tried,
        clock: Clock,
        now: Instant,
        mut probe: impl FnMut(&Arc<Endpoint>),
    ) -> Result<Entered, Unpicked> {
        let n = self.endpoints.len();
        if n == 0 {
            return Err(Unpicked::None);
        }
        let start = self.shared.turn.fetch_add(1, Ordering::Relaxed) as usize % n;
        let in_turn = || {
            let (before, after) = self.endpoints.split_at(start);
            after.iter().chain(before).filter(|e| of_version(e, version))
        };
        for endpoint in in_turn() {
            if tried.is_empty() || !tried.has(endpoint.id) {
                match endpoint.state(clock, now) {
                    State::Ready => {
                        if let Some(entered) = endpoint.enter() {
                            return Ok(entered);
                        }
                    }
                    State::Probe if endpoint.claim_probe(clock, now, self.settings.connect) => probe(endpoint),
                    State::Probe | State::LeftOut => {}
                }
            }
            // Its turn is over too: else the next one would have two.
            self.shared.turn.fetch_add(1, Ordering::Relaxed);
        }
        let now_ms = clock.millis(now);
        self.last_resort(tried, start, u32::MAX, now_ms, |_, endpoint| {
            of_version(endpoint, version)
        })
    }

    /// Nothing is ready: those of the `allowed` ones that are left out, by their failures before by an operator; last, one of which
    /// only a kept connection was stale. A request waits for none of which it is known that no connect gets through; one that has tried
    /// others tries them all, since it began before that was known.
    fn last_resort(
        &self,
        tried: &Tried,
        start: usize,
        most: u32,
        now_ms: u64,
        allowed: impl Fn(usize, &Endpoint) -> bool,
    ) -> Result<Entered, Unpicked> {
        let n = self.endpoints.len();
        let in_turn = || {
            (0..n)
                .map(|step| (start % n + step) % n)
                .map(|i| (i, &self.endpoints[i]))
                .filter(|(i, e)| allowed(*i, e))
                .map(|(_, e)| e)
        };
        let untried = || in_turn().filter(|e| !tried.has(e.id));
        let (mut full, mut unreachable) = (false, false);
        let found = untried()
            .filter(|e| !e.ejected_by_operator())
            .chain(untried().filter(|e| e.ejected_by_operator()))
            .chain(in_turn().filter(|e| tried.was_stale(e.id)))
            .find_map(|e| {
                if tried.is_empty() && e.reach.is_unreachable(now_ms) {
                    unreachable = true;
                    return None;
                }
                full |= e.in_flight() >= most;
                e.enter_below(most)
            });
        found.ok_or(match (full, unreachable) {
            (true, _) => Unpicked::Full,
            (false, true) => Unpicked::Unreachable,
            (false, false) => Unpicked::None,
        })
    }
}

fn of_version(endpoint: &Endpoint, version: Option<&str>) -> bool {
    version.is_none_or(|v| endpoint.key.version.as_str().eq_ignore_ascii_case(v))
}

#[cfg(test)]
pub(crate) mod tests;
