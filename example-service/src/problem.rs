//! What a client is told when a request cannot be served: RFC 9457 problem details.

use axum::{
    body::Body,
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// One thing that is wrong with a request's body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Fault {
    /// JSON pointer to it.
    pub(crate) pointer: String,
    pub(crate) detail: String,
}

/// Why a request was not served.
///
/// Nothing in it comes from the configuration or from a driver: those go to the log.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("the header x-api-key is missing or holds no key of this service")]
    Unauthorized,
    #[error("{what} does not exist")]
    NotFound { what: String },
    #[error("{method} is not allowed here")]
    MethodNotAllowed { method: Method },
    #[error("{detail}")]
    BadRequest { detail: String },
    #[error("send JSON, with content-type: application/json")]
    UnsupportedMediaType,
    #[error("the body is over the limit of {limit} bytes")]
    PayloadTooLarge { limit: usize },
    #[error("the request is well-formed, but some of it is not acceptable")]
    Invalid { faults: Vec<Fault> },
    #[error("over the rate limit of this key; try again in {retry_after_s} s")]
    TooManyRequests { retry_after_s: u64 },
    #[error("the service cannot reach its storage now, or is shutting down")]
    Unavailable,
    #[error("the service failed; its log says why")]
    Internal,
}

impl ApiError {
    /// One fault, where it is.
    pub(crate) fn invalid(pointer: &str, detail: impl Into<String>) -> Self {
        let fault = Fault { pointer: pointer.to_owned(), detail: detail.into() };
        Self::Invalid { faults: vec![fault] }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadRequest { .. } => StatusCode::BAD_REQUEST,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::PayloadTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        tracing::error!(%error, "a query failed");
        match error {
            sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::WorkerCrashed => Self::Unavailable,
            _ => Self::Internal,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Problem<'a> {
            // The status and its title say all there is: RFC 9457, 4.2.1.
            r#type: &'static str,
            title: &'a str,
            status: u16,
            detail: String,
            #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
            errors: &'a [Fault],
        }
        let status = self.status();
        let problem = Problem {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: self.to_string(),
            errors: if let Self::Invalid { faults } = &self { faults } else { &[] },
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self {
            Self::TooManyRequests { retry_after_s } => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
            }
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("ApiKey"));
            }
            _ => {}
        }
        response
    }
}
