//! Data to fill a service with: the same from the same seed, popular and unpopular as in life.
//!
//! It goes in by the front door, through the service's own router and in its largest batches, so that a
//! seeded service has gone through the code that users go through.

mod generate;

pub(crate) use generate::{ZIPF_EXPONENT, word};

use std::{fmt, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Method, Request, StatusCode, header},
};
use parallax_middleware::LoadMark;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower::ServiceExt;

use self::generate::Generator;
use crate::{ApiKey, Service, auth::API_KEY_HEADER, extract::BATCH_LIMIT};

/// An answer to the seeder is a line.
const ANSWER_LIMIT: usize = 64 * 1_024;
/// How often the service is asked whether its model is fresh.
const POLL: Duration = Duration::from_millis(20);

/// How much to seed, and from which seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SeedPlan {
    /// Entities, 1 or more, with the ids from 1 on.
    pub entities: u64,
    /// Interactions, 0 or more.
    pub interactions: u64,
    /// Users, 1 or more, with the ids from 1 on.
    pub users: u64,
    /// The same seed makes the same data.
    pub seed: u64,
}

/// The most of anything that a plan may ask for: some hours of seeding.
const PLAN_LIMIT: u64 = 100_000_000;

impl SeedPlan {
    /// So many entities, ten interactions for each of them, and as many users.
    ///
    /// # Errors
    /// [`SeedError::Plan`] unless there are 1 to 100 million of everything.
    pub fn new(entities: u64, seed: u64) -> Result<Self, SeedError> {
        Self::with_sizes(entities, entities.saturating_mul(10), entities, seed)
    }

    /// So many of each.
    ///
    /// # Errors
    /// [`SeedError::Plan`] unless there are 1 to 100 million of everything; interactions may be 0.
    pub fn with_sizes(
        entities: u64,
        interactions: u64,
        users: u64,
        seed: u64,
    ) -> Result<Self, SeedError> {
        for (what, value, least) in
            [("entities", entities, 1), ("interactions", interactions, 0), ("users", users, 1)]
        {
            if !(least..=PLAN_LIMIT).contains(&value) {
                return Err(SeedError::Plan { what, value, least });
            }
        }
        Ok(Self { entities, interactions, users, seed })
    }
}

/// What is being seeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SeedStage {
    /// First, since interactions name them.
    Entities,
    /// What users did with them.
    Interactions,
}

impl fmt::Display for SeedStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Entities => "entities",
            Self::Interactions => "interactions",
        })
    }
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeedProgress {
    /// Stored so far in this stage.
    pub done: u64,
    /// To be stored in this stage.
    pub total: u64,
    /// Which one.
    pub stage: SeedStage,
}

/// What a seeder has stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seeded {
    /// Entities.
    pub entities: u64,
    /// Interactions.
    pub interactions: u64,
    /// How long it took.
    pub took: Duration,
    /// The last revision of an entity, and the last id of an interaction, that the service gave out.
    last_revision: i64,
    last_interaction: i64,
}

/// What the service says of its model.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Freshness {
    /// Entities in the model.
    pub entities: u64,
    /// Interactions that the model has taken up.
    pub interactions: i64,
    /// Last revision of an entity that the model has taken up.
    pub entity_revision: i64,
    /// How many models there were before, and this one.
    pub generation: u64,
    /// Unix time, seconds.
    pub refreshed_at: f64,
}

/// Fills a service in the same process.
#[derive(Clone, Debug)]
pub struct Seeder {
    router: Router,
    api_key: ApiKey,
}

impl Seeder {
    /// A seeder for `service`.
    #[must_use]
    pub fn new(service: &Service) -> Self {
        Self { router: service.router(), api_key: service.api_key().clone() }
    }

    /// Stores what `plan` says, and tells `progress` at the start of a stage and after each batch.
    ///
    /// Entities with the same ids are replaced; interactions come on top of those that are there.
    ///
    /// # Errors
    /// The service refuses a batch. What went in before stays.
    ///
    /// # Cancel safety
    /// Dropped, it stops after the batch that is under way.
    pub async fn seed(
        &self,
        plan: &SeedPlan,
        mut progress: impl FnMut(SeedProgress),
    ) -> Result<Seeded, SeedError> {
        let started = Instant::now();
        let mut generator = Generator::new(plan);
        let stage = SeedStage::Entities;
        let last_revision = self
            .stage(stage, "/entities", plan.entities, |_| generator.entity(), &mut progress)
            .await?;
        let stage = SeedStage::Interactions;
        let last_interaction = self
            .stage(
                stage,
                "/interactions",
                plan.interactions,
                |_| generator.interaction(),
                &mut progress,
            )
            .await?;
        Ok(Seeded {
            entities: plan.entities,
            interactions: plan.interactions,
            took: started.elapsed(),
            last_revision,
            last_interaction,
        })
    }

    /// Asks the service until its model covers everything that `seeded` tells of.
    ///
    /// # Errors
    /// [`SeedError::Stale`] once `deadline` has passed, with how far the model is.
    pub async fn wait_until_fresh(
        &self,
        seeded: &Seeded,
        deadline: Duration,
    ) -> Result<Freshness, SeedError> {
        let started = Instant::now();
        loop {
            let fresh = self.freshness().await?;
            if fresh.entity_revision >= seeded.last_revision
                && fresh.interactions >= seeded.last_interaction
            {
                return Ok(fresh);
            }
            if started.elapsed() >= deadline {
                return Err(SeedError::Stale {
                    deadline,
                    entity_revision: fresh.entity_revision,
                    wanted_revision: seeded.last_revision,
                    interactions: fresh.interactions,
                    wanted_interactions: seeded.last_interaction,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks the service how fresh its model is.
    ///
    /// # Errors
    /// The service does not answer, or cannot read its database.
    pub async fn freshness(&self) -> Result<Freshness, SeedError> {
        #[derive(Deserialize)]
        struct Health {
            model: Freshness,
        }
        let health: Health = self.call(Method::GET, "/health", Body::empty()).await?;
        Ok(health.model)
    }

    /// Stores `total` items of one kind; returns the last number that the service gave to one.
    async fn stage<T: Serialize>(
        &self,
        stage: SeedStage,
        path: &'static str,
        total: u64,
        mut item: impl FnMut(u64) -> T,
        progress: &mut impl FnMut(SeedProgress),
    ) -> Result<i64, SeedError> {
        #[derive(Deserialize)]
        struct Stored {
            last: i64,
        }
        let mut last = 0;
        let mut done = 0;
        progress(SeedProgress { done, total, stage });
        while done < total {
            let end = total.min(done + BATCH_LIMIT as u64);
            let batch: Vec<T> = (done..end).map(&mut item).collect();
            let body = serde_json::to_vec(&batch)
                .map_err(|error| SeedError::Encode { reason: error.to_string() })?;
            let stored: Stored = self.call(Method::POST, path, Body::from(body)).await?;
            last = stored.last;
            done = end;
            progress(SeedProgress { done, total, stage });
        }
        Ok(last)
    }

    async fn call<T: for<'a> Deserialize<'a>>(
        &self,
        method: Method,
        path: &'static str,
        body: Body,
    ) -> Result<T, SeedError> {
        let unexpected = |reason: String| SeedError::Unexpected { path, reason };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(API_KEY_HEADER, self.api_key.reveal())
            .header(header::CONTENT_TYPE, "application/json")
            // The limiter is for clients.
            .extension(LoadMark::new().past_limiter())
            .body(body)
            .map_err(|error| unexpected(error.to_string()))?;
        let response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let status = response.status();
        let body = to_bytes(response.into_body(), ANSWER_LIMIT)
            .await
            .map_err(|error| unexpected(error.to_string()))?;
        if !status.is_success() {
            let answer = String::from_utf8_lossy(&body).into_owned();
            return Err(SeedError::Refused { path, status, answer });
        }
        serde_json::from_slice(&body).map_err(|error| unexpected(error.to_string()))
    }
}

/// Why seeding stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeedError {
    /// A plan that asks for nothing, or for too much.
    #[error("{value} {what} are out of range: give {least} to 100000000")]
    Plan {
        /// Of what.
        what: &'static str,
        /// What was asked for.
        value: u64,
        /// The fewest.
        least: u64,
    },
    /// The service answered with an error.
    #[error("{path} answered {status}: {answer}")]
    Refused {
        /// Which route.
        path: &'static str,
        /// Its status.
        status: StatusCode,
        /// Its body.
        answer: String,
    },
    /// The service answered what a seeder does not understand.
    #[error("{path} answered something unexpected: {reason}")]
    Unexpected {
        /// Which route.
        path: &'static str,
        /// What was unexpected.
        reason: String,
    },
    /// The data cannot be sent.
    #[error("a batch cannot be encoded: {reason}")]
    Encode {
        /// What the encoder says.
        reason: String,
    },
    /// The model did not become fresh in time.
    #[error(
        "the model was not fresh after {deadline:?}: it knows revision {entity_revision} of \
         {wanted_revision} and {interactions} of {wanted_interactions} interactions"
    )]
    Stale {
        /// How long it was waited for.
        deadline: Duration,
        /// Up to where the model knows entities.
        entity_revision: i64,
        /// Up to where it should.
        wanted_revision: i64,
        /// Up to where the model knows interactions.
        interactions: i64,
        /// Up to where it should.
        wanted_interactions: i64,
    },
}
