//! Packs: the frames of many blobs as one object, for registries in which each object costs a round trip, and the index that finds them.
//!
//! A pack is frames one after another and nothing else, and its name is the SHA-256 of its bytes. The index is a document beside it (or one
//! for several packs). It lists the frames' lengths in order, from which the offsets follow, so that ranges can neither overlap nor leave
//! gaps. Nothing an index says is trusted: what is cut out of a pack is a frame like any other that arrives, and has to decode to its name.
//!
//! Limits: a document has at most [`limits::DOCUMENT_BYTES`], which is room for 26 million blobs.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt::Display;
use std::ops::Range;

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::limits;

const MAGIC: [u8; 8] = *b"pfimgidx";
/// The only version there is.
const VERSION: u16 = 1;
/// Magic, version, algorithm, a zero byte.
const HEADER_BYTES: usize = 12;
/// Of a pack: its name and a count. Of a blob: its digest and a length.
const RECORD_BYTES: usize = 40;

const NO_BLOBS: &str = "a pack of no blobs";

/// Where the frames of blobs lie in packs.
#[derive(Debug, Clone)]
pub struct PackIndex {
    algorithm: Algorithm,
    packs: Vec<Pack>,
    entries: Vec<Entry>,
    /// Positions of all entries in order of their digests, each with the beginning of its digest.
    order: Vec<(u64, u32)>,
}

/// A pack as its index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    name: Digest,
    bytes: u64,
    entries: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    digest: [u8; 32],
    offset: u64,
    len: u64,
}

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Position of its pack in [`PackIndex::packs`].
    pub pack: usize,
    /// Its first byte.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

impl Pack {
    /// SHA-256 of its bytes.
    #[must_use]
    pub const fn name(&self) -> &Digest {
        &self.name
    }

    /// Length.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of blobs.
    #[must_use]
    pub fn blobs(&self) -> usize {
        self.entries.len()
    }
}

impl PartialEq for PackIndex {
    fn eq(&self, other: &Self) -> bool {
        (self.algorithm, &self.packs, &self.entries) == (other.algorithm, &other.packs, &other.entries)
    }
}

impl PackIndex {
    /// The index of one pack, from its name and what it was made of: blobs, and bytes of their frames, in order.
    ///
    /// # Errors
    /// [`Error::Format`] for no blobs, for one that is there twice or has another algorithm than the first, and for a frame of no bytes.
    pub fn of(name: Digest, frames: impl IntoIterator<Item = (Digest, u64)>) -> Result<Self> {
        let mut frames = frames.into_iter().peekable();
        let mut builder = Builder::new(frames.peek().ok_or_else(|| refused(NO_BLOBS))?.0.algorithm());
        builder.begin(name).map_err(refused)?;
        for (digest, len) in frames {
            builder.check_algorithm(digest.algorithm())?;
            builder.add(*digest.bytes(), len).map_err(refused)?;
        }
        builder.finish()
    }

    /// Reads an index.
    ///
    /// # Errors
    /// [`Error::Format`] with the offset of what is wrong, [`Error::Limit`] above [`limits::DOCUMENT_BYTES`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        check_size(bytes.len() as u64)?;
        let wrong = |offset: usize, reason: String| Error::Format { what: "pack index".into(), field: None, offset: Some(offset as u64), reason };
        let Some((header, mut rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(wrong(bytes.len(), "it ends within its header".into()));
        };
        let [magic @ .., version_low, version_high, algorithm, zero] = header;
        if *magic != MAGIC {
            return Err(wrong(0, "it does not begin with pfimgidx".into()));
        }
        let version = u16::from_le_bytes([*version_low, *version_high]);
        if version != VERSION {
            return Err(wrong(8, format!("version {version} is not known to this version of pfimg")));
        }
        let mut builder = Builder::new(match algorithm {
            0 => Algorithm::Sha256,
            1 => Algorithm::Blake3,
            other => return Err(wrong(10, format!("digest algorithm {other} is not known to this version of pfimg"))),
        });
        if *zero != 0 {
            return Err(wrong(11, "a byte that is not zero".into()));
        }
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let (name, count) = record(&mut rest).ok_or_else(|| wrong(at, "it ends within the description of a pack".into()))?;
            builder.begin(Digest::new(Algorithm::Sha256, name)).map_err(|reason| wrong(at, reason))?;
            if count == 0 {
                return Err(wrong(at + 32, NO_BLOBS.into()));
            }
            if count > (rest.len() / RECORD_BYTES) as u64 {
                return Err(wrong(at + 32, format!("it ends before {count} blobs")));
            }
            for _ in 0..count {
                let at = bytes.len() - rest.len();
                let (digest, len) = record(&mut rest).expect("it was counted");
                builder.add(digest, len).map_err(|reason| wrong(at, reason.to_owned()))?;
            }
        }
        builder.finish()
    }

    /// The document.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(document_bytes(&self.packs, &self.entries));
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([algorithm_byte(self.algorithm), 0]);
        for pack in &self.packs {
            bytes.extend(pack.name.bytes());
            bytes.extend((pack.entries.len() as u64).to_le_bytes());
            for entry in &self.entries[pack.entries.clone()] {
                bytes.extend(entry.digest);
                bytes.extend(entry.len.to_le_bytes());
            }
        }
        bytes
    }

    /// The packs of several indexes in one, in order. One that several of them describe is there once, as the first of them does.
    ///
    /// # Errors
    /// [`Error::Format`] where their digests are of different algorithms, [`Error::Limit`] where the result is too large for a document.
    pub fn join<'a>(indexes: impl IntoIterator<Item = &'a Self>) -> Result<Self> {
        // An index of no packs has an algorithm only in name.
        let mut indexes = indexes.into_iter().filter(|index| !index.is_empty()).peekable();
        let mut builder = Builder::new(indexes.peek().map_or(Algorithm::Sha256, |index| index.algorithm));
        for index in indexes {
            builder.check_algorithm(index.algorithm)?;
            for pack in &index.packs {
                if !builder.names.contains(pack.name.bytes()) {
                    builder.append(&pack.name, &index.entries[pack.entries.clone()])?;
                }
            }
        }
        builder.finish()
    }

    /// The same without all packs but these.
    #[must_use]
    pub fn only(&self, packs: &HashSet<Digest>) -> Self {
        let mut builder = Builder::new(self.algorithm);
        for pack in self.packs.iter().filter(|pack| packs.contains(&pack.name)) {
            builder.append(&pack.name, &self.entries[pack.entries.clone()]).expect("a part of a sound index");
        }
        builder.finish().expect("a part of a sound index")
    }

    /// The hash function of the blobs' names.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The packs, in their order.
    #[must_use]
    pub fn packs(&self) -> &[Pack] {
        &self.packs
    }

    /// Number of blobs, in all packs together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no pack.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where a blob's frame lies: in the first pack that has it.
    #[must_use]
    pub fn locate(&self, digest: &Digest) -> Option<Place> {
        let key = (beginning(digest.bytes()), digest.bytes());
        let at = self.order.partition_point(|(beginning, position)| (*beginning, &self.entries[*position as usize].digest) < key);
        let position = self.order.get(at)?.1 as usize;
        let entry = &self.entries[position];
        let found = entry.digest == *digest.bytes() && self.algorithm == digest.algorithm();
        found.then(|| Place { pack: self.pack_of(position), offset: entry.offset, len: entry.len })
    }

    /// Positions of the packs that [`PackIndex::locate`] names for these blobs, in order.
    #[must_use]
    pub fn covering(&self, digests: &[Digest]) -> Vec<usize> {
        let mut used = vec![false; self.packs.len()];
        for place in digests.iter().filter_map(|digest| self.locate(digest)) {
            used[place.pack] = true;
        }
        used.iter().enumerate().filter_map(|(pack, used)| used.then_some(pack)).collect()
    }

    fn pack_of(&self, position: usize) -> usize {
        self.packs.partition_point(|pack| pack.entries.end <= position)
    }
}

/// An index in the making.
struct Builder {
    algorithm: Algorithm,
    packs: Vec<Pack>,
    names: HashSet<[u8; 32]>,
    entries: Vec<Entry>,
}

impl Builder {
    fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, packs: Vec::new(), names: HashSet::new(), entries: Vec::new() }
    }

    fn check_algorithm(&self, other: Algorithm) -> Result<()> {
        if other == self.algorithm { Ok(()) } else { Err(refused(format!("digests of {} and {other} in one index", self.algorithm))) }
    }

    /// Begins a pack; tells what is wrong with that.
    fn begin(&mut self, name: Digest) -> Result<(), String> {
        if !self.names.insert(*name.bytes()) {
            return Err(format!("pack {} is there twice", name.hex()));
        }
        self.packs.push(Pack { name, bytes: 0, entries: self.entries.len()..self.entries.len() });
        Ok(())
    }

    /// Adds the next frame of the pack; tells what is wrong with that.
    fn add(&mut self, digest: [u8; 32], len: u64) -> Result<(), &'static str> {
        let pack = self.packs.last_mut().expect("a pack was begun");
        let entry = Entry { digest, offset: pack.bytes, len };
        if len == 0 {
            return Err("a frame of no bytes");
        }
        let longest = i64::MAX as u64;
        pack.bytes = pack.bytes.checked_add(len).filter(|bytes| *bytes <= longest).ok_or("a pack that is longer than any file")?;
        pack.entries.end += 1;
        self.entries.push(entry);
        Ok(())
    }

    fn append(&mut self, name: &Digest, entries: &[Entry]) -> Result<()> {
        self.begin(*name).map_err(refused)?;
        entries.iter().try_for_each(|entry| self.add(entry.digest, entry.len)).map_err(refused)
    }

    fn finish(self) -> Result<PackIndex> {
        let Self { algorithm, packs, entries, .. } = self;
        check_size(document_bytes(&packs, &entries) as u64)?;
        // The beginnings alone decide nearly always; sorting them spares a look at the entries.
        let position = |at| u32::try_from(at).expect("fewer fit into a document");
        let mut order: Vec<(u64, u32)> = entries.iter().enumerate().map(|(at, entry)| (beginning(&entry.digest), position(at))).collect();
        let digest = |position: u32| &entries[position as usize].digest;
        order.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| (digest(a.1), a.1).cmp(&(digest(b.1), b.1))));
        let index = PackIndex { algorithm, packs, entries, order };
        for pair in index.order.windows(2) {
            let [a, b] = [pair[0].1 as usize, pair[1].1 as usize];
            if pair[0].0 == pair[1].0 && index.entries[a].digest == index.entries[b].digest && index.pack_of(a) == index.pack_of(b) {
                let (digest, pack) = (Digest::new(algorithm, index.entries[a].digest), &index.packs[index.pack_of(a)]);
                return Err(refused(format!("blob {digest} is twice in pack {}", pack.name.hex())));
            }
        }
        Ok(index)
    }
}

fn refused(reason: impl Display) -> Error {
    Error::format("pack index", reason.to_string())
}

const fn document_bytes(packs: &[Pack], entries: &[Entry]) -> usize {
    HEADER_BYTES + RECORD_BYTES * (packs.len() + entries.len())
}

fn check_size(bytes: u64) -> Result<()> {
    if bytes <= limits::DOCUMENT_BYTES {
        return Ok(());
    }
    Err(Error::Limit { what: format!("pack index of {bytes} bytes"), name: "DOCUMENT_BYTES", limit: limits::DOCUMENT_BYTES })
}

/// Takes 32 bytes and a number.
fn record(rest: &mut &[u8]) -> Option<([u8; 32], u64)> {
    let (record, after) = rest.split_first_chunk::<RECORD_BYTES>()?;
    *rest = after;
    let (digest, number) = record.split_last_chunk().expect("the number is shorter");
    Some((digest.try_into().expect("32 bytes"), u64::from_le_bytes(*number)))
}

fn beginning(digest: &[u8; 32]) -> u64 {
    u64::from_be_bytes(*digest.first_chunk().expect("32 bytes"))
}

const fn algorithm_byte(algorithm: Algorithm) -> u8 {
    match algorithm {
        Algorithm::Sha256 => 0,
        Algorithm::Blake3 => 1,
    }
}
