//! Configuration: every setting of the adapter with its default, unit and range.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use model::PortRange;
use serde::{Deserialize, Serialize};

use crate::Error;

/// The adapter's settings; section `[haproxy]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// HAProxy's configuration file, which this role alone writes. Beside it lie its maps, `{out}.{hash}.map`.
    pub out: PathBuf,
    /// Command (for `sh -c`) that makes HAProxy read `out` anew, such as `systemctl reload haproxy`.
    pub reload: String,
    /// HAProxy's program, by which a configuration is checked before it takes the place of the old one. Default `haproxy`.
    pub program: String,
    /// File whose text stands at the beginning of the configuration (sections `global` and `defaults`) in place of the built-in
    /// ones. Default none.
    pub template: Option<PathBuf>,
    /// Where HAProxy listens for HTTP. Default `0.0.0.0:8080`.
    pub bind: SocketAddr,
    /// Where HAProxy listens for the TLS connections of apps with `tcp.passthrough`, which it passes on by the name that clients say
    /// (SNI). Default none: such apps are reached only at ports of their own.
    pub tls_passthrough: Option<SocketAddr>,
    /// Where `/live`, `/ready` and `/metrics` are served. Default `127.0.0.1:9092`.
    pub admin: SocketAddr,
    /// Apps answer at `{app}.{domain}`. Default `localhost`.
    pub domain: String,
    /// Name in the registry, under which it acknowledges beside the gateways; empty (default): `haproxy-` and a random number.
    pub id: String,
    /// Networks in which endpoints may lie; others are left out. Default: the private and loopback networks, as at the gateway.
    pub endpoint_cidrs: Vec<IpNet>,
    /// Ports that endpoints may have. Default `1024-65535`.
    pub endpoint_ports: PortRange,
    /// Ports that may be bound for apps with protocol TCP, whatever the registry says. Default `15000-15999`.
    pub tcp_ports: PortRange,
    /// Whether HAProxy checks servers by connecting to them every 2 s, beside registry-sync's probes. Default false.
    pub check: bool,
    /// Milliseconds to wait for further changes before the first one is written. 0-60,000, default 500.
    pub debounce_ms: u64,
    /// Least milliseconds between two reloads. 0-600,000, default 2,000.
    pub reload_every_ms: u64,
    /// Seconds that the check, and the reload, may take. 1-600, default 10.
    pub deadline_s: u64,
    /// Seconds for which withdrawn endpoints count as draining after the reload that left them out: HAProxy's processes from before may
    /// still have requests there. 0-3,600, default 5.
    pub linger_s: u64,
    /// Seconds that vanished endpoints are held when a resync drops more than half of an app's (or of all). Default 30.
    pub hold_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        let nets = |texts: &[&str]| texts.iter().filter_map(|t| t.parse().ok()).collect();
        Self {
            out: PathBuf::new(),
            reload: String::new(),
            program: "haproxy".into(),
            template: None,
            bind: SocketAddr::from(([0, 0, 0, 0], 8080)),
            tls_passthrough: None,
            admin: SocketAddr::from(([127, 0, 0, 1], 9092)),
            domain: "localhost".into(),
            id: String::new(),
            endpoint_cidrs: nets(&[
                "10.0.0.0/8",
                "172.16.0.0/12",
                "192.168.0.0/16",
                "127.0.0.0/8",
                "fc00::/7",
                "::1/128",
            ]),
            endpoint_ports: PortRange {
                first: 1024,
                last: u16::MAX,
            },
            tcp_ports: model::ports::GATEWAY_TCP,
            check: false,
            debounce_ms: 500,
            reload_every_ms: 2_000,
            deadline_s: 10,
            linger_s: 5,
            hold_s: 30,
        }
    }
}

impl Config {
    /// Refuses settings that can't work, naming the first.
    ///
    /// # Errors
    /// [`Error::Config`] with the setting, its value and what it must be.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Config(text));
        if self.out.file_name().is_none() {
            return wrong("haproxy.out (flag --out) must name HAProxy's configuration file".into());
        }
        let path = self.out.as_os_str().as_encoded_bytes();
        if !path.iter().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(b)) {
            return wrong(format!(
                "haproxy.out = {:?} must consist of letters, digits and / . _ -: the path stands in the configuration",
                self.out
            ));
        }
        if self.reload.is_empty() {
            return wrong("haproxy.reload (flag --reload) must be a command such as `systemctl reload haproxy`".into());
        }
        for (name, value, least, most) in [
            ("debounce_ms", self.debounce_ms, 0, 60_000),
            ("reload_every_ms", self.reload_every_ms, 0, 600_000),
            ("deadline_s", self.deadline_s, 1, 600),
            ("linger_s", self.linger_s, 0, 3_600),
            ("hold_s", self.hold_s, 0, 3_600),
        ] {
            if !(least..=most).contains(&value) {
                return wrong(format!("haproxy.{name} = {value} must be between {least} and {most}"));
            }
        }
        if self.tls_passthrough.is_some_and(|at| at.port() == self.bind.port()) {
            return wrong(format!(
                "haproxy.tls_passthrough and haproxy.bind must have different ports, not both {}",
                self.bind.port()
            ));
        }
        if !crate::render::is_host(&self.domain) {
            return wrong(format!(
                "haproxy.domain = {:?} must be a lower-case domain name such as apps.example.com",
                self.domain
            ));
        }
        Ok(())
    }

    /// Whether an endpoint at this address may stand in the configuration.
    pub(crate) fn may_dial(&self, address: SocketAddr) -> bool {
        let ip: IpAddr = address.ip().to_canonical();
        self.endpoint_ports.contains(address.port()) && self.endpoint_cidrs.iter().any(|net| net.contains(&ip))
    }
}
