//! Connections without a request: they hold nothing but their socket and a place here, and what they held goes back to the system.
//! One task looks after all of a worker's, so that none needs a timer of its own.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::hint::black_box;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::stream::Stream;
use crate::worker::Worker;

/// How often it is looked who has waited too long, and memory is given back.
const LOOK: Duration = Duration::from_secs(1);
/// Fewer connections have not held enough to give back.
const FEW: u32 = 32;

/// The parked connections of one worker.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    places: RefCell<Slab<Place>>,
    /// Parked since memory was last given back.
    parked: Cell<u32>,
    /// The task runs.
    looks: Cell<bool>,
}

/// A parked connection.
#[derive(Debug)]
struct Place {
    waker: Waker,
    /// When it is to be closed.
    until: Instant,
}

/// A connection's place; given up when dropped.
struct Held<'a> {
    worker: &'a Worker,
    key: usize,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.worker.idle.places.borrow_mut().remove(self.key);
        self.worker.stats().parked.sub(1);
    }
}

impl Idle {
    fn take(&self, until: Instant) -> usize {
        self.parked.set(self.parked.get().saturating_add(1));
        let waker = Waker::noop().clone();
        self.places.borrow_mut().insert(Place { waker, until })
    }

    /// Wakes those whose time is over, or all. `false`: nobody is left.
    fn look(&self, now: Instant, all: bool) -> bool {
        let places = self.places.borrow();
        for (_, place) in places.iter().filter(|(_, place)| all || place.until <= now) {
            place.waker.wake_by_ref();
        }
        if self.parked.get() >= FEW {
            self.parked.set(0);
            give_back();
        }
        !places.is_empty()
    }
}

/// Waits until the client sends something; `false` when it is time to close.
pub(crate) fn parked<'a>(worker: &'a Rc<Worker>, stream: &'a Stream) -> impl Future<Output = bool> + 'a {
    let limits = &worker.limits;
    let left = limits.idle.saturating_sub(limits.park.unwrap_or_default());
    let key = worker.idle.take(Instant::now() + left);
    if !worker.idle.looks.replace(true) {
        tokio::task::spawn_local(look_after(Rc::clone(worker)));
    }
    worker.stats().parked.add(1);
    let held = Held { worker, key };
    poll_fn(move |cx| {
        // All of it, so that it is given up with the future.
        let held = &held;
        if held.worker.draining.get() {
            return Poll::Ready(false);
        }
        if let Poll::Ready(readable) = stream.poll_readable(cx) {
            return Poll::Ready(readable.is_ok());
        }
        match held.worker.idle.places.borrow_mut().get_mut(held.key) {
            Some(place) if Instant::now() < place.until => {
                place.waker.clone_from(cx.waker());
                Poll::Pending
            }
            _ => Poll::Ready(false),
        }
    })
}

/// Looks after the parked connections as long as there are any.
async fn look_after(worker: Rc<Worker>) {
    loop {
        let drained = tokio::time::timeout(worker.tick.min(LOOK), worker.drain.cancelled()).await;
        if !worker.idle.look(Instant::now(), drained.is_ok()) {
            worker.idle.looks.set(false);
            return;
        }
        if drained.is_ok() {
            // Whoever was woken goes.
            tokio::task::yield_now().await;
        }
    }
}

/// Gives what this thread has freed back to the system. mimalloc does so only while memory is asked for, so a worker without requests
/// would hold on to the buffers of all connections that it has served. Its function for this takes unsafe code; but it also gives
/// back everything before it refuses what can't be had, and this is more than any address space has. Other allocators just refuse.
fn give_back() {
    let mut none: Vec<u8> = Vec::new();
    let refused = black_box(&mut none).try_reserve_exact(isize::MAX as usize / 2);
    debug_assert!(refused.is_err());
}
