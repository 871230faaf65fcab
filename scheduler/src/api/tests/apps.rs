use std::time::Duration;

use backends::engine::FakeImage;
use model::store::Outcome;
use model::{Operation, OperationState};

use super::*;

#[tokio::test]
async fn a_deploy_makes_app_release_operation_and_audit() {
    let world = World::with_host().await;
    let answer = world
        .deploy(
            "hello",
            json!({"version": "1", "instances": 2, "spec": {"port": 3000, "env": {"A": "'; DROP TABLE apps; --"}}}),
        )
        .await
        .is(202);
    let operation: Operation = serde_json::from_value(answer.body["operation"].clone()).unwrap();
    assert_eq!(operation.release, Some(1));
    assert_eq!(
        answer.headers["location"],
        format!("/api/v1/operations/{}", operation.id)
    );

    let info = world.get("/apps/hello").await.is(200);
    assert_eq!(info.etag(), answer.etag());
    assert_eq!(info.body["app"]["instances"], 2);
    assert_eq!(info.body["release"]["spec"]["image"], "127.0.0.1:5000/hello:1");
    assert_eq!(info.body["release"]["spec"]["port"], 3000);
    assert!(info.body["release"]["digest"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(info.body["operation"]["id"], operation.id.as_str());
    assert_eq!(info.body["url"], "http://hello.test/");

    let events = world.get("/apps/hello/events").await.is(200);
    let deploy = events
        .body
        .as_array()
        .unwrap()
        .iter()
        .find(|e| e["kind"] == "app")
        .unwrap();
    assert_eq!(deploy["actor"], "tester");
    let apps = world.get("/apps").await.is(200);
    assert_eq!(
        (&apps.body[0]["id"], &apps.body[0]["version"]),
        (&json!("hello"), &json!("1"))
    );
    assert_eq!(
        world.get(&format!("/operations/{}", operation.id)).await.is(200).body["kind"],
        "deploy"
    );
    assert_eq!(
        world
            .get("/operations?app=hello")
            .await
            .is(200)
            .body
            .as_array()
            .unwrap()
            .len(),
        1
    );

    // The next release takes over what is not given anew.
    world
        .deploy("hello", json!({"version": "2", "spec": {"memory_mb": 64}}))
        .await
        .is(202);
    let release = &world.get("/apps/hello/releases").await.is(200).body[0];
    assert_eq!((&release["number"], &release["version"]), (&json!(2), &json!("2")));
    assert_eq!(
        (&release["spec"]["port"], &release["spec"]["memory_mb"]),
        (&json!(3000), &json!(64))
    );
    assert_eq!(release["spec"]["env"]["A"], "'; DROP TABLE apps; --");
    assert_eq!(release["spec"]["image"], "127.0.0.1:5000/hello:2");
    let first = world.get(&format!("/operations/{}", operation.id)).await.is(200);
    assert_eq!(first.body["state"], "superseded");
}

#[tokio::test]
async fn the_other_verbs_change_what_is_wanted() {
    let world = World::with_host().await;
    world
        .post("/apps/hello/scale", &json!({"instances": 1}))
        .await
        .problem(404, "NOT_FOUND");
    world.deploy("hello", json!({"version": "1"})).await.is(202);
    let app = async || world.get("/apps/hello").await.is(200).body["app"].clone();

    world.post("/apps/hello/scale", &json!({"instances": 3})).await.is(202);
    assert_eq!(app().await["instances"], 3);
    world
        .post("/apps/hello/scale", &json!({"instances": 1001}))
        .await
        .problem(400, "INVALID_SPEC")
        .field("/instances");
    world.send("POST", "/apps/hello/restart", &[], "").await.is(202);
    assert!(app().await["restart_before"].is_string());
    world.send("POST", "/apps/hello/stop", &[], "").await.is(202);
    assert_eq!(app().await["status"], "stopped");
    world
        .send("POST", "/apps/hello/restart", &[], "")
        .await
        .problem(409, "CONFLICT");
    world.send("POST", "/apps/hello/start", &[], "").await.is(202);
    assert_eq!(app().await["status"], "running");

    let config = json!({"domains": ["shop.example.com"], "limits": {"deny": ["10.0.0.0/8"]}});
    let done = world
        .send("PUT", "/apps/hello/config", &[], config.to_string())
        .await
        .is(202);
    assert_eq!(
        done.body["operation"]["kind"], "start",
        "the open operation goes on: {:#}",
        done.body
    );
    assert_eq!(app().await["config"]["domains"][0], "shop.example.com");
    world
        .deploy("other", json!({"version": "1", "config": config}))
        .await
        .problem(409, "CONFLICT")
        .field("/config/domains/0");

    let removed = world.send("DELETE", "/apps/hello", &[], "").await.is(202);
    let again = world.send("DELETE", "/apps/hello", &[], "").await.is(202);
    assert_eq!(removed.body["operation"]["id"], again.body["operation"]["id"]);
    world
        .deploy("hello", json!({"version": "1"}))
        .await
        .problem(409, "APP_BUSY");
    world
        .post("/apps/hello/scale", &json!({"instances": 1}))
        .await
        .problem(409, "APP_BUSY");
}

#[tokio::test]
async fn the_path_that_says_whose_an_instance_is_can_be_set_and_taken_back() {
    let world = World::with_host().await;
    let body = |path: &str| json!({"version": "1", "config": {"identity_path": path}});
    world.deploy("hello", body("/who")).await.is(202);
    let path = async || world.get("/apps/hello").await.is(200).body["app"]["config"]["identity_path"].clone();
    assert_eq!(path().await, "/who");
    let refused = world.deploy("hello", body("who")).await;
    refused.problem(400, "INVALID_SPEC").field("/config/identity_path");
    let bytes = json!({"version": "1", "config": {"protocol": "tcp", "identity_path": "/who"}});
    let refused = world.deploy("bytes", bytes).await;
    refused.problem(400, "INVALID_SPEC").field("/config/identity_path");
    world.deploy("hello", json!({"version": "2"})).await.is(202);
    assert_eq!(path().await, "/who", "as it was");
    world.deploy("hello", body("")).await.is(202);
    assert_eq!(path().await, "");
}

/// Marks the app's newest operation and release as the loops do when all is routed.
async fn settle(world: &World, app: &str) {
    let app = world.store.app_fetch(&app.parse().unwrap()).await.unwrap().unwrap();
    let mut operation = world
        .store
        .operation_fetch(app.operation.as_ref().unwrap())
        .await
        .unwrap()
        .unwrap();
    operation.state = OperationState::Succeeded;
    let now = Timestamp::now();
    assert!(matches!(
        world.store.operation_update(&operation, now).await.unwrap(),
        Outcome::Updated(_)
    ));
    let routed = model::store::AppSettle::Routed { release: app.release };
    assert!(matches!(
        world.store.app_settle(&app, &routed, now).await.unwrap(),
        Outcome::Updated(_)
    ));
}

#[tokio::test]
async fn a_rollback_returns_to_the_last_release_that_worked() {
    let world = World::with_host().await;
    world.deploy("hello", json!({"version": "1"})).await.is(202);
    world
        .post("/apps/hello/rollback", &json!({}))
        .await
        .problem(409, "CONFLICT");
    settle(&world, "hello").await;
    world.deploy("hello", json!({"version": "2"})).await.is(202);
    let release = async || world.get("/apps/hello").await.is(200).body["app"]["release"].clone();
    // From one on its way, from one that worked, and back again.
    world.send("POST", "/apps/hello/rollback", &[], "").await.is(202);
    assert_eq!(release().await, 1);
    settle(&world, "hello").await;
    world.deploy("hello", json!({"version": "3"})).await.is(202);
    settle(&world, "hello").await;
    world.send("POST", "/apps/hello/rollback", &[], "").await.is(202);
    assert_eq!(release().await, 1);
    settle(&world, "hello").await;
    world.send("POST", "/apps/hello/rollback", &[], "").await.is(202);
    assert_eq!(release().await, 3);
    world.post("/apps/hello/rollback", &json!({"release": 2})).await.is(202);
    assert_eq!(release().await, 2);
    world
        .post("/apps/hello/rollback", &json!({"release": 2}))
        .await
        .problem(409, "CONFLICT");
    world
        .post("/apps/hello/rollback", &json!({"release": 9}))
        .await
        .problem(404, "NOT_FOUND")
        .field("/release");
}

#[tokio::test]
async fn the_way_back_does_not_grow_old() {
    let world = World::with_host().await;
    for version in ["1", "2", "3"] {
        world.deploy("hello", json!({"version": version})).await.is(202);
        settle(&world, "hello").await;
    }
    // So much later that no operation tells of release 2 any more.
    let later = Timestamp::now().plus(std::time::Duration::from_secs(40 * 24 * 3_600));
    while world.store.history_prune(20, later, later).await.unwrap() > 0 {}
    world.send("POST", "/apps/hello/rollback", &[], "").await.is(202);
    let app = world.get("/apps/hello").await.is(200).body["app"].clone();
    assert_eq!((&app["release"], &app["previous_release"]), (&json!(2), &json!(3)));
}

#[tokio::test]
async fn a_stale_etag_is_refused() {
    let world = World::with_host().await;
    let first = world.deploy("hello", json!({"version": "1"})).await.is(202).etag();
    let second = world
        .send(
            "POST",
            "/apps/hello/scale",
            &[("if-match", &first)],
            r#"{"instances":2}"#,
        )
        .await
        .is(202)
        .etag();
    assert_ne!(first, second);
    for (path, body) in [
        ("/apps/hello/scale", r#"{"instances":3}"#),
        ("/apps/hello/deploy", r#"{"version":"2"}"#),
        ("/apps/hello/stop", ""),
    ] {
        world
            .send("POST", path, &[("if-match", &first)], body)
            .await
            .problem(412, "VERSION_CONFLICT");
    }
    world
        .send("PUT", "/apps/hello/config", &[("if-match", &first)], "{}")
        .await
        .problem(412, "VERSION_CONFLICT");
    world
        .send("PUT", "/apps/hello/config", &[("if-match", "7")], "{}")
        .await
        .problem(400, "INVALID_REQUEST");
    assert_eq!(world.get("/apps/hello").await.is(200).body["app"]["instances"], 2);
}

#[tokio::test]
async fn the_same_key_is_one_deploy_also_in_parallel() {
    let world = World::with_host().await;
    let deploy = async |key: &str, body: &'static str| {
        let headers = [("idempotency-key", key)];
        world.send("POST", "/apps/hello/deploy", &headers, body).await
    };
    let body = r#"{"version":"1","spec":{"memory_mb":900}}"#;
    let answers = futures::future::join_all((0..8).map(|_| deploy("k1", body))).await;
    let ids: std::collections::BTreeSet<String> = answers
        .into_iter()
        .map(|a| a.is(202).body["operation"]["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(
        world
            .get("/apps/hello/releases")
            .await
            .is(200)
            .body
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // Also when the first has used up what the second would need.
    world
        .fake("h1")
        .set_image("127.0.0.1:5000/hello:1", FakeImage::RegistryDown);
    assert!(
        ids.contains(
            deploy("k1", body).await.is(202).body["operation"]["id"]
                .as_str()
                .unwrap()
        )
    );
    deploy("k1", r#"{"version":"2"}"#)
        .await
        .problem(422, "IDEMPOTENCY_KEY_REUSED");
    deploy("", body).await.problem(400, "INVALID_REQUEST");
    // Without a key each is one.
    world.fake("h1").set_image("127.0.0.1:5000/hello:1", FakeImage::Present);
    let answers = futures::future::join_all((0..4).map(|_| world.deploy("hello", json!({"version": "1"})))).await;
    assert!(answers.iter().all(|a| a.status == 202), "{answers:#?}");
    assert_eq!(world.get("/apps/hello").await.is(200).body["app"]["release"], 5);
}

#[tokio::test]
async fn registries_and_engines_that_fail_are_told_apart() {
    let world = World::with_host().await;
    let fake = world.fake("h1");
    for (image, status, code) in [
        (FakeImage::Missing, 422, "IMAGE_NOT_FOUND"),
        (FakeImage::Denied, 422, "REGISTRY_DENIED"),
        (FakeImage::RegistryDown, 503, "REGISTRY_UNREACHABLE"),
    ] {
        fake.set_image("127.0.0.1:5000/hello:1", image);
        let answer = world
            .deploy("hello", json!({"version": "1"}))
            .await
            .problem(status, code);
        assert_eq!(answer.body["retryable"], status == 503);
    }
    fake.set_unreachable(true);
    world
        .deploy("hello", json!({"version": "2"}))
        .await
        .problem(503, "ENGINE_UNREACHABLE");
    fake.set_unreachable(false);
    world.get("/apps/hello").await.problem(404, "NOT_FOUND");
    // Another host may reach what the first does not.
    world.post("/hosts", &world.host("h2")).await.is(201);
    world.deploy("hello", json!({"version": "1"})).await.is(202);
}

#[tokio::test]
async fn without_room_a_deploy_is_refused_unless_it_may_wait() {
    let world = World::new().await;
    let none = world
        .deploy("hello", json!({"version": "1"}))
        .await
        .problem(409, "NO_CAPACITY");
    assert!(!none.body["reasons"].as_array().unwrap().is_empty());
    world.post("/hosts", &world.host("h1")).await.is(201);
    let big = json!({"version": "1", "spec": {"memory_mb": 2000}});
    let none = world.deploy("hello", big.clone()).await.problem(409, "NO_CAPACITY");
    assert!(
        none.body["reasons"][0].as_str().unwrap().contains("memory"),
        "{:#}",
        none.body
    );
    world.get("/apps/hello").await.problem(404, "NOT_FOUND");
    world.post("/apps/hello/deploy?queue=true", &big).await.is(202);
    let why = world.get("/apps/hello/why").await.is(200);
    assert_eq!(why.body["explanation"]["hosts"], 1);
    assert_eq!(why.body["explanation"]["refused"].as_array().unwrap().len(), 1);

    world
        .post("/apps/hello/scale", &json!({"instances": 2}))
        .await
        .problem(409, "NO_CAPACITY");
    world
        .post("/apps/hello/scale?queue=true", &json!({"instances": 2}))
        .await
        .is(202);
    world.post("/apps/hello/scale", &json!({"instances": 0})).await.is(202);

    let plan = world
        .post(
            "/apps/other/deploy?dry_run=true",
            &json!({"version": "1", "instances": 5}),
        )
        .await
        .is(200);
    assert_eq!(plan.body["plan"]["would_place"], json!(["h1", "h1", "h1"]));
    assert!(!plan.body["plan"]["reasons"].as_array().unwrap().is_empty());
    world.get("/apps/other").await.problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn a_wait_ends_with_the_operation_or_its_time() {
    let world = World::with_host().await;
    let late = world
        .post("/apps/hello/deploy?wait=50ms", &json!({"version": "1"}))
        .await
        .is(202);
    assert_eq!(late.body["operation"]["state"], "running");
    let id = late.body["operation"]["id"].as_str().unwrap().to_owned();
    let waiting = world.router.clone().oneshot(
        Request::get(format!("/api/v1/operations/{id}?wait=60s"))
            .header("authorization", format!("Bearer {TOKEN}"))
            .body(Body::empty())
            .unwrap(),
    );
    let (answer, ()) = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::join!(waiting, settle(&world, "hello"))
    })
    .await
    .expect("woken by the change");
    let body = answer.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["state"], "succeeded");
    let done = world.send("PUT", "/apps/hello/config?wait=1s", &[], "{}").await.is(200);
    assert_eq!(done.body["operation"]["kind"], "configure");
    world
        .get(&format!("/operations/{id}?wait=1h"))
        .await
        .problem(400, "INVALID_REQUEST")
        .field("wait");
}
