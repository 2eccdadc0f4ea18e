//! What is asked: a weighted mix of requests.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::Request;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// The source of randomness of a load test. Its output is the same on every platform and in every
/// version, so the same seed sends the same requests.
pub type LoadRng = Xoshiro256PlusPlus;

type Build = dyn Fn(&mut LoadRng) -> Request<Bytes> + Send + Sync;

/// A weighted mix of requests.
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
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    steps: Vec<Step>,
    total_weight: u32,
}

#[derive(Clone)]
struct Step {
    name: Arc<str>,
    weight: u32,
    build: Arc<Build>,
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
        mut self,
        name: &str,
        weight: u32,
        build: impl Fn(&mut LoadRng) -> Request<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.total_weight = self.total_weight.saturating_add(weight);
        self.steps.push(Step { name: name.into(), weight, build: Arc::new(build) });
        self
    }

    /// The names of the steps, in the order in which they were added.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| &*step.name)
    }

    pub(crate) fn weights(&self) -> Vec<(String, u32)> {
        self.steps.iter().map(|step| (step.name.to_string(), step.weight)).collect()
    }

    /// True if nothing can be drawn.
    pub(crate) fn is_empty(&self) -> bool {
        self.total_weight == 0
    }

    /// A request of each step that can be drawn, likeliest first.
    pub(crate) fn one_of_each(&self, rng: &mut LoadRng) -> Vec<Request<Bytes>> {
        let mut steps: Vec<&Step> = self.steps.iter().filter(|step| step.weight > 0).collect();
        steps.sort_by_key(|step| std::cmp::Reverse(step.weight));
        steps.into_iter().map(|step| (step.build)(rng)).collect()
    }

    /// Draws a step and builds its request. The mix must not be empty.
    pub(crate) fn draw(&self, rng: &mut LoadRng) -> (usize, Request<Bytes>) {
        let mut index = 0;
        // A mix of one draws nothing, so that it costs nothing.
        if self.steps.len() > 1 {
            let mut ticket = rng.random_range(0..self.total_weight);
            while ticket >= self.steps[index].weight {
                ticket -= self.steps[index].weight;
                index += 1;
            }
        }
        (index, (self.steps[index].build)(rng))
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

/// The generator of stream `n` (a user, or an arrival) of what `name` stands for. Streams are independent,
/// so that their order of execution changes nothing.
pub(crate) fn stream(seed: u64, name: &str, n: u64) -> LoadRng {
    // FNV-1a of the name, then a Weyl sequence by the golden ratio: both fixed for ever, unlike the
    // standard library's hashes. The generator's own seeding scrambles the sum.
    let name = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    });
    LoadRng::seed_from_u64(seed ^ name ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            drawn[mix.draw(&mut rng).0] += 1;
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
}
