//! A certificate authority of the run's own, with certificates for the registry, the Docker hosts and the client.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process;

const SCRIPT: &str = r#"
set -e
cd "$1"; net=$2
req() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "$@" 2>/dev/null; }
req -x509 -keyout ca.key -out ca.crt -days 30 -subj /CN=e2e-ca -addext keyUsage=critical,keyCertSign,cRLSign
make() {
  req -keyout $1.key -out $1.csr -subj /CN=$1
  printf 'subjectAltName=%s\nextendedKeyUsage=%s\nkeyUsage=digitalSignature\n' "$2" "$3" >$1.ext
  openssl x509 -req -in $1.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out $1.crt -extfile $1.ext 2>/dev/null
}
make registry "IP:$net.1,IP:127.0.0.1" serverAuth
for i in 1 2 3; do make h$i "IP:$net.1$i" serverAuth; done
make client DNS:scheduler clientAuth
mkdir client
cp ca.crt client/ca.pem; cp client.crt client/cert.pem; cp client.key client/key.pem
"#;

/// Where the run's certificates lie.
#[derive(Debug)]
pub struct Pki {
    /// `ca.crt`, `registry.crt`, `registry.key`, `h1.crt`, …
    pub dir: PathBuf,
}

impl Pki {
    /// Makes all of them in `dir` for the network `net` (`10.77.3`).
    pub async fn make(dir: &Path, net: &str) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        process::run(
            "bash",
            [
                "-c".as_ref(),
                SCRIPT.as_ref(),
                "pki".as_ref(),
                dir.as_os_str(),
                net.as_ref(),
            ],
        )
        .await?;
        Ok(Self { dir: dir.into() })
    }

    /// `ca.pem`, `cert.pem`, `key.pem`: what the scheduler shows to hosts with TLS.
    pub fn client(&self) -> PathBuf {
        self.dir.join("client")
    }
}
