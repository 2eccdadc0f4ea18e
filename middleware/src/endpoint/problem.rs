//! What went wrong, and what to do instead.

use axum::{
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    },
    response::{IntoResponse, Response},
};

use super::{JSON, TEXT, accept};

/// An answer that is not what was asked for.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    text: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(super) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// The client accepts nothing that there is.
    pub(super) fn not_acceptable(path: &str, there_is: &[&str]) -> Self {
        let there_is = there_is.join(" and ");
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            format!("{path} comes as {there_is}: accept one of them"),
        )
    }

    /// As text, or as JSON for a client that would rather have that.
    pub(super) fn response(self, headers: &HeaderMap) -> Response {
        let Self { status, text } = self;
        let (form, body) = match accept::choose(headers, &[TEXT, JSON]) {
            Some(JSON) => (JSON, serde_json::json!({ "error": text }).to_string()),
            _ => ("text/plain; charset=utf-8", text + "\n"),
        };
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static(form)),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ];
        (status, headers, body).into_response()
    }
}
