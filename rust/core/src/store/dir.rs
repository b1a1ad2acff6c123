//! Blobs in a directory: `blobs/<algorithm>/<aa>/<hex>.zst`, safe between processes.
//!
//! **Writing.** A blob is written to a temporary beside its place and renamed, so that its name never shows half of it; who loses a race has
//! written the same bytes. With [`Durability::Group`] a whole batch shares its syncs: temporaries → data on stable storage → renames →
//! directories on stable storage.
//!
//! **Beside gc.** A put that finds its blob renews the file's time once it is older than [`RENEW_AFTER`], under the shared lock that excludes
//! gc; gc looks at the time again under the exclusive lock before it removes a file. A blob that a writer relies on is therefore always
//! younger than gc's grace period, as long as that is at least twice [`RENEW_AFTER`]; calls that take longer, or must be safe beside any
//! grace period, keep the shared lock for their whole length ([`Hold`]).
//!
//! **Reading** is always verified. What does not hash to its name goes to `quarantine/`, so that the next put heals it.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rayon::prelude::*;

use super::counters::Counters;
use super::lock::Hold;
use super::{BlobStore, description};
use crate::codec::Encoding;
use crate::digest::{self, Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::io::Temporary;
use crate::pool::{self, Monitor};
use crate::{io, layout, limits};

/// How long gc spares what it could remove, unless told otherwise.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// A put renews the time of a blob that is older: half of [`GRACE`].
pub const RENEW_AFTER: Duration = Duration::from_secs(12 * 3600);
/// Blobs that one task hashes and writes.
const TASK_BLOBS: usize = 16;
/// Content bytes after which a group is synced and becomes visible.
const GROUP_BYTES: usize = 1 << 30;
/// From this many files on, one sync of the file system is cheaper than one of each file, and the pool is worth the way to it.
const MANY_FILES: usize = 8;

/// What a put waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: for caches.
    None,
    /// The batch is on stable storage when the call returns; few syncs for many blobs.
    Group,
    /// Each blob is on stable storage before the next is begun by the same thread.
    Each,
}

impl FromStr for Durability {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "none" => Ok(Self::None),
            "group" => Ok(Self::Group),
            "each" => Ok(Self::Each),
            other => Err(Error::format("durability", format!("{other:?} is none of none, group, each"))),
        }
    }
}

/// What belongs to a handle, not to the store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How new blobs are encoded.
    pub encoding: Encoding,
    /// What a put waits for.
    pub durability: Durability,
}

/// A store in a directory.
#[derive(Debug)]
pub struct DirStore {
    pub(super) root: PathBuf,
    algorithm: Algorithm,
    options: Options,
    pub(super) blobs: OwnedFd,
    shards: Box<[AtomicBool; 256]>,
    pub(super) counters: Counters,
}

/// A blob that a put has dealt with, but that may not be on stable storage yet.
pub(super) enum Put<'a> {
    Found,
    Written(Temporary<'a>),
}

impl DirStore {
    /// Opens the store at `root`, which is made where it is missing. `algorithm` None means what the store says, SHA-256 when it is new.
    pub fn open(root: impl Into<PathBuf>, algorithm: Option<Algorithm>, options: Options) -> Result<Self> {
        let root = root.into();
        std::fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
        let root = root.canonicalize().map_err(Error::io("open", &root))?;
        let described = description::read(&root)?;
        let has_blobs = root.join("blobs").exists();
        let found = described.or(has_blobs.then_some(Algorithm::Sha256));
        let algorithm = algorithm.or(found).unwrap_or(Algorithm::Sha256);
        if let Some(found) = found
            && found != algorithm
        {
            return Err(Error::format(format!("store {}", root.display()), format!("its digests are {found}, not {algorithm}")));
        }
        if algorithm != Algorithm::Sha256 && described.is_none() {
            description::write(&root, algorithm)?;
        }
        let blobs = root.join(layout::blobs(algorithm));
        std::fs::create_dir_all(&blobs).map_err(Error::io("create", &blobs))?;
        let blobs = io::open_dir(&blobs).map_err(Error::io("open", &blobs))?;
        let shards = Box::new([const { AtomicBool::new(false) }; 256]);
        Ok(Self { root, algorithm, options, blobs, shards, counters: Counters::default() })
    }

    /// The store's directory, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What this handle has done.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where a blob lies, whether it is there or not.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        let mut path = self.root.join(layout::blobs(digest.algorithm()));
        path.push(layout::blob(digest));
        path
    }

    pub(super) fn check_algorithm(&self, digest: &Digest) -> Result<()> {
        if digest.algorithm() == self.algorithm {
            return Ok(());
        }
        Err(Error::format(format!("digest {digest}"), format!("the store's digests are {}", self.algorithm)))
    }

    /// Whether the blob is there and will stay: renews it where that is due. Counts as a hit of deduplication.
    pub(super) fn find(&self, digest: &Digest, name: &str) -> Result<bool> {
        let path = || self.blob_path(digest);
        match io::stat_at(&self.blobs, name).map_err(|error| Error::io("stat", path())(error))? {
            // An empty file is what a crash leaves of a name whose data never reached the disk.
            None => return Ok(false),
            Some(meta) if meta.len == 0 => return Ok(false),
            Some(meta) if meta.age() > RENEW_AFTER => {
                let _hold = Hold::shared(&self.root)?;
                match io::touch_at(&self.blobs, name) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
                    Err(error) => return Err(Error::io("renew", path())(error)),
                }
            }
            Some(_) => {}
        }
        self.counters.deduplicated.add(1);
        Ok(true)
    }

    fn make_shard(&self, digest: &Digest) -> Result<()> {
        let shard = &self.shards[usize::from(digest.bytes()[0])];
        if !shard.load(Ordering::Relaxed) {
            let name = &digest.hex()[..2];
            io::create_dir_at(&self.blobs, name).map_err(Error::io("create", self.blob_path(digest)))?;
            shard.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes a temporary for a blob; a shard directory that somebody removed meanwhile is made again.
    pub(super) fn create(&self, digest: &Digest, name: &str) -> Result<(Temporary<'_>, File)> {
        self.make_shard(digest)?;
        Temporary::create(self.blobs.as_fd(), name)
            .or_else(|error| {
                if error.kind() != std::io::ErrorKind::NotFound {
                    return Err(error);
                }
                io::create_dir_at(&self.blobs, &digest.hex()[..2])?;
                Temporary::create(self.blobs.as_fd(), name)
            })
            .map_err(|error| Error::io("write", self.blob_path(digest))(error))
    }

    /// Writes a blob whose digest is known to be true.
    fn begin(&self, digest: &Digest, content: &[u8]) -> Result<Put<'_>> {
        let name = layout::blob(digest);
        if self.find(digest, &name)? {
            return Ok(Put::Found);
        }
        let frame = self.options.encoding.encode(content);
        let counter = if frame.is_compressed() { &self.counters.compressed } else { &self.counters.stored };
        let temporary = self.write(digest, &name, &mut frame.slices())?;
        counter.add(1);
        self.counters.bytes_written.add(content.len() as u64);
        Ok(Put::Written(temporary))
    }

    /// Writes a frame to a temporary.
    pub(super) fn write(&self, digest: &Digest, name: &str, slices: &mut [IoSlice<'_>]) -> Result<Temporary<'_>> {
        let (temporary, file) = self.create(digest, name)?;
        io::write_all_vectored(&file, slices).map_err(|error| Error::io("write", self.blob_path(digest))(error))?;
        if self.options.durability == Durability::Each {
            file.sync_data().map_err(|error| Error::io("sync", self.blob_path(digest))(error))?;
        }
        Ok(temporary)
    }

    /// Begins a put and, unless the group does it, ends it.
    pub(super) fn settle<'a>(&'a self, digest: &Digest, put: Put<'a>) -> Result<(Digest, Put<'a>)> {
        match self.options.durability {
            Durability::Group => Ok((*digest, put)),
            Durability::None => self.place(digest, put).map(|()| (*digest, Put::Found)),
            Durability::Each => {
                if matches!(put, Put::Found) {
                    self.sync_blob(digest)?;
                }
                self.place(digest, put)?;
                self.sync_shard(digest)?;
                Ok((*digest, Put::Found))
            }
        }
    }

    /// Gives a written blob its name.
    fn place(&self, digest: &Digest, put: Put<'_>) -> Result<()> {
        if let Put::Written(temporary) = put {
            temporary.place(&self.blobs, &layout::blob(digest)).map_err(|error| Error::io("rename", self.blob_path(digest))(error))?;
            self.counters.written.add(1);
        }
        Ok(())
    }

    fn sync_blob(&self, digest: &Digest) -> Result<()> {
        let sync = || io::open_at(&self.blobs, &layout::blob(digest))?.sync_data();
        sync().map_err(|error| Error::io("sync", self.blob_path(digest))(error))
    }

    fn sync_shard(&self, digest: &Digest) -> Result<()> {
        let sync = || {
            io::sync_dir(io::open_dir_at(&self.blobs, &digest.hex()[..2])?)?;
            io::sync_dir(&self.blobs)
        };
        sync().map_err(|error| Error::io("sync", self.blob_path(digest))(error))
    }

    /// Brings a group to stable storage: data first, then names. Blobs that were found count too, since another handle may have put them
    /// without waiting.
    pub(super) fn commit(&self, group: Vec<(Digest, Put<'_>)>) -> Result<()> {
        if self.options.durability != Durability::Group || group.is_empty() {
            return Ok(());
        }
        let mut shards: Vec<Digest> = group.iter().map(|(digest, _)| *digest).collect();
        shards.sort_unstable_by_key(|digest| digest.bytes()[0]);
        shards.dedup_by_key(|digest| digest.bytes()[0]);
        let whole = |n: usize| Ok(n >= MANY_FILES && io::sync_file_system(&self.blobs).map_err(Error::io("sync", &self.root))?);

        if !whole(group.len())? {
            for_each(group.iter().collect(), |(digest, put)| match put {
                Put::Found => self.sync_blob(digest),
                Put::Written(temporary) => temporary.sync().map_err(|error| Error::io("sync", self.blob_path(digest))(error)),
            })?;
        }
        for_each(group, |(digest, put)| self.place(&digest, put))?;
        if !whole(shards.len())? {
            for_each(shards, |digest| self.sync_shard(&digest))?;
        }
        Ok(())
    }

    /// Puts a batch; `name` tells an item's digest where it is known, and it is believed only when the blob is there already.
    fn put_batch(&self, blobs: &[&[u8]], name: impl Fn(usize) -> Option<Digest> + Sync, monitor: &Monitor) -> Result<Vec<Digest>> {
        let known = |digest: &Digest| self.check_algorithm(digest).and_then(|()| self.find(digest, &layout::blob(digest)));
        let task = |indices: &[usize]| -> Result<Vec<(Digest, Put<'_>)>> {
            let mut out = Vec::with_capacity(indices.len());
            let mut fresh = Vec::with_capacity(indices.len());
            monitor.check()?;
            for &index in indices {
                match name(index) {
                    Some(digest) if known(&digest).map_err(|error| error.at(index))? => out.push((index, digest, Put::Found)),
                    _ => fresh.push(index),
                }
            }
            let contents: Vec<&[u8]> = fresh.iter().map(|&index| blobs[index]).collect();
            for (index, digest) in fresh.into_iter().zip(digest::hash_many(self.algorithm, &contents)) {
                let put = || {
                    if let Some(name) = name(index)
                        && name != digest
                    {
                        return Err(Error::integrity(&name, format!("its bytes hash to {digest}")));
                    }
                    monitor.check()?;
                    self.begin(&digest, blobs[index])
                };
                out.push((index, digest, put().map_err(|error| error.at(index))?));
            }
            out.sort_unstable_by_key(|(index, ..)| *index);
            monitor.advance(indices.len() as u64, indices.iter().map(|&index| blobs[index].len() as u64).sum())?;
            out.into_iter().map(|(index, digest, put)| self.settle(&digest, put).map_err(|error| error.at(index))).collect()
        };
        pool::install(|| {
            let mut digests = Vec::with_capacity(blobs.len());
            let indices: Vec<usize> = (0..blobs.len()).collect();
            for group in groups(blobs) {
                let tasks: Vec<Vec<_>> = indices[group].par_chunks(TASK_BLOBS).map(task).collect::<Result<_>>()?;
                let group: Vec<_> = tasks.into_iter().flatten().collect();
                digests.extend(group.iter().map(|(digest, _)| *digest));
                self.commit(group)?;
            }
            Ok(digests)
        })
    }
}

/// Handles a few files here, and many on the pool.
fn for_each<T: Send>(items: Vec<T>, work: impl Fn(T) -> Result<()> + Send + Sync) -> Result<()> {
    if items.len() < MANY_FILES { items.into_iter().try_for_each(work) } else { pool::install(|| items.into_par_iter().try_for_each(work)) }
}

/// Cuts a batch into groups of bounded size.
pub(super) fn groups(blobs: &[&[u8]]) -> Vec<std::ops::Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, blob) in blobs.iter().enumerate() {
        if bytes > 0 && bytes + blob.len() > GROUP_BYTES {
            groups.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += blob.len();
    }
    groups.push(start..blobs.len());
    groups
}

impl BlobStore for DirStore {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = digest::hash(self.algorithm, bytes);
        let put = self.begin(&digest, bytes)?;
        let settled = self.settle(&digest, put)?;
        self.commit(vec![settled])?;
        Ok(digest)
    }

    fn put_many(&self, blobs: &[&[u8]]) -> Result<Vec<Digest>> {
        self.put_batch(blobs, |_| None, &Monitor::new())
    }

    fn put_named(&self, blobs: &[&[u8]], digests: &[Option<Digest>], monitor: &Monitor) -> Result<Vec<Digest>> {
        self.put_batch(blobs, |index| digests[index], monitor)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.open_blob(digest)?.read()
    }

    fn get_into(&self, digest: &Digest, out: &mut [u8]) -> Result<()> {
        self.open_blob_for(digest, out.len())?.read_into(out)
    }

    fn get_many_into(&self, items: &mut [(Digest, &mut [u8])], monitor: &Monitor) -> Vec<Result<()>> {
        let get = |(digest, out): &mut (Digest, &mut [u8])| {
            monitor.check()?;
            self.get_into(digest, out)?;
            monitor.advance(1, out.len() as u64)
        };
        pool::install(|| items.par_iter_mut().map(get).collect())
    }

    fn has(&self, digest: &Digest) -> Result<bool> {
        self.check_algorithm(digest)?;
        let meta = io::stat_at(&self.blobs, &layout::blob(digest)).map_err(|error| Error::io("stat", self.blob_path(digest))(error))?;
        Ok(meta.is_some_and(|meta| meta.len > 0))
    }

    fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>> {
        let has = |(index, digest): (usize, &Digest)| self.has(digest).map_err(|error| error.at(index));
        pool::install(|| digests.par_iter().enumerate().with_min_len(64).map(has).collect())
    }

    fn physical_bytes(&self) -> Result<u64> {
        Ok(self.scan()?.iter().map(|file| file.meta.len).sum())
    }

    fn put_stream(&self, reader: &mut dyn Read, len: u64) -> Result<Digest> {
        if len > limits::BLOB_BYTES {
            return Err(Error::Limit { what: format!("blob of {len} bytes"), name: "BLOB_BYTES", limit: limits::BLOB_BYTES });
        }
        let dir = self.root.join(layout::TEMPORARY);
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let dir_fd = io::open_dir(&dir).map_err(Error::io("open", &dir))?;
        let (temporary, file) = Temporary::create(dir_fd.as_fd(), "blob").map_err(Error::io("write", &dir))?;
        let mut hasher = Hasher::new(self.algorithm);
        let mut writer = std::io::BufWriter::with_capacity(1 << 20, &file);
        let compressed =
            self.options.encoding.encode_stream(reader, len, &mut writer, |piece| hasher.update(piece)).map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData => {
                    Error::Changed { path: "stream".into(), reason: format!("it does not end after {len} bytes") }
                }
                _ => Error::io("store", &dir)(error),
            })?;
        writer.flush().map_err(Error::io("write", &dir))?;
        drop(writer);
        let digest = hasher.finish();
        let name = layout::blob(&digest);
        let put = if self.find(&digest, &name)? {
            Put::Found
        } else {
            if self.options.durability == Durability::Each {
                file.sync_data().map_err(Error::io("sync", &dir))?;
            }
            self.make_shard(&digest)?;
            let counter = if compressed { &self.counters.compressed } else { &self.counters.stored };
            counter.add(1);
            self.counters.bytes_written.add(len);
            Put::Written(temporary)
        };
        let settled = self.settle(&digest, put)?;
        self.commit(vec![settled])?;
        Ok(digest)
    }

    fn get_stream(&self, digest: &Digest, writer: &mut dyn Write) -> Result<u64> {
        self.open_blob(digest)?.read_to(writer)
    }
}
