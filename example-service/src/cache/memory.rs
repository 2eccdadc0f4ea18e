//! The cache of a service that runs alone.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use moka::{Expiry, future};
use parallax_middleware::{CacheWatch, Perf};

use super::Cache;

/// Keys and values together, bytes.
const CAPACITY: u64 = 32 * 1_024 * 1_024;
/// What an entry costs besides its key and value, bytes, roughly.
const ENTRY_OVERHEAD: usize = 200;

#[derive(Clone, Debug)]
struct Kept {
    value: Bytes,
    ttl: Duration,
}

/// Keeps answers in the memory of the process, the most used ones within [`CAPACITY`].
#[derive(Debug)]
pub(crate) struct MemoryCache {
    kept: future::Cache<String, Kept>,
    perf: Perf,
    watch: CacheWatch,
}

impl MemoryCache {
    pub(crate) fn new(perf: &Perf) -> Self {
        let kept = future::Cache::builder()
            .max_capacity(CAPACITY)
            .weigher(|key: &String, kept: &Kept| {
                u32::try_from(key.len() + kept.value.len() + ENTRY_OVERHEAD).unwrap_or(u32::MAX)
            })
            .expire_after(OwnTtl)
            .build();
        Self { kept, perf: perf.clone(), watch: perf.cache("cache") }
    }
}

#[async_trait]
impl Cache for MemoryCache {
    async fn get(&self, key: &str) -> Option<Bytes> {
        let kept = self.perf.observe("cache:cache", self.kept.get(key)).await;
        self.watch.count(kept).map(|kept| kept.value)
    }

    async fn set(&self, key: String, value: Bytes, ttl: Duration) {
        self.kept.insert(key, Kept { value, ttl }).await;
    }

    async fn invalidate(&self, keys: &[String]) {
        for key in keys {
            self.kept.invalidate(key).await;
        }
    }
}

/// Every entry says for itself how long it lasts.
struct OwnTtl;

impl Expiry<String, Kept> for OwnTtl {
    fn expire_after_create(&self, _: &String, kept: &Kept, _: Instant) -> Option<Duration> {
        Some(kept.ttl)
    }

    fn expire_after_update(
        &self,
        _: &String,
        kept: &Kept,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(kept.ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_set_is_found_until_it_is_invalidated() {
        let cache = MemoryCache::new(&Perf::new());
        let ttl = Duration::from_secs(60);
        cache.set("a".to_owned(), Bytes::from_static(b"1"), ttl).await;
        cache.set("a".to_owned(), Bytes::from_static(b"2"), ttl).await;
        assert_eq!(cache.get("a").await.as_deref(), Some(&b"2"[..]));
        cache.invalidate(&["a".to_owned()]).await;
        assert_eq!(cache.get("a").await, None);
    }

    #[tokio::test]
    async fn what_lasts_no_time_is_not_found() {
        let cache = MemoryCache::new(&Perf::new());
        cache.set("a".to_owned(), Bytes::from_static(b"1"), Duration::ZERO).await;
        assert_eq!(cache.get("a").await, None);
    }
}
