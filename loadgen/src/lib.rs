//! Drive an axum service in process, and lay its view beside the client's.
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, routing::get};
//! use parallax_loadgen::LoadTest;
//! use parallax_middleware::Perf;
//!
//! # #[tokio::main(flavor = "multi_thread", worker_threads = 2)]
//! # async fn main() {
//! let app = Router::new().route("/search", get(|| async { "tea" })).layer(Perf::new().layer());
//!
//! let report = LoadTest::new(app)
//!     .get("/search?q=tea")
//!     .rate(500)
//!     .warmup(Duration::from_millis(100))
//!     .duration(Duration::from_millis(400))
//!     .run()
//!     .await
//!     .expect("the plan is valid");
//! let conservation = &report.runs[0].conservation;
//! assert_eq!((conservation.scheduled, conservation.unexplained), (200, 0));
//! # }
//! ```

mod alarm;
mod attribution;
mod calibration;
mod canary;
mod checks;
pub mod cli;
mod collector;
mod conservation;
mod failures;
mod hint;
mod littles_law;
mod load;
mod load_test;
pub mod memory;
mod outcome;
mod pacer;
mod pause;
mod plan;
mod progress;
mod random;
pub mod render;
mod reply;
pub mod report;
mod resources;
mod runner;
mod saturation;
mod scenario;
mod schedule;
mod script;
mod server_names;
pub mod server_timing;
mod session;
mod settling;
mod shape;
mod sink;
mod slots;
mod stall;
pub mod statistics;
mod stop;
mod target;
pub mod threshold;
mod transport;
mod verdict;
mod virtual_time;
mod wake_ups;

pub use hint::hints;
pub use load_test::{LoadTest, LoadTestError};
pub use pacer::Pacer;
pub use pause::Pause;
pub use plan::{PlanError, Topology};
pub use progress::{Progress, Stage};
pub use random::LoadRng;
pub use reply::{FlowError, Reply};
pub use report::{Report, Run, Verdict};
pub use scenario::Scenario;
pub use schedule::Arrivals;
pub use script::ScriptError;
pub use server_timing::ServerTiming;
pub use session::Session;
pub use stop::Stop;
pub use target::InProcess;
pub use threshold::Threshold;
pub use transport::{
    Http, ParseTransportError, Transport, UrlError, Wire, WireBuilder, WireError, WireFuture,
};
#[cfg(feature = "virtual-time")]
pub use virtual_time::virtual_time;
