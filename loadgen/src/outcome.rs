//! How a request ended, as the client sees it.

use http::StatusCode;
use parallax_middleware::Outcome;

use crate::report::ClientOutcomes;

/// How a request ended, as the client sees it. Exactly one applies to each request that was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ClientOutcome {
    Ok,
    ClientError,
    Limited,
    ServerError,
    Timeout,
    TransportError,
    Panicked,
    /// Answered, and the answer was not what the scenario requires.
    CheckFailed,
}

impl ClientOutcome {
    /// Has the client had the whole answer?
    pub(crate) fn is_answer(self) -> bool {
        match self {
            Self::Ok
            | Self::ClientError
            | Self::Limited
            | Self::ServerError
            | Self::CheckFailed => true,
            Self::Timeout | Self::TransportError | Self::Panicked => false,
        }
    }

    pub(crate) fn of_status(status: StatusCode) -> Self {
        // Of a status both sides think alike.
        match Outcome::of_status(status) {
            Outcome::Ok => Self::Ok,
            Outcome::Limited => Self::Limited,
            Outcome::ClientError => Self::ClientError,
            Outcome::ServerError | Outcome::Cancelled | Outcome::Panicked => Self::ServerError,
        }
    }
}

impl ClientOutcomes {
    pub(crate) fn add(&mut self, outcome: ClientOutcome) {
        let cell = match outcome {
            ClientOutcome::Ok => &mut self.ok,
            ClientOutcome::ClientError => &mut self.client_error,
            ClientOutcome::Limited => &mut self.limited,
            ClientOutcome::ServerError => &mut self.server_error,
            ClientOutcome::Timeout => &mut self.timeout,
            ClientOutcome::TransportError => &mut self.transport_error,
            ClientOutcome::Panicked => &mut self.panicked,
            ClientOutcome::CheckFailed => &mut self.check_failed,
        };
        *cell += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.ok += other.ok;
        self.client_error += other.client_error;
        self.limited += other.limited;
        self.server_error += other.server_error;
        self.timeout += other.timeout;
        self.transport_error += other.transport_error;
        self.cancelled += other.cancelled;
        self.panicked += other.panicked;
        self.check_failed += other.check_failed;
    }
}
