//! Which server a URL means, and how to reach it.

use std::path::PathBuf;

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{
    HeaderValue, Uri,
    uri::{Authority, Scheme},
};
use percent_encoding::percent_decode_str;

/// A server that a URL names.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The URL, without the name and password that it may hold.
    pub(super) name: String,
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    /// Goes before the paths of requests; empty, or with a slash before and none after.
    pub(super) prefix: String,
    /// For the name and password in the URL.
    pub(super) authorization: Option<HeaderValue>,
    /// The Unix socket; `None` is TCP.
    pub(super) socket: Option<PathBuf>,
}

impl Target {
    /// Reads `http://`, `https://`, and `unix:/path/to.sock:/url-path`.
    pub(super) fn parse(url: &str) -> Result<Self, UrlError> {
        if let Some(rest) = url.strip_prefix("unix:") {
            return Self::unix(url, rest);
        }
        let no_url = || UrlError::NoUrl(without_secrets(url));
        let uri: Uri = url.parse().map_err(|_| no_url())?;
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(no_url());
        };
        if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS {
            return Err(no_url());
        }
        if authority.host().is_empty() {
            return Err(no_url());
        }
        // What stands before an unencoded "/" of a password looks like a host and a port.
        let has_port = !authority.as_str().ends_with(authority.host());
        if has_port && authority.port_u16().is_none() {
            return Err(no_url());
        }
        if uri.query().is_some() || url.contains('#') {
            return Err(UrlError::MoreThanAPath(without_secrets(url)));
        }
        let (userinfo, host) = match authority.as_str().rsplit_once('@') {
            Some((userinfo, host)) => (Some(userinfo), host),
            None => (None, authority.as_str()),
        };
        Ok(Self {
            scheme: scheme.clone(),
            authority: host.parse().map_err(|_| no_url())?,
            prefix: uri.path().trim_end_matches('/').to_owned(),
            authorization: userinfo.and_then(basic),
            socket: None,
            name: without_userinfo(url),
        })
    }

    fn unix(url: &str, rest: &str) -> Result<Self, UrlError> {
        let (socket, path) = rest.split_once(':').unwrap_or((rest, "/"));
        // `unix:///run/app.sock` is the same file with a host that is empty.
        let socket = socket.strip_prefix("//").unwrap_or(socket);
        if !socket.starts_with('/') || socket.ends_with('/') {
            return Err(UrlError::NoUrl(url.to_owned()));
        }
        let uri: Uri = path.parse().map_err(|_| UrlError::NoUrl(url.to_owned()))?;
        if !path.starts_with('/') {
            return Err(UrlError::NoUrl(url.to_owned()));
        }
        if uri.query().is_some() || path.contains('#') {
            return Err(UrlError::MoreThanAPath(url.to_owned()));
        }
        Ok(Self {
            name: url.to_owned(),
            scheme: Scheme::HTTP,
            authority: Authority::from_static("localhost"),
            prefix: path.trim_end_matches('/').to_owned(),
            authorization: None,
            socket: Some(socket.into()),
        })
    }

    /// Is it reached by TLS?
    pub(super) fn is_tls(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }
}

/// The header for a name and a password, as they stand in a URL.
fn basic(userinfo: &str) -> Option<HeaderValue> {
    let (name, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let mut plain: Vec<u8> = percent_decode_str(name).collect();
    plain.push(b':');
    plain.extend(percent_decode_str(password));
    let mut value =
        HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(plain))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A URL that was read, as it may be shown: passwords are not.
fn without_userinfo(url: &str) -> String {
    let begin = url.find("://").map_or(0, |at| at + 3);
    let end = url[begin..].find(['/', '?', '#']).map_or(url.len(), |at| begin + at);
    match url[begin..end].rfind('@') {
        Some(at) => format!("{}{}", &url[..begin], &url[begin + at + 1..]),
        None => url.to_owned(),
    }
}

/// A URL that cannot be used, as an error may show it. Where a password ends in it is not certain, so nothing is shown
/// of one that may hold any.
fn without_secrets(url: &str) -> String {
    if !url.contains('@') {
        return url.to_owned();
    }
    match url.split_once("://") {
        Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            format!("{scheme}://…")
        }
        _ => "…".to_owned(),
    }
}

/// A URL that cannot be loaded, or its TLS that cannot be set up.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// No URL, or none of a kind that is known.
    #[error(
        "{0:?} is no URL of a server: write it like http://127.0.0.1:3000, https://example.org or \
         unix:/run/app.sock:/"
    )]
    NoUrl(String),
    /// A URL that says what to ask for.
    #[error(
        "{0:?} has a query or a fragment: name the server alone, and put what is asked for into the requests"
    )]
    MoreThanAPath(String),
    /// A host that no certificate can be for.
    #[error(
        "{0:?} is no name that a certificate could be for: use the name of the server or its address"
    )]
    HostName(String),
    /// Something else about TLS.
    #[error("{0}")]
    Tls(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Target {
        Target::parse(url).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_url_names_a_server_and_the_beginning_of_paths() {
        for (url, authority, prefix) in [
            ("http://127.0.0.1:3000", "127.0.0.1:3000", ""),
            ("http://[::1]:3000/", "[::1]:3000", ""),
            ("https://example.org/api/", "example.org", "/api"),
            ("HTTP://example.org/a/b", "example.org", "/a/b"),
        ] {
            let target = parsed(url);
            assert_eq!((target.authority.as_str(), &*target.prefix), (authority, prefix));
            assert_eq!((&*target.name, target.socket), (url, None));
        }
        assert!(parsed("https://example.org").is_tls());
    }

    #[test]
    fn a_unix_socket_is_written_as_proxies_do() {
        for (url, prefix) in [
            ("unix:/run/app.sock", ""),
            ("unix:/run/app.sock:/", ""),
            ("unix:///run/app.sock", ""),
            ("unix:/run/app.sock:/api/", "/api"),
        ] {
            let target = parsed(url);
            assert_eq!(target.socket, Some(PathBuf::from("/run/app.sock")), "{url}");
            assert_eq!((&*target.prefix, target.authority.as_str()), (prefix, "localhost"));
        }
    }

    #[test]
    fn a_password_is_sent_and_not_shown() {
        let target = parsed("http://me:p%40ss@example.org/x");
        let sent = target.authorization.expect("there is one");
        assert_eq!(sent, format!("Basic {}", BASE64_STANDARD.encode("me:p@ss")));
        assert!(sent.is_sensitive());
        assert_eq!(target.authority, "example.org");
        assert_eq!(target.name, "http://example.org/x");
        for bad in [
            "ftp://me:secret@host/",
            "http://me:secret@/",
            "http://me:secret@host/?q",
            "http://me:se/cret@127.0.0.1:1/",
            "http://me:se?cret@host",
            "http://me:12#secret@host",
            "me:secret@host:1",
            "me:secret://@host",
        ] {
            let error = Target::parse(bad).expect_err(bad).to_string();
            assert!(!["secret", "cret", "me:"].iter().any(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn what_is_no_url_is_named_with_the_remedy() {
        for url in [
            "",
            "localhost",
            "localhost:3000",
            "/search",
            "ftp://host",
            "http://",
            "http://a b",
            "http://host:port/",
            "http://[::1]:65536/",
            "unix:",
            "unix:run/app.sock",
            "unix:/run/",
            "unix:/run/app.sock:api",
            "unix://host/x.sock",
        ] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.starts_with(&format!("{url:?} is no URL of a server")), "{error}");
            assert!(error.contains("unix:/run/app.sock:/"), "{error}");
        }
        for url in ["http://host/?q=tea", "http://host/#top", "unix:/run/app.sock:/?q"] {
            let error = Target::parse(url).expect_err(url).to_string();
            assert!(error.starts_with(&format!("{url:?} has a query or a fragment")), "{error}");
        }
    }
}
