//! What files a replica has, in as few requests as possible.

use litestream_storage::{FileInfo, Level, ObjectInfo, Replica, Scope};
use ltx::{Timestamp, Txid};

use crate::Result;

/// The LTX files of a replica, by level.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    levels: [Vec<FileInfo>; 10],
    others: Vec<ObjectInfo>,
    /// Whether files that no plan for the newest state needs were left out.
    partial: bool,
    /// See [`Listing::at`].
    at: Option<Timestamp>,
}

impl Listing {
    /// Lists a replica for a plan to its newest state: three requests side by side, as a rule the only ones.
    ///
    /// A level of which the first page says that there is more is not read to its end but from where the levels above it end. What that
    /// leaves out is old; should a plan miss it, [`Listing::full`] has it.
    ///
    /// # Errors
    /// As the store says.
    pub async fn newest(replica: &Replica) -> Result<Self> {
        let (zero, one, above) = Self::first_wave(replica).await?;
        let mut listing = Self { at: zero.at, ..Self::default() };
        let mut above = above;
        replica.list_rest(Scope::Above(Level::ONE), Txid::ZERO, &mut above).await?;
        listing.others = above.others;
        listing.extend(above.files);
        for (level, page) in [(Level::ONE, one), (Level::ZERO, zero)] {
            let more = page.next.is_some();
            listing.extend(page.files);
            if more {
                listing.partial = true;
                let seen = listing.level(level).last().map_or(Txid::ZERO, |file| file.name.min);
                let from = listing.reach_above(level).next().max(seen.next());
                listing.extend(replica.level(level, from).await?);
            }
        }
        Ok(listing)
    }

    /// Lists everything.
    ///
    /// # Errors
    /// As the store says.
    pub async fn full(replica: &Replica) -> Result<Self> {
        let (mut zero, mut one, mut above) = Self::first_wave(replica).await?;
        tokio::try_join!(
            replica.list_rest(Scope::Level(Level::ZERO), Txid::ZERO, &mut zero),
            replica.list_rest(Scope::Level(Level::ONE), Txid::ZERO, &mut one),
            replica.list_rest(Scope::Above(Level::ONE), Txid::ZERO, &mut above),
        )?;
        let mut listing = Self { others: above.others, at: zero.at, ..Self::default() };
        listing.extend(zero.files.into_iter().chain(one.files).chain(above.files));
        Ok(listing)
    }

    async fn first_wave(
        replica: &Replica,
    ) -> Result<(litestream_storage::ListPage, litestream_storage::ListPage, litestream_storage::ListPage)> {
        let pages = tokio::try_join!(
            replica.list_page(Scope::Level(Level::ZERO), Txid::ZERO, None),
            replica.list_page(Scope::Level(Level::ONE), Txid::ZERO, None),
            replica.list_page(Scope::Above(Level::ONE), Txid::ZERO, None),
        )?;
        Ok(pages)
    }

    /// A listing of these files, for tests and for planning over a part.
    #[must_use]
    pub fn of(files: impl IntoIterator<Item = FileInfo>) -> Self {
        let mut listing = Self::default();
        listing.extend(files);
        listing
    }

    fn extend(&mut self, files: impl IntoIterator<Item = FileInfo>) {
        for file in files {
            self.levels[usize::from(file.level.get())].push(file);
        }
        for level in &mut self.levels {
            level.sort_by_key(|file| file.name);
            level.dedup_by(|a, b| a.name == b.name && a.key() == b.key());
        }
    }

    /// How far the levels above this one reach.
    fn reach_above(&self, level: Level) -> Txid {
        Level::all().filter(|above| *above > level).filter_map(|above| self.reach(above)).max().unwrap_or_default()
    }

    /// How far a level reaches.
    #[must_use]
    pub fn reach(&self, level: Level) -> Option<Txid> {
        self.level(level).iter().map(|file| file.name.max).max()
    }

    /// A level's files, ascending by first and last TXID.
    #[must_use]
    pub fn level(&self, level: Level) -> &[FileInfo] {
        &self.levels[usize::from(level.get())]
    }

    /// All files, by level.
    pub fn files(&self) -> impl Iterator<Item = &FileInfo> {
        self.levels.iter().flatten()
    }

    /// All files, by level.
    pub fn into_files(self) -> impl Iterator<Item = FileInfo> {
        self.levels.into_iter().flatten()
    }

    /// The newest TXID that any file holds.
    #[must_use]
    pub fn newest_txid(&self) -> Option<Txid> {
        self.files().map(|file| file.name.max).max()
    }

    /// The store's own clock when level 0 was listed: there was no file of it then that begins beyond those which are here. `None` where the
    /// store does not say, and where nothing was listed.
    #[must_use]
    pub const fn at(&self) -> Option<Timestamp> {
        self.at
    }

    /// What else lies beside the levels.
    #[must_use]
    pub fn others(&self) -> &[ObjectInfo] {
        &self.others
    }

    /// Whether old files may have been left out.
    #[must_use]
    pub const fn is_partial(&self) -> bool {
        self.partial
    }

    /// Whether there are no LTX files.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.levels.iter().all(Vec::is_empty)
    }
}
