//! Pairing: how a client in the same process gets the server's record of its very request.
//!
//! The client puts a [`LoadMark`] with a [`Probe`] into the request's extensions; the layer takes the probe
//! out and fills it when the request ends. No header, no parsing, and nothing that a request from the network can carry.

use std::{
    mem,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::Instant;

#[cfg(feature = "token")]
use crate::gate::Gate;
use crate::{
    outcome::Outcome,
    perf::Perf,
    phase::PhaseIndex,
    recorder::{LocalRecorder, Recorder},
    route::RouteIndex,
};

/// Marks a request as load of this very process: an extension that a load generator inserts.
///
/// It is a type, not a header, so nothing that arrives over a connection can carry it.
///
/// ```
/// use http::Request;
/// use parallax_middleware::{LoadMark, ProbeSource};
///
/// let probes = ProbeSource::new();
/// let probe = probes.probe();
/// let mut request = Request::get("/items/7").body(()).unwrap();
/// request.extensions_mut().insert(LoadMark::new().paired(probe.clone()).past_limiter());
/// // Once a service under the layer has answered, `probe.record()` has the server's view.
/// ```
#[derive(Clone, Debug, Default)]
pub struct LoadMark {
    probe: Option<Probe>,
    past_limiter: bool,
    #[cfg(feature = "token")]
    good_for: Option<(GoodFor, Arc<Gate>)>,
}

/// For what a token is still good that was found good once. It is judged by whoever meets it first, and used
/// up by the other.
#[cfg(feature = "token")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum GoodFor {
    /// To pass by it.
    Limiter,
    /// To be told how long the request took.
    Timing,
}

impl LoadMark {
    /// A mark that changes nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Has the layer fill `probe` with its record of the request.
    #[must_use]
    pub fn paired(self, probe: Probe) -> Self {
        Self { probe: Some(probe), ..self }
    }

    /// Lets the request by a limiter that has a way around it.
    #[must_use]
    pub fn past_limiter(self) -> Self {
        Self { past_limiter: true, ..self }
    }

    /// May the request still pass by a limiter? The first one that it passes uses that up.
    #[must_use]
    pub fn passes_limiter(&self) -> bool {
        self.past_limiter
    }

    pub(crate) fn take_probe(&mut self) -> Option<Probe> {
        self.probe.take()
    }

    pub(crate) fn take_pass(&mut self) -> bool {
        mem::take(&mut self.past_limiter)
    }

    /// A token that the request came with was good at this gate.
    #[cfg(feature = "token")]
    pub(crate) fn set_good_for(&mut self, what: GoodFor, gate: &Arc<Gate>) {
        self.good_for = Some((what, gate.clone()));
    }

    /// Was one good at this gate, for this as well? It no longer is.
    #[cfg(feature = "token")]
    pub(crate) fn take_good_for(&mut self, what: GoodFor, gate: &Arc<Gate>) -> bool {
        self.good_for.take_if(|(for_what, at)| *for_what == what && Arc::ptr_eq(at, gate)).is_some()
    }
}

/// Makes the probes of one client, and learns from the first that is filled whose layer answered.
#[derive(Clone, Debug, Default)]
pub struct ProbeSource {
    answered_by: Arc<OnceLock<Perf>>,
}

impl ProbeSource {
    /// A source that nobody has answered yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A probe for one request.
    #[must_use]
    pub fn probe(&self) -> Probe {
        Probe { cell: Arc::new(Cell { source: self.clone(), record: OnceLock::new() }) }
    }

    /// The handle of the layer that first filled one of the probes.
    #[must_use]
    pub fn answered_by(&self) -> Option<&Perf> {
        self.answered_by.get()
    }
}

/// Goes with one request, as an extension, and comes back with the server's record of it.
///
/// Clones share the record: keep one, insert the other into the request.
#[derive(Clone, Debug)]
pub struct Probe {
    cell: Arc<Cell>,
}

#[derive(Debug)]
struct Cell {
    source: ProbeSource,
    record: OnceLock<ServerRecord>,
}

impl Probe {
    /// What the layer recorded, once the request has ended on the server's side. `None` if it has not,
    /// or if no layer saw it.
    #[must_use]
    pub fn record(&self) -> Option<&ServerRecord> {
        self.cell.record.get()
    }

    /// Does somebody else still hold the probe? As long as a server does, it may yet fill it: a request over a
    /// connection ends on its side a little later than on the client's.
    #[must_use]
    pub fn is_shared(&mut self) -> bool {
        // Unlike a look at the count, this sees what the last holder did.
        Arc::get_mut(&mut self.cell).is_none()
    }

    /// Empties the probe for the next request, without an allocation if no clone is left.
    pub fn renew(&mut self) {
        match Arc::get_mut(&mut self.cell) {
            Some(cell) => {
                cell.record.take();
            }
            None => *self = self.cell.source.probe(),
        }
    }

    pub(crate) fn fill(self, recorder: &LocalRecorder, record: ServerRecord) {
        let answered_by = &self.cell.source.answered_by;
        // One load once it is known; the handle is made for the first probe only.
        let perf = answered_by.get_or_init(|| Perf::from_recorder(Recorder::of(recorder)));
        // A second layer's route indices mean nothing to the first's handle: the first one is believed.
        if perf.recorder().same_as(recorder) {
            // Taken out of the request on entry, so nobody else can have filled it.
            let _ = self.cell.record.set(record);
        }
    }
}

/// The server's view of one request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerRecord {
    /// When the request reached the layer.
    pub entered: Instant,
    /// From then to the response head; `None` if there was none.
    pub first_byte: Option<Duration>,
    /// From then to the end of the response body, or to whatever else ended the request.
    pub server_time: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// Did it pass by the limiter?
    pub bypassed: bool,
    /// How long the request was in each phase that it was in, but `handler`, the rest.
    pub phases: Vec<PhaseTime>,
    /// Time in none of its phases. Where phases overlap, they and this add up to more than the server time.
    pub handler: Duration,
    pub(crate) route: RouteIndex,
}

/// A phase of one request.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PhaseTime {
    /// Stands for the phase within one layer: [`Perf::phase_name`] has its name.
    pub phase: u8,
    /// How long the request was in it, over all stretches.
    pub time: Duration,
}

impl PhaseTime {
    /// So long in a phase.
    #[must_use]
    pub fn new(phase: u8, time: Duration) -> Self {
        Self { phase, time }
    }
}

impl From<(PhaseIndex, u64)> for PhaseTime {
    fn from((phase, ns): (PhaseIndex, u64)) -> Self {
        Self { phase: phase.index() as u8, time: Duration::from_nanos(ns) }
    }
}

impl ServerRecord {
    /// A number that stands for the route within one layer, cheap to group by:
    /// [`Perf::route_key`] of the handle that [`ProbeSource::answered_by`] names has the name.
    #[must_use]
    pub fn route_id(&self) -> u32 {
        self.route.id()
    }
}
