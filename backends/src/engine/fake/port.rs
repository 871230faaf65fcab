//! The fake as the port sees it.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use model::engine::{
    Container, ContainerStats, ContainerStatus, Engine, EngineError, EngineEvent, EngineInfo, LaunchSpec, LogLine,
    LogQuery,
};
use model::store::RegistryCredentials;
use model::{ContainerId, PlatformId, Timestamp};
use tokio::sync::watch;

use super::*;

#[async_trait]
impl Engine for FakeEngine {
    async fn ping(&self) -> Result<(), EngineError> {
        self.reach(Duration::from_secs(2)).await
    }

    async fn info(&self) -> Result<EngineInfo, EngineError> {
        self.reach(Duration::from_secs(5)).await?;
        Ok(EngineInfo {
            version: "fake".into(),
            cpu_millis: self.options.cpu_millis,
            memory_mb: self.options.memory_mb,
            os: "memory".into(),
            live_restore: true,
        })
    }

    async fn image_digest(&self, image: &str, _: Option<&RegistryCredentials>) -> Result<String, EngineError> {
        self.reach(Duration::from_secs(15)).await?;
        match self.state().images.get(image).copied() {
            Some(FakeImage::Missing) => Err(EngineError::ImageNotFound(image.into())),
            Some(FakeImage::Denied) => Err(EngineError::RegistryDenied {
                image: image.into(),
                message: "unauthorized".into(),
            }),
            Some(FakeImage::RegistryDown) => Err(EngineError::RegistryUnreachable {
                image: image.into(),
                message: "connection refused".into(),
            }),
            // The same text gives the same digest.
            _ => {
                use std::hash::{Hash as _, Hasher as _};
                let mut hasher = std::hash::DefaultHasher::new();
                image.hash(&mut hasher);
                Ok(format!("sha256:{:064x}", hasher.finish()))
            }
        }
    }

    async fn image_present(&self, image: &str) -> Result<bool, EngineError> {
        self.reach(Duration::from_secs(5)).await?;
        let answer = self.state().images.get(image).copied();
        Ok(matches!(answer, None | Some(FakeImage::Present)))
    }

    async fn image_pull(
        &self,
        image: &str,
        credentials: Option<&RegistryCredentials>,
        deadline: Duration,
    ) -> Result<bool, EngineError> {
        self.reach(deadline).await?;
        let answer = self.state().images.get(image).copied();
        match answer {
            None | Some(FakeImage::Present) => Ok(false),
            Some(_) => {
                let latency = self.state().pull;
                tokio::time::sleep(latency.min(deadline)).await;
                if latency > deadline {
                    return Err(EngineError::RegistryUnreachable {
                        image: image.into(),
                        message: "no answer in time".into(),
                    });
                }
                self.image_digest(image, credentials).await?;
                self.set_image(image, FakeImage::Present);
                Ok(true)
            }
        }
    }

    async fn launch(&self, spec: &LaunchSpec) -> Result<ContainerId, EngineError> {
        self.reach(Duration::from_secs(30)).await?;
        let latency = self.state().launch;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let name = container_name(spec);
        let id = {
            let mut state = self.state();
            match state.images.get(&spec.image) {
                None | Some(FakeImage::Present) => {}
                Some(_) => return Err(EngineError::ImageNotFound(spec.image.clone())),
            }
            if let Some(held) = state.containers.get(&name) {
                if held.spec.platform != spec.platform {
                    return Err(EngineError::Refused(format!(
                        "the name {name} belongs to a container that is not this platform's: remove or rename it"
                    )));
                }
                if held.runs() && held.spec.host_port == spec.host_port {
                    let id = held.id.clone();
                    drop(state);
                    return self.answer(id);
                }
                let closing = state.containers.remove(&name).and_then(|mut held| held.end(137, false));
                state.closing.extend(closing);
            }
            if state.port_is_taken(spec.host_port, &name) {
                return Err(EngineError::PortTaken(spec.host_port));
            }
            if state.disk_full {
                let words = "mkdir /var/lib/docker/overlay2/a: no space left on device";
                return Err(EngineError::DiskFull(words.into()));
            }
            let id = random_id();
            let fake = Fake {
                id: id.clone(),
                spec: spec.clone(),
                // Running from the start, so that nobody else gets the port meanwhile.
                status: ContainerStatus::Running {
                    started_at: Timestamp::now(),
                },
                lines: Vec::new(),
                changed: watch::Sender::new(0),
                server: None,
                usage: None,
            };
            state.containers.insert(name.clone(), fake);
            state.launches += 1;
            state.most_at_once = state.most_at_once.max(state.containers.len());
            id
        };
        if let Err(error) = self.begin(&id, spec).await {
            self.state().containers.remove(&name);
            return Err(error);
        }
        self.answer(id)
    }

    async fn restart(&self, container: &ContainerId, grace: Duration) -> Result<(), EngineError> {
        self.reach(grace + Duration::from_secs(30)).await?;
        let gone = || EngineError::NoSuchContainer(container.to_string());
        let (spec, died) = {
            let mut state = self.state();
            let fake = state.by_id(container).ok_or_else(gone)?;
            let died = fake.runs();
            let closing = fake.end(if died { 143 } else { 0 }, false);
            let spec = fake.spec.clone();
            state.closing.extend(closing);
            (spec, died)
        };
        if died {
            self.tell(&spec.platform, &spec.instance, "die");
        }
        let name = container_name(&spec);
        if self.state().port_is_taken(spec.host_port, &name) {
            self.state().containers.remove(&name);
            return Err(EngineError::PortTaken(spec.host_port));
        }
        if let Err(error) = self.begin(container, &spec).await {
            self.state().containers.remove(&name);
            return Err(error);
        }
        self.answer(())
    }

    async fn stop(&self, container: &ContainerId, grace: Duration) -> Result<(), EngineError> {
        self.reach(grace + Duration::from_secs(30)).await?;
        let stubborn = self
            .state()
            .by_id(container)
            .is_some_and(|c| c.runs() && c.spec.command.first().is_some_and(|a| a == "stubborn"));
        if stubborn {
            tokio::time::sleep(grace).await;
        }
        let ended = {
            let mut state = self.state();
            let ended = state.by_id(container).filter(|c| c.runs()).map(|fake| {
                let closing = fake.end(if stubborn { 137 } else { 143 }, false);
                (fake.spec.clone(), closing)
            });
            ended.map(|(spec, closing)| {
                state.closing.extend(closing);
                spec
            })
        };
        self.settle().await;
        if let Some(spec) = ended {
            self.tell(&spec.platform, &spec.instance, "die");
        }
        self.answer(())
    }

    async fn remove(&self, container: &ContainerId) -> Result<(), EngineError> {
        self.reach(Duration::from_secs(30)).await?;
        let removed = {
            let mut state = self.state();
            let name = state
                .containers
                .iter()
                .find(|(_, c)| c.id == *container)
                .map(|(name, _)| name.clone());
            name.and_then(|name| state.containers.remove(&name))
        };
        if let Some(mut fake) = removed {
            if fake.runs() {
                let closing = fake.end(137, false);
                self.state().closing.extend(closing);
                self.settle().await;
                self.tell(&fake.spec.platform, &fake.spec.instance, "die");
            }
            self.tell(&fake.spec.platform, &fake.spec.instance, "destroy");
        }
        self.answer(())
    }

    async fn list(&self, platform: &PlatformId) -> Result<Vec<Container>, EngineError> {
        self.reach(Duration::from_secs(10)).await?;
        let state = self.state();
        Ok(state
            .containers
            .values()
            .filter(|c| c.spec.platform == *platform)
            .map(Fake::show)
            .collect())
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Container, EngineError> {
        self.reach(Duration::from_secs(5)).await?;
        let found = self.state().by_id(container).map(|c| c.show());
        found.ok_or_else(|| EngineError::NoSuchContainer(container.to_string()))
    }

    async fn events(
        &self,
        platform: &PlatformId,
    ) -> Result<BoxStream<'static, Result<EngineEvent, EngineError>>, EngineError> {
        self.reach(Duration::from_secs(5)).await?;
        let mut events = self.events.subscribe();
        let platform = platform.clone();
        let fake = Self::named(&self.name);
        let stream = async_stream::stream! {
            loop {
                match events.recv().await {
                    // A silent host's events are lost.
                    Ok(_) if fake.state().silent => {}
                    Ok(_) if fake.state().unreachable => {
                        yield Err(fake.unreachable("connection reset"));
                        return;
                    }
                    Ok((of, event)) => {
                        if of == platform {
                            yield Ok(event);
                        }
                    }
                    Err(_) => {
                        yield Err(fake.unreachable("the listener was too slow"));
                        return;
                    }
                }
            }
        };
        Ok(stream.boxed())
    }

    async fn stats(&self, container: &ContainerId) -> Result<ContainerStats, EngineError> {
        self.reach(Duration::from_secs(5)).await?;
        let mut state = self.state();
        let fake = state
            .by_id(container)
            .ok_or_else(|| EngineError::NoSuchContainer(container.to_string()))?;
        if !fake.runs() {
            return Ok(ContainerStats::default());
        }
        Ok(fake.usage.unwrap_or(ContainerStats {
            memory_bytes: MIB,
            memory_limit_bytes: u64::from(fake.spec.memory_mb) * MIB,
            pids: 1,
            ..ContainerStats::default()
        }))
    }

    async fn logs(
        &self,
        container: &ContainerId,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, EngineError>>, EngineError> {
        self.reach(Duration::from_secs(5)).await?;
        let fake = Self::named(&self.name);
        let id = container.clone();
        let mut changed = {
            let mut state = self.state();
            let found = state
                .by_id(container)
                .ok_or_else(|| EngineError::NoSuchContainer(container.to_string()))?;
            found.changed.subscribe()
        };
        let stream = async_stream::stream! {
            let mut told: Option<usize> = None;
            loop {
                changed.mark_unchanged();
                let (lines, runs) = match fake.state().by_id(&id) {
                    Some(found) => (found.lines.clone(), found.runs()),
                    None => return,
                };
                let first = told.unwrap_or_else(|| lines.len().saturating_sub(query.tail as usize)).min(lines.len());
                told = Some(lines.len());
                for line in lines.into_iter().skip(first) {
                    if query.since.is_none_or(|since| line.at.is_none_or(|at| at >= since)) {
                        yield Ok(line);
                    }
                }
                // The sender goes when the container is removed.
                if !query.follow || !runs || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        Ok(stream.boxed())
    }
}
