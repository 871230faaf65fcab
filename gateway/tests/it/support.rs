//! A gateway on free ports, a registry that tests feed by hand, a plain client, and upstreams.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::channel::mpsc;
use gateway::{Config, Deps, Listeners};
use model::AppConfig;
use model::registry::{
    Acknowledgement, EntryKey, RegistryChange, RegistryError, RegistryEvent, RegistryReader, RegistryRevision,
    RegistrySnapshot,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything in these tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// A registry that says what the test says.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    followers: Mutex<Vec<mpsc::Sender<RegistryEvent>>>,
    pub(crate) acks: Mutex<Vec<Acknowledgement>>,
    pub(crate) differences: AtomicU64,
}

#[async_trait]
impl RegistryReader for Feed {
    fn follow(&self) -> mpsc::Receiver<RegistryEvent> {
        let (sender, receiver) = mpsc::channel(4_096);
        self.followers.lock().unwrap().push(sender);
        receiver
    }

    fn resync_differences(&self) -> u64 {
        self.differences.load(Ordering::Relaxed)
    }

    async fn acknowledge(&self, _gateway: &str, ack: &Acknowledgement) -> Result<(), RegistryError> {
        self.acks.lock().unwrap().push(ack.clone());
        Ok(())
    }
}

impl Feed {
    pub(crate) fn say(&self, event: &RegistryEvent) {
        for follower in self.followers.lock().unwrap().iter_mut() {
            follower.try_send(event.clone()).expect("the gateway listens");
        }
    }

    pub(crate) fn last_ack(&self) -> Option<Acknowledgement> {
        self.acks.lock().unwrap().last().cloned()
    }
}

pub(crate) fn key(app: &str, version: &str, container: &str) -> EntryKey {
    EntryKey {
        app: app.parse().unwrap(),
        version: version.parse().unwrap(),
        container: container.parse().unwrap(),
    }
}

pub(crate) fn snapshot(
    revision: i64,
    entries: &[(&str, &str, &str, SocketAddr)],
    configs: &[(&str, AppConfig)],
) -> RegistryEvent {
    RegistryEvent::Snapshot(RegistrySnapshot {
        revision: RegistryRevision(revision),
        endpoints: entries
            .iter()
            .map(|(a, v, c, at)| (key(a, v, c), model::Endpoint(*at)))
            .collect(),
        configs: configs.iter().map(|(a, c)| (a.parse().unwrap(), c.clone())).collect(),
        ..RegistrySnapshot::default()
    })
}

pub(crate) fn changes(revision: i64, changes: Vec<RegistryChange>) -> RegistryEvent {
    RegistryEvent::Changes {
        changes,
        revision: RegistryRevision(revision),
    }
}

pub(crate) fn put(app: &str, version: &str, container: &str, at: SocketAddr) -> RegistryChange {
    RegistryChange::Put(key(app, version, container), model::Endpoint(at))
}

pub(crate) fn remove(app: &str, version: &str, container: &str) -> RegistryChange {
    RegistryChange::Remove(key(app, version, container))
}

/// A running gateway.
pub(crate) struct Gateway {
    pub(crate) http: SocketAddr,
    /// Where TLS is spoken, when it is on.
    pub(crate) https: Option<SocketAddr>,
    pub(crate) reload: Arc<Notify>,
    pub(crate) admin: SocketAddr,
    pub(crate) feed: Arc<Feed>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), gateway::Error>>,
}

pub(crate) fn config() -> Config {
    Config {
        drain_delay_s: 0,
        drain_timeout_s: 5,
        // All clients of a test have one address.
        requests_per_second_per_client: 1_000_000,
        request_burst_per_client: 1_000_000,
        ..Config::default()
    }
}

impl Gateway {
    /// With one worker and no word from the registry yet.
    pub(crate) async fn silent(config: Config) -> Self {
        let http = gateway::bind("127.0.0.1:0".parse().unwrap(), config.workers.max(1)).unwrap();
        let tls = match config.tls_listen {
            Some(address) => gateway::bind(address, http.len()).unwrap(),
            None => Vec::new(),
        };
        let https = tls.first().map(|l| l.local_addr().unwrap());
        let reload: Arc<Notify> = Arc::default();
        let admin = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let feed = Arc::new(Feed::default());
        let shutdown = CancellationToken::new();
        let (http_at, admin_at) = (http[0].local_addr().unwrap(), admin.local_addr().unwrap());
        let deps = Deps {
            registry: Arc::clone(&feed) as Arc<dyn RegistryReader>,
            reload: Arc::clone(&reload),
        };
        let listeners = Listeners {
            http,
            tls,
            tcp: Vec::new(),
            admin,
            succession: gateway::Succession::default(),
        };
        let task = tokio::spawn(gateway::run(config, deps, listeners, shutdown.clone()));
        let gateway = Self {
            http: http_at,
            https,
            reload,
            admin: admin_at,
            feed,
            shutdown,
            task,
        };
        until("the gateway follows", || {
            !gateway.feed.followers.lock().unwrap().is_empty()
        })
        .await;
        gateway
    }

    /// Which has taken these entries and configurations.
    pub(crate) async fn with(
        config: Config,
        entries: &[(&str, &str, &str, SocketAddr)],
        configs: &[(&str, AppConfig)],
    ) -> Self {
        let gateway = Self::silent(config).await;
        gateway.tell(snapshot(1, entries, configs), 1).await;
        gateway
    }

    /// App `hello` at these addresses.
    pub(crate) async fn hello(addresses: &[SocketAddr]) -> Self {
        Self::hello_with(config(), addresses, AppConfig::default()).await
    }

    pub(crate) async fn hello_with(config: Config, addresses: &[SocketAddr], app: AppConfig) -> Self {
        let names: Vec<String> = (0..addresses.len()).map(|i| format!("c{i}")).collect();
        let entries: Vec<_> = addresses
            .iter()
            .zip(&names)
            .map(|(at, c)| ("hello", "1", c.as_str(), *at))
            .collect();
        Self::with(config, &entries, &[("hello", app)]).await
    }

    /// Says `event` and waits until it is acknowledged.
    pub(crate) async fn tell(&self, event: RegistryEvent, revision: i64) {
        self.feed.say(&event);
        until("the gateway acknowledges", || {
            self.feed.last_ack().is_some_and(|a| a.applied.0 >= revision)
        })
        .await;
    }

    /// One request on a connection of its own.
    pub(crate) async fn get(&self, host: &str, path: &str) -> Answer {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ))
        .await
    }

    /// Sends the text and reads everything until the gateway closes. Interim answers are left out.
    pub(crate) async fn send(&self, text: &str) -> Answer {
        let mut got = exchange(self.http, text.as_bytes()).await;
        loop {
            let answer = Answer::parse(&got);
            if !matches!(answer.status, 100 | 102..=199) {
                return answer;
            }
            got.drain(..got.len().min(answer.head.len() + 4));
        }
    }

    pub(crate) async fn admin(&self, path: &str) -> Answer {
        let text = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        Answer::parse(&exchange(self.admin, text.as_bytes()).await)
    }

    /// The value of the metric with exactly these labels.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let page = self.admin("/metrics").await.body;
        page.lines()
            .find_map(|l| l.strip_prefix(line).and_then(|rest| rest.trim().parse().ok()))
            .unwrap_or(0.0)
    }

    /// Polls until the metric is this.
    pub(crate) async fn reaches(&self, metric: &str, value: f64) {
        let deadline = Instant::now() + LIMIT;
        while self.metric(metric).await != value {
            assert!(Instant::now() < deadline, "{metric} is {value}");
        }
    }
}

/// Sends bytes and reads until the other side closes, at most [`LIMIT`].
pub(crate) async fn exchange(at: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    // A gateway that has refused already may have closed.
    let _ = stream.write_all(bytes).await;
    let mut got = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut got)).await;
    got
}

/// Reads until `mark` has come.
pub(crate) async fn read_until(stream: &mut TcpStream, mark: &str) -> String {
    let mut got = Vec::new();
    let reading = async {
        let mut buffer = [0; 4_096];
        while !String::from_utf8_lossy(&got).contains(mark) {
            match stream.read(&mut buffer).await {
                Ok(n @ 1..) => got.extend_from_slice(&buffer[..n]),
                _ => break,
            }
        }
    };
    let _ = tokio::time::timeout(LIMIT, reading).await;
    String::from_utf8_lossy(&got).into_owned()
}

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        Self {
            status: head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let name = format!("{name}: ");
        self.head.lines().find_map(|l| l.strip_prefix(name.as_str()))
    }

    pub(crate) fn reason(&self) -> &str {
        self.header("x-caas-reason").unwrap_or("")
    }
}

/// Polls until `done`, failing after [`LIMIT`].
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A request as an upstream saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let name = format!("{name}: ");
        self.head
            .lines()
            .filter_map(|l| l.strip_prefix(name.as_str()))
            .collect()
    }

    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or("")
    }
}

/// An upstream that reads strictly, remembers what it saw and answers its name.
#[derive(Clone)]
pub(crate) struct Recorder {
    pub(crate) at: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    /// Bytes that were no request.
    pub(crate) junk: Arc<Mutex<Vec<String>>>,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Recorder {
    pub(crate) async fn start(name: &'static str) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let junk = Arc::new(Mutex::new(Vec::new()));
        let (seen2, junk2) = (Arc::clone(&seen), Arc::clone(&junk));
        let (at, connections) = upstream(move |mut stream, _| {
            let (seen, junk) = (Arc::clone(&seen2), Arc::clone(&junk2));
            async move {
                let mut buffer = Vec::new();
                loop {
                    match read_request(&mut stream, &mut buffer).await {
                        Ok(Some(request)) => {
                            let close = request.head.contains("connection: close");
                            let head_only = request.head.starts_with("HEAD ");
                            seen.lock().unwrap().push(request);
                            let body = if head_only { "" } else { name };
                            let answer = format!(
                                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-name: {name}\r\n\r\n{body}",
                                name.len()
                            );
                            if stream.write_all(answer.as_bytes()).await.is_err() || close {
                                return;
                            }
                        }
                        Ok(None) => return,
                        Err(text) => {
                            junk.lock().unwrap().push(text);
                            return;
                        }
                    }
                }
            }
        })
        .await;
        Self {
            at,
            seen,
            junk,
            connections,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().cloned().expect("a request")
    }
}

/// Reads one request, strictly. `Ok(None)` at a clean end.
pub(crate) async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<Seen>, String> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if !more(stream, buffer).await {
            return if buffer.is_empty() {
                Ok(None)
            } else {
                Err(String::from_utf8_lossy(buffer).into_owned())
            };
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    let seen = Seen { head, body: Vec::new() };
    let lengths = seen.header("content-length");
    let encodings = seen.header("transfer-encoding");
    let mut body = Vec::new();
    match (lengths.as_slice(), encodings.as_slice()) {
        ([], []) => {}
        ([length], []) => {
            let length: usize = length.parse().map_err(|_| format!("bad length in {}", seen.head))?;
            while buffer.len() < length {
                if !more(stream, buffer).await {
                    return Err(format!("body cut: {}", seen.head));
                }
            }
            body.extend(buffer.drain(..length));
        }
        ([], ["chunked"]) => loop {
            let line_end = loop {
                if let Some(at) = buffer.windows(2).position(|w| w == b"\r\n") {
                    break at;
                }
                if !more(stream, buffer).await {
                    return Err(format!("chunks cut: {}", seen.head));
                }
            };
            let size =
                usize::from_str_radix(&String::from_utf8_lossy(&buffer[..line_end]), 16).map_err(|e| e.to_string())?;
            buffer.drain(..line_end + 2);
            while buffer.len() < size + 2 {
                if !more(stream, buffer).await {
                    return Err(format!("chunk cut: {}", seen.head));
                }
            }
            body.extend(buffer.drain(..size));
            buffer.drain(..2);
            if size == 0 {
                break;
            }
        },
        _ => return Err(format!("ambiguous framing: {}", seen.head)),
    }
    Ok(Some(Seen { body, ..seen }))
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 16_384];
    match stream.read(&mut chunk).await {
        Ok(n @ 1..) => {
            buffer.extend_from_slice(&chunk[..n]);
            true
        }
        _ => false,
    }
}

/// An upstream that does with each connection (the nth) as told.
pub(crate) async fn upstream<F, T>(mut serve: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: FnMut(TcpStream, usize) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream, n));
        }
    });
    (at, count)
}

/// An upstream that answers every request with these bytes and keeps the connection open.
pub(crate) async fn answers(bytes: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
    upstream(move |mut stream, _| async move {
        let mut buffer = Vec::new();
        while let Ok(Some(_)) = read_request(&mut stream, &mut buffer).await {
            if stream.write_all(bytes).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// A port at which nobody listens.
pub(crate) async fn refusing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
