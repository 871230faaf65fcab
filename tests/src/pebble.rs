//! A certificate authority that speaks ACME: Let's Encrypt's test server, with a name server that leads every name to this
//! machine. It runs only while a scenario needs it.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::Platform;
use crate::process::{self, Daemon};

/// The authority and its name server; what is left of them ends with the run.
#[derive(Debug)]
pub struct Pebble {
    management: u16,
    ca: String,
    daemons: [Daemon; 2],
}

impl Pebble {
    /// Starts it where the platform's schedulers look for it; it proves domains at the platform's first gateway.
    pub async fn start(p: &Platform) -> Result<Self> {
        let dir = p.dir.join("pebble");
        fs::create_dir_all(&dir)?;
        let pki = &p.fleet.pki.dir;
        let (names, management) = (process::free_port("127.0.0.1")?, process::free_port("127.0.0.1")?);
        let config = json!({"pebble": {
            "listenAddress": p.authority,
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": pki.join("registry.crt"),
            "privateKey": pki.join("registry.key"),
            "httpPort": p.gateways[0].port(),
            "tlsPort": p.tls[0].port(),
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        fs::write(dir.join("config.json"), config.to_string())?;
        let init = p.fleet.keeper.init;
        let names = format!("127.0.0.1:{names}");
        let other = format!("127.0.0.1:{}", process::free_port("127.0.0.1")?);
        // Empty: off. Names have no IPv6 address.
        let args = [
            "pebble-challtestsrv",
            "-dns01",
            &names,
            "-defaultIPv6",
            "",
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
            "-management",
            &other,
        ];
        let resolver = Daemon::start("pebble-challtestsrv", init, "mp", args, &[], &dir.join("names.log")).await?;
        let config = dir.join("config.json").to_string_lossy().into_owned();
        let args = ["pebble", "-config", &config, "-dnsserver", &names];
        let env = [("PEBBLE_VA_NOSLEEP".to_owned(), "1".to_owned())];
        let authority = Daemon::start("pebble", init, "mp", args, &env, &dir.join("log")).await?;
        for (daemon, at) in [(&resolver, other), (&authority, p.authority.to_string())] {
            let open = async || tokio::net::TcpStream::connect(&at).await.map(drop);
            daemon.ready(Duration::from_secs(20), open).await?;
        }
        Ok(Self {
            management,
            ca: pki.join("ca.crt").to_string_lossy().into_owned(),
            daemons: [resolver, authority],
        })
    }

    /// PEM of the root of what it issues.
    pub async fn root(&self) -> Result<String> {
        let url = format!("https://127.0.0.1:{}/roots/0", self.management);
        process::run("curl", ["-sSf", "--max-time", "5", "--cacert", &self.ca, &url]).await
    }

    /// Ends it.
    pub async fn end(self) -> Result<()> {
        for daemon in &self.daemons {
            daemon.kill().await?;
        }
        Ok(())
    }
}

/// Where the schedulers of a platform look for it, as their configuration has it.
pub(crate) fn setting(at: SocketAddr, root: &str) -> String {
    format!(
        "[acme]\ndirectory = \"https://{at}/dir\"\nterms_agreed = true\ncontacts = [\"ops@e2e.test\"]\n\
         root_certificate_file = {root:?}\n\n"
    )
}
