//! What the tests share.

pub(crate) mod browser;
pub(crate) mod client;
pub(crate) mod listening;
pub(crate) mod postgres;
pub(crate) mod promtool;
pub(crate) mod redis;
pub(crate) mod rig;
pub(crate) mod server;
pub(crate) mod wire;

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep};

/// Waits until `reached` returns something, by asking every few milliseconds.
///
/// The deadline only bounds a test that fails; no test depends on how long the wait took.
///
/// # Panics
/// After 20 s, with `what` was waited for.
pub(crate) async fn eventually<T, F>(what: &str, mut reached: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = reached().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited 20 s in vain until {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
