//! What is known of one client's connection, and what its frames do to it, but for those of header blocks.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use super::counts::{Counts, Flood};
use super::frame::{self, Code, Head, setting};
use super::hpack::{Broken, Decoder};
use super::request::Fields;
use super::streams::{Over, Stream};

/// Largest window (RFC 9113 6.9.1), and the one that everybody begins with.
const LARGEST: i64 = 0x7fff_ffff;
pub(super) const FIRST_WINDOW: i64 = 65_535;
/// Says with an answered PING that a client has heard that the connection goes away.
pub(super) const GOING: [u8; 8] = *b"going aw";

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The client breaks the protocol.
    Error(Code),
    /// It sends too much of this.
    Flood(&'static str),
}

impl From<Flood> for Fault {
    fn from(flood: Flood) -> Self {
        Self::Flood(flood.0)
    }
}

impl From<Broken> for Fault {
    fn from(_: Broken) -> Self {
        Self::Error(Code::Compression)
    }
}

pub(super) const PROTOCOL: Fault = Fault::Error(Code::Protocol);

/// A header block that is being read.
pub(super) struct Block {
    pub(super) stream: u32,
    /// Its stream ends with it.
    pub(super) end: bool,
    pub(super) fields: Fields,
    /// The end of what came: a field that is not whole.
    pub(super) rest: Vec<u8>,
    pub(super) frames: u32,
    pub(super) bytes: usize,
    pub(super) number: u64,
}

/// How far the connection has come with going away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Going {
    No,
    /// The client was told; what it has sent meanwhile is served.
    Told,
    /// It knows: no further stream.
    Known,
    /// It ends as soon as all is written.
    Ends,
}

/// The connection's own part of what is known.
pub(super) struct State {
    pub(super) streams: HashMap<u32, Rc<Stream>, ahash::RandomState>,
    /// The last stream that the client has begun.
    pub(super) last: u32,
    /// Streams that were reset here and whose frames may still be on their way; at most so many.
    pub(super) reset: VecDeque<u32>,
    remembered: usize,
    /// The last stream that a GOAWAY has named, which must not grow (RFC 9113 6.8).
    said: u32,
    /// What is to be written, and how much of it was.
    pub(super) out: Vec<u8>,
    pub(super) at: usize,
    /// Streams that wait for room, or for the connection's window.
    pub(super) waiting: VecDeque<Rc<Stream>>,
    /// What may be sent in all, and what each stream begins with.
    pub(super) window: i64,
    pub(super) each: i64,
    /// What a stream may be sent before it is read.
    pub(super) own: i64,
    /// What the client may send in all, and what of it was read and not yet said.
    pub(super) inward: i64,
    pub(super) read: i64,
    /// The client has acknowledged our settings.
    pub(super) acknowledged: bool,
    /// Its own came.
    pub(super) settled: bool,
    /// It is to be told that blocks come without a table.
    pub(super) says_table: bool,
    pub(super) decoder: Decoder,
    pub(super) block: Option<Block>,
    pub(super) blocks: u64,
    pub(super) counts: Counts,
    pub(super) going: Going,
}

impl State {
    /// At the beginning: `out` is to be written first, `inward` is the connection's window for what comes, `own` that of each stream.
    pub(super) fn new(out: Vec<u8>, inward: i64, own: i64, remembered: usize, now: Instant) -> Self {
        Self {
            streams: HashMap::default(),
            last: 0,
            reset: VecDeque::new(),
            remembered,
            said: u32::MAX,
            out,
            at: 0,
            waiting: VecDeque::new(),
            window: FIRST_WINDOW,
            each: FIRST_WINDOW,
            own,
            inward,
            read: 0,
            acknowledged: false,
            settled: false,
            says_table: false,
            decoder: Decoder::new(),
            block: None,
            blocks: 0,
            counts: Counts::new(now),
            going: Going::No,
        }
    }

    pub(super) fn data(&mut self, head: &Head, payload: &[u8]) -> Result<(), Fault> {
        if self.is_idle(head.stream) {
            return Err(PROTOCOL);
        }
        let length = payload.len() as i64;
        self.inward -= length;
        if self.inward < 0 {
            return Err(Fault::Error(Code::FlowControl));
        }
        let data = unpad(head, payload)?;
        let Some(stream) = self.streams.get(&head.stream).map(Rc::clone) else {
            if !self.reset.contains(&head.stream) {
                return Err(Fault::Error(Code::StreamClosed));
            }
            // Its client did not know yet.
            self.release(payload.len());
            return Ok(());
        };
        if stream.is_over() {
            self.release(payload.len());
            return Ok(());
        }
        let inward = stream.inward.get() - length;
        stream.inward.set(inward);
        let end = head.has(frame::END_STREAM);
        let left = stream.left.get().map(|left| left.checked_sub(data.len() as u64));
        let wrong = if stream.received.get() {
            Some(Code::StreamClosed)
        } else if inward < 0 {
            Some(Code::FlowControl)
        } else if left.is_some_and(|left| left.is_none_or(|left| end && left > 0)) {
            Some(Code::Protocol)
        } else {
            None
        };
        if let Some(code) = wrong {
            self.release(payload.len());
            return self.fail(&stream, code);
        }
        stream.left.set(left.flatten());
        // Padding is nothing to read, and what nobody wants is not read.
        let padding = payload.len() - data.len();
        let unread = if stream.take_in(data, end) { 0 } else { data.len() };
        self.release(padding + unread);
        if !end && padding > 0 {
            self.grant(&stream, padding);
        }
        Ok(())
    }

    /// The client may send so many bytes more in all, once that is much; whether it was told.
    pub(super) fn release(&mut self, bytes: usize) -> bool {
        self.read += bytes as i64;
        if self.read < self.own {
            return false;
        }
        self.inward += self.read;
        let more = u32::try_from(std::mem::take(&mut self.read)).unwrap_or(0);
        frame::write(&mut self.out, frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        true
    }

    /// The same for a stream.
    pub(super) fn grant(&mut self, stream: &Stream, bytes: usize) -> bool {
        let read = stream.read.get() + bytes as i64;
        if read < self.own / 2 {
            stream.read.set(read);
            return false;
        }
        stream.read.set(0);
        stream.inward.set(stream.inward.get() + read);
        let more = u32::try_from(read).unwrap_or(0);
        frame::write(&mut self.out, frame::WINDOW_UPDATE, 0, stream.id, &more.to_be_bytes());
        true
    }

    pub(super) fn trailers(&mut self, stream: &Rc<Stream>, block: Block) -> Result<(), Fault> {
        if stream.is_over() {
            return Ok(());
        }
        if stream.received.get() {
            return self.fail(stream, Code::StreamClosed);
        }
        let short = stream.left.get().is_some_and(|left| left > 0);
        match block.fields.trailers() {
            Some(fields) if block.end && !short => {
                stream.take_trailers(fields);
                Ok(())
            }
            _ => self.fail(stream, Code::Protocol),
        }
    }

    pub(super) fn reset_by_client(&mut self, head: &Head, payload: &[u8]) -> Result<(), Fault> {
        if payload.len() != 4 {
            return Err(Fault::Error(Code::FrameSize));
        }
        if self.is_idle(head.stream) {
            return Err(PROTOCOL);
        }
        if let Some(stream) = self.streams.get(&head.stream) {
            let unread = stream.end(Over::Client);
            self.release(unread);
        }
        Ok(())
    }

    pub(super) fn settings(&mut self, head: &Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(PROTOCOL);
        }
        if head.has(frame::ACK) {
            if !payload.is_empty() {
                return Err(Fault::Error(Code::FrameSize));
            }
            // From now on our window holds, where it is smaller than everybody's first.
            if !std::mem::replace(&mut self.acknowledged, true) && self.own < FIRST_WINDOW {
                for stream in self.streams.values() {
                    stream.inward.set(stream.inward.get() + self.own - FIRST_WINDOW);
                }
            }
            return Ok(());
        }
        let (settings, []) = payload.as_chunks::<6>() else {
            return Err(Fault::Error(Code::FrameSize));
        };
        let mut each = self.each;
        for [a, b, rest @ ..] in settings {
            let value = u32::from_be_bytes(*rest);
            match u16::from_be_bytes([*a, *b]) {
                setting::HEADER_TABLE_SIZE => self.says_table = true,
                setting::ENABLE_PUSH if value > 1 => return Err(PROTOCOL),
                setting::INITIAL_WINDOW_SIZE if i64::from(value) > LARGEST => {
                    return Err(Fault::Error(Code::FlowControl));
                }
                setting::INITIAL_WINDOW_SIZE => each = i64::from(value),
                setting::MAX_FRAME_SIZE => match value {
                    // Larger frames would make others wait for them.
                    16_384..=0x00ff_ffff => {}
                    _ => return Err(PROTOCOL),
                },
                _ => {}
            }
        }
        // Once, however often it was said.
        let more = each - std::mem::replace(&mut self.each, each);
        for stream in self.streams.values().filter(|_| more != 0) {
            let window = stream.window.get() + more;
            if window > LARGEST {
                return Err(Fault::Error(Code::FlowControl));
            }
            stream.window.set(window);
            stream.wake_writer();
        }
        frame::write(&mut self.out, frame::SETTINGS, frame::ACK, 0, &[]);
        Ok(())
    }

    pub(super) fn ping(&mut self, head: &Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(PROTOCOL);
        }
        if payload.len() != 8 {
            return Err(Fault::Error(Code::FrameSize));
        }
        if !head.has(frame::ACK) {
            frame::write(&mut self.out, frame::PING, frame::ACK, 0, payload);
        } else if payload == GOING && self.going == Going::Told {
            self.going = Going::Known;
            self.say_goaway(self.last, Code::No);
        }
        Ok(())
    }

    pub(super) fn window_update(&mut self, head: &Head, payload: &[u8]) -> Result<(), Fault> {
        let more = match frame::number(payload) {
            Some(more) if payload.len() == 4 => i64::from(more & 0x7fff_ffff),
            _ => return Err(Fault::Error(Code::FrameSize)),
        };
        if head.stream == 0 {
            self.window += more;
            return match more {
                0 => Err(PROTOCOL),
                _ if self.window > LARGEST => Err(Fault::Error(Code::FlowControl)),
                _ => {
                    self.wake_waiting();
                    Ok(())
                }
            };
        }
        if self.is_idle(head.stream) {
            return Err(PROTOCOL);
        }
        let Some(stream) = self.streams.get(&head.stream).map(Rc::clone) else {
            return Ok(());
        };
        let window = stream.window.get() + more;
        if more == 0 {
            return self.fail(&stream, Code::Protocol);
        }
        if window > LARGEST {
            return self.fail(&stream, Code::FlowControl);
        }
        stream.window.set(window);
        stream.wake_writer();
        Ok(())
    }

    /// Resets a stream for an error of the client's.
    pub(super) fn fail(&mut self, stream: &Stream, code: Code) -> Result<(), Fault> {
        if !stream.is_over() {
            self.say_reset(stream.id, code);
            let unread = stream.end(Over::Here);
            self.release(unread);
        }
        Ok(self.counts.error()?)
    }

    pub(super) fn say_reset(&mut self, stream: u32, code: Code) {
        frame::write(
            &mut self.out,
            frame::RST_STREAM,
            0,
            stream,
            &(code as u32).to_be_bytes(),
        );
        if self.reset.len() >= self.remembered {
            self.reset.pop_front();
        }
        self.reset.push_back(stream);
    }

    pub(super) fn say_goaway(&mut self, last: u32, code: Code) {
        self.said = self.said.min(last);
        let mut payload = self.said.to_be_bytes().to_vec();
        payload.extend_from_slice(&(code as u32).to_be_bytes());
        frame::write(&mut self.out, frame::GOAWAY, 0, 0, &payload);
    }

    /// There may be room: those that wait look, in their order, and keep their places until they get something.
    pub(super) fn wake_waiting(&self) {
        for stream in &self.waiting {
            stream.wake_writer();
        }
    }

    /// The stream waits no longer.
    pub(super) fn served(&mut self, stream: &Stream) {
        if stream.waits.replace(false)
            && let Some(at) = self.waiting.iter().position(|waiting| waiting.id == stream.id)
        {
            self.waiting.remove(at);
        }
    }

    /// Nobody has begun the stream.
    fn is_idle(&self, stream: u32) -> bool {
        stream.is_multiple_of(2) || stream > self.last
    }

    /// All streams are over.
    pub(super) fn abandon(&mut self) {
        self.block = None;
        self.waiting.clear();
        for (_, stream) in self.streams.drain() {
            stream.end(Over::Client);
        }
    }
}

/// What a frame carries without its padding (RFC 9113 6.1).
pub(super) fn unpad<'a>(head: &Head, payload: &'a [u8]) -> Result<&'a [u8], Fault> {
    if !head.has(frame::PADDED) {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or(Fault::Error(Code::FrameSize))?;
    let length = rest.len().checked_sub(usize::from(*padding)).ok_or(PROTOCOL)?;
    Ok(&rest[..length])
}
