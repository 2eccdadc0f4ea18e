//! Limits that were missed, and whether the service is to blame: on a machine that is saturated, or while it warms up,
//! it is not.

use std::time::Duration;

use parallax_middleware::{LatencyHistogram, samples_needed};

use crate::{
    plan::Plan,
    render::number,
    report::{Reason, ThresholdResult, Unit, Verdict},
    runner::Findings,
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
}

impl<'a> Missed<'a> {
    /// Those of `thresholds`, judged as `results`.
    pub(crate) fn of(thresholds: &[Threshold], results: &'a [ThresholdResult]) -> Vec<Self> {
        let missed = thresholds.iter().zip(results).filter_map(|(threshold, result)| {
            let of_time = threshold.stat.is_some() || threshold.metric == Metric::Rate;
            let open = matches!(result.verdict, Verdict::Fail | Verdict::Inconclusive);
            // A percentile that lies among failures is missed because of them.
            let observed =
                result.observed.filter(|figure| !threshold.op.holds(*figure, result.limit))?;
            (of_time && open).then_some(Self {
                expression: &result.expression,
                op: threshold.op,
                stat: threshold.stat,
                observed,
                limit: result.limit,
                unit: result.unit,
            })
        });
        missed.collect()
    }

    /// How late tasks were woken, if that may be why: at the quantile that the limit is about, or on average. A median
    /// is not missed because one wake-up in a hundred was late.
    fn may_come_of(&self, late: &LatencyHistogram) -> Option<Duration> {
        let late = match self.stat {
            Some(Stat::Quantile(q)) => late.quantile(q.min(0.99))?,
            Some(Stat::Max) => late.quantile(0.99)?,
            Some(Stat::Min) => late.min(),
            Some(Stat::Mean) | None => late.mean(),
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

/// The machine had no room, so limits that are missed say nothing about the service. `cpu_share` is that of the
/// process within the measured interval, of all processors.
pub(crate) fn saturated(
    findings: &Findings,
    plan: &Plan,
    cpu_share: Option<f64>,
    missed: &[Missed<'_>],
) -> Option<Reason> {
    if missed.is_empty() || plan.virtual_time {
        return None;
    }
    let late = findings.canary.as_ref().filter(|late| late.count() >= samples_needed(0.99));
    // If one limit is missed for another reason, that finding stands.
    let explained = late.is_some_and(|late| missed.iter().all(|m| m.may_come_of(late).is_some()));
    let late = late.and_then(|late| late.quantile(0.99)).filter(|_| explained);
    let busy = cpu_share.filter(|share| *share > CPU_SHARE);
    let mut evidence = Vec::new();
    if let Some(late) = late {
        evidence.push(format!(
            "a task that only sleeps and wakes up was {} late at p99 ({} may be)",
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
    let message = if findings.in_process {
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
