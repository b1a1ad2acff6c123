"""The demo must notice what it is there to notice; that it passes is shown by `make demo`."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import pfimg

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", EXAMPLE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store(tmp_path: Path) -> pfimg.PfStore:
    return pfimg.PfStore.open(tmp_path / "store")


META = pfimg.CacheMeta(page_size_tokens=2, n_layers=1, n_heads=1, head_dim=4, dtype="bf16")
SIZE = META.page_bytes


def test_any_difference_is_noticed(demo: ModuleType, store: pfimg.PfStore, sandbox: Path, tmp_path: Path) -> None:
    pages = b"k" * 2 * SIZE, b"v" * 2 * SIZE
    cache = store.put_pages(META, [b"k" * SIZE] * 2, [b"v" * SIZE] * 2)
    image = pfimg.snapshot(store, agent="tester", fs_root=sandbox, cache=cache)
    files = demo.tree(sandbox)
    demo.check_out(store, image, tmp_path / "equal", files, pages)
    wrong = [
        (files | {"more": ("-rw-r--r--", 0, "")}, pages),
        ({path: entry for path, entry in files.items() if path != "latest"}, pages),
        (files | {"run.sh": ("-rw-r--r--", *files["run.sh"][1:])}, pages),
        (files | {"latest": (*files["latest"][:2], "-> elsewhere")}, pages),
        (files, (pages[0][:-1] + b"x", pages[1])),
        (files, (pages[0], pages[1][:-SIZE])),
        (files, (pages[0], pages[1] + pages[1])),
    ]
    for number, (tree, cache_bytes) in enumerate(wrong):
        with pytest.raises(demo.DifferenceError):
            demo.check_out(store, image, tmp_path / str(number), tree, cache_bytes)
