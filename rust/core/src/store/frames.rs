//! Stored frames as they are, for transfers: what is sent is what is stored, after it was verified.
//!
//! A task verifies a few frames together, so that their contents fill the lanes of a kernel. The content of a stored frame is hashed
//! where it lies in the frame; others are decoded into memory that the thread keeps.

use std::cell::RefCell;
use std::io::IoSliceMut;
use std::mem;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::BlobStore;
use super::dir::DirStore;
use super::put::{Batch, TASK_BLOBS};
use super::read::{BlobReader, StreamError, hash_content, streamed_too_large, too_large, undecodable};
use crate::codec::{self, DecodeError, Form, Framed};
use crate::digest::{self, Algorithm, Digest};
use crate::error::{Error, Result};
use crate::io::Cached;
use crate::pool::{self, Monitor};
use crate::{io, limits};

/// Content bytes that a thread decodes before it hashes them together. A content that has more is decoded and hashed piece by piece.
const DECODED_BYTES: usize = 32 << 20;

/// Files of so many bytes that are not in memory are checked without being taken there: one request each keeps a disk busy, nothing is copied,
/// and what others have in memory stays.
const DIRECT_BYTES: usize = 256 << 10;

impl DirStore {
    /// Bytes of the frames as they are stored; none is read.
    ///
    /// # Errors
    /// [`Error::BlobNotFound`], at its index.
    pub fn frame_sizes(&self, digests: &[Digest]) -> Result<Vec<u64>> {
        let batch = Batch::new(self, digests.len());
        let size = |(index, digest): (usize, &Digest)| {
            let found = self.find_file(&batch, digest).and_then(|found| found.ok_or_else(|| self.absent(digest)));
            found.map(|(_, len)| len).map_err(|error| error.at(index))
        };
        pool::install(|| digests.par_iter().enumerate().with_min_len(64).map(size).collect())
    }

    /// The same for frames that are to be read into memory.
    ///
    /// # Errors
    /// Also [`Error::Limit`] for a frame that is larger than that of any blob of [`limits::BLOB_IN_MEMORY_BYTES`] need be, at its index.
    pub fn frame_lens(&self, digests: &[Digest]) -> Result<Vec<usize>> {
        let most = codec::stored_len(limits::BLOB_IN_MEMORY_BYTES);
        let len = |(index, size)| match usize::try_from(size) {
            Ok(len) if size <= most => Ok(len),
            _ => Err(too_large(&digests[index]).at(index)),
        };
        self.frame_sizes(digests)?.into_iter().enumerate().map(len).collect()
    }

    /// Those of the blobs that lie in float frames. Where the store has none, nothing is looked at.
    pub fn float_blobs(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        if !self.look_for_floats()? {
            return Ok(Vec::new());
        }
        let batch = Batch::new(self, digests.len());
        let float = |(index, digest): (usize, &Digest)| match self.find_file(&batch, digest) {
            Ok(found) => found.filter(|(form, _)| *form == Form::Float).map(|_| Ok(*digest)),
            Err(error) => Some(Err(error.at(index))),
        };
        pool::install(|| digests.par_iter().enumerate().with_min_len(64).filter_map(float).collect())
    }

    /// Reads frames as they are stored and verifies them; returns what failed, in order. Each goes into the memory that is asked for when its
    /// turn comes, which has the length that [`DirStore::frame_lens`] told.
    ///
    /// What failed may be [`Error::Changed`]: a frame of another length has taken the place of the one that was there.
    pub fn read_frames<'a, M>(&self, items: Vec<(Digest, M)>, monitor: &Monitor) -> Vec<(usize, Error)>
    where
        M: FnOnce() -> &'a mut [u8] + Send,
    {
        let batch = Batch::new(self, items.len());
        let share = pool::share(items.len(), TASK_BLOBS);
        let task = |(task, items): (usize, Vec<(Digest, M)>)| {
            let failed = self.read_few_frames(&batch, items, monitor);
            failed.into_iter().map(move |(index, error)| (task * share + index, error))
        };
        pool::install(|| items.into_par_iter().chunks(share).enumerate().flat_map_iter(task).collect())
    }

    fn read_few_frames<'a, M>(&self, batch: &Batch<'_>, items: Vec<(Digest, M)>, monitor: &Monitor) -> Vec<(usize, Error)>
    where
        M: FnOnce() -> &'a mut [u8],
    {
        let mut failed = Vec::new();
        let mut wait = Vec::new();
        let mut read = Vec::with_capacity(items.len());
        for (index, (digest, memory)) in items.into_iter().enumerate() {
            let open = || {
                monitor.check()?;
                let mut reader = self.open_blob_for(batch, &digest)?;
                let (len, frame) = (reader.file_len()?, memory());
                if len != frame.len() as u64 {
                    return Err(Error::Changed { path: reader.path(), reason: format!("its frame has {len} bytes, not {}", frame.len()) });
                }
                let filled = reader.fill_cached_frame(frame)?;
                if !filled {
                    io::read_ahead(&reader.file);
                }
                Ok((filled, reader, frame))
            };
            match open() {
                Ok((true, reader, frame)) => read.push((index, reader, &*frame)),
                Ok((false, reader, frame)) => wait.push((index, reader, frame)),
                Err(error) => failed.push((index, error)),
            }
        }
        self.verify_frames(read, wait, monitor, |index, found| {
            failed.extend(found.and_then(|len| monitor.advance(1, len)).err().map(|error| (index, error)));
        });
        failed.sort_unstable_by_key(|(index, _)| *index);
        failed
    }

    /// Verifies frames together: those that were read, and those that are still to be read, for which the disk has been asked, so that it has
    /// many requests at once. `tell` gets the length of each that is sound, by its index.
    fn verify_frames<'s, 'f>(
        &self,
        mut read: Vec<(usize, BlobReader<'s>, &'f [u8])>,
        wait: Vec<(usize, BlobReader<'s>, &'f mut [u8])>,
        monitor: &Monitor,
        mut tell: impl FnMut(usize, Result<u64>),
    ) {
        for (index, reader, frame) in wait {
            match monitor.check().and_then(|()| reader.fill_frame(frame)) {
                Ok(()) => read.push((index, reader, &*frame)),
                Err(error) => tell(index, Err(error)),
            }
        }
        let frames: Vec<Framed<'_>> = read.iter().map(|(_, reader, frame)| Framed::in_form(reader.form, frame)).collect();
        let digests = frame_digests(&frames.iter().collect::<Vec<_>>(), self.algorithm());
        for ((index, reader, frame), found) in read.iter().zip(digests) {
            tell(*index, reader.accept_frame(found).map(|()| frame.len() as u64));
        }
    }

    /// Verifies a few files, each in the form and of the length that it was found with, all in memory at once; false for one that is gone.
    /// `waiting` is called when the disk has been asked for some of them, before they are read.
    pub(crate) fn check_files(&self, files: &[(Digest, Form, usize)], waiting: impl FnOnce(), monitor: &Monitor) -> Vec<Result<bool>> {
        thread_local!(static FRAMES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        FRAMES.with_borrow_mut(|memory| {
            let len = files.iter().map(|(.., len)| len.next_multiple_of(io::DIRECT_UNIT)).sum::<usize>() + io::DIRECT_UNIT;
            if memory.len() < len {
                *memory = io::map::huge_zeros(len);
            }
            let unaligned = memory.as_ptr().align_offset(io::DIRECT_UNIT);
            self.check_into(files, &mut memory[unaligned..], waiting, monitor)
        })
    }

    fn check_into(&self, files: &[(Digest, Form, usize)], mut free: &mut [u8], waiting: impl FnOnce(), monitor: &Monitor) -> Vec<Result<bool>> {
        let mut checked: Vec<Result<bool>> = files.iter().map(|_| Ok(true)).collect();
        let (mut large, mut wait) = (Vec::new(), Vec::new());
        let mut read = Vec::with_capacity(files.len());
        for (index, (digest, form, len)) in files.iter().enumerate() {
            let (memory, rest) = mem::take(&mut free).split_at_mut(len.next_multiple_of(io::DIRECT_UNIT));
            free = rest;
            let open = || {
                monitor.check()?;
                let Some(mut reader) = self.open_file(digest, *form)? else { return Ok(None) };
                // Written anew since it was found.
                if reader.file_len()? != *len as u64 {
                    return reader.read_frame().map(|_| Some((true, None)));
                }
                if *len >= DIRECT_BYTES && io::is_cold(&reader.file, *len as u64) {
                    return Ok(Some((false, Some((reader, memory)))));
                }
                Ok(Some((reader.fill_cached_frame(&mut memory[..*len])?, Some((reader, memory)))))
            };
            match open() {
                Ok(Some((true, Some((reader, memory))))) => read.push((index, reader, &memory[..*len])),
                Ok(Some((false, Some((reader, memory))))) if *len >= DIRECT_BYTES => large.push((index, reader, memory)),
                Ok(Some((false, Some((reader, memory))))) => {
                    io::read_ahead(&reader.file);
                    wait.push((index, reader, &mut memory[..*len]));
                }
                Ok(Some((_, None))) => {}
                Ok(None) => checked[index] = Ok(false),
                Err(error) => checked[index] = Err(error),
            }
        }
        if !wait.is_empty() {
            waiting();
        }
        for (index, reader, memory) in large {
            let len = files[index].2;
            match monitor.check().and_then(|()| reader.fill_directly(memory, len)) {
                Ok(true) => read.push((index, reader, &memory[..len])),
                Ok(false) => {
                    io::read_ahead(&reader.file);
                    wait.push((index, reader, &mut memory[..len]));
                }
                Err(error) => checked[index] = Err(error),
            }
        }
        self.verify_frames(read, wait, monitor, |index, found| checked[index] = found.map(|_| true));
        checked
    }

    /// Asks the disk for a file that will be checked.
    pub(crate) fn ask_for(&self, digest: &Digest, form: Form, len: u64) {
        if len < DIRECT_BYTES as u64
            && let Ok(Some(reader)) = self.open_file(digest, form)
        {
            io::read_ahead(&reader.file);
        }
    }

    /// Verifies a blob of any size, piece by piece; returns the bytes of its frame.
    ///
    /// # Errors
    /// [`Error::BlobNotFound`], [`Error::Integrity`].
    pub fn check_blob(&self, digest: &Digest, monitor: &Monitor) -> Result<u64> {
        let mut reader = self.open_blob_for(&Batch::new(self, 1), digest)?;
        let len = reader.file_len()?;
        let go_on = &mut |piece: &[u8]| monitor.advance(0, piece.len() as u64).map_err(std::io::Error::other);
        match hash_content(reader.form, &reader.file, self.algorithm(), go_on) {
            Err(StreamError::Write(_)) => Err(Error::Cancelled),
            found => reader.accept_frame(found.map(|(found, _)| found)).map(|()| len),
        }
    }
}

impl BlobReader<'_> {
    /// Fills `frame` if that needs no waiting for the disk.
    fn fill_cached_frame(&self, frame: &mut [u8]) -> Result<bool> {
        if self.store.tells_cached.load(Ordering::Relaxed) {
            match io::read_cached_at(&self.file, &mut [IoSliceMut::new(frame)], 0).map_err(|error| self.io(error))? {
                Cached::Bytes(n) => return Ok(n == frame.len()),
                Cached::Nothing => return Ok(false),
                Cached::Unknown => self.store.tells_cached.store(false, Ordering::Relaxed),
            }
        }
        self.fill_frame(frame)?;
        Ok(true)
    }

    /// Fills the first `len` bytes of `memory`, whose length and place are those that [`io::read_directly`] needs; false where that cannot be.
    fn fill_directly(&self, memory: &mut [u8], len: usize) -> Result<bool> {
        match io::read_directly(&self.file, memory).map_err(|error| self.io(error))? {
            Some(n) if n < len => Err(self.condemn(&format!("its file ends after {n} bytes"))),
            found => Ok(found.is_some()),
        }
    }

    fn fill_frame(&self, frame: &mut [u8]) -> Result<()> {
        let n = io::read_vectored_at(&self.file, &mut [IoSliceMut::new(frame)], 0).map_err(|error| self.io(error))?;
        if n == frame.len() { Ok(()) } else { Err(self.condemn(&format!("its file ends after {n} bytes"))) }
    }

    /// Settles what a frame was found to hold.
    pub(super) fn accept_frame(&self, found: Result<Digest, StreamError>) -> Result<()> {
        match found {
            Ok(found) if found == self.digest => Ok(()),
            Ok(found) => Err(self.condemn(&format!("its bytes hash to {found}"))),
            Err(StreamError::Malformed(reason)) => Err(self.condemn(&undecodable(&reason))),
            Err(StreamError::TooLarge) => Err(streamed_too_large(&self.digest)),
            Err(StreamError::Read(error) | StreamError::Write(error)) => Err(self.io(error)),
        }
    }
}

/// A content that is about to be hashed.
enum Content<'a> {
    /// Of a stored frame, where it lies in that.
    Stored(&'a [&'a [u8]]),
    /// Decoded.
    Decoded([&'a [u8]; 1]),
    /// To be decoded, to so many bytes.
    Coded(usize),
    /// Too long for that, or of a length that its frame does not tell.
    Streamed,
    Failed(StreamError),
}

impl<'a> Content<'a> {
    fn of(frame: &'a Framed<'_>) -> Self {
        if let Some(blocks) = frame.blocks() {
            return Self::Stored(blocks);
        }
        match frame.form().content_len(frame.bytes()) {
            Ok(len) => len.and_then(|len| usize::try_from(len).ok()).filter(|len| *len <= DECODED_BYTES).map_or(Self::Streamed, Self::Coded),
            Err(error) => Self::Failed(error.into()),
        }
    }

    /// Its pieces, where it is in memory.
    fn pieces(&self) -> Option<&[&[u8]]> {
        match self {
            Self::Stored(blocks) => Some(blocks),
            Self::Decoded(content) => Some(content),
            _ => None,
        }
    }

    /// Bytes that it is to be decoded to.
    const fn coded(&self) -> usize {
        if let Self::Coded(len) = self { *len } else { 0 }
    }
}

impl From<DecodeError> for StreamError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Malformed(reason) => Self::Malformed(reason),
            DecodeError::TooLarge => Self::TooLarge,
        }
    }
}

/// The digests of the contents of frames in memory, hashed together.
pub(super) fn frame_digests(frames: &[&Framed<'_>], algorithm: Algorithm) -> Vec<Result<Digest, StreamError>> {
    thread_local!(static DECODED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
    let mut digests = Vec::with_capacity(frames.len());
    DECODED.with_borrow_mut(|memory| {
        while digests.len() < frames.len() {
            digests.extend(first_digests(&frames[digests.len()..], algorithm, memory));
        }
    });
    digests
}

/// The same for at least the first of them, and as many as can be decoded into `memory` together.
fn first_digests(frames: &[&Framed<'_>], algorithm: Algorithm, memory: &mut Vec<u8>) -> Vec<Result<Digest, StreamError>> {
    if memory.is_empty() {
        // Takes no memory before it is filled.
        *memory = vec![0; DECODED_BYTES];
    }
    let mut bytes = 0;
    let fits = |content: &Content<'_>| {
        bytes += content.coded();
        bytes <= DECODED_BYTES
    };
    let mut contents: Vec<Content<'_>> = frames.iter().map(|frame| Content::of(frame)).take_while(fits).collect();
    let mut free = &mut memory[..];
    for (content, frame) in contents.iter_mut().zip(frames) {
        if let Content::Coded(len) = *content {
            let (out, rest) = mem::take(&mut free).split_at_mut(len);
            free = rest;
            *content = match frame.form().decode_into(frame.bytes(), out) {
                Ok(()) => Content::Decoded([out]),
                Err(error) => Content::Failed(error.into()),
            };
        }
    }
    let pieces: Vec<&[&[u8]]> = contents.iter().filter_map(Content::pieces).collect();
    let mut hashed = digest::hash_pieces(algorithm, &pieces).into_iter();
    let settle = |(content, frame): (Content<'_>, &&Framed<'_>)| match content {
        Content::Stored(_) | Content::Decoded(_) => Ok(hashed.next().expect("one for each")),
        Content::Failed(error) => Err(error),
        Content::Coded(_) | Content::Streamed => hash_content(frame.form(), frame.bytes(), algorithm, &mut |_| Ok(())).map(|(digest, _)| digest),
    };
    contents.into_iter().zip(frames).map(settle).collect()
}
