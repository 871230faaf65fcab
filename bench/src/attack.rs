//! The attackers of a measurement (`bin/attackers.rs`), a program of its own beside the load.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::proxies::{HOST, PLAIN};

/// Most connections with heads that never end.
const SLOW: u64 = 20_000;
/// Files that programs need for other things.
const OTHERS: u64 = 1_000;

/// Attackers at work; they leave when this is dropped.
#[derive(Debug)]
pub(crate) struct Attackers {
    child: Child,
    says: BufReader<ChildStdout>,
    /// Slow connections that there were when all were at it.
    pub(crate) open: f64,
}

impl Attackers {
    /// Starts them, from so many addresses, and waits until all are at it. As many as promised, or as files are allowed here.
    pub(crate) fn start(addresses: u8) -> Result<Self> {
        let slow = rlimit::Resource::NOFILE.get_soft()?.saturating_sub(OTHERS).min(SLOW);
        let program = std::env::current_exe()?.with_file_name("attackers");
        // On the load's CPU, but after the load: what they take from it would look like the gateway's doing.
        let mut child = Command::new("taskset")
            .args(["-c", "0", "nice", "-n", "19"])
            .arg(program)
            .args(["--at", &format!("127.0.0.1:{PLAIN}"), "--host", HOST])
            .args(["--slow", &slow.to_string(), "--addresses", &addresses.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the attackers")?;
        let says = BufReader::new(child.stdout.take().context("their output")?);
        let mut attackers = Self { child, says, open: 0.0 };
        let said = attackers.line()?;
        let open = said.strip_prefix("open ").and_then(|count| count.parse().ok());
        attackers.open = open.with_context(|| format!("the attackers say {said:?}"))?;
        Ok(attackers)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Ends them, and tells what became of them.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        eprintln!("attackers: {}", self.line()?);
        Ok(())
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
