//! What a registry's **answer** means when it is not what was asked for: whether to ask again, when, or to ask somebody else.

use std::time::{Duration, SystemTime};

use contract::ApiError;
use reqwest::{
    Response, StatusCode,
    header::{HeaderMap, RETRY_AFTER},
};
use serde::Deserialize;

use super::body;
use crate::files;

/// How many bytes of a refusal are read, and for how long.
const SAID_MAX: u64 = 16 << 10;
const SAID_PATIENCE: Duration = Duration::from_secs(5);
/// How many characters of it are shown.
const SAID_SHOWN: usize = 200;

/// What may help after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image) enum Remedy {
    /// The same again, not before so long where the registry said so.
    Again(Option<Duration>),
    /// Somebody else may have it; this one will not.
    Elsewhere,
}

/// Why an endpoint did not give what it was asked for.
#[derive(Debug)]
pub(in crate::image) struct Failure {
    /// Boxed, as most of what gives a failure gives little else.
    pub error: Box<ApiError>,
    pub remedy: Remedy,
}

impl Failure {
    pub(in crate::image) fn again(error: ApiError) -> Self {
        Self { error: Box::new(error), remedy: Remedy::Again(None) }
    }

    pub(in crate::image) fn elsewhere(error: ApiError) -> Self {
        Self { error: Box::new(error), remedy: Remedy::Elsewhere }
    }

    /// Of a request that brought no answer, or whose answer broke off.
    pub(super) fn broken(registry: &str, error: &reqwest::Error) -> Self {
        let text = told(error);
        if error.is_redirect() || error.is_builder() {
            return Self::elsewhere(ApiError::failed_precondition(format!(
                "{registry} sends the download to where it cannot go: {text}"
            )));
        }
        let error = ApiError::unavailable(format!("the registry {registry} cannot be reached: {text}"));
        Self::again(error.hint("is its name right, and does it run?"))
    }

    /// Of an answer with such a status.
    pub(super) fn of(registry: &str, what: &str, status: StatusCode, headers: &HeaderMap) -> Self {
        match status.as_u16() {
            404 | 410 => Self::elsewhere(ApiError::not_found(format!("{what} does not exist at {registry}"))),
            401 | 403 => Self::elsewhere(
                ApiError::permission_denied(format!("{registry} refuses {what}"))
                    .hint("put credentials for it into the host's docker config.json"),
            ),
            408 | 425 | 429 | 500..=599 => {
                let error = ApiError::unavailable(format!("{registry} answers {status} for {what}"));
                Self { error: Box::new(error), remedy: Remedy::Again(retry_after(headers, SystemTime::now())) }
            }
            _ => Self::elsewhere(ApiError::failed_precondition(format!("{registry} answers {status} for {what}"))),
        }
    }

    /// Of such an answer to a push, with what the registry says of it.
    pub(super) async fn refused(registry: &str, what: &str, response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let mut failure = match status.as_u16() {
            404 | 410 => Self::elsewhere(ApiError::not_found(format!("{registry} has no place for {what}"))),
            _ => Self::of(registry, what, status, &headers),
        };
        if let Some(said) = said(response).await {
            failure.error.message += &format!(": {said}");
        }
        failure
    }
}

/// What a registry says of a refusal (distribution-spec 1.1, "Error Codes"), as far as it is a short line of text.
async fn said(response: Response) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        message: String,
    }
    let reading = body::bounded("", response, SAID_MAX);
    let bytes = tokio::time::timeout(SAID_PATIENCE, reading).await.ok()?.ok()?;
    let errors: Errors = serde_json::from_slice(&bytes).ok()?;
    let message = &errors.errors.first()?.message;
    Some(message.chars().filter(|char| !char.is_control()).take(SAID_SHOWN).collect())
}

/// Why a request failed, without where it was sent: where a registry sends on to may be an address that stands for a password, as those that
/// storage signs for an hour.
pub(super) fn told(error: &reqwest::Error) -> String {
    let text = files::chain(error);
    match error.url() {
        Some(url) => text.replace(&format!(" for url ({url})"), ""),
        None => text,
    }
}

/// `Retry-After`: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let after = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers, now)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Tue, 14 Nov 2023 22:14:20 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(after("Tue, 14 Nov 2000 22:14:20 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[tokio::test]
    async fn an_error_does_not_tell_the_address_it_was_sent_to() {
        // A port that nobody listens at any more.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let error = client.get(format!("http://{gone}/blob?X-Amz-Signature=abc")).send().await.unwrap_err();
        assert!(files::chain(&error).contains("Signature"));
        let told = Failure::broken("registry.example", &error).error.message;
        assert!(!told.contains("Signature") && told.contains("refused"), "{told}");
    }

    #[test]
    fn a_status_says_whether_to_ask_again() {
        let of = |status: u16| Failure::of("r", "x", StatusCode::from_u16(status).unwrap(), &HeaderMap::new()).remedy;
        for status in [429, 500, 502, 503, 504, 408] {
            assert_eq!(of(status), Remedy::Again(None), "{status}");
        }
        for status in [400, 401, 403, 404, 410, 418] {
            assert_eq!(of(status), Remedy::Elsewhere, "{status}");
        }
    }
}
