//! What lies in a replica: levels, files, objects.

use std::fmt;
use std::sync::Arc;

use ltx::{FileName, Timestamp};

/// A compaction level: 0 holds one file per sync, 1–8 hold compactions, 9 holds snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// The level of single syncs.
    pub const ZERO: Self = Self(0);
    /// The first level of compactions.
    pub const ONE: Self = Self(1);
    /// The level of snapshots.
    pub const SNAPSHOT: Self = Self(9);

    /// A level, or `None` above 9.
    #[must_use]
    pub const fn new(level: u8) -> Option<Self> {
        if level <= Self::SNAPSHOT.0 { Some(Self(level)) } else { None }
    }

    /// The level's number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// All levels, ascending.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..=Self::SNAPSHOT.0).map(Self)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An object's entity tag, without quotes. Two reads of one key with the same tag saw the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ETag(Arc<str>);

impl ETag {
    /// A tag as a store prints it, quoted or not, weak or strong.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.trim().trim_start_matches("W/").trim_matches('"').into())
    }

    /// The tag without quotes.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object as the store describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The object's key, in the backend's own form.
    pub key: Arc<str>,
    /// Length in bytes.
    pub size: u64,
    /// Entity tag, where the store has them.
    pub etag: Option<ETag>,
    /// When the store says that the object was last written; of one that was just put, the time it was given, which may be long past.
    pub modified: Timestamp,
    /// The time that the writer gave the object (for an LTX file, its header's timestamp), where the request that led here
    /// brings it: a LIST on S3 does not.
    pub time: Option<Timestamp>,
}

/// An LTX file in a replica. Its identity is key, size and entity tag together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// The level it lies in.
    pub level: Level,
    /// The TXIDs it covers.
    pub name: FileName,
    /// The object.
    pub object: ObjectInfo,
}

impl FileInfo {
    /// The object's key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.object.key
    }

    /// Length in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.object.size
    }
}

impl fmt::Display for FileInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object.key)
    }
}
