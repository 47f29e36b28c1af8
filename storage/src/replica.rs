//! A replica as the rest of the project sees it: every request retried, resumed, timed out, counted and checked.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use ltx::{FileName, Timestamp, Txid};
use tokio::time::Instant;

use crate::backend::{Backend, Body, GetRange, GetRequest, ListPage, ListRequest, Precondition, PutOptions, Scope};
use crate::meter::{Meter, Operation};
use crate::retry::{Leave, Retry, RetryPolicy, within};
use crate::{Error, FileInfo, Kind, Level, ObjectInfo, Result};

/// How slowly an upload may go before it is given up: bytes a second.
pub(crate) const MIN_UPLOAD_RATE: u64 = 64 * 1024;
/// How many objects one batch deletes at most.
const DELETE_BATCH: usize = 1_000;

/// Up to this many bytes a span is small.
const SMALL_SPAN: u64 = 256 * 1024;

/// One database's files in object storage.
///
/// Cheap to clone; clones share connections and counters.
#[derive(Clone, Debug)]
pub struct Replica {
    backend: Arc<dyn Backend>,
    retry: Retry,
    counters: Arc<Counters>,
}

/// What a replica's requests have cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// LIST requests.
    pub lists: u64,
    /// GET requests.
    pub gets: u64,
    /// HEAD requests.
    pub heads: u64,
    /// PUT requests, a multipart upload counted as one.
    pub puts: u64,
    /// DELETE requests.
    pub deletes: u64,
    /// Requests that were repeated.
    pub retries: u64,
    /// Bytes of objects read.
    pub bytes_read: u64,
    /// Bytes of objects written.
    pub bytes_written: u64,
}

#[derive(Debug, Default)]
struct Counters {
    lists: AtomicU64,
    gets: AtomicU64,
    heads: AtomicU64,
    puts: AtomicU64,
    deletes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Replica {
    /// A replica in a store of the caller's.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, policy: RetryPolicy) -> Self {
        let retry = Retry::new(policy, backend.url().clone());
        Self::with(backend, retry)
    }

    /// The same, whose requests count as those of all who share the meter.
    pub(crate) fn metered(backend: Arc<dyn Backend>, policy: RetryPolicy, meter: Arc<Meter>) -> Self {
        let retry = Retry::new(policy, backend.url().clone()).metered(meter);
        Self::with(backend, retry)
    }

    pub(crate) fn with(backend: Arc<dyn Backend>, retry: Retry) -> Self {
        Self { backend, retry, counters: Arc::default() }
    }

    /// The replica's address, without secrets.
    #[must_use]
    pub fn url(&self) -> &Arc<str> {
        self.backend.url()
    }

    /// The key of another object in the replica's own folder.
    #[must_use]
    pub fn side_key(&self, name: &str) -> String {
        self.backend.side_key(name)
    }

    /// The key of an LTX file that we write.
    #[must_use]
    pub fn key(&self, level: Level, name: FileName) -> String {
        self.backend.key(level, name)
    }

    /// The store's own clock, as its latest answer told it: to the second, and never back. `None` where it has not said so yet.
    #[must_use]
    pub fn clock(&self) -> Option<Timestamp> {
        self.backend.clock()
    }

    /// Whether [`Precondition`]s are known to be honoured, so that nobody needs to try.
    #[must_use]
    pub fn honours_conditions(&self) -> bool {
        self.backend.honours_conditions()
    }

    /// An entry of an object's metadata, where the store keeps them.
    ///
    /// # Errors
    /// As [`Replica::head`].
    pub async fn metadata(&self, key: &str, name: &str) -> Result<Option<String>> {
        self.retry
            .run(Operation::Head, key, |attempt, patience| async move {
                count(&self.counters.heads, 1);
                within(patience, "look at", key, "the answer", self.backend.metadata(key, name, attempt)).await
            })
            .await
    }

    /// What the requests so far have cost.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Counters { lists, gets, heads, puts, deletes, bytes_read, bytes_written } = &*self.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            lists: load(lists),
            gets: load(gets),
            heads: load(heads),
            puts: load(puts),
            deletes: load(deletes),
            retries: self.retry.retries(),
            bytes_read: load(bytes_read),
            bytes_written: load(bytes_written),
        }
    }

    /// One page of a listing.
    ///
    /// # Errors
    /// As the store says, after retries.
    pub async fn list_page(&self, scope: Scope, from: Txid, token: Option<&str>) -> Result<ListPage> {
        self.retry
            .run(Operation::List, &scope_name(scope), |attempt, patience| async move {
                let request = ListRequest { scope, from, token, attempt };
                count(&self.counters.lists, 1);
                within(patience, "list", &scope_name(scope), "the answer", self.backend.list(&request)).await
            })
            .await
    }

    /// A whole listing.
    ///
    /// # Errors
    /// As the store says, after retries.
    pub async fn list(&self, scope: Scope, from: Txid) -> Result<ListPage> {
        let mut all = self.list_page(scope, from, None).await?;
        self.list_rest(scope, from, &mut all).await?;
        Ok(all)
    }

    /// Completes a listing whose first page is there.
    ///
    /// # Errors
    /// As the store says, after retries.
    pub async fn list_rest(&self, scope: Scope, from: Txid, page: &mut ListPage) -> Result<()> {
        while let Some(token) = page.next.take() {
            let more = self.list_page(scope, from, Some(&token)).await?;
            page.files.extend(more.files);
            page.others.extend(more.others);
            page.next = more.next;
        }
        Ok(())
    }

    /// The LTX files of a level whose first TXID is at least `from`.
    ///
    /// # Errors
    /// As the store says, after retries.
    pub async fn level(&self, level: Level, from: Txid) -> Result<Vec<FileInfo>> {
        Ok(self.list(Scope::Level(level), from).await?.files)
    }

    /// A whole file. The object must be the one that was listed.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Changed`], or as the store says, after retries.
    pub async fn get_file(&self, file: &FileInfo) -> Result<Bytes> {
        if file.size() == 0 {
            return Ok(Bytes::new());
        }
        self.get_span(file, 0..file.size()).await
    }

    /// A span of a file. The object must be the one that was listed.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Changed`], or as the store says, after retries.
    pub async fn get_span(&self, file: &FileInfo, span: Range<u64>) -> Result<Bytes> {
        Ok(self.get(file.key(), Some(&file.object), GetRange::Span(span)).await?.1)
    }

    /// How many small spans [`Replica::get_spans`] brings at least cost each.
    #[must_use]
    pub fn spans_at_once(&self) -> usize {
        self.backend.spans_at_once().max(1)
    }

    /// Spans of files, in the order asked for; they must fit into memory together. As [`Replica::get_span`] for each, all side by side, but
    /// cheaper where many are small and the store is a local folder.
    ///
    /// # Errors
    /// As [`Replica::get_span`].
    pub async fn get_spans(&self, spans: &[(&FileInfo, Range<u64>)]) -> Result<Vec<Bytes>> {
        let mut found = self.get_small(spans).await.into_iter();
        let bytes = spans.iter().map(|(file, span)| {
            let found = found.next().flatten();
            async move {
                match found {
                    Some(bytes) => Ok(bytes),
                    None => self.get_span(file, span.clone()).await,
                }
            }
        });
        futures::future::try_join_all(bytes).await
    }

    /// What the store brings together and at once of these spans. Whatever is wrong with the others, [`Replica::get_span`] will see.
    async fn get_small(&self, spans: &[(&FileInfo, Range<u64>)]) -> Vec<Option<Bytes>> {
        let len = |span: &Range<u64>| span.end.saturating_sub(span.start);
        let is_small = |(_, span): &(&FileInfo, Range<u64>)| (1..=SMALL_SPAN).contains(&len(span));
        if self.spans_at_once() == 1 || spans.len() < 2 {
            return Vec::new();
        }
        let small: Vec<_> =
            spans.iter().filter(|span| is_small(span)).map(|(file, span)| (&file.object, span.clone())).collect();
        let answers = async { Ok(self.backend.get_spans(&small).await) };
        let patience = self.retry.policy.first_byte;
        let asked = Instant::now();
        let Ok(answers) = within(patience, "read", "", "the first byte", answers).await else { return Vec::new() };
        // They were brought together.
        let each = asked.elapsed();
        let mut answers = answers.into_iter().zip(&small).map(|(answer, (expected, span))| {
            let (object, bytes) = answer?;
            self.check(Some(expected), &object).ok()?;
            count(&self.counters.gets, 1);
            self.retry.note(Operation::Get, each, None);
            self.count_read(bytes.len());
            (bytes.len() as u64 == len(span)).then_some(bytes)
        });
        spans.iter().map(|span| if is_small(span) { answers.next().flatten() } else { None }).collect()
    }

    /// An object, or part of it. Where `expected` is given, size and entity tag must be as there; a file that has been replaced meanwhile is
    /// never mixed with what was read of it before.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Changed`], or as the store says, after retries.
    pub async fn get(&self, key: &str, expected: Option<&ObjectInfo>, range: GetRange) -> Result<(ObjectInfo, Bytes)> {
        // What earlier attempts brought, kept outside of them: the next one asks only for the rest.
        let partial = tokio::sync::Mutex::new(Partial { expected: expected.cloned(), range, bytes: Bytes::new() });
        let leave = Leave::default();
        self.retry
            .run_with(Operation::Get, key, &leave, |attempt, patience| {
                let (partial, leave) = (&partial, &leave);
                async move {
                    let mut partial = partial.lock().await;
                    let before = partial.bytes.len();
                    let outcome = self.get_once(key, &mut partial, attempt, patience).await;
                    if partial.bytes.len() > before {
                        leave.got_on();
                    }
                    outcome
                }
            })
            .await
    }

    async fn get_once(
        &self,
        key: &str,
        partial: &mut Partial,
        attempt: u32,
        patience: Duration,
    ) -> Result<(ObjectInfo, Bytes)> {
        let request = GetRequest { key, range: partial.range.clone(), attempt };
        count(&self.counters.gets, 1);
        let response = within(patience, "read", key, "the first byte", self.backend.get(&request)).await?;
        self.check(partial.expected.as_ref(), &response.object)?;
        let object = response.object;
        partial.expected = Some(object.clone());
        let want = usize::try_from(response.range.end - response.range.start).map_err(|_| self.too_large(key))?;
        let mut body = response.body;
        let mut got = Gathered::new(want);
        let outcome = loop {
            match within(self.retry.policy.stall, "read", key, "the next byte", async { body.next().await.transpose() })
                .await
            {
                Ok(Some(bytes)) => got.push(bytes),
                Ok(None) if got.len() == want => break Ok(()),
                Ok(None) => {
                    let cause = format!("the answer ended after {} of {want} bytes", got.len());
                    break Err(Error::Transient { operation: "read", key: key.into(), cause });
                }
                Err(error) => break Err(error),
            }
            if got.len() >= want {
                break Ok(());
            }
        };
        self.count_read(got.len());
        let got = got.finish(want);
        partial.range = GetRange::Span(response.range.start + got.len() as u64..response.range.end);
        partial.bytes = if partial.bytes.is_empty() {
            got
        } else {
            let mut joined = BytesMut::with_capacity(partial.bytes.len() + got.len());
            joined.extend_from_slice(&partial.bytes);
            joined.extend_from_slice(&got);
            joined.freeze()
        };
        outcome?;
        Ok((object, std::mem::take(&mut partial.bytes)))
    }

    /// An object's description, with its time.
    ///
    /// # Errors
    /// [`Error::NotFound`], or as the store says, after retries.
    pub async fn head(&self, key: &str) -> Result<ObjectInfo> {
        self.retry
            .run(Operation::Head, key, |attempt, patience| async move {
                count(&self.counters.heads, 1);
                within(patience, "look at", key, "the answer", self.backend.head(key, attempt)).await
            })
            .await
    }

    /// Puts an LTX file that must not be there yet.
    ///
    /// An answer that got lost is resolved by reading: where the key holds exactly these bytes, they are ours.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] where another writer has put the key, or as the store says, after retries.
    pub async fn put_file(&self, level: Level, name: FileName, body: Body, time: Timestamp) -> Result<FileInfo> {
        self.put_file_with(level, name, body, time, &[]).await
    }

    /// Like [`Replica::put_file`], with metadata, where the store can keep it.
    ///
    /// # Errors
    /// As [`Replica::put_file`].
    pub async fn put_file_with(
        &self,
        level: Level,
        name: FileName,
        body: Body,
        time: Timestamp,
        metadata: &[(&str, &str)],
    ) -> Result<FileInfo> {
        let key = self.backend.key(level, name);
        let options = PutOptions { precondition: Precondition::NotExists, time: Some(time), metadata, attempt: 0 };
        let object = self.put(&key, body, &options).await?;
        Ok(FileInfo { level, name, object })
    }

    /// Puts an object.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Changed`], or as the store says, after retries.
    pub async fn put(&self, key: &str, body: Body, options: &PutOptions<'_>) -> Result<ObjectInfo> {
        let slow = Duration::from_secs(body.len() / MIN_UPLOAD_RATE);
        let paces_itself = self.backend.paces_put(body.len());
        let leave = Leave::of(if paces_itself { Duration::MAX } else { slow });
        let ambiguous = std::sync::atomic::AtomicBool::new(false);
        let outcome = self
            .retry
            .run_with(Operation::Put, key, &leave, |attempt, patience| {
                let options = PutOptions { attempt, ..options.clone() };
                let (body, ambiguous) = (&body, &ambiguous);
                async move {
                    count(&self.counters.puts, 1);
                    let put = self.backend.put(key, body, &options);
                    let outcome = if paces_itself {
                        put.await
                    } else {
                        within(patience + slow, "write", key, "the upload", put).await
                    };
                    if matches!(outcome, Err(Error::Transient { .. })) {
                        ambiguous.store(true, Ordering::Relaxed);
                    }
                    outcome
                }
            })
            .await;
        let conflict = matches!(&outcome, Err(error) if error.kind() == Kind::Conflict);
        if conflict && ambiguous.into_inner() {
            // An earlier attempt of ours may have been the one that got there.
            if let Some(object) = self.holds(key, &body).await? {
                return Ok(object);
            }
        }
        if outcome.is_ok() {
            count(&self.counters.bytes_written, body.len());
            self.retry.note_bytes(Operation::Put, body.len());
        }
        outcome
    }

    /// Whether `key` holds exactly `body`.
    pub(crate) async fn holds(&self, key: &str, body: &Body) -> Result<Option<ObjectInfo>> {
        const STEP: u64 = 4 << 20;
        let object = match self.head(key).await {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            object => object?,
        };
        if object.size != body.len() {
            return Ok(None);
        }
        let mut at = 0;
        while at < body.len() {
            let span = at..body.len().min(at + STEP);
            let (_, theirs) = self.get(key, Some(&object), GetRange::Span(span.clone())).await?;
            if theirs != read_body(body, span.clone()).await? {
                return Ok(None);
            }
            at = span.end;
        }
        Ok(Some(object))
    }

    /// Deletes files; those that are gone already count as deleted.
    ///
    /// # Errors
    /// As the store says, after retries. Some may have been deleted then.
    pub async fn delete(&self, files: &[FileInfo]) -> Result<()> {
        for batch in files.chunks(DELETE_BATCH) {
            let keys: Vec<&str> = batch.iter().map(FileInfo::key).collect();
            self.delete_keys(&keys).await?;
        }
        Ok(())
    }

    /// Deletes objects by key, at most 1,000.
    ///
    /// # Errors
    /// As the store says, after retries. Some may have been deleted then.
    pub async fn delete_keys(&self, keys: &[&str]) -> Result<()> {
        let Some(first) = keys.first() else { return Ok(()) };
        self.retry
            .run(Operation::Delete, first, |attempt, patience| async move {
                count(&self.counters.deletes, 1);
                let delete = self.backend.delete(keys, attempt);
                within(patience.saturating_mul(2), "delete", first, "the answer", delete).await
            })
            .await
    }

    fn count_read(&self, bytes: usize) {
        count(&self.counters.bytes_read, bytes as u64);
        self.retry.note_bytes(Operation::Get, bytes as u64);
    }

    fn check(&self, expected: Option<&ObjectInfo>, found: &ObjectInfo) -> Result<()> {
        let Some(expected) = expected else { return Ok(()) };
        let tags_differ = matches!((&expected.etag, &found.etag), (Some(a), Some(b)) if a != b);
        if expected.size == found.size && !tags_differ {
            return Ok(());
        }
        let describe = |object: &ObjectInfo| {
            let tag = object.etag.as_ref().map(|tag| format!(", ETag {tag}")).unwrap_or_default();
            format!("{} bytes{tag}", object.size)
        };
        Err(Error::Changed {
            url: self.url().clone(),
            key: expected.key.clone(),
            expected: describe(expected),
            found: describe(found),
        })
    }

    fn too_large(&self, key: &str) -> Error {
        Error::Refused {
            url: self.url().clone(),
            operation: "read",
            key: key.into(),
            answer: "the part asked for does not fit into memory".into(),
        }
    }
}

/// A read that goes on where an earlier attempt broke off.
struct Partial {
    expected: Option<ObjectInfo>,
    range: GetRange,
    bytes: Bytes,
}

/// Collects a body; one that comes in one piece is not copied.
struct Gathered {
    first: Bytes,
    rest: BytesMut,
    want: usize,
}

impl Gathered {
    fn new(want: usize) -> Self {
        Self { first: Bytes::new(), rest: BytesMut::new(), want }
    }

    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    fn push(&mut self, bytes: Bytes) {
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = bytes;
            return;
        }
        if self.rest.is_empty() {
            // Sized by what was asked for, which is at most a few MiB, and only once that much is on its way.
            self.rest.reserve(self.want);
            self.rest.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.rest.extend_from_slice(&bytes);
    }

    fn finish(self, limit: usize) -> Bytes {
        let mut bytes = if self.rest.is_empty() { self.first } else { self.rest.freeze() };
        bytes.truncate(limit);
        bytes
    }
}

fn scope_name(scope: Scope) -> String {
    match scope {
        Scope::Level(level) => format!("level {level}"),
        Scope::Above(level) => format!("the levels above {level}"),
        Scope::Generations => "generations".to_owned(),
    }
}

/// A span of what is to be written.
pub(crate) async fn read_body(body: &Body, span: Range<u64>) -> Result<Bytes> {
    match body {
        Body::Bytes(bytes) => Ok(bytes.slice(span.start as usize..span.end as usize)),
        Body::File { path, .. } => {
            let path: PathBuf = path.clone();
            let read = move || {
                use std::os::unix::fs::FileExt;
                let mut buffer = vec![0; (span.end - span.start) as usize];
                let file = std::fs::File::open(&path).map_err(|error| Error::io("open", &path, error))?;
                file.read_exact_at(&mut buffer, span.start).map_err(|error| Error::io("read", &path, error))?;
                Ok(Bytes::from(buffer))
            };
            blocking(read).await
        }
    }
}

/// Runs what blocks on a thread where it may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(Error::Transient { operation: "run", key: "".into(), cause: error.to_string() }),
        },
    }
}
