//! A report like those of real runs, for the tests of every rendering.

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use parallax_middleware::{
    CacheView, LatencyHistogram, LatencySummary, LimiterView, LoadView, Outcome, OutcomesView,
    PerfView, PhaseTime, PoolView, ProcessView, RouteView, RuntimeView, samples_needed,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{
    attribution::{Part, Parts},
    memory,
    outcome::ClientOutcome,
    report::{
        Check, ClientOutcomes, ClientRoute, ClientView, Conservation, Environment, ErrorCount,
        GeneratorView, Hint, Latency, LittlesLaw, Model, Pairs, PlanSummary, PoolRow, Reason,
        Report, ResourceRow, RouteConservation, Run, SCHEMA, ServerConservation, Settling, Stall,
        ThresholdResult, TimelineRow, Unit, Validity, Verdict,
    },
    sink::{Sample, ServerView},
    statistics::{self, Estimate, Window},
    target::Answer,
    threshold::{Op, Threshold},
};

const ROUTES: [(&str, u64, f64); 5] = [
    ("GET /entities/{id}", 26_000, 90.0),
    ("GET /recommendations/{user_id}", 14_000, 420.0),
    ("GET /search", 6_000, 900.0),
    ("GET /trending", 2_400, 130.0),
    ("POST /interactions", 1_600, 2_600.0),
];
const MEASURED_S: f64 = 5.0;

/// Two runs, memory, all requirements held.
pub(crate) fn passed() -> Report {
    // It is judged like a real one, which takes a while.
    static PASSED: LazyLock<Report> = LazyLock::new(judged);
    PASSED.clone()
}

fn judged() -> Report {
    let mut rng = SmallRng::seed_from_u64(1);
    let runs = vec![run(&mut rng, Model::Closed), run(&mut rng, Model::Open)];
    let memory = memory::fit(
        &[1_250, 2_500, 5_000, 7_500, 10_000_u64]
            .into_iter()
            .flat_map(|n| [(n, 48_000_000 + 4_100 * n), (n, 48_900_000 + 4_050 * n)])
            .collect::<Vec<_>>(),
        100_000,
    )
    .expect("enough points");
    let projected = memory::judge(&memory, 2_147_483_648.0, Op::Less).judged(
        "memory at 100,000 entities < 2GiB",
        "",
        Op::Less,
        2_147_483_648.0,
        Unit::Bytes,
    );
    let mut thresholds: Vec<_> = runs[1].thresholds.clone();
    thresholds.push(projected);
    Report {
        schema: SCHEMA.to_owned(),
        title: "Recommendation service".to_owned(),
        started_at_unix_s: 1_790_000_000.25,
        interrupted: false,
        environment: Environment {
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            cpus: 2,
            workers: 2,
            profile: "release".to_owned(),
            parallax_version: "0.1.0".to_owned(),
            settings: vec![
                ("database".to_owned(), "SQLite, in a temporary folder".to_owned()),
                ("cache".to_owned(), "in process".to_owned()),
                ("entities".to_owned(), "10,000".to_owned()),
            ],
        },
        verdict: Verdict::Pass,
        grade: statistics::grade(&thresholds),
        thresholds,
        runs: runs.into_iter().map(|run| Run { thresholds: Vec::new(), ..run }).collect(),
        memory: Some(memory),
    }
}

/// The second run was limited, and a requirement failed.
pub(crate) fn invalid() -> Report {
    let mut report = passed();
    let run = &mut report.runs[1];
    run.validity = Validity {
        verdict: Verdict::Invalid,
        reasons: vec![
            Reason {
                rule: "masquerade".to_owned(),
                message: "91.2 % of requests were rejected with 429 in 12.3 µs at the median, faster \
                          than half of the 412 µs of a success; let the load pass by the limiter, or \
                          raise its limit"
                    .to_owned(),
            },
            Reason { rule: "lag".to_owned(), message: "the generator was late".to_owned() },
        ],
    };
    run.verdict = Verdict::Invalid;
    run.errors = vec![ErrorCount { message: "the exchange broke off".to_owned(), count: 1_234 }];
    run.connections = Some(5_678);
    let limited = run.conservation.outcomes.ok;
    run.conservation.outcomes = ClientOutcomes { limited, ..ClientOutcomes::default() };
    run.client.outcomes = run.conservation.outcomes;
    run.client.rate = 0.0;
    run.client.response_time = Latency::default();
    report.thresholds[0].verdict = Verdict::Fail;
    report.verdict = Verdict::Invalid;
    report.grade = None;
    report
}

/// The second run may have been late, or not.
pub(crate) fn doubtful() -> Report {
    let mut report = passed();
    let run = &mut report.runs[1];
    let rule = "lag".to_owned();
    let message = "the generator itself may have been late: lag p99 1.01 ms".to_owned();
    run.validity =
        Validity { verdict: Verdict::Inconclusive, reasons: vec![Reason { rule, message }] };
    run.verdict = Verdict::Inconclusive;
    report.verdict = Verdict::Inconclusive;
    report.grade = None;
    report
}

/// One plan, run by calls and over a connection; the second run is invalid.
pub(crate) fn transports() -> Report {
    let mut report = passed();
    let call = report.runs[0].clone();
    let mut connection = Run { name: "tcp:h2".to_owned(), ..call.clone() };
    connection.plan.transport = "tcp:h2".to_owned();
    connection.validity.verdict = Verdict::Invalid;
    report.runs = vec![call, connection];
    report
}

/// A run in which nothing happened, with a name that means harm.
pub(crate) fn hostile_and_empty() -> Report {
    let hostile = "<script>alert(\"x\")</script>\u{1b}[31m&";
    let mut report = passed();
    report.title = hostile.to_owned();
    report.runs.truncate(1);
    report.memory = None;
    report.environment.settings = vec![(hostile.to_owned(), hostile.to_owned())];
    for result in &mut report.thresholds {
        result.expression = hostile.to_owned();
        result.note = hostile.to_owned();
        result.run = hostile.to_owned();
        result.low = None;
        result.observed = None;
        result.margin = None;
    }
    let run = &mut report.runs[0];
    run.name = hostile.to_owned();
    run.errors = vec![ErrorCount { message: hostile.to_owned(), count: 1 }];
    run.plan.transport = hostile.to_owned();
    run.plan.mix = vec![(hostile.to_owned(), 1)];
    run.plan.tags = [(hostile.to_owned(), hostile.to_owned())].into();
    run.checks = vec![Check {
        name: hostile.to_owned(),
        passed: 0,
        failed: 1,
        first_failure: Some(hostile.to_owned()),
    }];
    run.validity.reasons = vec![Reason { rule: hostile.to_owned(), message: hostile.to_owned() }];
    run.server = None;
    run.conservation = Conservation::default();
    run.pairs = Pairs::default();
    run.timeline.truncate(1);
    run.resources.clear();
    run.client.routes.truncate(1);
    let route = &mut run.client.routes[0];
    route.route = hostile.to_owned();
    for latency in [
        &mut run.client.response_time,
        &mut run.client.service_time,
        &mut run.client.lag,
        &mut route.response_time,
        &mut route.service_time,
        &mut route.server_time,
        &mut route.outside,
    ] {
        *latency = Latency::default();
    }
    report
}

/// A run that a plan was too much for: dropped arrivals, timeouts and rejections, which come and go.
pub(crate) fn overloaded() -> Report {
    let mut report = passed();
    report.runs.remove(0);
    let run = &mut report.runs[0];
    run.conservation.unexplained = 3;
    run.littles_law =
        Some(LittlesLaw { sampled: 12.0, expected: 7.0, tolerance: 0.4, samples: 240 });
    run.settling = Some(Settling { transient_s: 3.5, slots: 40, stationary: false });
    for (slot, row) in (0_u64..).zip(&mut run.timeline) {
        if !(10..25).contains(&slot) {
            continue;
        }
        let bad = (slot - 9) * 20;
        row.outcomes =
            ClientOutcomes { ok: row.ok - 2 * bad, timeout: bad, limited: bad, ..row.outcomes };
        (row.ok, row.completed, row.failed, row.dropped) =
            (row.ok - 2 * bad, row.ok - 2 * bad, 2 * bad, bad / 2);
        row.p50_us = row.p50_us.map(|us| us * (slot - 8) as f64);
        row.p99_us = row.p99_us.map(|us| us * (slot - 8) as f64);
    }
    run.warmup[0].p99_us = Some(900_000.0);
    report.thresholds[0].verdict = Verdict::Fail;
    report.verdict = Verdict::Fail;
    report.grade = None;
    report
}

/// A distribution with its curve, up to the last quantile that has three samples past it.
pub(crate) fn latency(histogram: &LatencyHistogram) -> Latency {
    let mut curve = Vec::new();
    let mut exponent = 0.0_f64;
    loop {
        let q = 1.0 - 10_f64.powf(-exponent);
        if samples_needed(q) > histogram.count() {
            break;
        }
        if let Some(value) = histogram.quantile(q) {
            curve.push((q, value.as_secs_f64() * 1e6));
        }
        exponent += 0.05;
    }
    Latency { summary: histogram.summary(), curve }
}

/// One route's histograms, and all routes' in the end.
#[derive(Default)]
struct Views {
    response: LatencyHistogram,
    service: LatencyHistogram,
    server: LatencyHistogram,
    outside: LatencyHistogram,
}

fn run(rng: &mut SmallRng, model: Model) -> Run {
    let closed = model == Model::Closed;
    let name = if closed { "closed" } else { "open" };
    let total: u64 = ROUTES.iter().map(|(_, n, _)| n).sum();
    let mut all = Views::default();
    let mut lag = LatencyHistogram::new();
    let mut windows = vec![Window::default(); 40];
    let mut all_parts = Parts::default();
    let mut routes = Vec::new();
    let mut server_routes = Vec::new();
    for (route, n, typical_us) in ROUTES {
        let mut views = Views::default();
        let mut parts = Parts::default();
        for i in 0..n {
            let tail: f64 = rng.random::<f64>();
            // A body around the typical time, and one in fifty that had to wait.
            let wait = if tail < 0.02 { 40.0 * rng.random::<f64>() } else { 0.0 };
            let handler = typical_us * (0.7 + 0.8 * rng.random::<f64>().powi(3));
            let waited = typical_us * wait;
            let server = handler + waited;
            let outside = 3.0 + 9.0 * rng.random::<f64>().powi(4);
            let late = if closed { 0.4 } else { 14.0 + 60.0 * rng.random::<f64>().powi(8) };
            let queue = if closed { 900.0 } else { 0.0 };
            let service = server + outside + queue * rng.random::<f64>();
            let micros = |us: f64| Duration::from_secs_f64(us / 1e6);
            views.server.record(micros(server));
            views.outside.record(micros(service - server));
            views.service.record(micros(service));
            views.response.record(micros(service + late));
            windows[(i * 40 / n) as usize].ok.record(micros(service + late));
            lag.record(micros(late));
            parts.add(
                &Sample {
                    step: 0,
                    intended: Duration::from_secs_f64(MEASURED_S).mul_f64(i as f64 / n as f64),
                    lag: micros(late),
                    service_time: micros(service),
                    waited: if closed { Duration::ZERO } else { micros(0.3 * (service - server)) },
                    handed: None,
                    answer: Answer { bytes: 420, ..Answer::without_response(ClientOutcome::Ok) },
                    server: Some(ServerView {
                        route: 0,
                        first_byte: None,
                        server_time: micros(server),
                        outcome: Outcome::Ok,
                        phases: vec![
                            PhaseTime::new(2, micros(waited)),
                            PhaseTime::new(3, micros(0.4 * handler)),
                        ],
                        handler: micros(0.6 * handler),
                    }),
                },
                Duration::from_secs_f64(MEASURED_S / 40.0),
            );
        }
        let (method, template) = route.split_once(' ').expect("a method and a template");
        server_routes.push(RouteView {
            method: method.to_owned(),
            route: template.to_owned(),
            requests: n,
            in_flight: 0,
            outcomes: OutcomesView { ok: n, ..OutcomesView::default() },
            bypassed: n,
            paired: n,
            latency: LatencySummary::default(),
            time_to_first_byte: LatencySummary::default(),
            limited_latency: LatencySummary::default(),
            failed_latency: LatencySummary::default(),
            phases: BTreeMap::new(),
            overlap: None,
            streams: None,
            response_bytes: 420 * n,
            load: Some(LoadView {
                outcomes: OutcomesView { ok: n, ..OutcomesView::default() },
                latency: views.server.summary(),
                time_to_first_byte: views.server.summary(),
                response_bytes: 420 * n,
                ..LoadView::default()
            }),
            limiter: None,
        });
        all.response.merge(&views.response);
        all.service.merge(&views.service);
        all.server.merge(&views.server);
        all.outside.merge(&views.outside);
        all_parts.merge(&parts);
        routes.push(ClientRoute {
            route: route.to_owned(),
            rate: n as f64 / MEASURED_S,
            outcomes: ClientOutcomes { ok: n, ..ClientOutcomes::default() },
            response_time: latency(&views.response),
            service_time: latency(&views.service),
            server_time: latency(&views.server),
            outside: latency(&views.outside),
            conservation: Some(RouteConservation {
                finished: n,
                recorded: n,
                ..RouteConservation::default()
            }),
            attribution: parts.attribute(part_name, 7),
        });
    }
    let outcomes = ClientOutcomes { ok: total, ..ClientOutcomes::default() };
    let judged = |estimate: Estimate, expression: &str| -> ThresholdResult {
        let threshold = Threshold::parse(expression).expect("it is a threshold");
        estimate.for_threshold(&threshold, name)
    };
    let successes: Vec<u64> = windows.iter().map(|window| window.ok.count()).collect();
    let counts: Vec<(u64, u64)> = successes.iter().map(|n| (*n, 0)).collect();
    let width = Duration::from_millis(125);
    let thresholds = vec![
        judged(
            statistics::judge_quantile(&windows, 0.95, Duration::from_millis(200), Op::Less),
            "p95 < 200ms",
        ),
        judged(statistics::judge_rate(&successes, width, 1_000.0, Op::AtLeast), "rate >= 1000/s"),
        judged(statistics::judge_failures(&counts, 0.001, Op::Less), "errors < 0.1%"),
    ];
    let timeline = windows
        .iter()
        .enumerate()
        .map(|(i, window)| TimelineRow {
            at_s: i as f64 * 0.125,
            width_s: 0.125,
            ok: window.ok.count(),
            completed: window.ok.count(),
            failed: 0,
            outcomes: ClientOutcomes { ok: window.ok.count(), ..ClientOutcomes::default() },
            dropped: 0,
            p50_us: window.ok.summary().p50_us,
            p99_us: window.ok.summary().p99_us,
        })
        .collect();
    let mut wake_ups = LatencyHistogram::new();
    (0..500).for_each(|n| wake_ups.record(Duration::from_micros(12 + n * 7 % 60)));
    let mut gap = LatencyHistogram::new();
    for n in 0..3_000 {
        gap.record(Duration::from_nanos(90_000 + n * 7 % 20_000));
    }
    Run {
        checks: vec![Check {
            name: "the entity has a name".to_owned(),
            passed: total - 3,
            failed: 3,
            first_failure: Some("the answer has nothing at \"/name\"".to_owned()),
        }],
        generator: Some(GeneratorView {
            arrival_gap: (!closed).then(|| latency(&gap)),
            wake_ups: Some(latency(&wake_ups)),
            ns_per_request: Some(412.5),
            cpu_share: Some(0.043),
        }),
        name: name.to_owned(),
        plan: PlanSummary {
            model,
            users: closed.then_some(1_000),
            rate: (!closed).then_some(10_000.0),
            arrivals: (!closed).then(|| "constant".to_owned()),
            stages: Vec::new(),
            requests: None,
            think_time_s: closed.then_some(0.0),
            random_think_time: false,
            pacing_s: None,
            warmup_s: 1.0,
            duration_s: MEASURED_S,
            max_in_flight: 4_096,
            timeout_s: 10.0,
            transport: "direct".to_owned(),
            seed: 42,
            mix: vec![
                ("entity".to_owned(), 13),
                ("recommendations".to_owned(), 7),
                ("search".to_owned(), 3),
                ("trending".to_owned(), 1),
                ("interactions".to_owned(), 1),
            ],
            bypasses_limiter: true,
            pacer: "precise".to_owned(),
            topology: "shared".to_owned(),
            virtual_time: false,
            tags: [("build".to_owned(), "4711".to_owned())].into(),
        },
        started_at_unix_s: 1_790_000_001.5,
        measured_s: MEASURED_S,
        interrupted: false,
        validity: Validity { verdict: Verdict::Pass, reasons: Vec::new() },
        verdict: Verdict::Pass,
        conservation: Conservation {
            scheduled: total,
            dropped: 0,
            sent: total,
            unsent: 0,
            outcomes,
            in_flight: 0,
            server: Some(ServerConservation {
                entered: total,
                recorded: total,
                not_seen: 0,
                foreign: 0,
            }),
            unexplained: 0,
        },
        errors: Vec::new(),
        connections: None,
        client: ClientView {
            rate: total as f64 / MEASURED_S,
            response_time: latency(&all.response),
            service_time: latency(&all.service),
            lag: latency(&lag),
            failed: Latency::default(),
            limited: Latency::default(),
            outcomes,
            response_bytes: 420 * total,
            routes,
        },
        server: Some(PerfView {
            schema: PerfView::SCHEMA.to_owned(),
            uptime_s: 14.5,
            window_s: Some(MEASURED_S),
            routes: server_routes,
            limiter: Some(LimiterView {
                admitted: 12,
                limited: 0,
                bypassed: total,
                ..LimiterView::default()
            }),
            pools: vec![PoolView {
                name: "db".to_owned(),
                kind: "sqlx".to_owned(),
                max: 50,
                size: 50,
                in_use: 50,
                waiting: 180,
                acquired: 48_000,
                wait: latency(&all.outside).summary,
                hold: latency(&all.server).summary,
                ..PoolView::default()
            }],
            caches: vec![CacheView {
                name: "cache".to_owned(),
                hits: 40_000,
                misses: 10_000,
                hit_ratio: Some(0.8),
            }],
            elsewhere: BTreeMap::new(),
            process: ProcessView { rss_bytes: Some(92_000_000), cpu_s: Some(8.1) },
            runtime: Some(RuntimeView {
                workers: 2,
                busy_ratio: Some(0.81),
                global_queue_depth: 0,
                alive_tasks: 9,
            }),
        }),
        pairs: Pairs {
            paired: total,
            server_time: latency(&all.server),
            time_to_first_byte: latency(&all.server),
            outside: latency(&all.outside),
            negative: 0,
        },
        attribution: all_parts.attribute(part_name, 7),
        thresholds,
        hints: vec![Hint {
            rule: "pool".to_owned(),
            route: Some("GET /search".to_owned()),
            message: "p99 of GET /search: 71 % waiting for db (50 of 50 in use, 180 waiting); holds are flat, so \
                      size is the limit"
                .to_owned(),
        }],
        littles_law: Some(LittlesLaw {
            sampled: 7.1,
            expected: 7.0,
            tolerance: 0.4,
            samples: 240,
        }),
        settling: Some(Settling { transient_s: 0.25, slots: 40, stationary: true }),
        stalls: vec![Stall { at_s: 2.5, width_s: 0.125, routes: 5, slow: 61, requests: 1_250 }],
        warmup: (0..8)
            .map(|i| TimelineRow {
                at_s: 0.125 * f64::from(i),
                width_s: 0.125,
                ok: 1_000,
                completed: 990,
                failed: 0,
                outcomes: ClientOutcomes { ok: 1_000, ..ClientOutcomes::default() },
                dropped: 0,
                p50_us: Some(900.0 - 60.0 * f64::from(i)),
                p99_us: Some(9_000.0 - 600.0 * f64::from(i)),
            })
            .collect(),
        timeline,
        resources: (0_u32..6)
            .map(|i| ResourceRow {
                at_s: f64::from(i),
                rss_bytes: Some(90_000_000 + 400_000 * u64::from(i)),
                cpu_s: Some(1.6 * f64::from(i)),
                in_flight: 7,
                busy_ratio: Some(0.75 + 0.01 * f64::from(i)),
                queue_depth: Some(3),
                canary_us: Some(1_250.0 + 100.0 * f64::from(i)),
                pools: vec![PoolRow {
                    name: "db".to_owned(),
                    kind: "sqlx".to_owned(),
                    max: 50,
                    in_use: 50 - u64::from(i),
                    idle: u64::from(i),
                    waiting: 30 * u64::from(6 - i),
                }],
            })
            .collect(),
    }
}

fn part_name(part: Part) -> String {
    let name = match part {
        Part::Lag => "lag",
        Part::Runtime => "runtime",
        Part::Outside => "outside",
        Part::Phase(2) => "pool_wait:db",
        Part::Phase(_) => "query:db",
        Part::Handler => "handler",
    };
    name.to_owned()
}
