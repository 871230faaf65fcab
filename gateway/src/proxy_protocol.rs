//! The PROXY protocol, versions 1 and 2: who the client is, told by a balancer in front that forwards TCP. Reading the header
//! is bounded; what it says is believed only from peers that are configured, which is decided elsewhere.
//!
//! Source: "The PROXY protocol, versions 1 & 2", HAProxy 2020/03/05 (doc/proxy-protocol.txt).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest line of version 1 with its end (section 2.1).
const LONGEST_V1: usize = 107;
/// Longest header of version 2 that is read: what every receiver must take (section 2.2). TLVs beyond it are refused.
const LONGEST_V2: usize = 536;
/// How version 2 begins.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// How version 1 begins.
const WORD: &[u8; 6] = b"PROXY ";

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes that it takes.
    pub(crate) length: usize,
    /// Where the client is and where it connected to; `None` when the balancer speaks for itself (LOCAL, UNKNOWN) or the
    /// client has no IP address.
    pub(crate) addresses: Option<(SocketAddr, SocketAddr)>,
}

/// What can't be, or is no more, a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bad;

/// Reads a header from the first bytes of a connection; `None` while more of it must come.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Header>, Bad> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    if begins(SIGNATURE) {
        if bytes.len() < 16 {
            // Wrong from here on is wrong at once.
            return match bytes.get(12) {
                Some(0x20 | 0x21) | None => Ok(None),
                Some(_) => Err(Bad),
            };
        }
        version_2(bytes)
    } else if begins(WORD) {
        version_1(bytes)
    } else {
        Err(Bad)
    }
}

fn version_1(bytes: &[u8]) -> Result<Option<Header>, Bad> {
    let window = &bytes[..bytes.len().min(LONGEST_V1)];
    let Some(end) = window.windows(2).position(|w| w == b"\r\n") else {
        return if bytes.len() < LONGEST_V1 { Ok(None) } else { Err(Bad) };
    };
    let line = std::str::from_utf8(window.get(WORD.len()..end).ok_or(Bad)?).map_err(|_| Bad)?;
    let length = end + 2;
    let mut words = line.split(' ');
    let family = words.next();
    if family == Some("UNKNOWN") {
        let addresses = None;
        return Ok(Some(Header { length, addresses }));
    }
    let mut ip = || {
        let word = words.next().ok_or(Bad)?;
        match family {
            Some("TCP4") => word.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| Bad),
            Some("TCP6") => word.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| Bad),
            _ => Err(Bad),
        }
    };
    let (from, to) = (ip()?, ip()?);
    let mut port = || {
        let word = words.next().ok_or(Bad)?;
        let digits = (1..=5).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_digit());
        let plain = digits && (word.len() == 1 || !word.starts_with('0'));
        if plain {
            word.parse::<u16>().map_err(|_| Bad)
        } else {
            Err(Bad)
        }
    };
    let (from_port, to_port) = (port()?, port()?);
    if words.next().is_some() {
        return Err(Bad);
    }
    let addresses = Some((SocketAddr::new(from, from_port), SocketAddr::new(to, to_port)));
    Ok(Some(Header { length, addresses }))
}

/// `bytes` are at least 16, the signature first.
fn version_2(bytes: &[u8]) -> Result<Option<Header>, Bad> {
    let local = match bytes[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(Bad),
    };
    let size = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let length = 16 + size;
    if length > LONGEST_V2 {
        return Err(Bad);
    }
    // Any family is to be passed over when the balancer speaks for itself.
    let kind = if local { 0 } else { bytes[13] };
    let least = match kind {
        // Unspecified, which has no address.
        0x00 => 0,
        // TCP over IPv4, IPv6, and a Unix socket's stream.
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        _ => return Err(Bad),
    };
    if size < least {
        return Err(Bad);
    }
    let Some(block) = bytes.get(16..length) else {
        return Ok(None);
    };
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    let addresses = match kind {
        0x11 => {
            let ip = |at: usize| IpAddr::from([block[at], block[at + 1], block[at + 2], block[at + 3]]);
            Some((SocketAddr::new(ip(0), port(8)), SocketAddr::new(ip(4), port(10))))
        }
        0x21 => {
            let ip = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&block[at..at + 16]);
                IpAddr::from(octets)
            };
            Some((SocketAddr::new(ip(0), port(32)), SocketAddr::new(ip(16), port(34))))
        }
        _ => None,
    };
    Ok(Some(Header { length, addresses }))
}

/// Reads the header off a connection: it, and the bytes read that follow it.
///
/// # Errors
/// `InvalidData` when it is none, otherwise the connection's.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Header, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(LONGEST_V2);
    loop {
        let mut room = [0; LONGEST_V2];
        let n = stream.read(&mut room[bytes.len()..]).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let begun = bytes.len();
        bytes.extend_from_slice(&room[begun..begun + n]);
        match parse(&bytes) {
            Ok(Some(header)) => return Ok((header, bytes.split_off(header.length))),
            // Both limits lie within the room: a full one is a header or none.
            Ok(None) => {}
            Err(Bad) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2(command: u8, kind: u8, block: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, kind]);
        bytes.extend((block.len() as u16).to_be_bytes());
        bytes.extend(block);
        bytes
    }

    fn block(from: SocketAddr, to: SocketAddr) -> (u8, Vec<u8>) {
        let mut bytes = Vec::new();
        let mut kind = 0x21;
        for ip in [from.ip(), to.ip()] {
            match ip {
                IpAddr::V4(ip) => {
                    kind = 0x11;
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => bytes.extend(ip.octets()),
            }
        }
        bytes.extend(from.port().to_be_bytes());
        bytes.extend(to.port().to_be_bytes());
        (kind, bytes)
    }

    fn told(bytes: &[u8]) -> Option<(String, String)> {
        let header = parse(bytes).expect("a header").expect("whole");
        header.addresses.map(|(from, to)| (from.to_string(), to.to_string()))
    }

    #[test]
    fn headers_as_balancers_write_them() {
        let addresses = |from: &str, to: &str| Some((from.to_owned(), to.to_owned()));
        assert_eq!(
            told(b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nGET /"),
            addresses("192.168.0.1:56324", "192.168.0.11:443")
        );
        assert_eq!(
            told(b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n"),
            addresses("[2001:db8::1]:1", "[::1]:65535")
        );
        let longest = b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest.len(), LONGEST_V1);
        for nobody in [&b"PROXY UNKNOWN\r\n"[..], longest] {
            assert_eq!(told(nobody), None);
            assert_eq!(parse(nobody).expect("good").expect("whole").length, nobody.len());
        }
        let (kind, mut bytes) = block(
            "10.0.0.1:9".parse().expect("address"),
            "10.0.0.2:80".parse().expect("address"),
        );
        // A TLV (PP2_TYPE_NOOP) after the addresses is passed over.
        bytes.extend([4, 0, 3, 1, 2, 3]);
        let whole = v2(0x21, kind, &bytes);
        assert_eq!(told(&whole), addresses("10.0.0.1:9", "10.0.0.2:80"));
        assert_eq!(parse(&whole).expect("good").expect("whole").length, whole.len());
        for nobody in [
            v2(0x20, 0x00, b""),
            v2(0x20, 0x11, &bytes),
            v2(0x20, 0xff, b"whatever"),
            v2(0x21, 0x00, b"\x04\0\0"),
            v2(0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(told(&nobody), None);
        }
    }

    #[test]
    fn what_is_no_header() {
        let (kind, good) = block(
            "10.0.0.1:9".parse().expect("address"),
            "10.0.0.2:80".parse().expect("address"),
        );
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        let bad: Vec<Vec<u8>> = [
            "GET / HTTP/1.1\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\n\r\n",
            "proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 \r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY \r\n",
            "PROXY \u{e9}\r\n",
            &long,
        ]
        .iter()
        .map(|t| t.as_bytes().to_vec())
        .chain([
            v2(0x11, kind, &good),
            v2(0x22, kind, &good),
            v2(0x21, 0x12, &good),
            v2(0x21, 0x41, &good),
            v2(0x21, kind, &good[..11]),
            v2(0x21, 0x21, &good),
            v2(0x21, 0x31, &[0; 215]),
            v2(0x20, 0x00, &[0; 521]),
        ])
        .collect();
        for bytes in bad {
            assert_eq!(parse(&bytes), Err(Bad), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_never_claims_more_than_there_is(bytes in proptest::collection::vec(any::<u8>(), 0..600), as_v2 in any::<bool>()) {
            let mut whole = if as_v2 { SIGNATURE.to_vec() } else { WORD.to_vec() };
            whole.extend(&bytes);
            for bytes in [&bytes, &whole] {
                if let Ok(Some(header)) = parse(bytes) {
                    prop_assert!(header.length <= bytes.len() && header.length <= LONGEST_V2);
                }
            }
        }

        #[test]
        fn every_client_is_found_however_the_bytes_come(
            from in any::<([u8; 4], u16)>(), to in any::<([u8; 4], u16)>(), from6 in any::<([u8; 16], u16)>(), to6 in any::<([u8; 16], u16)>(),
            six in any::<bool>(), second in any::<bool>(), tlvs in proptest::collection::vec(any::<u8>(), 0..300), rest in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let (from, to) = if six { (SocketAddr::from(from6), SocketAddr::from(to6)) } else { (SocketAddr::from(from), SocketAddr::from(to)) };
            let mut bytes = if second {
                let (kind, mut block) = block(from, to);
                block.extend(&tlvs);
                v2(0x21, kind, &block)
            } else {
                let family = if six { "TCP6" } else { "TCP4" };
                format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
            };
            let length = bytes.len();
            bytes.extend(&rest);
            for cut in 0..length {
                prop_assert_eq!(parse(&bytes[..cut]), Ok(None));
            }
            prop_assert_eq!(parse(&bytes), Ok(Some(Header { length, addresses: Some((from, to)) })));
        }
    }

    #[tokio::test]
    async fn what_follows_the_header_is_kept() {
        let (mut ours, mut theirs) = tokio::io::duplex(7);
        let sending = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            theirs
                .write_all(b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\nGET /")
                .await
                .expect("sent");
            theirs
        });
        let (header, mut rest) = read(&mut ours).await.expect("a header");
        let mut theirs = sending.await.expect("sent");
        tokio::io::AsyncWriteExt::shutdown(&mut theirs).await.expect("shut");
        ours.read_to_end(&mut rest).await.expect("the rest");
        assert_eq!(rest, b"GET /");
        assert_eq!(header.addresses.map(|a| a.0), "1.2.3.4:9".parse().ok());
    }
}
