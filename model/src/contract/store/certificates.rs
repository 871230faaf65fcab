//! Certificates.

use super::{EventKind, Handles, T, Timestamp, app_id, event};
use crate::store::{Issued, Outcome, Store};
use crate::{Certificate, CertificateOrder, CertificateSource, Generation, SealedCertificate};

pub(super) async fn certificates_are_kept((store, other): Handles) {
    let mut shop = Certificate {
        name: "shop.example.com".parse().expect("valid"),
        source: CertificateSource::Uploaded,
        names: vec!["shop.example.com".into(), "*.shop.example.com".into()],
        issuer: "CN='quoted\" é'".into(),
        not_before: T,
        expires_at: Timestamp::from_millis(4_102_444_800_000),
        updated_at: T,
        mark: -3,
    };
    let mut sealed = SealedCertificate::new("-----BEGIN…\n".repeat(2_500), "v1.k");
    let event = event(EventKind::Admin);
    assert_eq!(store.certificate_list().await.expect("an answer"), []);
    assert!(store.certificate_put(&shop, &sealed, &event, T).await.expect("put"));
    assert_eq!(other.certificate_list().await.expect("an answer"), [shop.clone()]);
    let read = other.certificate_sealed(&shop.name).await.expect("an answer");
    assert_eq!(read, Some((-3, sealed.clone())));

    (shop.mark, shop.source) = (i64::MAX, CertificateSource::Acme);
    sealed.key = "v1.l".into();
    let default = Certificate {
        name: "default".parse().expect("valid"),
        names: Vec::new(),
        ..shop.clone()
    };
    for certificate in [&shop, &default] {
        let put = store.certificate_put(certificate, &sealed, &event, T).await;
        assert!(put.expect("replaced"));
    }
    assert_eq!(
        other.certificate_list().await.expect("an answer"),
        [default.clone(), shop.clone()]
    );
    let read = other.certificate_sealed(&shop.name).await.expect("an answer");
    assert_eq!(read, Some((i64::MAX, sealed)));

    assert!(
        other
            .certificate_remove(&shop.name, &event, T)
            .await
            .expect("an answer")
    );
    assert!(
        !store
            .certificate_remove(&shop.name, &event, T)
            .await
            .expect("an answer")
    );
    assert_eq!(store.certificate_sealed(&shop.name).await.expect("an answer"), None);
    assert_eq!(store.certificate_list().await.expect("an answer"), [default]);
    assert_eq!(store.event_newest().await.expect("an answer"), 4);
}

fn of(name: &str, source: CertificateSource) -> Certificate {
    Certificate {
        name: name.parse().expect("valid"),
        source,
        names: vec![name.into()],
        issuer: "CN=test".into(),
        not_before: T,
        expires_at: Timestamp::from_millis(4_102_444_800_000),
        updated_at: T,
        mark: 5,
    }
}

async fn written(store: &dyn Store, order: &CertificateOrder) -> CertificateOrder {
    match store.order_put(order, None, T).await.expect("an answer") {
        Outcome::Updated(next) => next,
        other => panic!("not written: {other:?}"),
    }
}

pub(super) async fn orders_are_compare_and_set((store, other): Handles) {
    let domain = "shop.example.com";
    let first = CertificateOrder::new(domain.parse().expect("valid"), app_id("shop"));
    assert_eq!(store.order_list().await.expect("an answer"), []);
    let one = written(&*store, &first).await;
    assert_eq!(one.generation, Generation::FIRST);
    // Of two that begin, one does.
    let again = other.order_put(&first, None, T).await.expect("an answer");
    assert_eq!(again, Outcome::Conflict(one.clone()));
    let mut next = one.clone();
    (next.failures, next.next_try, next.error) = (3, T, Some("no 'such\" host é".into()));
    (next.holder, next.held_until) = ("a:1".into(), T);
    (next.url, next.key) = (Some("https://ca.test/order/1".into()), Some("v1.k".into()));
    (next.challenge, next.mark) = (Some("v1.c".into()), i64::MIN + 1);
    let two = written(&*other, &next).await;
    assert_eq!(
        store.order_fetch(&two.domain).await.expect("an answer"),
        Some(two.clone())
    );
    let stale = store.order_put(&next, None, T).await.expect("an answer");
    assert_eq!(stale, Outcome::Conflict(two.clone()));

    // Presented is written by another hand, and is no change of the order.
    store.order_presented(&two.domain, 7).await.expect("an answer");
    assert_eq!(store.order_list().await.expect("an answer"), std::slice::from_ref(&two));
    store.order_presented(&two.domain, two.mark).await.expect("an answer");
    let presented = other
        .order_fetch(&two.domain)
        .await
        .expect("an answer")
        .expect("it is there");
    assert_eq!((presented.presented, presented.generation), (two.mark, two.generation));
    let three = written(&*store, &two).await;
    let kept = other
        .order_fetch(&two.domain)
        .await
        .expect("an answer")
        .expect("it is there");
    assert_eq!((kept.presented, kept.generation), (two.mark, three.generation));

    assert!(
        !store.order_remove(&two).await.expect("an answer"),
        "another generation"
    );
    assert!(store.order_remove(&three).await.expect("an answer"));
    let gone = store.order_put(&three, None, T).await.expect("an answer");
    assert_eq!(gone, Outcome::NotFound);
}

pub(super) async fn what_is_issued_never_replaces_what_was_given((store, other): Handles) {
    let event = event(EventKind::Admin);
    let sealed = |text: &str| SealedCertificate::new(text, "v1.k");
    let domain = "shop.example.com";
    let issued = of(domain, CertificateSource::Acme);
    let order = written(&*store, &CertificateOrder::new(issued.name.clone(), app_id("shop"))).await;
    let kept = store.order_issued(&order, &issued, &sealed("a"), &event, T).await;
    assert_eq!(kept.expect("an answer"), Issued::Kept);
    let stale = other.order_issued(&order, &issued, &sealed("b"), &event, T).await;
    assert_eq!(stale.expect("an answer"), Issued::Conflict);
    let read = other.certificate_sealed(&issued.name).await.expect("an answer");
    assert_eq!(read, Some((5, sealed("a"))));

    let given = of(domain, CertificateSource::Uploaded);
    assert!(
        store
            .certificate_put(&given, &sealed("c"), &event, T)
            .await
            .expect("put")
    );
    let order = store
        .order_fetch(&given.name)
        .await
        .expect("an answer")
        .expect("it is there");
    let beaten = store.order_issued(&order, &issued, &sealed("d"), &event, T).await;
    assert_eq!(beaten.expect("an answer"), Issued::Uploaded);
    assert_eq!(store.certificate_list().await.expect("an answer"), [given]);
    let read = other.certificate_sealed(&issued.name).await.expect("an answer");
    assert_eq!(read, Some((5, sealed("c"))));
    assert_eq!(store.event_newest().await.expect("an answer"), 2);

    // With the certificate its order goes, and with that the pause before the next try.
    assert!(
        store
            .certificate_remove(&issued.name, &event, T)
            .await
            .expect("an answer")
    );
    assert_eq!(store.order_list().await.expect("an answer"), []);
    written(&*store, &CertificateOrder::new(issued.name.clone(), app_id("shop"))).await;
    assert!(
        store
            .certificate_remove(&issued.name, &event, T)
            .await
            .expect("an answer")
    );
    assert!(
        !store
            .certificate_remove(&issued.name, &event, T)
            .await
            .expect("an answer")
    );
}

pub(super) async fn accounts_are_made_once((store, other): Handles) {
    let event = event(EventKind::Admin);
    let (one, two) = ("https://ca.test/dir", "https://ca2.test/dir");
    assert_eq!(store.acme_account(one).await.expect("an answer"), None);
    for (directory, account, first) in [(one, "v1.a", true), (one, "v1.b", false), (two, "v1.c", true)] {
        let put = other.acme_account_put(directory, account, &event, T).await;
        assert_eq!(put.expect("an answer"), first, "{account}");
    }
    assert_eq!(
        store.acme_account(one).await.expect("an answer").as_deref(),
        Some("v1.a")
    );
    store.acme_account_forget(one, "v1.b").await.expect("an answer");
    assert!(store.acme_account(one).await.expect("an answer").is_some());
    store.acme_account_forget(one, "v1.a").await.expect("an answer");
    assert_eq!(store.acme_account(one).await.expect("an answer"), None);
    assert_eq!(
        store.acme_account(two).await.expect("an answer").as_deref(),
        Some("v1.c")
    );
}
