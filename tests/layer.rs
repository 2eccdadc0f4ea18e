//! The layer around real axum routers, with every kind of handler.

// Bodies: sized, streamed, empty, half read, broken.
mod bodies;
// The way past a limiter.
mod limiter;
// How requests end: statuses, errors, cancellation, panics.
mod outcomes;
// What the services of these tests answer.
mod responses;
// Names of routes: nested, merged, fallbacks, layers inside and outside.
mod routers;
// The same over real connections, with clients that leave.
mod wire;
