//! Where one replica lies, as plain data, and the one parser for it.
//!
//! A replica URL (`s3://bucket/path?endpoint=…`), a replica section of the configuration file (`force-path-style: true`)
//! and the environment all end in [`ReplicaConfig::set`], so a setting has one spelling, one check and one message. This
//! module alone knows the keys, the URL forms of Litestream 0.5 and what each S3-like provider needs. It reads no files,
//! no environment (the caller passes a lookup) and opens no connection.
//!
//! Paths in URLs are taken apart by hand: URL libraries fold `/./` and `/../` in their own ways, and a replica written
//! under one spelling must be found under the same.

use std::{fmt, path::PathBuf, str::FromStr};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// The region for a custom endpoint when none is given; most such stores do not look at it.
pub const DEFAULT_REGION: &str = "us-east-1";
/// The size of an upload's parts when `part-size` is not given: 5 MiB, the least S3 takes.
pub const DEFAULT_PART_SIZE: u64 = 5 * 1024 * 1024;
/// Parts uploaded at once when `concurrency` is not given.
pub const DEFAULT_CONCURRENCY: usize = 5;
/// Parts uploaded at once to Cloudflare R2, which refuses more, when `concurrency` is not given.
pub const R2_CONCURRENCY: usize = 2;

const MIN_PART_SIZE: u64 = 5 * 1024 * 1024;
const MAX_PART_SIZE: u64 = 5 * 1024 * 1024 * 1024;
const SUPPORTED: &str = "`s3` and `file`";
const LATER: [&str; 7] = ["gs", "abs", "sftp", "webdav", "webdavs", "nats", "oss"];

/// Where one replica lies and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaConfig {
    /// The place.
    pub location: Location,
}

/// The kinds of places a replica can lie in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "there are few of them, and none is moved often")]
pub enum Location {
    /// S3 or a store that speaks its protocol.
    S3(S3Config),
    /// A directory.
    File(FileConfig),
}

/// A replica in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileConfig {
    /// The replica's directory, the one that holds `ltx/`. Relative paths are relative to the current directory.
    pub path: PathBuf,
}

/// A replica in S3 or a store that speaks its protocol.
///
/// The fields hold what was *stated*; the methods of the same topic ([`path_style`](Self::path_style),
/// [`concurrency`](Self::concurrency)…) answer with the provider's needs and the defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct S3Config {
    /// The bucket's name, or an access point's whole ARN.
    pub bucket: String,
    /// The key prefix, without a slash at either end and without empty, `.` and `..` parts. Empty: the bucket's root.
    pub path: String,
    /// The `path` key exactly as written, where it differs from [`path`](Self::path). See
    /// [`upstream_prefixes`](Self::upstream_prefixes).
    pub written_path: Option<String>,
    /// The region. Default: [`DEFAULT_REGION`] with a custom endpoint, else whatever the AWS configuration says.
    pub region: Option<String>,
    /// The store's address, `http://…` or `https://…`, without a slash at the end. Default: AWS.
    pub endpoint: Option<String>,
    /// Name the bucket in the path rather than in the host. Default: only with a custom endpoint.
    pub force_path_style: Option<bool>,
    /// Do not verify the server's TLS certificate. Default: verify.
    pub skip_verify: Option<bool>,
    /// Sign the payload rather than send `UNSIGNED-PAYLOAD`. Default: sign.
    pub sign_payload: Option<bool>,
    /// Send `Content-MD5` with batch deletes. Default: yes, but not to Tigris.
    pub require_content_md5: Option<bool>,
    /// Include `Accept-Encoding` in the signature. Default: yes, but not for Google Cloud Storage, which changes it.
    pub sign_accept_encoding: Option<bool>,
    /// The storage class of new objects. Default: the bucket's.
    pub storage_class: Option<String>,
    /// The least size of an upload's parts, in bytes. Default: [`DEFAULT_PART_SIZE`].
    pub part_size: Option<u64>,
    /// Parts uploaded at once. Default: [`DEFAULT_CONCURRENCY`], or [`R2_CONCURRENCY`].
    pub concurrency: Option<usize>,
    /// The algorithm of encryption with a customer's key (SSE-C). Only `AES256` exists, which is the default.
    pub sse_customer_algorithm: Option<String>,
    /// The customer's key, base64.
    pub sse_customer_key: Option<Secret>,
    /// The file that holds the customer's key, base64.
    pub sse_customer_key_path: Option<PathBuf>,
    /// The KMS key for encryption by the server (SSE-KMS).
    pub sse_kms_key_id: Option<String>,
    /// The access key. Default: the AWS default chain.
    pub access_key_id: Option<String>,
    /// The access key's secret.
    pub secret_access_key: Option<Secret>,
}

/// A text that never appears in `Debug` output, messages or URLs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// The stores that need something of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provider {
    /// Amazon S3: no endpoint, or one at `amazonaws.com`.
    Aws,
    /// Backblaze B2.
    Backblaze,
    /// Cloudflare R2.
    CloudflareR2,
    /// DigitalOcean Spaces.
    DigitalOcean,
    /// Filebase.
    Filebase,
    /// Google Cloud Storage through its XML interface.
    GoogleCloud,
    /// Hetzner Object Storage.
    Hetzner,
    /// Linode Object Storage.
    Linode,
    /// An endpoint with a port that is none of the others: MinIO, or one like it.
    Minio,
    /// Scaleway Object Storage.
    Scaleway,
    /// Supabase Storage.
    Supabase,
    /// Tigris.
    Tigris,
    /// Any other custom endpoint.
    Other,
}

/// What is wrong with a replica URL or setting. Messages never contain credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No replica of this type has such a key.
    #[error("unknown key `{key}` for {kind} replica: {}", hint(*.nearest))]
    UnknownKey {
        /// The key as given.
        key: String,
        /// The replica's type with its article, `an s3`.
        kind: &'static str,
        /// The known key that is spelt most like it.
        nearest: Option<&'static str>,
    },
    /// A key of another type of replica.
    #[error("`{key}` has no meaning for a {kind} replica: remove it, or use a replica of another type")]
    NotForType {
        /// The key.
        key: String,
        /// The replica's type.
        kind: &'static str,
    },
    /// A value that the key cannot take.
    #[error("invalid value for `{key}`: {reason}")]
    InvalidValue {
        /// The key.
        key: String,
        /// Why not, and what it should look like. Quotes the value unless it is a secret.
        reason: String,
    },
    /// A scheme or type that this program does not have.
    #[error("unsupported replica type `{scheme}`{}: supported are {SUPPORTED}", later(*.planned))]
    UnsupportedScheme {
        /// The scheme as given.
        scheme: String,
        /// A type that Litestream has and a later version of this program will have.
        planned: bool,
    },
    /// A URL that cannot be taken apart.
    #[error("invalid replica URL `{url}`: {reason}")]
    InvalidUrl {
        /// The URL, without user, password and query.
        url: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Two settings that exclude each other.
    #[error("`{first}` and `{second}` exclude each other: {reason}")]
    Conflict {
        /// The one.
        first: String,
        /// The other.
        second: String,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// A setting that is needed.
    #[error("no `{key}`: {reason}")]
    Missing {
        /// The key.
        key: &'static str,
        /// Why it is needed, and what to write.
        reason: &'static str,
    },
}

/// A problem with one of several keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {error}")]
pub struct KeyError {
    /// The key it is about; empty when it is about the replica as a whole.
    pub key: String,
    /// The problem.
    #[source]
    pub error: ConfigError,
}

fn hint(nearest: Option<&str>) -> String {
    match nearest {
        Some(key) => format!("did you mean `{key}`?"),
        None => "see the documentation of replicas for the known keys".into(),
    }
}

fn later(planned: bool) -> &'static str {
    if planned { " (a later version will have it)" } else { "" }
}

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl ReplicaConfig {
    /// Parses a replica URL, or a plain path, which is a directory.
    ///
    /// Query keys are those of [`set`](Self::set). The form of each scheme:
    /// - `s3://BUCKET/PATH`, with the bucket also as `BUCKET.s3.REGION.amazonaws.com`,
    ///   `BUCKET.REGION.digitaloceanspaces.com`, `BUCKET.s3.REGION.backblazeb2.com`, `BUCKET.s3.filebase.com`,
    ///   `BUCKET.s3.REGION.scw.cloud`, `BUCKET.REGION.linodeobjects.com`, `BUCKET.localhost:PORT` or an access point's ARN;
    /// - `file:///ABSOLUTE/PATH`.
    ///
    /// A query key `path` may repeat the path in another spelling, which then counts as the one that was written.
    ///
    /// # Errors
    /// What is wrong with the URL, without repeating credentials.
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        let config = parse_url(url)?;
        config.validate()?;
        Ok(config)
    }

    /// Builds a replica from the keys of a configuration section: `type`, `url`, `path`, `bucket` and all that
    /// [`set`](Self::set) takes. Keys override the URL's query.
    ///
    /// # Errors
    /// The first problem; [`collect`](Self::collect) reports all.
    pub fn from_keys<'a>(keys: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ConfigError> {
        let keys: Vec<_> = keys.into_iter().collect();
        Self::collect(&keys, &[]).map_err(|mut problems| problems.swap_remove(0).error)
    }

    /// As [`from_keys`](Self::from_keys), but keys in `defaults` fill in what neither the keys nor the URL say (and are
    /// left out where they do not fit the replica's type), and all problems are reported, each with its key.
    ///
    /// # Errors
    /// All problems, never none.
    pub fn collect(keys: &[(&str, &str)], defaults: &[(&str, &str)]) -> Result<Self, Vec<KeyError>> {
        let mut problems = Vec::new();
        let config = assemble(keys, defaults, &mut problems);
        match config {
            Some(config) if problems.is_empty() => match config.validate() {
                Ok(()) => Ok(config),
                Err(error) => Err(vec![KeyError { key: String::new(), error }]),
            },
            _ => Err(problems),
        }
    }

    /// Sets one key, in the spelling of the configuration file (`force-path-style`) or of a URL (`forcePathStyle`).
    ///
    /// # Errors
    /// An unknown key (with the nearest known one), a key of another type, a value that the key cannot take.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        match &mut self.location {
            Location::S3(config) => match s3_key(key) {
                Some(known) => (known.set)(config, value).map_err(|reason| invalid(known.name, reason)),
                None => Err(unknown(key, "an s3")),
            },
            Location::File(config) => match s3_key(key) {
                Some(known) if known.name == "path" => {
                    let path = non_empty(value).map_err(|reason| invalid("path", reason))?;
                    config.path = PathBuf::from(path);
                    Ok(())
                }
                Some(known) => Err(ConfigError::NotForType { key: known.name.into(), kind: "file" }),
                None => Err(unknown(key, "a file")),
            },
        }
    }

    /// Sets one key unless it is set already or does not belong to this type of replica. Says whether it was set.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_default(&mut self, key: &str, value: &str) -> Result<bool, ConfigError> {
        match (&self.location, s3_key(key)) {
            (Location::S3(config), Some(known)) if (known.is_set)(config) => Ok(false),
            (Location::File(_), Some(_)) => Ok(false),
            _ => self.set(key, value).map(|()| true),
        }
    }

    /// Fills in from the environment what is not stated: `LITESTREAM_ACCESS_KEY_ID` and `LITESTREAM_SECRET_ACCESS_KEY`
    /// (both or none), `LITESTREAM_S3_ENDPOINT`, `LITESTREAM_S3_REGION`. The `AWS_…` variables are left to the AWS
    /// default chain. Empty variables count as not set.
    ///
    /// # Errors
    /// A variable with a value that its key cannot take, or only one of the two credentials. The message names the
    /// variable.
    pub fn apply_env(&mut self, lookup: impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        let Location::S3(config) = &mut self.location else { return Ok(()) };
        let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
        if config.access_key_id.is_none() && config.secret_access_key.is_none() {
            match (lookup("LITESTREAM_ACCESS_KEY_ID"), lookup("LITESTREAM_SECRET_ACCESS_KEY")) {
                (Some(id), Some(secret)) => {
                    config.access_key_id = Some(id);
                    config.secret_access_key = Some(Secret(secret));
                }
                (None, None) => {}
                (Some(_), None) => {
                    return Err(ConfigError::Missing {
                        key: "LITESTREAM_SECRET_ACCESS_KEY",
                        reason: "the environment has only LITESTREAM_ACCESS_KEY_ID: set both or none",
                    });
                }
                (None, Some(_)) => {
                    return Err(ConfigError::Missing {
                        key: "LITESTREAM_ACCESS_KEY_ID",
                        reason: "the environment has only LITESTREAM_SECRET_ACCESS_KEY: set both or none",
                    });
                }
            }
        }
        if config.endpoint.is_none()
            && !config.is_access_point()
            && let Some(value) = lookup("LITESTREAM_S3_ENDPOINT")
        {
            config.endpoint = Some(endpoint(&value).map_err(|reason| invalid("LITESTREAM_S3_ENDPOINT", reason))?);
        }
        if config.region.is_none() {
            config.region = lookup("LITESTREAM_S3_REGION");
        }
        Ok(())
    }

    /// Checks what no single key can: what is missing and what excludes what.
    ///
    /// # Errors
    /// The first such problem.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match &self.location {
            Location::S3(config) => config.validate(),
            Location::File(config) if config.path.as_os_str().is_empty() => {
                Err(ConfigError::Missing { key: "path", reason: "a file replica needs the directory it lies in" })
            }
            Location::File(_) => Ok(()),
        }
    }

    /// The type as the configuration file and the metrics name it: `s3` or `file`.
    pub fn type_name(&self) -> &'static str {
        match &self.location {
            Location::S3(_) => "s3",
            Location::File(_) => "file",
        }
    }

    /// The canonical URL of the place: all that says *where*, no credentials, no tuning. [`from_url`](Self::from_url)
    /// finds the same place from it (for a relative directory only from the same current directory).
    pub fn url(&self) -> String {
        match &self.location {
            Location::S3(config) => config.url(),
            Location::File(config) => {
                let path = config.path.to_string_lossy();
                if config.path.is_absolute() { format!("file://{}", escape(&path, PATH)) } else { path.into_owned() }
            }
        }
    }

    /// The replica of a database found below a `dir:` entry: this replica's path and then the database's path relative to
    /// that directory, as Litestream does.
    pub fn join(&self, relative: &str) -> Self {
        let mut joined = self.clone();
        let relative = clean(relative);
        match &mut joined.location {
            Location::S3(config) => {
                config.path = clean(&format!("{}/{relative}", config.path));
                // Litestream joins the written path and the relative one, and joining cleans all but a leading slash.
                config.written_path = config
                    .written_path
                    .take()
                    .filter(|written| written.starts_with('/'))
                    .map(|_| format!("/{}", config.path));
            }
            Location::File(config) => config.path.push(relative),
        }
        joined
    }
}

impl FromStr for ReplicaConfig {
    type Err = ConfigError;

    fn from_str(url: &str) -> Result<Self, ConfigError> {
        Self::from_url(url)
    }
}

impl fmt::Display for ReplicaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())
    }
}

impl S3Config {
    /// The store behind the endpoint.
    pub fn provider(&self) -> Provider {
        match &self.endpoint {
            Some(endpoint) => provider(endpoint),
            None => Provider::Aws,
        }
    }

    /// Whether the bucket is named in the path rather than in the host.
    pub fn path_style(&self) -> bool {
        use Provider::{Backblaze, Filebase, Minio, Supabase};
        self.force_path_style.unwrap_or_else(|| {
            self.endpoint.is_some() || matches!(self.provider(), Backblaze | Filebase | Minio | Supabase)
        })
    }

    /// The region to sign for; none means the one that the AWS configuration or the bucket itself says.
    pub fn effective_region(&self) -> Option<&str> {
        self.region.as_deref().or(self.endpoint.as_ref().map(|_| DEFAULT_REGION))
    }

    /// Whether the server's TLS certificate goes unverified.
    pub fn skip_verify(&self) -> bool {
        self.skip_verify.unwrap_or(false)
    }

    /// Whether payloads are signed.
    pub fn sign_payload(&self) -> bool {
        self.sign_payload.unwrap_or(true)
    }

    /// Whether batch deletes carry `Content-MD5`.
    pub fn content_md5(&self) -> bool {
        self.require_content_md5.unwrap_or(self.provider() != Provider::Tigris)
    }

    /// Whether `Accept-Encoding` is part of the signature.
    pub fn sign_accept_encoding(&self) -> bool {
        self.sign_accept_encoding.unwrap_or(self.provider() != Provider::GoogleCloud)
    }

    /// Whether requests carry `X-Tigris-Consistent: true`, without which Tigris may answer from a stale copy.
    pub fn tigris_consistent(&self) -> bool {
        self.provider() == Provider::Tigris
    }

    /// Parts uploaded at once.
    pub fn concurrency(&self) -> usize {
        self.concurrency.unwrap_or(match self.provider() {
            Provider::CloudflareR2 => R2_CONCURRENCY,
            _ => DEFAULT_CONCURRENCY,
        })
    }

    /// The least size of an upload's parts, in bytes.
    pub fn part_size(&self) -> u64 {
        self.part_size.unwrap_or(DEFAULT_PART_SIZE)
    }

    /// The algorithm of SSE-C, where a customer's key is given.
    pub fn sse_customer_algorithm(&self) -> Option<&str> {
        let given = self.sse_customer_key.is_some() || self.sse_customer_key_path.is_some();
        given.then(|| self.sse_customer_algorithm.as_deref().unwrap_or("AES256"))
    }

    /// Whether the bucket is an access point's ARN.
    pub fn is_access_point(&self) -> bool {
        self.bucket.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("arn:"))
    }

    /// The prefix of all our keys, with the slash at its end where there is one: `db/` or nothing.
    pub fn prefix(&self) -> String {
        if self.path.is_empty() { String::new() } else { format!("{}/", self.path) }
    }

    /// Other prefixes (to be followed by `0000/…`) under which Litestream itself may have put this replica's files:
    /// it writes `./` for `s3://bucket`, `/` for `s3://bucket/`, and takes the `path` key as it is written, so that
    /// `/db` gives `/db/` and `db/` gives `db//`. Readers look here too; we never write here.
    pub fn upstream_prefixes(&self) -> Vec<String> {
        let mut prefixes = Vec::new();
        if self.path.is_empty() {
            prefixes.extend(["./".into(), "/".into()]);
        }
        if let Some(written) = &self.written_path {
            prefixes.push(format!("{written}/"));
        }
        prefixes.dedup();
        prefixes
    }

    /// See [`ReplicaConfig::url`].
    pub(crate) fn url(&self) -> String {
        let mut url = format!("s3://{}", self.bucket);
        if !self.path.is_empty() {
            url.push('/');
            url.push_str(&escape(&self.path, PATH));
        }
        let mut separator = '?';
        let mut push = |key: &str, value: &str| {
            url.push(separator);
            separator = '&';
            url.push_str(&format!("{key}={}", escape(value, QUERY)));
        };
        if let Some(endpoint) = &self.endpoint {
            push("endpoint", endpoint);
        }
        if let Some(region) = self.region.as_deref().filter(|region| Some(*region) != arn_region(&self.bucket)) {
            push("region", region);
        }
        if let Some(force) = self.force_path_style {
            push("forcePathStyle", if force { "true" } else { "false" });
        }
        url
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if self.bucket.is_empty() {
            return Err(ConfigError::Missing {
                key: "bucket",
                reason: "an s3 replica needs one: write `bucket:` or a URL like s3://BUCKET/PATH",
            });
        }
        match (&self.access_key_id, &self.secret_access_key) {
            (Some(_), None) => {
                return Err(ConfigError::Missing {
                    key: "secret-access-key",
                    reason: "`access-key-id` is given: give both or none",
                });
            }
            (None, Some(_)) => {
                return Err(ConfigError::Missing {
                    key: "access-key-id",
                    reason: "`secret-access-key` is given: give both or none",
                });
            }
            _ => {}
        }
        let conflict = |first: &str, second: &str, reason| {
            Err(ConfigError::Conflict { first: first.into(), second: second.into(), reason })
        };
        if self.sse_customer_key.is_some() && self.sse_customer_key_path.is_some() {
            return conflict("sse-customer-key", "sse-customer-key-path", "give the key itself or the file it lies in");
        }
        if self.sse_customer_algorithm().is_some() && self.sse_kms_key_id.is_some() {
            return conflict("sse-customer-key", "sse-kms-key-id", "an object is encrypted with one key: choose one");
        }
        if self.sse_customer_algorithm.is_some() && self.sse_customer_algorithm().is_none() {
            return Err(ConfigError::Missing {
                key: "sse-customer-key",
                reason: "`sse-customer-algorithm` is given: give the key or `sse-customer-key-path` too",
            });
        }
        if self.is_access_point() && self.endpoint.is_some() {
            return conflict("endpoint", "bucket", "an access point's ARN says where it is: remove the endpoint");
        }
        Ok(())
    }
}

/// The names of all keys of a replica's place, as the configuration file spells them; `type` and `url` included.
pub fn key_names() -> impl Iterator<Item = &'static str> {
    ["type", "url"].into_iter().chain(S3_KEYS.iter().map(|key| key.name))
}

/// Whether a replica of some type has this key, in either spelling.
pub fn is_known_key(key: &str) -> bool {
    key_names().any(|name| fold(name) == fold(key))
}

/// The candidate that is spelt most like `key`, if one is near enough to be what was meant.
pub fn nearest<'a>(key: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = fold(key);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&folded, &fold(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().min(key.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Parses a boolean as YAML 1.1, Go and URLs write it.
///
/// # Errors
/// Says which forms there are.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "t" | "y" | "1" => Ok(true),
        "false" | "no" | "off" | "f" | "n" | "0" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false")),
    }
}

/// Parses a size in bytes: `64MiB`, `5MB`, `1.5G`, or a plain number of bytes. `K`, `M`, `G`… are powers of 1000, `Ki`,
/// `Mi`, `Gi`… of 1024, as in Litestream.
///
/// # Errors
/// Says what a size looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: write a number of bytes, or one with a unit, like 64MiB or 5MB");
    let trimmed = text.trim();
    // The crate would take these as floating-point numbers.
    if !trimmed.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(wrong());
    }
    if trimmed.bytes().all(|b| b.is_ascii_digit()) {
        return trimmed.parse().map_err(|_| format!("`{text}` bytes are more than can be counted"));
    }
    let size = trimmed.parse::<bytesize::ByteSize>().map_err(|_| wrong())?;
    // An overflow saturates in the crate.
    if size.0 == u64::MAX { Err(format!("`{text}` is more than can be counted")) } else { Ok(size.0) }
}

/// One key of an S3 replica. The path is the file replica's only key.
struct S3Key {
    name: &'static str,
    is_set: fn(&S3Config) -> bool,
    set: fn(&mut S3Config, &str) -> Result<(), String>,
}

const fn key(
    name: &'static str,
    is_set: fn(&S3Config) -> bool,
    set: fn(&mut S3Config, &str) -> Result<(), String>,
) -> S3Key {
    S3Key { name, is_set, set }
}

/// A key whose field takes what `$parse` makes of the value.
macro_rules! optional {
    ($name:literal, $field:ident, $parse:expr) => {
        key(
            $name,
            |c| c.$field.is_some(),
            |c, v| {
                c.$field = Some($parse(v)?);
                Ok(())
            },
        )
    };
}

static S3_KEYS: [S3Key; 18] = [
    key("bucket", |c| !c.bucket.is_empty(), set_bucket),
    key("path", |c| !c.path.is_empty() || c.written_path.is_some(), set_path),
    optional!("region", region, name),
    optional!("endpoint", endpoint, endpoint),
    optional!("force-path-style", force_path_style, parse_bool),
    optional!("skip-verify", skip_verify, parse_bool),
    optional!("sign-payload", sign_payload, parse_bool),
    optional!("require-content-md5", require_content_md5, parse_bool),
    optional!("sign-accept-encoding", sign_accept_encoding, parse_bool),
    optional!("storage-class", storage_class, name),
    optional!("part-size", part_size, part_size),
    optional!("concurrency", concurrency, concurrency),
    optional!("sse-customer-algorithm", sse_customer_algorithm, algorithm),
    optional!("sse-customer-key", sse_customer_key, secret),
    optional!("sse-customer-key-path", sse_customer_key_path, |v| non_empty(v).map(PathBuf::from)),
    optional!("sse-kms-key-id", sse_kms_key_id, non_empty),
    optional!("access-key-id", access_key_id, name),
    optional!("secret-access-key", secret_access_key, secret),
];

fn s3_key(key: &str) -> Option<&'static S3Key> {
    let folded = fold(key);
    S3_KEYS.iter().find(|known| fold(known.name) == folded)
}

/// `force-path-style`, `forcePathStyle` and `FORCE_PATH_STYLE` are one key.
fn fold(key: &str) -> String {
    key.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

fn invalid(key: &str, reason: String) -> ConfigError {
    ConfigError::InvalidValue { key: key.into(), reason }
}

fn unknown(key: &str, kind: &'static str) -> ConfigError {
    let names = S3_KEYS.iter().map(|known| known.name);
    let nearest = if kind == "a file" { nearest(key, ["path"]) } else { nearest(key, names) };
    ConfigError::UnknownKey { key: key.into(), kind, nearest }
}

fn non_empty(value: &str) -> Result<String, String> {
    if value.is_empty() { Err("it is empty".into()) } else { Ok(value.into()) }
}

/// A name that ends up in a header or host: no spaces, no control characters.
fn name(value: &str) -> Result<String, String> {
    let value = non_empty(value.trim())?;
    if value.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("it contains white space".into());
    }
    Ok(value)
}

fn secret(value: &str) -> Result<Secret, String> {
    name(value).map(Secret)
}

fn algorithm(value: &str) -> Result<String, String> {
    match value {
        "AES256" => Ok(value.into()),
        _ => Err(format!("`{value}` is not an algorithm of SSE-C: only AES256 is")),
    }
}

fn part_size(value: &str) -> Result<u64, String> {
    let size = parse_size(value)?;
    if (MIN_PART_SIZE..=MAX_PART_SIZE).contains(&size) {
        Ok(size)
    } else {
        Err(format!("`{value}` is outside what S3 takes: 5MiB to 5GiB"))
    }
}

fn concurrency(value: &str) -> Result<usize, String> {
    match value.trim().parse() {
        Ok(0) | Err(_) => Err(format!("`{value}` is not a number of parts: write 1 or more")),
        Ok(number) => Ok(number),
    }
}

fn set_bucket(config: &mut S3Config, value: &str) -> Result<(), String> {
    let bucket = name(value)?;
    if bucket.contains("://") {
        return Err(format!("`{bucket}` is a URL: write it as `url`"));
    }
    let access_point = bucket.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("arn:"));
    if access_point {
        if config.region.is_none() {
            config.region = arn_region(&bucket).map(str::to_owned);
        }
    } else if bucket.contains(['/', '?', '#', '@', ':', '%']) {
        return Err(format!("`{bucket}` is not a bucket's name: prefixes belong into `path`"));
    }
    config.bucket = bucket;
    Ok(())
}

fn set_path(config: &mut S3Config, value: &str) -> Result<(), String> {
    if is_url(value) {
        return Err(format!("`{}` is a URL: write it as `url`", redact(value)));
    }
    config.path = clean(value);
    config.written_path = (config.path != value && !value.is_empty()).then(|| value.to_owned());
    Ok(())
}

/// An endpoint with its scheme and without a slash at its end. Without a scheme, hosts that can only be near (loopback,
/// private addresses, one-word names, `.local`) get `http`, all others `https`.
fn endpoint(value: &str) -> Result<String, String> {
    let value = value.trim().trim_end_matches('/');
    let (scheme, rest) = match value.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => (if is_near(host_of(value)) { "http" } else { "https" }.to_owned(), value),
    };
    if rest.contains('@') {
        return Err("it contains a user or password: give credentials as access-key-id and secret-access-key".into());
    }
    if scheme != "http" && scheme != "https" {
        return Err(format!("`{value}` does not begin with http:// or https://"));
    }
    let port_is_number = |port: &str| !port.is_empty() && port.parse::<u16>().is_ok();
    let authority = rest.split('/').next().unwrap_or_default();
    let host = host_of(rest);
    let port_fits = match authority.rsplit_once(':') {
        Some((_, port)) if !authority.ends_with(']') => port_is_number(port),
        _ => true,
    };
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '\\');
    if host.is_empty() || !port_fits || rest.contains(odd) {
        return Err(format!("`{value}` is not the address of a store: write it like https://HOST or http://HOST:PORT"));
    }
    Ok(format!("{scheme}://{rest}"))
}

/// The host of `HOST[:PORT][/PATH]`, without the brackets of an IPv6 address.
fn host_of(rest: &str) -> &str {
    let authority = rest.split('/').next().unwrap_or_default();
    if let Some(inner) = authority.strip_prefix('[') {
        return inner.split(']').next().unwrap_or_default();
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

fn is_near(host: &str) -> bool {
    if let Ok(address) = host.parse::<std::net::IpAddr>() {
        return match address {
            std::net::IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
            std::net::IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
        };
    }
    let host = host.to_ascii_lowercase();
    !host.contains('.') || host.ends_with(".localhost") || host.ends_with(".local") || host.ends_with(".internal")
}

fn provider(endpoint: &str) -> Provider {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).to_ascii_lowercase();
    let host = host_of(&rest);
    let within = |domain: &str| host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    let domains = [
        ("amazonaws.com", Provider::Aws),
        ("amazonaws.com.cn", Provider::Aws),
        ("backblazeb2.com", Provider::Backblaze),
        ("r2.cloudflarestorage.com", Provider::CloudflareR2),
        ("digitaloceanspaces.com", Provider::DigitalOcean),
        ("filebase.com", Provider::Filebase),
        ("storage.googleapis.com", Provider::GoogleCloud),
        ("your-objectstorage.com", Provider::Hetzner),
        ("linodeobjects.com", Provider::Linode),
        ("scw.cloud", Provider::Scaleway),
        ("supabase.co", Provider::Supabase),
        ("storage.tigris.dev", Provider::Tigris),
        ("storage.dev", Provider::Tigris),
    ];
    if let Some((_, provider)) = domains.into_iter().find(|(domain, _)| within(domain)) {
        return provider;
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.len() > host.len() && !authority.ends_with(']') { Provider::Minio } else { Provider::Other }
}

/// Whether the text has a scheme, as in `s3://…`.
pub fn is_url(text: &str) -> bool {
    scheme_of(text).is_some()
}

/// The scheme and what follows `://`. `file:/path`, too, is a URL.
fn scheme_of(text: &str) -> Option<(&str, &str)> {
    if let Some(rest) = text.get(..5).filter(|start| start.eq_ignore_ascii_case("file:")).map(|_| &text[5..]) {
        return Some((&text[..4], rest));
    }
    let (scheme, rest) = text.split_once("://")?;
    let mut chars = scheme.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphanumeric());
    (first && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_'))).then_some((scheme, rest))
}

/// The URL without user, password and query, for messages.
fn redact(url: &str) -> String {
    let (url, query) = url.split_once('?').map_or((url, ""), |(url, _)| (url, "?…"));
    let Some((scheme, rest)) = url.split_once("://") else { return format!("{url}{query}") };
    let end = rest.find(['/', '#']).unwrap_or(rest.len());
    let host = rest[..end].rsplit_once('@').map_or(&rest[..end], |(_, host)| host);
    format!("{scheme}://{host}{}{query}", &rest[end..])
}

fn parse_url(url: &str) -> Result<ReplicaConfig, ConfigError> {
    if url.is_empty() {
        return Err(ConfigError::Missing { key: "url", reason: "write one like s3://BUCKET/PATH, or a directory" });
    }
    let Some((scheme, rest)) = scheme_of(url) else {
        return Ok(ReplicaConfig { location: Location::File(FileConfig { path: PathBuf::from(url) }) });
    };
    let wrong = |reason: String| ConfigError::InvalidUrl { url: redact(url), reason };
    if rest.contains('#') {
        return Err(wrong("it contains a `#`: write %23 if the path has one".into()));
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut config = match scheme.to_ascii_lowercase().as_str() {
        "s3" => ReplicaConfig { location: Location::S3(parse_s3(place).map_err(wrong)?) },
        "file" => ReplicaConfig { location: Location::File(parse_file(place).map_err(wrong)?) },
        _ => return Err(unsupported(scheme)),
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| decode(&text.replace('+', " ")).map_err(wrong);
        let (key, value) = (decode(key)?, decode(value)?);
        // The same path as a configuration file spells it; see `S3Config::upstream_prefixes`.
        let spelling = fold(&key) == "path"
            && matches!(&config.location, Location::S3(s3) if !value.is_empty() && s3.path == clean(&value));
        if !spelling && matches!(fold(&key).as_str(), "bucket" | "path") {
            return Err(wrong(format!("the {key} stands before the `?`, not in the query")));
        }
        config.set(&key, &value)?;
    }
    Ok(config)
}

fn unsupported(scheme: &str) -> ConfigError {
    let scheme = scheme.to_ascii_lowercase();
    let planned = LATER.contains(&scheme.as_str());
    ConfigError::UnsupportedScheme { scheme, planned }
}

/// `HOST/PATH` after `s3://`.
fn parse_s3(place: &str) -> Result<S3Config, String> {
    let mut config = S3Config::default();
    let path = if place.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("arn:")) {
        let (arn, path) = split_arn(place)?;
        config.region = arn_region(arn).map(str::to_owned);
        config.bucket = arn.into();
        path
    } else {
        let (host, path) = place.split_once('/').unwrap_or((place, ""));
        if host.contains('@') {
            return Err("it contains a user or password: credentials belong into the environment \
                        (LITESTREAM_ACCESS_KEY_ID, LITESTREAM_SECRET_ACCESS_KEY) or the configuration file"
                .into());
        }
        parse_host(host, &mut config)?;
        path
    };
    config.path = clean(&decode(path)?);
    Ok(config)
}

/// The bucket and, where the host says them, region and endpoint.
fn parse_host(host: &str, config: &mut S3Config) -> Result<(), String> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(format!("`{host}` is not a bucket or a host with a port"));
    }
    // `BUCKET.s3.REGION.domain` and the like: everything before the last such suffix is the bucket, dots included.
    let split = |domain: &str| name.strip_suffix(domain).map(|rest| rest.trim_end_matches('.').to_owned());
    let last = |rest: &str| match rest.rsplit_once('.') {
        Some((bucket, region)) => (bucket.to_owned(), region.to_owned()),
        None => (String::new(), rest.to_owned()),
    };
    let at = |host: String, scheme: &str| match port {
        Some(port) => Some(format!("{scheme}://{host}:{port}")),
        None => Some(format!("{scheme}://{host}")),
    };
    if let Some(rest) = split(".amazonaws.com").or_else(|| split(".amazonaws.com.cn")) {
        let (bucket, region) = aws_host(&rest).ok_or_else(|| format!("`{host}` does not name a bucket of AWS"))?;
        (config.bucket, config.region) = (bucket, region);
    } else if let Some(rest) = split(".backblazeb2.com") {
        let (bucket, region) = last(&rest);
        config.bucket = strip_s3(&bucket).ok_or_else(|| format!("`{host}` is not BUCKET.s3.REGION.backblazeb2.com"))?;
        config.endpoint = at(format!("s3.{region}.backblazeb2.com"), "https");
        config.region = Some(region);
    } else if let Some(rest) = split(".scw.cloud") {
        let (bucket, region) = last(&rest);
        config.bucket = strip_s3(&bucket).ok_or_else(|| format!("`{host}` is not BUCKET.s3.REGION.scw.cloud"))?;
        config.endpoint = at(format!("s3.{region}.scw.cloud"), "https");
        config.region = Some(region);
    } else if let Some(rest) = split(".filebase.com") {
        config.bucket = strip_s3(&rest).ok_or_else(|| format!("`{host}` is not BUCKET.s3.filebase.com"))?;
        config.endpoint = at("s3.filebase.com".into(), "https");
    } else if let Some(rest) = split(".digitaloceanspaces.com") {
        let (bucket, region) = last(&rest);
        config.bucket = bucket;
        config.endpoint = at(format!("{region}.digitaloceanspaces.com"), "https");
        config.region = Some(region);
    } else if let Some(rest) = split(".linodeobjects.com") {
        let (bucket, region) = last(&rest);
        config.bucket = bucket;
        config.endpoint = at(format!("{region}.linodeobjects.com"), "https");
        config.region = Some(region);
    } else if name == "localhost" {
        return Err("it names no bucket: write s3://BUCKET/PATH?endpoint=http://localhost:PORT".into());
    } else if let Some(bucket) = split(".localhost").filter(|bucket| !bucket.is_empty()) {
        config.bucket = bucket;
        config.endpoint = at("localhost".into(), "http");
        config.region = Some(DEFAULT_REGION.into());
    } else if port.is_some() {
        return Err(format!("`{host}` has a port, a bucket has none: write s3://BUCKET/PATH?endpoint=http://{host}"));
    } else {
        config.bucket = decode(name)?;
    }
    if config.bucket.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '%' | '\\')) {
        return Err(format!("`{name}` is not a bucket's name"));
    }
    if config.bucket.is_empty() {
        return Err("it names no bucket: write s3://BUCKET/PATH".into());
    }
    Ok(())
}

/// `BUCKET.s3` without its `.s3`; a bare `s3` is no bucket.
fn strip_s3(rest: &str) -> Option<String> {
    rest.strip_suffix(".s3").filter(|bucket| !bucket.is_empty()).map(str::to_owned)
}

/// The bucket and region of `BUCKET.s3[.dualstack][.REGION]` or `BUCKET.s3-REGION`.
fn aws_host(rest: &str) -> Option<(String, Option<String>)> {
    if let Some(bucket) = strip_s3(rest) {
        return Some((bucket, None));
    }
    let (before, region) = rest.rsplit_once('.')?;
    if let Some(region) = region.strip_prefix("s3-") {
        return (!before.is_empty()).then(|| (before.into(), Some(region.into())));
    }
    let bucket = strip_s3(before.strip_suffix(".dualstack").unwrap_or(before))?;
    Some((bucket, Some(region.into())))
}

/// An access point's ARN and the path behind it.
fn split_arn(place: &str) -> Result<(&str, &str), String> {
    let marker = ":accesspoint/";
    let start = place.to_ascii_lowercase().find(marker).map(|at| at + marker.len());
    let Some(start) = start.filter(|start| place[*start..].chars().next().is_some_and(|c| c != '/')) else {
        return Err(
            "the ARN is not an access point's: write s3://arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/PATH".into()
        );
    };
    let end = place[start..].find('/').map_or(place.len(), |at| start + at);
    Ok((&place[..end], place[end..].trim_start_matches('/')))
}

fn arn_region(arn: &str) -> Option<&str> {
    if !arn.get(..4)?.eq_ignore_ascii_case("arn:") {
        return None;
    }
    arn.split(':').nth(3).filter(|region| !region.is_empty())
}

/// What follows `file:`, or `file://`.
fn parse_file(place: &str) -> Result<FileConfig, String> {
    let path = match place.strip_prefix("//") {
        // Litestream takes `file://rel/db` for `/rel/db`: nobody means that, so it is refused.
        Some(rest) => match rest.split_once('/') {
            Some(("" | "localhost", _)) => &rest[rest.find('/').unwrap_or(0)..],
            _ => {
                return Err(format!(
                    "`{}` stands where the host belongs: write file:///ABSOLUTE/PATH, or a plain path",
                    rest.split('/').next().unwrap_or_default()
                ));
            }
        },
        None => place,
    };
    let path = decode(path)?;
    if path.contains('\0') {
        return Err("the path contains a zero byte".into());
    }
    if !path.starts_with('/') {
        return Err("it names no absolute path: write file:///ABSOLUTE/PATH, or a plain path".into());
    }
    let cleaned = clean(&path);
    Ok(FileConfig { path: PathBuf::from(format!("/{cleaned}")) })
}

/// A path without empty and `.` parts and with `..` resolved, without a slash at either end.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

/// Decodes percent signs; one that does not begin an escape is an error rather than itself.
fn decode(text: &str) -> Result<String, String> {
    let bytes = text.as_bytes();
    let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let whole = bytes.iter().enumerate().all(|(at, byte)| *byte != b'%' || (hex(at + 1) && hex(at + 2)));
    if !whole {
        return Err("a `%` is not followed by two hex digits: write %25 for the sign itself".into());
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "an escaped part is not UTF-8".to_owned())?;
    Ok(decoded.into_owned())
}

const PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#').add(b'"').add(b'<').add(b'>').add(b'`');
const QUERY: &AsciiSet = &PATH.add(b'&').add(b'+').add(b'=');

fn escape(text: &str, set: &'static AsciiSet) -> String {
    utf8_percent_encode(text, set).to_string()
}

/// See [`ReplicaConfig::collect`].
fn assemble(keys: &[(&str, &str)], defaults: &[(&str, &str)], problems: &mut Vec<KeyError>) -> Option<ReplicaConfig> {
    let get =
        |name: &str| keys.iter().find(|(key, value)| fold(key) == name && !value.is_empty()).map(|(_, value)| *value);
    let mut fail = |key: &str, error| problems.push(KeyError { key: key.into(), error });
    let conflict = |first: &str, second: &str, reason| ConfigError::Conflict {
        first: first.into(),
        second: second.into(),
        reason,
    };
    let kind = get("type").map(str::to_ascii_lowercase);
    let url = get("url");
    let mut config = match (url, kind.as_deref()) {
        (Some(url), kind) => match parse_url(url) {
            Ok(config) => {
                if kind.is_some_and(|kind| kind != config.type_name()) {
                    fail("type", conflict("type", "url", "the URL's scheme says another type: remove `type`"));
                }
                for part in ["path", "bucket"] {
                    if get(part).is_some() {
                        fail(part, conflict("url", part, "the URL says it already: write it in one place"));
                    }
                }
                Some(config)
            }
            Err(error) => {
                fail("url", error);
                None
            }
        },
        (None, Some("s3")) => Some(ReplicaConfig { location: Location::S3(S3Config::default()) }),
        (None, Some("file")) => Some(ReplicaConfig { location: Location::File(FileConfig::default()) }),
        (None, Some(other)) => {
            fail("type", unsupported(other));
            None
        }
        // Litestream takes a section with neither for a directory, even one with a bucket.
        (None, None) if get("bucket").is_some() => Some(ReplicaConfig { location: Location::S3(S3Config::default()) }),
        (None, None) => Some(ReplicaConfig { location: Location::File(FileConfig::default()) }),
    };
    if let (Some(path), Some(Location::File(_))) = (get("path"), config.as_ref().map(|config| &config.location))
        && is_url(path)
    {
        fail("path", invalid("path", format!("`{}` is a URL: write it as `url`", redact(path))));
    }
    // Without a place, the other keys are still checked: against S3, which has them all.
    let mut check = ReplicaConfig { location: Location::S3(S3Config::default()) };
    let target = config.as_mut().unwrap_or(&mut check);
    for (key, value) in keys.iter().filter(|(_, value)| !value.is_empty()) {
        let skip = matches!(fold(key).as_str(), "type" | "url")
            || (url.is_some() && matches!(fold(key).as_str(), "path" | "bucket"));
        if !skip && let Err(error) = target.set(key, value) {
            fail(key, error);
        }
    }
    for (key, value) in defaults.iter().filter(|(_, value)| !value.is_empty()) {
        if let Err(error) = target.set_default(key, value) {
            fail(key, error);
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(url: &str) -> S3Config {
        match ReplicaConfig::from_url(url).unwrap().location {
            Location::S3(config) => config,
            other => panic!("{url}: {other:?}"),
        }
    }

    fn file(url: &str) -> String {
        match ReplicaConfig::from_url(url).unwrap().location {
            Location::File(config) => config.path.to_str().unwrap().to_owned(),
            other => panic!("{url}: {other:?}"),
        }
    }

    fn error(url: &str) -> String {
        ReplicaConfig::from_url(url).unwrap_err().to_string()
    }

    fn keys(keys: &[(&str, &str)]) -> S3Config {
        match ReplicaConfig::collect(keys, &[]).unwrap().location {
            Location::S3(config) => config,
            other => panic!("{other:?}"),
        }
    }

    fn problems(keys: &[(&str, &str)]) -> Vec<String> {
        ReplicaConfig::collect(keys, &[]).unwrap_err().into_iter().map(|problem| problem.to_string()).collect()
    }

    /// What real Litestream 0.5.17 asks a server for, given these URLs.
    #[test]
    fn paths_fold_as_in_litestream() {
        for (url, path) in [
            ("s3://bkt", ""),
            ("s3://bkt/", ""),
            ("s3://bkt/.", ""),
            ("s3://bkt/a//b", "a/b"),
            ("s3://bkt/a/../b/", "b"),
            ("s3://bkt/../../b", "b"),
            ("s3://bkt/a/./b", "a/b"),
            ("s3://bkt/a%20b%2Fc", "a b/c"),
            ("s3://bkt/a+b", "a+b"),
            ("S3://bkt/%C3%A4.db", "ä.db"),
        ] {
            let config = s3(url);
            assert_eq!((config.bucket.as_str(), config.path.as_str()), ("bkt", path), "{url}");
            assert_eq!(config.written_path, None);
        }
        assert_eq!(s3("s3://bkt/a").prefix(), "a/");
        assert_eq!(s3("s3://bkt").prefix(), "");
    }

    #[test]
    fn other_places_where_litestream_may_have_written() {
        assert_eq!(s3("s3://bkt").upstream_prefixes(), ["./", "/"]);
        assert!(s3("s3://bkt/a/").upstream_prefixes().is_empty());
        let written = |path| keys(&[("bucket", "bkt"), ("path", path)]);
        assert_eq!(written("/foo").path, "foo");
        assert_eq!(written("/foo").upstream_prefixes(), ["/foo/"]);
        assert_eq!(s3("s3://bkt/foo?path=%2Ffoo").upstream_prefixes(), ["/foo/"]);
        assert_eq!(written("foo/").upstream_prefixes(), ["foo//"]);
        assert!(written("foo").upstream_prefixes().is_empty());
        assert_eq!(keys(&[("bucket", "bkt")]).upstream_prefixes(), ["./", "/"]);
    }

    #[test]
    fn hosts_of_providers() {
        let parts = |url: &str| {
            let c = s3(url);
            (
                c.bucket.clone(),
                c.region.clone().unwrap_or_default(),
                c.endpoint.clone().unwrap_or_default(),
                c.path_style(),
            )
        };
        let want =
            |bucket: &str, region: &str, endpoint: &str, style| (bucket.into(), region.into(), endpoint.into(), style);
        for (url, expected) in [
            ("s3://my.bucket/p", want("my.bucket", "", "", false)),
            ("s3://b.s3.eu-west-1.amazonaws.com/p", want("b", "eu-west-1", "", false)),
            ("s3://b.s3.amazonaws.com", want("b", "", "", false)),
            ("s3://b.s3-us-west-2.amazonaws.com", want("b", "us-west-2", "", false)),
            ("s3://a.b.s3.dualstack.us-east-2.amazonaws.com", want("a.b", "us-east-2", "", false)),
            ("s3://b.s3.cn-north-1.amazonaws.com.cn", want("b", "cn-north-1", "", false)),
            (
                "s3://my.b.nyc3.digitaloceanspaces.com/p",
                want("my.b", "nyc3", "https://nyc3.digitaloceanspaces.com", true),
            ),
            (
                "s3://b.s3.us-west-000.backblazeb2.com",
                want("b", "us-west-000", "https://s3.us-west-000.backblazeb2.com", true),
            ),
            ("s3://b.s3.filebase.com", want("b", "", "https://s3.filebase.com", true)),
            ("s3://b.s3.nl-ams.scw.cloud:443", want("b", "nl-ams", "https://s3.nl-ams.scw.cloud:443", true)),
            ("s3://b.us-east-1.linodeobjects.com", want("b", "us-east-1", "https://us-east-1.linodeobjects.com", true)),
            ("s3://b.localhost:9000/p", want("b", "us-east-1", "http://localhost:9000", true)),
        ] {
            assert_eq!(parts(url), expected, "{url}");
        }
    }

    #[test]
    fn access_points() {
        let arn = "arn:aws:s3:us-east-2:123456789012:accesspoint/mine";
        let config = s3(&format!("s3://{arn}/db/x?concurrency=3"));
        assert_eq!((config.bucket.as_str(), config.path.as_str()), (arn, "db/x"));
        assert_eq!(config.effective_region(), Some("us-east-2"));
        assert_eq!(config.concurrency(), 3);
        assert!(!config.path_style() && config.is_access_point());
        assert_eq!(s3(&format!("s3://{arn}")).path, "");
        assert_eq!(keys(&[("bucket", arn), ("path", "db")]).region.as_deref(), Some("us-east-2"));
        assert!(error("s3://arn:aws:s3:us-east-2:123:bucket/x").contains("accesspoint/NAME"));
        assert!(error("s3://arn:aws:s3:us-east-2:123:accesspoint/").contains("accesspoint/NAME"));
        assert!(error(&format!("s3://{arn}/x?endpoint=http://localhost:1")).contains("remove the endpoint"));
    }

    #[test]
    fn every_key_in_both_spellings() {
        let camel = |name: &str| {
            let mut parts = name.split('-');
            let first = parts.next().unwrap().to_owned();
            parts.fold(first, |text, part| text + &part[..1].to_uppercase() + &part[1..])
        };
        for known in &S3_KEYS {
            let value = match known.name {
                "part-size" => "8MiB",
                "concurrency" => "7",
                "sse-customer-algorithm" => "AES256",
                "endpoint" => "https://store.example",
                name if name.starts_with("force") || name.starts_with("skip") || name.contains("sign") => "false",
                "require-content-md5" => "off",
                _ => "some-value",
            };
            let mut hyphenated = ReplicaConfig { location: Location::S3(S3Config::default()) };
            let mut other = hyphenated.clone();
            assert!(hyphenated.set_default(known.name, value).unwrap(), "{}", known.name);
            other.set(&camel(known.name), value).unwrap();
            assert_eq!(hyphenated, other, "{}", known.name);
            assert_ne!(hyphenated.location, Location::S3(S3Config::default()), "{}", known.name);
            assert!(!hyphenated.set_default(known.name, value).unwrap(), "{} is set", known.name);
        }
        assert_eq!(s3("s3://b?requireContentMD5=false").require_content_md5, Some(false));
        assert!(is_known_key("forcePathStyle") && is_known_key("url") && !is_known_key("sync-interval"));
    }

    #[test]
    fn endpoints() {
        let of = |endpoint: &str| s3(&format!("s3://b?endpoint={endpoint}")).endpoint.unwrap();
        for (given, expected) in [
            ("localhost:9000", "http://localhost:9000"),
            ("127.0.0.1:9000/", "http://127.0.0.1:9000"),
            ("[::1]:9000", "http://[::1]:9000"),
            ("172.20.0.2:9000", "http://172.20.0.2:9000"),
            ("172.200.0.2:9000", "https://172.200.0.2:9000"),
            ("minio:9000", "http://minio:9000"),
            ("nas.local", "http://nas.local"),
            ("store.example", "https://store.example"),
            ("HTTP://store.example", "http://store.example"),
            ("https%3A%2F%2Fx.supabase.co%2Fstorage%2Fv1%2Fs3", "https://x.supabase.co/storage/v1/s3"),
        ] {
            assert_eq!(of(given), expected);
        }
        for wrong in ["", "ftp://x", "http://", "http://x:port", "http://x:", "http://a b", "http://x?y"] {
            let mut config = ReplicaConfig { location: Location::S3(S3Config::default()) };
            assert!(config.set("endpoint", wrong).is_err(), "{wrong}");
        }
        let secretive = error("s3://b?endpoint=http://me:hunter2@host");
        assert!(secretive.contains("access-key-id") && !secretive.contains("hunter2"), "{secretive}");
    }

    #[test]
    fn providers_get_what_they_need() {
        let at = |endpoint: &str| s3(&format!("s3://b?endpoint={endpoint}"));
        for (endpoint, provider) in [
            ("https://s3.us-west-000.backblazeb2.com", Provider::Backblaze),
            ("https://s3.filebase.com", Provider::Filebase),
            ("https://x.storage.supabase.co/storage/v1/s3", Provider::Supabase),
            ("http://10.0.0.1:9000", Provider::Minio),
            ("https://fly.storage.tigris.dev", Provider::Tigris),
            ("https://t3.storage.dev", Provider::Tigris),
            ("https://acc.r2.cloudflarestorage.com", Provider::CloudflareR2),
            ("https://storage.googleapis.com", Provider::GoogleCloud),
            ("https://nyc3.digitaloceanspaces.com", Provider::DigitalOcean),
            ("https://s3.nl-ams.scw.cloud", Provider::Scaleway),
            ("https://fsn1.your-objectstorage.com", Provider::Hetzner),
            ("https://us-east-1.linodeobjects.com", Provider::Linode),
            ("https://s3.eu-west-1.amazonaws.com", Provider::Aws),
            ("https://notbackblazeb2.com", Provider::Other),
        ] {
            let config = at(endpoint);
            assert_eq!(config.provider(), provider, "{endpoint}");
            assert!(config.path_style(), "{endpoint}");
            assert_eq!(config.effective_region(), Some("us-east-1"));
            assert_eq!(config.tigris_consistent(), provider == Provider::Tigris);
            assert_eq!(config.content_md5(), provider != Provider::Tigris);
            assert_eq!(config.sign_accept_encoding(), provider != Provider::GoogleCloud);
            assert_eq!(config.concurrency(), if provider == Provider::CloudflareR2 { 2 } else { 5 });
        }
        let told = s3(
            "s3://b?endpoint=http://10.0.0.1:9000&forcePathStyle=false&region=x&concurrency=9&require-content-md5=1",
        );
        assert!(!told.path_style() && told.content_md5());
        assert_eq!((told.effective_region(), told.concurrency()), (Some("x"), 9));
        let aws = s3("s3://b");
        assert_eq!((aws.provider(), aws.effective_region(), aws.path_style()), (Provider::Aws, None, false));
        assert!(aws.sign_payload() && !aws.skip_verify());
        assert_eq!(aws.part_size(), 5 << 20);
    }

    #[test]
    fn directories() {
        assert_eq!(file("/var/backup"), "/var/backup");
        assert_eq!(file("rel/dir#1?x"), "rel/dir#1?x");
        assert_eq!(file("file:///var//a/../b%20c/"), "/var/b c");
        assert_eq!(file("file:/var/b"), "/var/b");
        assert_eq!(file("FILE://localhost/var/b"), "/var/b");
        assert_eq!(file("file:///"), "/");
        assert!(error("file://rel/db").contains("file:///ABSOLUTE/PATH"));
        assert!(error("file:rel").contains("absolute"));
        assert!(error("file://").contains("host"));
        assert_eq!(
            error("file:///x?endpoint=a"),
            "`endpoint` has no meaning for a file replica: remove it, or use a replica of another type"
        );
        assert_eq!(ReplicaConfig::from_keys([("path", "x/y")]).unwrap(), ReplicaConfig::from_url("x/y").unwrap());
        assert_eq!(problems(&[("type", "file")]), [": no `path`: a file replica needs the directory it lies in"]);
    }

    #[test]
    fn unsupported_types_name_the_supported() {
        for scheme in LATER {
            let text = error(&format!("{scheme}://host/x"));
            assert_eq!(
                text,
                format!(
                    "unsupported replica type `{scheme}` (a later version will have it): supported are `s3` and `file`"
                )
            );
        }
        assert_eq!(error("ftp://h/x"), "unsupported replica type `ftp`: supported are `s3` and `file`");
        assert_eq!(problems(&[("type", "gs"), ("bucket", "b")]).len(), 1);
    }

    #[test]
    fn wrong_urls() {
        for (url, part) in [
            ("", "no `url`"),
            ("s3://", "names no bucket"),
            ("s3:///path", "names no bucket"),
            ("s3://localhost:9000/p", "names no bucket"),
            ("s3://b:9000/p", "?endpoint=http://b:9000"),
            ("s3://b:x/p", "port"),
            ("s3://b b/p", "not a bucket's name"),
            ("s3://s3.eu-west-1.amazonaws.com/b", "does not name a bucket"),
            ("s3://b/a#b", "%23"),
            ("s3://b/100%", "%25"),
            ("s3://b/%ff", "UTF-8"),
            ("s3://b?regoin=x", "did you mean `region`?"),
            ("s3://b?nonsense=x", "see the documentation"),
            ("s3://b?bucket=x", "before the `?`"),
            ("s3://b/x?path=y", "before the `?`"),
            ("s3://b?region=", "`region`: it is empty"),
            ("s3://b?skipVerify=maybe", "`maybe` is neither true nor false"),
            ("s3://b?partSize=1MiB", "5MiB to 5GiB"),
            ("s3://b?partSize=big", "64MiB"),
            ("s3://b?concurrency=0", "1 or more"),
            ("s3://b?concurrency=-1", "1 or more"),
            ("s3://b?sseCustomerAlgorithm=DES", "only AES256"),
            ("s3://b?sseCustomerAlgorithm=AES256", "no `sse-customer-key`"),
            ("s3://b?sseCustomerKey=a&sseKmsKeyId=b", "choose one"),
            ("s3://b?sseCustomerKey=a&sseCustomerKeyPath=b", "the file it lies in"),
            ("s3://b?accessKeyId=a", "no `secret-access-key`"),
            ("s3://b?secretAccessKey=a", "no `access-key-id`"),
        ] {
            let text = error(url);
            assert!(text.contains(part), "{url}: {text}");
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        for url in ["s3://me:hunter2@b/p", "s3://b/%zz?secretAccessKey=hunter2", "ftp://me:hunter2@h/"] {
            assert!(!error(url).contains("hunter2"), "{}", error(url));
        }
        let config =
            ReplicaConfig::from_url("s3://b?accessKeyId=AKIA&secretAccessKey=hunter2&sseCustomerKey=hunter2").unwrap();
        assert!(!format!("{config:?} {config}").contains("hunter2"));
        assert_eq!(config.url(), "s3://b");
        assert!(
            problems(&[("bucket", "b"), ("access-key-id", "a"), ("secret-access-key", "hunter 2")])[0]
                .contains("white space")
        );
        let Location::S3(config) = config.location else { panic!() };
        assert_eq!(config.secret_access_key.unwrap().expose(), "hunter2");
        assert_eq!(config.sse_customer_key, Some(Secret::new("hunter2")));
    }

    #[test]
    fn canonical_urls_find_the_same_place() {
        for (url, canonical) in [
            ("s3://b", "s3://b"),
            ("s3://b//x/./a%20b%3F/", "s3://b/x/a%20b%3F"),
            ("s3://b/x?endpoint=localhost:9000", "s3://b/x?endpoint=http://localhost:9000"),
            (
                "s3://b.nyc3.digitaloceanspaces.com/x",
                "s3://b/x?endpoint=https://nyc3.digitaloceanspaces.com&region=nyc3",
            ),
            ("s3://b/x?forcePathStyle=no&region=eu", "s3://b/x?region=eu&forcePathStyle=false"),
            ("s3://arn:aws:s3:us-east-2:12:accesspoint/n/x", "s3://arn:aws:s3:us-east-2:12:accesspoint/n/x"),
            ("/a b", "file:///a%20b"),
            ("rel", "rel"),
        ] {
            let config = ReplicaConfig::from_url(url).unwrap();
            assert_eq!(config.to_string(), canonical);
            assert_eq!(canonical.parse::<ReplicaConfig>().unwrap(), config);
        }
    }

    #[test]
    fn keys_override_the_url_and_defaults_fill_in() {
        let config = ReplicaConfig::collect(
            &[
                ("url", "s3://b/p?region=from-url&storageClass=from-url"),
                ("storage-class", "from-key"),
                ("endpoint", ""),
            ],
            &[("bucket", "default"), ("region", "default"), ("endpoint", "store.example"), ("skip-verify", "on")],
        );
        let Location::S3(config) = config.unwrap().location else { panic!() };
        assert_eq!((config.bucket.as_str(), config.path.as_str()), ("b", "p"));
        assert_eq!(config.region.as_deref(), Some("from-url"));
        assert_eq!(config.storage_class.as_deref(), Some("from-key"));
        assert_eq!(config.endpoint.as_deref(), Some("https://store.example"));
        assert!(config.skip_verify());
        // The defaults do not make a directory an S3 replica.
        let directory = ReplicaConfig::collect(&[("path", "/d")], &[("bucket", "b"), ("region", "r")]).unwrap();
        assert_eq!(directory.type_name(), "file");
        let bucket = ReplicaConfig::collect(&[("type", "s3"), ("path", "p")], &[("bucket", "b")]).unwrap();
        assert_eq!(bucket.url(), "s3://b/p");
        assert_eq!(keys(&[("bucket", "b"), ("path", "p")]).path, "p");
    }

    #[test]
    fn all_problems_are_reported_with_their_keys() {
        assert_eq!(
            problems(&[("url", "s3://b/p"), ("type", "file"), ("path", "x"), ("regoin", "x"), ("part-size", "x")]),
            [
                "type: `type` and `url` exclude each other: the URL's scheme says another type: remove `type`",
                "path: `url` and `path` exclude each other: the URL says it already: write it in one place",
                "regoin: unknown key `regoin` for an s3 replica: did you mean `region`?",
                "part-size: invalid value for `part-size`: `x` is not a size: write a number of bytes, or one with a \
                 unit, like 64MiB or 5MB",
            ]
        );
        assert_eq!(problems(&[("url", "s3://"), ("concurrency", "x")]).len(), 2);
        assert!(problems(&[("path", "s3://b/p")])[0].contains("write it as `url`"));
        assert!(problems(&[("bucket", "s3://b")])[0].contains("write it as `url`"));
        assert!(problems(&[("bucket", "b/p")])[0].contains("belong into `path`"));
        assert!(problems(&[("type", "s3"), ("path", "s3://b/p")])[0].contains("write it as `url`"));
        assert!(problems(&[("type", "s3")])[0].contains("no `bucket`"));
        assert!(problems(&[("type", "file"), ("path", "p"), ("region", "x")])[0].contains("no meaning"));
        assert!(problems(&[("pth", "p")])[0].contains("did you mean `path`?"));
    }

    #[test]
    fn environment_fills_in() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let both = env(&[
            ("LITESTREAM_ACCESS_KEY_ID", "id"),
            ("LITESTREAM_SECRET_ACCESS_KEY", "secret"),
            ("LITESTREAM_S3_ENDPOINT", "localhost:9000"),
            ("LITESTREAM_S3_REGION", "r"),
        ]);
        let mut config = ReplicaConfig::from_url("s3://b").unwrap();
        config.apply_env(both).unwrap();
        let Location::S3(filled) = &config.location else { panic!() };
        assert_eq!(filled.access_key_id.as_deref(), Some("id"));
        assert_eq!(filled.secret_access_key, Some(Secret::new("secret")));
        assert_eq!(filled.endpoint.as_deref(), Some("http://localhost:9000"));
        assert_eq!(filled.region.as_deref(), Some("r"));

        let stated = "s3://b?endpoint=https://s.example&region=q&accessKeyId=a&secretAccessKey=b";
        let mut config = ReplicaConfig::from_url(stated).unwrap();
        let before = config.clone();
        config.apply_env(both).unwrap();
        assert_eq!(config, before);

        let mut config = ReplicaConfig::from_url("/dir").unwrap();
        config.apply_env(both).unwrap();
        let mut config = ReplicaConfig::from_url("s3://b").unwrap();
        let one = config.apply_env(env(&[("LITESTREAM_ACCESS_KEY_ID", "id")])).unwrap_err().to_string();
        assert!(one.contains("LITESTREAM_SECRET_ACCESS_KEY"), "{one}");
        let other = config.apply_env(env(&[("LITESTREAM_SECRET_ACCESS_KEY", "s"), ("LITESTREAM_ACCESS_KEY_ID", "")]));
        assert!(other.unwrap_err().to_string().contains("LITESTREAM_ACCESS_KEY_ID"));
        let wrong = config.apply_env(env(&[("LITESTREAM_S3_ENDPOINT", "ftp://x")])).unwrap_err().to_string();
        assert!(wrong.contains("LITESTREAM_S3_ENDPOINT"), "{wrong}");
    }

    #[test]
    fn joined_below_a_directory_entry() {
        let join = |url: &str| ReplicaConfig::from_url(url).unwrap().join("sub/a.db").url();
        assert_eq!(join("s3://b/x"), "s3://b/x/sub/a.db");
        assert_eq!(join("s3://b"), "s3://b/sub/a.db");
        assert_eq!(join("/rep"), "file:///rep/sub/a.db");
        let written = ReplicaConfig::from_keys([("bucket", "b"), ("path", "/x/")]).unwrap().join("a.db");
        let Location::S3(config) = written.location else { panic!() };
        assert_eq!((config.path.as_str(), config.upstream_prefixes()), ("x/a.db", vec!["/x/a.db/".to_owned()]));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("5MB", 5_000_000),
            ("5mb", 5_000_000),
            ("5M", 5_000_000),
            ("1.5GB", 1_500_000_000),
            ("100B", 100),
            ("2Ki", 2048),
            (" 1k ", 1000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for wrong in [
            "",
            "MB",
            "-1",
            "-1MB",
            "+1MB",
            "inf",
            "1e3",
            "NaN",
            "5 parsecs",
            "1..5MB",
            "99999999999999999999",
            "99999999PB",
            "0x10",
        ] {
            assert!(parse_size(wrong).is_err(), "{wrong}: {:?}", parse_size(wrong));
        }
    }
}
