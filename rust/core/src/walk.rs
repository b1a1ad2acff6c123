//! What is reachable from an image.
//!
//! The order is fixed: the layers in the order of [`Manifest::blob_digests`], then the blobs of the tree, then K and V of each page, then
//! what the process table and the model difference name; each digest once, where it is first seen. A layer that is not the document its
//! place calls for is opaque and refers to nothing; one that claims to be it and is malformed is an error.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::str::FromStr;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rayon::prelude::*;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::pages::{Page, Pieces};
use crate::store::BlobStore;
use crate::tree::FsTree;
use crate::{json, pages, pool};

/// A page manifest of so many bytes is not held in memory while it is read.
const LARGE: usize = 1 << 20;

/// A layer of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Base model and what was trained on top of it.
    Model,
    /// KV pages.
    Cache,
    /// Files, environment, processes.
    World,
    /// Effects ledger.
    Effects,
    /// Messages.
    Trace,
}

impl FromStr for Layer {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "model" => Ok(Self::Model),
            "cache" => Ok(Self::Cache),
            "world" => Ok(Self::World),
            "effects" => Ok(Self::Effects),
            "trace" => Ok(Self::Trace),
            other => Err(Error::format("layer", format!("{other:?} is none of model, cache, world, effects, trace"))),
        }
    }
}

/// Which part of an image is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Layers; None means all.
    pub layers: Option<Vec<Layer>>,
    /// Numbers of pages; None means all.
    pub ixs: Option<Vec<u64>>,
}

impl Selection {
    /// The whole image.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    fn has(&self, layer: Layer) -> bool {
        self.layers.as_ref().is_none_or(|layers| layers.contains(&layer))
    }
}

/// A layer blob that may refer to others, by its place in the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// `world.fs`.
    Tree(Digest),
    /// `cache.manifest`.
    Pages(Digest),
    /// `world.procs`.
    Procs(Digest),
    /// `model.diff`.
    Diff(Digest),
}

impl Document {
    /// The blob.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        match self {
            Self::Tree(digest) | Self::Pages(digest) | Self::Procs(digest) | Self::Diff(digest) => digest,
        }
    }

    /// What the blob refers to.
    ///
    /// # Errors
    /// [`Error::BlobNotFound`] when it is not there; [`Error::Format`] when it is malformed.
    pub fn children(&self, blobs: &dyn BlobStore) -> Result<Vec<Digest>> {
        let bytes = || read(blobs, self.digest());
        match self {
            Self::Tree(_) => tree_children(&bytes()?),
            Self::Pages(digest) => {
                let mut pieces = Pieces::<Sides>::new(LARGE);
                blobs.get_stream(digest, &mut pieces)?;
                match pieces.finish()? {
                    Some(sides) => Ok(sides.0),
                    None => page_children(&bytes()?),
                }
            }
            Self::Procs(_) => procs_children(&bytes()?),
            Self::Diff(_) => diff_children(&bytes()?),
        }
    }
}

/// The layers' digests, in walk order, each once.
#[must_use]
pub fn manifest_blob_digests(manifest: &Manifest) -> Vec<Digest> {
    layers(manifest, &Selection::all())
}

fn layers(manifest: &Manifest, selection: &Selection) -> Vec<Digest> {
    use Layer::{Cache, Effects, Model, Trace, World};
    let of = [Model, Model, Cache, World, World, World, Effects, Trace];
    let chosen = manifest.blob_digests().into_iter().zip(of).filter(|(_, layer)| selection.has(*layer));
    distinct(chosen.map(|(digest, _)| digest).collect())
}

/// The layer blobs that a walk reads, in the order in which it does.
#[must_use]
pub fn documents(manifest: &Manifest, selection: &Selection) -> Vec<Document> {
    let fields = manifest.fields();
    let all = [
        (Layer::World, Document::Tree(fields.world.fs)),
        (Layer::Cache, Document::Pages(fields.cache.manifest)),
        (Layer::World, Document::Procs(fields.world.procs)),
        (Layer::Model, Document::Diff(fields.model.diff)),
    ];
    all.into_iter().filter(|(layer, _)| selection.has(*layer)).map(|(_, document)| document).collect()
}

/// Everything that an image refers to, its own id not among it.
///
/// # Errors
/// [`Error::BlobNotFound`] for a document that is not there; [`Error::Format`] for a malformed one.
pub fn transitive_blob_digests(manifest: &Manifest, blobs: &dyn BlobStore) -> Result<Vec<Digest>> {
    reachable(manifest, blobs, &Selection::all())
}

/// Everything that a part of an image refers to.
///
/// # Errors
/// As [`transitive_blob_digests`]; also [`Error::Format`] for a page number that the cache does not have.
pub fn reachable(manifest: &Manifest, blobs: &dyn BlobStore, selection: &Selection) -> Result<Vec<Digest>> {
    let mut found = layers(manifest, selection);
    for document in documents(manifest, selection) {
        match (document, &selection.ixs) {
            (Document::Pages(digest), Some(ixs)) => {
                let listed: Option<Vec<Page>> = pages::listed(&read(blobs, &digest)?)?;
                found.extend(chosen_pages(listed.unwrap_or_default(), ixs)?);
            }
            _ => append(&mut found, document.children(blobs)?),
        }
    }
    Ok(distinct(found))
}

/// A layer's bytes. One that is too large for a document and is no JSON object is opaque, so nothing of it is kept.
fn read(blobs: &dyn BlobStore, digest: &Digest) -> Result<Vec<u8>> {
    match blobs.get(digest) {
        Err(limit @ Error::Limit { .. }) => {
            let mut start = Start(None);
            // To the end, since only then is the start verified.
            blobs.get_stream(digest, &mut start)?;
            if start.0 == Some(b'{') { Err(limit) } else { Ok(Vec::new()) }
        }
        other => other,
    }
}

/// Keeps the first byte that is no white space.
struct Start(Option<u8>);

impl Write for Start {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.or_else(|| bytes.trim_ascii_start().first().copied());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn chosen_pages(listed: Vec<Page>, ixs: &[u64]) -> Result<Vec<Digest>> {
    let mut wanted: HashSet<u64> = ixs.iter().copied().collect();
    let mut chosen = Sides::default();
    chosen.extend(listed.into_iter().filter(|page| wanted.remove(&page.ix)));
    match wanted.into_iter().min() {
        Some(ix) => Err(Error::format("page manifest", format!("it has no page {ix}"))),
        None => Ok(chosen.0),
    }
}

/// Appends to a list. The longer of both stays where it is: pages may be millions, and mostly follow on a few layers.
fn append(found: &mut Vec<Digest>, mut more: Vec<Digest>) {
    if found.len() < more.len() {
        more.splice(0..0, found.drain(..));
        *found = more;
    } else {
        found.append(&mut more);
    }
}

/// What a part of an image refers to, as far as the documents that tell it are here.
pub fn present(manifest: &Manifest, blobs: &dyn BlobStore) -> Result<Vec<Digest>> {
    let mut found = layers(manifest, &Selection::all());
    for document in documents(manifest, &Selection::all()) {
        if blobs.has(document.digest())? {
            append(&mut found, document.children(blobs)?);
        }
    }
    Ok(distinct(found))
}

/// A pinned blob and, where it is an image, a tree or another document, what it refers to as far as that is here.
pub fn pinned(digest: &Digest, blobs: &dyn BlobStore) -> Result<Vec<Digest>> {
    let mut found = vec![*digest];
    if digest.algorithm() == blobs.algorithm() && blobs.has(digest)? {
        let bytes = read(blobs, digest)?;
        match Manifest::parse(&bytes) {
            Ok(manifest) => found.extend(present(&manifest, blobs)?),
            Err(_) => found.extend(children(&bytes)?),
        }
    }
    Ok(distinct(found))
}

/// What a blob refers to when its place is not known, for roots that name it directly.
fn children(bytes: &[u8]) -> Result<Vec<Digest>> {
    let mut found = tree_children(bytes)?;
    found.extend(page_children(bytes)?);
    found.extend(procs_children(bytes)?);
    found.extend(diff_children(bytes)?);
    Ok(distinct(found))
}

fn tree_children(bytes: &[u8]) -> Result<Vec<Digest>> {
    if !FsTree::is(bytes) {
        return Ok(Vec::new());
    }
    Ok(FsTree::parse(bytes)?.entries.iter().filter_map(|entry| entry.blob().copied()).collect())
}

fn page_children(bytes: &[u8]) -> Result<Vec<Digest>> {
    Ok(pages::listed::<Sides>(bytes)?.unwrap_or_default().0)
}

/// K and V of each page.
#[derive(Default)]
struct Sides(Vec<Digest>);

impl Extend<Page> for Sides {
    fn extend<T: IntoIterator<Item = Page>>(&mut self, pages: T) {
        pages.into_iter().for_each(|page| self.0.extend([page.k, page.v]));
    }
}

/// A process table made by CRIU names the blob of its dump.
fn procs_children(bytes: &[u8]) -> Result<Vec<Digest>> {
    #[derive(Deserialize)]
    struct Procs {
        criu_dump: Option<Digest>,
        // Not used, but read so that a document that says it twice is refused.
        #[serde(rename = "kind")]
        _kind: IgnoredAny,
    }
    if !json::says(bytes, "kind", "procs.criu.v1") {
        return Ok(Vec::new());
    }
    Ok(json::parse::<Procs>("process table", bytes)?.criu_dump.into_iter().collect())
}

/// Adapters of a model difference may name blobs; where in an adapter depends on its kind, so every digest in it counts.
fn diff_children(bytes: &[u8]) -> Result<Vec<Digest>> {
    #[derive(Deserialize)]
    struct Document {
        #[serde(deserialize_with = "json::object")]
        diff: Diff,
        #[serde(rename = "layout")]
        _layout: IgnoredAny,
    }
    #[derive(Deserialize)]
    struct Diff {
        #[serde(default)]
        adapters: Digests,
    }
    if !json::says(bytes, "layout", "model.diff.v1") {
        return Ok(Vec::new());
    }
    Ok(json::parse::<Document>("model difference", bytes)?.diff.adapters.0)
}

/// All strings of a JSON value that are digests; weights and anything else are passed over without being kept.
#[derive(Default)]
struct Digests(Vec<Digest>);

impl<'de> Deserialize<'de> for Digests {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

macro_rules! nothing_in {
    ($($visit:ident: $type:ty),*) => {
        $(fn $visit<E>(self, _: $type) -> Result<Digests, E> {
            Ok(Digests::default())
        })*
    };
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Digests;

    nothing_in!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Digests, E> {
        Ok(Digests::default())
    }

    fn visit_str<E>(self, text: &str) -> Result<Digests, E> {
        Ok(Digests(text.parse().into_iter().collect()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Digests, A::Error> {
        let mut all = Vec::new();
        while let Some(mut item) = items.next_element::<Digests>()? {
            all.append(&mut item.0);
        }
        Ok(Digests(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Digests, A::Error> {
        let mut all = Vec::new();
        while let Some((_, mut value)) = map.next_entry::<IgnoredAny, Digests>()? {
            all.append(&mut value.0);
        }
        Ok(Digests(all))
    }
}

/// Leaves each digest where it is first seen.
fn distinct(mut digests: Vec<Digest>) -> Vec<Digest> {
    /// So many are quicker done than told to others.
    const FEW: usize = 1 << 14;
    /// So that what is looked up at a time stays in the caches nearby.
    const PARTS: usize = 16;
    if digests.len() < FEW {
        let mut seen = HashSet::with_capacity(digests.len());
        digests.retain(|digest| seen.insert(*digest));
        return digests;
    }
    // Digests that were not made by hashing may be anything, so that the key of this hash has to be a secret.
    let key = RandomState::new();
    let hash = |digest: &Digest| {
        let mut hasher = key.build_hasher();
        hasher.write(digest.bytes());
        hasher.finish()
    };
    let hashes: Vec<u64> = pool::install(|| digests.par_iter().map(hash).collect());
    let repeats = |part: usize| {
        let mut seen = HashTable::<usize>::with_capacity(digests.len() / PARTS);
        let mut repeats = Vec::new();
        for (at, hash) in hashes.iter().enumerate().filter(|(_, hash)| (*hash >> 32) % PARTS as u64 == part as u64) {
            match seen.entry(*hash, |other| digests[*other] == digests[at], |other| hashes[*other]) {
                Entry::Vacant(place) => drop(place.insert(at)),
                Entry::Occupied(_) => repeats.push(at),
            }
        }
        repeats
    };
    let mut repeats: Vec<usize> = pool::install(|| (0..PARTS).into_par_iter().flat_map_iter(repeats).collect());
    repeats.sort_unstable();
    let mut repeats = repeats.into_iter().peekable();
    let mut at = 0..;
    digests.retain(|_| repeats.next_if_eq(&at.next().expect("numbers do not end")).is_none());
    digests
}

#[cfg(test)]
mod tests;
