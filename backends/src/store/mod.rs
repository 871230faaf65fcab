//! The store on MySQL (and MariaDB) or in a SQLite file.
//!
//! One implementation for both: queries are written once, and where the dialects differ the difference has a name
//! in [`database`]. Must never hold a lock of its own in place of the database's, and never take a lost answer for a
//! failure: [`transaction`] says how each is avoided.

mod admin;
mod apps;
mod certificates;
mod database;
mod gateway_ports;
mod hosts;
mod instances;
mod listening;
mod mysql;
mod operations;
mod orders;
mod placement;
mod revision;
mod rows;
mod sqlite;
mod transaction;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::store::{
    AppSettle, HostIntent, HostOutcome, IdempotencyKey, InstanceFilter, InstanceStore, Intent, IntentOutcome, KeyUse,
    Outcome, PlaceOutcome, Placing, RegistryCredentials, Revision, Store, StoreError, Token,
};
use model::{
    App, AppId, Certificate, CertificateName, CertificateOrder, Event, Figures, Host, HostChange, HostName, Instance,
    InstanceChange, InstanceId, Listening, NewEvent, Operation, OperationId, PlatformId, Release, SealedCertificate,
    Timestamp,
};
use sqlx::Connection as _;
use sqlx::migrate::{Migrate as _, MigrateError, Migrator};
use sqlx::mysql::MySqlConnection;
use sqlx::sqlite::SqliteConnection;

use database::{Connector, Fault, Pool};
use revision::Revisions;
use transaction::Transactions;

static MYSQL: Migrator = sqlx::migrate!("../migrations/mysql");
static SQLITE: Migrator = sqlx::migrate!("../migrations/sqlite");

/// How long a migration may take, waiting for another one included.
const MIGRATION_DEADLINE: Duration = Duration::from_secs(120);

/// A store by its address: `mysql://user:password@host:port/database` (with `?max_connections=16`, 1-1,000) or
/// `sqlite:///path/to/file.db`. Connects when first used, so that a program may start before its database does;
/// [`Store::check`] proves that it answers. Never creates or changes tables: that is [`migrate`]'s.
///
/// # Errors
/// [`StoreError::Unavailable`] when the address is not valid.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    let (readers, writers, schema) = if is_sqlite(url)? {
        let connector = Arc::new(Connector::Sqlite(sqlite::parse(url, false)?));
        let readers = Pool::new(Arc::clone(&connector), sqlite::READERS);
        (readers, Pool::new(connector, 1), newest(&SQLITE))
    } else {
        let (options, most) = mysql::parse(url)?;
        let pool = Pool::new(Arc::new(Connector::MySql(options)), most);
        (Arc::clone(&pool), pool, newest(&MYSQL))
    };
    Ok(Arc::new(SqlStore {
        at: Transactions {
            readers,
            writers,
            revisions: Revisions::new(),
        },
        schema,
    }))
}

/// Brings the schema up to date; creates the SQLite file. May be run any number of times, by several at once.
///
/// # Errors
/// [`StoreError::Unavailable`] when the database can't be reached, [`StoreError::Schema`] when it was migrated by a
/// newer program or by hand.
pub async fn migrate(url: &str) -> Result<(), StoreError> {
    let work = async {
        if is_sqlite(url)? {
            migrate_sqlite(url).await
        } else {
            migrate_mysql(url).await
        }
    };
    match tokio::time::timeout(MIGRATION_DEADLINE, work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(migration_error(error)),
        Err(_) => Err(StoreError::Unavailable(format!(
            "the migration did not end within {} s",
            MIGRATION_DEADLINE.as_secs()
        ))),
    }
}

fn is_sqlite(url: &str) -> Result<bool, StoreError> {
    match url.split_once("://").map(|(scheme, _)| scheme) {
        Some("sqlite") => Ok(true),
        Some("mysql" | "mariadb") => Ok(false),
        _ => Err(StoreError::Unavailable(
            "the store's address is not valid: it must begin with mysql:// or sqlite://".into(),
        )),
    }
}

fn newest(migrator: &Migrator) -> i64 {
    migrator.iter().map(|m| m.version).max().unwrap_or(0)
}

/// What ends a migration.
enum Broken {
    Store(StoreError),
    Migration(MigrateError),
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<sqlx::Error> for Broken {
    fn from(error: sqlx::Error) -> Self {
        Self::Migration(error.into())
    }
}

impl From<MigrateError> for Broken {
    fn from(error: MigrateError) -> Self {
        Self::Migration(error)
    }
}

fn migration_error(broken: Broken) -> StoreError {
    let error = match broken {
        Broken::Store(error) => return error,
        Broken::Migration(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => error,
        Broken::Migration(other) => return StoreError::Schema(other.to_string()),
    };
    match Fault::from(error) {
        Fault::Fatal(error) => error,
        Fault::Contended(why) => StoreError::Busy(why),
        Fault::Lost(why) => StoreError::Unavailable(why),
        Fault::Duplicate(why) => StoreError::Corrupt(why),
    }
}

/// Under the server's named lock, on one connection. MySQL commits table by table: what a run left half-way is
/// marked as such, and since every statement may be repeated it is simply run again.
async fn migrate_mysql(url: &str) -> Result<(), Broken> {
    let (options, _) = mysql::parse(url)?;
    let mut connection = MySqlConnection::connect_with(&options).await?;
    // Not `Migrate::lock`: its endless timeout is no timeout at all to MariaDB, which then gives no lock.
    let lock = "SELECT GET_LOCK(CONCAT('caas_migrate_', MD5(DATABASE())), 60)";
    let locked: Option<i64> = sqlx::query_scalar(lock).fetch_one(&mut connection).await?;
    if locked != Some(1) {
        return Err(StoreError::Busy("another migration is at work".into()).into());
    }
    connection.ensure_migrations_table(&MYSQL.table_name).await?;
    sqlx::query("DELETE FROM _sqlx_migrations WHERE success = FALSE")
        .execute(&mut connection)
        .await?;
    let mut migrator = Migrator::with_migrations(MYSQL.iter().cloned().collect());
    migrator.set_locking(false);
    migrator.run(&mut connection).await?;
    // The lock goes with the connection.
    connection.close().await?;
    Ok(())
}

/// In one transaction that holds the file's write lock.
async fn migrate_sqlite(url: &str) -> Result<(), Broken> {
    let options = sqlite::parse(url, true)?;
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let mut tx = connection.begin_with(sqlite::BEGIN).await?;
    SQLITE.run(&mut *tx).await?;
    tx.commit().await?;
    connection.close().await?;
    Ok(())
}

/// [`Store`] over SQL.
#[derive(Debug)]
struct SqlStore {
    at: Transactions,
    schema: i64,
}

#[async_trait]
impl InstanceStore for SqlStore {
    async fn revision_wait(&self, after: Revision, timeout: Duration) -> Result<Revision, StoreError> {
        operations::wait(&self.at, after, tokio::time::Instant::now() + timeout).await
    }

    async fn instance_list(&self, filter: &InstanceFilter) -> Result<Vec<Instance>, StoreError> {
        instances::list(&self.at, filter).await
    }

    async fn instance_fetch(&self, id: &InstanceId) -> Result<Option<Instance>, StoreError> {
        instances::fetch(&self.at, id).await
    }

    async fn instance_update(
        &self,
        current: &Instance,
        change: &InstanceChange,
        now: Timestamp,
    ) -> Result<Outcome<Instance>, StoreError> {
        instances::update(&self.at, current, change, now).await
    }

    async fn app_list(&self) -> Result<Vec<App>, StoreError> {
        apps::list(&self.at).await
    }

    async fn release_fetch(&self, app: &AppId, number: u32) -> Result<Option<Release>, StoreError> {
        apps::release(&self.at, app, number).await
    }

    async fn listening(&self) -> Result<Option<Listening>, StoreError> {
        listening::fetch(&self.at).await
    }

    async fn figures_list(&self) -> Result<Vec<(InstanceId, Figures)>, StoreError> {
        instances::figures(&self.at).await
    }

    async fn certificate_list(&self) -> Result<Vec<Certificate>, StoreError> {
        certificates::list(&self.at).await
    }

    async fn certificate_sealed(&self, name: &CertificateName) -> Result<Option<(i64, SealedCertificate)>, StoreError> {
        certificates::sealed(&self.at, name).await
    }

    async fn order_list(&self) -> Result<Vec<CertificateOrder>, StoreError> {
        orders::list(&self.at).await
    }

    async fn order_presented(&self, domain: &CertificateName, mark: i64) -> Result<(), StoreError> {
        orders::presented(&self.at, domain, mark).await
    }

    async fn host_list(&self) -> Result<Vec<Host>, StoreError> {
        hosts::list(&self.at).await
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn check(&self) -> Result<(), StoreError> {
        admin::check(&self.at, self.schema).await
    }

    async fn platform_id(&self) -> Result<PlatformId, StoreError> {
        admin::platform_id(&self.at).await
    }

    async fn app_fetch(&self, id: &AppId) -> Result<Option<App>, StoreError> {
        apps::fetch(&self.at, id).await
    }

    async fn intent_commit(&self, intent: &Intent, now: Timestamp) -> Result<IntentOutcome, StoreError> {
        apps::commit(&self.at, intent, now).await
    }

    async fn app_settle(&self, app: &App, change: &AppSettle, now: Timestamp) -> Result<Outcome<App>, StoreError> {
        apps::settle(&self.at, app, change, now).await
    }

    async fn app_delete(&self, id: &AppId, now: Timestamp) -> Result<bool, StoreError> {
        apps::delete(&self.at, id, now).await
    }

    async fn release_list(&self, app: &AppId, limit: u32) -> Result<Vec<Release>, StoreError> {
        apps::releases(&self.at, app, limit).await
    }

    async fn app_claim(&self, app: &AppId, holder: &str, now: Timestamp, ttl: Duration) -> Result<bool, StoreError> {
        apps::claim(&self.at, app, holder, now, ttl).await
    }

    async fn instance_place(&self, placing: &Placing, now: Timestamp) -> Result<PlaceOutcome, StoreError> {
        placement::place(&self.at, placing, now).await
    }

    async fn port_quarantine(&self, host: &HostName, port: u16, until: Timestamp) -> Result<(), StoreError> {
        placement::quarantine(&self.at, host, port, until).await
    }

    async fn instance_token_hash(&self, id: &InstanceId) -> Result<Option<String>, StoreError> {
        instances::token_hash(&self.at, id).await
    }

    async fn listening_note(&self, now: Timestamp) -> Result<(), StoreError> {
        listening::note(&self.at, now).await
    }

    async fn figures_put(&self, figures: &[(InstanceId, Figures)]) -> Result<(), StoreError> {
        instances::put_figures(&self.at, figures).await
    }

    async fn history_prune(&self, keep: u32, events_before: Timestamp, now: Timestamp) -> Result<u64, StoreError> {
        admin::prune(&self.at, keep, events_before, now).await
    }

    async fn idempotency_fetch(&self, key: &IdempotencyKey, now: Timestamp) -> Result<KeyUse, StoreError> {
        apps::key_use(&self.at, key, now).await
    }

    async fn host_commit(&self, intent: &HostIntent, now: Timestamp) -> Result<HostOutcome, StoreError> {
        hosts::commit(&self.at, intent, now).await
    }

    async fn host_fetch(&self, name: &HostName) -> Result<Option<Host>, StoreError> {
        hosts::fetch(&self.at, name).await
    }

    async fn host_update(
        &self,
        current: &Host,
        change: &HostChange,
        event: Option<&NewEvent>,
        now: Timestamp,
    ) -> Result<Outcome<Host>, StoreError> {
        hosts::update(&self.at, current, change, event, now).await
    }

    async fn operation_fetch(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        operations::fetch(&self.at, id).await
    }

    async fn operation_list(&self, app: Option<&AppId>, limit: u32) -> Result<Vec<Operation>, StoreError> {
        operations::list(&self.at, app, limit).await
    }

    async fn operation_open(&self) -> Result<Vec<Operation>, StoreError> {
        operations::open(&self.at).await
    }

    async fn operation_update(&self, next: &Operation, now: Timestamp) -> Result<Outcome<Operation>, StoreError> {
        operations::update(&self.at, next, now).await
    }

    async fn event_list(&self, after: u64, app: Option<&AppId>, limit: u32) -> Result<Vec<Event>, StoreError> {
        operations::events(&self.at, after, app, limit).await
    }

    async fn event_newest(&self) -> Result<u64, StoreError> {
        operations::newest(&self.at).await
    }

    async fn event_record(&self, event: &NewEvent, now: Timestamp) -> Result<(), StoreError> {
        operations::record(&self.at, event, now).await
    }

    async fn token_count(&self) -> Result<u64, StoreError> {
        admin::token_count(&self.at).await
    }

    async fn token_put(&self, token: &Token) -> Result<(), StoreError> {
        admin::token_put(&self.at, token).await
    }

    async fn token_fetch(&self, id: &str) -> Result<Option<Token>, StoreError> {
        admin::token_fetch(&self.at, id).await
    }

    async fn credentials_put(
        &self,
        credentials: &RegistryCredentials,
        event: &NewEvent,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        admin::credentials_put(&self.at, credentials, event, now).await
    }

    async fn credentials_list(&self) -> Result<Vec<RegistryCredentials>, StoreError> {
        admin::credentials_list(&self.at).await
    }

    async fn credentials_remove(&self, registry: &str, event: &NewEvent, now: Timestamp) -> Result<bool, StoreError> {
        admin::credentials_remove(&self.at, registry, event, now).await
    }

    async fn certificate_put(
        &self,
        certificate: &Certificate,
        sealed: &SealedCertificate,
        event: &NewEvent,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        certificates::put(&self.at, certificate, sealed, event, now).await
    }

    async fn certificate_remove(
        &self,
        name: &CertificateName,
        event: &NewEvent,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        certificates::remove(&self.at, name, event, now).await
    }
}
