//! WebSockets where they meet HTTP/2 and the end of the gateway: an extended CONNECT (RFC 8441) of a client becomes the HTTP/1.1
//! upgrade that all handshakes are here, an upgrade becomes an extended CONNECT for apps that speak HTTP/2, and a tunnel that has
//! to end is closed with a close frame where one may stand.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use ring::digest;

/// What is put behind a client's key before it is hashed (RFC 6455 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// "Going away" (RFC 6455 7.4.1), as a server sends it: final, close, unmasked, two bytes.
pub(crate) const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

/// Whether the protocol that is asked for, or switched to, is WebSocket and nothing else.
pub(crate) fn is_switch(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Makes an extended CONNECT for a WebSocket the upgrade request that it stands for; `false` if it is something else.
pub(crate) fn from_connect(parts: &mut Parts, key: u128) -> bool {
    let asks = parts
        .extensions
        .get::<h2::ext::Protocol>()
        .is_some_and(|p| p.as_str().eq_ignore_ascii_case("websocket"));
    if parts.method != Method::CONNECT || !asks {
        return false;
    }
    parts.method = Method::GET;
    parts.version = Version::HTTP_11;
    parts.headers.insert(header::UPGRADE, WEBSOCKET);
    parts
        .headers
        .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    parts
        .headers
        .insert(header::SEC_WEBSOCKET_KEY, base64(&key.to_be_bytes()));
    // It has no body (RFC 9110 9.3.6): an app that waited for one would take the tunnel's bytes for it.
    parts.headers.remove(header::CONTENT_LENGTH);
    true
}

fn base64(bytes: &[u8]) -> HeaderValue {
    // Base64 is a valid value; the fallback only spares a proof.
    HeaderValue::from_bytes(STANDARD.encode(bytes).as_bytes()).unwrap_or(HeaderValue::from_static(""))
}

/// What a handshake is answered with when the gateway answers it itself: Sec-WebSocket-Accept (RFC 6455 4.2.2). None for one that
/// RFC 6455 4.2.1 has refused: another method than GET, or not one key of 16 bytes.
pub(crate) fn accept(method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None, true) = (keys.next(), keys.next(), *method == Method::GET) else {
        return None;
    };
    let digit = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    if key.len() != 24 || !key.as_bytes().ends_with(b"==") || !key.as_bytes()[..22].iter().all(digit) {
        return None;
    }
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(GUID);
    Some(base64(hash.finish().as_ref()))
}

/// Makes an upgrade request the extended CONNECT that it is in HTTP/2. What is the handshake's own has no place there (RFC 8441 5).
pub(crate) fn to_connect<B>(request: &mut Request<B>) {
    *request.method_mut() = Method::CONNECT;
    request
        .extensions_mut()
        .insert(hyper::ext::Protocol::from_static("websocket"));
    for name in [header::UPGRADE, header::CONNECTION, header::SEC_WEBSOCKET_KEY] {
        request.headers_mut().remove(name);
    }
}

/// Makes an answer that accepts an extended CONNECT the switch that it is in HTTP/1.1; `accept` as [`accept`] gave it.
pub(crate) fn switched<B>(response: &mut Response<B>, accept: HeaderValue) {
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    // A tunnel has none (RFC 9110 9.3.6).
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::UPGRADE, WEBSOCKET);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
}

/// Follows the frames of one direction by their headers.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// Bytes of payload (and mask) until the next header.
    left: u64,
    head: [u8; 10],
    have: usize,
    /// A close frame has gone by: nothing may follow it.
    pub(crate) closed: bool,
}

impl Frames {
    /// These bytes have gone by.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= n as u64;
                bytes = &bytes[n..];
                continue;
            }
            self.head[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            let wanted = match self.head[1] & 127 {
                _ if self.have < 2 => 2,
                127 => 10,
                126 => 4,
                _ => 2,
            };
            if self.have == wanted {
                let mut length = [0; 8];
                let given = &self.head[2..wanted];
                length[8 - given.len()..].copy_from_slice(given);
                self.left = match self.head[1] & 127 {
                    126 | 127 => u64::from_be_bytes(length),
                    short => u64::from(short),
                };
                if self.head[1] & 128 != 0 {
                    self.left = self.left.saturating_add(4);
                }
                self.closed |= self.head[0] & 15 == 8;
                self.have = 0;
            }
        }
    }

    /// Whether a frame may begin here.
    pub(crate) fn between(&self) -> bool {
        self.left == 0 && self.have == 0 && !self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn a_connect_becomes_an_upgrade_and_nothing_else_does() {
        let make = |method: Method, protocol: &'static str| {
            let mut request = Request::new(());
            *request.method_mut() = method;
            *request.version_mut() = Version::HTTP_2;
            request
                .extensions_mut()
                .insert(h2::ext::Protocol::from_static(protocol));
            request.into_parts().0
        };
        let mut parts = make(Method::CONNECT, "websocket");
        assert!(from_connect(&mut parts, 0));
        assert_eq!((parts.method, parts.version), (Method::GET, Version::HTTP_11));
        assert_eq!(parts.headers[header::UPGRADE], "websocket");
        assert_eq!(parts.headers[header::CONNECTION], "upgrade");
        assert_eq!(parts.headers[header::SEC_WEBSOCKET_KEY], "AAAAAAAAAAAAAAAAAAAAAA==");
        assert!(!from_connect(&mut make(Method::CONNECT, "connect-udp"), 0));
        assert!(!from_connect(&mut make(Method::GET, "websocket"), 0));
    }

    #[test]
    fn keys_are_base64() {
        // RFC 6455 1.3
        assert_eq!(base64(b"the sample nonce"), "dGhlIHNhbXBsZSBub25jZQ==");
    }

    #[test]
    fn a_sound_handshake_is_answered_as_its_key_wants() {
        let key = |keys: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for key in keys {
                headers.append(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static(key));
            }
            headers
        };
        // RFC 6455 1.3
        let sound = key(&["dGhlIHNhbXBsZSBub25jZQ=="]);
        let accepted = HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accept(&Method::GET, &sound), Some(accepted.clone()));
        assert_eq!(accept(&Method::POST, &sound), None);
        for keys in [
            &[][..],
            &["dGhlIHNhbXBsZSBub25jZQ"],
            &["dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=="],
            &["dGhlIHNhbXBsZSBub25j-Q=="],
            &["dGhlIHNhbXBsZSBub25jZQAA"],
        ] {
            assert_eq!(accept(&Method::GET, &key(keys)), None, "{keys:?}");
        }
        let mut request = Request::new(());
        *request.headers_mut() = sound;
        request.headers_mut().insert(header::UPGRADE, WEBSOCKET);
        to_connect(&mut request);
        assert_eq!((request.method(), request.headers().len()), (&Method::CONNECT, 0));
        let mut response = Response::new(());
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        switched(&mut response, accepted.clone());
        assert_eq!(response.status(), 101);
        assert!(is_switch(response.headers()) && response.headers()[header::CONNECTION] == "upgrade");
        assert_eq!(response.headers()[header::SEC_WEBSOCKET_ACCEPT], accepted);
        assert_eq!(response.headers().len(), 3);
    }

    #[test]
    fn frames_end_where_they_end() {
        let mut bytes = vec![0x81, 5, b'h', b'e', b'l', b'l', b'o', 0x82, 126, 1, 0];
        bytes.extend([0; 256]);
        bytes.extend([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        bytes.extend(vec![0; 65_536]);
        // Masked, empty, and a ping.
        bytes.extend([0x81, 0x80, 1, 2, 3, 4, 0x89, 0]);
        let ends = [0, 7, 267, 65_813, 65_819, 65_821];
        let mut frames = Frames::default();
        for (i, byte) in bytes.iter().enumerate() {
            assert_eq!(frames.between(), ends.contains(&i), "{i}");
            frames.pass(&[*byte]);
        }
        assert!(frames.between());
        let mut whole = Frames::default();
        whole.pass(&bytes);
        assert!(whole.between());
        whole.pass(&GOING_AWAY);
        assert!(whole.closed && !whole.between());
    }
}
