//! The layer.

use tower_layer::Layer;

use crate::{
    naming::{MatchedTemplate, NameRoute, RequestHead},
    recorder::Recorder,
    service::PerfService,
};

/// Wraps a service so that its requests are recorded. Made by [`Perf::layer`](crate::Perf::layer).
///
/// Under [`Router::layer`](axum::Router::layer) it sees every request that the router takes, matched or
/// not, with its route's template. Layers added later are outside of it: what they answer on their own
/// it does not see, and the time that they take is outside of its figures.
///
/// A request begins when the service is called. What it waits before, for the service to be ready,
/// belongs to no request yet.
#[derive(Clone, Debug)]
pub struct PerfLayer<N = MatchedTemplate> {
    recorder: Recorder,
    naming: N,
}

impl PerfLayer {
    pub(crate) fn new(recorder: Recorder) -> Self {
        Self { recorder, naming: MatchedTemplate }
    }

    /// Names routes by `name`, for services that no axum router answers: plain tower, tonic, hyper.
    ///
    /// Each name has a row, up to the route cap; requests without one share the row of unmatched paths.
    /// So return names of the service's own making. Where the path is the name, as with gRPC, let through
    /// the paths that the service knows. A panic in `name` goes on to the caller, uncounted: the request has no
    /// row yet.
    ///
    /// ```
    /// use http::{Request, Response};
    /// use parallax_middleware::Perf;
    /// use tower::{ServiceBuilder, ServiceExt, service_fn};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let perf = Perf::new();
    /// let service = ServiceBuilder::new()
    ///     .layer(perf.layer().name_routes(|head| match head.uri.path() {
    ///         path @ ("/echo.Echo/Say" | "/echo.Echo/Shout") => Some(path),
    ///         _ => None,
    ///     }))
    ///     .service(service_fn(async |_: Request<()>| {
    ///         Ok::<_, std::io::Error>(Response::new(axum::body::Body::empty()))
    ///     }));
    ///
    /// service.oneshot(Request::post("/echo.Echo/Say").body(()).unwrap()).await.unwrap();
    /// assert_eq!(perf.snapshot().view().routes[0].route, "/echo.Echo/Say");
    /// # }
    /// ```
    #[must_use]
    pub fn name_routes<F>(self, name: F) -> PerfLayer<F>
    where
        F: for<'r> Fn(RequestHead<'r>) -> Option<&'r str> + Clone,
    {
        PerfLayer { recorder: self.recorder, naming: name }
    }
}

impl<S, N: NameRoute> Layer<S> for PerfLayer<N> {
    type Service = PerfService<S, N>;

    fn layer(&self, inner: S) -> Self::Service {
        PerfService::new(inner, self.recorder.loan(), self.naming.clone())
    }
}
