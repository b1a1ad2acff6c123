use proptest::prelude::*;

use super::*;
use crate::digest;

const LONGEST: u64 = i64::MAX as u64;

fn name(n: u8) -> Digest {
    digest::hash(Algorithm::Sha256, &[n])
}

/// An index of packs with these names, each with blobs of these numbers and lengths.
fn index(packs: &[(u8, &[(u8, u64)])]) -> Result<PackIndex> {
    let mut builder = Builder::new(Algorithm::Sha256);
    for (pack, blobs) in packs {
        let entries: Vec<Entry> = blobs.iter().map(|(blob, len)| Entry { digest: *name(*blob).bytes(), offset: 0, len: *len }).collect();
        builder.append(&name(*pack), &entries)?;
    }
    builder.finish()
}

#[test]
fn blobs_are_found_in_the_first_pack_that_has_them() {
    let index = index(&[(200, &[(1, 10), (2, 20), (3, 30)]), (201, &[(4, 5), (2, 7)]), (202, &[(9, 1)])]).unwrap();
    let place = |pack, offset, len| Some(Place { pack, offset, len });
    let found: Vec<_> = (1..6).map(|blob| index.locate(&name(blob))).collect();
    assert_eq!(found, [place(0, 0, 10), place(0, 10, 20), place(0, 30, 30), place(1, 0, 5), None]);
    assert_eq!(index.locate(&Digest::new(Algorithm::Blake3, *name(1).bytes())), None);
    assert_eq!(index.covering(&[name(9), name(2), name(77)]), [0, 2]);
    assert_eq!(index.covering(&[]), [0; 0]);
    let packs: Vec<_> = index.packs().iter().map(|pack| (*pack.name(), pack.bytes(), pack.blobs())).collect();
    assert_eq!(packs, [(name(200), 60, 3), (name(201), 12, 2), (name(202), 1, 1)]);
    let less = index.only(&HashSet::from([name(202), name(201), name(7)]));
    assert_eq!(less.locate(&name(2)), place(0, 5, 7));
    assert_eq!((less.len(), less.locate(&name(1))), (3, None));
    assert!(index.only(&HashSet::new()).is_empty());
}

#[test]
fn joined_packs_are_there_once() {
    let a = index(&[(200, &[(1, 10)]), (201, &[(2, 20)])]).unwrap();
    let b = index(&[(202, &[(1, 1)]), (200, &[(1, 10)]), (201, &[(2, 21)])]).unwrap();
    let joined = PackIndex::join([&a, &b]).unwrap();
    assert_eq!(joined, index(&[(200, &[(1, 10)]), (201, &[(2, 20)]), (202, &[(1, 1)])]).unwrap());
    assert_eq!(PackIndex::join([&joined, &a]).unwrap(), joined);
    assert!(PackIndex::join([]).unwrap().is_empty());
    let other = PackIndex::of(name(203), [(digest::hash(Algorithm::Blake3, b"x"), 1)]).unwrap();
    let error = PackIndex::join([&a, &other]).unwrap_err();
    assert!(error.code() == "format" && error.to_string().contains("sha256 and blake3"), "{error}");
    // What is empty is of no algorithm in particular.
    assert_eq!(PackIndex::join([&PackIndex::join([]).unwrap(), &other]).unwrap(), other);
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let good = index(&[(200, &[(1, 10), (2, 20)]), (201, &[(3, 30)])]).unwrap().to_bytes();
    assert_eq!(good.len(), 12 + 5 * 40);
    let changed = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let cases = [
        (b"pfimg".to_vec(), 5, "ends within its header"),
        (changed(0, b"P"), 0, "does not begin with pfimgidx"),
        (changed(8, &[2]), 8, "version 2"),
        (changed(9, &[1]), 8, "version 257"),
        (changed(10, &[2]), 10, "algorithm 2"),
        (changed(11, &[1]), 11, "not zero"),
        ([&good[..], &[0; 39]].concat(), 212, "within the description of a pack"),
        (good[..211].to_vec(), 164, "before 1 blobs"),
        (changed(44, &[5]), 44, "before 5 blobs"),
        (changed(44, &[0xff; 8]), 44, "before 18446744073709551615 blobs"),
        (changed(44, &[0]), 44, "no blobs"),
        (changed(84, &[0]), 52, "no bytes"),
        (changed(124, &[0xff; 8]), 92, "longer than any file"),
        (changed(132, name(200).bytes()), 132, "is there twice"),
    ];
    for (bytes, at, word) in cases {
        match PackIndex::parse(&bytes).unwrap_err() {
            Error::Format { offset: Some(offset), reason, .. } => {
                assert_eq!(offset, at, "{reason}");
                assert!(reason.contains(word), "{reason}");
            }
            other => panic!("{word}: {other}"),
        }
    }
    let twice = PackIndex::parse(&changed(92, name(1).bytes())).unwrap_err().to_string();
    assert!(twice.contains(&name(1).to_string()) && twice.contains(&name(200).hex()), "{twice}");
}

#[test]
fn what_a_pack_cannot_be_made_of_is_refused() {
    let blake3 = digest::hash(Algorithm::Blake3, b"x");
    for (frames, word) in [
        (vec![], "no blobs"),
        (vec![(name(1), 1), (name(1), 1)], "is twice"),
        (vec![(name(1), 0)], "no bytes"),
        (vec![(name(1), u64::MAX), (name(2), 1)], "longer than any file"),
        (vec![(name(1), LONGEST), (name(2), 1)], "longer than any file"),
        (vec![(name(1), 1), (blake3, 1)], "sha256 and blake3"),
    ] {
        let error = PackIndex::of(name(200), frames).unwrap_err();
        assert!(error.code() == "format" && error.to_string().contains(word), "{error}");
    }
    let index = PackIndex::of(name(200), [(name(1), LONGEST - 1), (name(2), 1)]).unwrap();
    assert_eq!(index.locate(&name(2)), Some(Place { pack: 0, offset: LONGEST - 1, len: 1 }));
}

#[test]
fn documents_are_bounded() {
    let large = vec![0; usize::try_from(limits::DOCUMENT_BYTES).unwrap() + 1];
    assert_eq!(PackIndex::parse(&large).unwrap_err().code(), "limit");
    assert_eq!(PackIndex::parse(&large[1..]).unwrap_err().code(), "format");
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(packs in prop::collection::vec(prop::collection::btree_map(any::<u8>(), 1..u64::MAX >> 9, 1..40), 0..9)) {
        let packs: Vec<(u8, Vec<(u8, u64)>)> = (0..).zip(packs).map(|(n, pack)| (n, pack.into_iter().collect())).collect();
        let packs: Vec<(u8, &[(u8, u64)])> = packs.iter().map(|(n, pack)| (*n, &pack[..])).collect();
        let index = index(&packs).unwrap();
        prop_assert_eq!(PackIndex::parse(&index.to_bytes()).unwrap(), index);
    }

    #[test]
    fn any_bytes_are_read_or_refused(tail: Vec<u8>, blake3: bool) {
        let bytes = [&MAGIC[..], &[1, 0, u8::from(blake3), 0], &tail].concat();
        if let Ok(index) = PackIndex::parse(&bytes) {
            prop_assert_eq!(index.to_bytes(), bytes);
        }
    }
}
