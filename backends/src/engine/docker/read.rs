//! What Docker shows of a container, as the model's words. Does no I/O.

use std::collections::HashMap;

use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum as Status, ContainerStatsResponse,
    ContainerSummary, ContainerSummaryStateEnum as Listed,
};
use model::engine::{
    Container, ContainerStats, ContainerStatus, LABEL_APP, LABEL_INSTANCE, LABEL_PLATFORM, LaunchSpec,
};
use model::{AppId, ContainerId, InstanceId, Timestamp};

/// Reads RFC 3339 text, with or without nanoseconds. Docker writes year 1 for "never".
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    let parsed: jiff::Timestamp = text.parse().ok()?;
    (parsed.as_millisecond() > 0).then(|| Timestamp::from_millis(parsed.as_millisecond()))
}

/// How a container stands, from its inspected state.
pub(super) fn status(state: &ContainerState) -> ContainerStatus {
    match state.status {
        Some(Status::RUNNING | Status::PAUSED | Status::RESTARTING | Status::STOPPING) => ContainerStatus::Running {
            started_at: state.started_at.as_deref().and_then(timestamp).unwrap_or_default(),
        },
        Some(Status::CREATED) => ContainerStatus::Created,
        _ => {
            let exit_code = state.exit_code.unwrap_or(-1);
            ContainerStatus::Exited {
                exit_code,
                // The flag tells that some process of the container hit the limit at some time of this run, in some versions of
                // Docker also of an earlier one. Only together with the main process's end by SIGKILL it may be the cause; whether it is
                // this end's, `hit_the_limit` tells.
                out_of_memory: state.oom_killed == Some(true) && exit_code == 137,
            }
        }
    }
}

/// How long before a container's end the kernel may have told of its memory: an app that outlives a killed child for longer ended
/// for another reason.
const OF_THE_END: i64 = 10;
/// How long after it Docker may take to tell of it.
const TOLD_WITHIN: i64 = 1;

/// Between which instants Docker tells why an ended container ended, in seconds as its events are asked for.
pub(super) fn last_moments(state: &ContainerState) -> Option<(String, String)> {
    let read = |text: &Option<String>| text.as_deref()?.parse::<jiff::Timestamp>().ok();
    let (began, ended) = (read(&state.started_at)?, read(&state.finished_at)?);
    let since = began.as_second().max(ended.as_second() - OF_THE_END);
    Some((since.to_string(), (ended.as_second() + 1 + TOLD_WITHIN).to_string()))
}

/// Whether the container hit its memory limit in its last moments, given the words that Docker told of them; `None` when Docker has
/// forgotten them (it keeps the last 256 events, until it is restarted).
pub(super) fn hit_the_limit(told: &[String]) -> Option<bool> {
    let any = |word: &str| told.iter().any(|t| t == word);
    any("die").then(|| any("oom"))
}

/// An inspected container, if it bears the platform's labels.
pub(super) fn inspected(response: &ContainerInspectResponse) -> Option<Container> {
    let labels = response.config.as_ref()?.labels.as_ref()?;
    let (app, instance) = names(labels)?;
    Some(Container {
        id: response.id.as_deref()?.parse().ok()?,
        instance,
        app,
        status: response.state.as_ref().map_or(ContainerStatus::Created, status),
    })
}

/// A listed container, if its labels can be read. Lists tell neither when it started nor whether it ran out of memory.
pub(super) fn listed(summary: &ContainerSummary) -> Option<Container> {
    let (app, instance) = names(summary.labels.as_ref()?)?;
    let id: ContainerId = summary.id.as_deref()?.parse().ok()?;
    let status = match summary.state {
        Some(Listed::RUNNING | Listed::PAUSED | Listed::RESTARTING | Listed::STOPPING) => ContainerStatus::Running {
            started_at: Timestamp::default(),
        },
        Some(Listed::CREATED) => ContainerStatus::Created,
        _ => ContainerStatus::Exited {
            exit_code: summary.status.as_deref().and_then(exit_code).unwrap_or(-1),
            out_of_memory: false,
        },
    };
    Some(Container {
        id,
        instance,
        app,
        status,
    })
}

fn names(labels: &HashMap<String, String>) -> Option<(AppId, InstanceId)> {
    Some((
        labels.get(LABEL_APP)?.parse().ok()?,
        labels.get(LABEL_INSTANCE)?.parse().ok()?,
    ))
}

/// The exit code within a list's words, such as `Exited (137) 3 seconds ago`.
fn exit_code(words: &str) -> Option<i64> {
    words.strip_prefix("Exited (")?.split(')').next()?.parse().ok()
}

/// Whose container bears the name that `spec`'s should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Not ours: never touch it.
    Foreign,
    /// Ours, runs, and is what `spec` wants.
    Running(ContainerId),
    /// Ours and made as `spec` wants, but never started.
    Created(ContainerId),
    /// Ours, but ended, or made for another port: to be made anew.
    Stale(ContainerId),
    /// Ours and on its way out.
    Leaving,
}

/// Decides what to do with the container that bears the name of `spec`'s.
pub(super) fn holder(response: &ContainerInspectResponse, spec: &LaunchSpec) -> Holder {
    let label = |name: &str| {
        let labels = response.config.as_ref().and_then(|c| c.labels.as_ref());
        labels.and_then(|l| l.get(name)).map(String::as_str)
    };
    let ours = label(LABEL_PLATFORM) == Some(spec.platform.as_str())
        && label(LABEL_APP) == Some(spec.app.as_str())
        && label(LABEL_INSTANCE) == Some(spec.instance.as_str());
    let Some(id) = response
        .id
        .as_deref()
        .and_then(|id| id.parse::<ContainerId>().ok())
        .filter(|_| ours)
    else {
        return Holder::Foreign;
    };
    let state = response.state.as_ref();
    if matches!(state.and_then(|s| s.status), Some(Status::REMOVING)) {
        return Holder::Leaving;
    }
    match state.map(status) {
        _ if host_port(response) != Some(spec.host_port) => Holder::Stale(id),
        Some(ContainerStatus::Running { .. }) => Holder::Running(id),
        Some(ContainerStatus::Created) => Holder::Created(id),
        _ => Holder::Stale(id),
    }
}

/// The host port that a container was made to publish.
pub(super) fn host_port(response: &ContainerInspectResponse) -> Option<u16> {
    let bindings = response.host_config.as_ref()?.port_bindings.as_ref()?;
    let binding = bindings.values().flatten().flatten().next()?;
    binding.host_port.as_deref()?.parse().ok()
}

/// What a container uses. One that does not run uses nothing.
pub(super) fn stats(response: &ContainerStatsResponse) -> ContainerStats {
    let memory = response.memory_stats.as_ref();
    // The page cache counts as used but is given back at need: cgroup v1 and v2 name it differently.
    let cache = memory
        .and_then(|m| m.stats.as_ref())
        .and_then(|s| s.get("total_inactive_file").or_else(|| s.get("inactive_file")))
        .copied()
        .unwrap_or(0);
    let networks = || response.networks.iter().flat_map(HashMap::values);
    let blocks = |op: &str| {
        let entries = response
            .blkio_stats
            .as_ref()
            .and_then(|b| b.io_service_bytes_recursive.as_ref());
        entries
            .into_iter()
            .flatten()
            .filter(|e| e.op.as_deref().is_some_and(|o| o.eq_ignore_ascii_case(op)))
            .filter_map(|e| e.value)
            .fold(0, u64::saturating_add)
    };
    ContainerStats {
        cpu_total_ns: response
            .cpu_stats
            .as_ref()
            .and_then(|c| c.cpu_usage.as_ref())
            .and_then(|u| u.total_usage)
            .unwrap_or(0),
        memory_bytes: memory.and_then(|m| m.usage).unwrap_or(0).saturating_sub(cache),
        memory_limit_bytes: memory.and_then(|m| m.limit).unwrap_or(0),
        network_rx_bytes: networks().filter_map(|n| n.rx_bytes).fold(0, u64::saturating_add),
        network_tx_bytes: networks().filter_map(|n| n.tx_bytes).fold(0, u64::saturating_add),
        block_read_bytes: blocks("read"),
        block_write_bytes: blocks("write"),
        pids: response.pids_stats.as_ref().and_then(|p| p.current).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(status: Status, exit_code: i64, oom_killed: bool) -> ContainerState {
        ContainerState {
            status: Some(status),
            exit_code: Some(exit_code),
            oom_killed: Some(oom_killed),
            started_at: Some("2026-11-21T02:33:44.123456789Z".into()),
            ..Default::default()
        }
    }

    #[test]
    fn the_memory_flag_counts_only_for_a_killed_container() {
        let exited = |code, oom| ContainerStatus::Exited {
            exit_code: code,
            out_of_memory: oom,
        };
        assert_eq!(status(&state(Status::EXITED, 137, true)), exited(137, true));
        assert_eq!(status(&state(Status::EXITED, 137, false)), exited(137, false));
        assert_eq!(status(&state(Status::EXITED, 1, true)), exited(1, false));
        assert!(
            matches!(status(&state(Status::RUNNING, 0, true)), ContainerStatus::Running { started_at } if started_at.as_millis() > 0)
        );
        assert!(matches!(
            status(&state(Status::PAUSED, 0, false)),
            ContainerStatus::Running { .. }
        ));
        assert_eq!(status(&state(Status::CREATED, 0, false)), ContainerStatus::Created);
        assert_eq!(status(&state(Status::DEAD, 2, false)), exited(2, false));
    }

    #[test]
    fn the_memory_flag_is_of_the_last_end_only_if_docker_told_so_then() {
        let at = |began: &str, ended: &str| {
            last_moments(&ContainerState {
                started_at: Some(began.into()),
                finished_at: Some(ended.into()),
                ..Default::default()
            })
        };
        let long = at("2026-11-21T00:00:00.5Z", "2026-11-21T01:00:00.25Z");
        assert_eq!(long, Some(("1795222790".into(), "1795222802".into())));
        let short = at("2026-11-21T00:59:58.5Z", "2026-11-21T01:00:00.25Z");
        assert_eq!(short, Some(("1795222798".into(), "1795222802".into())));
        assert_eq!(at("", "2026-11-21T01:00:00.25Z"), None);
        let told = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            hit_the_limit(&words)
        };
        assert_eq!(told(&["oom", "die"]), Some(true));
        assert_eq!(told(&["die"]), Some(false));
        assert_eq!(told(&["oom"]), None);
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn list_words() {
        assert_eq!(exit_code("Exited (137) 3 seconds ago"), Some(137));
        assert_eq!(exit_code("Exited (0) About an hour ago"), Some(0));
        assert_eq!(exit_code("Up 3 seconds"), None);
        assert_eq!(exit_code("Exited ("), None);
    }

    #[test]
    fn containers_without_readable_labels_are_none() {
        let summary = |app: &str| ContainerSummary {
            id: Some("abc".into()),
            state: Some(Listed::EXITED),
            status: Some("Exited (3) 1 second ago".into()),
            labels: Some(HashMap::from([
                (LABEL_APP.to_owned(), app.to_owned()),
                (LABEL_INSTANCE.to_owned(), "abcd".to_owned()),
            ])),
            ..Default::default()
        };
        let container = listed(&summary("hello")).expect("readable");
        assert_eq!(
            container.status,
            ContainerStatus::Exited {
                exit_code: 3,
                out_of_memory: false
            }
        );
        assert_eq!(listed(&summary("Not/An/App")), None);
        assert_eq!(listed(&ContainerSummary::default()), None);
    }

    #[test]
    fn times() {
        assert_eq!(timestamp("1970-01-01T00:00:01.5Z"), Some(Timestamp::from_millis(1500)));
        assert_eq!(timestamp("0001-01-01T00:00:00Z"), None);
        assert_eq!(timestamp("rubbish"), None);
    }
}
