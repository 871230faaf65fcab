//! What happened: the platform's record of changes.

use clap::Args;
use model::{AppId, Event};
use serde_json::Value;

use crate::cli::Session;
use crate::client::stream::Flow;
use crate::client::typed;
use crate::exit::Failure;
use crate::render::{self, Output};

/// `caas events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with new events until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only of this app
    #[arg(long)]
    app: Option<AppId>,
    /// Only events after this number
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
}

/// `caas events`.
pub(crate) async fn run(session: &Session, args: &EventsArgs) -> Result<(), Failure> {
    let mut query = Vec::new();
    if let Some(app) = &args.app {
        query.push(format!("app={app}"));
    }
    if let Some(after) = args.after {
        query.push(format!("after={after}"));
    }
    let question = if query.is_empty() { "" } else { "?" };
    let path = format!("/events{question}{}", query.join("&"));
    if args.follow {
        session
            .client
            .follow(&path, true, |message| {
                if let Ok(value) = serde_json::from_str::<Value>(&message.data) {
                    show(session.output, &value);
                }
                Flow::More
            })
            .await?;
        return Ok(());
    }
    let answer = session.client.list(&path).await?;
    if session.output == Output::Json {
        render::print_json(&Value::Array(answer));
        return Ok(());
    }
    for value in answer.iter() {
        show(session.output, value);
    }
    Ok(())
}

fn show(output: Output, value: &Value) {
    match (output, typed::<Event>(value)) {
        (Output::Table, Ok(event)) => render::print(&sentence(&event)),
        (Output::Json, _) => render::print_json_line(value),
        (Output::Table, Err(_)) => {}
    }
}

fn sentence(event: &Event) -> String {
    let e = &event.event;
    let about = [
        e.app.as_ref().map(ToString::to_string),
        e.instance.as_ref().map(ToString::to_string),
        e.host.as_ref().map(|h| format!("@{h}")),
    ];
    let about: Vec<String> = about.into_iter().flatten().collect();
    render::safe(&format!(
        "{}  {:<9}  {}  {} ({})",
        event.at,
        e.kind.as_str(),
        about.join("/"),
        e.message,
        e.actor
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{EventKind, NewEvent, Timestamp};

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            seq: 3,
            at: Timestamp::from_millis(1_700_000_000_123),
            event: NewEvent::new(EventKind::Host, "admin", "joined\nthe fleet")
                .about_host(&"h1".parse().expect("valid")),
        };
        assert_eq!(
            sentence(&event),
            "2023-11-14T22:13:20.123Z  host       @h1  joined\\nthe fleet (admin)"
        );
    }
}
