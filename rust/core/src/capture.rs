//! A directory becomes blobs and a tree that names them.
//!
//! First everything is listed, level by level and in parallel, by names alone; then each task reads a few files, and stores them together
//! while they are in cache. Large files are streamed. All blobs share the syncs of one group, and the tree comes last. Links are never
//! followed, but for the root, which may be one.
//!
//! A file is compared with itself before and after it is read (size, times, inode), so that a torn one is refused by name. What this cannot
//! see is a change within the same tick of the file system's clock that keeps the size. Each file is consistent, not all of them together:
//! nothing stops a writer between two files, nor one who puts a link in the place of a directory that was just listed. Ownership, extended
//! attributes, times and hard links are not part of the format.

mod ignore;
mod list;

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rayon::prelude::*;

use self::ignore::Ignore;
use self::list::{Found, FoundKind};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::io::tree::{append, open_file_at};
use crate::limits;
use crate::pool::{self, Monitor};
use crate::store::{BlobStore, PutSome};
use crate::tree::{Entry, FsTree, Kind};

/// Files above this size are streamed, alone.
const LARGE_BYTES: u64 = 8 << 20;
/// A task has at most this many files, as many as the widest hash kernel has lanes.
const TASK_FILES: usize = 16;
/// What a task has read is stored when it is this much: a thread holds less than this and [`LARGE_BYTES`].
const TASK_BYTES: usize = 4 << 20;

/// What to leave out.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// Lines with the meaning of a `.gitignore` at the root.
    pub ignore: Vec<String>,
    /// Whether to leave out caches, build outputs and git's objects.
    pub default_ignores: bool,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self { ignore: Vec::new(), default_ignores: true }
    }
}

/// A captured directory.
#[derive(Debug)]
pub struct Captured {
    /// The stored tree.
    pub digest: Digest,
    /// What it says.
    pub tree: FsTree,
    /// What was skipped, one line each.
    pub warnings: Vec<String>,
}

/// Captures the directory `root`. The monitor counts files and links.
///
/// # Errors
/// [`Error::Io`] naming what cannot be read; [`Error::Changed`] naming a file that changed or vanished meanwhile; [`Error::Format`] for names
/// that are not UTF-8 or hold a backslash, and for an ignore line that has no meaning; [`Error::Limit`]; those of the store. Blobs may have
/// been stored.
pub fn put_tree(store: &dyn BlobStore, root: &Path, options: &CaptureOptions, monitor: &Monitor) -> Result<Captured> {
    pool::install(|| capture(store, root, options, monitor))
}

fn capture(store: &dyn BlobStore, root: &Path, options: &CaptureOptions, monitor: &Monitor) -> Result<Captured> {
    let dir = crate::io::open_dir(root).map_err(Error::io("list", root))?;
    let root = Root { dir, path: root };
    let mut listing = list::list(&root, &Ignore::new(options)?, monitor)?;
    monitor.expect(listing.contents.len() as u64);
    let mut entries: Vec<_> = listing.dirs.into_iter().map(|(path, mode)| Entry { path, mode, size: 0, kind: Kind::Dir }).collect();
    store.put_grouped(&mut |put| {
        let tasks = std::mem::take(&mut listing.contents).into_par_iter().chunks(TASK_FILES);
        let new_task = || Task { store, put, root: &root, monitor, content: Vec::new(), read: Vec::new(), entries: Vec::new() };
        let stored = tasks.map_init(new_task, Task::run).collect::<Result<Vec<_>>>()?;
        entries.extend(stored.into_iter().flatten());
        Ok(())
    })?;
    let tree = FsTree::new(entries)?;
    let json = tree.to_json();
    if json.len() as u64 > limits::DOCUMENT_BYTES {
        return Err(Error::Limit { what: format!("tree of {}", root.path.display()), name: "DOCUMENT_BYTES", limit: limits::DOCUMENT_BYTES });
    }
    Ok(Captured { digest: store.put(&json)?, tree, warnings: listing.warnings })
}

/// The captured directory.
struct Root<'a> {
    dir: OwnedFd,
    path: &'a Path,
}

/// Reads files and links and stores them; a thread keeps its memory from one task to the next.
struct Task<'a> {
    store: &'a dyn BlobStore,
    put: &'a PutSome<'a>,
    root: &'a Root<'a>,
    monitor: &'a Monitor,
    /// What was read and is not stored yet, one after the other, and what it belongs to.
    content: Vec<u8>,
    read: Vec<(Found, u16, Range<usize>)>,
    entries: Vec<Entry>,
}

impl Task<'_> {
    fn run(&mut self, task: Vec<Found>) -> Result<Vec<Entry>> {
        for found in task {
            self.monitor.check()?;
            let start = self.content.len();
            let mode = match &found.kind {
                FoundKind::Symlink { mode, target } => {
                    self.content.extend_from_slice(target.as_bytes());
                    *mode
                }
                _ => match self.read(&found.path)? {
                    Outcome::Read { mode } => mode,
                    Outcome::Stored(entry) => {
                        self.entries.push(entry);
                        continue;
                    }
                },
            };
            self.read.push((found, mode, start..self.content.len()));
            if self.content.len() >= TASK_BYTES {
                self.store()?;
            }
        }
        self.store()?;
        Ok(std::mem::take(&mut self.entries))
    }

    fn store(&mut self) -> Result<()> {
        let blobs: Vec<&[u8]> = self.read.iter().map(|(.., range)| &self.content[range.clone()]).collect();
        // The index within a task says nothing to the caller.
        let digests = (self.put)(&blobs).map_err(|error| if let Error::At { source, .. } = error { *source } else { error })?;
        self.monitor.advance(digests.len() as u64, self.content.len() as u64)?;
        for ((found, mode, range), blob) in self.read.drain(..).zip(digests) {
            let kind = match found.kind {
                FoundKind::Symlink { target, .. } => Kind::Symlink { blob, target },
                _ => Kind::File { blob },
            };
            self.entries.push(Entry { path: found.path, mode, size: range.len() as u64, kind });
        }
        self.content.clear();
        Ok(())
    }

    /// Reads a file to the end of `content`, or stores it at once.
    fn read(&mut self, path: &str) -> Result<Outcome> {
        let content = &mut self.content;
        let (mode, size, stored) = self.root.read_steady(path, |file, len| {
            if len > LARGE_BYTES {
                return stream(self.store, file, len, &self.root.path.join(path), self.monitor).map(Some);
            }
            let len = usize::try_from(len).expect("not above LARGE_BYTES");
            let got = append(file, len, content).map_err(|error| Error::io("read", self.root.path.join(path))(error))?;
            if got == len { Ok(None) } else { Err(changed(&self.root.path.join(path), &format!("it does not end after {len} bytes"))) }
        })?;
        Ok(match stored {
            None => Outcome::Read { mode },
            Some(blob) => Outcome::Stored(Entry { path: path.to_owned(), mode, size, kind: Kind::File { blob } }),
        })
    }
}

/// What became of a file.
enum Outcome {
    Read { mode: u16 },
    Stored(Entry),
}

fn stream(store: &dyn BlobStore, file: &File, len: u64, path: &Path, monitor: &Monitor) -> Result<Digest> {
    if len > limits::BLOB_BYTES {
        return Err(Error::Limit { what: format!("file {}", path.display()), name: "BLOB_BYTES", limit: limits::BLOB_BYTES });
    }
    let mut source = Source { file, path, monitor, failure: None };
    let stored = store.put_stream(&mut source, len).map_err(|error| match (source.failure, error) {
        (Some(failure), _) => failure,
        (None, Error::Changed { reason, .. }) => changed(path, &reason),
        (None, error) => error,
    });
    monitor.advance(1, 0)?;
    stored
}

impl Root<'_> {
    /// Lets `read` have an open file and its length, and makes sure that the file stayed what it was; returns its mode and length too.
    fn read_steady<T>(&self, path: &str, read: impl FnOnce(&File, u64) -> Result<T>) -> Result<(u16, u64, T)> {
        let changed = |reason: &str| changed(&self.path.join(path), reason);
        let file = open_file_at(&self.dir, path).map_err(|error| match fs::symlink_metadata(self.path.join(path)) {
            Ok(now) if !now.is_file() => changed("it is no longer a regular file"),
            Err(now) if now.kind() == io::ErrorKind::NotFound => changed("it vanished"),
            _ => Error::io("open", self.path.join(path))(error),
        })?;
        let stat = || file.metadata().map_err(|error| Error::io("stat", self.path.join(path))(error));
        let stamp = |stat: &fs::Metadata| (stat.len(), stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec(), stat.dev(), stat.ino());
        let before = stat()?;
        if !before.is_file() {
            return Err(changed("it is no longer a regular file"));
        }
        let out = read(&file, before.len())?;
        if stamp(&before) == stamp(&stat()?) {
            Ok(((before.mode() & 0o7777) as u16, before.len(), out))
        } else {
            Err(changed("its size or time is another than before"))
        }
    }
}

fn changed(path: &Path, reason: &str) -> Error {
    Error::Changed { path: path.into(), reason: reason.into() }
}

/// A file as a stream that can be cancelled and remembers why it failed, which the store's error cannot say.
struct Source<'a> {
    file: &'a File,
    path: &'a Path,
    monitor: &'a Monitor,
    failure: Option<Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            read => read.map_err(Error::io("read", self.path)),
        };
        let counted = read.and_then(|n| self.monitor.advance(0, n as u64).map(|()| n));
        counted.map_err(|failure| {
            let told = io::Error::other(failure.to_string());
            self.failure = Some(failure);
            told
        })
    }
}

#[cfg(test)]
mod tests;
