//! What SQLite will ask for next, read off the pages that it has asked for (<https://www.sqlite.org/fileformat2.html#b_tree_pages>).
//!
//! A [`Predictor`] sees every page that one connection reads. It remembers the tree above the leaves – which page is whose child – and from
//! that knows three things:
//!
//! - *Scans*: after two leaves that stand side by side, those that follow, in windows that grow fourfold; forwards as well as backwards
//!   (`ORDER BY … DESC`).
//! - *Index lookups*: an index's leaf names rows, so the table's pages on the way to them. Rows with the same key as the one asked for will all
//!   be asked for; others only once a second row has been.
//! - *Levels*: a tree is balanced, so where one child of a page has children itself, its siblings have too, and are few.
//!
//! All this is guessing: a wrong guess costs a request, never a wrong answer. Pages are untrusted; nothing here trusts an offset.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// How many children may be remembered before all is forgotten.
const REMEMBERED: usize = 1 << 18;
/// How many siblings of a page with children are fetched, and how many pages on the way to an index leaf's rows.
const LEVEL: usize = 32;
/// The first window of a scan, and how large windows get, in pages.
const FIRST_WINDOW: usize = 8;
const LARGEST_WINDOW: usize = 2_048;
/// How many bytes of pages a window holds at most.
const WINDOW_BYTES: usize = 8 << 20;
/// How many rows with one key are followed.
const SAME_KEY: usize = 256;
/// How deep trees are at most.
const DEEPEST: usize = 20;

/// Gives a page that is in memory.
pub(crate) type Peek<'a> = dyn Fn(u32) -> Option<Bytes> + 'a;

impl Way {
    const fn other(self) -> Self {
        match self {
            Self::Forwards => Self::Backwards,
            Self::Backwards => Self::Forwards,
        }
    }
}

/// A page with children.
struct Node {
    children: Arc<[u32]>,
    /// Of a table: the largest row id under each child but the last.
    rows: Box<[i64]>,
    /// Where the page lay in memory: the same place mostly means the same page, and nothing worse than a wrong guess comes of it otherwise.
    seen_at: usize,
}

/// An index leaf, as the rows that it names.
struct IndexLeaf {
    pgno: u32,
    page: Bytes,
    /// Read off the page once they are needed.
    entries: OnceCell<Vec<RowOfKey>>,
    /// How many of the table's leaves it has led to.
    led: usize,
}

struct RowOfKey {
    row: i64,
    /// The key's columns: where their types and where their values stand.
    types: Range<usize>,
    values: Range<usize>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Predictor {
    nodes: HashMap<u32, Node>,
    /// Each child's parent and place.
    parents: HashMap<u32, (u32, u32)>,
    /// How deep the leaves of each tree lie, by its root page.
    leaves_at: HashMap<u32, usize>,
    /// The root page of each index's table, by the index's root page.
    tables: HashMap<u32, u32>,
    /// Root pages of tables, by name, and of indexes, by table's name, as the schema names them.
    schema: Schema,
    last_leaf: u32,
    /// How many leaves were read side by side, and in which direction.
    side_by_side: u32,
    way: Way,
    window: usize,
    /// How many leaves beyond the last one read have been asked for.
    ahead: usize,
    /// How large windows may get; less than [`LARGEST_WINDOW`] once pages were found to go before they were read.
    most: Option<usize>,
    index_leaf: Option<IndexLeaf>,
    usable: usize,
}

/// The direction of a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Way {
    #[default]
    Forwards,
    Backwards,
}

#[derive(Default)]
struct Schema {
    tables: HashMap<Vec<u8>, u32>,
    indexes: HashSet<(u32, Vec<u8>)>,
}

impl Predictor {
    /// What to fetch together with a page that has to be fetched now. `peek` gives pages that are in memory already.
    pub(crate) fn before(&mut self, pgno: u32, peek: &Peek<'_>) -> Vec<u32> {
        let mut ahead = self.rows_of_index(pgno, peek);
        if let Some(way) = self.follows(pgno) {
            if way != self.way {
                self.turn(way);
            } else if self.ahead > 0 {
                // It was asked for, and has had to make room before it was read: windows are too large for the cache.
                self.most = Some((self.window / 4).max(FIRST_WINDOW));
                (self.ahead, self.window) = (0, 0);
            }
            // Counted when the page is seen; but its followers may as well come with it.
            ahead.extend(self.next_window(pgno, self.side_by_side + 1, peek));
        }
        ahead
    }

    /// Takes note of a leaf that was read while nothing has had to be fetched for a long time: guessing costs more than it brings then.
    /// `false` for another kind of page.
    pub(crate) fn leaf_in_passing(&mut self, pgno: u32, page: &Bytes) -> bool {
        match page.first() {
            Some(0x0d) if pgno != 1 => {}
            Some(0x0a) => {
                self.index_leaf = Some(IndexLeaf { pgno, page: page.clone(), entries: OnceCell::new(), led: 0 });
            }
            _ => return false,
        }
        self.nodes.remove(&pgno);
        self.last_leaf = pgno;
        (self.side_by_side, self.ahead, self.window) = (0, 0, 0);
        true
    }

    /// Takes note of a page that was read, and says what to fetch now.
    pub(crate) fn after(&mut self, pgno: u32, page: &Bytes, peek: &Peek<'_>) -> Vec<u32> {
        if self.nodes.get(&pgno).is_some_and(|node| node.seen_at == page.as_ptr().addr()) {
            return Vec::new();
        }
        let tree = TreePage::parse(page, pgno);
        if tree.as_ref().is_none_or(|tree| tree.is_leaf) {
            self.nodes.remove(&pgno);
        }
        let Some(tree) = tree else { return Vec::new() };
        if pgno == 1 {
            self.usable = page.len().saturating_sub(usize::from(page.get(20).copied().unwrap_or(0)));
        }
        if self.parents.len() > REMEMBERED {
            *self = Self { usable: self.usable, ..Self::default() };
        }
        let known = self.parents.get(&pgno).copied();
        if !tree.is_leaf {
            self.remember(pgno, page, &tree);
            if pgno == 1 {
                // The schema is read whole when a connection begins.
                return self
                    .nodes
                    .get(&1)
                    .map(|node| node.children.iter().take(LEVEL).copied().collect())
                    .unwrap_or_default();
            }
            return known.map(|(parent, place)| self.level(parent, place)).unwrap_or_default();
        }
        let (root, depth) = self.root_and_depth(pgno);
        if known.is_some() {
            self.leaves_at.insert(root, depth);
        }
        if root == 1 {
            self.read_schema(page, &tree);
        }
        if !tree.is_table && self.index_leaf.as_ref().is_none_or(|leaf| leaf.pgno != pgno) {
            self.index_leaf = Some(IndexLeaf { pgno, page: page.clone(), entries: OnceCell::new(), led: 0 });
        }
        self.leaf_was_read(pgno, peek)
    }

    /// The pages of one level around a page that turned out to have children.
    fn level(&self, parent: u32, place: u32) -> Vec<u32> {
        let Some(node) = self.nodes.get(&parent) else { return Vec::new() };
        let from = (place as usize).saturating_sub(LEVEL / 4);
        node.children.iter().skip(from).take(LEVEL).copied().filter(|child| !self.nodes.contains_key(child)).collect()
    }

    fn remember(&mut self, pgno: u32, page: &Bytes, tree: &TreePage<'_>) {
        let (children, rows) = tree.children();
        if let Some(node) = self.nodes.get_mut(&pgno)
            && *node.children == *children
            && *node.rows == *rows
        {
            node.seen_at = page.as_ptr().addr();
            return;
        }
        for (place, child) in (0..).zip(&children) {
            self.parents.insert(*child, (pgno, place));
        }
        self.nodes.insert(pgno, Node { children: children.into(), rows: rows.into(), seen_at: page.as_ptr().addr() });
    }

    /// The root of the tree that a page is in, and how far below it the page is.
    fn root_and_depth(&self, mut pgno: u32) -> (u32, usize) {
        for depth in 0..DEEPEST {
            match self.parents.get(&pgno) {
                Some((parent, _)) => pgno = *parent,
                None => return (pgno, depth),
            }
        }
        (pgno, DEEPEST)
    }

    /// Whether a page is a leaf: a tree's leaves all lie equally deep. `None` where none of them has been seen yet.
    fn is_leaf(&self, pgno: u32) -> Option<bool> {
        let (root, depth) = self.root_and_depth(pgno);
        self.leaves_at.get(&root).map(|leaves| *leaves == depth)
    }

    /// In which direction a page stands right beside the leaf that was read last, if it does.
    fn follows(&self, pgno: u32) -> Option<Way> {
        let beside = |way: &Way| self.following(self.last_leaf, *way).next() == Some(pgno);
        [self.way, self.way.other()].into_iter().filter(|_| self.last_leaf != 0).find(beside)
    }

    fn turn(&mut self, way: Way) {
        (self.way, self.side_by_side, self.ahead, self.window) = (way, 0, 0, 0);
    }

    fn leaf_was_read(&mut self, pgno: u32, peek: &Peek<'_>) -> Vec<u32> {
        if pgno == self.last_leaf {
            return Vec::new();
        }
        match self.follows(pgno) {
            Some(way) => {
                if way != self.way {
                    self.turn(way);
                }
                self.side_by_side += 1;
                self.ahead = self.ahead.saturating_sub(1);
            }
            None => (self.side_by_side, self.ahead, self.window) = (0, 0, 0),
        }
        self.last_leaf = pgno;
        self.next_window(pgno, self.side_by_side, peek)
    }

    /// The next leaves of a scan, once it is one and they are due.
    fn next_window(&mut self, pgno: u32, side_by_side: u32, peek: &Peek<'_>) -> Vec<u32> {
        if side_by_side < 1 || self.ahead > self.window / 2 {
            return Vec::new();
        }
        // Each window that was read in time is a reason to trust the cache a little more again.
        self.most = self.most.map(|most| most * 2).filter(|most| *most < LARGEST_WINDOW);
        let largest = (WINDOW_BYTES / self.usable.max(512)).min(self.most.unwrap_or(LARGEST_WINDOW));
        self.window = if self.window == 0 { FIRST_WINDOW } else { self.window * 4 }.min(largest);
        loop {
            let next: Vec<u32> = self.following(pgno, self.way).skip(self.ahead).take(self.window).collect();
            match next.last() {
                // Not a leaf but the page above the next ones, which may have been fetched, and not read, before.
                Some(last) if self.is_leaf(*last) == Some(false) => {
                    if !self.learn(*last, peek) {
                        self.ahead += next.len() - 1;
                        return next;
                    }
                }
                _ => {
                    self.ahead += next.len();
                    return next;
                }
            }
        }
    }

    /// Remembers the children of a page that is in memory. Whether there is more to know then.
    fn learn(&mut self, pgno: u32, peek: &Peek<'_>) -> bool {
        if self.nodes.contains_key(&pgno) {
            return false;
        }
        let Some(page) = peek(pgno) else { return false };
        match TreePage::parse(&page, pgno) {
            Some(tree) if !tree.is_leaf => self.remember(pgno, &page, &tree),
            _ => return false,
        }
        true
    }

    /// The leaves that follow a leaf; where the page above the next ones is not known yet, that page, and then no more.
    fn following(&self, leaf: u32, way: Way) -> impl Iterator<Item = u32> + '_ {
        let mut at = self.parents.get(&leaf).copied();
        let mut left = LARGEST_WINDOW * 4;
        std::iter::from_fn(move || {
            let (mut parent, mut place) = at?;
            left = left.checked_sub(1)?;
            // Up, until there is a next child.
            for _ in 0..DEEPEST {
                let node = self.nodes.get(&parent)?;
                let next = match way {
                    Way::Forwards => place.checked_add(1),
                    Way::Backwards => place.checked_sub(1),
                };
                match next.and_then(|next| Some((next, node.children.get(next as usize)?))) {
                    Some((next, child)) => {
                        // And down again to the nearest leaf below it.
                        let (mut child, mut under) = (*child, (parent, next));
                        let mut depth = 0;
                        while let Some(node) = self.nodes.get(&child) {
                            // What is remembered may be of several views, or of a damaged database: it need not be a tree.
                            depth += 1;
                            if depth > DEEPEST {
                                return None;
                            }
                            let nearest = match way {
                                Way::Forwards => 0,
                                Way::Backwards => node.children.len().checked_sub(1)?,
                            };
                            under = (child, nearest as u32);
                            child = *node.children.get(nearest)?;
                        }
                        let is_leaf = self.is_leaf(child) != Some(false);
                        at = is_leaf.then_some(under);
                        return Some(child);
                    }
                    None => (parent, place) = *self.parents.get(&parent)?,
                }
            }
            None
        })
    }

    /// Where the page that is wanted lies on the way to a row that the last index leaf names: the pages on the way to the others.
    fn rows_of_index(&mut self, pgno: u32, peek: &Peek<'_>) -> Vec<u32> {
        self.learn_the_way(peek);
        let Some(leaf) = &self.index_leaf else { return Vec::new() };
        let Some(root) = self.tables.get(&self.root_and_depth(leaf.pgno).0).copied() else { return Vec::new() };
        let entries = leaf.entries.get_or_init(|| {
            TreePage::parse(&leaf.page, leaf.pgno)
                .map(|tree| tree.rows_of_keys(&leaf.page, self.usable))
                .unwrap_or_default()
        });
        let on_the_way: Vec<u32> = entries.iter().map(|entry| self.descend(root, entry.row)).collect();
        let Some(at) = on_the_way.iter().position(|page| *page == pgno) else { return Vec::new() };
        let mut seen = HashSet::from([pgno]);
        if self.is_leaf(pgno) != Some(true) {
            let (before, behind) = on_the_way.split_at(at);
            let pages = behind.iter().chain(before.iter().rev()).copied();
            return pages.filter(|page| seen.insert(*page)).take(LEVEL).collect();
        }
        let same = entries[at..].iter().take_while(|entry| leaf.same_key(entry, &entries[at])).count();
        // Each further row is a reason to believe in more.
        let more = match leaf.led {
            0 => 0,
            led => FIRST_WINDOW << (2 * led.min(4)),
        };
        let count = same.min(SAME_KEY).max(more);
        let ahead = on_the_way[at..].iter().take(count).copied().filter(|page| seen.insert(*page)).collect();
        if let Some(leaf) = &mut self.index_leaf {
            leaf.led += 1;
        }
        ahead
    }

    /// Remembers the pages on the way to the rows of the last index leaf that have been fetched, and not read, before.
    fn learn_the_way(&mut self, peek: &Peek<'_>) {
        for _ in 0..DEEPEST {
            let Some(leaf) = &self.index_leaf else { return };
            let Some(root) = self.tables.get(&self.root_and_depth(leaf.pgno).0).copied() else { return };
            let on_the_way: HashSet<u32> =
                leaf.entries(self.usable).iter().map(|entry| self.descend(root, entry.row)).collect();
            let inner = on_the_way.into_iter().filter(|page| self.is_leaf(*page) != Some(true)).collect::<Vec<_>>();
            // Not `any`: all of them are to be looked at.
            if inner.into_iter().filter(|page| self.learn(*page, peek)).count() == 0 {
                return;
            }
        }
    }

    /// The lowest page that is known on the way to a row.
    fn descend(&self, root: u32, row: i64) -> u32 {
        let mut pgno = root;
        for _ in 0..DEEPEST {
            let Some(node) = self.nodes.get(&pgno) else { break };
            let place = node.rows.partition_point(|largest| *largest < row).min(node.children.len() - 1);
            pgno = node.children[place];
        }
        pgno
    }

    /// Reads a leaf of the schema table: which index belongs to which table.
    fn read_schema(&mut self, page: &[u8], tree: &TreePage<'_>) {
        if !tree.is_table {
            return;
        }
        for at in tree.cells() {
            let Some((kind, table, root)) = schema_row(page, at) else { continue };
            match kind {
                b"table" => drop(self.schema.tables.insert(table.to_vec(), root)),
                b"index" => drop(self.schema.indexes.insert((root, table.to_vec()))),
                _ => {}
            }
        }
        let tables = &self.schema.tables;
        self.tables = self
            .schema
            .indexes
            .iter()
            .filter_map(|(root, table)| tables.get(table).map(|table| (*root, *table)))
            .collect();
    }
}

impl IndexLeaf {
    fn entries(&self, usable: usize) -> &[RowOfKey] {
        let read = || TreePage::parse(&self.page, self.pgno).map(|tree| tree.rows_of_keys(&self.page, usable));
        self.entries.get_or_init(|| read().unwrap_or_default())
    }

    fn same_key(&self, one: &RowOfKey, other: &RowOfKey) -> bool {
        let bytes = |range: &Range<usize>| self.page.get(range.clone());
        bytes(&one.types) == bytes(&other.types) && bytes(&one.values) == bytes(&other.values)
    }
}

/// A page of a tree.
struct TreePage<'a> {
    page: &'a [u8],
    header: usize,
    is_leaf: bool,
    is_table: bool,
    count: usize,
}

impl<'a> TreePage<'a> {
    fn parse(page: &'a [u8], pgno: u32) -> Option<Self> {
        let header = if pgno == 1 { 100 } else { 0 };
        let (is_leaf, is_table) = match page.get(header)? {
            0x02 => (false, false),
            0x05 => (false, true),
            0x0a => (true, false),
            0x0d => (true, true),
            _ => return None,
        };
        let count = usize::from(u16_at(page, header + 3)?);
        Some(Self { page, header, is_leaf, is_table, count })
    }

    /// Where the cells begin.
    fn cells(&self) -> impl Iterator<Item = usize> + use<'a> {
        let pointers = self.header + if self.is_leaf { 8 } else { 12 };
        let page = self.page;
        (0..self.count).map_while(move |cell| u16_at(page, pointers + 2 * cell).map(usize::from))
    }

    /// The children in order, and of a table the row ids between them.
    fn children(&self) -> (Vec<u32>, Vec<i64>) {
        let (mut children, mut rows) = (Vec::with_capacity(self.count + 1), Vec::new());
        for at in self.cells() {
            let Some(child) = u32_at(self.page, at) else { break };
            if self.is_table {
                let Some((row, _)) = varint(self.page, at + 4) else { break };
                rows.push(row);
            }
            children.push(child);
        }
        children.extend(u32_at(self.page, self.header + 8));
        (children, rows)
    }

    /// Of an index's leaf: the rows that it names, where the index is one over a table with row ids.
    fn rows_of_keys(&self, page: &[u8], usable: usize) -> Vec<RowOfKey> {
        // Longer keys go on in other pages, with the row id at their end.
        let longest = (usable.saturating_sub(12) * 64 / 255).saturating_sub(23);
        let rows = self.cells().map_while(|at| {
            let (len, start) = varint(page, at)?;
            if usize::try_from(len).ok()? > longest {
                return None;
            }
            let (header_len, mut at) = varint(page, start)?;
            let types_start = at;
            let header_end = start.checked_add(usize::try_from(header_len).ok()?)?;
            let (mut value, mut last) = (header_end, (0, at, header_end));
            while at < header_end {
                let (kind, next) = varint(page, at)?;
                last = (kind, at, value);
                value = value.checked_add(size_of_type(kind)?)?;
                at = next;
            }
            let (kind, types_end, value_start) = last;
            let row = integer(kind, page.get(value_start..value)?)?;
            Some(RowOfKey { row, types: types_start..types_end, values: header_end..value_start })
        });
        rows.collect()
    }
}

/// The pages right below the roots of trees, as far as `at_hand` has the roots and the schema, at most so many in all: trees with too many of
/// them are left out. A lookup in a deep tree has to fetch one of them before it knows its leaf.
pub(crate) fn below_roots(at_hand: &Peek<'_>, most: usize) -> Vec<u32> {
    let mut below = Vec::new();
    let Some(schema) = at_hand(1) else { return below };
    let Some(tree) = TreePage::parse(&schema, 1).filter(|tree| tree.is_table && tree.is_leaf) else { return below };
    for at in tree.cells() {
        let Some((_, _, root)) = schema_row(&schema, at) else { continue };
        let Some(page) = at_hand(root) else { continue };
        let Some(root) = TreePage::parse(&page, root).filter(|root| !root.is_leaf) else { continue };
        let (children, _) = root.children();
        if below.len() + children.len() <= most {
            below.extend(children);
        }
    }
    below
}

/// Kind, table name and root page of a row of the schema table.
fn schema_row(page: &[u8], cell: usize) -> Option<(&[u8], &[u8], u32)> {
    let (_, at) = varint(page, cell)?;
    let (_, start) = varint(page, at)?;
    let (header_len, mut at) = varint(page, start)?;
    let mut value = start.checked_add(usize::try_from(header_len).ok()?)?;
    let mut columns = [(0, 0..0), (0, 0..0), (0, 0..0), (0, 0..0)];
    for column in &mut columns {
        let (kind, next) = varint(page, at)?;
        let end = value.checked_add(size_of_type(kind)?)?;
        *column = (kind, value..end);
        (at, value) = (next, end);
    }
    let [(_, kind), _, (_, table), (root_kind, root)] = columns;
    let root = integer(root_kind, page.get(root)?)?;
    Some((page.get(kind)?, page.get(table)?, u32::try_from(root).ok()?))
}

/// How many bytes a value of a serial type takes.
fn size_of_type(kind: i64) -> Option<usize> {
    Some(match kind {
        0 | 8 | 9 => 0,
        1..=4 => kind as usize,
        5 => 6,
        6 | 7 => 8,
        12.. => usize::try_from((kind - 12) / 2).ok()?,
        _ => return None,
    })
}

/// An integer of a serial type.
fn integer(kind: i64, bytes: &[u8]) -> Option<i64> {
    match kind {
        8 => Some(0),
        9 => Some(1),
        1..=6 => {
            let negative = bytes.first()? & 0x80 != 0;
            let start = if negative { -1 } else { 0 };
            Some(bytes.iter().fold(start, |number, byte| (number << 8) | i64::from(*byte)))
        }
        _ => None,
    }
}

/// A varint as SQLite writes it, and where it ends.
fn varint(page: &[u8], at: usize) -> Option<(i64, usize)> {
    let mut value = 0u64;
    for place in 0..9 {
        let byte = *page.get(at + place)?;
        if place == 8 {
            return Some(((value << 8 | u64::from(byte)) as i64, at + 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value as i64, at + place + 1));
        }
    }
    None
}

fn u16_at(page: &[u8], at: usize) -> Option<u16> {
    page.get(at..at + 2)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn u32_at(page: &[u8], at: usize) -> Option<u32> {
    page.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An interior page of a table with these children.
    fn interior(children: &[u32]) -> Bytes {
        let mut page = vec![0; 512];
        let (last, others) = children.split_last().unwrap();
        page[0] = 0x05;
        page[3..5].copy_from_slice(&(others.len() as u16).to_be_bytes());
        page[8..12].copy_from_slice(&last.to_be_bytes());
        for (cell, child) in others.iter().enumerate() {
            let at = 512 - (cell + 1) * 5;
            page[12 + cell * 2..14 + cell * 2].copy_from_slice(&(at as u16).to_be_bytes());
            page[at..at + 4].copy_from_slice(&child.to_be_bytes());
            page[at + 4] = cell as u8 + 1;
        }
        page.into()
    }

    fn leaf() -> Bytes {
        let mut page = vec![0; 512];
        page[0] = 0x0d;
        page.into()
    }

    #[test]
    fn leaves_that_follow_are_named_once_two_stand_side_by_side() {
        let mut predictor = Predictor { usable: 512, ..Predictor::default() };
        let none = |_: u32| None;
        predictor.after(2, &interior(&[3, 4, 5, 6, 7, 8]), &none);
        assert!(predictor.after(3, &leaf(), &none).is_empty());
        assert_eq!(predictor.after(4, &leaf(), &none), [5, 6, 7, 8]);
    }

    #[test]
    fn leaves_are_followed_backwards_too_and_across_their_parents() {
        let mut predictor = Predictor { usable: 512, ..Predictor::default() };
        let none = |_: u32| None;
        predictor.after(2, &interior(&[3, 20]), &none);
        predictor.after(3, &interior(&[4, 5, 6]), &none);
        predictor.after(20, &interior(&[21, 22, 23]), &none);
        assert!(predictor.after(23, &leaf(), &none).is_empty());
        assert_eq!(predictor.after(22, &leaf(), &none), [21, 6, 5, 4]);
        // Whoever turns is followed again once two stand side by side.
        assert!(predictor.before(23, &none).is_empty());
        assert!(predictor.after(4, &leaf(), &none).is_empty());
        assert_eq!(predictor.after(5, &leaf(), &none), [6, 21, 22, 23]);
    }

    #[test]
    fn pages_that_are_no_tree_end_the_guessing_and_not_the_query() {
        let none = |_: u32| None;
        let mut predictor = Predictor { usable: 512, ..Predictor::default() };
        predictor.after(3, &interior(&[4, 5]), &none);
        predictor.after(4, &leaf(), &none);
        predictor.after(5, &interior(&[5, 5]), &none);
        predictor.after(4, &leaf(), &none);
        predictor.after(9, &leaf(), &none);
        // What once was a page with children is a leaf in another view.
        predictor.after(7, &interior(&[9, 10]), &none);
        predictor.after(9, &interior(&[7, 11]), &none);
        predictor.after(7, &leaf(), &none);
        predictor.after(11, &leaf(), &none);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            pages in proptest::collection::vec((1u32..12, proptest::collection::vec(any::<u8>(), 0..600)), 1..40),
            kinds in proptest::collection::vec(0usize..5, 40),
        ) {
            let pages: Vec<(u32, Bytes)> = pages
                .into_iter()
                .zip(kinds)
                .map(|((pgno, mut page), kind)| {
                    let at = if pgno == 1 { 100 } else { 0 };
                    if let Some(byte) = page.get_mut(at) {
                        *byte = [0x02, 0x05, 0x0a, 0x0d, *byte][kind];
                    }
                    // Small numbers, so that pages name each other.
                    for byte in page.iter_mut().skip(at + 8) {
                        *byte %= 12;
                    }
                    (pgno, page.into())
                })
                .collect();
            let memory: HashMap<u32, Bytes> = pages.iter().cloned().collect();
            let mut predictor = Predictor::default();
            for (pgno, page) in &pages {
                predictor.before(*pgno, &|page| memory.get(&page).cloned());
                predictor.after(*pgno, page, &|page| memory.get(&page).cloned());
            }
        }
    }
}
