//! A corpus of requests that clients should not send, and of odd ones that they may, each with where it comes from: the section of
//! the RFC that it breaks, or the advisory of a server that fell for it. The tables hold data only; every case is sent to a gateway
//! whole, in pieces, and by several clients at once ([`run`], [`http2`]), and has to come out as its table says:
//!
//! - the client is told what is expected, and the connection goes on or ends as expected;
//! - the app sees exactly the request that is expected, or nothing; never a second one that was hidden in the first, nor a cut one
//!   as if it were whole ([`app`] keeps all bytes and takes them apart strictly);
//! - nothing of it counts against the container;
//! - others, on connections of their own to the same app, get their own answers meanwhile.
//!
//! | family | what it tries |
//! |---|---|
//! | [`framing`] | two lengths, encodings that hide, lengths that are none; early answers; `Expect` |
//! | [`chunks`] | sizes, extensions, line ends and trailers of chunked bodies |
//! | [`grammar`] | request lines, methods, versions, targets, names and values of fields |
//! | [`hosts`] | Host, authorities, absolute targets, CONNECT |
//! | [`fields`] | hop-by-hop fields, what only the gateway may say, upgrades and WebSocket handshakes |
//! | [`sizes`] | heads, fields and targets that are too large; heads and bodies that do not come |
//! | [`http2_cases`] | the same by HTTP/2 |
//! | [`before`] | what comes before a request: PROXY headers, TLS |
//!
//! What containers answer is in `answers`, what becomes of tunnels in `upgrades`, floods of frames in the gateway's own tests.

mod app;
mod before;
mod chunks;
mod fields;
mod framing;
mod grammar;
mod hosts;
mod http2;
mod http2_cases;
mod run;
mod sizes;
mod template;

/// A request of a corpus: its name, its source, its bytes ([`template`]) and what has to come of it.
pub(crate) struct Case(&'static str, &'static str, Ask, Want);

/// The bytes of a request. `Get`, `Post` and `Line` bring the Host that names the case's app.
#[derive(Clone, Copy, Debug)]
enum Ask {
    /// As they are.
    Raw(&'static [u8]),
    /// This request line, with its end.
    Line(&'static [u8]),
    /// A GET of `/a` with these lines of fields.
    Get(&'static [u8]),
    /// A POST to `/a` with these lines of fields, and this body.
    Post(&'static [u8], &'static [u8]),
}

/// What has to come of a request. All but the last three are followed by another one on the same connection, for `/next`, which is the
/// one that would be seen if the first one's end were misjudged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// This status; the connection ends; the app sees nothing.
    Refused(u16),
    /// This status; the connection goes on with the next request; the app sees nothing of this one.
    Answered(u16),
    /// The app sees exactly this: the request line and what fields there are besides those that the gateway adds, with `|` between
    /// them, and this body. The connection goes on with the next request.
    Sees(&'static str, &'static [u8]),
    /// The same, and the connection ends.
    Last(&'static str, &'static [u8]),
    /// 400, and the connection ends: the head is sound, the body is not. The app sees at most a request without an end.
    Broken,
    /// The app answers 200 before it has the body; what follows is the body, or the connection ends.
    Early,
    /// No answer in HTTP/1: the connection ends. (An alert of TLS or a frame of HTTP/2 may say why.)
    Silence,
    /// The client waits: this status, or none for 0, and the connection ends within the limits.
    Cut(u16),
}

#[test]
fn the_corpus_is_large_and_every_case_has_a_source() {
    let http1 = [
        framing::CASES,
        chunks::CASES,
        grammar::CASES,
        hosts::CASES,
        fields::CASES,
        sizes::CASES,
        sizes::SLOW,
        before::PROXY,
        before::TLS,
    ];
    let cases = http1.iter().flat_map(|family| family.iter());
    let mut all: Vec<(&str, &str)> = cases.map(|Case(name, source, ..)| (*name, *source)).collect();
    all.extend(http2_cases::CASES.iter().map(|case| (case.0, case.1)));
    assert!(all.len() >= 250, "{} cases", all.len());
    for (name, source) in &all {
        let known = [
            "RFC ",
            "CVE-",
            "GHSA-",
            "PROXY protocol ",
            "WHATWG ",
            "Unicode ",
            "Kettle ",
            "Kallus ",
            "the gateway's ",
        ];
        let number = source.starts_with("the gateway's") || source.bytes().any(|b| b.is_ascii_digit());
        assert!(
            number && known.iter().any(|k| source.starts_with(k)),
            "{name}: no source: {source:?}"
        );
    }
    let count = all.len();
    all.sort_unstable();
    all.dedup_by_key(|(name, _)| *name);
    assert_eq!(all.len(), count, "names are used once");
}
