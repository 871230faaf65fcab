use super::*;

const LIMITS: Limits = Limits {
    head: Duration::from_secs(10),
    idle: Duration::from_secs(75),
    body: Duration::from_secs(30),
    pace: Pace {
        bytes_per_s: 240,
        grace: Duration::from_secs(5),
    },
    park: Some(Duration::from_secs(2)),
    patience: (Duration::from_secs(60), Duration::from_secs(60)),
};

fn exchange() -> Exchange {
    let value = http::HeaderValue::from_static("x");
    let client = Client::new([127, 0, 0, 1].into(), value.clone(), value.into(), false, false);
    Exchange::new(Rc::new(client), LIMITS.patience)
}

fn at(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

#[test]
fn a_head_that_comes_slowly_is_seen_at_the_second_look() {
    let (exchange, start) = (exchange(), Instant::now());
    let mut watch = Watch::new(start, None);
    exchange.head_begun.set(true);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 1)), Verdict::Wait);
    // However its bytes come.
    exchange.moved();
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 2)), Verdict::SlowHead);
    assert_eq!(watch.head(), Some(at(start, 1)));
    // The next request's has its own time.
    exchange.begin(Version::HTTP_11);
    exchange.end();
    exchange.head_begun.set(true);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 3)), Verdict::Wait);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 4)), Verdict::SlowHead);
    assert_eq!(watch.head(), Some(at(start, 3)));
}

#[test]
fn idle_parks_then_closes() {
    let (exchange, start) = (exchange(), Instant::now());
    exchange.begin(Version::HTTP_11);
    exchange.end();
    let mut watch = Watch::new(start, None);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 1)), Verdict::Wait);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 2)), Verdict::Park);
    let never = Limits { park: None, ..LIMITS };
    assert_eq!(watch.look(&exchange, &never, at(start, 74)), Verdict::Wait);
    assert_eq!(watch.look(&exchange, &never, at(start, 75)), Verdict::Close);
}

#[test]
fn who_asks_nothing_is_parked_at_once_when_the_worker_drains() {
    let (exchange, start) = (exchange(), Instant::now());
    let mut watch = Watch::new(start, None);
    assert_eq!(watch.judge(&exchange, &LIMITS, true, start), Verdict::Wait);
    assert_eq!(watch.judge(&exchange, &LIMITS, false, at(start, 1)), Verdict::Wait);
    assert_eq!(watch.judge(&exchange, &LIMITS, true, at(start, 1)), Verdict::Park);
    // A head has begun.
    exchange.moved();
    exchange.head_begun.set(true);
    assert_eq!(watch.judge(&exchange, &LIMITS, true, at(start, 2)), Verdict::Wait);
    exchange.begin(Version::HTTP_11);
    assert_eq!(watch.judge(&exchange, &LIMITS, true, at(start, 3)), Verdict::Wait);
    exchange.end();
    assert_eq!(watch.judge(&exchange, &LIMITS, true, at(start, 4)), Verdict::Park);
}

#[test]
fn a_request_expires_by_its_own_limits() {
    let (exchange, start) = (exchange(), Instant::now());
    exchange.begin(Version::HTTP_11);
    exchange
        .patience
        .set((Duration::from_secs(60), Duration::from_secs(20)));
    let mut watch = Watch::new(start, None);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 59)), Verdict::Wait);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 60)), Verdict::Expire);
    // While the endpoint takes no more of a body it is the app that has to answer.
    exchange.body_open.set(true);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 59)), Verdict::Wait);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 60)), Verdict::Expire);
    assert!(!exchange.body_late.get());
    exchange.arrival.wants();
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 30)), Verdict::Expire);
    assert!(exchange.body_late.get());
    exchange.body_open.set(false);
    exchange.phase.set(Phase::Answering);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 20)), Verdict::Cut);
    exchange.moved();
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 21)), Verdict::Wait);
    exchange
        .patience
        .set((Duration::from_secs(60), Duration::from_secs(600)));
    exchange.body_open.set(true);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 620)), Verdict::Wait);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 621)), Verdict::Cut);
}

#[test]
fn what_is_left_of_a_request_is_no_pause_between_two() {
    let (exchange, start) = (exchange(), Instant::now());
    exchange.begin(Version::HTTP_11);
    let patience = (Duration::from_secs(60), Duration::from_secs(20));
    exchange.patience.set(patience);
    exchange.end();
    // The answer's tail.
    exchange.unsent.set(true);
    let mut watch = Watch::new(start, None);
    for head in [false, true] {
        exchange.head_begun.set(head);
        assert_eq!(watch.look(&exchange, &LIMITS, at(start, 19)), Verdict::Wait);
        assert_eq!(watch.look(&exchange, &LIMITS, at(start, 20)), Verdict::Cut);
    }
    // The body's: wanted, which has to bring something; and not.
    exchange.unsent.set(false);
    exchange.head_begun.set(false);
    exchange.body_open.set(true);
    exchange.arrival.begin();
    let mut watch = Watch::new(start, None);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 29)), Verdict::Wait);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 30)), Verdict::Abandon);
    exchange.moved();
    exchange.arrival.wants();
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 31)), Verdict::Wait);
    let given_up = (32..100).find(|s| watch.look(&exchange, &LIMITS, at(start, *s)) == Verdict::Abandon);
    assert_eq!(given_up, Some(36));
    // All is said and heard.
    exchange.body_open.set(false);
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 40)), Verdict::Park);
}

/// A request whose body is wanted and whose timer looks each second.
fn sending() -> (Exchange, Watch, Instant) {
    let (exchange, start) = (exchange(), Instant::now());
    exchange.begin(Version::HTTP_11);
    exchange.arrival.begin();
    exchange.body_open.set(true);
    (exchange, Watch::new(start, None), start)
}

/// When it is given up, if `bytes` come each second and are waited for.
fn given_up(exchange: &Exchange, watch: &mut Watch, start: Instant, bytes: u64) -> Option<u64> {
    (1..600).find(|s| {
        exchange.moved();
        exchange.arrival.came(s * bytes);
        exchange.arrival.wants();
        watch.look(exchange, &LIMITS, at(start, *s)) == Verdict::Expire
    })
}

#[test]
fn a_body_that_trickles_is_given_up_after_its_grace() {
    for (bytes, when) in [(0, Some(6)), (1, Some(6)), (239, Some(6)), (240, None), (100_000, None)] {
        let (exchange, mut watch, start) = sending();
        assert_eq!(given_up(&exchange, &mut watch, start, bytes), when, "{bytes} bytes/s");
    }
    // What came fast buys time for what does not.
    let (exchange, mut watch, start) = sending();
    exchange.arrival.came(24_000);
    exchange.arrival.wants();
    let cut = (1..600).find(|s| {
        exchange.moved();
        watch.look(&exchange, &LIMITS, at(start, *s)) == Verdict::Expire
    });
    assert_eq!(cut, Some(101));
}

#[test]
fn only_the_time_that_the_gateway_waits_counts() {
    // The endpoint does not read.
    let (exchange, mut watch, start) = sending();
    exchange.arrival.came(10);
    for s in 1..60 {
        exchange.moved();
        assert_eq!(watch.look(&exchange, &LIMITS, at(start, s)), Verdict::Wait);
    }
    // The gateway itself was too busy to look.
    let (exchange, mut watch, start) = sending();
    exchange.arrival.wants();
    assert_eq!(watch.look(&exchange, &LIMITS, at(start, 20)), Verdict::Wait);
    // The answer has begun, the call is gRPC's, or no rate is asked for.
    let (exchange, mut watch, start) = sending();
    exchange.arrival.patient.set(true);
    assert_eq!(given_up(&exchange, &mut watch, start, 1), None);
    let (exchange, mut watch, start) = sending();
    exchange.phase.set(Phase::Answering);
    exchange
        .patience
        .set((Duration::from_secs(60), Duration::from_secs(60)));
    assert_eq!(given_up(&exchange, &mut watch, start, 1), None);
    let (exchange, mut watch, start) = sending();
    let pace = Pace {
        bytes_per_s: 0,
        ..LIMITS.pace
    };
    let any = Limits { pace, ..LIMITS };
    for s in 1..29 {
        exchange.arrival.wants();
        assert_eq!(watch.look(&exchange, &any, at(start, s)), Verdict::Wait);
    }
    // The next request begins anew.
    let (exchange, mut watch, start) = sending();
    assert_eq!(given_up(&exchange, &mut watch, start, 1), Some(6));
    exchange.begin(Version::HTTP_11);
    exchange.arrival.begin();
    exchange.body_open.set(true);
    assert_eq!(given_up(&exchange, &mut watch, at(start, 6), 1), Some(6));
}

#[test]
fn who_takes_an_answer_slowly_is_owed_two_buffers_at_most() {
    let (exchange, buffer) = (exchange(), 128 * 1024);
    let mut held = 0;
    for written in [0, 100_000, 0, 200_000, 500] {
        exchange.wrote(written);
        held -= held.min(written);
        // The library asks for more only below one buffer.
        if held < buffer {
            let room = exchange.room(buffer);
            exchange.queue(room);
            held += room;
        }
        assert!(held <= 2 * buffer, "{held}");
    }
    exchange.wrote(held + 300);
    assert_eq!(exchange.room(buffer), 2 * buffer);
}
