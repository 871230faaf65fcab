//! The access log: one JSON line per request. A worker collects lines, and hands them to a writing thread through a bounded channel
//! once there are enough or a moment has passed: waking that thread for each would cost more than the line. When it can't keep up (a
//! stuck pipe) lines are dropped and counted; what the file does not take (a full disk) is lost, which is told once. No request waits.

use std::cell::{Cell, RefCell};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Error;

/// Bytes of lines from which on they are handed over.
const BATCH: usize = 32 * 1024;
/// Batches that may wait for the writer.
const WAITING: usize = 256;
/// How long a line waits for others at most.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);
/// How long the end of the process may wait for the last ones.
const FINISH: Duration = Duration::from_secs(1);

/// One request, as logged. Times in microseconds, sizes in bytes of bodies.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) ts: model::Timestamp,
    pub(crate) protocol: &'static str,
    pub(crate) method: &'a str,
    pub(crate) host: &'a [u8],
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    pub(crate) app: &'a str,
    pub(crate) version: &'a str,
    pub(crate) container: &'a str,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) attempts: u32,
    pub(crate) duration_us: u64,
    /// Until an endpoint was asked.
    pub(crate) gateway_us: u64,
    /// 0: on a kept connection.
    pub(crate) connect_us: u64,
    pub(crate) upstream_us: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) client: IpAddr,
    pub(crate) request_id: &'a [u8],
    pub(crate) traceparent: &'a [u8],
    pub(crate) reason: &'a str,
}

/// A member of an object, behind another one.
macro_rules! member {
    ($out:ident, $name:literal, $write:ident, $value:expr) => {
        $out.extend_from_slice(concat!(",\"", $name, "\":").as_bytes());
        $write($out, $value);
    };
}

impl Line<'_> {
    /// Appends it as JSON. By hand: with a serializer for any type a log costs almost three times the instructions.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"ts\":");
        any(out, &self.ts);
        member!(out, "protocol", text, self.protocol);
        member!(out, "method", text, self.method);
        member!(out, "host", text, self.host);
        member!(out, "path", text, self.path);
        member!(out, "status", number, self.status);
        member!(out, "app", text, self.app);
        member!(out, "version", text, self.version);
        member!(out, "container", text, self.container);
        member!(out, "endpoint", address, self.endpoint);
        member!(out, "attempts", number, self.attempts);
        member!(out, "duration_us", number, self.duration_us);
        member!(out, "gateway_us", number, self.gateway_us);
        member!(out, "connect_us", number, self.connect_us);
        member!(out, "upstream_us", number, self.upstream_us);
        member!(out, "bytes_in", number, self.bytes_in);
        member!(out, "bytes_out", number, self.bytes_out);
        member!(out, "client", ip_text, self.client);
        member!(out, "request_id", text, self.request_id);
        member!(out, "traceparent", text, self.traceparent);
        member!(out, "reason", text, self.reason);
        out.push(b'}');
    }
}

/// Anything, the slow way.
pub(crate) fn any(out: &mut Vec<u8>, value: &impl Serialize) {
    let before = out.len();
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.truncate(before);
        out.extend_from_slice(b"null");
    }
}

fn text(out: &mut Vec<u8>, text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    // Most need no escape (RFC 8259 7). All are looked at, without a branch for each.
    let plain = |b: u8| (b' '..0x7f).contains(&b) & (b != b'"') & (b != b'\\');
    if !text.iter().fold(true, |so_far, b| so_far & plain(*b)) {
        return any(out, &String::from_utf8_lossy(text));
    }
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

fn number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            number(out, a);
            for part in [b, c, d] {
                out.push(b'.');
                number(out, part);
            }
        }
        // Writing to memory can't fail.
        IpAddr::V6(ip) => drop(write!(out, "{ip}")),
    }
}

fn ip_text(out: &mut Vec<u8>, address: IpAddr) {
    out.push(b'"');
    ip(out, address);
    out.push(b'"');
}

fn address(out: &mut Vec<u8>, address: Option<SocketAddr>) {
    out.push(b'"');
    match address {
        Some(SocketAddr::V4(at)) => {
            ip(out, IpAddr::V4(*at.ip()));
            out.push(b':');
            number(out, at.port());
        }
        Some(SocketAddr::V6(at)) => drop(write!(out, "{at}")),
        None => {}
    }
    out.push(b'"');
}

/// Where lines go.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    batches: SyncSender<Vec<u8>>,
    /// Batches that are not written yet.
    waiting: Arc<AtomicUsize>,
}

impl AccessLog {
    /// `off`, `stdout` or a path. The writer ends when the last sender is gone.
    pub(crate) fn open(target: &str) -> Result<Option<Self>, Error> {
        let out: Box<dyn Write + Send> = match target {
            "off" | "" => return Ok(None),
            "stdout" => Box::new(io::stdout()),
            path => Box::new(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map_err(|e| Error::Config(format!("the access log {path:?} can't be opened: {e}")))?,
            ),
        };
        let (batches, lines) = sync_channel(WAITING);
        let waiting = Arc::<AtomicUsize>::default();
        let unwritten = Arc::clone(&waiting);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(&lines, &unwritten, out))
            .map_err(|e| Error::Start(format!("the access log's thread: {e}")))?;
        Ok(Some(Self { batches, waiting }))
    }

    /// Waits until all is written, for a moment at most.
    pub(crate) async fn finish(&self) {
        let deadline = Instant::now() + FINISH;
        while self.waiting.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// `false`: the writer is behind.
    fn send(&self, batch: Vec<u8>) -> bool {
        self.waiting.fetch_add(1, Ordering::Release);
        let sent = self.batches.try_send(batch).is_ok();
        if !sent {
            self.waiting.fetch_sub(1, Ordering::Release);
        }
        sent
    }
}

/// The lines of one worker that are not handed over yet.
#[derive(Debug)]
pub(crate) struct Lines {
    log: Option<AccessLog>,
    text: RefCell<Vec<u8>>,
    count: Cell<u64>,
}

impl Lines {
    pub(crate) fn new(log: Option<AccessLog>) -> Self {
        Self {
            log,
            text: RefCell::default(),
            count: Cell::new(0),
        }
    }

    /// Adds a line, which `write` appends. The number of lines that were dropped.
    pub(crate) fn add(&self, write: impl FnOnce(&mut Vec<u8>)) -> u64 {
        let mut text = self.text.borrow_mut();
        write(&mut text);
        text.push(b'\n');
        self.count.set(self.count.get() + 1);
        let enough = text.len() >= BATCH;
        drop(text);
        if enough { self.hand_over() } else { 0 }
    }

    /// Hands over what there is. The number of lines that were dropped.
    pub(crate) fn hand_over(&self) -> u64 {
        let count = self.count.take();
        if count == 0 {
            return 0;
        }
        let text = self.text.replace(Vec::with_capacity(BATCH + BATCH / 8));
        let sent = self.log.as_ref().is_some_and(|log| log.send(text));
        if sent { 0 } else { count }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.hand_over();
    }
}

fn write(batches: &Receiver<Vec<u8>>, waiting: &AtomicUsize, mut out: impl Write) {
    let mut failing = false;
    while let Ok(batch) = batches.recv() {
        match out.write_all(&batch).and_then(|()| out.flush()) {
            Err(error) if !failing => {
                tracing::warn!(%error, "the access log can't be written; lines are lost until it can");
                failing = true;
            }
            Ok(()) => failing = false,
            Err(_) => {}
        }
        waiting.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn a_line_is_the_json_that_a_serializer_makes(
            path in proptest::prelude::any::<String>(),
            host in "[a-z\"\\\\\u{1}\u{7f}é.]{0,20}",
            client in proptest::prelude::any::<IpAddr>(),
            endpoint in proptest::prelude::any::<Option<SocketAddr>>(),
            bytes in proptest::prelude::any::<u64>(),
        ) {
            let line = Line {
                ts: model::Timestamp::from_millis(1_764_000_000_123),
                protocol: "HTTP/1.1",
                method: "GET",
                host: host.as_bytes(),
                path: &path,
                status: 200,
                app: "hello",
                version: "1",
                container: "c0",
                endpoint,
                attempts: 2,
                duration_us: 1,
                gateway_us: 2,
                connect_us: 3,
                upstream_us: 4,
                bytes_in: bytes,
                bytes_out: 5,
                client,
                request_id: b"r",
                traceparent: b"t",
                reason: "",
            };
            let mut out = Vec::new();
            line.write(&mut out);
            let read: serde_json::Value = serde_json::from_slice(&out).expect("json");
            let wanted = serde_json::json!({
                "ts": line.ts, "protocol": "HTTP/1.1", "method": "GET", "host": host, "path": path, "status": 200, "app": "hello",
                "version": "1", "container": "c0", "endpoint": endpoint.map(|at| at.to_string()).unwrap_or_default(),
                "attempts": 2, "duration_us": 1, "gateway_us": 2, "connect_us": 3, "upstream_us": 4, "bytes_in": bytes,
                "bytes_out": 5, "client": client, "request_id": "r", "traceparent": "t", "reason": "",
            });
            prop_assert_eq!(read, wanted);
        }
    }
}
