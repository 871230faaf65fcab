//! HTTP/2 clients: one that writes single frames, right or wrong, and the `h2` crate for everything else.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::support::LIMIT;

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

/// A connection by the `h2` crate.
pub(crate) struct Client {
    pub(crate) send: SendRequest<Bytes>,
    /// Ends with the connection.
    pub(crate) task: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// An answer with everything that belongs to it.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) head: Response<()>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Whole {
    pub(crate) fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.head.headers().get(name).map_or("", |v| v.to_str().unwrap())
    }
}

impl Client {
    pub(crate) async fn open(at: SocketAddr) -> Self {
        Self::with(at, h2::client::Builder::new()).await
    }

    pub(crate) async fn with(at: SocketAddr, builder: h2::client::Builder) -> Self {
        let stream = TcpStream::connect(at).await.unwrap();
        let (send, connection) = builder.handshake(stream).await.unwrap();
        let task = tokio::spawn(connection);
        Self { send, task }
    }

    /// Sends a head; the body may follow unless `end`.
    pub(crate) async fn start(&mut self, request: Request<()>, end: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut ready = tokio::time::timeout(LIMIT, self.send.clone().ready())
            .await
            .expect("ready in time")
            .unwrap();
        ready.send_request(request, end).unwrap()
    }

    pub(crate) async fn get(&mut self, host: &str, path: &str) -> Whole {
        let request = Request::get(format!("http://{host}{path}")).body(()).unwrap();
        self.whole(request).await
    }

    /// A request without a body.
    pub(crate) async fn whole(&mut self, request: Request<()>) -> Whole {
        let (response, _) = self.start(request, true).await;
        finish(response).await.expect("an answer")
    }
}

/// The whole answer.
pub(crate) async fn finish(response: ResponseFuture) -> Result<Whole, h2::Error> {
    tokio::time::timeout(LIMIT, async {
        let (head, mut body) = response.await?.into_parts();
        let bytes = read(&mut body).await?;
        Ok(Whole {
            head: Response::from_parts(head, ()),
            body: bytes,
            trailers: body.trailers().await?,
        })
    })
    .await
    .expect("an answer in time")
}

async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend(data);
    }
    Ok(bytes)
}

/// Sends a body as the windows allow.
pub(crate) async fn upload(send: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len().min(65_536));
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
        let Some(room) = room else {
            return Err(h2::Reason::CANCEL.into());
        };
        let n = room?.min(data.len());
        let piece = data.split_to(n);
        send.send_data(piece, end && data.is_empty())?;
    }
    Ok(())
}

/// Waits at most [`LIMIT`] for something.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what).await.expect("in time")
}
