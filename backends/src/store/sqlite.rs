//! SQLite: how the file is opened and what its errors mean.

use std::path::Path;
use std::time::Duration;

use model::store::StoreError;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

use super::database::Fault;

/// Readers beside the one writer.
pub(super) const READERS: usize = 4;

/// Takes the write lock at once: a transaction that reads first and writes later would fail when another
/// process wrote in between, whatever the busy timeout is.
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";

/// The writer holds the whole file: there is nothing to lock by row.
pub(super) const FOR_UPDATE: &str = "";

/// Takes `sqlite:///path/to/file.db` apart. The write-ahead log is flushed with each commit: what was
/// acknowledged is there after a power cut.
pub(super) fn parse(address: &str, create: bool) -> Result<SqliteConnectOptions, StoreError> {
    let path = address.strip_prefix("sqlite://").unwrap_or_default();
    if path.is_empty() || path.contains('?') || path.contains(":memory:") {
        return Err(StoreError::Unavailable(
            "the store's address is not valid: it must name a file, such as sqlite:///var/lib/caas/caas.db".into(),
        ));
    }
    Ok(SqliteConnectOptions::new()
        .filename(Path::new(path))
        .create_if_missing(create)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(true)
        .statement_cache_capacity(512)
        .disable_statement_logging())
}

/// What SQLite's (extended) error code means for the caller.
pub(super) fn fault(code: i32, text: String) -> Fault {
    match code {
        // Primary key, unique.
        1555 | 2067 => Fault::Duplicate(text),
        1 if text.starts_with("no such") => Fault::Fatal(StoreError::Schema(text)),
        _ => match code & 0xff {
            // Busy (517 among them), locked, interrupted.
            5 | 6 | 9 => Fault::Contended(text),
            14 => Fault::Fatal(StoreError::Schema(format!("{text}: is there a file yet"))),
            // Read-only, input/output error, full, not a database.
            8 | 10 | 13 | 26 => Fault::Fatal(StoreError::Unavailable(text)),
            _ => Fault::Fatal(StoreError::Corrupt(format!("{text} (code {code})"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert!(parse("sqlite:///tmp/caas.db", false).is_ok());
        for bad in [
            "sqlite://",
            "sqlite://:memory:",
            "sqlite:///a.db?mode=ro",
            "file:///a.db",
        ] {
            assert!(parse(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_are_told_apart() {
        for code in [5, 517, 261, 6] {
            assert!(matches!(fault(code, String::new()), Fault::Contended(_)), "{code}");
        }
        assert!(matches!(fault(2067, String::new()), Fault::Duplicate(_)));
        assert!(matches!(
            fault(1, "no such table: apps".into()),
            Fault::Fatal(StoreError::Schema(_))
        ));
        assert!(matches!(
            fault(13, String::new()),
            Fault::Fatal(StoreError::Unavailable(_))
        ));
        assert!(matches!(fault(19, String::new()), Fault::Fatal(StoreError::Corrupt(_))));
    }
}
