//! The configuration as it is typed: flags and environment.

use std::{
    env::{self, VarError},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use parallax_middleware::{BearerGuard, TokenKeys};

use crate::config::{ApiKey, Config, ConfigError, DEFAULT_DATABASE_URL};

/// Where keys come from when nobody has set one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingKey {
    /// It is an error: nobody could use the service.
    Refuse,
    /// One is made that only this process knows: nobody else needs to use the service.
    Invent,
}

/// Flags that every command of the service takes; each can be set in the environment too.
///
/// A key is never a flag: other users of a machine can read the command line.
#[derive(Args, Clone)]
#[expect(clippy::doc_markdown, reason = "the help shows these lines as they stand")]
pub struct ConfigArgs {
    /// Database: sqlite://FILE?mode=rwc or postgres://USER:PASSWORD@HOST/DATABASE
    #[arg(
        long,
        env = "DATABASE_URL",
        value_name = "URL",
        default_value = DEFAULT_DATABASE_URL,
        hide_env_values = true
    )]
    pub database_url: String,
    /// Cache shared by several processes: redis://HOST:PORT [default: a cache in the process]
    #[arg(long, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<String>,
    /// File with one API key a line; or set EXAMPLE_API_KEYS to keys separated by commas
    #[arg(long, env = "EXAMPLE_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// File with keys of the bypass tokens that let load by the limiter; or set PARALLAX_BYPASS_KEY
    /// [default: no token is taken]
    #[arg(long, env = "EXAMPLE_BYPASS_KEY_FILE", value_name = "FILE")]
    pub bypass_key_file: Option<PathBuf>,
    /// File with the token that opens /perf, also in a browser, as the password; or set EXAMPLE_PERF_TOKEN
    /// [default: /perf opens with an API key]
    #[arg(long, env = "EXAMPLE_PERF_TOKEN_FILE", value_name = "FILE")]
    pub perf_token_file: Option<PathBuf>,
    /// Connections that read [default: 16 on SQLite, 20 on PostgreSQL]
    #[arg(long, env = "EXAMPLE_DATABASE_CONNECTIONS", value_name = "COUNT")]
    pub database_connections: Option<u32>,
    /// Connections to Redis
    #[arg(long, env = "EXAMPLE_REDIS_CONNECTIONS", value_name = "COUNT", default_value_t = 32)]
    pub redis_connections: usize,
    /// Requests per 60 s and key
    #[arg(long, env = "EXAMPLE_RATE_LIMIT", value_name = "REQUESTS", default_value_t = 1_000)]
    pub rate_limit: u32,
    /// How long a cached answer may be used, seconds
    #[arg(long, env = "EXAMPLE_CACHE_TTL", value_name = "SECONDS", default_value_t = 30)]
    pub cache_ttl: u64,
    /// How often the model looks for what other processes wrote, seconds
    #[arg(
        long,
        env = "EXAMPLE_MODEL_REFRESH_INTERVAL",
        value_name = "SECONDS",
        default_value_t = 5
    )]
    pub model_refresh_interval: u64,
}

/// The keys of bypass tokens in the environment, as `parallax token` finds them too.
const BYPASS_KEYS_VARIABLE: &str = "PARALLAX_BYPASS_KEY";
/// The token of `/perf` in the environment.
const PERF_TOKEN_VARIABLE: &str = "EXAMPLE_PERF_TOKEN";
/// Keys in the environment, separated by commas.
const KEYS_VARIABLE: &str = "EXAMPLE_API_KEYS";

impl ConfigArgs {
    /// Reads the keys, and checks everything.
    ///
    /// # Errors
    /// The first setting that cannot work, with what would.
    pub fn config(
        &self,
        addr: Option<SocketAddr>,
        missing_key: MissingKey,
    ) -> Result<Config, ConfigError> {
        let mut builder = Config::builder()
            .database_url(&self.database_url)
            .redis_url(self.redis_url.clone())
            .redis_connections(self.redis_connections)
            .rate_limit(self.rate_limit)
            .cache_ttl(Duration::from_secs(self.cache_ttl))
            .model_refresh_interval(Duration::from_secs(self.model_refresh_interval));
        if let Some(connections) = self.database_connections {
            builder = builder.database_connections(connections);
        }
        if let Some(addr) = addr {
            builder = builder.addr(addr);
        }
        let mut keys = keys_in(&env::var(KEYS_VARIABLE).unwrap_or_default(), ',')?;
        if let Some(path) = &self.api_key_file {
            let text = fs::read_to_string(path).map_err(|error| ConfigError::KeyFile {
                path: path.display().to_string(),
                reason: error.to_string(),
            })?;
            keys.extend(keys_in(&text, '\n')?);
        }
        if let Some(keys) = self.bypass_keys()? {
            builder = builder.bypass_keys(keys);
        }
        if let Some(guard) = self.perf_guard()? {
            builder = builder.perf_guard(guard);
        }
        if keys.is_empty() && missing_key == MissingKey::Invent {
            keys.push(ApiKey::random());
        }
        keys.into_iter().fold(builder, crate::ConfigBuilder::api_key).build()
    }
}

impl ConfigArgs {
    fn bypass_keys(&self) -> Result<Option<TokenKeys>, ConfigError> {
        let parse = |text: &str| TokenKeys::parse(text).map_err(|error| error.to_string());
        secret(self.bypass_key_file.as_deref(), BYPASS_KEYS_VARIABLE, parse)
            .map_err(|(place, reason)| ConfigError::BypassKeys { place, reason })
    }

    fn perf_guard(&self) -> Result<Option<BearerGuard>, ConfigError> {
        let parse =
            |text: &str| BearerGuard::new(text.trim_end()).map_err(|error| error.to_string());
        secret(self.perf_token_file.as_deref(), PERF_TOKEN_VARIABLE, parse)
            .map_err(|(place, reason)| ConfigError::PerfToken { place, reason })
    }
}

/// A secret from a file, or else from the environment, if it is there; or the place that it is from, and what is
/// wrong with it.
fn secret<T>(
    file: Option<&Path>,
    variable: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, (String, String)> {
    let place = file.map_or_else(|| variable.to_owned(), |path| path.display().to_string());
    let text = match file {
        Some(path) => fs::read_to_string(path).map_err(|error| error.to_string()),
        None => match env::var(variable) {
            Err(VarError::NotPresent) => return Ok(None),
            text => text.map_err(|_| "it is no text".to_owned()),
        },
    };
    text.and_then(|text| parse(&text)).map(Some).map_err(|reason| (place, reason))
}

/// By hand, so that no password is shown.
impl std::fmt::Debug for ConfigArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigArgs")
            .field("database_url", &crate::redact::redacted(&self.database_url))
            .field("redis_url", &self.redis_url.as_deref().map(crate::redact::redacted))
            .finish_non_exhaustive()
    }
}

fn keys_in(text: &str, separator: char) -> Result<Vec<ApiKey>, ConfigError> {
    text.split(separator).map(str::trim).filter(|key| !key.is_empty()).map(ApiKey::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_and_blanks_left_out() {
        let keys = keys_in(" first-key, second-key ,,", ',').expect("usable");
        let keys: Vec<&str> = keys.iter().map(ApiKey::reveal).collect();
        assert_eq!(keys, ["first-key", "second-key"]);
        assert!(keys_in("short", '\n').is_err());
    }
}
