//! TCP routes: a port of this gateway's own leads to an app that does not speak HTTP, or the name in a client's first message
//! of TLS does.
//!
//! [`claims`] says which app has which port, [`ports`] opens them, [`passthrough`] reads names; [`passage`] takes a connection to an endpoint, [`splice`] copies
//! its bytes, [`greeting`] tells the endpoint who the client is, [`metrics`] counts.
//!
//! A port has one listener for all workers, which hands each connection to the worker that has the fewest. A listener per
//! worker (`SO_REUSEPORT`, as for HTTP) would share the port with any program of the same user instead of finding it taken, would
//! cost ports × workers sockets, and leaves long connections to the luck of a hash.

mod claims;
mod greeting;
pub(crate) mod metrics;
pub(crate) mod passage;
pub(crate) mod passthrough;
mod ports;
mod splice;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use model::AppId;
use tokio::sync::mpsc;

use crate::shared::Shared;

pub(crate) use claims::Claims;
pub(crate) use passage::{Call, carry, serve};
pub(crate) use ports::Ports;

/// Connections that may wait for a worker to take them.
const WAITING: usize = 1_024;

/// A connection that is to go to an app.
pub(crate) struct Arrival {
    pub(crate) stream: std::net::TcpStream,
    pub(crate) peer: SocketAddr,
    /// The port at which it came.
    pub(crate) port: u16,
    pub(crate) app: AppId,
    /// Until it counts as open.
    pub(crate) coming: OnTheWay,
}

/// Something that may still bring a worker a connection, until this is dropped: an open port, a connection that no worker counts yet. A
/// worker that drains waits for it.
pub(crate) struct OnTheWay(Arc<Shared>);

impl OnTheWay {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.tcp.coming.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.0.tcp.coming.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The way to a worker, and the worker's end of it.
pub(crate) fn handover() -> (mpsc::Sender<Arrival>, mpsc::Receiver<Arrival>) {
    mpsc::channel(WAITING)
}
