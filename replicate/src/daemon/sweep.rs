//! Noticing what happens in thousands of databases, and seeing that descriptors suffice for them.
//!
//! One thread goes through all of them: those that change, a hundred times a second; those that rest, as often as costs less than a thousandth of a
//! core; those that are parked, and whether files are still the same, once in a while. It looks at mapped memory, and asks the system next to
//! nothing. Whatever it notices it leaves to the database's driver.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Shared;
use super::database::Database;
use crate::{Seen, Watch};

/// How often those are looked at that change.
const HOT: Duration = Duration::from_millis(10);
/// How often those are looked at that rest, at least and at most; and how much longer than that takes is waited.
const COLD: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
const THRIFT: u32 = 1_000;
/// How many of them are looked at through memory, a page each. The others, which have rested longer, are looked at by a system call each, and rarely.
const MAPPED: usize = 2_048;
const RARELY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(2));
/// How often those are looked at that are parked.
const PARKED: Duration = Duration::from_secs(1);
/// How often it is looked whether descriptors suffice.
const ROOM: Duration = Duration::from_millis(100);
/// Two system calls for each of them; where there are many, they wait longer.
const EACH: Duration = Duration::from_millis(9);
/// In how many of these rounds it is looked once whether the files are still the same.
const ROUNDS: usize = 120;

/// All databases that are held or parked.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    slots: Mutex<Slots>,
    hurry: Condvar,
}

#[derive(Debug, Default)]
struct Slots {
    all: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Those that change.
    hot: Vec<usize>,
    /// Those that rest and are looked at through memory, the longest first; some may not do so any more.
    mapped: VecDeque<usize>,
    /// Where to go on looking at files.
    round: usize,
}

#[derive(Debug)]
struct Slot {
    database: Weak<Database>,
    /// Nothing where it is parked.
    watch: Option<(Watch, Seen)>,
    hot: bool,
    /// Whether it is looked at by a system call.
    plain: bool,
    /// Whether a change has been noticed, so that it need not be looked for.
    noticed: bool,
    /// Whether somebody was checkpointing when it was looked last.
    waiting: bool,
    since: Instant,
}

/// A database's place. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Weak<Shared>,
    number: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut slots = shared.sweep.slots();
        slots.all[self.number] = None;
        slots.hot.retain(|number| *number != self.number);
        slots.free.push(self.number);
    }
}

impl Place {
    pub(crate) fn new(shared: &Arc<Shared>, database: &Arc<Database>) -> Self {
        let slot = Slot {
            database: Arc::downgrade(database),
            watch: None,
            hot: false,
            plain: false,
            noticed: true,
            waiting: false,
            since: Instant::now(),
        };
        let mut slots = shared.sweep.slots();
        let number = match slots.free.pop() {
            Some(number) => number,
            None => {
                slots.all.push(None);
                slots.all.len() - 1
            }
        };
        slots.all[number] = Some(slot);
        Self { shared: Arc::downgrade(shared), number }
    }

    fn with(&self, change: impl FnOnce(&mut Slot)) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut slots = shared.sweep.slots();
        let Some(slot) = slots.all[self.number].as_mut() else { return };
        let before = slot.hot;
        change(slot);
        let after = slot.hot;
        match (before, after) {
            (false, true) => {
                slots.hot.push(self.number);
                shared.sweep.hurry.notify_one();
            }
            (true, false) => slots.hot.retain(|number| *number != self.number),
            _ => {}
        }
    }

    /// It changes: this is what was captured of it.
    pub(crate) fn hot(&self, watch: Option<Watch>, seen: Seen) {
        self.with(|slot| {
            let watch = watch.or_else(|| slot.watch.take().map(|(watch, _)| watch));
            slot.watch = watch.map(|watch| (watch, seen));
            (slot.hot, slot.plain, slot.noticed) = (true, false, false);
            slot.since = Instant::now();
        });
    }

    /// It rests.
    pub(crate) fn cold(&self, watch: Watch, seen: Seen) {
        self.with(|slot| {
            slot.watch = Some((watch, seen));
            (slot.hot, slot.plain, slot.noticed) = (false, false, false);
        });
        if let Some(shared) = self.shared.upgrade() {
            shared.sweep.slots().map(self.number);
        }
    }

    /// It is parked.
    pub(crate) fn parked(&self) {
        self.with(|slot| {
            slot.watch = None;
            (slot.hot, slot.noticed) = (false, false);
        });
    }

    /// Nobody need look at it.
    pub(crate) fn blind(&self) {
        self.with(|slot| {
            slot.watch = None;
            (slot.hot, slot.noticed) = (false, true);
        });
    }
}

impl Sweep {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the thread soon after the daemon.
    pub(crate) fn end(&self) {
        self.hurry.notify_all();
    }
}

/// What was noticed of a database.
enum Notice {
    Changed,
    /// A checkpoint waits for our hold.
    Waiting,
}

/// Looks at all databases until nobody has the daemon any more.
pub(crate) fn run(shared: &Weak<Shared>) {
    let [mut cold, mut plain, mut parked, mut room] = [Instant::now(); 4];
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let now = Instant::now();
        let mut noticed = Vec::new();
        let mut slots = shared.sweep.slots();
        slots.look_hot(&mut noticed);
        if now >= cold {
            slots.look_mapped(&mut noticed);
            cold = now + (now.elapsed() * THRIFT).clamp(COLD.0, COLD.1);
        }
        if now >= plain {
            let count = slots.look_plain(&mut noticed);
            plain = now + RARELY.0.max(RARELY.1 * count);
        }
        let mut odd = Vec::new();
        if now >= parked {
            odd = slots.odd();
            parked = now + PARKED.max(EACH * u32::try_from(odd.len()).unwrap_or(u32::MAX));
        }
        drop(slots);
        for (database, notice) in noticed {
            database.notice(&shared, matches!(notice, Notice::Waiting));
        }
        for database in odd {
            if database.is_odd() {
                database.notice(&shared, false);
            }
        }
        if now >= room {
            make_room(&shared);
            room = now + ROOM;
        }
        let slots = shared.sweep.slots();
        let next = if slots.hot.is_empty() { cold.min(plain).min(parked) } else { now + HOT };
        let pause = next.saturating_duration_since(Instant::now());
        // Whoever begins to change, or the end of the daemon, ends the pause.
        drop(shared.sweep.hurry.wait_timeout(slots, pause.max(Duration::from_millis(1))));
    }
}

impl Slots {
    /// Notes that one is looked at through memory; where that are too many, the one that has rested longest is not any more.
    fn map(&mut self, number: usize) {
        self.mapped.push_back(number);
        while self.mapped.len() > MAPPED {
            let Some(longest) = self.mapped.pop_front() else { return };
            // It may have been taken up since, and be in the list once more.
            if self.mapped.contains(&longest) {
                continue;
            }
            if let Some(slot) = self.all[longest].as_mut().filter(|slot| !slot.hot)
                && let Some((watch, _)) = &mut slot.watch
            {
                *watch = watch.without_memory();
                slot.plain = true;
            }
        }
    }

    fn look_hot(&mut self, noticed: &mut Vec<(Arc<Database>, Notice)>) {
        for number in &self.hot {
            let Some(slot) = self.all[*number].as_mut() else { continue };
            if let Some(notice) = slot.look() {
                noticed.extend(slot.database.upgrade().map(|database| (database, notice)));
            }
        }
    }

    /// Looks at those that rest and are looked at through memory.
    fn look_mapped(&mut self, noticed: &mut Vec<(Arc<Database>, Notice)>) {
        for number in &self.mapped {
            let Some(slot) = self.all[*number].as_mut().filter(|slot| !slot.hot && !slot.plain) else { continue };
            slot.look_cold(noticed);
        }
    }

    /// Looks at the others that rest. Tells how many there are.
    fn look_plain(&mut self, noticed: &mut Vec<(Arc<Database>, Notice)>) -> u32 {
        let mut count = 0;
        for slot in self.all.iter_mut().flatten().filter(|slot| !slot.hot && slot.plain) {
            count += 1;
            slot.look_cold(noticed);
        }
        count
    }

    /// The databases whose files are to be looked at: all that are parked, and some that rest.
    fn odd(&mut self) -> Vec<Arc<Database>> {
        let share = self.all.len().div_ceil(ROUNDS);
        let from = self.round % self.all.len().max(1);
        self.round = from + share;
        let due = |number: usize| (from..from + share).contains(&number);
        let slots = self.all.iter().enumerate().filter_map(|(number, slot)| Some((number, slot.as_ref()?)));
        let odd = slots.filter(|(number, slot)| !slot.hot && !slot.noticed && (slot.watch.is_none() || due(*number)));
        odd.filter_map(|(_, slot)| slot.database.upgrade()).collect()
    }

    /// Those that rest, the longest first. Next time it is others' turn, if there are any: some cannot be parked just now.
    fn resting(&mut self, count: usize) -> Vec<Arc<Database>> {
        let rests = |slot: &&mut Slot| !slot.hot && !slot.noticed && slot.watch.is_some();
        let mut resting: Vec<_> = self.all.iter_mut().flatten().filter(rests).collect();
        resting.sort_by_key(|slot| slot.since);
        let now = Instant::now();
        let turn = resting.into_iter().take(count);
        turn.filter_map(|slot| {
            slot.since = now;
            slot.database.upgrade()
        })
        .collect()
    }
}

impl Slot {
    fn look(&mut self) -> Option<Notice> {
        let (watch, seen) = self.watch.as_ref()?;
        if !self.noticed && watch.changed(seen) {
            self.noticed = true;
            return Some(Notice::Changed);
        }
        // One that only copies what it can is over in a moment.
        let before = std::mem::replace(&mut self.waiting, watch.checkpointer_waiting());
        (before && self.waiting).then_some(Notice::Waiting)
    }

    fn look_cold(&mut self, noticed: &mut Vec<(Arc<Database>, Notice)>) {
        if let Some((watch, seen)) = &self.watch
            && !self.noticed
            && watch.changed(seen)
        {
            self.noticed = true;
            noticed.extend(self.database.upgrade().map(|database| (database, Notice::Changed)));
        }
    }
}

/// Parks those that have rested longest, where descriptors run short.
fn make_room(shared: &Arc<Shared>) {
    let lacking = |free: usize, (few, enough): (usize, usize)| if free < few { enough.saturating_sub(free) } else { 0 };
    let descriptors = lacking(shared.descriptors.available_permits(), shared.room);
    let places = lacking(shared.places.available_permits(), shared.free);
    let count = places.max(descriptors.div_ceil(super::driver::RESTING as usize));
    if count == 0 {
        return;
    }
    let resting = shared.sweep.slots().resting(count);
    let tried = resting.len();
    let parked = resting.into_iter().filter(|database| database.park()).count();
    tracing::debug!(count, tried, parked, "descriptors run short: parking");
}
