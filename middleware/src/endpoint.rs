//! `GET /perf` and what lies below it.

mod accept;
mod histogram;
mod history;
mod live;
mod page;
mod problem;

use axum::{
    Router,
    extract::{Query, rejection::QueryRejection},
    http::{
        HeaderMap, HeaderValue, StatusCode, Uri,
        header::{CACHE_CONTROL, CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{runtime::Handle, task::spawn_blocking};

#[cfg(feature = "prometheus")]
use crate::exposition;
use crate::{endpoint::problem::Problem, history::Window, perf::Perf, snapshot::Snapshot};

const HTML: &str = "text/html";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain";
const EVENTS: &str = "text/event-stream";

pub(crate) fn routes<S>(perf: &Perf) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let [here, live, history, histogram] = [(); 4].map(|()| perf.clone());
    let events = live::Events::new();
    // Of two merged routers without a fallback of their own, axum keeps the second one's 404: it must
    // carry the layer too, or whatever no route matches would go unseen. The routes come after the
    // layer, so they do not count themselves.
    let routes = Router::new()
        .layer(perf.layer())
        .route("/perf", only_get(get(move |head, query| show(here, head, query))))
        .route(
            "/perf/live",
            only_get(get(move |head, query| live::show(live, events, head, query))),
        )
        .route("/perf/history", only_get(get(move |head| history::show(history, head))))
        .route(
            "/perf/histogram",
            only_get(get(move |head, query| histogram::show(histogram, head, query))),
        );
    #[cfg(feature = "prometheus")]
    let routes = routes.route("/perf/metrics", {
        let perf = perf.clone();
        only_get(get(async move || exposition::show(&perf).await))
    });
    // Its own predicate leaves event streams alone.
    #[cfg(feature = "compression")]
    let routes = routes.route_layer(tower_http::compression::CompressionLayer::new());
    routes
}

/// Says what is allowed where another method was tried.
fn only_get<S>(route: MethodRouter<S>) -> MethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    route.fallback(async |headers: HeaderMap, uri: Uri| {
        let text = format!("{} can be read, with GET or HEAD, and nothing else", uri.path());
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, text).response(&headers)
    })
}

type Asked<T> = Result<Query<T>, QueryRejection>;

/// The query of `GET /perf` and of `GET /perf/live`.
#[derive(Deserialize)]
struct View {
    window: Option<String>,
}

async fn show(perf: Perf, headers: HeaderMap, query: Asked<View>) -> Response {
    perf.watch();
    let answer = async {
        // Figures of this moment: a stored copy would be a lie.
        let window = window(parameters(query)?.window.as_deref())?;
        match accept::choose(&headers, &[JSON, HTML]) {
            Some(HTML) => Ok(page::response(&headers)),
            Some(_) => {
                let json = off_the_workers(move || json(&perf.read(window))).await;
                Ok(([(CONTENT_TYPE, JSON), (CACHE_CONTROL, "no-store")], json).into_response())
            }
            None => Err(Problem::not_acceptable("/perf", &[JSON, HTML])),
        }
    };
    varying(answer.await.unwrap_or_else(|problem: Problem| problem.response(&headers)))
}

fn parameters<T: DeserializeOwned>(query: Asked<T>) -> Result<T, Problem> {
    let reason = |_| Problem::bad_request("the query cannot be read: write ?name=value&name=value");
    query.map(|Query(parameters)| parameters).map_err(reason)
}

/// `None` stands for everything since the start.
fn window(name: Option<&str>) -> Result<Option<Window>, Problem> {
    let remedy = ", or leave it out for everything since the start";
    let explained = |error| Problem::bad_request(format!("{error}{remedy}"));
    name.map(str::parse).transpose().map_err(explained)
}

/// The figures as they are shown.
fn json(snapshot: &Snapshot) -> Vec<u8> {
    serde_json::to_vec(&snapshot.view()).expect("it is maps with keys of text, and numbers")
}

/// The response depends on what the client accepts.
fn varying(mut response: Response) -> Response {
    response.headers_mut().append(VARY, HeaderValue::from_static("accept"));
    response
}

/// Many routes take some milliseconds: not those of a thread that answers requests.
async fn off_the_workers<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> T {
    if Handle::try_current().is_err() {
        return read();
    }
    spawn_blocking(read).await.expect("reading does not panic, and the runtime is there")
}
