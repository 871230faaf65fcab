//! The bytes of a case: `{h}` is the Host line that names its app, `{host}` the name alone, `{port}` the gateway's port, and
//! `{TEXT*N}` is TEXT, N times, in each of which `#` is how often it was there before.

use super::Ask;

/// What a template is filled with.
pub(super) struct Fill<'a> {
    pub(super) host: &'a str,
    pub(super) port: &'a str,
}

impl Fill<'_> {
    pub(super) fn request(&self, ask: &Ask) -> Vec<u8> {
        let whole = match ask {
            Ask::Raw(bytes) => bytes.to_vec(),
            Ask::Line(line) => [line, &b"\r\n{h}\r\n"[..]].concat(),
            Ask::Get(fields) => [&b"GET /a HTTP/1.1\r\n{h}"[..], fields, b"\r\n"].concat(),
            Ask::Post(fields, body) => [&b"POST /a HTTP/1.1\r\n{h}"[..], fields, b"\r\n", body].concat(),
        };
        self.bytes(&whole)
    }

    pub(super) fn text(&self, template: &str) -> String {
        String::from_utf8(self.bytes(template.as_bytes())).unwrap()
    }

    pub(super) fn bytes(&self, template: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(template.len());
        let mut rest = template;
        while let Some(at) = rest.iter().position(|b| *b == b'{') {
            out.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
            let filled = rest
                .iter()
                .position(|b| *b == b'}')
                .and_then(|end| Some((self.one(&rest[1..end])?, end)));
            match filled {
                Some((text, end)) => {
                    out.extend(text);
                    rest = &rest[end + 1..];
                }
                None => {
                    out.push(b'{');
                    rest = &rest[1..];
                }
            }
        }
        out.extend_from_slice(rest);
        out
    }

    fn one(&self, name: &[u8]) -> Option<Vec<u8>> {
        match name {
            b"h" => return Some(format!("Host: {}\r\n", self.host).into_bytes()),
            b"host" => return Some(self.host.as_bytes().to_vec()),
            b"port" => return Some(self.port.as_bytes().to_vec()),
            _ => {}
        }
        let star = name.iter().rposition(|b| *b == b'*')?;
        let times: usize = std::str::from_utf8(&name[star + 1..]).ok()?.parse().ok()?;
        let mut out = Vec::with_capacity(star * times);
        for i in 0..times {
            for byte in &name[..star] {
                match byte {
                    b'#' => out.extend(i.to_string().into_bytes()),
                    byte => out.push(*byte),
                }
            }
        }
        Some(out)
    }
}

#[test]
fn templates_are_filled() {
    let fill = Fill {
        host: "a.b",
        port: "80",
    };
    assert_eq!(
        fill.text("{h}{x-#: y\r\n*2}{z}{host}:{port}{"),
        "Host: a.b\r\nx-0: y\r\nx-1: y\r\n{z}a.b:80{"
    );
}
