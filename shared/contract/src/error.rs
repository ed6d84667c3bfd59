//! The one public table of error codes, and the error every request may be answered with.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What kind of failure it was; tells a caller what it can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request itself is wrong; sending it again cannot help.
    InvalidArgument,
    /// What it names does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// Right request, wrong state (a stopped VM, an image in use).
    FailedPrecondition,
    /// No capacity, no address, no disk space.
    ResourceExhausted,
    /// Lost a race or a lease; a fresh attempt may succeed.
    Aborted,
    /// Somebody else holds it now.
    Busy,
    /// Not allowed.
    PermissionDenied,
    /// A process or engine needed for this is not there now.
    Unavailable,
    /// Time ran out; the outcome may be unknown.
    DeadlineExceeded,
    /// Cancelled on request.
    Cancelled,
    /// A defect or a failure nobody planned for.
    Internal,
}

impl ErrorCode {
    /// The code as it stands on the wire, e.g. `not_found`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::FailedPrecondition => "failed_precondition",
            Self::ResourceExhausted => "resource_exhausted",
            Self::Aborted => "aborted",
            Self::Busy => "busy",
            Self::PermissionDenied => "permission_denied",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }

    /// The number in the `Nats-Service-Error-Code` header (ADR-32 wants a number), alike to HTTP's.
    pub fn number(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Aborted => 409,
            Self::FailedPrecondition => 412,
            Self::Busy => 423,
            Self::ResourceExhausted => 429,
            Self::Cancelled => 499,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn retryable(self) -> bool {
        matches!(self, Self::Aborted | Self::Busy | Self::Unavailable | Self::DeadlineExceeded)
    }

    /// The exit code of the `warren` CLI for this failure (listed in the README).
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::InvalidArgument => 2,
            Self::NotFound => 3,
            Self::AlreadyExists => 4,
            Self::FailedPrecondition => 5,
            Self::ResourceExhausted => 6,
            Self::Aborted | Self::Busy => 7,
            Self::PermissionDenied => 8,
            Self::Unavailable => 9,
            Self::DeadlineExceeded => 10,
            Self::Cancelled => 11,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure as its reader sees it: what was wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The kind of failure.
    pub code: ErrorCode,
    /// One sentence that names what was wrong.
    pub message: String,
    /// One sentence that says what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The trace to look at, where the request had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Machine-readable particulars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}

/// The longest message or hint, in bytes.
const TEXT_MAX: usize = 4 * 1024;
/// The most bytes of particulars, as JSON.
const DETAILS_MAX: usize = 64 * 1024;

/// A text without control characters that act, and no longer than that.
fn fit(text: &str, max: usize) -> String {
    let plain = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c };
    let mut fitting: String = text.chars().map(plain).collect();
    if fitting.len() > max {
        fitting.truncate(fitting.floor_char_boundary(max - '…'.len_utf8()));
        fitting.push('…');
    }
    fitting
}

/// The same JSON with U+FFFD for each NUL.
fn plain(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    let text = |text: String| if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text };
    match value {
        Value::String(string) => Value::String(text(string)),
        Value::Array(values) => values.into_iter().map(plain).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (text(key), plain(value))).collect(),
        other => other,
    }
}

/// The body of an error reply: `{"error": …}`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// The failure.
    pub error: ApiError,
}

impl ApiError {
    /// An error of that code with that message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, retryable: code.retryable(), trace_id: None, details: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether it is how somebody older answers a request that has this field, which it does not know.
    pub fn refuses_field(&self, field: &str) -> bool {
        self.code == ErrorCode::InvalidArgument && self.message.contains(&format!("unknown field `{field}`"))
    }

    /// The same as everybody can take it, whoever's words it quotes: a database's JSON has no NUL (PostgreSQL, "JSON Types"), a terminal obeys
    /// control characters, a message has a size. Control characters other than tabs and line feeds become U+FFFD, texts are cut
    /// to 4 KiB, and particulars of more than 64 KiB are left out.
    #[must_use]
    pub fn fit(mut self) -> Self {
        self.message = fit(&self.message, TEXT_MAX);
        self.hint = self.hint.as_deref().map(|hint| fit(hint, TEXT_MAX));
        self.details = self.details.map(plain).filter(|details| details.to_string().len() <= DETAILS_MAX);
        self
    }

    /// The same with machine-readable particulars.
    #[must_use]
    pub fn details(mut self, details: serde_json::Value) -> Self {
        self.details = Some(details);
        self
    }
}

macro_rules! shorthand {
    ($($(#[$doc:meta])* $fn:ident => $code:ident),* $(,)?) => {
        impl ApiError {
            $($(#[$doc])*
            pub fn $fn(message: impl Into<String>) -> Self {
                Self::new(ErrorCode::$code, message)
            })*
        }
    };
}

shorthand! {
    /// [`ErrorCode::InvalidArgument`].
    invalid_argument => InvalidArgument,
    /// [`ErrorCode::NotFound`].
    not_found => NotFound,
    /// [`ErrorCode::AlreadyExists`].
    already_exists => AlreadyExists,
    /// [`ErrorCode::FailedPrecondition`].
    failed_precondition => FailedPrecondition,
    /// [`ErrorCode::ResourceExhausted`].
    resource_exhausted => ResourceExhausted,
    /// [`ErrorCode::Aborted`].
    aborted => Aborted,
    /// [`ErrorCode::Busy`].
    busy => Busy,
    /// [`ErrorCode::PermissionDenied`].
    permission_denied => PermissionDenied,
    /// [`ErrorCode::Unavailable`].
    unavailable => Unavailable,
    /// [`ErrorCode::DeadlineExceeded`].
    deadline_exceeded => DeadlineExceeded,
    /// [`ErrorCode::Cancelled`].
    cancelled => Cancelled,
    /// [`ErrorCode::Internal`].
    internal => Internal,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_error_quotes_neither_acts_nor_bursts() {
        let quoting = ApiError::internal("it said \"\0\x1b[2Jhello\tthere\n\"").hint("é".repeat(10_000));
        let quoting = quoting.details(json!({ "ta\0il": ["a\0b", 1] })).fit();
        assert_eq!(quoting.message, "it said \"\u{fffd}\u{fffd}[2Jhello\tthere\n\"");
        let hint = quoting.hint.unwrap();
        assert!(hint.ends_with("é…") && hint.len() <= TEXT_MAX, "{}", hint.len());
        assert_eq!(quoting.details, Some(json!({ "ta\u{fffd}il": ["a\u{fffd}b", 1] })));
        assert_eq!(ApiError::internal("").details(json!("x".repeat(DETAILS_MAX))).fit().details, None);
    }
}
