//! What an app's configuration says about balancing, worked out for its present endpoints when the route table is built.
//! Apps that only want their endpoints in turn have no plan, and pay nothing for what plans can do.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::HeaderMap;
use model::AppConfig;
use model::config::{Balance, HashKey, Sticky};

use super::share;
use super::sticky::{self, Kept, Tags};
use super::{Ask, hash};
use crate::eject::Endpoint;

/// Endpoints among which one is chosen: those of a version with a share, or all.
#[derive(Debug)]
pub(super) struct Group {
    /// Indices of the app's endpoints.
    pub(super) members: Box<[u32]>,
    /// Those of them in the gateway's region, where they come first and are not all.
    pub(super) near: Option<Box<Group>>,
    /// Whose turn it is.
    pub(super) turn: AtomicU32,
    /// The version's tag; `None` when versions have no shares.
    pub(super) version: Option<u32>,
    /// Upper end of its share, see [`share`].
    end: u64,
    pub(super) weight: u32,
}

/// How an app's endpoints are chosen.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(super) balance: Balance,
    hash: HashKey,
    pub(super) sticky: Sticky,
    pub(super) groups: Box<[Group]>,
    /// All endpoints, for requests that name their version and for those that nobody else takes.
    pub(super) all: Group,
    /// By index of the endpoint; empty when nothing needs them.
    pub(super) tags: Box<[Tags]>,
    /// Most requests under way at one endpoint.
    pub(super) most: u32,
    /// Milliseconds over which a new endpoint's share grows; 0: not at all.
    pub(super) slow_start_ms: u64,
}

impl Plan {
    /// `None` when the endpoints are simply taken in turn. `region` is the gateway's own; empty: it has none.
    pub(crate) fn new(config: &AppConfig, endpoints: &[Arc<Endpoint>], region: &str) -> Option<Box<Self>> {
        let nearest = config.prefer_region && !region.is_empty();
        let plain = config.balance == Balance::RoundRobin
            && config.weights.is_empty()
            && config.sticky == Sticky::None
            && !nearest
            && config.slow_start_s == 0
            && config.limits.max_in_flight_per_endpoint == 0;
        if plain {
            return None;
        }
        let all = || (0..endpoints.len() as u32).collect::<Box<[u32]>>();
        let plain_group = |members, version, near| Group {
            members,
            near,
            turn: AtomicU32::new(rand::random()),
            version,
            end: u64::MAX,
            weight: 0,
        };
        let is_near = |i: &u32| endpoints[*i as usize].load().is_some_and(|load| load.region == region);
        let group = |members: Box<[u32]>, version| {
            let near: Box<[u32]> = members.iter().copied().filter(|i| nearest && is_near(i)).collect();
            let some = !near.is_empty() && near.len() < members.len();
            let near = some.then(|| Box::new(plain_group(near, version, None)));
            plain_group(members, version, near)
        };
        let wants_tags = config.balance == Balance::ConsistentHash || config.sticky != Sticky::None;
        let tags: Box<[Tags]> = if wants_tags {
            endpoints.iter().map(|e| Tags::of(&e.key)).collect()
        } else {
            Box::default()
        };
        let mut groups: Vec<Group> = Vec::new();
        for (version, weight) in config.weights.iter().filter(|(_, weight)| **weight > 0) {
            let members: Box<[u32]> = (0..endpoints.len() as u32)
                .filter(|i| endpoints[*i as usize].key.version == *version)
                .collect();
            if let Some(first) = members.first() {
                let tag = tags.get(*first as usize).map_or(0, |t| t.version);
                groups.push(Group {
                    weight: *weight,
                    ..group(members, Some(tag))
                });
            }
        }
        let weights: Vec<u32> = groups.iter().map(|g| g.weight).collect();
        for (group, end) in groups.iter_mut().zip(share::ends(&weights)) {
            group.end = end;
        }
        if groups.is_empty() {
            groups.push(group(all(), None));
        }
        Some(Box::new(Self {
            balance: config.balance,
            hash: config.hash.clone(),
            sticky: config.sticky,
            groups: groups.into(),
            all: group(all(), None),
            tags,
            most: match config.limits.max_in_flight_per_endpoint {
                0 => u32::MAX,
                n => n,
            },
            slow_start_ms: u64::from(config.slow_start_s) * 1_000,
        }))
    }

    /// What an HTTP request says that matters here.
    pub(crate) fn read(&self, ask: &mut Ask, headers: &HeaderMap, client: IpAddr) {
        self.read_address(ask, client);
        if self.balance == Balance::ConsistentHash {
            let said = match &self.hash {
                HashKey::ClientAddress => None,
                HashKey::Header(name) => headers.get(name).map(|v| hash(v.as_bytes())),
                HashKey::Cookie(name) => sticky::cookies(headers, name).next().map(|v| hash(v.as_bytes())),
            };
            ask.key = said.or(ask.key);
        }
        if self.sticky != Sticky::None {
            ask.kept = Kept::read(headers);
        }
    }

    /// What a connection says that is not HTTP: only who it comes from.
    pub(crate) fn read_address(&self, ask: &mut Ask, client: IpAddr) {
        if self.balance == Balance::ConsistentHash {
            ask.key = Some(hash_address(client));
        }
    }

    /// Answers' latency matters.
    pub(crate) fn measures(&self) -> bool {
        self.balance == Balance::PeakEwma
    }

    /// The cookie that the client is to keep after an answer of `endpoint`; `None` when it has it already, or none is needed.
    pub(crate) fn cookie(&self, ask: &Ask, endpoints: &[Arc<Endpoint>], endpoint: u64) -> Option<Kept> {
        let tags = endpoints
            .iter()
            .position(|e| e.id == endpoint)
            .and_then(|i| self.tags.get(i))?;
        let keep = match self.sticky {
            Sticky::None => return None,
            // With one version there is nothing to keep, and who names the version needs no cookie for it.
            Sticky::Version if self.groups.len() < 2 || ask.version.is_some() => return None,
            Sticky::Version => Kept {
                version: tags.version,
                endpoint: None,
            },
            Sticky::Endpoint => Kept {
                version: tags.version,
                endpoint: Some(tags.endpoint),
            },
        };
        (ask.kept != Some(keep)).then_some(keep)
    }

    /// The group that a new client's request belongs to. `turn` counts the app's requests without a group of their own.
    pub(super) fn drawn(&self, ask: &Ask, turn: &AtomicU32) -> &Group {
        let [only] = &*self.groups else {
            // With consistent hashing a key keeps its version too.
            let point = match ask.key {
                Some(key) => share::point(super::mix(key)),
                None => share::point(u64::from(turn.fetch_add(1, Ordering::Relaxed))),
            };
            let drawn = self.groups.iter().find(|g| point <= g.end);
            return drawn.unwrap_or(&self.all);
        };
        only
    }

    /// Whether the endpoint is of a version with a share, where versions have shares.
    pub(super) fn in_play(&self, i: usize) -> bool {
        self.groups.iter().any(|g| g.members.contains(&(i as u32)))
    }

    /// Shares in percent by version, for operators; empty when versions have none.
    pub(crate) fn shares<'a>(&self, endpoints: &'a [Arc<Endpoint>]) -> Vec<(&'a str, f64)> {
        let total: u32 = self.groups.iter().map(|g| g.weight).sum();
        self.groups
            .iter()
            .filter(|g| g.version.is_some())
            .filter_map(|g| {
                let first = endpoints.get(*g.members.first()? as usize)?;
                Some((
                    first.key.version.as_str(),
                    f64::from(g.weight) * 100.0 / f64::from(total),
                ))
            })
            .collect()
    }
}

/// An IPv4 address hashes alike in both its forms.
fn hash_address(ip: IpAddr) -> u64 {
    match crate::config::plain(ip) {
        IpAddr::V4(ip) => hash(&ip.octets()),
        IpAddr::V6(ip) => hash(&ip.octets()),
    }
}
