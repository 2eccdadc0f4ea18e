//! Answers kept for a while: in the process, or in Redis where several processes share them.

mod memory;
mod redis;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

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

pub(crate) type SharedCache = Arc<dyn Cache>;
