//! Requirements as a user writes them: `p99 < 25ms`.
//!
//! `METRIC [STAT] [{route="…"}] OP VALUE`. Without a metric a statistic is of the response time. The name of a phase
//! is a metric too: `pool_wait:db p99 < 5ms`.
//!
//! ```
//! use parallax_loadgen::threshold::{Metric, Stat, Threshold};
//!
//! let threshold = Threshold::parse(r#"p95{route="GET /items/{id}"} <= 200ms"#).unwrap();
//! assert_eq!(threshold.metric, Metric::ResponseTime);
//! assert_eq!(threshold.stat, Some(Stat::Quantile(0.95)));
//! assert_eq!(threshold.route.as_deref(), Some("GET /items/{id}"));
//! assert_eq!(threshold.limit, 200_000.0); // microseconds
//!
//! let threshold = Threshold::parse("pool_wait:db p99 < 5ms").unwrap();
//! assert_eq!(threshold.metric, Metric::Phase("pool_wait:db".to_owned()));
//! ```

mod table;

use std::{borrow::Cow, fmt, ops::Range, str::FromStr};

use crate::report::Unit;

/// A requirement on one figure of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// As written, without the blanks around it.
    pub expression: String,
    /// What is measured.
    pub metric: Metric,
    /// Which figure of a distribution; `Some` exactly for metrics that are durations.
    pub stat: Option<Stat>,
    /// The route that it is about, as reports name it; `None` for all together.
    pub route: Option<String>,
    /// How the figure must stand to the limit.
    pub op: Op,
    /// In `unit`; never negative.
    pub limit: f64,
    /// The unit of `metric`.
    pub unit: Unit,
}

impl Threshold {
    /// Reads an expression.
    ///
    /// # Errors
    /// If it is not one; the error shows the place and says what would be right.
    pub fn parse(expression: &str) -> Result<Self, ThresholdError> {
        Parser { text: expression.trim(), at: 0 }.threshold()
    }

    /// The same requirement on one route alone; its expression then says so.
    ///
    /// # Errors
    /// If its metric is not known by route, or if it is about a route already.
    pub fn on_route(self, route: &str) -> Result<Self, ThresholdError> {
        let refuse = |problem: String, remedy: &str| {
            let (expression, place) = (self.expression.clone(), 0..self.expression.len());
            Err(ThresholdError { expression, place, problem, remedy: remedy.to_owned() })
        };
        if self.route.is_some() {
            let problem = "it stands under a route, and selects one".to_owned();
            return refuse(problem, "leave the selector out");
        }
        if !self.metric.by_route() {
            let problem = format!("`{}` is not known by route", self.metric);
            return refuse(problem, "put it under \"*\"");
        }
        let threshold = Self { route: Some(route.to_owned()), ..self };
        Ok(Self { expression: threshold.to_string(), ..threshold })
    }
}

impl FromStr for Threshold {
    type Err = ThresholdError;

    fn from_str(expression: &str) -> Result<Self, Self::Err> {
        Self::parse(expression)
    }
}

/// The expression in full: the metric named, the selector last, the limit in its handiest unit. It
/// parses back to the same requirement.
impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.metric)?;
        if let Some(stat) = self.stat {
            write!(f, " {stat}")?;
        }
        if let Some(route) = &self.route {
            write!(f, "{{route=\"{}\"}}", escaped(route))?;
        }
        write!(f, " {} {}", self.op, limit_in_words(self.limit, self.unit))
    }
}

/// What can be required.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum Metric {
    /// From the intended start to the drained body, successes only.
    ResponseTime,
    /// From the dispatch to the drained body, successes only.
    ServiceTime,
    /// The layer's own time, successes only.
    ServerTime,
    /// Service time less server time.
    Outside,
    /// The layer's time to the response head.
    TimeToFirstByte,
    /// The generator's lateness.
    Lag,
    /// Failed requests over finished ones.
    Errors,
    /// Successful responses per second.
    Rate,
    /// Arrivals that were not sent because the in-flight bound was reached.
    Dropped,
    /// Requests that the counts of client and server leave unaccounted for.
    Unexplained,
    /// Peak resident memory of the process.
    Rss,
    /// Processor time over the time of all cores.
    Cpu,
    /// Time of a request in the phase of this name, of the requests that were in it: `pool_wait:db`, `query:db`,
    /// `limiter`, `handler`, or whatever the service names. Quotes around it hold what is no word.
    Phase(String),
    /// Hits of all lookups of the cache of this name, whoever asked: `cache:NAME hit_ratio`.
    HitRatio(String),
}

impl Metric {
    /// All metrics that have a name of their own, in the order in which an error lists them.
    pub const ALL: [Self; 12] = [
        Self::ResponseTime,
        Self::ServiceTime,
        Self::ServerTime,
        Self::Outside,
        Self::TimeToFirstByte,
        Self::Lag,
        Self::Errors,
        Self::Rate,
        Self::Dropped,
        Self::Unexplained,
        Self::Rss,
        Self::Cpu,
    ];

    /// The name in an expression.
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        let name = match self {
            Self::ResponseTime => "response_time",
            Self::ServiceTime => "service_time",
            Self::ServerTime => "server_time",
            Self::Outside => "outside",
            Self::TimeToFirstByte => "ttfb",
            Self::Lag => "lag",
            Self::Errors => "errors",
            Self::Rate => "rate",
            Self::Dropped => "dropped",
            Self::Unexplained => "unexplained",
            Self::Rss => "rss",
            Self::Cpu => "cpu",
            Self::Phase(name) => return quoted_if_needed(Cow::Borrowed(name)),
            Self::HitRatio(name) => {
                let phase = quoted_if_needed(Cow::Owned(format!("{CACHE}{name}")));
                return Cow::Owned(format!("{phase} {HIT_RATIO}"));
            }
        };
        Cow::Borrowed(name)
    }

    /// What its figures are measured in.
    #[must_use]
    pub fn unit(&self) -> Unit {
        match self {
            Self::ResponseTime
            | Self::ServiceTime
            | Self::ServerTime
            | Self::Outside
            | Self::TimeToFirstByte
            | Self::Lag
            | Self::Phase(_) => Unit::Us,
            Self::Errors | Self::Cpu | Self::HitRatio(_) => Unit::Ratio,
            Self::Rate => Unit::PerSecond,
            Self::Dropped | Self::Unexplained => Unit::Count,
            Self::Rss => Unit::Bytes,
        }
    }

    /// Is it known for each route apart?
    #[must_use]
    pub fn by_route(&self) -> bool {
        self.unit() == Unit::Us || matches!(self, Self::Errors | Self::Rate)
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }

    /// The metric that a word was most likely meant to name.
    fn like(word: &str) -> Option<Self> {
        let metrics = Self::ALL.into_iter().filter(|metric| metric.name().len() > MISTAKES + 1);
        let mistakes = |metric: &Self| distance(word, &metric.name());
        metrics.min_by_key(mistakes).filter(|metric| mistakes(metric) <= MISTAKES)
    }
}

/// What the phases of caches begin with, and what else is known of one.
const CACHE: &str = "cache:";
const HIT_RATIO: &str = "hit_ratio";
/// Phases that every service has, and that are no words of a service's own.
const PHASES: [&str; 2] = ["limiter", "handler"];
/// So many wrong letters, and a word was meant to be another one.
const MISTAKES: usize = 2;

/// A phase's name as it is read back.
fn quoted_if_needed(name: Cow<'_, str>) -> Cow<'_, str> {
    let taken = || Metric::named(&name).is_some() || Metric::like(&name).is_some();
    let percentile = || name.strip_prefix('p').is_some_and(|rest| rest.starts_with(DIGITS));
    let statistic = ["mean", "avg", "med", "min", "max", "p"].contains(&&*name) || percentile();
    if !name.is_empty() && name.chars().all(in_word) && !statistic && !taken() {
        return name;
    }
    Cow::Owned(format!("\"{}\"", escaped(&name)))
}

const DIGITS: [char; 10] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9'];

fn in_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | ':' | '.' | '-' | '/')
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// How many letters have to be added, left out or changed to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let changed = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = changed.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

/// A figure of a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Stat {
    /// The value at this quantile, in `(0, 1)`; written `p99`, `p99.9`, `p(99)` or, for 0.5, `med`.
    Quantile(f64),
    /// The arithmetic mean; `mean` or `avg`.
    Mean,
    /// The smallest value.
    Min,
    /// The largest value.
    Max,
}

impl fmt::Display for Stat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantile(q) => write!(f, "p{}", shifted(*q, 2)),
            Self::Mean => f.write_str("mean"),
            Self::Min => f.write_str("min"),
            Self::Max => f.write_str("max"),
        }
    }
}

/// How a figure must stand to its limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Op {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
    /// `==`
    Equal,
}

impl Op {
    /// Does `figure OP limit` hold?
    #[must_use]
    pub fn holds(self, figure: f64, limit: f64) -> bool {
        match self {
            Self::Less => figure < limit,
            Self::AtMost => figure <= limit,
            Self::Greater => figure > limit,
            Self::AtLeast => figure >= limit,
            #[expect(clippy::float_cmp, reason = "only counts are compared so, and they are exact")]
            Self::Equal => figure == limit,
        }
    }

    /// Is the limit one from below: `>` or `>=`?
    #[must_use]
    pub fn is_minimum(self) -> bool {
        matches!(self, Self::Greater | Self::AtLeast)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
            Self::Equal => "==",
        })
    }
}

/// An expression that is no threshold.
///
/// Its text has several lines: what is wrong, the expression with carets under the place, the remedy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ThresholdError {
    expression: String,
    /// Bytes of `expression`; may be empty, and may lie at its end.
    place: Range<usize>,
    problem: String,
    remedy: String,
}

impl ThresholdError {
    /// What is wrong and the remedy, on one line.
    pub(crate) fn on_one_line(&self) -> String {
        format!("{}; {}", self.problem, self.remedy)
    }

    /// The bytes of the trimmed expression that are at fault; empty where something is missing.
    #[must_use]
    pub fn place(&self) -> Range<usize> {
        self.place.clone()
    }
}

impl fmt::Display for ThresholdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One column a character, whatever it is, so that the carets stand where they should.
        let shown: String =
            self.expression.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let columns =
            |range: Range<usize>| self.expression.get(range).map_or(0, |text| text.chars().count());
        let before = columns(0..self.place.start);
        let width = columns(self.place.clone()).max(1);
        write!(
            f,
            "{}\n  {shown}\n  {:before$}{}\n{}",
            self.problem,
            "",
            "^".repeat(width),
            self.remedy
        )
    }
}

impl std::error::Error for ThresholdError {}

/// Spellings of the units and their size in the base unit of their kind.
const DURATIONS: [(&str, f64); 6] =
    [("ns", 1e-3), ("us", 1.0), ("µs", 1.0), ("μs", 1.0), ("ms", 1e3), ("s", 1e6)];
const SIZES: [(&str, f64); 7] = [
    ("B", 1.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
];

struct Parser<'a> {
    /// Trimmed.
    text: &'a str,
    /// Byte offset of what comes next; always on a character.
    at: usize,
}

impl Parser<'_> {
    fn threshold(mut self) -> Result<Threshold, ThresholdError> {
        let mut route = None;
        let mut k6 = false;
        let (metric, stat) = self.figure(&mut route, &mut k6)?;
        self.selector(&metric, &mut route)?;
        let op = self.op(&metric)?;
        self.blanks();
        let limit_start = self.at;
        let limit = self.limit(&metric, k6)?;
        if op == Op::Equal && metric == Metric::Errors && limit > 0.0 {
            return Err(self.error(
                limit_start..self.text.len(),
                "only a ratio of 0 is met exactly",
                "write `errors == 0`, or < and the most that is allowed",
            ));
        }
        Ok(Threshold {
            expression: self.text.to_owned(),
            unit: metric.unit(),
            metric,
            stat,
            route,
            op,
            limit,
        })
    }

    /// A metric with its statistic, if it has any; or a statistic alone.
    fn figure(
        &mut self,
        route: &mut Option<String>,
        k6: &mut bool,
    ) -> Result<(Metric, Option<Stat>), ThresholdError> {
        let start = self.at;
        let quoted = self.eat("\"");
        let metric = if quoted {
            let Some(name) = self.quoted() else {
                return Err(self.error(
                    start..start + 1,
                    "this quote is never closed",
                    "write a phase like \"my phase\"",
                ));
            };
            Metric::Phase(name)
        } else {
            let word = self.word();
            if let Some(stat) = self.stat(start, word, k6)? {
                return Ok((Metric::ResponseTime, Some(stat)));
            }
            Metric::named(word).unwrap_or_else(|| Metric::Phase(word.to_owned()))
        };
        let name_end = self.at;
        let name = start..name_end;
        if quoted && metric == Metric::Phase(String::new()) {
            return Err(self.error(
                name,
                "the phase has no name",
                "write one, like \"pool_wait:db\"",
            ));
        }
        if let (Metric::Phase(word), false) = (&metric, quoted) {
            if word.is_empty() {
                return Err(self.unknown_metric(name));
            }
            if let Some(meant) = Metric::like(word) {
                let remedy = format!("write `{meant}`; a phase of that name is written \"{word}\"");
                return Err(self.error(name, format!("there is no metric `{word}`"), remedy));
            }
        }
        self.selector(&metric, route)?;
        self.blanks();
        let stat_start = self.at;
        let word = self.word();
        if word == HIT_RATIO {
            return self.hit_ratio(&metric, name, stat_start, route.is_some());
        }
        let stat = if word.is_empty() {
            None
        } else {
            Some(self.stat(stat_start, word, k6)?.ok_or_else(|| {
                let caches = if metric.name().starts_with(CACHE) { ", or hit_ratio" } else { "" };
                self.error(
                    stat_start..stat_start + word.len(),
                    format!("`{word}` is no statistic"),
                    format!("write p99 (any percentile), mean, med, min or max{caches}"),
                )
            })?)
        };
        match (&metric, metric.unit(), stat) {
            // Most likely it was not meant to be a phase.
            (Metric::Phase(word), _, None)
                if !quoted && !word.contains(':') && !PHASES.contains(&&**word) =>
            {
                Err(self.unknown_metric(name))
            }
            (_, Unit::Us, None) => Err(self.error(
                name_end..name_end,
                format!("`{metric}` is a distribution: which figure of it?"),
                format!("write `{metric} p99`, or mean, med, min or max"),
            )),
            (_, Unit::Us, Some(_)) | (_, _, None) => Ok((metric, stat)),
            (_, _, Some(_)) => Err(self.error(
                stat_start..self.at,
                format!("`{metric}` is one figure and has no statistics"),
                format!("write `{metric} OP VALUE`"),
            )),
        }
    }

    /// What stands before `hit_ratio` must be a cache.
    fn hit_ratio(
        &self,
        metric: &Metric,
        name: Range<usize>,
        at: usize,
        selected: bool,
    ) -> Result<(Metric, Option<Stat>), ThresholdError> {
        let place = at..at + HIT_RATIO.len();
        let cache = match metric {
            Metric::Phase(phase) => phase.strip_prefix(CACHE),
            _ => None,
        };
        match cache {
            None => Err(self.error(
                place,
                "only a cache has hits",
                "write `cache:NAME hit_ratio`, with the name that the cache was registered by",
            )),
            Some("") => {
                Err(self.error(name, "the cache has no name", "write `cache:NAME hit_ratio`"))
            }
            Some(_) if selected => Err(self.error(
                name.end..at,
                format!("`{HIT_RATIO}` is not known by route"),
                "leave the selector out",
            )),
            Some(cache) => Ok((Metric::HitRatio(cache.to_owned()), None)),
        }
    }

    /// `p99`, `p99.9`, `p(99)`, `mean`, `avg`, `med`, `min`, `max`; `None` if `word` is something else.
    fn stat(
        &mut self,
        start: usize,
        word: &str,
        k6: &mut bool,
    ) -> Result<Option<Stat>, ThresholdError> {
        let percent = match word {
            "mean" | "avg" => return Ok(Some(Stat::Mean)),
            "min" => return Ok(Some(Stat::Min)),
            "max" => return Ok(Some(Stat::Max)),
            "med" => return Ok(Some(Stat::Quantile(0.5))),
            "p" if self.eat("(") => {
                let percent = self.take(|c| c != ')').to_owned();
                if !self.eat(")") {
                    return Err(self.error(
                        self.at..self.at,
                        "the parenthesis is not closed",
                        "write `p(99)`, or simply `p99`",
                    ));
                }
                *k6 = true;
                percent.trim().to_owned()
            }
            _ => match word.strip_prefix('p') {
                Some(rest) if rest.starts_with(|c: char| c.is_ascii_digit()) => rest.to_owned(),
                _ => return Ok(None),
            },
        };
        let place = start..self.at;
        let numeric = percent.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        // Six digits after the point are a percentile that needs 300 million samples.
        let short = percent.len() <= 9;
        let q = (numeric && short).then(|| scaled(&percent, -2)).flatten().ok_or_else(|| {
            self.error(
                place.clone(),
                format!("`{percent}` is no percentile"),
                "write a number between 0 and 100, for example p99 or p99.9",
            )
        })?;
        if q <= 0.0 || q >= 1.0 {
            return Err(self.error(
                place,
                format!("there is no percentile {percent}"),
                "a percentile lies between 0 and 100; for the ends write min or max",
            ));
        }
        Ok(Some(Stat::Quantile(q)))
    }

    /// `{route="…"}`, if it stands here.
    fn selector(
        &mut self,
        metric: &Metric,
        route: &mut Option<String>,
    ) -> Result<(), ThresholdError> {
        self.blanks();
        let start = self.at;
        if !self.eat("{") {
            return Ok(());
        }
        self.blanks();
        let key_start = self.at;
        let key = self.word();
        if key != "route" {
            return Err(self.error(
                key_start..key_start + key.len(),
                format!("`{key}` is nothing to select by"),
                r#"write {route="GET /items/{id}"}"#,
            ));
        }
        self.blanks();
        let equals = self.eat("=");
        self.blanks();
        if !equals || !self.eat("\"") {
            return Err(self.error(
                self.at..self.at,
                "the selector has no value",
                r#"write {route="GET /items/{id}"}, with the quotes"#,
            ));
        }
        let opened = self.at - 1;
        let value = self.quoted().ok_or_else(|| {
            self.error(
                opened..opened + 1,
                "this quote is never closed",
                r#"write {route="GET /items/{id}"}"#,
            )
        })?;
        self.blanks();
        if !self.eat("}") {
            return Err(self.error(
                self.at..self.at,
                "the selector is not closed",
                "close it with `}` after the quote; one route is all that it takes",
            ));
        }
        let place = start..self.at;
        if route.is_some() {
            return Err(self.error(place, "this is the second selector", "keep one of the two"));
        }
        if !metric.by_route() {
            return Err(self.error(
                place,
                format!("`{metric}` is not known by route"),
                "leave the selector out",
            ));
        }
        if value.is_empty() {
            return Err(self.error(
                place,
                "the route is empty",
                "name a route, or leave the selector out for all together",
            ));
        }
        *route = Some(value);
        Ok(())
    }

    /// The rest of a quoted text, behind its first quote; `None` if it has no end.
    fn quoted(&mut self) -> Option<String> {
        let mut value = String::new();
        loop {
            let c = self.rest().chars().next()?;
            self.at += c.len_utf8();
            match c {
                '"' => return Some(value),
                '\\' => {
                    let escaped = self.rest().chars().next()?;
                    self.at += escaped.len_utf8();
                    value.push(escaped);
                }
                _ => value.push(c),
            }
        }
    }

    fn op(&mut self, metric: &Metric) -> Result<Op, ThresholdError> {
        self.blanks();
        let start = self.at;
        // The longer spellings first.
        for op in [Op::AtMost, Op::AtLeast, Op::Equal, Op::Less, Op::Greater] {
            if self.eat(&op.to_string()) {
                let whole = matches!(metric, Metric::Dropped | Metric::Unexplained);
                if op == Op::Equal && !whole && *metric != Metric::Errors {
                    return Err(self.error(
                        start..self.at,
                        format!("`{metric}` is measured, so it equals nothing exactly"),
                        "write <, <=, > or >=",
                    ));
                }
                return Ok(op);
            }
        }
        let found = self.take(|c| !c.is_whitespace() && !c.is_alphanumeric()).len();
        let remedy = "write <, <=, >, >= or ==, for example `p99 < 25ms`";
        Err(if found > 0 {
            self.error(start..start + found, "this is no comparison", remedy)
        } else {
            self.error(start..start, "a comparison is missing here", remedy)
        })
    }

    fn limit(&mut self, metric: &Metric, k6: bool) -> Result<f64, ThresholdError> {
        self.blanks();
        let start = self.at;
        let digits = self.take(|c| c.is_ascii_digit() || c == '.' || c == '_').to_owned();
        let place = start..self.at;
        let number: String = digits.chars().filter(|c| *c != '_').collect();
        if number.is_empty() {
            let place = start..self.text.len();
            return Err(if self.rest().starts_with('-') {
                self.error(place, "no figure is ever below zero", "write a limit of at least 0")
            } else {
                self.error(place, "a limit is missing here", fitting(metric))
            });
        }
        // Twenty digits are more than a double holds, and keep every sum below far from infinity.
        let value =
            (number.len() <= 20).then(|| scaled(&number, 0)).flatten().ok_or_else(|| {
                self.error(place.clone(), format!("`{digits}` is no number"), fitting(metric))
            })?;
        self.blanks();
        let unit_start = self.at;
        let unit = self.rest().to_owned();
        self.at = self.text.len();
        let misfit = |problem: String| {
            Err(self.error(unit_start..unit_start + unit.len(), problem, fitting(metric)))
        };
        let of = |units: &[(&str, f64)]| {
            units.iter().find(|(name, _)| *name == unit).map(|(_, size)| value * size)
        };
        let limit = match metric.unit() {
            Unit::Us if unit.is_empty() && k6 => Some(value * 1e3),
            Unit::Us => of(&DURATIONS),
            Unit::Bytes => of(&SIZES),
            Unit::PerSecond => (unit == "/s").then_some(value),
            Unit::Count => unit.is_empty().then_some(value),
            Unit::Ratio if unit == "%" => scaled(&number, -2),
            Unit::Ratio => unit.is_empty().then_some(value),
        };
        let Some(limit) = limit else {
            return if unit.is_empty() {
                misfit(format!("`{metric}` needs a unit here"))
            } else {
                misfit(format!("`{unit}` does not fit `{metric}`"))
            };
        };
        match metric.unit() {
            Unit::Ratio if limit > 1.0 => {
                let remedy = if unit.is_empty() && value <= 100.0 {
                    format!("{number} is a plain ratio here; write {number}%")
                } else {
                    "write at most 100%".to_owned()
                };
                Err(self.error(start..self.text.len(), "this is more than the whole", remedy))
            }
            Unit::Count if limit.fract() != 0.0 => Err(self.error(
                place,
                format!("`{metric}` is a whole number"),
                "write one, for example 0",
            )),
            _ => Ok(limit),
        }
    }

    fn unknown_metric(&self, place: Range<usize>) -> ThresholdError {
        let known = Metric::ALL.map(|metric| metric.to_string());
        let problem = match &self.text[place.clone()] {
            "" => "a metric or a percentile is missing here".to_owned(),
            name => format!("there is no metric `{name}`"),
        };
        self.error(
            place,
            problem,
            format!(
                "known metrics: {}, and phases like pool_wait:db p99 or cache:NAME hit_ratio; a \
                 bare p99, mean, med, min or max is of response_time",
                known.join(", ")
            ),
        )
    }

    fn error(
        &self,
        place: Range<usize>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ThresholdError {
        ThresholdError {
            expression: self.text.to_owned(),
            place,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn blanks(&mut self) {
        self.take(char::is_whitespace);
    }

    fn word(&mut self) -> &'a str {
        self.take(in_word)
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn eat(&mut self, expected: &str) -> bool {
        let found = self.rest().starts_with(expected);
        if found {
            self.at += expected.len();
        }
        found
    }
}

/// Which limits a metric takes, for an error.
fn fitting(metric: &Metric) -> String {
    match metric.unit() {
        Unit::Us => "write a duration in ns, us, ms or s, for example 25ms",
        Unit::Ratio => "write a percentage, for example 0.1%, or the plain ratio 0.001",
        Unit::PerSecond => "write requests per second, for example 1000/s",
        Unit::Bytes => "write a size in B, KB, MB, GB, KiB, MiB or GiB, for example 2GiB",
        Unit::Count => "write a whole number without a unit, for example 0",
    }
    .to_owned()
}

/// Plain decimal digits times a power of ten, rounded once, so that `99.9` percent is the 0.999 that
/// everyone else writes.
fn scaled(digits: &str, exponent: i32) -> Option<f64> {
    let numeric = digits.bytes().any(|b| b.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if !numeric {
        return None;
    }
    format!("{digits}e{exponent}").parse().ok()
}

/// `value` times a power of ten, in decimal digits and without an error of binary arithmetic.
fn shifted(value: f64, exponent: i32) -> String {
    format!("{value}e{exponent}")
        .parse::<f64>()
        .map_or_else(|_| value.to_string(), |v| v.to_string())
}

/// A limit in the largest unit that keeps it at 1 or more and gives back the same limit.
fn limit_in_words(limit: f64, unit: Unit) -> String {
    let exact = |units: &[(&str, f64)]| {
        units
            .iter()
            .map(|(name, size)| (limit / size, *name, *size))
            .filter(|(value, _, size)| {
                *value >= 1.0 && scaled(&value.to_string(), 0).map(|v| v * size) == Some(limit)
            })
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(value, name, _)| format!("{value}{name}"))
    };
    match unit {
        Unit::Us => exact(&DURATIONS).unwrap_or_else(|| format!("{limit}us")),
        Unit::Bytes => exact(&SIZES).unwrap_or_else(|| format!("{limit}B")),
        Unit::PerSecond => format!("{limit}/s"),
        Unit::Count => limit.to_string(),
        Unit::Ratio => {
            let percent = shifted(limit, 2);
            if scaled(&percent, -2) == Some(limit) {
                format!("{percent}%")
            } else {
                limit.to_string()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(expression: &str) -> Threshold {
        Threshold::parse(expression).unwrap_or_else(|error| panic!("{error}"))
    }

    fn refusal(expression: &str) -> String {
        Threshold::parse(expression).expect_err(expression).to_string()
    }

    #[test]
    fn the_expressions_of_the_guide_are_read() {
        use Metric::*;
        let quantile = |q| Some(Stat::Quantile(q));
        let phase = |name: &str| Phase(name.to_owned());
        for (expression, metric, stat, op, limit) in [
            ("p99 < 25ms", ResponseTime, quantile(0.99), Op::Less, 25_000.0),
            ("p(99)<25", ResponseTime, quantile(0.99), Op::Less, 25_000.0),
            ("p(99.9) <= 25us", ResponseTime, quantile(0.999), Op::AtMost, 25.0),
            ("  p99.9<=1.5s ", ResponseTime, quantile(0.999), Op::AtMost, 1_500_000.0),
            ("avg < 800ns", ResponseTime, Some(Stat::Mean), Op::Less, 0.8),
            ("med < 3µs", ResponseTime, quantile(0.5), Op::Less, 3.0),
            ("server_time max < 1 s", ServerTime, Some(Stat::Max), Op::Less, 1e6),
            ("lag p99 < 1ms", Lag, quantile(0.99), Op::Less, 1_000.0),
            ("errors < 0.1%", Errors, None, Op::Less, 0.001),
            ("errors == 0", Errors, None, Op::Equal, 0.0),
            ("errors <= 0.05", Errors, None, Op::AtMost, 0.05),
            ("rate >= 1_000/s", Rate, None, Op::AtLeast, 1_000.0),
            ("rss < 2GiB", Rss, None, Op::Less, 2_147_483_648.0),
            ("rss < 2GB", Rss, None, Op::Less, 2e9),
            ("cpu < 80%", Cpu, None, Op::Less, 0.8),
            ("dropped == 0", Dropped, None, Op::Equal, 0.0),
            ("pool_wait:db p99 < 5ms", phase("pool_wait:db"), quantile(0.99), Op::Less, 5_000.0),
            ("query:db p(95)<3", phase("query:db"), quantile(0.95), Op::Less, 3_000.0),
            ("cache:cache mean < 1ms", phase("cache:cache"), Some(Stat::Mean), Op::Less, 1_000.0),
            ("limiter p99 < 1ms", phase("limiter"), quantile(0.99), Op::Less, 1_000.0),
            ("handler max < 1s", phase("handler"), Some(Stat::Max), Op::Less, 1e6),
            ("render-html p90 < 2ms", phase("render-html"), quantile(0.9), Op::Less, 2_000.0),
            (r#""my phase" p90 < 2ms"#, phase("my phase"), quantile(0.9), Op::Less, 2_000.0),
            (r#""lag" p90 < 2ms"#, phase("lag"), quantile(0.9), Op::Less, 2_000.0),
            ("cache:cache hit_ratio >= 80%", HitRatio("cache".to_owned()), None, Op::AtLeast, 0.8),
        ] {
            let found = parse(expression);
            assert_eq!(
                (found.metric, found.stat, found.op, found.limit, found.unit),
                (metric.clone(), stat, op, limit, metric.unit()),
                "{expression}"
            );
            assert_eq!(found.expression, expression.trim());
        }
    }

    #[test]
    fn a_selector_stands_behind_the_metric_or_the_statistic() {
        for expression in [
            r#"p95{route="GET /items/{id}"} <= 200ms"#,
            r#"response_time{ route = "GET /items/{id}" } p95 <= 200ms"#,
            r#"response_time p95 {route="GET /items/{id}"}<=200ms"#,
        ] {
            let found = parse(expression);
            assert_eq!(found.route.as_deref(), Some("GET /items/{id}"), "{expression}");
            assert_eq!(found.stat, Some(Stat::Quantile(0.95)));
        }
        for expression in [
            r#"ttfb{route="GET /"} p99 < 1ms"#,
            r#"lag p99{route="GET /"} < 1ms"#,
            r#"pool_wait:db{route="GET /"} p99 < 1ms"#,
            r#""my phase" p99{route="GET /"} < 1ms"#,
        ] {
            assert_eq!(parse(expression).route.as_deref(), Some("GET /"), "{expression}");
        }
        assert_eq!(parse(r#"errors{route="a\"b\\c"} < 1%"#).route.as_deref(), Some(r#"a"b\c"#));
    }

    #[test]
    fn an_error_points_at_the_place_and_says_what_is_right() {
        assert_eq!(
            refusal("p99 < 25m"),
            "`m` does not fit `response_time`\n\
             \x20 p99 < 25m\n\
             \x20         ^\n\
             write a duration in ns, us, ms or s, for example 25ms"
        );
        for (expression, place, words) in [
            ("", 0..0, "known metrics: response_time"),
            ("latency < 5ms", 0..7, "there is no metric `latency`"),
            ("latency < 5ms", 0..7, "phases like pool_wait:db p99 or cache:NAME hit_ratio"),
            (
                "respons_time p99 < 5ms",
                0..12,
                "write `response_time`; a phase of that name is written \"respons_time\"",
            ),
            ("eror < 5%", 0..4, "write `errors`"),
            ("pool_wait:db < 5ms", 12..12, "write `pool_wait:db p99`"),
            ("handler < 5ms", 7..7, "which figure"),
            ("\"my phase < 5ms", 0..1, "never closed"),
            ("\"\" p99 < 5ms", 0..2, "no name"),
            ("cache:c p9x < 5ms", 8..11, "no percentile"),
            ("cache:c hits < 5ms", 8..12, "max, or hit_ratio"),
            ("query:db hit_ratio > 80%", 9..18, "only a cache has hits"),
            ("rate hit_ratio > 80%", 5..14, "only a cache has hits"),
            ("cache: hit_ratio > 80%", 0..6, "no name"),
            ("cache:c hit_ratio > 80", 20..22, "write 80%"),
            (r#"cache:c{route="x"} hit_ratio > 80%"#, 7..19, "not known by route"),
            ("p99 < 25", 8..8, "needs a unit"),
            ("avg < 25", 8..8, "needs a unit"),
            ("p99 25ms", 4..4, "a comparison is missing"),
            ("p99 =< 25ms", 4..6, "no comparison"),
            ("p99 <", 5..5, "a limit is missing"),
            ("p99 < -5ms", 6..10, "below zero"),
            ("p99 < 1.2.3ms", 6..11, "no number"),
            ("p99 == 5ms", 4..6, "<, <=, > or >="),
            ("errors == 5%", 10..12, "errors == 0"),
            ("p100 < 5ms", 0..4, "write min or max"),
            ("p(99 < 5ms", 10..10, "not closed"),
            ("p9x < 5ms", 0..3, "no percentile"),
            ("server_time < 5ms", 11..11, "which figure"),
            ("rate p99 > 5/s", 5..8, "no statistics"),
            ("rate > 1000", 11..11, "requests per second"),
            ("rate > 5ms", 8..10, "does not fit"),
            ("errors < 5", 9..10, "write 5%"),
            ("cpu < 120%", 6..10, "at most 100%"),
            ("rss < 2", 7..7, "KiB, MiB or GiB"),
            ("dropped < 1.5", 10..13, "whole number"),
            (r#"rss{route="x"} < 1GB"#, 3..14, "not known by route"),
            (r#"p99{path="x"} < 1ms"#, 4..8, "nothing to select by"),
            (r#"p99{route="x < 1ms"#, 10..11, "never closed"),
            (r#"p99{route=x} < 1ms"#, 10..10, "with the quotes"),
            ("p99 < 5ms and more", 7..18, "does not fit"),
        ] {
            let error = Threshold::parse(expression).expect_err(expression);
            assert_eq!(error.place(), place, "{expression}");
            assert!(error.to_string().contains(words), "{expression}: {error}");
        }
    }

    #[test]
    fn the_caret_counts_characters_not_bytes() {
        let message = refusal("p99 < 25µsec");
        assert_eq!(message.lines().nth(2), Some("          ^^^^"));
    }

    fn same(a: &Threshold, b: &Threshold) -> bool {
        // All but the spelling.
        Threshold { expression: String::new(), ..a.clone() }
            == Threshold { expression: String::new(), ..b.clone() }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(expression in any::<String>()) {
            if let Err(error) = Threshold::parse(&expression) {
                prop_assert!(error.to_string().lines().count() >= 3);
            }
        }

        #[test]
        fn parsing_what_looks_like_a_threshold_never_panics(
            expression in r#"[a-z_:"]{0,13}( ?p?\(?[0-9.]{0,5}\)?)?(\{[a-z]{0,5}="?[^"]{0,5}"?\}?)? ?[<>=!]{0,2} ?[-0-9._]{0,7}[a-zµ%/]{0,3}"#,
        ) {
            match Threshold::parse(&expression) {
                Ok(read) => prop_assert!(same(&read, &parse(&read.to_string())), "{}", read),
                Err(error) => prop_assert!(error.place().end <= expression.len()),
            }
        }

        #[test]
        fn what_is_shown_parses_back_to_the_same(
            metric in prop_oneof![
                prop::sample::select(Metric::ALL.to_vec()),
                r#"([a-z]{1,4}:)?[a-z_"\\ 0-9é-]{1,9}"#.prop_map(Metric::Phase),
                prop::sample::select(vec!["lag", "p99", "max", "eror", "handler", "cache:", "a\nb"])
                    .prop_map(|name| Metric::Phase(name.to_owned())),
                r#"[a-z"\\ é:]{1,9}"#.prop_map(Metric::HitRatio),
            ],
            stat in prop_oneof![
                (1_u32..100_000_000).prop_map(|n| format!("p{}", shifted(f64::from(n), -6))),
                prop::sample::select(vec!["mean", "avg", "med", "min", "max"])
                    .prop_map(str::to_owned),
            ],
            route in prop::option::of(r#"[A-Z]{3} /[a-z{}"\\ é]{0,9}"#),
            op in prop::sample::select(vec!["<", "<=", ">", ">="]),
            value in 0.0_f64..1e6,
            unit in 0_usize..7,
        ) {
            let mut text = metric.to_string();
            if metric.unit() == Unit::Us {
                text += &format!(" {stat}");
            }
            if let (Some(route), true) = (route, metric.by_route()) {
                let route = route.replace('\\', "\\\\").replace('"', "\\\"");
                text += &format!("{{route=\"{route}\"}}");
            }
            let limit = match metric.unit() {
                Unit::Us => format!("{value}{}", DURATIONS[unit % DURATIONS.len()].0),
                Unit::Bytes => format!("{value}{}", SIZES[unit].0),
                Unit::PerSecond => format!("{value}/s"),
                Unit::Count => format!("{}", value.trunc()),
                Unit::Ratio if unit % 2 == 0 => format!("{}%", value / 1e4),
                Unit::Ratio => format!("{}", value / 1e6),
            };
            let expression = format!("{text} {op} {limit}");
            // A random double may have more digits than a limit takes.
            prop_assume!(limit.trim_end_matches(|c: char| !c.is_ascii_digit()).len() <= 20);
            let parsed = parse(&expression);
            let shown = parsed.to_string();
            prop_assert_eq!(&parsed.metric, &metric);
            prop_assert!(same(&parsed, &parse(&shown)), "{} is shown as {}", expression, shown);
        }
    }
}
