//! A number for each of some pages: copying the whole costs nothing, changing one page costs a path through the tree.
//!
//! Readers keep the copy that they began with, while the writer goes on with its own: that is all there is to snapshot isolation here.

use std::sync::Arc;

const BITS: u32 = 6;
const FAN: usize = 1 << BITS;

/// See the module. The number 0 stands for "none".
#[derive(Clone, Debug, Default)]
pub(crate) struct PageMap {
    root: Option<Arc<Node>>,
    /// How many levels of inner nodes lie above the leaves.
    height: u32,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node {
    Inner(Box<[Option<Arc<Node>>; FAN]>),
    Leaf(Box<[u64; FAN]>),
}

impl Node {
    fn new(height: u32) -> Self {
        if height == 0 { Self::Leaf(Box::new([0; FAN])) } else { Self::Inner(Box::new([const { None }; FAN])) }
    }

    fn set(&mut self, height: u32, page: u32, value: u64) -> u64 {
        match self {
            Self::Leaf(values) => std::mem::replace(&mut values[page as usize % FAN], value),
            Self::Inner(nodes) => {
                let node = &mut nodes[slot(page, height)];
                let node = node.get_or_insert_with(|| Arc::new(Self::new(height - 1)));
                Arc::make_mut(node).set(height - 1, page, value)
            }
        }
    }

    fn each(&self, height: u32, first: u32, visit: &mut dyn FnMut(u32, u64)) {
        match self {
            Self::Leaf(values) => {
                for (page, value) in (first..).zip(values.iter()).filter(|(_, value)| **value != 0) {
                    visit(page, *value);
                }
            }
            Self::Inner(nodes) => {
                for (at, node) in (0u32..).zip(nodes.iter()) {
                    if let Some(node) = node {
                        node.each(height - 1, first | (at << (BITS * height)), visit);
                    }
                }
            }
        }
    }
}

const fn slot(page: u32, height: u32) -> usize {
    // Six levels of six bits hold 36; what is beyond a page number's 32 is 0.
    (page as u64 >> (BITS * height)) as usize % FAN
}

/// Whether a tree of this height holds the page.
const fn fits(page: u32, height: u32) -> bool {
    page as u64 >> (BITS * (height + 1)) == 0
}

impl PageMap {
    /// The page's number.
    pub(crate) fn get(&self, page: u32) -> Option<u64> {
        if !fits(page, self.height) {
            return None;
        }
        let (mut node, mut height) = (self.root.as_ref()?, self.height);
        loop {
            match &**node {
                Node::Leaf(values) => return Some(values[page as usize % FAN]).filter(|value| *value != 0),
                Node::Inner(nodes) => node = nodes[slot(page, height)].as_ref()?,
            }
            height -= 1;
        }
    }

    /// Sets the page's number; 0 removes it.
    pub(crate) fn set(&mut self, page: u32, value: u64) {
        if value == 0 && self.get(page).is_none() {
            return;
        }
        while !fits(page, self.height) {
            self.height += 1;
            if let Some(root) = self.root.take() {
                let mut above = [const { None }; FAN];
                above[0] = Some(root);
                self.root = Some(Arc::new(Node::Inner(Box::new(above))));
            }
        }
        let height = self.height;
        let root = self.root.get_or_insert_with(|| Arc::new(Node::new(height)));
        let before = Arc::make_mut(root).set(height, page, value);
        self.len = self.len + usize::from(value != 0) - usize::from(before != 0);
    }

    /// Removes all pages beyond `last`.
    pub(crate) fn truncate(&mut self, last: u32) {
        let mut beyond = Vec::new();
        self.each(&mut |page, _| {
            if page > last {
                beyond.push(page);
            }
        });
        for page in beyond {
            self.set(page, 0);
        }
    }

    /// Calls `visit` with every page and its number, in the order of pages.
    pub(crate) fn each(&self, visit: &mut dyn FnMut(u32, u64)) {
        if let Some(root) = &self.root {
            root.each(self.height, 0, visit);
        }
    }

    /// How many pages have a number.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn all(map: &PageMap) -> Vec<(u32, u64)> {
        let mut all = Vec::new();
        map.each(&mut |page, value| all.push((page, value)));
        all
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_its_copies_stay_as_they_are(
            steps in prop::collection::vec((prop_oneof![1..200u32, 4_000..5_000u32, 200_000..300_000u32, any::<u32>()], 0..4u64), 1..200),
            cuts in prop::collection::vec((0..200usize, 0..10_000u32), 0..4),
        ) {
            let (mut map, mut model) = (PageMap::default(), BTreeMap::new());
            let mut copies = Vec::new();
            for (at, (page, value)) in steps.into_iter().enumerate() {
                map.set(page, value);
                if value == 0 { model.remove(&page); } else { model.insert(page, value); }
                prop_assert_eq!(map.get(page), model.get(&page).copied());
                for (_, last) in cuts.iter().filter(|(when, _)| *when == at) {
                    map.truncate(*last);
                    model.retain(|page, _| page <= last);
                }
                prop_assert_eq!(map.len(), model.len());
                copies.push((map.clone(), model.clone()));
            }
            for (map, model) in copies {
                prop_assert_eq!(all(&map), model.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
