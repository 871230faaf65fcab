//! The shape of an app's configuration ([`model::AppConfig`]) in the API's description.

use std::collections::BTreeMap;

use utoipa::ToSchema;

/// How traffic reaches an app. Every field may be left out.
#[derive(ToSchema)]
pub(in crate::api) struct AppConfig {
    /// Custom domains, lower case.
    domains: Option<Vec<String>>,
    /// The paths of its domains are taken off before the app is asked.
    strip_prefix: Option<bool>,
    /// The app answers `GET` of this path with its id in `X-Caas-App`; empty: it does not.
    #[schema(max_length = 1024)]
    identity_path: Option<String>,
    protocol: Option<Protocol>,
    tcp: Option<Tcp>,
    /// Plain HTTP requests are redirected to HTTPS (308).
    redirect_https: Option<bool>,
    /// Its domains get certificates by themselves where the scheduler has an authority. Default true.
    acme: Option<bool>,
    balance: Option<Balance>,
    hash: Option<HashKey>,
    /// Shares of the requests per version, 0-100 each.
    weights: Option<BTreeMap<String, u32>>,
    sticky: Option<Sticky>,
    /// Endpoints in the gateway's region are preferred.
    prefer_region: Option<bool>,
    /// Seconds over which a new endpoint's share grows.
    #[schema(minimum = 0, maximum = 3600)]
    slow_start_s: Option<u32>,
    limits: Option<Limits>,
    timeouts: Option<Timeouts>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(in crate::api) enum Protocol {
    Http,
    H2c,
    Tcp,
}

/// With protocol `tcp`: how connections reach the app.
#[derive(ToSchema)]
pub(in crate::api) struct Tcp {
    /// The port at every gateway; 0: the platform chooses.
    port: Option<u16>,
    proxy_protocol: Option<ProxyProtocol>,
    /// The app has a TLS certificate of its own: connections at the gateways' TLS port that name one of its hosts reach it untouched.
    passthrough: Option<bool>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(in crate::api) enum ProxyProtocol {
    None,
    V1,
    V2,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(in crate::api) enum Balance {
    RoundRobin,
    LeastRequest,
    PeakEwma,
    ConsistentHash,
}

/// With balance `consistent_hash`: what is hashed.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(in crate::api) enum HashKey {
    ClientAddress,
    /// The value of this header field.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
}

/// What a client keeps from one request to the next, by a cookie.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(in crate::api) enum Sticky {
    None,
    Version,
    Endpoint,
}

/// Limits at each gateway; 0 means no limit, or the gateway's default.
#[derive(ToSchema)]
pub(in crate::api) struct Limits {
    /// Client networks that are refused.
    deny: Option<Vec<String>>,
    #[schema(minimum = 0, maximum = 1000000)]
    requests_per_second_per_client: Option<u32>,
    /// Requests that one client may make at once before that rate counts.
    #[schema(minimum = 0, maximum = 1000000)]
    request_burst_per_client: Option<u32>,
    /// No rate per client, not even the gateway's.
    unlimited_per_client: Option<bool>,
    #[schema(minimum = 0, maximum = 1000000)]
    requests_per_second: Option<u32>,
    /// Largest request body in bytes, at most 1 TiB.
    max_body_bytes: Option<u64>,
    /// Most requests under way at once.
    #[schema(minimum = 0, maximum = 1000000)]
    max_in_flight: Option<u32>,
    /// Most requests under way at one endpoint.
    #[schema(minimum = 0, maximum = 1000000)]
    max_in_flight_per_endpoint: Option<u32>,
}

/// Time-outs at each gateway; 0 means the gateway's default.
#[derive(ToSchema)]
pub(in crate::api) struct Timeouts {
    #[schema(minimum = 0, maximum = 60000)]
    connect_ms: Option<u32>,
    #[schema(minimum = 0, maximum = 86400)]
    response_s: Option<u32>,
    #[schema(minimum = 0, maximum = 86400)]
    idle_s: Option<u32>,
}
