//! The choice for an app with a plan. Every way of balancing sees the same candidates; they differ only in which one it takes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use model::config::Balance;

use super::plan::{Group, Plan};
use super::{Ask, Tried, Unpicked, mix, of_version};
use crate::eject::{Clock, Endpoint, Entered, State};
use crate::table::App;

/// A new endpoint's first share of its full one.
const FIRST_SHARE: f64 = 0.1;
/// Under consistent hashing no endpoint has more than this times the average under way (the paper's c).
const BOUND: f64 = 1.25;
/// Draws before two choices look through the whole list.
const DRAWS: usize = 8;

/// One choice under way.
struct Choice<'a, P> {
    app: &'a App,
    plan: &'a Plan,
    ask: &'a Ask,
    tried: &'a Tried,
    clock: Clock,
    now: Instant,
    now_ms: u64,
    /// When an endpoint must have come to have its full share, in milliseconds; `None`: all have it.
    grown: Option<u64>,
    /// One was passed over because it is full.
    full: bool,
    probe: P,
}

/// Chooses and enters an endpoint.
pub(super) fn choose(
    app: &App,
    plan: &Plan,
    ask: &Ask,
    tried: &Tried,
    clock: Clock,
    now: Instant,
    probe: impl FnMut(&Arc<Endpoint>),
) -> Result<Entered, Unpicked> {
    let now_ms = clock.millis(now);
    let mut choice = Choice {
        app,
        plan,
        ask,
        tried,
        clock,
        now,
        now_ms,
        grown: grown(app, plan, now_ms),
        full: false,
        probe,
    };
    // Others may take the last place at the same instant; then there is another, or none.
    for _ in 0..app.endpoints.len() {
        let Some(endpoint) = choice.candidate() else { break };
        if let Some(entered) = endpoint.enter_below(plan.most) {
            return Ok(entered);
        }
    }
    if choice.full {
        return Err(Unpicked::Full);
    }
    let start = plan.all.turn.fetch_add(1, Ordering::Relaxed) as usize;
    app.last_resort(tried, start, plan.most, now_ms, |i, endpoint| match &ask.version {
        Some(version) => of_version(endpoint, Some(version)),
        None => plan.in_play(i),
    })
}

/// See [`Choice::grown`]. When all endpoints are new, none is.
fn grown(app: &App, plan: &Plan, now_ms: u64) -> Option<u64> {
    // What was there at the start is old, however young the gateway is.
    let before = (plan.slow_start_ms > 0).then(|| now_ms.saturating_sub(plan.slow_start_ms))?;
    let (mut old, mut new) = (false, false);
    for endpoint in &app.endpoints {
        *if endpoint.since_ms() > before {
            &mut new
        } else {
            &mut old
        } = true;
    }
    (old && new).then_some(before)
}

impl<'a, P: FnMut(&Arc<Endpoint>)> Choice<'a, P> {
    fn candidate(&mut self) -> Option<&'a Arc<Endpoint>> {
        if let Some(endpoint) = self.named_by_cookie() {
            return Some(endpoint);
        }
        let group = self.group();
        if let Some(i) = self.among(group) {
            return Some(&self.app.endpoints[i]);
        }
        if self.ask.version.is_some() {
            return None;
        }
        // The version that has the request has no endpoint left, or no room: the others with a share.
        let plan = self.plan;
        let found = plan.groups.iter().find_map(|group| self.among(group));
        found.map(|i| &self.app.endpoints[i])
    }

    /// The endpoint that the client keeps, while it may have requests.
    fn named_by_cookie(&mut self) -> Option<&'a Arc<Endpoint>> {
        let tag = self.ask.kept?.endpoint?;
        let i = self.plan.tags.iter().position(|t| t.endpoint == tag)?;
        let in_play = self.ask.version.is_some() || self.plan.in_play(i);
        let full = self.full;
        let fits = in_play && self.fits(i);
        // A full one is no reason to refuse: the client only moves.
        self.full = full;
        fits.then(|| &self.app.endpoints[i])
    }

    /// Where the request belongs: the version that it names, that it was tried at, that its cookie says, or that is drawn.
    fn group(&self) -> &'a Group {
        let plan = self.plan;
        if self.ask.version.is_some() {
            return &plan.all;
        }
        let tried_at = || {
            let first = self.tried.first()?;
            let i = self.app.endpoints.iter().position(|e| e.id == first)?;
            plan.groups.iter().find(|g| g.members.contains(&(i as u32)))
        };
        let kept = || {
            let version = self.ask.kept?.version;
            plan.groups.iter().find(|g| g.version == Some(version))
        };
        tried_at()
            .or_else(kept)
            .unwrap_or_else(|| plan.drawn(self.ask, &self.app.shared.turn))
    }

    /// Whether the endpoint may have the request.
    fn fits(&mut self, i: usize) -> bool {
        let endpoint = &self.app.endpoints[i];
        if !of_version(endpoint, self.ask.version.as_deref())
            || endpoint.is_withdrawn()
            || (!self.tried.is_empty() && self.tried.has(endpoint.id))
        {
            return false;
        }
        match endpoint.state(self.clock, self.now) {
            State::Ready => {}
            State::Probe => {
                if endpoint.claim_probe(self.clock, self.now, self.app.settings.connect) {
                    (self.probe)(endpoint);
                }
                return false;
            }
            State::LeftOut => return false,
        }
        let full = endpoint.in_flight() >= self.plan.most;
        self.full |= full;
        !full
    }

    /// A new endpoint's present share of its full one, from 0.1 to 1.
    fn share(&self, i: usize) -> f64 {
        let since = self.app.endpoints[i].since_ms();
        match self.grown {
            Some(grown) if since > grown => {
                let age = self.now_ms.saturating_sub(since) as f64 / self.plan.slow_start_ms as f64;
                age.clamp(FIRST_SHARE, 1.0)
            }
            _ => 1.0,
        }
    }

    /// A new endpoint lets some of its turns pass.
    fn passes(&self, i: usize) -> bool {
        self.grown.is_some() && rand::random::<f64>() >= self.share(i)
    }

    /// One of the group, of the gateway's region while any there can have the request.
    fn among(&mut self, group: &Group) -> Option<usize> {
        let near = group.near.as_ref().and_then(|near| self.one_of(near));
        near.or_else(|| self.one_of(group))
    }

    fn one_of(&mut self, group: &Group) -> Option<usize> {
        match group.members.len() {
            0 => None,
            1 => Some(group.members[0] as usize).filter(|i| self.fits(*i)),
            _ => match self.plan.balance {
                Balance::RoundRobin => self.next(group),
                Balance::LeastRequest | Balance::PeakEwma => self.better_of_two(group),
                Balance::ConsistentHash => match self.ask.key {
                    Some(key) => self.hashed(group, key),
                    None => self.next(group),
                },
            },
        }
    }

    fn next(&mut self, group: &Group) -> Option<usize> {
        let n = group.members.len();
        let start = group.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let mut passed = None;
        for step in 0..n {
            let i = group.members[(start + step) % n] as usize;
            if self.fits(i) {
                if !self.passes(i) {
                    return Some(i);
                }
                passed = Some(i);
            }
            // Its turn is over too: else the next one would have two.
            group.turn.fetch_add(1, Ordering::Relaxed);
        }
        passed
    }

    fn better_of_two(&mut self, group: &Group) -> Option<usize> {
        let n = group.members.len();
        let mut first: Option<usize> = None;
        let random = rand::random::<u64>();
        for draw in 0..DRAWS {
            let i = group.members[(mix(random.wrapping_add(draw as u64)) % n as u64) as usize] as usize;
            if first == Some(i) || !self.fits(i) || self.passes(i) {
                continue;
            }
            match first {
                None => first = Some(i),
                Some(other) => return Some(self.better(other, i)),
            }
        }
        // Few of them fit: look at each.
        for step in 0..n {
            let i = group.members[(random as usize).wrapping_add(step) % n] as usize;
            if first == Some(i) || !self.fits(i) {
                continue;
            }
            match first {
                None => first = Some(i),
                Some(other) if !self.passes(i) => return Some(self.better(other, i)),
                Some(_) => {}
            }
        }
        first
    }

    fn better(&self, a: usize, b: usize) -> usize {
        let load = |i: usize| f64::from(self.app.endpoints[i].in_flight()) + 1.0;
        let latency = |i: usize| self.app.endpoints[i].latency().now(self.now_ms);
        let (mut one, mut other) = (load(a), load(b));
        // Where one has no figure yet, only what is under way counts.
        if self.plan.measures()
            && let (Some(first), Some(second)) = (latency(a), latency(b))
        {
            one *= first;
            other *= second;
        }
        // They were drawn at random, so that either may win a tie.
        if other < one { b } else { a }
    }

    /// Rendezvous hashing (Thaler and Ravishankar, 1998): every endpoint scores for the key, the highest has it. When one goes
    /// only its own keys move, and when one comes only those that it gets.
    fn hashed(&mut self, group: &Group, key: u64) -> Option<usize> {
        let (mut under_way, mut n) = (0u64, 0u64);
        for i in group.members.iter().map(|i| *i as usize) {
            if self.fits(i) {
                under_way += u64::from(self.app.endpoints[i].in_flight());
                n += 1;
            }
        }
        let bound = ((under_way + 1) as f64 * BOUND / n.max(1) as f64).ceil() as u64;
        let mut best: Option<(u64, usize)> = None;
        for i in group.members.iter().map(|i| *i as usize) {
            let score = mix(key ^ self.plan.tags[i].endpoint);
            if best.is_some_and(|(highest, _)| highest >= score)
                || u64::from(self.app.endpoints[i].in_flight()) >= bound
                || !self.fits(i)
            {
                continue;
            }
            // A new endpoint takes over its keys one after the other, each for good.
            let share = self.share(i);
            if share < 1.0 && mix(score) as f64 / u64::MAX as f64 >= share {
                continue;
            }
            best = Some((score, i));
        }
        best.map(|(_, i)| i).or_else(|| self.next(group))
    }
}
