//! An app and the canary beside it: two plans from one look, each of which sees only its own instances. Pure.

use model::{Instance, ReleaseSpec};

use super::plan::{Action, Decision, Facts, plan};

/// What has to be done for an app, and for its canary if it has one, whose release is made from `spec`.
#[derive(Clone, Debug, Default)]
pub(super) struct Plans {
    /// For the app at its release.
    pub(super) own: Decision,
    /// For the canary.
    pub(super) canary: Option<Decision>,
}

impl Plans {
    /// Both of them.
    pub(super) fn each(&self) -> impl Iterator<Item = &Decision> {
        std::iter::once(&self.own).chain(&self.canary)
    }
}

/// Decides for an app and its canary.
pub(super) fn plans(facts: &Facts<'_>, spec: Option<&ReleaseSpec>) -> Plans {
    let Some(canary) = &facts.app.canary else {
        return Plans {
            own: plan(facts),
            canary: None,
        };
    };
    let (beside, own): (Vec<Instance>, Vec<Instance>) = facts
        .instances
        .iter()
        .cloned()
        .partition(|i| i.release == canary.release);
    let mut own = plan(&Facts {
        instances: &own,
        ..*facts
    });
    let app = canary.alone(facts.app);
    // A canary is so many instances, wherever they are.
    let spec = spec.cloned().map(|mut spec| {
        spec.placement.one_per_host = false;
        spec
    });
    let mut plan = plan(&Facts {
        app: &app,
        spec: spec.as_ref(),
        instances: &beside,
        ..*facts
    });
    // The app goes when both have gone.
    plan.actions.retain(|a| *a != Action::Delete);
    if !beside.is_empty() {
        own.actions.retain(|a| *a != Action::Delete);
    }
    Plans {
        own,
        canary: Some(plan),
    }
}
