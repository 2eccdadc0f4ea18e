//! A shop with something to see: many routes, phases, two pools, caches, a limiter, and some load.

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::StatusCode,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use deadpool::managed::{Manager, Metrics, Pool, RecycleResult};
use parallax_middleware::{BypassPolicy, CacheWatch, ObservedDeadpool, Perf};
use rand::RngExt;
use rand_distr::{Distribution, Exp, LogNormal};
use tokio::{task::JoinSet, time::sleep};
use tower::ServiceExt;

use crate::support::rig::{request, with_pass};

/// Opens connections to nothing.
#[derive(Debug)]
pub(super) struct Backend;

impl Manager for Backend {
    type Type = ();
    type Error = Infallible;

    async fn create(&self) -> Result<(), Infallible> {
        lasting(4.0).await;
        Ok(())
    }

    async fn recycle(&self, (): &mut (), _: &Metrics) -> RecycleResult<Infallible> {
        Ok(())
    }
}

#[derive(Clone)]
struct Shop {
    perf: Perf,
    database: ObservedDeadpool<Backend>,
    sessions: ObservedDeadpool<Backend>,
    prices: CacheWatch,
}

fn pool(size: usize) -> Pool<Backend> {
    Pool::builder(Backend).max_size(size).build().expect("no timeouts are set")
}

/// About so many milliseconds, now and then many more.
async fn lasting(ms: f64) {
    let factor = LogNormal::new(0.0, 0.45).expect("it is finite").sample(&mut rand::rng());
    sleep(Duration::from_secs_f64(ms * factor / 1e3)).await;
}

impl Shop {
    async fn query(&self, name: &str, ms: f64) {
        let _connection = self.database.get().await.expect("connections can be made");
        self.perf.observe(name, lasting(ms)).await;
    }

    async fn session(&self) {
        let _connection = self.sessions.get().await.expect("connections can be made");
        self.perf.observe("redis:get", lasting(0.4)).await;
    }
}

async fn item(State(shop): State<Shop>) -> &'static str {
    let cached = rand::rng().random_bool(0.93).then_some("an item");
    if shop.prices.count(cached).is_none() {
        shop.query("query:item", 5.0).await;
    }
    "an item"
}

async fn search(State(shop): State<Shop>) -> String {
    tokio::join!(shop.query("query:search", 22.0), shop.session());
    let _phase = shop.perf.phase("render");
    lasting(2.5).await;
    "found ".repeat(200)
}

async fn cart(State(shop): State<Shop>) -> &'static str {
    shop.session().await;
    shop.query("query:cart", 3.0).await;
    "a cart"
}

async fn checkout(State(shop): State<Shop>) -> StatusCode {
    shop.session().await;
    shop.query("query:stock", 6.0).await;
    shop.perf.observe("payment", lasting(45.0)).await;
    shop.query("query:order", 9.0).await;
    if rand::rng().random_bool(0.02) { StatusCode::BAD_GATEWAY } else { StatusCode::CREATED }
}

async fn orders(State(shop): State<Shop>) -> &'static str {
    shop.session().await;
    shop.query("query:orders", 7.0).await;
    "orders"
}

async fn quick() -> &'static str {
    "up"
}

/// Takes most requests.
async fn limit(request: Request, next: Next) -> Response {
    if request.uri().path() == "/search" && rand::rng().random_bool(0.03) {
        return StatusCode::TOO_MANY_REQUESTS.into_response();
    }
    next.run(request).await
}

/// The shop, with its page.
pub(super) fn shop(perf: &Perf) -> Router {
    let shop = Shop {
        perf: perf.clone(),
        database: perf.observe_deadpool("postgres", pool(3)),
        sessions: perf.observe_deadpool("sessions", pool(8)),
        prices: perf.cache("prices"),
    };
    Router::new()
        .route("/items/{id}", get(item).put(orders))
        .route("/items/{id}/reviews", get(orders).post(cart))
        .route("/search", get(search))
        .route("/cart", get(cart).post(cart).delete(cart))
        .route("/checkout", post(checkout))
        .route("/orders", get(orders))
        .route("/orders/{order_id}/invoice.pdf", get(search))
        .route("/users/{user_id}/addresses/{address_id}", get(cart))
        .route("/health", get(quick))
        .with_state(shop)
        .layer(perf.bypass(BypassPolicy::in_process()).around(from_fn(limit)))
        .layer(perf.layer())
        .merge(perf.routes())
}

/// Requests to it, for as long as the returned value is kept.
pub(super) fn load(shop: &Router) -> JoinSet<()> {
    let mix = [
        ("GET", "/items/7", 130.0),
        ("PUT", "/items/7", 2.0),
        ("GET", "/items/7/reviews", 24.0),
        ("POST", "/items/7/reviews", 1.5),
        ("GET", "/search", 60.0),
        ("GET", "/cart", 32.0),
        ("POST", "/cart", 12.0),
        ("DELETE", "/cart", 2.0),
        ("POST", "/checkout", 16.0),
        ("GET", "/orders", 10.0),
        ("GET", "/orders/7/invoice.pdf", 3.0),
        ("GET", "/users/7/addresses/1", 5.0),
        ("GET", "/health", 1.0),
        ("GET", "/wp-login.php", 0.5),
    ];
    let mut clients = JoinSet::new();
    for (method, path, rate) in mix {
        let shop = shop.clone();
        clients.spawn(async move {
            let gaps = Exp::new(rate).expect("it is positive");
            let mut open = JoinSet::new();
            loop {
                let gap = gaps.sample(&mut rand::rng());
                sleep(Duration::from_secs_f64(gap)).await;
                let request = request(method, path);
                let authorised = path == "/search" && rand::rng().random_bool(0.25);
                let request = if authorised { with_pass(request) } else { request };
                open.spawn(drained(shop.clone(), request));
                while open.try_join_next().is_some() {}
            }
        });
    }
    clients
}

async fn drained(shop: Router, request: Request<Body>) {
    let response = shop.oneshot(request).await.expect("routers do not fail");
    to_bytes(response.into_body(), usize::MAX).await.expect("the body is whole");
}
