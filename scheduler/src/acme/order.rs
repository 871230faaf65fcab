//! One order, from its row to a certificate. What is going to be asked of the authority is written down first, so that another
//! scheduler, or the same one after a restart, goes on where this one was killed.

use std::sync::Arc;
use std::time::Duration;

use certificates::{Pair, SealingKeys};
use instant_acme::{Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewOrder, Order, OrderStatus};
use model::certificate::{MAX_CHAIN, about_key};
use model::order::{MAX_ERROR, about_challenge};
use model::store::{Issued, Outcome, Store};
use model::{Certificate, CertificateOrder, CertificateSource, EventKind, NewEvent, SealedCertificate, Timestamp};
use tokio::time::{Instant, sleep, timeout};

use super::authority::{Authority, Failed, said};
use super::config::Challenges;
use super::plan;
use crate::metrics::Metrics;

/// Longest time of one try.
const DEADLINE: Duration = Duration::from_secs(300);
/// For so long nobody else takes up an order: longer than a try takes.
pub(super) const HELD: Duration = Duration::from_secs(360);
/// Longest wait until every gateway answers the challenge.
const PRESENTED: Duration = Duration::from_secs(60);
/// Longest wait for the authority to prove the domain, and to issue.
const PROVED: Duration = Duration::from_secs(120);
/// Pauses between questions to the authority; each is longer than the one before.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// Pause between looks at the store.
const LOOK: Duration = Duration::from_millis(200);
/// After so many failures in a row an order that might go on is begun anew: the authority may be another by now.
const GIVEN_UP: u32 = 3;
/// How long an authority that says that there were too many orders is not asked for this domain, if it says no time itself.
const RATE_LIMITED: Duration = Duration::from_secs(3_600);

/// What an order is worked on with.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) store: Arc<dyn Store>,
    pub(super) authority: Authority,
    pub(super) keys: Arc<SealingKeys>,
    pub(super) challenges: Challenges,
    pub(super) metrics: Arc<Metrics>,
}

impl Work {
    /// Works on an order that this scheduler holds, until there is a certificate or the try has failed.
    pub(super) async fn run(&self, mut row: CertificateOrder, renewal: bool) {
        let domain = row.domain.clone();
        let done = timeout(DEADLINE, self.steps(&mut row, renewal)).await;
        let late = || Failed::Trouble(format!("it did not end within {} s", DEADLINE.as_secs()));
        let result = match done.unwrap_or_else(|_| Err(late())) {
            Ok(()) => {
                if renewal {
                    "renewed"
                } else {
                    "issued"
                }
            }
            Err(Failed::Lost) => return tracing::debug!(%domain, "the order is somebody else's by now"),
            // The lease runs out, or the next pass takes it up.
            Err(Failed::Store(error)) => return tracing::warn!(%domain, %error, "the order rests"),
            Err(failed) => {
                self.authority.forget(&failed).await;
                if let Err(error) = self.failed(row, &failed).await {
                    tracing::warn!(%domain, ?error, "the failure of an order could not be noted");
                }
                "failed"
            }
        };
        self.metrics.acme_orders.with_label_values(&[result]).inc();
    }

    async fn steps(&self, row: &mut CertificateOrder, renewal: bool) -> Result<(), Failed> {
        let account = self.authority.account().await?;
        let key = self.key(row)?;
        let mut order = open_order(&account, row).await?;
        row.url = Some(order.url().to_owned());
        self.write(row).await?;
        if order.state().status == OrderStatus::Pending {
            self.prove(&mut order, row).await?;
            until(&mut order, |s| s != OrderStatus::Pending).await?;
        }
        if order.state().status == OrderStatus::Ready {
            let request = certificates::request(row.domain.as_str(), &key).map_err(Failed::Trouble)?;
            order.finalize_csr(&request).await?;
        }
        until(&mut order, |s| s == OrderStatus::Valid).await?;
        let chain = order
            .certificate()
            .await?
            .ok_or_else(|| Failed::Trouble("there is no certificate yet".into()))?;
        self.keep(row, &chain, &key, renewal).await
    }

    /// The key of the certificate to be: the one of the row, so that a certificate that was issued is not lost.
    fn key(&self, row: &mut CertificateOrder) -> Result<String, Failed> {
        let about = about_key(&row.domain);
        if let (Some(_), Some(sealed)) = (&row.url, &row.key)
            && let Ok(key) = self.keys.open(&about, sealed)
            && let Ok(key) = String::from_utf8(key)
        {
            return Ok(key);
        }
        let key = certificates::new_key().map_err(Failed::Trouble)?;
        row.key = Some(self.keys.seal(&about, key.as_bytes()).map_err(Failed::Trouble)?.into());
        row.url = None;
        Ok(key)
    }

    /// Has the gateways answer the authority's challenge, and tells it so.
    async fn prove(&self, order: &mut Order, row: &mut CertificateOrder) -> Result<(), Failed> {
        let kind = kind(self.challenges, row.failures);
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                // The order's own state tells why.
                _ => break,
            }
            let Some(mut challenge) = authorization.challenge(kind.clone()) else {
                return Err(Failed::Refused(format!("the authority offers no {}", name_of(&kind))));
            };
            let text = challenge.key_authorization();
            let about = about_challenge(&row.domain);
            let sealed = self.keys.seal(&about, text.as_str().as_bytes());
            row.challenge = Some(sealed.map_err(Failed::Trouble)?.into());
            row.mark = rand::random::<i64>() | 1;
            self.write(row).await?;
            self.presented(row).await?;
            challenge.set_ready().await?;
        }
        Ok(())
    }

    /// Waits until every live gateway answers the challenge.
    async fn presented(&self, row: &CertificateOrder) -> Result<(), Failed> {
        let deadline = Instant::now() + PRESENTED;
        loop {
            match self.store.order_fetch(&row.domain).await? {
                Some(now) if now.generation != row.generation => return Err(Failed::Lost),
                Some(now) if now.presented == row.mark => return Ok(()),
                Some(_) => {}
                None => return Err(Failed::Lost),
            }
            if Instant::now() >= deadline {
                return Err(Failed::Trouble(format!(
                    "the gateways did not take up the challenge within {} s: does registry-sync run?",
                    PRESENTED.as_secs()
                )));
            }
            sleep(LOOK).await;
        }
    }

    async fn keep(&self, row: &mut CertificateOrder, chain: &str, key: &str, renewal: bool) -> Result<(), Failed> {
        let unusable = |why: String| Failed::Refused(format!("what the authority issued can't be used: {why}"));
        let pair = Pair::parse(chain.as_bytes(), key.as_bytes()).map_err(|e| unusable(e.to_string()))?;
        if !pair.names.iter().any(|name| name == row.domain.as_str()) {
            return Err(unusable(format!("it is for {}", pair.names.join(", "))));
        }
        let now = Timestamp::now();
        let seconds = |s: i64| Timestamp::from_millis(s.saturating_mul(1_000));
        let certificate = Certificate {
            name: row.domain.clone(),
            source: CertificateSource::Acme,
            issuer: pair.issuer.clone(),
            not_before: seconds(pair.not_before),
            expires_at: seconds(pair.expires),
            updated_at: now,
            mark: rand::random(),
            names: pair.names.clone(),
        };
        let chain = pair.chain_pem();
        if chain.len() > MAX_CHAIN || certificate.expires_at <= now {
            return Err(unusable("it is too long, or has expired".into()));
        }
        let sealed = self.keys.seal(&about_key(&row.domain), pair.key_pem().as_bytes());
        let sealed = SealedCertificate::new(chain, sealed.map_err(Failed::Trouble)?);
        let done = CertificateOrder {
            failures: 0,
            error: None,
            next_try: now.plus(plan::rest(&certificate)),
            ..row.clone().at_rest()
        };
        let verb = if renewal { "renewed" } else { "got" };
        let (domain, expires) = (&row.domain, certificate.expires_at);
        let message = format!("{verb} the certificate for {domain}; it expires at {expires}");
        let event = NewEvent::new(EventKind::Admin, "scheduler", message).about_app(&row.app);
        match self
            .store
            .order_issued(&done, &certificate, &sealed, &event, now)
            .await?
        {
            Issued::Kept => tracing::info!(%domain, %expires, renewal, "certificate issued"),
            Issued::Uploaded => {
                tracing::info!(%domain, "somebody gave a certificate of this name meanwhile, which stays")
            }
            Issued::Conflict => return Err(Failed::Lost),
            Issued::TooMany => {
                return Err(Failed::Trouble(
                    "there are as many certificates as there may be: remove some".into(),
                ));
            }
        }
        Ok(())
    }

    /// Notes why the try failed, and when the next one is.
    async fn failed(&self, row: CertificateOrder, failed: &Failed) -> Result<(), Failed> {
        let (why, goes_on) = match failed {
            Failed::Refused(why) => (why, false),
            Failed::Trouble(why) => (why, true),
            Failed::Store(_) | Failed::Lost => return Ok(()),
        };
        let now = Timestamp::now();
        let failures = row.failures.saturating_add(1);
        let mut next_try = now.plus(plan::pause(failures, rand::random::<u32>() % 1_000));
        if why.contains("urn:ietf:params:acme:error:rateLimited") {
            next_try = next_try.max(now.plus(RATE_LIMITED));
        }
        let next_try = next_try.max(self.authority.rests_until());
        let (url, key) = (row.url.clone(), row.key.clone());
        let mut next = CertificateOrder {
            failures,
            next_try,
            error: Some(why.chars().take(MAX_ERROR).collect()),
            ..row.at_rest()
        };
        if goes_on && failures < GIVEN_UP {
            (next.url, next.key) = (url, key);
        }
        let message = format!(
            "no certificate for {}: {why}; the next try is at {next_try}",
            next.domain
        );
        tracing::warn!(domain = %next.domain, reason = %why, failures, %next_try, "no certificate");
        let event = NewEvent::new(EventKind::Admin, "scheduler", message).about_app(&next.app);
        match self.store.order_put(&next, Some(&event), now).await? {
            Outcome::Updated(_) => Ok(()),
            Outcome::Conflict(_) | Outcome::NotFound => Err(Failed::Lost),
        }
    }

    async fn write(&self, row: &mut CertificateOrder) -> Result<(), Failed> {
        match self.store.order_put(row, None, Timestamp::now()).await? {
            Outcome::Updated(next) => {
                *row = next;
                Ok(())
            }
            Outcome::Conflict(_) | Outcome::NotFound => Err(Failed::Lost),
        }
    }
}

/// The order that is under way, or a new one.
async fn open_order(account: &Account, row: &CertificateOrder) -> Result<Order, Failed> {
    if let Some(url) = &row.url {
        match account.order(url.clone()).await {
            Ok(mut order) => {
                if order.state().status != OrderStatus::Invalid {
                    return Ok(order);
                }
            }
            // The authority has forgotten it.
            Err(Error::Api(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let domain = [Identifier::Dns(row.domain.to_string())];
    Ok(account.new_order(&NewOrder::new(&domain)).await?)
}

/// Asks until the order's state is as wanted.
async fn until(order: &mut Order, wanted: impl Fn(OrderStatus) -> bool) -> Result<(), Failed> {
    let deadline = Instant::now() + PROVED;
    let [mut pause, longest] = PAUSES;
    loop {
        let status = order.state().status;
        if status == OrderStatus::Invalid {
            return Err(Failed::Refused(why_invalid(order).await));
        }
        if wanted(status) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failed::Trouble(format!(
                "the authority did not come to an end within {} s",
                PROVED.as_secs()
            )));
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(longest);
        order.refresh().await?;
    }
}

/// What the authority has against the domain.
async fn why_invalid(order: &mut Order) -> String {
    let whole = order.state().error.as_ref().map(said);
    let mut all = Vec::new();
    // What it has against each challenge tells more than what it makes of them.
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        let errors = authorization.challenges.iter();
        all.extend(errors.filter_map(|c| Some(format!("{}: {}", name_of(&c.r#type), said(c.error.as_ref()?)))));
    }
    match all.as_slice() {
        [] => whole.unwrap_or_else(|| "the authority says that the order is invalid".into()),
        all => all.join("; "),
    }
}

/// How the domain is proved after so many failures.
fn kind(challenges: Challenges, failures: u32) -> ChallengeType {
    match challenges {
        Challenges::Http => ChallengeType::Http01,
        Challenges::Tls => ChallengeType::TlsAlpn01,
        Challenges::Auto if failures.is_multiple_of(2) => ChallengeType::Http01,
        Challenges::Auto => ChallengeType::TlsAlpn01,
    }
}

fn name_of(kind: &ChallengeType) -> &str {
    match kind {
        ChallengeType::Http01 => "http-01",
        ChallengeType::TlsAlpn01 => "tls-alpn-01",
        ChallengeType::Dns01 => "dns-01",
        _ => "other",
    }
}
