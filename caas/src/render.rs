//! What people and scripts read: tables, JSON, ages, sizes, and the live steps of an operation.

use std::io::{IsTerminal as _, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use model::{Operation, OperationState, StepState, Timestamp};
use serde_json::Value;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// Tables and sentences for people.
    #[default]
    Table,
    /// The API's JSON.
    Json,
}

/// Writes `text` and a line end to standard output. When nobody reads any more (`caas events | head`), the run is over.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Why a run failed, to standard error.
pub(crate) fn print_error(failure: &crate::exit::Failure) {
    // When even that can't be written, the exit code still says it.
    let _ = writeln!(std::io::stderr(), "{failure}");
}

/// The API's answer, for scripts.
pub(crate) fn print_json(value: &Value) {
    print(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// One JSON value per line, for streams.
pub(crate) fn print_json_line(value: &Value) {
    print(&value.to_string());
}

/// A table without lines: easy to read, easy to cut with `awk`.
pub(crate) fn table(headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headers.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| safe(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    // Without the padding of the last column.
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// `text` without control characters, so that what a container writes can't steer the terminal. Tabs stay.
pub(crate) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A log line as the container meant it: colours stay, everything else that steers the terminal is shown, not obeyed.
pub(crate) fn safe_log(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_control() && c != '\t') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let colour = colour_sequence(from);
        if colour > 0 {
            out.push_str(&from[..colour]);
            rest = &from[colour..];
        } else if let Some(c) = from.chars().next() {
            if c != '\r' {
                out.extend(c.escape_default());
            }
            rest = &from[c.len_utf8()..];
        }
    }
    out.push_str(rest);
    out
}

/// Length of the SGR sequence (`ESC [ digits ; … m`) at the start of `text`; 0 if there is none.
fn colour_sequence(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("\u{1b}[") else {
        return 0;
    };
    match rest.find(|c: char| !(c.is_ascii_digit() || c == ';')) {
        Some(end) if rest.as_bytes()[end] == b'm' => 2 + end + 1,
        _ => 0,
    }
}

/// `17s`, `5m`, `3h`, `12d`.
pub(crate) fn span(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..=119 => format!("{s}s"),
        120..=7_199 => format!("{}m", s / 60),
        7_200..=172_799 => format!("{}h", s / 3_600),
        _ => format!("{}d", s / 86_400),
    }
}

/// How long ago `at` was.
pub(crate) fn age(at: Timestamp) -> String {
    span(Timestamp::now().since(at))
}

/// `512M`, `1.5G`.
pub(crate) fn mib(mib: u32) -> String {
    if mib < 1024 {
        format!("{mib}M")
    } else if mib.is_multiple_of(1024) {
        format!("{}G", mib / 1024)
    } else {
        format!("{:.1}G", f64::from(mib) / 1024.0)
    }
}

/// Shows an operation's steps while they happen: on a terminal in place, otherwise one line per change.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    shown: Vec<String>,
    drawn: usize,
}

impl Progress {
    /// Shows on standard error, so that standard output holds results only.
    pub(crate) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            shown: Vec::new(),
            drawn: 0,
        }
    }

    /// Shows how far `operation` is.
    pub(crate) fn show(&mut self, operation: &Operation) {
        let lines = step_lines(operation);
        if lines == self.shown {
            return;
        }
        let mut text = String::new();
        if self.terminal {
            if self.drawn > 0 {
                text.push_str(&format!("\u{1b}[{}A\u{1b}[J", self.drawn));
            }
            for line in &lines {
                text.push_str(line);
                text.push('\n');
            }
            self.drawn = lines.len();
        } else {
            // Steps that have not begun say nothing yet.
            for line in lines
                .iter()
                .filter(|l| !l.starts_with("  ·") && !self.shown.contains(l))
            {
                text.push_str(line);
                text.push('\n');
            }
        }
        self.shown = lines;
        // Progress is no result: when nobody sees it, the work goes on.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// One line per step, and one for what is waited for.
pub(crate) fn step_lines(operation: &Operation) -> Vec<String> {
    let mut lines: Vec<String> = operation
        .steps
        .iter()
        .map(|step| {
            let mark = match step.state {
                StepState::Pending => "·",
                StepState::Running => "…",
                StepState::Done => "✓",
                StepState::Failed => "✗",
            };
            format!("  {mark} {:<8}{}", safe(&step.name), safe(&step.detail))
                .trim_end()
                .to_owned()
        })
        .collect();
    if operation.state == OperationState::Blocked {
        lines.push(format!("  ! {}", waiting_sentence(operation)));
        lines.extend(operation.reasons.iter().map(|r| format!("    {}", safe(r))));
    }
    lines
}

fn waiting_sentence(operation: &Operation) -> String {
    if operation.message.is_empty() {
        "no host fits: it is placed as soon as one does".into()
    } else {
        safe(&operation.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Step;

    #[test]
    fn tables_are_aligned_and_bare() {
        let text = table(
            &["APP", "STATE"],
            vec![vec!["hello".into(), "running".into()], vec!["a".into(), "x\ny".into()]],
        );
        assert_eq!(text, "APP    STATE\nhello  running\na      x\\ny");
    }

    #[test]
    fn ages_and_sizes() {
        let span_of = |s| span(Duration::from_secs(s));
        assert_eq!(
            [span_of(5), span_of(119), span_of(120), span_of(7_200), span_of(200_000)],
            ["5s", "119s", "2m", "2h", "2d"]
        );
        assert_eq!([mib(512), mib(1024), mib(1536)], ["512M", "1G", "1.5G"]);
    }

    #[test]
    fn containers_cannot_steer_the_terminal() {
        assert_eq!(safe("a\u{1b}[2Jb\tc"), "a\\u{1b}[2Jb\tc");
        assert_eq!(safe_log("\u{1b}[31mred\u{1b}[0m ok\r"), "\u{1b}[31mred\u{1b}[0m ok");
        assert_eq!(safe_log("\u{1b}]0;title\u{7}"), "\\u{1b}]0;title\\u{7}");
        assert_eq!(safe_log("\u{1b}[2J"), "\\u{1b}[2J");
        assert_eq!(safe_log("\u{1b}["), "\\u{1b}[");
    }

    #[test]
    fn steps_are_shown_with_marks() {
        let step = |name: &str, state, detail: &str| Step {
            name: name.into(),
            state,
            detail: detail.into(),
            at: Timestamp::default(),
        };
        let operation = Operation {
            id: "op-1234".parse().expect("valid"),
            kind: model::OperationKind::Deploy,
            app: None,
            host: None,
            release: None,
            state: OperationState::Blocked,
            message: String::new(),
            failure: None,
            steps: vec![
                step("pull", StepState::Done, "2 of 2 instances"),
                step("create", StepState::Running, ""),
                step("start", StepState::Pending, ""),
            ],
            reasons: vec!["memory: 3 hosts refused".into()],
            created_at: Timestamp::default(),
            updated_at: Timestamp::default(),
            generation: model::Generation::FIRST,
        };
        assert_eq!(
            step_lines(&operation),
            [
                "  ✓ pull    2 of 2 instances",
                "  … create",
                "  · start",
                "  ! no host fits: it is placed as soon as one does",
                "    memory: 3 hosts refused"
            ]
        );
    }
}
