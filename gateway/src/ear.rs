//! An ear on a socket: it hears when there may be something to read. The HTTP library asks its socket again and again while
//! nothing has come; as long as nothing was heard the answer is known, without the runtime's bookkeeping for each question.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, ReadBuf};

/// What the runtime wakes when the socket can be read. All of it happens on one thread; wakers have to be able to move.
#[derive(Debug, Default)]
struct Heard {
    something: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Heard {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.something.store(true, Ordering::Relaxed);
        self.task.wake();
    }
}

/// The ear on one socket, through which all of its reads go.
#[derive(Debug)]
pub(crate) struct Ear {
    heard: Arc<Heard>,
    waker: Waker,
    /// The last read found nothing, so that the runtime wakes `heard` once there is something.
    listening: bool,
}

impl Ear {
    pub(crate) fn new() -> Self {
        let heard = Arc::<Heard>::default();
        Self {
            waker: Waker::from(Arc::clone(&heard)),
            heard,
            listening: false,
        }
    }

    /// Reads from `socket`, always the same one, which returns `Pending` only when it will wake.
    #[inline]
    pub(crate) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.heard.task.register(cx.waker());
        if self.listening && !self.heard.something.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.heard.something.store(false, Ordering::Relaxed);
        let result = Pin::new(socket).poll_read(&mut Context::from_waker(&self.waker), buf);
        self.listening = result.is_pending();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts how often it is asked; has something when it is told so.
    #[derive(Default)]
    struct Socket {
        asked: usize,
        has: bool,
        waker: Option<Waker>,
    }

    impl AsyncRead for Socket {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.asked += 1;
            if std::mem::take(&mut self.has) {
                buf.put_slice(b"x");
                return Poll::Ready(Ok(()));
            }
            self.waker = Some(cx.waker().clone());
            Poll::Pending
        }
    }

    #[derive(Default)]
    struct Task(AtomicBool);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_socket_is_asked_only_when_something_was_heard() {
        let (mut ear, mut socket) = (Ear::new(), Socket::default());
        let (one, other) = (Arc::<Task>::default(), Arc::<Task>::default());
        let read = |ear: &mut Ear, socket: &mut Socket, task: &Arc<Task>| {
            let waker = Waker::from(Arc::clone(task));
            ear.poll_read(socket, &Context::from_waker(&waker), &mut ReadBuf::new(&mut [0; 4]))
                .is_ready()
        };
        for _ in 0..3 {
            assert!(!read(&mut ear, &mut socket, &one));
        }
        assert_eq!(socket.asked, 1);
        // Another task has taken the connection over.
        assert!(!read(&mut ear, &mut socket, &other));
        socket.has = true;
        socket.waker.take().expect("it listens").wake();
        assert!(other.0.load(Ordering::Relaxed) && !one.0.load(Ordering::Relaxed));
        assert!(read(&mut ear, &mut socket, &other));
        // After something has come it is asked again, since more may have.
        assert!(!read(&mut ear, &mut socket, &other));
        assert!(!read(&mut ear, &mut socket, &other));
        assert_eq!(socket.asked, 3);
    }
}
