use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, symlink};

use proptest::prelude::*;

use super::*;
use crate::capture::{CaptureOptions, put_tree};
use crate::digest::{Algorithm, hash};
use crate::store::MemoryStore;

const ALL: CaptureOptions = CaptureOptions { ignore: Vec::new(), default_ignores: false };

/// A store that calls a function before each read.
struct OnGet<F> {
    inner: MemoryStore,
    before: F,
}

impl<F: Fn(&Digest) + Send + Sync> BlobStore for OnGet<F> {
    fn algorithm(&self) -> Algorithm {
        self.inner.algorithm()
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest> {
        self.inner.put(bytes)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        (self.before)(digest);
        self.inner.get(digest)
    }

    fn has(&self, digest: &Digest) -> Result<bool> {
        self.inner.has(digest)
    }

    fn physical_bytes(&self) -> Result<u64> {
        self.inner.physical_bytes()
    }
}

/// A store with a tree of these entries in it, unchecked.
fn stored(entries: Vec<Entry>) -> (MemoryStore, Digest) {
    let store = MemoryStore::new(Algorithm::Sha256);
    for content in ["x", "content"] {
        store.put(content.as_bytes()).unwrap();
    }
    let digest = store.put(&FsTree { entries }.to_json()).unwrap();
    (store, digest)
}

fn file(path: &str) -> Entry {
    Entry { path: path.into(), mode: 0o644, size: 7, kind: Kind::File { blob: hash(Algorithm::Sha256, b"content") } }
}

fn dir(path: &str, mode: u16) -> Entry {
    Entry { path: path.into(), mode, size: 0, kind: Kind::Dir }
}

fn link(path: &str, target: &str) -> Entry {
    let blob = hash(Algorithm::Sha256, target.as_bytes());
    Entry { path: path.into(), mode: 0o777, size: target.len() as u64, kind: Kind::Symlink { blob, target: target.into() } }
}

fn restore(store: &dyn BlobStore, digest: &Digest, target: &Path) -> Result<Vec<String>> {
    restore_tree(store, digest, target, &RestoreOptions::default(), &Monitor::new())
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn everything_comes_back() {
    let mut entries = vec![dir("ro", 0o555), file("ro/in/file"), link("l", "ro/in"), link("ro/up", "../l"), dir("tmp", 0o1777), dir("g", 0o2770)];
    entries.push(Entry { mode: 0o4711, ..file("x y ä") });
    let (store, digest) = stored(entries);
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("new/out");
    let monitor = Monitor::new();
    assert!(restore_tree(&store, &digest, &target, &RestoreOptions::default(), &monitor).unwrap().is_empty());
    let at = |name: &str| target.join(name);
    assert_eq!(fs::read(at("l/file")).unwrap(), b"content");
    assert_eq!(fs::read(at("ro/up/file")).unwrap(), b"content");
    assert_eq!(fs::read_link(at("ro/up")).unwrap(), Path::new("../l"));
    let modes = [("ro", 0o555), ("ro/in", 0o755), ("ro/in/file", 0o644), ("tmp", 0o1777), ("g", 0o2770), ("x y ä", 0o4711)];
    for (path, want) in modes {
        assert_eq!(mode(&at(path)), want, "{path}");
    }
    fs::create_dir(root.path().join("plain")).unwrap();
    assert_eq!(mode(&target), mode(&root.path().join("plain")), "the target has what the umask grants");
    assert_eq!(names(&root.path().join("new")), ["out"]);
    assert_eq!(monitor.counts(), (4, 7 + 7 + 5 + 4, 4));
    set_mode(&at("ro"), 0o755).unwrap();
}

#[test]
fn hostile_paths_are_refused_before_anything_is_written() {
    let absolute = tempfile::tempdir().unwrap().path().join("x").to_str().unwrap().to_owned();
    let hostile: Vec<Vec<Entry>> = vec![
        vec![file(&absolute)],
        vec![file("")],
        vec![file("..")],
        vec![file("a/../../x")],
        vec![file("./a")],
        vec![file("a//b")],
        vec![file("a\0b")],
        vec![dir("..", 0o777)],
        vec![link("../l", "x")],
        vec![file("a"), file("a")],
        vec![dir("a", 0o755), file("a")],
        vec![file("a"), file("a/b")],
        vec![link("a", "."), file("a/b")],
        vec![file("a/b/c"), link("a", "/tmp")],
        vec![link("a", "b"), dir("a/b", 0o755)],
        vec![link("l", "")],
        vec![link("l", "a\0")],
        vec![Entry { size: 3, ..link("l", "xy") }],
        vec![Entry { kind: Kind::Symlink { blob: hash(Algorithm::Sha256, b"x"), target: "y".into() }, size: 1, ..link("l", "") }],
    ];
    for bad in hostile {
        let (store, digest) = stored([vec![file("0 good")], bad.clone()].concat());
        let root = tempfile::tempdir().unwrap();
        let wants_content = |digest: &Digest| assert_ne!(*digest, hash(Algorithm::Sha256, b"content"), "nothing is read yet");
        let store = OnGet { inner: store, before: wants_content };
        for options in [RestoreOptions::default(), RestoreOptions { allow_absolute_symlinks: true }] {
            let error = restore_tree(&store, &digest, &root.path().join("out"), &options, &Monitor::new()).unwrap_err();
            let named = bad.iter().any(|entry| error.to_string().contains(&format!("{:?}", entry.path)));
            assert!(error.code() == "format" && named, "{bad:?}: {error}");
        }
        assert!(names(root.path()).is_empty(), "{bad:?}");
    }
}

#[test]
fn blobs_that_are_no_trees_are_refused() {
    let store = MemoryStore::new(Algorithm::Sha256);
    let root = tempfile::tempdir().unwrap();
    for (bytes, code) in [(Some("{}"), "format"), (Some(r#"{"kind":"fs.tree.v2","entries":[]}"#), "format"), (None, "blob_not_found")] {
        let digest = bytes.map_or(hash(Algorithm::Sha256, b"absent"), |bytes| store.put(bytes.as_bytes()).unwrap());
        assert_eq!(restore(&store, &digest, &root.path().join("out")).unwrap_err().code(), code);
    }
    assert!(names(root.path()).is_empty());
}

#[test]
fn links_that_lead_out_are_skipped_unless_allowed() {
    let entries = vec![dir("d", 0o755), link("abs", "/etc"), link("d/up", ".."), link("out", "../x"), link("sly", "d/up/../x"), link("via", "abs/x")];
    let (store, digest) = stored(FsTree::new(entries).unwrap().entries);
    let root = tempfile::tempdir().unwrap();
    let (careful, trusting) = (root.path().join("careful"), root.path().join("trusting"));
    let warnings = restore(&store, &digest, &careful).unwrap();
    let want = [
        r#"skipped symbolic link "abs" to "/etc": its target is absolute"#,
        r#"skipped symbolic link "out" to "../x": its target lies outside"#,
        r#"skipped symbolic link "sly" to "d/up/../x": its target lies outside"#,
    ];
    assert_eq!(warnings, want);
    let mut found = names(&careful);
    found.sort();
    assert_eq!(found, ["d", "via"]);
    let options = RestoreOptions { allow_absolute_symlinks: true };
    assert!(restore_tree(&store, &digest, &trusting, &options, &Monitor::new()).unwrap().is_empty());
    assert_eq!(fs::read_link(trusting.join("abs")).unwrap(), Path::new("/etc"));
    assert_eq!(put_tree(&store, &trusting, &ALL, &Monitor::new()).unwrap().digest, digest);
}

#[test]
fn an_existing_target_is_left_alone() {
    let (store, digest) = stored(vec![file("a")]);
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("file"), "mine").unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    for taken in ["dir", "dir/", "file", "dangling", "dangling/", "dir/."] {
        let error = restore(&store, &digest, &at(taken)).unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::AlreadyExists), "{taken}: {error}");
    }
    assert_eq!((names(root.path()).len(), names(&at("dir")).len(), fs::read(at("file")).unwrap()), (3, 0, b"mine".to_vec()));
}

#[test]
fn a_target_that_appears_meanwhile_is_left_alone() {
    let (store, digest) = stored(vec![dir("ro", 0o555), dir("ro/ro", 0o555), file("ro/ro/a")]);
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("out");
    let store = OnGet { inner: store, before: |_: &Digest| fs::create_dir_all(&target).unwrap() };
    // The first read is of the tree, after the early check.
    let error = restore(&store, &digest, &target).unwrap_err();
    assert!(matches!(&error, Error::Io { path, source, .. } if *path == target && source.kind() == ErrorKind::AlreadyExists), "{error}");
    assert_eq!((names(root.path()), names(&target).len()), (vec!["out".to_owned()], 0));
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let absent = Kind::File { blob: hash(Algorithm::Sha256, b"absent") };
    let large = LARGE_BYTES + 1;
    let failing = [
        (Entry { kind: absent.clone(), ..file("d/f") }, "blob_not_found"),
        (Entry { kind: absent, size: large, ..file("d/f") }, "blob_not_found"),
        (Entry { size: 6, ..file("d/f") }, "format"),
        (Entry { size: 8, ..file("d/f") }, "format"),
        (Entry { size: u64::MAX, ..file("d/f") }, "format"),
        // As long as a path may be, and longer than the system takes.
        (file(&[vec!["x".repeat(255); 15], vec!["x".repeat(127), "x".repeat(128)]].concat().join("/")), "io"),
    ];
    for (entry, code) in failing {
        let (store, digest) = stored(vec![dir("d", 0o555), file("d/a"), entry.clone()]);
        let root = tempfile::tempdir().unwrap();
        let error = restore(&store, &digest, &root.path().join("a/b/out")).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(code == "blob_not_found" || error.to_string().contains(&entry.path[..3]), "{error}");
        assert!(names(root.path()).is_empty(), "{error}");
    }
}

#[test]
fn large_files_are_streamed_and_measured() {
    let store = MemoryStore::new(Algorithm::Sha256);
    let content: Vec<u8> = (0..LARGE_BYTES + 3).map(|n| (n % 251) as u8).collect();
    let blob = store.put(&content).unwrap();
    let root = tempfile::tempdir().unwrap();
    for (size, ok) in [(LARGE_BYTES + 3, true), (LARGE_BYTES + 2, false), (LARGE_BYTES + 4, false)] {
        let entry = Entry { path: "large".into(), mode: 0o444, size, kind: Kind::File { blob } };
        let digest = store.put(&FsTree { entries: vec![entry] }.to_json()).unwrap();
        let target = root.path().join(size.to_string());
        let restored = restore(&store, &digest, &target);
        if ok {
            restored.unwrap();
            assert!(fs::read(target.join("large")).unwrap() == content);
            assert_eq!(mode(&target.join("large")), 0o444);
        } else {
            let error = restored.unwrap_err();
            assert!(error.code() == "format" && error.to_string().contains("\"large\""), "{error}");
        }
    }
    assert_eq!(names(root.path()).len(), 1);
}

#[test]
fn a_cancelled_restore_leaves_nothing_behind() {
    for size in [7, LARGE_BYTES + 1] {
        let (inner, digest) = stored(vec![dir("d", 0o555), Entry { size, ..file("d/a") }]);
        let root = tempfile::tempdir().unwrap();
        let monitor = Monitor::new();
        let store = OnGet {
            inner,
            before: |wanted: &Digest| {
                if *wanted != digest {
                    monitor.cancel();
                }
            },
        };
        let outcome = restore_tree(&store, &digest, &root.path().join("a/out"), &RestoreOptions::default(), &monitor);
        assert!(matches!(outcome, Err(Error::Cancelled)));
        assert!(names(root.path()).is_empty());
    }
}

#[test]
fn what_the_system_refuses_is_named() {
    let (store, digest) = stored(vec![file("a")]);
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("file"), "").unwrap();
    let target = root.path().join("file/out");
    let error = restore(&store, &digest, &target).unwrap_err();
    assert!(matches!(&error, Error::Io { path, source, .. } if *path == target && source.kind() == ErrorKind::NotADirectory), "{error}");
    symlink("nowhere", root.path().join("dangling")).unwrap();
    let error = restore(&store, &digest, &root.path().join("dangling/out")).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if *path == root.path().join("dangling")), "{error}");
    assert_eq!(names(root.path()).len(), 2);
}

#[derive(Clone, Debug)]
enum Node {
    File(Vec<u8>),
    Link(String),
    Dir(BTreeMap<String, (u16, Node)>),
}

fn node() -> impl Strategy<Value = Node> {
    let content = prop::collection::vec(any::<u8>(), 0..40);
    let target = "(\\./)?[a-c]{1,2}(/[a-cä]{1,2}){0,2}";
    let leaf = prop_oneof![content.prop_map(Node::File), target.prop_map(Node::Link)];
    leaf.prop_recursive(4, 40, 6, |inner| prop::collection::btree_map(name(), (mode_bits(), inner), 0..6).prop_map(Node::Dir))
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[ab][-. b]{0,2}", "[ -.0-\\[\\]-~ä\u{1}\n😀]{1,5}"].prop_filter("no name", |name| name != "." && name != "..")
}

/// Whatever leaves the owner able to read, so that the test can.
fn mode_bits() -> impl Strategy<Value = u16> {
    (0u16..=0o7777).prop_map(|mode| mode | 0o500)
}

fn collect(store: &MemoryStore, prefix: &str, nodes: &BTreeMap<String, (u16, Node)>, entries: &mut Vec<Entry>) {
    for (name, (mode, node)) in nodes {
        let path = format!("{prefix}{name}");
        match node {
            Node::File(content) => {
                let kind = Kind::File { blob: store.put(content).unwrap() };
                entries.push(Entry { path, mode: *mode, size: content.len() as u64, kind });
            }
            Node::Link(target) => {
                store.put(target.as_bytes()).unwrap();
                entries.push(link(&path, target));
            }
            Node::Dir(inner) => {
                collect(store, &format!("{path}/"), inner, entries);
                entries.push(dir(&path, *mode));
            }
        }
    }
}

fn compare(at: &Path, nodes: &BTreeMap<String, (u16, Node)>) {
    assert_eq!(names(at).len(), nodes.len());
    for (name, (want, node)) in nodes {
        let at = at.join(name);
        match node {
            Node::Link(target) => assert_eq!(fs::read_link(&at).unwrap(), Path::new(target)),
            Node::File(content) => assert_eq!((&fs::read(&at).unwrap(), mode(&at)), (content, u32::from(*want))),
            Node::Dir(inner) => {
                assert_eq!(mode(&at), u32::from(*want));
                compare(&at, inner);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_survive_the_round_trip(nodes in prop::collection::btree_map(name(), (mode_bits(), node()), 0..8)) {
        let store = MemoryStore::new(Algorithm::Sha256);
        let mut entries = Vec::new();
        collect(&store, "", &nodes, &mut entries);
        let tree = FsTree::new(entries).unwrap();
        let digest = store.put(&tree.to_json()).unwrap();
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        prop_assert!(restore(&store, &digest, &target).unwrap().is_empty());
        compare(&target, &nodes);
        let again = put_tree(&store, &target, &ALL, &Monitor::new()).unwrap();
        staging::unlock(&target).unwrap();
        prop_assert_eq!(again.tree, tree);
        prop_assert_eq!(again.digest, digest);
    }
}
