//! The name of a route, and the table that finds a route's counters.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use http::Method;
use rustc_hash::FxHasher;

/// Stands for every path that no route matched.
pub(crate) const UNMATCHED: &str = "(unmatched)";
/// Stands for every route past the cap.
pub(crate) const OVERFLOW: &str = "(other)";
/// The method of a row that stands for several.
const ANY_METHOD: &str = "*";

/// A route: an HTTP method and the template that matched, never the raw path.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct RouteKey {
    method: &'static str,
    template: Arc<str>,
}

impl RouteKey {
    fn new(method: &'static str, template: &str) -> Self {
        Self { method, template: template.into() }
    }

    /// The method, `_OTHER` if HTTP does not define it, `*` for a row that stands for several.
    #[must_use]
    pub fn method(&self) -> &str {
        self.method
    }

    /// The template as the router knows it: `/items/{id}`, or `(unmatched)`, or `(other)`.
    #[must_use]
    pub fn template(&self) -> &str {
        &self.template
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.template)
    }
}

/// A method's label: its name if HTTP defines it, else `_OTHER`, so that no client can invent labels.
pub(crate) fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::PATCH => "PATCH",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}

/// A route's position in its table; stable for the life of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub(crate) struct RouteIndex(u32);

impl RouteIndex {
    pub(crate) fn id(self) -> u32 {
        self.0
    }
}

impl From<u32> for RouteIndex {
    fn from(id: u32) -> Self {
        Self(id)
    }
}

/// An insert-only hash table of fixed capacity. Readers take no lock; an entry never moves.
pub(crate) struct RouteTable<T> {
    /// Linear probing from the key's hash; twice the cap, so that a probe is short and always ends.
    /// The last two places are the fixed rows, outside the probed part.
    places: Box<[OnceLock<(RouteKey, T)>]>,
    probed: usize,
    cap: usize,
    len: AtomicUsize,
    make: fn() -> T,
}

impl<T> RouteTable<T> {
    /// A table of at most `cap` matched routes, each with what `make` makes.
    pub(crate) fn new(cap: usize, make: fn() -> T) -> Self {
        let probed = (2 * cap.max(1)).next_power_of_two();
        Self {
            places: (0..probed + 2).map(|_| OnceLock::new()).collect(),
            probed,
            cap,
            len: AtomicUsize::new(0),
            make,
        }
    }

    /// Finds a route's place, taking one on its first request; past the cap, the overflow row's.
    pub(crate) fn find(&self, method: &Method, template: Option<&str>) -> RouteIndex {
        let Some(template) = template else {
            return self.fixed(self.probed, UNMATCHED);
        };
        let method = method_label(method);
        let start = hash(method, template);
        for step in 0..self.probed {
            let index = start.wrapping_add(step) & (self.probed - 1);
            let place = &self.places[index];
            if place.get().is_none() {
                // Reserve before taking the place, so that the cap holds under any interleaving.
                let reserve = |len| (len < self.cap).then_some(len + 1);
                if self.len.fetch_update(Relaxed, Relaxed, reserve).is_err() {
                    return self.fixed(self.probed + 1, OVERFLOW);
                }
                if place.set((RouteKey::new(method, template), (self.make)())).is_err() {
                    // Another thread took the place meanwhile, for this route or for another.
                    self.len.fetch_sub(1, Relaxed);
                }
            }
            if let Some((key, _)) = place.get()
                && key.method == method
                && *key.template == *template
            {
                return RouteIndex(index as u32);
            }
        }
        self.fixed(self.probed + 1, OVERFLOW)
    }

    fn fixed(&self, index: usize, template: &str) -> RouteIndex {
        self.places[index].get_or_init(|| (RouteKey::new(ANY_METHOD, template), (self.make)()));
        RouteIndex(index as u32)
    }

    /// The entry at an index that [`find`](Self::find) returned.
    pub(crate) fn get(&self, index: RouteIndex) -> Option<&(RouteKey, T)> {
        self.places.get(index.0 as usize)?.get()
    }

    /// All entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(RouteKey, T)> {
        self.places.iter().filter_map(OnceLock::get)
    }
}

/// Templates are the service's own, so nobody can flood one chain of the table: a fast hash will do.
fn hash(method: &'static str, template: &str) -> usize {
    let mut hasher = FxHasher::default();
    method.hash(&mut hasher);
    template.hash(&mut hasher);
    hasher.finish() as usize
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, thread};

    use super::*;

    fn names(table: &RouteTable<()>) -> HashSet<String> {
        table.iter().map(|(key, ())| key.to_string()).collect()
    }

    #[test]
    fn a_route_keeps_its_place() {
        let table = RouteTable::new(8, || ());
        let first = table.find(&Method::GET, Some("/items/{id}"));
        assert_eq!(table.find(&Method::GET, Some("/items/{id}")), first);
        assert_ne!(table.find(&Method::POST, Some("/items/{id}")), first);
        assert_eq!(names(&table), ["GET /items/{id}", "POST /items/{id}"].map(Into::into).into());
    }

    #[test]
    fn a_million_unmatched_requests_of_any_method_share_one_row() {
        let table = RouteTable::new(8, || ());
        for n in 0..1_000_000 {
            let method = Method::from_bytes(format!("M{}", n % 1000).as_bytes()).expect("a token");
            table.find(&method, None);
        }
        assert_eq!(names(&table), HashSet::from(["* (unmatched)".to_owned()]));
    }

    #[test]
    fn unknown_methods_share_a_label() {
        let table = RouteTable::new(8, || ());
        for name in ["BREW", "PROPFIND", "get"] {
            table.find(&Method::from_bytes(name.as_bytes()).expect("a token"), Some("/x"));
        }
        assert_eq!(names(&table), HashSet::from(["_OTHER /x".to_owned()]));
    }

    #[test]
    fn routes_past_the_cap_share_one_row_under_any_interleaving() {
        let table = RouteTable::new(16, || ());
        thread::scope(|scope| {
            for offset in 0..4 {
                let table = &table;
                scope.spawn(move || {
                    for n in 0..200 {
                        table.find(&Method::GET, Some(&format!("/{}", (n + offset * 50) % 200)));
                    }
                });
            }
        });
        let names = names(&table);
        assert_eq!(names.len(), 17, "{names:?}");
        assert!(names.contains("* (other)"));
        let all: Vec<String> = table.iter().map(|(key, ())| key.to_string()).collect();
        assert_eq!(all.len(), names.len(), "a route has two rows: {all:?}");
    }
}
