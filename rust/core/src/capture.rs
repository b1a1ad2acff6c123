//! A directory becomes blobs and a tree that names them.
//!
//! First everything is listed, level by level and in parallel; then small files are read in parallel and stored in batches of bounded size,
//! large ones are streamed; the tree comes last. Links are never followed, but for the root, which may be one.
//!
//! A file is compared with itself before and after it is read (size, times, inode), so that a torn one is refused by name. What this cannot
//! see is a change within the same tick of the file system's clock that keeps the size. Each file is consistent, not all of them together:
//! nothing stops a writer between two files, nor one who puts a link in the place of a directory that was just listed. Ownership, extended
//! attributes, times and hard links are not part of the format.

mod ignore;
mod list;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rayon::prelude::*;

use self::ignore::Ignore;
use self::list::{Found, FoundKind};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::io::tree::open_file;
use crate::limits;
use crate::pool::{self, Monitor};
use crate::store::BlobStore;
use crate::tree::{Entry, FsTree, Kind};

/// Files above this size are streamed, alone.
const LARGE_BYTES: u64 = 8 << 20;
/// Small files are stored in batches of at most this size and number.
const BATCH_BYTES: u64 = 64 << 20;
const BATCH_FILES: usize = 8192;

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
    let (found, warnings) = list::list(root, &Ignore::new(options)?, monitor)?;
    let mut entries = Vec::with_capacity(found.len());
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for found in found {
        match &found.kind {
            FoundKind::Dir => entries.push(Entry { path: found.path, mode: found.mode, size: 0, kind: Kind::Dir }),
            FoundKind::File { len } if *len > LARGE_BYTES => large.push(found),
            FoundKind::File { .. } | FoundKind::Symlink { .. } => small.push(found),
        }
    }
    monitor.expect((small.len() + large.len()) as u64);
    let mut rest = &small[..];
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(batch_len(rest));
        store_batch(store, root, batch, monitor, &mut entries)?;
        rest = later;
    }
    entries.par_extend(large.par_iter().map(|found| store_large(store, root, found, monitor)).collect::<Result<Vec<_>>>()?);
    let tree = FsTree::new(entries)?;
    let json = tree.to_json();
    if json.len() as u64 > limits::DOCUMENT_BYTES {
        return Err(Error::Limit { what: format!("tree of {}", root.display()), name: "DOCUMENT_BYTES", limit: limits::DOCUMENT_BYTES });
    }
    Ok(Captured { digest: store.put(&json)?, tree, warnings })
}

/// How many of these make one batch, at least one.
fn batch_len(found: &[Found]) -> usize {
    let mut bytes = 0;
    let fits = found.iter().take(BATCH_FILES).take_while(|found| {
        bytes += found.len();
        bytes <= BATCH_BYTES
    });
    fits.count().max(1)
}

fn store_batch(store: &dyn BlobStore, root: &Path, batch: &[Found], monitor: &Monitor, entries: &mut Vec<Entry>) -> Result<()> {
    let read = |found: &Found| {
        monitor.check()?;
        match &found.kind {
            FoundKind::Symlink { target } => Ok((found.mode, target.clone().into_bytes())),
            _ => read_small(&root.join(&found.path)),
        }
    };
    let contents = batch.par_iter().map(read).collect::<Result<Vec<_>>>()?;
    let blobs: Vec<&[u8]> = contents.iter().map(|(_, content)| &content[..]).collect();
    // The index within a batch says nothing to the caller.
    let digests = store.put_many(&blobs).map_err(|error| if let Error::At { source, .. } = error { *source } else { error })?;
    for ((found, (mode, content)), blob) in batch.iter().zip(&contents).zip(digests) {
        let kind = match &found.kind {
            FoundKind::Symlink { target } => Kind::Symlink { blob, target: target.clone() },
            _ => Kind::File { blob },
        };
        entries.push(Entry { path: found.path.clone(), mode: *mode, size: content.len() as u64, kind });
        monitor.advance(1, content.len() as u64)?;
    }
    Ok(())
}

fn read_small(path: &Path) -> Result<(u16, Vec<u8>)> {
    let (mode, _, content) = read_steady(path, |mut file, len| {
        if len > LARGE_BYTES {
            return Err(changed(path, "it grew"));
        }
        let mut content = Vec::with_capacity(usize::try_from(len).unwrap_or(0) + 1);
        file.by_ref().take(len + 1).read_to_end(&mut content).map_err(Error::io("read", path))?;
        if content.len() as u64 == len { Ok(content) } else { Err(changed(path, &format!("it does not end after {len} bytes"))) }
    })?;
    Ok((mode, content))
}

fn store_large(store: &dyn BlobStore, root: &Path, found: &Found, monitor: &Monitor) -> Result<Entry> {
    let path = root.join(&found.path);
    let (mode, size, blob) = read_steady(&path, |file, len| {
        if len > limits::BLOB_BYTES {
            return Err(Error::Limit { what: format!("file {}", path.display()), name: "BLOB_BYTES", limit: limits::BLOB_BYTES });
        }
        let mut source = Source { file, path: &path, monitor, failure: None };
        store.put_stream(&mut source, len).map_err(|error| match (source.failure, error) {
            (Some(failure), _) => failure,
            (None, Error::Changed { reason, .. }) => changed(&path, &reason),
            (None, error) => error,
        })
    })?;
    monitor.advance(1, 0)?;
    Ok(Entry { path: found.path.clone(), mode, size, kind: Kind::File { blob } })
}

/// Lets `read` have an open file and its length, and makes sure that the file stayed what it was; returns its mode and length too.
fn read_steady<T>(path: &Path, read: impl FnOnce(&File, u64) -> Result<T>) -> Result<(u16, u64, T)> {
    let file = open_file(path).map_err(|error| match fs::symlink_metadata(path) {
        Ok(now) if !now.is_file() => changed(path, "it is no longer a regular file"),
        Err(now) if now.kind() == io::ErrorKind::NotFound => changed(path, "it vanished"),
        _ => Error::io("open", path)(error),
    })?;
    let stat = || file.metadata().map_err(Error::io("stat", path));
    let stamp = |stat: &fs::Metadata| (stat.len(), stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec(), stat.dev(), stat.ino());
    let before = stat()?;
    if !before.is_file() {
        return Err(changed(path, "it is no longer a regular file"));
    }
    let out = read(&file, before.len())?;
    if stamp(&before) == stamp(&stat()?) {
        Ok((list::mode_of(&before), before.len(), out))
    } else {
        Err(changed(path, "its size or time is another than before"))
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
