//! The private directory in which a target is built.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::tree::rename_dir_new;

/// Bytes of the target's name that the directory's name repeats, so that what is added still fits into a component.
const NAME_BYTES: usize = 200;

/// Removed on drop, with the directories above it that were made for it, unless it was placed.
pub(super) struct Staging {
    path: PathBuf,
    target: PathBuf,
    /// Directories above the target that did not exist, outermost first.
    leading: Vec<PathBuf>,
    /// What the target's mode will be.
    mode: u16,
}

/// Fails if anything has this name, be it a dangling link.
pub(super) fn check_free(target: &Path) -> Result<()> {
    match fs::symlink_metadata(target) {
        Ok(_) => Err(Error::io("create", target)(ErrorKind::AlreadyExists.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("create", target)(error)),
    }
}

impl Staging {
    pub(super) fn new(target: &Path) -> Result<Self> {
        let failed = |error| Error::io("create", target)(error);
        let name = target.file_name().ok_or_else(|| failed(ErrorKind::InvalidInput.into()))?;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut staging = Self { path: PathBuf::new(), target: target.into(), leading: Vec::new(), mode: 0 };
        // From here on, dropping `staging` undoes what was done.
        make_leading(parent, &mut staging.leading)?;
        staging.path = make_private(parent, name).map_err(failed)?;
        staging.mode = granted_mode(&staging.path).map_err(failed)?;
        Ok(staging)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The mode of a directory that is made with 0777.
    pub(super) fn granted_mode(&self) -> u16 {
        self.mode
    }

    /// Gives the directory the target's name.
    pub(super) fn place(mut self) -> Result<()> {
        super::set_mode(&self.path, self.mode).map_err(Error::io("chmod", &self.target))?;
        rename_dir_new(&self.path, &self.target).map_err(Error::io("create", &self.target))?;
        self.path.clear();
        self.leading.clear();
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty()
            && let Err(error) = remove(&self.path)
        {
            log::warn!("could not remove {}: {error}", self.path.display());
        }
        for dir in self.leading.iter().rev() {
            // One that somebody else uses by now is not empty and stays.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Makes the directories down to `parent`, as `mkdir -p`, and notes those that are new.
fn make_leading(parent: &Path, made: &mut Vec<PathBuf>) -> Result<()> {
    let missing: Vec<_> = parent.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        match fs::create_dir(dir) {
            Ok(()) => made.push(dir.into()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) => return Err(Error::io("create", dir)(error)),
        }
    }
    Ok(())
}

/// Makes a directory of a new name beside `name`, for this user only.
fn make_private(parent: &Path, name: &OsStr) -> io::Result<PathBuf> {
    let name = &name.as_bytes()[..name.len().min(NAME_BYTES)];
    loop {
        let mut private = OsString::from(".");
        private.push(OsStr::from_bytes(name));
        private.push(format!(".pfimg.{}", crate::io::unique()));
        let path = parent.join(private);
        match DirBuilder::new().mode(0o700).create(&path) {
            // Left by a killed process that had the same id.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
}

/// The mode that a plain `mkdir` gives, found without touching the process's umask.
fn granted_mode(private: &Path) -> io::Result<u16> {
    let probe = private.join("probe");
    fs::create_dir(&probe)?;
    let mode = (fs::symlink_metadata(&probe)?.mode() & 0o7777) as u16;
    fs::remove_dir(&probe)?;
    Ok(mode)
}

/// Removes a directory of ours, whatever the modes of those inside.
fn remove(path: &Path) -> io::Result<()> {
    fs::remove_dir_all(path).or_else(|_| {
        unlock(path)?;
        fs::remove_dir_all(path)
    })
}

/// Gives the owner all permissions on every directory from `path` down.
pub(super) fn unlock(path: &Path) -> io::Result<()> {
    let mut dirs = vec![path.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        super::set_mode(&dir, 0o700)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<OsString> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn is_private_beside_the_target_and_gone_on_drop() {
        let root = tempfile::tempdir().unwrap();
        let staging = Staging::new(&root.path().join("a/b/new")).unwrap();
        assert_eq!(staging.path().parent(), Some(&*root.path().join("a/b")));
        assert!(staging.path().file_name().unwrap().as_bytes().starts_with(format!(".new.pfimg.{}.", std::process::id()).as_bytes()));
        assert_eq!(fs::metadata(staging.path()).unwrap().mode() & 0o7777, 0o700);
        drop(staging);
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn leading_directories_that_were_there_or_are_used_stay() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        let staging = Staging::new(&root.path().join("a/b/c/new")).unwrap();
        fs::write(root.path().join("a/b/other"), "").unwrap();
        drop(staging);
        assert_eq!(names(&root.path().join("a/b")), ["other"]);
    }

    #[test]
    fn long_names_and_names_that_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("x".repeat(255));
        let (one, two) = (Staging::new(&target).unwrap(), Staging::new(&target).unwrap());
        assert_ne!(one.path(), two.path());
        one.place().unwrap();
        let error = two.place().unwrap_err();
        assert!(matches!(error, Error::Io { ref source, .. } if source.kind() == ErrorKind::AlreadyExists), "{error}");
        assert_eq!(names(root.path()), [target.file_name().unwrap()]);
    }

    #[test]
    fn unlocking_opens_directories_only() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("d/e");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("f"), "").unwrap();
        for (path, mode) in [(inner.join("f"), 0o400), (inner.clone(), 0o555), (root.path().join("d"), 0o555)] {
            super::super::set_mode(&path, mode).unwrap();
        }
        unlock(root.path()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!([mode(&root.path().join("d")), mode(&inner), mode(&inner.join("f"))], [0o700, 0o700, 0o400]);
    }

    #[test]
    fn targets_without_a_name_are_refused() {
        let root = tempfile::tempdir().unwrap();
        assert!(check_free(Path::new("/")).is_err() && check_free(Path::new(".")).is_err());
        assert!(Staging::new(&root.path().join("absent/..")).is_err());
        assert!(names(root.path()).is_empty());
    }
}
