//! Nodes: `UnixFS` files and directories as dag-pb blocks.
//!
//! A node is a message with links (field 2), which stand before its data (field 1), itself a message: kind, inline bytes, size, the sizes of
//! the links' content, and for a shard hash function and fanout. Written is the one form that Kubo writes, so that names agree; read is any
//! order of the fields, and files that have bytes in their nodes, as older ones have.
//!
//! Not read: symbolic links and metadata nodes. Modes and times are skipped.

use super::cid::{Cid, Codec};
use super::wire::{Fields, Value, put_bytes, put_number, varint_len};
use crate::error::{Error, Result};

/// Kinds of node. The first is a file too, as the leaves of older ones are.
const RAW: u8 = 0;
const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const SHARD: u8 = 5;
/// The multicodec of the first half of `MurmurHash3_x64_128`.
pub(super) const MURMUR3: u64 = 0x22;
/// Most children of a shard that is read: Kubo's own limit.
const MOST_FANOUT: u64 = 1024;

/// Data of a directory.
pub(super) const DIRECTORY_DATA: [u8; 2] = [8, DIRECTORY];

/// A link to a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Name in a directory; in a shard with its place before it; empty in a file.
    pub name: String,
    /// Of the block.
    pub cid: Cid,
    /// Bytes of all blocks below, that one included, as the link tells.
    pub tsize: u64,
}

impl Link {
    fn message_len(&self) -> usize {
        let bytes = |len: usize| 1 + varint_len(len as u64) + len;
        bytes(Cid::BYTES) + bytes(self.name.len()) + 1 + varint_len(self.tsize)
    }

    /// Bytes that it adds to a node.
    pub(super) fn encoded_len(&self) -> usize {
        let message = self.message_len();
        1 + varint_len(message as u64) + message
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let mut message = Vec::with_capacity(self.message_len());
        put_bytes(&mut message, 1, &self.cid.to_bytes());
        put_bytes(&mut message, 2, self.name.as_bytes());
        put_number(&mut message, 3, self.tsize);
        put_bytes(out, 2, &message);
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (mut cid, mut name, mut tsize) = (None, "", 0);
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(bytes)) => match Cid::take(bytes)? {
                    (found, []) => cid = Some(found),
                    _ => return Err("a link has more than a CID".into()),
                },
                (2, Value::Bytes(bytes)) => name = str::from_utf8(bytes).map_err(|_| "a name is not UTF-8")?,
                (3, Value::Number(number)) => tsize = number,
                _ => return Err("a link has a field that is not known".into()),
            }
        }
        Ok(Self { name: name.into(), cid: cid.ok_or("a link has no CID")?, tsize })
    }
}

/// A node's block.
pub(super) fn encode<'a>(links: impl IntoIterator<Item = &'a Link>, data: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    for link in links {
        link.encode(&mut block);
    }
    put_bytes(&mut block, 1, data);
    block
}

/// Data of a file whose links have contents of these sizes.
pub(super) fn file_data(sizes: &[u64]) -> Vec<u8> {
    let mut data = vec![8, FILE];
    put_number(&mut data, 3, sizes.iter().sum());
    for size in sizes {
        put_number(&mut data, 4, *size);
    }
    data
}

/// Data of a shard: which of its places are taken, as a number of 256 bits, the highest first and without leading zeros.
pub(super) fn shard_data(bits: &[u8; 32]) -> Vec<u8> {
    let mut data = vec![8, SHARD];
    put_bytes(&mut data, 2, &bits[bits.iter().position(|byte| *byte != 0).unwrap_or(bits.len())..]);
    put_number(&mut data, 5, MURMUR3);
    put_number(&mut data, 6, 256);
    data
}

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node<'a> {
    /// Bytes of a file: those of the block itself, then those of each link, which has so many.
    File(&'a [u8], Vec<(Link, u64)>),
    /// A directory, in the order in which it was written.
    Directory(Vec<Link>),
    /// Part of a directory: entries, and links to further parts, which have no name.
    Shard {
        /// Bits of a name's hash that tell its place in a part.
        bits: u32,
        /// As in [`Node::Directory`].
        entries: Vec<Link>,
        /// Further parts, each with its place.
        shards: Vec<(u64, Link)>,
    },
}

impl<'a> Node<'a> {
    /// Reads a block, which must be the one that the CID names.
    ///
    /// # Errors
    /// [`Error::Format`] for a node that is malformed or of a kind that is not known here.
    pub fn parse(cid: &Cid, block: &'a [u8]) -> Result<Self> {
        match cid.codec() {
            Codec::Raw => Ok(Self::File(block, Vec::new())),
            Codec::DagPb => Self::parse_node(block).map_err(|reason| Error::format(format!("node {cid}"), reason)),
        }
    }

    fn parse_node(block: &'a [u8]) -> Result<Self, String> {
        let (mut links, mut data) = (Vec::new(), None);
        for field in Fields(block) {
            match field? {
                (1, Value::Bytes(bytes)) if data.is_none() => data = Some(bytes),
                (2, Value::Bytes(bytes)) => links.push(Link::parse(bytes)?),
                _ => return Err("it has a field that is not known".into()),
            }
        }
        let data = Data::parse(data.ok_or("it has no data")?)?;
        match data.kind.map(|kind| u8::try_from(kind).unwrap_or(u8::MAX)) {
            Some(FILE | RAW) => data.file(links),
            Some(DIRECTORY) => {
                if links.iter().any(|link| link.name.is_empty()) {
                    return Err("an entry has no name".into());
                }
                Ok(Self::Directory(links))
            }
            Some(SHARD) => data.shard(links),
            Some(kind) => Err(format!("UnixFS nodes of kind {kind} are not read, only files and directories")),
            None => Err("it has no kind".into()),
        }
    }

    /// Bytes of the file; None for a directory.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::File(bytes, links) => Some(bytes.len() as u64 + links.iter().map(|(_, size)| size).sum::<u64>()),
            Self::Directory(_) | Self::Shard { .. } => None,
        }
    }

    /// Every link, in order.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        let mut file: &[(Link, u64)] = &[];
        let mut entries: &[Link] = &[];
        let mut shards: &[(u64, Link)] = &[];
        match self {
            Self::File(_, links) => file = links,
            Self::Directory(links) => entries = links,
            Self::Shard { entries: named, shards: below, .. } => (entries, shards) = (named, below),
        }
        file.iter().map(|(link, _)| link).chain(entries).chain(shards.iter().map(|(_, link)| link))
    }
}

#[derive(Default)]
struct Data<'a> {
    kind: Option<u64>,
    bytes: &'a [u8],
    size: Option<u64>,
    sizes: Vec<u64>,
    function: Option<u64>,
    fanout: Option<u64>,
}

impl<'a> Data<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut data = Self::default();
        for field in Fields(bytes) {
            match field? {
                (1, Value::Number(kind)) => data.kind = Some(kind),
                (2, Value::Bytes(bytes)) => data.bytes = bytes,
                (3, Value::Number(size)) => data.size = Some(size),
                (4, Value::Number(size)) => data.sizes.push(size),
                (5, Value::Number(function)) => data.function = Some(function),
                (6, Value::Number(fanout)) => data.fanout = Some(fanout),
                (7 | 8, _) => {}
                _ => return Err("its data has a field that is not known".into()),
            }
        }
        Ok(data)
    }

    fn file(self, links: Vec<Link>) -> Result<Node<'a>, String> {
        if links.len() != self.sizes.len() {
            return Err(format!("a file of {} links and {} sizes", links.len(), self.sizes.len()));
        }
        // A piece of no bytes could be repeated without end.
        if self.sizes.contains(&0) {
            return Err("a piece of a file has no bytes".into());
        }
        let all = self.sizes.iter().try_fold(self.bytes.len() as u64, |all, size| all.checked_add(*size));
        if all.is_none() || self.size.is_some_and(|size| Some(size) != all) {
            return Err("the size of a file is not the sum of its parts".into());
        }
        Ok(Node::File(self.bytes, links.into_iter().zip(self.sizes).collect()))
    }

    fn shard(self, links: Vec<Link>) -> Result<Node<'a>, String> {
        if self.function != Some(MURMUR3) {
            return Err(format!("a shard of hash function {:#x}: only murmur3-x64-64 (0x22) is known", self.function.unwrap_or(0)));
        }
        let fanout = self.fanout.unwrap_or(0);
        if !fanout.is_power_of_two() || !(8..=MOST_FANOUT).contains(&fanout) {
            return Err(format!("a shard of {fanout} places"));
        }
        let digits = format!("{:X}", fanout - 1).len();
        let (mut entries, mut shards) = (Vec::new(), Vec::new());
        for mut link in links {
            let place = link.name.get(..digits).and_then(|place| u64::from_str_radix(place, 16).ok()).filter(|place| *place < fanout);
            let Some(place) = place else {
                return Err(format!("a link of a shard is called {:?}, without its place", link.name));
            };
            link.name.drain(..digits);
            if link.name.is_empty() { shards.push((place, link)) } else { entries.push(link) }
        }
        Ok(Node::Shard { bits: fanout.trailing_zeros(), entries, shards })
    }
}
