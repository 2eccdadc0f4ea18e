//! The page: one document that needs nothing else.

use std::{hash::Hasher, sync::LazyLock};

use axum::{
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
            REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
};
use rustc_hash::FxHasher;

const PAGE: &str = concat!(
    include_str!("page/head.html"),
    "<style>",
    include_str!("page/style.css"),
    "</style>\n</head>\n",
    include_str!("page/body.html"),
    "<script>",
    include_str!("page/script.js"),
    "</script>\n</body>\n</html>\n",
);

/// Nothing may run or be shown but this script and this style, by their hashes: a test compares them. The
/// script may ask the service that it came from, and nobody else.
const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-LT6abUvV/yxeRcRsXhSz31FhpZJ0w/HbXwRzRQlgit4='; \
    style-src 'sha256-0OKXiZCHOgw/ENi8f3+a+KcAnH8323oRdBRk4YEzFAQ='; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Names this version of the page. Weak, because a compressed one has the same name.
static TAG: LazyLock<HeaderValue> = LazyLock::new(|| {
    let mut hasher = FxHasher::default();
    hasher.write(PAGE.as_bytes());
    let tag = format!("W/\"{:016x}\"", hasher.finish());
    HeaderValue::from_str(&tag).expect("it is ASCII")
});

/// The page, or the news that the client has it already.
pub(super) fn response(headers: &HeaderMap) -> Response {
    let known = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim() == "*" || tag.trim() == *TAG);
    // It changes with the service's version only, but may be asked for as something else, or be forbidden.
    let kept =
        [(ETAG, TAG.clone()), (CACHE_CONTROL, HeaderValue::from_static("private, no-cache"))];
    if known {
        return (StatusCode::NOT_MODIFIED, kept).into_response();
    }
    let page = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (kept, page, PAGE).into_response()
}
