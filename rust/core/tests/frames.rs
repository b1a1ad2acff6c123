//! Stored frames against golden vectors, which the Python tests share: `tests/conformance/frames.json`.

use std::io::{Read, Write};
use std::path::Path;

use pfimg_core::codec::{self, BLOCK_BYTES, Codec, Encoding, FRAME_HEADER_MAX, Found, Frame};
use serde_json::Value;
use sha2::{Digest, Sha256};

struct Vector {
    content: Vec<u8>,
    frame_length: u64,
    frame_start: String,
    frame_sha256: String,
}

fn vectors() -> Vec<Vector> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/frames.json");
    let document: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |frame: &Value, key: &str| frame[key].as_str().unwrap().to_owned();
    let number = |frame: &Value, key: &str| frame[key].as_u64().unwrap();
    let frames = document["frames"].as_array().unwrap();
    assert!(frames.len() >= 20);
    let vector = |frame: &Value| {
        // Byte i is i mod 251, so that no block equals another.
        let content: Vec<u8> = (0..=250).cycle().take(usize::try_from(number(frame, "length")).unwrap()).collect();
        assert_eq!(hex(&Sha256::digest(&content)), text(frame, "content_sha256"));
        Vector {
            content,
            frame_length: number(frame, "frame_length"),
            frame_start: text(frame, "frame_start"),
            frame_sha256: text(frame, "frame_sha256"),
        }
    };
    frames.iter().map(vector).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from_digit(digit.into(), 16).unwrap()).collect()
}

fn store() -> Encoding {
    Encoding::new(Codec::Store, 1).unwrap()
}

fn check(frame: &[u8], vector: &Vector) {
    assert_eq!(hex(&frame[..vector.frame_start.len() / 2]), vector.frame_start);
    assert_eq!(frame.len() as u64, vector.frame_length);
    assert_eq!(hex(&Sha256::digest(frame)), vector.frame_sha256);
}

#[test]
fn every_way_to_write_a_stored_frame_gives_the_golden_one() {
    for vector in vectors() {
        let content = &vector.content;
        assert_eq!(codec::stored_len(content.len() as u64), vector.frame_length);
        let frame = store().encode(content);
        assert_eq!(frame.len() as u64, vector.frame_length);
        let mut gathered = Vec::new();
        frame.write(|slices| slices.iter().try_for_each(|slice| gathered.write_all(slice))).unwrap();
        check(&gathered, &vector);
        check(&frame.into_vec(), &vector);
        check(&Frame::Stored(content).into_vec(), &vector);
        let mut streamed = Vec::new();
        let compressed = store().encode_stream(&mut &content[..], content.len() as u64, &mut streamed, |_| ()).unwrap();
        assert!(!compressed);
        check(&streamed, &vector);
    }
}

#[test]
fn every_way_to_read_it_gives_the_content() {
    for vector in vectors() {
        let content = &vector.content;
        let (frame, len) = (store().encode(content).into_vec(), content.len() as u64);
        check(&frame, &vector);
        assert_eq!(codec::content_len(&frame), Ok(Some(len)));
        assert_eq!(codec::content_len_hint(&frame[..frame.len().min(FRAME_HEADER_MAX)]), Some(len));
        assert_eq!(codec::decode(&frame, len).as_ref(), Ok(content));
        let mut out = vec![0xff; content.len()];
        codec::decode_into(&frame, &mut out).unwrap();
        assert_eq!(&out, content);
        let mut streamed = Vec::new();
        codec::decoder(&frame[..]).unwrap().read_to_end(&mut streamed).unwrap();
        assert_eq!(&streamed, content);
    }
}

#[test]
fn a_scattered_read_takes_the_golden_frame_and_no_other() {
    for vector in vectors() {
        let mut frame = store().encode(&vector.content).into_vec();
        check(&frame, &vector);
        let mut out = vec![0xff; vector.content.len()];
        let mut scatter = |frame: &[u8]| {
            let mut rest = frame;
            let found = codec::read_stored(&mut out, |slices| rest.read_vectored(slices)).unwrap();
            (found == Found::Frame).then(|| out.clone())
        };
        assert_eq!(scatter(&frame).as_ref(), Some(&vector.content));
        // Every byte that is not content: those before the first block, and those before each of the others.
        let more_blocks = vector.content.len().div_ceil(BLOCK_BYTES).saturating_sub(1);
        let start = frame.len() - vector.content.len() - 192 * more_blocks;
        let others = (0..more_blocks).map(|block| start + block * (BLOCK_BYTES + 192) + BLOCK_BYTES).flat_map(|at| at..at + 192);
        for at in (0..start).chain(others) {
            frame[at] ^= 1;
            assert_eq!(scatter(&frame), None, "byte {at} of {}", frame.len());
            frame[at] ^= 1;
        }
    }
}
