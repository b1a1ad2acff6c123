//! Writing and reading together; the names and archives of Kubo are in `tests/conformance/car.json`.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::plan::{PROFILE, Profile};
use super::*;
use crate::codec::{self, Encoding};
use crate::digest::Algorithm;
use crate::error::{Error, Result};
use crate::pool::Monitor;
use crate::store::{BlobStore, DirStore, Durability, MemoryStore, Options};

type Files = BTreeMap<String, Vec<u8>>;

fn plan_with(profile: Profile, files: &Files) -> Result<Plan<Cursor<&[u8]>>> {
    let entries = files.iter().map(|(name, content)| (name.clone(), Cursor::new(&content[..]))).collect();
    Plan::with_profile(profile, entries, &Monitor::new())
}

fn plan(files: &Files) -> Result<Plan<Cursor<&[u8]>>> {
    plan_with(PROFILE, files)
}

fn written<S: Source>(plan: &Plan<S>) -> Vec<u8> {
    part_written(plan, &plan.whole())
}

fn part_written<S: Source>(plan: &Plan<S>, part: &Part) -> Vec<u8> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some((blocks, len)) = plan.chunk(part, at) {
        let mut chunk = vec![0xee; len];
        at = blocks.end;
        plan.write(part, blocks, &mut chunk).unwrap();
        all.extend_from_slice(&chunk);
    }
    assert_eq!((all.len() as u64, at), (part.size(), part.blocks()));
    all
}

/// Everything in a CAR, which comes in pieces of a length.
fn read(car: &[u8], pieces: usize) -> Result<(Vec<Cid>, Blocks)> {
    let mut reader = Reader::new();
    let mut blocks = Blocks::new();
    for piece in car.chunks(pieces) {
        reader.feed(piece)?.iter().for_each(|block| blocks.insert(block));
    }
    reader.finish()?;
    Ok((reader.roots().unwrap().to_vec(), blocks))
}

fn files_of(blocks: &Blocks, directory: &Cid, path: &str, files: &mut Files) {
    for entry in blocks.entries(directory).unwrap() {
        let name = format!("{path}{}", entry.name);
        if blocks.entries(&entry.cid).is_ok() {
            files_of(blocks, &entry.cid, &format!("{name}/"), files);
            continue;
        }
        let mut content = Vec::new();
        let mut out = |bytes: &[u8]| {
            content.extend_from_slice(bytes);
            Ok(())
        };
        blocks.read(&entry.cid, &mut out).unwrap();
        assert_eq!(blocks.size(&entry.cid).unwrap(), content.len() as u64);
        files.insert(name, content);
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/car.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn number(vector: &Value, key: &str) -> usize {
    vector[key].as_u64().unwrap().try_into().unwrap()
}

fn sample(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

fn check(vector: &Value, files: &Files) {
    let plan = plan(files).unwrap();
    assert_eq!(plan.root().to_string(), vector["root"], "{} files", files.len());
    let car = written(&plan);
    assert_eq!((car.len(), hex(&Sha256::digest(&car))), (number(vector, "car_bytes"), vector["car_sha256"].as_str().unwrap().into()));
    let (roots, blocks) = read(&car, 1000).unwrap();
    assert_eq!(roots, [plan.root().clone()]);
    assert_eq!(blocks.missing(plan.root()).unwrap(), []);
    let mut found = Files::new();
    files_of(&blocks, plan.root(), "", &mut found);
    assert!(found == *files);
}

#[test]
fn files_have_the_names_that_kubo_gives_them() {
    let document = golden();
    for vector in document["files"].as_array().unwrap() {
        assert_eq!(cid_of(&sample(number(vector, "length"))).to_string(), vector["cid"]);
    }
    let pieces = document["pieces"].as_array().unwrap();
    assert_eq!(pieces.len(), 9);
    for vector in pieces {
        let profile = Profile { block_bytes: number(vector, "block_bytes") as u64, file_links: number(vector, "file_links"), ..PROFILE };
        let files = Files::from([("file".into(), sample(1000))]);
        let plan = plan_with(profile, &files).unwrap();
        let (_, blocks) = read(&written(&plan), 77).unwrap();
        assert_eq!(blocks.entries(plan.root()).unwrap()[0].cid.to_string(), vector["cid"]);
    }
}

#[test]
fn directories_are_written_as_kubo_exports_them() {
    let document = golden();
    for vector in document["directories"].as_array().unwrap() {
        let entry = |number: usize| {
            let content = number.to_string().into_bytes();
            (format!("blob_{}.zst", hex(&Sha256::digest(&content))), content)
        };
        check(vector, &(0..number(vector, "entries")).map(entry).collect());
    }
    for vector in document["trees"].as_array().unwrap() {
        let files = vector["files"].as_object().unwrap();
        check(vector, &files.iter().map(|(name, text)| (name.clone(), text.as_str().unwrap().into())).collect());
    }
}

fn small() -> Files {
    Files::from([("a".into(), sample(700)), ("b".into(), sample(10)), ("c".into(), sample(10)), ("d/e".into(), Vec::new())])
}

#[test]
fn equal_blocks_are_written_once() {
    let files = small();
    // The root, a, b that is c, d, e.
    assert_eq!(plan(&files).unwrap().whole().blocks(), 5);
    let zeros = Files::from([("zeros".into(), vec![0; 5 << 20])]);
    let plan = plan(&zeros).unwrap();
    assert_eq!(plan.whole().blocks(), 3);
    assert!(plan.whole().size() < 2 << 20);
}

#[test]
fn a_cut_is_noticed_wherever_it_is() {
    let files = small();
    let plan = plan(&files).unwrap();
    let car = written(&plan);
    let mut whole = 0;
    for end in 0..car.len() {
        match read(&car[..end], 64) {
            Ok((roots, blocks)) => {
                assert!(!blocks.missing(&roots[0]).unwrap().is_empty());
                whole += 1;
            }
            Err(error) => assert!(error.to_string().contains("cut off at byte"), "{error}"),
        }
    }
    // After the header and each block but the last.
    assert_eq!(whole, plan.whole().blocks());
}

#[test]
fn what_is_missing_is_named_in_the_order_of_a_walk() {
    let files = small();
    let plan = plan(&files).unwrap();
    let (_, all) = read(&written(&plan), 64).unwrap();
    let root = plan.root();
    let entries = all.entries(root).unwrap();
    assert_eq!(Blocks::new().missing(root).unwrap(), std::slice::from_ref(root));
    let mut some = Blocks::new();
    some.insert(&Block::check(root.clone(), all.get(root).unwrap()).unwrap());
    assert_eq!(some.missing(root).unwrap(), [&entries[0], &entries[1], &entries[3]].map(|entry| entry.cid.clone()));
    let absent = some.read(&entries[0].cid, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(absent, Error::BlobNotFound { .. }), "{absent}");
}

#[test]
fn text_after_the_end_and_other_archives_are_refused() {
    let files = small();
    let car = written(&plan(&files).unwrap());
    let refused = |bytes: &[u8]| read(bytes, 4096).map(drop).unwrap_err();
    // Its first letter is taken for a length, which this text is longer than.
    let text = format!("{:70}", "Error: block was not found locally");
    let after = refused(&[&car[..], text.as_bytes()].concat());
    assert!(after.to_string().contains("no block begins here") && after.to_string().contains(&format!("byte {}", car.len())), "{after}");
    assert!(refused(b"\x0a\xa1gversion\x02").to_string().contains("CAR version 2"));
    assert!(refused(b"").to_string().contains("cut off at byte 0"));
    assert!(refused(&[&car[..], &[0]].concat()).to_string().contains("length is 0"));
    assert!(matches!(refused(&[&car[..], &[0xff, 0xff, 0xff, 0x7f]].concat()), Error::Limit { name: "CAR_BLOCK_BYTES", .. }));
    assert!(matches!(refused(&[0xff, 0xff, 0xff, 0x7f]), Error::Limit { name: "CAR_HEADER_BYTES", .. }));
    let cbor = [&[1, 0x71, 0x12, 0x20][..], &[7; 32]].concat();
    assert!(refused(&[&car[..], &[36], &cbor].concat()).to_string().contains("codec 0x71"));
}

#[test]
fn after_an_error_nothing_is_read() {
    let files = small();
    let mut car = written(&plan(&files).unwrap());
    *car.last_mut().unwrap() ^= 1;
    let mut reader = Reader::new();
    assert!(reader.feed(&car).is_err());
    assert!(reader.feed(&[]).is_err());
    assert!(reader.finish().is_err());
}

#[test]
fn what_changes_between_plan_and_writing_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    for (later, reason) in [(&b"abd"[..], "not what was planned"), (b"ab", "shorter")] {
        std::fs::write(&path, b"abc").unwrap();
        let plan = Plan::new(vec![("file".into(), path.clone())], &Monitor::new()).unwrap();
        std::fs::write(&path, later).unwrap();
        let part = plan.whole();
        let (blocks, len) = plan.chunk(&part, 0).unwrap();
        let error = plan.write(&part, blocks, &mut vec![0; len]).unwrap_err();
        assert!(matches!(error.root(), Error::Changed { .. }) && error.to_string().contains(reason), "{error}");
    }
    let absent = Plan::new(vec![("file".into(), path), ("other".into(), dir.path().join("other"))], &Monitor::new()).err().unwrap();
    assert!(matches!(absent, Error::At { index: 1, .. }), "{absent}");
    let directory = Plan::new(vec![("file".into(), dir.path().to_path_buf())], &Monitor::new()).err().unwrap();
    assert!(directory.to_string().contains("not a regular file"), "{directory}");
}

#[test]
fn names_that_cannot_be_are_refused() {
    let plan = |names: &[&str]| {
        let entries = names.iter().map(|name| ((*name).into(), Cursor::new(&b""[..]))).collect();
        Plan::new(entries, &Monitor::new()).map(|plan| plan.root().clone())
    };
    for names in [&["a", "a"][..], &["a/b", "a"], &[""], &["/a"], &["a/../b"], &["a//b"], &["a\0"]] {
        assert_eq!(plan(names).unwrap_err().code(), "format", "{names:?}");
    }
    assert_eq!(plan(&["b", "a"]).unwrap(), plan(&["a", "b"]).unwrap());
}

#[test]
fn nodes_that_lie_are_refused() {
    use super::unixfs::{encode, file_data};
    let leaf = |content: &[u8]| Link { name: String::new(), cid: Cid::of(Codec::Raw, content), tsize: content.len() as u64 };
    let node = |links: &[Link], data: &[u8]| {
        let block = encode(links, data);
        Node::parse(&Cid::of(Codec::DagPb, &block), &block).map(|node| node.size()).map_err(|error| error.to_string())
    };
    let refused = |links: &[Link], data: &[u8], reason: &str| {
        let error = node(links, data).unwrap_err();
        assert!(error.contains(reason), "{error}");
    };
    let links = [leaf(b"ab"), leaf(b"c")];
    assert_eq!(node(&links, &file_data(&[2, 1])).unwrap(), Some(3));
    refused(&links, &file_data(&[3]), "2 links and 1 sizes");
    refused(&links, &file_data(&[3, 0]), "no bytes");
    refused(&links, &[8, 2, 24, 4, 32, 2, 32, 1], "not the sum");
    let most = [&[32][..], &[0xff; 9], &[1]].concat();
    refused(&links, &[&[8, 2][..], &most, &most].concat(), "not the sum");
    refused(&links, &[8, 1], "no name");
    refused(&[], &[8, 4], "kind 4");
    refused(&[], &[], "no kind");
    refused(&[], &[8, 5, 40, 0x23, 48, 128, 2], "hash function 0x23");
    refused(&[], &[8, 5, 40, 0x22, 48, 100], "100 places");
    refused(&links, &[8, 5, 40, 0x22, 48, 128, 2], "without its place");
    // A file whose link tells another length than its leaf has.
    let mut blocks = Blocks::new();
    let file = encode(&links, &file_data(&[2, 2]));
    let cid = Cid::of(Codec::DagPb, &file);
    blocks.insert(&Block::check(cid.clone(), &file).unwrap());
    for content in [&b"ab"[..], b"c"] {
        blocks.insert(&Block::check(Cid::of(Codec::Raw, content), content).unwrap());
    }
    assert!(blocks.read(&cid, &mut |_| Ok(())).unwrap_err().to_string().contains("does not have the 2 bytes"));
}

#[test]
fn the_bytes_in_a_name_are_its_block() {
    let cid = Cid::from_bytes(&[1, 0x55, 0, 2, b'a', b'b']).unwrap();
    assert_eq!(Blocks::new().size(&cid).unwrap(), 2);
    let header = header::encode(&Cid::of(Codec::Raw, b""));
    let block = |content: &[u8]| [&header[..], &[6 + 2], &cid.to_bytes(), content].concat();
    assert!(read(&block(b"ab"), 9).is_ok());
    assert!(matches!(read(&block(b"ac"), 9), Err(Error::Integrity { .. })));
}

fn trees() -> impl Strategy<Value = Files> {
    let name = "[a-c]{1,2}|[é日]{1,2}";
    let path = proptest::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"));
    let content = (0_u8..4, 0_usize..600).prop_map(|(byte, len)| vec![byte; len]);
    proptest::collection::btree_map(path, content, 0..30).prop_map(|files: Files| {
        let is_directory = |name: &str| files.keys().any(|other| crate::path::is_below(other, name));
        files.iter().filter(|(name, _)| !is_directory(name)).map(|(name, content)| (name.clone(), content.clone())).collect()
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(files in trees(), file_links in 2_usize..5, directory_bytes in 50_usize..400, pieces in 1_usize..500) {
        let profile = Profile { block_bytes: 100, file_links, directory_bytes };
        let plan = plan_with(profile, &files).unwrap();
        let (roots, blocks) = read(&written(&plan), pieces).unwrap();
        prop_assert_eq!(&roots, &[plan.root().clone()]);
        prop_assert_eq!(blocks.len(), plan.whole().blocks());
        prop_assert_eq!(blocks.missing(plan.root()).unwrap(), []);
        let mut found = Files::new();
        files_of(&blocks, plan.root(), "", &mut found);
        prop_assert_eq!(found, files);
    }

    #[test]
    fn no_other_byte_passes(files in trees(), at: proptest::sample::Index, flip in 1_u8..) {
        let plan = plan(&files).unwrap();
        let mut car = written(&plan);
        let at = at.index(car.len());
        car[at] ^= flip;
        // A root that is another CID is told by the roots, or by what is missing.
        if let Ok((roots, blocks)) = read(&car, 100) {
            prop_assert!(roots != [plan.root().clone()] || !blocks.missing(plan.root()).unwrap().is_empty());
        }
    }

    #[test]
    fn any_block_is_a_node_or_an_error(block: Vec<u8>) {
        let cid = Cid::of(Codec::DagPb, &block);
        if let Ok(node) = Node::parse(&cid, &block) {
            prop_assert!(node.links().count() <= block.len());
        }
    }
}

#[test]
fn a_name_is_found_with_the_blocks_on_the_way_to_it() {
    let many: Files = (0..9_000).map(|number| (format!("entry-{number}"), vec![])).collect();
    for files in [small(), many] {
        let plan = plan(&files).unwrap();
        let (_, all) = read(&written(&plan), 1 << 20).unwrap();
        for entry in all.entries(plan.root()).unwrap() {
            assert_eq!(all.find(plan.root(), &entry.name).unwrap(), Some(entry));
        }
        assert_eq!(all.find(plan.root(), "absent").unwrap(), None);
        let mut some = Blocks::new();
        let mut asked = 0;
        let name = files.keys().next().unwrap();
        while let Err(error) = some.find(plan.root(), name) {
            let Error::BlobNotFound { digest } = error else { panic!("{error}") };
            let cid: Cid = digest.parse().unwrap();
            some.insert(&Block::check(cid.clone(), all.get(&cid).unwrap()).unwrap());
            asked += 1;
        }
        assert!(asked < 4, "{asked}");
    }
}

#[test]
fn an_upload_ends_with_the_root_and_leaves_out_what_is_there() {
    let files = small();
    let plan = plan(&files).unwrap();
    let (_, all) = read(&written(&plan), 1 << 20).unwrap();
    let mut reader = Reader::new();
    let sent = reader.feed(&part_written(&plan, &plan.upload(&HashSet::new()))).unwrap();
    assert_eq!((sent.len(), sent.last().unwrap().cid()), (all.len(), plan.root()));
    let first_node = sent.iter().position(|block| block.cid().codec() == Codec::DagPb).unwrap();
    assert!(sent[first_node..].iter().all(|block| block.cid().codec() == Codec::DagPb));
    assert_eq!(plan.files(), files.values().map(|content| (cid_of(content), content.len() as u64)).collect::<Vec<_>>());
    let there: HashSet<Cid> = plan.files().iter().take(2).map(|(cid, _)| cid.clone()).collect();
    let rest = read(&part_written(&plan, &plan.upload(&there)), 1 << 20).unwrap().1;
    assert!(there.iter().all(|cid| rest.get(cid).is_none()));
    assert_eq!(rest.len() + there.len(), all.len());
}

#[test]
fn blobs_of_a_store_are_contents() {
    let dir = tempfile::tempdir().unwrap();
    let noise = |len: usize, seed: u64| {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(len).collect::<Vec<u8>>()
    };
    // In the directory some are as they shall be and some are compressed, of one block or of several.
    let contents = [b"".to_vec(), b"text".repeat(40), noise(70_000, 1), b"much text".repeat(400_000), noise(3 << 20, 2), noise(5, 3)];
    let options = Options { encoding: Encoding { codec: codec::Codec::Auto, level: 1 }, durability: Durability::None, published: false };
    let store = Arc::new(DirStore::open(dir.path(), None, options).unwrap());
    let digests: Vec<_> = contents.iter().map(|content| store.put(content).unwrap()).collect();
    let stored = Encoding { codec: codec::Codec::Store, level: 1 };
    let frames = contents.iter().enumerate().map(|(at, content)| (at.to_string(), Cursor::new(stored.encode(content).into_vec())));
    let expected = Plan::new(frames.collect(), &Monitor::new()).unwrap();
    let memory = Arc::new(MemoryStore::new(Algorithm::Sha256));
    for content in &contents {
        memory.put(content).unwrap();
    }
    for of in [BlobFrames::in_directory(Arc::clone(&store), stored), BlobFrames::elsewhere(memory, stored)] {
        let entries = digests.iter().enumerate().map(|(at, digest)| (at.to_string(), of.of(*digest))).collect();
        let plan = Plan::new(entries, &Monitor::new()).unwrap();
        assert_eq!(plan.root(), expected.root());
        assert_eq!(written(&plan), written(&expected));
    }
    std::fs::write(store.blob_path(&digests[4]), b"damaged").unwrap();
    let of = BlobFrames::in_directory(store, stored);
    let error = Plan::new(vec![("a".into(), of.of(digests[0])), ("b".into(), of.of(digests[4]))], &Monitor::new()).err().unwrap();
    assert!(matches!(error.root(), Error::Integrity { .. }), "{error}");
}
