//! Hostile and odd messages, sent to the real gateway: the program that users run, as a process of its own, which has read a
//! registry that the test wrote and has its own defaults unless a family of cases says otherwise.
//!
//! | corpus | what it holds |
//! |---|---|
//! | [`requests`] | requests that clients should not send |
//! | [`answers`] | answers that containers must not send |
//! | [`upgrades`] | handshakes for other protocols, and what apps answer to them |
//!
//! Each is sent by several clients at once. What came of it is seen by the clients, by the apps, and at the gateway's admin port; and
//! at the end of each the process is still there, answers, and has not panicked ([`gateway::Gateway::harm`]).

#![allow(clippy::unwrap_used)]

mod answers;
mod gateway;
#[allow(dead_code, reason = "the gateway's own tests use more of it")]
#[path = "../../../gateway/tests/it/http2_frames.rs"]
mod http2_frames;
#[allow(dead_code, reason = "the gateway's own tests use more of it")]
#[path = "../../../gateway/tests/it/peers.rs"]
mod peers;
mod requests;
mod upgrades;
