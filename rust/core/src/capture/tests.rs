use std::ffi::OsStr;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::sync::Mutex;
use std::time::SystemTime;

use super::*;
use crate::digest::{Algorithm, hash};
use crate::io::tree::make_fifo;
use crate::store::MemoryStore;

fn store() -> MemoryStore {
    MemoryStore::new(Algorithm::Sha256)
}

fn capture(root: &Path) -> Result<Captured> {
    put_tree(&store(), root, &CaptureOptions::default(), &Monitor::new())
}

fn paths(tree: &FsTree) -> Vec<&str> {
    tree.entries.iter().map(|entry| &*entry.path).collect()
}

/// Writes a file that was last changed long ago, so that every change from now on shows in its time.
fn old_file(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
}

#[test]
fn entries_say_what_is_there() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    for dir in ["a", "a-b", "empty ä"] {
        DirBuilder::new().mode(0o755).create(at(dir)).unwrap();
    }
    for (name, mode) in [("a/b.txt", 0o644), ("a-b/x y", 0o755), ("a.b", 0o4711), ("ab", 0o600)] {
        fs::write(at(name), name).unwrap();
        fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    }
    symlink("../nowhere", at("a/link")).unwrap();

    let (store, monitor) = (store(), Monitor::new());
    let captured = put_tree(&store, root.path(), &CaptureOptions::default(), &monitor).unwrap();
    let file = |path: &str, mode| {
        let blob = hash(Algorithm::Sha256, path.as_bytes());
        Entry { path: path.into(), mode, size: path.len() as u64, kind: Kind::File { blob } }
    };
    let dir = |path: &str| Entry { path: path.into(), mode: 0o755, size: 0, kind: Kind::Dir };
    let target = String::from("../nowhere");
    let mode = (fs::symlink_metadata(at("a/link")).unwrap().mode() & 0o7777) as u16;
    let link = Entry { path: "a/link".into(), mode, size: 10, kind: Kind::Symlink { blob: hash(Algorithm::Sha256, target.as_bytes()), target } };
    let want = [dir("a"), file("a/b.txt", 0o644), link, dir("a-b"), file("a-b/x y", 0o755), file("a.b", 0o4711), file("ab", 0o600), dir("empty ä")];
    assert_eq!(captured.tree.entries, want);
    assert_eq!(store.get(&captured.digest).unwrap(), captured.tree.to_json());
    for blob in want.iter().filter_map(Entry::blob) {
        assert!(store.has(blob).unwrap());
    }
    assert_eq!(monitor.counts(), (5, 7 + 7 + 3 + 2 + 10, 5));
    assert!(captured.warnings.is_empty());
}

#[test]
fn the_root_may_be_a_link_to_a_directory_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/x"), "").unwrap();
    symlink("dir", at("link")).unwrap();
    assert_eq!(capture(&at("link")).unwrap().digest, capture(&at("dir")).unwrap().digest);
    for (bad, kind) in [("dir/x", io::ErrorKind::NotADirectory), ("absent", io::ErrorKind::NotFound)] {
        let error = capture(&at(bad)).unwrap_err();
        assert!(matches!(&error, Error::Io { path, source, .. } if *path == at(bad) && source.kind() == kind), "{error}");
    }
}

#[test]
fn ignores_see_the_path_below_the_root_only() {
    let base = tempfile::tempdir().unwrap();
    let root = base.path().join("target");
    fs::create_dir_all(root.join(".git/objects/aa")).unwrap();
    fs::create_dir_all(root.join("lib/__pycache__")).unwrap();
    for file in [".git/HEAD", ".git/objects/aa/x", "lib/__pycache__/m.pyc", "lib/m.py", "lib/m.log", "lib/keep.log"] {
        fs::write(root.join(file), "").unwrap();
    }
    let options = CaptureOptions { ignore: vec!["*.log".into(), "!keep.log".into()], default_ignores: true };
    let captured = put_tree(&store(), &root, &options, &Monitor::new()).unwrap();
    assert_eq!(paths(&captured.tree), [".git", ".git/HEAD", "lib", "lib/keep.log", "lib/m.py"]);
    let all = CaptureOptions { ignore: vec![], default_ignores: false };
    assert_eq!(put_tree(&store(), &root, &all, &Monitor::new()).unwrap().tree.entries.len(), 11);
}

#[test]
fn names_that_others_cannot_read_are_refused_unless_left_out() {
    for (name, told) in [(&b"n\xff"[..], r"n\xFF"), (b"a\\b", r"a\\b"), (b"link", r"t\xFF")] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(OsStr::from_bytes(name));
        if name == b"link" { symlink(OsStr::from_bytes(b"t\xff"), path) } else { fs::write(path, "") }.unwrap();
        let error = capture(root.path()).unwrap_err();
        assert!(error.code() == "format" && error.to_string().contains(told), "{error}");
        let options = CaptureOptions { ignore: vec!["[nal]*".into()], default_ignores: true };
        assert!(put_tree(&store(), root.path(), &options, &Monitor::new()).unwrap().tree.entries.is_empty());
    }
}

#[test]
fn what_a_tree_cannot_hold_is_skipped_with_a_warning() {
    let root = tempfile::tempdir().unwrap();
    make_fifo(&root.path().join("fifo")).unwrap();
    let _listener = UnixListener::bind(root.path().join("socket")).unwrap();
    fs::write(root.path().join("file"), "").unwrap();
    let captured = capture(root.path()).unwrap();
    assert_eq!(paths(&captured.tree), ["file"]);
    assert_eq!(captured.warnings, [r#"skipped "fifo": a FIFO"#, r#"skipped "socket": a socket"#]);
}

#[test]
fn unreadable_entries_are_named() {
    for name in ["file", "dir"] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(name);
        if name == "dir" { fs::create_dir(&path) } else { fs::write(&path, "") }.unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        if File::open(&path).is_ok() {
            return; // A superuser reads everything.
        }
        let error = capture(root.path()).unwrap_err();
        // Else nobody but a superuser could remove it.
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        assert!(
            matches!(&error, Error::Io { path: named, source, .. } if *named == path && source.kind() == io::ErrorKind::PermissionDenied),
            "{error}"
        );
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    let changes: [(&str, &dyn Fn()); 4] = [
        ("same size", &|| fs::write(&path, "two").unwrap()),
        ("longer", &|| fs::write(&path, "longer").unwrap()),
        ("mode", &|| fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap()),
        ("removed", &|| fs::remove_file(&path).unwrap()),
    ];
    for (what, change) in changes {
        old_file(&path, b"one");
        let here = Root { dir: crate::io::open_dir(root.path()).unwrap(), path: root.path() };
        assert!(here.read_steady("file", |_, _| Ok(())).is_ok());
        let change_it = |_: &File, _| {
            change();
            Ok(())
        };
        let error = here.read_steady("file", change_it).unwrap_err();
        assert!(matches!(&error, Error::Changed { path: named, .. } if *named == path), "{what}: {error}");
    }
}

#[test]
fn a_file_that_is_another_thing_by_now_is_named() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir(at("dir")).unwrap();
    symlink("dir", at("link")).unwrap();
    make_fifo(&at("fifo")).unwrap();
    for now in ["absent", "dir", "link", "fifo"] {
        let error = read_one(root.path(), now).unwrap_err();
        assert!(matches!(&error, Error::Changed { path, .. } if *path == at(now)), "{now}: {error}");
    }
    // Longer than it says, as many files of /proc are.
    #[cfg(target_os = "linux")]
    assert_eq!(read_one(Path::new("/proc/self"), "status").unwrap_err().code(), "changed");
}

/// Captures one file, as if it had been listed.
fn read_one(root: &Path, name: &str) -> Result<Vec<Entry>> {
    let (store, monitor) = (store(), Monitor::new());
    let root = Root { dir: crate::io::open_dir(root).unwrap(), path: root };
    let put = |blobs: &[&[u8]]| store.put_many(blobs);
    let mut task = Task { store: &store, put: &put, root: &root, monitor: &monitor, content: Vec::new(), read: Vec::new(), entries: Vec::new() };
    task.run(vec![Found { path: name.into(), kind: FoundKind::File }])
}

/// Calls a function before it reads each stream.
struct OnStream<F> {
    inner: MemoryStore,
    before: F,
}

impl<F: Fn() + Send + Sync> BlobStore for OnStream<F> {
    fn algorithm(&self) -> Algorithm {
        self.inner.algorithm()
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest> {
        self.inner.put(bytes)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.inner.get(digest)
    }

    fn has(&self, digest: &Digest) -> Result<bool> {
        self.inner.has(digest)
    }

    fn physical_bytes(&self) -> Result<u64> {
        self.inner.physical_bytes()
    }

    fn put_stream(&self, reader: &mut dyn Read, len: u64) -> Result<Digest> {
        (self.before)();
        self.inner.put_stream(reader, len)
    }
}

#[test]
fn large_files_are_streamed_and_watched() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("large");
    let content = vec![7; usize::try_from(LARGE_BYTES).unwrap() + 1];
    let resize = |len| File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
    let put = |before: &(dyn Fn() + Send + Sync), monitor: &Monitor| {
        old_file(&path, &content);
        let store = OnStream { inner: store(), before };
        put_tree(&store, root.path(), &CaptureOptions::default(), monitor)
    };

    let monitor = Monitor::new();
    let captured = put(&|| (), &monitor).unwrap();
    assert_eq!(captured.tree.entries[0].blob(), Some(&hash(Algorithm::Sha256, &content)));
    assert_eq!(monitor.counts(), (1, LARGE_BYTES + 1, 1));

    let same_size = || {
        resize(0);
        resize(LARGE_BYTES + 1);
    };
    for change in [&same_size as &(dyn Fn() + Send + Sync), &|| resize(5), &|| resize(LARGE_BYTES + 2)] {
        let error = put(change, &Monitor::new()).unwrap_err();
        assert!(matches!(&error, Error::Changed { path: named, .. } if *named == path), "{error}");
    }

    let monitor = Monitor::new();
    assert!(matches!(put(&|| monitor.cancel(), &monitor), Err(Error::Cancelled)));
}

#[test]
fn a_cancelled_capture_stops() {
    let root = tempfile::tempdir().unwrap();
    let monitor = Monitor::new();
    monitor.cancel();
    let store = store();
    assert!(matches!(put_tree(&store, root.path(), &CaptureOptions::default(), &monitor), Err(Error::Cancelled)));
    assert_eq!(store.physical_bytes().unwrap(), 0);
}

#[test]
fn a_thread_holds_little_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let large = usize::try_from(LARGE_BYTES).unwrap();
    for n in 0..6 {
        fs::write(root.path().join(n.to_string()), vec![n; large / 2 + usize::from(n)]).unwrap();
    }
    let store = OnPut { inner: store(), most: Mutex::new(0) };
    let captured = put_tree(&store, root.path(), &CaptureOptions::default(), &Monitor::new()).unwrap();
    for (n, entry) in (0..).zip(&captured.tree.entries) {
        assert_eq!(entry.blob(), Some(&hash(Algorithm::Sha256, &vec![n; large / 2 + usize::from(n)])));
    }
    let most = *store.most.lock().unwrap();
    assert!((large / 2..TASK_BYTES + large).contains(&most), "{most}");
}

/// Notes the most bytes that it got in one call.
struct OnPut {
    inner: MemoryStore,
    most: Mutex<usize>,
}

impl BlobStore for OnPut {
    fn algorithm(&self) -> Algorithm {
        self.inner.algorithm()
    }

    fn put(&self, bytes: &[u8]) -> Result<Digest> {
        self.inner.put(bytes)
    }

    fn put_many(&self, blobs: &[&[u8]]) -> Result<Vec<Digest>> {
        let mut most = self.most.lock().unwrap();
        *most = (*most).max(blobs.iter().map(|blob| blob.len()).sum());
        self.inner.put_many(blobs)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.inner.get(digest)
    }

    fn has(&self, digest: &Digest) -> Result<bool> {
        self.inner.has(digest)
    }

    fn physical_bytes(&self) -> Result<u64> {
        self.inner.physical_bytes()
    }
}
