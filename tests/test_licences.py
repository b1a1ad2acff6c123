"""What is linked into the extension may be given away under MIT; the same list that `cargo deny` reads decides."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

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


def test_expressions_are_understood() -> None:
    assert fits("Unlicense/MIT", {"MIT"})
    assert fits("(MIT OR GPL-3.0) AND Unicode-3.0", {"MIT", "Unicode-3.0"})
    assert not fits("(MIT OR GPL-3.0) AND Unicode-3.0", {"MIT"})
    assert not fits("Apache-2.0 WITH LLVM-exception", {"Apache-2.0"})
