use model::store::{AppSettle, Outcome};

use super::*;

/// A world whose app hello runs version 1 fully routed.
async fn routed() -> World {
    let world = World::with_host().await;
    world
        .deploy("hello", json!({"version": "1", "instances": 2}))
        .await
        .is(202);
    world
        .deploy("hello", json!({"version": "2", "canary": 5}))
        .await
        .problem(409, "CONFLICT");
    let app = world.store.app_fetch(&"hello".parse().unwrap()).await.unwrap().unwrap();
    let operation = world
        .store
        .operation_fetch(app.operation.as_ref().unwrap())
        .await
        .unwrap();
    let mut operation = operation.unwrap();
    operation.state = model::OperationState::Succeeded;
    let now = Timestamp::now();
    world.store.operation_update(&operation, now).await.unwrap();
    let settled = world
        .store
        .app_settle(&app, &AppSettle::Routed { release: 1 }, now)
        .await;
    assert!(matches!(settled, Ok(Outcome::Updated(_))));
    world
}

async fn app(world: &World) -> Value {
    world.get("/apps/hello").await.is(200).body["app"].clone()
}

#[tokio::test]
async fn a_canary_is_begun_weighed_and_promoted() {
    let world = routed().await;
    let plan = world
        .post("/apps/hello/deploy?dry_run=true", &json!({"version": "2", "canary": 5}))
        .await
        .is(200);
    assert_eq!(plan.body["plan"]["release"], 2);
    assert_eq!(plan.body["plan"]["would_place"].as_array().unwrap().len(), 1);
    let keyed = [("idempotency-key", "once")];
    let body = json!({"version": "2", "canary": 5, "instances": 2}).to_string();
    let first = world
        .send("POST", "/apps/hello/deploy", &keyed, body.clone())
        .await
        .is(202);
    let again = world.send("POST", "/apps/hello/deploy", &keyed, body).await.is(202);
    assert_eq!(first.body["operation"]["id"], again.body["operation"]["id"]);
    assert_eq!(first.body["operation"]["kind"], "canary");
    let begun = app(&world).await;
    assert_eq!((&begun["release"], &begun["instances"]), (&json!(1), &json!(2)));
    let canary = json!({"release": 2, "version": "2", "beside": "1", "instances": 2, "percent": 5});
    assert_eq!(begun["canary"], canary);
    assert_eq!(begun["config"]["weights"], json!({"1": 95, "2": 5}));

    for body in [json!({"version": "3"}), json!({"version": "3", "canary": 5})] {
        world.deploy("hello", body).await.problem(409, "CONFLICT");
    }
    world
        .post("/apps/hello/rollback", &json!({"release": 2}))
        .await
        .problem(409, "CONFLICT");
    let stale = "\"1\"";
    world
        .send(
            "POST",
            "/apps/hello/canary",
            &[("if-match", stale)],
            r#"{"percent":50}"#,
        )
        .await
        .problem(412, "VERSION_CONFLICT");
    world.post("/apps/hello/canary", &json!({"percent": 50})).await.is(202);
    let weighed = app(&world).await;
    assert_eq!(weighed["config"]["weights"], json!({"1": 50, "2": 50}));
    world
        .send("PUT", "/apps/hello/config", &[], r#"{"slow_start_s":5}"#)
        .await
        .is(202);
    let configured = app(&world).await;
    assert_eq!(
        configured["config"]["weights"], weighed["config"]["weights"],
        "the canary's own"
    );
    assert_eq!(configured["config"]["slow_start_s"], 5);

    let promoted = world.post("/apps/hello/promote", &json!({})).await.is(202);
    assert_eq!(
        (
            &promoted.body["operation"]["kind"],
            &promoted.body["operation"]["release"]
        ),
        (&json!("promote"), &json!(2))
    );
    let promoted = app(&world).await;
    assert_eq!(
        (&promoted["release"], &promoted["previous_release"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(
        (&promoted["canary"], &promoted["config"]["weights"]),
        (&Value::Null, &json!({}))
    );
}

#[tokio::test]
async fn a_canary_is_aborted_and_bad_ones_are_refused() {
    let world = routed().await;
    for verb in ["promote", "abort"] {
        world
            .post(&format!("/apps/hello/{verb}"), &json!({}))
            .await
            .problem(409, "CONFLICT");
    }
    for (body, field) in [
        (json!({"version": "2", "canary": 101}), "/percent"),
        (json!({"version": "2", "canary": 5, "instances": 0}), "/instances"),
        (
            json!({"version": "2", "canary": 5, "config": {"domains": []}}),
            "/config",
        ),
    ] {
        world
            .deploy("hello", body)
            .await
            .problem(400, "INVALID_SPEC")
            .field(field);
    }
    world
        .deploy("hello", json!({"version": "1", "canary": 5}))
        .await
        .problem(409, "CONFLICT");
    world
        .deploy("nobody", json!({"version": "1", "canary": 5}))
        .await
        .problem(404, "NOT_FOUND");
    world
        .deploy("hello", json!({"version": "2", "canary": 5}))
        .await
        .is(202);
    world
        .post("/apps/hello/canary", &json!({"percent": 101}))
        .await
        .problem(400, "INVALID_SPEC")
        .field("/percent");
    let aborted = world.post("/apps/hello/abort", &json!({})).await.is(202);
    assert_eq!(aborted.body["operation"]["kind"], "abort");
    let app = app(&world).await;
    assert_eq!(app["canary"]["instances"], 0);
    assert_eq!(app["config"]["weights"], json!({"1": 100, "2": 0}));
    // It stands in nobody's way.
    world.deploy("hello", json!({"version": "3"})).await.is(202);
}

#[tokio::test]
async fn a_canary_may_speak_another_protocol_and_nothing_else_of_the_app() {
    let world = routed().await;
    let begin = |config: Value| json!({"version": "2", "canary": 5, "config": config});
    let whole = begin(json!({"protocol": "h2c", "sticky": "version"}));
    world
        .deploy("hello", whole)
        .await
        .problem(400, "INVALID_SPEC")
        .field("/config");
    let bytes = world.deploy("hello", begin(json!({"protocol": "tcp"}))).await;
    bytes.problem(400, "INVALID_SPEC").field("/config/protocol");
    world.deploy("hello", begin(json!({"protocol": "h2c"}))).await.is(202);
    assert_eq!(app(&world).await["config"]["protocol"], "http");
    let releases = world.get("/apps/hello/releases").await.is(200).body;
    assert_eq!(
        (&releases[0]["protocol"], &releases[1]["protocol"]),
        (&json!("h2c"), &json!("http"))
    );
    world.post("/apps/hello/promote", &json!({})).await.is(202);
    assert_eq!(app(&world).await["config"]["protocol"], "h2c");

    // What the app speaks is said by deploying it.
    let config = |body: Value| world.send("PUT", "/apps/hello/config", &[], body.to_string());
    config(json!({"redirect_https": true})).await.is(202);
    let info = app(&world).await;
    assert_eq!(
        (&info["config"]["protocol"], &info["config"]["redirect_https"]),
        (&json!("h2c"), &json!(true))
    );
    let refused = config(json!({"protocol": "http"})).await;
    refused.problem(400, "INVALID_SPEC").field("/protocol");
    let refused = config(json!({"protocols": {"1": "h2c"}})).await;
    refused.problem(400, "INVALID_SPEC").field("/protocols");
    let refused = config(json!({"drain_s": 5})).await;
    refused.problem(400, "INVALID_SPEC").field("/drain_s");
    world.post("/apps/hello/rollback", &json!({"release": 1})).await.is(202);
    assert_eq!(app(&world).await["config"]["protocol"], "http");
}
