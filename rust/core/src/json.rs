//! Typed JSON with errors that name the field and the byte.
//!
//! A document is read as fast as possible; only one that fails is read again, to say where. The byte of a field is where its value starts;
//! without a field, it is where the reader stopped. Documents and what they list are objects: the arrays that serde takes in place of a
//! struct's object are refused. Nesting is limited by `serde_json`, so that hostile depth is an error too.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};

/// Most characters of a document that an error repeats.
const QUOTED_CHARS: usize = 200;

/// Reads a whole document.
///
/// # Errors
/// [`Error::Format`] naming `what`, the field and the byte.
pub(crate) fn parse<'de, T: Deserialize<'de>>(what: &str, bytes: &'de [u8]) -> Result<T> {
    match serde_json::from_slice(bytes) {
        Ok(Object(document)) => Ok(document),
        Err(error) => {
            let mut deserializer = serde_json::Deserializer::from_slice(bytes);
            Err(match serde_path_to_error::deserialize::<_, Object<T>>(&mut deserializer) {
                // The document is sound, but something follows it.
                Ok(_) => locate(what, None, bytes, &error),
                Err(error) => {
                    let path = error.path().to_string();
                    locate(what, (path != ".").then_some(path), bytes, error.inner())
                }
            })
        }
    }
}

fn locate(what: &str, field: Option<String>, bytes: &[u8], error: &serde_json::Error) -> Error {
    let value = field.as_deref().filter(|_| error.is_data()).and_then(|field| find(bytes, field));
    let offset = value.unwrap_or_else(|| consumed(bytes, error).saturating_sub(1));
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    Error::Format { what: what.to_owned(), field: field.map(|field| shortened(&field)), offset: Some(offset as u64), reason: shortened(reason) }
}

/// How many bytes were read when the error was found; `serde_json` counts lines from 1 and bytes within the line.
fn consumed(bytes: &[u8], error: &serde_json::Error) -> usize {
    let before: usize = bytes.split_inclusive(|&byte| byte == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    before + error.column()
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The same error with the byte of its field, for what is found wrong after the reading.
pub(crate) fn placed(error: Error, bytes: &[u8]) -> Error {
    match error {
        Error::Format { what, field: Some(field), offset: None, reason } => {
            let offset = find(bytes, &field).map(|at| at as u64);
            Error::Format { what, field: Some(field), offset, reason }
        }
        other => other,
    }
}

/// Whether a blob claims to be something: a JSON object whose first `key` says so, well-formed or not behind it.
pub(crate) fn says(bytes: &[u8], key: &str, value: &str) -> bool {
    let text = |at| String::deserialize(&mut serde_json::Deserializer::from_slice(&bytes[at..]));
    find(bytes, key).is_some_and(|at| text(at).is_ok_and(|text| text == value))
}

/// Where the value of a path such as `pages[3].k` starts, in a document that may be broken anywhere behind that.
pub(crate) fn find(bytes: &[u8], path: &str) -> Option<usize> {
    let found = Cell::new(false);
    // The search stops at the value by an error, which knows how far it has come.
    let error = Seek { path, found: &found }.deserialize(&mut serde_json::Deserializer::from_slice(bytes)).err()?;
    let after = consumed(bytes, &error);
    found.get().then(|| after + bytes[after..].iter().take_while(|byte| byte.is_ascii_whitespace()).count())
}

struct Seek<'a> {
    path: &'a str,
    found: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.path.is_empty() {
            self.found.set(true);
            return Err(D::Error::custom("found"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "something with {}", self.path)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let path = self.path.strip_prefix('.').unwrap_or(self.path);
        let (name, rest) = path.split_at(path.find(['.', '[']).unwrap_or(path.len()));
        while let Some(key) = map.next_key::<String>()? {
            if key == name {
                return map.next_value_seed(Seek { path: rest, ..self });
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let place = self.path.strip_prefix('[').and_then(|path| path.split_once(']'));
        let Some((Ok(index), rest)) = place.map(|(index, rest)| (index.parse::<usize>(), rest)) else {
            return Err(A::Error::custom("no such path"));
        };
        for _ in 0..index {
            items.next_element::<IgnoredAny>()?;
        }
        items.next_element_seed(Seek { path: rest, ..self }).map(drop)
    }
}

/// A struct that is read from an object only.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Map(PhantomData))
    }
}

/// [`Object`] for `deserialize_with`.
pub(crate) fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

/// A list of such structs.
pub(crate) struct Objects<T>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Objects<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Collected in place: the wrapper is gone when compiled.
        Vec::deserialize(deserializer).map(|items: Vec<Object<T>>| Self(items.into_iter().map(|Object(item)| item).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Document {
        #[expect(dead_code, reason = "only its form matters")]
        list: Vec<u8>,
    }

    fn fails(text: &str) -> (Option<String>, Option<u64>, String) {
        match parse::<Document>("document", text.as_bytes()).unwrap_err() {
            Error::Format { what, field, offset, reason } => {
                assert_eq!(what, "document");
                (field, offset, reason)
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn errors_name_field_and_byte() {
        assert_eq!(fails(r#"{"list":[1,"x"]}"#), (Some("list[1]".into()), Some(11), "invalid type: string \"x\", expected u8".into()));
        assert_eq!(fails("{\n\"list\":[ 300]}"), (Some("list[0]".into()), Some(11), "invalid value: integer `300`, expected u8".into()));
        assert_eq!(fails(r#"{"list":[]}x"#), (None, Some(11), "trailing characters".into()));
        assert_eq!(fails("{}").2, "missing field `list`");
        assert_eq!(fails("").1, Some(0));
        assert!(fails(r#"{"list":[],"list":[]}"#).2.contains("duplicate field"));
        assert!(fails("[[1]]").2.contains("expected an object"));
    }

    #[test]
    fn errors_stay_short_whatever_the_document_says() {
        let (_, offset, reason) = fails(&format!(r#"{{"list":"{}"}}"#, "ü".repeat(1_000_000)));
        assert!(offset == Some(8) && reason.len() < 1000, "{reason}");
        let (field, ..) = fails(&format!(r#"{{"{}":[x"#, "k".repeat(1_000_000)));
        assert!(field.unwrap_or_default().len() < 1000);
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_crash() {
        fails(&(r#"{"other":"#.to_owned() + &"[".repeat(1_000_000)));
        fails(&"[".repeat(1_000_000));
        assert_eq!(find(&b"[".repeat(1_000_000), &"[0]".repeat(1_000_000)), None);
    }

    #[test]
    fn values_are_found_up_to_where_a_document_breaks() {
        let text = br#" {"a": {"b":1}, "l":[ 0, {"k" : "v"} ], "\u006cast":2, "broken": tru"#;
        let at = |path| find(text, path).map(|at| text[at]);
        assert_eq!(["a", "a.b", "l", "l[0]", "l[1]", "l[1].k", "last"].map(at), [b'{', b'1', b'[', b'0', b'{', b'"', b'2'].map(Some));
        assert_eq!(["b", "a.c", "a[0]", "l.k", "l[2]", "l[x]", "later"].map(at), [None; 7]);
        assert!(says(text, "last", "2").eq(&false) && says(br#"{"kind":"x","#, "kind", "x") && !says(br#"{"kind":"x"#, "kind", "x"));
        assert_eq!(find(b"{\"a\":", "a"), Some(5));
    }

    proptest! {
        #[test]
        fn search_never_panics(bytes: Vec<u8>, path: String) {
            let _ = (find(&bytes, &path), says(&bytes, &path, "x"));
        }

        #[test]
        fn every_item_of_a_list_is_found(items in proptest::collection::vec(any::<String>(), 1..20), chosen: proptest::sample::Index, pretty: bool) {
            let document = serde_json::json!({ "list": items, "after": null });
            let bytes = if pretty { serde_json::to_vec_pretty(&document) } else { serde_json::to_vec(&document) }.unwrap();
            let chosen = chosen.index(items.len());
            let at = find(&bytes, &format!("list[{chosen}]")).unwrap();
            let text = String::deserialize(&mut serde_json::Deserializer::from_slice(&bytes[at..])).unwrap();
            prop_assert_eq!(&text, &items[chosen]);
        }
    }
}
