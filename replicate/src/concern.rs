//! What is not an error, and ought to be known: it goes on, but not well.

use std::fmt;
use std::time::Duration;

use ltx::Timestamp;

use crate::Capture;
use crate::capture::Look;
use crate::wal::{FRAME_HEADER_LEN, HEADER_LEN, Index, Salts};

/// Something that the application does, and that costs the longer the more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Concern {
    /// A reader keeps the log from being copied into the file, so that it only grows.
    Pinned {
        /// For how long that has been known.
        lasting: Duration,
        /// How long the log is, in bytes.
        bytes: u64,
    },
}

impl Concern {
    /// That of a reader who stays, for this long, beside a log of so many bytes.
    #[must_use]
    pub const fn pinned(lasting: Duration, bytes: u64) -> Self {
        Self::Pinned { lasting, bytes }
    }

    /// Whether it has lasted for a minute: sooner it is nobody's business.
    #[must_use]
    pub const fn is_lasting(&self) -> bool {
        let Self::Pinned { lasting, .. } = self;
        lasting.as_secs() >= 60
    }
}

impl fmt::Display for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Pinned { lasting, bytes } = self;
        f.write_str("a reader has kept the WAL from restarting for ")?;
        let seconds = lasting.as_secs();
        match seconds {
            0..120 => write!(f, "{seconds} s")?,
            120..7_200 => write!(f, "{} min", seconds / 60)?,
            7_200..172_800 => write!(f, "{} h", seconds / 3_600)?,
            _ => write!(f, "{} days", seconds / 86_400)?,
        }
        let size = *bytes as f64;
        match bytes {
            0..1_000_000 => write!(f, " ({:.0} kB)", size / 1e3),
            1_000_000..1_000_000_000 => write!(f, " ({:.1} MB)", size / 1e6),
            _ => write!(f, " ({:.1} GB)", size / 1e9),
        }
    }
}

/// A log that a checkpoint of ours could not copy as far as it should.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pinned {
    since: Timestamp,
    salts: Salts,
    /// How far it should have got.
    wanted: u32,
}

impl Pinned {
    fn holds(&self, now: &Look) -> bool {
        self.salts == now.index.salts && now.done < self.wanted
    }
}

impl Capture {
    /// What is not well just now, if anything; to be asked after a pass. What it says rests on the checkpoints that were tried when they
    /// were due.
    #[must_use]
    pub fn concern(&self) -> Option<Concern> {
        let pinned = self.upkeep.pinned?;
        let now = self.look().ok()?;
        let lasting = u64::try_from(self.time.0.saturating_sub(pinned.since.0)).unwrap_or(0);
        let bytes = u64::from(now.index.frames) * (FRAME_HEADER_LEN + self.page_size.bytes()) as u64;
        pinned
            .holds(&now)
            .then(|| Concern::Pinned { lasting: Duration::from_millis(lasting), bytes: HEADER_LEN as u64 + bytes })
    }

    /// Notes how far a checkpoint has got that should have copied all that there was when our hold began.
    pub(crate) fn note_checkpoint(&mut self, wanted: &Index, now: &Look) {
        let (salts, wanted) = (wanted.salts, wanted.frames);
        let since = self.upkeep.pinned.filter(|before| before.salts == salts).map_or(self.time, |before| before.since);
        let pinned = Pinned { since, salts, wanted };
        self.upkeep.pinned = pinned.holds(now).then_some(pinned);
    }
}
