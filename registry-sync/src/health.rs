//! What a row of proofs means for an instance, and when the next proof is due. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use model::spec::OnFailure;
use model::{Failure, FailureCode, HealthCheck, Instance, InstanceChange, InstanceState, Timestamp};

use crate::probe::Proof;

/// Probe results kept for the person who asks why an instance failed.
const KEPT: usize = 5;

/// First probes of a new instance, then each second: most apps listen within a few hundred milliseconds, and what a
/// deploy waits for is the first good probe.
const STARTING_MS: [u64; 5] = [20, 50, 100, 200, 400];

/// Pace of starting instances after the first probes, and of running ones whose last probe failed.
const QUICK: Duration = Duration::from_secs(1);

/// The proofs since the instance's container started.
#[derive(Debug, Default)]
pub(crate) struct History {
    proofs: u32,
    good_in_a_row: u32,
    bad_in_a_row: u32,
    assumed: bool,
    last: VecDeque<String>,
}

impl History {
    /// Adds what was found at `now`.
    pub(crate) fn push(&mut self, proof: &Proof, now: Timestamp) {
        self.proofs += 1;
        let text = match proof {
            Proof::Alive => "alive",
            Proof::Assumed => "assumed alive: it answers, but 404",
            Proof::Dead(why) => why,
        };
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(format!("{now} {text}"));
        if matches!(proof, Proof::Dead(_)) {
            self.good_in_a_row = 0;
            self.bad_in_a_row += 1;
        } else {
            self.bad_in_a_row = 0;
            self.good_in_a_row += 1;
            self.assumed = *proof == Proof::Assumed;
        }
    }

    fn failure(&self, code: FailureCode, message: String) -> Failure {
        Failure {
            probes: self.last.iter().cloned().collect(),
            ..Failure::new(code, message)
        }
    }
}

/// How long until the next proof is due. `jitter` is a random number from 0 to 1.
pub(crate) fn pace(state: InstanceState, check: &HealthCheck, history: &History, jitter: f64) -> Duration {
    let interval = Duration::from_millis(check.interval_ms.into());
    if state == InstanceState::Starting {
        let first = STARTING_MS
            .get(history.proofs as usize)
            .copied()
            .map(Duration::from_millis);
        return first.unwrap_or(QUICK);
    }
    if history.bad_in_a_row > 0 {
        return QUICK.min(interval);
    }
    interval.mul_f64(0.9 + 0.2 * jitter)
}

/// What the proofs so far make of the instance; `None`: it stays as it is. `withdrawn`: no gateway is told of it any more.
pub(crate) fn judge(
    instance: &Instance,
    check: &HealthCheck,
    on_failure: OnFailure,
    withdrawn: bool,
    history: &History,
    now: Timestamp,
) -> Option<InstanceChange> {
    let good = history.good_in_a_row;
    let bad = history.bad_in_a_row;
    match instance.state {
        InstanceState::Starting if good > 0 => Some(InstanceChange::Healthy {
            assumed: history.assumed,
        }),
        InstanceState::Starting => {
            let waited = now.since(instance.started_at.unwrap_or(instance.placed_at));
            (waited >= Duration::from_secs(check.grace_s.into())).then(|| {
                let message = format!("not healthy within {} s of its start", check.grace_s);
                InstanceChange::Failed(history.failure(FailureCode::NeverReady, message))
            })
        }
        InstanceState::Running if bad >= check.unhealthy_after => {
            let message = format!("{bad} probes in a row failed");
            Some(InstanceChange::Unhealthy(
                history.failure(FailureCode::Unhealthy, message),
            ))
        }
        // The assumption may turn out either way later, when the app gets (or loses) its health route.
        InstanceState::Running if good > 0 && history.assumed != instance.assumed_healthy => {
            Some(InstanceChange::Healthy {
                assumed: history.assumed,
            })
        }
        InstanceState::Unhealthy if good >= check.healthy_after => Some(InstanceChange::Healthy {
            assumed: history.assumed,
        }),
        InstanceState::Unhealthy if bad > 0 && withdrawn && on_failure != OnFailure::None => {
            let message = format!("{bad} probes in a row failed");
            Some(InstanceChange::Failed(history.failure(FailureCode::Unhealthy, message)))
        }
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use model::{Generation, InstanceId};

    /// An instance of `hello` on host `h1` in `state`.
    pub(crate) fn instance(state: InstanceState) -> Instance {
        Instance {
            id: InstanceId::random(),
            app: "hello".parse().unwrap(),
            release: 1,
            version: "1".parse().unwrap(),
            host: "h1".parse().unwrap(),
            port: 20_000,
            container: Some("c1".parse().unwrap()),
            state,
            routed_at: None,
            assumed_healthy: false,
            failure: None,
            restarts: 0,
            memory_mb: 64,
            cpu_weight: 1024,
            placed_at: Timestamp::from_millis(0),
            started_at: Some(Timestamp::from_millis(0)),
            heartbeat_at: None,
            changed_at: Timestamp::from_millis(0),
            released_at: None,
            generation: Generation::FIRST,
        }
    }

    fn history(proofs: &[Proof]) -> History {
        let mut history = History::default();
        for proof in proofs {
            history.push(proof, Timestamp::from_millis(0));
        }
        history
    }

    fn dead() -> Proof {
        Proof::Dead("connect: refused".into())
    }

    fn verdict(
        state: InstanceState,
        policy: OnFailure,
        withdrawn: bool,
        proofs: &[Proof],
        at_s: i64,
    ) -> Option<InstanceChange> {
        let now = Timestamp::from_millis(at_s * 1_000);
        judge(
            &instance(state),
            &HealthCheck::default(),
            policy,
            withdrawn,
            &history(proofs),
            now,
        )
    }

    #[test]
    fn a_starting_instance_runs_at_its_first_good_proof_and_fails_after_its_grace() {
        use InstanceState::Starting;
        let bad = vec![dead(); 10];
        assert_eq!(verdict(Starting, OnFailure::Replace, true, &bad, 59), None);
        let Some(InstanceChange::Failed(failure)) = verdict(Starting, OnFailure::Replace, true, &bad, 60) else {
            panic!("its grace is over");
        };
        assert_eq!(failure.code, FailureCode::NeverReady);
        assert_eq!(failure.probes.len(), KEPT);
        assert_eq!(
            verdict(Starting, OnFailure::Replace, true, &[dead(), Proof::Assumed], 1),
            Some(InstanceChange::Healthy { assumed: true })
        );
    }

    #[test]
    fn a_running_instance_turns_unhealthy_at_the_threshold_only() {
        use InstanceState::Running;
        assert_eq!(verdict(Running, OnFailure::Replace, false, &[dead(), dead()], 1), None);
        assert_eq!(
            verdict(
                Running,
                OnFailure::Replace,
                false,
                &[dead(), dead(), Proof::Alive, dead()],
                1
            ),
            None
        );
        let turned = verdict(Running, OnFailure::Replace, false, &vec![dead(); 3], 1);
        assert!(matches!(turned, Some(InstanceChange::Unhealthy(_))), "{turned:?}");
    }

    #[test]
    fn an_unhealthy_instance_fails_by_policy_after_its_withdrawal_or_recovers() {
        use InstanceState::Unhealthy;
        assert_eq!(verdict(Unhealthy, OnFailure::Replace, false, &vec![dead(); 4], 1), None);
        assert_eq!(verdict(Unhealthy, OnFailure::None, true, &vec![dead(); 4], 1), None);
        for policy in [OnFailure::Replace, OnFailure::Restart] {
            let failed = verdict(Unhealthy, policy, true, &vec![dead(); 4], 1);
            assert!(matches!(failed, Some(InstanceChange::Failed(_))), "{failed:?}");
        }
        let recovered = verdict(Unhealthy, OnFailure::None, true, &[dead(), Proof::Alive], 1);
        assert_eq!(recovered, Some(InstanceChange::Healthy { assumed: false }));
    }

    #[test]
    fn first_probes_are_quick_and_later_ones_spread() {
        let check = HealthCheck::default();
        let starting = |n| pace(InstanceState::Starting, &check, &history(&vec![dead(); n]), 0.5);
        assert_eq!(starting(0), Duration::from_millis(20));
        assert_eq!(starting(4), Duration::from_millis(400));
        assert_eq!(starting(9), QUICK);
        let running = |proof, jitter| pace(InstanceState::Running, &check, &history(&[proof]), jitter);
        assert_eq!(running(dead(), 0.5), QUICK);
        assert_eq!(running(Proof::Alive, 0.0), Duration::from_millis(4_500));
        assert_eq!(running(Proof::Alive, 1.0), Duration::from_millis(5_500));
    }
}
