//! Certificates that the platform keeps for its gateways.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use model::{CertificateName, Timestamp};
use serde_json::{Value, json};

use super::cell;
use crate::cli::Session;
use crate::exit::Failure;
use crate::render::{self, Output};

/// Largest file that is sent, in bytes; the API takes less.
const LARGEST: u64 = 256 * 1024;

/// `caas certificate …`.
#[derive(Debug, Subcommand)]
pub(crate) enum CertificateCommand {
    /// Give all gateways a certificate, or a new one in the place of the one of this name
    Add(AddArgs),
    /// List certificates, when they expire, and how far those are that the platform gets by itself
    Ls,
    /// Take a certificate away from all gateways; one that the platform gets by itself is had anew at once
    Rm {
        /// The certificate
        name: CertificateName,
    },
}

/// `caas certificate add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// What it is to be called; which hosts it serves stands in itself
    name: CertificateName,
    /// PEM file: the server's certificate first, then its issuers
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// PEM file of its key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// `caas certificate …`.
pub(crate) async fn run(session: &Session, command: &CertificateCommand) -> Result<(), Failure> {
    match command {
        CertificateCommand::Add(args) => {
            let body = json!({ "chain": read(&args.cert)?, "key": read(&args.key)? });
            let path = format!("/certificates/{}", args.name);
            let answer = session.client.put(&path, &body).await?;
            if session.output == Output::Json {
                render::print_json(&answer);
                return Ok(());
            }
            let (names, expires) = (names_of(&answer), cell(text(&answer, "expires_at")));
            session.say(&format!("certificate {} serves {names} until {expires}", args.name));
        }
        CertificateCommand::Ls => {
            let answer = session.client.list("/certificates").await?;
            if session.output == Output::Json {
                render::print_json(&Value::Array(answer));
                return Ok(());
            }
            if answer.is_empty() {
                render::print("no certificates yet: `caas certificate add NAME --cert FILE --key FILE` adds one");
                return Ok(());
            }
            let row = |entry: &Value| {
                vec![
                    cell(text(entry, "name")),
                    names_of(entry),
                    cell(text(entry, "source")),
                    cell(text(entry, "issuer")),
                    expiry(text(entry, "expires_at")),
                    order_of(entry),
                ]
            };
            let rows = answer.iter().map(row).collect();
            let headers = ["NAME", "HOSTS", "SOURCE", "ISSUER", "EXPIRES", "ORDER"];
            render::print(&render::table(&headers, rows));
        }
        CertificateCommand::Rm { name } => {
            session.client.delete(&format!("/certificates/{name}")).await?;
            session.say(&format!("certificate {name} is gone"));
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    let unreadable = |e: std::io::Error| Failure::usage(format!("{} can't be read: {e}", path.display()));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > LARGEST {
        return Err(Failure::usage(format!(
            "{} is larger than {LARGEST} bytes: it is no certificate or key",
            path.display()
        )));
    }
    Ok(text)
}

fn text<'a>(entry: &'a Value, key: &str) -> Option<&'a str> {
    entry.get(key).and_then(Value::as_str)
}

/// The first hosts, and how many more there are.
fn names_of(entry: &Value) -> String {
    let names: Vec<&str> = entry
        .get("names")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    match names.as_slice() {
        [] => "every host without another".into(),
        [first @ .., _, _] if first.len() > 1 => format!("{}, {} and {} more", names[0], names[1], names.len() - 2),
        few => few.join(", "),
    }
}

/// `in 89d`, or `3d ago`.
fn expiry(at: Option<&str>) -> String {
    let at: Option<Timestamp> = at.and_then(|at| serde_json::from_value(at.into()).ok());
    let now = Timestamp::now();
    match at {
        None => "-".into(),
        Some(at) if at > now => format!("in {}", render::span(at.since(now))),
        Some(at) => format!("{} ago", render::span(now.since(at))),
    }
}

/// How far the platform is with getting it, and what went wrong; `-`: nothing is to be done.
fn order_of(entry: &Value) -> String {
    let order = &entry["order"];
    let error = text(order, "error").map_or_else(String::new, |e| format!(": {e}"));
    match text(order, "state") {
        None => "-".into(),
        Some("failed") => {
            let next = text(order, "next_try");
            let due = next.and_then(|at| serde_json::from_value::<Timestamp>(at.into()).ok());
            let next = due.map_or_else(String::new, |at| {
                format!(", next try in {}", render::span(at.since(Timestamp::now())))
            });
            format!("failed {} times{next}{error}", order["failures"])
        }
        Some("under_way") => format!("under way{error}"),
        Some(other) => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn orders_say_what_went_wrong_and_what_comes_next() {
        let order = |order: Value| order_of(&json!({ "order": order }));
        assert_eq!(order(json!(null)), "-");
        assert_eq!(
            order(json!({"state": "under_way", "failures": 0, "error": null})),
            "under way"
        );
        let soon = Timestamp::now().plus(Duration::from_secs(605)).to_string();
        let failed = order(json!({"state": "failed", "failures": 2, "error": "no such host", "next_try": soon}));
        assert_eq!(failed, "failed 2 times, next try in 10m: no such host");
    }

    #[test]
    fn hosts_and_expiry_are_short() {
        let names = |list: &[&str]| names_of(&json!({ "names": list }));
        assert_eq!(names(&[]), "every host without another");
        assert_eq!(names(&["a", "b"]), "a, b");
        assert_eq!(names(&["a", "b", "c"]), "a, b, c");
        assert_eq!(names(&["a", "b", "c", "d"]), "a, b and 2 more");
        let in_two_days = Timestamp::now().plus(Duration::from_secs(2 * 86_400 + 60)).to_string();
        assert_eq!(expiry(Some(&in_two_days)), "in 2d");
        assert_eq!(expiry(Some("2020-01-01T00:00:00Z")).split(' ').next_back(), Some("ago"));
        assert_eq!(expiry(None), "-");
    }
}
