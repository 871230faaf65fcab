//! The gateway beside HAProxy and nginx, in the same run and in turns (A B C A B C), on loopback: CPU time per request, memory,
//! latency. Machines are noisy and differ, so what counts is the ratio within one run. `make bench` runs it.
//!
//! The proxy under test has CPU 1 for itself, load and upstream share CPU 0. Load comes from `wrk` and `h2load`, the
//! upstream is nginx with three ports; all from the distribution's packages.
#![allow(clippy::disallowed_methods, reason = "one thread, which waits for others' programs")]

mod attack;
mod cases;
mod load;
mod proxies;
mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use cases::Case;
use load::Figures;
use proxies::{Proxy, Upstream};

/// Measures the gateway beside its peers.
#[derive(Debug, Parser)]
struct Args {
    /// The caas program.
    #[arg(long, default_value = "target/release/caas")]
    caas: PathBuf,
    /// Another caas program to compare with, such as the one before a change.
    #[arg(long)]
    before: Option<PathBuf>,
    /// Peers: haproxy, nginx; the gateway alone among 10,000 apps that are still, or changing 1,000 times a second; and the program
    /// itself attacked, from eight addresses or from one (attacked, attacked-by-one; `rate` only).
    #[arg(long, value_delimiter = ',', default_value = "haproxy,nginx")]
    peers: Vec<String>,
    /// Cases; all when none is given.
    #[arg(long, value_enum, value_delimiter = ',')]
    cases: Vec<Case>,
    /// Rounds; medians are shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load per case, proxy and round.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Exit with 1 when a promised ratio is missed.
    #[arg(long)]
    check: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    rlimit::increase_nofile_limit(u64::MAX).context("raising the limit of open files")?;
    let cases: Vec<Case> = if args.cases.is_empty() {
        Case::ALL.to_vec()
    } else {
        args.cases.clone()
    };
    let dir = tempfile::tempdir()?;
    let _upstream = Upstream::start(dir.path())?;
    let mut proxies = vec![Proxy::caas("caas", &args.caas)?];
    if let Some(path) = &args.before {
        proxies.push(Proxy::caas("before", path)?);
    }
    for peer in &args.peers {
        proxies.push(Proxy::peer(peer, &args.caas)?);
    }

    let mut results: BTreeMap<(usize, usize), Vec<Figures>> = BTreeMap::new();
    for round in 1..=args.rounds {
        for (c, case) in cases.iter().enumerate() {
            for (p, proxy) in proxies.iter().enumerate() {
                eprintln!("round {round} of {}: {case} {}", args.rounds, proxy.name);
                let figures = case
                    .run(proxy, dir.path(), args.seconds)
                    .with_context(|| format!("{case} with {}", proxy.name))?;
                results.entry((c, p)).or_default().push(figures);
            }
        }
    }

    let mut missed = Vec::new();
    for (c, case) in cases.iter().enumerate() {
        let rows: Vec<(&str, &[Figures])> = proxies
            .iter()
            .enumerate()
            .filter_map(|(p, proxy)| Some((proxy.name.as_str(), results.get(&(c, p))?.as_slice())))
            .collect();
        println!("\n{}\n{}", case.title(), load::table(&rows));
        missed.extend(case.missed(&rows));
    }
    for line in &missed {
        println!("missed: {line}");
    }
    if args.check && !missed.is_empty() {
        bail!("{} promised ratios are missed", missed.len());
    }
    Ok(())
}
