//! What operators see and change at the admin port.

use model::AppConfig;
use model::config::{Balance, Limits, Sticky};
use serde_json::Value;

use crate::support::*;

async fn post(gateway: &Gateway, path: &str, body: &str, headers: &str) -> Answer {
    let text = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    Answer::parse(&exchange(gateway.admin, text.as_bytes()).await)
}

const JSON: &str = "Content-Type: application/json\r\n";

async fn see(gateway: &Gateway, path: &str) -> Value {
    let answer = gateway.admin(path).await;
    serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{path}: {e}: {}", answer.body))
}

/// The field of each endpoint.
fn each(answer: &Value, field: &str) -> Vec<String> {
    let endpoints = answer["endpoints"]
        .as_array()
        .or_else(|| answer["apps"][0]["endpoints"].as_array());
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    endpoints.unwrap().iter().map(|e| text(&e[field])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ejected_endpoint_stays_out_until_it_is_put_back() {
    let (one, two) = (Recorder::start("one").await, Recorder::start("two").await);
    let gateway = Gateway::hello(&[one.at, two.at]).await;
    let answer = post(&gateway, "/eject", r#"{"app":"hello","endpoint":"c0"}"#, JSON).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.contains("\"ejected\""), "{}", answer.body);
    // A new table, and the registry's word, change nothing about it.
    gateway.tell(changes(2, vec![put("hello", "1", "c0", one.at)]), 2).await;
    gateway.tell(changes(3, vec![put("hello", "1", "c9", two.at)]), 3).await;
    for _ in 0..10 {
        assert_eq!(gateway.get("hello.localhost", "/").await.body, "two");
    }
    let seen = see(&gateway, "/endpoints?app=hello").await;
    assert_eq!(each(&seen, "state"), ["ejected", "ready", "ready"]);
    let answer = post(&gateway, "/uneject", r#"{"app":"hello","endpoint":"c0"}"#, JSON).await;
    assert_eq!(answer.status, 200);
    for _ in 0..3 {
        gateway.get("hello.localhost", "/").await;
    }
    assert!(one.count() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_can_t_be() {
    let one = Recorder::start("one").await;
    let gateway = Gateway::hello(&[one.at, one.at]).await;
    let json = |body: &'static str| (body, JSON);
    for (path, (body, headers), status) in [
        ("/eject", (r#"{"app":"hello","endpoint":"c0"}"#, ""), 403),
        (
            "/eject",
            (
                r#"{"app":"hello","endpoint":"c0"}"#,
                "Content-Type: application/json\r\nOrigin: http://evil\r\n",
            ),
            403,
        ),
        ("/drain", ("", ""), 403),
        ("/eject", json("junk"), 400),
        ("/eject", json(r#"{"app":"hello","endpoint":"c0","seconds":0}"#), 400),
        ("/eject", json(r#"{"app":"other","endpoint":"c0"}"#), 404),
        ("/eject", json(r#"{"app":"hello","endpoint":"x"}"#), 404),
        ("/eject", json(r#"{"app":"hello","endpoint":"c"}"#), 404),
        ("/nothing", json("{}"), 404),
    ] {
        let answer = post(&gateway, path, body, headers).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
        assert!(answer.body.contains("\"code\""), "{}", answer.body);
    }
    assert_eq!(gateway.admin("/eject").await.status, 405);
    assert_eq!(gateway.admin("/endpoints?app=other").await.status, 404);
    assert_eq!(
        each(&see(&gateway, "/endpoints?app=hello").await, "state"),
        ["ready", "ready"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_gateway_is_not_ready_and_goes_on_serving() {
    let one = Recorder::start("one").await;
    let gateway = Gateway::hello(&[one.at]).await;
    assert_eq!(post(&gateway, "/drain", "", JSON).await.status, 200);
    assert_eq!(gateway.admin("/ready").await.status, 503);
    assert_eq!(gateway.admin("/live").await.status, 200);
    assert_eq!(gateway.get("hello.localhost", "/").await.status, 200);
    assert_eq!(post(&gateway, "/undrain", "", JSON).await.status, 200);
    assert_eq!(gateway.admin("/ready").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_with_their_last_error_and_latency() {
    let (dead, alive) = (refusing().await, Recorder::start("alive").await);
    let config = AppConfig {
        balance: Balance::PeakEwma,
        ..AppConfig::default()
    };
    let gateway = Gateway::hello_with(self::config(), &[dead, alive.at], config).await;
    while each(&see(&gateway, "/endpoints?app=hello").await, "state")[0] == "ready" {
        assert_eq!(gateway.get("hello.localhost", "/").await.status, 200);
    }
    let seen = see(&gateway, "/endpoints").await;
    assert_eq!(seen["apps"][0]["balance"], "peak_ewma");
    let endpoints = &seen["apps"][0]["endpoints"];
    assert_eq!(endpoints[0]["last_error"]["reason"], "connect_failed", "{seen}");
    assert!(endpoints[1]["latency_us"].as_u64().unwrap() > 0, "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explanations_name_the_rule_and_who_could_answer() {
    let (old, new) = (Recorder::start("old").await, Recorder::start("new").await);
    let app = AppConfig {
        domains: vec!["shop.example.com".into()],
        weights: [("1", 100), ("2", 0)].map(|(v, w)| (v.parse().unwrap(), w)).into(),
        sticky: Sticky::Endpoint,
        limits: Limits {
            deny: vec!["203.0.113.0/24".parse().unwrap()],
            ..Limits::default()
        },
        ..AppConfig::default()
    };
    let entries = [
        ("hello", "1", "a", old.at),
        ("hello", "1", "b", old.at),
        ("hello", "2", "c", new.at),
    ];
    let gateway = Gateway::with(config(), &entries, &[("hello", app)]).await;
    let told = see(&gateway, "/explain?host=Hello.Localhost:80&path=/a").await;
    assert_eq!(
        (told["rule"].as_str(), told["outcome"].as_str()),
        (Some("app"), Some("forward")),
        "{told}"
    );
    assert_eq!(each(&told, "why"), ["candidate", "candidate", "no_share"]);
    assert_eq!(told["shares"]["1"], 100.0);
    let told = see(&gateway, "/explain?host=2--hello.localhost").await;
    assert_eq!(told["rule"], "version");
    assert_eq!(each(&told, "why"), ["other_version", "other_version", "candidate"]);
    let told = see(&gateway, "/explain?host=shop.example.com&client=203.0.113.9").await;
    assert_eq!(
        (&told["rule"], &told["outcome"], &told["status"]),
        (&"domain".into(), &"denied".into(), &403.into())
    );
    let told = see(&gateway, "/explain?host=nothing.localhost").await;
    assert_eq!(
        (&told["rule"], &told["outcome"]),
        (&"none".into(), &"unknown_app".into())
    );
    assert_eq!(see(&gateway, "/explain?host=a..b").await["outcome"], "bad_host");
    // What a real answer's cookie leads to.
    let answer = gateway.get("hello.localhost", "/").await;
    let cookie = answer
        .header("set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .replace('=', "%3D");
    let told = see(&gateway, &format!("/explain?host=hello.localhost&cookie={cookie}")).await;
    assert_eq!(each(&told, "why").iter().filter(|w| *w == "kept").count(), 1, "{told}");
    post(&gateway, "/eject", r#"{"app":"hello","endpoint":"a"}"#, JSON).await;
    assert_eq!(
        each(&see(&gateway, "/explain?host=hello.localhost").await, "why")[0],
        "ejected"
    );
    assert_eq!(gateway.admin("/explain").await.status, 400);
    assert_eq!(old.count() + new.count(), 1, "explaining sends nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sums_of_the_counters_are_the_requests_sent() {
    let (old, new, dead) = (
        Recorder::start("old").await,
        Recorder::start("new").await,
        refusing().await,
    );
    let entries = [
        ("hello", "1", "a", old.at),
        ("hello", "2", "b", new.at),
        ("hello", "2", "c", dead),
        ("other", "1", "d", dead),
    ];
    let gateway = Gateway::with(config(), &entries, &[]).await;
    for i in 0..30 {
        let host = [
            "hello.localhost",
            "1--hello.localhost",
            "other.localhost",
            "nobody.localhost",
        ][i % 4];
        gateway.get(host, "/").await;
    }
    let page = gateway.admin("/metrics").await.body;
    let sum = |name: &str, with: &str| -> f64 {
        page.lines()
            .filter(|l| l.starts_with(&format!("caas_gateway_{name}{{")) && l.contains(with))
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    assert_eq!(sum("requests_total", ""), 30.0, "{page}");
    assert_eq!(sum("responses_total", ""), 30.0);
    assert_eq!(sum("requests_total", "app=\"hello\""), 16.0);
    assert_eq!(sum("version_requests_total", "app=\"hello\""), 16.0, "{page}");
    let answered = (old.count() + new.count()) as f64;
    assert_eq!(sum("upstream_duration_seconds_count", ""), answered);
    assert_eq!(sum("own_answers_total", ""), 14.0);
    assert_eq!(sum("request_duration_seconds_count", ""), 30.0);
    assert_eq!(sum("app_ejections_total", ""), 2.0);
    assert_eq!(sum("app_endpoints", "app=\"hello\""), 3.0);
    assert_eq!(sum("app_endpoints", "state=\"left_out\""), 2.0, "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_request_count_too() {
    let app = Recorder::start("app").await;
    let config = gateway::Config {
        header_timeout_ms: 100,
        max_head_bytes: 200_000,
        buffer_bytes: 200_000,
        max_connections_per_client: 1,
        ..config()
    };
    let gateway = Gateway::hello_with(config, &[app.at], AppConfig::default()).await;
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000));
    let large = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(200_000));
    for (sent, code, reason) in [
        ("GET\x01 / HTTP/1.1\r\n\r\n", 400, "bad_head"),
        (long.as_str(), 414, "target_too_long"),
        (large.as_str(), 431, "head_too_large"),
        ("GET / HTTP/1.1\r\nHost:", 408, "request_timeout"),
    ] {
        let answer = gateway.send(sent).await;
        assert_eq!(answer.status, code, "{reason}");
        let status = format!("caas_gateway_responses_total{{code=\"{code}\"}}");
        gateway.reaches(&status, 1.0).await;
        let own = format!("caas_gateway_own_answers_total{{reason=\"{reason}\"}}");
        gateway.reaches(&own, 1.0).await;
        gateway.reaches("caas_gateway_connections", 0.0).await;
    }
    let _held = tokio::net::TcpStream::connect(gateway.http).await.unwrap();
    let refused = gateway.send("").await;
    assert_eq!((refused.status, refused.reason()), (503, "too_many_connections"));
    gateway.reaches("caas_gateway_responses_total{code=\"503\"}", 1.0).await;
    let own = "caas_gateway_own_answers_total{reason=\"too_many_connections\"}";
    gateway.reaches(own, 1.0).await;
}
