//! The plan by itself: tables, and random fleets whose every step is checked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use model::engine::{Container, ContainerStatus};
use model::spec::{OnFailure, Update};
use model::{
    App, AppConfig, AppId, AppStatus, Failure, FailureCode, Generation, Host, HostName, Instance, InstanceChange,
    InstanceId, InstanceState, ReleaseSpec, Schedulability, TenantId, Timestamp,
};
use proptest::prelude::*;

use crate::converge::ConvergeConfig;
use crate::converge::canary::{Plans, plans};
use crate::converge::fleet::Observation;
use crate::converge::plan::{Action, Decision, Facts, is_serving, plan, surge};

/// A fleet in memory that carries out plans by the model's own state machine.
pub(super) struct Sim {
    pub(super) app: App,
    pub(super) spec: ReleaseSpec,
    hosts: HashMap<HostName, Host>,
    pub(super) instances: Vec<Instance>,
    released: Vec<Instance>,
    pub(super) containers: HashMap<InstanceId, Container>,
    pub(super) now: Timestamp,
    config: ConvergeConfig,
}

fn host(name: &str) -> Host {
    Host {
        name: name.parse().expect("valid"),
        address: "127.0.0.1".parse().expect("valid"),
        engine: "fake://x".into(),
        labels: std::collections::BTreeMap::new(),
        region: String::new(),
        memory_mb: 10_000,
        cpu_millis: 1000,
        port_range: (20_000, 29_999),
        schedulability: Schedulability::Schedulable,
        down_since: None,
        reserved_memory_mb: 0,
        reserved_cpu_weight: 0,
        instances: 0,
        used_cpu_millis: 0,
        created_at: Timestamp::default(),
        generation: Generation::FIRST,
    }
}

impl Sim {
    pub(super) fn new(desired: u32, update: Update) -> Self {
        let now = Timestamp::from_millis(1_000_000_000);
        Self {
            app: App {
                id: AppId::try_from("shop".to_owned()).expect("valid"),
                tenant: TenantId::default_tenant(),
                status: AppStatus::Running,
                instances: desired,
                release: 1,
                previous_release: 0,
                last_release: 1,
                restart_before: None,
                canary: None,
                way_back: None,
                config: AppConfig::default(),
                operation: None,
                placements: 0,
                created_at: now,
                updated_at: now,
                generation: Generation::FIRST,
            },
            spec: ReleaseSpec {
                update,
                ..ReleaseSpec::default()
            },
            hosts: ["a", "b", "c"].map(|n| (n.parse().expect("valid"), host(n))).into(),
            instances: Vec::new(),
            released: Vec::new(),
            containers: HashMap::new(),
            now,
            config: ConvergeConfig::default(),
        }
    }

    pub(super) fn decide(&self) -> Decision {
        self.plans().own
    }

    /// What is decided for the app and for its canary, which is made from the same spec.
    pub(super) fn plans(&self) -> Plans {
        let mut observations = HashMap::new();
        for name in self.hosts.keys() {
            let on = |id: &InstanceId| self.instances.iter().any(|i| i.id == *id && i.host == *name);
            let containers = self.containers.iter().filter(|(id, _)| on(id));
            observations.insert(
                name.clone(),
                Arc::new(Observation {
                    begun_at: self.now,
                    containers: containers.map(|(id, c)| (id.clone(), c.clone())).collect(),
                }),
            );
        }
        observations.retain(|name, _| self.hosts[name].down_since.is_none());
        let history: Vec<Instance> = self.instances.iter().chain(&self.released).cloned().collect();
        let belongs_on = self.hosts.keys().cloned().collect();
        let tokens = self.instances.iter().map(|i| i.id.clone()).collect();
        let none = HashSet::new();
        let facts = Facts {
            app: &self.app,
            spec: Some(&self.spec),
            instances: &self.instances,
            history: Some(&history),
            failures_since: Timestamp::default(),
            hosts: &self.hosts,
            observations: &observations,
            belongs_on: &belongs_on,
            in_hand: &none,
            tokens: &tokens,
            frozen: false,
            began: Timestamp::default(),
            config: &self.config,
            now: self.now,
        };
        plans(&facts, Some(&self.spec))
    }

    fn change(&mut self, id: &InstanceId, change: &InstanceChange) {
        let at = self.instances.iter().position(|i| i.id == *id).expect("held");
        let next = self.instances[at].apply(change, self.now).expect("legal");
        if next.released_at.is_some() {
            self.instances.swap_remove(at);
            self.released.push(next);
        } else {
            self.instances[at] = next;
        }
    }

    fn place(&mut self, host: &HostName) {
        self.instances.push(Instance {
            id: InstanceId::random(),
            app: self.app.id.clone(),
            release: self.app.release,
            version: "1".parse().expect("valid"),
            host: host.clone(),
            port: 20_000,
            container: None,
            state: InstanceState::Placed,
            routed_at: None,
            assumed_healthy: false,
            failure: None,
            restarts: 0,
            memory_mb: 100,
            cpu_weight: 1024,
            placed_at: self.now,
            started_at: None,
            heartbeat_at: None,
            changed_at: self.now,
            released_at: None,
            generation: Generation::FIRST,
        });
    }

    pub(super) fn act(&mut self, action: &Action) {
        match action {
            Action::Place { count, only } => {
                let mut names: Vec<HostName> = only.clone().unwrap_or_else(|| self.hosts.keys().cloned().collect());
                names.sort();
                for n in 0..*count {
                    self.place(&names[n % names.len()].clone());
                }
            }
            Action::Launch(id) | Action::Restart(id) => {
                let restart = matches!(action, Action::Restart(_));
                let container: model::ContainerId = format!("c{id}").parse().expect("valid");
                let status = ContainerStatus::Running { started_at: self.now };
                let made = Container {
                    id: container.clone(),
                    instance: id.clone(),
                    app: self.app.id.clone(),
                    status,
                };
                self.containers.insert(id.clone(), made);
                self.change(id, &InstanceChange::Started { container, restart });
            }
            Action::Check(id) => {
                let failure = Failure::new(FailureCode::Exited, "exited");
                self.change(id, &InstanceChange::Failed(failure));
            }
            Action::Drain(id) => self.change(id, &InstanceChange::Drain),
            Action::Stop(id) | Action::Clean(id) => {
                self.containers.remove(id);
                self.change(id, &InstanceChange::Stopped);
            }
            Action::Abandon(id) | Action::Release(id) => self.change(id, &InstanceChange::Stopped),
            Action::Lose(id) => {
                let failure = Failure::new(FailureCode::HostLost, "gone");
                self.change(id, &InstanceChange::Lost(failure));
            }
            Action::Find(id) => self.change(id, &InstanceChange::Found),
            Action::Delete => self.app.status = AppStatus::Stopped,
        }
    }

    /// One of registry-sync's moves, or a container's end.
    pub(super) fn happen(&mut self, which: usize, faults: bool) {
        if self.instances.is_empty() {
            return;
        }
        let instance = self.instances[which % self.instances.len()].clone();
        let change = match instance.state {
            InstanceState::Starting => InstanceChange::Healthy { assumed: false },
            InstanceState::Running if instance.routed_at.is_none() => InstanceChange::Routed,
            InstanceState::Draining => InstanceChange::Drained,
            InstanceState::Running if faults && which.is_multiple_of(7) => {
                if let Some(container) = self.containers.get_mut(&instance.id) {
                    container.status = ContainerStatus::Exited {
                        exit_code: 1,
                        out_of_memory: false,
                    };
                }
                return;
            }
            _ => return,
        };
        self.change(&instance.id, &change);
    }

    pub(super) fn tick(&mut self) {
        self.now = self.now.plus(Duration::from_millis(10));
    }

    fn live(&self) -> usize {
        self.instances.iter().filter(|i| i.state.is_live()).count()
    }

    fn serving(&self) -> usize {
        self.instances.iter().filter(|i| is_serving(i)).count()
    }

    /// Carries out plans and all that follows until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            self.tick();
            let decision = self.decide();
            let before = self.instances.clone();
            for action in &decision.actions {
                self.act(action);
            }
            for which in 0..self.instances.len() {
                self.happen(which, false);
            }
            if decision.actions.is_empty() && before == self.instances {
                return;
            }
        }
        panic!("it does not settle: {:?}", self.instances);
    }
}

fn updates() -> impl Strategy<Value = Update> {
    (0_u32..4, 0_u32..3).prop_map(|(max_surge, max_unavailable)| Update {
        max_surge,
        max_unavailable: if max_surge == 0 {
            max_unavailable.max(1)
        } else {
            max_unavailable
        },
        deadline_s: 120,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// However the moves interleave: a new release takes over without serving ever falling below what the update allows
    /// nor the number of live ones rising above it, and at the end there is exactly what is wanted.
    #[test]
    fn a_release_takes_over_within_its_terms(
        desired in 0_u32..12,
        update in updates(),
        moves in prop::collection::vec((any::<bool>(), 0_usize..1_000), 0..400),
    ) {
        let mut sim = Sim::new(desired, update.clone());
        sim.settle();
        prop_assert_eq!(sim.serving(), desired as usize);
        sim.tick();
        sim.app.release = 2;
        let floor = desired.saturating_sub(update.max_unavailable) as usize;
        let most = (desired + surge(&sim.spec, desired)) as usize;
        for (acts, which) in moves {
            sim.tick();
            if acts {
                let actions = sim.decide().actions;
                for action in &actions {
                    sim.act(action);
                }
            } else {
                sim.happen(which, false);
            }
            prop_assert!(sim.serving() >= floor, "{} serve, {floor} must", sim.serving());
            prop_assert!(sim.live() <= most, "{} live, {most} may", sim.live());
        }
        sim.settle();
        prop_assert_eq!(sim.instances.len(), desired as usize);
        prop_assert!(sim.instances.iter().all(|i| i.release == 2 && is_serving(i)));
        prop_assert_eq!(sim.containers.len(), desired as usize);
    }

    /// Whatever ends and however the wish changes: exactly what is wanted is left, and nothing else.
    #[test]
    fn any_history_ends_in_what_is_wanted(
        wishes in prop::collection::vec((0_u32..10, 0_u32..3), 1..4),
        one_per_host in any::<bool>(),
        on_failure in prop::sample::select(vec![OnFailure::Replace, OnFailure::Restart]),
        moves in prop::collection::vec((any::<bool>(), 0_usize..1_000), 0..300),
    ) {
        let mut sim = Sim::new(3, Update::default());
        sim.spec.placement.one_per_host = one_per_host;
        sim.spec.on_failure = on_failure;
        for (desired, kind) in wishes {
            sim.tick();
            sim.app.instances = desired;
            match kind {
                0 => sim.app.release += 1,
                1 => sim.app.restart_before = Some(sim.now),
                _ => {}
            }
            for (acts, which) in &moves {
                sim.tick();
                if *acts {
                    let actions = sim.decide().actions;
                    for action in &actions {
                        sim.act(action);
                    }
                } else {
                    sim.happen(*which, true);
                }
            }
        }
        // Past every back-off.
        sim.now = sim.now.plus(Duration::from_secs(4_000));
        sim.settle();
        let wanted = if one_per_host { 3 } else { sim.app.instances as usize };
        prop_assert_eq!(sim.instances.len(), wanted, "{:?}", sim.instances);
        prop_assert!(sim.instances.iter().all(|i| i.release == sim.app.release && is_serving(i)));
        if one_per_host {
            let hosts: HashSet<_> = sim.instances.iter().map(|i| &i.host).collect();
            prop_assert_eq!(hosts.len(), 3);
        }
        sim.app.status = AppStatus::Removing;
        sim.settle();
        prop_assert!(sim.instances.is_empty() && sim.containers.is_empty());
        prop_assert_eq!(sim.app.status, AppStatus::Stopped, "deleted");
    }
}

fn fail_all(sim: &mut Sim) {
    let ids: Vec<InstanceId> = sim.instances.iter().map(|i| i.id.clone()).collect();
    for id in ids {
        sim.change(
            &id,
            &InstanceChange::Failed(Failure::new(FailureCode::Exited, "exited")),
        );
    }
}

#[test]
fn replacements_wait_longer_and_longer() {
    let mut sim = Sim::new(1, Update::default());
    let mut waits = Vec::new();
    for _ in 0..7 {
        let asked = sim.now;
        while !sim.decide().actions.iter().any(|a| matches!(a, Action::Place { .. })) {
            sim.now = sim.now.plus(Duration::from_secs(1));
        }
        waits.push(sim.now.since(asked).as_secs());
        let actions = sim.decide().actions;
        actions.iter().for_each(|a| sim.act(a));
        fail_all(&mut sim);
    }
    assert_eq!(waits, [0, 0, 0, 0, 30, 60, 120]);
}

#[test]
fn a_host_restart_that_ends_many_holds_nothing_up() {
    let mut sim = Sim::new(10, Update::default());
    sim.settle();
    fail_all(&mut sim);
    let decision = sim.decide();
    assert!(
        decision.actions.contains(&Action::Place { count: 10, only: None }),
        "{decision:?}"
    );
}

#[test]
fn a_taken_port_does_not_count_as_failure() {
    let mut sim = Sim::new(1, Update::default());
    for _ in 0..10 {
        let actions = sim.decide().actions;
        assert!(actions.iter().any(|a| matches!(a, Action::Place { .. })));
        actions.iter().for_each(|a| sim.act(a));
        let placed = sim
            .instances
            .iter()
            .find(|i| i.state == InstanceState::Placed)
            .expect("placed");
        let id = placed.id.clone();
        sim.change(
            &id,
            &InstanceChange::Failed(Failure::new(FailureCode::PortTaken, "taken")),
        );
    }
}

#[test]
fn hosts_that_went_silent() {
    let mut sim = Sim::new(3, Update::default());
    sim.settle();
    let name: HostName = "a".parse().expect("valid");
    let id = sim
        .instances
        .iter()
        .find(|i| i.host == name)
        .expect("one each")
        .id
        .clone();
    sim.hosts.get_mut(&name).expect("there").down_since = Some(sim.now);
    sim.now = sim.now.plus(Duration::from_secs(60));
    assert_eq!(sim.decide().actions, [], "it still passes its probes");
    sim.change(
        &id,
        &InstanceChange::Unhealthy(Failure::new(FailureCode::Unhealthy, "no answer")),
    );
    let actions = sim.decide().actions;
    assert_eq!(
        actions,
        [Action::Lose(id.clone()), Action::Place { count: 1, only: None }]
    );
    sim.act(&actions[0]);
    // Back before it was replaced: it is kept.
    sim.hosts.get_mut(&name).expect("there").down_since = None;
    sim.tick();
    assert_eq!(sim.decide().actions, [Action::Find(id.clone())]);
    // Back after it was replaced: it goes.
    sim.place(&"b".parse().expect("valid"));
    sim.tick();
    let actions = sim.decide().actions;
    assert!(actions.contains(&Action::Clean(id)), "{actions:?}");
}

#[test]
fn what_another_process_placed_is_given_back_unless_it_was_made() {
    let mut sim = Sim::new(1, Update::default());
    sim.place(&"a".parse().expect("valid"));
    sim.tick();
    let id = sim.instances[0].id.clone();
    let decide = |sim: &Sim, made: bool| {
        let name: HostName = "a".parse().expect("valid");
        let container = Container {
            id: "c1".parse().expect("valid"),
            instance: id.clone(),
            app: sim.app.id.clone(),
            status: ContainerStatus::Created,
        };
        let observation = Observation {
            begun_at: sim.now,
            containers: made.then(|| (id.clone(), container)).into_iter().collect(),
        };
        plan(&Facts {
            app: &sim.app,
            spec: Some(&sim.spec),
            instances: &sim.instances,
            history: Some(&[]),
            failures_since: Timestamp::default(),
            hosts: &sim.hosts,
            observations: &HashMap::from([(name, Arc::new(observation))]),
            belongs_on: &HashSet::new(),
            in_hand: &HashSet::new(),
            tokens: &HashSet::new(),
            frozen: false,
            began: Timestamp::default(),
            config: &sim.config,
            now: sim.now,
        })
        .actions
    };
    assert_eq!(decide(&sim, true), [Action::Launch(id.clone())]);
    assert_eq!(
        decide(&sim, false),
        [Action::Abandon(id.clone()), Action::Place { count: 1, only: None }]
    );
}

#[test]
fn a_lost_instance_whose_start_was_never_noted_is_not_taken_back() {
    let mut world = Sim::new(1, Update::default());
    let host: HostName = "a".parse().expect("valid");
    world.place(&host);
    let id = world.instances[0].id.clone();
    let gone = Failure::new(FailureCode::HostLost, "host a does not answer");
    world.change(&id, &InstanceChange::Lost(gone));
    assert!(world.instances[0].container.is_none());
    // The launch had happened all the same: the host is back, and the container runs.
    world.now = world.now.plus(Duration::from_secs(60));
    let container = Container {
        id: "c1".parse().expect("valid"),
        instance: id.clone(),
        app: world.app.id.clone(),
        status: ContainerStatus::Running {
            started_at: Timestamp::default(),
        },
    };
    world.containers.insert(id.clone(), container);
    let decision = world.decide();
    assert!(!decision.actions.contains(&Action::Find(id.clone())), "{decision:?}");
    assert!(
        decision.actions.iter().any(|a| matches!(a, Action::Place { .. })),
        "{decision:?}"
    );
}

#[test]
fn an_old_row_alone_makes_no_host_gone() {
    let mut world = Sim::new(1, Update::default());
    let host: HostName = "a".parse().expect("valid");
    world.place(&host);
    let id = world.instances[0].id.clone();
    let loses = |world: &Sim, answers: bool, began: Timestamp, frozen: bool| {
        let observation = Arc::new(Observation {
            begun_at: world.now,
            containers: HashMap::new(),
        });
        let observations = if answers {
            HashMap::from([(host.clone(), observation)])
        } else {
            HashMap::new()
        };
        let decision = plan(&Facts {
            app: &world.app,
            spec: Some(&world.spec),
            instances: &world.instances,
            history: Some(&[]),
            failures_since: Timestamp::default(),
            hosts: &world.hosts,
            observations: &observations,
            belongs_on: &HashSet::new(),
            in_hand: &HashSet::new(),
            tokens: &HashSet::new(),
            frozen,
            began,
            config: &world.config,
            now: world.now,
        });
        decision.actions.contains(&Action::Lose(id.clone()))
    };
    let down_since = world.now;
    world.hosts.get_mut(&host).expect("known").down_since = Some(down_since);
    world.now = world.now.plus(Duration::from_secs(3_600));
    let long_ago = Timestamp::default();
    assert!(loses(&world, false, long_ago, false));
    assert!(!loses(&world, true, long_ago, false), "it answers this process");
    assert!(
        !loses(&world, false, world.now, false),
        "this process has just begun to look"
    );
    assert!(!loses(&world, false, long_ago, true), "so many are down");
    world.hosts.get_mut(&host).expect("known").schedulability = Schedulability::Draining;
    assert!(
        loses(&world, false, long_ago, true),
        "the operator says that it is going"
    );
}
