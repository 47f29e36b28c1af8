//! Writing and deleting objects: whole, one by one, in batches.

use std::sync::Arc;

use aws_sdk_s3::config::http::HttpRequest;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, ObjectIdentifier, ServerSideEncryption};
use md5::{Digest, Md5};

use super::{CustomerKey, S3Backend, TIME, answer, keys};
use crate::backend::{Body, Precondition, PutOptions};
use crate::config::S3Config;
use crate::replica::read_body;
use crate::{ETag, Error, ObjectInfo, Result};

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

    pub(super) async fn delete_batch(&self, keys: &[&str], attempt: u32) -> Result<()> {
        let first = keys.first().copied().unwrap_or_default();
        let objects = keys.iter().map(|key| ObjectIdentifier::builder().key(*key).build());
        let objects: Result<Vec<_>, _> = objects.collect();
        let delete = objects.and_then(|objects| Delete::builder().set_objects(Some(objects)).quiet(true).build());
        let delete = delete.map_err(|error| Error::Config(error.to_string()))?;
        let md5_wanted = self.settings.content_md5;
        let answer = self
            .client(attempt)
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

    pub(super) async fn delete_one(&self, key: &str, attempt: u32) -> Result<()> {
        match self.client(attempt).delete_object().bucket(&self.bucket).key(key).send().await {
            Ok(_) => Ok(()),
            Err(error) => match answer::error(&self.url, "delete", key, error) {
                Error::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    pub(super) fn put_error<E>(
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

    pub(super) fn written(&self, key: &str, size: u64, etag: Option<&str>, options: &PutOptions<'_>) -> ObjectInfo {
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
