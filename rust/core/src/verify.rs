//! Verification: read every blob, walk every image, and name what is wrong and whom it hurts.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use rayon::prelude::*;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::images::Images;
use crate::pool::{self, Monitor};
use crate::store::{BlobFile, BlobStore, DirStore};
use crate::{io, layout, walk};

/// Larger files are read piece by piece.
const WHOLE_FILE_BYTES: u64 = 16 << 20;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The blob or image; None for a file that has no such name.
    pub digest: Option<Digest>,
    /// Where it is, or would be.
    pub path: PathBuf,
    /// Images that need it, sorted.
    pub images: Vec<Digest>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Blobs read.
    pub checked: u64,
    /// Their size on disk.
    pub bytes: u64,
    /// Blobs (now in quarantine) and markers that do not hash to their names.
    pub corrupt: Vec<Finding>,
    /// Blobs that an image needs and that are not there; corrupt ones are not repeated here.
    pub missing: Vec<Finding>,
    /// Sound blobs that no image and no pin reaches: what gc may take.
    pub unreachable: Vec<Finding>,
    /// Files that do not belong in a store.
    pub foreign: Vec<Finding>,
    /// Images of which only a part is here, by choice.
    pub partial: Vec<Digest>,
}

/// Checks the whole store. Corrupt blobs are moved to quarantine; nothing else is changed.
pub fn verify(store: &DirStore, images: &Images, monitor: &Monitor) -> Result<Verification> {
    let mut report = Verification::default();
    let files = store.scan()?;
    monitor.expect(files.len() as u64);
    let checked: Vec<Option<bool>> = pool::install(|| files.par_iter().map(|file| check(store, file, monitor)).collect::<Result<_>>())?;

    let base = store.root().join(layout::blobs(store.algorithm()));
    let mut sound: HashMap<Digest, PathBuf> = HashMap::new();
    let mut corrupt: HashMap<Digest, Finding> = HashMap::new();
    for (file, state) in files.iter().zip(checked) {
        let path = base.join(&file.name);
        match (file.blob, state) {
            (Some((digest, _)), Some(good)) => {
                report.checked += 1;
                report.bytes += file.meta.len;
                if good {
                    sound.insert(digest, path);
                } else {
                    corrupt.insert(digest, Finding { digest: Some(digest), path, images: Vec::new() });
                }
            }
            (None, _) if !io::is_temporary(&file.name) => report.foreign.push(Finding { digest: None, path, images: Vec::new() }),
            _ => {}
        }
    }
    let mut missing: HashMap<Digest, Finding> = HashMap::new();
    let mut reached = HashSet::new();
    let mut need = |image: Digest, digest: Digest, whole: bool| {
        reached.insert(digest);
        if sound.contains_key(&digest) {
            return;
        }
        let hurt = match corrupt.get_mut(&digest) {
            Some(finding) => finding,
            None if whole => {
                missing.entry(digest).or_insert_with(|| Finding { digest: Some(digest), path: store.blob_path(&digest), images: Vec::new() })
            }
            None => return,
        };
        if hurt.images.last() != Some(&image) {
            hurt.images.push(image);
        }
    };
    let mut bad_markers = Vec::new();
    report.partial = images.partial(store.algorithm())?;
    let whole = images.list(store.algorithm())?;
    for (image, is_whole) in whole.iter().map(|image| (*image, true)).chain(report.partial.iter().map(|image| (*image, false))) {
        monitor.check()?;
        let manifest = match images.marker(&image) {
            Ok(manifest) => manifest,
            // Removed meanwhile.
            Err(Error::BlobNotFound { .. }) => continue,
            Err(_) => {
                let dir = if is_whole { layout::IMAGES } else { layout::PARTIAL };
                let path = store.root().join(dir).join(layout::marker(&image));
                bad_markers.push(Finding { digest: Some(image), path, images: vec![image] });
                match images.get(store, &image) {
                    Ok(manifest) => manifest,
                    Err(_) => continue,
                }
            }
        };
        need(image, image, is_whole);
        for digest in walk::manifest_blob_digests(&manifest) {
            need(image, digest, is_whole);
        }
        for document in walk::documents(&manifest, &walk::Selection::all()) {
            match document.children(store) {
                Ok(children) => children.into_iter().for_each(|digest| need(image, digest, is_whole)),
                Err(Error::Format { .. }) => {
                    let digest = *document.digest();
                    let path = sound.get(&digest).cloned().unwrap_or_else(|| store.blob_path(&digest));
                    bad_markers.push(Finding { digest: Some(digest), path, images: vec![image] });
                }
                // One that is damaged or missing hides what it names; it is reported itself.
                Err(_) => {}
            }
        }
    }
    for dir in [layout::IMAGES, layout::PARTIAL] {
        for name in images.names(dir)? {
            if layout::parse_marker(store.algorithm(), &name).is_none() && !io::is_temporary(&name) {
                report.foreign.push(Finding { digest: None, path: store.root().join(dir).join(name), images: Vec::new() });
            }
        }
    }
    for digest in images.pins()?.into_values() {
        // One that is damaged or malformed is a root all the same.
        reached.extend(walk::pinned(&digest, store).unwrap_or_else(|_| vec![digest]));
    }
    report.unreachable = sound
        .into_iter()
        .filter(|(digest, _)| !reached.contains(digest))
        .map(|(digest, path)| Finding { digest: Some(digest), path, images: Vec::new() })
        .collect();
    report.corrupt = corrupt.into_values().chain(bad_markers).collect();
    report.missing = missing.into_values().collect();
    for findings in [&mut report.corrupt, &mut report.missing, &mut report.unreachable, &mut report.foreign] {
        findings.sort_by(|a, b| a.path.cmp(&b.path));
    }
    Ok(report)
}

/// Whether a file's content hashes to its name; None when it is no blob or is gone.
fn check(store: &DirStore, file: &BlobFile, monitor: &Monitor) -> Result<Option<bool>> {
    let Some((digest, form)) = file.blob.filter(|_| file.meta.len > 0) else {
        monitor.advance(1, 0)?;
        return Ok(None);
    };
    let read = store
        .open_file(&digest, form)?
        .map(|reader| if file.meta.len <= WHOLE_FILE_BYTES { reader.read_frame().map(drop) } else { reader.read_to(&mut std::io::sink()).map(drop) });
    let state = match read {
        None | Some(Err(Error::BlobNotFound { .. })) => None,
        Some(Ok(())) => Some(true),
        Some(Err(Error::Integrity { .. })) => Some(false),
        Some(Err(error)) => return Err(error),
    };
    monitor.advance(1, file.meta.len)?;
    Ok(state)
}
