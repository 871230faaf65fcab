//! Limits: networks, connections per client, and the budget of retries; rates are in [`crate::rate`]. They answer yes or no at
//! once and hold bounded state; none of them ever makes a request wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;

use crate::config::plain;

/// A set of networks; looking an address up costs the logarithm of their number. IPv6 networks hold for IPv6 only, also those
/// in which the addresses lie that wrap IPv4: `::/0` says nothing about IPv4.
#[derive(Clone, Debug, Default)]
pub(crate) struct Networks(Vec<(u128, u128)>);

/// The first and the last address with which IPv6 wraps IPv4 (`::ffff:0:0/96`, RFC 4291 2.5.5.2).
const WRAPPED: (u128, u128) = (0xffff_0000_0000, 0xffff_ffff_ffff);

/// The address as a number, IPv4 as IPv6 wraps it.
pub(crate) fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl Networks {
    pub(crate) fn new(networks: &[IpNet]) -> Self {
        let mut ranges: Vec<_> = networks
            .iter()
            .flat_map(|n| {
                let (first, last) = (number(n.network()), number(n.broadcast()));
                match first < WRAPPED.0 && last >= WRAPPED.1 {
                    true => [
                        Some((first, WRAPPED.0 - 1)),
                        (last > WRAPPED.1).then_some((WRAPPED.1 + 1, last)),
                    ],
                    false => [Some((first, last)), None],
                }
            })
            .flatten()
            .collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// Whether the address lies in one of them.
    #[inline]
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let ip = number(ip);
        let after = self.0.partition_point(|(first, _)| *first <= ip);
        after > 0 && ip <= self.0[after - 1].1
    }
}

/// What counts as one client: an IPv4 address, or the /64 that an IPv6 customer holds.
pub(crate) fn client(ip: IpAddr) -> IpAddr {
    match plain(ip) {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// Connections per client over all workers.
#[derive(Debug)]
pub(crate) struct Connections {
    most: u32,
    shards: Box<[Mutex<HashMap<IpAddr, u32, ahash::RandomState>>]>,
}

impl Connections {
    /// At most `most` per client; 0: any number.
    pub(crate) fn new(most: u32) -> Self {
        Self {
            most,
            shards: (0..16).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, ip: IpAddr) -> &Mutex<HashMap<IpAddr, u32, ahash::RandomState>> {
        let n = number(ip);
        &self.shards[((n ^ (n >> 64)) % self.shards.len() as u128) as usize]
    }

    /// Counts a connection, or refuses it.
    pub(crate) fn open(self: &Arc<Self>, ip: IpAddr) -> Option<OneConnection> {
        if self.most == 0 {
            return Some(OneConnection(None));
        }
        let ip = client(ip);
        let mut shard = self.shard(ip).lock().unwrap_or_else(PoisonError::into_inner);
        let count = shard.entry(ip).or_insert(0);
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(OneConnection(Some((Arc::clone(self), ip))))
    }
}

/// One counted connection; it counts until this is dropped.
#[derive(Debug)]
pub(crate) struct OneConnection(Option<(Arc<Connections>, IpAddr)>);

impl Drop for OneConnection {
    fn drop(&mut self) {
        if let Some((all, ip)) = &self.0 {
            let mut shard = all.shard(*ip).lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = shard.get_mut(ip) {
                *count -= 1;
                if *count == 0 {
                    shard.remove(ip);
                }
            }
        }
    }
}

/// Retries that an app may cause: a fifth of its requests and 3 a second, saved up to 100 so that an app of which
/// most endpoints have just died is found out of the failures at once. Retries must not multiply an outage.
#[derive(Debug, Default)]
pub(crate) struct RetryBudget(Mutex<Option<Budget>>);

#[derive(Clone, Copy, Debug)]
struct Budget {
    tokens: f64,
    requests: u64,
    at: Instant,
}

const SAVED: f64 = 100.0;
const PER_REQUEST: f64 = 0.2;
const PER_SECOND: f64 = 3.0;

impl RetryBudget {
    /// Takes one retry; `requests` is the number of the app's requests so far. Only called when a request failed.
    pub(crate) fn take(&self, requests: u64, now: Instant) -> bool {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = slot.get_or_insert(Budget {
            tokens: SAVED,
            requests,
            at: now,
        });
        let earned = requests.saturating_sub(budget.requests) as f64 * PER_REQUEST
            + now.saturating_duration_since(budget.at).as_secs_f64() * PER_SECOND;
        budget.tokens = (budget.tokens + earned).min(SAVED);
        budget.requests = requests;
        budget.at = now;
        let may = budget.tokens >= 1.0;
        if may {
            budget.tokens -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn networks_merge_and_contain() {
        let nets: Vec<IpNet> = [
            "10.0.0.0/8",
            "10.1.0.0/16",
            "192.168.1.1/32",
            "2001:db8::/32",
            "172.16.0.0/12",
        ]
        .iter()
        .map(|t| t.parse().expect("network"))
        .collect();
        let set = Networks::new(&nets);
        for inside in [
            "10.0.0.0",
            "10.255.255.255",
            "192.168.1.1",
            "172.31.0.1",
            "2001:db8::1",
            "::ffff:10.2.3.4",
        ] {
            assert!(set.contains(ip(inside)), "{inside}");
        }
        for outside in ["9.255.255.255", "11.0.0.0", "192.168.1.2", "2001:db9::1", "::1"] {
            assert!(!set.contains(ip(outside)), "{outside}");
        }
        assert!(!Networks::default().contains(ip("10.0.0.1")));
    }

    #[test]
    fn networks_of_ipv6_say_nothing_about_ipv4() {
        let set = |nets: &[&str]| Networks::new(&nets.iter().map(|t| t.parse().expect("network")).collect::<Vec<_>>());
        for net in ["::/0", "::/1", "::/80"] {
            let all = set(&[net, "10.0.0.0/8"]);
            assert!(all.contains(ip("::1")) && all.contains(ip("::fffe:ffff:ffff")));
            assert_eq!(all.contains(ip("::1:0:0:0")), net != "::/80");
            assert!(all.contains(ip("10.0.0.1")) && all.contains(ip("::ffff:10.0.0.1")));
            for outside in ["0.0.0.0", "9.255.255.255", "255.255.255.255", "::ffff:11.0.0.1"] {
                assert!(!all.contains(ip(outside)), "{outside}");
            }
        }
        let four = set(&["0.0.0.0/0"]);
        assert!(four.contains(ip("192.0.2.1")) && four.contains(ip("::ffff:192.0.2.1")));
        assert!(!four.contains(ip("::1")) && !four.contains(ip("2001:db8::1")));
        // Named by their wrapping they are meant.
        assert!(set(&["::ffff:0:0/96"]).contains(ip("192.0.2.1")));
        assert!(set(&["::ffff:10.0.0.0/104"]).contains(ip("10.2.3.4")));
    }

    #[test]
    fn neighbours_in_a_64_are_one_client() {
        assert_eq!(client(ip("2001:db8::1")), client(ip("2001:db8::ffff:1")));
        assert_ne!(client(ip("2001:db8::1")), client(ip("2001:db8:0:1::1")));
        assert_eq!(client(ip("::ffff:10.0.0.1")), ip("10.0.0.1"));
    }

    #[test]
    fn connections_per_client() {
        let all = Arc::new(Connections::new(2));
        let one = all.open(ip("10.0.0.1")).expect("first");
        let _two = all.open(ip("10.0.0.1")).expect("second");
        assert!(all.open(ip("10.0.0.1")).is_none());
        assert!(all.open(ip("10.0.0.2")).is_some());
        drop(one);
        assert!(all.open(ip("10.0.0.1")).is_some());
    }

    #[test]
    fn retries_stay_within_a_fifth_of_the_requests() {
        let budget = RetryBudget::default();
        let start = Instant::now();
        let saved = (0..200).filter(|_| budget.take(0, start)).count();
        assert_eq!(saved, 100);
        let mut retries = 0;
        for requests in 1..=1_000 {
            retries += u32::from(budget.take(requests, start));
        }
        assert!((195..=200).contains(&retries), "{retries}");
        let later = start + Duration::from_secs(2);
        let by_time = (0..20).filter(|_| budget.take(1_000, later)).count();
        assert!((6..=7).contains(&by_time), "{by_time}");
    }
}
