//! What a store's answers mean.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};

use ltx::Timestamp;

use crate::Error;
use crate::config::S3Config;

/// Error codes of requests that may succeed when they are sent again.
const PASSING: [&str; 8] = [
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "OperationAborted",
    "ConditionalRequestConflict",
];

/// The HTTP status of a failed request, where there was an answer.
pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// Sorts a failed request by what can be done about it.
#[allow(clippy::needless_pass_by_value, reason = "it stands behind `map_err`")]
pub(super) fn error<E>(url: &Arc<str>, operation: &'static str, key: &str, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let (url, key) = (url.clone(), Arc::<str>::from(key));
    match find::<CredentialsError>(&error) {
        Some(wrong @ (CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_))) => {
            return Error::NoCredentials { url, answer: describe(wrong) };
        }
        // The place where they come from did not answer, or failed. It may do better next time.
        Some(failed) => {
            let cause = format!("cannot get credentials: {}", describe(failed));
            return Error::Transient { operation, key, cause };
        }
        None => {}
    }
    let transient = |cause| Error::Transient { operation, key: key.clone(), cause };
    let status = status(&error);
    let code = error.code().unwrap_or_default().to_owned();
    let answer = match (status, error.message()) {
        (Some(status), Some(message)) if !code.is_empty() => format!("{status} {code}: {message}"),
        (Some(status), None) if !code.is_empty() => format!("{status} {code}"),
        (Some(status), _) => format!("HTTP status {status}"),
        (None, _) => describe(&error),
    };
    if matches!(&error, SdkError::DispatchFailure(failure) if failure.is_user())
        || matches!(&error, SdkError::ConstructionFailure(_))
    {
        return Error::Refused { url, operation, key, answer };
    }
    let Some(status) = status else { return transient(answer) };
    if PASSING.contains(&code.as_str()) || status >= 500 && status != 501 || matches!(status, 408 | 429) {
        return transient(answer);
    }
    match (status, code.as_str()) {
        (404, "NoSuchBucket") => Error::NoBucket { url, answer },
        (404, _) if operation == "list" => Error::NoBucket { url, answer },
        (404, _) => Error::NotFound { url, key },
        (301 | 307, _)
        | (400, "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException") => {
            Error::Region { url, answer }
        }
        (403, "RequestTimeTooSkewed") => {
            Error::Refused { url, operation, key, answer: format!("{answer}: set this machine's clock") }
        }
        (401 | 403, _) => Error::Denied { url, operation, key, answer },
        (412, _) => Error::AlreadyExists { url, key },
        (416, _) => {
            Error::Changed { url, key, expected: "the part asked for".into(), found: "a shorter object".into() }
        }
        // An answer that cannot be read is a broken one.
        _ if matches!(error, SdkError::ResponseError(_)) => transient(answer),
        _ => Error::Refused { url, operation, key, answer },
    }
}

/// Whether a refused batch of deletes is worth trying one by one.
pub(super) fn refuses_batches(answer: &str) -> bool {
    ["400", "405", "411", "501"].iter().any(|status| answer.starts_with(status))
        || answer.contains(" 400")
        || answer.contains(" 501")
}

/// An error with all its causes, in one line.
pub(super) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = error.to_string();
        if !part.is_empty() && !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    if text.is_empty() { DisplayErrorContext(error).to_string() } else { text }
}

fn find<'a, E: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// `bytes 0-99/1234` as a span and the object's size.
pub(super) fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (span, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = span.split_once('-')?;
    let (first, last, size) = (first.parse().ok()?, last.parse::<u64>().ok()?, size.parse().ok()?);
    Some((first..last.checked_add(1)?, size))
}

/// What some stores need of every request before it is signed.
#[derive(Clone, Debug)]
pub(super) struct Adjust {
    /// Ask Tigris for the newest data, wherever it lies.
    pub(super) tigris: bool,
    /// Google Cloud Storage changes this header on the way, which breaks the signature.
    pub(super) drop_accept_encoding: bool,
    /// The store's own time, in seconds since 1970, as its latest answer tells it.
    pub(super) clock: Arc<AtomicI64>,
}

impl Adjust {
    pub(super) fn of(config: &S3Config) -> Self {
        Self {
            tigris: config.tigris_consistent(),
            drop_accept_encoding: !config.sign_accept_encoding(),
            clock: Arc::default(),
        }
    }
}

impl Intercept for Adjust {
    fn name(&self) -> &'static str {
        "what some stores need"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let headers = context.request_mut().headers_mut();
        if self.tigris {
            headers.insert("X-Tigris-Consistent", "true");
        }
        if self.drop_accept_encoding {
            headers.remove("Accept-Encoding");
        }
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        note(&self.clock, context);
        Ok(())
    }
}

/// When one request was answered, by the store's clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Date(Arc<AtomicI64>);

impl Date {
    pub(super) fn get(&self) -> Option<Timestamp> {
        told(&self.0)
    }
}

impl Intercept for Date {
    fn name(&self) -> &'static str {
        "when it was answered"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        note(&self.0, context);
        Ok(())
    }
}

/// Notes an answer's time, in seconds since 1970, where it is the latest.
fn note(clock: &AtomicI64, context: &BeforeDeserializationInterceptorContextRef<'_>) {
    let date = context.response().headers().get("date");
    if let Some(date) = date.and_then(|date| DateTime::from_str(date, DateTimeFormat::HttpDate).ok()) {
        clock.fetch_max(date.secs(), Ordering::Relaxed);
    }
}

/// The time that was noted.
pub(super) fn told(clock: &AtomicI64) -> Option<Timestamp> {
    let seconds = clock.load(Ordering::Relaxed);
    (seconds > 0).then_some(Timestamp(seconds * 1_000))
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::error::ConnectorError;
    use aws_sdk_s3::operation::get_object::GetObjectError;

    use super::*;

    fn kind_of(error: CredentialsError) -> Error {
        let error: SdkError<GetObjectError, HttpResponse> =
            SdkError::dispatch_failure(ConnectorError::other(error.into(), None));
        super::error(&"s3://bkt".into(), "read", "key", error)
    }

    #[test]
    fn only_missing_or_wrong_credentials_are_for_somebody_to_put_right() {
        for missing in [CredentialsError::not_loaded("none"), CredentialsError::invalid_configuration("odd")] {
            let error = kind_of(missing);
            assert!(matches!(error, Error::NoCredentials { .. }), "{error:?}");
        }
        let second = std::time::Duration::from_secs(1);
        for passing in [CredentialsError::provider_error("503"), CredentialsError::provider_timed_out(second)] {
            let error = kind_of(passing);
            assert!(matches!(error, Error::Transient { .. }), "{error:?}");
        }
    }
}
