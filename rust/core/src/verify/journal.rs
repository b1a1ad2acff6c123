//! What an interrupted run leaves for the next one: the directories of blobs that it has finished, a line each.
//!
//! A line holds the second in which the reading of its directory began, by the file system's own clock. A blob whose file has not
//! changed since was read then. Nobody can set that time of a file, and everything that may touch its content or its name moves it on. A
//! directory in which anything was wrong gets no line, so that it is read again. A line that was torn is none.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::{io, layout};

/// Seconds by which the times of files may lag behind.
const MARGIN: i64 = 2;
/// Seconds after which what was read is read again.
const TRUSTED: i64 = 7 * 86_400;
/// A line has at most a few digits, and there are 256 directories.
const MOST_BYTES: u64 = 64 << 10;

pub(super) struct Journal {
    path: PathBuf,
    /// None where none can be written: then nothing is noted.
    file: Option<File>,
    done: HashMap<String, i64>,
}

impl Journal {
    /// A journal that goes on with what the last run left, or begins anew.
    pub(super) fn open(root: &Path, resume: bool) -> Result<Self> {
        let path = root.join(layout::VERIFIED);
        let left = match io::read_small(&path, MOST_BYTES) {
            Ok(bytes) if resume => String::from_utf8_lossy(&bytes).into_owned(),
            _ => String::new(),
        };
        let file = File::options().create(true).append(true).open(&path).ok();
        if let Some(file) = file.as_ref().filter(|_| !resume) {
            file.set_len(0).map_err(Error::io("write", &path))?;
        }
        let journal = Self { path, file, done: HashMap::new() };
        let Some(now) = journal.now() else { return Ok(journal) };
        let line = |line: &str| -> Option<(String, i64)> {
            let (shard, began) = line.strip_suffix('\n')?.split_once(' ')?;
            let began = began.parse().ok().filter(|began| (now - TRUSTED..=now).contains(began))?;
            Some((shard.to_owned(), began))
        };
        Ok(Self { done: left.split_inclusive('\n').filter_map(line).collect(), ..journal })
    }

    /// The second that it is now, by the file system's clock.
    pub(super) fn now(&self) -> Option<i64> {
        let file = self.file.as_ref()?;
        file.set_modified(SystemTime::now()).ok()?;
        file.metadata().ok().map(|meta| meta.ctime())
    }

    /// Whether the last run has read a file of this directory as it is.
    pub(super) fn vouches(&self, shard: &str, meta: &io::Meta) -> bool {
        self.done.get(shard).is_some_and(|began| meta.changed < began - MARGIN)
    }

    /// Notes that everything in a directory is sound, as it was read from `began` on. What cannot be noted is read again, that is all.
    pub(super) fn finished(&self, shard: &str, began: i64) {
        if let Some(mut file) = self.file.as_ref() {
            // One call, so that lines of several threads do not mix.
            let _ = file.write_all(format!("{shard} {began}\n").as_bytes());
        }
    }

    /// The run has come to its end.
    pub(super) fn remove(self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if self.file.is_some() && error.kind() != ErrorKind::NotFound => Err(Error::io("remove", self.path)(error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(changed: i64) -> io::Meta {
        io::Meta { len: 1, modified: SystemTime::now(), changed }
    }

    #[test]
    fn only_what_did_not_change_since_is_vouched_for() {
        let root = tempfile::tempdir().unwrap();
        let journal = Journal::open(root.path(), true).unwrap();
        let now = journal.now().unwrap();
        assert!(!journal.vouches("ab", &meta(0)));
        journal.finished("ab", now);
        journal.finished("cd", now - TRUSTED - 1);
        journal.finished("ef", now + 100);
        let resumed = Journal::open(root.path(), true).unwrap();
        assert!(resumed.vouches("ab", &meta(now - MARGIN - 1)));
        for (shard, changed) in [("ab", now - MARGIN), ("ab", now + 1), ("cd", 0), ("ef", 0), ("", 0), ("zz", 0)] {
            assert!(!resumed.vouches(shard, &meta(changed)), "{shard} {changed}");
        }
        let anew = Journal::open(root.path(), false).unwrap();
        assert!(!anew.vouches("ab", &meta(0)));
        assert!(!Journal::open(root.path(), true).unwrap().vouches("ab", &meta(0)));
        anew.remove().unwrap();
        assert!(!root.path().join(layout::VERIFIED).exists());
    }

    #[test]
    fn torn_and_strange_lines_are_none() {
        let root = tempfile::tempdir().unwrap();
        let now = Journal::open(root.path(), false).unwrap().now().unwrap();
        std::fs::write(root.path().join(layout::VERIFIED), format!("xx\n\0\0\n12 {now} 3\n34 {now}\n56 {now}")).unwrap();
        let journal = Journal::open(root.path(), true).unwrap();
        assert!(journal.vouches("34", &meta(0)));
        for shard in ["xx", "12", "56"] {
            assert!(!journal.vouches(shard, &meta(0)));
        }
    }
}
