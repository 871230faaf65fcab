//! A gateway hands its sockets to new processes while clients connect anew all the time, with and without TLS and to a TCP app's
//! port, and while others keep theirs: none is refused, no request fails.

mod gateway;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use gateway::{Doors, Gateway, gone};

/// Hand-overs in a row.
const TIMES: usize = 20;

#[test]
fn twenty_successors_lose_no_connection() {
    let mut gateway = Gateway::start();
    let stop = Arc::new(AtomicBool::new(false));
    // A kind of connection, and how many of it were served.
    type Kind = (fn(&Doors) -> Result<(), String>, usize);
    let kinds: [Kind; 3] = [(Doors::plain, 2), (Doors::tls, 2), (Doors::tcp, 2)];
    // Of the kept ones some are busy, some wait, some are parked before their next request.
    let pauses = [0, 0, 20, 400, 2_500, 3_100].map(Duration::from_millis);
    let kept = Arc::<AtomicU64>::default();
    let mut served: Vec<Arc<AtomicU64>> = kinds.iter().map(|_| Arc::default()).collect();
    let mut clients = Vec::new();
    for ((once, count), served) in kinds.into_iter().zip(&served) {
        for _ in 0..count {
            let (stop, served, doors) = (Arc::clone(&stop), Arc::clone(served), gateway.doors.clone());
            clients.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    once(&doors)?;
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<(), String>(())
            }));
        }
    }

    for pause in pauses {
        let (stop, kept, doors) = (Arc::clone(&stop), Arc::clone(&kept), gateway.doors.clone());
        clients.push(std::thread::spawn(move || doors.keep(pause, &stop, &kept)));
    }
    served.push(kept);

    let mut long = gateway.doors.talk().expect("a connection");
    let mut before = Vec::new();
    for turn in 0..TIMES {
        let pid = gateway.pid().expect("it serves");
        let counts: Vec<u64> = served.iter().map(|s| s.load(Ordering::Relaxed)).collect();
        if turn % 2 == 0 {
            gateway.signal("-USR2");
            gateway.until("a successor serves", |g| g.pid().is_some_and(|p| p != pid));
        } else {
            let output = gateway.upgrade();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{output:?}\n{}", gateway.log());
            let new = gateway.pid().expect("it serves");
            assert!(
                new != pid && said.contains(&format!("process {new} serves, {pid} drains")),
                "{said}"
            );
        }
        // Each has work of each kind to do before it goes.
        gateway.until("connections go on", |_| {
            let now = served.iter().map(|s| s.load(Ordering::Relaxed));
            now.zip(&counts).all(|(now, before)| now > before + 5)
                || clients.iter().any(std::thread::JoinHandle::is_finished)
        });
        if turn < 2 {
            // What is open stays where it is, for as long as the drain lasts.
            long.say(b"still there").expect("the connection goes on");
            assert!(!gone(gateway.first.id()), "it has a connection");
        }
        before.push(pid);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no panic").expect("no connection fails");
    }
    drop(long);
    gateway.first.wait().expect("the first has ended");
    gateway.until("all predecessors have ended", |_| before.iter().all(|pid| gone(*pid)));
    let counts: Vec<u64> = served.iter().map(|s| s.load(Ordering::Relaxed)).collect();
    eprintln!(
        "0 failed of {counts:?} connections (http, https, tcp) and requests on kept ones over {TIMES} hand-overs"
    );
}

#[test]
fn a_successor_that_can_not_serve_changes_nothing_and_the_reason_is_told() {
    let gateway = Gateway::start();
    let pid = gateway.pid().expect("it serves");
    fs::remove_file(gateway.file("caas")).expect("removed");
    symlink("/bin/false", gateway.file("caas")).expect("a link");
    let output = gateway.upgrade();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("process {pid} serves on")) && said.contains("exit status: 1"),
        "{said}"
    );
    assert!(gateway.log().contains("this process serves on"));
    assert_eq!(gateway.pid(), Some(pid));
    for once in [Doors::plain, Doors::tls, Doors::tcp] {
        once(&gateway.doors).expect("it serves on");
    }

    // The next try succeeds, and the word of the last one is gone.
    fs::remove_file(gateway.file("caas")).expect("removed");
    symlink(env!("CARGO_BIN_EXE_caas"), gateway.file("caas")).expect("a link");
    let output = gateway.upgrade();
    assert!(output.status.success(), "{output:?}");
    assert!(!gateway.file("pid.failed").exists());
    let pid = gateway.pid().expect("it serves");

    // After SIGTERM nothing is left that would take a connection and not answer.
    gateway.signal("-TERM");
    gateway.until("it has ended", |_| gone(pid));
    for port in [gateway.doors.http, gateway.doors.tcp] {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the port is closed");
    }
}
