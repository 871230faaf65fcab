//! A small HTTP/1.1 app without a framework: it tells which instance answered, and misbehaves on request.
//! See README.md for its routes and modes.

mod h2c;
mod heartbeat;
mod streams;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

/// SIGTERM came: answers close their connection, and the process ends when the last one is written.
static STOPPING: AtomicBool = AtomicBool::new(false);
/// `/hang` was called: nothing is answered any more.
static HANGING: AtomicBool = AtomicBool::new(false);
/// Requests being answered now.
static OPEN: AtomicUsize = AtomicUsize::new(0);
/// Requests answered since the start.
static ANSWERED: AtomicU64 = AtomicU64::new(0);

/// Connections that arrive just after SIGTERM are still served for this long.
const LINGER: Duration = Duration::from_millis(200);
/// Open requests get this long after SIGTERM.
const GRACE: Duration = Duration::from_secs(8);
/// A connection without a request for this long is closed.
const IDLE: Duration = Duration::from_secs(90);
const BODY_MAX: usize = 16 << 20;

fn env(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.into())
}

fn main() -> io::Result<()> {
    let mode = env("MODE", "");
    let version = env("CAAS_VERSION", &env("HELLO_VERSION", "?"));
    let instance = env("CAAS_INSTANCE", "?");
    println!("hello {version} starts as instance {instance}, mode {mode:?}");
    match mode.as_str() {
        "exit" => {
            eprintln!("MODE=exit: ending with code 3");
            std::process::exit(3);
        }
        "slowstart" => thread::sleep(Duration::from_millis(env("START_MS", "2000").parse().unwrap_or(2000))),
        "eat" => {
            thread::spawn(|| eat(1 << 20));
        }
        "burn" => {
            thread::spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            });
        }
        _ => {}
    }
    heartbeat::start();

    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    let stubborn = mode == "stubborn";
    thread::spawn(move || {
        for _ in signals.forever() {
            if !stubborn {
                stop();
            }
        }
    });

    let port: u16 = env("PORT", "8080").parse().unwrap_or(8080);
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on port {port}");
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let mode = mode.clone();
        thread::Builder::new().stack_size(128 << 10).spawn(move || match mode.as_str() {
            "h2c" => drop(h2c::serve(&stream)),
            _ => drop(serve(&stream, &mode)),
        })?;
    }
    Ok(())
}

/// Lets open requests end, then ends the process.
fn stop() {
    if STOPPING.swap(true, Ordering::SeqCst) {
        return;
    }
    println!("SIGTERM: finishing {} requests", OPEN.load(Ordering::SeqCst));
    thread::spawn(|| {
        let began = Instant::now();
        while began.elapsed() < LINGER || (OPEN.load(Ordering::SeqCst) > 0 && began.elapsed() < GRACE) {
            thread::sleep(Duration::from_millis(10));
        }
        println!("stopped after {} requests", ANSWERED.load(Ordering::SeqCst));
        std::process::exit(0);
    });
}

struct Request {
    method: String,
    path: String,
    query: String,
    json: bool,
    close: bool,
    /// `Sec-WebSocket-Key`
    websocket: Option<String>,
    body: Vec<u8>,
}

fn serve(stream: &TcpStream, mode: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader, stream)? {
        OPEN.fetch_add(1, Ordering::SeqCst);
        let mut close = request.close || STOPPING.load(Ordering::SeqCst);
        let written = match (request.path.as_str(), &request.websocket) {
            ("/ws", Some(key)) => {
                close = true;
                streams::websocket(&mut reader, stream, key)
            }
            ("/drip", _) => {
                close = true;
                streams::drip(stream, number(&request.query, "n"), number(&request.query, "ms"))
            }
            _ => {
                let answer = answer(&request, mode);
                close |= STOPPING.load(Ordering::SeqCst);
                write_answer(stream, &request, answer, close)
            }
        };
        ANSWERED.fetch_add(1, Ordering::SeqCst);
        OPEN.fetch_sub(1, Ordering::SeqCst);
        written?;
        if mode == "crash" {
            eprintln!("MODE=crash: ending with code 4");
            std::process::exit(4);
        }
        if close {
            break;
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead, stream: &TcpStream) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.by_ref().take(8192).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or("/"));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.into(),
        path: path.into(),
        query: query.into(),
        json: false,
        close: line.contains("HTTP/1.0"),
        websocket: None,
        body: Vec::new(),
    };
    let (mut length, mut chunked) = (0usize, false);
    loop {
        let mut header = String::new();
        if reader.by_ref().take(16_384).read_line(&mut header)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => request.close |= value.eq_ignore_ascii_case("close"),
            "accept" => request.json = value.contains("application/json"),
            "sec-websocket-key" => request.websocket = Some(value.into()),
            "expect" => (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?,
            _ => {}
        }
    }
    let too_large = || io::Error::new(io::ErrorKind::InvalidData, "body too large");
    if chunked {
        loop {
            let mut size = String::new();
            reader.by_ref().take(64).read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            if request.body.len() + size > BODY_MAX {
                return Err(too_large());
            }
            let begin = request.body.len();
            request.body.resize(begin + size, 0);
            reader.read_exact(&mut request.body[begin..])?;
            reader.by_ref().take(8).read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    } else if length > BODY_MAX {
        return Err(too_large());
    } else {
        request.body.resize(length, 0);
        reader.read_exact(&mut request.body)?;
    }
    Ok(Some(request))
}

fn number(query: &str, name: &str) -> u64 {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        .unwrap_or(0)
}

/// Status, content type, body.
type Answer = (&'static str, &'static str, Vec<u8>);

fn answer(request: &Request, mode: &str) -> Answer {
    if request.path == "/hang" {
        HANGING.store(true, Ordering::SeqCst);
    }
    while HANGING.load(Ordering::SeqCst) || mode == "silent" {
        thread::sleep(Duration::from_secs(3600));
    }
    let text = |status, body: String| (status, "text/plain", body.into_bytes());
    match request.path.as_str() {
        "/_ping" if mode == "failping" => text("500 Internal Server Error", "not well\n".into()),
        "/_ping" if mode != "noping" => text("200 OK", "pong\n".into()),
        "/" => who(request.json),
        "/slow" => {
            thread::sleep(Duration::from_millis(number(&request.query, "ms").min(600_000)));
            who(request.json)
        }
        "/stopbeating" => {
            heartbeat::stop();
            text("200 OK", "no more heartbeats\n".into())
        }
        "/echo" => ("200 OK", "application/octet-stream", request.body.clone()),
        "/eat" => {
            let mb = number(&request.query, "mb");
            eat(mb);
            text("200 OK", format!("ate {mb} MiB\n"))
        }
        "/exit" => {
            let code = i32::try_from(number(&request.query, "code")).unwrap_or(1);
            eprintln!("asked to end with code {code}");
            std::process::exit(code);
        }
        _ => text("404 Not Found", "no such page\n".into()),
    }
}

/// Takes `mb` MiB, touches each page and never gives them back.
fn eat(mb: u64) {
    for _ in 0..mb {
        let mut block = vec![0u8; 1 << 20];
        block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        std::hint::black_box(&block);
        std::mem::forget(block);
    }
}

fn who(json: bool) -> Answer {
    let (app, version) = (env("CAAS_APP", "hello"), env("CAAS_VERSION", &env("HELLO_VERSION", "?")));
    let (instance, host) = (env("CAAS_INSTANCE", "?"), env("CAAS_HOST", "?"));
    let body = if json {
        format!("{{\"app\":\"{app}\",\"version\":\"{version}\",\"instance\":\"{instance}\",\"host\":\"{host}\"}}\n")
    } else {
        format!("{app} version {version}, instance {instance} on host {host}\n")
    };
    let kind = if json { "application/json" } else { "text/plain" };
    ("200 OK", kind, body.into_bytes())
}

/// The fields that tell who answers.
fn identity() -> String {
    let version = env("CAAS_VERSION", &env("HELLO_VERSION", "?"));
    format!("x-instance: {}\r\nx-version: {version}\r\n", env("CAAS_INSTANCE", "?"))
}

fn write_answer(mut stream: &TcpStream, request: &Request, answer: Answer, close: bool) -> io::Result<()> {
    let (status, kind, body) = answer;
    let mut out = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n{}{}\r\n",
        body.len(),
        identity(),
        if close { "connection: close\r\n" } else { "" },
    )
    .into_bytes();
    if request.method != "HEAD" {
        out.extend_from_slice(&body);
    }
    stream.write_all(&out)
}
