//! Directories that do not fit one block: hash array mapped tries, as Kubo makes them.
//!
//! A shard has 256 places. An entry's place in the shard of depth *d* is byte *d* of the hash of its name; where several entries share it,
//! the place holds a shard of the next depth instead. The trie depends on the entries alone, not on their order.

use std::io::Cursor;

use super::cid::Cid;
use super::unixfs::{Link, encode, shard_data};

/// Bytes of a name's hash.
const HASH_BYTES: usize = 8;

/// First half of `MurmurHash3_x64_128`, the most significant byte first.
fn hash(name: &str) -> [u8; HASH_BYTES] {
    let both = murmur3::murmur3_x64_128(&mut Cursor::new(name), 0).expect("memory can be read");
    // The first half is the lower one.
    *both.to_be_bytes().last_chunk().expect("16 bytes are more than 8")
}

/// The hash of a name as a number, of which the upper bits tell the place in the topmost shard.
pub fn place(name: &str) -> u64 {
    u64::from_be_bytes(hash(name))
}

/// Makes the directory of these entries. Each block is given to `add` after those below it, with its links; the result links to the last.
///
/// None if two names have the same hash, which leaves no place for them.
pub fn build(entries: &[Link], add: &mut impl FnMut(Vec<u8>, &[Link]) -> Cid) -> Option<Link> {
    let mut hashed: Vec<_> = entries.iter().map(|entry| (hash(&entry.name), entry)).collect();
    hashed.sort_unstable_by_key(|(hash, _)| *hash);
    shard(&hashed, 0, add)
}

fn shard(entries: &[([u8; HASH_BYTES], &Link)], depth: usize, add: &mut impl FnMut(Vec<u8>, &[Link]) -> Cid) -> Option<Link> {
    if depth == HASH_BYTES {
        return None;
    }
    let mut bits = [0; 32];
    let mut links = Vec::new();
    for group in entries.chunk_by(|(a, _), (b, _)| a[depth] == b[depth]) {
        let place = group[0].0[depth];
        bits[31 - usize::from(place / 8)] |= 1 << (place % 8);
        let below = match group {
            [(_, entry)] => (*entry).clone(),
            _ => shard(group, depth + 1, add)?,
        };
        links.push(Link { name: format!("{place:02X}{}", below.name), ..below });
    }
    let block = encode(&links, &shard_data(&bits));
    let tsize = block.len() as u64 + links.iter().map(|link| link.tsize).sum::<u64>();
    Some(Link { name: String::new(), cid: add(block, &links), tsize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hash_as_murmur3_does() {
        // The first of the two numbers in published examples.
        assert_eq!(hash(""), [0; 8]);
        assert_eq!(u64::from_be_bytes(hash("hello")), 0xcbd8_a7b3_41bd_9b02);
        assert_eq!(u64::from_be_bytes(hash("The quick brown fox jumps over the lazy dog")), 0xe34b_bc7b_bc07_1b6c);
    }
}
