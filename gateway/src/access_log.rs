//! The access log: one JSON line per request. A worker collects lines, and hands them to a writing thread through a bounded channel
//! once there are enough or a moment has passed: waking that thread for each would cost more than the line. When it can't keep up (a
//! full disk, a stuck pipe) lines are dropped and counted, and no request waits.

use std::cell::{Cell, RefCell};
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use serde::Serialize;

use crate::Error;

/// Bytes of lines from which on they are handed over.
const BATCH: usize = 32 * 1024;
/// Batches that may wait for the writer.
const WAITING: usize = 256;
/// How long a line waits for others at most.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// One request, as logged. Times in microseconds, sizes in bytes of bodies.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    pub(crate) ts: model::Timestamp,
    pub(crate) protocol: &'static str,
    pub(crate) method: &'a str,
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    pub(crate) app: &'a str,
    pub(crate) version: &'a str,
    pub(crate) container: &'a str,
    pub(crate) endpoint: String,
    pub(crate) attempts: u32,
    pub(crate) duration_us: u64,
    /// Until an endpoint was asked.
    pub(crate) gateway_us: u64,
    /// 0: on a kept connection.
    pub(crate) connect_us: u64,
    pub(crate) upstream_us: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) client: std::net::IpAddr,
    pub(crate) request_id: &'a str,
    pub(crate) traceparent: &'a str,
    pub(crate) reason: &'a str,
}

/// Where lines go.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog(SyncSender<Vec<u8>>);

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
        let (sender, lines) = sync_channel(WAITING);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(&lines, BufWriter::with_capacity(64 * 1024, out)))
            .map_err(|e| Error::Start(format!("the access log's thread: {e}")))?;
        Ok(Some(Self(sender)))
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

    /// Adds a line. The number of lines that were dropped.
    pub(crate) fn add(&self, line: &impl Serialize) -> u64 {
        let mut text = self.text.borrow_mut();
        let before = text.len();
        if serde_json::to_writer(&mut *text, line).is_err() {
            text.truncate(before);
            return 1;
        }
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
        let sent = self.log.as_ref().is_some_and(|log| log.0.try_send(text).is_ok());
        if sent { 0 } else { count }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.hand_over();
    }
}

fn write(lines: &Receiver<Vec<u8>>, mut out: impl Write) {
    let mut failing = false;
    while let Ok(first) = lines.recv() {
        let mut result = out.write_all(&first);
        while let Ok(line) = lines.try_recv() {
            result = result.and(out.write_all(&line));
        }
        result = result.and(out.flush());
        match result {
            Err(error) if !failing => {
                tracing::warn!(%error, "the access log can't be written; lines are lost until it can");
                failing = true;
            }
            Ok(()) => failing = false,
            Err(_) => {}
        }
    }
}
