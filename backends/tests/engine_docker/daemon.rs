//! A daemon that is silent, not there, or killed and restarted.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use model::PlatformId;
use model::contract::engine as contract;
use model::engine::{ContainerStatus, EngineError, LogQuery};

use super::dockerhost::{engine, fixture, own, with_image};
use super::{PATIENCE, served, shared};

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
