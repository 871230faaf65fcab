//! The configuration of an app, how requests reach it: shown, and changed while its instances run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::Args;
use model::{App, AppConfig, AppId, Operation};
use serde_json::{Map, Value, json};

use super::{WaitArgs, deploy};
use crate::cli::Session;
use crate::client::{ApiError, typed};
use crate::config::nearest;
use crate::exit::Failure;
use crate::parse;
use crate::render::{self, Output};

/// How often a change is made anew because somebody else was faster.
const TRIES: u32 = 5;
/// Longest value that `caas info` shows whole, in characters.
const SHOWN: usize = 100;
/// Which of several things: another one takes its place.
const CHOICE: &str = "hash";
/// A table whose keys are of free choice.
const FREE: &str = "weights";

/// `caas config`.
#[derive(Debug, Args)]
#[command(
    after_help = "Keys are those of [config] in an app's file (docs/app.md), those of its tables behind a dot:\n  \
                        caas config shop --set balance=consistent_hash --set hash.cookie=session\n  \
                        caas config shop --set limits.deny=192.0.2.0/24,198.51.100.7/32 --unset weights"
)]
pub(crate) struct ConfigArgs {
    /// The app
    app: AppId,
    #[command(flatten)]
    change: Change,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What shall become of it.
#[derive(Debug, Default, Args)]
struct Change {
    /// Change a setting; the value as in the app's file, but that a text needs no quotes and a list no brackets (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::key_value)]
    set: Vec<(String, String)>,
    /// Give a setting its default back (repeatable)
    #[arg(long, value_name = "KEY")]
    unset: Vec<String>,
    /// Replace the whole configuration by [config] of the app's file; --unset and --set go before it
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// A configuration as the API speaks of it: fields that are newer than this program are kept.
type Config = Map<String, Value>;

/// `caas config`.
pub(crate) async fn run(session: &Session, args: &ConfigArgs) -> Result<(), Failure> {
    let change = &args.change;
    let file = change.file.as_deref().map(deploy::read_config).transpose()?;
    let (before, app, open) = fetch(session, &args.app).await?;
    if file.is_none() && change.set.is_empty() && change.unset.is_empty() {
        match session.output {
            Output::Json => render::print_json(&Value::Object(before)),
            Output::Table => render::print(text(&before)?.trim_end()),
        }
        return Ok(());
    }
    let path = format!("/apps/{}/config", args.app);
    let (mut seen, mut app, mut open) = (before, app, open);
    for _ in 0..TRIES {
        if let Some(open) = &open {
            return Err(Failure::error(format!(
                "a {} of app {} is under way: configure it when that has ended (`caas op watch {}`)",
                open.kind.as_str(),
                args.app,
                open.id
            )));
        }
        let of_canary = app.canary.is_some();
        let wanted = changed(&seen, file.as_ref(), change, of_canary).map_err(Failure::usage)?;
        let wanted = Value::Object(wanted);
        match session.client.put_seen(&path, &wanted, app.generation.0).await {
            Err(e) if e.is_stale() => (seen, app, open) = fetch(session, &args.app).await?,
            answer => {
                if session.follow_change(&answer?, &args.wait).await?.is_some() {
                    let (after, ..) = fetch(session, &args.app).await?;
                    session.say(&told(&args.app, &seen, &after));
                }
                return Ok(());
            }
        }
    }
    Err(Failure::error(format!(
        "app {} is being changed by others all the time: say it again",
        args.app
    )))
}

/// The configuration of an app, the app whose it is, and what is under way there that a change would take the place of.
async fn fetch(session: &Session, id: &AppId) -> Result<(Config, App, Option<Operation>), Failure> {
    let answer = session.client.get(&format!("/apps/{id}")).await?;
    let app: App = typed(&answer["app"])?;
    let operation: Option<Operation> = typed(&answer["operation"])?;
    let open = operation.filter(|operation| !operation.state.is_final());
    match &answer["app"]["config"] {
        Value::Object(config) => Ok((config.clone(), app, open)),
        _ => Err(ApiError::Unexpected(format!("the API's answer has no configuration of app {id}")).into()),
    }
}

/// The configuration as an app's file has it.
fn text(config: &Config) -> Result<String, Failure> {
    toml::to_string(&json!({ "config": config })).map_err(|e| {
        Failure::error(format!(
            "the configuration can't be written as TOML, but as JSON (-o json): {e}"
        ))
    })
}

/// What is to be sent, in the place of `current`: the file's settings, else the current ones, with the changes over them.
fn changed(current: &Config, file: Option<&Config>, change: &Change, of_canary: bool) -> Result<Config, String> {
    let mut wanted = current.clone();
    if let Some(file) = file {
        for key in settings(file).keys() {
            known(current, key)?;
        }
        wanted = file.clone();
        // What is spoken belongs to the release: a file that does not name it means no other.
        if let Some(protocol) = current.get("protocol") {
            wanted.entry("protocol").or_insert_with(|| protocol.clone());
        }
    }
    let keys = change.unset.iter().chain(change.set.iter().map(|(key, _)| key));
    for key in keys {
        let (table, _) = known(current, key)?;
        if table == "protocol" {
            return Err("what an app speaks belongs to its release: `caas deploy --protocol`".into());
        }
        if table == FREE && of_canary {
            return Err("the weights are its canary's as long as there is one: `caas canary` changes its share".into());
        }
    }
    for key in &change.unset {
        let (table, field) = known(current, key)?;
        match (field, wanted.get_mut(table)) {
            (Some(field), Some(Value::Object(fields))) if fields.len() > 1 => fields.remove(field),
            (Some(field), Some(value)) if value.get(field).is_none() => None,
            _ => wanted.remove(table),
        };
    }
    for (key, text) in &change.set {
        let (table, field) = known(current, key)?;
        let before = current.get(table);
        let Some(field) = field else {
            wanted.insert(table.into(), value(text, before));
            continue;
        };
        let before = before.and_then(|fields| fields.get(field));
        let fields = wanted.entry(table).or_insert_with(|| json!({}));
        if !fields.is_object() || table == CHOICE {
            *fields = json!({});
        }
        fields[field] = value(text, before);
    }
    Ok(wanted)
}

/// A key's table and the field in it, or the setting itself; a key that no configuration has is told, with the one that may be meant.
fn known<'a>(current: &Config, key: &'a str) -> Result<(&'a str, Option<&'a str>), String> {
    let (table, field) = match key.split_once('.') {
        // A version may have dots itself.
        Some((table, field)) => (table, Some(field)),
        None => (key, None),
    };
    let there = current.get(table).is_some_and(|value| match field {
        None => true,
        Some(field) => (matches!(table, FREE | CHOICE) && !field.is_empty()) || value.get(field).is_some(),
    });
    if there {
        return Ok((table, field));
    }
    let mut keys: BTreeSet<String> = current.keys().cloned().collect();
    keys.extend(settings(current).into_keys());
    let last = key.rsplit('.').next().unwrap_or(key);
    let meant = keys.iter().find(|k| k.rsplit('.').next() == Some(last));
    let meant = meant
        .map(String::as_str)
        .or_else(|| nearest(key, keys.iter().map(String::as_str)));
    let hint = meant.map_or_else(String::new, |k| format!("; did you mean `{k}`?"));
    Err(format!("[config]: there is no key `{key}`{hint}"))
}

/// A value as it is written in TOML; what is no TOML is a text. Where a list stands, a text is its elements.
fn value(text: &str, before: Option<&Value>) -> Value {
    let table = toml::from_str::<toml::Table>(&format!("value = {text}")).ok();
    let one = table.filter(|table| table.len() == 1);
    let value = match one.and_then(|mut table| table.remove("value")) {
        None | Some(toml::Value::Datetime(_)) => json!(text),
        // JSON has no `inf` and `nan`: the API says so to the text.
        Some(value) => serde_json::to_value(value)
            .ok()
            .filter(|value| !value.is_null())
            .unwrap_or_else(|| json!(text)),
    };
    match (value, before) {
        (Value::String(text), Some(Value::Array(_))) => {
            json!(
                text.split(',')
                    .map(str::trim)
                    .filter(|t| !t.is_empty())
                    .collect::<Vec<_>>()
            )
        }
        (value, _) => value,
    }
}

/// Every setting by its key.
fn settings(config: &Config) -> BTreeMap<String, &Value> {
    let mut all = BTreeMap::new();
    for (key, value) in config {
        match value {
            Value::Object(fields) => all.extend(fields.iter().map(|(field, value)| (format!("{key}.{field}"), value))),
            _ => {
                all.insert(key.clone(), value);
            }
        }
    }
    all
}

/// What became of the settings.
fn told(app: &AppId, before: &Config, after: &Config) -> String {
    let (before, after) = (settings(before), settings(after));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let lines: Vec<String> = keys
        .into_iter()
        .filter_map(|key| match (before.get(key), after.get(key)) {
            (was, is) if was == is => None,
            (Some(was), Some(is)) => Some(format!("  {key} = {} (was {})", brief(is), brief(was))),
            (None, Some(is)) => Some(format!("  {key} = {}", brief(is))),
            (was, None) => Some(format!(
                "  {key} is gone (was {})",
                was.map_or_else(String::new, |v| brief(v))
            )),
        })
        .collect();
    if lines.is_empty() {
        return format!("{app} was configured so already");
    }
    format!("{app} is configured anew, its instances stay:\n{}", lines.join("\n"))
}

/// What an app has configured otherwise than by default, a line each. Where it is reached and what it speaks are told elsewhere, and so
/// are the shares of a canary.
pub(super) fn own_settings(app: &App) -> Vec<String> {
    let mut own = app.config.clone();
    let default = AppConfig::default();
    own.domains.clone_from(&default.domains);
    (own.protocol, own.tcp) = (default.protocol, default.tcp);
    if app.canary.is_some() {
        own.weights.clear();
    }
    let (own, default) = (json!(own), json!(default));
    let (Value::Object(own), Value::Object(default)) = (&own, &default) else {
        return Vec::new();
    };
    let default = settings(default);
    let own = settings(own)
        .into_iter()
        .filter(|(key, value)| default.get(key) != Some(value));
    own.map(|(key, value)| format!("{key} = {}", brief(value))).collect()
}

fn brief(value: &Value) -> String {
    let text = render::safe(&value.to_string());
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Config {
        match value {
            Value::Object(fields) => fields,
            other => panic!("{other} is no object"),
        }
    }

    fn current() -> Config {
        let mut config = object(json!(AppConfig::default()));
        config.insert("domains".into(), json!(["shop.example.com"]));
        config.insert("newer".into(), json!({ "than": 1 }));
        config
    }

    fn change(set: &[&str], unset: &[&str]) -> Change {
        Change {
            set: set.iter().map(|s| parse::key_value(s).expect("a pair")).collect(),
            unset: unset.iter().map(|u| (*u).to_owned()).collect(),
            file: None,
        }
    }

    /// What is sent instead of `current`.
    fn becomes(set: &[&str], unset: &[&str]) -> Config {
        changed(&current(), None, &change(set, unset), false).expect("sound")
    }

    #[test]
    fn what_is_not_named_stays() {
        let mut wanted = current();
        wanted["balance"] = json!("least_request");
        wanted["slow_start_s"] = json!(30);
        wanted["prefer_region"] = json!(true);
        wanted["limits"]["max_in_flight"] = json!(7);
        let set = [
            "balance=least_request",
            "slow_start_s=30",
            "prefer_region=true",
            "limits.max_in_flight=7",
        ];
        assert_eq!(becomes(&set, &[]), wanted);
        assert_eq!(becomes(&["balance=\"least_request\""], &[])["balance"], "least_request");
    }

    #[test]
    fn values_are_written_as_in_the_file_or_plainly() {
        let one = |set: &str, key: &str| becomes(&[set], &[])[key].clone();
        assert_eq!(one("domains=a.b, *.a.b", "domains"), json!(["a.b", "*.a.b"]));
        assert_eq!(one("domains=[\"a.b\"]", "domains"), json!(["a.b"]));
        assert_eq!(one("domains=", "domains"), json!([]));
        assert_eq!(one("limits.deny=10.0.0.0/8", "limits")["deny"], json!(["10.0.0.0/8"]));
        assert_eq!(one("hash={ header = \"x-user\" }", "hash"), json!({"header": "x-user"}));
        assert_eq!(one("hash.header=x-user", "hash"), json!({"header": "x-user"}));
        assert_eq!(one("hash=client_address", "hash"), "client_address");
        assert_eq!(one("weights={1=95,2=5}", "weights"), json!({"1": 95, "2": 5}));
        assert_eq!(
            one("weights.1.2.3=5", "weights"),
            json!({"1.2.3": 5}),
            "a version with dots"
        );
        assert_eq!(
            one("balance=2026-11-22", "balance"),
            "2026-11-22",
            "a text, if a wrong one"
        );
        assert_eq!(one("balance=1\nacme=2", "balance"), "1\nacme=2", "no second setting");
        let both = becomes(&["hash.header=x-user", "hash.cookie=session"], &[]);
        assert_eq!(both["hash"], json!({"cookie": "session"}), "the last one of a choice");
    }

    #[test]
    fn what_is_unset_is_not_sent() {
        let mut seen = current();
        seen["weights"] = json!({"1": 95, "2": 5});
        seen["hash"] = json!({"header": "x-user"});
        let without = |unset: &[&str]| changed(&seen, None, &change(&[], unset), false).expect("sound");
        assert_eq!(without(&["weights.2"])["weights"], json!({"1": 95}));
        let left = without(&["weights.1", "weights.2", "hash.header", "domains", "limits.deny"]);
        assert!(
            !["weights", "hash", "domains"].iter().any(|key| left.contains_key(*key)),
            "{left:?}"
        );
        assert!(left["limits"].get("deny").is_none() && left["limits"].get("max_in_flight").is_some());
    }

    #[test]
    fn a_file_replaces_everything_but_what_is_spoken() {
        let mut seen = current();
        seen["protocol"] = json!("h2c");
        let file = object(json!({ "sticky": "version", "limits": { "max_in_flight": 5 } }));
        let wanted = changed(&seen, Some(&file), &change(&["slow_start_s=3"], &["sticky"]), false).expect("sound");
        let sent = json!({ "protocol": "h2c", "limits": { "max_in_flight": 5 }, "slow_start_s": 3 });
        assert_eq!(Value::Object(wanted), sent);
        let file = object(json!({ "limits": { "denny": [] } }));
        let message = changed(&seen, Some(&file), &Change::default(), false).expect_err("a slip");
        assert_eq!(
            message,
            "[config]: there is no key `limits.denny`; did you mean `limits.deny`?"
        );
    }

    #[test]
    fn slips_of_the_pen_are_told_with_what_may_be_meant() {
        let told = |key: &str| changed(&current(), None, &change(&[], &[key]), false).expect_err(key);
        for (key, meant) in [
            ("balanse", "balance"),
            ("limit.deny", "limits.deny"),
            ("deny", "limits.deny"),
            ("config.sticky", "sticky"),
            ("limits.max_in_flght", "limits.max_in_flight"),
        ] {
            assert_eq!(
                told(key),
                format!("[config]: there is no key `{key}`; did you mean `{meant}`?")
            );
        }
        assert_eq!(told("colour"), "[config]: there is no key `colour`");
        for key in ["balance.x", "weights.", "", "."] {
            assert!(told(key).contains("there is no key"), "{key:?}");
        }
        let of_canary = changed(&current(), None, &change(&["weights.2=5"], &[]), true).expect_err("its own");
        assert!(of_canary.contains("caas canary"), "{of_canary}");
        assert!(changed(&current(), None, &change(&["sticky=version"], &[]), true).is_ok());
    }

    #[test]
    fn what_is_shown_can_be_given_back_as_a_file() {
        let mut config = object(json!(AppConfig::default()));
        config["hash"] = json!({"header": "x-user"});
        config["weights"] = json!({"1.0": 95, "2": 5});
        config["limits"]["deny"] = json!(["192.0.2.0/24"]);
        let text = text(&config).expect("TOML");
        assert!(
            text.contains("\nbalance = \"round_robin\"\n") && text.contains("[config.limits]\n"),
            "{text}"
        );
        let read: Value = toml::from_str(&text).expect("TOML");
        assert_eq!(read, json!({ "config": config }));
    }

    #[test]
    fn changes_are_told() {
        let app: AppId = "shop".parse().expect("valid");
        let before = current();
        let set = ["balance=least_request", "hash.cookie=a", "domains="];
        let after = becomes(&set, &[]);
        assert_eq!(
            told(&app, &before, &after),
            "shop is configured anew, its instances stay:\n  balance = \"least_request\" (was \"round_robin\")\n  \
             domains = [] (was [\"shop.example.com\"])\n  hash is gone (was \"client_address\")\n  hash.cookie = \"a\""
        );
        assert_eq!(told(&app, &before, &before), "shop was configured so already");
    }
}
