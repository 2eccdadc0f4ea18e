//! Drive an axum service in process, and lay its view beside the client's.

pub mod memory;
pub mod report;
pub mod statistics;
pub mod threshold;
