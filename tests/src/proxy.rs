//! A TCP proxy that delays or cuts what goes through it: a slow or broken line between two parts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// The proxy; dropping it closes its port and connections.
#[derive(Debug)]
pub struct Proxy {
    /// Where to connect instead.
    pub address: SocketAddr,
    line: Arc<Line>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Line {
    delay_ms: AtomicU64,
    cut: AtomicBool,
}

impl Proxy {
    /// A proxy on loopback in front of `target`.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let proxy = Self {
            address: listener.local_addr()?,
            line: Arc::default(),
            stop: CancellationToken::new(),
        };
        let (line, stop) = (proxy.line.clone(), proxy.stop.clone());
        tokio::spawn(async move {
            while let Some(Ok((client, _))) = stop.run_until_cancelled(listener.accept()).await {
                let line = line.clone();
                let stop = stop.clone();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(target).await else {
                        return;
                    };
                    let (client_read, client_write) = client.into_split();
                    let (server_read, server_write) = server.into_split();
                    let there = pump(client_read, server_write, &line);
                    let back = pump(server_read, client_write, &line);
                    stop.run_until_cancelled(async { tokio::join!(there, back) }).await;
                });
            }
        });
        Ok(proxy)
    }

    /// Each piece of data waits this long in each direction.
    pub fn delay(&self, delay: Duration) {
        self.line
            .delay_ms
            .store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Nothing goes through any more, and nobody is told; `false` lets it flow again.
    pub fn cut(&self, cut: bool) {
        self.line.cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn pump(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    line: &Line,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut buffer).await?;
        while line.cut.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(line.delay_ms.load(Ordering::Relaxed))).await;
        if n == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..n]).await?;
    }
}
