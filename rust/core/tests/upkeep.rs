//! Images, verification and garbage collection on a store in a directory.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use pfimg_core::codec::{Codec, Encoding};
use pfimg_core::gc::{self, Collected};
use pfimg_core::manifest::{AgentInfo, CacheLayer, EffectsLayer, Fields, MEDIA_TYPE, ModelLayer, SCHEMA_VERSION, TraceLayer, WorldLayer};
use pfimg_core::pages::{CacheMeta, Dtype, Page};
use pfimg_core::store::{Durability, Hold, Options};
use pfimg_core::tree::{Entry, Kind};
use pfimg_core::verify::{Verification, verify};
use pfimg_core::{Algorithm, BlobStore, Digest, DirStore, Error, FsTree, Images, Manifest, Monitor, PageManifest, digest, walk};

const NOW: gc::Options = gc::Options { grace: Duration::ZERO, max_bytes: None, dry_run: false };

fn open(root: &Path) -> (DirStore, Images) {
    open_with(root, None)
}

fn open_with(root: &Path, algorithm: Option<Algorithm>) -> (DirStore, Images) {
    let options = Options { encoding: Encoding::new(Codec::Auto, 1).unwrap(), durability: Durability::None, published: false };
    let store = DirStore::open(root, algorithm, options).unwrap();
    let images = Images::new(store.root());
    (store, images)
}

/// A manifest whose blobs are in the store: a file and a page that `salt` makes its own, and layers that all images share.
fn manifest(store: &DirStore, salt: &str) -> Manifest {
    let put = |bytes: &[u8]| store.put(bytes).unwrap();
    let file = Entry { path: "file".into(), mode: 0o644, size: 1, kind: Kind::File { blob: put(format!("file of {salt}").as_bytes()) } };
    let meta = CacheMeta { page_size_tokens: 1, n_layers: 1, n_heads: 1, head_dim: 1, dtype: Dtype::Bf16 };
    let page = Page { ix: 0, k: put(format!("k of {salt}").as_bytes()), v: put(b"shared v") };
    let small = put(b"shared");
    Manifest::new(Fields {
        schema_version: SCHEMA_VERSION,
        media_type: MEDIA_TYPE.into(),
        agent: AgentInfo { kind: salt.into(), version: String::new(), fingerprint: String::new() },
        model: ModelLayer { base: small, diff: small },
        cache: CacheLayer {
            layout: "paged-batchinvariant-v1".into(),
            manifest: put(&PageManifest::new(meta, vec![page], vec![]).unwrap().to_json()),
        },
        world: WorldLayer { fs: put(&FsTree::new(vec![file]).unwrap().to_json()), env: small, procs: small },
        effects: EffectsLayer { ledger: small },
        trace: TraceLayer { messages: small },
        created_at: "2026-01-01T00:00:00Z".into(),
        parents: vec![],
    })
    .unwrap()
}

fn age(path: &Path, age: Duration) {
    fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

fn collect(store: &DirStore, images: &Images, options: &gc::Options) -> Collected {
    gc::collect(store, images, options, &Monitor::new()).unwrap()
}

fn check(store: &DirStore, images: &Images) -> Verification {
    verify(store, images, false, &Monitor::new()).unwrap()
}

fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3600)
}

#[test]
fn an_image_is_whole_or_not_visible() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let manifest = manifest(&store, "a");
    let reached = walk::transitive_blob_digests(&manifest, &store).unwrap();
    for digest in &reached {
        let path = store.blob_path(digest);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let error = images.put(&store, &manifest).unwrap_err();
        assert!(matches!(&error, Error::BlobNotFound { digest: named } if *named == digest.to_string()), "{error}");
        assert!(images.list(store.algorithm()).unwrap().is_empty());
        fs::write(&path, bytes).unwrap();
    }
    let id = images.put(&store, &manifest).unwrap();
    assert_eq!(images.list(store.algorithm()).unwrap(), [id]);
    assert_eq!(fs::read(root.path().join("images").join(format!("{}.json", id.hex()))).unwrap(), manifest.bytes());
    assert_eq!(images.get(&store, &id).unwrap(), manifest);
    fs::remove_file(store.blob_path(&id)).unwrap();
    assert_eq!(images.get(&store, &id).unwrap(), manifest, "from the marker");
    images.remove(&id).unwrap();
    assert_eq!(images.remove(&id).unwrap_err().code(), "blob_not_found");
    assert_eq!(images.get(&store, &id).unwrap_err().code(), "blob_not_found");
}

#[test]
fn a_marker_that_is_not_its_name_is_no_image() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let id = images.put(&store, &manifest(&store, "a")).unwrap();
    fs::write(root.path().join("images").join(format!("{}.json", id.hex())), b"{}").unwrap();
    fs::write(root.path().join("images/README"), b"").unwrap();
    assert_eq!(images.marker(&id).unwrap_err().code(), "integrity");
    assert_eq!(images.list(store.algorithm()).unwrap(), [id]);
    let report = check(&store, &images);
    assert_eq!(report.corrupt.len(), 1);
    assert_eq!(report.foreign.len(), 1);
    assert!(report.missing.is_empty() && report.unreachable.is_empty(), "the manifest is still known from its blob");
}

#[test]
fn a_partial_image_is_kept_apart_until_it_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let manifest = manifest(&store, "a");
    let reached = walk::transitive_blob_digests(&manifest, &store).unwrap();
    let absent = reached.last().unwrap();
    let path = store.blob_path(absent);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let id = images.put_partial(&store, &manifest).unwrap();
    assert_eq!((images.list(store.algorithm()).unwrap(), images.partial(store.algorithm()).unwrap()), (vec![], vec![id]));
    assert_eq!(collect(&store, &images, &NOW).freed, 0, "gc keeps what is here");
    let report = check(&store, &images);
    assert_eq!((report.partial, report.missing, report.unreachable), (vec![id], vec![], vec![]));
    fs::write(path, bytes).unwrap();
    images.put(&store, &manifest).unwrap();
    assert_eq!((images.list(store.algorithm()).unwrap(), images.partial(store.algorithm()).unwrap()), (vec![id], vec![]));
    images.put_partial(&store, &manifest).unwrap();
    assert!(images.partial(store.algorithm()).unwrap().is_empty(), "a whole image stays whole");
}

#[test]
fn gc_takes_what_no_root_reaches_and_is_old_enough() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let [a, b] = ["a", "b"].map(|salt| images.put(&store, &manifest(&store, salt)).unwrap());
    let stray = store.put(b"stray").unwrap();
    let pinned = store.put(b"pinned").unwrap();
    images.pin("keep-this.1", &pinned).unwrap();
    // An image without a marker, kept by a pin: everything it reaches is kept too.
    images.pin("image", &b).unwrap();
    images.remove(&b).unwrap();
    age(&store.blob_path(&stray), hours(23));
    let default = gc::Options::default();
    assert_eq!(collect(&store, &images, &default).freed, 0);
    age(&store.blob_path(&stray), hours(25));
    let told = collect(&store, &images, &gc::Options { dry_run: true, ..default });
    assert_eq!(told.freed, 1);
    assert!(store.has(&stray).unwrap());
    assert_eq!(collect(&store, &images, &default), told);
    assert!(!store.has(&stray).unwrap());
    assert_eq!(collect(&store, &images, &NOW).freed, 0);
    assert!(check(&store, &images).unreachable.is_empty(), "what pins keep is reached");
    images.unpin("image").unwrap();
    // b's manifest, tree, file, page manifest and K page; the rest is shared with a.
    assert_eq!(collect(&store, &images, &NOW).freed, 5);
    let report = check(&store, &images);
    assert!(report.missing.is_empty() && report.corrupt.is_empty() && report.unreachable.is_empty());
    images.remove(&a).unwrap();
    assert_eq!(collect(&store, &images, &NOW).kept, 1);
    assert_eq!(store.get(&pinned).unwrap(), b"pinned");
}

#[test]
fn a_put_saves_an_old_blob_from_gc() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let digest = store.put(b"again").unwrap();
    age(&store.blob_path(&digest), hours(1000));
    store.put(b"again").unwrap();
    assert_eq!(collect(&store, &images, &gc::Options::default()).freed, 0);
}

#[test]
fn a_size_evicts_the_oldest_first_and_no_more_than_needed() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let blobs: Vec<Digest> = (0..10_u8).map(|n| store.put(&[n; 10]).unwrap()).collect();
    for (n, digest) in (0_u64..).zip(&blobs) {
        age(&store.blob_path(digest), hours(100 - n));
    }
    let one = store.physical_bytes().unwrap() / 10;
    let options = gc::Options { max_bytes: Some(4 * one + 1), ..gc::Options::default() };
    assert_eq!(collect(&store, &images, &options), Collected { freed: 6, freed_bytes: 6 * one, kept: 4 });
    assert_eq!(store.has_many(&blobs).unwrap(), [[false; 6].as_slice(), &[true; 4]].concat());
}

#[test]
fn leftover_temporaries_are_swept_once_nobody_can_be_writing_them() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let shard = store.blob_path(&store.put(b"x").unwrap()).parent().unwrap().to_path_buf();
    fs::create_dir(root.path().join("tmp")).unwrap();
    let leftovers = [shard.join(format!("{}.tmp.1.2", "0".repeat(64))), root.path().join("tmp/blob.tmp.1.2")];
    for path in &leftovers {
        fs::write(path, b"half a blob").unwrap();
    }
    collect(&store, &images, &NOW);
    assert!(leftovers.iter().all(|path| path.exists()), "too young, whatever the grace period");
    for path in &leftovers {
        age(path, hours(2));
    }
    assert!(check(&store, &images).foreign.is_empty());
    assert_eq!(collect(&store, &images, &NOW).freed_bytes, 22);
    assert!(leftovers.iter().all(|path| !path.exists()));
}

#[test]
fn an_image_that_cannot_be_walked_stops_gc() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let manifest = manifest(&store, "a");
    let id = images.put(&store, &manifest).unwrap();
    let stray = store.put(b"stray").unwrap();
    fs::remove_file(store.blob_path(&manifest.fields().world.fs)).unwrap();
    let error = gc::collect(&store, &images, &NOW, &Monitor::new()).unwrap_err();
    assert!(error.to_string().contains(&id.to_string()), "{error}");
    assert!(store.has(&stray).unwrap());
}

#[test]
fn a_registry_is_not_swept() {
    for name in ["manifest.json", "pfimg"] {
        let root = tempfile::tempdir().unwrap();
        let (store, images) = open(root.path());
        let digest = store.put(b"of an image that only the registry knows").unwrap();
        fs::create_dir(root.path().join(name)).unwrap();
        let error = gc::collect(&store, &images, &NOW, &Monitor::new()).unwrap_err();
        assert!(error.to_string().contains("registry"), "{error}");
        assert!(store.has(&digest).unwrap());
    }
}

#[test]
fn verify_names_what_is_wrong_and_whom_it_hurts() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let manifests = ["a", "b"].map(|salt| manifest(&store, salt));
    let [a, b] = [0, 1].map(|n| images.put(&store, &manifests[n]).unwrap());
    let clean = check(&store, &images);
    assert_eq!((clean.checked, clean.bytes), (store.usage().unwrap().blobs, store.physical_bytes().unwrap()));
    assert_eq!(clean, Verification { checked: clean.checked, bytes: clean.bytes, ..Verification::default() });

    let of = |bytes: &[u8]| digest::hash(store.algorithm(), bytes);
    let (corrupt, missing, shared) = (of(b"file of a"), of(b"k of b"), of(b"shared v"));
    let mut frame = fs::read(store.blob_path(&corrupt)).unwrap();
    *frame.last_mut().unwrap() ^= 1;
    fs::write(store.blob_path(&corrupt), frame).unwrap();
    fs::remove_file(store.blob_path(&missing)).unwrap();
    fs::remove_file(store.blob_path(&shared)).unwrap();
    let stray = store.put(b"stray").unwrap();
    fs::write(root.path().join("blobs/sha256/notes.txt"), b"").unwrap();

    let report = check(&store, &images);
    let names = |findings: &[pfimg_core::verify::Finding]| findings.iter().map(|f| (f.digest, f.images.clone())).collect::<Vec<_>>();
    assert_eq!(names(&report.corrupt), [(Some(corrupt), vec![a])]);
    let mut both = vec![a, b];
    both.sort_unstable();
    let mut want = vec![(Some(missing), vec![b]), (Some(shared), both)];
    want.sort_by_key(|(digest, _)| *digest);
    assert_eq!(names(&report.missing), want);
    assert_eq!(names(&report.unreachable), [(Some(stray), vec![])]);
    assert_eq!(report.foreign.len(), 1);
    assert!(root.path().join("quarantine").read_dir().unwrap().count() == 1);
    store.put(b"file of a").unwrap();
    assert!(check(&store, &images).corrupt.is_empty());
}

#[test]
fn verify_goes_on_where_it_was_interrupted() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let blobs: Vec<Digest> = (0..2000_u32).map(|n| store.put(&n.to_le_bytes()).unwrap()).collect();
    // The times of files have a margin of two seconds.
    let settled = || std::thread::sleep(Duration::from_millis(4100));
    settled();
    let interrupted = || {
        let monitor = Monitor::new();
        std::thread::scope(|scope| {
            let run = scope.spawn(|| verify(&store, &images, false, &monitor));
            while monitor.counts().0 < 500 {
                std::thread::yield_now();
            }
            monitor.cancel();
            matches!(run.join().unwrap(), Err(Error::Cancelled))
        })
    };
    // On a busy machine a run may be through before it is told.
    assert!((0..100).any(|_| interrupted()));
    let journal = root.path().join("verify.log");
    let log = fs::read_to_string(&journal).unwrap();
    let first = log.lines().next().expect("a quarter of the files is some directories").split(' ').next().unwrap().to_owned();
    let of_first: Vec<&Digest> = blobs.iter().filter(|digest| digest.hex().starts_with(&first)).collect();
    // Damage comes late, and so does a new blob: both are noticed where all had been read.
    fs::write(store.blob_path(of_first[0]), b"damage").unwrap();
    let report = verify(&store, &images, true, &Monitor::new()).unwrap();
    assert_eq!(report.corrupt.iter().map(|finding| finding.digest.unwrap()).collect::<Vec<_>>(), [*of_first[0]]);
    assert!(report.resumed >= of_first.len() as u64 - 1, "{} of {}", report.resumed, log.lines().count());
    assert_eq!(report.checked + report.resumed, 2000);
    assert!(!journal.exists(), "it has come to its end");
    assert_eq!(verify(&store, &images, true, &Monitor::new()).unwrap().checked, 1999, "nothing to resume");
}

#[test]
fn files_that_are_not_in_memory_are_read_from_the_disk() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let sizes = [100, 70_000, 300_000, 1 << 20, (1 << 20) + 4097];
    // Sound, with a flipped bit, cut off: one of each for each size.
    let blobs: Vec<Digest> = (0..15).map(|n| store.put(&noise(sizes[n / 3], n as u64 + 1)).unwrap()).collect();
    let forget = || {
        for path in blobs.iter().map(|digest| store.blob_path(digest)) {
            let file = fs::File::options().append(true).open(&path).unwrap();
            file.sync_all().unwrap();
            #[cfg(target_os = "linux")]
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    };
    forget();
    let report = check(&store, &images);
    assert_eq!((report.checked, report.corrupt), (15, vec![]));
    for (n, path) in blobs.iter().map(|digest| store.blob_path(digest)).enumerate().filter(|(n, _)| n % 3 != 0) {
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.pop().unwrap();
        bytes.extend((n % 3 == 1).then_some(last ^ 1));
        fs::write(&path, bytes).unwrap();
    }
    forget();
    let found: HashSet<Digest> = check(&store, &images).corrupt.iter().map(|finding| finding.digest.unwrap()).collect();
    let damaged = (0..15).filter(|n| n % 3 != 0).map(|n| blobs[n]);
    assert_eq!(found, damaged.collect());
}

/// Bytes that no codec makes smaller, others for each seed, which is not 0.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_checked() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let id = images.put(&store, &manifest(&store, "a")).unwrap();
    let unreadable = digest::hash(store.algorithm(), b"file of a");
    let path = store.blob_path(&unreadable);
    fs::remove_file(&path).unwrap();
    // A link to itself cannot be opened, whoever asks.
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let report = check(&store, &images);
    assert_eq!(report.foreign.iter().map(|finding| finding.path.clone()).collect::<Vec<_>>(), std::slice::from_ref(&path));
    assert_eq!(report.missing.iter().map(|finding| (finding.digest, finding.images.clone())).collect::<Vec<_>>(), [(Some(unreadable), vec![id])]);
    assert_eq!(report.checked, 6);
}

#[test]
fn a_frame_that_holds_more_than_any_blob_may_is_moved_away() {
    let root = tempfile::tempdir().unwrap();
    // All that it holds is hashed, which takes long by some kernels of SHA-256.
    let (store, images) = open_with(root.path(), Some(Algorithm::Blake3));
    let digest = store.put(b"small").unwrap();
    // Blocks of one byte 128 Ki times: 17 GiB of zeros, without a content size.
    let mut frame = b"\x28\xb5\x2f\xfd\x00\x38".to_vec();
    let blocks = (17_usize << 30) / (128 << 10);
    for block in 0..blocks {
        let header = u32::from(block + 1 == blocks) | 1 << 1 | (128 << 10) << 3;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    fs::write(store.blob_path(&digest), frame).unwrap();
    let report = check(&store, &images);
    assert_eq!(report.corrupt.len(), 1);
    assert!(report.corrupt[0].reason.contains("more than any blob may"), "{}", report.corrupt[0].reason);
    assert!(!store.has(&digest).unwrap());
    assert!(check(&store, &images).corrupt.is_empty());
}

#[test]
fn pins_that_lost_their_blob_or_hold_none_are_found() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let digest = store.put(b"pinned").unwrap();
    images.pin("good", &digest).unwrap();
    assert_eq!(check(&store, &images).missing, []);
    fs::remove_file(store.blob_path(&digest)).unwrap();
    fs::write(root.path().join("pins/bad"), b"nonsense").unwrap();
    let report = check(&store, &images);
    assert_eq!(
        report.missing.iter().map(|finding| (finding.digest, &*finding.reason)).collect::<Vec<_>>(),
        [(Some(digest), "pin \"good\" is of it")]
    );
    assert_eq!(report.corrupt.iter().map(|finding| finding.path.clone()).collect::<Vec<_>>(), [root.path().join("pins/bad")]);
}

#[test]
fn what_is_nothing_of_a_store_is_foreign() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let digest = store.put(b"blob").unwrap();
    images.pin("pin", &digest).unwrap();
    images.put(&store, &manifest(&store, "a")).unwrap();
    assert_eq!(check(&store, &images).foreign, []);
    let shard = store.blob_path(&digest).parent().unwrap().to_path_buf();
    let strange = [root.path().join("notes"), root.path().join("blobs/md5"), root.path().join("images/a.json"), shard.join("directory")];
    for path in &strange {
        fs::create_dir(path).unwrap();
    }
    let found: Vec<_> = check(&store, &images).foreign.into_iter().map(|finding| finding.path).collect();
    let mut wanted = strange.to_vec();
    wanted.sort();
    assert_eq!(found, wanted);
}

/// Images that appear while a store is verified are whole, and so nothing is missing.
#[test]
fn verify_beside_writers_finds_nothing_missing() {
    let root = tempfile::tempdir().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (store, images) = open(root.path());
            let mut round = 0;
            while !done.load(Ordering::Relaxed) {
                round += 1;
                images.put(&store, &manifest(&store, &format!("{round}"))).unwrap();
            }
        });
        let (store, images) = open(root.path());
        for _ in 0..20 {
            let report = check(&store, &images);
            assert_eq!((report.missing, report.corrupt), (vec![], vec![]));
        }
        done.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
}

#[test]
fn pins_have_plain_names() {
    let root = tempfile::tempdir().unwrap();
    let (store, images) = open(root.path());
    let digest = store.put(b"x").unwrap();
    for bad in ["", ".", "..", "a/b", ".hidden", "a b", &"x".repeat(129)] {
        assert_eq!(images.pin(bad, &digest).unwrap_err().code(), "format", "{bad:?}");
    }
    images.pin("a", &digest).unwrap();
    assert_eq!(images.pins().unwrap().into_iter().collect::<Vec<_>>(), [("a".to_owned(), digest)]);
    images.unpin("a").unwrap();
    assert!(images.unpin("a").unwrap_err().to_string().contains("\"a\""));
    fs::write(root.path().join("pins/b"), "not a digest").unwrap();
    assert!(images.pins().unwrap_err().to_string().contains("\"b\""));
}

/// Writers that hold the lock make, use and drop images of overlapping blobs while gc runs without any grace: what an image needs is
/// always there.
#[test]
fn gc_beside_writers_never_takes_what_they_need() {
    const ROUNDS: usize = 40;
    let root = tempfile::tempdir().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let path = root.path();
                scope.spawn(move || {
                    let (store, images) = open(path);
                    for round in 0..ROUNDS {
                        let hold = Hold::shared(store.root()).unwrap();
                        let manifest = manifest(&store, &format!("{}", (round + writer) % 4));
                        let id = images.put(&store, &manifest).unwrap();
                        drop(hold);
                        // Another writer may remove the same image; then its blobs may go.
                        let hold = Hold::shared(store.root()).unwrap();
                        if images.list(store.algorithm()).unwrap().contains(&id) {
                            let reached = walk::transitive_blob_digests(&manifest, &store).unwrap();
                            assert!(store.has_many(&reached).unwrap().into_iter().all(|present| present));
                        }
                        let _ = images.remove(&id);
                        drop(hold);
                    }
                })
            })
            .collect();
        let sweeper = scope.spawn(|| {
            let (store, images) = open(root.path());
            while !done.load(Ordering::Relaxed) {
                collect(&store, &images, &NOW);
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        sweeper.join().unwrap();
    });
    let (store, images) = open(root.path());
    collect(&store, &images, &NOW);
    assert_eq!(store.usage().unwrap().blobs, 0, "nothing is left that nobody needs");
}
