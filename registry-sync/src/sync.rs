//! The loop: read the store, compare with the registry, act. It takes no input, is idempotent and never
//! retries inside: the next pass is the retry. Hints from the store only make it run sooner.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::config::Protocol;
use model::registry::{RegistryError, RegistryRevision, RegistrySnapshot};
use model::store::{InstanceFilter, Outcome, Revision, StoreError};
use model::{App, AppId, Host, HostName, Instance, InstanceChange, InstanceId, InstanceState, Release, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::certificates::{self, Certificates};
use crate::confirm::{Awaited, confirmed};
use crate::loads::{AllFigures, Loads, follow_figures};
use crate::metrics::Metrics;
use crate::plan::{self, View};
use crate::versions;
use crate::watch::{Target, Watchers, is_watched};
use crate::{Config, Deps};

/// Between looks at the gateways' acknowledgements while something waits for them.
const ACKNOWLEDGE_POLL: Duration = Duration::from_millis(20);

/// Pause after trouble with the store or the registry.
const TROUBLE_PAUSE: Duration = Duration::from_millis(500);

/// Least pause between full passes: a burst of changes is taken together.
const LEAST_PAUSE: Duration = Duration::from_millis(5);

/// Pause between two writes of loads, in which a hint goes before the next one.
const LOADS_PAUSE: Duration = Duration::from_millis(5);

/// What is written of loads is read again after this time, should anybody else have touched it.
const LOADS_REREAD: Duration = Duration::from_secs(600);

/// Releases kept in memory; they never change, so only the number is bounded.
const RELEASES_KEPT: usize = 50_000;

/// Runs until `shutdown`.
pub(crate) async fn run(config: &Config, deps: &Deps, metrics: &Arc<Metrics>, shutdown: &CancellationToken) {
    let (hint, mut hinted) = watch::channel(Revision::default());
    let hints = tokio::spawn(follow_store(deps.clone(), hint, shutdown.clone()));
    let (tell, mut figures) = watch::channel(AllFigures::default());
    let reading = tokio::spawn(follow_figures(
        deps.clone(),
        Arc::clone(metrics),
        tell,
        shutdown.clone(),
    ));
    let (tell, mut certificates) = watch::channel(None);
    let reading_certificates = tokio::spawn(certificates::follow(
        deps.clone(),
        Arc::clone(metrics),
        tell,
        shutdown.clone(),
    ));
    let mut sync = Sync::new(config, deps, metrics, figures.clone(), certificates.clone());
    let mut full_pass_due = true;
    while !shutdown.is_cancelled() {
        let pause = tokio::select! {
            () = shutdown.cancelled() => break,
            pause = sync.turn(full_pass_due) => pause,
        };
        full_pass_due = tokio::select! {
            () = shutdown.cancelled() => break,
            changed = hinted.changed() => changed.is_ok(),
            changed = figures.changed() => changed.is_ok(),
            // They go with the next turn.
            _ = certificates.changed() => sync.full_pass_due(),
            () = tokio::time::sleep(pause) => sync.full_pass_due(),
        };
        if full_pass_due {
            // Many changes at once are many hints; a pass takes as long as there are instances, so pace by it.
            tokio::time::sleep(LEAST_PAUSE.max(sync.last_pass).min(Duration::from_secs(1))).await;
            hinted.mark_unchanged();
        }
    }
    hints.abort();
    reading.abort();
    reading_certificates.abort();
}

/// Turns the store's revisions into hints.
async fn follow_store(deps: Deps, hint: watch::Sender<Revision>, shutdown: CancellationToken) {
    let mut revision = Revision::default();
    while !shutdown.is_cancelled() {
        match deps.store.revision_wait(revision, Duration::from_secs(5)).await {
            Ok(newest) if newest != revision => {
                revision = newest;
                hint.send_replace(newest);
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(TROUBLE_PAUSE).await,
        }
    }
}

/// An instance for which the gateways are waited for.
#[derive(Debug)]
struct Waiting {
    instance: Instance,
    awaited: Awaited,
    revision: RegistryRevision,
    since: Instant,
}

/// What the loop remembers between passes; all of it can be lost.
#[derive(Debug)]
struct Sync<'a> {
    config: &'a Config,
    deps: &'a Deps,
    metrics: &'a Arc<Metrics>,
    watchers: Watchers,
    /// By app, the app's birth (a new app may bear an old name), and number.
    releases: HashMap<(AppId, Timestamp, u32), Arc<Release>>,
    published: Option<Published>,
    /// `None`: what is written of loads is not known.
    loads: Option<(Loads, Instant)>,
    figures: watch::Receiver<AllFigures>,
    certificates: Certificates,
    wanted_certificates: watch::Receiver<Option<certificates::All>>,
    waiting: HashMap<InstanceId, Waiting>,
    passed_at: Option<Instant>,
    last_pass: Duration,
}

/// The registry's content as far as this writer knows.
#[derive(Debug)]
struct Published {
    snapshot: RegistrySnapshot,
    read_at: Instant,
    ghosts: plan::Ghosts,
}

impl<'a> Sync<'a> {
    fn new(
        config: &'a Config,
        deps: &'a Deps,
        metrics: &'a Arc<Metrics>,
        figures: watch::Receiver<AllFigures>,
        wanted_certificates: watch::Receiver<Option<certificates::All>>,
    ) -> Self {
        let watchers = Watchers::new(
            Arc::clone(&deps.store),
            Arc::clone(metrics),
            config.max_concurrent_probes,
        );
        Self {
            config,
            deps,
            metrics,
            watchers,
            releases: HashMap::new(),
            published: None,
            loads: None,
            figures,
            certificates: Certificates::default(),
            wanted_certificates,
            waiting: HashMap::new(),
            passed_at: None,
            last_pass: Duration::ZERO,
        }
    }

    fn full_pass_due(&self) -> bool {
        let period = Duration::from_secs(self.config.full_pass_s.max(1));
        self.passed_at.is_none_or(|at| at.elapsed() >= period)
    }

    /// One turn; how long to pause unless hinted.
    async fn turn(&mut self, full_pass: bool) -> Duration {
        match self.deps.registry.lead(Duration::from_secs(2)).await {
            Ok(true) => self.metrics.leader.set(1),
            Ok(false) => {
                self.stand_by();
                self.metrics.meters.set_ready(true);
                return TROUBLE_PAUSE;
            }
            // Without the registry probing goes on: what is found out now is published when it is back. A process
            // that never led has no business yet.
            Err(error) => {
                tracing::warn!(%error, "the registry can't be reached");
                self.forget_written();
                self.metrics.meters.set_ready(false);
                if self.metrics.leader.get() == 0 {
                    return TROUBLE_PAUSE;
                }
            }
        }
        let done = if full_pass || self.published.is_none() {
            self.pass().await
        } else {
            Ok(())
        };
        let done = match done {
            Ok(()) => self.confirm().await,
            Err(trouble) => Err(trouble),
        };
        let done = match done {
            Ok(()) => self.write_loads().await,
            Err(trouble) => Err(trouble),
        };
        let done = match done {
            Ok(()) => self.write_certificates().await,
            Err(trouble) => Err(trouble),
        };
        let done = match done {
            Ok(more) => self
                .certificates
                .confirm(self.deps, self.acknowledge_limit())
                .await
                .map(|()| more),
            Err(trouble) => Err(trouble),
        };
        match done {
            Ok(more_certificates) => {
                self.metrics.meters.set_ready(true);
                if more_certificates || self.loads.as_ref().is_some_and(|(loads, _)| loads.is_behind()) {
                    LOADS_PAUSE
                } else if self.waiting.is_empty() && !self.certificates.waits() {
                    Duration::from_secs(self.config.full_pass_s.max(1))
                } else {
                    ACKNOWLEDGE_POLL
                }
            }
            Err(trouble) => {
                tracing::warn!(%trouble, "the pass failed");
                self.metrics.failed_passes.inc();
                self.metrics.meters.set_ready(false);
                self.passed_at = None;
                if matches!(trouble, Trouble::Registry(RegistryError::NotLeader)) {
                    self.stand_by();
                }
                self.forget_written();
                TROUBLE_PAUSE
            }
        }
    }

    /// How long a gateway is waited for.
    fn acknowledge_limit(&self) -> Duration {
        Duration::from_millis(self.config.acknowledge_timeout_ms)
    }

    fn stand_by(&mut self) {
        self.metrics.leader.set(0);
        self.watchers.set(HashMap::new());
        self.waiting.clear();
        self.forget_written();
    }

    /// What is written is unknown from now on.
    fn forget_written(&mut self) {
        self.published = None;
        self.loads = None;
        self.certificates.forget_written();
    }

    /// Finds out which loads are to be written, and writes the first of them.
    async fn plan_loads(&mut self, instances: &[Instance], hosts: &HashMap<HostName, Host>) -> Result<(), Trouble> {
        let Some(published) = &self.published else {
            return Ok(());
        };
        let known = self.loads.take_if(|(_, read_at)| read_at.elapsed() < LOADS_REREAD);
        let (mut loads, read_at) = match known {
            Some(known) => known,
            None => (Loads::new(self.deps.registry.loads().await?), Instant::now()),
        };
        let figures = Arc::clone(&self.figures.borrow());
        loads.plan(instances, hosts, &published.snapshot, &figures);
        self.loads = Some((loads, read_at));
        Ok(())
    }

    /// Writes a few of the loads that are due. The revision is not noted: nobody waits for a load.
    async fn write_loads(&mut self) -> Result<(), Trouble> {
        let Some((loads, _)) = &mut self.loads else {
            return Ok(());
        };
        let batch = loads.batch();
        if !batch.is_empty() {
            self.deps.registry.apply(&batch).await?;
            self.metrics.loads.inc_by(batch.len() as u64);
            loads.wrote(batch);
        }
        Ok(())
    }

    /// Writes a few of the certificates that are due; `true` when there are more.
    async fn write_certificates(&mut self) -> Result<bool, Trouble> {
        let wanted = self.wanted_certificates.borrow().clone();
        let written = self
            .certificates
            .write(&*self.deps.registry, wanted.as_ref(), self.metrics);
        Ok(written.await?)
    }

    async fn pass(&mut self) -> Result<(), Trouble> {
        let begun = Instant::now();
        let instances = self.deps.store.instance_list(&InstanceFilter::held()).await?;
        let apps = self.deps.store.app_list().await?;
        let hosts: HashMap<HostName, Host> = self
            .deps
            .store
            .host_list()
            .await?
            .into_iter()
            .map(|h| (h.name.clone(), h))
            .collect();
        let births: Births<'_> = apps.iter().map(|app| (&app.id, app.created_at)).collect();
        self.load_releases(&instances, &births).await?;

        let published = self.publish(&instances, &apps, &hosts, &births).await;
        // Health is watched with or without the registry.
        let targets = self.targets(&instances, &apps, &hosts, &births);
        self.watchers.set(targets);
        self.await_gateways(&instances, &hosts, &births);
        let published = match published {
            Ok(()) => self.plan_loads(&instances, &hosts).await,
            trouble => trouble,
        };
        self.last_pass = begun.elapsed();
        self.passed_at = Some(Instant::now());
        self.metrics.passes.observe(self.last_pass.as_secs_f64());
        published
    }

    async fn load_releases(&mut self, instances: &[Instance], births: &Births<'_>) -> Result<(), Trouble> {
        if self.releases.len() > RELEASES_KEPT {
            self.releases.clear();
        }
        for instance in instances {
            let Some(key) = release_key(instance, births) else {
                continue;
            };
            if self.releases.contains_key(&key) {
                continue;
            }
            if let Some(release) = self.deps.store.release_fetch(&instance.app, instance.release).await? {
                self.releases.insert(key, Arc::new(release));
            }
        }
        Ok(())
    }

    /// Makes the registry fit the store.
    async fn publish(
        &mut self,
        instances: &[Instance],
        apps: &[App],
        hosts: &HashMap<HostName, Host>,
        births: &Births<'_>,
    ) -> Result<(), Trouble> {
        let reread = Duration::from_secs(self.config.reread_s);
        let known = self.published.take_if(|p| p.read_at.elapsed() < reread);
        let ghosts = self.published.take().map(|p| p.ghosts).unwrap_or_default();
        let first = self.passed_at.is_none();
        let mut published = match known {
            Some(published) => published,
            None => Published {
                snapshot: self.deps.registry.published().await?,
                read_at: Instant::now(),
                ghosts,
            },
        };
        let view = View {
            instances,
            apps,
            hosts,
            protocols: versions::protocols(instances, apps, |instance| self.release_of(instance, births)?.protocol),
            drains: versions::drains(instances, apps, |instance| {
                Some(self.release_of(instance, births)?.spec.drain_timeout_s)
            }),
            published: &published.snapshot,
        };
        let plan = plan::plan(&view, &published.ghosts.lasting(Instant::now(), reread));
        self.metrics.braked.set(plan.braked.into());
        if plan.braked {
            tracing::error!("more than half of all instances fail their probes: they are kept in the registry");
        }
        if !plan.ghosts.is_empty() {
            tracing::warn!(
                ghosts = plan.ghosts.len(),
                "the registry holds entries that belong to no instance"
            );
        }
        let new_ghosts = published.ghosts.saw(plan.ghosts, Instant::now());
        self.metrics.ghosts.inc_by(new_ghosts as u64);
        // The first time even if there is nothing to do: whoever follows knows then that this is all.
        if first || !plan.changes.is_empty() {
            let revision = self.deps.registry.apply(&plan.changes).await?;
            published.snapshot.revision = published.snapshot.revision.max(revision);
            self.metrics.changes.inc_by(plan.changes.len() as u64);
            for change in plan.changes {
                published.snapshot.fold(change);
            }
        }
        self.metrics
            .published
            .set(i64::try_from(published.snapshot.endpoints.len()).unwrap_or(i64::MAX));
        self.published = Some(published);
        Ok(())
    }

    fn release_of(&self, instance: &Instance, births: &Births<'_>) -> Option<&Arc<Release>> {
        self.releases.get(&release_key(instance, births)?)
    }

    fn targets(
        &self,
        instances: &[Instance],
        apps: &[App],
        hosts: &HashMap<HostName, Host>,
        births: &Births<'_>,
    ) -> HashMap<InstanceId, Target> {
        let protocols: HashMap<&AppId, Protocol> = apps.iter().map(|app| (&app.id, app.config.protocol)).collect();
        let mut targets = HashMap::new();
        for instance in instances.iter().filter(|i| is_watched(i.state)) {
            let Some(release) = self.release_of(instance, births) else {
                continue;
            };
            let Some(host) = hosts.get(&instance.host) else {
                continue;
            };
            let protocol = protocols.get(&instance.app).copied().unwrap_or_default();
            let protocol = protocol.of_instance(release.protocol);
            let withdrawn = match (&self.published, plan::entry(instance, hosts)) {
                (Some(published), Some((key, _))) => !published.snapshot.endpoints.contains_key(&key),
                _ => false,
            };
            let target = Target {
                instance: instance.clone(),
                address: SocketAddr::new(host.address, instance.port),
                check: release.spec.health.suited_to(protocol),
                protocol,
                on_failure: release.spec.on_failure,
                withdrawn,
            };
            targets.insert(instance.id.clone(), target);
        }
        targets
    }

    /// Notes whom the gateways have to take up or let go.
    fn await_gateways(&mut self, instances: &[Instance], hosts: &HashMap<HostName, Host>, births: &Births<'_>) {
        let Some(published) = &self.published else { return };
        let mut waiting = HashMap::new();
        for instance in instances {
            let entry = plan::entry(instance, hosts);
            let in_registry = entry
                .as_ref()
                .is_some_and(|(key, _)| published.snapshot.endpoints.contains_key(key));
            let awaited = match instance.state {
                InstanceState::Running if instance.routed_at.is_none() && in_registry => Awaited::Routed,
                InstanceState::Draining if !in_registry => {
                    let timeout = self
                        .release_of(instance, births)
                        .map_or(Duration::ZERO, |r| Duration::from_secs(r.spec.drain_timeout_s.into()));
                    match &instance.container {
                        Some(container) => Awaited::Drained {
                            container: container.clone(),
                            timeout,
                        },
                        // It never had a container: nobody can be talking to it.
                        None => Awaited::Routed,
                    }
                }
                _ => continue,
            };
            let before = self.waiting.remove(&instance.id).filter(|w| w.awaited == awaited);
            let (revision, since) = match before {
                Some(before) => (before.revision, before.since),
                None => (published.snapshot.revision, Instant::now()),
            };
            waiting.insert(
                instance.id.clone(),
                Waiting {
                    instance: instance.clone(),
                    awaited,
                    revision,
                    since,
                },
            );
        }
        self.waiting = waiting;
    }

    /// Moves those whom the gateways have taken up or let go.
    async fn confirm(&mut self) -> Result<(), Trouble> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let acknowledgements = self.deps.registry.acknowledgements().await?;
        let limit = self.acknowledge_limit();
        let mut done = Vec::new();
        for (id, w) in &self.waiting {
            if confirmed(&w.awaited, w.revision, w.since.elapsed(), &acknowledgements, limit) {
                done.push(id.clone());
            }
        }
        for id in done {
            let Some(w) = self.waiting.get_mut(&id) else { continue };
            let change = match w.instance.state {
                InstanceState::Draining => InstanceChange::Drained,
                _ => InstanceChange::Routed,
            };
            match self
                .deps
                .store
                .instance_update(&w.instance, &change, Timestamp::now())
                .await?
            {
                Outcome::Updated(row) => {
                    tracing::debug!(app = %row.app, instance = %row.id, ?change, "confirmed by the gateways");
                    self.waiting.remove(&id);
                }
                // Something else of the row has changed: what is waited for goes on as it is.
                Outcome::Conflict(row) if row.state == w.instance.state && row.routed_at == w.instance.routed_at => {
                    w.instance = row;
                }
                // The next pass sees what it is now.
                Outcome::Conflict(_) | Outcome::NotFound => {
                    self.waiting.remove(&id);
                }
            }
        }
        Ok(())
    }
}

/// When each app was made.
type Births<'a> = HashMap<&'a AppId, Timestamp>;

fn release_key(instance: &Instance, births: &Births<'_>) -> Option<(AppId, Timestamp, u32)> {
    let born = births.get(&instance.app)?;
    Some((instance.app.clone(), *born, instance.release))
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}
