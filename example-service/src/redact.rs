//! Addresses without what must not be seen.

/// A database or cache URL with its password taken out, fit for logs and errors.
///
/// It works on text that may be no URL at all: what cannot be told from a secret is taken out too.
pub(crate) fn redacted(url: &str) -> String {
    let (address, parameters) = match url.split_once('?') {
        Some((address, parameters)) => (address, Some(parameters)),
        None => (url, None),
    };
    let mut shown = match (address.split_once("://"), address.rfind('@')) {
        // The last `@`: a password may hold others that nobody encoded.
        (Some((scheme, rest)), Some(_)) if rest.contains('@') => {
            let (credentials, host) = rest.rsplit_once('@').unwrap_or(("", rest));
            let user = credentials.split(':').next().unwrap_or_default();
            let secret = if credentials.contains(':') { ":***" } else { "" };
            format!("{scheme}://{user}{secret}@{host}")
        }
        (None, Some(_)) => "***".to_owned(),
        _ => address.to_owned(),
    };
    if let Some(parameters) = parameters {
        shown.push('?');
        // A password may hold a `?` that nobody encoded; then all of this is a part of it.
        if parameters.contains('@') {
            shown.push_str("***");
            return redacted_head(&shown);
        }
        let parameters: Vec<String> = parameters.split('&').map(redacted_parameter).collect();
        shown.push_str(&parameters.join("&"));
    }
    shown
}

/// Drivers take passwords in parameters too: only values of known harmless ones are shown.
fn redacted_parameter(parameter: &str) -> String {
    const SHOWN: [&str; 6] = ["mode", "cache", "sslmode", "ssl-mode", "application_name", "dbname"];
    match parameter.split_once('=') {
        Some((name, _)) if !SHOWN.contains(&name) => format!("{name}=***"),
        _ => parameter.to_owned(),
    }
}

fn redacted_head(url: &str) -> String {
    url.split_once("://").map_or_else(|| "***".to_owned(), |(scheme, _)| format!("{scheme}://***"))
}

/// `text` without the password of `url`, wherever a driver has put it.
pub(crate) fn scrubbed(text: &str, url: &str) -> String {
    let text = text.replace(url, &redacted(url));
    let password = url
        .split_once("://")
        .and_then(|(_, rest)| rest.rsplit_once('@'))
        .and_then(|(credentials, _)| credentials.split_once(':'))
        .map(|(_, password)| password)
        .filter(|password| !password.is_empty());
    match password {
        Some(password) => text.replace(password, "***"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_taken_out_and_the_rest_stays() {
        for (url, shown) in [
            ("postgres://ann:s3cret@db:5432/shop", "postgres://ann:***@db:5432/shop"),
            (
                "postgres://ann:s3:c@ret@db/shop?sslmode=require",
                "postgres://ann:***@db/shop?sslmode=require",
            ),
            (
                "postgres://db/shop?user=ann&password=s3cret",
                "postgres://db/shop?user=***&password=***",
            ),
            ("postgres://ann:s3?cret@db/shop", "postgres://***"),
            ("redis://:s3cret@cache:6379/1", "redis://:***@cache:6379/1"),
            ("ann:s3cret@db", "***"),
            ("sqlite://example-service.db?mode=rwc", "sqlite://example-service.db?mode=rwc"),
            ("postgres://ann@db/shop", "postgres://ann@db/shop"),
        ] {
            assert_eq!(redacted(url), shown);
            assert!(!redacted(url).contains("cret"), "{url}");
        }
    }

    #[test]
    fn what_a_driver_says_is_scrubbed() {
        let url = "postgres://ann:s3cret@db/shop";
        assert_eq!(
            scrubbed(&format!("cannot reach {url}: s3cret"), url),
            "cannot reach postgres://ann:***@db/shop: ***"
        );
    }
}
