//! What a bypass token says, and the one text that says it.
//!
//! ```text
//! px1.<base64url of body and MAC, without padding>
//! body = id id | u64 expiry | method | path | run | peer | u32 budget | u32 concurrency
//! MAC  = HMAC-SHA-256(key, "px1." body)
//! ```
//!
//! Numbers are big-endian; texts have their length before them. The version fixes the algorithm: there is no
//! field that could name another one.

use std::{
    error::Error,
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::Method;

use crate::{keys::TokenKeys, peer::PeerRange};

/// Begins every token of this form.
const VERSION: &str = "px1.";

const MAC_BYTES: usize = 32;
const MAX_KEY_ID: usize = 32;
const MAX_METHOD: usize = 16;
const MAX_PATH: usize = 512;
const MAX_RUN: usize = 64;
const MAX_BODY: usize = (1 + MAX_KEY_ID) + 8 + (1 + MAX_METHOD) + (2 + MAX_PATH) + (1 + MAX_RUN)
    // The peer: its kind, an IPv6 address, the length of the prefix.
    + (1 + 16 + 1)
    + (4 + 4);
/// Anything longer is no token, and is not looked at.
const MAX_TEXT: usize = VERSION.len() + (MAX_BODY + MAC_BYTES).div_ceil(3) * 4;

// What the documentation says.
const _: () = assert!(MAX_TEXT == 932);

/// The mark of one token among all: what its issuer put under it.
pub(crate) type Mac = [u8; MAC_BYTES];

/// What a token allows: so many requests, to these routes, from there, until then.
///
/// It is worth what the keys behind it are worth. As little as will do is the right amount: a token travels
/// with every request, and whoever gets hold of it may do what it allows until it expires.
///
/// ```
/// use std::time::Duration;
/// use parallax_middleware::{BypassToken, TokenKeys};
///
/// let keys = TokenKeys::parse("ci:8f0f7c1e5a4b4d0d9c8e6b1a2f3e4d5c").unwrap();
/// let token = BypassToken::lasting(Duration::from_secs(600), "nightly-42")
///     .method(http::Method::GET)
///     .path("/search")
///     .budget(50_000);
/// let text = token.mint(&keys).unwrap();
/// assert!(text.starts_with("px1."));
/// assert_eq!(keys.authenticate(text.as_bytes()), Ok(token));
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BypassToken {
    expires_unix_s: u64,
    method: Option<String>,
    path: String,
    run: String,
    peer: Option<PeerRange>,
    budget: Option<u32>,
    concurrency: Option<u32>,
}

impl BypassToken {
    /// A token for one run that expires then, and allows any request until then.
    ///
    /// Whole seconds: what lies between two of them is put off to the next. A moment before 1970 is 1970.
    #[must_use]
    pub fn until(expires: SystemTime, run: &str) -> Self {
        Self {
            expires_unix_s: unix_seconds_up(expires),
            method: None,
            path: "/".to_owned(),
            run: run.to_owned(),
            peer: None,
            budget: None,
            concurrency: None,
        }
    }

    /// A token for one run that expires so long from now, and allows any request until then.
    #[must_use]
    pub fn lasting(time: Duration, run: &str) -> Self {
        let forever = UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX));
        Self::until(SystemTime::now().checked_add(time).unwrap_or(forever), run)
    }

    /// Allows one method alone. HEAD is a method of its own.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "methods are written as constants")]
    pub fn method(self, method: Method) -> Self {
        Self { method: Some(method.as_str().to_owned()), ..self }
    }

    /// Allows this path and what lies below it: `/items` covers `/items/7`, and not `/itemset`.
    #[must_use]
    pub fn path(self, prefix: &str) -> Self {
        Self { path: prefix.to_owned(), ..self }
    }

    /// Allows requests from this range alone, by the address of the socket that they come from.
    #[must_use]
    pub fn peer(self, range: PeerRange) -> Self {
        Self { peer: Some(range), ..self }
    }

    /// Allows so many requests in all, in each process that checks the token.
    #[must_use]
    pub fn budget(self, requests: u32) -> Self {
        Self { budget: Some(requests), ..self }
    }

    /// Allows so many requests at a time, in each process that checks the token.
    #[must_use]
    pub fn concurrency(self, requests: u32) -> Self {
        Self { concurrency: Some(requests), ..self }
    }

    /// The run that it was made for.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.run
    }

    /// When it expires.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        // Past what the platform's clock can say, "never" is told as the beginning of time: nobody is let
        // past by it.
        UNIX_EPOCH.checked_add(Duration::from_secs(self.expires_unix_s)).unwrap_or(UNIX_EPOCH)
    }

    /// The text of it, under the first of the keys. There is exactly one.
    ///
    /// # Errors
    /// If a part of it is not what a token can say; the error tells what would be.
    pub fn mint(&self, keys: &TokenKeys) -> Result<String, TokenError> {
        if self.method.as_deref().is_some_and(|method| method.is_empty() || !is_method(method)) {
            return Err(TokenError::Method);
        }
        if !is_prefix(&self.path) {
            return Err(TokenError::Path(self.path.clone()));
        }
        if !is_name(&self.run, MAX_RUN) {
            return Err(TokenError::Run);
        }
        for (limit, requests) in [("budget", self.budget), ("concurrency", self.concurrency)] {
            if requests == Some(0) {
                return Err(TokenError::Nothing(limit));
            }
        }
        let key = keys.first();
        let claims = Claims {
            key_id: key.id(),
            expires_unix_s: self.expires_unix_s,
            method: self.method.as_deref().unwrap_or_default(),
            path: &self.path,
            run: &self.run,
            peer: self.peer,
            budget: self.budget.unwrap_or_default(),
            concurrency: self.concurrency.unwrap_or_default(),
        };
        let mut signed = Vec::with_capacity(MAX_BODY + MAC_BYTES);
        claims.write(&mut signed);
        let mac = key.sign(&[VERSION.as_bytes(), &signed]);
        signed.extend(mac);
        let mut text = VERSION.to_owned();
        BASE64_URL_SAFE_NO_PAD.encode_string(&signed, &mut text);
        Ok(text)
    }
}

impl From<Claims<'_>> for BypassToken {
    fn from(claims: Claims<'_>) -> Self {
        let some = |n: u32| (n > 0).then_some(n);
        Self {
            expires_unix_s: claims.expires_unix_s,
            method: (!claims.method.is_empty()).then(|| claims.method.to_owned()),
            path: claims.path.to_owned(),
            run: claims.run.to_owned(),
            peer: claims.peer,
            budget: some(claims.budget),
            concurrency: some(claims.concurrency),
        }
    }
}

impl TokenKeys {
    /// Reads a token that one of the keys has signed: its text, byte for byte.
    ///
    /// This says who made it, and not whether it is still good, or for what.
    ///
    /// # Errors
    /// [`TokenRefusal::Malformed`] if this is no token, [`TokenRefusal::Forged`] if none of the keys has
    /// signed it.
    pub fn authenticate(&self, text: &[u8]) -> Result<BypassToken, TokenRefusal> {
        self.with_claims(text, |claims, _| claims.into())
    }

    /// [`authenticate`](Self::authenticate), without an allocation.
    pub(crate) fn with_claims<T>(
        &self,
        text: &[u8],
        authentic: impl FnOnce(Claims<'_>, Mac) -> T,
    ) -> Result<T, TokenRefusal> {
        let mut buffer = [0; MAX_TEXT];
        let (claims, body, mac) = read(text, &mut buffer).ok_or(TokenRefusal::Malformed)?;
        let key = self.named(claims.key_id).ok_or(TokenRefusal::Forged)?;
        if !key.has_signed(&[VERSION.as_bytes(), body], &mac) {
            return Err(TokenRefusal::Forged);
        }
        Ok(authentic(claims, mac))
    }
}

/// Takes a text apart, whoever may have made it: what it says, which bytes say so, and what is under them.
fn read<'b>(text: &[u8], buffer: &'b mut [u8; MAX_TEXT]) -> Option<(Claims<'b>, &'b [u8], Mac)> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let encoded = text.strip_prefix(VERSION.as_bytes())?;
    // Neither padding nor stray bits at the end: bytes have one text.
    let length = BASE64_URL_SAFE_NO_PAD.decode_slice(encoded, buffer).ok()?;
    let (body, mac) = buffer[..length].split_last_chunk()?;
    Some((Claims::read(body)?, body, *mac))
}

/// What a token says. Empty and zero stand for "any".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Claims<'t> {
    pub(crate) key_id: &'t str,
    pub(crate) expires_unix_s: u64,
    pub(crate) method: &'t str,
    pub(crate) path: &'t str,
    pub(crate) run: &'t str,
    pub(crate) peer: Option<PeerRange>,
    pub(crate) budget: u32,
    pub(crate) concurrency: u32,
}

impl<'t> Claims<'t> {
    /// Every part is one that can be read again: no length is cut off here.
    fn write(&self, to: &mut Vec<u8>) {
        let short = |to: &mut Vec<u8>, text: &str| {
            to.push(text.len() as u8);
            to.extend(text.as_bytes());
        };
        short(to, self.key_id);
        to.extend(self.expires_unix_s.to_be_bytes());
        short(to, self.method);
        to.extend((self.path.len() as u16).to_be_bytes());
        to.extend(self.path.as_bytes());
        short(to, self.run);
        PeerRange::write(self.peer, to);
        to.extend(self.budget.to_be_bytes());
        to.extend(self.concurrency.to_be_bytes());
    }

    fn read(mut body: &'t [u8]) -> Option<Self> {
        let from = &mut body;
        let claims = Self {
            key_id: short_text(from)?,
            expires_unix_s: u64::from_be_bytes(*take(from)?),
            method: short_text(from)?,
            path: {
                let length = u16::from_be_bytes(*take(from)?);
                text(from, length.into())?
            },
            run: short_text(from)?,
            peer: PeerRange::read(from)?,
            budget: u32::from_be_bytes(*take(from)?),
            concurrency: u32::from_be_bytes(*take(from)?),
        };
        let said = is_key_id(claims.key_id)
            && is_method(claims.method)
            && is_prefix(claims.path)
            && is_name(claims.run, MAX_RUN);
        (said && body.is_empty()).then_some(claims)
    }

    /// Does the token allow a request for this path, as far as its path goes?
    pub(crate) fn covers(&self, path: &str) -> bool {
        if self.path == "/" {
            return path.starts_with('/');
        }
        let below = path.strip_prefix(self.path);
        // What stands behind the service may take dots away, and arrive somewhere else.
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) && !climbs(path)
    }
}

pub(crate) fn take<'t, const N: usize>(from: &mut &'t [u8]) -> Option<&'t [u8; N]> {
    let (first, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(first)
}

fn short_text<'t>(from: &mut &'t [u8]) -> Option<&'t str> {
    let [length] = *take(from)?;
    text(from, length.into())
}

fn text<'t>(from: &mut &'t [u8], length: usize) -> Option<&'t str> {
    std::str::from_utf8(from.split_off(..length)?).ok()
}

/// Is this a key id, or that of a run?
pub(crate) fn is_key_id(text: &str) -> bool {
    is_name(text, MAX_KEY_ID)
}

fn is_name(text: &str, longest: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=longest).contains(&text.len()) && text.bytes().all(allowed)
}

/// Any method, if it is empty.
fn is_method(text: &str) -> bool {
    // RFC 9110's token.
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    text.len() <= MAX_METHOD && text.bytes().all(allowed)
}

fn is_prefix(path: &str) -> bool {
    let Some(segments) = path.strip_prefix('/') else { return false };
    let visible = |byte: u8| byte.is_ascii_graphic() && !b"?#\\".contains(&byte);
    let whole = segments.is_empty() || segments.split('/').all(|segment| !segment.is_empty());
    whole && path.len() <= MAX_PATH && path.bytes().all(visible) && !climbs(path)
}

/// Has the path a segment `.` or `..`, be it written with escapes, or between separators that are?
fn climbs(path: &str) -> bool {
    // How many dots the segment has so far, if it has nothing else.
    let mut dots = Some(0);
    let is_dots = |dots| matches!(dots, Some(1 | 2));
    let mut rest = path.as_bytes();
    loop {
        rest = match rest {
            [] => return is_dots(dots),
            [b'/' | b'\\', rest @ ..]
            | [b'%', b'2', b'f' | b'F', rest @ ..]
            | [b'%', b'5', b'c' | b'C', rest @ ..] => {
                if is_dots(dots) {
                    return true;
                }
                dots = Some(0);
                rest
            }
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => {
                dots = dots.map(|dots: usize| dots + 1);
                rest
            }
            [_, rest @ ..] => {
                dots = None;
                rest
            }
        };
    }
}

fn unix_seconds_up(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().saturating_add(u64::from(since.subsec_nanos() > 0))
}

/// Why a token lets nobody past. The request goes to the limiter, as one without a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum TokenRefusal {
    /// This is no token, or the header came more than once.
    Malformed,
    /// None of the keys has signed it.
    Forged,
    /// It was good once.
    Expired,
    /// It is good, but not for this request: its method, its path, its sender, one more of its kind, or so
    /// many at a time.
    OutOfScope,
}

impl fmt::Display for TokenRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "this is no token",
            Self::Forged => "the token was signed by none of the keys",
            Self::Expired => "the token has expired",
            Self::OutOfScope => "the token does not allow this request",
        })
    }
}

impl Error for TokenRefusal {}

/// Why there can be no such token.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum TokenError {
    /// The path prefix is none; it is what was seen.
    Path(String),
    /// The run has no name that a token can hold.
    Run,
    /// The method is none, or too long.
    Method,
    /// Zero requests; of which limit.
    Nothing(&'static str),
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(seen) => write!(
                f,
                "{seen:?} is no path prefix: write it like /items, from the first slash, without one at \
                 the end, without dots as segments, and in at most {MAX_PATH} characters of ASCII"
            ),
            Self::Run => write!(
                f,
                "the name of a run has to be 1 to {MAX_RUN} letters, digits, dots, underscores or hyphens"
            ),
            Self::Method => {
                write!(
                    f,
                    "the method has to be one of HTTP, like GET, of up to {MAX_METHOD} letters"
                )
            }
            Self::Nothing(limit) => {
                write!(f, "a {limit} of 0 lets nothing past: leave it out, or give at least 1")
            }
        }
    }
}

impl Error for TokenError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn keys() -> TokenKeys {
        TokenKeys::new("k1", SECRET).expect("it is long enough")
    }

    fn at(unix_s: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(unix_s)
    }

    fn minted(token: &BypassToken) -> String {
        token.mint(&keys()).expect("a token can say this")
    }

    /// Under the key, whatever it is.
    fn signed(body: &[u8]) -> String {
        let mac = keys().first().sign(&[VERSION.as_bytes(), body]);
        VERSION.to_owned() + &BASE64_URL_SAFE_NO_PAD.encode([body, &mac].concat())
    }

    fn full() -> BypassToken {
        BypassToken::until(at(1_800_000_000), "nightly-42")
            .method(Method::GET)
            .path("/items")
            .peer("10.0.0.0/8".parse().expect("a range"))
            .budget(50_000)
            .concurrency(16)
    }

    /// Written out by other programs: Python's `hmac` both, OpenSSL the second one's MAC.
    #[test]
    fn the_text_of_a_token_is_the_same_for_ever() {
        let known = "px1.AmsxAAAAAGtJ0gADR0VUAAYvaXRlbXMKbmlnaHRseS00MgQKAAAACAAAw1AAAAAQ4_BK3B_2Bi8t\
                     e8w7c1Y3O--p6twOuZq9J86TAz5qy3A";
        assert_eq!(minted(&full()), known);
        assert_eq!(keys().authenticate(known.as_bytes()), Ok(full()));

        let known =
            "px1.AmsxAAAAAGtJ0gAAAAEvAXIAAAAAAAAAAACsptILN3naDfveJOleZW6xd4XJatnutS1fX_OpiAYriw";
        let least = BypassToken::until(at(1_800_000_000), "r");
        assert_eq!(minted(&least), known);
        assert_eq!(keys().authenticate(known.as_bytes()), Ok(least));
    }

    #[test]
    fn no_bit_of_a_token_can_be_flipped() {
        let text = minted(&full());
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(keys().authenticate(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_token_has_one_text_alone() {
        let text = minted(&full());
        let least = minted(&BypassToken::until(at(1_800_000_000), "rr"));
        let others = [
            format!("{text}="),
            format!("{text}=="),
            format!("{text}A"),
            format!("{text} "),
            format!(" {text}"),
            format!("{text}\n"),
            format!("{text},{text}"),
            text.to_uppercase(),
            text.to_lowercase(),
            text.replace('_', "/").replace('-', "+"),
            text.replacen("px1.", "PX1.", 1),
            text.replacen("px1.", "px2.", 1),
            text.replacen("px1.", "px1", 1),
            text.replacen("px1.", "", 1),
            text.replacen("px1.", "px1.none.", 1),
            // Of its last character, not all bits count.
            format!(
                "{}{}",
                &least[..least.len() - 1],
                (least.as_bytes()[least.len() - 1] + 1) as char
            ),
            "true".to_owned(),
            String::new(),
            VERSION.to_owned(),
        ];
        for other in others {
            let refused = keys().authenticate(other.as_bytes());
            assert_eq!(refused, Err(TokenRefusal::Malformed), "{other:?}");
        }
    }

    #[test]
    fn a_token_of_another_key_is_forged_whatever_it_calls_itself() {
        let text = minted(&full());
        let other = TokenKeys::new("k1", &SECRET[1..].repeat(2)).expect("it is long enough");
        assert_eq!(other.authenticate(text.as_bytes()), Err(TokenRefusal::Forged));
        let unknown = TokenKeys::new("k2", SECRET).expect("it is long enough");
        assert_eq!(unknown.authenticate(text.as_bytes()), Err(TokenRefusal::Forged));
        assert_eq!(keys().authenticate(text.as_bytes()), Ok(full()));
    }

    #[test]
    fn a_body_that_is_signed_and_not_canonical_is_no_token() {
        let body = |edit: fn(&mut Vec<u8>)| {
            let text = minted(&full());
            let decoded = BASE64_URL_SAFE_NO_PAD.decode(&text[4..]).expect("it was encoded");
            let mut body = decoded[..decoded.len() - MAC_BYTES].to_vec();
            edit(&mut body);
            keys().authenticate(signed(&body).as_bytes())
        };
        assert_eq!(body(|_| ()), Ok(full()));
        for edit in [
            |body: &mut Vec<u8>| body.push(0),
            |body: &mut Vec<u8>| body.truncate(body.len() - 1),
            |body: &mut Vec<u8>| body.clear(),
            // The path: one byte shorter, so that the rest is out of step.
            |body: &mut Vec<u8>| body[16] -= 1,
            // Its slash, then a letter of the run.
            |body: &mut Vec<u8>| body[17] = b'x',
            |body: &mut Vec<u8>| body[26] = b' ',
            // The last byte of the network lies past its prefix.
            |body: &mut Vec<u8>| body[38] = 1,
            |body: &mut Vec<u8>| body[39] = 33,
        ] {
            assert_eq!(body(edit), Err(TokenRefusal::Malformed));
        }
    }

    #[test]
    fn a_prefix_covers_whole_segments_alone() {
        let covers = |prefix, path| {
            let claims = Claims {
                key_id: "k1",
                expires_unix_s: 0,
                method: "",
                path: prefix,
                run: "r",
                peer: None,
                budget: 0,
                concurrency: 0,
            };
            claims.covers(path)
        };
        for path in [
            "/items",
            "/items/",
            "/items/7",
            "/items//7",
            "/items/a.b",
            "/items/...",
            "/items/a%2Fb",
        ] {
            assert!(covers("/items", path), "{path}");
            assert!(covers("/", path), "{path}");
        }
        for path in [
            "",
            "*",
            "/",
            "/item",
            "/itemset",
            "/Items",
            "//items",
            "/other/items",
            "/items/..",
            "/items/../admin",
            "/items/./7",
            "/items/%2e%2E/admin",
            "/items/.%2e/admin",
            "/items/%2e%2e%2fadmin",
            "/items/..\\admin",
            "/items/..%5Cadmin",
            "/items/%2e",
            "/items%2F7",
        ] {
            assert!(!covers("/items", path), "{path}");
        }
        assert!(!covers("/", "*") && !covers("/", ""));
    }

    #[test]
    fn what_a_token_cannot_say_is_refused_with_what_it_can() {
        let token = || BypassToken::until(at(1), "run");
        let long = "x".repeat(600);
        for (token, named) in [
            (token().path("items"), "\"items\""),
            (token().path(""), "first slash"),
            (token().path("/items/"), "without one at the end"),
            (token().path("/a//b"), "\"/a//b\""),
            (token().path("/a/../b"), "dots"),
            (token().path("/a?b"), "\"/a?b\""),
            (token().path("/caf\u{e9}"), "ASCII"),
            (token().path(&format!("/{long}")), "512"),
            (BypassToken::until(at(1), ""), "1 to 64"),
            (BypassToken::until(at(1), "a run"), "letters, digits"),
            (BypassToken::until(at(1), &long), "1 to 64"),
            (token().method(Method::from_bytes(long.as_bytes()).expect("a method")), "like GET"),
            (token().budget(0), "budget of 0"),
            (token().concurrency(0), "concurrency of 0"),
        ] {
            let error = token.mint(&keys()).expect_err("no token says that").to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn the_longest_token_is_still_one() {
        let id = "k".repeat(MAX_KEY_ID);
        let keys = TokenKeys::new(&id, SECRET).expect("it is a key");
        let token = BypassToken::until(at(u64::MAX >> 2), &"r".repeat(MAX_RUN))
            .method(Method::from_bytes(&[b'M'; MAX_METHOD]).expect("a method"))
            .path(&format!("/{}", "p".repeat(MAX_PATH - 1)))
            .peer("2001:db8::/32".parse().expect("a range"))
            .budget(u32::MAX)
            .concurrency(u32::MAX);
        let text = token.mint(&keys).expect("all of it is within its bounds");
        assert!(text.len() <= MAX_TEXT && text.len() > MAX_TEXT - 4);
        assert_eq!(keys.authenticate(text.as_bytes()), Ok(token));
    }

    #[test]
    fn an_expiry_between_two_seconds_is_put_off_to_the_next() {
        let token = BypassToken::until(at(10) + Duration::from_nanos(1), "r");
        assert_eq!(token.expires(), at(11));
        assert_eq!(
            BypassToken::until(UNIX_EPOCH - Duration::from_secs(5), "r").expires(),
            UNIX_EPOCH
        );
        assert!(BypassToken::lasting(Duration::MAX, "r").expires() > SystemTime::now());
    }

    fn any_token() -> impl Strategy<Value = BypassToken> {
        let method = prop::option::of("[A-Z]{1,16}");
        let path = "(/[a-z0-9%~_-]{1,20}){1,5}|/";
        let peer = prop::option::of(prop_oneof![
            Just("10.0.0.0/8"),
            Just("192.0.2.7"),
            Just("2001:db8::/32"),
            Just("::/0")
        ]);
        let limit = || prop::option::of(1_u32..);
        (any::<u32>(), "[A-Za-z0-9._-]{1,64}", method, path, peer, limit(), limit()).prop_map(
            |(expires, run, method, path, peer, budget, concurrency)| BypassToken {
                method,
                peer: peer.map(|peer| peer.parse().expect("a range")),
                budget,
                concurrency,
                ..BypassToken::until(at(expires.into()), &run).path(&path)
            },
        )
    }

    proptest! {
        #[test]
        fn every_token_reads_back_as_it_was_minted(token in any_token()) {
            let text = minted(&token);
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(keys().authenticate(text.as_bytes()), Ok(token));
        }

        #[test]
        fn no_bytes_are_a_token_by_chance(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "px1\\.[A-Za-z0-9_-]{0,1200}".prop_map(String::into_bytes),
                "\\PC{0,80}".prop_map(String::into_bytes),
            ],
        ) {
            prop_assert!(keys().authenticate(&bytes).is_err());
        }

        #[test]
        fn nothing_but_the_text_is_accepted_for_it(
            token in any_token(),
            at in any::<prop::sample::Index>(),
            cut in 0_usize..4,
            put in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            let text = minted(&token).into_bytes();
            let at = at.index(text.len());
            let mut other = text.clone();
            other.splice(at..(at + cut).min(text.len()), put);
            let read = keys().authenticate(&other);
            if other == text {
                prop_assert_eq!(read, Ok(token));
            } else {
                prop_assert!(read.is_err());
            }
        }

        /// What the key has signed is read without a panic, and what can be read has one text.
        #[test]
        fn a_signed_body_is_a_token_only_if_minting_makes_it(
            token in any_token(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            bytes in prop::option::weighted(0.2, prop::collection::vec(any::<u8>(), 0..120)),
        ) {
            let decoded = BASE64_URL_SAFE_NO_PAD.decode(&minted(&token)[4..]).expect("it was encoded");
            let mut body = bytes.unwrap_or(decoded[..decoded.len() - MAC_BYTES].to_vec());
            for (at, byte) in edits {
                if !body.is_empty() {
                    let at = at.index(body.len());
                    body[at] = byte;
                }
            }
            let text = signed(&body);
            match keys().authenticate(text.as_bytes()) {
                Ok(read) => prop_assert_eq!(minted(&read), text),
                Err(refusal) => prop_assert!(
                    matches!(refusal, TokenRefusal::Malformed | TokenRefusal::Forged)
                ),
            }
        }
    }
}
