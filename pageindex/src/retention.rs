//! Which files may go.
//!
//! Nothing here deletes anything: [`expired`] says what a listing holds that nobody needs. The promise it keeps: whatever levels 1 to 9 could
//! restore inside the snapshots' window they still can, and so can all levels together the newest state. Single syncs are *not* promised, not
//! even young ones: level 0 goes up to the middle of a file of level 1, and what is left of it may then lie beyond a bridge that is itself
//! after the moment asked for.
//!
//! It goes by the store's own dates, which as a rule are no earlier than the times in the files, so that it errs on the side of keeping.

use std::time::Duration;

use litestream_storage::{FileInfo, Level};
use ltx::{FileName, Timestamp, Txid};

use crate::Listing;

/// For how long files are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// How long a file of level 0 stays after it was written, though level 1 holds its transactions. Default 5 min.
    pub l0: Duration,
    /// How far back every moment can be restored. Default 24 h.
    pub snapshots: Duration,
}

impl Default for RetentionPolicy {
    fn default() -> Self {
        Self { l0: Duration::from_secs(5 * 60), snapshots: Duration::from_secs(24 * 60 * 60) }
    }
}

/// The files of a listing that may be deleted at the moment `now`, by level, oldest first.
///
/// - *Level 9*: of the snapshots older than the window all but the newest, which the window's first moments rest on.
/// - *Levels 1 to 8*: what ends before the oldest snapshot that stays. As long as no snapshot is older than the window, nothing: its first
///   moments may rest on files from before the first snapshot.
/// - *Level 0*: what level 1 covers without a gap (or what ends before the oldest snapshot that stays, as in other levels) and is old enough;
///   oldest first, up to the first that is too young.
///
/// Each level's newest file stays always, so that nobody takes a TXID twice. Where no level above 0 holds a file from TXID 1, nothing goes
/// at all. What a partial listing leaves out is taken as absent, which only keeps more.
#[must_use]
pub fn expired(listing: &Listing, policy: &RetentionPolicy, now: Timestamp) -> Vec<FileInfo> {
    let based = Level::all().skip(1).any(|level| listing.level(level).iter().any(|file| file.name.is_snapshot()));
    if !based {
        return Vec::new();
    }
    let window = before(now, policy.snapshots);
    let floor = oldest_kept_snapshot(listing, window);
    let mut expired = Vec::new();
    for level in Level::all() {
        let newest = listing.reach(level).unwrap_or_default();
        let files = listing.level(level).iter().filter(|file| file.name.max < newest);
        match level {
            Level::ZERO => {
                let runs = runs(listing.level(Level::ONE));
                let covered = |file: &FileInfo| file.name.max < floor || runs.iter().any(|run| covers(*run, file.name));
                let young = before(now, policy.l0);
                let old = files.take_while(|file| file.object.modified < young);
                expired.extend(old.filter(|file| covered(file)).cloned());
            }
            Level::SNAPSHOT => {
                expired.extend(files.filter(|file| is_superseded(file, floor, window)).cloned());
            }
            _ => expired.extend(files.filter(|file| file.name.max < floor).cloned()),
        }
    }
    expired
}

/// Whether a snapshot is older than the window *and* than the one that the window's first moments rest on.
fn is_superseded(file: &FileInfo, floor: Txid, window: Timestamp) -> bool {
    file.name.is_snapshot() && file.name.max < floor && file.object.modified < window
}

/// How far the oldest snapshot that stays reaches. [`Txid::ZERO`] where none is older than the window.
fn oldest_kept_snapshot(listing: &Listing, window: Timestamp) -> Txid {
    let snapshots = || listing.level(Level::SNAPSHOT).iter().filter(|file| file.name.is_snapshot());
    let older = snapshots().filter(|file| file.object.modified < window).map(|file| file.name.max).max();
    // Dates that contradict the TXIDs (a replica copied in parts): a snapshot dated inside the window stays, and what follows it.
    let inside = snapshots().filter(|file| file.object.modified >= window).map(|file| file.name.max).min();
    older.map_or(Txid::ZERO, |older| inside.map_or(older, |inside| older.min(inside)))
}

/// The stretches of TXIDs that files cover without a gap.
fn runs(files: &[FileInfo]) -> Vec<FileName> {
    let mut runs: Vec<FileName> = Vec::new();
    for file in files {
        match runs.last_mut() {
            Some(run) if file.name.min <= run.max.next() => run.max = run.max.max(file.name.max),
            _ => runs.push(file.name),
        }
    }
    runs
}

fn covers(run: FileName, name: FileName) -> bool {
    run.min <= name.min && name.max <= run.max
}

fn before(now: Timestamp, age: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
}
