//! What one HTTP/2 client may make the gateway do that is no request: its frames are counted as they are read, by their
//! headers alone, and who sends too many of a kind is a flooder. The library bounds what it has to remember (streams, header
//! lists, CONTINUATION, empty and tiny DATA, resets before a stream is taken); this bounds the work.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

/// Length of the client's connection preface (RFC 9113 3.4).
const PREFACE: usize = 24;
/// Length of a frame's header (RFC 9113 4.1).
const HEAD: usize = 9;

/// The counts begin anew after this time.
const WINDOW: Duration = Duration::from_secs(10);
/// Streams that a client may cancel in a window: twice the streams that may be open, since leaving a page cancels all of them
/// at once (CVE-2023-44487, "rapid reset").
const RESETS: u32 = 500;
/// PING: gRPC measures with them, some per second.
const PINGS: u32 = 300;
/// SETTINGS: each has to be acknowledged; clients send one or two.
const SETTINGS: u32 = 50;
/// PRIORITY, GOAWAY, PUSH_PROMISE, frames of types unknown here, and DATA that carries nothing and ends nothing.
const OTHERS: u32 = 1_000;
/// WINDOW_UPDATE beyond those that what was sent accounts for.
const UPDATES: u32 = 1_000;
/// Bytes sent that account for one WINDOW_UPDATE more.
const BYTES_PER_UPDATE: u64 = 8;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS_FRAME: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

#[derive(Debug, Default)]
struct Counts {
    resets: u32,
    pings: u32,
    settings: u32,
    others: u32,
    updates: u32,
}

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Too much of this.
    Flood(&'static str),
    /// The first frame was not SETTINGS (RFC 9113 3.4).
    NoSettings,
}

/// Where in the stream of frames the reading is.
#[derive(Debug)]
struct Place {
    /// Bytes until the next frame's header.
    skip: usize,
    head: [u8; HEAD],
    have: usize,
    /// There was a frame.
    begun: bool,
    /// A header block has begun that has not ended; each has its number.
    block: Option<u64>,
    blocks: u64,
    /// The frame that is being skipped ends its header block.
    ends_block: bool,
    counts: Counts,
}

/// Counts the frames of one connection.
#[derive(Debug)]
pub(crate) struct Guard {
    place: RefCell<Place>,
    written: Cell<u64>,
    fault: Cell<Option<Fault>>,
}

impl Guard {
    pub(crate) fn new() -> Self {
        Self {
            place: RefCell::new(Place {
                skip: PREFACE,
                head: [0; HEAD],
                have: 0,
                begun: false,
                block: None,
                blocks: 0,
                ends_block: false,
                counts: Counts::default(),
            }),
            written: Cell::new(0),
            fault: Cell::new(None),
        }
    }

    /// Why the connection has to end, once it has.
    #[inline]
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.get()
    }

    /// Bytes went out.
    #[inline]
    pub(crate) fn wrote(&self, bytes: usize) {
        self.written.set(self.written.get() + bytes as u64);
    }

    /// The number of the header block that has begun and not ended.
    pub(crate) fn open_block(&self) -> Option<u64> {
        self.place.borrow().block
    }

    /// Bytes came in.
    pub(crate) fn read(&self, mut bytes: &[u8]) {
        let mut place = self.place.borrow_mut();
        while !bytes.is_empty() {
            if place.skip > 0 {
                let n = place.skip.min(bytes.len());
                place.skip -= n;
                bytes = &bytes[n..];
                if place.skip == 0 && place.ends_block {
                    place.block = None;
                }
                continue;
            }
            let n = (HEAD - place.have).min(bytes.len());
            let have = place.have;
            place.head[have..have + n].copy_from_slice(&bytes[..n]);
            place.have += n;
            bytes = &bytes[n..];
            if place.have == HEAD {
                place.have = 0;
                if let Some(fault) = place.frame(self.written.get()) {
                    self.fault.set(Some(fault));
                }
            }
        }
    }

    /// Begins a new window of counting.
    fn renew(&self) {
        self.place.borrow_mut().counts = Counts::default();
        self.written.set(0);
    }
}

impl Place {
    /// A frame's header is whole; what is wrong with it, if anything is.
    fn frame(&mut self, written: u64) -> Option<Fault> {
        let [a, b, c, kind, flags, ..] = self.head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.skip = length;
        self.ends_block = false;
        if !std::mem::replace(&mut self.begun, true) && kind != SETTINGS_FRAME {
            return Some(Fault::NoSettings);
        }
        let counts = &mut self.counts;
        let (count, most, name) = match kind {
            HEADERS | CONTINUATION => {
                if self.block.is_none() {
                    self.blocks += 1;
                    self.block = Some(self.blocks);
                }
                self.ends_block = flags & END_HEADERS != 0;
                if self.ends_block && length == 0 {
                    self.block = None;
                }
                return None;
            }
            DATA if length > 0 || flags & END_STREAM != 0 => return None,
            RST_STREAM => (&mut counts.resets, RESETS, "resets"),
            PING => (&mut counts.pings, PINGS, "pings"),
            SETTINGS_FRAME => (&mut counts.settings, SETTINGS, "settings"),
            WINDOW_UPDATE => {
                let earned = u32::try_from(written / BYTES_PER_UPDATE).unwrap_or(u32::MAX);
                (&mut counts.updates, UPDATES.saturating_add(earned), "window updates")
            }
            _ => (&mut counts.others, OTHERS, "frames without use"),
        };
        *count = count.saturating_add(1);
        (*count > most).then_some(Fault::Flood(name))
    }
}

/// The timer's memory of a connection's frames.
#[derive(Debug)]
pub(crate) struct GuardWatch {
    window: Instant,
    block: Option<(u64, Instant)>,
}

impl GuardWatch {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            window: now,
            block: None,
        }
    }

    /// Looks at the frames; `true` when a header block has been on its way for longer than `head`.
    pub(crate) fn look(&mut self, guard: &Guard, head: Duration, now: Instant) -> bool {
        if now.saturating_duration_since(self.window) >= WINDOW {
            self.window = now;
            guard.renew();
        }
        let Some(open) = guard.open_block() else {
            self.block = None;
            return false;
        };
        match self.block {
            Some((block, since)) if block == open => now.saturating_duration_since(since) >= head,
            _ => {
                self.block = Some((open, now));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.extend_from_slice(payload);
        bytes
    }

    /// A guard that has read the preface.
    fn guard() -> Guard {
        let guard = Guard::new();
        guard.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        guard.read(&frame(SETTINGS_FRAME, 0, b""));
        guard.renew();
        guard
    }

    #[test]
    fn each_kind_has_its_limit() {
        for (kind, most, name) in [
            (RST_STREAM, RESETS, "resets"),
            (PING, PINGS, "pings"),
            (SETTINGS_FRAME, SETTINGS, "settings"),
            (WINDOW_UPDATE, UPDATES, "window updates"),
            (2, OTHERS, "frames without use"),
            (DATA, OTHERS, "frames without use"),
            (0xfe, OTHERS, "frames without use"),
        ] {
            let guard = guard();
            let payload: &[u8] = if kind == DATA { b"" } else { b"12345678" };
            for _ in 0..most {
                guard.read(&frame(kind, 0, payload));
            }
            assert_eq!(guard.fault(), None, "{name}");
            guard.read(&frame(kind, 0, payload));
            assert_eq!(guard.fault(), Some(Fault::Flood(name)));
        }
    }

    #[test]
    fn requests_and_bodies_are_no_flood_and_bytes_sent_earn_updates() {
        let guard = guard();
        for _ in 0..10_000 {
            guard.read(&frame(HEADERS, END_HEADERS, b"x"));
            guard.read(&frame(DATA, 0, b"x"));
            guard.read(&frame(DATA, END_STREAM, b""));
        }
        guard.wrote(80_000);
        for _ in 0..UPDATES + 10_000 {
            guard.read(&frame(WINDOW_UPDATE, 0, &[0; 4]));
        }
        assert_eq!(guard.fault(), None);
    }

    #[test]
    fn settings_come_first() {
        let guard = Guard::new();
        guard.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        guard.read(&frame(PING, 0, &[0; 8]));
        assert_eq!(guard.fault(), Some(Fault::NoSettings));
    }

    #[test]
    fn a_window_ends() {
        let (guard, start) = (guard(), Instant::now());
        let mut watch = GuardWatch::new(start);
        for round in 1..20u32 {
            for _ in 0..PINGS {
                guard.read(&frame(PING, 0, &[0; 8]));
            }
            watch.look(&guard, WINDOW, start + WINDOW * round);
        }
        assert_eq!(guard.fault(), None);
    }

    #[test]
    fn cut_anywhere_the_count_is_the_same() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS_FRAME, 0, b""));
        for i in 0..=PINGS {
            bytes.extend(frame(HEADERS, END_HEADERS, &vec![7; i as usize % 20]));
            bytes.extend(frame(PING, 0, &[0; 8]));
        }
        for size in [1, 2, 3, 7, 9, 10, 64, bytes.len()] {
            let guard = Guard::new();
            bytes.chunks(size).for_each(|part| guard.read(part));
            assert_eq!(guard.fault(), Some(Fault::Flood("pings")), "{size}");
            assert_eq!(guard.open_block(), None, "{size}");
        }
    }

    #[test]
    fn a_header_block_has_its_time() {
        let (guard, start) = (guard(), Instant::now());
        let (mut watch, head) = (GuardWatch::new(start), Duration::from_secs(10));
        guard.read(&frame(HEADERS, 0, b"abc"));
        assert!(!watch.look(&guard, head, start));
        guard.read(&frame(CONTINUATION, 0, b"abc"));
        assert!(watch.look(&guard, head, start + head));
        guard.read(&frame(CONTINUATION, END_HEADERS, b"abc"));
        assert!(!watch.look(&guard, head, start + head));
        // Another block is not the one before.
        guard.read(&frame(HEADERS, 0, b"abc"));
        assert!(!watch.look(&guard, head, start + head * 2));
        // Half a frame counts too.
        guard.read(&frame(CONTINUATION, END_HEADERS, b"abc")[..10]);
        assert!(watch.look(&guard, head, start + head * 3));
    }
}
