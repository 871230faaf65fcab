//! Header blocks (RFC 7541). What clients send is read with the table that both sides keep. What they are sent is written without
//! one, as HAProxy does: that costs a few bytes and spares memory and time for each connection.

use std::collections::VecDeque;
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, StatusCode};

use super::{huffman, table};

/// Bytes of the table (RFC 7541 4.1), as everybody has it unless told otherwise.
const TABLE: usize = 4_096;
/// What a field counts beyond its name and value (RFC 7541 4.1, RFC 9113 6.5.2).
pub(super) const EACH: usize = 32;

/// A field's name, as far as it is needed.
#[derive(Clone, Debug)]
enum Name {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Other(HeaderName),
    /// No name that requests may have.
    Bad,
}

/// A field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Method(Method),
    Scheme(Scheme),
    Authority(HeaderValue),
    Path(PathAndQuery),
    Protocol(Bytes),
    Other(HeaderName, HeaderValue),
    /// One that no request may have.
    Bad,
}

impl Name {
    fn of(name: &[u8]) -> Self {
        match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            b":protocol" => Self::Protocol,
            // The library takes it, but it is no token (RFC 9110 5.6.2).
            _ if name.contains(&b'"') => Self::Bad,
            _ => HeaderName::from_lowercase(name).map_or(Self::Bad, Self::Other),
        }
    }

    fn with(&self, value: Bytes) -> Field {
        match self {
            Self::Method => Method::from_bytes(&value).map_or(Field::Bad, Field::Method),
            Self::Scheme => Scheme::try_from(&value[..]).map_or(Field::Bad, Field::Scheme),
            Self::Authority => HeaderValue::from_maybe_shared(value).map_or(Field::Bad, Field::Authority),
            // RFC 9113 8.3.1.
            Self::Path if value.first() != Some(&b'/') && value != "*" => Field::Bad,
            Self::Path => PathAndQuery::from_maybe_shared(value).map_or(Field::Bad, Field::Path),
            Self::Protocol => Field::Protocol(value),
            // RFC 9113 8.2.1.
            Self::Other(_) if is_blank(value.first()) || is_blank(value.last()) => Field::Bad,
            Self::Other(name) => {
                HeaderValue::from_maybe_shared(value).map_or(Field::Bad, |value| Field::Other(name.clone(), value))
            }
            Self::Bad => Field::Bad,
        }
    }
}

fn is_blank(byte: Option<&u8>) -> bool {
    matches!(byte, Some(b' ' | b'\t'))
}

/// A row of a table.
#[derive(Clone, Debug)]
struct Entry {
    name: Name,
    /// Bytes of the name.
    length: usize,
    /// What it counts in the table and in a list of fields.
    size: usize,
    field: Field,
}

/// The rows that everybody knows, made once.
static KNOWN: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    table::ENTRIES
        .iter()
        .map(|(name, value)| {
            let (length, size) = (name.len(), name.len() + value.len() + EACH);
            let name = Name::of(name.as_bytes());
            let field = name.with(Bytes::from_static(value.as_bytes()));
            Entry {
                name,
                length,
                size,
                field,
            }
        })
        .collect()
});

/// The block can't be read: neither can any after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

enum Stop {
    /// There is more to come.
    Short,
    Broken,
}

/// What one client's blocks are read with.
#[derive(Debug)]
pub(super) struct Decoder {
    /// Last added first.
    entries: VecDeque<Entry>,
    size: usize,
    /// Most bytes of the table, as the client chose.
    most: usize,
    scratch: Vec<u8>,
}

/// Where the reading is.
struct Place<'a> {
    block: &'a Bytes,
    at: usize,
}

impl Place<'_> {
    #[inline]
    fn byte(&mut self) -> Result<u8, Stop> {
        let byte = *self.block.get(self.at).ok_or(Stop::Short)?;
        self.at += 1;
        Ok(byte)
    }

    /// A number that begins with so many bits of its `first` byte (RFC 7541 5.1), below 2²⁸.
    #[inline]
    fn number(&mut self, first: u8, bits: u8) -> Result<usize, Stop> {
        let full = (1 << bits) - 1;
        let mut number = usize::from(first) & full;
        if number < full {
            return Ok(number);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += usize::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err(Stop::Broken)
    }

    /// A string (RFC 7541 5.2), and whether it stands in the block as it is.
    fn string(&mut self, scratch: &mut Vec<u8>) -> Result<Bytes, Stop> {
        let first = self.byte()?;
        let length = self.number(first, 7)?;
        let end = self.at + length;
        let bytes = self.block.get(self.at..end).ok_or(Stop::Short)?;
        let string = if first & 128 == 0 {
            self.block.slice(self.at..end)
        } else {
            scratch.clear();
            huffman::decode(bytes, scratch).ok_or(Stop::Broken)?;
            Bytes::copy_from_slice(scratch)
        };
        self.at = end;
        Ok(string)
    }
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            most: TABLE,
            scratch: Vec::new(),
        }
    }

    /// Reads the fields that are whole; how many bytes they took. `begins`: the block does, where alone its table may be resized
    /// (RFC 7541 4.2). `each` hears a field and what it counts in a list.
    pub(super) fn read(
        &mut self,
        block: &Bytes,
        mut begins: bool,
        mut each: impl FnMut(Field, usize),
    ) -> Result<usize, Broken> {
        let mut place = Place { block, at: 0 };
        while place.at < block.len() {
            let before = place.at;
            match self.one(&mut place, begins) {
                Ok(Some((field, size))) => {
                    begins = false;
                    each(field, size);
                }
                Ok(None) => {}
                Err(Stop::Short) => return Ok(before),
                Err(Stop::Broken) => return Err(Broken),
            }
        }
        Ok(place.at)
    }

    /// The next field; none where the table was resized. Nothing changes when there is more to come.
    fn one(&mut self, place: &mut Place<'_>, begins: bool) -> Result<Option<(Field, usize)>, Stop> {
        let first = place.byte()?;
        if first & 0x80 != 0 {
            let index = place.number(first, 7)?;
            let entry = self.entry(index)?;
            return Ok(Some((entry.field.clone(), entry.size)));
        }
        if first & 0xe0 == 0x20 {
            let most = place.number(first, 5)?;
            if !begins || most > TABLE {
                return Err(Stop::Broken);
            }
            self.most = most;
            self.shrink(most);
            return Ok(None);
        }
        let keep = first & 0x40 != 0;
        let index = place.number(first, if keep { 6 } else { 4 })?;
        let (name, length) = if index > 0 {
            let entry = self.entry(index)?;
            (entry.name.clone(), entry.length)
        } else {
            let name = place.string(&mut self.scratch)?;
            (Name::of(&name), name.len())
        };
        let value = place.string(&mut self.scratch)?;
        let size = length + value.len() + EACH;
        if !keep {
            return Ok(Some((name.with(value), size)));
        }
        // What stays in the table must not keep a whole block with it.
        let field = name.with(Bytes::copy_from_slice(&value));
        self.add(Entry {
            name,
            length,
            size,
            field: field.clone(),
        });
        Ok(Some((field, size)))
    }

    #[inline]
    fn entry(&self, index: usize) -> Result<&Entry, Stop> {
        let known = &**KNOWN;
        let entry = match index.checked_sub(known.len() + 1) {
            Some(own) => self.entries.get(own),
            None => index.checked_sub(1).and_then(|at| known.get(at)),
        };
        entry.ok_or(Stop::Broken)
    }

    /// Gives back what only reading needs.
    pub(super) fn rest(&mut self) {
        self.scratch = Vec::new();
    }

    fn add(&mut self, entry: Entry) {
        if entry.size > self.most {
            self.shrink(0);
            return;
        }
        self.shrink(self.most - entry.size);
        self.size += entry.size;
        self.entries.push_front(entry);
    }

    fn shrink(&mut self, most: usize) {
        while self.size > most
            && let Some(entry) = self.entries.pop_back()
        {
            self.size -= entry.size;
        }
    }
}

/// Writes a number behind the bits of its first byte (RFC 7541 5.1).
#[inline]
fn number(out: &mut Vec<u8>, first: u8, bits: u8, number: usize) {
    let full = (1 << bits) - 1;
    if number < full {
        out.push(first | number as u8);
        return;
    }
    out.push(first | full as u8);
    let mut rest = number - full;
    while rest >= 128 {
        out.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    out.push(rest as u8);
}

#[inline]
fn string(out: &mut Vec<u8>, text: &[u8]) {
    number(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

/// Where the names that answers have most stand in the table that everybody knows; 0 for all others.
#[inline]
fn index(name: &HeaderName) -> u8 {
    let is = |known: HeaderName, index: u8| if *name == known { index } else { 0 };
    match name.as_str().len() {
        4 if *name == header::DATE => 33,
        4 if *name == header::ETAG => 34,
        4 if *name == header::LINK => 45,
        4 if *name == header::VARY => 59,
        6 => is(header::SERVER, 54),
        7 => is(header::EXPIRES, 36),
        8 => is(header::LOCATION, 46),
        10 => is(header::SET_COOKIE, 55),
        11 => is(header::RETRY_AFTER, 53),
        12 => is(header::CONTENT_TYPE, 31),
        13 if *name == header::CACHE_CONTROL => 24,
        13 if *name == header::LAST_MODIFIED => 44,
        13 => is(header::ACCEPT_RANGES, 18),
        14 => is(header::CONTENT_LENGTH, 28),
        16 => is(header::CONTENT_ENCODING, 26),
        25 => is(header::STRICT_TRANSPORT_SECURITY, 56),
        27 => is(header::ACCESS_CONTROL_ALLOW_ORIGIN, 20),
        _ => 0,
    }
}

/// Writes the status of an answer.
pub(super) fn write_status(out: &mut Vec<u8>, status: StatusCode) {
    let known = [200, 204, 206, 304, 400, 404, 500];
    match known.iter().position(|known| *known == status.as_u16()) {
        Some(at) => out.push(0x88 + at as u8),
        None => {
            out.push(0x08);
            string(out, status.as_str().as_bytes());
        }
    }
}

/// Writes fields.
pub(super) fn write_fields(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        match index(name) {
            0 => {
                out.push(0);
                string(out, name.as_str().as_bytes());
            }
            index => number(out, 0, 4, usize::from(index)),
        }
        string(out, value.as_bytes());
    }
}

/// Says that the table of what is written has no bytes: needed once after a client has asked for a smaller one (RFC 7541 4.2).
pub(super) const NO_TABLE: u8 = 0x20;

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Bytes {
        let hex: String = hex.split_whitespace().collect();
        (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hexadecimal"))
            .collect()
    }

    fn read(decoder: &mut Decoder, hex: &str) -> Result<Vec<String>, Broken> {
        let block = bytes(hex);
        let mut fields = Vec::new();
        let n = decoder.read(&block, true, |field, _| {
            fields.push(match field {
                Field::Method(m) => format!("method {m}"),
                Field::Scheme(s) => format!("scheme {s}"),
                Field::Authority(a) => format!("authority {}", a.to_str().expect("text")),
                Field::Path(p) => format!("path {p}"),
                Field::Protocol(p) => format!("protocol {p:?}"),
                Field::Other(n, v) => format!("{n}: {}", v.to_str().expect("text")),
                Field::Bad => "bad".into(),
            });
        })?;
        assert_eq!(n, block.len(), "read whole");
        Ok(fields)
    }

    #[test]
    fn the_requests_of_the_rfc_plain_and_in_huffmans_code() {
        for three in [
            // Appendix C.3.
            [
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                "8286 84be 5808 6e6f 2d63 6163 6865",
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            ],
            // Appendix C.4.
            [
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                "8286 84be 5886 a8eb 1064 9cbf",
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            ],
        ] {
            let mut decoder = Decoder::new();
            let host = "authority www.example.com";
            assert_eq!(
                read(&mut decoder, three[0]).expect("read"),
                ["method GET", "scheme http", "path /", host]
            );
            assert_eq!(
                read(&mut decoder, three[1]).expect("read"),
                ["method GET", "scheme http", "path /", host, "cache-control: no-cache"]
            );
            assert_eq!(
                read(&mut decoder, three[2]).expect("read"),
                [
                    "method GET",
                    "scheme https",
                    "path /index.html",
                    host,
                    "custom-key: custom-value"
                ]
            );
            assert_eq!((decoder.entries.len(), decoder.size), (3, 164));
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let mut decoder = Decoder::new();
        for hex in [
            "80",
            "be",
            "ffff01",
            "3fe2ff03",
            "8220",
            "0f80808080801",
            "0084ffffffff0161",
        ] {
            assert_eq!(read(&mut decoder, hex), Err(Broken), "{hex}");
        }
        // Names and values that no request may have are read, so that the table stays right.
        assert_eq!(
            read(
                &mut decoder,
                "4003 5841 62 01 61 be 0003 782d 6101 0d 0000 0161 0001 6102 2062 0001 2201 61"
            )
            .expect("read"),
            ["bad"; 6]
        );
    }

    #[test]
    fn a_block_cut_anywhere_reads_the_same() {
        let block = bytes("20 3fe1 1f 8287 85 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf be 0f0d 0331 3233");
        let whole = |cut: usize| {
            let (mut decoder, mut fields) = (Decoder::new(), Vec::new());
            let n = decoder
                .read(&block.slice(..cut), true, |field, size| fields.push((field, size)))
                .expect("sound");
            let rest = block.slice(n..);
            let m = decoder.read(&rest, fields.is_empty(), |field, size| fields.push((field, size)));
            assert_eq!(m, Ok(rest.len()), "{cut}");
            fields
        };
        for cut in 0..block.len() {
            assert_eq!(whole(cut), whole(block.len()), "{cut}");
        }
    }

    #[test]
    fn the_table_forgets_what_has_no_room() {
        let mut decoder = Decoder::new();
        assert_eq!(read(&mut decoder, "4001 6101 62").expect("read"), ["a: b"]);
        assert_eq!(read(&mut decoder, "be").expect("read"), ["a: b"]);
        // A smaller table, and a larger one again.
        assert_eq!(read(&mut decoder, "20 3fe1 1f").expect("read"), Vec::<String>::new());
        assert_eq!(read(&mut decoder, "be"), Err(Broken));
        // One that is larger than the table empties it (RFC 7541 4.4).
        read(&mut decoder, "4001 6101 62").expect("read");
        let large = format!("4001 61 7f e11f {}", "61".repeat(4_192));
        read(&mut decoder, &large).expect("read");
        assert_eq!((decoder.entries.len(), decoder.size), (0, 0));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut fields = HeaderMap::new();
        for (name, value) in [
            ("date", "now"),
            ("content-type", "text/plain"),
            ("x-own", "1"),
            ("x-own", "2"),
            ("set-cookie", "a=b"),
            ("strict-transport-security", "max-age=1"),
        ] {
            fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        fields.insert("x-long", "v".repeat(300).parse().expect("a value"));
        let mut out = Vec::new();
        write_fields(&mut out, &fields);
        let (mut decoder, mut again) = (Decoder::new(), HeaderMap::new());
        let n = decoder.read(&Bytes::from(out.clone()), true, |field, _| match field {
            Field::Other(name, value) => {
                again.append(name, value);
            }
            other => panic!("{other:?}"),
        });
        assert_eq!((n, again), (Ok(out.len()), fields));
        // Every name with an index has the one that is its own.
        for (at, (name, _)) in table::ENTRIES.iter().enumerate() {
            if let Ok(name) = HeaderName::from_lowercase(name.as_bytes()) {
                assert!([0, at + 1].contains(&usize::from(index(&name))), "{name}");
            }
        }
        let mut out = Vec::new();
        for status in [200, 500, 503] {
            write_status(&mut out, StatusCode::from_u16(status).expect("a status"));
        }
        assert_eq!(out, b"\x88\x8e\x08\x03503");
    }
}
