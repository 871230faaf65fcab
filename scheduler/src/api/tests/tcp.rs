//! Apps with protocol TCP and their ports at the gateways.

use super::*;

fn tcp(config: Value) -> Value {
    let mut body = json!({"version": "1", "config": {"protocol": "tcp"}});
    if let (Value::Object(all), Value::Object(more)) = (&mut body["config"], config) {
        all.extend(more);
    }
    body
}

#[tokio::test]
async fn a_tcp_app_has_a_port_at_the_gateways() {
    let world = World::with_host().await;
    world.deploy("db", tcp(json!({}))).await.is(202);
    let info = world.get("/apps/db").await.is(200);
    assert_eq!(info.body["app"]["config"]["tcp"]["port"], 15_000);
    assert_eq!(info.body["url"], "tcp://db.test:15000");

    // Kept over deploys and whole new configurations, also when its other settings change.
    world.deploy("db", json!({"version": "2"})).await.is(202);
    let body = tcp(json!({"tcp": {"proxy_protocol": "v1"}}));
    world.deploy("db", body).await.is(202);
    let config = json!({"protocol": "tcp", "balance": "least_request"}).to_string();
    world.send("PUT", "/apps/db/config", &[], config).await.is(202);
    let info = world.get("/apps/db").await.is(200);
    assert_eq!(info.body["app"]["config"]["tcp"]["port"], 15_000);
    assert_eq!(info.body["app"]["config"]["tcp"]["proxy_protocol"], "none");

    // A wish is honoured, or the answer says whose the port is.
    let wish = |port: u16| tcp(json!({"tcp": {"port": port}}));
    let taken = world.deploy("cache", wish(15_000)).await;
    let taken = taken.problem(409, "CONFLICT").field("/config/tcp/port");
    assert!(
        taken.body["detail"].as_str().unwrap().contains("app db"),
        "{}",
        taken.body
    );
    world.get("/apps/cache").await.is(404);
    world.deploy("cache", wish(15_007)).await.is(202);
    let apps = world.get("/apps").await.is(200);
    assert_eq!(apps.body[0]["url"], "tcp://cache.test:15007");
    let outside = world.deploy("third", wish(80)).await;
    outside.problem(400, "INVALID_SPEC").field("/config/tcp/port");

    // Speaking something else gives it back; it then rests.
    world
        .deploy("db", json!({"version": "3", "config": {"protocol": "http"}}))
        .await
        .is(202);
    let info = world.get("/apps/db").await.is(200);
    assert_eq!(info.body["app"]["config"]["tcp"]["port"], 0);
    assert_eq!(info.body["url"], "http://db.test/");
    world.deploy("third", tcp(json!({}))).await.is(202);
    let third = world.get("/apps/third").await.is(200);
    assert_eq!(third.body["app"]["config"]["tcp"]["port"], 15_001);
}

#[tokio::test]
async fn no_port_left_is_told() {
    let world = World::with(Config {
        allow_fake_engines: true,
        gateway_tcp_ports: "15000".parse().unwrap(),
        ..Config::default()
    })
    .await;
    world.post("/hosts", &world.host("h1")).await.is(201);
    world.deploy("db", tcp(json!({}))).await.is(202);
    let full = world.deploy("cache", tcp(json!({}))).await.problem(409, "CONFLICT");
    assert!(
        full.body["detail"].as_str().unwrap().contains("15000-15000"),
        "{}",
        full.body
    );
}
