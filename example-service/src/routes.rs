//! What the service answers.

use std::{sync::Arc, time::UNIX_EPOCH};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    cache::ReadThrough,
    entity::{Entity, Listed},
    extract::{Batch, Id, Parameters},
    interaction::Interaction,
    model::USER_HISTORY,
    problem::ApiError,
    refresh::LiveModel,
    store::{Store, search_terms},
    writer::{Receipt, Writer},
};

/// Items of a list when the request does not say.
const DEFAULT_LIMIT: usize = 10;
const MAX_LIMIT: usize = 100;
/// Characters of a search, and the words of it that count.
const QUERY_CHARS: usize = 200;
const QUERY_TERMS: usize = 5;
/// Hits that are put in order. More match a beginning like "a" than anyone would page through.
const SEARCH_CANDIDATES: i64 = 100;

/// What handlers share.
#[derive(Debug)]
pub(crate) struct AppState {
    pub(crate) store: Store,
    pub(crate) writer: Writer,
    pub(crate) cache: ReadThrough,
    pub(crate) model: LiveModel,
}

pub(crate) type Shared = State<Arc<AppState>>;

#[derive(Serialize)]
pub(crate) struct Stored {
    stored: usize,
    /// The last number that was given to what was stored; `GET /health` says up to which one the model knows.
    last: i64,
}

impl From<Receipt> for Stored {
    fn from(receipt: Receipt) -> Self {
        Self { stored: receipt.rows, last: receipt.last }
    }
}

pub(crate) async fn post_entities(
    State(app): Shared,
    Batch(entities): Batch<Entity>,
) -> Result<impl IntoResponse, ApiError> {
    let keys: Vec<String> = entities.iter().map(|entity| entity_key(entity.id)).collect();
    let receipt = to_its_end(async move {
        let receipt = app.writer.entities(entities).await;
        // After a failure too: it may have been stored, and only the answer been lost.
        app.cache.invalidate(&keys).await;
        receipt
    })
    .await?;
    Ok((StatusCode::CREATED, Json(Stored::from(receipt))))
}

pub(crate) async fn post_interactions(
    State(app): Shared,
    Batch(interactions): Batch<Interaction>,
) -> Result<impl IntoResponse, ApiError> {
    let mut users: Vec<i64> = interactions.iter().map(|interaction| interaction.user_id).collect();
    users.sort_unstable();
    users.dedup();
    let keys: Vec<String> = users.into_iter().map(user_key).collect();
    let receipt = to_its_end(async move {
        let receipt = app.writer.interactions(interactions).await;
        app.cache.invalidate(&keys).await;
        receipt
    })
    .await?;
    Ok((StatusCode::CREATED, Json(Stored::from(receipt))))
}

/// Carries a write out even if its client leaves: what is stored must not leave an old answer in the cache.
async fn to_its_end(
    write: impl Future<Output = Result<Receipt, ApiError>> + Send + 'static,
) -> Result<Receipt, ApiError> {
    tokio::spawn(write).await.unwrap_or(Err(ApiError::Internal))
}

pub(crate) async fn get_entity(State(app): Shared, Id(id): Id) -> Result<Response, ApiError> {
    let body = app
        .cache
        .get_or_load(entity_key(id), || async {
            encoded(&app.store.entity(id).await?.ok_or_else(|| no_entity(id))?)
        })
        .await?;
    Ok(json(body))
}

#[derive(Deserialize)]
pub(crate) struct Paging {
    limit: Option<usize>,
}

impl Paging {
    fn limit(&self) -> Result<usize, ApiError> {
        match self.limit {
            None => Ok(DEFAULT_LIMIT),
            Some(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
            Some(limit) => Err(ApiError::BadRequest {
                detail: format!("limit {limit} is out of range: give 1 to {MAX_LIMIT}"),
            }),
        }
    }
}

#[derive(Serialize)]
struct Recommendations<'a> {
    user_id: i64,
    /// `true`: all of it follows from what the user met; `false`: what is trending fills it up.
    personal: bool,
    items: Vec<Listed<'a>>,
}

pub(crate) async fn recommendations(
    State(app): Shared,
    Id(user_id): Id,
    Parameters(paging): Parameters<Paging>,
) -> Result<Response, ApiError> {
    let limit = paging.limit()?;
    let recent = recent_entities(&app, user_id).await?;
    let model = app.model.load();
    let (items, personal) = model.recommend(&recent, limit);
    Ok(json(encoded(&Recommendations { user_id, personal, items })?))
}

async fn recent_entities(app: &AppState, user: i64) -> Result<Vec<i64>, ApiError> {
    let limit = i64::try_from(USER_HISTORY).unwrap_or(i64::MAX);
    let load =
        || async { Ok::<_, ApiError>(packed(&app.store.recent_entities(user, limit).await?)) };
    let packed = app.cache.get_or_load(user_key(user), load).await?;
    match unpacked(&packed) {
        Some(recent) => Ok(recent),
        // Of another version of the service.
        None => Ok(app.store.recent_entities(user, limit).await?),
    }
}

/// Eight bytes an id: in a cache that holds every active user, JSON would take twice the room.
fn packed(ids: &[i64]) -> Bytes {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn unpacked(bytes: &[u8]) -> Option<Vec<i64>> {
    let (ids, rest) = bytes.as_chunks::<8>();
    rest.is_empty().then(|| ids.iter().map(|id| i64::from_le_bytes(*id)).collect())
}

#[derive(Serialize)]
struct List<'a> {
    items: Vec<Listed<'a>>,
}

pub(crate) async fn similar(
    State(app): Shared,
    Id(id): Id,
    Parameters(paging): Parameters<Paging>,
) -> Result<Response, ApiError> {
    let limit = paging.limit()?;
    {
        let model = app.model.load();
        if let Some(items) = model.similar(id, limit) {
            return Ok(json(encoded(&List { items })?));
        }
    }
    // Newer than the model, or not there at all.
    app.store.entity(id).await?.ok_or_else(|| no_entity(id))?;
    Ok(json(encoded(&List { items: Vec::new() })?))
}

pub(crate) async fn trending(
    State(app): Shared,
    Parameters(paging): Parameters<Paging>,
) -> Result<Response, ApiError> {
    let limit = paging.limit()?;
    let model = app.model.load();
    Ok(json(encoded(&List { items: model.trending(limit) })?))
}

#[derive(Deserialize)]
pub(crate) struct Search {
    q: String,
    limit: Option<usize>,
}

pub(crate) async fn search(
    State(app): Shared,
    Parameters(search): Parameters<Search>,
) -> Result<Response, ApiError> {
    let limit = Paging { limit: search.limit }.limit()?;
    let chars = search.q.chars().count();
    if chars > QUERY_CHARS {
        let detail = format!("q has {chars} characters: give up to {QUERY_CHARS}");
        return Err(ApiError::BadRequest { detail });
    }
    let terms = search_terms(&search.q, QUERY_TERMS);
    if terms.is_empty() {
        let detail = "q has no word: give one or more letters or digits".to_owned();
        return Err(ApiError::BadRequest { detail });
    }
    // By what the model knows: when it has taken up new entities, what was found before them is old.
    let revision = app.model.coverage().entity_revision;
    let key = format!("search:{revision}:{limit}:{}", terms.join(" "));
    let body = app.cache.get_or_load(key, || find(&app, &terms, limit)).await?;
    Ok(json(body))
}

async fn find(app: &AppState, terms: &[String], limit: usize) -> Result<Bytes, ApiError> {
    let mut found = app.store.search(terms, SEARCH_CANDIDATES).await?;
    found.sort_unstable_by_key(|entity| entity.id);
    found.dedup_by_key(|entity| entity.id);
    let model = app.model.load();
    found.sort_by_cached_key(|entity| std::cmp::Reverse(model.popularity(entity.id)));
    let items = found.iter().take(limit).map(|entity| Listed {
        id: entity.id,
        title: entity.title.as_str().into(),
        score: f64::from(model.popularity(entity.id)),
    });
    encoded(&List { items: items.collect() })
}

#[derive(Serialize)]
struct Health {
    /// "ok", or "degraded" while the database cannot be read.
    status: &'static str,
    model: ModelHealth,
}

#[derive(Serialize)]
struct ModelHealth {
    entities: usize,
    interactions: i64,
    entity_revision: i64,
    generation: u64,
    /// Unix time, seconds.
    refreshed_at: f64,
    refresh_us: f64,
}

/// Asks nothing of the database, since anyone may call it: the worker reads it all the time and knows.
pub(crate) async fn health(State(app): Shared) -> Response {
    let coverage = app.model.coverage();
    let (code, status) = if app.model.failing() {
        (StatusCode::SERVICE_UNAVAILABLE, "degraded")
    } else {
        (StatusCode::OK, "ok")
    };
    let model = ModelHealth {
        entities: coverage.entities,
        interactions: coverage.interactions,
        entity_revision: coverage.entity_revision,
        generation: coverage.generation,
        refreshed_at: coverage
            .refreshed_at
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64(),
        refresh_us: coverage.took.as_secs_f64() * 1e6,
    };
    (code, Json(Health { status, model })).into_response()
}

pub(crate) async fn not_found() -> ApiError {
    ApiError::NotFound { what: "this path".to_owned() }
}

pub(crate) async fn method_not_allowed(method: axum::http::Method) -> ApiError {
    ApiError::MethodNotAllowed { method }
}

fn no_entity(id: i64) -> ApiError {
    ApiError::NotFound { what: format!("entity {id}") }
}

fn entity_key(id: i64) -> String {
    format!("entity:{id}")
}

fn user_key(id: i64) -> String {
    format!("user:{id}")
}

fn encoded(value: &impl Serialize) -> Result<Bytes, ApiError> {
    match serde_json::to_vec(value) {
        Ok(bytes) => Ok(bytes.into()),
        Err(error) => {
            tracing::error!(%error, "an answer could not be encoded");
            Err(ApiError::Internal)
        }
    }
}

fn json(body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        let ids = [1, i64::MAX, 7];
        assert_eq!(unpacked(&packed(&ids)).as_deref(), Some(&ids[..]));
        assert_eq!(unpacked(b"of another make"), None);
    }
}
