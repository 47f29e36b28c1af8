//! Uploads in parts: begun, filled, completed; or aborted, even where nobody waits for them any more.
//!
//! Every request has a time limit and is repeated by itself: starting a large upload over would cost all its parts.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, ServerSideEncryption};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::{Notify, oneshot};

use super::{S3Backend, TIME, answer, keys};
use crate::backend::{Body, Precondition, PutOptions};
use crate::meter::Operation;
use crate::replica::{MIN_UPLOAD_RATE, Replica, read_body};
use crate::retry::{Leave, within};
use crate::{Error, Kind, ObjectInfo, Result};

/// The most parts an upload may have.
const MAX_PARTS: u64 = 10_000;
/// How long a store may take to put the parts together, beside the time for an answer. S3 speaks of minutes for the largest objects; whoever asks again
/// before finds the upload gone and the object not there yet.
const ASSEMBLY: Duration = Duration::from_secs(60);

/// How long a failed upload's abort is waited for before it goes on alone, so that a store that is down is not waited for twice.
const ABORT: Duration = Duration::from_secs(5);

/// How many beginnings and aborts of uploads run on their own.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
/// Told when one of them has ended.
static ENDED: Notify = Notify::const_new();

/// One of them.
struct UnderWay;

impl UnderWay {
    fn new() -> Self {
        UNDER_WAY.fetch_add(1, Ordering::AcqRel);
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::AcqRel);
        ENDED.notify_waiters();
    }
}

/// Waits until uploads that were given up – their futures dropped, by a time limit or a cancelled command – have been aborted in their stores, but not
/// longer than `limit`.
///
/// To be called at a program's end, while the runtime still runs: what has not been aborted then stays in the store, and is paid for.
pub async fn settle(limit: Duration) {
    let all = async {
        loop {
            let ended = ENDED.notified();
            if UNDER_WAY.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    };
    if tokio::time::timeout(limit, all).await.is_err() {
        tracing::warn!("a cancelled upload could not be aborted in time; its parts remain in the store");
    }
}

/// Runs `work` to its end, whether or not anybody waits for what comes of it. Must be called inside a runtime.
fn in_background<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> oneshot::Receiver<T> {
    let (sender, receiver) = oneshot::channel();
    let under_way = UnderWay::new();
    tokio::spawn(async move {
        // Ends after all else here: where nobody listens, the result is dropped, and if that is an upload, its abort begins.
        let _under_way = under_way;
        let _ = sender.send(work.await);
    });
    receiver
}

/// How large the parts of an upload must be so that their number stays within bounds.
fn part_size(len: u64, configured: u64) -> u64 {
    configured.max(len.div_ceil(MAX_PARTS))
}

/// How long a part may take. As many as `concurrency` share the way.
fn part_time(len: u64, concurrency: usize) -> Duration {
    Duration::from_secs(len.saturating_mul(concurrency as u64) / MIN_UPLOAD_RATE)
}

/// An upload in parts. One that is dropped before its end is aborted in the background.
struct Upload {
    backend: S3Backend,
    key: String,
    id: String,
    finished: bool,
}

impl Upload {
    /// Gives the upload up. The abort goes on alone when it takes long, or nobody waits for it.
    async fn give_up(mut self) {
        let _ = tokio::time::timeout(ABORT, self.abort_in_background()).await;
    }

    fn abort_in_background(&mut self) -> oneshot::Receiver<()> {
        self.finished = true;
        let (key, id) = (std::mem::take(&mut self.key), std::mem::take(&mut self.id));
        in_background(Self::abort(self.backend.clone(), key, id))
    }

    /// Sends the abort until it is answered. One that is gone already counts as given up.
    async fn abort(backend: S3Backend, key: String, id: String) {
        let outcome = backend
            .retry
            .run(Operation::Abort, &key, |attempt, patience| {
                let abort = backend.client(attempt).abort_multipart_upload();
                let abort = abort.bucket(&backend.bucket).key(&key).upload_id(&id);
                let (backend, key) = (&backend, &key);
                async move {
                    let send = Box::pin(async {
                        let answer = abort.send().await.map(|_| ());
                        answer.map_err(|error| answer::error(&backend.url, "abort the upload of", key, error))
                    });
                    within(patience, "abort the upload of", key, "the answer", send).await
                }
            })
            .await;
        match outcome {
            Err(error) if error.kind() != Kind::NotFound => {
                tracing::warn!(key, %error, "cannot abort a failed upload; its parts remain in the store");
            }
            _ => {}
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.finished && tokio::runtime::Handle::try_current().is_ok() {
            drop(self.abort_in_background());
        }
    }
}

impl S3Backend {
    pub(super) async fn put_parts(&self, key: &str, body: &Body, options: &PutOptions<'_>) -> Result<ObjectInfo> {
        let mut upload = self.begin(key, options).await?;
        let outcome = match self.fill(&upload, body).await {
            Ok(parts) => self.complete(&upload, parts, body, options).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(_) => upload.finished = true,
            Err(_) => upload.give_up().await,
        }
        outcome.map_err(|error| match error {
            // Somebody has aborted the upload, such as a rule of the bucket's. Another one may do.
            Error::NotFound { key, .. } => {
                Error::Transient { operation: "write", key, cause: "the store has lost the upload".into() }
            }
            error => error,
        })
    }

    /// Begins an upload. In the background, so that one whose beginning nobody waits for any more is aborted rather than forgotten.
    async fn begin(&self, key: &str, options: &PutOptions<'_>) -> Result<Upload> {
        let [first, again] = [&self.client, &self.fresh].map(|client| {
            let create = client.create_multipart_upload().bucket(&self.bucket).key(key);
            with_common_headers!(create, &self.settings, options)
        });
        let (backend, key, before) = (self.clone(), key.to_owned(), options.attempt);
        let wanted = Arc::new(());
        let still_wanted = Arc::downgrade(&wanted);
        let lost = Error::Transient { operation: "write", key: key.as_str().into(), cause: "the runtime ends".into() };
        let begun = in_background(async move {
            let retry = &backend.retry;
            let id = retry
                .run(Operation::Put, &key, |attempt, patience| {
                    let create = if before + attempt == 0 { first.clone() } else { again.clone() };
                    let (backend, key) = (&backend, &key);
                    let given_up = attempt > 0 && still_wanted.strong_count() == 0;
                    async move {
                        if given_up {
                            return Err(Error::Config("nobody waits for this upload any more".into()));
                        }
                        let send = Box::pin(async {
                            create.send().await.map_err(|error| answer::error(&backend.url, "write", key, error))
                        });
                        let created = within(patience, "write", key, "the beginning of the upload", send).await?;
                        Ok(created.upload_id().unwrap_or_default().to_owned())
                    }
                })
                .await?;
            Ok(Upload { backend, key, id, finished: false })
        });
        let begun = begun.await.map_err(|_| lost)?;
        drop(wanted);
        begun
    }

    async fn fill(&self, upload: &Upload, body: &Body) -> Result<Vec<CompletedPart>> {
        let step = part_size(body.len(), self.settings.part_size);
        let spans = (0..body.len().div_ceil(step)).map(|part| part * step..body.len().min((part + 1) * step));
        stream::iter((1i32..).zip(spans))
            .map(|(number, span)| async move {
                let bytes = read_body(body, span).await?;
                let tag = self.upload_part(upload, number, bytes).await?;
                Ok::<_, Error>(CompletedPart::builder().part_number(number).set_e_tag(tag).build())
            })
            .buffered(self.settings.concurrency)
            .try_collect()
            .await
    }

    async fn upload_part(&self, upload: &Upload, number: i32, bytes: Bytes) -> Result<Option<String>> {
        let slow = part_time(bytes.len() as u64, self.settings.concurrency);
        let retry = &self.retry;
        retry
            .run_with(Operation::Put, &upload.key, &Leave::of(slow), |attempt, patience| {
                let part = self.client(attempt).upload_part().bucket(&self.bucket).key(&upload.key);
                let part = part.upload_id(&upload.id).part_number(number);
                let part = with_customer_key!(part, &self.settings).body(ByteStream::from(bytes.clone()));
                let mut part = part.customize();
                if self.settings.unsigned_payload {
                    part = part.disable_payload_signing();
                }
                async move {
                    let send = Box::pin(async {
                        part.send().await.map_err(|error| answer::error(&self.url, "write", &upload.key, error))
                    });
                    let answer = within(patience + slow, "write", &upload.key, "a part", send).await?;
                    Ok(answer.e_tag().map(str::to_owned))
                }
            })
            .await
    }

    /// Makes an object of the parts. An answer that got lost is resolved by reading, as in [`Replica::put`].
    async fn complete(
        &self,
        upload: &Upload,
        parts: Vec<CompletedPart>,
        body: &Body,
        options: &PutOptions<'_>,
    ) -> Result<ObjectInfo> {
        let key = upload.key.as_str();
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let ambiguous = AtomicBool::new(false);
        let outcome = self
            .retry
            .run_with(Operation::Put, key, &Leave::of(ASSEMBLY), |attempt, patience| {
                let complete = self.client(options.attempt + attempt).complete_multipart_upload();
                let complete = complete.bucket(&self.bucket).key(key).upload_id(&upload.id);
                let complete = complete.multipart_upload(parts.clone());
                let complete = match &options.precondition {
                    Precondition::None => complete,
                    Precondition::NotExists => complete.if_none_match("*"),
                    Precondition::Matches(tag) => complete.if_match(format!("\"{tag}\"")),
                };
                let complete = with_customer_key!(complete, &self.settings);
                let ambiguous = &ambiguous;
                async move {
                    let send = Box::pin(async {
                        let answer = complete.send().await;
                        answer.map_err(|error| self.put_error(key, &options.precondition, error))
                    });
                    let limit = patience.saturating_add(ASSEMBLY);
                    let outcome = within(limit, "write", key, "the end of the upload", send).await;
                    if matches!(outcome, Err(Error::Transient { .. })) {
                        ambiguous.store(true, Ordering::Relaxed);
                    }
                    outcome
                }
            })
            .await;
        match outcome {
            Ok(answer) => Ok(self.written(key, body.len(), answer.e_tag(), options)),
            // An upload that is completed is gone. An earlier attempt of ours may have been the one that did it.
            Err(error) if ambiguous.into_inner() && matches!(error.kind(), Kind::NotFound | Kind::Conflict) => {
                let replica = Replica::with(Arc::new(self.clone()), self.retry.clone());
                replica.holds(key, body).await?.ok_or(error)
            }
            Err(error) => Err(error),
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

    #[test]
    fn parts_that_share_the_way_have_as_much_time_as_one_after_the_other() {
        assert_eq!(part_time(16 << 20, 5), part_time(16 << 20, 1) * 5);
    }
}
