//! Where a symbolic link of a tree leads.

use std::collections::HashMap;

/// Links that a path may run through before systems give up; Linux's number, no system's is greater.
const MAX_FOLLOWED: usize = 40;

/// Whether following the link at `path` steps above the root of its tree, in a step that its own `target` asks for. `links` holds the tree's
/// links, by path.
///
/// Counting components is not enough, since `..` after a link goes up from where the link leads: with `d/up` to `..`, the target `d/up/..`
/// is outside. A step outside within another link's target is not counted here: that link is found by itself, and without it this one leads
/// nowhere.
pub(super) fn escapes(links: &HashMap<&str, &str>, path: &str, target: &str) -> bool {
    let mut place = path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
    let mut texts = vec![target.split('/')];
    let mut followed = 0;
    while let Some(text) = texts.last_mut() {
        match text.next() {
            None => {
                texts.pop();
            }
            Some("" | ".") => {}
            Some("..") if place.is_empty() => return texts.len() == 1,
            Some("..") => place.truncate(place.rfind('/').unwrap_or(0)),
            Some(name) => {
                let parent = place.len();
                if parent > 0 {
                    place.push('/');
                }
                place.push_str(name);
                if let Some(next) = links.get(&*place) {
                    followed += 1;
                    if followed == MAX_FOLLOWED || next.starts_with('/') {
                        return false;
                    }
                    place.truncate(parent);
                    texts.push(next.split('/'));
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_above_the_root_are_seen_through_other_links() {
        let links = HashMap::from([
            ("d/up", ".."),
            ("d/here", "."),
            ("out", "../x"),
            ("absolute", "/etc"),
            ("loop", "loop"),
            ("fork", "fork/fork"),
            ("deep", "a/b/c"),
        ]);
        let inside = ["x", "d/up", "d/up/x", "deep/../../..", "d/here/..", "out", "out/../..", "absolute/..", "loop/..", "fork", "a//./..", "."];
        for target in inside {
            assert!(!escapes(&links, "l", target), "{target}");
        }
        for target in ["..", "../x", "a/../..", "d/up/..", "d/here/../..", "deep/../../../..", "d/up/d/up/../y"] {
            assert!(escapes(&links, "l", target), "{target}");
        }
        assert!(!escapes(&links, "d/l", "..") && escapes(&links, "d/l", "../.."));
    }
}
