//! The work on one app: plan, claim, act, and tell its operation. One task per app at a time.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt as _;
use model::spec::ReleaseSpec;
use model::store::{AppSettle, InstanceFilter, Outcome, Pick, PlaceOutcome, Placing, RefusedBecause, StoreError};
use model::{
    AppId, Host, HostName, Instance, InstanceChange, InstanceId, Operation, OperationKind, Release, Timestamp,
};
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::canary::{self, Plans};
use super::fleet::lock;
use super::operations::{self, Evidence, Verdict};
use super::plan::{Action, Facts};
use super::{CLAIM_RENEW, CLAIM_TTL, Context, Job, NO_PORT_FOR, Snapshot};
use crate::placement::{self, Request};

/// Placements in one transaction.
const PICKS_AT_ONCE: usize = 100;
/// Changes of instances of one app that are written at once.
const WRITES_AT_ONCE: usize = 16;

/// What placing came to.
#[derive(Default)]
struct Placed {
    /// Something was written, or has to be looked at anew.
    moved: bool,
    /// Why no host fits the rest.
    reasons: Option<Vec<String>>,
}

/// The release of a canary that was on its way out and has gone.
fn gone_canary(job: &Job) -> Option<u32> {
    let canary = job.app.canary.as_ref().filter(|c| c.leaves())?;
    let held = job.instances.iter().any(|i| i.release == canary.release);
    (!held).then_some(canary.release)
}

/// Hosts on which a `one_per_host` app belongs.
fn belongs_on(job: &Job, spec: Option<&ReleaseSpec>, snapshot: &Snapshot) -> HashSet<HostName> {
    let Some(spec) = spec.filter(|s| s.placement.one_per_host) else {
        return HashSet::new();
    };
    let census = lock(&snapshot.census);
    snapshot
        .host_list
        .iter()
        .filter(|h| placement::belongs(spec, &job.app.id, h, &census))
        .map(|h| h.name.clone())
        .collect()
}

/// The releases that an app wants.
#[derive(Default)]
struct Wanted {
    own: Option<Arc<Release>>,
    canary: Option<Arc<Release>>,
}

impl Wanted {
    fn spec(&self) -> Option<&ReleaseSpec> {
        self.own.as_deref().map(|r| &r.spec)
    }

    fn canary_spec(&self) -> Option<&ReleaseSpec> {
        self.canary.as_deref().map(|r| &r.spec)
    }
}

/// Why no host fits, for an app and for its canary.
#[derive(Default)]
struct Blocked {
    own: Option<Vec<String>>,
    canary: Option<Vec<String>>,
}

impl Context {
    fn decide(&self, job: &Job, wanted: &Wanted, history: Option<&[Instance]>, snapshot: &Snapshot) -> Plans {
        let spec = wanted.spec();
        let belongs_on = belongs_on(job, spec, snapshot);
        let facts = Facts {
            app: &job.app,
            spec,
            instances: &job.instances,
            history,
            failures_since: job.operation.as_ref().map_or(Timestamp::default(), |o| o.created_at),
            hosts: &snapshot.hosts,
            observations: &snapshot.observations,
            belongs_on: &belongs_on,
            in_hand: &snapshot.in_hand,
            tokens: &snapshot.tokens,
            frozen: snapshot.frozen,
            began: snapshot.began,
            config: &self.config,
            now: snapshot.now,
        };
        canary::plans(&facts, wanted.canary_spec())
    }

    /// The releases that `job`'s app wants, without asking the store; `None` when one of them is not known yet.
    fn cached(&self, job: &Job) -> Option<Wanted> {
        let mut wanted = Wanted::default();
        if job.app.release != 0 {
            wanted.own = Some(self.cached_release(&job.app, job.app.release)?);
        }
        if let Some(canary) = &job.app.canary {
            wanted.canary = Some(self.cached_release(&job.app, canary.release)?);
        }
        Some(wanted)
    }

    async fn wanted(&self, job: &Job) -> Result<Wanted, StoreError> {
        let mut wanted = Wanted::default();
        if job.app.release != 0 {
            wanted.own = self.release(&job.app, job.app.release).await?;
        }
        if let Some(canary) = &job.app.canary {
            wanted.canary = self.release(&job.app, canary.release).await?;
        }
        Ok(wanted)
    }

    /// Whether anything is to be done for an app; decided without I/O, since most apps rest.
    pub(super) fn worth_a_task(&self, job: &Job, snapshot: &Snapshot) -> bool {
        let Some(wanted) = self.cached(job) else { return true };
        if job.operation.is_some() || gone_canary(job).is_some() {
            return true;
        }
        let plans = self.decide(job, &wanted, None, snapshot);
        for at in plans.each().filter_map(|d| d.wake_at) {
            self.wake(at);
        }
        plans.each().any(|d| !d.actions.is_empty() || d.needs_history)
            || (self.claim_is_due(job, snapshot) && job.instances.iter().any(|i| snapshot.in_hand.contains(&i.id)))
    }

    /// Notes that an app was passed over: its task looks again when it ends, or this does if it just has.
    pub(super) fn miss(&self, app: &AppId) {
        lock(&self.missed).insert(app.clone());
        if self.apps.has_ended(app) {
            self.fleet.changed.notify_one();
        }
    }

    /// Begins the work on an app in a task of its own.
    pub(super) fn begin(self: &Arc<Self>, job: Job, snapshot: &Arc<Snapshot>) {
        let Some(hold) = self.apps.take(&job.app.id) else {
            self.miss(&job.app.id);
            return;
        };
        let (context, snapshot) = (Arc::clone(self), Arc::clone(snapshot));
        tokio::spawn(async move {
            let app = job.app.id.clone();
            let work = async {
                let _permit = context.apps_at_once.acquire().await;
                context.work(&job, &snapshot).await
            };
            let moved = tokio::select! {
                worked = work => worked.unwrap_or_else(|error| {
                    warn!(app = %job.app.id, %error, "the work on an app was cut short; it is tried again");
                    context.wake(Timestamp::now().plus(super::STORE_RETRY));
                    false
                }),
                () = context.stop.cancelled() => return,
            };
            drop(hold);
            let missed = lock(&context.missed).remove(&app);
            // Without a change there is nothing new to be seen; what others change wakes the loop by itself.
            if moved || missed {
                context.fleet.changed.notify_one();
            }
        });
    }

    fn claim_is_due(&self, job: &Job, snapshot: &Snapshot) -> bool {
        lock(&self.claims)
            .get(&job.app.id)
            .is_none_or(|at| snapshot.now.since(*at) >= CLAIM_RENEW)
    }

    /// Claims the work on an app; `false` while another scheduler is at it.
    async fn claim(&self, job: &Job, snapshot: &Snapshot) -> Result<bool, StoreError> {
        if !self.claim_is_due(job, snapshot) {
            return Ok(true);
        }
        let now = Timestamp::now();
        let got = self.store.app_claim(&job.app.id, &self.holder, now, CLAIM_TTL).await?;
        let mut claims = lock(&self.claims);
        if got {
            claims.retain(|_, at| now.since(*at) < CLAIM_TTL);
            claims.insert(job.app.id.clone(), now);
        } else {
            claims.remove(&job.app.id);
            self.wake(now.plus(CLAIM_RENEW));
        }
        Ok(got)
    }

    /// Does what one look says for one app; whether anything was changed.
    async fn work(self: &Arc<Self>, job: &Job, snapshot: &Arc<Snapshot>) -> Result<bool, StoreError> {
        let wanted = self.wanted(job).await?;
        let mut plans = self.decide(job, &wanted, None, snapshot);
        let mut history = None;
        if plans.each().any(|d| d.needs_history) {
            let filter = InstanceFilter {
                app: Some(job.app.id.clone()),
                host: None,
                released_too: true,
            };
            history = Some(self.store.instance_list(&filter).await?);
            plans = self.decide(job, &wanted, history.as_deref(), snapshot);
        }
        for at in plans.each().filter_map(|d| d.wake_at) {
            self.wake(at);
        }
        let mut blocked = Blocked::default();
        let verdict = self.judge(job, &wanted, &plans, history.as_deref(), &blocked, snapshot);
        let in_hand = job.instances.iter().any(|i| snapshot.in_hand.contains(&i.id));
        let gone = gone_canary(job);
        let idle = plans.each().all(|d| d.actions.is_empty()) && verdict.next.is_none() && gone.is_none();
        if (!idle || in_hand) && !self.claim(job, snapshot).await? {
            return Ok(false);
        }
        if let Some(release) = gone {
            let gone = AppSettle::CanaryGone { release };
            self.store.app_settle(&job.app, &gone, Timestamp::now()).await?;
            return Ok(true);
        }
        if matches!(
            verdict.settle,
            Some(AppSettle::RolledBack { .. } | AppSettle::CanaryFailed { .. })
        ) {
            return self.conclude(job, verdict).await;
        }
        let mut moved = false;
        let mut simple = Vec::new();
        let own = plans.own.actions.iter().map(|action| (action, false));
        let beside = plans
            .canary
            .iter()
            .flat_map(|d| &d.actions)
            .map(|action| (action, true));
        for (action, of_canary) in own.chain(beside) {
            let instance = |id: &InstanceId| job.instances.iter().find(|i| i.id == *id);
            match action {
                Action::Place { count, only } => {
                    let (release, decision, reasons) = match &plans.canary {
                        Some(canary) if of_canary => (&wanted.canary, canary, &mut blocked.canary),
                        _ => (&wanted.own, &plans.own, &mut blocked.own),
                    };
                    let Some(release) = release else { continue };
                    let request = Request {
                        app: &job.app.id,
                        spec: &release.spec,
                        desired: decision.shape.desired,
                        only: only.as_deref(),
                        leaving: &decision.leaving,
                        failed_on: &placement::failed_on(history.as_deref().unwrap_or(&job.instances), snapshot.now),
                    };
                    let placed = self.place(job, release, &request, *count, snapshot).await?;
                    moved |= placed.moved;
                    *reasons = placed.reasons;
                }
                Action::Drain(id) => simple.extend(instance(id).map(|i| (i, InstanceChange::Drain))),
                Action::Abandon(id) | Action::Release(id) => {
                    simple.extend(instance(id).map(|i| (i, InstanceChange::Stopped)));
                }
                Action::Find(id) => simple.extend(instance(id).map(|i| (i, InstanceChange::Found))),
                Action::Lose(id) => {
                    if let Some(instance) = instance(id) {
                        moved = true;
                        self.lose(instance).await;
                    }
                }
                Action::Delete => {
                    moved = true;
                    self.delete(job).await?;
                    return Ok(moved);
                }
                Action::Launch(id) | Action::Check(id) | Action::Restart(id) | Action::Stop(id) | Action::Clean(id) => {
                    if let Some(instance) = instance(id) {
                        self.handle(job, instance, action.clone(), snapshot).await?;
                    }
                }
            }
        }
        let any = AtomicBool::new(false);
        futures::stream::iter(simple)
            .for_each_concurrent(WRITES_AT_ONCE, |(instance, change)| {
                let any = &any;
                async move {
                    if self.simply(instance, &change).await {
                        any.store(true, Ordering::Relaxed);
                    }
                }
            })
            .await;
        moved |= any.into_inner();
        let verdict = if blocked.own.is_some() || blocked.canary.is_some() {
            self.judge(job, &wanted, &plans, history.as_deref(), &blocked, snapshot)
        } else {
            verdict
        };
        Ok(self.conclude(job, verdict).await? || moved)
    }

    fn judge(
        &self,
        job: &Job,
        wanted: &Wanted,
        plans: &Plans,
        history: Option<&[Instance]>,
        blocked: &Blocked,
        snapshot: &Snapshot,
    ) -> Verdict {
        let Some(operation) = &job.operation else {
            return Verdict::default();
        };
        let pulls = lock(&self.pulls);
        let evidence = Evidence {
            operation,
            app: &job.app,
            spec: wanted.spec(),
            decision: &plans.own,
            canary: plans.canary.as_ref(),
            instances: &job.instances,
            history,
            blocked: blocked.own.as_deref(),
            pulls: &pulls,
            now: snapshot.now,
        };
        let beside = job.app.canary.as_ref().filter(|c| !c.leaves());
        let verdict = match (beside, &plans.canary) {
            (Some(canary), Some(decision)) if operation.kind == OperationKind::Canary => operations::judge(&Evidence {
                app: &canary.alone(&job.app),
                spec: wanted.canary_spec(),
                decision,
                blocked: blocked.canary.as_deref(),
                ..evidence
            }),
            _ => operations::judge(&evidence),
        };
        if let Some(at) = verdict.wake_at {
            self.wake(at);
        }
        verdict
    }

    /// Writes what was judged, the app before the operation: a crash between the two is told from the app's row.
    async fn conclude(&self, job: &Job, verdict: Verdict) -> Result<bool, StoreError> {
        if let Some(settle) = &verdict.settle {
            match self.store.app_settle(&job.app, settle, Timestamp::now()).await? {
                Outcome::Updated(_) => {}
                // The user was faster: what was judged is out of date.
                Outcome::Conflict(_) | Outcome::NotFound => return Ok(true),
            }
        }
        let Some(next) = verdict.next else {
            return Ok(verdict.settle.is_some());
        };
        self.write_operation(&next).await;
        Ok(true)
    }

    /// Writes an operation; conflicts are left to the next look.
    pub(super) async fn write_operation(&self, next: &Operation) {
        match self.store.operation_update(next, Timestamp::now()).await {
            Ok(Outcome::Updated(_)) if next.state.is_final() => {
                let labels = [next.kind.as_str(), next.state.as_str()];
                self.metrics.operations.with_label_values(&labels).inc();
                info!(operation = %next.id, kind = next.kind.as_str(), state = next.state.as_str(), message = %next.message, "operation ended");
            }
            Ok(_) => {}
            Err(error) => {
                warn!(operation = %next.id, %error, "an operation could not be written; it is tried again");
                self.wake(Timestamp::now().plus(super::STORE_RETRY));
            }
        }
    }

    async fn delete(&self, job: &Job) -> Result<(), StoreError> {
        let now = Timestamp::now();
        if self.store.app_delete(&job.app.id, now).await? {
            lock(&self.releases).retain(|(app, _, _), _| *app != job.app.id);
            if let Some(next) = job.operation.as_ref().and_then(|o| operations::judge_gone(o, now)) {
                self.write_operation(&next).await;
            }
        }
        Ok(())
    }

    /// Begins the work on one instance that needs its engine, in a task of its own.
    async fn handle(
        self: &Arc<Self>,
        job: &Job,
        instance: &Instance,
        action: Action,
        snapshot: &Snapshot,
    ) -> Result<(), StoreError> {
        let Some(host) = snapshot.hosts.get(&instance.host).cloned() else {
            return Ok(());
        };
        let release = self.release(&job.app, instance.release).await?;
        let Some(hold) = self.instances.take(&instance.id) else {
            return Ok(());
        };
        let (context, instance) = (Arc::clone(self), instance.clone());
        self.spawn(hold, async move {
            match (action, release) {
                (Action::Launch(_), Some(release)) => context.launch(&instance, &release, &host).await,
                (Action::Restart(_), Some(release)) => context.restart(&instance, &release, &host).await,
                (Action::Check(_), _) => context.check(&instance, &host).await,
                (Action::Stop(_), release) => context.stop(&instance, release.as_deref(), &host).await,
                (Action::Clean(_), release) => context.clean(&instance, release.as_deref(), &host).await,
                _ => {}
            }
        });
        Ok(())
    }

    /// Places up to `count` instances and begins to launch them.
    async fn place(
        self: &Arc<Self>,
        job: &Job,
        release: &Arc<Release>,
        request: &Request<'_>,
        count: usize,
        snapshot: &Snapshot,
    ) -> Result<Placed, StoreError> {
        let counted = |outcome: &str, n: usize| {
            let counter = self.metrics.placements.with_label_values(&[outcome]);
            counter.inc_by(u64::try_from(n).unwrap_or(u64::MAX));
        };
        let (hosts, why) = {
            let mut census = lock(&snapshot.census);
            // One each where one per host is wanted.
            placement::choose(request, count, &snapshot.host_list, &mut census)
        };
        let mut placed = Placed {
            moved: false,
            reasons: why.map(|w| w.reasons()),
        };
        if placed.reasons.is_some() {
            counted("no_host", count - hosts.len());
        }
        let mut expected_placements = job.app.placements;
        for chunk in hosts.chunks(PICKS_AT_ONCE) {
            let now = Timestamp::now();
            let picks = chunk.iter().map(|host| self.pick(host, release, now)).collect();
            let placing = Placing {
                app: job.app.id.clone(),
                expected_placements,
                expected_generation: job.app.generation,
                not_before: job.app.restart_before,
                picks,
            };
            placed.moved = true;
            match self.store.instance_place(&placing, now).await? {
                PlaceOutcome::Placed { placed, refused } => {
                    counted("placed", placed.len());
                    counted("refused", refused.len());
                    for instance in &placed {
                        if let Some(host) = snapshot.hosts.get(&instance.host) {
                            self.launch_placed(instance, release, host);
                        }
                    }
                    self.refused(&placing, &refused, now);
                    expected_placements += 1;
                }
                PlaceOutcome::Conflict => {
                    counted("conflict", chunk.len());
                    break;
                }
            }
        }
        Ok(placed)
    }

    fn pick(&self, host: &HostName, release: &Release, now: Timestamp) -> Pick {
        let instance = InstanceId::random();
        let token = hex::encode(rand::rng().random::<[u8; 20]>());
        let token_hash = hex::encode(Sha256::digest(&token));
        // Known before the row is there: whoever sees the row finds the token.
        self.tokens.put(&instance, token, now);
        Pick {
            instance,
            host: host.clone(),
            release: release.number,
            version: release.version.clone(),
            memory_mb: release.spec.memory_mb,
            cpu_weight: release.spec.cpu_weight,
            token_hash,
        }
    }

    fn refused(&self, placing: &Placing, refused: &[(InstanceId, RefusedBecause)], now: Timestamp) {
        for (id, because) in refused {
            self.tokens.forget(id);
            let pick = placing.picks.iter().find(|p| p.instance == *id);
            if let (Some(pick), RefusedBecause::NoPort) = (pick, because) {
                lock(&self.no_port).insert(pick.host.clone(), now.plus(NO_PORT_FOR));
            }
        }
    }

    /// Begins to launch what was just placed, without waiting for the next look.
    fn launch_placed(self: &Arc<Self>, instance: &Instance, release: &Arc<Release>, host: &Host) {
        let Some(hold) = self.instances.take(&instance.id) else {
            return;
        };
        let (context, instance, release, host) =
            (Arc::clone(self), instance.clone(), Arc::clone(release), host.clone());
        self.spawn(hold, async move {
            context.launch(&instance, &release, &host).await;
        });
    }
}
