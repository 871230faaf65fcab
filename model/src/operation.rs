//! An operation: long work asked for over the API, whose steps can be followed.

use serde::{Deserialize, Serialize};

use crate::{AppId, Failure, Generation, HostName, OperationId, Timestamp};

/// Long work asked for over the API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What was asked for.
    pub kind: OperationKind,
    /// The app it is about, if it is about one.
    pub app: Option<AppId>,
    /// The host it is about, if it is about one.
    pub host: Option<HostName>,
    /// The release that it brings, for deploy and rollback.
    pub release: Option<u32>,
    /// How far it is.
    pub state: OperationState,
    /// One sentence: what it waits for, or why it failed.
    pub message: String,
    /// Why the first instance failed, when that is why the operation did.
    pub failure: Option<Failure>,
    /// Steps in order: `pull`, `create`, `start`, `probe`, `route`, …
    pub steps: Vec<Step>,
    /// Why no host fits, while it waits for one: a line per filter with the number of hosts it refused.
    pub reasons: Vec<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Optimistic lock.
    pub generation: Generation,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// A new release.
    Deploy,
    /// Another number of instances.
    Scale,
    /// All instances replaced by fresh ones of the same release.
    Restart,
    /// All instances stopped.
    Stop,
    /// A stopped app started again.
    Start,
    /// An earlier release.
    Rollback,
    /// The app taken away.
    Remove,
    /// Another way for traffic to reach the app; done as soon as it is recorded.
    Configure,
    /// A second release beside the present one.
    Canary,
    /// The canary takes over.
    Promote,
    /// The canary taken away.
    Abort,
    /// A host emptied.
    DrainHost,
}

impl OperationKind {
    /// The word in the store and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Scale => "scale",
            Self::Restart => "restart",
            Self::Stop => "stop",
            Self::Start => "start",
            Self::Rollback => "rollback",
            Self::Remove => "remove",
            Self::Configure => "configure",
            Self::Canary => "canary",
            Self::Promote => "promote",
            Self::Abort => "abort",
            Self::DrainHost => "drain_host",
        }
    }
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Being worked on.
    Running,
    /// It waits for room on the hosts.
    Blocked,
    /// Done.
    Succeeded,
    /// Given up; see `message`.
    Failed,
    /// A later operation on the same app took its place.
    Superseded,
}

impl OperationState {
    /// The word in the store and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Blocked => "blocked",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
        }
    }

    /// Nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Superseded)
    }
}

/// A step of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `pull`, `create`, `start`, `probe`, `route`, `drain`, `stop`.
    pub name: String,
    /// How far it is.
    pub state: StepState,
    /// Such as `2 of 4 instances`.
    pub detail: String,
    /// When its state last changed.
    pub at: Timestamp,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Begun.
    Running,
    /// Done.
    Done,
    /// Failed.
    Failed,
}
