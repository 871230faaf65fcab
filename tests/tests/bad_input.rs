//! Input that can't be served is refused at once, with a code, a sentence and the field.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::api::{Reply, deploy_body};
use e2e::wait::{expect, until};
use e2e::{Platform, wait};
use serde_json::{Value, json};

crate::support::in_both_modes! {
    bad_requests_name_the_field,
    tokens_are_checked,
    conflicts_are_told,
    images_that_can_not_be_had,
    no_room_is_told_with_reasons_and_placed_when_room_comes,
}

fn refused(reply: &Reply, status: u16, code: &str) -> Result<()> {
    let told = reply.body["detail"].as_str().is_some_and(|detail| !detail.is_empty());
    expect(reply.status == status && reply.code() == code && told, || {
        format!("wanted {status} {code}, got {reply:?}")
    })
}

async fn bad_requests_name_the_field(p: &Platform) -> Result<()> {
    let image = p.hello("1");
    let deploy = |spec: Value| deploy_body("1", &image, 1, spec);
    for (app, body, field) in [
        ("fields", deploy(json!({"memory_mb": 1})), "/spec/memory_mb"),
        ("fields", deploy(json!({"port": 0})), "/spec/port"),
        (
            "fields",
            deploy(json!({"env": {"CAAS_APP": "x"}})),
            "/spec/env/CAAS_APP",
        ),
        (
            "fields",
            deploy(json!({"health": {"path": "ping"}})),
            "/spec/health/path",
        ),
        ("fields", deploy(json!({"privileged": true})), "/spec/privileged"),
        ("fields", json!({"version": "../1", "image": image}), "/version"),
        ("fields", json!({"version": "1", "image": "-v/:/host"}), "/image"),
        (
            "fields",
            json!({"version": "1", "image": image, "instances": -1}),
            "/instances",
        ),
        // Of the path: as if it stood in the body.
        ("Bad_App", deploy(Value::Null), "/app"),
    ] {
        let reply = p.api.call("POST", &format!("/apps/{app}/deploy"), Some(&body)).await?;
        let sound = reply.status == 400 && ["INVALID_SPEC", "INVALID_REQUEST"].contains(&reply.code());
        expect(sound, || format!("{body}: {reply:?}"))?;
        let named = reply.body["field"].as_str().unwrap_or_default();
        expect(named == field, || format!("wanted field {field}: {reply:?}"))?;
    }
    refused(&p.api.call("GET", "/apps/nobody", None).await?, 404, "NOT_FOUND")?;
    refused(
        &p.api
            .call("POST", "/apps/nobody/scale", Some(&json!({"instances": 2})))
            .await?,
        404,
        "NOT_FOUND",
    )
}

async fn tokens_are_checked(p: &Platform) -> Result<()> {
    let other = "caas_e2eadmin_9999999999abcdefghij0123456789abcdefghij";
    for token in [
        "",
        "nonsense",
        "caas_nobody00_0123456789abcdefghij0123456789abcdefghij",
        other,
    ] {
        let api = p.api.with_token(token);
        refused(&api.call("GET", "/apps", None).await?, 401, "UNAUTHENTICATED")?;
        refused(&api.call("DELETE", "/apps/any", None).await?, 401, "UNAUTHENTICATED")?;
    }
    Ok(())
}

async fn conflicts_are_told(p: &Platform) -> Result<()> {
    p.deploy_hello("etag", "1", 1, json!({"memory_mb": 32})).await?;
    p.settled().await?;
    let etag = p.api.call("GET", "/apps/etag", None).await?.etag;
    let scale = json!({"instances": 2});
    let reply = p
        .api
        .call_with(
            "POST",
            "/apps/etag/scale?wait=30s",
            Some(&scale),
            &[("if-match", &etag)],
        )
        .await?;
    expect(reply.status == 200 || reply.status == 202, || format!("{reply:?}"))?;
    let stale = p
        .api
        .call_with("POST", "/apps/etag/scale", Some(&scale), &[("if-match", &etag)])
        .await?;
    refused(&stale, 412, "VERSION_CONFLICT")?;
    // The same key twice is one operation; the same key for something else is refused.
    let key = [("idempotency-key", "e2e-once")];
    let body = json!({"instances": 3});
    let first = p
        .api
        .call_with("POST", "/apps/etag/scale", Some(&body), &key)
        .await?
        .ok()?;
    let again = p
        .api
        .call_with("POST", "/apps/etag/scale", Some(&body), &key)
        .await?
        .ok()?;
    expect(first["operation"]["id"] == again["operation"]["id"], || {
        format!("{first} {again}")
    })?;
    let reused = p
        .api
        .call_with("POST", "/apps/etag/scale", Some(&json!({"instances": 1})), &key)
        .await?;
    refused(&reused, 422, "IDEMPOTENCY_KEY_REUSED")?;
    // A plan changes nothing.
    let plan = p
        .api
        .call("POST", "/apps/etag/scale?dry_run=true", Some(&json!({"instances": 1})))
        .await?
        .ok()?;
    expect(plan["plan"].is_object(), || plan.to_string())?;
    p.answers("etag", "1", 3).await?;
    Ok(())
}

async fn images_that_can_not_be_had(p: &Platform) -> Result<()> {
    let deploy = async |app: &str, image: &str| {
        p.api
            .call(
                "POST",
                &format!("/apps/{app}/deploy"),
                Some(&deploy_body("9", image, 1, Value::Null)),
            )
            .await
    };
    refused(&deploy("missing", &p.hello("9")).await?, 422, "IMAGE_NOT_FOUND")?;
    let stranger = p.fleet.registry.image("stranger", "1");
    refused(&deploy("missing", &stranger).await?, 422, "IMAGE_NOT_FOUND")?;

    let registry = &p.fleet.registry;
    let path = format!("/registries/{}", registry.address);
    let credentials = |password: &str| json!({"username": registry.user, "password": password});
    p.api.call("PUT", &path, Some(&credentials("wrong"))).await?.ok()?;
    let denied = deploy("denied", &p.hello("1")).await;
    let shown = p.api.get("/registries").await;
    p.api
        .call("PUT", &path, Some(&credentials(&registry.password)))
        .await?
        .ok()?;
    refused(&denied?, 422, "REGISTRY_DENIED")?;
    expect(!shown?.to_string().contains("wrong"), || "the password is shown".into())?;

    registry.down().await?;
    let unreachable = deploy("down", &p.hello("1")).await;
    registry.up().await?;
    refused(&unreachable?, 503, "REGISTRY_UNREACHABLE")?;

    // A registry that hangs does not hold up what needs no image.
    p.deploy_hello("bystander", "1", 1, json!({"memory_mb": 32})).await?;
    registry.freeze(true).await?;
    let (image, none) = (p.hello("2"), json!({"instances": 0}));
    let hanging = deploy("hangs", &image);
    let scaled = p.api.done("POST", "/apps/bystander/scale", Some(&none));
    let (hanging, scaled) = futures::join!(hanging, scaled);
    registry.freeze(false).await?;
    refused(&hanging?, 503, "REGISTRY_UNREACHABLE")?;
    scaled?;
    for app in ["missing", "denied", "down", "hangs"] {
        refused(
            &p.api.call("GET", &format!("/apps/{app}"), None).await?,
            404,
            "NOT_FOUND",
        )?;
    }
    Ok(())
}

async fn no_room_is_told_with_reasons_and_placed_when_room_comes(p: &Platform) -> Result<()> {
    let label = deploy_body(
        "1",
        &p.hello("1"),
        1,
        json!({"placement": {"labels": {"disk": "none"}}}),
    );
    let reply = p.api.call("POST", "/apps/nowhere/deploy", Some(&label)).await?;
    refused(&reply, 409, "NO_CAPACITY")?;
    expect(reply.body["reasons"].to_string().contains("label"), || {
        format!("{reply:?}")
    })?;

    p.deploy_hello("large", "1", 3, json!({"memory_mb": 3000})).await?;
    let four = json!({"instances": 4});
    let reply = p.api.call("POST", "/apps/large/scale", Some(&four)).await?;
    refused(&reply, 409, "NO_CAPACITY")?;
    expect(reply.body["reasons"].to_string().contains("memory"), || {
        format!("{reply:?}")
    })?;

    let queued = p
        .api
        .call("POST", "/apps/large/scale?queue=true", Some(&four))
        .await?
        .ok()?;
    let id = queued["operation"]["id"].as_str().context("an operation")?.to_owned();
    until(
        "an operation that waits for room",
        Duration::from_secs(10),
        async || {
            let operation = p
                .api
                .get(&format!("/operations/{id}"))
                .await
                .map_err(|e| format!("{e:#}"))?;
            let told = operation["reasons"]
                .as_array()
                .is_some_and(|reasons| !reasons.is_empty());
            if operation["state"] == "blocked" && told {
                Ok(())
            } else {
                Err(operation.to_string())
            }
        },
    )
    .await?;
    wait::throughout("no host is overbooked", Duration::from_secs(1), async || {
        p.db.consistent().await
    })
    .await?;
    let memory = |mb: u32| json!({"memory_mb": mb});
    p.api
        .call("PATCH", "/hosts/h1", Some(&memory(2 * e2e::platform::HOST_MEMORY_MB)))
        .await?
        .ok()?;
    let operation = p.api.finished(&id, Duration::from_secs(20)).await;
    let answers = p.answers("large", "1", 4).await;
    p.remove("large").await?;
    p.api
        .call("PATCH", "/hosts/h1", Some(&memory(e2e::platform::HOST_MEMORY_MB)))
        .await?
        .ok()?;
    answers?;
    let operation = operation?;
    expect(operation["state"] == "succeeded", || format!("{operation:#}"))
}
