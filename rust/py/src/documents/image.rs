//! Image manifests.

use pfimg_core::manifest::{self, Fields, SCHEMA_VERSION};
use pfimg_core::pages::LAYOUT;
use pfimg_core::{Manifest, walk};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::record;
use crate::blobs::blob_store;
use crate::buffers::constant;
use crate::digests::{PyDigest, digests, names};
use crate::errors::Result;
use crate::work;

record! {
    /// Who was captured: what it is, its version, and anything that tells two configurations apart.
    AgentInfo { kind: String, version: String, fingerprint: String } (kind, version = String::new(), fingerprint = String::new())
    as "(kind, version='', fingerprint='')"
}
record! {
    /// The base model (any bytes), and what was trained on top of it.
    ModelLayer { base: PyDigest, diff: PyDigest } (base, diff) as "(base, diff)"
}
record! {
    /// The KV cache: the layout of its pages, and the page manifest.
    CacheLayer { manifest: PyDigest, layout: String } (manifest, layout = LAYOUT.to_owned())
    as "(manifest, layout='paged-batchinvariant-v1')"
}
record! {
    /// The surroundings: tree of files, environment, process table.
    WorldLayer { fs: PyDigest, env: PyDigest, procs: PyDigest } (fs, env, procs) as "(fs, env, procs)"
}
record! {
    /// What was done to the outside: the effects ledger.
    EffectsLayer { ledger: PyDigest } (ledger) as "(ledger)"
}
record! {
    /// What was said: the messages, as JSON lines.
    TraceLayer { messages: PyDigest } (messages) as "(messages)"
}

/// An image manifest: the document whose digest is the image's id.
///
/// Two are equal when their bytes are.
#[pyclass(name = "Manifest", module = "pfimg._core", frozen, eq, hash)]
#[derive(PartialEq)]
pub struct PyManifest(pub Manifest);

impl std::hash::Hash for PyManifest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.id().hash(state);
    }
}

#[pymethods]
impl PyManifest {
    #[new]
    #[pyo3(
        signature = (*, agent, model, cache, world, effects, trace, created_at, parents = Vec::new(), schema_version = SCHEMA_VERSION, media_type = None),
        text_signature = "(*, agent, model, cache, world, effects, trace, created_at, parents=(), schema_version=1, media_type=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "one for each field of the document")]
    fn new(
        agent: AgentInfo,
        model: ModelLayer,
        cache: CacheLayer,
        world: WorldLayer,
        effects: EffectsLayer,
        trace: TraceLayer,
        created_at: String,
        parents: Vec<PyDigest>,
        schema_version: u64,
        media_type: Option<String>,
    ) -> Result<Self> {
        let media_type = media_type.unwrap_or_else(|| Fields::media_type_of(model.base.0.algorithm()).to_owned());
        let fields = Fields {
            schema_version,
            media_type,
            agent: manifest::AgentInfo { kind: agent.kind, version: agent.version, fingerprint: agent.fingerprint },
            model: manifest::ModelLayer { base: model.base.0, diff: model.diff.0 },
            cache: manifest::CacheLayer { layout: cache.layout, manifest: cache.manifest.0 },
            world: manifest::WorldLayer { fs: world.fs.0, env: world.env.0, procs: world.procs.0 },
            effects: manifest::EffectsLayer { ledger: effects.ledger.0 },
            trace: manifest::TraceLayer { messages: trace.messages.0 },
            created_at,
            parents: digests(parents),
        };
        Ok(Self(Manifest::new(fields)?))
    }

    /// Reads a manifest from its JSON, of at most 1 MiB. Errors: `FormatError` with `.field` and `.offset`, `LimitExceeded`.
    #[staticmethod]
    fn from_json(data: &Bound<'_, PyAny>) -> Result<Self> {
        Ok(Self(Manifest::parse(constant(data, "data")?.as_bytes())?))
    }

    /// The bytes it was read from, or for a new one its JSON as the published format prints it.
    fn to_json<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.bytes())
    }

    /// The image's id: the digest of `to_json()`.
    #[getter]
    fn id(&self) -> PyDigest {
        PyDigest(self.0.id())
    }

    #[getter]
    fn schema_version(&self) -> u64 {
        self.0.fields().schema_version
    }

    #[getter]
    fn media_type(&self) -> &str {
        &self.0.fields().media_type
    }

    #[getter]
    fn agent(&self) -> AgentInfo {
        let manifest::AgentInfo { kind, version, fingerprint } = self.0.fields().agent.clone();
        AgentInfo { kind, version, fingerprint }
    }

    #[getter]
    fn model(&self) -> ModelLayer {
        let model = &self.0.fields().model;
        ModelLayer { base: PyDigest(model.base), diff: PyDigest(model.diff) }
    }

    #[getter]
    fn cache(&self) -> CacheLayer {
        let cache = &self.0.fields().cache;
        CacheLayer { manifest: PyDigest(cache.manifest), layout: cache.layout.clone() }
    }

    #[getter]
    fn world(&self) -> WorldLayer {
        let world = &self.0.fields().world;
        WorldLayer { fs: PyDigest(world.fs), env: PyDigest(world.env), procs: PyDigest(world.procs) }
    }

    #[getter]
    fn effects(&self) -> EffectsLayer {
        EffectsLayer { ledger: PyDigest(self.0.fields().effects.ledger) }
    }

    #[getter]
    fn trace(&self) -> TraceLayer {
        TraceLayer { messages: PyDigest(self.0.fields().trace.messages) }
    }

    /// When the image was made: RFC 3339, UTC, with `Z`.
    #[getter]
    fn created_at(&self) -> &str {
        &self.0.fields().created_at
    }

    /// Ids of the images that this one comes from: none, one, or two for a merge.
    #[getter]
    fn parents<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, names(self.0.fields().parents.clone()))
    }

    fn __repr__(&self) -> String {
        let fields = self.0.fields();
        format!("<Manifest {} of {:?}, {}>", self.0.id(), fields.agent.kind, fields.created_at)
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        Ok((py.get_type::<Self>().getattr("from_json")?, (self.to_json(py),)))
    }
}

/// The eight digests that a manifest names, in walk order, each once.
#[pyfunction]
pub fn manifest_blob_digests(manifest: &PyManifest) -> Vec<PyDigest> {
    names(walk::manifest_blob_digests(&manifest.0))
}

/// Everything that an image refers to, in walk order, each digest once: the layers, then the blobs of the tree, of the pages, of the process
/// table and of the model difference.
///
/// `store` is anything with `put`, `get`, `has` and `physical_bytes`. Errors: `BlobNotFound` for a document that is not in it, `FormatError`
/// for a malformed one.
#[pyfunction]
pub fn transitive_blob_digests(py: Python<'_>, manifest: &PyManifest, store: &Bound<'_, PyAny>) -> Result<Vec<PyDigest>> {
    let store = blob_store(store)?;
    Ok(names(work::run(py, None, |_| walk::transitive_blob_digests(&manifest.0, store.as_ref()))?))
}
