//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): `traceparent` and `tracestate` go on as they came, always. Only with an
//! access log, whose lines carry it, a request without a sound one gets one; its trace is then the request id, so that both find the
//! same lines. Without a log nobody could look such a trace up at the gateway, so the app begins its own.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::worker::hex;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Some digit of the hexadecimal text is not zero.
fn id(text: &[u8], length: usize) -> bool {
    let digit = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    text.len() == length && text.iter().all(digit) && text.iter().any(|b| *b != b'0')
}

/// Whether it can be passed on: version, trace, span and flags; later versions may say more.
fn sound(value: &[u8]) -> bool {
    let mut parts = value.splitn(5, |b| *b == b'-');
    let (version, trace, span, flags) = (parts.next(), parts.next(), parts.next(), parts.next());
    let two = |text: Option<&[u8]>| text.is_some_and(|t| id(t, 2) || t == b"00");
    two(version)
        && version != Some(b"ff")
        && trace.is_some_and(|t| id(t, 32))
        && span.is_some_and(|t| id(t, 16))
        && two(flags)
        && (parts.next().is_none() || version != Some(b"00"))
}

/// The request's `traceparent`, made and added where there is no sound one.
pub(crate) fn parent(headers: &mut HeaderMap, request_id: Option<&HeaderValue>) -> Option<HeaderValue> {
    let mut all = headers.get_all(&TRACEPARENT).iter();
    if let (Some(only), None) = (all.next(), all.next())
        && sound(only.as_bytes())
    {
        return Some(only.clone());
    }
    let mut made = *b"00-00000000000000000000000000000000-0000000000000000-01";
    match request_id.map(HeaderValue::as_bytes).filter(|text| id(text, 32)) {
        Some(trace) => made[3..35].copy_from_slice(trace),
        None => {
            made[3..19].copy_from_slice(&hex(rand::random()));
            made[19..35].copy_from_slice(&hex(rand::random::<u64>().max(1)));
        }
    }
    made[36..52].copy_from_slice(&hex(rand::random::<u64>().max(1)));
    let made = HeaderValue::from_bytes(&made).ok()?;
    headers.insert(TRACEPARENT, made.clone());
    // It belongs to the trace that could not be read.
    headers.remove(TRACESTATE);
    Some(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_sound_one_goes_on() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(SOUND));
        headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
        assert_eq!(parent(&mut headers, None).expect("there"), SOUND);
        assert_eq!(headers[TRACESTATE], "a=b");
        assert!(sound(b"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more"));
    }

    #[test]
    fn any_other_is_replaced() {
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_static(bad));
            headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
            let made = parent(&mut headers, None).expect("made");
            assert!(
                sound(made.as_bytes()) && headers[TRACEPARENT] == made,
                "{bad}: {made:?}"
            );
            assert!(!headers.contains_key(TRACESTATE));
        }
        let request = HeaderValue::from_static("0af7651916cd43dd8448eb211c80319c");
        let made = parent(&mut HeaderMap::new(), Some(&request)).expect("made");
        assert!(
            made.to_str()
                .expect("text")
                .starts_with("00-0af7651916cd43dd8448eb211c80319c-")
        );
    }
}
