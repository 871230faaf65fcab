//! Making an instance's container run, whatever a cut or a rival left under its name.
//!
//! The name is the lock: Docker gives it to one container only. Each round creates it, or looks at who holds it; a
//! caller that is killed at any line finds on its next call what it left.

use std::time::Duration;

use bollard::query_parameters::{CreateContainerOptions, StartContainerOptions};
use model::ContainerId;
use model::engine::{EngineError, LaunchSpec};

use super::answer::{Fault, StartFault};
use super::read::{self, Holder};
use super::{CHANGE, DockerEngine, body};

/// Rounds until we give up. More than two are only needed when somebody else removes or makes it at the same time.
const ROUNDS: u32 = 8;

impl DockerEngine {
    pub(super) async fn launch_container(&self, spec: &LaunchSpec) -> Result<ContainerId, EngineError> {
        let name = body::container_name(spec);
        for round in 0..ROUNDS {
            if round > 1 {
                tokio::time::sleep(Duration::from_millis(25) * 2_u32.pow(round)).await;
            }
            let id = match self.create(&name, spec).await {
                Ok(id) => id,
                Err(fault) if fault.status() == Some(409) => match self.holder(&name, spec).await? {
                    None | Some(Holder::Leaving) => continue,
                    Some(Holder::Running(id)) => return Ok(id),
                    Some(Holder::Created(id)) => id,
                    Some(Holder::Stale(id)) => {
                        self.remove_container(id.as_str()).await?;
                        continue;
                    }
                    Some(Holder::Foreign) => {
                        return Err(EngineError::Refused(format!(
                            "the name {name} belongs to a container that is not this platform's: remove or rename it"
                        )));
                    }
                },
                Err(fault) => return Err(fault.of_create(&self.url, &spec.image)),
            };
            let started = id.to_string();
            let answer = self
                .call(CHANGE, |docker| async move {
                    docker.start_container(&started, None::<StartContainerOptions>).await
                })
                .await;
            let Err(fault) = answer else { return Ok(id) };
            match fault.of_start(&self.url, spec.host_port) {
                StartFault::Gone => {}
                StartFault::NoInit => {
                    self.note_no_init();
                    self.remove_container(id.as_str()).await?;
                }
                StartFault::Failed(error) => {
                    // Docker leaves the container that it could not start.
                    self.remove_container(id.as_str()).await?;
                    return Err(error);
                }
                StartFault::Unknown(error) => return Err(error),
            }
        }
        Err(EngineError::Other(format!(
            "container {name} was removed or held by somebody else {ROUNDS} times"
        )))
    }

    async fn create(&self, name: &str, spec: &LaunchSpec) -> Result<ContainerId, Fault> {
        let options = CreateContainerOptions {
            name: Some(name.to_owned()),
            ..Default::default()
        };
        let body = body::create_body(spec, !self.has_no_init());
        let created = self
            .call(CHANGE, |docker| async move {
                docker.create_container(Some(options), body).await
            })
            .await?;
        for warning in &created.warnings {
            tracing::debug!(engine = self.url, instance = %spec.instance, warning, "the engine warned");
        }
        created
            .id
            .parse()
            .map_err(|_| Fault::Odd(format!("container id {:?}", created.id)))
    }

    /// Who holds the name; `None`: nobody any more, or a creation that is not finished.
    async fn holder(&self, name: &str, spec: &LaunchSpec) -> Result<Option<Holder>, EngineError> {
        match self.inspect_response(name).await {
            Ok(response) => Ok(Some(read::holder(&response, spec))),
            Err(fault) if fault.status() == Some(404) => Ok(None),
            Err(fault) => Err(fault.plain(&self.url)),
        }
    }
}
