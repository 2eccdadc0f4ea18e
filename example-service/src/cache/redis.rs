//! The cache that several processes share.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use deadpool_redis::{
    Config, Connection, PoolError, Runtime,
    redis::{self, RedisError},
};
use parallax_middleware::{ObservedConnection, ObservedRedis, Perf};

use super::Cache;
use crate::{config::SecretUrl, redact::scrubbed, service::StartError};
use tokio::time::Instant;

/// How long a request waits for Redis before it goes on without, for a connection and for an answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// After a failure, the time in which nobody asks again: an outage must not cost every request
/// [`PATIENCE`], nor write a line a request into the log.
const REST_MS: u64 = 1_000;

/// Keeps answers in Redis, under a prefix that belongs to one database.
#[derive(Debug)]
pub(crate) struct RedisCache {
    pool: ObservedRedis,
    prefix: String,
    url: SecretUrl,
    started: Instant,
    /// Milliseconds after `started` until which Redis is left alone.
    resting_until: AtomicU64,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no connection: {0}")]
    Pool(#[from] PoolError),
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("no answer within {PATIENCE:?}")]
    Late,
}

impl RedisCache {
    /// Connects, so that a wrong address is found at the start and not as a cache that never hits.
    pub(crate) async fn connect(
        url: &SecretUrl,
        connections: usize,
        prefix: String,
        perf: &Perf,
    ) -> Result<Self, StartError> {
        let failed = |reason: String| StartError::Redis {
            url: url.shown(),
            reason: scrubbed(&reason, url.reveal()),
        };
        let pool = Config::from_url(url.reveal())
            .builder()
            .map_err(|error| failed(error.to_string()))?
            .max_size(connections)
            .wait_timeout(Some(PATIENCE))
            .create_timeout(Some(PATIENCE))
            .recycle_timeout(Some(PATIENCE))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let cache = Self {
            pool: perf.observe_redis("cache", pool),
            prefix,
            url: url.clone(),
            started: Instant::now(),
            resting_until: AtomicU64::new(0),
        };
        let ping: Result<String, Failure> = cache.ask(redis::cmd("PING")).await;
        ping.map_err(|error| failed(error.to_string()))?;
        Ok(cache)
    }

    fn key(&self, key: &str) -> String {
        format!("{}:{key}", self.prefix)
    }

    /// `None` where Redis is resting or fails.
    async fn try_ask<T: redis::FromRedisValue>(&self, command: redis::Cmd) -> Option<T> {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if now < self.resting_until.load(Ordering::Relaxed) {
            return None;
        }
        match self.ask(command).await {
            Ok(answer) => Some(answer),
            Err(error) => {
                let before =
                    self.resting_until.fetch_max(now.saturating_add(REST_MS), Ordering::Relaxed);
                // Those that were under way when it failed have been spoken for.
                if before <= now {
                    let reason = scrubbed(&error.to_string(), self.url.reveal());
                    tracing::warn!(
                        url = self.url.shown(),
                        reason,
                        "the cache fails; going on without"
                    );
                }
                None
            }
        }
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: redis::Cmd) -> Result<T, Failure> {
        let mut connection = self.pool.get().await?;
        match tokio::time::timeout(PATIENCE, command.query_async(&mut connection)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => {
                // Whoever comes next should not wait behind what this one is stuck on.
                drop(Connection::take(ObservedConnection::into_inner(connection)));
                Err(Failure::Late)
            }
        }
    }
}

#[async_trait]
impl Cache for RedisCache {
    async fn get(&self, key: &str) -> Option<Bytes> {
        let mut command = redis::cmd("GET");
        command.arg(self.key(key));
        let value: Option<Vec<u8>> = self.try_ask(command).await?;
        value.map(Bytes::from)
    }

    async fn set(&self, key: String, value: Bytes, ttl: Duration) {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut command = redis::cmd("SET");
        command.arg(self.key(&key)).arg(&value[..]).arg("PX").arg(ttl_ms);
        let _: Option<()> = self.try_ask(command).await;
    }

    async fn invalidate(&self, keys: &[String]) {
        if keys.is_empty() {
            return;
        }
        let mut command = redis::cmd("DEL");
        for key in keys {
            command.arg(self.key(key));
        }
        let _: Option<()> = self.try_ask(command).await;
    }
}
