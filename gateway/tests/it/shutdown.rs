//! Stopping without losing anybody's request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn who_has_just_connected_is_answered() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(TcpStream::connect(gateway.http).await.unwrap());
    }
    let deadline = Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_connections").await < 2.0 {
        assert!(Instant::now() < deadline, "both are open");
    }
    gateway.shutdown.cancel();
    let closed = Instant::now() + LIMIT;
    while TcpStream::connect(gateway.http).await.is_ok() {
        assert!(Instant::now() < closed, "the port closes");
    }
    let (mut asks, mut silent) = (clients.remove(0), clients.remove(0));
    let request = b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";
    asks.write_all(request).await.unwrap();
    let mut got = Vec::new();
    tokio::time::timeout(LIMIT, asks.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap();
    let answer = Answer::parse(&got);
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    // Who says nothing holds nobody up.
    let begun = Instant::now();
    got.clear();
    tokio::time::timeout(LIMIT, silent.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert!(got.is_empty() && begun.elapsed() < Duration::from_secs(3));
    tokio::time::timeout(LIMIT, gateway.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_requests_finish_and_idle_connections_close() {
    let (slow, connections) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
            .await;
    })
    .await;
    let app = Recorder::start("app").await;
    let gateway = Gateway::with(config(), &[("slow", "1", "a", slow), ("hello", "1", "b", app.at)], &[]).await;
    let mut idle = TcpStream::connect(gateway.http).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut idle, "\r\n\r\napp").await;
    let mut busy = TcpStream::connect(gateway.http).await.unwrap();
    busy.write_all(b"GET / HTTP/1.1\r\nHost: slow.localhost\r\n\r\n")
        .await
        .unwrap();
    until("the request is at the app", || {
        connections.load(std::sync::atomic::Ordering::SeqCst) == 1
    })
    .await;

    let start = Instant::now();
    gateway.shutdown.cancel();
    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, idle.read_to_end(&mut rest))
        .await
        .expect("closed")
        .unwrap();
    assert!(rest.is_empty());
    let mut got = Vec::new();
    tokio::time::timeout(LIMIT, busy.read_to_end(&mut got))
        .await
        .expect("answered")
        .unwrap();
    let answer = Answer::parse(&got);
    assert_eq!(
        (answer.status, answer.body.as_str(), answer.header("connection")),
        (200, "late", Some("close"))
    );
    tokio::time::timeout(LIMIT, gateway.task)
        .await
        .expect("ended")
        .unwrap()
        .expect("cleanly");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(TcpStream::connect(gateway.http).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn not_ready_at_once_and_accepting_for_a_while() {
    let app = Recorder::start("app").await;
    let slow_to_stop = gateway::Config {
        drain_delay_s: 1,
        ..config()
    };
    let gateway = Gateway::hello_with(slow_to_stop, &[app.at], model::AppConfig::default()).await;
    assert_eq!(gateway.admin("/ready").await.status, 200);
    gateway.shutdown.cancel();
    let deadline = Instant::now() + Duration::from_millis(800);
    while gateway.admin("/ready").await.status != 503 {
        assert!(Instant::now() < deadline, "not ready at once");
    }
    assert_eq!(gateway.get("hello.localhost", "/").await.status, 200, "still accepting");
    assert_eq!(gateway.admin("/live").await.status, 200);
    tokio::time::timeout(LIMIT, gateway.task)
        .await
        .expect("ended")
        .unwrap()
        .expect("cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_time_is_kept() {
    let (never, connections) = upstream(|mut stream, _| async move {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let impatient = gateway::Config {
        drain_timeout_s: 1,
        ..config()
    };
    let gateway = Gateway::hello_with(impatient, &[never], model::AppConfig::default()).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
        .await
        .unwrap();
    until("the request is at the app", || {
        connections.load(std::sync::atomic::Ordering::SeqCst) == 1
    })
    .await;
    let start = Instant::now();
    gateway.shutdown.cancel();
    tokio::time::timeout(LIMIT, gateway.task)
        .await
        .expect("ended")
        .unwrap()
        .expect("cleanly");
    let took = start.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(4)).contains(&took),
        "{took:?}"
    );
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(LIMIT, client.read_to_end(&mut rest))
        .await
        .expect("closed");
}

/// What clients that keep their connections share.
#[derive(Default)]
struct Crowd {
    at: Mutex<Option<SocketAddr>>,
    stop: AtomicBool,
    answered: AtomicUsize,
    lost: Mutex<Vec<String>>,
}

impl Crowd {
    /// One client: a request, a pause, and so on; `status` is what it is answered.
    async fn client(self: Arc<Self>, text: String, status: u16, pause: Duration) {
        while !self.stop.load(Ordering::Relaxed) {
            let at = self.at.lock().unwrap().expect("somebody serves");
            let Ok(mut stream) = TcpStream::connect(at).await else {
                self.lost.lock().unwrap().push(format!("{pause:?}: not connected"));
                return;
            };
            let mut asked = 0;
            while !self.stop.load(Ordering::Relaxed) {
                if asked > 0
                    && !matches!(stream.try_read(&mut [0; 1]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
                {
                    // It was closed between two requests, which every client has to expect.
                    break;
                }
                let written = stream.write_all(text.as_bytes()).await;
                let mut got = Vec::new();
                let whole = async {
                    loop {
                        let answer = Answer::parse(&got);
                        let length: Option<usize> = answer.header("content-length").and_then(|l| l.parse().ok());
                        if length == Some(answer.body.len()) {
                            return Some(answer);
                        }
                        if !matches!(stream.read_buf(&mut got).await, Ok(1..)) {
                            return None;
                        }
                    }
                };
                match tokio::time::timeout(LIMIT, whole).await {
                    Ok(Some(answer)) if answer.status == status => {
                        self.answered.fetch_add(1, Ordering::Relaxed);
                        if answer.header("connection") == Some("close") {
                            break;
                        }
                    }
                    other => {
                        let line = format!("{pause:?}, request {asked}: {written:?} {other:?}");
                        self.lost.lock().unwrap().push(line);
                        break;
                    }
                }
                asked += 1;
                tokio::time::sleep(pause).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_keep_their_connections_lose_no_request() {
    let app = Recorder::start("app").await;
    let parking = gateway::Config {
        park_after_ms: 200,
        ..config()
    };
    let old = Gateway::hello_with(parking.clone(), &[app.at], model::AppConfig::default()).await;
    let new = Gateway::hello_with(parking, &[app.at], model::AppConfig::default()).await;
    let crowd = Arc::<Crowd>::default();
    *crowd.at.lock().unwrap() = Some(old.http);
    let post = "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 4\r\n\r\nbody";
    let nobody = "GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n";
    let clients: Vec<_> = (0..80)
        .map(|i| {
            let pause = Duration::from_millis([0, 1, 7, 60, 300, 1_200][i % 6]);
            let (text, status) = if i % 8 == 7 { (nobody, 404) } else { (post, 200) };
            tokio::spawn(Arc::clone(&crowd).client(text.to_owned(), status, pause))
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    // As a balancer does it: new connections go elsewhere, then the old one stops.
    *crowd.at.lock().unwrap() = Some(new.http);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = crowd.answered.load(Ordering::Relaxed);
    old.shutdown.cancel();
    tokio::time::timeout(LIMIT, old.task).await.unwrap().unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    crowd.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let lost = crowd.lost.lock().unwrap().clone();
    let answered = crowd.answered.load(Ordering::Relaxed);
    assert!(lost.is_empty(), "{} of {answered} lost: {lost:#?}", lost.len());
    assert!(answered > before + 100, "{answered} after {before}");
    assert!(app.junk.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_answer_says_so() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut clients = Vec::new();
    for text in [
        "GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: hello.localhost\r\nConnection: keep-alive\r\n\r\n",
    ] {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        // Half a request does not lose the other half.
        let (first, rest) = text.split_at(10);
        client.write_all(first.as_bytes()).await.unwrap();
        clients.push((client, rest));
    }
    gateway.reaches("caas_gateway_connections", 4.0).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    gateway.shutdown.cancel();
    while TcpStream::connect(gateway.http).await.is_ok() {}
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    for (client, rest) in &mut clients {
        client.write_all(rest.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        let ended = tokio::time::timeout(LIMIT, client.read_to_end(&mut got)).await;
        ended.expect("closed").unwrap();
        let answer = Answer::parse(&got);
        assert!(answer.status > 0, "{rest}");
        let said: Vec<_> = answer.head.lines().filter(|l| l.starts_with("connection:")).collect();
        assert_eq!(said, ["connection: close"], "{rest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_to_be_accepted_is_answered() {
    let app = Recorder::start("app").await;
    let http = gateway::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let at = http[0].local_addr().unwrap();
    // The kernel has let them in before the gateway accepts anybody, and it stops as soon as it has begun: more than are accepted
    // in one go.
    let mut clients = Vec::new();
    for _ in 0..300 {
        let mut client = TcpStream::connect(at).await.unwrap();
        let asked = client
            .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
            .await;
        asked.unwrap();
        clients.push(client);
    }
    let succession = gateway::Succession::default();
    succession.handed_over.cancel();
    let feed = Arc::new(Feed::default());
    let deps = gateway::Deps {
        registry: feed.clone(),
        reload: Arc::default(),
    };
    let listeners = gateway::Listeners {
        http,
        tls: Vec::new(),
        tcp: Vec::new(),
        admin: std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
        succession,
    };
    let running = tokio::spawn(gateway::run(config(), deps, listeners, CancellationToken::new()));
    until("the gateway follows", || feed.is_followed()).await;
    feed.say(&snapshot(1, &[("hello", "1", "a", app.at)], &[]));
    for mut client in clients {
        let mut got = Vec::new();
        let ended = tokio::time::timeout(LIMIT, client.read_to_end(&mut got)).await;
        ended.expect("closed").expect("not reset");
        assert_eq!(Answer::parse(&got).body, "app");
    }
    assert!(TcpStream::connect(at).await.is_err(), "nobody else is let in");
    tokio::time::timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
}
