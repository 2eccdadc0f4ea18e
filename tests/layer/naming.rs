//! Names of routes that no axum router knows.

use axum::{body::Body, extract::Request, response::Response};
use parallax_middleware::{Outcome, Perf, RequestHead};
use tokio::net::TcpListener;
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::{BoxError, ServiceBuilder, service_fn};

use crate::support::{
    client::Transport,
    eventually,
    rig::{Rig, request},
};

/// Names by the first segment of the path, if it is one that the service knows.
fn first_segment(head: RequestHead<'_>) -> Option<&str> {
    let (first, _) = head.uri.path().strip_prefix('/')?.split_once('/')?;
    matches!(first, "users" | "orders").then_some(first)
}

#[tokio::test]
async fn a_plain_service_names_its_routes_by_a_function() {
    for over in Transport::each() {
        let perf = Perf::new();
        let service = ServiceBuilder::new().layer(perf.layer().name_routes(first_segment)).service(
            service_fn(async |_: Request| {
                Ok::<_, BoxError>(Response::new(Body::from("some text")))
            }),
        );
        let rig = Rig::of_service(&perf, service);
        let client = rig.client(&over).await;
        for path in ["/users/7", "/users/8", "/orders/7/items", "/wp-admin/x"] {
            client.send(request("GET", path)).await;
        }
        client.send(request("BREW", "/users/7")).await;
        rig.assert_ends(&[
            ("GET users", Outcome::Ok, 2),
            ("GET orders", Outcome::Ok, 1),
            ("_OTHER users", Outcome::Ok, 1),
            ("* (unmatched)", Outcome::Ok, 1),
        ])
        .await;
    }
}

/// A real gRPC service under the layer, and a client of it.
async fn health() -> (Perf, HealthClient<Channel>) {
    let perf = Perf::new();
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("tea", tonic_health::ServingStatus::Serving).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let layer = perf.layer().name_routes(|head| match head.uri.path() {
        path @ ("/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/Watch") => Some(path),
        _ => None,
    });
    let server = Server::builder().layer(layer).add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let channel = Channel::from_shared(format!("http://{address}")).expect("an address");
    (perf, HealthClient::new(channel.connect().await.expect("it listens")))
}

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn calls_of_a_grpc_service_have_their_methods_names() {
    let (perf, mut client) = health().await;
    for _ in 0..3 {
        client.check(about("tea")).await.expect("it serves tea");
    }
    // gRPC says so in its trailers; HTTP says 200.
    client.check(about("coffee")).await.expect_err("nobody knows coffee");
    let snapshot = perf.snapshot();
    let check = snapshot.route("POST", "/grpc.health.v1.Health/Check").expect("it was called");
    assert_eq!((check.outcome(Outcome::Ok), check.in_flight()), (4, 0));
    assert_eq!(check.users.ok.count(), 4);
}

#[tokio::test]
async fn a_grpc_stream_is_in_flight_until_its_client_leaves() {
    let (perf, mut client) = health().await;
    let mut stream = client.watch(about("tea")).await.expect("it serves tea").into_inner();
    stream.message().await.expect("it is whole").expect("there is one");
    let watch = || {
        let snapshot = perf.snapshot();
        let watch = snapshot.route("POST", "/grpc.health.v1.Health/Watch").expect("it was called");
        (watch.in_flight(), watch.outcome(Outcome::Cancelled))
    };
    assert_eq!(watch(), (1, 0));
    drop(stream);
    eventually("the stream is recorded", async || (watch() == (0, 1)).then_some(())).await;
}
