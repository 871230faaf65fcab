//! Interim answers of an app (103 Early Hints and the like), on their way to a client that speaks HTTP/2. They may come from
//! the library's task before the answer, so they wait here; few, since an app may send as many as it likes.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;

use bytes::Bytes;
use futures::task::AtomicWaker;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response, StatusCode};

use crate::headers;

/// Most that wait; further ones are dropped.
const MOST: usize = 8;

/// The interim answers of one request.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    waiting: Mutex<Vec<(StatusCode, HeaderMap)>>,
    waker: AtomicWaker,
}

impl Hints {
    /// Hears what comes before the answer to `request`.
    pub(crate) fn hear<B>(self: &Arc<Self>, request: &mut Request<B>) {
        let hints = Arc::clone(self);
        hyper::ext::on_informational(request, move |interim| {
            // The gateway itself says whether to go on, and switches protocols.
            if matches!(interim.status(), StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
                return;
            }
            let mut waiting = hints.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() < MOST {
                waiting.push((interim.status(), interim.headers().clone()));
                hints.waker.wake();
            }
        });
    }

    /// Passes on what waits; the task is woken when there is more.
    pub(crate) fn pass(&self, cx: &Context<'_>, respond: &mut SendResponse<Bytes>) {
        self.waker.register(cx.waker());
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for (status, mut fields) in waiting {
            if !headers::rewrite_answer(&mut fields, false) {
                continue;
            }
            let mut interim = Response::new(());
            *interim.status_mut() = status;
            *interim.headers_mut() = fields;
            // Fails only when the stream is gone, which shows next.
            let _ = respond.send_informational(interim);
        }
    }
}
