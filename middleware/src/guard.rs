//! Lets in who knows a token.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{extract::Request, response::Response};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE},
};
use pin_project_lite::pin_project;
use subtle::ConstantTimeEq;
use tower_layer::Layer;
use tower_service::Service;

/// The fewest characters of a token.
const SHORTEST: usize = 32;

/// A layer that answers 401 unless a request brings a token.
///
/// A program sends it as `Authorization: Bearer <token>`. A browser asks its user for a name and a password:
/// the password is the token, the name may be anything. Tokens are compared in constant time;
/// `Debug` does not show this one. It travels in each request, so use TLS wherever the network is not your own.
///
/// ```
/// use axum::Router;
/// use parallax_middleware::{BearerGuard, Perf};
///
/// # fn app(perf: &Perf) -> Result<Router, Box<dyn std::error::Error>> {
/// let guard = BearerGuard::new(std::env::var("PERF_TOKEN")?)?;
/// let watching = perf.routes().route_layer(guard);
/// # Ok(watching)
/// # }
/// ```
#[derive(Clone)]
pub struct BearerGuard {
    token: Arc<str>,
}

impl BearerGuard {
    /// Lets in who knows `token`: 32 or more characters of visible ASCII, from a random source, such as
    /// `openssl rand -hex 32`.
    ///
    /// # Errors
    ///
    /// If the token is shorter, or has a character that is not visible ASCII.
    pub fn new(token: impl Into<Arc<str>>) -> Result<Self, WeakToken> {
        let token = token.into();
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            Err(WeakToken::Unreadable)
        } else if token.len() < SHORTEST {
            Err(WeakToken::Short)
        } else {
            Ok(Self { token })
        }
    }

    /// `Some(false)` for a token that is wrong, `None` where there is none.
    fn lets_in(&self, headers: &HeaderMap) -> Option<bool> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let (value, None) = (given.next()?, given.next()) else { return Some(false) };
        let (scheme, credentials) = value.to_str().ok()?.split_once(' ')?;
        let credentials = credentials.trim().as_bytes();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(self.is(credentials));
        }
        if scheme.eq_ignore_ascii_case("basic") {
            let pair = STANDARD.decode(credentials).unwrap_or_default();
            let colon = pair.iter().position(|byte| *byte == b':');
            return Some(colon.is_some_and(|colon| self.is(&pair[colon + 1..])));
        }
        None
    }

    fn is(&self, token: &[u8]) -> bool {
        self.token.as_bytes().ct_eq(token).into()
    }
}

impl fmt::Debug for BearerGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BearerGuard").finish_non_exhaustive()
    }
}

/// Why a token is not good enough. It is not shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum WeakToken {
    /// It has fewer than 32 characters.
    Short,
    /// It has characters that a header cannot carry as they are: spaces, controls, or others than ASCII.
    Unreadable,
}

impl fmt::Display for WeakToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "the token is too short: take 32 or more random characters (openssl rand -hex 32)",
            Self::Unreadable => {
                "the token has characters other than visible ASCII: is there a line break at its end?"
            }
        })
    }
}

impl std::error::Error for WeakToken {}

impl<S> Layer<S> for BearerGuard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

/// A service behind a [`BearerGuard`].
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    guard: BearerGuard,
}

impl<S: Service<Request, Response = Response>> Service<Request> for Guarded<S> {
    type Response = Response;
    type Error = S::Error;
    type Future = GuardFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> GuardFuture<S::Future> {
        match self.guard.lets_in(request.headers()) {
            Some(true) => GuardFuture::Inside { future: self.inner.call(request) },
            refused => GuardFuture::Refused { response: Some(refusal(refused.is_some())) },
        }
    }
}

fn refusal(wrong: bool) -> Response {
    let text = "this needs a token: send it as `Authorization: Bearer <token>`, or as any user's password\n";
    let mut response = Response::new(text.into());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let bearer = if wrong {
        r#"Bearer realm="perf", error="invalid_token""#
    } else {
        r#"Bearer realm="perf""#
    };
    for (name, value) in [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (WWW_AUTHENTICATE, bearer),
        (WWW_AUTHENTICATE, r#"Basic realm="perf", charset="UTF-8""#),
    ] {
        response.headers_mut().append(name, HeaderValue::from_static(value));
    }
    response
}

pin_project! {
    /// The answer of a [`Guarded`] service.
    #[project = GuardProjection]
    #[derive(Debug)]
    pub enum GuardFuture<F> {
        #[doc(hidden)]
        Inside { #[pin] future: F },
        #[doc(hidden)]
        Refused { response: Option<Response> },
    }
}

impl<F: Future<Output = Result<Response, E>>, E> Future for GuardFuture<F> {
    type Output = Result<Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            GuardProjection::Inside { future } => Poll::Ready(ready!(future.poll(cx))),
            GuardProjection::Refused { response } => {
                Poll::Ready(Ok(response.take().expect("polled once it was ready")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef:123456789abcdef";

    fn lets_in(values: &[&str]) -> Option<bool> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).expect("it is visible"));
        }
        BearerGuard::new(TOKEN).expect("it is long enough").lets_in(&headers)
    }

    #[test]
    fn a_token_is_taken_from_programs_and_from_browsers() {
        let basic = |pair: &str| format!("bAsIc {}", STANDARD.encode(pair));
        for value in [
            format!("Bearer {TOKEN}"),
            format!("bearer  {TOKEN}"),
            basic(&format!(":{TOKEN}")),
            basic(&format!("me:{TOKEN}")),
        ] {
            assert_eq!(lets_in(&[&value]), Some(true), "{value}");
        }
        for value in [
            "Bearer 0123456789abcdef:123456789abcdeF".to_owned(),
            "Bearer 0123456789abcdef".to_owned(),
            "Bearer ".to_owned(),
            format!("Bearer {TOKEN}0"),
            format!("Bearer {TOKEN} {TOKEN}"),
            format!("Basic {TOKEN}"),
            basic(TOKEN.split_once(':').expect("it has one").0),
            basic(&format!("{TOKEN}:me")),
        ] {
            assert_eq!(lets_in(&[&value]), Some(false), "{value}");
        }
        for value in [TOKEN, "Digest x", ""] {
            assert_eq!(lets_in(&[value]), None, "{value}");
        }
        assert_eq!(lets_in(&[]), None);
    }

    #[test]
    fn of_two_tokens_none_counts() {
        let good = format!("Bearer {TOKEN}");
        assert_eq!(lets_in(&[&good, &good]), Some(false));
    }

    #[test]
    fn a_token_is_long_enough_and_never_shown() {
        assert_eq!(BearerGuard::new("short").expect_err("it is"), WeakToken::Short);
        for token in [format!("{TOKEN}\n"), format!("{TOKEN} "), format!("{TOKEN}ä")] {
            let error = BearerGuard::new(token).expect_err("no header carries it");
            assert_eq!(error, WeakToken::Unreadable);
            assert!(!error.to_string().contains("0123"));
        }
        let guard = BearerGuard::new(TOKEN).expect("it is long enough");
        assert!(!format!("{guard:?}").contains("0123"));
        assert!(!format!("{:?}", guard.layer(())).contains("0123"));
    }
}
