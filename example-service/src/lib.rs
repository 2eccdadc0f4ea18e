//! placeholder
mod auth;
mod cache;
mod config;
mod entity;
mod extract;
mod interaction;
mod model;
mod problem;
mod redact;
mod refresh;
mod routes;
mod service;
mod store;
mod writer;

pub use config::{ApiKey, Config, ConfigBuilder, ConfigError, DEFAULT_DATABASE_URL};
pub use service::{Service, StartError};
