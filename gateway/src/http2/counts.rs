//! What one HTTP/2 client may make the gateway do that is no request: its frames are counted, and who sends too many of a kind is a
//! flooder. What has to be remembered is bounded elsewhere (streams, header lists, CONTINUATION, windows); this bounds the work.

use std::time::{Duration, Instant};

use super::frame::{CONTINUATION, DATA, END_STREAM, HEADERS, Head, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE};

/// The counts begin anew after this time.
const WINDOW: Duration = Duration::from_secs(10);
/// Streams that a client may cancel in a window: twice the streams that may be open, since leaving a page cancels all of them
/// at once (CVE-2023-44487, "rapid reset").
const RESETS: u32 = 500;
/// PING: gRPC measures with them, some per second.
const PINGS: u32 = 300;
/// SETTINGS: each has to be acknowledged; clients send one or two.
const SETTINGS_FRAMES: u32 = 50;
/// PRIORITY, GOAWAY, frames of types unknown here, and DATA that carries nothing and ends nothing.
const OTHERS: u32 = 1_000;
/// WINDOW_UPDATE beyond those that what was sent accounts for.
const UPDATES: u32 = 1_000;
/// Bytes sent that account for one WINDOW_UPDATE more.
const BYTES_PER_UPDATE: u64 = 8;
/// Streams that had to be reset for a client's errors, ever (CVE-2025-8671, "made you reset").
const ERRORS: u32 = 256;

/// Too much of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flood(pub(super) &'static str);

/// The frames of one connection.
#[derive(Debug)]
pub(super) struct Counts {
    since: Instant,
    resets: u32,
    pings: u32,
    settings: u32,
    others: u32,
    updates: u32,
    written: u64,
    errors: u32,
}

impl Counts {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            resets: 0,
            pings: 0,
            settings: 0,
            others: 0,
            updates: 0,
            written: 0,
            errors: 0,
        }
    }

    /// Bytes went out.
    #[inline]
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }

    /// A frame came.
    #[inline]
    pub(super) fn frame(&mut self, head: &Head) -> Result<(), Flood> {
        let (count, most, name) = match head.kind {
            HEADERS | CONTINUATION => return Ok(()),
            DATA if head.length > 0 || head.has(END_STREAM) => return Ok(()),
            RST_STREAM => (&mut self.resets, RESETS, "resets"),
            PING => (&mut self.pings, PINGS, "pings"),
            SETTINGS => (&mut self.settings, SETTINGS_FRAMES, "settings"),
            WINDOW_UPDATE => {
                let earned = u32::try_from(self.written / BYTES_PER_UPDATE).unwrap_or(u32::MAX);
                (&mut self.updates, UPDATES.saturating_add(earned), "window updates")
            }
            _ => (&mut self.others, OTHERS, "frames without use"),
        };
        more(count, most, name)
    }

    /// A stream had to be reset for an error of the client's.
    pub(super) fn error(&mut self) -> Result<(), Flood> {
        more(&mut self.errors, ERRORS, "errors")
    }

    /// The timer looks.
    pub(super) fn look(&mut self, now: Instant) {
        if now.saturating_duration_since(self.since) >= WINDOW {
            let errors = self.errors;
            *self = Self::new(now);
            self.errors = errors;
        }
    }
}

#[inline]
fn more(count: &mut u32, most: u32, name: &'static str) -> Result<(), Flood> {
    *count = count.saturating_add(1);
    if *count > most { Err(Flood(name)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: u8, flags: u8, length: usize) -> Head {
        Head {
            length,
            kind,
            flags,
            stream: 1,
        }
    }

    #[test]
    fn each_kind_has_its_limit() {
        for (kind, most, name) in [
            (RST_STREAM, RESETS, "resets"),
            (PING, PINGS, "pings"),
            (SETTINGS, SETTINGS_FRAMES, "settings"),
            (WINDOW_UPDATE, UPDATES, "window updates"),
            (2, OTHERS, "frames without use"),
            (DATA, OTHERS, "frames without use"),
            (0xfe, OTHERS, "frames without use"),
        ] {
            let mut counts = Counts::new(Instant::now());
            let length = if kind == DATA { 0 } else { 8 };
            for _ in 0..most {
                assert_eq!(counts.frame(&head(kind, 0, length)), Ok(()));
            }
            assert_eq!(counts.frame(&head(kind, 0, length)), Err(Flood(name)));
        }
    }

    #[test]
    fn requests_and_bodies_are_no_flood_and_bytes_sent_earn_updates() {
        let mut counts = Counts::new(Instant::now());
        counts.wrote(80_000);
        for _ in 0..10_000 {
            for (kind, flags, length) in [
                (HEADERS, 4, 1),
                (DATA, 0, 1),
                (DATA, END_STREAM, 0),
                (WINDOW_UPDATE, 0, 4),
            ] {
                assert_eq!(counts.frame(&head(kind, flags, length)), Ok(()));
            }
        }
    }

    #[test]
    fn a_window_ends_but_errors_count_for_ever() {
        let start = Instant::now();
        let mut counts = Counts::new(start);
        for round in 1..20u32 {
            for _ in 0..PINGS {
                assert_eq!(counts.frame(&head(PING, 0, 8)), Ok(()));
            }
            counts.look(start + WINDOW * round);
        }
        for round in 20..20 + ERRORS {
            assert_eq!(counts.error(), Ok(()));
            counts.look(start + WINDOW * round);
        }
        assert_eq!(counts.error(), Err(Flood("errors")));
    }
}
