//! Plots as inline SVG: latency by percentile, and what changes over time.
//!
//! Drawn in user units of a fixed view box and scaled by the page; colours come from the page's
//! classes, so that light and dark need no second drawing. Coordinates are written with one decimal,
//! which makes the same report the same bytes.

use std::fmt::Write;

use maud::{Markup, html};

use super::number;
use crate::report::{Stall, TimelineRow, Unit};

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const BOTTOM: f64 = 40.0;
/// Half of `p99.999`, the widest name of a percentile.
const TICK_HALF_WIDTH: f64 = 22.0;

/// One line of a plot.
pub(crate) struct Series<'a> {
    pub(crate) name: &'a str,
    /// Class of the page's style sheet: colour and dashes.
    pub(crate) class: &'a str,
    /// Quantile and microseconds, rising.
    pub(crate) curve: &'a [(f64, f64)],
}

/// A limit on a percentile: quantile, microseconds and how it is written.
pub(crate) struct Limit<'a> {
    pub(crate) quantile: f64,
    pub(crate) us: f64,
    pub(crate) expression: &'a str,
}

/// Latency by percentile. Along x every nine of the percentile takes the same room, so the tail, which
/// users feel, is as wide as the body; y is logarithmic.
pub(crate) fn percentiles(series: &[Series], limits: &[Limit]) -> Markup {
    let points = || series.iter().flat_map(|line| line.curve.iter().copied());
    // The first line is the one that limits are about.
    let judged: Vec<_> =
        series.first().map_or(&[][..], |line| line.curve).iter().filter(|p| drawn(p)).collect();
    let most_nines = points().filter(drawn).map(|(q, _)| nines(q)).fold(0.0, f64::max);
    if most_nines <= 0.0 {
        return nothing("Too few samples for a percentile plot.");
    }
    let limits: Vec<_> = limits
        .iter()
        .filter(|limit| drawn(&(limit.quantile, limit.us)) && nines(limit.quantile) <= most_nines)
        .collect();
    let values = points().filter(drawn).map(|(_, us)| us).chain(limits.iter().map(|l| l.us));
    let (low, high) = extremes(values).unwrap_or((1.0, 10.0));
    let y = Log::around(low, high);
    let frame = Frame { top: 18.0, bottom: HEIGHT - BOTTOM };
    let across = |q: f64| LEFT + nines(q) / most_nines * (WIDTH - LEFT - RIGHT);
    let up = |us: f64| frame.up(y.share(us));
    let ticks: Vec<_> = [
        ("0", 0.0),
        ("p50", 0.5),
        ("p90", 0.9),
        ("p99", 0.99),
        ("p99.9", 0.999),
        ("p99.99", 0.9999),
        ("p99.999", 0.99999),
    ]
    .into_iter()
    .filter(|(_, q)| nines(*q) <= most_nines + 1e-9)
    .collect();
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label="Latency by percentile" {
            @for tick in y.ticks() {
                (grid_line(up(tick), &number::seconds(tick / 1e6)))
            }
            @for (name, q) in &ticks {
                line.grid x1=(c(across(*q))) x2=(c(across(*q))) y1=(c(frame.top)) y2=(c(frame.bottom)) {}
                // The last name may be wider than the margin beside its tick.
                @let (at, anchor) = if across(*q) + TICK_HALF_WIDTH > WIDTH {
                    (WIDTH, "end")
                } else {
                    (across(*q), "middle")
                };
                text.tick x=(c(at)) y=(c(frame.bottom + 17.0)) text-anchor=(anchor) { (name) }
            }
            text.axis x=(c(LEFT + (WIDTH - LEFT - RIGHT) / 2.0)) y=(c(HEIGHT - 5.0)) text-anchor="middle" {
                "percentile, each nine equally wide"
            }
            @for limit in &limits {
                // Where the line runs above the limit, its words go below, and the other way round.
                @let broken = between(&judged, limit.quantile).is_some_and(|us| us > limit.us);
                @let words = if broken { 15.0 } else { -6.0 };
                @let (x, y) = (across(limit.quantile), up(limit.us));
                g.limit {
                    title { "limit: " (limit.expression) }
                    line x1=(c((x - 26.0).max(LEFT))) x2=(c((x + 26.0).min(WIDTH - RIGHT))) y1=(c(y)) y2=(c(y)) {}
                    text x=(c(x.clamp(LEFT + 40.0, WIDTH - RIGHT - 50.0))) y=(c(y + words)) text-anchor="middle" {
                        (limit.expression)
                    }
                }
            }
            @for line in series {
                @let shown: Vec<_> = line.curve.iter().filter(|point| drawn(point)).collect();
                @let at: Vec<_> = shown.iter().map(|(q, us)| Some((across(*q), up(*us)))).collect();
                g class={ "line " (line.class) } {
                    (polyline(&at))
                    @for (name, q) in &ticks[1..] {
                        @if let Some(us) = between(&shown, *q) {
                            circle cx=(c(across(*q))) cy=(c(up(us))) r="3" {
                                title { (line.name) ", " (name) ": " (number::duration(us)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A run over time: its warm-up before 0, its measured interval, and when everything was slow at once.
#[derive(Clone, Copy)]
pub(crate) struct Course<'a> {
    pub(crate) warmup: &'a [TimelineRow],
    /// When the warm-up began; 0 without one.
    pub(crate) begins: f64,
    pub(crate) timeline: &'a [TimelineRow],
    pub(crate) stalls: &'a [Stall],
    /// When the last thing happened that is drawn.
    pub(crate) ends: f64,
}

/// Two panels over one time axis: above, median and 99th percentile of each slot; below, successes per
/// second, with failed and dropped ones.
pub(crate) fn over_time(course: &Course) -> Markup {
    let timeline = course.timeline;
    if timeline.iter().all(|row| row.at_s + row.width_s <= 0.0) {
        return nothing("Nothing was recorded over time.");
    }
    let slots = || {
        let warmup = course.warmup.iter().map(|row| (row.at_s + course.begins, row));
        warmup.chain(timeline.iter().map(|row| (row.at_s, row)))
    };
    let times = |rows: &[TimelineRow]| {
        rows.iter().flat_map(|row| [row.p50_us, row.p99_us]).flatten().fold(0.0, f64::max)
    };
    // What is cold may be slow; it must not press the rest flat, and is cut instead.
    let (measured, cold) = (times(timeline), times(course.warmup));
    let latency = Linear::up_to(measured.max(cold.min(1.5 * measured)), Unit::Us);
    let failed = |row: &TimelineRow| per_second(row.failed, row);
    let bad = |row: &TimelineRow| failed(row) + per_second(row.dropped, row);
    let rates = slots().map(|(_, row)| per_second(row.completed, row).max(bad(row)));
    let rate = Linear::up_to(rates.fold(0.0, f64::max), Unit::PerSecond);
    let above = Frame { top: 18.0, bottom: 150.0 };
    let below = Frame { top: 176.0, bottom: HEIGHT - BOTTOM };
    let axis = TimeAxis::of(course);
    let line = |frame: &Frame, y: &Linear, value: &dyn Fn(&TimelineRow) -> Option<f64>| {
        let at: Vec<_> = slots()
            .map(|(at_s, row)| {
                let middle = axis.across(at_s + row.width_s / 2.0);
                value(row).map(|value| (middle, frame.up(y.share(value))))
            })
            .collect();
        polyline(&at)
    };
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label="Rate and latency over time" {
            (axis.marks(course, above.top, below.bottom))
            @for (frame, y) in [(&above, &latency), (&below, &rate)] {
                @for tick in y.ticks() {
                    (grid_line(frame.up(y.share(tick)), &y.label(tick)))
                }
            }
            (axis.ticks(&[&above, &below]))
            @for (at_s, row) in slots().filter(|(_, row)| row.failed > 0 || row.dropped > 0) {
                @let (left, right) = (axis.across(at_s), axis.across(at_s + row.width_s));
                @let (middle, top) = (below.up(rate.share(failed(row))), below.up(rate.share(bad(row))));
                g {
                    title { (row.failed) " failed, " (row.dropped) " dropped" }
                    @if row.failed > 0 {
                        rect.bad x=(c(left)) width=(c(right - left)) y=(c(middle)) height=(c(below.bottom - middle)) {}
                    }
                    @if row.dropped > 0 {
                        rect.dropped x=(c(left)) width=(c(right - left)) y=(c(top)) height=(c(middle - top)) {}
                    }
                }
            }
            g."line p99" { (line(&above, &latency, &|row| row.p99_us)) }
            g."line p50" { (line(&above, &latency, &|row| row.p50_us)) }
            g."line rate" { (line(&below, &rate, &|row| Some(per_second(row.completed, row)))) }
        }
    }
}

/// How requests ended, slot by slot, one band a kind on the other. `kinds` are the names of those to be drawn.
pub(crate) fn outcomes(course: &Course, kinds: &[&str]) -> Markup {
    let slots = course.warmup.iter().map(|row| (row.at_s + course.begins, row));
    let slots: Vec<_> = slots.chain(course.timeline.iter().map(|row| (row.at_s, row))).collect();
    let count = |row: &TimelineRow, kind: &str| {
        let named = row.outcomes.named();
        let ended = named.iter().find(|(name, _)| *name == kind).map(|(_, count)| *count);
        per_second(ended.unwrap_or(row.dropped), row)
    };
    let all = slots.iter().map(|(_, row)| kinds.iter().map(|kind| count(row, kind)).sum());
    let rate = Linear::up_to(all.fold(0.0, f64::max), Unit::PerSecond);
    let frame = Frame { top: 18.0, bottom: 180.0 };
    let axis = TimeAxis::of(course);
    // The upper end of the band below, slot by slot.
    let mut floor = vec![0.0; slots.len()];
    let mut band = |kind: &str| {
        let (mut upper, mut lower) = (Vec::new(), Vec::new());
        for ((at_s, row), floor) in slots.iter().zip(&mut floor) {
            let (left, right) = (c(axis.across(*at_s)), c(axis.across(at_s + row.width_s)));
            let bottom = c(frame.up(rate.share(*floor)));
            *floor += count(row, kind);
            let top = c(frame.up(rate.share(*floor)));
            upper.push(format!("{left},{top} {right},{top}"));
            lower.push(format!("{right},{bottom} {left},{bottom}"));
        }
        upper.extend(lower.into_iter().rev());
        upper.join(" ")
    };
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (c(frame.bottom + BOTTOM)) } role="img"
            aria-label="How requests ended over time" {
            @for kind in kinds {
                polygon class={ "ended-" (kind) } points=(band(kind)) {
                    title { (kind.replace('_', " ")) }
                }
            }
            (axis.marks(course, frame.top, frame.bottom))
            @for tick in rate.ticks() { (grid_line(frame.up(rate.share(tick)), &rate.label(tick))) }
            (axis.ticks(&[&frame]))
        }
    }
}

/// A panel of [`panels`]: lines over time in one unit.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) unit: Unit,
    /// What the axis leads to at least, drawn as a level.
    pub(crate) most: Option<f64>,
    /// Each with its class of the page's style sheet.
    pub(crate) lines: Vec<(&'static str, Points)>,
}

/// Seconds, and the figure then, if there is one.
pub(crate) type Points = Vec<(f64, Option<f64>)>;

/// Panels below one another, over one time axis.
pub(crate) fn panels(label: &str, course: &Course, panels: &[Panel]) -> Markup {
    const ROOM: f64 = 118.0;
    let axis = TimeAxis::of(course);
    let frames: Vec<_> = (0..panels.len())
        .map(|n| {
            let top = 24.0 + ROOM * n as f64;
            Frame { top, bottom: top + ROOM - 34.0 }
        })
        .collect();
    let Some(last) = frames.last() else { return nothing("Nothing was recorded over time.") };
    html! {
        svg.panel viewBox={ "0 0 " (WIDTH) " " (c(last.bottom + BOTTOM)) } role="img" aria-label=(label) {
            @for frame in &frames { (axis.marks(course, frame.top, frame.bottom)) }
            @for (panel, frame) in panels.iter().zip(&frames) {
                @let figures = panel.lines.iter().flat_map(|(_, points)| points.iter().filter_map(|(_, y)| *y));
                @let y = Linear::up_to(figures.chain(panel.most).fold(0.0, f64::max), panel.unit);
                text.axis x=(c(LEFT)) y=(c(frame.top - 8.0)) { (panel.title) }
                @let ticks = y.ticks();
                // There is room for every other one.
                @for tick in ticks.iter().step_by(if ticks.len() > 4 { 2 } else { 1 }) {
                    (grid_line(frame.up(y.share(*tick)), &y.label(*tick)))
                }
                @if let Some(most) = panel.most {
                    @let up = frame.up(y.share(most));
                    line.most x1=(c(LEFT)) x2=(c(WIDTH - RIGHT)) y1=(c(up)) y2=(c(up)) {}
                }
                @for (class, points) in &panel.lines {
                    @let at: Vec<_> = points
                        .iter()
                        .map(|(s, figure)| figure.map(|figure| (axis.across(*s), frame.up(y.share(figure)))))
                        .collect();
                    g class={ "line " (class) } { (polyline(&at)) }
                }
            }
            (axis.ticks(&frames.iter().collect::<Vec<_>>()))
        }
    }
}

fn per_second(n: u64, row: &TimelineRow) -> f64 {
    if row.width_s > 0.0 { n as f64 / row.width_s } else { 0.0 }
}

/// Seconds from the beginning of the warm-up to the end of the run.
struct TimeAxis {
    from: f64,
    to: f64,
}

impl TimeAxis {
    fn of(course: &Course) -> Self {
        // No run is longer than this, but what is read may be.
        let from = course.begins.clamp(-1e12, 0.0);
        Self { from, to: course.ends.clamp(from + 1e-9, 1e12) }
    }

    fn across(&self, s: f64) -> f64 {
        LEFT + within((s - self.from) / (self.to - self.from)) * (WIDTH - LEFT - RIGHT)
    }

    /// The warm-up shaded, and the stalls.
    fn marks(&self, course: &Course, top: f64, bottom: f64) -> Markup {
        let zero = self.across(0.0);
        html! {
            @if !course.warmup.is_empty() {
                rect.warmup x=(c(LEFT)) width=(c(zero - LEFT)) y=(c(top)) height=(c(bottom - top)) {
                    title { "warm-up, in no figure" }
                }
            }
            @for stall in course.stalls {
                @let left = self.across(stall.at_s);
                @let width = (self.across(stall.at_s + stall.width_s) - left).max(2.0);
                rect.stall x=(c(left)) width=(c(width)) y=(c(top)) height=(c(bottom - top)) {
                    title { (stall.slow) " of " (stall.requests) " requests slow, on " (stall.routes) " routes" }
                }
            }
        }
    }

    /// Lines at round seconds through all panels, with their figures below the last.
    fn ticks(&self, frames: &[&Frame]) -> Markup {
        let longest = self.to.max(-self.from);
        let axis = Linear::up_to(longest, Unit::Count);
        let after = axis.ticks().into_iter();
        let all = after.clone().skip(1).map(|s| -s).chain(after);
        let bottom = frames.last().map_or(0.0, |frame| frame.bottom);
        html! {
            @for tick in all.filter(|s| (self.from..=self.to * 1.000_001).contains(s)) {
                @let x = c(self.across(tick));
                @for frame in frames {
                    line.grid x1=(x) x2=(x) y1=(c(frame.top)) y2=(c(frame.bottom)) {}
                }
                text.tick x=(x) y=(c(bottom + 17.0)) text-anchor="middle" {
                    (axis.label(tick).replace('-', "\u{2212}"))
                }
            }
            text.axis x=(c(LEFT + (WIDTH - LEFT - RIGHT) / 2.0)) y=(c(bottom + 35.0)) text-anchor="middle" {
                "seconds of the measured interval"
            }
        }
    }
}

/// The vertical room of a panel.
struct Frame {
    top: f64,
    bottom: f64,
}

impl Frame {
    /// Where a share of the axis, in `[0, 1]`, lies; y grows downwards.
    fn up(&self, share: f64) -> f64 {
        self.bottom - within(share) * (self.bottom - self.top)
    }
}

/// A share that is one: no axis has a place for what is beyond its ends, or no number.
fn within(share: f64) -> f64 {
    if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) }
}

/// A logarithmic axis from a 1, 2 or 5 to a 1, 2 or 5.
struct Log {
    low: f64,
    high: f64,
}

impl Log {
    fn around(low: f64, high: f64) -> Self {
        let steps = one_two_five(low, high);
        let low = steps.first().copied().unwrap_or(low);
        Self { low, high: steps.last().copied().unwrap_or(high).max(low * 2.0) }
    }

    fn share(&self, value: f64) -> f64 {
        (value / self.low).ln() / (self.high / self.low).ln()
    }

    /// The powers of ten; the 2s and 5s between them where there is room.
    fn ticks(&self) -> Vec<f64> {
        let all: Vec<_> = one_two_five(self.low, self.high)
            .into_iter()
            .filter(|tick| (self.low * 0.999..=self.high * 1.001).contains(tick))
            .collect();
        if all.len() <= 9 {
            return all;
        }
        let is_power = |tick: &f64| (tick.log10() - tick.log10().round()).abs() < 1e-6;
        all.into_iter().filter(is_power).collect()
    }
}

/// Every 1, 2 and 5 of a decade from the last one below `low` to the first one above `high`.
fn one_two_five(low: f64, high: f64) -> Vec<f64> {
    let first = low.log10().floor() as i32;
    let last = high.log10().ceil() as i32;
    let all: Vec<f64> = (first..=last)
        .flat_map(|exponent| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(exponent)))
        .collect();
    let from = all.iter().rposition(|step| *step <= low).unwrap_or(0);
    let to = all.iter().position(|step| *step >= high).unwrap_or(all.len() - 1);
    all[from..=to.max(from)].to_vec()
}

/// A linear axis from zero, with round ticks.
struct Linear {
    step: f64,
    count: usize,
    unit: Unit,
}

impl Linear {
    fn up_to(high: f64, unit: Unit) -> Self {
        // Nothing but zeros still needs an axis, and so does what no run can reach.
        let high = if high > 0.0 { high.clamp(1e-12, 1e300) } else { 1.0 };
        // Bytes are round in units of theirs.
        let unit_size = match unit {
            Unit::Bytes => 1024_f64.powi((high.log2() / 10.0).floor().clamp(0.0, 4.0) as i32),
            _ => 1.0,
        };
        let exponent = (high / unit_size / 4.0).log10().floor() as i32;
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|digit| digit * 10_f64.powi(exponent) * unit_size)
            .into_iter()
            .find(|step| high / step <= 5.0)
            .unwrap_or(high);
        Self { step, count: (high / step - 1e-9).ceil().max(1.0) as usize, unit }
    }

    fn share(&self, value: f64) -> f64 {
        value / self.step / self.count as f64
    }

    fn ticks(&self) -> Vec<f64> {
        (0..=self.count).map(|n| n as f64 * self.step).collect()
    }

    fn label(&self, tick: f64) -> String {
        match self.unit {
            _ if tick == 0.0 => "0".to_owned(),
            Unit::Us => number::seconds(tick / 1e6),
            Unit::Count if tick.abs() < 1e15 => format!("{}", (tick * 1e6).round() / 1e6),
            unit => ["/", " "].iter().fold(number::value(tick, unit), |label, end| {
                label.replace(&format!(".00{end}"), end).replace(&format!(".0{end}"), end)
            }),
        }
    }
}

/// How many nines a quantile has: 0.9 one, 0.99 two.
fn nines(q: f64) -> f64 {
    // Past nine of them there is no run long enough.
    -(1.0 - q.clamp(0.0, 1.0)).max(1e-9).log10()
}

/// A logarithmic axis has no place for zero, and no axis has one for what is no number.
fn drawn((q, us): &(f64, f64)) -> bool {
    q.is_finite() && (1e-12..1e300).contains(us)
}

/// The value at a quantile, where the drawn line passes it; `None` past the ends.
fn between(curve: &[&(f64, f64)], q: f64) -> Option<f64> {
    let next = curve.iter().position(|(at, _)| *at >= q - 1e-9)?;
    let (q2, us2) = *curve[next];
    let Some((q1, us1)) = next.checked_sub(1).map(|previous| *curve[previous]) else {
        return (q2 <= q + 1e-9).then_some(us2);
    };
    // Straight on a logarithmic axis.
    let share = ((nines(q) - nines(q1)) / (nines(q2) - nines(q1))).clamp(0.0, 1.0);
    Some(us1 * (us2 / us1).powf(share))
}

fn extremes(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |found, value| match found {
        None => Some((value, value)),
        Some((low, high)) => Some((f64::min(low, value), f64::max(high, value))),
    })
}

fn grid_line(y: f64, label: &str) -> Markup {
    html! {
        line.grid x1=(c(LEFT)) x2=(c(WIDTH - RIGHT)) y1=(c(y)) y2=(c(y)) {}
        text.tick x=(c(LEFT - 7.0)) y=(c(y + 4.0)) text-anchor="end" { (label) }
    }
}

/// Straight lines through the points, broken where one is missing; a point on its own is a dot.
fn polyline(points: &[Option<(f64, f64)>]) -> Markup {
    html! {
        @for stretch in points.split(Option::is_none).filter(|stretch| !stretch.is_empty()) {
            @if let [Some((x, y))] = stretch {
                circle cx=(c(*x)) cy=(c(*y)) r="3" {}
            } @else {
                @let path = stretch.iter().flatten().fold(String::new(), |mut path, (x, y)| {
                    // Writing into a string does not fail.
                    let _ = write!(path, "{}{} ", c(*x), format_args!(",{}", c(*y)));
                    path
                });
                polyline points=(path.trim_end()) {}
            }
        }
    }
}

fn nothing(words: &str) -> Markup {
    html! { p.nothing { (words) } }
}

/// A coordinate.
fn c(value: f64) -> String {
    debug_assert!(value.is_finite(), "{value} is no coordinate");
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::ClientOutcomes;

    fn drawn_over_time(timeline: &[TimelineRow]) -> String {
        over_time(&course(timeline)).into_string()
    }

    fn course(timeline: &[TimelineRow]) -> Course<'_> {
        let ends = timeline.iter().map(|row| row.at_s + row.width_s).fold(0.0, f64::max);
        Course { warmup: &[], begins: 0.0, timeline, stalls: &[], ends }
    }

    fn rows(n: u32) -> Vec<TimelineRow> {
        (0..n)
            .map(|i| TimelineRow {
                at_s: f64::from(i),
                width_s: 1.0,
                ok: 1_000,
                completed: 1_000,
                failed: 0,
                outcomes: ClientOutcomes { ok: 1_000, ..ClientOutcomes::default() },
                dropped: 0,
                p50_us: Some(100.0),
                p99_us: (i != 2).then_some(1_000.0),
            })
            .collect()
    }

    #[test]
    fn nothing_to_draw_is_said_in_words() {
        assert!(percentiles(&[], &[]).into_string().contains("Too few samples"));
        let empty = Series { name: "a", class: "a", curve: &[] };
        assert!(percentiles(&[empty], &[]).into_string().contains("Too few samples"));
        assert!(drawn_over_time(&[]).contains("Nothing was recorded"));
    }

    #[test]
    fn a_single_point_is_a_dot_and_a_gap_breaks_the_line() {
        let one = drawn_over_time(&rows(1));
        assert!(one.contains("<circle") && !one.contains("<polyline"), "{one}");
        let five = drawn_over_time(&rows(5));
        // Two stretches of p99, one of p50, one of the rate.
        assert_eq!(five.matches("<polyline").count(), 4, "{five}");
    }

    #[test]
    fn no_coordinate_is_ever_not_a_number() {
        let flat = [(0.0, 5.0), (0.5, 5.0), (0.9, 5.0)];
        let odd = [(0.0, 0.0), (0.5, f64::NAN), (0.9, 1.0), (1.0, 2.0)];
        for curve in [&flat[..], &odd[..], &flat[..1]] {
            let line = Series { name: "a", class: "a", curve };
            let limit = Limit { quantile: 0.9, us: 3.0, expression: "p90 < 3us" };
            let drawn = percentiles(&[line], &[limit]).into_string();
            assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        }
        let mut rows = rows(3);
        rows[0].width_s = 0.0;
        rows.iter_mut().for_each(|row| row.completed = 0);
        let drawn = drawn_over_time(&rows);
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }

    #[test]
    fn the_warm_up_is_shaded_before_zero_and_stalls_are_marked_in_it_all() {
        let (warmup, timeline) = (rows(2), rows(3));
        let stalls = [Stall { at_s: 1.0, width_s: 1.0, routes: 2, slow: 5, requests: 9 }];
        let run = Course { warmup: &warmup, begins: -2.0, stalls: &stalls, ..course(&timeline) };
        let drawn = over_time(&run).into_string();
        // A fifth of the room is a second.
        let second = (WIDTH - LEFT - RIGHT) / 5.0;
        let shade = format!(r#"<rect class="warmup" x="{}" width="{}""#, c(LEFT), c(2.0 * second));
        assert!(drawn.contains(&shade), "{shade} is missing in {drawn}");
        let stall =
            format!(r#"<rect class="stall" x="{}" width="{}""#, c(LEFT + 3.0 * second), c(second));
        assert!(drawn.contains(&stall), "{stall} is missing in {drawn}");
        assert!(drawn.contains(">\u{2212}2<") && drawn.contains(">3<"), "{drawn}");
        assert!(drawn.contains("5 of 9 requests slow"), "{drawn}");
    }

    #[test]
    fn what_was_dropped_stands_on_what_failed() {
        let mut rows = rows(2);
        (rows[1].failed, rows[1].dropped) = (250, 500);
        let drawn = drawn_over_time(&rows);
        // A thousand a second is as high as the panel.
        let room = HEIGHT - BOTTOM - 176.0;
        let failed = format!(r#"y="{}" height="{}""#, c(176.0 + 0.75 * room), c(0.25 * room));
        let dropped = format!(r#"y="{}" height="{}""#, c(176.0 + 0.25 * room), c(0.5 * room));
        assert!(drawn.contains(&failed) && drawn.contains(&dropped), "{drawn}");
        assert_eq!(drawn.matches("<rect").count(), 2);
    }

    #[test]
    fn bands_stand_on_one_another() {
        let mut rows = rows(1);
        rows[0].outcomes = ClientOutcomes { ok: 750, limited: 250, ..ClientOutcomes::default() };
        let drawn = outcomes(&course(&rows), &["ok", "limited"]).into_string();
        let band = |class: &str, top: f64, bottom: f64| {
            let (left, right) = (c(LEFT), c(WIDTH - RIGHT));
            let (top, bottom) = (c(top), c(bottom));
            format!(
                r#"<polygon class="{class}" points="{left},{top} {right},{top} {right},{bottom} {left},{bottom}">"#
            )
        };
        for band in [band("ended-ok", 58.5, 180.0), band("ended-limited", 18.0, 58.5)] {
            assert!(drawn.contains(&band), "{band} is missing in {drawn}");
        }
    }

    #[test]
    fn a_panel_has_its_lines_and_its_level() {
        let points = vec![(0.0, Some(1.0)), (1.0, None), (2.0, Some(3.0)), (3.0, Some(4.0))];
        let panel = Panel {
            title: "a < b".to_owned(),
            unit: Unit::Count,
            most: Some(5.0),
            lines: vec![("p50", points)],
        };
        let drawn = panels("x", &course(&rows(3)), &[panel]).into_string();
        assert!(drawn.contains("a &lt; b") && drawn.contains("class=\"most\""), "{drawn}");
        // A dot, a gap, a stretch.
        assert_eq!((drawn.matches("<circle").count(), drawn.matches("<polyline").count()), (1, 1));
        assert!(panels("x", &course(&[]), &[]).into_string().contains("Nothing was recorded"));
    }

    #[test]
    fn a_mark_lies_on_its_line() {
        let curve = [(0.0, 1.0), (0.9, 100.0), (0.99, 200.0)];
        let curve: Vec<_> = curve.iter().collect();
        assert_eq!(between(&curve, 0.9), Some(100.0));
        let half = between(&curve, 1.0 - 10_f64.powf(-0.5)).expect("inside");
        assert!((half - 10.0).abs() < 1e-6, "{half}");
        assert_eq!(between(&curve, 0.999), None);
        assert_eq!(between(&curve[1..], 0.5), None);
    }

    #[test]
    fn axes_take_round_figures() {
        assert_eq!(Linear::up_to(9_900.0, Unit::PerSecond).ticks().last(), Some(&10_000.0));
        assert_eq!(Linear::up_to(5.0, Unit::Count).ticks(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let memory = Linear::up_to(95_000_000.0, Unit::Bytes);
        let labels: Vec<_> = memory.ticks().iter().map(|tick| memory.label(*tick)).collect();
        assert_eq!(labels, ["0", "20 MiB", "40 MiB", "60 MiB", "80 MiB", "100 MiB"]);
        let log = Log::around(72.0, 31_000.0);
        assert!((log.low - 50.0).abs() < 1e-9 && (log.high - 50_000.0).abs() < 1e-6);
        assert!((log.share(50.0)).abs() < 1e-9 && (log.share(50_000.0) - 1.0).abs() < 1e-9);
    }
}
