//! Which files together give the database at a TXID or a moment.

use std::future::Future;

use litestream_storage::{FileInfo, Level, Replica};
use ltx::{Timestamp, Txid};

use crate::{Cutoff, Error, Listing, Result, open_file, time_of};

/// How often a plan is made anew because files of it vanished, before that is called an error.
pub const MAX_REPLANS: u32 = 5;

/// What to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The newest state.
    Latest,
    /// The state after exactly this transaction.
    Txid(Txid),
    /// The newest state strictly before this moment.
    Before(Timestamp),
}

/// Files that together give a database: applied in order, the newest page wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The files, oldest first. The first one is a snapshot.
    pub files: Vec<FileInfo>,
    /// The TXID that they give.
    pub txid: Txid,
}

impl Plan {
    /// The best plan over a listing: the newest snapshot within the target, then always the file that reaches furthest.
    ///
    /// `cutoff` admits the files before a moment; [`Target::Before`] needs it, the others take [`Cutoff::NONE`].
    ///
    /// # Errors
    /// [`Error::NoBackup`], [`Error::NonContiguous`], [`Error::TransactionNotAvailable`]. [`Target::Before`] with nothing before the moment
    /// is [`Error::TransactionNotAvailable`] too: [`find`] knows the moment to name.
    pub fn new(replica: &Replica, listing: &Listing, target: Target, cutoff: Cutoff) -> Result<Self> {
        Planner { replica, listing, target, cutoff, without: None }.plan()
    }

    /// Another plan for the same TXID that does not end with its only file, a level-9 snapshot. Litestream 0.5.5 wrote snapshots that may hold
    /// newer pages than they say; later files repair that, but nothing does where the plan ends.
    #[must_use]
    pub fn without_lone_snapshot(&self, replica: &Replica, listing: &Listing) -> Option<Self> {
        let [only] = self.files.as_slice() else { return None };
        let target = Target::Txid(self.txid);
        Planner { replica, listing, target, cutoff: Cutoff::NONE, without: Some(only) }.plan().ok()
    }

    /// The files that lead on from `have`, as far as any do, for one who has that state already. Only where nothing else leads as far they begin with a
    /// snapshot, which needs no state before it. `None` where nothing leads on.
    #[must_use]
    pub fn onward(listing: &Listing, have: Txid) -> Option<Self> {
        let walk = |snapshots: bool| {
            let files =
                move |level| listing.level(level).iter().filter(move |file| snapshots || !file.name.is_snapshot());
            let (mut chosen, mut txid) = (Vec::new(), have);
            go_on(Level::all().rev().map(files), &mut chosen, &mut txid);
            Self { files: chosen.into_iter().cloned().collect(), txid }
        };
        let without = walk(false);
        let best = if Some(without.txid) == listing.newest_txid() {
            without
        } else {
            let with = walk(true);
            if with.txid > without.txid { with } else { without }
        };
        (best.txid > have).then_some(best)
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.files.iter().map(FileInfo::size).sum()
    }
}

struct Planner<'a> {
    replica: &'a Replica,
    listing: &'a Listing,
    target: Target,
    cutoff: Cutoff,
    without: Option<&'a FileInfo>,
}

impl<'a> Planner<'a> {
    /// The files of a level that lie within the target.
    fn within(&self, level: Level) -> impl Iterator<Item = &'a FileInfo> + use<'a> {
        let limit = match self.target {
            Target::Txid(txid) => txid,
            _ => Txid(u64::MAX),
        };
        let without = self.without;
        let cutoff = self.cutoff;
        let files = self.listing.level(level).iter();
        files.filter(move |file| file.name.max <= limit && cutoff.admits(file) && Some(*file) != without)
    }

    fn plan(self) -> Result<Plan> {
        if self.listing.is_empty() {
            return Err(Error::NoBackup { url: self.replica.url().clone() });
        }
        let newest =
            self.within(Level::SNAPSHOT).filter(|file| file.name.is_snapshot()).max_by_key(|file| file.name.max);
        let mut files: Vec<&FileInfo> = newest.into_iter().collect();
        let mut reached = newest.map_or(Txid::ZERO, |file| file.name.max);
        let levels = Level::all().rev().filter(|level| *level != Level::SNAPSHOT);
        go_on(levels.map(|level| self.within(level)), &mut files, &mut reached);
        self.check(reached)?;
        Ok(Plan { files: files.into_iter().cloned().collect(), txid: reached })
    }

    /// Whether the plan may end at `reached`.
    fn check(&self, reached: Txid) -> Result<()> {
        let url = self.replica.url().clone();
        let beyond = |files: &mut dyn Iterator<Item = &'a FileInfo>| {
            files.filter(|file| file.name.max > reached).map(|file| file.name.min).min()
        };
        match self.target {
            Target::Txid(txid) if txid == reached && reached != Txid::ZERO => Ok(()),
            Target::Txid(txid) => {
                let above = self.listing.files().map(|file| file.name.max).filter(|max| *max > txid).min();
                Err(Error::TransactionNotAvailable {
                    url,
                    txid,
                    below: Some(reached).filter(|below| *below != Txid::ZERO),
                    above,
                })
            }
            Target::Latest => match beyond(&mut self.listing.files()) {
                Some(next) => Err(Error::NonContiguous { url, have: reached, next }),
                None => Ok(()),
            },
            Target::Before(_) => {
                // On a healthy replica the file that bridges to the next one may itself lie after the target.
                let bridged =
                    self.listing.files().any(|file| file.name.min <= reached.next() && file.name.max > reached);
                match beyond(&mut self.listing.files()) {
                    Some(next) if !bridged => Err(Error::NonContiguous { url, have: reached, next }),
                    _ if reached == Txid::ZERO => {
                        let above = self.listing.files().map(|file| file.name.max).min();
                        Err(Error::TransactionNotAvailable { url, txid: reached, below: None, above })
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Goes on from what is reached, always with the file that reaches furthest. A snapshot makes those before it needless.
fn go_on<'a, L>(levels: impl Iterator<Item = L>, files: &mut Vec<&'a FileInfo>, reached: &mut Txid)
where
    L: Iterator<Item = &'a FileInfo>,
{
    // Each level is sorted by first TXID, and what is reached only grows: every file is looked at once.
    let mut levels: Vec<_> = levels.map(Iterator::peekable).collect();
    let mut best: Option<&FileInfo> = None;
    loop {
        for level in &mut levels {
            while let Some(file) = level.next_if(|file| file.name.min <= reached.next()) {
                if best.is_none_or(|best| is_better(file, best)) {
                    best = Some(file);
                }
            }
        }
        let Some(next) = best.filter(|best| best.name.max > *reached) else { break };
        if next.name.is_snapshot() {
            files.clear();
        }
        files.push(next);
        *reached = next.name.max;
    }
}

/// Whether a file is the better one to go on with: it reaches further, or as far from further back, or from a higher level.
fn is_better(file: &FileInfo, than: &FileInfo) -> bool {
    let rank = |file: &FileInfo| (file.name.max, std::cmp::Reverse(file.name.min), file.level);
    rank(file) > rank(than)
}

/// Lists a replica and plans. What a listing does not hold is looked for again before it is believed to be missing: LISTs are not one snapshot.
///
/// # Errors
/// As [`Plan::new`], [`Error::TooEarly`], and as the store says.
pub async fn find(replica: &Replica, target: Target) -> Result<(Plan, Listing)> {
    let listing = match target {
        Target::Latest => Listing::newest(replica).await?,
        _ => Listing::full(replica).await?,
    };
    let mut failed = match plan(replica, &listing, target).await {
        Ok(plan) => return Ok((plan, listing)),
        Err(Error::NoBackup { url }) => return Err(Error::NoBackup { url }),
        Err(failed) => failed,
    };
    // What is missing is looked for once more. Where files go while they are looked at, more than once.
    for _ in 0..MAX_REPLANS {
        tracing::debug!(%failed, "planning again over a full listing");
        let listing = Listing::full(replica).await?;
        match plan(replica, &listing, target).await {
            Ok(plan) => return Ok((plan, listing)),
            Err(error) if error.wants_new_plan() => failed = error,
            Err(error) => return Err(error),
        }
    }
    Err(failed)
}

async fn plan(replica: &Replica, listing: &Listing, target: Target) -> Result<Plan> {
    let Target::Before(moment) = target else { return Plan::new(replica, listing, target, Cutoff::NONE) };
    let cutoff = Cutoff::before(replica, listing, moment).await?;
    match Plan::new(replica, listing, target, cutoff) {
        Err(Error::TransactionNotAvailable { url, .. }) => {
            let mut oldest = None;
            for level in Level::all() {
                if let Some(file) = listing.level(level).iter().find(|file| file.name.is_snapshot()) {
                    let time = time_of(replica, file).await?;
                    oldest = Some(oldest.map_or(time, |oldest: Timestamp| oldest.min(time)));
                }
            }
            Err(match oldest {
                Some(oldest) => Error::TooEarly { url, target: moment, oldest },
                None => Error::NoBackup { url },
            })
        }
        plan => plan,
    }
}

/// The plan, or another one for the same TXID where this one ends with a snapshot that may hold newer pages than it says
/// ([`Plan::without_lone_snapshot`]) and there is another.
///
/// # Errors
/// As the store says, and what is wrong with the snapshot.
pub async fn exact(replica: &Replica, plan: Plan, listing: Listing) -> Result<Plan> {
    let [only] = plan.files.as_slice() else { return Ok(plan) };
    // What a partial listing leaves out may be just what another plan needs.
    let maybe = listing.is_partial() || plan.without_lone_snapshot(replica, &listing).is_some();
    // Only the file's own frames tell who wrote it.
    if only.level != Level::SNAPSHOT || !maybe || !open_file(replica, only).await?.starts_with_legacy_frame() {
        return Ok(plan);
    }
    let listing = if listing.is_partial() { Listing::full(replica).await? } else { listing };
    Ok(plan.without_lone_snapshot(replica, &listing).unwrap_or(plan))
}

/// An error of work on a plan.
pub trait Replannable: std::fmt::Display {
    /// Whether the files of a plan are gone or others than listed, so that a new plan may help.
    fn wants_new_plan(&self) -> bool;
}

impl Replannable for Error {
    fn wants_new_plan(&self) -> bool {
        self.wants_new_plan()
    }
}

/// Does something with a plan's files; where they vanish meanwhile (retention, compaction), plans again *for the same TXID* and starts over, a
/// bounded number of times.
///
/// # Errors
/// As `work`, as [`find`], and [`Error::Vanishing`].
pub async fn replan<T, E, F>(replica: &Replica, target: Target, work: impl FnMut(Plan, Listing) -> F) -> Result<T, E>
where
    E: From<Error> + Replannable,
    F: Future<Output = Result<T, E>>,
{
    let (plan, listing) = find(replica, target).await?;
    replan_from(replica, plan, listing, work).await
}

/// Like [`replan`], for a plan that has been made already.
///
/// # Errors
/// As [`replan`].
pub async fn replan_from<T, E, F>(
    replica: &Replica,
    mut plan: Plan,
    mut listing: Listing,
    mut work: impl FnMut(Plan, Listing) -> F,
) -> Result<T, E>
where
    E: From<Error> + Replannable,
    F: Future<Output = Result<T, E>>,
{
    let txid = plan.txid;
    let mut tries = 0;
    loop {
        let error = match work(plan, listing).await {
            Err(error) if error.wants_new_plan() => error,
            done => return done,
        };
        tries += 1;
        tracing::info!(%error, %txid, tries, "a file of the plan is gone: planning again");
        if tries > MAX_REPLANS {
            return Err(Error::Vanishing { url: replica.url().clone(), txid, last: error.to_string() }.into());
        }
        (plan, listing) = find(replica, Target::Txid(txid)).await?;
    }
}
