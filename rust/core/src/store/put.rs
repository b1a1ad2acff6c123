//! Putting: from bytes to files in their places, a batch at a time.
//!
//! A batch is cut into tasks of a few blobs, so that their hashing fills the lanes of a kernel and their bytes are still in cache when they
//! are written, straight from the caller's buffers. Long batches hold the directories of blobs open, so that each name is looked up in one
//! step.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Scope;

use rayon::prelude::*;

use super::dir::{DirStore, Durability, RENEW_AFTER};
use super::lock::Hold;
use super::{BlobStore, PutSome};
use crate::codec::float::Width;
use crate::codec::{Codec, Form, Frame};
use crate::digest::{self, Digest};
use crate::error::{Error, Result};
use crate::io;
use crate::io::Temporary;
use crate::layout::{self, BlobName};
use crate::pool::{self, Monitor};

/// Blobs that one task hashes and writes: as many as the widest kernel has lanes.
pub const TASK_BLOBS: usize = 16;
/// Content bytes of one task, unless a single blob has more: a call that is asked to stop ends between tasks.
const TASK_BYTES: usize = 256 << 20;
/// Content bytes after which a group is synced and becomes visible.
const GROUP_BYTES: usize = 1 << 30;
/// Content bytes of a group after which the disk is set to work while the rest is still being hashed and written.
const PART_BYTES: usize = 128 << 20;
/// From this many files on, one sync of the file system is cheaper than one of each file, and the pool is worth the way to it.
const MANY_FILES: usize = 8;
/// From this many blobs on, opening all directories costs less than it saves.
const MANY_BLOBS: usize = 1024;

/// A blob that a put has dealt with, but that may not be on stable storage yet; in which form.
pub(super) enum Put<'a> {
    Found(Form),
    Written(Temporary<'a>, Form),
}

/// One put of any number of blobs, or the look-ups of one.
pub(super) struct Batch<'a> {
    store: &'a DirStore,
    shards: Option<Shards>,
    /// Of the blobs' items, where it is known.
    width: Option<Width>,
    /// Whether the store was asked for float frames.
    looked: AtomicBool,
}

/// The directories of blobs, each opened when the first blob needs it. File descriptors are few: only one batch in the process has these, and
/// none is kept when half of all are in use.
struct Shards {
    open: Box<[OnceLock<OwnedFd>; 256]>,
    most: u64,
}

static SHARDS_TAKEN: AtomicBool = AtomicBool::new(false);

impl Shards {
    fn take() -> Option<Self> {
        SHARDS_TAKEN.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Self { open: Box::new([const { OnceLock::new() }; 256]), most: io::most_descriptors() / 2 })
    }

    fn open(&self, blobs: &OwnedFd, digest: &Digest, name: &BlobName) -> Option<&OwnedFd> {
        let shard = &self.open[usize::from(digest.bytes()[0])];
        if let Some(dir) = shard.get() {
            return Some(dir);
        }
        let dir = io::open_dir_at(blobs, name.shard()).ok()?;
        // The system gives the lowest number that is free.
        let few = u64::try_from(dir.as_raw_fd()).is_ok_and(|used| used < self.most);
        few.then(|| shard.get_or_init(|| dir))
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        SHARDS_TAKEN.store(false, Ordering::Release);
    }
}

impl<'a> Batch<'a> {
    /// A batch of `n` blobs.
    pub(super) fn new(store: &'a DirStore, n: usize) -> Self {
        let shards = if n < MANY_BLOBS { None } else { Shards::take() };
        Self { store, shards, width: None, looked: AtomicBool::new(false) }
    }

    /// The same for floats of this width.
    pub(super) fn of(self, width: Width) -> Self {
        Self { width: Some(width), ..self }
    }

    /// Whether there may be float frames. The store is asked once.
    fn has_floats(&self) -> Result<bool> {
        if self.looked.load(Ordering::Acquire) {
            return Ok(self.store.has_floats());
        }
        let found = self.store.look_for_floats()?;
        self.looked.store(true, Ordering::Release);
        Ok(found)
    }

    /// What `look` finds at the first of the places where a blob may be that has something.
    pub(super) fn look<T>(&self, digest: &Digest, look: impl Fn(BorrowedFd<'_>, &str, Form) -> Result<Option<T>>) -> Result<Option<T>> {
        let look = |form| {
            let name = layout::blob(digest, form);
            let (dir, at) = self.place(digest, &name);
            look(dir, at, form)
        };
        match look(Form::Zstd)? {
            None if self.has_floats()? => look(Form::Float),
            found => Ok(found),
        }
    }

    /// Where a blob's name is looked up: its directory, or the directory of those and the longer name.
    pub(super) fn place<'n>(&self, digest: &Digest, name: &'n BlobName) -> (BorrowedFd<'_>, &'n str) {
        let blobs = &self.store.blobs;
        match self.shards.as_ref().and_then(|shards| shards.open(blobs, digest, name)) {
            Some(dir) => (dir.as_fd(), name.file()),
            None => (blobs.as_fd(), name),
        }
    }

    fn error(&self, what: &'static str, digest: &Digest, form: Form) -> impl FnOnce(std::io::Error) -> Error {
        Error::io(what, self.store.form_path(digest, form))
    }

    /// The form of a blob that is there and will stay: renews it where that is due. Counts as a hit of deduplication.
    pub(super) fn find(&self, digest: &Digest) -> Result<Option<Form>> {
        let found = self.renewed(digest)?;
        self.store.counters.deduplicated.add(u64::from(found.is_some()));
        Ok(found)
    }

    /// Whether a blob is there and will stay. Who may not renew it may still know: nothing is swept where nothing can be written.
    pub(super) fn keeps(&self, digest: &Digest) -> Result<bool> {
        match self.renewed(digest) {
            Err(Error::Io { source, .. }) if matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                Ok(self.store.find_file(self, digest)?.is_some())
            }
            found => Ok(found?.is_some()),
        }
    }

    fn renewed(&self, digest: &Digest) -> Result<Option<Form>> {
        self.look(digest, |dir, at, form| {
            match io::stat_at(dir, at).map_err(|error| self.error("stat", digest, form)(error))? {
                // An empty file is what a crash leaves of a name whose data never reached the disk.
                None => return Ok(None),
                Some(meta) if meta.len == 0 => return Ok(None),
                Some(meta) if meta.age() > RENEW_AFTER => {
                    let _hold = Hold::shared(&self.store.root)?;
                    match io::touch_at(dir, at) {
                        Ok(()) => {}
                        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                        Err(error) => return Err(self.error("renew", digest, form)(error)),
                    }
                }
                Some(_) => {}
            }
            Ok(Some(form))
        })
    }

    /// Writes a blob whose digest is known to be true, unless it is there.
    pub(super) fn begin(&self, digest: &Digest, content: &[u8]) -> Result<Put<'_>> {
        match self.find(digest)? {
            Some(form) => Ok(Put::Found(form)),
            None => self.write_content(digest, content),
        }
    }

    /// Whether floats that are put become float frames.
    pub(super) fn writes_floats(&self) -> bool {
        self.store.options.encoding.codec == Codec::Float
    }

    /// Encodes and writes a blob.
    pub(super) fn write_content(&self, digest: &Digest, content: &[u8]) -> Result<Put<'_>> {
        let frame = self.store.options.encoding.encode_items(content, self.width);
        let put = self.write(digest, frame.form(), |file| frame.write(|slices| io::write_all_vectored(file, slices)))?;
        let counters = &self.store.counters;
        match frame {
            Frame::Stored(_) => &counters.stored,
            Frame::Compressed(_) => &counters.compressed,
            Frame::Float(_) => &counters.float,
        }
        .add(1);
        counters.bytes_written.add(content.len() as u64);
        Ok(put)
    }

    /// Writes a frame of this form to a temporary beside its place.
    pub(super) fn write(&self, digest: &Digest, form: Form, frame: impl FnOnce(&File) -> std::io::Result<()>) -> Result<Put<'_>> {
        let (temporary, file) = self.create(digest, form)?;
        frame(&file).map_err(|error| self.error("write", digest, form)(error))?;
        if self.store.options.durability == Durability::Each {
            file.sync_data().map_err(|error| self.error("sync", digest, form)(error))?;
        }
        Ok(Put::Written(temporary, form))
    }

    /// Makes a temporary for a blob; a directory that somebody removed meanwhile is made again.
    pub(super) fn create(&self, digest: &Digest, form: Form) -> Result<(Temporary<'_>, File)> {
        if form == Form::Float {
            self.store.admit_floats()?;
        }
        let name = layout::blob(digest, form);
        self.store.make_shard(digest, &name)?;
        let create = || {
            let (dir, at) = self.place(digest, &name);
            Temporary::create(dir, at)
        };
        create()
            .or_else(|error| {
                if error.kind() != ErrorKind::NotFound {
                    return Err(error);
                }
                io::create_dir_at(&self.store.blobs, name.shard())?;
                create()
            })
            .map_err(|error| self.error("write", digest, form)(error))
    }

    /// Begins a put and, unless the group does it, ends it.
    pub(super) fn settle<'t>(&self, digest: &Digest, put: Put<'t>) -> Result<(Digest, Put<'t>)> {
        match self.store.options.durability {
            Durability::Group => Ok((*digest, put)),
            Durability::None => self.finish(digest, put).map(|put| (*digest, put)),
            Durability::Each => {
                if let Put::Found(form) = put {
                    self.sync_blob(digest, form)?;
                }
                let put = self.finish(digest, put)?;
                self.sync_shard(digest)?;
                Ok((*digest, put))
            }
        }
    }

    /// Gives a written blob its name.
    fn finish(&self, digest: &Digest, put: Put<'_>) -> Result<Put<'static>> {
        match put {
            Put::Written(temporary, form) => {
                let name = layout::blob(digest, form);
                let (dir, at) = self.place(digest, &name);
                temporary.place(dir, at).map_err(|error| self.error("rename", digest, form)(error))?;
                self.store.counters.written.add(1);
                Ok(Put::Found(form))
            }
            Put::Found(form) => Ok(Put::Found(form)),
        }
    }

    fn sync_blob(&self, digest: &Digest, form: Form) -> Result<()> {
        let name = layout::blob(digest, form);
        let (dir, at) = self.place(digest, &name);
        io::open_at(dir, at).and_then(|file| file.sync_data()).map_err(|error| self.error("sync", digest, form)(error))
    }

    fn sync_shard(&self, digest: &Digest) -> Result<()> {
        let sync = || {
            io::sync_dir(io::open_dir_at(&self.store.blobs, layout::blob(digest, Form::Zstd).shard())?)?;
            io::sync_dir(&self.store.blobs)
        };
        sync().map_err(|error| self.error("sync", digest, Form::Zstd)(error))
    }

    /// Brings a group to stable storage: data first, then names. Blobs that were found count too, since another handle may have put them
    /// without waiting.
    pub(super) fn commit(&self, group: Vec<(Digest, Put<'_>)>) -> Result<()> {
        if self.store.options.durability != Durability::Group || group.is_empty() {
            return Ok(());
        }
        let mut shards: Vec<Digest> = group.iter().map(|(digest, _)| *digest).collect();
        shards.sort_unstable_by_key(|digest| digest.bytes()[0]);
        shards.dedup_by_key(|digest| digest.bytes()[0]);
        let whole = |n: usize| Ok(n >= MANY_FILES && io::sync_file_system(&self.store.blobs).map_err(Error::io("sync", &self.store.root))?);

        if !whole(group.len())? {
            for_each(group.iter().collect(), |(digest, put)| match put {
                Put::Found(form) => self.sync_blob(digest, *form),
                Put::Written(temporary, form) => temporary.sync().map_err(|error| self.error("sync", digest, *form)(error)),
            })?;
        }
        for_each(group, |(digest, put)| self.finish(&digest, put).map(drop))?;
        if !whole(shards.len())? {
            for_each(shards, |digest| self.sync_shard(&digest))?;
        }
        Ok(())
    }

    /// Puts all blobs; `name` tells an item's digest where it is known, and it is believed only when the blob is there already.
    pub(super) fn put(&self, blobs: &[&[u8]], name: impl Fn(usize) -> Option<Digest> + Sync, monitor: &Monitor) -> Result<Vec<Digest>> {
        let lens: Vec<usize> = blobs.iter().map(|blob| blob.len()).collect();
        pool::install(|| {
            let mut digests = Vec::with_capacity(blobs.len());
            for group in cut(0..blobs.len(), usize::MAX, GROUP_BYTES, |index| lens[index]) {
                let tasks = cut(group.clone(), pool::share(group.len(), TASK_BLOBS), TASK_BYTES, |index| lens[index]);
                let early = EarlySync::default();
                let done: Vec<Vec<_>> = std::thread::scope(|scope| {
                    let task = |task: Range<usize>| {
                        let puts = self.put_task(blobs, task.clone(), &name, monitor)?;
                        early.wrote(scope, self.store, lens[task].iter().sum());
                        Ok(puts)
                    };
                    tasks.into_par_iter().map(task).collect::<Result<_>>()
                })?;
                early.end(self.store)?;
                let puts: Vec<_> = done.into_iter().flatten().collect();
                digests.extend(puts.iter().map(|(digest, _)| *digest));
                self.commit(puts)?;
            }
            Ok(digests)
        })
    }

    /// Lets `work` put a few blobs at a time. Those of a group become visible together, at the end.
    pub(super) fn put_grouped(&self, work: &mut dyn FnMut(&PutSome<'_>) -> Result<()>) -> Result<()> {
        let group = Mutex::new(Vec::new());
        let early = EarlySync::default();
        std::thread::scope(|scope| {
            work(&|blobs| {
                let puts = self.put_task(blobs, 0..blobs.len(), |_| None, &Monitor::new())?;
                let digests = puts.iter().map(|(digest, _)| *digest).collect();
                if self.store.options.durability == Durability::Group {
                    group.lock().unwrap_or_else(PoisonError::into_inner).extend(puts);
                }
                early.wrote(scope, self.store, blobs.iter().map(|blob| blob.len()).sum());
                Ok(digests)
            })
        })?;
        early.end(self.store)?;
        self.commit(group.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn put_task(
        &self,
        blobs: &[&[u8]],
        task: Range<usize>,
        name: impl Fn(usize) -> Option<Digest>,
        monitor: &Monitor,
    ) -> Result<Vec<(Digest, Put<'_>)>> {
        monitor.check()?;
        let known = |digest: &Digest| self.store.check_algorithm(digest).and_then(|()| self.find(digest));
        let found = |index| match name(index) {
            Some(digest) => known(&digest).map(|found| found.map(|form| (digest, form))).map_err(|error| error.at(index)),
            None => Ok(None),
        };
        let found: Vec<Option<(Digest, Form)>> = task.clone().map(found).collect::<Result<_>>()?;
        let fresh: Vec<&[u8]> = task.clone().zip(&found).filter(|(_, found)| found.is_none()).map(|(index, _)| blobs[index]).collect();
        let mut hashed = digest::hash_many(self.store.algorithm(), &fresh).into_iter();
        let put = |(index, found): (usize, Option<(Digest, Form)>)| {
            let mut put = || {
                let Some((digest, form)) = found else {
                    let digest = hashed.next().expect("one for each that was not found");
                    if let Some(name) = name(index).filter(|name| *name != digest) {
                        return Err(Error::integrity(&name, format!("its bytes hash to {digest}")));
                    }
                    monitor.check()?;
                    return self.settle(&digest, self.begin(&digest, blobs[index])?);
                };
                self.settle(&digest, Put::Found(form))
            };
            put().map_err(|error| error.at(index))
        };
        let puts = task.clone().zip(found).map(put).collect::<Result<_>>()?;
        monitor.advance(task.len() as u64, blobs[task].iter().map(|blob| blob.len() as u64).sum())?;
        Ok(puts)
    }
}

/// Syncs of the file system that run beside the writing of a group, one at a time, so that little is left to wait for at its end.
#[derive(Default)]
struct EarlySync {
    written: AtomicUsize,
    running: AtomicBool,
    /// The system tells an error only once for each descriptor: one that comes early must not be lost.
    failed: Mutex<Option<std::io::Error>>,
}

impl EarlySync {
    /// Counts content bytes, and sets the disk to work after every [`PART_BYTES`] where the group is to be synced at all.
    fn wrote<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, store: &'scope DirStore, bytes: usize) {
        let before = self.written.fetch_add(bytes, Ordering::Relaxed);
        if store.options.durability != Durability::Group || before / PART_BYTES == (before + bytes) / PART_BYTES {
            return;
        }
        if !self.running.swap(true, Ordering::AcqRel) {
            let sync = || {
                if let Err(error) = io::sync_file_system(&store.blobs) {
                    self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
                self.running.store(false, Ordering::Release);
            };
            if std::thread::Builder::new().name("pfimg-sync".into()).spawn_scoped(scope, sync).is_err() {
                self.running.store(false, Ordering::Release);
            }
        }
    }

    fn end(self, store: &DirStore) -> Result<()> {
        match self.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(Error::io("sync", &store.root)(error)),
            None => Ok(()),
        }
    }
}

/// Handles a few files here, and many on the pool.
fn for_each<T: Send>(items: Vec<T>, work: impl Fn(T) -> Result<()> + Send + Sync) -> Result<()> {
    if items.len() < MANY_FILES { items.into_iter().try_for_each(work) } else { pool::install(|| items.into_par_iter().try_for_each(work)) }
}

/// Cuts a batch into pieces of at most `most` items and, unless a single one has more, `most_bytes` bytes.
pub(crate) fn cut(items: Range<usize>, most: usize, most_bytes: usize, len: impl Fn(usize) -> usize) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (items.start, 0_usize);
    for index in items.clone() {
        if index > start && (index - start >= most || bytes.saturating_add(len(index)) > most_bytes) {
            pieces.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes = bytes.saturating_add(len(index));
    }
    if start < items.end {
        pieces.push(start..items.end);
    }
    pieces
}
