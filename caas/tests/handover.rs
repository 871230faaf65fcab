//! A gateway hands its sockets to new processes while clients connect anew all the time: none is refused, none fails.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Hand-overs in a row.
const TIMES: usize = 20;

/// An instance that answers each connection once.
fn instance() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 4_096];
                while matches!(stream.read(&mut buffer), Ok(1..)) {
                    if stream
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn free() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// One request on a connection of its own.
fn once(port: u16) -> Result<(), String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| format!("connect: {e}"))?;
    let wait = Some(Duration::from_secs(10));
    stream.set_read_timeout(wait).map_err(|e| e.to_string())?;
    let request = b"GET / HTTP/1.1\r\nHost: hello.test\r\nConnection: close\r\n\r\n";
    stream.write_all(request).map_err(|e| format!("write: {e}"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| format!("read: {e}"))?;
    if answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok") {
        Ok(())
    } else {
        Err(format!("answer: {answer:?}"))
    }
}

struct Gateway {
    dir: tempfile::TempDir,
    port: u16,
    first: Child,
}

impl Gateway {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let registry = format!(
            r#"{{"revision":1,"endpoints":{{"hello":{{"1":{{"c1":"{}"}}}}}}}}"#,
            instance()
        );
        fs::write(dir.path().join("registry.json"), registry).expect("written");
        // Started under a name of its own, behind which the file can be exchanged as by an upgrade.
        symlink(env!("CARGO_BIN_EXE_caas"), dir.path().join("caas")).expect("a link");
        let (port, admin) = (free(), free());
        let first = Command::new(dir.path().join("caas"))
            .args(["gateway", "--domain", "test", "--workers", "2", "--registry"])
            .arg(format!("file:{}", dir.path().join("registry.json").display()))
            .args([
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--admin",
                &format!("127.0.0.1:{admin}"),
            ])
            .arg("--pid-file")
            .arg(dir.path().join("pid"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).expect("a log"))
            .spawn()
            .expect("it starts");
        let gateway = Self { dir, port, first };
        gateway.until("it serves", |g| g.pid().is_some() && once(g.port).is_ok());
        gateway
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.file("pid")).ok()?.trim().parse().ok()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < deadline, "not in time: {what}\n{}", self.log());
            std::thread::yield_now();
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.pid().expect("it serves").to_string();
        let sent = Command::new("kill").args([name, &pid]).status().expect("kill runs");
        assert!(sent.success());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        let _ = self.first.kill();
        let _ = self.first.wait();
    }
}

fn gone(pid: u32) -> bool {
    // A zombie whose parent has not asked yet has ended too.
    fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).map_or(true, |stat| {
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
    })
}

#[test]
fn twenty_successors_lose_no_connection() {
    let mut gateway = Gateway::start();
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, served, port) = (Arc::clone(&stop), Arc::clone(&served), gateway.port);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    once(port)?;
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<(), String>(())
            })
        })
        .collect();

    let mut before = Vec::new();
    for _ in 0..TIMES {
        let pid = gateway.pid().expect("it serves");
        let served_before = served.load(Ordering::Relaxed);
        gateway.signal("-USR2");
        gateway.until("a successor serves", |g| g.pid().is_some_and(|p| p != pid));
        // Each has work to do before it goes.
        gateway.until("requests go on", |_| {
            served.load(Ordering::Relaxed) > served_before + 10
                || clients.iter().any(std::thread::JoinHandle::is_finished)
        });
        before.push(pid);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no panic").expect("no request fails");
    }
    gateway.first.wait().expect("the first has ended");
    gateway.until("all predecessors have ended", |_| before.iter().all(|pid| gone(*pid)));

    // A successor that can't serve changes nothing.
    let pid = gateway.pid();
    fs::remove_file(gateway.file("caas")).expect("removed");
    symlink("/bin/false", gateway.file("caas")).expect("a link");
    gateway.signal("-USR2");
    gateway.until("the failure is told", |g| g.log().contains("this process serves on"));
    assert_eq!(gateway.pid(), pid);
    once(gateway.port).expect("it serves on");

    // After SIGTERM nothing is left that would take a connection and not answer.
    gateway.signal("-TERM");
    let pid = pid.expect("it serves");
    gateway.until("it has ended", |_| gone(pid));
    assert!(
        TcpStream::connect(("127.0.0.1", gateway.port)).is_err(),
        "the port is closed"
    );
}
