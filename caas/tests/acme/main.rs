//! Certificates that are had by themselves, from a real authority (pebble), through the real gateway, registry-sync and scheduler.

#![allow(clippy::unwrap_used)]

mod pebble;
mod platform;

use std::time::Duration;

use certificates::Pair;
use model::certificate::about_key;
use model::store::Outcome;
use model::{CertificateOrder, CertificateSource, Timestamp};
use pebble::{EXTERNAL_KEY, Pebble, Wish, free, is_installed};
use platform::Platform;
use scheduler::{AcmeConfig, Challenges};

const HOST: &str = "shop.example.com";

fn config(pebble: &Pebble, challenges: Challenges) -> AcmeConfig {
    AcmeConfig {
        directory: Some(pebble.directory.clone()),
        contacts: vec!["ops@example.com".into()],
        terms_agreed: true,
        root_certificate_file: Some(pebble.ca.clone()),
        challenges,
        ..AcmeConfig::default()
    }
}

/// Where the platform's gateway answers.
fn at(platform: &Platform) -> Wish {
    Wish {
        http: platform.http.port(),
        tls: platform.tls.port(),
        ..Wish::default()
    }
}

/// Makes an end of the pause.
async fn now(platform: &Platform, order: &CertificateOrder) {
    let next = CertificateOrder {
        next_try: Timestamp::now(),
        ..order.clone()
    };
    let put = platform.store.order_put(&next, None, Timestamp::now()).await.unwrap();
    assert!(matches!(put, Outcome::Updated(_)), "{put:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_either_challenge_a_domain_gets_its_certificate() {
    if !is_installed() {
        return;
    }
    for challenges in [Challenges::Http, Challenges::Tls] {
        let mut platform = Platform::start().await;
        // Only the port of this challenge leads anywhere.
        let mut wish = at(&platform);
        match challenges {
            Challenges::Http => wish.tls = free(),
            _ => wish.http = free(),
        }
        wish.external = true;
        let pebble = Pebble::start(&wish).await;
        let external = platform.dir.path().join("external.key");
        std::fs::write(&external, EXTERNAL_KEY).unwrap();
        platform.sync().await;
        platform
            .schedule(AcmeConfig {
                external_account_id: Some("kid-1".into()),
                external_account_key_file: Some(external),
                ..config(&pebble, challenges)
            })
            .await;
        platform.app("shop", HOST).await;
        let got = platform.certificate(&pebble, |c| c.name.as_str() == HOST).await;
        assert_eq!(
            (got.source, got.names.as_slice()),
            (CertificateSource::Acme, &[HOST.to_owned()][..])
        );
        assert!(got.issuer.contains("Pebble"), "{got:?}");
        platform.serves(&pebble, HOST).await;
        let order = platform.order(&pebble, |o| o.url.is_none()).await;
        assert_eq!((order.failures, order.challenge, order.key), (0, None, None));
        let told = platform.told().await;
        assert!(told.contains("made an account at https://localhost:"), "{told}");
        assert!(
            told.contains("got the certificate for shop.example.com; it expires at"),
            "{told}"
        );

        // Nothing that lies anywhere can be read without the key file.
        let account = platform.store.acme_account(&pebble.directory).await.unwrap().unwrap();
        let (_, sealed) = platform.store.certificate_sealed(&got.name).await.unwrap().unwrap();
        assert!(account.starts_with("v1.") && sealed.key.starts_with("v1."));
        let key = platform.keys.open(&about_key(&got.name), &sealed.key).unwrap();
        Pair::parse(sealed.chain.as_bytes(), &key).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_is_renewed_in_time() {
    if !is_installed() {
        return;
    }
    let mut platform = Platform::start().await;
    let mut wish = at(&platform);
    wish.validity_s = 18;
    let pebble = Pebble::start(&wish).await;
    platform.sync().await;
    platform.schedule(config(&pebble, Challenges::Auto)).await;
    platform.app("shop", HOST).await;
    let first = platform.certificate(&pebble, |c| c.name.as_str() == HOST).await;
    let second = platform.certificate(&pebble, |c| c.mark != first.mark).await;
    assert!(second.updated_at < first.expires_at, "in time: {first:?} {second:?}");
    assert!(
        second.updated_at.since(first.not_before) >= Duration::from_secs(11),
        "not before"
    );
    assert!(second.expires_at > first.expires_at);
    platform.serves(&pebble, HOST).await;
    let told = platform.told().await;
    assert!(told.contains("renewed the certificate for shop.example.com"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_and_the_next_try_takes_the_other_way() {
    if !is_installed() {
        return;
    }
    let mut platform = Platform::start().await;
    let mut wish = at(&platform);
    wish.http = free();
    let pebble = Pebble::start(&wish).await;
    platform.sync().await;
    platform.schedule(config(&pebble, Challenges::Auto)).await;
    platform.app("shop", HOST).await;
    let failed = platform.order(&pebble, |o| o.failures == 1).await;
    let error = failed.error.clone().unwrap();
    assert!(
        error.starts_with("http-01: ") && error.contains("urn:ietf:params:acme:error:"),
        "{error}"
    );
    assert_eq!((&failed.url, &failed.key, &failed.challenge), (&None, &None, &None));
    let pause = failed.next_try.since(Timestamp::now());
    let about = Duration::from_secs(280)..Duration::from_secs(331);
    assert!(about.contains(&pause), "{pause:?}");
    let told = platform.told().await;
    assert!(
        told.contains("no certificate for shop.example.com: http-01: "),
        "{told}"
    );

    now(&platform, &failed).await;
    platform.certificate(&pebble, |c| c.name.as_str() == HOST).await;
    let order = platform.order(&pebble, |o| o.failures == 0).await;
    assert_eq!(order.error, None);
    platform.serves(&pebble, HOST).await;

    // One that somebody gives takes its place, and stays.
    let mut given = platform.store.certificate_list().await.unwrap().remove(0);
    let (_, sealed) = platform.store.certificate_sealed(&given.name).await.unwrap().unwrap();
    given.name = "mine".parse().unwrap();
    given.source = CertificateSource::Uploaded;
    let event = model::NewEvent::new(model::EventKind::Admin, "tester", "set certificate mine");
    let put = platform
        .store
        .certificate_put(&given, &sealed, &event, Timestamp::now());
    assert!(put.await.unwrap());
    let deadline = std::time::Instant::now() + platform::LIMIT;
    loop {
        let left = platform.store.certificate_list().await.unwrap();
        if left.len() == 1 && platform.store.order_list().await.unwrap().is_empty() {
            assert_eq!(left[0].name.as_str(), "mine");
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_not_there_is_told_and_waited_for() {
    if !is_installed() {
        return;
    }
    let mut platform = Platform::start().await;
    let pebble = Pebble::start(&at(&platform)).await;
    platform.sync().await;
    let nowhere = format!("https://localhost:{}/dir", free());
    platform
        .schedule(AcmeConfig {
            directory: Some(nowhere.clone()),
            ..config(&pebble, Challenges::Auto)
        })
        .await;
    platform.app("shop", HOST).await;
    let failed = platform.order(&pebble, |o| o.failures == 1).await;
    let error = failed.error.clone().unwrap();
    assert!(
        error.contains(&nowhere) && error.to_lowercase().contains("refused"),
        "{error}"
    );

    // The pause outlives the scheduler.
    platform.kill_scheduler().await;
    platform.schedule(config(&pebble, Challenges::Http)).await;
    platform.app("other", "other.example.com").await;
    platform
        .certificate(&pebble, |c| c.name.as_str() == "other.example.com")
        .await;
    let waiting = platform.order(&pebble, |o| o.domain.as_str() == HOST).await;
    assert_eq!(waiting, failed);
    now(&platform, &failed).await;
    platform.certificate(&pebble, |c| c.name.as_str() == HOST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_that_is_killed_in_the_middle_goes_on_where_it_was() {
    if !is_installed() {
        return;
    }
    let mut platform = Platform::start().await;
    let pebble = Pebble::start(&at(&platform)).await;
    // Without registry-sync nobody answers the challenge, and the authority is not told.
    platform.schedule(config(&pebble, Challenges::Http)).await;
    platform.app("shop", HOST).await;
    let middle = platform.order(&pebble, |o| o.challenge.is_some()).await;
    let (url, key) = (middle.url.clone().unwrap(), middle.key.clone().unwrap());
    assert!(middle.holder == "the-one" && middle.held_until > Timestamp::now());
    platform.kill_scheduler().await;

    platform.schedule(config(&pebble, Challenges::Http)).await;
    let resumed = platform
        .order(&pebble, |o| o.mark != middle.mark && o.challenge.is_some())
        .await;
    assert_eq!(
        (resumed.url, resumed.key),
        (Some(url), Some(key.clone())),
        "the same order"
    );
    platform.sync().await;
    let got = platform.certificate(&pebble, |c| c.name.as_str() == HOST).await;
    let (_, sealed) = platform.store.certificate_sealed(&got.name).await.unwrap().unwrap();
    let open = |text: &str| platform.keys.open(&about_key(&got.name), text).unwrap();
    let pem = |text: &str| String::from_utf8(open(text)).unwrap().replace('\r', "");
    assert_eq!(pem(&sealed.key), pem(&key), "the key that was made first");
    platform.serves(&pebble, HOST).await;
    let told = platform.told().await;
    assert_eq!(told.matches("made an account").count(), 1, "{told}");
}
