//! What is measured, and what SPECIFICATION.md promises of it.

use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;

use crate::attack::Attackers;
use crate::load::{self, Figures, median};
use crate::proxies::{H2C, HOST, PLAIN, Proxy, TLS};
use crate::usage;

/// Host names in [`Case::Hosts`].
const HOSTS: usize = 100_000;
/// Connections held in [`Case::Idle`].
const IDLE: usize = 5_000;
/// Requests per second in [`Case::Rate`].
const RATE: u64 = 4_000;

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    Get128,
    Get10k,
    Get1m,
    Post10k,
    Rate,
    Hosts,
    H2,
    Tls,
    Handshake,
    Idle,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |v| v.get_name()))
    }
}

impl Case {
    pub(crate) const ALL: [Self; 10] = [
        Self::Get128,
        Self::Get10k,
        Self::Get1m,
        Self::Post10k,
        Self::Rate,
        Self::Hosts,
        Self::H2,
        Self::Tls,
        Self::Handshake,
        Self::Idle,
    ];

    pub(crate) fn title(self) -> String {
        match self {
            Self::Get128 => "GET 128 B, HTTP/1.1, 64 connections".into(),
            Self::Get10k => "GET 10 KiB, HTTP/1.1, 64 connections".into(),
            Self::Get1m => "GET 1 MiB, HTTP/1.1, 16 connections".into(),
            Self::Post10k => "POST 10 KiB, HTTP/1.1, 64 connections".into(),
            Self::Rate => format!("GET 128 B, HTTP/1.1, {RATE} requests/s: latency"),
            Self::Hosts => format!("GET 128 B, HTTP/1.1, {HOSTS} host names at random"),
            Self::H2 => "GET 128 B, HTTP/2 without TLS, 8 connections of 16 streams".into(),
            Self::Tls => "GET 128 B, HTTP/1.1 over TLS 1.3, 64 connections".into(),
            Self::Handshake => "full TLS 1.3 handshakes (ECDSA P-256), one request each".into(),
            Self::Idle => format!("memory of {IDLE} idle client connections, 5 s after their last request"),
        }
    }

    /// The most that our CPU time may be, in proportion to HAProxy's and nginx's.
    fn promised(self) -> &'static [(&'static str, f64)] {
        match self {
            Self::Get128 | Self::Post10k => &[("haproxy", 1.00), ("nginx", 1.02)],
            Self::Get10k => &[("haproxy", 0.95)],
            Self::Get1m => &[("haproxy", 0.60)],
            Self::H2 => &[("haproxy", 1.05), ("nginx", 0.60)],
            Self::Tls | Self::Handshake => &[("haproxy", 1.10)],
            Self::Rate | Self::Hosts | Self::Idle => &[],
        }
    }

    /// One line per promise that these figures (ours first) miss.
    pub(crate) fn missed(self, rows: &[(&str, &[Figures])]) -> Vec<String> {
        let mut lines = Vec::new();
        let Some((_, ours)) = rows.first() else {
            return lines;
        };
        let row = |name: &str| rows.iter().find(|(n, _)| *n == name).map(|(_, f)| *f);
        let cpu = |figures: &[Figures]| median(figures.iter().map(|f| f.cpu));
        for (peer, most) in self.promised() {
            if let Some(theirs) = row(peer) {
                let ratio = cpu(ours) / cpu(theirs);
                if ratio > *most {
                    lines.push(format!(
                        "{self}: {ratio:.2} × {peer}'s CPU per request, promised {most:.2}"
                    ));
                }
            }
        }
        let p50 = |figures: &[Figures]| median(figures.iter().filter_map(|f| f.p50));
        if let (Self::Rate, Some(theirs)) = (self, row("haproxy"))
            && p50(ours) > p50(theirs)
        {
            lines.push(format!(
                "{self}: p50 {:.0} µs, haproxy's is {:.0} µs",
                p50(ours),
                p50(theirs)
            ));
        }
        let p99 = |figures: &[Figures]| median(figures.iter().filter_map(|f| f.p99));
        if let (Self::Rate, Some(attacked)) = (self, row("attacked")) {
            let (calm, attacked, kib) = (p99(ours), p99(attacked), median(attacked.iter().filter_map(|f| f.kib)));
            if attacked > calm * 1.1 {
                lines.push(format!(
                    "{self}: p99 {attacked:.0} µs under attack, {calm:.0} µs without"
                ));
            }
            if kib > 16.0 {
                lines.push(format!("{self}: {kib:.1} KiB per slow connection, promised 16"));
            }
        }
        if let (Self::Rate, Some(still), Some(changing)) = (self, row("still"), row("changing"))
            && p99(changing) > p99(still) * 1.1
        {
            let (still, changing) = (p99(still), p99(changing));
            lines.push(format!(
                "{self}: p99 {changing:.0} µs while 1,000 endpoints a second change, {still:.0} µs while none does"
            ));
        }
        if self == Self::Idle {
            let kib = median(ours.iter().filter_map(|f| f.kib));
            if kib > 1.0 {
                lines.push(format!("{self}: {kib:.1} KiB per connection, promised 1"));
            }
        }
        lines
    }

    /// Measures one proxy once.
    pub(crate) fn run(self, proxy: &Proxy, dir: &Path, seconds: u64) -> Result<Figures> {
        let hosts = if self == Self::Hosts { HOSTS } else { 0 };
        let running = proxy.start(dir, hosts, matches!(self, Self::Tls | Self::Handshake))?;
        let id = running.id();
        if self == Self::Idle {
            return idle(id);
        }
        // Connections to the upstream are made and caches warm before anything counts.
        self.load(proxy, dir, 1)?;
        if let (Self::Rate, Some(addresses)) = (self, proxy.attacked) {
            let quiet = usage::anonymous_kib(id)?;
            let attackers = Attackers::start(addresses)?;
            let kib = Some((usage::anonymous_kib(id)? - quiet) / attackers.open.max(1.0));
            let before = usage::cpu(id)?;
            let done = self.load(proxy, dir, seconds)?;
            let figures = done.with(before, usage::cpu(id)?);
            attackers.end()?;
            return Ok(Figures { kib, ..figures });
        }
        let before = usage::cpu(id)?;
        let done = self.load(proxy, dir, seconds)?;
        Ok(done.with(before, usage::cpu(id)?))
    }

    fn load(self, proxy: &Proxy, dir: &Path, seconds: u64) -> Result<load::Done> {
        let plain = |path: &str| format!("http://127.0.0.1:{PLAIN}{path}");
        match self {
            Self::Get128 => wrk(dir, &plain("/128"), 64, seconds, "get"),
            Self::Get10k => wrk(dir, &plain("/10240"), 64, seconds, "get"),
            Self::Get1m => wrk(dir, &plain("/1048576"), 16, seconds, "get"),
            Self::Post10k => wrk(dir, &plain("/post"), 64, seconds, "post"),
            Self::Hosts => wrk(dir, &plain("/128"), 64, seconds, "hosts"),
            Self::Rate => {
                let clients = 40;
                let log = dir.join("h2load.log");
                let rate = RATE / clients;
                let text = h2load(&format!(
                    "--h1 -c {clients} -n {} --rps {rate} --log-file {} {}",
                    RATE * seconds,
                    log.display(),
                    plain("/128")
                ))?;
                load::h2load(&text, Some(&fs::read_to_string(&log)?))
            }
            Self::H2 => {
                // Ours tells HTTP/2 from HTTP/1.1 on one port; the others need a port for it.
                let port = if proxy.one_plain_port() { PLAIN } else { H2C };
                load::h2load(
                    &h2load(&format!("-c 8 -m 16 -D {seconds} http://127.0.0.1:{port}/128"))?,
                    None,
                )
            }
            Self::Tls => load::h2load(&h2load(&format!("--h1 -c 64 -D {seconds} {}", tls("/128")))?, None),
            Self::Handshake => {
                let n = seconds * 500;
                load::h2load(&h2load(&format!("--h1 -n {n} -c {n} -r 500 {}", tls("/128")))?, None)
            }
            Self::Idle => bail!("idle connections are no load"),
        }
    }
}

/// By the host's name: it goes into the handshake (SNI), by which the certificate is found.
fn tls(path: &str) -> String {
    format!("--connect-to 127.0.0.1:{TLS} https://{HOST}:{TLS}{path}")
}

fn h2load(args: &str) -> Result<String> {
    // With HTTP/1.1 it makes the Host field of it.
    let host = ["-H".to_owned(), format!(":authority: {HOST}")];
    let args: Vec<String> = host.into_iter().chain(args.split(' ').map(str::to_owned)).collect();
    load::run("h2load", &args)
}

/// Script for `wrk`: what is sent, and the line that [`load::wrk`] reads.
fn script(what: &str) -> String {
    let request = match what {
        "post" => "wrk.method = 'POST'; wrk.body = string.rep('b', 10240)\n".to_owned(),
        "hosts" => format!(
            "request = function() wrk.headers['Host'] = 'app' .. math.random(0, {}) .. '.gateway.example'; return wrk.format() end\n",
            HOSTS - 1
        ),
        _ => String::new(),
    };
    format!(
        "wrk.headers['Host'] = '{HOST}'\n{request}\
         done = function(s, l, r)\n  local e = s.errors\n  \
         io.write(string.format('RESULT %d %f %d %f %f\\n', s.requests, s.duration / 1e6, \
         e.connect + e.read + e.write + e.status + e.timeout, l:percentile(50), l:percentile(99)))\nend\n"
    )
}

fn wrk(dir: &Path, url: &str, connections: u32, seconds: u64, what: &str) -> Result<load::Done> {
    let file = dir.join(format!("{what}.lua"));
    fs::write(&file, script(what))?;
    let args = format!("-t1 -c{connections} -d{seconds}s -s {} {url}", file.display());
    let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
    load::wrk(&load::run("wrk", &args)?)
}

/// Memory that idle keep-alive connections cost, each after one request.
fn idle(id: u32) -> Result<Figures> {
    let before = usage::anonymous_kib(id)?;
    let mut held = Vec::with_capacity(IDLE);
    for _ in 0..IDLE {
        let mut stream = TcpStream::connect(("127.0.0.1", PLAIN))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("GET /128 HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
        let mut answer = Vec::new();
        let mut buffer = [0; 4_096];
        while !(answer.windows(4).any(|w| w == b"\r\n\r\n") && answer.ends_with(&[b'x'; 128])) {
            let n = stream.read(&mut buffer)?;
            ensure!(n > 0, "an idle connection was closed");
            answer.extend_from_slice(&buffer[..n]);
        }
        held.push(stream);
    }
    // What is measured is the state after so long.
    std::thread::sleep(Duration::from_secs(5));
    let after = usage::anonymous_kib(id)?;
    Ok(Figures {
        kib: Some((after - before) / IDLE as f64),
        ..Figures::default()
    })
}
