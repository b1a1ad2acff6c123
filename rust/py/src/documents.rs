//! The three documents as Python classes: frozen, compared by value, picklable.
//!
//! A document that was read keeps its bytes, and `to_json` gives exactly those. Lists of pages and of entries stay in the core's form; an
//! object is made for a member only when it is asked for.

pub mod image;
pub mod pages;
pub mod tree;

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyIndexError, PyOverflowError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PySlice;

/// Defines a class that holds a few plain values; its signature comes as code, and as the text that `help` shows.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* } $signature:tt as $text:literal) => {
        $(#[$doc])*
        #[pyclass(module = "pfimg._core", frozen, eq, hash, get_all, from_py_object)]
        #[derive(Clone, PartialEq, Eq, Hash)]
        pub struct $name { $(pub $field: $type),* }

        #[pymethods]
        impl $name {
            #[new]
            #[pyo3(signature = $signature, text_signature = $text)]
            const fn new($($field: $type),*) -> Self {
                Self { $($field),* }
            }

            fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, pyo3::types::PyTuple>> {
                pyo3::types::PyTuple::new(py, [$(self.$field.clone().into_bound_py_any(py)?),*])
            }

            fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
                $crate::documents::repr(stringify!($name), &[$((stringify!($field), self.$field.clone().into_bound_py_any(py)?)),*])
            }
        }
    };
}
pub(crate) use record;

/// `Name(field=value, …)`
fn repr(name: &str, fields: &[(&str, Bound<'_, PyAny>)]) -> PyResult<String> {
    let fields: PyResult<Vec<String>> = fields.iter().map(|(field, value)| Ok(format!("{field}={}", value.repr()?))).collect();
    Ok(format!("{name}({})", fields?.join(", ")))
}

/// `list[index]` of a list in the core, with `make` for each member that is asked for.
fn get_item<'py, T, U: IntoPyObject<'py>>(items: &[T], index: &Bound<'py, PyAny>, make: impl Fn(&T) -> U) -> PyResult<Bound<'py, PyAny>> {
    let py = index.py();
    let len = isize::try_from(items.len())?;
    if let Ok(slice) = index.cast::<PySlice>() {
        let range = slice.indices(len)?;
        let places = (0..range.slicelength).map(|n| (range.start + n.cast_signed() * range.step).cast_unsigned());
        let members: PyResult<Vec<Bound<'py, PyAny>>> = places.map(|at| make(&items[at]).into_bound_py_any(py)).collect();
        return members?.into_bound_py_any(py);
    }
    let outside = || PyIndexError::new_err("list index out of range");
    let at: isize = index.extract().map_err(|error: PyErr| if error.is_instance_of::<PyOverflowError>(py) { outside() } else { error })?;
    let at = if at < 0 { at + len } else { at };
    let item = usize::try_from(at).ok().and_then(|at| items.get(at)).ok_or_else(outside)?;
    make(item).into_bound_py_any(py)
}

/// Makes a class with `__len__` and `__getitem__` a full `collections.abc.Sequence`, with that class's own iteration, search and so on.
pub fn make_sequence(class: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = class.py();
    let sequence = py.import(intern!(py, "collections.abc"))?.getattr(intern!(py, "Sequence"))?;
    for method in ["__contains__", "__iter__", "__reversed__", "index", "count"] {
        class.setattr(method, sequence.getattr(method)?)?;
    }
    sequence.call_method1(intern!(py, "register"), (class,))?;
    Ok(())
}
