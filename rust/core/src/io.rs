//! System calls on files: the only room that names rustix.
//!
//! Names are relative to an open directory wherever a call can take one. Functions return [`io::Result`]; callers know the whole path and add
//! it to the error.

pub(crate) mod map;
pub(crate) mod tree;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

/// Opens a directory, as a base for names.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a directory below another.
pub fn open_dir_at(dir: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes a directory; true when it was not there before.
pub fn create_dir_at(dir: impl AsFd, name: &str) -> io::Result<bool> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes a directory and those above it, as far as they are missing; on stable storage when this returns.
pub fn create_dirs(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Ok(()) => {}
        Err(_) if path.is_dir() => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_dirs(path.parent().ok_or(error)?)?;
            return create_dirs(path);
        }
        Err(error) => return Err(error),
    }
    // What is put into it later is lost with its name.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match open_dir(parent) {
        // Who may write there, but not read, cannot wait for it either.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        parent => sync_dir(parent?),
    }
}

/// What is needed to know of a file without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Length in bytes.
    pub len: u64,
    /// Time of the last change, or of the last renewal.
    pub modified: SystemTime,
    /// Second in which the file, its name or its times were changed last, by the file system's own clock: nobody can set it.
    pub changed: i64,
}

impl Meta {
    /// Time since it was written or renewed; zero for a time in the future.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.modified.elapsed().unwrap_or_default()
    }
}

/// Size and time of a regular file, or None when no such file is there.
pub fn stat_at(dir: impl AsFd, name: &str) -> io::Result<Option<Meta>> {
    match rustix::fs::statat(dir, name, AtFlags::empty()) {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() => {
            let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
            let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
            let modified = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
            #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "the type of the field is the system's")]
            let changed = stat.st_ctime as i64;
            Ok(Some(Meta { len: u64::try_from(stat.st_size).unwrap_or(0), modified, changed }))
        }
        Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Opens a file for reading. A FIFO in its place is an empty file: nobody is waited for.
pub fn open_at(dir: impl AsFd, name: &str) -> io::Result<File> {
    Ok(File::from(rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?))
}

/// Opens a file that others may have put there. What is no regular file is an error at once.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")) }
}

/// The whole of a small file. What is longer than `most` bytes is an error of the kind `FileTooLarge`.
pub fn read_small(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Whether an error tells of the process or the system, which ran out of something, and not of a file.
#[must_use]
pub fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error).is_some_and(|errno| [Errno::MFILE, Errno::NFILE, Errno::NOMEM].contains(&errno))
}

/// Whether an error says that the file system knows no locks.
#[must_use]
pub fn has_no_locks(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error).is_some_and(|errno| [Errno::NOLCK, Errno::NOSYS, Errno::OPNOTSUPP, Errno::INVAL].contains(&errno))
}

/// Sets a file's time to now, which is how a writer tells gc that it still wants the blob.
pub fn touch_at(dir: impl AsFd, name: &str) -> io::Result<()> {
    let time = |nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) };
    Ok(rustix::fs::utimensat(dir, name, &times, AtFlags::empty())?)
}

/// Renames a file between two open directories, replacing what is there.
pub fn rename_at(from_dir: impl AsFd, from: &str, to_dir: impl AsFd, to: &str) -> io::Result<()> {
    Ok(rustix::fs::renameat(from_dir, from, to_dir, to)?)
}

/// Gives a file another name; fails when that name is taken. The old name is gone afterwards. (On a file system without links, what appears
/// there at the same moment is replaced.)
pub fn move_new_at(from_dir: impl AsFd, from: &str, to_dir: impl AsFd, to: &str) -> io::Result<()> {
    match rustix::fs::linkat(from_dir.as_fd(), from, to_dir.as_fd(), to, AtFlags::empty()) {
        Ok(()) => remove_at(from_dir, from),
        Err(rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) if stat_at(&to_dir, to)?.is_none() => rename_at(from_dir, from, to_dir, to),
        Err(error) => Err(error.into()),
    }
}

/// Removes a file; one that is gone already is fine.
pub fn remove_at(dir: impl AsFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until a directory's entries are on stable storage.
pub fn sync_dir(dir: impl AsFd) -> io::Result<()> {
    match rustix::fs::fsync(dir) {
        // Some file systems have no such notion for directories.
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until everything written to the directory's file system is on stable storage; false where the system has no such call.
pub fn sync_file_system(dir: impl AsFd) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    {
        rustix::fs::syncfs(dir)?;
        Ok(true)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = dir;
        Ok(false)
    }
}

/// Writes all pieces in order.
pub fn write_all_vectored(mut file: &File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut slices, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills all pieces in order from `offset` on; returns how many bytes there were until the pieces were full or the file ended.
pub fn read_vectored_at(file: &File, mut slices: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    IoSliceMut::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match rustix::io::preadv(file, slices, offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => {
                IoSliceMut::advance_slices(&mut slices, n);
                filled += n;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

/// What a read that must not wait for the disk finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Cached {
    /// So many bytes, until the pieces were full, the file ended, or the rest is not in memory.
    Bytes(usize),
    /// Nothing in memory.
    Nothing,
    /// The file system cannot say.
    Unknown,
}

/// As [`read_vectored_at`], but only what is in memory.
pub fn read_cached_at(file: &File, slices: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<Cached> {
    #[cfg(target_os = "linux")]
    match rustix::io::preadv2(file, slices, offset, rustix::io::ReadWriteFlags::NOWAIT) {
        Ok(n) => Ok(Cached::Bytes(n)),
        Err(rustix::io::Errno::AGAIN) => Ok(Cached::Nothing),
        Err(rustix::io::Errno::INTR | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(Cached::Unknown),
        Err(error) => Err(error.into()),
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, slices, offset);
        Ok(Cached::Unknown)
    }
}

/// Whether the end of a file is not in the system's memory. That one page is asked for, and nothing else: [`read_cached_at`] may have the disk
/// read much of what it does not find.
#[must_use]
pub fn is_cold(file: &File, len: u64) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{Advice, fadvise};
        let _ = fadvise(file, 0, None, Advice::Random);
        let end = read_cached_at(file, &mut [IoSliceMut::new(&mut [0])], len.saturating_sub(1));
        let _ = fadvise(file, 0, None, Advice::Normal);
        matches!(end, Ok(Cached::Nothing))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, len);
        false
    }
}

/// What the place and the length of memory must be multiples of, for files to be read into it directly: the blocks of any disk in use.
pub const DIRECT_UNIT: usize = 4096;

/// Reads a file from its start to its end, or until `memory` is full, without taking it into the system's own memory; None where the file
/// system does not do that.
pub fn read_directly(file: &File, memory: &mut [u8]) -> io::Result<Option<usize>> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{OFlags, fcntl_setfl};
        use rustix::io::Errno;
        if matches!(fcntl_setfl(file, OFlags::DIRECT), Err(Errno::INVAL)) {
            return Ok(None);
        }
        let mut filled = 0;
        // What was read ends within a block only where the file ends.
        while filled < memory.len() && filled.is_multiple_of(DIRECT_UNIT) {
            match rustix::io::pread(file, &mut memory[filled..], filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                Err(Errno::INVAL) => {
                    fcntl_setfl(file, OFlags::empty())?;
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(filled))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, memory);
        Ok(None)
    }
}

/// How many file descriptors this process may have.
#[must_use]
pub fn most_descriptors() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Asks the system to read the file before it is needed. It may decline.
pub fn read_ahead(file: &File) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::WillNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Two numbers that no other call in this process gets, nor one in another process that sees the same numbers of processes.
pub(crate) fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{}.{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Whether a file name is that of a temporary, ours or the reference's.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    let mut tail = name.rsplit('.');
    let number = |part: Option<&str>| part.is_some_and(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    number(tail.next()) && number(tail.next()) && tail.next() == Some("tmp")
}

/// A file that is being written; removed again unless it gets its final name.
pub struct Temporary<'a> {
    dir: BorrowedFd<'a>,
    name: String,
    placed: bool,
}

impl<'a> Temporary<'a> {
    /// Makes a new file beside `name`.
    pub fn create(dir: BorrowedFd<'a>, name: &str) -> io::Result<(Self, File)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        loop {
            let name = format!("{name}.tmp.{}", unique());
            match rustix::fs::openat(dir, &*name, flags, Mode::from_raw_mode(0o644)) {
                Ok(file) => return Ok((Self { dir, name, placed: false }, File::from(file))),
                // Of a process with the same number: one that died, or one in another container.
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until its data is on stable storage.
    pub fn sync(&self) -> io::Result<()> {
        open_at(self.dir, &self.name)?.sync_data()
    }

    /// Gives it the final name, in one step, replacing what is there.
    pub fn place(mut self, dir: impl AsFd, name: &str) -> io::Result<()> {
        rename_at(self.dir, &self.name, dir, name)?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.placed {
            // Nobody can be told here; what stays is recognised by its name and swept by gc.
            let _ = remove_at(self.dir, &self.name);
        }
    }
}

/// Writes a small file so that a reader sees the old content, the new one, or none; waits for stable storage where `durable`.
pub fn write_atomic(dir: BorrowedFd<'_>, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
    let (temporary, mut file) = Temporary::create(dir, name)?;
    file.write_all(bytes)?;
    if durable {
        file.sync_data()?;
    }
    drop(file);
    temporary.place(dir, name)?;
    if durable { sync_dir(dir) } else { Ok(()) }
}

/// As [`write_atomic`], durably, but fails where the name is taken. (Of two at once on a file system without links, the later one wins.)
pub fn write_new(dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (temporary, mut file) = Temporary::create(dir, name)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    drop(file);
    match rustix::fs::linkat(dir, &*temporary.name, dir, name, AtFlags::empty()) {
        Ok(()) => {}
        Err(rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) => temporary.place(dir, name)?,
        Err(error) => return Err(error.into()),
    }
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporaries_vanish_unless_placed() {
        let root = tempfile::tempdir().unwrap();
        let dir = open_dir(root.path()).unwrap();
        drop(Temporary::create(dir.as_fd(), "a").unwrap());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        write_atomic(dir.as_fd(), "a", b"1", true).unwrap();
        write_atomic(dir.as_fd(), "a", b"2", false).unwrap();
        assert_eq!(std::fs::read(root.path().join("a")).unwrap(), b"2");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_another_process_of_the_same_number_are_stepped_over() {
        let root = tempfile::tempdir().unwrap();
        let dir = open_dir(root.path()).unwrap();
        let (first, _) = Temporary::create(dir.as_fd(), "a").unwrap();
        let n: u64 = first.name.rsplit('.').next().unwrap().parse().unwrap();
        // Other tests count on meanwhile, so that more names are taken than the next one.
        for taken in n + 1..n + 1000 {
            std::fs::write(root.path().join(format!("a.tmp.{}.{taken}", std::process::id())), b"left").unwrap();
        }
        let (second, _) = Temporary::create(dir.as_fd(), "a").unwrap();
        assert!(second.name.rsplit('.').next().unwrap().parse::<u64>().unwrap() > n);
        drop((first, second));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 999);
    }

    #[test]
    fn temporaries_are_known_by_name() {
        assert!(is_temporary(&format!("ab.tmp.{}", unique())) && is_temporary("00.tmp.17.0"));
        for name in ["ab.zst", "a.tmp", "a.tmp.1", "a.tmp.x.1", "a.tmp.1.", "tmp.1.1.zst"] {
            assert!(!is_temporary(name), "{name}");
        }
    }

    #[test]
    fn names_are_taken_once() {
        let root = tempfile::tempdir().unwrap();
        let dir = open_dir(root.path()).unwrap();
        for name in ["a", "b"] {
            write_atomic(dir.as_fd(), name, name.as_bytes(), false).unwrap();
        }
        assert_eq!(move_new_at(&dir, "a", &dir, "b").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(write_new(dir.as_fd(), "a", b"new").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        write_new(dir.as_fd(), "d", b"new").unwrap();
        assert_eq!(std::fs::read(root.path().join("d")).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 3);
        move_new_at(&dir, "a", &dir, "c").unwrap();
        assert!(stat_at(&dir, "a").unwrap().is_none());
        assert_eq!(stat_at(&dir, "c").unwrap().unwrap().len, 1);
    }
}
