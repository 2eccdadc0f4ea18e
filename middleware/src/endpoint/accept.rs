//! Which of several forms a client would rather have.

use axum::http::{HeaderMap, header::ACCEPT};

/// The form that `Accept` gives the highest quality, of equals the first one; `None` if it takes none of them.
///
/// Without the header anything is taken. Of the ranges that a form is in, the narrowest one counts. Parameters
/// other than `q` are passed over, and so is a range that cannot be read.
pub(super) fn choose<'a>(headers: &HeaderMap, offered: &[&'a str]) -> Option<&'a str> {
    let ranges: Vec<Range<'_>> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(Range::parse)
        .collect();
    if ranges.is_empty() {
        return offered.first().copied();
    }
    let quality = |form: &str| {
        let narrowest = ranges
            .iter()
            .filter_map(|range| Some((range.narrowness(form)?, range.quality)))
            .max_by_key(|(narrowness, _)| *narrowness);
        narrowest.map_or(0, |(_, quality)| quality)
    };
    let wanted = offered.iter().map(|form| (*form, quality(form)));
    // Of equal ones the first: the order of what is offered is the service's own preference.
    wanted
        .filter(|(_, quality)| *quality > 0)
        .rev()
        .max_by_key(|(_, quality)| *quality)
        .map(|(form, _)| form)
}

/// One element of the header: `text/*;q=0.8`.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    /// In thousandths.
    quality: u16,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let mut quality = 1_000;
        for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            if name.trim().eq_ignore_ascii_case("q") {
                let q: f64 = value.trim().parse().ok().filter(|q| (0.0..=1.0).contains(q))?;
                quality = (q * 1_000.0).round() as u16;
            }
        }
        Some(Self { kind, subtype, quality })
    }

    /// How narrow the range is, if `form` is in it.
    fn narrowness(&self, form: &str) -> Option<u8> {
        let (kind, subtype) = form.split_once('/')?;
        let matches = |pattern: &str, name: &str| pattern.eq_ignore_ascii_case(name);
        match (self.kind, self.subtype) {
            ("*", "*") => Some(0),
            (kind_range, "*") if matches(kind_range, kind) => Some(1),
            (kind_range, range) if matches(kind_range, kind) && matches(range, subtype) => Some(2),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn chosen(accept: &'static str) -> Option<&'static str> {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
        choose(&headers, &["application/json", "text/html"])
    }

    #[test]
    fn the_highest_quality_wins_and_of_equals_the_first_that_is_offered() {
        for (accept, expected) in [
            ("text/html", "text/html"),
            ("text/html, application/json", "application/json"),
            ("text/html;q=0.9, application/json;q=0.8", "text/html"),
            ("text/html ; level=1 ; Q = 0.123, */*;q=0.122", "text/html"),
            ("TEXT/*, */*;q=0.5", "text/html"),
            ("*/*", "application/json"),
            ("", "application/json"),
            // What browsers send.
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ] {
            assert_eq!(chosen(accept), Some(expected), "{accept}");
        }
    }

    #[test]
    fn the_narrowest_range_counts_wherever_it_stands() {
        assert_eq!(chosen("*/*, application/json;q=0.1"), Some("text/html"));
        assert_eq!(
            chosen("text/html;q=0.1, text/*, application/json;q=0.2"),
            Some("application/json")
        );
        assert_eq!(chosen("application/json;q=0, */*"), Some("text/html"));
    }

    #[test]
    fn what_is_not_taken_is_not_forced_upon_anybody() {
        for accept in ["image/png", "text/plain", "*/*;q=0", "application/*;q=0.0, text/html;q=0"] {
            assert_eq!(chosen(accept), None, "{accept}");
        }
    }

    #[test]
    fn nonsense_is_passed_over() {
        assert_eq!(chosen("text/html;q=2, text/html;q=x, nonsense, ;;,"), Some("application/json"));
        assert_eq!(chosen("text/html;q=NaN, application/json;q=0.1"), Some("application/json"));
    }

    #[test]
    fn several_headers_are_one() {
        let mut headers = HeaderMap::new();
        for range in ["application/json;q=0.5", "text/html"] {
            headers.append(ACCEPT, HeaderValue::from_static(range));
        }
        assert_eq!(choose(&headers, &["application/json", "text/html"]), Some("text/html"));
    }
}
