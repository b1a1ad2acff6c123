//! Memory of Python objects, read and written in place.
//!
//! A buffer is anything with the buffer protocol whose memory is C-contiguous, of any item format, or a Torch tensor in CPU memory, which has
//! no buffer protocol (and, for bfloat16, no NumPy form either). [`Buffer`] is one blob, [`Batch`] many that are read, [`Targets`] many that
//! are written. Each keeps its Python objects exported, which pins the memory, until it is dropped.
//!
//! Limits: objects of no dimension (NumPy scalars, single `ctypes` values) are refused, and so is memory that holds object references.
//!
//! # Why the slices are sound, and where that ends
//! An exported buffer cannot be freed or resized by Python: `bytearray`, `mmap`, `array` and NumPy refuse while an export is alive. What can
//! happen is that another thread *changes* bytes while they are read here. The interface forbids that, and the core only hashes, compresses
//! and copies what it is given to store, with every access inside the slice whatever the bytes are; so a changed byte gives a blob that does
//! not match its name, which the next read finds. What is parsed or decoded is taken by [`constant`] instead, or copied. It ends where
//! foreign code breaks its own rules: an exporter that frees exported memory, or a tensor whose storage is resized (`resize_`, `set_`) during
//! the call.
#![expect(unsafe_code, reason = "memory of Python objects is reached by pointer; see the module's text")]

use std::fmt;
use std::ptr::NonNull;
use std::slice;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyType};

/// What keeps the memory where it is.
enum Owner {
    Export(#[expect(dead_code, reason = "kept for its drop")] PyUntypedBuffer),
    Tensor(#[expect(dead_code, reason = "kept for its drop")] Py<PyAny>),
}

/// One contiguous piece of a Python object's memory.
struct Memory {
    start: NonNull<u8>,
    len: usize,
    readonly: bool,
    /// Length of axis 0, for objects of two or more dimensions.
    rows: Option<usize>,
    _owner: Owner,
}

// SAFETY: The owner may be held and dropped by any thread (both kinds attach to the interpreter for that), and the memory it pins belongs to
// no thread.
unsafe impl Send for Memory {}
// SAFETY: As above; a shared `Memory` is only read.
unsafe impl Sync for Memory {}

/// How an argument is called in messages: `out` or `out[3]`.
#[derive(Clone, Copy)]
struct Name<'a> {
    argument: &'a str,
    index: Option<usize>,
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}[{index}]", self.argument),
            None => f.write_str(self.argument),
        }
    }
}

impl Memory {
    fn of(object: &Bound<'_, PyAny>, name: Name<'_>) -> PyResult<Self> {
        // SAFETY: The object is alive, and this thread is attached.
        let exports = unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) } != 0;
        match (!exports).then(|| tensor_type(object.py())).flatten() {
            Some(tensor) if object.is_instance(tensor.bind(object.py()))? => Self::of_tensor(object, name),
            _ => Self::of_export(object, name),
        }
    }

    fn of_export(object: &Bound<'_, PyAny>, name: Name<'_>) -> PyResult<Self> {
        let export = export(object).map_err(|error| refused(object, name, &error))?;
        if export.format().to_bytes().contains(&b'O') && holds_references(export.format().to_bytes()) {
            return Err(PyTypeError::new_err(format!("{name} holds references to Python objects, not bytes")));
        }
        if !export.is_c_contiguous() {
            return Err(not_contiguous(name, "numpy.ascontiguousarray"));
        }
        let rows = (export.dimensions() > 1).then(|| export.shape()[0]);
        let start = NonNull::new(export.buf_ptr().cast()).unwrap_or(NonNull::dangling());
        Ok(Self { start, len: export.len_bytes(), readonly: export.readonly(), rows, _owner: Owner::Export(export) })
    }

    fn of_tensor(tensor: &Bound<'_, PyAny>, name: Name<'_>) -> PyResult<Self> {
        let py = tensor.py();
        let device = tensor.getattr(intern!(py, "device"))?;
        if device.getattr(intern!(py, "type"))?.ne("cpu")? {
            return Err(PyTypeError::new_err(format!("{name} is a tensor on {device}: copy it to the CPU first (tensor.cpu())")));
        }
        if !tensor.call_method0(intern!(py, "is_contiguous"))?.is_truthy()? {
            return Err(not_contiguous(name, "tensor.contiguous"));
        }
        // Views that Torch negates or conjugates on reading: their memory holds something else than their values.
        for (lazy, cure) in [(intern!(py, "is_conj"), "resolve_conj"), (intern!(py, "is_neg"), "resolve_neg")] {
            if tensor.call_method0(lazy)?.is_truthy()? {
                return Err(PyBufferError::new_err(format!("{name} is a lazy view: make it real first (tensor.{cure}())")));
            }
        }
        let address: usize = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
        let len = tensor.getattr(intern!(py, "nbytes"))?.extract()?;
        let dimensions: usize = tensor.call_method0(intern!(py, "dim"))?.extract()?;
        let rows = if dimensions > 1 { Some(tensor.len()?) } else { None };
        let start = NonNull::new(std::ptr::with_exposed_provenance_mut(address)).unwrap_or(NonNull::dangling());
        Ok(Self { start, len, readonly: false, rows, _owner: Owner::Tensor(tensor.clone().unbind()) })
    }

    /// The same, for memory that will be written.
    fn writable(object: &Bound<'_, PyAny>, name: Name<'_>) -> PyResult<Self> {
        let memory = Self::of(object, name)?;
        if memory.readonly { Err(PyBufferError::new_err(format!("{name} is read-only"))) } else { Ok(memory) }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: The owner pins `len` readable bytes at `start` (which is dangling only for `len` 0) for as long as `self` lives, and u8 has
        // no invalid values and no alignment. That nobody writes meanwhile is the caller's duty; see the module's text.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Length of each row along axis 0.
    fn row_len(&self, rows: usize) -> usize {
        self.len.checked_div(rows).unwrap_or(0)
    }
}

/// `torch.Tensor` if the program has imported Torch; it is never imported here.
fn tensor_type(py: Python<'_>) -> Option<&Py<PyType>> {
    static TENSOR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    if let Some(tensor) = TENSOR.get(py) {
        return Some(tensor);
    }
    let modules = py.import(intern!(py, "sys")).ok()?.getattr(intern!(py, "modules")).ok()?;
    let tensor = modules.get_item(intern!(py, "torch")).ok()?.getattr(intern!(py, "Tensor")).ok()?;
    Some(TENSOR.get_or_init(py, || tensor.cast_into().expect("torch.Tensor is a class").unbind()))
}

/// The object's buffer. NumPy exports no arrays of types that `struct` has no letter for (`ml_dtypes`, dates): these are seen as bytes.
fn export(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let py = object.py();
    PyUntypedBuffer::get(object).or_else(|error| {
        let plain = object.getattr(intern!(py, "dtype")).and_then(|dtype| dtype.getattr(intern!(py, "hasobject"))?.extract());
        match plain {
            Ok(false) => PyUntypedBuffer::get(&object.call_method1(intern!(py, "view"), (intern!(py, "u1"),))?),
            _ => Err(error),
        }
    })
}

/// Whether a format of the buffer protocol has an item `O`, outside the names of fields (`:name:`).
fn holds_references(format: &[u8]) -> bool {
    format.split(|&c| c == b':').step_by(2).any(|part| part.contains(&b'O'))
}

fn refused(object: &Bound<'_, PyAny>, name: Name<'_>, error: &PyErr) -> PyErr {
    let py = object.py();
    if error.is_instance_of::<PyTypeError>(py) {
        let kind = object.get_type().name().map_or_else(|_| "something else".to_owned(), |kind| kind.to_string());
        return PyTypeError::new_err(format!("{name} is not a buffer (bytes, array or CPU tensor) but {kind}"));
    }
    PyBufferError::new_err(format!("{name}: {}", error.value(py)))
}

fn not_contiguous(name: Name<'_>, cure: &str) -> PyErr {
    PyBufferError::new_err(format!("{name} is not C-contiguous: copy it first ({cure}())"))
}

/// Bytes that are parsed, and therefore must not change even if Python code breaks the rule: the very object when it is `bytes`, else a copy.
pub fn constant<'py>(object: &Bound<'py, PyAny>, argument: &str) -> PyResult<Bound<'py, PyBytes>> {
    match object.cast_exact::<PyBytes>() {
        Ok(bytes) => Ok(bytes.clone()),
        Err(_) => Ok(PyBytes::new(object.py(), Buffer::of(object, argument)?.bytes())),
    }
}

/// One blob's bytes.
pub struct Buffer(Memory);

impl Buffer {
    /// The buffer of `object`, which messages call `argument`.
    pub fn of(object: &Bound<'_, PyAny>, argument: &str) -> PyResult<Self> {
        Memory::of(object, Name { argument, index: None }).map(Self)
    }

    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// Objects that are the blobs of one argument: one each, or a single one with axis 0 = blobs.
fn memories(
    object: &Bound<'_, PyAny>,
    argument: &str,
    one: &str,
    get: impl Fn(&Bound<'_, PyAny>, Name<'_>) -> PyResult<Memory>,
) -> PyResult<(Vec<Memory>, Option<usize>)> {
    let whole = Name { argument, index: None };
    let whole = match get(object, whole) {
        Ok(memory) => memory,
        // Not a buffer, so it must be a sequence of buffers.
        Err(error) if error.is_instance_of::<PyTypeError>(object.py()) && object.len().is_ok() => {
            let items = object.try_iter()?.enumerate();
            let items: PyResult<_> = items.map(|(index, item)| get(&item?, Name { argument, index: Some(index) })).collect();
            return Ok((items?, None));
        }
        Err(error) => return Err(error),
    };
    match whole.rows {
        Some(rows) => Ok((vec![whole], Some(rows))),
        None => Err(PyTypeError::new_err(format!("{argument} is a single blob: {one}, or pass a sequence, or an array with axis 0 = blobs"))),
    }
}

/// Many blobs' bytes.
pub struct Batch {
    memories: Vec<Memory>,
    rows: Option<usize>,
}

impl Batch {
    /// A sequence of buffers, or one of two or more dimensions. `one` tells what to do with a single blob.
    pub fn of(object: &Bound<'_, PyAny>, argument: &str, one: &str) -> PyResult<Self> {
        let (memories, rows) = memories(object, argument, one, Memory::of)?;
        Ok(Self { memories, rows })
    }

    /// The blobs in order.
    pub fn blobs(&self) -> Vec<&[u8]> {
        match (self.rows, &self.memories[..]) {
            (Some(rows), [memory]) => {
                let len = memory.row_len(rows);
                (0..rows).map(|row| &memory.bytes()[row * len..][..len]).collect()
            }
            _ => self.memories.iter().map(Memory::bytes).collect(),
        }
    }
}

/// Memory that many blobs are written to, no two in the same place.
pub struct Targets<'a> {
    argument: &'a str,
    memories: Vec<Memory>,
    rows: Option<usize>,
}

impl<'a> Targets<'a> {
    /// For each argument a sequence of writable buffers, or one of two or more dimensions.
    pub fn of<const N: usize>(arguments: [(&Bound<'_, PyAny>, &'a str); N]) -> PyResult<[Self; N]> {
        let mut all = Vec::with_capacity(N);
        for (object, argument) in arguments {
            let (memories, rows) = memories(object, argument, "give a list of one", Memory::writable)?;
            all.push(Self { argument, memories, rows });
        }
        if let Some((a, b)) = Self::overlap(&all) {
            return Err(PyValueError::new_err(format!("{a} and {b} share memory: each blob needs its own place")));
        }
        Ok(all.try_into().ok().expect("one for each argument"))
    }

    /// Two places that share memory.
    fn overlap(all: &[Self]) -> Option<(Name<'a>, Name<'a>)> {
        let places = all.iter().flat_map(|targets| {
            let name = |index| Name { argument: targets.argument, index: targets.rows.is_none().then_some(index) };
            targets.memories.iter().enumerate().map(move |(index, memory)| (memory.start.addr().get(), memory.len, name(index)))
        });
        let mut places: Vec<_> = places.filter(|(_, len, _)| *len > 0).collect();
        places.sort_by_key(|(start, ..)| *start);
        let pair = places.windows(2).find(|pair| pair[1].0 - pair[0].0 < pair[0].1)?;
        Some((pair[0].2, pair[1].2))
    }

    /// The places in order.
    pub fn places(&mut self) -> Vec<&mut [u8]> {
        let rows = self.rows.unwrap_or(1);
        let pieces = self.memories.iter_mut().flat_map(|memory| {
            let len = memory.row_len(rows);
            // SAFETY: As in `Memory::bytes`; the memory is writable, and `of` has made sure that no two members share any of it, so this is
            // our only slice there. Other code that touches it during the call breaks the interface's rule; what it then reads or leaves
            // there are wrong bytes, never wrong memory.
            let mut rest = unsafe { slice::from_raw_parts_mut(memory.start.as_ptr(), memory.len) };
            (0..rows).map(move |_| rest.split_off_mut(..len).expect("the rows make up the whole"))
        });
        pieces.collect()
    }
}
