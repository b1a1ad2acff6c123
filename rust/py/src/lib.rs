//! `pfimg._core`: the core as Python sees it. Every function here extracts, detaches, calls the core and converts; nothing else.
#![expect(clippy::needless_pass_by_value, reason = "arguments from Python are extracted into values")]

mod arena;
mod blobs;
mod buffers;
mod car;
mod digests;
mod documents;
mod errors;
mod foreign;
mod frames;
mod hold;
mod kv;
mod logging;
mod memory;
mod new_bytes;
mod packs;
mod store;
mod upkeep;
mod work;

/// The Rust core of pfimg.
#[pyo3::pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::arena::PageArena;
    #[pymodule_export]
    use crate::car::{CarBlocks, CarFrame, CarFrames, CarPart, CarPlan, CarReader, car_cid_of, car_node};
    #[pymodule_export]
    use crate::digests::{digest_of, digests_of, kernel, kernels};
    #[pymodule_export]
    use crate::documents::image::{
        AgentInfo, CacheLayer, EffectsLayer, ModelLayer, PyManifest, TraceLayer, WorldLayer, manifest_blob_digests, transitive_blob_digests,
    };
    #[pymodule_export]
    use crate::documents::pages::{CacheMeta, LogicalSeq, Page, Pages, PyPageManifest};
    #[pymodule_export]
    use crate::documents::tree::{Entries, FsTreeEntry, PyFsTree};
    #[pymodule_export]
    use crate::frames::{decode_frame, encode_frame};
    #[pymodule_export]
    use crate::hold::Hold;
    #[pymodule_export]
    use crate::memory::MemoryStore;
    #[pymodule_export]
    use crate::packs::PyPackIndex;
    #[pymodule_export]
    use crate::store::Store;
    #[pymodule_export]
    use crate::work::threads;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python asks for")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::logging::install();
        crate::documents::make_sequence(&module.getattr("Pages")?)?;
        crate::documents::make_sequence(&module.getattr("Entries")?)
    }
}
