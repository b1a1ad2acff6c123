//! Which page goes when a slot is needed: S3-FIFO (Yang et al., SOSP 2023), over slots.
//!
//! A page begins in a small queue, a tenth of all slots. What was not asked for again by the time it comes to the front goes, and its
//! fingerprint is remembered for as long as the main queue is; so a scan passes through the small queue and leaves the main one alone. What was
//! asked for, or comes back while it is remembered, is in the main queue, where each request gives it another round, three at most. A hit
//! changes a counter and moves nothing.
//!
//! All memory is taken at the beginning, for the fingerprints too.

use std::collections::{HashSet, VecDeque};

/// No slot.
const NONE: u32 = u32::MAX;
/// Rounds that a page may have ahead of it.
const MOST_ROUNDS: u8 = 3;

/// A queue whose members are linked by their slots' entries.
#[derive(Clone, Copy)]
struct Queue {
    front: u32,
    back: u32,
    len: u32,
}

impl Queue {
    const EMPTY: Self = Self { front: NONE, back: NONE, len: 0 };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Small,
    Main,
}

#[derive(Clone, Copy)]
struct Entry {
    before: u32,
    after: u32,
    fingerprint: u64,
    place: Place,
    rounds: u8,
}

/// The order in which slots are given up.
pub(super) struct Queues {
    entries: Box<[Entry]>,
    small: Queue,
    main: Queue,
    most_small: u32,
    gone: VecDeque<u64>,
    remembered: HashSet<u64>,
}

impl Queues {
    pub(super) fn new(slots: u32) -> Self {
        let entry = Entry { before: NONE, after: NONE, fingerprint: 0, place: Place::Nowhere, rounds: 0 };
        let most_small = (slots / 10).max(1);
        Self {
            entries: vec![entry; slots as usize].into(),
            small: Queue::EMPTY,
            main: Queue::EMPTY,
            most_small,
            gone: VecDeque::with_capacity((slots - most_small) as usize + 1),
            remembered: HashSet::with_capacity((slots - most_small) as usize + 1),
        }
    }

    fn queue(&mut self, place: Place) -> &mut Queue {
        if place == Place::Small { &mut self.small } else { &mut self.main }
    }

    fn push(&mut self, slot: u32, place: Place) {
        let back = self.queue(place).back;
        let entry = &mut self.entries[slot as usize];
        (entry.before, entry.after, entry.place) = (back, NONE, place);
        if back != NONE {
            self.entries[back as usize].after = slot;
        }
        let queue = self.queue(place);
        (queue.back, queue.len) = (slot, queue.len + 1);
        if back == NONE {
            queue.front = slot;
        }
    }

    /// Takes a slot out of its queue, wherever in it it is.
    pub(super) fn remove(&mut self, slot: u32) {
        let Entry { before, after, place, .. } = self.entries[slot as usize];
        if place == Place::Nowhere {
            return;
        }
        self.entries[slot as usize].place = Place::Nowhere;
        if before != NONE {
            self.entries[before as usize].after = after;
        }
        if after != NONE {
            self.entries[after as usize].before = before;
        }
        let queue = self.queue(place);
        queue.len -= 1;
        if before == NONE {
            queue.front = after;
        }
        if after == NONE {
            queue.back = before;
        }
    }

    /// A page has come; `fingerprint` is as good as its name.
    pub(super) fn insert(&mut self, slot: u32, fingerprint: u64) {
        let entry = &mut self.entries[slot as usize];
        (entry.fingerprint, entry.rounds) = (fingerprint, 0);
        // Its place among those that went stays taken: it is forgotten in its turn.
        let place = if self.remembered.remove(&fingerprint) { Place::Main } else { Place::Small };
        self.push(slot, place);
    }

    /// A page was asked for.
    pub(super) fn touch(&mut self, slot: u32) {
        let rounds = &mut self.entries[slot as usize].rounds;
        *rounds = (*rounds + 1).min(MOST_ROUNDS);
    }

    fn remember(&mut self, fingerprint: u64) {
        if self.gone.len() + self.most_small as usize >= self.entries.len()
            && let Some(oldest) = self.gone.pop_front()
        {
            self.remembered.remove(&oldest);
        }
        self.gone.push_back(fingerprint);
        self.remembered.insert(fingerprint);
    }

    /// Takes out the page that goes next, of those that are not `held`; None when all are.
    pub(super) fn evict(&mut self, held: impl Fn(u32) -> bool) -> Option<u32> {
        let small_first = self.small.len >= self.most_small || self.main.len == 0;
        let found = if small_first { self.evict_small(&held) } else { None };
        found.or_else(|| self.evict_main(&held)).or_else(|| if small_first { None } else { self.evict_small(&held) })
    }

    fn evict_small(&mut self, held: &impl Fn(u32) -> bool) -> Option<u32> {
        for _ in 0..self.small.len {
            let slot = self.small.front;
            self.remove(slot);
            let Entry { rounds, fingerprint, .. } = self.entries[slot as usize];
            if held(slot) {
                self.push(slot, Place::Small);
            } else if rounds > 1 {
                self.entries[slot as usize].rounds = 0;
                self.push(slot, Place::Main);
            } else {
                self.remember(fingerprint);
                return Some(slot);
            }
        }
        None
    }

    fn evict_main(&mut self, held: &impl Fn(u32) -> bool) -> Option<u32> {
        for _ in 0..=u32::from(MOST_ROUNDS) * self.main.len + self.main.len {
            let slot = self.main.front;
            if slot == NONE {
                return None;
            }
            self.remove(slot);
            let entry = &mut self.entries[slot as usize];
            if !held(slot) {
                let Some(rounds) = entry.rounds.checked_sub(1) else { return Some(slot) };
                entry.rounds = rounds;
            }
            self.push(slot, Place::Main);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Queues that have slots 0 to 9, put in with fingerprints of their own; one is in the small queue's share.
    fn ten() -> Queues {
        let mut queues = Queues::new(10);
        (0..10).for_each(|slot| queues.insert(slot, u64::from(slot)));
        queues
    }

    const FREE: fn(u32) -> bool = |_| false;

    #[test]
    fn what_nobody_asked_for_goes_in_order() {
        let mut queues = ten();
        assert_eq!(std::iter::from_fn(|| queues.evict(FREE)).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_asked_for_twice_outlives_a_scan() {
        let mut queues = ten();
        for slot in [2, 3] {
            queues.touch(slot);
            queues.touch(slot);
        }
        for page in 10..200 {
            let slot = queues.evict(FREE).unwrap();
            assert!(slot != 2 && slot != 3, "page {page}");
            queues.insert(slot, page);
        }
    }

    #[test]
    fn what_comes_back_soon_stays() {
        let mut queues = ten();
        assert_eq!(queues.evict(FREE), Some(0));
        queues.insert(0, 0);
        assert!(queues.entries[0].place == Place::Main);
        // What went long ago is forgotten.
        for page in 100..120 {
            let slot = queues.evict(FREE).unwrap();
            queues.insert(slot, page);
        }
        let slot = queues.evict(FREE).unwrap();
        queues.insert(slot, 1);
        assert!(queues.entries[slot as usize].place == Place::Small);
        assert!(queues.gone.len() <= 9 && queues.remembered.len() <= queues.gone.len());
    }

    #[test]
    fn what_is_held_stays_and_the_rest_goes() {
        let mut queues = ten();
        (0..10).for_each(|slot| queues.touch(slot));
        let mut went: Vec<_> = std::iter::from_fn(|| queues.evict(|slot| slot % 2 == 0)).collect();
        went.sort_unstable();
        assert_eq!(went, [1, 3, 5, 7, 9]);
        assert_eq!(queues.evict(|_| true), None);
        assert_eq!(queues.small.len + queues.main.len, 5);
    }

    proptest::proptest! {
        #[test]
        fn every_slot_is_in_one_place(calls in proptest::collection::vec((0..4_u8, 0..8_u32), 0..200)) {
            let mut queues = Queues::new(8);
            let mut members = std::collections::BTreeSet::new();
            for (at, (call, slot)) in calls.into_iter().enumerate() {
                match call {
                    0 if members.insert(slot) => queues.insert(slot, at as u64 % 16),
                    1 => queues.touch(slot),
                    2 => {
                        members.remove(&slot);
                        queues.remove(slot);
                    }
                    _ => {
                        let gone = queues.evict(|slot| slot == 3);
                        proptest::prop_assert_eq!(gone.is_some(), members.iter().any(|slot| *slot != 3));
                        if let Some(gone) = gone {
                            proptest::prop_assert!(gone != 3 && members.remove(&gone));
                        }
                    }
                }
                proptest::prop_assert_eq!((queues.small.len + queues.main.len) as usize, members.len());
            }
        }
    }
}
