//! A worker: one thread, one single-threaded runtime, own listeners, connections and upstream pool. Workers share the
//! route table, which they only read, and counters.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, Cache};
use http::{HeaderMap, HeaderValue};
use model::config::Protocol;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::access_log::{self, Lines};
use crate::answer::Reason;
use crate::door::Door;
use crate::exchange::{Limits, Pace};
use crate::h2c;
use crate::http1::{self, Http1, Landing};
use crate::http2;
use crate::idle::Idle;
use crate::metrics::{SAMPLED, WorkerStats};
use crate::pool::{Bounds, Pool, Sender};
use crate::shared::Shared;
use crate::table::{App, Table};
use crate::tcp::{self, Arrival};

/// Bytes of the buffer through which a worker copies tunnels.
const SCRATCH: usize = 64 * 1024;

/// Longest time that a connection without a request may go on once the worker drains, so that its client, which does not know yet,
/// is answered and told if it asks; half of the drain's if that is less.
const GRACE: Duration = Duration::from_secs(2);

/// How long tunnels have to say goodbye at the end of the drain.
const GOODBYE: Duration = Duration::from_millis(500);

/// What the connections of one worker share.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    table: RefCell<Cache<Arc<ArcSwap<Table>>, Arc<Table>>>,
    pub(crate) pool: Pool,
    pub(crate) streams: h2c::Shared,
    /// Empty maps with room for fields.
    spares: RefCell<Vec<HeaderMap>>,
    pub(crate) scratch: RefCell<Box<[u8]>>,
    /// Where the beginnings of answers arrive.
    pub(crate) landing: RefCell<Landing>,
    pub(crate) front: hyper::server::conn::http1::Builder,
    pub(crate) http2: http2::Limits,
    pub(crate) back: hyper::client::conn::http2::Builder<h2c::Local>,
    /// How much an endpoint may send before the body of its answer.
    pub(crate) bounds: http1::Bounds,
    pub(crate) limits: Limits,
    /// Longest time that a TLS handshake may take.
    pub(crate) handshake: Duration,
    /// How often a connection's timer looks.
    pub(crate) tick: Duration,
    /// Set when the worker has begun to stop: every answer is its connection's last.
    pub(crate) draining: Cell<bool>,
    pub(crate) drain: CancellationToken,
    pub(crate) idle: Rc<Idle>,
    /// See [`GRACE`].
    pub(crate) grace: Duration,
    /// Set at the end of the drain: tunnels say goodbye.
    pub(crate) leaving: Cell<bool>,
    pub(crate) leave: CancellationToken,
    /// The Date of answers that have none, and the second that it was made in.
    date: RefCell<(u64, HeaderValue)>,
    /// Of request ids: what is this worker's own, and a count with a random start.
    prefix: [u8; 16],
    count: Cell<u64>,
    /// Tries that may have been sampled.
    tries: Cell<u64>,
    lines: Lines,
}

/// How many files this process may have open.
fn files() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit
        .current
        .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

impl Worker {
    fn new(index: usize, shared: Arc<Shared>) -> Self {
        let config = &shared.config;
        let mut front = hyper::server::conn::http1::Builder::new();
        front
            // Whether the client is still there while it waits is looked for by its socket.
            .half_close(true)
            .header_read_timeout(None)
            .max_header_size(config.max_head_bytes)
            .max_buf_size(config.buffer_bytes.max(config.max_head_bytes));
        // hyper's own limit of 100 fields costs no allocation.
        if config.max_head_fields != 100 {
            front.max_headers(config.max_head_fields);
        }
        let head = Duration::from_millis(config.header_timeout_ms);
        let body = Duration::from_millis(config.body_idle_ms);
        let park = (config.park_after_ms > 0).then(|| Duration::from_millis(config.park_after_ms));
        let pace = Pace {
            bytes_per_s: config.min_body_bytes_per_s,
            grace: Duration::from_millis(config.min_body_grace_ms),
        };
        let shortest = head.min(body).min(pace.grace).min(park.unwrap_or(head));
        Self {
            index,
            table: RefCell::new(Cache::new(Arc::clone(&shared.table))),
            pool: Pool::new(Bounds {
                all: (config.pool_connections.min(files() / 4) / shared.workers.len()).max(1),
                per_endpoint: config.pool_per_endpoint,
                keep: Duration::from_secs(config.pool_idle_s),
            }),
            streams: h2c::Shared::default(),
            spares: RefCell::default(),
            scratch: RefCell::new(vec![0; SCRATCH].into()),
            landing: RefCell::default(),
            front,
            http2: http2::limits(config),
            back: h2c::builder(config.buffer_bytes),
            bounds: http1::Bounds {
                head: config.buffer_bytes,
                // One head at its largest, and the part of the body that is read along with it.
                all: config.buffer_bytes.saturating_mul(2),
                fields: config.max_head_fields,
            },
            limits: Limits {
                head,
                idle: Duration::from_secs(config.idle_timeout_s),
                body,
                pace,
                park,
                patience: (
                    Duration::from_secs(config.response_timeout_s),
                    Duration::from_secs(config.answer_idle_timeout_s),
                ),
            },
            handshake: Duration::from_millis(config.tls_handshake_timeout_ms),
            tick: (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(1)),
            draining: Cell::new(false),
            drain: CancellationToken::new(),
            idle: Rc::default(),
            grace: GRACE.min(Duration::from_secs(config.drain_timeout_s) / 2),
            leaving: Cell::new(false),
            leave: CancellationToken::new(),
            date: RefCell::new((0, HeaderValue::from_static(""))),
            prefix: hex(rand::random()),
            count: Cell::new(rand::random()),
            tries: Cell::new(0),
            lines: Lines::new(shared.log.clone()),
            shared,
        }
    }

    #[inline]
    pub(crate) fn stats(&self) -> &WorkerStats {
        &self.shared.workers[self.index]
    }

    /// Writes a line of the access log.
    pub(crate) fn log(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let dropped = self.lines.add(write);
        self.stats().log_dropped.add(dropped);
    }

    /// Hands the lines of the access log over to its writer.
    fn hand_over_lines(&self) {
        let dropped = self.lines.hand_over();
        self.stats().log_dropped.add(dropped);
    }

    /// Counts an answer that has no request of which there is a record.
    pub(crate) fn refused(&self, reason: Reason) {
        let stats = self.stats();
        stats.codes[usize::from(reason.status().as_u16())].add(1);
        stats.reasons[reason as usize].add(1);
    }

    /// Reads the newest table.
    #[inline]
    pub(crate) fn with_table<T>(&self, read: impl FnOnce(&Table) -> T) -> T {
        read(self.table.borrow_mut().load())
    }

    /// The app under that name or domain, in the newest table.
    #[inline]
    pub(crate) fn app(&self, key: &str) -> Option<Arc<App>> {
        self.with_table(|table| table.get(key).cloned())
    }

    /// The app in the newest table, if that is another than this one. Never one that speaks HTTP in place of one that does not, nor the
    /// reverse: a request must not become commands of another protocol.
    pub(crate) fn newer(&self, app: &Arc<App>) -> Option<Arc<App>> {
        let tcp = |app: &App| app.settings.config.protocol == Protocol::Tcp;
        let newer = self.app(app.shared.id.as_str())?;
        (!Arc::ptr_eq(&newer, app) && tcp(&newer) == tcp(app)).then_some(newer)
    }

    /// Keeps an upstream connection once it waits for its next request.
    pub(crate) fn keep(&self, endpoint: u64, sender: Sender, now: Instant) {
        match sender {
            Sender::Http1(http1) => {
                self.pool.put(endpoint, http1, now);
                self.count_kept();
            }
            Sender::Http2(stream) => drop(stream),
        }
    }

    /// An upstream connection that waits for a request.
    pub(crate) fn kept(&self, endpoint: u64) -> Option<Box<Http1>> {
        let http1 = self.pool.take(endpoint);
        self.count_kept();
        http1
    }

    fn count_kept(&self) {
        self.stats().pooled.set(self.pool.count() as u64);
    }

    /// An empty map for fields.
    pub(crate) fn fields(&self) -> HeaderMap {
        self.spares.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a map whose fields are needed no more.
    pub(crate) fn give_back(&self, mut fields: HeaderMap) {
        let mut spares = self.spares.borrow_mut();
        if spares.len() < 256 && fields.capacity() <= 128 {
            fields.clear();
            spares.push(fields);
        }
    }

    /// The time for answers that have none.
    pub(crate) fn date(&self) -> HeaderValue {
        let now = SystemTime::now();
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut date = self.date.borrow_mut();
        if date.0 != second
            && let Ok(value) = HeaderValue::from_str(&httpdate::fmt_http_date(now))
        {
            *date = (second, value);
        }
        date.1.clone()
    }

    /// Whether the time in the gateway is taken for this try.
    pub(crate) fn sampled(&self) -> bool {
        let tries = self.tries.get();
        self.tries.set(tries.wrapping_add(1));
        self.shared.log.is_some() || tries.is_multiple_of(SAMPLED)
    }

    /// A new request id: 16 hexadecimal digits that are this worker's, and 16 that count.
    pub(crate) fn request_id(&self) -> RequestId {
        let count = self.count.get().wrapping_add(1);
        self.count.set(count);
        let mut id = [0; 32];
        id[..16].copy_from_slice(&self.prefix);
        id[16..].copy_from_slice(&hex(count));
        RequestId(id)
    }
}

/// A request id made here: 32 hexadecimal digits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId([u8; 32]);

impl RequestId {
    /// As the value of a header field.
    pub(crate) fn value(self) -> HeaderValue {
        // The digits are a valid value; the fallback only spares a proof.
        HeaderValue::from_bytes(&self.0).unwrap_or(HeaderValue::from_static("0"))
    }
}

/// Its 16 hexadecimal digits.
pub(crate) fn hex(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (byte, pair) in number.to_be_bytes().iter().zip(digits.chunks_exact_mut(2)) {
        pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
        pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
    }
    digits
}

/// The worker's thread: serves until `stop`, then lets open requests finish until the drain time-out.
pub(crate) fn run(
    index: usize,
    shared: Arc<Shared>,
    plain: std::net::TcpListener,
    tls: Option<std::net::TcpListener>,
    mut arrivals: mpsc::Receiver<Arrival>,
    stop: &CancellationToken,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async move {
        let worker = Rc::new(Worker::new(index, shared));
        let sweeping = Rc::clone(&worker);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                let now = Instant::now();
                sweeping.pool.sweep(now);
                sweeping.count_kept();
                sweeping.streams.sweep(now, sweeping.pool.keep());
            }
        });
        if worker.shared.log.is_some() {
            let logging = Rc::clone(&worker);
            tokio::task::spawn_local(async move {
                loop {
                    tokio::time::sleep(access_log::PAUSE).await;
                    logging.hand_over_lines();
                }
            });
        }
        let taking = Rc::clone(&worker);
        // Ends with the last open port.
        tokio::task::spawn_local(async move {
            while let Some(arrival) = arrivals.recv().await {
                let worker = Rc::clone(&taking);
                tokio::task::spawn_local(async move { tcp::serve(&worker, arrival).await });
            }
        });
        let mut doors = vec![Door::plain(plain)?];
        if let (Some(listener), Some(tls)) = (tls, &worker.shared.tls) {
            doors.push(Door::tls(listener, Arc::clone(tls))?);
        }
        tokio::select! {
            () = stop.cancelled() => {}
            _ = futures::future::join_all(doors.iter().map(|door| door.accept(&worker))) => {}
        }
        for door in doors {
            door.close(&worker);
        }
        worker.draining.set(true);
        worker.drain.cancel();
        let deadline = Instant::now() + Duration::from_secs(worker.shared.config.drain_timeout_s);
        let busy = || {
            let coming = worker.shared.tcp.coming.load(Ordering::SeqCst) > 0;
            coming || worker.stats().connections_open.get() > 0
        };
        while busy() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        worker.leaving.set(true);
        worker.leave.cancel();
        if worker.stats().tunnels_open.get() > 0 {
            let deadline = Instant::now() + GOODBYE;
            while worker.stats().connections_open.get() > 0 && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        worker.hand_over_lines();
        Ok(())
    })
}
