//! A service of a test's own, and a client for it.

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, StatusCode},
};
use example_service::{ApiKey, Config, ConfigBuilder, Service};
use parallax_middleware::LoadMark;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;

use crate::support::{eventually, postgres::Postgres, redis::Redis};

pub(crate) const KEY: &str = "a-key-of-the-tests";
pub(crate) const OTHER_KEY: &str = "another-key-of-the-tests";

/// Where a service keeps its data, private to one test.
pub(crate) struct Storage {
    database_url: String,
    pub(crate) redis: Option<Redis>,
    // Kept for their drop.
    _folder: Option<TempDir>,
    _postgres: Option<Postgres>,
}

impl Storage {
    /// A file, and a cache in the process.
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let database_url = format!("sqlite://{}/test.db?mode=rwc", folder.path().display());
        Self { database_url, redis: None, _folder: Some(folder), _postgres: None }
    }

    /// A server, and a cache in the process.
    pub(crate) fn postgres() -> Self {
        let postgres = Postgres::start();
        let database_url = postgres.url();
        Self { database_url, redis: None, _folder: None, _postgres: Some(postgres) }
    }

    /// A server each.
    pub(crate) fn postgres_and_redis() -> Self {
        Self { redis: Some(Redis::start()), ..Self::postgres() }
    }

    /// The settings that all services of the tests have in common.
    pub(crate) fn config(&self) -> ConfigBuilder {
        let key = |text| ApiKey::new(text).expect("a usable key");
        Config::builder()
            .database_url(&self.database_url)
            .redis_url(self.redis.as_ref().map(Redis::url))
            .api_key(key(KEY))
            .api_key(key(OTHER_KEY))
    }

    /// Starts a service on it.
    pub(crate) async fn start(&self) -> Api {
        Api::start(self.config()).await
    }
}

/// A running service, called in process.
pub(crate) struct Api {
    pub(crate) service: Service,
}

/// A response, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// `null` for an empty body.
    pub(crate) json: Value,
}

impl Api {
    pub(crate) async fn start(config: ConfigBuilder) -> Self {
        let config = config.build().expect("the settings are valid");
        Self { service: Service::start(config).await.expect("the service starts") }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(request("GET", path, KEY)).await
    }

    /// The JSON of a GET that must succeed.
    pub(crate) async fn read(&self, path: &str) -> Value {
        let reply = self.get(path).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}: {reply:?}");
        assert_eq!(reply.headers["content-type"], "application/json", "{path}");
        reply.json
    }

    pub(crate) async fn post(&self, path: &str, json: &Value) -> Reply {
        self.send(json_request(path, json.to_string())).await
    }

    /// The JSON of a POST that must store something.
    pub(crate) async fn store(&self, path: &str, json: &Value) -> Value {
        let reply = self.post(path, json).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{path}: {reply:?}");
        reply.json
    }

    pub(crate) async fn send(&self, request: Request) -> Reply {
        let Ok(response) = self.service.router().oneshot(request).await;
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.expect("the body is whole");
        let json = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).expect("every answer is JSON")
        };
        Reply { status: parts.status, headers: parts.headers, json }
    }

    /// Waits until the model knows so many entities and interactions.
    pub(crate) async fn knows(&self, entities: u64, interactions: u64) {
        eventually(&format!("the model knows {entities} and {interactions}"), async || {
            let model = self.read("/health").await["model"].take();
            (model["entities"] == entities && model["interactions"] == interactions).then_some(())
        })
        .await;
    }
}

impl Reply {
    /// Asserts that the answer is a problem as RFC 9457 has it, and returns its detail.
    pub(crate) fn problem(&self, status: u16) -> &str {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        assert_eq!(self.json["status"], status, "{self:?}");
        assert!(self.json["title"].is_string() && self.json["type"].is_string(), "{self:?}");
        self.json["detail"].as_str().expect("a problem says what is wrong")
    }
}

/// A request without a body.
pub(crate) fn request(method: &str, path: &str, key: &str) -> Request {
    Request::builder()
        .method(method)
        .uri(path)
        .header("x-api-key", key)
        .body(Body::empty())
        .expect("a valid request")
}

/// A POST of JSON, or of what shall be refused as such.
pub(crate) fn json_request(path: &str, body: impl Into<Body>) -> Request {
    Request::post(path)
        .header("x-api-key", KEY)
        .header("content-type", "application/json")
        .body(body.into())
        .expect("a valid request")
}

/// The same request with the pass that only a client in this process can give it.
pub(crate) fn with_pass(mut request: Request) -> Request {
    request.extensions_mut().insert(LoadMark::new().past_limiter());
    request
}

/// The ids of a list, in its order.
pub(crate) fn ids(list: &Value) -> Vec<u64> {
    let items = list["items"].as_array().expect("a list has items");
    items.iter().map(|item| item["id"].as_u64().expect("an item has an id")).collect()
}
