//! What is where in an arena, and what was done: the part of it that threads take turns at.

use hashbrown::HashTable;

use super::queues::Queues;
use super::slots::Slots;
use crate::digest::Digest;

/// What is where.
pub(super) struct State {
    pub(super) index: HashTable<u32>,
    pub(super) entries: Box<[Entry]>,
    pub(super) counts: Counts,
    pub(super) mode: Mode,
}

pub(super) enum Mode {
    Writer {
        queues: Queues,
        free: Vec<u32>,
        /// Slots that are being written.
        writing: u32,
    },
    /// Of the file when it was last looked through.
    Reader { changes: u64 },
}

/// What the process knows about a slot. The mapped header says the same to others; it is not believed once it was read.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) len: usize,
    pub(super) generation: u64,
    /// Calls that are reading it.
    pub(super) readers: u32,
    /// Those of them that end only when the pool's threads have done other work: nobody on these threads may wait for them.
    pub(super) slow_readers: u32,
    pub(super) pins: u32,
    /// Whether the index has it. A slot that it does not have is free as soon as nobody reads it.
    pub(super) listed: bool,
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What an arena holds, and what was done since it was opened.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts { $($(#[$doc])* pub $name: u64),* }

        impl Counts {
            /// Each number with its name.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counts! {
    /// Slots in all.
    slots,
    /// Slots that hold a page.
    pages,
    /// Bytes of these pages.
    bytes,
    /// Pages that are pinned.
    pinned,
    /// Pages read and verified.
    hits,
    /// Pages asked for that were not there.
    misses,
    /// Pages found corrupt.
    corrupt,
    /// Pages written.
    written,
    /// Pages put that were there already.
    deduplicated,
    /// Pages that made room for others.
    evicted,
    /// Bytes read and verified.
    bytes_read,
    /// Bytes written.
    bytes_written,
}

/// Digests are as good as random.
pub(super) fn hash_of(digest: &Digest) -> u64 {
    u64::from_ne_bytes(*digest.bytes().first_chunk().expect("a digest has 32 bytes"))
}

impl State {
    pub(super) fn find(&self, digest: &Digest) -> Option<u32> {
        self.index.find(hash_of(digest), |slot| self.entries[*slot as usize].digest == *digest).copied()
    }

    pub(super) fn list(&mut self, slot: u32, entry: Entry) {
        self.entries[slot as usize] = Entry { listed: true, ..entry };
        let entries = &self.entries;
        self.index.insert_unique(hash_of(&entry.digest), slot, |slot| hash_of(&entries[*slot as usize].digest));
        self.counts.pages += 1;
        self.counts.bytes += entry.len as u64;
    }

    /// Takes a page off the index. Its slot is not free yet.
    pub(super) fn unlist(&mut self, slot: u32) {
        let entry = &mut self.entries[slot as usize];
        (entry.listed, self.counts.pinned) = (false, self.counts.pinned - u64::from(std::mem::take(&mut entry.pins) > 0));
        self.counts.pages -= 1;
        self.counts.bytes -= entry.len as u64;
        let found = self.index.find_entry(hash_of(&entry.digest), |other| *other == slot);
        found.expect("it is listed").remove();
        if let Mode::Writer { queues, .. } = &mut self.mode {
            queues.remove(slot);
        }
    }

    /// A call that read a slot has ended.
    pub(super) fn release(&mut self, slot: u32) {
        let entry = &mut self.entries[slot as usize];
        entry.readers -= 1;
        if entry.readers == 0 && !entry.listed {
            self.free(slot);
        }
    }

    pub(super) fn free(&mut self, slot: u32) {
        if let Mode::Writer { free, .. } = &mut self.mode {
            free.push(slot);
        }
    }

    /// A slot to write to: a free one, or that of the page which goes next.
    pub(super) fn take(&mut self, slots: &Slots) -> Option<u32> {
        let Mode::Writer { queues, free, writing } = &mut self.mode else { return None };
        let (slot, full) = match free.pop() {
            Some(slot) => (slot, false),
            None => (queues.evict(|slot| self.entries[slot as usize].readers > 0 || self.entries[slot as usize].pins > 0)?, true),
        };
        *writing += 1;
        if full {
            self.unlist(slot);
            self.counts.evicted += 1;
        }
        slots.clear(slot);
        Some(slot)
    }
}
