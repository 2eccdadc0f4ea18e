//! What is asked: a weighted mix of requests and of flows, which are sequences of requests.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use http::Request;
use rand::RngExt;

use crate::{random::LoadRng, reply::FlowError, session::Session};

type Build = dyn Fn(&mut LoadRng) -> Request<Bytes> + Send + Sync;
type FlowFuture = Pin<Box<dyn Future<Output = Result<(), FlowError>> + Send>>;
pub(crate) type Flow = dyn Fn(Session) -> FlowFuture + Send + Sync;

/// A weighted mix of requests, and of flows.
///
/// ```
/// use bytes::Bytes;
/// use http::Request;
/// use parallax_loadgen::Scenario;
/// use rand::RngExt;
///
/// let mix = Scenario::new()
///     .step("GET /health", 1, |_| Request::get("/health").body(Bytes::new()).unwrap())
///     .step("GET /items/{id}", 9, |rng| {
///         let id = rng.random_range(1..=1000);
///         Request::get(format!("/items/{id}")).body(Bytes::new()).unwrap()
///     });
/// assert_eq!(mix.names().collect::<Vec<_>>(), ["GET /health", "GET /items/{id}"]);
/// ```
///
/// A flow is a sequence of requests that carries values from one answer to the next request; see [`Session`].
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    steps: Vec<Step>,
    total_weight: u32,
    setup: Option<Step>,
    teardown: Option<Step>,
}

#[derive(Clone)]
struct Step {
    name: Arc<str>,
    weight: u32,
    action: Action,
}

/// What is to be done once.
#[derive(Clone)]
pub(crate) enum Action {
    Request(Arc<Build>),
    Flow(Arc<Flow>),
}

impl Scenario {
    /// An empty mix.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a request to the mix.
    ///
    /// `name` stands for it in reports where no layer answers; with one, the layer's name of the route
    /// does. Among all steps this one is drawn `weight` times out of the sum of the weights; weight 0
    /// is never drawn. `build` is called for each request.
    #[must_use]
    pub fn step(
        self,
        name: &str,
        weight: u32,
        build: impl Fn(&mut LoadRng) -> Request<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.add(name, weight, Action::Request(Arc::new(build)))
    }

    /// Adds a sequence of requests to the mix, drawn like a [`step`](Self::step).
    ///
    /// The first request is due when the iteration is, each further one when the answer before it was in, or when
    /// the pause after that was over. An error ends the iteration; see [`FlowError`].
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::Request;
    /// use parallax_loadgen::{Scenario, Session};
    ///
    /// let shop = Scenario::new().flow("order", 1, |mut session: Session| async move {
    ///     let created = session.send("create", Request::post("/orders").body(Bytes::new())?).await?;
    ///     let id = created.text_at("/id")?;
    ///     let order = Request::get(format!("/orders/{id}")).body(Bytes::new())?;
    ///     let read = session.send("read", order).await?;
    ///     session.check("the order is open", read.text_at("/state")? == "open");
    ///     Ok(())
    /// });
    /// # let _ = shop;
    /// ```
    #[must_use]
    pub fn flow<F>(
        self,
        name: &str,
        weight: u32,
        flow: impl Fn(Session) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), FlowError>> + Send + 'static,
    {
        self.add(name, weight, Action::Flow(boxed(flow)))
    }

    /// Runs `flow` once before the load; it counts in no figure. What it [sets](Session::set) every session of
    /// the run begins with. If it fails, so does the run.
    #[must_use]
    pub fn setup<F>(mut self, flow: impl Fn(Session) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), FlowError>> + Send + 'static,
    {
        self.setup = Some(Step::once("setup", boxed(flow)));
        self
    }

    /// Runs `flow` once after the load, also after one that was stopped; it counts in no figure.
    #[must_use]
    pub fn teardown<F>(mut self, flow: impl Fn(Session) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), FlowError>> + Send + 'static,
    {
        self.teardown = Some(Step::once("teardown", boxed(flow)));
        self
    }

    fn add(mut self, name: &str, weight: u32, action: Action) -> Self {
        self.total_weight = self.total_weight.saturating_add(weight);
        self.steps.push(Step { name: name.into(), weight, action });
        self
    }

    pub(crate) fn setup_flow(&self) -> Option<&Flow> {
        self.setup.as_ref().and_then(Step::as_flow)
    }

    pub(crate) fn teardown_flow(&self) -> Option<&Flow> {
        self.teardown.as_ref().and_then(Step::as_flow)
    }

    /// The names of the steps, in the order in which they were added.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| &*step.name)
    }

    /// The names of the steps that can be drawn, and whose numbers `was_taken` does not know.
    pub(crate) fn never_taken(&self, was_taken: impl Fn(u32) -> bool) -> Vec<String> {
        let steps = self.steps.iter().zip(0..).filter(|(step, _)| step.weight > 0);
        let never = steps.filter(|(_, number)| !was_taken(*number));
        never.map(|(step, _)| step.name.to_string()).collect()
    }

    pub(crate) fn weights(&self) -> Vec<(String, u32)> {
        self.steps.iter().map(|step| (step.name.to_string(), step.weight)).collect()
    }

    /// True if nothing can be drawn.
    pub(crate) fn is_empty(&self) -> bool {
        self.total_weight == 0
    }

    /// A request of each step that can be drawn, likeliest first. What a flow would send is not known.
    pub(crate) fn one_of_each(&self, rng: &mut LoadRng) -> Vec<Request<Bytes>> {
        let mut steps: Vec<&Step> = self.steps.iter().filter(|step| step.weight > 0).collect();
        steps.sort_by_key(|step| std::cmp::Reverse(step.weight));
        let request = |step: &Step| match &step.action {
            Action::Request(build) => Some(build(rng)),
            Action::Flow(_) => None,
        };
        steps.into_iter().filter_map(request).collect()
    }

    pub(crate) fn has_flows(&self) -> bool {
        self.any_flow().is_some()
    }

    /// The first flow that can be drawn.
    pub(crate) fn any_flow(&self) -> Option<&Flow> {
        self.steps.iter().filter(|step| step.weight > 0).find_map(Step::as_flow)
    }

    /// Draws a step. The mix must not be empty.
    pub(crate) fn draw(&self, rng: &mut LoadRng) -> (u32, &Action) {
        let mut index = 0;
        // A mix of one draws nothing, so that it costs nothing.
        if self.steps.len() > 1 {
            let mut ticket = rng.random_range(0..self.total_weight);
            while ticket >= self.steps[index].weight {
                ticket -= self.steps[index].weight;
                index += 1;
            }
        }
        (index as u32, &self.steps[index].action)
    }
}

impl Step {
    fn once(name: &str, flow: Arc<Flow>) -> Self {
        Self { name: name.into(), weight: 1, action: Action::Flow(flow) }
    }

    fn as_flow(&self) -> Option<&Flow> {
        match &self.action {
            Action::Flow(flow) => Some(&**flow),
            Action::Request(_) => None,
        }
    }
}

fn boxed<F>(flow: impl Fn(Session) -> F + Send + Sync + 'static) -> Arc<Flow>
where
    F: Future<Output = Result<(), FlowError>> + Send + 'static,
{
    Arc::new(move |session| Box::pin(flow(session)))
}

/// What requests are called, by number: first the steps of the mix, then what flows send. Clones are one.
#[derive(Clone, Debug)]
pub(crate) struct StepNames {
    names: Arc<RwLock<Names>>,
}

#[derive(Debug, Default)]
struct Names {
    in_order: Vec<Arc<str>>,
    by_name: HashMap<Arc<str>, u32>,
}

/// Names of flows past this many share one: a flow that puts an id into a name must not fill the memory.
const MAX_NAMES: usize = 1_000;
const OTHER: &str = "(other)";

impl StepNames {
    pub(crate) fn of(scenario: &Scenario) -> Self {
        let mut names = Names::default();
        for step in &scenario.steps {
            names.add(step.name.clone());
        }
        Self { names: Arc::new(RwLock::new(names)) }
    }

    /// The number of a name, a new one for a new name.
    pub(crate) fn number(&self, name: &str) -> u32 {
        let find = |names: &Names| names.by_name.get(name).copied();
        if let Some(number) = find(&self.names.read().unwrap_or_else(PoisonError::into_inner)) {
            return number;
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = find(&names) {
            return number;
        }
        if names.in_order.len() < MAX_NAMES {
            return names.add(name.into());
        }
        names.by_name.get(OTHER).copied().unwrap_or_else(|| names.add(OTHER.into()))
    }

    pub(crate) fn name(&self, number: u32) -> Option<Arc<str>> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.in_order.get(number as usize).cloned()
    }
}

impl Names {
    fn add(&mut self, name: Arc<str>) -> u32 {
        let number = self.in_order.len() as u32;
        self.by_name.insert(name.clone(), number);
        self.in_order.push(name);
        number
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step")
            .field("name", &self.name)
            .field("weight", &self.weight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;

    fn mix() -> Scenario {
        let request = |_: &mut LoadRng| Request::new(Bytes::new());
        Scenario::new()
            .step("never", 0, request)
            .step("seldom", 1, request)
            .step("often", 3, request)
    }

    #[test]
    fn steps_are_drawn_by_weight() {
        let (mix, mut rng) = (mix(), stream(1, "", 0));
        let mut drawn = [0; 3];
        for _ in 0..40_000 {
            drawn[mix.draw(&mut rng).0 as usize] += 1;
        }
        assert_eq!(drawn[0], 0);
        // Five standard deviations of a binomial with n = 40,000, p = 1/4.
        assert!((drawn[1] - 10_000_i32).abs() < 433, "{drawn:?}");
    }

    #[test]
    fn the_same_seed_draws_the_same_steps_and_another_does_not() {
        let draws = |seed| {
            let mut rng = stream(seed, "", 7);
            (0..64).map(|_| mix().draw(&mut rng).0).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }
    #[test]
    fn names_past_the_limit_share_one() {
        let names = StepNames::of(&mix());
        assert_eq!((names.number("often"), names.number("read")), (2, 3));
        for n in 0..2_000 {
            names.number(&format!("item {n}"));
        }
        let last = names.number("one more");
        assert_eq!(names.name(last).as_deref(), Some(OTHER));
        assert_eq!((names.number("read"), last as usize), (3, MAX_NAMES));
    }

    #[test]
    fn a_mix_of_more_steps_than_the_limit_lends_no_name_to_its_flows() {
        let step = |mix: Scenario, n| mix.step(&format!("step {n}"), 1, |_| Request::default());
        let names = StepNames::of(&(0..MAX_NAMES + 7).fold(Scenario::new(), step));
        let of_flow = names.number("GET /items/1");
        assert_eq!(names.name(of_flow).as_deref(), Some(OTHER));
        assert_eq!(names.number("GET /items/2"), of_flow);
    }
}
