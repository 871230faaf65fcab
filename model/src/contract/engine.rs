//! What every [`Engine`] must do.
//!
//! The image of a [`Fixture`] obeys its first argument: `serve` answers HTTP 200 on `PORT` until SIGTERM, `exit N` ends
//! with code N, `print N` writes `out 1` … `out N` to standard output and `err 1` … to standard error and ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;

use crate::engine::{Container, ContainerStatus, Engine, EngineError, LaunchSpec, LogLine, LogQuery};
use crate::{ContainerId, InstanceId, PlatformId, Timestamp};

/// How long anything awaited here may take.
const PATIENCE: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(5);

/// An engine and what is to be launched on it.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// An image that is on the host and obeys its arguments.
    pub image: String,
    /// An address of the host.
    pub host_ip: IpAddr,
    /// The first of 20 host ports free for this suite.
    pub port: u16,
}

impl Fixture {
    /// A container of `platform` that does `command` on the `nth` port.
    pub fn spec(&self, platform: &PlatformId, nth: u16, command: &[&str]) -> LaunchSpec {
        LaunchSpec {
            platform: platform.clone(),
            app: "hello".parse().expect("an app id"),
            version: "1".parse().expect("a version"),
            instance: InstanceId::random(),
            image: self.image.clone(),
            command: command.iter().map(|s| (*s).to_owned()).collect(),
            env: BTreeMap::from([("PORT".to_owned(), "8080".to_owned())]),
            host_ip: self.host_ip,
            host_port: self.port + nth,
            container_port: 8080,
            memory_mb: 32,
            cpu_weight: 256,
            pids_limit: 64,
        }
    }

    async fn launch(&self, spec: &LaunchSpec) -> ContainerId {
        self.engine.launch(spec).await.expect("a launch that nothing hinders")
    }

    async fn status(&self, id: &ContainerId) -> ContainerStatus {
        self.engine.inspect(id).await.expect("a container that is there").status
    }

    async fn ended(&self, id: &ContainerId) -> ContainerStatus {
        let since = Instant::now();
        loop {
            match self.status(id).await {
                ended @ ContainerStatus::Exited { .. } => return ended,
                other => assert!(since.elapsed() < PATIENCE, "still {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn list(&self, platform: &PlatformId) -> Vec<Container> {
        self.engine.list(platform).await.expect("a list")
    }

    async fn log(&self, id: &ContainerId, query: LogQuery) -> Vec<LogLine> {
        let stream = self.engine.logs(id, query).await.expect("a log");
        let lines = tokio::time::timeout(PATIENCE, stream.collect::<Vec<_>>());
        let lines = lines.await.expect("a log that ends");
        lines.into_iter().map(|line| line.expect("a line")).collect()
    }

    async fn clean(&self, platform: &PlatformId) {
        for container in self.list(platform).await {
            self.engine.remove(&container.id).await.expect("removal");
        }
        assert_eq!(self.list(platform).await, [], "something is left behind");
    }
}

/// All of it, one after the other.
pub async fn all(f: &Fixture) {
    answers(f).await;
    launch_is_idempotent(f).await;
    an_ended_container_is_made_anew(f).await;
    a_taken_port_leaves_nothing(f).await;
    a_missing_image_leaves_nothing(f).await;
    stop_and_remove_twice(f).await;
    restart_in_place(f).await;
    platforms_do_not_see_each_other(f).await;
    events_are_told(f).await;
    logs_are_read(f).await;
    stats_are_read(f).await;
}

/// Ping, info, an image that is there.
pub async fn answers(f: &Fixture) {
    f.engine.ping().await.expect("a ping");
    let info = f.engine.info().await.expect("its words on itself");
    assert!(
        info.cpu_millis >= 1000 && info.memory_mb > 64 && !info.version.is_empty(),
        "{info:?}"
    );
    let pulled = f
        .engine
        .image_pull(&f.image, None, PATIENCE)
        .await
        .expect("an image that is there");
    assert!(!pulled, "pulled an image that is there");
    assert_eq!(f.engine.image_present(&f.image).await, Ok(true));
}

/// The same launch twice is one container, also when both come at once; another port makes it anew.
pub async fn launch_is_idempotent(f: &Fixture) {
    let platform = PlatformId::random();
    let spec = f.spec(&platform, 0, &["serve"]);
    let before = Timestamp::now().minus(Duration::from_secs(60));
    let (first, second) = tokio::join!(f.engine.launch(&spec), f.engine.launch(&spec));
    let id = first.expect("the one launch");
    assert_eq!(second.expect("the other launch"), id);
    assert_eq!(f.launch(&spec).await, id, "a third launch");
    let list = f.list(&platform).await;
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(
        (&list[0].id, &list[0].instance, &list[0].app),
        (&id, &spec.instance, &spec.app)
    );
    assert!(matches!(list[0].status, ContainerStatus::Running { .. }), "{list:?}");
    match f.status(&id).await {
        ContainerStatus::Running { started_at } => assert!(started_at > before, "{started_at}"),
        other => panic!("it is {other:?}"),
    }
    let moved = LaunchSpec {
        host_port: spec.host_port + 1,
        ..spec.clone()
    };
    let new = f.launch(&moved).await;
    assert_ne!(new, id, "a container with another port was adopted");
    assert_eq!(f.list(&platform).await.len(), 1);
    f.clean(&platform).await;
}

/// Exit codes are told; a container that has ended is removed and made anew by the next launch.
pub async fn an_ended_container_is_made_anew(f: &Fixture) {
    let platform = PlatformId::random();
    let spec = f.spec(&platform, 0, &["exit", "3"]);
    let id = f.launch(&spec).await;
    let wanted = ContainerStatus::Exited {
        exit_code: 3,
        out_of_memory: false,
    };
    assert_eq!(f.ended(&id).await, wanted);
    let list = f.list(&platform).await;
    assert_eq!(
        list.iter().map(|c| &c.status).collect::<Vec<_>>(),
        [&wanted],
        "as listed"
    );
    assert_ne!(f.launch(&spec).await, id);
    assert_eq!(f.list(&platform).await.len(), 1);
    f.clean(&platform).await;
}

/// A port that another container has is told as such; nothing is left; once free it can be used.
pub async fn a_taken_port_leaves_nothing(f: &Fixture) {
    let platform = PlatformId::random();
    let first = f.spec(&platform, 0, &["serve"]);
    let second = f.spec(&platform, 0, &["serve"]);
    let id = f.launch(&first).await;
    assert_eq!(
        f.engine.launch(&second).await,
        Err(EngineError::PortTaken(first.host_port))
    );
    let list = f.list(&platform).await;
    assert_eq!(
        list.iter().map(|c| &c.id).collect::<Vec<_>>(),
        [&id],
        "the loser is left behind"
    );
    f.engine.remove(&id).await.expect("removal of a running container");
    f.launch(&second).await;
    f.clean(&platform).await;
}

/// A missing image is told as such; nothing is left.
pub async fn a_missing_image_leaves_nothing(f: &Fixture) {
    let platform = PlatformId::random();
    let mut spec = f.spec(&platform, 0, &["serve"]);
    spec.image = "caas-test-missing-image:1".into();
    assert_eq!(
        f.engine.launch(&spec).await,
        Err(EngineError::ImageNotFound(spec.image.clone()))
    );
    assert_eq!(f.list(&platform).await, []);
}

/// Stop and remove may be repeated; what is gone is gone without error, except for those who want to see it.
pub async fn stop_and_remove_twice(f: &Fixture) {
    let platform = PlatformId::random();
    let id = f.launch(&f.spec(&platform, 0, &["serve"])).await;
    let since = Instant::now();
    f.engine.stop(&id, GRACE).await.expect("a stop");
    assert!(
        since.elapsed() < GRACE,
        "an app that obeys SIGTERM took its whole grace"
    );
    assert!(matches!(f.status(&id).await, ContainerStatus::Exited { .. }));
    f.engine.stop(&id, GRACE).await.expect("a second stop");
    f.engine.remove(&id).await.expect("a removal");
    f.engine.remove(&id).await.expect("a second removal");
    f.engine.stop(&id, GRACE).await.expect("a stop of what is gone");
    let gone = EngineError::NoSuchContainer(id.to_string());
    assert_eq!(f.engine.inspect(&id).await, Err(gone.clone()));
    assert_eq!(f.engine.restart(&id, GRACE).await, Err(gone.clone()));
    assert_eq!(f.engine.stats(&id).await, Err(gone.clone()));
    let query = LogQuery {
        tail: 10,
        follow: false,
        since: None,
    };
    assert_eq!(f.engine.logs(&id, query).await.err(), Some(gone));
}

/// A restart keeps the container: running or ended, it runs anew.
pub async fn restart_in_place(f: &Fixture) {
    let platform = PlatformId::random();
    let id = f.launch(&f.spec(&platform, 0, &["serve"])).await;
    let started = |status| match status {
        ContainerStatus::Running { started_at } => started_at,
        other => panic!("it is {other:?}"),
    };
    let first = started(f.status(&id).await);
    tokio::time::sleep(Duration::from_millis(5)).await;
    f.engine.restart(&id, GRACE).await.expect("a restart");
    let second = started(f.status(&id).await);
    assert!(second > first, "{second} {first}");
    f.engine.stop(&id, GRACE).await.expect("a stop");
    f.engine
        .restart(&id, GRACE)
        .await
        .expect("a restart of an ended container");
    started(f.status(&id).await);
    f.clean(&platform).await;
}

/// Each platform lists its own containers only, and never takes over or replaces another's of the same name.
pub async fn platforms_do_not_see_each_other(f: &Fixture) {
    let (ours, theirs) = (PlatformId::random(), PlatformId::random());
    let spec = f.spec(&theirs, 0, &["serve"]);
    let id = f.launch(&spec).await;
    assert_eq!(f.list(&ours).await, []);
    let same_name = LaunchSpec {
        platform: ours.clone(),
        host_port: spec.host_port + 1,
        ..spec.clone()
    };
    let refused = f.engine.launch(&same_name).await;
    assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");
    assert!(
        matches!(f.status(&id).await, ContainerStatus::Running { .. }),
        "theirs was touched"
    );
    assert_eq!(f.list(&ours).await, []);
    f.clean(&theirs).await;
}

/// Start, die and destroy of the platform's own containers are told, from the moment of asking on.
pub async fn events_are_told(f: &Fixture) {
    let (ours, theirs) = (PlatformId::random(), PlatformId::random());
    let mut events = f.engine.events(&ours).await.expect("events");
    let (spec, other) = (f.spec(&ours, 0, &["serve"]), f.spec(&theirs, 1, &["exit", "1"]));
    f.launch(&other).await;
    let id = f.launch(&spec).await;
    f.engine.stop(&id, GRACE).await.expect("a stop");
    f.engine.remove(&id).await.expect("a removal");
    let mut seen = Vec::new();
    while !seen.contains(&"destroy".to_owned()) {
        let next = tokio::time::timeout(PATIENCE, events.next()).await;
        let event = next
            .unwrap_or_else(|_| panic!("only {seen:?} came"))
            .expect("a next event")
            .expect("an event");
        assert_eq!(event.instance, spec.instance, "an event of another platform: {event:?}");
        seen.push(event.action);
    }
    assert_eq!(seen, ["start", "die", "destroy"]);
    f.clean(&theirs).await;
}

/// Lines of both streams with their times; the tail; following until the end.
pub async fn logs_are_read(f: &Fixture) {
    let platform = PlatformId::random();
    let before = Timestamp::now().minus(Duration::from_secs(60));
    let id = f.launch(&f.spec(&platform, 0, &["print", "30"])).await;
    let follow = LogQuery {
        tail: 1000,
        follow: true,
        since: None,
    };
    let lines = f.log(&id, follow).await;
    for (stderr, word) in [(false, "out"), (true, "err")] {
        let found: Vec<_> = lines
            .iter()
            .filter(|l| l.stderr == stderr)
            .map(|l| l.text.clone())
            .collect();
        let wanted: Vec<_> = (1..=30).map(|n| format!("{word} {n}")).collect();
        assert_eq!(found, wanted);
    }
    assert!(lines.iter().all(|l| l.at.is_some_and(|at| at > before)), "{lines:?}");
    let tail = f
        .log(
            &id,
            LogQuery {
                tail: 4,
                follow: false,
                since: None,
            },
        )
        .await;
    assert_eq!(tail.len(), 4, "{tail:?}");
    let later = Some(Timestamp::now().plus(Duration::from_secs(3600)));
    assert_eq!(
        f.log(
            &id,
            LogQuery {
                tail: 1000,
                follow: false,
                since: later
            }
        )
        .await,
        []
    );
    f.clean(&platform).await;
}

/// Usage of a running container within its limits, nothing of an ended one.
pub async fn stats_are_read(f: &Fixture) {
    let platform = PlatformId::random();
    let spec = f.spec(&platform, 0, &["serve"]);
    let id = f.launch(&spec).await;
    let stats = f.engine.stats(&id).await.expect("usage");
    assert_eq!(
        stats.memory_limit_bytes,
        u64::from(spec.memory_mb) * 1024 * 1024,
        "{stats:?}"
    );
    assert!(
        stats.memory_bytes <= stats.memory_limit_bytes && stats.pids >= 1,
        "{stats:?}"
    );
    f.engine.stop(&id, GRACE).await.expect("a stop");
    assert_eq!(f.engine.stats(&id).await.expect("usage of an ended container").pids, 0);
    f.clean(&platform).await;
}
