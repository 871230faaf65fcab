//! A question of the gateway's own on a new connection, whose answer is read whole, so that a request can follow.

use std::future::poll_fn;
use std::task::{Poll, ready};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, StatusCode};

use super::decode::Decoder;
use super::head::Extent;
use super::{Answer, Failure, Http1};
use crate::body::RequestBody;
use crate::worker::Worker;

/// Most bytes of an answer's body that are read and forgotten.
const MOST: usize = 64 * 1024;

/// What was answered.
pub(crate) struct Said {
    pub(crate) status: StatusCode,
    pub(crate) fields: HeaderMap,
    /// The connection waits for a request.
    pub(crate) waits: bool,
}

impl Http1 {
    /// Asks without a body.
    pub(crate) async fn ask(&mut self, worker: &Worker, parts: &Parts) -> Result<Said, Failure> {
        self.begin(parts, RequestBody::empty());
        let mut answer = None;
        poll_fn(|cx| self.poll_answer(cx, worker, None, &mut answer)).await?;
        let Answer { head, rest } = answer.ok_or(Failure::Lost)?;
        let framed = head.keeps && head.extent != Extent::Close && self.sending.is_done();
        let waits = framed && self.skip(worker, Decoder::new(head.extent), rest).await && self.is_quiet();
        Ok(Said {
            status: head.status,
            fields: head.fields,
            waits,
        })
    }

    /// Reads the body of an answer that has begun with `rest`. Whether that was all, and not too much.
    async fn skip(&mut self, worker: &Worker, mut decoder: Decoder, mut rest: Bytes) -> bool {
        let mut came = rest.len();
        loop {
            loop {
                match decoder.next(&mut rest) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return false,
                }
            }
            if decoder.is_done() || came > MOST {
                return decoder.is_done() && rest.is_empty();
            }
            let read = poll_fn(|cx| {
                let mut landing = worker.landing.borrow_mut();
                let came = ready!(landing.poll_read(cx, &mut self.stream));
                Poll::Ready(matches!(came, Ok(1..)).then(|| landing.take()))
            });
            let Some(bytes) = read.await else { return false };
            came += bytes.len();
            rest = bytes;
        }
    }
}
