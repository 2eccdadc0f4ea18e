//! Every way in which a request can end, in process and over real HTTP/1.1 and HTTP/2 connections.

// Tokens that should not get past a limiter, and those that do.
mod attacks;
// Bodies: sized, streamed, empty, half read, broken.
mod bodies;
// Memory: what strangers send takes none, what many routes take has an end.
mod bounded;
// Paused time: what requests are timed by, and windows.
mod clock;
// Pools of deadpool, under a manager that only sleeps.
mod deadpool;
// What one protocol has and the other has not.
mod http1;
mod http2;
// Clients that leave, at every moment.
mod leaving;
// The way past a limiter.
mod limiter;
// Random requests over several threads, against a plain model.
mod model;
// How requests end: statuses, errors, cancellation, panics.
mod outcomes;
// Panics of handlers and of bodies, caught and uncaught.
mod panics;
// Where the time of a request goes, by name and at the limiter.
mod phases;
// Pools and caches that have no wrapper, and queueing theory.
mod pools;
// Pools of deadpool-redis: commands, and what a cache had, with a real Redis.
mod redis;
// What the services of these tests answer.
mod responses;
// Names of routes that no axum router knows: by a function, and of a gRPC service.
mod naming;
// Names of routes: nested, merged, fallbacks, layers inside and outside.
mod routers;
// What is told to whoever sends a token.
mod server_timing;
// Services that are no routers: errors, and waiting for readiness.
mod services;
// Pools of sqlx, on real databases.
mod sqlx;
// Server-sent events: counted apart.
mod streams;
// WebSockets, tunnels and other protocols that a request can turn into.
mod upgrades;
