//! Which host goes where, and what the app sees.

use model::AppConfig;
use model::registry::RegistryChange;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_has_what_no_app_has_by_name() {
    let (wild, shop) = (Recorder::start("wild").await, Recorder::start("shop").await);
    let domains = |domains: &[&str]| AppConfig {
        domains: domains.iter().map(|d| (*d).to_owned()).collect(),
        ..AppConfig::default()
    };
    let of_wild = domains(&["*.example.com", "*.apps.example.com", "*.shop.apps.example.com"]);
    let own = gateway::Config {
        domain: "apps.example.com".into(),
        ..config()
    };
    let gateway = Gateway::with(
        own,
        &[("wild", "1", "a", wild.at), ("shop", "1", "b", shop.at)],
        &[("wild", of_wild.clone()), ("shop", domains(&["shop.example.com"]))],
    )
    .await;
    for (host, want) in [
        ("any.example.com", "wild"),
        ("Other.Example.com.:8080", "wild"),
        ("2--any.example.com", "wild"),
        ("SHOP.example.com", "shop"),
        ("shop.apps.example.com", "shop"),
        ("wild.apps.example.com", "wild"),
    ] {
        let answer = gateway.get(host, "/").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, want), "{host}");
    }
    for host in [
        "example.com",
        "a.b.example.com",
        "apps.example.com",
        "nobody.apps.example.com",
        "x.shop.apps.example.com",
        "any.example.org",
    ] {
        let answer = gateway.get(host, "/").await;
        assert_eq!((answer.status, answer.reason()), (404, "unknown_app"), "{host}");
    }
    for host in [".example.com", "*.example.com"] {
        assert_eq!(gateway.get(host, "/").await.status, 400, "{host}");
    }
    let routes = gateway.admin("/routes").await.body;
    assert!(routes.contains("\"host\":\"*.example.com\""), "{routes}");
    for (host, rule, app) in [
        ("any.example.com", "wildcard", "wild"),
        ("shop.example.com", "domain", "shop"),
        ("a.b.example.com", "none", ""),
    ] {
        let told: serde_json::Value =
            serde_json::from_str(&gateway.admin(&format!("/explain?host={host}")).await.body).unwrap();
        assert_eq!((&told["rule"], &told["app"]), (&rule.into(), &app.into()), "{told}");
    }
    // A name that an app gets is its own from then on, and the wildcard's again once it gives it back.
    for (revision, names, want) in [(2, &["any.example.com"][..], "shop"), (3, &[][..], "wild")] {
        let change = RegistryChange::Config("shop".parse().unwrap(), domains(names));
        gateway.tell(changes(revision, vec![change]), revision).await;
        assert_eq!(gateway.get("any.example.com", "/").await.body, want);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_share_a_host_by_paths_as_they_came() {
    let (shop, api, v2) = (
        Recorder::start("shop").await,
        Recorder::start("api").await,
        Recorder::start("v2").await,
    );
    let domains = |domains: &[&str]| AppConfig {
        domains: domains.iter().map(|d| (*d).to_owned()).collect(),
        ..AppConfig::default()
    };
    let gateway = Gateway::with(
        config(),
        &[
            ("shop", "1", "a", shop.at),
            ("api", "1", "b", api.at),
            ("v2", "1", "c", v2.at),
        ],
        &[
            ("shop", domains(&["a.test"])),
            ("api", domains(&["a.test/api", "b.test/api", "api.localhost/x"])),
            ("v2", domains(&["a.test/api/v2"])),
        ],
    )
    .await;
    // Each path reaches the app that it names as it is written, and unchanged; an app that reads it in another way reads its own.
    let paths = [
        ("/api", "api"),
        ("/api/", "api"),
        ("/api?a=/b", "api"),
        ("/api/x/y", "api"),
        ("/api/v2", "v2"),
        ("/api/v2/x", "v2"),
        ("/api/v2x", "api"),
        ("/api/v2/../v1", "v2"),
        ("/api/../x", "api"),
        ("/api//v2", "api"),
        ("/api/%2e%2e/x", "api"),
        ("/", "shop"),
        ("/apix", "shop"),
        ("/API", "shop"),
        ("/api;x", "shop"),
        ("/api%2Fv2", "shop"),
        ("/%61pi", "shop"),
        ("//api", "shop"),
        ("/./api", "shop"),
        ("/x/../api/v2", "shop"),
        ("/?x=/api", "shop"),
    ];
    let last = |app: &str| match app {
        "api" => api.last(),
        "v2" => v2.last(),
        _ => shop.last(),
    };
    for (path, want) in paths {
        let answer = gateway.get("A.test:80", path).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, want), "{path}");
        assert_eq!(last(want).line(), format!("GET {path} HTTP/1.1"));
    }
    // On one connection too, which remembers the app that it asked last.
    let mut client = crate::http2_support::Client::open(gateway.http).await;
    for (path, want) in paths {
        assert_eq!(
            client.get("a.test", path).await.body,
            want.as_bytes(),
            "{path} by HTTP/2"
        );
    }
    for (text, status, want) in [
        ("GET http://a.test/api/x HTTP/1.1\r\nHost: a.test\r\n", 200, "api"),
        ("OPTIONS * HTTP/1.1\r\nHost: a.test\r\n", 200, "shop"),
        ("CONNECT a.test:80 HTTP/1.1\r\nHost: a.test\r\n", 405, ""),
        ("GET /api/x HTTP/1.1\r\nHost: b.test\r\n", 200, "api"),
        ("GET /x HTTP/1.1\r\nHost: b.test\r\n", 404, ""),
        ("OPTIONS * HTTP/1.1\r\nHost: b.test\r\n", 404, ""),
        ("GET /x HTTP/1.1\r\nHost: api.localhost\r\n", 200, "api"),
        ("GET / HTTP/1.1\r\nHost: api.localhost\r\n", 200, "api"),
    ] {
        let answer = gateway.send(&format!("{text}Connection: close\r\n\r\n")).await;
        assert_eq!(answer.status, status, "{text}: {}", answer.head);
        assert!(status != 200 || answer.body == want, "{text}");
    }
    let routes = gateway.admin("/routes").await.body;
    assert!(routes.contains("\"host\":\"a.test/api/v2\""), "{routes}");
    for (host, path, rule, app) in [
        ("a.test", "/api/x", "path", "api"),
        ("a.test", "/x", "domain", "shop"),
        ("b.test", "/x", "none", ""),
    ] {
        let told = gateway.admin(&format!("/explain?host={host}&path={path}")).await.body;
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["rule"], &told["app"]), (&rule.into(), &app.into()), "{told}");
    }
    // A path that is given back is the host's again.
    let change = RegistryChange::Config("api".parse().unwrap(), AppConfig::default());
    gateway.tell(changes(2, vec![change]), 2).await;
    assert_eq!(gateway.get("a.test", "/api/x").await.body, "shop");
    assert_eq!(gateway.get("a.test", "/api/v2/x").await.body, "v2");
    assert_eq!(gateway.get("b.test", "/api/x").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_taken_off_where_the_app_wants_it() {
    let app = Recorder::start("app").await;
    let stripped = AppConfig {
        domains: ["a.test/api", "a.test/api/v2", "b.test"].map(str::to_owned).into(),
        strip_prefix: true,
        ..AppConfig::default()
    };
    let entries = [
        ("hello", "1", "c0", app.at),
        ("ws", "1", "c1", crate::tunnels::echo().await),
    ];
    let socket = AppConfig {
        domains: vec!["a.test/ws".to_owned()],
        ..stripped.clone()
    };
    let trusting = gateway::Config {
        trusted_proxies: vec!["127.0.0.2/32".parse().unwrap()],
        ..config()
    };
    let gateway = Gateway::with(trusting, &entries, &[("hello", stripped), ("ws", socket)]).await;
    let forged = "X-Forwarded-Prefix: /forged\r\nX_Forwarded_Prefix: /forged\r\n";
    for (host, target, path, prefix) in [
        ("a.test", "/api", "/", "/api"),
        ("a.test", "/api/", "/", "/api"),
        ("a.test", "/api?a=/b", "/?a=/b", "/api"),
        ("A.test:80", "/api/x/y?z", "/x/y?z", "/api"),
        ("a.test", "/api/v2", "/", "/api/v2"),
        ("a.test", "/api/v2x", "/v2x", "/api"),
        ("a.test", "/api/v2/api/v2", "/api/v2", "/api/v2"),
        ("a.test", "/api//x", "//x", "/api"),
        ("a.test", "/api/%2e%2e/a%20b;p", "/%2e%2e/a%20b;p", "/api"),
        ("a.test", "http://a.test/api/x", "/x", "/api"),
        ("b.test", "/api/x", "/api/x", ""),
        ("hello.localhost", "/api/x", "/api/x", ""),
    ] {
        let ask = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{forged}Connection: close\r\n\r\n");
        assert_eq!(gateway.send(&ask).await.status, 200, "{target}");
        assert_eq!(app.last().line(), format!("GET {path} HTTP/1.1"), "{host}{target}");
        assert_eq!(
            app.last().header("x-forwarded-prefix").concat(),
            prefix,
            "{host}{target}"
        );
        assert!(app.last().header("x_forwarded_prefix").is_empty());
    }
    // On one connection, which remembers apps that it found by their host alone.
    let mut client = crate::http2_support::Client::open(gateway.http).await;
    for (host, target, path) in [
        ("b.test", "/api", "/api"),
        ("a.test", "/api/y", "/y"),
        ("b.test", "/api", "/api"),
    ] {
        assert_eq!(client.get(host, target).await.status(), 200);
        assert_eq!(app.last().line(), format!("GET {path} HTTP/1.1"), "{host}{target}");
    }
    // A WebSocket is found and goes on like any request.
    let mut socket = tokio::net::TcpStream::connect(gateway.http).await.unwrap();
    let ask = crate::tunnels::ASK.replace("hello.localhost", "a.test");
    tokio::io::AsyncWriteExt::write_all(&mut socket, ask.as_bytes())
        .await
        .unwrap();
    assert!(read_until(&mut socket, "glued").await.starts_with("HTTP/1.1 101"));
    // What a trusted proxy has taken off before stands in front of what is taken off here.
    let from = tokio::net::TcpSocket::new_v4().unwrap();
    from.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut proxy = from.connect(gateway.http).await.unwrap();
    let ask = "GET /api/x HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-Prefix: /outer\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut proxy, ask.as_bytes())
        .await
        .unwrap();
    read_until(&mut proxy, "\r\n\r\napp").await;
    assert_eq!(app.last().header("x-forwarded-prefix"), ["/outer", "/api"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_find_their_apps() {
    let (one, two, shop) = (
        Recorder::start("one").await,
        Recorder::start("two").await,
        Recorder::start("shop").await,
    );
    let config_of_shop = AppConfig {
        domains: vec![
            "shop.example.com".into(),
            "hello.localhost".into(),
            "evil.localhost".into(),
        ],
        ..AppConfig::default()
    };
    let gateway = Gateway::with(
        config(),
        &[
            ("hello", "1", "a", one.at),
            ("hello", "RC2", "b", two.at),
            ("shop", "1", "c", shop.at),
        ],
        &[("shop", config_of_shop), ("idle", AppConfig::default())],
    )
    .await;
    for (host, want) in [
        ("1--hello.localhost", "one"),
        ("rc2--hello.localhost", "two"),
        ("RC2--HELLO.LOCALHOST:80", "two"),
        ("shop.localhost", "shop"),
        ("shop.example.com", "shop"),
        ("SHOP.example.com.:8080", "shop"),
    ] {
        let answer = gateway.get(host, "/").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, want), "{host}");
    }
    let mut got: Vec<String> = Vec::new();
    for _ in 0..4 {
        got.push(gateway.get("hello.localhost", "/").await.body);
    }
    assert_eq!(got[..2], got[2..], "in turn");
    assert_ne!(got[0], got[1], "in turn");
    for (host, status, reason) in [
        ("nobody.localhost", 404, "unknown_app"),
        ("evil.localhost", 404, "unknown_app"),
        ("hello", 404, "unknown_app"),
        ("localhost", 404, "unknown_app"),
        ("shop.example.com.localhost", 404, "unknown_app"),
        ("127.0.0.1", 404, "unknown_app"),
        ("idle.localhost", 503, "no_endpoints"),
        ("9--hello.localhost", 503, "no_endpoints"),
        ("[::1]", 400, "bad_host"),
        ("a b", 400, "bad_host"),
        ("", 400, "bad_host"),
    ] {
        let answer = gateway.get(host, "/").await;
        assert_eq!(
            (answer.status, answer.reason()),
            (status, reason),
            "{host}: {}",
            answer.head
        );
        assert_eq!(answer.header("retry-after").is_some(), status == 503, "{host}");
    }
    let routes = gateway.admin("/routes").await.body;
    assert!(
        routes.contains("\"host\":\"shop.example.com\"") && routes.contains(&one.at.to_string()),
        "{routes}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_sees_the_request_and_who_sent_it() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let body = "a".repeat(100_000);
    let answer = gateway
        .send(&format!(
            "POST /path;p?q=a%20b&c=[1] HTTP/1.1\r\nHost: Hello.localhost:8080\r\nContent-Length: {}\r\nX-Forwarded-For: 6.6.6.6\r\n\
             X-Custom: kept\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ))
        .await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "app"));
    assert_eq!(answer.header("connection"), Some("close"));
    let seen = app.last();
    assert_eq!(seen.line(), "POST /path;p?q=a%20b&c=[1] HTTP/1.1");
    assert_eq!(seen.body, body.as_bytes());
    let port = gateway.http.port().to_string();
    for (name, want) in [
        ("host", "Hello.localhost:8080"),
        ("x-custom", "kept"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "Hello.localhost:8080"),
        ("x-forwarded-port", port.as_str()),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ] {
        assert_eq!(seen.header(name), [want], "{name}");
    }
    assert_eq!(seen.header("x-request-id")[0].len(), 32);
    assert!(seen.header("connection").is_empty());

    gateway
        .send("GET / HTTP/1.1\r\nHost: hello.localhost\r\nX-Request-Id: mine-1\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(app.last().header("x-request-id"), ["mine-1"]);
    assert!(
        app.last().header("traceparent").is_empty(),
        "without a log that could show it none is made"
    );
    gateway
        .send("GET http://hello.localhost:80/abs?x HTTP/1.1\r\nHost: other.localhost\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(app.last().line(), "GET /abs?x HTTP/1.1");
    assert_eq!(app.last().header("host"), ["hello.localhost:80"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_on_both_sides() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut client = tokio::net::TcpStream::connect(gateway.http).await.unwrap();
    for i in 0..20 {
        use tokio::io::AsyncWriteExt as _;
        let request = format!("GET /{i} HTTP/1.1\r\nHost: hello.localhost\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut client, "\r\n\r\napp").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
    assert_eq!(app.count(), 20);
    assert_eq!(app.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(gateway.metric("caas_gateway_upstream_reused_total").await as u64, 19);
    assert_eq!(gateway.metric("caas_gateway_upstream_connects_total").await as u64, 1);
    assert_eq!(
        gateway
            .metric("caas_gateway_requests_total{app=\"hello\",class=\"2xx\"}")
            .await as u64,
        20
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_unused_upstream_connections_those_are_kept_that_were_used_last() {
    let app = Recorder::start("app").await;
    let names: Vec<String> = (0..40).map(|i| format!("app{i}")).collect();
    let entries: Vec<_> = names.iter().map(|name| (name.as_str(), "1", "c0", app.at)).collect();
    let few = gateway::Config {
        workers: 1,
        pool_connections: 16,
        ..config()
    };
    let gateway = Gateway::with(few, &entries, &[]).await;
    for name in &names {
        assert_eq!(gateway.get(&format!("{name}.localhost"), "/").await.status, 200);
        assert!(gateway.metric("caas_gateway_upstream_pooled").await <= 16.0);
    }
    let connections = || app.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(connections(), 40);
    gateway.get("app39.localhost", "/").await;
    assert_eq!(connections(), 40, "the last one is kept");
    gateway.get("app0.localhost", "/").await;
    assert_eq!(connections(), 41, "the first one is not");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let one = "GET /1 HTTP/1.1\r\nHost: hello.localhost\r\n\r\n";
    let last = "GET /404 HTTP/1.1\r\nHost: nobody.localhost\r\nConnection: close\r\n\r\n";
    let got = exchange(gateway.http, format!("{one}{one}{last}").as_bytes()).await;
    let got = String::from_utf8_lossy(&got);
    assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 2, "{got}");
    assert_eq!(got.matches("HTTP/1.1 404").count(), 1, "{got}");
}

#[tokio::test(flavor = "multi_thread")]
async fn head_and_http_1_0() {
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let head = gateway
        .send("HEAD / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(
        (head.status, head.header("content-length"), head.body.as_str()),
        (200, Some("3"), "")
    );
    let old = gateway.send("GET / HTTP/1.0\r\nHost: hello.localhost\r\n\r\n").await;
    assert_eq!((old.status, old.body.as_str()), (200, "app"));
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_both_ways() {
    let app = Recorder::start("app").await;
    let (chunky, _) = answers(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
    let gateway = Gateway::with(
        config(),
        &[("hello", "1", "a", app.at), ("chunky", "1", "b", chunky)],
        &[],
    )
    .await;
    gateway
        .send("POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n")
        .await;
    assert_eq!(app.last().body, b"abcde");
    assert_eq!(app.last().header("transfer-encoding"), ["chunked"]);
    let answer = gateway.get("chunky.localhost", "/").await;
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    assert_eq!(answer.body, "5\r\nhello\r\n0\r\n\r\n");
    let old = gateway.send("GET / HTTP/1.0\r\nHost: chunky.localhost\r\n\r\n").await;
    assert_eq!((old.header("transfer-encoding"), old.body.as_str()), (None, "hello"));
}

#[tokio::test(flavor = "multi_thread")]
async fn continue_is_said_before_the_body_comes() {
    use tokio::io::AsyncWriteExt as _;
    let app = Recorder::start("app").await;
    let gateway = Gateway::hello(&[app.at]).await;
    let mut client = tokio::net::TcpStream::connect(gateway.http).await.unwrap();
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: hello.localhost\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let first = read_until(&mut client, "100 Continue\r\n\r\n").await;
    assert!(first.starts_with("HTTP/1.1 100 Continue"), "{first}");
    client.write_all(b"abc").await.unwrap();
    let answer = read_until(&mut client, "\r\n\r\napp").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(app.last().body, b"abc");
    assert!(app.last().header("expect").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn own_answers_fit_the_client() {
    let gateway = Gateway::hello(&[]).await;
    let page = gateway
        .send("GET / HTTP/1.1\r\nHost: nobody.localhost\r\nAccept: text/html,*/*\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let json = gateway.get("nobody.localhost", "/").await;
    assert_eq!(json.header("content-type"), Some("application/problem+json"));
    let json: serde_json::Value = serde_json::from_str(&json.body).expect("json");
    assert_eq!(
        (json["status"].as_u64(), json["code"].as_str()),
        (Some(404), Some("unknown_app"))
    );
    assert_eq!(
        gateway
            .metric("caas_gateway_own_answers_total{reason=\"unknown_app\"}")
            .await as u64,
        2
    );
    assert_eq!(
        gateway
            .metric("caas_gateway_requests_total{app=\"\",class=\"4xx\"}")
            .await as u64,
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_logged_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let app = Recorder::start("app").await;
    let with_log = gateway::Config {
        access_log: path.to_str().unwrap().into(),
        ..config()
    };
    let gateway = Gateway::hello_with(with_log, &[app.at, refusing().await], AppConfig::default()).await;
    for _ in 0..4 {
        gateway.get("hello.localhost", "/x?y=1").await;
    }
    gateway.get("nobody.localhost", "/").await;
    let lines = || std::fs::read_to_string(&path).unwrap_or_default().lines().count();
    until("five lines", || lines() == 5).await;
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).expect("json")).collect();
    let ours: Vec<_> = lines.iter().filter(|l| l["app"] == "hello").collect();
    assert_eq!(ours.len(), 4);
    for line in &ours {
        assert_eq!(line["status"], 200);
        assert_eq!(line["path"], "/x?y=1");
        assert_eq!(line["endpoint"], app.at.to_string());
        assert_eq!(line["bytes_out"], 3);
        assert_eq!(line["container"], "c0");
        let trace = line["traceparent"].as_str().unwrap();
        assert_eq!(&trace[3..35], line["request_id"].as_str().unwrap());
        assert!(
            line["upstream_us"].as_u64().unwrap() > 0 && line["gateway_us"].as_u64().is_some(),
            "{line}"
        );
    }
    assert!(
        ours.iter().any(|l| l["attempts"] == 2),
        "one met the dead endpoint: {text}"
    );
    assert!(lines.iter().any(|l| l["reason"] == "unknown_app" && l["status"] == 404));
}
