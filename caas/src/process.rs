//! What every role needs of its process: a log, signals, file descriptors, a runtime.

use std::future::Future;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};
use crate::exit::Failure;

/// Libraries that say too much at `info`.
const QUIET: &str = ",sqlx=warn,zookeeper_client=warn,hyper=warn";
/// Threads of the runtime beside the gateway's own workers.
const THREADS: usize = 2;

/// Starts the log to standard error.
pub(crate) fn start_log(log: &Log) -> Result<(), Failure> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter),
        _ => EnvFilter::try_new(format!("{}{QUIET}", log.level)),
    };
    let filter = filter.map_err(|e| Failure::usage(format!("log.level = {:?}: {e}", log.level)))?;
    // At debug it writes whole requests to engines, and with them the tenants' environment.
    let filter = filter.add_directive("bollard=info".parse().expect("a valid, literal directive"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => {
            let colours =
                std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colours).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Runs a role: runtime, as many file descriptors as allowed, and a token that SIGTERM or SIGINT cancels.
pub(crate) fn run_role<F>(role: impl FnOnce(CancellationToken) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::info!(limit, "file descriptors"),
        Err(error) => tracing::warn!(%error, "the limit of file descriptors can't be raised"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(|e| Failure::error(format!("the runtime can't be started: {e}")))?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        listen_for_signals(shutdown.clone())?;
        role(shutdown).await
    })
}

/// Runs a client verb on a runtime of one thread.
pub(crate) fn run_client(verb: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::error(format!("the runtime can't be started: {e}")))?
        .block_on(verb)
}

/// The first SIGTERM or SIGINT asks for an orderly end, the second ends at once.
fn listen_for_signals(shutdown: CancellationToken) -> Result<(), Failure> {
    let broken = |e: std::io::Error| Failure::error(format!("signals can't be received: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(broken)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(broken)?;
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first {
                tracing::info!("shutting down; a second signal ends at once");
                shutdown.cancel();
            }
        }
        tracing::warn!("second signal: ending at once");
        std::process::exit(1);
    });
    Ok(())
}

/// Notifies `reload` at each SIGHUP, which without this would end the process.
pub(crate) fn reload_on_hangup(reload: Arc<Notify>) -> Result<(), Failure> {
    let mut hangup =
        signal(SignalKind::hangup()).map_err(|e| Failure::error(format!("signals can't be received: {e}")))?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP: certificates are read again");
            reload.notify_one();
        }
    });
    Ok(())
}

/// A role's result: its error as a sentence, and an end without having been asked as one too.
pub(crate) fn ended<E: std::fmt::Display>(
    role: &str,
    result: Result<(), E>,
    shutdown: &CancellationToken,
) -> Result<(), Failure> {
    match result {
        Err(error) => Err(Failure::error(format!("{role}: {error}"))),
        Ok(()) if !shutdown.is_cancelled() => Err(Failure::error(format!("{role} ended without being asked"))),
        Ok(()) => Ok(()),
    }
}
