//! Connections that change their protocol: the request ends with its head, whatever is said after it.

use axum::{
    Router,
    body::Body,
    extract::{
        Request,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    http::{
        Method, StatusCode,
        header::{CONNECTION, UPGRADE},
    },
    response::{IntoResponse, Response},
    routing::{any, get},
};
use futures_util::{SinkExt, StreamExt, future::ready};
use http::Version;
use hyper::{ext::Protocol, upgrade};
use hyper_util::rt::TokioIo;
use parallax_middleware::Outcome;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, split},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, protocol::Role},
};

use crate::{
    layer::responses::endless,
    support::{client::Transport, rig::Rig},
};

/// Sends back what it gets, until the client says goodbye.
async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if matches!(message, Message::Text(_)) && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// Changes to a protocol without a name.
async fn plain(mut request: Request) -> Response {
    echo_bytes(&mut request);
    let head = [(CONNECTION, "upgrade"), (UPGRADE, "parallax")];
    (StatusCode::SWITCHING_PROTOCOLS, head).into_response()
}

/// Opens tunnels to one place alone.
async fn tunnel(mut request: Request) -> Response {
    if request.method() != Method::CONNECT {
        return StatusCode::NOT_FOUND.into_response();
    }
    if request.uri().host() != Some("example.org") {
        return (StatusCode::FORBIDDEN, "not there").into_response();
    }
    echo_bytes(&mut request);
    // As a proxy hands it on; what follows the head belongs to the tunnel, and nobody reads this.
    Body::from_stream(endless()).into_response()
}

/// Takes the connection over and sends back what it gets, byte by byte.
fn echo_bytes(request: &mut Request) {
    let upgraded = upgrade::on(request);
    tokio::spawn(async move {
        // In process there is no connection to take over.
        if let Ok(upgraded) = upgraded.await {
            let (mut read, mut write) = split(TokioIo::new(upgraded));
            // The client leaves when it has heard enough.
            let _ = copy(&mut read, &mut write).await;
        }
    });
}

fn routes() -> Router {
    Router::new()
        .route("/ws", any(async |upgrade: WebSocketUpgrade| upgrade.on_upgrade(echo)))
        .route("/plain", get(plain))
        .fallback(tunnel)
}

fn plain_upgrade() -> Request {
    let request = Request::get("/plain").header(CONNECTION, "upgrade").header(UPGRADE, "parallax");
    request.body(Body::empty()).expect("a valid request")
}

async fn assert_echoes<S>(mut socket: WebSocketStream<S>)
where
    S: AsyncReadExt + AsyncWriteExt + Unpin,
{
    for said in ["one", "two"] {
        socket.send(tungstenite::Message::text(said)).await.expect("the server listens");
        let heard = socket.next().await.expect("the server answers").expect("in whole frames");
        assert_eq!(heard, tungstenite::Message::text(said));
    }
    socket.close(None).await.expect("the server listens");
    socket.for_each(|_| ready(())).await;
}

#[tokio::test]
async fn a_web_socket_ends_its_request_with_the_head_and_goes_on_talking() {
    let rig = Rig::around(routes());
    let server = rig.listen().await;
    let stream = TcpStream::connect(server.address()).await.expect("the server listens");
    let (socket, response) = client_async("ws://test/ws", stream).await.expect("it upgrades");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    // Over before the first word is said.
    rig.assert_ends(&[("GET /ws", Outcome::Ok, 1)]).await;
    assert_echoes(socket).await;
    rig.assert_recorded(&[("GET /ws", Outcome::Ok, 1)]);
    assert_eq!(rig.row("GET /ws").response_bytes, 0);
}

#[tokio::test]
async fn a_web_socket_on_a_stream_of_http_2_does_so_too() {
    let rig = Rig::around(routes());
    let client = rig.client(&Transport::Http2).await;
    let extended = Request::connect("http://test/ws")
        .version(Version::HTTP_2)
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(Body::empty())
        .expect("a valid request");
    // The server says in its settings that it allows this: they come before its first answer.
    assert_eq!(client.get("/nowhere").await.status, StatusCode::NOT_FOUND);
    let response = client.open(extended).await.expect("it is answered");
    assert_eq!(response.status(), StatusCode::OK);
    let ends = [("* (unmatched)", Outcome::ClientError, 1), ("CONNECT /ws", Outcome::Ok, 1)];
    rig.assert_ends(&ends).await;
    let upgraded = upgrade::on(response).await.expect("the stream is ours");
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    assert_echoes(socket).await;
    rig.assert_recorded(&ends);
}

#[tokio::test]
async fn a_request_that_cannot_become_a_web_socket_is_refused_as_any_other() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let answer = client.get("/ws").await;
        assert!(answer.status.is_client_error(), "{}", answer.status);
        rig.assert_ends(&[("GET /ws", Outcome::ClientError, 1)]).await;
    }
}

#[tokio::test]
async fn an_upgrade_to_any_protocol_ends_with_its_head() {
    for over in [Transport::InProcess, Transport::Http1] {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let response = client.open(plain_upgrade()).await.expect("it is answered");
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        rig.assert_ends(&[("GET /plain", Outcome::Ok, 1)]).await;
        if over == Transport::Http1 {
            assert_tunnels(response).await;
        }
        rig.assert_recorded(&[("GET /plain", Outcome::Ok, 1)]);
    }
}

/// Asks for a tunnel to a place that has an address but no path.
fn connect(address: &str) -> Request {
    Request::connect(address).body(Body::empty()).expect("a valid request")
}

#[tokio::test]
async fn a_tunnel_ends_its_request_with_the_head() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let response = client.open(connect("example.org:443")).await.expect("it is answered");
        assert_eq!(response.status(), StatusCode::OK);
        rig.assert_ends(&[("* (unmatched)", Outcome::Ok, 1)]).await;
        if *over != Transport::InProcess {
            assert_tunnels(response).await;
        }
        rig.assert_recorded(&[("* (unmatched)", Outcome::Ok, 1)]);
        let record = &rig.records()[0];
        assert_eq!(record.first_byte, Some(record.server_time));
    }
}

#[tokio::test]
async fn a_tunnel_that_is_refused_has_a_body_as_any_other_response() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let answer = client.send(connect("example.com:443")).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::FORBIDDEN, &b"not there"[..]));
        rig.assert_ends(&[("* (unmatched)", Outcome::ClientError, 1)]).await;
        assert_eq!(rig.row("* (unmatched)").response_bytes, 9);
    }
}

/// Asserts that what goes in comes out again, and leaves.
async fn assert_tunnels(response: Response) {
    let mut tunnel = TokioIo::new(upgrade::on(response).await.expect("the connection is ours"));
    for said in [b"some", b"text"] {
        tunnel.write_all(said).await.expect("the server listens");
        let mut heard = [0; 4];
        tunnel.read_exact(&mut heard).await.expect("the server answers");
        assert_eq!(&heard, said);
    }
}
