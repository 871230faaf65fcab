//! Events: the record of what changed, who asked for it and when. Append-only; it feeds `/events`, the
//! audit, and the hints by which loops wake.

use serde::{Deserialize, Serialize};

use crate::{AppId, HostName, InstanceId, OperationId, Timestamp};

/// A recorded event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: grows with each event of the installation.
    pub seq: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What it says.
    #[serde(flatten)]
    pub event: NewEvent,
}

/// An event to be recorded, in the same transaction as the change that it tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewEvent {
    /// What kind.
    pub kind: EventKind,
    /// The app it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<AppId>,
    /// The instance it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// The host it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// The operation it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// Who asked for it: a token's name, or the role that acted.
    pub actor: String,
    /// One sentence.
    pub message: String,
}

impl NewEvent {
    /// An event of `kind` by `actor`, about nothing yet.
    pub fn new(kind: EventKind, actor: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind,
            app: None,
            instance: None,
            host: None,
            operation: None,
            actor: actor.into(),
            message: message.into(),
        }
    }

    /// The same event, about `app`.
    #[must_use]
    pub fn about_app(mut self, app: &AppId) -> Self {
        self.app = Some(app.clone());
        self
    }

    /// The same event, about `host`.
    #[must_use]
    pub fn about_host(mut self, host: &HostName) -> Self {
        self.host = Some(host.clone());
        self
    }

    /// The same event, part of `operation`.
    #[must_use]
    pub fn in_operation(mut self, operation: &OperationId) -> Self {
        self.operation = Some(operation.clone());
        self
    }
}

/// What kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Somebody changed what an app should be.
    App,
    /// An instance moved.
    Instance,
    /// A host joined, changed, or went.
    Host,
    /// An operation moved.
    Operation,
    /// Tokens, registry credentials, settings.
    Admin,
}

impl EventKind {
    /// The word in the store and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Instance => "instance",
            Self::Host => "host",
            Self::Operation => "operation",
            Self::Admin => "admin",
        }
    }
}
