//! Looking at everything in a store.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::BlobStore;
use super::dir::DirStore;
use crate::codec::Form;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::{io, layout, pool};

/// What is below the directory of blobs.
#[derive(Default)]
pub(crate) struct Scan {
    /// Files, in order of their names.
    pub(crate) files: Vec<BlobFile>,
    /// What is no regular file, or has a name that is no text.
    pub(crate) others: Vec<PathBuf>,
}

/// A file below the directory of blobs.
pub(crate) struct BlobFile {
    pub(crate) blob: Option<(Digest, Form)>,
    /// Below the directory of blobs.
    pub(crate) name: String,
    pub(crate) meta: io::Meta,
}

impl BlobFile {
    /// Its directory, below that of blobs.
    pub(crate) fn shard(&self) -> &str {
        self.name.split_once('/').map_or("", |(shard, _)| shard)
    }
}

impl Scan {
    /// Takes in what is at `path`, which has this name below the directory of blobs, unless it is gone.
    fn add(&mut self, store: &DirStore, path: PathBuf, name: Option<String>, blob: Option<(Digest, Form)>) -> Result<()> {
        let meta = match name.as_ref().map(|name| io::stat_at(&store.blobs, name)) {
            Some(Err(error)) if io::is_exhaustion(&error) => return Err(Error::io("stat", &path)(error)),
            // A link that leads nowhere, for instance.
            Some(Err(_)) | None => None,
            Some(Ok(meta)) => meta,
        };
        match (name, meta) {
            (Some(name), Some(meta)) => self.files.push(BlobFile { blob, name, meta }),
            _ if path.symlink_metadata().is_ok() => self.others.push(path),
            _ => {}
        }
        Ok(())
    }
}

impl DirStore {
    pub(crate) fn blobs_dir(&self) -> BorrowedFd<'_> {
        self.blobs.as_fd()
    }

    /// Everything below the directory of blobs.
    pub(crate) fn scan(&self) -> Result<Scan> {
        let base = self.root.join(layout::blobs(self.algorithm()));
        let floats = self.look_for_floats()?;
        let list = |path: &Path| -> Result<Vec<OsString>> {
            let entries = match std::fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(Error::io("list", path)(error)),
            };
            let mut names = entries.map(|entry| Ok(entry.map_err(Error::io("list", path))?.file_name())).collect::<Result<Vec<_>>>()?;
            names.sort_unstable();
            Ok(names)
        };
        let shards = list(&base)?;
        let look = |shard: &OsString| -> Result<Scan> {
            let (path, mut found) = (base.join(shard), Scan::default());
            let Some(shard) = shard.to_str().filter(|_| path.is_dir()) else {
                found.add(self, path, shard.to_str().map(str::to_owned), None)?;
                return Ok(found);
            };
            for file in list(&path)? {
                let text = file.to_str();
                let blob = text.and_then(|text| layout::parse_blob(self.algorithm(), shard, text)).filter(|(_, form)| floats || *form == Form::Zstd);
                found.add(self, path.join(&file), text.map(|text| format!("{shard}/{text}")), blob)?;
            }
            Ok(found)
        };
        let parts: Vec<Scan> = pool::install(|| shards.par_iter().map(look).collect::<Result<_>>())?;
        let mut found = Scan::default();
        for part in parts {
            found.files.extend(part.files);
            found.others.extend(part.others);
        }
        Ok(found)
    }
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blobs.
    pub blobs: u64,
    /// What their files take.
    pub physical_bytes: u64,
    /// What they contain.
    pub logical_bytes: u64,
}

impl DirStore {
    /// Counts blobs and bytes; of each file only the first few bytes are read.
    pub fn usage(&self) -> Result<Usage> {
        let Scan { files, .. } = self.scan()?;
        let logical = |digest: Digest| -> Result<u64> {
            match self.open_blob(&digest).map(|reader| reader.len()) {
                Ok(Some(len)) => Ok(len),
                // A frame that does not tell; a rare, foreign one.
                Ok(None) => self.get_stream(&digest, &mut std::io::sink()),
                Err(error) => Err(error),
            }
        };
        // A blob in both forms is one blob.
        let same = |a: &BlobFile, b: &BlobFile| a.meta.len > 0 && a.blob.zip(b.blob).is_some_and(|((a, _), (b, _))| a == b);
        let again = |at: usize| at > 0 && same(&files[at - 1], &files[at]);
        let add = |a: Usage, b: Usage| Usage {
            blobs: a.blobs + b.blobs,
            physical_bytes: a.physical_bytes + b.physical_bytes,
            logical_bytes: a.logical_bytes + b.logical_bytes,
        };
        let one = |(at, file): (usize, &BlobFile)| -> Result<Usage> {
            let Some((digest, _)) = file.blob.filter(|_| file.meta.len > 0) else { return Ok(Usage::default()) };
            if again(at) {
                return Ok(Usage { physical_bytes: file.meta.len, ..Usage::default() });
            }
            match logical(digest) {
                Ok(logical_bytes) => Ok(Usage { blobs: 1, physical_bytes: file.meta.len, logical_bytes }),
                // Removed, or found corrupt, meanwhile; or more than any blob may be, which `verify` tells.
                Err(Error::BlobNotFound { .. } | Error::Integrity { .. } | Error::Limit { .. }) => Ok(Usage::default()),
                Err(error) => Err(error),
            }
        };
        pool::install(|| files.par_iter().enumerate().map(one).try_reduce(Usage::default, |a, b| Ok(add(a, b))))
    }
}
