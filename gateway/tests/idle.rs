//! What a quiet client connection, half a head and an open WebSocket cost the gateway, with the allocator that the product has. A program of its
//! own: clients and app hold nothing on the heap for a connection, so what grows is the gateway's.

#![allow(clippy::unwrap_used)]

extern crate caas_gateway as gateway;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::channel::mpsc;
use gateway::{Config, Deps, Listeners};
use model::registry::{
    Acknowledgement, EntryKey, RegistryError, RegistryEvent, RegistryReader, RegistryRevision, RegistrySnapshot,
};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections at once; two sockets each in this process, four with a tunnel.
const QUIET: usize = 3_000;
const SOCKETS: usize = 1_000;
const SLOW: usize = 1_000;

const ASK: &str = "GET / HTTP/1.1\r\nHost: hello.localhost\r\n";
const UPGRADE: &str = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A registry that never changes.
#[derive(Debug)]
struct Fixed(RegistrySnapshot);

#[async_trait]
impl RegistryReader for Fixed {
    fn follow(&self) -> mpsc::Receiver<RegistryEvent> {
        let (mut sender, receiver) = mpsc::channel(1);
        sender.try_send(RegistryEvent::Snapshot(self.0.clone())).unwrap();
        std::mem::forget(sender);
        receiver
    }

    async fn acknowledge(&self, _gateway: &str, _ack: &Acknowledgement) -> Result<(), RegistryError> {
        Ok(())
    }
}

/// An app: answers, switches when it is asked to, and keeps every connection that has.
fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let kept = Arc::new(Mutex::new(Vec::with_capacity(SOCKETS)));
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let kept = Arc::clone(&kept);
            std::thread::spawn(move || serve(stream, &kept));
        }
    });
    at
}

fn serve(mut stream: TcpStream, kept: &Mutex<Vec<TcpStream>>) {
    let mut buffer = [0; 4_096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if buffer[..n].windows(9).any(|w| w == b"websocket") {
            stream
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
                .unwrap();
            return kept.lock().unwrap().push(stream);
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
    }
}

fn gateway(app: SocketAddr) -> SocketAddr {
    let mut snapshot = RegistrySnapshot {
        revision: RegistryRevision(1),
        ..RegistrySnapshot::default()
    };
    let key = EntryKey {
        app: "hello".parse().unwrap(),
        version: "1".parse().unwrap(),
        container: "c0".parse().unwrap(),
    };
    snapshot.endpoints.insert(key, model::Endpoint(app));
    let config = Config {
        workers: 1,
        // Longer than the test.
        header_timeout_ms: 60_000,
        ..Config::default()
    };
    let http = gateway::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let at = http[0].local_addr().unwrap();
    let listeners = Listeners {
        http,
        tls: Vec::new(),
        tcp: Vec::new(),
        admin: TcpListener::bind("127.0.0.1:0").unwrap(),
        succession: gateway::Succession::default(),
    };
    let deps = Deps {
        registry: Arc::new(Fixed(snapshot)),
        reload: Arc::default(),
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(gateway::run(config, deps, listeners, CancellationToken::new()))
    });
    at
}

/// A connection on which this was asked, and the status of the answer.
fn asked(at: SocketAddr, fields: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(format!("{ASK}{fields}\r\n").as_bytes()).unwrap();
    let (mut buffer, mut n) = ([0; 4_096], 0);
    while !buffer[..n].windows(4).any(|w| w == b"\r\n\r\n") {
        let more = stream.read(&mut buffer[n..]).unwrap();
        assert!(more > 0, "closed after {:?}", String::from_utf8_lossy(&buffer[..n]));
        n += more;
    }
    (stream, String::from_utf8_lossy(&buffer[9..12]).into_owned())
}

/// The same, which has to be answered so.
fn answered(at: SocketAddr, fields: &str, status: &str) -> TcpStream {
    let (stream, got) = asked(at, fields);
    assert_eq!(got, status);
    stream
}

/// Anonymous memory of this process, in bytes.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1_024
}

/// Waits until each of `count` costs at most `most` bytes over what there was `before`.
async fn settles(what: &str, before: usize, count: usize, most: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let each = memory().saturating_sub(before) / count;
        if each <= most {
            println!("{what}: {each} bytes each");
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {each} bytes each instead of {most}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn quiet_connections_heads_that_come_slowly_and_tunnels_hold_little() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let at = gateway(app());
    let deadline = Instant::now() + Duration::from_secs(10);
    while asked(at, "").1 != "200" {
        assert!(Instant::now() < deadline, "the gateway has its table");
    }
    let mut kept = Vec::with_capacity(QUIET + SOCKETS);
    let before = memory();
    kept.extend((0..QUIET).map(|_| answered(at, "", "200")));
    settles("a quiet connection", before, QUIET, 1_024).await;
    // They are all there still.
    for stream in kept.iter_mut().take(10) {
        stream.write_all(format!("{ASK}\r\n").as_bytes()).unwrap();
        assert!(stream.read(&mut [0; 4_096]).unwrap() > 0);
    }
    // Half a head, as the first of a connection and after another request.
    let before = memory();
    let first = (0..SLOW).map(|_| TcpStream::connect(at).unwrap());
    let mut slow: Vec<_> = kept.drain(..SLOW).chain(first).collect();
    for stream in &mut slow {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(ASK.as_bytes()).unwrap();
    }
    settles("half a head", before, 2 * SLOW, 2_048).await;
    for stream in slow.iter_mut().step_by(100) {
        stream.write_all(b"\r\n").unwrap();
        assert!(stream.read(&mut [0; 4_096]).unwrap() > 0);
    }
    let before = memory();
    kept.extend((0..SOCKETS).map(|_| answered(at, UPGRADE, "101")));
    settles("a WebSocket", before, SOCKETS, 24 * 1_024).await;
}
