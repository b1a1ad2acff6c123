//! System calls that capturing and restoring directories need, on whole paths.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

/// Opens what was listed as a regular file: neither follows a link nor waits for the writer of a FIFO that took its place meanwhile.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Renames a directory to a name that must be free; whatever holds it, a dangling link included, stays and is the error.
pub(crate) fn rename_dir_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        use rustix::io::Errno;
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
    Ok(rustix::fs::mknodat(CWD, path, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?)
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
        let fifo = open_file(&root.path().join("fifo")).unwrap();
        assert!(!fifo.metadata().unwrap().is_file());
        std::os::unix::fs::symlink("fifo", root.path().join("link")).unwrap();
        assert!(open_file(&root.path().join("link")).is_err());
    }
}
