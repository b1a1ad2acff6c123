//! Float frames against golden vectors, which the Python tests share (`tests/conformance/float_frames.json`), and on real pages.

use std::path::Path;

use pfimg_core::codec::float::{self, Width};
use serde_json::Value;

fn read(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(path)).unwrap()
}

/// As the Python tests tell it.
fn content(width: usize, length: usize) -> Vec<u8> {
    let item = |i: usize| {
        let i = u32::try_from(i).unwrap();
        let zeros = (i + 1).trailing_zeros().min(7);
        let random = i.wrapping_mul(0x9e37_79b1);
        let sign = random >> 31;
        let item = match width {
            1 => sign << 7 | (3 + zeros) << 3 | random >> 28 & 0x7,
            2 => sign << 15 | (120 + zeros) << 7 | random >> 24 & 0x7f,
            _ => sign << 31 | (120 + zeros) << 23 | random >> 8 & 0x7f_ffff,
        };
        item.to_le_bytes().into_iter().take(width)
    };
    (0..length / width).flat_map(item).chain(std::iter::repeat_n(0x55, length % width)).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn golden_frames_are_made_and_read() {
    let document: Value = serde_json::from_slice(&read("conformance/float_frames.json")).unwrap();
    let frames = document["frames"].as_array().unwrap();
    assert!(frames.len() >= 9);
    for frame in frames {
        let number = |key: &str| usize::try_from(frame[key].as_u64().unwrap()).unwrap();
        let content = content(number("width"), number("length"));
        let width = [Width::One, Width::Two, Width::Four].into_iter().find(|&width| width as usize == number("width")).unwrap();
        let made = float::encode(&content, width).unwrap();
        assert_eq!(made, bytes(frame["frame"].as_str().unwrap()));
        assert_eq!(float::decode(&made, content.len() as u64), Ok(content));
    }
}

#[test]
fn real_pages_lose_a_third() {
    for file in ["kv_k_pages.npy", "kv_v_pages.npy"] {
        let file = read(&format!("data/{file}"));
        let pages = &file[128..];
        for page in pages.chunks_exact(73_728) {
            assert_eq!(float::sniff(page).map(|found| (found.width, found.noise)), Some((Width::Two, true)));
            let frame = float::encode(page, Width::Two).unwrap();
            assert!(frame.len() * 1000 < page.len() * 680, "{}", frame.len());
            assert_eq!(float::decode(&frame, page.len() as u64).unwrap(), page);
        }
    }
}
