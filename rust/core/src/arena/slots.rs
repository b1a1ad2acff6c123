//! The memory of an arena: a head, a header for each slot, and the slots.
//!
//! A header has a generation, which is odd while the slot is empty or being written, then even again and two higher: a reader that sees the
//! same even number before and after it read has read one page. All numbers are in the byte order of the machine, which the file never leaves.
//!
//! | offset | what |
//! |---|---|
//! | 0 | the head, 4,096 bytes: magic, version, hash function, bytes of a page, slots, number of changes |
//! | 4,096 | a header of 64 bytes for each slot: generation, length, digest |
//! | the next multiple of 4,096, or of 2 MiB for pages that are as large | the slots, each at a multiple of 64 |
#![expect(unsafe_code, reason = "mapped memory is reached by pointer")]

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::io::map::{self, Map};

const MAGIC: u64 = u64::from_le_bytes(*b"pfarena\n");
const VERSION: u64 = 1;
const HEAD_BYTES: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;

#[repr(C)]
struct Head {
    magic: AtomicU64,
    version: AtomicU64,
    algorithm: AtomicU64,
    page_bytes: AtomicU64,
    slots: AtomicU64,
    changes: AtomicU64,
}

#[repr(C, align(64))]
struct Header {
    generation: AtomicU64,
    len: AtomicU64,
    digest: [AtomicU64; 4],
}

/// What an arena is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Hash function of the pages' names.
    pub algorithm: Algorithm,
    /// Bytes of the longest page.
    pub page_bytes: usize,
    /// Number of pages.
    pub slots: u32,
}

impl Geometry {
    /// Bytes from one slot to the next.
    fn stride(&self) -> Option<usize> {
        self.page_bytes.checked_next_multiple_of(64)
    }

    fn data(&self) -> usize {
        let headers = HEAD_BYTES + self.slots as usize * size_of::<Header>();
        headers.next_multiple_of(if self.page_bytes < HUGE_PAGE { HEAD_BYTES } else { HUGE_PAGE })
    }

    /// Bytes of the file.
    fn len(&self) -> Result<usize> {
        let bytes = self.stride().and_then(|stride| stride.checked_mul(self.slots as usize)?.checked_add(self.data()));
        let bytes = bytes.filter(|bytes| i64::try_from(*bytes).is_ok() && self.page_bytes > 0 && self.slots > 0 && self.slots < u32::MAX);
        bytes.ok_or_else(|| Error::format("arena", format!("there can be no {} pages of {} bytes", self.slots, self.page_bytes)))
    }
}

/// The mapped memory.
pub(super) struct Slots {
    map: Map,
    pub(super) geometry: Geometry,
}

/// A page's name and length, as its slot's header has them.
pub(super) struct Found {
    pub(super) generation: u64,
    pub(super) len: usize,
    pub(super) digest: Digest,
}

impl Slots {
    /// Memory of this process alone.
    pub(super) fn anonymous(geometry: Geometry) -> Result<Self> {
        let len = geometry.len()?;
        let map = Map::anonymous(len).map_err(Error::io("map", format!("an arena of {len} bytes")))?;
        Ok(Self { map, geometry })
    }

    /// A file, which is made where it is empty; nobody else writes to it.
    pub(super) fn of_file(file: &File, path: &Path, geometry: Geometry) -> Result<Self> {
        let len = geometry.len()?;
        let old = file.metadata().map_err(Error::io("stat", path))?.len();
        if old >= HEAD_BYTES as u64 {
            match Self::read_head(file, path)? {
                Some(found) if found == geometry => {}
                Some(found) => {
                    let Geometry { algorithm, page_bytes, slots } = found;
                    let reason = format!("it has {slots} pages of {page_bytes} bytes under {algorithm} names: ask for these, or remove the file");
                    return Err(Error::format(format!("arena {}", path.display()), reason));
                }
                // Whoever made it came no further than this.
                None if old <= len as u64 => {}
                None => return Err(not_ours(path)),
            }
        } else if old > 0 {
            return Err(not_ours(path));
        }
        if let Err(error) = map::reserve(file, len as u64) {
            // What could be taken is given back.
            let _ = file.set_len(old);
            return Err(Error::io("reserve the space of", path)(error));
        }
        let slots = Self { map: Map::of_file(file, len, true).map_err(Error::io("map", path))?, geometry };
        let head = slots.head();
        head.version.store(VERSION, Ordering::Relaxed);
        head.algorithm.store(geometry.algorithm as u64, Ordering::Relaxed);
        head.page_bytes.store(geometry.page_bytes as u64, Ordering::Relaxed);
        head.slots.store(u64::from(geometry.slots), Ordering::Relaxed);
        head.magic.store(MAGIC, Ordering::Release);
        Ok(slots)
    }

    /// A file that another process writes to.
    pub(super) fn attached(file: &File, path: &Path) -> Result<Self> {
        let old = file.metadata().map_err(Error::io("stat", path))?.len();
        let geometry = if old < HEAD_BYTES as u64 { None } else { Self::read_head(file, path)? };
        let geometry = geometry.ok_or_else(|| not_ours(path))?;
        let len = geometry.len()?;
        if old < len as u64 {
            return Err(not_ours(path));
        }
        Ok(Self { map: Map::of_file(file, len, false).map_err(Error::io("map", path))?, geometry })
    }

    /// What a file's head tells; None when it is all zeros.
    fn read_head(file: &File, path: &Path) -> Result<Option<Geometry>> {
        let map = Map::of_file(file, HEAD_BYTES, false).map_err(Error::io("map", path))?;
        let head = head_of(&map);
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        match (head.magic.load(Ordering::Acquire), read(&head.version)) {
            (MAGIC, VERSION) => {}
            (MAGIC, version) => return Err(Error::format(format!("arena {}", path.display()), format!("its version {version} is not known"))),
            (0, _) => return Ok(None),
            _ => return Err(not_ours(path)),
        }
        let algorithm = [Algorithm::Sha256, Algorithm::Blake3].into_iter().find(|algorithm| *algorithm as u64 == read(&head.algorithm));
        let geometry = algorithm.and_then(|algorithm| {
            let (page_bytes, slots) = (usize::try_from(read(&head.page_bytes)).ok()?, u32::try_from(read(&head.slots)).ok()?);
            Some(Geometry { algorithm, page_bytes, slots })
        });
        geometry.map(Some).ok_or_else(|| not_ours(path))
    }

    fn head(&self) -> &Head {
        head_of(&self.map)
    }

    fn header(&self, slot: u32) -> &Header {
        let place = self.map.place(HEAD_BYTES + slot as usize * size_of::<Header>(), size_of::<Header>());
        // SAFETY: the place is in the mapping, which lives as long as `self`, at a multiple of 64; atomics may be written by anybody at any time.
        unsafe { place.cast().as_ref() }
    }

    fn page(&self, slot: u32, len: usize) -> std::ptr::NonNull<u8> {
        let stride = self.geometry.stride().expect("checked when the arena was made");
        assert!(slot < self.geometry.slots && len <= self.geometry.page_bytes, "page of {len} bytes in slot {slot}");
        self.map.place(self.geometry.data() + slot as usize * stride, len)
    }

    /// How often a page was written or removed, since the arena was made.
    pub(super) fn changes(&self) -> u64 {
        self.head().changes.load(Ordering::Acquire)
    }

    /// A slot's page; None when it has none, or is being written.
    pub(super) fn find(&self, slot: u32) -> Option<Found> {
        let header = self.header(slot);
        let generation = header.generation.load(Ordering::Acquire);
        let len = usize::try_from(header.len.load(Ordering::Relaxed)).ok()?;
        let mut bytes = [0; 32];
        for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(&header.digest) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        let written = generation != 0 && generation.is_multiple_of(2) && self.unchanged(slot, generation);
        (written && len <= self.geometry.page_bytes).then(|| Found { generation, len, digest: Digest::new(self.geometry.algorithm, bytes) })
    }

    /// Whether nobody has written to a slot since it was found; to be asked after its page was read.
    pub(super) fn unchanged(&self, slot: u32, generation: u64) -> bool {
        fence(Ordering::Acquire);
        self.header(slot).generation.load(Ordering::Relaxed) == generation
    }

    /// Empties a slot: from now on nobody finds a page there, whatever happens to this process.
    pub(super) fn clear(&self, slot: u32) {
        let generation = &self.header(slot).generation;
        let before = generation.load(Ordering::Relaxed);
        if before.is_multiple_of(2) {
            generation.store(before + 1, Ordering::Relaxed);
            // What is written next comes after it.
            fence(Ordering::SeqCst);
            self.head().changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Names what was written to a slot that was cleared before.
    pub(super) fn publish(&self, slot: u32, digest: &Digest, len: usize) {
        let header = self.header(slot);
        header.len.store(len as u64, Ordering::Relaxed);
        for (word, bytes) in header.digest.iter().zip(digest.bytes().as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        header.generation.fetch_add(1, Ordering::Release);
        self.head().changes.fetch_add(1, Ordering::Release);
    }

    /// The bytes of a slot's page.
    ///
    /// # Safety
    /// Nobody in this process writes to the slot meanwhile. Another process may, which no `&[u8]` allows in theory; what is done with the bytes
    /// has to be right whatever they are, and to be thrown away unless it hashes to its name.
    pub(super) unsafe fn bytes(&self, slot: u32, len: usize) -> &[u8] {
        // SAFETY: the place is in the mapping, which lives as long as `self`; the rest is the caller's duty.
        unsafe { std::slice::from_raw_parts(self.page(slot, len).as_ptr(), len) }
    }

    /// The same, to be written.
    ///
    /// # Safety
    /// The arena is this process's to write, the slot is cleared, and nobody else in this process has any part of it.
    #[expect(clippy::mut_from_ref, reason = "which slots are whose is decided by the arena")]
    pub(super) unsafe fn bytes_mut(&self, slot: u32, len: usize) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.page(slot, len).as_ptr(), len) }
    }
}

fn head_of(map: &Map) -> &Head {
    // SAFETY: the place is in the mapping and at its beginning; atomics may be written by anybody at any time.
    unsafe { map.place(0, HEAD_BYTES).cast().as_ref() }
}

fn not_ours(path: &Path) -> Error {
    Error::format(format!("arena {}", path.display()), "this file is no arena: name another, or remove it")
}
