//! Memory against the number of stored entities: `base + slope · n`, and what that says about more.
//!
//! Never memory over entities: what a process needs before the first entity would be multiplied too.

use crate::{
    report::{MemoryModel, Verdict},
    statistics::{Estimate, student_t_quantile},
    threshold::Op,
};

/// Distinct sizes that a line needs.
const MIN_SIZES: usize = 5;
/// Fresh processes for each size.
const MIN_PROCESSES: usize = 2;
/// The largest size over the smallest.
const MIN_SPAN: f64 = 8.0;
/// A projection up to this multiple of the largest measured size is an estimate.
const ESTIMATE_REACH: f64 = 2.0;
/// Up to this multiple it is an extrapolation; past it, nothing is known.
const EXTRAPOLATION_REACH: f64 = 10.0;

/// Fits a line through `points`, entities and peak resident bytes of one fresh process each, and
/// projects the memory of one more process with `projected` entities.
///
/// # Errors
/// If the points cannot carry a line: fewer than 5 sizes, less than 8 times between the smallest and
/// the largest, or a size with a single process. The text says what to measure instead.
pub fn fit(points: &[(u64, u64)], projected: u64) -> Result<MemoryModel, String> {
    let mut points = points.to_vec();
    points.sort_unstable();
    check(&points)?;
    let n = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| *x as f64).sum::<f64>() / n;
    let mean_y = points.iter().map(|(_, y)| *y as f64).sum::<f64>() / n;
    let (mut sxx, mut sxy) = (0.0, 0.0);
    for (x, y) in &points {
        sxx += (*x as f64 - mean_x).powi(2);
        sxy += (*x as f64 - mean_x) * (*y as f64 - mean_y);
    }
    let slope = sxy / sxx;
    let base = mean_y - slope * mean_x;
    let squares: f64 =
        points.iter().map(|(x, y)| (*y as f64 - base - slope * *x as f64).powi(2)).sum();
    let at = projected as f64;
    // The spread of one more process, not of the line alone.
    let deviation = (squares / (n - 2.0) * (1.0 + 1.0 / n + (at - mean_x).powi(2) / sxx)).sqrt();
    let reach = student_t_quantile(0.975, n - 2.0) * deviation;
    let projected_bytes = base + slope * at;
    Ok(MemoryModel {
        base_bytes: base,
        bytes_per_entity: slope,
        theil_sen_bytes_per_entity: theil_sen(&points),
        projected_entities: projected,
        projected_bytes,
        low_bytes: (projected_bytes - reach).max(0.0),
        high_bytes: projected_bytes + reach,
        reach: reach_of(&points, at).to_owned(),
        points,
    })
}

/// Does the projected memory stay under `limit_bytes`? Pass and fail need the whole prediction
/// interval on one side; past ten times the measured range, or where single measurements pull the
/// line, it is inconclusive.
#[must_use]
pub fn judge(model: &MemoryModel, limit_bytes: f64, op: Op) -> Estimate {
    let straddles = model.low_bytes <= limit_bytes && limit_bytes <= model.high_bytes;
    let clear =
        if op.holds(model.projected_bytes, limit_bytes) { Verdict::Pass } else { Verdict::Fail };
    let robust = robust_projection(model);
    let (verdict, note) = if reach_of(&model.points, model.projected_entities as f64) == "beyond" {
        let note = "more than 10 times the largest measured size; measure larger ones";
        (Verdict::Inconclusive, note.to_owned())
    } else if (robust > limit_bytes) != (model.projected_bytes > limit_bytes) {
        let note = "single measurements pull the line over the limit; measure again";
        (Verdict::Inconclusive, note.to_owned())
    } else if straddles {
        let note = "the prediction interval holds the limit; measure more processes";
        (Verdict::Inconclusive, note.to_owned())
    } else {
        let note = format!("{} from {} processes", model.reach, model.points.len());
        (clear, note)
    };
    Estimate {
        observed: Some(model.projected_bytes),
        low: Some(model.low_bytes),
        high: Some(model.high_bytes),
        samples: model.points.len() as u64,
        effective_samples: model.points.len() as f64,
        verdict,
        note,
    }
}

/// `points` are sorted.
fn check(points: &[(u64, u64)]) -> Result<(), String> {
    let mut sizes: Vec<_> = points.iter().map(|(x, _)| *x).collect();
    sizes.dedup();
    if sizes.len() < MIN_SIZES {
        return Err(format!(
            "memory was measured at {} sizes; a line needs at least {MIN_SIZES}",
            sizes.len()
        ));
    }
    if let Some(lonely) =
        sizes.iter().find(|size| points.iter().filter(|(x, _)| x == *size).count() < MIN_PROCESSES)
    {
        return Err(format!(
            "memory at {lonely} entities was measured in one process; at least {MIN_PROCESSES} \
             fresh ones are needed for each size"
        ));
    }
    let (least, most) = (sizes[0], sizes[sizes.len() - 1]);
    // An empty store spans nothing by ratio: the smallest size with entities counts.
    let least = if least == 0 { sizes[1] } else { least };
    if (most as f64) < MIN_SPAN * least as f64 {
        return Err(format!(
            "memory was measured from {least} to {most} entities; the largest size must be at least \
             {MIN_SPAN} times the smallest"
        ));
    }
    Ok(())
}

fn reach_of(points: &[(u64, u64)], projected: f64) -> &'static str {
    let most = points.iter().map(|(x, _)| *x).max().unwrap_or(0) as f64;
    if projected <= most {
        "measured"
    } else if projected <= most * ESTIMATE_REACH {
        "estimate"
    } else if projected <= most * EXTRAPOLATION_REACH {
        "extrapolation"
    } else {
        "beyond"
    }
}

/// The median of the slopes of all pairs.
fn theil_sen(points: &[(u64, u64)]) -> f64 {
    let mut slopes = Vec::new();
    for (index, (x1, y1)) in points.iter().enumerate() {
        for (x2, y2) in &points[index + 1..] {
            if x1 != x2 {
                slopes.push((*y2 as f64 - *y1 as f64) / (*x2 as f64 - *x1 as f64));
            }
        }
    }
    median(slopes)
}

/// The projection by the line that single outliers cannot pull.
fn robust_projection(model: &MemoryModel) -> f64 {
    let slope = model.theil_sen_bytes_per_entity;
    let bases = model.points.iter().map(|(x, y)| *y as f64 - slope * *x as f64).collect();
    median(bases) + slope * model.projected_entities as f64
}

/// Zero of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => 0.5 * (values[middle - 1] + values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// 48 MB and 30 kB an entity, two processes each, the second with `noise` bytes more or less in
    /// turns.
    fn points(noise: u64) -> Vec<(u64, u64)> {
        [1_250, 2_500, 5_000, 7_500, 10_000]
            .into_iter()
            .enumerate()
            .flat_map(|(index, entities)| {
                let bytes = 48 * MB + 30_000 * entities;
                let off = if index % 2 == 0 { bytes + noise } else { bytes - noise };
                [(entities, bytes), (entities, off)]
            })
            .collect()
    }

    #[test]
    fn the_base_is_not_multiplied() {
        let model = fit(&points(0), 100_000).expect("enough points");
        assert!((model.base_bytes - 48e6).abs() < 1.0, "{model:?}");
        assert!((model.bytes_per_entity - 30_000.0).abs() < 1e-3);
        assert!((model.projected_bytes - 3_048e6).abs() < 10.0);
        assert!((model.theil_sen_bytes_per_entity - 30_000.0).abs() < 1e-3);
        assert_eq!(model.reach, "extrapolation");
        let found = judge(&model, 2e9, Op::Less);
        assert_eq!(found.verdict, Verdict::Fail, "{found:?}");
        assert_eq!(judge(&model, 4e9, Op::Less).verdict, Verdict::Pass);
    }

    #[test]
    fn a_limit_inside_the_interval_is_inconclusive() {
        let model = fit(&points(4 * MB), 20_000).expect("enough points");
        assert_eq!(model.reach, "estimate");
        assert!(
            model.low_bytes < model.projected_bytes && model.projected_bytes < model.high_bytes
        );
        let near = model.projected_bytes + 0.5 * (model.high_bytes - model.projected_bytes);
        assert_eq!(judge(&model, near, Op::Less).verdict, Verdict::Inconclusive);
        assert_eq!(judge(&model, model.high_bytes * 1.01, Op::Less).verdict, Verdict::Pass);
        assert_eq!(judge(&model, model.low_bytes * 0.99, Op::Less).verdict, Verdict::Fail);
    }

    #[test]
    fn the_interval_is_that_of_one_more_process() {
        // y = x by hand: five sizes twice, residuals of ±1, so s² = 10 / 8.
        let points: Vec<_> =
            [1, 2, 4, 6, 8].into_iter().flat_map(|x| [(x, 9 + x), (x, 11 + x)]).collect();
        let model = fit(&points, 8).expect("enough points");
        let (mean_x, sxx) = (4.2, 65.6);
        let deviation = (1.25_f64 * (1.0 + 0.1 + (8.0_f64 - mean_x).powi(2) / sxx)).sqrt();
        assert!((model.high_bytes - (18.0 + 2.306_004 * deviation)).abs() < 1e-4, "{model:?}");
    }

    #[test]
    fn past_ten_times_the_measured_range_nothing_is_decided() {
        let model = fit(&points(0), 100_001).expect("enough points");
        assert_eq!(model.reach, "beyond");
        assert_eq!(judge(&model, 1e15, Op::Less).verdict, Verdict::Inconclusive);
        assert_eq!(fit(&points(0), 10_000).expect("enough points").reach, "measured");
    }

    #[test]
    fn one_outlier_does_not_decide() {
        let mut points = points(0);
        // One process of the largest size took twice as much.
        points.last_mut().expect("not empty").1 *= 2;
        let model = fit(&points, 50_000).expect("enough points");
        assert!(model.bytes_per_entity > 1.1 * model.theil_sen_bytes_per_entity);
        let between = 0.5 * (model.projected_bytes + 1_548e6);
        let found = judge(&model, between, Op::Less);
        assert_eq!(found.verdict, Verdict::Inconclusive);
        assert!(found.note.contains("single measurements"), "{}", found.note);
    }

    #[test]
    fn too_few_points_are_refused_with_what_is_needed() {
        let refused = |points: &[(u64, u64)]| fit(points, 1).expect_err("too few");
        assert!(refused(&[]).contains("at least 5"));
        assert!(refused(&points(0)[..8]).contains("4 sizes"));
        assert!(refused(&points(0)[..9]).contains("10000 entities was measured in one process"));
        let narrow: Vec<_> = points(0).into_iter().map(|(x, y)| (x + 1_000, y)).collect();
        assert!(refused(&narrow).contains("at least 8 times"), "{}", refused(&narrow));
    }
}
