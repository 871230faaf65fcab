//! A Docker host, by its Engine API. Touches only containers that it was told of or that bear the platform's labels.
//!
//! Every call is bounded as a whole, body included. Which answer means what is decided in `answer` and `read`.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bollard::Docker;
use bollard::auth::DockerCredentials;
use bollard::container::LogOutput;
use bollard::query_parameters::{
    CreateImageOptions, EventsOptions, InspectContainerOptions, ListContainersOptions, LogsOptions,
    RemoveContainerOptions, RestartContainerOptions, StatsOptions, StopContainerOptions,
};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use model::engine::{
    Container, ContainerStats, ContainerStatus, Engine, EngineError, EngineEvent, EngineInfo, LABEL_INSTANCE,
    LABEL_PLATFORM, LaunchSpec, LogLine, LogQuery,
};
use model::store::RegistryCredentials;
use model::{ContainerId, InstanceId, PlatformId};
use tokio::time::timeout;

mod answer;
mod body;
mod connect;
mod launch;
mod lines;
mod read;

use answer::{Fault, StartFault};
pub(super) use connect::Target;

/// Deadlines promised by the trait.
const PING: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_secs(5);
const LIST: Duration = Duration::from_secs(10);
const DIGEST: Duration = Duration::from_secs(15);
/// Creating, starting or removing one container: 0.2 s on an idle host, several seconds when it starts dozens at once.
const CHANGE: Duration = Duration::from_secs(30);
/// Most events of a container's last moments that are read; Docker keeps no more.
const MAX_TOLD: usize = 256;
/// Ended containers of a list that are looked at one by one; beyond, their exit code comes from the list's words.
const MAX_INSPECTED: usize = 256;
/// How many of them at once.
const INSPECTED_AT_ONCE: usize = 8;
/// A followed log that says nothing for so long makes us ask whether the engine is still there.
const QUIET: Duration = Duration::from_secs(10);

/// One Docker host.
#[derive(Debug)]
pub(super) struct DockerEngine {
    url: String,
    connection: connect::Connection,
    /// It has no `docker-init` binary.
    no_init: AtomicBool,
}

impl DockerEngine {
    pub(super) fn new(url: &str, target: Target) -> Self {
        Self {
            url: url.to_owned(),
            connection: connect::Connection::new(target),
            no_init: AtomicBool::new(false),
        }
    }

    /// One call, bounded by `deadline` as a whole.
    async fn call<T, F>(&self, deadline: Duration, request: impl FnOnce(Docker) -> F + Send) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, bollard::errors::Error>> + Send,
    {
        let answer = timeout(deadline, async {
            let docker = self.connection.client().await?;
            request(docker).await.map_err(Fault::from)
        });
        let result = answer
            .await
            .unwrap_or_else(|_| Err(Fault::Silent(format!("no answer within {} s", deadline.as_secs_f32()))));
        if let Err(Fault::Silent(_)) = &result {
            self.connection.forget();
        }
        result
    }

    /// Whether an ended container hit its memory limit in its last moments; `None`: Docker does not say.
    async fn hit_the_limit(
        &self,
        container: &ContainerId,
        response: &bollard::models::ContainerInspectResponse,
    ) -> Option<bool> {
        let (since, until) = read::last_moments(response.state.as_ref()?)?;
        let filters = HashMap::from([
            ("container".to_owned(), vec![container.to_string()]),
            ("event".to_owned(), vec!["oom".to_owned(), "die".to_owned()]),
        ]);
        let options = EventsOptions {
            since: Some(since),
            until: Some(until),
            filters: Some(filters),
        };
        let told: Result<Vec<_>, Fault> = self
            .call(SHORT, |docker| async move {
                let events = docker.events(Some(options)).take(MAX_TOLD);
                events.try_collect().await
            })
            .await;
        let told = told.ok()?;
        let words: Vec<String> = told.into_iter().filter_map(|event| event.action).collect();
        read::hit_the_limit(&words)
    }

    async fn inspect_response(&self, container: &str) -> Result<bollard::models::ContainerInspectResponse, Fault> {
        let container = container.to_owned();
        self.call(SHORT, |docker| async move {
            docker
                .inspect_container(&container, None::<InspectContainerOptions>)
                .await
        })
        .await
    }

    /// Whether the image is there.
    async fn has_image(&self, image: &str) -> Result<bool, EngineError> {
        let name = image.to_owned();
        match self
            .call(SHORT, |docker| async move { docker.inspect_image(&name).await })
            .await
        {
            Ok(_) => Ok(true),
            Err(fault) if fault.status() == Some(404) => Ok(false),
            Err(fault) => Err(fault.of_registry(&self.url, image)),
        }
    }

    /// A call that waits for a registry and had no answer: is it the engine or the registry that is silent?
    async fn silence(&self, image: &str, message: String) -> EngineError {
        match self.ping().await {
            Ok(()) => EngineError::RegistryUnreachable {
                image: image.to_owned(),
                message,
            },
            Err(error) => error,
        }
    }

    async fn registry_fault(&self, fault: Fault, image: &str) -> EngineError {
        match fault {
            Fault::Silent(message) => self.silence(image, message).await,
            other => other.of_registry(&self.url, image),
        }
    }
}

fn credentials_of(credentials: Option<&RegistryCredentials>) -> Option<DockerCredentials> {
    credentials.map(|c| DockerCredentials {
        username: Some(c.username.clone()),
        password: Some(c.password.clone()),
        serveraddress: Some(c.registry.clone()),
        ..Default::default()
    })
}

fn by_label(platform: &PlatformId) -> (String, Vec<String>) {
    ("label".to_owned(), vec![format!("{LABEL_PLATFORM}={platform}")])
}

/// Docker takes whole seconds: rounded up, so that no app gets less than its grace.
fn whole_seconds(grace: Duration) -> i32 {
    let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

#[async_trait]
impl Engine for DockerEngine {
    async fn ping(&self) -> Result<(), EngineError> {
        let answer = self.call(PING, |docker| async move { docker.ping().await }).await;
        answer.map(drop).map_err(|fault| fault.plain(&self.url))
    }

    async fn info(&self) -> Result<EngineInfo, EngineError> {
        let info = self
            .call(SHORT, |docker| async move { docker.info().await })
            .await
            .map_err(|fault| fault.plain(&self.url))?;
        Ok(EngineInfo {
            version: info.server_version.unwrap_or_default(),
            cpu_millis: u32::try_from(info.ncpu.unwrap_or(0).saturating_mul(1000)).unwrap_or(0),
            memory_mb: u32::try_from(info.mem_total.unwrap_or(0) / (1024 * 1024)).unwrap_or(0),
            os: info.operating_system.unwrap_or_default(),
            live_restore: info.live_restore_enabled.unwrap_or(false),
        })
    }

    async fn image_digest(
        &self,
        image: &str,
        credentials: Option<&RegistryCredentials>,
    ) -> Result<String, EngineError> {
        body::check_image(image)?;
        let name = body::with_tag(image);
        let credentials = credentials_of(credentials);
        let answer = self
            .call(DIGEST, |docker| async move {
                docker.inspect_registry_image(&name, credentials).await
            })
            .await;
        match answer {
            Ok(found) => found
                .descriptor
                .digest
                .filter(|d| d.starts_with("sha256:"))
                .ok_or_else(|| EngineError::Other(format!("the registry gave no digest for image {image}"))),
            Err(fault) => Err(self.registry_fault(fault, image).await),
        }
    }

    async fn image_present(&self, image: &str) -> Result<bool, EngineError> {
        body::check_image(image)?;
        self.has_image(image).await
    }

    async fn image_pull(
        &self,
        image: &str,
        credentials: Option<&RegistryCredentials>,
        deadline: Duration,
    ) -> Result<bool, EngineError> {
        body::check_image(image)?;
        if self.has_image(image).await? {
            return Ok(false);
        }
        let options = CreateImageOptions {
            from_image: Some(body::with_tag(image)),
            ..Default::default()
        };
        let credentials = credentials_of(credentials);
        let pulled = self
            .call(deadline, |docker| async move {
                // Errors after the answer's head come as lines of the stream.
                docker
                    .create_image(Some(options), None, credentials)
                    .try_for_each(|_| async { Ok(()) })
                    .await
            })
            .await;
        if let Err(fault) = pulled {
            return Err(self.registry_fault(fault, image).await);
        }
        // A stream that was cut looks like one that ended.
        if self.has_image(image).await? {
            return Ok(true);
        }
        Err(EngineError::Other(format!("image {image} was pulled but is not there")))
    }

    async fn launch(&self, spec: &LaunchSpec) -> Result<ContainerId, EngineError> {
        body::check_image(&spec.image)?;
        self.launch_container(spec).await
    }

    async fn restart(&self, container: &ContainerId, grace: Duration) -> Result<(), EngineError> {
        let id = container.to_string();
        let options = RestartContainerOptions {
            t: Some(whole_seconds(grace)),
            ..Default::default()
        };
        let answer = self
            .call(grace + CHANGE, |docker| async move {
                docker.restart_container(&id, Some(options)).await
            })
            .await;
        let Err(fault) = answer else { return Ok(()) };
        if fault.status() == Some(404) {
            return Err(EngineError::NoSuchContainer(container.to_string()));
        }
        let port = match self.inspect_response(container.as_str()).await {
            Ok(response) => read::host_port(&response).unwrap_or(0),
            Err(_) => 0,
        };
        match fault.of_start(&self.url, port) {
            StartFault::Gone => Err(EngineError::NoSuchContainer(container.to_string())),
            StartFault::NoInit => {
                self.remove(container).await?;
                Err(EngineError::Refused("the host has lost its docker-init binary".into()))
            }
            StartFault::Failed(error @ (EngineError::PortTaken(_) | EngineError::Refused(_))) => {
                self.remove(container).await?;
                Err(error)
            }
            StartFault::Failed(error) | StartFault::Unknown(error) => Err(error),
        }
    }

    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<(), EngineError> {
        let id = container.to_string();
        let options = StopContainerOptions {
            t: Some(whole_seconds(grace)),
            ..Default::default()
        };
        let answer = self
            .call(grace + CHANGE, |docker| async move {
                docker.stop_container(&id, Some(options)).await
            })
            .await;
        match answer {
            Ok(()) => Ok(()),
            // Gone, or somebody is removing it: then it has ended.
            Err(fault) if matches!(fault.status(), Some(404 | 409)) => Ok(()),
            Err(fault) => Err(fault.plain(&self.url)),
        }
    }

    async fn remove(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.remove_container(container.as_str()).await
    }

    async fn list(&self, platform: &PlatformId) -> Result<Vec<Container>, EngineError> {
        let options = ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([by_label(platform)])),
            ..Default::default()
        };
        let url = self.url.as_str();
        let all = async {
            let summaries = self
                .call(
                    LIST,
                    |docker| async move { docker.list_containers(Some(options)).await },
                )
                .await
                .map_err(|fault| fault.plain(url))?;
            let (mut found, mut ended) = (Vec::with_capacity(summaries.len()), Vec::new());
            for summary in &summaries {
                match read::listed(summary) {
                    Some(c) if matches!(c.status, ContainerStatus::Exited { .. }) && ended.len() < MAX_INSPECTED => {
                        ended.push(c.id);
                    }
                    Some(container) => found.push(container),
                    None => tracing::warn!(
                        engine = url,
                        container = summary.id.as_deref().unwrap_or(""),
                        "a container bears the platform's label but its other labels can't be read: left alone"
                    ),
                }
            }
            // Only an inspection tells whether an ended container ran out of memory.
            let mut inspected = futures::stream::iter(ended)
                .map(|id| async move {
                    match self.inspect(&id).await {
                        Err(EngineError::NoSuchContainer(_)) => Ok(None),
                        other => other.map(Some),
                    }
                })
                .buffer_unordered(INSPECTED_AT_ONCE);
            while let Some(container) = inspected.try_next().await? {
                found.extend(container);
            }
            Ok(found)
        };
        timeout(LIST, all)
            .await
            .unwrap_or_else(|_| Err(Fault::Silent(format!("no answer within {} s", LIST.as_secs())).plain(url)))
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Container, EngineError> {
        let response = self
            .inspect_response(container.as_str())
            .await
            .map_err(|fault| fault.of_container(&self.url, container.as_str()))?;
        let mut found = read::inspected(&response)
            .ok_or_else(|| EngineError::Other(format!("container {container} does not bear the platform's labels")))?;
        if let ContainerStatus::Exited { out_of_memory, .. } = &mut found.status
            && *out_of_memory
        {
            // The flag may be about a process that the app outlived, or of an earlier run.
            *out_of_memory = self.hit_the_limit(container, &response).await.unwrap_or(true);
        }
        Ok(found)
    }

    async fn events(
        &self,
        platform: &PlatformId,
    ) -> Result<BoxStream<'static, Result<EngineEvent, EngineError>>, EngineError> {
        // From now on by the host's own clock: the stream is only asked for when it is first polled, and Docker keeps
        // the last events, so that none is missed in between and the two clocks need not agree.
        let (docker, now) = self
            .call(SHORT, |docker| async move {
                let info = docker.info().await?;
                Ok((docker, info.system_time))
            })
            .await
            .map_err(|fault| fault.plain(&self.url))?;
        let since = now
            .as_deref()
            .and_then(|text| text.parse::<jiff::Timestamp>().ok())
            .map(|t| format!("{}.{:09}", t.as_second(), t.subsec_nanosecond()));
        let words = ["start", "die", "oom", "destroy"].map(str::to_owned).to_vec();
        let filters = HashMap::from([
            by_label(platform),
            ("type".to_owned(), vec!["container".to_owned()]),
            ("event".to_owned(), words),
        ]);
        let url = self.url.clone();
        let stream = async_stream::stream! {
            let docker = docker.with_timeout(LIST);
            let mut events = pin!(docker.events(Some(EventsOptions { since, until: None, filters: Some(filters) })));
            while let Some(next) = events.next().await {
                match next {
                    Ok(message) => {
                        let instance = message
                            .actor
                            .and_then(|actor| actor.attributes?.get(LABEL_INSTANCE)?.parse::<InstanceId>().ok());
                        if let (Some(instance), Some(action)) = (instance, message.action) {
                            yield Ok(EngineEvent { instance, action });
                        }
                    }
                    Err(error) => {
                        yield Err(Fault::from(error).plain(&url));
                        return;
                    }
                }
            }
            yield Err(Fault::Silent("the event stream ended".into()).plain(&url));
        };
        Ok(stream.boxed())
    }

    async fn stats(&self, container: &ContainerId) -> Result<ContainerStats, EngineError> {
        let id = container.to_string();
        let response = self
            .call(SHORT, |docker| async move {
                let options = StatsOptions {
                    stream: false,
                    one_shot: true,
                };
                docker.stats(&id, Some(options)).try_next().await
            })
            .await
            .map_err(|fault| fault.of_container(&self.url, container.as_str()))?;
        Ok(response.as_ref().map(read::stats).unwrap_or_default())
    }

    async fn logs(
        &self,
        container: &ContainerId,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, EngineError>>, EngineError> {
        let id = container.to_string();
        let asked = id.clone();
        // Asked for first, so that a missing container is an error here and not within the stream.
        let docker = self
            .call(SHORT, |docker| async move {
                docker
                    .inspect_container(&asked, None::<InspectContainerOptions>)
                    .await
                    .map(|_| docker)
            })
            .await
            .map_err(|fault| fault.of_container(&self.url, container.as_str()))?;
        let options = LogsOptions {
            follow: query.follow,
            stdout: true,
            stderr: true,
            // Whole seconds here; the rest of the way is ours.
            since: query
                .since
                .map_or(0, |t| i32::try_from(t.as_millis() / 1000).unwrap_or(i32::MAX)),
            until: 0,
            timestamps: true,
            tail: query.tail.to_string(),
        };
        let url = self.url.clone();
        let stream = async_stream::stream! {
            let mut frames = pin!(docker.logs(&id, Some(options)));
            loop {
                let next = match timeout(QUIET, frames.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        // Silent for long: the app has nothing to say, or the host is gone.
                        let alive = matches!(timeout(PING, docker.ping()).await, Ok(Ok(_)));
                        if alive && query.follow {
                            continue;
                        }
                        yield Err(Fault::Silent("no more of the log came in time".into()).plain(&url));
                        return;
                    }
                };
                let (stderr, frame) = match next {
                    None => return,
                    Some(Ok(LogOutput::StdErr { message })) => (true, message),
                    Some(Ok(other)) => (false, other.into_bytes()),
                    Some(Err(error)) => {
                        yield Err(Fault::from(error).of_container(&url, &id));
                        return;
                    }
                };
                for line in lines::lines(stderr, &frame, query.since) {
                    yield Ok(line);
                }
            }
        };
        Ok(stream.boxed())
    }
}

impl DockerEngine {
    /// Removes a container by id or name and waits until it is gone; no error when it was.
    async fn remove_container(&self, container: &str) -> Result<(), EngineError> {
        let removed = timeout(CHANGE, async {
            let mut pause = Duration::from_millis(10);
            loop {
                let id = container.to_owned();
                let options = RemoveContainerOptions {
                    force: true,
                    v: true,
                    link: false,
                };
                let answer = self
                    .call(CHANGE, |docker| async move {
                        docker.remove_container(&id, Some(options)).await
                    })
                    .await;
                match answer {
                    Ok(()) => return Ok(()),
                    Err(fault) if fault.status() == Some(404) => return Ok(()),
                    // Somebody else is removing it: it holds its name and port until that is done.
                    Err(fault) if fault.status() == Some(409) => {}
                    Err(fault) => return Err(fault.plain(&self.url)),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        });
        removed.await.unwrap_or_else(|_| {
            Err(EngineError::Other(format!(
                "container {container} was not gone within {} s",
                CHANGE.as_secs()
            )))
        })
    }

    fn has_no_init(&self) -> bool {
        self.no_init.load(Ordering::Relaxed)
    }

    fn note_no_init(&self) {
        if !self.no_init.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                engine = self.url,
                "the host has no docker-init: containers run without it, so that apps must handle SIGTERM themselves"
            );
        }
    }
}
