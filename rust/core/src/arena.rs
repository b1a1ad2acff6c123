//! A fixed number of page slots in mapped memory: the hottest tier of a cache of pages.
//!
//! A page is hashed while it is copied in, and verified while it is copied out, straight from and into the caller's buffers; a call takes a
//! whole batch, and no page costs a system call or an allocation. The memory is that of a file, on `/dev/shm` or a disk, or of the process
//! alone; all of it is there from the beginning, so that space never runs out later. When every slot is taken, [`queues`] says which page goes.
//!
//! One process writes to a file, under its lock; others [attach](PageArena::attach) to it and read. The file outlives them: what was whole when
//! a writer ended, however it ended, is there for the next one. No header is believed: bytes that do not hash to the name that was asked for are
//! never a page, they are a miss, and their slot is emptied.
//!
//! Limits: nothing waits for a disk, so what a power cut leaves of a file is a matter of luck, and found out when it is read. A forked child has
//! to open the arena again. Whoever shortens the file while it is mapped ends all its readers (SIGBUS).
#![expect(unsafe_code, reason = "the arena decides whose slots are whose")]

mod behind;
mod queues;
mod slots;
mod state;
#[cfg(test)]
mod tests;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use rayon::prelude::*;

use crate::digest::{self, Digest};
use crate::error::{Error, Result};
use crate::pool::{self, Monitor};
use crate::store::{TASK_BLOBS, wrong_length};
use queues::Queues;
use slots::Slots;
use state::{Entry, Mode, State, hash_of};

pub use slots::Geometry;
pub use state::Counts;

/// What is known of the names of pages that are put.
#[derive(Clone, Copy)]
enum Names<'a> {
    /// Nothing.
    Unknown,
    /// What they are said to be.
    Told(&'a [Digest]),
    /// What they are: the pages were hashed a moment ago.
    True(&'a [Digest]),
}

impl<'a> Names<'a> {
    fn all(self) -> Option<&'a [Digest]> {
        match self {
            Self::Unknown => None,
            Self::Told(names) | Self::True(names) => Some(names),
        }
    }

    fn part(self, first: usize, len: usize) -> Self {
        match self {
            Self::Unknown => Self::Unknown,
            Self::Told(names) => Self::Told(&names[first..][..len]),
            Self::True(names) => Self::True(&names[first..][..len]),
        }
    }
}

/// Pages in a fixed number of slots.
pub struct PageArena {
    slots: Slots,
    state: Mutex<State>,
    /// Rings when a slot is let go, for those that wait for one.
    freed: Condvar,
    path: Option<PathBuf>,
    /// The process that opened it.
    owner: u32,
    #[expect(dead_code, reason = "closing the file releases its lock")]
    file: Option<File>,
}

impl PageArena {
    /// An arena to write to: in a file, which is made where it is missing, or in memory that goes with the process.
    ///
    /// # Errors
    /// [`Error::Io`] when the space is not there; [`Error::Format`] when the file is of another geometry, or no arena; [`Error::Store`] when
    /// another process, or another object of this one, has it open to write.
    pub fn open(path: Option<&Path>, geometry: Geometry) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::of(Slots::anonymous(geometry)?, None, None, true)) };
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(Error::io("open", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let reason = "is open to write already: attach to it, or give each process its own";
                return Err(Error::Store(format!("arena {} {reason}", path.display())));
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
        let arena = Self::of(Slots::of_file(&file, path, geometry)?, Some(path), Some(file), true);
        arena.list_all(&mut arena.lock());
        Ok(arena)
    }

    /// The arena in a file that another process writes to, to read from.
    pub fn attach(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let arena = Self::of(Slots::attached(&file, path)?, Some(path), Some(file), false);
        arena.list_all(&mut arena.lock());
        Ok(arena)
    }

    fn of(slots: Slots, path: Option<&Path>, file: Option<File>, writer: bool) -> Self {
        let Geometry { algorithm, slots: count, .. } = slots.geometry;
        let entry = Entry { digest: Digest::new(algorithm, [0; 32]), len: 0, generation: 0, readers: 0, slow_readers: 0, pins: 0, listed: false };
        let mode = if writer {
            Mode::Writer { queues: Queues::new(count), free: (0..count).rev().collect(), writing: 0 }
        } else {
            Mode::Reader { changes: 0 }
        };
        let state = State {
            index: HashTable::with_capacity(count as usize),
            entries: vec![entry; count as usize].into(),
            counts: Counts { slots: u64::from(count), ..Counts::default() },
            mode,
        };
        Self { slots, state: Mutex::new(state), freed: Condvar::new(), path: path.map(Path::to_path_buf), owner: std::process::id(), file }
    }

    /// Looks through all headers. What is whole is listed; of a page that stands there twice, the first.
    fn list_all(&self, state: &mut State) {
        if let Mode::Reader { changes } = &mut state.mode {
            *changes = self.slots.changes();
        }
        state.index.clear();
        state.entries.iter_mut().for_each(|entry| entry.listed = false);
        (state.counts.pages, state.counts.bytes) = (0, 0);
        let found = (0..self.slots.geometry.slots).filter_map(|slot| Some((slot, self.slots.find(slot)?)));
        for (slot, found) in found {
            if state.find(&found.digest).is_some() {
                continue;
            }
            let readers = state.entries[slot as usize].readers;
            state.list(
                slot,
                Entry { digest: found.digest, len: found.len, generation: found.generation, readers, slow_readers: 0, pins: 0, listed: true },
            );
            if let Mode::Writer { queues, .. } = &mut state.mode {
                queues.insert(slot, hash_of(&found.digest));
            }
        }
        let State { entries, mode, .. } = state;
        if let Mode::Writer { free, .. } = mode {
            free.retain(|slot| !entries[*slot as usize].listed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, for a call that begins. A reader looks whether there is anything new.
    fn begin(&self) -> Result<MutexGuard<'_, State>> {
        self.check_owner()?;
        let mut state = self.lock();
        if let Mode::Reader { changes } = state.mode
            && changes != self.slots.changes()
        {
            self.list_all(&mut state);
        }
        Ok(state)
    }

    /// What a forked child inherits is not the memory, or not the lock, and maybe another thread's half-done work.
    fn check_owner(&self) -> Result<()> {
        if self.owner == std::process::id() {
            return Ok(());
        }
        Err(Error::Store(format!("{self} was opened by process {}: open it, or attach to it, in this one", self.owner)))
    }

    fn check_writer(&self) -> Result<()> {
        self.check_owner()?;
        match self.lock().mode {
            Mode::Writer { .. } => Ok(()),
            Mode::Reader { .. } => Err(Error::Store(format!("{self} is attached to read: only the process that opened it writes"))),
        }
    }

    fn check_digests<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> Result<()> {
        let algorithm = self.slots.geometry.algorithm;
        match digests.into_iter().enumerate().find(|(_, digest)| digest.algorithm() != algorithm) {
            None => Ok(()),
            Some((index, digest)) => Err(Error::format(format!("digest {digest}"), format!("the arena's digests are {algorithm}")).at(index)),
        }
    }

    /// What the arena was made for.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.slots.geometry
    }

    /// The file; None for memory of the process.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What it holds now, and what was done.
    pub fn counts(&self) -> Result<Counts> {
        Ok(self.begin()?.counts)
    }

    /// Whether each page is there. None is read.
    pub fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>> {
        let state = self.begin()?;
        Ok(digests.iter().map(|digest| state.find(digest).is_some()).collect())
    }

    /// Copies pages in and hashes them on the way; returns their names. A page that is named and there is neither read nor copied; any other
    /// has to hash to its name. The error of a page carries its index ([`Error::At`]); others may have been put.
    pub fn put_many(&self, pages: &[&[u8]], names: Option<&[Digest]>, monitor: &Monitor) -> Result<Vec<Digest>> {
        self.check_writer()?;
        let most = self.slots.geometry.page_bytes;
        if let Some((index, page)) = pages.iter().enumerate().find(|(_, page)| page.len() > most) {
            let what = format!("a page of {} bytes", page.len());
            return Err(Error::Limit { what, name: "page_bytes", limit: most as u64 }.at(index));
        }
        if let Some(names) = names {
            assert!(names.len() == pages.len(), "a name for each page");
            self.check_digests(names)?;
        }
        self.put_all(pages, names.map_or(Names::Unknown, Names::Told), monitor)
    }

    fn put_all(&self, pages: &[&[u8]], names: Names<'_>, monitor: &Monitor) -> Result<Vec<Digest>> {
        let mut digests = vec![Digest::new(self.slots.geometry.algorithm, [0; 32]); pages.len()];
        let share = pool::share(pages.len(), TASK_BLOBS);
        let task = |(task, (digests, pages)): (usize, (&mut [Digest], &[&[u8]]))| {
            self.put_few(pages, names.part(task * share, pages.len()), digests, task * share)?;
            monitor.advance(pages.len() as u64, pages.iter().map(|page| page.len() as u64).sum())
        };
        pool::install(|| digests.par_chunks_mut(share).zip(pages.par_chunks(share)).enumerate().try_for_each(task))?;
        Ok(digests)
    }

    /// Puts what one task takes, as many at once as there are slots for. `first` is the batch's index of the first page.
    fn put_few(&self, pages: &[&[u8]], names: Names<'_>, digests: &mut [Digest], first: usize) -> Result<()> {
        let mut next = 0;
        while next < pages.len() {
            // Slots, and the pages that they are for.
            let mut taken = [(0, 0); TASK_BLOBS];
            let mut count = 0;
            let mut state = self.lock();
            while next < pages.len() && count < TASK_BLOBS {
                let there = names.all().and_then(|names| state.find(&names[next]));
                if let Some(slot) = there {
                    digests[next] = state.entries[slot as usize].digest;
                    if let Mode::Writer { queues, .. } = &mut state.mode {
                        queues.touch(slot);
                    }
                    state.counts.deduplicated += 1;
                } else if let Some(slot) = state.take(&self.slots) {
                    taken[count] = (slot, next);
                    count += 1;
                } else if count > 0 {
                    break;
                } else {
                    state = self.wait(state).map_err(|error| error.at(first + next))?;
                    continue;
                }
                next += 1;
            }
            drop(state);
            self.write(pages, names, digests, &taken[..count]).map_err(|(index, error)| error.at(first + index))?;
        }
        Ok(())
    }

    /// Waits until a slot may have become free.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>> {
        let under_way =
            matches!(state.mode, Mode::Writer { writing: 1.., .. }) || state.entries.iter().any(|entry| entry.readers > entry.slow_readers);
        if under_way {
            return Ok(self.freed.wait(state).unwrap_or_else(PoisonError::into_inner));
        }
        Err(Error::Store(format!("{self} has no slot that is not pinned: unpin some, or make it larger")))
    }

    /// Copies and hashes pages into slots that were taken for them, and lists what is new.
    fn write(&self, pages: &[&[u8]], names: Names<'_>, digests: &mut [Digest], taken: &[(u32, usize)]) -> Result<(), (usize, Error)> {
        let copies = taken.iter().map(|&(slot, page)| {
            // SAFETY: this is a writer, whose lock is held; the slot was taken, and so cleared, for this page alone, and nobody reads it.
            let place = unsafe { self.slots.bytes_mut(slot, pages[page].len()) };
            (pages[page], place)
        });
        if let Names::True(names) = names {
            copies.for_each(|(page, place)| place.copy_from_slice(page));
            for &(_, page) in taken {
                digests[page] = names[page];
            }
        } else {
            digest::hash_copies(self.slots.geometry.algorithm, copies, |index, digest| digests[taken[index].1] = digest);
        }
        let mut state = self.lock();
        let mut wrong = Ok(());
        for &(slot, page) in taken {
            let digest = digests[page];
            let other = names.all().map(|names| names[page]).filter(|name| *name != digest);
            if let Some(name) = other {
                wrong = wrong.and(Err((page, Error::integrity(&name, format!("the bytes hash to {digest}")))));
                state.free(slot);
            } else if let Some(there) = state.find(&digest) {
                if let Mode::Writer { queues, .. } = &mut state.mode {
                    queues.touch(there);
                }
                state.counts.deduplicated += 1;
                state.free(slot);
            } else {
                let len = pages[page].len();
                self.slots.publish(slot, &digest, len);
                state.list(slot, Entry { digest, len, generation: 0, readers: 0, slow_readers: 0, pins: 0, listed: true });
                if let Mode::Writer { queues, .. } = &mut state.mode {
                    queues.insert(slot, hash_of(&digest));
                }
                state.counts.written += 1;
                state.counts.bytes_written += len as u64;
            }
        }
        if let Mode::Writer { writing, .. } = &mut state.mode {
            *writing -= u32::try_from(taken.len()).expect("a task has few");
        }
        drop(state);
        self.freed.notify_all();
        wrong
    }

    /// Copies pages out, each into the buffer beside it, which has its length, and verifies them on the way; returns what failed, in order.
    /// The buffer of a page that failed holds undefined bytes.
    pub fn get_many(&self, items: &mut [(Digest, &mut [u8])], monitor: &Monitor) -> Result<Vec<(usize, Error)>> {
        drop(self.begin()?);
        self.check_digests(items.iter().map(|(digest, _)| digest))?;
        let share = pool::share(items.len(), TASK_BLOBS);
        let task = |(task, items): (usize, &mut [(Digest, &mut [u8])])| {
            let failed = self.get_few(items).into_iter().map(move |(index, error)| (task * share + index, error)).collect::<Vec<_>>();
            let bytes = items.iter().map(|(_, out)| out.len() as u64).sum();
            monitor.advance(items.len() as u64, bytes).map(|()| failed)
        };
        let failed = pool::install(|| items.par_chunks_mut(share).enumerate().map(task).collect::<Result<Vec<_>>>())?;
        Ok(failed.into_iter().flatten().collect())
    }

    fn get_few(&self, items: &mut [(Digest, &mut [u8])]) -> Vec<(usize, Error)> {
        let mut failed = Vec::new();
        // Slots with the generations and indexes of the items that they are for.
        let mut held = [(0, 0, 0); TASK_BLOBS];
        let mut count = 0;
        let mut state = self.lock();
        for (index, (digest, out)) in items.iter().enumerate() {
            let Some(slot) = state.find(digest) else {
                state.counts.misses += 1;
                failed.push((index, Error::BlobNotFound { digest: digest.to_string() }));
                continue;
            };
            let entry = &mut state.entries[slot as usize];
            if entry.len != out.len() {
                failed.push((index, wrong_length(digest, entry.len as u64, out.len())));
                continue;
            }
            entry.readers += 1;
            held[count] = (slot, entry.generation, index);
            count += 1;
            if let Mode::Writer { queues, .. } = &mut state.mode {
                queues.touch(slot);
            }
        }
        drop(state);
        let held = &held[..count];
        let mut found = [None; TASK_BLOBS];
        let mut rest = &mut *items;
        let mut first = 0;
        let copies = held.iter().map(|&(slot, _, index)| {
            let (_, out) = rest.split_off_mut(..=index - first).and_then(<[_]>::last_mut).expect("indexes rise");
            first = index + 1;
            // SAFETY: a reader is counted, so nobody in this process writes to the slot; what does not hash to its name is not handed out.
            (unsafe { self.slots.bytes(slot, out.len()) }, &mut **out)
        });
        digest::hash_copies(self.slots.geometry.algorithm, copies, |index, digest| found[index] = Some(digest));
        let mut state = self.lock();
        for (&(slot, generation, index), found) in held.iter().zip(found) {
            let (digest, out) = &items[index];
            let reader = matches!(state.mode, Mode::Reader { .. });
            if found == Some(*digest) {
                state.counts.hits += 1;
                state.counts.bytes_read += out.len() as u64;
            } else if reader && !self.slots.unchanged(slot, generation) {
                state.counts.misses += 1;
                failed.push((index, Error::BlobNotFound { digest: digest.to_string() }));
            } else {
                state.counts.corrupt += 1;
                failed.push((index, self.condemn(&mut state, slot, digest)));
            }
            state.release(slot);
        }
        drop(state);
        self.freed.notify_all();
        failed.sort_unstable_by_key(|(index, _)| *index);
        failed
    }

    /// Takes a corrupt page out; only a writer empties its slot, which nobody gets before all have read it.
    fn condemn(&self, state: &mut State, slot: u32, digest: &Digest) -> Error {
        let entry = state.entries[slot as usize];
        if entry.listed && entry.digest == *digest {
            state.unlist(slot);
            if matches!(state.mode, Mode::Writer { .. }) {
                self.slots.clear(slot);
            }
            log::warn!("page {digest} in slot {slot} of {self} is corrupt, and gone");
        }
        Error::Integrity { digest: digest.to_string(), reason: format!("its bytes in slot {slot} hash to another name"), path: self.path.clone() }
    }

    /// Keeps pages that are there from being given up, until [`PageArena::unpin`] was called as often; tells which were there.
    pub fn pin(&self, digests: &[Digest]) -> Result<Vec<bool>> {
        self.check_writer()?;
        let mut state = self.lock();
        let pin = |digest: &Digest| {
            let Some(slot) = state.find(digest) else { return false };
            let entry = &mut state.entries[slot as usize];
            entry.pins += 1;
            state.counts.pinned += u64::from(state.entries[slot as usize].pins == 1);
            true
        };
        Ok(digests.iter().map(pin).collect())
    }

    /// The inverse of [`PageArena::pin`]; tells which were pinned.
    pub fn unpin(&self, digests: &[Digest]) -> Result<Vec<bool>> {
        self.check_writer()?;
        let mut state = self.lock();
        let unpin = |digest: &Digest| {
            let Some(slot) = state.find(digest) else { return false };
            let entry = &mut state.entries[slot as usize];
            let Some(pins) = entry.pins.checked_sub(1) else { return false };
            entry.pins = pins;
            state.counts.pinned -= u64::from(pins == 0);
            true
        };
        let found = digests.iter().map(unpin).collect();
        drop(state);
        self.freed.notify_all();
        Ok(found)
    }

    /// Takes pages out, pinned or not; tells which were there.
    pub fn remove(&self, digests: &[Digest]) -> Result<Vec<bool>> {
        self.check_writer()?;
        let mut state = self.lock();
        let remove = |digest: &Digest| {
            let Some(slot) = state.find(digest) else { return false };
            state.unlist(slot);
            self.slots.clear(slot);
            if state.entries[slot as usize].readers == 0 {
                state.free(slot);
            }
            true
        };
        let found = digests.iter().map(remove).collect();
        drop(state);
        self.freed.notify_all();
        Ok(found)
    }
}

impl std::fmt::Display for PageArena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => write!(f, "arena {}", path.display()),
            None => f.write_str("the arena"),
        }
    }
}
