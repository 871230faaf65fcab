//! A WebSocket client (RFC 6455), as little of it as scenarios need: short text messages, and how the connection ends.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::wait::expect;

/// Key and answer of RFC 6455, 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const MASK: [u8; 4] = [7, 13, 21, 42];

/// An open WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    /// `x-instance` of the handshake: who is at the other end.
    pub instance: String,
    stream: BufReader<TcpStream>,
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A text message.
    Text(String),
    /// A farewell with its code.
    Close(u16),
}

impl WebSocket {
    /// Opens `/ws` of the app that answers to `domain`.
    pub async fn open(gateway: SocketAddr, domain: &str) -> Result<Self> {
        let mut stream = BufReader::new(TcpStream::connect(gateway).await?);
        let request = format!(
            "GET /ws HTTP/1.1\r\nhost: {domain}\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < 16_384 {
            head.push(tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await??);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let sound = head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT);
        expect(sound, || format!("the handshake failed: {head}"))?;
        let instance = head
            .lines()
            .find_map(|line| line.strip_prefix("x-instance: "))
            .context("no x-instance")?;
        Ok(Self {
            instance: instance.to_owned(),
            stream,
        })
    }

    /// Sends a message of less than 126 bytes.
    pub async fn say(&mut self, text: &str) -> Result<()> {
        let length = u8::try_from(text.len()).context("a short message")?;
        expect(length < 126, || format!("{length} bytes are too long"))?;
        let mut frame = vec![0x81, 0x80 | length];
        frame.extend_from_slice(&MASK);
        frame.extend(text.bytes().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        Ok(self.stream.write_all(&frame).await?)
    }

    /// The next frame, within 10 s; a connection that just ends is an error.
    pub async fn hear(&mut self) -> Result<Frame> {
        let read = async {
            let [first, length] = [self.stream.read_u8().await?, self.stream.read_u8().await?];
            expect(length < 126, || format!("a frame of length code {length}"))?;
            let mut message = vec![0; usize::from(length)];
            self.stream.read_exact(&mut message).await?;
            match (first, message.as_slice()) {
                (0x81, text) => Ok(Frame::Text(String::from_utf8_lossy(text).into_owned())),
                (0x88, [high, low, ..]) => Ok(Frame::Close(u16::from_be_bytes([*high, *low]))),
                _ => bail!("an unexpected frame: {first:#x} {message:?}"),
            }
        };
        tokio::time::timeout(Duration::from_secs(10), read)
            .await
            .context("no frame within 10 s")?
    }
}
