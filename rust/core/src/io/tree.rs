//! System calls that capturing and restoring directories need. Paths may have several components; those below a directory are relative to it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

pub(crate) use rustix::fs::FileType;

/// Opens what was listed as a regular file: neither follows a link nor waits for the writer of a FIFO that took its place meanwhile.
pub(crate) fn open_file_at(dir: impl AsFd, path: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(dir, path, flags, Mode::empty())?))
}

/// Opens what was listed as a directory: does not follow a link that took its place meanwhile.
pub(crate) fn open_listed_dir_at(dir: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// The names in a directory, in no particular order, with what they are as far as the directory itself tells.
pub(crate) fn entries(dir: &OwnedFd) -> io::Result<impl Iterator<Item = io::Result<(OsString, FileType)>>> {
    let entries = rustix::fs::Dir::read_from(dir)?.filter_map(|entry| match entry {
        Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => None,
        Ok(entry) => Some(Ok((OsString::from_vec(entry.file_name().to_bytes().to_vec()), entry.file_type()))),
        Err(error) => Some(Err(error.into())),
    });
    Ok(entries)
}

/// Kind and mode of a name that is not followed.
pub(crate) fn look_at(dir: impl AsFd, name: &Path) -> io::Result<(FileType, u16)> {
    let mode = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode;
    Ok((FileType::from_raw_mode(mode), mode_bits(mode)))
}

/// The mode of what is open.
pub(crate) fn mode_of(file: impl AsFd) -> io::Result<u16> {
    Ok(mode_bits(rustix::fs::fstat(file)?.st_mode))
}

fn mode_bits(mode: rustix::fs::RawMode) -> u16 {
    (mode & 0o7777) as u16
}

/// Where a link leads.
pub(crate) fn link_target_at(dir: impl AsFd, name: &Path) -> io::Result<OsString> {
    Ok(OsString::from_vec(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes()))
}

/// Appends what is left of a file to `content`, or of a longer one somewhat more than `len` bytes; returns their number. A file of that
/// length takes one call.
pub(crate) fn append(file: &File, len: usize, content: &mut Vec<u8>) -> io::Result<usize> {
    // One more than is there, so that a longer file shows.
    content.reserve(len + 1);
    let start = content.len();
    loop {
        match rustix::io::read(file, spare_capacity(content)) {
            Ok(n) if n == 0 || content.len() - start >= len => return Ok(content.len() - start),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes a file that is not there yet, with these permissions as far as the umask grants them.
pub(crate) fn create_file_at(dir: impl AsFd, path: &str, mode: u16) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(dir, path, flags, Mode::from_raw_mode(mode.into()))?))
}

/// Makes a directory that is not there yet, with these permissions as far as the umask grants them.
pub(crate) fn make_dir_at(dir: impl AsFd, path: &str, mode: u16) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(dir, path, Mode::from_raw_mode(mode.into()))?)
}

/// Makes a symbolic link.
pub(crate) fn make_link_at(target: &str, dir: impl AsFd, path: &str) -> io::Result<()> {
    Ok(rustix::fs::symlinkat(target, dir, path)?)
}

/// Sets the mode of a directory, or of a file by its name where no link can be.
pub(crate) fn set_mode_at(dir: impl AsFd, path: &str, mode: u16) -> io::Result<()> {
    Ok(rustix::fs::chmodat(dir, path, Mode::from_raw_mode(mode.into()), AtFlags::empty())?)
}

/// Renames a directory to a name that must be free; whatever holds it, a dangling link included, stays and is the error.
pub(crate) fn rename_dir_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        match rustix::fs::renameat_with(CWD, from, CWD, to, rustix::fs::RenameFlags::NOREPLACE) {
            // Not every file system knows the flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            done => return Ok(done?),
        }
    }
    claim_and_rename_dir(from, to)
}

/// Takes the name by an empty directory, which a directory may then replace in one step.
fn claim_and_rename_dir(from: &Path, to: &Path) -> io::Result<()> {
    rustix::fs::mkdirat(CWD, to, Mode::RWXU)?;
    std::fs::rename(from, to).inspect_err(|_| {
        // Best effort; one that is no longer empty is no longer ours.
        let _ = std::fs::remove_dir(to);
    })
}

/// Makes a FIFO.
#[cfg(test)]
pub(crate) fn make_fifo(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_taken_name_is_never_replaced() {
        for rename in [rename_dir_new, claim_and_rename_dir] {
            let root = tempfile::tempdir().unwrap();
            let at = |name: &str| root.path().join(name);
            fs::create_dir(at("from")).unwrap();
            fs::write(at("from/x"), "x").unwrap();
            fs::create_dir(at("dir")).unwrap();
            fs::write(at("file"), "").unwrap();
            std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
            for taken in ["dir", "file", "dangling"] {
                let error = rename(&at("from"), &at(taken)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{taken}");
            }
            assert_eq!(fs::read_dir(at("dir")).unwrap().count(), 0);
            rename(&at("from"), &at("free")).unwrap();
            assert_eq!(fs::read(at("free/x")).unwrap(), b"x");
            assert_eq!(rename(&at("from"), &at("other")).unwrap_err().kind(), io::ErrorKind::NotFound);
            assert!(!at("other").exists());
        }
    }

    #[test]
    fn opening_neither_follows_nor_waits() {
        let root = tempfile::tempdir().unwrap();
        make_fifo(&root.path().join("fifo")).unwrap();
        let dir = crate::io::open_dir(root.path()).unwrap();
        let fifo = open_file_at(&dir, "fifo").unwrap();
        assert!(!fifo.metadata().unwrap().is_file());
        std::os::unix::fs::symlink("fifo", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink(".", root.path().join("dir")).unwrap();
        assert!(open_file_at(&dir, "link").is_err() && open_listed_dir_at(&dir, "dir").is_err());
    }

    #[test]
    fn a_file_is_appended_and_a_longer_one_shows() {
        let root = tempfile::tempdir().unwrap();
        for len in [0, 1, 5000] {
            fs::write(root.path().join("file"), vec![7; len]).unwrap();
            let dir = crate::io::open_dir(root.path()).unwrap();
            for told in [len.saturating_sub(1), len, len + 1] {
                let mut content = b"before".to_vec();
                let n = append(&open_file_at(&dir, "file").unwrap(), told, &mut content).unwrap();
                assert!(n == len || n > told, "{len} {told} {n}");
                assert_eq!(content, [b"before".to_vec(), vec![7; n]].concat());
            }
        }
    }
}
