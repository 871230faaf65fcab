//! User instructions that the gateway spends on a request, counted by callgrind: unlike times they hardly depend on the machine
//! and its other work and repeat to about 1 %, so that they can be held to a bound. `make test` does (scripts/test.sh).
//!
//! The program is the gateway alone, in front of three endpoints of this process. It runs twice per protocol, with few and with
//! many requests; the difference is what requests cost, without the start.
#![allow(clippy::disallowed_methods, reason = "the main thread waits for another program")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Parser;

/// Client connections of HTTP/1.1, each with one request at a time.
const CONNECTIONS: u32 = 16;
/// Client connections of HTTP/2, and streams of each.
const HTTP2: (u32, u32) = (2, 16);
/// Requests of the shorter run; connections are made and caches warm before they end.
const FEW: u32 = 640;
/// The host that is asked for.
const HOST: &str = "app.gateway.example";
/// How long the gateway may take to listen, and to end, under callgrind.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is counted before a bound counts as missed: a busy machine lets requests come one by one instead of together, which
/// costs up to 2 % more.
const TRIES: u32 = 3;
/// Bytes of an answer's body.
const BODY: usize = 128;

/// Counts user instructions per request.
#[derive(Debug, Parser)]
struct Args {
    /// The gateway (cargo build --release -p caas-gateway --example bench_gateway).
    #[arg(long, default_value = "target/release/examples/bench_gateway")]
    gateway: PathBuf,
    /// Requests of the longer run, beyond those of the shorter one.
    #[arg(long, default_value_t = 4_000)]
    requests: u32,
    /// Exit with 1 when a request of HTTP/1.1 takes more.
    #[arg(long)]
    most_http1: Option<u64>,
    /// Exit with 1 when a request of HTTP/2 takes more.
    #[arg(long)]
    most_http2: Option<u64>,
    /// Keep the profile of the last run of each protocol here, for callgrind_annotate.
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// How requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        args.gateway.exists(),
        "{} is missing: build it first (cargo build --release -p caas-gateway --example bench_gateway)",
        args.gateway.display()
    );
    let endpoints = [endpoint()?, endpoint()?, endpoint()?];
    let dir = tempfile::tempdir()?;
    let mut missed = 0;
    for (protocol, most) in [(Protocol::Http1, args.most_http1), (Protocol::Http2, args.most_http2)] {
        let mut each = u64::MAX;
        for _ in 0..TRIES {
            let few = count(&args, &endpoints, protocol, FEW, dir.path())?;
            let many = count(&args, &endpoints, protocol, FEW + args.requests, dir.path())?;
            each = each.min(many.saturating_sub(few) / u64::from(args.requests.max(1)));
            if most.is_none_or(|most| each <= most) {
                break;
            }
        }
        println!("{protocol:?}: {each} user instructions per request");
        if let Some(most) = most.filter(|most| each > *most) {
            println!("{protocol:?}: promised are at most {most}");
            missed += 1;
        }
    }
    if missed > 0 {
        bail!("requests have become dearer than promised: see callgrind_annotate with --keep");
    }
    Ok(())
}

/// Runs the gateway under callgrind for so many requests; all instructions of that run.
fn count(args: &Args, endpoints: &[SocketAddr], protocol: Protocol, requests: u32, dir: &Path) -> Result<u64> {
    let profile = &dir.join("profile");
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let addresses: Vec<String> = endpoints.iter().map(SocketAddr::to_string).collect();
    let child = Command::new("valgrind")
        .args(["--quiet", "--tool=callgrind"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(&args.gateway)
        .env("LISTEN", address.port().to_string())
        .env("BACKEND_ADDRS", addresses.join(","))
        .stdin(Stdio::null())
        .spawn()
        .context("starting valgrind")?;
    let mut running = Running(child);
    listening(address)?;
    match protocol {
        Protocol::Http1 => http1(address, requests)?,
        Protocol::Http2 => http2(address, requests)?,
    }
    running.end()?;
    if let Some(keep) = &args.keep {
        fs::create_dir_all(keep)?;
        // The last run, with the most requests, stays.
        fs::copy(profile, keep.join(format!("{protocol:?}.callgrind")))?;
    }
    let text = fs::read_to_string(profile).context("reading the profile")?;
    let line = text.lines().find_map(|l| l.strip_prefix("totals: "));
    line.and_then(|l| l.trim().parse().ok())
        .context("the profile has no total")
}

/// A started gateway; killed when dropped.
struct Running(Child);

impl Running {
    /// Asks it to end, so that the profile is written, and waits for that.
    fn end(&mut self) -> Result<()> {
        let asked = Command::new("kill").arg(self.0.id().to_string()).status()?;
        ensure!(asked.success(), "the gateway has ended by itself");
        let deadline = Instant::now() + PATIENCE;
        while self.0.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the gateway does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the gateway answers with 200.
fn listening(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while http1_on(address, 1).is_err() {
        ensure!(Instant::now() < deadline, "the gateway does not answer under valgrind");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// An endpoint that answers each request on each connection at once; ends with the process.
fn endpoint() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The gateway's end of the connection ends it.
            std::thread::spawn(move || answers(stream));
        }
    });
    Ok(address)
}

fn answers(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/plain\r\nContent-Length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    );
    let (mut head, mut buffer) = (Vec::new(), [0; 4_096]);
    loop {
        let n = stream.read(&mut buffer)?;
        ensure!(n > 0, "closed");
        head.extend_from_slice(&buffer[..n]);
        // Requests have no bodies.
        if head.ends_with(b"\r\n\r\n") {
            stream.write_all(answer.as_bytes())?;
            head.clear();
        }
    }
}

/// `requests` of HTTP/1.1 on [`CONNECTIONS`] connections.
fn http1(address: SocketAddr, requests: u32) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|_| scope.spawn(move || http1_on(address, requests / CONNECTIONS)))
            .collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(())
    })
}

fn http1_on(address: SocketAddr, requests: u32) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET /128 HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let (mut answer, mut buffer) = (Vec::new(), [0; 4_096]);
    for _ in 0..requests {
        stream.write_all(request.as_bytes())?;
        answer.clear();
        while !answer.ends_with(&[b'x'; BODY]) {
            let n = stream.read(&mut buffer)?;
            ensure!(n > 0, "the gateway closed a connection");
            answer.extend_from_slice(&buffer[..n]);
            ensure!(
                answer.starts_with(b"HTTP/1.1 200 "),
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
    }
    Ok(())
}

/// `requests` of HTTP/2 on the connections and streams of [`HTTP2`].
fn http2(address: SocketAddr, requests: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (connections, streams) = HTTP2;
    let per_connection = requests / connections;
    runtime.block_on(async move {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let stream = tokio::net::TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (client, connection) = h2::client::handshake(stream).await?;
            tokio::spawn(connection);
            let left = std::sync::Arc::new(AtomicU32::new(per_connection));
            for _ in 0..streams {
                let (client, left) = (client.clone(), std::sync::Arc::clone(&left));
                tasks.spawn(async move {
                    while left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                        .is_ok()
                    {
                        http2_one(client.clone()).await?;
                    }
                    anyhow::Ok(())
                });
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    })
}

async fn http2_one(client: h2::client::SendRequest<bytes::Bytes>) -> Result<()> {
    let request = http::Request::get(format!("http://{HOST}/128")).body(())?;
    let (response, _) = client.ready().await?.send_request(request, true)?;
    let response = response.await?;
    ensure!(response.status() == 200, "{}", response.status());
    let mut body = response.into_body();
    let mut came = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        came += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    ensure!(came == BODY, "{came} bytes of a body came");
    Ok(())
}
