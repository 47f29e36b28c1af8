//! Which files may go.
//!
//! Nothing here deletes anything: [`expired`] says what a listing holds that nobody needs. The promise it keeps: whatever levels 1 to 9 could
//! restore inside the snapshots' window they still can, and so can all levels together the newest state. Single syncs are *not* promised once
//! they are old enough: what is left of level 0 may then lie beyond a bridge that is itself after the moment asked for.
//!
//! A file of level 0 is old enough when it *and what level 1 holds of it* are. A restore of the newest state that is planned after level 1 has
//! it does not read it, so that whoever planned before has that long to read it, however late it was merged: by its own date alone it would go
//! at once where merging had waited for as long.
//!
//! It goes by the store's own dates, which as a rule are no earlier than the times in the files, so that it errs on the side of keeping. Files in
//! a folder bear the times of their last commits, as Litestream has it: that they were merged late is known there only to who did it.

use std::time::Duration;

use litestream_storage::{FileInfo, Level};
use ltx::{FileName, Timestamp, Txid};

use crate::Listing;

/// For how long files are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// How long a file of level 0 stays after level 1 has come to hold its transactions; zero: not at all. Default 5 min.
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
/// - *Level 0*: what level 1 has covered without a gap for long enough (or what ends before the oldest snapshot that stays, as in other levels,
///   and is old enough); oldest first, up to the first that is too young.
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
                let (one, young) = (LevelOne::of(listing), before(now, policy.l0));
                let dated = files.map(|file| (file, one.holds_since(file.name)));
                let old = dated.take_while(|(file, held)| (*held).max(Some(file.object.modified)) <= Some(young));
                let expendable = old.filter(|(file, held)| held.is_some() || file.name.max < floor);
                expired.extend(expendable.map(|(file, _)| file.clone()));
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

/// When the oldest file of level 0 that level 1 holds, or held once, will be old enough; it stays while it is the newest.
pub(crate) fn level_0_ripens(listing: &Listing, policy: &RetentionPolicy) -> Option<Timestamp> {
    let (held, newest) = (listing.reach(Level::ONE)?, listing.reach(Level::ZERO)?);
    let oldest = listing.level(Level::ZERO).iter().find(|file| file.name.max <= held && file.name.max < newest)?;
    // Where it does not hold it any more, a snapshot may.
    let since = LevelOne::of(listing).holds_since(oldest.name).max(Some(oldest.object.modified))?;
    let age = i64::try_from(policy.l0.as_millis()).ok()?;
    since.0.checked_add(age).map(Timestamp)
}

/// What level 1 holds.
struct LevelOne<'a> {
    files: &'a [FileInfo],
    /// How far each file and those before it reach.
    reaches: Vec<Txid>,
}

impl<'a> LevelOne<'a> {
    fn of(listing: &'a Listing) -> Self {
        let files = listing.level(Level::ONE);
        let mut reach = Txid::ZERO;
        let reaches = files.iter().map(|file| {
            reach = reach.max(file.name.max);
            reach
        });
        Self { files, reaches: reaches.collect() }
    }

    /// Since when it holds all transactions of a file: the latest date of those of its files that have any. `None` where it has not all.
    fn holds_since(&self, name: FileName) -> Option<Timestamp> {
        let first = self.reaches.partition_point(|reach| *reach < name.min);
        let beside = self.files.get(first..)?.iter().take_while(|file| file.name.min <= name.max);
        let (mut next, mut since) = (name.min, None);
        for file in beside.filter(|file| file.name.max >= name.min) {
            if file.name.min > next {
                return None;
            }
            next = next.max(file.name.max.next());
            since = since.max(Some(file.object.modified));
        }
        since.filter(|_| next > name.max)
    }
}

fn before(now: Timestamp, age: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
}
