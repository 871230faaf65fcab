//! An app and its releases.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Protocol;
use crate::{AppConfig, AppId, Generation, ReleaseSpec, TenantId, Timestamp, Version};

/// What a tenant wants of an app: which release, how many instances, and whether it runs at all.
/// Written only by the scheduler's API; everything else follows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct App {
    /// Its name.
    pub id: AppId,
    /// Its owner.
    pub tenant: TenantId,
    /// Whether it should run.
    pub status: AppStatus,
    /// Wanted number of instances (0-1,000); ignored with `one_per_host`.
    pub instances: u32,
    /// The release that should run; 0 before the first deploy.
    pub release: u32,
    /// The release to which a failed deploy, or `rollback` without a number, returns: the last one that
    /// was fully routed before `release`. 0: none.
    pub previous_release: u32,
    /// The highest release number given out.
    pub last_release: u32,
    /// Instances older than this are replaced one by one (`restart`).
    pub restart_before: Option<Timestamp>,
    /// A second release that runs beside `release` and is given a share of the requests.
    pub canary: Option<Canary>,
    /// What is given back with `previous_release` when `release` fails. `None`: `release` was fully routed.
    #[serde(skip)]
    pub way_back: Option<WayBack>,
    /// How traffic reaches it.
    pub config: AppConfig,
    /// The operation that last changed it.
    pub operation: Option<crate::OperationId>,
    /// Grows by one with each committed placement; a placement names the one it saw, so that of two
    /// schedulers that decide from the same state only one places.
    pub placements: u64,
    /// When it was first deployed.
    pub created_at: Timestamp,
    /// When its row last changed.
    pub updated_at: Timestamp,
    /// Optimistic lock.
    pub generation: Generation,
}

/// What an app had before it turned to a release that was not fully routed yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WayBack {
    /// Its `previous_release` of then.
    pub previous_release: u32,
    /// Its configuration of then; `None`: the present one, which was not changed or which somebody has set since.
    pub config: Option<AppConfig>,
    /// Its wanted number of instances of then; `None`: as with `config`.
    pub instances: Option<u32>,
    /// What its release of then speaks, whoever has set the rest of the configuration since.
    pub protocol: Option<Protocol>,
}

impl App {
    /// Whether the release that it is at was fully routed.
    pub fn is_settled(&self) -> bool {
        self.release != 0 && self.way_back.is_none()
    }

    /// Turns to `release`, which speaks `protocol` and has to prove itself. From a release that was fully routed there is a way back.
    pub fn turn_to(&mut self, release: u32, protocol: Option<Protocol>) {
        if self.is_settled() {
            self.way_back = Some(WayBack {
                previous_release: self.previous_release,
                protocol: Some(self.config.protocol),
                ..WayBack::default()
            });
            self.previous_release = self.release;
        }
        self.way_back.get_or_insert_default();
        self.release = release;
        self.config.protocol = self.config.protocol.of_instance(protocol);
    }

    /// Returns to `previous_release` and what the app had then.
    pub fn turn_back(&mut self) {
        let back = self.way_back.take().unwrap_or_default();
        self.release = self.previous_release;
        self.previous_release = back.previous_release;
        if let Some(config) = back.config {
            self.config = config;
        }
        self.config.protocol = self.config.protocol.of_instance(back.protocol);
        if let Some(instances) = back.instances {
            self.instances = instances;
        }
    }
}

/// A second release beside the one that an app is at. As long as there is one, the app's `config.weights` are its
/// [`Canary::weights`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// Its release.
    pub release: u32,
    /// Its release's version.
    pub version: Version,
    /// The version of the release beside which it runs.
    pub beside: Version,
    /// Its wanted number of instances (1-1,000). 0: it is on its way out, and forgotten when its last instance has gone.
    pub instances: u32,
    /// Its share of the requests in per cent (0-100); 0 on its way out.
    pub percent: u32,
}

impl Canary {
    /// Whether it is on its way out.
    pub fn leaves(&self) -> bool {
        self.instances == 0
    }

    /// The same canary on its way out. It keeps a share of nothing until it has gone: without any share its instances
    /// would count like all others again.
    #[must_use]
    pub fn leaving(&self) -> Self {
        Self {
            instances: 0,
            percent: 0,
            ..self.clone()
        }
    }

    /// The shares of the two versions.
    pub fn weights(&self) -> BTreeMap<Version, u32> {
        let percent = self.percent.min(100);
        BTreeMap::from([(self.beside.clone(), 100 - percent), (self.version.clone(), percent)])
    }

    /// `app` as if it were at the canary's release alone.
    pub fn alone(&self, app: &App) -> App {
        App {
            release: self.release,
            instances: self.instances,
            ..app.clone()
        }
    }
}

/// Whether an app should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppStatus {
    /// Its instances are kept running.
    Running,
    /// All instances are drained and stopped; domain and releases are kept.
    Stopped,
    /// It is being taken away; its row goes when the last instance has gone.
    Removing,
}

impl AppStatus {
    /// The word in the store and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Removing => "removing",
        }
    }
}

/// One released version of an app: never changed after it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// The app.
    pub app: AppId,
    /// 1, 2, 3, … within the app.
    pub number: u32,
    /// The image's tag.
    pub version: Version,
    /// The image's digest (`sha256:…`) to which the tag was resolved once, at deploy.
    pub digest: String,
    /// What its containers are made from.
    pub spec: ReleaseSpec,
    /// What its instances speak: the app's protocol when it was deployed. `None`: made by a version of the platform for which that was
    /// the app's alone.
    pub protocol: Option<Protocol>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Release {
    /// The image by digest, `repository@sha256:…`: what every host pulls, whatever happens to the tag.
    pub fn pinned_image(&self) -> String {
        let name = self.spec.image.split('@').next().unwrap_or_default();
        let repository = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository,
            _ => name,
        };
        format!("{repository}@{}", self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_pinned_by_digest() {
        let mut release = Release {
            app: "hello".parse().expect("valid"),
            number: 1,
            version: "1".parse().expect("valid"),
            digest: "sha256:abc".into(),
            spec: ReleaseSpec {
                image: "127.0.0.1:5000/hello:1".into(),
                ..ReleaseSpec::default()
            },
            protocol: None,
            created_at: Timestamp::default(),
        };
        assert_eq!(release.pinned_image(), "127.0.0.1:5000/hello@sha256:abc");
        release.spec.image = "127.0.0.1:5000/hello".into();
        assert_eq!(release.pinned_image(), "127.0.0.1:5000/hello@sha256:abc");
    }
}
