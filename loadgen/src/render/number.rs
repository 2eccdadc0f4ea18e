//! Figures for people: the handiest unit, three significant digits, thousands apart.

use crate::report::{ThresholdResult, Unit};

/// What stands where there is no figure.
pub(crate) const NONE: &str = "\u{2013}";

/// A duration, given in microseconds.
pub(crate) fn duration(us: f64) -> String {
    scaled(us, &DURATIONS)
}

/// A duration, given in seconds.
pub(crate) fn seconds(s: f64) -> String {
    if s == 0.0 {
        return "0 s".to_owned();
    }
    duration(s * 1e6).replace(".00 ", " ").replace(".0 ", " ")
}

pub(crate) fn bytes(bytes: f64) -> String {
    scaled(bytes, &SIZES)
}

pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A rate, in requests per second.
pub(crate) fn per_second(rate: f64) -> String {
    format!("{}/s", plain(rate))
}

/// A ratio as a percentage.
pub(crate) fn percent(ratio: f64) -> String {
    let percent = ratio * 100.0;
    let sign = if percent <= -0.0005 { "\u{2212}" } else { "" };
    let text = match percent.abs() {
        p if p >= 99.95 => plain(p),
        p if p >= 9.995 => format!("{p:.1}"),
        p if p >= 0.995 || p == 0.0 => format!("{p:.2}"),
        p => format!("{p:.3}"),
    };
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{sign}{text} %")
}

/// A share of something, to the tenth of a percent.
pub(crate) fn share(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

/// A quantile as it is called: 0.999 is p99.9.
pub(crate) fn percentile(quantile: f64) -> String {
    format!("p{}", (quantile * 1e5).round() / 1e3)
}

/// Room under a limit; past ten times the limit as a multiple of it.
pub(crate) fn margin(ratio: f64) -> String {
    if ratio.abs() < 10.0 {
        return percent((ratio * 1e3).round() / 1e3);
    }
    let sign = if ratio < 0.0 { "\u{2212}" } else { "" };
    format!("{sign}{} \u{d7}", plain(ratio.abs()))
}

/// A figure in its unit.
pub(crate) fn value(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Us => duration(value),
        Unit::Ratio => percent(value),
        Unit::PerSecond => per_second(value),
        Unit::Bytes => bytes(value),
        Unit::Count => plain(value),
    }
}

pub(crate) fn maybe(figure: Option<f64>, unit: Unit) -> String {
    figure.map_or_else(|| NONE.to_owned(), |figure| value(figure, unit))
}

/// The interval of a result: `[12.0, 12.9] ms`, one-sided where the samples bound one side only, and
/// nothing where there is no more than a figure.
pub(crate) fn interval(result: &ThresholdResult) -> String {
    let shown = |figure| value(figure, result.unit);
    match (result.low, result.high) {
        (None, None) => NONE.to_owned(),
        (Some(low), None) => format!("\u{2265} {}", shown(low)),
        (None, Some(high)) => format!("\u{2264} {}", shown(high)),
        #[expect(clippy::float_cmp, reason = "a point is written with twice the same figure")]
        (Some(low), Some(high)) if low == high => NONE.to_owned(),
        (Some(low), Some(high)) => {
            let (low, high) = (shown(low), shown(high));
            match (split_unit(&low), split_unit(&high)) {
                ((low, a), (high, b)) if a == b => format!("[{low}, {high}]{a}"),
                _ => format!("[{low}, {high}]"),
            }
        }
    }
}

/// The figure and its unit, with the blank between them.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text.rfind(|c: char| c.is_ascii_digit()).map_or(0, |index| index + 1);
    text.split_at(end)
}

const DURATIONS: [(&str, f64); 4] = [("ns", 1e-3), ("\u{b5}s", 1.0), ("ms", 1e3), ("s", 1e6)];
const SIZES: [(&str, f64); 5] = [
    ("B", 1.0),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
];

/// In the first unit that needs no more than three digits before the point.
fn scaled(figure: f64, units: &[(&str, f64)]) -> String {
    let (sign, figure) = if figure < 0.0 { ("\u{2212}", -figure) } else { ("", figure) };
    let last = units.len() - 1;
    let fits = |size: f64| figure / size < 999.5;
    let (name, size) = units.iter().find(|(_, size)| fits(*size)).unwrap_or(&units[last]);
    // Bytes have no fractions.
    if *name == "B" || figure == 0.0 {
        return format!("{sign}{figure:.0} {name}");
    }
    format!("{sign}{} {name}", plain(figure / size))
}

/// Three significant digits, whole from a hundred on. What no run can measure is told by its magnitude.
pub(crate) fn plain(figure: f64) -> String {
    match figure.abs() {
        f if f >= 1e15 => format!("{figure:.0e}"),
        f if f >= 99.95 => {
            let sign = if figure < 0.0 { "\u{2212}" } else { "" };
            format!("{sign}{}", count(f.round() as u64))
        }
        f if f >= 9.995 => trimmed(format!("{figure:.1}"), f),
        f => trimmed(format!("{figure:.2}"), f),
    }
}

/// A whole number is written as one.
fn trimmed(text: String, figure: f64) -> String {
    if figure.fract() == 0.0 && figure < 1.0 { format!("{figure:.0}") } else { text }
}

/// A date, and the time of day in UTC.
pub(crate) fn utc(unix_s: f64) -> (String, String) {
    let seconds = unix_s.max(0.0) as u64;
    let (mut day, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let days_of = |year| 365 + u64::from(leap(year));
    // Year by year is fast enough for any year that a clock shows; a broken one stops here.
    let mut year = 1970;
    while year < 9_999 && day >= days_of(year) {
        day -= days_of(year);
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (
        format!("{year:04}-{month:02}-{:02}", day + 1),
        format!("{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_take_the_unit_that_suits_them() {
        for (us, text) in [
            (0.0, "0 ns"),
            (0.064, "64.0 ns"),
            (0.9996, "1.00 \u{b5}s"),
            (1.234, "1.23 \u{b5}s"),
            (99.96, "100 \u{b5}s"),
            (999.4, "999 \u{b5}s"),
            (999.6, "1.00 ms"),
            (12_345.0, "12.3 ms"),
            (6_100_000.0, "6.10 s"),
            (3_600_000_000.0, "3,600 s"),
            (2e307, "2e301 s"),
        ] {
            assert_eq!(duration(us), text);
        }
        assert_eq!(
            (seconds(60.0), seconds(0.5), seconds(1.25)),
            ("60 s".to_owned(), "500 ms".to_owned(), "1.25 s".to_owned())
        );
    }

    #[test]
    fn sizes_counts_and_ratios_are_readable() {
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(2_147_483_648.0), "2.00 GiB");
        assert_eq!(bytes(365_000_000.0), "348 MiB");
        assert_eq!(
            (count(0), count(999), count(1_000)),
            ("0".into(), "999".into(), "1,000".into())
        );
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(per_second(1_234_567.8), "1,234,568/s");
        assert_eq!(
            (percent(0.0), percent(0.001), percent(0.943)),
            ("0 %".into(), "0.1 %".into(), "94.3 %".into())
        );
        assert_eq!(
            (margin(0.9434), margin(-0.05), margin(-200.0)),
            ("94.3 %".into(), "\u{2212}5 %".into(), "\u{2212}200 \u{d7}".into())
        );
        assert_eq!(
            (percent(1.0), percent(-0.25), percent(12.5)),
            ("100 %".into(), "\u{2212}25 %".into(), "1,250 %".into())
        );
    }

    #[test]
    fn dates_follow_the_calendar() {
        for (unix_s, text) in [
            (0.0, "1970-01-01 00:00:00"),
            (951_782_399.9, "2000-02-28 23:59:59"),
            (951_782_400.0, "2000-02-29 00:00:00"),
            (1_798_761_599.0, "2026-12-31 23:59:59"),
            (1_790_000_000.25, "2026-09-21 14:13:20"),
        ] {
            let (date, time) = utc(unix_s);
            assert_eq!(format!("{date} {time}"), text);
        }
    }
}
