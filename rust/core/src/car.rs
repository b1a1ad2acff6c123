//! CAR archives: directories as blocks that IPFS takes and gives.
//!
//! A CAR (content addressable archive, version 1) is a header that names a root, and blocks, each after its CID. What is written is one
//! directory with everything below, cut into blocks as Kubo's profile `unixfs-v1-2025` cuts it: leaves of raw bytes of up to 1 MiB, nodes of
//! up to 1,024 links, balanced; directories of more than 256 KiB as tries. So the root is the one that `ipfs add` gives, and the CAR the
//! same bytes for the same content at any time.
//!
//! [`Plan`] writes; [`Reader`] gives verified blocks as they come; [`Blocks`] keeps them and finds files in them; [`Node`] is one block.
//!
//! Limits: no modes, times, symbolic links or empty directories are written. docs/formats.md has the layout.

mod cid;
mod frames;
mod hamt;
mod header;
mod plan;
mod read;
mod unixfs;
mod wire;

#[cfg(test)]
mod tests;

pub use cid::{Cid, Codec};
pub use frames::{BlobFrame, BlobFrames};
pub use plan::{Part, Plan, Source, cid_of};
pub use read::{Block, Blocks, Reader};
pub use unixfs::{Link, Node};
