//! Certificates of the gateways: taken in, listed, forgotten. A key goes in and never comes out; it is sealed before it is
//! written anywhere.

use std::collections::BTreeMap;

use ::certificates::{BadPair, Pair};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Json;
use model::certificate::{DEFAULT, MAX_CHAIN, MAX_KEY, MOST, about_key};
use model::{
    Certificate, CertificateName, CertificateOrder, CertificateSource, EventKind, NewEvent, OrderState,
    SealedCertificate, Timestamp,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::auth::Actor;
use super::error::{ApiError, Code};
use super::extract::{self, Name};

/// How far the clock of whoever issued a certificate may be ahead, in seconds.
const AHEAD_S: i64 = 3_600;

/// A certificate, or one that is yet to be had.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Certificate)]
pub(super) struct CertificateView {
    /// What it is called.
    name: String,
    /// `uploaded`, or `acme`: the platform got it, or gets it, by itself.
    source: String,
    /// Hosts that it is for; `*.` stands for one label.
    names: Vec<String>,
    /// Who issued it, as it says; null as long as there is none.
    issuer: Option<String>,
    /// From when it holds.
    not_before: Option<String>,
    /// When it expires.
    expires_at: Option<String>,
    /// When it was put in its place.
    updated_at: Option<String>,
    /// How far the platform is with getting it.
    order: Option<OrderView>,
}

/// How far the platform is with getting a certificate.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CertificateOrder)]
pub(super) struct OrderView {
    /// `under_way`, or `failed`: the last try did, the next has its time.
    state: String,
    /// Whose domain it is.
    app: String,
    /// Failed tries since the last certificate.
    failures: u32,
    /// Why the last one failed.
    error: Option<String>,
    /// When the next one is.
    next_try: Option<String>,
}

impl From<Certificate> for CertificateView {
    fn from(c: Certificate) -> Self {
        Self {
            name: c.name.to_string(),
            source: c.source.as_str().to_owned(),
            names: c.names,
            issuer: Some(c.issuer),
            not_before: Some(c.not_before.to_string()),
            expires_at: Some(c.expires_at.to_string()),
            updated_at: Some(c.updated_at.to_string()),
            order: None,
        }
    }
}

impl CertificateView {
    /// One that is yet to be had.
    fn to_come(domain: &CertificateName) -> Self {
        Self {
            name: domain.to_string(),
            source: CertificateSource::Acme.as_str().to_owned(),
            names: vec![domain.to_string()],
            issuer: None,
            not_before: None,
            expires_at: None,
            updated_at: None,
            order: None,
        }
    }
}

impl OrderView {
    /// `None`: nothing is under way, and nothing has failed.
    fn new(order: CertificateOrder, now: Timestamp) -> Option<Self> {
        let state = order.state(now);
        let next_try = (state == OrderState::Failed).then(|| order.next_try.to_string());
        (state != OrderState::Done).then(|| Self {
            state: state.as_str().to_owned(),
            app: order.app.to_string(),
            failures: order.failures,
            error: order.error,
            next_try,
        })
    }
}

/// All certificates and those that are to come, by name.
async fn all(api: &Api) -> Result<BTreeMap<CertificateName, CertificateView>, ApiError> {
    let certificates = api.store.certificate_list().await?.into_iter();
    let mut all: BTreeMap<_, CertificateView> = certificates.map(|c| (c.name.clone(), c.into())).collect();
    let now = Timestamp::now();
    for order in api.store.order_list().await? {
        let domain = order.domain.clone();
        if let Some(order) = OrderView::new(order, now) {
            let entry = all.entry(domain.clone());
            entry.or_insert_with(|| CertificateView::to_come(&domain)).order = Some(order);
        }
    }
    Ok(all)
}

/// A certificate with its key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificateRequest {
    /// PEM: the server's certificate first, then its issuers; at most 32 KiB.
    chain: String,
    /// PEM of its key, at most 8 KiB; never shown again.
    key: String,
}

fn name_of(text: &str) -> Result<CertificateName, ApiError> {
    let name: CertificateName = text.parse().map_err(ApiError::from)?;
    Ok(name)
}

fn unknown(name: &CertificateName) -> ApiError {
    ApiError::not_found("certificate", name)
}

/// List certificates, and those that are yet to be had
#[utoipa::path(get, path = "/api/v1/certificates", tag = "certificates",
    responses((status = 200, body = [CertificateView])))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<CertificateView>>, ApiError> {
    Ok(Json(all(&api).await?.into_values().collect()))
}

/// Show a certificate
#[utoipa::path(get, path = "/api/v1/certificates/{certificate}", tag = "certificates",
    responses((status = 200, body = CertificateView)))]
pub(super) async fn info(State(api): State<Api>, Name(name): Name) -> Result<Json<CertificateView>, ApiError> {
    let name = name_of(&name)?;
    let found = all(&api).await?.remove(&name).ok_or_else(|| unknown(&name))?;
    Ok(Json(found))
}

/// Add or replace a certificate
///
/// Every gateway serves it within seconds; open connections go on.
#[utoipa::path(put, path = "/api/v1/certificates/{certificate}", tag = "certificates",
    request_body = CertificateRequest, responses((status = 200, body = CertificateView)))]
pub(super) async fn set(
    State(api): State<Api>,
    Name(name): Name,
    actor: Actor,
    extract::Json(request): extract::Json<CertificateRequest>,
) -> Result<Json<CertificateView>, ApiError> {
    let name = name_of(&name)?;
    let keys = api.sealing.as_ref().ok_or_else(|| {
        ApiError::new(
            Code::Conflict,
            "keys can't be kept safe here: set scheduler.certificates_key_file, and the same at the gateways",
        )
    })?;
    let now = Timestamp::now();
    let (certificate, chain, key) = read(&name, &request, now)
        .map_err(|(field, why)| ApiError::new(Code::InvalidRequest, format!("certificate {name}: {why}")).at(field))?;
    let key = keys
        .seal(&about_key(&name), key.as_bytes())
        .map_err(|e| ApiError::internal(&e))?;
    let sealed = SealedCertificate::new(chain, key);
    let message = format!("set certificate {name} for {}", shown(&certificate.names));
    let event = NewEvent::new(EventKind::Admin, &actor.name, message);
    if !api.store.certificate_put(&certificate, &sealed, &event, now).await? {
        return Err(ApiError::new(
            Code::Conflict,
            format!("there are {MOST} certificates already: remove some first"),
        ));
    }
    Ok(Json(certificate.into()))
}

/// What is asked to be kept under `name`, checked: the certificate, its chain and its key as PEM; or the bad field and what is
/// wrong with it.
fn read(
    name: &CertificateName,
    request: &CertificateRequest,
    now: Timestamp,
) -> Result<(Certificate, String, String), (&'static str, String)> {
    for (field, text, most) in [("/chain", &request.chain, MAX_CHAIN), ("/key", &request.key, MAX_KEY)] {
        if text.len() > most {
            return Err((field, format!("it has more than {most} bytes")));
        }
    }
    let pair = Pair::parse(request.chain.as_bytes(), request.key.as_bytes()).map_err(|bad| match bad {
        BadPair::Chain(why) => ("/chain", why),
        BadPair::Key(why) => ("/key", why),
    })?;
    let (not_before, expires_at) = (seconds(pair.not_before), seconds(pair.expires));
    if expires_at <= now {
        return Err(("/chain", format!("it expired at {expires_at}")));
    }
    if pair.not_before > now.as_millis() / 1_000 + AHEAD_S {
        return Err(("/chain", format!("it does not hold before {not_before}")));
    }
    if pair.names.is_empty() && name.as_str() != DEFAULT {
        return Err(("/chain", "it has no DNS name (subject alternative name)".into()));
    }
    // Written anew it may be a little longer than it was given.
    let (chain, key) = (pair.chain_pem(), pair.key_pem());
    if chain.len() > MAX_CHAIN || key.len() > MAX_KEY {
        return Err(("/chain", format!("it has more than {MAX_CHAIN} bytes")));
    }
    let certificate = Certificate {
        name: name.clone(),
        source: CertificateSource::Uploaded,
        names: pair.names,
        issuer: pair.issuer,
        not_before,
        expires_at,
        updated_at: now,
        mark: rand::random(),
    };
    Ok((certificate, chain, key))
}

fn seconds(unix: i64) -> Timestamp {
    Timestamp::from_millis(unix.saturating_mul(1_000))
}

fn shown(names: &[String]) -> String {
    match names {
        [] => "names that no other has".into(),
        [one] => one.clone(),
        [one, rest @ ..] => format!("{one} and {} more", rest.len()),
    }
}

/// Forget a certificate
///
/// One that the platform gets by itself is had anew at once, also when the last try has failed.
#[utoipa::path(delete, path = "/api/v1/certificates/{certificate}", tag = "certificates",
    responses((status = 204, description = "forgotten")))]
pub(super) async fn remove(State(api): State<Api>, Name(name): Name, actor: Actor) -> Result<StatusCode, ApiError> {
    let name = name_of(&name)?;
    let event = NewEvent::new(EventKind::Admin, &actor.name, format!("forget certificate {name}"));
    if api.store.certificate_remove(&name, &event, Timestamp::now()).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(unknown(&name))
    }
}
