//! The server's record of a request that came over a connection, as it tells it in `Server-Timing`.
//!
//! In process, the layer fills a probe. Over a connection it tells whoever sends a token that is good:
//! [`ask`] adds one to a request, [`record`] reads what came back. Any server may answer, so nothing is believed
//! that the layer would not have written, and nothing takes more memory than the layer would need.
//!
//! ```
//! use std::time::Duration;
//! use http::{HeaderMap, HeaderValue};
//! use parallax_loadgen::server_timing;
//!
//! let mut head = HeaderMap::new();
//! let told = r#"px-ttfb;dur=1.2, px-route;desc="GET /items/{id}", px-total;dur=3.4, cache;desc=hit"#;
//! head.insert("server-timing", HeaderValue::from_static(told));
//!
//! let record = server_timing::record(&head, None).unwrap();
//! assert_eq!(record.route.as_deref(), Some("GET /items/{id}"));
//! assert_eq!(record.server_time, Some(Duration::from_micros(3_400)));
//! ```

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{CONNECTION, TE},
};

/// Where a token is sent, if the service has not been told otherwise.
pub const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-parallax-bypass");

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Bytes of all values together. The layer writes 8 KiB at most; handlers may add to it.
const MAX_BYTES: usize = 32 * 1024;
/// Of one value: the layer's and what others have put beside them.
const MAX_METRICS: usize = 256;
/// The layer has no more names.
const MAX_PHASES: usize = 64;
/// Nobody measures longer requests.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Has the service tell how long it took over a request, and let it past its limiter: adds a token, and says that
/// trailers are welcome, as that version of HTTP wants it said.
pub fn ask(headers: &mut HeaderMap, token: &HeaderValue, version: Version) {
    let mut token = token.clone();
    // Shown by no log.
    token.set_sensitive(true);
    headers.insert(TOKEN_HEADER, token);
    headers.insert(TE, const { HeaderValue::from_static("trailers") });
    if version == Version::HTTP_11 {
        headers.append(CONNECTION, const { HeaderValue::from_static("te") });
    }
}

/// What the server tells in the head and in the trailers of a response, if there were any. `None` if it tells
/// nothing, or what cannot be: then nothing of it is believed.
#[must_use]
pub fn record(head: &HeaderMap, trailers: Option<&HeaderMap>) -> Option<ServerTiming> {
    let values = [Some(head), trailers].into_iter().flatten();
    let values = values.flat_map(|headers| headers.get_all(SERVER_TIMING));
    let mut told = ServerTiming::default();
    let mut room = MAX_BYTES;
    for value in values {
        room = room.checked_sub(value.len())?;
        // Handlers write values of their own, as well as they can.
        let Some(metrics) = metrics(value.as_bytes()) else { continue };
        metrics.iter().try_for_each(|metric| told.add(metric))?;
    }
    told.is_possible().then_some(told)
}

/// The server's record of one request. What it did not tell is absent; where the server time is, there was no
/// way to send trailers, or the body did not end well.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ServerTiming {
    /// Method and template, as the layer's own figures have them: `GET /items/{id}`, `* (unmatched)`.
    pub route: Option<String>,
    /// From the request's entry to the response head.
    pub first_byte: Option<Duration>,
    /// From the request's entry to the end of the response body.
    pub server_time: Option<Duration>,
    /// Time in none of the phases.
    pub handler: Option<Duration>,
    /// How long the request was in each phase that it was in.
    pub phases: Vec<(String, Duration)>,
    /// Were phases, or the route, left out, because their names are too long?
    pub cut: bool,
}

impl ServerTiming {
    /// What the server tells in the head of a response, or in its trailers: [`record`] takes both.
    #[must_use]
    pub fn parse(headers: &HeaderMap) -> Option<Self> {
        record(headers, None)
    }

    /// Takes a metric in if it is one of the layer's. `None` if it would not have written that.
    fn add(&mut self, metric: &Metric<'_>) -> Option<()> {
        match metric.name {
            b"px-ttfb" => once(&mut self.first_byte, metric.duration()?),
            b"px-total" => once(&mut self.server_time, metric.duration()?),
            b"px-handler" => once(&mut self.handler, metric.duration()?),
            b"px-route" => once(&mut self.route, metric.description()?),
            b"px-phase" => {
                self.phases.push((metric.description()?, metric.duration()?));
                (self.phases.len() <= MAX_PHASES).then_some(())
            }
            b"px-cut" => {
                self.cut = true;
                Some(())
            }
            _ => Some(()),
        }
    }

    /// Is there something, and can all of it be true?
    fn is_possible(&self) -> bool {
        let within = |part: Option<Duration>| part <= self.server_time.or(part);
        *self != Self::default() && within(self.first_byte) && within(self.handler)
    }
}

/// Two values for one figure are none.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.is_none().then(|| *place = Some(value))
}

/// One of the comma-separated parts of a value. What is quoted is still as it was written.
struct Metric<'v> {
    name: &'v [u8],
    dur: Option<&'v [u8]>,
    desc: Option<&'v [u8]>,
}

impl Metric<'_> {
    fn duration(&self) -> Option<Duration> {
        milliseconds(self.dur?)
    }

    fn description(&self) -> Option<String> {
        unquoted(self.desc?)
    }
}

/// Reads milliseconds with up to six decimals, as the layer writes them: without a sign or an exponent.
fn milliseconds(text: &[u8]) -> Option<Duration> {
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let (whole, fraction) = (parts.next()?, parts.next());
    let digits = |text: &[u8], most: usize| {
        let good = (1..=most).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
        good.then(|| text.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
    };
    let whole = digits(whole, 9)?;
    let fraction = match fraction {
        Some(text) => digits(text, 6)? * 10_u64.pow(6 - text.len() as u32),
        None => 0,
    };
    let time = Duration::from_millis(whole) + Duration::from_nanos(fraction);
    (time <= MAX_TIME).then_some(time)
}

/// Takes the escapes out of what was between quotes: those of HTTP, and those that stand for bytes that headers
/// cannot carry.
fn unquoted(text: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => rest.next()?,
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            b' '..=b'~' => byte,
            _ => return None,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Takes a value apart. `None` if it is none of `Server-Timing`.
fn metrics(value: &[u8]) -> Option<Vec<Metric<'_>>> {
    let mut rest = Rest(value);
    let mut metrics = Vec::new();
    loop {
        rest.space();
        // A list may have empty places.
        if !rest.0.is_empty() && !rest.0.starts_with(b",") {
            metrics.push(rest.metric()?);
            (metrics.len() <= MAX_METRICS).then_some(())?;
            rest.space();
        }
        if rest.0.is_empty() {
            return Some(metrics);
        }
        rest.eat(b',').then_some(())?;
    }
}

/// What is still to be read of a value.
struct Rest<'v>(&'v [u8]);

impl<'v> Rest<'v> {
    fn metric(&mut self) -> Option<Metric<'v>> {
        let mut metric = Metric { name: self.token()?, dur: None, desc: None };
        loop {
            self.space();
            if !self.eat(b';') {
                return Some(metric);
            }
            self.space();
            let name = self.token()?;
            self.space();
            let value = if self.eat(b'=') { self.value()? } else { b"" };
            let place = match name {
                name if name.eq_ignore_ascii_case(b"dur") => &mut metric.dur,
                name if name.eq_ignore_ascii_case(b"desc") => &mut metric.desc,
                _ => continue,
            };
            once(place, value)?;
        }
    }

    fn value(&mut self) -> Option<&'v [u8]> {
        self.space();
        if !self.eat(b'"') {
            return self.token();
        }
        let mut at = 0;
        while *self.0.get(at)? != b'"' {
            at += if self.0[at] == b'\\' { 2 } else { 1 };
        }
        let value = self.take(at);
        self.eat(b'"').then_some(value)
    }

    fn token(&mut self) -> Option<&'v [u8]> {
        let is_end =
            |byte: &u8| !(byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte));
        let length = self.0.iter().position(is_end).unwrap_or(self.0.len());
        (length > 0).then(|| self.take(length))
    }

    fn space(&mut self) {
        self.0 = self.0.trim_ascii_start();
    }

    fn eat(&mut self, byte: u8) -> bool {
        let next = self.0.first() == Some(&byte);
        if next {
            self.0 = &self.0[1..];
        }
        next
    }

    fn take(&mut self, length: usize) -> &'v [u8] {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }
}

/// Numbers for names that come over a connection, so that a sample holds no text: of routes, or of phases.
///
/// Whoever answers chooses the names, so there is a bound; those past it share one.
#[derive(Debug)]
pub struct Names {
    most: usize,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    numbers: HashMap<Arc<str>, u32>,
    /// In the order of their numbers.
    names: Vec<Arc<str>>,
}

impl Names {
    /// What names past the bound are called.
    pub const OTHER: &str = "(other)";

    /// At most so many names, and [`OTHER`](Self::OTHER).
    #[must_use]
    pub fn up_to(most: usize) -> Self {
        Self { most, known: RwLock::default() }
    }

    /// The number of a name, the same each time: up to the bound, which stands for all others.
    pub fn number(&self, name: &str) -> u32 {
        let known = |known: &Known| match known.numbers.get(name) {
            Some(number) => Some(*number),
            None if known.names.len() >= self.most => Some(self.most as u32),
            None => None,
        };
        if let Some(number) = known(&self.known.read().unwrap_or_else(PoisonError::into_inner)) {
            return number;
        }
        let mut names = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been faster.
        known(&names).unwrap_or_else(|| {
            let (number, name) = (names.names.len() as u32, Arc::<str>::from(name));
            names.names.push(name.clone());
            names.numbers.insert(name, number);
            number
        })
    }

    /// The name of a number.
    #[must_use]
    pub fn name(&self, number: u32) -> Arc<str> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.names.get(number as usize).map_or_else(|| Self::OTHER.into(), Clone::clone)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[&str]) -> Option<ServerTiming> {
        let value = |value: &&str| HeaderValue::from_bytes(value.as_bytes()).expect("a value");
        ServerTiming::parse(&values.iter().map(|v| (SERVER_TIMING, value(v))).collect())
    }

    #[test]
    fn what_the_layer_tells_is_found_among_what_others_tell() {
        let expected = ServerTiming {
            route: Some("GET /items/{id}".to_owned()),
            server_time: Some(Duration::from_nanos(3_000_001)),
            phases: vec![("pool_wait:db".to_owned(), Duration::from_millis(2))],
            ..ServerTiming::default()
        };
        let ours = r#"px-total;dur=3.000001, px-route;desc="GET /items/{id}""#;
        let phase = r#"px-phase;dur=2;desc="pool_wait:db""#;
        let joined = format!(r#"cache;desc="a, \"b;",db;x , ,{ours} ,{phase}, px-later;dur=1e9,"#);
        for values in [
            &[ours, phase][..],
            &["cache;desc=hit", ours, phase, "db;dur=7.5e3"],
            &[&joined],
            // Nobody can make anything of these; they are somebody else's.
            &["", "=", "a b", "a;", "a;dur=\"1", "caf\u{e9}", ours, phase],
        ] {
            assert_eq!(of(values).as_ref(), Some(&expected), "{values:?}");
        }
    }

    #[test]
    fn what_the_layer_would_not_have_written_is_not_believed() {
        for value in [
            "",
            "cache;desc=hit",
            "px-total",
            "px-total;dur",
            "px-total;dur=",
            "px-total;dur=-1",
            "px-total;dur=+1",
            "px-total;dur=1e3",
            "px-total;dur=.5",
            "px-total;dur=5.",
            "px-total;dur=0.0000001",
            "px-total;dur=1.2.3",
            "px-total;dur=inf",
            "px-total;dur=NaN",
            // A day and a little.
            "px-total;dur=86400000.1",
            "px-total;dur=99999999999999999999999",
            "px-total;dur=1;dur=1",
            "px-total;dur=1, px-total;dur=1",
            "px-ttfb;dur=2, px-total;dur=1",
            "px-handler;dur=2, px-total;dur=1",
            "px-route",
            "px-route;desc=\"caf\u{e9}\"",
            "px-route;desc=\"%\"",
            "px-route;desc=\"%g0\"",
            "px-route;desc=\"%FF\"",
            "px-route;desc=a, px-route;desc=a",
            "px-total;dur=1, px-phase;dur=1",
            "px-total;dur=1, px-phase;desc=a",
        ] {
            assert_eq!(of(&[value]), None, "{value}");
        }
    }

    #[test]
    fn no_server_can_make_its_client_remember_more_than_the_layer_would() {
        let phases = |n| of(&vec!["px-phase;dur=1;desc=a"; n]);
        assert_eq!(phases(64).expect("so many there may be").phases.len(), 64);
        assert_eq!(phases(65), None);

        let many = |n| of(&["px-total;dur=1", &vec!["x"; n].join(",")]);
        assert!(many(256).is_some());
        let ours_last = |n| of(&[&(vec!["x"; n].join(",") + ",px-total;dur=1")]);
        assert!(ours_last(255).is_some());
        assert_eq!(ours_last(256), None);

        let long = |n| of(&["px-total;dur=1", &"x".repeat(n)]);
        assert!(long(MAX_BYTES - 14).is_some());
        assert_eq!(long(MAX_BYTES - 13), None);
    }

    #[test]
    fn head_and_trailers_tell_one_record() {
        let headers =
            |value| HeaderMap::from_iter([(SERVER_TIMING, HeaderValue::from_static(value))]);
        let head = headers("px-ttfb;dur=1, px-route;desc=a");
        let record = |trailers| record(&head, Some(&headers(trailers)));
        let whole = record("px-total;dur=2, px-handler;dur=2").expect("it is told");
        assert_eq!(whole.first_byte, Some(Duration::from_millis(1)));
        assert_eq!(whole.server_time, Some(Duration::from_millis(2)));
        assert_eq!(record("px-total;dur=0.5"), None);
        assert_eq!(record("px-ttfb;dur=1"), None);
    }

    #[test]
    fn a_name_has_a_number_and_names_past_the_bound_share_one() {
        let names = Names::up_to(2);
        let numbers = ["a", "b", "a", "c", "d", "b"].map(|name| names.number(name));
        assert_eq!(numbers, [0, 1, 0, 2, 2, 1]);
        assert_eq!(
            [0, 1, 2, 7].map(|n| names.name(n).to_string()),
            ["a", "b", "(other)", "(other)"]
        );
    }

    #[test]
    fn asking_says_that_trailers_are_welcome_as_the_protocol_wants_it_said() {
        let asked = |version| {
            let mut headers = HeaderMap::new();
            let token = HeaderValue::from_static("px1.secret");
            ask(&mut headers, &token, version);
            assert_eq!([&headers[TOKEN_HEADER], &headers[TE]], ["px1.secret", "trailers"]);
            assert!(!format!("{headers:?}").contains("secret"));
            headers.get(CONNECTION).cloned()
        };
        assert_eq!(asked(Version::HTTP_11), Some(HeaderValue::from_static("te")));
        assert_eq!(asked(Version::HTTP_2), None);
    }

    proptest! {
        #[test]
        fn nothing_that_a_server_may_send_is_too_much(
            values in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..200),
                    "(px-(ttfb|total|route|phase)|[a-z]|[;=,%.\"\\\\ ]|dur|desc|[0-9]{1,4}){0,40}"
                        .prop_map(String::into_bytes),
                ],
                0..4,
            ),
        ) {
            let values = values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok());
            let told = ServerTiming::parse(&values.map(|value| (SERVER_TIMING, value)).collect());
            if let Some(ServerTiming { first_byte, server_time, phases, .. }) = told {
                prop_assert!(phases.len() <= MAX_PHASES);
                prop_assert!(server_time.is_none() || first_byte <= server_time);
            }
        }
    }
}
