//! How a gateway's sockets pass from one process to the next without a refused connection: both hold the same sockets for a
//! while, the new one accepts once it has a route table, and only then the old one stops accepting and drains.

use tokio_util::sync::CancellationToken;

/// The gateway's part in a hand-over of its sockets, told and heard by the caller, who moves them.
#[derive(Clone, Debug, Default)]
pub struct Succession {
    /// The sockets came from a process that still serves: nothing is accepted before there is a route table.
    pub inherited: bool,
    /// Cancelled by the gateway when it serves.
    pub serving: CancellationToken,
    /// Cancelled by the caller when another process serves these sockets: this one accepts no more, at once, and drains.
    pub handed_over: CancellationToken,
}
