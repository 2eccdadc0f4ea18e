//! An independent witness: `wrk` counts what it got, and `GET /perf` says the same, over the same socket.
//!
//! A run of `wrk` that its time ends leaves up to one request of each connection unanswered: they are sent, so
//! the service counts them, as cancelled or as completed, but `wrk` never reads what comes back. What holds
//! always is therefore: `wrk`'s count is at most what is completed, and no more than its connections short of
//! what was asked. Where a script holds requests back after the last one and has all answers read, the
//! counts are equal.

use std::{io::Write, process::Stdio, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use parallax_middleware::{OutcomesView, Perf, PerfView};
use tokio::{process::Command, time::sleep};

use crate::support::{
    eventually,
    listening::{App, Listening},
    server::find,
    wire::Ended,
};

/// How many of each `wrk` has open.
const CONNECTIONS: u64 = 8;

/// Asks for the three kinds of answers in turn, until so many requests are sent; then each connection waits,
/// longer than the run takes, so that nothing is under way when it ends.
const EXACTLY_900: &str = r#"
local paths = {"/items/7", "/broken", "/nowhere"}
local sent, built = 0, 0
function delay()
  sent = sent + 1
  return sent > 900 and 3600000 or 0
end
function request()
  built = built + 1
  return wrk.format("GET", paths[built % 3 + 1])
end
"#;

async fn service() -> Listening {
    let perf = Perf::new();
    let app = Router::new()
        .route("/items/{id}", get(async || "an item"))
        .route("/broken", get(async || StatusCode::INTERNAL_SERVER_ERROR))
        .route("/slow", get(async || sleep(Duration::from_millis(3)).await))
        .layer(perf.layer())
        .merge(perf.routes());
    App::Router(app).listen().await
}

/// What `wrk` says of its run.
#[derive(Debug)]
struct Witness {
    /// Responses that it has read.
    requests: u64,
    /// Those of them whose status is no success.
    failed: u64,
}

/// Runs `wrk`.
///
/// # Panics
/// If it is not installed, naming the package; if it fails, or if a connection did.
async fn wrk(arguments: &[&str], url: &str) -> Witness {
    let program = find(&["/usr/bin", "/usr/local/bin"], "wrk").unwrap_or_else(|| {
        panic!(
            "wrk was not found: install it (Debian, Ubuntu and Homebrew: the package `wrk`), or run \
             scripts/test, which does it where it can"
        )
    });
    let output = Command::new(program)
        .args(["-t1", &format!("-c{CONNECTIONS}")])
        .args(arguments)
        .arg(url)
        .stdin(Stdio::null())
        .output()
        .await
        .expect("it is a program");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(!said.contains("Socket errors"), "{said}");
    let figure = |of: &dyn Fn(&str) -> Option<&str>| {
        said.lines().find_map(of).map(|figure| figure.trim().parse().expect("it is a number"))
    };
    Witness {
        requests: figure(&|line| Some(line.split_once(" requests in ")?.0)).expect("it counts"),
        failed: figure(&|line| line.trim().strip_prefix("Non-2xx or 3xx responses:")).unwrap_or(0),
    }
}

/// Asks for `/perf` until nothing is in flight: the server learns a little later that a connection is gone.
async fn settled(server: &Listening) -> PerfView {
    eventually("nothing is in flight", async || {
        let mut client = server.connect().await;
        client.ask("GET", "/perf").await;
        let head = client.head().await.expect("it answers");
        let Ended::Whole(body) = client.body(&head).await else { panic!("the body is whole") };
        let view: PerfView = serde_json::from_slice(&body).expect("it is JSON");
        view.routes.iter().all(|row| row.in_flight == 0).then_some(view)
    })
    .await
}

fn outcomes(view: &PerfView, route: &str) -> OutcomesView {
    view.routes.iter().find(|row| row.route == route).expect("it was asked for").outcomes
}

#[tokio::test]
async fn perf_counts_the_requests_that_wrk_counts() {
    let server = service().await;
    let mut script = tempfile::NamedTempFile::new().expect("there is room");
    script.write_all(EXACTLY_900.as_bytes()).expect("there is room");
    let path = script.path().to_str().expect("it is text");
    let witness = wrk(&["-d2s", "-s", path], &format!("http://{}", server.address())).await;
    let view = settled(&server).await;
    assert_eq!(
        (witness.requests, witness.failed),
        (900, 600),
        "two seconds were enough for all of them"
    );
    let none = OutcomesView::default();
    assert_eq!(outcomes(&view, "/items/{id}"), OutcomesView { ok: 300, ..none });
    assert_eq!(outcomes(&view, "/broken"), OutcomesView { server_error: 300, ..none });
    assert_eq!(outcomes(&view, "(unmatched)"), OutcomesView { client_error: 300, ..none });
    assert_eq!(view.routes.iter().map(|row| row.requests).sum::<u64>(), witness.requests);
}

#[tokio::test]
async fn perf_counts_more_than_wrk_only_what_wrk_left_at_its_end() {
    for path in ["/items/7", "/slow"] {
        let server = service().await;
        let witness = wrk(&["-d1s"], &format!("http://{}{path}", server.address())).await;
        let view = settled(&server).await;
        let [row] = &view.routes[..] else { panic!("one route was asked for: {:?}", view.routes) };
        let OutcomesView { ok, cancelled, .. } = row.outcomes;
        let figures = format!("{path}: {witness:?}, {:?}", row.outcomes);
        assert!(witness.requests > 0 && witness.failed == 0, "{figures}");
        assert_eq!(row.requests, ok + cancelled, "{figures}");
        assert!(witness.requests <= ok, "{figures}");
        assert!(row.requests <= witness.requests + CONNECTIONS, "{figures}");
    }
}
