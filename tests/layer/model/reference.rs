//! What must be recorded about a script, worked out from the script alone.

use std::{collections::BTreeMap, time::Duration};

use axum::http::StatusCode;
use parallax_middleware::{
    LatencyHistogram, LimiterView, Outcome, RefusedTokens, RouteCounts, Snapshot, TrafficCounts,
};

use crate::layer::model::script::{
    Client, End, Finish, Gives, Length, Reply, Script, Scripted, Target,
};

/// A request that is over. Times are since its beginning.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) server_time: Duration,
    /// If a head left the layer.
    pub(crate) first_byte: Option<Duration>,
    pub(crate) bytes: u64,
    pub(crate) paired: bool,
    pub(crate) bypassed: bool,
    pub(crate) stream: bool,
    /// What the limiter let through, or said no to.
    pub(crate) admission: Option<Outcome>,
}

/// Every request of a run, by its route.
#[derive(Debug, Default)]
pub(crate) struct Model {
    routes: BTreeMap<&'static str, Vec<Ended>>,
}

impl Model {
    /// Adds a script that is run so many times.
    pub(crate) fn add(&mut self, script: &Script, rounds: usize) {
        for request in script.iter().flatten() {
            let ended = request.ended();
            let route = self.routes.entry(request.target.route()).or_default();
            route.extend(std::iter::repeat_n(ended, rounds));
        }
    }

    /// Asserts that exactly this was recorded.
    pub(crate) fn assert_recorded(&self, snapshot: &Snapshot) {
        let routes: BTreeMap<String, &RouteCounts> =
            snapshot.routes().map(|(key, counts)| (key.to_string(), counts)).collect();
        let names: Vec<&String> = routes.keys().collect();
        assert_eq!(names, self.routes.keys().collect::<Vec<_>>());
        for (route, requests) in &self.routes {
            assert_counts(route, requests, routes[*route]);
        }
        let all = || self.routes.values().flatten();
        let admitted = |outcome| all().filter(|ended| ended.admission == Some(outcome)).count();
        let (admitted, limited) = (admitted(Outcome::Ok) as u64, admitted(Outcome::Limited) as u64);
        let bypassed = all().filter(|ended| ended.bypassed).count() as u64;
        let limiter = snapshot.view().limiter.map_or((0, 0, 0), |limiter| {
            let LimiterView { admitted, limited, bypassed, refused_tokens } = limiter;
            assert_eq!(refused_tokens, RefusedTokens::default(), "nobody brings one");
            (admitted, limited, bypassed)
        });
        assert_eq!(limiter, (admitted, limited, bypassed), "admitted, limited, bypassed");
    }
}

fn assert_counts(route: &str, requests: &[Ended], counts: &RouteCounts) {
    let count = |of: &dyn Fn(&Ended) -> bool| requests.iter().filter(|e| of(e)).count() as u64;
    assert_eq!(counts.entered, requests.len() as u64, "{route}: entered");
    assert_eq!(counts.in_flight(), 0, "{route}: in flight");
    for outcome in Outcome::ALL {
        let wanted = count(&|ended| ended.outcome == outcome);
        assert_eq!(counts.outcome(outcome), wanted, "{route}: {outcome:?}");
    }
    assert_eq!(counts.paired, count(&|ended| ended.paired), "{route}: paired");
    let limiter = [
        (counts.limiter.admitted, count(&|ended| ended.admission == Some(Outcome::Ok))),
        (counts.limiter.limited, count(&|ended| ended.admission == Some(Outcome::Limited))),
    ];
    for (found, wanted) in limiter {
        assert_eq!(found, wanted, "{route}: at the limiter");
    }
    let [users, load]: [Vec<Ended>; 2] = [false, true].map(|bypassed| {
        requests.iter().filter(|ended| ended.bypassed == bypassed).cloned().collect()
    });
    assert_traffic(&format!("{route}, users"), &users, &counts.users);
    assert_traffic(&format!("{route}, bypassed"), &load, &counts.bypassed);
}

fn assert_traffic(route: &str, requests: &[Ended], counts: &TrafficCounts) {
    let bytes: u64 = requests.iter().map(|ended| ended.bytes).sum();
    assert_eq!(counts.response_bytes, bytes, "{route}: response bytes");
    for outcome in Outcome::ALL {
        let wanted = requests.iter().filter(|ended| ended.outcome == outcome).count() as u64;
        assert_eq!(counts.outcome(outcome), wanted, "{route}: {outcome:?}");
    }

    let of = |outcome: fn(Outcome) -> bool| {
        requests
            .iter()
            .filter(move |ended| !ended.stream && outcome(ended.outcome))
            .map(|ended| ended.server_time)
    };
    let ok = of(|outcome| outcome == Outcome::Ok);
    let limited = of(|outcome| outcome == Outcome::Limited);
    let failed = of(|outcome| !matches!(outcome, Outcome::Ok | Outcome::Limited));
    let heads = requests
        .iter()
        .filter(|ended| ended.stream || ended.outcome == Outcome::Ok)
        .filter_map(|ended| ended.first_byte);
    assert_values(route, "ok", ok, &counts.ok);
    assert_values(route, "limited", limited, &counts.limited);
    assert_values(route, "failed", failed, &counts.failed);
    assert_values(route, "first byte", heads, &counts.first_byte);

    let streams: Vec<u64> = requests
        .iter()
        .filter(|ended| ended.stream)
        .map(|ended| ended.server_time.as_nanos() as u64)
        .collect();
    let found = &counts.streams;
    assert_eq!((found.opened, found.ended), (streams.len() as u64, streams.len() as u64));
    assert_eq!(found.sum_ns, streams.iter().sum::<u64>(), "{route}: duration of streams");
    let extremes = streams.iter().min().copied().zip(streams.iter().max().copied());
    assert_eq!(found.extremes_ns, extremes, "{route}: extremes of streams");
}

/// Asserts that a histogram is what it is if exactly these are recorded.
fn assert_values(
    route: &str,
    name: &str,
    values: impl Iterator<Item = Duration>,
    found: &LatencyHistogram,
) {
    const HOUR: Duration = Duration::from_secs(3600);
    let mut values: Vec<Duration> = values.collect();
    values.sort_unstable();
    let clamped = values.iter().filter(|value| **value > HOUR).count() as u64;
    for value in &mut values {
        *value = HOUR.min(*value);
    }
    let sum: Duration = values.iter().sum();
    let mean = sum.as_nanos().checked_div(values.len() as u128).unwrap_or(0);
    let ends = |at: Option<&Duration>| at.copied().unwrap_or_default();
    assert_eq!(found.count(), values.len() as u64, "{route}: count of {name}");
    assert_eq!(found.clamped(), clamped, "{route}: clamped of {name}");
    assert_eq!(found.mean().as_nanos(), mean, "{route}: mean of {name}");
    assert_eq!(found.min(), ends(values.first()), "{route}: least of {name}");
    assert_eq!(found.max(), ends(values.last()), "{route}: most of {name}");
    for (low, width, n) in found.buckets() {
        let bucket = Duration::from_nanos(low)..Duration::from_nanos(low + width);
        let wanted = values.iter().filter(|value| bucket.contains(*value)).count() as u64;
        assert_eq!(n, wanted, "{route}: {name} within {bucket:?}");
    }
    // The exact sum, and whatever else a histogram may come to keep. Of what is past the hour only the
    // number is kept.
    let mut expected = LatencyHistogram::new();
    let past = values.len() - clamped as usize;
    for (n, value) in values.iter().enumerate() {
        expected.record(if n < past { *value } else { 2 * HOUR });
    }
    assert!(*found == expected, "{route}: {name}: {found:?}, not {expected:?}");
}

impl Target {
    /// The row that it belongs to.
    pub(crate) fn route(self) -> &'static str {
        match self {
            Self::GetItem => "GET /items/{id}",
            Self::HeadItem => "HEAD /items/{id}",
            Self::PostItem => "POST /items/{id}",
            Self::GetOrders => "GET /users/{id}/orders",
            Self::DeleteItem => "DELETE /items/{id}",
            Self::BrewItem => "_OTHER /items/{id}",
            Self::Nowhere | Self::BrewNowhere => "* (unmatched)",
        }
    }

    /// Does the router answer without asking the service?
    fn is_refused(self) -> bool {
        matches!(self, Self::DeleteItem | Self::BrewItem | Self::Nowhere | Self::BrewNowhere)
    }
}

impl Scripted {
    /// How this request ends.
    pub(crate) fn ended(&self) -> Ended {
        if self.target.is_refused() {
            return self.with_head(Duration::ZERO, StatusCode::NOT_FOUND, &Reply::Empty);
        }
        let head = self.answer.after;
        match &self.answer.gives {
            Gives::Panic if head < self.client.leaves => self.without_head(Outcome::Panicked, head),
            Gives::Response { status, body } if head < self.client.leaves => {
                self.with_head(head, StatusCode::from_u16(*status).expect("in range"), body)
            }
            _ => self.without_head(Outcome::Cancelled, self.client.leaves),
        }
    }

    fn without_head(&self, outcome: Outcome, server_time: Duration) -> Ended {
        Ended {
            outcome,
            server_time,
            first_byte: None,
            bytes: 0,
            paired: self.paired,
            bypassed: self.passes,
            stream: false,
            // The limiter lets all through that meet it, whatever is answered behind it.
            admission: (!self.passes).then_some(Outcome::Ok),
        }
    }

    fn with_head(&self, head: Duration, status: StatusCode, body: &Reply) -> Ended {
        let outcome = Outcome::of_status(status);
        let ended = Ended { first_byte: Some(head), ..self.without_head(outcome, head) };
        let bodiless = self.target == Target::HeadItem || matches!(status.as_u16(), 204 | 304);
        match body {
            _ if bodiless => ended,
            Reply::Empty => ended,
            Reply::Whole(bytes) => Ended { bytes: *bytes as u64, ..ended },
            Reply::Parts { chunks, ends, end, length, events } => {
                let total: u64 = chunks.iter().map(|(_, bytes)| *bytes as u64).sum();
                let promised = length.of(total);
                let mut steps: Vec<(Duration, Step)> =
                    chunks.iter().map(|(at, bytes)| (*at, Step::Data(*bytes as u64))).collect();
                steps.push((*ends, Step::End(*end)));
                if promised == Some(0) {
                    return ended;
                }
                if let (Length::Known(_), (Duration::ZERO, first)) = (length, steps[0]) {
                    // A body that knows its length is asked for its first frame with the head.
                    match first {
                        Step::Data(bytes) if promised == Some(bytes) => {
                            return Ended { bytes, ..ended };
                        }
                        Step::End(End::Panic) => {
                            return self.without_head(Outcome::Panicked, head);
                        }
                        _ => {}
                    }
                }
                let stream = *events && promised.is_none() && outcome == Outcome::Ok;
                let (outcome, server_time, bytes) =
                    self.client.reads(head, outcome, &steps, promised);
                Ended { outcome, server_time, bytes, stream, ..ended }
            }
        }
    }
}

impl Length {
    /// How many bytes are promised for a body of `total`.
    pub(crate) fn of(self, total: u64) -> Option<u64> {
        match self {
            Self::Unknown => None,
            Self::Announced(more) => Some(total.saturating_add_signed(more)),
            Self::Known(more) => Some(total + more),
        }
    }
}

#[derive(Clone, Copy)]
enum Step {
    Data(u64),
    End(End),
}

impl Client {
    /// How, when and after how many bytes the reading of a body ends whose head came at `head`.
    fn reads(
        &self,
        head: Duration,
        outcome: Outcome,
        steps: &[(Duration, Step)],
        promised: Option<u64>,
    ) -> (Outcome, Duration, u64) {
        let (mut now, mut bytes, mut elsewhere) = (head, 0, false);
        for (asked, (at, step)) in steps.iter().enumerate() {
            let ready = match step {
                Step::End(End::Never) => Duration::MAX,
                Step::Data(_) | Step::End(_) => head + *at,
            };
            let received = ready.max(now + self.pause);
            if !elsewhere && asked < self.frames && received < self.leaves {
                now = received;
            } else {
                if !elsewhere && asked < self.frames {
                    now = self.leaves;
                }
                elsewhere = self.finish == Finish::ReadElsewhere;
                if !elsewhere || ready > now {
                    return (Outcome::Cancelled, now, bytes);
                }
            }
            let at_end = if promised > Some(bytes) { Outcome::ServerError } else { outcome };
            match step {
                Step::Data(n) => {
                    bytes += n;
                    if promised.is_some_and(|promised| bytes >= promised) {
                        return (outcome, now, bytes);
                    }
                }
                Step::End(End::Quiet | End::Trailers) => return (at_end, now, bytes),
                Step::End(End::Error) => return (Outcome::ServerError, now, bytes),
                Step::End(End::Panic) => return (Outcome::Panicked, now, bytes),
                Step::End(End::Never) => {}
            }
        }
        unreachable!("the last step is an end, and an end that never comes is not waited for")
    }
}
