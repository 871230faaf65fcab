//! Where the body of an answer ends, and what of the bytes that come is the body's (RFC 9112 6 and 7).

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;

use super::head::{Extent, Malformed};

/// Most bytes of chunk extensions in one body: nobody uses any (CVE-2023-39326).
const EXTENSIONS: usize = 16 * 1024;
/// Most bytes of trailers.
const TRAILERS: usize = 16 * 1024;
/// Most trailers.
const FIELDS: usize = 100;
/// Most digits of a chunk's size.
const DIGITS: u32 = 16;

/// Takes a body out of what comes.
#[derive(Debug)]
pub(super) enum Decoder {
    /// So many bytes are still to come.
    Length(u64),
    Chunked(Chunks),
    /// All until the connection ends.
    Close {
        ended: bool,
    },
}

impl Decoder {
    pub(super) fn new(extent: Extent) -> Self {
        match extent {
            Extent::Length(length) => Self::Length(length),
            Extent::Chunked => Self::Chunked(Chunks::default()),
            Extent::Close => Self::Close { ended: false },
        }
    }

    /// Nothing more belongs to the body.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.at == At::End,
            Self::Close { ended } => *ended,
        }
    }

    /// Bytes still to come, where that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            _ => None,
        }
    }

    /// The next part of the body, taken from the front of `bytes`; nothing when more bytes are needed for one, or none is to come.
    pub(super) fn next(&mut self, bytes: &mut Bytes) -> Result<Option<Frame<Bytes>>, Malformed> {
        match self {
            Self::Length(left) => {
                let part = take(bytes, left);
                Ok((!part.is_empty()).then(|| Frame::data(part)))
            }
            Self::Chunked(chunks) => chunks.next(bytes),
            Self::Close { .. } => {
                let part = std::mem::take(bytes);
                Ok((!part.is_empty()).then(|| Frame::data(part)))
            }
        }
    }

    /// Bytes that are kept of what came.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn held(&self) -> usize {
        match self {
            Self::Chunked(chunks) => chunks.trailers.len(),
            Self::Length(_) | Self::Close { .. } => 0,
        }
    }

    /// The connection has ended; an error where the body had not.
    pub(super) fn end(&mut self) -> Result<(), Malformed> {
        if let Self::Close { ended } = self {
            *ended = true;
        }
        if self.is_done() { Ok(()) } else { Err(Malformed) }
    }
}

/// The first `left` bytes, as far as they are there.
fn take(bytes: &mut Bytes, left: &mut u64) -> Bytes {
    let n = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
    *left -= n as u64;
    bytes.split_to(n)
}

/// Where in a chunked body the reading is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    /// Behind the digits of the size.
    Space,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    Trailers,
    End,
}

/// A chunked body.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: At,
    digits: u32,
    /// Of the chunk.
    left: u64,
    extensions: usize,
    trailers: Vec<u8>,
}

impl Chunks {
    fn next(&mut self, bytes: &mut Bytes) -> Result<Option<Frame<Bytes>>, Malformed> {
        while self.at != At::End {
            if self.at == At::Data {
                let part = take(bytes, &mut self.left);
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                if part.is_empty() {
                    return Ok(None);
                }
                return Ok(Some(Frame::data(part)));
            }
            // Byte by byte: there are few between the chunks.
            let mut read = 0;
            let mut ended = false;
            for byte in &**bytes {
                read += 1;
                if self.at == At::Trailers {
                    ended = self.trailer(*byte)?;
                } else {
                    self.byte(*byte)?;
                }
                if ended || self.at == At::Data {
                    break;
                }
            }
            let _ = bytes.split_to(read);
            if ended {
                let fields = self.fields()?;
                self.at = At::End;
                return Ok(fields.map(Frame::trailers));
            }
            if self.at != At::Data {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// A byte of what stands between the chunks.
    fn byte(&mut self, byte: u8) -> Result<(), Malformed> {
        self.at = match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.digits += 1;
                if self.digits > DIGITS {
                    return Err(Malformed);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.left = self.left << 4 | u64::from(digit);
                At::Size
            }
            (At::Size | At::Space, b' ' | b'\t') if self.digits > 0 => {
                self.extended()?;
                At::Space
            }
            (At::Size | At::Space, b';') if self.digits > 0 => At::Extension,
            (At::Size | At::Space, b'\r') if self.digits > 0 => At::SizeEnd,
            (At::Extension, b'\r') => At::SizeEnd,
            // Some would end the line here (Kallus 2025, TERM.EXT).
            (At::Extension, b'\n') => return Err(Malformed),
            (At::Extension, _) => {
                self.extended()?;
                At::Extension
            }
            (At::SizeEnd, b'\n') if self.left == 0 => At::Trailers,
            (At::SizeEnd, b'\n') => At::Data,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => {
                self.digits = 0;
                At::Size
            }
            _ => return Err(Malformed),
        };
        Ok(())
    }

    /// A byte that says nothing stood behind a size.
    fn extended(&mut self) -> Result<(), Malformed> {
        self.extensions += 1;
        if self.extensions > EXTENSIONS {
            Err(Malformed)
        } else {
            Ok(())
        }
    }

    /// A byte behind the last chunk; `true` when it was the last.
    fn trailer(&mut self, byte: u8) -> Result<bool, Malformed> {
        let after_cr = self.trailers.last() == Some(&b'\r');
        if self.trailers.len() >= TRAILERS || (after_cr && byte != b'\n') {
            return Err(Malformed);
        }
        self.trailers.push(byte);
        Ok(self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n"))
    }

    /// The trailers, if there are any.
    fn fields(&mut self) -> Result<Option<HeaderMap>, Malformed> {
        let text = std::mem::take(&mut self.trailers);
        if text.len() == 2 {
            return Ok(None);
        }
        let mut space = [httparse::EMPTY_HEADER; FIELDS];
        let Ok(httparse::Status::Complete((length, lines))) = httparse::parse_headers(&text, &mut space) else {
            return Err(Malformed);
        };
        if length != text.len() {
            return Err(Malformed);
        }
        let mut fields = HeaderMap::with_capacity(lines.len());
        for line in lines {
            let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed)?;
            fields.append(name, HeaderValue::from_bytes(line.value).map_err(|_| Malformed)?);
        }
        Ok(Some(fields))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Decoded = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// The body, its trailers, and what is left behind it, when `text` comes in pieces of `size`.
    fn decoded(extent: Extent, text: &[u8], size: usize) -> Result<Decoded, Malformed> {
        let mut decoder = Decoder::new(extent);
        let (mut body, mut trailers, mut behind) = (Vec::new(), None, Vec::new());
        for piece in text.chunks(size.max(1)) {
            let mut bytes = Bytes::copy_from_slice(piece);
            while let Some(frame) = decoder.next(&mut bytes)? {
                match frame.into_data() {
                    Ok(data) => body.extend_from_slice(&data),
                    Err(frame) => trailers = frame.into_trailers().ok(),
                }
            }
            assert!(bytes.is_empty() || decoder.is_done());
            behind.extend_from_slice(&bytes);
        }
        decoder.end()?;
        Ok((body, trailers, behind))
    }

    #[test]
    fn bodies_end_where_they_say_however_they_are_cut() {
        let text = b"5\r\nhello\r\n00006 ;x=\"y\"\r\n world\r\n0\r\nX-Sum: 7\r\nx-two: 8\r\n\r\nnext";
        for size in 1..=text.len() {
            let (body, trailers, behind) = decoded(Extent::Chunked, text, size).expect("sound");
            assert_eq!(body, b"hello world", "{size}");
            assert_eq!(trailers.expect("trailers")["x-sum"], "7");
            assert_eq!(behind, b"next");
            let (body, _, behind) = decoded(Extent::Length(7), text, size).expect("sound");
            assert_eq!((body.as_slice(), behind.as_slice()), (&text[..7], &text[7..]));
            let (body, ..) = decoded(Extent::Close, text, size).expect("sound");
            assert_eq!(body, text);
        }
    }

    #[test]
    fn what_is_cut_or_odd_is_no_body() {
        for text in [
            "",
            "5\r\nhell",
            "5\r\nhello\r\n",
            "0\r\n",
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5;\nhello\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello world\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5 5\r\nhello\r\n0\r\n\r\n",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
            "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            "0\r\nx: \0\r\n\r\n",
            "0\r\nx: a\rb\r\n\r\n",
            "0\r\n x: a\r\n\r\n",
        ] {
            for size in [1, 3, 100] {
                assert!(decoded(Extent::Chunked, text.as_bytes(), size).is_err(), "{text:?}");
            }
        }
        assert!(decoded(Extent::Length(5), b"hell", 2).is_err());
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = "a".repeat(20_000);
        assert!(decoded(Extent::Chunked, format!("1;{long}\r\na\r\n0\r\n\r\n").as_bytes(), 512).is_err());
        assert!(decoded(Extent::Chunked, format!("0\r\nx: {long}\r\n\r\n").as_bytes(), 512).is_err());
        let many = "x: y\r\n".repeat(FIELDS + 1);
        assert!(decoded(Extent::Chunked, format!("0\r\n{many}\r\n").as_bytes(), 512).is_err());
    }

    proptest! {
        #[test]
        fn any_chunks_are_the_body(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..20), size in 1_usize..200) {
            let mut text = Vec::new();
            for part in &parts {
                text.extend_from_slice(format!("{:X}\r\n", part.len()).as_bytes());
                text.extend_from_slice(part);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            let (body, trailers, behind) = decoded(Extent::Chunked, &text, size).expect("sound");
            prop_assert_eq!(body, parts.concat());
            prop_assert!(trailers.is_none() && behind.is_empty());
        }

        #[test]
        fn any_bytes_do_no_harm(text in proptest::collection::vec(any::<u8>(), 0..300), size in 1_usize..50) {
            let _ = decoded(Extent::Chunked, &text, size);
        }
    }
}
