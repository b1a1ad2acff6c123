//! What a directory holds, without reading any content.

use std::ffi::OsStr;
use std::fs::{self, DirEntry, FileType, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::changed;
use super::ignore::Ignore;
use crate::error::{Error, Result};
use crate::path;
use crate::pool::Monitor;

/// Something to capture.
pub(super) struct Found {
    pub(super) path: String,
    pub(super) mode: u16,
    pub(super) kind: FoundKind,
}

pub(super) enum FoundKind {
    Dir,
    File { len: u64 },
    Symlink { target: String },
}

impl Found {
    /// Length of its content.
    pub(super) fn len(&self) -> u64 {
        match &self.kind {
            FoundKind::Dir => 0,
            FoundKind::File { len } => *len,
            FoundKind::Symlink { target } => target.len() as u64,
        }
    }
}

pub(super) fn mode_of(stat: &Metadata) -> u16 {
    (stat.mode() & 0o7777) as u16
}

/// Everything below `root` that is not left out, in no particular order, and a warning for each thing that a tree cannot hold.
pub(super) fn list(root: &Path, ignore: &Ignore, monitor: &Monitor) -> Result<(Vec<Found>, Vec<String>)> {
    let (mut all, mut warnings) = (Vec::new(), Vec::new());
    // Level by level: as parallel as a recursion, and no depth of directories exhausts the stack.
    let mut level = vec![String::new()];
    while !level.is_empty() {
        let listed = level.par_iter().map(|dir| list_dir(root, dir, ignore, monitor)).collect::<Result<Vec<_>>>()?;
        level.clear();
        for (found, warned) in listed {
            level.extend(found.iter().filter(|found| matches!(found.kind, FoundKind::Dir)).map(|found| found.path.clone()));
            all.extend(found);
            warnings.extend(warned);
        }
    }
    warnings.sort_unstable();
    Ok((all, warnings))
}

fn list_dir(root: &Path, dir: &str, ignore: &Ignore, monitor: &Monitor) -> Result<(Vec<Found>, Vec<String>)> {
    monitor.check()?;
    let (mut all, mut warnings) = (Vec::new(), Vec::new());
    let absolute = if dir.is_empty() { root.to_path_buf() } else { root.join(dir) };
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if !dir.is_empty() => changed(&absolute, "the directory vanished"),
        _ => Error::io("list", &absolute)(error),
    };
    for entry in fs::read_dir(&absolute).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let relative = Path::new(dir).join(entry.file_name());
        let file_type = entry.file_type().map_err(|error| vanished(&entry, "stat", error))?;
        if ignore.matches(&relative, file_type.is_dir()) {
            continue;
        }
        let stat = entry.metadata().map_err(|error| vanished(&entry, "stat", error))?;
        let file_type = stat.file_type();
        let kind = if file_type.is_dir() {
            FoundKind::Dir
        } else if file_type.is_file() {
            FoundKind::File { len: stat.len() }
        } else if file_type.is_symlink() {
            FoundKind::Symlink { target: link_target(&entry)? }
        } else {
            warnings.push(format!("skipped {}: {}", escaped(&relative), special(file_type)));
            continue;
        };
        all.push(Found { path: checked(relative)?, mode: mode_of(&stat), kind });
    }
    Ok((all, warnings))
}

fn link_target(entry: &DirEntry) -> Result<String> {
    let target = fs::read_link(entry.path()).map_err(|error| vanished(entry, "read link", error))?;
    target.into_os_string().into_string().map_err(|target| {
        let what = format!("symbolic link {}", escaped(entry.path()));
        Error::format(what, format!("its target {} is not UTF-8; change it or leave it out by an ignore line", escaped(target)))
    })
}

/// The path as text, or why it cannot be captured.
fn checked(relative: PathBuf) -> Result<String> {
    let refused = |path: &OsStr, why: &str| {
        Error::format(format!("file name {}", escaped(path)), format!("{why}; rename it or leave it out by an ignore line"))
    };
    let text = relative.into_os_string().into_string().map_err(|path| refused(&path, "it is not UTF-8"))?;
    if text.contains('\\') {
        return Err(refused(OsStr::new(&text), "it holds a backslash, which other readers take for a separator"));
    }
    path::check(&text).map_err(|why| refused(OsStr::new(&text), why))?;
    Ok(text)
}

/// A name as errors show it: quoted, and unambiguous whatever it holds.
#[expect(clippy::unnecessary_debug_formatting, reason = "only this form escapes bytes that are not UTF-8, and control characters")]
fn escaped(name: impl AsRef<OsStr>) -> String {
    format!("{:?}", name.as_ref())
}

fn special(file_type: FileType) -> &'static str {
    if file_type.is_fifo() {
        "a FIFO"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// An entry that was listed a moment ago could not be looked at.
fn vanished(entry: &DirEntry, op: &'static str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => changed(&entry.path(), "it vanished"),
        _ => Error::io(op, entry.path())(error),
    }
}
