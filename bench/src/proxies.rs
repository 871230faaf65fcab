//! The proxies under test and the upstream behind them: configuration, start, stop.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Ports of the upstream.
const UPSTREAM: [u16; 3] = [29_001, 29_002, 29_003];
/// Where each proxy listens: plain (HTTP/1.1), plain HTTP/2, TLS.
pub(crate) const PLAIN: u16 = 28_080;
pub(crate) const H2C: u16 = 28_081;
pub(crate) const TLS: u16 = 28_443;
/// The host that all cases but one ask for.
pub(crate) const HOST: &str = "app.gateway.example";
/// How long a proxy may take to answer after its start, also with 100,000 hosts.
const START: Duration = Duration::from_secs(30);

/// nginx with three ports that answers with 128 bytes, 10 KiB and 1 MiB.
#[derive(Debug)]
pub(crate) struct Upstream {
    _server: Running,
}

impl Upstream {
    /// Starts it on CPU 0.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        let files = dir.join("files");
        fs::create_dir_all(&files)?;
        for size in [128, 10_240, 1_048_576] {
            fs::write(files.join(size.to_string()), vec![b'x'; size])?;
        }
        let mut listens = String::new();
        for port in UPSTREAM {
            write!(listens, "listen 127.0.0.1:{port} reuseport backlog=4096; ")?;
        }
        let dir = dir.join("upstream");
        fs::create_dir_all(&dir)?;
        let text = format!(
            "{}http {{ {} keepalive_requests 100000000; keepalive_timeout 300s; open_file_cache max=10; sendfile on;
            client_max_body_size 100m; server {{ {listens} root {}; location /post {{ return 200 ok; }} }} }}\n",
            nginx_head(&dir),
            nginx_temporary(&dir),
            files.display(),
        );
        let config = dir.join("nginx.conf");
        fs::write(&config, text)?;
        let command = vec![
            "nginx".into(),
            "-c".into(),
            config.display().to_string(),
            "-p".into(),
            dir.display().to_string(),
        ];
        let server = Running::start(0, &command, &dir.join("log"))?;
        answers(UPSTREAM[0])?;
        Ok(Self { _server: server })
    }
}

fn nginx_head(dir: &Path) -> String {
    format!(
        "worker_processes 1; worker_rlimit_nofile 19000; daemon off; pid {0}/pid; error_log {0}/error crit;\n\
         events {{ worker_connections 12000; }}\n",
        dir.display()
    )
}

fn nginx_temporary(dir: &Path) -> String {
    let mut text = String::from("access_log off; ");
    for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        // Writing to a string can't fail.
        let _ = write!(text, "{name}_temp_path {}/{name}; ", dir.display());
    }
    text
}

/// A program that can be measured.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) name: String,
    kind: Kind,
    /// From how many addresses it is attacked meanwhile.
    pub(crate) attacked: Option<u8>,
}

#[derive(Debug)]
enum Kind {
    Caas(PathBuf),
    Haproxy,
    Nginx,
    /// The gateway alone, with so many other apps, and changes of their endpoints per second.
    Alone {
        changes: u32,
    },
}

/// Apps beside the one that is asked for in [`Kind::Alone`].
const APPS: usize = 10_000;
/// The program of [`Kind::Alone`].
const ALONE: &str = "target/release/examples/bench_gateway";

impl Proxy {
    /// A `caas` program.
    pub(crate) fn caas(name: &str, path: &Path) -> Result<Self> {
        let path = path.canonicalize().with_context(|| {
            format!(
                "{} is missing: build it first (cargo build --release -p caas)",
                path.display()
            )
        })?;
        Ok(Self {
            name: name.into(),
            kind: Kind::Caas(path),
            attacked: None,
        })
    }

    /// A peer by name; of some it is `caas`, the program that is measured.
    pub(crate) fn peer(name: &str, caas: &Path) -> Result<Self> {
        let attacked = match name {
            "attacked" => Some(8),
            "attacked-by-one" => Some(1),
            _ => None,
        };
        if attacked.is_some() {
            return Ok(Self {
                attacked,
                ..Self::caas(name, caas)?
            });
        }
        let kind = match name {
            "haproxy" => Kind::Haproxy,
            "nginx" => Kind::Nginx,
            "still" => Kind::Alone { changes: 0 },
            "changing" => Kind::Alone { changes: 1_000 },
            _ => bail!("there is no peer {name:?}: choose haproxy, nginx, still, changing, attacked, attacked-by-one"),
        };
        Ok(Self {
            name: name.into(),
            kind,
            attacked: None,
        })
    }

    /// Whether one plain port serves HTTP/1.1 and HTTP/2.
    pub(crate) fn one_plain_port(&self) -> bool {
        matches!(self.kind, Kind::Caas(_) | Kind::Alone { .. })
    }

    /// Starts it on CPU 1 with `hosts` host names beside [`HOST`], with TLS if asked for, and waits until it answers.
    pub(crate) fn start(&self, dir: &Path, hosts: usize, tls: bool) -> Result<Running> {
        let dir = dir.join(&self.name);
        fs::create_dir_all(&dir)?;
        let names: Vec<String> = (0..hosts)
            .map(|i| format!("app{i}.gateway.example"))
            .chain([HOST.into()])
            .collect();
        let certificate = certificate(&dir)?;
        let command = match &self.kind {
            Kind::Caas(path) => caas(path, &dir, &names, tls)?,
            Kind::Haproxy => haproxy(&dir, &names, &certificate)?,
            Kind::Nginx => nginx(&dir, &names, &certificate)?,
            Kind::Alone { changes } => alone(&dir, *changes)?,
        };
        let running = Running::start(1, &command, &dir.join("log"))?;
        answers(PLAIN).with_context(|| format!("see {}", dir.join("log").display()))?;
        Ok(running)
    }
}

/// One self-signed certificate (ECDSA P-256) for all; `NAME.crt`, `NAME.key` and both in `NAME.pem`.
fn certificate(dir: &Path) -> Result<PathBuf> {
    let certificates = dir.with_file_name("certificates");
    let pem = certificates.join("app.pem");
    if !pem.exists() {
        fs::create_dir_all(&certificates)?;
        let made = rcgen::generate_simple_self_signed([HOST.to_owned()])?;
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        fs::write(certificates.join("app.crt"), &certificate)?;
        fs::write(certificates.join("app.key"), &key)?;
        fs::write(&pem, certificate + &key)?;
    }
    Ok(pem)
}

fn caas(path: &Path, dir: &Path, names: &[String], tls: bool) -> Result<Vec<String>> {
    let containers: serde_json::Map<String, serde_json::Value> = UPSTREAM
        .iter()
        .map(|port| (format!("c{port}"), format!("127.0.0.1:{port}").into()))
        .collect();
    let (mut endpoints, mut configs) = (serde_json::Map::new(), serde_json::Map::new());
    // All load comes from one client, which may come as often as it can; its rate is counted like everybody's.
    let limits =
        serde_json::json!({ "requests_per_second_per_client": 1_000_000, "request_burst_per_client": 1_000_000 });
    // An app has at most 100 domains.
    for (i, domains) in names.chunks(100).enumerate() {
        endpoints.insert(format!("bench{i}"), serde_json::json!({ "1": containers }));
        configs.insert(
            format!("bench{i}"),
            serde_json::json!({ "domains": domains, "limits": limits }),
        );
    }
    let registry = serde_json::json!({ "revision": 1, "endpoints": endpoints, "configs": configs });
    let file = dir.join("registry.json");
    fs::write(&file, registry.to_string())?;
    let mut text = format!(
        "{} gateway --registry file:{} --domain bench.internal --workers 1 --listen 127.0.0.1:{PLAIN} --admin 127.0.0.1:0 \
         --endpoint-cidr 127.0.0.0/8 --endpoint-ports 1024-65535",
        path.display(),
        file.display(),
    );
    if tls {
        let certificates = dir.with_file_name("certificates");
        write!(
            text,
            " --tls-listen 127.0.0.1:{TLS} --certificates-dir {}",
            certificates.display()
        )?;
    }
    Ok(text.split(' ').map(str::to_owned).collect())
}

fn alone(dir: &Path, changes: u32) -> Result<Vec<String>> {
    let program = Path::new(ALONE).canonicalize().with_context(|| {
        format!("{ALONE} is missing: build it first (cargo build --release -p caas-gateway --example bench_gateway)")
    })?;
    let hosts = dir.join("hosts");
    // In the order of their names the second half changes.
    let others = (0..APPS).map(|i| format!("other{i}.gateway.example\n"));
    fs::write(&hosts, others.chain([HOST.into()]).collect::<String>())?;
    Ok(vec![
        "env".into(),
        format!("LISTEN={PLAIN}"),
        format!(
            "BACKEND_ADDRS={}",
            UPSTREAM.map(|port| format!("127.0.0.1:{port}")).join(",")
        ),
        format!("HOSTS_FILE={}", hosts.display()),
        "APPS=1".into(),
        format!("CHANGES={changes}"),
        program.display().to_string(),
    ])
}

fn haproxy(dir: &Path, names: &[String], certificate: &Path) -> Result<Vec<String>> {
    let map = dir.join("hosts.map");
    fs::write(&map, names.iter().map(|n| format!("{n} app\n")).collect::<String>())?;
    let servers: String = UPSTREAM
        .map(|p| format!("  server s{p} 127.0.0.1:{p} pool-max-conn 256\n"))
        .concat();
    let text = format!(
        "global\n  nbthread 1\n  maxconn 9000\n  tune.bufsize 16384\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  timeout http-request 10s\n  \
         timeout http-keep-alive 300s\n  http-reuse always\n\
         frontend f\n  bind 127.0.0.1:{PLAIN}\n  bind 127.0.0.1:{H2C} proto h2\n  \
         bind 127.0.0.1:{TLS} ssl crt {} alpn h2,http/1.1\n  \
         option forwardfor\n  http-request set-header X-Forwarded-Proto http\n  \
         use_backend %[req.hdr(host),field(1,:),lower,map_str({},none)]\n\
         backend none\n  http-request deny deny_status 404\n\
         backend app\n  balance roundrobin\n{servers}",
        certificate.display(),
        map.display(),
    );
    let config = dir.join("haproxy.cfg");
    fs::write(&config, text)?;
    Ok(["haproxy", "-db", "-q", "-f", &config.display().to_string()]
        .map(str::to_owned)
        .to_vec())
}

fn nginx(dir: &Path, names: &[String], certificate: &Path) -> Result<Vec<String>> {
    let map = dir.join("hosts");
    fs::write(&map, names.iter().map(|n| format!("{n} app;\n")).collect::<String>())?;
    let servers: String = UPSTREAM.map(|p| format!("server 127.0.0.1:{p} max_fails=0; ")).concat();
    let text = format!(
        "{head}http {{ {temporary} keepalive_timeout 300s; keepalive_requests 100000000; client_body_buffer_size 64k;
         map_hash_max_size 262144; map_hash_bucket_size 128;
         upstream app {{ {servers} keepalive 128; keepalive_requests 100000000; keepalive_timeout 300s; }}
         map $host $be {{ default \"\"; include {map}; }}
         server {{ listen 127.0.0.1:{PLAIN} reuseport backlog=4096; listen 127.0.0.1:{H2C} http2 reuseport backlog=4096;
         listen 127.0.0.1:{TLS} ssl http2 reuseport backlog=4096; ssl_certificate {pem}; ssl_certificate_key {pem};
         ssl_protocols TLSv1.2 TLSv1.3; server_name _;
         location / {{ if ($be = \"\") {{ return 404; }} proxy_pass http://$be; proxy_http_version 1.1;
         proxy_set_header Connection \"\"; proxy_set_header Host $host;
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; }} }} }}\n",
        head = nginx_head(dir),
        temporary = nginx_temporary(dir),
        map = map.display(),
        pem = certificate.display(),
    );
    let config = dir.join("nginx.conf");
    fs::write(&config, text)?;
    let (config, dir) = (config.display().to_string(), dir.display().to_string());
    Ok(["nginx", "-c", &config, "-p", &dir].map(str::to_owned).to_vec())
}

/// A started program; ended when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

impl Running {
    fn start(cpu: u32, command: &[String], log: &Path) -> Result<Self> {
        let log = fs::File::create(log)?;
        // It ends with this program, also when this is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "taskset", "-c", &cpu.to_string()])
            .args(command)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", command.join(" ")))?;
        Ok(Self { child })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // nginx ends its workers on SIGTERM; killed it would leave them.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a request to the port is answered with 200.
fn answers(port: u16) -> Result<()> {
    let began = Instant::now();
    loop {
        if once(port).unwrap_or(false) {
            return Ok(());
        }
        if began.elapsed() > START {
            bail!("nothing answers on port {port}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn once(port: u16) -> Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(format!("GET /128 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    Ok(&head == b"HTTP/1.1 200")
}
