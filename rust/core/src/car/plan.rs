//! Writing: first a plan, which reads everything once and knows every name, then the bytes, which are read again.
//!
//! Blocks stand in the order of a walk from the root, depth first and in the order of links, each where it is met first. So does Kubo's
//! `dag/export` write them, and a reader learns what a directory holds before the contents come. The plan keeps the blocks of nodes and, of
//! contents, names and places; memory grows with the number of blocks, not with their bytes.

use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, IoSliceMut};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::cid::{Cid, Codec};
use super::unixfs::{DIRECTORY_DATA, Link, encode, file_data};
use super::wire::{put_varint, varint_len};
use super::{hamt, header};
use crate::digest::{self, Algorithm};
use crate::error::{Error, Result};
use crate::pool::{self, Monitor};
use crate::{io, path};

/// Bytes of content and number of blocks that are hashed together.
const TASK_BYTES: u64 = 4 << 20;
const TASK_BLOCKS: usize = 64;
/// Least bytes of a chunk of the CAR, but for the last.
const CHUNK_BYTES: u64 = 1 << 20;

/// How contents become blocks: Kubo's profile `unixfs-v1-2025` (IPIP-499). Tests take smaller numbers to see the same shapes sooner.
#[derive(Clone, Copy)]
pub(super) struct Profile {
    /// Most content bytes of a block.
    pub block_bytes: u64,
    /// Most links of a file's node.
    pub file_links: usize,
    /// Most bytes of a directory's block; above, it is a trie.
    pub directory_bytes: usize,
}

pub(super) const PROFILE: Profile = Profile { block_bytes: 1 << 20, file_links: 1024, directory_bytes: 256 << 10 };

/// Where the content of a file is, which must be the same at every reading.
pub trait Source: Sync {
    /// Its length.
    ///
    /// # Errors
    /// Whatever keeps it from being told.
    fn size(&self) -> Result<u64>;

    /// Fills the whole of `out` with what stands from `offset` on.
    ///
    /// # Errors
    /// [`Error::Changed`] if there is not as much any more.
    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<()>;
}

impl Source for PathBuf {
    fn size(&self) -> Result<u64> {
        let meta = std::fs::metadata(self).map_err(Error::io("look at", self))?;
        if meta.is_file() { Ok(meta.len()) } else { Err(Error::format(format!("{}", self.display()), "not a regular file")) }
    }

    fn read_at(&self, mut out: &mut [u8], mut offset: u64) -> Result<()> {
        let file = io::open_regular(self).map_err(Error::io("open", self))?;
        while !out.is_empty() {
            match io::read_vectored_at(&file, &mut [IoSliceMut::new(out)], offset) {
                Ok(0) => return Err(changed(self, "it became shorter")),
                Ok(read) => {
                    out = &mut out[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", self)(error)),
            }
        }
        Ok(())
    }
}

impl<B: AsRef<[u8]> + Sync> Source for std::io::Cursor<B> {
    fn size(&self) -> Result<u64> {
        Ok(self.get_ref().as_ref().len() as u64)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let start = usize::try_from(offset).expect("a place in memory");
        out.copy_from_slice(&self.get_ref().as_ref()[start..][..out.len()]);
        Ok(())
    }
}

fn changed(path: &Path, reason: &str) -> Error {
    Error::Changed { path: path.to_path_buf(), reason: reason.into() }
}

/// Part of a source that is a block.
#[derive(Clone, Copy)]
struct Piece {
    source: usize,
    offset: u64,
    len: u64,
}

/// A block in its place.
struct Block {
    cid: Cid,
    body: Body,
}

enum Body {
    Node(Vec<u8>),
    Piece(Piece),
}

impl Block {
    fn len(&self) -> u64 {
        match &self.body {
            Body::Node(bytes) => bytes.len() as u64,
            Body::Piece(piece) => piece.len,
        }
    }

    /// Bytes of all that stands in the CAR for it.
    fn section_len(&self) -> u64 {
        let len = Cid::BYTES as u64 + self.len();
        varint_len(len) as u64 + len
    }
}

/// A CAR that can be written: one directory, and all that is below.
pub struct Plan<S> {
    entries: Vec<(String, S)>,
    files: Vec<(Cid, u64)>,
    root: Cid,
    head: Vec<u8>,
    blocks: Vec<Block>,
}

/// Blocks of a plan, in the order in which a CAR has them.
pub struct Part {
    order: Vec<usize>,
    size: u64,
}

impl Part {
    /// Bytes of the CAR.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of blocks, each of which is there once.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.order.len()
    }
}

impl<S: Source> Plan<S> {
    /// Reads all contents once. The names are paths relative to the directory, in any order; what stands before a `/` becomes a directory.
    ///
    /// # Errors
    /// [`Error::Format`] for names that cannot be, or are there twice; at its index, whatever a source says.
    pub fn new(entries: Vec<(String, S)>, monitor: &Monitor) -> Result<Self> {
        Self::with_profile(PROFILE, entries, monitor)
    }

    pub(super) fn with_profile(profile: Profile, mut entries: Vec<(String, S)>, monitor: &Monitor) -> Result<Self> {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by(|a, b| path::compare(&entries[*a].0, &entries[*b].0));
        path::check_set(order.iter().map(|at| (entries[*at].0.as_str(), false)))
            .map_err(|(name, reason)| Error::format(format!("entry {name:?} of a CAR"), reason))?;
        let mut builder = Builder::new(profile);
        let (links, sizes) = builder.files(&entries, monitor)?;
        let named: Vec<(&str, Link)> = order.iter().map(|at| (entries[*at].0.as_str(), links[*at].clone())).collect();
        let root = builder.directory(&named, 0)?.cid;
        let head = header::encode(&root);
        let blocks = builder.in_order(&root);
        entries.shrink_to_fit();
        let files = links.into_iter().zip(sizes).map(|(link, size)| (link.cid, size)).collect();
        Ok(Self { entries, files, root, head, blocks })
    }

    /// Name of the directory.
    #[must_use]
    pub fn root(&self) -> &Cid {
        &self.root
    }

    /// Names and bytes of the contents, in the order of the entries.
    #[must_use]
    pub fn files(&self) -> &[(Cid, u64)] {
        &self.files
    }

    /// The whole CAR, in the order of a walk.
    #[must_use]
    pub fn whole(&self) -> Part {
        self.part((0..self.blocks.len()).collect())
    }

    /// What a service lacks that has some blocks, in an order in which it never has a name without what that refers to: contents first, the
    /// root last.
    #[must_use]
    pub fn upload(&self, there: &HashSet<Cid>) -> Part {
        let (mut order, nodes): (Vec<usize>, Vec<usize>) = (0..self.blocks.len())
            .filter(|at| !there.contains(&self.blocks[*at].cid))
            .partition(|at| matches!(self.blocks[*at].body, Body::Piece(_)));
        order.extend(nodes.into_iter().rev());
        self.part(order)
    }

    fn part(&self, order: Vec<usize>) -> Part {
        let size = self.head.len() as u64 + order.iter().map(|at| self.blocks[*at].section_len()).sum::<u64>();
        Part { order, size }
    }

    /// The blocks of the chunk that begins with a block of a part, and its bytes; None after the last. The first chunk has the header too. A
    /// chunk has a mebibyte or somewhat more.
    #[must_use]
    pub fn chunk(&self, part: &Part, start: usize) -> Option<(Range<usize>, usize)> {
        let mut bytes = if start == 0 { self.head.len() as u64 } else { 0 };
        let mut end = start;
        while bytes < CHUNK_BYTES
            && let Some(at) = part.order.get(end)
        {
            bytes += self.blocks[*at].section_len();
            end += 1;
        }
        (end > start).then(|| (start..end, usize::try_from(bytes).expect("a chunk is little more than a block")))
    }

    /// Writes a chunk to memory of its length. Every content is hashed again, so that what was changed since it was planned is not written.
    ///
    /// # Errors
    /// [`Error::Changed`], and whatever a source says, at its index.
    pub fn write(&self, part: &Part, blocks: Range<usize>, out: &mut [u8]) -> Result<()> {
        let mut rest = out;
        let mut next = |len: usize| rest.split_off_mut(..len).expect("the chunk's length was told");
        if blocks.start == 0 {
            next(self.head.len()).copy_from_slice(&self.head);
        }
        let mut pieces = Vec::new();
        let mut contents: Vec<&[u8]> = Vec::new();
        let mut head = Vec::new();
        for block in part.order[blocks].iter().map(|at| &self.blocks[*at]) {
            head.clear();
            put_varint(&mut head, Cid::BYTES as u64 + block.len());
            head.extend_from_slice(&block.cid.to_bytes());
            next(head.len()).copy_from_slice(&head);
            let body = next(usize::try_from(block.len()).expect("a block fits memory"));
            match &block.body {
                Body::Node(bytes) => body.copy_from_slice(bytes),
                Body::Piece(piece) => {
                    self.entries[piece.source].1.read_at(body, piece.offset).map_err(|error| error.at(piece.source))?;
                    pieces.push((&block.cid, piece.source));
                    contents.push(body);
                }
            }
        }
        let digests = digest::hash_many(Algorithm::Sha256, &contents);
        match pieces.iter().zip(digests).find(|((cid, _), digest)| cid.sha256() != Some(digest.bytes())) {
            Some(((_, source), _)) => Err(changed(Path::new(&self.entries[*source].0), "it is not what was planned").at(*source)),
            None => Ok(()),
        }
    }
}

/// Blocks as they are made, contents before what links to them.
struct Builder {
    profile: Profile,
    pieces: HashMap<[u8; 32], Piece>,
    nodes: HashMap<[u8; 32], (Vec<u8>, Vec<Cid>)>,
}

impl Builder {
    fn new(profile: Profile) -> Self {
        Self { profile, pieces: HashMap::new(), nodes: HashMap::new() }
    }

    fn node(&mut self, block: Vec<u8>, links: &[Link]) -> Cid {
        let cid = Cid::of(Codec::DagPb, &block);
        let key = *cid.sha256().expect("it was hashed");
        self.nodes.entry(key).or_insert_with(|| (block, links.iter().map(|link| link.cid.clone()).collect()));
        cid
    }

    /// A link to each content, and its bytes.
    fn files<S: Source>(&mut self, entries: &[(String, S)], monitor: &Monitor) -> Result<(Vec<Link>, Vec<u64>)> {
        let size = |(source, entry): (usize, &(String, S))| {
            monitor.check()?;
            entry.1.size().map_err(|error| error.at(source))
        };
        let sizes = pool::install(|| entries.par_iter().enumerate().with_min_len(64).map(size).collect::<Result<Vec<u64>>>())?;
        let step = self.profile.block_bytes;
        // An empty file is one empty block.
        let cut = |(source, size): (usize, &u64)| {
            let size = *size;
            (0..size.div_ceil(step).max(1)).map(move |at| Piece { source, offset: at * step, len: step.min(size - at * step) })
        };
        let pieces: Vec<Piece> = sizes.iter().enumerate().flat_map(cut).collect();
        monitor.expect(pieces.len() as u64);
        let mut cids = hash_pieces(entries, &pieces, monitor)?.into_iter().zip(&pieces);
        let mut links = Vec::with_capacity(entries.len());
        for (source, size) in sizes.iter().enumerate() {
            let mut level = Vec::new();
            for (digest, piece) in cids.by_ref().take(usize::try_from(size.div_ceil(step).max(1)).expect("they are in memory")) {
                debug_assert_eq!(piece.source, source);
                self.pieces.entry(digest).or_insert(*piece);
                level.push((Link { name: String::new(), cid: Cid::new(Codec::Raw, digest), tsize: piece.len }, piece.len));
            }
            links.push(self.file(level));
        }
        Ok((links, sizes))
    }

    /// The file of these contents, each with its bytes: nodes over them, level by level, until there is one.
    fn file(&mut self, mut level: Vec<(Link, u64)>) -> Link {
        while level.len() > 1 {
            let parents = level.chunks(self.profile.file_links).map(|children| {
                let (links, sizes): (Vec<Link>, Vec<u64>) = children.iter().cloned().unzip();
                let block = encode(&links, &file_data(&sizes));
                let tsize = block.len() as u64 + links.iter().map(|link| link.tsize).sum::<u64>();
                (Link { name: String::new(), cid: self.node(block, &links), tsize }, sizes.iter().sum())
            });
            level = parents.collect();
        }
        level.pop().expect("a file has a block").0
    }

    /// The directory of these files, whose paths are sorted and equal up to `depth` bytes.
    fn directory(&mut self, files: &[(&str, Link)], depth: usize) -> Result<Link> {
        let mut links = Vec::with_capacity(files.len());
        let name = |path: &'_ str| path[depth..].split('/').next().unwrap_or_default().len();
        for group in files.chunk_by(|(a, _), (b, _)| a[depth..][..name(a)] == b[depth..][..name(b)]) {
            let (path, file) = &group[0];
            let end = depth + name(path);
            let below = if end == path.len() { file.clone() } else { self.directory(group, end + 1)? };
            links.push(Link { name: path[depth..end].into(), ..below });
        }
        let bytes = 2 + DIRECTORY_DATA.len() + links.iter().map(Link::encoded_len).sum::<usize>();
        if bytes > self.profile.directory_bytes {
            return hamt::build(&links, &mut |block, links| self.node(block, links))
                .ok_or_else(|| Error::format("directory of a CAR", "two of its names have the same murmur3 hash: rename one"));
        }
        let block = encode(&links, &DIRECTORY_DATA);
        let tsize = block.len() as u64 + links.iter().map(|link| link.tsize).sum::<u64>();
        Ok(Link { name: String::new(), cid: self.node(block, &links), tsize })
    }

    /// All blocks in the order of a walk, each once.
    fn in_order(mut self, root: &Cid) -> Vec<Block> {
        let mut blocks = Vec::with_capacity(self.pieces.len() + self.nodes.len());
        let mut seen = HashSet::with_capacity(blocks.capacity());
        let mut stack = vec![root.clone()];
        while let Some(cid) = stack.pop() {
            let key = *cid.sha256().expect("they were hashed");
            if !seen.insert((cid.codec(), key)) {
                continue;
            }
            let body = match cid.codec() {
                Codec::Raw => Body::Piece(self.pieces[&key]),
                Codec::DagPb => {
                    let (block, links) = self.nodes.remove(&key).expect("every node is met once");
                    stack.extend(links.into_iter().rev());
                    Body::Node(block)
                }
            };
            blocks.push(Block { cid, body });
        }
        blocks
    }
}

/// SHA-256 of each piece, in order.
fn hash_pieces<S: Source>(entries: &[(String, S)], pieces: &[Piece], monitor: &Monitor) -> Result<Vec<[u8; 32]>> {
    let task = |memory: &mut Vec<u8>, pieces: &[Piece]| {
        let bytes: u64 = pieces.iter().map(|piece| piece.len).sum();
        memory.resize(usize::try_from(bytes).expect("a task's bytes are bounded").max(memory.len()), 0);
        let mut rest = &mut memory[..];
        let mut contents: Vec<&[u8]> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let part = rest.split_off_mut(..usize::try_from(piece.len).expect("as above")).expect("there is room for all");
            entries[piece.source].1.read_at(part, piece.offset).map_err(|error| error.at(piece.source))?;
            contents.push(part);
        }
        let digests: Vec<[u8; 32]> = digest::hash_many(Algorithm::Sha256, &contents).iter().map(|digest| *digest.bytes()).collect();
        monitor.advance(pieces.len() as u64, bytes)?;
        Ok(digests)
    };
    let hashed =
        pool::install(|| tasks(pieces).into_par_iter().map_init(Vec::new, |memory, pieces| task(memory, pieces)).collect::<Result<Vec<_>>>())?;
    Ok(hashed.concat())
}

/// The pieces in groups of bounded bytes.
fn tasks(pieces: &[Piece]) -> Vec<&[Piece]> {
    let mut tasks = Vec::new();
    let mut start = 0;
    let mut bytes = 0;
    for (at, piece) in pieces.iter().enumerate() {
        if at > start && (bytes + piece.len > TASK_BYTES || at - start == TASK_BLOCKS) {
            tasks.push(&pieces[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += piece.len;
    }
    if start < pieces.len() {
        tasks.push(&pieces[start..]);
    }
    tasks
}

/// The CID that a file of these bytes has.
#[must_use]
pub fn cid_of(bytes: &[u8]) -> Cid {
    let step = usize::try_from(PROFILE.block_bytes).expect("a block fits memory");
    let pieces: Vec<&[u8]> = if bytes.is_empty() { vec![bytes] } else { bytes.chunks(step).collect() };
    let digests = digest::hash_many(Algorithm::Sha256, &pieces);
    let level = digests.iter().zip(&pieces).map(|(digest, piece)| {
        let len = piece.len() as u64;
        (Link { name: String::new(), cid: Cid::new(Codec::Raw, *digest.bytes()), tsize: len }, len)
    });
    Builder::new(PROFILE).file(level.collect()).cid
}
