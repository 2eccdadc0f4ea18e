//! A server for the command to load, in the process of the tests.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, Request, State},
    http::{HeaderMap, Method, StatusCode},
    middleware::{Next, from_fn, from_fn_with_state},
    response::Response,
    routing::{any, get},
};
use parallax_middleware::{BypassPolicy, Perf, TokenCheck, TokenKeys};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    time::{Instant, sleep, sleep_until},
};

/// Answers until it is dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) state: Arc<Seen>,
    runtime: Option<Runtime>,
}

/// What it was asked, but for the question whether it is there.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) requests: AtomicU64,
    pub(crate) last: Mutex<Option<(Method, HeaderMap, Bytes)>>,
    stall: Option<Stall>,
}

/// Once so many requests have come, nothing is answered for so long.
pub(crate) struct Stall {
    pub(crate) after: u64,
    pub(crate) length: Duration,
    pub(crate) until: Mutex<Option<Instant>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(None)
    }

    pub(crate) fn that_stalls(after: u64, length: Duration) -> Self {
        Self::with(Some(Stall { after, length, until: Mutex::new(None) }))
    }

    /// One that limits everybody to no request at all, but for whoever has a token.
    pub(crate) fn that_lets_tokens_by(key: &str) -> Self {
        let keys = TokenKeys::parse(key).expect("it is a key");
        let policy = BypassPolicy::in_process().tokens(TokenCheck::new(keys));
        let perf = Perf::builder().server_timing(&policy).build();
        let limiter = from_fn(|_: Request, _: Next| async { StatusCode::TOO_MANY_REQUESTS });
        let app = Router::new()
            .route("/items/{id}", get(|| async { "tea" }))
            .layer(perf.bypass(policy).around(limiter))
            .layer(perf.layer());
        Self::of(app, Arc::default())
    }

    fn with(stall: Option<Stall>) -> Self {
        let state = Arc::new(Seen { stall, ..Seen::default() });
        Self::of(router(state.clone()), state)
    }

    fn of(app: Router, state: Arc<Seen>) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        runtime.spawn(serve(listener, app));
        Self { url: format!("http://{address}"), state, runtime: Some(runtime) }
    }

    /// On a Unix socket in this folder.
    #[cfg(unix)]
    pub(crate) fn on_a_socket(folder: &std::path::Path) -> Self {
        let state = Arc::new(Seen::default());
        let (app, runtime) = (router(state.clone()), runtime());
        let path = folder.join("app.sock");
        let enter = runtime.enter();
        let listener = tokio::net::UnixListener::bind(&path).expect("the folder is there");
        runtime.spawn(async move { axum::serve(listener, app).await.expect("it serves") });
        drop(enter);
        Self { url: format!("unix:{}", path.display()), state, runtime: Some(runtime) }
    }

    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(listener: TcpListener, app: Router) {
    axum::serve(listener, app).await.expect("it serves");
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads are there")
}

fn router(state: Arc<Seen>) -> Router {
    Router::new()
        .route("/", get(|| async { "tea" }))
        .route("/echo", any(|| async { "tea" }))
        .route("/fail", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }))
        .route("/slow/{ms}", get(|Path(ms)| sleep(Duration::from_millis(ms))))
        .layer(from_fn_with_state(state, watch))
}

async fn watch(State(seen): State<Arc<Seen>>, request: Request, next: Next) -> Response {
    if request.method() == Method::OPTIONS {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1024).await.expect("it is small");
    *seen.last.lock().expect("nobody panics") =
        Some((parts.method.clone(), parts.headers.clone(), body.clone()));
    let n = seen.requests.fetch_add(1, Relaxed) + 1;
    if let Some(stall) = &seen.stall {
        let until = {
            let mut until = stall.until.lock().expect("nobody panics");
            if n == stall.after {
                *until = Some(Instant::now() + stall.length);
            }
            *until
        };
        if let Some(until) = until {
            sleep_until(until).await;
        }
    }
    next.run(Request::from_parts(parts, body.into())).await
}
