//! An HTTP/2 client that writes single frames, right or wrong; shared with `caas/tests/corpus` like [`super::peers`].

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::peers::LIMIT;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const PRIORITIZED: u8 = 32;
/// A whole request without a body.
pub(crate) const WHOLE: u8 = END_STREAM | END_HEADERS;

/// The bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn string(bytes: &mut Vec<u8>, text: &[u8]) {
    // RFC 7541 5.1 and 5.2, never Huffman.
    if text.len() < 127 {
        bytes.push(u8::try_from(text.len()).unwrap());
    } else {
        bytes.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            bytes.push(u8::try_from(rest % 128 + 128).unwrap());
            rest /= 128;
        }
        bytes.push(u8::try_from(rest).unwrap());
    }
    bytes.extend(text);
}

/// Fields as a header block: literals that stay out of the table (RFC 7541 6.2.2).
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        string(&mut bytes, name.as_bytes());
        string(&mut bytes, value.as_bytes());
    }
    bytes
}

/// The fields of a GET to app `hello`, and more.
pub(crate) fn get<'a>(path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<u8> {
    request("GET", path, more)
}

pub(crate) fn request<'a>(method: &'a str, path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<u8> {
    let mut fields = vec![
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "hello.localhost"),
    ];
    fields.extend(more);
    block(&fields)
}

/// A frame as it came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The code of a RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status of a HEADERS frame that begins with it: from the static table (RFC 7541 appendix A), or as a literal of which
    /// digits are plain or in Huffman's code (appendix B); else 0.
    pub(crate) fn status(&self) -> u16 {
        match self.payload[0] {
            0x88 => 200,
            0x89 => 204,
            0x8c => 400,
            0x8d => 404,
            0x8e => 500,
            0x08 | 0x18 | 0x48 => {
                let text = &self.payload[2..2 + usize::from(self.payload[1] & 127)];
                if self.payload[1] & 128 == 0 {
                    return std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).unwrap_or(0);
                }
                // 0, 1 and 2 have five bits, the other digits six: 011001 and on.
                let bits = text.iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
                let mut left = text.len() * 8;
                let mut status = 0;
                for _ in 0..3 {
                    let five = (bits >> (left - 5) & 31) as u16;
                    let digit = if five < 3 {
                        left -= 5;
                        five
                    } else {
                        left -= 6;
                        (bits >> left & 63) as u16 - 22
                    };
                    status = status * 10 + digit;
                }
                status
            }
            _ => 0,
        }
    }
}

/// A client that knows only frames.
pub(crate) struct Raw {
    read: Reader,
    write: OwnedWriteHalf,
}

/// What comes to it.
pub(crate) struct Reader {
    stream: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Raw {
    /// Connected; nothing is sent.
    pub(crate) async fn silent(at: SocketAddr) -> Self {
        let (stream, write) = TcpStream::connect(at).await.unwrap().into_split();
        let buffer = Vec::new();
        Self {
            read: Reader { stream, buffer },
            write,
        }
    }

    /// For who does both at once.
    pub(crate) fn split(self) -> (Reader, OwnedWriteHalf) {
        (self.read, self.write)
    }

    /// Connected, with preface and settings exchanged.
    pub(crate) async fn open(at: SocketAddr) -> Self {
        let mut raw = Self::silent(at).await;
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        let settings = raw.next().await.expect("settings");
        assert_eq!((settings.kind, settings.flags), (SETTINGS, 0));
        raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
        raw
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // Whoever has refused already may have closed.
        let _ = self.write.write_all(bytes).await;
    }

    pub(crate) async fn next(&mut self) -> Option<Frame> {
        self.read.next().await
    }

    pub(crate) async fn find(&mut self, wanted: impl FnMut(&Frame) -> bool) -> Option<Frame> {
        self.read.find(wanted).await
    }

    pub(crate) async fn last_words(&mut self) -> Option<u32> {
        self.read.last_words().await
    }
}

impl Reader {
    /// The next frame, or none when the other side has closed. Fails when neither comes.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        tokio::time::timeout(LIMIT, self.read())
            .await
            .expect("a frame or the end")
    }

    async fn read(&mut self) -> Option<Frame> {
        loop {
            if self.buffer.len() >= 9 {
                let b = &self.buffer;
                let length = usize::from(b[0]) << 16 | usize::from(b[1]) << 8 | usize::from(b[2]);
                if b.len() >= 9 + length {
                    let mut bytes: Vec<u8> = self.buffer.drain(..9 + length).collect();
                    let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
                    return Some(Frame {
                        kind: bytes[3],
                        flags: bytes[4],
                        stream,
                        payload: bytes.split_off(9),
                    });
                }
            }
            let mut chunk = [0; 16_384];
            match self.stream.read(&mut chunk).await {
                Ok(n @ 1..) => self.buffer.extend_from_slice(&chunk[..n]),
                _ => return None,
            }
        }
    }

    /// Reads on to the frame wanted; none when the other side closes before.
    pub(crate) async fn find(&mut self, mut wanted: impl FnMut(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// Reads to the end; the code of the last GOAWAY, if there was one.
    pub(crate) async fn last_words(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                code = Some(frame.code());
            }
        }
        code
    }
}
