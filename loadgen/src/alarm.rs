//! Waking tasks at an exact time. The runtime's timer keeps whole milliseconds; a user's next request
//! is due at a moment.

use std::{
    collections::BinaryHeap,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use tokio::time::Instant;

use crate::pacer;

/// Left to spin. Users are many: half of them a few microseconds late cost half as much of a processor as all of them
/// on time.
const SPIN: Duration = pacer::WAKE_UP;

/// Wakes tasks from a thread of its own, which sleeps until shortly before one is due and then spins. The
/// thread ends with the last handle.
#[derive(Debug)]
pub(crate) struct AlarmClock {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// An alarm has come that is due before all others, or no more will.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    alarms: BinaryHeap<Entry>,
    closed: bool,
}

/// The greatest is due first.
#[derive(Debug)]
struct Entry {
    due: Instant,
    waker: Waker,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.due.cmp(&self.due)
    }
}

impl AlarmClock {
    pub(crate) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        thread::Builder::new().name("parallax-pacer".to_owned()).spawn({
            let shared = shared.clone();
            move || shared.ring()
        })?;
        Ok(Self { shared })
    }

    /// Waits until `due`. Cancel safe.
    pub(crate) fn at(&self, due: Instant) -> Alarm<'_> {
        Alarm { clock: self, due, waker: None }
    }
}

impl Drop for AlarmClock {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    /// Between two statements the heap is whole, so a panic of the allocator breaks nothing.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread.
    fn ring(&self) {
        pacer::sharpen_sleep();
        let mut due = Vec::new();
        let mut queue = self.lock();
        while !queue.closed {
            let now = Instant::now();
            while let Some(entry) = queue.alarms.peek()
                && entry.due <= now
            {
                due.extend(queue.alarms.pop().map(|entry| entry.waker));
            }
            let next = queue.alarms.peek().map(|entry| entry.due.saturating_duration_since(now));
            if !due.is_empty() || next.is_some_and(|left| left <= SPIN) {
                drop(queue);
                // Not under the lock: whoever is woken may ask for the next alarm at once.
                due.drain(..).for_each(Waker::wake);
                std::hint::spin_loop();
                queue = self.lock();
            } else {
                queue = match next {
                    Some(left) => {
                        let woken = self.changed.wait_timeout(queue, left - SPIN);
                        woken.unwrap_or_else(PoisonError::into_inner).0
                    }
                    None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                };
            }
        }
    }
}

/// Ready at its time.
#[derive(Debug)]
pub(crate) struct Alarm<'a> {
    clock: &'a AlarmClock,
    due: Instant,
    /// Whom the clock will wake.
    waker: Option<Waker>,
}

impl Future for Alarm<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.due {
            return Poll::Ready(());
        }
        if self.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            let waker = cx.waker().clone();
            self.waker = Some(waker.clone());
            let mut queue = self.clock.shared.lock();
            let first = queue.alarms.peek().is_none_or(|entry| self.due < entry.due);
            queue.alarms.push(Entry { due: self.due, waker });
            drop(queue);
            if first {
                self.clock.shared.changed.notify_one();
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn alarms_ring_in_order_and_never_early() {
        let clock = Arc::new(AlarmClock::start().expect("a thread"));
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for n in (0..50).rev() {
            let clock = clock.clone();
            tasks.spawn(async move {
                let due = start + Duration::from_millis(20) + Duration::from_micros(700) * n;
                clock.at(due).await;
                assert!(Instant::now() >= due);
                n
            });
        }
        let mut rung = Vec::new();
        while let Some(n) = tasks.join_next().await {
            rung.push(n.expect("no panic"));
        }
        // On one thread tasks run in the order in which they are woken.
        assert!(rung.is_sorted(), "{rung:?}");
    }

    #[tokio::test]
    async fn an_earlier_alarm_is_not_held_up_by_a_later_one() {
        let clock = AlarmClock::start().expect("a thread");
        let later = clock.at(Instant::now() + Duration::from_secs(3600));
        let sooner = async {
            tokio::task::yield_now().await;
            clock.at(Instant::now() + Duration::from_millis(5)).await;
        };
        tokio::select! {
            () = later => panic!("an hour has passed"),
            () = sooner => {}
        }
    }

    #[tokio::test]
    async fn the_thread_ends_with_its_clock() {
        let clock = AlarmClock::start().expect("a thread");
        let alive = Arc::downgrade(&clock.shared);
        drop(clock);
        while alive.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    }
}
