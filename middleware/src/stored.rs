//! A snapshot as it is serialised: `parallax.snapshot/1`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    counts::{CacheCounts, LimiterCounts, PoolCounts, RouteCounts},
    histogram::{LatencyHistogram, nanos},
    process::{ProcessUsage, RuntimeUsage},
    route::{MethodLabel, RouteKey},
    snapshot::{PoolKey, Snapshot},
};

/// Name and version of the format.
const SCHEMA: &str = "parallax.snapshot/1";

/// Times are nanoseconds.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoredSnapshot {
    schema: String,
    uptime_ns: u64,
    window_ns: Option<u64>,
    routes: Vec<StoredRoute>,
    limiter: LimiterCounts,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pools: Vec<StoredPool>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    caches: BTreeMap<String, CacheCounts>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    elsewhere: BTreeMap<String, LatencyHistogram>,
    rss_bytes: Option<u64>,
    cpu_ns: Option<u64>,
    runtime: Option<StoredRuntime>,
}

#[derive(Serialize, Deserialize)]
struct StoredRoute {
    method: String,
    route: String,
    #[serde(flatten)]
    counts: RouteCounts,
}

#[derive(Serialize, Deserialize)]
struct StoredPool {
    name: String,
    kind: String,
    #[serde(flatten)]
    counts: PoolCounts,
}

#[derive(Serialize, Deserialize)]
struct StoredRuntime {
    workers: usize,
    busy_ns: Option<u64>,
    global_queue_depth: usize,
    alive_tasks: usize,
}

impl From<Snapshot> for StoredSnapshot {
    fn from(snapshot: Snapshot) -> Self {
        let route = |(key, counts): (RouteKey, Arc<RouteCounts>)| StoredRoute {
            method: key.method().to_owned(),
            route: key.template().to_owned(),
            counts: Arc::unwrap_or_clone(counts),
        };
        let pool = |(PoolKey { name, kind }, counts)| StoredPool { name, kind, counts };
        Self {
            schema: SCHEMA.to_owned(),
            uptime_ns: nanos(snapshot.uptime),
            window_ns: snapshot.window.map(nanos),
            routes: snapshot.routes.into_iter().map(route).collect(),
            limiter: snapshot.limiter,
            pools: snapshot.pools.into_iter().map(pool).collect(),
            caches: snapshot.caches,
            elsewhere: snapshot.elsewhere,
            rss_bytes: snapshot.process.rss_bytes,
            cpu_ns: snapshot.process.cpu.map(nanos),
            runtime: snapshot.runtime.map(|runtime| StoredRuntime {
                workers: runtime.workers,
                busy_ns: runtime.busy.map(nanos),
                global_queue_depth: runtime.global_queue_depth,
                alive_tasks: runtime.alive_tasks,
            }),
        }
    }
}

impl TryFrom<StoredSnapshot> for Snapshot {
    type Error = String;

    fn try_from(stored: StoredSnapshot) -> Result<Self, String> {
        if stored.schema != SCHEMA {
            let found = stored.schema;
            return Err(format!("this is {found:?}, and not a snapshot in the form {SCHEMA:?}"));
        }
        let mut routes = BTreeMap::new();
        for StoredRoute { method, route, counts } in stored.routes {
            let label = MethodLabel::named(&method).ok_or_else(|| {
                format!("{method:?} is no method of a row; unknown ones are \"_OTHER\"")
            })?;
            if routes.insert(RouteKey::new(label, &route), Arc::new(counts)).is_some() {
                return Err(format!("{method} {route} has two rows"));
            }
        }
        let mut pools = BTreeMap::new();
        for StoredPool { name, kind, counts } in stored.pools {
            let twice = format!("the pool {name:?} has two rows");
            if pools.insert(PoolKey { name, kind }, counts).is_some() {
                return Err(twice);
            }
        }
        Ok(Self {
            uptime: Duration::from_nanos(stored.uptime_ns),
            window: stored.window_ns.map(Duration::from_nanos),
            routes,
            limiter: stored.limiter,
            pools,
            caches: stored.caches,
            elsewhere: stored.elsewhere,
            process: ProcessUsage {
                rss_bytes: stored.rss_bytes,
                cpu: stored.cpu_ns.map(Duration::from_nanos),
            },
            runtime: stored.runtime.map(|runtime| RuntimeUsage {
                workers: runtime.workers,
                busy: runtime.busy_ns.map(Duration::from_nanos),
                global_queue_depth: runtime.global_queue_depth,
                alive_tasks: runtime.alive_tasks,
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        counts::RefusedTokens, histogram::Precision, outcome::Outcome, recorder::Recorder,
    };

    fn snapshot() -> Snapshot {
        let recorder = Recorder::new(8, Precision::default());
        let enter = |method, route| {
            let recorder = recorder.loan().take().expect("the recorder is there");
            recorder.enter(method, route, None)
        };
        for status in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY] {
            enter(&Method::GET, Some("/items/{id}")).end_at_head(status);
            enter(&Method::POST, None).end_at_head(status);
        }
        enter(&Method::GET, Some("/events")).stream_head();
        Snapshot::take(&recorder)
    }

    fn read(json: &serde_json::Value) -> Result<Snapshot, String> {
        serde_json::from_value(json.clone()).map_err(|error| error.to_string())
    }

    /// Follows a path of positions as far down as it goes.
    fn place<'j>(json: &'j mut serde_json::Value, path: &[usize]) -> &'j mut serde_json::Value {
        use serde_json::Value::{Array, Object};
        let Some((first, rest)) = path.split_first() else { return json };
        let children = match json {
            Object(fields) => fields.len(),
            Array(items) => items.len(),
            _ => 0,
        };
        if children == 0 {
            return json;
        }
        let n = first % children;
        let child = match json {
            Object(fields) => fields.values_mut().nth(n),
            Array(items) => items.get_mut(n),
            _ => None,
        };
        place(child.expect("it is inside"), rest)
    }

    #[test]
    fn a_snapshot_is_read_back_whole() {
        let snapshot = snapshot();
        let json = serde_json::to_value(&snapshot).expect("it can be written");
        assert_eq!(json["schema"], SCHEMA);
        assert_eq!(read(&json), Ok(snapshot.clone()));
        let interval = snapshot.since(&snapshot);
        let json = serde_json::to_value(&interval).expect("it can be written");
        assert_eq!(read(&json), Ok(interval));
    }

    #[test]
    fn refused_tokens_are_kept_added_and_subtracted() {
        let refused = |malformed, forged, expired, out_of_scope| Snapshot {
            limiter: LimiterCounts {
                refused_tokens: RefusedTokens { malformed, forged, expired, out_of_scope },
                ..LimiterCounts::default()
            },
            ..Snapshot::default()
        };
        let of = |snapshot: &Snapshot| snapshot.view().limiter.expect("it has some").refused_tokens;
        let mut snapshot = refused(5, 6, 7, 8);
        let json = serde_json::to_value(&snapshot).expect("it can be written");
        assert_eq!(read(&json), Ok(snapshot.clone()));
        assert_eq!(of(&snapshot.since(&refused(1, 2, 3, 4))), of(&refused(4, 4, 4, 4)));
        snapshot.merge(&refused(1, 2, 3, u64::MAX));
        assert_eq!(of(&snapshot), of(&refused(6, 8, 10, u64::MAX)));
        assert_eq!(of(&refused(1, 2, 3, 4)).total(), 10);
    }

    #[test]
    fn a_snapshot_from_before_tokens_were_counted_has_refused_none() {
        let mut json = serde_json::to_value(snapshot()).expect("it can be written");
        let limiter = json["limiter"].as_object_mut().expect("an object");
        assert!(limiter.remove("refused_tokens").is_some());
        let old = read(&json).expect("it is read");
        assert_eq!(old.limiter.refused_tokens, RefusedTokens::default());
    }

    #[test]
    fn workers_are_busy_only_where_there_is_time_and_somebody_to_be_busy() {
        let ratio = |window, workers| {
            let busy = Some(Duration::from_secs(1));
            let runtime = Some(RuntimeUsage { workers, busy, ..RuntimeUsage::default() });
            let snapshot = Snapshot { window: Some(window), runtime, ..Snapshot::default() };
            snapshot.view().runtime.expect("there is one").busy_ratio
        };
        assert_eq!(ratio(Duration::from_secs(2), 2), Some(0.25));
        assert_eq!(ratio(Duration::ZERO, 2), None);
        assert_eq!(ratio(Duration::from_secs(2), 0), None);
    }

    #[test]
    fn what_is_no_snapshot_is_refused_by_name() {
        let whole = serde_json::to_value(snapshot()).expect("it can be written");
        let refused = |change: fn(&mut serde_json::Value)| {
            let mut json = whole.clone();
            change(&mut json);
            read(&json).expect_err("it is refused")
        };
        let perf = refused(|json| json["schema"] = "parallax.perf/1".into());
        assert!(perf.contains("parallax.perf/1") && perf.contains(SCHEMA), "{perf}");
        let method = refused(|json| json["routes"][0]["method"] = "BREW".into());
        assert!(method.contains("BREW"), "{method}");
        let twice = refused(|json| json["routes"][1] = json["routes"][0].clone());
        assert!(twice.contains("two rows"), "{twice}");
        let bucket =
            refused(|json| json["routes"][0]["users"]["failed"]["buckets"][0][0] = u64::MAX.into());
        assert!(bucket.contains("past one hour"), "{bucket}");
    }

    proptest! {
        #[test]
        fn whatever_can_be_read_can_be_merged_subtracted_and_shown(
            changes in prop::collection::vec(
                (
                    prop::collection::vec(0_usize..12, 1..6),
                    prop_oneof![Just(u64::MAX), Just(u64::MAX - 1), Just(0), any::<u64>()],
                ),
                1..4,
            ),
        ) {
            let whole = snapshot();
            let mut json = serde_json::to_value(&whole).expect("it can be written");
            // Some things, somewhere, become numbers that they were not.
            for (path, number) in changes {
                *place(&mut json, &path) = number.into();
            }
            if let Ok(mut read) = read(&json) {
                read.merge(&whole);
                read.merge(&read.clone());
                prop_assert!(read.since(&whole).view().window_s.is_some());
                prop_assert!(whole.since(&read).view().window_s.is_some());
                prop_assert!(read.recorded() >= read.outcome(Outcome::Ok));
                prop_assert!(read.entered().checked_add(read.paired()) != Some(0));
                for (_, counts) in read.routes() {
                    prop_assert_eq!(counts.users.ok.quantile(1.0).is_some(), counts.users.ok.count() > 0);
                    prop_assert!(counts.users.ok.count_above(Duration::ZERO) <= counts.users.ok.count());
                }
            }
        }
    }
}
