//! What must hold whatever bytes arrive: each function takes some, and panics where a parser breaks a promise that it made.
//!
//! Two programs call them: libFuzzer through `targets/`, which looks for bytes that nobody thought of, and `rust/core/tests/hostile.rs`, which
//! gives them the committed corpus and what little damage makes of it in every run of the tests.

use std::io::Read;
use std::path::Path;

use pfimg_core::car::{Blocks, Reader};
use pfimg_core::codec::{self, float};
use pfimg_core::digest::{self, Algorithm};
use pfimg_core::restore::{self, RestoreOptions};
use pfimg_core::{BlobStore, Digest, Error, FsTree, Manifest, MemoryStore, Monitor, PackIndex, PageManifest, Result, path, walk};

/// Decoded content above this is refused; what a frame of a few bytes claims must not be allocated.
const CAP: u64 = 1 << 20;

/// A manifest keeps the bytes that it was read from, and its id is their digest.
pub fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::parse(data) else { return };
    assert_eq!(manifest.bytes(), data);
    assert_eq!(Manifest::parse(manifest.bytes()).unwrap().blob_digests(), manifest.blob_digests());
}

/// A tree that was accepted has safe paths only, and is what it prints; what is restored from it lies below the target.
pub fn tree(data: &[u8]) {
    let Ok(tree) = FsTree::parse(data) else { return };
    let printed = tree.to_json();
    assert_eq!(FsTree::parse(&printed).unwrap().to_json(), printed);
    for entry in tree.ordered().into_iter().flatten() {
        path::check(&entry.path).unwrap();
    }

    let store = Zeros { tree: data.to_vec() };
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("parent/target");
    let restored = restore::restore_tree(&store, &digest::hash(Algorithm::Sha256, data), &target, &RestoreOptions::default(), &Monitor::new());
    let names = |path: &Path| -> Vec<_> { path.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    if restored.is_ok() {
        assert_eq!((names(outside.path()), names(&outside.path().join("parent"))), (vec!["parent".into()], vec!["target".into()]));
    } else {
        assert!(names(outside.path()).is_empty(), "{restored:?}");
    }
}

/// A store that has every blob: a tree, and zeros in as many bytes as are asked for, up to a few.
struct Zeros {
    tree: Vec<u8>,
}

impl BlobStore for Zeros {
    fn algorithm(&self) -> Algorithm {
        Algorithm::Sha256
    }

    fn put(&self, _bytes: &[u8]) -> Result<Digest> {
        unreachable!("nothing is stored")
    }

    fn get(&self, _digest: &Digest) -> Result<Vec<u8>> {
        Ok(self.tree.clone())
    }

    fn get_into(&self, _digest: &Digest, out: &mut [u8]) -> Result<()> {
        if out.len() > 4096 {
            return Err(Error::Store("enough".into()));
        }
        out.fill(0);
        Ok(())
    }

    fn has(&self, _digest: &Digest) -> Result<bool> {
        Ok(true)
    }

    fn physical_bytes(&self) -> Result<u64> {
        Ok(0)
    }
}

/// A page manifest that was accepted is what it prints, and finds each of its pages.
pub fn pages(data: &[u8]) {
    let Ok(pages) = PageManifest::parse(data) else { return };
    let printed = pages.to_json();
    let again = PageManifest::parse(&printed).unwrap();
    assert_eq!(again.to_json(), printed);
    for page in pages.pages() {
        assert_eq!(pages.page(page.ix).map(|found| (&found.k, &found.v)), Some((&page.k, &page.v)));
    }
    for sequence in pages.logical_seqs() {
        assert!(sequence.page_ixs.iter().all(|ix| pages.page(*ix).is_some()));
    }
}

/// Frames decode to the same by every way that there is, and never to more than is allowed.
pub fn frame(data: &[u8]) {
    // No frame at all has no content for some decoders, and is cut off for others; a store takes an empty file for none.
    if data.is_empty() {
        return;
    }
    let whole = codec::decode(data, CAP);
    let mut streamed = Vec::new();
    let complete = codec::decoder(data).and_then(|reader| reader.take(CAP + 1).read_to_end(&mut streamed));
    if let Ok(content) = &whole {
        assert!(content.len() as u64 <= CAP);
        assert_eq!((complete.ok(), &streamed), (Some(content.len()), content));
        let mut exact = vec![0; content.len()];
        // Before a frame that tells no size, one that tells another than it has may be refused or not: zstd, by whose library all of this is,
        // notices it or not depending on its last block, and on the buffer.
        let strict = codec::content_len(data) != Ok(None);
        match codec::decode_into(data, &mut exact) {
            Ok(()) => assert_eq!(&exact, content),
            Err(error) => assert!(!strict, "{error:?}"),
        }
        match zstd::decode_all(data) {
            Ok(found) => assert_eq!(&found, content),
            Err(error) => assert!(!strict, "{error}"),
        }
        assert!(codec::decode_into(data, &mut vec![0; content.len() + 1]).is_err());
    }
    if let Some(blocks) = codec::stored_blocks(data) {
        assert!(whole.is_err() || whole == Ok(blocks.concat()));
    }
    let mut rest = data;
    let mut out = vec![0; whole.as_ref().map_or(4096, Vec::len)];
    let found = codec::read_stored(&mut out, |slices| rest.read_vectored(slices));
    if let (Ok(codec::Found::Frame), Ok(content)) = (found, &whole) {
        assert_eq!(&out, content);
    }
}

/// A float frame decodes to the same by every way that there is, and to the length that it tells.
pub fn float_frame(data: &[u8]) {
    let Ok(len) = float::content_len(data) else { return };
    if len > CAP {
        assert!(float::decode(data, CAP).is_err());
        return;
    }
    let Ok(content) = float::decode(data, CAP) else { return };
    assert_eq!(content.len() as u64, len);
    let mut exact = vec![0; content.len()];
    float::decode_into(data, &mut exact).unwrap();
    assert_eq!(exact, content);
}

/// An index that was accepted is what it prints; its ranges lie in their packs and do not overlap.
pub fn pack_index(data: &[u8]) {
    let Ok(index) = PackIndex::parse(data) else { return };
    assert_eq!(PackIndex::parse(&index.to_bytes()).unwrap(), index);
    let blobs: usize = index.packs().iter().map(pfimg_core::pack::Pack::blobs).sum();
    assert!(blobs >= index.len());
    // 12 bytes of header, then 40 for each pack and 40 for each blob: nothing else in an index names a blob.
    for at in (12..data.len()).step_by(40) {
        let Some(name) = data.get(at..at + 32) else { continue };
        let name: [u8; 32] = name.try_into().unwrap();
        if let Some(place) = index.locate(&Digest::new(Algorithm::Sha256, name)) {
            let pack = &index.packs()[place.pack];
            assert!(place.offset.checked_add(place.len).unwrap() <= pack.bytes());
        }
    }
}

/// Blocks that come out of a CAR are what their CIDs say, in whatever pieces it came; walks through them end.
pub fn car(data: &[u8]) {
    let (mut whole, mut blocks) = (Reader::new(), Blocks::new());
    let fed = whole.feed(data).map(|found| {
        for block in &found {
            if let Some(name) = block.cid().sha256() {
                assert_eq!(digest::hash(Algorithm::Sha256, block.bytes()).bytes(), name);
            }
            blocks.insert(block);
        }
        found.len()
    });
    let mut pieces = Reader::new();
    let piecewise: Result<usize> = data.chunks(7).try_fold(0, |sum, piece| pieces.feed(piece).map(|found| sum + found.len()));
    assert_eq!(fed.as_ref().ok(), piecewise.as_ref().ok());
    let (Ok(_), Some(roots)) = (fed, whole.roots()) else { return };
    for root in roots {
        let _ = blocks.missing(root);
        let _ = blocks.find(root, "manifest.json");
        for link in blocks.entries(root).into_iter().flatten() {
            let mut left = 1 << 20;
            let _ = blocks.read(&link.cid, &mut |bytes: &[u8]| {
                left = usize::saturating_sub(left, bytes.len().max(1));
                if left > 0 { Ok(()) } else { Err(Error::Store("enough".into())) }
            });
        }
    }
}

/// An image whose documents are all the given bytes is walked to an end: either refused, or with a list that names nothing twice.
pub fn image(data: &[u8]) {
    let store = MemoryStore::new(Algorithm::Sha256);
    let layer = store.put(data).unwrap();
    let text = format!(
        r#"{{"schema_version":1,"media_type":"application/vnd.processfork.image.v1+json","agent":{{"kind":"k","version":"1","fingerprint":""}},"model":{{"base":"{layer}","diff":"{layer}"}},"cache":{{"layout":"paged-batchinvariant-v1","manifest":"{layer}"}},"world":{{"fs":"{layer}","env":"{layer}","procs":"{layer}"}},"effects":{{"ledger":"{layer}"}},"trace":{{"messages":"{layer}"}},"created_at":"2026-05-05T12:34:56Z","parents":[]}}"#
    );
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    if let Ok(mut found) = walk::transitive_blob_digests(&manifest, &store) {
        let all = found.len();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), all);
    }
}
