//! How a gateway's sockets pass from one process to the next without a refused connection: both hold the same sockets for a
//! while, the new one accepts once it has a route table, and only then the old one stops accepting and drains.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The gateway's part in a hand-over of its sockets, told and heard by the caller, who moves them.
#[derive(Clone, Debug, Default)]
pub struct Succession {
    /// The sockets came from a process that still serves: nothing is accepted before there is a route table.
    pub inherited: bool,
    /// The ports of TCP apps that this process has open.
    pub ports: OpenPorts,
    /// Cancelled by the gateway when it serves.
    pub serving: CancellationToken,
    /// Cancelled by the caller when another process serves these sockets: this one accepts no more, at once, and drains.
    pub handed_over: CancellationToken,
}

/// The ports of TCP apps that are open at the moment. It keeps none of them open.
#[derive(Clone, Debug, Default)]
pub struct OpenPorts(Arc<Mutex<BTreeMap<u16, Weak<TcpListener>>>>);

impl OpenPorts {
    /// A second descriptor of each.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        let ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = ports.values().filter_map(Weak::upgrade);
        open.map(|listener| listener.as_fd().try_clone_to_owned()).collect()
    }

    pub(crate) fn add(&self, port: u16, listener: &Arc<TcpListener>) {
        let mut ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ports.retain(|_, listener| listener.strong_count() > 0);
        ports.insert(port, Arc::downgrade(listener));
    }
}
