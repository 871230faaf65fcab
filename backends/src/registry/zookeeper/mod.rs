//! The registry in ZooKeeper.
//!
//! ```text
//! /caas/service/address/{appId}/{version}/{containerId} = {hostIP}:{port}
//! /caas/service/load/{appId}/{containerId}              = JSON Load
//! /caas/service/config/{appId}                          = JSON AppConfig
//! /caas/service/revision                                = touched by every write, see below
//! /caas/gateways/{gatewayId}         (ephemeral)        = JSON Acknowledgement
//! /caas/locks/registry-sync/{session}-{sequence}  (ephemeral) = the queue for being the writer
//! ```
//!
//! # What a revision is
//! A gateway acknowledges a revision R only when everything up to R has reached it. Watch events carry no
//! transaction id before ZooKeeper 3.9, and a deletion leaves no node whose `Stat` could tell one. So **every write
//! also sets `/caas/service/revision` in the same transaction**; its `mzxid` is the id of that transaction, and that is
//! the revision: [`ZooKeeperWriter`] gets it from the reply, a reader from reading the node.
//!
//! A reader reports R only when it holds everything up to R. This rests on two promises of ZooKeeper: on one
//! connection an event is sent before any reply that shows a state in which it has happened, and requests of one session
//! are served in order. The reader works in rounds: (1) take all waiting events, each meaning only "this path
//! changed"; (2) read the revision, then those paths; (3) look for further events. When there are none, no transaction up
//! to the revision read in (2) can have touched a path that was not read in (2) or before, and each was read at that
//! state or a later one: R is complete. When there are some, the next round reads them, and then the revision of the
//! round before is complete at least. A snapshot reads the revision first too, with the watches already set.
//!
//! # What this must never do
//! Trust a watch over a reconnect (the client library loses it: every disconnect throws the client away and builds
//! everything anew), trust the type of an event, empty the picture because a read failed, or write without the
//! leader's lock being checked in the same transaction.

mod client;
mod outbox;
mod plan;
mod reader;
mod session;
mod tree;
mod view;
mod writer;

use std::time::Duration;

use model::registry::RegistryError;

pub use reader::ZooKeeperReader;
pub use writer::ZooKeeperWriter;

/// How the registry talks to ZooKeeper.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// After this long without contact the server forgets a session: a gateway's acknowledgement, the writer's
    /// lock. The server may round it up to 2 of its ticks. Default 10 s.
    pub session_timeout: Duration,
    /// How long one call may take. Default 5 s.
    pub call_timeout: Duration,
    /// How often a reader compares its picture with all of ZooKeeper, ± 10 %. Default 5 min.
    pub resync_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            session_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(5),
            resync_every: Duration::from_secs(300),
        }
    }
}

/// Where ZooKeeper is: its servers, and the node under which everything lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    servers: String,
    chroot: String,
}

/// Most servers in an address.
const MAX_SERVERS: usize = 32;

impl Address {
    /// Reads `zk://host:port,host:port[/chroot]`; the port may be left out (2181).
    ///
    /// # Errors
    /// [`RegistryError::Refused`], saying what is wrong with which part.
    pub fn parse(url: &str) -> Result<Self, RegistryError> {
        let wrong = |what: String| {
            RegistryError::Refused(format!(
                "the registry URL {url:?} {what}; it must be zk://host:port,host:port[/chroot]"
            ))
        };
        let Some(rest) = url.strip_prefix("zk://") else {
            return Err(RegistryError::Refused(format!(
                "the registry URL {url:?} is of no known kind: it must be zk://host:port,host:port[/chroot] or file:PATH"
            )));
        };
        let (hosts, chroot) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if hosts.is_empty() {
            return Err(wrong("names no host".into()));
        }
        let mut servers = Vec::new();
        for host in hosts.split(',') {
            servers.push(server(host).ok_or_else(|| wrong(format!("names the bad host {host:?}")))?);
        }
        if servers.len() > MAX_SERVERS {
            return Err(wrong(format!("names more than {MAX_SERVERS} hosts")));
        }
        let chroot = chroot.strip_suffix('/').unwrap_or(chroot);
        let sound = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(|b| b.is_ascii_graphic());
        if chroot.len() > 256 || !(chroot.is_empty() || chroot[1..].split('/').all(sound)) {
            return Err(wrong(format!("names the bad chroot {chroot:?}")));
        }
        Ok(Self {
            servers: servers.join(","),
            chroot: chroot.to_owned(),
        })
    }
}

/// `host[:port]` with the port filled in.
fn server(text: &str) -> Option<String> {
    let (host, port) = if let Some(inner) = text.strip_prefix('[') {
        let (host, port) = inner.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (
            format!("[{host}]"),
            port.strip_prefix(':').or(port.is_empty().then_some("2181"))?,
        )
    } else {
        let (host, port) = text.split_once(':').unwrap_or((text, "2181"));
        let sound = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if host.is_empty() || host.len() > 253 || !sound {
            return None;
        }
        (host.to_owned(), port)
    };
    let port: u16 = port.parse().ok().filter(|p| *p != 0)?;
    Some(format!("{host}:{port}"))
}

/// Whether `gateway` may name a node.
pub(super) fn check_gateway_id(gateway: &str) -> Result<(), RegistryError> {
    let sound = (1..=128).contains(&gateway.len())
        && gateway.starts_with(|c: char| c.is_ascii_alphanumeric())
        && gateway
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if sound {
        return Ok(());
    }
    let shown: String = gateway.chars().take(80).collect();
    Err(RegistryError::Refused(format!(
        "{shown:?} is not a gateway id: it must be 1 to 128 of A-Z, a-z, 0-9, '_', '.' and '-', starting with a letter or a digit"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_zookeeper_addresses() {
        let parsed = Address::parse("zk://a.b:1,10.0.0.1,[::1]:3/x/y").expect("sound");
        assert_eq!(parsed.servers, "a.b:1,10.0.0.1:2181,[::1]:3");
        assert_eq!(parsed.chroot, "/x/y");
        assert_eq!(Address::parse("zk://a/").expect("sound").chroot, "");
        for (bad, said) in [
            ("zk://", "names no host"),
            ("zk:///x", "names no host"),
            ("zk://a,,b", "bad host \"\""),
            ("zk://a:0", "bad host \"a:0\""),
            ("zk://a:99999", "bad host"),
            ("zk://u:p@a:1", "bad host"),
            ("zk://a b", "bad host"),
            ("zk://[::1", "bad host"),
            ("zk://a//x", "bad chroot"),
            ("zk://a/../x", "bad chroot"),
            ("http://a", "no known kind"),
        ] {
            let error = Address::parse(bad).expect_err(bad).to_string();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }

    #[test]
    fn registry_gateway_ids() {
        assert!(check_gateway_id("gw-1.example_x").is_ok());
        for bad in ["", "..", "a/b", "-a", "a b", &"a".repeat(129)] {
            assert!(check_gateway_id(bad).is_err(), "{bad:?}");
        }
    }
}
