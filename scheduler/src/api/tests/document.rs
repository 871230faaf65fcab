use std::collections::BTreeSet;

use super::*;

/// Every route of the API.
const ROUTES: [(&str, &str); 47] = [
    ("get", "/api/v1/apps"),
    ("get", "/api/v1/apps/{app}"),
    ("delete", "/api/v1/apps/{app}"),
    ("put", "/api/v1/apps/{app}/config"),
    ("post", "/api/v1/apps/{app}/deploy"),
    ("post", "/api/v1/apps/{app}/scale"),
    ("post", "/api/v1/apps/{app}/restart"),
    ("post", "/api/v1/apps/{app}/stop"),
    ("post", "/api/v1/apps/{app}/start"),
    ("post", "/api/v1/apps/{app}/rollback"),
    ("post", "/api/v1/apps/{app}/canary"),
    ("post", "/api/v1/apps/{app}/promote"),
    ("post", "/api/v1/apps/{app}/abort"),
    ("get", "/api/v1/apps/{app}/releases"),
    ("get", "/api/v1/apps/{app}/instances"),
    ("get", "/api/v1/apps/{app}/events"),
    ("get", "/api/v1/apps/{app}/logs"),
    ("get", "/api/v1/apps/{app}/why"),
    ("get", "/api/v1/instances"),
    ("get", "/api/v1/instances/{instance}"),
    ("get", "/api/v1/instances/{instance}/logs"),
    ("get", "/api/v1/instances/{instance}/stats"),
    ("post", "/api/v1/instances/{instance}/restart"),
    ("put", "/api/v1/instances/{instance}/heartbeat"),
    ("get", "/api/v1/hosts"),
    ("post", "/api/v1/hosts"),
    ("get", "/api/v1/hosts/{host}"),
    ("patch", "/api/v1/hosts/{host}"),
    ("delete", "/api/v1/hosts/{host}"),
    ("post", "/api/v1/hosts/{host}/cordon"),
    ("post", "/api/v1/hosts/{host}/uncordon"),
    ("post", "/api/v1/hosts/{host}/drain"),
    ("get", "/api/v1/operations"),
    ("get", "/api/v1/operations/{operation}"),
    ("get", "/api/v1/events"),
    ("get", "/api/v1/certificates"),
    ("get", "/api/v1/certificates/{certificate}"),
    ("put", "/api/v1/certificates/{certificate}"),
    ("delete", "/api/v1/certificates/{certificate}"),
    ("get", "/api/v1/registries"),
    ("get", "/api/v1/registries/{registry}"),
    ("put", "/api/v1/registries/{registry}"),
    ("delete", "/api/v1/registries/{registry}"),
    ("get", "/healthz/live"),
    ("get", "/healthz/ready"),
    ("get", "/metrics"),
    ("get", "/openapi.json"),
];

async fn document() -> Value {
    World::new().await.get("/openapi.json").await.is(200).body
}

#[tokio::test]
async fn every_route_is_in_the_document_and_no_other() {
    let document = document().await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut found = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            found.insert((method.clone(), path.clone()));
            assert!(
                operation["summary"].is_string(),
                "{method} {path} says nothing of itself"
            );
            assert!(operation["responses"]["default"].is_object(), "{method} {path}");
            let parameters: BTreeSet<&str> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|p| p["name"].as_str())
                .collect();
            for name in path.split('{').skip(1).filter_map(|p| p.split_once('}')).map(|p| p.0) {
                assert!(parameters.contains(name), "{method} {path} lacks {name}");
            }
        }
    }
    let wanted: BTreeSet<_> = ROUTES.iter().map(|(m, p)| ((*m).to_owned(), (*p).to_owned())).collect();
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn every_reference_in_the_document_leads_somewhere() {
    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }
    let document = document().await;
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 20, "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

/// What is really sent has exactly the fields that the document shows.
#[tokio::test]
async fn the_document_shows_what_is_sent() {
    let document = document().await;
    let world = World::with_host().await;
    world.deploy("hello", json!({"version": "1"})).await.is(202);
    let instance = super::hosts::start_instance(&world, "hello", "t").await;
    let shown = |name: &str| -> BTreeSet<String> {
        document["components"]["schemas"][name]["properties"]
            .as_object()
            .unwrap_or_else(|| panic!("no schema {name}"))
            .keys()
            .cloned()
            .collect()
    };
    let keys = |value: &Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
    let info = world.get("/apps/hello").await.is(200).body;
    let release = &info["release"];
    let why = world.get("/apps/hello/why").await.is(200).body;
    let stats = world
        .get(&format!("/instances/{}/stats", instance.id))
        .await
        .is(200)
        .body;
    for (name, value) in [
        ("AppInfo", &info),
        ("App", &info["app"]),
        ("AppConfig", &info["app"]["config"]),
        ("Limits", &info["app"]["config"]["limits"]),
        ("Timeouts", &info["app"]["config"]["timeouts"]),
        ("Release", release),
        ("ReleaseSpec", &release["spec"]),
        ("HealthCheck", &release["spec"]["health"]),
        ("Placement", &release["spec"]["placement"]),
        ("Update", &release["spec"]["update"]),
        ("Operation", &info["operation"]),
        ("Step", &info["operation"]["steps"][0]),
        ("Instance", &info["instances"][0]),
        ("Host", &world.get("/hosts/h1").await.is(200).body),
        ("Why", &why),
        ("Explanation", &why["explanation"]),
        ("Fit", &why["explanation"]["fitting"][0]),
        ("ContainerStats", &stats),
    ] {
        assert_eq!(keys(value), shown(name), "{name}");
    }
    let failure = model::Failure::new(model::FailureCode::Exited, "x");
    assert_eq!(keys(&serde_json::to_value(failure).unwrap()), shown("Failure"));
    let summary = &world.get("/apps").await.is(200).body[0];
    assert!(shown("AppSummary").is_subset(&keys(summary)));
    let event = &world.get("/events").await.is(200).body[0];
    assert!(keys(event).is_subset(&shown("Event")));
}
