//! Pulling images: before a container is launched and beside what is launched meanwhile, so that a big image or a registry
//! that hangs holds up nothing that does not need it.

use model::engine::{Engine, EngineError};
use model::store::StoreError;
use model::{FailureCode, Host, Instance, Release, Timestamp};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::warn;

use super::Context;
use super::apply::Gate;
use super::fleet::lock;

/// How far the image of an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pull {
    /// It is being pulled, or waits for its turn.
    InHand,
    /// The last try ended then, without it.
    Broken(Timestamp),
    /// It is on the host.
    Done,
}

/// Why an image is not there.
enum Missing {
    Engine(EngineError),
    /// The registry's credentials could not be read.
    Store(StoreError),
}

impl From<EngineError> for Missing {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl Context {
    /// Waits until `instance` may be launched: its image is on its host, and it is its turn there. `None`: that can't be, which
    /// then is noted.
    pub(super) async fn launch_turn(
        &self,
        instance: &Instance,
        release: &Release,
        host: &Host,
        engine: &dyn Engine,
    ) -> Option<OwnedSemaphorePermit> {
        let note = |pull| {
            lock(&self.pulls).insert(instance.id.clone(), pull);
            // How far an operation is depends on it.
            self.fleet.changed.notify_one();
        };
        let turn = || {
            self.gates
                .enter(&host.name, Gate::Launch, self.config.launches_per_host)
        };
        let image = release.pinned_image();
        let permit = turn().await?;
        match engine.image_present(&image).await {
            Ok(true) => {
                note(Pull::Done);
                return Some(permit);
            }
            Ok(false) => drop(permit),
            Err(error) => {
                self.launch_failed(instance, FailureCode::PullFailed, &error).await;
                return None;
            }
        }
        note(Pull::InHand);
        let Err(missing) = self.pull_in_turn(&image, host, engine).await else {
            note(Pull::Done);
            return turn().await;
        };
        note(Pull::Broken(Timestamp::now()));
        match missing {
            Missing::Engine(error) => self.launch_failed(instance, FailureCode::PullFailed, &error).await,
            Missing::Store(error) => {
                warn!(app = %instance.app, instance = %instance.id, %error, "the registry's credentials could not be read; it is tried again");
                self.retries.later(&instance.id, Timestamp::now());
            }
        }
        None
    }

    async fn pull_in_turn(&self, image: &str, host: &Host, engine: &dyn Engine) -> Result<(), Missing> {
        let deadline = self.config.pull_deadline();
        let turn = self.gates.pull(&host.name, image, self.config.launches_per_host);
        let Ok(Some(_permits)) = timeout(deadline, turn).await else {
            let message = format!("other pulls from it have not ended within {} s", deadline.as_secs());
            let image = image.to_owned();
            return Err(EngineError::RegistryUnreachable { image, message }.into());
        };
        let credentials = crate::image::credentials_for(&*self.store, image).await;
        let credentials = credentials.map_err(Missing::Store)?;
        // Who had the turn before may have brought it: then nothing is pulled.
        let pulled = engine.image_pull(image, credentials.as_ref(), deadline).await;
        self.told("pull", &pulled);
        pulled?;
        Ok(())
    }
}
