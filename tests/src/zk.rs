//! A ZooKeeper client of our own, just large enough to read the tree as a stranger would: connect, children, data.
//! It shares nothing with the product's client, so that a mistake there can't hide itself here.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const GET_DATA: i32 = 4;
const GET_CHILDREN: i32 = 8;
const NO_NODE: i32 = -101;

/// A session.
#[derive(Debug)]
pub struct Zk {
    stream: TcpStream,
    xid: i32,
}

impl Zk {
    /// Opens a session with the server at 127.0.0.1:`port`.
    pub async fn connect(port: u16) -> Result<Self> {
        // A server that takes part in an election accepts connections and says nothing.
        tokio::time::timeout(Duration::from_secs(2), Self::open(port)).await?
    }

    async fn open(port: u16) -> Result<Self> {
        let mut zk = Self {
            stream: TcpStream::connect(("127.0.0.1", port)).await?,
            xid: 0,
        };
        let mut hello = Vec::new();
        hello.extend(0i32.to_be_bytes()); // protocol version
        hello.extend(0i64.to_be_bytes()); // last zxid seen
        hello.extend(10_000i32.to_be_bytes()); // session time-out, ms
        hello.extend(0i64.to_be_bytes()); // session id
        hello.extend(16i32.to_be_bytes()); // password
        hello.extend([0; 16]);
        zk.send(&hello).await?;
        zk.receive().await?;
        Ok(zk)
    }

    async fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.stream
            .write_all(&i32::try_from(frame.len())?.to_be_bytes())
            .await?;
        Ok(self.stream.write_all(frame).await?)
    }

    async fn receive(&mut self) -> Result<Vec<u8>> {
        let read = async {
            let length = self.stream.read_i32().await?;
            let mut frame = vec![0; usize::try_from(length)?];
            self.stream.read_exact(&mut frame).await?;
            anyhow::Ok(frame)
        };
        tokio::time::timeout(Duration::from_secs(10), read).await?
    }

    /// One request about `path`; the answer's body, `None` if there is no such node.
    async fn request(&mut self, kind: i32, path: &str) -> Result<Option<Vec<u8>>> {
        self.xid += 1;
        let mut frame = Vec::new();
        frame.extend(self.xid.to_be_bytes());
        frame.extend(kind.to_be_bytes());
        frame.extend(i32::try_from(path.len())?.to_be_bytes());
        frame.extend(path.as_bytes());
        frame.push(0); // no watch
        self.send(&frame).await?;
        let answer = self.receive().await?;
        if answer.len() < 16 {
            bail!("short answer");
        }
        match i32::from_be_bytes(answer[12..16].try_into()?) {
            0 => Ok(Some(answer[16..].to_vec())),
            NO_NODE => Ok(None),
            code => bail!("{path}: ZooKeeper error {code}"),
        }
    }

    /// Names of the children of `path`; none if it does not exist.
    pub async fn children(&mut self, path: &str) -> Result<Vec<String>> {
        let Some(body) = self.request(GET_CHILDREN, path).await? else {
            return Ok(Vec::new());
        };
        let mut rest = &body[..];
        let count = take_i32(&mut rest)?;
        (0..count)
            .map(|_| Ok(String::from_utf8(take_bytes(&mut rest)?)?))
            .collect()
    }

    /// The data of `path`.
    pub async fn data(&mut self, path: &str) -> Result<Option<String>> {
        let Some(body) = self.request(GET_DATA, path).await? else {
            return Ok(None);
        };
        Ok(Some(String::from_utf8(take_bytes(&mut &body[..])?)?))
    }

    /// All of `/caas/service/address`: `app/version/container` → `hostIP:port`.
    pub async fn addresses(&mut self) -> Result<BTreeMap<String, String>> {
        let base = "/caas/service/address";
        let mut found = BTreeMap::new();
        for app in self.children(base).await? {
            for version in self.children(&format!("{base}/{app}")).await? {
                for container in self.children(&format!("{base}/{app}/{version}")).await? {
                    let key = format!("{app}/{version}/{container}");
                    if let Some(data) = self.data(&format!("{base}/{key}")).await? {
                        found.insert(key, data);
                    }
                }
            }
        }
        Ok(found)
    }
}

fn take_i32(rest: &mut &[u8]) -> Result<i32> {
    let Some((head, tail)) = rest.split_first_chunk::<4>() else {
        bail!("short answer")
    };
    *rest = tail;
    Ok(i32::from_be_bytes(*head))
}

fn take_bytes(rest: &mut &[u8]) -> Result<Vec<u8>> {
    let length = usize::try_from(take_i32(rest)?.max(0))?;
    let Some((bytes, tail)) = rest.split_at_checked(length) else {
        bail!("short answer")
    };
    *rest = tail;
    Ok(bytes.to_vec())
}
