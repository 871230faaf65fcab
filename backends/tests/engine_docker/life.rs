//! What is seen of a container from its start to its end: its log, its events, and why it ended or can't be restarted.

use std::time::{Duration, Instant};

use bollard::query_parameters::{KillContainerOptions, RemoveContainerOptions};
use futures::{StreamExt as _, TryStreamExt as _};
use model::PlatformId;
use model::engine::{ContainerStatus, EngineError, LaunchSpec, LogQuery};

use super::dockerhost::{self, fixture, own, raw, with_image};
use super::{PATIENCE, clean, ended, served, shared};

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
async fn engine_blames_the_memory_only_for_an_end_that_it_caused() {
    let Some(host) = shared().await else { return };
    let f = fixture(host, 24_600);
    let platform = PlatformId::random();
    let spec = f.spec(&platform, 0, &["outlive", "200"]);
    let id = f.engine.launch(&spec).await.unwrap();
    // Serving, it has outlived its child, which the kernel killed.
    served(host, spec.host_port).await;
    // The time between the two is what is tested: with less of it nobody could tell them apart.
    tokio::time::sleep(Duration::from_secs(13)).await;
    let options = KillContainerOptions {
        signal: "SIGKILL".into(),
    };
    raw(host).kill_container(id.as_str(), Some(options)).await.unwrap();
    let killed = ContainerStatus::Exited {
        exit_code: 137,
        out_of_memory: false,
    };
    assert_eq!(ended(&*f.engine, &id).await, killed);
    let state = raw(host).inspect_container(id.as_str(), None).await.unwrap().state;
    let flag = state.and_then(|state| state.oom_killed);
    assert_eq!(
        flag,
        Some(true),
        "Docker's own flag says that the container met the limit once"
    );
    let list = f.engine.list(&platform).await.unwrap();
    assert_eq!(list[0].status, killed, "as listed");
    clean(&*f.engine, &platform).await;
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
