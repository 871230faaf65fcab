//! Which certificates are to be had now, and what is to be forgotten. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use model::config::Protocol;
use model::{App, AppId, AppStatus, Certificate, CertificateName, CertificateOrder, CertificateSource, Timestamp};

use super::config::AcmeConfig;

/// Most orders that one scheduler works on at once. Let's Encrypt takes 300 new ones in three hours from one account.
pub(super) const AT_ONCE: usize = 4;

/// Pause after the first failure; it doubles with each further one. So there are at most five tries in an hour, which is what
/// Let's Encrypt allows of failed validations of one name.
const FIRST_PAUSE: Duration = Duration::from_secs(300);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(86_400);

/// Names that no public authority certifies (RFC 6761, RFC 8375, RFC 9476, and those that ICANN keeps free).
const INTERNAL: [&str; 13] = [
    "alt",
    "arpa",
    "corp",
    "example",
    "home",
    "internal",
    "intranet",
    "invalid",
    "lan",
    "local",
    "localhost",
    "onion",
    "test",
];

/// What is decided from.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) config: &'a AcmeConfig,
    pub(super) apps: &'a [App],
    pub(super) certificates: &'a [Certificate],
    pub(super) orders: &'a [CertificateOrder],
    /// Domains on which this scheduler works at the moment.
    pub(super) running: &'a BTreeSet<CertificateName>,
    /// How this scheduler is called.
    pub(super) me: &'a str,
    pub(super) now: Timestamp,
}

/// A certificate to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Begin {
    /// The row as it is; generation 0: there is none yet.
    pub(super) order: CertificateOrder,
    /// There is a certificate, which is replaced.
    pub(super) renewal: bool,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Those without a certificate first, then those that expire first.
    pub(super) begin: Vec<Begin>,
    /// Orders that nobody wants any more.
    pub(super) drop: Vec<CertificateOrder>,
    /// Certificates of our own that stand in the way of one that somebody gave, or that have expired unwanted.
    pub(super) forget: Vec<CertificateName>,
    /// When the next thing is due that waits for nothing but the clock.
    pub(super) next: Option<Timestamp>,
}

/// Decides.
pub(super) fn plan(view: &View<'_>) -> Plan {
    let now = view.now;
    let uploaded = |c: &&Certificate| c.source == CertificateSource::Uploaded;
    let given: Vec<&Certificate> = view.certificates.iter().filter(uploaded).collect();
    let own = view.certificates.iter().filter(|c| c.source == CertificateSource::Acme);
    let own: BTreeMap<&CertificateName, &Certificate> = own.map(|c| (&c.name, c)).collect();
    // Whoever gave a certificate has the last word for its hosts, and for its name even when it has expired.
    let taken: BTreeSet<&CertificateName> = given.iter().map(|c| &c.name).collect();
    let hosts: BTreeSet<&str> = given
        .iter()
        .filter(|c| c.expires_at > now)
        .flat_map(|c| c.names.iter().map(String::as_str))
        .collect();
    let is_given = |domain: &CertificateName| taken.contains(domain) || covers(&hosts, domain.as_str());

    let all = domains(view.config, view.apps);
    let wanted: BTreeMap<&CertificateName, &AppId> =
        all.iter().filter(|(d, _)| !is_given(d)).map(|(d, a)| (d, *a)).collect();
    let orders: BTreeMap<&CertificateName, &CertificateOrder> = view.orders.iter().map(|o| (&o.domain, o)).collect();

    let mut plan = Plan::default();
    let mut due = Vec::new();
    for (domain, app) in &wanted {
        if view.running.contains(*domain) {
            continue;
        }
        let certificate = own.get(domain).copied();
        let order = orders.get(domain).copied();
        let waits = [certificate.map(renew_at), order.map(|o| o.next_try)];
        if let Some(at) = waits.into_iter().flatten().filter(|at| *at > now).max() {
            plan.next = Some(plan.next.map_or(at, |next| next.min(at)));
            continue;
        }
        let order = match order {
            Some(order) if order.is_held_by_other(view.me, now) => continue,
            Some(order) => order.clone(),
            None => CertificateOrder::new((*domain).clone(), (*app).clone()),
        };
        let begin = Begin {
            order: CertificateOrder {
                app: (*app).clone(),
                ..order
            },
            renewal: certificate.is_some(),
        };
        // What has expired serves nobody.
        let expires = certificate.map(|c| c.expires_at).filter(|at| *at > now);
        due.push((expires, begin));
    }
    due.sort_by(|(a, x), (b, y)| (a, &x.order.domain).cmp(&(b, &y.order.domain)));
    let free = AT_ONCE.saturating_sub(view.running.len());
    plan.begin = due.into_iter().map(|(_, begin)| begin).take(free).collect();

    let over = |o: &&CertificateOrder| {
        !wanted.contains_key(&o.domain) && !view.running.contains(&o.domain) && !o.is_held_by_other(view.me, now)
    };
    plan.drop = view.orders.iter().filter(over).cloned().collect();
    let unwanted = |(name, c): &(&CertificateName, &Certificate)| {
        !wanted.contains_key(*name) && (c.expires_at <= now || is_given(name))
    };
    let forget = own.into_iter().filter(unwanted);
    plan.forget = forget.map(|(name, _)| name.clone()).collect();
    plan
}

/// When a certificate is renewed: after two thirds of its lifetime.
pub(super) fn renew_at(certificate: &Certificate) -> Timestamp {
    let lifetime = certificate.expires_at.since(certificate.not_before);
    certificate.not_before.plus(lifetime / 3 * 2)
}

/// How long after a certificate was had the next may be asked for, whatever else is believed: authorities give five a week.
pub(super) fn rest(certificate: &Certificate) -> Duration {
    let lifetime = certificate.expires_at.since(certificate.not_before);
    (lifetime / 3).min(LONGEST_PAUSE)
}

/// The pause after so many failures in a row; `dice` (0-999) spreads domains that failed together over a tenth of it.
pub(super) fn pause(failures: u32, dice: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(20));
    let pause = doubled.min(LONGEST_PAUSE);
    pause + pause / 10 * dice.min(999) / 1_000
}

/// The domains that are to have certificates, and whose they are.
fn domains<'a>(config: &AcmeConfig, apps: &'a [App]) -> BTreeMap<CertificateName, &'a AppId> {
    let private = config.root_certificate_file.is_some();
    let mut domains = BTreeMap::new();
    for app in apps {
        // What speaks TCP has its certificate inside, if any.
        if app.status == AppStatus::Removing || app.config.protocol == Protocol::Tcp || !app.config.acme {
            continue;
        }
        let own = config.domain.as_ref().map(|domain| format!("{}.{domain}", app.id));
        for domain in app.config.domains.iter().chain(&own) {
            // Apps may share a name by paths: it is the first one's that is met, as long as that has it.
            let domain = domain.split('/').next().unwrap_or_default();
            // A longer one is no certificate's name, and a wildcard neither: http-01 and tls-alpn-01 prove none. No authority is asked for a
            // name that it can't know.
            if let Ok(name) = domain.parse::<CertificateName>()
                && domain.parse::<IpAddr>().is_err()
                && (private || is_public(domain))
            {
                domains.entry(name).or_insert(&app.id);
            }
        }
    }
    domains
}

/// Whether a public authority may know the name.
fn is_public(domain: &str) -> bool {
    let last = domain.rsplit('.').next().unwrap_or_default();
    !INTERNAL.contains(&last)
}

/// Whether one of these hosts is the domain, or the wildcard one label up.
fn covers(hosts: &BTreeSet<&str>, domain: &str) -> bool {
    let wildcard = domain.split_once('.').map(|(_, parent)| format!("*.{parent}"));
    hosts.contains(domain) || wildcard.is_some_and(|w| hosts.contains(w.as_str()))
}

#[cfg(test)]
mod tests;
