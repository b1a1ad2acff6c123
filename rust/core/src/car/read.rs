//! Reading a CAR as it comes, and finding one's way in what it held.

use std::collections::{HashMap, HashSet};

use super::cid::Cid;
use super::unixfs::{Link, Node};
use super::wire::take_varint;
use super::{hamt, header};
use crate::digest::{self, Algorithm};
use crate::error::{Error, Result};
use crate::limits;

/// A block that was hashed to its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    cid: Cid,
    bytes: &'a [u8],
}

impl<'a> Block<'a> {
    /// The block of a name.
    ///
    /// # Errors
    /// [`Error::Integrity`] if the bytes are not those that the CID names.
    pub fn check(cid: Cid, bytes: &'a [u8]) -> Result<Self> {
        match cid.inline() {
            Some(inline) if inline != bytes => Err(Error::integrity(&cid, "the bytes are not those in its name")),
            Some(_) => Ok(Self { cid, bytes }),
            None => match digest::hash(Algorithm::Sha256, bytes) {
                found if cid.sha256() == Some(found.bytes()) => Ok(Self { cid, bytes }),
                found => Err(Error::integrity(&cid, format!("the bytes hash to {found}"))),
            },
        }
    }

    /// Its name.
    #[must_use]
    pub const fn cid(&self) -> &Cid {
        &self.cid
    }

    /// Its bytes.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// Takes a CAR of version 1 in pieces of any lengths and gives its blocks, verified.
///
/// It keeps what has come of a block until the whole is there. After an error nothing more is read: every call gives another.
#[derive(Default)]
pub struct Reader {
    /// What has come, from `read` on not yet taken.
    pending: Vec<u8>,
    read: usize,
    /// Where in the CAR `pending[read]` stands.
    offset: u64,
    roots: Option<Vec<Cid>>,
    failed: bool,
}

impl Reader {
    /// A reader that has read nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The roots, once the header has come.
    #[must_use]
    pub fn roots(&self) -> Option<&[Cid]> {
        self.roots.as_deref()
    }

    /// Takes bytes; returns the blocks that they complete, in order. They are hashed together, so the more at once the faster.
    ///
    /// # Errors
    /// [`Error::Integrity`] for a block that is not what its CID says; [`Error::Format`] for what is no CAR of version 1, or has blocks that
    /// are neither raw nor nodes; [`Error::Limit`]. No block of this call is given then.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Block<'_>>> {
        if self.failed {
            return Err(Error::format("CAR", "it was found malformed before: read it anew"));
        }
        self.failed = true;
        self.pending.drain(..self.read);
        self.read = 0;
        self.pending.extend_from_slice(bytes);
        let mut found = Vec::new();
        while let Some((start, end)) = self.section()? {
            let section = &self.pending[start..end];
            if self.roots.is_none() {
                self.roots = Some(header::parse(section).map_err(|reason| Error::format("CAR header", reason))?);
            } else {
                let (cid, block) = Cid::take(section).map_err(|reason| self.malformed(format!("no block begins here: {reason}")))?;
                found.push((cid, end - block.len()..end, self.offset));
            }
            self.offset += (end - self.read) as u64;
            self.read = end;
        }
        let hashed: Vec<_> = found.iter().filter(|(cid, ..)| cid.sha256().is_some()).collect();
        let bytes: Vec<&[u8]> = hashed.iter().map(|(_, range, _)| &self.pending[range.clone()]).collect();
        for ((cid, _, offset), digest) in hashed.iter().zip(digest::hash_many(Algorithm::Sha256, &bytes)) {
            if cid.sha256() != Some(digest.bytes()) {
                return Err(Error::integrity(cid, format!("the block at byte {offset} of the CAR hashes to {digest}")));
            }
        }
        for (cid, range, offset) in &found {
            if cid.inline().is_some_and(|inline| *inline != self.pending[range.clone()]) {
                return Err(Error::integrity(cid, format!("the block at byte {offset} of the CAR has other bytes than its name")));
            }
        }
        self.failed = false;
        Ok(found.into_iter().map(|(cid, range, _)| Block { cid, bytes: &self.pending[range] }).collect())
    }

    /// Says that no more comes.
    ///
    /// # Errors
    /// [`Error::Format`] if the CAR was cut off, or had no header.
    pub fn finish(&self) -> Result<()> {
        if self.failed {
            return Err(Error::format("CAR", "it was found malformed before: read it anew"));
        }
        let rest = &self.pending[self.read..];
        if rest.is_empty() && self.roots.is_some() {
            return Ok(());
        }
        let end = self.offset + rest.len() as u64;
        let mut section = rest;
        let block = match (&self.roots, take_varint(&mut section)) {
            (None, _) => "its header".into(),
            (Some(_), Some(length)) => Cid::take(section).map_or_else(|_| format!("a block of {length} bytes"), |(cid, _)| format!("block {cid}")),
            (Some(_), None) => "the length of a block".into(),
        };
        Err(self.malformed(format!("it is cut off at byte {end}, within {block}, which begins here")))
    }

    /// Where the next header or block begins in `pending`, after its length, and where it ends; None while it is not all there.
    fn section(&self) -> Result<Option<(usize, usize)>> {
        let rest = &self.pending[self.read..];
        let mut body = rest;
        let Some(length) = take_varint(&mut body) else {
            // A length that is allowed has four bytes at most.
            return if rest.len() < 4 { Ok(None) } else { Err(self.malformed("no block begins here: its length is malformed".into())) };
        };
        let (what, name, limit) = match self.roots {
            None => ("header of a CAR", "CAR_HEADER_BYTES", limits::CAR_HEADER_BYTES),
            Some(_) => ("block of a CAR", "CAR_BLOCK_BYTES", limits::CAR_BLOCK_BYTES),
        };
        if length > limit {
            return Err(Error::Limit { what: format!("the {length} bytes of the {what} at byte {}", self.offset), name, limit });
        }
        if length == 0 {
            return Err(self.malformed("no block begins here: its length is 0".into()));
        }
        let start = self.pending.len() - body.len();
        let end = start + usize::try_from(length).expect("it is under the limit");
        Ok((end <= self.pending.len()).then_some((start, end)))
    }

    fn malformed(&self, reason: String) -> Error {
        Error::Format { what: "CAR".into(), field: None, offset: Some(self.offset), reason }
    }
}

/// Verified blocks by name.
#[derive(Default)]
pub struct Blocks {
    blocks: HashMap<Cid, Vec<u8>>,
}

impl Blocks {
    /// No blocks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a block; one that is there already is not kept again.
    pub fn insert(&mut self, block: &Block<'_>) {
        if !self.blocks.contains_key(&block.cid) {
            self.blocks.insert(block.cid.clone(), block.bytes.to_vec());
        }
    }

    /// Number of blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// A block; one whose CID has its bytes is always there.
    #[must_use]
    pub fn get<'a>(&'a self, cid: &'a Cid) -> Option<&'a [u8]> {
        cid.inline().or_else(|| self.blocks.get(cid).map(Vec::as_slice))
    }

    fn node<'a>(&'a self, cid: &'a Cid) -> Result<Node<'a>> {
        Node::parse(cid, self.get(cid).ok_or_else(|| Error::BlobNotFound { digest: cid.to_string() })?)
    }

    /// The blocks that are not here and are linked to from what is, beginning with the root, in the order of a walk. None is missing where
    /// everything below the root is here.
    ///
    /// # Errors
    /// [`Error::Format`] for a malformed node.
    pub fn missing(&self, root: &Cid) -> Result<Vec<Cid>> {
        let mut missing = Vec::new();
        let mut seen = HashSet::from([root.clone()]);
        let mut stack = vec![root.clone()];
        while let Some(cid) = stack.pop() {
            let Some(block) = self.get(&cid) else {
                missing.push(cid);
                continue;
            };
            let below: Vec<Cid> = Node::parse(&cid, block)?.links().map(|link| link.cid.clone()).filter(|cid| seen.insert(cid.clone())).collect();
            stack.extend(below.into_iter().rev());
        }
        Ok(missing)
    }

    /// The entries of a directory, in one block or in many, sorted by the bytes of their names.
    ///
    /// # Errors
    /// [`Error::BlobNotFound`] for a part of it that is not here, [`Error::Format`] for what is no directory, or has a name twice.
    pub fn entries(&self, cid: &Cid) -> Result<Vec<Link>> {
        let mut all = Vec::new();
        let mut stack = vec![cid.clone()];
        let mut seen = HashSet::from([cid.clone()]);
        while let Some(part) = stack.pop() {
            match self.node(&part)? {
                Node::Directory(links) if part == *cid => all = links,
                Node::Shard { entries, shards, .. } => {
                    all.extend(entries);
                    for (_, shard) in shards {
                        if !seen.insert(shard.cid.clone()) {
                            return Err(Error::format(format!("directory {cid}"), "a part of it is there twice"));
                        }
                        stack.push(shard.cid);
                    }
                }
                _ => return Err(Error::format(format!("directory {cid}"), format!("{part} is no part of a directory"))),
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        match all.windows(2).find(|pair| pair[0].name == pair[1].name) {
            Some(pair) => Err(Error::format(format!("directory {cid}"), format!("the name {:?} is there twice", pair[0].name))),
            None => Ok(all),
        }
    }

    /// The entry of a directory that has a name; None where there is none. Of a large directory only the parts on the way to it are looked at.
    ///
    /// # Errors
    /// [`Error::BlobNotFound`] for a part that is not here, [`Error::Format`] for what is no directory.
    pub fn find(&self, cid: &Cid, name: &str) -> Result<Option<Link>> {
        let hash = hamt::place(name);
        let (mut part, mut depth) = (cid.clone(), 0);
        loop {
            match self.node(&part)? {
                Node::Directory(links) if part == *cid => return Ok(links.into_iter().find(|link| link.name == name)),
                Node::Shard { bits, entries, shards } => {
                    if let Some(link) = entries.into_iter().find(|link| link.name == name) {
                        return Ok(Some(link));
                    }
                    if depth + bits > u64::BITS {
                        return Ok(None);
                    }
                    let place = (hash << depth) >> (u64::BITS - bits);
                    let Some((_, below)) = shards.into_iter().find(|(at, _)| *at == place) else { return Ok(None) };
                    (part, depth) = (below.cid, depth + bits);
                }
                Node::File(..) => return Err(Error::format(format!("directory {cid}"), format!("{part} is no part of a directory"))),
                Node::Directory(_) => return Err(Error::format(format!("directory {cid}"), format!("{part} is no part of it"))),
            }
        }
    }

    /// Bytes of a file, as its topmost block tells.
    ///
    /// # Errors
    /// As [`Blocks::read`].
    pub fn size(&self, cid: &Cid) -> Result<u64> {
        self.node(cid)?.size().ok_or_else(|| Error::format(format!("file {cid}"), "it is a directory"))
    }

    /// Gives the bytes of a file, in order, to `out`.
    ///
    /// # Errors
    /// [`Error::BlobNotFound`] for a part of it that is not here; [`Error::Format`] for what is no file, or where a part is not as long as the
    /// link to it says; whatever `out` says.
    pub fn read(&self, cid: &Cid, out: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut stack = vec![(cid.clone(), self.size(cid)?)];
        while let Some((part, expected)) = stack.pop() {
            let node = self.node(&part)?;
            if node.size() != Some(expected) {
                return Err(Error::format(
                    format!("file {cid}"),
                    format!("its part {part} does not have the {expected} bytes of a file that its link tells"),
                ));
            }
            if let Node::File(bytes, links) = node {
                out(bytes)?;
                stack.extend(links.into_iter().rev().map(|(link, size)| (link.cid, size)));
            }
        }
        Ok(())
    }
}
