//! How requests reach the service: by a call, or over a connection.

mod connect;
mod marks;
mod serve;
#[cfg(feature = "tls")]
mod tls;
mod url;
mod wire;

use std::{fmt, str::FromStr};

pub use self::{
    url::UrlError,
    wire::{Wire, WireBuilder, WireError, WireFuture},
};

/// How a load test reaches a service of its own process.
///
/// All but [`Direct`](Self::Direct) are real connections that speak real HTTP, to the same service in the same
/// process: runs over several of them show what each costs.
///
/// ```
/// use parallax_loadgen::{Http, Transport};
///
/// assert_eq!("tcp:h2".parse(), Ok(Transport::Tcp(Http::Two)));
/// assert_eq!(Transport::Pipe(Http::One).to_string(), "pipe");
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Transport {
    /// A call into the service. No connection, no HTTP.
    #[default]
    Direct,
    /// HTTP over a pipe in memory: the cost of HTTP alone.
    Pipe(Http),
    /// HTTP over TCP, through the loopback interface.
    Tcp(Http),
    /// HTTP over a Unix socket, in a temporary folder that is closed to other users.
    Unix(Http),
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Http {
    /// HTTP/1.1 with connections that are kept, one for each request in flight.
    #[default]
    One,
    /// HTTP/2: all requests share one connection. In plain text the client knows beforehand that the server
    /// speaks it.
    Two,
}

/// What carries the bytes of a connection within the process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Medium {
    Pipe,
    Tcp,
    Unix,
}

impl Transport {
    /// `None` for a call.
    pub(crate) fn connection(self) -> Option<(Medium, Http)> {
        match self {
            Self::Direct => None,
            Self::Pipe(http) => Some((Medium::Pipe, http)),
            Self::Tcp(http) => Some((Medium::Tcp, http)),
            Self::Unix(http) => Some((Medium::Unix, http)),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Pipe(Http::One) => "pipe",
            Self::Pipe(Http::Two) => "pipe:h2",
            Self::Tcp(Http::One) => "tcp",
            Self::Tcp(Http::Two) => "tcp:h2",
            Self::Unix(Http::One) => "unix",
            Self::Unix(Http::Two) => "unix:h2",
        })
    }
}

impl FromStr for Transport {
    type Err = ParseTransportError;

    /// Reads `direct`, `pipe`, `tcp` or `unix`; after the last three, `:h2` is HTTP/2, and `:h1` or nothing is
    /// HTTP/1.1.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseTransportError(text.to_owned());
        let (medium, version) = text.split_once(':').map_or((text, None), |(m, v)| (m, Some(v)));
        let http = match version {
            None | Some("h1") => Http::One,
            Some("h2") => Http::Two,
            Some(_) => return Err(unknown()),
        };
        match medium {
            "direct" if version.is_none() => Ok(Self::Direct),
            "pipe" => Ok(Self::Pipe(http)),
            "tcp" => Ok(Self::Tcp(http)),
            "unix" => Ok(Self::Unix(http)),
            _ => Err(unknown()),
        }
    }
}

/// A text that names no transport.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is no transport: give direct, pipe, tcp or unix, and :h2 after one of the last three for HTTP/2, \
     like tcp:h2"
)]
pub struct ParseTransportError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_parses_back_to_the_same() {
        let over = |medium: fn(Http) -> Transport| [medium(Http::One), medium(Http::Two)];
        let all = [over(Transport::Pipe), over(Transport::Tcp), over(Transport::Unix)].concat();
        for transport in all.into_iter().chain([Transport::Direct]) {
            assert_eq!(transport.to_string().parse(), Ok(transport));
        }
        assert_eq!("unix:h1".parse(), Ok(Transport::Unix(Http::One)));
    }

    #[test]
    fn what_is_no_transport_is_named_with_the_remedy() {
        for text in ["", "udp", "tcp:", "tcp:h3", "direct:h2", "TCP", "tcp:h2:h2"] {
            let error = text.parse::<Transport>().expect_err("it is none").to_string();
            assert!(error.starts_with(&format!("{text:?} is no transport")), "{error}");
            assert!(error.contains("give direct, pipe, tcp or unix"), "{error}");
        }
    }
}
