use std::time::Duration;

use axum::body::BodyDataStream;
use futures::StreamExt as _;
use model::{Failure, FailureCode, Instance, InstanceChange};

use super::hosts::{start_instance, update};
use super::*;

/// A stream of server-sent events, read event by event.
struct Events {
    body: BodyDataStream,
    buffer: String,
}

impl Events {
    async fn open(world: &World, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut request = Request::get(format!("/api/v1{path}"))
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("accept", "text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = world
            .router
            .clone()
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        Self {
            body: response.into_body().into_data_stream(),
            buffer: String::new(),
        }
    }

    /// The id and the data of the next event; `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let field = |name: &str| {
                    event
                        .lines()
                        .find_map(|l| l.strip_prefix(name))
                        .unwrap_or_default()
                        .trim()
                        .to_owned()
                };
                let found = (
                    field("id:"),
                    serde_json::from_str(&field("data:")).unwrap_or(Value::Null),
                );
                self.buffer = rest.to_owned();
                return Some(found);
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.body.next())
                .await
                .expect("in time")?;
            self.buffer.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
    }
}

#[tokio::test]
async fn events_are_followed_and_resumed() {
    let world = World::with_host().await;
    let mut live = Events::open(&world, "/events", &[]).await;
    let first = tokio::join!(live.next(), world.deploy("hello", json!({"version": "1"})))
        .0
        .unwrap();
    assert_eq!(first.0, first.1["seq"].to_string());
    assert_eq!(first.1["app"], "hello");
    let mut all = Events::open(&world, "/events", &[("last-event-id", "0")]).await;
    assert_eq!(all.next().await.unwrap().1["kind"], "host");
    let mut resumed = Events::open(&world, "/events", &[("last-event-id", "1")]).await;
    assert_eq!(resumed.next().await.unwrap().0, "2");
    let mut of_app = Events::open(&world, "/events?after=0&app=hello", &[]).await;
    assert_eq!(of_app.next().await.unwrap().1["app"], "hello");
    world
        .send(
            "GET",
            "/events",
            &[("accept", "text/event-stream"), ("last-event-id", "x")],
            "",
        )
        .await
        .problem(400, "INVALID_REQUEST");
    let list = world.get("/events?limit=1").await.is(200);
    let newest = world.store.event_newest().await.unwrap();
    assert_eq!(list.body.as_array().unwrap().len(), 1);
    assert_eq!(list.body[0]["seq"], newest);
    // Shutdown ends every stream.
    world.stop.cancel();
    while live.next().await.is_some() {}
}

#[tokio::test]
async fn logs_are_read_and_followed() {
    let world = World::with_host().await;
    world
        .deploy("hello", json!({"version": "1", "instances": 2}))
        .await
        .is(202);
    let a = start_instance(&world, "hello", "t").await;
    let fake = world.fake("h1");
    for line in ["one", "two", "three"] {
        fake.log(&a.id, false, line);
    }
    let path = format!("/instances/{}/logs", a.id);
    let text = world
        .send("GET", &format!("{path}?tail=2"), &[("accept", "text/plain")], "")
        .await
        .is(200);
    assert_eq!(text.body, "two\nthree\n");
    let mut events = Events::open(&world, &path, &[]).await;
    assert_eq!(events.next().await.unwrap().1["text"], "one");
    world
        .get(&format!("{path}?tail=10001"))
        .await
        .problem(400, "INVALID_REQUEST")
        .field("tail");

    let mut all = Events::open(&world, "/apps/hello/logs?follow=true&tail=1", &[]).await;
    let line = all.next().await.unwrap().1;
    assert_eq!(
        (&line["instance"], &line["line"]["text"]),
        (&json!(a.id.as_str()), &json!("three"))
    );
    // An instance that comes later is followed from its first line on.
    let b = start_instance(&world, "hello", "t").await;
    fake.log(&b.id, true, "late");
    let line = all.next().await.unwrap().1;
    assert_eq!(
        (&line["instance"], &line["line"]["text"]),
        (&json!(b.id.as_str()), &json!("late"))
    );
    let text = world
        .send("GET", "/apps/hello/logs", &[("accept", "text/plain")], "")
        .await
        .is(200);
    let text = text.body.as_str().unwrap().to_owned();
    assert!(
        text.contains(&format!("{} three\n", a.id)) && text.ends_with(&format!("{} late\n", b.id)),
        "{text}"
    );

    // Of one that is gone the last lines are kept.
    let failure = Failure {
        log_tail: vec!["last".into(), "words".into()],
        ..Failure::new(FailureCode::Exited, "it exited")
    };
    let a = update(&world, &a, InstanceChange::Failed(failure)).await;
    let a = update(&world, &a, InstanceChange::Stopped).await;
    let text = world
        .send(
            "GET",
            &format!("/instances/{}/logs", a.id),
            &[("accept", "text/plain")],
            "",
        )
        .await
        .is(200);
    assert_eq!(text.body, "last\nwords\n");
}

/// An app with an instance on each of two hosts, `h1` and `h2`.
async fn on_two_hosts() -> (World, Instance, Instance) {
    let world = World::with_host().await;
    world
        .deploy("hello", json!({"version": "1", "instances": 2}))
        .await
        .is(202);
    let here = start_instance(&world, "hello", "t").await;
    world.post("/hosts", &world.host("h2")).await.is(201);
    let there = super::hosts::start_on(&world, "hello", "h2", "t").await;
    (world, here, there)
}

#[tokio::test]
async fn an_apps_log_tells_what_can_be_read_when_a_host_can_not_be_asked() {
    let (world, here, there) = on_two_hosts().await;
    world.fake("h1").log(&here.id, false, "still read");
    world.fake("h2").log(&there.id, false, "out of reach");
    for silent in [false, true] {
        world.fake("h2").set_unreachable(!silent);
        world.fake("h2").set_silent(silent);
        let text = world
            .send("GET", "/apps/hello/logs", &[("accept", "text/plain")], "")
            .await
            .is(200);
        let text = text.body.as_str().unwrap().to_owned();
        assert!(text.contains(&format!("{} still read\n", here.id)), "{text}");
        assert!(
            text.contains(&format!("{} [host h2 could not be asked: ", there.id)) && !text.contains("out of reach"),
            "{text}"
        );
    }
    let mut events = Events::open(&world, "/apps/hello/logs", &[]).await;
    let mut unasked = Vec::new();
    while let Some((_, line)) = events.next().await {
        unasked.push(line["unasked"].clone());
    }
    unasked.sort_by_key(Value::is_null);
    assert_eq!(unasked, [json!("h2"), Value::Null], "a field for programs");
}

#[tokio::test]
async fn who_follows_an_apps_log_waits_for_no_silent_host_and_misses_nothing_of_a_log_that_ended() {
    let (world, here, _) = on_two_hosts().await;
    world.fake("h2").set_silent(true);
    let mut events = Events::open(&world, "/apps/hello/logs?follow=true", &[]).await;
    let mut next = async || {
        let event = tokio::time::timeout(Duration::from_secs(4), events.next()).await;
        let (_, line) = event.expect("nobody waits for the silent one").expect("it goes on");
        line["line"]["text"].as_str().expect("a line").to_owned()
    };
    world.fake("h1").log(&here.id, false, "one");
    assert_eq!(next().await, "one");
    // As when the engine is started anew: the log ends, the instance goes on.
    world.fake("h1").exit(&here.id, 0, false);
    tokio::time::sleep(Duration::from_millis(5)).await;
    world.fake("h1").log(&here.id, false, "two");
    assert_eq!(next().await, "two");
}

#[tokio::test]
async fn an_instance_beats_with_its_own_token_only() {
    let world = World::with_host().await;
    world.deploy("hello", json!({"version": "1"})).await.is(202);
    let instance = start_instance(&world, "hello", "own-token").await;
    let path = format!("/instances/{}/heartbeat", instance.id);
    let beat = |token: &str| {
        let value = format!("Bearer {token}");
        let world = &world;
        let path = path.clone();
        async move { world.send("PUT", &path, &[("authorization", &value)], "").await }
    };
    beat("own-token").await.is(204);
    beat("other").await.problem(401, "UNAUTHENTICATED");
    beat(TOKEN).await.problem(401, "UNAUTHENTICATED");
    world
        .send(
            "PUT",
            "/instances/nobody/heartbeat",
            &[("authorization", "Bearer own-token")],
            "",
        )
        .await
        .problem(401, "UNAUTHENTICATED");
    let shown = world.get(&format!("/instances/{}", instance.id)).await.is(200);
    assert!(shown.body["heartbeat_at"].is_string());
    assert!(
        world
            .get(&format!("/instances/{}/stats", instance.id))
            .await
            .is(200)
            .body["pids"]
            .is_u64()
    );
}

#[tokio::test]
async fn an_instance_is_replaced_on_demand() {
    let world = World::with_host().await;
    world
        .deploy("hello", json!({"version": "1", "instances": 2}))
        .await
        .is(202);
    let instance = start_instance(&world, "hello", "t").await;
    start_instance(&world, "hello", "t").await;
    let path = format!("/instances/{}/restart", instance.id);
    world
        .send("POST", &path, &[("if-match", "\"999\"")], "")
        .await
        .problem(412, "VERSION_CONFLICT");
    world
        .send("POST", &format!("{path}?dry_run=true"), &[], "")
        .await
        .is(200);
    let etag = format!("\"{}\"", instance.generation);
    let answer = world.send("POST", &path, &[("if-match", &etag)], "").await.is(202);
    assert_eq!(answer.body["operation"]["app"], "hello");
    let shown = world.get(&format!("/instances/{}", instance.id)).await.is(200);
    assert_eq!(shown.body["state"], "draining");
    assert_eq!(
        world
            .get("/instances?app=hello&host=h1")
            .await
            .is(200)
            .body
            .as_array()
            .unwrap()
            .len(),
        2
    );
    world
        .send("POST", "/instances/nobody/restart", &[], "")
        .await
        .problem(404, "NOT_FOUND");
}

#[tokio::test]
async fn the_only_instance_serves_until_its_replacement_does() {
    let world = World::with_host().await;
    world.deploy("hello", json!({"version": "1"})).await.is(202);
    let instance = start_instance(&world, "hello", "t").await;
    let instance = update(&world, &instance, InstanceChange::Healthy { assumed: false }).await;
    let path = format!("/instances/{}/restart", instance.id);
    world.send("POST", &path, &[], "").await.is(202);
    let app = world.store.app_fetch(&"hello".parse().unwrap()).await.unwrap().unwrap();
    assert!(app.restart_before.is_some());
    let shown = world.get(&format!("/instances/{}", instance.id)).await.is(200);
    assert_eq!(shown.body["state"], "running");
}

#[tokio::test]
async fn a_pruned_instance_can_not_be_replaced_but_what_was_asked_for_is_still_known() {
    let world = World::with_host().await;
    world
        .deploy("hello", json!({"version": "1", "instances": 2}))
        .await
        .is(202);
    let instance = start_instance(&world, "hello", "t").await;
    start_instance(&world, "hello", "t").await;
    let path = format!("/instances/{}/restart", instance.id);
    let keyed = [("idempotency-key", "once")];
    let first = world.send("POST", &path, &keyed, "").await.is(202);
    let instance = world.store.instance_fetch(&instance.id).await.unwrap().unwrap();
    let instance = update(&world, &instance, InstanceChange::Drained).await;
    update(&world, &instance, InstanceChange::Stopped).await;
    world.send("POST", &path, &[], "").await.problem(409, "CONFLICT");
    let now = model::Timestamp::now();
    world
        .store
        .history_prune(0, now.minus(Duration::from_secs(60)), now)
        .await
        .unwrap();
    world.send("POST", &path, &[], "").await.problem(404, "NOT_FOUND");
    let again = world.send("POST", &path, &keyed, "").await.is(202);
    assert_eq!(again.body["operation"]["id"], first.body["operation"]["id"]);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let world = World::new().await;
    for i in 1..=5 {
        world.post("/hosts", &world.host(&format!("h{i}"))).await.is(201);
    }
    let mut path = "/hosts?limit=2".to_owned();
    let mut seen = Vec::new();
    loop {
        let page = world.get(&path).await.is(200);
        seen.extend(
            page.body
                .as_array()
                .unwrap()
                .iter()
                .map(|h| h["name"].as_str().unwrap().to_owned()),
        );
        let Some(link) = page.headers.get("link") else { break };
        let link = link.to_str().unwrap();
        let next = link.strip_prefix("</api/v1").unwrap().split_once('>').unwrap().0;
        path = next.to_owned();
    }
    assert_eq!(seen, ["h1", "h2", "h3", "h4", "h5"]);
    world
        .get("/hosts?cursor=none")
        .await
        .problem(400, "INVALID_REQUEST")
        .field("cursor");
}
