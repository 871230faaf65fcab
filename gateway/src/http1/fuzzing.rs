//! Answers in arbitrary bytes: the same however they are cut, and held within bounds.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::decode::Decoder;
use super::head::Extent;
use super::reading::{Bounds, Reading};

/// Such that no input of a fuzzer meets them.
const WIDE: Bounds = Bounds {
    head: 1 << 20,
    all: 1 << 21,
    fields: 100,
};
/// Such that many do.
const NARROW: Bounds = Bounds {
    head: 200,
    all: 400,
    fields: 5,
};

/// What is read of an answer.
#[derive(Debug, PartialEq)]
struct Outcome {
    interim: Vec<(StatusCode, HeaderMap)>,
    /// None where there is none, be it that it is unfinished or that it can't be one.
    answer: Option<Whole>,
}

#[derive(Debug, PartialEq)]
struct Whole {
    status: StatusCode,
    reason: Option<Bytes>,
    fields: HeaderMap,
    extent: Extent,
    keeps: bool,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    /// The body has ended as it must.
    ended: bool,
    /// What came behind it.
    behind: Vec<u8>,
    /// Bytes that came behind the head.
    after: usize,
}

/// Reads what comes in these pieces, as [`super::Http1`] and [`super::Arriving`] do, to the end of the connection.
fn read<'a>(mut pieces: impl Iterator<Item = &'a [u8]>, head_only: bool, bounds: &Bounds) -> Outcome {
    let mut reading = Reading::new(head_only);
    let mut interim = Vec::new();
    let mut answer = None;
    while answer.is_none() {
        let Some(piece) = pieces.next() else { break };
        let read = match reading.come(Bytes::copy_from_slice(piece), bounds) {
            Some(bytes) => {
                let hear = |status, fields| interim.push((status, fields));
                reading.read(&bytes, bounds, HeaderMap::new, hear, &mut answer)
            }
            None => Ok(()),
        };
        assert!(reading.begun.len() <= bounds.head, "more is held than a head may have");
        if read.is_err() {
            break;
        }
    }
    let Some(super::Answer { head, rest }) = answer else {
        return Outcome { interim, answer: None };
    };
    let mut decoder = Decoder::new(head.extent);
    let mut after = 0;
    let (mut body, mut behind, mut trailers, mut broken) = (Vec::new(), Vec::new(), None, false);
    for piece in std::iter::once(rest).chain(pieces.map(Bytes::copy_from_slice)) {
        after += piece.len();
        let mut bytes = piece;
        while !broken && !bytes.is_empty() && !decoder.is_done() {
            let before = bytes.len();
            match decoder.next(&mut bytes) {
                Ok(Some(frame)) => match frame.into_data() {
                    Ok(data) => body.extend_from_slice(&data),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                },
                Ok(None) => assert!(bytes.len() < before, "it would be read for ever"),
                Err(_) => broken = true,
            }
            assert!(decoder.held() <= 16 * 1024, "more is held than trailers may have");
        }
        if !broken {
            behind.extend_from_slice(&bytes);
        }
    }
    let ended = !broken && decoder.end().is_ok();
    let answer = Some(Whole {
        status: head.status,
        reason: head.reason,
        fields: head.fields,
        extent: head.extent,
        keeps: head.keeps,
        body,
        trailers,
        ended,
        behind,
        after,
    });
    Outcome { interim, answer }
}

/// The body of a chunked message that is sound, and what stands behind it, read in the plainest way.
fn plainly(mut text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let find = |text: &[u8], what: &[u8]| text.windows(what.len()).position(|w| w == what);
    let mut body = Vec::new();
    loop {
        let line =
            std::str::from_utf8(&text[..find(text, b";").unwrap_or(text.len()).min(find(text, b"\r\n")?)]).ok()?;
        let size = u64::from_str_radix(line.trim_end_matches([' ', '\t']), 16).ok()?;
        text = &text[find(text, b"\r\n")? + 2..];
        if size == 0 {
            break;
        }
        let (data, rest) = text.split_at_checked(usize::try_from(size).ok()?)?;
        body.extend_from_slice(data);
        text = rest.strip_prefix(b"\r\n")?;
    }
    let rest = match text.strip_prefix(b"\r\n") {
        Some(rest) => rest,
        None => &text[find(text, b"\r\n\r\n")? + 4..],
    };
    Some((body, rest))
}

/// Cuts `text` into pieces of sizes that `cuts` decides.
fn cut(text: &[u8], mut cuts: u64) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        // A step of splitmix64's counter and mixing; small pieces often, large ones sometimes.
        cuts = cuts.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (cuts ^ (cuts >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let most = 1_usize << (mixed >> 61);
        let (piece, after) = rest.split_at(rest.len().min(1 + (mixed >> 40) as usize % most));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The first byte says by `H` that the request was HEAD, the second how the rest, the answer, is cut.
pub(crate) fn answer(data: &[u8]) {
    let [method, cuts, text @ ..] = data else { return };
    let (head_only, cuts) = (*method == b'H', u64::from(*cuts));
    let whole = read(std::iter::once(text), head_only, &WIDE);
    assert_eq!(read(text.chunks(1), head_only, &WIDE), whole, "byte by byte");
    assert_eq!(read(cut(text, cuts), head_only, &WIDE), whole, "cut {cuts}");
    for narrow in [
        read(cut(text, cuts), head_only, &NARROW),
        read(text.chunks(1), head_only, &NARROW),
    ] {
        assert!(
            narrow.answer.is_none() || narrow == whole,
            "refused or the same: {narrow:?}"
        );
    }
    assert!(whole.interim.len() <= super::INTERIM as usize);
    let Some(whole) = whole.answer else { return };
    let bodiless = head_only || matches!(whole.status.as_u16(), 100..=199 | 204 | 304);
    assert!(
        !bodiless || (whole.body.is_empty() && whole.ended),
        "a body where none can be"
    );
    assert!(whole.trailers.is_none() || whole.ended);
    let bytes = [&whole.body[..], &whole.behind].concat();
    match whole.extent {
        Extent::Length(length) => {
            assert_eq!(whole.ended, whole.body.len() as u64 == length);
            assert!(text.ends_with(&bytes), "bytes were lost");
        }
        Extent::Close => assert!(
            whole.ended && whole.behind.is_empty() && text.ends_with(&bytes),
            "bytes were lost"
        ),
        Extent::Chunked if whole.ended => {
            let plain = plainly(&text[text.len() - whole.after..]);
            assert_eq!(plain, Some((whole.body, &whole.behind[..])), "read in the plainest way");
        }
        Extent::Chunked => assert!(whole.body.len() <= whole.after && whole.behind.is_empty()),
    }
}
