//! Why an endpoint could have a request or could not, for operators. Chooses nothing and changes nothing.

use std::time::Instant;

use super::{Ask, of_version};
use crate::eject::{Clock, State};
use crate::table::App;

/// What stands between a request and an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It may have the request.
    Candidate,
    /// The client's cookie names it, and it may have the request.
    Kept,
    /// The request names another version, or its client keeps another.
    OtherVersion,
    /// Its version has no share.
    NoShare,
    /// Left out after failures.
    LeftOut,
    /// Left out, and not tried by requests either: no connect gets through.
    Unreachable,
    /// An operator has ejected it.
    Ejected,
    /// It has as much under way as it may.
    Full,
}

impl Standing {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::Kept => "kept",
            Self::OtherVersion => "other_version",
            Self::NoShare => "no_share",
            Self::LeftOut => "left_out",
            Self::Unreachable => "unreachable",
            Self::Ejected => "ejected",
            Self::Full => "full",
        }
    }

    pub(crate) fn may(self) -> bool {
        matches!(self, Self::Candidate | Self::Kept)
    }
}

/// Each endpoint's standing, in the app's order.
pub(crate) fn standings(app: &App, ask: &Ask, clock: Clock, now: Instant) -> Vec<Standing> {
    let plan = app.plan.as_deref();
    let kept_version = ask
        .kept
        .map(|k| k.version)
        .filter(|v| plan.is_some_and(|p| p.groups.iter().any(|g| g.version == Some(*v))));
    let mut standings: Vec<Standing> = app
        .endpoints
        .iter()
        .enumerate()
        .map(|(i, endpoint)| {
            if !of_version(endpoint, ask.version.as_deref()) {
                return Standing::OtherVersion;
            }
            if ask.version.is_none()
                && let Some(plan) = plan
            {
                if !plan.in_play(i) {
                    return Standing::NoShare;
                }
                if kept_version.is_some_and(|v| plan.tags.get(i).is_some_and(|t| t.version != v)) {
                    return Standing::OtherVersion;
                }
            }
            if endpoint.ejected_by_operator() {
                Standing::Ejected
            } else if endpoint.reach.is_unreachable(clock.millis(now)) {
                Standing::Unreachable
            } else if endpoint.state(clock, now) != State::Ready {
                Standing::LeftOut
            } else if plan.is_some_and(|p| endpoint.in_flight() >= p.most) {
                Standing::Full
            } else {
                Standing::Candidate
            }
        })
        .collect();
    let kept = ask.kept.and_then(|k| k.endpoint);
    if let (Some(tag), Some(plan)) = (kept, plan)
        && let Some(i) = plan.tags.iter().position(|t| t.endpoint == tag)
        && standings[i].may()
    {
        standings[i] = Standing::Kept;
    }
    standings
}
