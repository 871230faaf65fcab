//! Endpoints to which no connect gets through, as a host without power leaves them. Once that is known of all endpoints that could
//! have a request, requests are answered at once instead of waiting for the next connect to fail, and connects of the gateway's
//! own, beside the requests, find out when one gets through again.
//!
//! It takes two connects in turn to know it of an endpoint, the second one made by the gateway itself, without an answer between:
//! one alone may have met a queue that was full for a moment. Only connects count. An endpoint that accepts and then says nothing,
//! or nonsense, is asked as long as there is no better one, since a gateway that is wrong about health must not make an outage of it.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;

use crate::eject::{Clock, Endpoint};
use crate::identity::Question;
use crate::table::{App, AppShared, Settings};
use crate::upstream;
use crate::worker::Worker;

/// Between the gateway's own connects to one endpoint: the first pause, and the longest, to which it doubles. Half of the second
/// within which requests come through again once an endpoint accepts. The next connect does not wait for the end of the one before:
/// the kernel would repeat that one after 1, 3 and 7 s only.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// For how long a failed connect of the gateway's own is believed beyond the time that the next one may take. Should these
/// connects stop, requests try for themselves again.
const BELIEVED: Duration = Duration::from_secs(1);
/// How long after the last request for it an app is looked after.
const WANTED: Duration = Duration::from_secs(60);
/// Longest time to connect for which the pauses are as above; beyond it they are longer, so that no more connects are under way.
const USUAL: Duration = Duration::from_secs(10);

/// What is known of the way to one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// The last connect of a request failed, and nothing has come through since.
    suspect: AtomicBool,
    /// Milliseconds until which it is known that no connect gets through; 0: it is not.
    unreachable: AtomicU64,
    /// A task of a worker's tries it.
    tried: AtomicBool,
}

impl Reach {
    /// A request's connect has failed.
    pub(crate) fn suspect(&self) {
        self.suspect.store(true, Ordering::Relaxed);
    }

    /// A connect has come through, an answer has, or somebody who knows says that it is well.
    pub(crate) fn reached(&self) {
        if self.suspect.load(Ordering::Relaxed) {
            self.suspect.store(false, Ordering::Relaxed);
            self.unreachable.store(0, Ordering::Relaxed);
        }
    }

    /// It is known, at `now_ms` as [`Clock::millis`] counts, that no connect gets through.
    pub(crate) fn is_unreachable(&self, now_ms: u64) -> bool {
        self.unreachable.load(Ordering::Relaxed) > now_ms
    }

    /// A connect of the gateway's own has failed, which is believed until then. Not if something has come through meanwhile.
    pub(crate) fn confirm(&self, until_ms: u64) {
        if self.suspect.load(Ordering::Relaxed) {
            self.unreachable.store(until_ms, Ordering::Relaxed);
        }
    }

    /// The gateway tries it beside the requests.
    pub(crate) fn is_tried(&self) -> bool {
        self.tried.load(Ordering::Relaxed)
    }
}

/// The right to try an endpoint.
struct Trial(Arc<Endpoint>);

impl Trial {
    fn begin(endpoint: &Arc<Endpoint>) -> Option<Self> {
        let free = !endpoint.reach.tried.swap(true, Ordering::Relaxed);
        free.then(|| Self(Arc::clone(endpoint)))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.0.reach.tried.store(false, Ordering::Relaxed);
    }
}

/// Looks after the app if no endpoint of it lets connects through: each is tried from now on, by one worker. Called for every
/// failed connect, and for every request that is turned away.
pub(crate) fn look_after(worker: &Rc<Worker>, app: &App, now: Instant) {
    let suspect = |e: &Arc<Endpoint>| e.reach.suspect.load(Ordering::Relaxed);
    if !app.endpoints.iter().all(suspect) {
        return;
    }
    let now_ms = worker.shared.clock.millis(now);
    app.shared.wanted.store(now_ms, Ordering::Relaxed);
    for trial in app.endpoints.iter().filter_map(Trial::begin) {
        let (worker, way) = (Rc::clone(worker), Way::to(&trial.0, app));
        tokio::task::spawn_local(async move {
            attend(&worker, &way).await;
            drop(trial);
        });
    }
}

/// Finds out beside the requests whether an endpoint whose time is over can be connected to again.
pub(crate) fn probe(worker: &Rc<Worker>, app: &App, endpoint: &Arc<Endpoint>) {
    let (worker, way) = (Rc::clone(worker), Way::to(endpoint, app));
    tokio::task::spawn_local(async move {
        match way.go(&worker).await {
            Went::Through => way.endpoint.connected(),
            // It is tried again once its time is over.
            Went::Nowhere => {}
            Went::Failed => {
                way.endpoint.failed(worker.shared.clock, Instant::now());
            }
        }
    });
}

/// What a connect of the gateway's own has found.
enum Went {
    /// Requests may go there.
    Through,
    /// Nothing, for want of something on this machine.
    Nowhere,
    Failed,
}

/// The way to an endpoint, with what has to be known of its app.
struct Way {
    endpoint: Arc<Endpoint>,
    app: Arc<AppShared>,
    settings: Arc<Settings>,
}

impl Way {
    fn to(endpoint: &Arc<Endpoint>, app: &App) -> Self {
        Self {
            endpoint: Arc::clone(endpoint),
            app: Arc::clone(&app.shared),
            settings: Arc::clone(&app.settings),
        }
    }

    /// Connects, and asks whose the port is if a request had to.
    async fn go(&self, worker: &Worker) -> Went {
        let going = async {
            let stream = match TcpStream::connect(self.endpoint.address).await {
                Ok(stream) => stream,
                Err(error) if upstream::is_own_fault(&error) => return Went::Nowhere,
                Err(_) => return Went::Failed,
            };
            let Some(question) = Question::of(&worker.shared, &self.app, &self.settings, &self.endpoint) else {
                return Went::Through;
            };
            if question.is_answered(worker, &self.endpoint, stream).await {
                return Went::Through;
            }
            worker.stats().identity_failures.add(1);
            Went::Failed
        };
        tokio::time::timeout(self.settings.connect, going)
            .await
            .unwrap_or(Went::Failed)
    }
}

/// Whether connects to an endpoint go on after those of `now_ms`.
fn goes_on(endpoint: &Endpoint, wanted_ms: u64, now_ms: u64) -> bool {
    let quiet = now_ms.saturating_sub(wanted_ms);
    !endpoint.is_withdrawn() && endpoint.reach.suspect.load(Ordering::Relaxed) && u128::from(quiet) < WANTED.as_millis()
}

/// The pause after one of `pause`.
fn longer(pause: Duration, within: Duration) -> Duration {
    let most = PAUSE.1.max(PAUSE.1.mul_f64(within.as_secs_f64() / USUAL.as_secs_f64()));
    (pause * 2).min(most)
}

/// Connects to the endpoint again and again until one connect comes through, or nobody wants to know any more.
async fn attend(worker: &Worker, way: &Way) {
    let (clock, endpoint, within) = (worker.shared.clock, &*way.endpoint, way.settings.connect);
    let mut under_way = FuturesUnordered::new();
    let mut pause = PAUSE.0;
    while goes_on(
        endpoint,
        way.app.wanted.load(Ordering::Relaxed),
        clock.millis(Instant::now()),
    ) {
        worker.stats().connects.add(1);
        under_way.push(way.go(worker));
        let next = tokio::time::sleep(pause);
        tokio::pin!(next);
        loop {
            let ended = tokio::select! {
                Some(ended) = under_way.next() => ended,
                () = &mut next => break,
            };
            match ended {
                Went::Through => {
                    tracing::info!(app = %endpoint.key.app, container = %endpoint.key.container,
                        endpoint = %endpoint.address, "endpoint can be reached again");
                    return endpoint.connected();
                }
                Went::Nowhere => {}
                Went::Failed => {
                    worker.stats().connect_failures.add(1);
                    failed(endpoint, clock, within);
                }
            }
        }
        pause = longer(pause, within);
    }
}

/// Writes down that a connect of the gateway's own has failed.
fn failed(endpoint: &Endpoint, clock: Clock, within: Duration) {
    let now = Instant::now();
    endpoint.failed(clock, now);
    endpoint.reach.confirm(clock.millis(now + within + BELIEVED));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_two_connects_without_an_answer_between() {
        let reach = Reach::default();
        reach.confirm(100);
        assert!(!reach.is_unreachable(1), "no request has failed");
        reach.suspect();
        assert!(!reach.is_unreachable(1), "one alone proves nothing");
        reach.confirm(100);
        assert!(reach.is_unreachable(99) && !reach.is_unreachable(100));
        reach.reached();
        assert!(!reach.is_unreachable(99));
        reach.confirm(200);
        assert!(!reach.is_unreachable(99), "begun before something came through");
    }

    #[test]
    fn pauses_grow_to_half_a_second() {
        let usual = Duration::from_secs(1);
        let mut pauses = vec![PAUSE.0];
        for _ in 0..7 {
            pauses.push(longer(pauses[pauses.len() - 1], usual));
        }
        let millis: Vec<u128> = pauses.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [20, 40, 80, 160, 320, 500, 500, 500]);
        let patient = Duration::from_secs(60);
        let pause = longer(Duration::from_secs(9), patient);
        assert!(
            patient.div_duration_f64(pause) <= 20.0,
            "no more than 20 are under way: {pause:?}"
        );
    }

    #[test]
    fn nobody_is_looked_after_for_ever() {
        let endpoint = crate::eject::tests::endpoint();
        assert!(!goes_on(&endpoint, 1, 1), "nothing has failed");
        endpoint.reach.suspect();
        assert!(goes_on(&endpoint, 1_000, 60_999));
        assert!(!goes_on(&endpoint, 1_000, 61_000), "nobody has asked for a minute");
        endpoint.withdraw();
        assert!(!goes_on(&endpoint, 1_000, 1_000));
    }
}
