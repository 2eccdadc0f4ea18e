//! Progress on standard error: a display on a terminal, a line a second elsewhere.

use std::{collections::VecDeque, fmt, io, io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tokio::time::Instant;

use super::tell;
use crate::{
    progress::{Progress, Stage},
    render::{number, sparkline},
};

/// Rates that the display remembers, one a second.
const RATES: usize = 30;
/// Of a terminal that nobody has made wider.
const COLUMNS: usize = 79;

/// Standard error, where bars and lines must not write over one another.
#[derive(Clone, Debug)]
pub(super) struct Screen {
    bars: MultiProgress,
    quiet: bool,
}

impl Screen {
    pub(super) fn new(quiet: bool) -> Self {
        let target =
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self { bars: MultiProgress::with_draw_target(target), quiet }
    }

    /// A line that stays, above the bars if there are any.
    pub(super) fn tell(&self, line: &str) {
        self.bars.suspend(|| tell(line));
    }

    /// What there is in the place of bars.
    fn plain_lines(&self) -> Option<PlainLines> {
        (!self.quiet && !io::stderr().is_terminal()).then(PlainLines::default)
    }
}

/// Progress of counted work: a bar on a terminal, a line a second elsewhere.
#[derive(Debug)]
pub struct Counter {
    bar: ProgressBar,
    plain: Option<PlainLines>,
    name: String,
    total: u64,
    started: Instant,
}

impl Counter {
    /// Begins to count `name` up to `total`, on standard error; shows nothing if `quiet`.
    #[must_use]
    pub fn new(name: &str, total: u64, quiet: bool) -> Self {
        Self::on(&Screen::new(quiet), name, total)
    }

    pub(super) fn on(screen: &Screen, name: &str, total: u64) -> Self {
        let bar = screen.bars.add(ProgressBar::new(total));
        bar.set_style(style("{prefix:12} {wide_bar} {human_pos}/{human_len} {rate} {eta} left"));
        bar.set_prefix(name.to_owned());
        Self {
            bar,
            plain: screen.plain_lines(),
            name: name.to_owned(),
            total,
            started: Instant::now(),
        }
    }

    /// `done` of the total are done.
    pub fn set(&mut self, done: u64) {
        self.bar.set_position(done);
        if let Some(plain) = &mut self.plain {
            let (name, total) = (&self.name, self.total);
            let rate = done as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
            // Nothing done tells nothing about the time left.
            let pace = if done == 0 {
                String::new()
            } else {
                let left = total.saturating_sub(done) as f64 / rate;
                format!(", {}, {left:.0} s left", number::per_second(rate))
            };
            plain.line(done >= total, || {
                format!("{name}: {} of {}{pace}", number::count(done), number::count(total))
            });
        }
    }

    /// The work is over.
    pub fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The live display of a run.
#[derive(Debug)]
pub(super) struct Display {
    bar: ProgressBar,
    plain: Option<PlainLines>,
    stage: Option<Stage>,
    rates: VecDeque<Option<f64>>,
    /// Of the stage; the next one has its rate still to come.
    second: u64,
}

impl Display {
    pub(super) fn new(screen: &Screen) -> Self {
        let bar = screen.bars.add(ProgressBar::no_length());
        bar.set_style(style("{msg}"));
        Self { bar, plain: screen.plain_lines(), stage: None, rates: VecDeque::new(), second: 0 }
    }

    pub(super) fn show(&mut self, progress: &Progress) {
        let new_stage = self.stage.replace(progress.stage) != Some(progress.stage);
        if new_stage && progress.stage != Stage::Drain {
            self.rates.clear();
            self.second = 0;
        }
        if progress.elapsed.as_secs() > self.second {
            self.second = progress.elapsed.as_secs();
            self.rates.push_back(Some(progress.rate));
            self.rates.drain(..self.rates.len().saturating_sub(RATES));
        }
        if !self.bar.is_hidden() {
            self.bar.set_message(screen(progress, self.rates.make_contiguous()));
        }
        if let Some(plain) = &mut self.plain {
            plain.line(new_stage, || line(progress));
        }
    }

    pub(super) fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// What a stage has behind it, from 0 to 1, and what it has before it, in words.
fn way(progress: &Progress) -> (f64, String) {
    let left = progress.planned.saturating_sub(progress.elapsed);
    let done = progress.ok + progress.failed;
    match (progress.stage, progress.requests) {
        (Stage::Drain, _) => (1.0, String::new()),
        (_, Some(total)) => {
            let share = done.min(total) as f64 / total as f64;
            (share, format!("{} of {} requests", number::count(done), number::count(total)))
        }
        (_, None) => {
            let share = progress.elapsed.as_secs_f64() / progress.planned.as_secs_f64();
            (share.min(1.0), format!("{:.0} s left", left.as_secs_f64()))
        }
    }
}

/// Two lines for a terminal.
fn screen(progress: &Progress, rates: &[Option<f64>]) -> String {
    let (share, left) = way(progress);
    let begin = format!("{} {}", progress.run, progress.stage.name());
    let mut end = format!("{} in flight, {}", number::count(progress.in_flight), errors(progress));
    if !left.is_empty() {
        end = format!("{left}, {end}");
    }
    let words = begin.chars().count() + end.chars().count() + 4;
    let room = COLUMNS.saturating_sub(words).clamp(6, 30);
    let full = (share * room as f64).round() as usize;
    let (full, empty) = ("━".repeat(full), "╌".repeat(room - full));
    let spark = sparkline(rates).map(|(bars, ..)| format!("{bars} ")).unwrap_or_default();
    format!("{begin}  {full}{empty}  {end}\n  {spark}{}", figures(progress))
}

/// The same in one line, for a file.
fn line(progress: &Progress) -> String {
    let left = way(progress).1;
    let left = if left.is_empty() { left } else { format!(", {left}") };
    format!(
        "{} {}: {}, {}, {} in flight{left}",
        progress.run,
        progress.stage.name(),
        figures(progress),
        errors(progress),
        number::count(progress.in_flight),
    )
}

fn errors(progress: &Progress) -> String {
    let plural = if progress.failed == 1 { "" } else { "s" };
    format!("{} error{plural}", number::count(progress.failed))
}

fn figures(progress: &Progress) -> String {
    let time = |time: Option<Duration>| {
        time.map_or_else(|| "…".to_owned(), |time| number::duration(time.as_secs_f64() * 1e6))
    };
    let rate = number::per_second(progress.rate);
    format!("{rate}, p50 {}, p99 {}", time(progress.p50), time(progress.p99))
}

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse is a bug here, not a reason to refuse a run.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
            // Writing to a string cannot fail.
            let _ = out.write_str(&number::per_second(state.per_sec()));
        })
}

/// A line a second at most.
#[derive(Debug, Default)]
struct PlainLines {
    last: Option<Instant>,
}

impl PlainLines {
    fn line(&mut self, at_once: bool, text: impl FnOnce() -> String) {
        let due = self.last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1));
        if due || at_once {
            self.last = Some(Instant::now());
            tell(&text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(requests: Option<u64>) -> Progress {
        Progress {
            run: "open".to_owned(),
            stage: Stage::Measure,
            elapsed: Duration::from_secs(4),
            planned: Duration::from_secs(10),
            requests,
            ok: 7_999,
            failed: 1,
            in_flight: 12,
            rate: 1_998.0,
            p50: Some(Duration::from_micros(1_200)),
            p99: None,
        }
    }

    #[test]
    fn a_line_has_the_figures_and_the_time_left() {
        let line = line(&progress(None));
        assert_eq!(
            line,
            "open measuring: 1,998/s, p50 1.20 ms, p99 …, 1 error, 12 in flight, 6 s left"
        );
    }

    #[test]
    fn of_a_number_of_requests_the_share_is_told() {
        assert!(line(&progress(Some(16_000))).ends_with(", 8,000 of 16,000 requests"));
        let screen = screen(&progress(Some(16_000)), &[]);
        let count = |wanted| screen.chars().filter(|char| *char == wanted).count();
        assert_eq!(count('━'), count('╌'), "{screen}");
    }

    #[test]
    fn a_terminal_of_80_columns_has_room_for_large_figures() {
        let progress = Progress {
            run: "tcp:h2".to_owned(),
            stage: Stage::WarmUp,
            ok: 9_999_999,
            failed: 1_999_999,
            in_flight: 10_000,
            rate: 1_234_567.0,
            p99: Some(Duration::from_millis(12_345)),
            ..progress(None)
        };
        let rates: Vec<_> = (1..=30).map(|n| Some(f64::from(n))).collect();
        let screen = screen(&progress, &rates);
        let widths: Vec<usize> = screen.lines().map(|line| line.chars().count()).collect();
        assert!(widths.len() == 2 && widths.iter().all(|width| *width < 80), "{screen}");
        assert!(screen.contains('▁') && screen.contains('█'), "{screen}");
    }

    #[test]
    fn a_drain_says_what_it_waits_for() {
        let drain = Progress { stage: Stage::Drain, ..progress(None) };
        assert!(line(&drain).ends_with("12 in flight"), "{}", line(&drain));
    }
}
