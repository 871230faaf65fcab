//! Which requests may be sent twice, and how often. What may have reached an app is only repeated when repeating it can do no harm.

use std::time::{Duration, Instant};

use http::Method;

use crate::flight::Flight;
use crate::table::App;
use crate::worker::Worker;

/// Whether a request may be repeated although an app may have seen it: a safe method, or the client's own word
/// (Idempotency-Key) that it is recognised. What no app has seen may always be repeated.
pub(crate) fn may_repeat(method: &Method, idempotency_key: bool) -> bool {
    idempotency_key || matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// Whether a further endpoint may be tried: there is time left, and the retry budget allows it.
pub(crate) fn may_go_on(flight: &Flight, worker: &Worker, app: &App, now: Instant) -> bool {
    let time = Duration::from_millis(worker.shared.config.retry_time_ms);
    if now.saturating_duration_since(flight.started) >= time {
        return false;
    }
    let stats = app.shared.stats();
    if app.shared.budget.take(stats.requests(), now) {
        worker.stats().retries.add(1);
        stats.of(worker.index).retries.add(1);
        true
    } else {
        worker.stats().retries_refused.add(1);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_does_no_harm_is_repeated() {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE] {
            assert!(may_repeat(&method, false));
        }
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            assert!(!may_repeat(&method, false));
            assert!(may_repeat(&method, true));
        }
    }
}
