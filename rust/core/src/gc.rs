//! Garbage collection: mark from the roots, sweep what is older than the grace period, safe beside writers.
//!
//! Roots are images, partial images and pins. Files are listed before the roots are, so that an image that appears meanwhile is either among
//! the roots or made of blobs that were not listed. Removal happens a few files at a time under the exclusive lock; each time, roots that
//! are new since the last look are marked first, and each file's time is read again, since a put renews the time of a blob it finds
//! (see [`crate::store`]). An image that cannot be walked stops the run before anything is removed: what it needs is not known.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::images::Images;
use crate::pool::Monitor;
use crate::store::{BlobFile, BlobStore, DirStore, GRACE, Hold, Scan};
use crate::{io, layout, walk};

/// Files removed between two looks at the lock.
const SWEEP_FILES: usize = 256;
/// A temporary younger than this may still be written, whatever the grace period.
const TEMPORARY_AGE: Duration = Duration::from_secs(3600);

/// What to remove.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Files younger than this stay. Below [`GRACE`], only calls that hold the lock are safe beside the run.
    pub grace: Duration,
    /// Stop as soon as the blobs take no more than this; oldest are removed first.
    pub max_bytes: Option<u64>,
    /// Only tell.
    pub dry_run: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { grace: GRACE, max_bytes: None, dry_run: false }
    }
}

/// What was removed, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs removed.
    pub freed: u64,
    /// Their size on disk, leftover temporaries included.
    pub freed_bytes: u64,
    /// Blobs that stay.
    pub kept: u64,
}

/// Removes blobs that no root reaches.
///
/// # Errors
/// [`Error::Store`] for an image that cannot be walked, and for the directory of a registry, whose images are none of these roots.
pub fn collect(store: &DirStore, images: &Images, options: &Options, monitor: &Monitor) -> Result<Collected> {
    for name in layout::REGISTRY {
        if store.root().join(name).exists() {
            return Err(Error::Store(format!(
                "{0} is a registry ({name} is there): gc of a store does not know its images, so nothing is removed; `pfimg gc file://{0}` does",
                store.root().display()
            )));
        }
    }
    let Scan { files, .. } = store.scan()?;
    let mut total: u64 = files.iter().map(|file| file.meta.len).sum();
    let blobs = files.iter().filter(|file| file.blob.is_some()).count() as u64;
    let mut marks = Marks::default();
    marks.update(store, images, monitor)?;

    let mut candidates: Vec<BlobFile> = files.into_iter().filter(|file| marks.releases(file, options.grace)).collect();
    candidates.sort_by_key(|file| file.meta.modified);
    monitor.expect(candidates.len() as u64);
    let mut collected = Collected::default();
    for batch in candidates.chunks(SWEEP_FILES) {
        let _hold = if options.dry_run { None } else { Some(Hold::exclusive(store.root(), monitor)?) };
        marks.update(store, images, monitor)?;
        if !options.dry_run {
            // Else a power cut could bring back an image that was removed, without its blobs.
            images.sync()?;
        }
        for file in batch {
            if options.max_bytes.is_some_and(|max| total <= max) {
                collected.kept = blobs - collected.freed;
                return Ok(collected);
            }
            let failed = |op| Error::io(op, store.root().join(layout::blobs(store.algorithm())).join(&file.name));
            let Some(meta) = io::stat_at(store.blobs_dir(), &file.name).map_err(failed("stat"))? else { continue };
            if !marks.releases(&BlobFile { meta, name: file.name.clone(), ..*file }, options.grace) {
                continue;
            }
            if !options.dry_run {
                io::remove_at(store.blobs_dir(), &file.name).map_err(failed("remove"))?;
            }
            total -= meta.len.min(total);
            collected.freed += u64::from(file.blob.is_some());
            collected.freed_bytes += meta.len;
            monitor.advance(1, meta.len)?;
        }
    }
    collected.freed_bytes += sweep_temporaries(store, options)?;
    collected.kept = blobs - collected.freed;
    Ok(collected)
}

/// Removes what killed processes left beside blobs: of blobs that they wrote before they knew the name, of markers, pins and descriptions.
fn sweep_temporaries(store: &DirStore, options: &Options) -> Result<u64> {
    let mut freed = 0;
    for dir in [layout::TEMPORARY, layout::IMAGES, layout::PARTIAL, layout::PINS, layout::SEEN, ""] {
        let path = store.root().join(dir);
        let fd = match io::open_dir(&path) {
            Ok(fd) => fd,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("open", path)(error)),
        };
        for name in Images::new(store.root()).names(dir)?.iter().filter(|name| io::is_temporary(name)) {
            let meta = io::stat_at(&fd, name).map_err(Error::io("stat", path.join(name)))?;
            if let Some(meta) = meta.filter(|meta| meta.age() >= options.grace.max(TEMPORARY_AGE)) {
                if !options.dry_run {
                    io::remove_at(&fd, name).map_err(Error::io("remove", path.join(name)))?;
                }
                freed += meta.len;
            }
        }
    }
    Ok(freed)
}

/// What is marked from, as often as it changes.
#[derive(PartialEq, Eq, Hash)]
enum Root {
    Image(Digest),
    /// With the time of its marker, which is written anew when more of the image arrives.
    Partial(Digest, SystemTime),
    Pin(Digest),
}

/// Everything that the roots seen so far reach.
#[derive(Default)]
struct Marks {
    roots: HashSet<Root>,
    reached: HashSet<Digest>,
}

impl Marks {
    fn releases(&self, file: &BlobFile, grace: Duration) -> bool {
        match file.blob {
            Some((digest, _)) => !self.reached.contains(&digest) && file.meta.age() >= grace,
            None => io::is_temporary(&file.name) && file.meta.age() >= grace.max(TEMPORARY_AGE),
        }
    }

    /// Marks from the roots that are new.
    fn update(&mut self, store: &DirStore, images: &Images, monitor: &Monitor) -> Result<()> {
        let algorithm = store.algorithm();
        for image in images.list(algorithm)? {
            if self.roots.insert(Root::Image(image)) {
                monitor.check()?;
                self.image(store, images, &image)?;
            }
        }
        for image in images.partial(algorithm)? {
            let Some(time) = images.partial_time(&image)? else { continue };
            if self.roots.insert(Root::Partial(image, time)) {
                let walk = || walk::present(&images.get(store, &image)?, store);
                match walk() {
                    Ok(digests) => {
                        self.reached.insert(image);
                        self.reached.extend(digests);
                    }
                    // Removed since the roots were listed, or made whole.
                    Err(_) if images.partial_time(&image)? != Some(time) => return self.update(store, images, monitor),
                    Err(error) => return Err(error),
                }
            }
        }
        for digest in images.pins()?.into_values() {
            if self.roots.insert(Root::Pin(digest)) {
                match walk::pinned(&digest, store) {
                    Ok(digests) => self.reached.extend(digests),
                    Err(_) if !images.pins()?.into_values().any(|pinned| pinned == digest) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn image(&mut self, store: &DirStore, images: &Images, image: &Digest) -> Result<()> {
        let walk = || {
            let manifest = images.get(store, image)?;
            walk::transitive_blob_digests(&manifest, store)
        };
        match walk() {
            Ok(digests) => {
                self.reached.insert(*image);
                self.reached.extend(digests);
                Ok(())
            }
            // Removed since the roots were listed.
            Err(_) if !images.list(store.algorithm())?.contains(image) => Ok(()),
            Err(error) => {
                Err(Error::Store(format!("image {image} cannot be walked, so nothing is removed: {error}; verify it, pull it again or remove it")))
            }
        }
    }
}
