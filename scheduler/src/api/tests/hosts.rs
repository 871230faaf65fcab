use std::collections::BTreeMap;
use std::net::IpAddr;

use model::engine::LaunchSpec;
use model::store::{Outcome, Pick, PlaceOutcome, Placing};
use model::{Instance, InstanceChange, InstanceId};

use super::*;

/// Places an instance of `app` on `h1` and starts its container.
pub(super) async fn start_instance(world: &World, app: &str, token: &str) -> Instance {
    start_on(world, app, "h1", token).await
}

/// Places an instance of `app` on `host` and starts its container.
pub(super) async fn start_on(world: &World, app: &str, host: &str, token: &str) -> Instance {
    let app = world.store.app_fetch(&app.parse().unwrap()).await.unwrap().unwrap();
    let release = world.store.release_fetch(&app.id, app.release).await.unwrap().unwrap();
    let placing = Placing {
        app: app.id.clone(),
        expected_placements: app.placements,
        expected_generation: app.generation,
        not_before: None,
        picks: vec![Pick {
            instance: InstanceId::random(),
            host: host.parse().unwrap(),
            release: app.release,
            version: release.version.clone(),
            memory_mb: 64,
            cpu_weight: 1024,
            token_hash: hex::encode(Sha256::digest(token)),
        }],
    };
    let PlaceOutcome::Placed { placed, .. } = world.store.instance_place(&placing, Timestamp::now()).await.unwrap()
    else {
        panic!("not placed");
    };
    let instance = placed[0].clone();
    let spec = LaunchSpec {
        platform: world.store.platform_id().await.unwrap(),
        app: app.id,
        version: release.version.clone(),
        instance: instance.id.clone(),
        image: release.pinned_image(),
        command: Vec::new(),
        env: BTreeMap::new(),
        host_ip: IpAddr::from([127, 0, 0, 1]),
        host_port: instance.port,
        container_port: 8080,
        memory_mb: 64,
        cpu_weight: 1024,
        pids_limit: 100,
    };
    let engine: Arc<dyn model::engine::Engine> = world.fake(host);
    engine
        .image_pull(&spec.image, None, std::time::Duration::from_secs(5))
        .await
        .unwrap();
    let container = engine.launch(&spec).await.unwrap();
    update(
        world,
        &instance,
        InstanceChange::Started {
            container,
            restart: false,
        },
    )
    .await
}

pub(super) async fn update(world: &World, instance: &Instance, change: InstanceChange) -> Instance {
    match world
        .store
        .instance_update(instance, &change, Timestamp::now())
        .await
        .unwrap()
    {
        Outcome::Updated(instance) => instance,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_host_joins_with_what_its_engine_says() {
    let world = World::new().await;
    let mut host = world.host("h1");
    host.as_object_mut().unwrap().remove("memory_mb");
    let joined = world.post("/hosts", &host).await.is(201);
    assert_eq!(joined.body["memory_mb"], 16_384 - 1_638);
    assert_eq!(joined.body["cpu_millis"], 8_000);
    assert_eq!(joined.body["port_range"], json!([20_000, 29_999]));
    world
        .post("/hosts", &host)
        .await
        .problem(409, "CONFLICT")
        .field("/name");
    host["name"] = json!("h2");
    world
        .post("/hosts", &host)
        .await
        .problem(409, "CONFLICT")
        .field("/engine");
    world.fake("h3").set_unreachable(true);
    world
        .post("/hosts", &world.host("h3"))
        .await
        .problem(503, "ENGINE_UNREACHABLE")
        .field("/engine");
    assert_eq!(world.get("/hosts").await.is(200).body.as_array().unwrap().len(), 1);
    world.get("/hosts/h9").await.problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn what_can_not_be_a_host_is_refused() {
    let world = World::new().await;
    let refused = async |key: &str, value: Value, field: &str| {
        let mut host = world.host("h1");
        host[key] = value;
        world
            .post("/hosts", &host)
            .await
            .problem(400, "INVALID_SPEC")
            .field(field);
    };
    for address in [
        "0.0.0.0",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "224.0.0.1",
        "::",
        "fe80::1",
        "host.example.com",
    ] {
        refused("address", json!(address), "/address").await;
    }
    for engine in [
        "",
        "http://h:2375",
        "ssh://h",
        "unix",
        "tcp://h\n:1",
        "file:///etc/passwd",
    ] {
        refused("engine", json!(engine), "/engine").await;
    }
    for range in [json!([1, 100]), json!([30_000, 20_000]), json!([0, 0])] {
        refused("port_range", range, "/port_range").await;
    }
    refused("name", json!("H_1"), "/name").await;
    refused("labels", json!({"": "x"}), "/labels").await;
    refused("region", json!("a b"), "/region").await;
    refused("memory_mb", json!(1), "/memory_mb").await;
    refused("root", json!(true), "/root").await;
    let strict = World::with(Config::default()).await;
    strict
        .post("/hosts", &strict.host("h1"))
        .await
        .problem(400, "INVALID_SPEC")
        .field("/engine");
}

#[tokio::test]
async fn hosts_are_labelled_closed_emptied_and_taken_away() {
    let world = World::with_host().await;
    let stale = world.get("/hosts/h1").await.is(200).etag();
    let patched = world
        .send(
            "PATCH",
            "/hosts/h1",
            &[("if-match", &stale)],
            r#"{"labels":{"disk":"ssd"},"memory_mb":500}"#,
        )
        .await
        .is(200);
    assert_eq!(
        (&patched.body["labels"]["disk"], &patched.body["memory_mb"]),
        (&json!("ssd"), &json!(500))
    );
    world
        .send("PATCH", "/hosts/h1", &[("if-match", &stale)], r#"{"labels":{}}"#)
        .await
        .problem(412, "VERSION_CONFLICT");
    world
        .send("PATCH", "/hosts/h1", &[], r#"{"labels":null}"#)
        .await
        .problem(400, "INVALID_SPEC");
    world
        .send("POST", "/hosts/h1/cordon", &[("if-match", &stale)], "")
        .await
        .problem(412, "VERSION_CONFLICT");

    assert_eq!(
        world.send("POST", "/hosts/h1/cordon", &[], "").await.is(200).body["schedulability"],
        "cordoned"
    );
    world
        .deploy("hello", json!({"version": "1"}))
        .await
        .problem(409, "NO_CAPACITY");
    assert_eq!(
        world.send("POST", "/hosts/h1/uncordon", &[], "").await.is(200).body["schedulability"],
        "schedulable"
    );
    world.deploy("hello", json!({"version": "1"})).await.is(202);
    let instance = start_instance(&world, "hello", "t").await;

    let refused = world
        .send("DELETE", "/hosts/h1", &[], "")
        .await
        .problem(409, "CONFLICT");
    assert!(
        refused.body["reasons"][0]
            .as_str()
            .unwrap()
            .contains(instance.id.as_str())
    );
    let plan = world
        .send("POST", "/hosts/h1/drain?dry_run=true", &[], "")
        .await
        .is(200);
    assert_eq!(plan.body["plan"]["reasons"].as_array().unwrap().len(), 1);
    let drain = world.send("POST", "/hosts/h1/drain", &[], "").await.is(202);
    let again = world.send("POST", "/hosts/h1/drain", &[], "").await.is(202);
    assert_eq!(drain.body["operation"]["id"], again.body["operation"]["id"]);
    assert_eq!(drain.body["operation"]["kind"], "drain_host");
    assert_eq!(world.get("/hosts/h1").await.is(200).body["schedulability"], "draining");
    world.send("POST", "/hosts/h1/uncordon", &[], "").await.is(200);
    let id = drain.body["operation"]["id"].as_str().unwrap();
    assert_eq!(
        world.get(&format!("/operations/{id}")).await.is(200).body["state"],
        "superseded"
    );

    let instance = update(&world, &instance, InstanceChange::Drain).await;
    let instance = update(&world, &instance, InstanceChange::Drained).await;
    update(&world, &instance, InstanceChange::Stopped).await;
    world.send("DELETE", "/hosts/h1", &[], "").await.is(204);
    world
        .send("DELETE", "/hosts/h1", &[], "")
        .await
        .problem(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_twins_that_are_added_at_once_one_joins() {
    let world = Arc::new(World::new().await);
    let race = async |key: Option<&'static str>, hosts: Vec<Value>| {
        let added = hosts.into_iter().map(|host| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let headers: Vec<_> = key.map(|key| ("idempotency-key", key)).into_iter().collect();
                world.send("POST", "/hosts", &headers, host.to_string()).await
            })
        });
        let mut statuses = Vec::new();
        for answer in futures::future::join_all(added).await {
            let answer = answer.unwrap();
            if answer.status != 201 {
                statuses.push(answer.problem(409, "CONFLICT").status.as_u16());
            } else {
                statuses.push(201);
            }
        }
        statuses.sort_unstable();
        statuses
    };
    let same = |name: &str| vec![world.host(name); 4];
    assert_eq!(race(None, same("h1")).await, [201, 409, 409, 409]);
    // One request, however often it is sent, and whenever one of them is through.
    for (key, name) in [
        ("k1", "h2"),
        ("k2", "t2"),
        ("k3", "t3"),
        ("k4", "t4"),
        ("k5", "t5"),
        ("k6", "t6"),
    ] {
        assert_eq!(race(Some(key), same(name)).await, [201; 4]);
    }
    // One engine under several names.
    let mut names: Vec<Value> = (0..4).map(|n| world.host(&format!("n{n}"))).collect();
    for host in &mut names {
        host["engine"] = world.host("h3")["engine"].clone();
    }
    assert_eq!(race(None, names).await, [201, 409, 409, 409]);
    assert_eq!(world.get("/hosts").await.is(200).body.as_array().unwrap().len(), 8);
}

#[tokio::test]
async fn host_calls_with_a_key_are_done_once() {
    let world = World::new().await;
    let send = async |method: &str, path: &str, key: &str, body: String| {
        world.send(method, path, &[("idempotency-key", key)], body).await
    };
    let host = world.host("h1").to_string();
    let joined = send("POST", "/hosts", "join", host.clone()).await.is(201);
    let again = send("POST", "/hosts", "join", host.clone()).await.is(201);
    assert_eq!((&joined.body, joined.etag()), (&again.body, again.etag()));
    send("POST", "/hosts", "join", world.host("h2").to_string())
        .await
        .problem(422, "IDEMPOTENCY_KEY_REUSED");
    send("PATCH", "/hosts/h1", "patch", r#"{"memory_mb":700}"#.into())
        .await
        .is(200);
    send("PATCH", "/hosts/h1", "patch2", r#"{"memory_mb":800}"#.into())
        .await
        .is(200);
    let late = send("PATCH", "/hosts/h1", "patch", r#"{"memory_mb":700}"#.into())
        .await
        .is(200);
    assert_eq!(late.body["memory_mb"], 800, "what was asked for since stands");
    send("PATCH", "/hosts/h1", "patch", r#"{"memory_mb":701}"#.into())
        .await
        .problem(422, "IDEMPOTENCY_KEY_REUSED");

    send("POST", "/hosts/h1/cordon", "cordon", String::new()).await.is(200);
    send("POST", "/hosts/h1/uncordon", "uncordon", String::new())
        .await
        .is(200);
    let late = send("POST", "/hosts/h1/cordon", "cordon", String::new()).await.is(200);
    assert_eq!(late.body["schedulability"], "schedulable");

    let drain = send("POST", "/hosts/h1/drain", "drain", String::new()).await.is(202);
    send("POST", "/hosts/h1/uncordon", "uncordon2", String::new())
        .await
        .is(200);
    let late = send("POST", "/hosts/h1/drain", "drain", String::new()).await.is(202);
    assert_eq!(late.body["operation"]["id"], drain.body["operation"]["id"]);
    assert_eq!(late.body["operation"]["state"], "superseded");
    assert_eq!(
        world.get("/hosts/h1").await.is(200).body["schedulability"],
        "schedulable"
    );

    world
        .send("DELETE", "/hosts/h1", &[("if-match", "\"1\"")], "")
        .await
        .problem(412, "VERSION_CONFLICT");
    send("DELETE", "/hosts/h1", "leave", String::new()).await.is(204);
    send("DELETE", "/hosts/h1", "leave", String::new()).await.is(204);
    send("DELETE", "/hosts/h1", "leave2", String::new())
        .await
        .problem(404, "NOT_FOUND");
}
