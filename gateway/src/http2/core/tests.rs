use std::task::{Context, Poll};

use super::super::streams::{Answer, Body, Over};
use super::*;

/// A connection whose client has said its settings, and what its frames begin.
struct Connection {
    core: Rc<Core>,
    begun: Vec<(Answer, Body)>,
}

impl Connection {
    fn new() -> Self {
        let limits = Limits {
            window: 128 * 1024,
            list: 10_000,
            streams: 100,
        };
        let mut connection = Self {
            core: Core::new(limits, Instant::now()),
            begun: Vec::new(),
        };
        connection.hear(frame::SETTINGS, 0, 0, &[]).expect("sound");
        connection
    }

    fn hear(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<(), Fault> {
        let head = Head {
            length: payload.len(),
            kind,
            flags,
            stream,
        };
        let begun = &mut self.begun;
        let begin = &mut |one: Begun| begun.push(one.stream.open());
        self.core.frame(&head, payload, HeaderMap::new, begin)
    }
}

/// A POST to `/` of host `a`.
const POST: &[u8] = &[0x83, 0x86, 0x84, 0x41, 1, b'a'];

#[test]
fn a_body_that_its_client_has_reset_is_never_whole() {
    let mut connection = Connection::new();
    connection
        .hear(frame::HEADERS, frame::END_HEADERS, 1, POST)
        .expect("sound");
    connection.hear(frame::DATA, 0, 1, b"aaa").expect("sound");
    let (_answer, body) = connection.begun.pop().expect("a stream");
    let cx = Context::from_waker(Waker::noop());
    assert!(matches!(body.poll_data(&cx), Poll::Ready(Some(data)) if data == "aaa"));
    // The rest and the reset come together: nobody has read the rest.
    connection
        .hear(frame::DATA, frame::END_STREAM, 1, b"bbb")
        .expect("sound");
    connection.hear(frame::RST_STREAM, 0, 1, &[0; 4]).expect("sound");
    assert!(!body.is_end() && body.over().is_some());
    assert!(matches!(body.poll_data(&cx), Poll::Ready(None)));
    assert!(!body.is_end());
}

#[test]
fn what_is_refused_counts_as_read() {
    let mut connection = Connection::new();
    for stream in (1..).step_by(2).take(100) {
        let begin = frame::END_HEADERS | frame::END_STREAM;
        connection.hear(frame::HEADERS, begin, stream, POST).expect("sound");
        // After the end: the stream is reset, the connection goes on, and its window is as it was.
        connection
            .hear(frame::DATA, 0, stream, &[0; frame::PAYLOAD])
            .expect("the stream's error");
        connection.begun.clear();
    }
    let state = connection.core.state.borrow();
    assert!(state.inward + state.read >= 4 * 128 * 1024, "{}", state.inward);
}

#[test]
fn who_waits_longest_sends_next() {
    let mut connection = Connection::new();
    let window = 0x10_0000_u32.to_be_bytes();
    let settings = [&[0, 4][..], &window].concat();
    connection.hear(frame::SETTINGS, 0, 0, &settings).expect("sound");
    connection.hear(frame::WINDOW_UPDATE, 0, 0, &window).expect("sound");
    for stream in [1, 3] {
        connection
            .hear(frame::HEADERS, frame::END_HEADERS, stream, POST)
            .expect("sound");
    }
    let cx = Context::from_waker(Waker::noop());
    let send = |of: usize| {
        let mut bytes = 0;
        while let Poll::Ready(Ok(room)) = connection.begun[of].0.poll_room(&cx, 100_000) {
            connection.begun[of].0.data(&vec![0; room], false).expect("open");
            bytes += room;
        }
        bytes
    };
    let written = || connection.core.write(|bytes| Some(bytes.len()));
    let order = || -> Vec<u32> { connection.core.state.borrow().waiting.iter().map(|s| s.id).collect() };
    written();
    // The first has more than there is room for, again and again; the second has its turn all the same.
    assert!(send(0) > ROOM / 2);
    assert_eq!((send(1), order()), (0, vec![1, 3]));
    written();
    assert!(send(0) > ROOM / 2);
    assert_eq!((send(1), order()), (0, vec![3, 1]));
    written();
    assert!(send(1) > ROOM / 2);
    assert_eq!((send(0), order()), (0, vec![1, 3]));
    // Who ends waits no longer.
    connection.begun.clear();
    assert!(connection.core.state.borrow().waiting.is_empty());
    assert!(connection.core.state.borrow().streams.is_empty());
}

#[test]
fn a_stream_ends_with_its_answer_whoever_holds_its_body() {
    let mut connection = Connection::new();
    connection
        .hear(frame::HEADERS, frame::END_HEADERS, 1, POST)
        .expect("sound");
    connection.hear(frame::DATA, 0, 1, &[0; 1_000]).expect("sound");
    let (answer, body) = connection.begun.pop().expect("a stream");
    drop(answer);
    let state = connection.core.state.borrow();
    assert!(state.streams.is_empty());
    assert_eq!(state.read, 1_000, "it may be sent again");
    drop(state);
    assert_eq!(body.over(), Some(Over::Here));
    connection.hear(frame::DATA, 0, 1, &[0; 1_000]).expect("on its way");
    assert_eq!(connection.core.state.borrow().read, 2_000);
}

#[test]
fn a_block_may_be_cut_where_its_table_is_resized() {
    for (first, second) in [
        (&[0x3f][..], &[0xe1, 0x1f][..]),
        (&[0x20], &[0x3f, 0xe1, 0x1f]),
        (&[], &[0x20]),
    ] {
        let mut connection = Connection::new();
        connection.hear(frame::HEADERS, 0, 1, first).expect("sound");
        let rest = [second, POST].concat();
        connection
            .hear(frame::CONTINUATION, frame::END_HEADERS, 1, &rest)
            .expect("sound");
        assert_eq!(connection.begun.len(), 1, "{first:?}");
    }
}
