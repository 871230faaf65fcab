//! A corpus of handshakes for other protocols, hostile and odd ones, and of what apps answer to them: each with the section of the
//! RFC that it breaks or strains, or the advisory of a server that fell for it. Of each has to come what its table says: a tunnel
//! through which every byte goes, or answers, of which each belongs to its request. Whatever the client sends behind a handshake
//! that became no tunnel is a request to the gateway or nothing; it never reaches an app unread.

mod cases;
mod http2;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::gateway::Gateway;
use crate::peers::*;

/// A handshake by HTTP/1: its name, its source, its bytes (`{h}` is the Host line, `{ws}` the fields of a sound WebSocket handshake,
/// `{key}` its key and version), what the app answers, which protocol the app is asked for (`-`: it is not asked at all), and
/// what the client gets.
struct Case(
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    Want,
);

/// What a client gets.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// A tunnel; this came along with the switch.
    Tunnel(&'static str),
    /// Answers with these statuses. After the first one the client asks for `/next` and for the connection's end.
    Gets(&'static [u16]),
}

const WS: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n{key}";
const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
const NEXT: &str = "GET /next HTTP/1.1\r\n{h}Connection: close\r\n\r\n";

fn fill(text: &str, host: &str) -> String {
    text.replace("{ws}", WS)
        .replace("{key}", KEY)
        .replace("{h}", &format!("Host: {host}\r\n"))
        .replace("{host}", host)
        .replace("{long}", &"a".repeat(200_000))
}

/// What came to an app.
#[derive(Debug, Default)]
struct Book {
    /// All that came as requests, but for `/next`.
    requests: Vec<Seen>,
    /// What came as something else, or was not written by the gateway.
    wrong: Vec<String>,
}

/// An app that answers `/next` and `/first` by itself and everything else by `says`; when that switches, it echoes.
async fn container(says: &'static str) -> (SocketAddr, Arc<Mutex<Book>>) {
    let book = Arc::<Mutex<Book>>::default();
    let kept = Arc::clone(&book);
    let (at, _) = upstream(move |mut stream, _| {
        let book = Arc::clone(&kept);
        async move {
            let mut buffer = Vec::new();
            loop {
                let request = match read_request(&mut stream, &mut buffer).await {
                    Ok(Some(request)) => request,
                    Ok(None) => return,
                    Err(text) => return book.lock().unwrap().wrong.push(text),
                };
                if request.header("x-forwarded-for").len() != 1 || request.line().contains("smuggled") {
                    book.lock().unwrap().wrong.push(request.head.clone());
                }
                if matches!(request.line(), "GET /next HTTP/1.1" | "GET /first HTTP/1.1") {
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnext")
                        .await;
                    continue;
                }
                book.lock().unwrap().requests.push(request);
                let _ = stream.write_all(fill(says, "").as_bytes()).await;
                if says.contains(" 101 ") {
                    let _ = stream.write_all(&buffer).await;
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    return;
                }
            }
        }
    })
    .await;
    (at, book)
}

/// Takes whole answers off the front: their statuses and bodies; up to a switch.
fn answers(bytes: &mut Vec<u8>, head_only: bool) -> Vec<(u16, String)> {
    let mut all = Vec::new();
    while let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
        let answer = Answer::parse(&bytes[..end + 4]);
        let length = match answer.header("content-length").and_then(|l| l.parse().ok()) {
            Some(length) if !(head_only && all.is_empty()) => length,
            _ => 0,
        };
        let Some(body) = bytes.get(end + 4..end + 4 + length) else {
            break;
        };
        let body = String::from_utf8_lossy(body).into_owned();
        bytes.drain(..end + 4 + length);
        let reason = answer.reason().to_owned();
        let of_gateway = answer.status >= 500 && !reason.is_empty();
        all.push((answer.status, if of_gateway { reason } else { body }));
        if answer.status == 101 {
            break;
        }
    }
    all
}

/// What a client of the case got that is wrong, if anything is.
async fn attack(at: SocketAddr, case: &Case, host: &str) -> Result<(), String> {
    let Case(_, _, ask, _, _, want) = case;
    let sent = fill(ask, host);
    let early = sent.split_once("\r\n\r\n").map_or("", |(_, early)| early);
    let head_only = sent.starts_with("HEAD ");
    let mut stream = TcpStream::connect(at).await.map_err(|e| e.to_string())?;
    stream.write_all(sent.as_bytes()).await.map_err(|e| e.to_string())?;
    let (mut got, mut all) = (Vec::new(), Vec::new());
    // Behind `/first` the handshake itself is the next request.
    let mut asked = sent.contains("/first");
    let reading = async {
        loop {
            all.extend(answers(&mut got, head_only && all.is_empty()));
            if all.iter().any(|(status, _)| *status == 101) {
                return;
            }
            if !asked && all.iter().any(|(status, _)| *status >= 200) {
                asked = true;
                // A gateway that has refused already may have closed.
                let _ = stream.write_all(fill(NEXT, host).as_bytes()).await;
            }
            if !matches!(stream.read_buf(&mut got).await, Ok(1..)) {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, reading)
        .await
        .map_err(|_| "the connection stayed open".to_owned())?;
    let statuses: Vec<u16> = all
        .iter()
        .map(|(status, _)| *status)
        .filter(|s| *s >= 200 || *s == 101)
        .collect();
    match want {
        Want::Gets(wanted) => {
            if statuses != *wanted {
                return Err(format!("got {all:?} and {:?}", String::from_utf8_lossy(&got)));
            }
            let last = all.last().filter(|_| wanted.len() > 1 && wanted.last() == Some(&200));
            if last.is_some_and(|(_, body)| body != "next") {
                return Err(format!("another answer to the next request: {all:?}"));
            }
            Ok(())
        }
        Want::Tunnel(glued) => {
            if statuses.last() != Some(&101) {
                return Err(format!("no tunnel: {all:?}, {:?}", String::from_utf8_lossy(&got)));
            }
            let _ = stream.write_all(b"ping").await;
            // What stood before the handshake was no part of it.
            let early = early.rsplit_once("\r\n\r\n").map_or(early, |(_, early)| early);
            let wanted = format!("{glued}{early}ping");
            let echo =
                async { while got.len() < wanted.len() && matches!(stream.read_buf(&mut got).await, Ok(1..)) {} };
            let _ = tokio::time::timeout(LIMIT, echo).await;
            let back = String::from_utf8_lossy(&got).into_owned();
            (back == wanted).then_some(()).ok_or(format!("{back:?} came through"))
        }
    }
}

/// What is wrong with what came to the app, if anything is.
fn wrong_at_app(book: &Book, asked: &str, clients: usize) -> Vec<String> {
    let mut wrongs = book.wrong.clone();
    let count = book.requests.len();
    for request in &book.requests {
        let protocols = request.header("upgrade").join("|");
        let says = request.header("connection").contains(&"upgrade");
        if protocols != asked || says == asked.is_empty() {
            wrongs.push(format!("the app saw {}", request.head));
        }
    }
    if count != if asked == "-" { 0 } else { clients } {
        wrongs.push(format!("the app was asked {count} times"));
    }
    wrongs
}

/// Clients of each case.
const CLIENTS: usize = 3;

/// Has clients of all cases ask one gateway at once, each case for an app of its own, which answers what `says` tells. What
/// clients got that is wrong, by case, and what came to the apps.
async fn ask_all<C: Sync, F>(
    cases: &'static [C],
    says: impl Fn(&C) -> &'static str,
    attack: impl Fn(SocketAddr, &'static C, String) -> F,
) -> (Vec<(usize, String)>, Vec<Arc<Mutex<Book>>>)
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let names: Vec<String> = (0..cases.len()).map(|i| format!("c{i}")).collect();
    let (mut apps, mut books) = (Vec::new(), Vec::new());
    for (case, name) in cases.iter().zip(&names) {
        let (at, book) = container(says(case)).await;
        apps.push((name.as_str(), at));
        books.push(book);
    }
    let mut gateway = Gateway::start(&[], false, &apps).await;
    let at_once = Arc::new(Semaphore::new(24));
    let mut running = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        for _ in 0..CLIENTS {
            let at_once = Arc::clone(&at_once);
            let attack = attack(gateway.http, case, format!("c{i}.localhost"));
            running.push(tokio::spawn(async move {
                let _one = at_once.acquire_owned().await.unwrap();
                attack.await.err().map(|e| (i, e))
            }));
        }
    }
    let mut wrongs = Vec::new();
    for one in running {
        wrongs.extend(one.await.unwrap());
    }
    assert_eq!(gateway.harm().await, [""; 0]);
    (wrongs, books)
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_end_in_tunnels_or_answers() {
    let cases = cases::CASES;
    let ask = |at, case, host: String| async move { attack(at, case, &host).await };
    let (mut wrongs, books) = ask_all(cases, |case| case.3, ask).await;
    for (i, (case, book)) in cases.iter().zip(books).enumerate() {
        let at_app = wrong_at_app(&book.lock().unwrap(), case.4, CLIENTS);
        wrongs.extend(at_app.into_iter().map(|wrong| (i, wrong)));
    }
    let named = wrongs
        .iter()
        .map(|(i, w)| format!("{} ({}): {w}", cases[*i].0, cases[*i].1));
    let named: Vec<String> = named.collect();
    assert!(named.is_empty(), "{} wrong:\n{}", named.len(), named.join("\n"));
}

#[test]
fn the_corpus_is_large_and_every_case_has_a_source() {
    let mut all: Vec<(&str, &str)> = cases::CASES.iter().map(|c| (c.0, c.1)).collect();
    all.extend(http2::CASES.iter().map(|c| (c.0, c.1)));
    assert!(all.len() >= 60, "{} cases", all.len());
    for (name, source) in &all {
        let known = ["RFC ", "CVE-"].iter().any(|k| source.starts_with(k));
        assert!(
            known && source.bytes().any(|b| b.is_ascii_digit()),
            "{name}: {source:?}"
        );
    }
    let count = all.len();
    all.sort_unstable();
    all.dedup_by_key(|(name, _)| *name);
    assert_eq!(all.len(), count, "names are used once");
}
