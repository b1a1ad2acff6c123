"""The main job on real input: KV pages and a directory become an image, travel over a registry, and come back byte for byte.

Two stores stand for two machines, a directory between them for the registry. The first machine captures real KV pages
(`tests/data`) and the standard library of this Python as one image and pushes it; the second pulls it and checks it out. Then the
second changes a few pages and a file, pushes that as a child, and the first pulls it: only the difference moves. Each time every
file, link, mode and page is compared with what was captured.

    make demo        or, where pfimg is installed:        python examples/demo.py

Exit code 0 only if everything is equal. Everything is written below a temporary directory, which is removed.
"""

import hashlib
import os
import stat
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rich.console import Console

import pfimg
from pfimg.cli.contents import Contents
from pfimg.cli.draw import changes, picture
from pfimg.cli.npy import PagesFile
from pfimg.cli.progress import bar
from pfimg.types import Progress, human_size

T = TypeVar("T")
Tree = dict[str, tuple[str, int, str]]  # path: kind and mode, size, hash or target
Pages = tuple[bytes, bytes]  # all pages of K, all of V

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
LIBRARY = Path(sysconfig.get_path("stdlib"))
INSTALLED = ("site-packages", "dist-packages")  # below the standard library, but no part of it
CACHES = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")  # a snapshot leaves these out by itself
CHANGED_PAGES = range(21, 24)
CHANGED_FILE = "this.py"
MESSAGES = (
    {"role": "user", "content": "What may I do with this program?"},
    {"role": "assistant", "content": "Run it, study it, share it, and change it."},
)


class DifferenceError(Exception):
    """What came back is not what was sent."""


def main() -> int:
    """Runs the demo and returns its exit code."""
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="pfimg-demo-") as directory:
            there_and_back(Path(directory))
    except DifferenceError as difference:
        print(f"\nNOT EQUAL: {difference}", file=sys.stderr)
        return 1
    verdict = f"ALL EQUAL: every file, link and mode, and every page, both ways ({time.perf_counter() - start:.1f} s)."
    Console(highlight=False).print(f"\n{verdict}", style="bold green")
    return 0


def there_and_back(work: Path) -> None:
    """The whole journey. Raises DifferenceError."""
    k, v = PagesFile.open(DATA / "kv_k_pages.npy"), PagesFile.open(DATA / "kv_v_pages.npy")
    pages, library = (k.rows.tobytes(), v.rows.tobytes()), tree(LIBRARY)
    kv_size, library_size = sum(map(len, pages)), sum(size for _, size, _ in library.values())
    print(f"pfimg {pfimg.__version__}: KV pages and a directory, to a registry and back")
    row("pages", f"{len(k.rows)} of K and {len(v.rows)} of V, {human_size(kv_size)}, from a real model (tests/data)")
    row("directory", f"{LIBRARY}, {len(library):,} entries, {human_size(library_size)}")
    first, second = pfimg.PfStore.open(work / "first"), pfimg.PfStore.open(work / "second")
    registry = f"file://{work}/registry"

    print("\nFirst machine: snapshot and push")
    # Two sequences that share a prefix of eight pages, as two answers to one question do.
    sequences = [
        pfimg.LogicalSeq("answer-1", range(16), fill_in_last_page=9),
        pfimg.LogicalSeq("answer-2", [*range(8), *range(16, 24)]),
    ]
    cache = first.put_pages(k.meta, k.rows, v.rows, logical_seqs=sequences)
    image = timed(
        "snapshot",
        lambda progress: pfimg.snapshot(
            first, agent="demo", fs_root=LIBRARY, cache=cache, ignore=INSTALLED, messages=MESSAGES, progress=progress
        ),
        library_size + kv_size,
    )
    stored = first.physical_bytes()
    row("stored", f"{human_size(stored)} on disk, {stored / (library_size + kv_size):.0%} of what was captured")
    sent = push(first, image, registry)
    print(f"\n{picture(Contents.read(first, image))}")

    print("\nSecond machine: pull, check out, compare")
    pull(registry, second, image)
    check_out(second, image, work / "checkout", library, pages)

    print(f"\nSecond machine: change {len(CHANGED_PAGES)} pages and {CHANGED_FILE}, snapshot that as a child, and push")
    fork, pages = change(second, image, work / "checkout", pages)
    print(changes(pfimg.diff(second, image, fork)))
    sent_again = push(second, fork, registry)
    row("so", f"{sent_again / sent:.1%} of the first push moved: only the difference")

    print("\nFirst machine: pull the child, check out, compare")
    pull(registry, first, fork)
    check_out(first, fork, work / "fork", tree(work / "checkout"), pages)


def push(store: pfimg.PfStore, image: str, registry: str) -> int:
    """Pushes, tells what moved, and returns the bytes that did."""
    report = timed("push", lambda progress: pfimg.push(store, image, registry, progress=progress))
    row("sent", moved(report.sent, report.bytes_sent, report.skipped, report.seconds))
    return report.bytes_sent


def pull(registry: str, store: pfimg.PfStore, image: str) -> None:
    """Pulls and tells what moved. Raises DifferenceError when it is another image."""
    report = timed("pull", lambda progress: pfimg.pull(registry, store, progress=progress))
    row("fetched", moved(report.fetched, report.bytes_fetched, report.skipped, report.seconds))
    if report.image != image:
        raise DifferenceError(f"{image} was pushed, {report.image} was pulled")


def check_out(store: pfimg.PfStore, image: str, target: Path, files: Tree, pages: Pages) -> None:
    """Checks an image out and compares it with what it must hold. Raises DifferenceError."""
    size = sum(size for _, size, _ in files.values())
    # The links of the standard library lead where its packager says; this copy is only looked at.
    timed("checkout", lambda bar: pfimg.checkout(store, image, target, allow_absolute_symlinks=True, progress=bar), size)
    back = tree(target)
    for path in sorted(files.keys() | back.keys()):
        if files.get(path) != back.get(path):
            raise DifferenceError(f"{path} was {files.get(path, 'absent')}, is {back.get(path, 'absent')}")
    k, v = store.get_pages(image)
    for side, was, found in (("K", pages[0], k), ("V", pages[1], v)):
        page_bytes, data = found.nbytes // len(found), found.tobytes()
        for start in range(0, max(len(was), len(data)), page_bytes):
            if was[start : start + page_bytes] != data[start : start + page_bytes]:
                raise DifferenceError(f"{side} of page {start // page_bytes}")
    row("compared", f"{len(files):,} files, directories and links, {len(k)} pages of K, {len(v)} of V: equal")


def change(store: pfimg.PfStore, image: str, directory: Path, pages: Pages) -> tuple[str, Pages]:
    """Changes a file and some pages, and takes a snapshot: its id, and the pages it has."""
    (directory / CHANGED_FILE).chmod(0o644)  # some systems keep their library read-only
    with (directory / CHANGED_FILE).open("a") as file:
        file.write("# Forking is one honking great idea.\n")
    old = pfimg.PageManifest.from_json(store.get(store.get_manifest(image).cache.manifest))
    size = old.meta.page_bytes
    negate = bytes(byte ^ 0x80 for byte in range(256))
    span = slice(CHANGED_PAGES.start * size, CHANGED_PAGES.stop * size)
    sides = [side[: span.start] + side[span].translate(negate) + side[span.stop :] for side in pages]
    k, v = ([side[ix * size : (ix + 1) * size] for ix in CHANGED_PAGES] for side in sides)
    cache = store.put_pages(old.meta, k, v, base=old, first_ix=CHANGED_PAGES.start)
    fork = timed(
        "snapshot",
        lambda progress: pfimg.snapshot(
            store, agent="demo", fs_root=directory, cache=cache, messages=MESSAGES, parents=[image], progress=progress
        ),
    )
    return fork, (sides[0], sides[1])


def tree(root: Path) -> Tree:
    """What a snapshot has to bring back, read with nothing but the standard library."""
    found: Tree = {}
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in (*INSTALLED, *CACHES)]
        for name in (*names, *files):
            path = Path(directory, name)
            info = path.lstat()
            mode = f"{stat.filemode(info.st_mode)}"
            key = path.relative_to(root).as_posix()
            if stat.S_ISLNK(info.st_mode):
                found[key] = mode, 0, f"-> {path.readlink()}"
            elif stat.S_ISDIR(info.st_mode):
                found[key] = mode, 0, ""
            elif stat.S_ISREG(info.st_mode) and path.suffix not in (".pyc", ".pyo"):
                data = path.read_bytes()
                found[key] = mode, len(data), hashlib.sha256(data).hexdigest()
    return found


def timed(what: str, work: Callable[[Callable[[Progress], None] | None], T], size: int | None = None) -> T:
    """Does the work under a progress bar and tells how long it took."""
    start = time.perf_counter()
    with bar() as progress:
        result = work(progress)
    seconds = time.perf_counter() - start
    row(what, f"{seconds:.2f} s" + (f", {human_size(size / seconds)}/s" if size else ""))
    return result


def moved(blobs: int, size: int, skipped: int, seconds: float) -> str:
    """What went over the wire."""
    return f"{blobs:,} blobs, {human_size(size)} at {human_size(size / seconds)}/s; {skipped:,} were there already"


def row(name: str, text: str) -> None:
    """One line of the report."""
    print(f"  {name:<10} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
