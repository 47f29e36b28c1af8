//! What can go wrong between us and a store, sorted by what the caller can do about it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Try again: the same request may well succeed.
    Transient,
    /// The object is not there (any more): plan anew.
    NotFound,
    /// Another writer was faster, or the object is not the one that was listed: look again.
    Conflict,
    /// Somebody must change something first: credentials, configuration, the disk.
    Permanent,
}

/// Why a request to a store failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such object.
    #[error("{key}: not found in {url}")]
    NotFound {
        /// The replica.
        url: Arc<str>,
        /// The object.
        key: Arc<str>,
    },
    /// A put that must not overwrite found the object there.
    #[error("{key}: exists already in {url}: another writer put it")]
    AlreadyExists {
        /// The replica.
        url: Arc<str>,
        /// The object.
        key: Arc<str>,
    },
    /// The object is not the one that was expected.
    #[error("{key}: has changed in {url}: expected {expected}, found {found}")]
    Changed {
        /// The replica.
        url: Arc<str>,
        /// The object.
        key: Arc<str>,
        /// What was listed.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The store refuses us.
    #[error(
        "{url}: access denied to {operation} {key} ({answer}): check the access key, the secret key and the bucket's policy"
    )]
    Denied {
        /// The replica.
        url: Arc<str>,
        /// What was tried.
        operation: &'static str,
        /// The object or prefix.
        key: Arc<str>,
        /// The store's own words.
        answer: String,
    },
    /// There is no such bucket.
    #[error("{url}: the bucket does not exist ({answer}): check its name, the region and the endpoint")]
    NoBucket {
        /// The replica.
        url: Arc<str>,
        /// The store's own words.
        answer: String,
    },
    /// The bucket lies in another region.
    #[error("{url}: the bucket lies in another region ({answer}): set `region` to it")]
    Region {
        /// The replica.
        url: Arc<str>,
        /// The store's own words.
        answer: String,
    },
    /// No credentials were found.
    #[error(
        "{url}: no credentials: set LITESTREAM_ACCESS_KEY_ID and LITESTREAM_SECRET_ACCESS_KEY, or what the AWS tools use ({answer})"
    )]
    NoCredentials {
        /// The replica.
        url: Arc<str>,
        /// Why none were found.
        answer: String,
    },
    /// The store refuses the request for another reason.
    #[error("{url}: the store refused to {operation} {key}: {answer}")]
    Refused {
        /// The replica.
        url: Arc<str>,
        /// What was tried.
        operation: &'static str,
        /// The object or prefix.
        key: Arc<str>,
        /// The store's own words.
        answer: String,
    },
    /// One attempt failed in a way that may pass.
    #[error("{operation} {key}: {cause}")]
    Transient {
        /// What was tried.
        operation: &'static str,
        /// The object or prefix.
        key: Arc<str>,
        /// What happened.
        cause: String,
    },
    /// All attempts failed.
    #[error(
        "{url}: gave up to {operation} {key} after {attempts} attempts in {:.1} s ({cause}): check the endpoint and the network",
        elapsed.as_secs_f64()
    )]
    Unavailable {
        /// The replica.
        url: Arc<str>,
        /// What was tried.
        operation: &'static str,
        /// The object or prefix.
        key: Arc<str>,
        /// How often.
        attempts: u32,
        /// How long.
        elapsed: Duration,
        /// What happened last.
        cause: String,
    },
    /// The local file system failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why it failed.
        source: Arc<std::io::Error>,
    },
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
}

impl Error {
    /// What the caller can do.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Transient { .. } => Kind::Transient,
            Self::NotFound { .. } => Kind::NotFound,
            Self::AlreadyExists { .. } | Self::Changed { .. } => Kind::Conflict,
            _ => Kind::Permanent,
        }
    }

    /// All that [`Self::code`] can say.
    pub(crate) const CODES: [&'static str; 12] = [
        "not_found",
        "already_exists",
        "changed",
        "denied",
        "no_bucket",
        "region",
        "no_credentials",
        "refused",
        "transient",
        "unavailable",
        "io",
        "config",
    ];

    /// A word for it, which stays the same.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::AlreadyExists { .. } => "already_exists",
            Self::Changed { .. } => "changed",
            Self::Denied { .. } => "denied",
            Self::NoBucket { .. } => "no_bucket",
            Self::Region { .. } => "region",
            Self::NoCredentials { .. } => "no_credentials",
            Self::Refused { .. } => "refused",
            Self::Transient { .. } => "transient",
            Self::Unavailable { .. } => "unavailable",
            Self::Io { .. } => "io",
            Self::Config(_) => "config",
        }
    }

    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { operation, path: path.into(), source: Arc::new(source) }
    }
}
