//! How long a user thinks.

use std::time::Duration;

use rand::RngExt;

use crate::random::LoadRng;

/// How long a user pauses between an answer and the next request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pause {
    /// Always so long.
    Constant(Duration),
    /// At random, exponentially distributed, so long on average.
    Exponential(Duration),
}

impl Default for Pause {
    fn default() -> Self {
        Self::Constant(Duration::ZERO)
    }
}

impl From<Duration> for Pause {
    fn from(pause: Duration) -> Self {
        Self::Constant(pause)
    }
}

impl Pause {
    /// Its mean.
    #[must_use]
    pub fn mean(self) -> Duration {
        match self {
            Self::Constant(pause) | Self::Exponential(pause) => pause,
        }
    }

    pub(crate) fn draw(self, random: &mut LoadRng) -> Duration {
        match self {
            Self::Constant(pause) => pause,
            Self::Exponential(mean) => mean.mul_f64(-(1.0 - random.random::<f64>()).ln()),
        }
    }
}
