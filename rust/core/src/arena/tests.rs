use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Barrier;

use sha2::Digest as _;

use super::*;
use crate::digest::Algorithm;
use crate::store::{BlobStore, MemoryStore};

const PAGE: usize = 4096 + 100;

fn geometry(slots: u32) -> Geometry {
    Geometry { algorithm: Algorithm::Sha256, page_bytes: PAGE, slots }
}

/// Page number `n`, of a length of its own.
fn page(n: usize) -> Vec<u8> {
    (0..PAGE - n % 200).map(|at| u8::try_from((at * 31 + n * 17) % 251).unwrap()).chain(n.to_le_bytes()).skip(8).collect()
}

fn name(page: &[u8]) -> Digest {
    Digest::new(Algorithm::Sha256, sha2::Sha256::digest(page).into())
}

fn put(arena: &PageArena, pages: &[Vec<u8>]) -> Vec<Digest> {
    arena.put_many(&pages.iter().map(Vec::as_slice).collect::<Vec<_>>(), None, &Monitor::new()).unwrap()
}

/// What each of the pages gives: whether it was there; whatever is handed out is right.
fn get(arena: &PageArena, pages: &[Vec<u8>]) -> Vec<bool> {
    let mut places: Vec<Vec<u8>> = pages.iter().map(|page| vec![0xff; page.len()]).collect();
    let mut items: Vec<_> = pages.iter().map(|page| name(page)).zip(places.iter_mut().map(Vec::as_mut_slice)).collect();
    let failed = arena.get_many(&mut items, &Monitor::new()).unwrap();
    let mut found = vec![true; pages.len()];
    for (index, _) in failed {
        found[index] = false;
    }
    for ((place, page), found) in places.iter().zip(pages).zip(&found) {
        assert!(!found || place == page);
    }
    found
}

#[test]
fn pages_of_any_length_come_back() {
    let arena = PageArena::open(None, geometry(100)).unwrap();
    let mut pages: Vec<_> = (0..60).map(page).collect();
    pages.push(Vec::new());
    pages.push(vec![7; PAGE]);
    assert_eq!(put(&arena, &pages), pages.iter().map(|page| name(page)).collect::<Vec<_>>());
    assert_eq!(get(&arena, &pages), vec![true; 62]);
    assert_eq!(put(&arena, &pages).len(), 62);
    let counts = arena.counts().unwrap();
    assert_eq!((counts.pages, counts.written, counts.deduplicated, counts.hits), (62, 62, 62, 62));
    assert_eq!(counts.bytes, pages.iter().map(|page| page.len() as u64).sum::<u64>());
    assert_eq!(get(&arena, &[page(77)]), [false]);
}

#[test]
fn the_file_is_warm_when_it_is_opened_again() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("arena");
    let pages: Vec<_> = (0..50).map(page).collect();
    put(&PageArena::open(Some(&path), geometry(64)).unwrap(), &pages);
    let arena = PageArena::open(Some(&path), geometry(64)).unwrap();
    assert_eq!(get(&arena, &pages), vec![true; 50]);
    assert!(matches!(PageArena::open(Some(&path), geometry(64)), Err(Error::Store(_))));
    let reader = PageArena::attach(&path).unwrap();
    assert_eq!(get(&reader, &pages), vec![true; 50]);
    let more: Vec<_> = (100..110).map(page).collect();
    put(&arena, &more);
    assert_eq!(get(&reader, &more), vec![true; 10]);
    assert!(matches!(reader.put_many(&[b"x"], None, &Monitor::new()), Err(Error::Store(_))));
    drop(arena);
    let other = Geometry { page_bytes: PAGE + 1, ..geometry(64) };
    assert!(matches!(PageArena::open(Some(&path), other), Err(Error::Format { .. })));
}

#[test]
fn no_flipped_byte_gets_out() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("arena");
    let pages: Vec<_> = (0..20).map(page).collect();
    let arena = PageArena::open(Some(&path), geometry(20)).unwrap();
    put(&arena, &pages);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut damaged = 0;
    for (n, page) in pages.iter().enumerate() {
        let slot = arena.lock().find(&name(page)).unwrap();
        let stride = PAGE.next_multiple_of(64) as u64;
        let at = file.metadata().unwrap().len() - stride * u64::from(20 - slot) + (n * 97 % page.len()) as u64;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        damaged += 1;
        let found = get(&arena, &pages);
        assert_eq!(found.iter().filter(|found| !**found).count(), damaged);
    }
    assert_eq!(arena.counts().unwrap().corrupt, 20);
    // Put again, all is well; no slot was lost.
    put(&arena, &pages);
    assert_eq!(get(&arena, &pages), vec![true; 20]);
}

/// A store in memory that stops before it puts, until it is let through.
struct Gated {
    store: MemoryStore,
    entered: Barrier,
    left: Barrier,
}

impl BlobStore for Gated {
    fn algorithm(&self) -> Algorithm {
        self.store.algorithm()
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest> {
        self.store.put(bytes)
    }

    fn put_named(&self, blobs: &[&[u8]], digests: &[Option<Digest>], monitor: &Monitor) -> Result<Vec<Digest>> {
        self.entered.wait();
        self.left.wait();
        self.store.put_named(blobs, digests, monitor)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.store.get(digest)
    }

    fn has(&self, digest: &Digest) -> Result<bool> {
        self.store.has(digest)
    }

    fn physical_bytes(&self) -> Result<u64> {
        self.store.physical_bytes()
    }
}

#[test]
fn pages_go_to_a_store_out_of_their_slots() {
    let store = MemoryStore::new(Algorithm::Sha256);
    let root = tempfile::tempdir().unwrap();
    let arena = PageArena::open(Some(&root.path().join("arena")), geometry(40)).unwrap();
    let pages: Vec<_> = (0..40).map(page).collect();
    let mut names = put(&arena, &pages);
    for n in [3, 30] {
        let slot = arena.lock().find(&names[n]).unwrap();
        // SAFETY: nobody else has any part of the arena.
        let bytes = unsafe { arena.slots.bytes_mut(slot, pages[n].len()) };
        bytes[7 * n] ^= 1;
    }
    names.insert(10, name(&page(77)));
    let failed = arena.write_to(&store, &names, &Monitor::new()).unwrap();
    assert_eq!(
        failed.iter().map(|(index, error)| (*index, error.code())).collect::<Vec<_>>(),
        [(3, "integrity"), (10, "blob_not_found"), (31, "integrity")]
    );
    let there = store.has_many(&names).unwrap();
    assert_eq!(there.iter().filter(|there| **there).count(), 38);
    assert!(failed.iter().all(|(index, _)| !there[*index]));
    // Their slots are free, and all others as before.
    assert_eq!(arena.counts().unwrap().corrupt, 2);
    put(&arena, &[page(100), page(101)]);
    assert_eq!(arena.counts().unwrap().evicted, 0);
    assert!(arena.lock().entries.iter().all(|entry| (entry.readers, entry.slow_readers) == (0, 0)));
}

#[test]
fn no_put_waits_for_pages_on_their_way_to_a_store() {
    let store = Gated { store: MemoryStore::new(Algorithm::Sha256), entered: Barrier::new(2), left: Barrier::new(2) };
    let arena = PageArena::open(None, geometry(20)).unwrap();
    let pages: Vec<_> = (0..20).map(page).collect();
    let names = put(&arena, &pages);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| arena.write_to(&store, &names, &Monitor::new()).unwrap());
        store.entered.wait();
        let full = arena.put_many(&[b"one more"], None, &Monitor::new()).unwrap_err();
        assert!(matches!(full.root(), Error::Store(_)), "{full}");
        // What is removed meanwhile keeps its bytes until it was written.
        assert_eq!(arena.remove(&names).unwrap(), [true; 20]);
        assert!(arena.put_many(&[b"one more"], None, &Monitor::new()).is_err());
        store.left.wait();
        assert!(writing.join().unwrap().is_empty());
    });
    assert_eq!(store.has_many(&names).unwrap(), [true; 20]);
    put(&arena, &pages);
    assert_eq!(get(&arena, &pages), [true; 20]);
}

#[test]
fn pages_of_a_store_come_into_the_arena() {
    let store = MemoryStore::new(Algorithm::Sha256);
    let arena = PageArena::open(None, geometry(200)).unwrap();
    let pages: Vec<_> = (0..150).map(page).collect();
    store.put_many(&pages.iter().map(Vec::as_slice).filter(|page| **page != pages[70]).collect::<Vec<_>>()).unwrap();
    let mut places: Vec<Vec<u8>> = pages.iter().map(|page| vec![0; page.len()]).collect();
    let read = |places: &mut [Vec<u8>]| {
        let mut items: Vec<_> = pages.iter().map(|page| name(page)).zip(places.iter_mut().map(Vec::as_mut_slice)).collect();
        arena.read_from(&store, &mut items, &Monitor::new()).unwrap().into_iter().map(|(index, _)| index).collect::<Vec<_>>()
    };
    assert_eq!(read(&mut places), [70]);
    assert!(places.iter().zip(&pages).enumerate().all(|(n, (place, page))| n == 70 || place == page));
    assert_eq!(get(&arena, &pages).iter().filter(|found| **found).count(), 149);
    // Without room they come all the same.
    arena.remove(&pages.iter().map(|page| name(page)).collect::<Vec<_>>()).unwrap();
    let others = put(&arena, &(200..400).map(page).collect::<Vec<_>>());
    arena.pin(&others).unwrap();
    for place in &mut places {
        place.fill(0);
    }
    assert_eq!(read(&mut places), [70]);
    assert!(places.iter().zip(&pages).enumerate().all(|(n, (place, page))| n == 70 || place == page));
    assert_eq!(arena.has_many(&others).unwrap(), vec![true; 200]);
}

#[test]
fn headers_are_not_believed() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("arena");
    let pages: Vec<_> = (0..16).map(page).collect();
    put(&PageArena::open(Some(&path), geometry(16)).unwrap(), &pages);
    let whole = std::fs::read(&path).unwrap();
    for at in (4096..4096 + 16 * 64_usize).step_by(5) {
        let mut file = File::options().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(&[whole[at] ^ 0x81]).unwrap();
        let arena = PageArena::open(Some(&path), geometry(16)).unwrap();
        get(&arena, &pages);
        put(&arena, &pages);
        assert_eq!(get(&arena, &pages), vec![true; 16], "byte {at}");
        drop(arena);
        std::fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn a_file_that_is_no_arena_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    for content in [b"short".to_vec(), b"text ".repeat(2000)] {
        std::fs::write(&path, &content).unwrap();
        for result in [PageArena::open(Some(&path), geometry(16)), PageArena::attach(&path)] {
            assert!(matches!(result, Err(Error::Format { .. })));
        }
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}

#[test]
fn pinned_pages_stay_and_too_many_are_told() {
    let arena = PageArena::open(None, geometry(40)).unwrap();
    let pages: Vec<_> = (0..400).map(page).collect();
    let pinned = put(&arena, &pages[..10]);
    assert_eq!(arena.pin(&pinned).unwrap(), vec![true; 10]);
    put(&arena, &pages[10..]);
    assert_eq!(get(&arena, &pages[..10]), vec![true; 10]);
    let counts = arena.counts().unwrap();
    assert_eq!((counts.pages, counts.pinned), (40, 10));
    let rest: Vec<_> = pages.iter().map(|page| name(page)).filter(|name| arena.has_many(&[*name]).unwrap()[0]).collect();
    arena.pin(&rest).unwrap();
    let full = arena.put_many(&[b"one more"], None, &Monitor::new()).unwrap_err();
    assert!(matches!(full.root(), Error::Store(_)), "{full}");
    assert_eq!(arena.unpin(&rest[..1]).unwrap(), [true]);
    assert_eq!(arena.remove(&rest[1..2]).unwrap(), [true]);
    put(&arena, &[b"one more".to_vec()]);
    assert_eq!(get(&arena, &[b"one more".to_vec()]), [true]);
}

#[test]
fn names_are_checked_and_spare_the_copy() {
    let arena = PageArena::open(None, geometry(8)).unwrap();
    let (a, b) = (page(1), page(2));
    let wrong = arena.put_many(&[&a, &b], Some(&[name(&a), name(&page(3))]), &Monitor::new()).unwrap_err();
    assert!(matches!(wrong, Error::At { index: 1, .. }), "{wrong}");
    assert_eq!(arena.put_many(&[&b], Some(&[name(&b)]), &Monitor::new()).unwrap(), [name(&b)]);
    assert_eq!(get(&arena, &[a, b]), [true, true]);
    let long = arena.put_many(&[b"", &[0; PAGE + 1]], None, &Monitor::new()).unwrap_err();
    assert!(matches!(&long, Error::At { index: 1, source } if source.code() == "limit"), "{long}");
}

#[test]
fn threads_share_an_arena_that_is_too_small() {
    let arena = PageArena::open(None, geometry(5)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let arena = &arena;
            scope.spawn(move || {
                for round in 0..20 {
                    let pages: Vec<_> = (0..24).map(|n| page((thread * 7 + round * 5 + n) % 60)).collect();
                    put(arena, &pages);
                    get(arena, &pages);
                }
            });
        }
    });
    // No slot was lost.
    put(&arena, &(100..140).map(page).collect::<Vec<_>>());
    let counts = arena.counts().unwrap();
    assert_eq!((counts.pages, counts.corrupt), (5, 0));
    assert!(matches!(arena.lock().mode, Mode::Writer { writing: 0, .. }));
}

#[test]
fn no_space_is_an_error_at_once() {
    let path = Path::new("/dev/shm").join(format!("pfimg-test-{}", crate::io::unique()));
    let huge = Geometry { algorithm: Algorithm::Sha256, page_bytes: 1 << 30, slots: 1 << 20 };
    if path.parent().is_some_and(Path::is_dir) {
        assert!(matches!(PageArena::open(Some(&path), huge), Err(Error::Io { .. })));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        std::fs::remove_file(&path).unwrap();
    }
    let none = Geometry { slots: 0, ..huge };
    assert!(matches!(PageArena::open(None, none), Err(Error::Format { .. })));
    let overflow = Geometry { page_bytes: usize::MAX - 70, ..huge };
    assert!(matches!(PageArena::open(None, overflow), Err(Error::Format { .. })));
}
