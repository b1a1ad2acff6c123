//! Packs and their indexes against golden vectors, which the Python tests share: `tests/conformance/packs.json`.

use std::path::Path;

use pfimg_core::codec::{self, Codec, Encoding};
use pfimg_core::pack::Place;
use pfimg_core::{Algorithm, Digest, PackIndex, digest};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    indexes: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    algorithm: String,
    packs: Vec<Case>,
    index: String,
}

#[derive(Deserialize)]
struct Case {
    contents: Vec<String>,
    pack: String,
    name: String,
}

fn vectors() -> Vec<Vector> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/packs.json");
    let vectors: Vectors = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(vectors.indexes.len() >= 3);
    vectors.indexes
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn golden_packs_and_indexes_come_out_the_same() {
    for vector in vectors() {
        let algorithm: Algorithm = vector.algorithm.parse().unwrap();
        let mut indexes = Vec::new();
        for pack in &vector.packs {
            let contents: Vec<Vec<u8>> = pack.contents.iter().map(|content| bytes(content)).collect();
            let encoding = Encoding::new(Codec::Store, 1).unwrap();
            let frames: Vec<Vec<u8>> = contents.iter().map(|content| encoding.encode(content).into_vec()).collect();
            assert_eq!(frames.concat(), bytes(&pack.pack));
            let entries = contents.iter().zip(&frames).map(|(content, frame)| (digest::hash(algorithm, content), frame.len() as u64));
            let index = PackIndex::of(digest::hash(Algorithm::Sha256, &frames.concat()), entries).unwrap();
            assert_eq!(index.packs()[0].name().hex(), pack.name);
            indexes.push(index);
        }
        assert_eq!(PackIndex::join(&indexes).unwrap().to_bytes(), bytes(&vector.index));
    }
}

#[test]
fn golden_indexes_lead_to_every_blob() {
    for vector in vectors() {
        let algorithm: Algorithm = vector.algorithm.parse().unwrap();
        let index = PackIndex::parse(&bytes(&vector.index)).unwrap();
        assert_eq!(index.to_bytes(), bytes(&vector.index));
        for content in vector.packs.iter().flat_map(|pack| &pack.contents).map(|content| bytes(content)) {
            let name: Digest = digest::hash(algorithm, &content);
            let Place { pack, offset, len } = index.locate(&name).unwrap();
            let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
            assert_eq!(codec::decode(&bytes(&vector.packs[pack].pack)[range], 1000).unwrap(), content);
        }
    }
}
