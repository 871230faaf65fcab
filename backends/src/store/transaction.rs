//! One verb, one transaction: begun, tried again with a bound when others were in the way, committed with its
//! events, and looked up when the answer to the commit was lost.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use model::store::StoreError;
use model::{NewEvent, Timestamp};
use rand::RngExt as _;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::database::{Fault, Lease, Pool, values};
use super::revision::Revisions;
use super::rows::{event_insert, placeholders, runs};

/// A verb answers within this time, whatever happened.
const DEADLINE: Duration = Duration::from_secs(5);

/// For how long a lost connection is made anew before the database counts as gone.
const RECONNECT: Duration = Duration::from_secs(3);

/// How often a transaction is tried when others are in the way.
const TRIES: u32 = 12;

/// How a transaction's work ended.
pub(super) enum End<T> {
    /// Keep what was done.
    Commit(T),
    /// Undo it; this is the answer.
    Abandon(T),
}

/// A transaction under way. `'env` is what its closure borrows.
#[derive(Debug)]
pub(super) struct Tx<'env> {
    lease: Lease,
    events: Vec<(NewEvent, Timestamp)>,
    /// An earlier try may have been committed, and left no event by which to tell.
    pub(super) perhaps_done: bool,
    env: PhantomData<&'env ()>,
}

impl Tx<'_> {
    /// Records `event`, just before the commit: so its number is taken as late as can be.
    pub(super) fn record(&mut self, event: NewEvent, at: Timestamp) {
        self.events.push((event, at));
    }
}

impl Deref for Tx<'_> {
    type Target = Lease;
    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl DerefMut for Tx<'_> {
    fn deref_mut(&mut self) -> &mut Lease {
        &mut self.lease
    }
}

/// A commit whose answer was lost.
struct Unanswered<T> {
    /// One of its events, and the mark that its row bears; without events there is nothing to look for.
    event: Option<(u64, i64)>,
    value: T,
    last: u64,
}

/// Where transactions run.
#[derive(Debug)]
pub(super) struct Transactions {
    pub(super) readers: Arc<Pool>,
    pub(super) writers: Arc<Pool>,
    pub(super) revisions: Revisions,
}

/// Waits before the next try: longer each time, and for each a little differently.
fn pause(tries: u32) -> Duration {
    let most = 2_000u64 << tries.min(6);
    Duration::from_micros(rand::rng().random_range(most / 4..most))
}

impl Transactions {
    /// Reads on a connection of its own; a lost connection is made anew within the bound.
    pub(super) async fn read<'env, T: Send>(
        &self,
        work: impl for<'t> Fn(&'t mut Tx<'env>) -> BoxFuture<'t, Result<T, Fault>> + Send + Sync,
    ) -> Result<T, StoreError> {
        let start = Instant::now();
        let once = async || {
            let mut tx = Tx {
                lease: self.readers.lease().await?,
                events: Vec::new(),
                perhaps_done: false,
                env: PhantomData,
            };
            work(&mut tx).await
        };
        for tries in 0.. {
            let fault = match timeout_at(start + DEADLINE, once()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(fault)) => fault,
                Err(_) => break,
            };
            self.rest(fault, tries, start).await?;
        }
        Err(late())
    }

    /// Runs `work` in a transaction.
    pub(super) async fn write<'env, T: Send>(
        &self,
        work: impl for<'t> Fn(&'t mut Tx<'env>) -> BoxFuture<'t, Result<End<T>, Fault>> + Send + Sync,
    ) -> Result<T, StoreError> {
        let start = Instant::now();
        let mut unanswered = None;
        let mut perhaps_done = false;
        for tries in 0.. {
            let attempt = self.attempt(&work, &mut unanswered, &mut perhaps_done);
            let fault = match timeout_at(start + DEADLINE, attempt).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(fault)) => fault,
                Err(_) => break,
            };
            self.rest(fault, tries, start).await?;
        }
        Err(late())
    }

    /// Sleeps before the next try, or says why there is none.
    async fn rest(&self, fault: Fault, tries: u32, start: Instant) -> Result<(), StoreError> {
        match fault {
            Fault::Fatal(error) => return Err(error),
            Fault::Contended(why) | Fault::Duplicate(why) if tries + 1 >= TRIES => return Err(StoreError::Busy(why)),
            Fault::Contended(_) | Fault::Duplicate(_) => {}
            Fault::Lost(why) if start.elapsed() >= RECONNECT => return Err(StoreError::Unavailable(why)),
            Fault::Lost(why) => tracing::debug!(error = %why, "the database connection was lost, trying again"),
        }
        sleep_until((Instant::now() + pause(tries)).min(start + DEADLINE)).await;
        Ok(())
    }

    async fn attempt<'env, T: Send>(
        &self,
        work: &(impl for<'t> Fn(&'t mut Tx<'env>) -> BoxFuture<'t, Result<End<T>, Fault>> + Send + Sync),
        unanswered: &mut Option<Unanswered<T>>,
        perhaps_done: &mut bool,
    ) -> Result<T, Fault> {
        let mut lease = self.writers.lease().await?;
        if let Some(earlier) = unanswered {
            let done = match earlier.event {
                Some((seq, mark)) => was_committed(&mut lease, seq, mark).await?,
                None => {
                    *perhaps_done = true;
                    false
                }
            };
            // Just seen to be there.
            if let Some(earlier) = unanswered.take()
                && done
            {
                self.revisions.committed(earlier.last);
                return Ok(earlier.value);
            }
        }
        lease.begin().await?;
        let mut tx = Tx {
            lease,
            events: Vec::new(),
            perhaps_done: *perhaps_done,
            env: PhantomData,
        };
        let value = match work(&mut tx).await {
            Ok(End::Commit(value)) => value,
            Ok(End::Abandon(value)) => {
                tx.rollback().await?;
                return Ok(value);
            }
            Err(fault) => return Err(undo(tx, fault).await),
        };
        let mark = rand::rng().random::<i64>();
        let events = std::mem::take(&mut tx.events);
        let (first, last) = match flush(&mut tx, &events, mark).await {
            Ok(numbers) => numbers,
            Err(fault) => return Err(undo(tx, fault).await),
        };
        *unanswered = Some(Unanswered {
            event: (!events.is_empty()).then_some((first, mark)),
            value,
            last,
        });
        if let Err(fault) = tx.commit().await {
            if !matches!(fault, Fault::Lost(_)) {
                *unanswered = None;
                return Err(undo(tx, fault).await);
            }
            return Err(fault);
        }
        if !events.is_empty() {
            self.revisions.committed(last);
        }
        unanswered
            .take()
            .map(|done| done.value)
            .ok_or_else(|| Fault::Fatal(StoreError::Corrupt("a committed transaction has no answer".into())))
    }
}

fn late() -> StoreError {
    StoreError::Unavailable(format!("no answer within {} s", DEADLINE.as_secs()))
}

/// Rolls back after `fault`, so that the connection can be used again; a lost one is simply closed.
async fn undo(mut tx: Tx<'_>, fault: Fault) -> Fault {
    if !matches!(fault, Fault::Lost(_)) {
        // If even this fails the connection is closed, and the server rolls back by itself.
        let _ = tx.rollback().await;
    }
    fault
}

/// Writes the events; the numbers of the first and the last.
async fn flush(tx: &mut Tx<'_>, events: &[(NewEvent, Timestamp)], mark: i64) -> Result<(u64, u64), Fault> {
    let mut first = 0;
    let mut last = 0;
    for run in runs(events) {
        let mut all = Vec::with_capacity(run.len() * 9);
        for (event, at) in run {
            all.extend(event_insert(event, *at, mark));
        }
        let sql = format!(
            "INSERT INTO events (at, kind, app, instance, host, operation, actor, message, mark) VALUES {}",
            placeholders(run.len(), 9)
        );
        let done = tx.execute(sql, &all).await?;
        if first == 0 {
            first = done.inserted;
        }
        last = last.max(done.inserted + run.len() as u64 - 1);
    }
    Ok((first, last))
}

/// Whether the transaction that wrote event `seq` with `mark` was committed. Waits for it, should the server still
/// be at it: a locking read does not pass a row whose transaction has not ended.
async fn was_committed(lease: &mut Lease, seq: u64, mark: i64) -> Result<bool, Fault> {
    let sql = format!(
        "SELECT seq FROM events WHERE seq = ? AND mark = ?{}",
        lease.for_update()
    );
    Ok(!lease.rows(sql, &values![seq, mark]).await?.is_empty())
}
