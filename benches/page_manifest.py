"""A page manifest of a million pages, parsed and walked, beside what one would write in Python.

    python -m benches.page_manifest [--pages N] [--rounds N] [--json FILE]

Each peer is given what the call is given and gives back what it gives: all digests, each once, in the order in which they are
first seen. It checks their prefixes and lengths only, which is less than the call does. The rounds are interleaved; ratios are
medians of those within each round. The most memory that each needs is measured in a process of its own, which holds nothing else
than the interpreter, the imports and the document where it is given one.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import pfimg

META = pfimg.CacheMeta(page_size_tokens=16, n_layers=32, n_heads=8, head_dim=128, dtype="bf16")


def document(pages: int) -> bytes:
    """The published form of a cache of so many pages, all different, that one sequence lists."""

    def digest(text: str) -> str:
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    entries = ",".join(f'{{"ix":{ix},"k":"{digest(f"k{ix}")}","v":"{digest(f"v{ix}")}"}}' for ix in range(pages))
    head = '{"layout":"paged-batchinvariant-v1","page_size_tokens":16,"n_layers":32,"n_heads":8,"head_dim":128,"dtype":"bf16"'
    ixs = ",".join(map(str, range(pages)))
    return f'{head},"pages":[{entries}],"logical_seqs":[{{"id":"all","page_ixs":[{ixs}],"fill_in_last_page":0}}]}}'.encode()


def image(store: pfimg.BlobStore, pages: bytes) -> pfimg.Manifest:
    """An image of this cache and of nothing else."""
    small = store.put(b"")
    return pfimg.Manifest(
        agent=pfimg.AgentInfo("bench"),
        model=pfimg.ModelLayer(small, small),
        cache=pfimg.CacheLayer(store.put(pages)),
        world=pfimg.WorldLayer(small, small, small),
        effects=pfimg.EffectsLayer(small),
        trace=pfimg.TraceLayer(small),
        created_at="2026-01-01T00:00:00Z",
    )


def peer_parse(data: bytes) -> list[tuple[int, str, str]]:
    """`orjson`, and a loop that checks each page: most of what `PageManifest.from_json` does."""
    import orjson

    pages, last = [], -1
    for page in orjson.loads(data)["pages"]:
        ix, k, v = page["ix"], page["k"], page["v"]
        if ix <= last or len(k) != 71 or len(v) != 71 or not (k.startswith("sha256:") and v.startswith("sha256:")):
            raise ValueError(page)
        pages.append((ix, k, v))
        last = ix
    return pages


def peer_walk(data: bytes) -> list[str]:
    """`orjson`, and a loop that checks and lists the digests: most of what `transitive_blob_digests` does in memory."""
    import orjson

    found: dict[str, None] = {}
    for page in orjson.loads(data)["pages"]:
        k, v = page["k"], page["v"]
        if len(k) != 71 or len(v) != 71 or not (k.startswith("sha256:") and v.startswith("sha256:")):
            raise ValueError(page)
        found[k] = found[v] = None
    return list(found)


def peer_read_and_walk(path: Path) -> list[str]:
    """The same with a blob on disk: `zstandard` and `hashlib` before it."""
    import zstandard

    data = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    if hashlib.sha256(data).hexdigest() != path.stem:
        raise ValueError(path)
    return peer_walk(data)


Pairs = dict[str, tuple[Callable[[], Any], Callable[[], Any]]]


def compare(pages: int, rounds: int, base: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds of ours and of the peer by row, one pair a round; the first round only warms up."""
    data = document(pages)
    memory, store = pfimg.MemoryStore(), pfimg.PfStore.open(base / "store")
    in_memory, on_disk = image(memory, data), image(store, data)
    file = store.blob_path(on_disk.cache.manifest)
    if file is None:
        sys.exit("the store keeps no file of the document")
    rows: Pairs = {
        "parse": (lambda: pfimg.PageManifest.from_json(data), lambda: peer_parse(data)),
        "walk in memory": (lambda: pfimg.transitive_blob_digests(in_memory, memory), lambda: peer_walk(data)),
        "walk from disk": (lambda: pfimg.transitive_blob_digests(on_disk, store), lambda: peer_read_and_walk(file)),
    }
    if pfimg.transitive_blob_digests(on_disk, store)[2:] != peer_read_and_walk(file):
        sys.exit("the two found different digests")
    seconds: dict[str, list[tuple[float, float]]] = {row: [] for row in rows}
    for round_ in range(rounds + 1):
        for row, pair in rows.items():
            times = []
            for call in pair:
                start = perf_counter()
                result = call()
                times.append(perf_counter() - start)
                del result
            if round_ > 0:
                seconds[row].append((times[0], times[1]))
    return seconds


PEAKS = {
    "nothing": "",
    "nothing, with the document": "data = document.read_bytes()",
    "parse": "pfimg.PageManifest.from_json(document.read_bytes())",
    "parse: peer": "peer_parse(document.read_bytes())",
    "walk from disk": "pfimg.transitive_blob_digests(manifest, store)",
    "walk from disk: peer": "peer_read_and_walk(file)",
}


def peaks(pages: int, base: Path) -> dict[str, int]:
    """Bytes that a process needed at most, by what it did."""
    data = document(pages)
    (base / "document").write_bytes(data)
    store = pfimg.PfStore.open(base / "peaks")
    manifest = image(store, data)
    (base / "manifest").write_bytes(manifest.to_json())
    setup = f"""
import re
from pathlib import Path
import orjson, zstandard, pfimg
from benches.page_manifest import peer_parse, peer_read_and_walk
document = Path({str(base / "document")!r})
manifest = pfimg.Manifest.from_json(Path({str(base / "manifest")!r}).read_bytes())
store = pfimg.PfStore.open({str(base / "peaks")!r})
file = store.blob_path({manifest.cache.manifest!r})
"""
    # Not `ru_maxrss`, which begins with what the parent had.
    report = 'print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])'
    found = {}
    for name, code in PEAKS.items():
        script = f"{setup}\nresult = {code or None}\n{report}" if "=" not in code else f"{setup}\n{code}\n{report}"
        process = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        found[name] = int(process.stdout) * 1024
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pages", type=int, default=1_000_000, help="pages of the document (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="pfimg-bench-") as directory:
        base = Path(directory)
        seconds, memory = compare(options.pages, options.rounds, base), peaks(options.pages, base)
    print(f"{options.pages} pages, {options.rounds} rounds\n\n| call | pfimg s | peer s | × peer |\n|---|---:|---:|---:|")
    for row, pairs in seconds.items():
        ratio = median(peer / ours for ours, peer in pairs)
        print(f"| {row} | {median(ours for ours, _ in pairs):.3f} | {median(peer for _, peer in pairs):.3f} | {ratio:.2f} × |")
    print("\n| process | most memory, MB |\n|---|---:|")
    for name, peak in memory.items():
        print(f"| {name} | {peak / 1e6:.0f} |")
    if options.json:
        options.json.write_text(json.dumps({"pages": options.pages, "seconds": seconds, "peak_bytes": memory}, indent=1) + "\n")


if __name__ == "__main__":
    main()
