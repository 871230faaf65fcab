//! Endpoints that were withdrawn and still have requests: how long, and what becomes of WebSockets at the end. An instance's time to
//! finish is known from its app's configuration; when it is over its container is stopped, so whoever speaks WebSocket is told to
//! go elsewhere just before. Other tunnels and requests have no word for that and are left to the app.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::eject::Endpoint;

/// How long a WebSocket has to say goodbye; registry-sync waits longer before the container is stopped.
pub(crate) const FAREWELL: Duration = Duration::from_millis(500);

/// Whether the time of one endpoint's tunnels is over.
#[derive(Debug, Default)]
pub(crate) struct Departure {
    over: AtomicBool,
    /// Made by the first tunnel.
    wakes: OnceLock<CancellationToken>,
}

impl Departure {
    fn token(&self) -> &CancellationToken {
        self.wakes.get_or_init(CancellationToken::new)
    }

    /// Wakes whoever waits.
    fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.token().cancel();
    }

    /// Whoever has polled [`Departure::wait`] before this said `false` is woken when that changes.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(crate) fn wait(&self) -> WaitForCancellationFutureOwned {
        self.token().clone().cancelled_owned()
    }
}

struct Leaving {
    endpoint: Arc<Endpoint>,
    /// When its WebSockets are told to go; `None`: they are not, or have been.
    goodbye: Option<Instant>,
}

/// What leaves the table with the next publication, and what has left it until nothing is under way there.
#[derive(Default)]
pub(crate) struct Departures {
    all: Vec<Leaving>,
    /// How many of them are marked as withdrawn.
    marked: usize,
}

impl Departures {
    /// `time`: what it has to finish; `None`: that is not known.
    pub(crate) fn push(&mut self, endpoint: Arc<Endpoint>, time: Option<Duration>) {
        let goodbye = time.map(|time| Instant::now() + time);
        self.all.push(Leaving { endpoint, goodbye });
    }

    /// Marks those that are not as withdrawn.
    pub(crate) fn mark(&mut self) {
        for leaving in &self.all[self.marked..] {
            leaving.endpoint.withdraw();
        }
        self.marked = self.all.len();
    }

    /// Forgets those that have nothing under way, and ends the time of those where it is over. All must be marked.
    pub(crate) fn tidy(&mut self, now: Instant) {
        self.all.retain(|leaving| leaving.endpoint.in_flight() > 0);
        self.marked = self.all.len();
        for leaving in &mut self.all {
            if leaving.goodbye.take_if(|at| *at <= now).is_some() {
                leaving.endpoint.departure.end();
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Those where something is under way.
    pub(crate) fn busy(&self) -> impl Iterator<Item = &Endpoint> {
        let all = self.all.iter().map(|leaving| &*leaving.endpoint);
        all.filter(|endpoint| endpoint.in_flight() > 0)
    }
}
