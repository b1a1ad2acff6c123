//! Typed JSON with errors that name the field and the byte.

use serde::Deserialize;

use crate::error::{Error, Result};

/// Reads a whole document.
///
/// It is first read as fast as possible; only one that fails is read a second time, with its path tracked, to say where.
///
/// # Errors
/// [`Error::Format`] naming `what`, the field and the byte.
pub(crate) fn parse<'de, T: Deserialize<'de>>(what: &str, bytes: &'de [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
            // The document is sound, but something follows it.
            Ok(_) => locate(what, None, bytes, &error),
            Err(error) => {
                let path = error.path().to_string();
                locate(what, (path != ".").then_some(path), bytes, error.inner())
            }
        }
    })
}

fn locate(what: &str, field: Option<String>, bytes: &[u8], error: &serde_json::Error) -> Error {
    // serde_json counts lines and columns from 1, and ends its text with them.
    let before: usize = bytes.split_inclusive(|&byte| byte == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    let offset = before + error.column().saturating_sub(1);
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason).to_owned();
    Error::Format { what: what.to_owned(), field, offset: Some(offset as u64), reason }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(fails(r#"{"list":[1,"x"]}"#), (Some("list[1]".into()), Some(13), "invalid type: string \"x\", expected u8".into()));
        assert_eq!(fails("{\n\"list\":[300]}"), (Some("list[0]".into()), Some(12), "invalid value: integer `300`, expected u8".into()));
        assert_eq!(fails(r#"{"list":[]}x"#), (None, Some(11), "trailing characters".into()));
        assert_eq!(fails("{}").2, "missing field `list`");
        assert_eq!(fails("").1, Some(0));
        assert!(fails(r#"{"list":[],"list":[]}"#).2.contains("duplicate field"));
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_crash() {
        fails(&(r#"{"other":"#.to_owned() + &"[".repeat(1_000_000)));
        fails(&"[".repeat(1_000_000));
    }
}
