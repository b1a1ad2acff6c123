//! `pfimg._core`: the core as Python sees it. Every function here extracts, detaches, calls the core and converts; nothing else.

mod buffers;
mod digests;
mod errors;
mod frames;
mod memory;
mod work;

/// The Rust core of pfimg.
#[pyo3::pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use crate::digests::digest_of;
    #[pymodule_export]
    use crate::frames::{decode_frame, encode_frame};
    #[pymodule_export]
    use crate::memory::MemoryStore;
    #[pymodule_export]
    use crate::work::threads;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python asks for")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
