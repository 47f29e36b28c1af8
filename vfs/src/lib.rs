//! SQLite on top of a replica in object storage: queries are answered before the database has been downloaded.
//!
//! As a loadable extension (`liblitestream_vfs.so`) in any SQLite program, or linked into one ([`register`]):
//!
//! ```text
//! .load ./liblitestream_vfs
//! .open 'file:my.db?vfs=litestream&replica_url=s3://bucket/my.db'
//! PRAGMA litestream_time = '5 minutes ago';
//! SELECT * FROM sandwich_ratings;
//! ```
//!
//! How a page comes: SQLite asks [`ffi`] (the only `unsafe`), that the connection (its view, its lock), that the local file, where the database is
//! hydrated into one, then the page cache; the view says which frame of which file holds the page, the fetcher gets it – with what will be asked for next – in one ranged request.
//!
//! This crate alone knows SQLite's VFS interface, what pages name which others, and how to wait on a host's thread. It links no SQLite.
//!
//! # Rules of the house
//! - Nothing changes a view once it is published; a connection keeps the view that it took when its transaction began.
//! - Nothing waits without end, and every wait ends when the host interrupts the query.
//! - No lock that a read or a commit needs is held across network I/O.
//! - No panic reaches the host; no signal is handled; nothing depends on which thread calls.

mod btree;
mod connection;
mod database;
mod error;
mod fetch;
pub mod ffi;
mod flight;
mod hydration;
mod log;
mod neighbours;
mod process;
mod settings;
pub mod write;

pub use error::{Error, Result};
pub use ffi::{VFS_NAME, register};
