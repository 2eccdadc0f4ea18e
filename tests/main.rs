//! What crosses the crates, in one binary: one link, and one place for what the tests share.

// Where the time goes, on a real database.
mod attribution;
// The load generator, the layer and a router together.
mod in_process;
// The example service over HTTP and JSON, on SQLite, PostgreSQL and Redis.
mod example_service;
// `GET /perf/metrics`: what Prometheus reads, over a service that uses everything.
mod exposition;
// The layer around real axum routers, called in process and over real connections.
mod layer;
// What a run tells of itself, and whether it may be believed.
mod measurement;
// Alert rules and the dashboard, against what a real service exposes.
mod operations;
// `GET /perf`: the fields of the contract, over the same routers.
mod perf_endpoint;
// The page of `/perf`, in a real browser.
mod perf_page;
// `Perf::publish`: what a recorder of the `metrics` facade is told.
mod publishing;
// A real report: its schema, its renderings.
mod report;
// Scenario files, and what they send.
mod scripts;
// The private servers themselves: they start, and they are gone afterwards.
mod servers;
// Reports that were believed, and what is said now.
mod stories;
// What the tests share: services under the layer, clients of HTTP/1.1 and HTTP/2, private servers.
mod support;
// Known answers of queueing theory, in virtual time.
mod virtual_time;
// What a load looks like over time, and flows.
mod workloads;
// What an independent load generator counts, and what `GET /perf` does.
mod wrk;
// Load over pipes, TCP, TLS and Unix sockets: on services of this process, and on servers that misbehave.
mod transports;
