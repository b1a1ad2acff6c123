//! Results of upkeep as plain dictionaries, from which `pfimg.PfStore` makes its reports.

use pfimg_core::gc::Collected;
use pfimg_core::store::{Counts, Usage};
use pfimg_core::verify::{Finding, Verification};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyDict};

use crate::digests::{PyDigest, names};

type PyFinding = (Option<PyDigest>, String, Vec<PyDigest>, String);

fn findings(found: Vec<Finding>) -> Vec<PyFinding> {
    let finding = |found: Finding| (found.digest.map(PyDigest), found.path.to_string_lossy().into_owned(), names(found.images), found.reason);
    found.into_iter().map(finding).collect()
}

pub fn verification(py: Python<'_>, found: Verification) -> PyResult<Bound<'_, PyDict>> {
    let report = [("checked", found.checked), ("bytes", found.bytes), ("resumed", found.resumed)].into_py_dict(py)?;
    let lists = [("corrupt", found.corrupt), ("missing", found.missing), ("unreachable", found.unreachable), ("foreign", found.foreign)];
    for (name, list) in lists {
        report.set_item(name, findings(list))?;
    }
    report.set_item("partial", names(found.partial))?;
    Ok(report)
}

pub fn collected<'py>(py: Python<'py>, found: &Collected) -> PyResult<Bound<'py, PyDict>> {
    [("freed", found.freed), ("freed_bytes", found.freed_bytes), ("kept", found.kept)].into_py_dict(py)
}

pub fn stats<'py>(py: Python<'py>, usage: &Usage, images: usize, counts: &Counts) -> PyResult<Bound<'py, PyDict>> {
    let Usage { blobs, physical_bytes, logical_bytes } = *usage;
    let totals = [("blobs", blobs), ("images", images as u64), ("physical_bytes", physical_bytes), ("logical_bytes", logical_bytes)];
    totals.into_iter().chain(counts.named()).into_py_dict(py)
}
