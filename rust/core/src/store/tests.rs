mod floats;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, SystemTime};

use super::*;
use crate::codec::{Codec, Encoding, Form, Framed};
use crate::{layout, pool};

fn options(codec: Codec, durability: Durability) -> Options {
    Options { encoding: Encoding::new(codec, 1).unwrap(), durability, published: false }
}

fn open(root: &Path) -> DirStore {
    DirStore::open(root, None, options(Codec::Auto, Durability::None)).unwrap()
}

fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn samples() -> Vec<Vec<u8>> {
    let noise = |len: u64| (0..len).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect::<Vec<u8>>();
    let mut samples: Vec<Vec<u8>> = [0, 1, 4096, 65_536, 131_073, 2_000_000].into_iter().map(noise).collect();
    samples.push(b"words and words ".repeat(5000));
    samples.push(samples[3].clone());
    samples.push(floats::page(36_864, 0));
    samples
}

#[test]
fn batches_round_trip_under_every_option() {
    let samples = samples();
    let blobs: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
    for codec in [Codec::Auto, Codec::Zstd, Codec::Store, Codec::Float] {
        for durability in [Durability::None, Durability::Group, Durability::Each] {
            for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
                let root = tempfile::tempdir().unwrap();
                let store = DirStore::open(root.path(), Some(algorithm), options(codec, durability)).unwrap();
                let digests = store.put_many(&blobs).unwrap();
                assert_eq!(digests, digest::hash_many(algorithm, &blobs));
                assert_eq!(store.put_many(&blobs).unwrap(), digests);
                assert_eq!(store.has_many(&digests).unwrap(), vec![true; blobs.len()]);
                let counts = store.counters().read();
                let count = blobs.len() as u64;
                assert!(counts.written >= count - 1 && counts.deduplicated >= count, "{counts:?}");

                let mut outs: Vec<Vec<u8>> = samples.iter().map(|sample| vec![0xff; sample.len()]).collect();
                let mut items: Vec<_> = digests.iter().copied().zip(outs.iter_mut().map(Vec::as_mut_slice)).collect();
                assert!(store.get_many_into(&mut items, &Monitor::new()).is_empty());
                assert_eq!(outs, samples);
                for (digest, sample) in digests.iter().zip(&samples) {
                    assert_eq!(&store.get(digest).unwrap(), sample);
                    let mut streamed = Vec::new();
                    assert_eq!(store.get_stream(digest, &mut streamed).unwrap(), sample.len() as u64);
                    assert_eq!(&streamed, sample);
                    assert_eq!(store.put_stream(&mut &sample[..], sample.len() as u64).unwrap(), *digest);
                    let reader = store.open_blob(digest).unwrap();
                    assert_eq!(reader.len(), Some(sample.len() as u64));
                    assert_eq!(&reader.read().unwrap(), sample);
                }
                let usage = store.usage().unwrap();
                let distinct: std::collections::HashSet<&Vec<u8>> = samples.iter().collect();
                assert_eq!((usage.blobs, usage.physical_bytes), (distinct.len() as u64, store.physical_bytes().unwrap()));
                assert_eq!(usage.logical_bytes, distinct.iter().map(|sample| sample.len() as u64).sum::<u64>());
                assert!(files(root.path()).iter().all(|path| !path.to_string_lossy().contains(".tmp.")));
            }
        }
    }
}

#[test]
fn a_stream_is_stored_under_its_digest() {
    let root = tempfile::tempdir().unwrap();
    for durability in [Durability::None, Durability::Group, Durability::Each] {
        let store = DirStore::open(root.path(), None, options(Codec::Auto, durability)).unwrap();
        let content = vec![durability as u8; 3_000_000];
        let digest = store.put_stream(&mut &content[..], 3_000_000).unwrap();
        assert_eq!(store.get(&digest).unwrap(), content);
        for len in [2_999_999, 3_000_001] {
            assert_eq!(store.put_stream(&mut &content[..], len).unwrap_err().code(), "changed");
        }
    }
    assert_eq!(fs::read_dir(root.path().join(layout::TEMPORARY)).unwrap().count(), 0);
}

#[test]
fn known_names_are_not_hashed_again_but_unknown_ones_must_match() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let [a, b] = [b"a", b"b"].map(|bytes| store.put(bytes).unwrap());
    // "x" is not looked at, since the blob of that name is there.
    assert_eq!(store.put_named(&[b"x", b"b"], &[Some(a), None], &Monitor::new()).unwrap(), [a, b]);
    let c = digest::hash(Algorithm::Sha256, b"c");
    let error = store.put_named(&[b"a", b"x"], &[None, Some(c)], &Monitor::new()).unwrap_err();
    assert!(matches!(&error, Error::At { index: 1, .. }) && error.code() == "integrity", "{error}");
    assert!(!store.has(&c).unwrap());
}

#[test]
fn damage_is_never_returned_and_the_next_put_heals() {
    let [noise, floats] = [4, 8].map(|at| samples().swap_remove(at));
    for (codec, sample) in [(Codec::Store, &noise), (Codec::Zstd, &noise), (Codec::Float, &floats)] {
        let root = tempfile::tempdir().unwrap();
        let store = DirStore::open(root.path(), None, options(codec, Durability::None)).unwrap();
        let digest = store.put(sample).unwrap();
        let path = store.find_path(&digest).unwrap().unwrap();
        let good = fs::read(&path).unwrap();
        let damages = (0..8).map(|part| {
            let mut bad = good.clone();
            let at = part * (good.len() - 1) / 7;
            bad[at] ^= 0x10;
            bad
        });
        let damages = damages.chain([good[..good.len() - 1].to_vec(), good[..5].to_vec(), [&good[..], b"tail"].concat()]);
        for (case, bad) in damages.enumerate() {
            for read in 0..4 {
                fs::write(&path, &bad).unwrap();
                let error = match read {
                    0 => store.get(&digest).unwrap_err(),
                    1 => store.get_into(&digest, &mut vec![0; sample.len()]).unwrap_err(),
                    2 => store.get_stream(&digest, &mut std::io::sink()).unwrap_err(),
                    _ => store.read_frame(&digest).unwrap_err(),
                };
                assert_eq!(error.code(), "integrity", "case {case}, read {read}: {error}");
                assert!(!path.exists());
                assert_eq!(store.get(&digest).unwrap_err().code(), "blob_not_found");
                assert_eq!(store.put(sample).unwrap(), digest);
                assert_eq!(store.get(&digest).unwrap(), *sample);
            }
        }
        assert_eq!(fs::read_dir(root.path().join(layout::QUARANTINE)).unwrap().count(), 44);
        assert_eq!(store.counters().read().corrupt, 44);
    }
}

#[test]
fn a_frame_that_announces_too_much_is_corrupt() {
    let root = tempfile::tempdir().unwrap();
    let store = DirStore::open(root.path(), None, options(Codec::Store, Durability::None)).unwrap();
    let digest = store.put(&vec![7; 100_000]).unwrap();
    let path = store.blob_path(&digest);
    let mut frame = fs::read(&path).unwrap();
    frame[8] = 0xff; // the highest byte of the content size: now four gigabytes
    fs::write(&path, frame).unwrap();
    assert_eq!(store.open_blob(&digest).unwrap().len(), None);
    assert_eq!(store.get(&digest).unwrap_err().code(), "integrity");
}

#[test]
fn what_was_healed_meanwhile_goes_back() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let digest = store.put(b"sound").unwrap();
    assert_eq!(store.condemn(&digest, Form::Zstd, "said a reader that came too late").code(), "integrity");
    assert_eq!(store.get(&digest).unwrap(), b"sound");
    assert_eq!(fs::read_dir(root.path().join(layout::QUARANTINE)).unwrap().count(), 0);
}

#[test]
fn an_empty_file_counts_as_absent() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let digest = store.put(b"").unwrap();
    fs::write(store.blob_path(&digest), b"").unwrap();
    assert!(!store.has(&digest).unwrap());
    assert_eq!(store.get(&digest).unwrap_err().code(), "blob_not_found");
    store.put(b"").unwrap();
    assert_eq!(store.get(&digest).unwrap(), b"");
}

#[test]
fn a_buffer_of_another_length_is_refused_and_the_blob_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    for sample in samples() {
        let digest = store.put(&sample).unwrap();
        let error = store.get_into(&digest, &mut vec![0; sample.len() + 1]).unwrap_err();
        assert_eq!(error.code(), "format", "{error}");
        assert!(store.has(&digest).unwrap());
    }
}

#[test]
fn a_few_look_ups_do_not_wait_for_the_pool() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let there = store.put(b"page").unwrap();
    let absent = digest::hash(Algorithm::Sha256, b"another");
    let (busy, free) = (Barrier::new(pool::threads() + 1), Barrier::new(pool::threads() + 1));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pool::install(|| {
                rayon::broadcast(|_| {
                    busy.wait();
                    free.wait();
                })
            })
        });
        busy.wait();
        let found = store.has_many(&[there, absent]).and_then(|has| Ok((has, store.keep_many(&[absent, there])?)));
        free.wait();
        assert_eq!(found.unwrap(), (vec![true, false], vec![false, true]));
    });
}

#[test]
fn finding_an_old_blob_renews_it() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let digest = store.put(b"kept").unwrap();
    let path = store.blob_path(&digest);
    let age = |age: Duration| fs::File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    let modified = || fs::metadata(&path).unwrap().modified().unwrap();
    age(RENEW_AFTER / 2);
    let before = modified();
    store.put(b"kept").unwrap();
    assert_eq!(modified(), before, "young enough");
    let finds: [&dyn Fn(); 4] = [
        &|| assert_eq!(store.put(b"kept").unwrap(), digest),
        &|| assert_eq!(store.put_named(&[b"kept"], &[Some(digest)], &Monitor::new()).unwrap(), [digest]),
        &|| assert!(store.keep(&digest).unwrap()),
        &|| assert_eq!(store.keep_many(&[digest]).unwrap(), [true]),
    ];
    for find in finds {
        age(RENEW_AFTER * 2);
        find();
        assert!(modified().elapsed().unwrap() < RENEW_AFTER / 2);
    }
    age(RENEW_AFTER * 2);
    assert!(store.has(&digest).unwrap());
    assert!(modified().elapsed().unwrap() > RENEW_AFTER, "a look alone");
}

#[test]
fn frames_land_as_they_came_and_lies_do_not() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = DirStore::open(there.path(), None, options(Codec::Zstd, Durability::None)).unwrap();
    let store = DirStore::open(here.path(), None, options(Codec::Store, Durability::Group)).unwrap();
    let samples = samples();
    let digests: Vec<Digest> = samples.iter().map(|sample| source.put(sample).unwrap()).collect();
    let frames: Vec<Vec<u8>> = digests.iter().map(|digest| source.read_frame(digest).unwrap()).collect();
    let item = |index: usize| (digests[index], Framed::of(&frames[index]));
    assert_eq!(store.land_frames(&[item(0), item(1)], &Monitor::new()).unwrap(), 2);
    let files: Vec<(Digest, PathBuf)> = digests.iter().map(|digest| (*digest, source.blob_path(digest))).collect();
    let monitor = Monitor::new();
    let (fresh, bytes) = store.import_files(&files, &monitor).unwrap();
    assert!(fresh >= 5 && bytes > 0, "{fresh} {bytes}");
    for digest in &digests {
        assert_eq!(fs::read(store.blob_path(digest)).unwrap(), fs::read(source.blob_path(digest)).unwrap());
    }
    assert_eq!(store.import_files(&files, &monitor).unwrap(), (0, 0));

    let lie = digest::hash(Algorithm::Sha256, b"something else");
    let error = store.land_frames(&[item(0), (lie, item(1).1)], &Monitor::new()).unwrap_err();
    assert!(matches!(&error, Error::At { index: 1, .. }) && error.code() == "integrity", "{error}");
    let error = store.import_files(&[(lie, files[1].1.clone())], &monitor).unwrap_err();
    assert!(error.code() == "integrity" && error.to_string().contains(&lie.to_string()), "{error}");
    let error = store.import_files(&[(lie, there.path().join("nothing"))], &monitor).unwrap_err();
    assert_eq!(error.code(), "blob_not_found");
    assert!(!store.has(&lie).unwrap());
}

#[test]
fn a_frame_that_was_replaced_is_told_from_a_corrupt_one() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let digests = store.put_many(&[b"abc", b"abcd"]).unwrap();
    let mut frames: Vec<Vec<u8>> = store.frame_lens(&digests).unwrap().into_iter().map(|len| vec![0; len]).collect();
    let encoding = Encoding::new(Codec::Store, 1).unwrap();
    let other = [b"ab", b"cd"].map(|part| encoding.encode(part).into_vec()).concat();
    fs::write(store.blob_path(&digests[1]), &other).unwrap();
    let items = digests.iter().zip(frames.iter_mut().map(Vec::as_mut_slice)).map(|(digest, frame)| (*digest, move || frame)).collect();
    let failed = store.read_frames(items, &Monitor::new());
    assert!(matches!(failed[..], [(1, Error::Changed { .. })]), "{failed:?}");
    assert_eq!(frames[0], store.read_frame(&digests[0]).unwrap());
    assert_eq!(store.read_frame(&digests[1]).unwrap(), other);
}

#[test]
fn files_that_are_too_many_to_be_held_together_are_imported_in_turns() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = DirStore::open(there.path(), None, options(Codec::Store, Durability::None)).unwrap();
    let store = DirStore::open(here.path(), None, options(Codec::Auto, Durability::Group)).unwrap();
    let contents: Vec<Vec<u8>> = (0..9_u8).map(|n| vec![n; 9_000_000 + 1_000_000 * usize::from(n)]).collect();
    let digests: Vec<Digest> = contents.iter().map(|content| source.put(content).unwrap()).collect();
    let mut files: Vec<(Digest, PathBuf)> = digests.iter().map(|digest| (*digest, source.blob_path(digest))).collect();
    let good = fs::read(&files[6].1).unwrap();
    let mut bad = good.clone();
    bad[1_000_000] ^= 1;
    fs::write(&files[6].1, &bad).unwrap();
    let error = store.import_files(&files, &Monitor::new()).unwrap_err();
    assert!(
        matches!(&error, Error::At { index: 6, source } if matches!(&**source, Error::Integrity { path: Some(path), .. } if *path == files[6].1)),
        "{error:?}"
    );
    assert!(!store.has(&digests[6]).unwrap());
    fs::write(&files[6].1, &good).unwrap();
    let monitor = Monitor::new();
    store.import_files(&files, &monitor).unwrap();
    assert_eq!(monitor.counts().0, 9);
    for (digest, content) in digests.iter().zip(&contents) {
        assert_eq!(store.get(digest).unwrap(), *content);
    }
    files.truncate(1);
    assert_eq!(store.import_files(&files, &Monitor::new()).unwrap(), (0, 0));
}

#[test]
fn large_files_stream_through_and_are_verified_on_the_way() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = DirStore::open(there.path(), None, options(Codec::Store, Durability::None)).unwrap();
    let content: Vec<u8> = (0..20_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let digest = source.put(&content).unwrap();
    let store = open(here.path());
    let monitor = Monitor::new();
    let mut bad = fs::read(source.blob_path(&digest)).unwrap();
    bad[15_000_000] ^= 1;
    let path = there.path().join("bad");
    fs::write(&path, &bad).unwrap();
    assert_eq!(store.import_files(&[(digest, path)], &monitor).unwrap_err().code(), "integrity");
    assert!(!store.has(&digest).unwrap());
    assert_eq!(store.import_files(&[(digest, source.blob_path(&digest))], &monitor).unwrap().0, 1);
    assert_eq!(store.get(&digest).unwrap(), content);
    assert!(files(here.path()).iter().all(|path| !path.to_string_lossy().contains(".tmp.")));
}

#[test]
fn a_cancelled_call_stops() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let digest = store.put(b"x").unwrap();
    let monitor = Monitor::new();
    monitor.cancel();
    let failed = store.get_many_into(&mut [(digest, &mut [0][..])], &monitor);
    assert!(matches!(failed[..], [(0, Error::Cancelled)]));
    // Found corrupt and cancelled at once: one failure.
    let reader = store.open_blob(&digest).unwrap();
    fs::write(store.blob_path(&digest), Encoding::new(Codec::Store, 1).unwrap().encode(b"y").into_vec()).unwrap();
    let failed = store.read_opened([Ok((reader, &mut [0][..]))].into_iter(), &monitor);
    assert!(matches!(failed[..], [(0, Error::Cancelled)]));
    store.put(b"x").unwrap();
    let frame = &mut [0; 10][..];
    assert_eq!(store.frame_lens(&[digest]).unwrap(), [frame.len()]);
    assert!(matches!(store.read_frames(vec![(digest, || frame)], &monitor)[..], [(0, Error::Cancelled)]));
    assert!(matches!(store.check_blob(&digest, &monitor), Err(Error::Cancelled)));
    assert!(matches!(store.land_frames(&[(digest, Framed::of(b""))], &monitor), Err(Error::Cancelled)));
    assert!(matches!(store.import_files(&[(digest, store.blob_path(&digest))], &monitor), Err(Error::Cancelled)));
}

#[test]
fn descriptions_are_obeyed() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    let store = DirStore::open(path, Some(Algorithm::Blake3), options(Codec::Auto, Durability::None)).unwrap();
    let digest = store.put(b"x").unwrap();
    assert_eq!(fs::read_to_string(path.join("pfimg.json")).unwrap(), r#"{"pfimg":1,"digest":"blake3","features":[]}"#);
    assert_eq!(open(path).algorithm(), Algorithm::Blake3);
    assert_eq!(open(path).get(&digest).unwrap(), b"x");
    let refused = |algorithm| DirStore::open(path, algorithm, options(Codec::Auto, Durability::None)).unwrap_err();
    assert_eq!(refused(Some(Algorithm::Sha256)).code(), "format");
    assert_eq!(open(path).get(&digest::hash(Algorithm::Sha256, b"x")).unwrap_err().code(), "format");
    for (document, word) in [
        (r#"{"pfimg":2,"digest":"sha256","features":[]}"#, "version 2"),
        (r#"{"pfimg":1,"digest":"md5","features":[]}"#, "md5"),
        (r#"{"pfimg":1,"digest":"sha256","features":["teleport"]}"#, "teleport"),
        ("{", "pfimg.json"),
    ] {
        fs::write(path.join("pfimg.json"), document).unwrap();
        let error = refused(None);
        assert!(error.code() == "format" && error.to_string().contains(word), "{error}");
        // A handle that was open before finds out when it misses something.
        let error = store.get(&digest::hash(Algorithm::Blake3, b"absent")).unwrap_err();
        assert!(error.code() == "format" && error.to_string().contains(word), "{error}");
        assert_eq!(store.get(&digest).unwrap(), b"x");
    }
}

#[test]
fn a_plain_store_is_sha256_and_stays_so() {
    let root = tempfile::tempdir().unwrap();
    open(root.path()).put(b"x").unwrap();
    assert!(!root.path().join("pfimg.json").exists());
    let error = DirStore::open(root.path(), Some(Algorithm::Blake3), options(Codec::Auto, Durability::None)).unwrap_err();
    assert_eq!(error.code(), "format");
}

#[test]
fn groups_are_bounded() {
    assert!(groups_of(&[]).is_empty());
    assert_eq!(groups_of(&[3, 3, 3]), [3]);
    assert_eq!(groups_of(&[1, 1, 1, 1]), [3, 1]);
    assert_eq!(groups_of(&[600, 600, 600]), [1, 1, 1]);
    assert_eq!(groups_of(&[2000, 1]), [1, 1]);
}

/// Lengths of the pieces that blobs of these lengths in MiB are cut into.
fn groups_of(mebibytes: &[usize]) -> Vec<usize> {
    cut(0..mebibytes.len(), 3, 1024, |index| mebibytes[index]).into_iter().map(|piece| piece.len()).collect()
}
