//! Memory that is mapped: of a file that several processes share, or of nobody else.
#![expect(unsafe_code, reason = "mapped memory is reached by pointer")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Bytes of the smallest page that a system maps.
const SYSTEM_PAGE: usize = 4096;
/// Less than this is a part of memory that others use too.
#[cfg(target_os = "linux")]
const HUGE_PAGE: usize = 2 << 20;

/// A mapping, all of whose memory is there.
pub(crate) struct Map {
    start: NonNull<u8>,
    len: usize,
    /// The process that mapped it.
    owner: u32,
}

// SAFETY: the memory belongs to no thread.
unsafe impl Send for Map {}
// SAFETY: it is reached through raw pointers only, whose users answer for what they do with them.
unsafe impl Sync for Map {}

impl Map {
    /// Memory of this process. A forked child has none of it, so that nothing is copied when the parent writes.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at a place that the system chooses touches no memory that is in use.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)? };
        let map = Self::of(start, len);
        map.touch(true)?;
        #[cfg(target_os = "linux")]
        // SAFETY: nothing is unmapped here; in a child, whoever holds the map has to look whether it is one.
        unsafe {
            rustix::mm::madvise(start, len, Advice::LinuxDontFork)?;
        }
        Ok(map)
    }

    /// The first `len` bytes of a file, which has to have them on its file system ([`reserve`]) and to keep its length.
    pub(crate) fn of_file(file: &File, len: usize, writable: bool) -> io::Result<Self> {
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: as above.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0)? };
        let map = Self::of(start, len);
        map.touch(writable)?;
        Ok(map)
    }

    fn of(start: *mut std::ffi::c_void, len: usize) -> Self {
        Self { start: NonNull::new(start.cast()).expect("nothing is mapped at 0"), len, owner: std::process::id() }
    }

    /// Asks for huge pages, and has the system find all memory now rather than at the first access to each page.
    fn touch(&self, writable: bool) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            let start = self.start.as_ptr().cast();
            // SAFETY: neither changes what the memory holds.
            unsafe {
                // Refused where the system was built without them.
                let _ = rustix::mm::madvise(start, self.len, Advice::LinuxHugepage);
                match rustix::mm::madvise(start, self.len, if writable { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead }) {
                    // Older than Linux 5.14.
                    Err(rustix::io::Errno::INVAL) => {}
                    done => return Ok(done?),
                }
            }
        }
        for at in (0..self.len).step_by(SYSTEM_PAGE) {
            // SAFETY: within the mapping, which no one else has yet; another process may read the same byte, which does not change.
            unsafe {
                let byte = self.start.as_ptr().add(at);
                let value = byte.read_volatile();
                if writable {
                    byte.write_volatile(value);
                }
            }
        }
        Ok(())
    }

    /// Where `len` bytes from `at` on lie, which are in the mapping.
    pub(crate) fn place(&self, at: usize, len: usize) -> NonNull<u8> {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len), "{len} bytes at {at} of {}", self.len);
        // SAFETY: just checked.
        unsafe { self.start.add(at) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // In a forked child, something else may be in the place of what it did not inherit.
        if self.owner == std::process::id() {
            // SAFETY: whoever has a pointer into it borrows the map or its owner. An error would mean that it is not mapped.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}

/// Zeros, in huge pages where they fill some and the system has them: a disk that reads into those needs few requests, which may double what
/// it reads in a second.
pub(crate) fn huge_zeros(len: usize) -> Vec<u8> {
    let mut memory: Vec<u8> = Vec::with_capacity(len);
    #[cfg(target_os = "linux")]
    if len >= HUGE_PAGE {
        let spare = memory.spare_capacity_mut();
        let unaligned = spare.as_ptr().align_offset(SYSTEM_PAGE);
        if let Some(pages) = spare.get_mut(unaligned..) {
            // SAFETY: it changes nothing that the memory holds. It is refused where the system was built without huge pages.
            let _ = unsafe { rustix::mm::madvise(pages.as_mut_ptr().cast(), pages.len(), Advice::LinuxHugepage) };
        }
    }
    memory.resize(len, 0);
    memory
}

/// Makes a file this long, with all its blocks taken on the file system: a mapping of it never runs out of space.
pub(crate) fn reserve(file: &File, len: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    loop {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::OPNOTSUPP) => break,
            Err(error) => return Err(error.into()),
        }
    }
    // What is there stays: only what is missing is written.
    let zeros = vec![0; 1 << 20];
    let mut at = file.metadata()?.len();
    while at < len {
        let piece = usize::try_from(len - at).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all_at(&zeros[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}
