//! The in-memory engine: the port's contract, and what it can be told beside it.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use caas_backends::engine::{EngineOptions, FakeEngine, FakeImage, opener};
use futures::StreamExt as _;
use model::PlatformId;
use model::contract::engine::{self, Fixture};
use model::engine::{ContainerStatus, Engine as _, EngineError, LogQuery};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn fixture(url: &str) -> Fixture {
    FakeEngine::open(url)
        .expect("a fake")
        .set_image("caas-test-missing-image:1", FakeImage::Missing);
    Fixture {
        engine: opener(EngineOptions::default())(url).expect("a fake"),
        image: "test:1".into(),
        host_ip: [127, 0, 0, 1].into(),
        port: 20_000,
    }
}

#[tokio::test]
async fn engine_contract() {
    engine::all(&fixture("fake://contract")).await;
}

#[tokio::test]
async fn engine_contract_while_it_listens() {
    let free = tokio::net::TcpListener::bind("127.0.0.77:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut fixture = fixture("fake://contract-serve?serve=1&launch_ms=5");
    fixture.host_ip = [127, 0, 0, 77].into();
    fixture.port = free.min(65_000);
    engine::all(&fixture).await;
}

async fn get(address: (&str, u16)) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream
        .write_all(b"GET /_ping HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test]
async fn a_serving_fake_answers_http_until_it_is_stopped() {
    let mut fixture = fixture("fake://serving?serve=1");
    let free = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    fixture.port = free;
    let spec = fixture.spec(&PlatformId::random(), 0, &["serve"]);
    let id = fixture.engine.launch(&spec).await.unwrap();
    let text = get(("127.0.0.1", free)).await.unwrap();
    assert_eq!(
        text.matches("HTTP/1.1 200 OK").count(),
        2,
        "keep-alive, then close: {text}"
    );
    assert!(text.ends_with(&format!("hello 1 {}\n", spec.instance)), "{text}");
    fixture.engine.stop(&id, Duration::ZERO).await.unwrap();
    let since = Instant::now();
    while get(("127.0.0.1", free)).await.is_ok() {
        assert!(since.elapsed() < Duration::from_secs(5), "it still listens");
        tokio::task::yield_now().await;
    }
    let taken = tokio::net::TcpListener::bind(("127.0.0.1", free)).await.unwrap();
    assert_eq!(fixture.engine.launch(&spec).await, Err(EngineError::PortTaken(free)));
    drop(taken);
    fixture.engine.launch(&spec).await.unwrap();
}

#[tokio::test]
async fn exits_ports_and_lost_answers() {
    let fixture = fixture("fake://told");
    let fake = FakeEngine::named("told");
    let platform = PlatformId::random();
    let spec = fixture.spec(&platform, 0, &["serve"]);
    let mut events = fake.events(&platform).await.unwrap();

    fake.take_port(spec.host_port, true);
    assert_eq!(fake.launch(&spec).await, Err(EngineError::PortTaken(spec.host_port)));
    fake.take_port(spec.host_port, false);

    fake.lose_answers(1);
    assert!(matches!(fake.launch(&spec).await, Err(EngineError::Unreachable { .. })));
    assert_eq!(fake.running().len(), 1, "it was launched all the same");
    let id = fake.launch(&spec).await.unwrap();

    let query = LogQuery {
        tail: 10,
        follow: true,
        since: None,
    };
    let log = fake.logs(&id, query).await.unwrap();
    fake.log(&spec.instance, true, "last words");
    assert!(fake.exit(&spec.instance, 137, true));
    assert!(!fake.exit(&spec.instance, 0, false), "it has ended already");
    let lines: Vec<_> = log.map(|l| l.unwrap().text).collect().await;
    assert_eq!(lines, ["last words"]);
    let status = fake.inspect(&id).await.unwrap().status;
    assert_eq!(
        status,
        ContainerStatus::Exited {
            exit_code: 137,
            out_of_memory: true
        }
    );
    assert!(fake.remove_by_hand(&spec.instance));
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("destroy") {
        seen.push(events.next().await.unwrap().unwrap().action);
    }
    assert_eq!(seen, ["start", "oom", "die", "destroy"]);
    assert_eq!(fake.container_count(), 0);
    assert_eq!(fake.launch_counts(), (1, 1));
}

#[tokio::test]
async fn images_as_the_registry_answers() {
    let fixture = fixture("fake://images");
    let fake = FakeEngine::named("images");
    let wait = Duration::from_secs(1);
    for (answer, wanted) in [
        (FakeImage::Missing, EngineError::ImageNotFound("a:1".into())),
        (
            FakeImage::Denied,
            EngineError::RegistryDenied {
                image: "a:1".into(),
                message: "unauthorized".into(),
            },
        ),
        (
            FakeImage::RegistryDown,
            EngineError::RegistryUnreachable {
                image: "a:1".into(),
                message: "connection refused".into(),
            },
        ),
    ] {
        fake.set_image("a:1", answer);
        assert_eq!(fake.image_pull("a:1", None, wait).await, Err(wanted.clone()));
        assert_eq!(fake.image_digest("a:1", None).await, Err(wanted));
    }
    fake.set_image("a:1", FakeImage::InRegistry);
    assert_eq!(fake.image_present("a:1").await, Ok(false));
    assert_eq!(fake.image_pull("a:1", None, wait).await, Ok(true));
    assert_eq!(fake.image_present("a:1").await, Ok(true));
    assert_eq!(fake.image_pull("a:1", None, wait).await, Ok(false));
    assert_eq!(
        fake.image_digest("a:1", None).await,
        fake.image_digest("a:1", None).await
    );
    fake.set_image("test:1", FakeImage::InRegistry);
    let spec = fixture.spec(&PlatformId::random(), 0, &["serve"]);
    assert_eq!(
        fake.launch(&spec).await,
        Err(EngineError::ImageNotFound("test:1".into()))
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_fake_is_unreachable_after_the_deadline() {
    let fake = FakeEngine::named("silent");
    fake.set_silent(true);
    let since = tokio::time::Instant::now();
    assert!(matches!(fake.ping().await, Err(EngineError::Unreachable { .. })));
    assert_eq!(since.elapsed().as_secs(), 2);
    fake.set_silent(false);
    fake.set_unreachable(true);
    let since = tokio::time::Instant::now();
    assert!(matches!(
        fake.list(&PlatformId::random()).await,
        Err(EngineError::Unreachable { .. })
    ));
    assert_eq!(since.elapsed().as_secs(), 0);
}
