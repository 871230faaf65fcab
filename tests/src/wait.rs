//! Waiting: always for something, never for a time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Looks at `probe` until it gives a value, at most for `limit`; how long it took comes with the value. The error of the
/// last look is shown when time is up.
pub async fn until<T, E: Debug>(
    what: &str,
    limit: Duration,
    probe: impl AsyncFnMut() -> Result<T, E>,
) -> Result<(T, Duration)> {
    until_every(POLL, what, limit, probe).await
}

/// The same with a time between two looks, where a look costs something.
pub async fn until_every<T, E: Debug>(
    poll: Duration,
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> Result<(T, Duration)> {
    let began = Instant::now();
    loop {
        let look = tokio::time::timeout(limit.saturating_sub(began.elapsed()).max(poll), probe()).await;
        match look {
            Ok(Ok(value)) => return Ok((value, began.elapsed())),
            Ok(Err(error)) if began.elapsed() >= limit => bail!("{what}: not within {limit:?}; last seen: {error:?}"),
            Err(_) => bail!("{what}: not within {limit:?}; the last look did not end"),
            Ok(Err(_)) => tokio::time::sleep(poll).await,
        }
    }
}

/// Makes sure that `probe` holds the whole time of `span`.
pub async fn throughout<E: Debug>(
    what: &str,
    span: Duration,
    mut probe: impl AsyncFnMut() -> Result<(), E>,
) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < span {
        if let Err(error) = probe().await {
            bail!("{what}: broken after {:?}: {error:?}", began.elapsed());
        }
        tokio::time::sleep(POLL * 5).await;
    }
    Ok(())
}

/// `Ok` if `condition`, else what was seen instead.
pub fn expect(condition: bool, seen: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { bail!("{}", seen()) }
}
