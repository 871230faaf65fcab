//! A local authority: Let's Encrypt's own test server, with a name server that leads every name to this machine.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tempfile::TempDir;

/// Longest wait for it to listen.
const LIMIT: Duration = Duration::from_secs(20);

/// How it is to be.
#[derive(Default)]
pub(crate) struct Wish {
    /// Where it looks for http-01 and for tls-alpn-01.
    pub(crate) http: u16,
    pub(crate) tls: u16,
    /// Seconds for which its certificates hold; 0: years.
    pub(crate) validity_s: u64,
    /// It takes only accounts that are bound to the external one `kid-1`.
    pub(crate) external: bool,
}

/// The external account's key, as base64url.
pub(crate) const EXTERNAL_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

pub(crate) struct Pebble {
    pub(crate) directory: String,
    /// PEM of the authority that vouches for its own HTTPS.
    pub(crate) ca: PathBuf,
    management: String,
    children: Vec<Child>,
    dir: TempDir,
}

pub(crate) fn free() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Whether the tests can run; `false` is told, or fails where everything must be there.
pub(crate) fn is_installed() -> bool {
    let there = |name: &str| Path::new("/usr/bin").join(name).exists();
    if there("pebble") && there("pebble-challtestsrv") {
        return true;
    }
    assert!(
        std::env::var("CAAS_TEST_REQUIRE_ALL").as_deref() != Ok("1"),
        "pebble is not installed"
    );
    eprintln!("skipped: pebble is not installed");
    false
}

impl Pebble {
    pub(crate) async fn start(wish: &Wish) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let own = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
        fs::write(at("ca.pem"), ca.pem()).unwrap();
        fs::write(at("cert.pem"), own.pem()).unwrap();
        fs::write(at("key.pem"), key.serialize_pem()).unwrap();
        let (listen, management) = (free(), free());
        let mut pebble = json!({
            "listenAddress": format!("127.0.0.1:{listen}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": at("cert.pem"),
            "privateKey": at("key.pem"),
            "httpPort": wish.http,
            "tlsPort": wish.tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": wish.external,
        });
        if wish.external {
            pebble["externalAccountMACKeys"] = json!({ "kid-1": EXTERNAL_KEY });
        }
        if wish.validity_s > 0 {
            pebble["certificateValidityPeriod"] = json!(wish.validity_s);
        }
        fs::write(at("config.json"), json!({ "pebble": pebble }).to_string()).unwrap();
        let dns = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = |name: &str| Stdio::from(fs::File::create(at(name)).unwrap());
        // Names lead to this machine by IPv4 only: nothing listens at ::1.
        let names = Command::new("pebble-challtestsrv")
            .args([
                "-dns01",
                &dns.to_string(),
                "-defaultIPv6",
                "",
                "-http01",
                "",
                "-https01",
                "",
            ])
            .args(["-tlsalpn01", "", "-management", &format!("127.0.0.1:{}", free())])
            .stdout(log("names.log"))
            .stderr(log("names.err"))
            .spawn()
            .unwrap();
        let authority = Command::new("pebble")
            .arg("-config")
            .arg(at("config.json"))
            .args(["-dnsserver", &dns.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            // Every order asks for proof anew.
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdout(log("pebble.log"))
            .stderr(log("pebble.err"))
            .spawn()
            .unwrap();
        let pebble = Self {
            directory: format!("https://localhost:{listen}/dir"),
            ca: at("ca.pem"),
            management: format!("https://localhost:{management}"),
            children: vec![names, authority],
            dir,
        };
        let deadline = Instant::now() + LIMIT;
        for port in [listen, management] {
            while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_err() {
                assert!(Instant::now() < deadline, "pebble does not listen: {}", pebble.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        pebble
    }

    /// PEM of the root of what it issues.
    pub(crate) async fn root(&self) -> Vec<u8> {
        let ca = reqwest::Certificate::from_pem(&fs::read(&self.ca).unwrap()).unwrap();
        let client = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
        let answer = client.get(format!("{}/roots/0", self.management)).send().await.unwrap();
        answer.bytes().await.unwrap().to_vec()
    }

    pub(crate) fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        format!("{}{}", read("pebble.log"), read("pebble.err"))
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
