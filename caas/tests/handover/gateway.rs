//! A gateway of its own process, on ports of its own: HTTP, HTTPS, and the port of a TCP app.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(60);

/// Serves each connection in a thread of its own.
fn upstream(serve: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Answers every request by `ok`.
fn http(mut stream: TcpStream) {
    let mut buffer = [0; 4_096];
    while matches!(stream.read(&mut buffer), Ok(1..)) {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

/// Greets, then gives every byte back.
fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4_096];
    let mut n = 2;
    buffer[..n].copy_from_slice(b"hi");
    while stream.write_all(&buffer[..n]).is_ok() {
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => n = read,
            _ => return,
        }
    }
}

fn free() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

fn connect(port: u16) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| format!("connect: {e}"))?;
    let wait = Some(Duration::from_secs(20));
    stream.set_read_timeout(wait).map_err(|e| e.to_string())?;
    Ok(stream)
}

/// Whether neither a byte nor the end has come.
fn quiet(stream: &TcpStream) -> bool {
    let look = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0; 1]));
    let _ = stream.set_nonblocking(false);
    matches!(look, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

fn request(mut stream: impl Read + Write) -> Result<(), String> {
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

/// A connection to the TCP app that says a word and gets it back.
pub(crate) struct Talk(TcpStream);

impl Talk {
    pub(crate) fn say(&mut self, word: &[u8]) -> Result<(), String> {
        self.0.write_all(word).map_err(|e| format!("write: {e}"))?;
        self.hear(word)
    }

    fn hear(&mut self, word: &[u8]) -> Result<(), String> {
        let mut got = vec![0; word.len()];
        self.0.read_exact(&mut got).map_err(|e| format!("read: {e}"))?;
        if got == word {
            Ok(())
        } else {
            Err(format!("heard {got:?}"))
        }
    }
}

/// Where clients come, and what they need to know.
#[derive(Clone)]
pub(crate) struct Doors {
    pub(crate) http: u16,
    https: u16,
    pub(crate) tcp: u16,
    tls: Arc<ClientConfig>,
}

impl Doors {
    /// One request on a connection of its own.
    pub(crate) fn plain(&self) -> Result<(), String> {
        request(connect(self.http)?).map_err(|e| format!("http: {e}"))
    }

    /// One request after the other, with pauses, on connections that are kept until the gateway ends them; `served` counts them.
    pub(crate) fn keep(&self, pause: Duration, stop: &AtomicBool, served: &AtomicU64) -> Result<(), String> {
        while !stop.load(Ordering::Relaxed) {
            let mut stream = connect(self.http)?;
            // What was closed between two requests, every client has to expect.
            while quiet(&stream) && !stop.load(Ordering::Relaxed) {
                let request = b"GET / HTTP/1.1\r\nHost: hello.test\r\n\r\n";
                stream.write_all(request).map_err(|e| format!("kept: write: {e}"))?;
                let (mut answer, mut buffer) = (Vec::new(), [0; 4_096]);
                while !answer.ends_with(b"\r\n\r\nok") {
                    match stream.read(&mut buffer) {
                        Ok(n @ 1..) => answer.extend_from_slice(&buffer[..n]),
                        other => return Err(format!("kept, pauses of {pause:?}: {other:?} after {answer:?}")),
                    }
                }
                served.fetch_add(1, Ordering::Relaxed);
                if String::from_utf8_lossy(&answer)
                    .to_ascii_lowercase()
                    .contains("connection: close")
                {
                    break;
                }
                std::thread::park_timeout(pause);
            }
        }
        Ok(())
    }

    /// The same with a handshake.
    pub(crate) fn tls(&self) -> Result<(), String> {
        let name = ServerName::try_from("hello.test").map_err(|e| e.to_string())?;
        let session = ClientConnection::new(Arc::clone(&self.tls), name).map_err(|e| e.to_string())?;
        request(StreamOwned::new(session, connect(self.https)?)).map_err(|e| format!("https: {e}"))
    }

    /// A connection to the TCP app, which has said its greeting.
    pub(crate) fn talk(&self) -> Result<Talk, String> {
        let mut talk = Talk(connect(self.tcp)?);
        talk.hear(b"hi").map_err(|e| format!("tcp: {e}"))?;
        Ok(talk)
    }

    /// One connection to the TCP app.
    pub(crate) fn tcp(&self) -> Result<(), String> {
        self.talk()?.say(b"word").map_err(|e| format!("tcp: {e}"))
    }
}

/// The gateway, whichever process it is at the moment.
pub(crate) struct Gateway {
    dir: tempfile::TempDir,
    pub(crate) doors: Doors,
    pub(crate) first: Child,
}

impl Gateway {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        let key = rcgen::generate_simple_self_signed(vec!["hello.test".to_owned()]).expect("a certificate");
        fs::write(at("hello.crt"), key.cert.pem()).expect("written");
        fs::write(at("hello.key"), key.signing_key.serialize_pem()).expect("written");
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(key.cert.pem().as_bytes()).expect("PEM");
        roots.add(certificate).expect("a certificate");
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let doors = Doors {
            http: free(),
            https: free(),
            tcp: free(),
            tls: Arc::new(tls),
        };
        let registry = format!(
            r#"{{"revision":1,"endpoints":{{"hello":{{"1":{{"c1":"{}"}}}},"db":{{"1":{{"c2":"{}"}}}}}},
                "configs":{{"db":{{"protocol":"tcp","tcp":{{"port":{}}}}}}}}}"#,
            upstream(http),
            upstream(echo),
            doors.tcp
        );
        fs::write(at("registry.json"), registry).expect("written");
        // Started under a name of its own, behind which the file can be exchanged as by an upgrade.
        symlink(env!("CARGO_BIN_EXE_caas"), at("caas")).expect("a link");
        let first = Command::new(at("caas"))
            .args(["gateway", "--domain", "test", "--workers", "2"])
            .args(["--registry", &format!("file:{}", at("registry.json").display())])
            .args(["--listen", &format!("127.0.0.1:{}", doors.http)])
            .args(["--tls-listen", &format!("127.0.0.1:{}", doors.https)])
            .args(["--admin", &format!("127.0.0.1:{}", free())])
            .arg("--certificates-dir")
            .arg(dir.path())
            .arg("--pid-file")
            .arg(at("pid"))
            .env("CAAS_GATEWAY__TCP_PORTS", "1024-65535")
            // All clients have one address.
            .env("CAAS_GATEWAY__REQUESTS_PER_SECOND_PER_CLIENT", "1000000")
            .env("CAAS_GATEWAY__REQUEST_BURST_PER_CLIENT", "1000000")
            .stdout(Stdio::null())
            .stderr(fs::File::create(at("log")).expect("a log"))
            .spawn()
            .expect("it starts");
        let gateway = Self { dir, doors, first };
        gateway.until("it serves", |g| {
            g.pid().is_some() && g.doors.plain().is_ok() && g.doors.tls().is_ok() && g.doors.tcp().is_ok()
        });
        gateway
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        fs::read_to_string(self.file("pid")).ok()?.trim().parse().ok()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    pub(crate) fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < deadline, "not in time: {what}\n{}", self.log());
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().expect("it serves").to_string();
        let sent = Command::new("kill").args([name, &pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// `caas gateway upgrade`.
    pub(crate) fn upgrade(&self) -> Output {
        Command::new(env!("CARGO_BIN_EXE_caas"))
            .args(["gateway", "upgrade", "--pid-file"])
            .arg(self.file("pid"))
            .output()
            .expect("it runs")
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

/// Whether the process has ended.
pub(crate) fn gone(pid: u32) -> bool {
    // A zombie whose parent has not asked yet has ended too.
    fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).map_or(true, |stat| {
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
    })
}
