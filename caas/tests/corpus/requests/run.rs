//! Sends the cases of a family over HTTP/1.1 and looks at what came of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::app::{self, Book, Request};
use super::template::Fill;
use super::{Case, Want};
use crate::gateway::{Gateway, Settings};
use crate::peers::*;

/// Clients that send a case: one whole, one in pieces.
const CLIENTS: usize = 2;

/// Longest time that a connection may stay open: more than any limit of the gateway's, also on a busy machine.
const OPEN: Duration = Duration::from_secs(30);

/// A family as it is sent.
pub(super) struct Family {
    pub(super) cases: &'static [Case],
    pub(super) settings: Settings,
    /// What others have to send first on a connection.
    pub(super) greeting: &'static [u8],
    /// Cases go to the port that speaks TLS.
    pub(super) tls: bool,
}

impl Family {
    pub(super) fn of(cases: &'static [Case]) -> Self {
        Self {
            cases,
            settings: &[],
            greeting: b"",
            tls: false,
        }
    }
}

/// The address of each case's app, and what came to it.
pub(super) struct Apps {
    pub(super) gateway: Gateway,
    pub(super) books: Vec<Arc<Mutex<Book>>>,
}

impl Apps {
    /// A gateway with an app per case: `c0`, `c1`, …
    pub(super) async fn start(settings: Settings, tls: bool, count: usize) -> Self {
        let names: Vec<String> = (0..count).map(|i| format!("c{i}")).collect();
        let (mut at, mut books) = (Vec::new(), Vec::new());
        for name in &names {
            let (address, book) = app::start().await;
            at.push((name.as_str(), address));
            books.push(book);
        }
        let gateway = Gateway::start(settings, tls, &at).await;
        Self { gateway, books }
    }

    /// What the gateway holds against the containers, which must be nothing; and what harm has come to it.
    pub(super) async fn held_against(&mut self) -> Vec<String> {
        let mut wrongs = self.gateway.harm().await;
        let routes = self.gateway.admin("/routes").await.body;
        let routes: serde_json::Value = serde_json::from_str(&routes).expect("routes");
        for route in routes["routes"].as_array().expect("routes") {
            let endpoint = &route["endpoints"][0];
            if endpoint["failures"] != 0 || endpoint["state"] != "ready" || !endpoint["last_error"].is_null() {
                wrongs.push(format!("{}: held against the container: {endpoint}", route["host"]));
            }
        }
        for metric in ["caas_gateway_ejections_total", "caas_gateway_retries_total"] {
            let total = self.gateway.metric(metric).await;
            if total > 0.0 {
                wrongs.push(format!("{metric} {total}"));
            }
        }
        wrongs
    }
}

/// An answer on a connection.
struct Got {
    status: u16,
    body: Vec<u8>,
}

/// Takes a connection's bytes apart into answers, interim ones left out; the first answers a HEAD when `head`.
fn answers(mut bytes: &[u8], mut head: bool) -> Result<Vec<Got>, String> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let wrong = |what: &str| format!("{what}: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)]));
        let end = bytes
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .ok_or_else(|| wrong("half an answer"))?;
        let answer = Answer::parse(&bytes[..end + 4]);
        if answer.status < 100 {
            return Err(wrong("no answer"));
        }
        bytes = &bytes[end + 4..];
        if answer.status < 200 {
            continue;
        }
        let length = answer
            .header("content-length")
            .and_then(|l| l.parse().ok())
            .unwrap_or(0);
        let length = if std::mem::take(&mut head) { 0 } else { length };
        let body = bytes.get(..length).ok_or("an answer is cut")?.to_vec();
        bytes = &bytes[length..];
        all.push(Got {
            status: answer.status,
            body,
        });
    }
    Ok(all)
}

/// Sends the bytes, all at once or in pieces, and reads to the end.
async fn send(at: SocketAddr, bytes: &[u8], pieces: bool) -> Result<Vec<u8>, String> {
    let stream = TcpStream::connect(at).await.map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (mut read, mut write) = stream.into_split();
    let size = match (pieces, bytes.len()) {
        (false, n) => n.max(1),
        (true, 0..2_000) => 7,
        (true, n) => n / 50,
    };
    let mut got = Vec::new();
    let both = async {
        let writing = async {
            for piece in bytes.chunks(size) {
                // A gateway that has refused already may have closed.
                if write.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        let (_, read) = tokio::join!(writing, read.read_to_end(&mut got));
        read
    };
    match tokio::time::timeout(OPEN, both).await {
        Err(_) => Err(format!(
            "the connection stayed open after {:?}",
            String::from_utf8_lossy(&got)
        )),
        // Reset after the answer: all that was sent has arrived.
        Ok(_) => Ok(got),
    }
}

/// What is wrong with what a client of the case got, if anything is.
fn wrong(want: Want, fill: &Fill<'_>, sent: &[u8], got: &[u8]) -> Option<String> {
    if want == Want::Silence {
        return got
            .starts_with(b"HTTP/1")
            .then(|| format!("answered: {:?}", String::from_utf8_lossy(got)));
    }
    let all = match answers(got, sent.starts_with(b"HEAD ")) {
        Ok(all) => all,
        Err(text) => return Some(text),
    };
    let statuses: Vec<u16> = all.iter().map(|a| a.status).collect();
    let wanted = match want {
        Want::Refused(status) => vec![status],
        Want::Answered(status) => vec![status, 200],
        Want::Sees(..) => vec![200, 200],
        Want::Last(..) => vec![200],
        Want::Broken => vec![400],
        Want::Early if statuses.len() == 1 => vec![200],
        Want::Early => vec![200, 200],
        Want::Cut(0) | Want::Silence => vec![],
        Want::Cut(status) => vec![status],
    };
    if statuses != wanted {
        return Some(format!("statuses {statuses:?} instead of {wanted:?}"));
    }
    if let Want::Sees(line, body) | Want::Last(line, body) = want {
        let path = line.split(['|', ' ']).nth(1).unwrap_or_default();
        let first = &all[0].body;
        let own = [path.as_bytes(), b" ", &fill.bytes(body)].concat();
        if !sent.starts_with(b"HEAD ") && !first.ends_with(&own[path.len()..]) && *first != own {
            return Some(format!("another body: {:?}", String::from_utf8_lossy(first)));
        }
    }
    let next_answered = statuses.len() == 2;
    (next_answered && all[1].body != b"/next ").then(|| "the next request got another answer".into())
}

/// The request without the fields that the gateway adds to every one, or what is wrong with those. A field that `wanted` names is left.
pub(super) fn stripped(mut request: Request, fill: &Fill<'_>, wanted: &str) -> Result<Request, String> {
    let host = fill.host;
    for (name, value) in [
        ("host", host),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", host),
        ("x-forwarded-port", fill.port),
        ("x-request-id", ""),
    ] {
        if wanted.split('|').any(|f| f.starts_with(&format!("{name}: "))) {
            continue;
        }
        let line = format!("{name}: {value}");
        let found: Vec<usize> = (0..request.fields.len())
            .filter(|i| request.fields[*i].starts_with(&format!("{name}:")))
            .collect();
        let [at] = found[..] else {
            return Err(format!("{} of {name} in {:?}", found.len(), request.fields));
        };
        let field = request.fields.remove(at);
        if (value.is_empty() && field.len() != line.len() + 32) || (!value.is_empty() && field != line) {
            return Err(format!("{field:?} instead of {line:?}"));
        }
    }
    Ok(request)
}

/// How often the request after a case comes to its app.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    Times(usize),
    Any,
}

impl Next {
    fn after(want: Want) -> Self {
        match want {
            Want::Sees(..) | Want::Answered(_) => Self::Times(CLIENTS),
            Want::Early => Self::Any,
            _ => Self::Times(0),
        }
    }
}

/// What is wrong with what came to the app of a case that `clients` sent, if anything is.
pub(super) fn wrong_at_app(book: &Book, fill: &Fill<'_>, want: Want, clients: usize, after: Next) -> Vec<String> {
    let mut wrongs: Vec<String> = book.junk.iter().map(|j| format!("junk at the app: {j}")).collect();
    let mut next = 0;
    let mut seen = 0;
    for request in &book.requests {
        match (request.path(), want) {
            (path, _) if path.starts_with("/by/") => {}
            ("/next", _) => next += 1,
            (_, Want::Sees(wanted, body) | Want::Last(wanted, body)) => {
                seen += 1;
                let wanted = fill.text(wanted);
                let (line, fields) = wanted.split_once('|').unwrap_or((&wanted, ""));
                let mut fields: Vec<&str> = fields.split('|').filter(|f| !f.is_empty()).collect();
                fields.sort_unstable();
                match stripped(request.clone(), fill, &wanted) {
                    Ok(got) if got.line == line && got.fields == fields && got.body == fill.bytes(body) => {}
                    Ok(got) => wrongs.push(format!(
                        "the app saw {} {:?} {:?}",
                        got.line,
                        got.fields,
                        String::from_utf8_lossy(&got.body)
                    )),
                    Err(text) => wrongs.push(text),
                }
            }
            ("/early", Want::Early) => {}
            _ => wrongs.push(format!("the app saw {request:?}")),
        }
    }
    if matches!(want, Want::Sees(..) | Want::Last(..)) && seen != clients {
        wrongs.push(format!("the app saw it {seen} times"));
    }
    if matches!(after, Next::Times(times) if times != next) {
        wrongs.push(format!("the app saw the next request {next} times"));
    }
    if !book.cut.is_empty() && !matches!(want, Want::Broken | Want::Early | Want::Cut(_)) {
        wrongs.push(format!(
            "the app saw half a request: {:?}",
            String::from_utf8_lossy(&book.cut[0])
        ));
    }
    wrongs
}

/// Somebody else who uses the same app until `done`, on one connection, and once more after that.
pub(super) async fn bystander(at: SocketAddr, greeting: &[u8], host: &str, done: &AtomicBool) -> Result<(), String> {
    let text = |e: std::io::Error| format!("a bystander: {e}");
    let mut stream = TcpStream::connect(at).await.map_err(text)?;
    stream.write_all(greeting).await.map_err(text)?;
    let mut last = false;
    for n in 0.. {
        let body = format!("b{n}");
        let request = format!(
            "POST /by/{n} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.map_err(text)?;
        let own = format!("/by/{n} {body}");
        let got = read_until(&mut stream, &own).await;
        if !got.starts_with("HTTP/1.1 200") || !got.ends_with(&format!("\r\n\r\n{own}")) {
            return Err(format!("a bystander got {got:?} instead of {own:?}"));
        }
        if last {
            break;
        }
        // A handful while the case is under way; then it waits for the end.
        let begun = Instant::now();
        while n >= 4 && !done.load(Ordering::Acquire) && begun.elapsed() < LIMIT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        last = done.load(Ordering::Acquire);
    }
    Ok(())
}

/// Sends all cases of a family and fails with everything that is wrong.
pub(super) async fn run(family: Family) {
    let mut apps = Apps::start(family.settings, family.tls, family.cases.len()).await;
    let http = apps.gateway.http;
    let to = if family.tls { apps.gateway.https } else { http };
    let port = http.port().to_string();
    let at_once = Arc::new(Semaphore::new(16));
    let mut running = Vec::new();
    for (i, case) in family.cases.iter().enumerate() {
        let (at_once, port, greeting) = (Arc::clone(&at_once), port.clone(), family.greeting);
        running.push(tokio::spawn(async move {
            let _one = at_once.acquire_owned().await.unwrap();
            let Case(name, source, ask, want) = case;
            let host = format!("c{i}.localhost");
            let fill = Fill {
                host: &host,
                port: &port,
            };
            let mut bytes = fill.request(ask);
            if !matches!(want, Want::Silence | Want::Cut(_)) {
                bytes.extend(fill.bytes(b"GET /next HTTP/1.1\r\n{h}Connection: close\r\n\r\n"));
            }
            let done = AtomicBool::new(false);
            let attack = async {
                let clients = (0..CLIENTS).map(|n| send(to, &bytes, n % 2 == 1));
                let all = futures::future::join_all(clients).await;
                done.store(true, Ordering::Release);
                all
            };
            let (all, beside) = tokio::join!(attack, bystander(http, greeting, &host, &done));
            let mut wrongs: Vec<String> = beside.err().into_iter().collect();
            for got in all {
                wrongs.extend(match got {
                    Ok(got) => wrong(*want, &fill, &bytes, &got),
                    Err(text) => Some(text),
                });
            }
            wrongs.sort_unstable();
            wrongs.dedup();
            wrongs
                .into_iter()
                .map(|w| format!("{name} ({source}), {want:?}: {w}"))
                .collect::<Vec<_>>()
        }));
    }
    let mut wrongs = Vec::new();
    for case in running {
        wrongs.extend(case.await.unwrap());
    }
    for (i, Case(name, source, _, want)) in family.cases.iter().enumerate() {
        let host = format!("c{i}.localhost");
        let fill = Fill {
            host: &host,
            port: &port,
        };
        let seen = wrong_at_app(
            &apps.books[i].lock().unwrap(),
            &fill,
            *want,
            CLIENTS,
            Next::after(*want),
        );
        wrongs.extend(seen.into_iter().map(|w| format!("{name} ({source}), {want:?}: {w}")));
    }
    wrongs.extend(apps.held_against().await);
    assert!(wrongs.is_empty(), "{} wrong:\n{}", wrongs.len(), wrongs.join("\n"));
}
