//! A recommendation API that carries the Parallax layer: small enough to read, real enough to measure.
//!
//! It stores entities and what users did with them in SQLite or PostgreSQL, keeps a model of which
//! entities go together, and answers who may like what. It listens nowhere by itself: its
//! [router](Service::router) can be served or called in process.
//!
//! ```
//! use axum::{body::Body, http::Request};
//! use example_service::{ApiKey, Config, SeedPlan, Seeder, Service};
//! use std::time::Duration;
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let file = folder.path().join("shop.db").display().to_string();
//! let config = Config::builder()
//!     .database_url(format!("sqlite://{file}?mode=rwc"))
//!     .api_key(ApiKey::new("a-key-for-clients")?)
//!     .build()?;
//! let service = Service::start(config).await?;
//!
//! let seeder = Seeder::new(&service);
//! let seeded = seeder.seed(&SeedPlan::new(100, 1)?, |_| {}).await?;
//! seeder.wait_until_fresh(&seeded, Duration::from_secs(30)).await?;
//!
//! let request = Request::get("/trending?limit=3").header("x-api-key", "a-key-for-clients");
//! let response = service.router().oneshot(request.body(Body::empty())?).await?;
//! assert_eq!(response.status(), 200);
//! service.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Routes
//!
//! All but `GET /health` need the header `x-api-key`. With [a token](ConfigBuilder::perf_guard), `/perf` needs that
//! instead, and a browser can open it. Ids are whole numbers of 1 or more. `limit` is 1 to 100, and 10 where it is
//! left out. Bodies are JSON of up to 4 MiB. Fields that are not named here are ignored.
//!
//! | route | answers |
//! |---|---|
//! | `POST /entities` | 201 `{"stored":1,"last":7}` |
//! | `POST /interactions` | 201 `{"stored":1,"last":7}` |
//! | `GET /entities/{id}` | 200 `{"id":1,"title":"Green tea","category":"drinks"}`, or 404 |
//! | `GET /recommendations/{user_id}?limit=` | 200 `{"user_id":1,"personal":true,"items":[…]}` |
//! | `GET /similar/{id}?limit=` | 200 `{"items":[…]}`, or 404 |
//! | `GET /trending?limit=` | 200 `{"items":[…]}` |
//! | `GET /search?q=&limit=` | 200 `{"items":[…]}` |
//! | `GET /health` | 200, or 503 while the database cannot be read; see below |
//! | `GET /perf` and below | 200 what the Parallax layer has recorded; in a browser, a page of it |
//!
//! **`POST /entities`** takes 1 to 1,000 entities, as an array or as `{"items":[…]}`:
//! `{"id":1,"title":"Green tea","category":"drinks"}`. The title has 1 to 200 characters, the category up
//! to 64 and may be left out. An entity with an id that is there takes its place. **`POST /interactions`**
//! takes as many `{"user_id":1,"entity_id":1,"kind":"view"}`; the kind is `view`, `like` or `purchase`, the
//! time is noted by the service, and the entities must exist. Either stores all of a batch or nothing.
//! `last` is the last number that was given to what was stored: a revision for entities, an id for
//! interactions.
//!
//! An item of a list is `{"id":1,"title":"Green tea","score":0.8}`, best first; scores compare within one
//! list. **Similar**: entities that the same users met. **Recommendations**: what is similar to what the
//! user met of late, without that; `personal` is `false` where trending entities, with score 0, fill the
//! list up. **Trending**: what was met most of late; a day halves an interaction; a like counts three
//! views, a purchase five. **Search** finds entities that hold every word of `q` in title or category, the
//! last word as a beginning; `q` has up to 200 characters, of which five words count; the first 100 hits
//! by word and id are put in order of popularity, which is their score.
//!
//! **`GET /health`** also tells how fresh the model is:
//! ```json
//! {"status":"ok",
//!  "model":{"entities":4,"interactions":6,"entity_revision":5,"generation":3,
//!           "refreshed_at":1767225600.5,"refresh_us":1500.0}}
//! ```
//! The model covers what was stored once `entity_revision` and `interactions` have reached the `last` of
//! the answers; it follows writes within a second or so. An entity can be read as soon as it is stored;
//! lists, and searches that were asked before, follow with the model. Several processes on one database
//! see each other's writes within the model's refresh interval, and changed entities within the cache's
//! time to live.
//!
//! # Errors
//!
//! Problem details of RFC 9457, `application/problem+json`:
//! `{"type":"about:blank","title":"Not Found","status":404,"detail":"entity 9 does not exist"}`.
//! 400 malformed JSON, path or query · 401 no key, or a wrong one · 404 · 405 · 413 body too large · 415
//! not JSON · 422 well-formed, but not acceptable, with `"errors":[{"pointer":"/0/title","detail":"…"}]` ·
//! 429 over the rate limit of the key, with `Retry-After` · 500 · 503 no database, or shutting down.

mod args;
mod auth;
mod cache;
mod config;
mod entity;
mod extract;
mod interaction;
pub mod memory;
mod model;
mod problem;
mod redact;
mod refresh;
mod routes;
pub mod seed;
mod service;
mod store;
pub mod validate;
pub mod workload;
mod writer;

pub use args::{ConfigArgs, MissingKey};
pub use config::{ApiKey, Config, ConfigBuilder, ConfigError, DEFAULT_DATABASE_URL};
pub use seed::{Freshness, SeedError, SeedPlan, SeedProgress, SeedStage, Seeded, Seeder};
pub use service::{Service, StartError};
