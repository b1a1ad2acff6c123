//! Caps on sizes that come from outside, in one place.

/// Largest image manifest, in bytes.
pub const MANIFEST_BYTES: u64 = 1 << 20;
/// Largest tree or page manifest, in bytes.
pub const DOCUMENT_BYTES: u64 = 1 << 30;
/// Most entries of a tree, or pages of a page manifest.
pub const DOCUMENT_ENTRIES: u64 = 64 << 20;
/// Largest blob on disk, in uncompressed bytes.
pub const BLOB_BYTES: u64 = 16 << 30;
/// Largest blob that is read into one buffer that we allocate.
pub const BLOB_IN_MEMORY_BYTES: u64 = 1 << 30;
/// Largest zstd window that is decoded, as a power of two (128 MiB).
pub const ZSTD_WINDOW_LOG: u32 = 27;
/// Longest path in a tree, in bytes.
pub const PATH_BYTES: usize = 4096;
/// Longest component of a path, in bytes.
pub const PATH_COMPONENT_BYTES: usize = 255;
/// Largest description of a store (`pfimg.json`), and largest file of a pin.
pub const DESCRIPTION_BYTES: u64 = 1 << 20;
/// Largest block of a CAR with its CID: what IPFS exchanges, 2 MiB, and room for the node around it.
pub const CAR_BLOCK_BYTES: u64 = (2 << 20) + (64 << 10);
/// Largest header of a CAR.
pub const CAR_HEADER_BYTES: u64 = 64 << 10;
