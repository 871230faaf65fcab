//! Configuration: every setting of the gateway with its default, unit and range. Read once at start; what may change while
//! running comes from the registry ([`model::AppConfig`]).

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use model::PortRange;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::limit::Networks;

/// Most characters of a gateway's id.
pub const ID: usize = 64;

/// The gateway's settings; section `[gateway]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients connect. Default `0.0.0.0:8080`. The caller binds it ([`crate::bind`]).
    pub listen: SocketAddr,
    /// Where clients connect with TLS. Default none. The caller binds it like `listen`. Needs `certificates_dir`,
    /// `certificates_key_file` or both.
    pub tls_listen: Option<SocketAddr>,
    /// Folder with the certificates: `NAME.crt` (the chain) and `NAME.key`, or both in `NAME.pem`; the pair `default` serves names that
    /// no other has. Changes are taken up within 5 s, at once after SIGHUP. Default none.
    pub certificates_dir: Option<PathBuf>,
    /// File with the keys by which the registry's certificates are opened, the scheduler's too: 64 hexadecimal digits a
    /// line. Without it they are passed over. Default none.
    pub certificates_key_file: Option<PathBuf>,
    /// Port of the https URLs to which apps with `redirect_https` send clients; 0 (default): that of `tls_listen`.
    pub https_port: u16,
    /// Milliseconds for a TLS handshake. 100-600,000, default 10,000.
    pub tls_handshake_timeout_ms: u64,
    /// Peers whose connections begin with a PROXY protocol header (version 1 or 2), on both listeners: balancers that forward TCP. It is
    /// required of them and believed of nobody else. Default none.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Where `/live`, `/ready`, `/metrics` and `/routes` are served; never expose it. Default `127.0.0.1:9090`.
    pub admin: SocketAddr,
    /// Apps answer at `{app}.{domain}`. Default `localhost`.
    pub domain: String,
    /// Name of this gateway in the registry; empty (default): a random one.
    pub id: String,
    /// The region in which this gateway stands: apps with `prefer_region` are asked there first. Empty (default): none.
    pub region: String,
    /// Worker threads, each with its own listener and connections; 0 (default): one per core.
    pub workers: usize,
    /// Networks in which endpoints may lie; others are never dialled, whatever the registry says. Default: the private and
    /// loopback networks (10/8, 172.16/12, 192.168/16, 127/8, fc00::/7, ::1).
    pub endpoint_cidrs: Vec<IpNet>,
    /// Ports that may be opened for apps with protocol TCP, whatever the registry says. Default `15000-15999`.
    pub tcp_ports: PortRange,
    /// Address at which they are opened. Default: that of `listen`.
    pub tcp_listen_ip: Option<IpAddr>,
    /// Ports that endpoints may have. Default `1024-65535`.
    pub endpoint_ports: PortRange,
    /// Peers whose X-Forwarded-* and Forwarded headers are believed. Default none.
    pub trusted_proxies: Vec<IpNet>,
    /// Client networks refused with 403. Default none.
    pub deny: Vec<IpNet>,
    /// File that keeps the last registry copy for a start without the registry. Default none.
    pub snapshot_file: Option<PathBuf>,
    /// Milliseconds for a request head to arrive whole, also the first byte of a new connection. 100-600,000, default 10,000.
    pub header_timeout_ms: u64,
    /// Seconds that a connection may be idle between requests. 1-86,400, default 75.
    pub idle_timeout_s: u64,
    /// Milliseconds without a byte of an unfinished request body while its app would take more (408). 100-3,600,000, default 30,000.
    pub body_idle_ms: u64,
    /// Bytes per second that a request's body has to bring at least, on average over the time that the gateway waits for it
    /// (408 below), until the answer begins; not of gRPC; 0: any rate. 0-1,000,000, default 240, as Kestrel has it.
    pub min_body_bytes_per_s: u64,
    /// Milliseconds of waiting for a body before its rate counts. 100-3,600,000, default 5,000.
    pub min_body_grace_ms: u64,
    /// Largest request head in bytes (431 beyond). 1,024-262,144, default 32,768.
    pub max_head_bytes: usize,
    /// Most header fields of a request or an answer (431, 502 beyond). 10-1,000, default 100.
    pub max_head_fields: usize,
    /// Most requests at once on one HTTP/2 connection. 1-10,000, default 250.
    pub http2_max_streams: u32,
    /// Largest request body in bytes unless the app's configuration says otherwise (413 beyond). Default 104,857,600.
    pub max_body_bytes: u64,
    /// Most client connections at once, over all workers. Default 100,000.
    pub max_connections: usize,
    /// Most connections of one client address (IPv6: /64) at once; trusted proxies are exempt; 0: any number. Default 10,000.
    pub max_connections_per_client: u32,
    /// Most requests under way per app unless its configuration says otherwise (503 beyond). 1-10,000,000, default 10,000.
    pub max_in_flight_per_app: u32,
    /// Requests per second of one client address (IPv6: /64) at one app unless its configuration says otherwise (429 beyond);
    /// trusted proxies are exempt. 0-1,000,000, 0: any number. Default 2,000.
    pub requests_per_second_per_client: u32,
    /// Requests that one client may make at once at one app before that rate counts; at most a minute's worth. 1-1,000,000,
    /// default 10,000.
    pub request_burst_per_client: u32,
    /// Clients whose request rate is remembered, over all apps. 1-100,000,000, default 100,000.
    pub clients_tracked: u64,
    /// Milliseconds to connect to an endpoint. 10-60,000, default 1,000.
    pub connect_timeout_ms: u64,
    /// Milliseconds without contact to the registry after which new connections to endpoints are first asked whose they are, of apps
    /// with `identity_path`; 0: always. 0-540,000, default 300,000: a released port rests 10 minutes, and that contact is lost has to
    /// be noticed first.
    pub identity_after_ms: u64,
    /// Seconds from the sent request to the head of the answer (504 beyond). 1-86,400, default 60.
    pub response_timeout_s: u64,
    /// Seconds without a byte of an answer's body. 1-86,400, default 60.
    pub answer_idle_timeout_s: u64,
    /// Seconds without a byte through an upgraded connection (WebSocket). 1-604,800, default 3,600.
    pub tunnel_idle_timeout_s: u64,
    /// Milliseconds after which no further endpoint is tried for a request. 0-60,000, default 5,000.
    pub retry_time_ms: u64,
    /// Seconds that an unused upstream connection is kept; shorter than apps keep theirs. 1-3,600, default 30.
    pub pool_idle_s: u64,
    /// Most unused upstream connections kept per endpoint and worker. 1-10,000, default 256: a client may have as many requests at once on an HTTP/2 connection.
    pub pool_per_endpoint: usize,
    /// Most unused upstream connections kept in all, and at most a quarter of the files that the process may open; beyond, those unused
    /// longest are closed. 1-1,000,000, default 10,000.
    pub pool_connections: usize,
    /// Milliseconds after which an idle client connection gives its buffers back; 0: never. 0-3,600,000, default 2,000.
    pub park_after_ms: u64,
    /// Largest read or write buffer of one connection in bytes. 16,384-1,048,576, default 131,072.
    pub buffer_bytes: usize,
    /// Seconds that vanished endpoints are held when a resync drops more than half of an app's (or of all). 0-86,400, default 30.
    pub hold_s: u64,
    /// Seconds between the start of a shutdown (`/ready` 503) and the end of accepting. 0-3,600, default 2.
    pub drain_delay_s: u64,
    /// Seconds that open requests and tunnels have to finish at shutdown. 0-86,400, default 30.
    pub drain_timeout_s: u64,
    /// File that holds this process's id while it serves, by which an upgrade finds it. Default none.
    pub pid_file: Option<PathBuf>,
    /// Access log: `off` (default), `stdout`, or the path of a file to append to.
    pub access_log: String,
}

impl Default for Config {
    fn default() -> Self {
        let nets = |texts: &[&str]| texts.iter().filter_map(|t| t.parse().ok()).collect();
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
            tls_listen: None,
            certificates_dir: None,
            certificates_key_file: None,
            https_port: 0,
            tls_handshake_timeout_ms: 10_000,
            proxy_protocol_from: Vec::new(),
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            domain: "localhost".into(),
            id: String::new(),
            region: String::new(),
            workers: 0,
            endpoint_cidrs: nets(&[
                "10.0.0.0/8",
                "172.16.0.0/12",
                "192.168.0.0/16",
                "127.0.0.0/8",
                "fc00::/7",
                "::1/128",
            ]),
            tcp_ports: model::ports::GATEWAY_TCP,
            tcp_listen_ip: None,
            endpoint_ports: PortRange {
                first: 1024,
                last: u16::MAX,
            },
            trusted_proxies: Vec::new(),
            deny: Vec::new(),
            snapshot_file: None,
            header_timeout_ms: 10_000,
            idle_timeout_s: 75,
            body_idle_ms: 30_000,
            min_body_bytes_per_s: 240,
            min_body_grace_ms: 5_000,
            max_head_bytes: 32 * 1024,
            max_head_fields: 100,
            http2_max_streams: 250,
            max_body_bytes: 100 * 1024 * 1024,
            max_connections: 100_000,
            max_connections_per_client: 10_000,
            max_in_flight_per_app: 10_000,
            requests_per_second_per_client: 2_000,
            request_burst_per_client: 10_000,
            clients_tracked: 100_000,
            connect_timeout_ms: 1_000,
            identity_after_ms: 300_000,
            response_timeout_s: 60,
            answer_idle_timeout_s: 60,
            tunnel_idle_timeout_s: 3_600,
            retry_time_ms: 5_000,
            pool_idle_s: 30,
            pool_per_endpoint: 256,
            pool_connections: 10_000,
            park_after_ms: 2_000,
            buffer_bytes: 128 * 1024,
            hold_s: 30,
            drain_delay_s: 2,
            drain_timeout_s: 30,
            pid_file: None,
            access_log: "off".into(),
        }
    }
}

impl Config {
    /// How many worker threads (and listeners) there are to be.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n.min(1_024),
        }
    }

    /// Refuses settings out of range, naming the first.
    ///
    /// # Errors
    /// [`Error::Config`] with the setting, its value and what it must be.
    pub fn check(&self) -> Result<(), Error> {
        let within = |name: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(Error::Config(format!(
                    "gateway.{name} = {value} must be between {least} and {most}"
                )))
            }
        };
        within("header_timeout_ms", self.header_timeout_ms, 100, 600_000)?;
        within("tls_handshake_timeout_ms", self.tls_handshake_timeout_ms, 100, 600_000)?;
        within("idle_timeout_s", self.idle_timeout_s, 1, 86_400)?;
        within("body_idle_ms", self.body_idle_ms, 100, 3_600_000)?;
        within("min_body_bytes_per_s", self.min_body_bytes_per_s, 0, 1_000_000)?;
        within("min_body_grace_ms", self.min_body_grace_ms, 100, 3_600_000)?;
        within("max_head_bytes", self.max_head_bytes as u64, 1_024, 262_144)?;
        within("max_head_fields", self.max_head_fields as u64, 10, 1_000)?;
        within("http2_max_streams", u64::from(self.http2_max_streams), 1, 10_000)?;
        within("max_connections", self.max_connections as u64, 1, 100_000_000)?;
        let per_client = u64::from(self.requests_per_second_per_client);
        within("requests_per_second_per_client", per_client, 0, 1_000_000)?;
        let burst = u64::from(self.request_burst_per_client);
        within("request_burst_per_client", burst, 1, 1_000_000)?;
        within("connect_timeout_ms", self.connect_timeout_ms, 10, 60_000)?;
        within("identity_after_ms", self.identity_after_ms, 0, 540_000)?;
        within("response_timeout_s", self.response_timeout_s, 1, 86_400)?;
        within("answer_idle_timeout_s", self.answer_idle_timeout_s, 1, 86_400)?;
        within("tunnel_idle_timeout_s", self.tunnel_idle_timeout_s, 1, 604_800)?;
        within("retry_time_ms", self.retry_time_ms, 0, 60_000)?;
        within("pool_idle_s", self.pool_idle_s, 1, 3_600)?;
        within("pool_per_endpoint", self.pool_per_endpoint as u64, 1, 10_000)?;
        within("pool_connections", self.pool_connections as u64, 1, 1_000_000)?;
        within("park_after_ms", self.park_after_ms, 0, 3_600_000)?;
        within("hold_s", self.hold_s, 0, 86_400)?;
        within(
            "max_in_flight_per_app",
            self.max_in_flight_per_app.into(),
            1,
            10_000_000,
        )?;
        within("clients_tracked", self.clients_tracked, 1, 100_000_000)?;
        within("buffer_bytes", self.buffer_bytes as u64, 16_384, 1_048_576)?;
        within("drain_delay_s", self.drain_delay_s, 0, 3_600)?;
        within("drain_timeout_s", self.drain_timeout_s, 0, 86_400)?;
        if self.certificates_dir.is_some() && self.tls_listen.is_none() {
            return Err(Error::Config(
                "gateway.certificates_dir needs gateway.tls_listen: set both or none".into(),
            ));
        }
        if self.tls_listen.is_some() && self.certificates_dir.is_none() && self.certificates_key_file.is_none() {
            return Err(Error::Config(
                "gateway.tls_listen needs certificates: set gateway.certificates_dir, gateway.certificates_key_file or both".into(),
            ));
        }
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if self.domain.len() > 200 || !self.domain.split('.').all(label) {
            return Err(Error::Config(format!(
                "gateway.domain = {:?} must be a lower-case domain name such as apps.example.com",
                self.domain
            )));
        }
        if self.id.len() > ID
            || !self
                .id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            return Err(Error::Config(format!(
                "gateway.id = {:?} must be at most {ID} of letters, digits, '-', '_' and '.'",
                self.id
            )));
        }
        Ok(())
    }

    /// Whether an endpoint at this address may be dialled: within the configured networks and ports, and not the gateway itself.
    pub fn may_dial(&self, address: SocketAddr) -> bool {
        let ip = plain(address.ip());
        let own = |at: SocketAddr| {
            let here = ip == plain(at.ip()) || (at.ip().is_unspecified() && ip.is_loopback());
            here && address.port() == at.port()
        };
        // Else an entry of the registry could make the admin port public, or requests go round for ever.
        let itself = own(self.listen) || own(self.admin) || self.tls_listen.is_some_and(own);
        !itself && self.endpoint_ports.contains(address.port()) && Networks::new(&self.endpoint_cidrs).contains(ip)
    }
}

/// The address without the IPv6 wrapping of IPv4 (`::ffff:a.b.c.d`), so that rules for IPv4 hold for it.
pub(crate) fn plain(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_dials_itself() {
        let config = Config {
            listen: "0.0.0.0:20080".parse().expect("address"),
            admin: "127.0.0.1:20090".parse().expect("address"),
            ..Config::default()
        };
        for (address, may) in [
            ("127.0.0.1:20090", false),
            ("[::ffff:127.0.0.1]:20090", false),
            ("127.0.0.1:20080", false),
            ("10.0.0.1:20090", true),
            ("127.0.0.1:20081", true),
        ] {
            assert_eq!(config.may_dial(address.parse().expect("address")), may, "{address}");
        }
    }

    #[test]
    fn the_defaults_are_sound_and_survive_json() {
        let config = Config::default();
        assert!(config.check().is_ok());
        assert_eq!(config.endpoint_cidrs.len(), 6);
        let text = serde_json::to_string(&config).expect("json");
        assert_eq!(serde_json::from_str::<Config>(&text).expect("back"), config);
        assert!(serde_json::from_str::<Config>(r#"{"no_such":1}"#).is_err());
    }

    #[test]
    fn bad_settings_are_named() {
        let bad = Config {
            header_timeout_ms: 1,
            ..Config::default()
        };
        let text = bad.check().expect_err("too short").to_string();
        assert!(text.contains("gateway.header_timeout_ms = 1"), "{text}");
        let half = Config {
            tls_listen: Some(SocketAddr::from(([127, 0, 0, 1], 8443))),
            ..Config::default()
        };
        let text = half.check().expect_err("no certificates").to_string();
        assert!(text.contains("gateway.certificates_dir"), "{text}");
        for domain in ["", "A.b", "a..b", ".a"] {
            let bad = Config {
                domain: domain.into(),
                ..Config::default()
            };
            assert!(bad.check().is_err(), "{domain}");
        }
    }

    #[test]
    fn only_allowed_addresses_are_dialled() {
        let config = Config::default();
        let may = |text: &str| config.may_dial(text.parse().expect("address"));
        for good in [
            "10.1.2.3:20000",
            "127.0.0.1:1024",
            "[::1]:8000",
            "[::ffff:10.0.0.1]:8080",
        ] {
            assert!(may(good), "{good}");
        }
        for bad in [
            "169.254.169.254:8080",
            "10.1.2.3:80",
            "8.8.8.8:8080",
            "[2001:db8::1]:8080",
            "0.0.0.0:8080",
        ] {
            assert!(!may(bad), "{bad}");
        }
    }
}
