//! Noticing that something was committed: a few nanoseconds for a database that is idle, without SQLite, a lock or a system call.

use crate::files::Locks;
use crate::raw;
use crate::sys::Mapping;
use crate::wal::{INDEX_SAYS, Index};

/// The beginning of a database's index, looked at by whoever goes through many databases. It stays good while the database is captured or
/// rests, and through every change from one to the other; it is to be dropped with it.
///
/// It shows the index that was there when it was made. That the file was deleted or replaced does not show:
/// [`Capture::check_files`](crate::Capture::check_files) tells.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Nothing where it is read from its file instead.
    mapping: Option<Mapping>,
    locks: Locks,
}

impl Watch {
    pub(crate) const fn new(mapping: Mapping, locks: Locks) -> Self {
        Self { mapping: Some(mapping), locks }
    }

    /// The same without the page of memory that it takes to look: it is a system call then, about two microseconds.
    #[must_use]
    pub fn without_memory(&self) -> Self {
        Self { mapping: None, locks: self.locks.clone() }
    }

    /// Whether anything was committed, or done to the log, since that was captured. Also yes while a writer is publishing just now, or has died
    /// over it.
    #[must_use]
    pub fn changed(&self, since: &Seen) -> bool {
        match &self.mapping {
            Some(mapping) => !mapping.says(&since.0),
            None => !raw::says(&self.locks, &since.0),
        }
    }

    /// Whether somebody is checkpointing: he may be waiting for our hold, so that a pass is urgent. A system call, about a microsecond.
    #[must_use]
    pub fn checkpointer_waiting(&self) -> bool {
        self.locks.checkpointing()
    }
}

/// What the index said when all was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen([u32; INDEX_SAYS]);

impl Seen {
    /// Nothing; everything differs from it.
    pub(crate) const NOTHING: Self = Self([0; INDEX_SAYS]);

    pub(crate) fn of(index: &Index) -> Self {
        Self(index.words())
    }
}
