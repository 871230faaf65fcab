//! What apps and instances write.

use std::io::Write as _;

use clap::Args;
use model::engine::LogLine;
use serde_json::Value;

use super::apps::{Named, named};
use crate::cli::Session;
use crate::client::stream::Flow;
use crate::client::typed;
use crate::exit::Failure;
use crate::render::{self, Output};

/// `caas logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// An app (all of its instances) or one instance
    #[arg(value_name = "APP|INSTANCE")]
    name: String,
    /// Go on with new lines until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines of each instance
    #[arg(long, value_name = "LINES", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    tail: u32,
}

/// `caas logs`.
pub(crate) async fn run(session: &Session, args: &LogsArgs) -> Result<(), Failure> {
    let (path, endless) = match named(session, &args.name).await? {
        Named::App(app) => (format!("/apps/{app}/logs"), args.follow),
        Named::Instance(id) => (format!("/instances/{id}/logs"), false),
    };
    let path = format!("{path}?tail={}&follow={}", args.tail, args.follow);
    let mut problem: Option<String> = None;
    session
        .client
        .follow(&path, false, |message| {
            match message.event.as_str() {
                "error" => problem = Some(message.data.clone()),
                "end" => return Flow::Enough,
                _ => show(session.output, &message.data),
            }
            Flow::More
        })
        .await?;
    match problem {
        Some(message) => Err(Failure::error(problem_sentence(&message))),
        // An app's log goes on for as long as the app does.
        None if endless => Err(Failure::error(
            "the scheduler has ended the log, as it does when it stops: repeat the command to go on",
        )),
        None => Ok(()),
    }
}

fn problem_sentence(data: &str) -> String {
    let value: Value = serde_json::from_str(data).unwrap_or_default();
    let detail = value.get("detail").or_else(|| value.get("message"));
    detail.and_then(Value::as_str).unwrap_or(data).to_owned()
}

fn show(output: Output, data: &str) {
    let Ok(value) = serde_json::from_str::<Value>(data) else {
        return;
    };
    if output == Output::Json {
        render::print_json_line(&value);
        return;
    }
    // A line of an app is wrapped with its instance; a line of an instance is bare.
    let Ok(line) = typed::<LogLine>(value.get("line").unwrap_or(&value)) else {
        return;
    };
    let instance = value.get("instance").and_then(Value::as_str);
    let text = format_line(instance, &line);
    if line.stderr {
        // As the container wrote it: to standard error. Nobody reading it is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{text}");
    } else {
        render::print(&text);
    }
}

fn format_line(instance: Option<&str>, line: &LogLine) -> String {
    let text = render::safe_log(&line.text);
    match instance {
        Some(instance) => format!("{} {text}", render::safe(instance)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_app_name_their_instance() {
        let line = LogLine {
            at: None,
            stderr: false,
            text: "hi\u{7}".into(),
        };
        assert_eq!(format_line(Some("abcd"), &line), "abcd hi\\u{7}");
        assert_eq!(format_line(None, &line), "hi\\u{7}");
    }

    #[test]
    fn errors_within_a_stream_become_a_sentence() {
        assert_eq!(problem_sentence(r#"{"detail":"host gone"}"#), "host gone");
        assert_eq!(problem_sentence("plain"), "plain");
    }
}
