use super::*;
use crate::digest::Algorithm;
use crate::manifest::{AgentInfo, CacheLayer, EffectsLayer, Fields, MEDIA_TYPE, ModelLayer, SCHEMA_VERSION, TraceLayer, WorldLayer};
use crate::pages::{CacheMeta, Dtype, Page, PageManifest};
use crate::store::MemoryStore;
use crate::tree::{Entry, Kind};

struct Parts {
    fs: Vec<u8>,
    cache: Vec<u8>,
    procs: Vec<u8>,
    diff: Vec<u8>,
}

fn blob(name: &str) -> Digest {
    crate::digest::hash(Algorithm::Sha256, name.as_bytes())
}

fn parts() -> Parts {
    let entry = |path: &str, kind| Entry { path: path.into(), mode: 0o644, size: 1, kind };
    let tree = FsTree::new(vec![
        entry("a", Kind::File { blob: blob("file") }),
        entry("b", Kind::File { blob: blob("file") }),
        entry("c", Kind::Symlink { blob: blob("link"), target: "a".into() }),
    ]);
    let meta = CacheMeta { page_size_tokens: 1, n_layers: 1, n_heads: 1, head_dim: 1, dtype: Dtype::Bf16 };
    let pages = [(5, "k5", "v"), (7, "k7", "v")].map(|(ix, k, v)| Page { ix, k: blob(k), v: blob(v) });
    Parts {
        fs: tree.unwrap().to_json(),
        cache: PageManifest::new(meta, pages.to_vec(), vec![]).unwrap().to_json(),
        procs: format!(r#"{{"pids":[1],"criu_dump":"{}","kind":"procs.criu.v1"}}"#, blob("dump")).into_bytes(),
        diff: format!(r#"{{"diff":{{"kind":"x","adapters":[{{"a":[0.5,"{}"],"b":null}},"no digest"]}},"layout":"model.diff.v1"}}"#, blob("adapter"))
            .into_bytes(),
    }
}

fn image(store: &MemoryStore, parts: &Parts) -> Manifest {
    let put = |bytes: &[u8]| store.put(bytes).unwrap();
    let digests = [&parts.diff, &parts.cache, &parts.fs, &parts.procs].map(|bytes| put(bytes));
    Manifest::new(Fields {
        schema_version: SCHEMA_VERSION,
        media_type: MEDIA_TYPE.into(),
        agent: AgentInfo { kind: String::new(), version: String::new(), fingerprint: String::new() },
        model: ModelLayer { base: put(b"base"), diff: digests[0] },
        cache: CacheLayer { layout: String::new(), manifest: digests[1] },
        world: WorldLayer { fs: digests[2], env: put(b"env"), procs: digests[3] },
        effects: EffectsLayer { ledger: put(b"ledger") },
        trace: TraceLayer { messages: put(b"") },
        created_at: "2026-01-01T00:00:00Z".into(),
        parents: vec![blob("parent")],
    })
    .unwrap()
}

#[test]
fn order_is_layers_tree_pages_processes_adapters() {
    let store = MemoryStore::new(Algorithm::Sha256);
    let parts = parts();
    let manifest = image(&store, &parts);
    let mut want = manifest.blob_digests().to_vec();
    want.extend(["file", "link", "k5", "v", "k7", "dump", "adapter"].map(blob));
    assert_eq!(transitive_blob_digests(&manifest, &store).unwrap(), want);
    let all: Vec<Digest> = [&parts.fs, &parts.cache, &parts.procs, &parts.diff].iter().flat_map(|bytes| children(bytes).unwrap()).collect();
    assert_eq!(all, want[8..]);
}

#[test]
fn a_selection_walks_less() {
    let store = MemoryStore::new(Algorithm::Sha256);
    let manifest = image(&store, &parts());
    let walk = |layers: &[Layer], ixs: Option<Vec<u64>>| reachable(&manifest, &store, &Selection { layers: Some(layers.to_vec()), ixs });
    assert_eq!(walk(&[Layer::Trace], None).unwrap(), [blob("")]);
    let cache = manifest.fields().cache.manifest;
    assert_eq!(walk(&[Layer::Cache], Some(vec![7])).unwrap(), [cache, blob("k7"), blob("v")]);
    let error = walk(&[Layer::Cache], Some(vec![6, 7])).unwrap_err();
    assert!(error.code() == "format" && error.to_string().contains("no page 6"), "{error}");
    assert_eq!(walk(&[], None).unwrap(), []);
    assert_eq!(documents(&manifest, &Selection { layers: Some(vec![Layer::Model]), ixs: None }), [Document::Diff(manifest.fields().model.diff)]);
}

#[test]
fn other_blobs_are_opaque() {
    let store = MemoryStore::new(Algorithm::Sha256);
    for opaque in [&b"x"[..], b"", b"{", b"[]", b"{\"pages\":{}}", b"{\"kind\":\"later.v9\",\"layout\":\"later.v9\"}", b"\xff\xfe"] {
        let same = || opaque.to_vec();
        let manifest = image(&store, &Parts { fs: same(), cache: same(), procs: same(), diff: same() });
        let reached = transitive_blob_digests(&manifest, &store).unwrap();
        assert_eq!(reached, manifest_blob_digests(&manifest), "{}", String::from_utf8_lossy(opaque));
    }
}

#[test]
fn a_page_manifest_of_any_layout_is_walked() {
    let store = MemoryStore::new(Algorithm::Sha256);
    let cache = format!(r#"{{"layout":"later","pages":[{{"k":"{0}","v":"{0}","ix":3,"more":1}}]}}"#, blob("k"));
    let manifest = image(&store, &Parts { cache: cache.into_bytes(), ..parts() });
    assert!(transitive_blob_digests(&manifest, &store).unwrap().contains(&blob("k")));
}

#[test]
fn documents_that_claim_to_be_and_are_malformed_are_errors() {
    type Break = fn(&mut Parts);
    let store = MemoryStore::new(Algorithm::Sha256);
    let bad: [(&str, Break); 10] = [
        ("tree", |parts| parts.fs = br#"{"kind":"fs.tree.v1","entries":[{}]}"#.to_vec()),
        ("tree", |parts| parts.fs = br#"{"kind":"fs.tree.v1""#.to_vec()),
        ("pages[0]", |parts| parts.cache = br#"{"pages":[{"ix":0}]}"#.to_vec()),
        ("criu_dump", |parts| parts.procs = br#"{"kind":"procs.criu.v1","criu_dump":"x"}"#.to_vec()),
        ("diff", |parts| parts.diff = br#"{"layout":"model.diff.v1","diff":5}"#.to_vec()),
        ("process table", |parts| parts.procs = br#"{"kind":"procs.criu.v1","criu_dump":"#.to_vec()),
        ("duplicate", |parts| parts.procs = br#"{"kind":"procs.criu.v1","kind":"procs.respawn.v1"}"#.to_vec()),
        ("diff.adapters", |parts| parts.diff = br#"{"layout":"model.diff.v1","diff":{"adapters":[1,"#.to_vec()),
        ("duplicate", |parts| parts.diff = br#"{"layout":"model.diff.v1","diff":{},"diff":{}}"#.to_vec()),
        ("expected an object", |parts| parts.cache = format!(r#"{{"pages":[[0,"{0}","{0}"]]}}"#, blob("k")).into_bytes()),
    ];
    for (word, change) in bad {
        let mut parts = parts();
        change(&mut parts);
        let error = transitive_blob_digests(&image(&store, &parts), &store).unwrap_err();
        assert!(error.code() == "format" && error.to_string().contains(word), "{word}: {error}");
    }
}

#[test]
fn a_missing_document_is_named() {
    let store = MemoryStore::new(Algorithm::Sha256);
    let manifest = image(&store, &parts());
    store.remove(&manifest.fields().world.fs);
    let error = transitive_blob_digests(&manifest, &store).unwrap_err();
    assert!(matches!(&error, Error::BlobNotFound { digest } if *digest == manifest.fields().world.fs.to_string()));
}

/// A store whose blobs are too large to be had at once.
struct Large(MemoryStore);

impl BlobStore for Large {
    fn algorithm(&self) -> Algorithm {
        self.0.algorithm()
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest> {
        self.0.put(bytes)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        Err(Error::Limit { what: format!("blob {digest}"), name: "BLOB_IN_MEMORY_BYTES", limit: 0 })
    }

    fn has(&self, digest: &Digest) -> Result<bool> {
        self.0.has(digest)
    }

    fn physical_bytes(&self) -> Result<u64> {
        self.0.physical_bytes()
    }

    fn get_stream(&self, digest: &Digest, writer: &mut dyn Write) -> Result<u64> {
        let bytes = self.0.get(digest)?;
        bytes.chunks(1).try_for_each(|chunk| writer.write_all(chunk)).map_err(Error::io("write", "stream"))?;
        Ok(bytes.len() as u64)
    }
}

#[test]
fn a_layer_too_large_for_a_document_is_opaque_unless_it_looks_like_one() {
    let store = MemoryStore::new(Algorithm::Sha256);
    let weights = || b" \n\x93NUMPY {".to_vec();
    let opaque = image(&store, &Parts { fs: weights(), cache: weights(), procs: weights(), diff: Vec::new() });
    let document = image(&store, &Parts { fs: weights(), cache: weights(), procs: weights(), diff: b" {}".to_vec() });
    let store = Large(store);
    assert_eq!(transitive_blob_digests(&opaque, &store).unwrap(), manifest_blob_digests(&opaque));
    assert_eq!(transitive_blob_digests(&document, &store).unwrap_err().code(), "limit");
}

proptest::proptest! {
    #[test]
    fn arbitrary_blobs_never_panic(bytes: Vec<u8>) {
        let _ = children(&bytes);
    }

    #[test]
    fn each_blob_is_walked_once_where_it_is_first_seen(names in proptest::collection::vec(0_u8..20, 0..40)) {
        let pages: Vec<String> = names.chunks(2).enumerate().filter_map(|(ix, pair)| match pair {
            [k, v] => Some(format!(r#"{{"ix":{ix},"v":"{}","k":"{}"}}"#, blob(&v.to_string()), blob(&k.to_string()))),
            _ => None,
        }).collect();
        let found = children(format!(r#"{{"pages":[{}]}}"#, pages.join(",")).as_bytes()).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        let want: Vec<Digest> = names[..pages.len() * 2].iter().filter(|name| seen.insert(**name)).map(|name| blob(&name.to_string())).collect();
        proptest::prop_assert_eq!(found, want);
    }
}
