//! Digests: the names of blobs.
//!
//! A digest is the hash of a blob's *uncompressed* bytes and is written `sha256:<64 hex>` or, in stores that opted in, `blake3:<64 hex>`. In
//! Rust it is a value of 33 bytes, never a string. SHA-256 is our own ([`crate::sha256`]), for the sake of batches; BLAKE3 is a crate, which only
//! this file names.

mod hex;

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::sha256;

pub use crate::sha256::{Kernel, kernel, kernels};

/// Bytes that are copied before BLAKE3 hashes them: they are in cache then. It wants a power of two, and fills its lanes several times over.
const COPIED_AT_ONCE: usize = 64 << 10;

/// Hash function of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// FIPS 180-4; the published format's only one.
    Sha256,
    /// BLAKE3 with 32 bytes of output.
    Blake3,
}

impl Algorithm {
    /// The name that stands before the colon and in paths.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "sha256" => Ok(Self::Sha256),
            "blake3" => Ok(Self::Blake3),
            other => Err(Error::format("digest algorithm", format!("{other:?} is neither sha256 nor blake3"))),
        }
    }
}

/// Name of a blob.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: [u8; 32],
}

impl Digest {
    /// Bytes of its text; both prefixes have the same length.
    pub const TEXT_LEN: usize = 7 + 64;

    /// A digest from its parts.
    #[must_use]
    pub const fn new(algorithm: Algorithm, bytes: [u8; 32]) -> Self {
        Self { algorithm, bytes }
    }

    /// The function that made it.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        self.hex_bytes().map(char::from).into_iter().collect()
    }

    /// The same as ASCII.
    #[must_use]
    pub fn hex_bytes(&self) -> [u8; 64] {
        hex::encode(&self.bytes)
    }

    /// From 64 lower-case hexadecimal digits without a prefix.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Result<Self> {
        match hex.as_bytes().try_into().ok().and_then(hex::decode) {
            Some(bytes) => Ok(Self { algorithm, bytes }),
            None => Err(Error::format(format!("digest {hex:?}"), "not 64 lower-case hexadecimal digits")),
        }
    }

    /// What it is written as, in ASCII: prefix and digits.
    #[must_use]
    pub fn text(&self) -> [u8; Self::TEXT_LEN] {
        let mut text = [b':'; Self::TEXT_LEN];
        text[..Self::TEXT_LEN - 65].copy_from_slice(self.algorithm.name().as_bytes());
        text[Self::TEXT_LEN - 64..].copy_from_slice(&self.hex_bytes());
        text
    }

    /// The inverse of [`Digest::text`]; None for anything else, without telling why.
    pub(crate) fn from_text(text: &[u8; Self::TEXT_LEN]) -> Option<Self> {
        let (prefix, digits) = text.split_last_chunk().expect("the text is longer than its digits");
        let algorithm = match prefix {
            b"sha256:" => Algorithm::Sha256,
            b"blake3:" => Algorithm::Blake3,
            _ => return None,
        };
        hex::decode(digits).map(|bytes| Self { algorithm, bytes })
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if let Some(digest) = s.as_bytes().try_into().ok().and_then(Self::from_text) {
            return Ok(digest);
        }
        let known = s.starts_with("sha256:") || s.starts_with("blake3:");
        let reason = if known { "not 64 lower-case hexadecimal digits" } else { "the prefix is neither sha256: nor blake3:" };
        Err(Error::format(format!("digest {s:?}"), reason))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.text()).expect("ASCII"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Written as its string.
impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Read from its string, borrowed where the input allows it.
impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Digest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a digest such as sha256:<64 lower-case hexadecimal digits>")
            }

            fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Digest, E> {
                s.parse().map_err(|_| E::invalid_value(serde::de::Unexpected::Str(s), &self))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// A running hash.
pub struct Hasher(State);

enum State {
    Sha256(sha256::Hasher),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// A hash of nothing yet.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha256::Hasher::new()),
            Algorithm::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The digest of all bytes added.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hasher) => Digest::new(Algorithm::Sha256, hasher.finish()),
            State::Blake3(hasher) => Digest::new(Algorithm::Blake3, *hasher.finalize().as_bytes()),
        }
    }
}

/// Hashes one blob.
///
/// # Panics
/// If `PFIMG_KERNEL` names none of the [`kernels`], as everything here that hashes: [`kernel`] tells beforehand.
#[must_use]
pub fn hash(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    match algorithm {
        Algorithm::Sha256 => Digest::new(algorithm, sha256::hash(bytes)),
        Algorithm::Blake3 => Digest::new(algorithm, *blake3::hash(bytes).as_bytes()),
    }
}

/// Hashes independent blobs of any lengths together, in their order, on the calling thread.
#[must_use]
pub fn hash_many(algorithm: Algorithm, blobs: &[&[u8]]) -> Vec<Digest> {
    let mut digests = vec![Digest::new(algorithm, [0; 32]); blobs.len()];
    hash_each(algorithm, blobs, |index, digest| digests[index] = digest);
    digests
}

/// As [`hash_many`], without allocating: hands over each digest with its blob's index as soon as it is known, in no particular order.
pub fn hash_each(algorithm: Algorithm, blobs: &[&[u8]], mut done: impl FnMut(usize, Digest)) {
    match algorithm {
        Algorithm::Sha256 => sha256::hash_each(blobs, |index, bytes| done(index, Digest::new(algorithm, bytes))),
        Algorithm::Blake3 => blobs.iter().enumerate().for_each(|(index, blob)| done(index, hash(algorithm, blob))),
    }
}

/// As [`hash_many`], for blobs in pieces, each of which but the last has a multiple of 64 bytes.
#[must_use]
pub fn hash_pieces(algorithm: Algorithm, blobs: &[&[&[u8]]]) -> Vec<Digest> {
    let mut digests = vec![Digest::new(algorithm, [0; 32]); blobs.len()];
    match algorithm {
        Algorithm::Sha256 => sha256::hash_pieces(blobs, |index, bytes| digests[index] = Digest::new(algorithm, bytes)),
        Algorithm::Blake3 => {
            for (digest, pieces) in digests.iter_mut().zip(blobs) {
                let mut hasher = Hasher::new(algorithm);
                pieces.iter().for_each(|piece| hasher.update(piece));
                *digest = hasher.finish();
            }
        }
    }
    digests
}

/// As [`hash_each`], while each blob is copied to the place beside it, which has its length. What was hashed is what the copy holds.
pub fn hash_copies<'a>(algorithm: Algorithm, copies: impl ExactSizeIterator<Item = (&'a [u8], &'a mut [u8])>, mut done: impl FnMut(usize, Digest)) {
    match algorithm {
        Algorithm::Sha256 => sha256::hash_copies(copies, |index, bytes| done(index, Digest::new(algorithm, bytes))),
        Algorithm::Blake3 => copies.enumerate().for_each(|(index, (blob, place))| {
            let mut hasher = Hasher::new(algorithm);
            for (blob, place) in blob.chunks(COPIED_AT_ONCE).zip(place.chunks_mut(COPIED_AT_ONCE)) {
                place.copy_from_slice(blob);
                hasher.update(place);
            }
            done(index, hasher.finish());
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors() {
        // FIPS 180-4 examples (NIST), and the BLAKE3 team's test vector for no input.
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash(Algorithm::Sha256, b"abc").to_string(), abc);
        let two_blocks = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        let want = "sha256:248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1";
        assert_eq!(hash(Algorithm::Sha256, two_blocks).to_string(), want);
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hash(Algorithm::Sha256, b"").to_string(), empty);
        let empty = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(hash(Algorithm::Blake3, b"").to_string(), empty);
        assert_eq!(hash_many(Algorithm::Sha256, &[b"abc", b""])[0].to_string(), abc);
    }

    #[test]
    fn text_form_is_strict() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        for bad in ["", "sha256:", "SHA256:00", &good[..70], &format!("{good}0"), &good.replace('a', "A"), &good.replace('a', "g"), &good[7..]] {
            let error = bad.parse::<Digest>().unwrap_err();
            assert_eq!(error.code(), "format", "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn pieces_hash_as_the_whole(data: Vec<u8>, cut: proptest::sample::Index) {
            for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
                let (a, b) = data.split_at(cut.index(data.len() + 1));
                let mut hasher = Hasher::new(algorithm);
                hasher.update(a);
                hasher.update(b);
                let digest = hasher.finish();
                proptest::prop_assert_eq!(digest, hash(algorithm, &data));
                proptest::prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
            }
        }
    }
}
