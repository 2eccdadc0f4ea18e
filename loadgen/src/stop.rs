//! How a run is ended early.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use tokio::sync::Notify;

/// Ends runs early, from anywhere: what is in flight is drained, and the report is made of what there
/// is. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    stopped: AtomicBool,
    wake: Notify,
}

impl Stop {
    /// Nothing is stopped yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends every run that holds this handle, now and later.
    pub fn stop(&self) {
        self.inner.stopped.store(true, SeqCst);
        self.inner.wake.notify_waiters();
    }

    /// Has [`stop`](Self::stop) been called?
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.inner.stopped.load(SeqCst)
    }

    /// Waits until [`stop`](Self::stop) is called. Cancel safe.
    pub async fn stopped(&self) {
        let notified = self.inner.wake.notified();
        if !self.is_stopped() {
            notified.await;
        }
    }
}
