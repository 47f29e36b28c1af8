//! A replica in S3, or in one of the many stores that speak its protocol: `PATH/%04x/MIN-MAX.ltx`, the level in hexadecimal, a file's
//! time as object metadata.
//!
//! One attempt each: the SDK's own retries are off, because [`crate::Replica`] retries, resumes and times out alike for every store.

mod answer;
mod http;
mod keys;
mod put;

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedCredentialsProvider, StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_sdk_s3::{Client, primitives::DateTime};
use futures::StreamExt;
use futures::stream::{self, TryStreamExt};
use ltx::{FileName, Timestamp};

use crate::backend::{Backend, Body, GetRange, GetRequest, GetResponse, ListPage, ListRequest, PutOptions, Scope};
use crate::config::{S3Config, Secret};
use crate::retry::Retry;
use crate::{ETag, Error, Level, ObjectInfo, Result, RetryPolicy};

pub use keys::format_time;
pub(crate) use keys::{key, listing, sort_into};

/// The metadata key of a file's time.
const TIME: &str = "litestream-timestamp";
/// How many single deletes run at once where a store refuses batches.
const SINGLE_DELETES: usize = 16;

/// A replica under a prefix of a bucket.
#[derive(Debug)]
pub struct S3Backend {
    url: Arc<str>,
    bucket: String,
    /// The prefix of every key: empty or ending in a slash.
    base: String,
    /// Where Litestream may have put this replica's keys instead.
    other_bases: Vec<String>,
    /// Keeps connections.
    client: Client,
    /// Takes a new connection for every request: for repeated attempts, whose first connection may be a dead one.
    fresh: Client,
    settings: Settings,
}

/// What a request needs beside the client.
#[derive(Debug)]
struct Settings {
    content_md5: bool,
    adjust: answer::Adjust,
    unsigned_payload: bool,
    storage_class: Option<aws_sdk_s3::types::StorageClass>,
    part_size: u64,
    concurrency: usize,
    kms_key_id: Option<String>,
    customer_key: Option<CustomerKey>,
    retry: Retry,
}

/// A key of the customer's that the store encrypts with and forgets.
#[derive(Clone)]
struct CustomerKey {
    algorithm: String,
    key: String,
    md5: String,
}

impl std::fmt::Debug for CustomerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CustomerKey").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl S3Backend {
    /// A replica as configured. Nothing is asked of the store yet, but where no keys are given the AWS default chain may look for some.
    ///
    /// # Errors
    /// [`Error::Config`] where the configuration cannot work, [`Error::Io`] where a file it names cannot be read.
    pub async fn new(config: &S3Config, policy: &RetryPolicy) -> Result<Self> {
        let url: Arc<str> = config.url().into();
        let plain = config.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let tls = http::tls(plain, config.skip_verify())?;
        let pooled = http::client(&tls, policy, true);
        let fresh = http::client(&tls, policy, false);
        let keys = config.access_key_id.as_deref().zip(config.secret_access_key.as_ref().map(Secret::expose));
        let mut region = config.effective_region().map(|region| Region::new(region.to_owned()));
        let mut credentials = keys
            .map(|(id, secret)| SharedCredentialsProvider::new(Credentials::new(id, secret, None, None, "litestream")));
        // The AWS default chain may wait for a metadata service: it is asked only for what is not stated.
        if region.is_none() || credentials.is_none() {
            let chain = aws_config::defaults(BehaviorVersion::latest()).http_client(pooled.clone());
            let chain = chain.retry_config(RetryConfig::disabled());
            let chain = match &region {
                Some(region) => chain.region(region.clone()).load().await,
                None => chain.load().await,
            };
            region = region.or_else(|| chain.region().cloned());
            credentials = credentials.or_else(|| chain.credentials_provider());
        }
        let mut builder = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(region.unwrap_or_else(|| Region::from_static(crate::config::DEFAULT_REGION)))
            .force_path_style(config.path_style())
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .http_client(pooled);
        builder.set_credentials_provider(credentials);
        if let Some(endpoint) = &config.endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        let builder_fresh = builder.clone().http_client(fresh);
        Ok(Self {
            url: url.clone(),
            bucket: config.bucket.clone(),
            base: config.prefix(),
            other_bases: config.upstream_prefixes(),
            client: Client::from_conf(builder.build()),
            fresh: Client::from_conf(builder_fresh.build()),
            settings: Settings::new(config, url, policy)?,
        })
    }

    fn client(&self, attempt: u32) -> &Client {
        if attempt == 0 { &self.client } else { &self.fresh }
    }

    async fn list_base(&self, base: &str, scope: Scope, after: &str, token: Option<&str>) -> Result<ListPage> {
        let (prefix, _) = listing(scope, ltx::Txid::ZERO);
        let prefix = format!("{base}{prefix}");
        let mut request = self.client.list_objects_v2().bucket(&self.bucket).prefix(&prefix);
        request = match token {
            Some(token) => request.continuation_token(token),
            None if after.is_empty() => request,
            None => request.start_after(format!("{base}{after}")),
        };
        let adjust = self.settings.adjust;
        let request = request.customize().mutate_request(move |request| adjust.apply(request));
        let answer = match request.send().await {
            // MinIO refuses the empty level that Litestream's `s3://bkt` makes of a root.
            Err(error) if base == "./" && answer::status(&error) == Some(400) => return Ok(ListPage::default()),
            answer => answer.map_err(|error| answer::error(&self.url, "list", &prefix, error))?,
        };
        let mut page = ListPage::default();
        let mut last = "";
        for object in answer.contents() {
            let Some(key) = object.key() else { continue };
            last = key;
            let info = ObjectInfo {
                key: key.into(),
                size: object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
                etag: object.e_tag().map(ETag::new),
                modified: millis(object.last_modified()),
                time: None,
            };
            sort_into(&mut page, base, info);
        }
        page.next = answer.next_continuation_token().filter(|_| answer.is_truncated() == Some(true)).map(str::to_owned);
        // Behind the levels lie whatever else is kept under this prefix, perhaps thousands of other replicas' keys.
        if matches!(scope, Scope::Above(_)) && last > format!("{base}000a").as_str() {
            page.next = None;
        }
        Ok(page)
    }
}

impl Settings {
    fn new(config: &S3Config, url: Arc<str>, policy: &RetryPolicy) -> Result<Self> {
        Ok(Self {
            content_md5: config.content_md5(),
            adjust: answer::Adjust {
                tigris: config.tigris_consistent(),
                drop_accept_encoding: !config.sign_accept_encoding(),
            },
            unsigned_payload: !config.sign_payload(),
            storage_class: config.storage_class.as_deref().map(Into::into),
            part_size: config.part_size(),
            concurrency: config.concurrency().max(1),
            kms_key_id: config.sse_kms_key_id.clone(),
            customer_key: put::customer_key(config)?,
            retry: Retry::new(policy.clone(), url),
        })
    }
}

#[async_trait]
impl Backend for S3Backend {
    fn url(&self) -> &Arc<str> {
        &self.url
    }

    fn key(&self, level: Level, name: FileName) -> String {
        key(&self.base, level, name)
    }

    async fn list(&self, request: &ListRequest<'_>) -> Result<ListPage> {
        let (_, after) = listing(request.scope, request.from);
        if let Some(token) = request.token {
            return self.list_base(&self.base, request.scope, &after, Some(token)).await;
        }
        let bases = std::iter::once(&self.base).chain(&self.other_bases);
        let pages = bases.map(|base| {
            let after = &after;
            async move {
                let mut page = self.list_base(base, request.scope, after, None).await?;
                while *base != self.base
                    && let Some(token) = page.next.take()
                {
                    let more = self.list_base(base, request.scope, after, Some(&token)).await?;
                    page.files.extend(more.files);
                    page.others.extend(more.others);
                    page.next = more.next;
                }
                Ok::<_, Error>(page)
            }
        });
        let mut pages = futures::future::try_join_all(pages).await?.into_iter();
        let mut all = pages.next().unwrap_or_default();
        for page in pages.filter(|page| !page.files.is_empty() || !page.others.is_empty()) {
            all.files.extend(page.files);
            all.others.extend(page.others);
            all.files.sort_by_key(|file| (file.level, file.name));
        }
        Ok(all)
    }

    async fn get(&self, request: &GetRequest<'_>) -> Result<GetResponse> {
        let mut get = self.client(request.attempt).get_object().bucket(&self.bucket).key(request.key);
        get = match &request.range {
            GetRange::Whole => get,
            GetRange::Span(span) => get.range(format!("bytes={}-{}", span.start, span.end.saturating_sub(1))),
            GetRange::Last(len) => get.range(format!("bytes=-{len}")),
        };
        if let Some(key) = &self.settings.customer_key {
            get = get.sse_customer_algorithm(&key.algorithm).sse_customer_key(&key.key).sse_customer_key_md5(&key.md5);
        }
        let adjust = self.settings.adjust;
        let get = get.customize().mutate_request(move |request| adjust.apply(request));
        let answer = get.send().await.map_err(|error| answer::error(&self.url, "read", request.key, error))?;
        let length = answer.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        let (range, size) = match answer.content_range().and_then(answer::content_range) {
            Some((range, size)) => (range, size),
            None => (0..length, length),
        };
        let wanted = crate::backend::resolve(&self.url, request.key, &request.range, size)?;
        if wanted != range {
            let answer = format!("it sent bytes {range:?} of {size} where {wanted:?} were asked for");
            return Err(Error::Refused { url: self.url.clone(), operation: "read", key: request.key.into(), answer });
        }
        let object = ObjectInfo {
            key: request.key.into(),
            size,
            etag: answer.e_tag().map(ETag::new),
            modified: millis(answer.last_modified()),
            time: answer.metadata().and_then(|metadata| keys::parse_time(metadata.get(TIME)?)),
        };
        let key: Arc<str> = request.key.into();
        let body = stream::unfold(answer.body, |mut body| async move { Some((body.next().await?, body)) })
            .map_err(move |error| Error::Transient {
                operation: "read",
                key: key.clone(),
                cause: answer::describe(&error),
            })
            .boxed();
        Ok(GetResponse { object, range, body })
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo> {
        let mut head = self.client.head_object().bucket(&self.bucket).key(key);
        if let Some(key) = &self.settings.customer_key {
            head =
                head.sse_customer_algorithm(&key.algorithm).sse_customer_key(&key.key).sse_customer_key_md5(&key.md5);
        }
        let adjust = self.settings.adjust;
        let head = head.customize().mutate_request(move |request| adjust.apply(request));
        let answer = head.send().await.map_err(|error| answer::error(&self.url, "look at", key, error))?;
        Ok(ObjectInfo {
            key: key.into(),
            size: answer.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0),
            etag: answer.e_tag().map(ETag::new),
            modified: millis(answer.last_modified()),
            time: answer.metadata().and_then(|metadata| keys::parse_time(metadata.get(TIME)?)),
        })
    }

    async fn put(&self, key: &str, body: &Body, options: &PutOptions<'_>) -> Result<ObjectInfo> {
        if body.len() > self.settings.part_size {
            self.put_parts(key, body, options).await
        } else {
            self.put_whole(key, body, options).await
        }
    }

    async fn delete(&self, keys: &[&str]) -> Result<()> {
        match self.delete_batch(keys).await {
            // Some stores refuse batches, for want of a checksum or of the call itself.
            Err(Error::Refused { answer, .. }) if keys.len() == 1 || answer::refuses_batches(&answer) => {
                for some in keys.chunks(SINGLE_DELETES) {
                    futures::future::try_join_all(some.iter().map(|key| self.delete_one(key))).await?;
                }
                Ok(())
            }
            outcome => outcome,
        }
    }
}

fn millis(time: Option<&DateTime>) -> Timestamp {
    Timestamp(time.and_then(|time| time.to_millis().ok()).unwrap_or(0))
}
