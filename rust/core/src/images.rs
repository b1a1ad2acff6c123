//! Images in a store: manifests, their markers, and the other roots that gc spares.
//!
//! A manifest is a blob like any other; what makes it an image is its marker, a second copy under `images/`, which is written last. An image
//! of which only some layers or pages were fetched has its marker in `partial/` instead, so that listing never shows it. Pins are named
//! files that hold a digest, for blobs that no image names.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::store::{BlobStore, Hold};
use crate::{io, layout, limits, walk};

/// Longest name of a pin.
const PIN_NAME_BYTES: usize = 128;

/// The images of the store in one directory. Where its blobs are is the caller's business.
#[derive(Debug)]
pub struct Images {
    root: PathBuf,
}

impl Images {
    /// The images below `root`, which exists.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Stores a manifest and makes it an image.
    ///
    /// # Errors
    /// [`Error::BlobNotFound`] when a blob that it reaches is not there: an image is whole or not visible.
    pub fn put(&self, blobs: &dyn BlobStore, manifest: &Manifest) -> Result<Digest> {
        let _hold = Hold::shared(&self.root)?;
        let digests = walk::transitive_blob_digests(manifest, blobs)?;
        let present = blobs.has_many(&digests)?;
        if let Some((digest, _)) = digests.iter().zip(present).find(|(_, present)| !present) {
            return Err(Error::BlobNotFound { digest: digest.to_string() });
        }
        let id = put_manifest(blobs, manifest)?;
        self.write(layout::IMAGES, &layout::marker(&id), manifest.bytes())?;
        self.remove_file(layout::PARTIAL, &layout::marker(&id))?;
        Ok(id)
    }

    /// Stores a manifest of which not all blobs are here. An image that is whole already stays so.
    pub fn put_partial(&self, blobs: &dyn BlobStore, manifest: &Manifest) -> Result<Digest> {
        let _hold = Hold::shared(&self.root)?;
        let id = put_manifest(blobs, manifest)?;
        let marker = layout::marker(&id);
        if !self.root.join(layout::IMAGES).join(&marker).exists() {
            self.write(layout::PARTIAL, &marker, manifest.bytes())?;
        }
        Ok(id)
    }

    /// An image's manifest, from its blob or else from its marker.
    pub fn get(&self, blobs: &dyn BlobStore, image: &Digest) -> Result<Manifest> {
        match blobs.get(image) {
            Ok(bytes) => Manifest::parse(&bytes),
            Err(error @ Error::BlobNotFound { .. }) => self.marker(image).map_err(|_| error),
            Err(error) => Err(error),
        }
    }

    /// The manifest in an image's marker, checked against the marker's name.
    pub fn marker(&self, image: &Digest) -> Result<Manifest> {
        let name = layout::marker(image);
        for dir in [layout::IMAGES, layout::PARTIAL] {
            let path = self.root.join(dir).join(&name);
            let bytes = match io::read_small(&path, limits::MANIFEST_BYTES) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                    return Err(Error::Limit { what: path.display().to_string(), name: "MANIFEST_BYTES", limit: limits::MANIFEST_BYTES });
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("read", path)(error)),
            };
            let found = crate::digest::hash(image.algorithm(), &bytes);
            if found != *image {
                let reason = format!("its marker hashes to {found}");
                return Err(Error::Integrity { digest: image.to_string(), reason, path: Some(path) });
            }
            return Manifest::parse(&bytes);
        }
        Err(Error::BlobNotFound { digest: image.to_string() })
    }

    /// Ids of all images, sorted; markers are not read, and other files are passed over.
    pub fn list(&self, algorithm: Algorithm) -> Result<Vec<Digest>> {
        self.markers(layout::IMAGES, algorithm)
    }

    /// Ids of the images of which only a part is here, sorted.
    pub fn partial(&self, algorithm: Algorithm) -> Result<Vec<Digest>> {
        self.markers(layout::PARTIAL, algorithm)
    }

    /// When a partial image got its marker, which it does anew when more of it arrives; None where it is none.
    pub(crate) fn partial_time(&self, image: &Digest) -> Result<Option<SystemTime>> {
        let path = self.root.join(layout::PARTIAL).join(layout::marker(image));
        match std::fs::metadata(&path).and_then(|meta| meta.modified()) {
            Ok(time) => Ok(Some(time)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("stat", path)(error)),
        }
    }

    fn markers(&self, dir: &str, algorithm: Algorithm) -> Result<Vec<Digest>> {
        let names = self.names(dir)?;
        let mut images: Vec<Digest> = names.iter().filter_map(|name| layout::parse_marker(algorithm, name)).collect();
        images.sort_unstable();
        Ok(images)
    }

    /// Names of files in one of the directories of roots; what is not UTF-8 comes out with replacements and matches nothing.
    pub(crate) fn names(&self, dir: &str) -> Result<Vec<String>> {
        let path = self.root.join(dir);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", path)(error)),
        };
        entries.map(|entry| Ok(entry.map_err(Error::io("list", &path))?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Forgets an image, whole or partial. Its blobs stay until gc finds that nothing else needs them.
    pub fn remove(&self, image: &Digest) -> Result<()> {
        let marker = layout::marker(image);
        let removed = [layout::IMAGES, layout::PARTIAL].map(|dir| self.remove_file(dir, &marker));
        let mut any = false;
        for removed in removed {
            any |= removed?;
        }
        if any { Ok(()) } else { Err(Error::BlobNotFound { digest: image.to_string() }) }
    }

    /// Makes a blob (and, where it is an image, a tree or a page manifest, what it refers to) a root under a name.
    pub fn pin(&self, name: &str, digest: &Digest) -> Result<()> {
        check_pin_name(name)?;
        self.write(layout::PINS, name, format!("{digest}\n").as_bytes())
    }

    /// Forgets a pin.
    ///
    /// # Errors
    /// [`Error::PinNotFound`] when there is none of that name.
    pub fn unpin(&self, name: &str) -> Result<()> {
        check_pin_name(name)?;
        if self.remove_file(layout::PINS, name)? { Ok(()) } else { Err(Error::PinNotFound { name: name.to_owned() }) }
    }

    /// All pins.
    pub fn pins(&self) -> Result<BTreeMap<String, Digest>> {
        self.each_pin()?.into_iter().map(|(name, digest)| digest.map(|digest| (name, digest))).collect()
    }

    /// All pins by name, those that are malformed among them.
    pub(crate) fn each_pin(&self) -> Result<Vec<(String, Result<Digest>)>> {
        let mut pins = Vec::new();
        for name in self.names(layout::PINS)? {
            if io::is_temporary(&name) || check_pin_name(&name).is_err() {
                continue;
            }
            let path = self.root.join(layout::PINS).join(&name);
            let digest = match io::read_small(&path, limits::DESCRIPTION_BYTES) {
                Ok(bytes) => String::from_utf8(bytes).ok().and_then(|text| text.trim_end().parse().ok()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) if io::is_exhaustion(&error) => return Err(Error::io("read", path)(error)),
                Err(_) => None,
            };
            pins.push((name.clone(), digest.ok_or_else(|| Error::format(format!("pin {name:?}"), "does not hold a digest"))));
        }
        Ok(pins)
    }

    /// Waits until what was removed is gone for good, so that what only it needed may go too.
    pub(crate) fn sync(&self) -> Result<()> {
        for dir in [layout::IMAGES, layout::PARTIAL, layout::PINS] {
            let path = self.root.join(dir);
            match io::open_dir(&path).and_then(io::sync_dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("sync", path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn write(&self, dir: &str, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(dir);
        io::create_dirs(&path).map_err(Error::io("create", &path))?;
        let fd = io::open_dir(&path).map_err(Error::io("open", &path))?;
        io::write_atomic(fd.as_fd(), name, bytes, true).map_err(Error::io("write", path.join(name)))
    }

    fn remove_file(&self, dir: &str, name: &str) -> Result<bool> {
        let path = self.root.join(dir).join(name);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("remove", path)(error)),
        }
    }
}

fn put_manifest(blobs: &dyn BlobStore, manifest: &Manifest) -> Result<Digest> {
    let id = manifest.id();
    if id.algorithm() != blobs.algorithm() {
        return Err(Error::format(format!("image {id}"), format!("the store's digests are {}", blobs.algorithm())));
    }
    blobs.put(manifest.bytes())
}

fn check_pin_name(name: &str) -> Result<()> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > PIN_NAME_BYTES || name.starts_with('.') || !name.bytes().all(good) {
        let reason = format!("a name has up to {PIN_NAME_BYTES} of A-Z a-z 0-9 . _ - and does not start with a dot");
        return Err(Error::format(format!("pin {name:?}"), reason));
    }
    // It would be swept as one.
    if io::is_temporary(name) { Err(Error::format(format!("pin {name:?}"), "a name does not end as those of temporary files do")) } else { Ok(()) }
}
