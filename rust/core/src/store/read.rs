//! Reading blobs from a directory: always verified, into the caller's buffer wherever possible.

use std::fs::File;
use std::io::{Read, Seek, Write};

use super::dir::DirStore;
use super::{BlobStore, wrong_length};
use crate::codec::{self, DecodeError, StoredReader};
use crate::digest::{self, Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::{io, layout, limits};

/// A blob that was found and opened, and is not read yet.
pub struct BlobReader<'a> {
    store: &'a DirStore,
    digest: Digest,
    file: File,
    file_len: u64,
    len: Option<u64>,
}

impl DirStore {
    /// Opens a blob; its length is known before it is read.
    pub fn open_blob(&self, digest: &Digest) -> Result<BlobReader<'_>> {
        let mut reader = self.open_file(digest)?;
        let mut head = [0; codec::FRAME_HEADER_MAX];
        let mut filled = 0;
        while filled < head.len() {
            match reader.file.read(&mut head[filled..]).map_err(|error| reader.io(error))? {
                0 => break,
                n => filled += n,
            }
        }
        reader.file.rewind().map_err(|error| reader.io(error))?;
        reader.len = codec::content_len_hint(&head[..filled]).filter(|len| *len <= limits::BLOB_IN_MEMORY_BYTES);
        Ok(reader)
    }

    /// Opens a blob that is expected to have `len` bytes.
    pub(super) fn open_blob_for(&self, digest: &Digest, len: usize) -> Result<BlobReader<'_>> {
        let mut reader = self.open_file(digest)?;
        reader.len = Some(len as u64);
        Ok(reader)
    }

    fn open_file(&self, digest: &Digest) -> Result<BlobReader<'_>> {
        self.check_algorithm(digest)?;
        let absent = || {
            self.counters.misses.add(1);
            Error::BlobNotFound { digest: digest.to_string() }
        };
        let file = io::open_at(&self.blobs, &layout::blob(digest)).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => absent(),
            _ => Error::io("open", self.blob_path(digest))(error),
        })?;
        let file_len = file.metadata().map_err(|error| Error::io("stat", self.blob_path(digest))(error))?.len();
        if file_len == 0 {
            return Err(absent());
        }
        Ok(BlobReader { store: self, digest: *digest, file, file_len, len: None })
    }

    /// The stored frame as it is, after its content was verified.
    pub fn read_frame(&self, digest: &Digest) -> Result<Vec<u8>> {
        let mut reader = self.open_file(digest)?;
        let frame = reader.frame()?;
        match frame_digest(&frame, self.algorithm()) {
            Ok(found) if found == *digest => Ok(frame),
            Ok(found) => Err(self.condemn(digest, &format!("its bytes hash to {found}"))),
            Err(StreamError::Malformed(reason)) => Err(self.condemn(digest, &undecodable(&reason))),
            Err(_) => Err(streamed_too_large(digest)),
        }
    }

    /// Moves a corrupt blob out of the way and tells what was wrong with it.
    ///
    /// Between reading and moving somebody may have healed it: what was moved is therefore read again, and goes back if it is sound.
    pub(crate) fn condemn(&self, digest: &Digest, reason: &str) -> Error {
        self.counters.corrupt.add(1);
        let path = self.blob_path(digest);
        let moved = || -> std::io::Result<()> {
            let dir = self.root.join(layout::QUARANTINE);
            std::fs::create_dir_all(&dir)?;
            let dir = io::open_dir(&dir)?;
            let (name, away) = (layout::blob(digest), format!("{}.{}", digest.hex(), io::unique()));
            io::rename_at(&self.blobs, &name, &dir, &away)?;
            let content = hash_content(io::open_at(&dir, &away)?, digest.algorithm(), &mut |_| Ok(()));
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

fn too_large(digest: &Digest) -> Error {
    Error::Limit { what: format!("blob {digest}"), name: "BLOB_IN_MEMORY_BYTES", limit: limits::BLOB_IN_MEMORY_BYTES }
}

impl BlobReader<'_> {
    /// The content's length as the frame tells it; None when it does not, or when it is too long for one buffer. Only reading shows whether it is true.
    #[must_use]
    pub fn len(&self) -> Option<u64> {
        self.len
    }

    /// Whether the file has the length of a stored frame of [`BlobReader::len`] bytes: then that many can be reserved for it without fear of
    /// a header that announces more than there is.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.len.is_some_and(|len| self.file_len == codec::stored_len(len))
    }

    /// Whether the blob is known to be empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == Some(0)
    }

    fn io(&self, error: std::io::Error) -> Error {
        Error::io("read", self.store.blob_path(&self.digest))(error)
    }

    fn done(&self, len: usize) {
        self.store.counters.hits.add(1);
        self.store.counters.bytes_read.add(len as u64);
    }

    /// The whole file.
    fn frame(&mut self) -> Result<Vec<u8>> {
        if self.file_len > codec::stored_len(limits::BLOB_IN_MEMORY_BYTES) {
            return Err(too_large(&self.digest));
        }
        let mut frame = Vec::with_capacity(usize::try_from(self.file_len).unwrap_or(0));
        self.file.rewind().map_err(|error| self.io(error))?;
        (&self.file).read_to_end(&mut frame).map_err(|error| self.io(error))?;
        Ok(frame)
    }

    /// The verified content of the file's frames.
    fn check(&self, frame: &[u8]) -> Result<Vec<u8>> {
        let content = codec::decode(frame, limits::BLOB_IN_MEMORY_BYTES).map_err(|error| match error {
            DecodeError::Malformed(reason) => self.store.condemn(&self.digest, &undecodable(&reason)),
            DecodeError::TooLarge => match hash_content(frame, self.digest.algorithm(), &mut |_| Ok(())) {
                Ok((found, _)) if found == self.digest => too_large(&self.digest),
                _ => self.store.condemn(&self.digest, "its frame announces more than it holds"),
            },
        })?;
        self.verify(&content)?;
        Ok(content)
    }

    fn verify(&self, content: &[u8]) -> Result<()> {
        let found = digest::hash(self.store.algorithm(), content);
        if found == self.digest { Ok(()) } else { Err(self.store.condemn(&self.digest, &format!("its bytes hash to {found}"))) }
    }

    /// Reads and verifies the blob.
    pub fn read(mut self) -> Result<Vec<u8>> {
        let frame = self.frame()?;
        let content = self.check(&frame)?;
        self.done(content.len());
        Ok(content)
    }

    /// Reads and verifies the blob straight into `out`, which must have its length.
    pub fn read_into(mut self, out: &mut [u8]) -> Result<()> {
        if self.file_len == codec::stored_len(out.len() as u64) && self.read_stored(out)? {
            self.verify(out)?;
        } else {
            let frame = self.frame()?;
            // Whether the file is sound is decided before whether the caller's length is right.
            if codec::content_len(&frame) == Ok(Some(out.len() as u64)) && codec::decode_into(&frame, out).is_ok() {
                self.verify(out)?;
            } else {
                let content = self.check(&frame)?;
                if content.len() != out.len() {
                    return Err(wrong_length(&self.digest, content.len() as u64, out.len()));
                }
                out.copy_from_slice(&content);
            }
        }
        self.done(out.len());
        Ok(())
    }

    /// Scatters a stored frame's blocks into `out`; false when the file is no stored frame of that length.
    fn read_stored(&mut self, out: &mut [u8]) -> Result<bool> {
        let mut stored = StoredReader::new(out);
        match io::read_exact_vectored(&self.file, &mut stored.slices(out)) {
            Ok(()) => Ok(stored.matches()),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(self.io(error)),
        }
    }

    /// Writes the content to `writer` as it is decoded and verifies it at the end.
    pub fn read_to(self, writer: &mut dyn Write) -> Result<u64> {
        let (found, len) = hash_content(&self.file, self.digest.algorithm(), &mut |piece| writer.write_all(piece)).map_err(|error| match error {
            StreamError::Read(error) => self.io(error),
            StreamError::Write(error) => Error::io("write", "stream")(error),
            StreamError::Malformed(reason) => self.store.condemn(&self.digest, &undecodable(&reason)),
            StreamError::TooLarge => streamed_too_large(&self.digest),
        })?;
        if found != self.digest {
            return Err(self.store.condemn(&self.digest, &format!("its bytes hash to {found}")));
        }
        self.store.counters.hits.add(1);
        self.store.counters.bytes_read.add(len);
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

/// The digest of the content of frames in memory. Contents of ordinary size are decoded at once, which is faster; larger ones piece by piece.
pub(super) fn frame_digest(frames: &[u8], algorithm: Algorithm) -> Result<Digest, StreamError> {
    const AT_ONCE_BYTES: u64 = 64 << 20;
    match codec::content_len(frames) {
        Ok(Some(len)) if len <= AT_ONCE_BYTES => match codec::decode(frames, AT_ONCE_BYTES) {
            Ok(content) => Ok(digest::hash(algorithm, &content)),
            Err(DecodeError::Malformed(reason)) => Err(StreamError::Malformed(reason)),
            Err(DecodeError::TooLarge) => Err(StreamError::TooLarge),
        },
        Err(DecodeError::Malformed(reason)) => Err(StreamError::Malformed(reason)),
        _ => hash_content(frames, algorithm, &mut |_| Ok(())).map(|(digest, _)| digest),
    }
}

/// Decodes frames of any size piece by piece; returns the digest and length of their content.
pub(crate) fn hash_content(
    frames: impl Read,
    algorithm: Algorithm,
    each: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<(Digest, u64), StreamError> {
    const PIECE: usize = 1 << 20;
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
