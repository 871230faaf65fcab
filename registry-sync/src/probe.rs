//! One proof of life: an HTTP request or a connection, within a deadline and with bounded reading.
//! It follows no redirect and never reads a body.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use model::HealthCheck;
use model::spec::ProbeKind;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Alive.
    Alive,
    /// It answers HTTP but has no route at the default path: alive by assumption.
    Assumed,
    /// Not alive, and why.
    Dead(String),
}

/// The path that apps need not have: a 404 there still proves that the app answers.
const DEFAULT_PATH: &str = "/_ping";

/// Largest head of an answer that is read (the smallest that the HTTP library accepts).
const MAX_HEAD: usize = 8 * 1024;

/// So long a connection must stay open to be proof enough; shorter than the shortest time-out of a probe.
const STAYS_OPEN: Duration = Duration::from_millis(30);

/// Asks the instance at `address` over the network. `Heartbeat` is not asked here: it reports by itself.
pub(crate) async fn probe(check: &HealthCheck, address: SocketAddr) -> Proof {
    let deadline = Duration::from_millis(check.timeout_ms.into());
    let asked = async {
        match check.kind {
            ProbeKind::Http => http(&check.path, address).await,
            ProbeKind::Tcp => tcp(address).await,
            ProbeKind::Heartbeat | ProbeKind::None => Proof::Alive,
        }
    };
    match tokio::time::timeout(deadline, asked).await {
        Ok(proof) => proof,
        Err(_) => Proof::Dead(format!("no answer from {address} within {} ms", deadline.as_millis())),
    }
}

/// Whether a connection stays open. Docker's proxy for ports on a host's own addresses accepts before it knows whether anybody
/// listens in the container, and hangs up at once if not.
async fn tcp(address: SocketAddr) -> Proof {
    let mut stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(e) => return Proof::Dead(format!("connect to {address}: {e}")),
    };
    match tokio::time::timeout(STAYS_OPEN, stream.read_u8()).await {
        // Silent, or it speaks first as MySQL does.
        Err(_) | Ok(Ok(_)) => Proof::Alive,
        Ok(Err(_)) => Proof::Dead(format!("{address} accepts connections and closes them at once")),
    }
}

async fn http(path: &str, address: SocketAddr) -> Proof {
    let stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(e) => return Proof::Dead(format!("connect to {address}: {e}")),
    };
    let handshake = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = match handshake {
        Ok(pair) => pair,
        Err(e) => return Proof::Dead(format!("GET {path} at {address}: {e}")),
    };
    let request = match request(path, address) {
        Ok(request) => request,
        Err(e) => return Proof::Dead(format!("GET {path} can't be sent: {e}")),
    };
    let mut answer = std::pin::pin!(sender.send_request(request));
    // The connection is driven here, beside the answer, and dropped with it: no body is ever read.
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // Once the connection has ended, the answer has come or never will.
        _ = connection => answer.await,
    };
    let status = answer.map(|r| r.status()).map_err(|e| describe(&e));
    match status {
        Ok(status) => judge_status(path, status),
        Err(e) => Proof::Dead(format!("GET {path} at {address}: {e}")),
    }
}

fn request(path: &str, address: SocketAddr) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let host = HeaderValue::from_str(&address.to_string())?;
    Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, "caas-registry-sync")
        .header(CONNECTION, "close")
        .body(Empty::new())
}

fn describe(error: &hyper::Error) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn judge_status(path: &str, status: StatusCode) -> Proof {
    if status.is_success() {
        Proof::Alive
    } else if status == StatusCode::NOT_FOUND && path == DEFAULT_PATH {
        Proof::Assumed
    } else {
        Proof::Dead(format!("GET {path} answered {}", status.as_u16()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    /// Answers each connection with `bytes` after its request and keeps it open.
    async fn upstream(bytes: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(bytes).await;
                open.push(stream);
            }
        });
        address
    }

    /// Accepts and hangs up, as Docker's proxy does while nobody listens in the container.
    async fn hangs_up() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        address
    }

    async fn speaks_first() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"hello").await;
            }
        });
        address
    }

    fn check(path: &str) -> HealthCheck {
        HealthCheck {
            path: path.into(),
            timeout_ms: 300,
            ..HealthCheck::default()
        }
    }

    #[tokio::test]
    async fn answers_are_judged_by_status_alone() {
        let ok = upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nnever the rest").await;
        assert_eq!(probe(&check("/_ping"), ok).await, Proof::Alive);
        let missing = upstream(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(probe(&check("/_ping"), missing).await, Proof::Assumed);
        assert_eq!(
            probe(&check("/healthy"), missing).await,
            Proof::Dead("GET /healthy answered 404".into())
        );
        let elsewhere = upstream(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n").await;
        assert_eq!(
            probe(&check("/_ping"), elsewhere).await,
            Proof::Dead("GET /_ping answered 302".into())
        );
    }

    #[tokio::test]
    async fn what_is_no_http_or_no_answer_is_dead() {
        let banner = upstream(b"SSH-2.0-OpenSSH\r\n").await;
        assert!(matches!(probe(&check("/_ping"), banner).await, Proof::Dead(_)));
        let silent = upstream(b"").await;
        let Proof::Dead(why) = probe(&check("/_ping"), silent).await else {
            panic!("it never answers")
        };
        assert!(why.contains("within 300 ms"), "{why}");
        let endless: &'static [u8] = Box::leak(vec![b'a'; 100_000].into_boxed_slice());
        assert!(matches!(
            probe(&check("/_ping"), upstream(endless).await).await,
            Proof::Dead(_)
        ));
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        assert!(matches!(probe(&check("/_ping"), closed).await, Proof::Dead(_)));
        let tcp = HealthCheck {
            kind: ProbeKind::Tcp,
            ..check("/")
        };
        assert_eq!(probe(&tcp, silent).await, Proof::Alive);
        assert!(matches!(probe(&tcp, closed).await, Proof::Dead(_)));
        assert_eq!(probe(&tcp, speaks_first().await).await, Proof::Alive);
        let Proof::Dead(why) = probe(&tcp, hangs_up().await).await else {
            panic!("nobody listens behind it")
        };
        assert!(why.contains("closes them at once"), "{why}");
    }
}
