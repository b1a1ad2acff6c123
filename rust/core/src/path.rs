//! Safe relative paths: the names of a tree's entries.
//!
//! A path is relative, separated by `/`, and ordered component by component, so that a directory stands directly before all that it holds
//! (`a`, `a/b`, `a-b`). That order makes the check of a whole set one comparison of neighbours. Nothing here asks the file system.

use std::cmp::Ordering;

use crate::limits;

/// Whether a path may name an entry; the error says why not.
pub fn check(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("the path is empty");
    }
    if path.len() > limits::PATH_BYTES {
        return Err("the path is longer than PATH_BYTES (4,096)");
    }
    if path.starts_with('/') {
        return Err("the path is absolute");
    }
    if path.contains('\0') {
        return Err("the path holds a NUL");
    }
    for component in path.split('/') {
        match component {
            "" => return Err("the path has an empty component"),
            "." | ".." => return Err("the path has a component `.` or `..`"),
            _ if component.len() > limits::PATH_COMPONENT_BYTES => return Err("a component is longer than PATH_COMPONENT_BYTES (255)"),
            _ => {}
        }
    }
    Ok(())
}

/// Orders paths component by component, each by its bytes.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    match a.iter().zip(b).position(|(a, b)| a != b) {
        // A component that ends sorts before one that goes on, whatever follows: `/` ranks below every other byte.
        Some(at) => (a[at] != b'/').cmp(&(b[at] != b'/')).then(a[at].cmp(&b[at])),
        None => a.len().cmp(&b.len()),
    }
}

/// Whether `path` lies below the directory `parent`.
#[must_use]
pub fn is_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/'))
}

/// Checks a whole set of `(path, is it a directory)` that stands in the order of [`compare`]: each path alone, none repeated, and none below
/// an entry that is no directory. The error is the offending path and why it is refused.
pub fn check_set<'a>(items: impl IntoIterator<Item = (&'a str, bool)>) -> Result<(), (&'a str, &'static str)> {
    let mut previous: Option<(&str, bool)> = None;
    for (path, is_dir) in items {
        check(path).map_err(|why| (path, why))?;
        match previous {
            Some((before, _)) if before == path => return Err((path, "the path is there twice")),
            // What lies below an entry follows it at once, so that neighbours suffice.
            Some((before, false)) if is_below(path, before) => return Err((path, "the path runs through an entry that is no directory")),
            _ => previous = Some((path, is_dir)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn single_paths() {
        let long = |components| vec!["y"; components].join("/");
        for good in ["a", "a/b", "...", "..a", "a..", "a b", "ä", "a\\b", "-", "\n", &"x".repeat(255), &long(2048)] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        let bad = ["", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/../b", "a\0b", &"x".repeat(256), &long(2049)];
        for bad in bad {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_directory_stands_directly_before_its_content() {
        let mut paths = ["a.b", "a-b", "a/b", "a", "a/b/c", "ab", "a b", "a/B", "\u{1}", "é"];
        paths.sort_by(|a, b| compare(a, b));
        assert_eq!(paths, ["\u{1}", "a", "a/B", "a/b", "a/b/c", "a b", "a-b", "a.b", "ab", "é"]);
    }

    #[test]
    fn sets() {
        assert_eq!(check_set([("a", true), ("a/b", false), ("a-b", false)]), Ok(()));
        assert_eq!(check_set([("a/b", false)]), Ok(()), "parents may be implied");
        assert_eq!(check_set([("a", false), ("a", true)]).unwrap_err().0, "a");
        assert_eq!(check_set([("a", false), ("a/b", false)]).unwrap_err().0, "a/b");
        assert_eq!(check_set([("a", false), ("a/b/c", false)]).unwrap_err().0, "a/b/c", "through a file whose child is implied");
        assert_eq!(check_set([("a", true), ("a/../x", false)]).unwrap_err().0, "a/../x");
    }

    proptest! {
        #[test]
        fn order_is_that_of_the_components(a in "[a-c/. -]{0,6}", b in "[a-c/. -]{0,6}") {
            let components = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(compare(&a, &b), components(&a).cmp(&components(&b)));
        }
    }
}
