//! Time that passes only while everybody waits: an hour of load in seconds, the same every time.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Wake, Waker},
    thread::{self, ThreadId},
};

use tokio::time::Instant;

#[cfg(feature = "virtual-time")]
pub use self::runtime::virtual_time;

/// Notices that something waits for another thread: for I/O, for `spawn_blocking`, for another runtime. Such a
/// wait takes real time and no virtual one, so no figure would mean anything. And that time stands still, because
/// nobody ever waits. Clones are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    woken_from_outside: AtomicBool,
    stands_still: AtomicBool,
    /// The moment of the last request, and how many came at it.
    at_once: Mutex<Option<(Instant, usize)>>,
}

/// Requests that each user may have ended at one moment.
const AT_ONCE: usize = 100;
/// And all of them, at least.
const ALL_AT_ONCE: usize = 100_000;

impl Watch {
    pub(crate) fn saw_outside(&self) -> bool {
        self.shared.woken_from_outside.load(Relaxed)
    }

    pub(crate) fn see_outside(&self) {
        self.shared.woken_from_outside.store(true, Relaxed);
    }

    pub(crate) fn stands_still(&self) -> bool {
        self.shared.stands_still.load(Relaxed)
    }

    /// One of `users` has its answer.
    pub(crate) fn answered(&self, now: Instant, users: usize) {
        let mut at_once = self.shared.at_once.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match *at_once {
            Some((last, count)) if last == now => count + 1,
            _ => 1,
        };
        *at_once = Some((now, count));
        if count > ALL_AT_ONCE.max(users.saturating_mul(AT_ONCE)) {
            self.shared.stands_still.store(true, Relaxed);
        }
    }

    /// Polls `future` with a waker that looks who wakes it.
    pub(crate) async fn over<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            let waker = Waker::from(Arc::new(Watcher {
                inner: cx.waker().clone(),
                home: thread::current().id(),
                watch: self.clone(),
            }));
            future.as_mut().poll(&mut std::task::Context::from_waker(&waker))
        })
        .await
    }
}

struct Watcher {
    inner: Waker,
    home: ThreadId,
    watch: Watch,
}

impl Wake for Watcher {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if thread::current().id() != self.home {
            self.watch.see_outside();
        }
        self.inner.wake_by_ref();
    }
}

#[cfg(feature = "virtual-time")]
mod runtime {
    use std::{cell::Cell, future::Future, io, panic::resume_unwind};

    use tokio::{runtime::Builder, task::spawn_blocking};

    use crate::stop::Stop;

    thread_local! {
        /// Does this thread run a runtime whose time is virtual?
        static VIRTUAL: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs a future in virtual time: on a runtime of its own, with one thread and without I/O, whose clock stands
    /// still while anything can go on and then leaps to the next timer.
    ///
    /// Only needed for a service with tasks of its own, which must be born in that time: build it, and run its
    /// [load test](crate::LoadTest), in `future`. Otherwise [`LoadTest::virtual_time`](crate::LoadTest::virtual_time)
    /// does the same by itself.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::time::{Instant, sleep};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let slept = parallax_loadgen::virtual_time(async {
    ///     let start = Instant::now();
    ///     sleep(Duration::from_secs(3600)).await;
    ///     start.elapsed()
    /// });
    /// assert_eq!(slept.await?, Duration::from_secs(3600));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the operating system refuses the runtime its thread.
    ///
    /// # Panics
    /// If `future` does.
    ///
    /// # Cancel safety
    /// If the returned future is dropped, `future` is dropped soon after.
    pub async fn virtual_time<F>(future: F) -> io::Result<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        if is_virtual() {
            return Ok(future.await);
        }
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let dropped = StopOnDrop(Stop::new());
        let stop = dropped.0.clone();
        // A blocking thread, so that a caller whose own time is paused does not see it pass meanwhile.
        let done = spawn_blocking(move || {
            VIRTUAL.set(true);
            let output = runtime.block_on(async {
                tokio::select! {
                    output = future => Some(output),
                    () = stop.stopped() => None,
                }
            });
            // The thread goes on to do other things.
            VIRTUAL.set(false);
            output
        });
        match done.await {
            Ok(Some(output)) => Ok(output),
            Ok(None) => Err(io::Error::other("nobody waits for it")),
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Is the caller within [`virtual_time`]?
    fn is_virtual() -> bool {
        VIRTUAL.get()
    }

    struct StopOnDrop(Stop);

    impl Drop for StopOnDrop {
        fn drop(&mut self) {
            self.0.stop();
        }
    }
}
