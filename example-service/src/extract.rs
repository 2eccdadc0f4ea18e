//! Requests, taken apart: what cannot be read is answered with a problem.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{StatusCode, header, request::Parts},
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::problem::{ApiError, Fault};

/// The largest body, bytes: 1,000 entities with the longest titles, escaped, fit.
pub(crate) const BODY_LIMIT: usize = 4 * 1_024 * 1_024;
/// The most items of a batch.
pub(crate) const BATCH_LIMIT: usize = 1_000;
/// An answer that lists more faults than this helps nobody.
const FAULT_LIMIT: usize = 20;

/// Something that arrives in batches.
pub(crate) trait Item: DeserializeOwned {
    /// Calls `fault` with the field and what is wrong with it.
    fn check(&self, fault: impl FnMut(&'static str, String));
}

/// 1 to [`BATCH_LIMIT`] acceptable items, sent as a JSON array or as `{"items": […]}`.
pub(crate) struct Batch<T>(pub(crate) Vec<T>);

impl<T: Item, S: Send + Sync> FromRequest<S> for Batch<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(&request) {
            return Err(ApiError::UnsupportedMediaType);
        }
        let body =
            Bytes::from_request(request, state).await.map_err(|rejection| {
                match rejection.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => {
                        ApiError::PayloadTooLarge { limit: BODY_LIMIT }
                    }
                    _ => ApiError::BadRequest { detail: "the body broke off".to_owned() },
                }
            })?;
        let items = parse(&body)?;
        if items.is_empty() || items.len() > BATCH_LIMIT {
            let detail = format!("{} items; send 1 to {BATCH_LIMIT}", items.len());
            return Err(ApiError::invalid("", detail));
        }
        check_all(&items)?;
        Ok(Self(items))
    }
}

fn is_json(request: &Request) -> bool {
    let Some(Ok(kind)) = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.to_str())
    else {
        return false;
    };
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// By the first byte: an untagged enum would answer every mistake with "no variant matched".
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<Vec<T>, ApiError> {
    #[derive(Deserialize)]
    struct Items<T> {
        items: Vec<T>,
    }
    let array = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let parsed = if array {
        serde_json::from_slice::<Vec<T>>(body)
    } else {
        serde_json::from_slice::<Items<T>>(body).map(|batch| batch.items)
    };
    parsed.map_err(|error| match error.classify() {
        serde_json::error::Category::Data => ApiError::invalid("", error.to_string()),
        _ => ApiError::BadRequest { detail: format!("the body is not JSON: {error}") },
    })
}

fn check_all<T: Item>(items: &[T]) -> Result<(), ApiError> {
    let mut faults = Vec::new();
    for (place, item) in items.iter().enumerate() {
        item.check(|field, detail| {
            faults.push(Fault { pointer: format!("/{place}/{field}"), detail });
        });
        if faults.len() >= FAULT_LIMIT {
            break;
        }
    }
    faults.truncate(FAULT_LIMIT);
    if faults.is_empty() { Ok(()) } else { Err(ApiError::Invalid { faults }) }
}

/// The id in the path, 1 or more.
pub(crate) struct Id(pub(crate) i64);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<i64>::from_request_parts(parts, state).await {
            Ok(Path(id)) if id >= 1 => Ok(Self(id)),
            _ => Err(ApiError::BadRequest {
                detail: "the id in the path is not a whole number of 1 or more".to_owned(),
            }),
        }
    }
}

/// The query string.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(rejection) => Err(ApiError::BadRequest { detail: rejection.body_text() }),
        }
    }
}
