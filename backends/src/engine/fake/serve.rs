//! What listens for a fake container: answers any HTTP/1.1 request with 200 and a line of text. Bounded in connections,
//! head size and time; no more of HTTP than probes and gateways need.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use model::engine::EngineError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Open connections per container.
const MAX_CONNECTIONS: usize = 256;
/// Largest request head, bytes.
const MAX_HEAD: usize = 16 * 1024;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(75);

/// A listening container; it and its connections end when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    stop: DropGuard,
    listening: JoinHandle<()>,
}

impl Server {
    /// Ends it. Its port is free when what is given back has ended.
    pub(super) fn stop(self) -> JoinHandle<()> {
        drop(self.stop);
        self.listening
    }
}

/// Listens on `ip:port`.
pub(super) async fn serve(ip: IpAddr, port: u16, text: String) -> Result<Server, EngineError> {
    let listener = match TcpListener::bind(SocketAddr::new(ip, port)).await {
        Ok(listener) => listener,
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => return Err(EngineError::PortTaken(port)),
        Err(e) => return Err(EngineError::Refused(format!("can't listen on {ip}:{port}: {e}"))),
    };
    let stop = CancellationToken::new();
    let ended = stop.clone();
    let answer: Arc<str> = text.into();
    let listening = tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = tokio::select! {
                () = ended.cancelled() => return,
                place = Arc::clone(&places).acquire_owned() => place,
            };
            let stream = tokio::select! {
                () = ended.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    // Out of descriptors, say: not at once again.
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let (ended, answer) = (ended.clone(), Arc::clone(&answer));
            tokio::spawn(async move {
                let _place = place;
                tokio::select! {
                    () = ended.cancelled() => {}
                    // The client's end of the connection is its own affair.
                    _ = converse(stream, &answer) => {}
                }
            });
        }
    });
    Ok(Server {
        stop: stop.drop_guard(),
        listening,
    })
}

async fn converse(mut stream: TcpStream, answer: &str) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    loop {
        let end = loop {
            if let Some(at) = head.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if head.len() > MAX_HEAD {
                return Ok(());
            }
            match tokio::time::timeout(IDLE, stream.read_buf(&mut head)).await {
                Ok(Ok(n)) if n > 0 => {}
                _ => return Ok(()),
            }
        };
        let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
        // Bodies are not read: after one the connection is closed.
        let close = text.contains("\r\nconnection: close") || text.contains("\r\ntransfer-encoding:") || {
            let length = text
                .split("\r\ncontent-length:")
                .nth(1)
                .and_then(|rest| rest.split("\r\n").next());
            length.is_some_and(|l| l.trim() != "0")
        };
        let no_body = text.starts_with("head ");
        head.drain(..end);
        let response = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n{}\r\n{}",
            answer.len(),
            if close { "connection: close\r\n" } else { "" },
            if no_body { "" } else { answer },
        );
        stream.write_all(response.as_bytes()).await?;
        if close {
            return stream.shutdown().await;
        }
    }
}
