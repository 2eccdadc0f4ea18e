//! How much memory a service of a given size takes.
//!
//! Measured in a process of its own: what another size left behind in this one would be counted too.

use std::time::Duration;

use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use parallax_middleware::{LoadMark, ProcessUsage};
use serde::{Deserialize, Serialize};
use tower::ServiceExt;

use crate::{
    ApiKey, Config, ConfigError, SeedError, SeedPlan, Seeder, Service, StartError,
    auth::API_KEY_HEADER,
};

/// Reads of each kind that are sent before the memory is read: they fill caches as users would.
const READS: i64 = 2_000;
const FRESH_DEADLINE: Duration = Duration::from_secs(120);
const ANSWER_LIMIT: usize = 1_024 * 1_024;

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemorySample {
    /// Entities that the service held; ten interactions for each, and as many users.
    pub entities: u64,
    /// The most resident memory that the process ever had, bytes; where the platform does not tell that,
    /// what it had at the end.
    pub peak_rss_bytes: u64,
}

/// Fills a fresh service on SQLite, in a folder that is removed at the end, reads from it, and tells what
/// this process took.
///
/// # Errors
/// The service cannot be started or filled, or the platform does not tell how much memory is used.
pub async fn measure(entities: u64, seed: u64) -> Result<MemorySample, MeasureError> {
    let plan = SeedPlan::new(entities, seed)?;
    let folder = tempfile::tempdir().map_err(MeasureError::Folder)?;
    let database = folder.path().join("memory.db");
    let config = Config::builder()
        .database_url(format!("sqlite://{}?mode=rwc", database.display()))
        .api_key(ApiKey::random())
        .build()?;
    let service = Service::start(config).await?;
    let seeder = Seeder::new(&service);
    let seeded = seeder.seed(&plan, |_| {}).await?;
    seeder.wait_until_fresh(&seeded, FRESH_DEADLINE).await?;
    read(&service, i64::try_from(entities).unwrap_or(i64::MAX)).await?;
    let peak_rss_bytes = peak_rss_bytes().ok_or(MeasureError::Unknown)?;
    service.shutdown().await;
    Ok(MemorySample { entities, peak_rss_bytes })
}

async fn read(service: &Service, entities: i64) -> Result<(), MeasureError> {
    for read in 0..READS {
        // A stride that is prime to most sizes, so that the reads go all over the data.
        let id = 1 + read * 7_919 % entities;
        for path in [
            format!("/entities/{id}"),
            format!("/recommendations/{id}"),
            format!("/similar/{id}"),
            "/trending".to_owned(),
            format!("/search?q={id}"),
        ] {
            let request = Request::get(&path)
                .header(API_KEY_HEADER, service.api_key().reveal())
                .extension(LoadMark::new().past_limiter())
                .body(Body::empty())
                .map_err(|error| MeasureError::Read {
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
            let response = match service.router().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let status = response.status();
            let body = to_bytes(response.into_body(), ANSWER_LIMIT).await;
            if !status.is_success() || body.is_err() {
                return Err(MeasureError::Read { path, reason: status.to_string() });
            }
        }
    }
    Ok(())
}

fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok();
    status.as_deref().and_then(high_water_mark).or_else(|| ProcessUsage::now().rss_bytes)
}

/// `VmHWM` of `/proc/self/status`, bytes.
fn high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// No place for the database.
    #[error("cannot make a temporary folder: {0}")]
    Folder(#[source] std::io::Error),
    /// The configuration of the service that is measured.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The service did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The service could not be filled.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// The service did not answer.
    #[error("{path} failed: {reason}")]
    Read {
        /// What was read.
        path: String,
        /// What came of it.
        reason: String,
    },
    /// No figure.
    #[error("this platform does not tell how much memory a process uses")]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read_in_bytes() {
        assert_eq!(high_water_mark("VmPeak:\t  99 kB\nVmHWM:\t  1024 kB\n"), Some(1_048_576));
        assert_eq!(high_water_mark("VmPeak:\t  99 kB\n"), None);
    }

    #[tokio::test]
    async fn a_small_service_is_measured() {
        let sample = measure(50, 1).await.expect("measured");
        assert_eq!(sample.entities, 50);
        assert!(sample.peak_rss_bytes > 1_000_000, "{sample:?}");
    }
}
