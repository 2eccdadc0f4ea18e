//! `Server-Timing`: the record of a request, told to whoever sent a token with it.
//!
//! ```text
//! px-ttfb;dur=1.2, px-total;dur=3.4, px-handler;dur=2.9, px-route;desc="GET /items/{id}",
//! px-phase;dur=0.5;desc="pool_wait:db"
//! ```
//!
//! One metric for each phase, all of the same name: a phase may be called what is no token. Durations are
//! milliseconds, to the nanosecond. What is over with its head says all of it there; of a body that follows, the
//! head says `px-ttfb` and `px-route`, and trailers the rest.

use std::fmt::Write as _;

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Version,
    header::{TE, TRAILER, VARY},
};

use crate::{
    counters::{Counters, Ended},
    gate::Held,
    phase::PhaseTimes,
    probe::{GoodFor, LoadMark},
    recorder::Recording,
    route::RouteIndex,
};

/// Where it is told.
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Bytes of one value. Proxies have little room for heads; what does not fit is left out, and said to be.
const ROOM: usize = 4096;

/// What one client is told, while its request is under way.
#[derive(Debug)]
pub(crate) struct Timing {
    /// That of the token: what is told is not for those who come without one.
    header: HeaderName,
    trailers: Trailers,
    /// One of the requests that the token allows at a time, until it is over.
    held: Option<Held>,
    /// What is known once the request is over.
    at_end: Option<Metrics>,
}

/// Where trailers may go to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trailers {
    /// Nowhere: the protocol has none, or the client wants none.
    None,
    /// Behind chunks, where the head announces them.
    Announced,
    /// Behind any body.
    Any,
}

impl Trailers {
    fn of<B>(request: &Request<B>) -> Self {
        match request.version() {
            Version::HTTP_11 if wants_trailers(request.headers()) => Self::Announced,
            Version::HTTP_2 | Version::HTTP_3 => Self::Any,
            _ => Self::None,
        }
    }
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(TE).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// Looks for a token in a request that has just been counted in, if the handle answers timing at all.
#[inline]
pub(crate) fn judge<B>(recording: &mut Recording, request: &mut Request<B>) {
    if recording.recorder().entrance().is_some() {
        judge_token(recording, request);
    }
}

#[inline(never)]
fn judge_token<B>(recording: &mut Recording, request: &mut Request<B>) {
    let Some(entrance) = recording.recorder().entrance() else { return };
    let header = &entrance.header;
    let judged = match entrance.judge(request) {
        Some(Ok(held)) => {
            // For the bypass inside: a request of a budget is counted once.
            let mark = request.extensions_mut().get_or_insert_default::<LoadMark>();
            mark.set_good_for(GoodFor::Limiter, &entrance.gate);
            Ok(held)
        }
        Some(Err(refusal)) => Err(refusal),
        None => {
            // By a bypass outside, which has taken the header.
            let mark = request.extensions_mut().get_mut::<LoadMark>();
            if !mark.is_some_and(|mark| mark.take_good_for(GoodFor::Timing, &entrance.gate)) {
                return;
            }
            Ok(None)
        }
    };
    match judged {
        Ok(held) => {
            let timing = Timing {
                header: header.clone(),
                trailers: Trailers::of(request),
                held,
                at_end: None,
            };
            recording.set_timing(timing);
        }
        Err(refusal) => {
            let recorder = recording.recorder().clone();
            recording.guard(|| recorder.refuse(refusal));
        }
    }
}

impl Timing {
    /// The request is over, with these phases.
    #[cold]
    pub(crate) fn end(&mut self, counters: &Counters, ended: Ended, phases: &PhaseTimes) {
        self.held = None;
        let mut metrics = Metrics::default();
        metrics.add("px-total", Some(ended.server_time), None);
        metrics.add("px-handler", Some(ended.server_time.saturating_sub(phases.covered)), None);
        for (phase, ns) in &phases.times {
            metrics.add("px-phase", Some(*ns), Some(counters.phase_name(*phase)));
        }
        self.at_end = Some(metrics);
    }

    /// Writes into a head what is known when it leaves, and returns whether the rest follows in trailers. It does
    /// not where the protocol says the length of the body instead.
    #[cold]
    pub(crate) fn tell_at_head(
        &mut self,
        counters: &Counters,
        route: RouteIndex,
        first_byte: u64,
        headers: &mut HeaderMap,
        length: Option<u64>,
    ) -> bool {
        let mut metrics = Metrics::default();
        metrics.add("px-ttfb", Some(first_byte), None);
        if let Some(key) = counters.route_key(route) {
            metrics.add("px-route", None, Some(&key.to_string()));
        }
        let over = self.at_end();
        let follows = over.is_none()
            && match self.trailers {
                Trailers::None => false,
                Trailers::Announced => length.is_none(),
                Trailers::Any => true,
            };
        for value in metrics.value().into_iter().chain(over) {
            headers.append(SERVER_TIMING, value);
        }
        // A cache that keeps the response must not hand it to strangers.
        headers.append(VARY, self.header.clone().into());
        if follows && self.trailers == Trailers::Announced {
            headers.append(TRAILER, const { HeaderValue::from_static("server-timing") });
        }
        follows
    }

    /// What is known once the request is over, once.
    pub(crate) fn at_end(&mut self) -> Option<HeaderValue> {
        self.at_end.take()?.value()
    }
}

/// A value of `Server-Timing`.
#[derive(Debug, Default)]
struct Metrics {
    text: String,
    /// Was something left out?
    cut: bool,
}

impl Metrics {
    fn add(&mut self, name: &str, ns: Option<u64>, description: Option<&str>) {
        let before = self.text.len();
        if before > 0 {
            self.text.push_str(", ");
        }
        self.text.push_str(name);
        if let Some(ns) = ns {
            let (ms, fraction) = (ns / 1_000_000, ns % 1_000_000);
            // A text takes whatever is written.
            let _ = write!(self.text, ";dur={ms}.{fraction:06}");
        }
        if let Some(description) = description {
            self.text.push_str(";desc=");
            quote(&mut self.text, description);
        }
        if self.text.len() > ROOM {
            self.text.truncate(before);
            self.cut = true;
        }
    }

    fn value(mut self) -> Option<HeaderValue> {
        if self.cut {
            self.text.push_str(", px-cut");
        }
        HeaderValue::try_from(self.text).ok()
    }
}

/// Writes a quoted string. What is no printable ASCII, and the percent sign, is written as in an address: no two
/// readers agree on other bytes of a header.
fn quote(to: &mut String, text: &str) {
    to.push('"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => to.extend(['\\', byte.into()]),
            b'%' | ..b' ' | 0x7f.. => {
                let _ = write!(to, "%{byte:02X}");
            }
            _ => to.push(byte.into()),
        }
    }
    to.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: Metrics) -> String {
        metrics.value().expect("it is ASCII").to_str().expect("it is ASCII").to_owned()
    }

    #[test]
    fn a_duration_is_milliseconds_to_the_nanosecond() {
        for (ns, written) in [
            (0, "px-total;dur=0.000000"),
            (1, "px-total;dur=0.000001"),
            (1_234_567, "px-total;dur=1.234567"),
            (u64::MAX, "px-total;dur=18446744073709.551615"),
        ] {
            let mut metrics = Metrics::default();
            metrics.add("px-total", Some(ns), None);
            assert_eq!(text(metrics), written);
        }
    }

    #[test]
    fn whatever_a_phase_is_called_it_is_a_quoted_string() {
        for (name, written) in [
            ("pool_wait:db", r#""pool_wait:db""#),
            ("a; b, c=d", r#""a; b, c=d""#),
            (r#"a "b" \c"#, r#""a \"b\" \\c""#),
            ("100 %", r#""100 %25""#),
            ("caf\u{e9}\r\n\t\0\u{7f}", r#""caf%C3%A9%0D%0A%09%00%7F""#),
            ("", r#""""#),
        ] {
            let mut quoted = String::new();
            quote(&mut quoted, name);
            assert_eq!(quoted, written);
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said_to_be() {
        let mut metrics = Metrics::default();
        metrics.add("px-total", Some(7), None);
        metrics.add("px-phase", Some(7), Some(&"long".repeat(ROOM)));
        metrics.add("px-phase", Some(7), Some("short"));
        let expected = r#"px-total;dur=0.000007, px-phase;dur=0.000007;desc="short", px-cut"#;
        assert_eq!(text(metrics), expected);
    }

    #[test]
    fn trailers_go_where_the_client_takes_them() {
        let of = |version, te: Option<&'static str>| {
            let mut request = Request::new(());
            *request.version_mut() = version;
            request.headers_mut().extend(te.map(|te| (TE, HeaderValue::from_static(te))));
            Trailers::of(&request)
        };
        assert_eq!(of(Version::HTTP_11, None), Trailers::None);
        assert_eq!(of(Version::HTTP_11, Some("gzip;q=0.5")), Trailers::None);
        assert_eq!(of(Version::HTTP_11, Some("gzip;q=0.5, Trailers")), Trailers::Announced);
        assert_eq!(of(Version::HTTP_10, Some("trailers")), Trailers::None);
        assert_eq!(of(Version::HTTP_2, None), Trailers::Any);
    }
}
