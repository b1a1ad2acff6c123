//! Content identifiers: the names of blocks.
//!
//! A CID is a version, a codec (what the bytes are) and a multihash of the bytes. Written are CIDs of version 1 in base 32, `bafk…` for
//! raw bytes and `bafy…` for nodes. Read are also those of version 0 (`Qm…`: a node's SHA-256 in base 58), and identity hashes, which are no
//! hashes but the bytes themselves. Other codecs and hashes are refused by name.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};

use super::wire;
use crate::digest::{self, Algorithm};
use crate::error::{Error, Result};

const SHA256: u64 = 0x12;
const IDENTITY: u64 = 0x00;
/// Most bytes of an identity hash that Kubo takes.
const IDENTITY_BYTES: usize = 128;
/// Longest text of a CID: an identity hash of the most bytes, with what stands before it, in base 32.
const TEXT_BYTES: usize = 256;

const CUT: &str = "it ends within its hash";

/// RFC 4648 in lower case without padding, as multibase `b` wants it.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("the alphabet has 32 letters")
});

/// What the bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Codec {
    /// Bytes of a file.
    Raw,
    /// A node: links to other blocks.
    DagPb,
}

impl Codec {
    /// Its name in the table of multicodecs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::DagPb => "dag-pb",
        }
    }

    const fn code(self) -> u64 {
        match self {
            Self::Raw => 0x55,
            Self::DagPb => 0x70,
        }
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Hash {
    Sha256([u8; 32]),
    Identity(Box<[u8]>),
}

/// Name of a block.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cid {
    version: u8,
    codec: Codec,
    hash: Hash,
}

impl Cid {
    /// Bytes of a CID of version 1 with a SHA-256.
    pub(super) const BYTES: usize = 36;

    /// The CID of version 1 of a block with this SHA-256.
    #[must_use]
    pub const fn new(codec: Codec, sha256: [u8; 32]) -> Self {
        Self { version: 1, codec, hash: Hash::Sha256(sha256) }
    }

    /// The CID of version 1 of a block.
    #[must_use]
    pub fn of(codec: Codec, block: &[u8]) -> Self {
        Self::new(codec, *digest::hash(Algorithm::Sha256, block).bytes())
    }

    /// What the bytes of the block are.
    #[must_use]
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// The SHA-256 of the block; None where the CID has the bytes themselves.
    #[must_use]
    pub const fn sha256(&self) -> Option<&[u8; 32]> {
        match &self.hash {
            Hash::Sha256(digest) => Some(digest),
            Hash::Identity(_) => None,
        }
    }

    /// The bytes of the block, where the CID has them.
    #[must_use]
    pub const fn inline(&self) -> Option<&[u8]> {
        match &self.hash {
            Hash::Sha256(_) => None,
            Hash::Identity(bytes) => Some(bytes),
        }
    }

    /// The CID as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        if self.version == 1 {
            bytes.push(1);
            wire::put_varint(&mut bytes, self.codec.code());
        }
        let (function, hash) = match &self.hash {
            Hash::Sha256(digest) => (SHA256, &digest[..]),
            Hash::Identity(inline) => (IDENTITY, &inline[..]),
        };
        wire::put_varint(&mut bytes, function);
        wire::put_varint(&mut bytes, hash.len() as u64);
        bytes.extend_from_slice(hash);
        bytes
    }

    /// The inverse of [`Cid::to_bytes`].
    ///
    /// # Errors
    /// [`Error::Format`] for anything else than one CID that is known here.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        match Self::take(bytes) {
            Ok((cid, [])) => Ok(cid),
            Ok(_) => Err(refused(bytes, "more bytes than its own follow it")),
            Err(reason) => Err(refused(bytes, reason)),
        }
    }

    /// The CID that bytes begin with, and what follows it.
    pub(super) fn take(bytes: &[u8]) -> Result<(Self, &[u8]), String> {
        // A version 0 is nothing but the multihash of a SHA-256.
        if let [0x12, 0x20, rest @ ..] = bytes {
            let (digest, rest) = rest.split_first_chunk().ok_or(CUT)?;
            return Ok((Self { version: 0, codec: Codec::DagPb, hash: Hash::Sha256(*digest) }, rest));
        }
        let mut rest = bytes;
        let mut number = |what: &str| match wire::take_varint(&mut rest) {
            Some(number) => Ok(number),
            None => Err(format!("it has no {what}")),
        };
        let version = number("version")?;
        if version != 1 {
            return Err(format!("version {version} is not known"));
        }
        let codec = match number("codec")? {
            0x55 => Codec::Raw,
            0x70 => Codec::DagPb,
            other => return Err(format!("codec {other:#x} is not known: neither raw (0x55) nor dag-pb (0x70)")),
        };
        let function = number("hash function")?;
        let length = number("length of its hash")?;
        let found = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
        match function {
            SHA256 if length == 32 => {
                let (digest, rest) = found.ok_or(CUT)?;
                Ok((Self::new(codec, digest.try_into().expect("this is its length")), rest))
            }
            IDENTITY if length <= IDENTITY_BYTES as u64 => {
                let (inline, rest) = found.ok_or(CUT)?;
                Ok((Self { version: 1, codec, hash: Hash::Identity(inline.into()) }, rest))
            }
            SHA256 | IDENTITY => Err(format!("a hash of {length} bytes")),
            other => Err(format!("hash function {other:#x} is not known: neither sha2-256 (0x12) nor identity (0)")),
        }
    }
}

/// A CID that is refused, as text where it cannot be told otherwise.
fn refused(bytes: &[u8], reason: impl fmt::Display) -> Error {
    let shown = &bytes[..bytes.len().min(IDENTITY_BYTES)];
    Error::format(format!("CID \"b{}\"", BASE32.encode(shown)), reason.to_string())
}

impl FromStr for Cid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason: &str| {
            let shown: String = text.chars().take(TEXT_BYTES).collect();
            Error::format(format!("CID {shown:?}"), reason)
        };
        if text.len() > TEXT_BYTES {
            return Err(wrong("it is too long"));
        }
        let v0 = text.len() == 46 && text.starts_with("Qm");
        let bytes = if v0 {
            bs58::decode(text).into_vec().map_err(|_| wrong("not base 58"))?
        } else if let Some(digits) = text.strip_prefix('b') {
            BASE32.decode(digits.as_bytes()).map_err(|_| wrong("not base 32 in lower case"))?
        } else {
            return Err(wrong("it begins neither as base 32 (b…) nor as version 0 (Qm…): convert it with `ipfs cid base32`"));
        };
        match Self::take(&bytes) {
            Ok((cid, [])) if (cid.version == 0) == v0 => Ok(cid),
            Ok(_) => Err(wrong("its bytes are not one CID of the version that its text says")),
            Err(reason) => Err(wrong(&reason)),
        }
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.to_bytes();
        if self.version == 0 {
            return f.write_str(&bs58::encode(bytes).into_string());
        }
        write!(f, "b{}", BASE32.encode(&bytes))
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Known everywhere: the empty directory, in both versions, and the empty file.
    const EMPTY_DIRECTORY: &str = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354";
    const EMPTY_DIRECTORY_V0: &str = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn";
    const EMPTY_FILE: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";

    #[test]
    fn well_known_names() {
        assert_eq!(Cid::of(Codec::DagPb, &[0x0a, 2, 8, 1]).to_string(), EMPTY_DIRECTORY);
        assert_eq!(Cid::of(Codec::Raw, b"").to_string(), EMPTY_FILE);
        let (old, new): (Cid, Cid) = (EMPTY_DIRECTORY_V0.parse().unwrap(), EMPTY_DIRECTORY.parse().unwrap());
        assert_eq!(old.to_string(), EMPTY_DIRECTORY_V0);
        assert_eq!(old.sha256(), new.sha256());
        assert_eq!((old.codec(), new.codec()), (Codec::DagPb, Codec::DagPb));
        assert_ne!(old, new);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let refused = |bytes: &[u8]| Cid::from_bytes(bytes).unwrap_err().to_string();
        let sha = [0x12, 0x20].into_iter().chain([7; 32]);
        let with = |start: &[u8]| start.iter().copied().chain(sha.clone()).collect::<Vec<u8>>();
        assert!(refused(&with(&[1, 0x71])).contains("codec 0x71"));
        assert!(refused(&with(&[2, 0x55])).contains("version 2"));
        assert!(refused(&with(&[1, 0x55])[..35]).contains("ends within its hash"));
        assert!(refused(&[&with(&[1, 0x55])[..], &[0]].concat()).contains("more bytes"));
        assert!(refused(&[1, 0x55, 0x1e, 0x20]).contains("hash function 0x1e"));
        assert!(refused(&[1, 0x55, 0x12, 4, 1, 2, 3, 4]).contains("a hash of 4 bytes"));
        assert!(refused(&[1, 0x55, 0, 0x81, 1]).contains("a hash of 129 bytes"));
        assert!(refused(b"").contains("no version"));
        for text in ["", "b", "bafk", "Qm", "zb2rhe5P4gXftAwvA4eXQ5HJwsER2owDyS9sKaQRRVQPn93bA", "BAFKREIH", &EMPTY_FILE.to_uppercase()] {
            assert_eq!(text.parse::<Cid>().unwrap_err().code(), "format", "{text}");
        }
        // A version 0 in base 32 is not one.
        assert!(format!("b{}", BASE32.encode(&with(&[]))).parse::<Cid>().is_err());
    }

    #[test]
    fn identity_holds_the_block() {
        let cid = Cid::from_bytes(&[1, 0x55, 0, 3, b'a', b'b', b'c']).unwrap();
        assert_eq!((cid.inline(), cid.sha256()), (Some(&b"abc"[..]), None));
        assert_eq!(cid.to_string().parse::<Cid>().unwrap(), cid);
    }

    proptest! {
        #[test]
        fn text_and_bytes_give_the_cid_back(digest: [u8; 32], raw: bool) {
            let cid = Cid::new(if raw { Codec::Raw } else { Codec::DagPb }, digest);
            prop_assert_eq!(Cid::from_bytes(&cid.to_bytes()).unwrap(), cid.clone());
            prop_assert_eq!(cid.to_string().parse::<Cid>().unwrap(), cid.clone());
            prop_assert_eq!(cid.to_bytes().len(), Cid::BYTES);
        }

        #[test]
        fn any_bytes_are_a_cid_or_an_error(bytes: Vec<u8>) {
            if let Ok(cid) = Cid::from_bytes(&bytes) {
                prop_assert_eq!(cid.to_bytes(), bytes);
            }
        }
    }
}
