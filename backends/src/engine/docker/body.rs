//! What a container is made of: the body of Docker's create call and the options beside it. Does no I/O.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use model::engine::{EngineError, LABEL_APP, LABEL_INSTANCE, LABEL_PLATFORM, LABEL_VERSION, LaunchSpec};

/// Capabilities that a container keeps; all others are dropped. These are what the entry points of common images
/// need while they begin as root: to hand files over to the app's user (CHOWN, FOWNER, DAC_OVERRIDE), to become that
/// user (SETUID, SETGID), to signal workers that run as it (KILL), to listen below port 1024 (NET_BIND_SERVICE). Left
/// out of Docker's own default are those that web apps do not need and attacks do: raw sockets, device nodes, audit
/// writes, chroot, file capabilities.
const CAPABILITIES: [&str; 7] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETUID",
];

const MIB: i64 = 1024 * 1024;

/// The name of an instance's container.
pub(super) fn container_name(spec: &LaunchSpec) -> String {
    format!("caas-{}-{}", spec.app, spec.instance)
}

/// Docker's key for the container's port.
pub(super) fn port_key(container_port: u16) -> String {
    format!("{container_port}/tcp")
}

/// The body of the create call. `with_init`: Docker's own init as process 1, so that apps without signal handlers end
/// on SIGTERM and orphans are reaped.
pub(super) fn create_body(spec: &LaunchSpec, with_init: bool) -> ContainerCreateBody {
    let memory = i64::from(spec.memory_mb) * MIB;
    let labels = [
        (LABEL_PLATFORM, spec.platform.to_string()),
        (LABEL_APP, spec.app.to_string()),
        (LABEL_VERSION, spec.version.to_string()),
        (LABEL_INSTANCE, spec.instance.to_string()),
    ];
    let port = port_key(spec.container_port);
    let binding = PortBinding {
        host_ip: Some(spec.host_ip.to_string()),
        host_port: Some(spec.host_port.to_string()),
    };
    let text = |s: &str| s.to_owned();
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        cmd: (!spec.command.is_empty()).then(|| spec.command.clone()),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        labels: Some(labels.into_iter().map(|(k, v)| (text(k), v)).collect()),
        exposed_ports: Some(vec![port.clone()]),
        host_config: Some(HostConfig {
            memory: Some(memory),
            memory_swap: Some(memory),
            cpu_shares: Some(spec.cpu_weight.into()),
            pids_limit: Some(spec.pids_limit.into()),
            security_opt: Some(vec![text("no-new-privileges")]),
            cap_drop: Some(vec![text("ALL")]),
            cap_add: Some(CAPABILITIES.map(text).to_vec()),
            // Restarts are the platform's to decide, and to see.
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            log_config: Some(HostConfigLogConfig {
                typ: Some(text("json-file")),
                config: Some(HashMap::from([
                    (text("max-size"), text("10m")),
                    (text("max-file"), text("3")),
                ])),
            }),
            port_bindings: Some(HashMap::from([(port, Some(vec![binding]))])),
            init: with_init.then_some(true),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Checks that `image` can stand in a URL's path as it is.
pub(super) fn check_image(image: &str) -> Result<(), EngineError> {
    let sound = !image.is_empty()
        && image.len() <= 512
        && !image.starts_with('/')
        && !image.contains("..")
        && !image.contains("//")
        && image
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b));
    if sound {
        return Ok(());
    }
    let shown: String = image.chars().take(80).collect();
    Err(EngineError::Refused(format!(
        "image {shown:?} is not a valid image reference"
    )))
}

/// `image` with `:latest` if it names neither tag nor digest: without one Docker would pull every tag.
pub(super) fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images() {
        for good in [
            "app",
            "app:1",
            "127.0.0.1:5000/team/app:1",
            "r.example/app@sha256:0123abcd",
            "sha256:0123",
        ] {
            assert!(check_image(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/app",
            "a/../b",
            "a?b",
            "a#b",
            "a b",
            "a//b",
            "a%2e",
            &"a".repeat(513),
        ] {
            assert!(check_image(bad).is_err(), "{bad:?}");
        }
        assert_eq!(with_tag("127.0.0.1:5000/app"), "127.0.0.1:5000/app:latest");
        assert_eq!(with_tag("127.0.0.1:5000/app:1"), "127.0.0.1:5000/app:1");
        assert_eq!(with_tag("app@sha256:01"), "app@sha256:01");
    }
}
