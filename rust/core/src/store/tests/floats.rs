//! Float frames in a store, beside others.

#![expect(clippy::cast_possible_truncation, reason = "numbers made from random bits")]

use std::collections::HashSet;
use std::time::Duration;

use super::*;
use crate::codec::float::{self, Width};
use crate::images::Images;
use crate::{gc, verify};

/// Floats of two bytes whose exponents are few: what a page of bf16 is like.
pub(super) fn page(items: u64, salt: u64) -> Vec<u8> {
    let item = |i: u64| {
        let random = (i + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let exponent = 118 + (random >> 32).trailing_zeros().min(7);
        [(random >> 24) as u8 & 0x7f | (exponent as u8) << 7, (random >> 63 << 7) as u8 | (exponent >> 1) as u8]
    };
    (0..items).flat_map(item).collect()
}

/// A way to find a blob.
type Find = fn(&DirStore, &Digest, &[u8]) -> bool;

fn floats(root: &Path) -> DirStore {
    DirStore::open(root, None, options(Codec::Float, Durability::None)).unwrap()
}

fn endings(root: &Path) -> (usize, usize) {
    let files = files(&root.join("blobs"));
    let count = |ending: &str| files.iter().filter(|path| path.extension().is_some_and(|found| found == ending)).count();
    assert_eq!(count("zst") + count("fpl"), files.len());
    (count("zst"), count("fpl"))
}

fn description(root: &Path) -> Option<String> {
    fs::read_to_string(root.join(layout::DESCRIPTION)).ok()
}

const DESCRIPTION: &str = r#"{"pfimg":1,"digest":"sha256","features":["codec:float"]}"#;

/// Fails unless every way to find a blob finds it.
fn is_there(store: &DirStore, digest: &Digest, content: &[u8]) {
    assert!(store.has(digest).unwrap());
    assert_eq!(store.has_many(&[*digest]).unwrap(), [true]);
    assert_eq!(store.get(digest).unwrap(), content);
    let mut out = vec![0; content.len()];
    store.get_into(digest, &mut out).unwrap();
    assert_eq!(out, content);
    out.fill(0);
    assert!(store.get_many_into(&mut [(*digest, &mut out)], &Monitor::new()).is_empty());
    assert_eq!(out, content);
    let mut streamed = Vec::new();
    assert_eq!(store.get_stream(digest, &mut streamed).unwrap(), content.len() as u64);
    assert_eq!(streamed, content);
    let frame = store.read_frame(digest).unwrap();
    assert_eq!(frame, fs::read(store.find_path(digest).unwrap().unwrap()).unwrap());
    assert_eq!(Form::of(&frame).decode(&frame, 1 << 30).unwrap(), content);
    assert_eq!(store.put_named(&[b"not looked at"], &[Some(*digest)], &Monitor::new()).unwrap(), [*digest]);
}

#[test]
fn floats_get_float_frames_and_all_else_what_auto_gives_it() {
    let root = tempfile::tempdir().unwrap();
    let store = floats(root.path());
    assert_eq!(description(root.path()), None, "nothing needs it yet");
    let samples = samples();
    for (written, sample) in samples[..7].iter().enumerate() {
        store.put(sample).unwrap();
        assert_eq!(store.counters().read().written, written as u64 + 1);
    }
    assert_eq!((description(root.path()), endings(root.path())), (None, (7, 0)));
    let digest = store.put(&samples[8]).unwrap();
    assert_eq!((description(root.path()).as_deref(), endings(root.path())), (Some(DESCRIPTION), (7, 1)));
    let counts = store.counters().read();
    assert_eq!((counts.float, counts.written, counts.compressed + counts.stored), (1, 8, 7));
    is_there(&store, &digest, &samples[8]);
    let path = store.find_path(&digest).unwrap().unwrap();
    assert_eq!(path, store.blob_path(&digest).with_extension("fpl"));
    assert_eq!(fs::read(path).unwrap(), float::encode(&samples[8], Width::Two).unwrap());
}

#[test]
fn a_known_width_needs_no_sniffing() {
    let root = tempfile::tempdir().unwrap();
    let store = floats(root.path());
    // Bytes of few values are zstd's if one looks at them.
    let content: Vec<u8> = page(8192, 0).chunks_exact(2).map(|item| item[1] & 0x7f).collect();
    let digest = store.put_floats(&[&content], Width::One, &Monitor::new()).unwrap()[0];
    assert_eq!(endings(root.path()), (0, 1));
    is_there(&store, &digest, &content);
    let elsewhere = tempfile::tempdir().unwrap();
    let other = floats(elsewhere.path());
    other.put(&content).unwrap();
    assert_eq!(other.counters().read().float, 0);
    // Where a frame of that width does not pay, it is as if none were known.
    let noise = &samples()[3];
    let digest = store.put_floats(&[noise], Width::Four, &Monitor::new()).unwrap()[0];
    assert_eq!(fs::read(store.blob_path(&digest)).unwrap(), Encoding::new(Codec::Auto, 1).unwrap().encode(noise).into_vec());
}

#[test]
fn an_older_handle_notices_the_first_float_frame() {
    let content = page(5000, 1);
    for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
        let root = tempfile::tempdir().unwrap();
        let open = |codec| DirStore::open(root.path(), Some(algorithm), options(codec, Durability::Group)).unwrap();
        let ways: [Find; 8] = [
            |store, digest, _| store.has(digest).unwrap(),
            |store, digest, _| store.has_many(&[*digest]).unwrap()[0],
            |store, digest, _| store.get(digest).is_ok(),
            |store, digest, content| store.get_into(digest, &mut vec![0; content.len()]).is_ok(),
            |store, digest, content| store.get_many_into(&mut [(*digest, &mut vec![0; content.len()])], &Monitor::new()).is_empty(),
            |store, digest, _| store.read_frame(digest).is_ok(),
            |store, digest, _| store.find_path(digest).unwrap().is_some(),
            |store, _, content| {
                store.put(content).unwrap();
                store.counters().read().deduplicated == 1
            },
        ];
        let handles: Vec<DirStore> = ways.iter().map(|_| open(Codec::Auto)).collect();
        let digest = digest::hash(algorithm, &content);
        for (handle, way) in handles.iter().zip(&ways[..7]) {
            assert!(!way(handle, &digest, &content));
        }
        open(Codec::Float).put(&content).unwrap();
        for (at, (handle, way)) in handles.iter().zip(&ways).enumerate() {
            assert!(way(handle, &digest, &content), "{at}");
            is_there(handle, &digest, &content);
        }
        assert_eq!(endings(root.path()), (0, 1));
    }
}

#[test]
fn nothing_is_written_that_is_not_described() {
    let root = tempfile::tempdir().unwrap();
    let store = floats(root.path());
    // A description that cannot be written.
    fs::create_dir(root.path().join(layout::DESCRIPTION)).unwrap();
    let content = page(5000, 1);
    assert_eq!(store.put(&content).unwrap_err().code(), "io");
    let frame = float::encode(&content, Width::Two).unwrap();
    assert_eq!(store.land_frames(&[(digest::hash(Algorithm::Sha256, &content), Framed::of(&frame))], &Monitor::new()).unwrap_err().code(), "io");
    assert_eq!(endings(root.path()), (0, 0));
}

#[test]
fn features_that_are_added_at_once_are_all_kept() {
    for round in 0..50 {
        let root = tempfile::tempdir().unwrap();
        let stores: Vec<DirStore> = (0..4).map(|_| floats(root.path())).collect();
        std::thread::scope(|scope| {
            for (at, store) in stores.iter().enumerate() {
                scope.spawn(move || match at % 2 {
                    0 => store.put(&page(5000, 1)).map(drop).unwrap(),
                    _ => store.require_features(&["names"]).unwrap(),
                });
            }
        });
        let text = description(root.path()).unwrap();
        assert!(text.contains(r#""names""#) && text.contains(r#""codec:float""#) && text.len() == DESCRIPTION.len() + 8, "round {round}: {text}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "no temporaries");
    }
}

#[test]
fn a_description_keeps_what_others_wrote_into_it() {
    let root = tempfile::tempdir().unwrap();
    let store = floats(root.path());
    fs::write(root.path().join(layout::DESCRIPTION), r#"{ "note": {"by": "a person"}, "features": ["names"], "pfimg": 1, "digest": "sha256" }"#)
        .unwrap();
    store.put(&page(5000, 1)).unwrap();
    let text = r#"{"pfimg":1,"digest":"sha256","features":["names","codec:float"],"note":{"by":"a person"}}"#;
    assert_eq!(description(root.path()).as_deref(), Some(text));
    let error = store.require_features(&["teleport"]).unwrap_err();
    assert!(error.code() == "format" && error.to_string().contains("teleport"), "{error}");
    assert_eq!(description(root.path()).as_deref(), Some(text));
}

#[test]
fn float_frames_land_as_they_came_where_such_are_written_and_lies_do_not() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = floats(there.path());
    // The last is so large that it streams through.
    let contents = [page(5000, 1), page(50_000, 2), page(20_000_000, 3)];
    let digests: Vec<Digest> = contents.iter().map(|content| source.put(content).unwrap()).collect();
    let frame = source.read_frame(&digests[0]).unwrap();
    let store = floats(here.path());
    assert_eq!(store.land_frames(&[(digests[0], Framed::of(&frame))], &Monitor::new()).unwrap(), 1);
    assert_eq!(description(here.path()).as_deref(), Some(DESCRIPTION));
    let files: Vec<(Digest, PathBuf)> = digests.iter().map(|digest| (*digest, source.find_path(digest).unwrap().unwrap())).collect();
    assert!(fs::metadata(&files[2].1).unwrap().len() > 16 << 20);
    assert_eq!(store.import_files(&files, &Monitor::new()).unwrap().0, 2);
    assert_eq!(store.import_files(&files, &Monitor::new()).unwrap(), (0, 0));
    for ((digest, path), content) in files.iter().zip(&contents) {
        assert_eq!(fs::read(store.find_path(digest).unwrap().unwrap()).unwrap(), fs::read(path).unwrap());
        assert_eq!(store.get(digest).unwrap(), *content);
    }

    // Elsewhere they are encoded anew.
    let plain = tempfile::tempdir().unwrap();
    let store = open(plain.path());
    assert_eq!(store.land_frames(&[(digests[0], Framed::of(&frame))], &Monitor::new()).unwrap(), 1);
    assert_eq!(store.import_files(&files, &Monitor::new()).unwrap().0, 2);
    for (digest, content) in digests.iter().zip(&contents) {
        assert_eq!(store.read_frame(digest).unwrap(), Encoding::new(Codec::Auto, 1).unwrap().encode(content).into_vec());
    }
    assert_eq!((endings(plain.path()), description(plain.path())), ((3, 0), None));

    let empty = tempfile::tempdir().unwrap();
    for (store, (digest, path)) in [open(empty.path()), floats(empty.path())].iter().flat_map(|store| files.iter().map(move |file| (store, file))) {
        let mut bad = fs::read(path).unwrap();
        let at = bad.len() - 1;
        bad[at] ^= 1;
        let file = empty.path().join("bad");
        fs::write(&file, &bad).unwrap();
        let error = store.import_files(&[(*digest, file)], &Monitor::new()).unwrap_err();
        assert!(error.code() == "integrity" && error.to_string().contains(&digest.to_string()), "{error}");
        assert_eq!(store.land_frames(&[(*digest, Framed::of(&bad))], &Monitor::new()).unwrap_err().code(), "integrity");
        assert_eq!(store.land_frames(&[(*digest, Framed::of(&bad[..at]))], &Monitor::new()).unwrap_err().code(), "integrity");
    }
    assert_eq!(endings(empty.path()), (0, 0));
}

#[test]
fn every_flipped_byte_of_a_frame_is_found() {
    let root = tempfile::tempdir().unwrap();
    let store = floats(root.path());
    let content = page(600, 1);
    let digest = store.put(&content).unwrap();
    let path = store.find_path(&digest).unwrap().unwrap();
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let landed = open(elsewhere.path()).land_frames(&[(digest, Framed::of(&bad))], &Monitor::new());
        let read = match at % 4 {
            0 => store.get(&digest),
            1 => store.read_frame(&digest).map(|_| content.clone()),
            2 => store.get_stream(&digest, &mut std::io::sink()).map(|_| content.clone()),
            _ => {
                let mut out = vec![0; content.len()];
                store.get_many_into(&mut [(digest, &mut out)], &Monitor::new()).pop().map_or(Ok(out), |(_, error)| Err(error))
            }
        };
        match read {
            // A bit that fills up the last byte of a stream says nothing.
            Ok(read) => assert!(read == content && landed.is_ok(), "{at}"),
            Err(error) => {
                assert_eq!(error.code(), "integrity", "{at}: {error}");
                assert_eq!(landed.unwrap_err().code(), "integrity", "{at}");
                assert!(!store.has(&digest).unwrap() && !path.exists(), "{at}");
            }
        }
    }
    let lost = fs::read_dir(root.path().join(layout::QUARANTINE)).unwrap().count();
    assert!(lost > good.len() - 16, "{lost} of {}", good.len());
}

#[test]
fn a_frame_lies_only_under_the_name_of_its_form() {
    let root = tempfile::tempdir().unwrap();
    let store = floats(root.path());
    let content = page(5000, 1);
    let digest = store.put(&content).unwrap();
    let (float, zstd) = (store.find_path(&digest).unwrap().unwrap(), store.blob_path(&digest));
    fs::rename(&float, &zstd).unwrap();
    assert_eq!(store.get(&digest).unwrap_err().code(), "integrity");
    fs::write(&float, Encoding::new(Codec::Store, 1).unwrap().encode(&content).into_vec()).unwrap();
    assert_eq!(store.get(&digest).unwrap_err().code(), "integrity");
    assert_eq!(endings(root.path()), (0, 0));
}

#[test]
fn what_a_crash_left_does_not_hide_the_other_form() {
    let root = tempfile::tempdir().unwrap();
    let store = floats(root.path());
    let content = page(5000, 1);
    let digest = digest::hash(Algorithm::Sha256, &content);
    fs::create_dir_all(store.blob_path(&digest).parent().unwrap()).unwrap();
    fs::write(store.blob_path(&digest), b"").unwrap();
    store.put(&content).unwrap();
    assert_eq!(endings(root.path()), (1, 1));
    is_there(&store, &digest, &content);
    is_there(&open(root.path()), &digest, &content);
    assert_eq!(store.usage().unwrap().blobs, 1);
    fs::write(store.find_path(&digest).unwrap().unwrap(), b"").unwrap();
    assert_eq!(store.get(&digest).unwrap_err().code(), "blob_not_found");
}

#[test]
fn the_published_format_alone_neither_sees_nor_writes_float_frames() {
    let root = tempfile::tempdir().unwrap();
    let store = floats(root.path());
    let (content, other) = (page(5000, 1), page(5000, 2));
    let digest = store.put(&content).unwrap();
    let published = Options { published: true, ..options(Codec::Float, Durability::None) };
    let published = DirStore::open(root.path(), None, published).unwrap();
    assert!(!published.has(&digest).unwrap());
    assert_eq!(published.get(&digest).unwrap_err().code(), "blob_not_found");
    let frame = store.read_frame(&digest).unwrap();
    assert_eq!(published.land_frames(&[(digest, Framed::of(&frame))], &Monitor::new()).unwrap(), 1);
    assert_eq!(published.put_floats(&[&content], Width::Two, &Monitor::new()).unwrap(), [digest]);
    published.put(&other).unwrap();
    assert_eq!(endings(root.path()), (2, 1));
    // Both copies are the blob, and the published one is read.
    is_there(&store, &digest, &content);
    assert_eq!(store.find_path(&digest).unwrap(), Some(store.blob_path(&digest)));
    let usage = store.usage().unwrap();
    assert_eq!((usage.blobs, usage.logical_bytes), (2, 20_000));
    assert_eq!(usage.physical_bytes, files(&root.path().join("blobs")).iter().map(|path| fs::metadata(path).unwrap().len()).sum::<u64>());
    // Where one copy is damaged, the other is still the blob.
    let mut bad = fs::read(store.blob_path(&digest)).unwrap();
    bad[100] ^= 1;
    fs::write(store.blob_path(&digest), bad).unwrap();
    assert_eq!(store.get(&digest).unwrap_err().code(), "integrity");
    is_there(&store, &digest, &content);
}

#[test]
fn upkeep_knows_both_forms() {
    let root = tempfile::tempdir().unwrap();
    let store = floats(root.path());
    let images = Images::new(store.root());
    let monitor = Monitor::new();
    let contents: Vec<Vec<u8>> = (0..4).map(|salt| page(5000, salt)).collect();
    let digests: Vec<Digest> = contents.iter().map(|content| store.put(content).unwrap()).collect();
    let [kept, corrupt, spare, twice] = digests[..] else { panic!() };
    images.pin("kept", &kept).unwrap();
    let path = |digest: &Digest| store.form_path(digest, Form::Float);
    fs::write(store.blob_path(&twice), Encoding::new(Codec::Store, 1).unwrap().encode(&contents[3]).into_vec()).unwrap();
    let mut bad = fs::read(path(&corrupt)).unwrap();
    bad[1000] ^= 1;
    fs::write(path(&corrupt), bad).unwrap();

    let report = verify::verify(&open(root.path()), &images, false, &monitor).unwrap();
    assert_eq!((report.checked, report.foreign.len(), report.missing.len()), (5, 0, 0));
    assert_eq!(report.corrupt.iter().map(|found| (found.digest, found.path.clone())).collect::<Vec<_>>(), [(Some(corrupt), path(&corrupt))]);
    let unreachable: HashSet<_> = report.unreachable.iter().map(|found| (found.digest.unwrap(), found.path.clone())).collect();
    assert_eq!(unreachable, HashSet::from([(spare, path(&spare)), (twice, store.blob_path(&twice))]));
    assert_eq!(store.usage().unwrap().blobs, 3);

    let age = |path: &Path| fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - 2 * gc::Options::default().grace);
    for path in files(&root.path().join("blobs")) {
        age(&path).unwrap();
    }
    // A put renews the one that it finds.
    store.put(&contents[2]).unwrap();
    let options = gc::Options { grace: Duration::from_secs(3600), ..gc::Options::default() };
    let collected = gc::collect(&store, &images, &options, &monitor).unwrap();
    assert_eq!((collected.freed, collected.kept), (2, 2));
    assert_eq!([kept, corrupt, spare, twice].map(|digest| store.has(&digest).unwrap()), [true, false, true, false]);
    is_there(&store, &kept, &contents[0]);
}

#[test]
fn without_the_feature_such_files_are_foreign() {
    let root = tempfile::tempdir().unwrap();
    let content = page(5000, 1);
    let store = floats(root.path());
    let digest = store.put(&content).unwrap();
    fs::remove_file(root.path().join(layout::DESCRIPTION)).unwrap();
    let store = open(root.path());
    assert!(!store.has(&digest).unwrap());
    let images = Images::new(store.root());
    let report = verify::verify(&store, &images, false, &Monitor::new()).unwrap();
    assert_eq!((report.checked, report.foreign.len()), (0, 1));
    let options = gc::Options { grace: Duration::ZERO, ..gc::Options::default() };
    assert_eq!(gc::collect(&store, &images, &options, &Monitor::new()).unwrap().freed, 0);
    assert_eq!(endings(root.path()), (0, 1));
}
