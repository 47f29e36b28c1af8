//! The format's words as types, so that a page number is never taken for a TXID.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use crate::Error;

/// A transaction identifier. Real ones start at 1; [`Txid::ZERO`] stands for "before the first".
///
/// Prints and parses as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(pub u64);

impl Txid {
    /// The state before any transaction.
    pub const ZERO: Self = Self(0);
    /// The first transaction; an LTX file that begins with it is a snapshot.
    pub const FIRST: Self = Self(1);

    /// The TXID after this one, saturating.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The TXID before this one, saturating at [`Txid::ZERO`].
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Txid {
    type Err = Error;

    /// Parses exactly 16 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Error> {
        let hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| hex).map(Self).ok_or_else(|| Error::TxidText(text.to_owned()))
    }
}

/// A page number, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pgno(NonZeroU32);

impl Pgno {
    /// The first page, which holds the database header.
    pub const ONE: Self = Self(NonZeroU32::MIN);

    /// A page number, or `None` for 0.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The page's place in an array of pages: number − 1.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.get() as usize - 1
    }

    /// Where the page begins in a database file, in bytes.
    #[must_use]
    pub const fn offset(self, page_size: PageSize) -> u64 {
        (self.get() as u64 - 1) * page_size.get() as u64
    }
}

impl fmt::Display for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of a page in bytes: a power of two from 512 to 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// The largest page.
    pub const MAX: Self = Self(65536);
    /// What SQLite gives a new database unless told otherwise.
    pub const DEFAULT: Self = Self(4096);
    /// Every valid size, ascending.
    pub const ALL: [Self; 8] =
        [Self(512), Self(1024), Self(2048), Self(4096), Self(8192), Self(16384), Self(32768), Self(65536)];

    /// A page size, or `None` where SQLite knows no such size.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 65536 { Some(Self(bytes)) } else { None }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes, for slices.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The page that holds SQLite's lock bytes (at 1 GiB). It is never stored in an LTX file; a database file has zeros there.
    #[must_use]
    pub const fn lock_page(self) -> Pgno {
        match Pgno::new(0x4000_0000 / self.0 + 1) {
            Some(pgno) => pgno,
            None => Pgno::ONE,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A database's size in pages. 0 means that the database was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Commit(pub u32);

impl Commit {
    /// Whether the database has this page.
    #[must_use]
    pub const fn contains(self, pgno: Pgno) -> bool {
        pgno.get() <= self.0
    }

    /// How many pages a snapshot of this database stores: all but the lock page.
    #[must_use]
    pub const fn stored_pages(self, page_size: PageSize) -> u32 {
        if self.contains(page_size.lock_page()) { self.0 - 1 } else { self.0 }
    }

    /// The database's size in bytes.
    #[must_use]
    pub const fn bytes(self, page_size: PageSize) -> u64 {
        self.0 as u64 * page_size.get() as u64
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}
