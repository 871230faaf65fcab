//! The first message of a TLS client, read before anything is answered: it names the server that the client wants, by which a
//! certificate is chosen or the connection goes elsewhere untouched.

use std::io;

use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest first message with its framing. Clients with post-quantum keys send 2 KiB; rustls itself reads no more at once.
const LONGEST: usize = 16 * 1024;

/// A whole first message.
pub(crate) struct Hello {
    /// Everything read so far, as it came: the message, and perhaps bytes after it.
    pub(crate) raw: Vec<u8>,
    pub(crate) accepted: Accepted,
}

impl Hello {
    /// The server that the client names, in lower case.
    pub(crate) fn server_name(&self) -> Option<String> {
        self.accepted.client_hello().server_name().map(str::to_ascii_lowercase)
    }

    /// Whether the client offers this protocol, and no other.
    pub(crate) fn offers(&self, protocol: &[u8]) -> bool {
        let hello = self.accepted.client_hello();
        hello
            .alpn()
            .is_some_and(|mut all| all.next() == Some(protocol) && all.next().is_none())
    }
}

/// Why there is no [`Hello`].
#[derive(Debug)]
pub(crate) enum NoHello {
    /// The client left, or the connection broke.
    Closed,
    /// The client speaks HTTP without TLS.
    PlainHttp,
    /// It is nothing that a client would send, or too long.
    Bad,
    /// What rustls has against it, and the alert that says so.
    Refused(rustls::Error, Vec<u8>),
}

impl From<io::Error> for NoHello {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// Reads the first message; `before` was read already. The caller limits the time.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), before: Vec<u8>) -> Result<Hello, NoHello> {
    let mut acceptor = Acceptor::default();
    let mut raw = before;
    let mut told = 0;
    loop {
        if let Some(first) = raw.first()
            && first.is_ascii_uppercase()
        {
            return Err(NoHello::PlainHttp);
        }
        if raw.len() > LONGEST {
            return Err(NoHello::Bad);
        }
        while told < raw.len() {
            let mut rest = &raw[told..];
            // Refuses more than it has room for.
            match acceptor.read_tls(&mut rest) {
                Ok(n @ 1..) => told += n,
                _ => return Err(NoHello::Bad),
            }
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(Hello { raw, accepted }),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                // Writing to memory does not fail.
                let _ = alert.write_all(&mut bytes);
                return Err(NoHello::Refused(error, bytes));
            }
        }
        raw.reserve(2_048);
        if stream.read_buf(&mut raw).await? == 0 {
            return Err(NoHello::Closed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// What a client sends first to reach `name`.
    fn first_message(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("to memory");
        bytes
    }

    fn outcome(bytes: &[u8], before: usize) -> Result<Hello, NoHello> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let (before, mut rest) = bytes.split_at(before.min(bytes.len()));
        runtime.block_on(read(&mut rest, before.to_vec()))
    }

    fn whole(bytes: &[u8], before: usize) -> Hello {
        outcome(bytes, before).unwrap_or_else(|no| panic!("a hello: {no:?}"))
    }

    #[test]
    fn the_name_is_known_before_an_answer_and_every_byte_is_kept() {
        let bytes = first_message("Shop.Example.com");
        let mut with_more = bytes.clone();
        with_more.extend(b"\x14\x03\x03\x00\x01\x01");
        for (bytes, before) in [
            (&bytes, 0),
            (&bytes, 7),
            (&bytes, bytes.len()),
            (&with_more, with_more.len()),
        ] {
            let hello = whole(bytes, before);
            assert_eq!(hello.server_name().as_deref(), Some("shop.example.com"));
            assert!(bytes.starts_with(&hello.raw) && hello.raw.len() >= before);
        }
        // In records of one byte, as some clients send it to get past filters.
        let mut crumbs = Vec::new();
        for byte in &bytes[5..] {
            crumbs.extend([0x16, 3, 1, 0, 1, *byte]);
        }
        let hello = whole(&crumbs, 0);
        assert_eq!(hello.server_name().as_deref(), Some("shop.example.com"));
        assert_eq!(whole(&first_message("10.0.0.1"), 0).server_name(), None);
    }

    #[test]
    fn what_is_no_hello() {
        let bytes = first_message("a.test");
        assert!(matches!(outcome(b"GET / HTTP/1.1\r\n\r\n", 0), Err(NoHello::PlainHttp)));
        assert!(matches!(outcome(b"", 0), Err(NoHello::Closed)));
        assert!(matches!(outcome(&bytes[..bytes.len() - 1], 0), Err(NoHello::Closed)));
        let mut alerted = 0;
        for bad in [
            &b"\x00\x01\x02\x03\x04\x05\x06\x07"[..],
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
            b"\x15\x03\x01\x00\x02\x01\x00",
            b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00",
        ] {
            match outcome(bad, 0) {
                Err(NoHello::Refused(_, alert)) => alerted += usize::from(alert.first() == Some(&0x15)),
                Err(NoHello::Bad | NoHello::Closed) => {}
                _ => panic!("{bad:?}"),
            }
        }
        assert!(alerted > 0);
        // A message that claims to be longer than any is given up.
        let mut endless = Vec::new();
        for _ in 0..20 {
            endless.extend([0x16, 3, 1, 0x10, 0]);
            endless.extend([1, 0, 0xff, 0xff]);
            endless.extend([0; 4_092]);
        }
        assert!(matches!(outcome(&endless, 0), Err(NoHello::Bad | NoHello::Refused(..))));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), flip in any::<(usize, u8)>()) {
            let _ = outcome(&bytes, 0);
            let mut hello = first_message("a.test");
            let at = flip.0 % hello.len();
            hello[at] ^= flip.1;
            let _ = outcome(&hello, 0);
        }
    }
}
