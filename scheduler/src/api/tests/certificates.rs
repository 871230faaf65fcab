//! Certificates over the API.

use serde_json::json;

use super::World;
use crate::Config;
use model::certificate::about_key;
use model::{CertificateOrder, Timestamp};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn made(names: &[&str], days: i64) -> (String, String) {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    let day = |n: i64| rcgen::date_time_ymd(2026, 1, 1) + std::time::Duration::from_secs(86_400 * n.unsigned_abs());
    if days != 0 {
        (params.not_before, params.not_after) = match days {
            ..0 => (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2020, 2, 1)),
            _ => (day(days), day(days + 90)),
        };
    }
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

async fn world() -> (World, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, KEY).unwrap();
    let config = Config {
        certificates_key_file: Some(path),
        ..Config::default()
    };
    (World::with(config).await, dir)
}

#[tokio::test]
async fn a_certificate_comes_is_replaced_and_goes_and_its_key_is_never_seen() {
    let (world, _dir) = world().await;
    let (chain, key) = made(&["shop.example.com", "*.shop.example.com"], 0);
    let put = |chain: &str, key: &str| {
        let body = json!({"chain": chain, "key": key}).to_string();
        let world = &world;
        async move { world.send("PUT", "/certificates/shop", &[], body).await }
    };
    // The key stands in both fields, as in files that hold both: it is kept in one, sealed.
    let answer = put(&format!("{key}{chain}"), &format!("{chain}{key}")).await.is(200);
    assert_eq!(answer.body["names"], json!(["shop.example.com", "*.shop.example.com"]));
    assert_eq!(
        (&answer.body["source"], &answer.body["name"]),
        (&json!("uploaded"), &json!("shop"))
    );
    let name = "shop".parse().unwrap();
    let (mark, sealed) = world.store.certificate_sealed(&name).await.unwrap().unwrap();
    assert!(!sealed.chain.contains("PRIVATE") && !sealed.key.contains("PRIVATE"));
    let keys = ::certificates::SealingKeys::parse(KEY).unwrap();
    let opened = keys.open(&about_key(&name), &sealed.key).unwrap();
    ::certificates::Pair::parse(sealed.chain.as_bytes(), &opened).unwrap();
    for path in ["/certificates", "/certificates/shop"] {
        let answer = world.get(path).await.is(200);
        let text = answer.body.to_string();
        assert!(text.contains("*.shop.example.com") && text.contains("expires_at"));
        assert!(!text.contains("BEGIN") && !text.contains(&*sealed.key), "{text}");
    }
    let (chain, key) = made(&["shop.example.org"], 0);
    put(&chain, &key).await.is(200);
    let (another, _) = world.store.certificate_sealed(&name).await.unwrap().unwrap();
    assert_ne!(mark, another);

    let delete = || world.send("DELETE", "/certificates/shop", &[], "");
    delete().await.is(204);
    delete().await.problem(404, "NOT_FOUND");
    world.get("/certificates/shop").await.problem(404, "NOT_FOUND");
    assert_eq!(world.get("/certificates").await.is(200).body, json!([]));
    let events = world.store.event_list(0, None, 10).await.unwrap();
    let told: Vec<&str> = events.iter().map(|e| e.event.message.as_str()).collect();
    assert_eq!(
        told,
        [
            "set certificate shop for shop.example.com and 1 more",
            "set certificate shop for shop.example.org",
            "forget certificate shop"
        ]
    );
    let anonymous = world.send("GET", "/certificates", &[("authorization", "Bearer none")], "");
    anonymous.await.problem(401, "UNAUTHENTICATED");
}

#[tokio::test]
async fn what_is_yet_to_be_had_is_listed_with_its_order() {
    let (world, _dir) = world().await;
    let now = Timestamp::now();
    let domain = |name: &str| CertificateOrder::new(name.parse().unwrap(), "shop".parse().unwrap());
    let mut failed = domain("b.example.com");
    (failed.failures, failed.error) = (2, Some("no such host".into()));
    failed.next_try = now.plus(std::time::Duration::from_secs(600));
    let mut under_way = domain("c.example.com");
    (under_way.holder, under_way.held_until) = ("me".into(), now.plus(std::time::Duration::from_secs(60)));
    for order in [domain("a.example.com"), failed.clone(), under_way] {
        world.store.order_put(&order, None, now).await.unwrap();
    }
    let list = world.get("/certificates").await.is(200).body;
    assert_eq!(list.as_array().unwrap().len(), 2, "{list:#}");
    let (b, c) = (&list[0], &list[1]);
    assert_eq!(
        (&b["name"], &b["source"], &b["expires_at"]),
        (&json!("b.example.com"), &json!("acme"), &json!(null))
    );
    let order = json!({"state": "failed", "app": "shop", "failures": 2, "error": "no such host",
        "next_try": failed.next_try.to_string()});
    assert_eq!(b["order"], order);
    assert_eq!(
        (&c["order"]["state"], &c["order"]["next_try"]),
        (&json!("under_way"), &json!(null))
    );
    assert_eq!(
        world.get("/certificates/b.example.com").await.is(200).body["order"],
        order
    );
    world.get("/certificates/a.example.com").await.problem(404, "NOT_FOUND");

    // One that serves shows both; forgetting it makes an end of the pause.
    let (chain, key) = made(&["b.example.com"], 0);
    let body = json!({"chain": chain, "key": key}).to_string();
    world
        .send("PUT", "/certificates/b.example.com", &[], body)
        .await
        .is(200);
    let both = world.get("/certificates/b.example.com").await.is(200).body;
    assert!(
        both["expires_at"].is_string() && both["order"]["failures"] == 2,
        "{both:#}"
    );
    world
        .send("DELETE", "/certificates/b.example.com", &[], "")
        .await
        .is(204);
    world
        .send("DELETE", "/certificates/b.example.com", &[], "")
        .await
        .problem(404, "NOT_FOUND");
    assert!(world.store.order_fetch(&failed.domain).await.unwrap().is_none());
}

#[tokio::test]
async fn what_would_not_serve_is_refused() {
    let (world, _dir) = world().await;
    let (chain, key) = made(&["a.test"], 0);
    let (_, other_key) = made(&["a.test"], 0);
    let (old, old_key) = made(&["a.test"], -1);
    let (early, early_key) = made(&["a.test"], 36_000);
    let (nameless, nameless_key) = made(&[], 0);
    let long = format!("{chain}{}", "#".repeat(32 * 1024));
    for (name, chain, key, field, says) in [
        ("a", chain.as_str(), other_key.as_str(), "/key", "not the certificate's"),
        ("a", "", &key, "/chain", "no certificate"),
        ("a", &chain, "", "/key", "PEM"),
        ("a", &old, &old_key, "/chain", "expired at 2020-02-01"),
        ("a", &early, &early_key, "/chain", "does not hold before"),
        ("a", &nameless, &nameless_key, "/chain", "no DNS name"),
        ("a", &long, &key, "/chain", "more than 32768 bytes"),
    ] {
        let body = json!({"chain": chain, "key": key}).to_string();
        let answer = world.send("PUT", &format!("/certificates/{name}"), &[], body).await;
        let answer = answer.problem(400, "INVALID_REQUEST").field(field);
        assert!(
            answer.body["detail"].as_str().unwrap().contains(says),
            "{}",
            answer.body
        );
        assert!(!answer.body.to_string().contains("BEGIN"));
    }
    let body = |chain: &str, key: &str| json!({"chain": chain, "key": key}).to_string();
    let bad_name = world.send("PUT", "/certificates/NO", &[], body(&chain, &key)).await;
    bad_name.problem(400, "INVALID_REQUEST");
    let default = body(&nameless, &nameless_key);
    world.send("PUT", "/certificates/default", &[], default).await.is(200);

    let without = World::new().await;
    let refused = without.send("PUT", "/certificates/a", &[], body(&chain, &key)).await;
    let refused = refused.problem(409, "CONFLICT");
    assert!(
        refused.body["detail"]
            .as_str()
            .unwrap()
            .contains("scheduler.certificates_key_file")
    );
    assert!(without.store.certificate_list().await.unwrap().is_empty());
}
