//! WebSockets where they meet HTTP/2 and the end of the gateway: an extended CONNECT (RFC 8441) becomes the HTTP/1.1 upgrade
//! that containers speak, and a tunnel that has to end is closed with a close frame where one may stand.

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Version};

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// "Going away" (RFC 6455 7.4.1), as a server sends it: final, close, unmasked, two bytes.
pub(crate) const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

/// Whether an answer with status 101 switched to WebSocket.
pub(crate) fn is_switch(headers: &http::HeaderMap) -> bool {
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
    parts.headers.insert(header::SEC_WEBSOCKET_KEY, base64(key));
    true
}

/// 16 bytes in base64 (RFC 4648), as Sec-WebSocket-Key wants them.
fn base64(key: u128) -> HeaderValue {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = *b"========================";
    // 21 whole digits from the left, and one of the last two bits.
    for (i, digit) in text.iter_mut().take(22).enumerate() {
        let bits = if i < 21 { key >> (122 - 6 * i) } else { key << 4 };
        *digit = DIGITS[(bits & 63) as usize];
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
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
        assert_eq!(
            base64(u128::from_be_bytes(*b"the sample nonce")),
            "dGhlIHNhbXBsZSBub25jZQ=="
        );
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
