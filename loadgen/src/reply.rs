//! What a flow gets back: an answer, or why it cannot go on.

use std::{error::Error, fmt};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

/// An answer, whole.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, up to 16 MiB of it.
    pub body: Bytes,
    pub(crate) received: Instant,
}

impl Reply {
    pub(crate) fn none(received: Instant) -> Self {
        Self {
            status: StatusCode::default(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            received,
        }
    }

    /// A header's value, if it is there and text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn text(&self) -> Result<&str, FlowError> {
        Ok(std::str::from_utf8(&self.body)?)
    }

    /// The body, read as JSON.
    ///
    /// # Errors
    /// If it is not JSON, or not of this shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, FlowError> {
        Ok(serde_json::from_slice(&self.body)?)
    }

    /// What a JSON pointer (RFC 6901, like `/items/0/id`) points to in the body: a string as it is, anything else
    /// as JSON.
    ///
    /// # Errors
    /// If the body is not JSON, or nothing is there.
    pub fn text_at(&self, pointer: &str) -> Result<String, FlowError> {
        let body: Value = self.json()?;
        match body.pointer(pointer) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(value) => Ok(value.to_string()),
            None => Err(FlowError::new(format!("the answer has nothing at {pointer:?}"))),
        }
    }
}

/// Why an iteration of a flow ended early.
///
/// Every error converts into it, so that `?` works throughout a flow. What was not already counted as the outcome
/// of a request makes the last one `check_failed`, and is told in the report.
#[derive(Debug)]
pub struct FlowError(Failure);

#[derive(Debug)]
enum Failure {
    /// Nothing is sent any more.
    Over,
    /// The last request had no answer, which is counted already.
    NoAnswer,
    /// Nothing is left to do, for this reason.
    Done(String),
    Other(Box<dyn Error + Send + Sync>),
}

impl FlowError {
    /// Nothing is sent any more.
    pub(crate) fn over() -> Self {
        Self(Failure::Over)
    }

    /// The last request had no answer, which is counted already.
    pub(crate) fn no_answer() -> Self {
        Self(Failure::NoAnswer)
    }

    /// An iteration that has nothing left to do, and why: no failure of anything.
    pub(crate) fn done(reason: String) -> Self {
        Self(Failure::Done(reason))
    }

    /// An iteration that cannot go on, and why.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(Failure::Other(reason.into().into()))
    }

    /// What has not been counted yet.
    pub(crate) fn uncounted(&self) -> Option<&(dyn Error + Send + Sync)> {
        match &self.0 {
            Failure::Other(error) => Some(&**error),
            Failure::Over | Failure::NoAnswer | Failure::Done(_) => None,
        }
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for FlowError {
    fn from(error: E) -> Self {
        Self(Failure::Other(Box::new(error)))
    }
}

impl fmt::Display for FlowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Failure::Over => f.write_str("the run is over"),
            Failure::NoAnswer => f.write_str("there was no answer"),
            Failure::Done(reason) => f.write_str(reason),
            Failure::Other(error) => error.fmt(f),
        }
    }
}
