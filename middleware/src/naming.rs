//! How a request's route gets its name.

use axum::extract::MatchedPath;
use http::{Extensions, HeaderMap, Method, Request, Uri};

/// What a route's name can be read from.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestHead<'r> {
    /// The method. It is a part of every row's name without being asked for.
    pub method: &'r Method,
    /// The address as it arrived.
    pub uri: &'r Uri,
    /// The headers.
    pub headers: &'r HeaderMap,
    /// What the layers outside have put there.
    pub extensions: &'r Extensions,
}

impl<'r> RequestHead<'r> {
    #[inline]
    pub(crate) fn of<B>(request: &'r Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }
}

/// Names the route of a request, from a set of names that clients cannot add to: each name has a row of
/// its own, up to the route cap.
///
/// Implemented by functions from [`RequestHead`] to an optional name; see
/// [`PerfLayer::name_routes`](crate::PerfLayer::name_routes).
pub trait NameRoute: Clone {
    /// The name; `None` for requests that belong to no route.
    fn name_route<'r>(&self, head: RequestHead<'r>) -> Option<&'r str>;
}

impl<F> NameRoute for F
where
    F: for<'r> Fn(RequestHead<'r>) -> Option<&'r str> + Clone,
{
    #[inline]
    fn name_route<'r>(&self, head: RequestHead<'r>) -> Option<&'r str> {
        self(head)
    }
}

/// Names a route by the template that axum's router matched. The default.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct MatchedTemplate;

impl NameRoute for MatchedTemplate {
    #[inline]
    fn name_route<'r>(&self, head: RequestHead<'r>) -> Option<&'r str> {
        head.extensions.get::<MatchedPath>().map(MatchedPath::as_str)
    }
}
