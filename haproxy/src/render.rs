//! The registry as HAProxy's configuration: a pure function of the copy and the settings. The same copy gives the same text,
//! so that HAProxy is told only when something has changed.
//!
//! Nothing of the registry reaches the text as it came: ids have an alphabet without blanks, quotes and line ends by their types,
//! and every other word is looked at here ([`is_host`], [`is_field`]) and left out when it is not plain.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use model::config::{Balance, HashKey, Protocol, ProxyProtocol, is_segment};
use model::registry::{EntryKey, RegistrySnapshot};
use model::{AppConfig, AppId, Endpoint, Version};

use crate::config::Config;

/// What stands at the beginning unless the operator has a template.
pub(crate) const PREAMBLE: &str = "\
global
    maxconn 20000

defaults
    timeout connect 1s
    timeout client 75s
    timeout server 60s
    timeout tunnel 1h
    timeout http-request 10s
    option redispatch 1
    retries 3
";

/// A configuration, and the map that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    /// Host → backend.
    pub(crate) map: String,
    /// Where the map must lie.
    pub(crate) map_path: PathBuf,
    /// Endpoints left out because they may not be dialled.
    pub(crate) refused: usize,
}

/// A lower-case domain name, with nothing in it that HAProxy reads as anything else.
pub(crate) fn is_host(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        })
}

/// The name of a header field or cookie.
fn is_field(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// One app with its endpoints that may be dialled, by version.
struct App<'a> {
    id: &'a AppId,
    config: &'a AppConfig,
    versions: BTreeMap<&'a Version, Vec<(&'a EntryKey, Endpoint)>>,
}

impl App<'_> {
    /// The weight of each server of a version: HAProxy's, 0-256. Shares are per version whatever the number of its servers.
    fn weight(&self, version: &Version) -> u32 {
        let weights = &self.config.weights;
        let servers = |v: &Version| self.versions.get(v).map_or(0, Vec::len);
        let each = |v: &Version| match (weights.get(v), servers(v)) {
            (Some(share), n @ 1..) => f64::from((*share).min(100)) / n as f64,
            _ => 0.0,
        };
        let most = self.versions.keys().map(|v| each(v)).fold(0.0, f64::max);
        if most <= 0.0 {
            // No version has a share, or none of those that have one is there: all alike.
            return 100;
        }
        let share = each(version);
        if share <= 0.0 {
            return 0;
        }
        // At most 256 by construction.
        ((share / most * 256.0).round() as u32).max(1)
    }
}

/// The whole configuration.
pub(crate) fn render(snapshot: &RegistrySnapshot, config: &Config, preamble: &str) -> Rendered {
    let nothing = AppConfig::default();
    let mut apps: BTreeMap<&AppId, App<'_>> = BTreeMap::new();
    let app = |id, versions| App {
        id,
        config: snapshot.configs.get(id).unwrap_or(&nothing),
        versions,
    };
    for id in snapshot.configs.keys() {
        apps.insert(id, app(id, BTreeMap::new()));
    }
    let mut refused = 0;
    for (key, endpoint) in &snapshot.endpoints {
        let entry = apps.entry(&key.app).or_insert_with(|| app(&key.app, BTreeMap::new()));
        if config.may_dial(endpoint.0) {
            entry.versions.entry(&key.version).or_default().push((key, *endpoint));
        } else {
            refused += 1;
        }
    }
    let hosts = hosts(&apps, config, |app| app.config.protocol != Protocol::Tcp);
    let mut map = String::new();
    for (host, backend) in &hosts {
        // Writing to a string does not fail.
        let _ = writeln!(map, "{host} {backend}");
    }
    let mut hasher = DefaultHasher::new();
    map.hash(&mut hasher);
    let mut map_path = config.out.clone().into_os_string();
    map_path.push(format!(".{:016x}.map", hasher.finish()));
    let map_path = PathBuf::from(map_path);

    let mut text = String::from("# Written by `caas haproxy`: changes made here are lost.\n\n");
    text.push_str(preamble.trim_end());
    text.push_str("\n\n");
    let wildcards = hosts.keys().any(|host| host.starts_with("*."));
    let paths = paths(&apps, config);
    front(&mut text, config, &map_path, wildcards, &paths);
    for app in apps.values() {
        match app.config.protocol {
            Protocol::Tcp => {}
            Protocol::Http | Protocol::H2c => {
                http_backend(&mut text, app, None, &paths, config);
                for version in several(app) {
                    http_backend(&mut text, app, Some(&version), &[], config);
                }
            }
        }
    }
    tcp_apps(&mut text, &apps, config);
    Rendered {
        text,
        map,
        map_path,
        refused,
    }
}

/// The versions in lower case, as hosts have them, when there are several: of a single one the app's own backend serves.
fn several(app: &App<'_>) -> BTreeSet<String> {
    let versions: BTreeSet<String> = app.versions.keys().map(|v| v.as_str().to_ascii_lowercase()).collect();
    if versions.len() < 2 { BTreeSet::new() } else { versions }
}

/// Where hosts lead that are nobody's here.
const NOBODY: &str = "caas:unknown";

/// Whether the name is a domain that an app may have, or a wildcard of one label more.
fn is_domain(name: &str, config: &Config) -> bool {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    let own = name == config.domain || rest == config.domain || rest.ends_with(&format!(".{}", config.domain));
    is_host(rest) && rest.contains('.') && !own
}

/// Which host of the wanted apps leads to which backend; a wildcard as `*.example.com`. Names under the adapter's own domain belong to the apps of
/// those names; a custom domain to the first app that has it. Other apps' names that would fall under a wildcard lead to nobody.
fn hosts(
    apps: &BTreeMap<&AppId, App<'_>>,
    config: &Config,
    wanted: impl Fn(&App<'_>) -> bool,
) -> BTreeMap<String, String> {
    let mut hosts = BTreeMap::from([(config.domain.clone(), NOBODY.to_owned())]);
    let under = format!(".{}", config.domain);
    let name = |app: &App<'_>| match app.config.protocol {
        _ if !wanted(app) => NOBODY.to_owned(),
        Protocol::Tcp => format!("tcp:{}", app.id),
        _ => format!("app:{}", app.id),
    };
    for app in apps.values().filter(|app| wanted(app)) {
        let id = app.id;
        hosts.insert(format!("{id}{under}"), name(app));
        let many = several(app);
        for version in app.versions.keys().map(|v| v.as_str().to_ascii_lowercase()) {
            let backend = if many.is_empty() {
                name(app)
            } else {
                format!("{}:{version}", name(app))
            };
            let host = format!("{version}--{id}{under}");
            if is_host(&host) {
                hosts.insert(host, backend);
            }
        }
    }
    for app in apps.values() {
        for domain in app.config.domains.iter().map(|d| d.to_ascii_lowercase()) {
            if is_domain(&domain, config) {
                hosts.entry(domain).or_insert_with(|| name(app));
            }
        }
    }
    let wild = hosts.iter().filter(|(_, backend)| *backend != NOBODY);
    let wild: BTreeSet<String> = wild
        .filter_map(|(host, _)| Some(host.strip_prefix("*.")?.to_owned()))
        .collect();
    let covered = |host: &str| {
        host.split_once('.')
            .is_some_and(|(label, rest)| label != "*" && wild.contains(rest))
    };
    hosts.retain(|host, backend| backend != NOBODY || covered(host));
    hosts
}

/// What apps have of a host by path: host, path and backend, the longest paths first; the first app that has one keeps it.
fn paths(apps: &BTreeMap<&AppId, App<'_>>, config: &Config) -> Vec<(String, String, String)> {
    let mut paths = BTreeMap::new();
    for app in apps.values().filter(|app| app.config.protocol != Protocol::Tcp) {
        for domain in &app.config.domains {
            let Some((host, path)) = domain.split_once('/') else {
                continue;
            };
            let host = host.to_ascii_lowercase();
            if is_domain(&host, config) && !host.starts_with('*') && path.split('/').all(is_segment) {
                let backend = format!("app:{}", app.id);
                paths.entry((host, format!("/{path}"))).or_insert(backend);
            }
        }
    }
    let mut paths: Vec<_> = paths
        .into_iter()
        .map(|((host, path), backend)| (host, path, backend))
        .collect();
    paths.sort_by_key(|(_, path, _)| std::cmp::Reverse(path.len()));
    paths
}

fn front(
    text: &mut String,
    config: &Config,
    map: &std::path::Path,
    wildcards: bool,
    paths: &[(String, String, String)],
) {
    let _ = write!(
        text,
        "\
frontend caas
    mode http
    bind {bind}
    http-request del-header Forwarded
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Proto http unless {{ ssl_fc }}
    http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
",
        bind = config.bind,
    );
    // Of several lines the first that fits holds.
    for (host, path, backend) in paths {
        let on = format!("use_backend {backend} if {{ req.hdr(host),host_only -i {host} }}");
        let _ = write!(text, "    {on} {{ path {path} }}\n    {on} {{ path_beg {path}/ }}\n");
    }
    let map = map.display();
    let _ = if wildcards {
        // The name itself, else `*.` and what follows its first label.
        write!(
            text,
            "    http-request set-var(txn.caas_to) req.hdr(host),host_only,lower,map_str({map})
    http-request set-var(txn.caas_up) req.hdr(host),host_only,lower,field(2,.,0)
    http-request set-var(txn.caas_to) str(*.),concat(,txn.caas_up),map_str({map}) unless {{ var(txn.caas_to) -m found }}
    use_backend %[var(txn.caas_to)] if {{ var(txn.caas_to) -m found }}
    default_backend {NOBODY}
"
        )
    } else {
        writeln!(
            text,
            "    use_backend %[req.hdr(host),host_only,lower,map_str({map},{NOBODY})]"
        )
    };
    let _ = write!(
        text,
        "
backend {NOBODY}
    mode http
    http-request return status 404 content-type text/plain string \"no app has this host\" hdr X-Caas-Reason unknown_app

"
    );
}

/// Takes off the path by which a request came, for an app that does not want to know of it. `paths`: of all apps, in the order in which
/// the front looks at them.
fn strip(text: &mut String, app: &App<'_>, paths: &[(String, String, String)]) {
    if !app.config.strip_prefix {
        return;
    }
    let backend = format!("app:{}", app.id);
    let own: Vec<_> = paths.iter().filter(|(.., to)| *to == backend).collect();
    let none = "!{ var(txn.caas_prefix) -m found }";
    for (host, path, _) in &own {
        let on = format!(
            "http-request set-var(txn.caas_prefix) str({path}) if {none} {{ req.hdr(host),host_only -i {host} }}"
        );
        let _ = write!(text, "    {on} {{ path {path} }}\n    {on} {{ path_beg {path}/ }}\n");
    }
    text.push_str("    http-request del-header X-Forwarded-Prefix\n");
    // Several hosts may have the same path.
    let mut said = BTreeSet::new();
    for (_, path, _) in &own {
        if said.insert(path) {
            let pattern = path.replace('.', "[.]");
            let on = format!("if {{ var(txn.caas_prefix) -m str {path} }}");
            let _ = write!(
                text,
                "    http-request set-header X-Forwarded-Prefix {path} {on}\n    http-request replace-path ^{pattern}/?(.*) /\\1 {on}\n"
            );
        }
    }
}

/// `version`: only endpoints of this one.
fn http_backend(
    text: &mut String,
    app: &App<'_>,
    version: Option<&str>,
    paths: &[(String, String, String)],
    config: &Config,
) {
    let id = app.id;
    let _ = match version {
        Some(version) => writeln!(text, "backend app:{id}:{version}"),
        None => writeln!(text, "backend app:{id}"),
    };
    let settings = app.config;
    text.push_str("    mode http\n");
    balance(text, settings);
    if settings.redirect_https {
        text.push_str("    http-request redirect scheme https code 308 unless { ssl_fc }\n");
    }
    strip(text, app, paths);
    for network in &settings.limits.deny {
        let _ = writeln!(text, "    http-request deny deny_status 403 if {}", of(network));
    }
    let times = &settings.timeouts;
    timeout(text, "connect", times.connect_ms.into());
    timeout(text, "server", u64::from(times.response_s) * 1_000);
    timeout(text, "tunnel", u64::from(times.idle_s) * 1_000);
    let suffix = |version: &Version| match settings.protocol_of(version) {
        Protocol::H2c => " proto h2",
        Protocol::Http | Protocol::Tcp => "",
    };
    servers(text, app, version, suffix, config);
    text.push('\n');
}

fn timeout(text: &mut String, which: &str, ms: u64) {
    if ms > 0 {
        let _ = writeln!(text, "    timeout {which} {ms}ms");
    }
}

fn balance(text: &mut String, config: &AppConfig) {
    let consistent = "    hash-type consistent sdbm avalanche\n    hash-balance-factor 125\n";
    let line = match (config.balance, &config.hash) {
        (Balance::RoundRobin, _) => "roundrobin".to_owned(),
        (Balance::LeastRequest | Balance::PeakEwma, _) => "random(2)".to_owned(),
        (Balance::ConsistentHash, HashKey::Header(name)) if config.protocol != Protocol::Tcp && is_field(name) => {
            format!("hdr({name})")
        }
        (Balance::ConsistentHash, HashKey::Cookie(name)) if config.protocol != Protocol::Tcp && is_field(name) => {
            format!("hash req.cook({name})")
        }
        (Balance::ConsistentHash, _) => "source".to_owned(),
    };
    let _ = writeln!(text, "    balance {line}");
    if config.balance == Balance::ConsistentHash {
        text.push_str(consistent);
    }
}

fn servers(
    text: &mut String,
    app: &App<'_>,
    only: Option<&str>,
    suffix: impl Fn(&Version) -> &'static str,
    config: &Config,
) {
    let most = app.config.limits.max_in_flight_per_endpoint;
    let check = if config.check { " check" } else { "" };
    // HAProxy refuses a whole configuration in which a name stands twice.
    let mut names = BTreeSet::new();
    for (version, endpoints) in &app.versions {
        if only.is_some_and(|only| !version.as_str().eq_ignore_ascii_case(only)) {
            continue;
        }
        // Who asks for a version by its host gets it, whatever its share.
        let weight = if only.is_some() { 100 } else { app.weight(version) };
        let suffix = suffix(version);
        for (key, endpoint) in endpoints {
            if !names.insert(&key.container) {
                continue;
            }
            let _ = write!(text, "    server {} {endpoint} weight {weight}", key.container);
            if most > 0 {
                let _ = write!(text, " maxconn {most}");
            }
            let _ = writeln!(text, "{check}{suffix}");
        }
    }
}

/// The condition that a client is of this network. To HAProxy an IPv4 address lies in the IPv6 networks in which the address lies that
/// wraps it, `::/0` for one; to gateways, and whoever wrote the rule, only where the wrapping is named.
fn of(network: &IpNet) -> String {
    let wraps = network.contains(&IpAddr::from(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()));
    let but = if wraps && network.prefix_len() < 96 {
        " !{ src ::ffff:0:0/96 }"
    } else {
        ""
    };
    format!("{{ src {network} }}{but}")
}

/// TCP apps, each at its port, and those that pass TLS through at the port for it; a port of two apps is the first one's.
fn tcp_apps(text: &mut String, apps: &BTreeMap<&AppId, App<'_>>, config: &Config) {
    let mut taken = BTreeSet::from([config.bind.port()]);
    taken.extend(config.tls_passthrough.map(|at| at.port()));
    let all = || apps.values().filter(|a| a.config.protocol == Protocol::Tcp);
    for app in all() {
        let (id, settings) = (app.id, app.config);
        let port = settings.tcp.port;
        let by_port = port != 0 && config.tcp_ports.contains(port) && taken.insert(port);
        let by_name = config.tls_passthrough.is_some() && settings.tcp.passthrough;
        if by_port {
            let at = std::net::SocketAddr::new(config.bind.ip(), port);
            let _ = write!(text, "frontend tcp:{id}\n    mode tcp\n    bind {at}\n");
            for network in &settings.limits.deny {
                let _ = writeln!(text, "    tcp-request connection reject if {}", of(network));
            }
            timeout(text, "client", idle(settings));
            let _ = write!(text, "    default_backend tcp:{id}\n\n");
        }
        if by_port || by_name {
            tcp_backend(text, app, None, config);
        }
        if by_name {
            for version in several(app) {
                tcp_backend(text, app, Some(&version), config);
            }
        }
    }
    if let Some(at) = config.tls_passthrough {
        passthrough(
            text,
            at,
            &hosts(apps, config, |app| {
                app.config.tcp.passthrough && app.config.protocol == Protocol::Tcp
            }),
        );
    }
}

/// Milliseconds that a connection may be silent.
fn idle(settings: &AppConfig) -> u64 {
    match settings.timeouts.idle_s {
        0 => 3_600_000,
        s => u64::from(s) * 1_000,
    }
}

/// `version`: only endpoints of this one.
fn tcp_backend(text: &mut String, app: &App<'_>, version: Option<&str>, config: &Config) {
    let (id, settings) = (app.id, app.config);
    let _ = match version {
        Some(version) => writeln!(text, "backend tcp:{id}:{version}"),
        None => writeln!(text, "backend tcp:{id}"),
    };
    text.push_str("    mode tcp\n");
    if settings.tcp.passthrough {
        for network in &settings.limits.deny {
            let _ = writeln!(text, "    tcp-request content reject if {}", of(network));
        }
    }
    balance(text, settings);
    timeout(text, "connect", settings.timeouts.connect_ms.into());
    timeout(text, "server", idle(settings));
    let suffix = match settings.tcp.proxy_protocol {
        ProxyProtocol::None => "",
        ProxyProtocol::V1 => " send-proxy",
        ProxyProtocol::V2 => " send-proxy-v2",
    };
    servers(text, app, version, |_| suffix, config);
    text.push('\n');
}

/// The port at which the name in the first message of TLS leads to an app; other connections are closed.
fn passthrough(text: &mut String, at: std::net::SocketAddr, hosts: &BTreeMap<String, String>) {
    let _ = write!(
        text,
        "\
frontend caas:tls
    mode tcp
    bind {at}
    timeout client 1h
    tcp-request inspect-delay 10s
"
    );
    for (host, _) in hosts.iter().filter(|(_, backend)| *backend == NOBODY) {
        let _ = writeln!(text, "    tcp-request content reject if {{ req.ssl_sni -i {host} }}");
    }
    text.push_str("    tcp-request content accept if { req.ssl_hello_type 1 }\n    tcp-request content reject\n");
    // Of several lines the first that fits holds: names before wildcards.
    let (wild, exact): (Vec<_>, Vec<_>) = hosts
        .iter()
        .filter(|(_, backend)| *backend != NOBODY)
        .partition(|(host, _)| host.starts_with("*."));
    for (host, backend) in exact {
        let _ = writeln!(text, "    use_backend {backend} if {{ req.ssl_sni -i {host} }}");
    }
    for (host, backend) in wild {
        let rest = &host[2..];
        let _ = writeln!(
            text,
            "    use_backend {backend} if {{ req.ssl_sni,field(2,.,0) -i {rest} }}"
        );
    }
    text.push('\n');
}

#[cfg(test)]
mod tests;
