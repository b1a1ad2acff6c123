"""A page manifest of a million pages: what it says, and how much memory it takes. Oracle: a loop over its text."""

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

import pfimg

PAGES = 1_000_000
META = pfimg.CacheMeta(page_size_tokens=16, n_layers=32, n_heads=8, head_dim=128, dtype="bf16")
# What one process may take for a walk, interpreter and result included. The document has 172 MB, and so many strings have 272 MB.
MOST_BYTES = 400_000_000


@pytest.fixture(scope="module")
def digests() -> list[str]:
    """K and V of all pages in turn. Every thousandth is one that was there before."""
    digits = random.Random(0).randbytes(PAGES * 64).hex()
    digests = [f"sha256:{digits[at : at + 64]}" for at in range(0, len(digits), 64)]
    for at in range(1000, len(digests), 1000):
        digests[at] = digests[at - 999]
    return digests


@pytest.fixture(scope="module")
def document(digests: list[str]) -> bytes:
    sides = zip(digests[::2], digests[1::2], strict=True)
    pages = ",".join(f'{{"ix":{ix},"k":"{k}","v":"{v}"}}' for ix, (k, v) in enumerate(sides))
    head = '{"layout":"paged-batchinvariant-v1","page_size_tokens":16,"n_layers":32,"n_heads":8,"head_dim":128,"dtype":"bf16"'
    ixs = ",".join(map(str, range(PAGES)))
    return f'{head},"pages":[{pages}],"logical_seqs":[{{"id":"all","page_ixs":[{ixs}],"fill_in_last_page":7}}]}}'.encode()


def test_a_million_pages_are_read_extended_and_printed(store: pfimg.PfStore, digests: list[str], document: bytes) -> None:
    manifest = pfimg.PageManifest.from_json(document)
    for ix in (0, 1, 499_999, PAGES - 1):
        assert manifest.pages[ix] == pfimg.Page(ix, *digests[2 * ix : 2 * ix + 2])
    page = bytes(META.page_bytes)
    grown = store.put_pages(META, [page], [page], first_ix=PAGES, base=manifest)
    name = f"sha256:{hashlib.sha256(page).hexdigest()}"
    entry = f',{{"ix":{PAGES},"k":"{name}","v":"{name}"}}],"logical_seqs":'
    assert grown.to_json() == document.replace(b'],"logical_seqs":', entry.encode())


WALK = """
import hashlib, re, sys
from pathlib import Path
import pfimg

directory, most_bytes = sys.argv[1], int(sys.argv[2])
store = pfimg.PfStore.open(directory)
manifest = pfimg.Manifest.from_json(Path(directory, "manifest").read_bytes())
digests = pfimg.transitive_blob_digests(manifest, store)
if sys.platform == "linux":
    peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
    assert peak < most_bytes, f"{peak} bytes at the peak"
found = hashlib.sha256()
for digest in digests:
    found.update(digest.encode())
print(len(digests), found.hexdigest())
"""


def test_a_million_pages_are_walked_in_little_memory(tmp_path: Path, digests: list[str], document: bytes) -> None:
    store = pfimg.PfStore.open(tmp_path)
    small, cache = store.put_many([b"", document])
    manifest = pfimg.Manifest(
        agent=pfimg.AgentInfo("tester"),
        model=pfimg.ModelLayer(small, small),
        cache=pfimg.CacheLayer(cache),
        world=pfimg.WorldLayer(small, small, small),
        effects=pfimg.EffectsLayer(small),
        trace=pfimg.TraceLayer(small),
        created_at="2026-01-01T00:00:00Z",
    )
    (tmp_path / "manifest").write_bytes(manifest.to_json())
    want = dict.fromkeys([small, cache, *digests])
    process = subprocess.run(
        [sys.executable, "-c", WALK, str(tmp_path), str(MOST_BYTES)], capture_output=True, text=True, check=False, timeout=60
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == [str(len(want)), hashlib.sha256("".join(want).encode()).hexdigest()]
