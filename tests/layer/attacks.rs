//! Attempts to get past a limiter: each is refused, counted by why, and answered as any request that is
//! limited.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, Method, StatusCode},
    routing::any,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use parallax_middleware::{
    BypassPolicy, BypassToken, LimiterView, Perf, RefusedTokens, TokenCheck, TokenKeys,
};
use sha2::{Digest, Sha256, Sha512};

use crate::{
    layer::responses::endless,
    support::{
        client::{Client, Transport},
        eventually,
        rig::{Answer, Rig, an_hour, request, with_pass},
    },
};

const HEADER: HeaderName = HeaderName::from_static("x-parallax-bypass");
const NOW: u64 = 1_800_000_000;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn keys() -> TokenKeys {
    TokenKeys::new("k1", SECRET).expect("it is long enough")
}

fn at(unix_s: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s)
}

/// Good for a minute from now, for anything.
fn token() -> BypassToken {
    BypassToken::until(at(NOW + 60), "run")
}

fn minted(token: &BypassToken) -> String {
    token.mint(&keys()).expect("a token can say this")
}

/// A service whose limiter has let through what it lets through in an hour, and a client of it.
struct Guarded {
    rig: Rig,
    client: Client,
    /// What the service takes for the time.
    unix_s: Arc<AtomicU64>,
    /// What a client without a token is told.
    limited: Answer,
}

impl Guarded {
    async fn over(transport: &Transport) -> Self {
        Self::by(BypassPolicy::in_process(), transport).await
    }

    async fn by(policy: BypassPolicy, transport: &Transport) -> Self {
        let unix_s = Arc::new(AtomicU64::new(NOW));
        let clock = unix_s.clone();
        let check = TokenCheck::new(keys()).wall_clock(move || at(clock.load(Relaxed)));
        let perf = Perf::new();
        let app = Router::new()
            .route("/items/{id}", any(names))
            .route("/endless", any(async || Body::from_stream(endless())))
            .route("/never", any(async || std::future::pending::<()>().await))
            .layer(perf.bypass(policy.tokens(check)).around(an_hour(1)))
            .layer(perf.layer());
        let rig = Rig::new(&perf, app);
        let client = rig.client(transport).await;
        assert_eq!(client.get("/items/7").await.status, StatusCode::OK);
        let limited = client.get("/items/7").await;
        assert_eq!(limited.status, StatusCode::TOO_MANY_REQUESTS);
        Self { rig, client, unix_s, limited }
    }

    fn limiter(&self) -> LimiterView {
        self.rig.perf.snapshot().view().limiter.expect("it has met requests")
    }

    /// Asserts that a request gets past.
    async fn passes(&self, request: Request) {
        let before = self.limiter();
        let answer = self.client.send(request).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.record.bypassed);
        assert_eq!(self.limiter(), LimiterView { bypassed: before.bypassed + 1, ..before });
    }

    /// Asserts that a request is answered as one without a token, and counted as refused for this alone.
    async fn refuses(&self, request: Request, why: Refused) {
        let shown = format!("{:?}", request.headers());
        let mut expected = self.limiter();
        expected.limited += 1;
        let count = match why {
            Refused::Malformed => &mut expected.refused_tokens.malformed,
            Refused::Forged => &mut expected.refused_tokens.forged,
            Refused::Expired => &mut expected.refused_tokens.expired,
            Refused::OutOfScope => &mut expected.refused_tokens.out_of_scope,
            Refused::Uncounted => &mut 0,
        };
        *count += 1;
        self.is_limited(&self.client.send(request).await);
        assert_eq!(self.limiter(), expected, "{shown}");
        assert_eq!(self.limiter_by_route(), expected, "{shown}");
    }

    /// What the limiter did with the requests that are over, added up over their routes.
    fn limiter_by_route(&self) -> LimiterView {
        let rows = self.rig.perf.snapshot().view().routes;
        let mut sum = LimiterView::default();
        for row in rows.iter().filter_map(|row| row.limiter) {
            sum.admitted += row.admitted;
            sum.limited += row.limited;
            sum.bypassed += row.bypassed;
            sum.refused_tokens.malformed += row.refused_tokens.malformed;
            sum.refused_tokens.forged += row.refused_tokens.forged;
            sum.refused_tokens.expired += row.refused_tokens.expired;
            sum.refused_tokens.out_of_scope += row.refused_tokens.out_of_scope;
        }
        sum
    }

    fn is_limited(&self, answer: &Answer) {
        assert_eq!(answer.status, self.limited.status);
        assert!(!answer.record.bypassed);
        let names = |answer: &Answer| -> BTreeSet<String> {
            answer.headers.keys().map(ToString::to_string).collect()
        };
        assert_eq!(names(answer), names(&self.limited));
        // It says how many seconds to wait.
        let words = |answer: &Answer| {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            text.replace(|c: char| c.is_ascii_digit(), "")
        };
        assert_eq!(words(answer), words(&self.limited));
    }
}

#[derive(Clone, Copy, Debug)]
enum Refused {
    Malformed,
    Forged,
    Expired,
    OutOfScope,
    Uncounted,
}

/// Says which headers reach a handler.
async fn names(request: Request) -> String {
    request.headers().keys().map(HeaderName::as_str).collect::<Vec<_>>().join(" ")
}

/// A GET with this in the header.
fn with(value: impl AsRef<[u8]>) -> Request {
    let mut request = request("GET", "/items/7");
    let value = HeaderValue::from_bytes(value.as_ref()).expect("a header can carry it");
    request.headers_mut().insert(HEADER, value);
    request
}

/// What a token says, as bytes, and the MAC under it.
fn opened(text: &str) -> (Vec<u8>, [u8; 32]) {
    let bytes = text.strip_prefix("px1.").expect("the version");
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(bytes).expect("base64");
    let (body, mac) = bytes.split_last_chunk().expect("there is a MAC");
    (body.to_vec(), *mac)
}

fn closed(body: &[u8], mac: &[u8]) -> String {
    format!("px1.{}", BASE64_URL_SAFE_NO_PAD.encode([body, mac].concat()))
}

#[tokio::test]
async fn a_request_that_a_token_let_past_is_no_users_even_if_its_client_leaves_before_the_answer() {
    let guarded = Guarded::over(&Transport::InProcess).await;
    let mut request = with(minted(&token().path("/")));
    *request.uri_mut() = "/never".parse().expect("a path");
    let left = tokio::time::timeout(Duration::from_millis(50), guarded.rig.open(request)).await;
    assert!(left.is_err());
    guarded.rig.settled().await;
    let row = guarded.rig.row("GET /never");
    assert_eq!((row.bypassed, row.failed_latency.count, row.outcomes.cancelled), (1, 0, 1));
    assert_eq!(row.load.expect("it passed").outcomes.cancelled, 1);
}

#[tokio::test]
async fn a_good_token_gets_past_and_no_handler_sees_it() {
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        for _ in 0..3 {
            guarded.passes(with(minted(&token()))).await;
        }
        let answer = guarded.client.send(with(minted(&token()))).await;
        assert!(!String::from_utf8_lossy(&answer.body).contains("bypass"), "{answer:?}");
        assert_eq!(guarded.rig.row("GET /items/{id}").bypassed, 4);
        assert_eq!(guarded.limiter().refused_tokens, RefusedTokens::default());
    }
}

#[tokio::test]
async fn what_is_no_token_is_malformed() {
    let text = minted(&token());
    let oversized = [text.clone(), "A".repeat(8_000)].concat();
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        for value in [
            "true",
            "TRUE",
            "1",
            "yes",
            "on",
            "*",
            "null",
            "px1.",
            "px1",
            "Bearer true",
            &oversized,
            &text[4..],
            &format!("Bearer {text}"),
            &format!("\"{text}\""),
            &format!("{text}, {text}"),
            &format!("{text}="),
            &text.to_uppercase(),
        ] {
            guarded.refuses(with(value), Refused::Malformed).await;
        }
        guarded.passes(with(&text)).await;
    }
}

#[tokio::test]
async fn no_beginning_of_a_token_is_one() {
    let text = minted(&token());
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        for length in 0..text.len() {
            let before = guarded.limiter().refused_tokens;
            guarded.is_limited(&guarded.client.send(with(&text[..length])).await);
            let after = guarded.limiter().refused_tokens;
            // What is left may still have the form of one; then the MAC is another.
            assert_eq!(after.malformed + after.forged, before.malformed + before.forged + 1);
            assert_eq!((after.expired, after.out_of_scope), (0, 0));
        }
        assert_eq!(guarded.limiter().bypassed, 0);
    }
}

#[tokio::test]
async fn no_bit_of_a_token_can_be_flipped() {
    let text = minted(&token());
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        let mut sent = 0;
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // Control characters are in no header; what comes with one is no request.
            if HeaderValue::from_bytes(&bytes).is_ok() {
                guarded.is_limited(&guarded.client.send(with(bytes)).await);
                sent += 1;
            }
        }
        let RefusedTokens { malformed, forged, expired, out_of_scope, .. } =
            guarded.limiter().refused_tokens;
        assert!(sent > text.len() as u64 * 5 && malformed > 0 && forged > 0);
        assert_eq!((malformed + forged, expired, out_of_scope), (sent, 0, 0));
        assert_eq!(guarded.limiter().bypassed, 0);
    }
}

#[tokio::test]
async fn a_token_that_is_replayed_after_its_expiry_has_expired() {
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        let text = minted(&token());
        guarded.passes(with(&text)).await;
        // A minute, and 30 s for clocks that differ.
        guarded.unix_s.store(NOW + 89, Relaxed);
        guarded.passes(with(&text)).await;
        guarded.unix_s.store(NOW + 90, Relaxed);
        guarded.refuses(with(&text), Refused::Expired).await;
        // Nobody but the issuer can put that off.
        let (mut body, mac) = opened(&text);
        let expiry = body.windows(8).position(|bytes| bytes == (NOW + 60).to_be_bytes());
        body[expiry.expect("it is in there") + 7] += 100;
        guarded.refuses(with(closed(&body, &mac)), Refused::Forged).await;
    }
}

#[tokio::test]
async fn a_token_of_another_key_is_forged() {
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        for (id, secret) in [("k1", &SECRET[1..].repeat(2)[..]), ("k2", SECRET), ("K1", SECRET)] {
            let other = TokenKeys::new(id, secret).expect("it is long enough");
            let text = token().mint(&other).expect("a token");
            guarded.refuses(with(text), Refused::Forged).await;
        }
    }
}

#[tokio::test]
async fn no_other_algorithm_makes_a_token() {
    let (body, mac) = opened(&minted(&token()));
    let signed = ["px1.".as_bytes(), &body].concat();
    let keyed = |key: &[u8]| {
        let hash = Hmac::<Sha256>::new_from_slice(key).expect("any length will do");
        hash.chain_update(&signed).finalize().into_bytes()
    };
    let long = Hmac::<Sha512>::new_from_slice(SECRET).expect("any length will do");
    let long = long.chain_update(&signed).finalize().into_bytes();
    let without_version = Hmac::<Sha256>::new_from_slice(SECRET).expect("any length will do");
    let without_version = without_version.chain_update(&body).finalize().into_bytes();
    let plain = Sha256::digest(&signed);
    let prefixed = Sha256::digest([SECRET, &signed].concat());
    let forged: [&[u8]; 8] = [
        &[0; 32],
        &[0xff; 32],
        &plain,
        &prefixed,
        &keyed(b""),
        &keyed(b"k1"),
        &long[..32],
        &without_version,
    ];
    let text = closed(&body, &mac);
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        for mac in forged {
            guarded.refuses(with(closed(&body, mac)), Refused::Forged).await;
        }
        for malformed in [
            closed(&body, b""),
            closed(&body, &long),
            closed(&body, &keyed(SECRET)[..31]),
            text.replacen("px1.", "px0.", 1),
            text.replacen("px1.", "px2.", 1),
            text.replacen("px1.", "none.", 1),
            text.replacen("px1.", "px1.none.", 1),
            // A JSON Web Token that says it needs no signature.
            "eyJhbGciOiJub25lIn0.eyJzdWIiOiJydW4ifQ.".to_owned(),
        ] {
            guarded.refuses(with(malformed), Refused::Malformed).await;
        }
        guarded.passes(with(closed(&body, &keyed(SECRET)))).await;
    }
}

#[tokio::test]
async fn a_token_is_good_for_its_scope_alone() {
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        for other in [
            token().method(Method::POST),
            token().method(Method::HEAD),
            token().path("/item"),
            token().path("/items/8"),
            token().path("/items/7/reviews"),
            token().path("/ITEMS"),
            token().peer("203.0.113.0/24".parse().expect("a range")),
        ] {
            guarded.refuses(with(minted(&other)), Refused::OutOfScope).await;
        }
        for path in ["/items/../endless", "/items/%2e%2e%2fendless", "/items%2F7", "//items/7"] {
            let mut climbing = request("GET", path);
            let value = minted(&token().path("/items")).parse().expect("ASCII");
            climbing.headers_mut().insert(HEADER, value);
            guarded.client.open(climbing).await.expect("it is answered");
        }
        assert_eq!(guarded.limiter().refused_tokens.out_of_scope, 7 + 4);
        guarded.passes(with(minted(&token().method(Method::GET).path("/items")))).await;
        guarded.passes(with(minted(&token().path("/items/7")))).await;
    }
}

#[tokio::test]
async fn no_header_says_where_a_request_comes_from() {
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        let elsewhere = minted(&token().peer("203.0.113.0/24".parse().expect("a range")));
        for name in [
            "x-forwarded-for",
            "forwarded",
            "x-real-ip",
            "x-client-ip",
            "true-client-ip",
            "cf-connecting-ip",
            "x-forwarded-host",
            "via",
        ] {
            let mut spoofed = with(&elsewhere);
            for value in ["203.0.113.7", "for=203.0.113.7", "203.0.113.7, 127.0.0.1"] {
                spoofed.headers_mut().append(name, value.parse().expect("ASCII"));
            }
            guarded.refuses(spoofed, Refused::OutOfScope).await;
        }
        let here = with(minted(&token().peer("127.0.0.0/8".parse().expect("a range"))));
        match *over {
            // There is no socket, so nobody knows.
            Transport::InProcess => guarded.refuses(here, Refused::OutOfScope).await,
            Transport::Http1 | Transport::Http2 => guarded.passes(here).await,
        }
    }
}

#[tokio::test]
async fn a_header_that_comes_twice_is_malformed_whatever_is_in_it() {
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        let good = minted(&token());
        for other in [&good[..], "true", ""] {
            let mut first = with(&good);
            first.headers_mut().append(HEADER, other.parse().expect("ASCII"));
            guarded.refuses(first, Refused::Malformed).await;
            let mut last = with(other);
            last.headers_mut().append(HEADER, good.parse().expect("ASCII"));
            guarded.refuses(last, Refused::Malformed).await;
        }
    }
}

#[tokio::test]
async fn what_merely_looks_like_a_token_is_malformed() {
    let text = minted(&token());
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        for (plain, alike) in [
            // Cyrillic er and ha, fullwidth full stop, fullwidth one, Greek capital alpha.
            ("p", "\u{440}"),
            ("x", "\u{445}"),
            (".", "\u{ff0e}"),
            ("1", "\u{ff11}"),
            ("A", "\u{391}"),
        ] {
            let other = text.replacen(plain, alike, 1);
            assert_ne!(other, text);
            guarded.refuses(with(other), Refused::Malformed).await;
        }
        for other in [
            // Zero width space, byte order mark, soft hyphen, Latin-1 no-break space.
            format!("{text}\u{200b}").into_bytes(),
            format!("\u{feff}{text}").into_bytes(),
            text.replacen('.', ".\u{ad}", 1).into_bytes(),
            [text.as_bytes(), b"\xa0"].concat(),
            text.replacen('.', ".\t", 1).into_bytes(),
        ] {
            guarded.refuses(with(other), Refused::Malformed).await;
        }
    }
}

#[tokio::test]
async fn a_folded_header_is_no_request() {
    let text = minted(&token());
    let (head, tail) = text.split_at(20);
    let guarded = Guarded::over(&Transport::InProcess).await;
    let server = guarded.rig.listen().await;
    let before = guarded.limiter();
    for header in [
        format!("x-parallax-bypass: {head}\r\n {tail}"),
        format!("x-parallax-bypass: {head}\r\n\t{tail}"),
        format!("x-parallax-bypass:\r\n {text}"),
        format!("x-parallax-bypass : {text}"),
        format!("x-parallax-bypass: {head}\0{tail}"),
        format!("x-parallax-bypass: {head}\r{tail}"),
    ] {
        let mut client = server.connect().await;
        client.write(&format!("GET /items/7 HTTP/1.1\r\nhost: test\r\n{header}\r\n\r\n")).await;
        assert_eq!(
            client.head().await.expect("hyper answers on its own").status,
            400,
            "{header:?}"
        );
    }
    // A proxy that unfolds puts a space where the fold was.
    let mut client = server.connect().await;
    let unfolded = format!("x-parallax-bypass: {head} {tail}");
    client.write(&format!("GET /items/7 HTTP/1.1\r\nhost: test\r\n{unfolded}\r\n\r\n")).await;
    assert_eq!(client.answer().await.0, 429);
    let refused_tokens = RefusedTokens { malformed: 1, ..before.refused_tokens };
    let expected = LimiterView { limited: before.limited + 1, refused_tokens, ..before };
    assert_eq!(guarded.limiter(), expected);
}

#[tokio::test]
async fn a_token_is_read_as_http_reads_a_header() {
    let text = minted(&token());
    let guarded = Guarded::over(&Transport::InProcess).await;
    let server = guarded.rig.listen().await;
    let mut client = server.connect().await;
    // Names have no case, and the space around a value is not part of it.
    for header in [format!("X-PARALLAX-Bypass:{text}"), format!("x-parallax-bypass: \t{text} \t")] {
        client.write(&format!("GET /items/7 HTTP/1.1\r\nhost: test\r\n{header}\r\n\r\n")).await;
        assert_eq!(client.answer().await.0, 200, "{header:?}");
    }
}

#[tokio::test]
async fn the_mark_of_this_process_comes_over_no_connection() {
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        let marked = with_pass(request("GET", "/items/7"));
        match *over {
            Transport::InProcess => guarded.passes(marked).await,
            // An extension of the client's request stays with the client.
            Transport::Http1 | Transport::Http2 => {
                guarded.refuses(marked, Refused::Uncounted).await;
                for name in ["LoadMark", "load-mark", "x-load-pass", "x-bypass-rate-limit"] {
                    let mut named = request("GET", "/items/7");
                    let name = HeaderName::try_from(name).expect("a name");
                    named.headers_mut().insert(name, HeaderValue::from_static("true"));
                    guarded.refuses(named, Refused::Uncounted).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_mark_passes_whatever_token_is_beside_it() {
    let guarded = Guarded::over(&Transport::InProcess).await;
    guarded.passes(with_pass(with("true"))).await;
    let answer = guarded.client.send(with_pass(with("true"))).await;
    assert!(!String::from_utf8_lossy(&answer.body).contains("bypass"), "{answer:?}");
}

#[tokio::test]
async fn a_budget_is_spent_over_all_connections() {
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        let text = minted(&token().budget(3));
        for _ in 0..2 {
            guarded.passes(with(&text)).await;
        }
        let other = guarded.client.another().await;
        assert_eq!(other.send(with(&text)).await.status, StatusCode::OK);
        for _ in 0..3 {
            guarded.refuses(with(&text), Refused::OutOfScope).await;
        }
    }
}

#[tokio::test]
async fn a_cap_counts_a_request_until_its_body_is_over() {
    for over in Transport::each() {
        let guarded = Guarded::over(&over).await;
        let text = minted(&token().concurrency(1));
        let mut streaming = with(&text);
        *streaming.uri_mut() = "/endless".parse().expect("a path");
        let response = guarded.client.open(streaming).await.expect("it is answered");
        assert_eq!(response.status(), StatusCode::OK);
        let other = guarded.client.another().await;
        let refused = other.open(with(&text)).await.expect("it is answered");
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        drop((response, refused));
        // On HTTP/1.1 this client's connection is gone with the body.
        eventually("the stream is over for the server, too", async || {
            let again = guarded.client.another().await;
            let answer = again.open(with(&text)).await.expect("it is answered");
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
        // A response that is whole with its head is over at once, and so is one that has none.
        let other = guarded.client.another().await;
        for _ in 0..3 {
            eventually("the one before is over", async || {
                (other.send(with(&text)).await.status == StatusCode::OK).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn the_header_is_taken_out_of_requests_that_are_not_let_past_as_well() {
    for over in Transport::each() {
        // The limiter lets one of these through.
        for policy in [BypassPolicy::in_process(), BypassPolicy::in_process().tokens(keys())] {
            let perf = Perf::new();
            let free = tower::layer::util::Identity::new();
            let app = Router::new()
                .route("/items/{id}", any(names))
                .layer(perf.bypass(policy).around(free))
                .layer(perf.layer());
            let client = Rig::new(&perf, app).client(&over).await;
            let mut twice = with("true");
            twice.headers_mut().append(HEADER, HeaderValue::from_static("false"));
            twice.headers_mut().insert("x-other", HeaderValue::from_static("stays"));
            let answer = client.send(twice).await;
            let seen = String::from_utf8(answer.body.to_vec()).expect("names");
            assert!(seen.contains("x-other") && !seen.contains("bypass"), "{seen}");
        }
    }
}

#[tokio::test]
async fn the_header_can_have_another_name_and_then_has_no_other() {
    let name = HeaderName::from_static("x-load");
    for over in Transport::each() {
        let policy = BypassPolicy::in_process().header(name.clone());
        let guarded = Guarded::by(policy, &over).await;
        guarded.refuses(with(minted(&token())), Refused::Uncounted).await;
        let mut renamed = request("GET", "/items/7");
        renamed.headers_mut().insert(&name, minted(&token()).parse().expect("ASCII"));
        let answer = guarded.client.send(renamed).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(!String::from_utf8_lossy(&answer.body).contains("x-load"), "{answer:?}");
    }
}

#[tokio::test]
async fn without_keys_there_are_no_tokens() {
    for over in Transport::each() {
        let perf = Perf::new();
        let app = Router::new()
            .route("/items/{id}", any(names))
            .layer(perf.bypass(BypassPolicy::default()).around(an_hour(1)))
            .layer(perf.layer());
        let client = Rig::new(&perf, app).client(&over).await;
        let mut statuses = Vec::new();
        for value in ["true", &minted(&token()), "px1."] {
            statuses.push(client.send(with(value)).await.status.as_u16());
        }
        assert_eq!(statuses, [200, 429, 429]);
        let limiter = perf.snapshot().view().limiter.expect("it has met requests");
        assert_eq!(limiter, LimiterView { admitted: 1, limited: 2, ..LimiterView::default() });
    }
}

#[tokio::test]
async fn a_nested_router_checks_the_whole_path() {
    for over in Transport::each() {
        let perf = Perf::new();
        let nothing = tower::limit::GlobalConcurrencyLimitLayer::new(10);
        let policy =
            BypassPolicy::in_process().tokens(TokenCheck::new(keys()).wall_clock(|| at(NOW)));
        let inner = Router::new()
            .route("/items/{id}", any(names))
            .layer(perf.bypass(policy).around(nothing));
        let app = Router::new().nest("/api", inner).layer(perf.layer());
        let client = Rig::new(&perf, app).client(&over).await;
        for (prefix, passes) in [("/api/items", true), ("/api", true), ("/items", false)] {
            let mut nested = with(minted(&token().path(prefix)));
            *nested.uri_mut() = "/api/items/7".parse().expect("a path");
            assert_eq!(client.send(nested).await.record.bypassed, passes, "{prefix}");
        }
    }
}
