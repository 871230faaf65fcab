use proptest::prelude::*;

use super::*;
use model::store::Intent;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

fn app(id: &str, domains: &[&str]) -> App {
    let Intent { mut app, .. } = model::contract::store::deploy(id);
    app.config.domains = domains.iter().map(|d| (*d).to_owned()).collect();
    app
}

/// A certificate of 90 days, made so many days ago.
fn certificate(name: &str, source: CertificateSource, hosts: &[&str], age: u64) -> Certificate {
    Certificate {
        name: name.parse().unwrap(),
        source,
        names: hosts.iter().map(|h| (*h).to_owned()).collect(),
        issuer: "CN=test".into(),
        not_before: NOW.minus(days(age)),
        expires_at: NOW.minus(days(age)).plus(days(90)),
        updated_at: NOW,
        mark: 1,
    }
}

fn own(domain: &str, age: u64) -> Certificate {
    certificate(domain, CertificateSource::Acme, &[domain], age)
}

fn given(name: &str, host: &str, age: u64) -> Certificate {
    certificate(name, CertificateSource::Uploaded, &[host], age)
}

fn order(domain: &str) -> CertificateOrder {
    let mut order = CertificateOrder::new(domain.parse().unwrap(), "shop".parse().unwrap());
    order.generation = model::Generation::FIRST;
    order
}

/// What is decided for one app with these domains, as text: what begins, what is dropped, what is forgotten.
fn decide(
    config: &AcmeConfig,
    apps: &[App],
    certificates: &[Certificate],
    orders: &[CertificateOrder],
    running: &[&str],
) -> [Vec<String>; 3] {
    let running = running.iter().map(|d| d.parse().unwrap()).collect();
    let view = View {
        config,
        apps,
        certificates,
        orders,
        running: &running,
        me: "me",
        now: NOW,
    };
    let plan = plan(&view);
    let begin = plan.begin.iter();
    [
        begin
            .map(|b| format!("{}{}", b.order.domain, if b.renewal { " again" } else { "" }))
            .collect(),
        plan.drop.iter().map(|o| o.domain.to_string()).collect(),
        plan.forget.iter().map(ToString::to_string).collect(),
    ]
}

#[test]
fn the_next_thing_that_waits_for_the_clock_is_told() {
    let config = AcmeConfig::default();
    let apps = [app("shop", &["a.example.com", "b.example.com", "c.example.com"])];
    let mut paused = order("b.example.com");
    paused.next_try = NOW.plus(days(5));
    let running = BTreeSet::new();
    let next = |certificates: &[Certificate], orders: &[CertificateOrder]| {
        let view = View {
            config: &config,
            apps: &apps,
            certificates,
            orders,
            running: &running,
            me: "me",
            now: NOW,
        };
        plan(&view).next
    };
    assert_eq!(next(&[], &[]), None);
    assert_eq!(
        next(&[own("a.example.com", 50)], std::slice::from_ref(&paused)),
        Some(paused.next_try)
    );
    // What is due waits for its pause all the same, and what pauses for its time.
    let both = [own("a.example.com", 50), own("b.example.com", 58)];
    assert_eq!(next(&both, std::slice::from_ref(&paused)), Some(paused.next_try));
    assert_eq!(next(&both, &[]), Some(NOW.plus(days(2))));
}

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn domains_without_a_certificate_get_one() {
    let config = AcmeConfig::default();
    let mut apps = vec![
        app("shop", &["shop.example.com", "b.example.com"]),
        app("tcp", &["tcp.example.com"]),
        app("off", &["off.example.com"]),
        app("gone", &["gone.example.com"]),
        app(
            "inside",
            &[
                "a.localhost",
                "b.internal",
                "c.lan",
                "10.0.0.1",
                "d.home.arpa",
                "e.test",
                "a.localhost/path",
                "*.wild.lan",
                "*.wild.example.com",
            ],
        ),
    ];
    apps[1].config.protocol = Protocol::Tcp;
    apps[2].config.acme = false;
    apps[3].status = AppStatus::Removing;
    let [begin, ..] = decide(&config, &apps, &[], &[], &[]);
    assert_eq!(begin, ["b.example.com", "shop.example.com"]);
    // A private authority knows private names; apps' own names only where somebody says so.
    let private = AcmeConfig {
        root_certificate_file: Some("/ca.pem".into()),
        ..AcmeConfig::default()
    };
    let [begin, ..] = decide(&private, &apps[4..], &[], &[], &[]);
    assert_eq!(
        begin,
        ["a.localhost", "b.internal", "c.lan", "d.home.arpa"],
        "four at once"
    );
    let with = AcmeConfig {
        domain: Some("apps.example.com".into()),
        ..AcmeConfig::default()
    };
    let [begin, ..] = decide(&with, &apps[..1], &[], &[], &[]);
    assert_eq!(begin, ["b.example.com", "shop.apps.example.com", "shop.example.com"]);
}

#[test]
fn what_somebody_gave_always_wins() {
    let config = AcmeConfig::default();
    let apps = [app("shop", &["shop.example.com"])];
    for (given, ours) in [
        (given("any", "shop.example.com", 0), false),
        (given("any", "*.example.com", 89), false),
        (given("any", "*.example.com", 91), true),
        (given("any", "other.example.com", 0), true),
        // Its name is taken: it is never replaced, not even when it has expired.
        (given("shop.example.com", "other.example.com", 0), false),
        (given("shop.example.com", "shop.example.com", 91), false),
    ] {
        let why = format!("{given:?}");
        let [begin, ..] = decide(&config, &apps, std::slice::from_ref(&given), &[], &[]);
        assert_eq!(begin == ["shop.example.com"], ours, "{why}");
        // Ours makes room where it would serve instead.
        if given.name.as_str() != "shop.example.com" {
            let both = [given, own("shop.example.com", 0)];
            let [begin, dropped, forget] = decide(&config, &apps, &both, &[order("shop.example.com")], &[]);
            assert!(begin.is_empty(), "{why}");
            assert_eq!(
                (dropped.len(), forget.len()),
                if ours { (0, 0) } else { (1, 1) },
                "{why}"
            );
        }
    }
}

#[test]
fn renewed_after_two_thirds_of_the_lifetime() {
    let config = AcmeConfig::default();
    let apps = [app("shop", &["shop.example.com"])];
    for (age, begins) in [
        (0, none()),
        (59, none()),
        (60, vec!["shop.example.com again".to_owned()]),
    ] {
        let [begin, ..] = decide(&config, &apps, &[own("shop.example.com", age)], &[], &[]);
        assert_eq!(begin, begins, "{age} days");
    }
    // Those that nobody wants stay until they expire: the app may come back.
    for (age, forgotten) in [(61, none()), (90, vec!["shop.example.com".to_owned()])] {
        let got = decide(&config, &[], &[own("shop.example.com", age)], &[], &[]);
        assert_eq!(got, [none(), none(), forgotten], "{age} days");
    }
}

#[test]
fn leases_pauses_and_places_are_kept() {
    let config = AcmeConfig::default();
    let names: Vec<String> = (0..6).map(|n| format!("d{n}.example.com")).collect();
    let list: Vec<&str> = names.iter().map(String::as_str).collect();
    let apps = [app("shop", &list)];
    let mut held = order("d0.example.com");
    (held.holder, held.held_until) = ("other".into(), NOW.plus(days(1)));
    let mut mine = order("d1.example.com");
    (mine.holder, mine.held_until, mine.url) = ("me".into(), NOW.plus(days(1)), Some("https://a.test/1".into()));
    let mut paused = order("d2.example.com");
    (paused.failures, paused.next_try) = (1, NOW.plus(Duration::from_millis(1)));
    let mut lapsed = order("d3.example.com");
    (lapsed.holder, lapsed.held_until) = ("other".into(), NOW);
    let orders = [held.clone(), mine, paused.clone(), lapsed];
    let [begin, dropped, _] = decide(&config, &apps, &[], &orders, &["d5.example.com"]);
    assert_eq!(begin, ["d1.example.com", "d3.example.com", "d4.example.com"]);
    assert!(dropped.is_empty());
    let full = ["w.test", "x.test", "y.test", "z.test"];
    assert_eq!(decide(&config, &apps, &[], &orders, &full)[0], none());
    // Those without come before those that still serve, which go by their end.
    let certificates = [
        own("d3.example.com", 70),
        own("d4.example.com", 80),
        own("d1.example.com", 95),
    ];
    let [begin, ..] = decide(&config, &apps, &certificates, &orders, &[]);
    assert_eq!(
        begin,
        [
            "d1.example.com again",
            "d5.example.com",
            "d4.example.com again",
            "d3.example.com again"
        ]
    );
    // Nobody wants them any more: what others work on is theirs to end.
    let [_, dropped, _] = decide(&config, &[], &[], &[held, paused], &[]);
    assert_eq!(dropped, ["d2.example.com"]);
}

#[test]
fn pauses_double_and_stay_below_what_authorities_allow() {
    let minutes = |failures| pause(failures, 0).as_secs() / 60;
    assert_eq!([1, 2, 3, 4, 5].map(minutes), [5, 10, 20, 40, 80]);
    assert_eq!([9, 10, 40, u32::MAX].map(minutes), [1_280, 1_440, 1_440, 1_440]);
    let mut at = Duration::ZERO;
    let tries = (1..100).take_while(|n| {
        at += pause(*n, 0);
        at < Duration::from_secs(3_600)
    });
    assert!(tries.count() < 5, "five failed validations an hour and name");
    assert!(pause(1, 999) < Duration::from_secs(331) && pause(1, u32::MAX) == pause(1, 999));
}

proptest! {
    #[test]
    fn never_too_many_never_unasked_never_in_the_place_of_what_was_given(
        wanted in proptest::collection::btree_set(0..12u8, 0..12),
        given_hosts in proptest::collection::btree_set(0..12u8, 0..6),
        own_ages in proptest::collection::btree_map(0..12u8, 0..120u64, 0..12),
        waiting in proptest::collection::btree_map(0..12u8, (any::<bool>(), -5i64..5), 0..12),
        running in proptest::collection::btree_set(0..12u8, 0..6),
    ) {
        let name = |n: &u8| format!("d{n}.example.com");
        let domains: Vec<String> = wanted.iter().map(name).collect();
        let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
        let apps = [app("shop", &domains)];
        let mut certificates: Vec<Certificate> = given_hosts.iter().map(|n| given(&format!("g{n}"), &name(n), 1)).collect();
        certificates.extend(own_ages.iter().map(|(n, age)| own(&name(n), *age)));
        let orders: Vec<CertificateOrder> = waiting.iter().map(|(n, (other, at))| {
            let mut order = order(&name(n));
            order.next_try = Timestamp::from_millis(NOW.as_millis() + at);
            if *other { (order.holder, order.held_until) = ("other".into(), Timestamp::from_millis(NOW.as_millis() - at)); }
            order
        }).collect();
        let running: BTreeSet<CertificateName> = running.iter().map(|n| name(n).parse().unwrap()).collect();
        let config = AcmeConfig::default();
        let view = View { config: &config, apps: &apps, certificates: &certificates, orders: &orders, running: &running, me: "me", now: NOW };
        let plan = plan(&view);
        prop_assert!(plan.begin.len() + running.len() <= AT_ONCE.max(running.len()));
        for begin in &plan.begin {
            let domain = begin.order.domain.as_str();
            prop_assert!(domains.contains(&domain));
            prop_assert!(!given_hosts.iter().any(|n| name(n) == domain));
            prop_assert!(!running.contains(domain_of(begin)));
            prop_assert!(begin.order.next_try <= NOW && !begin.order.is_held_by_other("me", NOW));
        }
        for order in &plan.drop {
            prop_assert!(!plan.begin.iter().any(|b| b.order.domain == order.domain));
        }
        for forgotten in &plan.forget {
            prop_assert!(certificates.iter().any(|c| c.name == *forgotten && c.source == CertificateSource::Acme));
        }
    }
}

fn domain_of(begin: &Begin) -> &CertificateName {
    &begin.order.domain
}
