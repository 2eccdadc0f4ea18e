//! Whether a token lets a request past: expiry, scope, sender, and how often it has been used.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    panic::{RefUnwindSafe, UnwindSafe},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::extract::{ConnectInfo, OriginalUri};
use http::{HeaderMap, HeaderName, HeaderValue, Request};

use crate::{
    keys::TokenKeys,
    token::{Claims, Mac, TokenRefusal},
};

/// Tokens with a budget or a cap whose use is remembered at a time.
const REMEMBERED: usize = 1024;

/// How tokens are checked: by which keys, by which clock, and how far that may be off.
///
/// ```
/// use std::time::Duration;
/// use parallax_middleware::{BypassPolicy, TokenCheck, TokenKeys};
///
/// let keys = TokenKeys::parse("ci:8f0f7c1e5a4b4d0d9c8e6b1a2f3e4d5c").unwrap();
/// let policy =
///     BypassPolicy::in_process().tokens(TokenCheck::new(keys).leeway(Duration::from_secs(5)));
/// ```
#[derive(Clone)]
pub struct TokenCheck {
    keys: TokenKeys,
    leeway: Duration,
    clock: WallClock,
}

#[derive(Clone)]
struct WallClock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

// Nothing of ours is left half done by a clock that panics; whoever holds a handle need not know that it has one.
impl UnwindSafe for WallClock {}
impl RefUnwindSafe for WallClock {}

impl TokenCheck {
    /// Checks by these keys and the system's clock, which may be 30 s behind the issuer's.
    #[must_use]
    pub fn new(keys: TokenKeys) -> Self {
        Self { keys, leeway: Duration::from_secs(30), clock: WallClock(Arc::new(SystemTime::now)) }
    }

    /// Lets a token be used for so long after it has expired: the clocks of two machines never agree.
    #[must_use]
    pub fn leeway(self, time: Duration) -> Self {
        Self { leeway: time, ..self }
    }

    /// Asks another clock than the system's, for tests.
    #[must_use]
    pub fn wall_clock(self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self { clock: WallClock(Arc::new(now)), ..self }
    }
}

impl From<TokenKeys> for TokenCheck {
    fn from(keys: TokenKeys) -> Self {
        Self::new(keys)
    }
}

impl fmt::Debug for TokenCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keys, leeway, clock: _ } = self;
        f.debug_struct("TokenCheck")
            .field("keys", keys)
            .field("leeway", leeway)
            .finish_non_exhaustive()
    }
}

/// A check, and what it remembers of the tokens that it let past.
#[derive(Debug)]
pub(crate) struct Gate {
    check: TokenCheck,
    uses: Arc<Mutex<Uses>>,
}

/// How often tokens have been used. Only authentic ones come in here, and only if they have a limit.
#[derive(Default)]
struct Uses {
    of: HashMap<Mac, Use>,
    /// Seconds since 1970. Of tokens that expired up to then, some may have been forgotten: should the clock
    /// go back, they must not begin anew.
    forgotten_until: u64,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    expires_unix_s: u64,
    /// Requests that were let past.
    passed: u32,
    /// Those of them that are not over; counted for tokens with a cap on them.
    in_flight: u32,
}

/// A gate, and the header of the tokens that are shown at it.
#[derive(Clone, Debug)]
pub(crate) struct Entrance {
    pub(crate) header: HeaderName,
    pub(crate) gate: Arc<Gate>,
}

impl Entrance {
    /// Takes the token out of a request and shows it at the gate. `None` if the request has none.
    #[inline]
    pub(crate) fn judge<B>(
        &self,
        request: &mut Request<B>,
    ) -> Option<Result<Option<Held>, TokenRefusal>> {
        let token = take_token(&self.header, request.headers_mut())?;
        Some(self.gate.judge(token.as_ref(), request))
    }
}

/// Takes the header of a token out of a request: `None` if it has none, and no value if it came more than once.
#[inline]
#[expect(clippy::option_option, reason = "whether there is one, and whether it can be read")]
pub(crate) fn take_token(
    header: &HeaderName,
    headers: &mut HeaderMap,
) -> Option<Option<HeaderValue>> {
    if !headers.contains_key(header) {
        return None;
    }
    let alone = headers.get_all(header).iter().nth(1).is_none();
    Some(headers.remove(header).filter(|_| alone))
}

/// One of the requests that a token allows at a time, until it is dropped.
pub(crate) struct Held {
    uses: Arc<Mutex<Uses>>,
    mac: Mac,
}

impl Gate {
    pub(crate) fn new(check: TokenCheck) -> Self {
        Self { check, uses: Arc::default() }
    }

    /// Judges what [`take_token`] took out of a request.
    pub(crate) fn judge<B>(
        &self,
        token: Option<&HeaderValue>,
        request: &Request<B>,
    ) -> Result<Option<Held>, TokenRefusal> {
        self.admit(token.ok_or(TokenRefusal::Malformed)?, request)
    }

    /// Lets a request past, or says why not.
    fn admit<B>(
        &self,
        token: &HeaderValue,
        request: &Request<B>,
    ) -> Result<Option<Held>, TokenRefusal> {
        self.check.keys.with_claims(token.as_bytes(), |claims, mac| {
            // A clock that stands before 1970 knows nothing of any expiry.
            let now = (self.check.clock.0)().duration_since(UNIX_EPOCH);
            let now = now.map_err(|_| TokenRefusal::Expired)?;
            if now >= Duration::from_secs(claims.expires_unix_s).saturating_add(self.check.leeway) {
                return Err(TokenRefusal::Expired);
            }
            if !allows(&claims, request) {
                return Err(TokenRefusal::OutOfScope);
            }
            self.count(&claims, mac, now)
        })?
    }

    /// Counts one more request of the token, if it has a limit.
    fn count(
        &self,
        claims: &Claims<'_>,
        mac: Mac,
        now: Duration,
    ) -> Result<Option<Held>, TokenRefusal> {
        let Claims { expires_unix_s, budget, concurrency, .. } = *claims;
        if budget == 0 && concurrency == 0 {
            return Ok(None);
        }
        let mut uses = lock(&self.uses);
        let known = uses.of.contains_key(&mac);
        if !known && expires_unix_s <= uses.forgotten_until {
            return Err(TokenRefusal::Expired);
        }
        if !known && uses.of.len() >= REMEMBERED {
            uses.forget_expired(now, self.check.leeway);
            if uses.of.len() >= REMEMBERED {
                // To forget one that is still good would give it its budget back.
                return Err(TokenRefusal::OutOfScope);
            }
        }
        let used = uses.of.entry(mac).or_insert(Use { expires_unix_s, passed: 0, in_flight: 0 });
        let spent = budget > 0 && used.passed >= budget;
        if spent || concurrency > 0 && used.in_flight >= concurrency {
            return Err(TokenRefusal::OutOfScope);
        }
        used.passed = used.passed.saturating_add(1);
        if concurrency == 0 {
            return Ok(None);
        }
        used.in_flight += 1;
        Ok(Some(Held { uses: self.uses.clone(), mac }))
    }
}

/// Method, path and sender, as the token has them.
fn allows<B>(claims: &Claims<'_>, request: &Request<B>) -> bool {
    // A nested router sees only the rest of the path; the token speaks of the whole one.
    let original = request.extensions().get::<OriginalUri>().map(|OriginalUri(uri)| uri);
    let path = original.unwrap_or(request.uri()).path();
    if !(claims.method.is_empty() || claims.method == request.method().as_str())
        || !claims.covers(path)
    {
        return false;
    }
    let Some(range) = claims.peer else { return true };
    // No header says who sent a request: whoever sends it writes them.
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    peer.is_some_and(|ConnectInfo(peer)| range.contains(peer.ip()))
}

impl Uses {
    fn forget_expired(&mut self, now: Duration, leeway: Duration) {
        let mut forgotten_until = self.forgotten_until;
        self.of.retain(|_, used| {
            let expires = Duration::from_secs(used.expires_unix_s).saturating_add(leeway);
            let keep = used.in_flight > 0 || now < expires;
            if !keep {
                forgotten_until = forgotten_until.max(used.expires_unix_s);
            }
            keep
        });
        self.forgotten_until = forgotten_until;
    }
}

fn lock(uses: &Mutex<Uses>) -> MutexGuard<'_, Uses> {
    // Nothing in here is left half done.
    uses.lock().unwrap_or_else(PoisonError::into_inner)
}

// The rest of a token can be guessed: its MAC is shown nowhere.

impl fmt::Debug for Uses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uses").field("tokens", &self.of.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(used) = lock(&self.uses).of.get_mut(&self.mac) {
            used.in_flight = used.in_flight.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use axum::{body::Body, extract::Request};
    use http::Method;

    use super::*;
    use crate::token::BypassToken;

    const LEEWAY: u64 = 30;

    /// A gate, and the clock that it looks at.
    struct Watch {
        gate: Gate,
        keys: TokenKeys,
        unix_s: Arc<AtomicU64>,
    }

    impl Watch {
        fn at(unix_s: u64) -> Self {
            let keys = TokenKeys::new("k1", &[7; 32]).expect("it is long enough");
            let unix_s = Arc::new(AtomicU64::new(unix_s));
            let clock = unix_s.clone();
            let check = TokenCheck::new(keys.clone())
                .leeway(Duration::from_secs(LEEWAY))
                .wall_clock(move || UNIX_EPOCH + Duration::from_secs(clock.load(Relaxed)));
            Self { gate: Gate::new(check), keys, unix_s }
        }

        fn set(&self, unix_s: u64) {
            self.unix_s.store(unix_s, Relaxed);
        }

        fn minted(&self, token: &BypassToken) -> HeaderValue {
            let text = token.mint(&self.keys).expect("a token can say this");
            HeaderValue::try_from(text).expect("it is ASCII")
        }

        fn admit(&self, token: &BypassToken) -> Result<Option<Held>, TokenRefusal> {
            self.gate.admit(&self.minted(token), &get("/items/7"))
        }

        fn passes(&self, token: &BypassToken) -> Result<(), TokenRefusal> {
            self.admit(token).map(drop)
        }

        fn remembered(&self) -> usize {
            lock(&self.gate.uses).of.len()
        }
    }

    fn until(unix_s: u64) -> BypassToken {
        BypassToken::until(UNIX_EPOCH + Duration::from_secs(unix_s), "run")
    }

    fn get(path: &str) -> Request {
        Request::get(path).body(Body::empty()).expect("a valid request")
    }

    #[test]
    fn a_token_is_good_until_its_expiry_and_the_leeway_after() {
        let watch = Watch::at(0);
        for (now, passes) in
            [(0, true), (999, true), (1_029, true), (1_030, false), (1 << 40, false)]
        {
            watch.set(now);
            let expected = if passes { Ok(()) } else { Err(TokenRefusal::Expired) };
            assert_eq!(watch.passes(&until(1_000)), expected, "at {now}");
        }
        let never =
            BypassToken::until(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 61), "run");
        assert_eq!(watch.passes(&never), Ok(()));
    }

    #[test]
    fn a_clock_before_1970_lets_nobody_past() {
        let keys = TokenKeys::new("k1", &[7; 32]).expect("it is long enough");
        let lost = || UNIX_EPOCH - Duration::from_secs(1);
        let gate = Gate::new(TokenCheck::new(keys.clone()).wall_clock(lost));
        let text = until(1_000).mint(&keys).expect("a token");
        let admitted = gate.admit(&text.parse().expect("ASCII"), &get("/"));
        assert_eq!(admitted.map(drop), Err(TokenRefusal::Expired));
    }

    #[test]
    fn a_token_is_good_for_its_method_and_its_path_alone() {
        let watch = Watch::at(0);
        let passes = |token: &BypassToken, method: Method, path: &str| {
            let mut request = get(path);
            *request.method_mut() = method;
            watch.gate.admit(&watch.minted(token), &request).map(drop)
        };
        let refused = Err(TokenRefusal::OutOfScope);
        let items = until(1_000).method(Method::GET).path("/items");
        assert_eq!(passes(&items, Method::GET, "/items/7?q=1"), Ok(()));
        assert_eq!(passes(&items, Method::GET, "/itemset"), refused);
        assert_eq!(passes(&items, Method::POST, "/items/7"), refused);
        assert_eq!(passes(&items, Method::HEAD, "/items/7"), refused);
        assert_eq!(passes(&until(1_000), Method::DELETE, "/any"), Ok(()));
        assert_eq!(passes(&until(1_000), Method::CONNECT, "example.org:443"), refused);
    }

    #[test]
    fn the_path_is_the_one_that_the_client_asked_for() {
        let watch = Watch::at(0);
        let token = watch.minted(&until(1_000).path("/api/items"));
        let mut nested = get("/items/7");
        nested.extensions_mut().insert(OriginalUri("/api/items/7".parse().expect("a path")));
        assert!(watch.gate.admit(&token, &nested).is_ok());
        let mut elsewhere = get("/api/items/7");
        elsewhere.extensions_mut().insert(OriginalUri("/v2/api/items/7".parse().expect("a path")));
        assert!(watch.gate.admit(&token, &elsewhere).is_err());
    }

    #[test]
    fn a_peer_is_the_socket_s_and_nobody_s_where_the_socket_is_not_known() {
        let watch = Watch::at(0);
        let token = watch.minted(&until(1_000).peer("10.0.0.0/8".parse().expect("a range")));
        let from = |peer: Option<&str>| {
            let mut request = get("/items/7");
            for name in ["x-forwarded-for", "x-real-ip", "forwarded", "cf-connecting-ip"] {
                request.headers_mut().insert(name, HeaderValue::from_static("10.1.2.3"));
            }
            if let Some(peer) = peer {
                let peer: SocketAddr = peer.parse().expect("an address");
                request.extensions_mut().insert(ConnectInfo(peer));
            }
            watch.gate.admit(&token, &request).map(drop)
        };
        assert_eq!(from(Some("10.1.2.3:4567")), Ok(()));
        assert_eq!(from(Some("[::ffff:10.1.2.3]:4567")), Ok(()));
        assert_eq!(from(Some("11.1.2.3:4567")), Err(TokenRefusal::OutOfScope));
        assert_eq!(from(Some("[::1]:4567")), Err(TokenRefusal::OutOfScope));
        assert_eq!(from(None), Err(TokenRefusal::OutOfScope));
    }

    #[test]
    fn a_budget_is_spent_by_what_passes_and_by_nothing_else() {
        let watch = Watch::at(0);
        let token = until(1_000).path("/items").budget(2);
        let text = watch.minted(&token);
        for _ in 0..5 {
            assert!(watch.gate.admit(&text, &get("/other")).is_err());
        }
        let mut passed = (0..5).map(|_| watch.passes(&token));
        assert!(passed.by_ref().take(2).all(|passed| passed == Ok(())));
        assert!(passed.all(|passed| passed == Err(TokenRefusal::OutOfScope)));
        // Another token is another budget.
        assert_eq!(watch.passes(&until(1_001).budget(2)), Ok(()));
    }

    #[test]
    fn a_budget_is_spent_once_however_many_spend_it() {
        let watch = Watch::at(0);
        let token = until(1_000).budget(100);
        let passed: usize = std::thread::scope(|scope| {
            let spend = || (0..100).filter(|_| watch.passes(&token).is_ok()).count();
            let spending: Vec<_> = (0..4).map(|_| scope.spawn(spend)).collect();
            spending.into_iter().map(|spending| spending.join().expect("no panic")).sum()
        });
        assert_eq!(passed, 100);
    }

    #[test]
    fn a_cap_is_on_what_is_not_over() {
        let watch = Watch::at(0);
        let token = until(1_000).concurrency(2);
        let first = watch.admit(&token).expect("the first");
        let second = watch.admit(&token).expect("the second");
        assert_eq!(watch.passes(&token), Err(TokenRefusal::OutOfScope));
        drop(first);
        assert_eq!(watch.passes(&token), Ok(()));
        assert_eq!(watch.passes(&token), Ok(()));
        drop(second);
        assert_eq!(lock(&watch.gate.uses).of.values().map(|used| used.in_flight).sum::<u32>(), 0);
    }

    #[test]
    fn tokens_without_a_limit_are_not_remembered() {
        let watch = Watch::at(0);
        for n in 0..10 {
            assert_eq!(watch.passes(&until(1_000 + n)), Ok(()));
        }
        assert_eq!(watch.remembered(), 0);
    }

    #[test]
    fn what_is_remembered_has_an_end_and_no_budget_begins_anew_for_it() {
        let watch = Watch::at(0);
        let spent = until(1_000).budget(1);
        assert_eq!(watch.passes(&spent), Ok(()));
        for n in 0..2 * REMEMBERED as u64 {
            // The first ones find room, the others none.
            let passed = watch.passes(&until(2_000 + n).budget(1));
            assert_eq!(passed.is_ok(), n + 1 < REMEMBERED as u64, "{n}");
        }
        assert_eq!(watch.remembered(), REMEMBERED);
        assert_eq!(watch.passes(&spent), Err(TokenRefusal::OutOfScope));
        // Without a limit, none needs room.
        assert_eq!(watch.passes(&until(1_000)), Ok(()));

        // What has expired makes room.
        watch.set(1_500 + LEEWAY);
        assert_eq!(watch.passes(&until(9_000).budget(1)), Ok(()));
        assert_eq!(watch.remembered(), REMEMBERED);
        // The clock goes back, and the token that was forgotten would be good again.
        watch.set(0);
        assert_eq!(watch.passes(&spent), Err(TokenRefusal::Expired));
        assert_eq!(watch.passes(&until(9_000).budget(1)), Err(TokenRefusal::OutOfScope));
    }

    #[test]
    fn a_clock_that_goes_back_revives_no_budget() {
        let watch = Watch::at(500);
        let token = until(1_000).budget(1);
        assert_eq!(watch.passes(&token), Ok(()));
        for (now, refusal) in [(5_000, TokenRefusal::Expired), (0, TokenRefusal::OutOfScope)] {
            watch.set(now);
            assert_eq!(watch.passes(&token), Err(refusal), "at {now}");
        }
    }

    #[test]
    fn a_gate_shows_nothing_of_its_secrets() {
        let watch = Watch::at(0);
        let held = watch.admit(&until(1_000).concurrency(1)).expect("it passes");
        let shown = format!("{:?} {held:?}", watch.gate);
        assert!(shown.contains("ids: [\"k1\"]") && shown.contains("tokens: 1"), "{shown}");
        let mac = watch
            .keys
            .with_claims(watch.minted(&until(1_000).concurrency(1)).as_bytes(), |_, mac| mac);
        let mac = format!("{:?}", mac.expect("it is authentic"));
        assert!(
            !shown.contains(mac.trim_matches(['[', ']'])) && !shown.contains("7, 7"),
            "{shown}"
        );
    }

    #[test]
    fn what_is_in_flight_is_remembered_past_its_expiry() {
        let watch = Watch::at(0);
        let held = watch.admit(&until(10).concurrency(1)).expect("it passes");
        for n in 1..REMEMBERED as u64 {
            assert_eq!(watch.passes(&until(1_000 + n).budget(1)), Ok(()));
        }
        watch.set(100_000);
        assert_eq!(watch.passes(&until(200_000).budget(1)), Ok(()));
        assert_eq!(watch.remembered(), 2);
        drop(held);
        watch.set(0);
        assert_eq!(watch.passes(&until(10).concurrency(1)), Ok(()));
    }
}
