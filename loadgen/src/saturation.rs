//! Limits that were missed, and whether the service is to blame: on a machine that is saturated, or while it warms up,
//! it is not.

use std::time::Duration;

use parallax_middleware::{LatencyHistogram, samples_needed};

use crate::{
    render::number,
    report::{Reason, ThresholdResult, Unit, Verdict},
    settling::Fall,
    threshold::{Metric, Op, Stat, Threshold},
};

/// How late a task may be woken, at the quantile that a limit is about.
const LATE: Duration = Duration::from_millis(5);
/// A wait of this share of what a limit is missed by may be why.
const SHARE_OF_MISS: f64 = 0.1;
/// Of the time of all processors.
const CPU_SHARE: f64 = 0.85;

/// A limit on times or on a rate that the figures miss, for certain or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Missed<'a> {
    expression: &'a str,
    op: Op,
    stat: Option<Stat>,
    observed: f64,
    limit: f64,
    unit: Unit,
    certain: bool,
}

impl<'a> Missed<'a> {
    /// Those of `thresholds`, judged as `results`; none if something else failed, too, which nothing excuses.
    pub(crate) fn of(thresholds: &[Threshold], results: &'a [ThresholdResult]) -> Vec<Self> {
        let mut missed = Vec::new();
        for (threshold, result) in thresholds.iter().zip(results) {
            let certain = match result.verdict {
                Verdict::Fail => true,
                Verdict::Inconclusive => false,
                Verdict::Pass | Verdict::Invalid => continue,
            };
            let of_time = threshold.stat.is_some() || threshold.metric == Metric::Rate;
            // A percentile that lies among failures has no figure, and is missed because of them.
            let figure =
                result.observed.filter(|figure| !threshold.op.holds(*figure, result.limit));
            match figure.filter(|_| of_time) {
                Some(observed) => missed.push(Self {
                    expression: &result.expression,
                    op: threshold.op,
                    stat: threshold.stat,
                    observed,
                    limit: result.limit,
                    unit: result.unit,
                    certain,
                }),
                None if certain => return Vec::new(),
                None => {}
            }
        }
        missed
    }

    /// How late tasks were woken, if that may be why: at the quantile that the limit is about, or on average. A median
    /// is not missed because one wake-up in a hundred was late.
    fn may_come_of(&self, late: &LatencyHistogram) -> Option<Duration> {
        let late = match self.stat {
            Some(Stat::Quantile(q)) => late.quantile(q.min(0.99))?,
            Some(Stat::Max) => late.quantile(0.99)?,
            Some(Stat::Min) => late.min(),
            Some(Stat::Mean) => late.mean(),
            // A rate is no less for a few long waits than by their part in the time.
            None => late.quantile(0.5)?,
        };
        let by = (self.observed - self.limit).abs();
        let enough = self.unit != Unit::Us || late.as_secs_f64() * 1e6 >= SHARE_OF_MISS * by;
        (late > LATE && enough).then_some(late)
    }

    /// Would it be met if the figures were those of the end of the run?
    fn is_met_after(&self, fall: Fall) -> bool {
        let share = fall.last_us / fall.first_us;
        let observed =
            if self.unit == Unit::Us { self.observed * share } else { self.observed / share };
        self.op.holds(observed, self.limit)
    }
}

fn expressions(missed: &[Missed<'_>]) -> String {
    missed.iter().map(|missed| missed.expression).collect::<Vec<_>>().join(", ")
}

/// What is known of the machine that the load came from, within the measured interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine<'a> {
    /// How late a task was woken that only sleeps.
    pub(crate) late: Option<&'a LatencyHistogram>,
    /// Of the process, of the time of all processors.
    pub(crate) cpu_share: Option<f64>,
    /// The service runs in the same process.
    pub(crate) with_service: bool,
}

/// The machine had no room, so limits that are missed say nothing about the service.
pub(crate) fn saturated(machine: Machine<'_>, missed: &[Missed<'_>]) -> Option<Reason> {
    if missed.is_empty() {
        return None;
    }
    let late = machine.late.filter(|late| late.count() >= samples_needed(0.99));
    // If one limit is missed for another reason, that finding stands.
    let explained = late.is_some_and(|late| missed.iter().all(|m| m.may_come_of(late).is_some()));
    // The one that says the least.
    let late = late
        .filter(|_| explained)
        .and_then(|late| missed.iter().filter_map(|missed| missed.may_come_of(late)).min());
    // Load that is there to fill the processors fills them: that alone makes nothing of what is not certain.
    let certain = missed.iter().any(|missed| missed.certain);
    let busy = machine.cpu_share.filter(|share| *share > CPU_SHARE && certain);
    let mut evidence = Vec::new();
    if let Some(late) = late {
        evidence.push(format!(
            "a task that only sleeps and wakes up was {} late where that counts ({} may be)",
            duration(late),
            duration(LATE)
        ));
    }
    if let Some(busy) = busy {
        evidence.push(format!(
            "this process took {:.0} % of the time of all processors ({:.0} % may be)",
            busy * 100.0,
            CPU_SHARE * 100.0
        ));
    }
    if evidence.is_empty() {
        return None;
    }
    let (found, limits) = (evidence.join(", and "), expressions(missed));
    let message = if machine.with_service {
        format!(
            "the machine, which generator and service share, was saturated: {found}. So nobody knows whether the \
             service is why {limits} is missed. Lower the load, free the machine, or drive the service from another \
             one; and see that nothing blocks the runtime's threads"
        )
    } else {
        format!(
            "the generator's own machine was saturated: {found}. So nobody knows whether the service is why {limits} \
             is missed. Lower the load, or give the generator a machine with more room"
        )
    };
    Some(Reason { rule: "saturated".to_owned(), message })
}

/// The service was still warming up, and limits that are missed may be met once it is warm.
pub(crate) fn not_settled(fall: Option<Fall>, missed: &[Missed<'_>]) -> Option<Reason> {
    let fall =
        fall.filter(|fall| !missed.is_empty() && missed.iter().all(|m| m.is_met_after(*fall)))?;
    let message = format!(
        "the service was still warming up: the mean response time fell from {} in the first tenth of the run to {} in \
         the last, without an end in sight. So {} may yet be met. Warm up for longer (--warmup), or run longer",
        number::duration(fall.first_us),
        number::duration(fall.last_us),
        expressions(missed),
    );
    Some(Reason { rule: "not_settled".to_owned(), message })
}

fn duration(duration: Duration) -> String {
    number::duration(duration.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// So many wake-ups in a thousand are late by so much, the others by a millisecond.
    fn late(in_a_thousand: u64, by: Duration) -> LatencyHistogram {
        let mut late = LatencyHistogram::new();
        (0..1_000).for_each(|n| late.record(if n < in_a_thousand { by } else { MS }));
        late
    }

    /// Limits with the figure that each was found at.
    fn judged(found: &[(&str, f64, Verdict)]) -> (Vec<Threshold>, Vec<ThresholdResult>) {
        let judge = |(expression, observed, verdict): &(&str, f64, Verdict)| {
            let threshold = Threshold::parse(expression).expect("a limit");
            let result = ThresholdResult {
                expression: threshold.expression.clone(),
                run: String::new(),
                observed: Some(*observed),
                low: None,
                high: None,
                limit: threshold.limit,
                unit: threshold.unit,
                margin: None,
                samples: 1_000,
                verdict: *verdict,
                note: String::new(),
            };
            (threshold, result)
        };
        found.iter().map(judge).unzip()
    }

    fn reason(found: &[(&str, f64, Verdict)], machine: Machine<'_>) -> Option<String> {
        let (thresholds, results) = judged(found);
        saturated(machine, &Missed::of(&thresholds, &results)).map(|reason| reason.message)
    }

    fn woken(late: &LatencyHistogram) -> Machine<'_> {
        Machine { late: Some(late), cpu_share: Some(0.4), with_service: true }
    }

    fn at_work(cpu_share: f64) -> Machine<'static> {
        Machine { late: None, cpu_share: Some(cpu_share), with_service: true }
    }

    #[test]
    fn a_limit_that_is_missed_while_tasks_wake_up_late_is_not_the_services() {
        let message = reason(&[("p99 < 25ms", 60_000.0, Verdict::Fail)], woken(&late(20, MS * 30)));
        let message = message.expect("saturated");
        for part in ["p99 < 25ms is missed", "late where that counts (5.00 ms may be)", "Lower"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn what_the_lateness_cannot_explain_stays_the_services() {
        let fail = Verdict::Fail;
        for (found, late) in [
            // One wake-up in fifty moves no median.
            (&[("p50 < 25ms", 60_000.0, fail)][..], late(20, MS * 30)),
            // 30 ms make no ten seconds.
            (&[("p99 < 25ms", 1e7, fail)], late(20, MS * 30)),
            // The runtime was not late enough.
            (&[("p99 < 25ms", 30_000.0, fail)], late(20, MS * 4)),
            // One of two is explained.
            (&[("p99 < 25ms", 60_000.0, fail), ("p50 < 1ms", 60_000.0, fail)], late(20, MS * 30)),
            // A few long blocks are a small part of the time, however long.
            (&[("rate > 1000/s", 500.0, fail)], late(20, MS * 2_500)),
            // Something failed that no lateness excuses.
            (&[("p99 < 25ms", 60_000.0, fail), ("errors < 1%", 0.5, fail)], late(900, MS * 30)),
            // Errors are no matter of time.
            (&[("errors < 1%", 0.5, fail)], late(900, MS * 30)),
            // Too few moments.
            (&[("p99 < 25ms", 60_000.0, fail)], LatencyHistogram::new()),
        ] {
            assert_eq!(reason(found, woken(&late)), None, "{found:?}");
        }
    }

    #[test]
    fn a_process_that_takes_all_processors_explains_what_is_missed_and_nothing_that_is_met() {
        for (found, cpu_share, explained) in [
            (("p50 < 25ms", 1e7, Verdict::Fail), 0.9, true),
            (("rate > 1000/s", 900.0, Verdict::Fail), 0.9, true),
            (("p50 < 25ms", 1e7, Verdict::Fail), 0.8, false),
            (("p50 < 25ms", 1_000.0, Verdict::Pass), 0.99, false),
            // Not for certain: that is a matter of more requests.
            (("p50 < 25ms", 26_000.0, Verdict::Inconclusive), 0.99, false),
        ] {
            let reason = reason(&[found], at_work(cpu_share));
            assert_eq!(reason.is_some(), explained, "{found:?} at {cpu_share}: {reason:?}");
        }
    }

    #[test]
    fn on_another_machine_only_the_generators_is_known() {
        let machine = Machine { with_service: false, ..at_work(0.97) };
        let message =
            reason(&[("p99 < 25ms", 60_000.0, Verdict::Fail)], machine).expect("so it is");
        assert!(message.contains("the generator's own machine") && message.contains("97 %"));
    }

    #[test]
    fn only_a_limit_that_the_end_of_the_run_meets_is_excused_by_a_warm_up() {
        let fall = Some(Fall { first_us: 400_000.0, last_us: 80_000.0 });
        for (limit, observed, excused) in [
            ("p99 < 100ms", 420_000.0, true),
            ("p99 < 50ms", 420_000.0, false),
            ("rate > 100/s", 30.0, true),
            ("rate > 100/s", 10.0, false),
        ] {
            let (thresholds, results) = judged(&[(limit, observed, Verdict::Fail)]);
            let missed = Missed::of(&thresholds, &results);
            assert_eq!(not_settled(fall, &missed).is_some(), excused, "{limit} at {observed}");
            assert!(not_settled(None, &missed).is_none());
        }
        assert!(not_settled(fall, &[]).is_none(), "nothing is missed");
    }
}
