//! The app of a case: it keeps every byte, takes requests strictly, and answers each with its own path and body.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::peers::upstream;

/// A request as the app saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) line: String,
    /// The lines of fields, sorted, those of trailers with `~` before them.
    pub(super) fields: Vec<String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }
}

/// All that came to an app.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) requests: Vec<Request>,
    /// Requests that did not end before their connection did.
    pub(super) cut: Vec<Vec<u8>>,
    /// What no strict reader would take.
    pub(super) junk: Vec<String>,
}

/// What the first bytes of a connection are.
enum Read {
    /// A request, and its length.
    Whole(Request, usize),
    Part,
}

/// Takes a request off the front of `bytes`.
fn take(bytes: &[u8]) -> Result<Read, String> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(Read::Part);
    };
    let head = &bytes[..end];
    if head.iter().any(|b| b.is_ascii_control() && !b"\r\n\t".contains(b))
        || head
            .split(|b| *b == b'\n')
            .rev()
            .skip(1)
            .any(|l| l.last() != Some(&b'\r'))
    {
        return Err("a control character in the head".into());
    }
    let head = String::from_utf8_lossy(head).into_owned();
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    if line.split(' ').count() != 3 || !line.ends_with(" HTTP/1.1") {
        return Err(format!("a request line: {line:?}"));
    }
    let mut fields: Vec<String> = lines.map(str::to_owned).collect();
    for field in &fields {
        let name = field.split(": ").next().unwrap_or_default();
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            return Err(format!("a field: {field:?}"));
        }
    }
    let of = |name: &str| {
        let name = format!("{name}: ");
        let values = fields
            .iter()
            .filter_map(|f| f.to_ascii_lowercase().strip_prefix(&name).map(str::to_owned));
        values.collect::<Vec<_>>()
    };
    let mut at = end + 4;
    let mut body = Vec::new();
    let mut trailers = Vec::new();
    match (&of("content-length")[..], &of("transfer-encoding")[..]) {
        ([], []) => {}
        ([length], []) if length.bytes().all(|b| b.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| format!("a length: {length}"))?;
            let Some(data) = bytes.get(at..at + length) else {
                return Ok(Read::Part);
            };
            body.extend_from_slice(data);
            at += length;
        }
        ([], [chunked]) if chunked == "chunked" => loop {
            let Some(line) = bytes[at..].windows(2).position(|w| w == b"\r\n") else {
                return Ok(Read::Part);
            };
            let digits = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format!("a chunk: {digits:?}"));
            }
            let size = usize::from_str_radix(&digits, 16).map_err(|_| format!("a chunk: {digits}"))?;
            at += line + 2;
            if size == 0 {
                break;
            }
            let Some(data) = bytes.get(at..at + size + 2) else {
                return Ok(Read::Part);
            };
            if !data.ends_with(b"\r\n") {
                return Err("a chunk's end".into());
            }
            body.extend_from_slice(&data[..size]);
            at += size + 2;
        },
        (lengths, encodings) => return Err(format!("two readings: {lengths:?} {encodings:?}")),
    }
    if !of("transfer-encoding").is_empty() {
        loop {
            let Some(line) = bytes[at..].windows(2).position(|w| w == b"\r\n") else {
                return Ok(Read::Part);
            };
            let text = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
            at += line + 2;
            if text.is_empty() {
                break;
            }
            trailers.push(format!("~{text}"));
        }
    }
    fields.extend(trailers);
    fields.sort_unstable();
    Ok(Read::Whole(Request { line, fields, body }, at))
}

/// Starts an app; it answers `/early` before it has the body.
pub(super) async fn start() -> (SocketAddr, Arc<Mutex<Book>>) {
    let book: Arc<Mutex<Book>> = Arc::default();
    let kept = Arc::clone(&book);
    let (at, _) = upstream(move |mut stream, _| {
        let book = Arc::clone(&kept);
        async move {
            let mut bytes = Vec::new();
            let mut answered = false;
            loop {
                match take(&bytes) {
                    Ok(Read::Whole(request, length)) => {
                        bytes.drain(..length);
                        let mut body = [request.path().as_bytes(), b" ", &request.body].concat();
                        let close = request.fields.iter().any(|f| f == "connection: close");
                        let size = body.len();
                        if request.line.starts_with("HEAD ") {
                            body.clear();
                        }
                        book.lock().unwrap().requests.push(request);
                        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
                        if !std::mem::take(&mut answered)
                            && stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err()
                            || close
                        {
                            return;
                        }
                        continue;
                    }
                    Ok(Read::Part) => {}
                    Err(junk) => {
                        book.lock().unwrap().junk.push(junk);
                        return;
                    }
                }
                if !answered && bytes.starts_with(b"POST /early ") && bytes.windows(4).any(|w| w == b"\r\n\r\n") {
                    answered = true;
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nearly!")
                        .await;
                }
                match stream.read_buf(&mut bytes).await {
                    Ok(1..) => {}
                    _ => break,
                }
            }
            if !bytes.is_empty() {
                book.lock().unwrap().cut.push(bytes);
            }
        }
    })
    .await;
    (at, book)
}
