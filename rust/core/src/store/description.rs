//! `pfimg.json`: how a store differs from the published format. A store without it does not differ.
//!
//! Features are added while others read and write, and are never taken away. Who adds one writes a new description in place of the one that
//! is there, under a lock on that very file; the first description of all is given its name only where that is still free. So of two that
//! are added at once, none is lost, and no file beside the description is needed for it.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Algorithm;
use crate::error::{Error, Result};
use crate::{io, layout, limits};

/// The only version there is.
const VERSION: u64 = 1;
/// Blobs may lie in float frames.
pub const FLOATS: &str = "codec:float";
/// Features that this version of the software understands; it refuses a store that needs another.
const FEATURES: [&str; 3] = ["names", "packs", FLOATS];

#[derive(Serialize, Deserialize)]
struct Document {
    pfimg: u64,
    digest: String,
    features: Vec<String>,
    /// Kept as they are.
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// What a store says about itself.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) algorithm: Algorithm,
    features: Vec<String>,
}

impl Description {
    pub(super) fn lists(&self, feature: &str) -> bool {
        self.features.iter().any(|listed| listed == feature)
    }
}

/// The description of the store at `root`; None when it has none.
pub(super) fn read(root: &Path) -> Result<Option<Description>> {
    let path = root.join(layout::DESCRIPTION);
    match io::read_small(&path, limits::DESCRIPTION_BYTES) {
        Ok(bytes) => parse(&bytes, &path).map(|(description, _)| Some(description)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path)(error)),
    }
}

fn parse(bytes: &[u8], path: &Path) -> Result<(Description, Document)> {
    let what = || path.display().to_string();
    let document: Document = serde_json::from_slice(bytes).map_err(|error| Error::format(what(), error.to_string()))?;
    if document.pfimg != VERSION {
        return Err(Error::field(
            what(),
            "pfimg",
            format!("version {} is not known to this version of pfimg, which reads {VERSION}", document.pfimg),
        ));
    }
    if let Some(feature) = document.features.iter().find(|feature| !FEATURES.contains(&feature.as_str())) {
        return Err(Error::field(what(), "features", format!("feature {feature:?} is not known to this version of pfimg")));
    }
    let algorithm = document.digest.parse();
    let algorithm = algorithm.map_err(|_| Error::field(what(), "digest", format!("algorithm {:?} is not known", document.digest)))?;
    Ok((Description { algorithm, features: document.features.clone() }, document))
}

/// Makes sure that a store is described as one of this algorithm with these features; on stable storage when this returns.
///
/// # Errors
/// [`Error::Format`] for a feature that is not known, here or in the description that is there.
pub(super) fn require(root: &Path, algorithm: Algorithm, features: &[&str]) -> Result<()> {
    let path = root.join(layout::DESCRIPTION);
    if let Some(feature) = features.iter().find(|feature| !FEATURES.contains(feature)) {
        return Err(Error::field(path.display().to_string(), "features", format!("feature {feature:?} is not known to this version of pfimg")));
    }
    let failed = |error| Error::io("write", &path)(error);
    let dir = io::open_dir(root).map_err(Error::io("open", root))?;
    loop {
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let features = features.iter().map(|&feature| feature.to_owned()).collect();
                let document = Document { pfimg: VERSION, digest: algorithm.to_string(), features, others: Map::new() };
                match io::write_new(dir.as_fd(), layout::DESCRIPTION, &print(&document)) {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                    other => return other.map_err(failed),
                }
            }
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        file.lock().map_err(Error::io("lock", &path))?;
        // Another writer may have put a new file in its place before it let go of this one.
        let here = file.metadata().map_err(Error::io("stat", &path))?;
        if !std::fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())) {
            continue;
        }
        let bytes = io::read_small(&path, limits::DESCRIPTION_BYTES).map_err(Error::io("read", &path))?;
        let (description, mut document) = parse(&bytes, &path)?;
        if description.algorithm != algorithm {
            return Err(Error::format(path.display().to_string(), format!("its digests are {}, not {algorithm}", description.algorithm)));
        }
        let missing: Vec<&str> = features.iter().copied().filter(|feature| !description.lists(feature)).collect();
        if missing.is_empty() {
            // Whoever added them may not have waited for the disk yet.
            return io::sync_dir(&dir).map_err(failed);
        }
        document.features.extend(missing.into_iter().map(str::to_owned));
        return io::write_atomic(dir.as_fd(), layout::DESCRIPTION, &print(&document), true).map_err(failed);
    }
}

fn print(document: &Document) -> Vec<u8> {
    serde_json::to_vec(document).expect("strings and numbers")
}
