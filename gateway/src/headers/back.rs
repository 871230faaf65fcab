//! What of an answer's header, and of either side's trailers, is sent on.

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};

use super::{
    CONNECTION, CONTENT_LENGTH, Facts, KEEP_ALIVE, PROXY_CONNECTION, REASON, TRANSFER_ENCODING, UPGRADE, gateway_says,
    is_h2c, remove_flagged, tokens,
};

/// Whether an answer that switches protocols switches to the one that was asked for.
pub(crate) fn switches_as_asked(asked: Option<&HeaderValue>, answer: &HeaderMap) -> bool {
    let connection = answer.get_all(header::CONNECTION);
    let says = |value| tokens(value).any(|t: &[u8]| t.eq_ignore_ascii_case(b"upgrade"));
    let mut switched = answer.get_all(header::UPGRADE).iter();
    match (asked, switched.next(), switched.next()) {
        (Some(asked), Some(to), None) => {
            connection.iter().any(says) && tokens(asked).any(|t| t.eq_ignore_ascii_case(to.as_bytes().trim_ascii()))
        }
        _ => false,
    }
}

/// The protocol without which an app does not answer (426, RFC 9110 15.5.22), unless nobody may speak it here.
pub(crate) fn upgrade_wanted(status: StatusCode, answer: &HeaderMap) -> Option<HeaderValue> {
    if status != StatusCode::UPGRADE_REQUIRED {
        return None;
    }
    let wanted = answer.get(header::UPGRADE)?;
    (!tokens(wanted).any(is_h2c)).then(|| wanted.clone())
}

/// Makes an answer's headers what the client is to see; `false` when its Transfer-Encoding is something else than one `chunked`:
/// no other was asked for, and none is undone here.
#[must_use]
pub(crate) fn rewrite_answer(headers: &mut HeaderMap, upgraded: bool) -> bool {
    let mut facts = Facts::default();
    let mut sound = true;
    for (name, value) in &*headers {
        match name.as_str().len() {
            7 if *name == header::UPGRADE => facts.remove |= UPGRADE,
            10 if *name == header::CONNECTION => facts.connection(value),
            10 if name.as_str() == "keep-alive" => facts.remove |= KEEP_ALIVE,
            13 if *name == crate::answer::REASON_HEADER => facts.remove |= REASON,
            16 if name.as_str() == "proxy-connection" => facts.remove |= PROXY_CONNECTION,
            17 if *name == header::TRANSFER_ENCODING => {
                sound &= facts.remove & TRANSFER_ENCODING == 0
                    && value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
                // The encoding decided the framing; a length beside it must not reach anybody.
                facts.remove |= TRANSFER_ENCODING | CONTENT_LENGTH;
            }
            _ => {}
        }
    }
    if upgraded {
        facts.remove &= !(UPGRADE | CONNECTION);
    }
    if facts.remove != 0 {
        remove_flagged(headers, facts.remove);
    }
    for name in &facts.also {
        headers.remove(name);
    }
    sound
}

/// Takes out of trailers what an endpoint or a client might read as if it stood in the head: who asks, framing and routing
/// (RFC 9110 6.5.1).
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    let mut also = Vec::new();
    for name in trailers.keys() {
        let framing = [
            header::HOST,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::CONNECTION,
            header::UPGRADE,
            header::TE,
            header::TRAILER,
            header::EXPECT,
            header::AUTHORIZATION,
            header::COOKIE,
            header::SET_COOKIE,
        ];
        let hop = matches!(
            name.as_str(),
            "keep-alive" | "proxy-connection" | "proxy" | "content_length" | "transfer_encoding"
        );
        if hop || framing.contains(name) || gateway_says(name.as_str()) {
            also.push(name.clone());
        }
    }
    for name in also {
        trailers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::map;
    use super::*;

    #[test]
    fn answers_lose_framing_and_hop_by_hop() {
        let pairs = [
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("connection", "close, x-gone"),
            ("x-gone", "1"),
            ("x-stays", "1"),
            ("upgrade", "h2"),
            ("keep-alive", "timeout=5"),
            ("x-caas-reason", "forged"),
        ];
        let mut headers = map(&pairs);
        assert!(rewrite_answer(&mut headers, false));
        assert_eq!(headers, map(&[("x-stays", "1")]));
        let mut headers = map(&[("connection", "upgrade"), ("upgrade", "websocket")]);
        assert!(rewrite_answer(&mut headers, true));
        assert_eq!(headers.len(), 2);
        for unsound in [&["gzip"][..], &["chunked, chunked"], &["chunked", "chunked"], &[""]] {
            let pairs: Vec<_> = unsound.iter().map(|v| ("transfer-encoding", *v)).collect();
            assert!(!rewrite_answer(&mut map(&pairs), false), "{unsound:?}");
        }
    }

    #[test]
    fn trailers_say_nothing_that_a_head_says() {
        let mut trailers = map(&[
            ("grpc-status", "0"),
            ("x-checksum", "abc"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("x-caas-reason", "forged"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "evil"),
            ("content_length", "5"),
            ("authorization", "Basic x"),
        ]);
        clean_trailers(&mut trailers);
        assert_eq!(trailers, map(&[("grpc-status", "0"), ("x-checksum", "abc")]));
    }

    #[test]
    fn a_switch_is_to_what_was_asked_for() {
        let asked = HeaderValue::from_static("websocket");
        let answer = |pairs: &[(&str, &str)]| switches_as_asked(Some(&asked), &map(pairs));
        assert!(answer(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket")
        ]));
        assert!(!answer(&[("connection", "upgrade"), ("upgrade", "h2c")]));
        assert!(!answer(&[("connection", "upgrade")]));
        assert!(!answer(&[("upgrade", "websocket")]));
        assert!(!answer(&[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("upgrade", "x")
        ]));
        assert!(!switches_as_asked(
            None,
            &map(&[("connection", "upgrade"), ("upgrade", "websocket")])
        ));
    }
}
