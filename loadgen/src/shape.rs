//! What a load is to look like over time, as a user says it, and what that comes to.

use std::time::Duration;

use crate::{
    plan::{MAX_RATE, MAX_TIME, MIN_DURATION, PlanError},
    report::Model,
    schedule::Profile,
};

/// Without a word about it.
pub(crate) const DURATION: Duration = Duration::from_secs(10);
/// So long may a fixed number of requests take, without a word about it.
pub(crate) const REQUESTS_WITHIN: Duration = Duration::from_secs(600);
const MAX_USERS: f64 = 10_000_000.0;

/// What a load is to look like over time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    Users(usize),
    UserStages(Vec<(Duration, f64)>),
    Rate(f64),
    RateStages(Vec<(Duration, f64)>),
    Spike {
        base: f64,
        peak: f64,
    },
    /// In order.
    Replay(Vec<Duration>),
}

/// A shape that can be run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shaped {
    pub(crate) model: Model,
    /// Users, or arrivals per second, over time; none of a replay.
    pub(crate) profile: Option<Profile>,
    /// The first at 0.
    pub(crate) replay: Vec<Duration>,
    /// The straight lines, if there is more than one.
    pub(crate) stages: Vec<(Duration, f64)>,
    pub(crate) duration: Duration,
    /// What a warm-up does.
    pub(crate) first_level: f64,
}

impl Shape {
    /// Checks it, and works it out for a run that lasts for `duration` and ends with `requests`, if that is said.
    pub(crate) fn work_out(
        self,
        duration: Option<Duration>,
        requests: Option<u64>,
    ) -> Result<Shaped, PlanError> {
        let measurable = |duration: Duration| match duration {
            short if short.is_zero() || (short < MIN_DURATION && requests.is_none()) => {
                Err(PlanError::TooShort(short))
            }
            long if long > MAX_TIME => Err(PlanError::TooLong(long)),
            duration => Ok(duration),
        };
        let default = if requests.is_some() { REQUESTS_WITHIN } else { DURATION };
        let plain = measurable(duration.unwrap_or(default))?;
        let constant = |model, level| Shaped {
            model,
            profile: Some(Profile::constant(level, plain)),
            replay: Vec::new(),
            stages: Vec::new(),
            duration: plain,
            first_level: level,
        };
        let staged = |model, stages: Vec<(Duration, f64)>| {
            let total =
                stages.iter().map(|(time, _)| *time).fold(Duration::ZERO, Duration::saturating_add);
            if duration.is_some_and(|duration| duration != total) {
                return Err(PlanError::StagesLast(total));
            }
            for (_, level) in &stages {
                check_level(model, *level)?;
            }
            // What leads nowhere in the end may have begun somewhere.
            let first = stages.iter().map(|(_, level)| *level).find(|level| *level > 0.0);
            Ok(Shaped {
                model,
                profile: Some(Profile::stages(0.0, &stages)),
                replay: Vec::new(),
                duration: measurable(total)?,
                stages,
                first_level: first.ok_or(PlanError::NoLoad)?,
            })
        };
        match self {
            Self::Users(0) => Err(PlanError::NoUsers),
            Self::Users(users) => {
                check_level(Model::Closed, users as f64)?;
                Ok(constant(Model::Closed, users as f64))
            }
            Self::UserStages(stages) => staged(Model::Closed, stages),
            Self::Rate(rate) => {
                if rate <= 0.0 {
                    return Err(PlanError::BadRate(rate));
                }
                check_level(Model::Open, rate)?;
                Ok(constant(Model::Open, rate))
            }
            Self::RateStages(stages) => staged(Model::Open, stages),
            Self::Spike { base, peak } => {
                if base <= 0.0 {
                    return Err(PlanError::BadRate(base));
                }
                check_level(Model::Open, base)?;
                check_level(Model::Open, peak)?;
                let third = plain / 3;
                let jump = Duration::ZERO;
                let stages = vec![
                    (third, base),
                    (jump, peak),
                    (third, peak),
                    (jump, base),
                    (plain - 2 * third, base),
                ];
                let profile = Profile::stages(base, &stages);
                Ok(Shaped { profile: Some(profile), stages, ..constant(Model::Open, base) })
            }
            Self::Replay(starts) => {
                let first = *starts.first().ok_or(PlanError::NothingToReplay)?;
                let replay: Vec<Duration> = starts.into_iter().map(|at| at - first).collect();
                let all = replay.last().copied().unwrap_or_default();
                let all = all.saturating_add(Duration::from_nanos(1));
                let duration = measurable(duration.unwrap_or(all.max(MIN_DURATION)))?;
                let taken = replay.iter().filter(|at| **at < duration).count();
                let first_level = taken as f64 / duration.as_secs_f64();
                Ok(Shaped {
                    model: Model::Open,
                    profile: None,
                    replay,
                    stages: Vec::new(),
                    duration,
                    first_level: first_level.min(MAX_RATE),
                })
            }
        }
    }
}

fn check_level(model: Model, level: f64) -> Result<(), PlanError> {
    match model {
        Model::Open if !level.is_finite() || level < 0.0 => Err(PlanError::BadRate(level)),
        Model::Open if level > MAX_RATE => Err(PlanError::RateTooHigh(level)),
        Model::Closed if level > MAX_USERS => Err(PlanError::TooManyUsers(level as usize)),
        Model::Open | Model::Closed => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn error(shape: Shape, duration: Option<Duration>) -> String {
        shape.work_out(duration, None).expect_err("makes no sense").to_string()
    }

    #[test]
    fn stages_take_the_time_that_they_take() {
        let stages = vec![(2 * SECOND, 10.0), (3 * SECOND, 0.0)];
        let shaped = Shape::RateStages(stages.clone()).work_out(None, None).expect("makes sense");
        assert_eq!((shaped.duration, shaped.first_level), (5 * SECOND, 10.0));
        let error = error(Shape::RateStages(stages), Some(SECOND));
        assert!(error.contains("5s"), "{error}");
    }

    #[test]
    fn a_spike_is_the_middle_third() {
        let spike = Shape::Spike { base: 10.0, peak: 100.0 };
        let shaped = spike.work_out(Some(3 * SECOND), None).expect("makes sense");
        let profile = shaped.profile.expect("it has one");
        assert_eq!(profile.above(10.0), [(SECOND, 2 * SECOND)]);
        assert_eq!(profile.above(9.0), [(Duration::ZERO, 3 * SECOND)]);
    }

    #[test]
    fn a_replay_begins_with_its_first_request_and_ends_with_its_last() {
        let starts = [1_000, 1_250, 4_000].map(Duration::from_millis).to_vec();
        let shaped = Shape::Replay(starts).work_out(None, None).expect("makes sense");
        assert_eq!(shaped.replay, [0, 250, 3_000].map(Duration::from_millis));
        assert_eq!(shaped.duration, 3 * SECOND + Duration::from_nanos(1));
        assert!((shaped.first_level - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_number_of_requests_has_more_time() {
        let shaped = Shape::Users(3).work_out(None, Some(100)).expect("makes sense");
        assert_eq!(shaped.duration, REQUESTS_WITHIN);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_remedy() {
        for (shape, words) in [
            (Shape::Users(0), "at least 1"),
            (Shape::Users(usize::MAX), "at most 10000000"),
            (Shape::Rate(f64::NAN), "above 0"),
            (Shape::Rate(1e9), "at most 10000000"),
            (Shape::RateStages(vec![(SECOND, -1.0)]), "above 0"),
            (Shape::RateStages(vec![(SECOND, 0.0)]), "10s:100"),
            (Shape::UserStages(Vec::new()), "at least 100ms"),
            (Shape::Spike { base: 0.0, peak: 5.0 }, "above 0"),
            (Shape::Replay(Vec::new()), "one a line"),
            (Shape::Replay(vec![Duration::ZERO, Duration::MAX]), "longer than a year"),
        ] {
            let error = error(shape.clone(), None);
            assert!(error.contains(words), "{shape:?}: {error}");
        }
        let short = error(Shape::Users(1), Some(Duration::from_millis(99)));
        assert!(short.contains("at least 100ms"), "{short}");
        let none = Some(Duration::ZERO);
        for (shape, duration) in [
            (Shape::UserStages(vec![(Duration::ZERO, 5.0)]), None),
            (Shape::Replay(vec![SECOND]), none),
            (Shape::Users(1), none),
        ] {
            let zero = shape.work_out(duration, Some(100)).expect_err("it has no length");
            assert!(matches!(zero, PlanError::TooShort(_)), "{zero}");
        }
    }
}
