//! The one error type of a tunnel and the one table that says what each outcome means to a SOCKS client, an HTTP
//! client, a peer on the wire, a metric and a log line (`docs/protocol.md`, "Opening").

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;
use tracing::Level;

/// Why a stream could not be opened or ended early: the `code` of a `RESET` message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Policy, authorization, or no such service.
    Denied,
    /// The network of the destination, or every relay, cannot be reached.
    NetworkUnreachable,
    /// The host of the destination cannot be reached, or its name does not resolve.
    HostUnreachable,
    /// The destination refused the connection.
    Refused,
    /// Nobody answered in time.
    Timeout,
    /// A limit is reached; trying again later may help.
    Overloaded,
    /// Data came for a stream that the peer does not know: it restarted, say.
    UnknownStream,
    /// The other side gave the connection up: its client or its service vanished.
    Aborted,
    /// The peer broke the rules of the wire.
    Protocol,
    /// A fault of our own or of the peer's machine.
    Internal,
}

/// One row of the table of outcomes.
struct Row {
    code: &'static str,
    socks_reply: u8,
    http_status: StatusCode,
    level: Level,
}

impl ErrorKind {
    /// Every kind, in the table's order.
    pub const ALL: [Self; 10] = [
        Self::Denied,
        Self::NetworkUnreachable,
        Self::HostUnreachable,
        Self::Refused,
        Self::Timeout,
        Self::Overloaded,
        Self::UnknownStream,
        Self::Aborted,
        Self::Protocol,
        Self::Internal,
    ];

    /// The table: every translation of an outcome is written here and nowhere else.
    const fn row(self) -> Row {
        const fn row(code: &'static str, socks_reply: u8, http_status: StatusCode, level: Level) -> Row {
            Row { code, socks_reply, http_status, level }
        }
        match self {
            Self::Denied => row("denied", 0x02, StatusCode::FORBIDDEN, Level::INFO),
            Self::NetworkUnreachable => row("network-unreachable", 0x03, StatusCode::BAD_GATEWAY, Level::WARN),
            Self::HostUnreachable => row("host-unreachable", 0x04, StatusCode::BAD_GATEWAY, Level::INFO),
            Self::Refused => row("refused", 0x05, StatusCode::BAD_GATEWAY, Level::INFO),
            Self::Timeout => row("timeout", 0x06, StatusCode::GATEWAY_TIMEOUT, Level::INFO),
            Self::Overloaded => row("overloaded", 0x01, StatusCode::SERVICE_UNAVAILABLE, Level::WARN),
            Self::UnknownStream => row("unknown-stream", 0x01, StatusCode::BAD_GATEWAY, Level::INFO),
            Self::Aborted => row("aborted", 0x01, StatusCode::BAD_GATEWAY, Level::DEBUG),
            Self::Protocol => row("protocol", 0x01, StatusCode::BAD_GATEWAY, Level::WARN),
            Self::Internal => row("internal", 0x01, StatusCode::BAD_GATEWAY, Level::ERROR),
        }
    }

    /// The code on the wire, in the `Nws-Error` header and in metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        self.row().code
    }

    /// The kind that a peer's `code` names; a code from a later version is `Internal`.
    #[must_use]
    pub fn from_code(code: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.code() == code).unwrap_or(Self::Internal)
    }

    /// The SOCKS5 reply (RFC 1928 section 6).
    #[must_use]
    pub const fn socks_reply(self) -> u8 {
        self.row().socks_reply
    }

    /// The HTTP status (RFC 9110 section 15).
    #[must_use]
    pub const fn http_status(self) -> StatusCode {
        self.row().http_status
    }

    /// How loudly to log it: what a visitor can cause at will is never louder than `INFO`.
    #[must_use]
    pub const fn level(self) -> Level {
        self.row().level
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// What went wrong with a stream: a kind for machines and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
#[non_exhaustive]
pub struct Error {
    kind: ErrorKind,
    reason: Cow<'static, str>,
}

impl Error {
    /// An error of this kind; the reason is a sentence without a full stop that names the thing and the way out.
    pub fn new(kind: ErrorKind, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// The row of the table that it belongs to.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence for people.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Writes one line to the log, at the kind's level. The reason stays out of it: it names what people visit.
    pub(crate) fn log(&self, what: &'static str) {
        let code = self.kind.code();
        match self.kind.level() {
            Level::ERROR => tracing::error!(code, "{what}"),
            Level::WARN => tracing::warn!(code, "{what}"),
            Level::INFO => tracing::info!(code, "{what}"),
            _ => tracing::debug!(code, "{what}"),
        }
    }

    /// What an `io::Error` from connecting or copying means for the stream.
    #[must_use]
    pub fn from_io(error: &std::io::Error, what: &str) -> Self {
        use std::io::ErrorKind as Io;
        if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()) {
            return inner.clone();
        }
        let kind = match error.kind() {
            Io::ConnectionRefused => ErrorKind::Refused,
            Io::TimedOut => ErrorKind::Timeout,
            Io::NetworkUnreachable | Io::NetworkDown => ErrorKind::NetworkUnreachable,
            Io::HostUnreachable | Io::AddrNotAvailable | Io::NotFound => ErrorKind::HostUnreachable,
            Io::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, format!("{what}: {error}"))
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind {
            ErrorKind::Denied => Io::PermissionDenied,
            ErrorKind::NetworkUnreachable => Io::NetworkUnreachable,
            ErrorKind::HostUnreachable => Io::HostUnreachable,
            ErrorKind::Refused => Io::ConnectionRefused,
            ErrorKind::Timeout => Io::TimedOut,
            _ => Io::ConnectionReset,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_one_of_the_protocol() {
        let rows: Vec<_> =
            ErrorKind::ALL.iter().map(|k| (k.code(), k.socks_reply(), k.http_status().as_u16())).collect();
        assert_eq!(
            rows,
            [
                ("denied", 2, 403),
                ("network-unreachable", 3, 502),
                ("host-unreachable", 4, 502),
                ("refused", 5, 502),
                ("timeout", 6, 504),
                ("overloaded", 1, 503),
                ("unknown-stream", 1, 502),
                ("aborted", 1, 502),
                ("protocol", 1, 502),
                ("internal", 1, 502),
            ]
        );
    }

    #[test]
    fn codes_come_back_as_their_kind_and_unknown_ones_as_internal() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_code(kind.code()), kind);
        }
        assert_eq!(ErrorKind::from_code("from-version-9"), ErrorKind::Internal);
    }

    #[test]
    fn an_error_survives_the_way_through_io() {
        let error = Error::new(ErrorKind::Denied, "no service on port 99");
        let io = std::io::Error::from(error.clone());
        assert_eq!(Error::from_io(&io, "copying"), error);
    }
}
