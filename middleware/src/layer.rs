//! The layer.

use tower_layer::Layer;

use crate::{recorder::Recorder, service::PerfService};

/// Wraps a service so that its requests are recorded. Made by [`Perf::layer`](crate::Perf::layer).
///
/// Under [`Router::layer`](axum::Router::layer) it sees every request that the router takes, matched or
/// not, with its route's template. Layers added later are outside of it: what they answer on their own
/// it does not see, and the time that they take is outside of its figures.
#[derive(Clone, Debug)]
pub struct PerfLayer {
    recorder: Recorder,
}

impl PerfLayer {
    pub(crate) fn new(recorder: Recorder) -> Self {
        Self { recorder }
    }
}

impl<S> Layer<S> for PerfLayer {
    type Service = PerfService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PerfService::new(inner, self.recorder.local())
    }
}
