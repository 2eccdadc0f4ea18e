//! Answers kept for a while: in the process, or in Redis where several processes share them.

mod memory;
mod redis;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use rustc_hash::FxHashMap;
use tokio::sync::OnceCell;

pub(crate) use self::{memory::MemoryCache, redis::RedisCache};

/// A place to keep answers. It may forget at any time, and a failure of it is a miss: what is behind it
/// can always be asked instead.
#[async_trait]
pub(crate) trait Cache: std::fmt::Debug + Send + Sync {
    /// What was set and is not too old.
    async fn get(&self, key: &str) -> Option<Bytes>;

    /// Keeps `value` for at most `ttl`.
    async fn set(&self, key: String, value: Bytes, ttl: Duration);

    /// Forgets the keys.
    async fn invalidate(&self, keys: &[String]);
}

/// A cache before what it keeps the answers of.
///
/// When an entry ends, hundreds of requests may miss it at once: one of them loads, the others wait for it.
#[derive(Debug)]
pub(crate) struct ReadThrough {
    cache: Box<dyn Cache>,
    ttl: Duration,
    /// What is being loaded now. Held for a look-up only, never across an await.
    loads: Mutex<FxHashMap<String, Load>>,
}

type Load = Arc<OnceCell<Bytes>>;

impl ReadThrough {
    pub(crate) fn new(cache: Box<dyn Cache>, ttl: Duration) -> Self {
        Self { cache, ttl, loads: Mutex::default() }
    }

    /// What is kept under `key`, else what `load` returns, which is kept from then on.
    ///
    /// # Cancel safety
    /// Where the request that loads is dropped, one of those that wait loads instead.
    pub(crate) async fn get_or_load<E, F>(
        &self,
        key: String,
        load: impl FnOnce() -> F,
    ) -> Result<Bytes, E>
    where
        F: Future<Output = Result<Bytes, E>>,
    {
        if let Some(kept) = self.cache.get(&key).await {
            return Ok(kept);
        }
        let shared = self.loads().entry(key.clone()).or_default().clone();
        let _leave = Leave { loads: &self.loads, key: &key, load: &shared };
        let loaded = shared
            .get_or_try_init(|| async {
                let value = load().await?;
                // Invalidated in the meantime, it may be old: good for those that asked before, not to keep.
                if self.is_current(&key, &shared) {
                    self.cache.set(key.clone(), value.clone(), self.ttl).await;
                }
                Ok(value)
            })
            .await?;
        Ok(loaded.clone())
    }

    /// Forgets the keys, and what is being loaded for them.
    pub(crate) async fn invalidate(&self, keys: &[String]) {
        {
            let mut loads = self.loads();
            for key in keys {
                loads.remove(key);
            }
        }
        self.cache.invalidate(keys).await;
    }

    fn is_current(&self, key: &str, load: &Load) -> bool {
        self.loads().get(key).is_some_and(|current| Arc::ptr_eq(current, load))
    }

    fn loads(&self) -> MutexGuard<'_, FxHashMap<String, Load>> {
        locked(&self.loads)
    }
}

/// Nothing panics while it is held, and a map that was cut short would still be one.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes a load when a request that took part ends, however it ends: those that come later find the
/// cache filled, or load for themselves.
struct Leave<'a> {
    loads: &'a Mutex<FxHashMap<String, Load>>,
    key: &'a str,
    load: &'a Load,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut loads = locked(self.loads);
        // Two owners besides this one: the map and another request, which will remove it.
        let last = self.load.initialized() || Arc::strong_count(self.load) <= 2;
        if last && loads.get(self.key).is_some_and(|current| Arc::ptr_eq(current, self.load)) {
            loads.remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use parallax_middleware::Perf;

    use super::*;

    fn cache() -> ReadThrough {
        ReadThrough::new(Box::new(MemoryCache::new(&Perf::new())), Duration::from_secs(60))
    }

    async fn load(cache: &ReadThrough, value: &'static [u8], loads: &AtomicUsize) -> Bytes {
        let load = || async {
            loads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(Bytes::from_static(value))
        };
        match cache.get_or_load("key".to_owned(), load).await {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    #[tokio::test]
    async fn requests_that_miss_together_load_once() {
        let (cache, loads) = (cache(), AtomicUsize::new(0));
        let (one, two) = tokio::join!(load(&cache, b"a", &loads), load(&cache, b"b", &loads));
        assert_eq!((one.as_ref(), two.as_ref()), (&b"a"[..], &b"a"[..]));
        assert_eq!(load(&cache, b"c", &loads).await.as_ref(), b"a");
        assert_eq!(loads.load(Ordering::Relaxed), 1);
        assert!(cache.loads().is_empty());
    }

    #[tokio::test]
    async fn what_is_invalidated_while_it_loads_is_not_kept() {
        let (cache, loads) = (cache(), AtomicUsize::new(0));
        let key = ["key".to_owned()];
        let (old, ()) = tokio::join!(load(&cache, b"old", &loads), cache.invalidate(&key));
        assert_eq!(old.as_ref(), b"old");
        assert_eq!(load(&cache, b"new", &loads).await.as_ref(), b"new");
        assert!(cache.loads().is_empty());
    }

    #[tokio::test]
    async fn a_request_that_goes_away_while_it_loads_leaves_nothing_behind() {
        let (cache, loads) = (cache(), AtomicUsize::new(0));
        tokio::select! {
            biased;
            _ = load(&cache, b"a", &loads) => panic!("it yields before it ends"),
            () = std::future::ready(()) => {}
        }
        assert!(cache.loads().is_empty());
        assert_eq!(load(&cache, b"b", &loads).await.as_ref(), b"b");
    }
}
