//! A tree and its blobs become a directory again.
//!
//! The whole list is checked before anything is written ([`Plan`]). Everything is then built in a private directory beside the target, which
//! takes the target's name at the very end, in one step that never replaces anything; whatever happens before leaves nothing behind. Order:
//! directories level by level, files, links, all in parallel, and the modes of directories last and deepest first, so that a directory
//! without write permission can be filled. Links come after all files, so that no file is ever written through one, whatever the file system
//! takes for equal names.
//!
//! Modes are the recorded ones, whatever the umask; where it grants them, things are made with them at once. Directories that only paths
//! imply get 0755; the target itself, which has no entry, what the umask grants. Nothing is synced: a restored directory can be restored
//! again. A process that is killed leaves its private directory, `.{target's name}.pfimg.{process id}.{n}`, which may be deleted.

mod links;
mod staging;

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use self::staging::Staging;
use crate::digest::{self, Digest};
use crate::error::{Error, Result};
use crate::io::tree::{create_file_at, make_dir_at, make_link_at, set_mode_at};
use crate::pool::{self, Monitor};
use crate::store::BlobStore;
use crate::tree::{Entry, FsTree, Kind, entry_name};
use crate::{limits, path};

/// Files above this size are streamed.
const LARGE_BYTES: u64 = 8 << 20;
/// For each thread, a task reads at most this many files at once, as many as the widest hash kernel has lanes; and, unless a single one has
/// more, this many bytes.
const TASK_FILES: usize = 16;
const TASK_BYTES: u64 = 4 << 20;
/// Mode of directories that have no entry of their own.
const IMPLIED_MODE: u16 = 0o755;

/// What a restored directory may hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Whether links that are absolute or lead out of the directory are restored instead of skipped.
    pub allow_absolute_symlinks: bool,
}

/// Restores the tree `digest` as the new directory `target`; returns a warning for each link that was skipped. The monitor counts files and
/// links.
///
/// # Errors
/// [`Error::Io`] with `AlreadyExists` when anything has the target's name, and for whatever the system refuses; [`Error::Format`] for a
/// hostile or malformed tree and for a blob that has not the recorded size, naming the entry; those of the store. The target does not exist
/// then, nor do directories above it that were made for it.
pub fn restore_tree(store: &dyn BlobStore, digest: &Digest, target: &Path, options: &RestoreOptions, monitor: &Monitor) -> Result<Vec<String>> {
    pool::install(|| restore(store, digest, target, *options, monitor))
}

fn restore(store: &dyn BlobStore, digest: &Digest, target: &Path, options: RestoreOptions, monitor: &Monitor) -> Result<Vec<String>> {
    // Without a trailing slash, which would follow a link of that name.
    let target: &Path = &target.components().collect::<PathBuf>();
    staging::check_free(target)?;
    let tree = FsTree::parse(&store.get(digest)?)?;
    let plan = Plan::new(&tree, options)?;
    monitor.expect((plan.files.len() + plan.links.len()) as u64);
    let staging = Staging::new(target)?;
    let site = Site { dir: crate::io::open_dir(staging.path()).map_err(Error::io("create", target))?, target, granted: staging.granted_mode() };
    site.make_dirs(&plan)?;
    cut_tasks(&plan.files).into_par_iter().try_for_each_init(Vec::new, |buffer, files| site.write_files(store, files, buffer, monitor))?;
    plan.links.par_iter().try_for_each(|(path, link_target)| {
        make_link_at(link_target, &site.dir, path).map_err(Error::io("link", target.join(path)))?;
        monitor.advance(1, link_target.len() as u64)
    })?;
    for (path, mode) in plan.dirs.iter().rev().filter(|(_, mode)| site.dir_mode(*mode) != *mode) {
        set_mode_at(&site.dir, path, *mode).map_err(Error::io("chmod", target.join(path)))?;
    }
    monitor.check()?;
    staging.place()?;
    Ok(plan.warnings)
}

/// Neighbours that are read together; a large file is alone.
fn cut_tasks<'p, 'a>(files: &'p [PlannedFile<'a>]) -> Vec<&'p [PlannedFile<'a>]> {
    let most = pool::share(files.len(), TASK_FILES * pool::threads());
    let mut tasks = Vec::with_capacity(files.len() / most + 1);
    let mut rest = files;
    while !rest.is_empty() {
        let mut bytes = 0_u64;
        let fits = rest.iter().take(most).take_while(|file| {
            bytes = bytes.saturating_add(file.entry.size);
            bytes <= TASK_BYTES
        });
        let (task, later) = rest.split_at(fits.count().max(1));
        tasks.push(task);
        rest = later;
    }
    tasks
}

/// What will be written, all of it checked.
struct Plan<'a> {
    /// Parents first; implied ones too.
    dirs: Vec<(&'a str, u16)>,
    files: Vec<PlannedFile<'a>>,
    /// Paths and targets.
    links: Vec<(&'a str, &'a str)>,
    warnings: Vec<String>,
}

#[derive(Clone, Copy)]
struct PlannedFile<'a> {
    entry: &'a Entry,
    blob: &'a Digest,
}

impl<'a> Plan<'a> {
    fn new(tree: &'a FsTree, options: RestoreOptions) -> Result<Self> {
        let entries = tree.ordered()?;
        let mut plan = Self { dirs: Vec::new(), files: Vec::new(), links: Vec::new(), warnings: Vec::new() };
        // The directories, outermost first, that the entry before lies in; entries come in an order in which none is ever left and re-entered.
        let mut within: Vec<&str> = Vec::new();
        for entry in &entries {
            within.truncate(within.iter().take_while(|dir| path::is_below(&entry.path, dir)).count());
            for (end, _) in entry.path.match_indices('/').skip(within.len()) {
                within.push(&entry.path[..end]);
                plan.dirs.push((&entry.path[..end], IMPLIED_MODE));
            }
            match &entry.kind {
                Kind::Dir => {
                    within.push(&entry.path);
                    plan.dirs.push((&entry.path, entry.mode));
                }
                Kind::File { blob } => plan.files.push(PlannedFile { entry, blob }),
                Kind::Symlink { blob, target } => {
                    check_link(entry, blob, target)?;
                    plan.links.push((&entry.path, target));
                }
            }
            if plan.dirs.len() as u64 > limits::DOCUMENT_ENTRIES {
                let what = "number of directories of a tree".into();
                return Err(Error::Limit { what, name: "DOCUMENT_ENTRIES", limit: limits::DOCUMENT_ENTRIES });
            }
        }
        if !options.allow_absolute_symlinks {
            plan.skip_unsafe_links();
        }
        Ok(plan)
    }

    fn skip_unsafe_links(&mut self) {
        let all: HashMap<_, _> = self.links.iter().copied().collect();
        let warnings = &mut self.warnings;
        self.links.retain(|(path, target)| {
            let why = if target.starts_with('/') {
                "its target is absolute"
            } else if links::escapes(&all, path, target) {
                "its target lies outside"
            } else {
                return true;
            };
            warnings.push(format!("skipped symbolic link {path:?} to {target:?}: {why}"));
            false
        });
    }
}

fn check_link(entry: &Entry, blob: &Digest, target: &str) -> Result<()> {
    let refused = |why: &str| Err(Error::field(entry_name(&entry.path), "link_target", why));
    if target.is_empty() || target.contains('\0') {
        refused("is empty or holds a NUL")
    } else if target.len() as u64 != entry.size || digest::hash(blob.algorithm(), target.as_bytes()) != *blob {
        refused("is not what `size` and `blob` say")
    } else {
        Ok(())
    }
}

/// Where a directory is built.
struct Site<'a> {
    dir: OwnedFd,
    /// The name that it will have, which errors tell.
    target: &'a Path,
    /// What is left of the mode 0777 of a new directory.
    granted: u16,
}

impl Site<'_> {
    /// Whether what is made with this mode gets it.
    fn grants(&self, mode: u16) -> bool {
        self.granted <= 0o777 && mode & !self.granted == 0
    }

    /// The mode with which a directory is made: the recorded one if it can have that from the beginning.
    fn dir_mode(&self, mode: u16) -> u16 {
        if self.grants(mode) && mode & 0o700 == 0o700 { mode } else { 0o700 }
    }

    fn make_dirs(&self, plan: &Plan<'_>) -> Result<()> {
        let depth = |path: &str| path.bytes().filter(|byte| *byte == b'/').count();
        let mut dirs: Vec<_> = plan.dirs.iter().map(|(path, mode)| (depth(path), path, *mode)).collect();
        dirs.sort_by_key(|(depth, ..)| *depth);
        dirs.chunk_by(|(a, ..), (b, ..)| a == b).try_for_each(|level| {
            level.par_iter().try_for_each(|(_, path, mode)| {
                make_dir_at(&self.dir, path, self.dir_mode(*mode)).map_err(|error| Error::io("create", self.target.join(path))(error))
            })
        })
    }

    fn write_files(&self, store: &dyn BlobStore, files: &[PlannedFile<'_>], buffer: &mut Vec<u8>, monitor: &Monitor) -> Result<()> {
        monitor.check()?;
        if let [PlannedFile { entry, blob }] = files
            && entry.size > LARGE_BYTES
        {
            return self.write_large(store, entry, blob, monitor);
        }
        let len = |entry: &Entry| usize::try_from(entry.size).expect("not above LARGE_BYTES");
        let total = files.iter().map(|file| len(file.entry)).sum();
        if buffer.len() < total {
            buffer.resize(total, 0);
        }
        let mut rest = &mut buffer[..total];
        let mut contents: Vec<(Digest, &mut [u8])> = Vec::with_capacity(files.len());
        for PlannedFile { entry, blob } in files {
            contents.push((**blob, rest.split_off_mut(..len(entry)).expect("the buffer holds all of them")));
        }
        if let Some((index, error)) = store.get_many_into(&mut contents, monitor).into_iter().next() {
            let PlannedFile { entry, blob } = files[index];
            return Err(match error {
                Error::Format { reason, .. } => Error::field(entry_name(&entry.path), "size", format!("blob {blob} {reason}")),
                error => error,
            });
        }
        files.iter().zip(&contents).try_for_each(|(PlannedFile { entry, .. }, (_, content))| {
            monitor.check()?;
            self.write_file(entry, |mut file| file.write_all(content).map_err(|error| Error::io("write", self.target.join(&entry.path))(error)))
        })
    }

    fn write_large(&self, store: &dyn BlobStore, entry: &Entry, blob: &Digest, monitor: &Monitor) -> Result<()> {
        let name = self.target.join(&entry.path);
        self.write_file(entry, |file| {
            let mut sink = Sink { file, entry, name: &name, left: entry.size, monitor, failure: None };
            let got = store.get_stream(blob, &mut sink);
            got.map_err(|error| sink.failure.take().unwrap_or(error))?;
            if sink.left > 0 { Err(wrong_size(entry, "shorter")) } else { Ok(()) }
        })?;
        monitor.advance(1, 0)
    }

    /// Makes a file and gives it the recorded mode.
    fn write_file(&self, entry: &Entry, fill: impl FnOnce(&File) -> Result<()>) -> Result<()> {
        let failed = |op| move |error| Error::io(op, self.target.join(&entry.path))(error);
        let granted = self.grants(entry.mode);
        let mode = if granted { entry.mode } else { 0o600 };
        let output = create_file_at(&self.dir, &entry.path, mode).map_err(failed("create"))?;
        fill(&output)?;
        if granted { Ok(()) } else { output.set_permissions(Permissions::from_mode(entry.mode.into())).map_err(failed("chmod")) }
    }
}

fn set_mode(path: &Path, mode: u16) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode.into()))
}

fn wrong_size(entry: &Entry, how: &str) -> Error {
    Error::field(entry_name(&entry.path), "size", format!("the blob is {how} than {} bytes", entry.size))
}

/// A file that takes no more than it should hold, can be cancelled, and remembers why it failed, which the store's error cannot say.
struct Sink<'a> {
    file: &'a File,
    entry: &'a Entry,
    name: &'a PathBuf,
    left: u64,
    monitor: &'a Monitor,
    failure: Option<Error>,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = if bytes.len() as u64 > self.left {
            Err(wrong_size(self.entry, "longer"))
        } else {
            match self.file.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                written => written.map_err(Error::io("write", self.name)),
            }
        };
        let counted = written.and_then(|n| self.monitor.advance(0, n as u64).map(|()| n));
        let n = counted.map_err(|failure| {
            let told = io::Error::other(failure.to_string());
            self.failure = Some(failure);
            told
        })?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
