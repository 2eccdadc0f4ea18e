//! Servers that break off, stall, talk nonsense or close their connections: everything that they do ends as an
//! outcome, each request once, and the report says what it was.

use std::{
    future::pending,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parallax_loadgen::{Http, LoadTest, Wire, report::Run};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};

use super::{assert_conserved, assert_told, millis, run};

/// A server that treats each connection as it is told. Dropped, it takes no more.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An accepted connection of HTTP/1.1.
struct Accepted {
    stream: TcpStream,
    requests: Arc<AtomicU64>,
}

impl Accepted {
    /// Reads the head of a request; false when the client has left.
    async fn request(&mut self) -> bool {
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            match self.stream.read_buf(&mut read).await {
                Ok(1..) => {}
                _ => return false,
            }
        }
        self.requests.fetch_add(1, Relaxed);
        true
    }

    async fn write(&mut self, bytes: &[u8]) {
        // The client may leave at any time.
        let _ = self.stream.write_all(bytes).await;
    }
}

const TEA: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ntea";

impl Server {
    async fn start<F>(treat: impl Fn(Accepted) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (connections, requests) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let task = tokio::spawn({
            let (connections, requests) = (connections.clone(), requests.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    connections.fetch_add(1, Relaxed);
                    stream.set_nodelay(true).expect("it is connected");
                    tokio::spawn(treat(Accepted { stream, requests: requests.clone() }));
                }
            }
        });
        Self { address, connections, requests, task }
    }

    fn test(&self) -> LoadTest<Wire> {
        LoadTest::url(&format!("http://{}", self.address)).expect("it is one").get("/")
    }

    async fn run(&self) -> Run {
        let run = run(self.test().users(4)).await;
        assert_conserved(&run.conservation);
        run
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stalls_is_given_up_and_its_connections_are_not_used_again() {
    let server =
        Server::start(|mut accepted| async move { while accepted.request().await {} }).await;
    let run = run(server.test().users(4).timeout(millis(30))).await;
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.timeout, run.conservation.sent);
    let (requests, connections) = (server.requests.load(Relaxed), server.connections.load(Relaxed));
    assert!(0 < requests && requests <= connections, "{requests} over {connections}");
    assert!(run.errors.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stalls_in_the_middle_of_a_body_is_given_up_too() {
    let server = Server::start(|mut accepted| async move {
        accepted.request().await;
        accepted.write(&TEA[..TEA.len() - 1]).await;
        pending::<()>().await;
    })
    .await;
    let run = run(server.test().users(4).timeout(millis(30))).await;
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.timeout, run.conservation.sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_accepts_and_says_nothing_to_http_2_is_given_up() {
    let server = Server::start(|accepted| async move {
        let _open = accepted;
        pending::<()>().await;
    })
    .await;
    let wire = Wire::url(&format!("http://{}", server.address)).expect("it is one");
    let wire = wire.http(Http::Two).build().expect("there is no TLS to set up");
    let run = run(LoadTest::wire(wire).get("/").users(4).timeout(millis(30))).await;
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.timeout, run.conservation.sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_a_transport_error() {
    let server = Server::start(|mut accepted| async move {
        accepted.request().await;
        // Closed with a reset instead of a goodbye.
        accepted.stream.set_zero_linger().expect("it is connected");
    })
    .await;
    let run = server.run().await;
    assert_eq!(run.conservation.outcomes.transport_error, run.conservation.sent);
    assert_told(&run, "no answer from http://127.0.0.1");
    assert_told(&run, "reset by peer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_is_a_transport_error_and_its_bytes_count() {
    let server = Server::start(|mut accepted| async move {
        accepted.request().await;
        accepted.write(&TEA[..TEA.len() - 1]).await;
    })
    .await;
    let run = server.run().await;
    assert_eq!(run.conservation.outcomes.transport_error, run.conservation.sent);
    assert_eq!(run.client.response_bytes, 2 * run.conservation.sent);
    assert_told(&run, "end of file before message length reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_byte_by_byte_is_whole_and_takes_its_time() {
    let server = Server::start(|mut accepted| async move {
        while accepted.request().await {
            for byte in TEA {
                accepted.write(&[*byte]).await;
                tokio::task::yield_now().await;
            }
            sleep(Duration::from_millis(5)).await;
            accepted.write(b"").await;
        }
    })
    .await;
    let run = server.run().await;
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent, "{:?}", run.errors);
    assert_eq!(run.client.response_bytes, 3 * run.conservation.sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_http_is_a_transport_error_and_says_so() {
    for garbage in
        [&b"\x00\xff\x13\x37 not at all\r\n\r\n"[..], b"HTTP/9.9 200 OK\r\n\r\n", b"\r\n"]
    {
        let server = Server::start(move |mut accepted| async move {
            accepted.request().await;
            accepted.write(garbage).await;
        })
        .await;
        let run = server.run().await;
        assert_eq!(run.conservation.outcomes.transport_error, run.conservation.sent);
        assert_told(&run, "no answer from http://127.0.0.1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_http_2_is_a_transport_error() {
    let server = Server::start(|mut accepted| async move {
        accepted.write(TEA).await;
    })
    .await;
    let wire = Wire::url(&format!("http://{}", server.address)).expect("it is one");
    let wire = wire.http(Http::Two).build().expect("there is no TLS to set up");
    let run = run(LoadTest::wire(wire).get("/").users(4).timeout(Duration::from_secs(5))).await;
    assert_conserved(&run.conservation);
    // Seldom, one that waits for the connection of another is not told that it failed, and times out.
    let o = run.conservation.outcomes;
    assert_eq!(o.transport_error + o.timeout, run.conservation.sent);
    assert!(o.transport_error > 0);
    assert_told(&run, "http2 error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_that_it_closes_costs_a_connection_each_and_no_error() {
    let server = Server::start(|mut accepted| async move {
        accepted.request().await;
        accepted
            .write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\ntea")
            .await;
    })
    .await;
    let run = server.run().await;
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent, "{:?}", run.errors);
    assert!(run.connections >= Some(run.conservation.sent), "{:?}", run.connections);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_without_saying_so_is_never_sent_a_request_twice() {
    let server = Server::start(|mut accepted| async move {
        accepted.request().await;
        accepted.write(TEA).await;
    })
    .await;
    let run = run(server.test().users(4).warmup(millis(0))).await;
    assert_conserved(&run.conservation);
    let o = run.conservation.outcomes;
    // Whoever writes in the moment in which the server closes has failed; the others open another connection.
    assert_eq!(o.ok + o.transport_error, run.conservation.sent, "{:?}", run.errors);
    assert!(o.ok > 0);
    // Each answer is that of one request, and nobody asked more often: the server cannot have seen more
    // requests than there were, those of the warm-up and the one before it included.
    assert!(run.connections >= Some(o.ok), "{:?}", run.connections);
    let told: u64 = run.errors.iter().map(|error| error.count).sum();
    assert_eq!(told, o.transport_error);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_may_have_arrived_is_sent_once() {
    // Reads whole requests, answers the first on a connection, and breaks off at the second.
    let server = Server::start(|mut accepted| async move {
        if accepted.request().await {
            accepted.write(TEA).await;
            accepted.request().await;
        }
    })
    .await;
    let test = server.test().users(1).warmup(Duration::ZERO).duration(super::SHORT);
    let run = test.run_part().await.expect("the plan is valid");
    assert_conserved(&run.conservation);
    let o = run.conservation.outcomes;
    assert_eq!(o.ok + o.transport_error, run.conservation.sent);
    assert!(o.transport_error > 0);
    assert_told(&run, "connection closed before message completed");
    // One more than was sent, before the run, to look for a layer.
    assert_eq!(server.requests.load(Relaxed), run.conservation.sent + 1);
}
