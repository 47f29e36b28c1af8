//! CRC-64/GO-ISO in the three ways LTX uses it: over a page, over a database, and over a file.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};

use crate::{PageSize, Pgno};

/// A stored checksum: a CRC-64/GO-ISO with bit 63 set. 0 means that there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Checksum(pub u64);

impl Checksum {
    /// No checksum.
    pub const NONE: Self = Self(0);
    /// The bit that every real checksum has.
    pub const FLAG: u64 = 1 << 63;

    /// Whether there is none.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether bit 63 is set, as every real checksum has it.
    #[must_use]
    pub const fn is_flagged(self) -> bool {
        self.0 & Self::FLAG != 0
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The checksum of one page: over its number (big-endian) and its data.
#[must_use]
pub fn page_checksum(pgno: Pgno, data: &[u8]) -> Checksum {
    let mut hash = Digest::new(CrcAlgorithm::Crc64GoIso);
    hash.update(&pgno.get().to_be_bytes());
    hash.update(data);
    Checksum(hash.finalize() | Checksum::FLAG)
}

/// The checksum of a whole database: the XOR of its pages' checksums, the lock page left out. Order does not matter.
#[derive(Clone, Copy, Debug, Default)]
pub struct DatabaseChecksum(u64);

impl DatabaseChecksum {
    /// Adds a page, or takes it away again (XOR is its own inverse). The lock page is ignored.
    pub fn toggle(&mut self, pgno: Pgno, data: &[u8]) {
        let lock_page = u32::try_from(data.len()).ok().and_then(PageSize::new).map(PageSize::lock_page);
        if lock_page != Some(pgno) {
            self.0 = (self.0 ^ page_checksum(pgno, data).0) | Checksum::FLAG;
        }
    }

    /// Adds the pages of another sum.
    pub const fn join(&mut self, other: Self) {
        if other.0 != 0 {
            self.0 = (self.0 ^ other.0) | Checksum::FLAG;
        }
    }

    /// The checksum of the pages so far.
    #[must_use]
    pub const fn get(self) -> Checksum {
        Checksum(self.0)
    }
}

/// The CRC of a stretch of an LTX file's content, with its length, so that stretches hashed side by side can be joined.
///
/// What is hashed is not the file's bytes but the header, each frame's header with the *decompressed* page, the end mark, the index and
/// the first half of the trailer.
///
/// ```
/// use ltx::ContentHash;
///
/// let mut whole = ContentHash::default();
/// whole.update(b"12345");
/// whole.update(b"6789");
/// let (mut front, mut back) = (ContentHash::default(), ContentHash::default());
/// front.update(b"12345");
/// back.update(b"6789");
/// front.append(&back);
/// assert_eq!(front.checksum(), whole.checksum());
/// assert_eq!(front.checksum().0, 0xB909_56C7_75A4_1001);
/// ```
#[derive(Clone, Debug)]
pub struct ContentHash {
    digest: Digest,
    len: u64,
}

impl Default for ContentHash {
    fn default() -> Self {
        Self { digest: Digest::new(CrcAlgorithm::Crc64GoIso), len: 0 }
    }
}

impl ContentHash {
    /// Hashes further bytes.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// Joins the stretch that follows this one.
    pub fn append(&mut self, next: &Self) {
        let crc = combine(self.crc(), next.crc(), next.len);
        // A digest's state is the CRC before its final inversion.
        self.digest = Digest::new_with_init_state(CrcAlgorithm::Crc64GoIso, !crc);
        self.len += next.len;
    }

    /// The plain CRC so far.
    pub(crate) fn crc(&self) -> u64 {
        self.digest.finalize()
    }

    /// The stored form of the hash so far.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        Checksum(self.crc() | Checksum::FLAG)
    }
}

/// The polynomial x⁶⁴ + x⁴ + x³ + x + 1 without its first term, reflected: the lowest bit stands for x⁶³.
const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;
/// x to the power of 2ⁿ, modulo the polynomial.
const POWERS: [u64; 64] = {
    let mut powers = [1 << 62; 64];
    let mut n = 1;
    while n < 64 {
        powers[n] = multiply(powers[n - 1], powers[n - 1]);
        n += 1;
    }
    powers
};

/// The CRC of one stretch behind another: a CRC moves on over `len` bytes by a multiplication with x to the power of their bits.
///
/// `crc-fast` can do this too, but takes some 20 µs for it; this takes less than one.
pub(crate) fn combine(front: u64, back: u64, len: u64) -> u64 {
    let factors = (0..61).filter(|bit| len & (1 << bit) != 0).map(|bit| POWERS[bit + 3]);
    factors.fold(front, |crc, factor| multiply(factor, crc)) ^ back
}

/// Multiplies two polynomials, modulo the polynomial, all reflected.
const fn multiply(a: u64, mut b: u64) -> u64 {
    let (mut product, mut bit) = (0, 1 << 63);
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = (b >> 1) ^ if b & 1 == 0 { 0 } else { POLYNOMIAL };
        bit >>= 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(page_size: usize, fills: &[u8]) -> Checksum {
        let mut sum = DatabaseChecksum::default();
        for (number, fill) in (1..).zip(fills) {
            sum.toggle(Pgno::new(number).unwrap(), &vec![*fill; page_size]);
        }
        sum.get()
    }

    #[test]
    fn matches_the_published_vectors() {
        assert_eq!(database(512, &[1, 2, 3]).0, 0xefff_ffff_ecd9_9000);
        assert_eq!(database(512, b"1").0, 0xeb1a_9992_3104_4ddd);
        assert_eq!(database(1024, &[0x81, 0x82, 0x83]).0, 0x8a24_9272_ad9f_7dea);
    }

    #[test]
    fn agrees_with_another_implementation() {
        let oracle = crc::Crc::<u64>::new(&crc::CRC_64_GO_ISO);
        let data: Vec<u8> = (0..10_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for cut in [0, 1, 7, 63, 64, 4096, 9_999, 10_000] {
            let (mut front, mut back) = (ContentHash::default(), ContentHash::default());
            front.update(&data[..cut]);
            back.update(&data[cut..]);
            front.append(&back);
            assert_eq!(front.checksum().0, oracle.checksum(&data) | Checksum::FLAG, "cut at {cut}");
        }
    }

    #[test]
    fn sums_of_pages_join_in_any_order() {
        let page = |number: u32| (Pgno::new(number).unwrap(), [number as u8; 512]);
        let sum = |numbers: &[u32]| {
            let mut sum = DatabaseChecksum::default();
            for (pgno, page) in numbers.iter().map(|number| page(*number)) {
                sum.toggle(pgno, &page);
            }
            sum
        };
        let mut joined = sum(&[3]);
        joined.join(sum(&[]));
        joined.join(sum(&[1, 2]));
        assert_eq!(joined.get().0, 0xefff_ffff_ecd9_9000);
        assert_eq!(joined.get(), sum(&[1, 2, 3]).get());
    }

    #[test]
    fn combining_is_what_the_library_does() {
        let crcs = [0, 1, u64::MAX, 0x0123_4567_89ab_cdef];
        for len in (0..40).map(|bit| 1 << bit).chain([3, 4106, 65_546, 12_345_678_901]) {
            for (front, back) in crcs.iter().flat_map(|front| crcs.map(|back| (*front, back))) {
                let expected = crc_fast::checksum_combine(CrcAlgorithm::Crc64GoIso, front, back, len);
                assert_eq!(combine(front, back, len), expected, "{len} bytes");
            }
        }
    }
}
