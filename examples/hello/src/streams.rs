//! Answers that last: server-sent events, and a WebSocket (RFC 6455) that echoes.

use std::io::{self, BufRead, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use base64::Engine as _;

use crate::{STOPPING, identity};

/// Messages are short here.
const MESSAGE_MAX: usize = 64 << 10;
/// How often an idle WebSocket looks whether the process is to end.
const LOOK: Duration = Duration::from_millis(50);

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// `count` events, `ms` milliseconds apart. They are sent to the end, also after SIGTERM.
pub fn drip(mut stream: &TcpStream, count: u64, ms: u64) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n{}connection: close\r\n\r\n",
        identity()
    )?;
    for number in 0..count.min(100_000) {
        let event = format!("data: {number}\n\n");
        write!(stream, "{:x}\r\n{event}\r\n", event.len())?;
        thread::sleep(Duration::from_millis(ms.min(60_000)));
    }
    stream.write_all(b"0\r\n\r\n")
}

/// Sends every message back until the client leaves; after SIGTERM it closes with 1001 (going away).
pub fn websocket(reader: &mut impl BufRead, mut stream: &TcpStream, key: &str) -> io::Result<()> {
    let digest = sha1_smol::Sha1::from(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")).digest().bytes();
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: {accept}\r\n{}\r\n",
        identity()
    )?;
    loop {
        stream.set_read_timeout(Some(LOOK))?;
        match reader.fill_buf() {
            Ok([]) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if STOPPING.load(Ordering::SeqCst) {
                    return send(stream, CLOSE, &1001u16.to_be_bytes());
                }
                continue;
            }
            Err(error) => return Err(error),
        }
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let (kind, message) = receive(reader)?;
        match kind {
            CLOSE => return send(stream, CLOSE, &message),
            PING => send(stream, PONG, &message)?,
            PONG => {}
            _ => send(stream, TEXT, &message)?,
        }
    }
}

/// One frame of the client, which must be whole (no fragments) and masked.
fn receive(reader: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    reader.read_exact(&mut head)?;
    let length = match head[1] & 0x7f {
        126 => {
            let mut long = [0; 2];
            reader.read_exact(&mut long)?;
            usize::from(u16::from_be_bytes(long))
        }
        127 => MESSAGE_MAX + 1,
        short => usize::from(short),
    };
    if head[0] & 0x80 == 0 || head[1] & 0x80 == 0 || length > MESSAGE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that is not whole, not masked or too long"));
    }
    let mut mask = [0; 4];
    reader.read_exact(&mut mask)?;
    let mut message = vec![0; length];
    reader.read_exact(&mut message)?;
    for (byte, mask) in message.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok((head[0] & 0x0f, message))
}

fn send(mut stream: &TcpStream, kind: u8, message: &[u8]) -> io::Result<()> {
    let mut frame = vec![0x80 | kind];
    match u8::try_from(message.len()) {
        Ok(short @ 0..126) => frame.push(short),
        _ => {
            let length = u16::try_from(message.len()).map_err(io::Error::other)?;
            frame.push(126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
    }
    frame.extend_from_slice(message);
    stream.write_all(&frame)
}
