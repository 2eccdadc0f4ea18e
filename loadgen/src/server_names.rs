//! What the server's side calls its routes and phases.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use parallax_middleware::{Outcome, Perf, PhaseTime};

use crate::{
    server_timing::{Names, ServerTiming},
    sink::ServerView,
};

/// Routes that a server may name over a connection; a layer has no more of its own.
const MAX_ROUTES: usize = 1_024;
const MAX_PHASES: usize = 63;

/// Who knows the names behind the numbers of a sample. Clones are one.
#[derive(Clone, Debug)]
pub(crate) enum ServerNames {
    /// The layer that answered, in this process.
    Layer(Perf),
    /// What came over a connection.
    Told(Arc<Told>),
}

/// Names that came over a connection.
#[derive(Debug)]
pub(crate) struct Told {
    routes: Names,
    phases: Names,
}

impl Told {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { routes: Names::up_to(MAX_ROUTES), phases: Names::up_to(MAX_PHASES) })
    }

    /// The server's view of a request, if it told enough of it for a pair.
    pub(crate) fn view(&self, told: &ServerTiming, status: StatusCode) -> Option<ServerView> {
        let server_time = told.server_time?;
        let phase = |(name, time): &(String, Duration)| {
            PhaseTime::new(self.phases.number(name) as u8, *time)
        };
        Some(ServerView {
            route: self.routes.number(told.route.as_deref().unwrap_or(Names::OTHER)),
            first_byte: told.first_byte,
            server_time,
            outcome: Outcome::of_status(status),
            phases: told.phases.iter().map(phase).collect(),
            handler: told.handler.unwrap_or(server_time),
        })
    }
}

impl ServerNames {
    pub(crate) fn route(&self, number: u32) -> Option<String> {
        match self {
            Self::Layer(perf) => perf.route_key(number).map(ToString::to_string),
            Self::Told(told) => Some(told.routes.name(number).to_string()),
        }
    }

    pub(crate) fn phase(&self, number: u8) -> String {
        match self {
            Self::Layer(perf) => perf.phase_name(number).to_owned(),
            Self::Told(told) => told.phases.name(number.into()).to_string(),
        }
    }
}
