use super::*;

#[tokio::test]
async fn requests_without_a_valid_token_are_refused() {
    let world = World::new().await;
    let wrong = TOKEN.replace("0123", "9999");
    let unknown = TOKEN.replace("testtest", "nobodyxx");
    for value in [
        "",
        "Bearer",
        "Bearer x",
        "Basic abc",
        &format!("Bearer {wrong}"),
        &format!("Bearer {unknown}"),
        TOKEN,
    ] {
        for (method, path) in [
            ("GET", "/apps"),
            ("POST", "/apps/hello/deploy"),
            ("DELETE", "/hosts/h1"),
            ("GET", "/events"),
        ] {
            let answer = world
                .send(method, path, &[("authorization", value)], "{}")
                .await
                .problem(401, "UNAUTHENTICATED");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
    }
    world
        .send("GET", "/apps", &[("authorization", &format!("bearer {TOKEN}"))], "")
        .await
        .is(200);
    for open in ["/healthz/live", "/healthz/ready", "/metrics", "/openapi.json"] {
        world.send("GET", open, &[("authorization", "none")], "").await.is(200);
    }
}

#[tokio::test]
async fn bad_fields_are_named() {
    let world = World::with_host().await;
    for (app, body, field) in [
        ("Hello", json!({"version": "1"}), "/app"),
        ("..%2f..", json!({"version": "1"}), "/app"),
        ("a%00", json!({"version": "1"}), "/app"),
    ] {
        world
            .deploy(app, body)
            .await
            .problem(400, "INVALID_REQUEST")
            .field(field);
    }
    for (body, field) in [
        (json!({}), ""),
        (json!({"version": "a/b"}), "/version"),
        (json!({"version": 1}), "/version"),
        (json!({"version": "1", "privileged": true}), "/privileged"),
        (json!({"version": "1", "instances": -1}), "/instances"),
        (json!({"version": "1", "instances": 1001}), "/instances"),
        (json!({"version": "1", "image": "-v/:/host"}), "/image"),
        (json!({"version": "1", "spec": {"image": "UPPER"}}), "/spec/image"),
        (json!({"version": "1", "spec": {"memory_mb": 1}}), "/spec/memory_mb"),
        (json!({"version": "1", "spec": {"memory_mb": "256"}}), "/spec/memory_mb"),
        (json!({"version": "1", "spec": {"port": 70000}}), "/spec/port"),
        (
            json!({"version": "1", "spec": {"volumes": ["/:/host"]}}),
            "/spec/volumes",
        ),
        (
            json!({"version": "1", "spec": {"env": {"CAAS_APP": "x"}}}),
            "/spec/env/CAAS_APP",
        ),
        (
            json!({"version": "1", "spec": {"health": {"path": "x"}}}),
            "/spec/health/path",
        ),
        (
            json!({"version": "1", "spec": {"placement": {"labels": {"com.docker\n": "x"}}}}),
            "/spec/placement/labels",
        ),
        (
            json!({"version": "1", "spec": {"placement": {"together_with": "No"}}}),
            "/spec/placement/together_with",
        ),
        (
            json!({"version": "1", "config": {"domains": ["a"]}}),
            "/config/domains/0",
        ),
        (json!({"version": "1", "config": {"domain": ["a.b"]}}), "/config/domain"),
    ] {
        let shown = body.to_string();
        let answer = world.deploy("hello", body).await.problem(400, "INVALID_SPEC");
        assert_eq!(answer.body["field"], field, "{shown}: {:#}", answer.body);
    }
    world.get("/apps").await.is(200);
    world.get("/operations/%ff").await.problem(400, "INVALID_REQUEST");
    world.get("/instances?app=No").await.problem(400, "INVALID_REQUEST");
    world
        .get("/instances?limit=0")
        .await
        .problem(400, "INVALID_REQUEST")
        .field("limit");
    world.get("/events?after=-1").await.problem(400, "INVALID_REQUEST");
    world
        .post("/apps/hello/deploy?dry_run=perhaps", &json!({"version": "1"}))
        .await
        .problem(400, "INVALID_REQUEST");
}

#[tokio::test]
async fn heartbeats_are_refused_where_no_container_could_send_them() {
    let body = json!({"version": "1", "spec": {"health": {"kind": "heartbeat"}}});
    let world = World::with_host().await;
    let answer = world.deploy("hello", body.clone()).await.problem(400, "INVALID_SPEC");
    assert!(
        answer.body["detail"]
            .as_str()
            .unwrap()
            .contains("scheduler.converge.api_url")
    );
    answer.field("/spec/health/kind");

    let mut config = Config {
        allow_fake_engines: true,
        ..Config::default()
    };
    config.converge.api_url = Some("http://10.0.0.1:8090".into());
    let world = World::with(config).await;
    world.post("/hosts", &world.host("h1")).await.is(201);
    world.deploy("hello", body).await.is(202);
}

#[tokio::test]
async fn bodies_that_are_no_sound_json_are_refused() {
    let world = World::with_host().await;
    let deep = format!(
        "{{\"version\":\"1\",\"spec\":{}{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    for body in [
        "",
        "{",
        "[]x",
        "{\"version\":\"1\",\"version\":\"2\"}",
        "{\"version\":\"1\",\"spec\":{\"env\":{\"A\":\"1\",\"A\":\"2\"}}}",
        "{\"version\":\"1\",\"spec\":{\"env\":{\"A\":\"\\u0000\"}}}",
        "{\"version\":\"1\\u0000\"}",
        "{\"instances\":NaN}",
        "\u{feff}{}",
        &deep,
    ] {
        world
            .send("POST", "/apps/hello/deploy", &[], body.to_owned())
            .await
            .problem(400, "INVALID_REQUEST");
    }
    world
        .send("POST", "/apps/hello/deploy", &[], vec![0xff_u8, 0xfe])
        .await
        .problem(400, "INVALID_REQUEST");
    world
        .send("POST", "/apps/hello/deploy", &[], "[]")
        .await
        .problem(400, "INVALID_SPEC");
    let big = format!("{{\"version\":\"{}\"}}", "1".repeat(2 * 1024 * 1024));
    world
        .send("POST", "/apps/hello/deploy", &[], big.clone())
        .await
        .problem(413, "PAYLOAD_TOO_LARGE");
    world
        .send("POST", "/hosts", &[], big)
        .await
        .problem(413, "PAYLOAD_TOO_LARGE");
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems_too() {
    let world = World::new().await;
    for path in ["/", "/nothing", "/apps/hello/none", "/apps/../hosts"] {
        world.get(path).await.problem(404, "NOT_FOUND");
    }
    let answer = world
        .send("PUT", "/apps", &[], "")
        .await
        .problem(405, "METHOD_NOT_ALLOWED");
    assert!(answer.headers["allow"].to_str().unwrap().contains("GET"));
    // A sane request id is taken over, another is not.
    let answer = world.send("GET", "/nothing", &[("x-request-id", "abc-1")], "").await;
    assert_eq!(answer.body["request_id"], "abc-1");
    let answer = world
        .send("GET", "/nothing", &[("x-request-id", "a b<script>")], "")
        .await
        .problem(404, "NOT_FOUND");
    assert_ne!(answer.body["request_id"], "a b<script>");
    assert_eq!(world.get("/apps").await.is(200).headers["x-request-id"].len(), 32);
}

#[tokio::test]
async fn sql_in_any_text_is_only_text() {
    let world = World::with_host().await;
    let evil = "x'); DROP TABLE apps; --\" OR 1=1";
    let encoded = "x'%29;%20DROP%20TABLE%20apps;%20--";
    world.deploy("hello", json!({"version": evil})).await.is(400);
    world
        .deploy("hello", json!({"version": "1", "image": evil}))
        .await
        .is(400);
    world
        .deploy("hello", json!({"version": "1", "spec": {"env": {evil: "1"}}}))
        .await
        .is(400);
    world
        .deploy(
            "hello",
            json!({"version": "1", "spec": {"env": {"A": evil}, "command": [evil]}}),
        )
        .await
        .is(202);
    for path in ["/apps", "/hosts", "/instances", "/operations"] {
        world.get(&format!("{path}/{encoded}")).await.is(400);
    }
    world.get(&format!("/registries/{encoded}")).await.is(404);
    world
        .send("DELETE", &format!("/registries/{encoded}"), &[], "")
        .await
        .is(404);
    world.get(&format!("/instances?app={encoded}")).await.is(400);
    world.get(&format!("/events?app={encoded}")).await.is(400);
    let credentials = json!({"username": evil, "password": evil}).to_string();
    world
        .send("PUT", &format!("/registries/{encoded}"), &[], credentials.clone())
        .await
        .is(400);
    world.send("PUT", "/registries/r:5000", &[], credentials).await.is(200);
    world
        .send("POST", "/apps/hello/stop", &[("idempotency-key", evil)], "")
        .await
        .is(202);
    let command = &world.get("/apps/hello").await.is(200).body["release"]["spec"]["command"][0];
    assert_eq!(command, evil);
}

#[tokio::test]
async fn passwords_never_come_out() {
    let world = World::new().await;
    let credentials = r#"{"username":"u","password":"topsecret"}"#;
    world
        .send("PUT", "/registries/r.example.com:5000", &[], credentials)
        .await
        .is(200);
    let list = world.get("/registries").await.is(200);
    assert_eq!(list.body, json!([{"registry": "r.example.com:5000", "username": "u"}]));
    for path in ["/registries/r.example.com:5000", "/events", "/metrics"] {
        assert!(!world.get(path).await.is(200).body.to_string().contains("topsecret"));
    }
    world
        .send("DELETE", "/registries/r.example.com:5000", &[], "")
        .await
        .is(204);
    world
        .send("DELETE", "/registries/r.example.com:5000", &[], "")
        .await
        .problem(404, "NOT_FOUND");
    for bad in [
        r#"{"username":"","password":"x"}"#,
        r#"{"username":"u","password":"a\nb"}"#,
        r#"{"username":"u"}"#,
    ] {
        world.send("PUT", "/registries/r", &[], bad).await.is(400);
    }
}

#[tokio::test]
async fn the_first_token_is_written_for_its_owner() {
    let world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("admin.token");
    // There is a token: nothing happens.
    super::super::auth::ensure_admin_token(&*world.store, Some(&file))
        .await
        .unwrap();
    assert!(!file.exists());
    let url = format!("sqlite://{}", dir.path().join("fresh.db").display());
    backends::store::migrate(&url).await.unwrap();
    let store = backends::store::open(&url).await.unwrap();
    super::super::auth::ensure_admin_token(&*store, Some(&file))
        .await
        .unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let id = &text[5..13];
    let token = store.token_fetch(id).await.unwrap().unwrap();
    assert_eq!(token.name, "admin");
    assert!(!text.contains(&token.secret_hash));
}
