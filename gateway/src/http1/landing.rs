//! Where the beginning of an answer arrives: space that a worker's connections share, since most answers are short. Short ones are
//! copied out of it; a long one takes the space along, and the next answer gets a new one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// Most bytes that arrive at once.
pub(super) const SPACE: usize = 64 * 1024;

/// From so many bytes on, copying them costs more than new space; and whoever holds them holds at most twice as many.
pub(super) const LONG: usize = SPACE / 2;

/// The space, and what has arrived.
#[derive(Debug, Default)]
pub(crate) struct Landing(BytesMut);

impl Landing {
    /// Reads; what came is there for [`Landing::take`].
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, from: &mut TcpStream) -> Poll<io::Result<usize>> {
        make_room(&mut self.0, SPACE);
        poll_read_buf(Pin::new(from), cx, &mut (&mut self.0).limit(SPACE))
    }

    /// What came.
    pub(super) fn take(&mut self) -> Bytes {
        if self.0.len() >= LONG {
            return self.0.split().freeze();
        }
        let short = Bytes::copy_from_slice(&self.0);
        self.0.clear();
        short
    }
}

/// Makes room for so many bytes in an empty buffer: in the memory that it has, if nobody else holds any of it. [`BytesMut::reserve`]
/// would copy what nobody needs any more.
pub(crate) fn make_room(buffer: &mut BytesMut, bytes: usize) {
    if !buffer.try_reclaim(bytes) {
        *buffer = BytesMut::with_capacity(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ones_are_copied_and_long_ones_take_the_space_along() {
        let mut landing = Landing::default();
        make_room(&mut landing.0, SPACE);
        let space = landing.0.as_ptr();
        landing.0.put_slice(b"short");
        let short = landing.take();
        assert_eq!((&short[..], short.as_ptr() == space), (&b"short"[..], false));
        make_room(&mut landing.0, SPACE);
        assert_eq!(landing.0.as_ptr(), space);
        landing.0.put_bytes(b'x', LONG);
        let long = landing.take();
        assert_eq!((long.len(), long.as_ptr() == space), (LONG, true));
        // Held by somebody: the next one arrives elsewhere. Given back: in the same place.
        make_room(&mut landing.0, SPACE);
        assert_ne!(landing.0.as_ptr(), space);
        let (other, held) = (landing.0.as_ptr(), long);
        landing.0.put_bytes(b'y', SPACE);
        drop(landing.take());
        make_room(&mut landing.0, SPACE);
        assert_eq!(landing.0.as_ptr(), other);
        assert!(held.iter().all(|b| *b == b'x'));
    }
}
