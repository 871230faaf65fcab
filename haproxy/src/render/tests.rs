//! What stands in the configuration, and what never does.

use super::*;
use model::registry::RegistryRevision;

fn snapshot(entries: &[(&str, &str, &str, &str)], configs: &[(&str, &str)]) -> RegistrySnapshot {
    let mut snapshot = RegistrySnapshot {
        revision: RegistryRevision(1),
        ..RegistrySnapshot::default()
    };
    for (app, version, container, at) in entries {
        let key = EntryKey {
            app: app.parse().unwrap(),
            version: version.parse().unwrap(),
            container: container.parse().unwrap(),
        };
        snapshot.endpoints.insert(key, at.parse().unwrap());
    }
    for (app, json) in configs {
        let config = serde_json::from_str(json).unwrap();
        snapshot.configs.insert(app.parse().unwrap(), config);
    }
    snapshot
}

fn settings() -> Config {
    Config {
        out: "/tmp/h.cfg".into(),
        domain: "test".into(),
        ..Config::default()
    }
}

fn rendered(entries: &[(&str, &str, &str, &str)], configs: &[(&str, &str)]) -> Rendered {
    render(&snapshot(entries, configs), &settings(), PREAMBLE)
}

#[test]
fn apps_versions_and_domains_have_hosts() {
    let r = rendered(
        &[
            ("hello", "1", "c1", "10.0.0.1:2001"),
            ("hello", "RC2", "c2", "10.0.0.1:2002"),
            ("shop", "7", "c3", "[::1]:2003"),
        ],
        &[
            ("shop", r#"{"domains":["shop.example.com","hello.test"]}"#),
            ("empty", "{}"),
        ],
    );
    assert_eq!(
        r.map,
        "1--hello.test app:hello:1\n7--shop.test app:shop\nempty.test app:empty\nhello.test app:hello\n\
         rc2--hello.test app:hello:rc2\nshop.example.com app:shop\nshop.test app:shop\n"
    );
    for line in [
        "backend app:hello\n",
        "backend app:hello:rc2\n",
        "    server c1 10.0.0.1:2001 weight 100\n",
        "    server c3 [::1]:2003 weight 100\n",
    ] {
        assert!(r.text.contains(line), "{line} in\n{}", r.text);
    }
    assert!(r.text.contains(&r.map_path.display().to_string()));
    let again = rendered(&[("hello", "1", "c1", "10.0.0.1:2001")], &[]);
    assert_ne!(r.map_path, again.map_path, "another map has another name");
}

#[test]
fn shares_are_per_version() {
    let weights = |json: &str| -> Vec<String> {
        let entries = [
            ("a", "1", "c1", "10.0.0.1:2001"),
            ("a", "1", "c2", "10.0.0.1:2002"),
            ("a", "2", "c3", "10.0.0.1:2003"),
        ];
        let text = rendered(&entries, &[("a", json)]).text;
        let own = text
            .split("backend app:a\n")
            .nth(1)
            .unwrap()
            .split("\n\n")
            .next()
            .unwrap();
        own.lines()
            .filter_map(|l| l.split(" weight ").nth(1))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(weights("{}"), ["100", "100", "100"]);
    assert_eq!(weights(r#"{"weights":{"1":90,"2":10}}"#), ["256", "256", "57"]);
    assert_eq!(weights(r#"{"weights":{"1":0,"2":1}}"#), ["0", "0", "256"]);
    assert_eq!(weights(r#"{"weights":{"1":100}}"#), ["256", "256", "0"]);
    assert_eq!(weights(r#"{"weights":{"9":100}}"#), ["100", "100", "100"]);
}

#[test]
fn each_version_is_spoken_to_in_its_own_protocol() {
    let entries = [("a", "1", "c1", "10.0.0.1:2001"), ("a", "2", "c2", "10.0.0.1:2002")];
    let text = rendered(&entries, &[("a", r#"{"protocol":"h2c","protocols":{"1":"http"}}"#)]).text;
    // In the app's backend, and in that of the version alone.
    for (line, other) in [
        ("server c1 10.0.0.1:2001 weight 100\n", "2001 weight 100 proto h2"),
        ("server c2 10.0.0.1:2002 weight 100 proto h2\n", "2002 weight 100\n"),
    ] {
        assert_eq!(text.matches(line).count(), 2, "{text}");
        assert!(!text.contains(other), "{text}");
    }
}

#[test]
fn tcp_apps_have_frontends_of_their_own() {
    let r = rendered(
        &[
            ("db", "1", "c1", "10.0.0.1:2001"),
            ("other", "1", "c2", "10.0.0.1:2002"),
        ],
        &[
            (
                "db",
                r#"{"protocol":"tcp","tcp":{"port":15000,"proxy_protocol":"v2"},"limits":{"deny":["192.0.2.0/24"]}}"#,
            ),
            ("other", r#"{"protocol":"tcp","tcp":{"port":15000}}"#),
            ("outside", r#"{"protocol":"tcp","tcp":{"port":22}}"#),
        ],
    );
    assert_eq!(r.text.matches("frontend tcp:").count(), 1, "{}", r.text);
    assert!(
        r.text
            .contains("frontend tcp:db\n    mode tcp\n    bind 0.0.0.0:15000\n")
    );
    assert!(r.text.contains("tcp-request connection reject if { src 192.0.2.0/24 }"));
    assert!(r.text.contains("server c1 10.0.0.1:2001 weight 100 send-proxy-v2\n"));
    assert_eq!(r.map, "", "no host leads to a TCP app");
}

#[test]
fn tls_is_passed_on_where_that_is_wanted() {
    let entries = [
        ("vault", "1", "c1", "10.0.0.1:2001"),
        ("vault", "2", "c2", "10.0.0.1:2002"),
    ];
    let config = r#"{"protocol":"tcp","tcp":{"passthrough":true},"domains":["vault.example.com"]}"#;
    let r = rendered(&entries, &[("vault", config)]);
    assert!(
        !r.text.contains("tcp:vault") && !r.text.contains("caas:tls"),
        "{}",
        r.text
    );
    let settings = Config {
        tls_passthrough: Some("0.0.0.0:443".parse().unwrap()),
        ..settings()
    };
    let r = render(&snapshot(&entries, &[("vault", config)]), &settings, PREAMBLE);
    for line in [
        "bind 0.0.0.0:443\n",
        "use_backend tcp:vault if { req.ssl_sni -i vault.test }\n",
        "use_backend tcp:vault if { req.ssl_sni -i vault.example.com }\n",
        "use_backend tcp:vault:2 if { req.ssl_sni -i 2--vault.test }\n",
        "backend tcp:vault:2\n",
    ] {
        assert_eq!(r.text.matches(line).count(), 1, "{line}: {}", r.text);
    }
    assert!(!r.text.contains("frontend tcp:vault"), "no port of its own");
}

#[test]
fn a_wildcard_has_what_nobody_has_by_name() {
    let entries = [
        ("wild", "1", "c1", "10.0.0.1:2001"),
        ("shop", "1", "c2", "10.0.0.1:2002"),
        ("vault", "1", "c3", "10.0.0.1:2003"),
    ];
    let configs = [
        (
            "wild",
            r#"{"domains":["*.example.com","*.test","*.a.test","*","*x.example.com","*.*.example.com"]}"#,
        ),
        (
            "shop",
            r#"{"domains":["shop.example.com","*.example.com","other.example.org"]}"#,
        ),
        (
            "vault",
            r#"{"protocol":"tcp","tcp":{"passthrough":true},"domains":["vault.example.com","*.vault.example.com"]}"#,
        ),
    ];
    let settings = Config {
        tls_passthrough: Some("0.0.0.0:443".parse().unwrap()),
        ..settings()
    };
    let r = render(&snapshot(&entries, &configs), &settings, PREAMBLE);
    // The first app, by name, that has a domain keeps it.
    assert_eq!(
        r.map,
        "*.example.com app:shop\n1--shop.test app:shop\n1--wild.test app:wild\nother.example.org app:shop\n\
         shop.example.com app:shop\nshop.test app:shop\nvault.example.com caas:unknown\nwild.test app:wild\n"
    );
    let own = Config {
        domain: "apps.example.com".into(),
        ..settings.clone()
    };
    let map = render(&snapshot(&entries, &configs), &own, PREAMBLE).map;
    assert!(map.contains("\napps.example.com caas:unknown\n"), "{map}");
    let rules: Vec<&str> = r
        .text
        .lines()
        .map(str::trim)
        .filter(|l| l.contains("ssl_sni"))
        .collect();
    assert_eq!(
        rules,
        [
            "use_backend tcp:vault if { req.ssl_sni -i 1--vault.test }",
            "use_backend tcp:vault if { req.ssl_sni -i vault.example.com }",
            "use_backend tcp:vault if { req.ssl_sni -i vault.test }",
            "use_backend tcp:vault if { req.ssl_sni,field(2,.,0) -i vault.example.com }",
        ]
    );
    assert!(
        rendered(&entries, &configs[2..]).text.contains("caas:unknown)]"),
        "one look-up without a wildcard"
    );
}

#[test]
fn paths_of_a_host_lead_to_their_apps() {
    let entries = [
        ("api", "1", "c1", "10.0.0.1:2001"),
        ("shop", "1", "c2", "10.0.0.1:2002"),
    ];
    let configs = [
        (
            "api",
            r#"{"domains":["a.example.com/api","x.test/api","a.b/../x","a.b/x y","*.a.b/x","a.b/"]}"#,
        ),
        (
            "shop",
            r#"{"domains":["a.example.com","a.example.com/api","a.example.com/api/v2"]}"#,
        ),
        ("tcp", r#"{"protocol":"tcp","domains":["a.example.com/tcp"]}"#),
    ];
    let r = rendered(&entries, &configs);
    let rules: Vec<&str> = r.text.lines().map(str::trim).filter(|l| l.contains("{ path")).collect();
    assert_eq!(
        rules,
        [
            "use_backend app:shop if { req.hdr(host),host_only -i a.example.com } { path /api/v2 }",
            "use_backend app:shop if { req.hdr(host),host_only -i a.example.com } { path_beg /api/v2/ }",
            "use_backend app:api if { req.hdr(host),host_only -i a.example.com } { path /api }",
            "use_backend app:api if { req.hdr(host),host_only -i a.example.com } { path_beg /api/ }",
        ]
    );
    assert!(!r.map.contains('/'), "{}", r.map);
    assert!(!r.text.contains("replace-path"), "paths stay as they are");

    let stripped = [
        (
            "api",
            r#"{"strip_prefix":true,"domains":["a.example.com/api","b.example.com/api","a.example.com/api/v1.2"]}"#,
        ),
        ("zoo", r#"{"strip_prefix":true,"domains":["a.example.com/api"]}"#),
    ];
    let r = rendered(&entries, &stripped);
    let begin = r.text.find("\nbackend app:api\n").expect("the app's");
    let backend = &r.text[begin + 1..];
    let backend = &backend[..backend.find("\n\n").unwrap_or(backend.len())];
    let rules: Vec<&str> = backend
        .lines()
        .map(str::trim)
        .filter(|l| l.contains("prefix"))
        .collect();
    let on = |host: &str, path: &str, how: &str| {
        format!(
            "http-request set-var(txn.caas_prefix) str({path}) if !{{ var(txn.caas_prefix) -m found }} \
             {{ req.hdr(host),host_only -i {host} }} {{ {how} }}"
        )
    };
    assert_eq!(
        rules,
        [
            on("a.example.com", "/api/v1.2", "path /api/v1.2"),
            on("a.example.com", "/api/v1.2", "path_beg /api/v1.2/"),
            on("a.example.com", "/api", "path /api"),
            on("a.example.com", "/api", "path_beg /api/"),
            on("b.example.com", "/api", "path /api"),
            on("b.example.com", "/api", "path_beg /api/"),
            "http-request set-header X-Forwarded-Prefix /api/v1.2 if { var(txn.caas_prefix) -m str /api/v1.2 }".into(),
            "http-request replace-path ^/api/v1[.]2/?(.*) /\\1 if { var(txn.caas_prefix) -m str /api/v1.2 }".into(),
            "http-request set-header X-Forwarded-Prefix /api if { var(txn.caas_prefix) -m str /api }".into(),
            "http-request replace-path ^/api/?(.*) /\\1 if { var(txn.caas_prefix) -m str /api }".into(),
        ]
    );
    assert_eq!(
        r.text.matches("set-header X-Forwarded-Prefix").count(),
        2,
        "the first app has it"
    );
}

#[test]
fn nothing_of_the_registry_becomes_configuration_of_its_own() {
    let evil = r#"{"domains":["a.b\n    server x 6.6.6.6:80","a b.c","*.x","a\".b.c","ok.example"],
        "balance":"consistent_hash","hash":{"header":"x) if { always_true }\nlisten evil"}}"#;
    let r = rendered(
        &[
            ("hello", "1", "c1", "8.8.8.8:2001"),
            ("hello", "1", "c2", "10.0.0.1:80"),
            ("hello", "1", "c3", "169.254.169.254:8080"),
            ("hello", "1", "c4", "10.0.0.1:2001"),
        ],
        &[("hello", evil)],
    );
    assert_eq!(r.refused, 3);
    assert_eq!(r.text.matches("    server ").count(), 1, "{}", r.text);
    assert!(!r.text.contains("evil") && !r.text.contains("6.6.6.6"));
    assert_eq!(
        r.map,
        "1--hello.test app:hello\nhello.test app:hello\nok.example app:hello\n"
    );
    assert!(r.text.contains("    balance source\n"));
}

#[test]
fn the_same_registry_gives_the_same_text_whatever_its_revision() {
    let entries = [("hello", "1", "c1", "10.0.0.1:2001")];
    let mut later = snapshot(&entries, &[]);
    later.revision = RegistryRevision(99);
    assert_eq!(render(&later, &settings(), PREAMBLE), rendered(&entries, &[]));
}

#[test]
fn no_name_stands_twice() {
    let r = rendered(
        &[
            ("hello", "RC1", "c1", "10.0.0.1:2001"),
            ("hello", "b", "c1", "10.0.0.1:2002"),
            ("hello", "rc1", "c2", "10.0.0.1:2003"),
        ],
        &[],
    );
    for backend in ["app:hello", "app:hello:b", "app:hello:rc1"] {
        let line = format!("backend {backend}\n");
        assert_eq!(r.text.matches(&line).count(), 1, "{backend} in\n{}", r.text);
    }
    for section in r.text.split("\n\n") {
        let names: Vec<&str> = section
            .lines()
            .filter_map(|l| l.trim().strip_prefix("server ")?.split(' ').next())
            .collect();
        let once: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(names.len(), once.len(), "{section}");
    }
}

#[test]
fn what_a_client_says_of_where_it_comes_from_is_overwritten() {
    let text = rendered(&[("hello", "1", "c1", "10.0.0.1:2001")], &[]).text;
    for line in ["del-header Forwarded", "set-header X-Forwarded-For %[src]"] {
        assert!(
            text.contains(&format!("    http-request {line}\n")),
            "{line} in\n{text}"
        );
    }
}

#[test]
fn networks_of_ipv6_say_nothing_about_ipv4() {
    let text = |network: &str| of(&network.parse().expect("network"));
    assert_eq!(text("::/0"), "{ src ::/0 } !{ src ::ffff:0:0/96 }");
    assert_eq!(text("::ffff:0:0/96"), "{ src ::ffff:0.0.0.0/96 }");
    assert_eq!(text("2001:db8::/32"), "{ src 2001:db8::/32 }");
    assert_eq!(text("0.0.0.0/0"), "{ src 0.0.0.0/0 }");
}
