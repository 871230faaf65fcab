//! Clients and upstreams that know nothing of the gateway but its addresses: of the tests here, which run it in their own process, and
//! of those that run the binary (`caas/tests/corpus`).

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest wait for anything in these tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Sends bytes and reads until the other side closes, at most [`LIMIT`].
pub(crate) async fn exchange(at: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    // A gateway that has refused already may have closed.
    let _ = stream.write_all(bytes).await;
    let mut got = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut got)).await;
    got
}

/// One request on a connection of its own.
pub(crate) async fn get_from(at: SocketAddr, host: &str, path: &str) -> Answer {
    send_to(
        at,
        &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
    )
    .await
}

/// Sends the text and reads everything until the other side closes. Interim answers are left out.
pub(crate) async fn send_to(at: SocketAddr, text: &str) -> Answer {
    let mut got = exchange(at, text.as_bytes()).await;
    loop {
        let answer = Answer::parse(&got);
        if !matches!(answer.status, 100 | 102..=199) {
            return answer;
        }
        got.drain(..got.len().min(answer.head.len() + 4));
    }
}

/// The value of the metric with exactly these labels at a gateway's admin port.
pub(crate) async fn metric_at(admin: SocketAddr, line: &str) -> f64 {
    let page = get_from(admin, "a", "/metrics").await.body;
    page.lines()
        .find_map(|l| l.strip_prefix(line).and_then(|rest| rest.trim().parse().ok()))
        .unwrap_or(0.0)
}

/// Reads until `mark` has come.
pub(crate) async fn read_until(stream: &mut TcpStream, mark: &str) -> String {
    let mut got = Vec::new();
    let reading = async {
        let mut buffer = [0; 4_096];
        while !String::from_utf8_lossy(&got).contains(mark) {
            match stream.read(&mut buffer).await {
                Ok(n @ 1..) => got.extend_from_slice(&buffer[..n]),
                _ => break,
            }
        }
    };
    let _ = tokio::time::timeout(LIMIT, reading).await;
    String::from_utf8_lossy(&got).into_owned()
}

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        Self {
            status: head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let name = format!("{name}: ");
        self.head.lines().find_map(|l| l.strip_prefix(name.as_str()))
    }

    pub(crate) fn reason(&self) -> &str {
        self.header("x-caas-reason").unwrap_or("")
    }
}

/// A request as an upstream saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let name = format!("{name}: ");
        self.head
            .lines()
            .filter_map(|l| l.strip_prefix(name.as_str()))
            .collect()
    }

    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or("")
    }
}

/// An upstream that reads strictly, remembers what it saw and answers its name.
#[derive(Clone)]
pub(crate) struct Recorder {
    pub(crate) at: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    /// Bytes that were no request.
    pub(crate) junk: Arc<Mutex<Vec<String>>>,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Recorder {
    pub(crate) async fn start(name: &'static str) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let junk = Arc::new(Mutex::new(Vec::new()));
        let (seen2, junk2) = (Arc::clone(&seen), Arc::clone(&junk));
        let (at, connections) = upstream(move |mut stream, _| {
            let (seen, junk) = (Arc::clone(&seen2), Arc::clone(&junk2));
            async move {
                let mut buffer = Vec::new();
                loop {
                    match read_request(&mut stream, &mut buffer).await {
                        Ok(Some(request)) => {
                            let close = request.head.contains("connection: close");
                            let head_only = request.head.starts_with("HEAD ");
                            seen.lock().unwrap().push(request);
                            let body = if head_only { "" } else { name };
                            let answer = format!(
                                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-name: {name}\r\n\r\n{body}",
                                name.len()
                            );
                            if stream.write_all(answer.as_bytes()).await.is_err() || close {
                                return;
                            }
                        }
                        Ok(None) => return,
                        Err(text) => {
                            junk.lock().unwrap().push(text);
                            return;
                        }
                    }
                }
            }
        })
        .await;
        Self {
            at,
            seen,
            junk,
            connections,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().cloned().expect("a request")
    }
}

/// Reads one request, strictly. `Ok(None)` at a clean end.
pub(crate) async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<Seen>, String> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if !more(stream, buffer).await {
            return if buffer.is_empty() {
                Ok(None)
            } else {
                Err(String::from_utf8_lossy(buffer).into_owned())
            };
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    let seen = Seen { head, body: Vec::new() };
    let lengths = seen.header("content-length");
    let encodings = seen.header("transfer-encoding");
    let mut body = Vec::new();
    match (lengths.as_slice(), encodings.as_slice()) {
        ([], []) => {}
        ([length], []) => {
            let length: usize = length.parse().map_err(|_| format!("bad length in {}", seen.head))?;
            while buffer.len() < length {
                if !more(stream, buffer).await {
                    return Err(format!("body cut: {}", seen.head));
                }
            }
            body.extend(buffer.drain(..length));
        }
        ([], ["chunked"]) => loop {
            let line_end = loop {
                if let Some(at) = buffer.windows(2).position(|w| w == b"\r\n") {
                    break at;
                }
                if !more(stream, buffer).await {
                    return Err(format!("chunks cut: {}", seen.head));
                }
            };
            let size =
                usize::from_str_radix(&String::from_utf8_lossy(&buffer[..line_end]), 16).map_err(|e| e.to_string())?;
            buffer.drain(..line_end + 2);
            while buffer.len() < size + 2 {
                if !more(stream, buffer).await {
                    return Err(format!("chunk cut: {}", seen.head));
                }
            }
            body.extend(buffer.drain(..size));
            buffer.drain(..2);
            if size == 0 {
                break;
            }
        },
        _ => return Err(format!("ambiguous framing: {}", seen.head)),
    }
    Ok(Some(Seen { body, ..seen }))
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 16_384];
    match stream.read(&mut chunk).await {
        Ok(n @ 1..) => {
            buffer.extend_from_slice(&chunk[..n]);
            true
        }
        _ => false,
    }
}

/// An upstream that does with each connection (the nth) as told.
pub(crate) async fn upstream<F, T>(mut serve: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: FnMut(TcpStream, usize) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream, n));
        }
    });
    (at, count)
}
