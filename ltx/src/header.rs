//! The fixed ends of a file: the 100-byte header and the 16-byte trailer.

use crate::{Checksum, Commit, Error, FileName, PageSize, Result, Timestamp, Txid};

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"LTX1";
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 100;
/// Length of the trailer in bytes.
pub const TRAILER_LEN: usize = 16;
/// The flag for "this file carries no database checksums", the only one there is.
pub const FLAG_NO_CHECKSUM: u32 = 0x2;

/// What an LTX file says of itself at its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Flag bits: 0 or [`FLAG_NO_CHECKSUM`].
    pub flags: u32,
    /// Size of the database's pages.
    pub page_size: PageSize,
    /// Size of the database after this file.
    pub commit: Commit,
    /// First transaction in the file.
    pub min_txid: Txid,
    /// Last transaction in the file.
    pub max_txid: Txid,
    /// When the file's last transaction was captured.
    pub timestamp: Timestamp,
    /// Database checksum before this file; none for a snapshot and under [`FLAG_NO_CHECKSUM`].
    pub pre_apply_checksum: Checksum,
    /// Where in the WAL the pages came from, in bytes.
    pub wal_offset: u64,
    /// How much of the WAL the pages came from, in bytes.
    pub wal_size: u64,
    /// The WAL's two salts.
    pub wal_salt: [u32; 2],
    /// Who wrote the file.
    pub node_id: u64,
}

impl Header {
    /// A header as this project writes it: without database checksums, WAL fields and node id.
    #[must_use]
    pub const fn new(
        page_size: PageSize,
        commit: Commit,
        min_txid: Txid,
        max_txid: Txid,
        timestamp: Timestamp,
    ) -> Self {
        Self {
            flags: FLAG_NO_CHECKSUM,
            page_size,
            commit,
            min_txid,
            max_txid,
            timestamp,
            pre_apply_checksum: Checksum::NONE,
            wal_offset: 0,
            wal_size: 0,
            wal_salt: [0; 2],
            node_id: 0,
        }
    }

    /// Whether the file is a snapshot: it begins with the first transaction and holds every page.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.min_txid == Txid::FIRST
    }

    /// Whether the file carries database checksums.
    #[must_use]
    pub const fn has_checksums(&self) -> bool {
        self.flags & FLAG_NO_CHECKSUM == 0
    }

    /// The name that a file with this header must have.
    #[must_use]
    pub const fn name(&self) -> FileName {
        FileName::new(self.min_txid, self.max_txid)
    }

    /// Checks that a file with this header may stand under `name`.
    ///
    /// # Errors
    /// [`Error::NameMismatch`].
    pub fn expect_name(&self, name: FileName) -> Result<()> {
        if self.name() == name { Ok(()) } else { Err(Error::NameMismatch { name, header: self.name() }) }
    }

    /// Reads and validates a header from the first [`HEADER_LEN`] bytes of a file; further bytes are ignored.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Magic`], and whatever rule of the format the header breaks.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut bytes = Fields::new(bytes, "the header", HEADER_LEN)?;
        let magic = bytes.take::<4>();
        if magic != MAGIC {
            return Err(Error::Magic(magic));
        }
        let flags = bytes.u32();
        if flags & !FLAG_NO_CHECKSUM != 0 {
            return Err(Error::Flags(flags));
        }
        let page_size = bytes.u32();
        let header = Self {
            flags,
            page_size: PageSize::new(page_size).ok_or(Error::PageSize(page_size))?,
            commit: Commit(bytes.u32()),
            min_txid: Txid(bytes.u64()),
            max_txid: Txid(bytes.u64()),
            timestamp: Timestamp(bytes.u64().cast_signed()),
            pre_apply_checksum: Checksum(bytes.u64()),
            wal_offset: bytes.u64(),
            wal_size: bytes.u64(),
            wal_salt: [bytes.u32(), bytes.u32()],
            node_id: bytes.u64(),
        };
        header.validate()?;
        Ok(header)
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC);
        put(&self.flags.to_be_bytes());
        put(&self.page_size.get().to_be_bytes());
        put(&self.commit.0.to_be_bytes());
        put(&self.min_txid.0.to_be_bytes());
        put(&self.max_txid.0.to_be_bytes());
        put(&self.timestamp.0.to_be_bytes());
        put(&self.pre_apply_checksum.0.to_be_bytes());
        put(&self.wal_offset.to_be_bytes());
        put(&self.wal_size.to_be_bytes());
        put(&self.wal_salt[0].to_be_bytes());
        put(&self.wal_salt[1].to_be_bytes());
        put(&self.node_id.to_be_bytes());
        bytes
    }

    /// Checks the rules that hold between the fields.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<()> {
        if self.flags & !FLAG_NO_CHECKSUM != 0 {
            return Err(Error::Flags(self.flags));
        }
        if self.min_txid == Txid::ZERO || self.max_txid < self.min_txid {
            return Err(Error::TxidRange { min: self.min_txid, max: self.max_txid });
        }
        let value = self.pre_apply_checksum;
        let field = |rule| Error::ChecksumField { field: "pre-apply checksum", value, rule };
        if self.is_snapshot() && !value.is_none() {
            return Err(field("a snapshot must not have one"));
        }
        if !self.has_checksums() && !value.is_none() {
            return Err(field("a file without database checksums must not have one"));
        }
        if self.has_checksums() && !self.is_snapshot() && !value.is_flagged() {
            return Err(field("it is required, with bit 63 set"));
        }
        if self.wal_offset.cast_signed() < 0 || self.wal_size.cast_signed() < 0 {
            return Err(Error::WalFields("a negative offset or size"));
        }
        if self.wal_offset == 0 && (self.wal_size != 0 || self.wal_salt != [0; 2]) {
            return Err(Error::WalFields("a size or salts without an offset"));
        }
        Ok(())
    }
}

/// What an LTX file says of itself at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Database checksum after this file; none under [`FLAG_NO_CHECKSUM`].
    pub post_apply_checksum: Checksum,
    /// Checksum of the file's content.
    pub file_checksum: Checksum,
}

impl Trailer {
    /// Reads a trailer, checked against the file's header.
    ///
    /// # Errors
    /// [`Error::Truncated`] and [`Error::ChecksumField`].
    pub fn parse(bytes: &[u8], header: &Header) -> Result<Self> {
        let mut bytes = Fields::new(bytes, "the trailer", TRAILER_LEN)?;
        let trailer = Self { post_apply_checksum: Checksum(bytes.u64()), file_checksum: Checksum(bytes.u64()) };
        trailer.validate(header)?;
        Ok(trailer)
    }

    /// The trailer's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; TRAILER_LEN] {
        let mut bytes = [0; TRAILER_LEN];
        bytes[..8].copy_from_slice(&self.post_apply_checksum.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.file_checksum.0.to_be_bytes());
        bytes
    }

    fn validate(&self, header: &Header) -> Result<()> {
        let value = self.post_apply_checksum;
        let field = |rule| Err(Error::ChecksumField { field: "post-apply checksum", value, rule });
        if !header.has_checksums() {
            if header.commit == Commit(0) {
                return field("the file deletes the database, and must have an empty one");
            }
            if !value.is_none() {
                return field("a file without database checksums must not have one");
            }
        } else if !value.is_flagged() {
            return field("it is required, with bit 63 set");
        } else if header.commit == Commit(0) && value.0 != Checksum::FLAG {
            return field("the file deletes the database, and must have an empty one");
        }
        if !self.file_checksum.is_flagged() {
            let value = self.file_checksum;
            return Err(Error::ChecksumField { field: "file checksum", value, rule: "bit 63 must be set" });
        }
        Ok(())
    }
}

/// Reads big-endian fields one behind the other from bytes whose length was checked once.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8], what: &'static str, need: usize) -> Result<Self> {
        let short = Error::Truncated { what, need: need as u64, have: bytes.len() as u64 };
        bytes.get(..need).map(Self).ok_or(short)
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        let (front, rest) = self.0.split_at(N);
        field.copy_from_slice(front);
        self.0 = rest;
        field
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Header {
        Header {
            flags: 0,
            pre_apply_checksum: Checksum(Checksum::FLAG | 7),
            wal_offset: 32,
            wal_size: 4120,
            wal_salt: [3, 4],
            node_id: 5,
            ..Header::new(PageSize::MAX, Commit(9), Txid(2), Txid(8), Timestamp(-1))
        }
    }

    #[test]
    fn headers_survive_the_round_trip() {
        for header in [sample(), Header::new(PageSize::ALL[0], Commit(1), Txid(1), Txid(1), Timestamp(0))] {
            assert_eq!(Header::parse(&header.to_bytes()).unwrap(), header);
        }
    }

    #[test]
    fn every_broken_rule_is_refused() {
        type Break = fn(&mut Header);
        let breaks: [Break; 11] = [
            |h| h.flags = 4,
            |h| h.min_txid = Txid(0),
            |h| h.max_txid = Txid(1),
            |h| h.pre_apply_checksum = Checksum::NONE,
            |h| h.pre_apply_checksum = Checksum(7),
            |h| h.flags = FLAG_NO_CHECKSUM,
            |h| h.min_txid = Txid(1),
            |h| h.wal_offset = u64::MAX,
            |h| h.wal_size = 1 << 63,
            |h| h.wal_offset = 0,
            |h| (h.wal_offset, h.wal_size) = (0, 0),
        ];
        for (number, broken) in breaks.iter().enumerate() {
            let mut header = sample();
            broken(&mut header);
            assert!(header.validate().is_err(), "rule {number}");
            assert!(Header::parse(&header.to_bytes()).is_err(), "rule {number}");
        }
        let mut bytes = sample().to_bytes();
        bytes[11] = 1; // page size
        assert!(matches!(Header::parse(&bytes), Err(Error::PageSize(_))));
        assert!(matches!(Header::parse(&bytes[..99]), Err(Error::Truncated { need: 100, have: 99, .. })));
        assert!(matches!(Header::parse(&[b'x'; 100]), Err(Error::Magic(_))));
    }

    #[test]
    fn trailers_are_checked_against_the_header() {
        let plain = Header::new(PageSize::MAX, Commit(9), Txid(2), Txid(8), Timestamp(0));
        let checked = sample();
        let gone = Header { commit: Commit(0), ..checked };
        let flag = Checksum(Checksum::FLAG);
        let other = Checksum(Checksum::FLAG | 1);
        let ok = |header: &Header, post, file| {
            Trailer::parse(&Trailer { post_apply_checksum: post, file_checksum: file }.to_bytes(), header).is_ok()
        };
        assert!(ok(&plain, Checksum::NONE, other));
        assert!(!ok(&plain, other, other));
        assert!(!ok(&plain, Checksum::NONE, Checksum(1)));
        assert!(ok(&checked, other, other));
        assert!(!ok(&checked, Checksum(1), other));
        assert!(ok(&gone, flag, other));
        assert!(!ok(&gone, other, other));
        assert!(!ok(&Header { commit: Commit(0), ..plain }, Checksum::NONE, other));
        assert!(Trailer::parse(&[0xff; 15], &plain).is_err());
    }
}
