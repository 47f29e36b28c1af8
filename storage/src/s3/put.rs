//! Writing and deleting objects: whole, in parts, in batches.

use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpRequest;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier, ServerSideEncryption};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use md5::{Digest, Md5};

use super::{CustomerKey, S3Backend, TIME, answer, keys};
use crate::backend::{Body, Precondition, PutOptions};
use crate::config::S3Config;
use crate::replica::read_body;
use crate::{ETag, Error, ObjectInfo, Result};

/// The most parts an upload may have.
const MAX_PARTS: u64 = 10_000;

/// The customer's own key, where one is configured: AES-256, base64, as text or in a file.
pub(super) fn customer_key(config: &S3Config) -> Result<Option<CustomerKey>> {
    let Some(algorithm) = config.sse_customer_algorithm() else { return Ok(None) };
    let text = match (&config.sse_customer_key, &config.sse_customer_key_path) {
        (Some(key), _) => key.expose().to_owned(),
        (None, Some(path)) => std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?,
        (None, None) => return Ok(None),
    };
    let key = text.trim();
    let raw = aws_smithy_types::base64::decode(key)
        .ok()
        .filter(|raw| raw.len() == 32)
        .ok_or_else(|| Error::Config("sse-customer-key must be 32 bytes in base64".into()))?;
    Ok(Some(CustomerKey { algorithm: algorithm.to_owned(), key: key.to_owned(), md5: md5(&raw) }))
}

fn md5(bytes: &[u8]) -> String {
    aws_smithy_types::base64::encode(Md5::digest(bytes))
}

/// How large the parts of an upload must be so that their number stays within bounds.
fn part_size(len: u64, configured: u64) -> u64 {
    configured.max(len.div_ceil(MAX_PARTS))
}

macro_rules! with_common_headers {
    ($request:expr, $settings:expr, $options:expr) => {{
        let settings = $settings;
        let mut request = $request.set_storage_class(settings.storage_class.clone());
        if let Some(time) = $options.time {
            request = request.metadata(TIME, keys::format_time(time));
        }
        for (key, value) in $options.metadata {
            request = request.metadata(*key, *value);
        }
        if let Some(key) = &settings.kms_key_id {
            request = request.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(key);
        }
        with_customer_key!(request, settings)
    }};
}

macro_rules! with_customer_key {
    ($request:expr, $settings:expr) => {{
        let mut request = $request;
        if let Some(key) = &$settings.customer_key {
            request = request
                .sse_customer_algorithm(&key.algorithm)
                .sse_customer_key(&key.key)
                .sse_customer_key_md5(&key.md5);
        }
        request
    }};
}

impl S3Backend {
    pub(super) async fn put_whole(&self, key: &str, body: &Body, options: &PutOptions<'_>) -> Result<ObjectInfo> {
        let bytes = read_body(body, 0..body.len()).await?;
        let put = self.client(options.attempt).put_object().bucket(&self.bucket).key(key);
        let mut put = with_common_headers!(put, &self.settings, options).body(ByteStream::from(bytes.clone()));
        put = match &options.precondition {
            Precondition::None => put,
            Precondition::NotExists => put.if_none_match("*"),
            Precondition::Matches(tag) => put.if_match(format!("\"{tag}\"")),
        };
        let mut put = put.customize();
        if self.settings.unsigned_payload {
            put = put.disable_payload_signing();
        }
        let answer = put.send().await.map_err(|error| self.put_error(key, &options.precondition, error))?;
        Ok(self.written(key, body.len(), answer.e_tag(), options))
    }

    pub(super) async fn put_parts(&self, key: &str, body: &Body, options: &PutOptions<'_>) -> Result<ObjectInfo> {
        let client = self.client(options.attempt);
        let create = client.create_multipart_upload().bucket(&self.bucket).key(key);
        let created = with_common_headers!(create, &self.settings, options)
            .send()
            .await
            .map_err(|error| answer::error(&self.url, "write", key, error))?;
        let upload = Upload {
            client: client.clone(),
            bucket: self.bucket.clone(),
            key: key.to_owned(),
            id: created.upload_id().unwrap_or_default().to_owned(),
            finished: false,
        };
        let outcome = self.upload_parts(&upload, body, options).await;
        let mut upload = upload;
        upload.finished = true;
        match outcome {
            Ok(object) => Ok(object),
            Err(error) => {
                if let Err(aborted) = upload.abort().await {
                    tracing::warn!(key, %aborted, "cannot abort a failed upload; its parts remain in the store");
                }
                Err(error)
            }
        }
    }

    async fn upload_parts(&self, upload: &Upload, body: &Body, options: &PutOptions<'_>) -> Result<ObjectInfo> {
        let step = part_size(body.len(), self.settings.part_size);
        let spans = (0..body.len().div_ceil(step)).map(|part| part * step..body.len().min((part + 1) * step));
        let parts: Vec<CompletedPart> = stream::iter((1i32..).zip(spans))
            .map(|(number, span)| async move {
                let bytes = read_body(body, span).await?;
                let tag = self.upload_part(upload, number, bytes).await?;
                Ok::<_, Error>(CompletedPart::builder().part_number(number).set_e_tag(tag).build())
            })
            .buffered(self.settings.concurrency)
            .try_collect()
            .await?;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = self.client(options.attempt).complete_multipart_upload();
        let complete = complete.bucket(&self.bucket).key(&upload.key).upload_id(&upload.id).multipart_upload(parts);
        let complete = match &options.precondition {
            Precondition::None => complete,
            Precondition::NotExists => complete.if_none_match("*"),
            Precondition::Matches(tag) => complete.if_match(format!("\"{tag}\"")),
        };
        let complete = with_customer_key!(complete, &self.settings);
        let answer =
            complete.send().await.map_err(|error| self.put_error(&upload.key, &options.precondition, error))?;
        Ok(self.written(&upload.key, body.len(), answer.e_tag(), options))
    }

    /// A part is tried again by itself: starting a large upload over would cost all the others.
    async fn upload_part(&self, upload: &Upload, number: i32, bytes: Bytes) -> Result<Option<String>> {
        let retry = &self.settings.retry;
        retry
            .run("write", &upload.key, |attempt, patience| {
                let bytes = bytes.clone();
                let slow = std::time::Duration::from_secs(bytes.len() as u64 / (64 * 1024));
                async move {
                    let part = self
                        .client(attempt)
                        .upload_part()
                        .bucket(&self.bucket)
                        .key(&upload.key)
                        .upload_id(&upload.id)
                        .part_number(number);
                    let part = with_customer_key!(part, &self.settings).body(ByteStream::from(bytes));
                    let mut part = part.customize();
                    if self.settings.unsigned_payload {
                        part = part.disable_payload_signing();
                    }
                    let send = async {
                        part.send().await.map_err(|error| answer::error(&self.url, "write", &upload.key, error))
                    };
                    let answer = crate::retry::within(patience + slow, "write", &upload.key, "a part", send).await?;
                    Ok(answer.e_tag().map(str::to_owned))
                }
            })
            .await
    }

    pub(super) async fn delete_batch(&self, keys: &[&str]) -> Result<()> {
        let first = keys.first().copied().unwrap_or_default();
        let objects = keys.iter().map(|key| ObjectIdentifier::builder().key(*key).build());
        let objects: Result<Vec<_>, _> = objects.collect();
        let delete = objects.and_then(|objects| Delete::builder().set_objects(Some(objects)).quiet(true).build());
        let delete = delete.map_err(|error| Error::Config(error.to_string()))?;
        let md5_wanted = self.settings.content_md5;
        let answer = self
            .client
            .delete_objects()
            .bucket(&self.bucket)
            .delete(delete)
            .customize()
            .mutate_request(move |request| {
                if md5_wanted {
                    add_content_md5(request);
                }
            })
            .send()
            .await
            .map_err(|error| answer::error(&self.url, "delete", first, error))?;
        // A per-key error fails the batch: nothing may be taken for deleted that is not.
        let Some(error) = answer.errors().iter().find(|error| error.code() != Some("NoSuchKey")) else {
            return Ok(());
        };
        let key: Arc<str> = error.key().unwrap_or(first).into();
        let text = format!("{}: {}", error.code().unwrap_or("error"), error.message().unwrap_or("no reason given"));
        match error.code() {
            Some("AccessDenied") => {
                Err(Error::Denied { url: self.url.clone(), operation: "delete", key, answer: text })
            }
            Some("InternalError" | "SlowDown" | "ServiceUnavailable") => {
                Err(Error::Transient { operation: "delete", key, cause: text })
            }
            _ => Err(Error::Refused { url: self.url.clone(), operation: "delete", key, answer: text }),
        }
    }

    pub(super) async fn delete_one(&self, key: &str) -> Result<()> {
        match self.client.delete_object().bucket(&self.bucket).key(key).send().await {
            Ok(_) => Ok(()),
            Err(error) => match answer::error(&self.url, "delete", key, error) {
                Error::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    fn put_error<E>(
        &self,
        key: &str,
        precondition: &Precondition,
        error: aws_sdk_s3::error::SdkError<E, aws_sdk_s3::config::http::HttpResponse>,
    ) -> Error
    where
        E: aws_sdk_s3::error::ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match (answer::error(&self.url, "write", key, error), precondition) {
            (Error::AlreadyExists { url, key }, Precondition::Matches(tag)) => {
                Error::Changed { url, key, expected: format!("ETag {tag}"), found: "another one".into() }
            }
            (error, _) => error,
        }
    }

    fn written(&self, key: &str, size: u64, etag: Option<&str>, options: &PutOptions<'_>) -> ObjectInfo {
        ObjectInfo {
            key: key.into(),
            size,
            etag: etag.map(ETag::new),
            modified: options.time.unwrap_or_default(),
            time: options.time,
        }
    }
}

/// Older stores want the MD5 of a batch of deletes, which the SDK no longer sends.
fn add_content_md5(request: &mut HttpRequest) {
    if let Some(bytes) = request.body().bytes() {
        let sum = md5(bytes);
        request.headers_mut().insert("Content-MD5", sum);
    }
}

/// An upload in parts. One that is dropped before its end (a cancelled command) is aborted in the background.
struct Upload {
    client: Client,
    bucket: String,
    key: String,
    id: String,
    finished: bool,
}

impl Upload {
    async fn abort(&self) -> Result<(), String> {
        let abort = self.client.abort_multipart_upload();
        let abort = abort.bucket(&self.bucket).key(&self.key).upload_id(&self.id).send();
        abort.await.map(|_| ()).map_err(|error| answer::describe(&error))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let abort = self.client.abort_multipart_upload();
            let abort = abort.bucket(&self.bucket).key(&self.key).upload_id(&self.id).send();
            runtime.spawn(async move {
                if let Err(error) = abort.await {
                    tracing::warn!(error = answer::describe(&error), "cannot abort a cancelled upload");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_parts_always_suffice() {
        assert_eq!(part_size(1 << 30, 16 << 20), 16 << 20);
        for len in [1u64 << 40, (1 << 40) + 1, 5 << 40] {
            assert!(len.div_ceil(part_size(len, 16 << 20)) <= MAX_PARTS);
        }
    }
}
