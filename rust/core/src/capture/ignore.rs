//! What a capture leaves out.
//!
//! Paths are matched relative to the captured root, so that it does not matter where the root lies. A directory that is left out is not
//! entered; therefore only the last component of a path is looked at, and nothing below such a directory can be brought back by negation,
//! as in git. The default names cannot be negated either: a list such as `*`, `!*/`, `!*.py` would bring `.git/objects` back.

use std::ffi::OsStr;
use std::path::Path;

use ::ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::CaptureOptions;
use crate::error::{Error, Result};

/// Left out by default wherever they stand.
const NAMES: [&str; 11] =
    ["target", "node_modules", ".pfcid", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".tox", ".coverage", ".venv", ".DS_Store"];
/// The same for names that end so, of directories too.
const SUFFIXES: [&[u8]; 2] = [b".pyc", b".pyo"];

pub(super) struct Ignore {
    defaults: bool,
    lines: Gitignore,
}

impl Ignore {
    pub(super) fn new(options: &CaptureOptions) -> Result<Self> {
        // With this root, paths are taken as relative already.
        let mut builder = GitignoreBuilder::new(".");
        for line in &options.ignore {
            builder.add_line(None, line).map_err(|error| Error::format(format!("ignore line {line:?}"), error.to_string()))?;
        }
        let lines = builder.build().map_err(|error| Error::format("ignore lines", error.to_string()))?;
        Ok(Self { defaults: options.default_ignores, lines })
    }

    /// Whether the entry at this relative path, whose parents are captured, is left out.
    pub(super) fn matches(&self, path: &Path, is_dir: bool) -> bool {
        self.defaults && is_default(path) || self.lines.matched(path, is_dir).is_ignore()
    }
}

fn is_default(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    let objects_of_git = || name == "objects" && path.parent().and_then(Path::file_name) == Some(OsStr::new(".git"));
    NAMES.iter().any(|left_out| name == *left_out) || SUFFIXES.iter().any(|suffix| name.as_encoded_bytes().ends_with(suffix)) || objects_of_git()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignore(lines: &[&str], default_ignores: bool) -> Ignore {
        Ignore::new(&CaptureOptions { ignore: lines.iter().map(ToString::to_string).collect(), default_ignores }).unwrap()
    }

    #[test]
    fn defaults_are_whole_components_and_suffixes() {
        let defaults = ignore(&[], true);
        for out in ["target", "a/target", "a/.git/objects", ".git/objects", "x.pyc", "a/.pyo", "a/.DS_Store", ".venv"] {
            assert!(defaults.matches(Path::new(out), true) && defaults.matches(Path::new(out), false), "{out}");
            assert!(!ignore(&[], false).matches(Path::new(out), true), "{out}");
        }
        for kept in ["targets", "objects", "git/objects", ".git/a/objects", ".git", "x.pyc.txt", "x.py", ".gitignore"] {
            assert!(!defaults.matches(Path::new(kept), true), "{kept}");
        }
    }

    #[test]
    fn lines_mean_what_git_means() {
        let lines = ignore(&["# comment", "", "*.log", "!keep.log", "/top", "only/", "a/*.txt", "**/deep/x", "\\!bang", "space\\ ", "c[0-9]"], false);
        let out = ["x.log", "a/x.log", "top", "a/x.txt", "p/q/deep/x", "!bang", "space ", "c7"];
        let kept = ["keep.log", "a/keep.log", "a/top", "a/b/x.txt", "deep/xx", "bang", "space", "cx", "# comment"];
        for path in out {
            assert!(lines.matches(Path::new(path), false), "{path}");
        }
        for path in kept {
            assert!(!lines.matches(Path::new(path), false), "{path}");
        }
        assert!(lines.matches(Path::new("b/only"), true) && !lines.matches(Path::new("b/only"), false));
    }

    #[test]
    fn defaults_cannot_be_negated() {
        assert!(ignore(&["*", "!*/", "!*.py", "!target"], true).matches(Path::new("target"), true));
    }

    #[test]
    fn a_broken_line_is_named() {
        let options = CaptureOptions { ignore: vec!["ok".into(), "a[z-b]".into()], default_ignores: true };
        assert!(Ignore::new(&options).err().unwrap().to_string().contains("a[z-b]"));
    }
}
