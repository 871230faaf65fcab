//! Capacity: whether there is room for what is asked, said at once instead of found out later. An estimate from one look:
//! the placement's transaction has the last word.

use std::collections::{HashMap, HashSet};

use model::store::InstanceFilter;
use model::{AppId, HostName, Instance, ReleaseSpec, Timestamp};

use super::Api;
use super::error::{ApiError, Code};
use crate::placement::{self, Request};

/// Most placements that a plan spells out.
pub(super) const MOST_PLANNED: u32 = 100;

/// Where new instances would go, and why no more of them fit.
#[derive(Debug)]
pub(super) struct Room {
    /// A host per instance that fits, at most [`MOST_PLANNED`].
    pub(super) would_place: Vec<HostName>,
    /// A line per filter, when not all fit.
    pub(super) reasons: Vec<String>,
    /// Live instances of the app now.
    pub(super) live: u32,
}

/// What is asked room for.
#[derive(Debug)]
pub(super) enum Ask {
    /// That many instances of a release that replaces the present one.
    Replacing(u32),
    /// As many as are missing from that number.
    UpTo(u32),
    /// That many of a release beside the present one.
    Beside(u32),
}

/// Looks for room for instances of `app` made from `spec`.
pub(super) async fn room(api: &Api, app: &AppId, spec: &ReleaseSpec, ask: &Ask) -> Result<Room, ApiError> {
    let hosts = api.store.host_list().await?;
    let held = api.store.instance_list(&InstanceFilter::held()).await?;
    let own: Vec<&Instance> = held.iter().filter(|i| i.app == *app).collect();
    let mut leaving: HashMap<HostName, u32> = HashMap::new();
    let mut live = 0_u32;
    for instance in own.iter().filter(|i| i.state.is_live()) {
        live += 1;
        if matches!(ask, Ask::Replacing(_)) {
            *leaving.entry(instance.host.clone()).or_default() += 1;
        }
    }
    let (count, desired) = match *ask {
        Ask::Replacing(wanted) | Ask::Beside(wanted) => (wanted, wanted),
        Ask::UpTo(wanted) => (wanted.saturating_sub(live), wanted),
    };
    let beside = matches!(ask, Ask::Beside(_));
    let count = if spec.placement.one_per_host && !beside {
        u32::try_from(hosts.len()).unwrap_or(MOST_PLANNED)
    } else {
        count
    };
    let mut spec = spec.clone();
    spec.placement.one_per_host &= !beside;
    let request = Request {
        app,
        spec: &spec,
        desired: desired.max(1),
        only: None,
        leaving: &leaving,
        failed_on: &HashSet::from_iter(placement::failed_on(own.iter().copied(), Timestamp::now())),
    };
    let mut census = api.fleet.census(&held, Timestamp::now());
    let count = count.min(MOST_PLANNED) as usize;
    let (would_place, explanation) = placement::choose(&request, count, &hosts, &mut census);
    Ok(Room {
        would_place,
        reasons: explanation.map(|e| e.reasons()).unwrap_or_default(),
        live,
    })
}

/// The refusal when not even one instance fits.
pub(super) fn none(what: &str, reasons: Vec<String>) -> ApiError {
    ApiError::new(
        Code::NoCapacity,
        format!("the {what} was not accepted: no host fits; repeat with ?queue=true to wait for room"),
    )
    .because(reasons)
}
