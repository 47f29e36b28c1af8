//! `MIN-MAX.ltx`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Txid};

/// The span of TXIDs that an LTX file covers, as its name says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName {
    /// First TXID in the file.
    pub min: Txid,
    /// Last TXID in the file.
    pub max: Txid,
}

impl FileName {
    /// The name for a span.
    #[must_use]
    pub const fn new(min: Txid, max: Txid) -> Self {
        Self { min, max }
    }

    /// Whether a file of this span is a snapshot: it begins with the first transaction.
    #[must_use]
    pub fn is_snapshot(self) -> bool {
        self.min == Txid::FIRST
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}.ltx", self.min, self.max)
    }
}

impl FromStr for FileName {
    type Err = Error;

    /// Parses two TXIDs of 16 *lower-case* hexadecimal digits, `-` between and `.ltx` behind. Whether they are a
    /// sensible range is the header's business.
    fn from_str(name: &str) -> Result<Self, Error> {
        let parse = || {
            let (min, max) = name.strip_suffix(".ltx")?.split_once('-')?;
            let lower = |txid: &str| !txid.bytes().any(|b| b.is_ascii_uppercase());
            (lower(min) && lower(max)).then_some(())?;
            Some(Self { min: min.parse().ok()?, max: max.parse().ok()? })
        };
        parse().ok_or_else(|| Error::Name(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints_and_nothing_else() {
        let name = FileName::new(Txid(1), Txid(0xabc));
        assert_eq!(name.to_string(), "0000000000000001-0000000000000abc.ltx");
        assert_eq!(name.to_string().parse::<FileName>().unwrap(), name);
        for bad in [
            "",
            ".ltx",
            "1-2.ltx",
            "0000000000000001-0000000000000abc",
            "0000000000000001-0000000000000ABC.ltx",
            "0000000000000001-0000000000000abc.ltx.tmp",
            "+000000000000001-0000000000000abc.ltx",
            "0000000000000001_0000000000000abc.ltx",
            "x/0000000000000001-0000000000000abc.ltx",
        ] {
            assert!(bad.parse::<FileName>().is_err(), "{bad}");
        }
    }
}
