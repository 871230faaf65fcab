//! Certificates.

use super::{EventKind, Handles, T, Timestamp, event};
use crate::{Certificate, CertificateSource, SealedCertificate};

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
    let mut sealed = SealedCertificate {
        chain: "-----BEGIN…\n".repeat(2_500).into(),
        key: "v1.k".into(),
    };
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
