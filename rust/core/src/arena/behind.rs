//! Between an arena and the store behind it: pages go to the store out of their slots, and come from it by way of the caller's memory.
//!
//! Each byte is hashed once. A page on its way to the store is hashed there, in its slot, as any other that is put under a name; one that comes
//! was verified by the store, and is copied into its slot afterwards as it is. Somebody who changed it between the two would break the rules
//! of both calls, and leave a page that does not hash to its name, which is a miss as soon as it is read.

use super::{Names, PageArena};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::pool::{self, Monitor};
use crate::store::{BlobStore, TASK_BLOBS};

/// Slots that nobody writes to until this is dropped.
struct Held<'a> {
    arena: &'a PageArena,
    slots: Vec<u32>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.arena.lock();
        for slot in &self.slots {
            state.entries[*slot as usize].slow_readers -= 1;
            state.release(*slot);
        }
        drop(state);
        self.arena.freed.notify_all();
    }
}

impl PageArena {
    /// Puts pages into a store, straight from their slots; returns what failed, in order: pages that are not here, or found to be corrupt. To
    /// puts into the arena they are as pinned meanwhile.
    ///
    /// # Errors
    /// Those of [`BlobStore::put_named`]; some pages may have been put.
    pub fn write_to(&self, store: &dyn BlobStore, digests: &[Digest], monitor: &Monitor) -> Result<Vec<(usize, Error)>> {
        self.check_writer()?;
        self.check_digests(digests)?;
        let mut held = Held { arena: self, slots: Vec::with_capacity(digests.len()) };
        let (mut left, mut failed) = (Vec::with_capacity(digests.len()), Vec::new());
        let mut state = self.lock();
        for (index, digest) in digests.iter().enumerate() {
            let Some(slot) = state.find(digest) else {
                failed.push((index, Error::BlobNotFound { digest: digest.to_string() }));
                continue;
            };
            let entry = &mut state.entries[slot as usize];
            entry.readers += 1;
            entry.slow_readers += 1;
            held.slots.push(slot);
            left.push((index, slot, entry.len));
        }
        drop(state);
        loop {
            // SAFETY: readers of the slots are counted, so nobody in this process writes to them; the store hashes what it takes under a name.
            let pages: Vec<&[u8]> = left.iter().map(|&(_, slot, len)| unsafe { self.slots.bytes(slot, len) }).collect();
            let names: Vec<_> = left.iter().map(|&(index, ..)| Some(digests[index])).collect();
            match store.put_named(&pages, &names, monitor) {
                Ok(_) => break,
                Err(Error::At { index: place, source }) => {
                    let (index, slot, _) = left.remove(place);
                    if !matches!(*source, Error::Integrity { .. }) {
                        return Err(source.at(index));
                    }
                    // The others are tried again; those that were put are found.
                    let mut state = self.lock();
                    state.counts.corrupt += 1;
                    failed.push((index, self.condemn(&mut state, slot, &digests[index])));
                }
                Err(error) => return Err(error),
            }
        }
        failed.sort_unstable_by_key(|(index, _)| *index);
        Ok(failed)
    }

    /// Reads pages from a store, each into the buffer beside it, and keeps a copy of those that are whole, as far as there is room that is not
    /// pinned; returns what failed, in order.
    pub fn read_from(&self, store: &dyn BlobStore, items: &mut [(Digest, &mut [u8])], monitor: &Monitor) -> Result<Vec<(usize, Error)>> {
        self.check_writer()?;
        self.check_digests(items.iter().map(|(digest, _)| digest))?;
        let mut failed = Vec::new();
        // So many that all threads are busy, and so few that they are in cache when they are copied.
        let step = 2 * TASK_BLOBS * pool::threads();
        for (part, items) in items.chunks_mut(step).enumerate() {
            let lost = store.get_many_into(items, monitor);
            let mut names = Vec::with_capacity(items.len());
            let mut pages: Vec<&[u8]> = Vec::with_capacity(items.len());
            for (index, (digest, out)) in items.iter().enumerate() {
                if out.len() <= self.slots.geometry.page_bytes && lost.binary_search_by_key(&index, |(index, _)| *index).is_err() {
                    names.push(*digest);
                    pages.push(out);
                }
            }
            match self.put_all(&pages, Names::True(&names), &Monitor::new()) {
                Ok(_) => {}
                // The caller has its pages all the same.
                Err(error) if matches!(error.root(), Error::Store(_)) => log::debug!("pages from the store are not kept: {error}"),
                Err(error) => return Err(error),
            }
            failed.extend(lost.into_iter().map(|(index, error)| (part * step + index, error)));
        }
        Ok(failed)
    }
}
