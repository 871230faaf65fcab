//! Which endpoint has a request: the ways of balancing over real sockets, changed while requests run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use model::AppConfig;
use model::config::{Balance, HashKey, Limits, Sticky, Timeouts};
use model::registry::RegistryChange;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::*;

fn weights(of: &[(&str, u32)]) -> BTreeMap<model::Version, u32> {
    of.iter().map(|(v, w)| (v.parse().unwrap(), *w)).collect()
}

fn configure(config: AppConfig) -> RegistryChange {
    RegistryChange::Config("hello".parse().unwrap(), config)
}

/// An upstream that answers after a while and counts.
async fn after(pause: Duration) -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let (at, _) = upstream(move |mut stream, _| {
        let count = Arc::clone(&counted);
        async move {
            let mut buffer = Vec::new();
            while let Ok(Some(_)) = read_request(&mut stream, &mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(pause).await;
                if stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
    })
    .await;
    (at, count)
}

/// Requests on one connection until the time is over; their number.
async fn keep_asking(at: SocketAddr, until: Instant) -> usize {
    let mut client = TcpStream::connect(at).await.unwrap();
    let mut n = 0;
    while Instant::now() < until {
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
            .await
            .unwrap();
        let answer = read_until(&mut client, "\r\n\r\nok").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        n += 1;
    }
    n
}

/// `n` requests on one connection; the names that answered, counted.
async fn names(gateway: &Gateway, n: usize, headers: &str) -> BTreeMap<String, usize> {
    let mut client = TcpStream::connect(gateway.http).await.unwrap();
    let mut names = BTreeMap::new();
    for _ in 0..n {
        let text = format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\n{headers}\r\n");
        client.write_all(text.as_bytes()).await.unwrap();
        let answer = read_until(&mut client, "name;").await;
        let name = answer
            .rsplit_once("\r\n\r\n")
            .map(|(_, body)| body.trim_end_matches("name;").to_owned());
        *names.entry(name.unwrap_or_default()).or_insert(0) += 1;
    }
    names
}

async fn slow_one_under(balance: Balance) -> (usize, usize) {
    let (slow, slow_count) = after(Duration::from_millis(200)).await;
    let mut addresses = vec![slow];
    for _ in 0..3 {
        addresses.push(after(Duration::ZERO).await.0);
    }
    let config = AppConfig {
        balance,
        ..AppConfig::default()
    };
    let gateway = Gateway::hello_with(self::config(), &addresses, config).await;
    let until = Instant::now() + Duration::from_secs(2);
    let clients: Vec<_> = (0..16)
        .map(|_| tokio::spawn(keep_asking(gateway.http, until)))
        .collect();
    let mut all = 0;
    for client in clients {
        all += client.await.unwrap();
    }
    (slow_count.load(Ordering::SeqCst), all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_endpoint_gets_less_than_a_third_of_its_share() {
    for balance in [Balance::LeastRequest, Balance::PeakEwma] {
        let (slow, all) = slow_one_under(balance).await;
        assert!(
            slow > 0 && slow * 4 * 3 < all,
            "{balance:?}: {slow} of {all} at one of four"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_of_versions_change_while_requests_run() {
    let (old, new) = (Recorder::start("oldname;").await, Recorder::start("newname;").await);
    let config = |of: &[(&str, u32)]| AppConfig {
        weights: weights(of),
        ..AppConfig::default()
    };
    let entries = [("hello", "1", "a", old.at), ("hello", "2", "b", new.at)];
    let gateway = Gateway::with(self::config(), &entries, &[("hello", config(&[("1", 99), ("2", 1)]))]).await;
    let got = names(&gateway, 1_000, "").await;
    assert!((8..=12).contains(&got["new"]), "{got:?}");
    gateway
        .tell(changes(2, vec![configure(config(&[("1", 50), ("2", 50)]))]), 2)
        .await;
    let got = names(&gateway, 1_000, "").await;
    assert!((490..=510).contains(&got["new"]), "{got:?}");
    gateway
        .tell(changes(3, vec![configure(config(&[("1", 100), ("2", 0)]))]), 3)
        .await;
    assert_eq!(names(&gateway, 100, "").await.get("new"), None);
    assert_eq!(
        gateway.get("2--hello.localhost", "/").await.body,
        "newname;",
        "its own host leads to it"
    );
    gateway
        .tell(changes(4, vec![configure(config(&[("2", 100)]))]), 4)
        .await;
    assert_eq!(names(&gateway, 100, "").await.get("old"), None);
}

/// The cookie of an answer, as a request's line.
fn cookie_of(answer: &Answer) -> Option<String> {
    let pair = answer.header("set-cookie")?.split(';').next()?;
    Some(format!("Cookie: a=b; {pair}\r\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_stays_where_its_cookie_says_until_that_is_gone() {
    let (one, two) = (Recorder::start("onename;").await, Recorder::start("twoname;").await);
    let config = AppConfig {
        sticky: Sticky::Endpoint,
        ..AppConfig::default()
    };
    let gateway = Gateway::hello_with(self::config(), &[one.at, two.at], config).await;
    let first = gateway.get("hello.localhost", "/").await;
    let line = first.header("set-cookie").expect("a cookie").to_owned();
    assert!(
        line.contains("; path=/; httponly; samesite=lax") && !line.contains("secure"),
        "{line}"
    );
    assert!(
        !line.contains("127.0.0.1") && !line.contains("c0") && !line.contains("c1"),
        "{line}"
    );
    let cookie = cookie_of(&first).expect("a cookie");
    let got = names(&gateway, 20, &cookie).await;
    assert_eq!(got.len(), 1, "{got:?}");
    let (name, gone) = if first.body.starts_with("one") {
        ("one", "c0")
    } else {
        ("two", "c1")
    };
    assert_eq!(got.get(name), Some(&20));
    let ask = format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n{cookie}\r\n");
    assert_eq!(
        gateway.send(&ask).await.header("set-cookie"),
        None,
        "the client has it already"
    );
    // Another gateway knows the cookie too.
    let config = AppConfig {
        sticky: Sticky::Endpoint,
        ..AppConfig::default()
    };
    let other = Gateway::hello_with(self::config(), &[one.at, two.at], config).await;
    assert_eq!(names(&other, 10, &cookie).await.get(name), Some(&10));
    // Gone: the client moves, and is told so.
    gateway.tell(changes(2, vec![remove("hello", "1", gone)]), 2).await;
    let moved = gateway.send(&ask).await;
    assert_eq!(moved.status, 200);
    assert!(
        !moved.body.starts_with(name) && moved.header("set-cookie").is_some(),
        "{}",
        moved.head
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_s_client_moves_without_an_error() {
    let (dead, alive) = (refusing().await, Recorder::start("alive").await);
    let config = AppConfig {
        sticky: Sticky::Endpoint,
        ..AppConfig::default()
    };
    let gateway = Gateway::hello_with(self::config(), &[dead, alive.at], config.clone()).await;
    // What a client of the dead one holds: nobody but a gateway in front of it could say.
    let before = Recorder::start("before").await;
    let other = Gateway::hello_with(self::config(), &[before.at], config).await;
    let cookie = cookie_of(&other.get("hello.localhost", "/").await).expect("a cookie");
    for _ in 0..10 {
        let ask = format!("GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n{cookie}\r\n");
        let answer = gateway.send(&ask).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "alive"));
    }
    assert!(gateway.metric("caas_gateway_upstream_connect_failures_total").await <= 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_s_clients_stay_with_it() {
    let (old, new) = (Recorder::start("oldname;").await, Recorder::start("newname;").await);
    let config = |of: &[(&str, u32)]| AppConfig {
        weights: weights(of),
        sticky: Sticky::Version,
        ..AppConfig::default()
    };
    let entries = [("hello", "1", "a", old.at), ("hello", "2", "b", new.at)];
    let gateway = Gateway::with(self::config(), &entries, &[("hello", config(&[("1", 50), ("2", 50)]))]).await;
    let mut answer = gateway.get("hello.localhost", "/").await;
    while !answer.body.starts_with("new") {
        answer = gateway.get("hello.localhost", "/").await;
    }
    let cookie = cookie_of(&answer).expect("a cookie");
    assert_eq!(names(&gateway, 50, &cookie).await.get("new"), Some(&50));
    gateway
        .tell(changes(2, vec![configure(config(&[("1", 99), ("2", 1)]))]), 2)
        .await;
    assert_eq!(
        names(&gateway, 50, &cookie).await.get("new"),
        Some(&50),
        "a smaller share is a share"
    );
    gateway
        .tell(changes(3, vec![configure(config(&[("1", 100), ("2", 0)]))]), 3)
        .await;
    assert_eq!(
        names(&gateway, 50, &cookie).await.get("old"),
        Some(&50),
        "aborted: they go back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_headers_cookies_and_addresses() {
    let apps = [
        Recorder::start("aname;").await,
        Recorder::start("bname;").await,
        Recorder::start("cname;").await,
        Recorder::start("dname;").await,
    ];
    let addresses: Vec<_> = apps.iter().map(|a| a.at).collect();
    let config = |hash| AppConfig {
        balance: Balance::ConsistentHash,
        hash,
        ..AppConfig::default()
    };
    let by_header = config(HashKey::Header("x-user".into()));
    let gateway = Gateway::hello_with(self::config(), &addresses, by_header).await;
    let mut places = BTreeMap::new();
    for user in 0..40 {
        let got = names(&gateway, 3, &format!("X-User: {user}\r\n")).await;
        assert_eq!(got.len(), 1, "a user has one place: {got:?}");
        places.insert(user, got.into_keys().next().unwrap());
    }
    let used: std::collections::BTreeSet<_> = places.values().collect();
    assert_eq!(used.len(), 4, "{places:?}");
    assert_eq!(
        names(&gateway, 20, "").await.len(),
        1,
        "without the header: the client's address"
    );
    let by_cookie = config(HashKey::Cookie("session".into()));
    gateway.tell(changes(2, vec![configure(by_cookie)]), 2).await;
    for user in 0..10 {
        let got = names(&gateway, 3, &format!("Cookie: x=1; session={user}\r\n")).await;
        assert_eq!(got.keys().next(), places.get(&user), "the same key has the same place");
        assert_eq!(got.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_endpoint_is_passed_over_and_a_full_app_says_so() {
    let (one, one_count) = after(Duration::from_millis(1_500)).await;
    let (two, two_count) = after(Duration::from_millis(1_500)).await;
    let config = AppConfig {
        limits: Limits {
            max_in_flight_per_endpoint: 1,
            ..Limits::default()
        },
        ..AppConfig::default()
    };
    let gateway = Arc::new(Gateway::hello_with(self::config(), &[one, two], config).await);
    let ask = |gateway: &Arc<Gateway>| {
        let gateway = Arc::clone(gateway);
        tokio::spawn(async move { gateway.get("hello.localhost", "/").await })
    };
    let first = [ask(&gateway), ask(&gateway)];
    until("both are busy", || {
        one_count.load(Ordering::SeqCst) == 1 && two_count.load(Ordering::SeqCst) == 1
    })
    .await;
    let refused = gateway.get("hello.localhost", "/").await;
    assert_eq!((refused.status, refused.reason()), (503, "overloaded"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    for answer in first {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(gateway.get("hello.localhost", "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_time_outs_in_a_row_leave_an_endpoint_out() {
    // Accepts and never answers.
    let (silent, _) = upstream(|mut stream, _| async move {
        let mut buffer = Vec::new();
        let _ = read_request(&mut stream, &mut buffer).await;
        tokio::time::sleep(LIMIT).await;
    })
    .await;
    let alive = Recorder::start("alive").await;
    let config = AppConfig {
        timeouts: Timeouts {
            response_s: 1,
            ..Timeouts::default()
        },
        ..AppConfig::default()
    };
    let gateway = Arc::new(Gateway::hello_with(self::config(), &[silent, alive.at], config).await);
    let asking: Vec<_> = (0..12)
        .map(|_| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.get("hello.localhost", "/").await })
        })
        .collect();
    let mut late = 0;
    for answer in asking {
        let answer = answer.await.unwrap();
        if answer.reason() == "upstream_timeout" {
            late += 1;
        }
    }
    assert_eq!(late, 6);
    for _ in 0..20 {
        assert_eq!(gateway.get("hello.localhost", "/").await.body, "alive");
    }
    assert_eq!(gateway.metric("caas_gateway_ejections_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_break_off_or_are_none_leave_an_endpoint_out() {
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
    let unasked = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: own\r\n\r\n";
    for bad in [half, unasked] {
        let (broken, asked) = upstream(move |mut stream, _| async move {
            let mut buffer = Vec::new();
            let _ = read_request(&mut stream, &mut buffer).await;
            let _ = stream.write_all(bad.as_bytes()).await;
        })
        .await;
        let alive = Recorder::start("alive").await;
        let gateway = Gateway::hello(&[broken, alive.at]).await;
        let mut good = 0;
        for _ in 0..30 {
            let mut client = TcpStream::connect(gateway.http).await.unwrap();
            let request = b"GET / HTTP/1.1\r\nHost: hello.localhost\r\nConnection: close\r\n\r\n";
            client.write_all(request).await.unwrap();
            let mut answer = String::new();
            // It may be cut.
            let _ = client.read_to_string(&mut answer).await;
            good += i32::from(answer.ends_with("alive"));
        }
        assert_eq!((good, asked.load(Ordering::SeqCst)), (25, 5), "{bad}");
        assert_eq!(gateway.metric("caas_gateway_ejections_total").await, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_count_against_nobody() {
    let (slow, count) = after(Duration::from_millis(300)).await;
    let gateway = Gateway::hello(&[slow]).await;
    for n in 1..=10 {
        let mut client = TcpStream::connect(gateway.http).await.unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n")
            .await
            .unwrap();
        until("the app has it", || count.load(Ordering::SeqCst) == n).await;
        drop(client);
    }
    let routes = gateway.admin("/routes?app=hello").await.body;
    assert!(
        routes.contains("\"failures\":0") && routes.contains("\"ready\""),
        "{routes}"
    );
    assert_eq!(gateway.metric("caas_gateway_ejections_total").await, 0.0);
    assert_eq!(gateway.get("hello.localhost", "/").await.status, 200);
}
