//! How traffic reaches an app's instances: [`AppConfig`], changeable while they run. What they are made from is
//! [`crate::ReleaseSpec`].

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::spec::within;
use crate::{SpecError, Version};

/// Most versions of which an app's published configuration says that they speak something else, or have another time to finish: as
/// many as may have weights.
pub const MAX_PROTOCOLS: usize = 20;

/// How requests reach the app's instances. Published as `/caas/service/config/{appId}`; gateways
/// follow changes while they run. Unknown fields are ignored so that older gateways can read newer ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AppConfig {
    /// Custom domains (CNAMEs) beside `{appId}.{gateway-domain}`, lower case; `*.example.com` stands for every name of one label more that
    /// no app has by itself, `shop.example.com/api` for the path `/api` there and all below it.
    pub domains: Vec<String>,
    /// The app does not see the paths of its domains: a request at `shop.example.com/api/x` reaches it as `/x`, with
    /// `X-Forwarded-Prefix: /api`. Default false: as it came.
    pub strip_prefix: bool,
    /// The app answers `GET` of this path with 2xx and its own id in `X-Caas-App`, by which a gateway that is cut off from the
    /// registry knows its instances from others. Default empty: it does not, and nobody asks.
    pub identity_path: String,
    /// What the app speaks; of its instances each what its release was deployed with, see [`Protocol::of_instance`].
    pub protocol: Protocol,
    /// Versions whose instances speak another HTTP than `protocol`. Written by registry-sync at publication, and nobody's to set:
    /// at most [`MAX_PROTOCOLS`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub protocols: BTreeMap<Version, Protocol>,
    /// Seconds that an instance which was withdrawn has to finish what it has under way; then gateways tell its WebSockets to go
    /// elsewhere. `None`: not known, so nobody is told. Written by registry-sync at publication, and nobody's to set, as is:
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_s: Option<u32>,
    /// Versions whose instances have another time than `drain_s`: at most [`MAX_PROTOCOLS`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub drains: BTreeMap<Version, u32>,
    /// With `protocol = "tcp"`: how connections reach it.
    pub tcp: Tcp,
    /// Plain HTTP requests are answered with a redirect to HTTPS (308).
    pub redirect_https: bool,
    /// The app's domains get certificates by themselves where the scheduler has an authority. Default true.
    pub acme: bool,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// With `balance = "consistent_hash"`: what is hashed.
    pub hash: HashKey,
    /// Shares of the requests per version (0-100 each), such as `{"1": 95, "2": 5}`. Empty: all versions alike. Versions not named
    /// get none, unless no named one has an endpoint.
    pub weights: BTreeMap<Version, u32>,
    /// What a client keeps from one request to the next, by a cookie.
    pub sticky: Sticky,
    /// Endpoints in the gateway's own region are preferred while there are any.
    pub prefer_region: bool,
    /// Seconds over which a new endpoint's share grows to its full one. 0-3,600, 0: at once.
    pub slow_start_s: u32,
    /// Limits at the gateway.
    pub limits: Limits,
    /// Time-outs at the gateway.
    pub timeouts: Timeouts,
}

impl Default for AppConfig {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            strip_prefix: false,
            identity_path: String::new(),
            protocol: Protocol::default(),
            protocols: BTreeMap::new(),
            drain_s: None,
            drains: BTreeMap::new(),
            tcp: Tcp::default(),
            redirect_https: false,
            acme: true,
            balance: Balance::default(),
            hash: HashKey::default(),
            weights: BTreeMap::new(),
            sticky: Sticky::default(),
            prefer_region: false,
            slow_start_s: 0,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// What the app speaks behind the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1 (WebSocket and other upgrades included).
    #[default]
    Http,
    /// HTTP/2 without TLS, by prior knowledge (RFC 9113 3.3): gRPC.
    H2c,
    /// Bytes: a port of the gateway's own leads to the app.
    Tcp,
}

impl Protocol {
    /// The word in the store and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::H2c => "h2c",
            Self::Tcp => "tcp",
        }
    }

    /// Whether requests can be made in it.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::H2c)
    }

    /// What an instance is spoken to in, of an app that is at `self`, whose release was deployed with `release` (`None`: before
    /// releases knew). Bytes are another thing than requests, and the app's as a whole, since they have a port of their own.
    #[must_use]
    pub fn of_instance(self, release: Option<Self>) -> Self {
        release.filter(|own| self.is_http() && own.is_http()).unwrap_or(self)
    }
}

/// How connections reach an app that speaks neither HTTP/1.1 nor HTTP/2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tcp {
    /// The port at every gateway. 0: none was given out yet; the platform chooses one that no other app has, but for apps with
    /// `passthrough`, which have none then.
    pub port: u16,
    /// The header before a connection's first byte that tells the instance who the client is.
    pub proxy_protocol: ProxyProtocol,
    /// The app speaks TLS with a certificate of its own: connections at the gateway's TLS port that name one of its hosts reach it
    /// untouched, besides those at its own port if it has one.
    pub passthrough: bool,
}

/// The PROXY protocol of HAProxy (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyProtocol {
    /// No header.
    #[default]
    None,
    /// The text header.
    V1,
    /// The binary header.
    V2,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Each endpoint in turn.
    #[default]
    RoundRobin,
    /// Of two taken at random, the one with fewer requests under way (Mitzenmacher, "The Power of Two Choices", 2001).
    LeastRequest,
    /// Of two taken at random, the one with the lower product of requests under way and recent latency (Finagle's peak EWMA).
    PeakEwma,
    /// The same key reaches the same endpoint, none of which gets more than 1.25 times its share
    /// (Mirrokni et al., "Consistent Hashing with Bounded Loads", 2016).
    ConsistentHash,
}

/// What decides where a request goes under consistent hashing; the client's address where it is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashKey {
    /// The client's address.
    #[default]
    ClientAddress,
    /// The value of this header field, lower case.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
}

/// What a client keeps from one request to the next, by a cookie of the gateway's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sticky {
    /// Nothing.
    #[default]
    None,
    /// The version that `weights` chose, as long as it has a share.
    Version,
    /// The endpoint, as long as it is healthy.
    Endpoint,
}

/// Limits per app at each gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Client networks that are refused (403).
    pub deny: Vec<IpNet>,
    /// Requests per second of one client address (IPv6: /64). 0-1,000,000, 0: the gateway's default.
    pub requests_per_second_per_client: u32,
    /// Requests that one client may make at once before that rate counts; at most a minute's worth. 0-1,000,000, 0: one
    /// second's worth of an own rate, else the gateway's default.
    pub request_burst_per_client: u32,
    /// No rate per client, not even the gateway's.
    pub unlimited_per_client: bool,
    /// Requests per second of the whole app. 0-1,000,000, 0: no limit.
    pub requests_per_second: u32,
    /// Largest request body in bytes. 0-1,099,511,627,776 (1 TiB), 0: the gateway's default (100 MiB).
    pub max_body_bytes: u64,
    /// Most requests under way at once. 0-1,000,000, 0: the gateway's default.
    pub max_in_flight: u32,
    /// Most requests under way at one endpoint. 0-1,000,000, 0: no limit.
    pub max_in_flight_per_endpoint: u32,
}

/// Time-outs per app at each gateway; 0 means the gateway's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// Milliseconds to connect to an endpoint. 0-60,000, default 1,000.
    pub connect_ms: u32,
    /// Seconds from the sent request to the head of the answer. 0-86,400, default 60.
    pub response_s: u32,
    /// Seconds without a byte in either direction of a body or tunnel. 0-86,400, default 60 (tunnels 3,600).
    pub idle_s: u32,
}

impl AppConfig {
    /// What instances of `version` are spoken to in.
    pub fn protocol_of(&self, version: &Version) -> Protocol {
        self.protocol.of_instance(self.protocols.get(version).copied())
    }

    /// What instances of `version` have to finish once they are withdrawn; `None`: not known.
    pub fn drain_of(&self, version: &Version) -> Option<Duration> {
        let own = self.drains.get(version).copied().or(self.drain_s)?;
        Some(Duration::from_secs(own.into()))
    }

    /// Every field that can't be accepted; empty when the configuration is sound.
    pub fn check(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        if self.domains.len() > 100 {
            errors.push(SpecError::new("/domains", "at most 100 domains"));
        }
        for (i, domain) in self.domains.iter().enumerate() {
            if domain.len() > 253 || !custom_domain(domain) {
                errors.push(SpecError::new(
                    format!("/domains/{i}"),
                    format!(
                        "{domain:?} must be a lower-case domain name such as shop.example.com, *.example.com or shop.example.com/api"
                    ),
                ));
            } else if domain.contains('/') && self.protocol == Protocol::Tcp {
                let text = format!("{domain:?} has a path, which an app with protocol \"tcp\" never sees");
                errors.push(SpecError::new(format!("/domains/{i}"), text));
            }
        }
        if !self.identity_path.is_empty() {
            let path = self.identity_path.as_bytes();
            let sound = path[0] == b'/'
                && path.len() <= 1_024
                && path
                    .iter()
                    .all(|b| b.is_ascii_graphic() && !b"#<>`\"{}|\\^".contains(b));
            if !sound {
                let why = "must begin with '/' and have at most 1,024 visible ASCII characters, none of them one of # < > ` \" { } | \\ ^";
                errors.push(SpecError::new("/identity_path", why));
            } else if self.protocol == Protocol::Tcp {
                let why = "an app with protocol \"tcp\" can't be asked: leave it empty";
                errors.push(SpecError::new("/identity_path", why));
            }
        }
        if self.protocols.len() > MAX_PROTOCOLS {
            let why = format!("at most {MAX_PROTOCOLS} versions");
            errors.push(SpecError::new("/protocols", why));
        }
        if self.drains.len() > MAX_PROTOCOLS {
            let why = format!("at most {MAX_PROTOCOLS} versions");
            errors.push(SpecError::new("/drains", why));
        }
        if self.tcp != Tcp::default() && self.protocol != Protocol::Tcp {
            errors.push(SpecError::new("/tcp", "only an app with protocol \"tcp\" has these"));
        }
        match &self.hash {
            HashKey::ClientAddress => {}
            HashKey::Header(name) if !token(name) || name.bytes().any(|b| b.is_ascii_uppercase()) => {
                errors.push(SpecError::new(
                    "/hash/header",
                    format!("{name:?} must be a lower-case header name such as x-user"),
                ));
            }
            HashKey::Cookie(name) if !token(name) => {
                errors.push(SpecError::new(
                    "/hash/cookie",
                    format!("{name:?} must be the name of a cookie such as session"),
                ));
            }
            HashKey::Header(_) | HashKey::Cookie(_) => {}
        }
        if self.weights.len() > 20 {
            errors.push(SpecError::new("/weights", "at most 20 versions"));
        }
        for (version, weight) in &self.weights {
            within(&mut errors, &format!("/weights/{version}"), *weight, 0, 100);
        }
        if !self.weights.is_empty() && self.weights.values().all(|w| *w == 0) {
            errors.push(SpecError::new("/weights", "at least one version must have a share"));
        }
        if self.limits.deny.len() > 1_000 {
            errors.push(SpecError::new("/limits/deny", "at most 1,000 networks"));
        }
        let (e, l, t) = (&mut errors, &self.limits, &self.timeouts);
        let per_client = l.requests_per_second_per_client;
        within(e, "/slow_start_s", self.slow_start_s, 0, 3_600);
        within(e, "/limits/requests_per_second_per_client", per_client, 0, 1_000_000);
        let burst = l.request_burst_per_client;
        within(e, "/limits/request_burst_per_client", burst, 0, 1_000_000);
        within(e, "/limits/requests_per_second", l.requests_per_second, 0, 1_000_000);
        within(e, "/limits/max_body_bytes", l.max_body_bytes, 0, 1 << 40);
        within(e, "/limits/max_in_flight", l.max_in_flight, 0, 1_000_000);
        let per_endpoint = l.max_in_flight_per_endpoint;
        within(e, "/limits/max_in_flight_per_endpoint", per_endpoint, 0, 1_000_000);
        within(e, "/timeouts/connect_ms", t.connect_ms, 0, 60_000);
        within(e, "/timeouts/response_s", t.response_s, 0, 86_400);
        within(e, "/timeouts/idle_s", t.idle_s, 0, 86_400);
        errors
    }
}

/// A token (RFC 9110 5.6.2) of at most 64 characters.
fn token(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A domain of an app: a name, all names of one label more, or a path of a name.
fn custom_domain(text: &str) -> bool {
    match text.split_once('/') {
        Some((name, path)) => domain_name(name) && path.split('/').all(is_segment),
        None => domain_name(text.strip_prefix("*.").unwrap_or(text)),
    }
}

/// Whether a domain's path may have this segment, which can be written in one way only (RFC 3986 2.3, 6.2.2): no dots that walk,
/// no `%`.
pub fn is_segment(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
}

/// A lower-case DNS name of at least two labels.
fn domain_name(text: &str) -> bool {
    text.len() <= 253
        && text.contains('.')
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_time_outs_of_an_app_are_bounded() {
        let most = AppConfig {
            limits: Limits {
                requests_per_second_per_client: 1_000_000,
                request_burst_per_client: 1_000_000,
                requests_per_second: 1_000_000,
                max_body_bytes: 1 << 40,
                max_in_flight: 1_000_000,
                ..Limits::default()
            },
            timeouts: Timeouts {
                connect_ms: 60_000,
                response_s: 86_400,
                idle_s: 86_400,
            },
            ..AppConfig::default()
        };
        assert_eq!(most.check(), []);
        let mut beyond = most;
        beyond.limits.requests_per_second_per_client += 1;
        beyond.limits.request_burst_per_client += 1;
        beyond.limits.requests_per_second += 1;
        beyond.limits.max_body_bytes += 1;
        beyond.limits.max_in_flight += 1;
        beyond.timeouts.connect_ms += 1;
        beyond.timeouts.response_s += 1;
        beyond.timeouts.idle_s += 1;
        let fields: Vec<String> = beyond.check().into_iter().map(|e| e.field).collect();
        assert_eq!(
            fields,
            [
                "/limits/requests_per_second_per_client",
                "/limits/request_burst_per_client",
                "/limits/requests_per_second",
                "/limits/max_body_bytes",
                "/limits/max_in_flight",
                "/timeouts/connect_ms",
                "/timeouts/response_s",
                "/timeouts/idle_s",
            ]
        );
    }

    #[test]
    fn domains() {
        assert!(domain_name("shop.example.com"));
        for bad in ["", "a", "A.b", "-a.b", "a-.b", "a..b", "a.b.", "a_b.c", "a.b/c"] {
            assert!(!domain_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_domain_may_stand_for_all_names_of_one_label_more() {
        let errors = |domain: &str| {
            let config = AppConfig {
                domains: vec![domain.into()],
                ..AppConfig::default()
            };
            config.check().len()
        };
        for good in [
            "shop.example.com",
            "*.example.com",
            "*.a.b.example.com",
            "a.example.com/api",
            "a.b/V1/x.y~_-",
        ] {
            assert_eq!(errors(good), 0, "{good}");
        }
        for bad in [
            "a.b/", "a.b//", "a.b/x/", "a.b//x", "a.b/.", "a.b/../x", "a.b/%61", "a.b/x;y", "a.b/x?y", "a.b/x y",
            "a.b/*", "*.a.b/x", "ab/x", "/x", "A.b/x", "a.b:80/x",
        ] {
            assert_eq!(errors(bad), 1, "{bad}");
        }
        let bytes: AppConfig = serde_json::from_str(r#"{"protocol":"tcp","domains":["a.b","a.b/x"]}"#).expect("json");
        let fields: Vec<String> = bytes.check().into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["/domains/1"]);
        let long = format!("*.{}a.example.com", "abcdefghi.".repeat(24));
        for bad in [
            "*",
            "*.",
            "*.com",
            "*example.com",
            "a.*.com",
            "a*.example.com",
            "*.*.example.com",
            "**.example.com",
            "*.Example.com",
            ".example.com",
            &long,
        ] {
            assert_eq!(errors(bad), 1, "{bad}");
        }
    }

    #[test]
    fn acme_is_on_unless_said_otherwise_also_for_what_was_stored_before() {
        let read = |text: &str| serde_json::from_str::<AppConfig>(text).expect("json");
        assert!(read("{}").acme && read("{}") == AppConfig::default());
        assert!(!read(r#"{"acme":false}"#).acme);
    }

    #[test]
    fn each_version_is_spoken_to_in_its_own_http() {
        let read = |text: &str| serde_json::from_str::<AppConfig>(text).expect("json");
        let of = |config: &AppConfig, version: &str| config.protocol_of(&version.parse().expect("version"));
        let rolling = read(r#"{"protocol":"h2c","protocols":{"1":"http","3":"tcp"}}"#);
        assert_eq!(of(&rolling, "1"), Protocol::Http);
        assert_eq!(of(&rolling, "2"), Protocol::H2c);
        assert_eq!(
            of(&rolling, "3"),
            Protocol::H2c,
            "bytes are nothing that requests are made in"
        );
        let bytes = read(r#"{"protocol":"tcp","protocols":{"1":"http"}}"#);
        assert_eq!(of(&bytes, "1"), Protocol::Tcp, "the whole app's");
        assert_eq!(Protocol::H2c.of_instance(None), Protocol::H2c);
        let many = |n: usize| AppConfig {
            protocols: (0..n)
                .map(|v| (v.to_string().parse().expect("version"), Protocol::H2c))
                .collect(),
            ..AppConfig::default()
        };
        assert_eq!(many(MAX_PROTOCOLS).check(), [], "as it is read from the registry");
        assert_eq!(many(MAX_PROTOCOLS + 1).check()[0].field, "/protocols");
        // What readers of before know is as it was while all versions speak the same.
        assert!(
            !serde_json::to_string(&AppConfig::default())
                .expect("json")
                .contains("protocols")
        );
    }

    #[test]
    fn choices_of_balancing_and_tcp_are_checked() {
        let fields = |text: &str| -> Vec<String> {
            let config: AppConfig = serde_json::from_str(text).expect("json");
            config.check().into_iter().map(|e| e.field).collect()
        };
        for good in [
            r#"{"balance":"peak_ewma","slow_start_s":30,"prefer_region":true,"sticky":"endpoint"}"#,
            r#"{"balance":"consistent_hash","hash":{"header":"x-user"}}"#,
            r#"{"hash":{"cookie":"Session"}}"#,
            r#"{"hash":"client_address","weights":{"1":95,"2":5},"sticky":"version"}"#,
            r#"{"protocol":"tcp","tcp":{"port":31000,"proxy_protocol":"v2","passthrough":true}}"#,
            r#"{"protocol":"h2c","redirect_https":true,"strip_prefix":true}"#,
            r#"{"identity_path":"/who?a=b"}"#,
            r#"{"protocol":"tcp","identity_path":""}"#,
        ] {
            assert_eq!(fields(good), Vec::<String>::new(), "{good}");
        }
        for (bad, field) in [
            (r#"{"identity_path":"who"}"#, "/identity_path"),
            (r#"{"identity_path":"/<who>"}"#, "/identity_path"),
            (r#"{"identity_path":"/who am i"}"#, "/identity_path"),
            (r#"{"identity_path":"/who#me"}"#, "/identity_path"),
            (r#"{"protocol":"tcp","identity_path":"/who"}"#, "/identity_path"),
            (r#"{"tcp":{"port":31000}}"#, "/tcp"),
            (r#"{"protocol":"h2c","tcp":{"passthrough":true}}"#, "/tcp"),
            (r#"{"hash":{"header":"X-User"}}"#, "/hash/header"),
            (r#"{"hash":{"header":""}}"#, "/hash/header"),
            (r#"{"hash":{"cookie":"a b"}}"#, "/hash/cookie"),
            (r#"{"weights":{"1":101}}"#, "/weights/1"),
            (r#"{"weights":{"1":0}}"#, "/weights"),
            (r#"{"slow_start_s":3601}"#, "/slow_start_s"),
        ] {
            assert_eq!(fields(bad), [field], "{bad}");
        }
    }
}
