//! From a replica to a local database file.
//!
//! [`restore`] rebuilds a database at a TXID or a moment; [`legacy`] does the same from what Litestream 0.3 left. A [`Follower`] restores one and keeps it
//! current, for whatever SQLite reads it meanwhile.
//!
//! A restore reads every file of its plan once, newest first, in large ranges side by side; decodes on all cores; and writes each page once, in its
//! newest version, straight to its place. Nothing is re-encoded and nothing is written twice. Every byte read is covered by its file's checksum,
//! and the database appears under its name only when it is complete, verified and synced.

mod aside;
mod copy;
mod decode;
mod error;
mod finish;
mod follow;
mod journal;
pub mod legacy;
mod lock;
mod output;
mod restore;
mod sidecar;

pub use error::{Error, Result};
pub use finish::Publishing;
pub use follow::{Applied, Event, FollowOptions, Follower};
pub use output::{Output, Overwrite};
pub use restore::{Check, Progress, RestoreOptions, Restored, restore, restore_plan};
