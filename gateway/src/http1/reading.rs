//! What comes before the body of an answer: its head, behind those of interim ones (RFC 9110 15.2), in whatever pieces.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::head::{self, Malformed};
use super::{Answer, INTERIM};

/// How much of it there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Most bytes of one head.
    pub(crate) head: usize,
    /// Most bytes before the head is whole, interim answers included.
    pub(crate) all: usize,
    /// Most fields of a head.
    pub(crate) fields: usize,
}

/// How far it has come.
#[derive(Debug)]
pub(super) struct Reading {
    /// A head that is not whole.
    pub(super) begun: Vec<u8>,
    /// Bytes since the request.
    came: usize,
    /// Interim answers since the request.
    interim: u32,
    /// The request was HEAD: its answer has no body.
    head_only: bool,
}

impl Reading {
    /// Before the answer to a request, which was HEAD if so.
    pub(super) fn new(head_only: bool) -> Self {
        Self {
            begun: Vec::new(),
            came: 0,
            interim: 0,
            head_only,
        }
    }

    /// Takes what came; what there is to be read, if that can be more than the last time.
    pub(super) fn come(&mut self, came: Bytes, bounds: &Bounds) -> Option<Bytes> {
        self.came += came.len();
        if self.begun.is_empty() {
            return Some(came);
        }
        self.begun.extend_from_slice(&came);
        let more = came.contains(&b'\n') || self.begun.len() > bounds.head;
        more.then(|| Bytes::from(std::mem::take(&mut self.begun)))
    }

    /// Looks for the head of an answer behind those of interim ones, which `hear` is told. `fields`: gives empty maps. `answer`: where
    /// to put it; heads are large.
    pub(super) fn read(
        &mut self,
        bytes: &Bytes,
        bounds: &Bounds,
        mut fields: impl FnMut() -> HeaderMap,
        mut hear: impl FnMut(StatusCode, HeaderMap),
        answer: &mut Option<Answer>,
    ) -> Result<(), Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            let head = match head::read(bytes, at, bounds.fields, self.head_only, fields())? {
                Some(head) => head,
                None if bytes.len() - at <= bounds.head => {
                    self.begun = bytes[at..].to_vec();
                    break;
                }
                None => return Err(Malformed),
            };
            at += head.length;
            if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                let rest = bytes.slice(at..);
                *answer = Some(Answer { head, rest });
                return Ok(());
            }
            self.interim += 1;
            if self.interim > INTERIM {
                return Err(Malformed);
            }
            hear(head.status, head.fields);
        }
        if self.came > bounds.all { Err(Malformed) } else { Ok(()) }
    }
}
