//! Certificates that are had by themselves (ACME, RFC 8555): the loop compares what is wanted with what there is and works on a
//! few orders at once. It takes no input and may be killed at any line; several schedulers share the work by the leases of the
//! orders' rows.

mod authority;
mod config;
mod order;
mod plan;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use certificates::SealingKeys;
use model::store::{Outcome, Revision, Store, StoreError};
use model::{CertificateName, EventKind, NewEvent, Timestamp};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub use config::{AcmeConfig, Challenges};

use crate::metrics::Metrics;
use authority::Authority;
use order::{HELD, Work};
use plan::{Plan, View};

/// Longest time between two passes.
const EVERY: Duration = Duration::from_secs(10);
/// Shortest time between two passes.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// The loop, ready to run.
#[derive(Debug)]
pub(crate) struct Acme {
    config: AcmeConfig,
    work: Arc<Work>,
    me: String,
}

impl Acme {
    /// Makes ready; asks nobody anything. `None`: it is off.
    ///
    /// # Errors
    /// One sentence that names the setting.
    pub(crate) fn new(
        config: &AcmeConfig,
        store: Arc<dyn Store>,
        keys: Option<Arc<SealingKeys>>,
        metrics: Arc<Metrics>,
        me: &str,
    ) -> Result<Option<Self>, String> {
        config.check(keys.is_some())?;
        let Some(keys) = keys.filter(|_| config.is_on()) else {
            return Ok(None);
        };
        let me = match me {
            "" => format!("{:016x}", rand::random::<u64>()),
            me => me.to_owned(),
        };
        let work = Work {
            authority: Authority::new(config, Arc::clone(&store), Arc::clone(&keys))?,
            store,
            keys,
            challenges: config.challenges,
            metrics,
        };
        Ok(Some(Self {
            config: config.clone(),
            work: Arc::new(work),
            me,
        }))
    }

    /// Runs until `shutdown`; an order that is under way then is taken up again after the next start.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut revision = Revision::default();
        let mut tasks = JoinSet::new();
        let mut running = BTreeSet::new();
        loop {
            let passed = tokio::select! {
                passed = self.pass(&mut tasks, &mut running) => passed,
                () = shutdown.cancelled() => return,
            };
            let outcome = if passed.is_ok() { "ok" } else { "error" };
            self.work.metrics.passes.with_label_values(&["acme", outcome]).inc();
            let pause = match passed {
                Ok(next) => next.map_or(EVERY, |at| at.since(Timestamp::now()).min(EVERY)),
                Err(error) => {
                    tracing::warn!(%error, "certificates can't be looked after");
                    EVERY
                }
            };
            tokio::select! {
                () = sleep(LEAST_PAUSE) => {}
                () = shutdown.cancelled() => return,
            }
            tokio::select! {
                newest = self.work.store.revision_wait(revision, EVERY) => {
                    revision = newest.unwrap_or(revision);
                }
                Some(done) = tasks.join_next() => forget_done(&mut running, done),
                () = sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Looks at everything once; when the next thing is due.
    async fn pass(
        &self,
        tasks: &mut JoinSet<CertificateName>,
        running: &mut BTreeSet<CertificateName>,
    ) -> Result<Option<Timestamp>, StoreError> {
        while let Some(done) = tasks.try_join_next() {
            forget_done(running, done);
        }
        if tasks.is_empty() {
            // Also after a panic, of which the name is not known.
            running.clear();
        }
        let store = &self.work.store;
        let (apps, certificates) = (store.app_list().await?, store.certificate_list().await?);
        let orders = store.order_list().await?;
        let now = Timestamp::now();
        let plan = plan::plan(&View {
            config: &self.config,
            apps: &apps,
            certificates: &certificates,
            orders: &orders,
            running,
            me: &self.me,
            now,
        });
        let Plan {
            begin,
            drop,
            forget,
            next,
        } = plan;
        for name in forget {
            let message = format!("forget certificate {name}: it is not needed any more");
            let event = NewEvent::new(EventKind::Admin, "scheduler", message);
            store.certificate_remove(&name, &event, now).await?;
        }
        for order in drop {
            store.order_remove(&order).await?;
        }
        if self.work.authority.rests_until() > now {
            return Ok(None);
        }
        for begin in begin {
            let mut order = begin.order;
            order.holder.clone_from(&self.me);
            order.held_until = now.plus(HELD);
            // Whoever was faster has it.
            if let Outcome::Updated(order) = store.order_put(&order, None, now).await? {
                running.insert(order.domain.clone());
                let work = Arc::clone(&self.work);
                tasks.spawn(async move {
                    let domain = order.domain.clone();
                    work.run(order, begin.renewal).await;
                    domain
                });
            }
        }
        Ok(next)
    }
}

fn forget_done(running: &mut BTreeSet<CertificateName>, done: Result<CertificateName, tokio::task::JoinError>) {
    match done {
        Ok(domain) => {
            running.remove(&domain);
        }
        Err(error) => tracing::error!(%error, "an order's task failed"),
    }
}
