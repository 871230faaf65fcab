//! The loop as a whole, on a real SQLite store and engines in memory; registry-sync's moves are played by a small
//! driver.

mod canary;
mod faults;
mod lifecycle;
mod plans;
mod world;
