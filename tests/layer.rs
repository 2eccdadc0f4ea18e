//! The layer around real axum routers, with every kind of handler.

// Bodies: sized, streamed, empty, half read, broken.
mod bodies;
// Clients that leave, at every moment.
mod leaving;
// The way past a limiter.
mod limiter;
// How requests end: statuses, errors, cancellation, panics.
mod outcomes;
// Panics of handlers and of bodies, caught and uncaught.
mod panics;
// What the services of these tests answer.
mod responses;
// Names of routes: nested, merged, fallbacks, layers inside and outside.
mod routers;
// The same over real connections, with clients that leave.
mod wire;
// Services that are no routers: errors, and waiting for readiness.
mod services;
// WebSockets, tunnels and other protocols that a request can turn into.
mod upgrades;
