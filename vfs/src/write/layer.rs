//! What was committed here and may not be in the replica yet, in front of a view.
//!
//! A layer is immutable once it is shown. The newest grows by replacement; when an upload begins it is closed, and a new one begins in front of
//! it; when the upload is proven the view holds what it held, and it goes. Readers keep the layers that they began with.

use std::sync::Arc;

use ltx::{Commit, PageSize, Pgno};

use super::control::Position;
use super::pages::PageMap;
use super::segment::Segment;
use crate::Result;

/// Some transactions that follow one another.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Where the images lie.
    pub(super) segment: Arc<Segment>,
    /// The newest image of each page that they changed.
    pub(super) pages: PageMap,
    /// The smallest size that the database had since the layer began. What lies beyond and was not written is zero, whatever lies below.
    pub(super) low: u32,
    /// The database's size in pages after the last of them.
    pub(super) size: u32,
    /// How many transactions were committed up to there, since the writer began: what is waited for has a number.
    pub(super) commits: u64,
    /// Where they end in the buffer.
    pub(super) end: Position,
}

/// What a page is.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// An image.
    Image(&'a Arc<Segment>, u64),
    /// It was never written.
    Zero,
}

/// The layers in front of a view: at least one.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    /// Oldest first.
    pub(super) layers: Vec<Arc<Layer>>,
    pub(crate) page_size: PageSize,
}

impl Layer {
    pub(super) fn find(&self, page: u32) -> Option<Found<'_>> {
        match self.pages.get(page) {
            Some(offset) => Some(Found::Image(&self.segment, offset)),
            None => (page > self.low).then_some(Found::Zero),
        }
    }
}

impl Local {
    /// The layers with one more transaction: in the last one, unless that belongs to an upload already (the first `sealed` do) or lies in
    /// another segment.
    pub(super) fn with(mut layers: Vec<Arc<Layer>>, sealed: usize, transaction: Layer, page_size: PageSize) -> Self {
        let open = layers.len() > sealed;
        match layers.last_mut().filter(|top| open && top.segment.number == transaction.segment.number) {
            Some(top) => {
                let top = Arc::make_mut(top);
                if transaction.low < top.size {
                    top.pages.truncate(transaction.low);
                }
                transaction.pages.each(&mut |page, offset| top.pages.set(page, offset));
                top.low = top.low.min(transaction.low);
                (top.size, top.commits, top.end) = (transaction.size, transaction.commits, transaction.end);
            }
            None => layers.push(Arc::new(transaction)),
        }
        Self { layers, page_size }
    }

    /// The database's size.
    pub(crate) fn commit(&self) -> Commit {
        Commit(self.layers.last().map_or(0, |layer| layer.size))
    }

    /// What a page is; `None` where the view below knows.
    pub(crate) fn find(&self, pgno: Pgno) -> Option<Found<'_>> {
        self.layers.iter().rev().find_map(|layer| layer.find(pgno.get()))
    }

    /// Reads a page, unless the view below holds it.
    pub(crate) fn read(&self, pgno: Pgno, into: &mut [u8]) -> Result<bool> {
        match self.find(pgno) {
            None => return Ok(false),
            Some(Found::Zero) => into.fill(0),
            Some(Found::Image(segment, offset)) => segment.read(offset, into)?,
        }
        Ok(true)
    }
}
