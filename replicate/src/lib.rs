//! A live SQLite database in WAL mode, captured as LTX files, beside an application that knows nothing of it and is never made to wait.
//!
//! This crate alone knows what of a write-ahead log is committed, how to keep a log from being reset before it has been read, and how to tell
//! whether a log that was left is still the same one. [`Capture`] knows nothing of object storage: to it a replica is somebody who can say what he
//! holds last ([`Remote`]), and what was captured lies in a folder beside the database ([`Staged`]). What brings it from there into replicas,
//! keeps these small, and does that for thousands of databases in one process, is [`daemon`].
//!
//! The database is never written to. Checkpoints copy what the application has committed into its file, as SQLite itself does.
//!
//! # Why nothing is lost
//! From [`Capture::start`] to [`Capture::stop`] there is always a *hold*: a read transaction. One that reads from the log keeps the log from being
//! reset; one that found all of the log in the file already keeps the file from being written to, so that what is in the log afterwards
//! cannot be reset before it is in the file. Either way all that came after the hold began stays readable. An old hold ends only after
//! everything up to what was committed *when the new one had begun* has been captured. Where a checkpoint of the application waits for our place
//! among the readers, the hold is for a moment the lock on the file alone.
//!
//! Whatever cannot be proven – a log that is another one than before, a count of transactions that is not the database's own – leads to a snapshot
//! of the whole database, and a line in the log that says why.
//!
//! # Thousands of databases
//! One that has been idle for long can [rest](Capture::rest): what a hold guarantees is then kept by three locks alone, with two descriptors and no
//! connection. A [`Watch`] notices a commit within nanoseconds, for those that are captured and for those that rest. Where even descriptors run
//! short, one that rests can be [parked](Resting::park), with nothing held at all. [`frugal`] makes connections small.
//!
//! # What must be left alone
//! The process must not open and close the database or its `-shm` by other means than this SQLite: with any descriptor that it closes, the locks
//! of all the others are gone. For the same reason descriptors of ours stay open when a database is let go, unless
//! [`Settings::alone_in_process`] says that there is nobody whose locks they could take.

mod build;
mod capture;
mod checkpoint;
mod concern;
pub mod daemon;
mod descriptors;
mod digest;
mod error;
#[cfg(test)]
mod faults;
mod files;
mod inherit;
mod large;
mod outside;
mod place;
mod raw;
mod stage;
mod standing;
mod state;
mod sys;
pub mod wal;
mod watch;
mod whole;

pub use capture::{Capture, Clock, Newest, NotNow, Parked, Refused, Remote, Resting, Settings};
pub use concern::Concern;
pub use digest::Digest;
pub use error::{Error, Result};
pub use files::is_replicated;
pub use stage::Staged;
pub use state::Left;
pub use watch::{Seen, Watch};

/// Has every connection of this process, not only ours, do with as little memory as it can: about 16 KiB for one of ours; and the allocator give
/// back what is not needed any more. To be called first of all, before anything in the process has used SQLite; later it does nothing, and says so.
#[must_use = "it says whether it was in time"]
pub fn frugal() -> bool {
    sys::thrifty_heap();
    sys::small_caches()
}
