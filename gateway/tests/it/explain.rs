//! What `/explain` says of a request, and what becomes of the same request when it is sent: the two must never differ.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use certificates::SealingKeys;
use gateway::Config;
use model::AppConfig;
use model::config::{Limits, Protocol};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::acme::{challenge, none};
use crate::support::*;
use crate::tls_support::Authority;

/// Who sends a request unless a row says otherwise; denied everywhere; trusted as a proxy.
const CLIENT: &str = "127.0.0.1";
const DENIED: &str = "127.0.0.9";
const PROXY: &str = "127.0.0.8";

/// Answers that nobody can foretell: they depend on the bytes of a request, on rates (asking would count), or on what an endpoint
/// does once it is asked.
const NOT_TOLD: [&str; 15] = [
    "bad_head",
    "plain_http",
    "bad_proxy_header",
    "bad_body",
    "head_too_large",
    "target_too_long",
    "request_timeout",
    "rate_limited",
    "bad_answer",
    "upstream_closed",
    "connect_failed",
    "not_identified",
    "bad_upgrade",
    "too_many_connections",
    "upstream_timeout",
];

/// A request, and what is to become of it.
struct Row {
    outcome: &'static str,
    host: &'static str,
    path: &'static str,
    method: &'static str,
    /// Lines as `Name: value`.
    headers: &'static [&'static str],
    body: &'static str,
    client: &'static str,
    /// By TLS to this name.
    server_name: Option<&'static str>,
}

impl Row {
    fn new(outcome: &'static str, host: &'static str) -> Self {
        Self {
            outcome,
            host,
            path: "/",
            method: "GET",
            headers: &[],
            body: "",
            client: CLIENT,
            server_name: None,
        }
    }

    fn path(self, path: &'static str) -> Self {
        Self { path, ..self }
    }

    fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    fn headers(self, headers: &'static [&'static str]) -> Self {
        Self { headers, ..self }
    }

    fn body(self, body: &'static str) -> Self {
        Self { body, ..self }
    }

    fn from(self, client: &'static str) -> Self {
        Self { client, ..self }
    }

    fn tls(self, name: &'static str) -> Self {
        Self {
            server_name: Some(name),
            ..self
        }
    }

    /// The question about it.
    fn question(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("host", self.host).append_pair("path", self.path);
        query
            .append_pair("method", self.method)
            .append_pair("client", self.client);
        for header in self.headers {
            query.append_pair("header", header);
        }
        if let Some(name) = self.server_name {
            query.append_pair("https", "1");
            if name != self.host {
                query.append_pair("server_name", name);
            }
        }
        format!("/explain?{}", query.finish())
    }

    /// The request itself.
    fn text(&self) -> String {
        let headers: String = self.headers.iter().map(|line| format!("{line}\r\n")).collect();
        let close = match headers.contains("Upgrade") {
            true => "",
            false => "Connection: close\r\n",
        };
        let Self {
            method,
            path,
            host,
            body,
            ..
        } = self;
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}{close}\r\n{body}")
    }
}

/// Sends the text and reads until the answer has come whole.
async fn sent(mut stream: impl AsyncRead + AsyncWrite + Unpin, text: &str) -> Answer {
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.flush().await;
    let mut got = Vec::new();
    let deadline = Instant::now() + LIMIT;
    loop {
        let answer = Answer::parse(&got);
        let length = answer.header("content-length").and_then(|l| l.parse().ok());
        if got.windows(4).any(|w| w == b"\r\n\r\n") && length == Some(answer.body.len()) {
            return answer;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, stream.read_buf(&mut got)).await {
            Ok(Ok(1..)) => {}
            _ => return answer,
        }
    }
}

async fn connect(client: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{client}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

/// What the gateway says of each row, and does with it. The reasons that were met.
async fn compare(gateway: &Gateway, authority: &Authority, rows: &[Row]) -> BTreeSet<String> {
    let mut met = BTreeSet::new();
    for row in rows {
        let question = row.question();
        let told: Value = serde_json::from_str(&gateway.admin(&question).await.body)
            .unwrap_or_else(|error| panic!("{question}: {error}"));
        assert_eq!(told["outcome"], row.outcome, "{question}: {told}");
        let answer = match row.server_name {
            None => sent(connect(row.client, gateway.http).await, &row.text()).await,
            Some(name) => {
                let stream = connect(row.client, gateway.https.unwrap()).await;
                match authority.browser().over(stream, name).await {
                    Ok(stream) => sent(stream, &row.text()).await,
                    Err(_) => Answer::parse(b""),
                }
            }
        };
        let said = (told["status"].as_u64().unwrap_or(0), told["location"].as_str());
        match row.outcome {
            // An app has answered it, or nobody.
            "forward" => assert_eq!((answer.status, answer.reason()), (200, ""), "{question}"),
            "passthrough" => assert_eq!((answer.status, answer.body.as_str()), (200, "vault"), "{question}"),
            _ if said.0 == 0 => assert_eq!(answer.status, 0, "{question}: {}", answer.head),
            reason => {
                assert_eq!(
                    (answer.status, answer.reason()),
                    (said.0 as u16, reason),
                    "{question}: {}",
                    answer.head
                );
                assert_eq!(answer.header("location"), said.1, "{question}");
                met.insert(reason.to_owned());
            }
        }
    }
    met
}

/// An app that takes requests and says nothing.
async fn silent() -> SocketAddr {
    let (at, _) = upstream(|mut stream, _| async move {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    at
}

/// An app that speaks TLS itself.
async fn vault(authority: &Authority) -> SocketAddr {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject as _;
    let (chain, key) = authority.issue(&["vault.localhost"]);
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![crate::tls_support::der(&chain)], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let (at, _) = upstream(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut tls) = acceptor.accept(stream).await {
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nvault";
                let _ = tls.write_all(answer.as_bytes()).await;
                let _ = tls.shutdown().await;
            }
        }
    })
    .await;
    at
}

fn app(change: impl FnOnce(&mut AppConfig)) -> AppConfig {
    let mut app = AppConfig::default();
    change(&mut app);
    app
}

fn limits(limits: Limits) -> AppConfig {
    app(|app| app.limits = limits)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_explain_says_is_what_happens() {
    let authority = Authority::new();
    authority.put("hello", &["hello.localhost", "secure.localhost"]);
    let keys_file = authority.dir.path().join("sealing.keys");
    SealingKeys::ensure(&keys_file).unwrap();
    let keys = SealingKeys::load(&keys_file).unwrap();
    let config = Config {
        certificates_key_file: Some(keys_file),
        deny: vec![format!("{DENIED}/32").parse().unwrap()],
        trusted_proxies: vec![format!("{PROXY}/32").parse().unwrap()],
        ..authority.config()
    };
    let (hello, hold, dead) = (Recorder::start("hello").await, silent().await, refusing().await);
    let own = vault(&authority).await;
    let entries = [
        ("hello", "1", "a", hello.at),
        ("secure", "1", "b", hello.at),
        ("picky", "1", "c", hello.at),
        ("database", "1", "d", hello.at),
        ("vault", "1", "e", own),
        ("busy", "1", "f", hold),
        ("full", "1", "g", hold),
        ("dark", "1", "h", dead),
        ("grpc", "1", "i", hello.at),
        ("small", "1", "j", hello.at),
        ("shut", "1", "k", own),
    ];
    let tcp = |change: fn(&mut AppConfig)| {
        app(|app| {
            app.protocol = Protocol::Tcp;
            change(app);
        })
    };
    let deny = vec!["127.0.0.0/29".parse().unwrap(), "203.0.113.0/24".parse().unwrap()];
    let configs = [
        ("hello", app(|app| app.domains = vec!["shop.example.com".into()])),
        ("secure", app(|app| app.redirect_https = true)),
        (
            "picky",
            limits(Limits {
                deny,
                ..Limits::default()
            }),
        ),
        ("database", tcp(|_| {})),
        ("vault", tcp(|app| app.tcp.passthrough = true)),
        (
            "shut",
            tcp(|app| {
                app.tcp.passthrough = true;
                app.limits.deny = vec!["127.0.0.0/8".parse().unwrap()];
            }),
        ),
        (
            "busy",
            limits(Limits {
                max_in_flight: 1,
                ..Limits::default()
            }),
        ),
        (
            "full",
            limits(Limits {
                max_in_flight_per_endpoint: 1,
                ..Limits::default()
            }),
        ),
        ("empty", AppConfig::default()),
        ("grpc", app(|app| app.protocol = Protocol::H2c)),
        (
            "small",
            limits(Limits {
                max_body_bytes: 4,
                ..Limits::default()
            }),
        ),
    ];
    let gateway = Gateway::with(config, &entries, &configs).await;
    let proof = challenge(&keys, "new.example.com", "token.thumb", none());
    gateway.tell(changes(2, vec![proof]), 2).await;
    // Two apps with as much under way as they may have, and one that is known to be out of reach.
    let mut held = Vec::new();
    for host in ["busy", "full"] {
        let mut stream = TcpStream::connect(gateway.http).await.unwrap();
        let text = format!("GET / HTTP/1.1\r\nHost: {host}.localhost\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        held.push(stream);
        let under_way = format!("caas_gateway_requests_in_flight{{app=\"{host}\"}}");
        gateway.reaches(&under_way, 1.0).await;
    }
    let deadline = Instant::now() + LIMIT;
    while gateway.get("dark.localhost", "/").await.reason() != "unreachable" {
        assert!(Instant::now() < deadline, "it is found out");
    }

    let websocket: &[&str] = &["Upgrade: websocket", "Connection: upgrade"];
    let rows = [
        Row::new("forward", "hello.localhost"),
        Row::new("forward", "HELLO.localhost.:80").path("/a?b=c"),
        Row::new("forward", "1--hello.localhost"),
        Row::new("forward", "nobody.localhost").path("http://hello.localhost/x"),
        Row::new("forward", "hello.localhost").tls("hello.localhost"),
        Row::new("forward", "small.localhost")
            .method("POST")
            .headers(&["Content-Length: 4"])
            .body("1234"),
        Row::new("bad_host", "a..b"),
        Row::new("bad_host", "hello.localhost").headers(&["Host: hello.localhost"]),
        Row::new("bad_target", "hello.localhost").path("hello.localhost"),
        Row::new("bad_framing", "hello.localhost")
            .method("POST")
            .headers(&["Transfer-Encoding: gzip, chunked"])
            .body("0\r\n\r\n"),
        Row::new("method_not_allowed", "hello.localhost:80")
            .method("CONNECT")
            .path("hello.localhost:80"),
        Row::new("acme_challenge", "new.example.com").path("/.well-known/acme-challenge/token"),
        Row::new("acme_challenge", "new.example.com")
            .path("/.well-known/acme-challenge/token")
            .from(DENIED),
        Row::new("unknown_app", "new.example.com").path("/.well-known/acme-challenge/other"),
        Row::new("denied", "hello.localhost").from(DENIED),
        Row::new("denied", "nobody.localhost").from(DENIED),
        Row::new("denied", "picky.localhost"),
        Row::new("forward", "picky.localhost").from(PROXY),
        Row::new("denied", "picky.localhost")
            .from(PROXY)
            .headers(&["X-Forwarded-For: 198.51.100.1, 203.0.113.7"]),
        Row::new("unknown_app", "nobody.localhost"),
        Row::new("unknown_app", "shop.example.org"),
        Row::new("unknown_app", "database.localhost"),
        Row::new("unknown_app", "vault.localhost"),
        Row::new("passthrough", "vault.localhost").tls("vault.localhost"),
        Row::new("denied", "shut.localhost").tls("shut.localhost"),
        Row::new("unknown_name", "nobody.localhost").tls("nobody.localhost"),
        Row::new("misdirected", "shop.example.com").tls("hello.localhost"),
        Row::new("forward", "shop.example.com")
            .tls("hello.localhost")
            .from(PROXY),
        Row::new("unknown_app", "nobody.localhost").tls("hello.localhost"),
        Row::new("redirect_https", "secure.localhost").path("/a?b=c"),
        Row::new("forward", "secure.localhost").tls("secure.localhost"),
        Row::new("forward", "secure.localhost").path("/.well-known/acme-challenge/x"),
        Row::new("forward", "secure.localhost")
            .from(PROXY)
            .headers(&["X-Forwarded-Proto: https"]),
        Row::new("body_too_large", "small.localhost")
            .method("POST")
            .headers(&["Content-Length: 5"])
            .body("12345"),
        Row::new("overloaded", "busy.localhost"),
        Row::new("overloaded", "full.localhost"),
        Row::new("no_endpoints", "empty.localhost"),
        Row::new("no_endpoints", "2--hello.localhost"),
        Row::new("unreachable", "dark.localhost"),
        Row::new("no_upgrade", "grpc.localhost").headers(&["Upgrade: other", "Connection: upgrade"]),
        Row::new("bad_handshake", "grpc.localhost").headers(websocket),
    ];
    let mut met = compare(&gateway, &authority, &rows).await;

    let silent = Gateway::silent(crate::support::config()).await;
    met.extend(compare(&silent, &authority, &[Row::new("not_ready", "hello.localhost")]).await);
    let page = gateway.admin("/metrics").await.body;
    let reasons = page.lines().filter_map(|line| {
        let rest = line.strip_prefix("caas_gateway_own_answers_total{reason=\"")?;
        rest.split('"').next()
    });
    for reason in reasons {
        let told = met.contains(reason);
        assert_ne!(
            told,
            NOT_TOLD.contains(&reason),
            "{reason} has a row, or a reason for none"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_that_can_t_be() {
    let gateway = Gateway::hello(&[]).await;
    for (question, word) in [
        ("", "which host"),
        ("?host=a&client=x", "IP address"),
        ("?host=a&https=1", "TLS"),
        ("?host=a&https=x", "1 or 0"),
        ("?host=a&method=a%20b", "method"),
        ("?host=a&path=a%20b", "target"),
        ("?host=a&header=x", "name:value"),
    ] {
        let answer = gateway.admin(&format!("/explain{question}")).await;
        assert_eq!(answer.status, 400, "{question}: {}", answer.body);
        assert!(answer.body.contains(word), "{question}: {}", answer.body);
    }
}
