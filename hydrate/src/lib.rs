//! From a replica to a local database file.
//!
//! [`restore`] rebuilds a database at a TXID or a moment; [`legacy`] does the same from what Litestream 0.3 left. [`Background`] fills a file
//! while it is read already ([`Local`]), and keeps it at the newest view. A [`Follower`] restores a database and keeps it current, for whatever
//! SQLite reads it meanwhile.
//!
//! A restore reads every file of its plan once, newest first, in large ranges side by side; decodes on all cores; and writes each page once, in its
//! newest version, straight to its place. Nothing is re-encoded and nothing is written twice. Every byte read is covered by its file's checksum,
//! and the database appears under its name only when it is complete, verified and synced.

mod aside;
mod background;
mod copy;
mod decode;
mod error;
mod finish;
mod follow;
mod journal;
pub mod legacy;
mod local;
mod lock;
mod meta;
mod output;
mod owners;
mod place;
mod restore;
mod sidecar;

pub use background::{Background, Counters};
pub use error::{Error, Result};
pub use finish::Publishing;
pub use follow::{Applied, Event, FollowOptions, Follower};
pub use local::Local;
pub use output::{Output, Overwrite};
pub use place::Places;
pub use restore::{Check, Progress, RestoreOptions, Restored, restore, restore_plan};
