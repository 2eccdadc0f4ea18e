//! What goes with a request outside of what HTTP can carry: the generator's mark.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use parallax_middleware::LoadMark;

/// Carries the number of a ticket. The service never sees it.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-parallax-mark");

/// Marks of requests that are on their way through a connection of this very process.
///
/// A mark waits under a random number of 128 bits, which goes along in a header and is good once. Whoever else
/// connects to the service cannot guess one, so nobody but this generator can pair its requests with a record,
/// or pass by a limiter.
#[derive(Debug, Default)]
pub(super) struct Marks {
    waiting: Mutex<HashMap<u128, LoadMark>>,
}

/// Stands for a mark that waits. Dropped, it takes the mark away, if the request never arrived.
#[derive(Debug)]
pub(super) struct Ticket {
    marks: Arc<Marks>,
    number: u128,
}

impl Marks {
    /// Leaves a mark for the other end of the connection to find.
    pub(super) fn leave(self: &Arc<Self>, mark: LoadMark, headers: &mut HeaderMap) -> Ticket {
        // From a generator of cryptographic quality, which the operating system seeds.
        let number: u128 = rand::random();
        self.lock().insert(number, mark);
        if let Ok(mut value) = HeaderValue::from_str(&format!("{number:032x}")) {
            // Not worth a place in HTTP/2's table of headers: it never comes again.
            value.set_sensitive(true);
            headers.insert(HEADER, value);
        }
        Ticket { marks: self.clone(), number }
    }

    /// Takes the header out of a request, and returns the mark that waits for it.
    pub(super) fn take(&self, headers: &mut HeaderMap) -> Option<LoadMark> {
        let value = headers.remove(HEADER)?;
        let number = u128::from_str_radix(value.to_str().ok()?, 16).ok()?;
        self.lock().remove(&number)
    }

    /// A panic while the lock is held can only come from a failed allocation, which leaves the table whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<u128, LoadMark>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.marks.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_once_and_its_header_is_gone() {
        let (marks, mut headers) = (Arc::new(Marks::default()), HeaderMap::new());
        let _ticket = marks.leave(LoadMark::new().past_limiter(), &mut headers);
        let again = headers.clone();
        assert!(marks.take(&mut headers).expect("it waits").passes_limiter());
        assert!(headers.is_empty());
        assert!(marks.take(&mut again.clone()).is_none());
    }

    #[test]
    fn a_mark_whose_request_never_arrives_is_taken_away() {
        let (marks, mut headers) = (Arc::new(Marks::default()), HeaderMap::new());
        drop(marks.leave(LoadMark::new(), &mut headers));
        assert!(marks.take(&mut headers).is_none());
        assert!(marks.lock().is_empty());
    }

    #[test]
    fn what_is_no_ticket_finds_nothing_and_is_taken_out_all_the_same() {
        let (marks, mut ours) = (Arc::new(Marks::default()), HeaderMap::new());
        let _ticket = marks.leave(LoadMark::new(), &mut ours);
        for forged in [&b""[..], b"0", b"+0", b"\xff", b"ffffffffffffffffffffffffffffffff", b"x"] {
            let mut headers = HeaderMap::new();
            for _ in 0..2 {
                headers.append(HEADER, HeaderValue::from_bytes(forged).expect("it is a value"));
            }
            assert!(marks.take(&mut headers).is_none());
            assert!(headers.is_empty());
        }
        assert!(marks.take(&mut ours).is_some());
    }
}
