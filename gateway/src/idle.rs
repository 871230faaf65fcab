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
/// The same once the worker drains.
const HURRY: Duration = Duration::from_millis(20);
/// Fewer connections have not held enough to give back.
const FEW: u32 = 8;

/// The parked connections of one worker.
#[derive(Debug, Default)]
pub(crate) struct Idle {
    places: RefCell<Slab<Place>>,
    /// Parked, or waiting for the rest of a head, since memory was last given back.
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
        let waker = Waker::noop().clone();
        self.places.borrow_mut().insert(Place { waker, until })
    }

    /// The worker drains: their time is over within `grace`, one after the other.
    fn hurry(&self, now: Instant, grace: Duration) {
        for (_, place) in self.places.borrow_mut().iter_mut() {
            place.until = place.until.min(now + grace / 2 + part(grace / 2));
        }
    }

    /// Wakes those whose time is over. `false`: nobody is left.
    fn look(&self, now: Instant) -> bool {
        let places = self.places.borrow();
        for (_, place) in places.iter().filter(|(_, place)| place.until <= now) {
            place.waker.wake_by_ref();
        }
        if self.parked.get() >= FEW {
            self.parked.set(0);
            give_back();
        }
        !places.is_empty()
    }
}

/// A random part of it.
fn part(time: Duration) -> Duration {
    time.mul_f64(rand::random())
}

/// Waits until the client sends something; `false` when it is time to close.
pub(crate) fn parked<'a>(worker: &'a Rc<Worker>, stream: &'a Stream) -> impl Future<Output = bool> + 'a {
    let limits = &worker.limits;
    let left = if worker.draining.get() {
        worker.grace / 2
    } else {
        limits.idle.saturating_sub(limits.park.unwrap_or_default())
    };
    let key = worker.idle.take(Instant::now() + left);
    let_go(worker);
    worker.stats().parked.add(1);
    let held = Held { worker, key };
    poll_fn(move |cx| {
        // All of it, so that it is given up with the future.
        let held = &held;
        if let Poll::Ready(readable) = stream.poll_readable(cx) {
            return Poll::Ready(readable.is_ok());
        }
        match held.worker.idle.places.borrow_mut().get_mut(held.key) {
            Some(place) if Instant::now() < place.until => {
                place.waker.clone_from(cx.waker());
                Poll::Pending
            }
            // What has come in the meantime would be lost.
            _ => Poll::Ready(stream.has_bytes()),
        }
    })
}

/// A connection has let go of what serving it takes.
pub(crate) fn let_go(worker: &Rc<Worker>) {
    let idle = &worker.idle;
    idle.parked.set(idle.parked.get().saturating_add(1));
    if !idle.looks.replace(true) {
        tokio::task::spawn_local(look_after(Rc::clone(worker)));
    }
}

/// Looks after the parked connections as long as there are any.
async fn look_after(worker: Rc<Worker>) {
    let mut drains = false;
    loop {
        if drains {
            tokio::time::sleep(HURRY).await;
        } else {
            let drained = tokio::time::timeout(worker.tick.min(LOOK), worker.drain.cancelled()).await;
            drains = drained.is_ok();
            if drains {
                worker.idle.hurry(Instant::now(), worker.grace);
            }
        }
        if !worker.idle.look(Instant::now()) {
            worker.idle.looks.set(false);
            return;
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
