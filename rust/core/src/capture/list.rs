//! What a directory holds, without reading any content.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::ignore::Ignore;
use super::{Root, changed};
use crate::error::{Error, Result};
use crate::io::tree::{self, FileType};
use crate::path;
use crate::pool::Monitor;

/// Something to capture.
pub(super) struct Found {
    pub(super) path: String,
    pub(super) kind: FoundKind,
}

pub(super) enum FoundKind {
    Dir,
    /// Looked at when it is open: most files need no other call before that.
    File,
    Symlink {
        mode: u16,
        target: String,
    },
}

/// What one directory holds.
struct Listed {
    /// Mode of the directory.
    mode: u16,
    found: Vec<Found>,
    warnings: Vec<String>,
}

/// Everything below the root that is not left out.
pub(super) struct Listing {
    /// Paths and modes.
    pub(super) dirs: Vec<(String, u16)>,
    /// Files and links; those of one directory stand together.
    pub(super) contents: Vec<Found>,
    /// What a tree cannot hold, in order.
    pub(super) warnings: Vec<String>,
}

pub(super) fn list(root: &Root<'_>, ignore: &Ignore, monitor: &Monitor) -> Result<Listing> {
    let mut listing = Listing { dirs: Vec::new(), contents: Vec::new(), warnings: Vec::new() };
    // Level by level: as parallel as a recursion, and no depth of directories exhausts the stack.
    let mut level = vec![String::from(".")];
    while !level.is_empty() {
        let listed = level.par_iter().map(|dir| list_dir(root, dir, ignore, monitor)).collect::<Result<Vec<_>>>()?;
        let mut next = Vec::new();
        for (dir, mut listed) in level.into_iter().zip(listed) {
            if dir != "." {
                listing.dirs.push((dir, listed.mode));
            }
            next.extend(listed.found.extract_if(.., |found| matches!(found.kind, FoundKind::Dir)).map(|found| found.path));
            listing.contents.append(&mut listed.found);
            listing.warnings.append(&mut listed.warnings);
        }
        level = next;
    }
    listing.warnings.sort_unstable();
    Ok(listing)
}

fn list_dir(root: &Root<'_>, dir: &str, ignore: &Ignore, monitor: &Monitor) -> Result<Listed> {
    monitor.check()?;
    let below = if dir == "." { Path::new("") } else { Path::new(dir) };
    let absolute = || root.path.join(below);
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if dir != "." => changed(&absolute(), "the directory vanished"),
        _ => Error::io("list", absolute())(error),
    };
    let open = tree::open_listed_dir_at(&root.dir, dir).map_err(failed)?;
    let mut listed = Listed { mode: tree::mode_of(&open).map_err(failed)?, found: Vec::new(), warnings: Vec::new() };
    for entry in tree::entries(&open).map_err(failed)? {
        let (name, mut file_type) = entry.map_err(failed)?;
        let relative = below.join(&name);
        let vanished = |op, error| vanished(&root.path.join(&relative), op, error);
        let mut mode = None;
        // Not every file system tells the kind with the name; a link's mode is part of its entry.
        if matches!(file_type, FileType::Unknown | FileType::Symlink) {
            let looked = tree::look_at(&open, Path::new(&name)).map_err(|error| vanished("stat", error))?;
            (file_type, mode) = (looked.0, Some(looked.1));
        }
        if ignore.matches(&relative, file_type == FileType::Directory) {
            continue;
        }
        let kind = match (file_type, mode) {
            (FileType::Directory, _) => FoundKind::Dir,
            (FileType::RegularFile, _) => FoundKind::File,
            (FileType::Symlink, Some(mode)) => FoundKind::Symlink { mode, target: link_target(&open, &name, &root.path.join(&relative))? },
            _ => {
                listed.warnings.push(format!("skipped {}: {}", escaped(&relative), special(file_type)));
                continue;
            }
        };
        listed.found.push(Found { path: checked(relative)?, kind });
    }
    Ok(listed)
}

fn link_target(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<String> {
    let target = tree::link_target_at(dir, Path::new(name)).map_err(|error| vanished(path, "read link", error))?;
    target.into_string().map_err(|target| {
        let what = format!("symbolic link {}", escaped(path));
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
    match file_type {
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        _ => "a device",
    }
}

/// An entry that was listed a moment ago could not be looked at.
fn vanished(path: &Path, op: &'static str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => changed(path, "it vanished"),
        _ => Error::io(op, path)(error),
    }
}
