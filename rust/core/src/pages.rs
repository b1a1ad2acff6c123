//! Page manifests: a paged KV cache as a document.
//!
//! A cache is cut into pages of so many tokens; each has a K and a V blob of [`CacheMeta::page_bytes`] bytes. Sequences list their pages by
//! number. Reading takes any key order and unknown keys; digests are decoded where they stand, so that a page costs 80 bytes, and a list in
//! the form in which it is written needs no parser. Whatever was read or made has its pages in order of their numbers and its sequences in
//! order of their names.

use std::cmp::Ordering;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::codec::float::Width;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::json::{self, Objects};
use crate::limits;

mod list;
mod pieces;

pub(crate) use pieces::Pieces;

/// The only layout whose pages can be read: C order of (layers, tokens, heads, head dimension), little-endian.
pub const LAYOUT: &str = "paged-batchinvariant-v1";
/// Numbers in a document have 32 bits.
const MOST: u64 = u32::MAX as u64;
const WHAT: &str = "page manifest";

/// Type of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// 8 bits: four of exponent, three of mantissa.
    Fp8e4m3,
}

impl Dtype {
    /// Size of an element in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::Fp8e4m3 => 1,
        }
    }

    /// The same for the codec of floats.
    #[must_use]
    pub const fn width(self) -> Width {
        match self {
            Self::Bf16 | Self::F16 => Width::Two,
            Self::F32 => Width::Four,
            Self::Fp8e4m3 => Width::One,
        }
    }

    /// Its name in documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Fp8e4m3 => "fp8e4m3",
        }
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let all = [Self::Bf16, Self::F16, Self::F32, Self::Fp8e4m3];
        all.into_iter()
            .find(|dtype| dtype.name() == s)
            .ok_or_else(|| Error::field("cache geometry", "dtype", format!("{s:?} is none of bf16, f16, f32, fp8e4m3")))
    }
}

/// Geometry of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheMeta {
    /// Tokens of a page.
    pub page_size_tokens: u64,
    /// Layers of the model; 0 in an image without a cache.
    pub n_layers: u64,
    /// Heads that K and V have.
    pub n_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
    /// Type of an element.
    pub dtype: Dtype,
}

impl CacheMeta {
    /// Bytes of one K (or V) page: layers × tokens × heads × head dimension × element size.
    ///
    /// # Errors
    /// [`Error::Limit`] when that is more than a blob may have in memory.
    pub fn page_bytes(&self) -> Result<u64> {
        let factors = [self.n_layers, self.page_size_tokens, self.n_heads, self.head_dim, self.dtype.bytes()];
        factors.into_iter().try_fold(1_u64, u64::checked_mul).filter(|bytes| *bytes <= limits::BLOB_IN_MEMORY_BYTES).ok_or_else(|| Error::Limit {
            what: "page size".into(),
            name: "BLOB_IN_MEMORY_BYTES",
            limit: limits::BLOB_IN_MEMORY_BYTES,
        })
    }
}

/// One page: its number and its two blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Page {
    /// Number of the page; numbers may have gaps.
    pub ix: u64,
    /// Keys.
    pub k: Digest,
    /// Values.
    pub v: Digest,
}

/// The pages of one sequence of tokens, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogicalSeq {
    /// Name of the sequence.
    pub id: String,
    /// Numbers of its pages; sequences with a common prefix share pages.
    pub page_ixs: Vec<u64>,
    /// Tokens in the last page; 0 when it is full.
    pub fill_in_last_page: u64,
}

/// A paged KV cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageManifest {
    layout: String,
    meta: CacheMeta,
    pages: Vec<Page>,
    logical_seqs: Vec<LogicalSeq>,
}

/// The document, keys in their published order.
#[derive(Serialize, Deserialize)]
struct Document<P, S> {
    layout: String,
    page_size_tokens: u64,
    n_layers: u64,
    n_heads: u64,
    head_dim: u64,
    dtype: Dtype,
    pages: P,
    logical_seqs: S,
}

impl PageManifest {
    /// A manifest of these pages and sequences, in whatever order they come.
    ///
    /// # Errors
    /// [`Error::Format`] naming a page or sequence that is there twice, names a page that is not there, or has an impossible fill.
    pub fn new(meta: CacheMeta, mut pages: Vec<Page>, mut logical_seqs: Vec<LogicalSeq>) -> Result<Self> {
        pages.sort_by_key(|page| page.ix);
        logical_seqs.sort_by(|a, b| a.id.cmp(&b.id));
        Self { layout: LAYOUT.to_owned(), meta, pages, logical_seqs }.checked()
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`Error::Format`] naming field and byte; [`Error::Limit`] above [`limits::DOCUMENT_BYTES`] or [`limits::DOCUMENT_ENTRIES`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        check_size(bytes)?;
        let (document, pages) = read::<Document<Objects<Page>, Objects<LogicalSeq>>, Vec<Page>>(bytes, json::find(bytes, "pages"))?;
        let Document { layout, page_size_tokens, n_layers, n_heads, head_dim, dtype, pages: parsed, logical_seqs } = document;
        let meta = CacheMeta { page_size_tokens, n_layers, n_heads, head_dim, dtype };
        Self { layout, meta, pages: pages.unwrap_or(parsed.0), logical_seqs: logical_seqs.0 }.checked().map_err(|error| json::placed(error, bytes))
    }

    fn checked(self) -> Result<Self> {
        self.meta.page_bytes()?;
        if self.pages.len() as u64 > limits::DOCUMENT_ENTRIES {
            return Err(Error::Limit { what: format!("{} pages", self.pages.len()), name: "DOCUMENT_ENTRIES", limit: limits::DOCUMENT_ENTRIES });
        }
        let bad = |field: String, reason: String| Err(Error::field(WHAT, field, reason));
        let CacheMeta { page_size_tokens, n_layers, n_heads, head_dim, .. } = self.meta;
        for (field, number) in [("page_size_tokens", page_size_tokens), ("n_layers", n_layers), ("n_heads", n_heads), ("head_dim", head_dim)] {
            if number > MOST {
                return bad(field.to_owned(), format!("{number} does not fit the format's 32 bits"));
            }
        }
        if let Some(page) = self.pages.last().filter(|page| page.ix > MOST) {
            return bad(format!("pages[{}].ix", self.pages.len() - 1), format!("{} does not fit the format's 32 bits", page.ix));
        }
        for (at, pair) in self.pages.windows(2).enumerate() {
            if pair[0].ix >= pair[1].ix {
                let reason = format!("page {} stands after page {}: pages are in order of ix, each once", pair[1].ix, pair[0].ix);
                return bad(format!("pages[{}].ix", at + 1), reason);
            }
        }
        for (at, pair) in self.logical_seqs.windows(2).enumerate() {
            if pair[0].id >= pair[1].id {
                let reason = format!("sequence {:?} stands after {:?}: sequences are in order of id, each once", pair[1].id, pair[0].id);
                return bad(format!("logical_seqs[{}].id", at + 1), reason);
            }
        }
        for (at, sequence) in self.logical_seqs.iter().enumerate() {
            if let Some(place) = sequence.page_ixs.iter().position(|ix| self.page(*ix).is_none()) {
                let reason = format!("sequence {:?} names page {}, which is not there", sequence.id, sequence.page_ixs[place]);
                return bad(format!("logical_seqs[{at}].page_ixs[{place}]"), reason);
            }
            let fill = sequence.fill_in_last_page;
            if fill > 0 && fill >= page_size_tokens {
                let reason = format!("{fill} tokens in a page of {page_size_tokens}; 0 stands for a full one");
                return bad(format!("logical_seqs[{at}].fill_in_last_page"), reason);
            }
        }
        Ok(self)
    }

    /// The document, byte for byte as the published format writes it.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let CacheMeta { page_size_tokens, n_layers, n_heads, head_dim, dtype } = self.meta;
        let (layout, logical_seqs) = (self.layout.clone(), &self.logical_seqs);
        let document = Document { layout, page_size_tokens, n_layers, n_heads, head_dim, dtype, pages: [(); 0], logical_seqs };
        let rest = serde_json::to_vec(&document).expect("strings and numbers");
        let at = json::find(&rest, "pages").expect("it was just written");
        let mut out = rest[..at].to_vec();
        list::print(&self.pages, &mut out);
        out.extend_from_slice(&rest[at + 2..]);
        out
    }

    /// How the bytes of a page are ordered; [`LAYOUT`] is the only one that can be interpreted.
    #[must_use]
    pub fn layout(&self) -> &str {
        &self.layout
    }

    /// Geometry.
    #[must_use]
    pub const fn meta(&self) -> &CacheMeta {
        &self.meta
    }

    /// Pages, in order of their numbers.
    #[must_use]
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// Sequences, in order of their names.
    #[must_use]
    pub fn logical_seqs(&self) -> &[LogicalSeq] {
        &self.logical_seqs
    }

    /// The page of that number.
    #[must_use]
    pub fn page(&self, ix: u64) -> Option<&Page> {
        // Most caches number their pages from 0 without gaps.
        let guess = usize::try_from(ix).ok().and_then(|ix| self.pages.get(ix)).filter(|page| page.ix == ix);
        guess.or_else(|| self.pages.binary_search_by_key(&ix, |page| page.ix).ok().map(|at| &self.pages[at]))
    }

    /// The sequence of that name.
    #[must_use]
    pub fn sequence(&self, id: &str) -> Option<&LogicalSeq> {
        self.logical_seqs.binary_search_by(|sequence| sequence.id.as_str().cmp(id)).ok().map(|at| &self.logical_seqs[at])
    }

    /// This cache with pages and sequences added, those of a number or name that is there already replaced.
    pub fn extended(&self, pages: Vec<Page>, logical_seqs: Vec<LogicalSeq>) -> Result<Self> {
        let pages = merge(&self.pages, pages, |a, b| a.ix.cmp(&b.ix));
        let logical_seqs = merge(&self.logical_seqs, logical_seqs, |a, b| a.id.cmp(&b.id));
        Self { layout: self.layout.clone(), meta: self.meta, pages, logical_seqs }.checked()
    }
}

/// Joins two lists, the second's items replacing those of the first that are equal by `order`; repeats within the second are left for the
/// check.
fn merge<T: Clone>(old: &[T], mut new: Vec<T>, order: impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    new.sort_by(&order);
    let kept = old.iter().filter(|item| new.binary_search_by(|other| order(other, item)).is_err());
    let mut all: Vec<T> = kept.cloned().collect();
    all.append(&mut new);
    all.sort_by(&order);
    all
}

fn check_size(bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 <= limits::DOCUMENT_BYTES {
        return Ok(());
    }
    Err(Error::Limit { what: format!("{WHAT} of {} bytes", bytes.len()), name: "DOCUMENT_BYTES", limit: limits::DOCUMENT_BYTES })
}

/// Reads a document whose list of pages is at byte `at`; returns what was read and, if the list is of the usual form, its pages, of which
/// the document then has none.
fn read<D: for<'de> Deserialize<'de>, P: Default + Extend<Page>>(bytes: &[u8], at: Option<usize>) -> Result<(D, Option<P>)> {
    let mut pages = P::default();
    if let Some(at) = at
        && let Some(after) = list::parse(&bytes[at..], &mut pages)
        && let Ok(document) = json::parse(WHAT, &[&bytes[..at], b"[]", after].concat())
    {
        return Ok((document, Some(pages)));
    }
    // Which may fail, and then knows where.
    Ok((json::parse(WHAT, bytes)?, None))
}

/// What a walk needs of the document.
#[derive(Deserialize)]
struct Listed {
    pages: Objects<Page>,
}

/// The pages that a document lists, whatever its layout and the rest of it say. None when it is no page manifest, which
/// is known by its array `pages`, well-formed or not behind its start.
pub(crate) fn listed<P: Default + Extend<Page>>(bytes: &[u8]) -> Result<Option<P>> {
    let Some(at) = json::find(bytes, "pages").filter(|at| bytes.get(*at) == Some(&b'[')) else {
        return Ok(None);
    };
    check_size(bytes)?;
    let (document, pages) = read::<Listed, P>(bytes, Some(at))?;
    Ok(Some(pages.unwrap_or_else(|| {
        let mut pages = P::default();
        pages.extend(document.pages.0);
        pages
    })))
}

#[cfg(test)]
mod tests;
