//! A service under the layer, and everything that both sides know about the requests to it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use bytes::Bytes;
use governor::{clock::QuantaInstant, middleware::NoOpMiddleware};
use http_body_util::BodyExt;
use parallax_middleware::{
    LoadMark, LoadView, Outcome, OutcomesView, Perf, Probe, ProbeSource, RouteView, ServerRecord,
};
use tower::{
    BoxError, Service, ServiceExt,
    util::{BoxCloneSyncService, MapRequestLayer},
};
use tower_governor::{
    GovernorLayer, governor::GovernorConfigBuilder, key_extractor::GlobalKeyExtractor,
};

use crate::support::{
    client::{Client, Transport},
    eventually,
    listening::{App, Listening},
};

type Quota = GovernorLayer<GlobalKeyExtractor, NoOpMiddleware<QuantaInstant>, Body>;

/// A service under the layer. Every request that goes through it carries a probe.
#[derive(Clone)]
pub(crate) struct Rig {
    pub(crate) perf: Perf,
    app: App,
    source: ProbeSource,
    probes: Arc<Mutex<Vec<Probe>>>,
}

/// A response with its body, and what the server recorded.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) record: ServerRecord,
}

impl Rig {
    /// Puts the layer around `routes`.
    pub(crate) fn around(routes: Router) -> Self {
        let perf = Perf::new();
        Self::new(&perf, routes.layer(perf.layer()))
    }

    /// Takes a router that carries the layer of `perf` already.
    pub(crate) fn new(perf: &Perf, app: Router) -> Self {
        Self::with(perf, App::Router(app))
    }

    /// Takes a service that is no router and carries the layer of `perf` already.
    pub(crate) fn of_service<S, B>(perf: &Perf, service: S) -> Self
    where
        S: Service<Request, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let boxed =
            service.map_response(|response| response.map(Body::new)).map_err(axum::Error::new);
        Self::with(perf, App::Service(BoxCloneSyncService::new(boxed)))
    }

    fn with(perf: &Perf, app: App) -> Self {
        Self { perf: perf.clone(), app, source: ProbeSource::new(), probes: Arc::default() }
    }

    /// Calls the router in process and hands the response out as it comes, unread.
    pub(crate) async fn open(&self, request: Request) -> Response {
        self.call(request).await.expect("routers do not fail")
    }

    /// Calls the router in process and drains the body, which must be whole.
    pub(crate) async fn send(&self, request: Request) -> Answer {
        let (parts, body) = self.open(request).await.into_parts();
        let body = body.collect().await.expect("the body is whole").to_bytes();
        let record = self.records().pop().expect("this request is over");
        Answer { status: parts.status, headers: parts.headers, body, record }
    }

    /// [`send`](Self::send) a GET.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request("GET", path)).await
    }

    /// Calls the service in process.
    pub(crate) async fn call(&self, mut request: Request) -> Result<Response, axum::Error> {
        self.mark(&mut request);
        match self.app.clone() {
            App::Router(router) => router.oneshot(request).await.map_err(axum::Error::new),
            App::Service(service) => service.oneshot(request).await,
        }
    }

    /// Serves on a port of its own, until the returned value is dropped.
    pub(crate) async fn listen(&self) -> Listening {
        let rig = self.clone();
        // Nothing that comes over a connection can bring a probe: one is put in at the server's end.
        let add_probe = move |mut request: Request| {
            rig.mark(&mut request);
            request
        };
        let app = match self.app.clone() {
            App::Router(router) => App::Router(router.layer(MapRequestLayer::new(add_probe))),
            App::Service(service) => {
                App::Service(BoxCloneSyncService::new(service.map_request(add_probe)))
            }
        };
        app.listen().await
    }

    /// A client with a connection of its own to a server of its own.
    pub(crate) async fn client(&self, transport: &Transport) -> Client {
        Client::new(self, transport).await
    }

    /// What the server recorded, in the order of the requests; those that are not over are left out.
    pub(crate) fn records(&self) -> Vec<ServerRecord> {
        let probes = self.probes.lock().expect("nobody panics in here");
        probes.iter().filter_map(|probe| probe.record().cloned()).collect()
    }

    /// Waits until `n` requests are over: the server learns a little later than its client that a
    /// connection is gone.
    pub(crate) async fn recorded(&self, n: u64) {
        eventually(&format!("{n} requests are recorded"), async || {
            let snapshot = self.perf.snapshot();
            // A request's own record follows the sums.
            let paired = self.records().len() as u64 >= snapshot.paired();
            (snapshot.recorded() >= n && paired).then_some(())
        })
        .await;
    }

    /// Waits until every request that has reached the layer is over.
    pub(crate) async fn settled(&self) {
        eventually("no request is in flight", async || {
            let snapshot = self.perf.snapshot();
            let paired = self.records().len() as u64 >= snapshot.paired();
            (snapshot.recorded() == snapshot.entered() && paired).then_some(())
        })
        .await;
    }

    /// Waits until `n` requests have reached the layer, over or not.
    pub(crate) async fn entered(&self, n: u64) {
        eventually(&format!("{n} requests are in the layer"), async || {
            (self.perf.snapshot().entered() >= n).then_some(())
        })
        .await;
    }

    /// The row of a route that was asked for: `GET /items/{id}`.
    pub(crate) fn row(&self, route: &str) -> RouteView {
        let rows = self.perf.snapshot().view().routes;
        let known: Vec<String> = rows.iter().map(name).collect();
        rows.into_iter()
            .find(|row| name(row) == route)
            .unwrap_or_else(|| panic!("no row {route:?} among {known:?}"))
    }

    /// Waits until as many requests are over as are expected, and asserts that they are those:
    /// [`assert_recorded`](Self::assert_recorded).
    pub(crate) async fn assert_ends(&self, expected: &[(&str, Outcome, u64)]) {
        self.recorded(expected.iter().map(|(.., n)| n).sum()).await;
        self.assert_recorded(expected);
    }

    /// Asserts that the requests recorded so far, all of them over, are exactly these: route, outcome,
    /// number. And that everything that was recorded about them agrees.
    pub(crate) fn assert_recorded(&self, expected: &[(&str, Outcome, u64)]) {
        let view = self.perf.snapshot().view();
        let mut found: Vec<(String, Outcome, u64)> = Vec::new();
        for row in &view.routes {
            let outcomes = by_outcome(&row.outcomes).into_iter().filter(|(_, n)| *n > 0);
            found.extend(outcomes.map(|(outcome, n)| (name(row), outcome, n)));
            assert_consistent(row);
        }
        let sorted = |mut rows: Vec<(String, Outcome, u64)>| {
            rows.sort_by_key(|(route, outcome, _)| (route.clone(), *outcome as usize));
            rows
        };
        let expected =
            expected.iter().map(|(route, outcome, n)| ((*route).to_owned(), *outcome, *n));
        assert_eq!(sorted(found), sorted(expected.collect()));

        let snapshot = self.perf.snapshot();
        assert_eq!(snapshot.entered(), snapshot.recorded(), "a request is still counted in flight");
        self.assert_paired();
    }

    /// Asserts that each request so far succeeded or was left by its client, and has its own record:
    /// what holds where a client goes away at a moment that nobody can choose.
    pub(crate) fn assert_ok_or_cancelled(&self) {
        let snapshot = self.perf.snapshot();
        assert_eq!(snapshot.paired(), snapshot.recorded());
        let (ok, cancelled) = (snapshot.outcome(Outcome::Ok), snapshot.outcome(Outcome::Cancelled));
        assert_eq!(ok + cancelled, snapshot.recorded());
    }

    /// Asserts that each request's own record agrees with the sums.
    fn assert_paired(&self) {
        let snapshot = self.perf.snapshot();
        let records = self.records();
        assert_eq!(snapshot.paired(), records.len() as u64);
        for record in &records {
            if let Some(first_byte) = record.first_byte {
                assert!(first_byte <= record.server_time, "{record:?}");
            }
            let perf = self.source.answered_by().expect("a layer filled a probe");
            let route =
                perf.route_key(record.route_id()).expect("the layer knows its routes").to_string();
            assert!(snapshot.outcome(record.outcome) > 0, "{route}: {record:?}");
        }
        for row in snapshot.view().routes {
            let perf = self.source.answered_by().unwrap_or(&self.perf);
            let of_row = records.iter().filter(|record| {
                perf.route_key(record.route_id()).is_some_and(|key| key.to_string() == name(&row))
            });
            let (paired, bypassed) = of_row.fold((0, 0), |(paired, bypassed), record| {
                (paired + 1, bypassed + u64::from(record.bypassed))
            });
            assert_eq!((row.paired, row.bypassed), (paired, bypassed), "{}", name(&row));
        }
    }

    /// Puts a probe into the request, beside what its mark says already.
    fn mark(&self, request: &mut Request) {
        let mark = request.extensions_mut().remove::<LoadMark>().unwrap_or_default();
        request.extensions_mut().insert(mark.paired(self.probe()));
    }

    fn probe(&self) -> Probe {
        let probe = self.source.probe();
        self.probes.lock().expect("nobody panics in here").push(probe.clone());
        probe
    }
}

/// A limiter that lets so many requests an hour through, whoever sends them.
pub(crate) fn an_hour(requests: u32) -> Quota {
    let quota = GovernorConfigBuilder::default()
        .key_extractor(GlobalKeyExtractor)
        .period(Duration::from_secs(3600))
        .burst_size(requests)
        .finish()
        .expect("neither is zero");
    GovernorLayer::new(quota)
}

/// A row's counts all come from the same requests.
fn assert_consistent(row: &RouteView) {
    let name = name(row);
    assert_eq!(row.in_flight, 0, "{name}");
    let ended = |outcomes| by_outcome(&outcomes).map(|(_, n)| n);
    assert_eq!(row.requests, ended(row.outcomes).iter().sum::<u64>(), "{name}");
    let load = row.load.clone().unwrap_or_default();
    assert_eq!(row.bypassed, ended(load.outcomes).iter().sum::<u64>(), "{name}");
    let OutcomesView { ok, client_error, limited, server_error, cancelled, panicked } =
        row.outcomes;
    let users = LoadView {
        outcomes: OutcomesView {
            ok: ok - load.outcomes.ok,
            client_error: client_error - load.outcomes.client_error,
            limited: limited - load.outcomes.limited,
            server_error: server_error - load.outcomes.server_error,
            cancelled: cancelled - load.outcomes.cancelled,
            panicked: panicked - load.outcomes.panicked,
        },
        latency: row.latency,
        time_to_first_byte: row.time_to_first_byte,
        limited_latency: row.limited_latency,
        failed_latency: row.failed_latency,
        streams: row.streams,
        ..LoadView::default()
    };
    assert_traffic(&name, &users);
    assert_traffic(&name, &load);
}

fn assert_traffic(name: &str, traffic: &LoadView) {
    let OutcomesView { ok, client_error, limited, server_error, cancelled, panicked } =
        traffic.outcomes;
    let failed = client_error + server_error + cancelled + panicked;
    let streams = traffic.streams.as_ref();
    let (opened, open) = streams.map_or((0, 0), |streams| (streams.opened, streams.open));
    assert_eq!(open, 0, "{name}");
    assert_eq!(streams.map_or(0, |streams| streams.duration.count), opened, "{name}");
    // Only successes are in the success latency; rejections and failures have their own, and so have
    // event streams, however they end.
    let LoadView { latency, time_to_first_byte, limited_latency, failed_latency, .. } = traffic;
    let timed = latency.count + limited_latency.count + failed_latency.count;
    assert_eq!(timed + opened, ok + limited + failed, "{name}");
    // Heads that were followed by a success, and those of streams, which are not waited for.
    assert_eq!(time_to_first_byte.count, latency.count + opened, "{name}");
    if opened == 0 {
        assert_eq!(latency.count, ok, "{name}");
        assert_eq!(limited_latency.count, limited, "{name}");
        assert_eq!(failed_latency.count, failed, "{name}");
        assert!(time_to_first_byte.max_us <= latency.max_us, "{name}");
    }
}

/// A request without a body.
pub(crate) fn request(method: &str, path: &str) -> Request {
    Request::builder().method(method).uri(path).body(Body::empty()).expect("a valid request")
}

/// The same request with the pass that only a client in this process can give it.
pub(crate) fn with_pass(mut request: Request) -> Request {
    request.extensions_mut().insert(LoadMark::new().past_limiter());
    request
}

fn name(row: &RouteView) -> String {
    format!("{} {}", row.method, row.route)
}

fn by_outcome(outcomes: &OutcomesView) -> [(Outcome, u64); 6] {
    [
        (Outcome::Ok, outcomes.ok),
        (Outcome::ClientError, outcomes.client_error),
        (Outcome::Limited, outcomes.limited),
        (Outcome::ServerError, outcomes.server_error),
        (Outcome::Cancelled, outcomes.cancelled),
        (Outcome::Panicked, outcomes.panicked),
    ]
}
