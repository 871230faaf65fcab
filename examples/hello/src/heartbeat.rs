//! Heartbeats: the app tells the platform by itself that it is well, with its own token.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// `/stopbeating` was called.
static SILENT: AtomicBool = AtomicBool::new(false);
const DEADLINE: Duration = Duration::from_secs(2);

/// Beats each `HEARTBEAT_MS` milliseconds in the background; without it not at all.
pub fn start() {
    let Some(every) = std::env::var("HEARTBEAT_MS").ok().and_then(|ms| ms.parse().ok()) else {
        return;
    };
    thread::spawn(move || {
        let mut last = String::new();
        while !SILENT.load(Ordering::SeqCst) {
            let told = beat().unwrap_or_else(|error| error.to_string());
            if told != last {
                println!("heartbeat: {told}");
                last = told;
            }
            thread::sleep(Duration::from_millis(every));
        }
    });
}

/// Sends no further one.
pub fn stop() {
    SILENT.store(true, Ordering::SeqCst);
}

/// One beat; the first line of the answer.
fn beat() -> io::Result<String> {
    let variable = |name: &str| std::env::var(name).map_err(|_| io::Error::other(format!("{name} is not set")));
    let (api, instance, token) = (variable("CAAS_API")?, variable("CAAS_INSTANCE")?, variable("CAAS_INSTANCE_TOKEN")?);
    let host = api.strip_prefix("http://").unwrap_or(&api).trim_end_matches('/');
    let address = host.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("CAAS_API has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(
        stream,
        "PUT /api/v1/instances/{instance}/heartbeat HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\
         content-length: 0\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(8192).read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or("no answer").to_owned())
}
