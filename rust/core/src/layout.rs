//! Where things lie below a store's root. The first two are the published format's; the others are ours.

use std::ops::Deref;

use crate::codec::Form;
use crate::digest::{Algorithm, Digest};

/// Markers: one copy of each image's manifest, for listing.
pub const IMAGES: &str = "images";
/// Markers of images of which only some layers or pages are here.
pub const PARTIAL: &str = "partial";
/// Named roots: a file holding a digest each.
pub const PINS: &str = "pins";
/// Corrupt files that were found under a blob's name.
pub const QUARANTINE: &str = "quarantine";
/// Blobs that are written before their name is known.
pub const TEMPORARY: &str = "tmp";
/// Says what differs from the published format; absent in a store of that format.
pub const DESCRIPTION: &str = "pfimg.json";
/// Locked (flock) by whoever needs that nothing is removed meanwhile.
pub const LOCK: &str = "lock";

/// Which directories of blobs a run of `verify` that was interrupted had finished.
pub const VERIFIED: &str = "verify.log";
/// Which signed images were had from where.
pub const SEEN: &str = "seen";
/// All that lies at the root of a store; `blobs` has a directory for each algorithm.
pub const ROOT: [&str; 10] = ["blobs", IMAGES, PARTIAL, PINS, QUARANTINE, TEMPORARY, DESCRIPTION, LOCK, VERIFIED, SEEN];

/// What tells a registry's directory from a store's: the unnamed image, and named ones.
pub const REGISTRY: [&str; 2] = ["manifest.json", "pfimg"];

/// The directory of blobs, below the root.
#[must_use]
pub fn blobs(algorithm: Algorithm) -> String {
    format!("blobs/{algorithm}")
}

/// Endings of the names of blobs' files.
fn suffix(form: Form) -> [u8; 4] {
    match form {
        Form::Zstd => *b".zst",
        Form::Float => *b".fpl",
    }
}

/// A blob's file, below the directory of blobs: `<aa>/<64 hex>.zst`, or `.fpl`. Made once for each blob that is put or read, it needs no
/// allocation.
#[derive(Clone, Copy)]
pub struct BlobName([u8; Self::LEN]);

impl BlobName {
    const SHARD: usize = 2;
    const LEN: usize = Self::SHARD + 1 + 64 + 4;

    /// Name of the directory.
    #[must_use]
    pub fn shard(&self) -> &str {
        &self[..Self::SHARD]
    }

    /// Name in that directory.
    #[must_use]
    pub fn file(&self) -> &str {
        &self[Self::SHARD + 1..]
    }
}

impl Deref for BlobName {
    type Target = str;

    fn deref(&self) -> &str {
        str::from_utf8(&self.0).expect("hexadecimal digits and ASCII")
    }
}

/// The name of the file that holds a blob in this form.
#[must_use]
pub fn blob(digest: &Digest, form: Form) -> BlobName {
    let mut name = [b'/'; BlobName::LEN];
    let hex = digest.hex_bytes();
    name[..BlobName::SHARD].copy_from_slice(&hex[..BlobName::SHARD]);
    name[BlobName::SHARD + 1..][..64].copy_from_slice(&hex);
    name[BlobName::LEN - 4..].copy_from_slice(&suffix(form));
    BlobName(name)
}

/// The digest that a blob's file is named after and the form that it has, if it is one: the inverse of [`blob`].
#[must_use]
pub fn parse_blob(algorithm: Algorithm, shard: &str, file: &str) -> Option<(Digest, Form)> {
    let (hex, ending) = file.as_bytes().split_last_chunk()?;
    let form = [Form::Zstd, Form::Float].into_iter().find(|form| suffix(*form) == *ending)?;
    let hex = str::from_utf8(hex).ok()?;
    let digest = Digest::from_hex(algorithm, hex).ok()?;
    (hex.get(..2) == Some(shard)).then_some((digest, form))
}

/// An image's marker, below [`IMAGES`] or [`PARTIAL`].
#[must_use]
pub fn marker(image: &Digest) -> String {
    image.hex() + ".json"
}

/// The image that a marker is named after.
#[must_use]
pub fn parse_marker(algorithm: Algorithm, file: &str) -> Option<Digest> {
    Digest::from_hex(algorithm, file.strip_suffix(".json")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn names_are_read_back(bytes: [u8; 32], blake3: bool, float: bool) {
            let algorithm = if blake3 { Algorithm::Blake3 } else { Algorithm::Sha256 };
            let form = if float { Form::Float } else { Form::Zstd };
            let digest = Digest::new(algorithm, bytes);
            let name = blob(&digest, form);
            let (shard, file) = name.split_once('/').unwrap();
            proptest::prop_assert_eq!((shard, file), (name.shard(), name.file()));
            proptest::prop_assert_eq!(parse_blob(algorithm, shard, file), Some((digest, form)));
            proptest::prop_assert_eq!(parse_marker(algorithm, &marker(&digest)), Some(digest));
        }
    }

    #[test]
    fn foreign_names_are_no_blobs() {
        let digest = Digest::new(Algorithm::Sha256, [0xab; 32]);
        let file = digest.hex() + ".zst";
        assert!(parse_blob(Algorithm::Sha256, "ac", &file).is_none());
        for bad in [&file[1..], &file.to_uppercase(), &digest.hex(), &(file.clone() + ".tmp.1.2"), &(digest.hex() + ".fpx"), ".zst", "é"] {
            assert!(parse_blob(Algorithm::Sha256, "ab", bad).is_none(), "{bad}");
        }
    }
}
