//! MySQL 8 and MariaDB: how connections are made and what the server's errors mean.

use std::str::FromStr;

use model::store::StoreError;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use super::database::{Connection, Fault};

/// Connections of one process, unless the address says `max_connections=…`.
const MAX_CONNECTIONS: usize = 16;

pub(super) const FOR_UPDATE: &str = " FOR UPDATE";

/// READ COMMITTED: after waiting for a row's lock a transaction must see what the one before it committed (the
/// leased ports of a host), and without gap locks inserts of different placements don't deadlock. Lost updates are
/// ruled out by generations, not by the isolation level. A lock wait ends before the caller's deadline does.
const SESSION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
    SET SESSION innodb_lock_wait_timeout = 2, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'";

/// Takes `mysql://user:password@host:port/database?max_connections=16` apart.
pub(super) fn parse(address: &str) -> Result<(MySqlConnectOptions, usize), StoreError> {
    let refuse = |why: String| StoreError::Unavailable(format!("the store's address is not valid: {why}"));
    let mut url = url::Url::parse(address).map_err(|e| refuse(e.to_string()))?;
    let mut most = MAX_CONNECTIONS;
    let mut others = Vec::new();
    for (name, value) in url.query_pairs() {
        if name == "max_connections" {
            most = match value.parse() {
                Ok(n @ 1..=1_000) => n,
                _ => return Err(refuse(format!("max_connections={value} must be between 1 and 1,000"))),
            };
        } else {
            others.push((name.into_owned(), value.into_owned()));
        }
    }
    if others.is_empty() {
        url.set_query(None);
    } else {
        url.query_pairs_mut().clear().extend_pairs(others);
    }
    if url.path().len() < 2 {
        return Err(refuse(
            "it must name a database, such as mysql://user@host:3306/caas".into(),
        ));
    }
    // Every number of rows in a multi-row statement is its own text: there must be room to keep them prepared.
    let options = MySqlConnectOptions::from_str(url.as_str())
        .map_err(|e| refuse(e.to_string()))?
        .collation("utf8mb4_bin")
        .statement_cache_capacity(512)
        .disable_statement_logging();
    Ok((options, most))
}

pub(super) async fn connect(options: &MySqlConnectOptions) -> Result<Connection, Fault> {
    let mut connection = Connection::MySql(MySqlConnection::connect_with(options).await?);
    connection.command(SESSION).await?;
    Ok(connection)
}

/// Why a server can't be used as it or its address is set up, told from sqlx's words. MySQL 8 wants a password over TLS; or
/// encrypted by a key that it sends along, which whoever stands between could replace: we don't speak that.
pub(super) fn unusable(why: &str) -> String {
    if why.contains("RSA") {
        "the server takes this user's password only over TLS, which is off: turn TLS on at the server (and leave ssl-mode \
         out of the address), or create the user WITH mysql_native_password"
            .into()
    } else {
        why.to_owned()
    }
}

/// What the server's error number means for the caller.
pub(super) fn fault(number: u16, text: String) -> Fault {
    match number {
        // Lock wait, deadlock, snapshot conflict (MariaDB), interrupted.
        1205 | 1213 | 1020 | 1317 => Fault::Contended(text),
        1062 => Fault::Duplicate(text),
        // No such table, no such column.
        1146 | 1054 => Fault::Fatal(StoreError::Schema(text)),
        // Too many connections, shutting down, connection killed, packets out of order or unreadable.
        1040 | 1053 | 1077..=1079 | 1152..=1161 | 1927 => Fault::Lost(text),
        // Access denied, no such database, host blocked, disk full, read-only.
        1021 | 1044 | 1045 | 1049 | 1114 | 1129 | 1130 | 1203 | 1226 | 1290 | 1698 | 1792 | 1836 => {
            Fault::Fatal(StoreError::Unavailable(text))
        }
        _ => Fault::Fatal(StoreError::Corrupt(format!("{text} (error {number})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let (options, most) = parse("mysql://u:p@db:3307/caas?max_connections=4&ssl-mode=disabled").expect("valid");
        assert_eq!((options.get_host(), options.get_port(), most), ("db", 3307, 4));
        assert_eq!(options.get_database(), Some("caas"));
        assert_eq!(parse("mysql://u@db/caas").expect("valid").1, MAX_CONNECTIONS);
        for bad in [
            "mysql://u@db/caas?max_connections=0",
            "mysql://u@db/caas?max_connections=x",
            "mysql://u@db",
            "mysql://u@db:99999/caas",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_that_would_need_tls_is_told_as_such() {
        // As sqlx says it when the server has no TLS and asks for caching_sha2_password.
        let error = sqlx::Error::Configuration("RSA auth backend disabled; enable feature `mysql-rsa`".into());
        let Fault::Fatal(StoreError::Unavailable(why)) = Fault::from(error) else {
            panic!("another fault");
        };
        assert!(why.contains("only over TLS") && !why.contains("feature"), "{why}");
    }

    #[test]
    fn errors_are_told_apart() {
        for number in [1213, 1205, 1020] {
            assert!(matches!(fault(number, String::new()), Fault::Contended(_)), "{number}");
        }
        assert!(matches!(fault(1062, String::new()), Fault::Duplicate(_)));
        assert!(matches!(
            fault(1146, String::new()),
            Fault::Fatal(StoreError::Schema(_))
        ));
        assert!(matches!(fault(1053, String::new()), Fault::Lost(_)));
        assert!(matches!(
            fault(1406, String::new()),
            Fault::Fatal(StoreError::Corrupt(_))
        ));
    }
}
