//! What is exported, by name: the one list that all exporters share.
//!
//! What OpenTelemetry's conventions name has their name and their labels, as Prometheus spells them; what
//! Prometheus' own clients tell of the process has theirs. All else begins with `parallax_`.

use std::time::Duration;

use crate::{
    counts::{RefusedTokens, RouteCounts, TrafficCounts},
    histogram::LatencyHistogram,
    outcome::Outcome,
    route::{OVERFLOW, RouteKey},
    snapshot::{PoolKey, Snapshot},
};

/// Metrics of one name, which differ in their labels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) help: &'static str,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Names and values.
pub(crate) type Labels<'a> = [(&'static str, &'a str)];

#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Count(u64),
    Seconds(Duration),
    Times(&'a LatencyHistogram),
}

/// Takes the samples of a family.
pub(crate) type Sink<'a> = dyn FnMut(&Labels<'_>, Value<'_>) + 'a;

/// Something that takes what is exported.
pub(crate) trait Export {
    /// Takes a family: whatever `samples` puts into the sink that it is given, in this order. It may be
    /// nothing.
    fn family(&mut self, family: Family, samples: &dyn Fn(&mut Sink<'_>));
}

const METHOD: &str = "http_request_method";
const ROUTE: &str = "http_route";
const TRAFFIC: &str = "traffic";
const POOL: &str = "db_client_connection_pool_name";

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Histogram, help }
}

/// Hands out everything in a snapshot.
///
/// Histograms without a value are left out. Counters are there from the beginning, where it is known what there
/// will be to count: a rate needs the zero before the one.
pub(crate) fn export(snapshot: &Snapshot, to: &mut impl Export) {
    pools(snapshot, to);
    caches(snapshot, to);
    limiter(snapshot, to);
    process(snapshot, to);
    requests(snapshot, to);
    streams(snapshot, to);
    phases(snapshot, to);
}

/// Each route's traffic: that of its users, and that of authorised load where there was any.
fn traffic(snapshot: &Snapshot) -> impl Iterator<Item = (&RouteKey, &'static str, &TrafficCounts)> {
    snapshot.routes().flat_map(|(key, counts)| {
        let bypassed = Some(&counts.bypassed).filter(|bypassed| !bypassed.is_empty());
        let kinds = [Some(("users", &counts.users)), bypassed.map(|counts| ("bypassed", counts))];
        kinds.into_iter().flatten().map(move |(traffic, counts)| (key, traffic, counts))
    })
}

fn labels<'a>(key: &'a RouteKey, traffic: &'static str) -> [(&'static str, &'a str); 3] {
    [(METHOD, key.method()), (ROUTE, key.template()), (TRAFFIC, traffic)]
}

/// [`labels`], and one more.
fn with<'a>(
    key: &'a RouteKey,
    traffic: &'static str,
    name: &'static str,
    value: &'a str,
) -> [(&'static str, &'a str); 4] {
    let [method, route, traffic] = labels(key, traffic);
    [method, route, traffic, (name, value)]
}

fn requests(snapshot: &Snapshot, to: &mut impl Export) {
    const DURATION: Family = histogram(
        "http_server_request_duration_seconds",
        "From entry to the end of the body, without event streams: successes, rejections of a limiter, and all \
         other failures.",
    );
    to.family(DURATION, &|add| {
        for (key, traffic, counts) in traffic(snapshot) {
            let results =
                [("ok", &counts.ok), ("limited", &counts.limited), ("failed", &counts.failed)];
            for (result, times) in results {
                add(&with(key, traffic, "result", result), Value::Times(times));
            }
        }
    });
    const FIRST_BYTE: Family = histogram(
        "parallax_time_to_first_byte_seconds",
        "From entry to the head of the response: successes, and event streams as soon as they are open.",
    );
    to.family(FIRST_BYTE, &|add| {
        for (key, traffic, counts) in traffic(snapshot) {
            add(&labels(key, traffic), Value::Times(&counts.first_byte));
        }
    });
    const OUTCOMES: Family =
        counter("parallax_requests_total", "Requests that have ended, by how.");
    to.family(OUTCOMES, &|add| {
        for (key, traffic, counts) in traffic(snapshot) {
            for outcome in Outcome::ALL {
                let labels = with(key, traffic, "outcome", outcome.as_str());
                add(&labels, Value::Count(counts.outcome(outcome)));
            }
        }
    });
    const ACTIVE: Family =
        gauge("http_server_active_requests", "Requests that have entered and have not ended.");
    to.family(ACTIVE, &|add| {
        for (key, counts) in snapshot.routes() {
            let [method, route, _] = labels(key, "");
            add(&[method, route], Value::Count(counts.in_flight()));
        }
    });
    const BYTES: Family =
        counter("parallax_response_body_bytes_total", "Bytes of the bodies of responses.");
    to.family(BYTES, &|add| {
        for (key, traffic, counts) in traffic(snapshot) {
            add(&labels(key, traffic), Value::Count(counts.response_bytes));
        }
    });
    const PAIRED: Family = counter(
        "parallax_paired_requests_total",
        "Requests that have ended and carried a probe of a load generator in this process.",
    );
    to.family(PAIRED, &|add| add(&[], Value::Count(snapshot.paired())));
    const ROUTES: Family =
        gauge("parallax_routes", "Rows of routes: one a template and method that was asked for.");
    to.family(ROUTES, &|add| add(&[], Value::Count(snapshot.routes().count() as u64)));
    const OTHER: Family = counter(
        "parallax_other_requests_total",
        "Requests that entered to routes past the cap, which share the row \"(other)\".",
    );
    to.family(OTHER, &|add| {
        let other = snapshot.routes().filter(|(key, _)| key.template() == OVERFLOW);
        add(&[], Value::Count(other.map(|(_, counts): (_, &RouteCounts)| counts.entered).sum()));
    });
}

fn streams(snapshot: &Snapshot, to: &mut impl Export) {
    let each = |add: &mut Sink<'_>, value: fn(&TrafficCounts) -> Value<'static>| {
        for (key, traffic, counts) in traffic(snapshot) {
            if counts.streams.opened > 0 {
                add(&labels(key, traffic), value(counts));
            }
        }
    };
    const OPENED: Family =
        counter("parallax_streams_opened_total", "Event streams whose head went out.");
    to.family(OPENED, &|add| each(add, |counts| Value::Count(counts.streams.opened)));
    const ENDED: Family =
        counter("parallax_streams_ended_total", "Event streams that have ended, however.");
    to.family(ENDED, &|add| each(add, |counts| Value::Count(counts.streams.ended)));
    const OPEN: Family = gauge("parallax_open_streams", "Event streams that have not ended.");
    to.family(OPEN, &|add| each(add, |counts| Value::Count(counts.streams.open())));
    const SECONDS: Family = counter(
        "parallax_stream_seconds_total",
        "From entry to end, added up over the event streams that have ended.",
    );
    to.family(SECONDS, &|add| {
        each(add, |counts| Value::Seconds(Duration::from_nanos(counts.streams.sum_ns)));
    });
}

fn phases(snapshot: &Snapshot, to: &mut impl Export) {
    const DURATION: Family = histogram(
        "parallax_phase_duration_seconds",
        "All the time that a request spent in a phase, over the requests that were in it.",
    );
    to.family(DURATION, &|add| {
        for (key, traffic, counts) in traffic(snapshot) {
            for (phase, times) in &counts.phases.times {
                add(&with(key, traffic, "phase", phase), Value::Times(times));
            }
        }
    });
    const ELSEWHERE: Family = histogram(
        "parallax_elsewhere_phase_duration_seconds",
        "The time of a phase of work that was for no request.",
    );
    to.family(ELSEWHERE, &|add| {
        for (phase, times) in &snapshot.elsewhere {
            add(&[("phase", phase)], Value::Times(times));
        }
    });
    const OVERLAPPED: Family = counter(
        "parallax_overlapped_requests_total",
        "Requests that were in several phases at once, so that these add up to more than the requests took.",
    );
    let overlapped = || traffic(snapshot).filter(|(_, _, counts)| counts.phases.overlapped > 0);
    to.family(OVERLAPPED, &|add| {
        for (key, traffic, counts) in overlapped() {
            add(&labels(key, traffic), Value::Count(counts.phases.overlapped));
        }
    });
    const OVERLAP: Family =
        counter("parallax_overlap_seconds_total", "By how much these phases add up to more.");
    to.family(OVERLAP, &|add| {
        for (key, traffic, counts) in overlapped() {
            let overlap = Duration::from_nanos(counts.phases.overlap_ns);
            add(&labels(key, traffic), Value::Seconds(overlap));
        }
    });
}

fn limiter(snapshot: &Snapshot, to: &mut impl Export) {
    const REQUESTS: Family = counter(
        "parallax_limiter_requests_total",
        "Requests that a limiter with a way around it let through or turned away, or that went around it.",
    );
    to.family(REQUESTS, &|add| {
        let counts = snapshot.limiter;
        let decisions = [
            ("admitted", counts.admitted),
            ("limited", counts.limited),
            ("bypassed", counts.bypassed),
        ];
        for (decision, n) in decisions {
            add(&[("decision", decision)], Value::Count(n));
        }
    });
    const REFUSED: Family = counter(
        "parallax_refused_tokens_total",
        "Tokens that did not let their requests around a limiter, by why.",
    );
    to.family(REFUSED, &|add| {
        let RefusedTokens { malformed, forged, expired, out_of_scope } =
            snapshot.limiter.refused_tokens;
        let reasons = [
            ("malformed", malformed),
            ("forged", forged),
            ("expired", expired),
            ("out_of_scope", out_of_scope),
        ];
        for (reason, n) in reasons {
            add(&[("reason", reason)], Value::Count(n));
        }
    });
}

fn pools(snapshot: &Snapshot, to: &mut impl Export) {
    fn labels(key: &PoolKey) -> [(&'static str, &str); 2] {
        [(POOL, &key.name), ("kind", &key.kind)]
    }
    /// [`labels`], and one more.
    fn with<'a>(
        key: &'a PoolKey,
        name: &'static str,
        value: &'a str,
    ) -> [(&'static str, &'a str); 3] {
        let [pool, kind] = labels(key);
        [pool, kind, (name, value)]
    }
    let pools = &snapshot.pools;
    const WAIT: Family = histogram(
        "db_client_connection_wait_time_seconds",
        "From asking for a connection to the end of the wait, however it ended.",
    );
    to.family(WAIT, &|add| {
        pools.iter().for_each(|(key, counts)| add(&labels(key), Value::Times(&counts.wait)));
    });
    const USE: Family = histogram(
        "db_client_connection_use_time_seconds",
        "From getting a connection to giving it back.",
    );
    to.family(USE, &|add| {
        pools.iter().for_each(|(key, counts)| add(&labels(key), Value::Times(&counts.hold)));
    });
    const CREATE: Family =
        histogram("db_client_connection_create_time_seconds", "Opening a connection.");
    to.family(CREATE, &|add| {
        pools.iter().for_each(|(key, counts)| add(&labels(key), Value::Times(&counts.create)));
    });
    const RECYCLE: Family =
        histogram("parallax_pool_recycle_time_seconds", "Checking an idle connection.");
    to.family(RECYCLE, &|add| {
        pools.iter().for_each(|(key, counts)| add(&labels(key), Value::Times(&counts.recycle)));
    });
    const COUNT: Family = gauge("db_client_connection_count", "Connections, by state.");
    to.family(COUNT, &|add| {
        for (key, counts) in pools {
            for (state, n) in [("idle", counts.idle), ("used", counts.in_use)] {
                add(&with(key, "db_client_connection_state", state), Value::Count(n));
            }
        }
    });
    const MAX: Family = gauge(
        "db_client_connection_max",
        "The most connections that there may be; absent where the pool does not tell.",
    );
    to.family(MAX, &|add| {
        for (key, counts) in pools.iter().filter(|(_, counts)| counts.max > 0) {
            add(&labels(key), Value::Count(counts.max));
        }
    });
    const PENDING: Family =
        gauge("db_client_connection_pending_requests", "Those who wait for a connection.");
    to.family(PENDING, &|add| {
        pools.iter().for_each(|(key, counts)| add(&labels(key), Value::Count(counts.waiting)));
    });
    const TIMEOUTS: Family = counter(
        "db_client_connection_timeouts_total",
        "Waits that ran out of time: before a connection was free, while one was opened, while an idle one was \
         checked.",
    );
    to.family(TIMEOUTS, &|add| {
        for (key, counts) in pools {
            let stages = [
                ("wait", counts.wait_timeouts),
                ("create", counts.create_timeouts),
                ("recycle", counts.recycle_timeouts),
            ];
            for (stage, n) in stages {
                add(&with(key, "stage", stage), Value::Count(n));
            }
        }
    });
    const WAITS: Family = counter(
        "parallax_pool_waits_total",
        "Waits for a connection that have ended, by how, but those that ran out of time.",
    );
    to.family(WAITS, &|add| {
        for (key, counts) in pools {
            let results = [
                ("acquired", counts.acquired),
                ("cancelled", counts.cancelled),
                ("failed", counts.failed),
            ];
            for (result, n) in results {
                add(&with(key, "result", result), Value::Count(n));
            }
        }
    });
}

fn caches(snapshot: &Snapshot, to: &mut impl Export) {
    const LOOKUPS: Family =
        counter("parallax_cache_lookups_total", "Lookups in a cache, by whether it was there.");
    to.family(LOOKUPS, &|add| {
        for (cache, counts) in snapshot.caches() {
            for (result, n) in [("hit", counts.hits), ("miss", counts.misses)] {
                add(&[("cache", cache), ("result", result)], Value::Count(n));
            }
        }
    });
}

fn process(snapshot: &Snapshot, to: &mut impl Export) {
    let one = |to: &mut _, family, value: Option<Value<'static>>| {
        Export::family(to, family, &|add| {
            value.into_iter().for_each(|value| add(&[], value));
        });
    };
    let count = |n: usize| Value::Count(n as u64);
    let (process, runtime) = (&snapshot.process, snapshot.runtime);
    const UPTIME: Family = gauge("parallax_uptime_seconds", "Since the handle was made.");
    one(to, UPTIME, Some(Value::Seconds(snapshot.uptime)));
    const MEMORY: Family = gauge("process_resident_memory_bytes", "Resident memory.");
    one(to, MEMORY, process.rss_bytes.map(Value::Count));
    const CPU: Family =
        counter("process_cpu_seconds_total", "Processor time that the process has used.");
    one(to, CPU, process.cpu.map(Value::Seconds));
    const BUSY: Family = counter(
        "parallax_runtime_busy_seconds_total",
        "How long the workers of the tokio runtime were busy, added up over them.",
    );
    one(to, BUSY, runtime.and_then(|runtime| runtime.busy).map(Value::Seconds));
    const WORKERS: Family = gauge("parallax_runtime_workers", "Workers of the tokio runtime.");
    one(to, WORKERS, runtime.map(|runtime| count(runtime.workers)));
    const QUEUE: Family = gauge(
        "parallax_runtime_queue_depth",
        "Tasks that wait for a worker in the shared queue of the tokio runtime.",
    );
    one(to, QUEUE, runtime.map(|runtime| count(runtime.global_queue_depth)));
    const TASKS: Family =
        gauge("parallax_runtime_alive_tasks", "Tasks of the tokio runtime that have not ended.");
    one(to, TASKS, runtime.map(|runtime| count(runtime.alive_tasks)));
}
