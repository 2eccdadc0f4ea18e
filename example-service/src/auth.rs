//! Who may come in, and how often.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use governor::middleware::NoOpMiddleware;
use tower_governor::{
    GovernorError, GovernorLayer, governor::GovernorConfigBuilder, key_extractor::KeyExtractor,
};

use crate::{
    config::{ApiKey, Config, KeyDigest},
    problem::ApiError,
    service::StartError,
};

/// The header that carries the key.
pub(crate) const API_KEY_HEADER: &str = "x-api-key";

/// The keys of the service, by digest.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    digests: Arc<[KeyDigest]>,
}

impl Keys {
    pub(crate) fn new(keys: &[ApiKey]) -> Self {
        Self { digests: keys.iter().map(ApiKey::digest).collect() }
    }

    /// Looks at every key whatever it finds, and at digests, so that time says nothing about a key.
    fn find(&self, key: &[u8]) -> Option<KeyDigest> {
        let digest = KeyDigest::of(key);
        let known = self.digests.iter().fold(false, |known, one| known | one.is(&digest));
        known.then_some(digest)
    }
}

/// Lets requests with a key in, and notes whose key it is.
pub(crate) async fn require_key(
    State(keys): State<Keys>,
    mut request: Request,
    next: Next,
) -> Response {
    let key = request.headers().get(API_KEY_HEADER);
    match key.and_then(|key| keys.find(key.as_bytes())) {
        Some(digest) => {
            request.extensions_mut().insert(Caller(digest));
            next.run(request).await
        }
        None => ApiError::Unauthorized.into_response(),
    }
}

/// Whose key a request carries: only after it was found to be one.
#[derive(Clone, Copy, Debug)]
struct Caller(KeyDigest);

/// Tells callers apart by their key. Only keys of the service get this far, so the limiter holds no more
/// entries than there are keys, whatever strangers send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByKey;

impl KeyExtractor for ByKey {
    type Key = KeyDigest;

    fn extract<T>(&self, request: &axum::http::Request<T>) -> Result<KeyDigest, GovernorError> {
        request
            .extensions()
            .get::<Caller>()
            .map(|caller| caller.0)
            .ok_or(GovernorError::UnableToExtractKey)
    }
}

/// So many requests at once, and one more each time that the same share of a minute has passed.
pub(crate) fn limiter(
    config: &Config,
) -> Result<GovernorLayer<ByKey, NoOpMiddleware, Body>, StartError> {
    let requests = config.rate_limit.get();
    let quota = GovernorConfigBuilder::default()
        .key_extractor(ByKey)
        .period(std::time::Duration::from_secs(60) / requests)
        .burst_size(requests)
        .finish()
        .ok_or(StartError::RateLimit { requests })?;
    Ok(GovernorLayer::new(quota).error_handler(|error| {
        let problem = match error {
            // The limiter rounds down, and a client that comes back too early is refused again.
            GovernorError::TooManyRequests { wait_time, .. } => {
                ApiError::TooManyRequests { retry_after_s: wait_time + 1 }
            }
            error => {
                tracing::error!(%error, "the limiter failed");
                ApiError::Internal
            }
        };
        problem.into_response()
    }))
}
