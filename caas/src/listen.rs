//! Listening sockets, owned by the binary and handed to the roles.

use std::net::{SocketAddr, TcpListener};

use gateway::listen;

use crate::exit::Failure;

/// One nonblocking listener at `address`. `setting` names what changes the address, for the error.
pub(crate) fn one(address: SocketAddr, setting: &str) -> Result<TcpListener, Failure> {
    listen(address, false).map_err(|e| refused(address, setting, &e))
}

/// `count` nonblocking listeners at the same address, between which the kernel spreads connections. With port 0 the
/// first one's port is taken for all.
pub(crate) fn many(address: SocketAddr, count: usize, setting: &str) -> Result<Vec<TcpListener>, Failure> {
    // With SO_REUSEPORT a second program of the same user would silently share the port: without it, it is refused.
    let probe = one(address, setting)?;
    let address = probe.local_addr().map_err(|e| refused(address, setting, &e))?;
    drop(probe);
    (0..count.max(1))
        .map(|_| listen(address, true).map_err(|e| refused(address, setting, &e)))
        .collect()
}

fn refused(address: SocketAddr, setting: &str, error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => Failure::error(format!(
            "port {} is taken by another program: choose another address for {address} with {setting}",
            address.port()
        )),
        std::io::ErrorKind::AddrNotAvailable => Failure::error(format!(
            "{} is no address of this machine: choose another with {setting}",
            address.ip()
        )),
        std::io::ErrorKind::PermissionDenied => Failure::error(format!(
            "port {} needs more rights (CAP_NET_BIND_SERVICE), or choose another with {setting}",
            address.port()
        )),
        _ => Failure::error(format!("{address} can't be listened on: {error} ({setting})")),
    }
}

/// A listener for tokio.
pub(crate) fn for_tokio(listener: TcpListener) -> Result<tokio::net::TcpListener, Failure> {
    tokio::net::TcpListener::from_std(listener).map_err(|e| Failure::error(format!("a listener can't be used: {e}")))
}

/// The address at which a listener is reached.
pub(crate) fn address_of(listener: &TcpListener) -> Result<SocketAddr, Failure> {
    listener
        .local_addr()
        .map_err(|e| Failure::error(format!("a listener has no address: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_one_port_and_others_are_refused() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listeners = many(any, 3, "--listen").expect("bound");
        let ports: Vec<u16> = listeners
            .iter()
            .map(|l| l.local_addr().expect("bound").port())
            .collect();
        assert!(ports[0] != 0 && ports.iter().all(|p| *p == ports[0]), "{ports:?}");
        let taken = SocketAddr::from(([127, 0, 0, 1], ports[0]));
        let failure = many(taken, 2, "--listen").expect_err("taken");
        assert!(
            failure.message.contains(&format!("port {} is taken", ports[0])),
            "{failure}"
        );
        assert!(failure.message.contains("--listen"), "{failure}");
        assert!(one(taken, "--admin").is_err());
    }

    #[test]
    fn foreign_addresses_are_named() {
        let failure = one(SocketAddr::from(([192, 0, 2, 1], 0)), "--listen").expect_err("not ours");
        assert!(failure.message.contains("192.0.2.1"), "{failure}");
    }
}
