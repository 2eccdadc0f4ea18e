//! Drive an axum service in process, and lay its view beside the client's.

pub mod memory;
pub mod render;
pub mod report;
pub mod statistics;
pub mod threshold;
