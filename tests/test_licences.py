"""What is linked into the extension may be given away under MIT; the same list that `cargo deny` reads decides.

What is installed beside it, and used as it is, may have a little more.
"""

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
needs_cargo = pytest.mark.skipif(shutil.which("cargo") is None, reason="needs cargo: see the Makefile")


def crates(package: str) -> dict[str, str]:
    """Names and licences of all crates that a package of the workspace links."""
    command = [
        "cargo",
        "tree",
        "--locked",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--no-dedupe",
        "--package",
        package,
        "--format",
        "{p}|{l}",
    ]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name.split(maxsplit=1)[0]: licence for name, licence in (line.split("|") for line in lines)}


def fits(expression: str, allowed: set[str]) -> bool:
    """Whether a licence expression can be met: all sides of AND, one side of OR (or of the older `/`)."""
    tokens = re.findall(r"[()]|\bAND\b|\bOR\b|[\w.+-]+(?: WITH [\w.-]+)?", expression.replace("/", " OR "))
    words = {"(": "(", ")": ")", "AND": "and", "OR": "or"}
    return bool(eval(" ".join(words.get(token, str(token in allowed)) for token in tokens)))


@needs_cargo
def test_every_linked_crate_has_a_licence_that_fits() -> None:
    allowed = set(tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]["allow"])
    found = crates("pfimg-py")
    assert "pyo3" in found
    assert {name: licence for name, licence in found.items() if not fits(licence, allowed)} == {}


@needs_cargo
def test_the_core_links_nothing_of_python() -> None:
    assert not [name for name in crates("pfimg-core") if name.startswith(("pyo3", "python"))]


def packages(name: str, found: dict[str, str], extra: str = "") -> dict[str, str]:
    """Names and licences of a Python package and of all that it needs to run, with one of its extras or none."""
    if name not in found:
        about = distribution(name).metadata
        classifiers = [line for line in about.get_all("Classifier", []) if line.startswith("License ::")]
        fields = [*about.get_all("License-Expression", []), *about.get_all("License", []), ", ".join(classifiers)]
        found[name] = next(filter(None, fields), "")
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                packages(needed.name, found)
    return found


# Beside the list for crates. MPL-2.0 (certifi's list of authorities) asks only that changes to its own files be published.
FOR_PACKAGES = {"BSD-2-Clause", "MPL-2.0", "PSF-2.0", "License :: OSI Approved :: MIT License"}


@pytest.mark.parametrize(("extra", "needed"), [("", "httpx"), ("s3", "obstore"), ("hf", "huggingface-hub")])
def test_every_needed_package_has_a_licence_that_fits(extra: str, needed: str) -> None:
    allowed = set(tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]["allow"]) | FOR_PACKAGES
    found = packages("pfimg", {}, extra)
    assert {"click", "tenacity", needed} <= found.keys()
    misfits = {name: text for name, text in found.items() if text not in FOR_PACKAGES and not fits(text, allowed)}
    assert misfits == {}


def test_expressions_are_understood() -> None:
    assert fits("Unlicense/MIT", {"MIT"})
    assert fits("(MIT OR GPL-3.0) AND Unicode-3.0", {"MIT", "Unicode-3.0"})
    assert not fits("(MIT OR GPL-3.0) AND Unicode-3.0", {"MIT"})
    assert not fits("Apache-2.0 WITH LLVM-exception", {"Apache-2.0"})
