//! What can be wrong with an LTX file, said so that the reader of the message knows where to look.

use crate::{Checksum, Txid};

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why bytes are not a valid LTX file, or why one could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The reader or writer underneath failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The bytes end too early.
    #[error("file is cut short: {what} needs {need} bytes, {have} are there")]
    Truncated {
        /// The part that is incomplete.
        what: &'static str,
        /// Bytes it needs.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// The first four bytes are not `LTX1`.
    #[error("not an LTX file: it begins with {0:02x?} instead of \"LTX1\"")]
    Magic([u8; 4]),
    /// Flag bits that this version does not know.
    #[error("unknown LTX flags {0:#010x}: the file was written by a newer program")]
    Flags(u32),
    /// Not a page size that SQLite knows.
    #[error("invalid page size {0}: it must be a power of two from 512 to 65536")]
    PageSize(u32),
    /// The header's TXIDs are zero or out of order.
    #[error("invalid TXID range {min}-{max} in the header")]
    TxidRange {
        /// First TXID.
        min: Txid,
        /// Last TXID.
        max: Txid,
    },
    /// A checksum field breaks the rule for this kind of file.
    #[error("invalid {field} {value}: {rule}")]
    ChecksumField {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: Checksum,
        /// What it should hold.
        rule: &'static str,
    },
    /// The header's WAL fields contradict each other.
    #[error("invalid WAL fields in the header: {0}")]
    WalFields(&'static str),
    /// A page's frame is wrong.
    #[error("page {pgno}: {problem}")]
    Page {
        /// The page number as it stands in the file.
        pgno: u32,
        /// What is wrong.
        problem: PageProblem,
    },
    /// A snapshot ends before its last page.
    #[error("snapshot has {have} of {want} pages")]
    SnapshotIncomplete {
        /// Pages found.
        have: u32,
        /// Pages the header's commit asks for.
        want: u32,
    },
    /// The page index cannot be right.
    #[error("page index: {0}")]
    Index(&'static str),
    /// Bytes follow the trailer.
    #[error("bytes follow the end of the file")]
    TrailingBytes,
    /// The file's checksum differs from its content.
    #[error("file checksum is {stored}, but the content has {computed}: the file is damaged")]
    FileChecksum {
        /// From the trailer.
        stored: Checksum,
        /// From the content.
        computed: Checksum,
    },
    /// A snapshot's pages do not have the database checksum that its trailer states.
    #[error("database checksum is {stored}, but the pages have {computed}: the file is damaged")]
    DatabaseChecksum {
        /// From the trailer.
        stored: Checksum,
        /// From the pages.
        computed: Checksum,
    },
    /// A file's name and its header differ.
    #[error("the name says TXIDs {name}, but the header says {header}")]
    NameMismatch {
        /// The TXIDs in the name.
        name: crate::FileName,
        /// The TXIDs in the header.
        header: crate::FileName,
    },
    /// Not the name of an LTX file.
    #[error("\"{0}\" is not the name of an LTX file (want MIN-MAX.ltx, two TXIDs of 16 hexadecimal digits)")]
    Name(String),
    /// Not a TXID.
    #[error("\"{0}\" is not a TXID: want 16 hexadecimal digits, such as 000000000000002a")]
    TxidText(String),
}

/// What is wrong with a page's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageProblem {
    /// Page numbers must ascend.
    #[error("out of order")]
    OutOfOrder,
    /// A snapshot must hold every page.
    #[error("a snapshot must not leave out the pages before it")]
    Hole,
    /// Above the database's size.
    #[error("lies beyond the end of the database")]
    BeyondCommit,
    /// The lock page is never stored.
    #[error("the lock page must not be stored")]
    LockPage,
    /// Frame flags that this version does not know.
    #[error("unknown frame flags {0:#06x}")]
    Flags(u16),
    /// The size field exceeds what a page can need.
    #[error("a frame of {0} bytes is too large for a page")]
    TooLarge(u32),
    /// The data is not an LZ4 block (or frame) of exactly one page.
    #[error("does not decompress to exactly one page")]
    Decompress,
    /// A legacy LZ4 frame whose structure or checksum is wrong.
    #[error("legacy LZ4 frame: {0}")]
    Legacy(&'static str),
    /// The frame differs from what the index says of it.
    #[error("the frame is not the one that the index names")]
    NotIndexed,
    /// The caller's page has another size.
    #[error("{0} bytes given where one page was wanted")]
    DataLength(usize),
}

impl PageProblem {
    pub(crate) fn at(self, pgno: u32) -> Error {
        Error::Page { pgno, problem: self }
    }
}
