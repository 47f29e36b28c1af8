//! Which bytes hold page N at TXID T.
//!
//! A replica is many LTX files in ten levels. This crate alone knows which of them together give a database at a TXID or a moment
//! ([`Plan`]), which frame of which file holds a page ([`View`]), how files are merged ([`compact`]) and which may go ([`retention`]).
//!
//! Everything rests on a [`Listing`]: three LIST requests side by side. From there on a restore, a view and a compaction need one more
//! wave of requests to know all frames: every small file whole, and of every large one its head and its tail together.

pub mod compact;
mod error;
pub mod fence;
mod file;
mod listing;
mod merge;
mod packed;
mod plan;
pub mod retention;
mod spill;
mod time;
pub mod upkeep;
mod view;

pub use error::{Error, Result};
pub use file::{FramesHash, OpenFile, SMALL_FILE, Span, open_file, open_files};
pub use listing::Listing;
pub use packed::{PackedIndex, PackedIndexBuilder};
pub use plan::{MAX_REPLANS, Plan, Replannable, Target, exact, find, replan, replan_from};
pub use spill::Spill;
pub use time::{Cutoff, time_of};
pub use view::{Location, View};
