//! The header by which an endpoint learns who the client is: the PROXY protocol, versions 1 and 2
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, 2.1 and 2.2).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use model::config::ProxyProtocol;

/// How version 2 begins.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The bytes that go before the client's, for a connection from `client` to `gateway`.
pub(super) fn greeting(version: ProxyProtocol, client: SocketAddr, gateway: SocketAddr) -> Vec<u8> {
    let (from, to) = one_family(client.ip(), gateway.ip());
    let (from_port, to_port) = (client.port(), gateway.port());
    match version {
        ProxyProtocol::None => Vec::new(),
        ProxyProtocol::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes()
        }
        ProxyProtocol::V2 => {
            let mut bytes = SIGNATURE.to_vec();
            // Version 2, command PROXY; then family and STREAM; then the length of what follows.
            match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    bytes.extend([0x21, 0x11, 0, 12]);
                    bytes.extend(from.octets());
                    bytes.extend(to.octets());
                }
                (from, to) => {
                    bytes.extend([0x21, 0x21, 0, 36]);
                    bytes.extend(wide(from).octets());
                    bytes.extend(wide(to).octets());
                }
            }
            bytes.extend(from_port.to_be_bytes());
            bytes.extend(to_port.to_be_bytes());
            bytes
        }
    }
}

/// Both addresses in the same family: IPv4 when both can be.
fn one_family(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr) {
    match (a.to_canonical(), b.to_canonical()) {
        (a, b) if a.is_ipv4() == b.is_ipv4() => (a, b),
        (a, b) => (wide(a).into(), wide(b).into()),
    }
}

fn wide(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    #[test]
    fn version_1_is_one_line() {
        let line = |client, gateway| String::from_utf8(greeting(ProxyProtocol::V1, at(client), at(gateway)));
        assert_eq!(
            line("192.0.2.7:51000", "10.0.0.1:15000").expect("text"),
            "PROXY TCP4 192.0.2.7 10.0.0.1 51000 15000\r\n"
        );
        assert_eq!(
            line("[2001:db8::7]:1", "[::1]:15000").expect("text"),
            "PROXY TCP6 2001:db8::7 ::1 1 15000\r\n"
        );
        // A listener on [::] sees IPv4 clients in IPv6 clothes.
        assert_eq!(
            line("[::ffff:192.0.2.7]:1", "[::ffff:10.0.0.1]:2").expect("text"),
            "PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n"
        );
    }

    #[test]
    fn version_2_is_binary() {
        let v4 = greeting(ProxyProtocol::V2, at("192.0.2.7:51000"), at("10.0.0.1:15000"));
        assert_eq!(v4.len(), 28);
        assert_eq!(&v4[..12], b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(v4[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(v4[16..24], [192, 0, 2, 7, 10, 0, 0, 1]);
        assert_eq!(v4[24..], [0xc7, 0x38, 0x3a, 0x98]);
        let v6 = greeting(ProxyProtocol::V2, at("[2001:db8::7]:1"), at("[::1]:2"));
        assert_eq!((v6.len(), &v6[12..16]), (52, &[0x21, 0x21, 0, 36][..]));
        assert_eq!(greeting(ProxyProtocol::None, at("1.2.3.4:5"), at("1.2.3.4:6")), b"");
    }
}
