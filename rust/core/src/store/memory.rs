//! Blobs in memory.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, PoisonError, RwLock};

use super::BlobStore;
use crate::digest::{self, Algorithm, Digest};
use crate::error::{Error, Result};

/// A store that lives as long as its value. Blobs are kept uncompressed.
#[derive(Debug)]
pub struct MemoryStore {
    algorithm: Algorithm,
    blobs: RwLock<HashMap<Digest, Arc<[u8]>>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, blobs: RwLock::default() }
    }

    fn find(&self, digest: &Digest) -> Result<Arc<[u8]>> {
        let blobs = self.blobs.read().unwrap_or_else(PoisonError::into_inner);
        blobs.get(digest).map(Arc::clone).ok_or_else(|| Error::BlobNotFound { digest: digest.to_string() })
    }

    /// Forgets a blob; returns whether it was there.
    pub fn remove(&self, digest: &Digest) -> bool {
        self.blobs.write().unwrap_or_else(PoisonError::into_inner).remove(digest).is_some()
    }
}

impl BlobStore for MemoryStore {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = digest::hash(self.algorithm, bytes);
        self.blobs.write().unwrap_or_else(PoisonError::into_inner).entry(digest).or_insert_with(|| bytes.into());
        Ok(digest)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        Ok(self.find(digest)?.to_vec())
    }

    fn has(&self, digest: &Digest) -> Result<bool> {
        Ok(self.blobs.read().unwrap_or_else(PoisonError::into_inner).contains_key(digest))
    }

    fn physical_bytes(&self) -> Result<u64> {
        let blobs = self.blobs.read().unwrap_or_else(PoisonError::into_inner);
        Ok(blobs.values().map(|blob| blob.len() as u64).sum())
    }

    fn get_stream(&self, digest: &Digest, writer: &mut dyn Write) -> Result<u64> {
        let blob = self.find(digest)?;
        writer.write_all(&blob).map_err(Error::io("write", "stream"))?;
        Ok(blob.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_finds_and_forgets() {
        let store = MemoryStore::new(Algorithm::Sha256);
        let digest = store.put(b"x").unwrap();
        assert_eq!(store.get(&digest).unwrap(), b"x");
        assert_eq!(store.physical_bytes().unwrap(), 1);
        assert!(store.remove(&digest) && !store.has(&digest).unwrap());
        assert_eq!(store.get(&digest).unwrap_err().code(), "blob_not_found");
    }
}
