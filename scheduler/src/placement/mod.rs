//! Placement: on which host a new instance goes. Pure: it reads one look at the store and decides; the store's
//! transaction has the last word, and refuses what no longer fits.

mod filters;
mod score;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use model::{AppId, Host, HostName, Instance, InstanceState, ReleaseSpec, Timestamp};
use rand::RngExt as _;
use serde::Serialize;

pub(crate) use filters::Filter;
pub(crate) use score::Score;

/// How long a host on which an instance of an app failed is avoided by that app (SwarmKit's window).
pub(crate) const FAILED_RECENTLY: Duration = Duration::from_secs(300);

/// How long a host whose engine said that its disk is full is passed over by all apps: long enough that it is not asked all the time,
/// short enough that room that somebody made is used soon.
pub(crate) const DISK_REST: Duration = Duration::from_secs(60);

/// What the held instances take on each host, and what earlier picks of the same look have promised.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census {
    hosts: HashMap<HostName, Tally>,
}

/// One host's part of a [`Census`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Leased ports.
    ports: u32,
    /// The store found every port of the range leased or resting, a moment ago.
    no_port: bool,
    /// Its engine said a moment ago that its disk is full.
    disk_full: bool,
    /// Instances that are being launched.
    starting: u32,
    /// Memory promised by picks that the host's row does not show yet, MiB.
    promised_memory_mb: u32,
    /// CPU weight promised likewise.
    promised_cpu_weight: u32,
    /// Per app: live instances, and all whose container may run.
    apps: HashMap<AppId, (u32, u32)>,
}

impl Tally {
    fn live(&self, app: &AppId) -> u32 {
        self.apps.get(app).map_or(0, |n| n.0)
    }

    fn present(&self, app: &AppId) -> u32 {
        self.apps.get(app).map_or(0, |n| n.1)
    }
}

impl Census {
    /// Counts `held` instances.
    pub(crate) fn of<'a>(held: impl IntoIterator<Item = &'a Instance>) -> Self {
        let mut census = Self::default();
        for instance in held {
            let tally = census.hosts.entry(instance.host.clone()).or_default();
            tally.ports += 1;
            if matches!(instance.state, InstanceState::Placed | InstanceState::Starting) {
                tally.starting += 1;
            }
            let live = instance.state.is_live();
            let present = live || matches!(instance.state, InstanceState::Draining | InstanceState::Drained);
            if present {
                let counts = tally.apps.entry(instance.app.clone()).or_default();
                counts.0 += u32::from(live);
                counts.1 += 1;
            }
        }
        census
    }

    /// The store found no port free on `host`: it is passed over.
    pub(crate) fn no_port(&mut self, host: &HostName) {
        self.hosts.entry(host.clone()).or_default().no_port = true;
    }

    /// The disk of `host` is full: it is passed over.
    pub(crate) fn disk_full(&mut self, host: &HostName) {
        self.hosts.entry(host.clone()).or_default().disk_full = true;
    }

    fn promise(&mut self, host: &HostName, app: &AppId, spec: &ReleaseSpec) {
        let tally = self.hosts.entry(host.clone()).or_default();
        tally.ports += 1;
        tally.starting += 1;
        tally.promised_memory_mb = tally.promised_memory_mb.saturating_add(spec.memory_mb);
        tally.promised_cpu_weight = tally.promised_cpu_weight.saturating_add(spec.cpu_weight);
        let counts = tally.apps.entry(app.clone()).or_default();
        counts.0 += 1;
        counts.1 += 1;
    }
}

/// What is to be placed.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    /// The app.
    pub app: &'a AppId,
    /// The release's spec.
    pub spec: &'a ReleaseSpec,
    /// How many instances the app wants in all (weighs the spread).
    pub desired: u32,
    /// Only these hosts (`one_per_host`); `None`: all.
    pub only: Option<&'a [HostName]>,
    /// Live instances of the app per host that are about to be replaced: they count neither towards the spread nor
    /// towards `max_per_host`, or no release could ever take over from another.
    pub leaving: &'a HashMap<HostName, u32>,
    /// Hosts on which an instance of the app failed in the last five minutes.
    pub failed_on: &'a HashSet<HostName>,
}

impl Request<'_> {
    /// Instances of the app on `host` that stay.
    fn own(&self, host: &HostName, tally: &Tally) -> u32 {
        let leaving = self.leaving.get(host).copied().unwrap_or(0);
        tally.live(self.app).saturating_sub(leaving)
    }
}

/// Why each host fits or does not.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Explanation {
    /// How many hosts were looked at.
    pub hosts: usize,
    /// Those that fit, the best first.
    pub fitting: Vec<Fit>,
    /// Those that do not, by filter.
    pub refused: Vec<Refused>,
}

/// A host that fits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Fit {
    /// Which.
    pub host: HostName,
    /// How good it is.
    pub score: Score,
}

/// The hosts that one filter refused.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Refused {
    /// Which filter.
    pub filter: Filter,
    /// Whom it refused.
    pub hosts: Vec<HostName>,
    /// Why, in a sentence.
    pub reason: String,
}

impl Explanation {
    /// A line per filter that refused a host; one line when there is no host at all.
    pub(crate) fn reasons(&self) -> Vec<String> {
        if self.hosts == 0 {
            return vec!["hosts: there is no host; add one".into()];
        }
        self.refused.iter().map(|r| r.reason.clone()).collect()
    }
}

/// Explains where an instance of `app` made from `spec` could go now. `held`: all instances that hold resources; `census`: these and
/// what else is known of the hosts.
pub(crate) fn explain(
    spec: &ReleaseSpec,
    app: &AppId,
    hosts: &[Host],
    held: &[Instance],
    census: &Census,
) -> Explanation {
    let own: Vec<&Instance> = held.iter().filter(|i| i.app == *app).collect();
    let desired = u32::try_from(own.iter().filter(|i| i.state.is_live()).count()).unwrap_or(u32::MAX);
    let request = Request {
        app,
        spec,
        desired: desired.max(1),
        only: None,
        leaving: &HashMap::new(),
        failed_on: &failed_on(own, Timestamp::now()),
    };
    explain_request(&request, hosts, census)
}

/// Hosts on which one of `instances` failed in the last five minutes.
pub(crate) fn failed_on<'a>(instances: impl IntoIterator<Item = &'a Instance>, now: Timestamp) -> HashSet<HostName> {
    instances
        .into_iter()
        .filter(|i| i.state == InstanceState::Failed && now.since(i.changed_at) < FAILED_RECENTLY)
        .map(|i| i.host.clone())
        .collect()
}

fn considered<'a>(request: &'a Request<'_>, hosts: &'a [Host]) -> impl Iterator<Item = &'a Host> {
    hosts
        .iter()
        .filter(|h| request.only.is_none_or(|only| only.contains(&h.name)))
}

fn explain_request(request: &Request<'_>, hosts: &[Host], census: &Census) -> Explanation {
    let empty = Tally::default();
    let largest = hosts.iter().map(|h| h.memory_mb).max().unwrap_or(0);
    let mut explanation = Explanation::default();
    let mut refused: BTreeMap<Filter, Vec<&Host>> = BTreeMap::new();
    for host in considered(request, hosts) {
        explanation.hosts += 1;
        let tally = census.hosts.get(&host.name).unwrap_or(&empty);
        match filters::refusal(host, tally, request) {
            Some(filter) => refused.entry(filter).or_default().push(host),
            None => explanation.fitting.push(Fit {
                host: host.name.clone(),
                score: score::score(host, tally, request, largest),
            }),
        }
    }
    explanation
        .fitting
        .sort_by(|a, b| b.score.total.total_cmp(&a.score.total));
    explanation.refused = refused
        .into_iter()
        .map(|(filter, hosts)| Refused {
            filter,
            reason: filters::sentence(filter, &hosts, request),
            hosts: hosts.into_iter().map(|h| h.name.clone()).collect(),
        })
        .collect();
    explanation
}

/// Chooses hosts for `count` instances, one after the other, each pick seeing the ones before it (they are noted in
/// `census`). Fewer than `count` when no host fits any more; then also why.
pub(crate) fn choose(
    request: &Request<'_>,
    count: usize,
    hosts: &[Host],
    census: &mut Census,
) -> (Vec<HostName>, Option<Explanation>) {
    let empty = Tally::default();
    let largest = hosts.iter().map(|h| h.memory_mb).max().unwrap_or(0);
    let mut rng = rand::rng();
    let mut picks = Vec::with_capacity(count);
    while picks.len() < count {
        let mut best: Option<(&HostName, f64)> = None;
        let mut ties = 1_u32;
        for host in considered(request, hosts) {
            let tally = census.hosts.get(&host.name).unwrap_or(&empty);
            if filters::refusal(host, tally, request).is_some() {
                continue;
            }
            let total = score::score(host, tally, request, largest).total;
            match best {
                Some((_, other)) if total < other => {}
                // Of n equal ones each is kept with a chance of 1/n.
                #[expect(clippy::float_cmp, reason = "only exactly equal scores are ties")]
                Some((_, other)) if total == other => {
                    ties += 1;
                    if rng.random_range(0..ties) == 0 {
                        best = Some((&host.name, total));
                    }
                }
                _ => {
                    best = Some((&host.name, total));
                    ties = 1;
                }
            }
        }
        let Some((host, _)) = best else {
            return (picks, Some(explain_request(request, hosts, census)));
        };
        let host = host.clone();
        census.promise(&host, request.app, request.spec);
        picks.push(host);
    }
    (picks, None)
}

/// Whether an instance of a `one_per_host` app belongs on `host` for good: labels and neighbours fit. Neither its
/// state nor its memory is asked: an instance that is there stays through a cordon and has its own memory.
pub(crate) fn belongs(spec: &ReleaseSpec, app: &AppId, host: &Host, census: &Census) -> bool {
    let empty = Tally::default();
    let tally = census.hosts.get(&host.name).unwrap_or(&empty);
    let mut open = host.clone();
    open.schedulability = model::Schedulability::Schedulable;
    open.down_since = None;
    let request = Request {
        app,
        spec,
        desired: 1,
        only: None,
        leaving: &HashMap::new(),
        failed_on: &HashSet::new(),
    };
    let (together, apart) = (&spec.placement.together_with, &spec.placement.apart_from);
    !matches!(
        filters::refusal(&open, tally, &request),
        Some(Filter::State | Filter::Labels | Filter::NotLabels)
    ) && together.as_ref().is_none_or(|other| tally.live(other) > 0)
        && apart.as_ref().is_none_or(|other| tally.present(other) == 0)
}
