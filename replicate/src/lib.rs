//! A live SQLite database in WAL mode, captured as LTX files, beside an application that knows nothing of it and is never made to wait.
//!
//! So far this crate knows what of a write-ahead log is committed: [`wal`].

pub mod wal;
