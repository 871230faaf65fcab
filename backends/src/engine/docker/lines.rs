//! A container's log, from Docker's frames to lines. Does no I/O.
//!
//! With `timestamps` each frame is `<RFC 3339> <text>`; a line beyond 16 KiB comes as several frames, of which only the
//! last ends with a newline. Each frame becomes a line of its own, so that none is longer than that.

use model::Timestamp;
use model::engine::LogLine;

use super::read::timestamp;

/// Longest line, bytes: where Docker cuts, too.
const MAX_LINE: usize = 16 * 1024;

/// The lines within one frame, those before `since` left out.
pub(super) fn lines(stderr: bool, frame: &[u8], since: Option<Timestamp>) -> Vec<LogLine> {
    let (at, text) = split_time(frame);
    if let (Some(at), Some(since)) = (at, since)
        && at < since
    {
        return Vec::new();
    }
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.split(|b| *b == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .flat_map(pieces)
        .map(|piece| LogLine {
            at,
            stderr,
            text: String::from_utf8_lossy(piece).into_owned(),
        })
        .collect()
}

fn split_time(frame: &[u8]) -> (Option<Timestamp>, &[u8]) {
    // "2006-01-02T15:04:05.000000000Z" has 30 characters; with an offset in place of Z at most 35.
    let end = frame.iter().take(36).position(|b| *b == b' ');
    let at = end
        .and_then(|end| std::str::from_utf8(&frame[..end]).ok())
        .and_then(timestamp);
    match (end, at) {
        (Some(end), Some(at)) => (Some(at), &frame[end + 1..]),
        _ => (None, frame),
    }
}

/// `line` in pieces of at most [`MAX_LINE`] bytes, cut between characters; an empty line is one empty piece.
fn pieces(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        if line.len() <= MAX_LINE {
            return rest.take();
        }
        // A UTF-8 character has at most three following bytes (10xxxxxx).
        let cut = (MAX_LINE - 3..=MAX_LINE)
            .rev()
            .find(|i| line[*i] & 0xC0 != 0x80)
            .unwrap_or(MAX_LINE);
        let (piece, after) = line.split_at(cut);
        rest = Some(after);
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(frame: &[u8]) -> Vec<String> {
        lines(false, frame, None).into_iter().map(|l| l.text).collect()
    }

    #[test]
    fn a_frame_is_a_line_with_its_time() {
        let found = lines(true, b"2026-11-21T02:33:44.123456789Z hello world\r\n", None);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].text, "hello world");
        assert!(found[0].stderr);
        assert_eq!(
            found[0].at.map(|t| t.to_string()).as_deref(),
            Some("2026-11-21T02:33:44.123Z")
        );
    }

    #[test]
    fn frames_without_time_and_with_several_lines() {
        assert_eq!(texts(b"no time here\n"), ["no time here"]);
        assert_eq!(texts(b"2026-11-21T02:33:44Z a\n\nb\n"), ["a", "", "b"]);
        assert_eq!(texts(b"2026-11-21T02:33:44Z \n"), [""]);
        assert_eq!(texts(b""), [""]);
        assert_eq!(texts(b"\xff\xfe\n"), ["\u{fffd}\u{fffd}"]);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let long = "é".repeat(MAX_LINE);
        let found = texts(long.as_bytes());
        assert!(found.iter().all(|t| t.len() <= MAX_LINE && !t.contains('\u{fffd}')));
        assert_eq!(found.concat(), long);
        assert_eq!(texts(&[0x80; MAX_LINE + 1]).len(), 2);
    }

    #[test]
    fn lines_before_since_are_left_out() {
        let frame = b"2026-11-21T02:33:44.100Z old\n";
        let at = timestamp("2026-11-21T02:33:44.100Z").expect("a time");
        assert_eq!(lines(false, frame, Some(at)).len(), 1);
        assert_eq!(
            lines(false, frame, Some(at.plus(std::time::Duration::from_millis(1)))).len(),
            0
        );
    }
}
