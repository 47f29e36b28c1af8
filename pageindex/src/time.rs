//! From a moment to the files that were there before it.
//!
//! The truth is the timestamp in a file's header, and a listing does not show it. Within a level the order of TXIDs is the order of times,
//! so each level is searched, sixteen headers at a time, around the place where the store's own dates say the moment must be.

use futures::future::try_join_all;
use litestream_storage::{FileInfo, Level, Replica};
use ltx::{HEADER_LEN, Header, Timestamp, Txid};

use crate::{Error, Listing, Result};

/// How many headers of a level one wave reads.
const WAVE: usize = 16;

/// Up to which TXID the files of each level reach that a plan may use: those whose time lies strictly before some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cutoff([Txid; 10]);

impl Cutoff {
    /// Everything.
    pub const NONE: Self = Self([Txid(u64::MAX); 10]);

    /// The files of `listing` whose time lies strictly before `moment`.
    ///
    /// # Errors
    /// As the store says, and [`Error::Format`] for a file whose header is damaged.
    pub async fn before(replica: &Replica, listing: &Listing, moment: Timestamp) -> Result<Self> {
        let levels = Level::all().map(|level| search(replica, listing.level(level), moment));
        let mut cutoff = Self::NONE;
        for (slot, last) in cutoff.0.iter_mut().zip(try_join_all(levels).await?) {
            *slot = last;
        }
        Ok(cutoff)
    }

    /// Whether a file may be used.
    #[must_use]
    pub fn admits(self, file: &FileInfo) -> bool {
        file.name.max <= self.0[usize::from(file.level.get())]
    }
}

/// The last TXID of a level's files that lie strictly before `moment`.
async fn search(replica: &Replica, files: &[FileInfo], moment: Timestamp) -> Result<Txid> {
    // A file has the time of its last transaction. Where files overlap, that is another order than the listing's.
    let mut files: Vec<&FileInfo> = files.iter().collect();
    files.sort_by_key(|file| (file.name.max, file.name.min));
    // All before `low` lie before the moment, all from `high` on do not.
    let (mut low, mut high) = (0, files.len());
    // A store notes when it got a file, which is a little after the time in the file.
    let guess = files.partition_point(|file| file.object.modified < moment);
    let mut probes = around(guess, low, high);
    while low < high {
        let times = try_join_all(probes.iter().map(|at| probe(replica, files[*at]))).await?;
        for (at, time) in probes.iter().zip(times) {
            if time < moment {
                low = low.max(at + 1);
            } else {
                high = high.min(*at);
            }
        }
        probes = spread(low, high);
    }
    Ok(low.checked_sub(1).map_or(Txid::ZERO, |last| files[last].name.max))
}

/// The time of a file; of one that is gone or damaged, what the store says: only what a plan uses in the end must be sound.
async fn probe(replica: &Replica, file: &FileInfo) -> Result<Timestamp> {
    match time_of(replica, file).await {
        Err(error) if matches!(error, Error::Format { .. }) || error.wants_new_plan() => {
            tracing::debug!(key = file.key(), %error, "taking the store's word for a file's time");
            Ok(file.object.time.unwrap_or(file.object.modified))
        }
        time => time,
    }
}

/// Probes close to a guess, and further away the further they are from it.
fn around(guess: usize, low: usize, high: usize) -> Vec<usize> {
    let mut probes: Vec<usize> = (0..WAVE / 2)
        .flat_map(|step| {
            let distance = (1usize << step) - 1;
            [guess.checked_sub(distance + 1), guess.checked_add(distance)]
        })
        .flatten()
        .filter(|at| (low..high).contains(at))
        .collect();
    if probes.is_empty() {
        return spread(low, high);
    }
    probes.sort_unstable();
    probes.dedup();
    probes
}

/// Probes that cut what is left into equal parts.
fn spread(low: usize, high: usize) -> Vec<usize> {
    let len = high.saturating_sub(low);
    let count = len.min(WAVE);
    (0..count).map(|part| low + (part * len + len / 2) / count).collect()
}

/// The time of a file, from its header.
///
/// # Errors
/// As the store says, and [`Error::Format`] where the header is damaged.
pub async fn time_of(replica: &Replica, file: &FileInfo) -> Result<Timestamp> {
    let bytes = replica.get_span(file, 0..(HEADER_LEN as u64).min(file.size().max(1))).await?;
    let header = Header::parse(&bytes).and_then(|header| header.expect_name(file.name).map(|()| header));
    Ok(header.map_err(|source| Error::format(file.key(), source))?.timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_stay_inside_and_shrink_the_rest() {
        for (low, high) in [(0, 1), (3, 4), (0, 17), (5, 300), (0, 100_000)] {
            let probes = spread(low, high);
            assert!(
                !probes.is_empty() && probes.iter().all(|at| (low..high).contains(at)),
                "{low}..{high}: {probes:?}"
            );
            for guess in [low, high / 2, high] {
                let probes = around(guess, low, high);
                assert!(!probes.is_empty() && probes.iter().all(|at| (low..high).contains(at)), "{guess}: {probes:?}");
            }
        }
    }
}
