//! What to write of instances' loads. Pure, but for the small task that reads figures.
//!
//! Every published endpoint has an entry with its host and the host's region, and what the instance uses as soon as
//! that was measured. Loads are never in the way of endpoints: they are written behind them, a few at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use model::registry::{LoadKey, RegistryChange, RegistrySnapshot};
use model::{Figures, Host, HostName, Instance, InstanceId, Load};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Deps;
use crate::metrics::Metrics;
use crate::plan;

/// Between two readings of figures, and so the least time between two entries of the same instance.
const EVERY: Duration = Duration::from_secs(10);

/// Between two looks at whether this process leads now.
const STAND_BY: Duration = Duration::from_millis(500);

/// Most loads in one write: endpoints that change meanwhile wait for no more than these.
const AT_ONCE: usize = 100;

/// The newest figures of each instance.
pub(crate) type AllFigures = Arc<HashMap<InstanceId, Figures>>;

/// Reads figures while this process leads, until `shutdown`.
pub(crate) async fn follow_figures(
    deps: Deps,
    metrics: Arc<Metrics>,
    figures: watch::Sender<AllFigures>,
    shutdown: CancellationToken,
) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
        if metrics.leader.get() == 0 {
            pause = STAND_BY;
            continue;
        }
        pause = EVERY;
        match deps.store.figures_list().await {
            Ok(read) => {
                let read: HashMap<InstanceId, Figures> = read.into_iter().collect();
                figures.send_if_modified(|known| {
                    let new = **known != read;
                    if new {
                        *known = Arc::new(read);
                    }
                    new
                });
            }
            Err(error) => tracing::warn!(%error, "the figures of use can't be read, the last ones stay"),
        }
    }
}

/// What the registry holds of loads, and what is still to be written.
#[derive(Debug)]
pub(crate) struct Loads {
    written: BTreeMap<LoadKey, Load>,
    due: VecDeque<RegistryChange>,
}

impl Loads {
    /// `written` is what the registry holds.
    pub(crate) fn new(written: BTreeMap<LoadKey, Load>) -> Self {
        Self {
            written,
            due: VecDeque::new(),
        }
    }

    /// Compares what is written with what should be: entries of endpoints without one come first, then what moved, then
    /// what has to go.
    pub(crate) fn plan(
        &mut self,
        instances: &[Instance],
        hosts: &HashMap<HostName, Host>,
        published: &RegistrySnapshot,
        figures: &HashMap<InstanceId, Figures>,
    ) {
        let (mut new, mut moved) = (VecDeque::new(), Vec::new());
        let mut gone: BTreeSet<&LoadKey> = self.written.keys().collect();
        for instance in instances {
            let (Some((entry, _)), Some(host)) = (plan::entry(instance, hosts), hosts.get(&instance.host)) else {
                continue;
            };
            if !published.endpoints.contains_key(&entry) {
                continue;
            }
            let key = entry.load_key();
            let load = Load {
                host: host.name.clone(),
                region: host.region.clone(),
                figures: figures.get(&instance.id).copied(),
            };
            gone.remove(&key);
            match self.written.get(&key) {
                None => new.push_back(RegistryChange::Load(key, load)),
                Some(written) if *written != load => moved.push(RegistryChange::Load(key, load)),
                Some(_) => {}
            }
        }
        new.extend(moved);
        new.extend(gone.into_iter().map(|key| RegistryChange::LoadRemove(key.clone())));
        self.due = new;
    }

    /// What is to be written next; empty: nothing.
    pub(crate) fn batch(&self) -> Vec<RegistryChange> {
        self.due.iter().take(AT_ONCE).cloned().collect()
    }

    /// `batch` is written.
    pub(crate) fn wrote(&mut self, batch: Vec<RegistryChange>) {
        self.due.drain(..batch.len().min(self.due.len()));
        for change in batch {
            match change {
                RegistryChange::Load(key, load) => self.written.insert(key, load),
                RegistryChange::LoadRemove(key) => self.written.remove(&key),
                _ => None,
            };
        }
    }

    /// Whether there is more to be written.
    pub(crate) fn is_behind(&self) -> bool {
        !self.due.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::tests::instance;
    use crate::plan::tests::{hosts, numbered};
    use model::InstanceState::Running;
    use model::{Endpoint, Timestamp};

    fn figures(cpu_milli: u32) -> Figures {
        Figures {
            cpu_milli,
            memory_bytes: 1,
            memory_limit_bytes: 2,
            at: Timestamp::from_millis(3),
        }
    }

    fn published(instances: &[Instance]) -> RegistrySnapshot {
        let entry = |i: &Instance| plan::entry(i, &hosts()).map(|(key, endpoint): (_, Endpoint)| (key, endpoint));
        RegistrySnapshot {
            endpoints: instances.iter().filter_map(entry).collect(),
            ..RegistrySnapshot::default()
        }
    }

    fn write_all(loads: &mut Loads) -> Vec<RegistryChange> {
        let mut all = Vec::new();
        while loads.is_behind() {
            let batch = loads.batch();
            assert!((1..=AT_ONCE).contains(&batch.len()));
            all.extend(batch.clone());
            loads.wrote(batch);
        }
        all
    }

    #[test]
    fn an_endpoint_has_its_region_before_its_figures() {
        let instances = [numbered(0, Running), numbered(1, Running)];
        let all = published(&instances);
        let mut loads = Loads::new(BTreeMap::new());
        loads.plan(&instances, &hosts(), &published(&instances[..1]), &HashMap::new());
        let written = write_all(&mut loads);
        let [RegistryChange::Load(key, load)] = &written[..] else {
            panic!("only the published one: {written:?}");
        };
        assert_eq!(key.container.as_str(), "c0");
        assert_eq!(
            (load.host.as_str(), load.region.as_str(), load.figures),
            ("h1", "eu", None)
        );

        let measured = HashMap::from([(instances[0].id.clone(), figures(7))]);
        loads.plan(&instances, &hosts(), &all, &measured);
        let written = write_all(&mut loads);
        let [RegistryChange::Load(new, _), RegistryChange::Load(moved, load)] = &written[..] else {
            panic!("the new one first: {written:?}");
        };
        assert_eq!((new.container.as_str(), moved.container.as_str()), ("c1", "c0"));
        assert_eq!(load.figures, Some(figures(7)));
        loads.plan(&instances, &hosts(), &all, &measured);
        assert!(!loads.is_behind(), "nothing moved");

        loads.plan(&instances, &hosts(), &published(&instances[1..]), &measured);
        assert_eq!(write_all(&mut loads), [RegistryChange::LoadRemove(moved.clone())]);
    }

    #[test]
    fn many_are_written_a_few_at_a_time_and_strangers_go() {
        let stranger = LoadKey {
            app: "gone".parse().unwrap(),
            container: "c9".parse().unwrap(),
        };
        let load = Load::parse(br#"{"host":"h1"}"#).unwrap();
        let mut loads = Loads::new(BTreeMap::from([(stranger.clone(), load)]));
        let instances: Vec<Instance> = (0..600)
            .map(|n| Instance {
                id: instance(Running).id,
                ..numbered(n, Running)
            })
            .collect();
        loads.plan(&instances, &hosts(), &published(&instances), &HashMap::new());
        let written = write_all(&mut loads);
        assert_eq!(written.len(), 601);
        assert_eq!(written[600], RegistryChange::LoadRemove(stranger));
        assert_eq!(loads.written.len(), 600);
    }
}
