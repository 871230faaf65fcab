//! The canary: what becomes of an app that is given a second release beside the present one. Pure, like
//! [`crate::intent`], of whose decisions these are parts.

use model::config::Protocol;
use model::{App, Canary, OperationKind, Release, ReleaseSpec, Version};

use crate::intent::{Refusal, Situation, checked, running};

/// A canary to be.
#[derive(Clone, Debug)]
pub(crate) struct NewCanary {
    /// Its image's tag.
    pub(crate) version: Version,
    /// The digest to which it resolved.
    pub(crate) digest: String,
    /// What its containers are made from.
    pub(crate) spec: ReleaseSpec,
    /// What its instances speak.
    pub(crate) protocol: Protocol,
    /// Its number of instances, 1-1,000.
    pub(crate) instances: u32,
    /// Its share of the requests, 0-100 %.
    pub(crate) percent: u32,
}

/// Refuses while there is a canary that is not on its way out.
pub(crate) fn none(app: &App) -> Result<(), Refusal> {
    match &app.canary {
        Some(canary) if !canary.leaves() => Err(Refusal::HasCanary(app.id.clone(), canary.release)),
        _ => Ok(()),
    }
}

fn of(app: &App) -> Result<Canary, Refusal> {
    let canary = app.canary.clone().filter(|c| !c.leaves());
    canary.ok_or_else(|| Refusal::NoCanary(app.id.clone()))
}

fn checked_share(percent: u32) -> Result<u32, Refusal> {
    if percent <= 100 {
        Ok(percent)
    } else {
        Err(Refusal::Share(percent))
    }
}

/// Gives `app` a canary; its release.
pub(crate) fn begin(app: &mut App, situation: &Situation<'_>, new: &NewCanary) -> Result<(Release, String), Refusal> {
    running(app)?;
    none(app)?;
    let taking_over = situation.open.is_some_and(|open| {
        matches!(
            open.kind,
            OperationKind::Deploy | OperationKind::Rollback | OperationKind::Promote
        )
    });
    let Some(beside) = situation.version.cloned().filter(|_| app.is_settled() && !taking_over) else {
        return Err(Refusal::NothingBeside(app.id.clone()));
    };
    if beside == new.version {
        return Err(Refusal::SameVersion(app.id.clone(), beside));
    }
    let speaks = app.config.protocol;
    if speaks.of_instance(Some(new.protocol)) != new.protocol {
        let id = app.id.clone();
        return Err(Refusal::CanaryOfAnotherKind(id, speaks.as_str(), new.protocol.as_str()));
    }
    let canary = Canary {
        release: app.last_release + 1,
        version: new.version.clone(),
        beside,
        instances: checked(new.instances.max(1))?,
        percent: checked_share(new.percent)?,
    };
    let release = Release {
        app: app.id.clone(),
        number: canary.release,
        version: new.version.clone(),
        digest: new.digest.clone(),
        spec: new.spec.clone(),
        protocol: Some(new.protocol),
        created_at: situation.now,
    };
    let message = format!(
        "canary {}:{} as release {}, {} instances with {} % of the requests",
        app.id, canary.version, canary.release, canary.instances, canary.percent
    );
    app.last_release = canary.release;
    app.config.weights = canary.weights();
    app.canary = Some(canary);
    Ok((release, message))
}

/// Gives the canary of `app` another share.
pub(crate) fn share(app: &mut App, percent: u32) -> Result<String, Refusal> {
    let canary = Canary {
        percent: checked_share(percent)?,
        ..of(app)?
    };
    let message = format!("the canary of {} has {percent} % of the requests", app.id);
    app.config.weights = canary.weights();
    app.canary = Some(canary);
    Ok(message)
}

/// The canary of `app`, whose release speaks `protocol`, becomes what the app is at. The shares go at once: while one version's instances take over from
/// the other's, each instance is given as much as any other, so that neither the first new ones nor the last old ones
/// get a whole version's share.
pub(crate) fn promote(app: &mut App, protocol: Option<Protocol>) -> Result<String, Refusal> {
    running(app)?;
    let canary = of(app)?;
    let message = format!(
        "promote the canary of {}: from release {} to {}",
        app.id, app.release, canary.release
    );
    app.turn_to(canary.release, protocol);
    app.canary = None;
    app.config.weights.clear();
    Ok(message)
}

/// The canary of `app` is on its way out.
pub(crate) fn abort(app: &mut App) -> Result<String, Refusal> {
    let canary = of(app)?;
    let message = format!("abort the canary of {}, release {}", app.id, canary.release);
    let canary = canary.leaving();
    app.config.weights = canary.weights();
    app.canary = Some(canary);
    Ok(message)
}

#[cfg(test)]
mod tests {
    use model::{AppStatus, Operation, OperationState};

    use super::*;
    use crate::intent::tests::{NOW, app_at, deploy, id, rollback, unproven};
    use crate::intent::{Change, blank_operation, decide};

    fn canary(version: &str, instances: u32, percent: u32) -> Change {
        Change::Canary(Box::new(NewCanary {
            version: version.parse().unwrap(),
            digest: "sha256:1".into(),
            spec: ReleaseSpec::default(),
            protocol: Protocol::Http,
            instances,
            percent,
        }))
    }

    /// Beside version 1.
    fn at<'a>(id: &'a model::AppId, app: Option<&'a App>) -> Situation<'a> {
        static ONE: std::sync::LazyLock<Version> = std::sync::LazyLock::new(|| "1".parse().unwrap());
        Situation {
            version: app.map(|_| &*ONE),
            ..crate::intent::tests::at(id, app)
        }
    }

    fn shares(app: &App) -> Vec<(String, u32)> {
        let weights = app.config.weights.iter();
        weights.map(|(version, share)| (version.to_string(), *share)).collect()
    }

    fn with_canary() -> App {
        let id = id();
        let app = app_at(3, 3);
        decide(&at(&id, Some(&app)), &canary("2", 2, 5)).unwrap().app
    }

    #[test]
    fn a_canary_begins_beside_the_present_release() {
        let id = id();
        let app = app_at(3, 3);
        let draft = decide(&at(&id, Some(&app)), &canary("2", 2, 5)).unwrap();
        assert_eq!(
            (draft.app.release, draft.app.previous_release, draft.app.last_release),
            (3, 3, 4)
        );
        assert_eq!(draft.app.instances, app.instances);
        let begun = draft.app.canary.clone().unwrap();
        assert_eq!((begun.release, begun.instances, begun.percent), (4, 2, 5));
        assert_eq!(shares(&draft.app), [("1".into(), 95), ("2".into(), 5)]);
        assert_eq!((draft.release.unwrap().number, draft.operation.release), (4, Some(4)));
        assert_eq!(draft.operation.kind, OperationKind::Canary);
    }

    #[test]
    fn a_canary_is_refused_where_it_makes_no_sense() {
        let id = id();
        let app = app_at(3, 3);
        let refusal = |app: &App, change: &Change| decide(&at(&id, Some(app)), change).unwrap_err();
        let nothing = Refusal::NothingBeside(id.clone());
        assert_eq!(
            refusal(&unproven(&app), &canary("2", 1, 5)),
            nothing,
            "a deploy has not come through"
        );
        let same = Refusal::SameVersion(id.clone(), "1".parse().unwrap());
        assert_eq!(refusal(&app, &canary("1", 1, 5)), same);
        assert_eq!(refusal(&app, &canary("2", 1, 101)), Refusal::Share(101));
        assert_eq!(refusal(&app, &canary("2", 1_001, 5)), Refusal::TooMany(1_001));
        let mut stopped = app.clone();
        stopped.status = AppStatus::Stopped;
        assert_eq!(refusal(&stopped, &canary("2", 1, 5)), Refusal::Stopped(id.clone()));
        for change in [Change::Share(5), Change::Promote(None), Change::Abort] {
            assert_eq!(refusal(&app, &change), Refusal::NoCanary(id.clone()));
        }
        let has = Refusal::HasCanary(id.clone(), 4);
        for change in [canary("9", 1, 5), deploy("9", None), rollback(1)] {
            assert_eq!(refusal(&with_canary(), &change), has, "{change:?}");
        }
        let deploying = Operation {
            release: Some(3),
            ..blank_operation(OperationKind::Deploy, NOW)
        };
        let mut situation = at(&id, Some(&app));
        situation.open = Some(&deploying);
        assert_eq!(decide(&situation, &canary("2", 1, 5)).unwrap_err(), nothing);
    }

    #[test]
    fn its_share_is_changed_and_survives_another_configuration() {
        let id = id();
        let app = with_canary();
        let more = decide(&at(&id, Some(&app)), &Change::Share(50)).unwrap();
        assert_eq!(shares(&more.app), [("1".into(), 50), ("2".into(), 50)]);
        assert_eq!(more.operation.state, OperationState::Succeeded);
        let none = decide(&at(&id, Some(&app)), &Change::Share(0)).unwrap().app;
        assert_eq!(shares(&none), [("1".into(), 100), ("2".into(), 0)]);
        assert!(
            none.canary.is_some_and(|canary| !canary.leaves()),
            "it stays, for who asks for it by name"
        );
        let refused = decide(&at(&id, Some(&app)), &Change::Share(101));
        assert_eq!(refused, Err(Refusal::Share(101)));
        let configured = decide(&at(&id, Some(&more.app)), &Change::Configure(Box::default())).unwrap();
        assert_eq!(configured.app.config.weights, more.app.config.weights);
        let scaled = decide(&at(&id, Some(&more.app)), &Change::Scale(7)).unwrap().app;
        assert_eq!((scaled.instances, scaled.canary), (7, more.app.canary));
    }

    #[test]
    fn a_promoted_canary_is_the_release_and_the_old_one_the_way_back() {
        let id = id();
        let draft = decide(&at(&id, Some(&with_canary())), &Change::Promote(None)).unwrap();
        assert_eq!((draft.app.release, draft.app.previous_release), (4, 3));
        assert_eq!((draft.app.canary.as_ref(), draft.app.config.weights.len()), (None, 0));
        assert_eq!(
            (draft.operation.kind, draft.operation.release),
            (OperationKind::Promote, Some(4))
        );
        decide(&at(&id, Some(&draft.app)), &deploy("9", None)).unwrap();
    }

    #[test]
    fn a_canary_speaks_its_own_protocol_and_brings_it_when_it_takes_over() {
        let id = id();
        let app = app_at(3, 3);
        let speaking = |protocol| {
            let Change::Canary(mut new) = canary("2", 1, 5) else {
                unreachable!("as it was made")
            };
            new.protocol = protocol;
            Change::Canary(new)
        };
        let begun = decide(&at(&id, Some(&app)), &speaking(Protocol::H2c)).unwrap();
        assert_eq!(begun.release.unwrap().protocol, Some(Protocol::H2c));
        assert_eq!(
            begun.app.config.protocol,
            Protocol::Http,
            "the app's until it takes over"
        );
        let aborted = decide(&at(&id, Some(&begun.app)), &Change::Abort).unwrap();
        assert_eq!(aborted.app.config.protocol, Protocol::Http);
        let promote = Change::Promote(Some(Protocol::H2c));
        let mut promoted = decide(&at(&id, Some(&begun.app)), &promote).unwrap().app;
        assert_eq!(promoted.config.protocol, Protocol::H2c);
        promoted.turn_back();
        assert_eq!((promoted.release, promoted.config.protocol), (3, Protocol::Http));
        assert_eq!(
            decide(&at(&id, Some(&app)), &speaking(Protocol::Tcp)),
            Err(Refusal::CanaryOfAnotherKind(id.clone(), "http", "tcp"))
        );
    }

    #[test]
    fn an_aborted_canary_has_no_share_until_it_is_gone() {
        let id = id();
        let aborted = decide(&at(&id, Some(&with_canary())), &Change::Abort).unwrap().app;
        assert_eq!(shares(&aborted), [("1".into(), 100), ("2".into(), 0)]);
        assert!(aborted.canary.as_ref().unwrap().leaves());
        for change in [Change::Share(5), Change::Promote(None), Change::Abort] {
            let refused = decide(&at(&id, Some(&aborted)), &change);
            assert_eq!(refused, Err(Refusal::NoCanary(id.clone())));
        }
        // It holds up nothing: what comes next takes its place.
        let next = decide(&at(&id, Some(&aborted)), &deploy("9", None)).unwrap().app;
        assert_eq!((next.release, next.canary, next.config.weights.len()), (5, None, 0));
        let next = decide(&at(&id, Some(&aborted)), &canary("9", 1, 7)).unwrap().app;
        assert_eq!(shares(&next), [("1".into(), 93), ("9".into(), 7)]);
    }

    #[test]
    fn a_canary_on_its_way_can_be_scaled_beside() {
        let id = id();
        let app = with_canary();
        let open = Operation {
            release: Some(4),
            ..blank_operation(OperationKind::Canary, NOW)
        };
        let mut situation = at(&id, Some(&app));
        situation.open = Some(&open);
        for change in [Change::Scale(5), Change::Share(9), Change::Restart] {
            let draft = decide(&situation, &change).unwrap();
            assert_eq!(
                (draft.operation.kind, draft.operation.release),
                (OperationKind::Canary, Some(4))
            );
        }
    }
}
