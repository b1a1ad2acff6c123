//! Frames that arrive from elsewhere are verified and stored as they came, without being encoded again.
//!
//! A task takes a few of them, so that their contents fill the lanes of a kernel, and writes them once all are sound. Files are read into
//! memory that the thread keeps. A frame's first bytes tell whether it is a float frame, whatever it was called where it came from; a handle
//! that writes none encodes its content anew.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self as stdio, IoSliceMut, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::BlobStore;
use super::dir::DirStore;
use super::frames::frame_digests;
use super::put::{Batch, Put, TASK_BLOBS};
use super::read::{StreamError, hash_content, streamed_too_large, undecodable};
use crate::codec::{self, Form, Framed, float};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::io;
use crate::pool::{self, Monitor};

/// Files up to this size are held in memory while they land; larger ones stream through.
const WHOLE_FILE_BYTES: usize = 16 << 20;
/// Bytes of files that a thread holds in order to verify them together: sixteen of 2 MiB and their headers.
const HELD_BYTES: usize = 33 << 20;
/// Files that share their syncs.
const GROUP_FILES: usize = 4096;

/// What became of a frame: whether it is new here, and what its group still has to do.
type Landed<'b> = (bool, (Digest, Put<'b>));

impl DirStore {
    /// Stores frames under their digests; returns how many were not there before.
    ///
    /// # Errors
    /// [`Error::Integrity`], at its index, for a frame that does not decode to its digest; it is not stored.
    pub fn land_frames(&self, items: &[(Digest, Framed<'_>)], monitor: &Monitor) -> Result<u64> {
        monitor.expect(items.len() as u64);
        let batch = Batch::new(self, items.len());
        let share = pool::share(items.len(), TASK_BLOBS);
        let task = |(task, items): (usize, &[(Digest, Framed<'_>)])| self.land_few(&batch, task * share, items, monitor);
        pool::install(|| {
            let landed: Vec<Vec<Landed<'_>>> = items.par_chunks(share).enumerate().map(task).collect::<Result<_>>()?;
            finish(&batch, landed)
        })
    }

    /// Lands what one task takes; the first is item `first`.
    fn land_few<'b>(&self, batch: &'b Batch<'_>, first: usize, items: &[(Digest, Framed<'_>)], monitor: &Monitor) -> Result<Vec<Landed<'b>>> {
        monitor.check()?;
        self.verify_foreign(items, |index, error| error.at(first + index))?;
        let land = |(index, (digest, frame)): (usize, &(Digest, Framed<'_>))| {
            let land = || {
                let put = match batch.find(digest)? {
                    Some(form) => Put::Found(form),
                    None => write_frame(batch, digest, frame)?,
                };
                monitor.advance(1, frame.bytes().len() as u64)?;
                Ok((matches!(put, Put::Written(..)), batch.settle(digest, put)?))
            };
            land().map_err(|error: Error| error.at(first + index))
        };
        items.iter().enumerate().map(land).collect()
    }

    /// Checks frames that came from elsewhere against their names, together; `tell` completes the error of an item.
    fn verify_foreign(&self, items: &[(Digest, Framed<'_>)], tell: impl Fn(usize, Error) -> Error) -> Result<()> {
        let frames: Vec<&Framed<'_>> = items.iter().map(|(_, frame)| frame).collect();
        let found = frame_digests(&frames, self.algorithm());
        items.iter().zip(found).enumerate().try_for_each(|(index, ((digest, _), found))| {
            let found = self.check_algorithm(digest).and_then(|()| found.map_err(|error| foreign(digest, error)));
            found.and_then(|found| matches(digest, found)).map_err(|error| tell(index, error))
        })
    }

    /// Stores the frames in other files under their digests, for example from another store's directory; returns how many were not there
    /// before, and the bytes of these frames. Blobs that are already here are not read.
    ///
    /// # Errors
    /// At their index: [`Error::BlobNotFound`] for a file that is missing or empty, [`Error::Integrity`] for one that does not decode to
    /// its digest.
    pub fn import_files(&self, items: &[(Digest, PathBuf)], monitor: &Monitor) -> Result<(u64, u64)> {
        thread_local!(static MEMORY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        monitor.expect(items.len() as u64);
        let batch = Batch::new(self, items.len());
        pool::install(|| {
            let (mut fresh, mut bytes) = (0, 0);
            for (at, group) in items.chunks(GROUP_FILES).enumerate() {
                let share = pool::share(group.len(), TASK_BLOBS);
                let task = |(task, items): (usize, &[(Digest, PathBuf)])| {
                    let import = Import { store: self, batch: &batch, first: at * GROUP_FILES + task * share, items, monitor };
                    MEMORY.with_borrow_mut(|memory| import.run(memory))
                };
                let imported: Vec<(u64, Vec<Landed<'_>>)> = group.par_chunks(share).enumerate().map(task).collect::<Result<_>>()?;
                bytes += imported.iter().map(|(bytes, _)| bytes).sum::<u64>();
                fresh += finish(&batch, imported.into_iter().map(|(_, landed)| landed).collect())?;
            }
            Ok((fresh, bytes))
        })
    }
}

/// The files that one task imports; the first is item `first`.
struct Import<'a, 'b> {
    store: &'a DirStore,
    batch: &'b Batch<'b>,
    first: usize,
    items: &'a [(Digest, PathBuf)],
    monitor: &'a Monitor,
}

impl<'b> Import<'_, 'b> {
    /// Reads as many files as `memory` holds, verifies them together, writes them, and so on; returns the bytes that were read.
    fn run(&self, memory: &mut Vec<u8>) -> Result<(u64, Vec<Landed<'b>>)> {
        if memory.is_empty() {
            // Takes no memory before it is filled.
            *memory = vec![0; HELD_BYTES];
        }
        let mut landed = Vec::with_capacity(self.items.len());
        let mut held: Vec<(usize, Range<usize>)> = Vec::with_capacity(self.items.len());
        let (mut used, mut bytes) = (0, 0);
        for (index, (digest, path)) in self.items.iter().enumerate() {
            let at = |error: Error| error.at(self.first + index);
            self.monitor.check()?;
            if let Some(form) = self.store.check_algorithm(digest).and_then(|()| self.batch.find(digest)).map_err(at)? {
                landed.push((false, self.batch.settle(digest, Put::Found(form)).map_err(at)?));
                self.monitor.advance(1, 0)?;
                continue;
            }
            let (file, len) = open(digest, path).map_err(at)?;
            bytes += len;
            match usize::try_from(len) {
                Ok(len) if len <= WHOLE_FILE_BYTES => {
                    if used + len > HELD_BYTES {
                        self.write(&held, memory, &mut landed)?;
                        held.clear();
                        used = 0;
                    }
                    let place = &mut memory[used..used + len];
                    let n = io::read_vectored_at(&file, &mut [IoSliceMut::new(place)], 0).map_err(|error| at(Error::io("read", path)(error)))?;
                    held.push((index, used..used + n));
                    used += n;
                }
                _ => {
                    let put = self.stream(digest, &file, path).map_err(at)?;
                    landed.push((true, self.batch.settle(digest, put).map_err(at)?));
                    self.monitor.advance(1, len)?;
                }
            }
        }
        self.write(&held, memory, &mut landed)?;
        Ok((bytes, landed))
    }

    /// Verifies the frames that are held, and writes them.
    fn write(&self, held: &[(usize, Range<usize>)], memory: &[u8], landed: &mut Vec<Landed<'b>>) -> Result<()> {
        let frames: Vec<(Digest, Framed<'_>)> =
            held.iter().map(|(index, range)| (self.items[*index].0, Framed::of(&memory[range.clone()]))).collect();
        self.store.verify_foreign(&frames, |at, error| {
            let index = held[at].0;
            located(error, &self.items[index].1).at(self.first + index)
        })?;
        for ((index, _), (digest, frame)) in held.iter().zip(frames) {
            let put = write_frame(self.batch, &digest, &frame).and_then(|put| self.batch.settle(&digest, put));
            landed.push((true, put.map_err(|error| error.at(self.first + index))?));
            self.monitor.advance(1, frame.bytes().len() as u64)?;
        }
        Ok(())
    }

    /// Copies a large file while it is decoded and hashed.
    fn stream(&self, digest: &Digest, file: &File, path: &Path) -> Result<Put<'b>> {
        let mut head = [0; codec::FRAME_HEADER_MAX];
        let filled = io::read_vectored_at(file, &mut [IoSliceMut::new(&mut head)], 0).map_err(Error::io("read", path))?;
        let form = Form::of(&head[..filled]);
        if form == Form::Float && !self.batch.writes_floats() {
            let mut frame = Vec::new();
            let mut file = file.take(codec::stored_len(float::MAX_CONTENT));
            file.read_to_end(&mut frame).map_err(Error::io("read", path))?;
            let item = (*digest, Framed::of(&frame));
            self.store.verify_foreign(std::slice::from_ref(&item), |_, error| located(error, path))?;
            return write_frame(self.batch, digest, &item.1);
        }
        let (temporary, mut copy) = self.batch.create(digest, form)?;
        let tee = Tee { from: file, to: &mut copy, failed: None };
        let mut tee = stdio::BufReader::with_capacity(1 << 20, tee);
        let result = hash_content(form, &mut tee, self.store.algorithm(), &mut |_| self.monitor.check().map_err(stdio::Error::other));
        if let Some(error) = tee.get_mut().failed.take() {
            return Err(Error::io("write", self.store.form_path(digest, form))(error));
        }
        let (found, _) = result.map_err(|error| match error {
            StreamError::Read(error) => Error::io("read", path)(error),
            StreamError::Write(_) => Error::Cancelled,
            other => located(foreign(digest, other), path),
        })?;
        matches(digest, found).map_err(|error| located(error, path))?;
        Ok(Put::Written(temporary, form))
    }
}

/// Opens the file of a blob; tells its length.
fn open(digest: &Digest, path: &Path) -> Result<(File, u64)> {
    let absent = || Error::BlobNotFound { digest: digest.to_string() };
    let file = io::open_regular(path).map_err(|error| match error.kind() {
        stdio::ErrorKind::NotFound => absent(),
        _ => Error::io("open", path)(error),
    })?;
    let len = file.metadata().map_err(Error::io("stat", path))?.len();
    if len == 0 { Err(absent()) } else { Ok((file, len)) }
}

/// Writes a frame that has been verified.
fn write_frame<'b>(batch: &'b Batch<'_>, digest: &Digest, frame: &Framed<'_>) -> Result<Put<'b>> {
    let form = frame.form();
    if form == Form::Float && !batch.writes_floats() {
        let content = frame.decode(float::MAX_CONTENT).map_err(|error| foreign(digest, error.into()))?;
        return batch.write_content(digest, &content);
    }
    batch.write(digest, form, |mut file| file.write_all(frame.bytes()))
}

fn finish(batch: &Batch<'_>, tasks: Vec<Vec<Landed<'_>>>) -> Result<u64> {
    let fresh = tasks.iter().flatten().filter(|(fresh, _)| *fresh).count() as u64;
    batch.commit(tasks.into_iter().flatten().map(|(_, put)| put).collect())?;
    Ok(fresh)
}

fn matches(digest: &Digest, found: Digest) -> Result<()> {
    if found == *digest { Ok(()) } else { Err(Error::integrity(digest, format!("its bytes hash to {found}"))) }
}

fn foreign(digest: &Digest, error: StreamError) -> Error {
    match error {
        StreamError::Malformed(reason) => Error::integrity(digest, undecodable(&reason)),
        StreamError::TooLarge => streamed_too_large(digest),
        StreamError::Read(error) | StreamError::Write(error) => Error::io("read", "frame")(error),
    }
}

/// Tells in an integrity error which file it was.
fn located(error: Error, path: &Path) -> Error {
    match error {
        Error::Integrity { digest, reason, .. } => Error::Integrity { digest, reason, path: Some(path.to_path_buf()) },
        other => other,
    }
}

/// Writes everything that is read.
struct Tee<'a> {
    from: &'a File,
    to: &'a mut File,
    failed: Option<stdio::Error>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> stdio::Result<usize> {
        let n = self.from.read(buffer)?;
        if let Err(error) = self.to.write_all(&buffer[..n]) {
            self.failed = Some(error);
            return Err(stdio::Error::other("the copy failed"));
        }
        Ok(n)
    }
}
