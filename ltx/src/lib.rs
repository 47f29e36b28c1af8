//! The LTX file format: bytes in, pages out, and back.
//!
//! An LTX file holds the pages that one or more SQLite transactions changed: a 100-byte [`Header`], one LZ4-compressed
//! [`Frame`] per page in ascending page order, an index of the frames, and a [`Trailer`] with the file's checksum. Litestream
//! 0.5 writes them into object storage; this crate reads all that it writes, and writes what it reads.
//! The format is drawn byte by byte in this crate's `README.md`.
//!
//! This crate alone knows those bytes. It knows nothing of paths, networks or async, and needs no more than [`std::io`].
//!
//! | to | use |
//! |---|---|
//! | read a whole file from front to back, verified | [`Decoder`] |
//! | find the index from the end of a file | [`Tail::parse`], [`TailLength`] |
//! | turn the bytes of one frame into a page | [`Frame::parse`], [`Frame::decompress_into`] |
//! | verify a file that is fetched in ranges, in parallel | [`ContentHash`], [`Layout::checksum`] |
//! | write a file, from pages or from other files' frames | [`Encoder`] |
//! | join other files' frames, in any order and from many threads | [`Assembly`] |
//! | name a file | [`FileName`] |
//!
//! ```
//! use ltx::{Commit, Decoder, Encoder, Header, PageSize, Pgno, Timestamp, Txid};
//!
//! let page_size = PageSize::new(512).unwrap();
//! let header = Header::new(page_size, Commit(1), Txid(1), Txid(1), Timestamp(1_700_000_000_000));
//! let mut encoder = Encoder::new(Vec::new(), header)?;
//! encoder.page(Pgno::new(1).unwrap(), &[7; 512])?;
//! let (file, _trailer) = encoder.finish()?;
//!
//! let mut decoder = Decoder::new(file.as_slice())?;
//! let mut page = [0; 512];
//! assert_eq!(decoder.next_page(&mut page)?, Pgno::new(1));
//! assert_eq!(page, [7; 512]);
//! assert_eq!(decoder.next_page(&mut page)?, None); // end of the pages: the whole file has been verified
//! # Ok::<(), ltx::Error>(())
//! ```
#![deny(clippy::little_endian_bytes)]

mod assemble;
mod checksum;
mod decode;
mod encode;
mod error;
mod frame;
mod header;
mod index;
mod name;
mod types;

pub use assemble::{Assembly, FrameHash, copied_len};
pub use checksum::{Checksum, ContentHash, DatabaseChecksum, page_checksum};
pub use decode::{Decoder, verify};
pub use encode::Encoder;
pub use error::{Error, PageProblem, Result};
pub use frame::{FRAME_HEADER_LEN, Frame, max_frame_len};
pub use header::{FLAG_NO_CHECKSUM, HEADER_LEN, Header, MAGIC, TRAILER_LEN, Trailer};
pub use index::{IndexEntry, IndexReader, Layout, Tail, TailLength};
pub use name::FileName;
pub use types::{Commit, PageSize, Pgno, Timestamp, Txid};
