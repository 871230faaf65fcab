//! What the end of a try means for the endpoint that had it, and for the client's way to the next one.

use std::rc::Rc;
use std::time::Instant;

use http::{Response, header};

use crate::answer::Reason;
use crate::balance::{Ask, PENALTY_US, Plan, Tried};
use crate::body::ResponseBody;
use crate::eject::Endpoint;
use crate::flight::Flight;
use crate::reach;
use crate::table::App;
use crate::worker::Worker;

/// What is said of an answer that began and broke off.
pub(crate) const CUT: &str = "answer_cut";

/// Notes a failure at the endpoint that the request is at. `kept`: on a kept connection, which says nothing about the endpoint.
pub(crate) fn failed(
    flight: &mut Flight,
    worker: &Rc<Worker>,
    app: &App,
    tried: &mut Tried,
    kept: bool,
    reason: Reason,
    now: Instant,
) {
    if let Some(entered) = flight.entered() {
        let endpoint = entered.endpoint();
        tried.add(endpoint.id, kept);
        if kept {
            worker.stats().stale.add(1);
        } else if !flight.own_fault.take() {
            left_out(worker, app, endpoint, reason.as_str(), now);
        }
    }
    flight.leave();
}

/// Leaves an endpoint to which a connect has failed out of the turn for a while.
pub(crate) fn left_out(worker: &Rc<Worker>, app: &App, endpoint: &Endpoint, reason: &'static str, now: Instant) {
    reach::look_after(worker, app, now);
    let before = endpoint.failures();
    endpoint.note(reason, worker.shared.clock, now);
    let time = endpoint.failed(worker.shared.clock, now);
    if endpoint.failures() != before {
        worker.stats().ejections.add(1);
        app.shared.stats().of(worker.index).ejections.add(1);
        tracing::info!(app = %endpoint.key.app, container = %endpoint.key.container, endpoint = %endpoint.address,
            for_ms = time.as_millis() as u64, reason, "endpoint left out after a failure");
    }
}

/// Notes that the endpoint took the request and gave no answer that can be used.
pub(crate) fn no_answer(flight: &Flight, worker: &Worker, app: &App, reason: Reason) {
    let Some(entered) = flight.entered() else { return };
    unanswered(worker, app, entered.endpoint(), reason.as_str());
}

/// Notes that the endpoint accepted and said nothing that can be used.
pub(crate) fn unanswered(worker: &Worker, app: &App, endpoint: &Endpoint, reason: &'static str) {
    let (clock, now) = (worker.shared.clock, Instant::now());
    endpoint.note(reason, clock, now);
    if let Some(time) = endpoint.gave_no_answer(clock, now, || app.may_eject(clock, now)) {
        worker.stats().ejections.add(1);
        app.shared.stats().of(worker.index).ejections.add(1);
        tracing::warn!(app = %endpoint.key.app, container = %endpoint.key.container, endpoint = %endpoint.address,
            for_ms = time.as_millis() as u64, reason, "endpoint left out after requests without an answer");
    }
}

/// What an answer means for the app's way of balancing: its latency, and the cookie that the client is to keep.
pub(crate) fn answered(
    flight: &Flight,
    app: &App,
    plan: &Plan,
    ask: &Ask,
    response: &mut Result<Response<ResponseBody>, Reason>,
) {
    let (Some(entered), Ok(response)) = (flight.entered(), response) else {
        return;
    };
    let endpoint = entered.endpoint();
    if plan.measures() {
        let us = u64::try_from(flight.upstream.as_micros()).unwrap_or(u64::MAX);
        // An endpoint that fails fast must not draw the requests to itself.
        let us = if response.status().is_server_error() {
            us.max(PENALTY_US)
        } else {
            us
        };
        let at = flight.worker().shared.clock.millis(Instant::now());
        endpoint.latency().observe(us, at);
    }
    if let Some(cookie) = plan.cookie(ask, &app.endpoints, endpoint.id)
        && let Some(line) = cookie.line(ask.secure)
    {
        response.headers_mut().append(header::SET_COOKIE, line);
    }
}
