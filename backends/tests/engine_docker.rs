//! Docker as an engine, on real daemons: the port's contract and each of Docker's surprising answers.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, PortBinding};
use bollard::query_parameters::{CreateContainerOptions, CreateImageOptions, RemoveContainerOptions};
use futures::{StreamExt as _, TryStreamExt as _};
use model::contract::engine as contract;
use model::engine::{ContainerStatus, Engine, EngineError, LaunchSpec, LogQuery};
use model::{ContainerId, PlatformId};
use tokio::sync::OnceCell;

#[path = "support/dockerhost.rs"]
mod dockerhost;
use dockerhost::{DockerHost, engine, fixture, import, own, raw, with_image};

const PATIENCE: Duration = Duration::from_secs(20);

/// The host that all tests share which do not harm it. `None`: Docker can't be run here.
async fn shared() -> Option<&'static DockerHost> {
    static HOST: OnceCell<Option<DockerHost>> = OnceCell::const_new();
    let boot = || async {
        if dockerhost::missing().is_some() {
            return None;
        }
        let host = tokio::task::spawn_blocking(DockerHost::start).await.unwrap();
        Some(with_image(host).await)
    };
    HOST.get_or_init(boot).await.as_ref()
}

async fn ended(engine: &dyn Engine, id: &ContainerId) -> ContainerStatus {
    let since = Instant::now();
    loop {
        match engine.inspect(id).await.unwrap().status {
            ended @ ContainerStatus::Exited { .. } => return ended,
            other => assert!(since.elapsed() < PATIENCE, "still {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn http_status(host: &DockerHost, port: u16) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect((host.address, port)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

async fn served(host: &DockerHost, port: u16) {
    let since = Instant::now();
    while !matches!(http_status(host, port).await.as_deref(), Ok("HTTP/1.1 200 OK")) {
        assert!(since.elapsed() < PATIENCE, "port {port} does not answer");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn clean(engine: &dyn Engine, platform: &PlatformId) {
    for container in engine.list(platform).await.unwrap() {
        engine.remove(&container.id).await.unwrap();
    }
}

fn labels(spec: &LaunchSpec) -> HashMap<String, String> {
    [
        ("caas.platform", spec.platform.to_string()),
        ("caas.app", spec.app.to_string()),
        ("caas.version", spec.version.to_string()),
        ("caas.instance", spec.instance.to_string()),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into()
}

fn name(spec: &LaunchSpec) -> String {
    format!("caas-{}-{}", spec.app, spec.instance)
}

async fn raw_create(docker: &Docker, spec: &LaunchSpec, labels: HashMap<String, String>) -> String {
    let binding = PortBinding {
        host_ip: Some(spec.host_ip.to_string()),
        host_port: Some(spec.host_port.to_string()),
    };
    let body = ContainerCreateBody {
        image: Some(spec.image.clone()),
        cmd: Some(spec.command.clone()),
        labels: Some(labels),
        // Docker publishes only what is exposed, whatever is bound.
        exposed_ports: Some(vec!["8080/tcp".to_owned()]),
        host_config: Some(HostConfig {
            port_bindings: Some(HashMap::from([("8080/tcp".to_owned(), Some(vec![binding]))])),
            ..Default::default()
        }),
        ..Default::default()
    };
    let options = CreateContainerOptions {
        name: Some(name(spec)),
        ..Default::default()
    };
    docker.create_container(Some(options), body).await.unwrap().id
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_contract() {
    let Some(host) = shared().await else { return };
    contract::all(&fixture(host, 20_000)).await;
}

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
async fn engine_port_stolen_by_a_process() {
    let Some(mut host) = own().await else { return };
    host.start_daemon();
    let mut host = with_image(host).await;
    let f = fixture(&host, 20_400);
    let platform = PlatformId::random();
    let spec = f.spec(&platform, 0, &["serve"]);
    let id = f.engine.launch(&spec).await.unwrap();
    f.engine.stop(&id, Duration::from_secs(2)).await.unwrap();
    let program = host.dir().join("thief");
    std::fs::write(&program, dockerhost::test_program()).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    host.spawn(
        "env",
        &[&format!("PORT={}", spec.host_port), program.to_str().unwrap(), "serve"],
    );
    served(&host, spec.host_port).await;
    assert_eq!(
        f.engine.restart(&id, Duration::from_secs(1)).await,
        Err(EngineError::PortTaken(spec.host_port)),
        "a restart onto the stolen port"
    );
    assert_eq!(
        f.engine.list(&platform).await.unwrap(),
        [],
        "the container that can't start is left behind"
    );
    assert_eq!(
        f.engine.launch(&spec).await,
        Err(EngineError::PortTaken(spec.host_port))
    );
    assert_eq!(f.engine.list(&platform).await.unwrap(), []);
    let moved = LaunchSpec {
        host_port: spec.host_port + 1,
        ..spec
    };
    f.engine.launch(&moved).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_tells_out_of_memory() {
    let Some(host) = shared().await else { return };
    let f = fixture(host, 20_500);
    let platform = PlatformId::random();
    let mut events = f.engine.events(&platform).await.unwrap();
    let id = f.engine.launch(&f.spec(&platform, 0, &["eat", "200"])).await.unwrap();
    let wanted = ContainerStatus::Exited {
        exit_code: 137,
        out_of_memory: true,
    };
    assert_eq!(ended(&*f.engine, &id).await, wanted);
    let list = f.engine.list(&platform).await.unwrap();
    assert_eq!(list[0].status, wanted, "as listed");
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("die") {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap();
        seen.push(event.unwrap().unwrap().action);
    }
    assert!(seen.contains(&"oom".to_owned()), "{seen:?}");
    // A child at the limit is not the container's end: the app itself gave up, with its own code.
    let id = f.engine.launch(&f.spec(&platform, 1, &["child", "200"])).await.unwrap();
    assert_eq!(
        ended(&*f.engine, &id).await,
        ContainerStatus::Exited {
            exit_code: 5,
            out_of_memory: false
        }
    );
    // A plain SIGKILL is not the memory's fault.
    let id = f.engine.launch(&f.spec(&platform, 2, &["stubborn"])).await.unwrap();
    let since = Instant::now();
    f.engine.stop(&id, Duration::from_secs(1)).await.unwrap();
    assert!(since.elapsed() >= Duration::from_secs(1), "no grace was given");
    assert_eq!(
        ended(&*f.engine, &id).await,
        ContainerStatus::Exited {
            exit_code: 137,
            out_of_memory: false
        }
    );
    clean(&*f.engine, &platform).await;
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
async fn engine_container_removed_by_hand() {
    let Some(host) = shared().await else { return };
    let f = fixture(host, 20_800);
    let platform = PlatformId::random();
    let spec = f.spec(&platform, 0, &["serve"]);
    let id = f.engine.launch(&spec).await.unwrap();
    let mut events = f.engine.events(&platform).await.unwrap();
    let options = RemoveContainerOptions {
        force: true,
        ..Default::default()
    };
    raw(host).remove_container(id.as_str(), Some(options)).await.unwrap();
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("destroy") {
        let event = tokio::time::timeout(PATIENCE, events.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(event.instance, spec.instance);
        seen.push(event.action);
    }
    assert_eq!(
        f.engine.inspect(&id).await,
        Err(EngineError::NoSuchContainer(id.to_string()))
    );
    assert_ne!(f.engine.launch(&spec).await.unwrap(), id);
    // Removed by two at once, and listed meanwhile.
    let id = f.engine.launch(&spec).await.unwrap();
    let (a, b, list) = tokio::join!(f.engine.remove(&id), f.engine.remove(&id), f.engine.list(&platform));
    assert_eq!((a, b), (Ok(()), Ok(())));
    assert!(list.is_ok(), "{list:?}");
    assert_eq!(f.engine.list(&platform).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_follows_logs() {
    let Some(host) = shared().await else { return };
    let f = fixture(host, 20_900);
    let platform = PlatformId::random();
    let id = f.engine.launch(&f.spec(&platform, 0, &["tick"])).await.unwrap();
    let mut log = f
        .engine
        .logs(
            &id,
            LogQuery {
                tail: 0,
                follow: true,
                since: None,
            },
        )
        .await
        .unwrap();
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let line = tokio::time::timeout(PATIENCE, log.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(line.text.starts_with("tick "), "{line:?}");
        seen.push(line);
    }
    f.engine.stop(&id, Duration::from_secs(5)).await.unwrap();
    let rest = tokio::time::timeout(PATIENCE, log.collect::<Vec<_>>())
        .await
        .expect("following ends with the container");
    seen.extend(rest.into_iter().map(|line| line.unwrap()));
    let last = seen.pop().unwrap();
    let since = LogQuery {
        tail: 1000,
        follow: false,
        since: last.at,
    };
    let found: Vec<_> = f.engine.logs(&id, since).await.unwrap().try_collect().await.unwrap();
    assert_eq!(found, [last], "to the millisecond, not to Docker's whole second");
    // Longer than Docker's and our longest line.
    let id = f
        .engine
        .launch(&f.spec(&platform, 1, &["long", "40000"]))
        .await
        .unwrap();
    ended(&*f.engine, &id).await;
    let query = LogQuery {
        tail: 10,
        follow: false,
        since: None,
    };
    let found: Vec<_> = f.engine.logs(&id, query).await.unwrap().try_collect().await.unwrap();
    assert!(
        found.len() >= 3 && found.iter().all(|l| l.text.len() <= 16 * 1024),
        "{} pieces",
        found.len()
    );
    let whole: String = found.into_iter().map(|l| l.text).collect();
    assert_eq!(whole.len(), 40_000);
    clean(&*f.engine, &platform).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn engine_silent_daemon_blocks_nobody_else() {
    let (Some(mut host), Some(other)) = (own().await, shared().await) else {
        return;
    };
    host.start_daemon();
    let host = with_image(host).await;
    let (f, well) = (fixture(&host, 21_100), fixture(other, 21_150));
    let platform = PlatformId::random();
    let spec = f.spec(&platform, 0, &["serve"]);
    f.engine.launch(&spec).await.unwrap();
    host.freeze_daemon();
    let since = Instant::now();
    let (ping, list, health) = tokio::join!(f.engine.ping(), f.engine.list(&platform), async {
        let since = Instant::now();
        well.engine.ping().await.unwrap();
        contract::an_ended_container_is_made_anew(&well).await;
        since.elapsed()
    });
    assert!(matches!(ping, Err(EngineError::Unreachable { .. })), "{ping:?}");
    assert!(matches!(list, Err(EngineError::Unreachable { .. })), "{list:?}");
    assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
    assert!(
        health < Duration::from_secs(9),
        "the other engine was held up: {health:?}"
    );
    let since = Instant::now();
    assert!(matches!(f.engine.ping().await, Err(EngineError::Unreachable { .. })));
    assert!(
        (1900..2600).contains(&since.elapsed().as_millis()),
        "{:?}",
        since.elapsed()
    );
    served(&host, spec.host_port).await;
    host.thaw_daemon();
    assert_eq!(f.engine.ping().await, Ok(()));
    assert_eq!(f.engine.list(&platform).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_that_is_not_there() {
    let refused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for url in [
        "unix:///nowhere/docker.sock".to_owned(),
        format!("tcp://{refused}"),
        // Accepted by the kernel, never answered.
        format!("tcp://{}", mute.local_addr().unwrap()),
        "tcp://nowhere.invalid:2375".to_owned(),
    ] {
        let since = Instant::now();
        let answer = engine(&url).ping().await;
        assert!(
            matches!(&answer, Err(EngineError::Unreachable { engine, .. }) if *engine == url),
            "{url}: {answer:?}"
        );
        assert!(
            since.elapsed() < Duration::from_millis(2600),
            "{url}: {:?}",
            since.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_daemon_killed_and_restarted() {
    let Some(mut host) = own().await else { return };
    host.extra = [
        "-H",
        &format!("tcp://{}:2375", host.address),
        "--tls=false",
        "--live-restore",
    ]
    .map(str::to_owned)
    .to_vec();
    host.start_daemon();
    let mut host = with_image(host).await;
    let mut f = fixture(&host, 21_200);
    f.engine = engine(&format!("tcp://{}:2375", host.address));
    assert!(f.engine.info().await.unwrap().live_restore);
    let platform = PlatformId::random();
    let spec = f.spec(&platform, 0, &["serve"]);
    let id = f.engine.launch(&spec).await.unwrap();
    let mut events = f.engine.events(&platform).await.unwrap();
    let mut log = f
        .engine
        .logs(
            &id,
            LogQuery {
                tail: 1,
                follow: true,
                since: None,
            },
        )
        .await
        .unwrap();
    // The stream is asked for when it is first polled.
    assert!(
        tokio::time::timeout(Duration::from_millis(300), events.next())
            .await
            .is_err()
    );
    assert!(
        tokio::time::timeout(Duration::from_millis(300), log.next())
            .await
            .is_err()
    );
    host.kill_daemon();
    let end = tokio::time::timeout(PATIENCE, events.next())
        .await
        .expect("the stream ends with the daemon");
    assert!(matches!(end, Some(Err(EngineError::Unreachable { .. }))), "{end:?}");
    let end = tokio::time::timeout(PATIENCE, log.next())
        .await
        .expect("the log ends with the daemon");
    assert!(
        matches!(end, None | Some(Err(EngineError::Unreachable { .. }))),
        "{end:?}"
    );
    let since = Instant::now();
    assert!(matches!(
        f.engine.launch(&spec).await,
        Err(EngineError::Unreachable { .. })
    ));
    assert!(since.elapsed() < Duration::from_secs(2));
    served(&host, spec.host_port).await;
    host.start_daemon();
    assert_eq!(
        f.engine.launch(&spec).await,
        Ok(id.clone()),
        "adopted after the restart"
    );
    served(&host, spec.host_port).await;
    // Without live-restore a new daemon ends what ran under the old one.
    host.kill_daemon();
    host.extra.pop();
    host.start_daemon();
    let status = f.engine.inspect(&id).await.unwrap().status;
    assert!(matches!(status, ContainerStatus::Exited { .. }), "{status:?}");
    assert_ne!(f.engine.launch(&spec).await.unwrap(), id);
    served(&host, spec.host_port).await;
}
