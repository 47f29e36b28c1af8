//! What a store must be able to do: list, read a range, put under a condition, delete. One attempt each: retrying, resuming and timing out
//! are [`crate::Replica`]'s business, alike for every store.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use ltx::{FileName, Timestamp, Txid};

use crate::{ETag, Error, FileInfo, Level, ObjectInfo, Result};

/// One replica in one store.
///
/// # Guarantees asked of an implementation
/// - A listing is in ascending order of keys and holds every object that was there before it began and is not deleted meanwhile.
/// - [`Backend::get`] hands out bytes of *one* version of the object, the one whose description it returns.
/// - [`Backend::put`] is atomic: the object is there whole or not at all, and of several puts with [`Precondition::NotExists`] exactly
///   one succeeds.
/// - Deleting what is not there succeeds.
/// - An error that may pass is [`Error::Transient`]; nothing is retried inside, but the requests of a large upload.
/// - A repeated attempt, one whose number is not 0, uses a new connection: the one before may have been a dead one.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// The replica's address, without secrets.
    fn url(&self) -> &Arc<str>;

    /// The key of an LTX file that we write.
    fn key(&self, level: Level, name: FileName) -> String;

    /// The key of another object in the replica's own folder, as listings tell it.
    fn side_key(&self, name: &str) -> String;

    /// The store's own clock, as its latest answer told it. `None` where it has not said so yet.
    fn clock(&self) -> Option<Timestamp>;

    /// Whether [`Precondition`]s are known to be honoured. Of a store that somebody else runs that must be found out.
    fn honours_conditions(&self) -> bool {
        false
    }

    /// An entry of an object's metadata, where the store keeps them.
    async fn metadata(&self, _key: &str, _name: &str, _attempt: u32) -> Result<Option<String>> {
        Ok(None)
    }

    /// One page of a listing.
    async fn list(&self, request: &ListRequest<'_>) -> Result<ListPage>;

    /// Part of an object.
    async fn get(&self, request: &GetRequest<'_>) -> Result<GetResponse>;

    /// How many small spans [`Backend::get_spans`] should bring at once. Default 1: where requests go side by side anyway, each had better go
    /// on its own.
    fn spans_at_once(&self) -> usize {
        1
    }

    /// Spans of objects, for a store where many small reads cost less together. One that cannot be read, or whose object is of another size
    /// than described, is `None`: [`Backend::get`] is asked for it then, and says why. Default: none can.
    async fn get_spans(&self, spans: &[(&ObjectInfo, Range<u64>)]) -> Vec<Option<(ObjectInfo, Bytes)>> {
        spans.iter().map(|_| None).collect()
    }

    /// An object's description, time included.
    async fn head(&self, key: &str, attempt: u32) -> Result<ObjectInfo>;

    /// Whether a put of so many bytes limits and repeats its requests by itself, so that nobody else may end it as long as it gets on.
    fn paces_put(&self, _len: u64) -> bool {
        false
    }

    /// Writes an object.
    async fn put(&self, key: &str, body: &Body, options: &PutOptions<'_>) -> Result<ObjectInfo>;

    /// Deletes objects.
    async fn delete(&self, keys: &[&str], attempt: u32) -> Result<()>;
}

/// Which objects to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The LTX files of one level.
    Level(Level),
    /// The LTX files of every level above this one, and whatever else lies in the replica's own folder and sorts behind them.
    Above(Level),
    /// The `generations/` folder of Litestream 0.3, as plain objects.
    Generations,
}

/// A page of a listing.
#[derive(Clone, Copy, Debug)]
pub struct ListRequest<'a> {
    /// Which objects.
    pub scope: Scope,
    /// For a level: only files whose first TXID is at least this.
    pub from: Txid,
    /// Where the page before ended.
    pub token: Option<&'a str>,
    /// Which attempt this is, from 0.
    pub attempt: u32,
}

/// What a listing found.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// LTX files, ascending by level and name.
    pub files: Vec<FileInfo>,
    /// Other objects. Names that merely look odd inside a level are skipped.
    pub others: Vec<ObjectInfo>,
    /// Where to go on, when there is more.
    pub next: Option<String>,
    /// The store's own clock as this very answer tells it, to the second: whatever else is answered meanwhile, nothing that is not here was
    /// there then. `None` where it does not say.
    pub at: Option<Timestamp>,
}

/// Which bytes of an object to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetRange {
    /// All.
    Whole,
    /// From–to, end excluded. Must not be empty.
    Span(Range<u64>),
    /// This many from the end; all, where the object is shorter.
    Last(u64),
}

/// A read.
#[derive(Clone, Debug)]
pub struct GetRequest<'a> {
    /// The object.
    pub key: &'a str,
    /// Which part.
    pub range: GetRange,
    /// Which attempt this is, from 0.
    pub attempt: u32,
}

/// An object's description and the bytes asked for.
pub struct GetResponse {
    /// The whole object's description.
    pub object: ObjectInfo,
    /// Which bytes follow.
    pub range: Range<u64>,
    /// The bytes, as they arrive.
    pub body: BoxStream<'static, Result<Bytes>>,
}

impl fmt::Debug for GetResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetResponse").field("object", &self.object).field("range", &self.range).finish_non_exhaustive()
    }
}

/// What to write.
#[derive(Clone, Debug)]
pub enum Body {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A local file that nobody changes meanwhile.
    File {
        /// Where it lies.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
}

impl Body {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Under what condition an object may be put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    /// None.
    #[default]
    None,
    /// There must be no object of that key.
    NotExists,
    /// The object there must have this tag.
    Matches(ETag),
}

/// How to put an object.
#[derive(Clone, Debug, Default)]
pub struct PutOptions<'a> {
    /// Under what condition.
    pub precondition: Precondition,
    /// The object's time, which the store keeps beside it.
    pub time: Option<Timestamp>,
    /// Further metadata, where the store can keep it.
    pub metadata: &'a [(&'a str, &'a str)],
    /// Which attempt this is, from 0.
    pub attempt: u32,
}

/// Turns a requested range into a span of an object of `size` bytes.
pub(crate) fn resolve(url: &Arc<str>, key: &str, range: &GetRange, size: u64) -> Result<Range<u64>> {
    match range {
        GetRange::Whole => Ok(0..size),
        GetRange::Last(len) => Ok(size.saturating_sub(*len)..size),
        GetRange::Span(span) if span.start < size && span.start < span.end => Ok(span.start..span.end.min(size)),
        GetRange::Span(span) => Err(Error::Changed {
            url: url.clone(),
            key: key.into(),
            expected: format!("at least {} bytes", span.end),
            found: format!("{size} bytes"),
        }),
    }
}
