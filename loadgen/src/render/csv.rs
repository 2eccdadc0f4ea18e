//! The report as tables for spreadsheets and scripts: comma-separated values, as RFC 4180 has them but for the
//! ends of lines.

use clap::ValueEnum;
use csv::{Terminator, WriterBuilder};

use super::{all_routes, clean::clean, route_views, warmup_begins, words};
use crate::report::{
    ClientOutcomes, Latency, Report, ResourceRow, RouteConservation, Run, TimelineRow,
};

/// What stands in the place of a route's name in rows about all of them.
const ALL: &str = "*";

/// One of the tables that a report has.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Table {
    /// A row a route and run: outcomes, both views, both sides' counts; the route * is all of them
    Routes,
    /// A row a slot of time, those of the warm-up before 0
    Timeline,
    /// A row a point of a percentile curve
    Percentiles,
    /// A row a moment: the process, its runtime and its pools
    Resources,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Routes, Self::Timeline, Self::Percentiles, Self::Resources];

    /// Its name, which is that of its file without the ending.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Timeline => "timeline",
            Self::Percentiles => "percentiles",
            Self::Resources => "resources",
        }
    }
}

/// A table of the report, with a line of names above it. A figure that is not known is an empty cell; units are in
/// the names, as in the JSON. What a spreadsheet would take for a formula in a name has a `'` before it.
#[must_use]
pub fn csv(report: &Report, table: Table) -> String {
    let rows = match table {
        Table::Routes => routes(report),
        Table::Timeline => timeline(report),
        Table::Percentiles => percentiles(report),
        Table::Resources => resources(report),
    };
    let mut writer =
        WriterBuilder::new().terminator(Terminator::Any(b'\n')).from_writer(Vec::new());
    for row in rows {
        // Memory takes it, and rows are equally long.
        writer.write_record(row).expect("the rows of a table have the same columns");
    }
    let bytes = writer.into_inner().expect("memory takes all there is");
    String::from_utf8_lossy(&bytes).into_owned()
}

type Row = Vec<String>;

fn routes(report: &Report) -> Vec<Row> {
    let mut head = names(["run", "route", "rate"]);
    head.extend(ClientOutcomes::default().named().map(|(name, _)| name.to_owned()));
    for view in VIEWS {
        head.extend(FIGURES.map(|figure| format!("{view}_{figure}")));
    }
    head.extend(names(["finished", "recorded", "not_seen", "foreign", "timed_out", "unexplained"]));
    let row = |run: &Run,
               route,
               rate: f64,
               outcomes: &ClientOutcomes,
               views: [&Latency; 4],
               both: Option<&RouteConservation>| {
        let mut row = vec![text(&run.name), route, rate.to_string()];
        row.extend(outcomes.named().map(|(_, count)| count.to_string()));
        row.extend(views.into_iter().flat_map(figures));
        row.extend(match both {
            None => [const { String::new() }; 6],
            Some(both) => [
                both.finished,
                both.recorded,
                both.not_seen,
                both.foreign,
                both.timed_out,
                both.unexplained,
            ]
            .map(|count| count.to_string()),
        });
        row
    };
    let rows = report.runs.iter().flat_map(|run| {
        let client = &run.client;
        let all = row(
            run,
            ALL.to_owned(),
            client.rate,
            &client.outcomes,
            all_routes(run).map(|(_, view)| view),
            None,
        );
        [all].into_iter().chain(client.routes.iter().map(move |route| {
            let views = route_views(route).map(|(_, view)| view);
            row(
                run,
                text(&route.route),
                route.rate,
                &route.outcomes,
                views,
                route.conservation.as_ref(),
            )
        }))
    });
    [head].into_iter().chain(rows).collect()
}

/// As the columns of the views begin, in their order.
const VIEWS: [&str; 4] = ["response", "service", "server", "outside"];
const FIGURES: [&str; 9] =
    ["count", "mean_us", "min_us", "p50_us", "p90_us", "p95_us", "p99_us", "p999_us", "max_us"];

fn figures(latency: &Latency) -> [String; 9] {
    let of = &latency.summary;
    let [mean, min, p50, p90, p95, p99, p999, max] =
        [of.mean_us, of.min_us, of.p50_us, of.p90_us, of.p95_us, of.p99_us, of.p999_us, of.max_us]
            .map(maybe);
    [of.count.to_string(), mean, min, p50, p90, p95, p99, p999, max]
}

fn timeline(report: &Report) -> Vec<Row> {
    let mut head = names(["run", "phase", "at_s", "width_s", "completed", "failed", "dropped"]);
    head.extend(ClientOutcomes::default().named().map(|(name, _)| name.to_owned()));
    head.extend(names(["p50_us", "p99_us"]));
    let row = |run: &Run, phase: &str, at_s: f64, slot: &TimelineRow| {
        let mut row =
            vec![text(&run.name), phase.to_owned(), at_s.to_string(), slot.width_s.to_string()];
        row.extend([slot.completed, slot.failed, slot.dropped].map(|count| count.to_string()));
        // Older reports tell successes and nothing else apart.
        let told = slot.outcomes.total() > 0;
        row.extend(slot.outcomes.named().map(|(name, count)| match name {
            "ok" => slot.ok.to_string(),
            _ if told || slot.failed == 0 => count.to_string(),
            _ => String::new(),
        }));
        row.extend([slot.p50_us, slot.p99_us].map(maybe));
        row
    };
    let rows = report.runs.iter().flat_map(|run| {
        let begin = warmup_begins(run);
        let warmup = run.warmup.iter().map(move |slot| row(run, "warmup", slot.at_s + begin, slot));
        warmup.chain(run.timeline.iter().map(move |slot| row(run, "measured", slot.at_s, slot)))
    });
    [head].into_iter().chain(rows).collect()
}

fn percentiles(report: &Report) -> Vec<Row> {
    let curve = |run: &Run, route: &str, view: &str, latency: &Latency| -> Vec<Row> {
        let point = |(quantile, us): &(f64, f64)| {
            vec![
                text(&run.name),
                route.to_owned(),
                view.to_owned(),
                quantile.to_string(),
                us.to_string(),
            ]
        };
        latency.curve.iter().map(point).collect()
    };
    let rows = report.runs.iter().flat_map(|run| {
        let all = all_routes(run).map(|(view, latency)| curve(run, ALL, view, latency));
        let routes = run.client.routes.iter().flat_map(move |route| {
            let name = text(&route.route);
            route_views(route).map(|(view, latency)| curve(run, &name, view, latency))
        });
        all.into_iter().chain(routes).flatten()
    });
    [names(["run", "route", "view", "quantile", "us"])].into_iter().chain(rows).collect()
}

fn resources(report: &Report) -> Vec<Row> {
    // Every pool of any run has its columns.
    let mut pools = words::pools(report.runs.iter().flat_map(|run| &run.resources));
    pools.sort_by(|a, b| a.label.cmp(&b.label));
    let mut head = names([
        "run",
        "at_s",
        "rss_bytes",
        "cpu_s",
        "in_flight",
        "busy_ratio",
        "queue_depth",
        "canary_us",
    ]);
    for pool in &pools {
        let columns = ["max", "in_use", "idle", "waiting"];
        head.extend(columns.map(|column| text(&format!("{}_{column}", pool.label))));
    }
    let row = |run: &Run, moment: &ResourceRow| {
        let mut row = vec![
            text(&run.name),
            moment.at_s.to_string(),
            maybe(moment.rss_bytes),
            maybe(moment.cpu_s),
            moment.in_flight.to_string(),
            maybe(moment.busy_ratio),
            maybe(moment.queue_depth),
            maybe(moment.canary_us),
        ];
        for pool in &pools {
            row.extend(pool.at(moment).map_or([const { String::new() }; 4], |pool| {
                [pool.max, pool.in_use, pool.idle, pool.waiting].map(|count| count.to_string())
            }));
        }
        row
    };
    let rows = report
        .runs
        .iter()
        .flat_map(|run| run.resources.iter().map(|moment| row(run, moment)).collect::<Vec<_>>());
    [head].into_iter().chain(rows).collect()
}

fn names<const N: usize>(names: [&str; N]) -> Row {
    names.map(str::to_owned).to_vec()
}

fn maybe(figure: Option<impl ToString>) -> String {
    figure.map_or_else(String::new, |figure| figure.to_string())
}

/// A name: of one line, and never a formula; nor is what follows a semicolon, at which many a spreadsheet parts cells
/// whatever stands around them.
fn text(name: &str) -> String {
    let cell = |part: &str| {
        let formula = part
            .trim_start()
            .starts_with(['=', '+', '-', '@', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}']);
        if formula { format!("'{part}") } else { part.to_owned() }
    };
    clean(name).split(';').map(cell).collect::<Vec<_>>().join(";")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{render::fixture, report::PoolRow};

    fn parsed(report: &Report, table: Table) -> Vec<BTreeMap<String, String>> {
        let text = csv(report, table);
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        reader.deserialize().map(|row| row.expect("a row has the columns of the head")).collect()
    }

    #[test]
    fn each_route_has_a_row_a_run_below_that_of_all() {
        let report = fixture::passed();
        let rows = parsed(&report, Table::Routes);
        let named: Vec<_> = rows.iter().map(|row| (&*row["run"], &*row["route"])).collect();
        assert_eq!(
            named[..3],
            [
                ("closed", "*"),
                ("closed", "GET /entities/{id}"),
                ("closed", "GET /recommendations/{user_id}")
            ]
        );
        assert_eq!(named[6], ("open", "*"));
        assert_eq!(rows.len(), 12);
        let route = &rows[1];
        assert_eq!(
            (&*route["rate"], &*route["ok"], &*route["recorded"]),
            ("5200", "26000", "26000")
        );
        let p99 = report.runs[0].client.routes[0].server_time.summary.p99_us.expect("enough");
        assert_eq!(route["server_p99_us"], p99.to_string());
        assert_eq!(rows[5]["response_p999_us"], "", "1,600 requests are too few for p99.9");
    }

    #[test]
    fn the_warm_up_ends_where_the_timeline_begins() {
        let rows = parsed(&fixture::passed(), Table::Timeline);
        assert_eq!(
            (&*rows[0]["phase"], &*rows[0]["at_s"], &*rows[0]["ok"]),
            ("warmup", "-1", "1000")
        );
        assert_eq!((&*rows[7]["at_s"], &*rows[8]["at_s"]), ("-0.125", "0"));
        assert_eq!((&*rows[8]["phase"], rows.len()), ("measured", 2 * (8 + 40)));
    }

    #[test]
    fn curves_and_pools_are_there_in_full() {
        let report = fixture::passed();
        let points = parsed(&report, Table::Percentiles);
        let curve = &report.runs[0].client.response_time.curve;
        assert_eq!(points[1]["view"], "response time");
        assert_eq!(points[1]["quantile"].parse(), Ok(curve[1].0));
        assert!(points.iter().any(|row| row["route"] == "GET /search" && row["view"] == "outside"));
        let moments = parsed(&report, Table::Resources);
        assert_eq!((&*moments[1]["db_in_use"], &*moments[1]["db_waiting"]), ("49", "150"));
        let mut report = report;
        for row in &mut report.runs[0].resources {
            let kind = "redis".to_owned();
            row.pools.push(PoolRow { kind, in_use: 3, ..row.pools[0].clone() });
        }
        let several = parsed(&report, Table::Resources);
        let row = &several[1];
        assert_eq!((&*row["db (sqlx)_in_use"], &*row["db (redis)_in_use"]), ("49", "3"));
        assert_eq!((&*moments[0]["rss_bytes"], &*moments[0]["busy_ratio"]), ("90000000", "0.75"));
    }

    #[test]
    fn no_name_is_a_formula() {
        for (name, cell) in [
            ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
            (" +1", "' +1"),
            // A tab is no tab any more, and what follows it begins nothing.
            ("\t-1", "\u{fffd}-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("GET /a=b", "GET /a=b"),
            ("GET /x;=HYPERLINK(1);a; -1", "GET /x;'=HYPERLINK(1);a;' -1"),
        ] {
            assert_eq!(text(name), cell);
        }
        let mut report = fixture::passed();
        report.runs[0].client.routes[0].route = "=1+1".to_owned();
        report.runs[0].resources[0].pools[0].name = "@pool".to_owned();
        assert!(csv(&report, Table::Routes).contains("\nclosed,'=1+1,"));
        assert!(csv(&report, Table::Resources).contains(",'@pool_max,"));
    }

    #[test]
    fn names_with_commas_and_quotes_stay_in_their_cell() {
        let mut report = fixture::passed();
        report.runs[0].name = "a,\"b\"\nc".to_owned();
        assert_eq!(parsed(&report, Table::Routes)[0]["run"], "a,\"b\"\u{fffd}c");
    }
}
