//! One iteration of a flow: requests one after the other, and what goes from one answer into the next.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, header};
use tokio::time::Instant;

use crate::{
    pause::Pause,
    random::LoadRng,
    reply::{FlowError, Reply},
    sink::Sample,
};

/// One iteration of a [flow](crate::Scenario::flow).
///
/// Each answer's cookies go with the requests after it, of the same session.
#[derive(Debug)]
pub struct Session {
    client: Box<dyn Client>,
    /// When the next request is due.
    ready: Instant,
    random: LoadRng,
    cookies: BTreeMap<String, String>,
    state: Arc<State>,
}

/// What is left of a session once its flow is over.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The last request: whether its answer passes the checks is not known before the next one.
    pending: Mutex<Option<Sample>>,
    values: Mutex<BTreeMap<String, String>>,
}

impl State {
    pub(crate) fn new(values: BTreeMap<String, String>) -> Arc<Self> {
        Arc::new(Self { values: Mutex::new(values), ..Self::default() })
    }

    pub(crate) fn pending(&self) -> MutexGuard<'_, Option<Sample>> {
        lock(&self.pending)
    }

    pub(crate) fn values(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        lock(&self.values)
    }
}

/// What is under the locks is whole between two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The run's side of a session.
pub(crate) trait Client: fmt::Debug + Send {
    /// Sends a request that was due at `ready`; `None` if the run is over.
    fn send<'a>(
        &'a mut self,
        name: &'a str,
        request: Request<Bytes>,
        ready: Instant,
    ) -> BoxFuture<'a, Option<(Sample, Reply)>>;

    /// Waits until `due`, or until the run is over.
    fn wait_until(&self, due: Instant) -> BoxFuture<'_, ()>;

    /// Counts a request that has ended.
    fn keep(&self, sample: Sample);

    /// Counts a check.
    fn check(&self, name: &str, failure: Option<&dyn fmt::Display>);
}

impl Session {
    pub(crate) fn new(
        client: Box<dyn Client>,
        ready: Instant,
        random: LoadRng,
        state: Arc<State>,
    ) -> Self {
        Self { client, ready, random, cookies: BTreeMap::new(), state }
    }

    /// Sends a request and waits for the whole answer. `name` stands for it in reports where no layer answers.
    ///
    /// # Errors
    /// If there was no answer (a timeout, a broken connection, a panic), which is counted as what it was; or if
    /// the run is over. With `?` both end the iteration.
    ///
    /// # Cancel safety
    /// A future that is dropped leaves its request unfinished: the run counts it as in flight.
    pub async fn send(
        &mut self,
        name: &str,
        mut request: Request<impl Into<Bytes>>,
    ) -> Result<Reply, FlowError> {
        self.keep_last();
        if !self.cookies.is_empty()
            && let Ok(cookies) = HeaderValue::try_from(
                self.cookies
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect::<Vec<_>>()
                    .join("; "),
            )
        {
            request.headers_mut().entry(header::COOKIE).or_insert(cookies);
        }
        let request = request.map(Into::into);
        let sent = self.client.send(name, request, self.ready).await;
        let Some((sample, reply)) = sent else { return Err(FlowError::over()) };
        let answered = sample.answer.outcome.is_answer();
        *self.state.pending() = Some(sample);
        self.ready = reply.received;
        if !answered {
            return Err(FlowError::no_answer());
        }
        self.take_cookies(&reply.headers);
        Ok(reply)
    }

    /// Pauses, as a person who reads an answer does: the next request is due this long after the last answer.
    /// Ends with the run, if that is sooner.
    pub async fn pause(&mut self, pause: impl Into<Pause>) {
        self.keep_last();
        self.ready += pause.into().draw(&mut self.random);
        self.client.wait_until(self.ready).await;
    }

    /// Requires something of the last answer. If it does not hold, the request counts as `check_failed`, unless it
    /// has failed already; the report has how often each check held. Returns `holds`.
    ///
    /// A check belongs between an answer and whatever is next: with the next request or [`pause`](Self::pause) the
    /// last one is counted as what it was, and a check after that fails no request any more.
    pub fn check(&mut self, name: &str, holds: bool) -> bool {
        let failure: Option<&dyn fmt::Display> = if holds { None } else { Some(&"") };
        self.count_check(name, failure);
        holds
    }

    /// Requires something of the last answer, like [`check`](Self::check): that `wrong` is nothing. Otherwise the
    /// report says what was wrong the first time.
    pub fn check_that(&mut self, name: &str, wrong: Option<&dyn fmt::Display>) -> bool {
        self.count_check(name, wrong);
        wrong.is_none()
    }

    fn count_check(&mut self, name: &str, failure: Option<&dyn fmt::Display>) {
        self.client.check(name, failure);
        if failure.is_some()
            && let Some(sample) = &mut *self.state.pending()
        {
            sample.answer.fail_check();
        }
    }

    /// The source of randomness of this iteration: the same seed makes the same choices.
    pub fn random(&mut self) -> &mut LoadRng {
        &mut self.random
    }

    /// A value of the run's setup, or one that was set since.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        self.state.values().get(name).cloned()
    }

    /// Keeps a value: in a setup for all sessions, in a flow for the rest of it.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.state.values().insert(name.to_owned(), value.into());
    }

    /// The value of a cookie that an answer has set.
    #[must_use]
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies.get(name).map(String::as_str)
    }

    fn keep_last(&mut self) {
        // Out of the lock first: what it is given to takes another.
        let last = self.state.pending().take();
        if let Some(sample) = last {
            self.client.keep(sample);
        }
    }

    /// One service is driven, so domain and path of a cookie do not matter; its end does.
    fn take_cookies(&mut self, headers: &HeaderMap) {
        for cookie in headers.get_all(header::SET_COOKIE) {
            let Ok(cookie) = cookie.to_str() else { continue };
            let mut parts = cookie.split(';').map(str::trim);
            let Some((name, value)) = parts.next().and_then(|pair| pair.split_once('=')) else {
                continue;
            };
            if has_ended(parts) {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}

/// Is a cookie with these attributes one that is to be forgotten? `Max-Age` counts before `Expires` (RFC 6265, 5.3).
fn has_ended<'a>(attributes: impl Iterator<Item = &'a str>) -> bool {
    let mut expired = false;
    for (attribute, value) in attributes.filter_map(|attribute| attribute.split_once('=')) {
        if attribute.eq_ignore_ascii_case("max-age")
            && let Ok(seconds) = value.parse::<i64>()
        {
            return seconds <= 0;
        }
        if attribute.eq_ignore_ascii_case("expires") {
            // Many write the date with hyphens, as Netscape did.
            let date = httpdate::parse_http_date(value)
                .or_else(|_| httpdate::parse_http_date(&value.replace('-', " ")));
            expired = date.is_ok_and(|date| date <= SystemTime::now());
        }
    }
    expired
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_ends_by_its_age_or_else_by_its_date() {
        for (attributes, ended) in [
            ("Path=/; HttpOnly", false),
            ("Max-Age=0", true),
            ("max-age=-1; Secure", true),
            ("Max-Age=60", false),
            ("Expires=Thu, 01 Jan 1970 00:00:00 GMT", true),
            ("Path=/; expires=Thu, 01-Jan-1970 00:00:00 GMT", true),
            ("Expires=Fri, 31 Dec 9999 23:59:59 GMT", false),
            ("Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=60", false),
            ("Max-Age=0; Expires=Fri, 31 Dec 9999 23:59:59 GMT", true),
            ("Expires=someday; Max-Age=never", false),
        ] {
            assert_eq!(has_ended(attributes.split(';').map(str::trim)), ended, "{attributes}");
        }
    }
}
