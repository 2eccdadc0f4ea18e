//! How a request ended, as the server sees it.

use http::StatusCode;

/// How a request ended, as the server sees it. Exactly one applies to each request.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Outcome {
    /// Status 100 to 399, and the body went out whole.
    Ok,
    /// Status 400 to 499 but 429.
    ClientError,
    /// Status 429: a limiter turned the request away.
    Limited,
    /// Status 500 and up, an error of the inner service, or a body that broke off with an error.
    ServerError,
    /// The response future or the body was dropped before its end: usually the client went away.
    Cancelled,
    /// The service panicked, and nothing inside the layer caught it.
    Panicked,
}

impl Outcome {
    /// All outcomes, in the order of their indices.
    pub const ALL: [Self; 6] = [
        Self::Ok,
        Self::ClientError,
        Self::Limited,
        Self::ServerError,
        Self::Cancelled,
        Self::Panicked,
    ];

    /// Position in an array of one element an outcome.
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// Its name where it is counted: `ok`, `client_error`, `limited`, `server_error`, `cancelled`, `panicked`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::Limited => "limited",
            Self::ServerError => "server_error",
            Self::Cancelled => "cancelled",
            Self::Panicked => "panicked",
        }
    }

    /// What a response with this status amounts to, once its body is out.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            ..400 => Self::Ok,
            429 => Self::Limited,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_map_to_outcomes() {
        for (status, outcome) in [
            (101, Outcome::Ok),
            (200, Outcome::Ok),
            (304, Outcome::Ok),
            (400, Outcome::ClientError),
            (429, Outcome::Limited),
            (499, Outcome::ClientError),
            (500, Outcome::ServerError),
            (999, Outcome::ServerError),
        ] {
            let status = StatusCode::from_u16(status).expect("in range");
            assert_eq!(Outcome::of_status(status), outcome, "{status}");
        }
    }

    #[test]
    fn indices_follow_the_list() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome.index(), index);
        }
    }
}
