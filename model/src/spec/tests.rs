//! Which specs and configurations are accepted.

use super::*;

fn sound() -> ReleaseSpec {
    ReleaseSpec {
        image: "127.0.0.1:5000/hello:1".into(),
        ..ReleaseSpec::default()
    }
}

#[test]
fn the_defaults_are_sound() {
    assert_eq!(sound().check(), []);
    assert_eq!(AppConfig::default().check(), []);
}

#[test]
fn each_bad_field_is_named() {
    let mut spec = sound();
    spec.memory_mb = 5;
    spec.env.insert("A-B".into(), String::new());
    spec.env.insert("CAAS_APP".into(), String::new());
    spec.env.insert("OK".into(), "a\0".into());
    spec.health.path = "ping".into();
    spec.update = Update {
        max_surge: 0,
        max_unavailable: 0,
        deadline_s: 120,
    };
    spec.port = 0;
    let fields: Vec<String> = spec.check().into_iter().map(|e| e.field).collect();
    assert_eq!(
        fields,
        [
            "/port",
            "/memory_mb",
            "/env/A-B",
            "/env/CAAS_APP",
            "/env/OK",
            "/health/path",
            "/update"
        ]
    );
}

#[test]
fn an_app_can_not_be_both_sought_and_shunned() {
    let mut spec = sound();
    spec.placement.together_with = Some("db".parse().unwrap());
    spec.placement.apart_from = Some("other".parse().unwrap());
    assert_eq!(spec.check(), []);
    spec.placement.apart_from = spec.placement.together_with.clone();
    let errors = spec.check();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].field, "/placement/apart_from");
}

#[test]
fn limits_and_time_outs_of_an_app_are_bounded() {
    let most = AppConfig {
        limits: Limits {
            requests_per_second_per_client: 1_000_000,
            requests_per_second: 1_000_000,
            max_body_bytes: 1 << 40,
            max_in_flight: 1_000_000,
            ..Limits::default()
        },
        timeouts: Timeouts {
            connect_ms: 60_000,
            response_s: 86_400,
            idle_s: 86_400,
        },
        ..AppConfig::default()
    };
    assert_eq!(most.check(), []);
    let mut beyond = most;
    beyond.limits.requests_per_second_per_client += 1;
    beyond.limits.requests_per_second += 1;
    beyond.limits.max_body_bytes += 1;
    beyond.limits.max_in_flight += 1;
    beyond.timeouts.connect_ms += 1;
    beyond.timeouts.response_s += 1;
    beyond.timeouts.idle_s += 1;
    let fields: Vec<String> = beyond.check().into_iter().map(|e| e.field).collect();
    assert_eq!(
        fields,
        [
            "/limits/requests_per_second_per_client",
            "/limits/requests_per_second",
            "/limits/max_body_bytes",
            "/limits/max_in_flight",
            "/timeouts/connect_ms",
            "/timeouts/response_s",
            "/timeouts/idle_s",
        ]
    );
}

#[test]
fn image_references() {
    for good in [
        "hello",
        "hello:1",
        "r:5000/hello:1",
        "10.0.0.1:5000/team/hello:v1.2",
        "localhost/x",
        "[::1]:5000/x:1",
    ] {
        assert!(image_reference(good), "{good}");
    }
    for bad in [
        "",
        ":1",
        "UPPER",
        "r:5000/",
        "a//b",
        "a b",
        "a:b:c",
        "a@sha256:12",
        "-v/:/host",
        "../x",
        "x\n",
    ] {
        assert!(!image_reference(bad), "{bad:?}");
    }
}

#[test]
fn domains() {
    assert!(domain_name("shop.example.com"));
    for bad in ["", "a", "A.b", "-a.b", "a-.b", "a..b", "a.b.", "a_b.c", "a.b/c"] {
        assert!(!domain_name(bad), "{bad:?}");
    }
}

#[test]
fn unknown_fields_of_a_spec_are_refused_and_of_a_config_ignored() {
    assert!(serde_json::from_str::<ReleaseSpec>(r#"{"privileged":true}"#).is_err());
    assert!(serde_json::from_str::<AppConfig>(r#"{"from_the_future":1}"#).is_ok());
}
