//! What a launch makes of a spec, of what it finds already there, and of what can't run.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::query_parameters::{CreateImageOptions, RemoveContainerOptions};
use futures::{StreamExt as _, TryStreamExt as _};
use model::engine::{ContainerStatus, EngineError, LogQuery};
use model::{ContainerId, PlatformId};

use super::dockerhost::{self, fixture, import, own, raw, with_image};
use super::{clean, ended, labels, name, raw_create, served, shared};

#[tokio::test(flavor = "multi_thread")]
async fn engine_limits_take_effect() {
    let Some(host) = shared().await else { return };
    let f = fixture(host, 20_100);
    let platform = PlatformId::random();
    let mut spec = f.spec(&platform, 0, &["serve"]);
    spec.env.insert("WITH_EQUALS".into(), "a=b c".into());
    let id = f.engine.launch(&spec).await.unwrap();
    let seen = raw(host).inspect_container(id.as_str(), None).await.unwrap();
    let config = seen.config.unwrap();
    let limits = seen.host_config.unwrap();
    assert_eq!(limits.memory, Some(32 << 20));
    assert_eq!(limits.memory_swap, Some(32 << 20));
    assert_eq!(limits.cpu_shares, Some(256));
    assert_eq!(limits.pids_limit, Some(64));
    assert_eq!(limits.security_opt, Some(vec!["no-new-privileges".to_owned()]));
    assert_eq!(limits.cap_drop, Some(vec!["ALL".to_owned()]));
    assert_eq!(limits.cap_add.map(|c| c.len()), Some(7));
    assert_eq!(limits.init, Some(true));
    let policy = limits.restart_policy.and_then(|p| p.name);
    assert_eq!(policy, Some(bollard::models::RestartPolicyNameEnum::NO));
    let log = limits.log_config.unwrap();
    assert_eq!(log.typ.as_deref(), Some("json-file"));
    let log = log.config.unwrap();
    assert_eq!((log["max-size"].as_str(), log["max-file"].as_str()), ("10m", "3"));
    assert_eq!(seen.name.unwrap(), format!("/{}", name(&spec)));
    assert!(config.env.unwrap().contains(&"WITH_EQUALS=a=b c".to_owned()));
    assert_eq!(config.labels.unwrap(), labels(&spec));
    // Published on the one address only.
    let ports = seen.network_settings.unwrap().ports.unwrap();
    let bound = ports["8080/tcp"].clone().unwrap();
    assert_eq!(bound.len(), 1, "{bound:?}");
    assert_eq!(bound[0].host_ip.as_deref(), Some(spec.host_ip.to_string().as_str()));
    served(host, spec.host_port).await;
    let url = format!("http://127.0.0.1:{}/", spec.host_port);
    let elsewhere = host
        .command("curl")
        .args(["-s", "--max-time", "2", &url])
        .output()
        .unwrap();
    assert_eq!(
        elsewhere.status.code(),
        Some(7),
        "another address of the host is served, too"
    );
    clean(&*f.engine, &platform).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_adopts_what_a_cut_left() {
    let Some(host) = shared().await else { return };
    let f = fixture(host, 20_200);
    let platform = PlatformId::random();
    let docker = raw(host);
    // Cut between create and start.
    let spec = f.spec(&platform, 0, &["serve"]);
    let created = raw_create(&docker, &spec, labels(&spec)).await;
    let list = f.engine.list(&platform).await.unwrap();
    assert_eq!(list[0].status, ContainerStatus::Created);
    assert_eq!(f.engine.launch(&spec).await.unwrap().as_str(), created);
    served(host, spec.host_port).await;
    // Made for a port that was found to be taken, but not removed before the cut.
    let mut spec = f.spec(&platform, 1, &["serve"]);
    let created = raw_create(&docker, &spec, labels(&spec)).await;
    spec.host_port += 1;
    assert_ne!(f.engine.launch(&spec).await.unwrap().as_str(), created);
    served(host, spec.host_port).await;
    assert_eq!(f.engine.list(&platform).await.unwrap().len(), 2);
    // Paused is running, and can be stopped.
    let id = f.engine.launch(&spec).await.unwrap();
    docker.pause_container(id.as_str()).await.unwrap();
    assert!(matches!(
        f.engine.inspect(&id).await.unwrap().status,
        ContainerStatus::Running { .. }
    ));
    assert_eq!(f.engine.launch(&spec).await.unwrap(), id);
    f.engine.stop(&id, Duration::from_secs(2)).await.unwrap();
    clean(&*f.engine, &platform).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_leaves_foreign_containers_alone() {
    let Some(host) = shared().await else { return };
    let f = fixture(host, 20_300);
    let platform = PlatformId::random();
    let docker = raw(host);
    let spec = f.spec(&platform, 0, &["serve"]);
    let foreign = raw_create(&docker, &spec, HashMap::new()).await;
    let refused = f.engine.launch(&spec).await.unwrap_err();
    assert!(
        matches!(&refused, EngineError::Refused(words) if words.contains(&name(&spec))),
        "{refused}"
    );
    docker
        .inspect_container(&foreign, None)
        .await
        .expect("the foreign container is still there");
    let foreign: ContainerId = foreign.parse().unwrap();
    assert!(matches!(f.engine.inspect(&foreign).await, Err(EngineError::Other(_))));
    // Our platform's label, but the others can't be read: not listed, and no error.
    let odd = f.spec(&platform, 1, &["serve"]);
    let mut odd_labels = labels(&odd);
    odd_labels.insert("caas.app".into(), "Not An App".into());
    let odd_id = raw_create(&docker, &odd, odd_labels).await;
    assert_eq!(f.engine.list(&platform).await.unwrap(), []);
    for id in [foreign.as_str(), &odd_id] {
        docker
            .remove_container(id, None::<RemoveContainerOptions>)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_refuses_what_can_not_run() {
    let Some(host) = shared().await else { return };
    let f = fixture(host, 20_600);
    let platform = PlatformId::random();
    let mut spec = f.spec(&platform, 0, &["serve"]);
    spec.memory_mb = 3;
    assert!(matches!(f.engine.launch(&spec).await, Err(EngineError::Refused(_))));
    let mut spec = f.spec(&platform, 0, &["serve"]);
    spec.host_ip = [203, 0, 113, 9].into();
    let refused = f.engine.launch(&spec).await.unwrap_err();
    assert!(
        matches!(&refused, EngineError::Refused(words) if words.contains("203.0.113.9")),
        "{refused}"
    );
    let mut spec = f.spec(&platform, 0, &["serve"]);
    spec.image = "a/../../info?x".into();
    assert!(matches!(f.engine.launch(&spec).await, Err(EngineError::Refused(_))));
    assert_eq!(f.engine.list(&platform).await.unwrap(), []);
    // The init process starts, then finds no program: the container ends with the shell's code for that.
    let bad = "caas-test-bad-entrypoint:1";
    import(&raw(host), bad, "other", b"not a program").await;
    let mut spec = f.spec(&platform, 0, &["serve"]);
    spec.image = bad.into();
    let id = f.engine.launch(&spec).await.unwrap();
    let status = ended(&*f.engine, &id).await;
    assert!(
        matches!(
            status,
            ContainerStatus::Exited {
                exit_code: 126 | 127,
                ..
            }
        ),
        "{status:?}"
    );
    let query = LogQuery {
        tail: 5,
        follow: false,
        since: None,
    };
    let log: Vec<_> = f
        .engine
        .logs(&id, query)
        .await
        .unwrap()
        .map(|l| l.unwrap().text)
        .collect()
        .await;
    assert!(log.iter().any(|l| l.contains("/other")), "{log:?}");
    clean(&*f.engine, &platform).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_without_docker_init() {
    let Some(mut host) = own().await else { return };
    // All programs of the machine but one.
    let farm = host.dir().join("bin");
    std::fs::create_dir_all(&farm).unwrap();
    for dir in [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name() != "docker-init" {
                let _ = std::os::unix::fs::symlink(entry.path(), farm.join(entry.file_name()));
            }
        }
    }
    host.path = Some(farm.display().to_string());
    host.start_daemon();
    let host = with_image(host).await;
    let f = fixture(&host, 20_700);
    let platform = PlatformId::random();
    let spec = f.spec(&platform, 0, &["serve"]);
    let id = f.engine.launch(&spec).await.unwrap();
    served(&host, spec.host_port).await;
    let seen = raw(&host).inspect_container(id.as_str(), None).await.unwrap();
    assert_ne!(seen.host_config.unwrap().init, Some(true));
    f.engine.stop(&id, Duration::from_secs(5)).await.unwrap();
    f.engine.remove(&id).await.unwrap();
    // Without init Docker itself finds that there is no such program, and leaves the container.
    let bad = "caas-test-bad-entrypoint:1";
    let options = CreateImageOptions {
        from_src: Some("-".into()),
        repo: Some("caas-test-bad-entrypoint".into()),
        tag: Some("1".into()),
        changes: vec!["ENTRYPOINT [\"/nope\"]".into()],
        ..Default::default()
    };
    let body = bollard::body_full(dockerhost::tar("other", b"x").into());
    raw(&host)
        .create_image(Some(options), Some(body), None)
        .try_for_each(|_| async { Ok(()) })
        .await
        .unwrap();
    let mut spec = f.spec(&platform, 1, &["serve"]);
    spec.image = bad.into();
    let refused = f.engine.launch(&spec).await.unwrap_err();
    assert!(
        matches!(&refused, EngineError::Refused(words) if words.contains("/nope")),
        "{refused}"
    );
    assert_eq!(
        f.engine.list(&platform).await.unwrap(),
        [],
        "the refused container is left behind"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_launch_times() {
    let Some(host) = shared().await else { return };
    let f = fixture(host, 21_000);
    let platform = PlatformId::random();
    let mut times = Vec::new();
    for n in 0..15 {
        let since = Instant::now();
        f.engine.launch(&f.spec(&platform, n, &["serve"])).await.unwrap();
        times.push(since.elapsed());
    }
    times.sort();
    let since = Instant::now();
    let list = f.engine.list(&platform).await.unwrap();
    println!(
        "launch: p50 {:?}, max {:?}; list of {}: {:?}",
        times[7],
        times[14],
        list.len(),
        since.elapsed()
    );
    assert!(times[7] < Duration::from_secs(5), "{times:?}");
    clean(&*f.engine, &platform).await;
}
