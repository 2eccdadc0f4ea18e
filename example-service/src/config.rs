//! The settings of a service, validated.

use std::{fmt, net::SocketAddr, num::NonZeroU32, time::Duration};

use parallax_middleware::{BearerGuard, TokenKeys};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::redact::redacted;

/// Where the data lies when nothing else is said: a file in the working folder, made if missing.
pub const DEFAULT_DATABASE_URL: &str = "sqlite://example-service.db?mode=rwc";

/// Everything that a [`Service`](crate::Service) needs to know, validated by [`ConfigBuilder::build`].
///
/// Printing it, by [`Debug`] or [`Config::describe`], shows no key and no password.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) database_url: SecretUrl,
    pub(crate) redis_url: Option<SecretUrl>,
    pub(crate) api_keys: Vec<ApiKey>,
    /// Keys of the tokens that let load by the limiter; without any, no token does.
    pub(crate) bypass_keys: Option<TokenKeys>,
    /// Who may look at `/perf`; without it, whoever has an API key.
    pub(crate) perf_guard: Option<BearerGuard>,
    addr: SocketAddr,
    /// Connections that read, 1 or more; on PostgreSQL the writer takes one of them.
    pub(crate) database_connections: u32,
    /// Connections to Redis, 1 or more.
    pub(crate) redis_connections: usize,
    /// How long a request waits for a database connection.
    pub(crate) acquire_timeout: Duration,
    /// Requests per key and minute.
    pub(crate) rate_limit: NonZeroU32,
    /// How long a cached answer may be used.
    pub(crate) cache_ttl: Duration,
    /// How often the model looks for what other processes wrote. Own writes wake it at once.
    pub(crate) model_refresh_interval: Duration,
}

impl Config {
    /// Starts from the defaults.
    #[must_use]
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// The address that `serve` listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The keys that open the service, at least one.
    #[must_use]
    pub fn api_keys(&self) -> &[ApiKey] {
        &self.api_keys
    }

    /// Requests per key and minute that the limiter lets through.
    #[must_use]
    pub fn rate_limit(&self) -> NonZeroU32 {
        self.rate_limit
    }

    /// Names and values without secrets, to print at the start and to keep in reports.
    #[must_use]
    pub fn describe(&self) -> Vec<(String, String)> {
        let cache =
            self.redis_url.as_ref().map_or_else(|| "in process".to_owned(), SecretUrl::shown);
        [
            ("database", self.database_url.shown()),
            ("database connections", self.database_connections.to_string()),
            ("acquire timeout", format!("{:?}", self.acquire_timeout)),
            ("cache", cache),
            ("cache time to live", format!("{:?}", self.cache_ttl)),
            ("API keys", self.api_keys.len().to_string()),
            (
                "bypass tokens",
                if self.bypass_keys.is_some() { "taken" } else { "refused" }.to_owned(),
            ),
            (
                "/perf opens with",
                if self.perf_guard.is_some() { "its token" } else { "an API key" }.to_owned(),
            ),
            ("rate limit", format!("{} requests per 60 s and key", self.rate_limit)),
            ("model refresh interval", format!("{:?}", self.model_refresh_interval)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

/// Collects settings for a [`Config`].
#[derive(Clone, Debug)]
pub struct ConfigBuilder {
    database_url: SecretUrl,
    redis_url: Option<SecretUrl>,
    api_keys: Vec<ApiKey>,
    bypass_keys: Option<TokenKeys>,
    perf_guard: Option<BearerGuard>,
    addr: SocketAddr,
    database_connections: Option<u32>,
    redis_connections: usize,
    acquire_timeout: Duration,
    rate_limit: u32,
    cache_ttl: Duration,
    model_refresh_interval: Duration,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        Self {
            database_url: SecretUrl(DEFAULT_DATABASE_URL.to_owned()),
            redis_url: None,
            api_keys: Vec::new(),
            bypass_keys: None,
            perf_guard: None,
            addr: SocketAddr::from(([127, 0, 0, 1], 3000)),
            database_connections: None,
            redis_connections: 32,
            acquire_timeout: Duration::from_secs(30),
            rate_limit: 1_000,
            cache_ttl: Duration::from_secs(30),
            model_refresh_interval: Duration::from_secs(5),
        }
    }
}

impl ConfigBuilder {
    /// `sqlite://FILE?mode=rwc` or `postgres://USER:PASSWORD@HOST/DATABASE`.
    #[must_use]
    pub fn database_url(mut self, url: impl Into<String>) -> Self {
        self.database_url = SecretUrl(url.into());
        self
    }

    /// `redis://HOST:6379`; none keeps the cache in the process.
    #[must_use]
    pub fn redis_url(mut self, url: Option<String>) -> Self {
        self.redis_url = url.map(SecretUrl);
        self
    }

    /// One more key that opens the service.
    #[must_use]
    pub fn api_key(mut self, key: ApiKey) -> Self {
        self.api_keys.push(key);
        self
    }

    /// Lets requests by the limiter that carry a token signed with one of these keys; none if none is given.
    #[must_use]
    pub fn bypass_keys(mut self, keys: TokenKeys) -> Self {
        self.bypass_keys = Some(keys);
        self
    }

    /// Opens `/perf` to those who know the guard's token, in a browser too, and to nobody else; to those with an
    /// API key if no guard is given.
    #[must_use]
    pub fn perf_guard(mut self, guard: BearerGuard) -> Self {
        self.perf_guard = Some(guard);
        self
    }

    /// The address to listen on; 127.0.0.1:3000 if none is given.
    #[must_use]
    pub fn addr(mut self, addr: SocketAddr) -> Self {
        self.addr = addr;
        self
    }

    /// Connections that read, 1 to 1,000; 16 on SQLite and 20 on PostgreSQL if none is given.
    #[must_use]
    pub fn database_connections(mut self, connections: u32) -> Self {
        self.database_connections = Some(connections);
        self
    }

    /// Connections to Redis, 1 to 1,000; 32 if none is given.
    #[must_use]
    pub fn redis_connections(mut self, connections: usize) -> Self {
        self.redis_connections = connections;
        self
    }

    /// How long a request waits for a database connection; 30 s if none is given.
    #[must_use]
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// Requests per key and minute, 1 or more; 1,000 if none is given.
    #[must_use]
    pub fn rate_limit(mut self, requests: u32) -> Self {
        self.rate_limit = requests;
        self
    }

    /// How long a cached answer may be used, 1 ms to a day; 30 s if none is given.
    #[must_use]
    pub fn cache_ttl(mut self, ttl: Duration) -> Self {
        self.cache_ttl = ttl;
        self
    }

    /// How often the model looks for what other processes wrote, 100 ms to a day; 5 s if none is given.
    #[must_use]
    pub fn model_refresh_interval(mut self, interval: Duration) -> Self {
        self.model_refresh_interval = interval;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting that cannot work, with what would.
    pub fn build(self) -> Result<Config, ConfigError> {
        const DAY: Duration = Duration::from_secs(86_400);
        let backend = Backend::of(&self.database_url)?;
        if let Some(url) = &self.redis_url {
            url.must_be_redis()?;
        }
        if self.api_keys.is_empty() {
            return Err(ConfigError::NoApiKey);
        }
        let rate_limit = NonZeroU32::new(self.rate_limit).ok_or(ConfigError::OutOfRange {
            setting: "rate limit",
            value: "0".to_owned(),
            range: "1 or more",
        })?;
        let database_connections = self.database_connections.unwrap_or(match backend {
            // More than processors: most of the time one is held goes by until its task is woken.
            Backend::Sqlite => 16,
            Backend::Postgres => 20,
        });
        check("database connections", database_connections, 1..=1_000, "1 to 1000")?;
        check("Redis connections", self.redis_connections, 1..=1_000, "1 to 1000")?;
        check(
            "acquire timeout",
            self.acquire_timeout,
            Duration::from_millis(1)..=DAY,
            "1 ms to 1 day",
        )?;
        check(
            "cache time to live",
            self.cache_ttl,
            Duration::from_millis(1)..=DAY,
            "1 ms to 1 day",
        )?;
        check(
            "model refresh interval",
            self.model_refresh_interval,
            Duration::from_millis(100)..=DAY,
            "100 ms to 1 day",
        )?;
        Ok(Config {
            database_url: self.database_url,
            redis_url: self.redis_url,
            api_keys: self.api_keys,
            bypass_keys: self.bypass_keys,
            perf_guard: self.perf_guard,
            addr: self.addr,
            database_connections,
            redis_connections: self.redis_connections,
            acquire_timeout: self.acquire_timeout,
            rate_limit,
            cache_ttl: self.cache_ttl,
            model_refresh_interval: self.model_refresh_interval,
        })
    }
}

fn check<T: Copy + PartialOrd + fmt::Debug>(
    setting: &'static str,
    value: T,
    allowed: std::ops::RangeInclusive<T>,
    range: &'static str,
) -> Result<(), ConfigError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(ConfigError::OutOfRange { setting, value: format!("{value:?}"), range })
}

/// Why settings do not make a [`Config`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Nobody could use the service.
    #[error(
        "no API key: set EXAMPLE_API_KEYS to one or more keys, separated by commas, or name a file with \
         one key a line by --api-key-file"
    )]
    NoApiKey,
    /// A key that could be guessed, or that no header can carry.
    #[error("an API key is not usable: it needs 8 to 200 visible ASCII characters without a comma")]
    BadApiKey,
    /// No driver for it, or no file.
    #[error(
        "database URL {url} is not usable: give sqlite://FILE?mode=rwc or \
         postgres://USER:PASSWORD@HOST/DATABASE{hint}"
    )]
    BadDatabaseUrl {
        /// What was given, without a password.
        url: String,
        /// More about it, or nothing.
        hint: &'static str,
    },
    /// Not an address of Redis.
    #[error("Redis URL {url} is not usable: give redis://HOST:PORT")]
    BadRedisUrl {
        /// What was given, without a password.
        url: String,
    },
    /// A quantity that makes no sense.
    #[error("{setting} {value} is out of range: give {range}")]
    OutOfRange {
        /// Which one.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        range: &'static str,
    },
    /// The keys of bypass tokens.
    #[error("the keys of bypass tokens in {place} are not usable: {reason}")]
    BypassKeys {
        /// Where they are from.
        place: String,
        /// What is wrong with them.
        reason: String,
    },
    /// The token of `/perf`.
    #[error("the token of /perf in {place} is not usable: {reason}")]
    PerfToken {
        /// Where it is from.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file with the keys.
    #[error("cannot read the API keys in {path}: {reason}")]
    KeyFile {
        /// Where it was looked for.
        path: String,
        /// What the operating system says.
        reason: String,
    },
}

/// A key that opens the service. Printing it shows nothing of it.
#[derive(Clone)]
pub struct ApiKey {
    text: String,
    digest: KeyDigest,
}

impl ApiKey {
    /// Takes a key as a client sends it.
    ///
    /// # Errors
    /// [`ConfigError::BadApiKey`] unless it has 8 to 200 visible ASCII characters and no comma.
    pub fn new(text: impl Into<String>) -> Result<Self, ConfigError> {
        let text = text.into();
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
        if !visible || !(8..=200).contains(&text.len()) {
            return Err(ConfigError::BadApiKey);
        }
        let digest = KeyDigest::of(text.as_bytes());
        Ok(Self { text, digest })
    }

    /// A key that nobody knows yet, for a service that only its own process uses.
    #[must_use]
    pub fn random() -> Self {
        let text = format!("{:032x}", rand::random::<u128>());
        let digest = KeyDigest::of(text.as_bytes());
        Self { text, digest }
    }

    /// The key itself, to put into a request.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }

    pub(crate) fn digest(&self) -> KeyDigest {
        self.digest
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(***)")
    }
}

/// What a key is known by inside: SHA-256 of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeyDigest([u8; 32]);

impl KeyDigest {
    pub(crate) fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Takes the same time whatever it finds.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(***)")
    }
}

/// A URL that may hold a password. Printing it shows none.
#[derive(Clone)]
pub(crate) struct SecretUrl(String);

impl SecretUrl {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    pub(crate) fn shown(&self) -> String {
        redacted(&self.0)
    }

    fn must_be_redis(&self) -> Result<(), ConfigError> {
        if self.0.starts_with("redis://") || self.0.starts_with("redis+unix://") {
            return Ok(());
        }
        Err(ConfigError::BadRedisUrl { url: self.shown() })
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shown(), f)
    }
}

/// The databases that the service speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    Postgres,
}

impl Backend {
    pub(crate) fn of(url: &SecretUrl) -> Result<Self, ConfigError> {
        let bad = |hint| ConfigError::BadDatabaseUrl { url: url.shown(), hint };
        match url.0.split_once(':') {
            // Every connection of a pool would see a database of its own.
            Some(("sqlite", rest)) if rest.contains(":memory:") || rest.contains("mode=memory") => {
                Err(bad(
                    "; a database in memory is not shared by connections, use a temporary file",
                ))
            }
            Some(("sqlite", _)) => Ok(Self::Sqlite),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres),
            _ => Err(bad("")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> ConfigBuilder {
        Config::builder().api_key(ApiKey::new("a-secret-key").expect("usable"))
    }

    #[test]
    fn nothing_printed_holds_a_secret() {
        let config = builder()
            .database_url("postgres://ann:hidden@db/shop")
            .redis_url(Some("redis://:hidden@cache".to_owned()))
            .build()
            .expect("valid");
        let printed = format!("{config:?} {:?} {:?}", config.describe(), builder());
        assert!(!printed.contains("hidden") && !printed.contains("a-secret-key"), "{printed}");
        assert!(printed.contains("postgres://ann:***@db/shop"), "{printed}");
    }

    #[test]
    fn errors_name_the_value_and_the_remedy_and_no_secret() {
        let error = |builder: ConfigBuilder| builder.build().expect_err("refused").to_string();
        assert!(error(Config::builder()).contains("EXAMPLE_API_KEYS"));
        assert!(error(builder().rate_limit(0)).contains("rate limit 0"));
        assert!(error(builder().database_connections(0)).contains("1 to 1000"));
        assert!(error(builder().database_url("sqlite::memory:")).contains("temporary file"));
        let mysql = error(builder().database_url("mysql://ann:hidden@db/shop"));
        assert!(mysql.contains("mysql://ann:***@db") && mysql.contains("postgres://"), "{mysql}");
        assert!(
            error(builder().redis_url(Some("http://x".to_owned()))).contains("redis://HOST:PORT")
        );
    }

    #[test]
    fn keys_that_could_be_guessed_or_not_be_sent_are_refused() {
        for key in ["", "short", "with a space", "with,comma", "naïve-key-here"] {
            assert!(ApiKey::new(key).is_err(), "{key}");
        }
        assert_ne!(ApiKey::random().reveal(), ApiKey::random().reveal());
    }
}
