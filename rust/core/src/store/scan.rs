//! Looking at everything in a store.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rayon::prelude::*;

use super::BlobStore;
use super::dir::DirStore;
use crate::codec::Form;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::{io, layout, pool};

/// A file below the directory of blobs.
pub(crate) struct BlobFile {
    pub(crate) blob: Option<(Digest, Form)>,
    /// Below the directory of blobs.
    pub(crate) name: String,
    pub(crate) meta: io::Meta,
}

impl DirStore {
    pub(crate) fn blobs_dir(&self) -> BorrowedFd<'_> {
        self.blobs.as_fd()
    }

    /// Every file below the directory of blobs, in order of its name.
    pub(crate) fn scan(&self) -> Result<Vec<BlobFile>> {
        let base = self.root.join(layout::blobs(self.algorithm()));
        let floats = self.look_for_floats()?;
        let list = |path: &Path| -> Result<Vec<String>> {
            let entries = match std::fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(Error::io("list", path)(error)),
            };
            let mut names = Vec::new();
            for entry in entries {
                names.push(entry.map_err(Error::io("list", path))?.file_name().to_string_lossy().into_owned());
            }
            names.sort_unstable();
            Ok(names)
        };
        let shards = list(&base)?;
        let files = |shard: &String| -> Result<Vec<BlobFile>> {
            let path = base.join(shard);
            if !path.is_dir() {
                let meta = io::stat_at(&self.blobs, shard).map_err(Error::io("stat", &path))?;
                return Ok(meta.map(|meta| BlobFile { blob: None, name: shard.clone(), meta }).into_iter().collect());
            }
            let mut files = Vec::new();
            for file in list(&path)? {
                let name = format!("{shard}/{file}");
                // None: removed since it was listed.
                if let Some(meta) = io::stat_at(&self.blobs, &name).map_err(Error::io("stat", path.join(&file)))? {
                    let blob = layout::parse_blob(self.algorithm(), shard, &file).filter(|(_, form)| floats || *form == Form::Zstd);
                    files.push(BlobFile { blob, name, meta });
                }
            }
            Ok(files)
        };
        let found: Vec<Vec<BlobFile>> = pool::install(|| shards.par_iter().map(files).collect::<Result<_>>())?;
        Ok(found.into_iter().flatten().collect())
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
        let files = self.scan()?;
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
                // Removed, or found corrupt, meanwhile.
                Err(Error::BlobNotFound { .. } | Error::Integrity { .. }) => Ok(Usage::default()),
                Err(error) => Err(error),
            }
        };
        pool::install(|| files.par_iter().enumerate().map(one).try_reduce(Usage::default, |a, b| Ok(add(a, b))))
    }
}
