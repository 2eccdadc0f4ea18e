//! The name of a route, and the table that finds a route's counters.

use std::{array, fmt, hash::Hasher, sync::Arc};

use http::Method;
use rustc_hash::FxHasher;

use crate::sync::{
    Mutex, OnceLock, PoisonError,
    atomic::{
        AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};

/// Stands for every path that no route matched.
pub(crate) const UNMATCHED: &str = "(unmatched)";
/// Stands for every route past the cap.
pub(crate) const OVERFLOW: &str = "(other)";
/// A route: an HTTP method and the template that matched, never the raw path.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct RouteKey {
    method: MethodLabel,
    template: Arc<str>,
}

impl RouteKey {
    pub(crate) fn new(method: MethodLabel, template: &str) -> Self {
        Self { method, template: template.into() }
    }

    /// The method, `_OTHER` if HTTP does not define it, `*` for a row that stands for several.
    #[must_use]
    pub fn method(&self) -> &'static str {
        self.method.as_str()
    }

    /// The template as the router knows it: `/items/{id}`, or `(unmatched)`, or `(other)`.
    #[must_use]
    pub fn template(&self) -> &str {
        &self.template
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method(), self.template)
    }
}

/// A method as a label: those that HTTP defines, and one for all others, so that no client can invent
/// labels. In the order of their names.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub(crate) enum MethodLabel {
    /// Of a row that stands for several.
    Any,
    Connect,
    Delete,
    Get,
    Head,
    Options,
    Patch,
    Post,
    Put,
    Trace,
    Other,
}

impl MethodLabel {
    pub(crate) const ALL: [Self; 11] = [
        Self::Any,
        Self::Connect,
        Self::Delete,
        Self::Get,
        Self::Head,
        Self::Options,
        Self::Patch,
        Self::Post,
        Self::Put,
        Self::Trace,
        Self::Other,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Any => "*",
            Self::Connect => "CONNECT",
            Self::Delete => "DELETE",
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Patch => "PATCH",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Trace => "TRACE",
            Self::Other => "_OTHER",
        }
    }

    /// The label that is written so, if one is.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|label| label.as_str() == name)
    }
}

impl From<&Method> for MethodLabel {
    #[inline]
    fn from(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Get,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::DELETE => Self::Delete,
            Method::HEAD => Self::Head,
            Method::OPTIONS => Self::Options,
            Method::CONNECT => Self::Connect,
            Method::PATCH => Self::Patch,
            Method::TRACE => Self::Trace,
            _ => Self::Other,
        }
    }
}

/// Of a route's index, the bits that stand for its method.
const METHOD_BITS: u32 = 4;
const _: () = assert!(MethodLabel::ALL.len() <= 1 << METHOD_BITS);

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
///
/// The cap counts templates. Each has a row for each method that was tried on it, so that a client that tries
/// all methods everywhere takes no row from a route that comes later.
pub(crate) struct RouteTable<T> {
    /// Linear probing from the template's hash; twice the cap, so that a probe is short and always ends.
    places: Box<[OnceLock<Template<T>>]>,
    unmatched: Row<T>,
    overflow: Row<T>,
    cap: usize,
    /// Places taken by templates. Rises once the place is filled, and only under the lock.
    len: AtomicUsize,
    taking: Mutex<()>,
    make: fn() -> T,
}

/// A template with its rows, by method.
struct Template<T> {
    name: Box<str>,
    rows: Box<[Row<T>; MethodLabel::ALL.len()]>,
}

/// Empty until it is asked for.
type Row<T> = OnceLock<(RouteKey, T)>;

impl<T> RouteTable<T> {
    /// A table of at most `cap` matched templates, with what `make` makes for each row.
    pub(crate) fn new(cap: usize, make: fn() -> T) -> Self {
        let places = cap.max(1).saturating_mul(2).next_power_of_two();
        Self {
            places: (0..places).map(|_| OnceLock::new()).collect(),
            unmatched: OnceLock::new(),
            overflow: OnceLock::new(),
            cap,
            len: AtomicUsize::new(0),
            taking: Mutex::new(()),
            make,
        }
    }

    /// Finds a route's entry, making it on its first request; past the cap, the overflow row's.
    #[inline]
    pub(crate) fn find(&self, method: &Method, template: Option<&str>) -> (RouteIndex, &T) {
        let Some(template) = template else { return self.fixed(UNMATCHED) };
        let mask = self.places.len() - 1;
        let mut index = hash(template) & mask;
        for _ in 0..=mask {
            let entry = match self.places[index].get() {
                Some(entry) => Some(entry),
                None => self.take(index, template),
            };
            let Some(entry) = entry else { break };
            if *entry.name == *template {
                let method = MethodLabel::from(method);
                let row = &entry.rows[method as usize];
                let (_, value) = row.get().unwrap_or_else(|| self.fill(row, method, template));
                return (RouteIndex((index << METHOD_BITS | method as usize) as u32), value);
            }
            index = (index + 1) & mask;
        }
        self.fixed(OVERFLOW)
    }

    #[cold]
    #[inline(never)]
    fn fill<'r>(&self, row: &'r Row<T>, method: MethodLabel, template: &str) -> &'r (RouteKey, T) {
        row.get_or_init(|| (RouteKey::new(method, template), (self.make)()))
    }

    /// Takes an empty place; returns who has it in the end. `None` if no more may be taken.
    ///
    /// Takes a lock, for each template once. Nobody may be sent to the overflow row because of a place that
    /// another thread is about to take for the same template.
    #[cold]
    fn take(&self, index: usize, template: &str) -> Option<&Template<T>> {
        let place = &self.places[index];
        // A table that is full stays as it is: routes past the cap take no lock.
        if self.len.load(Acquire) < self.cap {
            let _alone = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
            let len = self.len.load(Relaxed);
            // Another thread may have taken the place meanwhile, for this template or for another.
            if len < self.cap && place.get().is_none() {
                let rows = Box::new(array::from_fn(|_| OnceLock::new()));
                let _ = place.set(Template { name: template.into(), rows });
                self.len.store(len + 1, Release);
            }
        }
        // After the length: who sees that the table is full sees everything in it.
        place.get()
    }

    /// A row that stands for several routes. It does not count towards the cap.
    #[cold]
    fn fixed(&self, template: &str) -> (RouteIndex, &T) {
        let (place, offset) = match template {
            UNMATCHED => (&self.unmatched, 0),
            _ => (&self.overflow, 1),
        };
        let make = || (RouteKey::new(MethodLabel::Any, template), (self.make)());
        let (_, value) = place.get_or_init(make);
        (RouteIndex(((self.places.len() << METHOD_BITS) + offset) as u32), value)
    }

    /// The entry at an index that [`find`](Self::find) returned.
    #[inline]
    pub(crate) fn get(&self, index: RouteIndex) -> Option<&(RouteKey, T)> {
        let (place, method) = (index.0 >> METHOD_BITS, index.0 & ((1 << METHOD_BITS) - 1));
        match self.places.get(place as usize) {
            Some(template) => template.get()?.rows.get(method as usize)?.get(),
            None => [&self.unmatched, &self.overflow].get(method as usize)?.get(),
        }
    }

    /// All entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(RouteKey, T)> {
        let templates = self.places.iter().filter_map(OnceLock::get);
        let rows = templates.flat_map(|template| template.rows.iter());
        rows.chain([&self.unmatched, &self.overflow]).filter_map(OnceLock::get)
    }
}

/// Templates are the service's own, so nobody can flood one chain of the table: a fast hash will do.
#[inline]
fn hash(template: &str) -> usize {
    let mut hasher = FxHasher::default();
    hasher.write(template.as_bytes());
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
    fn an_index_leads_back_to_its_entry() {
        let table = RouteTable::new(1, || ());
        for (template, name) in
            [(Some("/x"), "GET /x"), (Some("/y"), "* (other)"), (None, "* (unmatched)")]
        {
            let (index, ()) = table.find(&Method::GET, template);
            let (key, ()) = table.get(index).expect("it has just been found");
            assert_eq!(key.to_string(), name);
        }
        assert!(table.get(RouteIndex(99)).is_none());
    }

    #[test]
    fn labels_are_in_the_order_of_their_names() {
        let names = MethodLabel::ALL.map(MethodLabel::as_str);
        assert!(names.is_sorted(), "{names:?}");
        assert!(MethodLabel::ALL.is_sorted());
        for label in MethodLabel::ALL {
            assert_eq!(MethodLabel::named(label.as_str()), Some(label));
        }
        assert_eq!(MethodLabel::named("get"), None);
    }

    #[test]
    fn methods_that_are_tried_on_a_template_take_no_room_from_others() {
        let table = RouteTable::new(2, || ());
        for method in ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "BREW"] {
            table.find(&Method::from_bytes(method.as_bytes()).expect("a token"), Some("/x"));
        }
        table.find(&Method::GET, Some("/y"));
        let names = names(&table);
        assert_eq!(names.len(), 8, "{names:?}");
        assert!(names.contains("GET /y"));
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

#[cfg(all(test, parallax_loom))]
mod models {
    use loom::thread;

    use super::*;
    use crate::sync::model;

    fn table(cap: usize) -> Arc<RouteTable<()>> {
        Arc::new(RouteTable::new(cap, || ()))
    }

    fn find(table: &RouteTable<()>, template: &str) -> RouteIndex {
        table.find(&Method::GET, Some(template)).0
    }

    /// The rows that routes have to themselves.
    fn rows(table: &RouteTable<()>) -> Vec<&str> {
        table.iter().map(|(key, ())| key.template()).filter(|row| *row != OVERFLOW).collect()
    }

    /// Templates whose routes all begin to look for a place at the same one.
    fn colliding<const N: usize>(table: &RouteTable<()>) -> [&'static str; N] {
        let place = |template: &&str| hash(template) & (table.places.len() - 1);
        let mut found = ["/a", "/b", "/c", "/d", "/e", "/f", "/g", "/h", "/i", "/j", "/k", "/l"]
            .into_iter()
            .filter(|template| place(template) == 0);
        std::array::from_fn(|_| found.next().expect("a quarter of them"))
    }

    /// Looks for all at once, each on a thread of its own.
    fn find_at_once<const N: usize>(
        table: &Arc<RouteTable<()>>,
        templates: [&'static str; N],
    ) -> [RouteIndex; N] {
        let threads = templates.map(|template| {
            let table = table.clone();
            thread::spawn(move || find(&table, template))
        });
        threads.map(|thread| thread.join().expect("no panic"))
    }

    #[test]
    fn threads_that_look_for_a_new_route_at_once_find_one_row() {
        model(|| {
            let table = table(1);
            let [one, other] = find_at_once(&table, ["/a"; 2]);
            assert_eq!(one, other);
            assert_eq!(rows(&table), ["/a"]);
        });
    }

    #[test]
    fn a_thread_that_finds_its_route_made_takes_no_room_from_others() {
        model(|| {
            let table = table(2);
            find_at_once(&table, ["/a"; 2]);
            find(&table, "/b");
            assert_eq!(rows(&table).len(), 2);
        });
    }

    #[test]
    fn routes_that_meet_at_a_place_get_one_row_each_up_to_the_cap() {
        model(|| {
            let table = table(2);
            let templates: [_; 3] = colliding(&table);
            let found = find_at_once(&table, templates);
            assert_eq!(templates.map(|template| find(&table, template)), found);
            assert_eq!(rows(&table).len(), 2);
            let overflow = table.fixed(OVERFLOW).0;
            assert_eq!(found.into_iter().filter(|index| *index == overflow).count(), 1);
            for (template, index) in templates.into_iter().zip(found) {
                let (key, ()) = table.get(index).expect("it has just been found");
                assert!([template, OVERFLOW].contains(&key.template()));
            }
        });
    }

    #[test]
    fn a_reader_sees_whole_rows_and_no_more_than_the_cap() {
        model(|| {
            let table = table(1);
            let threads = ["/a", "/b"].map(|template| {
                let table = table.clone();
                thread::spawn(move || find(&table, template))
            });
            let reader = {
                let table = table.clone();
                thread::spawn(move || {
                    let seen = rows(&table).len();
                    assert!((seen..=1).contains(&rows(&table).len()));
                })
            };
            reader.join().expect("no panic");
            let found = threads.map(|thread| thread.join().expect("no panic"));
            assert_ne!(found[0], found[1]);
            assert_eq!(rows(&table).len(), 1);
        });
    }
}
