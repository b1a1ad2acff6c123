//! Blobs in a directory: `blobs/<algorithm>/<aa>/<hex>.zst`, safe between processes.
//!
//! **Float frames** lie beside them as `<hex>.fpl`, in a store whose description lists them. A blob is there if either file is, and is looked
//! for under the published name first: a hit costs the same everywhere, and a miss an attempt more only where there are float frames. A handle
//! learns of a description that another one wrote meanwhile when it misses a blob: it then asks, once in a call, whether that file changed.
//!
//! **Writing.** A blob is written to a temporary beside its place and renamed, so that its name never shows half of it; who loses a race has
//! written the same bytes. With [`Durability::Group`] a whole batch shares its syncs: temporaries → data on stable storage → renames →
//! directories on stable storage.
//!
//! **Beside gc.** A put that finds its blob, and whoever asks for it in order to rely on it ([`BlobStore::keep`]), renews the file's time once
//! it is older than [`RENEW_AFTER`], under the shared lock that excludes gc; gc looks at the time again under the exclusive lock before it
//! removes a file. A blob that a writer relies on is therefore always younger than gc's grace period, as long as that is at least twice
//! [`RENEW_AFTER`]; calls that take longer, or must be safe beside any grace period, keep the shared lock for their whole length ([`Hold`]).
//!
//! **Reading** is always verified. What does not hash to its name goes to `quarantine/`, so that the next put heals it.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rayon::prelude::*;

use super::counters::Counters;
use super::put::{Batch, Put};
use super::{BlobStore, PutSome, description};
use crate::codec::float::Width;
use crate::codec::{Encoding, Form};
use crate::digest::{self, Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::io::Temporary;
use crate::layout::{self, BlobName};
use crate::pool::{self, Monitor};
use crate::{io, limits};

/// How long gc spares what it could remove, unless told otherwise.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// A put renews the time of a blob that is older: half of [`GRACE`].
pub const RENEW_AFTER: Duration = Duration::from_secs(12 * 3600);
/// So many names are looked up by the thread that asks: those of the pool may be at work on large blobs for longer than it takes.
pub const LOOKED_UP_AT_ONCE: usize = 1024;

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
    /// Whether only what is of the published format counts: float frames are neither seen nor written. For directories that others read.
    pub published: bool,
}

/// A store in a directory.
#[derive(Debug)]
pub struct DirStore {
    pub(super) root: PathBuf,
    root_dir: OwnedFd,
    algorithm: Algorithm,
    pub(super) options: Options,
    pub(super) blobs: OwnedFd,
    /// Whether the description lists float frames, as far as is known. Never unset: features stay.
    floats: AtomicBool,
    /// Length and time of the description that was read last.
    described: Mutex<Option<io::Meta>>,
    shards: Box<[AtomicBool; 256]>,
    /// Whether the file system tells what it has in memory, as far as is known.
    pub(super) tells_cached: AtomicBool,
    pub(super) counters: Counters,
}

impl DirStore {
    /// Opens the store at `root`, which is made where it is missing. `algorithm` None means what the store says, SHA-256 when it is new.
    pub fn open(root: impl Into<PathBuf>, algorithm: Option<Algorithm>, mut options: Options) -> Result<Self> {
        if options.published {
            options.encoding = options.encoding.published();
        }
        let root = root.into();
        io::create_dirs(&root).map_err(Error::io("create", &root))?;
        let root = root.canonicalize().map_err(Error::io("open", &root))?;
        // Before it is read: one that is written between the two is then read again.
        let root_dir = io::open_dir(&root).map_err(Error::io("open", &root))?;
        let meta = io::stat_at(&root_dir, layout::DESCRIPTION).map_err(Error::io("stat", &root))?;
        let described = description::read(&root)?;
        let has_blobs = root.join("blobs").exists();
        let found = described.as_ref().map(|described| described.algorithm).or(has_blobs.then_some(Algorithm::Sha256));
        let algorithm = algorithm.or(found).unwrap_or(Algorithm::Sha256);
        if let Some(found) = found
            && found != algorithm
        {
            return Err(Error::format(format!("store {}", root.display()), format!("its digests are {found}, not {algorithm}")));
        }
        if algorithm != Algorithm::Sha256 && described.is_none() {
            description::require(&root, algorithm, &[])?;
        }
        let blobs = root.join(layout::blobs(algorithm));
        io::create_dirs(&blobs).map_err(Error::io("create", &blobs))?;
        let blobs = io::open_dir(&blobs).map_err(Error::io("open", &blobs))?;
        let shards = Box::new([const { AtomicBool::new(false) }; 256]);
        let floats = AtomicBool::new(!options.published && described.is_some_and(|described| described.lists(description::FLOATS)));
        let tells_cached = AtomicBool::new(true);
        let (described, counters) = (Mutex::new(meta), Counters::default());
        Ok(Self { root, root_dir, algorithm, options, blobs, floats, described, shards, tells_cached, counters })
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

    /// Where a blob lies in the published form, whether it is there or not.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.form_path(digest, Form::Zstd)
    }

    /// Where a blob lies in this form, whether it is there or not.
    pub(crate) fn form_path(&self, digest: &Digest, form: Form) -> PathBuf {
        let mut path = self.root.join(layout::blobs(digest.algorithm()));
        path.push(&*layout::blob(digest, form));
        path
    }

    /// The file that holds a blob; None when it is not there.
    pub fn find_path(&self, digest: &Digest) -> Result<Option<PathBuf>> {
        Ok(self.find_file(&Batch::new(self, 1), digest)?.map(|(form, _)| self.form_path(digest, form)))
    }

    /// Makes sure that the store's description lists these features.
    ///
    /// # Errors
    /// [`Error::Format`] for one that is not known.
    pub fn require_features(&self, features: &[&str]) -> Result<()> {
        description::require(&self.root, self.algorithm, features)
    }

    /// Whether there may be float frames, as far as is known.
    pub(super) fn has_floats(&self) -> bool {
        self.floats.load(Ordering::Acquire)
    }

    /// Whether there may be float frames, now.
    pub(super) fn look_for_floats(&self) -> Result<bool> {
        if self.has_floats() || self.options.published {
            return Ok(self.has_floats());
        }
        let meta = io::stat_at(&self.root_dir, layout::DESCRIPTION).map_err(|error| Error::io("stat", self.root.join(layout::DESCRIPTION))(error))?;
        let mut described = self.described.lock().unwrap_or_else(PoisonError::into_inner);
        if *described != meta {
            if description::read(&self.root)?.is_some_and(|described| described.lists(description::FLOATS)) {
                self.floats.store(true, Ordering::Release);
            }
            *described = meta;
        }
        Ok(self.has_floats())
    }

    /// Describes the store as one that has float frames, before the first is written.
    pub(super) fn admit_floats(&self) -> Result<()> {
        debug_assert!(!self.options.published, "such a handle writes none");
        if !self.has_floats() {
            self.require_features(&[description::FLOATS])?;
            self.floats.store(true, Ordering::Release);
        }
        Ok(())
    }

    pub(super) fn check_algorithm(&self, digest: &Digest) -> Result<()> {
        if digest.algorithm() == self.algorithm {
            return Ok(());
        }
        Err(Error::format(format!("digest {digest}"), format!("the store's digests are {}", self.algorithm)))
    }

    /// The form of a blob's file, and its length; None where there is none.
    pub(super) fn find_file(&self, batch: &Batch<'_>, digest: &Digest) -> Result<Option<(Form, u64)>> {
        self.check_algorithm(digest)?;
        batch.look(digest, |dir, at, form| {
            let meta = io::stat_at(dir, at).map_err(|error| Error::io("stat", self.form_path(digest, form))(error))?;
            Ok(meta.filter(|meta| meta.len > 0).map(|meta| (form, meta.len)))
        })
    }

    /// Makes the directory that a blob's file is in.
    pub(super) fn make_shard(&self, digest: &Digest, name: &BlobName) -> Result<()> {
        let shard = &self.shards[usize::from(digest.bytes()[0])];
        if !shard.load(Ordering::Relaxed) {
            io::create_dir_at(&self.blobs, name.shard()).map_err(Error::io("create", self.blob_path(digest)))?;
            shard.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl BlobStore for DirStore {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let batch = Batch::new(self, 1);
        let digest = digest::hash(self.algorithm, bytes);
        batch.commit(vec![batch.settle(&digest, batch.begin(&digest, bytes)?)?])?;
        Ok(digest)
    }

    fn put_many(&self, blobs: &[&[u8]]) -> Result<Vec<Digest>> {
        Batch::new(self, blobs.len()).put(blobs, |_| None, &Monitor::new())
    }

    fn put_named(&self, blobs: &[&[u8]], digests: &[Option<Digest>], monitor: &Monitor) -> Result<Vec<Digest>> {
        Batch::new(self, blobs.len()).put(blobs, |index| digests[index], monitor)
    }

    fn put_floats(&self, blobs: &[&[u8]], width: Width, monitor: &Monitor) -> Result<Vec<Digest>> {
        Batch::new(self, blobs.len()).of(width).put(blobs, |_| None, monitor)
    }

    fn put_grouped(&self, work: &mut dyn FnMut(&PutSome<'_>) -> Result<()>) -> Result<()> {
        Batch::new(self, usize::MAX).put_grouped(work)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.open_blob(digest)?.read()
    }

    fn get_into(&self, digest: &Digest, out: &mut [u8]) -> Result<()> {
        self.open_blob_for(&Batch::new(self, 1), digest)?.read_into(out)
    }

    fn get_many_into(&self, items: &mut [(Digest, &mut [u8])], monitor: &Monitor) -> Vec<(usize, Error)> {
        self.read_batch(items, monitor)
    }

    fn has(&self, digest: &Digest) -> Result<bool> {
        Ok(self.find_file(&Batch::new(self, 1), digest)?.is_some())
    }

    fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>> {
        let batch = Batch::new(self, digests.len());
        let has = |(index, digest): (usize, &Digest)| match self.find_file(&batch, digest) {
            Ok(form) => Ok(form.is_some()),
            Err(error) => Err(error.at(index)),
        };
        look_up(digests, has)
    }

    fn keep(&self, digest: &Digest) -> Result<bool> {
        self.check_algorithm(digest)?;
        Batch::new(self, 1).keeps(digest)
    }

    fn keep_many(&self, digests: &[Digest]) -> Result<Vec<bool>> {
        let batch = Batch::new(self, digests.len());
        let keep = |(index, digest): (usize, &Digest)| {
            let kept = self.check_algorithm(digest).and_then(|()| batch.keeps(digest));
            kept.map_err(|error| error.at(index))
        };
        look_up(digests, keep)
    }

    fn physical_bytes(&self) -> Result<u64> {
        Ok(self.scan()?.files.iter().map(|file| file.meta.len).sum())
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
        let batch = Batch::new(self, 1);
        let put = if let Some(form) = batch.find(&digest)? {
            Put::Found(form)
        } else {
            if self.options.durability == Durability::Each {
                file.sync_data().map_err(Error::io("sync", &dir))?;
            }
            self.make_shard(&digest, &layout::blob(&digest, Form::Zstd))?;
            let counter = if compressed { &self.counters.compressed } else { &self.counters.stored };
            counter.add(1);
            self.counters.bytes_written.add(len);
            Put::Written(temporary, Form::Zstd)
        };
        batch.commit(vec![batch.settle(&digest, put)?])?;
        Ok(digest)
    }

    fn get_stream(&self, digest: &Digest, writer: &mut dyn Write) -> Result<u64> {
        self.open_blob(digest)?.read_to(writer)
    }
}

/// What `look` says of each digest and its index, in parallel where there are many.
fn look_up(digests: &[Digest], look: impl Fn((usize, &Digest)) -> Result<bool> + Send + Sync) -> Result<Vec<bool>> {
    if digests.len() <= LOOKED_UP_AT_ONCE {
        return digests.iter().enumerate().map(look).collect();
    }
    pool::install(|| digests.par_iter().enumerate().with_min_len(64).map(look).collect())
}
