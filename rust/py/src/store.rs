//! The class `Store`: a directory with images, and blobs in it or elsewhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pfimg_core::capture::{self, CaptureOptions};
use pfimg_core::codec::{Codec, Encoding, Framed};
use pfimg_core::restore::{self, RestoreOptions};
use pfimg_core::store::{GRACE, LOOKED_UP_AT_ONCE, Options};
use pfimg_core::walk::{self, Selection};
use pfimg_core::{Algorithm, BlobStore, Digest, DirStore, Error, Images, gc, verify};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyString};

use crate::blobs::{Blobs, OnMiss, blob_store};
use crate::buffers::{Batch, Buffer, Targets};
use crate::digests::{self, PyDigest, names};
use crate::documents::image::PyManifest;
use crate::documents::pages::{CacheMeta, LogicalSeq, PyPageManifest};
use crate::errors::Result;
use crate::hold::Hold;
use crate::{kv, logging, upkeep, work};

/// What `pfimg.PfStore` is made of; use that.
#[pyclass(module = "pfimg._core", frozen, subclass)]
pub struct Store {
    root: PathBuf,
    encoding: Encoding,
    pub blobs: Blobs,
    images: Images,
}

fn selection(layers: Option<Vec<String>>, ixs: Option<Vec<u64>>) -> Result<Selection> {
    let layers = layers.map(|layers| layers.iter().map(|layer| layer.parse()).collect::<pfimg_core::Result<_>>()).transpose()?;
    Ok(Selection { layers, ixs })
}

impl Store {
    /// A codec with the store's level.
    pub fn encoding_as(&self, codec: Codec) -> Encoding {
        Encoding { codec, ..self.encoding }
    }

    /// A store whose directory holds images and pins only.
    fn elsewhere(root: &Path, digest: Option<Algorithm>, encoding: Encoding, blobs: &Bound<'_, PyAny>) -> Result<Self> {
        let blobs = blob_store(blobs)?;
        if let Some(digest) = digest.filter(|digest| *digest != blobs.algorithm()) {
            return Err(Error::format("blobs", format!("their digests are {}, not {digest}", blobs.algorithm())).into());
        }
        std::fs::create_dir_all(root).map_err(Error::io("create", root))?;
        let root = root.canonicalize().map_err(Error::io("open", root))?;
        Ok(Self { images: Images::new(&root), root, encoding, blobs: Blobs::Elsewhere(blobs) })
    }
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (path, *, digest = None, codec = "auto", level = 1, durability = "group", blobs = None, published = false))]
    #[expect(clippy::too_many_arguments, reason = "options that are given by name")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        digest: Option<&str>,
        codec: &str,
        level: i32,
        durability: &str,
        blobs: Option<&Bound<'_, PyAny>>,
        published: bool,
    ) -> Result<Self> {
        // All that the store will hash takes this for granted.
        pfimg_core::digest::kernel()?;
        let encoding = Encoding::new(codec.parse()?, level)?;
        let options = Options { encoding, durability: durability.parse()?, published };
        let digest = digest.map(str::parse).transpose()?;
        if let Some(blobs) = blobs {
            return Self::elsewhere(&path, digest, encoding, blobs);
        }
        let store = py.detach(|| DirStore::open(path, digest, options))?;
        let root = store.root().to_path_buf();
        Ok(Self { images: Images::new(&root), root, encoding, blobs: Blobs::Directory(Arc::new(store)) })
    }

    /// The store's directory, absolute.
    #[getter]
    fn root(&self) -> &Path {
        &self.root
    }

    /// Algorithm of the store's digests: `sha256` or `blake3`.
    #[getter]
    fn digest(&self) -> &'static str {
        self.blobs.any().algorithm().name()
    }

    /// Stores a blob; returns its digest. One that is there already is not written again.
    fn put(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> Result<PyDigest> {
        let data = Buffer::of(data, "data")?;
        Ok(PyDigest(py.detach(|| self.blobs.any().put(data.bytes()))?))
    }

    /// A blob's bytes, verified; of at most 1 GiB. Errors: `BlobNotFound`, `IntegrityError`, `LimitExceeded`.
    fn get<'py>(&self, py: Python<'py>, digest: PyDigest) -> Result<Bound<'py, PyBytes>> {
        self.blobs.get(py, &digest.0)
    }

    /// Whether a blob is there; it is not read. One that is old is as good as new for `gc` afterwards.
    fn has(&self, py: Python<'_>, digest: PyDigest) -> Result<bool> {
        Ok(py.detach(|| self.blobs.any().keep(&digest.0))?)
    }

    /// Stores many blobs in parallel; returns their digests, in order.
    ///
    /// `buffers` is a sequence of buffers, or one of two or more dimensions whose axis 0 is blobs. `digests` names blobs that are known (None
    /// for others): one that is there already is neither read nor hashed, any other must hash to its name.
    ///
    /// An error carries the item's `.index`; others may have been stored.
    #[pyo3(signature = (buffers, *, digests = None))]
    fn put_many(&self, py: Python<'_>, buffers: &Bound<'_, PyAny>, digests: Option<Vec<Option<PyDigest>>>) -> Result<Vec<PyDigest>> {
        let buffers = Batch::of(buffers, "buffers", "use put")?;
        let blobs = buffers.blobs();
        let known: Vec<Option<Digest>> = match digests {
            None => vec![None; blobs.len()],
            Some(digests) if digests.len() == blobs.len() => digests.into_iter().map(|digest| digest.map(|digest| digest.0)).collect(),
            Some(digests) => return Err(Error::format("digests", format!("{} for {} buffers", digests.len(), blobs.len())).into()),
        };
        let stored = work::run(py, None, |monitor| {
            monitor.expect(blobs.len() as u64);
            self.blobs.any().put_named(&blobs, &known, monitor)
        })?;
        Ok(names(stored))
    }

    /// Reads many blobs in parallel, each verified.
    ///
    /// Without `out`: their bytes, in order. `out` is a sequence of writable buffers, or one of two or more dimensions whose axis 0 is blobs,
    /// each of its blob's length (`FormatError` otherwise); then nothing is returned. With `errors="mask"` an absent or corrupt blob is no
    /// error: it is None in the list, or with `out` False in the list of bools that is returned.
    ///
    /// Rows that are not True, and all rows after an error, hold undefined bytes. An error carries the item's `.index`.
    #[pyo3(signature = (digests, *, out = None, errors = OnMiss::Raise), text_signature = "($self, digests, *, out=None, errors='raise')")]
    fn get_many<'py>(&self, py: Python<'py>, digests: Vec<PyDigest>, out: Option<&Bound<'py, PyAny>>, errors: OnMiss) -> Result<Bound<'py, PyAny>> {
        let digests = digests::digests(digests);
        let Some(out) = out else { return Ok(self.blobs.get_many(py, &digests, errors)?.into_bound_py_any(py)?) };
        let [mut out] = Targets::of([(out, "out")])?;
        let places = out.places();
        if places.len() != digests.len() {
            return Err(Error::format("out", format!("it has {} rows for {} digests", places.len(), digests.len())).into());
        }
        let found = work::run(py, None, |monitor| {
            monitor.expect(digests.len() as u64);
            let mut items: Vec<(Digest, &mut [u8])> = digests.into_iter().zip(places).collect();
            let mut found = vec![true; items.len()];
            for (index, error) in self.blobs.any().get_many_into(&mut items, monitor) {
                errors.settle(index, error)?;
                found[index] = false;
            }
            Ok(found)
        })?;
        Ok(if errors == OnMiss::Mask { found.into_bound_py_any(py)? } else { py.None().into_bound(py) })
    }

    /// Whether each blob is there; none is read. Those that are old are as good as new for `gc` afterwards.
    fn has_many(&self, py: Python<'_>, digests: Vec<PyDigest>) -> Result<Vec<bool>> {
        let digests = digests::digests(digests);
        if digests.len() <= LOOKED_UP_AT_ONCE {
            return Ok(py.detach(|| self.blobs.any().keep_many(&digests))?);
        }
        work::run(py, None, |_| self.blobs.any().keep_many(&digests))
    }

    /// What all blobs take as they are stored, in bytes.
    fn physical_bytes(&self, py: Python<'_>) -> Result<u64> {
        work::run(py, None, |_| self.blobs.any().physical_bytes())
    }

    /// Stores KV pages and returns the manifest that describes them (which is not stored: `snapshot` does that).
    ///
    /// `k` and `v` are arrays whose axis 0 is pages, or sequences of buffers; each page has `meta.page_bytes` bytes. The pages get the numbers
    /// `first_ix` and up. `base` is a manifest to extend: pages and sequences that it has already are replaced, the others are not touched.
    ///
    /// Errors: `FormatError` naming page and side for one of another length, or what is wrong with the sequences; then nothing is stored.
    #[pyo3(signature = (meta, k, v, *, logical_seqs = Vec::new(), first_ix = 0, base = None), text_signature = "($self, meta, k, v, *, logical_seqs=(), first_ix=0, base=None)")]
    #[expect(clippy::too_many_arguments, reason = "the published signature")]
    fn put_pages(
        &self,
        py: Python<'_>,
        meta: CacheMeta,
        k: &Bound<'_, PyAny>,
        v: &Bound<'_, PyAny>,
        logical_seqs: Vec<LogicalSeq>,
        first_ix: u64,
        base: Option<&Bound<'_, PyPageManifest>>,
    ) -> Result<PyPageManifest> {
        let logical_seqs = logical_seqs.into_iter().map(|sequence| sequence.0).collect();
        let base = base.map(|base| base.get().manifest.as_ref());
        let manifest = kv::NewPages { meta: meta.0, first_ix, logical_seqs, base }.put(py, self.blobs.any(), k, v)?;
        Ok(manifest.into())
    }

    /// Reads KV pages, each verified.
    ///
    /// `pages` is a manifest, its digest, or an image's id. `ixs` chooses pages by number, `sequence` those of a sequence, in that order;
    /// neither: all, in order of their numbers. Without outs two memoryviews of bytes, for K and V, of shape (n, page bytes); `out_k` and
    /// `out_v` are writable arrays with n rows, or sequences of writable buffers, and then nothing is returned. With `errors="mask"` a list
    /// comes last (with outs: alone), True where both K and V of a page were read. `expect` is the geometry that the pages must have.
    #[pyo3(
        signature = (pages, *, ixs = None, sequence = None, out_k = None, out_v = None, errors = OnMiss::Raise, expect = None),
        text_signature = "($self, pages, *, ixs=None, sequence=None, out_k=None, out_v=None, errors='raise', expect=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "the published signature")]
    fn get_pages<'py>(
        &self,
        py: Python<'py>,
        pages: &Bound<'py, PyAny>,
        ixs: Option<Vec<u64>>,
        sequence: Option<&str>,
        out_k: Option<&Bound<'py, PyAny>>,
        out_v: Option<&Bound<'py, PyAny>>,
        errors: OnMiss,
        expect: Option<CacheMeta>,
    ) -> Result<Bound<'py, PyAny>> {
        let manifest = if let Ok(manifest) = pages.cast::<PyPageManifest>() {
            Arc::clone(&manifest.get().manifest)
        } else {
            let digest: PyDigest = pages.extract()?;
            Arc::new(py.detach(|| kv::find(self.blobs.any(), &self.images, &digest.0))?)
        };
        let pages = kv::choose(&manifest, ixs.as_deref(), sequence)?;
        kv::Wanted { manifest: &manifest, pages, on_miss: errors, expect: expect.map(|meta| meta.0) }.get(py, self.blobs.any(), out_k, out_v)
    }

    /// Captures a directory; returns the digest of its tree.
    ///
    /// `ignore` holds lines with the meaning of a `.gitignore` at the root. Sockets, FIFOs and devices are skipped with a warning on the logger
    /// `pfimg`. Errors: `OSError` naming what cannot be read, `StoreError` naming a file that changed meanwhile, `FormatError` for a name that
    /// is not UTF-8.
    #[pyo3(signature = (path, *, ignore = Vec::new(), default_ignores = true, tick = None), text_signature = "($self, path, *, ignore=(), default_ignores=True, tick=None)")]
    fn put_tree(
        &self,
        py: Python<'_>,
        path: PathBuf,
        ignore: Vec<String>,
        default_ignores: bool,
        tick: Option<&Bound<'_, PyAny>>,
    ) -> Result<PyDigest> {
        let options = CaptureOptions { ignore, default_ignores };
        let captured = work::run(py, tick, |monitor| capture::put_tree(self.blobs.any(), &path, &options, monitor))?;
        logging::warn_all(py, &captured.warnings);
        Ok(PyDigest(captured.digest))
    }

    /// Restores a tree as a new directory, all of it or nothing.
    ///
    /// Links that are absolute or lead out of the directory are skipped with a warning on the logger `pfimg`, unless they are allowed. Errors:
    /// `FileExistsError` when anything has the target's name, `FormatError` for a hostile or malformed tree, those of `get`.
    #[pyo3(signature = (digest, target, *, allow_absolute_symlinks = false, tick = None))]
    fn restore_tree(
        &self,
        py: Python<'_>,
        digest: PyDigest,
        target: PathBuf,
        allow_absolute_symlinks: bool,
        tick: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let options = RestoreOptions { allow_absolute_symlinks };
        let warnings = work::run(py, tick, |monitor| restore::restore_tree(self.blobs.any(), &digest.0, &target, &options, monitor))?;
        logging::warn_all(py, &warnings);
        Ok(())
    }

    /// Stores a manifest and makes it an image; returns the image's id. Errors: `BlobNotFound` for a blob that it reaches and that is not
    /// here: an image is whole or cannot be seen.
    fn put_manifest(&self, py: Python<'_>, manifest: &PyManifest) -> Result<PyDigest> {
        Ok(PyDigest(work::run(py, None, |_| self.images.put(self.blobs.any(), &manifest.0))?))
    }

    /// An image's manifest. Errors: `BlobNotFound`, `IntegrityError`, `FormatError`.
    fn get_manifest(&self, py: Python<'_>, image: PyDigest) -> Result<PyManifest> {
        Ok(PyManifest(py.detach(|| self.images.get(self.blobs.any(), &image.0))?))
    }

    /// Forgets an image. Its blobs stay until `gc` finds that nothing else needs them. Errors: `BlobNotFound`.
    fn remove_image(&self, py: Python<'_>, image: PyDigest) -> Result<()> {
        Ok(py.detach(|| self.images.remove(&image.0))?)
    }

    /// Keeps a blob, and what it refers to if it is a document, from `gc` under a name.
    fn pin(&self, py: Python<'_>, name: &Bound<'_, PyString>, digest: PyDigest) -> Result<()> {
        let name = name.to_string_lossy();
        Ok(py.detach(|| self.images.pin(&name, &digest.0))?)
    }

    /// Forgets a pin. Errors: `BlobNotFound` when there is none of that name.
    fn unpin(&self, py: Python<'_>, name: &Bound<'_, PyString>) -> Result<()> {
        let name = name.to_string_lossy();
        Ok(py.detach(|| self.images.unpin(&name))?)
    }

    /// All pins: name and digest.
    fn pins<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let pins = PyDict::new(py);
        for (name, digest) in py.detach(|| self.images.pins())? {
            pins.set_item(name, PyDigest(digest))?;
        }
        Ok(pins)
    }

    /// Ids of all images that have a marker, sorted; the markers are not read.
    fn markers(&self, py: Python<'_>) -> Result<Vec<PyDigest>> {
        Ok(names(py.detach(|| self.images.list(self.blobs.any().algorithm()))?))
    }

    /// The manifest in an image's marker. Errors: `BlobNotFound`, `FormatError`, `IntegrityError` when it does not hash to its name.
    fn read_marker(&self, py: Python<'_>, image: PyDigest) -> Result<PyManifest> {
        Ok(PyManifest(py.detach(|| self.images.marker(&image.0))?))
    }

    /// Records an image of which only a part is here; `put_manifest` makes it a visible one once it is whole.
    fn put_partial(&self, py: Python<'_>, manifest: &PyManifest) -> Result<PyDigest> {
        Ok(PyDigest(py.detach(|| self.images.put_partial(self.blobs.any(), &manifest.0))?))
    }

    /// Ids of the images of which only a part is here, sorted.
    fn partial_images(&self, py: Python<'_>) -> Result<Vec<PyDigest>> {
        Ok(names(py.detach(|| self.images.partial(self.blobs.any().algorithm()))?))
    }

    /// What an image, or a part of it, refers to, in walk order; its own id is not among it.
    #[pyo3(signature = (manifest, *, layers = None, ixs = None))]
    fn reachable(&self, py: Python<'_>, manifest: &PyManifest, layers: Option<Vec<String>>, ixs: Option<Vec<u64>>) -> Result<Vec<PyDigest>> {
        let selection = selection(layers, ixs)?;
        Ok(names(work::run(py, None, |_| walk::reachable(&manifest.0, self.blobs.any(), &selection))?))
    }

    /// The layer blobs that a walk has to read: tree, page manifest, process table, model difference.
    #[pyo3(signature = (manifest, *, layers = None))]
    #[expect(clippy::unused_self, reason = "stands beside reachable")]
    fn documents(&self, manifest: &PyManifest, layers: Option<Vec<String>>) -> Result<Vec<PyDigest>> {
        let documents = walk::documents(&manifest.0, &selection(layers, None)?);
        Ok(documents.iter().map(|document| PyDigest(*document.digest())).collect())
    }

    /// Where a blob's frame lies, a float frame if its suffix is `.fpl`; None when it is not there or the blobs are not in a directory.
    fn blob_path(&self, py: Python<'_>, digest: PyDigest) -> Result<Option<PathBuf>> {
        let Blobs::Directory(store) = &self.blobs else { return Ok(None) };
        Ok(py.detach(|| store.find_path(&digest.0))?)
    }

    /// Those of the blobs that lie in float frames; none is read.
    fn float_blobs(&self, py: Python<'_>, digests: Vec<PyDigest>) -> Result<Vec<PyDigest>> {
        let Blobs::Directory(store) = &self.blobs else { return Ok(Vec::new()) };
        let digests = digests::digests(digests);
        Ok(names(work::run(py, None, |_| store.float_blobs(&digests))?))
    }

    /// Makes sure that the directory's description lists features, on stable storage. Errors: `FormatError` for one that is not known.
    fn require_features(&self, py: Python<'_>, features: Vec<String>) -> Result<()> {
        let store = self.blobs.directory()?;
        let features: Vec<&str> = features.iter().map(String::as_str).collect();
        Ok(py.detach(|| store.require_features(&features))?)
    }

    /// A blob's frame as it is stored, verified; encoded on the spot when the blobs are not in a directory.
    fn read_frame<'py>(&self, py: Python<'py>, digest: PyDigest) -> Result<Bound<'py, PyBytes>> {
        let frame = py.detach(|| self.blobs.frame(&digest.0, self.encoding))?;
        Ok(PyBytes::new(py, &frame))
    }

    /// The same for many, read and verified by all threads. Errors, each with `.index`: `BlobNotFound`, `IntegrityError`, and `LimitExceeded`
    /// for a frame above 1 GiB.
    fn read_frames<'py>(&self, py: Python<'py>, digests: Vec<PyDigest>) -> Result<Vec<Bound<'py, PyBytes>>> {
        self.blobs.frames(py, &digests::digests(digests), self.encoding)
    }

    /// Bytes of the frames that `read_frames` gives. Stored ones are not read for that. Errors: `BlobNotFound` with `.index`.
    fn frame_sizes(&self, py: Python<'_>, digests: Vec<PyDigest>) -> Result<Vec<u64>> {
        let digests = digests::digests(digests);
        work::run(py, None, |monitor| self.blobs.frame_sizes(&digests, self.encoding, monitor))
    }

    /// Verifies one blob of any size without holding it in memory; returns the bytes of its frame.
    fn check_blob(&self, py: Python<'_>, digest: PyDigest) -> Result<u64> {
        work::run(py, None, |monitor| self.blobs.check(&digest.0, self.encoding, monitor))
    }

    /// Blobs as frames of another encoding at the store's level, verified and made in parallel. An error carries `.index`.
    #[pyo3(signature = (digests, *, codec))]
    fn encode_frames<'py>(&self, py: Python<'py>, digests: Vec<PyDigest>, codec: &str) -> Result<Vec<Bound<'py, PyBytes>>> {
        let encoding = self.encoding_as(codec.parse()?);
        let digests = digests::digests(digests);
        let frames = work::run(py, None, |monitor| self.blobs.encoded(&digests, encoding, monitor))?;
        Ok(frames.iter().map(|frame| PyBytes::new(py, frame)).collect())
    }

    /// Verifies frames, each with its digest, and stores them as they came; returns how many were new. An error carries `.index`.
    fn land_frames(&self, py: Python<'_>, items: Vec<(PyDigest, Bound<'_, PyAny>)>) -> Result<u64> {
        let buffers: Vec<Buffer> = items.iter().map(|(_, frame)| Buffer::of(frame, "frame")).collect::<PyResult<_>>()?;
        let looked: Vec<Framed<'_>> = buffers.iter().map(|buffer| Framed::of(buffer.bytes())).collect();
        // What has to be decoded must not change meanwhile, even if Python code breaks the rule.
        let copy = |((_, object), frame): (&(_, Bound<'_, PyAny>), &Framed<'_>)| {
            let is_constant = frame.blocks().is_some() || object.is_exact_instance_of::<PyBytes>();
            (!is_constant).then(|| frame.bytes().to_vec())
        };
        let copies: Vec<Option<Vec<u8>>> = items.iter().zip(&looked).map(copy).collect();
        let frames = looked.into_iter().zip(&copies).map(|(frame, copy)| copy.as_deref().map_or(frame, Framed::of));
        let items: Vec<(Digest, Framed<'_>)> = items.iter().map(|(digest, _)| digest.0).zip(frames).collect();
        work::run(py, None, |monitor| self.blobs.land(&items, monitor))
    }

    /// The same for frames in files, each with its digest; returns how many were new, and the bytes of the frames that were read.
    #[pyo3(signature = (items, *, tick = None))]
    fn import_files(&self, py: Python<'_>, items: Vec<(PyDigest, PathBuf)>, tick: Option<&Bound<'_, PyAny>>) -> Result<(u64, u64)> {
        let items: Vec<(Digest, PathBuf)> = items.into_iter().map(|(digest, path)| (digest.0, path)).collect();
        work::run(py, tick, |monitor| self.blobs.import(&items, monitor))
    }

    /// Reads every blob (with `resume` those that a run that was interrupted had not reached) and walks every image; what was found, for
    /// `PfStore.verify`.
    #[pyo3(signature = (*, resume = false, tick = None))]
    fn run_verify<'py>(&self, py: Python<'py>, resume: bool, tick: Option<&Bound<'py, PyAny>>) -> Result<Bound<'py, PyDict>> {
        let store = self.blobs.directory()?;
        let found = work::run(py, tick, |monitor| verify::verify(store, &self.images, resume, monitor))?;
        Ok(upkeep::verification(py, found)?)
    }

    /// Removes what nothing needs; what was removed, for `PfStore.gc`.
    #[pyo3(signature = (*, grace_seconds = GRACE.as_secs_f64(), max_bytes = None, dry_run = false), text_signature = "($self, *, grace_seconds=86400, max_bytes=None, dry_run=False)")]
    fn run_gc<'py>(&self, py: Python<'py>, grace_seconds: f64, max_bytes: Option<u64>, dry_run: bool) -> Result<Bound<'py, PyDict>> {
        let store = self.blobs.directory()?;
        let options = gc::Options { grace: Duration::try_from_secs_f64(grace_seconds).map_err(PyErr::from)?, max_bytes, dry_run };
        let collected = work::run_apart(py, |monitor| gc::collect(store, &self.images, &options, monitor))?;
        Ok(upkeep::collected(py, &collected)?)
    }

    /// Counts of what is here, and of what this object has done; for `PfStore.stats`.
    fn run_stats<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let store = self.blobs.directory()?;
        let (usage, images) = work::run(py, None, |_| Ok((store.usage()?, self.images.list(store.algorithm())?.len())))?;
        Ok(upkeep::stats(py, &usage, images, &store.counters().read())?)
    }

    /// What this object has done: what `stats` tells as `counters`, without a look at the directory.
    fn counters<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        Ok(self.blobs.directory()?.counters().read().named().into_py_dict(py)?)
    }

    /// A lock for the length of a `with` block, shared by all who hold it: `gc` removes nothing meanwhile.
    fn hold(&self) -> Hold {
        Hold::new(self.root.clone())
    }
}
