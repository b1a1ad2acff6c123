//! `pfimg.json`: how a store differs from the published format. A store without it does not differ.

use std::os::fd::AsFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Algorithm;
use crate::error::{Error, Result};
use crate::{io, layout};

/// The only version there is.
const VERSION: u64 = 1;
/// Features that this version of the software understands; it refuses a store that needs another.
const FEATURES: [&str; 1] = ["names"];

#[derive(Serialize, Deserialize)]
struct Document {
    pfimg: u64,
    digest: String,
    features: Vec<String>,
}

/// The digest algorithm that the store at `root` says it has; None when it has no description.
pub(super) fn read(root: &Path) -> Result<Option<Algorithm>> {
    let path = root.join(layout::DESCRIPTION);
    let what = || path.display().to_string();
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    let document: Document = serde_json::from_slice(&bytes).map_err(|error| Error::format(what(), error.to_string()))?;
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
    document.digest.parse().map(Some).map_err(|_| Error::field(what(), "digest", format!("algorithm {:?} is not known", document.digest)))
}

/// Describes a new store; not needed where nothing differs.
pub(super) fn write(root: &Path, algorithm: Algorithm) -> Result<()> {
    let document = Document { pfimg: VERSION, digest: algorithm.to_string(), features: Vec::new() };
    let bytes = serde_json::to_vec(&document).expect("strings and numbers");
    let dir = io::open_dir(root).map_err(Error::io("open", root))?;
    io::write_atomic(dir.as_fd(), layout::DESCRIPTION, &bytes, true).map_err(Error::io("write", root.join(layout::DESCRIPTION)))
}
