//! One client's connection without its socket: what its frames mean, what is to be written, and the streams. All of it belongs to
//! one thread: the connection's task brings frames and takes what is to be written, the streams' tasks write answers into it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;

use super::frame::{self, Code, Head, setting};
use super::hpack;
use super::request::{self, Fields};
use super::state::{Block, FIRST_WINDOW, Fault, GOING, Going, PROTOCOL, State, unpad};
use super::streams::Stream;

/// Bytes of answers that wait to be written before streams wait themselves.
pub(super) const ROOM: usize = 64 * 1024;
/// Bytes that wait to be written before nothing more is read: whoever does not read can't ask, either.
const FULL: usize = 256 * 1024;
/// Most CONTINUATION frames of a block, where its list needs no more.
const CONTINUATIONS: usize = 5;
/// Header blocks may be so much larger than the list that is kept before the connection ends.
const LARGER: usize = 4;
/// Streams that were reset are remembered at least so many.
const REMEMBERED: usize = 256;

/// What a connection may hold; from the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of a request's body that wait to be read; the connection has four times as many.
    pub(crate) window: u32,
    /// What a list of fields may count (RFC 9113 6.5.2).
    pub(crate) list: usize,
    /// Streams at once.
    pub(crate) streams: u32,
}

/// A new stream, and the request that it begins with.
pub(crate) struct Begun {
    pub(crate) head: request::Head,
    pub(crate) stream: Rc<Stream>,
}

/// The connection.
pub(crate) struct Core {
    limits: Limits,
    state: RefCell<State>,
    /// The connection's task.
    waker: Cell<Option<Waker>>,
}

impl Core {
    /// The connection after its preface; our settings are to be written.
    pub(crate) fn new(limits: Limits, now: Instant) -> Rc<Self> {
        let mut out = Vec::with_capacity(512);
        let list = u32::try_from(limits.list).unwrap_or(u32::MAX);
        let mut settings = Vec::new();
        for (id, value) in [
            (setting::MAX_CONCURRENT_STREAMS, limits.streams),
            (setting::INITIAL_WINDOW_SIZE, limits.window),
            (setting::MAX_HEADER_LIST_SIZE, list),
            (setting::ENABLE_CONNECT_PROTOCOL, 1),
        ] {
            settings.extend_from_slice(&id.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        frame::write(&mut out, frame::SETTINGS, 0, 0, &settings);
        let inward = FIRST_WINDOW.max(4 * i64::from(limits.window));
        if let Ok(more @ 1..) = u32::try_from(inward - FIRST_WINDOW) {
            frame::write(&mut out, frame::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        }
        let remembered = REMEMBERED.max(2 * limits.streams as usize);
        Rc::new(Self {
            limits,
            state: RefCell::new(State::new(out, inward, i64::from(limits.window), remembered, now)),
            waker: Cell::new(None),
        })
    }

    /// The connection's task is to be woken when there is something to write.
    pub(super) fn listen(&self, waker: &Waker) {
        self.waker.set(Some(waker.clone()));
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Most of what a header block may be.
    fn largest(&self) -> usize {
        self.limits.list.saturating_mul(LARGER)
    }

    /// A whole frame. `begin` hears of a new stream; `spare` gives an empty map.
    pub(super) fn frame(
        self: &Rc<Self>,
        head: &Head,
        payload: &[u8],
        spare: impl FnOnce() -> HeaderMap,
        begin: &mut impl FnMut(Begun),
    ) -> Result<(), Fault> {
        let state = &mut *self.state.borrow_mut();
        if !std::mem::replace(&mut state.settled, true) && (head.kind != frame::SETTINGS || head.has(frame::ACK)) {
            return Err(PROTOCOL);
        }
        // Nothing may stand between the parts of a block (RFC 9113 6.10).
        let open = state.block.as_ref().map(|block| block.stream);
        if open.is_some_and(|stream| head.kind != frame::CONTINUATION || head.stream != stream) {
            return Err(PROTOCOL);
        }
        state.counts.frame(head)?;
        match head.kind {
            frame::HEADERS => self.headers(state, head, payload, spare(), begin),
            frame::CONTINUATION => {
                let Some(mut block) = state.block.take() else {
                    return Err(PROTOCOL);
                };
                block.frames += 1;
                let needed = self.limits.list / frame::PAYLOAD;
                if block.frames as usize > CONTINUATIONS.max(needed * 5 / 4) {
                    return Err(Fault::Flood("continuations"));
                }
                self.block(state, block, payload, head.has(frame::END_HEADERS), begin)
            }
            frame::DATA => state.data(head, payload),
            frame::RST_STREAM => state.reset_by_client(head, payload),
            frame::SETTINGS => state.settings(head, payload),
            frame::PING => state.ping(head, payload),
            frame::WINDOW_UPDATE => state.window_update(head, payload),
            frame::PRIORITY if head.stream == 0 => Err(PROTOCOL),
            frame::PRIORITY if payload.len() != 5 => Err(Fault::Error(Code::FrameSize)),
            frame::GOAWAY if head.stream != 0 => Err(PROTOCOL),
            frame::GOAWAY if payload.len() < 8 => Err(Fault::Error(Code::FrameSize)),
            frame::PUSH_PROMISE => Err(PROTOCOL),
            _ => Ok(()),
        }
    }

    fn headers(
        self: &Rc<Self>,
        state: &mut State,
        head: &Head,
        payload: &[u8],
        spare: HeaderMap,
        begin: &mut impl FnMut(Begun),
    ) -> Result<(), Fault> {
        if head.stream.is_multiple_of(2) {
            return Err(PROTOCOL);
        }
        let mut fragment = unpad(head, payload)?;
        if head.has(frame::WITH_PRIORITY) {
            fragment = fragment.get(5..).ok_or(Fault::Error(Code::FrameSize))?;
        }
        state.blocks += 1;
        let block = Block {
            stream: head.stream,
            end: head.has(frame::END_STREAM),
            fields: Fields::new(spare, self.limits.list),
            rest: Vec::new(),
            frames: 0,
            bytes: 0,
            number: state.blocks,
        };
        self.block(state, block, fragment, head.has(frame::END_HEADERS), begin)
    }

    /// The next part of a block.
    fn block(
        self: &Rc<Self>,
        state: &mut State,
        mut block: Block,
        fragment: &[u8],
        whole: bool,
        begin: &mut impl FnMut(Begun),
    ) -> Result<(), Fault> {
        // No field came yet: each counts something.
        let begins = block.fields.size() == 0;
        block.bytes += fragment.len();
        if block.bytes > self.largest() {
            return Err(Fault::Flood("header blocks"));
        }
        let bytes = if block.rest.is_empty() {
            Bytes::copy_from_slice(fragment)
        } else {
            block.rest.extend_from_slice(fragment);
            Bytes::from(std::mem::take(&mut block.rest))
        };
        let fields = &mut block.fields;
        let read = state
            .decoder
            .read(&bytes, begins, |field, size| fields.add(field, size))?;
        if fields.size() > self.largest() {
            return Err(Fault::Flood("header blocks"));
        }
        if !whole {
            block.rest = bytes[read..].to_vec();
            state.block = Some(block);
            return Ok(());
        }
        if read < bytes.len() {
            return Err(Fault::Error(Code::Compression));
        }
        if let Some(stream) = state.streams.get(&block.stream) {
            let stream = Rc::clone(stream);
            return state.trailers(&stream, block);
        }
        if block.stream <= state.last {
            return match state.reset.contains(&block.stream) {
                true => Ok(()),
                false => Err(Fault::Error(Code::StreamClosed)),
            };
        }
        state.last = block.stream;
        if state.going >= Going::Known || state.streams.len() >= self.limits.streams as usize {
            state.say_reset(block.stream, Code::RefusedStream);
            return Ok(());
        }
        let Some(head) = block.fields.request(block.end) else {
            state.say_reset(block.stream, Code::Protocol);
            return Ok(state.counts.error()?);
        };
        let inward = match state.acknowledged {
            true => state.own,
            false => state.own.max(FIRST_WINDOW),
        };
        let stream = Rc::new(Stream::new(
            Rc::clone(self),
            block.stream,
            (state.each, inward),
            head.length,
            block.end,
        ));
        state.streams.insert(block.stream, Rc::clone(&stream));
        begin(Begun { head, stream });
        Ok(())
    }

    /// Ends the connection: what is under way is over, and nothing more is read.
    pub(super) fn end(&self, code: Code) {
        let state = &mut *self.state.borrow_mut();
        if state.going < Going::Ends {
            state.say_goaway(state.last, code);
            state.going = Going::Ends;
        }
        state.abandon();
    }

    /// The client is gone.
    pub(super) fn gone(&self) {
        let state = &mut *self.state.borrow_mut();
        state.going = Going::Ends;
        state.out.clear();
        state.at = 0;
        state.abandon();
    }

    /// Goes away once what is under way is done (RFC 9113 6.8): the client is told, and when it has heard that, which stream was the
    /// last.
    pub(super) fn go(&self) {
        let state = &mut *self.state.borrow_mut();
        if state.going == Going::No {
            state.going = Going::Told;
            state.say_goaway(0x7fff_ffff, Code::No);
            frame::write(&mut state.out, frame::PING, 0, 0, &GOING);
        }
    }

    /// Nothing more is read.
    pub(super) fn ends(&self) -> bool {
        self.state.borrow().going == Going::Ends
    }

    /// The connection is to be closed.
    pub(super) fn is_over(&self) -> bool {
        let state = self.state.borrow();
        state.out.is_empty()
            && match state.going {
                Going::Ends => true,
                Going::Known => state.streams.is_empty(),
                Going::No | Going::Told => false,
            }
    }

    /// Too much waits to be written for more to be read.
    pub(super) fn is_full(&self) -> bool {
        let state = self.state.borrow();
        state.out.len() - state.at > FULL
    }

    /// Hands what is to be written to `write`, which tells how much was, until there is nothing or it takes nothing more.
    pub(super) fn write(&self, mut write: impl FnMut(&[u8]) -> Option<usize>) {
        let state = &mut *self.state.borrow_mut();
        let was_full = state.out.len() - state.at >= ROOM;
        while state.at < state.out.len() {
            let Some(n) = write(&state.out[state.at..]) else { break };
            state.at += n;
            state.counts.wrote(n);
        }
        if state.at == state.out.len() {
            state.out.clear();
            state.at = 0;
        } else if state.at > ROOM {
            state.out.drain(..state.at);
            state.at = 0;
        }
        if was_full && state.out.len() - state.at < ROOM {
            state.wake_waiting();
        }
    }

    /// The timer looks: at the counts, at memory that a quiet connection needs no more, and at a header block on its way; its number.
    pub(super) fn look(&self, now: Instant) -> Option<u64> {
        let state = &mut *self.state.borrow_mut();
        state.counts.look(now);
        if state.out.is_empty() {
            state.out = Vec::new();
        }
        if state.streams.is_empty() {
            state.streams.shrink_to_fit();
            state.waiting.shrink_to_fit();
            state.decoder.rest();
        }
        state.block.as_ref().map(|block| block.number)
    }
}

/// What streams do with the connection.
impl Core {
    /// How many bytes of a body may be sent now, at most `wanted`; 0 when the stream has to wait.
    pub(super) fn room(&self, stream: &Rc<Stream>, wanted: usize) -> usize {
        let state = &mut *self.state.borrow_mut();
        let shared = i64::try_from(ROOM.saturating_sub(state.out.len() - state.at)).unwrap_or(0);
        let window = stream.window.get();
        let room = window.min(state.window).min(shared).max(0);
        if room > 0 {
            state.served(stream);
        } else if window > 0 && !stream.waits.replace(true) {
            state.waiting.push_back(Rc::clone(stream));
        }
        usize::try_from(room).unwrap_or(0).min(wanted)
    }

    /// Whether the head of an answer may be sent now; else the stream is woken when it may.
    pub(super) fn has_room(&self, stream: &Rc<Stream>) -> bool {
        let state = &mut *self.state.borrow_mut();
        let has = state.out.len() - state.at < ROOM;
        if has {
            state.served(stream);
        } else if !stream.waits.replace(true) {
            state.waiting.push_back(Rc::clone(stream));
        }
        has
    }

    /// Sends a part of a body, for which there is [`Core::room`].
    pub(super) fn send_data(&self, stream: &Stream, data: &[u8], end: bool) {
        {
            let state = &mut *self.state.borrow_mut();
            state.window -= data.len() as i64;
            stream.window.set(stream.window.get() - data.len() as i64);
            let mut rest = data;
            loop {
                let (part, more) = rest.split_at(rest.len().min(frame::PAYLOAD));
                let flags = if end && more.is_empty() { frame::END_STREAM } else { 0 };
                frame::write(&mut state.out, frame::DATA, flags, stream.id, part);
                if more.is_empty() {
                    break;
                }
                rest = more;
            }
        }
        self.wake();
    }

    /// Sends a block of fields that `write` writes.
    pub(super) fn send_fields(&self, stream: &Stream, end: bool, write: impl FnOnce(&mut Vec<u8>)) {
        {
            let state = &mut *self.state.borrow_mut();
            let begun = state.out.len();
            let mut head = Head {
                length: 0,
                kind: frame::HEADERS,
                flags: if end { frame::END_STREAM } else { 0 },
                stream: stream.id,
            };
            // Its length is known in the end.
            state.out.extend_from_slice(&head.bytes());
            let first = state.out.len();
            if std::mem::take(&mut state.says_table) {
                state.out.push(hpack::NO_TABLE);
            }
            write(&mut state.out);
            head.length = state.out.len() - first;
            if head.length <= frame::PAYLOAD {
                head.flags |= frame::END_HEADERS;
                state.out[begun..first].copy_from_slice(&head.bytes());
            } else {
                // Rare: answers with very large fields.
                let block = state.out.split_off(first);
                state.out.truncate(begun);
                let count = block.chunks(frame::PAYLOAD).count();
                for (i, part) in block.chunks(frame::PAYLOAD).enumerate() {
                    let kind = if i == 0 { frame::HEADERS } else { frame::CONTINUATION };
                    let mut flags = if i == 0 { head.flags } else { 0 };
                    if i + 1 == count {
                        flags |= frame::END_HEADERS;
                    }
                    frame::write(&mut state.out, kind, flags, stream.id, part);
                }
            }
        }
        self.wake();
    }

    /// Resets a stream that has not ended.
    pub(super) fn send_reset(&self, stream: &Stream, code: Code) {
        self.state.borrow_mut().say_reset(stream.id, code);
        self.wake();
    }

    /// So many bytes of a body were read, or will not be: the client may send as many more. The `stream` may get more, too.
    pub(super) fn release(&self, stream: Option<&Stream>, bytes: usize) {
        let said = {
            let state = &mut *self.state.borrow_mut();
            let stream = stream.filter(|stream| !stream.received.get());
            state.release(bytes) | stream.is_some_and(|stream| state.grant(stream, bytes))
        };
        if said {
            self.wake();
        }
    }

    /// Nobody holds the stream any more.
    pub(super) fn forget(&self, stream: &Stream) {
        {
            let state = &mut *self.state.borrow_mut();
            state.streams.remove(&stream.id);
            state.served(stream);
        }
        // It may have been the last one that was waited for.
        self.wake();
    }
}

/// The timer's memory of a connection's header blocks.
#[derive(Debug, Default)]
pub(super) struct BlockWatch(Option<(u64, Instant)>);

impl BlockWatch {
    /// Whether the header block that is `open` has been on its way for longer than `most`.
    pub(super) fn is_late(&mut self, open: Option<u64>, most: Duration, now: Instant) -> bool {
        match (open, self.0) {
            (Some(open), Some((block, since))) if block == open => now.saturating_duration_since(since) >= most,
            _ => {
                self.0 = open.map(|open| (open, now));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
