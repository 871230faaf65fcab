//! Request rates: how often one client, and all of them together, may ask an app (GCRA, as governor has it). A connection holds
//! on to its client's rate, so that most requests cost no look-up; a cache with expiry keeps it for the client's other connections.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use model::config::Limits;

use crate::config::Config;
use crate::limit;
use crate::shared::Shared;
use crate::table::App;

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
}

/// The time of the request in hand, which is known already: governor asks a clock for each decision.
#[derive(Clone, Copy, Debug)]
struct RequestTime;

impl Clock for RequestTime {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(NOW.get())
    }
}

type One = RateLimiter<NotKeyed, InMemoryState, RequestTime, NoOpMiddleware<Nanos>>;

/// How long a client without a request is remembered. Bursts are bounded so that nobody gains by being forgotten.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Nanoseconds for which a connection holds on to its client's rate before it asks the cache again, which thereby knows that
/// the client is not idle.
const HELD: u64 = 20_000_000_000;

/// Which client of which app, by which limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    app: u64,
    limiter: u64,
    client: u128,
}

/// The rates of all clients at all apps.
#[derive(Clone)]
pub(crate) struct Clients(moka::sync::Cache<Key, Arc<One>, ahash::RandomState>);

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

impl Clients {
    /// Remembers at most `most` clients, each for a minute after its last request.
    pub(crate) fn new(most: u64) -> Self {
        let cache = moka::sync::Cache::builder()
            .max_capacity(most)
            .time_to_idle(REMEMBERED)
            .build_with_hasher(ahash::RandomState::default());
        Self(cache)
    }
}

/// The rate of a connection's client at the app that it asked last.
#[derive(Default)]
pub(crate) struct Held(RefCell<Option<Box<Rate>>>);

struct Rate {
    key: Key,
    /// Nanoseconds until which the cache need not be asked.
    until: u64,
    one: Arc<One>,
}

impl Held {
    /// Gives back what it holds.
    pub(crate) fn forget(&self) {
        self.0.replace(None);
    }
}

/// Request rates of one app.
pub(crate) struct Limiter {
    /// No other has had this number.
    number: u64,
    app: Option<One>,
    per_client: Option<Quota>,
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").finish_non_exhaustive()
    }
}

/// One request, as far as rates are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking {
    /// The app's number.
    pub(crate) app: u64,
    /// Who asks; `None`: nobody whose requests are counted.
    pub(crate) client: Option<IpAddr>,
    /// Nanoseconds since the gateway's start.
    pub(crate) now: u64,
}

impl Asking {
    /// A request that came from this address at this time. Trusted proxies are no clients; whom they speak for is.
    #[inline]
    pub(crate) fn new(shared: &Shared, app: &App, ip: IpAddr, at: Instant) -> Self {
        Self {
            app: app.shared.number,
            client: (!shared.trusted.contains(ip)).then_some(ip),
            now: shared.clock.nanos(at),
        }
    }
}

impl Limiter {
    /// `None` when the app has no rate limit.
    pub(crate) fn new(limits: &Limits, gateway: &Config) -> Option<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NOW.set(0);
        let app = NonZeroU32::new(limits.requests_per_second)
            .map(|n| RateLimiter::direct_with_clock(Quota::per_second(n), RequestTime));
        let per_client = per_client(limits, gateway);
        (app.is_some() || per_client.is_some()).then(|| Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            app,
            per_client,
        })
    }

    /// Counts one request; `Err` is the time after which the client may come again. A client over its own rate does not use
    /// up the app's.
    #[inline]
    pub(crate) fn check(&self, clients: &Clients, held: &Held, asking: Asking) -> Result<(), Duration> {
        NOW.set(asking.now);
        if let Some(quota) = &self.per_client
            && let Some(ip) = asking.client
        {
            let key = Key {
                app: asking.app,
                limiter: self.number,
                client: limit::number(limit::client(ip)),
            };
            let mut held = held.0.borrow_mut();
            match &*held {
                Some(rate) if rate.key == key && asking.now < rate.until => count(&rate.one)?,
                _ => {
                    let one = clients
                        .0
                        .get_with(key, || Arc::new(RateLimiter::direct_with_clock(*quota, RequestTime)));
                    let counted = count(&one);
                    let until = asking.now.saturating_add(HELD);
                    *held = Some(Box::new(Rate { key, until, one }));
                    counted?;
                }
            }
        }
        self.app.as_ref().map_or(Ok(()), count)
    }
}

fn count(one: &One) -> Result<(), Duration> {
    one.check().map_err(|until| until.wait_time_from(RequestTime.now()))
}

/// What one client may do: the app's own rate, else the gateway's.
fn per_client(limits: &Limits, gateway: &Config) -> Option<Quota> {
    if limits.unlimited_per_client {
        return None;
    }
    let (own, own_burst) = (limits.requests_per_second_per_client, limits.request_burst_per_client);
    let (rate, burst) = match own {
        0 => (gateway.requests_per_second_per_client, gateway.request_burst_per_client),
        own => (own, own),
    };
    let rate = NonZeroU32::new(rate)?;
    let burst = NonZeroU32::new(own_burst).or(NonZeroU32::new(burst)).unwrap_or(rate);
    let most = rate.saturating_mul(NonZeroU32::MIN.saturating_add(REMEMBERED.as_secs() as u32 - 1));
    Some(Quota::per_second(rate).allow_burst(burst.min(most)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("address"))
    }

    fn limits(per_client: u32, burst: u32, all: u32) -> Limits {
        Limits {
            requests_per_second_per_client: per_client,
            request_burst_per_client: burst,
            requests_per_second: all,
            ..Limits::default()
        }
    }

    /// How many of `n` requests at one time may pass.
    fn good(limiter: &Limiter, clients: &Clients, held: &Held, n: u32, asking: Asking) -> u32 {
        (0..n)
            .map(|_| u32::from(limiter.check(clients, held, asking).is_ok()))
            .sum()
    }

    #[test]
    fn a_greedy_client_does_not_use_up_the_app() {
        let (clients, held) = (Clients::new(100), Held::default());
        let limiter = Limiter::new(&limits(2, 0, 5), &Config::default()).expect("limits");
        let mut asking = Asking {
            app: 1,
            client: ip("10.0.0.1"),
            now: SECOND,
        };
        assert_eq!(good(&limiter, &clients, &held, 10, asking), 2);
        asking.client = ip("10.0.0.2");
        assert_eq!(good(&limiter, &clients, &held, 1, asking), 1);
        let refused = (0..10).find_map(|i| {
            asking.client = ip(&format!("10.0.1.{i}"));
            limiter.check(&clients, &held, asking).err()
        });
        assert!(refused.is_some_and(|wait| !wait.is_zero() && wait <= Duration::from_secs(1)));
    }

    #[test]
    fn all_connections_of_a_client_have_one_rate_at_each_app() {
        let clients = Clients::new(100);
        let limiter = Limiter::new(&limits(10, 0, 0), &Config::default()).expect("limits");
        let (one, other) = (Held::default(), Held::default());
        let mut asking = Asking {
            app: 1,
            client: ip("2001:db8::1"),
            now: SECOND,
        };
        assert_eq!(good(&limiter, &clients, &one, 6, asking), 6);
        asking.client = ip("2001:db8::ffff:2");
        assert_eq!(good(&limiter, &clients, &other, 6, asking), 4);
        asking.client = ip("2001:db8:0:1::1");
        assert_eq!(
            good(&limiter, &clients, &other, 20, asking),
            10,
            "another /64 is another client"
        );
        asking.client = ip("2001:db8::1");
        asking.app = 2;
        assert_eq!(
            good(&limiter, &clients, &one, 20, asking),
            10,
            "another app is asked by itself"
        );
        (asking.app, asking.now) = (1, SECOND + SECOND / 2);
        assert_eq!(
            good(&limiter, &clients, &one, 20, asking),
            5,
            "what half a second brings"
        );
        asking.client = None;
        assert_eq!(good(&limiter, &clients, &one, 20, asking), 20);
    }

    #[test]
    fn a_connection_that_holds_its_rate_for_long_shares_it_still() {
        let clients = Clients::new(100);
        let limiter = Limiter::new(&limits(1, 0, 0), &Config::default()).expect("limits");
        let (one, other) = (Held::default(), Held::default());
        let mut asking = Asking {
            app: 1,
            client: ip("10.0.0.1"),
            now: SECOND,
        };
        for _ in 0..100 {
            asking.now += HELD / 2;
            assert_eq!(good(&limiter, &clients, &one, 2, asking), 1);
            assert_eq!(good(&limiter, &clients, &other, 1, asking), 0);
        }
    }

    #[test]
    fn the_gateways_rate_holds_unless_the_app_has_its_own_or_none() {
        let rate = |limits: &Limits, gateway: &Config| {
            per_client(limits, gateway).map(|q| {
                let each = q.replenish_interval().as_nanos();
                (1_000_000_000 / each, q.burst_size().get())
            })
        };
        let gateway = Config::default();
        assert_eq!(rate(&limits(0, 0, 0), &gateway), Some((2_000, 10_000)));
        assert_eq!(rate(&limits(5, 0, 0), &gateway), Some((5, 5)));
        assert_eq!(rate(&limits(5, 50, 0), &gateway), Some((5, 50)));
        assert_eq!(rate(&limits(0, 50, 0), &gateway), Some((2_000, 50)));
        let forgotten = rate(&limits(1, 1_000_000, 0), &gateway);
        assert_eq!(forgotten, Some((1, 60)), "who is forgotten gains nothing");
        let mut none = limits(5, 5, 0);
        none.unlimited_per_client = true;
        assert_eq!(rate(&none, &gateway), None);
        let off = Config {
            requests_per_second_per_client: 0,
            ..Config::default()
        };
        assert_eq!(rate(&limits(0, 50, 0), &off), None);
        assert_eq!(rate(&limits(7, 0, 0), &off), Some((7, 7)));
        assert!(Limiter::new(&limits(0, 0, 0), &off).is_none());
        assert!(Limiter::new(&limits(0, 0, 1), &off).is_some());
    }
}
