//! How the values of flags are written.

use std::{convert::Infallible, fmt, fs, path::Path, time::Duration};

use http::{HeaderName, HeaderValue, Method};

use crate::{
    pause::Pause,
    plan::{MAX_RATE, MAX_TIME, MIN_DURATION, PlanError},
    script::ScriptError,
    threshold::Threshold,
};

pub(super) fn count(text: &str) -> Result<usize, String> {
    match text.parse::<i128>() {
        Ok(n) if n < 1 => Err("it has to be at least 1".to_owned()),
        Ok(n) => usize::try_from(n).map_err(|_| "it is too large".to_owned()),
        Err(_) => Err("it has to be a whole number, like 100".to_owned()),
    }
}

pub(super) fn rate(text: &str) -> Result<f64, String> {
    match text.trim_end_matches("/s").parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= MAX_RATE => Ok(rate),
        Ok(_) => Err("it has to be above 0 and at most 10000000".to_owned()),
        Err(_) => Err("it has to be a number of requests per second, like 1000".to_owned()),
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it like 500ms, 10s, 5m or 1h"))?;
    if duration > MAX_TIME {
        return Err("it has to be a year at most".to_owned());
    }
    Ok(duration)
}

pub(super) fn measurable(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < MIN_DURATION => Err("it has to be at least 100ms".to_owned()),
        duration => Ok(duration),
    }
}

pub(super) fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it has to be above 0, like 10s".to_owned()),
        duration => Ok(duration),
    }
}

pub(super) fn threshold_file(path: &str) -> Result<Vec<Threshold>, ScriptError> {
    Threshold::read(path)
}

/// `100ms`, or `exp:100ms`.
pub(super) fn pause(text: &str) -> Result<Pause, String> {
    match text.split_once(':') {
        None => duration(text).map(Pause::Constant),
        Some(("exp", mean)) => duration(mean).map(Pause::Exponential),
        Some(_) => Err("write it like 100ms, or exp:100ms for pauses at random".to_owned()),
    }
}

/// Straight lines from level to level, as `--stages` has them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stages {
    Rates(Vec<(Duration, f64)>),
    Users(Vec<(Duration, usize)>),
}

impl Stages {
    /// How long they take together.
    pub(super) fn length(&self) -> Duration {
        let add = Duration::saturating_add;
        match self {
            Self::Rates(stages) => stages.iter().map(|(time, _)| *time).fold(Duration::ZERO, add),
            Self::Users(stages) => stages.iter().map(|(time, _)| *time).fold(Duration::ZERO, add),
        }
    }
}

/// `10s:100,30s:1000` are rates, `10s:100users,30s:1000users` are users.
pub(super) fn stages(text: &str) -> Result<Stages, String> {
    let (mut rates, mut users) = (Vec::new(), Vec::new());
    for stage in text.split(',') {
        let bad = |why: &str| format!("{stage:?}: {why}");
        let form = "write a stage like 10s:100, or 10s:100users";
        let (time, level) = stage.trim().split_once(':').ok_or_else(|| bad(form))?;
        let time = duration(time.trim()).map_err(|why| bad(&why))?;
        let level = level.trim();
        match level.strip_suffix("users").or_else(|| level.strip_suffix("user")) {
            Some(number) => {
                let number = number.trim().parse();
                users.push((time, number.map_err(|_| bad("the users have to be a whole number"))?));
            }
            None => match level.trim_end_matches("/s").parse::<f64>() {
                Ok(rate) if (0.0..=MAX_RATE).contains(&rate) => rates.push((time, rate)),
                Ok(_) => return Err(bad("the rate has to be 0 to 10000000")),
                Err(_) => return Err(bad(form)),
            },
        }
    }
    match (rates.is_empty(), users.is_empty()) {
        (false, true) => Ok(Stages::Rates(rates)),
        (true, _) => Ok(Stages::Users(users)),
        (false, false) => Err("stages are of users or of rates, not of both: 10s:100,30s:1000 or \
                               10s:100users,30s:1000users"
            .to_owned()),
    }
}

/// A name and a value, for the report.
pub(super) fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it like branch=main".to_owned()),
    }
}

/// A method of HTTP, in capitals.
pub(super) fn method(text: &str) -> Result<Method, String> {
    if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err("methods are written in capitals, like GET".to_owned());
    }
    text.parse().map_err(|_| "it has to be a method of HTTP, like GET".to_owned())
}

/// A text that is in no message and in no report: neither when it is wrong, nor when it is right.
#[derive(Clone)]
pub(super) struct Hidden(pub(super) String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Never fails: what is wrong with it is told later, by somebody who does not repeat it.
pub(super) fn hidden(text: &str) -> Result<Hidden, Infallible> {
    Ok(Hidden(text.to_owned()))
}

/// `Name: value`. The error says what is wrong, and nothing of the text.
pub(super) fn header(text: &Hidden) -> Result<(HeaderName, HeaderValue), &'static str> {
    let (name, value) = text.0.split_once(':').ok_or("there is no colon in it")?;
    let name = name.trim().parse().map_err(|_| "its name is none of a header")?;
    let mut value: HeaderValue =
        value.trim().parse().map_err(|_| "its value has characters that no header may have")?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// Start times in seconds, one a line, in any order; what follows a `#` is a comment.
pub(super) fn start_times(path: &Path) -> Result<Vec<Duration>, String> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
    let mut starts = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let time = line.parse().ok().and_then(|time| Duration::try_from_secs_f64(time).ok());
        starts.push(time.ok_or_else(|| {
            format!("{shown}:{number}: {line:?} is no start time: give seconds, like 12.25")
        })?);
    }
    if starts.is_empty() {
        return Err(format!("{shown}: {}", PlanError::NothingToReplay));
    }
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn stages_are_of_rates_or_of_users() {
        let rates = Stages::Rates(vec![(10 * SECOND, 100.0), (30 * SECOND, 1000.5)]);
        assert_eq!(stages("10s:100, 30s:1000.5/s"), Ok(rates.clone()));
        assert_eq!(rates.length(), 40 * SECOND);
        let users = Stages::Users(vec![(SECOND, 1), (Duration::ZERO, 5), (SECOND, 0)]);
        assert_eq!(stages("1s:1user,0s:5users,1s:0 users"), Ok(users));
    }

    #[test]
    fn stages_that_cannot_be_read_are_named_with_the_remedy() {
        for (text, words) in [
            ("", "10s:100users"),
            ("10s", "\"10s\": write a stage like"),
            ("10s:100,", "\"\": write a stage like"),
            ("10s:many", "\"10s:many\": write a stage like"),
            ("soon:5", "500ms, 10s"),
            ("10s:-5", "0 to 10000000"),
            ("10s:NaN", "0 to 10000000"),
            ("10s:1.5users", "whole number"),
            ("10s:100,10s:5users", "not of both"),
        ] {
            let error = stages(text).expect_err(text);
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_pause_is_constant_or_at_random() {
        assert_eq!(pause("100ms"), Ok(Pause::Constant(SECOND / 10)));
        assert_eq!(pause("exp:2s"), Ok(Pause::Exponential(2 * SECOND)));
        assert!(pause("log:2s").expect_err("there is none").contains("exp:100ms"));
        assert!(pause("exp:soon").expect_err("it is no time").contains("500ms"));
    }

    #[test]
    fn what_is_wrong_with_a_header_is_told_without_its_value() {
        let read = |text: &str| header(&Hidden(text.to_owned()));
        let (name, value) = read("Authorization: Bearer s3cr3t:x").expect("it is one");
        assert_eq!((name.as_str(), value.as_bytes()), ("authorization", &b"Bearer s3cr3t:x"[..]));
        assert!(!format!("{value:?} {:?}", Hidden("s3cr3t".to_owned())).contains("s3cr3t"));
        for text in ["s3cr3t", ": s3cr3t", "a b: s3cr3t", "x: s3cr3t\n"] {
            // A newline at the end is trimmed like any space.
            let Err(why) = read(text) else { continue };
            assert!(!why.contains("s3cr3t"));
        }
        assert!(read("x: a\nb").is_err());
    }
}
