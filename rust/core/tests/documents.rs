//! The golden documents of `tests/conformance/documents`, which Python reads too: ids, digests, bytes and walk orders.

use std::fs;
use std::path::Path;

use pfimg_core::walk::{self, Selection};
use pfimg_core::{Algorithm, BlobStore, Digest, Manifest, MemoryStore, PageManifest, digest};
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize)]
struct Index {
    manifests: Vec<ManifestCase>,
    pages: Vec<PagesCase>,
}

#[derive(Deserialize)]
struct ManifestCase {
    file: String,
    id: Digest,
    canonical: bool,
    parents: usize,
    walk: Vec<Digest>,
    walk_beyond: Vec<Digest>,
}

#[derive(Deserialize)]
struct PagesCase {
    file: String,
    digest: Digest,
    canonical: bool,
    page_bytes: u64,
    ixs: Vec<u64>,
    ids: Vec<String>,
}

fn read(file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/documents").join(file);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn index() -> Index {
    json(&read("index.json"))
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).unwrap()
}

/// What the golden images lead to.
fn blobs() -> MemoryStore {
    let store = MemoryStore::new(Algorithm::Sha256);
    store.put(b"x").unwrap();
    for layer in ["layers/tree.json", "layers/procs.json", "layers/diff.json"] {
        store.put(&read(layer)).unwrap();
    }
    for case in index().pages {
        store.put(&read(&case.file)).unwrap();
    }
    store
}

#[test]
fn manifests_keep_their_bytes_and_ids() {
    for case in index().manifests {
        let bytes = read(&case.file);
        let manifest = Manifest::parse(&bytes).unwrap();
        assert_eq!((manifest.id(), manifest.bytes()), (case.id, &bytes[..]), "{}", case.file);
        assert_eq!(manifest.fields().parents.len(), case.parents, "{}", case.file);
        let made = Manifest::new(manifest.fields().clone()).unwrap();
        assert_eq!(made.bytes() == bytes, case.canonical, "{}", case.file);
    }
}

#[test]
fn page_manifests_are_read_and_printed_alike() {
    for case in index().pages {
        let bytes = read(&case.file);
        assert_eq!(digest::hash(Algorithm::Sha256, &bytes), case.digest, "{}", case.file);
        let read = PageManifest::parse(&bytes).unwrap();
        assert_eq!(read.to_json() == bytes, case.canonical, "{}", case.file);
        assert_eq!(read.meta().page_bytes().unwrap(), case.page_bytes, "{}", case.file);
        assert_eq!(read.pages().iter().map(|page| page.ix).collect::<Vec<_>>(), case.ixs, "{}", case.file);
        assert_eq!(read.logical_seqs().iter().map(|sequence| &sequence.id).collect::<Vec<_>>(), case.ids.iter().collect::<Vec<_>>());
        let made = PageManifest::new(*read.meta(), reversed(read.pages()), reversed(read.logical_seqs())).unwrap();
        assert_eq!(made, read, "{}", case.file);
    }
}

fn reversed<T: Clone>(items: &[T]) -> Vec<T> {
    items.iter().rev().cloned().collect()
}

#[test]
fn walks_are_those_of_the_reference_and_what_it_leaves_out() {
    let store = blobs();
    for case in index().manifests {
        let manifest = Manifest::parse(&read(&case.file)).unwrap();
        let walked = walk::transitive_blob_digests(&manifest, &store).unwrap();
        assert_eq!(walked, [case.walk, case.walk_beyond].concat(), "{}", case.file);
        assert_eq!(walk::reachable(&manifest, &store, &Selection::all()).unwrap(), walked, "{}", case.file);
        assert_eq!(walk::manifest_blob_digests(&manifest), walked[..walk::manifest_blob_digests(&manifest).len()], "{}", case.file);
    }
}
