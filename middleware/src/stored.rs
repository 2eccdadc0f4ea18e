//! A snapshot as it is serialised: `parallax.snapshot/1`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    counters::{LimiterCounts, RouteCounts},
    histogram::nanos,
    process::{ProcessUsage, RuntimeUsage},
    route::{MethodLabel, RouteKey},
    snapshot::Snapshot,
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
        Self {
            schema: SCHEMA.to_owned(),
            uptime_ns: nanos(snapshot.uptime),
            window_ns: snapshot.window.map(nanos),
            routes: snapshot.routes.into_iter().map(route).collect(),
            limiter: snapshot.limiter,
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
        Ok(Self {
            uptime: Duration::from_nanos(stored.uptime_ns),
            window: stored.window_ns.map(Duration::from_nanos),
            routes,
            limiter: stored.limiter,
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
