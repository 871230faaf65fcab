//! Limits on clients and apps.

use model::AppConfig;
use model::config::{Limits, Timeouts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;

fn limits(limits: Limits) -> AppConfig {
    AppConfig {
        limits,
        ..AppConfig::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_beyond_the_limit_are_refused_at_once_or_on_the_way() {
    let app = Recorder::start("app").await;
    let small = limits(Limits {
        max_body_bytes: 1_000,
        ..Limits::default()
    });
    let gateway = Gateway::hello_with(config(), &[app.at], small).await;
    let by_length = gateway
        .send("POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 1001\r\n\r\n")
        .await;
    assert_eq!((by_length.status, by_length.reason()), (413, "body_too_large"));
    let chunk = format!("320\r\n{}\r\n", "a".repeat(800));
    let by_count = gateway
        .send(&format!(
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
        ))
        .await;
    assert_eq!((by_count.status, by_count.reason()), (413, "body_too_large"));
    assert_eq!(app.count(), 0, "no whole message reached the app");
    let fits = gateway
        .send(&format!(
            "POST / HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n{}",
            "a".repeat(1_000)
        ))
        .await;
    assert_eq!(fits.status, 200);
    let routes = gateway.admin("/routes").await.body;
    assert!(
        routes.contains("\"failures\":0"),
        "a client's fault is not the endpoint's: {routes}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_networks_of_the_gateway_and_of_the_app() {
    let app = Recorder::start("app").await;
    let closed = limits(Limits {
        deny: vec!["127.0.0.0/8".parse().unwrap()],
        ..Limits::default()
    });
    let entries = [("open", "1", "a", app.at), ("closed", "1", "b", app.at)];
    let gateway = Gateway::with(config(), &entries, &[("closed", closed.clone())]).await;
    assert_eq!(gateway.get("open.localhost", "/").await.status, 200);
    let denied = gateway.get("closed.localhost", "/").await;
    assert_eq!((denied.status, denied.reason()), (403, "denied"));
    let all = gateway::Config {
        deny: closed.limits.deny.clone(),
        ..config()
    };
    let gateway = Gateway::with(all, &entries, &[]).await;
    assert_eq!(gateway.get("open.localhost", "/").await.status, 403);
    let behind = gateway::Config {
        deny: vec!["203.0.113.0/24".parse().unwrap()],
        trusted_proxies: vec!["127.0.0.1/32".parse().unwrap()],
        ..config()
    };
    let gateway = Gateway::with(behind, &entries, &[]).await;
    let from = |ip: &str| {
        format!("GET / HTTP/1.1\r\nHost: open.localhost\r\nX-Forwarded-For: {ip}\r\nConnection: close\r\n\r\n")
    };
    assert_eq!(gateway.send(&from("203.0.113.9")).await.status, 403);
    assert_eq!(gateway.send(&from("198.51.100.1")).await.status, 200);
    assert_eq!(app.last().header("x-forwarded-for"), ["198.51.100.1, 127.0.0.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_of_a_client() {
    let app = Recorder::start("app").await;
    let slow = limits(Limits {
        requests_per_second_per_client: 3,
        ..Limits::default()
    });
    let gateway = Gateway::hello_with(config(), &[app.at], slow).await;
    let mut refused = None;
    for _ in 0..10 {
        let answer = gateway.get("hello.localhost", "/").await;
        if answer.status == 429 {
            refused = Some(answer);
        }
    }
    let refused = refused.expect("ten at once are too many");
    assert_eq!(
        (refused.reason(), refused.header("retry-after")),
        ("rate_limited", Some("1"))
    );
    assert!((3..10).contains(&app.count()), "{}", app.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateways_rate_of_a_client_unless_the_app_has_its_own() {
    let app = Recorder::start("app").await;
    let own = limits(Limits {
        requests_per_second_per_client: 1,
        request_burst_per_client: 5,
        ..Limits::default()
    });
    let none = limits(Limits {
        unlimited_per_client: true,
        ..Limits::default()
    });
    let slow = gateway::Config {
        requests_per_second_per_client: 1,
        request_burst_per_client: 2,
        trusted_proxies: vec!["127.0.0.2/32".parse().unwrap(), "127.0.0.3/32".parse().unwrap()],
        ..config()
    };
    let entries = [
        ("hello", "1", "a", app.at),
        ("own", "1", "b", app.at),
        ("none", "1", "c", app.at),
    ];
    let gateway = Gateway::with(slow, &entries, &[("own", own), ("none", none)]).await;
    // Also an idle client of before: each request has a connection of its own, and one connection asks all.
    for (host, most) in [("hello", 2), ("own", 5), ("none", 20)] {
        let (mut good, began) = (0, std::time::Instant::now());
        for _ in 0..20 {
            let answer = gateway.get(&format!("{host}.localhost"), "/").await;
            assert!(matches!(answer.status, 200 | 429), "{}", answer.head);
            good += u64::from(answer.status == 200);
        }
        let most = if most < 20 {
            most + began.elapsed().as_secs() + 1
        } else {
            most
        };
        assert!(good <= most && good >= most.min(2), "{good} of {host}, at most {most}");
    }
    // Proxies that are trusted are no clients; whom they speak for is, wherever it comes through.
    let from = |proxy: u8, behind: Option<&str>| {
        let forwarded = behind.map_or(String::new(), |ip| format!("X-Forwarded-For: {ip}\r\n"));
        let request = format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\n{forwarded}Connection: close\r\n\r\n");
        let at = gateway.http;
        async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 0, proxy], 0).into()).unwrap();
            let mut stream = socket.connect(at).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text[9..12].parse::<u16>().unwrap()
        }
    };
    for _ in 0..10 {
        assert_eq!(from(2, None).await, 200);
        assert_eq!(from(2, Some("127.0.0.3")).await, 200);
    }
    let mut refused = 0;
    for i in 0..10 {
        let host = format!("2001:db8:1:2::{i}");
        refused += u32::from(from(2 + i % 2, Some(&host)).await == 429);
    }
    assert!(refused >= 5, "{refused} of 10 of one /64");
    assert_eq!(from(2, Some("2001:db8:1:3::1")).await, 200);
    assert_eq!(from(2, Some("198.51.100.7")).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_per_app() {
    let (hold, _) = upstream(|mut stream, _| async move {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let two = limits(Limits {
        max_in_flight: 2,
        ..Limits::default()
    });
    let other = Recorder::start("other").await;
    let entries = [("hello", "1", "a", hold), ("other", "1", "b", other.at)];
    let gateway = Gateway::with(config(), &entries, &[("hello", two)]).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
            .await
            .unwrap();
        waiting.push(client);
    }
    let deadline = std::time::Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_requests_in_flight{app=\"hello\"}").await < 2.0 {
        // The counters of an app are made at its first finished or refused request.
        let _ = gateway.get("other.localhost", "/").await;
        if gateway.get("hello.localhost", "/").await.status == 503 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "two wait");
    }
    let full = gateway.get("hello.localhost", "/").await;
    assert_eq!((full.status, full.reason()), (503, "overloaded"));
    assert_eq!(
        gateway.get("other.localhost", "/").await.status,
        200,
        "others are not touched"
    );
    drop(waiting);
    let deadline = std::time::Instant::now() + LIMIT;
    while gateway.metric("caas_gateway_requests_in_flight{app=\"hello\"}").await > 0.0 {
        assert!(
            std::time::Instant::now() < deadline,
            "clients that left are not counted"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_a_client_and_in_all() {
    let app = Recorder::start("app").await;
    for limited in [
        gateway::Config {
            max_connections_per_client: 2,
            ..config()
        },
        gateway::Config {
            max_connections: 2,
            ..config()
        },
    ] {
        let gateway = Gateway::hello_with(limited, &[app.at], AppConfig::default()).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut client = TcpStream::connect(gateway.http).await.unwrap();
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
                .await
                .unwrap();
            assert!(read_until(&mut client, "app").await.contains("200 OK"));
            held.push(client);
        }
        let mut third = TcpStream::connect(gateway.http).await.unwrap();
        let refused = read_until(&mut third, "\r\n\r\n").await;
        assert!(
            refused.starts_with("HTTP/1.1 503") && refused.contains("too_many_connections"),
            "{refused}"
        );
        drop(held);
        let deadline = std::time::Instant::now() + LIMIT;
        while gateway.get("hello.localhost", "/").await.status != 200 {
            assert!(std::time::Instant::now() < deadline, "free again");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_do_not_come_and_that_stand_still() {
    let (silent, _) = upstream(|mut stream, _| async move {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let (stuck, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc")
            .await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let quick = AppConfig {
        timeouts: Timeouts {
            response_s: 1,
            idle_s: 1,
            ..Timeouts::default()
        },
        ..AppConfig::default()
    };
    let entries = [("silent", "1", "a", silent), ("stuck", "1", "b", stuck)];
    let gateway = Gateway::with(config(), &entries, &[("silent", quick.clone()), ("stuck", quick)]).await;
    let start = std::time::Instant::now();
    let (none, half) = tokio::join!(
        gateway.get("silent.localhost", "/"),
        gateway.get("stuck.localhost", "/")
    );
    assert_eq!((none.status, none.reason()), (504, "upstream_timeout"));
    assert_eq!((half.status, half.body.as_str()), (200, "abc"));
    assert!(start.elapsed().as_millis() < 4_000, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_parked_and_come_back() {
    let app = Recorder::start("app").await;
    let parking = gateway::Config {
        park_after_ms: 50,
        idle_timeout_s: 1,
        ..config()
    };
    let gateway = Gateway::hello_with(parking, &[app.at], AppConfig::default()).await;
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    for round in 0..3 {
        client.write_all(b"GET / HTTP/1.1\r\nHost: hello").await.unwrap();
        client.write_all(b".localhost\r\n\r\n").await.unwrap();
        assert!(
            read_until(&mut client, "\r\n\r\napp").await.starts_with("HTTP/1.1 200"),
            "round {round}"
        );
        let deadline = std::time::Instant::now() + LIMIT;
        while gateway.metric("caas_gateway_connections_parked").await < 1.0 {
            assert!(std::time::Instant::now() < deadline, "parked");
        }
    }
    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, client.read_to_end(&mut rest))
        .await
        .expect("closed when idle too long")
        .unwrap();
    assert!(rest.is_empty());
}
