//! One proof of life: an HTTP request or a connection, within a deadline and with bounded reading.
//! It follows no redirect and never reads a body.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::HealthCheck;
use model::config::Protocol;
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
pub(crate) async fn probe(check: &HealthCheck, protocol: Protocol, address: SocketAddr) -> Proof {
    let deadline = Duration::from_millis(check.timeout_ms.into());
    let asked = async {
        match check.kind {
            ProbeKind::Http => http(&check.path, protocol, address).await,
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

async fn http(path: &str, protocol: Protocol, address: SocketAddr) -> Proof {
    let stream = match TcpStream::connect(address).await {
        Ok(stream) => TokioIo::new(stream),
        Err(e) => return Proof::Dead(format!("connect to {address}: {e}")),
    };
    let request = match request(path, protocol, address) {
        Ok(request) => request,
        Err(e) => return Proof::Dead(format!("GET {path} can't be sent: {e}")),
    };
    let status = match protocol {
        Protocol::H2c => ask_http2(stream, request).await,
        Protocol::Http | Protocol::Tcp => ask_http1(stream, request).await,
    };
    match status {
        Ok(status) => judge_status(path, protocol, status),
        Err(e) => Proof::Dead(format!("GET {path} at {address}: {}", describe(&e))),
    }
}

// The connection is driven here, beside the answer, and dropped with it: no body is ever read. Once the connection has ended,
// the answer has come or never will.

async fn ask_http1(stream: TokioIo<TcpStream>, request: Request<Empty<Bytes>>) -> Result<StatusCode, hyper::Error> {
    let (mut sender, connection) = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(stream).await?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
    .map(|answer| answer.status())
}

async fn ask_http2(stream: TokioIo<TcpStream>, request: Request<Empty<Bytes>>) -> Result<StatusCode, hyper::Error> {
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(MAX_HEAD as u32)
        .handshake(stream)
        .await?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
    .map(|answer| answer.status())
}

fn request(path: &str, protocol: Protocol, address: SocketAddr) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let request = Request::builder().header(USER_AGENT, "caas-registry-sync");
    match protocol {
        Protocol::H2c => request.uri(format!("http://{address}{path}")),
        Protocol::Http | Protocol::Tcp => request
            .uri(path)
            .header(HOST, HeaderValue::from_str(&address.to_string())?)
            .header(CONNECTION, "close"),
    }
    .body(Empty::new())
}

fn describe(error: &hyper::Error) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn judge_status(path: &str, protocol: Protocol, status: StatusCode) -> Proof {
    // gRPC servers that refuse what is not gRPC answer one of the others.
    let no_route = match protocol {
        Protocol::H2c => matches!(status.as_u16(), 404 | 405 | 415),
        Protocol::Http | Protocol::Tcp => status == StatusCode::NOT_FOUND,
    };
    if status.is_success() {
        Proof::Alive
    } else if no_route && path == DEFAULT_PATH {
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
        assert_eq!(probe(&check("/_ping"), Protocol::Http, ok).await, Proof::Alive);
        let missing = upstream(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(probe(&check("/_ping"), Protocol::Http, missing).await, Proof::Assumed);
        assert_eq!(
            probe(&check("/healthy"), Protocol::Http, missing).await,
            Proof::Dead("GET /healthy answered 404".into())
        );
        let elsewhere = upstream(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n").await;
        assert_eq!(
            probe(&check("/_ping"), Protocol::Http, elsewhere).await,
            Proof::Dead("GET /_ping answered 302".into())
        );
    }

    #[tokio::test]
    async fn what_is_no_http_or_no_answer_is_dead() {
        let banner = upstream(b"SSH-2.0-OpenSSH\r\n").await;
        assert!(matches!(
            probe(&check("/_ping"), Protocol::Http, banner).await,
            Proof::Dead(_)
        ));
        let silent = upstream(b"").await;
        let Proof::Dead(why) = probe(&check("/_ping"), Protocol::Http, silent).await else {
            panic!("it never answers")
        };
        assert!(why.contains("within 300 ms"), "{why}");
        let endless: &'static [u8] = Box::leak(vec![b'a'; 100_000].into_boxed_slice());
        assert!(matches!(
            probe(&check("/_ping"), Protocol::Http, upstream(endless).await).await,
            Proof::Dead(_)
        ));
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        assert!(matches!(
            probe(&check("/_ping"), Protocol::Http, closed).await,
            Proof::Dead(_)
        ));
        let tcp = HealthCheck {
            kind: ProbeKind::Tcp,
            ..check("/")
        };
        assert_eq!(probe(&tcp, Protocol::Http, silent).await, Proof::Alive);
        assert!(matches!(probe(&tcp, Protocol::Http, closed).await, Proof::Dead(_)));
        assert_eq!(probe(&tcp, Protocol::Http, speaks_first().await).await, Proof::Alive);
        let Proof::Dead(why) = probe(&tcp, Protocol::Http, hangs_up().await).await else {
            panic!("nobody listens behind it")
        };
        assert!(why.contains("closes them at once"), "{why}");
    }

    #[tokio::test]
    async fn apps_that_speak_http2_are_asked_in_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                        let status = match request.uri().path() {
                            "/_ping" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
                            "/healthy" => StatusCode::OK,
                            _ => StatusCode::SERVICE_UNAVAILABLE,
                        };
                        let mut answer = hyper::Response::new(Empty::<Bytes>::new());
                        *answer.status_mut() = status;
                        Ok::<_, std::convert::Infallible>(answer)
                    });
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        assert_eq!(probe(&check("/_ping"), Protocol::H2c, address).await, Proof::Assumed);
        assert_eq!(probe(&check("/healthy"), Protocol::H2c, address).await, Proof::Alive);
        assert_eq!(
            probe(&check("/ill"), Protocol::H2c, address).await,
            Proof::Dead("GET /ill answered 503".into())
        );
        assert!(matches!(
            probe(&check("/_ping"), Protocol::Http, address).await,
            Proof::Dead(_)
        ));
        let http1 = upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        assert!(matches!(
            probe(&check("/_ping"), Protocol::H2c, http1).await,
            Proof::Dead(_)
        ));
    }
}
