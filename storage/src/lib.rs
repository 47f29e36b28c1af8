//! Where a replica's files lie: list, ranged get, conditional put, delete.
//!
//! A *replica* is one database's LTX files in object storage. [`Replica`] is how the rest of the project reads and writes one: every request
//! is retried with jittered back-off and a bound, a broken read goes on where it stopped, every read is checked against the object that was
//! listed, and everything is counted. Underneath, a [`Backend`] does single attempts: [`S3`](s3::S3Backend),
//! [`files`](file::FileBackend), [`memory`](memory::MemoryBackend). All three pass one [`conformance`] suite.
//!
//! This crate alone knows how keys are spelled, what stores answer, and how long to wait. It knows of an LTX file only its name.
//!
//! ```
//! use litestream_storage::{Body, Level, Replica, RetryPolicy, memory::MemoryBackend};
//! use ltx::{FileName, Timestamp, Txid};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let replica = Replica::new(MemoryBackend::new("example").into(), RetryPolicy::default());
//! let name = FileName::new(Txid(1), Txid(1));
//! replica.put_file(Level::ZERO, name, Body::Bytes("bytes".into()), Timestamp(0)).await?;
//! let files = replica.level(Level::ZERO, Txid::ZERO).await?;
//! assert_eq!(replica.get_file(&files[0]).await?, "bytes");
//! # Ok::<(), litestream_storage::Error>(()) }).unwrap();
//! ```

mod backend;
pub mod config;
pub mod conformance;
mod error;
pub mod faults;
pub mod file;
pub mod memory;
mod meter;
mod open;
mod replica;
mod retry;
pub mod s3;
mod types;

pub use backend::{
    Backend, Body, GetRange, GetRequest, GetResponse, ListPage, ListRequest, Precondition, PutOptions, Scope,
};
pub use error::{Error, Kind, Result};
pub use meter::{Cost, Meter};
pub use open::{Stores, open};
pub use replica::{Replica, Stats};
pub use retry::RetryPolicy;
pub use s3::{format_time, settle};
pub use types::{ETag, FileInfo, Level, ObjectInfo};
