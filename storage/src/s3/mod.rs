//! A replica in S3, or in one of the many stores that speak its protocol: `PATH/%04x/MIN-MAX.ltx`, the level in hexadecimal, a file's
//! time as object metadata.
//!
//! One attempt each: the SDK's own retries are off, because [`crate::Replica`] retries, resumes and times out alike for every store. Only an upload in
//! parts repeats its requests by itself.

#[macro_use]
mod headers;

mod answer;
mod http;
mod keys;
mod put;
mod upload;

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use async_trait::async_trait;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedCredentialsProvider, StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_sdk_s3::{Client, primitives::DateTime};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use futures::StreamExt;
use futures::stream::{self, TryStreamExt};
use ltx::{FileName, Timestamp};

use crate::backend::{Backend, Body, GetRange, GetRequest, GetResponse, ListPage, ListRequest, PutOptions, Scope};
use crate::config::{S3Config, Secret};
use crate::retry::Retry;
use crate::{ETag, Error, Level, ObjectInfo, Result, RetryPolicy};

pub use keys::format_time;
pub(crate) use keys::{key, listing, sort_into};
pub use upload::settle;

/// The metadata key of a file's time.
const TIME: &str = "litestream-timestamp";
/// How many single deletes run at once where a store refuses batches.
const SINGLE_DELETES: usize = 16;

/// A replica under a prefix of a bucket.
#[derive(Clone, Debug)]
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
    settings: Arc<Settings>,
    retry: Retry,
    clock: Arc<AtomicI64>,
}

/// What a request needs beside the client.
#[derive(Debug)]
struct Settings {
    content_md5: bool,
    unsigned_payload: bool,
    storage_class: Option<aws_sdk_s3::types::StorageClass>,
    part_size: u64,
    concurrency: usize,
    kms_key_id: Option<String>,
    customer_key: Option<CustomerKey>,
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
        let plain = config.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let tls = http::tls(plain, config.skip_verify())?;
        Self::with_clients(config, policy, http::client(&tls, policy, true), http::client(&tls, policy, false)).await
    }

    /// A replica that is asked through these clients: one that keeps connections, and one that takes a new one for every request.
    async fn with_clients(
        config: &S3Config,
        policy: &RetryPolicy,
        pooled: SharedHttpClient,
        fresh: SharedHttpClient,
    ) -> Result<Self> {
        let url: Arc<str> = config.url().into();
        let keys = config.access_key_id.as_deref().zip(config.secret_access_key.as_ref().map(Secret::expose));
        let mut region = config.effective_region().map(|region| Region::new(region.to_owned()));
        let mut credentials = keys
            .map(|(id, secret)| SharedCredentialsProvider::new(Credentials::new(id, secret, None, None, "litestream")));
        // The AWS default chain may wait for a metadata service: it is asked only for what is not stated.
        if region.is_none() || credentials.is_none() {
            // Its own retries stay on: they know what may pass in each of the places where credentials come from.
            let chain = aws_config::defaults(BehaviorVersion::latest()).http_client(pooled.clone());
            let chain = match &region {
                Some(region) => chain.region(region.clone()).load().await,
                None => chain.load().await,
            };
            region = region.or_else(|| chain.region().cloned());
            credentials = credentials.or_else(|| chain.credentials_provider());
        }
        let adjust = answer::Adjust::of(config);
        let mut builder = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(region.unwrap_or_else(|| Region::from_static(crate::config::DEFAULT_REGION)))
            .force_path_style(config.path_style())
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .interceptor(adjust.clone())
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
            clock: adjust.clock,
            client: Client::from_conf(builder.build()),
            fresh: Client::from_conf(builder_fresh.build()),
            settings: Arc::new(Settings::new(config)?),
            retry: Retry::new(policy.clone(), url),
        })
    }

    /// Another replica in the same bucket, asked through the same connections: `config` may differ from this one's in its path alone.
    pub(crate) fn beside(&self, config: &S3Config, policy: &RetryPolicy) -> Self {
        let url: Arc<str> = config.url().into();
        Self {
            retry: Retry::new(policy.clone(), url.clone()),
            url,
            base: config.prefix(),
            other_bases: config.upstream_prefixes(),
            ..self.clone()
        }
    }

    fn client(&self, attempt: u32) -> &Client {
        if attempt == 0 { &self.client } else { &self.fresh }
    }

    async fn list_base(
        &self,
        base: &str,
        request: &ListRequest<'_>,
        after: &str,
        token: Option<&str>,
    ) -> Result<ListPage> {
        let (scope, attempt) = (request.scope, request.attempt);
        let (prefix, _) = listing(scope, ltx::Txid::ZERO);
        let prefix = format!("{base}{prefix}");
        let mut request = self.client(attempt).list_objects_v2().bucket(&self.bucket).prefix(&prefix);
        request = match token {
            Some(token) => request.continuation_token(token),
            None if after.is_empty() => request,
            None => request.start_after(format!("{base}{after}")),
        };
        let date = answer::Date::default();
        let answer = request.customize().interceptor(date.clone()).send().await;
        let mut page = ListPage { at: date.get(), ..ListPage::default() };
        let answer = match answer {
            // MinIO refuses the empty level that Litestream's `s3://bkt` makes of a root.
            Err(error) if base == "./" && answer::status(&error) == Some(400) => return Ok(page),
            answer => answer.map_err(|error| answer::error(&self.url, "list", &prefix, error))?,
        };
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
    fn new(config: &S3Config) -> Result<Self> {
        Ok(Self {
            content_md5: config.content_md5(),
            unsigned_payload: !config.sign_payload(),
            storage_class: config.storage_class.as_deref().map(Into::into),
            part_size: config.part_size(),
            concurrency: config.concurrency().max(1),
            kms_key_id: config.sse_kms_key_id.clone(),
            customer_key: put::customer_key(config)?,
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

    fn side_key(&self, name: &str) -> String {
        format!("{}{name}", self.base)
    }

    fn clock(&self) -> Option<Timestamp> {
        answer::told(&self.clock)
    }

    async fn metadata(&self, key: &str, name: &str, attempt: u32) -> Result<Option<String>> {
        let head = self.client(attempt).head_object().bucket(&self.bucket).key(key);
        let answer = with_customer_key!(head, &self.settings)
            .send()
            .await
            .map_err(|error| answer::error(&self.url, "look at", key, error))?;
        Ok(answer.metadata().and_then(|metadata| metadata.get(name)).cloned())
    }

    async fn list(&self, request: &ListRequest<'_>) -> Result<ListPage> {
        let (_, after) = listing(request.scope, request.from);
        if let Some(token) = request.token {
            return self.list_base(&self.base, request, &after, Some(token)).await;
        }
        let bases = std::iter::once(&self.base).chain(&self.other_bases);
        let pages = bases.map(|base| {
            let after = &after;
            async move {
                let mut page = self.list_base(base, request, after, None).await?;
                while *base != self.base
                    && let Some(token) = page.next.take()
                {
                    let more = self.list_base(base, request, after, Some(&token)).await?;
                    page.files.extend(more.files);
                    page.others.extend(more.others);
                    page.next = more.next;
                }
                Ok::<_, Error>(page)
            }
        });
        let mut pages = futures::future::try_join_all(pages).await?.into_iter();
        let mut all = pages.next().unwrap_or_default();
        for page in pages {
            // All of them tell what there was at the earliest of their times.
            all.at = all.at.zip(page.at).map(|(one, other)| one.min(other));
            if page.files.is_empty() && page.others.is_empty() {
                continue;
            }
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
        let answer = with_customer_key!(get, &self.settings)
            .send()
            .await
            .map_err(|error| answer::error(&self.url, "read", request.key, error))?;
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

    async fn head(&self, key: &str, attempt: u32) -> Result<ObjectInfo> {
        let head = self.client(attempt).head_object().bucket(&self.bucket).key(key);
        let answer = with_customer_key!(head, &self.settings)
            .send()
            .await
            .map_err(|error| answer::error(&self.url, "look at", key, error))?;
        Ok(ObjectInfo {
            key: key.into(),
            size: answer.content_length().and_then(|length| u64::try_from(length).ok()).unwrap_or(0),
            etag: answer.e_tag().map(ETag::new),
            modified: millis(answer.last_modified()),
            time: answer.metadata().and_then(|metadata| keys::parse_time(metadata.get(TIME)?)),
        })
    }

    fn paces_put(&self, len: u64) -> bool {
        len > self.settings.part_size
    }

    async fn put(&self, key: &str, body: &Body, options: &PutOptions<'_>) -> Result<ObjectInfo> {
        if self.paces_put(body.len()) {
            self.put_parts(key, body, options).await
        } else {
            self.put_whole(key, body, options).await
        }
    }

    async fn delete(&self, keys: &[&str], attempt: u32) -> Result<()> {
        match self.delete_batch(keys, attempt).await {
            // Some stores refuse batches, for want of a checksum or of the call itself.
            Err(Error::Refused { answer, .. }) if keys.len() == 1 || answer::refuses_batches(&answer) => {
                for some in keys.chunks(SINGLE_DELETES) {
                    futures::future::try_join_all(some.iter().map(|key| self.delete_one(key, attempt))).await?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Mutex, PoisonError};

    use aws_smithy_runtime_api::client::http::{
        HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
    use aws_smithy_types::body::SdkBody;

    use super::*;
    use crate::Precondition;
    use crate::config::{Location, ReplicaConfig};

    /// A store that says yes to everything, and writes down what it was asked.
    #[derive(Clone, Debug, Default)]
    struct YesMan(Arc<Mutex<Vec<Asked>>>);

    #[derive(Clone, Debug)]
    struct Asked {
        what: String,
        tigris: bool,
    }

    impl YesMan {
        fn client(&self) -> SharedHttpClient {
            let connector = self.clone();
            http_client_fn(move |_, _| SharedHttpConnector::new(connector.clone()))
        }

        fn asked(&self) -> Vec<Asked> {
            std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }

    impl HttpConnector for YesMan {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let (_, query) = request.uri().split_once('?').unwrap_or_default();
            let parameters = query.split('&').filter_map(|pair| pair.split('=').next()).filter(|name| !name.is_empty());
            let what = format!("{} {}", request.method(), parameters.collect::<Vec<_>>().join(" "));
            let tigris = request.headers().get("x-tigris-consistent") == Some("true");
            // Signed, or the store would take no notice.
            let signed = request.headers().get("authorization").unwrap_or_default().contains("x-tigris-consistent");
            let body = match what.as_str() {
                "GET list-type prefix" => "<ListBucketResult></ListBucketResult>",
                "POST delete" => "<DeleteResult></DeleteResult>",
                "POST uploads" => {
                    "<InitiateMultipartUploadResult><UploadId>7</UploadId></InitiateMultipartUploadResult>"
                }
                "POST uploadId" => "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>",
                _ => "",
            };
            self.0.lock().unwrap().push(Asked { what, tigris: tigris && signed });
            let mut response = HttpResponse::new(200.try_into().unwrap(), SdkBody::from(body));
            response.headers_mut().insert("content-length", body.len().to_string());
            response.headers_mut().insert("etag", "\"tag\"");
            HttpConnectorFuture::ready(Ok(response))
        }
    }

    /// A backend whose first attempts go to one store and whose repeated ones go to the other.
    async fn backend(endpoint: &str) -> (S3Backend, YesMan, YesMan) {
        let mut config = ReplicaConfig::from_url(&format!("s3://bkt/db?endpoint={endpoint}")).unwrap();
        for (key, value) in [("access-key-id", "id"), ("secret-access-key", "secret"), ("part-size", "5MiB")] {
            config.set(key, value).unwrap();
        }
        let Location::S3(config) = config.location else { panic!("not S3") };
        let (first, again) = (YesMan::default(), YesMan::default());
        let policy = RetryPolicy::default();
        let backend = S3Backend::with_clients(&config, &policy, first.client(), again.client()).await.unwrap();
        (backend, first, again)
    }

    /// One request of every kind.
    async fn ask_everything(backend: &S3Backend, attempt: u32) {
        let list = ListRequest { scope: Scope::Generations, from: ltx::Txid::ZERO, token: None, attempt };
        backend.list(&list).await.unwrap();
        backend.head("key", attempt).await.unwrap();
        let get = GetRequest { key: "key", range: GetRange::Whole, attempt };
        backend.get(&get).await.unwrap();
        let options = PutOptions { precondition: Precondition::NotExists, attempt, ..PutOptions::default() };
        backend.put("key", &Body::Bytes("small".into()), &options).await.unwrap();
        backend.put("key", &Body::Bytes(vec![0; 6 << 20].into()), &options).await.unwrap();
        backend.delete(&["key"], attempt).await.unwrap();
        backend.delete_one("key", attempt).await.unwrap();
    }

    const KINDS: [&str; 10] = [
        "DELETE x-id",
        "GET list-type prefix",
        "GET x-id",
        "HEAD ",
        "POST delete",
        "POST uploadId",
        "POST uploads",
        "PUT x-id",
        "PUT x-id partNumber uploadId",
        "DELETE x-id uploadId",
    ];

    #[tokio::test]
    async fn what_a_store_needs_is_in_every_request() {
        let (backend, first, _) = backend("http://fly.storage.tigris.dev").await;
        ask_everything(&backend, 0).await;
        backend.client(0).abort_multipart_upload().bucket("bkt").key("key").upload_id("7").send().await.unwrap();
        let asked = first.asked();
        let kinds: BTreeSet<&str> = asked.iter().map(|asked| asked.what.as_str()).collect();
        assert_eq!(kinds, KINDS.into());
        for asked in asked {
            assert!(asked.tigris, "{}", asked.what);
        }
    }

    #[tokio::test]
    async fn repeated_attempts_take_new_connections() {
        let (backend, first, again) = backend("http://127.0.0.1:1").await;
        ask_everything(&backend, 0).await;
        assert!(again.asked().is_empty() && !first.asked().is_empty());
        ask_everything(&backend, 1).await;
        let first: Vec<String> = first.asked().into_iter().map(|asked| asked.what).collect();
        // An upload's parts have attempts of their own.
        assert_eq!(first, ["PUT x-id partNumber uploadId"; 2]);
        assert!(again.asked().iter().all(|asked| !asked.tigris));
    }
}
