//! Reading blobs from a directory: always verified, into the caller's buffer wherever possible.

use std::cell::RefCell;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::dir::DirStore;
use super::frames::frame_digests;
use super::put::{Batch, TASK_BLOBS};
use super::{BlobStore, wrong_length};
use crate::codec::{self, DecodeError, Form, Found, Framed, float};
use crate::digest::{self, Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::io::Cached;
use crate::pool::{self, Monitor};
use crate::{io, layout, limits};

/// A thread keeps memory of this size from one compressed blob to the next.
const KEPT_BYTES: usize = 16 << 20;

/// A blob that was found and opened, and is not read yet.
pub struct BlobReader<'a> {
    pub(super) store: &'a DirStore,
    pub(super) digest: Digest,
    pub(super) file: File,
    pub(super) form: Form,
    head: Option<Head>,
    /// Known to be no stored frame of the length that is asked for.
    other: bool,
}

/// What a file's length and first bytes tell.
#[derive(Clone, Copy)]
struct Head {
    file_len: u64,
    content_len: Option<u64>,
}

impl DirStore {
    /// Opens a blob; its length is known before it is read.
    pub fn open_blob(&self, digest: &Digest) -> Result<BlobReader<'_>> {
        let mut reader = self.open_blob_for(&Batch::new(self, 1), digest)?;
        let file_len = reader.file_len()?;
        let mut head = [0; codec::FRAME_HEADER_MAX];
        let filled = io::read_vectored_at(&reader.file, &mut [IoSliceMut::new(&mut head)], 0).map_err(|error| reader.io(error))?;
        let content_len = reader.form.content_len_hint(&head[..filled]).filter(|len| *len <= limits::BLOB_IN_MEMORY_BYTES);
        reader.head = Some(Head { file_len, content_len });
        Ok(reader)
    }

    /// Opens a blob whose length the caller knows.
    pub(super) fn open_blob_for(&self, batch: &Batch<'_>, digest: &Digest) -> Result<BlobReader<'_>> {
        self.check_algorithm(digest)?;
        batch.look(digest, |dir, at, form| self.open_at(dir, at, digest, form))?.ok_or_else(|| self.absent(digest))
    }

    /// Opens the file that holds a blob in this form; None when there is none.
    pub(crate) fn open_file(&self, digest: &Digest, form: Form) -> Result<Option<BlobReader<'_>>> {
        self.open_at(self.blobs.as_fd(), &layout::blob(digest, form), digest, form)
    }

    fn open_at(&self, dir: BorrowedFd<'_>, at: &str, digest: &Digest, form: Form) -> Result<Option<BlobReader<'_>>> {
        match io::open_at(dir, at) {
            Ok(file) => Ok(Some(BlobReader { store: self, digest: *digest, file, form, head: None, other: form == Form::Float })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open", self.form_path(digest, form))(error)),
        }
    }

    pub(super) fn absent(&self, digest: &Digest) -> Error {
        self.counters.misses.add(1);
        Error::BlobNotFound { digest: digest.to_string() }
    }

    /// Reads a batch, each blob into the buffer beside it; returns what failed, in order.
    pub(super) fn read_batch(&self, items: &mut [(Digest, &mut [u8])], monitor: &Monitor) -> Vec<(usize, Error)> {
        let batch = Batch::new(self, items.len());
        let share = pool::share(items.len(), TASK_BLOBS);
        let task = |(task, items): (usize, &mut [(Digest, &mut [u8])])| {
            let opened = items.iter_mut().map(|(digest, out)| {
                monitor.check()?;
                Ok((self.open_blob_for(&batch, digest)?, &mut **out))
            });
            let failed = self.read_opened(opened, monitor);
            failed.into_iter().map(move |(index, error)| (task * share + index, error))
        };
        pool::install(|| items.par_chunks_mut(share).enumerate().flat_map_iter(task).collect())
    }

    /// Reads a few blobs, each into the buffer beside it, and verifies them together; returns what failed, those that were not even opened
    /// among it, in order.
    pub fn read_opened<'a>(&self, blobs: impl Iterator<Item = Result<(BlobReader<'a>, &'a mut [u8])>>, monitor: &Monitor) -> Vec<(usize, Error)> {
        let mut failed = Vec::new();
        let mut wait = Vec::new();
        let mut filled: Vec<(usize, Digest, Form, &mut [u8])> = Vec::with_capacity(TASK_BLOBS);
        for (index, blob) in blobs.enumerate() {
            match blob.and_then(|(mut reader, out)| Ok((reader.fill_cached(out)?, reader, out))) {
                Ok((true, reader, out)) => filled.push((index, reader.digest, reader.form, out)),
                Ok((false, reader, out)) => wait.push((index, reader, out)),
                Err(error) => failed.push((index, error)),
            }
        }
        // All that is not in memory has been asked for by now, so that the disk has many requests at once.
        for (index, mut reader, out) in wait {
            match monitor.check().and_then(|()| reader.fill(out)) {
                Ok(()) => filled.push((index, reader.digest, reader.form, out)),
                Err(error) => failed.push((index, error)),
            }
        }
        let contents: Vec<&[u8]> = filled.iter().map(|(.., out)| &**out).collect();
        let mut bytes = 0;
        for ((index, digest, form, out), found) in filled.iter().zip(digest::hash_many(self.algorithm(), &contents)) {
            match self.accept(digest, *form, found, out.len() as u64) {
                Ok(()) => bytes += out.len() as u64,
                Err(error) => failed.push((*index, error)),
            }
        }
        if let Err(error) = monitor.advance(filled.len() as u64, bytes)
            && let Some((index, ..)) = filled.last()
        {
            // Each index stands there once.
            failed.retain(|(failed, _)| failed != index);
            failed.push((*index, error));
        }
        failed.sort_unstable_by_key(|(index, _)| *index);
        failed
    }

    /// Ends a read whose content hashes to `found`.
    fn accept(&self, digest: &Digest, form: Form, found: Digest, len: u64) -> Result<()> {
        if found != *digest {
            return Err(self.condemn(digest, form, &format!("its bytes hash to {found}")));
        }
        self.counters.hits.add(1);
        self.counters.bytes_read.add(len);
        Ok(())
    }

    /// The stored frame as it is, after its content was verified.
    pub fn read_frame(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.open_blob_for(&Batch::new(self, 1), digest)?.read_frame()
    }

    /// Moves a corrupt blob out of the way and tells what was wrong with it.
    ///
    /// Between reading and moving somebody may have healed it: what was moved is therefore read again, and goes back if it is sound.
    pub(crate) fn condemn(&self, digest: &Digest, form: Form, reason: &str) -> Error {
        self.counters.corrupt.add(1);
        let path = self.form_path(digest, form);
        let moved = || -> std::io::Result<()> {
            let dir = self.root.join(layout::QUARANTINE);
            std::fs::create_dir_all(&dir)?;
            let dir = io::open_dir(&dir)?;
            let (name, away) = (layout::blob(digest, form), format!("{}.{}", digest.hex(), io::unique()));
            io::rename_at(&self.blobs, &name, &dir, &away)?;
            let content = hash_content(form, io::open_at(&dir, &away)?, digest.algorithm(), &mut |_| Ok(()));
            if content.is_ok_and(|(found, _)| found == *digest) {
                match io::move_new_at(&dir, &away, &self.blobs, &name) {
                    // Healed twice; one copy is enough.
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => io::remove_at(&dir, &away)?,
                    other => other?,
                }
            }
            Ok(())
        };
        match moved() {
            Ok(()) => log::warn!("blob {digest} is corrupt ({reason}); moved to {}", layout::QUARANTINE),
            // Another reader was quicker.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("blob {digest} is corrupt ({reason}) and cannot be moved away: {error}"),
        }
        Error::Integrity { digest: digest.to_string(), reason: reason.to_owned(), path: Some(path) }
    }
}

pub(super) fn undecodable(reason: &str) -> String {
    format!("its frame cannot be decoded: {reason}")
}

pub(super) fn too_large(digest: &Digest) -> Error {
    Error::Limit { what: format!("blob {digest}"), name: "BLOB_IN_MEMORY_BYTES", limit: limits::BLOB_IN_MEMORY_BYTES }
}

impl BlobReader<'_> {
    /// The content's length as the frame tells it; None when it does not, or when it is too long for one buffer. Only reading shows whether
    /// it is true.
    #[must_use]
    pub fn len(&self) -> Option<u64> {
        self.head?.content_len
    }

    /// Whether the file has the length of a stored frame, or about that of a float frame, of [`BlobReader::len`] bytes: then that many can be
    /// reserved for it without fear of a header that announces more than there is.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        let plausible = |Head { file_len, content_len }| {
            content_len.is_some_and(|len| match self.form {
                Form::Zstd => file_len == codec::stored_len(len),
                Form::Float => len / 4 <= file_len,
            })
        };
        self.head.is_some_and(plausible)
    }

    /// Whether the blob is known to be empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    pub(super) fn io(&self, error: std::io::Error) -> Error {
        Error::io("read", self.path())(error)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.store.form_path(&self.digest, self.form)
    }

    pub(super) fn condemn(&self, reason: &str) -> Error {
        self.store.condemn(&self.digest, self.form, reason)
    }

    /// Length of the file. An empty one counts as absent: then there may still be one of the other form.
    pub(super) fn file_len(&mut self) -> Result<u64> {
        loop {
            let len = self.file.metadata().map_err(|error| Error::io("stat", self.path())(error))?.len();
            if len > 0 {
                return Ok(len);
            }
            let store = self.store;
            let other = if self.form == Form::Zstd && store.look_for_floats()? { store.open_file(&self.digest, Form::Float)? } else { None };
            *self = other.ok_or_else(|| store.absent(&self.digest))?;
        }
    }

    /// The whole file.
    fn frame(&mut self, frame: &mut Vec<u8>) -> Result<()> {
        let file_len = self.file_len()?;
        if file_len > codec::stored_len(limits::BLOB_IN_MEMORY_BYTES) {
            return Err(too_large(&self.digest));
        }
        frame.clear();
        frame.reserve(usize::try_from(file_len).unwrap_or(0));
        (&self.file).read_to_end(frame).map_err(|error| self.io(error))?;
        Ok(())
    }

    /// The verified content of the file's frames.
    fn check(&self, frame: &[u8]) -> Result<Vec<u8>> {
        let content = self.form.decode(frame, limits::BLOB_IN_MEMORY_BYTES).map_err(|error| match error {
            DecodeError::Malformed(reason) => self.condemn(&undecodable(&reason)),
            DecodeError::TooLarge => match hash_content(self.form, frame, self.digest.algorithm(), &mut |_| Ok(())) {
                Ok((found, _)) if found == self.digest => too_large(&self.digest),
                _ => self.condemn("its frame announces more than it holds"),
            },
        })?;
        let found = digest::hash(self.store.algorithm(), &content);
        if found == self.digest { Ok(content) } else { Err(self.condemn(&format!("its bytes hash to {found}"))) }
    }

    /// Reads and verifies the blob.
    pub fn read(mut self) -> Result<Vec<u8>> {
        let mut frame = Vec::new();
        self.frame(&mut frame)?;
        let content = self.check(&frame)?;
        self.store.accept(&self.digest, self.form, self.digest, content.len() as u64)?;
        Ok(content)
    }

    /// The file as it is, after its content was verified.
    pub fn read_frame(mut self) -> Result<Vec<u8>> {
        let mut frame = Vec::new();
        self.frame(&mut frame)?;
        let found = frame_digests(&[&Framed::in_form(self.form, &frame)], self.digest.algorithm()).remove(0);
        self.accept_frame(found).map(|()| frame)
    }

    /// Reads and verifies the blob straight into `out`, which must have its length.
    pub fn read_into(mut self, out: &mut [u8]) -> Result<()> {
        self.fill(out)?;
        self.store.accept(&self.digest, self.form, digest::hash(self.store.algorithm(), out), out.len() as u64)
    }

    /// Fills `out` with what is still to be verified, if that needs no waiting for the disk, which is asked for the file otherwise.
    fn fill_cached(&mut self, out: &mut [u8]) -> Result<bool> {
        let mut offset = 0;
        let mut known = self.store.tells_cached.load(Ordering::Relaxed);
        if known {
            let mut read = |slices: &mut [IoSliceMut<'_>]| {
                let n = match io::read_cached_at(&self.file, slices, offset)? {
                    Cached::Bytes(n) => n,
                    Cached::Nothing => 0,
                    Cached::Unknown => {
                        known = false;
                        0
                    }
                };
                offset += n as u64;
                Ok(n)
            };
            let found = if self.other {
                // It is read as a whole, where its start is in memory.
                read(&mut [IoSliceMut::new(&mut [0])]).map(|n| if n > 0 { Found::Other } else { Found::Short })
            } else {
                codec::read_stored(out, read)
            };
            match found.map_err(|error| self.io(error))? {
                Found::Frame => return Ok(true),
                Found::Other => self.other = true,
                Found::Short if known => {
                    io::read_ahead(&self.file);
                    return Ok(false);
                }
                Found::Short => self.store.tells_cached.store(false, Ordering::Relaxed),
            }
        }
        self.fill(out)?;
        Ok(true)
    }

    /// Fills `out` with what is still to be verified. An error about the length comes only from a file that is sound.
    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        thread_local!(static FRAME: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        if !self.other {
            let mut offset = 0;
            let found = codec::read_stored(out, |slices| {
                let n = io::read_vectored_at(&self.file, slices, offset)?;
                offset += n as u64;
                Ok(n)
            });
            if found.map_err(|error| self.io(error))? == Found::Frame {
                return Ok(());
            }
        }
        FRAME.with_borrow_mut(|frame| {
            self.frame(frame)?;
            if self.form.content_len(frame) != Ok(Some(out.len() as u64)) || self.form.decode_into(frame, out).is_err() {
                let content = self.check(frame)?;
                if content.len() != out.len() {
                    return Err(wrong_length(&self.digest, content.len() as u64, out.len()));
                }
                out.copy_from_slice(&content);
            }
            if frame.capacity() > KEPT_BYTES {
                *frame = Vec::new();
            }
            Ok(())
        })
    }

    /// Writes the content to `writer` as it is decoded and verifies it at the end.
    pub fn read_to(self, writer: &mut dyn Write) -> Result<u64> {
        let hashed = hash_content(self.form, &self.file, self.digest.algorithm(), &mut |piece| writer.write_all(piece));
        let (found, len) = hashed.map_err(|error| match error {
            StreamError::Read(error) => self.io(error),
            StreamError::Write(error) => Error::io("write", "stream")(error),
            StreamError::Malformed(reason) => self.condemn(&undecodable(&reason)),
            StreamError::TooLarge => streamed_too_large(&self.digest),
        })?;
        self.store.accept(&self.digest, self.form, found, len)?;
        Ok(len)
    }
}

/// What stops [`hash_content`].
pub(crate) enum StreamError {
    /// The frames cannot be read.
    Read(std::io::Error),
    /// The content cannot be passed on.
    Write(std::io::Error),
    /// The frames cannot be decoded.
    Malformed(String),
    /// The content is larger than any blob may be.
    TooLarge,
}

pub(super) fn streamed_too_large(digest: &Digest) -> Error {
    Error::Limit { what: format!("blob {digest}"), name: "BLOB_BYTES", limit: limits::BLOB_BYTES }
}

/// Decodes frames of any size piece by piece; returns the digest and length of their content. A float frame is read as a whole before.
pub(crate) fn hash_content(
    form: Form,
    frames: impl Read,
    algorithm: Algorithm,
    each: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<(Digest, u64), StreamError> {
    const PIECE: usize = 1 << 20;
    if form == Form::Float {
        let (mut frame, most) = (Vec::new(), codec::stored_len(float::MAX_CONTENT));
        if frames.take(most + 1).read_to_end(&mut frame).map_err(StreamError::Read)? as u64 > most {
            return Err(StreamError::TooLarge);
        }
        let (mut hasher, mut len) = (Hasher::new(algorithm), 0);
        float::decode_pieces(&frame, |piece| {
            hasher.update(piece);
            len += piece.len() as u64;
            each(piece).map_err(StreamError::Write)
        })?;
        return Ok((hasher.finish(), len));
    }
    let mut decoder = codec::decoder(std::io::BufReader::with_capacity(PIECE, frames)).map_err(StreamError::Read)?;
    let mut hasher = Hasher::new(algorithm);
    let mut piece = vec![0; PIECE];
    let mut len = 0;
    loop {
        let n = match decoder.read(&mut piece) {
            Ok(0) => return Ok((hasher.finish(), len)),
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            // The system's own errors have a number; the decoder's have none.
            Err(error) if error.raw_os_error().is_some() => return Err(StreamError::Read(error)),
            Err(error) => return Err(StreamError::Malformed(error.to_string())),
        };
        len += n as u64;
        if len > limits::BLOB_BYTES {
            return Err(StreamError::TooLarge);
        }
        hasher.update(&piece[..n]);
        each(&piece[..n]).map_err(StreamError::Write)?;
    }
}
