//! Frames that arrive from elsewhere are verified and stored as they came, without being encoded again.

use std::fs::File;
use std::io::{self as stdio, Read, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::BlobStore;
use super::dir::DirStore;
use super::put::{Batch, Put};
use super::read::{StreamError, frame_digest, hash_content, streamed_too_large, undecodable};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::io::Temporary;
use crate::layout::{self, BlobName};
use crate::pool::{self, Monitor};

/// Files up to this size are held in memory while they land; larger ones stream through.
const WHOLE_FILE_BYTES: u64 = 16 << 20;
/// Files that share their syncs.
const GROUP_FILES: usize = 4096;

impl DirStore {
    /// Stores frames under their digests; returns how many were not there before.
    ///
    /// # Errors
    /// [`Error::Integrity`], at its index, for a frame that does not decode to its digest; it is not stored.
    pub fn land_frames(&self, items: &[(Digest, &[u8])]) -> Result<u64> {
        let batch = Batch::new(self, items.len());
        let land = |(index, (digest, frame)): (usize, &(Digest, &[u8]))| {
            let land = || {
                self.verify_foreign(digest, frame)?;
                let name = layout::blob(digest);
                let found = batch.find(digest, &name)?;
                let put = if found { Put::Found } else { Put::Written(batch.write(digest, &name, |mut file| file.write_all(frame))?) };
                Ok((!found, batch.settle(digest, put)?))
            };
            land().map_err(|error: Error| error.at(index))
        };
        pool::install(|| {
            let landed: Vec<(bool, _)> = items.par_iter().enumerate().map(land).collect::<Result<_>>()?;
            finish(&batch, landed)
        })
    }

    /// Stores the frames in other files under their digests, for example from another store's directory; returns how many were not there
    /// before, and the bytes of these frames. Blobs that are already here are not read.
    ///
    /// # Errors
    /// At their index: [`Error::BlobNotFound`] for a file that is missing or empty, [`Error::Integrity`] for one that does not decode to
    /// its digest.
    pub fn import_files(&self, items: &[(Digest, PathBuf)], monitor: &Monitor) -> Result<(u64, u64)> {
        monitor.expect(items.len() as u64);
        let batch = Batch::new(self, items.len());
        let import = |(index, (digest, path)): (usize, &(Digest, PathBuf))| {
            let import = || {
                let (put, bytes) = self.import(&batch, digest, path)?;
                monitor.advance(1, bytes)?;
                let fresh = matches!(put, Put::Written(_));
                Ok((bytes, (fresh, batch.settle(digest, put)?)))
            };
            import().map_err(|error: Error| error.at(index))
        };
        pool::install(|| {
            let (mut fresh, mut bytes) = (0, 0);
            for (at, group) in items.chunks(GROUP_FILES).enumerate() {
                let shift = |(index, item)| import((at * GROUP_FILES + index, item));
                let landed: Vec<(u64, (bool, _))> = group.par_iter().enumerate().map(shift).collect::<Result<_>>()?;
                bytes += landed.iter().map(|(bytes, _)| bytes).sum::<u64>();
                fresh += finish(&batch, landed.into_iter().map(|(_, landed)| landed).collect())?;
            }
            Ok((fresh, bytes))
        })
    }

    /// Checks a frame that came from elsewhere against its name.
    fn verify_foreign(&self, digest: &Digest, frame: &[u8]) -> Result<()> {
        self.check_algorithm(digest)?;
        match frame_digest(frame, self.algorithm()) {
            Ok(found) => matches(digest, found),
            Err(error) => Err(foreign(digest, error)),
        }
    }

    fn import<'b>(&self, batch: &'b Batch<'_>, digest: &Digest, path: &Path) -> Result<(Put<'b>, u64)> {
        self.check_algorithm(digest)?;
        let name = layout::blob(digest);
        if batch.find(digest, &name)? {
            return Ok((Put::Found, 0));
        }
        let absent = || Error::BlobNotFound { digest: digest.to_string() };
        let file = File::open(path).map_err(|error| match error.kind() {
            stdio::ErrorKind::NotFound => absent(),
            _ => Error::io("open", path)(error),
        })?;
        let len = file.metadata().map_err(Error::io("stat", path))?.len();
        if len == 0 {
            return Err(absent());
        }
        if len > WHOLE_FILE_BYTES {
            return Ok((Put::Written(self.import_stream(batch, digest, &name, &file, path)?), len));
        }
        let mut frame = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        (&file).read_to_end(&mut frame).map_err(Error::io("read", path))?;
        self.verify_foreign(digest, &frame).map_err(|error| located(error, path))?;
        Ok((Put::Written(batch.write(digest, &name, |mut file| file.write_all(&frame))?), len))
    }

    /// Copies a large file while it is decoded and hashed.
    fn import_stream<'b>(&self, batch: &'b Batch<'_>, digest: &Digest, name: &BlobName, file: &File, path: &Path) -> Result<Temporary<'b>> {
        let (temporary, mut copy) = batch.create(digest, name)?;
        let tee = Tee { from: file, to: &mut copy, failed: None };
        let mut tee = stdio::BufReader::with_capacity(1 << 20, tee);
        let result = hash_content(&mut tee, self.algorithm(), &mut |_| Ok(()));
        if let Some(error) = tee.get_mut().failed.take() {
            return Err(Error::io("write", self.blob_path(digest))(error));
        }
        let (found, _) = result.map_err(|error| match error {
            StreamError::Read(error) => Error::io("read", path)(error),
            other => located(foreign(digest, other), path),
        })?;
        matches(digest, found).map_err(|error| located(error, path))?;
        Ok(temporary)
    }
}

fn finish(batch: &Batch<'_>, landed: Vec<(bool, (Digest, Put<'_>))>) -> Result<u64> {
    let fresh = landed.iter().filter(|(fresh, _)| *fresh).count() as u64;
    batch.commit(landed.into_iter().map(|(_, put)| put).collect())?;
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
