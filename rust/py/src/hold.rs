//! `with store.hold():`

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pfimg_core::store;
use pyo3::prelude::*;

use crate::errors::Result;

/// A shared lock on a store for the length of a `with` block; blocks may be nested.
#[pyclass(module = "pfimg._core", frozen)]
pub struct Hold {
    root: PathBuf,
    held: Mutex<Vec<store::Hold>>,
}

impl Hold {
    pub const fn new(root: PathBuf) -> Self {
        Self { root, held: Mutex::new(Vec::new()) }
    }
}

#[pymethods]
impl Hold {
    fn __enter__<'py>(this: &Bound<'py, Self>) -> Result<Bound<'py, Self>> {
        let hold = this.get();
        let lock = this.py().detach(|| store::Hold::shared(&hold.root))?;
        hold.held.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
        Ok(this.clone())
    }

    #[pyo3(signature = (*_exc))]
    fn __exit__(&self, _exc: &Bound<'_, pyo3::types::PyTuple>) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).pop();
    }
}
