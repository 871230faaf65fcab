//! With `MODE=h2c` the app speaks HTTP/2 without TLS by prior knowledge (RFC 9113 3.3), and nothing else. Every request is answered
//! as `GET /` is, so that none has to be understood: of their heads nothing is read.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use crate::{ANSWERED, IDLE, env, who};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// On DATA and HEADERS; the same bit is ACK on SETTINGS and PING.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Largest frame that is taken: nobody was allowed more.
const LARGEST: usize = 16_384;

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |n, byte| n << 8 | u32::from(*byte))
}

/// A field of an answer's head: literal, with a new name, not indexed (RFC 7541 6.2.2). All lengths here are below 127.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(0);
    for text in [name, value] {
        let short = &text.as_bytes()[..text.len().min(126)];
        out.push(u8::try_from(short.len()).unwrap_or(0));
        out.extend_from_slice(short);
    }
}

/// The answer on `stream`.
fn answer(out: &mut Vec<u8>, stream: u32, body: &[u8]) {
    // `:status: 200` of the static table (RFC 7541 appendix A).
    let mut head = vec![0x88];
    field(&mut head, "content-length", &body.len().to_string());
    field(&mut head, "x-instance", &env("CAAS_INSTANCE", "?"));
    field(&mut head, "x-version", &env("CAAS_VERSION", &env("HELLO_VERSION", "?")));
    frame(out, HEADERS, END_HEADERS, stream, &head);
    frame(out, DATA, END_STREAM, stream, body);
    ANSWERED.fetch_add(1, Ordering::SeqCst);
}

/// Serves one connection until it ends.
pub fn serve(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    let mut preface = [0; 24];
    stream.read_exact(&mut preface)?;
    if preface != *PREFACE {
        return Err(io::Error::other("this is no HTTP/2"));
    }
    let mut out = Vec::new();
    frame(&mut out, SETTINGS, 0, 0, &[]);
    let body = who(false).2;
    // What may be sent on the connection (RFC 9113 6.9); of a stream's own window an answer never needs all.
    let mut window = 65_535i64;
    let mut waiting = VecDeque::new();
    // Whether the request ends with its head, while that goes on.
    let mut ends = false;
    loop {
        while window >= body.len() as i64
            && let Some(asked) = waiting.pop_front()
        {
            window -= body.len() as i64;
            answer(&mut out, asked, &body);
        }
        stream.write_all(&out)?;
        out.clear();
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = number(&[0, head[0], head[1], head[2]]) as usize;
        let (kind, flags, id) = (head[3], head[4], number(&head[5..]) & 0x7fff_ffff);
        if length > LARGEST {
            return Err(io::Error::other("a frame is too large"));
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        match kind {
            DATA => {
                if length > 0 {
                    // What came may come again: on the connection, and on the stream.
                    let more = u32::try_from(length).unwrap_or(0).to_be_bytes();
                    frame(&mut out, WINDOW_UPDATE, 0, 0, &more);
                    frame(&mut out, WINDOW_UPDATE, 0, id, &more);
                }
                if flags & END_STREAM != 0 {
                    waiting.push_back(id);
                }
            }
            HEADERS | CONTINUATION => {
                ends = if kind == HEADERS { flags & END_STREAM != 0 } else { ends };
                if flags & END_HEADERS != 0 && ends {
                    waiting.push_back(id);
                }
            }
            SETTINGS if flags & END_STREAM == 0 => frame(&mut out, SETTINGS, END_STREAM, 0, &[]),
            PING if flags & END_STREAM == 0 => frame(&mut out, PING, END_STREAM, 0, &payload),
            WINDOW_UPDATE if id == 0 => window += i64::from(number(&payload) & 0x7fff_ffff),
            GOAWAY => return Ok(()),
            _ => {}
        }
    }
}
