//! New `bytes` objects that are filled without a copy.
#![expect(unsafe_code, reason = "the content of a new bytes object is written by pointer")]

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;

use pfimg_core::Error;
use pyo3::exceptions::PyMemoryError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// A `bytes` object that nobody else has seen yet.
pub struct NewBytes {
    object: Py<PyBytes>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: The memory belongs to no thread, and the object is only touched while attached.
unsafe impl Send for NewBytes {}

impl NewBytes {
    /// An object of `len` bytes, which are not there yet. Large ones take no memory before they are filled.
    pub fn new(py: Python<'_>, len: usize) -> PyResult<Self> {
        let size = isize::try_from(len).map_err(|_| PyMemoryError::new_err(()))?;
        // SAFETY: With a null source, CPython allocates an object whose content the caller is to write before anybody else gets it; it
        // returns a new reference, or null with an exception set. `PyBytes_AsString` of a bytes object cannot fail.
        let (object, start) = unsafe {
            let object = Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(std::ptr::null(), size))?;
            let start = ffi::PyBytes_AsString(object.as_ptr()).cast();
            (object.cast_into_unchecked().unbind(), start)
        };
        let start = NonNull::new(start).expect("a bytes object has a place for its content");
        Ok(Self { object, start, len })
    }

    /// The same for a thread that is not attached.
    pub fn attached(len: usize) -> pfimg_core::Result<Self> {
        Python::attach(|py| Self::new(py, len)).map_err(|error| Error::Foreign(Box::new(error)))
    }

    /// The content, for another thread to write.
    pub fn whole(&mut self) -> Part<'_> {
        Part { start: self.start, len: self.len, bytes: PhantomData }
    }

    /// The content, zeroed.
    pub fn zeroed(&mut self) -> &mut [u8] {
        self.whole().zeroed()
    }

    /// The object, for everybody. Only call it once the content is written.
    pub fn finish(self, py: Python<'_>) -> Bound<'_, PyBytes> {
        self.object.into_bound(py)
    }
}

/// Content of a [`NewBytes`] that nobody else writes.
pub struct Part<'a> {
    start: NonNull<u8>,
    len: usize,
    bytes: PhantomData<&'a mut [u8]>,
}

// SAFETY: It stands for a `&mut [u8]`, which may go to another thread.
unsafe impl Send for Part<'_> {}

impl<'a> Part<'a> {
    /// The bytes, zeroed. Zeroing costs little here, just before another pass over the same memory, and leaves nothing undefined.
    pub fn zeroed(self) -> &'a mut [u8] {
        // SAFETY: `start` is valid for `len` bytes as long as the object lives, which 'a does not outlast. Nobody else has the object before
        // `NewBytes::finish`, which a part borrows, so this is the only reference; and all bytes are initialised before it is made. (Of a
        // length of 0, where CPython shares one object, nothing is written.)
        unsafe {
            self.start.write_bytes(0, self.len);
            slice::from_raw_parts_mut(self.start.as_ptr(), self.len)
        }
    }
}
