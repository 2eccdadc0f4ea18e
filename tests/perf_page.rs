//! The page of `/perf`, in a real browser.

mod demo;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use parallax_middleware::{BearerGuard, Perf, RequestHead, Window};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use crate::support::{
    browser::Browser,
    eventually,
    listening::{App, Listening},
    rig::request,
};

/// A service, what it has recorded, and a browser that looks at it.
struct Watch {
    perf: Perf,
    server: Listening,
    browser: Browser,
}

impl Watch {
    /// After so many requests to each path, all of which are over.
    async fn over(requests: &[(&str, usize)]) -> Self {
        let perf = Perf::new();
        let app = Router::new()
            .route("/items/{id}", get(async || "an item"))
            .route("/broken", get(async || StatusCode::INTERNAL_SERVER_ERROR))
            .route("/slow", get(async || sleep(Duration::from_millis(30)).await))
            .route("/search", get(search).with_state(perf.clone()))
            .layer(perf.layer())
            .merge(perf.routes());
        Self::of(perf, app, requests).await
    }

    async fn of(perf: Perf, app: Router, requests: &[(&str, usize)]) -> Self {
        ask(&app, requests).await;
        let server = App::Router(app).listen().await;
        let browser = Browser::start(1280, 900).await;
        Self { perf, server, browser }
    }

    /// Opens the page, with the figures since the start.
    async fn open(&mut self) {
        let url = format!("http://{}/perf", self.server.address());
        self.browser.open(&url).await;
        self.browser.wait("document.querySelector('#state').textContent === 'Live'").await;
        self.browser.click("[data-window='']").await;
        self.browser
            .wait("document.querySelector('#age').textContent.includes('since the start')")
            .await;
    }

    /// The names of the routes, in the order in which they stand there.
    async fn names(&mut self) -> Vec<String> {
        self.browser.texts("#rows .name").await
    }

    fn assert_content(&self) {
        assert_eq!(self.browser.complaints(), "", "the browser has nothing to complain of");
    }
}

async fn search(axum::extract::State(perf): axum::extract::State<Perf>) -> &'static str {
    perf.observe("query:search", sleep(Duration::from_millis(2))).await;
    let _render = perf.phase("render");
    "found"
}

async fn ask(app: &Router, requests: &[(&str, usize)]) {
    for (path, n) in requests {
        for _ in 0..*n {
            let response = tower::ServiceExt::oneshot(app.clone(), request("GET", path)).await;
            let body = response.expect("routers do not fail").into_body();
            axum::body::to_bytes(body, usize::MAX).await.expect("the body is whole");
        }
    }
}

const SOME: &[(&str, usize)] = &[("/items/7", 100), ("/broken", 3), ("/slow", 10), ("/search", 70)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_shows_the_figures_of_each_route() {
    let mut watch = Watch::over(SOME).await;
    watch.open().await;
    assert_eq!(
        watch.names().await,
        ["/items/{id}", "/search", "/slow", "/broken"],
        "the busiest first"
    );
    let headers = watch.browser.texts("#head th").await;
    let row = watch.browser.texts("#rows tr:last-child > *").await;
    let figure = |name: &str| &*row[headers.iter().position(|header| header == name).expect(name)];
    assert_eq!(figure("Route"), "GET/broken");
    assert_eq!(figure("Errors"), "100%");
    assert_eq!((figure("In flight"), figure("p99"), figure("Limited")), ("0", "–", "0%"));
    let tiles = watch.browser.texts("#tiles dt").await;
    for name in ["requests", "errors", "memory", "workers busy", "queued tasks"] {
        assert!(tiles.iter().any(|tile| tile == name), "{name} among {tiles:?}");
    }
    watch.assert_content();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_figures_come_by_themselves() {
    let mut watch = Watch::over(&[("/items/7", 1)]).await;
    watch.open().await;
    let held =
        Router::new().route("/held", get(std::future::pending::<()>)).layer(watch.perf.layer());
    let task = tokio::spawn(tower::ServiceExt::oneshot(held, request("GET", "/held")));
    watch.browser.wait("document.querySelector('#rows').textContent.includes('/held')").await;
    watch
        .browser
        .wait("[...document.querySelectorAll('#tiles > div')].some(t => t.textContent === 'in flight1')",
        )
        .await;
    task.abort();
    watch
        .browser
        .wait(
            "[...document.querySelectorAll('#tiles > div')].some(t => t.textContent === 'in \
        flight0')",
        )
        .await;
    watch.assert_content();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_click_on_a_header_sorts_and_a_second_one_turns_the_order_round() {
    let mut watch = Watch::over(SOME).await;
    watch.open().await;
    watch.browser.click("#head th:first-child button").await;
    assert_eq!(watch.names().await, ["/broken", "/items/{id}", "/search", "/slow"]);
    let sort = "[...document.querySelectorAll('[aria-sort]')].map(e => e.textContent + ' ' + \
        e.ariaSort).join()";
    assert_eq!(watch.browser.value(sort).await, "Route ascending");
    watch.browser.click("#head th:first-child button").await;
    assert_eq!(watch.names().await, ["/slow", "/search", "/items/{id}", "/broken"]);
    assert_eq!(watch.browser.value(sort).await, "Route descending");
    watch.browser.click("#head th:nth-child(5) button").await;
    assert_eq!(watch.browser.value(sort).await, "Errors descending");
    assert_eq!(watch.names().await[0], "/broken");
    // What has no figure stands last, whatever the order.
    for order in ["descending", "ascending"] {
        watch.browser.click("#head th:nth-child(8) button").await;
        assert_eq!(watch.browser.value(sort).await, format!("p50 {order}"));
        assert_eq!(watch.names().await[3], "/broken", "{order}");
    }
    watch.assert_content();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_filter_keeps_the_routes_that_have_every_word() {
    let mut watch = Watch::over(SOME).await;
    watch.open().await;
    watch.browser.click("#filter").await;
    watch.browser.write("GET s").await;
    assert_eq!(watch.names().await, ["/items/{id}", "/search", "/slow"]);
    watch.browser.write("ea").await;
    assert_eq!(watch.names().await, ["/search"]);
    assert_eq!(watch.browser.texts("#shown").await, ["1 of 4"]);
    watch.browser.write("<b>").await;
    assert_eq!(watch.names().await, [""; 0]);
    assert_eq!(
        watch.browser.value("document.querySelector('#none').innerText").await,
        "No route matches the filter."
    );
    watch.browser.press("Escape").await;
    assert_eq!(watch.names().await.len(), 4);
    watch.assert_content();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_opens_into_its_percentiles_its_past_and_where_its_time_goes() {
    let mut watch = Watch::over(SOME).await;
    watch.open().await;
    watch.browser.click("#rows tr:nth-child(2) button").await;
    assert_eq!(watch.browser.texts("#detail .full bdi").await, ["/search"]);
    assert_eq!(
        watch
            .browser
            .value("document.querySelector('[aria-expanded=true]').getAttribute('aria-controls')")
            .await,
        "detail"
    );
    watch.browser.wait("document.querySelectorAll('#detail figure svg .line').length === 3").await;
    // Seven figures of the summary would make seven points.
    watch
        .browser
        .wait(
            "document.querySelector('#detail .k0 .line').getAttribute('d').split('L').length > 12",
        )
        .await;
    let label = "document.querySelector('#detail svg').getAttribute('aria-label')";
    assert!(
        watch
            .browser
            .value(label)
            .await
            .as_str()
            .is_some_and(|label| label.contains("p50 ") && label.contains("p95 "))
    );
    let phases = watch.browser.texts("#detail .figures:not(.scroll) tbody tr th bdi").await;
    assert_eq!(phases.first().map(String::as_str), Some("query:search"), "{phases:?}");
    assert_eq!(phases.last().map(String::as_str), Some("handler"), "{phases:?}");
    // Beside the whole request, each phase from its p50 to its p99, on one axis.
    let ranges = watch.browser.texts("#detail svg .label title").await;
    assert_eq!(ranges[..2], ["whole request", "query:search"], "{ranges:?}");
    let within = "(() => { const own = document.querySelector('#detail .own.dash').x1.baseVal.value; \
        const line = document.querySelector('#detail line.whole').x1.baseVal.value; return Math.abs(own - line) < 2 })()";
    assert_eq!(watch.browser.value(within).await, true);
    // The bar's pieces are as wide as their shares.
    let widths = "(() => { const bar = document.querySelector('.share'); return \
        bar.firstChild.getBoundingClientRect().width / bar.getBoundingClientRect().width })()";
    assert!(watch.browser.value(widths).await.as_f64().is_some_and(|share| share > 0.5));
    watch.browser.press("Escape").await;
    assert_eq!(
        watch.browser.value("document.querySelector('#detail')").await,
        serde_json::Value::Null
    );
    watch.assert_content();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn graphs_begin_before_the_page_was_opened() {
    let perf = Perf::new();
    let app = Router::new().route("/once", get(async || "")).layer(perf.layer());
    // Somebody has looked before.
    let _ = perf.window(Window::TenSeconds);
    let mut watch = Watch::of(perf.clone(), app.merge(perf.routes()), &[("/once", 400)]).await;
    // What was then is in no window that the page opens with.
    eventually("the last ten seconds are empty", async || {
        (perf.window(Window::TenSeconds).recorded() == 0).then_some(())
    })
    .await;
    let url = format!("http://{}/perf", watch.server.address());
    watch.browser.open(&url).await;
    // The line comes down from the top: the page itself saw no request.
    let line = "document.querySelector('#rows .spark path')?.getAttribute('d') ?? ''";
    watch.browser.wait(&format!("/^M[0-9.]+ 1\\.0L/.test({line})")).await;
    watch.browser.click("#rows button").await;
    watch.browser.wait("document.querySelectorAll('#detail .k1 .line').length === 1").await;
    let said = watch.browser.texts("#detail figcaption .soft").await;
    assert!(said.iter().any(|text| text.starts_with("before this page was opened")), "{said:?}");
    watch.assert_content();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_holds_the_figures_and_says_how_old_they_are() {
    let mut watch = Watch::over(&[("/items/7", 1)]).await;
    watch.open().await;
    watch.browser.press("p").await;
    assert_eq!(watch.browser.texts("#state").await, ["Paused"]);
    assert_eq!(watch.browser.texts("#pause").await, ["Resume"]);
    let requests = Router::new().route("/new", get(async || "")).layer(watch.perf.layer());
    ask(&requests, &[("/new", 5)]).await;
    watch
        .browser
        .wait("/figures of .* [2-9] s old/.test(document.querySelector('#age').textContent)")
        .await;
    assert_eq!(watch.names().await, ["/items/{id}"]);
    watch.browser.click("#pause").await;
    watch.browser.wait("document.querySelector('#state').textContent === 'Live'").await;
    watch.browser.wait("document.querySelector('#rows').textContent.includes('/new')").await;
    watch.assert_content();
}

/// Stands between a browser and a service, and can be cut.
struct Cable {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Cable {
    async fn plug(address: SocketAddr, service: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free");
        let address = listener.local_addr().expect("it is bound");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.expect("accepting does not fail");
                connections.spawn(async move {
                    let mut far = TcpStream::connect(service).await.expect("the service listens");
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { address, task }
    }

    /// Ends all connections, and takes no more.
    async fn cut(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_stream_is_owned_up_to_and_found_again() {
    let mut watch = Watch::over(&[("/items/7", 1)]).await;
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let cable = Cable::plug(any, watch.server.address()).await;
    watch.browser.open(&format!("http://{}/perf", cable.address)).await;
    watch.browser.wait("document.querySelector('#state').textContent === 'Live'").await;
    watch.assert_content();

    let address = cable.cut().await;
    watch.browser.wait("document.querySelector('#state').textContent === 'Stream lost'").await;
    watch
        .browser
        .wait(
            "/figures of [0-9:]+, [1-9][0-9]* s old; next try in [0-9]+ \
        s/.test(document.querySelector('#age').textContent)",
        )
        .await;
    assert_eq!(watch.names().await, ["/items/{id}"], "old figures stay, with their age");
    assert!(
        watch
            .browser
            .value("document.title")
            .await
            .as_str()
            .is_some_and(|title| title.starts_with("Stream lost"))
    );

    let _cable = Cable::plug(address, watch.server.address()).await;
    watch.browser.wait("document.querySelector('#state').textContent === 'Live'").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_renewed_was_never_lost() {
    let mut watch = Watch::over(&[("/items/7", 1)]).await;
    watch.open().await;
    watch.browser.value("globalThis.seen = []; new MutationObserver(() => \
        seen.push(document.querySelector('#state').textContent)).observe(document.querySelector('#state'), \
        {childList: true, characterData: true, subtree: true}); 0").await;
    let streams = "performance.getEntriesByType('resource').filter(e => e.name.includes('/perf/live')).length";
    // The first one ended when the window was chosen; the second ends of itself, after 20 s.
    watch.browser.wait(&format!("{streams} >= 2")).await;
    assert_eq!(watch.browser.value("seen.join()").await, "");
    assert_eq!(watch.browser.texts("#state").await, ["Live"]);
    watch.assert_content();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_in_reach_of_the_keyboard() {
    let mut watch = Watch::over(SOME).await;
    watch.open().await;
    watch.browser.press("/").await;
    assert_eq!(watch.browser.value("document.activeElement.id").await, "filter");
    watch.browser.write("search").await;
    let mut passed = Vec::new();
    for _ in 0..30 {
        watch.browser.press("Tab").await;
        let name = watch.browser.value("document.activeElement.textContent").await;
        passed.push(name.as_str().unwrap_or_default().to_owned());
        if passed.last().is_some_and(|name| name.contains("/search")) {
            break;
        }
    }
    assert_eq!(
        passed.first().map(String::as_str),
        Some("Route"),
        "each header is a button: {passed:?}"
    );
    assert_eq!(passed.last().map(String::as_str), Some("GET/search"), "{passed:?}");
    let outline = "getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(watch.browser.value(outline).await, "solid", "it shows where the focus is");
    watch.browser.press("Enter").await;
    watch.browser.wait("document.querySelector('#detail')").await;
    // New figures take the focus from nobody.
    let at = watch.browser.texts("#age").await;
    sleep(Duration::from_millis(2_500)).await;
    assert_ne!(watch.browser.texts("#tiles dd").await.len(), 0, "{at:?}");
    assert_eq!(watch.browser.value("document.activeElement.textContent").await, "GET/search");
    watch.browser.press("Escape").await;
    assert_eq!(
        watch.browser.value("document.querySelector('#detail')").await,
        serde_json::Value::Null
    );
    assert_eq!(watch.browser.value("document.activeElement.textContent").await, "GET/search");
    watch.assert_content();
}

/// What a service may call its routes, or what it may be talked into.
fn hostile() -> Vec<String> {
    vec![
        "<script>window.hacked = 1</script>".into(),
        "<img src=x onerror='window.hacked = 1'>".into(),
        "</script></style></title><svg onload=window.hacked=1>".into(),
        "\"'`;--&amp;&#60;\\".into(),
        "javascript:window.hacked=1".into(),
        "\u{202e}gnp.drawkcab\u{2066}".into(),
        "/שלום/{مرحبا}".into(),
        "__proto__".into(),
        "constructor".into(),
        "null\0byte\n\r\u{2028}\u{7f}".into(),
        "/?a=b&method=POST#fragment%00%zz".into(),
        "/long".repeat(2_000),
        String::new(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_routes_are_text_whatever_is_in_them() {
    let names: &'static [String] = hostile().leak();
    let perf = Perf::new();
    let named = perf.layer().name_routes(move |head: RequestHead<'_>| {
        let n: usize = head.uri.path()[1..].parse().ok()?;
        names.get(n).map(String::as_str)
    });
    let app = Router::new().fallback(async || "").layer(named).merge(perf.routes());
    let phases: Vec<_> = names.iter().map(|name| perf.pool(name)).collect();
    phases.iter().for_each(|pool| drop(pool.wait()));
    let paths: Vec<String> = (0..names.len()).map(|n| format!("/{n}")).collect();
    let requests: Vec<(&str, usize)> = paths.iter().map(|path| (&**path, 70)).collect();
    let mut watch = Watch::of(perf, app, &requests).await;
    watch.open().await;
    watch
        .browser
        .wait(&format!("document.querySelectorAll('#rows .row').length === {}", names.len()))
        .await;
    let shown = watch.names().await;
    for name in &names[..5] {
        assert!(shown.contains(name), "{name} among {shown:?}");
    }
    assert!(shown.iter().any(|name| name == "\\u{202e}gnp.drawkcab\\u{2066}"), "{shown:?}");
    assert!(shown.iter().any(|name| name.starts_with("null\\u{0}byte\\u{a}")), "{shown:?}");
    for n in 1..=names.len() {
        watch
            .browser
            .value(&format!("document.querySelectorAll('#rows .row button')[{n} - 1].click()"))
            .await;
        // The whole curve: its name found its way to the service and back.
        let curve =
            "document.querySelector('#detail .k0 .line')?.getAttribute('d').split('L').length > 12";
        watch.browser.wait(curve).await;
        watch.browser.value("document.querySelector('#detail .full button').click()").await;
    }
    for hit in [
        "window.hacked",
        "document.querySelector('img')",
        "document.querySelectorAll('script').length - 1",
    ] {
        assert_eq!(watch.browser.value(&format!("!({hit})")).await, true, "{hit}");
    }
    for width in [390, 1280] {
        watch.browser.resize(width, 900).await;
        let over = "document.documentElement.scrollWidth - innerWidth";
        assert_eq!(watch.browser.value(over).await, 0, "nothing sticks out at {width}");
    }
    watch.assert_content();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_gets_past_the_guard_with_the_token_as_password() {
    let token = "0123456789abcdef0123456789abcdef";
    let perf = Perf::new();
    let guard = BearerGuard::new(token).expect("it is long enough");
    let app = Router::new().layer(perf.layer()).merge(perf.routes().route_layer(guard));
    let mut watch = Watch::of(perf, app, &[]).await;
    let address = watch.server.address();
    watch.browser.open(&format!("http://anybody:{token}@{address}/perf")).await;
    // The stream and the requests of the script carry it as well.
    watch.browser.wait("document.querySelector('#state').textContent === 'Live'").await;
    watch.assert_content();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_fits_a_phone_in_light_and_dark_with_and_without_motion() {
    let perf = Perf::new();
    let shop = demo::shop(&perf);
    let _load = demo::load(&shop);
    let mut watch = Watch::of(perf, shop, &[]).await;
    watch.browser.resize(390, 844).await;
    watch.open().await;
    watch
        .browser
        .wait(
            "document.querySelectorAll('#rows .row').length > 8 && \
        document.querySelectorAll('.card').length === 3",
        )
        .await;
    watch.browser.value("document.querySelector('#rows .row button').click()").await;
    watch.browser.wait("document.querySelectorAll('#detail figure svg').length === 3").await;
    let over = "document.documentElement.scrollWidth - innerWidth";
    assert_eq!(watch.browser.value(over).await, 0);
    let background = "getComputedStyle(document.body).backgroundColor";
    watch.browser.prefer("light").await;
    assert_eq!(watch.browser.value(background).await, "rgb(255, 255, 255)");
    watch.browser.prefer("dark").await;
    assert_eq!(watch.browser.value(background).await, "rgb(17, 20, 23)");
    watch.assert_content();
}

/// `PICTURES=$PWD/docs/images cargo test -p parallax-tests -- --ignored draws_the_pictures` draws what the documentation
/// shows, and what else there is to look at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "draws pictures, and takes as long as their graphs are wide"]
async fn draws_the_pictures() {
    let folder = std::env::var("PICTURES").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").into());
    let seconds =
        std::env::var("SECONDS_OF_LOAD").ok().and_then(|text| text.parse().ok()).unwrap_or(75);
    let file = |name: &str| Path::new(&folder).join(name);
    let perf = Perf::new();
    let shop = demo::shop(&perf);
    let _load = demo::load(&shop);
    let mut watch = Watch::of(perf, shop, &[]).await;
    watch.browser.open(&format!("http://{}/perf?window=1m", watch.server.address())).await;
    sleep(Duration::from_secs(seconds)).await;
    watch.browser.prefer("light").await;
    watch
        .browser
        .value(
            "[...document.querySelectorAll('#rows .row button')].find(b => \
        b.textContent.includes('POST/checkout')).click()",
        )
        .await;
    sleep(Duration::from_millis(2_500)).await;
    for (name, width, height, scheme) in [
        ("perf.png", 1180, 2480, "light"),
        ("perf-dark.png", 1180, 2480, "dark"),
        ("perf-phone.png", 390, 2400, "light"),
    ] {
        watch.browser.resize(width, height).await;
        watch.browser.prefer(scheme).await;
        sleep(Duration::from_millis(1_200)).await;
        watch.browser.picture(&file(name)).await;
    }
    watch.assert_content();
}
