//! The two databases behind one face: connections, values, rows and what their errors mean.
//!
//! Queries are written once, with `?` placeholders that both dialects understand; what differs is here and in
//! [`super::mysql`] and [`super::sqlite`]. Nothing here knows what the tables mean.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::store::StoreError;
use model::{AppId, ContainerId, HostName, InstanceId, OperationId, TenantId, Timestamp, Version};
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{mysql, sqlite};

/// A connection that lay idle for longer is tried before it is used again.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// Why a statement or transaction did not do what was asked.
#[derive(Debug)]
pub(super) enum Fault {
    /// Others were in the way (deadlock, lock wait, busy, snapshot conflict): nothing was changed.
    Contended(String),
    /// The connection could not be made, or broke.
    Lost(String),
    /// A row with this key exists.
    Duplicate(String),
    /// Trying again will not help.
    Fatal(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Fatal(error)
    }
}

impl From<model::InvalidTransition> for Fault {
    fn from(error: model::InvalidTransition) -> Self {
        Self::Fatal(error.into())
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(refusal) = &error else {
            return match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::BeginFailed => Self::Lost(error.to_string()),
                sqlx::Error::Configuration(why) => {
                    Self::Fatal(StoreError::Unavailable(mysql::unusable(&why.to_string())))
                }
                other => Self::Fatal(StoreError::Corrupt(other.to_string())),
            };
        };
        let text = refusal.message().to_owned();
        if let Some(error) = refusal.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
            mysql::fault(error.number(), text)
        } else {
            let code = refusal.code().and_then(|c| c.parse().ok()).unwrap_or(0);
            sqlite::fault(code, text)
        }
    }
}

/// A value bound to a placeholder.
#[derive(Debug)]
pub(super) enum Value<'a> {
    /// Whole numbers, flags, points in time.
    Int(i64),
    /// Text.
    Text(Cow<'a, str>),
    /// Nothing.
    Null,
}

macro_rules! value_from_ints {
    ($($int:ty),*) => {$(
        impl From<$int> for Value<'_> {
            fn from(n: $int) -> Self {
                Self::Int(i64::from(n))
            }
        }
    )*};
}
value_from_ints!(i64, u32, u16, bool);

impl From<u64> for Value<'_> {
    fn from(n: u64) -> Self {
        Self::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

impl From<Timestamp> for Value<'_> {
    fn from(t: Timestamp) -> Self {
        Self::Int(t.as_millis())
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

macro_rules! value_from_ids {
    ($($id:ty),*) => {$(
        impl<'a> From<&'a $id> for Value<'a> {
            fn from(id: &'a $id) -> Self {
                Self::Text(Cow::Borrowed(id.as_str()))
            }
        }
    )*};
}
value_from_ids!(AppId, ContainerId, HostName, InstanceId, OperationId, TenantId, Version);

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The values of a statement, in the order of its placeholders.
macro_rules! values {
    ($($value:expr),* $(,)?) => {
        [$($crate::store::database::Value::from($value)),*]
    };
}
pub(super) use values;

/// A row as read.
#[derive(Debug)]
pub(super) enum Row {
    /// From MySQL.
    MySql(MySqlRow),
    /// From SQLite.
    Sqlite(SqliteRow),
}

impl Row {
    /// The whole number in column `at`, if it is not null.
    pub(super) fn int(&self, at: usize) -> Result<Option<i64>, Fault> {
        Ok(match self {
            Self::MySql(row) => row.try_get(at)?,
            Self::Sqlite(row) => row.try_get(at)?,
        })
    }

    /// The text in column `at`, if it is not null.
    pub(super) fn text(&self, at: usize) -> Result<Option<String>, Fault> {
        Ok(match self {
            Self::MySql(row) => row.try_get(at)?,
            Self::Sqlite(row) => row.try_get(at)?,
        })
    }
}

/// What a statement changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// Rows that it matched (also those that it left as they were).
    pub(super) rows: u64,
    /// The number that the database gave to the inserted row, the first of several.
    pub(super) inserted: u64,
}

/// How a new connection is made.
#[derive(Debug)]
pub(super) enum Connector {
    /// To a MySQL or MariaDB server.
    MySql(MySqlConnectOptions),
    /// To a SQLite file.
    Sqlite(SqliteConnectOptions),
}

#[derive(Debug)]
pub(super) enum Connection {
    MySql(MySqlConnection),
    Sqlite(SqliteConnection),
}

/// Binds `values` and hands the query to `$run`, for either database.
macro_rules! bound {
    ($sql:expr, $values:expr, $connection:expr, $run:ident) => {{
        let mut query = sqlx::query(AssertSqlSafe($sql));
        for value in $values {
            query = match value {
                Value::Int(n) => query.bind(*n),
                Value::Text(text) => query.bind(text.as_ref()),
                Value::Null => query.bind(None::<i64>),
            };
        }
        query.$run($connection).await?
    }};
}

impl Connection {
    pub(super) async fn execute(&mut self, sql: Cow<'static, str>, values: &[Value<'_>]) -> Result<Done, Fault> {
        Ok(match self {
            Self::MySql(connection) => {
                let done = bound!(sql, values, connection, execute);
                Done {
                    rows: done.rows_affected(),
                    inserted: done.last_insert_id(),
                }
            }
            Self::Sqlite(connection) => {
                let done = bound!(sql, values, connection, execute);
                let rows = done.rows_affected();
                // SQLite tells the last of several.
                let last = u64::try_from(done.last_insert_rowid()).unwrap_or(0);
                Done {
                    rows,
                    inserted: (last + 1).saturating_sub(rows),
                }
            }
        })
    }

    async fn rows(&mut self, sql: Cow<'static, str>, values: &[Value<'_>]) -> Result<Vec<Row>, Fault> {
        Ok(match self {
            Self::MySql(connection) => {
                let rows = bound!(sql, values, connection, fetch_all);
                rows.into_iter().map(Row::MySql).collect()
            }
            Self::Sqlite(connection) => {
                let rows = bound!(sql, values, connection, fetch_all);
                rows.into_iter().map(Row::Sqlite).collect()
            }
        })
    }

    /// A statement that is not prepared: `BEGIN`, `COMMIT`, settings.
    pub(super) async fn command(&mut self, sql: &'static str) -> Result<(), Fault> {
        match self {
            Self::MySql(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop)?,
            Self::Sqlite(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop)?,
        }
        Ok(())
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::MySql(connection) => connection.ping().await,
            Self::Sqlite(connection) => connection.ping().await,
        }
    }
}

impl Connector {
    pub(super) async fn connect(&self) -> Result<Connection, Fault> {
        Ok(match self {
            Self::MySql(options) => mysql::connect(options).await?,
            Self::Sqlite(options) => Connection::Sqlite(SqliteConnection::connect_with(options).await?),
        })
    }

    /// How a transaction that will write begins.
    fn begin(&self) -> &'static str {
        match self {
            Self::MySql(_) => "BEGIN",
            Self::Sqlite(_) => sqlite::BEGIN,
        }
    }

    /// What is put behind a `SELECT` whose rows must stay as they are until the transaction ends.
    fn for_update(&self) -> &'static str {
        match self {
            Self::MySql(_) => mysql::FOR_UPDATE,
            Self::Sqlite(_) => sqlite::FOR_UPDATE,
        }
    }
}

/// A bounded set of connections. Unlike SQLx's it never waits for a server without a deadline, also not when a
/// connection is given back, and never returns one that was left in the middle of something: that one is closed, and
/// the server rolls back what it had begun.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) connector: Arc<Connector>,
    idle: Mutex<Vec<(Connection, Instant)>>,
    permits: Arc<Semaphore>,
}

impl Pool {
    pub(super) fn new(connector: Arc<Connector>, most: usize) -> Arc<Self> {
        Arc::new(Self {
            connector,
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(most)),
        })
    }

    /// A connection for the caller alone. Waits without a bound: callers have a deadline.
    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease, Fault> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|e| Fault::Lost(e.to_string()))?;
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match idle {
                Some((connection, since)) if since.elapsed() < TRUSTED_IDLE => connection,
                Some((mut connection, _)) => match connection.ping().await {
                    Ok(()) => connection,
                    Err(_) => continue,
                },
                None => self.connector.connect().await?,
            };
            return Ok(Lease {
                pool: Arc::clone(self),
                connection: Some(connection),
                reusable: true,
                in_transaction: false,
                _permit: permit,
            });
        }
    }
}

/// A connection on loan. It goes back when dropped, unless a statement or transaction was cut off: then it is closed.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    connection: Option<Connection>,
    reusable: bool,
    in_transaction: bool,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.reusable
        {
            let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push((connection, Instant::now()));
        }
    }
}

impl Lease {
    fn busy(&mut self) -> Result<&mut Connection, Fault> {
        self.reusable = false;
        self.connection
            .as_mut()
            .ok_or_else(|| Fault::Lost("the connection is closed".into()))
    }

    /// Runs a statement that changes rows.
    pub(super) async fn execute(
        &mut self,
        sql: impl Into<Cow<'static, str>>,
        values: &[Value<'_>],
    ) -> Result<Done, Fault> {
        let done = self.busy()?.execute(sql.into(), values).await?;
        self.reusable = !self.in_transaction;
        Ok(done)
    }

    /// Runs a statement that reads rows.
    pub(super) async fn rows(
        &mut self,
        sql: impl Into<Cow<'static, str>>,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, Fault> {
        let rows = self.busy()?.rows(sql.into(), values).await?;
        self.reusable = !self.in_transaction;
        Ok(rows)
    }

    /// Runs a statement whose only answer is one whole number, null if there is none.
    pub(super) async fn number(
        &mut self,
        sql: impl Into<Cow<'static, str>>,
        values: &[Value<'_>],
    ) -> Result<Option<i64>, Fault> {
        match self.rows(sql, values).await?.first() {
            Some(row) => row.int(0),
            None => Ok(None),
        }
    }

    /// See [`Connector::for_update`].
    pub(super) fn for_update(&self) -> &'static str {
        self.pool.connector.for_update()
    }

    pub(super) async fn begin(&mut self) -> Result<(), Fault> {
        let sql = self.pool.connector.begin();
        self.in_transaction = true;
        self.busy()?.command(sql).await
    }

    pub(super) async fn commit(&mut self) -> Result<(), Fault> {
        self.end("COMMIT").await
    }

    pub(super) async fn rollback(&mut self) -> Result<(), Fault> {
        self.end("ROLLBACK").await
    }

    async fn end(&mut self, sql: &'static str) -> Result<(), Fault> {
        self.busy()?.command(sql).await?;
        self.in_transaction = false;
        self.reusable = true;
        Ok(())
    }
}
