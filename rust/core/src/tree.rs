//! Trees: directories as documents (`fs.tree.v1`).
//!
//! A tree lists what a directory holds, each entry with its path, mode and size, and the digest of its content. Reading takes any key order
//! and unknown keys, and checks the form of each entry; it leaves paths as they are, so that an image with a tree that must not be restored
//! can still be listed, moved and deleted. [`FsTree::new`] and [`FsTree::ordered`] check the paths too: whatever is made or restored has
//! passed them.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::{json, limits, path};

/// What the document's `kind` says.
pub const KIND: &str = "fs.tree.v1";

/// What a directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsTree {
    /// In the order of [`path::compare`] when made by [`FsTree::new`], else as they were read.
    pub entries: Vec<Entry>,
}

/// One file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Relative to the tree's root, components separated by `/`.
    pub path: String,
    /// Permission, set-id and sticky bits, at most `0o7777`.
    pub mode: u16,
    /// Length of the content, or of a link's target, in bytes; 0 for a directory.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File {
        /// Its content.
        blob: Digest,
    },
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink {
        /// The target, as a blob.
        blob: Digest,
        /// The target, as it stands in the link.
        target: String,
    },
}

impl Entry {
    /// The blob that holds the content or the link's target.
    #[must_use]
    pub const fn blob(&self) -> Option<&Digest> {
        match &self.kind {
            Kind::File { blob } | Kind::Symlink { blob, .. } => Some(blob),
            Kind::Dir => None,
        }
    }

    /// Whether it is a directory.
    #[must_use]
    pub const fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir)
    }
}

impl FsTree {
    /// A tree of these entries, in whatever order they come.
    ///
    /// # Errors
    /// [`Error::Format`] naming the first entry that is refused, as [`FsTree::ordered`]; also for a mode above `0o7777`.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self> {
        if let Some(entry) = entries.iter().find(|entry| entry.mode > 0o7777) {
            return Err(Error::field(entry_name(&entry.path), "mode", format!("{:o} has bits above 7777", entry.mode)));
        }
        entries.sort_by(|a, b| path::compare(&a.path, &b.path));
        let tree = Self { entries };
        tree.ordered()?;
        Ok(tree)
    }

    /// Reads a tree document.
    ///
    /// # Errors
    /// [`Error::Format`] naming field and byte; [`Error::Limit`] above [`limits::DOCUMENT_BYTES`] or [`limits::DOCUMENT_ENTRIES`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        check_limit("bytes", bytes.len(), "DOCUMENT_BYTES", limits::DOCUMENT_BYTES)?;
        let document: Document = json::parse("tree", bytes)?;
        check_limit("entries", document.entries.len(), "DOCUMENT_ENTRIES", limits::DOCUMENT_ENTRIES)?;
        Ok(Self { entries: document.entries })
    }

    /// The document, byte for byte as the published format writes it.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a tree is plain JSON and memory does not fail")
    }

    /// Whether a blob claims to be a tree: a JSON object whose `kind` says so, well-formed or not behind it.
    #[must_use]
    pub fn is(bytes: &[u8]) -> bool {
        let found = Cell::new(false);
        // The visitor stops at the kind by an error; the answer is in the cell.
        let _ = serde_json::Deserializer::from_slice(bytes).deserialize_map(FindKind(&found));
        found.get()
    }

    /// The entries in the order of [`path::compare`], checked as a set.
    ///
    /// # Errors
    /// [`Error::Format`] naming an entry whose path is refused by [`path::check`], repeats another or runs through a file or link.
    pub fn ordered(&self) -> Result<Vec<&Entry>> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by(|a, b| path::compare(&a.path, &b.path));
        path::check_set(entries.iter().map(|entry| (&*entry.path, entry.is_dir()))).map_err(|(path, why)| Error::format(entry_name(path), why))?;
        Ok(entries)
    }
}

/// How errors call an entry: with its path escaped, since it may hold anything.
pub(crate) fn entry_name(path: &str) -> String {
    format!("tree entry {path:?}")
}

fn check_limit(what: &str, found: usize, name: &'static str, limit: u64) -> Result<()> {
    if found as u64 <= limit { Ok(()) } else { Err(Error::Limit { what: format!("tree of {found} {what}"), name, limit }) }
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "kind")]
    _kind: Tag,
    entries: Vec<Entry>,
}

/// The document's kind, which can only be [`KIND`].
#[derive(Deserialize)]
enum Tag {
    #[serde(rename = "fs.tree.v1")]
    FsTreeV1,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum KindName {
    File,
    Dir,
    Symlink,
}

/// An entry as it stands in the document.
#[derive(Deserialize)]
struct RawEntry {
    path: String,
    #[serde(deserialize_with = "read_mode")]
    mode: u16,
    size: u64,
    kind: KindName,
    blob: Option<Digest>,
    link_target: Option<String>,
}

fn read_mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let text = String::deserialize(deserializer)?;
    let octal = text.len() == 4 && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    let bad = || de::Error::invalid_value(de::Unexpected::Str(&text), &"four octal digits");
    if octal { u16::from_str_radix(&text, 8).map_err(|_| bad()) } else { Err(bad()) }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let RawEntry { path, mode, size, kind, blob, link_target } = json::object(deserializer)?;
        let kind = match (kind, blob, link_target) {
            (KindName::File, Some(blob), None) => Kind::File { blob },
            (KindName::Dir, None, None) => Kind::Dir,
            (KindName::Symlink, Some(blob), Some(target)) => Kind::Symlink { blob, target },
            (KindName::File, ..) => return Err(de::Error::custom("a file has a `blob` and no `link_target`")),
            (KindName::Dir, ..) => return Err(de::Error::custom("a dir has neither `blob` nor `link_target`")),
            (KindName::Symlink, ..) => return Err(de::Error::custom("a symlink has a `blob` and a `link_target`")),
        };
        Ok(Self { path, mode, size, kind })
    }
}

impl Serialize for FsTree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut document = serializer.serialize_struct("FsTree", 2)?;
        document.serialize_field("kind", KIND)?;
        document.serialize_field("entries", &self.entries)?;
        document.end()
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, target) = match &self.kind {
            Kind::File { .. } => (KindName::File, None),
            Kind::Dir => (KindName::Dir, None),
            Kind::Symlink { target, .. } => (KindName::Symlink, Some(target)),
        };
        let mut entry = serializer.serialize_struct("Entry", 6)?;
        entry.serialize_field("path", &self.path)?;
        entry.serialize_field("mode", &format_args!("{:04o}", self.mode))?;
        entry.serialize_field("size", &self.size)?;
        entry.serialize_field("kind", &kind)?;
        if let Some(blob) = self.blob() {
            entry.serialize_field("blob", blob)?;
        }
        if let Some(target) = target {
            entry.serialize_field("link_target", target)?;
        }
        entry.end()
    }
}

/// Reads an object up to its `kind` and notes whether that is ours.
struct FindKind<'a>(&'a Cell<bool>);

impl<'de> Visitor<'de> for FindKind<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a kind")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(is_kind) = map.next_key_seed(KeyIsKind)? {
            if is_kind {
                self.0.set(map.next_value::<Tag>().is_ok());
                return Err(de::Error::custom("found"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

struct KeyIsKind;

impl<'de> DeserializeSeed<'de> for KeyIsKind {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        Ok(String::deserialize(deserializer)? == "kind")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, hash};

    fn file(path: &str) -> Entry {
        Entry { path: path.into(), mode: 0o644, size: 12, kind: Kind::File { blob: hash(Algorithm::Sha256, b"x") } }
    }

    fn dir(path: &str) -> Entry {
        Entry { path: path.into(), mode: 0o755, size: 0, kind: Kind::Dir }
    }

    #[test]
    fn prints_the_published_form_and_reads_it_again() {
        let x = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
        let blob = x.parse().unwrap();
        let link = Entry { path: "l".into(), mode: 0o777, size: 5, kind: Kind::Symlink { blob, target: "a/b.t".into() } };
        let tree = FsTree::new(vec![link, file("a/b.txt"), dir("a")]).unwrap();
        let json = format!(
            "{}{}{}{}",
            r#"{"kind":"fs.tree.v1","entries":[{"path":"a","mode":"0755","size":0,"kind":"dir"},"#,
            format_args!(r#"{{"path":"a/b.txt","mode":"0644","size":12,"kind":"file","blob":"{x}"}},"#),
            format_args!(r#"{{"path":"l","mode":"0777","size":5,"kind":"symlink","blob":"{x}","link_target":"a/b.t"}}"#),
            "]}"
        );
        assert_eq!(String::from_utf8(tree.to_json()).unwrap(), json);
        assert_eq!(FsTree::parse(json.as_bytes()).unwrap(), tree);
    }

    #[test]
    fn reads_any_key_order_unknown_keys_and_nulls() {
        let json = br#"{"x":{"kind":"y"},"entries":[{"kind":"dir","z":[1],"blob":null,"size":0,"mode":"0700","path":"d"}],"kind":"fs.tree.v1"}"#;
        assert_eq!(FsTree::parse(json).unwrap().entries, [Entry { mode: 0o700, ..dir("d") }]);
        assert!(FsTree::is(json));
    }

    #[test]
    fn knows_its_kind_even_where_the_rest_is_broken() {
        for claims in [&br#"{"kind":"fs.tree.v1","#[..], br#"{"a":[{"kind":1}],"kind":"fs.tree.v1" garbage"#] {
            assert!(FsTree::is(claims));
            assert_eq!(FsTree::parse(claims).unwrap_err().code(), "format");
        }
        let others = [&b""[..], b"\x00\xff", b"null", b"[]", b"{}", br#"{"kind":"fs.tree.v2"}"#, br#"{"kind":1}"#, br#"{"x":{"kind":"fs.tree.v1"}}"#];
        for other in others {
            assert!(!FsTree::is(other), "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn a_malformed_entry_is_named() {
        let parse = |entry: &str| FsTree::parse(format!(r#"{{"kind":"fs.tree.v1","entries":[{entry}]}}"#).as_bytes());
        let good = r#"{"path":"d","mode":"0755","size":0,"kind":"dir"}"#;
        assert!(parse(good).is_ok());
        let bad = [
            (good.replace("0755", "755"), "entries[0].mode"),
            (good.replace("0755", "0758"), "entries[0].mode"),
            (good.replace("0755", "+755"), "entries[0].mode"),
            (good.replace(":0,", ":-1,"), "entries[0].size"),
            (good.replace(":0,", ":1.0,"), "entries[0].size"),
            (good.replace("dir", "fifo"), "entries[0].kind"),
            (good.replace("dir", "file"), "entries[0]"),
            (good.replace("dir", "symlink"), "entries[0]"),
            (good.replace("\"d\"", "\"d\",\"blob\":\"sha256:00\""), "entries[0].blob"),
            (good.replace("\"d\"", "\"d\",\"link_target\":\"x\""), "entries[0]"),
            (good.replace("\"d\"", "\"d\",\"path\":\"e\""), "entries[0]"),
            (r#"["d","0755",0,"dir",null,null]"#.into(), "entries[0]"),
        ];
        for (entry, place) in bad {
            let Error::Format { field: Some(field), offset: Some(_), .. } = parse(&entry).unwrap_err() else { panic!("{entry}: no place") };
            assert!(field.starts_with(place), "{entry}: {field}");
        }
    }

    #[test]
    fn new_checks_paths_and_modes_where_parse_does_not() {
        for bad in [vec![file("a"), file("a/b")], vec![file("a"), dir("a")], vec![file("../a")], vec![Entry { mode: 0o10000, ..file("a") }]] {
            assert_eq!(FsTree::new(bad.clone()).unwrap_err().code(), "format", "{bad:?}");
        }
        let hostile = FsTree { entries: vec![file("a/../../b"), file("a/../../b")] };
        let read = FsTree::parse(&hostile.to_json()).unwrap();
        assert_eq!(read, hostile);
        assert!(read.ordered().unwrap_err().to_string().contains("a/../../b"));
    }
}
