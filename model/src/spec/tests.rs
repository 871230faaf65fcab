//! Which specs and configurations are accepted.

use super::*;
use crate::AppConfig;

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
fn unknown_fields_of_a_spec_are_refused_and_of_a_config_ignored() {
    assert!(serde_json::from_str::<ReleaseSpec>(r#"{"privileged":true}"#).is_err());
    assert!(serde_json::from_str::<AppConfig>(r#"{"from_the_future":1}"#).is_ok());
}

#[test]
fn a_tcp_app_is_connected_to_unless_another_path_is_named() {
    let default = HealthCheck::default();
    assert_eq!(default.suited_to(Protocol::Tcp).kind, ProbeKind::Tcp);
    assert_eq!(default.suited_to(Protocol::Http), default);
    let own = HealthCheck {
        path: "/healthy".into(),
        ..default
    };
    assert_eq!(own.suited_to(Protocol::Tcp), own);
}
