"""Who may import whom, read off the sources.

Both languages have an order of rooms, and each room may use only what stands before it: an import that goes the other way is how
a cycle begins. The orders are written out here, so that a new module has to be given its place. Code for tests is free.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "rust" / "core" / "src"
PACKAGE = ROOT / "python" / "pfimg"

RUST_ORDER = [
    "error", "limits",
    "path", "sha256", "digest", "codec", "io", "pool", "json",
    "manifest", "tree", "pages",
    "layout", "store", "arena", "walk", "pack", "car", "images",
    "capture", "restore",
    "verify", "gc",
]  # fmt: skip

# A crate that could be exchanged for another is named in one room.
CRATE_ROOMS = {
    "rustix": {"io"},
    "zstd": {"codec"},
    "sha2": set(),  # for tests only
    "blake3": {"digest"},
    "ignore": {"capture"},
    "bs58": {"car"},
    "data_encoding": {"car"},
    "murmur3": {"car"},
    "pyo3": set(),
}  # fmt: skip

# Modules in one row do not import one another.
PYTHON_ORDER = [
    {"_core"},
    {"errors", "types", "config", "timestamps"},
    {"page_index", "uses", "locks"},
    {"registries.refs", "asymmetric"},
    {"keys"},
    {"signing", "seen", "engine_pages", "effects", "environment", "car", "registries.base", "registries.connections"},
    {"transit", "packing", "registries.workers", "registries.tree", "registries.retries"},
    {"places", "registries.web"},
    {"fetching"},
    {"delivery"},
    {"transfer", "garbage"},
    {"registries.file", "registries.http", "registries.oci.manifest", "registries.oci.credentials", "registries.s3.failures"}
    | {"registries.hf.access", "registries.hf.failures", "registries.ipfs.node", "registries.ipfs.arrival"},
    {"registries.oci.address", "registries.oci.auth", "registries.s3.access", "registries.ipfs.directory"},
    {"registries.oci.repository", "registries.s3.bucket", "registries.hf.repository"},
    {"registries.s3.leases", "registries.oci.referrer"},
    {"registries.oci.transport", "registries.s3.transport", "registries.hf.transport", "registries.ipfs.transport"},
    {"registries.oci", "registries.s3", "registries.hf", "registries.ipfs"},
    {"registries"},
    {"store"},
    {"page_levels"},
    {"page_writer"},
    {"page_adoption"},
    {"cache"},
    {"bench"},
    {"images"},
    {"prefill"},
    {"engines", "engines.tier"},
    {"engines.lmcache_lanes", "engines.lmcache_pages", "engines.sglang_pools"},
    {"engines.lmcache_serde"},
    {"engines.lmcache", "engines.sglang", "engines.vllm"},
    {"compat"},
    {""},  # the package itself: imports and __all__
    {"cli"},
    {"__main__"},
]


def without_comments_and_tests(source: str) -> str:
    source = re.sub(r"//[^\n]*", "", source)
    source = re.sub(r'"(?:[^"\\]|\\.)*"', '""', source)
    return re.split(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*mod\s", source)[0]


def rust_rooms() -> Iterator[tuple[str, Path, str]]:
    """Room, file and code of every file of the core."""
    for file in sorted(CORE.rglob("*.rs")):
        parts = file.relative_to(CORE).with_suffix("").parts
        if parts[0] not in ("lib", "main") and "tests" not in parts:
            yield parts[0], file, without_comments_and_tests(file.read_text())


def names_after(code: str, prefix: str) -> Iterator[str]:
    """First path segments that follow `prefix`, be it one or a braced group: `crate::{a::X, b}` gives a and b."""
    for match in re.finditer(rf"(?<![\w:]){prefix}::(\{{|\w+)", code):
        if match[1] != "{":
            yield match[1]
            continue
        depth, word = 1, True
        for token in re.finditer(r"[{},]|\w+", code[match.end() :]):
            depth += {"{": 1, "}": -1}.get(token[0], 0)
            if depth == 0:
                break
            if depth == 1 and token[0] in ",{}":
                word = True
            elif depth == 1 and word:
                yield token[0]
                word = False


def public_names() -> dict[str, str]:
    """Names that lib.rs lifts to the root of the crate, and the room each comes from."""
    code = without_comments_and_tests((CORE / "lib.rs").read_text())
    lifted = re.findall(r"pub use (?:crate::)?(\w+)::(?:\{([^}]*)\}|(\w+))", code)
    return {name.strip(): room for room, group, single in lifted for name in (group or single).split(",")}


def test_every_room_of_the_core_has_its_place() -> None:
    rooms = {room for room, _, _ in rust_rooms()}
    assert rooms - set(RUST_ORDER) == set(), "add the new room to RUST_ORDER, after everything it uses"


def test_rooms_of_the_core_use_only_what_stands_before_them() -> None:
    lifted = public_names()
    breaches = []
    for room, file, code in rust_rooms():
        for name in names_after(code, "crate"):
            used = lifted.get(name, name)
            if used != room and (used not in RUST_ORDER or RUST_ORDER.index(used) > RUST_ORDER.index(room)):
                breaches.append(f"{file.relative_to(ROOT)} uses {used}")
    assert breaches == []


@pytest.mark.parametrize("crate", CRATE_ROOMS)
def test_a_crate_is_named_in_its_room_only(crate: str) -> None:
    pattern = re.compile(rf"(?<![\w:.]){crate}::|\buse {crate}\b|\bextern crate {crate}\b")
    users = {room for room, _, code in rust_rooms() if pattern.search(code)}
    assert users - CRATE_ROOMS[crate] == set()


def test_the_core_does_not_depend_on_python() -> None:
    assert "pyo3" not in (CORE.parent / "Cargo.toml").read_text()


def python_modules() -> Iterator[tuple[str, Path]]:
    """Module (below `pfimg.`) and file; everything in `cli` counts as one."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        yield ("cli" if module.split(".")[0] == "cli" else module), file


def is_module(name: str) -> bool:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.is_dir() or any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyi"))


def imported(node: ast.AST, package: str) -> Iterator[str]:
    """Full names of the modules that the code imports when it runs, inside functions too (but not for the type checker alone)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
            base = ".".join([*above, *filter(None, [child.module])])
            for alias in child.names:
                name = f"{base}.{alias.name}"
                yield name if name.startswith("pfimg.") and is_module(name) else base
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from imported(child, package)


def package_imports(file: Path) -> set[str]:
    """Modules below `pfimg.` that a file of the package imports; "" is the package itself."""
    package = ".".join(["pfimg", *file.relative_to(PACKAGE).parent.parts])
    names = imported(ast.parse(file.read_text()), package)
    return {name.removeprefix("pfimg").removeprefix(".") for name in names if name.split(".")[0] == "pfimg"}


def rank(module: str) -> int:
    module = "cli" if module.startswith("cli.") else module
    return next(place for place, row in enumerate(PYTHON_ORDER) if module in row)


def test_every_module_of_the_package_has_its_place() -> None:
    known = set().union(*PYTHON_ORDER)
    assert {module for module, _ in python_modules()} - known == set(), (
        "add the new module to PYTHON_ORDER, after everything it uses"
    )


def test_modules_of_the_package_import_only_what_stands_before_them() -> None:
    breaches = [
        f"{file.relative_to(ROOT)} imports pfimg.{name}"
        for module, file in python_modules()
        for name in package_imports(file)
        if not (module == "cli" and name.split(".")[0] == "cli") and rank(name) >= rank(module)
    ]
    assert breaches == []


def test_the_command_uses_the_public_package_only() -> None:
    private = {
        name
        for module, file in python_modules()
        if module == "cli"
        for name in package_imports(file)
        if name.split(".")[-1].startswith("_")
    }
    assert private == set()


def test_the_rules_notice_a_breach() -> None:
    code = "use crate::{error::{Error, Result}, store};\nlet x = crate::gc::run();"
    assert list(names_after(code, "crate")) == ["error", "store", "gc"]
    python = "def f():\n    from . import errors\n    import pfimg.images\nif TYPE_CHECKING:\n    import pfimg.compat"
    assert set(imported(ast.parse(python), "pfimg.registries")) == {"pfimg.registries", "pfimg.images"}
    assert set(imported(ast.parse("from ..cli import run"), "pfimg.registries")) == {"pfimg.cli"}
